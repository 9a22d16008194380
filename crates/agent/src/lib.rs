//! A node's worker: holds what managers assigned, runs it, reports what it sees.
//!
//! ```text
//! session ──assignment──▶ core (pure: assignments, reconcile, task, published, report)
//!    ▲                      │ effects
//!    └──reports── worker ◀──┘──▶ runtime · net · images · net table
//! ```
//!
//! Containers belong to nobody's process: they run on while the agent is away,
//! and a new one finds its tasks by the labels of their containers. With the
//! managers gone, tasks are kept running and restarted all the same, but for
//! those whose service says otherwise; after a reboot they are started from
//! what was kept on disk.
//!
//! What the kernel is to hold of networks is drawn from what managers say of
//! them and from what runs here (`kernel`), and applied by one writer, the worker.
//!
//! Not here: secrets, volumes, names ([`Names`]), how to reach a
//! manager ([`Connect`] is the caller's), this node's certificate.

pub mod assignments;
mod cache;
mod cdi;
mod container;
pub mod core;
mod crew;
mod cuts;
mod disk;
mod doctor;
mod effects;
pub mod fake;
mod health;
mod kernel;
mod lease;
mod membership;
mod mesh;
mod metrics;
mod names;
mod net_table;
mod parted;
mod ports;
pub mod published;
mod pulse;
mod reconcile;
pub mod report;
mod restart;
mod room;
mod rotation;
mod route;
mod seams;
mod session;
mod stream;
mod table;
pub mod task;
#[cfg(test)]
mod tests;
mod tunnel;
mod underlay;
mod volumes;
mod worker;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use warren_base::clock::Clock;
use warren_base::rng::Rng;
use warren_base::tasks::Tasks;
use warren_model::node::Description;
use warren_model::{NodeId, ServiceId, TaskId, TaskTemplate};
use warren_net::Addresses;
use warren_runtime::{ContainerInfo, ContainerState, Runtime};
use warren_trust::KeyFile;

pub use crate::cache::{Cache, CacheError, Cached, Changed};
pub use crate::disk::{Disk, disk};
pub use crate::health::{NetProbes, Probes};
pub use crate::kernel::Site;
pub use crate::lease::Contact;
pub use crate::membership::MembershipView;
pub use crate::mesh::{Holding, Tenant};
pub use crate::metrics::Metrics;
pub use crate::names::{Asker, Names, SERVER};
pub use crate::net_table::{HeldTable, NetTable};
pub use crate::route::{LocalManager, MANAGERS_MAX, ManagerAddress};
pub use crate::seams::{Archive, Images, Network};
pub use crate::session::{Connect, ConnectError};
pub use crate::table::Applied;
pub use crate::tunnel::{KeyChange, LostPeer, OwnKey, Tunnel, TunnelPeer, TunnelState};
pub use crate::underlay::Resolve;

use crate::container::{Listed, is_companion};
use crate::core::Core;
use crate::crew::Crews;
use crate::health::Prober;
use crate::parted::Parted;
use crate::ports::{Claimant, Ports, User};
use crate::session::Session;
use crate::volumes::Volumes;
use crate::worker::{INBOX_MAX, Message, Tools, Worker};

/// How long effects under way may take when the agent stops; their containers
/// are found again in any case.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Gaps that wait for the session to end by one of them.
const GAPS_MAX: usize = 1;

/// What an agent is made of.
pub struct Options {
    pub node_id: NodeId,
    pub description: Description,
    pub runtime: Arc<dyn Runtime>,
    pub images: Arc<dyn Images>,
    pub network: Arc<dyn Network>,
    /// Answers containers' questions for names, if anybody does.
    pub names: Option<Arc<dyn Names>>,
    /// Encrypts what goes to other nodes, if anybody does.
    pub tunnel: Option<Arc<dyn Tunnel>>,
    /// Where the name server itself listens, for `doctor`.
    pub name_server: Option<SocketAddrV4>,
    /// Looks up names of nodes.
    pub resolve: Arc<dyn Resolve>,
    /// Asks containers how they are.
    pub probes: Arc<dyn Probes>,
    /// Name of the device that encrypts what goes to other nodes, where the cluster has that.
    pub overlay_device: String,
    /// Containers have addresses of IPv6 too.
    pub ipv6: bool,
    /// Takes what this node must know of the network.
    pub net_table: Arc<dyn NetTable>,
    /// Where files are that say which devices this machine has; later ones count more.
    pub device_folders: Vec<PathBuf>,
    /// Holds `logs/<task id>`, `agent/assignments` and `volumes`.
    pub data_dir: PathBuf,
    /// Folders of the daemon itself, which no container may mount, nor what they are in.
    pub own_folders: Vec<PathBuf>,
    /// Seals what is kept on disk.
    pub key: Arc<KeyFile>,
    /// The cluster's container pool, for `doctor`.
    pub pool: (Ipv4Addr, u8),
    pub clock: Arc<dyn Clock>,
    pub rng: Arc<dyn Rng>,
    pub connect: Arc<dyn Connect>,
    /// Last known addresses of managers, `host:port`.
    pub managers: Vec<String>,
    /// The manager in this process, if there is one; may change at any time.
    pub local: watch::Receiver<LocalManager>,
}

/// Why an agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("list the containers of this node")]
    List(#[source] warren_runtime::Error),
}

/// A running agent. Dropping it ends its tasks, not its containers.
pub struct Agent {
    tools: Arc<Tools>,
    tasks: Arc<Tasks>,
    membership: watch::Receiver<Option<MembershipView>>,
    manager: watch::Receiver<Option<ManagerAddress>>,
    removed: watch::Receiver<bool>,
}

impl Agent {
    /// Takes over what an earlier process left, then connects.
    ///
    /// # Errors
    /// [`Error::List`] when the runtime does not say what is there: starting blind would start
    /// everything a second time.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let tasks = Arc::new(Tasks::new());
        let (inbox, messages) = mpsc::channel(INBOX_MAX);
        let ports = Ports::new(Arc::clone(&options.network), Arc::clone(&options.runtime));
        let (met, manager) = watch::channel(None);
        let (wishes, wished) = mpsc::channel(rotation::WISHES_MAX);
        let keys = options.tunnel.as_ref().map(|tunnel| tunnel.keys()).unwrap_or_default();
        let folders = options.device_folders;
        let devices = tokio::task::spawn_blocking(|| cdi::Devices::new(folders)).await;
        let devices = Arc::new(devices.unwrap_or_else(|_| cdi::Devices::new(Vec::new())));
        let tools = Arc::new(Tools {
            node: options.node_id,
            hostname: options.description.hostname.clone(),
            architecture: options.description.architecture.clone(),
            pool: options.pool,
            runtime: options.runtime,
            images: options.images,
            network: options.network,
            names: options.names,
            tunnel: options.tunnel,
            name_server: options.name_server,
            resolve: options.resolve,
            probes: options.probes,
            prober: Prober::default(),
            rng: Arc::clone(&options.rng),
            roll: effects::Roll::default(),
            crews: Crews::default(),
            applied: watch::Sender::default(),
            ports,
            devices: Arc::clone(&devices),
            clock: options.clock,
            volumes: Arc::new(Volumes::new(&options.data_dir)),
            data_dir: options.data_dir,
            own_folders: options.own_folders,
            starts: Arc::new(Semaphore::new(worker::STARTS_MAX)),
            pulls: Semaphore::new(worker::PULLS_MAX),
            removals: Semaphore::new(worker::REMOVALS_MAX),
            streams: Semaphore::new(stream::STREAMS_MAX),
            metrics: Arc::default(),
            image_came: Notify::new(),
            manager: manager.clone(),
            channel: watch::Sender::new(None),
            parted: Parted::default(),
            said: watch::Sender::new(rotation::said(&keys)),
            cuts: watch::Sender::new(None),
            wishes,
            inbox,
            stopping: CancellationToken::new(),
        });
        let Found { ours, strangers, images, running } = find(&tools).await?;
        let cache = Cache::new(&tools.data_dir, tools.node, options.key, Arc::clone(&options.rng));
        let site = Site { node: tools.node, device: options.overlay_device, ipv6: options.ipv6 };
        let core = recall(&tools, &cache, Core::new(ours).at(site)).await;
        if let Some(names) = &tools.names {
            tools.roll.restore(running.iter().map(|(task, ..)| *task));
            let known = running.into_iter();
            let known =
                known.map(|(task, service, addresses)| core.asker(task, service, addresses));
            names.restore(known.collect()).await;
        }
        let (told, membership) = watch::channel(core.set().membership.clone());
        let (tables, handed) = watch::channel(Arc::default());
        let (clock, stopping) = (Arc::clone(&tools.clock), tools.stopping.clone());
        tasks.spawn("tunnel keys", rotation::run(Arc::clone(&tools), handed.clone(), wished));
        tasks.spawn("cuts", cuts::run(Arc::clone(&tools), handed.clone()));
        tasks.spawn("net table", net_table::run(options.net_table, handed, clock, stopping));
        let (prober, probing) = (Arc::clone(&tools), Arc::clone(&tasks));
        tasks.spawn("prober", health::run(prober, probing, Arc::clone(&options.rng)));
        let (report_gap, gaps) = mpsc::channel(GAPS_MAX);
        let (gone, removed) = watch::channel(false);
        let worker = Worker {
            tools: Arc::clone(&tools),
            core,
            tasks: Arc::clone(&tasks),
            connect: Arc::clone(&options.connect),
            gaps: report_gap,
            membership: told,
            tables,
            cache,
            strangers,
            images,
            state: worker::State::default(),
        };
        tasks.spawn("worker", worker.run(messages));
        tasks.spawn("room for images", room::run(Arc::clone(&tools)));
        tasks.spawn("devices", devices.follow());
        let session = Session {
            tools: Arc::clone(&tools),
            tasks: Arc::clone(&tasks),
            connect: options.connect,
            instance: options.rng.next_u64(),
            rng: options.rng,
            description: options.description,
            managers: options.managers,
            local: options.local,
            membership: membership.clone(),
            gaps,
            manager: met,
            removed: gone,
        };
        tasks.spawn("session", session.run());
        Ok(Self { tools, tasks, membership, manager, removed })
    }

    /// What this node knows of the cluster and of its place in it; what was kept on disk at first.
    pub fn membership(&self) -> watch::Receiver<Option<MembershipView>> {
        self.membership.clone()
    }

    /// With which manager there is a session.
    pub fn manager(&self) -> watch::Receiver<Option<ManagerAddress>> {
        self.manager.clone()
    }

    /// Turns true when a manager says that this node is no member any more. Its containers are
    /// being removed then, and what is kept on disk; no other session is opened.
    pub fn removed(&self) -> watch::Receiver<bool> {
        self.removed.clone()
    }

    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.tools.metrics)
    }

    /// Serves a stream that this node was asked for itself: the tunnel is opened through `channel`.
    pub fn serve_stream(
        &self,
        channel: tonic::transport::Channel,
        request: warren_proto::v1::StreamRequest,
    ) {
        let tools = Arc::clone(&self.tools);
        let serving = async move { stream::serve(&tools, channel, request).await };
        self.tasks.spawn("stream", serving);
    }

    /// Ends the agent. Containers keep running, unless `with_containers`: then they are stopped
    /// and removed, to be started anew by the next agent.
    pub async fn stop(self, with_containers: bool) {
        let (reply, graces) = oneshot::channel();
        self.tools.tell(Message::Stop(reply)).await;
        let graces = graces.await.unwrap_or_default();
        self.tools.stopping.cancel();
        if !self.tasks.stop(STOP_GRACE).await {
            tracing::warn!("some work did not end in time");
        }
        if with_containers {
            stop_containers(&self.tools, &graces).await;
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.tools.stopping.cancel();
        self.tasks.stopping().cancel();
    }
}

/// What an earlier process left on this node.
struct Found {
    ours: BTreeMap<TaskId, core::FoundTask>,
    /// Containers in nobody's name.
    strangers: Vec<String>,
    /// Ids of the images that running tasks run on.
    images: BTreeMap<TaskId, String>,
    /// Tasks that run, with what their containers are known by.
    running: Vec<(TaskId, ServiceId, Addresses)>,
}

/// Looks, and makes what runs known to network and ports.
async fn find(tools: &Tools) -> Result<Found, Error> {
    let listed = tools.runtime.list().await.map_err(Error::List)?;
    let mut strangers = Vec::new();
    let mut ours = Vec::new();
    for info in listed {
        match container::parse_labels(&info) {
            Some(listed) => ours.push(listed),
            None => strangers.push(info.id),
        }
    }
    adopt(tools, &ours).await;
    let up = || ours.iter().filter(|listed| listed.pid().is_some());
    let own = |listed: &&Listed| listed.companion.is_none();
    let images = up().filter(own).map(|listed| (listed.task, listed.image_id.clone())).collect();
    let running: BTreeMap<TaskId, (ServiceId, Addresses)> =
        up().filter_map(|up| Some((up.task, (up.service, up.addresses?)))).collect();
    let running = running.into_iter().map(|(task, (service, at))| (task, service, at)).collect();
    tools.crews.restore(ours.iter().filter_map(Listed::found_companion).collect());
    let ours = core::group(container::by_attempt(ours).into_iter());
    tracing::info!(tasks = ours.len(), "found on this node");
    Ok(Found { ours, strangers, images, running })
}

/// What was kept of an earlier life, if anything.
async fn recall(tools: &Tools, cache: &Cache, core: Core) -> Core {
    let cache = cache.clone();
    // An interrupted look is as good as none: managers tell all of it again.
    let cached = tokio::task::spawn_blocking(move || cache.load()).await.ok().flatten();
    let Some(cached) = cached else { return core };
    tracing::info!(
        tasks = cached.set.all().count(),
        revision = cached.set.revision,
        epoch = cached.set.epoch(),
        "assignments were kept"
    );
    core.with_cached(cached, tools.now())
}

/// Links, addresses and ports of running containers are known again before anything new is done.
async fn adopt(tools: &Tools, ours: &[Listed]) {
    let running = ours.iter().filter_map(|listed| Some((listed, listed.pid()?)));
    let mut keep = Vec::new();
    // All containers of a task are in one namespace; its own one holds the ports.
    let (own, others): (Vec<_>, Vec<_>) =
        running.partition(|(listed, _)| listed.companion.is_none());
    for (listed, pid) in own.into_iter().chain(others) {
        let id = listed.task.to_string();
        if keep.contains(&id) {
            continue;
        }
        if let Some(addresses) = listed.addresses
            && let Err(error) = tools.network.adopt(&id, addresses, pid).await
        {
            tracing::warn!(task_id = id, service_id = %listed.service, error = effects::chain(&error), "adopt network");
        }
        let who = Claimant {
            user: User::Task(listed.task),
            service: listed.service,
            service_name: listed.service_name.clone(),
        };
        keep.push(id);
        if listed.companion.is_some() {
            continue;
        }
        let container = core::container_id(listed.task, listed.found.attempt);
        tools.ports.adopt(&who, &container, &listed.claims).await;
    }
    if let Err(error) = tools.network.sweep(&keep).await {
        tracing::warn!(error = effects::chain(&error), "sweep the network");
    }
}

async fn stop_containers(tools: &Tools, graces: &BTreeMap<String, u64>) {
    let listed = match tools.runtime.list().await {
        Ok(listed) => listed,
        Err(error) => {
            tracing::error!(error = effects::chain(&error), "list containers to stop");
            return;
        }
    };
    let (others, own): (Vec<_>, Vec<_>) = listed.iter().partition(|info| is_companion(info));
    // What runs beside a task's own container outlives it.
    for containers in [own, others] {
        stop_all(tools, graces, &containers).await;
    }
    if let Err(error) = tools.network.sweep(&[]).await {
        tracing::warn!(error = effects::chain(&error), "sweep the network");
    }
}

async fn stop_all(tools: &Tools, graces: &BTreeMap<String, u64>, containers: &[&ContainerInfo]) {
    let stops = containers.iter().map(|info| async {
        let grace_ms = graces.get(&info.id).copied().unwrap_or(TaskTemplate::STOP_GRACE_MS);
        if matches!(info.state, ContainerState::Running { .. })
            && let Err(error) = tools.runtime.stop(&info.id, Duration::from_millis(grace_ms)).await
        {
            tracing::warn!(container = info.id, error = effects::chain(&error), "stop");
        }
        // Without its container the task begins a fresh attempt next time: our stop is no crash.
        if let Err(error) = tools.runtime.remove(&info.id).await {
            tracing::warn!(container = info.id, error = effects::chain(&error), "remove");
        }
    });
    futures::future::join_all(stops).await;
}
