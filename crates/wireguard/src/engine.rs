//! The engine: given devices and tables, carries packets until it is dropped or handed over.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use warren_base::clock::Clock;

use crate::Error;
use crate::counters::{PeerStats, Reason};
use crate::key::PublicKey;
use crate::shared::Shared;
use crate::table::{Table, TableError};
use crate::timers;
use crate::tun::{QUEUES_MAX, Tun};
use crate::udp::Udp;
use crate::worker::Worker;

/// Handshakes and control messages are on the stack; large buffers are on the heap.
const STACK_LEN: usize = 256 * 1024;

/// Called when something else is known of how a peer is reached, by whichever thread found out.
pub type Tell = Arc<dyn Fn() + Send + Sync>;

/// What an engine works with.
pub struct Options {
    /// Queues of one device, one a worker.
    pub tun: Vec<Tun>,
    /// As many sockets, of one port.
    pub udp: Vec<Udp>,
    pub clock: Arc<dyn Clock>,
    /// Random, so that sessions of an engine before this one are not taken for its own.
    pub seed: u32,
    /// The latest wall time (milliseconds since the epoch) at which an engine with this key may
    /// have made a handshake, as its owner has noted. Peers refuse handshakes that are older.
    pub not_before_ms: u64,
    /// Peers that were heard from, as the engine before told when it was handed over.
    pub peers: Vec<(PublicKey, SocketAddr)>,
    /// Told to look at [`Engine::peers`] again.
    pub on_reach: Option<Tell>,
}

/// What a successor needs; sessions are made anew.
pub struct Handover {
    pub tun: Vec<OwnedFd>,
    pub udp: Vec<OwnedFd>,
    /// Peers with sessions, and where they were last heard from.
    pub peers: Vec<(PublicKey, SocketAddr)>,
}

/// Dropping it ends its threads; the device stays if it is persistent.
pub struct Engine {
    shared: Arc<Shared>,
    tun: Vec<Arc<Tun>>,
    threads: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Starts to carry packets. Peers of `options.peers` get a handshake at once.
    pub fn start(options: Options, table: &Table) -> Result<Self, Error> {
        let (queues, sockets) = (options.tun.len(), options.udp.len());
        if !(1..=QUEUES_MAX).contains(&queues) || queues != sockets {
            return Err(Error::Workers { queues, sockets });
        }
        // The library stamps handshakes with the wall clock and cannot be told otherwise.
        let behind_ms = options.not_before_ms.saturating_sub(options.clock.now_ms());
        if behind_ms > 0 {
            return Err(Error::ClockBehind { behind: Duration::from_millis(behind_ms) });
        }
        let shared =
            Arc::new(Shared::new(options.clock, options.udp, options.seed, options.on_reach)?);
        shared.apply(table)?;
        let tun = options.tun.into_iter().map(Arc::new).collect();
        let mut engine = Self { shared, tun, threads: Vec::new() };
        engine.greet(&options.peers);
        for (socket, tun) in engine.tun.clone().into_iter().enumerate() {
            let worker = Worker::new(Arc::clone(&engine.shared), tun, socket);
            engine.spawn(format!("wireguard-{socket}"), move || worker.run())?;
        }
        let shared = Arc::clone(&engine.shared);
        engine.spawn("wireguard-timer".into(), move || timers::run(&shared))?;
        Ok(engine)
    }

    fn spawn(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let thread = thread::Builder::new().name(name).stack_size(STACK_LEN).spawn(run);
        self.threads.push(thread.map_err(|source| Error::io("start a thread", source))?);
        Ok(())
    }

    fn greet(&self, peers: &[(PublicKey, SocketAddr)]) {
        let routing = self.shared.routing.load();
        let now = self.shared.now_ms();
        for (key, endpoint) in peers {
            if let Some(entry) = routing.by_key(*key) {
                entry.peer.set_direct(Some(*endpoint));
                self.shared.nudge(&entry.peer, now);
            }
        }
    }

    /// Takes a whole new table. Peers that stay keep their sessions, those that are gone are
    /// refused from now on. Nothing changes if the table is refused.
    pub fn apply(&self, table: &Table) -> Result<(), TableError> {
        self.shared.apply(table)
    }

    /// Each peer of the table.
    pub fn peers(&self) -> Vec<PeerStats> {
        let (routing, now_ms) = (self.shared.routing.load(), self.shared.now_ms());
        let read = |entry: &crate::routing::Entry| {
            let peer = &entry.peer;
            let stats = peer.counters.read(entry.config.keys.clone(), peer.endpoint(), now_ms);
            let reach = peer.reach();
            let (lost, via_lost) = (reach.is_lost(), reach.is_via_lost());
            PeerStats { lost, via: peer.via(), via_lost, ..stats }
        };
        routing.entries.iter().map(read).collect()
    }

    /// Packets dropped that belong to no peer, by reason.
    pub fn drops(&self) -> Vec<(Reason, u64)> {
        self.shared.drops.read()
    }

    /// Ends this engine and gives away its descriptors. What arrives meanwhile waits in them.
    pub fn hand_over(mut self) -> Result<Handover, Error> {
        self.stop();
        let routing = self.shared.routing.load();
        let peers = routing.entries.iter().filter_map(|entry| {
            entry.peer.active()?;
            Some((*entry.config.keys.first()?, entry.peer.direct()?))
        });
        let what = |source| Error::io("duplicate a descriptor", source);
        let tun: Result<_, _> = self.tun.iter().map(|tun| tun.duplicate()).collect();
        let udp: Result<_, _> = self.shared.udp.iter().map(Udp::duplicate).collect();
        Ok(Handover { tun: tun.map_err(what)?, udp: udp.map_err(what)?, peers: peers.collect() })
    }

    fn stop(&mut self) {
        self.shared.stop();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the WireGuard engine panicked");
            }
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}
