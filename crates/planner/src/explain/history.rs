//! What was decided lately about a service's slots, and why: of the tasks that history keeps.
//!
//! A task carries why it was made and by which revision of the state; what it
//! followed is the task before it in its slot. Nothing else is remembered, so it
//! is as long as the cluster's limit of history.

use warren_model::Time;
use warren_model::id::{NodeId, ServiceId, TaskId};
use warren_model::moving::Cause;
use warren_model::service::Service;
use warren_model::task::Task;
use warren_state::State;

use crate::progress::say;
use crate::slot::{Key, Slot, slots_of};

/// Told at most: more would not be read.
const DECISIONS_MAX: usize = 20;

/// Why a task was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub task: TaskId,
    /// Of a global service 0.
    pub slot: u32,
    pub node: Option<NodeId>,
    pub time: Time,
    /// Of the state; 0: unknown.
    pub revision: u64,
    /// None: a version made it that did not say.
    pub cause: Option<Cause>,
    /// For people.
    pub text: String,
}

/// The newest first; of one slot, or of all.
pub fn decisions(state: &State, service: ServiceId, slot: Option<u32>) -> Vec<Decision> {
    let Some(service) = state.service(service) else { return Vec::new() };
    let mut all = Vec::new();
    for found in slots_of(state, service) {
        let number = match found.key {
            Key::Number(number) | Key::Run(_, number) => number,
            Key::On(_) | Key::RunOn(..) | Key::Hook(_) => 0,
        };
        if slot.is_none_or(|slot| slot == number || number == 0) {
            of_slot(state, service, &found, number, &mut all);
        }
    }
    all.sort_by_key(|decision| {
        std::cmp::Reverse((decision.time, decision.revision, decision.task))
    });
    all.truncate(DECISIONS_MAX);
    all
}

fn of_slot(
    state: &State,
    service: &Service,
    slot: &Slot<'_>,
    number: u32,
    all: &mut Vec<Decision>,
) {
    let mut tasks: Vec<&Task> = slot.tasks().collect();
    tasks.sort_by_key(|task| (task.created, task.id));
    let mut before: Option<&Task> = None;
    for task in tasks {
        all.push(Decision {
            task: task.id,
            slot: number,
            node: task.node,
            time: task.created,
            revision: task.origin.map_or(0, |origin| origin.revision),
            cause: task.origin.map(|origin| origin.cause),
            text: text(state, service, task, before),
        });
        before = Some(task);
    }
}

fn text(state: &State, service: &Service, task: &Task, before: Option<&Task>) -> String {
    let host = |task: Option<&Task>| {
        let node = task.and_then(|task| task.node).and_then(|id| state.node(id));
        node.map_or_else(|| "its node".to_owned(), |node| node.description.hostname.clone())
    };
    let from = host(before);
    let why = match task.origin.map(|origin| origin.cause) {
        None => "made by a version that did not say why".to_owned(),
        Some(Cause::Wanted) => "wanted: the slot had no task".to_owned(),
        Some(Cause::Update) => format!("renewed: template {} takes over", task.template),
        Some(Cause::Failure) => match before {
            Some(before) => format!("replaced: {}", say(state, service, before)),
            None => "replaced: the one before ended".to_owned(),
        },
        Some(Cause::Lost) => format!("replaced: {from} was out of reach"),
        Some(Cause::Drain) => format!("moved off {from}, which drains"),
        Some(Cause::Deadline) => format!("moved off {from}: the deadline of its drain was over"),
        Some(Cause::Placement) => {
            format!("moved off {from}, where it may not be: a constraint or a taint")
        }
        Some(Cause::Balance) => format!("moved from {from} to a node that came later and had less"),
    };
    match task.node {
        Some(_) => format!("{why}; on {}", host(Some(task))),
        None => format!("{why}; no place yet"),
    }
}
