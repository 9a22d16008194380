//! From the TUN device to the peers: read, cut, encrypt, send many at once.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::counters::Reason;
use crate::link::{CONTROL_LEN, OVERHEAD, Sealed};
use crate::packet;
use crate::peer::Peer;
use crate::routing::Routing;
use crate::segment::Segments;
use crate::shared::Shared;
use crate::tun::{READ_LEN, Tun};
use crate::udp::{SEGMENTS_MAX, SEND_LEN_MAX, Udp};

/// Reads before the other direction gets its turn: half a megabyte of a bulk transfer.
const READS_PER_TURN: usize = 8;
/// What may wait to be sent: two reads of 64 KiB with overhead, and one that is cut very small.
const SEALED_LEN: usize = 256 * 1024;

pub(crate) struct Outbound {
    read: Vec<u8>,
    sealed: Batch,
    control: Vec<u8>,
}

/// Messages that go to one place, one behind the other.
struct Batch {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    lens: Vec<usize>,
    to: Option<(Arc<Peer>, SocketAddr)>,
}

impl Outbound {
    pub(crate) fn new() -> Self {
        let sealed = Batch {
            bytes: vec![0; SEALED_LEN],
            start: 0,
            end: 0,
            lens: Vec::with_capacity(SEGMENTS_MAX * 2),
            to: None,
        };
        Self { read: vec![0; READ_LEN], sealed, control: vec![0; CONTROL_LEN] }
    }

    /// Carries what is there, up to a limit; false if the device was empty.
    pub(crate) fn turn(&mut self, shared: &Shared, tun: &Tun, udp: &Udp) -> io::Result<bool> {
        let routing = shared.routing.load();
        let now = shared.now_ms();
        let mut result = Ok(true);
        for _ in 0..READS_PER_TURN {
            match tun.read(&mut self.read) {
                Ok(len) => self.packet(shared, &routing, udp, len, now),
                Err(error) => {
                    let is_empty = error.kind() == io::ErrorKind::WouldBlock;
                    result = if is_empty { Ok(false) } else { Err(error) };
                    break;
                }
            }
        }
        self.sealed.send(udp, now, true);
        result
    }

    /// One read of `len` bytes.
    fn packet(&mut self, shared: &Shared, routing: &Routing, udp: &Udp, len: usize, now: u64) {
        let Ok(mut segments) = Segments::new(&mut self.read[..len]) else {
            shared.drops.add(Reason::Malformed, 1);
            return;
        };
        let (count, bytes) = segments.bound();
        let destination = packet::destination(segments.whole());
        let Some(entry) = destination.and_then(|address| routing.owner(address)) else {
            shared.drops.add(Reason::Unroutable, count);
            return;
        };
        let peer = &entry.peer;
        peer.wants(now);
        let Some(to) = peer.endpoint() else {
            peer.counters.drops.add(Reason::NoEndpoint, count);
            return;
        };
        let Some(link) = shared.link_to(routing, entry, now) else { return };
        let room = bytes + count * OVERHEAD + CONTROL_LEN;
        if !self.sealed.prepare(peer, to, room, udp, now) {
            shared.drops.add(Reason::Malformed, count);
            return;
        }
        let mut held = link.hold(now);
        if let Some(len) = held.refresh(&mut self.control) {
            shared.send_to(udp, peer, to, &self.control[..len], now);
        }
        while let Some(segment) = segments.next() {
            match held.seal(segment, &mut self.sealed.bytes[self.sealed.end..]) {
                Sealed::Data(len) => self.sealed.push(len),
                Sealed::Initiation(len) => {
                    let start = self.sealed.end;
                    shared.send_to(udp, peer, to, &self.sealed.bytes[start..start + len], now);
                }
                Sealed::Waits => {}
            }
        }
        drop(held);
        if link.touch(now) {
            shared.mailbox.tick(peer, &link);
        }
        self.sealed.send(udp, now, false);
    }
}

impl Batch {
    /// Makes room for `len` bytes to that peer; what waits for another goes first.
    fn prepare(
        &mut self,
        peer: &Arc<Peer>,
        to: SocketAddr,
        len: usize,
        udp: &Udp,
        now: u64,
    ) -> bool {
        let is_same = self.to.as_ref().is_some_and(|(p, at)| *at == to && Arc::ptr_eq(p, peer));
        if !is_same {
            self.send(udp, now, true);
            self.to = Some((Arc::clone(peer), to));
        }
        if self.end + len > self.bytes.len() {
            self.send(udp, now, true);
        }
        self.end + len <= self.bytes.len()
    }

    fn push(&mut self, len: usize) {
        self.end += len;
        self.lens.push(len);
    }

    /// Sends what makes full sends, or all.
    fn send(&mut self, udp: &Udp, now: u64, all: bool) {
        let Some((peer, to)) = &self.to else { return };
        let mut done = 0;
        while done < self.lens.len() {
            let group = group(&self.lens[done..]);
            if !all && !group.is_closed {
                break;
            }
            let bytes = &self.bytes[self.start..self.start + group.bytes];
            let failed = udp.send_segments(*to, bytes, self.lens[done]);
            if failed > 0 {
                peer.counters.drops.add(Reason::SendFailed, failed);
            }
            peer.sent(group.count.saturating_sub(failed), group.bytes, now);
            self.start += group.bytes;
            done += group.count;
        }
        self.lens.drain(..done);
        if self.lens.is_empty() {
            (self.start, self.end) = (0, 0);
        } else if self.start > SEALED_LEN / 2 {
            // A few messages are left: the next read wants the room.
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
    }
}

/// The messages that one send takes from the front.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    count: usize,
    bytes: usize,
    /// No further message could join.
    is_closed: bool,
}

fn group(lens: &[usize]) -> Group {
    let mut group = Group { count: 0, bytes: 0, is_closed: false };
    let Some(&size) = lens.first() else { return group };
    for &len in lens {
        if len > size || (group.count > 0 && group.bytes + len > SEND_LEN_MAX) {
            return Group { is_closed: true, ..group };
        }
        group.count += 1;
        group.bytes += len;
        if len < size || group.count == SEGMENTS_MAX {
            return Group { is_closed: true, ..group };
        }
    }
    group
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups() {
        #[track_caller]
        fn check(lens: &[usize], count: usize, bytes: usize, is_closed: bool) {
            assert_eq!(group(lens), Group { count, bytes, is_closed });
        }
        check(&[], 0, 0, false);
        check(&[100], 1, 100, false);
        check(&[100, 100], 2, 200, false);
        check(&[100, 100, 40], 3, 240, true);
        check(&[100, 40, 40], 2, 140, true);
        check(&[100, 101], 1, 100, true);
        check(&[1452; 50], 45, 45 * 1452, true);
        // Too long for UDP: it is for the socket to refuse it.
        check(&[65_530, 65_530], 1, 65_530, true);
        check(&[100; 70], 64, 6400, true);
        check(&[100; 64], 64, 6400, true);
    }
}
