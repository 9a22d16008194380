//! The replicated state machine: tables, indices, transactions in, events out.
//!
//! Deterministic: the same transactions in the same order give the same bytes
//! on every replica and every version. No clock, randomness or hash order; the
//! time of an entry comes with it. Cloning a [`State`] is cheap (persistent
//! maps), so a reader keeps its own as a view while the writer goes on.
//!
//! Not here: the log, encryption and the wire format (the store), decisions
//! (the planner), names of callers and what they may do (the manager).

mod apply;
mod audit;
pub mod change;
mod check;
mod checksum;
mod mutate;
mod networks;
mod policies;
mod requests;
mod snapshot;
mod table;
mod weight;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use warren_model::cluster::Cluster;
use warren_model::defaults::Defaults;
use warren_model::id::{NetworkId, NodeId, PolicyId, ServiceId, TaskId};
use warren_model::network::{Network, Vip, VipHolder};
use warren_model::node::{Node, Tombstone};
use warren_model::operator::{Operator, OperatorName};
use warren_model::policy::Policy;
use warren_model::resources::Resources;
use warren_model::service::{Protocol, Revision, Service, TaskTemplate};
use warren_model::task::Task;
use warren_model::{AuditRecord, NetworkName, PolicyName, ServiceName, Time};

use crate::audit::Audit;
use crate::change::Key;
pub use crate::mutate::is_news;
use crate::requests::Requests;
pub use crate::snapshot::{Head, ImportError, Object};
use crate::table::{NodeRow, ServiceRow};

/// Everything the cluster has agreed on. `Clone` copies some twenty pointers.
#[derive(Clone, Default)]
pub struct State {
    revision: u64,
    time: Time,
    /// Revision of the last change to the cluster or a node.
    topology: u64,
    /// Revision of the last transaction by which a node may have got more room: see
    /// [`State::roomier`].
    roomier: u64,
    cluster: Option<Arc<Cluster>>,
    nodes: OrdMap<NodeId, NodeRow>,
    services: OrdMap<ServiceId, ServiceRow>,
    tasks: OrdMap<TaskId, Arc<Task>>,
    tombstones: OrdMap<NodeId, Arc<Tombstone>>,
    operators: OrdMap<OperatorName, Arc<Operator>>,
    networks: OrdMap<NetworkId, Arc<Network>>,
    policies: OrdMap<PolicyId, Arc<Policy>>,
    vips: OrdMap<Ipv4Addr, Vip>,
    requests: Requests,
    audit: Audit,

    // Indices, like those within rows: derived from the objects, kept by `table`, never exported.
    names: OrdMap<ServiceName, ServiceId>,
    ports: OrdSet<(Protocol, u16, ServiceId)>,
    /// Tombstones by their end.
    ends: OrdSet<(Time, NodeId)>,
    network_names: OrdMap<NetworkName, NetworkId>,
    policy_names: OrdMap<PolicyName, PolicyId>,
    /// Services by the networks that they are on.
    users: OrdSet<(NetworkName, ServiceId)>,
    /// Virtual IPs that somebody has.
    holders: OrdMap<VipHolder, Ipv4Addr>,
    /// The others, by the end of their quarantine.
    quarantine: OrdSet<(Time, Ipv4Addr)>,
}

impl State {
    /// Of the last transaction applied; 0 when there was none.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Of the last entry applied; never goes back.
    pub fn time(&self) -> Time {
        self.time
    }

    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_deref()
    }

    /// In order of id.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &Node> {
        self.nodes.values().map(|row| &*row.node)
    }

    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id).map(|row| &*row.node)
    }

    /// A node by its id, its host's name, or the beginning of its id, if only one is meant.
    pub fn resolve_node(&self, text: &str) -> Option<&Node> {
        if let Some(node) = text.parse().ok().and_then(|id| self.node(id)) {
            return Some(node);
        }
        let mut named = self.nodes().filter(|node| node.description.hostname == text);
        match (named.next(), named.next()) {
            (Some(node), None) => return Some(node),
            (Some(_), Some(_)) => return None,
            (None, _) => {}
        }
        let (first, last) = prefix_range::<NodeId>(text)?.into_inner();
        let mut found = self.nodes.range(first..=last).map(|(_, row)| &*row.node);
        match (found.next(), found.next()) {
            (Some(node), None) => Some(node),
            (Some(_) | None, _) => None,
        }
    }

    /// The node that has, or had last, this number in the consensus group.
    pub fn node_by_number(&self, number: u64) -> Option<&Node> {
        self.nodes().find(|node| node.number == Some(number))
    }

    /// Of a node that was removed and is refused still.
    pub fn tombstone(&self, id: NodeId) -> Option<&Tombstone> {
        self.tombstones.get(&id).map(|tombstone| &**tombstone)
    }

    /// In order of id.
    pub fn tombstones(&self) -> impl ExactSizeIterator<Item = &Tombstone> {
        self.tombstones.values().map(|tombstone| &**tombstone)
    }

    /// In order of name.
    pub fn operators(&self) -> impl ExactSizeIterator<Item = &Operator> {
        self.operators.values().map(|operator| &**operator)
    }

    pub fn operator(&self, name: OperatorName) -> Option<&Operator> {
        self.operators.get(&name).map(|operator| &**operator)
    }

    /// Who has a token with this SHA-256. Whether it has expired is for the caller to see.
    pub fn operator_by_token(&self, hash: &[u8; 32]) -> Option<&Operator> {
        self.operators().find(|operator| operator.token_hash.as_ref() == Some(hash))
    }

    /// Who has a certificate with a key of this SHA-256.
    pub fn operator_by_key(&self, hash: &[u8; 32]) -> Option<&Operator> {
        self.operators().find(|operator| operator.key_hash.as_ref() == Some(hash))
    }

    /// What people changed lately, oldest first.
    pub fn audit(&self) -> impl DoubleEndedIterator<Item = &AuditRecord> {
        self.audit.iter().map(|record| &**record)
    }

    /// Tasks on a node that have not ended.
    pub fn live_on(&self, node: NodeId) -> u32 {
        self.nodes.get(&node).map_or(0, |row| row.live)
    }

    /// Devices that those tasks have, `vendor.com/class=name`, and who has each.
    pub fn devices_on(&self, node: NodeId) -> Option<&BTreeMap<String, TaskId>> {
        self.nodes.get(&node).map(|row| &row.devices)
    }

    /// What those tasks reserve together, as their templates say.
    pub fn stated_on(&self, node: NodeId) -> Option<&Resources> {
        self.nodes.get(&node).map(|row| &row.reserved)
    }

    /// What is reserved there for tasks that say nothing of it: thousandths of a core, and bytes of
    /// memory.
    pub fn by_default_on(&self, node: NodeId) -> (u64, u64) {
        let Some(row) = self.nodes.get(&node) else { return (0, 0) };
        let defaults = self.defaults_of(&row.node);
        let all = |stated: u32, each: u64| u64::from(row.live.saturating_sub(stated)) * each;
        let cpu = all(row.stated.cpu, defaults.reserve_cpu_millis);
        (cpu, all(row.stated.memory, defaults.reserve_memory_bytes))
    }

    /// What those tasks reserve together, defaults included; `None` of no node.
    pub fn reserved_on(&self, node: NodeId) -> Option<Resources> {
        let mut reserved = self.stated_on(node)?.clone();
        let (cpu_millis, memory_bytes) = self.by_default_on(node);
        reserved.add(&Resources { cpu_millis, memory_bytes, ..Resources::default() });
        Some(reserved)
    }

    /// What holds on a node for tasks that say nothing of it.
    pub fn defaults_of(&self, node: &Node) -> Defaults {
        node.defaults.or(self.cluster().map(|cluster| cluster.defaults).unwrap_or_default())
    }

    /// In order of id.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Service> {
        self.services.values().map(|row| &*row.service)
    }

    pub fn service(&self, id: ServiceId) -> Option<&Service> {
        self.services.get(&id).map(|row| &*row.service)
    }

    pub fn service_by_name(&self, name: &str) -> Option<&Service> {
        let name: ServiceName = name.parse().ok()?;
        self.service(*self.names.get(&name)?)
    }

    /// A service by its name, its id, or the beginning of its id if only one begins so.
    ///
    /// A name wins over an id: names are what people choose.
    pub fn resolve_service(&self, text: &str) -> Option<&Service> {
        if let Some(service) = self.service_by_name(text) {
            return Some(service);
        }
        let (first, last) = prefix_range::<ServiceId>(text)?.into_inner();
        let mut found = self.services.range(first..=last).map(|(_, row)| &*row.service);
        match (found.next(), found.next()) {
            (Some(service), None) => Some(service),
            (Some(_) | None, _) => None,
        }
    }

    /// In order of id.
    pub fn tasks(&self) -> impl ExactSizeIterator<Item = &Task> {
        self.tasks.values().map(|task| &**task)
    }

    pub fn task(&self, id: TaskId) -> Option<&Task> {
        self.tasks.get(&id).map(|task| &**task)
    }

    /// In order of slot, then id.
    pub fn tasks_of(&self, service: ServiceId) -> impl Iterator<Item = &Task> {
        let slots = self.services.get(&service).map(|row| row.tasks.iter());
        slots.into_iter().flatten().filter_map(|(_, id)| self.task(*id))
    }

    /// How many tasks a service has, ended ones included; costs nothing.
    pub fn task_count(&self, service: ServiceId) -> usize {
        self.services.get(&service).map_or(0, |row| row.tasks.len())
    }

    /// In order of address, ended ones included.
    pub fn tasks_on(&self, node: NodeId) -> impl Iterator<Item = &Task> {
        let ids = self.nodes.get(&node).map(|row| row.tasks.iter());
        ids.into_iter().flatten().filter_map(|(_, id)| self.task(*id))
    }

    /// Addresses of a node's tasks in order, ended ones included; cheaper than the tasks.
    pub fn addresses_on(&self, node: NodeId) -> impl Iterator<Item = Ipv4Addr> {
        let keys = self.nodes.get(&node).map(|row| row.tasks.iter());
        let addresses = keys.into_iter().flatten().map(|(address, _)| *address);
        addresses.filter(|address| *address != 0).map(Ipv4Addr::from)
    }

    /// The address that a task on a node got last, if any did: who looks for a free one begins
    /// behind it, so that an address rests as long as there are others.
    pub fn last_given(&self, node: NodeId) -> Option<Ipv4Addr> {
        self.nodes.get(&node)?.given
    }

    /// Template `number` of a service; kept while a task or the current spec refers to it.
    pub fn template(&self, service: ServiceId, number: u32) -> Option<&Arc<TaskTemplate>> {
        Some(&self.services.get(&service)?.templates.get(&number)?.template)
    }

    /// What a service was before, oldest first; not what it is now.
    pub fn revisions(&self, service: ServiceId) -> &[Arc<Revision>] {
        self.services.get(&service).map_or(&[], |row| &row.revisions)
    }

    /// The live task on a node that holds an address; an ended task has given its back.
    pub fn address_holder(&self, node: NodeId, address: Ipv4Addr) -> Option<TaskId> {
        let address = u32::from(address);
        let range = (address, TaskId::MIN)..=(address, TaskId::MAX);
        let mut holders = self.nodes.get(&node)?.tasks.range(range).map(|(_, id)| *id);
        holders.find(|id| self.is_live(*id))
    }

    /// Whether a task has not ended.
    pub fn is_live(&self, id: TaskId) -> bool {
        self.task(id).is_some_and(table::is_live)
    }

    /// Revision of the last change to a service or any of its tasks; 0 if it does not exist.
    ///
    /// For caches: may be later than the change after a restore, never earlier.
    pub fn activity(&self, service: ServiceId) -> u64 {
        self.services.get(&service).map_or(0, |row| row.activity)
    }

    /// Revision of the last change to the cluster's settings or to a node; for caches, as
    /// [`State::activity`].
    pub fn topology(&self) -> u64 {
        self.topology
    }

    /// Revision of the last transaction by which a node may have got room for more tasks: one of
    /// its tasks ended or was taken off it, it was changed otherwise than by a block of addresses,
    /// or the cluster's settings were. For caches, as [`State::activity`].
    pub fn roomier(&self) -> u64 {
        self.roomier
    }

    /// What [`change::Expect`] compares: 0 for an object that does not exist.
    ///
    /// The cluster's settings carry no revision of their own: theirs is a hash of the content.
    pub fn revision_of(&self, key: Key) -> u64 {
        match key {
            Key::Cluster => self.cluster().map_or(0, checksum::of_cluster),
            Key::Node(id) => self.node(id).map_or(0, |node| node.revision),
            Key::Service(id) => self.service(id).map_or(0, |service| service.revision),
            Key::Task(id) => self.task(id).map_or(0, |task| task.revision),
            Key::Operator(name) => self.operator(name).map_or(0, |operator| operator.revision),
            Key::Network(id) => self.network(id).map_or(0, |network| network.revision),
            Key::Policy(id) => self.policy(id).map_or(0, |policy| policy.revision),
        }
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("revision", &self.revision)
            .field("time", &self.time)
            .field("nodes", &self.nodes.len())
            .field("services", &self.services.len())
            .field("tasks", &self.tasks.len())
            .field("networks", &self.networks.len())
            .finish_non_exhaustive()
    }
}

/// Characters of a whole id as text.
const ID_CHARS: usize = 16;

/// The ids whose text begins with `prefix`; `None` if none can.
fn prefix_range<T: FromStr>(prefix: &str) -> Option<RangeInclusive<T>> {
    if prefix.is_empty() || prefix.len() > ID_CHARS || !prefix.is_ascii() {
        return None;
    }
    let first = format!("{prefix:0<ID_CHARS$}").parse().ok()?;
    let last = format!("{prefix:z<ID_CHARS$}").parse().ok()?;
    Some(first..=last)
}
