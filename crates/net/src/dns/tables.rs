//! What names are made of: services, their tasks, and who asks.
//!
//! Plain values that somebody else keeps; [`super::Zone`] indexes them. Names may have any
//! case. A label longer than 63 bytes or a name longer than 253 is never answered.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use warren_model::id::ServiceId;

use crate::Protocol;

/// Everything that names depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// Where the cluster takes addresses from: reverse names in here are never forwarded.
    pub pools: Vec<Prefix>,
    /// In any order; of one that is named twice the last counts.
    pub services: Vec<Service>,
    /// Containers of this node.
    pub askers: Vec<Asker>,
}

/// A network: those who share one may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(pub [u8; 10]);

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// Any address in it.
    pub address: IpAddr,
    /// Leading bits that are common to all, at most 32 or 128.
    pub len: u8,
}

impl Prefix {
    /// Whether `address` is in it; never for one of the other family.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                let differ = u128::from(ours.to_bits() ^ theirs.to_bits());
                differ >> 32u8.saturating_sub(self.len) == 0
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                let differ = ours.to_bits() ^ theirs.to_bits();
                differ.checked_shr(128 - u32::from(self.len.min(128))).unwrap_or(0) == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// One service with its tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Whatever it is called.
    pub id: ServiceId,
    /// A label; within its stack, if it has one.
    pub name: Box<str>,
    /// The stack that it belongs to, a label.
    pub stack: Option<Box<str>>,
    /// The networks it is on.
    pub attachments: Vec<Attachment>,
    /// For SRV.
    pub ports: Vec<NamedPort>,
    /// All that exist, ready or not.
    pub tasks: Vec<Task>,
}

/// A service on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Where.
    pub network: NetworkId,
    /// What its name leads to there.
    pub endpoint: Endpoint,
    /// Further names there; may have several labels.
    pub aliases: Vec<Box<str>>,
}

/// What a service's name leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// The virtual address, whether or not a task is behind it: it refuses by itself.
    Vip(Addresses),
    /// The addresses of its tasks (`dnsrr`).
    Tasks,
}

/// At most one address of each family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Addresses {
    /// For A.
    pub v4: Option<Ipv4Addr>,
    /// For AAAA.
    pub v6: Option<Ipv6Addr>,
}

impl Addresses {
    pub(crate) fn each(self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

/// A port that has a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPort {
    /// A label, without the underscore.
    pub name: Box<str>,
    /// Of the port.
    pub protocol: Protocol,
    /// In the container, and at the virtual address.
    pub port: u16,
}

/// One task of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Tasks may share one: while it is being renewed, or on every node for a global service.
    pub slot: u32,
    /// A name of its own, where one was asked for.
    pub hostname: Option<Box<str>>,
    /// Of its container.
    pub addresses: Addresses,
    /// Whether it accepts connections: healthy and not draining. Others are in no answer.
    pub ready: bool,
}

/// A container that may ask, known by the address that its packets come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    /// Of the container.
    pub addresses: Addresses,
    /// Its stack: whose services it sees first.
    pub stack: Option<Box<str>>,
    /// In order of preference: where both are on several, the first one's address is answered.
    pub networks: Box<[NetworkId]>,
    /// Who answers what the cluster does not know.
    pub upstream: Upstream,
}

/// Who answers a container what the cluster does not know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum Upstream {
    /// The servers of the host.
    #[default]
    Host,
    /// Its own (`dns`), in order of preference.
    Servers(Arc<[SocketAddr]>),
    /// Nobody: on internal networks alone, else names would carry data out (CVE-2024-29018).
    Nobody,
}
