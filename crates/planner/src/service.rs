//! One service from its spec to mutations: the stages in order, over its slots.

use std::collections::BTreeMap;

use warren_model::Time;
use warren_model::id::{NodeId, TaskId};
use warren_model::service::Service;
use warren_model::task::{Desired, Task, TaskState};
use warren_state::change::{Key as ObjectKey, Mutation};

use crate::draft::{Draft, earlier};
use crate::slot::{Slot, insert_by_age, is_live, slots_of};
use crate::{orchestrate, place, reap, replace, rollout};

/// What a pass over a service leaves to say.
pub(crate) struct Verdict {
    pub(crate) wake_at: Option<Time>,
    /// There was nothing to do, and will not be until the service, a node or the time changes.
    pub(crate) idle: bool,
}

/// A service while it is being looked at.
pub(crate) struct Pass<'p, 'a> {
    pub(crate) draft: &'p mut Draft<'a>,
    pub(crate) service: &'a Service,
    pub(crate) slots: Vec<Slot<'a>>,
    /// Tasks of the service by node; counted when first asked for.
    pub(crate) spread: Option<BTreeMap<NodeId, place::Share>>,
    /// Something has no place: look again whatever changes, it may be just that.
    pub(crate) unplaced: bool,
    wake_at: Option<Time>,
}

pub(crate) fn pass<'a>(draft: &mut Draft<'a>, service: &'a Service) -> Verdict {
    let before = draft.len();
    let slots = slots_of(draft.state, service);
    let mut pass = Pass { draft, service, slots, spread: None, unplaced: false, wake_at: None };
    if service.removing {
        reap::remove_service(&mut pass);
    } else {
        orchestrate::fill(&mut pass);
        let progress = rollout::advance(&mut pass);
        replace::replace(&mut pass, progress);
        orchestrate::scale_down(&mut pass);
        place::place_pending(&mut pass);
        reap::history(&mut pass);
    }
    let Pass { draft, unplaced, wake_at, .. } = pass;
    let wrote = draft.len() > before;
    if wrote {
        draft.expect(ObjectKey::Service(service.id));
    }
    Verdict { wake_at, idle: !wrote && !unplaced && !draft.is_cut() }
}

impl<'a> Pass<'_, 'a> {
    pub(crate) fn wake(&mut self, at: Time) {
        self.wake_at = earlier(self.wake_at, Some(at));
    }

    /// Stops a wanted task and keeps it for history; forgets one that never had a place.
    pub(crate) fn stop(&mut self, at: usize, task: &'a Task) {
        let slot = &mut self.slots[at];
        slot.wanted.retain(|other| other.id != task.id);
        if is_live(task)
            && let Some(share) = task.node.and_then(|node| self.spread.as_mut()?.get_mut(&node))
        {
            share.wanted = share.wanted.saturating_sub(1);
        }
        if task.node.is_none() {
            self.draft.push(Mutation::DropTask { id: task.id });
            return;
        }
        insert_by_age(&mut slot.past, task);
        self.draft.push(Mutation::SetDesired { id: task.id, desired: Desired::Shutdown });
    }

    /// Sends a task away for good; at once if its node has nothing left of it. `false` if it is on
    /// its way already.
    pub(crate) fn leave(&mut self, task: &Task) -> bool {
        if is_gone(task) {
            self.draft.push(Mutation::DropTask { id: task.id });
        } else if task.desired != Desired::Remove {
            self.draft.push(Mutation::SetDesired { id: task.id, desired: Desired::Remove });
        } else {
            return false;
        }
        true
    }

    pub(crate) fn new_id(&mut self) -> TaskId {
        self.draft.task_id()
    }
}

/// Whether no node holds anything of it.
pub(crate) fn is_gone(task: &Task) -> bool {
    task.node.is_none() || task.status.state == TaskState::Removed
}
