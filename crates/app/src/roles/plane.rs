//! The node's data plane, as the daemon keeps it: a process of its own, told what managers say.
//!
//! Not here: what it does (`warren_dataplane`), who asks for names (the agent says).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use warren_agent::{
    Asker, KeyChange, LostPeer, Names, OwnKey, Tunnel as AskedTunnel, TunnelPeer, TunnelState,
};
use warren_base::clock::{Clock, RealClock};
use warren_base::rng::Rng;
use warren_dataplane::{End, Handle, Keeper, Options, Overlay, PeerStatus, Status};
use warren_model::cluster::Subnet;
use warren_model::{NodeTable, TaskId, ipv6};
use warren_net::dns::Prefix;
use warren_trust::{KeyFile, TunnelKey, TunnelKeyError, read_tunnel_keys, write_tunnel_keys};
use warren_wireguard::{KEY_LEN, PrivateKey, PublicKey};

use super::dial::Dialer;
use super::failed;
use super::kernel::{Device, KernelTunnel};
use super::node::Shared;
use crate::address::Host;
use crate::cli::failure::Failure;
use crate::settings::Encryption;

/// Itself, also after the file was replaced: the daemon and what it starts are of one build.
const PROGRAM: &str = "/proc/self/exe";
/// In the run folder, so that nothing keeps the data folder busy.
const LOG: &str = "data.log";
/// Threads that carry packets: more than a few share what one network link brings.
const QUEUES_MAX: usize = 4;
/// How far the clock may be behind what the cluster has reached. Peers take no handshake that is
/// older than the last one of the same key.
const BEHIND_MAX_MS: u64 = 60_000;
/// Before a name that was not found is looked for again; doubled each time.
const SEARCH_FIRST_MS: u64 = 1000;
const SEARCH_MAX_MS: u64 = 60_000;

/// What a tunnel needs besides the table.
pub(super) struct Tunnel {
    keys: OwnKeys,
    port: u16,
    /// The kernel encrypts, and not the data plane.
    in_kernel: bool,
}

fn has_kernel_wireguard() -> bool {
    const KIND: &str = "wireguard";
    warren_net::link_kinds(&[KIND]) == [KIND]
}

/// This node's keys, and the file that they are in.
struct OwnKeys {
    keys: Vec<TunnelKey>,
    path: PathBuf,
    seal: Arc<KeyFile>,
    rng: Arc<dyn Rng>,
    clock: Arc<dyn Clock>,
}

impl OwnKeys {
    fn make(&self) -> TunnelKey {
        let mut key = zeroize::Zeroizing::new([0; KEY_LEN]);
        self.rng.fill(&mut *key);
        TunnelKey { key, made_ms: self.clock.now_ms() }
    }

    /// These from now on. On disk when this returns.
    fn set(&mut self, keys: Vec<TunnelKey>) -> Result<(), TunnelKeyError> {
        write_tunnel_keys(&self.path, &keys, &self.seal, self.rng.as_ref())?;
        self.keys = keys;
        Ok(())
    }

    fn change(&mut self, change: KeyChange) -> Result<(), TunnelKeyError> {
        let mut keys = self.keys.clone();
        match change {
            KeyChange::Make => {
                keys.truncate(1);
                let mut made = self.make();
                // Which of two is the newer one must be seen, also after the clock went back.
                let before_ms = keys.first().map_or(0, |key| key.made_ms);
                made.made_ms = made.made_ms.max(before_ms.saturating_add(1));
                keys.push(made);
            }
            KeyChange::Offer => keys.reverse(),
            KeyChange::Forget => keys.truncate(1),
        }
        self.set(keys)
    }

    fn private(&self) -> Vec<PrivateKey> {
        self.keys.iter().map(|key| PrivateKey::from_bytes(*key.key)).collect()
    }

    fn told(&self) -> Vec<OwnKey> {
        let told = |key: &TunnelKey| OwnKey {
            public: *PrivateKey::from_bytes(*key.key).public().as_bytes(),
            made_ms: key.made_ms,
        };
        self.keys.iter().map(told).collect()
    }
}

impl Tunnel {
    /// This node's, if it is to have one. The key is on disk when this returns.
    ///
    /// # Errors
    /// The disk refuses a new key.
    pub(super) fn open(shared: &Shared, reached_ms: u64) -> Result<Option<Self>, Failure> {
        let Some(port) = shared.settings.overlay_port else { return Ok(None) };
        let in_kernel = match shared.settings.wireguard {
            Encryption::Userspace => false,
            Encryption::Auto | Encryption::Kernel => has_kernel_wireguard(),
        };
        if !in_kernel && shared.settings.wireguard == Encryption::Kernel {
            let text = "wireguard: the kernel has no WireGuard (module wireguard)";
            return Err(Failure::failed(text).hint("set it to auto or userspace"));
        }
        if !in_kernel
            && let Err(error) = File::options().read(true).write(true).open("/dev/net/tun")
        {
            tracing::warn!(%error, "there is no tunnel to other nodes: open /dev/net/tun");
            return Ok(None);
        }
        let path = shared.files.tunnel();
        let known = match read_tunnel_keys(&path, &shared.key) {
            Ok(_) if shared.clock.now_ms() + BEHIND_MAX_MS < reached_ms => {
                tracing::warn!("the clock went back: the tunnel gets a new key");
                None
            }
            Ok(mut keys) => {
                // Of the version before, whose file is as old as its key.
                for key in keys.iter_mut().filter(|key| key.made_ms == 0) {
                    key.made_ms = written_ms(&path).unwrap_or_else(|| shared.clock.now_ms());
                }
                Some(keys)
            }
            Err(TunnelKeyError::Missing { .. }) => None,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "the tunnel gets a new key");
                None
            }
        };
        let mut keys = OwnKeys {
            keys: known.unwrap_or_default(),
            path,
            seal: Arc::clone(&shared.key),
            rng: Arc::clone(&shared.rng),
            clock: Arc::clone(&shared.clock),
        };
        if keys.keys.is_empty() {
            let made = keys.make();
            keys.set(vec![made]).map_err(|e| failed(&e))?;
        }
        Ok(Some(Self { keys, port, in_kernel }))
    }
}

fn written_ms(path: &Path) -> Option<u64> {
    let at = std::fs::metadata(path).and_then(|about| about.modified()).ok()?;
    let since = at.duration_since(std::time::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}

/// How counters name a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeLabel {
    pub(super) id: String,
    pub(super) name: String,
}

/// The data plane of this node.
pub(super) struct DataPlane {
    handle: Handle,
    /// `None` once it was stopped.
    keeper: Mutex<Option<Keeper>>,
    stop: CancellationToken,
    tables: watch::Receiver<Arc<NodeTable>>,
    /// `None` without a tunnel.
    keys: Option<Mutex<OwnKeys>>,
    /// Where the kernel encrypts.
    kernel: Option<Arc<KernelTunnel>>,
    /// Whom this node does not reach.
    lost: watch::Receiver<Option<Vec<LostPeer>>>,
}

impl DataPlane {
    /// Keeps one, which is told each of `tables`.
    pub(super) async fn start(
        shared: &Shared,
        (node_key, is_eager): (String, bool),
        pools: [Subnet; 2],
        tunnel: Option<Tunnel>,
        tables: watch::Receiver<Arc<NodeTable>>,
    ) -> Result<Self, Failure> {
        let settings = &shared.settings;
        let failed_exe = |e: io::Error| Failure::failed(format!("look at {PROGRAM}: {e}"));
        let (mut overlay, mut kernel) = (None, None);
        if let Some(Tunnel { keys, port, in_kernel }) = &tunnel {
            let (keys, address, port) = (keys.private(), own_address(shared).await, *port);
            if *in_kernel {
                let name = warren_net::tunnel_name(&node_key);
                let device = Device { name, node: shared.node, port, address };
                kernel = Some(KernelTunnel::new(device, keys, Arc::clone(&shared.clock)));
            } else {
                let queues = std::thread::available_parallelism()
                    .map_or(1, |count| count.get().min(QUEUES_MAX));
                overlay = Some(Overlay { keys, address, port, queues });
            }
        }
        let arguments = ["dataplane".into(), settings.run_dir.clone().into_os_string()].into_iter();
        let level = ["--log-level".into(), settings.log_level.clone().into()];
        let keeper = Keeper::start(Options {
            run_dir: settings.run_dir.clone(),
            program: PROGRAM.into(),
            arguments: arguments.chain(level).collect(),
            log: Some(settings.run_dir.join(LOG)),
            build: build().map_err(failed_exe)?,
            node: shared.node,
            node_key,
            pools: prefixes(shared, pools),
            overlay,
            // Without containers there is nobody to answer, and nothing to carry.
            is_eager,
            clock: Arc::clone(&shared.clock),
        });
        let (handle, stop) = (keeper.handle(), CancellationToken::new());
        let known = tables.clone();
        if let Some(kernel) = &kernel {
            let following = Arc::clone(kernel).run(tables.clone());
            let stopped = stop.clone();
            tokio::spawn(async move { stopped.run_until_cancelled(following).await });
        }
        let lost = match &kernel {
            Some(kernel) => kernel.lost(),
            None => {
                let (tell, lost) = watch::channel(None);
                let (stopped, told) = (stop.clone(), handle.lost());
                tokio::spawn(
                    async move { stopped.run_until_cancelled(translate(told, tell)).await },
                );
                lost
            }
        };
        let fed = (handle.clone(), kernel.clone());
        let feeding = feed(fed, tables, shared.dialer.clone(), shared.clock.clone());
        let stopped = stop.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(feeding).await });
        let (keeper, keys) = (Some(keeper), tunnel.map(|tunnel| Mutex::new(tunnel.keys)));
        Ok(Self { handle, keeper: Mutex::new(keeper), stop, tables: known, keys, kernel, lost })
    }

    /// What it does; `None` while there is none that answers.
    pub(super) async fn status(&self) -> Option<Status> {
        let mut status = self.handle.status().await?;
        if let Some(kernel) = &self.kernel {
            (status.carries, status.trouble, status.peers) = kernel.status();
        }
        Some(status)
    }

    /// Other nodes by their keys, as the status names them.
    pub(super) fn nodes(&self) -> BTreeMap<String, NodeLabel> {
        let table = Arc::clone(&self.tables.borrow());
        let peers = table.peers.iter();
        // Of one that replaces its key, the process may know the order of a moment ago.
        peers
            .flat_map(|(id, peer)| {
                let label = NodeLabel { id: id.to_string(), name: peer.name.clone() };
                let of = move |key| (PublicKey::from_bytes(key).to_string(), label.clone());
                [peer.overlay_key, peer.overlay_key_other].map(of)
            })
            .collect()
    }

    /// What managers told of the network last.
    pub(super) fn table(&self) -> Arc<NodeTable> {
        Arc::clone(&self.tables.borrow())
    }

    /// Leaves the process for the next daemon, or ends it with the containers.
    pub(super) async fn stop(&self, with_containers: bool) {
        self.stop.cancel();
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(keeper) = keeper {
            keeper.stop(if with_containers { End::Remove } else { End::Leave }).await;
        }
        if let Some(kernel) = self.kernel.as_ref().filter(|_| with_containers) {
            kernel.remove();
        }
    }
}

#[tonic::async_trait]
impl Names for DataPlane {
    async fn admit(&self, asker: Asker) -> Result<(), warren_net::Error> {
        let admitted = self.handle.admit(told(asker)).await;
        admitted.map_err(|error| warren_net::Error::Io {
            action: "have the container's questions answered".to_owned(),
            source: io::Error::new(io::ErrorKind::TimedOut, error),
        })
    }

    async fn dismiss(&self, task: TaskId) {
        self.handle.dismiss(task);
    }

    async fn restore(&self, askers: Vec<Asker>) {
        self.handle.restore(askers.into_iter().map(told).collect());
    }
}

#[tonic::async_trait]
impl AskedTunnel for DataPlane {
    async fn state(&self) -> Option<TunnelState> {
        let (carries, trouble, peers) = match &self.kernel {
            Some(kernel) => kernel.status(),
            None => {
                let status = self.handle.status().await?;
                (status.carries, status.trouble, status.peers)
            }
        };
        let now_ms = RealClock::new().now_ms();
        let peers = peers.iter().filter_map(|peer| tunnel_peer(peer, now_ms)).collect();
        Some(TunnelState { carries, trouble, peers })
    }

    fn lost(&self) -> watch::Receiver<Option<Vec<LostPeer>>> {
        self.lost.clone()
    }

    fn keys(&self) -> Vec<OwnKey> {
        let keys =
            self.keys.as_ref().map(|keys| keys.lock().unwrap_or_else(PoisonError::into_inner));
        keys.map(|keys| keys.told()).unwrap_or_default()
    }

    async fn change_keys(&self, change: KeyChange) -> io::Result<()> {
        let Some(keys) = &self.keys else { return Ok(()) };
        let private = {
            let mut keys = keys.lock().unwrap_or_else(PoisonError::into_inner);
            keys.change(change).map_err(io::Error::other)?;
            keys.private()
        };
        match &self.kernel {
            Some(kernel) => kernel.set_keys(private),
            None => self.handle.set_keys(private).await,
        }
        Ok(())
    }
}

/// As the agent knows peers.
async fn translate(
    mut told: watch::Receiver<Option<Vec<warren_dataplane::LostPeer>>>,
    tell: watch::Sender<Option<Vec<LostPeer>>>,
) {
    loop {
        let lost = told.borrow_and_update().clone();
        let peer = |peer: &warren_dataplane::LostPeer| {
            let key = peer.key.as_slice().try_into().ok()?;
            Some(LostPeer { key, via_lost: peer.via_lost })
        };
        tell.send_replace(lost.map(|lost| lost.iter().filter_map(peer).collect()));
        if told.changed().await.is_err() {
            return;
        }
    }
}

/// `None`: of another version, which names its peers otherwise.
fn tunnel_peer(peer: &PeerStatus, now_ms: u64) -> Option<TunnelPeer> {
    let key = STANDARD.decode(&peer.key).ok()?;
    Some(TunnelPeer {
        key: key.try_into().ok()?,
        endpoint: peer.endpoint.clone(),
        handshake_ago_ms: (peer.handshake_ms > 0).then(|| now_ms.saturating_sub(peer.handshake_ms)),
        heard_ago_ms: peer.heard_ago_ms,
        failed: peer.handshakes_failed,
        lost: peer.lost,
        via_lost: peer.via_lost,
    })
}

fn told(asker: Asker) -> warren_dataplane::Asker {
    let Asker { task, addresses, stack, networks, upstream } = asker;
    warren_dataplane::Asker { task, addresses, stack, networks, upstream }
}

/// Names the program that runs: another file, or the same one written anew, has another name.
///
/// # Errors
/// `/proc` does not say.
pub(super) fn build() -> io::Result<String> {
    let about = std::fs::metadata(Path::new(PROGRAM))?;
    let (device, inode, len) = (about.dev(), about.ino(), about.len());
    let version = warren_base::build::VERSION;
    Ok(format!("{version} {device}:{inode} {len} {}.{}", about.mtime(), about.mtime_nsec()))
}

/// Where the cluster takes addresses from, of both families.
fn prefixes(shared: &Shared, pools: [Subnet; 2]) -> Vec<Prefix> {
    let all = ipv6::cluster_prefix(shared.cluster);
    let four = pools.map(|pool| Prefix { address: pool.address.into(), len: pool.prefix });
    four.into_iter().chain([Prefix { address: all.address.into(), len: all.prefix }]).collect()
}

/// The address that others know the node by; of a name that is not found any, which no link has.
async fn own_address(shared: &Shared) -> IpAddr {
    match &shared.advertise.host {
        Host::Ip(address) => *address,
        Host::Name(name) => {
            let found = shared.dialer.find(name).await;
            found.unwrap_or_else(|| Ipv4Addr::UNSPECIFIED.into())
        }
    }
}

/// Hands over what managers say, with the addresses of those nodes that they know by name.
async fn feed(
    (handle, kernel): (Handle, Option<Arc<KernelTunnel>>),
    mut tables: watch::Receiver<Arc<NodeTable>>,
    dialer: Dialer,
    clock: Arc<dyn Clock>,
) {
    let mut known: BTreeMap<String, IpAddr> = BTreeMap::new();
    let mut pause_ms = SEARCH_FIRST_MS;
    loop {
        let table = Arc::clone(&tables.borrow_and_update());
        // What is there at first is nothing that anybody told.
        if table.cluster.is_some() {
            handle.set_table(Arc::clone(&table));
        }
        let names = by_name(&table);
        known.retain(|name, _| names.contains(&name.as_str()));
        let (mut missing, before) = (false, known.len());
        for name in names {
            if !known.contains_key(name) {
                match dialer.find(name).await {
                    Some(address) => drop(known.insert(name.to_owned(), address)),
                    None => missing = true,
                }
            }
        }
        // Those that are not in the table any more do no harm until then.
        if known.len() != before {
            handle.set_known(known.clone());
            if let Some(kernel) = &kernel {
                kernel.set_known(known.clone());
            }
        }
        let again = if missing { pause_ms } else { u64::MAX };
        let wake_ms = clock.monotonic_ms().saturating_add(again);
        tokio::select! {
            moved = tables.changed() => if moved.is_err() { return },
            () = clock.sleep_until(wake_ms), if missing => {
                pause_ms = (pause_ms * 2).min(SEARCH_MAX_MS);
                continue;
            }
        }
        pause_ms = SEARCH_FIRST_MS;
    }
}

/// Nodes that are known by names, each once.
fn by_name(table: &NodeTable) -> Vec<&str> {
    let underlays = table.peers.values().map(|peer| peer.underlay.as_str());
    let mut names: Vec<&str> =
        underlays.filter(|text| !text.is_empty() && text.parse::<IpAddr>().is_err()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use warren_model::NodeId;
    use warren_model::node_table::Peer;

    use super::*;

    #[test]
    fn a_program_is_known_again() {
        assert_eq!(build().unwrap(), build().unwrap());
        assert!(build().unwrap().starts_with(warren_base::build::VERSION));
    }

    #[test]
    fn keys_are_replaced_step_by_step() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tunnel");
        let seal = Arc::new(KeyFile::in_memory([3; 32]));
        let (rng, clock) = (Arc::new(warren_base::rng::SystemRng), Arc::new(RealClock::new()));
        let (seal_again, future_ms) = (Arc::clone(&seal), u64::MAX / 2);
        let mut keys = OwnKeys { keys: Vec::new(), path: path.clone(), seal, rng, clock };
        let first = TunnelKey { made_ms: future_ms, ..keys.make() };
        keys.set(vec![first]).unwrap();
        let mut seen = vec![keys.told()];
        for change in [KeyChange::Make, KeyChange::Offer, KeyChange::Forget] {
            keys.change(change).unwrap();
            let kept = read_tunnel_keys(&path, &seal_again).unwrap();
            assert_eq!(kept.iter().map(|key| *key.key).collect::<Vec<_>>(), {
                keys.private().iter().map(|key| *key.to_bytes()).collect::<Vec<_>>()
            });
            seen.push(keys.told());
        }
        let [old, new] = [seen[1][0], seen[1][1]];
        assert_ne!(old.public, new.public);
        // Also when the clock went back.
        assert!(old.made_ms < new.made_ms);
        assert_eq!(seen, [vec![old], vec![old, new], vec![new, old], vec![new]]);
    }

    #[test]
    fn nodes_with_names_are_looked_up_once() {
        let mut table = NodeTable::default();
        let all = ["192.0.2.1", "m1.example", "2001:db8::1", "m1.example", "", "a.example"];
        for (n, underlay) in (0..).zip(all) {
            let peer = Peer {
                number: n.into(),
                underlay: underlay.to_owned(),
                blocks: Vec::new(),
                overlay_key: [0; 32],
                overlay_key_other: [0; 32],
                overlay_port: 0,
                name: String::new(),
            };
            table.peers.insert(NodeId::from_bytes([n; 10]), Arc::new(peer));
        }
        assert_eq!(by_name(&table), ["a.example", "m1.example"]);
    }
}
