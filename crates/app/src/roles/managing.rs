//! A manager in this process: store, manager, and everything that serves them.
//!
//! Made when the node becomes a manager, taken apart when it ceases to be one
//! or ends. Nothing outside knows more of it than [`Managing`].

pub(super) mod lock;
mod peers;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use warren_agent::LocalManager;
use warren_manager::{Manager, server};
use warren_model::ClusterId;
use warren_proto::v1::control_server::ControlServer;
use warren_proto::v1::dispatch_server::DispatchServer;
use warren_proto::v1::join_server::JoinServer;
use warren_store::Store;
use warren_store::transport::tcp::Tcp;

use super::door::Behind;
use super::listener::{self, Limits};
use super::node::Shared;
use super::wire::{self, Incoming};
use super::{failed, listener::Arrivals};
use crate::cli::failure::Failure;
use crate::settings::Profile;

/// For open calls and streams to end.
const DRAIN_GRACE: Duration = Duration::from_secs(5);
/// A message between agent and manager: the reports of a node with thousands of tasks.
pub(super) const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// A message of a person: a spec is small, an image comes in pieces.
const REQUEST_BYTES_MAX: usize = 4 << 20;
/// Headers of a call.
const HEADERS_BYTES_MAX: u32 = 16 << 10;
/// A connection that says nothing is asked whether it is there, and closed when it is not.
/// Agents beat twice a second by themselves.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);
const KEEPALIVE_MAX: Duration = Duration::from_secs(10);

pub(super) struct Managing {
    pub(super) store: Store,
    pub(super) manager: Manager,
    pub(super) number: u64,
    stop: CancellationToken,
    serving: TaskTracker,
}

/// How the store of this node comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    /// The first manager of a new cluster.
    Create,
    /// Empty, and filled by the others.
    Join,
    Open,
}

/// The store of manager `number`.
///
/// # Errors
/// What is in the way of it.
pub(super) async fn ledger(
    shared: &Arc<Shared>,
    number: u64,
    begin: Begin,
) -> Result<Store, Failure> {
    let (clock, rng) = (Arc::clone(&shared.clock), Arc::clone(&shared.rng));
    let (folder, key) = (shared.files.store(), shared.files.key());
    let mut options =
        warren_store::Options::new(&folder, &key, number, clock, rng).map_err(|e| failed(&e))?;
    options.key = warren_store::KeySource::Given(Arc::clone(&shared.key));
    options.address = shared.advertise.to_string();
    let dial = Arc::new(peers::Raft::new(Arc::clone(shared)));
    options.transport = Some(Arc::new(Tcp::new(number, dial)));
    options.election = match shared.settings.profile {
        Profile::Lan => warren_store::Election::Lan,
        Profile::Wan => warren_store::Election::Wan,
    };
    let store = match begin {
        Begin::Create => Store::create(options).await,
        Begin::Join => Store::join(options).await,
        Begin::Open => Store::open(options).await,
    };
    store.map_err(|e| failed(&e))
}

impl Managing {
    /// Starts the manager of this node on its store.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub(super) fn start(
        shared: &Arc<Shared>,
        listener: TcpListener,
        store: Store,
        number: u64,
        cluster: ClusterId,
    ) -> Result<Self, Failure> {
        let ways = peers::Ways::new(Arc::clone(shared));
        let manager = Manager::start(warren_manager::Options {
            store: store.clone(),
            clock: Arc::clone(&shared.clock),
            rng: Arc::clone(&shared.rng),
            node_id: shared.node,
            cluster_id: cluster,
            advertise: shared.advertise.to_string(),
            peers: Some(Arc::new(ways)),
            stop_node: Arc::clone(&shared.stop_node),
            set_log_level: Arc::clone(&shared.set_log_level),
        });
        let stop = CancellationToken::new();
        let managing = Self { store, manager, number, stop, serving: TaskTracker::new() };
        let metrics = shared.metrics.listener.clone();
        let credentials = shared.dialer.credentials().clone();
        let arrivals = listener::serve(
            listener,
            credentials,
            Limits::default(),
            metrics,
            managing.stop.clone(),
        );
        managing.serve(shared, arrivals.map_err(|e| failed(&e))?);
        Ok(managing)
    }

    fn serve(&self, shared: &Arc<Shared>, arrivals: Arrivals) {
        let (pipe, incoming) = wire::pair();
        shared.store.store(Some(Arc::new(self.store.clone())));
        shared.pipe.store(Some(Arc::new(pipe)));
        shared.manager_metrics.store(Some(Arc::new(self.manager.metrics().clone())));
        self.spawn("own agent", self.serve_own(incoming));
        self.spawn("grpc", self.serve_grpc(arrivals.grpc));
        self.spawn("peers", peers::serve(arrivals.peers, self.store.clone()));
        self.spawn("local manager", watch_leader(Arc::clone(shared), self.store.clone()));
        self.spawn("key lock", lock::keep(Arc::clone(shared), self.store.clone()));
        shared.door.set(Behind::Manager(ControlServer::new(self.manager.control())));
    }

    /// Runs until it ends or the manager is stopped.
    fn spawn(&self, what: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.serving.spawn(async move {
            tokio::select! {
                () = task => tracing::debug!(what, "serves no more"),
                () = stop.cancelled() => {}
            }
        });
    }

    fn serve_own(&self, incoming: Incoming) -> impl Future<Output = ()> + Send + use<> {
        let dispatch = DispatchServer::new(self.manager.dispatch())
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let join = JoinServer::new(self.manager.join());
        let served = server().add_service(dispatch).add_service(join);
        let served =
            served.serve_with_incoming_shutdown(incoming, self.stop.clone().cancelled_owned());
        async move { ended("own agent", served.await) }
    }

    fn serve_grpc(
        &self,
        arrivals: tokio::sync::mpsc::Receiver<listener::Connection>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let dispatch = DispatchServer::new(self.manager.dispatch())
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let control =
            ControlServer::new(self.manager.control()).max_decoding_message_size(REQUEST_BYTES_MAX);
        let join =
            JoinServer::new(self.manager.join()).max_decoding_message_size(REQUEST_BYTES_MAX);
        let served = guarded(server())
            .add_service(control)
            .add_service(dispatch)
            .add_service(join)
            .serve_with_incoming_shutdown(
                ReceiverStream::new(arrivals).map(Ok::<_, std::io::Error>),
                self.stop.clone().cancelled_owned(),
            );
        async move { ended("grpc", served.await) }
    }

    /// Ends it: others are told, calls under way are given a while. Containers go on, and the
    /// agent finds another manager.
    pub(super) async fn stop(self, shared: &Shared) {
        shared.pipe.store(None);
        shared.local.send_replace(LocalManager::Absent);
        shared.door.set(Behind::Nobody);
        // While it can still be served by: the next leader takes over before anybody notices.
        if let Err(error) = self.store.hand_over(None).await {
            tracing::debug!(%error, "leadership was not handed over");
        }
        if !self.manager.stop(DRAIN_GRACE).await {
            tracing::warn!("some calls did not end in time");
        }
        self.stop.cancel();
        self.serving.close();
        if tokio::time::timeout(DRAIN_GRACE, self.serving.wait()).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
        shared.store.store(None);
        shared.manager_metrics.store(None);
        self.store.shutdown().await;
    }
}

/// Limits for callers from other machines.
fn guarded(server: Server) -> Server {
    server
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_MAX))
        .http2_max_header_list_size(HEADERS_BYTES_MAX)
}

fn ended(what: &str, outcome: Result<(), tonic::transport::Error>) {
    if let Err(error) = outcome {
        tracing::error!(what, error = failed(&error).message, "serving ended");
    }
}

/// Tells the agent whether the manager here is good for anything.
async fn watch_leader(shared: Arc<Shared>, store: Store) {
    let mut leader = store.leader_number();
    loop {
        let led = match *leader.borrow_and_update() {
            Some(_) => LocalManager::Led,
            None => LocalManager::Leaderless,
        };
        shared.local.send_if_modified(|local| std::mem::replace(local, led) != led);
        if leader.changed().await.is_err() {
            shared.local.send_replace(LocalManager::Leaderless);
            return;
        }
    }
}
