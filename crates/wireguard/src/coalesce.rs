//! Packets from the tunnel into as few writes to the TUN device as possible (GRO in software).
//!
//! Segments of one TCP stream that follow each other become one write of up to 64 KiB, which the
//! kernel then carries whole to the container. Payloads stay where they were decrypted: a write
//! gathers them. What is merged looks as if the sender's kernel had handed it over uncut: same
//! headers, checksums verified before, cut again at the same places where that is needed.
//!
//! Invariants:
//! - packets of one stream keep their order;
//! - a packet with a wrong checksum is passed on as it is, never merged;
//! - only acknowledgement and push are merged: every other flag ends a run.
//!
//! Pure. Not here: UDP, which the kernel takes merged only where sockets ask for it.

use std::ops::Range;

use crate::checksum;
use crate::packet::{TCP, Tcp, flag, u16_at};
use crate::segment::{VNET_LEN, Vnet};

/// Streams that may be merged at a time; a further one ends the run of the oldest.
const OPEN_MAX: usize = 16;
/// Pieces of one write: as many full segments as 64 KiB hold, with room for smaller ones.
pub(crate) const PIECES_MAX: usize = 64;
/// What an IP header can say.
const LEN_MAX: usize = 65_535;

/// What becomes one write.
#[derive(Debug, Default)]
struct Item {
    head: Range<usize>,
    tails: Vec<Range<usize>>,
    run: Option<Run>,
}

/// The state of a stream whose last packet may be followed by another.
#[derive(Debug, Clone, Copy)]
struct Run {
    tcp: Tcp,
    /// Payload of every packet but the last.
    size: usize,
    next_seq: u32,
    len: usize,
    is_verified: bool,
    is_pushed: bool,
}

/// The packets of one batch; ranges point into the caller's arena.
#[derive(Debug, Default)]
pub(crate) struct Coalescer {
    /// The first `used` are of this batch; the others keep their memory.
    items: Vec<Item>,
    used: usize,
    /// Items that may grow, oldest first.
    open: Vec<usize>,
}

impl Coalescer {
    pub(crate) fn push(&mut self, arena: &[u8], range: Range<usize>) {
        let packet = &arena[range.clone()];
        let Some(tcp) = Tcp::parse(packet) else {
            self.close_addresses(arena, packet);
            self.add(range, None);
            return;
        };
        let found = self.open.iter().position(|&item| {
            let head = &arena[self.items[item].head.clone()];
            self.items[item].run.is_some_and(|run| {
                run.tcp.v6 == tcp.v6
                    && head[tcp.addresses()] == packet[tcp.addresses()]
                    && head[tcp.ports()] == packet[tcp.ports()]
            })
        });
        if let Some(at) = found {
            let item = self.open[at];
            match self.append(arena, item, tcp, range.clone()) {
                Appended::Open => return,
                Appended::Last => {
                    self.open.remove(at);
                    return;
                }
                Appended::No => {
                    self.open.remove(at);
                }
            }
        }
        let payload = packet.len() - tcp.header_len;
        let flags = tcp.flags(packet);
        let run = (payload > 0 && flags == flag::ACK).then(|| Run {
            tcp,
            size: payload,
            next_seq: tcp.seq(packet).wrapping_add(u32::try_from(payload).unwrap_or(0)),
            len: packet.len(),
            is_verified: false,
            is_pushed: false,
        });
        self.add(range, run);
    }

    fn add(&mut self, head: Range<usize>, run: Option<Run>) {
        if self.used == self.items.len() {
            self.items.push(Item::default());
        }
        let item = &mut self.items[self.used];
        item.head = head;
        item.tails.clear();
        item.run = run;
        if run.is_some() {
            if self.open.len() == OPEN_MAX {
                self.open.remove(0);
            }
            self.open.push(self.used);
        }
        self.used += 1;
    }

    /// Puts a packet behind its stream's last one, if the kernel could have cut both from one.
    fn append(&mut self, arena: &[u8], item: usize, tcp: Tcp, range: Range<usize>) -> Appended {
        let item = &mut self.items[item];
        let Some(run) = &mut item.run else { return Appended::No };
        let (head, packet) = (&arena[item.head.clone()], &arena[range.clone()]);
        let payload = packet.len() - tcp.header_len;
        let flags = tcp.flags(packet);
        let fits = payload > 0
            && payload <= run.size
            && run.len + payload <= LEN_MAX
            && item.tails.len() + 1 < PIECES_MAX
            && flags & !flag::PSH == flag::ACK
            && tcp.seq(packet) == run.next_seq
            && same_headers(tcp, run.tcp, head, packet);
        if !fits || !is_right(tcp, packet) {
            return Appended::No;
        }
        if !run.is_verified {
            if !is_right(run.tcp, head) {
                return Appended::No;
            }
            run.is_verified = true;
        }
        run.is_pushed = flags & flag::PSH != 0;
        run.len += payload;
        run.next_seq = run.next_seq.wrapping_add(u32::try_from(payload).unwrap_or(0));
        item.tails.push(range.start + tcp.header_len..range.end);
        if run.is_pushed || payload < run.size { Appended::Last } else { Appended::Open }
    }

    /// Ends the runs that a packet which is no plain TCP might overtake.
    fn close_addresses(&mut self, arena: &[u8], packet: &[u8]) {
        let items = &self.items;
        self.open.retain(|&item| {
            let head = &arena[items[item].head.clone()];
            let Some(run) = items[item].run else { return false };
            packet.get(run.tcp.addresses()) != Some(&head[run.tcp.addresses()])
        });
    }

    /// Hands out each write: virtio-net header, then the packet in pieces. The batch is over then.
    pub(crate) fn drain(
        &mut self,
        arena: &mut [u8],
        mut write: impl FnMut(&[u8; VNET_LEN], &[u8], &mut dyn Iterator<Item = &[u8]>),
    ) {
        for item in &self.items[..self.used] {
            let mut vnet = Vnet::default();
            if let Some(run) = item.run.filter(|_| !item.tails.is_empty()) {
                finish(&mut arena[item.head.clone()], run);
                vnet = Vnet::merged(run.tcp, run.size);
            }
            let arena = &*arena;
            let mut tails = item.tails.iter().map(|tail| &arena[tail.clone()]);
            write(&vnet.encode(), &arena[item.head.clone()], &mut tails);
        }
        self.used = 0;
        self.open.clear();
    }
}

enum Appended {
    No,
    Open,
    Last,
}

/// All but lengths, checksums, the packet's number, sequence and push.
fn same_headers(tcp: Tcp, other: Tcp, head: &[u8], packet: &[u8]) -> bool {
    let at = tcp.transport;
    let same = |range: Range<usize>| head.get(range.clone()) == packet.get(range);
    let ip = if tcp.v6 { same(0..4) && same(7..8) } else { same(1..2) && same(6..7) && same(8..9) };
    ip && tcp == other
        && same(at + 8..at + 13)
        && same(at + 14..at + 16)
        && same(at + 18..tcp.header_len)
}

fn is_right(tcp: Tcp, packet: &[u8]) -> bool {
    let pseudo = checksum::pseudo(&packet[tcp.addresses()], TCP, packet.len() - tcp.transport);
    let ip = tcp.v6 || checksum::fold(checksum::add(0, &packet[..tcp.transport])) == u16::MAX;
    ip && checksum::fold(checksum::add(pseudo, &packet[tcp.transport..])) == u16::MAX
}

/// Makes the first packet's header the header of all.
fn finish(head: &mut [u8], run: Run) {
    let tcp = run.tcp;
    let short = |len: usize| u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
    if tcp.v6 {
        head[4..6].copy_from_slice(&short(run.len - tcp.transport));
    } else {
        head[2..4].copy_from_slice(&short(run.len));
        head[10..12].fill(0);
        let sum = !checksum::fold(checksum::add(0, &head[..tcp.transport]));
        checksum::store(&mut head[10..12], sum);
    }
    if run.is_pushed {
        head[tcp.transport + 13] |= flag::PSH;
    }
    // The kernel adds the rest of the sum where the packet leaves it, or trusts it.
    let pseudo = checksum::pseudo(&head[tcp.addresses()], TCP, run.len - tcp.transport);
    let field = tcp.transport + 16..tcp.transport + 18;
    checksum::store(&mut head[field], checksum::fold(pseudo));
    debug_assert!(tcp.v6 || usize::from(u16_at(head, 2)) == run.len);
}

#[cfg(test)]
mod tests;
