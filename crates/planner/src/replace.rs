//! A task that failed for good, or whose node is out of reach, gets a successor.
//!
//! The successor has the template of the one it replaces: renewing is the
//! rollout's business alone. Failures back off by how many tasks of the slot
//! failed in a row; a lost task is replaced when its service allows it, and only
//! if another node can take it (on a single node it is best left where it is).
//! When the lost node is heard of again, what was superseded is not wanted any
//! more and stops there; what was not goes on as if nothing had been.

use warren_model::Time;
use warren_model::task::Task;

use crate::rollout::Progress;
use crate::service::Pass;
use crate::slot::{Key, Renewed, Slot, Wanted, is_failed, is_lost, is_up, wanted, wants_successor};

/// Pause before the successor, by the number of predecessors that failed in a row. The agent has
/// restarted in place before, with a back-off of its own; the last is rare enough for ever.
const BACKOFF_MS: [u64; 5] = [1_000, 5_000, 30_000, 120_000, 480_000];

pub(crate) fn replace(pass: &mut Pass<'_, '_>, progress: Progress) {
    for at in 0..pass.slots.len() {
        let slot = &pass.slots[at];
        let Wanted::Yes = wanted(pass.service, slot.key, &pass.draft.nodes) else { continue };
        let Some(task) = candidate(pass, slot, progress) else { continue };
        if is_failed(task) {
            replace_failed(pass, at, task);
        } else if is_lost(task, &pass.draft.nodes) && matches!(slot.key, Key::Number(_)) {
            replace_lost(pass, at, task);
        }
    }
}

/// The task of a slot that everything depends on, unless a successor is on its way.
fn candidate<'a>(pass: &Pass<'_, 'a>, slot: &Slot<'a>, progress: Progress) -> Option<&'a Task> {
    if slot.renewed != Renewed::No {
        return None;
    }
    let current = slot.current(pass.service, &pass.draft.nodes);
    match (current, progress) {
        // The failed task is why the rollout is halted: it stays to be seen.
        (Some(current), Progress::Halted) if is_failed(current) => None,
        (Some(current), _) => Some(current),
        (None, _) => {
            let works = slot.wanted.iter().any(|task| is_up(task, &pass.draft.nodes));
            slot.wanted.first().copied().filter(|_| !works)
        }
    }
}

fn replace_failed<'a>(pass: &mut Pass<'_, 'a>, at: usize, task: &'a Task) {
    let Some(template) = pass.draft.state.template(pass.service.id, task.template) else { return };
    if !wants_successor(task, template.restart.condition) {
        return;
    }
    let due = due(&pass.slots[at], task, template.restart.window_ms);
    if pass.draft.now < due {
        pass.wake(due);
        return;
    }
    if pass.draft.room(3) {
        pass.stop(at, task);
        pass.create(at, task.template);
    }
}

fn replace_lost<'a>(pass: &mut Pass<'_, 'a>, at: usize, task: &'a Task) {
    // Of two while one takes over, both may be out of reach.
    for task in pass.slots[at].wanted.clone() {
        if pass.is_held(task) {
            return;
        }
    }
    if pass.draft.room(3) && pass.create_if_placed(at, task.template) {
        pass.stop(at, task);
    }
}

/// When a failed task may be replaced.
fn due(slot: &Slot<'_>, task: &Task, window_ms: u64) -> Time {
    let ran_well = |task: &Task| {
        task.status.started.is_some_and(|at| task.status.since.since_ms(at) >= window_ms)
    };
    let in_a_row =
        |other: &&&Task| is_failed(other) && other.template == task.template && !ran_well(other);
    let failures = match ran_well(task) {
        true => 0,
        false => slot.past.iter().take_while(in_a_row).count(),
    };
    task.status.since.plus_ms(BACKOFF_MS[failures.min(BACKOFF_MS.len() - 1)])
}
