//! Several managers: any of them serves, the leader decides, some go away.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use warren_model::node::NodeStatus;
use warren_proto::v1;
use warren_proto::v1::frame::Kind;
use warren_proto::v1::open_stream;

use crate::agent::{Agent, finish};
use crate::house::{hint, node_id, soon, wish};
use crate::town::{Home, Town, moment};

/// The state of one manager, once it is as wanted.
async fn until(home: &Home, reached: impl Fn(&warren_state::State) -> bool) {
    let mut moved = home.store.watch();
    soon(async {
        while !reached(&home.store.view()) {
            moved.changed().await.unwrap();
        }
    })
    .await;
}

fn is_ready(view: &warren_state::State, letter: char) -> bool {
    view.node(node_id(letter)).is_some_and(|node| node.status == NodeStatus::Ready)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_form_and_all_of_them_say_the_same() {
    let town = Town::of(3).await;
    let leader = town.leader().await.node;
    for home in &town.homes {
        let request = v1::ListNodesRequest { linearizable: true, ..Default::default() };
        let listed = soon(home.control.clone().list_nodes(request)).await.unwrap().into_inner();
        assert_eq!(listed.stale_ms, 0);
        let parts: Vec<&str> = listed.nodes.iter().map(|n| n.reachability.as_str()).collect();
        assert_eq!(parts, ["voter"; 3]);
        let leads: Vec<&[u8]> =
            listed.nodes.iter().filter(|n| n.leader).map(|n| n.id.as_slice()).collect();
        assert_eq!(leads, [leader.as_bytes()]);
        let info = soon(home.control.clone().get_info(v1::GetInfoRequest {})).await.unwrap();
        let info = info.into_inner();
        assert_eq!((info.managers, info.managers_reachable), (3, 3));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_serves_nodes_and_people() {
    let town = Town::of(3).await;
    let worker = town.join('w', false).await;
    let follower = town.follower().await;
    let client = town.dispatch(follower, &worker).await;
    let mut agent = Agent::connect(client, 'w').await;
    agent.beat(1, 2).await;
    until(follower, |view| is_ready(view, 'w')).await;
    // Written at the follower, planned by the leader, told by the follower.
    let changed = soon(follower.control.clone().create_service(wish("web", 1))).await.unwrap();
    let revision = changed.into_inner().revision;
    assert!(follower.store.view().revision() >= revision);
    agent.hold_until(|agent| agent.running().len() == 1).await;
    agent.report(&agent.running(), v1::TaskState::Running).await;
    until(follower, |view| view.tasks().any(|task| task.status.pid == 42)).await;
    assert_eq!(agent.membership.managers.len(), 3);

    // Somebody at a third manager executes something there.
    let other = town.homes.iter().find(|home| home.number != follower.number).unwrap();
    let (to, frames) = mpsc::channel(4);
    let args = vec!["cat".to_owned()];
    let exec = v1::Exec { target: "web".into(), args, ..Default::default() };
    let open = v1::OpenStream { node: Vec::new(), kind: Some(open_stream::Kind::Exec(exec)) };
    to.send(v1::Frame { kind: Some(Kind::Open(open)) }).await.unwrap();
    let mut control = other.control.clone();
    let call = tokio::spawn(async move { control.stream(ReceiverStream::new(frames)).await });
    let request = agent.stream().await;
    let (to_manager, mut from_manager) = agent.tunnel(request.stream_id).await.unwrap();
    let mut from = soon(call).await.unwrap().unwrap().into_inner();
    to.send(v1::Frame { kind: Some(Kind::Stdin(b"ping".to_vec().into())) }).await.unwrap();
    let heard = soon(from_manager.message()).await.unwrap().unwrap();
    assert!(matches!(heard.kind, Some(Kind::Stdin(bytes)) if bytes[..] == *b"ping"));
    to_manager.send(v1::Frame { kind: Some(Kind::Stdout(b"pong".to_vec().into())) }).await.unwrap();
    let heard = soon(from.message()).await.unwrap().unwrap();
    assert!(matches!(heard.kind, Some(Kind::Stdout(bytes)) if bytes[..] == *b"pong"));
    let ended = tokio::spawn(finish((to_manager, from_manager), vec![Kind::ExitCode(3)]));
    let heard = soon(from.message()).await.unwrap().unwrap();
    assert!(matches!(heard.kind, Some(Kind::ExitCode(3))));
    assert!(soon(from.message()).await.unwrap().is_none());
    soon(ended).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_leader_lets_its_nodes_go_and_another_hears_them() {
    let town = Town::of(3).await;
    let worker = town.join('w', false).await;
    let old = town.leader().await;
    let mut agent = Agent::connect(town.dispatch(old, &worker).await, 'w').await;
    agent.beat(1, 0).await;
    until(old, |view| is_ready(view, 'w')).await;
    town.cut(old.number);
    let cut_at = Instant::now();
    let ended = loop {
        if let Err(status) = agent.message().await {
            break status;
        }
    };
    assert_eq!(ended.code(), Code::Unavailable, "{}", ended.message());
    assert!(cut_at.elapsed() < Duration::from_secs(4), "{:?}", cut_at.elapsed());
    // It takes none back, and marks what it reads.
    let mut client = town.dispatch(old, &worker).await;
    let (to, messages) = mpsc::channel(1);
    to.send(crate::agent::hello('w')).await.unwrap();
    let refused = soon(client.session(ReceiverStream::new(messages))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let mut control = old.control.clone();
    let listed = soon(control.list_nodes(v1::ListNodesRequest::default())).await.unwrap();
    assert!(listed.into_inner().stale_ms >= 1000);
    // Nothing is written without a majority, and it is told in time.
    let begun = Instant::now();
    let refused = soon(control.create_service(wish("x", 1))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(!hint(&refused).is_empty());
    // The others go on, with the node at one of them.
    let leader = town.leader().await;
    let follower = town
        .homes
        .iter()
        .find(|home| home.number != old.number && home.number != leader.number)
        .unwrap();
    let mut agent = Agent::connect(town.dispatch(follower, &worker).await, 'w').await;
    agent.beat(1, 0).await;
    soon(follower.control.clone().create_service(wish("web", 1))).await.unwrap();
    agent.hold_until(|agent| agent.running().len() == 1).await;
    town.mend();
    until(old, |view| view.service_by_name("web").is_some()).await;
}

fn demote(letter: char) -> v1::UpdateNodeRequest {
    v1::UpdateNodeRequest {
        node: format!("host-{letter}"),
        manager: Some(false),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn managers_are_demoted_replaced_and_kept_when_they_are_needed() {
    let mut town = Town::of(3).await;
    // Two of three are needed: with one away, no other may go.
    let follower = town.follower().await;
    let (away, letter) = (follower.number, follower.node.as_bytes()[0]);
    town.cut(away);
    let leader = town.leader().await;
    let other =
        town.homes.iter().find(|home| home.number != away && home.number != leader.number).unwrap();
    let mut control = leader.control.clone();
    let other_letter = char::from(other.node.as_bytes()[0]);
    let refused = soon(control.update_node(demote(other_letter))).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let why = "2 managers, of which 1 can be reached and 2 are needed";
    assert!(refused.message().contains(why), "{}", refused.message());
    // The one that is away may: first out of the voters, then out of the cluster.
    let away_letter = char::from(letter);
    soon(control.update_node(demote(away_letter))).await.unwrap();
    town.until_voters(2).await;
    let remove = v1::RemoveNodeRequest {
        node: format!("host-{away_letter}"),
        force: true,
        ..Default::default()
    };
    soon(control.remove_node(remove)).await.unwrap();
    // And another takes its place, with a number of its own.
    town.homes.retain(|home| home.number != away);
    town.settle('d').await;
    town.until_voters(3).await;
    let status = town.leader().await.store.status();
    assert!(!status.voters.contains_key(&away), "{:?}", status.voters);
    assert!(status.voters.contains_key(&4), "{:?}", status.voters);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_is_lost_is_removed_at_once() {
    let town = Town::of(3).await;
    let follower = town.follower().await;
    let (gone, letter) = (follower.number, char::from(follower.node.as_bytes()[0]));
    let mut control = town.leader().await.control.clone();
    let remove = |force| v1::RemoveNodeRequest {
        node: format!("host-{letter}"),
        force,
        ..Default::default()
    };
    // It answers: force does not help.
    let refused = soon(control.remove_node(remove(true))).await.unwrap_err();
    let demote = format!("demote it first: warren node demote host-{letter}");
    assert_eq!(hint(&refused), demote);
    town.cut(gone);
    let refused = soon(control.remove_node(remove(false))).await.unwrap_err();
    assert_eq!(hint(&refused), format!("{demote}; or add --force"));
    // What was under way when somebody went away may have been lost: it is asked for again.
    let mut asked = soon(control.remove_node(remove(true))).await;
    while asked.as_ref().is_err_and(|status| status.code() == Code::Unavailable) {
        let mut control = town.leader().await.control.clone();
        asked = soon(control.remove_node(remove(true))).await;
    }
    assert!(asked.is_ok_and(|changed| changed.get_ref().revision > 0));
    town.until_voters(2).await;
    let leader = town.leader().await;
    assert!(leader.store.view().node(follower.node).is_none());
    // Of two that are left one is away: the other is not enough to go on without it.
    let other =
        town.homes.iter().find(|home| home.number != gone && home.number != leader.number).unwrap();
    town.cut(other.number);
    let request = v1::RemoveNodeRequest {
        node: format!("host-{}", char::from(other.node.as_bytes()[0])),
        force: true,
        ..Default::default()
    };
    let refused = soon(control.remove_node(request)).await.unwrap_err();
    assert_ne!(refused.code(), Code::Ok);
    assert!(leader.store.view().node(other.node).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_demoted_and_hands_over() {
    let town = Town::of(3).await;
    let old = town.leader().await;
    let letter = char::from(old.node.as_bytes()[0]);
    soon(old.control.clone().update_node(demote(letter))).await.unwrap();
    let moved = async {
        loop {
            let leader = town.leader().await;
            if leader.number != old.number && leader.store.status().voters.len() == 2 {
                return;
            }
            moment().await;
        }
    };
    soon(moved).await;
    town.until_voters(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_leaves() {
    let town = Town::of(3).await;
    let old = town.leader().await;
    let leave = v1::LeaveClusterRequest { force: false };
    let mut lines = soon(old.control.clone().leave_cluster(leave)).await.unwrap().into_inner();
    let mut messages = Vec::new();
    loop {
        let line = soon(lines.message()).await.unwrap().unwrap();
        messages.push(line.message);
        if line.done {
            break;
        }
    }
    assert_eq!(messages, ["leaving the managers", "left"]);
    let stopped = async {
        while old.stops.load(Ordering::SeqCst) == 0 {
            moment().await;
        }
    };
    soon(stopped).await;
    let there = town.homes.iter().find(|home| home.number != old.number).unwrap();
    until(there, |view| view.node(old.node).is_none() && view.nodes().len() == 2).await;
    // Whatever it asks from now on, it hears that it is out.
    let mut as_old = town.control_as(there, &old.card()).await;
    let refused = soon(as_old.get_info(v1::GetInfoRequest {})).await.unwrap_err();
    assert!(refused.metadata().contains_key(warren_manager::REMOVED_KEY));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_keys_of_all_managers_are_rotated() {
    let town = Town::of(3).await;
    let follower = town.follower().await;
    let rotate = || v1::RotateDataKeyRequest {};
    soon(follower.control.clone().rotate_data_key(rotate())).await.unwrap();
    let leader = town.leader().await;
    town.cut(leader.number);
    let refused = soon(follower.control.clone().rotate_data_key(rotate())).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("some managers keep"), "{}", refused.message());
}
