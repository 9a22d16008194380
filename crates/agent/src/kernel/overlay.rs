//! The nodes of the cluster, their blocks, and how packets get there.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use warren_model::ipv6;
use warren_model::node_table::Peer;
use warren_model::{Cluster, ClusterId, NodeId, NodeTable, OverlayKind};
use warren_net::{Carrier, Member, Overlay, Subnet};

use super::{Site, own_subnets};

/// Of VXLAN devices. Not one of those that others use on the same machines (4789: Docker, 8472:
/// flannel and Linux by default), whose packets our rules would take for a stranger's.
const VXLAN_PORT: u16 = 8477;

/// Addresses of nodes that are known by a name.
pub(crate) type Addresses = BTreeMap<String, IpAddr>;

/// `None` while this node has no place among the others.
pub(super) fn draw(
    site: &Site,
    table: &NodeTable,
    settings: &Cluster,
    addresses: &Addresses,
) -> Option<Overlay> {
    let cluster = table.cluster?;
    let ports = ports(table, addresses);
    let placed = |(id, peer): (&NodeId, &Peer)| {
        let underlay = underlay(peer, addresses)?;
        member(site, cluster, peer, underlay, *ports.get(id)?)
    };
    let own = table.peers.get(&site.node)?;
    let own = placed((&site.node, own)).or_else(|| {
        // Its name leads nowhere right now. It is not needed for packets to be sent.
        member(site, cluster, own, Ipv4Addr::UNSPECIFIED.into(), VXLAN_PORT)
    })?;
    let others = table.peers.iter().filter(|(id, _)| **id != site.node);
    let carrier = match settings.overlay {
        OverlayKind::Wireguard => Carrier::Device,
        OverlayKind::Vxlan => Carrier::Vxlan,
        OverlayKind::None => Carrier::Plain,
    };
    let vip_pool = settings.vip_pool;
    let mut vips: Vec<Subnet> = vec![(vip_pool.address.into(), vip_pool.prefix)];
    if site.ipv6 {
        let common = ipv6::vip_subnet(cluster);
        vips.push((common.address.into(), common.prefix));
        vips.extend(own_subnets(table));
    }
    Some(Overlay {
        carrier,
        device: (carrier == Carrier::Device).then(|| site.device.clone()),
        vni: vni(cluster),
        port: own.port,
        own,
        peers: others.filter_map(|(id, peer)| placed((id, peer))).collect(),
        vips,
        pool6: site.ipv6.then(|| {
            let all = ipv6::of_block(cluster, settings.pool);
            (all.address, all.prefix)
        }),
    })
}

/// Where a node is, if that is known.
fn underlay(peer: &Peer, addresses: &Addresses) -> Option<IpAddr> {
    peer.underlay.parse().ok().or_else(|| addresses.get(&peer.underlay).copied())
}

/// Nodes that share an address have a port each, in the order of their numbers.
fn ports(table: &NodeTable, addresses: &Addresses) -> BTreeMap<NodeId, u16> {
    let mut sharing: BTreeMap<IpAddr, Vec<(u32, NodeId)>> = BTreeMap::new();
    for (id, peer) in table.peers.iter().filter(|(_, peer)| peer.number > 0) {
        if let Some(underlay) = underlay(peer, addresses) {
            sharing.entry(underlay).or_default().push((peer.number, *id));
        }
    }
    let mut ports = BTreeMap::new();
    for mut nodes in sharing.into_values() {
        nodes.sort_unstable();
        ports.extend(nodes.into_iter().map(|(_, id)| id).zip(VXLAN_PORT..));
    }
    ports
}

/// `None` for a node that has no block yet, or is one too many for the marks that packets carry.
fn member(
    site: &Site,
    cluster: ClusterId,
    peer: &Peer,
    underlay: IpAddr,
    port: u16,
) -> Option<Member> {
    let number = u16::try_from(peer.number).ok();
    let number = number.filter(|number| (1..=Member::NUMBER_MAX).contains(number))?;
    let inner = peer.blocks.first()?.address;
    let blocks = peer.blocks.iter().flat_map(|block| {
        let v6 = site.ipv6.then(|| ipv6::of_block(cluster, *block));
        let v6 = v6.map(|block| (block.address.into(), block.prefix));
        [Some((block.address.into(), block.prefix)), v6].into_iter().flatten()
    });
    Some(Member {
        number,
        underlay,
        port,
        inner,
        inner6: site.ipv6.then(|| ipv6::of_container(cluster, inner)),
        blocks: blocks.collect(),
    })
}

/// One a cluster, of the random part of its id; 0 is none.
fn vni(cluster: ClusterId) -> u32 {
    let [.., a, b, c] = *cluster.as_bytes();
    u32::from_be_bytes([0, a, b, c]).max(1)
}
