//! Slots of a service: what is in each, and what that amounts to.

use warren_model::Time;
use warren_model::id::{NodeId, TaskId};
use warren_model::job::Run;
use warren_model::node::{Availability, NodeStatus};
use warren_model::service::{Hook, Mode, PublishMode, RestartCondition, Service, UpdateOrder};
use warren_model::task::{Desired, Task, TaskState};
use warren_state::State;

use crate::nodes::{Nodes, Site};
use crate::place::{is_closed, may_stay};

/// What makes two tasks successors of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Number(u32),
    /// Of a global service: its node.
    On(NodeId),
    /// Of a run of a job.
    Run(u32, u32),
    /// Of a run of a global job: its node.
    RunOn(u32, NodeId),
    /// None of the service's: see `hooks`.
    Hook(Hook),
}

impl Key {
    /// The node that it is of, if it is of one.
    pub(crate) fn node(self) -> Option<NodeId> {
        match self {
            Self::Number(_) | Self::Run(..) | Self::Hook(_) => None,
            Self::On(node) | Self::RunOn(_, node) => Some(node),
        }
    }

    /// As a task of it calls it.
    pub(crate) fn slot(self) -> u32 {
        match self {
            Self::Number(slot) | Self::Run(_, slot) => slot,
            Self::On(_) | Self::RunOn(..) => 1,
            Self::Hook(_) => 0,
        }
    }

    /// 0 of what is no job; of a hook which.
    pub(crate) fn run(self) -> u32 {
        match self {
            Self::Number(_) | Self::On(_) => 0,
            Self::Run(run, _) | Self::RunOn(run, _) => run,
            Self::Hook(hook) => hook.number(),
        }
    }
}

/// Tasks that follow each other in one place. Lists are newest first.
pub(crate) struct Slot<'a> {
    pub(crate) key: Key,
    /// Desired running: one, or two and more while one takes over.
    pub(crate) wanted: Vec<&'a Task>,
    /// Desired shutdown: history, or on its way there.
    pub(crate) past: Vec<&'a Task>,
    /// Desired remove.
    pub(crate) leaving: Vec<&'a Task>,
    pub(crate) renewed: Renewed,
}

/// Whether this plan made a task in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renewed {
    No,
    Placed,
    /// It waits for a place.
    Waiting,
}

impl<'a> Slot<'a> {
    pub(crate) fn new(key: Key) -> Self {
        Self { key, wanted: vec![], past: vec![], leaving: vec![], renewed: Renewed::No }
    }

    pub(crate) fn tasks(&self) -> impl Iterator<Item = &'a Task> {
        self.wanted.iter().chain(&self.past).chain(&self.leaving).copied()
    }

    /// The wanted task that is as the spec says, the best if there are several.
    pub(crate) fn current(&self, service: &Service, nodes: &Nodes<'_>) -> Option<&'a Task> {
        let fits = |task: &&&'a Task| !is_outdated(task, service, nodes);
        // `max_by_key` gives the last of equals, the list is newest first.
        let best = self.wanted.iter().rev().filter(fits).max_by_key(|task| is_up(task, nodes));
        best.copied()
    }

    /// Whether a task of another template than the service's is still wanted.
    pub(crate) fn has_older(&self, service: &Service) -> bool {
        self.wanted.iter().any(|task| task.template != service.template)
    }

    /// Whether anything of it may still run on a node that is heard of, though not wanted any more.
    pub(crate) fn is_stopping(&self, nodes: &Nodes<'_>) -> bool {
        let mut unwanted = self.past.iter().chain(&self.leaving);
        unwanted.any(|task| is_live(task) && !is_lost(task, nodes))
    }
}

/// The slots that have tasks, in order of key; hooks have none.
pub(crate) fn slots_of<'a>(state: &'a State, service: &Service) -> Vec<Slot<'a>> {
    let key = |task: &Task| match (service.spec.mode, task.node) {
        (Mode::Global, Some(node)) => Key::On(node),
        (Mode::Global, None) | (Mode::Replicated { .. }, _) => Key::Number(task.slot),
        (Mode::GlobalJob, Some(node)) => Key::RunOn(task.run, node),
        (Mode::GlobalJob, None) | (Mode::ReplicatedJob { .. }, _) => Key::Run(task.run, task.slot),
    };
    let mut tasks: Vec<(Key, &Task)> =
        state.tasks_of(service.id).filter(has_slot).map(|task| (key(task), task)).collect();
    tasks.sort_by(|(a, left), (b, right)| a.cmp(b).then_with(|| age(right).cmp(&age(left))));
    let mut slots: Vec<Slot<'a>> = Vec::new();
    for (key, task) in tasks {
        if slots.last().is_none_or(|slot| slot.key != key) {
            slots.push(Slot::new(key));
        }
        let Some(slot) = slots.last_mut() else { continue };
        match task.desired {
            Desired::Running => slot.wanted.push(task),
            Desired::Shutdown => slot.past.push(task),
            Desired::Remove => slot.leaving.push(task),
        }
    }
    slots
}

fn has_slot(task: &&Task) -> bool {
    task.slot != 0
}

/// Puts a task among others that are newest first.
pub(crate) fn insert_by_age<'a>(tasks: &mut Vec<&'a Task>, task: &'a Task) {
    let at = tasks.partition_point(|other| age(other) > age(task));
    tasks.insert(at, task);
}

/// Later is larger; total, so that order never depends on anything else.
fn age(task: &Task) -> (Time, u32, TaskId) {
    (task.created, task.template, task.id)
}

/// Whether a service shall have a task in a slot.
pub(crate) enum Wanted {
    /// One is to be there.
    Yes,
    /// What is there stays as it is: its node is paused or out of reach.
    Keep,
    No,
}

pub(crate) fn wanted(service: &Service, key: Key, nodes: &Nodes<'_>) -> Wanted {
    let goes_on = |run| {
        let run = service.job.as_ref().and_then(|job| job.run(run));
        run.is_some_and(Run::is_active)
    };
    match (service.spec.mode, key) {
        // What is due is not a question of the mode.
        (_, Key::Hook(_)) => Wanted::Yes,
        (Mode::ReplicatedJob { completions, .. }, Key::Run(run, n))
            if (1..=completions).contains(&n) && goes_on(run) =>
        {
            Wanted::Yes
        }
        (Mode::GlobalJob, Key::RunOn(run, node)) if goes_on(run) => match nodes.get(node) {
            None => Wanted::No,
            Some(site) => wanted_on(service, site),
        },
        (Mode::ReplicatedJob { .. } | Mode::GlobalJob, _) => Wanted::No,
        (Mode::Replicated { replicas }, Key::Number(n)) if (1..=replicas).contains(&n) => {
            Wanted::Yes
        }
        (Mode::Global, Key::On(node)) => match nodes.get(node) {
            None => Wanted::No,
            Some(site) => wanted_on(service, site),
        },
        (Mode::Replicated { .. } | Mode::Global, _) => Wanted::No,
    }
}

fn wanted_on(service: &Service, site: &Site<'_>) -> Wanted {
    match (site.node.availability, site.status) {
        _ if !site.node.worker || !may_stay(service, site) => Wanted::No,
        _ if is_closed(service, site) => Wanted::Keep,
        (Availability::Drain, _) => Wanted::No,
        (Availability::Active, NodeStatus::Ready) => Wanted::Yes,
        (Availability::Active | Availability::Pause, _) => Wanted::Keep,
    }
}

/// Keys of all slots that shall have a task, in order; of a job those of its last run.
pub(crate) fn wanted_keys(service: &Service, nodes: &Nodes<'_>) -> Vec<Key> {
    let run = service.job.as_ref().map_or(0, |job| job.last);
    keys_of(service, run, nodes)
}

/// Those of one run of a job, or, without runs, of the service.
pub(crate) fn keys_of(service: &Service, run: u32, nodes: &Nodes<'_>) -> Vec<Key> {
    let takes = |site: &&Site<'_>| {
        site.is_eligible() && may_stay(service, site) && !is_closed(service, site)
    };
    let eligible = || nodes.sites().iter().filter(takes).map(|site| site.node.id);
    match service.spec.mode {
        Mode::Replicated { replicas } => (1..=replicas).map(Key::Number).collect(),
        Mode::ReplicatedJob { completions, .. } => {
            (1..=completions).map(|slot| Key::Run(run, slot)).collect()
        }
        Mode::Global => eligible().map(Key::On).collect(),
        Mode::GlobalJob => eligible().map(|node| Key::RunOn(run, node)).collect(),
    }
}

/// Whether a task is not what the spec wants there: another template, or a node to leave.
pub(crate) fn is_outdated(task: &Task, service: &Service, nodes: &Nodes<'_>) -> bool {
    let is_to_leave = |node| match nodes.get(node) {
        None => true,
        Some(site) => site.is_draining() || !may_stay(service, site),
    };
    task.template != service.template || task.node.is_some_and(is_to_leave)
}

pub(crate) fn is_live(task: &Task) -> bool {
    !task.status.state.is_terminal()
}

/// Whether it may run where nobody hears of it.
pub(crate) fn is_lost(task: &Task, nodes: &Nodes<'_>) -> bool {
    is_live(task) && task.node.is_some_and(|node| nodes.is_down(node))
}

/// Whether it does what it is there for, or has done it. One that runs and is not healthy does not.
pub(crate) fn is_up(task: &Task, nodes: &Nodes<'_>) -> bool {
    match task.status.state {
        TaskState::Running => task.status.is_ready() && !is_lost(task, nodes),
        TaskState::Complete => true,
        TaskState::Pending
        | TaskState::Assigned
        | TaskState::Preparing
        | TaskState::Starting
        | TaskState::Draining
        | TaskState::Stopping
        | TaskState::Failed
        | TaskState::Rejected
        | TaskState::Removed => false,
    }
}

/// Whether it ended badly, or is gone though nobody asked for it.
pub(crate) fn is_failed(task: &Task) -> bool {
    match task.status.state {
        TaskState::Failed | TaskState::Rejected | TaskState::Removed => true,
        TaskState::Pending
        | TaskState::Assigned
        | TaskState::Preparing
        | TaskState::Starting
        | TaskState::Running
        | TaskState::Draining
        | TaskState::Stopping
        | TaskState::Complete => false,
    }
}

/// Whether the restart policy wants another in place of one that ended badly.
pub(crate) fn wants_successor(task: &Task, condition: RestartCondition) -> bool {
    match condition {
        RestartCondition::None => false,
        RestartCondition::Any => true,
        RestartCondition::OnFailure => {
            // What was stopped because it was unhealthy may have ended well.
            task.status.state == TaskState::Failed
                || task.status.exit.is_none_or(|exit| exit.code != 0 || exit.oom_killed)
        }
    }
}

/// Whether the old task of a slot must end before the new one starts.
pub(crate) fn is_stop_first(service: &Service) -> bool {
    service.pace().order == UpdateOrder::StopFirst || has_host_ports(service)
}

/// Whether there is room for one replica per node only.
pub(crate) fn has_host_ports(service: &Service) -> bool {
    service.spec.ports.iter().any(|port| port.mode == PublishMode::Host)
}
