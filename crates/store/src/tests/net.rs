//! Managers in one thread: a network in memory with faults, disks that lose power.
//!
//! Time is the runtime's own, paused: it jumps to the next timer. All chance is
//! drawn from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use warren_base::clock::ManualClock;
use warren_base::rng::{Rng, SeededRng};

use super::super::*;
use super::service;
use crate::log::LogOptions;
use crate::sim_disk::SimDisk;
use crate::transport::{Lane, Member};

/// What may go wrong on the way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weather {
    pub(super) delay_ms: (u64, u64),
    /// Of a thousand messages.
    pub(super) lost: u64,
    /// Whether messages overtake each other.
    pub(super) reorder: bool,
}

pub(super) const CALM: Weather = Weather { delay_ms: (1, 3), lost: 0, reorder: false };
pub(super) const STORM: Weather = Weather { delay_ms: (0, 40), lost: 50, reorder: true };

struct Message {
    arrives: Instant,
    life: u64,
    kind: Call,
    payload: Bytes,
    answer: oneshot::Sender<Result<Bytes, TransportError>>,
}

struct Links {
    stores: BTreeMap<u64, Store>,
    lives: BTreeMap<u64, u64>,
    /// One way.
    cut: BTreeSet<(u64, u64)>,
    weather: Weather,
    links: BTreeMap<(u64, u64, Lane), mpsc::UnboundedSender<Message>>,
    last: BTreeMap<(u64, u64, Lane), Instant>,
    pub(super) calls: BTreeMap<Call, u64>,
}

#[derive(Clone)]
pub(super) struct Net {
    links: Arc<Mutex<Links>>,
    rng: Arc<SeededRng>,
    frozen: watch::Sender<BTreeSet<u64>>,
}

impl Net {
    pub(super) fn new(seed: u64) -> Self {
        let links = Links {
            stores: BTreeMap::new(),
            lives: BTreeMap::new(),
            cut: BTreeSet::new(),
            weather: CALM,
            links: BTreeMap::new(),
            last: BTreeMap::new(),
            calls: BTreeMap::new(),
        };
        let rng = Arc::new(SeededRng::new(seed));
        Self { links: Arc::new(Mutex::new(links)), rng, frozen: watch::Sender::default() }
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap()
    }

    pub(super) fn calls(&self, kind: Call) -> u64 {
        self.links().calls.get(&kind).copied().unwrap_or(0)
    }

    pub(super) fn set_weather(&self, weather: Weather) {
        self.links().weather = weather;
    }

    pub(super) fn cut(&self, from: u64, to: u64) {
        self.links().cut.insert((from, to));
    }

    pub(super) fn cut_off(&self, number: u64, others: &[u64]) {
        for other in others {
            self.cut(number, *other);
            self.cut(*other, number);
        }
    }

    pub(super) fn heal(&self) {
        self.links().cut.clear();
    }

    /// What it sends and what is sent to it waits until it is thawed.
    pub(super) fn freeze(&self, number: u64) {
        self.frozen.send_if_modified(|frozen| frozen.insert(number));
    }

    pub(super) fn thaw(&self, number: u64) {
        self.frozen.send_if_modified(|frozen| frozen.remove(&number));
    }

    async fn not_frozen(&self, a: u64, b: u64) {
        let mut frozen = self.frozen.subscribe();
        let _ = frozen.wait_for(|frozen| !frozen.contains(&a) && !frozen.contains(&b)).await;
    }

    fn delay(&self) -> (Duration, bool) {
        let weather = self.links().weather;
        let (least, most) = weather.delay_ms;
        let delay = Duration::from_millis(least + self.rng.below(most - least + 1));
        (delay, self.rng.below(1000) < weather.lost)
    }

    fn is_cut(&self, from: u64, to: u64) -> bool {
        self.links().cut.contains(&(from, to))
    }

    async fn carry(self, from: u64, to: u64, mut messages: mpsc::UnboundedReceiver<Message>) {
        while let Some(message) = messages.recv().await {
            tokio::time::sleep_until(message.arrives).await;
            self.not_frozen(from, to).await;
            let (store, alive) = {
                let links = self.links();
                let alive = links.lives.get(&from) == Some(&message.life);
                (links.stores.get(&to).cloned(), alive)
            };
            let Some(store) = store.filter(|_| alive) else {
                let why = "it is down".to_owned();
                let _ = message.answer.send(Err(TransportError::Unreachable { to, why }));
                continue;
            };
            if self.is_cut(from, to) {
                // Lost without a word: the caller waits.
                continue;
            }
            let mut answering = store.answer(from, message.kind, message.payload);
            let begun = (&mut answering).now_or_never();
            let net = self.clone();
            let life = self.links().lives.get(&to).copied();
            tokio::spawn(async move {
                let result = match begun {
                    Some(result) => result,
                    None => answering.await,
                };
                let (delay, lost) = net.delay();
                tokio::time::sleep(delay).await;
                net.not_frozen(from, to).await;
                let same_life = net.links().lives.get(&to).copied() == life;
                if lost || net.is_cut(to, from) || !same_life {
                    return;
                }
                let result = result.map_err(|why| TransportError::Refused { to, why });
                let _ = message.answer.send(result);
            });
        }
    }
}

/// A manager's way into the network; dead after its crash.
struct Wire {
    from: u64,
    life: u64,
    net: Net,
}

impl Transport for Wire {
    fn call(
        &self,
        to: &Member,
        kind: Call,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        assert_eq!(to.address, format!("m{}", to.number));
        let (answer, answered) = oneshot::channel();
        let (delay, lost) = self.net.delay();
        let key = (self.from, to.number, kind.lane());
        {
            let mut links = self.net.links();
            *links.calls.entry(kind).or_default() += 1;
            let mut arrives = Instant::now() + delay;
            if !links.weather.reorder {
                arrives = arrives.max(links.last.get(&key).copied().unwrap_or(arrives));
            }
            links.last.insert(key, arrives);
            let message = Message { arrives, life: self.life, kind, payload, answer };
            let (net, from, number) = (self.net.clone(), self.from, to.number);
            let fresh = || {
                let (sender, messages) = mpsc::unbounded_channel();
                tokio::spawn(net.clone().carry(from, number, messages));
                sender
            };
            if links.weather.reorder && !lost {
                // A road of its own.
                let _ = fresh().send(message);
            } else if !lost {
                let _ = links.links.entry(key).or_insert_with(fresh).send(message);
            }
        }
        let (to, deadline) = (to.number, kind.deadline());
        async move {
            let lost = || TransportError::Lost { to, why: "in the simulation".to_owned() };
            tokio::time::timeout(deadline, async {
                match answered.await {
                    Ok(answer) => answer,
                    // Nothing tells the caller.
                    Err(_) => std::future::pending().await,
                }
            })
            .await
            .unwrap_or_else(|_| Err(lost()))
        }
        .boxed()
    }
}

/// Managers, their disks and what connects them.
pub(super) struct House {
    pub(super) net: Net,
    pub(super) rng: Arc<SeededRng>,
    disks: BTreeMap<u64, SimDisk>,
    pub(super) stores: BTreeMap<u64, Store>,
    pub(super) snapshot_log_bytes: u64,
}

impl House {
    pub(super) fn empty(seed: u64) -> Self {
        Self {
            net: Net::new(seed),
            rng: Arc::new(SeededRng::new(seed ^ 0x5eed)),
            disks: BTreeMap::new(),
            stores: BTreeMap::new(),
            snapshot_log_bytes: 1 << 20,
        }
    }

    /// The first manager and as many more, all voting.
    pub(super) async fn of(seed: u64, managers: u64) -> Self {
        let mut house = Self::empty(seed);
        house.create(1).await;
        for number in 2..=managers {
            house.join(number).await;
            house.admit(number).await;
        }
        house
    }

    pub(super) fn options(&mut self, number: u64) -> Options {
        let life = {
            let mut links = self.net.links();
            let life = links.lives.entry(number).or_default();
            *life += 1;
            *life
        };
        let disk = self.disks.entry(number).or_default().clone();
        Options {
            disk: Arc::new(disk),
            key: KeySource::Memory([3; 32]),
            node_number: number,
            clock: Arc::new(ManualClock::at(1000)),
            rng: Arc::new(SeededRng::new(self.rng.next_u64())),
            log: LogOptions {
                segment_bytes: 64 << 10,
                first_segment_bytes: 16 << 10,
                cache_bytes: 16 << 10,
                inline: true,
            },
            snapshot_log_bytes: self.snapshot_log_bytes,
            inline: true,
            address: format!("m{number}"),
            transport: Some(Arc::new(Wire { from: number, life, net: self.net.clone() })),
            election: Election::Lan,
        }
    }

    fn moved_in(&mut self, number: u64, store: Store) {
        self.net.links().stores.insert(number, store.clone());
        self.stores.insert(number, store);
    }

    pub(super) async fn create(&mut self, number: u64) {
        let store = Store::create(self.options(number)).await.unwrap();
        self.moved_in(number, store);
    }

    pub(super) async fn join(&mut self, number: u64) {
        let store = Store::join(self.options(number)).await.unwrap();
        self.moved_in(number, store);
    }

    pub(super) async fn open(&mut self, number: u64) {
        let store = Store::open(self.options(number)).await.unwrap();
        self.moved_in(number, store);
    }

    /// Learner, then voter.
    pub(super) async fn admit(&self, number: u64) {
        let leader = self.leader().await;
        let leader = &self.stores[&leader];
        leader.add_learner(number, &format!("m{number}")).await.unwrap();
        until("the learner has caught up", || leader.status().caught_up(number)).await;
        let mut voters: BTreeSet<u64> = leader.status().voters.into_keys().collect();
        voters.insert(number);
        leader.set_voters(voters).await.unwrap();
    }

    /// The manager's process ends in this moment; its machine too if `power`.
    pub(super) fn crash(&mut self, number: u64, power: bool) {
        {
            let mut links = self.net.links();
            links.stores.remove(&number);
            *links.lives.get_mut(&number).unwrap() += 1;
        }
        self.stores.remove(&number);
        let disk = self.disks.get_mut(&number).unwrap();
        *disk = if power { disk.crash(self.rng.as_ref()) } else { disk.kill() };
    }

    pub(super) fn disk(&self, number: u64) -> &SimDisk {
        &self.disks[&number]
    }

    pub(super) fn set_disk(&mut self, number: u64, disk: SimDisk) {
        self.disks.insert(number, disk);
    }

    /// Gone for good, folder and all.
    pub(super) fn burn(&mut self, number: u64) {
        self.crash(number, false);
        self.disks.remove(&number);
    }

    /// Whoever leads; there is one within seconds.
    pub(super) async fn leader(&self) -> u64 {
        self.leader_but(0).await
    }

    pub(super) async fn leader_but(&self, not: u64) -> u64 {
        let leads = |(number, store): (&u64, &Store)| {
            (*number != not && *store.leader().borrow()).then_some(*number)
        };
        until("somebody leads", || self.stores.iter().any(|entry| leads(entry).is_some())).await;
        self.stores.iter().find_map(leads).unwrap()
    }

    /// All have the same state, with at least these services.
    pub(super) async fn agree(&self, services: &[u64]) {
        until("all views are the same", || {
            let sums: BTreeSet<u64> =
                self.stores.values().map(|store| store.view().checksum()).collect();
            sums.len() == 1 && self.stores.values().all(|store| has_all(store, services))
        })
        .await;
    }
}

pub(super) fn has_all(store: &Store, services: &[u64]) -> bool {
    let view = store.view();
    services.iter().all(|number| {
        let id = warren_model::id::ServiceId::from_bytes(super::id(*number));
        view.service(id).is_some()
    })
}

/// Waits, in the time of the simulation.
#[track_caller]
pub(super) fn until(what: &str, mut is: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is() {
            assert!(Instant::now() < deadline, "{caller}: never: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Makes service `number`; retried with the same request id as long as nothing is known.
pub(super) async fn make(store: &Store, number: u64) -> Result<u64, ProposeError> {
    let request = warren_state::change::Request {
        principal: "test".to_owned(),
        id: u128::from(number),
        hash: 1,
    };
    let transaction = Transaction { request: Some(request), ..super::one(service(number, 200)) };
    store.propose(transaction).await
}
