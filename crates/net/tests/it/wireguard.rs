//! The kernel's own WireGuard between nodes, where the kernel has it: run by `make test-guest`.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use warren_net::{Carrier, Overlay, Table, Wireguard, WireguardPeer, WireguardWatch};

use crate::cluster::{Cluster, Node, member, on_cluster, underlay};
use crate::world::{eventually, run, tcp_to, tcp_to_briefly, udp_to, within};

const DEVICE: &str = "w-wg";
const UDP_PORT: u16 = 8476;
/// Of WireGuard's messages: what none of ours may be longer than, with everything below it.
const MTU: u32 = 1420;

fn secret(number: u8) -> [u8; 32] {
    let mut key = [number; 32];
    // RFC 7748, section 5: as any private key of X25519 is.
    key[0] &= 248;
    key[31] = key[31] & 127 | 64;
    key
}

fn open(node: &Node) -> Wireguard {
    within(&node.netns, || Wireguard::open(DEVICE, &secret(node.number), UDP_PORT, MTU).unwrap())
}

fn peer(number: u8, key: [u8; 32]) -> WireguardPeer {
    let allowed: BTreeSet<_> = member(number).blocks.into_iter().collect();
    let endpoint = Some(SocketAddr::new(underlay(number).into(), UDP_PORT));
    WireguardPeer { key, endpoint, allowed }
}

async fn routes(cluster: &Cluster) {
    for node in &cluster.nodes {
        let overlay: Arc<Overlay> = cluster.overlay(node.number, Carrier::Device);
        let overlay = Overlay { device: Some(DEVICE.into()), ..(*overlay).clone() };
        let table = Table { overlay: Some(overlay.into()), ..Table::default() };
        node.net.apply(table).await.unwrap();
    }
}

#[test]
fn guest_containers_reach_each_other_by_the_kernels_wireguard() {
    on_cluster(2, |cluster| async move {
        let [one, two] = cluster.nodes.as_slice() else { unreachable!() };
        let (mut ours, mut theirs) = (open(one), open(two));
        let keys = [ours.public_key().unwrap(), theirs.public_key().unwrap()];
        assert_ne!(keys[0], keys[1]);
        routes(&cluster).await;
        let (web, client) = (one.pod("web", 2).await, two.pod("client", 3).await);
        let _servers = web.serve("web", 80);
        let ask = || within(client.netns(), || tcp_to(web.v4(), 80));
        // Nobody is a peer yet, and nothing goes another way.
        assert_ne!(within(client.netns(), || tcp_to_briefly(web.v4(), 80)), "web 10.128.2.3");
        assert_eq!(ours.set_peers(&[peer(2, keys[1])], 0).unwrap(), 1);
        assert_eq!(theirs.set_peers(&[peer(1, keys[0])], 0).unwrap(), 1);
        for (to, from) in [(web.v4(), client.v4()), (web.v6(), client.v6())] {
            assert_eq!(within(client.netns(), || tcp_to(to, 80)), format!("web {from}"));
            assert_eq!(within(client.netns(), || udp_to(to, 80)), format!("web {from}"));
        }
        let state = ours.state().unwrap();
        assert_eq!((state.len(), state[0].key), (1, keys[1]));
        assert!(state[0].handshake_ms > 0 && state[0].received > 0 && state[0].sent > 0);
        assert_eq!(state[0].endpoint, peer(2, keys[1]).endpoint);
        // Told again, it is told nothing; and another daemon finds what is there.
        assert_eq!(ours.set_peers(&[peer(2, keys[1])], 0).unwrap(), 0);
        let mut again = open(one);
        assert_eq!(again.set_peers(&[peer(2, keys[1])], state[0].handshake_ms + 1).unwrap(), 0);
        assert_eq!(ask(), "web 10.128.2.3");
        // One that is removed is refused at once.
        assert_eq!(again.set_peers(&[], 0).unwrap(), 1);
        assert_eq!(within(client.netns(), || tcp_to_briefly(web.v4(), 80)), "silence");
        assert_eq!(again.set_peers(&[peer(2, keys[1])], 0).unwrap(), 1);
        // The other side takes its session for good for 15 s yet, unless this one begins another.
        eventually("a handshake", || {
            within(web.netns(), || tcp_to_briefly(client.v4(), 80));
            within(client.netns(), || tcp_to_briefly(web.v4(), 80)) == "web 10.128.2.3"
        });
        // Without the device packets are refused, and go nowhere else.
        within(&one.netns, || Wireguard::remove(DEVICE)).unwrap();
        within(&one.netns, || Wireguard::remove(DEVICE)).unwrap();
        let host = |to: IpAddr| within(&one.netns, || tcp_to(to, 80));
        eventually("refusal", || host(client.v4()).starts_with("No route to host"));
    });
}

#[test]
fn guest_a_peer_that_moves_is_followed_and_a_bad_line_is_borne() {
    on_cluster(2, |cluster| async move {
        let [one, two] = cluster.nodes.as_slice() else { unreachable!() };
        let (mut ours, mut theirs) = (open(one), open(two));
        let keys = [ours.public_key().unwrap(), theirs.public_key().unwrap()];
        routes(&cluster).await;
        let (web, client) = (one.pod("web", 2).await, two.pod("client", 3).await);
        let _servers = web.serve("web", 80);
        ours.set_peers(&[peer(2, keys[1])], 0).unwrap();
        theirs.set_peers(&[peer(1, keys[0])], 0).unwrap();
        let ask = || within(client.netns(), || tcp_to(web.v4(), 80));
        assert_eq!(ask(), "web 10.128.2.3");
        // It gets another address, and says so by what it sends.
        within(&two.netns, || {
            run("ip addr add 192.0.2.77/24 dev eth0");
            run("ip addr del 192.0.2.2/24 dev eth0");
            run("ip addr replace 192.0.2.77/24 dev eth0");
            run("ip route replace default via 192.0.2.100");
        });
        eventually("an answer", || ask() == "web 10.128.2.3");
        let moved: SocketAddr = "192.0.2.77:8476".parse().unwrap();
        assert_eq!(ours.state().unwrap()[0].endpoint, Some(moved));
        // What is told as before does not take it back.
        assert_eq!(ours.set_peers(&[peer(2, keys[1])], 0).unwrap(), 0);
        assert_eq!(ours.state().unwrap()[0].endpoint, Some(moved));
        // 60 ms there and back, some packets lost each way.
        for node in [one, two] {
            within(&node.netns, || run("tc qdisc add dev eth0 root netem delay 30ms loss 5%"));
        }
        for _ in 0..10 {
            eventually("an answer on a bad line", || ask() == "web 10.128.2.3");
        }
    });
}

#[test]
fn guest_a_device_takes_the_place_of_another_kind_and_a_port_is_one_nodes() {
    on_cluster(1, |cluster| async move {
        let node = &cluster.nodes[0];
        within(&node.netns, || run(&format!("ip tuntap add dev {DEVICE} mode tun")));
        drop(open(node));
        let link = || within(&node.netns, || run(&format!("ip -d link show {DEVICE}")));
        assert!(link().contains("wireguard") && link().contains("mtu 1420"), "{}", link());
        let other = within(&node.netns, || Wireguard::open("w-wg2", &secret(9), UDP_PORT, MTU));
        let error = other.err().unwrap().to_string();
        assert_eq!(error, "bring up w-wg2");
        within(&node.netns, || Wireguard::remove("w-wg2")).unwrap();
        // A longer name that begins alike is another device.
        within(&node.netns, || Wireguard::remove("w-w")).unwrap();
        assert!(link().contains("wireguard"));
    });
}

#[test]
fn guest_a_device_that_is_taken_away_is_told() {
    on_cluster(1, |cluster| async move {
        let node = &cluster.nodes[0];
        drop(open(node));
        // The watch is made in the host's namespace, and is good elsewhere.
        let here = crate::world::own_namespace();
        let enter = |netns: &std::os::fd::OwnedFd| {
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(netns), kind)
                .unwrap();
        };
        enter(&node.netns);
        let mut watch = WireguardWatch::open(DEVICE).unwrap();
        enter(&here);
        within(&node.netns, || run("ip link add other0 type dummy"));
        within(&node.netns, || run("ip link del other0"));
        let soon = std::time::Duration::from_millis(200);
        assert!(tokio::time::timeout(soon, watch.gone()).await.is_err());
        within(&node.netns, || run(&format!("ip link del {DEVICE}")));
        tokio::time::timeout(std::time::Duration::from_secs(5), watch.gone())
            .await
            .unwrap()
            .unwrap();
    });
}
