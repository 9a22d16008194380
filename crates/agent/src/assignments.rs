//! What managers assigned to this node, kept as one set.
//!
//! Pure. A complete message replaces the set, an incremental one changes it; one
//! that does not follow what is held is a [`Gap`]. (epoch, revision) never goes
//! back: what is older was true once.
//!
//! A new recovery epoch means that managers were restored from a copy: tasks
//! they do not know may be lost from their memory, not unwanted. Such tasks are
//! [`Kept`], with what they need, until the caller decides.
//!
//! What is not understood (a newer manager's template, say) costs that task
//! alone, never the node: the task is kept with its reason.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use warren_model::device::Devices;
use warren_model::health;
use warren_model::job::Given;
use warren_model::node_table::TableChange;
use warren_model::service::{Companion, OnDisconnect, PortSpec, TaskTemplate};
use warren_model::task::{Desired, TaskStatus};
use warren_model::{Cluster, Healthcheck, NodeTable, ServiceId, TaskId};

use crate::membership::MembershipView;
use crate::task::{Gate, Policy, Wanted};

mod wire;

/// A task as managers want it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignedTask {
    pub id: TaskId,
    pub service: ServiceId,
    pub slot: u32,
    pub template: u32,
    pub desired: Desired,
    pub address: Option<Ipv4Addr>,
    pub devices: Devices,
    /// What managers know of it.
    pub known: TaskStatus,
    /// What the run was given that it is of.
    pub given: Given,
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
    pub on_disconnect: OnDisconnect,
    pub labels: BTreeMap<String, String>,
    /// References of images of revisions that it may go back to.
    pub kept_images: Vec<String>,
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
    /// Absent: as before.
    pub membership: Option<MembershipView>,
    /// Absent: as before.
    pub settings: Option<Box<Cluster>>,
    /// Absent: as before.
    pub table: Option<TablePart>,
    /// What was left out because it makes no sense to this version.
    pub problems: Vec<String>,
}

/// A part of what changed of the network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TablePart {
    pub change: TableChange,
    /// Another part follows: nothing is to be made of it before that.
    pub more: bool,
}

impl Assignment {
    /// Whether it says nothing of tasks, services and settings.
    pub fn is_table_alone(&self) -> bool {
        let nothing = self.tasks.is_empty()
            && self.services.is_empty()
            && self.removed_tasks.is_empty()
            && self.removed_services.is_empty();
        nothing && !self.complete && self.membership.is_none() && self.settings.is_none()
    }
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Gap {
    /// An incremental message that does not follow what is held.
    #[error("assignment applies to revision {applies_to}, held is {held}")]
    Missed { applies_to: u64, held: u64 },
    /// A manager that is behind; what it says was true once.
    #[error(
        "assignment is of epoch {epoch}, revision {revision}; held is the newer one of epoch \
         {held_epoch}, revision {held}"
    )]
    Older { epoch: u64, revision: u64, held_epoch: u64, held: u64 },
}

/// What became of a message that was taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Managers are of a newer recovery epoch than what was held.
    pub new_epoch: bool,
}

/// Tasks of an earlier epoch that managers of the present one do not know.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Kept {
    pub tasks: BTreeMap<TaskId, AssignedTask>,
    pub services: BTreeMap<ServiceId, AssignedService>,
}

/// Everything assigned to this node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Set {
    /// 0 until the first complete message.
    pub revision: u64,
    pub tasks: BTreeMap<TaskId, AssignedTask>,
    pub services: BTreeMap<ServiceId, AssignedService>,
    pub membership: Option<MembershipView>,
    pub settings: Option<Box<Cluster>>,
    /// What this node must know of the network.
    pub table: Arc<NodeTable>,
    /// The next one, of which not all parts have come.
    pub next_table: Option<NodeTable>,
    pub kept: Kept,
}

impl Set {
    /// Recovery epoch of what is held; 0 while nothing is.
    pub fn epoch(&self) -> u64 {
        self.membership.as_ref().map_or(0, |membership| membership.epoch)
    }

    /// All tasks to be held, kept ones included.
    pub fn all(&self) -> impl Iterator<Item = &AssignedTask> {
        self.tasks.values().chain(self.kept.tasks.values())
    }

    pub fn holds(&self, id: TaskId) -> bool {
        self.tasks.contains_key(&id) || self.kept.tasks.contains_key(&id)
    }

    /// All services with tasks here; those of kept tasks only where managers know none.
    pub fn all_services(&self) -> impl Iterator<Item = (&ServiceId, &AssignedService)> {
        let unknown = |(id, _): &(&ServiceId, _)| !self.services.contains_key(*id);
        self.services.iter().chain(self.kept.services.iter().filter(unknown))
    }

    pub fn service(&self, id: ServiceId) -> Option<&AssignedService> {
        self.services.get(&id).or_else(|| self.kept.services.get(&id))
    }

    pub fn template(&self, service: ServiceId, number: u32) -> Option<&Arc<TaskTemplate>> {
        let places = [self.services.get(&service), self.kept.services.get(&service)];
        places.into_iter().flatten().find_map(|service| service.templates.get(&number))
    }

    /// All parts of the last table have come.
    pub fn is_whole(&self) -> bool {
        self.next_table.is_none()
    }

    /// Takes a message in.
    ///
    /// # Errors
    /// [`Gap`] when it is old or does not follow; nothing is changed then.
    pub fn apply(&mut self, message: Assignment) -> Result<Taken, Gap> {
        let (revision, held, held_epoch) = (message.revision, self.revision, self.epoch());
        let epoch = message.membership.as_ref().map_or(held_epoch, |told| told.epoch);
        if (epoch, revision) < (held_epoch, held) {
            return Err(Gap::Older { epoch, revision, held_epoch, held });
        }
        let new_epoch = epoch > held_epoch;
        let follows = held > 0 && message.applies_to == held && !new_epoch;
        if !message.complete && !follows {
            return Err(Gap::Missed { applies_to: message.applies_to, held });
        }
        if message.complete {
            let before = std::mem::take(&mut self.tasks);
            let services = std::mem::take(&mut self.services);
            if new_epoch {
                self.keep(before, services);
            }
        }
        self.revision = revision;
        self.membership = message.membership.or_else(|| self.membership.take());
        self.settings = message.settings.or_else(|| self.settings.take());
        if message.complete {
            self.next_table = None;
        }
        if let Some(part) = message.table {
            self.take_table(part);
        }
        for task in message.tasks {
            self.kept.tasks.remove(&task.id);
            self.tasks.insert(task.id, task);
        }
        for (id, service) in message.services {
            let held = self.services.entry(id).or_default();
            let mut templates = std::mem::take(&mut held.templates);
            templates.extend(service.templates);
            *held = AssignedService { templates, ..service };
        }
        for id in message.removed_tasks {
            self.tasks.remove(&id);
            self.kept.tasks.remove(&id);
        }
        for id in message.removed_services {
            self.services.remove(&id);
        }
        self.drop_unused();
        Ok(Taken { new_epoch })
    }

    fn take_table(&mut self, part: TablePart) {
        let before = self.next_table.take();
        let mut table = before.unwrap_or_else(|| NodeTable::clone(&self.table));
        table.apply(part.change);
        if part.more {
            self.next_table = Some(table);
        } else if *self.table != table {
            self.table = Arc::new(table);
        }
    }

    fn keep(
        &mut self,
        tasks: BTreeMap<TaskId, AssignedTask>,
        services: BTreeMap<ServiceId, AssignedService>,
    ) {
        // What was to be removed is of no use to anybody.
        let tasks = tasks.into_iter().filter(|(_, task)| task.desired != Desired::Remove);
        self.kept.tasks.extend(tasks);
        for (id, service) in services {
            let kept = self.kept.services.entry(id).or_default();
            let older = std::mem::take(&mut kept.templates);
            *kept = service;
            kept.templates.extend(older);
        }
    }

    /// What is kept is kept no longer.
    pub fn drop_kept(&mut self) {
        self.kept = Kept::default();
    }

    /// Templates go with the last task that refers to them, kept services with the last task.
    fn drop_unused(&mut self) {
        let used = |tasks: &BTreeMap<TaskId, AssignedTask>| {
            let used = tasks.values().map(|task| (task.service, task.template));
            used.collect::<BTreeSet<(ServiceId, u32)>>()
        };
        let (ours, kept) = (used(&self.tasks), used(&self.kept.tasks));
        for (id, service) in &mut self.services {
            service.templates.retain(|number, _| ours.contains(&(*id, *number)));
        }
        for (id, service) in &mut self.kept.services {
            service.templates.retain(|number, _| kept.contains(&(*id, *number)));
        }
        let services: BTreeSet<ServiceId> =
            self.kept.tasks.values().map(|task| task.service).collect();
        self.kept.services.retain(|id, _| services.contains(id));
    }
}

/// How a template's containers live and die, in a service that publishes `ports`.
pub fn policy(template: &TaskTemplate, ports: &[PortSpec]) -> Policy {
    let stop_grace_ms = template.stop_grace_ms.unwrap_or(TaskTemplate::STOP_GRACE_MS);
    let gate = match template.health.gate(ports) {
        health::Gate::Open => Gate::Open,
        health::Gate::Implicit { .. } => Gate::Once,
        health::Gate::Explicit(spec) => {
            Gate::Always { restart: spec.action == health::HealthAction::Restart }
        }
    };
    let asked = |companion: &Companion| matches!(companion.task.health, Healthcheck::Explicit(_));
    let gate = match gate {
        // It is watched as long as it runs, for its sidecars' sake.
        Gate::Open | Gate::Once if template.companions.iter().any(asked) => {
            Gate::Always { restart: false }
        }
        gate => gate,
    };
    let crew = !template.companions.is_empty();
    Policy { restart: template.restart, stop_grace_ms, gate, crew }
}

#[cfg(test)]
mod tests;
