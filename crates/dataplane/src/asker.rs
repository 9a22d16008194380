//! A container of this node, as whoever answers it must know it.

use warren_model::id::{NetworkId, TaskId};
use warren_net::dns::{self, Upstream};

/// A container that asks for names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    /// Whose container it is: names it among all.
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

impl Asker {
    /// As the zone knows it.
    pub(crate) fn in_zone(&self) -> dns::Asker {
        let networks = self.networks.iter().map(|network| dns::NetworkId(*network.as_bytes()));
        dns::Asker {
            addresses: dns::Addresses { v4: Some(self.addresses.v4), v6: self.addresses.v6 },
            stack: self.stack.as_deref().map(Into::into),
            networks: networks.collect(),
            upstream: self.upstream.clone(),
        }
    }
}
