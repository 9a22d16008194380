//! Questions to other machines, to find out what of a network works.
//!
//! Echoes and timestamps over raw ICMP sockets: the kernel of any machine answers them, so nobody
//! has to listen. Packets must not be broken into fragments; what a link does not take is told.
//! What machines ask this host meanwhile is told as well: of two that ask each other at the same
//! time, one that hears the other and gets no answer knows which way is cut.
//!
//! Each question is asked a few times in a given time, and everything ends with that.
//!
//! Not here: what follows from it.

#![allow(unsafe_code)]

mod icmp;
mod names;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recvfrom, sendto,
    socket_with, sockopt,
};

use crate::Error;
use crate::overlay::mark;
use icmp::{Heard, Mark};
pub use names::{Said, ask_names};

/// Questions of one round: their numbers have 16 bits.
pub const PROBES_MAX: usize = 1 << 16;
/// How often each is asked.
const TRIES: u32 = 3;
/// Questions that are sent before answers are read: a socket's buffer has room for their answers.
const BURST: usize = 64;
/// Hosts that are remembered for having asked this one.
const HEARD_MAX: usize = 4096;
/// The longest packet that is asked with is below this.
const PACKET_LEN: usize = 1 << 16;
/// Hundreds of full-size answers at once.
const BUFFER_LEN: usize = 4 << 20;
/// Of a round, apart from those of others in this process.
static ROUNDS: AtomicU16 = AtomicU16::new(0);

/// A question for another machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Whom to ask.
    pub to: IpAddr,
    /// What for.
    pub what: Question,
}

/// What a machine is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// An answer as long as the question: so many bytes with the IP header, in one piece.
    Echo {
        /// Headers alone if it is less than those take.
        bytes: u16,
    },
    /// An answer to what goes by the VXLAN device, as foreign clients' packets do.
    Across {
        /// The node's number in the table.
        number: u16,
    },
    /// Its time. Of IPv4 alone: nobody with IPv6 answers.
    Clock,
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// From the last question to the answer.
    pub round_trip: Duration,
    /// How far its clock is ahead of ours, if it said so, within half a day.
    pub ahead_ms: Option<i64>,
}

/// What became of all questions.
#[derive(Debug, Default)]
pub struct Round {
    /// In the order of the questions.
    pub answers: Vec<Option<Answer>>,
    /// Why a question did not leave this host, the last time: its place, and what the kernel said.
    pub unsent: Vec<(usize, io::Error)>,
    /// Who asked this host meanwhile.
    pub heard: BTreeSet<IpAddr>,
}

/// Asks all, and waits for `window` or until all have answered. Of more than [`PROBES_MAX`] the
/// first ones. Blocks; in the calling thread's network namespace.
///
/// # Errors
/// There are no raw sockets to be had. Without IPv6 its questions are unsent.
pub fn probe(probes: &[Probe], window: Duration) -> Result<Round, Error> {
    let probes = &probes[..probes.len().min(PROBES_MAX)];
    let mut asking = Asking::open(probes)?;
    let begun = Instant::now();
    for attempt in 0..TRIES {
        asking.send(probes, begun)?;
        asking.receive(begun, window * (attempt + 1) / TRIES)?;
        if asking.is_done() {
            break;
        }
    }
    Ok(asking.round)
}

struct Asking {
    id: u16,
    v4: OwnedFd,
    v6: Option<OwnedFd>,
    /// When each was asked last, since the beginning.
    sent: Vec<Duration>,
    round: Round,
    buffer: Vec<u8>,
}

impl Asking {
    fn open(probes: &[Probe]) -> Result<Self, Error> {
        let what = |source: io::Error| Error::io("open a raw ICMP socket", source);
        let v4 = socket(AddressFamily::INET).map_err(what)?;
        // A kernel without IPv6 has none.
        let v6 = socket(AddressFamily::INET6).ok();
        let process = u16::try_from(std::process::id() & 0xffff).unwrap_or_default();
        Ok(Self {
            id: process.wrapping_add(ROUNDS.fetch_add(1, Ordering::Relaxed).wrapping_mul(257)),
            v4,
            v6,
            sent: vec![Duration::ZERO; probes.len()],
            round: Round { answers: vec![None; probes.len()], ..Round::default() },
            buffer: vec![0; PACKET_LEN],
        })
    }

    fn is_done(&self) -> bool {
        self.round.answers.iter().all(Option::is_some)
    }

    /// Asks those that have not answered.
    fn send(&mut self, probes: &[Probe], begun: Instant) -> Result<(), Error> {
        self.round.unsent.clear();
        let open: Vec<usize> =
            (0..probes.len()).filter(|place| self.round.answers[*place].is_none()).collect();
        for burst in open.chunks(BURST) {
            for &place in burst {
                self.sent[place] = begun.elapsed();
                if let Err(error) = self.send_one(&probes[place], place) {
                    self.round.unsent.push((place, error));
                }
            }
            self.receive(begun, Duration::ZERO)?;
        }
        Ok(())
    }

    fn send_one(&self, probe: &Probe, place: usize) -> io::Result<()> {
        let is_v4 = probe.to.is_ipv4();
        let fd = if is_v4 { Some(&self.v4) } else { self.v6.as_ref() };
        let fd = fd.ok_or_else(|| io::Error::from(Errno::AFNOSUPPORT))?;
        let number = u16::try_from(place).map_err(io::Error::other)?;
        let own = Mark { id: self.id, number };
        let (message, by) = match probe.what {
            Question::Echo { bytes } => (icmp::echo(is_v4, own, bytes), 0),
            Question::Across { number } => (icmp::echo(is_v4, own, 0), mark(number)),
            Question::Clock if is_v4 => (icmp::times(own, time_of_day()), 0),
            Question::Clock => return Err(Errno::AFNOSUPPORT.into()),
        };
        // One socket for all marks: questions are sent one after the other.
        set(fd, libc::SOL_SOCKET, libc::SO_MARK, by.cast_signed())?;
        match sendto(fd, &message, SendFlags::DONTWAIT, &SocketAddr::new(probe.to, 0)) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads what comes until `limit` after the beginning, or until all is there; what is there
    /// already in any case.
    fn receive(&mut self, begun: Instant, limit: Duration) -> Result<(), Error> {
        loop {
            self.drain(begun, true)?;
            self.drain(begun, false)?;
            let left = limit.saturating_sub(begun.elapsed());
            if left.is_zero() || self.is_done() {
                return Ok(());
            }
            let left = Timespec::try_from(left).ok();
            let sockets = [Some(&self.v4), self.v6.as_ref()].into_iter().flatten();
            let mut sockets: Vec<PollFd<'_>> =
                sockets.map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
            match poll(&mut sockets, left.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(Error::io("wait for an ICMP answer", error.into())),
            }
        }
    }

    fn drain(&mut self, begun: Instant, is_v4: bool) -> Result<(), Error> {
        loop {
            let fd = if is_v4 { Some(&self.v4) } else { self.v6.as_ref() };
            let Some(fd) = fd else { return Ok(()) };
            let (len, from) = match recvfrom(fd, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((len, _, from)) => (len, from),
                Err(Errno::WOULDBLOCK) => return Ok(()),
                // What an ICMP error left on the socket.
                Err(Errno::INTR | Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::MSGSIZE) => {
                    continue;
                }
                Err(error) => return Err(Error::io("read an ICMP answer", error.into())),
            };
            let from = from.and_then(|from| SocketAddr::try_from(from).ok());
            let heard = icmp::read(is_v4, &self.buffer[..len]);
            let Some((heard, from)) = heard.zip(from) else { continue };
            self.note(heard, icmp::canonical(from.ip()), begun.elapsed());
        }
    }

    fn note(&mut self, heard: Heard, from: IpAddr, now: Duration) {
        let (mark, times) = match heard {
            Heard::Request => {
                if self.round.heard.len() < HEARD_MAX {
                    self.round.heard.insert(from);
                }
                return;
            }
            Heard::Reply(mark) => (mark, None),
            Heard::Times(mark, times) => (mark, Some(times)),
        };
        let place = usize::from(mark.number);
        let Some(answer) = self.round.answers.get_mut(place).filter(|_| mark.id == self.id) else {
            return;
        };
        let round_trip = now.saturating_sub(self.sent[place]);
        let ahead_ms = times.and_then(|times| icmp::ahead_ms(times, time_of_day()));
        answer.get_or_insert(Answer { round_trip, ahead_ms });
    }
}

fn socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let is_v4 = family == AddressFamily::INET;
    let protocol = if is_v4 { ipproto::ICMP } else { ipproto::ICMPV6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(family, SocketType::RAW, flags, Some(protocol))?;
    if is_v4 {
        set(&fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
    } else {
        set(&fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
        set(&fd, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1)?;
    }
    // Less room means that some answers are lost, and asked for again.
    let _ = sockopt::set_socket_recv_buffer_size_force(&fd, BUFFER_LEN);
    Ok(fd)
}

fn set(fd: &OwnedFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: the kernel reads an int that lives until the call returns, and nothing else.
    let outcome = unsafe {
        libc::setsockopt(fd.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), len)
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Milliseconds since midnight UTC, by the host's clock as the kernel tells it to others.
fn time_of_day() -> u32 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let ms = now.as_millis() % u128::from(icmp::DAY_MS.unsigned_abs());
    u32::try_from(ms).unwrap_or_default()
}

/// The largest packet that the link to an address takes in one piece, in the calling thread's
/// network namespace; nothing if there is no way.
pub fn link_mtu(to: IpAddr) -> Option<u16> {
    let any: IpAddr = match to {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = std::net::UdpSocket::bind((any, 0)).ok()?;
    // Nothing is sent: a datagram socket is only told where to.
    socket.connect((to, 9)).ok()?;
    let (level, name) = match to {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let (mut mtu, mut len) = (0_i32, libc::socklen_t::try_from(size_of::<i32>()).ok()?);
    // SAFETY: the kernel writes an int of `len` bytes to `mtu`, and its length to `len`.
    let outcome = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut mtu).cast(), &raw mut len)
    };
    (outcome == 0).then(|| u16::try_from(mtu).unwrap_or(u16::MAX)).filter(|mtu| *mtu > 0)
}
