//! What this node's kernel should hold of networks: made of what managers say
//! and of what runs here.
//!
//! Pure. [`Drawing`] remembers what it made of each service, so that of
//! thousands of them only those cost work that changed, and what did not change
//! is the same tree as before, which is how `table` and `warren_net` compare.
//!
//! - A virtual IP leads to the tasks of its service that take connections, on
//!   any node; so does a slot's address, to those of the slot, and a published
//!   port of the routing mesh.
//! - Of tasks elsewhere managers know whether they take connections, of those
//!   here the agent does: one that drains, stops or has ended is out at once,
//!   one that serves is in before managers have heard of it.
//! - Containers on the same networks may reach each other. An address that is
//!   in no table is on no network, and parted from everybody. What policies
//!   say of a service is part of what its containers wait for.
//!
//! Not here: ports that this node publishes for its own containers alone
//! (`published`), who holds a port (`mesh`), how it is applied (`table`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use imbl::OrdMap;
use warren_model::node_table::{TableService, TableTask};
use warren_model::service::{Affinity, PortSpec};
use warren_model::{Cluster, NetworkId, NodeId, NodeTable, OverlayKind, ServiceId, TaskId};
use warren_net::{
    Backend, Entries, Frontend, Group, Overlay, PeerSet, Policy, PublishedPort, Service, Subnet,
};

use crate::published::PortKey;

mod overlay;
mod policies;
#[cfg(test)]
mod tests;

pub(crate) use overlay::Addresses;

/// What is fixed while the agent runs.
#[derive(Debug, Clone)]
pub struct Site {
    pub node: NodeId,
    /// Name of the device that encrypts, where the cluster has such an overlay.
    pub device: String,
    /// The kernel has IPv6.
    pub ipv6: bool,
}

impl Default for Site {
    fn default() -> Self {
        Self { node: NodeId::MIN, device: String::new(), ipv6: true }
    }
}

/// A task that runs, or ran, here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Local {
    pub(crate) service: ServiceId,
    /// Running, ready and not draining.
    pub(crate) serving: bool,
    /// Its container runs: what others still send is let in.
    pub(crate) up: bool,
}

/// What is drawn from.
#[derive(Debug)]
pub(crate) struct Ground<'a> {
    pub(crate) table: &'a Arc<NodeTable>,
    pub(crate) settings: Option<&'a Cluster>,
    pub(crate) locals: &'a BTreeMap<TaskId, Local>,
    /// Ports of the mesh that this node holds, and for whom.
    pub(crate) held: &'a Held,
    /// Where nodes are that are known by a name.
    pub(crate) addresses: &'a Addresses,
}

/// Ports of the mesh that this node holds, and for whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// By itself: as many as there are ports in the cluster.
    pub(crate) node: Arc<BTreeMap<PortKey, ServiceId>>,
    /// By a task of the service.
    pub(crate) tasks: BTreeMap<PortKey, ServiceId>,
}

impl Held {
    fn holder(&self, key: &PortKey) -> Option<ServiceId> {
        self.tasks.get(key).or_else(|| self.node.get(key)).copied()
    }

    /// Services for which something is held in one of both alone.
    fn differs<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = ServiceId> {
        let maps = [(&*self.node, &*other.node), (&self.tasks, &other.tasks)];
        let differ = maps.into_iter().filter(|(a, b)| !std::ptr::eq(*a, *b));
        differ.flat_map(|(a, b)| {
            let only = |of: &'a BTreeMap<PortKey, ServiceId>, other: &'a BTreeMap<_, _>| {
                let only = of.iter().filter(move |(key, id)| other.get(*key) != Some(*id));
                only.map(|(_, id)| *id)
            };
            only(a, b).chain(only(b, a))
        })
    }
}

/// What one service has in the kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Part {
    /// Of this node's containers alone.
    pub(crate) published: Vec<PublishedPort>,
    pub(crate) services: Vec<Arc<Service>>,
    pub(crate) group: Option<Arc<Group>>,
    /// About its containers here.
    pub(crate) policies: Vec<Arc<Policy>>,
}

/// Everything, but for what each service has of its own on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Whole {
    pub(crate) parts: OrdMap<ServiceId, Arc<Part>>,
    pub(crate) overlay: Option<Arc<Overlay>>,
    /// Numbers of networks without a way out.
    pub(crate) internal: BTreeSet<u32>,
    /// Whom policies name.
    pub(crate) peers: Entries<PeerSet>,
}

/// Tasks of a service on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Here {
    serving: BTreeSet<TaskId>,
    /// Run, and are led to by nobody here any more.
    leaving: BTreeSet<TaskId>,
}

/// Draws, and remembers what it has drawn.
#[derive(Debug, Default)]
pub(crate) struct Drawing {
    site: Site,
    parts: OrdMap<ServiceId, Arc<Part>>,
    /// That parts were made of, beside the table.
    here: BTreeMap<ServiceId, Here>,
    held: Held,
    /// Stable as long as the network is known here; none is given twice.
    numbers: BTreeMap<NetworkId, u32>,
    last_number: u32,
    /// That all was made of.
    table: Arc<NodeTable>,
    terms: Option<Terms>,
    overlay: Option<Arc<Overlay>>,
    /// What was made of policies.
    policies: policies::Drawn,
}

/// What the overlay depends on beside the table.
#[derive(Debug, PartialEq, Eq)]
struct Terms {
    pools: [warren_model::cluster::Subnet; 2],
    kind: OverlayKind,
    addresses: Addresses,
}

impl Drawing {
    pub(crate) fn new(site: Site) -> Self {
        Self { site, ..Self::default() }
    }

    pub(crate) fn site(&self) -> &Site {
        &self.site
    }

    /// How other nodes are reached, as last drawn.
    pub(crate) fn overlay(&self) -> Option<Arc<Overlay>> {
        self.overlay.clone()
    }

    /// Whether other nodes send connections to tasks of `service`.
    pub(crate) fn is_reached_from_elsewhere(&self, service: ServiceId) -> bool {
        let peers = self.overlay.as_ref().is_some_and(|overlay| !overlay.peers.is_empty());
        peers && self.parts.get(&service).is_some_and(|part| !part.services.is_empty())
    }

    /// All that follows from `ground`; what did not change is what was returned before.
    pub(crate) fn draw(&mut self, ground: &Ground<'_>) -> Whole {
        let reached = self.overlay.is_some();
        self.draw_overlay(ground);
        let same_networks = self.number(ground.table);
        let same_terms = same_networks && reached == self.overlay.is_some();
        let mut here: BTreeMap<ServiceId, Here> = BTreeMap::new();
        for (task, local) in ground.locals.iter().filter(|(_, local)| local.serving || local.up) {
            let here = here.entry(local.service).or_default();
            if local.serving { &mut here.serving } else { &mut here.leaving }.insert(*task);
        }
        let mut stale: BTreeSet<ServiceId> = match same_terms {
            true => ground.table.services_since(&self.table).map(|(id, ..)| id).collect(),
            false => ground.table.services.keys().chain(self.parts.keys()).copied().collect(),
        };
        stale.extend(differing(&self.here, &here));
        stale.extend(self.held.differs(ground.held));
        if !Arc::ptr_eq(&self.table, ground.table) {
            let drawn = policies::draw(&self.site, ground.table, &self.policies);
            stale.extend(differing(&self.policies.of, &drawn.of));
            self.policies = drawn;
            self.table = Arc::clone(ground.table);
        }
        self.here = here;
        if self.held != *ground.held {
            self.held = ground.held.clone();
        }
        for id in stale {
            self.draw_part(ground.table, id);
        }
        let internal = self.numbers.iter().filter(|(id, _)| {
            ground.table.networks.get(id).is_some_and(|network| network.internal)
        });
        let internal = internal.map(|(_, number)| *number).collect();
        let (parts, peers) = (self.parts.clone(), self.policies.peers.clone());
        Whole { parts, overlay: self.overlay.clone(), internal, peers }
    }

    fn draw_part(&mut self, table: &NodeTable, id: ServiceId) {
        let Some(source) = table.services.get(&id) else {
            self.parts.remove(&id);
            return;
        };
        let none = Here::default();
        let here = self.here.get(&id).unwrap_or(&none);
        let part = self.part(table, id, source, here);
        match self.parts.get(&id) {
            Some(known) if **known == part => {}
            known => {
                let part = keep(part, known);
                self.parts.insert(id, part);
            }
        }
    }

    fn draw_overlay(&mut self, ground: &Ground<'_>) {
        let terms = ground.settings.map(|settings| Terms {
            pools: [settings.pool, settings.vip_pool],
            kind: settings.overlay,
            addresses: ground.addresses.clone(),
        });
        // Maps of pointers: to compare them is little work.
        let (old, new) = (&self.table, ground.table);
        let same_table = Arc::ptr_eq(old, new)
            || (old.peers == new.peers
                && old.networks == new.networks
                && old.cluster == new.cluster);
        if same_table && self.terms == terms {
            return;
        }
        self.terms = terms;
        let overlay = ground.settings.and_then(|settings| {
            overlay::draw(&self.site, ground.table, settings, ground.addresses)
        });
        match (&self.overlay, overlay) {
            (Some(held), Some(drawn)) if **held == drawn => {}
            (_, drawn) => self.overlay = drawn.map(Arc::new),
        }
    }

    /// Numbers networks; says whether what services are drawn by is as before.
    fn number(&mut self, table: &Arc<NodeTable>) -> bool {
        if self.table.networks == table.networks && self.table.cluster == table.cluster {
            return true;
        }
        self.numbers.retain(|id, _| table.networks.contains_key(id));
        for id in table.networks.keys() {
            self.numbers.entry(*id).or_insert_with(|| {
                self.last_number += 1;
                self.last_number
            });
        }
        false
    }

    fn part(&self, table: &NodeTable, id: ServiceId, source: &TableService, here: &Here) -> Part {
        let backends: Vec<(u32, Backend)> = source
            .tasks
            .iter()
            .filter_map(|task| self.weight(task, here).map(|weight| (task, weight)))
            .flat_map(|(task, weight)| {
                self.backends(table, task, weight).map(|backend| (task.slot, backend))
            })
            .collect();
        let mut services = Vec::new();
        let mut push = |key: String, frontends: Vec<Frontend>, slot: Option<u32>| {
            let of = backends.iter().filter(|(of, _)| slot.is_none_or(|slot| *of == slot));
            let backends = of.map(|(_, backend)| *backend).collect();
            services.push(Arc::new(Service {
                key: key.into(),
                frontends,
                backends,
                affinity: source.endpoint.affinity == Affinity::ClientAddress,
                prefer_local: source.endpoint.prefer_local,
            }));
        };
        for on in &source.on {
            let vip = |address: Ipv4Addr| {
                let v6 = table.vip_v6(on.network, address).filter(|_| self.site.ipv6);
                let all = [Some(IpAddr::V4(address)), v6.map(IpAddr::V6)];
                all.into_iter().flatten().map(Frontend::Address).collect::<Vec<_>>()
            };
            if let Some(address) = on.vip {
                push(format!("{id}/{}", on.network), vip(address), None);
            }
            for (slot, address) in &on.slots {
                push(format!("{id}/{}/{slot}", on.network), vip(*address), Some(*slot));
            }
        }
        let ports: Vec<Frontend> = source
            .mesh_ports()
            .flat_map(|port| match self.held.holder(&PortKey::of(port)) == Some(id) {
                true => published(port, self.site.ipv6),
                false => here.serving.first().map(|_| elsewhere(port)).into_iter().collect(),
            })
            .collect();
        if !ports.is_empty() {
            push(format!("{id}/mesh"), ports, None);
        }
        let group = self.group(table, id, source);
        let policies = self.policies.of.get(&id).cloned().unwrap_or_default();
        Part { published: Vec::new(), services, group, policies }
    }

    /// A task's share of new connections, as far as this node can tell. None is led to one with
    /// zero; what others send to it is let in.
    fn weight(&self, task: &TableTask, here: &Here) -> Option<u16> {
        if task.node == self.site.node {
            let serves = here.serving.contains(&task.task).then_some(task.weight);
            return serves.or_else(|| here.leaving.contains(&task.task).then_some(0));
        }
        // Without an overlay there is no way to it.
        (task.ready && self.overlay.is_some()).then_some(task.weight)
    }

    fn backends(
        &self,
        table: &NodeTable,
        task: &TableTask,
        weight: u16,
    ) -> impl Iterator<Item = Backend> {
        let local = task.node == self.site.node;
        addresses(&self.site, table, task).map(move |address| Backend { address, weight, local })
    }

    fn group(&self, table: &NodeTable, id: ServiceId, source: &TableService) -> Option<Arc<Group>> {
        if source.on.is_empty() || source.tasks.is_empty() {
            return None;
        }
        let networks = source.on.iter().filter_map(|on| self.numbers.get(&on.network));
        Some(Arc::new(Group {
            key: id.to_string().into(),
            addresses: source
                .tasks
                .iter()
                .flat_map(|task| addresses(&self.site, table, task))
                .collect(),
            networks: networks.copied().collect(),
        }))
    }
}

/// Of both families, where there are two.
fn addresses(site: &Site, table: &NodeTable, task: &TableTask) -> impl Iterator<Item = IpAddr> {
    let v6 = table.container_v6(task.address).filter(|_| site.ipv6);
    [Some(IpAddr::V4(task.address)), v6.map(IpAddr::V6)].into_iter().flatten()
}

/// Addresses of virtual IPs on networks of this node, beside those that every node has.
fn own_subnets(table: &NodeTable) -> impl Iterator<Item = Subnet> {
    let own = table.networks.values().filter_map(|network| network.subnet_v6);
    own.map(|subnet| (subnet.address.into(), subnet.prefix))
}

/// One that is for every address is so for both families.
fn published(port: &PortSpec, ipv6: bool) -> Vec<Frontend> {
    let key = PortKey::of(port);
    let v6 = (ipv6 && key.bind.is_unspecified()).then_some(Ipv6Addr::UNSPECIFIED.into());
    let frontend = |bind| Frontend::Published {
        bind,
        protocol: key.net_protocol(),
        port: key.port,
        target: port.target,
    };
    [Some(key.bind.into()), v6].into_iter().flatten().map(frontend).collect()
}

fn elsewhere(port: &PortSpec) -> Frontend {
    Frontend::Elsewhere { protocol: PortKey::of(port).net_protocol(), target: port.target }
}

/// Keys of what is not the same in both.
fn differing<'a, V: PartialEq>(
    a: &'a BTreeMap<ServiceId, V>,
    b: &'a BTreeMap<ServiceId, V>,
) -> impl Iterator<Item = ServiceId> {
    let changed = a.iter().filter(|(id, value)| b.get(id) != Some(*value));
    let new = b.keys().filter(|id| !a.contains_key(id));
    changed.map(|(id, _)| *id).chain(new.copied())
}

/// The same with what `known` has too, by the same pointers.
fn keep(part: Part, known: Option<&Arc<Part>>) -> Arc<Part> {
    let Some(known) = known else { return Arc::new(part) };
    let same =
        |new: Arc<Service>| known.services.iter().find(|old| **old == new).map_or(new, Arc::clone);
    Arc::new(Part {
        published: part.published,
        policies: part.policies,
        services: part.services.into_iter().map(same).collect(),
        group: match (part.group, &known.group) {
            (Some(new), Some(old)) if new == *old => Some(Arc::clone(old)),
            (group, _) => group,
        },
    })
}
