//! What the cluster does not know is asked of others, once for all who ask the same.
//!
//! Answers are kept for as long as they say, whole and for the very question that they were
//! given for: nothing that a server adds to them answers another one. Who asks upstream is the
//! node, with nothing of the container's message but its question.
//!
//! Against forged answers (RFC 5452): a socket and a port of the kernel's choice for each
//! query, connected, so that only its server is heard; a random id; and after a few answers
//! that do not fit, the query goes over TCP.
//!
//! Limits: flights, waiting questions for all and for each container, bytes that are kept.
//! Beyond them a question is answered with a failure at once.
//!
//! Not here: which questions may leave (`zone`).

mod cache;
mod exchange;
pub(crate) mod resolv;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::Shared;
use warren_base::clock::Clock;
use warren_base::rng::Rng;

use super::answer::Ask;
use super::tables::Upstream;
use super::wire::{Rcode, Response, Writer};
use cache::{Cache, Key};
use exchange::{Exchange, Failure};
pub use resolv::HostResolver;
use resolv::Resolv;

/// Questions on their way: each has a socket.
const FLIGHTS_MAX: usize = 512;
/// Who waits for them, all together: about 1 KiB each.
const WAITING_MAX: usize = 2048;
/// Of one container: it cannot take the others' places.
const WAITING_PER_ASKER_MAX: usize = 256;
/// Servers of one question; more are not asked.
const SERVERS_MAX: usize = 8;
/// Resolvers ask again after 5 s: an answer should be there before.
const DEADLINE: Duration = Duration::from_millis(4500);
/// A server that did not answer comes last for this long.
const FAILING_MS: u64 = 10_000;
/// No one answered: for this long nobody is asked again (RFC 9520 section 3.2: at least 1 s).
const FAILURE_KEPT_MS: u64 = 1000;
/// An answer may say more; then it is asked for again.
const KEPT_MAX_MS: u64 = 3_600_000;
/// What there is not may come to be (RFC 2308 section 5).
const NEGATIVE_MAX_MS: u64 = 300_000;

type Flight = Shared<Pin<Box<dyn Future<Output = Arc<Kept>> + Send>>>;

/// How a question ended, and until when that holds.
#[derive(Debug)]
pub(crate) struct Kept {
    /// None: nobody answered.
    response: Option<Response>,
    since_ms: u64,
    until_ms: u64,
}

/// Asks upstream servers. Cheap to share.
pub struct Forwarder {
    host: HostResolver,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    cache: Cache,
    flights: HashMap<Key, Flight>,
    waiting: HashMap<IpAddr, usize>,
    waiting_all: usize,
    /// Until when each comes last.
    failing: HashMap<SocketAddr, u64>,
    /// Where this node's own server listens.
    own: Vec<SocketAddr>,
    /// Of the host's settings that the cache is of.
    generation: u64,
}

/// A place among those who wait; free again when dropped.
pub(crate) struct Place {
    forwarder: Arc<Forwarder>,
    asker: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.forwarder.lock();
        state.waiting_all -= 1;
        if let Some(count) = state.waiting.get_mut(&self.asker) {
            *count -= 1;
            if *count == 0 {
                state.waiting.remove(&self.asker);
            }
        }
    }
}

impl Forwarder {
    /// Asks the servers that `host` names, unless a container has its own.
    pub fn new(host: HostResolver, clock: Arc<dyn Clock>, rng: Arc<dyn Rng>) -> Arc<Self> {
        Arc::new(Self { host, clock, rng, state: Mutex::default() })
    }

    /// Never asks there: this node's own server would ask itself.
    pub(crate) fn avoid(&self, own: Vec<SocketAddr>) {
        self.lock().own = own;
    }

    /// Writes what is kept for `ask`; false when somebody must be asked.
    pub(crate) fn recall(&self, ask: &Ask, out: &mut Vec<u8>) -> bool {
        let now = self.clock.monotonic_ms();
        self.settings(now);
        let kept = self.lock().cache.get(&Key::of(ask), now);
        let Some(kept) = kept else { return false };
        write(&kept, ask, now, out);
        true
    }

    /// A place for `ask` among those who wait; none when there are too many.
    pub(crate) fn enter(self: &Arc<Self>, ask: &Ask) -> Option<Place> {
        let mut state = self.lock();
        let mine = state.waiting.get(&ask.asker).copied().unwrap_or(0);
        if state.waiting_all >= WAITING_MAX || mine >= WAITING_PER_ASKER_MAX {
            return None;
        }
        state.waiting_all += 1;
        state.waiting.insert(ask.asker, mine + 1);
        Some(Place { forwarder: Arc::clone(self), asker: ask.asker })
    }

    /// Asks, and writes what is to be told.
    pub(crate) async fn resolve(self: &Arc<Self>, ask: &Ask, out: &mut Vec<u8>) {
        let key = Key::of(ask);
        let servers = self.servers(&ask.upstream);
        match self.flight(&key, servers) {
            Some(flight) => {
                let kept = flight.await;
                write(&kept, ask, self.clock.monotonic_ms(), out);
            }
            None => fail(ask, out),
        }
    }

    /// The one that is on its way with this question, or a new one.
    fn flight(self: &Arc<Self>, key: &Key, servers: Servers) -> Option<Flight> {
        let mut state = self.lock();
        if let Some(kept) = state.cache.get(key, self.clock.monotonic_ms()) {
            return Some(std::future::ready(kept).boxed().shared());
        }
        if let Some(flight) = state.flights.get(key) {
            return Some(flight.clone());
        }
        if state.flights.len() >= FLIGHTS_MAX {
            return None;
        }
        let (forwarder, own_key) = (Arc::clone(self), key.clone());
        let flight = async move {
            let response = forwarder.ask(&own_key, &servers).await;
            forwarder.land(own_key, response, servers.generation)
        };
        let flight = flight.boxed().shared();
        state.flights.insert(key.clone(), flight.clone());
        Some(flight)
    }

    async fn ask(&self, key: &Key, servers: &Servers) -> Option<Response> {
        let all = async {
            for _ in 0..servers.rounds {
                for server in self.in_order(&servers.addresses) {
                    let exchange = Exchange { server, key, rng: &*self.rng };
                    match exchange.run(servers.patience).await {
                        Ok(response) => return Some(response),
                        // It is there; another one may know more.
                        Err(Failure::Unusable) => {}
                        Err(Failure::Silent) => self.note_failing(server),
                    }
                }
            }
            None
        };
        tokio::time::timeout(DEADLINE, all).await.ok().flatten()
    }

    /// Keeps what came of a question, and ends its flight.
    fn land(&self, key: Key, response: Option<Response>, generation: u64) -> Arc<Kept> {
        let now = self.clock.monotonic_ms();
        let kept_ms = match &response {
            None => FAILURE_KEPT_MS,
            Some(response) => {
                let ttl_ms = u64::from(response.ttl_s.unwrap_or(0)) * 1000;
                ttl_ms.min(if response.is_negative() { NEGATIVE_MAX_MS } else { KEPT_MAX_MS })
            }
        };
        let kept = Arc::new(Kept { response, since_ms: now, until_ms: now + kept_ms });
        let mut state = self.lock();
        state.flights.remove(&key);
        // What servers of before said may not be what those of now say.
        if kept_ms > 0 && state.generation == generation {
            state.cache.put(key, Arc::clone(&kept));
        }
        kept
    }

    fn servers(&self, upstream: &Upstream) -> Servers {
        let (resolv, generation) = self.settings(self.clock.monotonic_ms());
        let addresses: &[SocketAddr] = match upstream {
            Upstream::Host => &resolv.servers,
            Upstream::Servers(servers) => servers,
            Upstream::Nobody => &[],
        };
        let state = self.lock();
        let foreign = addresses.iter().filter(|address| !state.own.contains(address));
        Servers {
            addresses: foreign.copied().take(SERVERS_MAX).collect(),
            patience: resolv.timeout,
            rounds: resolv.attempts,
            generation,
        }
    }

    /// The host's; when they changed, what was answered under others is forgotten.
    fn settings(&self, now_ms: u64) -> (Arc<Resolv>, u64) {
        let (resolv, generation) = self.host.read(now_ms);
        let mut state = self.lock();
        if state.generation != generation {
            state.generation = generation;
            state.cache = Cache::default();
        }
        (resolv, generation)
    }

    /// Those that answered first, else as they were given.
    fn in_order(&self, servers: &[SocketAddr]) -> Vec<SocketAddr> {
        let now = self.clock.monotonic_ms();
        let mut state = self.lock();
        state.failing.retain(|_, until_ms| *until_ms > now);
        let mut servers = servers.to_vec();
        servers.sort_by_key(|server| state.failing.contains_key(server));
        servers
    }

    fn note_failing(&self, server: SocketAddr) {
        let until_ms = self.clock.monotonic_ms() + FAILING_MS;
        self.lock().failing.insert(server, until_ms);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whom to ask.
struct Servers {
    addresses: Vec<SocketAddr>,
    /// For one answer of one server.
    patience: Duration,
    rounds: u32,
    generation: u64,
}

fn write(kept: &Kept, ask: &Ask, now_ms: u64, out: &mut Vec<u8>) {
    match &kept.response {
        Some(response) => {
            let age_s = u32::try_from(now_ms.saturating_sub(kept.since_ms) / 1000);
            response.write(out, &ask.asked(), age_s.unwrap_or(u32::MAX), ask.limit);
        }
        None => fail(ask, out),
    }
}

/// That nobody could be asked.
pub(crate) fn fail(ask: &Ask, out: &mut Vec<u8>) {
    Writer::new(out, &ask.asked(), ask.limit).finish(Rcode::ServFail, false);
}
