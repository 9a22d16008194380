//! What all threads of an engine see.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use arc_swap::ArcSwap;
use rustix::event::{EventfdFlags, eventfd};
use warren_base::clock::Clock;

use crate::Error;
use crate::counters::{Drops, Reason};
use crate::engine::Tell;
use crate::link::{Kind, Link, Pair};
use crate::peer::Peer;
use crate::routing::{Entry, Routing};
use crate::table::{Table, TableError};
use crate::timers::Mailbox;
use crate::udp::Udp;

/// Places on the wire have 24 bits.
const INDEX_MASK: u32 = 0x00ff_ffff;
/// How often a peer with a session of another own key than the offered is asked again.
const OFFER_MS: u64 = 60_000;

pub(crate) struct Shared {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) routing: ArcSwap<Routing>,
    pub(crate) udp: Vec<Udp>,
    pub(crate) mailbox: Mailbox,
    /// Of packets that belong to no peer.
    pub(crate) drops: Drops,
    links: RwLock<Links>,
    stop: AtomicBool,
    on_reach: Option<Tell>,
    /// Becomes readable when it is time to stop.
    pub(crate) stop_fd: OwnedFd,
}

struct Links {
    by_index: HashMap<u32, (Arc<Peer>, Arc<Link>)>,
    next: u32,
}

impl Shared {
    /// `first_index` should be random: messages for sessions of an engine before this one must
    /// not find one of this.
    pub(crate) fn new(
        clock: Arc<dyn Clock>,
        udp: Vec<Udp>,
        first_index: u32,
        on_reach: Option<Tell>,
    ) -> Result<Self, Error> {
        let stop_fd = eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(|error| Error::io("make an eventfd", error.into()))?;
        Ok(Self {
            clock,
            routing: ArcSwap::default(),
            udp,
            mailbox: Mailbox::default(),
            drops: Drops::default(),
            links: RwLock::new(Links { by_index: HashMap::new(), next: first_index }),
            stop: AtomicBool::new(false),
            on_reach,
            stop_fd,
        })
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.clock.monotonic_ms()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = rustix::io::write(&self.stop_fd, &1_u64.to_ne_bytes());
        self.mailbox.stop();
    }

    pub(crate) fn find(&self, index: u32) -> Option<(Arc<Peer>, Arc<Link>)> {
        let links = self.links.read().unwrap_or_else(PoisonError::into_inner);
        links.by_index.get(&index).cloned()
    }

    /// Takes a new table: sessions that it does not allow are gone when this returns.
    pub(crate) fn apply(&self, table: &Table) -> Result<(), TableError> {
        let now = self.now_ms();
        // Whoever makes a link waits, and then sees the new table.
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        let old = self.routing.load_full();
        let new = Arc::new(Routing::compile(table, &old)?);
        // Peers that are reached on another way from now on.
        let (mut moved, mut turned) = (false, Vec::new());
        for entry in &old.entries {
            if new.of(&entry.peer).is_none() {
                entry.peer.retain(|_| false);
            }
        }
        for entry in &new.entries {
            if let Some(former) = old.of(&entry.peer) {
                let same_preshared = former.config.preshared_key == entry.config.preshared_key;
                entry.peer.retain(|pair| same_preshared && new.accepts(entry, pair));
                if former.config.endpoint != entry.config.endpoint {
                    entry.peer.set_direct(entry.config.endpoint);
                }
            }
            let via = old.of(&entry.peer).and_then(|former| former.config.via);
            if via != entry.config.via {
                moved |= entry.peer.set_via(entry.config.via, entry.config.endpoint, now);
                turned.push(Arc::clone(&entry.peer));
            }
        }
        links
            .by_index
            .retain(|_, (peer, link)| new.of(peer).is_some() && peer.link(link.pair).is_some());
        self.routing.store(Arc::clone(&new));
        drop(links);
        for entry in &new.entries {
            let active = entry.peer.active();
            if active.is_some_and(|active| !new.offers(active.pair)) {
                self.nudge(&entry.peer, now);
            }
        }
        self.mailbox.turn(turned);
        if moved {
            self.reach_moved();
        }
        Ok(())
    }

    /// Something else is known of how a peer is reached.
    pub(crate) fn reach_moved(&self) {
        if let Some(tell) = &self.on_reach {
            tell();
        }
    }

    /// Has a handshake with the offered keys begun, by the timers' thread.
    pub(crate) fn nudge(&self, peer: &Arc<Peer>, now_ms: u64) {
        if peer.may_nudge(now_ms) {
            self.mailbox.nudge(Arc::clone(peer));
        }
    }

    /// The link to send through.
    pub(crate) fn link_to(
        &self,
        routing: &Routing,
        entry: &Entry,
        now_ms: u64,
    ) -> Option<Arc<Link>> {
        let offered = routing.offered(entry)?;
        if let Some(active) = entry.peer.active().filter(|active| active.is_live(now_ms)) {
            if !routing.offers(active.pair) && entry.peer.since_nudge_ms(now_ms) >= OFFER_MS {
                self.nudge(&entry.peer, now_ms);
            }
            return Some(active);
        }
        self.link(&entry.peer, offered)
    }

    /// The link of these keys, made if the table allows it and it is not there.
    pub(crate) fn link(&self, peer: &Arc<Peer>, pair: Pair) -> Option<Arc<Link>> {
        if let Some(link) = peer.link(pair) {
            return Some(link);
        }
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        let routing = self.routing.load();
        let entry = routing.of(peer).filter(|entry| routing.accepts(entry, pair))?;
        if let Some(link) = peer.link(pair) {
            return Some(link);
        }
        let own = routing.own(pair.own)?;
        // There are far fewer links than places.
        while links.by_index.contains_key(&(links.next & INDEX_MASK)) {
            links.next = links.next.wrapping_add(1);
        }
        let index = links.next & INDEX_MASK;
        links.next = links.next.wrapping_add(1);
        let link = Arc::new(Link::new(own, pair.remote, entry.preshared(), index));
        links.by_index.insert(link.index, (Arc::clone(peer), Arc::clone(&link)));
        peer.links().push(Arc::clone(&link));
        Some(link)
    }

    /// Sends one message to a peer, of whatever kind.
    pub(crate) fn send(&self, udp: &Udp, peer: &Peer, message: &[u8], now_ms: u64) {
        let Some(to) = peer.endpoint() else {
            peer.counters.drops.add(Reason::NoEndpoint, 1);
            return;
        };
        self.send_to(udp, peer, to, message, now_ms);
    }

    pub(crate) fn send_to(
        &self,
        udp: &Udp,
        peer: &Peer,
        to: SocketAddr,
        message: &[u8],
        now_ms: u64,
    ) {
        if Kind::of(message) == Some(Kind::Initiation) {
            peer.counters.asks();
        }
        match udp.send(to, message) {
            Ok(()) => peer.sent(1, message.len(), now_ms),
            Err(_) => peer.counters.drops.add(Reason::SendFailed, 1),
        }
    }
}
