//! Policies, probed from inside containers: both directions, both families, by every address
//! that leads there, and what becomes of connections that were there before.

use std::net::IpAddr;
use std::sync::Arc;

use warren_net::{
    Action, Carrier, Clause, Direction, Frontend, Networks, PeerSet, Peers, Policy, PortRange,
    Protocol, Table, Traffic,
};

use crate::cluster::{Cluster, Pod, name_server_of, on_cluster, service, vip, vip6};
use crate::isolation::{group, ping};
use crate::world::{
    Connection, Server, UdpClient, tcp_to, tcp_to_briefly, udp_to, udp_to_briefly, within,
};

fn set(key: &str, pods: &[&Pod]) -> Arc<PeerSet> {
    let addresses = pods.iter().flat_map(|pod| [pod.v4(), pod.v6()]).collect();
    Arc::new(PeerSet { key: key.into(), addresses })
}

fn policy(key: &str, pods: &[&Pod], direction: Direction, clauses: Vec<Clause>) -> Arc<Policy> {
    let subjects = pods.iter().flat_map(|pod| [pod.v4(), pod.v6()]).collect();
    Arc::new(Policy { key: key.into(), subjects, direction, clauses })
}

fn clause(name: &str, action: Action, peers: Peers, traffic: Vec<Traffic>) -> Clause {
    Clause { name: name.into(), action, peers, traffic }
}

fn of_set(key: &str) -> Peers {
    Peers::Some { set: Some(key.into()), subnets: vec![], outside: false }
}

fn subnet(text: &str, len: u8) -> Peers {
    Peers::Some { set: None, subnets: vec![(text.parse().unwrap(), len)], outside: false }
}

const OUTSIDE: Peers = Peers::Some { set: None, subnets: Vec::new(), outside: true };

fn ports(first: u16, last: u16) -> Vec<Traffic> {
    vec![Traffic::Ports(PortRange { protocol: Protocol::Tcp, first, last })]
}

fn ask(pod: &Pod, to: IpAddr, port: u16) -> String {
    within(pod.netns(), || tcp_to_briefly(to, port))
}

fn ask_udp(pod: &Pod, to: IpAddr, port: u16) -> String {
    within(pod.netns(), || udp_to_briefly(to, port))
}

async fn counted(cluster: &Cluster, node: usize, name: &str, action: Action) -> u64 {
    let counts = cluster.nodes[node].net.counts().await.unwrap();
    let found = counts.iter().find(|count| &*count.name == name && count.action == action);
    found.map_or(0, |count| count.packets)
}

#[test]
fn host_policies_part_within_networks() {
    on_cluster(2, |cluster| async move {
        let [one, two] = cluster.nodes.as_slice() else { unreachable!() };
        let (db, web, other) =
            (one.pod("db", 2).await, two.pod("web", 2).await, one.pod("other", 3).await);
        let world: IpAddr = "192.0.2.100".parse().unwrap();
        let _servers = (db.serve("db", 80), db.serve("db", 81), web.serve("web", 80));
        let _world = within(&cluster.outside, || {
            (Server::tcp("world", world, 80), Server::tcp("world", world, 2000))
        });
        let networks = Networks {
            groups: vec![group("all", &[&db, &web, &other], &[1])].into(),
            policies: vec![
                policy(
                    "db/in",
                    &[&db],
                    Direction::In,
                    vec![
                        clause("only", Action::Allow, of_set("web"), ports(80, 80)),
                        clause("only", Action::Deny, Peers::Any, vec![]),
                    ],
                ),
                policy(
                    "other/out",
                    &[&other],
                    Direction::Out,
                    vec![clause("no-world", Action::Deny, subnet("192.0.2.0", 24), ports(1, 1000))],
                ),
            ]
            .into(),
            peers: vec![set("web", &[&web])].into(),
            ..Networks::default()
        };
        let table = |from| Table {
            networks: Some(networks.clone()),
            services: vec![service(
                "db",
                &[Frontend::Address(vip(1)), Frontend::Address(vip6(1))],
                &[&db],
                from,
            )]
            .into(),
            ..Table::default()
        };
        cluster.apply(Carrier::Vxlan, table).await;
        let (v4, v6) = (web.v4(), web.v6());
        for (to, from) in [(db.v4(), v4), (db.v6(), v6), (vip(1), v4), (vip6(1), v6)] {
            assert_eq!(ask(&web, to, 80), format!("db {from}"));
            assert_eq!(ask(&web, to, 81), "silence");
            assert_eq!(ask_udp(&web, to, 80), "silence");
            assert_eq!(ask(&other, to, 80), "silence");
        }
        assert!(!ping(&web, db.v4()) && !ping(&web, db.v6()));
        // Answers are no connections of their own, and it reaches itself by its service.
        assert_eq!(ask(&db, web.v4(), 80), "web 10.128.1.2");
        assert!(ask(&db, vip(1), 80).starts_with("db "));
        assert!(ask(&db, vip6(1), 80).starts_with("db "));
        assert_eq!(ask(&other, world, 80), "silence");
        assert_eq!(ask(&other, world, 2000), "world 192.0.2.1");
        assert_eq!(ask(&other, web.v4(), 80), "web 10.128.1.3");
        assert_eq!(ask(&db, world, 80), "world 192.0.2.1");
        assert_eq!(counted(&cluster, 0, "only", Action::Allow).await, 4);
        assert!(counted(&cluster, 0, "only", Action::Deny).await >= 14);
        assert!(counted(&cluster, 0, "no-world", Action::Deny).await >= 1);
        assert_eq!(counted(&cluster, 1, "only", Action::Allow).await, 0);
    });
}

#[test]
fn host_what_is_outside() {
    on_cluster(2, |cluster| async move {
        let [one, two] = cluster.nodes.as_slice() else { unreachable!() };
        let (db, web) = (one.pod("db", 2).await, two.pod("web", 2).await);
        let world: IpAddr = "192.0.2.100".parse().unwrap();
        let world6: IpAddr = "2001:db8::100".parse().unwrap();
        let gateway: IpAddr = "169.254.1.1".parse().unwrap();
        let _servers = (db.serve("db", 80), web.serve("web", 80));
        let _world = within(&cluster.outside, || {
            (Server::tcp("world", world, 80), Server::tcp("world", world6, 80))
        });
        let any: IpAddr = "::".parse().unwrap();
        let _node = within(&one.netns, || {
            let (at, port) = name_server_of(one.number);
            (Server::udp("dns", at, port), Server::tcp("node", any, 22))
        });
        let _far = within(&two.netns, || Server::tcp("far", any, 22));
        let inner = |number: u8| crate::cluster::member(number).inner.into();
        let nodes = [one.address(), two.address(), gateway, inner(1), inner(2)];
        let networks = |policies: Vec<Arc<Policy>>| Networks {
            groups: vec![group("all", &[&db, &web], &[1])].into(),
            policies: policies.into(),
            ..Networks::default()
        };
        let apply = async |policies: Vec<Arc<Policy>>| {
            let networks = networks(policies);
            let table = |from| Table {
                networks: Some(networks.clone()),
                services: vec![service("web", &[Frontend::Address(vip(1))], &[&web], from)].into(),
                ..Table::default()
            };
            cluster.apply(Carrier::Vxlan, table).await;
        };
        apply(vec![]).await;
        // All of it is reached otherwise, but for another node by its address on the overlay.
        for to in &nodes[..4] {
            let to = *to;
            let said = ask(&db, to, 22);
            assert!(said.starts_with("node ") || said.starts_with("far "), "{to}: {said}");
        }
        assert_eq!(ask(&db, world, 80), "world 192.0.2.1");
        assert!(ask(&db, world6, 80).starts_with("world "));
        apply(vec![policy(
            "db/out",
            &[&db],
            Direction::Out,
            vec![clause("p", Action::Deny, OUTSIDE, vec![])],
        )])
        .await;
        for to in nodes {
            assert_eq!(ask(&db, to, 22), "silence", "{to}");
        }
        assert_eq!(ask(&db, world, 80), "silence");
        assert_eq!(ask(&db, world6, 80), "silence");
        assert!(!ping(&db, world) && !ping(&db, world6));
        // Names, the cluster, and what comes from outside.
        assert_eq!(within(db.netns(), || udp_to(gateway, 53)), "dns 10.128.1.2");
        assert_eq!(ask(&db, web.v4(), 80), "web 10.128.1.2");
        assert!(ask(&db, web.v6(), 80).starts_with("web "));
        assert_eq!(ask(&db, vip(1), 80), "web 10.128.1.2");
        assert!(within(&one.netns, || tcp_to(db.v4(), 80)).starts_with("db "));
        assert!(within(&two.netns, || tcp_to(db.v4(), 80)).starts_with("db "));
        assert!(counted(&cluster, 0, "p", Action::Deny).await >= 9);
        // The other way round: other nodes come from outside, the own one is exempt.
        apply(vec![policy(
            "db/in",
            &[&db],
            Direction::In,
            vec![clause("q", Action::Deny, OUTSIDE, vec![])],
        )])
        .await;
        assert!(within(&one.netns, || tcp_to(db.v4(), 80)).starts_with("db "));
        assert_eq!(within(&two.netns, || tcp_to_briefly(db.v4(), 80)), "silence");
        assert_eq!(ask(&web, db.v4(), 80), "db 10.128.2.2");
        assert_eq!(ask(&db, world, 80), "world 192.0.2.1");
    });
}

/// By a port of the node the client is known where it leaves, and its clients by themselves.
#[test]
fn host_policies_hold_for_published_ports() {
    on_cluster(2, |cluster| async move {
        let [one, two] = cluster.nodes.as_slice() else { unreachable!() };
        let (db, web, other) =
            (one.pod("db", 2).await, two.pod("web", 2).await, two.pod("other", 3).await);
        let _servers = db.serve("db", 80);
        let published = Frontend::Published {
            bind: "0.0.0.0".parse().unwrap(),
            protocol: Protocol::Tcp,
            port: 8080,
            target: 80,
        };
        let apply = async |policies: Vec<Arc<Policy>>| {
            let networks = Networks {
                groups: vec![group("db", &[&db], &[1]), group("others", &[&web, &other], &[2])]
                    .into(),
                policies: policies.into(),
                peers: vec![set("web", &[&web]), set("db", &[&db])].into(),
                ..Networks::default()
            };
            let table = |from| Table {
                networks: Some(networks.clone()),
                services: vec![service("db", &[published], &[&db], from)].into(),
                ..Table::default()
            };
            cluster.apply(Carrier::Vxlan, table).await;
        };
        let outside = |by: IpAddr| within(&cluster.outside, || tcp_to_briefly(by, 8080));
        apply(vec![]).await;
        for node in &cluster.nodes {
            assert_eq!(outside(node.address()), "db 192.0.2.100");
        }
        assert!(ask(&web, two.address(), 8080).starts_with("db "));
        assert!(ask(&other, two.address(), 8080).starts_with("db "));
        let denied = clause("p", Action::Deny, of_set("db"), vec![]);
        apply(vec![
            policy("web/out", &[&web], Direction::Out, vec![denied]),
            policy(
                "db/in",
                &[&db],
                Direction::In,
                vec![clause("p", Action::Deny, of_set("web"), vec![])],
            ),
        ])
        .await;
        assert_eq!(ask(&web, two.address(), 8080), "silence");
        assert!(ask(&other, two.address(), 8080).starts_with("db "));
        assert_eq!(outside(two.address()), "db 192.0.2.100");
        assert!(counted(&cluster, 1, "p", Action::Deny).await >= 1);
        // Clients outside by their own address, by whichever node they come.
        apply(vec![policy(
            "db/in",
            &[&db],
            Direction::In,
            vec![clause("q", Action::Deny, subnet("192.0.2.100", 32), vec![])],
        )])
        .await;
        for node in &cluster.nodes {
            assert_eq!(outside(node.address()), "silence");
        }
        assert!(ask(&other, two.address(), 8080).starts_with("db "));
    });
}

/// What is denied ends, both ends learn it, and what is not goes on.
#[test]
fn host_connections_that_were_there_end_with_a_policy() {
    on_cluster(2, |cluster| async move {
        let [one, two] = cluster.nodes.as_slice() else { unreachable!() };
        let (db, web, near) =
            (one.pod("db", 2).await, two.pod("web", 2).await, one.pod("near", 3).await);
        let _servers = (db.serve("db", 80), db.serve("db", 81));
        let apply = async |clauses: Vec<Clause>| {
            let policies = match clauses.is_empty() {
                true => vec![],
                false => vec![policy("db/in", &[&db], Direction::In, clauses)],
            };
            let networks = Networks {
                groups: vec![group("all", &[&db, &web, &near], &[1])].into(),
                policies: policies.into(),
                peers: vec![set("web", &[&web])].into(),
                ..Networks::default()
            };
            let table = |from| Table {
                networks: Some(networks.clone()),
                services: vec![service("db", &[Frontend::Address(vip(1))], &[&db], from)].into(),
                ..Table::default()
            };
            cluster.apply(Carrier::Vxlan, table).await;
        };
        apply(vec![]).await;
        let open = |pod: &Pod, to: IpAddr, port: u16| {
            within(pod.netns(), || Connection::open(to, port).unwrap())
        };
        let mut kept = [open(&web, db.v4(), 80), open(&web, vip(1), 80), open(&web, db.v6(), 80)];
        let mut lost = [
            open(&web, db.v4(), 81),
            open(&web, vip(1), 81),
            open(&near, db.v4(), 80),
            open(&near, db.v6(), 80),
            open(&near, vip(1), 80),
        ];
        let datagrams = within(near.netns(), || UdpClient::open(db.v4(), 80).unwrap());
        assert!(datagrams.ask().is_ok());
        assert!(kept.iter_mut().chain(&mut lost).all(Connection::echoes));
        let only = || {
            vec![
                clause("only", Action::Allow, of_set("web"), ports(80, 80)),
                clause("only", Action::Deny, Peers::Any, vec![]),
            ]
        };
        apply(only()).await;
        assert!(kept.iter_mut().all(Connection::echoes));
        for connection in &mut lost {
            let ended = connection.ask().unwrap_err().kind();
            assert_eq!(ended, std::io::ErrorKind::ConnectionReset, "it is told at once");
        }
        assert!(datagrams.ask().is_err());
        // What was counted stays counted when the policy's rules are others.
        let before = counted(&cluster, 0, "only", Action::Deny).await;
        assert_eq!(ask(&near, db.v4(), 80), "silence");
        let denied = counted(&cluster, 0, "only", Action::Deny).await;
        assert!(denied > before, "{denied}");
        let more = [vec![clause("more", Action::Deny, OUTSIDE, vec![])], only()].concat();
        apply(more).await;
        assert_eq!(counted(&cluster, 0, "only", Action::Deny).await, denied);
        assert!(kept.iter_mut().all(Connection::echoes));
        // Without the policy the flow of datagrams is free again.
        apply(vec![]).await;
        assert!(datagrams.ask().is_ok());
        assert!(ask(&near, db.v4(), 80).starts_with("db "));
        assert_eq!(counted(&cluster, 0, "only", Action::Deny).await, 0);
    });
}
