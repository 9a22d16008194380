//! What is counted: plain atomics, written by the threads that carry packets, read by anyone.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::key::PublicKey;

/// Why a packet went nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Nothing that the protocol or IP knows.
    Malformed,
    /// A session that this engine does not have: old, removed, or invented.
    UnknownSession,
    /// A handshake by a key that is not in the table, or none of ours was meant.
    UnknownPeer,
    /// A handshake answered with a cookie: too many arrive.
    RateLimited,
    /// A handshake that its peer's state refuses: replayed, or unasked for.
    HandshakeRefused,
    /// Its authentication tag is wrong.
    Forged,
    /// Its counter was seen, or is too old to tell.
    Replayed,
    /// Its session has ended.
    Expired,
    /// A peer sent from an address that is not allowed to it.
    Spoofed,
    /// No peer is allowed the destination.
    Unroutable,
    /// The peer has never been heard from and no endpoint is configured.
    NoEndpoint,
    /// The UDP socket did not take it.
    SendFailed,
    /// The TUN device did not take it.
    TunFailed,
}

impl Reason {
    pub const ALL: [Self; 13] = [
        Self::Malformed,
        Self::UnknownSession,
        Self::UnknownPeer,
        Self::RateLimited,
        Self::HandshakeRefused,
        Self::Forged,
        Self::Replayed,
        Self::Expired,
        Self::Spoofed,
        Self::Unroutable,
        Self::NoEndpoint,
        Self::SendFailed,
        Self::TunFailed,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownSession => "unknown-session",
            Self::UnknownPeer => "unknown-peer",
            Self::RateLimited => "rate-limited",
            Self::HandshakeRefused => "handshake-refused",
            Self::Forged => "forged",
            Self::Replayed => "replayed",
            Self::Expired => "expired",
            Self::Spoofed => "spoofed",
            Self::Unroutable => "unroutable",
            Self::NoEndpoint => "no-endpoint",
            Self::SendFailed => "send-failed",
            Self::TunFailed => "tun-failed",
        }
    }

    fn place(self) -> usize {
        // Declared in the order of `ALL`; a test compares.
        self as usize
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Dropped packets by reason.
#[derive(Debug, Default)]
pub(crate) struct Drops([AtomicU64; Reason::ALL.len()]);

impl Drops {
    pub(crate) fn add(&self, reason: Reason, count: usize) {
        add(&self.0[reason.place()], count);
    }

    pub(crate) fn read(&self) -> Vec<(Reason, u64)> {
        Reason::ALL.map(|reason| (reason, self.0[reason.place()].load(Ordering::Relaxed))).into()
    }
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// Of one peer; bytes are those of WireGuard's messages, as the UDP socket sees them.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    received_packets: AtomicU64,
    received_bytes: AtomicU64,
    sent_packets: AtomicU64,
    sent_bytes: AtomicU64,
    /// Milliseconds since the epoch, 0 before the first.
    handshake_ms: AtomicU64,
    /// By the engine's own clock, 0 before.
    heard_ms: AtomicU64,
    /// A handshake was begun here and is not answered.
    is_asking: AtomicBool,
    handshakes_failed: AtomicU64,
    pub(crate) drops: Drops,
}

impl Counters {
    /// Of the peer, without a doubt.
    pub(crate) fn received(&self, packets: usize, bytes: usize, now_ms: u64) {
        add(&self.received_packets, packets);
        add(&self.received_bytes, bytes);
        self.heard_ms.store(now_ms.max(1), Ordering::Relaxed);
    }

    /// A handshake was answered, or is not needed any more.
    pub(crate) fn answered(&self) {
        // Seldom true: the line of memory stays shared.
        if self.is_asking.load(Ordering::Relaxed) {
            self.is_asking.store(false, Ordering::Relaxed);
        }
    }

    /// A handshake is begun. If the one before was not answered, it never is.
    pub(crate) fn asks(&self) {
        if self.is_asking.swap(true, Ordering::Relaxed) {
            add(&self.handshakes_failed, 1);
        }
    }

    pub(crate) fn sent(&self, packets: usize, bytes: usize) {
        add(&self.sent_packets, packets);
        add(&self.sent_bytes, bytes);
    }

    pub(crate) fn handshake(&self, now_ms: u64) {
        self.handshake_ms.store(now_ms, Ordering::Relaxed);
    }

    pub(crate) fn read(
        &self,
        keys: Vec<PublicKey>,
        endpoint: Option<SocketAddr>,
        now_ms: u64,
    ) -> PeerStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let ago = |at: &AtomicU64| {
            Some(read(at)).filter(|&at| at > 0).map(|at| now_ms.saturating_sub(at))
        };
        PeerStats {
            keys,
            endpoint,
            received_packets: read(&self.received_packets),
            received_bytes: read(&self.received_bytes),
            sent_packets: read(&self.sent_packets),
            sent_bytes: read(&self.sent_bytes),
            handshake_ms: Some(read(&self.handshake_ms)).filter(|&ms| ms > 0),
            heard_ago_ms: ago(&self.heard_ms),
            handshakes_failed: read(&self.handshakes_failed),
            drops: self.drops.read(),
            lost: false,
            via: None,
            via_lost: false,
        }
    }
}

/// What is known of one peer at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStats {
    pub keys: Vec<PublicKey>,
    /// Where it was last heard from, else what was configured.
    pub endpoint: Option<SocketAddr>,
    pub received_packets: u64,
    /// Bytes of WireGuard's messages, without UDP and IP.
    pub received_bytes: u64,
    pub sent_packets: u64,
    pub sent_bytes: u64,
    /// When the last handshake was completed, milliseconds since the epoch.
    pub handshake_ms: Option<u64>,
    /// How long ago anything of it came in, its handshakes included.
    pub heard_ago_ms: Option<u64>,
    /// Handshakes that were begun here and never answered. One that is begun anew counts.
    pub handshakes_failed: u64,
    pub drops: Vec<(Reason, u64)>,
    /// It does not answer on the direct way.
    pub lost: bool,
    /// Where messages for it go instead.
    pub via: Option<SocketAddr>,
    /// It does not answer there either.
    pub via_lost: bool,
}

impl PeerStats {
    /// Whether it does not answer on the way by another node, if that is how it is reached.
    pub fn is_unreachable(&self) -> bool {
        self.lost && (self.via.is_none() || self.via_lost)
    }

    pub fn dropped(&self, reason: Reason) -> u64 {
        self.drops[reason.place()].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_heard_need_not_hear() {
        let counters = Counters::default();
        let ago = |now| {
            let stats = counters.read(Vec::new(), None, now);
            (stats.heard_ago_ms, stats.handshakes_failed)
        };
        assert_eq!(ago(9), (None, 0));
        counters.asks();
        counters.received(1, 148, 10);
        assert_eq!(ago(15), (Some(5), 0));
        counters.asks();
        counters.asks();
        assert_eq!(ago(15), (Some(5), 2));
        counters.received(1, 92, 20);
        counters.answered();
        counters.asks();
        assert_eq!(ago(25), (Some(5), 2));
    }

    #[test]
    fn each_reason_has_its_place() {
        for (place, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason.place(), place, "{reason}");
        }
    }
}
