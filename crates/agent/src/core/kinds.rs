//! What the core takes in and gives out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use warren_model::bind::BindRule;
use warren_model::defaults::Defaults;
use warren_model::device::Devices;
use warren_model::job::Given;
use warren_model::service::{CompanionName, Hook, TaskTemplate};
use warren_model::task::{TaskExit, TaskStatus};
use warren_model::{NodeTable, ServiceId, TaskId};
use warren_net::{Addresses, Table};

use crate::assignments::{Assignment, Gap};
use crate::membership::MembershipView;
use crate::mesh::{Holding, Tenant};
use crate::names::Asker;
use crate::published::{Claim, PortKey};
use crate::table::Applied;
use crate::task::{Effect, Event, Found};

/// What never changes of a task while it is on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSpec {
    pub id: TaskId,
    pub service: ServiceId,
    pub slot: u32,
    pub template_number: u32,
    pub template: Arc<TaskTemplate>,
    pub address: Option<Ipv4Addr>,
    /// Beside it.
    pub address6: Option<Ipv6Addr>,
    /// What the run was given that it is of.
    pub given: Given,
    /// Of this node, `vendor.com/class=name`.
    pub devices: Devices,
}

impl TaskSpec {
    /// Which hook of its service it is. Nothing is published for one.
    pub fn hook(&self) -> Option<Hook> {
        Hook::of_template(self.template_number).1
    }

    /// Of its container.
    pub fn addresses(&self) -> Option<Addresses> {
        self.address.map(|v4| Addresses { v4, v6: self.address6 })
    }

    /// Where its containers are asked for their health: on the node's network, the node itself.
    pub fn probed_at(&self) -> Option<Ipv4Addr> {
        match self.template.privileges.host_network {
            true => Some(Ipv4Addr::LOCALHOST),
            false => self.address,
        }
    }

    /// Of the container of one attempt.
    pub fn container_id(&self, attempt: u32) -> String {
        container_id(self.id, attempt)
    }
}

pub fn container_id(task: TaskId, attempt: u32) -> String {
    format!("{task}.{attempt}")
}

/// Of an init container or a sidecar of one attempt.
pub fn companion_id(task: TaskId, attempt: u32, name: &CompanionName) -> String {
    format!("{task}.{attempt}.{name}")
}

/// The containers of one task that an earlier process left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundTask {
    pub newest: Found,
    /// Attempts before it, whose containers were not removed yet.
    pub older: Vec<u32>,
}

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    Assigned(Box<Assignment>),
    /// An effect of a task's attempt had an outcome; `claimed` are the ports it holds now.
    Done {
        task: TaskId,
        attempt: u32,
        event: Event,
        claimed: Option<BTreeSet<PortKey>>,
    },
    /// What the kernel made of the table.
    Applied {
        generation: u64,
        applied: Applied,
    },
    /// Which ports of the routing mesh this node holds.
    Held(Holding),
    /// What was found for the name of a node; nothing, if nobody knows.
    Resolved {
        name: String,
        addresses: Vec<IpAddr>,
    },
    /// A session is up; the managers said to go on from the held revision.
    Resumed,
    /// A session is up, which may be with a manager that wants something else.
    Opened,
    /// A manager answered what was sent to it at that moment of the monotonic clock.
    Heard {
        sent_ms: u64,
    },
    /// This node is no member any more: nothing is to be left of it here.
    Removed,
    /// Somebody gave up a port.
    PortsFreed,
    /// A person asked for the next attempt of a task.
    Restart(TaskId),
    Wake,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Do(Box<Order>),
    Apply {
        generation: u64,
        table: Table,
    },
    /// Hold exactly these ports, as far as they can be had.
    Hold(BTreeMap<PortKey, Tenant>),
    /// Look up the name of a node.
    Resolve(String),
    /// Containers that may ask for other names than before.
    Admit(Vec<Asker>),
    /// Containers of a task that is nobody's.
    Discard {
        task: TaskId,
        attempts: Vec<u32>,
    },
    /// The first complete set is here: logs of tasks that are not in it are nobody's.
    SweepLogs {
        keep: BTreeSet<TaskId>,
    },
    /// What came cannot be taken: connect anew. After [`Gap::Missed`] everything is asked for,
    /// after [`Gap::Older`] another manager.
    Reconnect(Gap),
    /// What this node knows of the cluster is another than before.
    Membership(Box<MembershipView>),
    /// What this node must know of the network is another than before.
    Table(Arc<NodeTable>),
    /// For people who read logs.
    Note(String),
}

/// An effect with all that it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub spec: Arc<TaskSpec>,
    pub service_name: String,
    /// Of its service; for what starts containers.
    pub labels: BTreeMap<String, String>,
    pub claims: Vec<Claim>,
    pub attempt: u32,
    pub restarts: u32,
    pub last_exit: Option<TaskExit>,
    /// Who asks for names; nobody while the task has no address.
    pub asker: Option<Asker>,
    /// Of the table around its container: not to be started before.
    pub generation: u64,
    /// For containers that say nothing.
    pub defaults: Defaults,
    /// Paths of the node that it may mount; for what starts containers.
    pub allow_bind: Vec<BindRule>,
    /// Why its containers may not be started; of what the cluster does not allow.
    pub refused: Option<String>,
    /// Other nodes may send connections until they act upon the set of this revision.
    pub parted: Option<u64>,
    /// The first TCP port that its service publishes, within the container.
    pub port: Option<u16>,
    pub effect: Effect,
}

/// A task that uses volumes of this node.
#[derive(Debug, Clone)]
pub struct VolumeUser {
    pub spec: Arc<TaskSpec>,
    pub service_name: String,
    pub labels: BTreeMap<String, String>,
}

/// What streams ask of a task.
#[derive(Debug, Clone)]
pub struct TaskView {
    pub spec: Arc<TaskSpec>,
    pub service_name: String,
    pub status: TaskStatus,
    pub is_up: bool,
    /// Its next attempt may be asked for.
    pub may_restart: bool,
}

/// Sorts what a runtime lists into tasks.
pub fn group(found: impl Iterator<Item = (TaskId, Found)>) -> BTreeMap<TaskId, FoundTask> {
    let mut tasks: BTreeMap<TaskId, FoundTask> = BTreeMap::new();
    for (id, found) in found {
        match tasks.get_mut(&id) {
            None => {
                tasks.insert(id, FoundTask { newest: found, older: vec![] });
            }
            Some(task) if task.newest.attempt < found.attempt => {
                task.older.push(task.newest.attempt);
                task.newest = found;
            }
            Some(task) => task.older.push(found.attempt),
        }
    }
    tasks
}
