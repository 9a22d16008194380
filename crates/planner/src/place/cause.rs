//! Why a slot gets another task.

use warren_model::moving::Cause;
use warren_model::task::Desired;

use super::may_stay;
use crate::service::Pass;
use crate::slot::{is_live, is_lost};

/// By what the slot has, or had last.
pub(super) fn of(pass: &Pass<'_, '_>, at: usize, template: u32) -> Cause {
    let slot = &pass.slots[at];
    let Some(before) = slot.wanted.first().or_else(|| slot.past.first()) else {
        return Cause::Wanted;
    };
    let nodes = &pass.draft.nodes;
    if before.template != template {
        return Cause::Update;
    }
    if is_lost(before, nodes) {
        return Cause::Lost;
    }
    // What this plan stopped is still wanted in the state.
    if before.desired == Desired::Running && !is_live(before) {
        return Cause::Failure;
    }
    let Some(site) = before.node.and_then(|node| nodes.get(node)) else { return Cause::Wanted };
    let overdue = site.node.drain_deadline.is_some_and(|end| end <= pass.draft.now);
    match (site.is_draining(), overdue) {
        (true, true) => Cause::Deadline,
        (true, false) => Cause::Drain,
        (false, _) if !may_stay(pass.service, site) => Cause::Placement,
        (false, _) => Cause::Wanted,
    }
}
