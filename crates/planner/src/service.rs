//! One service from its spec to mutations: the stages in order, over its slots.

use std::collections::{BTreeMap, BTreeSet};

use warren_model::Time;
use warren_model::id::{NodeId, TaskId};
use warren_model::placement::Preempt;
use warren_model::service::{Mode, Service, UpdatePhase};
use warren_model::task::{Desired, Task, TaskState};
use warren_state::change::{Key as ObjectKey, Mutation};

use crate::draft::{Draft, earlier};
use crate::slot::{Slot, insert_by_age, is_live, is_lost, is_outdated, slots_of};
use crate::{balance, drain, hooks, job, orchestrate, place, reap, replace, rollout, vips, watch};

/// What a pass over a service leaves to say.
pub(crate) struct Verdict {
    pub(crate) wake_at: Option<Time>,
    /// There was nothing to do, and will not be until the service, a node or the time changes.
    pub(crate) idle: bool,
    /// Nor until a node has fewer tasks: something has no place.
    pub(crate) unplaced: bool,
}

impl Verdict {
    fn is_nothing(&self) -> bool {
        self.idle && !self.unplaced && self.wake_at.is_none()
    }
}

/// A service while it is being looked at.
pub(crate) struct Pass<'p, 'a> {
    pub(crate) draft: &'p mut Draft<'a>,
    pub(crate) service: &'a Service,
    pub(crate) slots: Vec<Slot<'a>>,
    /// Its tasks over nodes; counted when first asked for.
    pub(crate) board: Option<place::Board<'a>>,
    /// Why a task of a template has no place, once that was found out.
    pub(crate) reasons: BTreeMap<u32, String>,
    /// Whose tasks may be ended for its own; found when first asked for.
    pub(crate) rivals: Option<place::Rivals>,
    /// Templates for which ending tasks makes no room anywhere.
    pub(crate) hopeless: BTreeSet<u32>,
    /// Why the task that was placed last waits for others to end.
    pub(crate) waits: Option<String>,
    /// Something has no place.
    pub(crate) unplaced: bool,
    /// Whether that may change by other services' tasks alone, without a node having more room.
    pub(crate) depends_on_others: bool,
    /// A move for balance was prevented, maybe by what this very plan does away with.
    pub(crate) is_held_back: bool,
    wake_at: Option<Time>,
}

pub(crate) fn pass<'a>(draft: &mut Draft<'a>, service: &'a Service) -> Verdict {
    if is_quiet(draft, service) {
        debug_assert!(full_pass(draft, service).is_nothing(), "{} is not quiet", service.spec.name);
        return Verdict { wake_at: None, idle: true, unplaced: false };
    }
    full_pass(draft, service)
}

fn full_pass<'a>(draft: &mut Draft<'a>, service: &'a Service) -> Verdict {
    let before = draft.len();
    let mut slots = slots_of(draft.state, service);
    let mut rest = Rest::default();
    if service.removing {
        slots.extend(hooks::slots_of(draft.state, service));
    } else if service.job.is_none() {
        rest = hooks_pass(draft, service);
    }
    let mut pass = Pass::new(draft, service, slots);
    if service.removing {
        reap::remove_service(&mut pass);
    } else if rest.decided {
        // It is another one from then on.
    } else if service.job.is_some() {
        job::look(&mut pass);
    } else if !watch::look(&mut pass) {
        stages(&mut pass);
    }
    let wrote = pass.draft.len() > before;
    if wrote && (pass.is_held_back || watch::has_more_to_say(&pass)) {
        pass.draft.look_again();
    }
    rest.add(&pass);
    let Rest { wake_at, unplaced, depends_on_others, decided: _ } = rest;
    let draft = pass.draft;
    if wrote {
        draft.expect(ObjectKey::Service(service.id));
    }
    // One that may end others, or holds the room of those that end, is looked at in each plan before
    // those who would take it.
    let hungry = unplaced && service.spec.placement.preempt == Preempt::Lower;
    draft.note_hunger(hungry);
    let idle = !wrote && !depends_on_others && !hungry && !draft.is_cut();
    Verdict { wake_at, idle, unplaced }
}

/// What keeps a service that runs as its spec says.
fn stages(pass: &mut Pass<'_, '_>) {
    vips::assign(pass);
    drain::evict(pass);
    orchestrate::fill(pass);
    if pass.draft.is_cut() {
        // Nothing more fits, and the next plan begins with this service: what the other stages would
        // find out among thousands of slots would be thrown away.
        return;
    }
    let progress = rollout::advance(pass);
    replace::replace(pass, progress);
    rollout::resume(pass, progress);
    orchestrate::scale_down(pass);
    place::place_pending(pass);
    balance::balance(pass, progress);
    reap::history(pass);
}

/// What passes leave to say together.
#[derive(Default)]
struct Rest {
    wake_at: Option<Time>,
    unplaced: bool,
    depends_on_others: bool,
    /// What follows is to be concluded from what was written.
    decided: bool,
}

impl Rest {
    fn add(&mut self, pass: &Pass<'_, '_>) {
        self.wake_at = earlier(self.wake_at, pass.wake_at);
        self.unplaced |= pass.unplaced;
        self.depends_on_others |= pass.depends_on_others;
    }
}

/// What is to run before and after an update: a pass over tasks of its own.
fn hooks_pass<'a>(draft: &mut Draft<'a>, service: &'a Service) -> Rest {
    let slots = hooks::slots_of(draft.state, service);
    if hooks::due(service).is_none() && slots.iter().all(|slot| slot.tasks().next().is_none()) {
        return Rest::default();
    }
    let mut pass = Pass::new(draft, service, slots);
    let decided = hooks::decide(&mut pass);
    if !decided {
        hooks::run(&mut pass);
    }
    let mut rest = Rest { decided, ..Rest::default() };
    rest.add(&pass);
    rest
}

/// Whether it is plain at a glance that there is nothing to do: each slot has one task that is as
/// the spec says, placed and not ended, history is within its limit, and no update is watched.
///
/// Nearly all passes over large services end here (a task of theirs got to run), at a tenth of
/// the cost of the stages.
fn is_quiet(draft: &Draft<'_>, service: &Service) -> bool {
    if service.update.as_ref().is_some_and(|update| update.phase != UpdatePhase::Done) {
        return false;
    }
    let Mode::Replicated { replicas } = service.spec.mode else { return false };
    if draft.state.task_count(service.id) < usize::try_from(replicas).unwrap_or(usize::MAX) {
        return false;
    }
    let (mut slot, mut wanted, mut ended) = (0, 1, 0);
    let (mut oldest, mut sites) = (Time(u64::MAX), Vec::new());
    let opened = draft.nodes.newest_opening();
    let mut hooks = hooks::Calm::default();
    for task in draft.state.tasks_of(service.id) {
        if task.slot == 0 {
            if hooks.is_broken_by(task, draft.cluster.history_limit) {
                return false;
            }
            continue;
        }
        if task.slot != slot {
            if wanted != 1 || task.slot != slot + 1 {
                return false;
            }
            (slot, wanted, ended) = (task.slot, 0, 0);
        }
        match task.desired {
            Desired::Running => {
                let placed = task.node.is_some_and(|node| !draft.nodes.is_down(node));
                if !placed || !is_live(task) || is_outdated(task, service, &draft.nodes) {
                    return false;
                }
                wanted += 1;
                oldest = oldest.min(task.created);
                sites.extend(task.node);
            }
            Desired::Shutdown => {
                ended += u32::from(!is_live(task));
                if ended > draft.cluster.history_limit {
                    return false;
                }
            }
            Desired::Remove => return false,
        }
    }
    let settled = !service.removing
        && wanted == 1
        && slot == replicas
        && vips::is_settled(draft.state, service);
    settled && (oldest >= opened || is_even(draft, service, oldest, &sites))
}

/// Whether no node that came later has fewer tasks of a service than it could.
fn is_even(draft: &Draft<'_>, service: &Service, oldest: Time, sites: &[NodeId]) -> bool {
    if !balance::applies(draft.state, service) {
        return true;
    }
    let sites = sites.iter().filter_map(|node| draft.nodes.position(*node));
    let spread = balance::Spread::new(service, &draft.nodes, sites);
    !spread.is_uneven(&draft.nodes, oldest)
}

impl<'p, 'a> Pass<'p, 'a> {
    fn new(draft: &'p mut Draft<'a>, service: &'a Service, slots: Vec<Slot<'a>>) -> Self {
        Self {
            draft,
            service,
            slots,
            board: None,
            reasons: BTreeMap::new(),
            unplaced: false,
            rivals: None,
            hopeless: BTreeSet::new(),
            waits: None,
            depends_on_others: false,
            is_held_back: false,
            wake_at: None,
        }
    }
}

impl<'a> Pass<'_, 'a> {
    pub(crate) fn wake(&mut self, at: Time) {
        self.wake_at = earlier(self.wake_at, Some(at));
    }

    /// Whether a task was lost with its node and must not have a successor yet; asks to be called
    /// again when it may.
    pub(crate) fn is_held(&mut self, task: &Task) -> bool {
        if !is_lost(task, &self.draft.nodes) {
            return false;
        }
        let Some(silence) = task.node.and_then(|node| self.draft.nodes.silence(node)) else {
            // Its node was removed, so it is nobody's.
            return false;
        };
        let template = self.draft.state.template(self.service.id, task.template);
        let template = template.map_or(&self.service.spec.task, |template| &**template);
        match silence.successor_at(self.service.spec.on_disconnect, template) {
            None => true,
            Some(due) if self.draft.clock < due => {
                self.wake(due);
                true
            }
            Some(_) => false,
        }
    }

    /// Stops a wanted task and keeps it for history; forgets one that never had a place.
    pub(crate) fn stop(&mut self, at: usize, task: &'a Task) {
        self.vacate(at, task);
        self.draft.note_stop(self.service, task.id);
        if task.node.is_none() {
            self.draft.push(Mutation::DropTask { id: task.id });
            return;
        }
        insert_by_age(&mut self.slots[at].past, task);
        self.draft.push(Mutation::SetDesired { id: task.id, desired: Desired::Shutdown });
    }

    /// A wanted task is not any more: its place may be the one that another task waits for.
    pub(crate) fn vacate(&mut self, at: usize, task: &Task) {
        self.slots[at].wanted.retain(|other| other.id != task.id);
        let site = task.node.and_then(|node| self.draft.nodes.position(node));
        if is_live(task)
            && let Some(site) = site
        {
            self.change(site, |share| share.wanted = share.wanted.saturating_sub(1));
            self.reasons.clear();
            self.hopeless.clear();
            if self.unplaced {
                self.draft.look_again();
            }
        }
    }

    /// Sends a task away for good; at once if its node has nothing left of it. `false` if it is on
    /// its way already.
    pub(crate) fn leave(&mut self, task: &Task) -> bool {
        if is_gone(task) {
            self.draft.push(Mutation::DropTask { id: task.id });
        } else if task.desired != Desired::Remove {
            self.draft.note_stop(self.service, task.id);
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
