//! The network between hosts: delays, losses, cuts in one direction or both.
//!
//! Two kinds of ways. A [`pipe`] is a connection: what goes in comes out in
//! order, until something is lost; from then on it is silent, as TCP is behind
//! a cut. Single messages ([`Net::pass`]) are independent of each other.
//!
//! A host that is stopped (SIGSTOP) neither hears nor speaks until it goes on;
//! what was sent to it meanwhile waits in its kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use warren_base::rng::{Rng, SeededRng};

/// A host, or the world outside.
pub(crate) type Place = u32;

/// Where people are: nothing is ever cut there.
pub(crate) const OUTSIDE: Place = 0;
/// Managers are below, workers above.
pub(crate) const WORKERS: Place = 100;

#[derive(Default)]
struct State {
    cuts: BTreeSet<(Place, Place)>,
    /// Added to each message, at most.
    slow_ms: BTreeMap<(Place, Place), u64>,
    /// Of a thousand messages between managers.
    loss: u64,
    stopped: BTreeMap<Place, Instant>,
}

pub(crate) struct Net {
    rng: Arc<SeededRng>,
    state: Mutex<State>,
}

impl Net {
    pub(crate) fn new(rng: Arc<SeededRng>) -> Self {
        Self { rng, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn cut(&self, from: Place, to: Place) {
        self.lock().cuts.insert((from, to));
    }

    pub(crate) fn mend(&self, from: Place, to: Place) {
        self.lock().cuts.remove(&(from, to));
    }

    pub(crate) fn is_cut(&self, from: Place, to: Place) -> bool {
        self.lock().cuts.contains(&(from, to))
    }

    pub(crate) fn slow(&self, from: Place, to: Place, ms: u64) {
        let mut state = self.lock();
        if ms == 0 {
            state.slow_ms.remove(&(from, to))
        } else {
            state.slow_ms.insert((from, to), ms)
        };
    }

    pub(crate) fn lose(&self, of_thousand: u64) {
        self.lock().loss = of_thousand;
    }

    pub(crate) fn stop(&self, place: Place, for_ms: u64) {
        self.lock().stopped.insert(place, Instant::now() + Duration::from_millis(for_ms));
    }

    /// Until when a host is stopped, if it is.
    pub(crate) fn stopped_until(&self, place: Place) -> Option<Instant> {
        self.lock().stopped.get(&place).copied().filter(|until| *until > Instant::now())
    }

    /// All faults end.
    pub(crate) fn heal(&self) {
        *self.lock() = State::default();
    }

    /// How long a message is under way.
    fn delay(&self, from: Place, to: Place) -> Duration {
        let slow = self.lock().slow_ms.get(&(from, to)).copied().unwrap_or(0);
        let jitter = match self.rng.below(64) {
            0 => self.rng.below(30),
            1..=8 => self.rng.below(4),
            _ => 0,
        };
        Duration::from_millis(1 + jitter + self.rng.below(slow + 1))
    }

    fn is_lost(&self) -> bool {
        let loss = self.lock().loss;
        loss > 0 && self.rng.below(1000) < loss
    }

    async fn going_on(&self, place: Place) {
        while let Some(until) = self.stopped_until(place) {
            sleep_until(until).await;
        }
    }

    /// Brings one message over; whether it arrived.
    pub(crate) async fn pass(&self, from: Place, to: Place) -> bool {
        self.going_on(from).await;
        if self.is_cut(from, to) || self.is_lost() {
            return false;
        }
        tokio::time::sleep(self.delay(from, to)).await;
        self.going_on(to).await;
        !self.is_cut(from, to)
    }
}

/// How a connection loses what is in it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Ends only by a cut.
    Stream,
    /// Also loses single messages, and lets a few be overtaken.
    Calls,
}

/// The end of a connection where things go in.
pub(crate) struct Entry<T> {
    net: Arc<Net>,
    from: Place,
    to: Place,
    last: Mutex<Instant>,
    input: mpsc::UnboundedSender<(Instant, T)>,
}

impl<T> Entry<T> {
    pub(crate) fn send(&self, item: T) {
        let leaves = self.net.stopped_until(self.from).unwrap_or_else(Instant::now);
        let arrives = leaves + self.net.delay(self.from, self.to);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = last.max(arrives);
        // Whoever listened is gone: so is what was said.
        let _ = self.input.send((*last, item));
    }

    /// Says nothing more, not even that it ends, for as long as anybody listens.
    pub(crate) async fn silent(&self) {
        self.input.closed().await;
    }
}

/// A connection from one host to another. The receiver ends when the entry is dropped, unless
/// something was lost before.
pub(crate) fn pipe<T: Send + 'static>(
    net: &Arc<Net>,
    from: Place,
    to: Place,
    kind: Kind,
) -> (Entry<T>, mpsc::UnboundedReceiver<T>) {
    let (input, incoming) = mpsc::unbounded_channel::<(Instant, T)>();
    let (output, outgoing) = mpsc::unbounded_channel();
    tokio::spawn(carry(Arc::clone(net), (from, to, kind), incoming, output));
    let last = Mutex::new(Instant::now());
    (Entry { net: Arc::clone(net), from, to, last, input }, outgoing)
}

async fn carry<T: Send + 'static>(
    net: Arc<Net>,
    (from, to, kind): (Place, Place, Kind),
    mut incoming: mpsc::UnboundedReceiver<(Instant, T)>,
    output: mpsc::UnboundedSender<T>,
) {
    while let Some((arrives, item)) = incoming.recv().await {
        sleep_until(arrives).await;
        net.going_on(to).await;
        let lost = net.is_cut(from, to) || (kind == Kind::Calls && net.is_lost());
        if lost && kind == Kind::Stream {
            drop(item);
            // Nothing comes any more, not even the end.
            while incoming.recv().await.is_some() {}
            output.closed().await;
            return;
        }
        if lost {
            continue;
        }
        if kind == Kind::Calls && net.rng.below(256) == 0 {
            let (late_ms, output) = (net.rng.below(20), output.clone());
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(late_ms)).await;
                // The receiver may be gone by now, which is an end like any other.
                let _ = output.send(item);
            });
            continue;
        }
        if output.send(item).is_err() {
            return;
        }
    }
}
