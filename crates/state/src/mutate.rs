//! What each mutation does, and when it is refused.

use std::net::Ipv4Addr;

use warren_model::cluster::{Cluster, Subnet};
use warren_model::event::{Action, Event, Kind};
use warren_model::id::{NodeId, ServiceId, TaskId};
use warren_model::node::{Availability, Node, NodeStatus};
use warren_model::service::{Service, ServiceSpec};
use warren_model::task::{Desired, Task, TaskState, TaskStatus};

use crate::State;
use crate::change::{Key, Mutation, Rejection};
use crate::table::{Journal, is_live};

/// Of a task's error, in bytes; longer ones are cut. A million tasks may carry one.
pub(crate) const ERROR_BYTES_MAX: usize = 1024;

/// One transaction while it is being applied.
pub(crate) struct Step<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) journal: &'a mut Journal,
    pub(crate) events: &'a mut Vec<Event>,
    /// That the transaction will have.
    pub(crate) revision: u64,
}

impl Step<'_> {
    pub(crate) fn mutate(&mut self, mutation: &Mutation) -> Result<(), Rejection> {
        match mutation {
            Mutation::SetCluster(cluster) => self.set_cluster(cluster),
            Mutation::CreateNode(node) => self.create_node(node),
            Mutation::DescribeNode { id, description } => self.change_node(*id, |node| {
                node.description.clone_from(description);
                format!("{} at {}", description.hostname, description.address)
            }),
            Mutation::SetNodeStatus { id, status } => self.change_node(*id, |node| {
                node.status = *status;
                match status {
                    NodeStatus::Ready => "ready".to_owned(),
                    NodeStatus::Down => "down".to_owned(),
                }
            }),
            Mutation::SetAvailability { id, availability } => self.change_node(*id, |node| {
                node.availability = *availability;
                match availability {
                    Availability::Active => "active".to_owned(),
                    Availability::Pause => "paused".to_owned(),
                    Availability::Drain => "draining".to_owned(),
                }
            }),
            Mutation::GrantBlock { id, block } => self.grant_block(*id, *block),
            Mutation::CreateService { id, spec } => self.create_service(*id, spec),
            Mutation::UpdateService { id, spec } => self.update_service(*id, spec),
            Mutation::RemoveService { id } => self.remove_service(*id),
            Mutation::DropService { id } => self.drop_service(*id),
            Mutation::CreateTask(task) => self.create_task(task),
            Mutation::PlaceTask { id, node, address } => self.place_task(*id, *node, *address),
            Mutation::SetDesired { id, desired } => self.set_desired(*id, *desired),
            Mutation::ExplainTask { id, error } => self.explain_task(*id, error),
            Mutation::ReportTask { id, node, status } => {
                self.report_task(*id, *node, status);
                Ok(())
            }
            Mutation::DropTask { id } => self.drop_task(*id),
        }
    }

    fn set_cluster(&mut self, cluster: &Cluster) -> Result<(), Rejection> {
        let before = self.state.cluster.clone();
        if before.as_deref() == Some(cluster) {
            return Ok(());
        }
        if before.as_ref().is_some_and(|before| before.id != cluster.id) {
            return invalid("the cluster's id cannot change");
        }
        // 30: a block needs a network, a gateway, a broadcast and at least one other address.
        if cluster.block_prefix < cluster.pool.prefix || cluster.block_prefix > 30 {
            let Cluster { pool, block_prefix, .. } = cluster;
            return invalid(format!(
                "block prefix {block_prefix} is not between that of the pool {pool} and 30"
            ));
        }
        self.state.set_cluster(self.journal, cluster.clone());
        let action = if before.is_some() { Action::Update } else { Action::Create };
        self.emit(Kind::Cluster, action, cluster.id.to_string(), String::new(), String::new());
        Ok(())
    }

    // ---- nodes ----

    fn create_node(&mut self, node: &Node) -> Result<(), Rejection> {
        if self.state.node(node.id).is_some() {
            return Err(Rejection::Exists { key: Key::Node(node.id) });
        }
        for (at, block) in node.blocks.iter().enumerate() {
            if node.blocks[..at].iter().any(|other| overlap(*other, *block)) {
                return invalid(format!("block {block} overlaps another of the same node"));
            }
            self.check_block(*block)?;
        }
        let node = Node { revision: self.revision, ..node.clone() };
        let (id, name) = (node.id.to_string(), node.description.hostname.clone());
        self.state.set_node(self.journal, node);
        self.emit(Kind::Node, Action::Create, id, name, String::new());
        Ok(())
    }

    /// Writes nothing if the change changes nothing: an idle cluster stays quiet.
    fn change_node(
        &mut self,
        id: NodeId,
        change: impl FnOnce(&mut Node) -> String,
    ) -> Result<(), Rejection> {
        let before = self.state.node(id).ok_or(Rejection::NotFound { key: Key::Node(id) })?;
        let mut node = before.clone();
        let message = change(&mut node);
        if node == *before {
            return Ok(());
        }
        node.revision = self.revision;
        let name = node.description.hostname.clone();
        self.state.set_node(self.journal, node);
        self.emit(Kind::Node, Action::Update, id.to_string(), name, message);
        Ok(())
    }

    fn grant_block(&mut self, id: NodeId, block: Subnet) -> Result<(), Rejection> {
        self.check_block(block)?;
        self.change_node(id, |node| {
            node.blocks.push(block);
            format!("addresses {block}")
        })
    }

    fn check_block(&self, block: Subnet) -> Result<(), Rejection> {
        for node in self.state.nodes() {
            if node.blocks.iter().any(|other| overlap(*other, block)) {
                let holder = &node.description.hostname;
                return invalid(format!("block {block} overlaps one of node {holder}"));
            }
        }
        Ok(())
    }

    // ---- services ----

    fn create_service(&mut self, id: ServiceId, spec: &ServiceSpec) -> Result<(), Rejection> {
        if self.state.service(id).is_some() {
            return Err(Rejection::Exists { key: Key::Service(id) });
        }
        if let Some(holder) = self.state.names.get(&spec.name) {
            return Err(Rejection::NameTaken { name: spec.name.clone(), holder: *holder });
        }
        self.check_ports(id, spec)?;
        let time = self.state.time;
        let service = Service {
            id,
            spec: spec.clone(),
            template: 1,
            removing: false,
            created: time,
            updated: time,
            revision: self.revision,
        };
        self.state.set_service(self.journal, id, Some(service));
        self.emit_service(Action::Create, id, spec, String::new());
        Ok(())
    }

    fn update_service(&mut self, id: ServiceId, spec: &ServiceSpec) -> Result<(), Rejection> {
        let before = self.service(id)?;
        if before.removing {
            return invalid(format!("service {} is being removed", before.spec.name));
        }
        if before.spec.name != spec.name {
            return invalid(format!("service {} cannot be renamed", before.spec.name));
        }
        if before.spec == *spec {
            return Ok(());
        }
        let renewed = before.spec.task != spec.task;
        let Some(template) = before.template.checked_add(u32::from(renewed)) else {
            return invalid(format!("service {} was updated too often", before.spec.name));
        };
        let service = Service {
            spec: spec.clone(),
            template,
            updated: self.state.time,
            revision: self.revision,
            ..before.clone()
        };
        self.check_ports(id, spec)?;
        self.state.set_service(self.journal, id, Some(service));
        let message = if renewed { format!("template {template}") } else { String::new() };
        self.emit_service(Action::Update, id, spec, message);
        Ok(())
    }

    fn remove_service(&mut self, id: ServiceId) -> Result<(), Rejection> {
        let before = self.service(id)?;
        if before.removing {
            return Ok(());
        }
        let time = self.state.time;
        let service =
            Service { removing: true, updated: time, revision: self.revision, ..before.clone() };
        let spec = service.spec.clone();
        self.state.set_service(self.journal, id, Some(service));
        self.emit_service(Action::Update, id, &spec, "removing".to_owned());
        Ok(())
    }

    fn drop_service(&mut self, id: ServiceId) -> Result<(), Rejection> {
        let before = self.service(id)?;
        let name = &before.spec.name;
        if !before.removing {
            return invalid(format!("service {name} is not being removed"));
        }
        if self.state.tasks_of(id).next().is_some() {
            return invalid(format!("service {name} still has tasks"));
        }
        let spec = before.spec.clone();
        self.state.set_service(self.journal, id, None);
        self.emit_service(Action::Remove, id, &spec, String::new());
        Ok(())
    }

    fn service(&self, id: ServiceId) -> Result<&Service, Rejection> {
        self.state.service(id).ok_or(Rejection::NotFound { key: Key::Service(id) })
    }

    /// Ports are unique in the cluster, whatever their mode, until their service is dropped.
    fn check_ports(&self, id: ServiceId, spec: &ServiceSpec) -> Result<(), Rejection> {
        for port in &spec.ports {
            let (protocol, number) = (port.protocol, port.published);
            let range = (protocol, number, ServiceId::MIN)..=(protocol, number, ServiceId::MAX);
            let others = self.state.ports.range(range).filter(|(_, _, holder)| *holder != id);
            for holder in others.filter_map(|(_, _, holder)| self.state.service(*holder)) {
                if holder.spec.ports.iter().any(|other| other.clashes(port)) {
                    let holder = holder.spec.name.clone();
                    return Err(Rejection::PortTaken { port: port.to_string(), holder });
                }
            }
        }
        Ok(())
    }

    // ---- tasks ----

    fn create_task(&mut self, task: &Task) -> Result<(), Rejection> {
        if self.state.task(task.id).is_some() {
            return Err(Rejection::Exists { key: Key::Task(task.id) });
        }
        let service = self.service(task.service)?;
        if service.removing {
            return invalid(format!("service {} is being removed", service.spec.name));
        }
        if self.state.template(task.service, task.template).is_none() {
            let (name, number) = (&service.spec.name, task.template);
            return invalid(format!("service {name} has no template {number}"));
        }
        match (task.status.state, task.node) {
            (TaskState::Pending, None) if task.address.is_none() => {}
            (TaskState::Assigned, Some(node)) => self.check_place(node, task.address)?,
            (state, _) => {
                let state = state.as_str();
                return invalid(format!(
                    "a new task is pending without a place or assigned with one, not {state}"
                ));
            }
        }
        let mut task = Task { revision: self.revision, ..task.clone() };
        task.created = self.state.time;
        task.status.since = self.state.time;
        cut_error(&mut task.status);
        let message = describe(&task.status);
        self.write_task(task, Action::Create, message);
        Ok(())
    }

    fn place_task(
        &mut self,
        id: TaskId,
        node: NodeId,
        address: Option<Ipv4Addr>,
    ) -> Result<(), Rejection> {
        let mut task = self.task(id)?.clone();
        if task.status.state != TaskState::Pending || task.node.is_some() {
            return invalid(format!("task {id} is placed already"));
        }
        self.check_place(node, address)?;
        task.node = Some(node);
        task.address = address;
        task.status = TaskStatus::new(TaskState::Assigned, self.state.time);
        let host = self.state.node(node).map(|node| node.description.hostname.clone());
        self.write_task(task, Action::Update, format!("assigned to {}", host.unwrap_or_default()));
        Ok(())
    }

    fn check_place(&self, node: NodeId, address: Option<Ipv4Addr>) -> Result<(), Rejection> {
        if self.state.node(node).is_none() {
            return Err(Rejection::NotFound { key: Key::Node(node) });
        }
        match address.and_then(|address| self.state.address_holder(address)) {
            Some(holder) => invalid(format!("an address is in use by task {holder}")),
            None => Ok(()),
        }
    }

    fn set_desired(&mut self, id: TaskId, desired: Desired) -> Result<(), Rejection> {
        let task = self.task(id)?;
        if task.desired == desired {
            return Ok(());
        }
        if desired < task.desired {
            return invalid(format!("task {id} cannot be wanted again"));
        }
        let message = match desired {
            Desired::Running => "to run",
            Desired::Shutdown => "to shut down",
            Desired::Remove => "to remove",
        };
        let task = Task { desired, ..task.clone() };
        self.write_task(task, Action::Update, message.to_owned());
        Ok(())
    }

    fn explain_task(&mut self, id: TaskId, error: &str) -> Result<(), Rejection> {
        let before = self.task(id)?;
        let mut task = before.clone();
        task.status.error = (!error.is_empty()).then(|| error.into());
        cut_error(&mut task.status);
        if task == *before {
            return Ok(());
        }
        let message = describe(&task.status);
        self.write_task(task, Action::Update, message);
        Ok(())
    }

    /// Takes what an agent saw, or nothing if it is not for this agent to say, is old news, or
    /// would bring an ended task back.
    fn report_task(&mut self, id: TaskId, node: NodeId, status: &TaskStatus) {
        let Some(before) = self.state.task(id) else { return };
        if before.node != Some(node) || !is_news(&before.status, status) {
            return;
        }
        let mut task = before.clone();
        task.status = status.clone();
        // An agent's clock may be ahead; what waits for "10 s after" must not wait for years.
        task.status.since = status.since.min(self.state.time);
        task.status.started = status.started.map(|started| started.min(self.state.time));
        cut_error(&mut task.status);
        if task.status != before.status {
            let message = describe(&task.status);
            self.write_task(task, Action::Update, message);
        }
    }

    fn drop_task(&mut self, id: TaskId) -> Result<(), Rejection> {
        let task = self.task(id)?;
        let (service, slot) = (task.service, task.slot);
        self.state.set_task(self.journal, id, service, None);
        self.emit_task(Action::Remove, id, service, slot, String::new());
        Ok(())
    }

    fn task(&self, id: TaskId) -> Result<&Task, Rejection> {
        self.state.task(id).ok_or(Rejection::NotFound { key: Key::Task(id) })
    }

    fn write_task(&mut self, task: Task, action: Action, message: String) {
        let (id, service, slot) = (task.id, task.service, task.slot);
        let task = Task { revision: self.revision, ..task };
        self.state.set_task(self.journal, id, service, Some(task));
        self.emit_task(action, id, service, slot, message);
    }

    // ---- events ----

    fn emit_task(
        &mut self,
        action: Action,
        id: TaskId,
        service: ServiceId,
        slot: u32,
        message: String,
    ) {
        let name = self.state.service(service).map(|s| format!("{}.{slot}", s.spec.name));
        self.emit(Kind::Task, action, id.to_string(), name.unwrap_or_default(), message);
    }

    fn emit_service(&mut self, action: Action, id: ServiceId, spec: &ServiceSpec, message: String) {
        self.emit(Kind::Service, action, id.to_string(), spec.name.to_string(), message);
    }

    fn emit(&mut self, kind: Kind, action: Action, id: String, name: String, message: String) {
        let (revision, time) = (self.revision, self.state.time);
        self.events.push(Event { revision, time, kind, action, id, name, message });
    }
}

fn invalid<T>(why: impl Into<String>) -> Result<T, Rejection> {
    Err(Rejection::Invalid(why.into()))
}

fn overlap(a: Subnet, b: Subnet) -> bool {
    a.contains(b.address) || b.contains(a.address)
}

/// Attempts only go up; within one, states only go forward. What has ended stays so, but is
/// cleaned up in time.
fn is_news(before: &TaskStatus, after: &TaskStatus) -> bool {
    if after.attempt < before.attempt || after.state == TaskState::Pending {
        return false;
    }
    if before.state.is_terminal() {
        let same = after.state == before.state && after.attempt == before.attempt;
        return same || after.state == TaskState::Removed;
    }
    after.attempt > before.attempt || after.state >= before.state
}

/// `failed: exit code 1`, for people.
fn describe(status: &TaskStatus) -> String {
    match &status.error {
        Some(error) => format!("{}: {error}", status.state.as_str()),
        None => status.state.as_str().to_owned(),
    }
}

fn cut_error(status: &mut TaskStatus) {
    if let Some(error) = &status.error
        && error.len() > ERROR_BYTES_MAX
    {
        status.error = Some(error[..error.floor_char_boundary(ERROR_BYTES_MAX)].into());
    }
}

impl State {
    /// Whether a task has not ended, by its id.
    pub fn is_live(&self, id: TaskId) -> bool {
        self.task(id).is_some_and(is_live)
    }
}
