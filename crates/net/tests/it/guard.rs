//! What must not happen: packets of the pools on the wire, strangers within, forged sources.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, eth, recv, socket_with, sockopt,
};
use warren_net::Protocol::Tcp;
use warren_net::{Carrier, Frontend, Table};

use crate::cluster::{Cluster, Node, member, on_cluster, service, vip, vip6};
use crate::world::{eventually, run, tcp_to, tcp_to_briefly, within};

/// What is not heard within this was dropped.
const SILENCE: Duration = Duration::from_millis(300);

/// Hears every packet of its host's links.
struct Ear(OwnedFd);

impl Ear {
    fn open(netns: &OwnedFd) -> Self {
        let flags = SocketFlags::CLOEXEC;
        let socket = within(netns, || {
            socket_with(AddressFamily::PACKET, SocketType::DGRAM, flags, Some(eth::ALL)).unwrap()
        });
        let timeout = sockopt::Timeout::Recv;
        sockopt::set_socket_timeout(&socket, timeout, Some(SILENCE)).unwrap();
        Self(socket)
    }

    /// Destinations of the packets that came until now, and a while longer.
    fn heard(&self) -> Vec<IpAddr> {
        let mut heard = Vec::new();
        let mut packet = [0; 128];
        while let Ok((len, _)) = recv(&self.0, &mut packet, RecvFlags::empty()) {
            heard.extend(destination(&packet[..len.min(packet.len())]));
        }
        heard
    }
}

fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(Ipv4Addr::from(*packet.get(16..)?.first_chunk::<4>()?).into()),
        6 => Some(Ipv6Addr::from(*packet.get(24..)?.first_chunk::<16>()?).into()),
        _ => None,
    }
}

/// Of containers and of services.
fn is_ours(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets()[0] == 10,
        IpAddr::V6(v6) => matches!(v6.segments()[0], 0xfd00 | 0xfd01),
    }
}

/// Sends to each of these, by UDP, from the calling thread's namespace; who refuses does.
fn send_to_all(all: &[IpAddr]) {
    for to in all {
        let any: SocketAddr = match to {
            IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).unwrap();
        for _ in 0..3 {
            let _ = socket.send_to(b"secret", (*to, 9));
        }
    }
}

/// Containers of another node, addresses that nobody has, services without and with nobody behind.
fn targets() -> Vec<IpAddr> {
    let of = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
    let containers = of(&["10.128.2.2", "10.129.0.1", "fd00:2::2", "fd00:9::1"]);
    [containers, vec![vip(1), vip6(1), vip(9), vip6(9)]].concat()
}

/// A node whose tunnel's device is `w-tun`, with one peer.
async fn with_device(cluster: &Cluster) {
    let mut overlay = (*cluster.overlay(1, Carrier::Device)).clone();
    overlay.device = Some("w-tun".into());
    overlay.peers = vec![member(2)];
    let frontends = [Frontend::Address(vip(1)), Frontend::Address(vip6(1))];
    let services = vec![service("empty", &frontends, &[], 1)];
    let table =
        Table { overlay: Some(overlay.into()), services: services.into(), ..Table::default() };
    cluster.nodes[0].net.apply(table).await.unwrap();
}

#[test]
fn host_nothing_of_the_pools_leaves_in_the_clear() {
    on_cluster(1, |cluster| async move {
        with_device(&cluster).await;
        let Cluster { mut nodes, outside } = cluster;
        let node = nodes.remove(0);
        let client = node.pod("client", 3).await;
        let Node { netns, net, .. } = node;
        let ear = Ear::open(&outside);
        let (targets, world) = (targets(), IpAddr::from([192, 0, 2, 100]));
        let check = |when: &str| {
            within(client.netns(), || send_to_all(&targets));
            within(&netns, || send_to_all(&targets));
            within(client.netns(), || send_to_all(&[world]));
            let heard = ear.heard();
            assert!(heard.contains(&world), "{when}: the ear is deaf: {heard:?}");
            let ours: Vec<_> = heard.iter().filter(|address| is_ours(address)).collect();
            assert!(ours.is_empty(), "{when}: {ours:?} came by the default route");
        };
        check("before there is a tunnel");
        within(&netns, || {
            run("ip tuntap add dev w-tun mode tun");
            run("ip link set w-tun up");
        });
        let has_route = || within(&netns, || run("ip route show 10.128.2.0/24")).contains("w-tun");
        eventually("a route into the device", has_route);
        check("while nobody reads the device");
        within(&netns, || run("ip link set w-tun down"));
        check("while the device is down");
        within(&netns, || run("ip link del w-tun"));
        check("when the device is gone");
        within(&netns, || run("nft flush ruleset"));
        check("after somebody emptied the rules");
        // Nobody is there to put anything back; what is left are routes.
        drop(net);
        within(&netns, || {
            run("nft flush ruleset");
            run("ip link del w-node01");
        });
        check("when the daemon, its rules and its devices are gone");
    });
}

#[test]
fn host_strangers_do_not_get_in() {
    on_cluster(1, |cluster| async move {
        let node = &cluster.nodes[0];
        let web = node.pod("web", 2).await;
        let _servers = web.serve("web", 80);
        let frontends = [Frontend::Address(vip(1)), Frontend::Address(vip6(1))];
        let table = |from| Table {
            services: vec![service("web", &frontends, &[&web], from)].into(),
            ..Table::default()
        };
        cluster.apply(Carrier::Vxlan, table).await;
        within(&cluster.outside, || {
            run("ip route add 10.128.0.0/10 via 192.0.2.1");
            run("ip route add 10.64.0.0/16 via 192.0.2.1");
            run("ip route add fd00::/15 via 2001:db8::1");
        });
        for to in [web.v4(), web.v6()] {
            assert_eq!(within(&cluster.outside, || tcp_to_briefly(to, 80)), "silence", "{to}");
        }
        for to in [vip(1), vip6(1)] {
            assert_eq!(within(&cluster.outside, || tcp_to(to, 80)), "refused", "{to}");
        }
        // What was published is another matter.
        let published =
            |bind: IpAddr| Frontend::Published { bind, protocol: Tcp, port: 8080, target: 80 };
        let any = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let frontends = any.map(published);
        let table = |from| Table {
            services: vec![service("web", &frontends, &[&web], from)].into(),
            ..Table::default()
        };
        cluster.apply(Carrier::Vxlan, table).await;
        for (to, from) in [("192.0.2.1", "192.0.2.100"), ("2001:db8::1", "2001:db8::100")] {
            let to = to.parse().unwrap();
            assert_eq!(within(&cluster.outside, || tcp_to(to, 8080)), format!("web {from}"));
        }
        for to in [web.v4(), web.v6()] {
            assert_eq!(within(&cluster.outside, || tcp_to_briefly(to, 80)), "silence", "{to}");
        }
    });
}

#[test]
fn host_forged_sources_are_not_heard() {
    on_cluster(1, |cluster| async move {
        let node = &cluster.nodes[0];
        cluster.apply(Carrier::Vxlan, |_| Table::default()).await;
        let (web, other, liar) =
            (node.pod("web", 2).await, node.pod("other", 3).await, node.pod("liar", 4).await);
        let outside: [IpAddr; 2] = [[192, 0, 2, 100].into(), "2001:db8::100".parse().unwrap()];
        for (family, (to, true_source)) in
            [(web.v4(), liar.v4()), (web.v6(), liar.v6())].into_iter().enumerate()
        {
            let ear = within(web.netns(), || UdpSocket::bind((to, 90))).unwrap();
            let ear_outside =
                within(&cluster.outside, || UdpSocket::bind((outside[family], 90))).unwrap();
            for ear in [&ear, &ear_outside] {
                ear.set_read_timeout(Some(SILENCE)).unwrap();
            }
            let (nobody, siblings, stranger) = match to {
                IpAddr::V4(_) => ("10.128.1.77", other.v4(), "198.51.100.7"),
                IpAddr::V6(_) => ("fd00:1::77", other.v6(), "2001:db8:7::7"),
            };
            let forged = [nobody.parse().unwrap(), siblings, stranger.parse().unwrap()];
            for from in forged {
                let len = if from.is_ipv4() { 32 } else { 128 };
                within(liar.netns(), || {
                    let nodad = if from.is_ipv4() { "" } else { "nodad" };
                    run(&format!("ip addr add {from}/{len} dev eth0 {nodad}"));
                    let mouth = UdpSocket::bind((from, 0)).unwrap();
                    for to in [to, outside[family]] {
                        mouth.send_to(b"lie", (to, 90)).unwrap();
                    }
                    run(&format!("ip addr del {from}/{len} dev eth0"));
                });
                assert!(ear.recv_from(&mut [0; 8]).is_err(), "{from} was heard");
                assert!(ear_outside.recv_from(&mut [0; 8]).is_err(), "{from} was heard outside");
            }
            let mouth = within(liar.netns(), || UdpSocket::bind((true_source, 0))).unwrap();
            mouth.send_to(b"hello", (to, 90)).unwrap();
            assert_eq!(ear.recv_from(&mut [0; 8]).unwrap().1.ip(), true_source);
        }
    });
}
