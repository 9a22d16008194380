//! One peer while it is in the table: where it is, its links, what was counted.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use arc_swap::ArcSwapOption;

use crate::counters::Counters;
use crate::link::{Link, Pair};
use crate::reach::{Reach, Silence};

/// How often an attempt at a handshake that is not asked for by the protocol may be repeated.
const NUDGE_MS: u64 = 5000;

/// Messages under way when a peer moved to a newer session have arrived within this time.
const MOVED_MS: u64 = 2000;

#[derive(Default)]
pub(crate) struct Peer {
    pub(crate) counters: Counters,
    place: RwLock<Place>,
    reach: Mutex<Reach>,
    /// When a packet was first wanted to be sent since it was last heard; 0: it was heard since.
    awaiting_ms: AtomicU64,
    /// When one was last.
    wanted_ms: AtomicU64,
    /// The link with the newest session: what is sent goes through it.
    active: ArcSwapOption<Link>,
    /// At most one for each pair of keys; made when first needed.
    links: Mutex<Vec<Arc<Link>>>,
    /// When anything was last sent to it.
    sent_ms: AtomicU64,
    /// When a handshake was last begun without a packet that needs it; 0 before.
    nudged_ms: AtomicU64,
}

/// Where a peer is, and by whom it is reached if not there.
#[derive(Debug, Default, Clone, Copy)]
struct Place {
    direct: Option<SocketAddr>,
    via: Option<SocketAddr>,
    /// Where messages were passed on before: what still comes from there says nothing of where the
    /// peer is.
    former_via: Option<SocketAddr>,
}

impl Peer {
    pub(crate) fn new(direct: Option<SocketAddr>, via: Option<SocketAddr>) -> Self {
        Self { place: RwLock::new(Place { direct, via, former_via: None }), ..Self::default() }
    }

    fn place(&self) -> Place {
        *self.place.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change_place(&self, change: impl FnOnce(&mut Place)) {
        change(&mut self.place.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Where messages go.
    pub(crate) fn endpoint(&self) -> Option<SocketAddr> {
        let Place { direct, via, .. } = self.place();
        via.or(direct)
    }

    /// Where it is itself.
    pub(crate) fn direct(&self) -> Option<SocketAddr> {
        self.place().direct
    }

    /// Where those are left who pass its messages on.
    pub(crate) fn via(&self) -> Option<SocketAddr> {
        self.place().via
    }

    pub(crate) fn set_direct(&self, endpoint: Option<SocketAddr>) {
        self.change_place(|place| place.direct = endpoint);
    }

    /// Packets go by `via` from now on, or directly again. The other end may have turned before, so
    /// that this one took those in between for the peer: it is where the table says then (`told`).
    /// Says whether something else is known of how it is reached.
    pub(crate) fn set_via(
        &self,
        via: Option<SocketAddr>,
        told: Option<SocketAddr>,
        now_ms: u64,
    ) -> bool {
        self.change_place(|place| {
            let direct = place.direct.filter(|direct| Some(*direct) != via).or(told);
            *place = Place { direct, via, former_via: place.via };
        });
        self.heard();
        self.reach().turn(via.is_some(), now_ms)
    }

    /// It has proven to be where this came from. While others pass messages on, they alone know
    /// where that is.
    pub(crate) fn heard_from(&self, from: SocketAddr) {
        let Place { direct, via, former_via } = self.place();
        if via.is_none() && direct != Some(from) && former_via != Some(from) {
            self.set_direct(Some(from));
        }
    }

    pub(crate) fn reach(&self) -> MutexGuard<'_, Reach> {
        self.reach.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A packet is to be sent to it, and would usually be answered.
    pub(crate) fn wants(&self, now_ms: u64) {
        if self.awaiting_ms.load(Ordering::Relaxed) == 0 {
            self.awaiting_ms.store(now_ms.max(1), Ordering::Relaxed);
        }
        self.wanted_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Something of it was right.
    pub(crate) fn heard(&self) {
        // Of a bulk transfer seldom true: the line of memory stays shared.
        if self.awaiting_ms.load(Ordering::Relaxed) != 0 {
            self.awaiting_ms.store(0, Ordering::Relaxed);
        }
    }

    pub(crate) fn silence(&self, now_ms: u64) -> Option<Silence> {
        let since_ms = Some(self.awaiting_ms.load(Ordering::Relaxed)).filter(|&ms| ms > 0)?;
        let wanted_ms = self.wanted_ms.load(Ordering::Relaxed);
        Some(Silence {
            for_ms: now_ms.saturating_sub(since_ms),
            insisted_ms: wanted_ms.saturating_sub(since_ms),
        })
    }

    pub(crate) fn active(&self) -> Option<Arc<Link>> {
        self.active.load_full()
    }

    pub(crate) fn is_active(&self, link: &Arc<Link>) -> bool {
        self.active.load().as_ref().is_some_and(|active| Arc::ptr_eq(active, link))
    }

    /// Sends through `link`, where it was just heard, from now on, if its session is the newest.
    /// Or if the newest has been silent: the peer has lost it.
    pub(crate) fn prefer(&self, link: &Arc<Link>, now_ms: u64) {
        let is_better = self.active.load().as_ref().is_none_or(|active| {
            active.established_ms() <= link.established_ms()
                || now_ms.saturating_sub(active.heard_ms()) > MOVED_MS
        });
        if is_better {
            self.active.store(Some(Arc::clone(link)));
        }
    }

    pub(crate) fn links(&self) -> MutexGuard<'_, Vec<Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn link(&self, pair: Pair) -> Option<Arc<Link>> {
        self.links().iter().find(|link| link.pair == pair).cloned()
    }

    /// Ends all sessions but those `keep` allows.
    pub(crate) fn retain(&self, keep: impl Fn(Pair) -> bool) {
        let mut links = self.links();
        links.retain(|link| keep(link.pair));
        let gone = self.active.load().as_ref().is_some_and(|active| !keep(active.pair));
        if gone {
            let newest = links.iter().filter(|link| link.established_ms() > 0);
            self.active.store(newest.max_by_key(|link| link.established_ms()).cloned());
        }
    }

    pub(crate) fn sent(&self, packets: usize, bytes: usize, now_ms: u64) {
        self.counters.sent(packets, bytes);
        self.sent_ms.store(now_ms.max(1), Ordering::Relaxed);
    }

    /// 0 if nothing was sent yet.
    pub(crate) fn sent_ms(&self) -> u64 {
        self.sent_ms.load(Ordering::Relaxed)
    }

    /// Whether a handshake may be begun unasked; at most every 5 s.
    pub(crate) fn may_nudge(&self, now_ms: u64) -> bool {
        let last = self.nudged_ms.load(Ordering::Relaxed);
        let is_due = last == 0 || now_ms >= last + NUDGE_MS;
        is_due
            && self
                .nudged_ms
                .compare_exchange(last, now_ms.max(1), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// How long ago that was.
    pub(crate) fn since_nudge_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.nudged_ms.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> Option<SocketAddr> {
        Some(SocketAddr::from(([10, 0, 0, 1], port)))
    }

    #[test]
    fn who_passes_on_is_not_where_a_peer_is() {
        let (home, between) = (at(1), at(2));
        let peer = Peer::new(home, None);
        // The other end turned first: its messages come by the node in between already.
        peer.heard_from(between.unwrap());
        assert_eq!(peer.direct(), between);
        peer.set_via(between, home, 0);
        assert_eq!((peer.direct(), peer.endpoint()), (home, between));
        // This one turns back first.
        peer.set_via(None, home, 0);
        peer.heard_from(between.unwrap());
        assert_eq!((peer.direct(), peer.endpoint()), (home, home));
        peer.heard_from(at(3).unwrap());
        assert_eq!(peer.endpoint(), at(3));
    }

    #[test]
    fn where_a_peer_is_that_no_table_tells_is_kept() {
        let (home, between) = (at(1), at(2));
        let peer = Peer::new(None, None);
        peer.heard_from(home.unwrap());
        peer.set_via(between, None, 0);
        assert_eq!(peer.direct(), home);
        let peer = Peer::new(None, None);
        peer.heard_from(between.unwrap());
        peer.set_via(between, None, 0);
        assert_eq!(peer.direct(), None);
    }
}
