//! Agents that come, go, come twice, or do not say who they are.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use warren_base::clock::{Clock, ManualClock};
use warren_manager::{Caller, REMOVED_KEY};
use warren_model::node::NodeStatus;
use warren_proto::v1;
use warren_state::State;

use crate::agent::{Agent, hello};
use crate::house::{House, channel, node_id, peer, remote, soon, wish};

#[tokio::test]
async fn strangers_are_refused() {
    let house = House::open("a").await;
    let mut client = house.dispatch(remote(Some(peer('a')))).await;
    let (to, messages) = mpsc::channel(1);
    to.send(hello('z')).await.unwrap();
    let refused = soon(client.session(ReceiverStream::new(messages))).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let mut stranger = house.dispatch(remote(Some(peer('z')))).await;
    let (_to, messages) = mpsc::channel(1);
    let refused = soon(stranger.session(ReceiverStream::new(messages))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.metadata().contains_key(REMOVED_KEY));
    let (to, messages) = mpsc::channel(1);
    to.send(v1::AgentMessage { kind: None }).await.unwrap();
    let refused = soon(client.session(ReceiverStream::new(messages))).await.unwrap_err();
    assert_eq!(refused.message(), "a session begins with hello");
}

#[tokio::test]
async fn what_a_node_says_of_itself_is_kept() {
    let house = House::open("a").await;
    let mut client = house.dispatch(Caller::OwnAgent).await;
    let (to, messages) = mpsc::channel(1);
    let mut hello = hello('a');
    if let Some(v1::agent_message::Kind::Hello(hello)) = &mut hello.kind {
        hello.description.as_mut().unwrap().kernel = "6.18".into();
    }
    to.send(hello).await.unwrap();
    soon(client.session(ReceiverStream::new(messages))).await.unwrap();
    let view = house.store.view();
    assert_eq!(view.node(node_id('a')).unwrap().description.kernel, "6.18");
}

#[tokio::test]
async fn a_second_session_takes_over() {
    let mut house = House::open("a").await;
    let mut first = Agent::join(&house, 'a').await;
    let mut second = Agent::join(&house, 'a').await;
    assert_eq!(first.message().await.unwrap_err().code(), Code::Aborted);
    house.create(wish("web", 1)).await.unwrap();
    second.hold_until(|agent| agent.running().len() == 1).await;
}

#[tokio::test]
async fn a_lost_agent_finds_its_work_again() {
    let mut house = House::open("a").await;
    let mut agent = Agent::join(&house, 'a').await;
    house.create(wish("web", 3)).await.unwrap();
    agent.hold_until(|agent| agent.running().len() == 3).await;
    agent.report(&agent.running(), v1::TaskState::Running).await;
    let runs = |view: &State| view.tasks().filter(|t| t.status.pid == 42).count();
    house.until(|view| runs(view) == 3).await;
    let held = agent.running();
    drop(agent);
    let agent = Agent::join(&house, 'a').await;
    assert_eq!(agent.running(), held);
    let status = agent.tasks.values().next().unwrap().status.clone().unwrap();
    assert_eq!(status.state, i32::from(v1::TaskState::Running));
    // Repeating what is known costs nothing.
    let before = house.store.view().revision();
    agent.report(&held, v1::TaskState::Running).await;
    agent.report(&held[..1], v1::TaskState::Stopping).await;
    let view = house.until(|view| runs(view) == 3 && view.revision() > before).await;
    assert_eq!(view.revision(), before + 1);
}

#[tokio::test]
async fn only_the_nodes_own_tasks_are_believed() {
    let mut house = House::open("ab").await;
    let mut a = Agent::join(&house, 'a').await;
    let b = Agent::join(&house, 'b').await;
    house.create(wish("web", 2)).await.unwrap();
    a.hold_until(|agent| agent.running().len() == 1).await;
    let before = house.store.view().revision();
    b.report(&a.running(), v1::TaskState::Failed).await;
    b.report(&[vec![9; 10], vec![1]], v1::TaskState::Failed).await;
    a.report(&a.running(), v1::TaskState::Running).await;
    let view = house.until(|view| view.tasks().any(|t| t.status.pid == 42)).await;
    assert_eq!(view.revision(), before + 1);
}

#[tokio::test]
async fn stop_ends_everything() {
    let mut house = House::open("a").await;
    let mut agent = Agent::join(&house, 'a').await;
    let mut events = house.control.watch(v1::WatchRequest { after: 0 }).await.unwrap().into_inner();
    assert!(house.manager.stop(Duration::from_secs(5)).await);
    assert!(soon(events.message()).await.unwrap().is_none());
    while let Ok(Some(_)) = agent.message().await {}
}

#[tokio::test]
async fn the_socket_says_who_calls() {
    let house = House::open("a").await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let service = v1::control_server::ControlServer::new(house.manager.control());
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    tokio::spawn(warren_manager::server().add_service(service).serve_with_incoming(incoming));
    let socket = tokio::net::UnixStream::connect(&path).await.unwrap();
    let mut known = v1::control_client::ControlClient::new(channel(socket).await);
    soon(known.get_info(v1::GetInfoRequest {})).await.unwrap();

    let (ours, theirs) = tokio::io::duplex(1024);
    let service = v1::control_server::ControlServer::new(house.manager.control());
    let incoming = tokio_stream::once(Ok::<_, std::io::Error>(ours));
    tokio::spawn(warren_manager::server().add_service(service).serve_with_incoming(incoming));
    let mut unknown = v1::control_client::ControlClient::new(channel(theirs).await);
    let refused = soon(unknown.get_info(v1::GetInfoRequest {})).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

/// Moves the clock until the state is as wanted.
async fn as_time_goes(house: &House, clock: &ManualClock, reached: impl Fn(&State) -> bool) {
    let moving = async {
        while !reached(&house.store.view()) {
            clock.advance(10);
            tokio::task::yield_now().await;
        }
    };
    soon(moving).await;
}

#[tokio::test]
async fn a_silent_node_is_down_until_it_is_heard_again() {
    let clock = ManualClock::at(1_000_000);
    let house = House::with_clock("a", Arc::new(clock.clone())).await;
    let agent = Agent::join(&house, 'a').await;
    let status = |view: &State| view.node(node_id('a')).unwrap().status;
    drop(agent);
    as_time_goes(&house, &clock, |view| status(view) == NodeStatus::Down).await;
    assert!(clock.now_ms() >= 1_000_000 + warren_planner::SUSPICION_MS);
    let _agent = Agent::join(&house, 'a').await;
    soon(house.until(|view| status(view) == NodeStatus::Ready)).await;
}

#[tokio::test]
async fn beats_are_answered_and_keep_a_node_ready() {
    let clock = ManualClock::at(1_000_000);
    let house = House::with_clock("ab", Arc::new(clock.clone())).await;
    let mut a = Agent::join(&house, 'a').await;
    let b = Agent::join(&house, 'b').await;
    let status = |view: &State, letter| view.node(node_id(letter)).unwrap().status;
    let beating = async {
        let mut number = 0;
        while status(&house.store.view(), 'b') == NodeStatus::Ready {
            number += 1;
            assert_eq!(a.beat(number, 3).await, number);
            clock.advance(100);
            tokio::task::yield_now().await;
        }
    };
    soon(beating).await;
    // The session alone says nothing: only what is heard does.
    assert_eq!(status(&house.store.view(), 'a'), NodeStatus::Ready);
    drop(b);
}

#[tokio::test]
async fn a_node_is_told_of_the_cluster_and_of_itself() {
    let house = House::open("ab").await;
    let mut b = Agent::join(&house, 'b').await;
    let membership = &b.membership;
    assert_eq!(membership.managers, ["10.0.0.97:2377"]);
    assert!(!membership.manager && membership.worker && membership.number.is_none());
    assert_eq!((membership.beat_ms, membership.authorities.len()), (500, 1));
    assert_eq!(membership.issuer_hash.len(), 32);
    // Neither keys nor tokens.
    let revision = b.revision;
    let mut control = house.control.clone();
    let ask = v1::GetJoinTokenRequest::default();
    soon(control.get_join_token(ask)).await.unwrap();
    let promote =
        v1::UpdateNodeRequest { node: "host-b".into(), manager: Some(true), ..Default::default() };
    let changed = soon(control.update_node(promote)).await.unwrap();
    assert!(changed.metadata().get(warren_manager::WARNING_KEY).is_some());
    b.hold_until(|agent| agent.membership.manager).await;
    assert_eq!(b.membership.number, Some(2));
    assert_eq!(b.membership.managers, ["10.0.0.97:2377", "10.0.0.98:2377"]);
    assert!(b.revision > revision);
}

#[tokio::test]
async fn two_machines_with_one_identity_are_told() {
    let house = House::open("a").await;
    let mut first = Agent::join(&house, 'a').await;
    first.beat(1, 0).await;
    let mut client = house.dispatch(remote(Some(peer('a')))).await;
    let (to, messages) = mpsc::channel(1);
    let mut hello = hello('a');
    if let Some(v1::agent_message::Kind::Hello(hello)) = &mut hello.kind {
        hello.instance = 2;
    }
    to.send(hello).await.unwrap();
    let refused = soon(client.session(ReceiverStream::new(messages))).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert!(refused.message().contains("from 10.0.0.9:4000 already"), "{}", refused.message());
    assert_eq!(first.beat(2, 0).await, 2);
}

#[tokio::test]
async fn managers_that_know_less_than_the_node_refuse() {
    let house = House::open("a").await;
    let mut client = house.dispatch(Caller::OwnAgent).await;
    let mut ask = async |epoch, assigned_revision| {
        let mut hello = hello('a');
        if let Some(v1::agent_message::Kind::Hello(hello)) = &mut hello.kind {
            (hello.epoch, hello.assigned_revision) = (epoch, assigned_revision);
        }
        let (to, messages) = mpsc::channel(1);
        to.send(hello).await.unwrap();
        soon(client.session(ReceiverStream::new(messages))).await.map(drop)
    };
    let refused = ask(1, 0).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("recovery epoch 0"), "{}", refused.message());
    let refused = ask(0, 1_000_000).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("not yet at 1000000"), "{}", refused.message());
    ask(0, house.store.view().revision()).await.unwrap();
}
