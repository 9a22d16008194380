//! Commands before and after a deploy: when they are due, and their task.
//!
//! A hook is one task of the service without a slot, of the new template; its
//! agent runs another command in it. What is due and what is over is agreed upon
//! first (`UpdateStatus::hook`), so that a hook runs once to success for each
//! template, whoever leads: `decide` writes it from what the task came to, `run`
//! makes the task. Both are looked at before anything else of a service; while
//! the one before is due, nothing of the new template is made (`is_awaited`).
//!
//! Tries again in place are the agent's. A task whose node is lost has a successor when its service
//! allows one; what was told to stop (for a task of higher priority, by a person, by the deadline
//! of a drain) begins again. A node that drains keeps it until then: it ends by itself.
//!
//! It has a pass of its own, so that nothing that is spread, counted or published sees its task:
//! no port of the service is in its way, and no limit of replicas on a node.

use warren_model::job::has_done;
use warren_model::quantity::format_duration_ms;
use warren_model::service::{Hook, HookStatus, Service, UpdatePhase, UpdateStatus};
use warren_model::task::{Desired, Task, TaskState};
use warren_state::State;
use warren_state::change::Mutation;

use crate::nodes::Nodes;
use crate::progress::say;
use crate::service::Pass;
use crate::slot::{Key, Slot, insert_by_age, is_live, is_lost};
use crate::{drain, place, watch};

/// The hook that is due, if an update is under way.
pub(crate) fn due(service: &Service) -> Option<(&UpdateStatus, HookStatus)> {
    let status = service.update.as_ref().filter(|status| status.phase != UpdatePhase::Done)?;
    status.hook.map(|due| (status, due))
}

/// Whether nothing of the new template may be made yet.
pub(crate) fn is_awaited(service: &Service) -> bool {
    due(service).is_some_and(|(_, due)| due.hook == Hook::Before)
}

/// Its tasks, one list for each hook that ever ran.
pub(crate) fn slots_of<'a>(state: &'a State, service: &Service) -> Vec<Slot<'a>> {
    let mut slots: Vec<Slot<'a>> = Vec::new();
    for hook in Hook::ALL {
        let mut slot = Slot::new(Key::Hook(hook));
        // Those without a slot are the first.
        let tasks = state.tasks_of(service.id).take_while(|task| task.slot == 0);
        for task in tasks.filter(|task| task.hook() == Some(hook)) {
            let list = match task.desired {
                Desired::Running => &mut slot.wanted,
                Desired::Shutdown => &mut slot.past,
                Desired::Remove => &mut slot.leaving,
            };
            insert_by_age(list, task);
        }
        slots.push(slot);
    }
    slots
}

/// Whether a task is the present try of a hook.
fn is_ours(service: &Service, due: HookStatus, task: &Task) -> bool {
    task.hook() == Some(due.hook)
        && task.template == service.template
        && task.created >= due.since
        && task.desired == Desired::Running
}

fn ours<'a>(service: &Service, due: HookStatus, slots: &[Slot<'a>]) -> Vec<&'a Task> {
    let wanted = slots.iter().flat_map(|slot| &slot.wanted).copied();
    wanted.filter(|task| is_ours(service, due, task)).collect()
}

/// Says in the state what a hook has come to. `true`: the service is another one from then on.
pub(crate) fn decide(pass: &mut Pass<'_, '_>) -> bool {
    let service = pass.service;
    let Some((status, due)) = due(service) else { return false };
    let id = service.id;
    let over = || match due.hook {
        Hook::Before => Mutation::SetHook { id, hook: None },
        Hook::After => Mutation::SetUpdate { id, phase: UpdatePhase::Done, message: String::new() },
    };
    let tasks = ours(service, due, &pass.slots);
    let until = due.since.plus_ms(service.spec.hooks.timeout_ms);
    let mutation = if service.spec.hooks.command(due.hook).is_empty()
        || tasks.iter().any(|task| has_done(task))
    {
        Some(over())
    } else if status.phase == UpdatePhase::Paused {
        None
    } else if let Some(why) = failure(pass.draft.state, service, &tasks) {
        Some(act(pass, due.hook, &why))
    } else if until <= pass.draft.now {
        let limit = format_duration_ms(service.spec.hooks.timeout_ms);
        let why = format!("{} command took longer than {limit}", due.hook.as_str());
        Some(act(pass, due.hook, &why))
    } else {
        pass.wake(until);
        None
    };
    let Some(mutation) = mutation else { return false };
    if pass.draft.room(1) {
        pass.draft.push(mutation);
        pass.draft.look_again();
    }
    true
}

/// `web.pre-deploy is failed on host: exit code 3`, if it did not do what it was to.
fn failure(state: &State, service: &Service, tasks: &[&Task]) -> Option<String> {
    let failed =
        |task: &&&Task| matches!(task.status.state, TaskState::Failed | TaskState::Rejected);
    tasks.iter().find(failed).map(|task| say(state, service, task))
}

/// What the policy wants: nothing goes on after one that was to be before.
fn act(pass: &Pass<'_, '_>, hook: Hook, why: &str) -> Mutation {
    let (state, service) = (pass.draft.state, pass.service);
    let id = service.id;
    let otherwise = match hook {
        Hook::Before => UpdatePhase::Paused,
        // Every slot has its new task, and each is good.
        Hook::After => UpdatePhase::Done,
    };
    let set = |phase| Mutation::SetUpdate { id, phase, message: why.to_owned() };
    watch::act(state, service, service.pace(), why).unwrap_or_else(|| set(otherwise))
}

/// Stops what is not to run, and sees to it that what is due does.
pub(crate) fn run(pass: &mut Pass<'_, '_>) {
    let service = pass.service;
    let due = due(service).map(|(status, due)| (status.phase, due));
    for at in 0..pass.slots.len() {
        stop_others(pass, at, due.map(|(_, due)| due));
        history(pass, at);
    }
    let Some((UpdatePhase::Moving, due)) = due else { return };
    let Some(at) = pass.slots.iter().position(|slot| slot.key == Key::Hook(due.hook)) else {
        return;
    };
    let tasks = ours(service, due, &pass.slots);
    match tasks.first() {
        None => {
            if !is_in_the_way(pass) && pass.draft.room(2) {
                pass.create(at, service.template);
            }
        }
        // The newest is what counts.
        Some(task) if is_lost(task, &pass.draft.nodes) => {
            if !pass.is_held(task)
                && pass.draft.room(3)
                && pass.create_if_placed(at, service.template)
            {
                pass.stop(at, task);
            }
        }
        Some(_) => {}
    }
    place::place_pending(pass);
}

/// Ends tasks of what is not due (any more), and of earlier tries.
fn stop_others(pass: &mut Pass<'_, '_>, at: usize, due: Option<HookStatus>) {
    let mut newest = true;
    let timeout_ms = pass.service.spec.hooks.timeout_ms;
    let is_over = due.is_some_and(|due| due.since.plus_ms(timeout_ms) <= pass.draft.now);
    for task in pass.slots[at].wanted.clone() {
        let ours = due.is_some_and(|due| is_ours(pass.service, due, task));
        // Nothing of it is left on its node, and it did not do its work.
        let gone = task.status.state == TaskState::Removed;
        let late = is_over && is_live(task);
        let stays = ours && newest && !gone && !late && !drain::is_due(pass, task);
        newest &= !ours;
        // What has ended stays as it was, until the next one comes.
        let ended = !ours && !is_live(task);
        if stays || ended && due.is_none_or(|due| Key::Hook(due.hook) != pass.slots[at].key) {
            continue;
        }
        if pass.draft.room(1) {
            pass.stop(at, task);
        }
    }
}

/// Whether one that was stopped may still run, and must not beside the next.
fn is_in_the_way(pass: &mut Pass<'_, '_>) -> bool {
    let tasks: Vec<&Task> = pass.slots.iter().flat_map(|slot| slot.tasks()).collect();
    let live = tasks.into_iter().filter(|task| is_live(task) && task.node.is_some());
    let live: Vec<&Task> = live.collect();
    live.into_iter().any(|task| !is_lost(task, &pass.draft.nodes) || pass.is_held(task))
}

/// Forgets the oldest beyond the cluster's limit.
fn history(pass: &mut Pass<'_, '_>, at: usize) {
    let limit = usize::try_from(pass.draft.cluster.history_limit).unwrap_or(usize::MAX);
    let slot = &pass.slots[at];
    let ended = slot.past.iter().filter(|task| !is_live(task)).skip(limit);
    let over: Vec<&Task> = ended.chain(&slot.leaving).copied().collect();
    for task in over {
        if !pass.draft.room(1) {
            return;
        }
        pass.leave(task);
    }
}

/// Whether its tasks of a service that no update of is under way need nothing; told one by one.
#[derive(Default)]
pub(crate) struct Calm {
    ended: [u32; 2],
}

impl Calm {
    pub(crate) fn is_broken_by(&mut self, task: &Task, limit: u32) -> bool {
        match task.desired {
            Desired::Running => is_live(task),
            Desired::Shutdown => {
                let at = usize::from(task.hook() == Some(Hook::After));
                self.ended[at] += u32::from(!is_live(task));
                self.ended[at] > limit
            }
            Desired::Remove => true,
        }
    }
}

/// What those who wait for the service are told while a hook is due.
pub(crate) fn describe(state: &State, service: &Service, nodes: &Nodes<'_>) -> Option<String> {
    let (_, due) = due(service)?;
    let slots = slots_of(state, service);
    let name = due.hook.as_str();
    let tasks = ours(service, due, &slots);
    let Some(task) = tasks.first() else { return Some(format!("{name} command to be started")) };
    let word = if is_lost(task, nodes) { "lost" } else { task.status.state.as_str() };
    let text = format!("{name} command {word}");
    Some(match &task.status.error {
        Some(error) if is_live(task) => format!("{text}: {error}"),
        Some(_) | None => text,
    })
}
