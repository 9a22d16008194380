//! Rows and their indices: the only code that writes the tables.
//!
//! Every write goes through a `put` that moves the indices along, and leaves the
//! row as it was in a [`Journal`]. Undoing a transaction is putting the old rows
//! back in reverse order, so a rejected transaction leaves no trace.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use warren_model::cluster::Cluster;
use warren_model::id::{NodeId, ServiceId, TaskId};
use warren_model::node::Node;
use warren_model::service::{Service, TaskTemplate};
use warren_model::task::Task;

use crate::State;

/// A node and how much is on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeRow {
    pub(crate) node: Arc<Node>,
    /// Its tasks that have not ended.
    pub(crate) live: u32,
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
    Service(ServiceId, Option<Arc<Service>>),
    Task(TaskId, Option<Arc<Task>>),
}

/// What a transaction wrote so far, and what has to be looked at when it ends.
#[derive(Default)]
pub(crate) struct Journal {
    before: Vec<Before>,
    services: BTreeSet<ServiceId>,
    /// Templates that lost their last task or their spec; dropped at the end if still unreferred,
    /// so that undoing never needs one that is gone.
    unreferred: Vec<(ServiceId, u32)>,
}

impl State {
    pub(crate) fn set_cluster(&mut self, journal: &mut Journal, cluster: Cluster) {
        let before = self.cluster.replace(Arc::new(cluster));
        journal.before.push(Before::Cluster(before));
    }

    pub(crate) fn set_node(&mut self, journal: &mut Journal, node: Node) {
        let id = node.id;
        let before = self.put_node(id, Some(Arc::new(node)));
        journal.before.push(Before::Node(id, before));
    }

    pub(crate) fn set_service(
        &mut self,
        journal: &mut Journal,
        id: ServiceId,
        service: Option<Service>,
    ) {
        journal.services.insert(id);
        let before = self.put_service(id, service.map(Arc::new), &mut journal.unreferred);
        journal.before.push(Before::Service(id, before));
    }

    pub(crate) fn set_task(
        &mut self,
        journal: &mut Journal,
        id: TaskId,
        service: ServiceId,
        task: Option<Task>,
    ) {
        journal.services.insert(service);
        let before = self.put_task(id, task.map(Arc::new), &mut journal.unreferred);
        journal.before.push(Before::Task(id, before));
    }

    /// Makes what a transaction wrote final at `revision`.
    pub(crate) fn commit(&mut self, journal: Journal, revision: u64) {
        self.revision = revision;
        let topology = |before: &Before| match before {
            Before::Cluster(_) | Before::Node(..) => true,
            Before::Service(..) | Before::Task(..) => false,
        };
        if journal.before.iter().any(topology) {
            self.topology = revision;
        }
        for service in journal.services {
            if self.services.contains_key(&service) {
                self.activity.insert(service, revision);
            } else {
                self.activity.remove(&service);
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
                Before::Service(id, row) => drop(self.put_service(id, row, &mut unreferred)),
                Before::Task(id, task) => drop(self.put_task(id, task, &mut unreferred)),
            }
        }
        self.drop_unreferred(unreferred);
    }

    pub(crate) fn put_node(&mut self, id: NodeId, node: Option<Arc<Node>>) -> Option<Arc<Node>> {
        let Some(node) = node else {
            return self.nodes.remove(&id).map(|row| row.node);
        };
        if let Some(row) = self.nodes.get_mut(&id) {
            return Some(std::mem::replace(&mut row.node, node));
        }
        self.nodes.insert(id, NodeRow { node, live: 0 });
        None
    }

    pub(crate) fn put_service(
        &mut self,
        id: ServiceId,
        service: Option<Arc<Service>>,
        unreferred: &mut Vec<(ServiceId, u32)>,
    ) -> Option<Arc<Service>> {
        let before = self.services.get(&id).cloned();
        if let Some(before) = &before {
            self.names.remove(&before.spec.name);
            for port in &before.spec.ports {
                self.ports.remove(&(port.protocol, port.published, id));
            }
            unreferred.push((id, before.template));
        }
        let Some(service) = service else {
            self.services.remove(&id);
            return before;
        };
        self.names.insert(service.spec.name.clone(), id);
        for port in &service.spec.ports {
            self.ports.insert((port.protocol, port.published, id));
        }
        if !self.templates.contains_key(&(id, service.template)) {
            let template = Arc::new(service.spec.task.clone());
            self.templates.insert((id, service.template), TemplateRow { template, tasks: 0 });
        }
        self.services.insert(id, service);
        before
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
            Some(task) => match self.tasks.get_mut(&id) {
                Some(row) => Some(std::mem::replace(row, task)),
                None => self.tasks.insert(id, task),
            },
        };
        let (old, new) = (before.as_deref(), after.as_deref());
        self.index_slot(id, old, new);
        self.index_node(id, old, new);
        self.index_address(id, old, new);
        self.count_template(old, new, unreferred);
        before
    }

    fn index_slot(&mut self, id: TaskId, old: Option<&Task>, new: Option<&Task>) {
        let key = |task: &Task| (task.service, task.slot, id);
        let (old, new) = (old.map(key), new.map(key));
        if old == new {
            return;
        }
        if let Some(key) = old {
            self.by_service.remove(&key);
        }
        if let Some(key) = new {
            self.by_service.insert(key);
        }
    }

    fn index_node(&mut self, id: TaskId, old: Option<&Task>, new: Option<&Task>) {
        let node = |task: Option<&Task>| task.and_then(|task| task.node);
        let live = |task: Option<&Task>| task.filter(|task| is_live(task)).and_then(|t| t.node);
        if node(old) != node(new) {
            if let Some(node) = node(old) {
                self.by_node.remove(&(node, id));
            }
            if let Some(node) = node(new) {
                self.by_node.insert((node, id));
            }
        }
        if live(old) != live(new) {
            if let Some(row) = live(old).and_then(|node| self.nodes.get_mut(&node)) {
                row.live = row.live.saturating_sub(1);
            }
            if let Some(row) = live(new).and_then(|node| self.nodes.get_mut(&node)) {
                row.live = row.live.saturating_add(1);
            }
        }
    }

    fn index_address(&mut self, id: TaskId, old: Option<&Task>, new: Option<&Task>) {
        let (old, new) = (old.and_then(held_address), new.and_then(held_address));
        if old == new {
            return;
        }
        if let Some(address) = old {
            self.addresses.remove(&address);
        }
        if let Some(address) = new {
            self.addresses.insert(address, id);
        }
    }

    fn count_template(
        &mut self,
        old: Option<&Task>,
        new: Option<&Task>,
        unreferred: &mut Vec<(ServiceId, u32)>,
    ) {
        let key = |task: &Task| (task.service, task.template);
        let (old, new) = (old.map(key), new.map(key));
        if old == new {
            return;
        }
        if let Some(key) = old
            && let Some(row) = self.templates.get_mut(&key)
        {
            row.tasks = row.tasks.saturating_sub(1);
            if row.tasks == 0 {
                unreferred.push(key);
            }
        }
        if let Some(row) = new.and_then(|key| self.templates.get_mut(&key)) {
            row.tasks = row.tasks.saturating_add(1);
        }
    }

    fn drop_unreferred(&mut self, unreferred: Vec<(ServiceId, u32)>) {
        for (service, number) in unreferred {
            let current = self.services.get(&service).is_some_and(|s| s.template == number);
            let used = self.templates.get(&(service, number)).is_some_and(|row| row.tasks > 0);
            if !current && !used {
                self.templates.remove(&(service, number));
            }
        }
    }
}

/// Whether a task runs, or will.
pub(crate) fn is_live(task: &Task) -> bool {
    !task.status.state.is_terminal()
}

/// The address that a task keeps others from getting.
pub(crate) fn held_address(task: &Task) -> Option<Ipv4Addr> {
    task.address.filter(|_| is_live(task))
}
