//! Tasks: what managers want of them and what agents saw.

use warren_model::Time;
use warren_model::health::{Health, HealthState};
use warren_model::task::{Desired, Task, TaskExit, TaskState, TaskStatus};

use super::{Error, address, choice, enums, node_id, part, part_if_any, service_id, task_id};
use crate::v1;

enums! {
    Desired, v1::Desired { Running Shutdown Remove }
    TaskState, v1::TaskState {
        Pending Assigned Preparing Starting Running Draining Stopping
        Complete Failed Rejected Removed
    }
    HealthState, v1::HealthState { Starting Healthy Unhealthy }
}

impl From<&Health> for v1::Health {
    fn from(health: &Health) -> Self {
        Self { state: v1::HealthState::from(health.state).into(), since: health.since.0 }
    }
}

impl TryFrom<v1::Health> for Health {
    type Error = Error;

    fn try_from(wire: v1::Health) -> Result<Self, Error> {
        Ok(Self {
            state: choice::<v1::HealthState, _>("state", wire.state)?,
            since: Time(wire.since),
        })
    }
}

impl From<&TaskExit> for v1::TaskExit {
    fn from(exit: &TaskExit) -> Self {
        Self { code: exit.code, oom_killed: exit.oom_killed }
    }
}

impl From<v1::TaskExit> for TaskExit {
    fn from(wire: v1::TaskExit) -> Self {
        Self { code: wire.code, oom_killed: wire.oom_killed }
    }
}

impl From<&TaskStatus> for v1::TaskStatus {
    fn from(status: &TaskStatus) -> Self {
        Self {
            state: v1::TaskState::from(status.state).into(),
            since: status.since.0,
            attempt: status.attempt,
            pid: status.pid,
            started: status.started.map(|time| time.0),
            exit: status.exit.as_ref().map(Into::into),
            error: status.error.as_deref().map(str::to_owned),
            health: status.health.as_ref().map(Into::into),
            companions: status.companions().iter().map(Into::into).collect(),
            paused: status.paused,
        }
    }
}

impl TryFrom<v1::TaskStatus> for TaskStatus {
    type Error = Error;

    fn try_from(wire: v1::TaskStatus) -> Result<Self, Error> {
        Ok(Self {
            state: choice::<v1::TaskState, _>("state", wire.state)?,
            since: Time(wire.since),
            attempt: wire.attempt,
            pid: wire.pid,
            started: wire.started.map(Time),
            exit: wire.exit.map(Into::into),
            error: wire.error.map(Into::into),
            health: part_if_any("health", wire.health)?,
            companions: super::companion::statuses(wire.companions)?,
            paused: wire.paused,
        })
    }
}

/// The names, the image and the node's status are left empty: only a listing knows.
impl From<&Task> for v1::Task {
    fn from(task: &Task) -> Self {
        Self {
            id: task.id.as_bytes().to_vec(),
            service: task.service.as_bytes().to_vec(),
            slot: task.slot,
            template: task.template,
            node: task.node.map(|id| id.as_bytes().to_vec()),
            address: task.address.map(Into::into),
            desired: v1::Desired::from(task.desired).into(),
            status: Some((&task.status).into()),
            created: task.created.0,
            revision: task.revision,
            service_name: String::new(),
            node_name: String::new(),
            image: String::new(),
            node_status: v1::NodeStatus::Unspecified.into(),
            health_implicit: false,
            run: task.run,
            origin: task.origin.map(Into::into),
            devices: task.devices.iter().map(str::to_owned).collect(),
        }
    }
}

impl TryFrom<v1::Task> for Task {
    type Error = Error;

    fn try_from(wire: v1::Task) -> Result<Self, Error> {
        Ok(Self {
            id: task_id("id", &wire.id)?,
            service: service_id("service", &wire.service)?,
            slot: wire.slot,
            template: wire.template,
            run: wire.run,
            node: wire.node.map(|id| node_id("node", &id)).transpose()?,
            address: wire.address.map(address),
            devices: wire.devices.into_iter().collect(),
            desired: choice::<v1::Desired, _>("desired", wire.desired)?,
            status: part("status", wire.status)?,
            created: Time(wire.created),
            origin: part_if_any("origin", wire.origin)?,
            revision: wire.revision,
        })
    }
}
