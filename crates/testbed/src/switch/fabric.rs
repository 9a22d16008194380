//! The inside of the switch: ports, lines, frames under way.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::os::fd::OwnedFd;

use warren_base::rng::SeededRng;

use super::Port;
use super::ear::Ear;
use super::line::{Line, Link};

/// Machines of one bed; 2 cores are busy long before.
pub(crate) const PORTS_MAX: usize = 200;
/// Addresses of cards begin so: locally administered.
pub(crate) const MAC_HEAD: [u8; 5] = [0x02, 0x57, 0x52, 0, 0];
/// Payload of 1500, addresses, type, one VLAN tag.
pub(crate) const FRAME_MAX: usize = 1518;
/// Frames taken from one card before the others get their turn.
const BURST_MAX: usize = 64;
/// Bytes of all frames under way: 50 ms of a gigabit, ten times over.
const HELD_BYTES_MAX: usize = 64 << 20;

/// What passed one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames that arrived.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that did not: by rule, by a full queue, by a card that takes none.
    pub lost: u64,
}

/// A frame under way. Ordered by its moment, then by its turn.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    due: u64,
    turn: u64,
    from: Port,
    to: Port,
    frame: Box<[u8]>,
}

#[derive(Debug)]
pub(crate) struct Fabric {
    cards: BTreeMap<Port, OwnedFd>,
    /// Only those that are not perfect.
    lines: BTreeMap<(Port, Port), Line>,
    traffic: BTreeMap<(Port, Port), Traffic>,
    held: BinaryHeap<Reverse<Held>>,
    held_bytes: usize,
    turn: u64,
    rng: SeededRng,
    ear: Option<Ear>,
}

impl Fabric {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            cards: BTreeMap::new(),
            lines: BTreeMap::new(),
            traffic: BTreeMap::new(),
            held: BinaryHeap::new(),
            held_bytes: 0,
            turn: 0,
            rng: SeededRng::new(seed),
            ear: None,
        }
    }

    pub(crate) fn plug(&mut self, port: Port, card: OwnedFd) {
        self.cards.insert(port, card);
    }

    pub(crate) fn unplug(&mut self, port: Port) -> Option<OwnedFd> {
        self.cards.remove(&port)
    }

    pub(crate) fn set(&mut self, from: Port, to: Port, link: Link) {
        if link == Link::default() {
            self.lines.remove(&(from, to));
        } else {
            self.lines.entry((from, to)).or_default().link = link;
        }
    }

    pub(crate) fn link(&self, from: Port, to: Port) -> Link {
        self.lines.get(&(from, to)).map_or_else(Link::default, |line| line.link)
    }

    pub(crate) fn heal(&mut self) {
        self.lines.clear();
    }

    pub(crate) fn listen(&mut self) {
        self.ear.get_or_insert_default();
    }

    pub(crate) fn heard(&self) -> Option<Vec<Vec<u8>>> {
        self.ear.as_ref()?.heard()
    }

    pub(crate) fn traffic(&self, from: Port, to: Port) -> Traffic {
        self.traffic.get(&(from, to)).copied().unwrap_or_default()
    }

    /// When the next frame under way is to arrive.
    pub(crate) fn next_due(&self) -> Option<u64> {
        self.held.peek().map(|Reverse(held)| held.due)
    }

    /// Delivers what is due.
    pub(crate) fn release(&mut self, now: u64) {
        while self.next_due().is_some_and(|due| due <= now) {
            let Some(Reverse(held)) = self.held.pop() else { return };
            self.held_bytes -= held.frame.len();
            if self.link(held.from, held.to).cut {
                self.count(held.from, held.to, None);
            } else {
                self.deliver(held.from, held.to, &held.frame);
            }
        }
    }

    /// Takes frames from a card, as many as its turn allows.
    pub(crate) fn drain(&mut self, from: Port, now: u64, buffer: &mut [u8]) {
        for _ in 0..BURST_MAX {
            let Some(card) = self.cards.get(&from) else { return };
            // Nothing more, or the card is gone with its machine and will be unplugged.
            let Ok(length) = rustix::io::read(card, &mut *buffer) else { return };
            let frame = &buffer[..length];
            if let Some(ear) = &mut self.ear {
                ear.hear(frame);
            }
            match target(frame) {
                Target::One(to) if to != from => self.forward(from, to, frame, now),
                Target::One(_) | Target::Nobody => {}
                Target::All => {
                    let others: Vec<Port> =
                        self.cards.keys().copied().filter(|to| *to != from).collect();
                    for to in others {
                        self.forward(from, to, frame, now);
                    }
                }
            }
        }
    }

    fn forward(&mut self, from: Port, to: Port, frame: &[u8], now: u64) {
        let Some(line) = self.lines.get_mut(&(from, to)) else {
            return self.deliver(from, to, frame);
        };
        let arrivals = line.admit(now, frame.len(), &self.rng);
        if arrivals[0].is_none() {
            self.count(from, to, None);
        }
        for due in arrivals.into_iter().flatten() {
            if due <= now {
                self.deliver(from, to, frame);
            } else if self.held_bytes + frame.len() > HELD_BYTES_MAX {
                self.count(from, to, None);
            } else {
                self.turn += 1;
                self.held_bytes += frame.len();
                let held = Held { due, turn: self.turn, from, to, frame: frame.into() };
                self.held.push(Reverse(held));
            }
        }
    }

    fn deliver(&mut self, from: Port, to: Port, frame: &[u8]) {
        let taken = self.cards.get(&to).is_some_and(|card| rustix::io::write(card, frame).is_ok());
        self.count(from, to, taken.then_some(frame.len()));
    }

    fn count(&mut self, from: Port, to: Port, bytes: Option<usize>) {
        let traffic = self.traffic.entry((from, to)).or_default();
        match bytes {
            Some(bytes) => {
                traffic.frames += 1;
                traffic.bytes += bytes as u64;
            }
            None => traffic.lost += 1,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Target {
    One(Port),
    All,
    Nobody,
}

/// Whom a frame is for, by its first six bytes.
fn target(frame: &[u8]) -> Target {
    match frame {
        [first, ..] if first & 1 == 1 => Target::All,
        [a, b, c, d, e, port, ..] if [*a, *b, *c, *d, *e] == MAC_HEAD => {
            Port::new(usize::from(*port)).map_or(Target::Nobody, Target::One)
        }
        _ => Target::Nobody,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let port = Port::new(7).unwrap();
        assert_eq!(target(&port.mac()), Target::One(port));
        assert_eq!(target(&[0xff; 14]), Target::All);
        assert_eq!(target(&[0x33, 0x33, 0, 0, 0, 1]), Target::All);
        assert_eq!(target(&[2, 0, 0, 0, 0, 1]), Target::Nobody);
        assert_eq!(target(&[0x02, 0x57, 0x52, 0, 0, 255]), Target::Nobody);
        assert_eq!(target(&[]), Target::Nobody);
    }
}
