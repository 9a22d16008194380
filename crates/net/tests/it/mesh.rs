//! Ports that every node answers: the client's own address, whichever node it comes by.

use std::net::IpAddr;

use warren_net::Protocol::{Tcp, Udp};
use warren_net::{Carrier, Frontend, Networks, Table};

use crate::cluster::{Cluster, Pod, on_cluster, service};
use crate::world::{Connection, UdpClient, run, tcp_to, udp_to, within};

fn any(v4: bool) -> IpAddr {
    if v4 { "0.0.0.0".parse().unwrap() } else { "::".parse().unwrap() }
}

fn frontends() -> Vec<Frontend> {
    let published =
        |v4, protocol| Frontend::Published { bind: any(v4), protocol, port: 8080, target: 80 };
    vec![published(true, Tcp), published(true, Udp), published(false, Tcp), published(false, Udp)]
}

async fn publish(cluster: &Cluster, carrier: Carrier, pods: &[&Pod], networks: Option<Networks>) {
    let table = |from| Table {
        services: vec![service("web", &frontends(), pods, from)].into(),
        networks: networks.clone(),
        ..Table::default()
    };
    cluster.apply(carrier, table).await;
}

fn keeps_the_client(carrier: Carrier) {
    on_cluster(3, move |cluster| async move {
        let [one, two, three] = cluster.nodes.as_slice() else { unreachable!() };
        let web = two.pod("web", 2).await;
        let _servers = web.serve("web", 80);
        for networks in [None, Some(Networks::default())] {
            publish(&cluster, carrier, &[&web], networks).await;
            for node in [one, two, three] {
                let v6: IpAddr = format!("2001:db8::{}", node.number).parse().unwrap();
                for ask in [tcp_to, udp_to] {
                    let by = |to| within(&cluster.outside, || ask(to, 8080));
                    assert_eq!(by(node.address()), "web 192.0.2.100", "by node {}", node.number);
                    assert_eq!(by(v6), "web 2001:db8::100", "by node {}", node.number);
                }
            }
            // A node is a client of another, and of itself.
            for ask in [tcp_to, udp_to] {
                assert_eq!(within(&one.netns, || ask(three.address(), 8080)), "web 192.0.2.1");
                assert_eq!(within(&one.netns, || ask(one.address(), 8080)), "web 192.0.2.1");
                // By loopback, which nobody elsewhere could answer.
                let answer = within(&one.netns, || ask("127.0.0.1".parse().unwrap(), 8080));
                assert_eq!(answer, "web 10.128.1.0");
                let answer = within(&two.netns, || ask("127.0.0.1".parse().unwrap(), 8080));
                assert_eq!(answer, "web 169.254.1.1");
            }
        }
        // Led back to its own container by another node.
        for ask in [tcp_to, udp_to] {
            assert_eq!(within(&two.netns, || ask(one.address(), 8080)), "web 10.128.1.0");
        }
        // More than a greeting, and large packets.
        let mut open = within(&cluster.outside, || Connection::open(one.address(), 8080)).unwrap();
        assert!((0..100).all(|_| open.echoes()));
        let nat = within(&two.netns, || run("nft list ruleset"));
        assert!(nat.contains("exposed"), "{nat}");
    });
}

#[test]
fn host_mesh_keeps_the_client_by_vxlan() {
    keeps_the_client(Carrier::Vxlan);
}

#[test]
fn host_mesh_keeps_the_client_by_plain_routes() {
    keeps_the_client(Carrier::Plain);
}

#[test]
fn host_mesh_follows_its_backends() {
    on_cluster(3, |cluster| async move {
        let [one, two, three] = cluster.nodes.as_slice() else { unreachable!() };
        let (first, second) = (two.pod("first", 2).await, three.pod("second", 2).await);
        let _servers = (first.serve("first", 80), second.serve("second", 80));
        publish(&cluster, Carrier::Vxlan, &[&first], None).await;
        let flow = within(&cluster.outside, || UdpClient::open(one.address(), 8080)).unwrap();
        let mut open = within(&cluster.outside, || Connection::open(one.address(), 8080)).unwrap();
        assert_eq!(flow.outcome(), "first 192.0.2.100");
        publish(&cluster, Carrier::Vxlan, &[&second], None).await;
        assert_eq!(flow.outcome(), "second 192.0.2.100");
        assert!(open.echoes());
        publish(&cluster, Carrier::Vxlan, &[], None).await;
        assert_eq!(flow.outcome(), "refused");
        for node in [one, two, three] {
            for ask in [tcp_to, udp_to] {
                assert_eq!(within(&cluster.outside, || ask(node.address(), 8080)), "refused");
            }
        }
        publish(&cluster, Carrier::Vxlan, &[&first], None).await;
        assert_eq!(flow.outcome(), "first 192.0.2.100");
    });
}
