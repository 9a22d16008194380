//! The sessions of one own key with one key of a peer.
//!
//! The only module that knows `boringtun`, which does handshakes, encryption, replay windows and
//! the timers of the protocol. It reads the time in [`Use::refresh`] alone, so a link that has
//! rested is refreshed before it is used again, and ticks while it is in use.
//!
//! Not here: who the peer is and where it can be reached (`peer`), when to tick (`timers`).

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519::StaticSecret;

use crate::counters::Reason;
use crate::key::{PrivateKey, PublicKey};

/// What a message is longer than its packet: header of 16 bytes, tag of 16.
pub(crate) const OVERHEAD: usize = 32;
/// The longest message that is no data: a handshake's initiation.
pub(crate) const CONTROL_LEN: usize = 148;
/// How often a link in use looks at its timers; the protocol's shortest is 5 s.
pub(crate) const TICK_MS: u64 = 500;
/// A link is in use for this long after its last packet: the protocol may still want to send a
/// keepalive after 10 s, or a handshake after 15 s.
const IN_USE_MS: u64 = 20_000;
/// A session ends so long after its handshake.
const REJECT_MS: u64 = 180_000;
/// Keys are erased so long after their handshake (three times the 180 s after which they are
/// refused), and a little, so that `boringtun` agrees.
const ERASE_MS: u64 = 541_000;
/// Handshakes a second that are answered without asking the sender to prove its address: at some
/// 150 µs each they may cost 3 % of a core.
pub(crate) const HANDSHAKES_MAX: u64 = 200;

/// Kinds of messages (WireGuard paper, section 5.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Initiation,
    /// Each of these names a session by its place, see [`Link::index`].
    Response(u32),
    Cookie(u32),
    Data(u32),
}

impl Kind {
    pub(crate) fn of(datagram: &[u8]) -> Option<Self> {
        let word = |at: usize| {
            let bytes = datagram.get(at..at + 4)?;
            Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        };
        match (word(0)?, datagram.len()) {
            (1, 148) => Some(Self::Initiation),
            (2, 92) => Some(Self::Response(word(8)? >> 8)),
            (3, 64) => Some(Self::Cookie(word(4)? >> 8)),
            (4, OVERHEAD..) => Some(Self::Data(word(4)? >> 8)),
            _ => None,
        }
    }
}

/// One of this node's keys, with what guards it against floods of handshakes.
pub(crate) struct OwnKey {
    pub(crate) public: PublicKey,
    secret: StaticSecret,
    limiter: RateLimiter,
    /// For `boringtun`, which checks again what `limiter` has let through.
    no_limit: Arc<RateLimiter>,
}

impl OwnKey {
    pub(crate) fn new(private: &PrivateKey) -> Self {
        let public = private.public();
        Self {
            public,
            secret: private.secret(),
            limiter: RateLimiter::new(&public.curve(), HANDSHAKES_MAX),
            no_limit: Arc::new(RateLimiter::new(&public.curve(), u64::MAX)),
        }
    }

    /// Whether an initiation or a response is meant for this key, and may be answered.
    pub(crate) fn admit(&self, from: IpAddr, datagram: &[u8], out: &mut [u8]) -> Admission {
        self.limiter.reset_count();
        match self.limiter.verify_packet(Some(from), datagram, out) {
            Ok(Packet::HandshakeInit(initiation)) => {
                match parse_handshake_anon(&self.secret, &self.public.curve(), &initiation) {
                    Ok(half) => Admission::From(PublicKey::from_bytes(half.peer_static_public)),
                    Err(_) => Admission::Refused,
                }
            }
            Ok(_) => Admission::Fine,
            Err(TunnResult::WriteToNetwork(cookie)) => Admission::ProveAddress(cookie.len()),
            Err(TunnResult::Err(WireGuardError::InvalidMac)) => Admission::NotForUs,
            Err(_) => Admission::Refused,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// An initiation of this peer.
    From(PublicKey),
    /// Another handshake message.
    Fine,
    /// So many bytes of `out` ask the sender to try again with proof.
    ProveAddress(usize),
    /// Perhaps another of our keys is meant.
    NotForUs,
    Refused,
}

/// Which keys a link joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) own: PublicKey,
    pub(crate) remote: PublicKey,
}

pub(crate) struct Link {
    pub(crate) pair: Pair,
    /// 24 bits that the peer puts on its messages.
    pub(crate) index: u32,
    tunn: Mutex<Tunn>,
    /// When its last handshake was done; 0 before.
    established_ms: AtomicU64,
    /// When a right message last came in; 0 before.
    heard_ms: AtomicU64,
    used_ms: AtomicU64,
    refreshed_ms: AtomicU64,
    is_handshaking: AtomicBool,
    /// Packets wait inside for a session.
    has_queue: AtomicBool,
    /// On the list of the timers.
    is_ticking: AtomicBool,
}

/// A link in the hands of one thread.
pub(crate) struct Use<'a> {
    link: &'a Link,
    tunn: MutexGuard<'a, Tunn>,
    now_ms: u64,
}

/// What became of a packet for the peer; lengths are of `out`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sealed {
    Data(usize),
    /// The packet waits, and this message should bring a session.
    Initiation(usize),
    Waits,
}

/// What a data message held.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    Packet { len: usize, source: IpAddr },
    Keepalive,
    Lost(Reason),
}

/// What a handshake message led to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Shaken {
    /// Ours is the answer, so many bytes of `out`; the session is used once the peer has used it.
    Responded(usize),
    /// The session can be used; so many bytes of `out` tell the peer.
    Established(usize),
    /// A cookie was taken for the next try.
    Noted,
    Lost(Reason),
}

impl Link {
    pub(crate) fn new(
        own: &OwnKey,
        remote: PublicKey,
        preshared: Option<[u8; 32]>,
        index: u32,
    ) -> Self {
        let limiter = Arc::clone(&own.no_limit);
        let secret = own.secret.clone();
        Self {
            pair: Pair { own: own.public, remote },
            index,
            // Keepalives that were asked for are of the peer, not of one of its links: `timers`.
            tunn: Mutex::new(Tunn::new(
                secret,
                remote.curve(),
                preshared,
                None,
                index,
                Some(limiter),
            )),
            established_ms: AtomicU64::new(0),
            heard_ms: AtomicU64::new(0),
            used_ms: AtomicU64::new(0),
            refreshed_ms: AtomicU64::new(0),
            is_handshaking: AtomicBool::new(false),
            has_queue: AtomicBool::new(false),
            is_ticking: AtomicBool::new(false),
        }
    }

    pub(crate) fn established_ms(&self) -> u64 {
        self.established_ms.load(Ordering::Relaxed)
    }

    pub(crate) fn heard_ms(&self) -> u64 {
        self.heard_ms.load(Ordering::Relaxed)
    }

    pub(crate) fn hear(&self, now_ms: u64) {
        self.heard_ms.store(now_ms, Ordering::Relaxed);
    }

    pub(crate) fn has_queue(&self) -> bool {
        self.has_queue.load(Ordering::Relaxed)
    }

    /// Whether its newest session is not too old to be used.
    pub(crate) fn is_live(&self, now_ms: u64) -> bool {
        let established = self.established_ms();
        established > 0 && now_ms.saturating_sub(established) < REJECT_MS
    }

    pub(crate) fn hold(&self, now_ms: u64) -> Use<'_> {
        let tunn = self.tunn.lock().unwrap_or_else(PoisonError::into_inner);
        Use { link: self, tunn, now_ms }
    }

    /// Notes that packets go through; true if the timers must be told.
    pub(crate) fn touch(&self, now_ms: u64) -> bool {
        self.used_ms.store(now_ms, Ordering::SeqCst);
        self.must_tick()
    }

    fn must_tick(&self) -> bool {
        !self.is_ticking.load(Ordering::SeqCst) && !self.is_ticking.swap(true, Ordering::SeqCst)
    }

    pub(crate) fn is_ticking(&self) -> bool {
        self.is_ticking.load(Ordering::Relaxed)
    }

    /// As [`Link::touch`], if a handshake is going on.
    pub(crate) fn touch_handshake(&self) -> bool {
        self.is_handshaking.load(Ordering::Relaxed) && self.must_tick()
    }

    /// Whether the protocol may still want something at its next tick. If not, the timers let go.
    pub(crate) fn still_ticks(&self, now_ms: u64) -> bool {
        if self.is_in_use(now_ms) {
            return true;
        }
        self.is_ticking.store(false, Ordering::SeqCst);
        // A packet may have gone through meanwhile, and found it ticking.
        self.is_in_use(now_ms) && self.must_tick()
    }

    fn is_in_use(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.used_ms.load(Ordering::SeqCst)) < IN_USE_MS
            || self.is_handshaking.load(Ordering::SeqCst)
    }

    /// When a link at rest must forget its keys; `None` if it has none.
    pub(crate) fn erase_at_ms(&self) -> Option<u64> {
        Some(self.established_ms()).filter(|&ms| ms > 0).map(|ms| ms + ERASE_MS)
    }
}

impl Use<'_> {
    /// Lets time pass for a link that may have rested; so many bytes of `out` are to be sent.
    pub(crate) fn refresh(&mut self, out: &mut [u8]) -> Option<usize> {
        let last = self.link.refreshed_ms.load(Ordering::Relaxed);
        if last > 0 && self.now_ms < last + 2 * TICK_MS {
            return None;
        }
        self.tick(out)
    }

    pub(crate) fn tick(&mut self, out: &mut [u8]) -> Option<usize> {
        self.link.refreshed_ms.store(self.now_ms.max(1), Ordering::Relaxed);
        match self.tunn.update_timers(out) {
            TunnResult::WriteToNetwork(message) => {
                let is_initiation = message.first() == Some(&1);
                if is_initiation {
                    self.link.is_handshaking.store(true, Ordering::Relaxed);
                }
                Some(message.len())
            }
            TunnResult::Err(WireGuardError::ConnectionExpired) => {
                self.link.is_handshaking.store(false, Ordering::Relaxed);
                self.link.has_queue.store(false, Ordering::Relaxed);
                self.link.established_ms.store(0, Ordering::Relaxed);
                None
            }
            _ => None,
        }
    }

    pub(crate) fn has_session(&self) -> bool {
        self.tunn.time_since_last_handshake().is_some()
    }

    /// Encrypts a packet; an empty one is a keepalive. `out` has room for it, [`OVERHEAD`], and
    /// at least [`CONTROL_LEN`].
    pub(crate) fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> Sealed {
        match self.tunn.encapsulate(packet, out) {
            TunnResult::WriteToNetwork(message) if message.first() == Some(&4) => {
                Sealed::Data(message.len())
            }
            TunnResult::WriteToNetwork(message) => {
                self.link.is_handshaking.store(true, Ordering::Relaxed);
                self.link.has_queue.store(true, Ordering::Relaxed);
                Sealed::Initiation(message.len())
            }
            _ => {
                self.link.has_queue.store(true, Ordering::Relaxed);
                Sealed::Waits
            }
        }
    }

    /// Begins a handshake unless one is going on; so many bytes of `out` are to be sent.
    pub(crate) fn initiate(&mut self, out: &mut [u8]) -> Option<usize> {
        match self.tunn.format_handshake_initiation(out, false) {
            TunnResult::WriteToNetwork(message) => {
                self.link.is_handshaking.store(true, Ordering::Relaxed);
                Some(message.len())
            }
            _ => None,
        }
    }

    /// Begins a handshake, also if one is going on: what was sent may be lost. Answers to the last
    /// two are understood.
    pub(crate) fn initiate_again(&mut self, out: &mut [u8]) -> Option<usize> {
        match self.tunn.format_handshake_initiation(out, true) {
            TunnResult::WriteToNetwork(message) => {
                self.link.is_handshaking.store(true, Ordering::Relaxed);
                Some(message.len())
            }
            _ => None,
        }
    }

    /// Decrypts a data message; `out` is at least as long.
    pub(crate) fn open(&mut self, datagram: &[u8], out: &mut [u8]) -> Opened {
        match self.tunn.decapsulate(None, datagram, out) {
            TunnResult::WriteToTunnelV4(packet, source) => {
                Opened::Packet { len: packet.len(), source: source.into() }
            }
            TunnResult::WriteToTunnelV6(packet, source) => {
                Opened::Packet { len: packet.len(), source: source.into() }
            }
            TunnResult::Done => Opened::Keepalive,
            TunnResult::WriteToNetwork(_) => Opened::Lost(Reason::Malformed),
            TunnResult::Err(error) => Opened::Lost(reason(&error)),
        }
    }

    /// Takes an admitted handshake message.
    pub(crate) fn shake(&mut self, datagram: &[u8], out: &mut [u8]) -> Shaken {
        match self.tunn.decapsulate(None, datagram, out) {
            TunnResult::WriteToNetwork(message) => {
                let (is_response, len) = (message.first() == Some(&2), message.len());
                self.link.established_ms.store(self.now_ms.max(1), Ordering::Relaxed);
                if is_response {
                    return Shaken::Responded(len);
                }
                self.link.is_handshaking.store(false, Ordering::Relaxed);
                Shaken::Established(len)
            }
            TunnResult::Done => Shaken::Noted,
            TunnResult::Err(WireGuardError::InvalidPacket) => Shaken::Lost(Reason::Malformed),
            _ => Shaken::Lost(Reason::HandshakeRefused),
        }
    }

    /// One packet that waited for a session, encrypted: so many bytes of `out`.
    pub(crate) fn unqueue(&mut self, out: &mut [u8]) -> Option<usize> {
        if !self.link.has_queue.load(Ordering::Relaxed) || !self.has_session() {
            return None;
        }
        match self.tunn.decapsulate(None, &[], out) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            _ => {
                self.link.has_queue.store(false, Ordering::Relaxed);
                None
            }
        }
    }
}

fn reason(error: &WireGuardError) -> Reason {
    match error {
        WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter => Reason::Replayed,
        WireGuardError::InvalidAeadTag => Reason::Forged,
        WireGuardError::NoCurrentSession
        | WireGuardError::WrongIndex
        | WireGuardError::ConnectionExpired => Reason::Expired,
        _ => Reason::Malformed,
    }
}
