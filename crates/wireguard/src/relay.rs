//! Passes on what two hosts send each other that do not reach each other themselves.
//!
//! ```text
//! A ──▶ C, port of the pair ──▶ B        each takes that port of C for the other's endpoint
//!   ◀──                     ◀──
//! ```
//!
//! Messages stay as they are: WireGuard's between A and B, which C has no keys for. Whom they go to
//! follows from the port and from where they come from, so nothing is remembered of a message, and
//! what was passed on once goes to a port that passes nothing on.
//!
//! Rules that always hold:
//! - what comes from anywhere but the two ends of a pair of its port is dropped and counted, without
//!   an answer, so nobody is made to send more than they do;
//! - what is no message of WireGuard's is dropped;
//! - while nothing is passed on, nothing runs.
//!
//! A host behind address translation may send from another port than it listens at: it is known by
//! its address alone then, unless both ends have the same, and gets answers where it last sent from.
//!
//! Not here: who needs whom (managers say), keys.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::Error;
use crate::link::Kind;
use crate::udp::{Received, Udp};

/// Pairs that one host passes messages on for. Each has its own port, but for pairs without a host
/// in common, which may share one.
pub const RELAYED_MAX: usize = 64;
/// Receives of one socket before the next has its turn: half a megabyte each at most.
const RECEIVES_PER_TURN: usize = 4;

/// Two hosts, and the port at which they find each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Relayed {
    pub port: u16,
    /// Where each of them listens.
    pub ends: [SocketAddr; 2],
}

/// What was done for a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayStats {
    pub of: Relayed,
    /// Bytes of WireGuard's messages, of both ends.
    pub bytes: u64,
}

/// Dropping it ends its thread and closes the ports.
pub struct Relays {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    at: IpAddr,
    ports: Mutex<Ports>,
    /// The thread has to look at `ports` again.
    is_changed: AtomicBool,
    wake: OwnedFd,
    is_stopping: AtomicBool,
    /// From nobody that a pair names, or nothing that is passed on.
    refused: AtomicU64,
    lost: AtomicU64,
}

type Ports = BTreeMap<u16, Arc<Port>>;

struct Port {
    udp: Udp,
    pairs: Mutex<Vec<Pair>>,
}

/// One pair while it is there.
struct Pair {
    of: Relayed,
    /// Where each was last heard.
    heard: [SocketAddr; 2],
    bytes: u64,
}

impl Pair {
    fn new(of: Relayed) -> Self {
        Self { of, heard: of.ends, bytes: 0 }
    }

    /// Which end sends from there.
    fn end(&self, from: SocketAddr) -> Option<usize> {
        let exact = (0..2).find(|&at| self.of.ends[at] == from || self.heard[at] == from);
        let [one, two] = self.of.ends.map(|end| end.ip());
        exact.or_else(|| match from.ip() {
            _ if one == two => None,
            ip if ip == one => Some(0),
            ip if ip == two => Some(1),
            _ => None,
        })
    }

    /// Where what comes from there goes.
    fn towards(&mut self, from: SocketAddr) -> Option<SocketAddr> {
        let end = self.end(from)?;
        self.heard[end] = from;
        Some(self.heard[1 - end])
    }
}

impl Port {
    fn pairs(&self) -> MutexGuard<'_, Vec<Pair>> {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn ports(&self) -> MutexGuard<'_, Ports> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // It counts up to 2^64: it is never full.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

impl Relays {
    /// Passes nothing on yet. Ports will be opened at `address`, or at all addresses if this host
    /// does not have it, in the calling thread's network namespace.
    ///
    /// # Errors
    /// The system gives no descriptor or thread.
    pub fn start(address: IpAddr) -> Result<Self, Error> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| Error::io("make an eventfd", error.into()))?;
        let shared = Arc::new(Shared {
            at: address,
            ports: Mutex::default(),
            is_changed: AtomicBool::new(false),
            wake,
            is_stopping: AtomicBool::new(false),
            refused: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        });
        let own = Arc::clone(&shared);
        let run = move || carry(&own);
        let thread = thread::Builder::new().name("relays".into()).spawn(run);
        let thread = thread.map_err(|source| Error::io("start a thread", source))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// These pairs, and no others. Those that stay are not interrupted.
    ///
    /// # Errors
    /// A port cannot be had, or there are more than [`RELAYED_MAX`]; the others are there all the
    /// same.
    pub fn apply(&self, wanted: &[Relayed]) -> Result<(), Error> {
        let mut by_port: BTreeMap<u16, Vec<Relayed>> = BTreeMap::new();
        for of in wanted.iter().take(RELAYED_MAX) {
            by_port.entry(of.port).or_default().push(*of);
        }
        let mut outcome = match wanted.len() {
            0..=RELAYED_MAX => Ok(()),
            found => Err(Error::Relayed { found }),
        };
        let mut ports = self.shared.ports();
        ports.retain(|port, _| by_port.contains_key(port));
        for (number, wanted) in by_port {
            let port = match ports.get(&number) {
                Some(port) => Arc::clone(port),
                None => match open(SocketAddr::new(self.shared.at, number)) {
                    Ok(udp) => {
                        let port = Arc::new(Port { udp, pairs: Mutex::default() });
                        ports.insert(number, Arc::clone(&port));
                        port
                    }
                    Err(error) => {
                        outcome = Err(error);
                        continue;
                    }
                },
            };
            let mut pairs = port.pairs();
            pairs.retain(|pair| wanted.contains(&pair.of));
            for of in wanted {
                if !pairs.iter().any(|pair| pair.of == of) {
                    pairs.push(Pair::new(of));
                }
            }
        }
        drop(ports);
        self.shared.is_changed.store(true, Ordering::Release);
        self.shared.wake();
        outcome
    }

    /// Each pair that is passed on for.
    pub fn stats(&self) -> Vec<RelayStats> {
        let ports: Vec<Arc<Port>> = self.shared.ports().values().cloned().collect();
        let stats = |port: &Arc<Port>| {
            let pairs = port.pairs();
            let each = pairs.iter().map(|pair| RelayStats { of: pair.of, bytes: pair.bytes });
            each.collect::<Vec<_>>()
        };
        ports.iter().flat_map(stats).collect()
    }

    /// Datagrams that came from nobody whom a pair names, or were none of WireGuard's; and those
    /// that could not be sent.
    pub fn drops(&self) -> [u64; 2] {
        [&self.shared.refused, &self.shared.lost].map(|count| count.load(Ordering::Relaxed))
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::Release);
        self.shared.wake();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that passes messages on panicked");
        }
    }
}

/// At the host's own address, so that answers come from where they are expected.
fn open(at: SocketAddr) -> Result<Udp, Error> {
    let bind = |ip: IpAddr| Udp::bind(SocketAddr::new(ip, at.port()), 1);
    let not_there = |error: &Error, code: i32| matches!(error, Error::Io { source, .. } if source.raw_os_error() == Some(code));
    let bound = match bind(at.ip()) {
        Err(error) if not_there(&error, libc::EADDRNOTAVAIL) => match bind([0_u16; 8].into()) {
            Err(error) if not_there(&error, libc::EAFNOSUPPORT) => bind([0_u8; 4].into()),
            bound => bound,
        },
        bound => bound,
    };
    // One was asked for.
    bound.map(|mut sockets| sockets.swap_remove(0))
}

/// The thread: until it is stopped.
fn carry(shared: &Shared) {
    let mut received = Received::new();
    let mut ports: Vec<Arc<Port>> = Vec::new();
    while !shared.is_stopping.load(Ordering::Acquire) {
        if shared.is_changed.swap(false, Ordering::AcqRel) {
            ports = shared.ports().values().cloned().collect();
        }
        let mut fds: Vec<PollFd<'_>> =
            ports.iter().map(|port| PollFd::new(&port.udp, PollFlags::IN)).collect();
        fds.push(PollFd::from_borrowed_fd(shared.wake.as_fd(), PollFlags::IN));
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "messages of other nodes are not passed on any more");
                return;
            }
        }
        // It is not read but to be silent again.
        let _ = rustix::io::read(&shared.wake, &mut [0; 8]);
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        for (port, is_ready) in ports.iter().zip(ready) {
            if is_ready {
                turn(shared, port, &mut received);
            }
        }
    }
}

fn turn(shared: &Shared, port: &Port, received: &mut Received) {
    for _ in 0..RECEIVES_PER_TURN {
        match port.udp.receive(received) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // What an ICMP error left on the socket.
            Err(_) => continue,
        }
        let mut pairs = port.pairs();
        for (from, bytes, len) in received.messages() {
            let count = bytes.len().div_ceil(len);
            let is_ours = bytes.chunks(len).all(|datagram| Kind::of(datagram).is_some());
            let found = pairs.iter_mut().filter(|_| is_ours);
            let found = found.filter_map(|pair| Some((pair.towards(from)?, pair))).next();
            let Some((to, pair)) = found else {
                add(&shared.refused, count);
                continue;
            };
            let failed = port.udp.send_segments(to, bytes, len);
            add(&shared.lost, failed);
            pair.bytes = pair.bytes.saturating_add(bytes.len() as u64);
        }
    }
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn who_sends_is_known_by_where_from() {
        let pair = |one: &str, two: &str| Pair::new(Relayed { port: 1, ends: [at(one), at(two)] });
        let mut apart = pair("10.0.0.1:51820", "10.0.0.2:51820");
        assert_eq!(apart.towards(at("10.0.0.1:51820")), Some(at("10.0.0.2:51820")));
        assert_eq!(apart.towards(at("10.0.0.3:51820")), None);
        // Translated on the way: answers go there.
        assert_eq!(apart.towards(at("10.0.0.2:4000")), Some(at("10.0.0.1:51820")));
        assert_eq!(apart.towards(at("10.0.0.1:51820")), Some(at("10.0.0.2:4000")));
        // Behind one address nobody can be told by it.
        let mut together = pair("10.0.0.1:51820", "10.0.0.1:51821");
        assert_eq!(together.towards(at("10.0.0.1:51821")), Some(at("10.0.0.1:51820")));
        assert_eq!(together.towards(at("10.0.0.1:4000")), None);
    }

    struct Ends {
        relays: Relays,
        port: SocketAddr,
        ends: [UdpSocket; 2],
    }

    fn ends() -> Ends {
        let bind = |ip: &str| {
            let socket = UdpSocket::bind((ip, 0)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            socket
        };
        let ends = [bind("127.1.0.1"), bind("127.1.0.2")];
        // Free a moment ago.
        let port = bind("127.1.0.3").local_addr().unwrap();
        let relays = Relays::start(port.ip()).unwrap();
        Ends { relays, port, ends }
    }

    impl Ends {
        fn of(&self) -> Relayed {
            let ends = [0, 1].map(|at| self.ends[at].local_addr().unwrap());
            Relayed { port: self.port.port(), ends }
        }

        fn passes(&self, from: usize, message: &[u8]) -> Option<Vec<u8>> {
            self.ends[from].send_to(message, self.port).unwrap();
            let mut buffer = [0; 2000];
            let (len, sender) = self.ends[1 - from].recv_from(&mut buffer).ok()?;
            assert_eq!(sender, self.port);
            Some(buffer[..len].to_vec())
        }
    }

    fn message(len: usize) -> Vec<u8> {
        let mut message = vec![7; len];
        message[..4].copy_from_slice(&4_u32.to_le_bytes());
        message
    }

    #[test]
    fn what_two_send_each_other_is_passed_on_and_nothing_else() {
        let world = ends();
        world.relays.apply(&[world.of()]).unwrap();
        for from in [0, 1, 0] {
            assert_eq!(world.passes(from, &message(1200)), Some(message(1200)));
        }
        assert_eq!(world.relays.stats(), [RelayStats { of: world.of(), bytes: 3600 }]);
        let stranger = UdpSocket::bind("127.1.0.4:0").unwrap();
        stranger.send_to(&message(100), world.port).unwrap();
        world.ends[0]
            .send_to(b"no message of WireGuard's, though long enough", world.port)
            .unwrap();
        // Behind them on the same socket: once this one is through, they were looked at.
        assert_eq!(world.passes(1, &message(64)), Some(message(64)));
        assert_eq!(world.relays.drops(), [2, 0]);
        // Gone: nothing is passed on, and the port is free.
        world.relays.apply(&[]).unwrap();
        assert!(world.relays.stats().is_empty());
        drop(world.relays);
        UdpSocket::bind(world.port).unwrap();
    }

    #[test]
    fn a_port_that_is_taken_is_told_and_others_work() {
        let world = ends();
        let taken = UdpSocket::bind(("127.1.0.3", 0)).unwrap();
        let other = Relayed { port: taken.local_addr().unwrap().port(), ..world.of() };
        let error = world.relays.apply(&[other, world.of()]).unwrap_err();
        assert!(error.to_string().starts_with("bind UDP 127.1.0.3"), "{error}");
        assert_eq!(world.passes(0, &message(32)), Some(message(32)));
        let many = vec![world.of(); RELAYED_MAX + 1];
        assert!(matches!(world.relays.apply(&many), Err(Error::Relayed { found: 65 })));
    }
}
