//! Rows and their indices: the only code that writes the tables.
//!
//! Every write goes through a `put` that moves the indices along, and leaves the
//! row as it was in a [`Journal`]. Undoing a transaction is putting the old rows
//! back in reverse order, so a rejected transaction leaves no trace.

mod index;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use warren_model::cluster::Cluster;
use warren_model::id::{NetworkId, NodeId, PolicyId, ServiceId, TaskId};
use warren_model::network::{Network, Vip};
use warren_model::node::{Node, Tombstone};
use warren_model::operator::{Operator, OperatorName};
use warren_model::policy::Policy;
use warren_model::resources::Resources;
use warren_model::service::{Revision, Service, TaskTemplate};
use warren_model::task::Task;

use crate::State;
use crate::change::{Key, Rejection};

/// Bound on memory whatever is removed; a year of 180 nodes a day. One forgotten early is still
/// unknown, and let in only with a token.
pub(crate) const TOMBSTONES_MAX: usize = 65_536;

/// A node and what is on it. Indices that hang on a row are small trees near each other in
/// memory: creating and dropping tasks is twice as fast as with one large tree for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeRow {
    pub(crate) node: Arc<Node>,
    /// The address that a task got last: the search for the next goes on behind it.
    pub(crate) given: Option<Ipv4Addr>,
    /// By address, 0 for none: also tells who holds one.
    pub(crate) tasks: OrdSet<(u32, TaskId)>,
    /// Of `tasks`, those that have not ended.
    pub(crate) live: u32,
    /// What those reserve together, as their templates say.
    pub(crate) reserved: Resources,
    /// How many of those say so of processor time and of memory; of the others the defaults hold.
    pub(crate) stated: Stated,
    /// Devices that those have, and who has each.
    pub(crate) devices: BTreeMap<String, TaskId>,
}

/// Tasks whose templates reserve some of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stated {
    pub(crate) cpu: u32,
    pub(crate) memory: u32,
}

impl Stated {
    fn change(&mut self, reserve: &Resources, apply: impl Fn(u32, u32) -> u32) {
        self.cpu = apply(self.cpu, u32::from(reserve.cpu_millis > 0));
        self.memory = apply(self.memory, u32::from(reserve.memory_bytes > 0));
    }
}

/// A service, its templates and its tasks by slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceRow {
    pub(crate) service: Arc<Service>,
    pub(crate) templates: OrdMap<u32, TemplateRow>,
    /// Specifications of before, oldest first; few.
    pub(crate) revisions: Vec<Arc<Revision>>,
    pub(crate) tasks: OrdSet<(u32, TaskId)>,
    /// Revision of the last change to the service or one of its tasks.
    pub(crate) activity: u64,
}

/// A template and how many tasks refer to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TemplateRow {
    pub(crate) template: Arc<TaskTemplate>,
    pub(crate) tasks: u32,
}

/// A row as it was before a write; `None` where there was none.
enum Before {
    Cluster(Option<Arc<Cluster>>),
    Node(NodeId, Option<Arc<Node>>),
    Service(ServiceId, Option<ServiceRow>),
    Task(TaskId, Option<Arc<Task>>),
    Tombstone(NodeId, Option<Arc<Tombstone>>),
    Operator(OperatorName, Option<Arc<Operator>>),
    Network(NetworkId, Option<Arc<Network>>),
    Policy(PolicyId, Option<Arc<Policy>>),
    Vip(Ipv4Addr, Option<Vip>),
    Given(NodeId, Option<Ipv4Addr>),
}

/// What a transaction wrote so far, and what has to be looked at when it ends.
#[derive(Default)]
pub(crate) struct Journal {
    before: Vec<Before>,
    /// Written, or a task of theirs was; with repetitions.
    services: Vec<ServiceId>,
    /// Templates that lost their last task or their spec; dropped at the end if still unreferred,
    /// so that undoing never needs one that is gone.
    unreferred: Vec<(ServiceId, u32)>,
}

impl State {
    pub(crate) fn set_cluster(&mut self, journal: &mut Journal, cluster: Cluster) {
        self.note_room();
        let before = self.cluster.replace(Arc::new(cluster));
        journal.before.push(Before::Cluster(before));
    }

    pub(crate) fn set_node(&mut self, journal: &mut Journal, node: Node) {
        let id = node.id;
        let before = self.put_node(id, Some(Arc::new(node)));
        journal.before.push(Before::Node(id, before));
    }

    /// Its tasks are gone by now.
    pub(crate) fn remove_node(&mut self, journal: &mut Journal, id: NodeId) {
        let given = self.nodes.get(&id).and_then(|row| row.given);
        journal.before.push(Before::Given(id, given));
        let before = self.put_node(id, None);
        journal.before.push(Before::Node(id, before));
    }

    /// Forgets the one that would end first beyond [`TOMBSTONES_MAX`].
    pub(crate) fn set_tombstone(&mut self, journal: &mut Journal, tombstone: Tombstone) {
        let id = tombstone.node;
        let before = self.put_tombstone(id, Some(Arc::new(tombstone)));
        journal.before.push(Before::Tombstone(id, before));
        while self.tombstones.len() > TOMBSTONES_MAX
            && let Some((_, first)) = self.ends.get_min().copied()
        {
            let before = self.put_tombstone(first, None);
            journal.before.push(Before::Tombstone(first, before));
        }
    }

    /// Forgets those whose time has come.
    pub(crate) fn expire_tombstones(&mut self) {
        while let Some((end, id)) = self.ends.get_min().copied()
            && end <= self.time
        {
            self.put_tombstone(id, None);
        }
    }

    pub(crate) fn set_operator(
        &mut self,
        journal: &mut Journal,
        name: OperatorName,
        operator: Option<Operator>,
    ) {
        let before = self.put_operator(name, operator.map(Arc::new));
        journal.before.push(Before::Operator(name, before));
    }

    pub(crate) fn set_network(
        &mut self,
        journal: &mut Journal,
        id: NetworkId,
        network: Option<Network>,
    ) {
        let before = self.put_network(id, network.map(Arc::new));
        journal.before.push(Before::Network(id, before));
    }

    pub(crate) fn set_policy(
        &mut self,
        journal: &mut Journal,
        id: PolicyId,
        policy: Option<Policy>,
    ) {
        let before = self.put_policy(id, policy.map(Arc::new));
        journal.before.push(Before::Policy(id, before));
    }

    pub(crate) fn set_vip(&mut self, journal: &mut Journal, vip: Vip) {
        // What others are told of a service changes with its addresses.
        journal.services.push(vip.holder.service);
        let before = self.put_vip(vip.address, Some(vip));
        journal.before.push(Before::Vip(vip.address, before));
    }

    /// Forgets virtual IPs whose quarantine is over.
    pub(crate) fn expire_quarantine(&mut self) {
        while let Some((end, address)) = self.quarantine.get_min().copied()
            && end <= self.time
        {
            self.put_vip(address, None);
        }
    }

    pub(crate) fn set_service(
        &mut self,
        journal: &mut Journal,
        id: ServiceId,
        service: Option<Service>,
    ) {
        journal.services.push(id);
        let before = self.services.get(&id).cloned();
        let row = service.map(Arc::new).map(|service| match &before {
            Some(row) => ServiceRow { service, ..row.clone() },
            None => ServiceRow::new(service),
        });
        self.put_service(id, row);
        if let Some(row) = &before {
            journal.unreferred.push((id, row.service.template));
        }
        journal.before.push(Before::Service(id, before));
    }

    /// A service with what came before it.
    pub(crate) fn set_revisions(
        &mut self,
        journal: &mut Journal,
        id: ServiceId,
        service: Service,
        revisions: Vec<Arc<Revision>>,
    ) {
        self.set_service(journal, id, Some(service));
        if let Some(row) = self.services.get_mut(&id) {
            row.revisions = revisions;
        }
    }

    /// Adds a task; `false` if it took the place of another, which only undoing mends.
    pub(crate) fn insert_task(&mut self, journal: &mut Journal, task: Task) -> bool {
        let (id, service) = (task.id, task.service);
        let place = task.node.zip(task.address);
        let before = self.put_task(id, Some(Arc::new(task)), &mut journal.unreferred);
        self.note_given(journal, before.as_deref(), place);
        let new = before.is_none();
        journal.wrote_task(id, service, before);
        new
    }

    /// Replaces a task by what `edit` makes of it, unless that is nothing.
    ///
    /// One descent into the largest table instead of two, a third of the time of a report.
    pub(crate) fn edit_task(
        &mut self,
        journal: &mut Journal,
        id: TaskId,
        edit: impl FnOnce(&Task) -> Result<Option<Task>, Rejection>,
    ) -> Result<Option<Arc<Task>>, Rejection> {
        let Some(row) = self.tasks.get_mut(&id) else {
            return Err(Rejection::NotFound { key: Key::Task(id) });
        };
        let Some(task) = edit(row)? else { return Ok(None) };
        let task = Arc::new(task);
        let before = std::mem::replace(row, task.clone());
        self.index_task(id, Some(&before), Some(&task), &mut journal.unreferred);
        self.note_given(journal, Some(&before), task.node.zip(task.address));
        journal.wrote_task(id, task.service, Some(before));
        Ok(Some(task))
    }

    /// A task may have got an address.
    fn note_given(
        &mut self,
        journal: &mut Journal,
        before: Option<&Task>,
        place: Option<(NodeId, Ipv4Addr)>,
    ) {
        let had = before.and_then(|task| task.node.zip(task.address));
        let Some((node, address)) = place.filter(|_| had != place) else { return };
        if let Some(row) = self.nodes.get_mut(&node) {
            journal.before.push(Before::Given(node, row.given.replace(address)));
        }
    }

    pub(crate) fn remove_task(&mut self, journal: &mut Journal, id: TaskId) -> Option<Arc<Task>> {
        let before = self.put_task(id, None, &mut journal.unreferred)?;
        journal.wrote_task(id, before.service, Some(before.clone()));
        Some(before)
    }

    /// Makes what a transaction wrote final at `revision`.
    pub(crate) fn commit(&mut self, mut journal: Journal, revision: u64) {
        self.revision = revision;
        let topology = |before: &Before| match before {
            Before::Cluster(_) | Before::Node(..) => true,
            Before::Service(..)
            | Before::Task(..)
            | Before::Tombstone(..)
            | Before::Operator(..)
            | Before::Network(..)
            | Before::Policy(..)
            | Before::Vip(..)
            | Before::Given(..) => false,
        };
        if journal.before.iter().any(topology) {
            self.topology = revision;
        }
        journal.services.sort_unstable();
        journal.services.dedup();
        for service in journal.services {
            if let Some(row) = self.services.get_mut(&service) {
                row.activity = revision;
            }
        }
        self.drop_unreferred(journal.unreferred);
    }

    /// Puts everything back as it was before the transaction.
    pub(crate) fn undo(&mut self, journal: Journal) {
        let Journal { before, services: _, mut unreferred } = journal;
        for row in before.into_iter().rev() {
            match row {
                Before::Cluster(cluster) => self.cluster = cluster,
                Before::Node(id, node) => drop(self.put_node(id, node)),
                Before::Service(id, row) => self.put_service(id, row),
                Before::Task(id, task) => drop(self.put_task(id, task, &mut unreferred)),
                Before::Tombstone(id, tombstone) => drop(self.put_tombstone(id, tombstone)),
                Before::Operator(name, operator) => drop(self.put_operator(name, operator)),
                Before::Network(id, network) => drop(self.put_network(id, network)),
                Before::Policy(id, policy) => drop(self.put_policy(id, policy)),
                Before::Vip(address, vip) => {
                    self.put_vip(address, vip);
                }
                Before::Given(id, given) => {
                    if let Some(row) = self.nodes.get_mut(&id) {
                        row.given = given;
                    }
                }
            }
        }
        self.drop_unreferred(unreferred);
    }

    pub(crate) fn put_node(&mut self, id: NodeId, node: Option<Arc<Node>>) -> Option<Arc<Node>> {
        let Some(node) = node else {
            return self.nodes.remove(&id).map(|row| row.node);
        };
        let row = self.nodes.get(&id);
        // Whoever could use a further block would have been granted it.
        let same = |row: &NodeRow| {
            let blocks = node.blocks.clone();
            Node { blocks, revision: node.revision, ..Node::clone(&row.node) } == *node
        };
        if !row.is_some_and(same) {
            self.note_room();
        }
        if let Some(row) = self.nodes.get_mut(&id) {
            return Some(std::mem::replace(&mut row.node, node));
        }
        let (reserved, stated) = (Resources::default(), Stated::default());
        let row = NodeRow {
            node,
            given: None,
            tasks: OrdSet::new(),
            live: 0,
            reserved,
            stated,
            devices: BTreeMap::new(),
        };
        self.nodes.insert(id, row);
        None
    }

    pub(crate) fn put_tombstone(
        &mut self,
        id: NodeId,
        tombstone: Option<Arc<Tombstone>>,
    ) -> Option<Arc<Tombstone>> {
        let end = tombstone.as_ref().map(|tombstone| tombstone.keep_until);
        let before = match tombstone {
            None => self.tombstones.remove(&id),
            Some(tombstone) => self.tombstones.insert(id, tombstone),
        };
        if let Some(before) = &before {
            self.ends.remove(&(before.keep_until, id));
        }
        if let Some(end) = end {
            self.ends.insert((end, id));
        }
        before
    }

    pub(crate) fn put_operator(
        &mut self,
        name: OperatorName,
        operator: Option<Arc<Operator>>,
    ) -> Option<Arc<Operator>> {
        match operator {
            None => self.operators.remove(&name),
            Some(operator) => self.operators.insert(name, operator),
        }
    }

    pub(crate) fn put_network(
        &mut self,
        id: NetworkId,
        network: Option<Arc<Network>>,
    ) -> Option<Arc<Network>> {
        let name = network.as_ref().map(|network| network.spec.name.clone());
        let before = match network {
            None => self.networks.remove(&id),
            Some(network) => self.networks.insert(id, network),
        };
        if let Some(before) = &before {
            self.network_names.remove(&before.spec.name);
        }
        if let Some(name) = name {
            self.network_names.insert(name, id);
        }
        before
    }

    pub(crate) fn put_policy(
        &mut self,
        id: PolicyId,
        policy: Option<Arc<Policy>>,
    ) -> Option<Arc<Policy>> {
        let name = policy.as_ref().map(|policy| policy.spec.name.clone());
        let before = match policy {
            None => self.policies.remove(&id),
            Some(policy) => self.policies.insert(id, policy),
        };
        if let Some(before) = &before {
            self.policy_names.remove(&before.spec.name);
        }
        if let Some(name) = name {
            self.policy_names.insert(name, id);
        }
        before
    }

    pub(crate) fn put_vip(&mut self, address: Ipv4Addr, vip: Option<Vip>) -> Option<Vip> {
        let before = match vip {
            None => self.vips.remove(&address),
            Some(vip) => self.vips.insert(address, vip),
        };
        if let Some(before) = &before {
            match before.quarantined_until() {
                None => {
                    self.holders.remove(&before.holder);
                }
                Some(until) => {
                    self.quarantine.remove(&(until, address));
                }
            }
        }
        if let Some(vip) = &vip {
            match vip.quarantined_until() {
                None => {
                    self.holders.insert(vip.holder, address);
                }
                Some(until) => {
                    self.quarantine.insert((until, address));
                }
            }
        }
        before
    }

    /// Replaces a whole row; its templates gain the current one if they lack it.
    pub(crate) fn put_service(&mut self, id: ServiceId, row: Option<ServiceRow>) {
        if let Some(before) = self.services.get(&id) {
            self.names.remove(&before.service.spec.name);
            for port in &before.service.spec.ports {
                self.ports.remove(&(port.protocol, port.published, id));
            }
            for attachment in before.service.spec.attachments() {
                self.users.remove(&(attachment.network.clone(), id));
            }
        }
        let Some(mut row) = row else {
            self.services.remove(&id);
            return;
        };
        let service = &row.service;
        self.names.insert(service.spec.name.clone(), id);
        for port in &service.spec.ports {
            self.ports.insert((port.protocol, port.published, id));
        }
        for attachment in service.spec.attachments() {
            self.users.insert((attachment.network.clone(), id));
        }
        if !row.templates.contains_key(&service.template) {
            let template = Arc::new(service.spec.task.clone());
            row.templates.insert(service.template, TemplateRow { template, tasks: 0 });
        }
        self.services.insert(id, row);
    }

    pub(crate) fn put_task(
        &mut self,
        id: TaskId,
        task: Option<Arc<Task>>,
        unreferred: &mut Vec<(ServiceId, u32)>,
    ) -> Option<Arc<Task>> {
        let after = task.clone();
        let before = match task {
            None => self.tasks.remove(&id),
            Some(task) => self.tasks.insert(id, task),
        };
        self.index_task(id, before.as_deref(), after.as_deref(), unreferred);
        before
    }
}

impl Journal {
    fn wrote_task(&mut self, id: TaskId, service: ServiceId, before: Option<Arc<Task>>) {
        self.before.push(Before::Task(id, before));
        if self.services.last() != Some(&service) {
            self.services.push(service);
        }
    }
}

impl ServiceRow {
    pub(crate) fn new(service: Arc<Service>) -> Self {
        let (templates, revisions, tasks) = (OrdMap::new(), Vec::new(), OrdSet::new());
        Self { service, templates, revisions, tasks, activity: 0 }
    }
}

/// Whether a task runs, or will.
pub(crate) fn is_live(task: &Task) -> bool {
    !task.status.state.is_terminal()
}
