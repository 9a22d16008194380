//! What `exec` and `logs` are about: a service, a slot of it, or one task.
//!
//! Pure. Names win over ids, since names are what people choose; a beginning
//! of an id is enough if only one object's id begins so.

use warren_model::service::{Hook, Mode};
use warren_model::task::{Desired, Task, TaskState};
use warren_model::{ServiceId, TaskId};
use warren_state::State;

use crate::refusal::Refusal;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Service(ServiceId),
    Slot(ServiceId, u32),
    /// A command before or after a deploy: `web.pre-deploy`.
    Hook(ServiceId, Hook),
    Task(TaskId),
}

/// Finds out what `text` means.
pub(crate) fn resolve(view: &State, text: &str) -> Result<Target, Refusal> {
    if let Some(service) = view.service_by_name(text) {
        return Ok(Target::Service(service.id));
    }
    // Service names have no dots.
    if let Some((name, slot)) = text.rsplit_once('.') {
        let service = view
            .resolve_service(name)
            .ok_or_else(|| Refusal::not_found(format!("no service {name}")).hint(LISTING))?;
        if let Some(hook) = Hook::ALL.into_iter().find(|hook| hook.as_str() == slot) {
            return Ok(Target::Hook(service.id, hook));
        }
        let slot = slot.parse::<u32>().map_err(|_| {
            Refusal::bad_input(format!("{text:?}: {slot:?} is not the number of a slot"))
                .hint(format!("write e.g. {name}.1"))
        })?;
        return Ok(Target::Slot(service.id, slot));
    }
    let service = view.resolve_service(text).map(|service| Target::Service(service.id));
    match (find_task(view, text)?, service) {
        (Some(task), None) => Ok(Target::Task(task)),
        (None, Some(service)) => Ok(service),
        (Some(_), Some(_)) => {
            Err(Refusal::bad_input(format!("{text:?} begins the id of a service and of a task"))
                .hint("write more of it"))
        }
        (None, None) => Err(Refusal::not_found(format!("no service or task {text}")).hint(LISTING)),
    }
}

const LISTING: &str = "warren service ls and warren ps show what there is";

/// A task by its id or a beginning of it that no other has.
pub(crate) fn find_task(view: &State, text: &str) -> Result<Option<TaskId>, Refusal> {
    if let Ok(id) = text.parse::<TaskId>() {
        return Ok(view.task(id).map(|task| task.id));
    }
    if text.is_empty() {
        return Ok(None);
    }
    // Walks all tasks: people do not type fast enough for an index to pay.
    let mut found = view.tasks().map(|task| task.id).filter(|id| id.to_string().starts_with(text));
    match (found.next(), found.next()) {
        (Some(_), Some(_)) => {
            Err(Refusal::bad_input(format!("{text:?} begins the ids of several tasks"))
                .hint("write more of it"))
        }
        (found, _) => Ok(found),
    }
}

/// One task, by its id, a beginning of it, or as `web.2`: of several in a slot the one that is
/// wanted and runs, else the newest.
pub(crate) fn one<'a>(view: &'a State, text: &str) -> Result<&'a Task, Refusal> {
    let none = || Refusal::not_found(format!("no task {text}")).hint(LISTING);
    let target = match resolve(view, text)? {
        Target::Service(id) => {
            let name = view.service(id).map(|service| service.spec.name.to_string());
            let name = name.unwrap_or_default();
            return Err(Refusal::bad_input(format!("{text:?} is a service, not a task"))
                .hint(format!("write e.g. {name}.1; warren service ps {name} shows its tasks")));
        }
        target @ (Target::Slot(..) | Target::Hook(..) | Target::Task(_)) => target,
    };
    let preferred = |task: &&Task| {
        let wanted = task.desired == Desired::Running;
        (wanted, !task.status.state.is_terminal(), task.status.state, task.created, task.id)
    };
    tasks(view, target).into_iter().max_by_key(preferred).ok_or_else(none)
}

/// Finds out what `text` means, and that something of it is there or to come: a slot that the
/// service neither has nor will have is a typo.
pub(crate) fn resolve_present(view: &State, text: &str) -> Result<Target, Refusal> {
    let target = resolve(view, text)?;
    let to_come = match target {
        Target::Service(_) | Target::Task(_) => true,
        Target::Hook(id, hook) => {
            view.service(id).is_some_and(|service| !service.spec.hooks.command(hook).is_empty())
        }
        Target::Slot(id, slot) => view.service(id).is_some_and(|service| match service.spec.mode {
            Mode::Replicated { replicas } => (1..=replicas).contains(&slot),
            Mode::ReplicatedJob { completions, .. } => (1..=completions).contains(&slot),
            Mode::Global | Mode::GlobalJob => slot == 1,
        }),
    };
    match to_come || !tasks(view, target).is_empty() {
        true => Ok(target),
        false => Err(Refusal::not_found(format!("no task {text}")).hint(LISTING)),
    }
}

/// Tasks of a target, in order of slot.
pub(crate) fn tasks(view: &State, target: Target) -> Vec<&Task> {
    match target {
        Target::Service(id) => view.tasks_of(id).collect(),
        Target::Slot(id, slot) => view.tasks_of(id).filter(|task| task.slot == slot).collect(),
        Target::Hook(id, hook) => {
            view.tasks_of(id).filter(|task| task.hook() == Some(hook)).collect()
        }
        Target::Task(id) => view.task(id).into_iter().collect(),
    }
}

/// The running task to execute something in: of several the first that is meant to stay.
/// With `starting` also one whose init containers run.
pub(crate) fn running(view: &State, text: &str, starting: bool) -> Result<Task, Refusal> {
    let target = resolve(view, text)?;
    let tasks = tasks(view, target);
    let runs = |task: &&Task| match task.status.state {
        TaskState::Running | TaskState::Draining => true,
        state => starting && state == TaskState::Starting,
    };
    let mut candidates: Vec<&Task> = tasks.iter().copied().filter(runs).collect();
    let is_hook = |task: &Task| task.hook().is_some();
    candidates.sort_by_key(|task| {
        let starts = task.status.state == TaskState::Starting;
        (task.desired != Desired::Running, starts, is_hook(task), task.slot, task.id)
    });
    if let Some(task) = candidates.first() {
        return Ok((*task).clone());
    }
    Err(match (target, tasks.as_slice()) {
        (Target::Slot(..) | Target::Hook(..), []) => {
            Refusal::not_found(format!("no task {text}")).hint(LISTING)
        }
        (Target::Task(_), [task]) => {
            Refusal::not_now(format!("task {text} is {}, not running", task.status.state.as_str()))
        }
        _ => Refusal::not_now(format!("{text} has no running task"))
            .hint("warren service ps shows why"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::world;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let view = world("web: 1 running a, 2 failed a, 3 running b\ndb: 1 pending");
        let got = match running(&view, text, false) {
            Ok(task) => format!("slot {}", task.slot),
            Err(refusal) => format!("{:?}: {refusal}", refusal.code),
        };
        assert_eq!(got, expected, "{text}");
    }

    #[test]
    fn where_to_execute() {
        check("web", "slot 1");
        check("web.3", "slot 3");
        check("web.2", "FailedPrecondition: web.2 has no running task");
        check("web.9", "NotFound: no task web.9");
        check("web.x", "InvalidArgument: \"web.x\": \"x\" is not the number of a slot");
        check("shop", "NotFound: no service or task shop");
        check("shop.1", "NotFound: no service shop");
        check("db", "FailedPrecondition: db has no running task");
        check("", "NotFound: no service or task ");
    }

    #[test]
    fn slots_that_are_there_or_to_come() {
        let view = world("web: 1 running a, 2 failed a, 3 running b\ndb: 1 pending");
        for (text, expected) in [
            ("web", "ok"),
            ("web.3", "ok"),
            ("web.0", "no task web.0"),
            ("web.4", "no task web.4"),
            ("db.2", "no task db.2"),
            // It has no such command, nor ever had.
            ("web.pre-deploy", "no task web.pre-deploy"),
            ("shop.pre-deploy", "no service shop"),
        ] {
            let got = resolve_present(&view, text);
            let got = got.map_or_else(|refusal| refusal.to_string(), |_| "ok".to_owned());
            assert_eq!(got, expected, "{text}");
        }
    }

    #[test]
    fn one_task() {
        let view = world("web: 1 running a, 2 failed a, 3 running b\ndb: 1 pending");
        for (text, expected) in [
            ("web.3", "3"),
            ("web.2", "2"),
            ("db.1", "1"),
            ("web", "\"web\" is a service, not a task"),
            ("web.4", "no task web.4"),
            ("shop.1", "no service shop"),
        ] {
            let got = one(&view, text);
            let got = got.map_or_else(|refusal| refusal.to_string(), |task| task.slot.to_string());
            assert_eq!(got, expected, "{text}");
        }
    }

    #[test]
    fn tasks_by_id_and_prefix() {
        let view = world("web: 1 running a, 2 failed a");
        for task in view.tasks() {
            let id = task.id.to_string();
            assert_eq!(resolve(&view, &id).unwrap(), Target::Task(task.id));
            assert_eq!(resolve(&view, &id[..15]).unwrap(), Target::Task(task.id));
        }
        let service = view.service_by_name("web").unwrap().id;
        assert_eq!(resolve(&view, &service.to_string()).unwrap(), Target::Service(service));
        // All ids of this world begin alike.
        let refusal = find_task(&view, "0").unwrap_err();
        assert_eq!(refusal.to_string(), "\"0\" begins the ids of several tasks");
    }
}
