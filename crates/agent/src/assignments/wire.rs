//! Assignments to and from the wire; the cache speaks the same language.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use warren_model::quantity::Time;
use warren_model::service::{OnDisconnect, PortSpec, TaskTemplate};
use warren_model::task::{Desired, TaskState, TaskStatus};
use warren_model::{Cluster, NodeTable, ServiceId, TaskId};
use warren_proto::{Error, v1};

use super::{AssignedService, AssignedTask, Assignment, Kept, Set, TablePart};
use crate::membership::MembershipView;

impl From<v1::Assignment> for Assignment {
    fn from(message: v1::Assignment) -> Self {
        let mut out = Self {
            complete: message.complete,
            applies_to: message.applies_to,
            revision: message.revision,
            ..Self::default()
        };
        let problems = &mut out.problems;
        let mut fine = |error: Error| problems.push(error.to_string());
        let tasks = message.tasks.into_iter().map(parse_task);
        out.tasks = tasks.filter_map(|task| task.map_err(&mut fine).ok()).collect();
        let removed = message.removed_tasks.iter();
        let removed = removed.map(|id| warren_proto::task_id("removed_tasks", id));
        out.removed_tasks = removed.filter_map(|id| id.map_err(&mut fine).ok()).collect();
        let removed = message.removed_services.iter();
        let removed = removed.map(|id| warren_proto::service_id("removed_services", id));
        out.removed_services = removed.filter_map(|id| id.map_err(&mut fine).ok()).collect();
        let membership = message.membership.map(MembershipView::try_from);
        out.membership = membership.and_then(|told| told.map_err(&mut fine).ok());
        let settings = message.cluster.map(Cluster::try_from);
        out.settings = settings.and_then(|told| told.map_err(&mut fine).map(Box::new).ok());
        let more = message.network.as_ref().is_some_and(|network| network.more);
        let update = message.network.map(warren_proto::table_change);
        out.table = update.map(|(change, wrong)| {
            out.problems.extend(wrong.iter().map(ToString::to_string));
            TablePart { change, more }
        });
        for service in message.services {
            match parse_service(service, &mut out.problems) {
                Ok(service) => out.services.push(service),
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
        devices: task.devices.into_iter().collect(),
        known,
        given: warren_proto::given(task.params, task.payload),
    })
}

fn parse_service(
    service: v1::AssignedService,
    problems: &mut Vec<String>,
) -> Result<(ServiceId, AssignedService), Error> {
    let id = warren_proto::service_id("service.id", &service.id)?;
    let labels = service.labels.into_iter().collect();
    let (name, kept_images) = (service.name, service.kept_images);
    let mut out = AssignedService { name, labels, kept_images, ..AssignedService::default() };
    match service.on_disconnect.map(OnDisconnect::try_from) {
        None => {}
        Some(Ok(policy)) => out.on_disconnect = policy,
        Some(Err(error)) => problems.push(format!("service {}: {error}", out.name)),
    }
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

impl From<&AssignedTask> for v1::AssignedTask {
    fn from(task: &AssignedTask) -> Self {
        Self {
            id: task.id.as_bytes().to_vec(),
            service: task.service.as_bytes().to_vec(),
            slot: task.slot,
            template: task.template,
            desired: v1::Desired::from(task.desired).into(),
            address: task.address.map(Into::into),
            status: Some((&task.known).into()),
            params: task.given.params.clone().into_iter().collect(),
            payload: task.given.payload.as_deref().map(Into::into),
            devices: task.devices.iter().map(str::to_owned).collect(),
        }
    }
}

fn wire_service((id, service): (&ServiceId, &AssignedService)) -> v1::AssignedService {
    let id = id.as_bytes().to_vec();
    let templates = service.templates.iter().map(|(number, template)| v1::Template {
        service: id.clone(),
        number: *number,
        task: Some((&**template).into()),
    });
    v1::AssignedService {
        name: service.name.clone(),
        ports: service.ports.iter().map(Into::into).collect(),
        templates: templates.collect(),
        on_disconnect: Some(service.on_disconnect.into()),
        labels: service.labels.clone().into_iter().collect(),
        kept_images: service.kept_images.clone(),
        id,
    }
}

fn complete(
    revision: u64,
    tasks: &BTreeMap<TaskId, AssignedTask>,
    services: &BTreeMap<ServiceId, AssignedService>,
) -> v1::Assignment {
    v1::Assignment {
        complete: true,
        applies_to: 0,
        revision,
        tasks: tasks.values().map(Into::into).collect(),
        services: services.iter().map(wire_service).collect(),
        removed_tasks: vec![],
        removed_services: vec![],
        cluster: None,
        membership: None,
        network: None,
    }
}

impl Set {
    /// The set and what it keeps of an earlier epoch, as complete assignments.
    pub(crate) fn to_wire(&self) -> (v1::Assignment, v1::Assignment) {
        let set = v1::Assignment {
            cluster: self.settings.as_deref().map(v1::Cluster::settings_only),
            membership: self.membership.as_ref().map(Into::into),
            network: Some((&self.table.whole()).into()),
            ..complete(self.revision, &self.tasks, &self.services)
        };
        (set, complete(self.revision, &self.kept.tasks, &self.kept.services))
    }

    /// The reverse; what this version does not understand is left out and told.
    pub(crate) fn from_wire(set: v1::Assignment, kept: v1::Assignment) -> (Self, Vec<String>) {
        let (set, kept) = (Assignment::from(set), Assignment::from(kept));
        let mut problems = set.problems;
        problems.extend(kept.problems);
        let mut table = NodeTable::default();
        table.apply(set.table.map(|part| part.change).unwrap_or_default());
        let tasks = |tasks: Vec<AssignedTask>| tasks.into_iter().map(|task| (task.id, task));
        let out = Self {
            revision: set.revision,
            tasks: tasks(set.tasks).collect(),
            services: set.services.into_iter().collect(),
            membership: set.membership,
            settings: set.settings,
            table: Arc::new(table),
            next_table: None,
            kept: Kept {
                tasks: tasks(kept.tasks).collect(),
                services: kept.services.into_iter().collect(),
            },
        };
        (out, problems)
    }
}
