//! Which slots a service shall have: empty ones are filled, superfluous ones emptied.
//!
//! Replicated services have slots 1 to n, so scaling down takes the highest
//! numbers; global services have one on every worker that is active and ready.

use warren_model::task::Desired;

use crate::hooks;
use crate::service::Pass;
use crate::slot::{Key, Slot, Wanted, is_stop_first, is_up, wanted, wanted_keys};

/// Puts a task into every wanted slot that has none.
pub(crate) fn fill(pass: &mut Pass<'_, '_>) {
    add_missing(pass);
    if hooks::is_awaited(pass.service) {
        return;
    }
    let stop_first = is_stop_first(pass.service);
    for at in 0..pass.slots.len() {
        let slot = &pass.slots[at];
        let Wanted::Yes = wanted(pass.service, slot.key, &pass.draft.nodes) else { continue };
        // Who wants the old one gone before the new one starts also waits for it here.
        if !slot.wanted.is_empty() || stop_first && is_in_the_way(pass, at) {
            continue;
        }
        if !pass.create(at, pass.service.template) && pass.draft.is_cut() {
            return;
        }
    }
}

/// Whether something of a slot that is not wanted any more still runs, or may out of reach.
fn is_in_the_way(pass: &mut Pass<'_, '_>, at: usize) -> bool {
    if pass.slots[at].is_stopping(&pass.draft.nodes) {
        return true;
    }
    let slot = &pass.slots[at];
    let unwanted: Vec<_> = slot.past.iter().chain(&slot.leaving).copied().collect();
    unwanted.into_iter().any(|task| pass.is_held(task))
}

/// Adds the wanted slots that have no tasks yet; the list stays in order.
fn add_missing(pass: &mut Pass<'_, '_>) {
    let keys = wanted_keys(pass.service, &pass.draft.nodes);
    debug_assert!(keys.is_sorted(), "keys are in order, as slots are");
    let mut there = pass.slots.iter().map(|slot| slot.key).peekable();
    let is_missing = |key: &Key| {
        while there.next_if(|known| known < key).is_some() {}
        there.peek() != Some(key)
    };
    let missing: Vec<Slot<'_>> = keys.into_iter().filter(is_missing).map(Slot::new).collect();
    if !missing.is_empty() {
        pass.slots.extend(missing);
        pass.slots.sort_by_key(|slot| slot.key);
    }
}

/// Empties the slots that are not wanted, history included: highest first, and in each what does
/// not work before what does.
pub(crate) fn scale_down(pass: &mut Pass<'_, '_>) {
    for at in (0..pass.slots.len()).rev() {
        let slot = &pass.slots[at];
        let Wanted::No = wanted(pass.service, slot.key, &pass.draft.nodes) else { continue };
        let mut tasks: Vec<_> = slot.tasks().collect();
        tasks.sort_by_key(|task| is_up(task, &pass.draft.nodes));
        for task in tasks {
            if !pass.draft.room(1) {
                return;
            }
            if task.desired == Desired::Running {
                pass.vacate(at, task);
            }
            pass.leave(task);
        }
    }
}
