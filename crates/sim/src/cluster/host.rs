//! A machine of the cluster: its disk, its containers, and the daemon on it,
//! which dies and comes back.
//!
//! A daemon's life has an end that all of it sees at once ([`Life`]); what is
//! left of it then can neither write (its disk handle is dead) nor be heard.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use warren_agent::Cached;
use warren_base::clock::Clock;
use warren_base::rng::{Rng, SeededRng};
use warren_manager::{Manager, Options as ManagerOptions};
use warren_model::node::Description;
use warren_model::{ClusterId, NodeId, TaskId, Time};
use warren_store::disk::Disk;
use warren_store::log::LogOptions;
use warren_store::sim_disk::SimDisk;
use warren_store::transport::Transport;
use warren_store::{Election, KeySource, OpenError, Options as StoreOptions, Store};
use warren_trust::{Peer, PeerRole};

use super::clock::HostClock;
use super::net::Place;
use super::wire::Wire;
use super::world::{World, held};
use super::{agent, plan, watch};
use crate::machine::Machine;

/// Small, so that a run meets many segments and several snapshots.
const SEGMENT_BYTES: usize = 64 << 10;
const SNAPSHOT_LOG_BYTES: u64 = 48 << 10;
/// A daemon that ended by itself is started again, as a supervisor does.
const RESTART_MS: u64 = 500;

/// One life of a host's daemon.
pub(crate) struct Life {
    token: CancellationToken,
    /// Its machine lost power: connections fall silent and are not closed.
    pub(crate) silent: AtomicBool,
    manager: Mutex<Option<Arc<Running>>>,
}

impl Life {
    fn new() -> Self {
        let token = CancellationToken::new();
        Self { token, silent: AtomicBool::new(false), manager: Mutex::default() }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.token.is_cancelled()
    }

    pub(crate) async fn ended(&self) {
        self.token.cancelled().await;
    }

    pub(crate) fn manager(&self) -> Option<Arc<Running>> {
        held(&self.manager).clone()
    }
}

/// The manager in a daemon.
pub(crate) struct Running {
    pub(crate) number: u64,
    pub(crate) store: Store,
    pub(crate) manager: Manager,
}

/// The manager's part of a host, as it is on its disk.
#[derive(Clone)]
struct Ground {
    disk: SimDisk,
    number: u64,
    /// Operation of the disk at which the power fails.
    off_at: Option<u64>,
    begin: Begin,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Begin {
    Create,
    Join,
    Open,
}

pub(crate) struct Host {
    pub(crate) place: Place,
    pub(crate) node: NodeId,
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) clock: Arc<HostClock>,
    pub(crate) machine: Mutex<Machine>,
    /// The agent's set on disk.
    pub(crate) kept: Mutex<Option<Cached>>,
    /// Managers that a person named to it.
    pub(crate) told: Mutex<Option<Vec<String>>>,
    key_hash: [u8; 32],
    disk_key: [u8; 32],
    rng: Arc<SeededRng>,
    ground: Mutex<Option<Ground>>,
    life: Mutex<Option<Arc<Life>>>,
    /// Never comes back.
    pub(crate) lost: AtomicBool,
    /// Its disk is full, or was until a moment ago: its daemon may end by itself.
    pub(crate) full: AtomicBool,
    /// Its agent is to say what is not true.
    pub(crate) lies: AtomicBool,
    /// Tasks that somebody wants to begin anew.
    pub(crate) restarts: Mutex<Vec<TaskId>>,
    poked: Notify,
}

impl Host {
    pub(crate) fn new(world: &World, place: Place, name: String) -> Self {
        let rng = Arc::new(SeededRng::new(world.rng.next_u64()));
        let mut hashes = [[0; 32]; 2];
        hashes.iter_mut().for_each(|hash| rng.fill(hash));
        let rate = 1_000_000 - 200 + rng.below(401);
        let ahead_ms = 2_000 + i64::try_from(rng.below(400)).unwrap_or(0);
        let clock = HostClock::new(
            world.net.clone(),
            place,
            (world.start, world.script.epoch_ms),
            rate,
            ahead_ms,
        );
        let node = NodeId::from_bytes(rng.id_bytes());
        Self {
            place,
            node,
            address: format!("10.0.0.{place}:2377"),
            name,
            clock: Arc::new(clock),
            machine: Mutex::new(Machine::new(node, Arc::new(SeededRng::new(rng.next_u64())))),
            kept: Mutex::default(),
            told: Mutex::default(),
            key_hash: hashes[0],
            disk_key: hashes[1],
            rng,
            ground: Mutex::default(),
            life: Mutex::default(),
            lost: AtomicBool::new(false),
            full: AtomicBool::new(false),
            lies: AtomicBool::new(false),
            restarts: Mutex::default(),
            poked: Notify::new(),
        }
    }

    pub(crate) fn description(&self) -> Description {
        Description {
            hostname: self.name.clone(),
            cpus: 4,
            memory_bytes: 8 << 30,
            address: self.address.clone(),
            devices: self.devices(),
            ..Description::default()
        }
    }

    /// Every other one has two.
    fn devices(&self) -> BTreeMap<String, BTreeSet<String>> {
        match self.place % 2 {
            0 => [(plan::DEVICE.to_owned(), ["0", "1"].map(str::to_owned).into())].into(),
            _ => BTreeMap::new(),
        }
    }

    pub(crate) fn key_hash(&self) -> [u8; 32] {
        self.key_hash
    }

    /// What a certificate of this node says.
    pub(crate) fn peer(&self, cluster: ClusterId, manager: bool) -> Peer {
        Peer {
            node: Some(self.node),
            operator: None,
            role: if manager { PeerRole::Manager } else { PeerRole::Worker },
            cluster,
            key_hash: self.key_hash,
            not_before: Time(0),
            not_after: Time(u64::MAX),
            expired: false,
            issuer_hash: [0; 32],
        }
    }

    pub(crate) fn number(&self) -> Option<u64> {
        held(&self.ground).as_ref().map(|ground| ground.number)
    }

    pub(crate) fn disk(&self) -> Option<SimDisk> {
        held(&self.ground).as_ref().map(|ground| ground.disk.clone())
    }

    /// Drops its manager, if there is one.
    pub(crate) fn let_go(&self) {
        if let Some(life) = held(&self.life).take() {
            held(&life.manager).take();
        }
    }

    pub(crate) fn life(&self) -> Option<Arc<Life>> {
        held(&self.life).clone()
    }

    /// The manager, if there is one now.
    pub(crate) fn running(&self) -> Option<(Arc<Life>, Arc<Running>)> {
        let life = self.life().filter(|life| !life.has_ended())?;
        let running = life.manager()?;
        Some((life, running))
    }

    /// Whether the power has failed already, though nobody has noticed yet.
    pub(crate) fn is_off(&self) -> bool {
        let ground = held(&self.ground);
        let off = |ground: &Ground| ground.off_at.is_some_and(|at| ground.disk.operations() > at);
        ground.as_ref().is_some_and(off)
    }

    /// Whether its store may end without anybody asking for it.
    fn may_fail(&self) -> bool {
        self.is_off() || self.is_lost() || self.full.load(Ordering::Relaxed)
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// The power is going to fail in the middle of what the disk does.
    pub(crate) fn cut_power_soon(&self, operations: u64) {
        if let Some(ground) = held(&self.ground).as_mut() {
            let at = ground.disk.operations() + operations;
            ground.disk.power_off_at(at);
            ground.off_at = Some(at);
        }
    }

    /// A new manager gets a disk of its own.
    pub(crate) fn becomes_manager(&self, number: u64, founds: bool) {
        let begin = if founds { Begin::Create } else { Begin::Join };
        let disk = SimDisk::new();
        *held(&self.ground) = Some(Ground { disk, number, off_at: None, begin });
    }

    /// Starts the daemon; nothing if it runs or the host is lost.
    pub(crate) fn boot(self: &Arc<Self>, world: &Arc<World>) {
        if self.is_lost() || self.life().is_some() {
            return;
        }
        let life = Arc::new(Life::new());
        *held(&self.life) = Some(Arc::clone(&life));
        world.note(|| format!("{}: the daemon starts", self.name));
        if held(&self.ground).is_some() {
            self.begin_managing(world, &life);
        }
        tokio::spawn(agent::live(Arc::clone(world), Arc::clone(self), life));
    }

    /// Starts the manager in a daemon that runs.
    pub(crate) fn begin_managing(self: &Arc<Self>, world: &Arc<World>, life: &Arc<Life>) {
        tokio::spawn(manage(Arc::clone(world), Arc::clone(self), Arc::clone(life)));
    }

    /// The manager in the daemon ends, and what it has on disk: it is one no longer.
    pub(crate) async fn stop_managing(&self, world: &World, life: &Life) {
        let running = held(&life.manager).take();
        *held(&self.ground) = None;
        if let Some(running) = running {
            world.note(|| format!("{}: manager {} is dismissed", self.name, running.number));
            running.store.shutdown().await;
        }
    }

    /// The daemon dies at once; with `power` the whole machine does.
    pub(crate) fn kill(&self, world: &World, power: bool) {
        let life = held(&self.life).take();
        if let Some(ground) = held(&self.ground).as_mut() {
            let rng = self.rng.as_ref();
            ground.disk = if power { ground.disk.crash(rng) } else { ground.disk.kill() };
            ground.off_at = None;
        }
        if power {
            held(&self.machine).power_off();
        } else {
            held(&self.machine).kill();
        }
        world.machine_moved(self);
        let Some(life) = life else { return };
        world.note(|| format!("{}: {}", self.name, if power { "power fails" } else { "killed" }));
        life.silent.store(power, Ordering::Relaxed);
        life.token.cancel();
        if let Some(running) = held(&life.manager).take() {
            // Only what is left of the process in this one.
            tokio::spawn(async move { running.store.shutdown().await });
        }
    }

    fn store_options(
        &self,
        world: &Arc<World>,
        life: &Arc<Life>,
        host: &Arc<Self>,
    ) -> StoreOptions {
        let ground = held(&self.ground);
        let (disk, number) =
            ground.as_ref().map(|g| (g.disk.clone(), g.number)).unwrap_or_default();
        let wire = Wire::new(Arc::clone(world), Arc::clone(host), Arc::clone(life), number);
        StoreOptions {
            disk: Arc::new(disk),
            key: KeySource::Memory(self.disk_key),
            node_number: number,
            clock: self.clock.clone(),
            rng: self.rng.clone(),
            log: LogOptions {
                segment_bytes: SEGMENT_BYTES,
                first_segment_bytes: SEGMENT_BYTES,
                inline: true,
                ..LogOptions::default()
            },
            snapshot_log_bytes: SNAPSHOT_LOG_BYTES,
            inline: true,
            address: self.address.clone(),
            transport: Some(Arc::new(wire) as Arc<dyn Transport>),
            election: Election::default(),
        }
    }

    async fn open(
        self: &Arc<Self>,
        world: &Arc<World>,
        life: &Arc<Life>,
    ) -> Result<Store, OpenError> {
        let options = self.store_options(world, life, self);
        let begin = held(&self.ground).as_ref().map_or(Begin::Open, |ground| ground.begin);
        let store = match begin {
            Begin::Create => {
                let store = Store::create(options).await?;
                // What fails now, fails the run: the cluster never forms.
                if let Err(error) = store.propose(super::founding(world)).await {
                    world.fail(format!("{}: found the cluster: {error}", self.name));
                }
                store
            }
            Begin::Join => Store::join(options).await?,
            Begin::Open => Store::open(options).await?,
        };
        if let Some(ground) = held(&self.ground).as_mut() {
            ground.begin = Begin::Open;
        }
        Ok(store)
    }
}

/// One life of a manager.
async fn manage(world: Arc<World>, host: Arc<Host>, life: Arc<Life>) {
    let opened = tokio::select! {
        opened = host.open(&world, &life) => opened,
        () = life.ended() => return,
    };
    let store = match opened {
        Ok(store) => store,
        Err(error) if host.may_fail() => {
            world.note(|| format!("{}: {error}", host.name));
            return again(&world, &host, &life).await;
        }
        Err(error) => {
            if !life.has_ended() {
                world.fail(format!("{}: its store does not open: {}", host.name, chain(&error)));
            }
            return;
        }
    };
    let number = host.number().unwrap_or(0);
    let peers = Wire::new(Arc::clone(&world), Arc::clone(&host), Arc::clone(&life), number);
    let manager = Manager::start(ManagerOptions {
        store: store.clone(),
        clock: host.clock.clone(),
        rng: host.rng.clone(),
        node_id: host.node,
        cluster_id: world.cluster,
        advertise: host.address.clone(),
        peers: Some(Arc::new(peers)),
        stop_node: Arc::new(|_| {}),
        set_log_level: Arc::new(|_| Err("not here".to_owned())),
    });
    if life.has_ended() {
        return;
    }
    world.hold(held(&world.book).begins(number, store.status().term));
    segments(&world, &host, number);
    let mut ended = store.ended();
    let running = Arc::new(Running { number, store, manager });
    *held(&life.manager) = Some(Arc::clone(&running));
    watch::replica(&world, &host, &life, &running);
    drop(running);
    tokio::select! {
        () = life.ended() => return,
        // An error is an end as well.
        _ = ended.wait_for(|ended| *ended) => {}
    }
    // One that is no manager any more ends as asked, also when it has become another one since.
    if life.has_ended() || host.number() != Some(number) {
        return;
    }
    if !host.may_fail() {
        world.fail(format!("{}: its store ended by itself", host.name));
    }
    again(&world, &host, &life).await;
}

/// Looks at the heads of a log's segments: what they are sealed with.
fn segments(world: &World, host: &Host, number: u64) {
    /// Magic, version, key, then the sequence, then the salt.
    const HEAD: usize = 56;
    let Some(disk) = host.disk() else { return };
    let names = disk.list().unwrap_or_default();
    for name in names.iter().filter(|name| name.ends_with(".log")) {
        let mut head = [0; HEAD];
        // A disk that fails here fails its store as well.
        let Ok(HEAD) = disk.open(name).and_then(|file| file.read_at(&mut head, 0)) else {
            continue;
        };
        let (mut sequence, mut salt) = ([0; 8], [0; 32]);
        sequence.copy_from_slice(&head[16..24]);
        salt.copy_from_slice(&head[24..]);
        let sequence = u64::from_le_bytes(sequence);
        if sequence > 0 {
            world.hold(held(&world.book).segment(number, sequence, salt));
        }
    }
}

/// The daemon ends for its store's sake, and is started again.
async fn again(world: &Arc<World>, host: &Arc<Host>, life: &Life) {
    if life.has_ended() {
        return;
    }
    host.kill(world, false);
    let (world, host) = (Arc::clone(world), Arc::clone(host));
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(RESTART_MS)).await;
        host.boot(&world);
    });
}

impl Host {
    /// The agent looks at its machine.
    pub(crate) fn poke(&self) {
        self.poked.notify_one();
    }

    pub(crate) async fn poked(&self) {
        self.poked.notified().await;
    }

    /// Waits a while by the host's own clock.
    pub(crate) async fn sleep(&self, ms: u64) {
        self.clock.sleep(ms).await;
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
