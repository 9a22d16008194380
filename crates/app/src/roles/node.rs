//! The rooms of a running node: made in order, taken apart in the opposite one.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use warren_agent::{
    Agent, Cache, Connect, ConnectError, LocalManager, ManagerAddress, Names, Resolve,
};
use warren_base::clock::Clock;
use warren_base::file::write_atomic;
use warren_base::rng::Rng;
use warren_manager::{SetLogLevel, StopNode};
use warren_model::cluster::{Cluster, Subnet};
use warren_model::node::Description;
use warren_model::{ClusterId, NodeId};
use warren_net::{Net, NetConfig};
use warren_runtime::native::{self, Native};
use warren_store::Store;
use warren_trust::KeyFile;

use super::admin::{Admin, Rooms};
use super::dial::{Dialer, Whom};
use super::door::{Behind, Door, Local};
use super::files::{Files, REMEMBERED};
use super::keep::{End, Keeper, Kept};
use super::managing::Managing;
use super::metrics::Metrics;
use super::plane::{DataPlane, Tunnel};
use super::streams::Streams;
use super::wire::Pipe;
use super::{failed, machine};
use crate::address::Address;
use crate::cli::failure::Failure;
use crate::identity::{self, Identity};
use crate::settings::NodeSettings;

/// Network namespaces kept ready: a burst of starts finds some, an idle node holds little.
const NAMESPACES_READY: usize = 4;
/// A list of managers and a number.
const REMEMBERED_MAX: u64 = 64 << 10;

/// What the parts of one node share.
pub(super) struct Shared {
    pub(super) settings: NodeSettings,
    pub(super) node: NodeId,
    pub(super) cluster: ClusterId,
    pub(super) identity: Mutex<Identity>,
    pub(super) files: Files,
    pub(super) key: Arc<KeyFile>,
    pub(super) dialer: Dialer,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) rng: Arc<dyn Rng>,
    pub(super) advertise: Address,
    pub(super) door: Door,
    pub(super) stop_node: StopNode,
    pub(super) set_log_level: SetLogLevel,
    pub(super) metrics: Metrics,
    /// The manager in this process, for the agent.
    pub(super) local: watch::Sender<LocalManager>,
    pub(super) pipe: ArcSwapOption<Pipe>,
    pub(super) store: ArcSwapOption<Store>,
    pub(super) manager_metrics: ArcSwapOption<warren_manager::Metrics>,
    pub(super) remembered: Mutex<Remembered>,
}

/// Survives restarts, is no secret, and may be lost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Remembered {
    /// Where managers were, last.
    pub(super) managers: Vec<String>,
    /// The cluster had reached this moment, in ms since the epoch.
    pub(super) reached_ms: u64,
    /// Address and prefix of the containers' pool, as it was when this node joined.
    pub(super) pool: Option<(Ipv4Addr, u8)>,
}

impl Remembered {
    /// What was remembered in `files`; nothing, if that cannot be read.
    pub(super) fn read(files: &Files) -> Self {
        let path = files.data_dir().join(REMEMBERED);
        let fits = std::fs::metadata(&path).is_ok_and(|about| about.len() <= REMEMBERED_MAX);
        let text = fits.then(|| std::fs::read(&path).ok()).flatten();
        text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// These are asked before those that are known.
    pub(super) fn prefer(&mut self, managers: &[Address]) {
        let mut first: Vec<String> = managers.iter().map(Address::to_string).collect();
        self.managers.retain(|known| !first.contains(known));
        first.append(&mut self.managers);
        self.managers = first;
    }

    pub(super) fn write(&self, files: &Files) {
        let path = files.data_dir().join(REMEMBERED);
        let bytes = serde_json::to_vec(self).map_err(std::io::Error::from);
        if let Err(error) = bytes.and_then(|bytes| write_atomic(&path, &bytes, 0o600)) {
            tracing::warn!(%error, path = %path.display(), "addresses of managers are not kept");
        }
    }
}

impl Shared {
    /// Where managers were, last.
    pub(super) fn managers(&self) -> Vec<String> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).managers.clone()
    }

    /// Changes what the node knows of itself, on disk first.
    pub(super) fn note(&self, change: impl FnOnce(Identity) -> Identity) -> Result<(), Failure> {
        let mut identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(identity.clone());
        if changed != *identity {
            changed.write(self.files.data_dir()).map_err(|e: identity::Error| failed(&e))?;
            *identity = changed;
        }
        Ok(())
    }

    fn remember(&self, change: impl FnOnce(&mut Remembered)) {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let before = remembered.clone();
        change(&mut remembered);
        if *remembered != before {
            remembered.write(&self.files);
        }
    }
}

/// Keeps the moment that the cluster has reached, if what is kept is older than `every_ms`.
pub(super) fn persist_clock(shared: &Shared, every_ms: u64) {
    let now = shared.dialer.credentials().now().0;
    shared.remember(|remembered| {
        if now.saturating_sub(remembered.reached_ms) >= every_ms {
            remembered.reached_ms = now;
        }
    });
}

/// Where other nodes are, by the names that they are known by.
struct Hosts(Dialer);

#[tonic::async_trait]
impl Resolve for Hosts {
    async fn resolve(&self, host: &str) -> std::io::Result<Vec<IpAddr>> {
        self.0.addresses(host).await.map_err(std::io::Error::other)
    }
}

/// How the agent reaches managers.
struct Lines(Arc<Shared>);

#[tonic::async_trait]
impl Connect for Lines {
    async fn connect(&self, manager: &ManagerAddress) -> Result<Channel, ConnectError> {
        match manager {
            ManagerAddress::Local => {
                let pipe = self.0.pipe.load_full();
                pipe.ok_or("there is no manager here")?.connect().await
            }
            ManagerAddress::Remote(address) => {
                Ok(self.0.dialer.channel(address, Whom::Any).await?)
            }
        }
    }

    async fn remember(&self, managers: &[String]) {
        self.0.remember(|remembered| remembered.managers = managers.to_vec());
    }
}

/// The agent, until it is stopped.
type Held = Arc<Mutex<Option<Agent>>>;

/// A node that runs.
pub(super) struct Node {
    pub(super) shared: Arc<Shared>,
    agent: Held,
    met: watch::Receiver<Option<ManagerAddress>>,
    runtime: Arc<Native>,
    net: Arc<Net>,
    plane: Arc<DataPlane>,
    /// `None` once it has ended and what it left was taken.
    keeper: Option<JoinHandle<Kept>>,
    stop: CancellationToken,
}

/// Why a node ends without having been asked to.
pub(super) enum Broken {
    Removed,
    Failed(Failure),
}

impl Node {
    /// Starts the agent beside `managing`, and what keeps the node what it should be.
    pub(super) async fn start(
        shared: Arc<Shared>,
        managing: Option<Managing>,
        admin: &Admin,
    ) -> Result<Self, Failure> {
        let settings = known_settings(&shared, managing.as_ref()).await;
        let pool = pool(&shared, settings.as_ref());
        let tools = Tools::open(&shared, pool).await?;
        let (net, runtime) = (Arc::clone(&tools.net), Arc::clone(&tools.runtime));
        let reached_ms =
            shared.remembered.lock().unwrap_or_else(PoisonError::into_inner).reached_ms;
        let tunnel = Tunnel::open(&shared, reached_ms)?;
        let vips = settings.map_or(Cluster::VIP_POOL, |settings| settings.vip_pool);
        let tables = Arc::new(warren_agent::HeldTable::default());
        let identity = shared.identity.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (who, follow) = ((identity.key(), identity.role.worker), tables.follow());
        let plane = DataPlane::start(&shared, who, [pool, vips], tunnel, follow).await?;
        let plane = Arc::new(plane);
        let agent = Agent::start(warren_agent::Options {
            node_id: shared.node,
            description: Description {
                overlay_port: shared.settings.overlay_port.unwrap_or_default(),
                ..machine::describe(&shared.advertise, &shared.settings.data_dir)
            },
            runtime: tools.runtime,
            images: tools.images,
            network: tools.net,
            names: Some(Arc::clone(&plane) as Arc<dyn Names>),
            tunnel: Some(Arc::clone(&plane) as Arc<dyn warren_agent::Tunnel>),
            name_server: Some(warren_net::name_server(&tools.key)),
            resolve: Arc::new(Hosts(shared.dialer.clone())),
            probes: Arc::new(warren_agent::NetProbes::default()),
            overlay_device: warren_net::tunnel_name(&tools.key),
            ipv6: warren_net::ipv6_enabled(),
            device_folders: shared.settings.cdi_spec_dirs.clone(),
            data_dir: shared.settings.data_dir.clone(),
            own_folders: vec![shared.settings.data_dir.clone(), shared.settings.run_dir.clone()],
            key: Arc::clone(&shared.key),
            pool: (pool.address, pool.prefix),
            net_table: tables,
            clock: Arc::clone(&shared.clock),
            rng: Arc::clone(&shared.rng),
            connect: Arc::new(Lines(Arc::clone(&shared))),
            managers: shared.managers(),
            local: shared.local.subscribe(),
        });
        let agent = agent.await.map_err(|e| failed(&e))?;
        let (membership, met, removed) = (agent.membership(), agent.manager(), agent.removed());
        let metrics = agent.metrics();
        let agent: Held = Arc::new(Mutex::new(Some(agent)));
        let local = Arc::new(local(&shared, &agent));
        if managing.is_none() {
            shared.door.set(Behind::Local(Arc::clone(&local)));
        }
        admin.open(Rooms {
            shared: Arc::clone(&shared),
            runtime: runtime.clone(),
            net: Arc::clone(&net),
            agent: Arc::clone(&metrics),
            manager: met.clone(),
            pool: (pool.address, pool.prefix),
            plane: Arc::clone(&plane),
        });
        let keeper = Keeper {
            shared: Arc::clone(&shared),
            managing,
            local,
            membership,
            manager: met.clone(),
            removed,
            agent: metrics,
        };
        let stop = CancellationToken::new();
        let keeper = Some(tokio::spawn(keeper.run(stop.clone())));
        Ok(Self { shared, agent, met, runtime, net, plane, keeper, stop })
    }

    /// Resolves once there is a session with a manager.
    pub(super) async fn met(&self) {
        let mut manager = self.met.clone();
        // An error means that the agent has ended, which others tell.
        let _ = manager.wait_for(Option::is_some).await;
    }

    /// Resolves when the node can go on no longer. The rest of it is to be stopped then.
    pub(super) async fn broken(&mut self) -> (Option<Managing>, Broken) {
        let ended = match &mut self.keeper {
            Some(keeper) => keeper.await,
            None => std::future::pending().await,
        };
        self.keeper = None;
        match ended {
            Ok(Kept { managing, end: Some(End::Removed) }) => (managing, Broken::Removed),
            Ok(Kept { managing, end: Some(End::Broken(failure)) }) => {
                (managing, Broken::Failed(failure))
            }
            Ok(Kept { managing, end: None }) => {
                (managing, Broken::Failed(Failure::failed("the node was stopped from within")))
            }
            Err(error) => {
                (None, Broken::Failed(Failure::failed(format!("the node's keeper: {error}"))))
            }
        }
    }

    /// Agent first, while its last reports still find a manager; the store last.
    pub(super) async fn stop(self, left: Option<Managing>, with_containers: bool) {
        let Self { shared, agent, met: _, runtime, net, plane, keeper, stop } = self;
        stop.cancel();
        let managing = match (left, keeper) {
            (Some(managing), _) => Some(managing),
            // A panic has been logged; what it held is gone.
            (None, Some(keeper)) => keeper.await.ok().and_then(|kept| kept.managing),
            (None, None) => None,
        };
        let agent = agent.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(agent) = agent {
            agent.stop(with_containers).await;
        }
        plane.stop(with_containers).await;
        if with_containers {
            if let Err(error) = net.clean().await {
                tracing::warn!(%error, "network of this node was not removed");
            }
            if let Err(error) = runtime.dispose() {
                tracing::warn!(error = failed(&error).message, "control groups were not removed");
            }
        }
        if let Some(managing) = managing {
            managing.stop(&shared).await;
        }
        persist_clock(&shared, 1);
    }
}

/// The cluster's settings: as the own store says, or as managers said last.
async fn known_settings(shared: &Arc<Shared>, managing: Option<&Managing>) -> Option<Cluster> {
    let view = managing.map(|managing| managing.store.view());
    if let Some(own) = view.as_ref().and_then(|view| view.cluster()) {
        return Some(Cluster::clone(own));
    }
    let (dir, node) = (shared.settings.data_dir.clone(), shared.node);
    let cache = Cache::new(&dir, node, Arc::clone(&shared.key), Arc::clone(&shared.rng));
    // What is wrong with it is told by the agent, which reads it too.
    let read = tokio::task::spawn_blocking(move || cache.read().ok().flatten()).await;
    read.ok().flatten().and_then(|cached| cached.set.settings).map(|settings| *settings)
}

/// Where containers have their addresses from.
fn pool(shared: &Shared, settings: Option<&Cluster>) -> Subnet {
    let remembered = shared.remembered.lock().unwrap_or_else(PoisonError::into_inner).pool;
    last_known(settings, remembered, shared.cluster)
}

/// An assignment is newer than what was said at the time of joining.
fn last_known(
    settings: Option<&Cluster>,
    remembered: Option<(Ipv4Addr, u8)>,
    cluster: ClusterId,
) -> Subnet {
    let remembered = remembered.map(|(address, prefix)| Subnet { address, prefix });
    let known = settings.map(|settings| settings.pool).or(remembered);
    known.unwrap_or_else(|| Cluster::new(cluster).pool)
}

fn local(shared: &Arc<Shared>, agent: &Held) -> Local {
    let asked = Arc::clone(agent);
    let ask = move |channel, request| {
        if let Some(agent) = &*asked.lock().unwrap_or_else(PoisonError::into_inner) {
            agent.serve_stream(channel, request);
        }
    };
    let known = Arc::clone(shared);
    Local {
        node: shared.node,
        cluster: shared.cluster,
        stop_node: Arc::clone(&shared.stop_node),
        set_log_level: Arc::clone(&shared.set_log_level),
        dialer: shared.dialer.clone(),
        managers: Arc::new(move || known.managers()),
        streams: Streams::new(shared.node, Arc::new(ask)),
    }
}

/// What the agent works with.
struct Tools {
    runtime: Arc<Native>,
    images: Arc<warren_image::Store>,
    net: Arc<Net>,
    /// Of the node, as links and tables are named by it.
    key: String,
}

impl Tools {
    async fn open(shared: &Shared, pool: Subnet) -> Result<Self, Failure> {
        let settings = &shared.settings;
        let identity = shared.identity.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let dir = |name: &str| -> PathBuf { settings.data_dir.join(name) };
        let runtime = Native::open(native::Options {
            run_dir: settings.run_dir.clone(),
            data_dir: settings.data_dir.clone(),
            node_key: identity.key(),
        });
        let images = warren_image::Store::open(warren_image::StoreOptions {
            dir: dir("images"),
            docker_config: dir("docker/config.json"),
            insecure: settings.insecure_registries.clone(),
            mirrors: settings.registry_mirrors.clone(),
            watermarks: settings.image_gc,
        });
        let net = Net::open(NetConfig {
            node_key: identity.key(),
            pool: (pool.address, pool.prefix),
            prepared: if identity.role.worker { NAMESPACES_READY } else { 0 },
        });
        Ok(Self {
            runtime: Arc::new(runtime.map_err(|e| failed(&e))?),
            images: Arc::new(images.map_err(|e| failed(&e))?),
            net: Arc::new(net.await.map_err(|e| failed(&e))?),
            key: identity.key(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_is_that_of_the_last_word() {
        let cluster = ClusterId::from_bytes([1; 10]);
        let pool = |last: u8| Subnet { address: Ipv4Addr::new(10, last, 0, 0), prefix: 16 };
        let settings = Cluster { pool: pool(7), ..Cluster::new(cluster) };
        let joined = Some((Ipv4Addr::new(10, 9, 0, 0), 16));
        assert_eq!(last_known(Some(&settings), joined, cluster), pool(7));
        assert_eq!(last_known(None, joined, cluster), pool(9));
        assert_eq!(last_known(None, None, cluster), Cluster::new(cluster).pool);
    }

    #[test]
    fn what_is_remembered_survives() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        assert_eq!(Remembered::read(&files), Remembered::default());
        let remembered = Remembered {
            managers: vec!["a:2377".to_owned()],
            reached_ms: 7,
            pool: Some((Ipv4Addr::new(10, 9, 0, 0), 16)),
        };
        remembered.write(&files);
        assert_eq!(Remembered::read(&files), remembered);
        // Of before pools were told.
        let path = dir.path().join(REMEMBERED);
        std::fs::write(&path, r#"{"managers":["a:2377"],"reached_ms":7}"#).unwrap();
        assert_eq!(Remembered::read(&files), Remembered { pool: None, ..remembered });
    }

    #[test]
    fn managers_that_are_named_come_first() {
        let address = |text: &str| Address::parse(text, 2377).unwrap();
        let mut remembered = Remembered {
            managers: vec!["a:2377".into(), "b:2377".into()],
            reached_ms: 0,
            pool: None,
        };
        remembered.prefer(&[]);
        assert_eq!(remembered.managers, ["a:2377", "b:2377"]);
        remembered.prefer(&[address("c"), address("b")]);
        assert_eq!(remembered.managers, ["c:2377", "b:2377", "a:2377"]);
    }
}
