//! What people do to single tasks.

use tonic::Code;
use warren_model::task::{Desired, Task};
use warren_proto::v1;
use warren_proto::v1::control_task_request::{Restart, Stop, What};
use warren_proto::v1::frame::Kind;
use warren_proto::v1::open_stream;

use crate::agent::{Agent, finish};
use crate::house::{House, wish};

fn ask(task: &str, what: What) -> v1::ControlTaskRequest {
    let request_id = vec![7; 16];
    v1::ControlTaskRequest { task: task.into(), what: Some(what), request_id }
}

fn records(house: &House) -> Vec<String> {
    let view = house.store.view();
    let tasks = view.audit().filter(|record| record.action.starts_with("task."));
    tasks.map(|record| format!("{} {}", record.action, record.object)).collect()
}

#[tokio::test]
async fn signals_go_to_the_node_and_into_the_records() {
    let mut house = House::open("a").await;
    let mut agent = Agent::join(&house, 'a').await;
    house.create(wish("web", 1)).await.unwrap();
    agent.hold_until(|agent| agent.running().len() == 1).await;
    agent.report(&agent.running(), v1::TaskState::Running).await;
    house.until(|view| view.tasks().all(|task| task.status.pid == 42)).await;
    let mut control = house.control.clone();
    let serve = async {
        let mut seen = Vec::new();
        for attempt in [1, 1] {
            let request = agent.stream().await;
            let open = request.open.unwrap().kind.unwrap();
            let open_stream::Kind::ControlTask(asked) = open else { panic!("{open:?}") };
            seen.push(asked.signal);
            let ends = agent.tunnel(request.stream_id).await.unwrap();
            finish(ends, vec![Kind::ControlDone(v1::ControlDone { attempt })]).await;
        }
        seen
    };
    let ask_both = async {
        let signal = ask("web.1", What::Signal("hup".into()));
        let done = control.control_task(signal).await.unwrap().into_inner();
        assert_eq!((done.name.as_str(), done.remark.as_str()), ("web.1", ""));
        let mut restart = ask("web.1", What::Restart(Restart {}));
        restart.request_id = vec![8; 16];
        control.control_task(restart).await.unwrap();
    };
    let (seen, ()) = tokio::join!(serve, ask_both);
    assert_eq!(seen, [Some(1), None]);
    assert_eq!(records(&house), ["task.signal web.1", "task.restart web.1"]);

    for (task, what, code) in [
        ("web", What::Stop(Stop {}), Code::InvalidArgument),
        ("web.9", What::Stop(Stop {}), Code::NotFound),
        ("web.1", What::Signal("HANGUP".into()), Code::InvalidArgument),
    ] {
        let refused = house.control.control_task(ask(task, what)).await.unwrap_err();
        assert_eq!(refused.code(), code, "{task}: {}", refused.message());
    }
}

#[tokio::test]
async fn a_task_that_is_stopped_has_a_successor() {
    let mut house = House::open("a").await;
    let mut agent = Agent::join(&house, 'a').await;
    house.create(wish("web", 1)).await.unwrap();
    agent.hold_until(|agent| agent.running().len() == 1).await;
    let first = agent.running().remove(0);
    agent.report(&agent.running(), v1::TaskState::Running).await;
    house.until(|view| view.tasks().all(|task| task.status.pid == 42)).await;
    let id = house.store.view().tasks().next().unwrap().id.to_string();
    let stop = ask(&id, What::Stop(Stop {}));
    let done = house.control.control_task(stop.clone()).await.unwrap().into_inner();
    assert_eq!(done.remark, "service web starts another in its place");
    agent.hold_until(|agent| agent.running().iter().all(|task| *task != first)).await;
    // A retry is answered, and is not about what took its place.
    let again = house.control.control_task(stop).await.unwrap().into_inner();
    assert_eq!(again.id, done.id);
    assert_eq!(records(&house), ["task.stop web.1"]);
    let wanted = |task: &&Task| task.desired == Desired::Running;
    house.until(|view| view.tasks().filter(wanted).count() == 1).await;
}
