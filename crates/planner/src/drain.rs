//! Drains whose deadline is over: what is left on the node ends, whether or not there is a place
//! for its successor.
//!
//! Until then tasks leave a node at the pace of an update (`rollout`), within what their service
//! says must be available.

use warren_model::task::Task;

use crate::service::Pass;
use crate::slot::{Wanted, is_live, wanted};

/// Ends wanted tasks on nodes whose time is up; their slots are filled as empty ones are.
pub(crate) fn evict(pass: &mut Pass<'_, '_>) {
    for at in 0..pass.slots.len() {
        let key = pass.slots[at].key;
        let Wanted::Yes = wanted(pass.service, key, &pass.draft.nodes) else { continue };
        for task in pass.slots[at].wanted.clone() {
            if is_due(pass, task) && !pass.is_held(task) {
                if !pass.draft.room(1) {
                    return;
                }
                pass.stop(at, task);
            }
        }
    }
}

/// Whether a task's node is to be empty by now; asks to be called again when it is to be.
pub(crate) fn is_due(pass: &mut Pass<'_, '_>, task: &Task) -> bool {
    let site = task.node.and_then(|node| pass.draft.nodes.get(node));
    let Some(site) = site.filter(|site| site.is_draining() && is_live(task)) else { return false };
    match site.node.drain_deadline {
        Some(end) if end <= pass.draft.now => true,
        Some(end) => {
            pass.wake(end);
            false
        }
        None => false,
    }
}
