//! Who answers containers' questions about names, as the agent needs it.
//!
//! Not here: what is answered; the answering itself is the data plane's.

use async_trait::async_trait;
use warren_model::id::{NetworkId, TaskId};
use warren_net::dns::Upstream;

/// A container that asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    /// Whose container it is.
    pub task: TaskId,
    /// Where its questions come from.
    pub addresses: warren_net::Addresses,
    /// Its stack: whose services it sees first.
    pub stack: Option<String>,
    /// In order of preference.
    pub networks: Vec<NetworkId>,
    /// Who answers what the cluster does not know.
    pub upstream: Upstream,
}

/// The name server of one node.
#[async_trait]
pub trait Names: Send + Sync + 'static {
    /// Returns once the container is answered: before its first packet.
    ///
    /// # Errors
    /// It was not taken in time. It will be taken later, unless it is dismissed.
    async fn admit(&self, asker: Asker) -> Result<(), warren_net::Error>;

    /// The container is gone.
    async fn dismiss(&self, task: TaskId);

    /// These are all containers of the node, after a restart.
    async fn restore(&self, askers: Vec<Asker>);
}
