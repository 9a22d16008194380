//! Published ports: from where they answer, who answers, who may not.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, socket_with,
};

use warren_net::Protocol::{Tcp, Udp};

use crate::world::{
    ANY, Connection, HOST, KEY, LOOPBACK, OTHER, Server, UdpClient, eventually, on_host, run,
    table, tcp, tcp_briefly, udp, within,
};

#[test]
fn host_published_port_answers_from_everywhere() {
    on_host(|world| async move {
        let web = world.container("web", 2).await;
        let sibling = world.container("sibling", 3).await;
        let _servers = (web.serve("web"), web.serve_udp("web"));
        // As strict as distributions have it.
        std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1").unwrap();
        world.publish(&[(Tcp, ANY, 8080, &[&web]), (Udp, ANY, 8080, &[&web])]).await;
        for ask in [tcp, udp] {
            // Another machine, whose address the container sees.
            assert_eq!(within(&world.other, || ask(HOST, 8080)), "web 192.0.2.2");
            // The host itself, by its address and by its loopback.
            assert_eq!(ask(HOST, 8080), "web 192.0.2.1");
            assert_eq!(ask(LOOPBACK, 8080), "web 169.254.1.1");
            assert_eq!(ask(Ipv4Addr::new(127, 1, 2, 3), 8080), "web 169.254.1.1");
            // A sibling, and the container itself by the way of the host.
            assert_eq!(within(sibling.netns(), || ask(HOST, 8080)), "web 10.128.0.3");
            assert_eq!(within(web.netns(), || ask(HOST, 8080)), "web 169.254.1.1");
            // The host and siblings directly.
            assert_eq!(ask(web.address(), 80), "web 169.254.1.1");
            assert_eq!(within(sibling.netns(), || ask(web.address(), 80)), "web 10.128.0.3");
        }
    });
}

#[test]
fn host_bind_to_loopback_answers_loopback_only() {
    on_host(|world| async move {
        let web = world.container("web", 2).await;
        let _server = web.serve("web");
        world.publish(&[(Tcp, LOOPBACK, 8080, &[&web])]).await;
        assert_eq!(tcp(LOOPBACK, 8080), "web 169.254.1.1");
        assert_eq!(tcp(HOST, 8080), "refused");
        assert_eq!(within(&world.other, || tcp(HOST, 8080)), "refused");
        assert_eq!(within(web.netns(), || tcp(HOST, 8080)), "refused");
        // Another machine that forges packets for our 127.0.0.1, and a host that would take them.
        std::fs::write("/proc/sys/net/ipv4/conf/up0/route_localnet", "1").unwrap();
        within(&world.other, || {
            std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap();
            run("ip addr del 127.0.0.1/8 dev lo");
            run("ip route add 127.0.0.1/32 via 192.0.2.1 dev eth0 src 192.0.2.2");
            assert_eq!(tcp_briefly(LOOPBACK, 8080), "silence");
        });
        // A bind to another address of the host answers there alone.
        world.publish(&[(Tcp, HOST, 8080, &[&web])]).await;
        assert_eq!(tcp(HOST, 8080), "web 192.0.2.1");
        assert_eq!(tcp(LOOPBACK, 8080), "refused");
    });
}

#[test]
fn host_backends_take_turns() {
    on_host(|world| async move {
        let (one, two) = (world.container("one", 2).await, world.container("two", 3).await);
        let _servers = (one.serve("one"), two.serve("two"));
        world.publish(&[(Tcp, ANY, 8080, &[&one, &two])]).await;
        let answers: Vec<String> =
            within(&world.other, || (0..20).map(|_| tcp(HOST, 8080)).collect());
        let count = |name: &str| answers.iter().filter(|answer| answer.starts_with(name)).count();
        assert_eq!((count("one"), count("two")), (10, 10), "{answers:?}");
    });
}

#[test]
fn host_port_without_backends_refuses() {
    on_host(|world| async move {
        let web = world.container("web", 2).await;
        world.publish(&[(Tcp, ANY, 8080, &[]), (Udp, ANY, 8080, &[])]).await;
        // As in life: the ports are reserved.
        let _reserved = (
            world.net.reserve(Tcp, ANY, 8080).unwrap(),
            world.net.reserve(Udp, ANY, 8080).unwrap(),
        );
        for ask in [tcp, udp] {
            assert_eq!(within(&world.other, || ask(HOST, 8080)), "refused");
            assert_eq!(ask(HOST, 8080), "refused");
            assert_eq!(ask(LOOPBACK, 8080), "refused");
            assert_eq!(within(web.netns(), || ask(HOST, 8080)), "refused");
        }
    });
}

#[test]
fn host_invalid_packets_do_not_pass() {
    on_host(|world| async move {
        let web = world.container("web", 2).await;
        let sibling = world.container("sibling", 3).await;
        // Hears every TCP packet that arrives, checksum right or wrong.
        let ear = within(web.netns(), raw_tcp_socket);
        let heard_port = || {
            let mut packet = [0; 128];
            rustix::net::recv(&ear, &mut packet, RecvFlags::empty()).unwrap();
            u16::from_be_bytes([packet[22], packet[23]])
        };
        for from in [sibling.netns(), &*world.other] {
            within(from, || send_invalid(web.address(), 90));
            // From another machine nothing passes that was not published.
            within(sibling.netns(), || tcp(web.address(), 91));
            assert_eq!(heard_port(), 91);
            // The refusal's own packets are not heard: they leave.
        }
    });
}

fn raw_tcp_socket() -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    socket_with(AddressFamily::INET, SocketType::RAW, flags, Some(ipproto::TCP)).unwrap()
}

/// A connection attempt with a wrong checksum: tracking calls it invalid.
fn send_invalid(to: Ipv4Addr, port: u16) {
    let [hi, lo] = port.to_be_bytes();
    let header = [0x80, 0, hi, lo, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0xde, 0xad, 0, 0];
    let to = SocketAddrV4::new(to, 0);
    rustix::net::sendto(raw_tcp_socket(), &header, SendFlags::empty(), &to).unwrap();
}

#[test]
fn host_refusals_know_their_address() {
    on_host(|world| async move {
        let web = world.container("web", 2).await;
        // Somebody came to listen while nobody reserved: the port is still ours.
        let _foreign = (Server::tcp("foreign", ANY, 8080), Server::udp("foreign", ANY, 8080));
        world.publish(&[(Tcp, LOOPBACK, 8080, &[]), (Udp, LOOPBACK, 8080, &[])]).await;
        for ask in [tcp, udp] {
            assert_eq!(ask(LOOPBACK, 8080), "refused");
            assert_eq!(ask(HOST, 8080), "foreign 192.0.2.1");
        }
        world.publish(&[(Tcp, ANY, 8080, &[]), (Udp, ANY, 8080, &[])]).await;
        for ask in [tcp, udp] {
            assert_eq!(ask(HOST, 8080), "refused");
            assert_eq!(within(web.netns(), || ask(HOST, 8080)), "refused");
        }
    });
}

#[test]
fn host_gateway_ports_are_the_nodes_own() {
    on_host(|world| async move {
        let web = world.container("web", 2).await;
        let _servers = (web.serve("web"), web.serve_udp("web"));
        let gateway = Ipv4Addr::new(169, 254, 1, 1);
        let _own = (Server::tcp("own", gateway, 54), Server::udp("own", gateway, 54));
        for backends in [&[][..], &[&web]] {
            world.publish(&[(Tcp, ANY, 54, backends), (Udp, ANY, 54, backends)]).await;
            for ask in [tcp, udp] {
                assert_eq!(within(web.netns(), || ask(gateway, 54)), "own 10.128.0.2");
            }
        }
    });
}

#[test]
fn host_names_are_asked_of_the_node_that_has_the_container() {
    on_host(|world| async move {
        let web = world.container("web", 2).await;
        let gateway = Ipv4Addr::new(169, 254, 1, 1);
        let server = warren_net::name_server(KEY);
        let (at, port) = (*server.ip(), server.port());
        // A resolver of the host, and a port of the containers', are somebody else's.
        let _others = (Server::tcp("other", ANY, 53), Server::udp("other", ANY, 53));
        for backends in [&[][..], &[&web]] {
            world.publish(&[(Tcp, ANY, 53, backends), (Udp, ANY, 53, backends)]).await;
            for ask in [tcp, udp] {
                assert_eq!(within(web.netns(), || ask(gateway, 53)), "refused");
            }
            let _server = (Server::tcp("dns", at, port), Server::udp("dns", at, port));
            for ask in [tcp, udp] {
                assert_eq!(within(web.netns(), || ask(gateway, 53)), "dns 10.128.0.2");
            }
        }
    });
}

#[test]
fn host_foreign_addresses_are_not_hijacked() {
    on_host(|world| async move {
        let web = world.container("web", 2).await;
        let client = world.container("client", 3).await;
        let _server = web.serve("web");
        let _foreign = within(&world.other, || Server::tcp("foreign", ANY, 8080));
        world.publish(&[(Tcp, ANY, 8080, &[&web])]).await;
        // The same port of another machine is that machine's; containers appear there as the host.
        assert_eq!(tcp(OTHER, 8080), "foreign 192.0.2.1");
        assert_eq!(within(client.netns(), || tcp(OTHER, 8080)), "foreign 192.0.2.1");
    });
}

#[test]
fn host_containers_are_shielded() {
    on_host(|world| async move {
        let web = world.container("web", 2).await;
        let liar = world.container("liar", 3).await;
        let _server = web.serve("web");
        // Another machine that routes to the pool gets in by published ports alone.
        assert_eq!(within(&world.other, || tcp_briefly(web.address(), 80)), "silence");
        // A container that takes another address is not heard under it.
        let ear = within(web.netns(), || UdpSocket::bind((ANY, 90))).unwrap();
        ear.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        within(liar.netns(), || run("ip addr add 10.128.0.77/32 dev eth0"));
        for from in [Ipv4Addr::new(10, 128, 0, 77), liar.address()] {
            let mouth = within(liar.netns(), || UdpSocket::bind((from, 0))).unwrap();
            mouth.send_to(b"hello", (web.address(), 90)).unwrap();
        }
        let (_, heard) = ear.recv_from(&mut [0; 8]).unwrap();
        assert_eq!(heard.ip(), liar.address());
        // An address of the pool that nobody has does not leave the host.
        let nobody = Ipv4Addr::new(10, 128, 0, 99);
        run("ip route add default via 192.0.2.2");
        let answer = within(web.netns(), || tcp(nobody, 80));
        assert!(answer.starts_with("No route to host"), "{answer}");
        // Nor does what was published to it.
        let mut stale = table(&[(Tcp, ANY, 8080, &[&web])]);
        stale.published[0].backends = vec![SocketAddrV4::new(nobody, 80)];
        world.net.apply(stale).await.unwrap();
        assert_eq!(within(&world.other, || tcp(HOST, 8080)), "refused");
    });
}

#[test]
fn host_established_connections_survive_changes() {
    on_host(|world| async move {
        let (one, two) = (world.container("one", 2).await, world.container("two", 3).await);
        let _servers = (one.serve("one"), two.serve("two"));
        world.publish(&[(Tcp, ANY, 8080, &[&one])]).await;
        let mut open = vec![
            within(&world.other, || Connection::open(HOST, 8080)).unwrap(),
            Connection::open(LOOPBACK, 8080).unwrap(),
            within(two.netns(), || Connection::open(HOST, 8080)).unwrap(),
            within(one.netns(), || Connection::open(HOST, 8080)).unwrap(),
        ];
        for round in 0..50 {
            match round % 5 {
                0 => world.publish(&[(Tcp, ANY, 8080, &[&one, &two])]).await,
                1 => world.publish(&[(Tcp, ANY, 8080, &[&two]), (Tcp, ANY, 81, &[])]).await,
                2 => world.publish(&[]).await,
                3 => world.publish(&[(Tcp, ANY, 8080, &[])]).await,
                _ => world.publish(&[(Tcp, ANY, 8080, &[&one]), (Udp, ANY, 81, &[&one])]).await,
            }
            for connection in &mut open {
                assert!(connection.echoes(), "{} after round {round}", connection.greeting);
            }
        }
    });
}

#[test]
fn host_datagram_flows_follow_the_backends() {
    on_host(|world| async move {
        let (one, two) = (world.container("one", 2).await, world.container("two", 3).await);
        let _servers = (one.serve_udp("one"), two.serve_udp("two"));
        let clients = || [HOST, LOOPBACK].map(|to| UdpClient::open(to, 8080).unwrap());
        let mut clients = Vec::from(clients());
        clients.push(within(&world.other, || UdpClient::open(HOST, 8080)).unwrap());
        let expect = |name: &str| {
            for client in &clients {
                let answer = client.outcome();
                assert!(answer.starts_with(name), "{answer}, not {name}");
            }
        };
        // Before anything is published: the flows are tracked, untranslated.
        expect("refused");
        world.publish(&[(Udp, ANY, 8080, &[&one])]).await;
        expect("one");
        world.publish(&[(Udp, ANY, 8080, &[&two])]).await;
        expect("two");
        // A flow stays where it is while its backend remains.
        world.publish(&[(Udp, ANY, 8080, &[&one, &two])]).await;
        expect("two");
        world.publish(&[(Udp, ANY, 8080, &[])]).await;
        expect("refused");
        world.publish(&[(Udp, ANY, 8080, &[&one]), (Udp, ANY, 8081, &[&two])]).await;
        expect("one");
    });
}

#[test]
fn host_foreign_tables_are_left_alone() {
    on_host(|world| async move {
        run("nft add table ip foreign");
        run(
            "nft add chain ip foreign forward { type filter hook forward priority 10 ; policy accept ; }",
        );
        run("nft add rule ip foreign forward counter");
        run("nft add table inet warren-testnode");
        let foreign =
            || (run("nft -s list table ip foreign"), run("nft list table inet warren-testnode"));
        let before = foreign();
        let web = world.container("web", 2).await;
        world.publish(&[(Tcp, ANY, 8080, &[&web])]).await;
        world.publish(&[]).await;
        assert_eq!(foreign(), before);
        world.net.clean().await.unwrap();
        assert_eq!(foreign(), before);
    });
}

#[test]
fn host_emptied_rule_set_is_replaced() {
    on_host(|world| async move {
        let web = world.container("web", 2).await;
        let _server = web.serve("web");
        world.publish(&[(Tcp, ANY, 8080, &[&web])]).await;
        // As a restart of the nftables service does.
        run("nft flush ruleset");
        eventually("the port answers again", || {
            within(&world.other, || tcp(HOST, 8080)) == "web 192.0.2.2"
        });
        world.publish(&[(Tcp, ANY, 8080, &[&web]), (Tcp, ANY, 8081, &[&web])]).await;
        assert_eq!(within(&world.other, || tcp(HOST, 8080)), "web 192.0.2.2");
        assert_eq!(within(&world.other, || tcp(HOST, 8081)), "web 192.0.2.2");
    });
}

#[test]
fn host_thousands_of_ports_are_one_batch() {
    on_host(|world| async move {
        let web = world.container("web", 2).await;
        let _server = web.serve("web");
        let mut many = table(&[]);
        for port in 10_000..13_000 {
            many.published.extend(table(&[(Tcp, ANY, port, &[&web])]).published);
        }
        world.net.apply(many).await.unwrap();
        assert_eq!(within(&world.other, || tcp(HOST, 12_999)), "web 192.0.2.2");
        world.publish(&[(Tcp, ANY, 10_000, &[&web])]).await;
        assert_eq!(within(&world.other, || tcp(HOST, 12_999)), "refused");
        assert_eq!(within(&world.other, || tcp(HOST, 10_000)), "web 192.0.2.2");
    });
}

#[test]
fn host_connections_to_a_removed_container_end() {
    on_host(|world| async move {
        let (one, two) = (world.container("one", 2).await, world.container("two", 3).await);
        let _servers = (one.serve("one"), two.serve("two"));
        world.publish(&[(Tcp, ANY, 8080, &[&one])]).await;
        let mut open = within(&world.other, || Connection::open(HOST, 8080)).unwrap();
        world.publish(&[(Tcp, ANY, 8080, &[&two])]).await;
        assert!(open.echoes());
        world.net.detach("one").await.unwrap();
        // The other backend knows nothing of it and says so: the client need not wait for a time-out.
        assert!(!open.echoes());
        eventually("a new connection", || {
            within(&world.other, || tcp(HOST, 8080)) == "two 192.0.2.2"
        });
    });
}
