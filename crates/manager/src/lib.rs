//! The manager: takes requests, plans what follows, tells nodes, hears from them.
//!
//! [`Manager::start`] makes its loops; the app puts [`Manager::control`],
//! [`Manager::dispatch`] and [`Manager::join`] behind its sockets, and says with
//! each connection who is at its other end ([`Caller`]). Everything that runs is
//! owned by the manager and ends with [`Manager::stop`].
//!
//! What the cluster agreed on is in the store, decisions are the planner's;
//! here are the loops between them and the wire. Every manager serves all
//! calls; the leader alone plans, changes the group of managers, ends rotations
//! of the authority and writes backups. Not here: sockets, TLS and the node's
//! own agent, which the app brings together.

mod address;
mod api;
mod authority;
mod backup;
mod beats;
mod core;
mod describe;
pub mod dispatch;
mod founding;
mod join;
mod leader;
mod members;
mod metrics;
mod peers;
mod quorum;
mod reach;
mod refusal;
mod relays;
mod stream;
#[cfg(test)]
mod testing;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tonic::transport::Server;
use warren_base::clock::Clock;
use warren_base::rng::Rng;
use warren_base::tasks::Tasks;
use warren_model::{ClusterId, NodeId};
use warren_store::Store;

pub use crate::api::Control;
pub use crate::api::authorize::{Caller, RELAYED_KEY};
pub use crate::api::nodes::WARNING_KEY;
pub use crate::dispatch::{Dispatch, STREAM_ID_KEY};
pub use crate::founding::{Founding, Pools, Terms, founding};
pub use crate::join::JoinService;
pub use crate::members::VOTERS_MAX;
pub use crate::metrics::Metrics;
pub use crate::peers::Peers;
pub use crate::refusal::{HINT_KEY, Mark, REMOVED_KEY, Refusal};

/// Of one stream's bytes that nobody has read yet; HTTP/2's default.
pub const STREAM_WINDOW_BYTES: u32 = 64 << 10;
/// Of all streams of a connection together: far more than one, so that a person who does not read
/// on holds up their own stream alone, never a node's session. Both ends of a connection need it.
pub const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
/// A session and the streams that an agent serves at once, or the calls of a busy tool.
const CALLS_MAX: u32 = 2048;

/// A gRPC server with the limits that the manager's services count on.
pub fn server() -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(CALLS_MAX)
}

/// Asks the daemon to stop, with its containers or without. Returns at once: the answer to the
/// caller goes out first.
pub type StopNode = Arc<dyn Fn(bool) + Send + Sync>;

/// Sets the log filter of the daemon and returns the one before, or why it is none.
pub type SetLogLevel = Arc<dyn Fn(&str) -> Result<String, String> + Send + Sync>;

/// What a manager needs.
pub struct Options {
    /// Open, with this node and the cluster in it.
    pub store: Store,
    pub clock: Arc<dyn Clock>,
    pub rng: Arc<dyn Rng>,
    /// The node that this manager runs on.
    pub node_id: NodeId,
    pub cluster_id: ClusterId,
    /// `host:port` that others reach this manager at; empty: it is for itself.
    pub advertise: String,
    /// None for a manager without others.
    pub peers: Option<Arc<dyn Peers>>,
    pub stop_node: StopNode,
    pub set_log_level: SetLogLevel,
}

/// A running manager. Dropping it ends its tasks too, without waiting for them.
pub struct Manager {
    core: Arc<core::Core>,
}

impl Manager {
    /// Starts the loops; needs a tokio runtime around it.
    pub fn start(options: Options) -> Self {
        let (reports, inbox) = mpsc::channel(dispatch::status::INBOX_MAX);
        // Read before any session can open: sessions are never behind of it.
        let seen = options.store.view();
        let core = Arc::new(core::Core {
            beats: beats::BeatBook::new(options.clock.monotonic_ms()),
            touch: beats::touch::Touch::new(),
            store: options.store,
            clock: options.clock,
            rng: options.rng,
            node_id: options.node_id,
            cluster_id: options.cluster_id,
            advertise: options.advertise,
            peers: options.peers,
            stop_node: options.stop_node,
            set_log_level: options.set_log_level,
            sessions: dispatch::sessions::Sessions::default(),
            broker: stream::Broker::default(),
            door: join::Door::default(),
            reach: reach::Reach::default(),
            cuts: relays::book::CutBook::default(),
            metrics: Metrics::default(),
            reports,
            tasks: Tasks::new(),
            span: tracing::Span::current(),
        });
        let share = || Arc::clone(&core);
        let tasks = &core.tasks;
        tasks.spawn("leader", leader::while_leading(share(), leader::plan));
        tasks.spawn("members", leader::while_leading(share(), members::run::run));
        tasks.spawn("authority", leader::while_leading(share(), authority::run));
        tasks.spawn("relays", leader::while_leading(share(), relays::run::run));
        tasks.spawn("backups", leader::while_leading(share(), backup::run));
        tasks.spawn("post", dispatch::post::run(share(), seen));
        tasks.spawn("reports", dispatch::status::run(share(), inbox));
        tasks.spawn("touch", beats::touch::follow(share()));
        tasks.spawn("beats", beats::tell::run(share()));
        tasks.spawn("downs", beats::down::run(share()));
        tasks.spawn("peer beats", beats::tell::listen(share()));
        tasks.spawn("address", address::run(share()));
        Self { core }
    }

    /// What people and their tools call, on the local socket and the TLS port.
    pub fn control(&self) -> Control {
        Control::new(Arc::clone(&self.core))
    }

    /// What agents call.
    pub fn dispatch(&self) -> Dispatch {
        Dispatch::new(Arc::clone(&self.core))
    }

    /// What machines call that want to be nodes, and nodes that want to stay it; on the TLS port.
    pub fn join(&self) -> JoinService {
        JoinService::new(Arc::clone(&self.core))
    }

    /// What this manager counts.
    pub fn metrics(&self) -> &Metrics {
        &self.core.metrics
    }

    /// Ends sessions, streams and loops; says whether all ended within `grace`.
    pub async fn stop(&self, grace: Duration) -> bool {
        self.core.tasks.stop(grace).await
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // Tasks hold the core that owns them: without this they would keep each other alive.
        self.core.tasks.stopping().cancel();
    }
}
