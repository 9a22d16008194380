//! Names for containers, as the agent needs them from whoever serves them.
//!
//! A container may ask from before its first instruction until after its end,
//! also while this process is away; which names there are follows from the
//! node's table alone ([`crate::NetTable`]).
//!
//! Not here: answering.

use std::net::{IpAddr, Ipv4Addr};

use async_trait::async_trait;
use warren_model::{NetworkId, TaskId};
use warren_net::dns::{Resolv, Upstream};

/// Where containers ask: the gateway's address on every container's link.
pub const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));

/// A container that may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    pub task: TaskId,
    /// That its packets come from.
    pub addresses: warren_net::Addresses,
    /// Whose services it sees first.
    pub stack: Option<String>,
    /// In order of preference.
    pub networks: Vec<NetworkId>,
    /// Who answers what the cluster does not know.
    pub upstream: Upstream,
}

/// Who answers containers.
#[async_trait]
pub trait Names: Send + Sync + 'static {
    /// From now on `asker` is answered; in the place of what was known of its task.
    ///
    /// # Errors
    /// When it would not be; the container is not started then.
    async fn admit(&self, asker: Asker) -> Result<(), warren_net::Error>;

    /// The task's container has ended.
    async fn dismiss(&self, task: TaskId);

    /// These run since before this process, and no others.
    async fn restore(&self, askers: Vec<Asker>);
}

/// The `resolv.conf` of a container that asks [`SERVER`]; `host` is that of the host.
pub(crate) fn resolv_conf(host: &str, stack: Option<&str>) -> String {
    warren_net::dns::container_file(&Resolv::parse(host), &[SERVER], stack)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_ask_the_cluster_first() {
        let host = "nameserver 9.9.9.9\nsearch corp.test\noptions ndots:2\n";
        assert_eq!(
            resolv_conf(host, Some("shop")),
            "nameserver 169.254.1.1\n\
             search shop.warren.internal warren.internal corp.test\n\
             options ndots:2\n"
        );
        assert_eq!(resolv_conf("", None), "nameserver 169.254.1.1\nsearch warren.internal\n");
    }
}
