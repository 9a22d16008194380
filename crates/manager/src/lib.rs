//! The manager: takes requests, plans what follows, tells nodes, hears from them.
//!
//! [`Manager::start`] makes its loops; the app puts [`Manager::control`] and
//! [`Manager::dispatch`] behind its sockets. Everything that runs is owned by
//! the manager and ends with [`Manager::stop`].
//!
//! What the cluster agreed on is in the store, decisions are the planner's;
//! here are the loops between them and the wire. Not here: sockets, TLS and
//! the node's own agent, which the app brings together.

mod api;
mod beats;
mod core;
pub mod dispatch;
mod leader;
mod refusal;
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
use warren_model::{ClusterId, NodeId, Time};
use warren_store::Store;

pub use crate::api::Control;
pub use crate::api::authorize::Principal;
pub use crate::dispatch::{Dispatch, STREAM_ID_KEY};
pub use crate::refusal::{HINT_KEY, Refusal};

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

/// What a manager needs.
pub struct Options {
    /// Open, with this node and the cluster in it.
    pub store: Store,
    pub clock: Arc<dyn Clock>,
    pub rng: Arc<dyn Rng>,
    /// The node that this manager runs on.
    pub node_id: NodeId,
    pub cluster_id: ClusterId,
    pub stop_node: StopNode,
}

/// A running manager. Dropping it ends its tasks too, without waiting for them.
pub struct Manager {
    core: Arc<core::Core>,
}

impl Manager {
    /// Starts the loops; needs a tokio runtime around it.
    pub fn start(options: Options) -> Self {
        let Options { store, clock, rng, node_id, cluster_id, stop_node } = options;
        let (reports, inbox) = mpsc::channel(dispatch::status::INBOX_MAX);
        // Read before any session can open: sessions are never behind of it.
        let seen = store.view();
        let core = Arc::new(core::Core {
            store,
            beats: beats::BeatBook::new(Time(clock.now_ms())),
            clock,
            rng,
            node_id,
            cluster_id,
            stop_node,
            sessions: dispatch::sessions::Sessions::default(),
            broker: stream::Broker::default(),
            reports,
            tasks: Tasks::new(),
        });
        core.tasks.spawn("leader", leader::run(Arc::clone(&core)));
        core.tasks.spawn("post", dispatch::post::run(Arc::clone(&core), seen));
        core.tasks.spawn("reports", dispatch::status::run(Arc::clone(&core), inbox));
        Self { core }
    }

    /// What people and their tools call; for the local socket.
    pub fn control(&self) -> Control {
        Control::new(Arc::clone(&self.core))
    }

    /// What agents call.
    pub fn dispatch(&self) -> Dispatch {
        Dispatch::new(Arc::clone(&self.core))
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
