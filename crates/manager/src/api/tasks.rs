//! What people do to one task: stop, restart, signal, pause.
//!
//! Stopping is a wish like any other and goes through the state. Restarts, pauses and
//! signals are done by the node: they are recorded first, so that nothing is
//! done that nobody can be asked about, and then passed on to the node, wherever
//! its session is. A call that is tried again because its answer was lost is
//! recorded once and passed on each time.

use warren_model::service::{PublishMode, Service, UpdateOrder, parse_signal};
use warren_model::task::{Desired, Task, TaskControl, TaskState};
use warren_proto::v1;
use warren_proto::v1::control_task_request::What;
use warren_proto::v1::frame::Kind;
use warren_proto::v1::open_stream;
use warren_state::change::{Mutation, Transaction};

use crate::api::authorize::Who;
use crate::api::propose;
use crate::api::request::{Content, repeated, request};
use crate::core::Core;
use crate::refusal::Refusal;
use crate::stream::route;
use crate::stream::target;

/// A node answers at once; one that takes this long is stuck.
const ANSWER_MS: u64 = 5000;

pub(super) async fn control(
    core: &Core,
    who: &Who,
    wire: v1::ControlTaskRequest,
) -> Result<v1::TaskControlled, Refusal> {
    let what = wire.what.ok_or_else(|| Refusal::bad_input("what: is missing"))?;
    let content = content(&wire.task, &what);
    let view = core.store.view();
    let task = target::one(&view, &wire.task)?;
    let service = view.service(task.service);
    let name = service.map_or_else(String::new, |s| format!("{}.{}", s.spec.name, task.label()));
    let request = request(&who.principal, &wire.request_id, &content)?;
    if matches!(what, What::Stop(_))
        && let Some(revision) = repeated(&view, request.as_ref())?
    {
        // By now it may have ended.
        return Ok(answer(task, service, name, revision, true));
    }
    let (mutation, by_node) = match what {
        What::Stop(_) => {
            may_stop(&name, task)?;
            (Mutation::SetDesired { id: task.id, desired: Desired::Shutdown }, None)
        }
        What::Restart(_) => {
            may_restart(&name, task)?;
            let control = TaskControl::Restart;
            (Mutation::ControlTask { id: task.id, control }, Some(control))
        }
        What::Pause(pause) => {
            may_pause(&name, task)?;
            let control = if pause { TaskControl::Pause } else { TaskControl::Unpause };
            (Mutation::ControlTask { id: task.id, control }, Some(control))
        }
        What::Signal(text) => {
            let number = signal_of(&text)?;
            may_signal(&name, task)?;
            let control = TaskControl::Signal(number);
            (Mutation::ControlTask { id: task.id, control }, Some(control))
        }
    };
    let transaction = Transaction {
        request,
        principal: who.audit(),
        expects: Vec::new(),
        mutations: vec![mutation],
    };
    let revision = propose(core, transaction).await?;
    if let Some(control) = by_node {
        deliver(core, task, control).await?;
    }
    Ok(answer(task, service, name, revision, by_node.is_none()))
}

fn answer(
    task: &Task,
    service: Option<&Service>,
    name: String,
    revision: u64,
    stopped: bool,
) -> v1::TaskControlled {
    let remark = service.filter(|_| stopped).map(successor).unwrap_or_default();
    let (id, attempt) = (task.id.as_bytes().to_vec(), task.status.attempt);
    v1::TaskControlled { id, name, attempt, revision, remark }
}

fn content(task: &str, what: &What) -> Content {
    let content = Content::new("control-task").with(task.as_bytes());
    match what {
        What::Stop(_) => content.with(b"stop"),
        What::Restart(_) => content.with(b"restart"),
        What::Signal(text) => content.with(b"signal").with(text.as_bytes()),
        What::Pause(true) => content.with(b"pause"),
        What::Pause(false) => content.with(b"unpause"),
    }
}

fn signal_of(text: &str) -> Result<i32, Refusal> {
    parse_signal(text).ok_or_else(|| {
        Refusal::bad_input(format!("signal: {text:?} is not a signal of Linux"))
            .hint("write a name or a number from 1 to 64, e.g. HUP, SIGUSR1 or 10")
    })
}

fn must_live(name: &str, task: &Task) -> Result<(), Refusal> {
    let state = task.status.state.as_str();
    if task.status.state.is_terminal() {
        return Err(Refusal::not_now(format!("{name} is {state}: nothing of it runs"))
            .hint("warren service ps shows what does"));
    }
    if task.node.is_none() {
        return Err(Refusal::not_now(format!("{name} is {state}: it has no place yet"))
            .hint(format!("warren explain task {name} shows why")));
    }
    Ok(())
}

/// One that is being stopped already may be asked for again.
fn may_stop(name: &str, task: &Task) -> Result<(), Refusal> {
    if task.desired == Desired::Remove {
        return Err(Refusal::not_now(format!("{name} is being removed")));
    }
    must_live(name, task)
}

fn may_restart(name: &str, task: &Task) -> Result<(), Refusal> {
    must_live(name, task)?;
    match task.desired {
        Desired::Running => Ok(()),
        Desired::Shutdown | Desired::Remove => {
            Err(Refusal::not_now(format!("{name} is being stopped"))
                .hint("its service has another in its place: warren service ps"))
        }
    }
}

fn may_pause(name: &str, task: &Task) -> Result<(), Refusal> {
    must_live(name, task)?;
    match task.status.state {
        TaskState::Running => Ok(()),
        state => Err(Refusal::not_now(format!("{name} is {}, not running", state.as_str()))),
    }
}

fn may_signal(name: &str, task: &Task) -> Result<(), Refusal> {
    must_live(name, task)
}

/// What becomes of the slot of a task that is stopped, for people.
fn successor(service: &Service) -> String {
    let name = &service.spec.name;
    if service.removing {
        return format!("service {name} is being removed");
    }
    let host_ports = service.spec.ports.iter().any(|port| port.mode == PublishMode::Host);
    match service.pace().order {
        UpdateOrder::StartFirst if !host_ports => {
            format!("service {name} starts another in its place")
        }
        UpdateOrder::StartFirst | UpdateOrder::StopFirst => {
            format!("service {name} starts another in its place once it has ended")
        }
    }
}

/// Has the node of a task do what was asked for.
async fn deliver(core: &Core, task: &Task, control: TaskControl) -> Result<(), Refusal> {
    let Some(node) = task.node else { return Err(Refusal::not_now("it has no place yet")) };
    let (signal, pause) = match control {
        TaskControl::Restart => (None, None),
        TaskControl::Signal(number) => (Some(number), None),
        TaskControl::Pause => (None, Some(true)),
        TaskControl::Unpause => (None, Some(false)),
    };
    let asked = v1::ControlTask { task: task.id.as_bytes().to_vec(), signal, pause };
    let open = route::request(node, open_stream::Kind::ControlTask(asked));
    let mut tunnel = core.broker.open(core, node, open).await?;
    let answer = async {
        loop {
            match tunnel.from_node.message().await {
                Ok(Some(v1::Frame { kind: Some(Kind::ControlDone(_)) })) => return Ok(()),
                Ok(Some(v1::Frame { kind: Some(Kind::Error(error)) })) => {
                    return Err(Refusal::of_stream(error));
                }
                // Its first frame only says that it is there.
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => {
                    return Err(Refusal::unavailable("the node went away before it answered"));
                }
            }
        }
    };
    tokio::select! {
        answer = answer => answer,
        () = core.clock.sleep(ANSWER_MS) => {
            let within = ANSWER_MS / 1000;
            Err(Refusal::unavailable(format!("the node did not answer within {within} s")))
        }
    }
}

#[cfg(test)]
mod tests {
    use warren_state::State;

    use super::*;
    use crate::testing::world;

    #[track_caller]
    fn check(text: &str, may: fn(&str, &Task) -> Result<(), Refusal>, expected: &str) {
        let view: State = world("web: 1 running a, 2 failed a\ndb: 1 pending");
        let task = target::one(&view, text).unwrap();
        let got = may(text, task).map_or_else(|refusal| refusal.to_string(), |()| "ok".to_owned());
        assert_eq!(got, expected, "{text}");
    }

    #[test]
    fn what_may_be_asked_of_which() {
        for may in [may_stop, may_restart, may_signal, may_pause] {
            check("web.1", may, "ok");
            check("web.2", may, "web.2 is failed: nothing of it runs");
            check("db.1", may, "db.1 is pending: it has no place yet");
        }
    }

    #[test]
    fn signals() {
        assert_eq!(signal_of("usr1"), Ok(10));
        let refusal = signal_of("HANGUP").unwrap_err();
        assert_eq!(refusal.to_string(), "signal: \"HANGUP\" is not a signal of Linux");
    }
}
