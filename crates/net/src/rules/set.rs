//! Sets and maps of the packet filter, and what is in them.
//!
//! Not here: which elements there should be (`published`, `services`, `isolation`, `base`).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use super::{Field, Port, Verdict};
use crate::Protocol;

/// Sets and maps of the table. A published port is in exactly one of the first four.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Set {
    /// Ports with backends on every local address, protocol . port : the port's chain.
    Anywhere,
    /// Ports with backends on one address, protocol . address . port : the port's chain.
    Bound,
    /// Ports without backends on every local address, protocol . port : a refusal.
    RefusedAnywhere,
    /// Ports without backends on one address, protocol . address . port : a refusal.
    RefusedBound,
    /// All backends, address . address: each may be a client of its own.
    Hairpin,
    /// Nodes that may send to our VXLAN port.
    Members,
    /// Own addresses of nodes on the overlay.
    Nodes,
    /// A block of containers . the address of their node, if that is of the family.
    Homes,
    /// Hardware address of a node's VXLAN device : mark of what comes by it.
    Marks,
    /// Protocol . address . port of containers here that every node brings foreign clients to.
    Exposed,
    /// Address of a container : its combination of networks.
    Combination,
    /// Combination . combination that share a network.
    Together,
    /// Containers without a way out.
    Confined,
    /// Containers that a policy is about, by what is sent to them : its chain.
    Inbound,
    /// The same by what they send.
    Outbound,
    /// Clause . address of the other end.
    Peers,
    /// Every address of a service, with backends or without.
    Vips,
    /// Protocol . address . port : port of the container . id . turns.
    FrontPorts,
    /// Address : nothing . id . turns, for every port.
    FrontAddresses,
    /// Protocol . port of this node : port of the container . id . turns.
    FrontPublished,
    /// Number of turns : chain, for each of the three.
    TurnsPorts,
    TurnsAddresses,
    TurnsPublished,
    /// Id . turn : backend.
    Backends,
    /// Ids of services: each counts the connections that were led to it.
    Counted,
    /// Services' backends on this node, address . address: each may be a client of its own.
    Loops,
    /// Protocol . address of backends that connections were translated to: filled by the kernel.
    Served,
}

impl Set {
    pub(super) const ALL: [Self; 27] = [
        Self::Anywhere,
        Self::Bound,
        Self::RefusedAnywhere,
        Self::RefusedBound,
        Self::Hairpin,
        Self::Members,
        Self::Nodes,
        Self::Homes,
        Self::Marks,
        Self::Exposed,
        Self::Combination,
        Self::Together,
        Self::Confined,
        Self::Inbound,
        Self::Outbound,
        Self::Peers,
        Self::Vips,
        Self::FrontPorts,
        Self::FrontAddresses,
        Self::FrontPublished,
        Self::TurnsPorts,
        Self::TurnsAddresses,
        Self::TurnsPublished,
        Self::Backends,
        Self::Counted,
        Self::Loops,
        Self::Served,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Anywhere => "anywhere",
            Self::Bound => "bound",
            Self::RefusedAnywhere => "refused-anywhere",
            Self::RefusedBound => "refused-bound",
            Self::Hairpin => "hairpin",
            Self::Members => "members",
            Self::Nodes => "nodes",
            Self::Homes => "homes",
            Self::Marks => "marks",
            Self::Exposed => "exposed",
            Self::Combination => "combination",
            Self::Together => "together",
            Self::Confined => "confined",
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
            Self::Peers => "peers",
            Self::Vips => "vips",
            Self::FrontPorts => "front-ports",
            Self::FrontAddresses => "front-addresses",
            Self::FrontPublished => "front-published",
            Self::TurnsPorts => "turns-ports",
            Self::TurnsAddresses => "turns-addresses",
            Self::TurnsPublished => "turns-published",
            Self::Backends => "backends",
            Self::Counted => "counted",
            Self::Loops => "loops",
            Self::Served => "served",
        }
    }

    /// What it is looked up by.
    pub(crate) fn key(self) -> &'static [Field] {
        use Field::{Destination, DestinationPort, Number, Protocol, Source, SourceMac};
        match self {
            Self::Anywhere | Self::RefusedAnywhere | Self::FrontPublished => {
                &[Protocol, DestinationPort]
            }
            Self::Bound | Self::RefusedBound | Self::FrontPorts | Self::Exposed => {
                &[Protocol, Destination, DestinationPort]
            }
            Self::Hairpin | Self::Loops => &[Source, Destination],
            Self::Homes => &[Destination, Source],
            Self::Members | Self::Nodes | Self::Combination | Self::Confined | Self::Outbound => {
                &[Source]
            }
            Self::Marks => &[SourceMac],
            Self::Vips | Self::FrontAddresses | Self::Inbound => &[Destination],
            Self::Peers => &[Number, Source],
            Self::TurnsPorts | Self::TurnsAddresses | Self::TurnsPublished | Self::Counted => {
                &[Number]
            }
            Self::Backends | Self::Together => &[Number, Number],
            Self::Served => &[Protocol, Destination],
        }
    }

    pub(crate) fn value(self) -> Holds {
        use Field::{Destination, DestinationPort, Number};
        match self {
            Self::Anywhere
            | Self::Bound
            | Self::RefusedAnywhere
            | Self::RefusedBound
            | Self::TurnsPorts
            | Self::TurnsAddresses
            | Self::TurnsPublished
            | Self::Inbound
            | Self::Outbound => Holds::Verdict,
            Self::Hairpin
            | Self::Members
            | Self::Nodes
            | Self::Homes
            | Self::Exposed
            | Self::Together
            | Self::Confined
            | Self::Peers
            | Self::Vips
            | Self::Loops
            | Self::Counted
            | Self::Served => Holds::Nothing,
            Self::Marks => Holds::Data(&[Number]),
            // Twice: see where it is looked up.
            Self::Combination => Holds::Data(&[Number, Number]),
            Self::FrontPorts | Self::FrontAddresses | Self::FrontPublished => {
                Holds::Data(&[DestinationPort, Number, Number])
            }
            Self::Backends => Holds::Data(&[Destination]),
        }
    }

    /// Its elements count how often they were found.
    pub(crate) fn counts(self) -> bool {
        self == Self::Counted
    }

    /// Filled by rules.
    pub(crate) fn is_dynamic(self) -> bool {
        self == Self::Served
    }
}

/// What a set has for each key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holds {
    Nothing,
    Verdict,
    Data(&'static [Field]),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Element {
    Port(Port),
    Hairpin(Ipv4Addr),
    Entry { key: Vec<Part>, value: Value },
}

/// What a map has for a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Value {
    Nothing,
    Parts(Vec<Part>),
    Verdict(Verdict),
}

impl Element {
    /// Of a set, which has nothing but keys.
    pub(crate) fn key_of(key: Vec<Part>) -> Self {
        Self::Entry { key, value: Value::Nothing }
    }

    /// What the kernel tells elements apart by.
    pub(super) fn key(&self) -> Option<&[Part]> {
        match self {
            Self::Port(_) | Self::Hairpin(_) => None,
            Self::Entry { key, .. } => Some(key),
        }
    }
}

/// One part of an element's key or value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Address(IpAddr),
    Number(u32),
    Port(u16),
    Protocol(Protocol),
    Mac([u8; 6]),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Port(port) => port.fmt(f),
            Self::Protocol(protocol) => protocol.fmt(f),
            Self::Mac(mac) => write!(f, "{mac:02x?}"),
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |f: &mut fmt::Formatter<'_>, parts: &[Part]| {
            parts.iter().enumerate().try_for_each(|(index, part)| match index {
                0 => part.fmt(f),
                _ => write!(f, "/{part}"),
            })
        };
        match self {
            Self::Port(port) => port.fmt(f),
            Self::Hairpin(address) => address.fmt(f),
            Self::Entry { key, value } => {
                join(f, key)?;
                match value {
                    Value::Nothing => Ok(()),
                    Value::Parts(parts) => {
                        f.write_str("=")?;
                        join(f, parts)
                    }
                    Value::Verdict(Verdict::Goto(chain) | Verdict::Jump(chain)) => {
                        write!(f, "={chain}")
                    }
                    Value::Verdict(verdict) => write!(f, "={verdict:?}"),
                }
            }
        }
    }
}
