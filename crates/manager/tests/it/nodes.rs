//! What people do to nodes, and nodes that leave.

use tonic::Code;
use warren_manager::REMOVED_KEY;
use warren_model::node::{Availability, NodeStatus};
use warren_proto::v1;

use crate::agent::Agent;
use crate::house::{House, hint, node_id, peer, remote, soon, wish};

fn update(node: &str) -> v1::UpdateNodeRequest {
    v1::UpdateNodeRequest { node: node.into(), ..Default::default() }
}

#[tokio::test]
async fn labels_and_availability() {
    let house = House::open("ab").await;
    let mut control = house.control.clone();
    let request = v1::UpdateNodeRequest {
        availability: v1::Availability::Drain.into(),
        labels_add: [("disk".to_owned(), "ssd".to_owned())].into(),
        request_id: vec![1; 16],
        ..update("host-b")
    };
    let first = soon(control.update_node(request.clone())).await.unwrap().into_inner();
    let again = soon(control.update_node(request)).await.unwrap().into_inner();
    assert_eq!((first.ids, first.revision), (again.ids, again.revision));
    let view = house.store.view();
    let node = view.node(node_id('b')).unwrap();
    assert_eq!((node.availability, node.labels["disk"].as_str()), (Availability::Drain, "ssd"));
    let refused = soon(control.update_node(update("host-z"))).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let nodes = soon(control.list_nodes(v1::ListNodesRequest::default())).await.unwrap();
    let shown: Vec<(bool, String)> =
        nodes.into_inner().nodes.into_iter().map(|n| (n.leader, n.reachability)).collect();
    assert_eq!(shown, [(true, "voter".to_owned()), (false, String::new())]);
    let info = soon(control.get_info(v1::GetInfoRequest {})).await.unwrap().into_inner();
    assert_eq!((info.managers, info.managers_reachable, info.stale_ms), (1, 1, 0));
    assert_eq!(info.leader, node_id('a').as_bytes());
}

#[tokio::test]
async fn the_only_manager_stays() {
    let house = House::open("ab").await;
    let mut control = house.control.clone();
    let demote = v1::UpdateNodeRequest { manager: Some(false), ..update("host-a") };
    let refused = soon(control.update_node(demote)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(refused.message(), "node host-a is the only manager");
    let remove = v1::RemoveNodeRequest { node: "host-a".into(), force: true, ..Default::default() };
    let refused = soon(control.remove_node(remove)).await.unwrap_err();
    assert_eq!(hint(&refused), "demote it first: warren node demote host-a");
    let leave = v1::LeaveClusterRequest { force: true };
    let refused = soon(control.leave_cluster(leave)).await.unwrap_err();
    assert_eq!(refused.message(), "node host-a is the only manager");
}

#[tokio::test]
async fn tasks_of_a_node_that_is_down_are_not_counted_and_say_so() {
    let mut house = House::open("a").await;
    let mut control = house.control.clone();
    let mut agent = Agent::join(&house, 'a').await;
    house.create(wish("web", 1)).await.unwrap();
    agent.hold_until(|agent| agent.running().len() == 1).await;
    agent.report(&agent.running(), v1::TaskState::Running).await;
    house.until(|view| view.tasks().any(|task| task.status.pid == 42)).await;
    drop(agent);
    house.until(|view| view.node(node_id('a')).unwrap().status == NodeStatus::Down).await;
    let tasks = soon(control.list_tasks(v1::ListTasksRequest::default())).await.unwrap();
    let tasks = tasks.into_inner().tasks;
    let shown: Vec<(v1::NodeStatus, u32)> = tasks
        .iter()
        .map(|task| (task.node_status(), task.status.as_ref().map_or(0, |status| status.pid)))
        .collect();
    assert_eq!(shown, [(v1::NodeStatus::Down, 42)]);
    let services = soon(control.list_services(v1::ListServicesRequest::default())).await.unwrap();
    assert_eq!(services.into_inner().services[0].running, 0);
}

#[tokio::test]
async fn removal_ends_the_session_for_good() {
    let house = House::open("ab").await;
    let mut control = house.control.clone();
    let mut agent = Agent::join(&house, 'b').await;
    house.until(|view| view.node(node_id('b')).unwrap().status == NodeStatus::Ready).await;
    let mut remove = v1::RemoveNodeRequest { node: "host-b".into(), ..Default::default() };
    let refused = soon(control.remove_node(remove.clone())).await.unwrap_err();
    assert_eq!(refused.message(), "node host-b is ready");
    (remove.force, remove.request_id) = (true, vec![2; 16]);
    let first = soon(control.remove_node(remove.clone())).await.unwrap().into_inner();
    let ended = loop {
        if let Err(status) = agent.message().await {
            break status;
        }
    };
    assert_eq!(ended.code(), Code::Unauthenticated);
    assert_eq!(ended.metadata().get(REMOVED_KEY).unwrap(), "1");
    let again = soon(control.remove_node(remove)).await.unwrap().into_inner();
    assert_eq!(again.revision, first.revision);
}

#[tokio::test]
async fn a_worker_leaves_once_its_tasks_have_moved() {
    let mut house = House::open("ab").await;
    let mut a = Agent::join(&house, 'a').await;
    let mut b = Agent::join(&house, 'b').await;
    house.create(wish("web", 2)).await.unwrap();
    for agent in [&mut a, &mut b] {
        agent.hold_until(|agent| agent.running().len() == 1).await;
        agent.report(&agent.running(), v1::TaskState::Running).await;
    }
    house.until(|view| view.tasks().filter(|task| task.status.pid == 42).count() == 2).await;
    let mut as_b = house.control_as(remote(Some(peer('b')))).await;
    let leave = v1::LeaveClusterRequest { force: false };
    let mut lines = soon(as_b.leave_cluster(leave)).await.unwrap().into_inner();
    let line = soon(lines.message()).await.unwrap().unwrap();
    assert_eq!((line.message.as_str(), line.done), ("1 task to move", false));
    let old = b.running();
    a.hold_until(|agent| agent.running().len() == 2).await;
    a.report(&a.running(), v1::TaskState::Running).await;
    b.hold_until(|agent| agent.running().is_empty()).await;
    b.report(&old, v1::TaskState::Complete).await;
    let last = soon(lines.message()).await.unwrap().unwrap();
    assert!(last.done, "{last:?}");
    assert!(house.store.view().node(node_id('b')).is_none());
    // It stops itself; this manager goes on.
    assert_eq!(house.stops.load(std::sync::atomic::Ordering::SeqCst), 0);
    let audit = soon(house.control.list_audit(v1::ListAuditRequest::default())).await.unwrap();
    let by_b = format!("node:{}", node_id('b'));
    let actions: Vec<String> = audit
        .into_inner()
        .records
        .into_iter()
        .filter(|record| record.principal == by_b)
        .map(|record| record.action)
        .collect();
    assert_eq!(actions, ["node.update", "node.remove"]);
}
