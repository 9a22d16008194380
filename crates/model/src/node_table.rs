//! What a node must know of the network: who its peers are, which services
//! there are for its containers, under which names and addresses, and which of
//! their tasks take connections.
//!
//! Made by managers for one node, of what concerns it alone: networks that its
//! own tasks are on, and of other services what the routing mesh needs. Names,
//! addresses, rules and routes of a node follow from it and from nothing else,
//! so the last one is good for as long as managers are away.
//!
//! Pure. Parts are shared: a copy of a table costs a pointer for each peer and
//! network, of services there is one tree, and who compares two of them looks at
//! what they do not share.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use crate::cluster::Subnet;
use crate::id::{ClusterId, NetworkId, NodeId, PolicyId, ServiceId, TaskId};
use crate::ipv6::{self, Subnet6};
use crate::name::{Alias, NetworkName, PolicyName, ServiceName};
use crate::policy::{IpRange, PolicyAction, PolicyPort};
use crate::service::{Endpoint, PortSpec, PublishMode};

/// Everything that one node knows.
#[derive(Debug, Clone, Default)]
pub struct NodeTable {
    /// IPv6 addresses follow from it; absent in a table that nobody has filled yet.
    pub cluster: Option<ClusterId>,
    /// All nodes, this one included.
    pub peers: BTreeMap<NodeId, Arc<Peer>>,
    /// Those that tasks of this node are on.
    pub networks: BTreeMap<NetworkId, Arc<TableNetwork>>,
    pub services: OrdMap<ServiceId, Arc<TableService>>,
    /// Those that are about tasks of this node.
    pub policies: BTreeMap<PolicyId, Arc<TablePolicy>>,
    /// Those that this node has a part in, as an end or in between; in order.
    pub relays: Vec<TableRelay>,
}

impl PartialEq for NodeTable {
    fn eq(&self, other: &Self) -> bool {
        self.services_since(other).next().is_none()
            && self.cluster == other.cluster
            && self.peers == other.peers
            && self.networks == other.networks
            && self.policies == other.policies
            && self.relays == other.relays
    }
}

impl Eq for NodeTable {}

/// Two nodes that do not reach each other, and who passes on what they send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableRelay {
    /// The smaller id first.
    pub ends: [NodeId; 2],
    pub via: NodeId,
    /// See [`crate::node::Relay::slot`].
    pub slot: u8,
}

impl TableRelay {
    /// The other end, if `node` is one.
    pub fn other(&self, node: NodeId) -> Option<NodeId> {
        match self.ends {
            [one, two] if one == node => Some(two),
            [one, two] if two == node => Some(one),
            _ => None,
        }
    }
}

/// A policy, with the services that it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablePolicy {
    pub name: PolicyName,
    pub action: PolicyAction,
    pub priority: u16,
    /// Who begins connections; nothing: anybody.
    pub from: Option<TablePeers>,
    /// Whom they are for; nothing: anybody.
    pub to: Option<TablePeers>,
    /// None: everything.
    pub ports: Vec<PolicyPort>,
}

/// One end of a policy. With nothing in it, it is nobody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TablePeers {
    /// Of those that the node knows of, in order of id.
    pub services: Vec<ServiceId>,
    pub ranges: Vec<IpRange>,
    pub outside: bool,
}

/// A node as others reach its containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Small, from 1, no two nodes alike: for marks and numbers of routing tables. 0 while it has
    /// no block.
    pub number: u32,
    /// The host's own address or name, without a port.
    pub underlay: String,
    /// Of its containers' addresses.
    pub blocks: Vec<Subnet>,
    /// Its end of the overlay (X25519); zeros: it has none.
    pub overlay_key: [u8; 32],
    /// It is known by this one too, while it replaces one by the other; zeros: none.
    pub overlay_key_other: [u8; 32],
    /// What people call it; empty: not told.
    pub name: String,
    /// Where its end of the overlay listens; 0: at the same port as this node's.
    pub overlay_port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableNetwork {
    pub name: NetworkName,
    pub internal: bool,
    pub attachable: bool,
    pub encrypted: bool,
    /// IPv6 virtual IPs on it are of this subnet instead of the common one.
    pub subnet_v6: Option<Subnet6>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableService {
    pub name: ServiceName,
    /// On networks of this node. None: known for its published ports alone, and nobody here may
    /// find it by its name.
    pub on: Vec<TableAttachment>,
    pub endpoint: Endpoint,
    /// All of them on a common network, else those of the routing mesh.
    pub ports: Vec<PortSpec>,
    /// What its containers call themselves, as it is wanted now; none: each by its own id.
    pub hostname: Option<Box<str>>,
    /// On a common network all that have not ended, else those that take connections; by slot.
    pub tasks: Vec<TableTask>,
}

/// A service on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableAttachment {
    pub network: NetworkId,
    pub aliases: Vec<Alias>,
    /// Its virtual IP there; none in endpoint mode `dnsrr`, or not yet.
    pub vip: Option<Ipv4Addr>,
    /// Addresses of its slots, by slot.
    pub slots: Vec<(u32, Ipv4Addr)>,
}

/// A task at its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableTask {
    pub task: TaskId,
    pub slot: u32,
    pub address: Ipv4Addr,
    pub node: NodeId,
    /// Its share of what arrives, against the weights of the others.
    pub weight: u16,
    /// It takes new connections: it runs, is wanted, and its node is heard of.
    pub ready: bool,
}

impl TableTask {
    /// Of a task like all others.
    pub const WEIGHT: u16 = 100;
}

impl TableService {
    /// Tasks that take new connections.
    pub fn backends(&self) -> impl Iterator<Item = &TableTask> {
        self.tasks.iter().filter(|task| task.ready)
    }

    pub fn attachment(&self, network: NetworkId) -> Option<&TableAttachment> {
        self.on.iter().find(|on| on.network == network)
    }

    /// Ports that any node answers.
    pub fn mesh_ports(&self) -> impl Iterator<Item = &PortSpec> {
        self.ports.iter().filter(|port| port.mode == PublishMode::Ingress)
    }
}

impl NodeTable {
    /// Services on a network of this node.
    pub fn users(&self, network: NetworkId) -> impl Iterator<Item = (&ServiceId, &TableService)> {
        let services = self.services.iter().map(|(id, service)| (id, &**service));
        services.filter(move |(_, service)| service.attachment(network).is_some())
    }

    /// Addresses of all containers on a network of this node, wherever they run.
    pub fn members(&self, network: NetworkId) -> impl Iterator<Item = &TableTask> {
        self.users(network).flat_map(|(_, service)| &service.tasks)
    }

    /// The IPv6 address of a container beside its IPv4 one.
    pub fn container_v6(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        self.cluster.map(|cluster| ipv6::of_container(cluster, address))
    }

    /// The IPv6 virtual IP beside an IPv4 one on a network of this node.
    pub fn vip_v6(&self, network: NetworkId, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let own = self.networks.get(&network)?.subnet_v6;
        self.cluster.map(|cluster| ipv6::of_vip(cluster, own, address))
    }

    /// What makes `self` of `before`; `None` if nothing does.
    pub fn since(&self, before: &Self) -> Option<TableChange> {
        let (peers, removed_peers) = changed(&before.peers, &self.peers);
        let (networks, removed_networks) = changed(&before.networks, &self.networks);
        let (mut services, mut removed_services) = (Vec::new(), Vec::new());
        for (id, _, now) in self.services_since(before) {
            match now {
                Some(now) => services.push((id, Arc::clone(now))),
                None => removed_services.push(id),
            }
        }
        let (policies, removed_policies) = changed(&before.policies, &self.policies);
        let change = TableChange {
            complete: false,
            cluster: self.cluster.filter(|_| self.cluster != before.cluster),
            peers,
            removed_peers,
            networks,
            removed_networks,
            services,
            removed_services,
            policies,
            removed_policies,
            relays: (self.relays != before.relays).then(|| self.relays.clone()),
        };
        (!change.is_empty()).then_some(change)
    }

    /// Services that are not the same as in `before`: as they were, and as they are. Costs what
    /// differs, where one table was made of the other.
    pub fn services_since<'a>(
        &'a self,
        before: &'a Self,
    ) -> impl Iterator<Item = (ServiceId, Option<&'a Arc<TableService>>, Option<&'a Arc<TableService>>)>
    {
        before.services.diff(&self.services).map(|item| match item {
            DiffItem::Add(id, now) => (*id, None, Some(now)),
            DiffItem::Update { old, new } => (*new.0, Some(old.1), Some(new.1)),
            DiffItem::Remove(id, was) => (*id, Some(was), None),
        })
    }

    /// A change that makes this table of any.
    pub fn whole(&self) -> TableChange {
        let change = self.since(&Self::default()).unwrap_or_default();
        TableChange { complete: true, ..change }
    }

    pub fn apply(&mut self, change: TableChange) {
        if change.complete {
            *self = Self::default();
        }
        self.cluster = change.cluster.or(self.cluster);
        put(&mut self.peers, change.peers, &change.removed_peers);
        put(&mut self.networks, change.networks, &change.removed_networks);
        for (id, service) in change.services {
            // What is the same stays the same tree.
            if self.services.get(&id) != Some(&service) {
                self.services.insert(id, service);
            }
        }
        for id in &change.removed_services {
            self.services.remove(id);
        }
        put(&mut self.policies, change.policies, &change.removed_policies);
        if let Some(relays) = change.relays {
            self.relays = relays;
        }
    }
}

/// What changed of a table: whole objects, and those that are gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableChange {
    /// Whatever was there before is not any more.
    pub complete: bool,
    pub cluster: Option<ClusterId>,
    pub peers: Vec<(NodeId, Arc<Peer>)>,
    pub removed_peers: Vec<NodeId>,
    pub networks: Vec<(NetworkId, Arc<TableNetwork>)>,
    pub removed_networks: Vec<NetworkId>,
    pub services: Vec<(ServiceId, Arc<TableService>)>,
    pub removed_services: Vec<ServiceId>,
    pub policies: Vec<(PolicyId, Arc<TablePolicy>)>,
    pub removed_policies: Vec<PolicyId>,
    /// All of them, if they are others than before.
    pub relays: Option<Vec<TableRelay>>,
}

impl TableChange {
    /// Whether it changes nothing in any table.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

type Changed<K, V> = (Vec<(K, Arc<V>)>, Vec<K>);

fn changed<K: Ord + Copy, V: PartialEq>(
    before: &BTreeMap<K, Arc<V>>,
    after: &BTreeMap<K, Arc<V>>,
) -> Changed<K, V> {
    let same = |old: &Arc<V>, new: &Arc<V>| Arc::ptr_eq(old, new) || old == new;
    let news = after.iter().filter(|(id, new)| !before.get(id).is_some_and(|old| same(old, new)));
    let news = news.map(|(id, new)| (*id, Arc::clone(new))).collect();
    let gone = before.keys().filter(|id| !after.contains_key(id)).copied().collect();
    (news, gone)
}

fn put<K: Ord, V>(table: &mut BTreeMap<K, Arc<V>>, news: Vec<(K, Arc<V>)>, gone: &[K]) {
    table.extend(news);
    for id in gone {
        table.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> [u8; 10] {
        [n; 10]
    }

    /// `web+1/2`: service `web` with tasks at .1, ready, and at .2, not ready.
    fn table(text: &str) -> NodeTable {
        let mut table =
            NodeTable { cluster: Some(ClusterId::from_bytes(id(1))), ..NodeTable::default() };
        let network = NetworkId::from_bytes(id(9));
        for word in text.split_whitespace() {
            let (name, tasks) = word.split_once('+').unwrap();
            let (ready, rest) = tasks.split_once('/').unwrap_or((tasks, ""));
            let task = |at: &str, ready: bool| {
                let n: u8 = at.parse().unwrap();
                TableTask {
                    task: TaskId::from_bytes(id(n)),
                    slot: n.into(),
                    address: [10, 128, 0, n].into(),
                    node: NodeId::from_bytes(id(3)),
                    weight: TableTask::WEIGHT,
                    ready,
                }
            };
            let ready = ready.split(',').filter(|at| !at.is_empty()).map(|at| task(at, true));
            let rest = rest.split(',').filter(|at| !at.is_empty()).map(|at| task(at, false));
            let on = TableAttachment { network, aliases: vec![], vip: None, slots: vec![] };
            let service = TableService {
                name: name.parse().unwrap(),
                on: if name.starts_with('x') { vec![] } else { vec![on] },
                endpoint: Endpoint::default(),
                ports: vec![],
                hostname: None,
                tasks: ready.chain(rest).collect(),
            };
            let service_id = ServiceId::from_bytes(id(name.as_bytes()[0]));
            table.services.insert(service_id, Arc::new(service));
        }
        let spec = TableNetwork {
            name: "back".parse().unwrap(),
            internal: false,
            attachable: false,
            encrypted: true,
            subnet_v6: None,
        };
        table.networks.insert(network, Arc::new(spec));
        table
    }

    #[track_caller]
    fn check(before: &str, after: &str, changed: &str, gone: usize) {
        let (before, after) = (table(before), table(after));
        let change = after.since(&before);
        let names = change.iter().flat_map(|change| &change.services);
        let names: Vec<&str> = names.map(|(_, service)| service.name.as_str()).collect();
        assert_eq!(names.join(" "), changed);
        assert_eq!(change.as_ref().map_or(0, |change| change.removed_services.len()), gone);
        let mut applied = before.clone();
        if let Some(change) = change {
            applied.apply(change);
        }
        assert_eq!(applied, after);
        applied.apply(before.whole());
        assert_eq!(applied, before);
    }

    #[test]
    fn changes_are_whole_services() {
        check("web+1/2", "web+1/2", "", 0);
        check("", "web+1", "web", 0);
        check("web+1/2 api+3", "web+1,2 api+3", "web", 0);
        check("web+1 api+3", "api+3", "", 1);
        check("web+1", "api+1 db+2", "api db", 1);
    }

    #[test]
    fn members_are_all_on_the_network_and_backends_those_that_are_ready() {
        let table = table("web+1/2 xport+7 api+3");
        let network = NetworkId::from_bytes(id(9));
        let last = |task: &TableTask| task.address.octets()[3];
        let members: Vec<u8> = table.members(network).map(last).collect();
        assert_eq!(members, [3, 1, 2]);
        let web = table.users(network).find(|(_, service)| service.name.as_str() == "web");
        let backends: Vec<u8> = web.unwrap().1.backends().map(last).collect();
        assert_eq!(backends, [1]);
        let v6 = table.vip_v6(network, [10, 192, 0, 1].into()).unwrap();
        assert_eq!(v6.to_string(), "fd01:101:101:1::ac0:1");
        assert_eq!(table.vip_v6(NetworkId::MIN, [10, 192, 0, 1].into()), None);
    }
}
