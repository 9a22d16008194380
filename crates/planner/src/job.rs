//! Jobs: tasks that end, in runs.
//!
//! Each look at a job first decides what its schedule says (`times`), then for
//! each run that goes on whether it is over (`standing`): what follows from
//! either is written before anything else, so that all else follows from what
//! is agreed upon. Then slots of runs that go on get their tasks: no more at a
//! time than the job allows, none beside what is left of a run that was ended
//! for this one, and none once a slot has failed for good. Restarts in place
//! are the agent's; a task whose node is lost has a successor when its service
//! allows it, one on a node that drains begins again elsewhere once it has
//! ended.
//!
//! Invariants (tested on random clusters):
//! - no time of a schedule begins two runs, and none between two looks is lost
//!   without being counted;
//! - a slot that has done its work gets no further task.

mod standing;
mod times;

use std::collections::BTreeSet;

use warren_model::job::{Concurrency, JobStatus, Run, has_done};
use warren_model::service::{Mode, Service};
use warren_model::task::{Task, TaskState};
use warren_state::change::Mutation;

pub(crate) use self::standing::size;
pub use self::standing::{Standing, run_progress, standing};
pub use self::times::next_time;
use crate::nodes::Nodes;
use crate::place;
use crate::service::Pass;
use crate::slot::{Key, Renewed, Slot, Wanted, is_live, is_lost, keys_of, wanted};
use crate::vips;

/// One look at a job.
pub(crate) fn look(pass: &mut Pass<'_, '_>) {
    let service = pass.service;
    let Some(job) = &service.job else { return };
    if times::decide(pass, job) || end_runs(pass, job) {
        // It is another one from then on.
        return;
    }
    vips::assign(pass);
    stop_ended(pass);
    for run in job.active() {
        add_missing(pass, run);
        advance(pass, run);
    }
    place::place_pending(pass);
    history(pass, job);
}

/// Says in the state which runs are over. `true`: some are.
fn end_runs(pass: &mut Pass<'_, '_>, job: &JobStatus) -> bool {
    let mut ended = false;
    for run in job.active() {
        let (service, draft) = (pass.service, &pass.draft);
        let standing = standing::of(draft.state, service, run, &pass.slots, &draft.nodes);
        let end = standing::end(service, run, &standing, draft.now);
        match end {
            standing::End::At(at) => pass.wake(at),
            standing::End::Not => {}
            standing::End::Now(state, message) => {
                if !pass.draft.room(1) {
                    return true;
                }
                pass.draft.push(Mutation::EndRun {
                    id: service.id,
                    run: run.number,
                    state,
                    message,
                    completed: standing.completed,
                    total: standing.total,
                });
                pass.draft.look_again();
                ended = true;
            }
        }
    }
    ended
}

/// Stops what is not to run any more: of runs that ended, of slots that are too many, on nodes to
/// be left.
fn stop_ended(pass: &mut Pass<'_, '_>) {
    for at in 0..pass.slots.len() {
        let slot = &pass.slots[at];
        let stays = match wanted(pass.service, slot.key, &pass.draft.nodes) {
            Wanted::Yes | Wanted::Keep => true,
            Wanted::No => false,
        };
        let nodes = &pass.draft.nodes;
        let leaves = |task: &Task| {
            task.node.is_some_and(|node| {
                nodes
                    .get(node)
                    .is_none_or(|site| site.is_draining() || !place::may_stay(pass.service, site))
            })
        };
        let over = |task: &&&Task| is_live(task) && (!stays || leaves(task));
        let over: Vec<&Task> = slot.wanted.iter().filter(over).copied().collect();
        for task in over {
            if !pass.draft.room(1) {
                return;
            }
            pass.stop(at, task);
        }
    }
}

/// Adds the slots of a run that have no tasks yet; the list stays in order.
fn add_missing(pass: &mut Pass<'_, '_>, run: &Run) {
    let known: BTreeSet<Key> = pass.slots.iter().map(|slot| slot.key).collect();
    let keys = keys_of(pass.service, run.number, &pass.draft.nodes);
    let done = |key: &Key| match key {
        Key::Run(_, slot) => run.forgotten.binary_search(slot).is_ok(),
        Key::RunOn(..) | Key::Number(_) | Key::On(_) | Key::Hook(_) => false,
    };
    let missing = keys.into_iter().filter(|key| !known.contains(key) && !done(key));
    let missing: Vec<Slot<'_>> = missing.map(Slot::new).collect();
    if !missing.is_empty() {
        pass.slots.extend(missing);
        pass.slots.sort_by_key(|slot| slot.key);
    }
}

/// Gives tasks to slots of a run that have none that counts.
fn advance(pass: &mut Pass<'_, '_>, run: &Run) {
    let standing = {
        let draft = &pass.draft;
        standing::of(draft.state, pass.service, run, &pass.slots, &draft.nodes)
    };
    if standing.failed > 0 {
        drop_pending(pass, run);
        return;
    }
    replace_lost(pass, run);
    if is_barred(pass, run) {
        return;
    }
    let template = template_of(pass, run);
    let limit = match pass.service.spec.mode {
        Mode::ReplicatedJob { max_concurrent, .. } => {
            usize::try_from(max_concurrent).unwrap_or(usize::MAX)
        }
        Mode::GlobalJob | Mode::Replicated { .. } | Mode::Global => usize::MAX,
    };
    let busy = |slot: &&Slot<'_>| {
        slot.key.run() == run.number
            && (slot.renewed != Renewed::No
                || slot.wanted.iter().any(|task| is_live(task))
                || slot.is_stopping(&pass.draft.nodes))
    };
    let mut left = limit.saturating_sub(pass.slots.iter().filter(busy).count());
    for at in 0..pass.slots.len() {
        let slot = &pass.slots[at];
        if left == 0 {
            return;
        }
        if slot.key.run() != run.number || !is_to_begin(pass.service, slot, &pass.draft.nodes) {
            continue;
        }
        if !pass.draft.room(2) {
            return;
        }
        if pass.create(at, template) {
            left -= 1;
        } else if pass.draft.is_cut() {
            return;
        }
    }
}

/// Whether a slot is to have a task now: it has none that did, does or will do the work, and
/// nothing of it is still ending.
fn is_to_begin(service: &Service, slot: &Slot<'_>, nodes: &Nodes<'_>) -> bool {
    let Wanted::Yes = wanted(service, slot.key, nodes) else { return false };
    let gone = |task: &&Task| task.status.state == TaskState::Removed;
    slot.renewed == Renewed::No && slot.wanted.iter().all(gone) && !slot.is_stopping(nodes)
}

/// A template that its tasks have, or, before there are any, the service's.
fn template_of(pass: &Pass<'_, '_>, run: &Run) -> u32 {
    match pass.draft.state.template(pass.service.id, run.template) {
        Some(_) => run.template,
        None => pass.service.template,
    }
}

/// Whether something of an earlier run that was ended may still run, and must not beside this one.
fn is_barred(pass: &mut Pass<'_, '_>, run: &Run) -> bool {
    if pass.service.spec.job.concurrency() == Concurrency::Allow {
        return false;
    }
    let earlier = pass.slots.iter().filter(|slot| slot.key.run() < run.number);
    let live = earlier.flat_map(|slot| slot.tasks()).filter(|task| is_live(task));
    let live: Vec<&Task> = live.filter(|task| task.node.is_some()).collect();
    live.into_iter().any(|task| !is_lost(task, &pass.draft.nodes) || pass.is_held(task))
}

/// A task on a node that is out of reach has a successor elsewhere, once its service allows one.
fn replace_lost(pass: &mut Pass<'_, '_>, run: &Run) {
    for at in 0..pass.slots.len() {
        let slot = &pass.slots[at];
        if slot.key.run() != run.number || slot.key.node().is_some() {
            continue;
        }
        let nodes = &pass.draft.nodes;
        let Wanted::Yes = wanted(pass.service, slot.key, nodes) else { continue };
        // The newest is what counts; what is done needs nobody.
        if slot.wanted.iter().any(|task| has_done(task)) {
            supersede(pass, at);
            continue;
        }
        let Some(task) = slot.wanted.first().copied() else { continue };
        if !is_lost(task, nodes) {
            supersede(pass, at);
        } else if !pass.is_held(task)
            && pass.draft.room(3)
            && pass.create_if_placed(at, task.template)
        {
            pass.stop(at, task);
        }
    }
}

/// Of several tasks of a slot one is enough: what is older, and runs, ends.
fn supersede(pass: &mut Pass<'_, '_>, at: usize) {
    let slot = &pass.slots[at];
    let done = slot.wanted.iter().position(|task| has_done(task)).unwrap_or(0);
    let others = slot.wanted.iter().enumerate().filter(|(n, task)| *n != done && is_live(task));
    let others: Vec<&Task> = others.map(|(_, task)| *task).collect();
    for task in others {
        if pass.draft.room(1) {
            pass.stop(at, task);
        }
    }
}

/// A run that has failed waits for what runs, not for what has no place.
fn drop_pending(pass: &mut Pass<'_, '_>, run: &Run) {
    for at in 0..pass.slots.len() {
        let slot = &pass.slots[at];
        if slot.key.run() != run.number {
            continue;
        }
        let pending = slot.wanted.iter().filter(|task| is_live(task) && task.node.is_none());
        let pending: Vec<&Task> = pending.copied().collect();
        for task in pending {
            if pass.draft.room(1) {
                pass.stop(at, task);
            }
        }
    }
}

/// Forgets tasks of runs that are forgotten, of slots that are not wanted in a run that goes on,
/// and failed ones beyond the cluster's limit.
fn history(pass: &mut Pass<'_, '_>, job: &JobStatus) {
    let limit = usize::try_from(pass.draft.cluster.history_limit).unwrap_or(usize::MAX);
    for at in 0..pass.slots.len() {
        let slot = &pass.slots[at];
        let run = job.run(slot.key.run());
        let superfluous = match (run, wanted(pass.service, slot.key, &pass.draft.nodes)) {
            (None, _) => true,
            // Lowered, or of a node that is none of the job's any more.
            (Some(run), Wanted::No) => run.is_active() && slot.wanted.is_empty(),
            (Some(_), Wanted::Yes | Wanted::Keep) => false,
        };
        let over: Vec<&Task> = match superfluous {
            true => slot.tasks().collect(),
            false => {
                let ended = slot.past.iter().filter(|task| !is_live(task)).skip(limit);
                // Nothing of it is left on its node, and it did not do its work.
                let gone = |task: &&&Task| {
                    task.status.state == TaskState::Removed && run.is_some_and(Run::is_active)
                };
                let gone = slot.wanted.iter().filter(gone);
                ended.chain(gone).chain(&slot.leaving).copied().collect()
            }
        };
        for task in over {
            if !pass.draft.room(1) {
                return;
            }
            pass.leave(task);
        }
    }
}
