//! What the process holds, and what it makes of what it is told.
//!
//! Whole or not at all: what is refused leaves everything as it was.
//!
//! Not here: sockets and frames of the daemon (`serve`).

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use warren_base::clock::{Clock, RealClock};
use warren_base::rng::{Rng, SystemRng};
use warren_model::id::NodeId;
use warren_net::dns::{Counters, Forwarder, HostResolver, Prefix, Server, Zone};
use warren_wireguard::{Engine, Options, PrivateKey, PublicKey, Relays, Table};

use crate::asker::Asker;
use crate::descriptors::Descriptors;
use crate::names::Names;
use crate::peers::{peers, relayed};
use crate::wire::{
    Answer, Ask, DnsCounters, Gathered, HandedOver, Heard, LostPeer, Malformed, Nothing,
    PeerStatus, Reach, RelayStatus, Request, Settle, Status, Update, VERSION, Welcome, WireAsker,
    parts,
};

/// Of the thread that answers questions: futures are on the heap, messages in buffers.
const STACK_LEN: usize = 512 * 1024;

/// What follows an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    Go,
    Settled,
    End,
    HandedOver,
}

pub(super) struct Plane {
    build: String,
    clock: Arc<dyn Clock>,
    since_ms: u64,
    node: Option<NodeId>,
    keys: Vec<PrivateKey>,
    port: u16,
    /// Whom a predecessor had sessions with, until there is an engine.
    heard: Vec<(PublicKey, SocketAddr)>,
    held: Descriptors,
    names: Names,
    /// Of nodes that are told by name.
    known: BTreeMap<String, IpAddr>,
    gathered: Gathered,
    zone: Arc<ArcSwap<Zone>>,
    answering: Option<Answering>,
    engine: Option<Engine>,
    /// Counts what may have changed of who is reached.
    reach: watch::Sender<u64>,
    relays: Option<Relays>,
    trouble: Option<String>,
}

/// The thread that answers questions.
struct Answering {
    counters: Arc<Counters>,
    stop: CancellationToken,
    thread: JoinHandle<()>,
}

impl Plane {
    pub(super) fn new(build: &str) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
        Self {
            build: build.to_owned(),
            since_ms: clock.monotonic_ms(),
            clock,
            node: None,
            keys: Vec::new(),
            port: 0,
            heard: Vec::new(),
            held: Descriptors::default(),
            names: Names::default(),
            known: BTreeMap::new(),
            gathered: Gathered::default(),
            zone: Arc::default(),
            answering: None,
            engine: None,
            reach: watch::Sender::new(1),
            relays: None,
            trouble: None,
        }
    }

    /// Who this is, and second descriptors of all that it holds.
    pub(super) fn welcome(&self) -> io::Result<(Welcome, Descriptors)> {
        let held = self.held.duplicate()?;
        let welcome = Welcome {
            version: VERSION,
            build: self.build.clone(),
            node: self.node.map_or_else(Vec::new, |node| node.as_bytes().to_vec()),
            kinds: held.listed().0,
            keys: self.keys.iter().map(|key| key.public().as_bytes().to_vec()).collect(),
        };
        Ok((welcome, held))
    }

    pub(super) fn ask(&mut self, request: Request, fds: Vec<OwnedFd>) -> (Vec<Answer>, Then) {
        let done = |outcome: Result<(), String>, then| match outcome {
            Ok(()) => (vec![Answer::Done(Nothing {})], then),
            Err(why) => {
                tracing::warn!(%why, "refused what the daemon told");
                (vec![Answer::Refused(why)], Then::Go)
            }
        };
        match request.ask {
            Some(Ask::Settle(settle)) => done(self.settle(&settle, fds), Then::Settled),
            Some(Ask::Update(update)) => {
                done(self.update(update).map_err(|e| e.to_string()), Then::Go)
            }
            Some(Ask::Recall(Nothing {})) => (self.recall(), Then::Go),
            Some(Ask::Status(Nothing {})) => (vec![Answer::Status(self.status())], Then::Go),
            Some(Ask::HandOver(Nothing {})) => {
                (vec![Answer::HandedOver(self.hand_over())], Then::HandedOver)
            }
            Some(Ask::End(Nothing {})) => (vec![Answer::Done(Nothing {})], Then::End),
            Some(Ask::Watch(_)) => (vec![Answer::Reach(self.reach())], Then::Go),
            // Of a newer daemon.
            None => done(Err("a question that this version does not know".to_owned()), Then::Go),
        }
    }

    fn settle(&mut self, settle: &Settle, fds: Vec<OwnedFd>) -> Result<(), String> {
        let text = |error: Malformed| error.to_string();
        let node = settle.node().map_err(text)?;
        if self.node.is_some_and(|own| own != node) {
            return Err(format!("this is the data plane of another node than {node}"));
        }
        let keys = settle.private_keys().map_err(text)?;
        let port = u16::try_from(settle.port).map_err(|_| format!("port: {}", settle.port))?;
        let pools = settle.pools.iter().map(Prefix::try_from);
        let pools: Vec<Prefix> = pools.collect::<Result<_, _>>().map_err(text)?;
        let heard = settle.heard.iter().map(TryInto::try_into);
        let heard = heard.collect::<Result<_, Malformed>>().map_err(text)?;
        self.held.complete(Descriptors::adopt(&settle.kinds, fds));
        (self.node, self.keys, self.port, self.heard) = (Some(node), keys, port, heard);
        self.names.set_pools(pools);
        self.publish();
        self.carry();
        self.pass_on();
        self.begin().map_err(|error| format!("answer questions: {error}"))
    }

    /// Answers questions from now on.
    fn begin(&mut self) -> io::Result<()> {
        if self.answering.is_some() || !self.held.has_names() {
            return Ok(());
        }
        let sockets = self.held.names()?;
        let rng: Arc<dyn Rng> = Arc::new(SystemRng);
        let forwarder = Forwarder::new(HostResolver::default(), Arc::clone(&self.clock), rng);
        let server = Server::new(Arc::clone(&self.zone), forwarder);
        let (counters, stop) = (server.counters(), CancellationToken::new());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stopping = stop.clone();
        let run = move || {
            if let Err(error) = runtime.block_on(server.run(sockets, stopping.clone())) {
                tracing::error!(%error, "questions are not answered any more");
                // The daemon starts another, which may have better luck; half a data plane is
                // worse than none.
                std::process::abort();
            }
        };
        let thread =
            thread::Builder::new().name("names".into()).stack_size(STACK_LEN).spawn(run)?;
        self.answering = Some(Answering { counters, stop, thread });
        Ok(())
    }

    fn update(&mut self, update: Update) -> Result<(), Malformed> {
        let askers = update.admitted.iter().map(Asker::try_from);
        let askers: Vec<Asker> = askers.collect::<Result<_, _>>()?;
        let dismissed = update.dismissed.iter().filter_map(|id| {
            // One that cannot be was never there.
            warren_proto::task_id("dismissed", id).ok()
        });
        for task in dismissed {
            self.names.dismiss(task);
        }
        if update.all_askers {
            self.names.restore(askers);
        } else {
            askers.into_iter().for_each(|asker| self.names.admit(asker));
        }
        if let Some(part) = update.table {
            let known = update.known.into_iter();
            let known: BTreeMap<_, _> =
                known.filter_map(|(name, at)| Some((name, at.parse().ok()?))).collect();
            if let Some(change) = self.gathered.add(part) {
                let is_ours = change.complete
                    || change.cluster.is_some()
                    || !change.peers.is_empty()
                    || !change.removed_peers.is_empty()
                    || change.relays.is_some()
                    || known != self.known;
                self.known = known;
                self.names.change(change);
                if is_ours {
                    self.carry();
                    self.pass_on();
                }
            }
        }
        self.publish();
        Ok(())
    }

    fn publish(&self) {
        self.zone.store(Arc::new(self.names.zone().clone()));
    }

    /// Has the engine carry packets for the nodes of the table, as far as there is all that it
    /// needs.
    fn carry(&mut self) {
        let Some(own) = self.node.filter(|_| !self.keys.is_empty() && self.held.has_tunnel())
        else {
            return;
        };
        let own_keys: Vec<PublicKey> = self.keys.iter().map(PrivateKey::public).collect();
        let (peers, skipped) = peers(self.names.table(), own, &own_keys, self.port, &self.known);
        for left_out in skipped {
            tracing::warn!("left out of the tunnel: {left_out}");
        }
        let table = Table { own: self.keys.clone(), peers };
        let outcome = match &self.engine {
            Some(engine) => engine.apply(&table).map_err(|error| error.to_string()),
            None => self.ignite(&table),
        };
        if let Err(why) = &outcome {
            tracing::error!(%why, "packets for other nodes are not carried as they should be");
        }
        self.trouble = outcome.err();
    }

    /// Passes on what nodes send each other that are cut off from each other, if this one is in
    /// between.
    fn pass_on(&mut self) {
        let table = self.names.table();
        let Some(own) = self.node else { return };
        let wanted = relayed(table, own, self.port, &self.known);
        if wanted.is_empty() {
            self.relays = None;
            return;
        }
        let peer = table.peers.get(&own);
        let at = peer.and_then(|peer| {
            peer.underlay.parse().ok().or_else(|| self.known.get(&peer.underlay).copied())
        });
        let relays = match self.relays.take() {
            Some(relays) => Ok(relays),
            None => Relays::start(at.unwrap_or_else(|| Ipv4Addr::UNSPECIFIED.into())),
        };
        let applied = relays.and_then(|relays| {
            let applied = relays.apply(&wanted);
            self.relays = Some(relays);
            applied
        });
        if let Err(error) = applied {
            let error: &dyn std::error::Error = &error;
            tracing::error!(error, "messages of other nodes are not passed on as they should be");
        }
    }

    /// Wakes when who is reached may have changed.
    pub(super) fn watch_reach(&self) -> watch::Receiver<u64> {
        self.reach.subscribe()
    }

    fn reach(&self) -> Reach {
        // Read before what it counts: a change meanwhile is told again.
        let version = *self.reach.borrow();
        let peers = self.engine.as_ref().map(Engine::peers).unwrap_or_default();
        let lost = peers.iter().filter(|peer| peer.lost).filter_map(|peer| {
            let key = peer.keys.first()?.as_bytes().to_vec();
            Some(LostPeer { key, via_lost: peer.via_lost })
        });
        Reach { version, lost: lost.collect() }
    }

    fn ignite(&mut self, table: &Table) -> Result<(), String> {
        let (tun, udp) = self.held.tunnel().map_err(|error| error.to_string())?;
        let mut seed = [0; 4];
        SystemRng.fill(&mut seed);
        let options = Options {
            tun,
            udp,
            clock: Arc::clone(&self.clock),
            seed: u32::from_ne_bytes(seed),
            // Whoever keeps the key makes another if the clock went back behind it.
            not_before_ms: 0,
            peers: std::mem::take(&mut self.heard),
            on_reach: Some(Arc::new({
                let reach = self.reach.clone();
                move || reach.send_modify(|version| *version += 1)
            })),
        };
        self.engine = Some(Engine::start(options, table).map_err(|error| error.to_string())?);
        Ok(())
    }

    fn recall(&self) -> Vec<Answer> {
        let table = self.names.table();
        let known = self.known.iter().map(|(name, at)| (name.clone(), at.to_string()));
        let askers = self.names.askers().values();
        let mut first = Update {
            all_askers: true,
            admitted: askers.map(|asker| WireAsker::from(&**asker)).collect(),
            known: known.collect(),
            ..Update::default()
        };
        if table.cluster.is_none() {
            return vec![Answer::Recalled(first)];
        }
        let parts = parts(&table.whole()).into_iter();
        let with = |part| Update { table: Some(part), ..std::mem::take(&mut first) };
        parts.map(with).map(Answer::Recalled).collect()
    }

    fn status(&self) -> Status {
        let mut drops = BTreeMap::new();
        let mut add = |reason: warren_wireguard::Reason, count: u64| {
            *drops.entry(reason.name().to_owned()).or_default() += count;
        };
        let stats = self.engine.as_ref().map(Engine::peers).unwrap_or_default();
        for (reason, count) in self.engine.iter().flat_map(Engine::drops) {
            add(reason, count);
        }
        for (reason, count) in stats.iter().flat_map(|peer| &peer.drops) {
            add(*reason, *count);
        }
        let peers = stats.iter().map(|peer| PeerStatus {
            key: peer.keys.first().map_or_else(String::new, ToString::to_string),
            endpoint: peer.endpoint.map_or_else(String::new, |at| at.to_string()),
            handshake_ms: peer.handshake_ms.unwrap_or(0),
            received_bytes: peer.received_bytes,
            sent_bytes: peer.sent_bytes,
            received_packets: peer.received_packets,
            sent_packets: peer.sent_packets,
            heard_ago_ms: peer.heard_ago_ms,
            handshakes_failed: peer.handshakes_failed,
            dropped_packets: peer.drops.iter().map(|(_, count)| count).sum(),
            lost: peer.lost,
            via: peer.via.map_or_else(String::new, |at| at.to_string()),
            via_lost: peer.via_lost,
        });
        let relayed = self.relays.iter().flat_map(Relays::stats).map(|relay| RelayStatus {
            ends: relay.of.ends.iter().map(ToString::to_string).collect(),
            port: relay.of.port.into(),
            bytes: relay.bytes,
        });
        let [relay_refused, relay_lost] =
            self.relays.as_ref().map(Relays::drops).unwrap_or_default();
        Status {
            pid: std::process::id(),
            uptime_ms: self.clock.monotonic_ms().saturating_sub(self.since_ms),
            services: self.names.zone().service_count() as u64,
            askers: self.names.askers().len() as u64,
            dns: self.answering.as_ref().map(|answering| counted(&answering.counters)),
            carries: self.engine.is_some(),
            peers: peers.collect(),
            drops,
            trouble: self.trouble.clone(),
            relayed: relayed.collect(),
            relay_refused,
            relay_lost,
        }
    }

    /// Stops with the descriptors: what comes from now on waits for the successor.
    fn hand_over(&mut self) -> HandedOver {
        if let Some(answering) = &self.answering {
            answering.stop.cancel();
        }
        // The successor opens the ports itself.
        self.relays = None;
        let handed = self.engine.take().map(Engine::hand_over);
        let peers = match handed {
            Some(Ok(handover)) => handover.peers,
            Some(Err(error)) => {
                // The successor has the descriptors from the daemon, and sessions are made anew.
                tracing::warn!(%error, "peers are not handed over");
                Vec::new()
            }
            None => Vec::new(),
        };
        HandedOver { heard: peers.iter().map(Heard::from).collect() }
    }

    /// Waits for what is asked of others, a few seconds at most.
    pub(super) fn finish(&mut self) {
        self.engine = None;
        if let Some(answering) = self.answering.take() {
            answering.stop.cancel();
            if answering.thread.join().is_err() {
                tracing::error!("the thread that answers questions panicked");
            }
        }
    }
}

fn counted(counters: &Counters) -> DnsCounters {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    DnsCounters {
        received: read(&counters.received),
        answered: read(&counters.answered),
        recalled: read(&counters.recalled),
        forwarded: read(&counters.forwarded),
        refused: read(&counters.refused),
        malformed: read(&counters.malformed),
        overloaded: read(&counters.overloaded),
        connections_refused: read(&counters.connections_refused),
        unsent: read(&counters.unsent),
    }
}
