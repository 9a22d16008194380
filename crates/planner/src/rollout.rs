//! A changed template, slot by slot: which to renew next.
//!
//! Start-first keeps the old task until the new one is up, which is to run and to be healthy; stop-first, and any
//! service with host-mode ports, ends the old one first. At most `parallelism`
//! slots are in flight, each counted until its new task has been up for `delay`.
//! One new task that failed halts the rollout: nothing further is touched until
//! the spec changes again. A node that drains outdates what is on it, so tasks
//! move away at the same pace (and not while a rollout is halted).
//!
//! Nothing is remembered between passes: all of it follows from the tasks.

use warren_model::service::{OnDisconnect, Service};
use warren_model::task::{Task, TaskState};

use crate::nodes::{Nodes, Site};
use crate::service::Pass;
use crate::slot::{
    Key, Renewed, Slot, Wanted, is_failed, is_live, is_lost, is_outdated, is_stop_first, is_up,
    wanted,
};

/// How far the rollout of a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Every slot has the current template.
    Done,
    Moving,
    /// A new task failed.
    Halted,
}

pub(crate) fn progress<'a>(
    slots: impl IntoIterator<Item = &'a Slot<'a>>,
    service: &Service,
    nodes: &Nodes<'_>,
) -> Progress {
    let (mut unfinished, mut older, mut failed) = (false, false, false);
    for slot in slots {
        let Wanted::Yes = wanted(service, slot.key, nodes) else { continue };
        unfinished |= slot.wanted.iter().any(|task| is_outdated(task, service, nodes));
        older |= slot.wanted.iter().any(|task| task.template != service.template);
        failed |= slot.current(service, nodes).is_some_and(is_failed);
    }
    match (unfinished, older && failed) {
        (false, _) => Progress::Done,
        (true, false) => Progress::Moving,
        (true, true) => Progress::Halted,
    }
}

pub(crate) fn advance(pass: &mut Pass<'_, '_>) -> Progress {
    for at in 0..pass.slots.len() {
        hand_over(pass, at);
    }
    let progress = progress(&pass.slots, pass.service, &pass.draft.nodes);
    match progress {
        Progress::Done | Progress::Halted => {}
        Progress::Moving => renew_some(pass),
    }
    progress
}

/// Goes on after replacing: a failed task was in flight until its successor had to wait for a
/// place.
pub(crate) fn resume(pass: &mut Pass<'_, '_>, progress: Progress) {
    match progress {
        Progress::Done | Progress::Halted => {}
        Progress::Moving => renew_some(pass),
    }
}

/// Ends what the current task of a slot makes superfluous.
fn hand_over(pass: &mut Pass<'_, '_>, at: usize) {
    let (slot, nodes) = (&pass.slots[at], &pass.draft.nodes);
    let Wanted::Yes = wanted(pass.service, slot.key, nodes) else { return };
    let Some(current) = slot.current(pass.service, nodes) else { return };
    let up = is_up(current, nodes);
    let superfluous = |task: &&&Task| task.id != current.id && (up || !is_useful(task, nodes));
    let tasks: Vec<_> = slot.wanted.iter().filter(superfluous).copied().collect();
    for task in tasks {
        if pass.draft.room(1) {
            pass.stop(at, task);
        }
    }
}

/// Whether an old task is worth keeping until its successor runs: it does run, or may.
fn is_useful(task: &Task, nodes: &Nodes<'_>) -> bool {
    is_lost(task, nodes) || is_live(task) && task.status.state >= TaskState::Running
}

fn renew_some(pass: &mut Pass<'_, '_>) {
    let parallelism = match pass.service.spec.update.parallelism {
        0 => usize::MAX,
        limit => usize::try_from(limit).unwrap_or(usize::MAX),
    };
    let mut in_flight = 0;
    let mut outdated = Vec::new();
    for at in 0..pass.slots.len() {
        let slot = &pass.slots[at];
        let Wanted::Yes = wanted(pass.service, slot.key, &pass.draft.nodes) else { continue };
        let current = slot.current(pass.service, &pass.draft.nodes);
        if slot.renewed == Renewed::No && current.is_none() && !slot.wanted.is_empty() {
            let works = slot.wanted.iter().any(|task| is_up(task, &pass.draft.nodes));
            outdated.push((works, at));
        } else if is_in_flight(pass, at) {
            in_flight += 1;
        }
    }
    // What does not work has nothing to lose by going first.
    outdated.sort_unstable();
    for (_, at) in outdated {
        if in_flight >= parallelism {
            return;
        }
        match renew(pass, at) {
            Renewal::Begun => in_flight += usize::from(is_in_flight(pass, at)),
            Renewal::Impossible => {}
            Renewal::NoRoom => return,
        }
    }
}

/// Whether a slot counts against `parallelism`: it is between two tasks, or its new one has not
/// been up for `delay` yet. One that only waits for a place, with nothing beside it, does not: it may
/// wait for ever, and nothing of it can break.
fn is_in_flight(pass: &mut Pass<'_, '_>, at: usize) -> bool {
    let (slot, nodes) = (&pass.slots[at], &pass.draft.nodes);
    match slot.renewed {
        Renewed::No => {}
        Renewed::Placed => return true,
        Renewed::Waiting => return !slot.wanted.is_empty(),
    }
    let Some(current) = slot.current(pass.service, nodes) else {
        return slot.wanted.is_empty() && slot.is_stopping(nodes);
    };
    // What is out of reach and kept may be for ever, and runs as far as anybody knows.
    let kept = pass.service.spec.on_disconnect == OnDisconnect::Keep;
    if kept && is_lost(current, nodes) {
        return false;
    }
    if !is_up(current, nodes) {
        return current.node.is_some() || slot.wanted.len() > 1;
    }
    let since = current.status.ready_since().unwrap_or(current.status.since);
    let until = since.plus_ms(pass.service.spec.update.delay_ms);
    if pass.draft.now < until {
        pass.wake(until);
        return true;
    }
    false
}

enum Renewal {
    Begun,
    /// What would be stopped could not be started again, or is out of reach and kept.
    Impossible,
    /// The plan is full.
    NoRoom,
}

fn renew(pass: &mut Pass<'_, '_>, at: usize) -> Renewal {
    let olds = pass.slots[at].wanted.clone();
    for task in &olds {
        if pass.is_held(task) {
            return Renewal::Impossible;
        }
    }
    // One to grant a block, one to create, and one for each old task.
    if !pass.draft.room(2 + olds.len()) {
        return Renewal::NoRoom;
    }
    if is_stop_first(pass.service) && stands_in_the_way(pass, at) {
        let eligible = |node| pass.draft.nodes.get(node).is_some_and(Site::is_eligible);
        let returns = olds.iter().any(|task| task.node.is_some_and(eligible));
        if !returns && !pass.has_place(at, pass.service.template) {
            return Renewal::Impossible;
        }
        olds.into_iter().for_each(|task| pass.stop(at, task));
        return Renewal::Begun;
    }
    // First the useless ones, so that their places are free for the new one.
    let nodes = &pass.draft.nodes;
    let (keep, stop): (Vec<&Task>, Vec<&Task>) =
        olds.into_iter().partition(|task| is_useful(task, nodes) && !is_stop_first(pass.service));
    stop.into_iter().for_each(|task| pass.stop(at, task));
    let created = pass.create(at, pass.service.template);
    if !created && matches!(pass.slots[at].key, Key::On(_)) && !pass.draft.is_cut() {
        // No second task fits beside the old one on this node.
        keep.into_iter().for_each(|task| pass.stop(at, task));
    }
    Renewal::Begun
}

/// Whether something of a slot runs that must end before the next starts.
fn stands_in_the_way(pass: &Pass<'_, '_>, at: usize) -> bool {
    let (slot, nodes) = (&pass.slots[at], &pass.draft.nodes);
    let runs = |task: &&Task| is_live(task) && task.node.is_some() && !is_lost(task, nodes);
    slot.wanted.iter().any(runs) || slot.is_stopping(nodes)
}
