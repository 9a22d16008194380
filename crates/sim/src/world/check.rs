//! What must hold: always, and once all is calm.

use std::collections::{BTreeMap, BTreeSet};

use warren_model::TaskId;
use warren_model::service::Mode;
use warren_model::task::{Desired, TaskState};
use warren_planner::{Convergence, Seen};

use super::{Held, Ids, World};
use crate::jobs;
use crate::ledger::Ledger;

impl World {
    pub(super) fn check_step(&mut self) -> Held {
        let violations = self.state.check();
        if !violations.is_empty() {
            return Err(format!("the state does not hold: {}", violations.join("; ")));
        }
        jobs::check(&self.state)?;
        self.deeds.look(&self.state)?;
        self.check_room()?;
        let mut addresses = BTreeMap::new();
        for (task, container) in self.machine.running() {
            let Some(address) = self.state.task(task).and_then(|task| task.address) else {
                continue;
            };
            if let Some(other) = addresses.insert(address, task).filter(|other| *other != task) {
                return Err(format!(
                    "{other} and {task} (pid {}) both run at {address}",
                    container.pid
                ));
            }
        }
        Ok(())
    }

    pub(super) fn check_calm(&mut self) -> Held {
        jobs::check(&self.state)?;
        self.check_services()?;
        self.check_machine()?;
        self.check_network()?;
        self.check_plan()?;
        self.check_ledger()
    }

    fn check_services(&self) -> Held {
        for service in self.state.services() {
            let name = &service.spec.name;
            if service.removing {
                return Err(format!("{name} is still being removed"));
            }
            if service.spec.task.command.first().is_some_and(|word| word == "crash") {
                self.check_bounded(service.id)?;
                continue;
            }
            match warren_planner::progress(&self.state, service.id) {
                Convergence::Converged => {}
                Convergence::Waiting { message } => return Err(format!("{name} waits: {message}")),
                Convergence::Failed { reason } => return Err(format!("{name} failed: {reason}")),
            }
            let running = warren_planner::task_counts(&self.state, service.id).0;
            let Mode::Replicated { replicas } = service.spec.mode else { continue };
            if running != replicas {
                return Err(format!("{name} runs {running} of {replicas}"));
            }
        }
        Ok(())
    }

    /// A crash loop must not pile up tasks.
    fn check_bounded(&self, service: warren_model::ServiceId) -> Held {
        let tasks = self.state.tasks_of(service).count();
        let limit = self.state.cluster().map_or(0, |cluster| cluster.history_limit);
        // Eight slots, and two hooks.
        let most = (10 * (limit + 2)) as usize;
        if tasks > most {
            return Err(format!("a crash loop holds {tasks} tasks, at most {most} are kept"));
        }
        Ok(())
    }

    /// What tasks have reserved is there.
    fn check_room(&self) -> Held {
        let Some(node) = self.state.node(self.node_id) else { return Ok(()) };
        let Some(reserved) = self.state.reserved_on(self.node_id) else { return Ok(()) };
        let (taken, there) = (reserved.cpu_millis, node.description.cpus * 1000);
        if taken > u64::from(there) {
            return Err(format!("{taken} thousandths of a core are reserved of {there}"));
        }
        Ok(())
    }

    fn check_network(&self) -> Held {
        if *self.machine.net == warren_manager::dispatch::table::complete(&self.state, self.node_id)
        {
            return Ok(());
        }
        Err("the node goes by another table than its manager has for it".to_owned())
    }

    fn check_machine(&self) -> Held {
        let known: BTreeSet<TaskId> = self.state.tasks().map(|task| task.id).collect();
        let strays = self.machine.strays(&known);
        if !strays.is_empty() {
            return Err(format!("containers of nobody: {strays:?}"));
        }
        let mut running = BTreeSet::new();
        for (task, container) in self.machine.running() {
            if !running.insert(task) {
                return Err(format!("{task} runs twice, pid {}", container.pid));
            }
        }
        for task in self.state.tasks() {
            let says = task.status.state == TaskState::Running;
            let crashes =
                self.state.template(task.service, task.template).is_some_and(|template| {
                    template.command.first().is_some_and(|word| word == "crash")
                });
            if says != running.contains(&task.id) && !crashes {
                return Err(format!(
                    "{} is {:?} in the state, container running: {}",
                    task.id, task.status.state, !says
                ));
            }
            if task.desired != Desired::Running && running.contains(&task.id) {
                return Err(format!("{} runs and is not wanted", task.id));
            }
        }
        self.check_table(&running)
    }

    fn check_table(&self, running: &BTreeSet<TaskId>) -> Held {
        for published in &self.machine.table.published {
            for backend in &published.backends {
                let holder = self.state.address_holder(self.node_id, *backend.ip());
                if !holder.is_some_and(|task| running.contains(&task)) {
                    return Err(format!(
                        "port {} names {backend}, which nothing runs at",
                        published.port
                    ));
                }
            }
        }
        for service in self.state.services() {
            let up: BTreeSet<_> = self
                .state
                .tasks_of(service.id)
                .filter(|task| running.contains(&task.id) && task.status.is_ready())
                .filter_map(|task| task.address)
                .collect();
            for port in &service.spec.ports {
                let crashes = service.spec.task.command.first().is_some_and(|word| word == "crash");
                let named = self.machine.behind(port.published);
                if named != up && !crashes {
                    return Err(format!(
                        "port {} of {} names {named:?}, ready are {up:?}",
                        port.published, service.spec.name
                    ));
                }
            }
        }
        Ok(())
    }

    /// A pass over a calm world changes nothing, with a warm index and with a fresh one.
    fn check_plan(&mut self) -> Held {
        if self.planning {
            return Ok(());
        }
        let wall = self.wall();
        let now = wall.max(self.state.time());
        self.beats.wall = Some(wall);
        self.beats.seen.insert(self.node_id, Seen { at: now, rtt_ms: 0 });
        let crashing = self.state.services().any(|s| !s.spec.task.command.is_empty());
        for mut index in [self.index.clone(), warren_planner::Index::default()] {
            let mut ids = Ids(&self.rng);
            let plan = warren_planner::plan(&self.state, &mut index, &self.beats, &mut ids, now);
            if !plan.transaction.mutations.is_empty() && !crashing {
                return Err(format!(
                    "a calm world is still planned: {:?}",
                    plan.transaction.mutations
                ));
            }
        }
        Ok(())
    }

    fn check_ledger(&self) -> Held {
        let replayed = self.ledger.as_ref().map(Ledger::replay).ok_or("no ledger")??;
        if replayed.checksum() != self.state.checksum() {
            return Err(format!("the log replays to {replayed:?}, the state is {:?}", self.state));
        }
        Ok(())
    }
}
