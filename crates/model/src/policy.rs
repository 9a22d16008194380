//! Policies: what of the traffic that networks allow is denied after all.
//!
//! A policy names two ends and ports, and says what becomes of connections
//! between them. It holds by name: a service of that name that is made later
//! is meant too, one that is gone is nobody.
//!
//! Order, in which the first that matches decides: by [`PolicySpec::priority`],
//! lower numbers first; at the same priority those that deny come first. What
//! none matches is denied if some policy is an "only" about the container, and
//! is as its networks say otherwise. Networks come first of all: a policy
//! opens nothing.
//!
//! Not here: whom the names mean (`manager::dispatch`), rules (`net`).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::cluster::Subnet;
use crate::id::PolicyId;
use crate::name::{NameError, NetworkName, PolicyName, ServiceName};
use crate::quantity::Time;
use crate::service::{Protocol, SpecError, check_labels, wrong};

/// A policy as the state holds it. It is never changed, only made and removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub id: PolicyId,
    pub spec: PolicySpec,
    pub created: Time,
    /// Of its creation.
    pub revision: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicySpec {
    pub name: PolicyName,
    pub labels: BTreeMap<String, String>,
    pub action: PolicyAction,
    /// Who begins connections; none: anybody.
    pub from: Vec<PolicyPeer>,
    /// Whom they are for; none: anybody.
    pub to: Vec<PolicyPeer>,
    /// Of the container that is reached; none: everything, of every protocol.
    pub ports: Vec<PolicyPort>,
    /// Lower ones are looked at first.
    pub priority: u16,
}

/// What becomes of connections that a policy matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyAction {
    Allow,
    Deny,
    /// Allow, and whatever else is for the same containers is denied.
    OnlyFrom,
    /// Allow, and whatever else the same containers begin is denied.
    OnlyTo,
}

/// One end of connections.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyPeer {
    /// Containers of a service.
    Service(ServiceName),
    /// Containers of all services on a network.
    Network(NetworkName),
    /// Whoever has one of these addresses.
    Range(IpRange),
    /// Whoever is no container of the cluster, nodes included.
    Outside,
}

/// Addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpRange {
    pub address: IpAddr,
    /// In bits.
    pub prefix: u8,
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyPort {
    /// From the first to the last, both included; 0 to 65535 are all of the protocol.
    Ports { protocol: Protocol, first: u16, last: u16 },
    /// ICMP, and ICMPv6: echo requests, that is, since errors belong to what they are about.
    Icmp,
}

impl PolicySpec {
    /// Of one end. Every one may be a rule in the kernel.
    pub const PEERS_MAX: usize = 64;
    /// Times the peers, rules in the kernel.
    pub const PORTS_MAX: usize = 32;
    /// Of a policy that says nothing of it.
    pub const PRIORITY: u16 = 100;
    pub const PRIORITY_MAX: u16 = 1000;

    /// Checks what can be told without the cluster.
    ///
    /// # Errors
    /// The first [`SpecError`] found.
    pub fn validate(&self) -> Result<(), SpecError> {
        check_labels("labels", &self.labels)?;
        if self.priority > Self::PRIORITY_MAX {
            let problem = format!("is more than {}", Self::PRIORITY_MAX);
            return Err(wrong("priority", self.priority, problem));
        }
        check_list("from", &self.from, Self::PEERS_MAX)?;
        check_list("to", &self.to, Self::PEERS_MAX)?;
        check_list("ports", &self.ports, Self::PORTS_MAX)?;
        let is_beside = |all: &[PolicyPeer]| all.iter().all(|peer| !peer.is_of_the_cluster());
        let text = |all: &[PolicyPeer]| -> String {
            all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        let (from, to) = (&self.from[..], &self.to[..]);
        if !from.is_empty() && !to.is_empty() && is_beside(from) && is_beside(to) {
            let problem = "no end is a container: one of them names services or networks, \
                           or is left out";
            return Err(wrong("from, to", format!("{} to {}", text(from), text(to)), problem));
        }
        let (named, field, subjects, meant) = match self.action {
            PolicyAction::Allow | PolicyAction::Deny => return Ok(()),
            PolicyAction::OnlyFrom => (from, "to", to, "from"),
            PolicyAction::OnlyTo => (to, "from", from, "to"),
        };
        if named.is_empty() {
            let problem = "names nobody: to deny everything there is the action deny";
            return Err(wrong(meant, "", problem));
        }
        match subjects.iter().find(|peer| !peer.is_of_the_cluster()) {
            Some(peer) => Err(wrong(
                field,
                peer,
                "cannot be shut: only what names services or networks, or is left out",
            )),
            None => Ok(()),
        }
    }

    /// What comes first is looked at first.
    pub fn order(&self) -> impl Ord + '_ {
        order(self.priority, self.action, &self.name)
    }

    /// Everything that both ends name.
    pub fn peers(&self) -> impl Iterator<Item = &PolicyPeer> {
        self.from.iter().chain(&self.to)
    }
}

/// The place of a policy among all: what comes first is looked at first.
pub fn order(priority: u16, action: PolicyAction, name: &PolicyName) -> impl Ord + '_ {
    (priority, action.allows(), name)
}

fn check_list<T: Ord + fmt::Display>(
    field: &str,
    list: &[T],
    len_max: usize,
) -> Result<(), SpecError> {
    if list.len() > len_max {
        return Err(wrong(field, list.len(), format!("are too many: at most {len_max}")));
    }
    let mut sorted: Vec<&T> = list.iter().collect();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(twice) => Err(wrong(field, twice[0], "is named twice")),
        None => Ok(()),
    }
}

impl PolicyAction {
    pub const ALL: [Self; 4] = [Self::Allow, Self::Deny, Self::OnlyFrom, Self::OnlyTo];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::OnlyFrom => "only-from",
            Self::OnlyTo => "only-to",
        }
    }

    /// Whether what matches is let pass.
    pub fn allows(self) -> bool {
        self != Self::Deny
    }
}

impl fmt::Display for PolicyAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl PolicyPeer {
    const OUTSIDE: &str = "outside";

    /// Whether it is containers by what they are, not by their addresses.
    pub fn is_of_the_cluster(&self) -> bool {
        matches!(self, Self::Service(_) | Self::Network(_))
    }
}

/// Why a text is no end of connections.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    #[error("{0}")]
    Name(#[from] NameError),
    #[error("{0}")]
    Range(#[from] RangeError),
    #[error(
        "{text:?} is none of SERVICE, service=SERVICE, network=NETWORK, an address or CIDR, outside"
    )]
    Key { text: String },
}

impl fmt::Display for PolicyPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) if name.as_str() == Self::OUTSIDE => write!(f, "service={name}"),
            Self::Service(name) => name.fmt(f),
            Self::Network(name) => write!(f, "network={name}"),
            Self::Range(range) => range.fmt(f),
            Self::Outside => f.write_str(Self::OUTSIDE),
        }
    }
}

impl FromStr for PolicyPeer {
    type Err = PeerError;

    fn from_str(text: &str) -> Result<Self, PeerError> {
        if text == Self::OUTSIDE {
            return Ok(Self::Outside);
        }
        match text.split_once('=') {
            Some(("service", name)) => Ok(Self::Service(name.parse()?)),
            Some(("network", name)) => Ok(Self::Network(name.parse()?)),
            Some(_) => Err(PeerError::Key { text: text.to_owned() }),
            // No name has any of these.
            None if text.contains(['/', '.', ':']) => Ok(Self::Range(text.parse()?)),
            None => Ok(Self::Service(text.parse()?)),
        }
    }
}

/// Why a text is no range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    #[error("{text:?} is no range of addresses like 192.0.2.0/24, 192.0.2.7 or 2001:db8::/32")]
    Shape { text: String },
    #[error("{text:?} has bits after its prefix; {meant} has none")]
    HostBits { text: String, meant: IpRange },
}

impl IpRange {
    /// Bits of an address of its family.
    pub fn prefix_max(address: IpAddr) -> u8 {
        if address.is_ipv4() { 32 } else { 128 }
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4()
            && masked(address, self.prefix) == masked(self.address, self.prefix)
    }

    /// Whether all of it is within an IPv4 subnet.
    pub fn is_within(&self, subnet: Subnet) -> bool {
        let outer = Self { address: subnet.address.into(), prefix: subnet.prefix };
        self.prefix >= subnet.prefix && outer.contains(self.address)
    }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            std::net::Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            std::net::Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

impl fmt::Display for IpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for IpRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let shape = || RangeError::Shape { text: text.to_owned() };
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| shape())?;
        let max = Self::prefix_max(address);
        let prefix = prefix.map_or(Ok(max), |prefix| prefix.parse().map_err(|_| shape()))?;
        if prefix > max {
            return Err(shape());
        }
        let meant = Self { address: masked(address, prefix), prefix };
        match meant.address == address {
            true => Ok(meant),
            false => Err(RangeError::HostBits { text: text.to_owned(), meant }),
        }
    }
}

/// Why a text says no ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is none of PORT[/tcp|udp], FIRST-LAST[/tcp|udp], tcp, udp, icmp; \
     ports are 1 to 65535"
)]
pub struct PolicyPortError {
    text: String,
}

impl PolicyPort {
    /// All ports of a protocol.
    pub fn all(protocol: Protocol) -> Self {
        Self::Ports { protocol, first: 0, last: u16::MAX }
    }
}

impl fmt::Display for PolicyPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Icmp => f.write_str("icmp"),
            Self::Ports { protocol, first: 0, last: u16::MAX } => f.write_str(protocol.as_str()),
            Self::Ports { protocol, first, last } if first == last => {
                write!(f, "{first}/{}", protocol.as_str())
            }
            Self::Ports { protocol, first, last } => {
                write!(f, "{first}-{last}/{}", protocol.as_str())
            }
        }
    }
}

impl FromStr for PolicyPort {
    type Err = PolicyPortError;

    fn from_str(text: &str) -> Result<Self, PolicyPortError> {
        let shape = || PolicyPortError { text: text.to_owned() };
        let protocol = |word: &str| match word {
            "tcp" => Some(Protocol::Tcp),
            "udp" => Some(Protocol::Udp),
            _ => None,
        };
        if text == "icmp" {
            return Ok(Self::Icmp);
        }
        if let Some(protocol) = protocol(text) {
            return Ok(Self::all(protocol));
        }
        let (range, word) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = protocol(word).ok_or_else(shape)?;
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self::Ports { protocol, first, last }),
            _ => Err(shape()),
        }
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
