//! The cluster itself: who it is and its settings.

use std::net::Ipv4Addr;

use crate::id::ClusterId;

/// One per state. Settings have defaults that suit a small cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    pub id: ClusterId,
    /// Ended tasks kept per slot, for `service ps` and post-mortems.
    pub history_limit: u32,
    /// Addresses of containers; every node gets blocks of it.
    pub pool: Subnet,
    /// Prefix length of a node's block.
    pub block_prefix: u8,
}

impl Cluster {
    pub fn new(id: ClusterId) -> Self {
        Self {
            id,
            history_limit: 5,
            pool: Subnet { address: Ipv4Addr::new(10, 128, 0, 0), prefix: 10 },
            block_prefix: 24,
        }
    }
}

/// An IPv4 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    pub address: Ipv4Addr,
    pub prefix: u8,
}

impl Subnet {
    /// Addresses in the network, edges included.
    pub fn size(&self) -> u64 {
        1 << (32 - u32::from(self.prefix.min(32)))
    }

    /// The `n`th address, `None` past the end.
    pub fn nth(&self, n: u64) -> Option<Ipv4Addr> {
        let offset = u32::try_from(n).ok().filter(|_| n < self.size())?;
        u32::from(self.address).checked_add(offset).map(Ipv4Addr::from)
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let first = u64::from(u32::from(self.address));
        (first..first + self.size()).contains(&u64::from(u32::from(address)))
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}
