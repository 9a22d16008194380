//! The network of one node: namespaces for containers, published ports.
//!
//! Pure part: [`Table`] in, netlink batches out (`rules`). The edge executes
//! them. The whole table is given each time, never a delta, so a missed
//! message heals itself.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Where a node's names and addresses come from.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// Short and unique per node on one host (8 characters `[a-z0-9]`): names of links and tables derive from it.
    pub node_key: String,
    /// The cluster's container pool, e.g. 10.128.0.0/10: masqueraded when it leaves.
    pub pool: (Ipv4Addr, u8),
    /// Prepared namespaces kept ready.
    pub prepared: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// One published port and who answers it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublishedPort {
    pub protocol: Protocol,
    /// `0.0.0.0` is every local address.
    pub bind: Ipv4Addr,
    pub port: u16,
    /// Ready containers; none means that connections are refused.
    pub backends: Vec<SocketAddrV4>,
}

/// Everything the kernel should hold for this node's services.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    pub published: Vec<PublishedPort>,
}

/// A container's network namespace, ready to be entered.
#[derive(Debug, Clone)]
pub struct Sandbox {
    pub netns: Arc<OwnedFd>,
    pub address: Ipv4Addr,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("port {port}/{protocol} on {bind} is taken by {holder}")]
    PortTaken { protocol: &'static str, bind: Ipv4Addr, port: u16, holder: String },
    #[error("{action}")]
    Io { action: String, source: std::io::Error },
    #[error("{0}")]
    Unsupported(String),
}
// API that the agent uses (implement in modules, re-export nothing twice):
// impl Net {
//   pub async fn open(config: NetConfig) -> Result<Net, Error>;
//   /// Wires a prepared namespace to `address` for container `id`; idempotent by id.
//   pub async fn attach(&self, id: &str, address: Ipv4Addr) -> Result<Sandbox, Error>;
//   /// After a restart of the daemon: container `id` of process `pid` still holds its namespace and `address`.
//   pub async fn adopt(&self, id: &str, address: Ipv4Addr, pid: u32) -> Result<(), Error>;
//   /// Removes the link and route of `id`. Unknown ids are fine.
//   pub async fn detach(&self, id: &str) -> Result<(), Error>;
//   /// Makes the kernel hold exactly `table`.
//   pub async fn apply(&self, table: Table) -> Result<(), Error>;
//   /// Reserves a published port by a bound, non-listening socket.
//   pub fn reserve(&self, protocol: Protocol, bind: Ipv4Addr, port: u16) -> Result<OwnedFd, Error>;
//   /// Removes links of containers that are not in `keep` (after a crash).
//   pub async fn sweep(&self, keep: &[String]) -> Result<(), Error>;
//   /// Removes everything of this node from the kernel.
//   pub async fn clean(&self) -> Result<(), Error>;
// }
