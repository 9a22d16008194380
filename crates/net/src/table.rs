//! What a node's kernel should hold, as its caller says it.
//!
//! Plain data. The whole [`Table`] is given each time; what differs is found inside.
//!
//! Not here: how it is carried out (`overlay`, `rules`).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::entries::{Entries, Keyed};
use crate::{Protocol, PublishedPort};

/// A network address and the length of its prefix in bits.
pub type Subnet = (IpAddr, u8);

/// Everything the kernel should hold for this node's services.
///
/// What is large is shared: of a table that is made of another only what differs is looked at, so
/// a change among thousands of services costs what that one service costs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// In any order; of a port named twice the backends are joined.
    pub published: Vec<PublishedPort>,
    /// How other nodes are reached; `None` on a node that is alone.
    pub overlay: Option<Arc<Overlay>>,
    /// Services' addresses and ports that every node answers.
    pub services: Entries<Service>,
    /// Who may reach whom; `None` if every container may reach every other.
    pub networks: Option<Networks>,
}

/// Which containers are on which networks. What shares no network is parted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks {
    /// All containers of the cluster, each in one group.
    pub groups: Entries<Group>,
    /// Networks without a way out. A container that is on no other reaches its own networks and
    /// the node's DNS.
    pub internal: BTreeSet<u32>,
    /// What is parted within networks.
    pub policies: Entries<Policy>,
    /// Whom their clauses name.
    pub peers: Entries<PeerSet>,
}

/// Containers that are on the same networks, for example those of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Names it in the table.
    pub key: Arc<str>,
    /// Of both families.
    pub addresses: Vec<IpAddr>,
    /// Their numbers in the cluster.
    pub networks: BTreeSet<u32>,
}

/// Containers that clauses name, for example those of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSet {
    /// Names it in the table.
    pub key: Arc<str>,
    /// Of both families.
    pub addresses: Vec<IpAddr>,
}

/// What may be sent by some containers, or to them. Networks come first: a policy opens nothing.
///
/// Judged when a connection begins, by the container that is reached, not by the service's
/// address; one each direction for a container. What goes to a container is judged where it
/// arrives, but for what goes there by a port of the node: that is judged where it leaves, too,
/// since it may arrive as this node's own. What no clause matches passes. Nobody is kept from
/// itself, and from the node's DNS. Connections that were there before are judged when a policy
/// changes: those that are denied end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Names it in the table.
    pub key: Arc<str>,
    /// Containers that it is about.
    pub subjects: Vec<IpAddr>,
    /// What they send, or what is sent to them.
    pub direction: Direction,
    /// The first that matches decides. More than [`Policy::CLAUSES_MAX`] let nothing pass.
    pub clauses: Vec<Clause>,
}

impl Policy {
    /// So that a chain that is looked through for each connection stays within sight.
    pub const CLAUSES_MAX: usize = 4096;
}

/// From where a policy's subjects are seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// To the subjects.
    In,
    /// From the subjects, to containers and to the world.
    Out,
}

/// A decision of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Let pass.
    Allow,
    /// Drop.
    Deny,
}

/// One line of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clause {
    /// What it is counted under, together with its action; several may have the same.
    pub name: Box<str>,
    /// What is done.
    pub action: Action,
    /// The other end.
    pub peers: Peers,
    /// For what; everything, of every protocol, if there is none.
    pub traffic: Vec<Traffic>,
}

/// The other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peers {
    /// Everybody.
    Any,
    /// Whoever is one of these.
    Some {
        /// Key of a [`PeerSet`].
        set: Option<Box<str>>,
        /// Whoever has an address in these networks.
        subnets: Vec<Subnet>,
        /// Whoever is no container of the cluster: nodes are not.
        outside: bool,
    },
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// Ports of the container that is reached.
    Ports(PortRange),
    /// ICMP of either family.
    Icmp,
}

/// Ports of one protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// Tcp or udp.
    pub protocol: Protocol,
    /// The first of them.
    pub first: u16,
    /// The last of them.
    pub last: u16,
}

impl Keyed for Service {
    fn key(&self) -> &Arc<str> {
        &self.key
    }
}

impl Keyed for Group {
    fn key(&self) -> &Arc<str> {
        &self.key
    }
}

impl Keyed for Policy {
    fn key(&self) -> &Arc<str> {
        &self.key
    }
}

impl Keyed for PeerSet {
    fn key(&self) -> &Arc<str> {
        &self.key
    }
}

/// How often clauses of a name decided, since this process began.
///
/// What is allowed is counted where it arrives, or where it leaves the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// The clauses' name; empty for what was dropped because no network is shared.
    pub name: Box<str>,
    /// What was done.
    pub action: Action,
    /// Packets that began a connection, or tried to.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// How many connections this node led to a service, since this process began; of datagrams, flows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connections {
    /// The [`Service::key`].
    pub key: Box<str>,
    /// By clients that came by this node, to backends on any.
    pub led: u64,
}

/// One service, as clients reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Names it in the table, for example by its id and network. What comes before the first `/`
    /// is the key of its containers' [`Group`], if they have one.
    pub key: Arc<str>,
    /// What clients connect to.
    pub frontends: Vec<Frontend>,
    /// Ready containers of both families, on any node; none means that connections are refused.
    pub backends: Vec<Backend>,
    /// The same client address reaches the same backend, by whatever node it comes, for as long
    /// as that is there.
    pub affinity: bool,
    /// Only backends of this node, if there are any.
    pub prefer_local: bool,
}

impl Service {
    /// Key of the [`Group`] of its containers.
    pub(crate) fn group(&self) -> &str {
        self.key.split_once('/').map_or(&self.key, |(group, _)| group)
    }
}

/// Something to connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Frontend {
    /// Every TCP and UDP port of a service's address, each to the same port of a container.
    Address(IpAddr),
    /// One port of a service's address.
    Port {
        /// The service's address.
        vip: IpAddr,
        /// Tcp or udp.
        protocol: Protocol,
        /// What clients connect to.
        port: u16,
        /// Where the containers listen.
        target: u16,
    },
    /// A port of the nodes themselves, on every node.
    Published {
        /// `0.0.0.0` or `::` is every local address of the family.
        bind: IpAddr,
        /// Tcp or udp.
        protocol: Protocol,
        /// What clients connect to.
        port: u16,
        /// Where the containers listen.
        target: u16,
    },
    /// A port that other nodes answer and this one does not. Nobody is led to it from here;
    /// containers here accept what comes by those nodes.
    Elsewhere {
        /// Tcp or udp.
        protocol: Protocol,
        /// Where the containers listen.
        target: u16,
    },
}

/// A container that answers for a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// The container's own address.
    pub address: IpAddr,
    /// Its share of new connections relative to the others'; zero is none.
    pub weight: u16,
    /// Whether it is on this node.
    pub local: bool,
}

/// How packets travel between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// Routes by the other node's own address: nodes share a segment, nothing is encrypted.
    Plain,
    /// One VXLAN device (RFC 7348) with static entries: nothing is encrypted.
    Vxlan,
    /// A device that somebody else makes and feeds: WireGuard.
    Device,
}

/// The nodes of a cluster and their blocks of container addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// How containers' packets travel.
    pub carrier: Carrier,
    /// Name of the carrier's device if that is [`Carrier::Device`]; it may come and go.
    pub device: Option<String>,
    /// VXLAN network identifier, 24 bits, one a cluster.
    pub vni: u32,
    /// UDP port of the VXLAN device, which every carrier has: it brings clients' packets to
    /// published ports' containers elsewhere.
    pub port: u16,
    /// This node.
    pub own: Member,
    /// All others.
    pub peers: Vec<Member>,
    /// Where services' addresses are from. Like the pools of containers' addresses, they lead
    /// nowhere unless something says so: packets for them never leave by the default route.
    pub vips: Vec<Subnet>,
    /// IPv6 addresses of containers; the IPv4 ones are [`crate::NetConfig::pool`].
    pub pool6: Option<(Ipv6Addr, u8)>,
}

/// One node of the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Unique in the cluster, at most [`Member::NUMBER_MAX`]; its hardware address and its mark derive from it.
    pub number: u16,
    /// Where other nodes reach it.
    pub underlay: IpAddr,
    /// Its VXLAN device's port: differs between nodes that share an address.
    pub port: u16,
    /// Its own address on the overlay, the first of its first block.
    pub inner: Ipv4Addr,
    /// Likewise of IPv6.
    pub inner6: Option<Ipv6Addr>,
    /// Addresses of its containers, of both families.
    pub blocks: Vec<Subnet>,
}

impl Member {
    /// Fifteen bits of a packet's mark name a node; all of them set mean something else.
    pub const NUMBER_MAX: u16 = 0x7ffe;

    /// The hardware address of its VXLAN device: locally administered, ours by the second byte.
    pub fn mac(&self) -> [u8; 6] {
        let [hi, lo] = self.number.to_be_bytes();
        [0x02, 0x57, 0x4e, 0x00, hi, lo]
    }
}
