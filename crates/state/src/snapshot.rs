//! The state as a stream of objects, and back: what snapshots are written from.
//!
//! `import(export)` gives the same content: the same answers, the same
//! checksum, the same outcome of every later entry. Indices are rebuilt.
//! Not here: bytes, compression, encryption (the store).

use std::net::Ipv4Addr;
use std::sync::Arc;

use warren_model::cluster::Cluster;
use warren_model::id::{NodeId, ServiceId};
use warren_model::network::{Network, Vip};
use warren_model::node::{Node, Tombstone};
use warren_model::operator::Operator;
use warren_model::policy::Policy;
use warren_model::service::{Revision, Service, TaskTemplate};
use warren_model::task::Task;
use warren_model::{AuditRecord, Time};

use crate::State;
use crate::change::Request;
use crate::table::{ServiceRow, TemplateRow, is_live};

/// What a snapshot says before its objects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    pub revision: u64,
    pub time: Time,
    pub cluster: Option<Cluster>,
}

/// One object of a snapshot. Streamed one by one, so the largest kind sets no price for the others.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    Node(Node),
    Service(Service),
    /// A template that a task or a service's current spec refers to.
    Template {
        service: ServiceId,
        number: u32,
        template: Arc<TaskTemplate>,
    },
    Task(Task),
    /// A removed node.
    Tombstone(Tombstone),
    Operator(Operator),
    /// A request answered lately.
    Request {
        request: Request,
        revision: u64,
        time: Time,
    },
    /// What somebody did.
    Audit(Arc<AuditRecord>),
    Network(Network),
    /// A virtual IP that somebody has, or had lately.
    Vip(Vip),
    Policy(Policy),
    /// What a service was before.
    Revision {
        service: ServiceId,
        revision: Arc<Revision>,
    },
    /// The address that a task on a node got last.
    Given {
        node: NodeId,
        address: Ipv4Addr,
    },
}

/// Why objects do not make a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    #[error("import {object}: it is in the snapshot twice")]
    Twice { object: String },
    #[error("import {object}: it refers to {missing}, which is not in the snapshot")]
    Dangling { object: String, missing: String },
    #[error("import {object}: its revision {revision} is later than the snapshot's {head}")]
    Later { object: String, revision: u64, head: u64 },
    #[error("import {object}: {clash} is in use by {holder}")]
    Clash { object: String, clash: String, holder: String },
}

impl State {
    pub fn head(&self) -> Head {
        Head { revision: self.revision, time: self.time, cluster: self.cluster().cloned() }
    }

    /// Every object, kind by kind: nodes, services, templates, tasks, requests, tombstones,
    /// operators, records, networks, virtual IPs, policies, revisions, addresses given last.
    /// [`State::import`] takes them in this order.
    pub fn export(&self) -> impl Iterator<Item = Object> {
        let nodes = self.nodes().cloned().map(Object::Node);
        let services = self.services().cloned().map(Object::Service);
        let templates = self.templates().map(|(service, number, row)| Object::Template {
            service,
            number,
            template: row.template.clone(),
        });
        let tasks = self.tasks().cloned().map(Object::Task);
        let requests = self.requests.iter().map(|(request, revision, time)| Object::Request {
            request,
            revision,
            time,
        });
        let tombstones = self.tombstones().cloned().map(Object::Tombstone);
        let operators = self.operators().cloned().map(Object::Operator);
        let audit = self.audit.iter().cloned().map(Object::Audit);
        let running = nodes.chain(services).chain(templates).chain(tasks);
        let networks = self.networks().cloned().map(Object::Network);
        let vips = self.vips().copied().map(Object::Vip);
        let policies = self.policies().cloned().map(Object::Policy);
        let people = tombstones.chain(operators).chain(audit);
        let revisions = self
            .all_revisions()
            .map(|(service, revision)| Object::Revision { service, revision: revision.clone() });
        let around = networks.chain(vips).chain(policies);
        let given = self.given().map(|(node, address)| Object::Given { node, address });
        running.chain(requests).chain(people).chain(around).chain(revisions).chain(given)
    }

    pub(crate) fn given(&self) -> impl Iterator<Item = (NodeId, Ipv4Addr)> {
        self.nodes.iter().filter_map(|(id, row)| Some((*id, row.given?)))
    }

    pub(crate) fn all_revisions(&self) -> impl Iterator<Item = (ServiceId, &Arc<Revision>)> {
        self.services
            .iter()
            .flat_map(|(service, row)| row.revisions.iter().map(|revision| (*service, revision)))
    }

    pub(crate) fn templates(&self) -> impl Iterator<Item = (ServiceId, u32, &TemplateRow)> {
        self.services.iter().flat_map(|(service, row)| {
            row.templates.iter().map(|(number, template)| (*service, *number, template))
        })
    }

    /// Number of objects that [`State::export`] yields.
    pub fn object_count(&self) -> usize {
        self.nodes.len()
            + self.services.len()
            + self
                .services
                .values()
                .map(|row| row.templates.len() + row.revisions.len())
                .sum::<usize>()
            + self.tasks.len()
            + self.requests.len()
            + self.tombstones.len()
            + self.operators.len()
            + self.audit.len()
            + self.networks.len()
            + self.vips.len()
            + self.policies.len()
            + self.given().count()
    }
}

impl State {
    /// A state from what [`State::head`] and [`State::export`] gave.
    ///
    /// # Errors
    /// [`ImportError`] if the objects contradict each other; then the snapshot is damaged or was
    /// written by something else.
    pub fn import(
        head: Head,
        objects: impl IntoIterator<Item = Object>,
    ) -> Result<Self, ImportError> {
        let mut state = Self {
            revision: head.revision,
            time: head.time,
            topology: head.revision,
            roomier: head.revision,
            cluster: head.cluster.map(Arc::new),
            ..Self::default()
        };
        for object in objects {
            state.import_one(object)?;
        }
        for service in state.services() {
            if state.template(service.id, service.template).is_none() {
                return Err(ImportError::Dangling {
                    object: format!("service {}", service.id),
                    missing: format!("template {}", service.template),
                });
            }
        }
        Ok(state)
    }

    fn import_one(&mut self, object: Object) -> Result<(), ImportError> {
        match object {
            Object::Node(node) => {
                let name = || format!("node {}", node.id);
                self.check_revision(node.revision, name)?;
                not_twice(self.node(node.id).is_some(), name)?;
                self.put_node(node.id, Some(Arc::new(node)));
            }
            Object::Service(service) => self.import_service(service)?,
            Object::Template { service, number, template } => {
                self.import_template(service, number, template)?;
            }
            Object::Task(task) => self.import_task(task)?,
            Object::Request { request, revision, time } => {
                let name = || format!("request {:032x} of {}", request.id, request.principal);
                self.check_revision(revision, name)?;
                not_twice(self.requests.get(&request).is_some(), name)?;
                self.requests.insert(&request, revision, time);
            }
            Object::Tombstone(tombstone) => self.import_tombstone(tombstone)?,
            Object::Operator(operator) => {
                let name = || format!("operator {}", operator.name);
                self.check_revision(operator.revision, name)?;
                not_twice(self.operator(operator.name).is_some(), name)?;
                self.put_operator(operator.name, Some(Arc::new(operator)));
            }
            Object::Audit(record) => {
                let name = || format!("audit record of revision {}", record.revision);
                self.check_revision(record.revision, name)?;
                self.audit.push(record);
            }
            Object::Network(network) => self.import_network(network)?,
            Object::Vip(vip) => self.import_vip(vip)?,
            Object::Policy(policy) => self.import_policy(policy)?,
            Object::Revision { service, revision } => self.import_revision(service, revision)?,
            Object::Given { node, address } => self.import_given(node, address)?,
        }
        Ok(())
    }

    fn import_given(&mut self, node: NodeId, address: Ipv4Addr) -> Result<(), ImportError> {
        let name = || format!("last address of node {node}");
        let Some(row) = self.nodes.get_mut(&node) else {
            let missing = format!("node {node}");
            return Err(ImportError::Dangling { object: name(), missing });
        };
        not_twice(row.given.replace(address).is_some(), name)
    }

    /// They come in order, each before what is wanted now.
    fn import_revision(
        &mut self,
        service: ServiceId,
        revision: Arc<Revision>,
    ) -> Result<(), ImportError> {
        let name = || format!("revision {} of service {service}", revision.number);
        let Some(row) = self.services.get_mut(&service) else {
            let missing = format!("service {service}");
            return Err(ImportError::Dangling { object: name(), missing });
        };
        let last = row.revisions.last().map_or(0, |last| last.number);
        let ours = (last + 1..row.service.number).contains(&revision.number);
        not_twice(!ours, name)?;
        row.revisions.push(revision);
        Ok(())
    }

    fn import_network(&mut self, network: Network) -> Result<(), ImportError> {
        let id = network.id;
        let name = || format!("network {id}");
        self.check_revision(network.revision, name)?;
        not_twice(self.network(id).is_some(), name)?;
        if let Some(holder) = self.network_named(&network.spec.name) {
            let (clash, holder) = (format!("name {}", network.spec.name), holder.id.to_string());
            return Err(ImportError::Clash { object: name(), clash, holder });
        }
        self.put_network(id, Some(Arc::new(network)));
        Ok(())
    }

    fn import_policy(&mut self, policy: Policy) -> Result<(), ImportError> {
        let id = policy.id;
        let name = || format!("policy {id}");
        self.check_revision(policy.revision, name)?;
        not_twice(self.policy(id).is_some(), name)?;
        if let Some(holder) = self.policy_named(&policy.spec.name) {
            let (clash, holder) = (format!("name {}", policy.spec.name), holder.id.to_string());
            return Err(ImportError::Clash { object: name(), clash, holder });
        }
        self.put_policy(id, Some(Arc::new(policy)));
        Ok(())
    }

    fn import_vip(&mut self, vip: Vip) -> Result<(), ImportError> {
        let name = || format!("virtual IP {}", vip.address);
        not_twice(self.vip(vip.address).is_some(), name)?;
        if vip.released.is_none() {
            let holder = vip.holder;
            let missing = match (self.service(holder.service), self.network(holder.network)) {
                (None, _) => Some(format!("service {}", holder.service)),
                (_, None) => Some(format!("network {}", holder.network)),
                (Some(_), Some(_)) => None,
            };
            if let Some(missing) = missing {
                return Err(ImportError::Dangling { object: name(), missing });
            }
            if let Some(other) = self.vip_of(holder) {
                let (clash, holder) = ("its holder".to_owned(), format!("virtual IP {other}"));
                return Err(ImportError::Clash { object: name(), clash, holder });
            }
        }
        self.put_vip(vip.address, Some(vip));
        Ok(())
    }

    fn import_tombstone(&mut self, tombstone: Tombstone) -> Result<(), ImportError> {
        let id = tombstone.node;
        let name = || format!("tombstone of node {id}");
        not_twice(self.tombstone(id).is_some(), name)?;
        if self.node(id).is_some() {
            let (clash, holder) = (format!("id {id}"), format!("node {id}"));
            return Err(ImportError::Clash { object: name(), clash, holder });
        }
        self.put_tombstone(id, Some(Arc::new(tombstone)));
        Ok(())
    }

    fn import_service(&mut self, service: Service) -> Result<(), ImportError> {
        let name = || format!("service {}", service.id);
        self.check_revision(service.revision, name)?;
        not_twice(self.service(service.id).is_some(), name)?;
        if let Some(holder) = self.names.get(&service.spec.name) {
            let (clash, holder) = (format!("name {}", service.spec.name), holder.to_string());
            return Err(ImportError::Clash { object: name(), clash, holder });
        }
        let id = service.id;
        let mut row = ServiceRow::new(Arc::new(service));
        row.activity = self.revision;
        self.put_service(id, Some(row));
        // The current template, too, comes as an object of its own.
        if let Some(row) = self.services.get_mut(&id) {
            row.templates.clear();
        }
        Ok(())
    }

    fn import_template(
        &mut self,
        service: ServiceId,
        number: u32,
        template: Arc<TaskTemplate>,
    ) -> Result<(), ImportError> {
        let name = || format!("template {number} of service {service}");
        let Some(row) = self.services.get_mut(&service) else {
            let missing = format!("service {service}");
            return Err(ImportError::Dangling { object: name(), missing });
        };
        not_twice(row.templates.contains_key(&number), name)?;
        row.templates.insert(number, TemplateRow { template, tasks: 0 });
        Ok(())
    }

    fn import_task(&mut self, task: Task) -> Result<(), ImportError> {
        let id = task.id;
        let name = || format!("task {id}");
        self.check_revision(task.revision, name)?;
        if self.template(task.service, task.template).is_none() {
            let missing = format!("template {} of service {}", task.template, task.service);
            return Err(ImportError::Dangling { object: name(), missing });
        }
        if let Some(node) = task.node {
            if self.node(node).is_none() {
                let missing = format!("node {node}");
                return Err(ImportError::Dangling { object: name(), missing });
            }
            if let Some(address) = task.address.filter(|_| is_live(&task))
                && let Some(holder) = self.address_holder(node, address)
                && holder != id
            {
                let (clash, holder) = (format!("address {address}"), format!("task {holder}"));
                return Err(ImportError::Clash { object: name(), clash, holder });
            }
        }
        not_twice(self.put_task(id, Some(Arc::new(task)), &mut Vec::new()).is_some(), name)
    }

    fn check_revision(
        &self,
        revision: u64,
        object: impl FnOnce() -> String,
    ) -> Result<(), ImportError> {
        if revision <= self.revision {
            return Ok(());
        }
        Err(ImportError::Later { object: object(), revision, head: self.revision })
    }
}

fn not_twice(exists: bool, object: impl FnOnce() -> String) -> Result<(), ImportError> {
    if exists { Err(ImportError::Twice { object: object() }) } else { Ok(()) }
}
