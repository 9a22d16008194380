//! Which routes, neighbours and forwarding entries an overlay wants of the kernel.
//!
//! Pure: an [`Overlay`] and what is known of the host become a set of [`Item`]s; the
//! kernel's own set is read by `routes`, and the difference is what is sent.
//!
//! ```text
//! container's pool, VIPs   unreachable, unless something longer says otherwise
//! a peer's block           plain:  via its own address
//!                          VXLAN:  via its inner address on our VXLAN device
//!                          device: into the device that was named
//! ```
//!
//! The VXLAN device is there with every carrier. Where it does not carry the blocks it
//! carries what keeps a foreign source address; with a device as carrier it runs
//! within it, from inner address to inner address. Two more tables serve that: one by
//! which a foreign client's packet goes to a container elsewhere, and one for each peer
//! by which the answer goes back.
//!
//! Not here: the device itself and netlink (`routes`), what may pass (`rules`).

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use warren_model::overlap::OWN_METRIC_MIN;

use crate::table::{Carrier, Member, Overlay, Subnet};
use crate::{NetConfig, subnet_of};

/// What VXLAN adds to a packet: outer Ethernet is inner, plus IPv4 or IPv6, UDP, VXLAN.
const VXLAN_OVERHEAD: u32 = 50;
const VXLAN6_OVERHEAD: u32 = 70;
/// What WireGuard adds, whichever family is below.
const DEVICE_OVERHEAD: u32 = 80;
impl Carrier {
    /// Bytes that it adds to a packet of containers, for a node at this address.
    pub fn overhead(self, underlay: IpAddr) -> u16 {
        let bytes = match (self, underlay) {
            (Self::Plain, _) => 0,
            (Self::Vxlan, IpAddr::V4(_)) => VXLAN_OVERHEAD,
            (Self::Vxlan, IpAddr::V6(_)) => VXLAN6_OVERHEAD,
            (Self::Device, _) => DEVICE_OVERHEAD,
        };
        u16::try_from(bytes).unwrap_or(u16::MAX)
    }
}

/// No link of containers may be smaller (RFC 8200, section 5).
const MTU_MIN: u32 = 1280;

/// One thing that the kernel holds; ordered so that each comes after what it needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Item {
    /// Of the VXLAN device.
    Address(IpAddr),
    /// Who has an inner address, on the VXLAN device.
    Neighbour {
        address: IpAddr,
        mac: [u8; 6],
    },
    /// Where the VXLAN device sends a frame.
    Forwarding {
        mac: [u8; 6],
        to: IpAddr,
        port: u16,
    },
    Route(Route),
    Rule(Rule),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) table: Lookup,
    pub(crate) to: Subnet,
    pub(crate) by: By,
    /// Zero is the link's own.
    pub(crate) mtu: u32,
    /// The source of what the host itself sends there.
    pub(crate) source: Option<IpAddr>,
}

/// A routing table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lookup {
    Main,
    /// Everything by the VXLAN device to the node of this number.
    Back(u16),
    /// Every peer's blocks by the VXLAN device.
    Across,
}

/// When another table than the main one is asked. In the order in which the kernel asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rule {
    /// What has no mark of ours need not be compared with every node's: on to the last of these.
    Unmarked { v4: bool },
    /// An answer goes back by the node that the client came by.
    Back { v4: bool, number: u16 },
    /// A foreign client's packet, for a container elsewhere.
    Across { v4: bool },
    /// The host's own client of a port that is published on its loopback.
    Loopback,
    /// Nothing: where unmarked packets go on where there is no loopback to care for.
    End,
}

/// Of a packet's mark: what is ours.
pub(crate) const MARK_MASK: u32 = 0xffff_0000;
/// A foreign client's packet on its way to a container elsewhere.
pub(crate) const MARK_ACROSS: u32 = 0x8000_0000;

/// The mark of what came, or goes back, by a node.
pub(crate) fn mark(number: u16) -> u32 {
    u32::from(number) << 16
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum By {
    /// Refuse.
    Unreachable,
    /// A gateway on whatever link leads to it.
    Gateway(IpAddr),
    /// A gateway on the VXLAN device.
    Vxlan(IpAddr),
    /// The carrier's device.
    Device,
    /// The VXLAN device's own segment.
    Segment,
    /// By a link that is not wanted any more.
    Elsewhere,
}

/// What makes two items the same place in the kernel: adding one replaces the other.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Address(IpAddr),
    Neighbour(IpAddr),
    Forwarding([u8; 6]),
    /// What refuses stands behind what leads somewhere, and stays when that is gone.
    Route(Lookup, Subnet, bool),
    Rule(Rule),
}

impl Item {
    fn place(&self) -> Place {
        match self {
            Self::Address(address) => Place::Address(*address),
            Self::Neighbour { address, .. } => Place::Neighbour(*address),
            Self::Forwarding { mac, .. } => Place::Forwarding(*mac),
            Self::Route(route) => Place::Route(route.table, route.to, route.by == By::Unreachable),
            Self::Rule(rule) => Place::Rule(*rule),
        }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = |mac: &[u8; 6]| u16::from_be_bytes([mac[4], mac[5]]);
        match self {
            Self::Address(address) => write!(f, "address {address}"),
            Self::Neighbour { address, mac } => write!(f, "neighbour {address} {}", node(mac)),
            Self::Forwarding { mac, to, port } => {
                write!(f, "forward {} {}", node(mac), std::net::SocketAddr::new(*to, *port))
            }
            Self::Rule(rule) => write!(f, "rule {rule:?}"),
            Self::Route(Route { table, to: (address, len), by, mtu, source }) => {
                match table {
                    Lookup::Main => f.write_str("route")?,
                    Lookup::Back(number) => write!(f, "back {number}")?,
                    Lookup::Across => f.write_str("across")?,
                }
                write!(f, " {address}/{len}")?;
                match by {
                    By::Unreachable => f.write_str(" unreachable")?,
                    By::Gateway(gateway) => write!(f, " via {gateway}")?,
                    By::Vxlan(gateway) => write!(f, " vxlan {gateway}")?,
                    By::Device => f.write_str(" device")?,
                    By::Segment => f.write_str(" segment")?,
                    By::Elsewhere => f.write_str(" elsewhere")?,
                }
                if *mtu > 0 {
                    write!(f, " mtu {mtu}")?;
                }
                source.map_or(Ok(()), |source| write!(f, " src {source}"))
            }
        }
    }
}

/// What is wanted of one VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vxlan {
    pub(crate) vni: u32,
    pub(crate) port: u16,
    /// Family of the outer packets, and their source unless the host has no such address.
    pub(crate) local: IpAddr,
    pub(crate) mac: [u8; 6],
    pub(crate) mtu: u32,
}

/// What is known of the host below.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Below {
    /// Of the link that has the node's address.
    pub(crate) mtu: u32,
    /// Whether any has it: others may know the node by another's, which translates.
    pub(crate) holds: bool,
    /// Whether the carrier's device exists and is up.
    pub(crate) device: bool,
}

/// What names of all nodes' VXLAN devices begin with: no node's links of containers do.
pub(crate) const DEVICE_PREFIX: &str = "w-";

/// Name of a node's VXLAN device.
pub(crate) fn device_name(node_key: &str) -> String {
    format!("{DEVICE_PREFIX}{}", node_key.get(..6).unwrap_or(node_key))
}

/// Numbers that a node's tables and rules have, apart from those of other nodes in the same namespace.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Numbers {
    pub(crate) metric: u32,
    tables: u32,
    priority: u32,
}

/// Behind the local table, before what people and other programs use most (tailscale 5210, the
/// main table 32766).
const PRIORITY: u32 = 5000;
/// Of so many nodes on one host each has priorities of its own, most likely.
const PRIORITIES: u32 = 64;

impl Numbers {
    pub(crate) fn of(node_key: &str) -> Self {
        let hash = crate::fnv(node_key);
        Self {
            // By it the route is told from what a machine reaches otherwise.
            metric: (hash & (OWN_METRIC_MIN - 1)) | OWN_METRIC_MIN,
            tables: (hash & 0x3fff_0000) | 0x4000_0000,
            priority: PRIORITY + hash % PRIORITIES * 3,
        }
    }

    pub(crate) fn table(self, lookup: Lookup) -> u32 {
        match lookup {
            Lookup::Main => 254,
            Lookup::Back(number) => self.tables | u32::from(number),
            Lookup::Across => self.tables | 0xffff,
        }
    }

    pub(crate) fn lookup(self, table: u32) -> Option<Lookup> {
        match table {
            254 => Some(Lookup::Main),
            table if table == self.tables | 0xffff => Some(Lookup::Across),
            table if table & 0xffff_0000 == self.tables => {
                u16::try_from(table & 0xffff).ok().map(Lookup::Back)
            }
            _ => None,
        }
    }

    pub(crate) fn priority(self, rule: Rule) -> u32 {
        self.priority
            + match rule {
                Rule::Unmarked { .. } => 0,
                Rule::Back { .. } | Rule::Across { .. } => 1,
                Rule::Loopback | Rule::End => 2,
            }
    }
}

pub(crate) fn vxlan(overlay: &Overlay, below: Below) -> Vxlan {
    let mtu = match overlay.carrier {
        Carrier::Device => below.mtu.saturating_sub(DEVICE_OVERHEAD + VXLAN_OVERHEAD),
        Carrier::Plain | Carrier::Vxlan => below.mtu.saturating_sub(vxlan_overhead(overlay)),
    };
    let local = match (overlay.carrier, overlay.own.underlay) {
        (Carrier::Plain | Carrier::Vxlan, IpAddr::V4(_)) if !below.holds => {
            Ipv4Addr::UNSPECIFIED.into()
        }
        (Carrier::Plain | Carrier::Vxlan, IpAddr::V6(_)) if !below.holds => {
            Ipv6Addr::UNSPECIFIED.into()
        }
        _ => outer(overlay, &overlay.own),
    };
    Vxlan {
        vni: overlay.vni,
        port: overlay.port,
        local,
        mac: overlay.own.mac(),
        mtu: mtu.max(MTU_MIN),
    }
}

pub(crate) fn items(config: &NetConfig, overlay: &Overlay, below: Below) -> BTreeSet<Item> {
    let own = &overlay.own;
    let mut items = BTreeSet::from([Item::Address(own.inner.into())]);
    items.extend(own.inner6.map(|inner| Item::Address(inner.into())));
    let pools =
        [Some((config.pool.0.into(), config.pool.1)), overlay.pool6.map(|p| (p.0.into(), p.1))];
    for pool in pools.into_iter().flatten() {
        items.insert(route(pool, By::Unreachable, 0, None));
    }
    for vips in &overlay.vips {
        // Clients on the host need a route for the packet whose destination is then translated.
        // On the segment nobody has such an address: untranslated it goes nowhere.
        items.insert(route(*vips, By::Unreachable, 0, None));
        if let Some(source) = inner(own, vips.0) {
            items.insert(route(*vips, By::Segment, 0, Some(source)));
        }
    }
    for peer in &overlay.peers {
        push_peer(&mut items, overlay, peer, below);
    }
    if !overlay.peers.is_empty() {
        for v4 in [true, false].into_iter().filter(|v4| *v4 || own.inner6.is_some()) {
            let last = if v4 { Rule::Loopback } else { Rule::End };
            let rules = [Rule::Unmarked { v4 }, Rule::Across { v4 }, last];
            items.extend(rules.map(Item::Rule));
        }
    }
    items
}

/// What brings foreign clients' packets to a peer's containers, and the answers of ours back.
fn push_mesh(items: &mut BTreeSet<Item>, overlay: &Overlay, peer: &Member, mtu: u32) {
    let any = |like: IpAddr| match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let own = &overlay.own;
    for gateway in hops(peer) {
        if inner(own, gateway).is_none() {
            continue;
        }
        let by = By::Vxlan(gateway);
        let table = Lookup::Back(peer.number);
        items.insert(Item::Route(Route { table, to: (any(gateway), 0), by, mtu, source: None }));
        items.insert(Item::Rule(Rule::Back { v4: gateway.is_ipv4(), number: peer.number }));
    }
    for block in &peer.blocks {
        let Some(gateway) = hop(peer, block.0) else { continue };
        let (to, by) = (subnet_of(*block), By::Vxlan(gateway));
        items.insert(Item::Route(Route { table: Lookup::Across, to, by, mtu, source: None }));
    }
}

fn push_peer(items: &mut BTreeSet<Item>, overlay: &Overlay, peer: &Member, below: Below) {
    let mac = peer.mac();
    items.extend(hops(peer).map(|address| Item::Neighbour { address, mac }));
    items.insert(Item::Forwarding { mac, to: outer(overlay, peer), port: peer.port });
    let vxlan_mtu = vxlan(overlay, below).mtu;
    push_mesh(items, overlay, peer, vxlan_mtu);
    for block in &peer.blocks {
        let source = inner(&overlay.own, block.0);
        let by_vxlan = |gateway| (By::Vxlan(gateway), vxlan_mtu);
        let by = match overlay.carrier {
            // Containers of a node that shares this host are on links here.
            Carrier::Plain if peer.underlay == overlay.own.underlay => continue,
            Carrier::Plain if peer.underlay.is_ipv4() == block.0.is_ipv4() => {
                Some((By::Gateway(peer.underlay), 0))
            }
            // Also for blocks of the family that the underlay lacks.
            Carrier::Plain | Carrier::Vxlan => hop(peer, block.0).map(by_vxlan),
            // Without its device they are unreachable, and nothing goes out in the clear.
            Carrier::Device if below.device => {
                Some((By::Device, below.mtu.saturating_sub(DEVICE_OVERHEAD).max(MTU_MIN)))
            }
            Carrier::Device => None,
        };
        if let Some((by, mtu)) = by {
            items.insert(route(*block, by, mtu, source));
        }
    }
}

fn route(to: Subnet, by: By, mtu: u32, source: Option<IpAddr>) -> Item {
    Item::Route(Route { table: Lookup::Main, to: subnet_of(to), by, mtu, source })
}

/// Where VXLAN packets for a node go.
fn outer(overlay: &Overlay, member: &Member) -> IpAddr {
    match overlay.carrier {
        Carrier::Plain | Carrier::Vxlan => member.underlay,
        Carrier::Device => member.inner.into(),
    }
}

fn vxlan_overhead(overlay: &Overlay) -> u32 {
    if overlay.own.underlay.is_ipv4() { VXLAN_OVERHEAD } else { VXLAN6_OVERHEAD }
}

/// A node's own address of the family of `like`.
fn inner(member: &Member, like: IpAddr) -> Option<IpAddr> {
    match like {
        IpAddr::V4(_) => Some(member.inner).filter(|a| *a != Ipv4Addr::UNSPECIFIED).map(Into::into),
        IpAddr::V6(_) => member.inner6.map(Into::into),
    }
}

/// A node's address on the VXLAN segment, of the family of `like`. That of IPv6 is link-local: the
/// kernel refuses another one as a next hop when a route leads to it by another link, as those
/// into the tunnel's device do.
fn hop(member: &Member, like: IpAddr) -> Option<IpAddr> {
    let inner = inner(member, like)?;
    Some(match inner {
        IpAddr::V4(_) => inner,
        IpAddr::V6(_) => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, member.number).into(),
    })
}

fn hops(member: &Member) -> impl Iterator<Item = IpAddr> {
    let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    any.into_iter().filter_map(|like| hop(member, like))
}

/// What to take away and what to add. What is replaced is not taken away first: no packet falls
/// between the two.
pub(crate) fn diff(held: &BTreeSet<Item>, wanted: &BTreeSet<Item>) -> (Vec<Item>, Vec<Item>) {
    let places: BTreeSet<Place> = wanted.difference(held).map(Item::place).collect();
    let removed = held.iter().rev().filter(|item| !wanted.contains(item));
    let removed = removed.filter(|item| !places.contains(&item.place())).cloned().collect();
    (removed, wanted.difference(held).cloned().collect())
}

#[cfg(test)]
mod tests;
