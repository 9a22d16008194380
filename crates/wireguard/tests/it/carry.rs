//! What is carried: pings, streams, many at a time, over both families, packets of every size.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use warren_wireguard::PresharedKey;

use crate::world::{Echo, Host, Stream, answers, assert_answers, eventually, join, on_hosts};

/// One echo request of ICMP and its answer.
fn ping(from: &Host, to: &Host) -> Duration {
    let target = SocketAddr::new(to.inner(false), 0);
    from.within(|| {
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
        let icmp = rustix::net::ipproto::ICMP;
        let flags = SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, Some(icmp))
                .unwrap();
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let start = Instant::now();
        let request = [8, 0, 0, 0, 0, 0, 0, 1, 7, 7, 7, 7];
        rustix::net::sendto(&socket, &request, SendFlags::empty(), &target).unwrap();
        let mut answer = [0; 64];
        let len = socket.recv(&mut answer).unwrap();
        assert_eq!((answer[0], &answer[8..len]), (0, &[7, 7, 7, 7][..]));
        start.elapsed()
    })
}

#[test]
fn host_ping_brings_up_a_session() {
    on_hosts(|mut one, mut two| {
        join(&mut one, &mut two);
        assert_eq!(one.stats().handshake_ms, None, "nothing is sent before it is needed");
        ping(&one, &two);
        ping(&two, &one);
        // What was sent is counted after it was sent.
        eventually("all is counted", || one.stats().sent_packets == 4);
        let (here, there) = (one.stats(), two.stats());
        assert!(here.handshake_ms.is_some() && there.handshake_ms.is_some());
        // A handshake, the keepalive that confirms it, two requests, two answers.
        assert_eq!((here.sent_packets, here.received_packets), (4, 3));
        assert_eq!((there.sent_packets, there.received_packets), (3, 4));
        assert_eq!(
            (here.sent_bytes, here.received_bytes),
            (there.received_bytes, there.sent_bytes)
        );
        assert!(here.drops.iter().chain(&there.drops).all(|(_, count)| *count == 0));
    });
}

#[test]
fn host_streams_of_both_families_arrive_byte_by_byte() {
    on_hosts(|mut one, mut two| {
        join(&mut one, &mut two);
        let streams: Vec<Stream> = [(&one, &two, false), (&two, &one, true), (&one, &two, true)]
            .into_iter()
            .map(|(from, to, v6)| Stream::start(from, to, v6))
            .collect();
        for stream in &streams {
            eventually("30 MB", || stream.bytes() > 30_000_000);
        }
        for stream in streams {
            assert!(stream.stop() > 30_000_000);
        }
        // Large writes to the device: fewer packets than segments, none lost by us.
        assert!(two.stats().drops.iter().all(|(_, count)| *count == 0));
    });
}

#[test]
fn host_several_workers() {
    on_hosts(|mut one, mut two| {
        (one.queues, two.queues) = (3, 2);
        join(&mut one, &mut two);
        let streams: Vec<Stream> = (0..6).map(|n| Stream::start(&one, &two, n % 2 == 0)).collect();
        for stream in &streams {
            eventually("5 MB", || stream.bytes() > 5_000_000);
        }
        for stream in streams {
            stream.stop();
        }
        assert_answers(&two, &one);
    });
}

#[test]
fn host_underlay_of_ipv6_and_preshared_key() {
    on_hosts(|mut one, mut two| {
        let secret = |mut peer: warren_wireguard::PeerConfig, host: &Host| {
            peer.endpoint = Some(host.endpoint(true));
            peer.preshared_key = Some(PresharedKey::from_bytes([9; 32]));
            peer
        };
        let (of_one, of_two) = (secret(one.peer(), &one), secret(two.peer(), &two));
        one.start(&[of_two]);
        two.start(&[of_one]);
        assert_answers(&one, &two);
        let stream = Stream::start(&one, &two, true);
        eventually("5 MB", || stream.bytes() > 5_000_000);
        stream.stop();
        // Without it on one side no handshake is accepted.
        one.apply(&[two.peer()]);
        assert!(!answers(&one, &Echo::on(&two, false), Duration::from_secs(1)));
    });
}

#[test]
fn host_datagrams_of_every_size() {
    on_hosts(|mut one, mut two| {
        join(&mut one, &mut two);
        assert_answers(&one, &two);
        let echo = Echo::on(&two, false);
        one.within(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let mut buffer = [0; 2000];
            // To beyond the MTU: the kernel cuts those before they reach the device.
            for len in (1..1900).step_by(7) {
                let data: Vec<u8> = (0..=255).cycle().take(len).collect();
                socket.send_to(&data, echo.address).unwrap();
                let (got, _) = socket.recv_from(&mut buffer).unwrap();
                assert_eq!(&buffer[..got], &data[..]);
            }
        });
    });
}

#[test]
fn host_underlay_of_a_smaller_mtu() {
    on_hosts(|mut one, mut two| {
        // Many datagrams at once are refused then, single ones are cut on the way.
        one.run("ip link set eth0 mtu 1300");
        two.run("ip link set eth0 mtu 1300");
        join(&mut one, &mut two);
        let stream = Stream::start(&one, &two, false);
        eventually("3 MB", || stream.bytes() > 3_000_000);
        stream.stop();
    });
}
