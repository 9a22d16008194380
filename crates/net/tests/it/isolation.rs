//! Networks and policies, probed pair by pair from inside containers.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use warren_net::{
    Action, Carrier, Clause, Direction, Frontend, Group, Networks, Peers, Policy, PortRange,
    Protocol, Table,
};

use crate::cluster::{Cluster, Pod, name_server_of, on_cluster, service, vip};
use crate::world::{Server, pings, tcp_to, tcp_to_briefly, udp_to, udp_to_briefly, within};

fn group(key: &str, pods: &[&Pod], networks: &[u32]) -> Arc<Group> {
    Arc::new(Group {
        key: key.into(),
        addresses: pods.iter().flat_map(|pod| [pod.v4(), pod.v6()]).collect(),
        networks: networks.iter().copied().collect(),
    })
}

async fn apply(cluster: &Cluster, carrier: Carrier, networks: &Networks) {
    let table = |_| Table { networks: Some(networks.clone()), ..Table::default() };
    cluster.apply(carrier, table).await;
}

fn ping(from: &Pod, to: IpAddr) -> bool {
    within(from.netns(), || pings(to))
}

/// By everything there is.
fn probe(from: &Pod, own: IpAddr, to: IpAddr, may: bool) {
    let expected = if may { format!("x {own}") } else { "silence".into() };
    let tcp = within(from.netns(), || tcp_to_briefly(to, 80));
    let udp = within(from.netns(), || udp_to_briefly(to, 80));
    assert_eq!([&tcp, &udp], [&expected, &expected], "{own} to {to}");
    assert_eq!(ping(from, to), may, "{own} to {to}");
}

/// Every container asks every other.
fn matrix(carrier: Carrier) {
    on_cluster(2, move |cluster| async move {
        let [one, two] = cluster.nodes.as_slice() else { unreachable!() };
        // Networks 1 and 2, one container on both, one on none that is named.
        let pods = [
            (one.pod("a1", 2).await, &[1][..]),
            (two.pod("a2", 2).await, &[1][..]),
            (one.pod("b1", 3).await, &[2][..]),
            (two.pod("b2", 3).await, &[2][..]),
            (two.pod("ab", 4).await, &[1, 2][..]),
        ];
        let stranger = one.pod("stranger", 9).await;
        let mut servers = vec![stranger.serve("x", 80)];
        servers.extend(pods.iter().map(|(pod, _)| pod.serve("x", 80)));
        let groups = pods.iter().enumerate();
        let groups =
            groups.map(|(index, (pod, networks))| group(&index.to_string(), &[pod], networks));
        let networks = Networks { groups: groups.collect(), ..Networks::default() };
        apply(&cluster, carrier, &networks).await;
        let nothing: &[u32] = &[];
        let all: Vec<(&Pod, &[u32])> = pods
            .iter()
            .map(|(pod, networks)| (pod, *networks))
            .chain([(&stranger, nothing)])
            .collect();
        // What is dropped takes its time: all of them at once.
        std::thread::scope(|scope| {
            for (from, of_from) in &all {
                for (to, of_to) in all.iter().filter(|(to, _)| !std::ptr::eq(*to, *from)) {
                    let may = of_from.iter().any(|network| of_to.contains(network));
                    for (to, own) in [(to.v4(), from.v4()), (to.v6(), from.v6())] {
                        scope.spawn(move || probe(from, own, to, may));
                    }
                }
            }
        });
        // A node reaches them all.
        for (pod, _) in &pods[..1] {
            assert!(within(&one.netns, || tcp_to(pod.v4(), 80)).starts_with("x "));
            assert!(within(&two.netns, || tcp_to(pod.v4(), 80)).starts_with("x "));
        }
    });
}

#[test]
fn host_networks_part_by_vxlan() {
    matrix(Carrier::Vxlan);
}

#[test]
fn host_networks_part_by_plain_routes() {
    matrix(Carrier::Plain);
}

#[test]
fn host_internal_networks_have_no_way_out() {
    on_cluster(1, |cluster| async move {
        let node = &cluster.nodes[0];
        let (job, mate, free) =
            (node.pod("job", 2).await, node.pod("mate", 3).await, node.pod("free", 4).await);
        let _servers = (job.serve("x", 80), mate.serve("x", 80), free.serve("x", 80));
        let world: IpAddr = "192.0.2.100".parse().unwrap();
        let _world = within(&cluster.outside, || Server::tcp("world", world, 80));
        let gateway: IpAddr = "169.254.1.1".parse().unwrap();
        let _node = within(&node.netns, || {
            let (at, port) = name_server_of(node.number);
            (Server::udp("dns", at, port), Server::tcp("own", gateway, 22))
        });
        let mut networks = Networks {
            groups: vec![
                group("job", &[&job], &[9]),
                group("mate", &[&mate], &[9, 1]),
                group("free", &[&free], &[1]),
            ],
            internal: BTreeSet::from([9]),
            policies: Vec::new(),
        };
        apply(&cluster, Carrier::Vxlan, &networks).await;
        let ask = |pod: &Pod, to, port| within(pod.netns(), || tcp_to_briefly(to, port));
        assert_eq!(ask(&job, mate.v4(), 80), "x 10.128.1.2");
        assert_eq!(ask(&job, free.v4(), 80), "silence");
        assert_eq!(ask(&job, world, 80), "silence");
        assert_eq!(ask(&job, gateway, 22), "silence");
        assert_eq!(within(job.netns(), || udp_to(gateway, 53)), "dns 10.128.1.2");
        assert_eq!(ask(&mate, world, 80), "world 192.0.2.1");
        assert_eq!(ask(&mate, gateway, 22), "own 10.128.1.3");
        assert!(within(&node.netns, || tcp_to(job.v4(), 80)).starts_with("x "));
        // The network is no longer internal.
        networks.internal.clear();
        apply(&cluster, Carrier::Vxlan, &networks).await;
        assert_eq!(ask(&job, world, 80), "world 192.0.2.1");
    });
}

#[test]
fn host_policies_part_within_networks() {
    on_cluster(2, |cluster| async move {
        let [one, two] = cluster.nodes.as_slice() else { unreachable!() };
        let (db, web, other) =
            (one.pod("db", 2).await, two.pod("web", 2).await, one.pod("other", 3).await);
        let world: IpAddr = "192.0.2.100".parse().unwrap();
        let _servers = (db.serve("db", 80), db.serve("db", 81), web.serve("web", 80));
        let _world = within(&cluster.outside, || Server::tcp("world", world, 80));
        let tcp = |first, last| vec![PortRange { protocol: Protocol::Tcp, first, last }];
        let policy = |key: &str, pod: &Pod, direction, clauses, otherwise| {
            let subjects = vec![pod.v4(), pod.v6()];
            Arc::new(Policy { key: key.into(), subjects, direction, clauses, otherwise })
        };
        let to_db = Clause {
            action: Action::Allow,
            peers: Peers::Containers(vec![web.v4(), web.v6()]),
            ports: tcp(80, 80),
        };
        let no_world = Clause {
            action: Action::Deny,
            peers: Peers::Subnets(vec![("192.0.2.0".parse().unwrap(), 24)]),
            ports: tcp(1, 1000),
        };
        let networks = Networks {
            groups: vec![group("all", &[&db, &web, &other], &[1])],
            internal: BTreeSet::new(),
            policies: vec![
                policy("db", &db, Direction::In, vec![to_db], Action::Deny),
                policy("other", &other, Direction::Out, vec![no_world], Action::Allow),
            ],
        };
        let table = |from| Table {
            networks: Some(networks.clone()),
            services: vec![service("db", &[Frontend::Address(vip(1))], &[&db], from)],
            ..Table::default()
        };
        cluster.apply(Carrier::Vxlan, table).await;
        let ask = |pod: &Pod, to, port| within(pod.netns(), || tcp_to_briefly(to, port));
        for (to, from) in [(db.v4(), web.v4()), (db.v6(), web.v6()), (vip(1), web.v4())] {
            assert_eq!(ask(&web, to, 80), format!("db {from}"));
            assert_eq!(ask(&web, to, 81), "silence");
            assert_eq!(within(web.netns(), || udp_to_briefly(to, 80)), "silence");
            assert_eq!(ask(&other, to, 80), "silence");
        }
        // Answers are no connections of their own.
        assert_eq!(ask(&db, web.v4(), 80), "web 10.128.1.2");
        assert_eq!(ask(&other, world, 80), "silence");
        assert_eq!(ask(&other, web.v4(), 80), "web 10.128.1.3");
        assert_eq!(ask(&db, world, 80), "world 192.0.2.1");
        let counts = one.net.counts().await.unwrap();
        let of = |policy: &str, clause| {
            let found = counts.iter().find(|c| &*c.policy == policy && c.clause == clause);
            found.map(|count| count.packets).unwrap()
        };
        assert_eq!(of("db", 0), 3);
        assert!(of("db", 1) >= 9, "{counts:?}");
        assert!(of("other", 0) >= 1, "{counts:?}");
        assert!(of("other", 1) >= 1, "{counts:?}");
    });
}
