//! Whether a service is as it is wanted: for those who wait, and for listings.

use std::collections::BTreeMap;

use warren_model::Time;
use warren_model::health::HealthState;
use warren_model::id::ServiceId;
use warren_model::service::{RestartCondition, Service, UpdatePhase, UpdateState};
use warren_model::task::{Task, TaskState, TaskStatus};
use warren_state::State;

use crate::draft::Moves;
use crate::nodes::Nodes;
use crate::place::{Ask, Board, reason};
use crate::slot::{
    Slot, Wanted, is_failed, is_live, is_lost, is_outdated, is_stop_first, is_up, slots_of, wanted,
    wanted_keys,
};
use crate::{hooks, job, rollout, vips, watch};

/// Whether a service is as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Convergence {
    /// Every wanted slot runs the current template, and nothing older is still wanted.
    Converged,
    /// On its way; what is missing, for people: `2 starting, 1 to be stopped`.
    Waiting { message: String },
    /// It will not converge by itself, or not soon; why.
    Failed { reason: String },
}

/// Slots of a service that have a task which runs and is not known to be unwell, and slots that are
/// wanted.
pub fn task_counts(state: &State, service: ServiceId) -> (u32, u32) {
    let Some(service) = state.service(service) else { return (0, 0) };
    if let Some(job) = &service.job {
        return match job::standing(state, service.id, job.last) {
            Some(standing) => (standing.running, standing.total),
            // Nothing has begun yet.
            None => (0, job::size(service)),
        };
    }
    let nodes = Nodes::new(state);
    let slots = slots_of(state, service);
    let desired = if service.removing { 0 } else { wanted_keys(service, &nodes).len() };
    let runs = |slot: &&Slot<'_>| slot.wanted.iter().any(|task| is_running(task, &nodes));
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    (count(slots.iter().filter(runs).count()), count(desired))
}

/// Slots of a service whose task has done its work, and is not to be run again.
pub fn completed_count(state: &State, service: ServiceId) -> u32 {
    let Some(service) = state.service(service) else { return 0 };
    if let Some(job) = &service.job {
        let standing = job::standing(state, service.id, job.last);
        return standing.map_or(0, |standing| standing.completed);
    }
    let nodes = Nodes::new(state);
    let slots = slots_of(state, service);
    let complete = |slot: &&Slot<'_>| {
        let current = slot.current(service, &nodes);
        is_wanted(slot, service, &nodes)
            && current.is_some_and(|task| task.status.state == TaskState::Complete)
    };
    u32::try_from(slots.iter().filter(complete).count()).unwrap_or(u32::MAX)
}

/// Whether a service is as it is wanted. One that does not exist has failed.
pub fn progress(state: &State, service: ServiceId) -> Convergence {
    let Some(service) = state.service(service) else {
        return Convergence::Failed { reason: format!("service {service} does not exist") };
    };
    let slots = slots_of(state, service);
    if service.removing {
        let left: usize = slots.iter().map(|slot| slot.tasks().count()).sum();
        return Convergence::Waiting { message: format!("removing, {left} tasks left") };
    }
    if service.job.is_some() {
        // A schedule is as it is wanted, whatever becomes of its runs.
        return match service.spec.job.schedule {
            Some(_) => Convergence::Converged,
            None => job::run_progress(state, service.id, 0),
        };
    }
    let nodes = Nodes::new(state);
    if let Some(reason) = paused(service).or_else(|| failure(state, service, &slots, &nodes)) {
        return Convergence::Failed { reason };
    }
    if let Some(message) = hooks::describe(state, service, &nodes) {
        return Convergence::Waiting { message };
    }
    if let Err(reason) = watch::is_hopeless(state, service, &slots, &nodes, state.time()) {
        return Convergence::Failed { reason };
    }
    let keys = wanted_keys(service, &nodes);
    let done = slots.iter().filter(|slot| is_wanted(slot, service, &nodes));
    let done = done.filter(|slot| is_done(slot, service, &nodes)).count();
    let superfluous = |slot: &&Slot<'_>| match wanted(service, slot.key, &nodes) {
        Wanted::Yes => slot.wanted.iter().any(|task| is_outdated(task, service, &nodes)),
        Wanted::No => !slot.wanted.is_empty(),
        Wanted::Keep => false,
    };
    let superfluous = slots.iter().filter(superfluous).count();
    let watched = service.update.as_ref().is_some_and(|u| u.phase != UpdatePhase::Done);
    if done == keys.len() && superfluous == 0 {
        return match vips::missing(state, service) {
            None if watched => Convergence::Waiting { message: "staying up".to_owned() },
            None => Convergence::Converged,
            Some(message) => Convergence::Waiting { message },
        };
    }
    let begun = slots.iter().filter(|slot| is_wanted(slot, service, &nodes));
    let missing = keys.len().saturating_sub(begun.count());
    let mut message = describe(service, &slots, &nodes, [missing, superfluous]);
    if let Some(reason) = stays(state, service, &slots, &nodes) {
        message = if message.is_empty() { reason } else { format!("{message}: {reason}") };
    }
    Convergence::Waiting { message }
}

/// Whether anybody need wait for a service any longer, whatever [`progress`] says: of an update that
/// goes on whatever fails nothing may get any further, without anything ever happening again.
/// Otherwise when to ask again.
///
/// # Errors
/// Why it is no use.
pub fn patience(state: &State, service: ServiceId, now: Time) -> Result<Option<Time>, String> {
    let Some(service) = state.service(service).filter(|service| !service.removing) else {
        return Ok(None);
    };
    let (slots, nodes) = (slots_of(state, service), Nodes::new(state));
    watch::is_hopeless(state, service, &slots, &nodes, now)
}

/// Why tasks do not leave a draining node, if nothing else says so: those that must end before
/// they start elsewhere are left alone while there is no place for them, or too few others work.
fn stays(
    state: &State,
    service: &Service,
    slots: &[Slot<'_>],
    nodes: &Nodes<'_>,
) -> Option<String> {
    let moving =
        |slot: &Slot<'_>| is_wanted(slot, service, nodes) && is_moving(slot, service, nodes);
    let outdated = |slot: &Slot<'_>| {
        is_wanted(slot, service, nodes)
            && !slot.wanted.is_empty()
            && slot.current(service, nodes).is_none()
    };
    if !is_stop_first(service) || !slots.iter().any(outdated) {
        return None;
    }
    let works = |slot: &&Slot<'_>| {
        is_wanted(slot, service, nodes) && slot.wanted.iter().any(|task| is_up(task, nodes))
    };
    if let Some((least, total)) = rollout::budget(service, nodes)
        && slots.iter().filter(works).count() <= least as usize
    {
        return Some(format!("{least} of {total} must stay available"));
    }
    if !slots.iter().any(moving) {
        return None;
    }
    let mut board = Board::new(slots, nodes, state.time());
    let template = service.template;
    board.prepare(template, nodes, || Ask::new(state, &Moves::default(), nodes, service, template));
    if (0..nodes.len()).any(|at| board.fits(template, at, nodes)) {
        return None;
    }
    Some(reason(nodes, state.cluster()?, board.ask(template)?, |at| board.share(at)))
}

/// Whether all that is wrong with a slot's tasks is where they are.
fn is_moving(slot: &Slot<'_>, service: &Service, nodes: &Nodes<'_>) -> bool {
    slot.current(service, nodes).is_none()
        && slot.wanted.iter().any(|task| task.template == service.template && is_live(task))
}

fn is_wanted(slot: &Slot<'_>, service: &Service, nodes: &Nodes<'_>) -> bool {
    matches!(wanted(service, slot.key, nodes), Wanted::Yes)
}

/// Whether a slot's current task runs, or has done its work.
fn is_done(slot: &Slot<'_>, service: &Service, nodes: &Nodes<'_>) -> bool {
    slot.current(service, nodes)
        .is_some_and(|task| is_running(task, nodes) || task.status.state == TaskState::Complete)
}

fn is_running(task: &Task, nodes: &Nodes<'_>) -> bool {
    task.status.is_ready() && !is_lost(task, nodes)
}

/// Why an update goes no further until somebody says so.
fn paused(service: &Service) -> Option<String> {
    let status = service.update.as_ref()?;
    let what = match UpdateState::of(status) {
        UpdateState::Paused => "update",
        UpdateState::RollbackPaused => "rollback",
        UpdateState::None
        | UpdateState::Updating
        | UpdateState::Completed
        | UpdateState::RollingBack
        | UpdateState::RolledBack => return None,
    };
    Some(format!("the {what} is paused: {}", status.message))
}

/// Why a service does not get there by itself: the first slot that ended badly, unless an update
/// is about to be paused or rolled back for it, or goes on in spite of it.
fn failure(
    state: &State,
    service: &Service,
    slots: &[Slot<'_>],
    nodes: &Nodes<'_>,
) -> Option<String> {
    let wanted = slots.iter().filter(|slot| is_wanted(slot, service, nodes));
    let ended = wanted.filter_map(|slot| slot.current(service, nodes)).find(|task| {
        // Who is always to be restarted never ends well.
        let endless = service.spec.task.restart.condition == RestartCondition::Any;
        is_failed(task) || endless && task.status.state == TaskState::Complete
    })?;
    // Slots that have no task of it yet will get one.
    let goes_on = rollout::progress(slots, service, nodes) == rollout::Progress::Moving
        && slots
            .iter()
            .any(|slot| slot.has_older(service) && slot.current(service, nodes).is_none());
    if goes_on || watch::is_about_to_act(state, service, slots, nodes) {
        return None;
    }
    Some(say(state, service, ended))
}

/// `web.2 failed on host: exit code 3`.
pub(crate) fn say(state: &State, service: &Service, task: &Task) -> String {
    let status = &task.status;
    let is = match is_live(task) {
        true => "does not stay up",
        false => &format!("is {}", status.state.as_str()),
    };
    let mut text = format!("{}.{} {is}", service.spec.name, task.label());
    if let Some(node) = task.node.and_then(|id| state.node(id)) {
        text = format!("{text} on {}", node.description.hostname);
    }
    match (&status.error, status.exit) {
        (Some(error), _) => format!("{text}: {error}"),
        (None, Some(exit)) if exit.oom_killed => format!("{text}: out of memory"),
        (None, Some(exit)) => format!("{text}: exit code {}", exit.code),
        (None, None) => text,
    }
}

fn described(status: &TaskStatus) -> (TaskState, &'static str) {
    let word = match (status.state, status.health.map(|health| health.state)) {
        (TaskState::Running, Some(HealthState::Starting)) => "not healthy yet",
        (TaskState::Running, Some(HealthState::Unhealthy)) => "unhealthy",
        (state, _) => state.as_str(),
    };
    (status.state, word)
}

/// `1 starting, 1 pending, 1 to be stopped: no node is ready`.
fn describe(
    service: &Service,
    slots: &[Slot<'_>],
    nodes: &Nodes<'_>,
    [missing, superfluous]: [usize; 2],
) -> String {
    // What runs and is not healthy is counted by that.
    let mut counts: BTreeMap<(TaskState, &str), usize> = BTreeMap::new();
    let (mut lost, mut outdated, mut moving) = (0, 0, 0);
    let mut error = None;
    for slot in slots.iter().filter(|slot| is_wanted(slot, service, nodes)) {
        let Some(task) = slot.current(service, nodes) else {
            if is_moving(slot, service, nodes) {
                moving += 1;
            } else {
                outdated += usize::from(!slot.wanted.is_empty());
            }
            continue;
        };
        if is_lost(task, nodes) {
            lost += 1;
        } else if !is_done(slot, service, nodes) {
            *counts.entry(described(&task.status)).or_default() += 1;
            error = error.or(task.status.error.as_deref());
        }
    }
    let counted = counts.iter().rev();
    let mut parts: Vec<String> =
        counted.map(|((_, word), count)| format!("{count} {word}")).collect();
    // An outdated task of a slot that has its new one is on its way out.
    let leaving = superfluous.saturating_sub(outdated + moving);
    for (count, word) in [
        (missing, "to be started"),
        (lost, "lost"),
        (outdated, "to be updated"),
        (moving, "to be moved"),
        (leaving, "to be stopped"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {word}"));
        }
    }
    let text = parts.join(", ");
    match error {
        Some(error) => format!("{text}: {error}"),
        None => text,
    }
}
