//! The tunnel between nodes where the kernel encrypts: its device, told what managers say.
//!
//! The device is made once another node has a key, and stays when this process goes; nothing of
//! it is in the data plane. Somebody who takes it away gets it put back.
//!
//! A node that replaces its key is two peers of one node: what is allowed is the key's that it
//! offers first. The kernel has one key of our own, the one that we offer.
//!
//! Not here: whether the kernel can (`plane`), routes into the device (`warren_net`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use warren_agent::LostPeer;
use warren_base::clock::Clock;
use warren_dataplane::{PeerStatus, has_peers, peers};
use warren_model::{NodeId, NodeTable};
use warren_net::{Carrier, Error, Wireguard, WireguardPeer, WireguardState, WireguardWatch};
use warren_wireguard::{MTU_MAX, MTU_MIN, PeerConfig, PrivateKey, PublicKey};

/// Before what was refused is tried again; doubled each time.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Nodes' addresses by their names.
pub(super) type Known = BTreeMap<String, IpAddr>;

/// What the device is made with.
#[derive(Debug, Clone)]
pub(super) struct Device {
    pub(super) name: String,
    pub(super) node: NodeId,
    pub(super) port: u16,
    /// Of the link below.
    pub(super) address: IpAddr,
}

/// A device of the kernel's.
pub(super) struct KernelTunnel {
    device: Device,
    held: Mutex<Held>,
    keys: watch::Sender<Vec<PrivateKey>>,
    known: watch::Sender<Known>,
    lost: watch::Sender<Option<Vec<LostPeer>>>,
    clock: Arc<dyn Clock>,
}

#[derive(Default)]
struct Held {
    /// Which of our keys it has, and the device.
    open: Option<(PublicKey, Wireguard)>,
    /// Why packets are not carried, if they should be.
    trouble: Option<String>,
}

impl KernelTunnel {
    pub(super) fn new(device: Device, keys: Vec<PrivateKey>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let (keys, _) = watch::channel(keys);
        let (known, _) = watch::channel(Known::new());
        // The kernel tells nobody when a peer is silent: the other end finds out, if it is not a
        // kernel as well.
        let (lost, _) = watch::channel(Some(Vec::new()));
        Arc::new(Self { device, held: Mutex::default(), keys, known, lost, clock })
    }

    /// The first is the one that is offered.
    pub(super) fn set_keys(&self, keys: Vec<PrivateKey>) {
        self.keys.send_replace(keys);
    }

    pub(super) fn set_known(&self, known: Known) {
        self.known.send_replace(known);
    }

    /// Other nodes that are not reached on the direct way, as far as the kernel tells: none.
    pub(super) fn lost(&self) -> watch::Receiver<Option<Vec<LostPeer>>> {
        self.lost.subscribe()
    }

    /// Follows what managers say, until it is dropped.
    pub(super) async fn run(self: Arc<Self>, mut tables: watch::Receiver<Arc<NodeTable>>) {
        let (mut keys, mut known) = (self.keys.subscribe(), self.known.subscribe());
        let mut pause = RETRY_FIRST;
        let mut watch = None;
        loop {
            let table = Arc::clone(&tables.borrow_and_update());
            let told = (keys.borrow_and_update().clone(), known.borrow_and_update().clone());
            // Watched before it is looked at: nothing is missed in between.
            watch = watch.or_else(|| WireguardWatch::open(&self.device.name).ok());
            let own = Arc::clone(&self);
            let applied =
                tokio::task::spawn_blocking(move || own.apply(&table, &told.0, &told.1)).await;
            let failed = !matches!(applied, Ok(Ok(())));
            let gone = async {
                match &mut watch {
                    Some(watch) => watch.gone().await.is_ok(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = tables.changed() => if changed.is_err() { return },
                _ = keys.changed() => {}
                _ = known.changed() => {}
                still = gone => if !still {
                    // Another one, and not at once.
                    watch = None;
                    tokio::time::sleep(RETRY_FIRST).await;
                },
                () = tokio::time::sleep(pause), if failed => {
                    pause = (pause * 2).min(RETRY_MAX);
                    continue;
                }
            }
            pause = RETRY_FIRST;
        }
    }

    fn apply(&self, table: &NodeTable, keys: &[PrivateKey], known: &Known) -> Result<(), Error> {
        if !has_peers(table, self.device.node) {
            return Ok(());
        }
        let mut held = self.held();
        let applied = self.apply_to(&mut held, table, keys, known);
        let trouble = applied.as_ref().err().map(|error| {
            let source = std::error::Error::source(error);
            source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
        });
        if let Some(trouble) = trouble.as_ref().filter(|text| held.trouble.as_ref() != Some(text)) {
            tracing::warn!(trouble, "the kernel carries nothing to other nodes");
        }
        held.trouble = trouble;
        if applied.is_err() {
            // Whatever it was, what is there is looked at anew.
            held.open = None;
        }
        applied
    }

    fn apply_to(
        &self,
        held: &mut Held,
        table: &NodeTable,
        keys: &[PrivateKey],
        known: &Known,
    ) -> Result<(), Error> {
        let Some(offered) = keys.first() else { return Ok(()) };
        let public = offered.public();
        let Device { name, node, port, address } = &self.device;
        // A device that somebody took away, and one of another key, is opened again.
        let device = held.open.take().filter(|(key, _)| *key == public);
        let alive = device.and_then(|(key, mut device)| {
            device.public_key().is_ok_and(|found| found == *key.as_bytes()).then_some(device)
        });
        let mut device = match alive {
            Some(device) => device,
            None => {
                let below = warren_net::underlay_mtu(*address)?;
                let overhead = Carrier::Device.overhead(*address);
                let mtu = below.saturating_sub(overhead.into());
                let mtu = mtu.clamp(MTU_MIN.into(), MTU_MAX.into());
                Wireguard::open(name, &offered.to_bytes(), *port, mtu)?
            }
        };
        let own: Vec<PublicKey> = keys.iter().map(PrivateKey::public).collect();
        let (wanted, skipped) = peers(table, *node, &own, *port, known);
        for skipped in skipped {
            tracing::debug!(%skipped, "left out of the tunnel");
        }
        let wanted: Vec<WireguardPeer> = wanted.iter().flat_map(told).collect();
        device.set_peers(&wanted, self.clock.now_ms())?;
        held.open = Some((public, device));
        Ok(())
    }

    /// Whether packets are carried, why not, and for whom.
    pub(super) fn status(&self) -> (bool, Option<String>, Vec<PeerStatus>) {
        let mut held = self.held();
        let peers = held.open.as_mut().and_then(|(_, device)| device.state().ok());
        let now_ms = self.clock.now_ms();
        let peers = peers.map(|peers| peers.into_iter().map(|peer| peer_status(peer, now_ms)));
        let carries = peers.is_some();
        (carries, held.trouble.clone(), peers.into_iter().flatten().collect())
    }

    /// Takes the device away.
    pub(super) fn remove(&self) {
        self.held().open = None;
        if let Err(error) = Wireguard::remove(&self.device.name) {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, device = self.device.name, "remove the tunnel's device");
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // What a panic left is looked at anew with the next change.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A node by each of its keys.
fn told(peer: &PeerConfig) -> impl Iterator<Item = WireguardPeer> {
    let allowed = peer.allowed.iter().map(|prefix| (prefix.address(), prefix.length()));
    let mut allowed = Some(allowed.collect());
    peer.keys.iter().map(move |key| WireguardPeer {
        key: *key.as_bytes(),
        endpoint: peer.via.or(peer.endpoint),
        allowed: allowed.take().unwrap_or_default(),
    })
}

fn peer_status(peer: WireguardState, now_ms: u64) -> PeerStatus {
    let heard = (peer.handshake_ms > 0).then(|| now_ms.saturating_sub(peer.handshake_ms));
    PeerStatus {
        key: PublicKey::from_bytes(peer.key).to_string(),
        endpoint: peer.endpoint.map(|at| at.to_string()).unwrap_or_default(),
        handshake_ms: peer.handshake_ms,
        received_bytes: peer.received,
        sent_bytes: peer.sent,
        // The kernel tells of nothing later than the handshake.
        heard_ago_ms: heard,
        ..PeerStatus::default()
    }
}
