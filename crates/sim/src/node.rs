//! A worker's machine: the real agent core, and containers that only exist here.
//!
//! Containers and the kernel's table outlive the daemon, as on a real machine;
//! a power failure takes them.

use std::collections::{BTreeMap, BTreeSet};

use warren_agent::core::{Core, FoundTask, group};
use warren_agent::task::{Ended, Found, FoundState};
use warren_model::TaskId;
use warren_model::quantity::Time;
use warren_model::task::TaskExit;
use warren_net::Table;

/// A container as the machine holds it.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub(crate) pid: u32,
    pub(crate) started: Time,
    pub(crate) restarts: u32,
    pub(crate) last_exit: Option<TaskExit>,
    pub(crate) ended: Option<Ended>,
    /// The present daemon asked to be told of its end.
    pub(crate) waited: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Node {
    pub(crate) core: Core,
    pub(crate) containers: BTreeMap<(TaskId, u32), Container>,
    /// What the kernel publishes.
    pub(crate) table: Table,
    next_pid: u32,
}

impl Node {
    /// The process of a new container.
    pub(crate) fn pid(&mut self) -> u32 {
        self.next_pid += 1;
        1000 + self.next_pid
    }

    /// A new daemon looks at what is there.
    pub(crate) fn restart(&mut self) {
        for container in self.containers.values_mut() {
            container.waited = false;
        }
        self.core = Core::new(self.found());
    }

    /// The machine loses power: processes and kernel state are gone.
    pub(crate) fn power_off(&mut self) {
        self.containers.clear();
        self.table = Table::default();
    }

    fn found(&self) -> BTreeMap<TaskId, FoundTask> {
        group(self.containers.iter().map(|((task, attempt), container)| {
            let state = match container.ended {
                None => FoundState::Running { pid: container.pid, at: container.started },
                Some(ended) => FoundState::Exited { started: Some(container.started), ended },
            };
            let found = Found {
                attempt: *attempt,
                restarts: container.restarts,
                last_exit: container.last_exit,
                state,
            };
            (*task, found)
        }))
    }

    /// Ends a container's process; returns whether the daemon waits for that.
    pub(crate) fn end(&mut self, key: (TaskId, u32), ended: Ended) -> bool {
        match self.containers.get_mut(&key) {
            Some(container) if container.ended.is_none() => {
                container.ended = Some(ended);
                container.waited
            }
            Some(_) | None => false,
        }
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = (TaskId, &Container)> {
        self.containers.iter().filter(|(_, c)| c.ended.is_none()).map(|((task, _), c)| (*task, c))
    }

    /// Containers of tasks that are not in `known`.
    pub(crate) fn strays(&self, known: &BTreeSet<TaskId>) -> Vec<TaskId> {
        self.containers.keys().map(|(task, _)| *task).filter(|task| !known.contains(task)).collect()
    }
}
