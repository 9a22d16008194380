//! One thread that sleeps until the earliest deadline of all links.
//!
//! Links in use tick every [`TICK_MS`]; a link at rest has one deadline, when its keys are erased, a
//! peer with keepalive one each time it was silent for so long, and a peer that is not reached one
//! for the next attempt. An engine without traffic and keepalives sleeps for minutes.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::link::{CONTROL_LEN, Link, Sealed, TICK_MS};
use crate::peer::Peer;
use crate::reach::Ask;
use crate::routing::{Entry, Routing};
use crate::shared::Shared;

/// So that a wrong computation of a deadline is an hour of delay and no more.
const SLEEP_MAX_MS: u64 = 3_600_000;
const MS_PER_S: u64 = 1000;

#[derive(Default)]
struct Mail {
    /// Peers with which a handshake is to begin; each at most every 5 s.
    nudges: Vec<Arc<Peer>>,
    /// Links that came into use; each is in here once, see `Link::touch`.
    links: Vec<(Arc<Peer>, Arc<Link>)>,
    /// Peers that are reached on another way from now on.
    turned: Vec<Arc<Peer>>,
    is_woken: bool,
    is_stopping: bool,
}

/// How other threads reach the timers.
#[derive(Default)]
pub(crate) struct Mailbox {
    mail: Mutex<Mail>,
    arrived: Condvar,
}

impl Mailbox {
    fn put(&self, put: impl FnOnce(&mut Mail)) {
        let mut mail = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        put(&mut mail);
        mail.is_woken = true;
        drop(mail);
        self.arrived.notify_one();
    }

    pub(crate) fn nudge(&self, peer: Arc<Peer>) {
        self.put(|mail| mail.nudges.push(peer));
    }

    pub(crate) fn tick(&self, peer: &Arc<Peer>, link: &Arc<Link>) {
        self.put(|mail| mail.links.push((Arc::clone(peer), Arc::clone(link))));
    }

    /// A table was taken.
    pub(crate) fn turn(&self, turned: Vec<Arc<Peer>>) {
        self.put(|mail| mail.turned.extend(turned));
    }

    pub(crate) fn stop(&self) {
        self.put(|mail| mail.is_stopping = true);
    }

    fn wait(&self, for_ms: u64) -> Mail {
        let mail = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut mail, _) = self
            .arrived
            .wait_timeout_while(mail, Duration::from_millis(for_ms), |mail| !mail.is_woken)
            .unwrap_or_else(PoisonError::into_inner);
        let is_stopping = mail.is_stopping;
        Mail { is_stopping, ..std::mem::take(&mut *mail) }
    }
}

#[derive(Default)]
struct Timers {
    ticking: Vec<(Arc<Peer>, Arc<Link>)>,
    /// At rest, with keys.
    resting: Vec<(Arc<Peer>, Arc<Link>)>,
    /// Not reached on the direct way.
    lost: Vec<Arc<Peer>>,
    ticked_ms: u64,
    out: Vec<u8>,
}

/// Runs until the engine stops.
pub(crate) fn run(shared: &Shared) {
    let mut timers = Timers { out: vec![0; CONTROL_LEN], ..Timers::default() };
    let mut sleep_ms = 0;
    loop {
        let mail = shared.mailbox.wait(sleep_ms);
        if mail.is_stopping {
            return;
        }
        let now = shared.now_ms();
        let routing = shared.routing.load_full();
        timers.ticking.extend(mail.links);
        for peer in &mail.nudges {
            timers.initiate(shared, &routing, peer, now);
        }
        for peer in &mail.turned {
            // Whatever waits goes on, and the other end of a new way learns of it.
            if peer.active().is_some() || peer.sent_ms() > 0 {
                timers.ask(shared, &routing, peer, Ask::Used, now);
            }
        }
        let mut wake_ms = now + SLEEP_MAX_MS;
        wake_ms = wake_ms.min(timers.keepalives(shared, &routing, now));
        wake_ms = wake_ms.min(timers.tick(shared, &routing, now));
        timers.lost.extend(mail.turned.iter().cloned());
        wake_ms = wake_ms.min(timers.seek(shared, &routing, now));
        wake_ms = wake_ms.min(timers.erase(now));
        sleep_ms = wake_ms.saturating_sub(now).max(1);
    }
}

impl Timers {
    fn initiate(&mut self, shared: &Shared, routing: &Routing, peer: &Arc<Peer>, now: u64) {
        let pair = routing.of(peer).and_then(|entry| routing.offered(entry));
        let Some(link) = pair.and_then(|pair| shared.link(peer, pair)) else { return };
        let mut held = link.hold(now);
        let refreshed = held.refresh(&mut self.out);
        let message = refreshed.or_else(|| held.initiate(&mut self.out));
        drop(held);
        self.send(shared, peer, &link, message, now);
    }

    fn send(
        &mut self,
        shared: &Shared,
        peer: &Arc<Peer>,
        link: &Arc<Link>,
        message: Option<usize>,
        now: u64,
    ) {
        if let (Some(len), Some(udp)) = (message, shared.udp.first()) {
            shared.send(udp, peer, &self.out[..len], now);
        }
        if link.touch_handshake() {
            self.ticking.push((Arc::clone(peer), Arc::clone(link)));
        }
    }

    /// Breaks the silence with those peers that want it; the next time it may be due.
    fn keepalives(&mut self, shared: &Shared, routing: &Routing, now: u64) -> u64 {
        let mut next = u64::MAX;
        for entry in &routing.entries {
            let Some(seconds) = entry.config.keepalive else { continue };
            let period = u64::from(seconds.get()) * MS_PER_S;
            let last = entry.peer.sent_ms();
            let due = if last == 0 { 0 } else { last + period };
            if now < due {
                next = next.min(due);
                continue;
            }
            self.keep_alive(shared, routing, entry, now);
            next = next.min(now + period);
        }
        next
    }

    fn keep_alive(&mut self, shared: &Shared, routing: &Routing, entry: &Entry, now: u64) {
        if entry.peer.endpoint().is_none() {
            return;
        }
        let Some(link) = shared.link_to(routing, entry, now) else { return };
        let mut held = link.hold(now);
        let mut message = held.refresh(&mut self.out);
        if message.is_none() {
            message = if held.has_session() {
                match held.seal(&[], &mut self.out) {
                    Sealed::Data(len) | Sealed::Initiation(len) => Some(len),
                    Sealed::Waits => None,
                }
            } else {
                held.initiate(&mut self.out)
            };
        }
        drop(held);
        self.send(shared, &entry.peer, &link, message, now);
    }

    /// Lets the links in use look at their timers; the next time some must.
    fn tick(&mut self, shared: &Shared, routing: &Routing, now: u64) -> u64 {
        if self.ticking.is_empty() {
            return u64::MAX;
        }
        if now < self.ticked_ms + TICK_MS {
            return self.ticked_ms + TICK_MS;
        }
        self.ticked_ms = now;
        for (peer, link) in std::mem::take(&mut self.ticking) {
            // A removed link is let go.
            if peer.link(link.pair).is_none() {
                continue;
            }
            let message = link.hold(now).tick(&mut self.out);
            if let (Some(len), Some(udp)) = (message, shared.udp.first()) {
                shared.send(udp, &peer, &self.out[..len], now);
            }
            self.look(shared, routing, &peer, now);
            if link.still_ticks(now) {
                self.ticking.push((peer, link));
            } else {
                // It is not in there: whatever ticks is taken out by `erase`.
                self.resting.push((peer, link));
            }
        }
        if self.ticking.is_empty() { u64::MAX } else { now + TICK_MS }
    }

    /// Whether a peer answers, and what to ask it if not.
    fn look(&mut self, shared: &Shared, routing: &Routing, peer: &Arc<Peer>, now: u64) {
        let (ask, became_lost) = peer.reach().look(peer.silence(now), peer.via().is_some(), now);
        self.ask(shared, routing, peer, ask, now);
        if became_lost {
            shared.reach_moved();
            if !self.lost.iter().any(|known| Arc::ptr_eq(known, peer)) {
                self.lost.push(Arc::clone(peer));
            }
        }
    }

    /// Begins a handshake on that way.
    fn ask(&mut self, shared: &Shared, routing: &Routing, peer: &Arc<Peer>, ask: Ask, now: u64) {
        let to = match ask {
            Ask::Nothing => return,
            Ask::Used => peer.endpoint(),
            Ask::Direct => peer.direct(),
        };
        let pair = routing.of(peer).and_then(|entry| routing.offered(entry));
        let link = pair.and_then(|pair| shared.link(peer, pair));
        let (Some(link), Some(to), Some(udp)) = (link, to, shared.udp.first()) else { return };
        let message = link.hold(now).initiate_again(&mut self.out);
        if let Some(len) = message {
            shared.send_to(udp, peer, to, &self.out[..len], now);
        }
        if link.touch_handshake() {
            self.ticking.push((Arc::clone(peer), link));
        }
    }

    /// Tries the direct way to those that it is lost to; the next time it may be due.
    fn seek(&mut self, shared: &Shared, routing: &Routing, now: u64) -> u64 {
        let mut next = u64::MAX;
        let mut lost = std::mem::take(&mut self.lost);
        lost.retain(|peer| {
            if routing.of(peer).is_none() {
                return false;
            }
            self.look(shared, routing, peer, now);
            let Some(at) = peer.reach().probe_at_ms() else { return false };
            next = next.min(at);
            true
        });
        lost.append(&mut self.lost);
        self.lost = lost;
        next
    }

    /// Lets links that have rested for long forget their keys; the next time one must.
    fn erase(&mut self, now: u64) -> u64 {
        let out = &mut self.out;
        let mut next = u64::MAX;
        self.resting.retain(|(peer, link)| {
            // Used again: its ticks erase.
            if peer.link(link.pair).is_none() || link.is_ticking() {
                return false;
            }
            let Some(at) = link.erase_at_ms() else { return false };
            if now >= at {
                // Nothing is sent: at this age all that happens is the end.
                let _ = link.hold(now).tick(out);
                return false;
            }
            next = next.min(at);
            true
        });
        next
    }
}
