//! What must not pass, and what must not be seen.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use warren_wireguard::Reason;

use crate::world::{
    Echo, Host, SILENCE, Stream, answers, assert_answers, assert_silent, eventually, join, on_hosts,
};

#[test]
fn host_removed_peer_is_refused_at_once() {
    on_hosts(|mut one, mut two| {
        join(&mut one, &mut two);
        let stream = Stream::start(&one, &two, false);
        eventually("1 MB", || stream.bytes() > 1_000_000);
        two.apply(&[]);
        let refused =
            |host: &Host| host.dropped(Reason::UnknownSession) + host.dropped(Reason::UnknownPeer);
        eventually("packets refused", || refused(&two) > 0);
        // What was in the socket's buffer of the receiver, and no more.
        std::thread::sleep(Duration::from_millis(50));
        let after = stream.bytes();
        std::thread::sleep(SILENCE);
        assert_eq!(stream.bytes(), after);
        assert_silent(&two, &one);
        // It is welcome again, and the stream has not noticed more than a pause.
        two.apply(&[one.peer()]);
        eventually("the stream goes on", || stream.bytes() > after + 1_000_000);
        stream.stop();
    });
}

#[test]
fn host_source_that_is_not_allowed_is_dropped() {
    on_hosts(|mut one, mut two| {
        join(&mut one, &mut two);
        assert_answers(&one, &two);
        one.run("ip addr add 10.9.77.1/32 dev wr0");
        let echo = Echo::on(&two, false);
        let (here, spoofed) = (SocketAddr::new(one.inner(false), 0), "10.9.77.1:0");
        let ask = |from: SocketAddr| {
            let socket = UdpSocket::bind(from)?;
            socket.set_read_timeout(Some(SILENCE))?;
            socket.send_to(b"hello", echo.address)?;
            socket.recv(&mut [0; 10])
        };
        assert_eq!(one.within(|| ask(here)).unwrap(), 5, "the same from its own address");
        let before = two.stats();
        assert!(one.within(|| ask(spoofed.parse().unwrap())).is_err());
        let after = two.stats();
        assert_eq!(after.dropped(Reason::Spoofed), before.dropped(Reason::Spoofed) + 1);
        // Nor does one that belongs to another peer: the table says whose it is, not the sender.
        let mut other = two.peer();
        other.keys = vec![crate::world::key(7).public()];
        other.allowed = vec![crate::world::prefix("10.9.77.0".parse().unwrap(), 24)];
        two.apply(&[one.peer(), other]);
        assert!(one.within(|| ask(spoofed.parse().unwrap())).is_err());
        assert_eq!(two.stats().dropped(Reason::Spoofed), after.dropped(Reason::Spoofed) + 1);
    });
}

#[test]
fn host_destination_of_no_peer_is_dropped() {
    on_hosts(|mut one, mut two| {
        join(&mut one, &mut two);
        one.within(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.send_to(b"hello", "10.9.200.1:9").unwrap();
        });
        eventually("counted", || one.dropped(Reason::Unroutable) > 0);
        assert_eq!(one.stats().sent_packets, 0);
    });
}

/// All frames on a link until `mark` was seen in one or `patience` has passed.
fn is_seen(host: &Host, mark: &[u8], patience: Duration, meanwhile: impl FnOnce() + Send) -> bool {
    let capture = host.within(|| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let all = rustix::net::Protocol::from_raw(std::num::NonZeroU32::new(0x0300).unwrap());
        rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(all)).unwrap()
    });
    meanwhile();
    let mut frame = vec![0; 70_000];
    let end = Instant::now() + patience;
    while Instant::now() < end {
        match rustix::net::recvfrom(&capture, &mut frame[..], RecvFlags::empty()) {
            Ok((len, ..)) => {
                // Frames of the tunnel's device are plain, of course.
                let is_underlay = len > 14 && is_ethernet(&frame);
                if is_underlay && frame[..len].windows(mark.len()).any(|window| window == mark) {
                    return true;
                }
            }
            Err(error) if io::Error::from(error).kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("{error}"),
        }
    }
    false
}

/// The device of the tunnel has no link header: its frames begin with an IP header.
fn is_ethernet(frame: &[u8]) -> bool {
    matches!([frame[12], frame[13]], [8, 0] | [0x86, 0xdd] | [8, 6])
}

#[test]
fn host_nothing_is_readable_on_the_wire() {
    on_hosts(|mut one, mut two| {
        join(&mut one, &mut two);
        assert_answers(&one, &two);
        let mark = b"this must not be read by anyone else";
        let send = |to: SocketAddr| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            for _ in 0..20 {
                socket.send_to(mark, to).unwrap();
            }
        };
        let plain: IpAddr = [192, 0, 2, 2].into();
        let control = || one.within(|| send(SocketAddr::new(plain, 9)));
        assert!(is_seen(&two, mark, Duration::from_secs(5), control), "the capture works");
        let inner = SocketAddr::new(two.inner(false), 9);
        let before = two.stats().received_packets;
        assert!(!is_seen(&two, mark, SILENCE, || one.within(|| send(inner))));
        assert!(two.stats().received_packets >= before + 20, "it was sent through the tunnel");
    });
}

#[test]
fn host_garbage_and_floods() {
    on_hosts(|mut one, mut two| {
        join(&mut one, &mut two);
        let stream = Stream::start(&one, &two, false);
        eventually("1 MB", || stream.bytes() > 1_000_000);
        let target = two.endpoint(false);
        one.within(|| {
            let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
            for n in 0..2000_usize {
                let datagram: Vec<u8> =
                    (0..n % 300).map(|at| u8::try_from((at * n) % 251).unwrap()).collect();
                socket.send_to(&datagram, target).unwrap();
                // Of each kind, of the right length, and nothing else right.
                for (kind, len) in [(1, 148), (2, 92), (3, 64), (4, 32)] {
                    let mut datagram = vec![0; len];
                    datagram[0] = kind;
                    datagram[5..9].copy_from_slice(&(u32::try_from(n).unwrap()).to_le_bytes());
                    socket.send_to(&datagram, target).unwrap();
                }
            }
        });
        eventually("garbage counted", || two.dropped(Reason::Malformed) > 100);
        eventually("strange keys counted", || two.dropped(Reason::UnknownPeer) > 100);
        eventually("strange sessions counted", || two.dropped(Reason::UnknownSession) > 100);
        assert_eq!(two.stats().endpoint, Some(one.endpoint(false)), "nobody was believed");
        stream.goes_on();
        stream.stop();
        assert!(answers(&one, &Echo::on(&two, false), crate::world::PATIENCE));
    });
}
