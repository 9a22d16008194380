//! The rooms of a running node: made in order, taken apart in the opposite one.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use warren_agent::Agent;
use warren_base::clock::{Clock, RealClock};
use warren_base::rng::{Rng, SystemRng};
use warren_manager::{Manager, StopNode};
use warren_model::cluster::{Cluster, Subnet};
use warren_model::node::{Availability, Node as Member, NodeStatus};
use warren_net::{Net, NetConfig};
use warren_proto::v1::control_server::ControlServer;
use warren_proto::v1::dispatch_server::DispatchServer;
use warren_runtime::native::{self, Native};
use warren_state::change::{Mutation, Transaction};
use warren_store::Store;

use super::{Begin, failed, machine, wire};
use crate::cli::failure::Failure;
use crate::cli::probe;
use crate::daemon;
use crate::identity::Identity;
use crate::settings::NodeSettings;

/// Of a cluster's first manager. Numbers are never given twice.
const FIRST_MANAGER: u64 = 1;
/// Network namespaces kept ready: a burst of starts finds some, an idle node holds little.
const NAMESPACES_READY: usize = 4;
/// For open calls and streams to end when the node stops.
const DRAIN_GRACE: Duration = Duration::from_secs(5);
/// A message between agent and manager: the reports of a node with thousands of tasks.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// For the agent to be heard by its own manager. It happens within milliseconds, but
/// adopting thousands of containers on a busy machine comes first.
const READY_MAX: Duration = Duration::from_secs(120);

type Serving = JoinHandle<Result<(), tonic::transport::Error>>;

pub(super) struct Node {
    store: Store,
    manager: Manager,
    agent: Agent,
    runtime: Arc<Native>,
    net: Arc<Net>,
    servers: Vec<(oneshot::Sender<()>, Serving)>,
}

impl Node {
    /// Starts everything and returns once the node answers a command that its agent carries out.
    pub(super) async fn start(
        begin: Begin,
        settings: &NodeSettings,
        identity: Identity,
        stop_node: StopNode,
    ) -> Result<Self, Failure> {
        let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
        let rng: Arc<dyn Rng> = Arc::new(SystemRng);
        let store = ledger(begin, settings, identity, &clock, &rng).await?;
        let cluster = store.view().cluster().cloned();
        let cluster = cluster.ok_or_else(|| Failure::failed("the store holds no cluster"))?;
        let manager = Manager::start(warren_manager::Options {
            store: store.clone(),
            clock: Arc::clone(&clock),
            rng: Arc::clone(&rng),
            node_id: identity.node,
            cluster_id: identity.cluster,
            stop_node,
        });
        let (dialer, incoming) = wire::pair();
        let dispatch =
            DispatchServer::new(manager.dispatch()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let mut servers = vec![serve(Server::builder().add_service(dispatch), incoming)];
        let tools = Tools::open(settings, identity, &cluster).await?;
        let (runtime, net) = (Arc::clone(&tools.runtime), Arc::clone(&tools.net));
        let agent = Agent::start(warren_agent::Options {
            node_id: identity.node,
            description: machine::describe(),
            runtime: tools.runtime,
            images: tools.images,
            network: tools.net,
            data_dir: settings.data_dir.clone(),
            pool: (cluster.pool.address, cluster.pool.prefix),
            clock,
            rng,
            connect: Arc::new(dialer),
        });
        let agent = agent.await.map_err(|e| failed(&e))?;
        let socket = settings.socket();
        let listener: UnixListener = daemon::bind(&socket)?;
        let control = Server::builder().add_service(ControlServer::new(manager.control()));
        servers.push(serve(control, UnixListenerStream::new(listener)));
        probe::until_answered(&socket, READY_MAX).await?;
        Ok(Self { store, manager, agent, runtime, net, servers })
    }

    /// Resolves when the node can go on no longer.
    pub(super) async fn broken(&mut self) -> Failure {
        let mut ended = self.store.ended();
        // An error means that it ended without a word.
        let _ = ended.wait_for(|ended| *ended).await;
        Failure::failed("the store has ended; the log tells why")
    }

    /// Agent first, while its last reports still find a manager; the store last.
    pub(super) async fn stop(self, with_containers: bool) {
        let Self { store, manager, agent, runtime, net, servers } = self;
        agent.stop(with_containers).await;
        if with_containers {
            if let Err(error) = net.clean().await {
                tracing::warn!(%error, "network of this node was not removed");
            }
            if let Err(error) = runtime.dispose() {
                tracing::warn!(error = failed(&error).message, "control groups were not removed");
            }
        }
        let (orders, serving): (Vec<_>, Vec<_>) = servers.into_iter().unzip();
        for order in orders {
            // An error means that it has ended already.
            let _ = order.send(());
        }
        if !manager.stop(DRAIN_GRACE).await {
            tracing::warn!("some calls did not end in time");
        }
        let drained = async {
            for server in serving {
                // It was told to end: how it does no longer matters.
                let _ = server.await;
            }
        };
        if tokio::time::timeout(DRAIN_GRACE, drained).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
        store.shutdown().await;
    }
}

/// Serves until told to end, calls under way included.
fn serve<I, IO, IE>(
    router: tonic::transport::server::Router,
    incoming: I,
) -> (oneshot::Sender<()>, Serving)
where
    I: tokio_stream::Stream<Item = Result<IO, IE>> + Send + 'static,
    IO: tokio::io::AsyncRead
        + tokio::io::AsyncWrite
        + tonic::transport::server::Connected
        + Unpin
        + Send
        + 'static,
    IO::ConnectInfo: Clone + Send + Sync + 'static,
    IE: Into<Box<dyn std::error::Error + Send + Sync>> + 'static + Send,
{
    let (order, ordered) = oneshot::channel();
    let end = async {
        // Without anybody left to give the order it is time to end as well.
        let _ = ordered.await;
    };
    (order, tokio::spawn(router.serve_with_incoming_shutdown(incoming, end)))
}

/// The store of the node: opened, or made and given its first transaction.
async fn ledger(
    begin: Begin,
    settings: &NodeSettings,
    identity: Identity,
    clock: &Arc<dyn Clock>,
    rng: &Arc<dyn Rng>,
) -> Result<Store, Failure> {
    let folder = settings.data_dir.join("store");
    let key_file = settings.data_dir.join("node.key");
    if begin == Begin::Init {
        sweep(&folder)?;
    }
    let (clock, rng) = (Arc::clone(clock), Arc::clone(rng));
    let options = warren_store::Options::new(&folder, &key_file, FIRST_MANAGER, clock, rng);
    let options = options.map_err(|e| failed(&e))?;
    match begin {
        Begin::Run => Store::open(options).await.map_err(|e| failed(&e)),
        Begin::Init => {
            let store = Store::create(options).await.map_err(|e| failed(&e))?;
            store.propose(founding(identity)).await.map_err(|e| failed(&e))?;
            // Last of all: from here on the node is one.
            identity.write(&settings.data_dir)?;
            Ok(store)
        }
    }
}

/// What an init that was interrupted left: nobody was promised anything of it.
fn sweep(folder: &Path) -> Result<(), Failure> {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Failure::failed(format!(
            "remove what an earlier init left in {}: {e}",
            folder.display()
        ))),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A cluster and its first node, which has the first block of the pool.
fn founding(identity: Identity) -> Transaction {
    let cluster = Cluster::new(identity.cluster);
    let block = Subnet { address: cluster.pool.address, prefix: cluster.block_prefix };
    let node = Member {
        id: identity.node,
        description: machine::describe(),
        manager: true,
        worker: true,
        availability: Availability::Active,
        // Until its agent is heard of.
        status: NodeStatus::Down,
        blocks: vec![block],
        revision: 0,
    };
    Transaction {
        request: None,
        expects: Vec::new(),
        mutations: vec![Mutation::SetCluster(cluster), Mutation::CreateNode(node)],
    }
}

/// What the agent works with.
struct Tools {
    runtime: Arc<Native>,
    images: Arc<warren_image::Store>,
    net: Arc<Net>,
}

impl Tools {
    async fn open(
        settings: &NodeSettings,
        identity: Identity,
        cluster: &Cluster,
    ) -> Result<Self, Failure> {
        let runtime = Native::open(native::Options {
            run_dir: settings.run_dir.clone(),
            data_dir: settings.data_dir.clone(),
            node_key: identity.key(),
        });
        let images = warren_image::Store::open(warren_image::StoreOptions {
            dir: settings.data_dir.join("images"),
            docker_config: settings.data_dir.join("docker/config.json"),
            insecure: settings.insecure_registries.clone(),
        });
        let net = Net::open(NetConfig {
            node_key: identity.key(),
            pool: (cluster.pool.address, cluster.pool.prefix),
            prepared: NAMESPACES_READY,
        });
        Ok(Self {
            runtime: Arc::new(runtime.map_err(|e| failed(&e))?),
            images: Arc::new(images.map_err(|e| failed(&e))?),
            net: Arc::new(net.await.map_err(|e| failed(&e))?),
        })
    }
}
