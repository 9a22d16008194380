//! The network of one node: namespaces for containers, published ports.
//!
//! Pure part: [`Table`] in, netlink batches out (`rules`). The edge executes
//! them. The whole table is given each time, never a delta, so a missed
//! message heals itself.
//!
//! [`Net`] is the edge. Links (`link`, `sandbox`, `wire`) and the packet filter
//! (`firewall`, `conntrack`) are driven by raw netlink (`netlink`): no external
//! program, no C library.
//!
//! Networks between nodes (`overlay`, `routes`) are kernel state alone: a WireGuard device is
//! made and fed by somebody else.
//!
//! Not here: names, how addresses are chosen.

#![deny(missing_docs)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::{fmt, io};

mod conntrack;
pub mod dns;
mod docker;
mod entries;
mod features;
mod firewall;
mod handle;
mod link;
mod namespace;
mod netlink;
#[cfg(test)]
mod netlink_fuzz;
mod node;
mod overlay;
mod probe;
mod reserve;
mod routes;
mod rules;
mod sandbox;
mod table;
mod watch;
mod wire;
mod wireguard;

pub use entries::{Entries, Keyed};
pub use features::{Blocker, Features, features, link_kinds};
pub use handle::Net;
pub use node::{name_server, tunnel_name, underlay_mtu};
pub use probe::{Answer, PROBES_MAX, Probe, Question, Round, Said, ask_names, link_mtu, probe};
pub use table::{
    Action, Backend, Carrier, Clause, Connections, Count, Direction, Frontend, Group, Member,
    Networks, Overlay, PeerSet, Peers, Policy, PortRange, Service, Subnet, Table, Traffic,
};

pub use wireguard::{Wireguard, WireguardPeer, WireguardState, WireguardWatch};

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

/// Transport of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Protocol {
    /// As people and `/proc/net` write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// As IP headers have it.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One published port and who answers it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublishedPort {
    /// Tcp or udp.
    pub protocol: Protocol,
    /// `0.0.0.0` is every local address.
    pub bind: Ipv4Addr,
    /// What clients connect to.
    pub port: u16,
    /// Ready containers; none means that connections are refused.
    pub backends: Vec<SocketAddrV4>,
}

/// A container's network namespace, ready to be entered.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// To enter it by `setns`.
    pub netns: Arc<OwnedFd>,
    /// The container's own address.
    pub address: Ipv4Addr,
    /// Likewise of IPv6, if it has one.
    pub address6: Option<Ipv6Addr>,
}

/// A container's own addresses. One of IPv4 alone is made from that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// From the node's block of the cluster's pool.
    pub v4: Ipv4Addr,
    /// From its block of the IPv6 pool.
    pub v6: Option<Ipv6Addr>,
}

impl From<Ipv4Addr> for Addresses {
    fn from(v4: Ipv4Addr) -> Self {
        Self { v4, v6: None }
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.v6 {
            Some(v6) => write!(f, "{} and {v6}", self.v4),
            None => self.v4.fmt(f),
        }
    }
}

/// Why the network could not be made so.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else has the port.
    #[error("port {port}/{protocol} on {bind} is taken by {holder}")]
    PortTaken {
        /// `tcp` or `udp`
        protocol: &'static str,
        /// The address that was to be bound.
        bind: Ipv4Addr,
        /// The port that was to be bound.
        port: u16,
        /// For example `nginx (pid 123)`.
        holder: String,
    },
    /// A port can only be had on addresses that the host has.
    #[error("port {port}/{protocol} on {bind}: the node has no such address")]
    NoAddress {
        /// `tcp` or `udp`
        protocol: &'static str,
        /// The address that was to be bound.
        bind: Ipv4Addr,
        /// The port that was to be bound.
        port: u16,
    },
    /// The kernel refused.
    #[error("{action}")]
    Io {
        /// What was tried, and with what.
        action: String,
        /// Why it was refused.
        source: io::Error,
    },
    /// The rules hold; something of the routes and links to other nodes does not.
    #[error("the way to other nodes")]
    Overlay(#[source] Box<Self>),
    /// The kernel lacks something.
    #[error("{0}")]
    Unsupported(String),
}

impl Error {
    pub(crate) fn io(action: impl Into<String>, source: io::Error) -> Self {
        Self::Io { action: action.into(), source }
    }

    /// The same error for another caller who waits for the same work.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::PortTaken { protocol, bind, port, holder } => {
                Self::PortTaken { protocol, bind: *bind, port: *port, holder: holder.clone() }
            }
            Self::NoAddress { protocol, bind, port } => {
                Self::NoAddress { protocol, bind: *bind, port: *port }
            }
            Self::Io { action, source } => {
                let source = match source.raw_os_error() {
                    Some(code) => io::Error::from_raw_os_error(code),
                    None => io::Error::new(source.kind(), source.to_string()),
                };
                Self::Io { action: action.clone(), source }
            }
            Self::Overlay(source) => Self::Overlay(Box::new(source.again())),
            Self::Unsupported(text) => Self::Unsupported(text.clone()),
        }
    }
}

/// What names of this node's links start with.
fn link_prefix(node_key: &str) -> String {
    format!("w{}", node_key.get(..6).unwrap_or(node_key))
}

/// Likewise of links of containers: rules tell them by it. Room for seven digits in the kernel's
/// fifteen characters.
pub(crate) fn container_prefix(node_key: &str) -> String {
    format!("{}c", link_prefix(node_key))
}

/// Whether this kernel has IPv6, also if nobody uses it.
pub(crate) fn has_ipv6() -> bool {
    std::path::Path::new("/proc/sys/net/ipv6").exists()
}

/// Whether links of this host may have IPv6: the kernel has it, and nobody turned it off
/// (`net.ipv6.conf.all.disable_ipv6`). In the calling thread's network namespace.
pub fn ipv6_enabled() -> bool {
    let on = |of: &str| {
        let path = format!("/proc/sys/net/ipv6/conf/{of}/disable_ipv6");
        std::fs::read_to_string(path).is_ok_and(|off| off.trim() == "0")
    };
    on("all") && on("default")
}

/// FNV-1a: numbers that differ where node keys do.
pub(crate) fn fnv(node_key: &str) -> u32 {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    node_key.bytes().fold(0x811c_9dc5, step)
}

/// Without the bits behind the prefix, as the kernel keeps it.
pub(crate) fn subnet_of((address, len): Subnet) -> Subnet {
    match address {
        IpAddr::V4(v4) => {
            let len = len.min(32);
            let bits = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
            (Ipv4Addr::from_bits(v4.to_bits() & bits).into(), len)
        }
        IpAddr::V6(v6) => {
            let len = len.min(128);
            let bits = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
            (Ipv6Addr::from_bits(v6.to_bits() & bits).into(), len)
        }
    }
}

pub(crate) fn in_network(address: Ipv4Addr, (network, len): (Ipv4Addr, u8)) -> bool {
    let bits = u32::MAX.checked_shl(32 - u32::from(len.min(32))).unwrap_or(0);
    address.to_bits() & bits == network.to_bits() & bits
}
