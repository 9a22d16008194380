//! The parts of a rule, and how each is written for the kernel.
//!
//! One variant is one condition or action of ours, not one of the kernel's
//! expressions: a condition loads a register and compares it. Numbers are those of
//! `linux/netfilter/nf_tables.h`.

use std::fmt;
use std::net::{IpAddr, SocketAddrV4};

use crate::Protocol;
use crate::rules::{Family, Front, Set};

mod write;

use crate::table::Subnet;
pub(crate) use write::{ANONYMOUS, write_verdict};

/// Links are matched by the prefix that is given.
type LinkName = String;

/// What of a packet a set is looked up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    Protocol,
    Source,
    Destination,
    DestinationPort,
    /// Of a link with hardware addresses.
    SourceMac,
    /// Not of the packet: numbers of ours.
    Number,
}

impl Field {
    /// Bytes that it has in a key: whole registers, but for what is always alone.
    pub(crate) fn len(self, family: Family) -> u32 {
        match (self, family) {
            (Self::SourceMac, _) => 6,
            (Self::Source | Self::Destination, Family::V6) => 16,
            _ => 4,
        }
    }

    /// How `nft` shows it.
    pub(crate) fn kind(self, family: Family) -> u32 {
        match (self, family) {
            (Self::Protocol, _) => 12,
            (Self::DestinationPort, _) => 13,
            // A mark: what `nft` shows of plain integers has no length.
            (Self::Number, _) => 19,
            (Self::SourceMac, _) => 9,
            (Self::Source | Self::Destination, Family::V4) => 7,
            (Self::Source | Self::Destination, Family::V6) => 8,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    Drop,
    Accept,
    Return,
    Jump(String),
    Goto(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expression {
    FromLink(LinkName),
    FromLinkNot(LinkName),
    ToLink(LinkName),
    ToLinkNot(LinkName),
    SourceIn(Subnet),
    DestinationIn(Subnet),
    DestinationNotIn(Subnet),
    DestinationIs(IpAddr),
    SourceNotIn(Subnet),
    DestinationPort(u16),
    DestinationPorts(u16, u16),
    LocalDestination,
    /// The source is an address of this host.
    LocalSource,
    /// The source is not routed by the link that the packet came from.
    NoReturnRoute,
    /// Established or related.
    Known,
    InvalidState,
    /// The destination is a backend of a published port.
    ToBackend,
    /// Of a connection without an answer so far.
    NewState,
    /// Its destination was translated.
    Published,
    Over(Protocol),
    /// A TCP packet that opens a connection.
    Syn,
    /// The verdict that a map has for the packet.
    LookUp(Set),
    /// The set has the packet's fields.
    In(Set),
    NotIn(Set),
    Verdict(Verdict),
    Destination(SocketAddrV4),
    /// One of the batch's anonymous map, in turn.
    NextDestination {
        map: u32,
        modulus: u32,
    },
    SourceAs(IpAddr),
    Masquerade,
    /// Segments no larger than what fits the path.
    Clamp,
    /// An ICMP request for an echo.
    EchoRequest,
    /// The chain for as many turns as the frontend has.
    Choose(Front),
    /// One of the frontend's backends.
    AtRandom {
        front: Front,
        turns: u32,
    },
    /// The same for the same client.
    ByClient {
        front: Front,
        turns: u32,
    },
    DestinationAs(IpAddr),
    /// What the client connected to is not in there.
    OriginallyNotIn(Subnet),
    OriginallyIn(Subnet),
    /// What the client connected to is what it reaches.
    Untranslated,
    /// The destination is in a set of addresses that is else asked for sources, or is not.
    DestinationIsOf {
        set: Set,
        is: bool,
    },
    /// ICMP of the family.
    Icmp,
    /// A policy denies it, since after it began.
    Denied,
    /// Source and destination share a network.
    Together,
    /// The packet's field is one of a policy's clause's peers.
    Peer {
        number: u32,
        field: Field,
    },
    /// A packet of a node to a container of its own; blocks have prefixes of this length.
    ToOwnNode(u8),
    /// Counts what comes by here.
    Count,
    /// The connection came by the node whose VXLAN device sent this packet.
    KeepNode,
    /// An answer on a connection that came by another node: it goes back by that.
    BackToNode,
    MarkAs(u32),
    /// Adds the packet's fields to a set.
    Remember(Set),

    ResetTcp,
    PortUnreachable,
    HostUnreachable,
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FromLink(name) => write!(f, "from {name}"),
            Self::FromLinkNot(name) => write!(f, "from-not {name}"),
            Self::ToLink(name) => write!(f, "to {name}"),
            Self::ToLinkNot(name) => write!(f, "to-not {name}"),
            Self::SourceIn((address, len)) => write!(f, "src {address}/{len}"),
            Self::DestinationIn((address, len)) => write!(f, "dst {address}/{len}"),
            Self::DestinationNotIn((address, len)) => write!(f, "dst-not {address}/{len}"),
            Self::DestinationIs(address) => write!(f, "dst {address}"),
            Self::SourceNotIn((address, len)) => write!(f, "src-not {address}/{len}"),
            Self::DestinationPort(port) => write!(f, "dport {port}"),
            Self::DestinationPorts(first, last) => write!(f, "dport {first}-{last}"),
            Self::LocalDestination => f.write_str("dst local"),
            Self::LocalSource => f.write_str("src local"),
            Self::NoReturnRoute => f.write_str("src unroutable"),
            Self::Known => f.write_str("known"),
            Self::InvalidState => f.write_str("invalid"),
            Self::ToBackend => f.write_str("dst backend"),
            Self::NewState => f.write_str("new"),
            Self::Published => f.write_str("published"),
            Self::Over(protocol) => protocol.fmt(f),
            Self::Syn => f.write_str("syn"),
            Self::LookUp(set) => write!(f, "as {} has", set.name()),
            Self::In(set) => write!(f, "in {}", set.name()),
            Self::NotIn(set) => write!(f, "not in {}", set.name()),
            Self::Verdict(verdict) => write!(f, "{verdict:?}"),
            Self::Destination(backend) => write!(f, "dnat {backend}"),
            Self::NextDestination { map, modulus } => write!(f, "dnat map {map} of {modulus}"),
            Self::SourceAs(address) => write!(f, "snat {address}"),
            Self::Masquerade => f.write_str("masquerade"),
            Self::Clamp => f.write_str("clamp"),
            Self::EchoRequest => f.write_str("echo-request"),
            Self::Choose(front) => write!(f, "choose {}", front.set().name()),
            Self::AtRandom { front, turns } => {
                write!(f, "random {turns} of {}", front.set().name())
            }
            Self::ByClient { front, turns } => write!(f, "hash {turns} of {}", front.set().name()),
            Self::DestinationAs(address) => write!(f, "dnat {address}"),
            Self::OriginallyNotIn((address, len)) => write!(f, "not for {address}/{len}"),
            Self::OriginallyIn((address, len)) => write!(f, "for {address}/{len}"),
            Self::Untranslated => f.write_str("untranslated"),
            Self::DestinationIsOf { set, is: true } => write!(f, "dst in {}", set.name()),
            Self::DestinationIsOf { set, is: false } => write!(f, "dst not in {}", set.name()),
            Self::Icmp => f.write_str("icmp"),
            Self::Denied => f.write_str("denied"),
            Self::Together => f.write_str("together"),
            Self::Peer { number, field } => write!(f, "{field:?} peer {number}"),
            Self::ToOwnNode(len) => write!(f, "to own node, by /{len}"),
            Self::Count => f.write_str("count"),
            Self::KeepNode => f.write_str("keep node"),
            Self::BackToNode => f.write_str("back to node"),
            Self::MarkAs(mark) => write!(f, "mark {mark:#x}"),
            Self::Remember(set) => write!(f, "remember in {}", set.name()),
            Self::ResetTcp => f.write_str("reset"),
            Self::PortUnreachable => f.write_str("port-unreachable"),
            Self::HostUnreachable => f.write_str("host-unreachable"),
        }
    }
}

/// Types of parts of keys one after the other, as the `nft` tool numbers them: the kernel only
/// keeps them for display.
pub(crate) fn concatenated(kinds: impl IntoIterator<Item = u32>) -> u32 {
    kinds.into_iter().fold(0, |all, kind| (all << 6) | kind)
}

pub(crate) const VERDICT_TYPE: u32 = 0xffff_ff00;
pub(crate) const INTEGER_TYPE: u32 = 4;
/// An IPv4 address and a port.
pub(crate) const BACKEND_TYPE: u32 = (7 << 6) | 13;
