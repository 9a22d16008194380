//! What is over: history beyond its limit, and services that are being removed.
//!
//! A task is removed in two steps: its node is told to clean up, and once it
//! says that it has, the task is forgotten.

use warren_model::task::Task;
use warren_state::change::Mutation;

use crate::balance;
use crate::service::{Pass, is_gone};
use crate::slot::{Wanted, is_live, is_up, wanted};

/// Trims the history of every slot, and forgets what was cleaned up.
pub(crate) fn history(pass: &mut Pass<'_, '_>) {
    let limit = usize::try_from(pass.draft.cluster.history_limit).unwrap_or(usize::MAX);
    for at in 0..pass.slots.len() {
        let slot = &pass.slots[at];
        match wanted(pass.service, slot.key, &pass.draft.nodes) {
            Wanted::Yes | Wanted::Keep => {}
            // Emptied altogether, by scaling down.
            Wanted::No => continue,
        }
        // While a slot is between two tasks its last one is needed: it says that this is a rollout.
        let settled = slot.wanted.iter().any(|task| is_up(task, &pass.draft.nodes));
        let limit = if settled { limit } else { limit.max(1) };
        let nodes = &pass.draft.nodes;
        let tells = |task: &&&Task| balance::is_refusal(task, pass.service, nodes);
        let past = slot.past.iter().filter(|task| !is_live(task) && !tells(task));
        let ended = past.skip(limit);
        let never_placed = slot.past.iter().filter(|task| task.node.is_none() && is_live(task));
        let over: Vec<_> = ended.chain(never_placed).chain(&slot.leaving).copied().collect();
        for task in over {
            if !pass.draft.room(1) {
                return;
            }
            pass.leave(task);
        }
    }
}

/// Removes all tasks of a service, and the service once there is none.
pub(crate) fn remove_service(pass: &mut Pass<'_, '_>) {
    let mut left = 0;
    let tasks: Vec<_> = pass.slots.iter().flat_map(|slot| slot.tasks()).collect();
    for task in tasks {
        if !pass.draft.room(1) {
            return;
        }
        pass.leave(task);
        left += usize::from(!is_gone(task));
    }
    if left == 0 && pass.draft.room(1) {
        pass.draft.push(Mutation::DropService { id: pass.service.id });
    }
}
