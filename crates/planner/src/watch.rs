//! Whether an update goes well: what its new tasks did, and what follows from that.
//!
//! A new task is *good* once it has been up for the policy's `monitor`. A slot
//! has failed when a new task of it ended badly, was started again, or never
//! could start, and none is good. More failed slots than the policy allows, or
//! no progress for its `deadline`: the update is paused, goes on, or the
//! service goes back to the last revision that was good. A rollback that fails
//! is paused or goes on; nothing ever goes back by itself twice in a row.
//!
//! All of it follows from the tasks, but for what the service's `UpdateStatus`
//! keeps: since when failures count, and that an update is paused or has ended.
//! This is the only writer of it beside people who pause and resume.

use warren_model::Time;
use warren_model::service::{
    FailureAction, Hook, Service, UpdateKind, UpdatePhase, UpdatePolicy, UpdateState, UpdateStatus,
};
use warren_model::task::{Task, TaskState};
use warren_state::State;
use warren_state::change::{Mutation, Outcome, Transaction};

use crate::draft::earlier;
use crate::hooks;
use crate::nodes::Nodes;
use crate::progress::say;
use crate::service::Pass;
use crate::slot::{
    Slot, Wanted, is_failed, is_live, is_lost, is_up, slots_of, wanted, wanted_keys,
};

/// An update that is under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watch {
    /// What failed before is not its doing.
    started: Time,
    template: u32,
    pace: UpdatePolicy,
    paused: bool,
}

/// How an update stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stand {
    Moving,
    /// Every slot has a good new task, and nothing older is left.
    Done,
    /// More failed than may, or nothing moves; why.
    Failed(String),
}

impl Watch {
    /// `None` when there is nothing to watch: no update, or it has ended.
    pub(crate) fn of(service: &Service, slots: &[Slot<'_>]) -> Option<Self> {
        // What a job does about a new template is to begin a run.
        if service.job.is_some() {
            return None;
        }
        let (started, paused) = match &service.update {
            Some(UpdateStatus { phase: UpdatePhase::Done, .. }) => return None,
            Some(status) => (status.started, status.phase == UpdatePhase::Paused),
            // Begun by a version that remembered nothing.
            None if slots.iter().any(|slot| slot.has_older(service)) => (Time(0), false),
            None => return None,
        };
        Some(Self { started, template: service.template, pace: service.pace(), paused })
    }

    /// When a task counts as good, if it stays up.
    pub(crate) fn good_at(&self, task: &Task, nodes: &Nodes<'_>) -> Option<Time> {
        match task.status.state {
            TaskState::Complete => Some(task.status.since),
            _ if is_up(task, nodes) => Some(up_since(task).plus_ms(self.pace.monitor_ms)),
            _ => None,
        }
    }

    pub(crate) fn is_good(&self, task: &Task, nodes: &Nodes<'_>, now: Time) -> bool {
        self.good_at(task, nodes).is_some_and(|at| at <= now)
    }

    fn is_ours(&self, task: &Task) -> bool {
        task.template == self.template
    }

    fn has_good(&self, slot: &Slot<'_>, nodes: &Nodes<'_>, now: Time) -> bool {
        slot.wanted.iter().any(|task| self.is_ours(task) && self.is_good(task, nodes, now))
    }

    /// Whether any task of the template has been good: then the next need not be waited for.
    pub(crate) fn is_trusted(&self, slots: &[Slot<'_>], nodes: &Nodes<'_>, now: Time) -> bool {
        slots.iter().any(|slot| self.has_good(slot, nodes, now))
    }

    /// The task by which a slot has failed.
    pub(crate) fn failed<'a>(
        &self,
        slot: &Slot<'a>,
        nodes: &Nodes<'_>,
        now: Time,
    ) -> Option<&'a Task> {
        if self.has_good(slot, nodes, now) {
            return None;
        }
        let begun_again = |task: &Task| {
            is_live(task)
                && task.status.attempt > 1
                && !is_lost(task, nodes)
                && task.status.exit.is_some()
        };
        let mut ours = slot.wanted.iter().chain(&slot.past).copied();
        ours.find(|task| {
            self.is_ours(task)
                && task.created >= self.started
                && (is_failed(task) || begun_again(task))
        })
    }

    /// How it stands now, and when that may change though nothing happens.
    pub(crate) fn judge(
        &self,
        state: &State,
        service: &Service,
        slots: &[Slot<'_>],
        nodes: &Nodes<'_>,
        now: Time,
    ) -> (Stand, Option<Time>) {
        let total = wanted_keys(service, nodes).len();
        let (mut done, mut failed, mut first) = (0, 0, None);
        let (mut older, mut wake) = (false, None);
        let mut progress = self.started;
        for slot in slots {
            let Wanted::Yes = wanted(service, slot.key, nodes) else { continue };
            older |= slot.has_older(service);
            for task in slot.wanted.iter().filter(|task| self.is_ours(task)) {
                let good_at = self.good_at(task, nodes);
                wake = earlier(wake, good_at.filter(|at| *at > now));
                if good_at.is_some() && task.created >= self.started {
                    progress = progress.max(up_since(task));
                }
            }
            done += usize::from(self.has_good(slot, nodes, now));
            if let Some(task) = self.failed(slot, nodes, now) {
                failed += 1;
                first = first.or(Some(task));
            }
        }
        if done == total && !older {
            return (Stand::Done, None);
        }
        let allowed = u64::from(self.pace.max_failure_millis) * total as u64;
        if let Some(task) = first
            && failed as u64 * 1000 > allowed
        {
            let text = say(state, service, task);
            let text = match failed {
                1 => text,
                _ => format!("{failed} of {total} failed, e.g. {text}"),
            };
            return (Stand::Failed(text), wake);
        }
        match self.pace.deadline_ms.map(|ms| (ms, progress.plus_ms(ms))) {
            Some((ms, due)) if due <= now => {
                (Stand::Failed(stalled(service, slots, nodes, ms)), wake)
            }
            deadline => (Stand::Moving, earlier(wake, deadline.map(|(_, due)| due))),
        }
    }
}

/// Since when it does what it is there for: that it runs is not enough where health is asked for.
fn up_since(task: &Task) -> Time {
    task.status.ready_since().unwrap_or(task.status.since)
}

/// `no progress within 1m: web.2 is pending: no node fits`.
fn stalled(service: &Service, slots: &[Slot<'_>], nodes: &Nodes<'_>, ms: u64) -> String {
    let within = warren_model::quantity::format_duration_ms(ms);
    let waits = |slot: &&Slot<'_>| matches!(wanted(service, slot.key, nodes), Wanted::Yes);
    let currents = slots.iter().filter(waits).flat_map(|slot| &slot.wanted);
    let mut stuck =
        currents.filter(|task| task.template == service.template && !is_up(task, nodes));
    let Some(task) = stuck.next() else { return format!("no progress within {within}") };
    let (name, slot, status) = (&service.spec.name, task.slot, task.status.state.as_str());
    let text = format!("no progress within {within}: {name}.{slot} is {status}");
    match &task.status.error {
        Some(error) => format!("{text}: {error}"),
        None => text,
    }
}

/// Says in the state what an update has come to. `true`: the service is another one from then on,
/// so nothing else is to be concluded from this one.
pub(crate) fn look(pass: &mut Pass<'_, '_>) -> bool {
    let service = pass.service;
    let Some(watch) = Watch::of(service, &pass.slots) else { return false };
    if hooks::due(service).is_some() {
        return false;
    }
    let draft = &pass.draft;
    let (stand, wake) = watch.judge(draft.state, service, &pass.slots, &draft.nodes, draft.now);
    let mutation = match stand {
        Stand::Done if has_hook_after(service) => {
            Some(Mutation::SetHook { id: service.id, hook: Some(Hook::After) })
        }
        Stand::Done if service.update.is_some() => {
            let message = String::new();
            Some(Mutation::SetUpdate { id: service.id, phase: UpdatePhase::Done, message })
        }
        Stand::Failed(why) if !watch.paused => act(draft.state, service, watch.pace, &why),
        Stand::Done | Stand::Failed(_) | Stand::Moving => None,
    };
    let Some(mutation) = mutation else {
        if let Some(at) = wake {
            pass.wake(at);
        }
        return false;
    };
    if pass.draft.room(1) {
        pass.draft.push(mutation);
        pass.draft.look_again();
    }
    true
}

/// Whether a command is to follow before an update is over. What is gone back to had its own.
fn has_hook_after(service: &Service) -> bool {
    let update = |status: &UpdateStatus| status.kind == UpdateKind::Update;
    !service.spec.hooks.after.is_empty() && service.update.as_ref().is_some_and(update)
}

/// Whether what a pass did is the end of an update, or costs it what was good.
pub(crate) fn has_more_to_say(pass: &Pass<'_, '_>) -> bool {
    let Some(watch) = Watch::of(pass.service, &pass.slots) else { return false };
    if hooks::due(pass.service).is_some() {
        return false;
    }
    let draft = &pass.draft;
    let (nodes, now) = (&draft.nodes, draft.now);
    let (stand, _) = watch.judge(draft.state, pass.service, &pass.slots, nodes, now);
    stand != Stand::Moving
}

/// What the policy wants of an update that has failed.
pub(crate) fn act(
    state: &State,
    service: &Service,
    pace: UpdatePolicy,
    why: &str,
) -> Option<Mutation> {
    let id = service.id;
    let pause =
        |message: String| Some(Mutation::SetUpdate { id, phase: UpdatePhase::Paused, message });
    match pace.failure_action {
        FailureAction::Continue => None,
        FailureAction::Pause => pause(why.to_owned()),
        FailureAction::Rollback => match way_back(state, service) {
            None => pause(format!("{why}; there is no revision to go back to")),
            Some(to) => {
                let back = Mutation::RollBackService { id, to, why: why.to_owned() };
                match refusal(state, &back) {
                    None => Some(back),
                    // Its ports may be another's by now.
                    Some(no) => pause(format!("{why}; back to revision {to} it cannot go: {no}")),
                }
            }
        },
    }
}

/// The last revision with other containers that was good, or, if none is known to be, the last.
fn way_back(state: &State, service: &Service) -> Option<u32> {
    let others = || {
        let revisions = state.revisions(service.id).iter().rev();
        revisions.filter(|revision| revision.spec.task != service.spec.task)
    };
    let good = others().find(|revision| revision.good);
    good.or_else(|| others().next()).map(|revision| revision.number)
}

/// Why the state would not take it.
fn refusal(state: &State, mutation: &Mutation) -> Option<String> {
    let transaction = Transaction { mutations: vec![mutation.clone()], ..Transaction::default() };
    let outcome = state.clone().apply(state.time(), &[transaction], &mut Vec::new()).pop()?;
    match outcome {
        Outcome::Rejected(rejection) => Some(rejection.to_string()),
        Outcome::Applied { .. } | Outcome::Repeated { .. } => None,
    }
}

/// Whether an update has failed by its policy, and what that says will be done in a moment.
pub(crate) fn is_about_to_act(
    state: &State,
    service: &Service,
    slots: &[Slot<'_>],
    nodes: &Nodes<'_>,
) -> bool {
    hooks::due(service).is_none()
        && Watch::of(service, slots).is_some_and(|watch| {
            let (stand, _) = watch.judge(state, service, slots, nodes, state.time());
            let acts = watch.pace.failure_action != FailureAction::Continue;
            acts && matches!(stand, Stand::Failed(_))
        })
}

/// Why nobody need wait for an update any longer that goes on whatever fails: nothing of it got any
/// further for as long as its policy says, or [`UpdatePolicy::PATIENCE_MS`]. Otherwise when that may
/// be another answer though nothing happens.
pub(crate) fn is_hopeless(
    state: &State,
    service: &Service,
    slots: &[Slot<'_>],
    nodes: &Nodes<'_>,
    now: Time,
) -> Result<Option<Time>, String> {
    let watch = Watch::of(service, slots).filter(|_| hooks::due(service).is_none());
    let Some(mut watch) = watch else { return Ok(None) };
    if watch.pace.failure_action != FailureAction::Continue {
        return Ok(None);
    }
    watch.pace.deadline_ms = watch.pace.deadline_ms.or(Some(UpdatePolicy::PATIENCE_MS));
    // However many fail.
    watch.pace.max_failure_millis = UpdatePolicy::FAILURE_MILLIS_MAX;
    match watch.judge(state, service, slots, nodes, now) {
        (Stand::Failed(why), _) => Err(why),
        (Stand::Moving | Stand::Done, wake) => Ok(wake),
    }
}

/// How far the last update of a service is, and why it is no further.
pub fn update_state(state: &State, service: &Service) -> (UpdateState, String) {
    match &service.update {
        _ if service.job.is_some() => (UpdateState::None, String::new()),
        Some(status) => {
            let text = match (status.kind, status.phase) {
                (UpdateKind::Update | UpdateKind::Rollback, UpdatePhase::Moving) => String::new(),
                _ => status.message.clone(),
            };
            (UpdateState::of(status), text)
        }
        None => {
            let older = slots_of(state, service).iter().any(|slot| slot.has_older(service));
            let state = match (older, service.template) {
                (true, _) => UpdateState::Updating,
                (false, 0 | 1) => UpdateState::None,
                (false, _) => UpdateState::Completed,
            };
            (state, String::new())
        }
    }
}
