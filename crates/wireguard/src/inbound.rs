//! From the peers to the TUN device: receive many at once, decrypt, check, merge, write.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;

use crate::coalesce::{Coalescer, PIECES_MAX};
use crate::counters::Reason;
use crate::key::PublicKey;
use crate::link::{Admission, CONTROL_LEN, Kind, Link, Opened, Pair, Shaken};
use crate::peer::Peer;
use crate::routing::Routing;
use crate::shared::Shared;
use crate::tun::Tun;
use crate::udp::{RECEIVED_LEN, Received, Udp};

/// A queued packet, encrypted: at most what the TUN device hands over as one.
const QUEUED_LEN: usize = 66_000;

pub(crate) struct Inbound {
    received: Received,
    opener: Opener,
}

/// Where messages become packets.
struct Opener {
    /// Decrypted packets of a turn, each shorter than its message.
    arena: Vec<u8>,
    end: usize,
    /// Of one run of messages, until its lock is released.
    opened: Vec<Range<usize>>,
    coalescer: Coalescer,
    answer: Vec<u8>,
}

/// What a turn works with.
struct Turn<'a> {
    shared: &'a Shared,
    routing: &'a Routing,
    udp: &'a Udp,
    now: u64,
}

impl Inbound {
    pub(crate) fn new() -> Self {
        let opener = Opener {
            arena: vec![0; RECEIVED_LEN],
            end: 0,
            opened: Vec::new(),
            coalescer: Coalescer::default(),
            answer: vec![0; QUEUED_LEN],
        };
        Self { received: Received::new(), opener }
    }

    /// Carries what one receive brings; false if there was nothing.
    pub(crate) fn turn(&mut self, shared: &Shared, tun: &Tun, udp: &Udp) -> io::Result<bool> {
        match udp.receive(&mut self.received) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            // What an ICMP error left on the socket; the next call goes on.
            Err(error) if error.kind() != io::ErrorKind::InvalidInput => return Ok(true),
            Err(error) => return Err(error),
        }
        let routing = shared.routing.load();
        let turn = Turn { shared, routing: &routing, udp, now: shared.now_ms() };
        for (from, bytes, len) in self.received.messages() {
            self.opener.message(&turn, from, bytes, len);
        }
        self.opener.write(shared, tun);
        Ok(true)
    }
}

impl Opener {
    /// Datagrams of one sender, of `len` bytes each but for the last.
    fn message(&mut self, turn: &Turn<'_>, from: SocketAddr, bytes: &[u8], len: usize) {
        let mut datagrams = bytes.chunks(len).peekable();
        let mut at = 0;
        while let Some(datagram) = datagrams.next() {
            let start = at;
            at += datagram.len();
            match Kind::of(datagram) {
                Some(kind @ Kind::Data(index)) => {
                    while let Some(next) = datagrams.next_if(|next| Kind::of(next) == Some(kind)) {
                        at += next.len();
                    }
                    self.run(turn, from, index, &bytes[start..at], len);
                }
                Some(kind) => self.handshake(turn, from, kind, datagram),
                None => turn.shared.drops.add(Reason::Malformed, 1),
            }
        }
    }

    /// Data messages of one session.
    fn run(&mut self, turn: &Turn<'_>, from: SocketAddr, index: u32, bytes: &[u8], len: usize) {
        let Some((peer, link)) = turn.shared.find(index) else {
            turn.shared.drops.add(Reason::UnknownSession, bytes.len().div_ceil(len));
            // Perhaps of an engine before this one, or of a removed key: a new handshake helps.
            // Whoever lies about this address has us send one message in five seconds.
            if let Some(entry) = turn.routing.by_endpoint(from) {
                turn.shared.nudge(&entry.peer, turn.now);
            }
            return;
        };
        let (mut good, mut good_bytes, mut has_packets) = (0, 0, false);
        let mut last_source: Option<(IpAddr, bool)> = None;
        let mut held = link.hold(turn.now);
        if let Some(len) = held.refresh(&mut self.answer) {
            turn.shared.send(turn.udp, &peer, &self.answer[..len], turn.now);
        }
        for datagram in bytes.chunks(len) {
            match held.open(datagram, &mut self.arena[self.end..]) {
                Opened::Packet { len, source } => {
                    (good, good_bytes, has_packets) = (good + 1, good_bytes + datagram.len(), true);
                    let is_allowed = match last_source {
                        Some((last, is_allowed)) if last == source => is_allowed,
                        _ => {
                            let owner = turn.routing.owner(source);
                            owner.is_some_and(|owner| Arc::ptr_eq(&owner.peer, &peer))
                        }
                    };
                    last_source = Some((source, is_allowed));
                    if is_allowed {
                        self.opened.push(self.end..self.end + len);
                        self.end += len;
                    } else {
                        peer.counters.drops.add(Reason::Spoofed, 1);
                    }
                }
                Opened::Keepalive => (good, good_bytes) = (good + 1, good_bytes + datagram.len()),
                Opened::Lost(reason) => peer.counters.drops.add(reason, 1),
            }
        }
        drop(held);
        for range in self.opened.drain(..) {
            self.coalescer.push(&self.arena, range);
        }
        if good == 0 {
            // It uses a session that has ended here: it will not learn that by itself for long.
            if !link.is_live(turn.now) && peer.endpoint() == Some(from) {
                turn.shared.nudge(&peer, turn.now);
            }
            return;
        }
        peer.counters.received(good, good_bytes, turn.now);
        peer.counters.answered();
        peer.heard();
        peer.heard_from(from);
        link.hear(turn.now);
        if has_packets && link.touch(turn.now) {
            turn.shared.mailbox.tick(&peer, &link);
        }
        if !peer.is_active(&link) {
            peer.prefer(&link, turn.now);
        }
        self.flush(turn, &peer, &link);
    }

    /// Sends what waited for a session.
    fn flush(&mut self, turn: &Turn<'_>, peer: &Peer, link: &Link) {
        if !link.has_queue() {
            return;
        }
        let mut held = link.hold(turn.now);
        while let Some(len) = held.unqueue(&mut self.answer) {
            turn.shared.send(turn.udp, peer, &self.answer[..len], turn.now);
        }
    }

    fn handshake(&mut self, turn: &Turn<'_>, from: SocketAddr, kind: Kind, datagram: &[u8]) {
        let Turn { shared, routing, udp, now } = *turn;
        let found = match kind {
            Kind::Initiation => {
                let Some((own, remote)) = self.admit(turn, from, datagram, None) else { return };
                let entry = remote.and_then(|remote| routing.by_key(remote));
                let link = entry.zip(remote).and_then(|(entry, remote)| {
                    let link = shared.link(&entry.peer, Pair { own, remote })?;
                    Some((Arc::clone(&entry.peer), link))
                });
                let Some(link) = link else {
                    return shared.drops.add(Reason::UnknownPeer, 1);
                };
                link
            }
            Kind::Response(index) | Kind::Cookie(index) | Kind::Data(index) => {
                let Some((peer, link)) = shared.find(index) else {
                    return shared.drops.add(Reason::UnknownSession, 1);
                };
                let is_cookie = matches!(kind, Kind::Cookie(_));
                if !is_cookie && self.admit(turn, from, datagram, Some(link.pair)).is_none() {
                    return;
                }
                (peer, link)
            }
        };
        let (peer, link) = found;
        let mut held = link.hold(now);
        if let Some(len) = held.refresh(&mut self.answer) {
            shared.send(udp, &peer, &self.answer[..len], now);
        }
        let shaken = held.shake(datagram, &mut self.answer);
        drop(held);
        let len = match shaken {
            Shaken::Lost(reason) => return peer.counters.drops.add(reason, 1),
            Shaken::Noted => return peer.counters.received(1, datagram.len(), now),
            Shaken::Responded(len) => len,
            Shaken::Established(len) => {
                link.hear(now);
                peer.counters.answered();
                peer.prefer(&link, now);
                len
            }
        };
        peer.counters.received(1, datagram.len(), now);
        peer.counters.handshake(shared.clock.now_ms());
        peer.heard();
        if matches!(shaken, Shaken::Established(_)) {
            let directly = peer.via() != Some(from);
            if peer.reach().answered(directly, now) {
                shared.reach_moved();
            }
        }
        peer.heard_from(from);
        shared.send_to(udp, &peer, from, &self.answer[..len], now);
        if link.touch(now) {
            shared.mailbox.tick(&peer, &link);
        }
        if matches!(shaken, Shaken::Established(_)) {
            self.flush(turn, &peer, &link);
        }
    }

    /// The own key that is meant and, of an initiation, the peer. Answers with a cookie if need be.
    fn admit(
        &mut self,
        turn: &Turn<'_>,
        from: SocketAddr,
        datagram: &[u8],
        pair: Option<Pair>,
    ) -> Option<(PublicKey, Option<PublicKey>)> {
        let keys = turn.routing.own.iter();
        for own in keys.filter(|own| pair.is_none_or(|pair| pair.own == own.public)) {
            match own.admit(from.ip(), datagram, &mut self.answer[..CONTROL_LEN]) {
                Admission::From(remote) => return Some((own.public, Some(remote))),
                Admission::Fine => return Some((own.public, None)),
                Admission::NotForUs => {}
                Admission::ProveAddress(len) => {
                    turn.shared.drops.add(Reason::RateLimited, 1);
                    // Lost cookies are asked for again.
                    let _ = turn.udp.send(from, &self.answer[..len]);
                    return None;
                }
                Admission::Refused => {
                    turn.shared.drops.add(Reason::HandshakeRefused, 1);
                    return None;
                }
            }
        }
        turn.shared.drops.add(Reason::UnknownPeer, 1);
        None
    }

    /// Hands a turn's packets to the kernel.
    fn write(&mut self, shared: &Shared, tun: &Tun) {
        self.coalescer.drain(&mut self.arena, |vnet, head, tails| {
            let mut pieces = [IoSlice::new(&[]); PIECES_MAX + 2];
            pieces[0] = IoSlice::new(vnet);
            pieces[1] = IoSlice::new(head);
            let mut count = 2;
            for (piece, tail) in pieces[2..].iter_mut().zip(tails) {
                *piece = IoSlice::new(tail);
                count += 1;
            }
            if tun.write(&pieces[..count]).is_err() {
                shared.drops.add(Reason::TunFailed, count - 1);
            }
        });
        self.end = 0;
    }
}

#[cfg(test)]
mod tests;
