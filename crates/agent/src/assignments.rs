//! What managers assigned to this node: parsed at the door, kept as one set.
//!
//! Pure. A complete message replaces the set, an incremental one changes it; one
//! that does not follow what is held is a [`Gap`], after which the agent asks
//! for everything by connecting anew.
//!
//! What is not understood (a newer manager's template, say) costs that task
//! alone, never the node: the task is kept with its reason.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use warren_model::quantity::Time;
use warren_model::service::{PortSpec, TaskTemplate};
use warren_model::task::{Desired, TaskState, TaskStatus};
use warren_model::{ServiceId, TaskId};
use warren_proto::{Error, v1};

use crate::task::{Policy, Wanted};

/// A task as managers want it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignedTask {
    pub id: TaskId,
    pub service: ServiceId,
    pub slot: u32,
    pub template: u32,
    pub desired: Desired,
    pub address: Option<Ipv4Addr>,
    /// What managers know of it.
    pub known: TaskStatus,
}

impl AssignedTask {
    pub fn wanted(&self) -> Wanted {
        match self.desired {
            Desired::Running => Wanted::Running,
            Desired::Shutdown => Wanted::Shutdown,
            Desired::Remove => Wanted::Remove,
        }
    }
}

/// A service as far as this node needs it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AssignedService {
    pub name: String,
    pub ports: Vec<PortSpec>,
    pub templates: BTreeMap<u32, Arc<TaskTemplate>>,
}

/// A message of a manager, checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Assignment {
    pub complete: bool,
    pub applies_to: u64,
    pub revision: u64,
    pub tasks: Vec<AssignedTask>,
    pub services: Vec<(ServiceId, AssignedService)>,
    pub removed_tasks: Vec<TaskId>,
    pub removed_services: Vec<ServiceId>,
    /// What was left out because it makes no sense to this version.
    pub problems: Vec<String>,
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Gap {
    /// An incremental message that does not follow what is held.
    #[error("assignment applies to revision {applies_to}, held is {held}")]
    Missed { applies_to: u64, held: u64 },
    /// A manager that is behind; what it says was true once.
    #[error("assignment has revision {revision}, held is {held}")]
    Older { revision: u64, held: u64 },
}

/// Everything assigned to this node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Set {
    /// 0 until the first complete message.
    pub revision: u64,
    pub tasks: BTreeMap<TaskId, AssignedTask>,
    pub services: BTreeMap<ServiceId, AssignedService>,
}

impl Set {
    /// Takes a message in.
    ///
    /// # Errors
    /// [`Gap`] when it is old or does not follow; nothing is changed then.
    pub fn apply(&mut self, message: Assignment) -> Result<(), Gap> {
        let (revision, held) = (message.revision, self.revision);
        if revision < held {
            return Err(Gap::Older { revision, held });
        }
        if message.complete {
            self.tasks.clear();
            self.services.clear();
        } else if held == 0 || message.applies_to != held {
            return Err(Gap::Missed { applies_to: message.applies_to, held });
        }
        self.revision = message.revision;
        for task in message.tasks {
            self.tasks.insert(task.id, task);
        }
        for (id, service) in message.services {
            let held = self.services.entry(id).or_default();
            held.name = service.name;
            held.ports = service.ports;
            held.templates.extend(service.templates);
        }
        for id in message.removed_tasks {
            self.tasks.remove(&id);
        }
        for id in message.removed_services {
            self.services.remove(&id);
        }
        self.drop_unused_templates();
        Ok(())
    }

    /// A service's older templates go with the last task that refers to them.
    fn drop_unused_templates(&mut self) {
        let mut used: BTreeMap<ServiceId, Vec<u32>> = BTreeMap::new();
        for task in self.tasks.values() {
            used.entry(task.service).or_default().push(task.template);
        }
        for (id, service) in &mut self.services {
            let used = used.get(id).map_or(&[][..], Vec::as_slice);
            service.templates.retain(|number, _| used.contains(number));
        }
    }
}

/// How a template's containers live and die.
pub fn policy(template: &TaskTemplate) -> Policy {
    let stop_grace_ms = template.stop_grace_ms.unwrap_or(TaskTemplate::STOP_GRACE_MS);
    Policy { restart: template.restart, stop_grace_ms }
}

impl From<v1::Assignment> for Assignment {
    fn from(message: v1::Assignment) -> Self {
        let mut out = Self {
            complete: message.complete,
            applies_to: message.applies_to,
            revision: message.revision,
            ..Self::default()
        };
        for task in message.tasks {
            match parse_task(task) {
                Ok(task) => out.tasks.push(task),
                Err(error) => out.problems.push(error.to_string()),
            }
        }
        for service in message.services {
            match parse_service(service, &mut out.problems) {
                Ok(service) => out.services.push(service),
                Err(error) => out.problems.push(error.to_string()),
            }
        }
        for id in message.removed_tasks {
            match warren_proto::task_id("removed_tasks", &id) {
                Ok(id) => out.removed_tasks.push(id),
                Err(error) => out.problems.push(error.to_string()),
            }
        }
        for id in message.removed_services {
            match warren_proto::service_id("removed_services", &id) {
                Ok(id) => out.removed_services.push(id),
                Err(error) => out.problems.push(error.to_string()),
            }
        }
        out
    }
}

fn parse_task(task: v1::AssignedTask) -> Result<AssignedTask, Error> {
    let id = warren_proto::task_id("task.id", &task.id)?;
    let service = warren_proto::service_id("task.service", &task.service)?;
    let desired = Desired::try_from(task.desired()).map_err(|e| e.within("task"))?;
    let known = match task.status {
        None => TaskStatus::new(TaskState::Assigned, Time(0)),
        Some(status) => TaskStatus::try_from(status).map_err(|e| e.within("task"))?,
    };
    Ok(AssignedTask {
        id,
        service,
        slot: task.slot,
        template: task.template,
        desired,
        address: task.address.map(Ipv4Addr::from),
        known,
    })
}

fn parse_service(
    service: v1::AssignedService,
    problems: &mut Vec<String>,
) -> Result<(ServiceId, AssignedService), Error> {
    let id = warren_proto::service_id("service.id", &service.id)?;
    let mut out = AssignedService { name: service.name, ..AssignedService::default() };
    for port in service.ports {
        match PortSpec::try_from(port) {
            Ok(port) => out.ports.push(port),
            Err(error) => problems.push(format!("port of service {}: {error}", out.name)),
        }
    }
    for template in service.templates {
        let number = template.number;
        let parsed = template.task.map(TaskTemplate::try_from);
        match parsed {
            Some(Ok(task)) => {
                out.templates.insert(number, Arc::new(task));
            }
            Some(Err(error)) => {
                problems.push(format!("template {number} of service {}: {error}", out.name));
            }
            None => problems.push(format!("template {number} of service {}: is empty", out.name)),
        }
    }
    Ok((id, out))
}
