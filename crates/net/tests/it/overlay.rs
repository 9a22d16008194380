//! Containers of several nodes: how they reach each other, and who does not reach them.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use warren_net::{Carrier, Table};

use crate::cluster::{Cluster, PORT, VNI, on_cluster, underlay};
use crate::world::{run, tcp_to, tcp_to_briefly, udp_to, within};

async fn plain_table(cluster: &Cluster, carrier: Carrier) {
    cluster.apply(carrier, |_| Table::default()).await;
}

fn carries(carrier: Carrier, mtu: &'static str) {
    on_cluster(3, move |cluster| async move {
        plain_table(&cluster, carrier).await;
        let [one, two, _] = cluster.nodes.as_slice() else { unreachable!() };
        let (web, client) = (one.pod("web", 2).await, two.pod("client", 3).await);
        let _servers = web.serve("web", 80);
        for (to, from) in [(web.v4(), client.v4()), (web.v6(), client.v6())] {
            // Under its own address.
            assert_eq!(within(client.netns(), || tcp_to(to, 80)), format!("web {from}"));
            assert_eq!(within(client.netns(), || udp_to(to, 80)), format!("web {from}"));
        }
        // A host reaches them as the node's own address.
        assert_eq!(within(&two.netns, || tcp_to(web.v4(), 80)), "web 10.128.2.0");
        assert_eq!(within(&two.netns, || tcp_to(web.v6(), 80)), "web fd00:2::");
        let route = within(&two.netns, || run("ip route get 10.128.1.2"));
        assert!(route.contains(mtu), "{route}");
        // What nobody has leads nowhere, on this node and on another.
        for nobody in [Ipv4Addr::new(10, 128, 1, 99), Ipv4Addr::new(10, 129, 0, 1)] {
            let answer = within(client.netns(), || tcp_to(nobody.into(), 80));
            assert!(answer.starts_with("No route to host"), "{nobody}: {answer}");
        }
        let answer = within(client.netns(), || tcp_to("fd00:9::1".parse().unwrap(), 80));
        assert!(answer.contains("unreachable") || answer.contains("No route"), "{answer}");
        // The world outside is reached as the host.
        let _world = within(&cluster.outside, || {
            crate::world::Server::tcp("world", IpAddr::from([192, 0, 2, 100]), 80)
        });
        let world = IpAddr::from([192, 0, 2, 100]);
        assert_eq!(within(client.netns(), || tcp_to(world, 80)), "world 192.0.2.2");
        let _world6 = within(&cluster.outside, || {
            crate::world::Server::tcp("world", "2001:db8::100".parse::<IpAddr>().unwrap(), 80)
        });
        let world6: IpAddr = "2001:db8::100".parse().unwrap();
        assert_eq!(within(client.netns(), || tcp_to(world6, 80)), "world 2001:db8::2");
        // And does not reach them.
        within(&cluster.outside, || run("ip route add 10.128.0.0/10 via 192.0.2.1"));
        assert_eq!(within(&cluster.outside, || tcp_to_briefly(web.v4(), 80)), "silence");
    });
}

#[test]
fn host_overlay_by_vxlan() {
    carries(Carrier::Vxlan, "mtu 1450");
}

#[test]
fn host_overlay_by_plain_routes() {
    carries(Carrier::Plain, "via 192.0.2.1");
}

#[test]
fn host_overlay_into_a_device() {
    on_cluster(1, |cluster| async move {
        let node = &cluster.nodes[0];
        let mut overlay = (*cluster.overlay(1, Carrier::Device)).clone();
        overlay.device = Some("w-tun".into());
        overlay.peers = vec![crate::cluster::member(2)];
        let table = Table { overlay: Some(overlay.into()), ..Table::default() };
        let routes = || within(&node.netns, || run("ip route show 10.128.2.0/24"));
        node.net.apply(table).await.unwrap();
        // Without the device, and nothing in the clear.
        assert_eq!(routes(), "");
        let client = node.pod("client", 3).await;
        let to = IpAddr::from([10, 128, 2, 2]);
        let answer = within(client.netns(), || tcp_to(to, 80));
        assert!(answer.starts_with("No route to host"), "{answer}");
        within(&node.netns, || {
            run("ip tuntap add dev w-tun mode tun");
            run("ip link set w-tun up");
        });
        crate::world::eventually("a route into the device", || {
            routes().contains("dev w-tun") && routes().contains("mtu 1420")
        });
        // What keeps foreign addresses goes from inner address to inner address within it.
        let forward = within(&node.netns, || run("bridge fdb show dev w-node01"));
        assert!(forward.contains("dst 10.128.2.0"), "{forward}");
        assert!(within(&node.netns, || run("ip -d link show w-node01")).contains("mtu 1370"));
        // Also beside routes that lead into the device.
        let back = |family: &str| {
            within(&node.netns, || run(&format!("ip {family} route show table all")))
        };
        for family in ["-4", "-6"] {
            let has =
                || back(family).lines().any(|l| l.starts_with("default") && l.contains("w-node01"));
            crate::world::eventually("the way of answers", has);
            within(&node.netns, || run("ip link set w-node01 down"));
            crate::world::eventually(&format!("the way of answers again: {family}"), has);
        }
        within(&node.netns, || run("ip link del w-tun"));
        crate::world::eventually("no route", || routes().is_empty());
    });
}

#[test]
fn host_overlay_follows_its_members() {
    on_cluster(3, |cluster| async move {
        plain_table(&cluster, Carrier::Vxlan).await;
        let [one, two, _] = cluster.nodes.as_slice() else { unreachable!() };
        let (web, client) = (one.pod("web", 2).await, two.pod("client", 3).await);
        let _servers = web.serve("web", 80);
        let ask = || within(client.netns(), || tcp_to(web.v4(), 80));
        assert_eq!(ask(), "web 10.128.2.3");
        // A node leaves: nothing of it stays with the others.
        let mut overlay = (*cluster.overlay(2, Carrier::Vxlan)).clone();
        overlay.peers.retain(|peer| peer.number != 1);
        two.net.apply(Table { overlay: Some(overlay.into()), ..Table::default() }).await.unwrap();
        assert!(ask().starts_with("No route to host"));
        for show in [
            "ip route show table all",
            "ip neigh show nud permanent",
            "bridge fdb show dev w-node02",
        ] {
            let shown = within(&two.netns, || run(show));
            assert!(!shown.contains("10.128.1.0") && !shown.contains("192.0.2.1 "), "{shown}");
        }
        // Another carrier, and back.
        for carrier in [Carrier::Plain, Carrier::Vxlan] {
            plain_table(&cluster, carrier).await;
            assert_eq!(ask(), "web 10.128.2.3");
        }
    });
}

#[test]
fn host_overlay_refuses_strangers() {
    on_cluster(2, |cluster| async move {
        plain_table(&cluster, Carrier::Vxlan).await;
        let web = cluster.nodes[0].pod("web", 2).await;
        let ear = within(web.netns(), || std::net::UdpSocket::bind("0.0.0.0:90")).unwrap();
        // A machine on the same segment that knows everything of the overlay.
        within(&cluster.outside, || {
            run(&format!(
                "ip link add wx type vxlan id {VNI} dstport {PORT} local 192.0.2.100 nolearning"
            ));
            run("ip link set wx address 02:57:4e:00:00:02 up");
            run("ip addr add 10.128.2.7/32 dev wx");
            run("bridge fdb add 02:57:4e:00:00:01 dev wx dst 192.0.2.1");
            run("ip route add 10.128.1.0/24 dev wx");
            run("ip neigh add 10.128.1.2 lladdr 02:57:4e:00:00:01 dev wx nud permanent");
        });
        let send = || {
            within(&cluster.outside, || {
                let mouth = std::net::UdpSocket::bind("10.128.2.7:0").unwrap();
                mouth.send_to(b"hello", (Ipv4Addr::new(10, 128, 1, 2), 90)).unwrap();
            });
        };
        let hears = |patience| {
            ear.set_read_timeout(Some(patience)).unwrap();
            ear.recv_from(&mut [0; 8]).is_ok()
        };
        send();
        assert!(!hears(Duration::from_millis(300)));
        // The same, sent by a member: the packet as such is good.
        let mut overlay = (*cluster.overlay(1, Carrier::Vxlan)).clone();
        overlay.peers[0].underlay = underlay(100).into();
        cluster.nodes[0]
            .net
            .apply(Table { overlay: Some(overlay.into()), ..Table::default() })
            .await
            .unwrap();
        send();
        assert!(hears(Duration::from_secs(5)));
        // A member that claims an address of nobody's, or of this very node, is not heard.
        for claimed in ["10.128.9.1", "10.128.1.2", "10.128.1.0"] {
            within(&cluster.outside, || {
                run(&format!("ip addr add {claimed}/32 dev wx"));
                let mouth = std::net::UdpSocket::bind((claimed, 0)).unwrap();
                let _ = mouth.send_to(b"hello", (Ipv4Addr::new(10, 128, 1, 2), 90));
                run(&format!("ip addr del {claimed}/32 dev wx"));
            });
            assert!(!hears(Duration::from_millis(300)), "{claimed}");
        }
    });
}

#[test]
fn host_overlay_leaves_nothing() {
    on_cluster(2, |cluster| async move {
        let node = &cluster.nodes[0];
        // That the host forwards stays: others may have come to need it.
        plain_table(&cluster, Carrier::Vxlan).await;
        node.net.clean().await.unwrap();
        let state = || {
            within(&node.netns, || {
                [
                    run("ip -o link show"),
                    run("ip -o addr show"),
                    run("ip route show table all"),
                    run("ip -6 route show table all"),
                    run("ip rule show"),
                    run("ip -6 rule show"),
                    run("ip neigh show nud permanent"),
                    run("nft list ruleset"),
                ]
            })
        };
        let clean = state();
        for carrier in [Carrier::Vxlan, Carrier::Plain] {
            plain_table(&cluster, carrier).await;
            assert_ne!(state(), clean);
            node.net.apply(Table::default()).await.unwrap();
            assert_eq!(state()[..7], clean[..7]);
        }
        plain_table(&cluster, Carrier::Vxlan).await;
        node.net.clean().await.unwrap();
        assert_eq!(state(), clean);
    });
}
