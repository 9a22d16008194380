//! What becomes of the node's table: addresses, rules, ports of the mesh, names.

use std::net::{IpAddr, Ipv6Addr};

use warren_model::cluster::{Cluster, Subnet};
use warren_model::node_table::{
    NodeTable, Peer, TableAttachment, TableNetwork, TableService, TableTask,
};
use warren_model::{ClusterId, NetworkId};
use warren_net::dns::Upstream;
use warren_net::{Frontend, Table};

use super::*;

const CLUSTER: ClusterId = ClusterId::from_bytes([1; 10]);
const RUN: Desired = Desired::Running;
/// The node under test, and another one.
const HERE: u8 = 9;
const THERE: u8 = 8;

fn network(n: u8) -> NetworkId {
    NetworkId::from_bytes([n; 10])
}

/// The service of [`Wish`] on networks, and another one with a port of the mesh; its task is
/// elsewhere.
fn table(on: &[u8], internal: bool) -> NodeTable {
    let mut table = NodeTable { cluster: Some(CLUSTER), ..NodeTable::default() };
    for (node, host) in [(HERE, "192.0.2.9"), (THERE, "m8.test")] {
        let block = Subnet { address: [10, 128, node - HERE.min(THERE), 0].into(), prefix: 24 };
        let peer = Peer {
            number: node.into(),
            underlay: host.into(),
            blocks: vec![block],
            overlay_key: [0; 32],
            overlay_key_other: [0; 32],
            overlay_port: 0,
            name: String::new(),
        };
        table.peers.insert(NodeId::from_bytes([node; 10]), Arc::new(peer));
    }
    for n in on {
        let spec = TableNetwork {
            name: format!("net-{n}").parse().unwrap(),
            internal,
            attachable: false,
            encrypted: false,
            subnet_v6: None,
        };
        table.networks.insert(network(*n), Arc::new(spec));
    }
    let task = |n: u8, node: u8, ready| TableTask {
        task: task_id(n),
        slot: n.into(),
        address: address(n),
        node: NodeId::from_bytes([node; 10]),
        weight: TableTask::WEIGHT,
        ready,
    };
    let on = on.iter().map(|n| TableAttachment {
        network: network(*n),
        aliases: vec![],
        vip: Some([10, 192, 0, *n].into()),
        slots: vec![],
    });
    let service = |name: &str, on: Vec<TableAttachment>, ports, tasks| TableService {
        name: name.parse().unwrap(),
        on,
        endpoint: warren_model::service::Endpoint::default(),
        ports,
        hostname: None,
        tasks,
    };
    let own = service("web", on.collect(), vec![], vec![task(1, HERE, false)]);
    table.services.insert(service_id(), Arc::new(own));
    let mesh = vec![port(8080, PublishMode::Ingress)];
    let other = service("api", vec![], mesh, vec![task(5, THERE, true)]);
    table.services.insert(ServiceId::from_bytes([201; 10]), Arc::new(other));
    table
}

fn with(wish: &Wish, table: &NodeTable) -> v1::Assignment {
    v1::Assignment {
        cluster: Some(v1::Cluster::settings_only(&Cluster::new(CLUSTER))),
        network: Some((&table.whole()).into()),
        ..wish.complete()
    }
}

/// Waits until the kernel's table is as told.
async fn until(bench: &Bench, fits: impl Fn(&Table) -> bool) -> Table {
    let mut tables = bench.network.table();
    patiently(async { tables.wait_for(|table| fits(table)).await.unwrap().clone() }).await
}

fn mesh(table: &Table) -> Vec<(u16, Vec<IpAddr>)> {
    let services = table.services.iter().filter_map(|service| {
        let Frontend::Published { port, .. } = service.frontends[0] else { return None };
        Some((port, service.backends.iter().map(|backend| backend.address).collect()))
    });
    services.collect()
}

#[tokio::test(start_paused = true)]
async fn containers_have_both_addresses_and_ask_for_names() {
    let mut bench = Bench::new().await;
    let mut session = bench.session().await;
    let wish = Wish::new().at(1, 1).task(1, RUN);
    session.send(with(&wish, &table(&[3], true))).await;
    session.until(task_id(1), TaskState::Running, 1).await;
    let addresses = bench.network.attached()[&task_id(1).to_string()];
    let v6: Ipv6Addr = "fd01:101:101::a80:1".parse().unwrap();
    assert_eq!((addresses.v4, addresses.v6), (address(1), Some(v6)));
    let spec = bench.runtime.spec(&format!("{}.1", task_id(1)));
    let file = |name: &str| {
        let file = spec.files.iter().find(|file| file.target == name).unwrap();
        String::from_utf8(file.data.clone()).unwrap()
    };
    assert!(file("/etc/resolv.conf").starts_with("nameserver 169.254.1.1\nsearch warren.internal"));
    assert!(file("/etc/hosts").contains("fd01:101:101::a80:1\t"));
    let admitted = bench.names.admitted();
    let asker = admitted.borrow()[&task_id(1)].clone();
    assert_eq!((&asker.networks[..], asker.addresses), (&[network(3)][..], addresses));
    assert_eq!(asker.upstream, Upstream::Nobody, "an internal network leads nowhere");

    // Its service joins another network.
    let wish = wish.at(1, 2);
    session.send(with(&wish, &table(&[3, 4], false))).await;
    let mut admitted = bench.names.admitted();
    let changed = |all: &BTreeMap<TaskId, crate::Asker>| {
        all.get(&task_id(1)).is_some_and(|asker| asker.networks.len() == 2)
    };
    let asker = patiently(admitted.wait_for(changed)).await.unwrap()[&task_id(1)].clone();
    assert_eq!(asker.upstream, Upstream::Host);
    bench.clock_at(6_000).await;

    // Another process knows at once who asks.
    bench.kill();
    drop(session);
    bench.names = Arc::default();
    bench.start().await;
    assert_eq!(bench.names.admitted().borrow()[&task_id(1)], asker);
    let mut session = bench.session().await;
    let wish = wish.at(1, 3).task(1, Desired::Shutdown);
    session.send(with(&wish, &table(&[3, 4], false))).await;
    session.until(task_id(1), TaskState::Complete, 1).await;
    assert!(bench.names.admitted().borrow().is_empty(), "who is gone asks no more");
}

#[tokio::test(start_paused = true)]
async fn nothing_starts_that_could_not_ask() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    bench.names.refuse(Some("no room"));
    session.send(with(&Wish::new().task(1, RUN), &table(&[3], false))).await;
    let failed = |status: &TaskStatus| status.error.is_some();
    let status = session.until_status(task_id(1), failed).await;
    assert_eq!(status.error.as_deref(), Some("names: no room"));
    assert!(bench.runtime.running().is_empty());
    bench.names.refuse(None);
    session.until(task_id(1), TaskState::Running, 1).await;
}

#[tokio::test(start_paused = true)]
async fn the_kernel_has_what_follows_from_both() {
    let bench = Bench::new().await;
    bench.hosts.put("m8.test", &["192.0.2.8".parse().unwrap()]);
    let mut session = bench.session().await;
    session.send(with(&Wish::new().task(1, RUN), &table(&[3], false))).await;
    session.until(task_id(1), TaskState::Running, 1).await;
    let peers = |table: &Table| table.overlay.as_ref().map_or(0, |overlay| overlay.peers.len());
    let held = until(&bench, |table| peers(table) == 1).await;
    let overlay = held.overlay.clone().unwrap();
    assert_eq!(overlay.peers[0].underlay.to_string(), "192.0.2.8");
    assert_eq!(overlay.own.inner.to_string(), "10.128.1.0");
    // Before managers know that it serves, its virtual IP leads to it here.
    let vip = held.services.iter().find(|s| matches!(s.frontends[0], Frontend::Address(_)));
    let backends: Vec<String> =
        vip.unwrap().backends.iter().map(|backend| backend.address.to_string()).collect();
    assert_eq!(backends, ["10.128.0.1", "fd01:101:101::a80:1"]);
    let groups = held.networks.unwrap().groups;
    assert_eq!(
        (groups.len(), groups.iter().next().unwrap().networks.len()),
        (1, 1),
        "api is on no network of ours"
    );
}

#[tokio::test(start_paused = true)]
async fn a_port_of_the_mesh_is_not_taken_from_a_process_of_the_host() {
    let bench = Bench::new().await;
    bench.network.take_port(8080, Some("nginx (pid 7)"));
    bench.hosts.put("m8.test", &["192.0.2.8".parse().unwrap()]);
    let mut session = bench.session().await;
    session.send(with(&Wish::new().task(1, RUN), &table(&[3], false))).await;
    session.until(task_id(1), TaskState::Running, 1).await;
    assert_eq!(mesh(&until(&bench, |table| table.overlay.is_some()).await), []);
    bench.network.take_port(8080, None);
    let held = until(&bench, |table| mesh(table).iter().any(|(_, backends)| !backends.is_empty()));
    let backends = vec![address(5).into(), "fd01:101:101::a80:5".parse().unwrap()];
    assert_eq!(mesh(&held.await), [(8080, backends)]);
}

#[tokio::test(start_paused = true)]
async fn a_port_that_other_nodes_answer_is_not_waited_for() {
    let bench = Bench::new().await;
    bench.network.take_port(8080, Some("nginx (pid 7)"));
    bench.hosts.put("m8.test", &["192.0.2.8".parse().unwrap()]);
    let published = [port(8080, PublishMode::Ingress)];
    let mut alone = table(&[3], false);
    let web = Arc::make_mut(alone.services.get_mut(&service_id()).unwrap());
    web.ports = published.to_vec();
    alone.services = alone.services.into_iter().filter(|(id, _)| *id == service_id()).collect();
    let others = alone.clone();
    alone.peers.retain(|id, _| *id == NodeId::from_bytes([HERE; 10]));
    let mut session = bench.session().await;
    let wish = Wish::new().task(1, RUN).ports(&published);
    session.send(with(&wish, &alone)).await;
    let waits = |status: &TaskStatus| status.error.is_some();
    let status = session.until_status(task_id(1), waits).await;
    let why = "port 8080/tcp on 0.0.0.0 is taken by nginx (pid 7)";
    assert_eq!((status.state, status.error.as_deref()), (TaskState::Preparing, Some(why)));
    session.send(with(&wish.at(1, 2), &others)).await;
    session.until(task_id(1), TaskState::Running, 1).await;
}

#[tokio::test(start_paused = true)]
async fn what_other_nodes_lead_to_takes_connections_a_little_longer() {
    let bench = Bench::new().await;
    bench.hosts.put("m8.test", &["192.0.2.8".parse().unwrap()]);
    let mut session = bench.session().await;
    let wish = Wish::new().at(1, 1).task(1, RUN);
    session.send(with(&wish, &table(&[3], false))).await;
    session.until(task_id(1), TaskState::Running, 1).await;
    until(&bench, |table| table.overlay.as_ref().is_some_and(|o| o.peers.len() == 1)).await;
    let asked = bench.mono();
    let wish = wish.at(1, 2).task(1, Desired::Shutdown);
    session.send(with(&wish, &table(&[3], false))).await;
    // Here nothing leads to it any more, and it runs. Nobody says how far others are.
    until(&bench, |table| !leads(table)).await;
    assert_eq!(bench.runtime.running().len(), 1);
    session.until(task_id(1), TaskState::Complete, 1).await;
    assert!((150..1000).contains(&(bench.mono() - asked)), "{}", bench.mono() - asked);
}

fn leads(table: &Table) -> bool {
    let mut backends = table.services.iter().flat_map(|service| &service.backends);
    backends.any(|backend| backend.local && backend.weight > 0)
}

#[tokio::test(start_paused = true)]
async fn what_stops_waits_until_others_lead_nothing_to_it() {
    let bench = Bench::new().await;
    bench.manager.parted(1);
    bench.hosts.put("m8.test", &["192.0.2.8".parse().unwrap()]);
    let mut session = bench.session().await;
    let wish = Wish::new().at(1, 1).task(1, RUN).task(2, RUN);
    let mut table = table(&[3], false);
    let web = Arc::make_mut(table.services.get_mut(&service_id()).unwrap());
    web.tasks.push(TableTask { task: task_id(2), slot: 2, address: address(2), ..web.tasks[0] });
    session.send(with(&wish, &table)).await;
    session.until(task_id(1), TaskState::Running, 1).await;
    let wish = wish.at(1, 7).task(1, Desired::Shutdown).task(2, Desired::Shutdown);
    session.send(with(&wish, &table)).await;
    until(&bench, |table| !leads(table)).await;
    // This node has said so itself.
    let leaving = |s: &TaskStatus| matches!(s.state, TaskState::Draining | TaskState::Stopping);
    session.until_status(task_id(1), leaving).await;
    assert_eq!(*session.through.borrow(), 7);
    bench.clock_at(bench.mono() + 1_000).await;
    assert_eq!(bench.runtime.running().len(), 2);
    let asked = bench.mono();
    bench.manager.parted(7);
    let mut left = std::collections::BTreeSet::from([task_id(1), task_id(2)]);
    while !left.is_empty() {
        let complete = |(_, status): &(_, TaskStatus)| status.state == TaskState::Complete;
        session
            .report()
            .await
            .into_iter()
            .filter(complete)
            .for_each(|(id, _)| left.retain(|task| *task != id));
    }
    assert!(bench.mono() - asked < 150, "{}", bench.mono() - asked);
}
