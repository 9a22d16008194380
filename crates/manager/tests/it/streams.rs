//! Streams through the broker: both ways, to their ends, and without one.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use warren_base::clock::{Clock, RealClock};
use warren_proto::v1;
use warren_proto::v1::frame::Kind;
use warren_proto::v1::open_stream;

use crate::agent::{Agent, Ends, finish};
use crate::house::{House, soon, wish};

fn frame(kind: Kind) -> v1::Frame {
    v1::Frame { kind: Some(kind) }
}

async fn open(house: &House, kind: open_stream::Kind) -> Result<Ends, Status> {
    let (to, frames) = mpsc::channel(4);
    let open = v1::OpenStream { node: Vec::new(), kind: Some(kind) };
    to.send(frame(Kind::Open(open))).await.unwrap();
    let mut control = house.control.clone();
    let from = soon(control.stream(ReceiverStream::new(frames))).await?.into_inner();
    Ok((to, from))
}

fn exec(target: &str) -> open_stream::Kind {
    let args = vec!["cat".to_owned()];
    open_stream::Kind::Exec(v1::Exec { target: target.into(), args, ..Default::default() })
}

fn logs(target: &str, follow: bool) -> open_stream::Kind {
    open_stream::Kind::Logs(v1::Logs { target: target.into(), follow, ..Default::default() })
}

fn line(text: &str) -> v1::Frame {
    frame(Kind::Log(v1::LogLine { line: text.into(), ..Default::default() }))
}

fn text(frame: Option<v1::Frame>) -> String {
    match frame.map(|frame| frame.kind.unwrap()) {
        None => "end".into(),
        Some(Kind::Stdin(bytes) | Kind::Stdout(bytes)) => {
            String::from_utf8(bytes.to_vec()).unwrap()
        }
        Some(Kind::Log(line)) => String::from_utf8(line.line).unwrap(),
        Some(other) => format!("{other:?}"),
    }
}

async fn running(house: &mut House, nodes: &str, replicas: u32) -> Vec<Agent> {
    let mut agents = Vec::new();
    for letter in nodes.chars() {
        agents.push(Agent::join(house, letter).await);
    }
    house.create(wish("web", replicas)).await.unwrap();
    let each = usize::try_from(replicas).unwrap() / agents.len();
    for agent in &mut agents {
        agent.hold_until(|agent| agent.running().len() == each).await;
        agent.report(&agent.running(), v1::TaskState::Running).await;
    }
    let all = usize::try_from(replicas).unwrap();
    house.until(|view| view.tasks().filter(|t| t.status.pid == 42).count() == all).await;
    agents
}

#[tokio::test]
async fn both_ways_to_the_end() {
    let mut house = House::open("a").await;
    let mut agent = running(&mut house, "a", 1).await.remove(0);
    let task = agent.running().remove(0);
    let serve = async {
        let request = agent.stream().await;
        let open_stream::Kind::Exec(exec) = request.open.unwrap().kind.unwrap() else { panic!() };
        assert_eq!(exec.task, task);
        let (to, mut from) = agent.tunnel(request.stream_id).await.unwrap();
        to.send(frame(Kind::Open(v1::OpenStream::default()))).await.unwrap();
        // More than all buffers hold together: both sides must keep moving.
        while let Some(Kind::Stdin(bytes)) =
            soon(from.message()).await.unwrap().and_then(|f| f.kind)
        {
            to.send(frame(Kind::Stdout(bytes))).await.unwrap();
        }
        assert!(soon(from.message()).await.unwrap().is_none());
        finish((to, from), vec![Kind::ExitCode(3)]).await;
    };
    let call = async {
        let (to, mut from) = open(&house, exec("web.1")).await.unwrap();
        let send = async move {
            for n in 0..200u32 {
                let bytes = n.to_string().repeat(2000);
                to.send(frame(Kind::Stdin(bytes.into()))).await.unwrap();
            }
            to.send(frame(Kind::StdinClosed(true))).await.unwrap();
        };
        let receive = async {
            for n in 0..200u32 {
                assert_eq!(text(soon(from.message()).await.unwrap()), n.to_string().repeat(2000));
            }
            assert_eq!(text(soon(from.message()).await.unwrap()), "ExitCode(3)");
            assert_eq!(text(soon(from.message()).await.unwrap()), "end");
        };
        tokio::join!(send, receive);
    };
    tokio::join!(serve, call);
}

#[tokio::test]
async fn either_side_may_go() {
    let mut house = House::open("a").await;
    let mut agent = running(&mut house, "a", 1).await.remove(0);
    for tool_goes in [true, false] {
        let serve = async {
            let request = agent.stream().await;
            agent.tunnel(request.stream_id).await.unwrap()
        };
        let (ends, (node_to, mut node_from)) = tokio::join!(open(&house, exec("web")), serve);
        let (to, mut from) = ends.unwrap();
        if tool_goes {
            drop((to, from));
            while let Ok(Some(_)) = soon(node_from.message()).await {}
            soon(node_to.closed()).await;
        } else {
            drop((node_to, node_from));
            // Its half was closed or reset, whichever the connection was told first.
            while soon(from.message()).await.unwrap().is_some() {}
            soon(to.closed()).await;
        }
    }
}

#[tokio::test]
async fn without_a_node_to_answer() {
    let mut house = House::open("a").await;
    let images = || open_stream::Kind::ImageList(v1::ImageList {});
    let refused = open(&house, images()).await.unwrap_err();
    assert_eq!(refused.message(), "no node is connected that could do this");
    let refused = open(&house, exec("web")).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::NotFound, "no service or task web"));

    let mut agent = running(&mut house, "a", 1).await.remove(0);
    let gone = async move {
        let request = agent.stream().await;
        agent.tunnel(request.stream_id).await.unwrap();
        // A stream is joined once.
        let again = agent.tunnel(request.stream_id).await.unwrap_err();
        assert_eq!(again.code(), Code::NotFound);
        agent.stream().await;
        drop(agent);
    };
    let calls = async {
        open(&house, images()).await.unwrap();
        // The agent goes instead of answering.
        open(&house, images()).await.unwrap_err()
    };
    let (refused, ()) = tokio::join!(calls, gone);
    assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "node host-a went away"));
}

/// The real clock, but long waits are short.
struct Impatient(RealClock);

impl Clock for Impatient {
    fn now_ms(&self) -> u64 {
        self.0.now_ms()
    }

    fn monotonic_ms(&self) -> u64 {
        self.0.monotonic_ms()
    }

    fn sleep_until(&self, at_ms: u64) -> warren_base::clock::Sleep {
        let now = self.monotonic_ms();
        self.0.sleep_until(now + (at_ms.saturating_sub(now)) / 50)
    }
}

#[tokio::test]
async fn an_agent_that_does_not_answer() {
    let house = House::with_clock("a", Arc::new(Impatient(RealClock::new()))).await;
    let _agent = Agent::join(&house, 'a').await;
    let refused = open(&house, open_stream::Kind::Doctor(v1::Doctor::default())).await.unwrap_err();
    let expected = "node host-a did not answer within 5 s";
    assert_eq!((refused.code(), refused.message()), (Code::Unavailable, expected));
}

#[tokio::test]
async fn logs_of_two_nodes_and_of_what_comes_later() {
    let mut house = House::open("ab").await;
    let mut agents = running(&mut house, "ab", 2).await;
    let (mut b, mut a) = (agents.pop().unwrap(), agents.pop().unwrap());
    let held = a.running();
    let serve = async {
        let (on_a, on_b) = (a.stream().await, async { b.stream().await });
        let a_ends = a.tunnel(on_a.stream_id).await.unwrap();
        let on_b = on_b.await;
        let b_ends = b.tunnel(on_b.stream_id).await.unwrap();
        let open_stream::Kind::Logs(logs) = on_a.open.unwrap().kind.unwrap() else { panic!() };
        assert_eq!(logs.tasks, held);
        (a_ends, b_ends)
    };
    let (ends, (a_ends, b_ends)) = tokio::join!(open(&house, logs("web", true)), serve);
    let (_to, mut from) = ends.unwrap();
    b_ends.0.send(line("from b")).await.unwrap();
    assert_eq!(text(soon(from.message()).await.unwrap()), "from b");
    a_ends.0.send(line("from a")).await.unwrap();
    assert_eq!(text(soon(from.message()).await.unwrap()), "from a");

    // Another replica: its lines are followed too.
    let update = v1::UpdateServiceRequest {
        service: "web".into(),
        spec: wish("web", 3).spec,
        no_check: true,
        ..Default::default()
    };
    house.control.update_service(update).await.unwrap();
    let request = tokio::select! { request = a.stream() => (request, true), request = b.stream() => (request, false) };
    let (request, on_a) = request;
    let agent = if on_a { &mut a } else { &mut b };
    let (to, _third) = agent.tunnel(request.stream_id).await.unwrap();
    to.send(line("from the third")).await.unwrap();
    assert_eq!(text(soon(from.message()).await.unwrap()), "from the third");
}

#[tokio::test]
async fn logs_end_with_their_nodes_and_tell_trouble_last() {
    let mut house = House::open("ab").await;
    let mut agents = running(&mut house, "ab", 2).await;
    let (mut b, mut a) = (agents.pop().unwrap(), agents.pop().unwrap());
    let serve = async {
        let request = a.stream().await;
        let on_a = a.tunnel(request.stream_id).await.unwrap();
        let request = b.stream().await;
        let on_b = b.tunnel(request.stream_id).await.unwrap();
        let error = v1::StreamError { code: 1, message: "disk gone".into(), hint: String::new() };
        finish(on_a, vec![Kind::Error(error)]).await;
        finish(on_b, vec![line("from b").kind.unwrap()]).await;
    };
    let (ends, ()) = tokio::join!(open(&house, logs("web", false)), serve);
    let (_to, mut from) = ends.unwrap();
    assert_eq!(text(soon(from.message()).await.unwrap()), "from b");
    assert!(text(soon(from.message()).await.unwrap()).contains("disk gone"));
    assert_eq!(text(soon(from.message()).await.unwrap()), "end");
}

/// Frames until no more fit: nobody reads them.
async fn flood(to: &mpsc::Sender<v1::Frame>, kind: fn(bytes::Bytes) -> Kind) {
    let chunk = bytes::Bytes::from(vec![b'x'; 32 << 10]);
    let full = std::time::Duration::from_millis(300);
    while let Ok(sent) = tokio::time::timeout(full, to.send(frame(kind(chunk.clone())))).await {
        sent.unwrap();
    }
}

#[tokio::test]
async fn who_does_not_read_holds_up_nobody_else() {
    let mut house = House::open("a").await;
    let mut agent = running(&mut house, "a", 1).await.remove(0);
    let mut kept = Vec::new();
    for _ in 0..3 {
        let serve = async {
            let request = agent.stream().await;
            agent.tunnel(request.stream_id).await.unwrap()
        };
        let (tool, node) = tokio::join!(open(&house, exec("web")), serve);
        let (tool, node) = (tool.unwrap(), node);
        flood(&tool.0, Kind::Stdin).await;
        flood(&node.0, Kind::Stdout).await;
        kept.push((tool, node));
    }
    house.create(wish("db", 1)).await.unwrap();
    agent.hold_until(|agent| agent.running().len() == 2).await;
    agent.report(&agent.running(), v1::TaskState::Running).await;
    let all = |view: &warren_state::State| view.tasks().all(|t| t.status.pid == 42);
    soon(house.until(all)).await;
}
