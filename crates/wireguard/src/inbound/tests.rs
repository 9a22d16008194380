//! Two engines without devices: what their openers make of messages, right ones and others.
//!
//! `hostile_bytes` is the fuzz harness: it feeds mutations of real messages, of packets within
//! right messages (as a hostile peer would send), and of reads of a TUN device. It runs for a
//! second, or for `FUZZ_SECONDS`, from `FUZZ_SEED`.

use std::time::{Duration, Instant};

use warren_base::clock::ManualClock;

use super::*;
use crate::key::PrivateKey;
use crate::link::{OVERHEAD, Sealed};
use crate::packet::{flag, samples};
use crate::segment::Segments;
use crate::table::{PeerConfig, Prefix, Table};

struct Side {
    clock: Arc<ManualClock>,
    shared: Shared,
    opener: Opener,
    received: Received,
    /// Messages that came in, as the socket brought them.
    seen: Vec<Vec<u8>>,
    /// Packets for the device.
    packets: Vec<Vec<u8>>,
}

fn side(n: u8) -> Side {
    let udp = Udp::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
    let clock = Arc::new(ManualClock::at(1_000_000));
    let timed: Arc<dyn warren_base::clock::Clock> = Arc::clone(&clock) as _;
    let shared = Shared::new(timed, udp, u32::from(n) << 8, None).unwrap();
    let opener = Inbound::new().opener;
    let received = Received::new();
    Side { clock, shared, opener, received, seen: Vec::new(), packets: Vec::new() }
}

fn key(n: u8) -> PrivateKey {
    PrivateKey::from_bytes([n; 32])
}

impl Side {
    fn address(&self) -> SocketAddr {
        self.shared.udp[0].address().unwrap()
    }

    fn apply(&self, own: &[u8], peers: &[(&[u8], SocketAddr)]) {
        let peers = peers.iter().map(|(keys, endpoint)| PeerConfig {
            keys: keys.iter().map(|n| key(*n).public()).collect(),
            via: None,
            preshared_key: None,
            endpoint: Some(*endpoint),
            allowed: vec![
                Prefix::new([10, 0, 0, keys[0] % 10].into(), 32).unwrap(),
                Prefix::new([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(keys[0] % 10)].into(), 128)
                    .unwrap(),
            ],
            keepalive: None,
        });
        let own = own.iter().map(|n| key(*n)).collect();
        self.shared.apply(&Table { own, peers: peers.collect() }).unwrap();
    }

    fn peer(&self) -> Arc<Peer> {
        Arc::clone(&self.shared.routing.load().entries[0].peer)
    }

    fn link(&self) -> Arc<Link> {
        let routing = self.shared.routing.load();
        self.shared.link_to(&routing, &routing.entries[0], self.shared.now_ms()).unwrap()
    }

    fn initiate(&self) {
        let mut out = [0; CONTROL_LEN];
        if let Some(len) = self.link().hold(self.shared.now_ms()).initiate(&mut out) {
            self.shared.udp[0].send(self.peer().endpoint().unwrap(), &out[..len]).unwrap();
        }
    }

    fn seal(&self, packet: &[u8]) -> Option<Vec<u8>> {
        let mut out = vec![0; packet.len() + OVERHEAD + CONTROL_LEN];
        match self.link().hold(self.shared.now_ms()).seal(packet, &mut out) {
            Sealed::Data(len) => Some(out[..len].to_vec()),
            Sealed::Initiation(_) | Sealed::Waits => None,
        }
    }

    fn feed(&mut self, from: SocketAddr, bytes: &[u8], len: usize) {
        let routing = self.shared.routing.load();
        let now = self.shared.now_ms();
        let turn = Turn { shared: &self.shared, routing: &routing, udp: &self.shared.udp[0], now };
        self.opener.message(&turn, from, bytes, len);
        let packets = &mut self.packets;
        self.opener.coalescer.drain(&mut self.opener.arena, |_, head, tails| {
            let mut packet = head.to_vec();
            tails.for_each(|tail| packet.extend_from_slice(tail));
            packets.push(packet);
        });
        self.opener.end = 0;
    }

    /// Takes all that has arrived.
    fn pump(&mut self) -> bool {
        let mut received = std::mem::replace(&mut self.received, Received::new());
        let is_some = self.shared.udp[0].receive(&mut received).is_ok();
        if is_some {
            for (from, bytes, len) in received.messages() {
                self.seen.push(bytes.to_vec());
                self.feed(from, bytes, len);
            }
        }
        self.received = received;
        is_some
    }

    fn dropped(&self, reason: Reason) -> u64 {
        let own = self.shared.drops.read();
        let of = |drops: &[(Reason, u64)]| drops.iter().find(|d| d.0 == reason).unwrap().1;
        let routing = self.shared.routing.load();
        let peers: u64 =
            routing.entries.iter().map(|entry| of(&entry.peer.counters.drops.read())).sum();
        of(&own) + peers
    }
}

fn settle(one: &mut Side, two: &mut Side) {
    while one.pump() | two.pump() {}
}

/// Two sides with a session.
fn joined() -> (Side, Side) {
    let (mut one, mut two) = (side(1), side(2));
    one.apply(&[1], &[(&[2], two.address())]);
    two.apply(&[2], &[(&[1], one.address())]);
    one.initiate();
    settle(&mut one, &mut two);
    (one, two)
}

fn ip(from: u8, to: u8, payload: &[u8]) -> Vec<u8> {
    samples::tcp(false, (from, to), 1, flag::ACK | flag::PSH, payload)
}

#[track_caller]
fn assert_carries(one: &mut Side, two: &mut Side) {
    two.packets.clear();
    let packet = ip(1, 2, b"hello");
    let message = one.seal(&packet).unwrap();
    two.feed(one.address(), &message, message.len());
    assert_eq!(two.packets, [packet]);
}

#[test]
fn a_session_carries_both_ways() {
    let (mut one, mut two) = joined();
    assert_carries(&mut one, &mut two);
    let message = two.seal(&ip(2, 1, b"hello")).unwrap();
    one.feed(two.address(), &message, message.len());
    assert_eq!(one.packets.len(), 1);
}

#[test]
fn drops_have_their_reasons() {
    let (mut one, mut two) = joined();
    let from = one.address();
    let check = |two: &mut Side, datagram: &[u8], reason: Reason| {
        let before = two.dropped(reason);
        two.feed(from, datagram, datagram.len());
        assert_eq!(two.dropped(reason), before + 1, "{reason}");
        assert!(two.packets.is_empty(), "{reason}");
    };
    let good = one.seal(&ip(1, 2, b"hello")).unwrap();
    let with = |at: usize| {
        let mut bad = good.clone();
        bad[at] ^= 1;
        bad
    };
    check(&mut two, &with(0), Reason::Malformed);
    check(&mut two, &good[..31], Reason::Malformed);
    check(&mut two, &with(6), Reason::UnknownSession);
    check(&mut two, &with(20), Reason::Forged);
    check(&mut two, &with(4), Reason::Expired);
    let spoofed = one.seal(&ip(3, 2, b"hello")).unwrap();
    check(&mut two, &spoofed, Reason::Spoofed);
    check(&mut two, &one.seal(&[0x45; 10]).unwrap(), Reason::Malformed);
    two.feed(from, &good, good.len());
    assert_eq!(two.packets.len(), 1);
    two.packets.clear();
    check(&mut two, &good, Reason::Replayed);
    let initiation = two.seen.iter().find(|m| m[0] == 1).unwrap().clone();
    check(&mut two, &initiation, Reason::HandshakeRefused);
    one.apply(&[9], &[(&[2], two.address())]);
    one.initiate();
    let before = two.dropped(Reason::UnknownPeer);
    settle(&mut one, &mut two);
    assert_eq!(two.dropped(Reason::UnknownPeer), before + 1);
}

#[test]
fn runs_of_messages_are_taken_apart() {
    let (one, mut two) = joined();
    // Two of one length, one shorter: as the kernel brings them; then strange lengths.
    let messages: Vec<Vec<u8>> = [b"hello".as_slice(), b"there", b"end"]
        .iter()
        .map(|payload| one.seal(&ip(1, 2, payload)).unwrap())
        .collect();
    two.feed(one.address(), &messages.concat(), messages[0].len());
    assert_eq!(two.packets, [ip(1, 2, b"hello"), ip(1, 2, b"there"), ip(1, 2, b"end")]);
    let more = one.seal(&ip(1, 2, b"hello")).unwrap();
    for len in [1, 31, more.len() - 1, more.len() + 1] {
        two.feed(one.address(), &more, len);
    }
    assert_eq!(two.packets.len(), 4);
}

#[test]
fn keys_overlap_and_the_newest_session_is_used() {
    let (mut one, mut two) = joined();
    let (at_one, at_two) = (one.address(), two.address());
    // One's new key is accepted, not used.
    two.apply(&[2], &[(&[1, 11], at_one)]);
    assert_carries(&mut one, &mut two);
    // It is offered, and used by both from then on.
    one.apply(&[11, 1], &[(&[2], at_two)]);
    let old = one.link();
    let offered = Pair { own: key(11).public(), remote: key(2).public() };
    let new = one.shared.link(&one.peer(), offered).unwrap();
    one.clock.advance(2);
    two.clock.advance(2);
    let mut out = [0; CONTROL_LEN];
    let len = new.hold(one.shared.now_ms()).initiate(&mut out).unwrap();
    one.shared.udp[0].send(at_two, &out[..len]).unwrap();
    // What is under way with the old session still counts.
    let late = one.seal(&ip(1, 2, b"late")).unwrap();
    settle(&mut one, &mut two);
    assert_eq!(one.link().pair, offered);
    assert_eq!(two.link().pair.remote, key(11).public());
    two.packets.clear();
    two.feed(at_one, &late, late.len());
    assert_eq!(two.packets, [ip(1, 2, b"late")]);
    assert_eq!(two.link().pair.remote, key(11).public(), "an old session does not come back");
    assert_carries(&mut one, &mut two);
    // But where one has lost the new session, as its silence tells, the old one is used again.
    let late = |one: &Side| {
        let mut out = [0; 200];
        let sealed = old.hold(one.shared.now_ms()).seal(&ip(1, 2, b"late"), &mut out);
        let Sealed::Data(len) = sealed else { panic!("{sealed:?}") };
        out[..len].to_vec()
    };
    two.clock.advance(1000);
    let message = late(&one);
    two.feed(at_one, &message, message.len());
    assert_eq!(two.link().pair.remote, key(11).public());
    two.clock.advance(1001);
    let message = late(&one);
    two.feed(at_one, &message, message.len());
    assert_eq!(two.link().pair.remote, key(1).public());
    two.clock.advance(3000);
    assert_carries(&mut one, &mut two);
    assert_eq!(two.link().pair.remote, key(11).public());
    // Only the own key is ours to choose.
    let routing = two.shared.routing.load_full();
    assert!(
        routing.offers(two.link().pair)
            && routing.offered(&routing.entries[0]).unwrap().remote == key(1).public()
    );
    // Then the old one ends.
    one.apply(&[11], &[(&[2], at_two)]);
    assert!(one.shared.find(old.index).is_none());
    assert!(one.shared.link(&one.peer(), old.pair).is_none());
    two.apply(&[2], &[(&[11], at_one)]);
    assert_carries(&mut one, &mut two);
    assert_eq!(two.peer().links().len(), 1);
}

#[test]
fn floods_of_handshakes_are_asked_for_proof() {
    let (mut one, mut two) = (side(1), side(2));
    one.apply(&[1], &[(&[2], two.address())]);
    two.apply(&[2], &[(&[1], one.address())]);
    // Valid to the first check, as anyone can make them who knows the public key.
    for n in 0..crate::link::HANDSHAKES_MAX + 50 {
        let stranger = side(3);
        stranger.apply(&[u8::try_from(100 + n % 50).unwrap()], &[(&[2], two.address())]);
        stranger.initiate();
    }
    while two.pump() {}
    assert!(two.dropped(Reason::RateLimited) >= 30, "{}", two.dropped(Reason::RateLimited));
    // An honest peer gets a cookie, and through with it.
    one.initiate();
    settle(&mut one, &mut two);
    let kinds: Vec<u8> = one.seen.iter().map(|message| message[0]).collect();
    assert_eq!(kinds, [3]);
}

#[test]
fn a_removed_peer_is_a_stranger() {
    let (one, mut two) = joined();
    let message = one.seal(&ip(1, 2, b"hello")).unwrap();
    let peer = two.peer();
    two.apply(&[2], &[]);
    two.feed(one.address(), &message, message.len());
    assert!(two.packets.is_empty());
    assert_eq!(two.dropped(Reason::UnknownSession), 1);
    let pair = Pair { own: key(2).public(), remote: key(1).public() };
    assert!(two.shared.link(&peer, pair).is_none(), "whoever still holds it gets no session");
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end.max(1)).unwrap()).unwrap()
    }

    /// Flips, cuts, repeats, grows and joins.
    fn mutate(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = corpus[self.below(corpus.len())].clone();
        for _ in 0..self.below(6) {
            let at = self.below(bytes.len());
            match self.below(8) {
                0 => bytes.truncate(at),
                1 => bytes.extend_from_slice(&corpus[self.below(corpus.len())]),
                2 => bytes.extend(std::iter::repeat_n(0, self.below(80))),
                3 if !bytes.is_empty() => {
                    bytes.remove(at);
                }
                _ => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte =
                            [*byte ^ (1 << self.below(8)), 0, 0xff, self.next().to_le_bytes()[0]]
                                [self.below(4)];
                    }
                }
            }
        }
        bytes.truncate(60_000);
        bytes
    }
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[test]
fn hostile_bytes() {
    let (mut one, mut two) = joined();
    let mut random = Random(from_environment("FUZZ_SEED", 0x5eed) | 1);
    let end = Instant::now() + Duration::from_secs(from_environment("FUZZ_SECONDS", 1));
    let mut messages: Vec<Vec<u8>> = one.seen.iter().chain(&two.seen).cloned().collect();
    messages.push(one.seal(&ip(1, 2, &[7; 1000])).unwrap());
    let packets: Vec<Vec<u8>> = (0..8)
        .map(|n: u8| {
            samples::tcp(
                n.is_multiple_of(2),
                (1, 2),
                u32::from(n) * 500,
                flag::ACK,
                &vec![n; 500 + usize::from(n % 3)],
            )
        })
        .collect();
    let reads: Vec<Vec<u8>> = packets
        .iter()
        .map(|packet| {
            let vnet =
                crate::segment::Vnet::merged(crate::packet::Tcp::parse(packet).unwrap(), 100);
            [&vnet.encode()[..], packet].concat()
        })
        .collect();
    let (mut rounds, mut renewed) = (0_u64, Instant::now());
    while Instant::now() < end {
        for _ in 0..200 {
            rounds += 1;
            let from =
                if random.below(4) == 0 { "192.0.2.9:1".parse().unwrap() } else { one.address() };
            match random.below(3) {
                0 => {
                    let bytes = random.mutate(&messages);
                    let len = 1 + random.below(bytes.len() + 10);
                    two.feed(from, &bytes, len);
                }
                1 => {
                    // A peer that has the keys and sends nonsense, several at a time.
                    let mut all = Vec::new();
                    for _ in 0..=random.below(6) {
                        let packet = random.mutate(&packets);
                        all.extend(one.seal(&packet).map(|message| (packet, message)));
                    }
                    for (packet, message) in all {
                        two.feed(one.address(), &message, message.len());
                        let is_passed =
                            two.packets.last().is_some_and(|last| packet.starts_with(last));
                        let source = packet.get(12..16);
                        assert!(
                            !is_passed || source == Some(&[10, 0, 0, 1][..]) || packet[0] >> 4 == 6
                        );
                    }
                }
                _ => {
                    let mut read = random.mutate(&reads);
                    if let Ok(mut segments) = Segments::new(&mut read) {
                        let (count_max, bytes_max) = segments.bound();
                        let (mut count, mut bytes) = (0, 0);
                        while let Some(segment) = segments.next() {
                            count += 1;
                            bytes += segment.len();
                        }
                        assert!(count <= count_max && bytes <= bytes_max);
                    }
                }
            }
            two.packets.clear();
        }
        if renewed.elapsed() > Duration::from_secs(60) {
            // A session lasts three minutes.
            one.initiate();
            renewed = Instant::now();
        }
        // Links look at their timers now and then.
        one.clock.advance(100);
        two.clock.advance(100);
        // Answers to what looked real enough.
        settle(&mut one, &mut two);
        one.seen.clear();
        two.seen.clear();
        two.packets.clear();
        assert!(two.peer().links().len() <= 1, "strangers leave nothing behind");
    }
    assert_carries(&mut one, &mut two);
    assert!(rounds > 100, "{rounds} rounds");
}
