//! Questions about networks and virtual IPs, and what differs between two states.

use std::net::Ipv4Addr;

use imbl::ordmap::DiffItem;
use warren_model::id::{NetworkId, NodeId, ServiceId};
use warren_model::network::{Network, Vip, VipHolder};
use warren_model::{NetworkName, Time};

use crate::{State, prefix_range};

impl State {
    /// In order of id.
    pub fn networks(&self) -> impl ExactSizeIterator<Item = &Network> {
        self.networks.values().map(|network| &**network)
    }

    pub fn network(&self, id: NetworkId) -> Option<&Network> {
        self.networks.get(&id).map(|network| &**network)
    }

    pub fn network_named(&self, name: &NetworkName) -> Option<&Network> {
        self.network(*self.network_names.get(name)?)
    }

    /// A network by its name, its id, or the beginning of its id if only one begins so.
    ///
    /// A name wins over an id: names are what people choose.
    pub fn resolve_network(&self, text: &str) -> Option<&Network> {
        if let Some(network) = text.parse().ok().and_then(|name| self.network_named(&name)) {
            return Some(network);
        }
        let (first, last) = prefix_range::<NetworkId>(text)?.into_inner();
        let mut found = self.networks.range(first..=last).map(|(_, network)| &**network);
        match (found.next(), found.next()) {
            (Some(network), None) => Some(network),
            (Some(_) | None, _) => None,
        }
    }

    /// Services on a network, in order of id; those that name no network are on the default one.
    pub fn users_of<'a>(
        &'a self,
        network: &NetworkName,
    ) -> impl Iterator<Item = ServiceId> + use<'a> {
        let range = (network.clone(), ServiceId::MIN)..=(network.clone(), ServiceId::MAX);
        self.users.range(range).map(|(_, service)| *service)
    }

    /// Every virtual IP that somebody has or that is in quarantine, in order of address.
    pub fn vips(&self) -> impl Iterator<Item = &Vip> {
        self.vips.values()
    }

    /// Those from `first` to `last`, both included.
    pub fn vips_between(&self, first: Ipv4Addr, last: Ipv4Addr) -> impl Iterator<Item = &Vip> {
        self.vips.range(first..=last).map(|(_, vip)| vip)
    }

    pub fn vip(&self, address: Ipv4Addr) -> Option<&Vip> {
        self.vips.get(&address)
    }

    /// The virtual IP that somebody has.
    pub fn vip_of(&self, holder: VipHolder) -> Option<Ipv4Addr> {
        self.holders.get(&holder).copied()
    }

    /// The virtual IPs that a service and its slots have, by network, then slot.
    pub fn vips_of(&self, service: ServiceId) -> impl Iterator<Item = (VipHolder, Ipv4Addr)> {
        let first = VipHolder { service, network: NetworkId::MIN, slot: 0 };
        let last = VipHolder { service, network: NetworkId::MAX, slot: u32::MAX };
        self.holders.range(first..=last).map(|(holder, address)| (*holder, *address))
    }

    /// Virtual IPs that nobody has, those first that are free first, with the end of their
    /// quarantine.
    pub fn quarantined_vips(&self) -> impl Iterator<Item = (Time, Ipv4Addr)> {
        self.quarantine.iter().copied()
    }

    /// Services that were made, changed or dropped since `before`, or whose tasks or addresses
    /// were. Costs what differs, not what exists, if one state grew out of the other.
    pub fn services_since(&self, before: &Self) -> Vec<ServiceId> {
        let changed = before.services.diff(&self.services);
        let ids = changed.map(|item| match item {
            DiffItem::Add(id, _) | DiffItem::Remove(id, _) => *id,
            DiffItem::Update { new: (id, _), .. } => *id,
        });
        ids.collect()
    }

    /// As [`State::services_since`], for nodes; what runs on them aside.
    pub fn nodes_since(&self, before: &Self) -> Vec<NodeId> {
        let changed = before.nodes.diff(&self.nodes);
        let ids = changed.filter_map(|item| match item {
            DiffItem::Add(id, _) | DiffItem::Remove(id, _) => Some(*id),
            DiffItem::Update { old: (id, old), new: (_, new) } => {
                (old.node != new.node).then_some(*id)
            }
        });
        ids.collect()
    }
}
