//! What a node must hold, and what of it changed between two states.
//!
//! Pure. A node holds every task that is placed on it, also those that ended
//! (their logs are there) and those to be removed (someone has to do it), until
//! the planner drops them; of each service of these tasks the ports and the
//! templates in use; the cluster's settings, without its secrets; and what it
//! must know of its own place (`membership`) and of the network (`table`).
//!
//! Status is not part of the comparison: the node wrote it. It is sent along
//! for agents that lost their memory.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use warren_model::event::{Event, Kind};
use warren_model::health::Healthcheck;
use warren_model::service::{
    Hook, Hooks, OnDisconnect, PortSpec, RestartCondition, RestartPolicy, TaskTemplate,
};
use warren_model::task::{Desired, Task};
use warren_model::{NodeId, ServiceId, TaskId};
use warren_proto::v1;
use warren_state::State;

use crate::dispatch::membership;
use crate::dispatch::table::{self, Concerned};

/// Everything `node` must hold.
pub fn complete(view: &State, node: NodeId) -> v1::Assignment {
    let uses = uses(view, node);
    v1::Assignment {
        complete: true,
        applies_to: 0,
        revision: view.revision(),
        tasks: view.tasks_on(node).map(|task| assigned_task(view, task)).collect(),
        services: uses.iter().filter_map(|(id, used)| service(view, *id, used)).collect(),
        removed_tasks: Vec::new(),
        removed_services: Vec::new(),
        cluster: settings(view, node),
        membership: membership::of(view, node),
        network: Some((&table::complete(view, node).whole()).into()),
    }
}

/// What changed for `node`, which holds the set of revision `applies_to`; `None` if nothing did.
pub fn incremental(
    old: &State,
    new: &State,
    node: NodeId,
    applies_to: u64,
) -> Option<v1::Assignment> {
    let (tasks, removed_tasks) = changed_tasks(old, new, node);
    let (services, removed_services) = changed_services(old, new, node);
    let cluster = changed_settings(old, new, node);
    let membership = membership::changed(old, new, node);
    let network = table::changes(old, new, node);
    let nothing = tasks.is_empty()
        && removed_tasks.is_empty()
        && services.is_empty()
        && removed_services.is_empty()
        && cluster.is_none()
        && membership.is_none()
        && network.is_none();
    (!nothing).then(|| v1::Assignment {
        complete: false,
        applies_to,
        revision: new.revision(),
        tasks,
        services,
        removed_tasks,
        removed_services,
        cluster,
        membership,
        network: network.as_ref().map(Into::into),
    })
}

fn changed_settings(old: &State, new: &State, node: NodeId) -> Option<v1::Cluster> {
    if old.topology() == new.topology() {
        return None;
    }
    let after = settings(new, node);
    if settings(old, node) == after { None } else { after }
}

/// With the defaults that hold on the node.
fn settings(view: &State, id: NodeId) -> Option<v1::Cluster> {
    let settings = view.cluster().map(v1::Cluster::settings_only)?;
    let defaults = view.node(id).map(|node| view.defaults_of(node)).unwrap_or_default();
    Some(v1::Cluster { defaults: (!defaults.is_empty()).then(|| (&defaults).into()), ..settings })
}

/// Whose assignment may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Touched {
    Everyone,
    Nodes(BTreeSet<NodeId>),
}

/// Reads events instead of comparing everything: costs what happened, not what exists.
/// `events` are all between the two states, `None` if some are lost.
pub(crate) fn touched(old: &State, new: &State, events: Option<&[Event]>) -> Touched {
    let Some(events) = events else { return Touched::Everyone };
    let mut nodes = BTreeSet::new();
    let mut services = BTreeSet::new();
    let mut moved = BTreeSet::new();
    for event in events {
        match event.kind {
            // Of policies there are few, and each may be about any container.
            Kind::Cluster | Kind::Policy => return Touched::Everyone,
            // Of a network is told who has tasks on it.
            Kind::Operator | Kind::Network => {}
            Kind::Node => {
                let Ok(id) = event.id.parse::<NodeId>() else { return Touched::Everyone };
                nodes.insert(id);
                moved.insert(id);
            }
            Kind::Service => {
                let Ok(id) = event.id.parse::<ServiceId>() else { return Touched::Everyone };
                services.insert(id);
                if told(old, id) != told(new, id) {
                    nodes.extend(new.tasks_of(id).filter_map(|task| task.node));
                }
            }
            Kind::Task => {
                let Ok(id) = event.id.parse::<TaskId>() else { return Touched::Everyone };
                let (before, after) = (old.task(id), new.task(id));
                services.extend(after.or(before).map(|task| task.service));
                if before.map(face) != after.map(face) {
                    nodes.extend(before.and_then(|task| task.node));
                    nodes.extend(after.and_then(|task| task.node));
                }
            }
        }
    }
    if !moved.is_empty() && membership::common(old) != membership::common(new) {
        return Touched::Everyone;
    }
    match table::concerned(old, new, services, &moved) {
        Concerned::Everyone => Touched::Everyone,
        Concerned::Nodes(concerned) => {
            nodes.extend(concerned);
            Touched::Nodes(nodes)
        }
    }
}

/// What a node is told of a service, templates aside.
fn told(view: &State, id: ServiceId) -> Option<Told<'_>> {
    let spec = &view.service(id)?.spec;
    let kept = kept_images(view, id);
    Some((spec.ports.as_slice(), spec.on_disconnect, &spec.labels, &spec.hooks, kept))
}

type Told<'a> =
    (&'a [PortSpec], OnDisconnect, &'a BTreeMap<String, String>, &'a Hooks, BTreeSet<&'a str>);

/// Images of revisions that a service may go back to, but for those of what is wanted now: its
/// tasks name them.
fn kept_images(view: &State, id: ServiceId) -> BTreeSet<&str> {
    let now: BTreeSet<&str> =
        view.service(id).into_iter().flat_map(|service| images(&service.spec.task)).collect();
    let revisions = view.revisions(id).iter().flat_map(|revision| images(&revision.spec.task));
    revisions.filter(|image| !now.contains(image)).collect()
}

/// Of a task's own container and of those beside it.
fn images(task: &TaskTemplate) -> impl Iterator<Item = &str> {
    let beside = task.companions.iter().map(|companion| companion.task.image.as_str());
    std::iter::once(task.image.as_str()).chain(beside)
}

/// What a node is told of a task, status aside.
fn face(task: &Task) -> (Option<NodeId>, u32, u32, Desired, Option<Ipv4Addr>) {
    (task.node, task.slot, task.template, task.desired, task.address)
}

fn changed_tasks(old: &State, new: &State, node: NodeId) -> (Vec<v1::AssignedTask>, Vec<Vec<u8>>) {
    // By id: the order of a node's tasks is the state's own business.
    let mut before: BTreeMap<TaskId, &Task> =
        old.tasks_on(node).map(|task| (task.id, task)).collect();
    let mut changed = Vec::new();
    for task in new.tasks_on(node) {
        if before.remove(&task.id).is_none_or(|known| face(known) != face(task)) {
            changed.push(assigned_task(new, task));
        }
    }
    let gone = before.keys().map(|id| id.as_bytes().to_vec()).collect();
    (changed, gone)
}

fn changed_services(
    old: &State,
    new: &State,
    node: NodeId,
) -> (Vec<v1::AssignedService>, Vec<Vec<u8>>) {
    let (before, after) = (uses(old, node), uses(new, node));
    let same = |id: ServiceId| told(old, id) == told(new, id);
    let changed = after
        .iter()
        .filter(|(id, used)| before.get(id) != Some(used) || !same(**id))
        .filter_map(|(id, used)| service(new, *id, used))
        .collect();
    let gone = before.keys().filter(|id| !after.contains_key(id));
    (changed, gone.map(|id| id.as_bytes().to_vec()).collect())
}

/// Services with tasks on the node, and the templates these tasks refer to.
fn uses(view: &State, node: NodeId) -> BTreeMap<ServiceId, BTreeSet<u32>> {
    let mut uses: BTreeMap<ServiceId, BTreeSet<u32>> = BTreeMap::new();
    for task in view.tasks_on(node) {
        uses.entry(task.service).or_default().insert(template_of(task));
    }
    uses
}

/// As nodes call the template of a task: that of a hook has a command of its own.
fn template_of(task: &Task) -> u32 {
    task.hook().map_or(task.template, |hook| hook.template(task.template))
}

fn assigned_task(view: &State, task: &Task) -> v1::AssignedTask {
    let job = view.service(task.service).and_then(|service| service.job.as_ref());
    let run = job.and_then(|job| job.run(task.run));
    let params = run.map(|run| run.params.clone()).unwrap_or_default();
    v1::AssignedTask {
        id: task.id.as_bytes().to_vec(),
        service: task.service.as_bytes().to_vec(),
        slot: task.slot,
        template: template_of(task),
        desired: v1::Desired::from(task.desired).into(),
        address: task.address.map(Into::into),
        status: Some((&task.status).into()),
        params: params.into_iter().collect(),
        // What has ended needs it no more.
        payload: run
            .filter(|_| !task.status.state.is_terminal())
            .and_then(|run| run.payload.as_deref())
            .map(Into::into),
        devices: task.devices.iter().map(str::to_owned).collect(),
    }
}

/// `None` for a service that is gone: its tasks go first, so nothing on a node is left of it.
fn service(view: &State, id: ServiceId, used: &BTreeSet<u32>) -> Option<v1::AssignedService> {
    let service = view.service(id)?;
    let template = |number: &u32| {
        let (of, hook) = Hook::of_template(*number);
        let known = view.template(id, of)?;
        let mut task = match hook {
            None => v1::TaskTemplate::from(&**known),
            Some(hook) => v1::TaskTemplate::from(&hooked(known, &service.spec.hooks, hook)?),
        };
        if service.job.is_some()
            && let Some(restart) = &mut task.restart
        {
            // However long an attempt ran, it has not done the work.
            restart.window_ms = u64::MAX;
        }
        let service = id.as_bytes().to_vec();
        Some(v1::Template { service, number: *number, task: Some(task) })
    };
    Some(v1::AssignedService {
        id: id.as_bytes().to_vec(),
        name: service.spec.name.to_string(),
        ports: service.spec.ports.iter().map(Into::into).collect(),
        templates: used.iter().filter_map(template).collect(),
        on_disconnect: Some(service.spec.on_disconnect.into()),
        labels: service.spec.labels.clone().into_iter().collect(),
        kept_images: kept_images(view, id).into_iter().map(str::to_owned).collect(),
    })
}

/// A template that runs a hook's command to its end, once; none: there is no command any more, and
/// whoever was to run it is told to stop.
fn hooked(template: &TaskTemplate, hooks: &Hooks, hook: Hook) -> Option<TaskTemplate> {
    let command = hooks.command(hook);
    let condition = match hooks.retries {
        0 => RestartCondition::None,
        _ => RestartCondition::OnFailure,
    };
    (!command.is_empty()).then(|| TaskTemplate {
        entrypoint: Some(command.to_vec()),
        command: Vec::new(),
        health: Healthcheck::Off,
        restart: RestartPolicy {
            condition,
            max_attempts: Some(hooks.retries),
            // However long an attempt ran, it has not done the work.
            window_ms: u64::MAX,
            ..RestartPolicy::default()
        },
        ..template.clone()
    })
}

/// An assignment in messages that are not too large, each of which follows the one before.
pub(crate) fn parts(mut assignment: v1::Assignment) -> Vec<v1::Assignment> {
    let revision = assignment.revision;
    let Some(network) = assignment.network.take() else { return vec![assignment] };
    let mut updates = table::parts(network).into_iter();
    assignment.network = updates.next();
    let rest = updates.map(|network| v1::Assignment {
        applies_to: revision,
        revision,
        network: Some(network),
        ..v1::Assignment::default()
    });
    std::iter::once(assignment).chain(rest).collect()
}

#[cfg(test)]
#[path = "assign_tests.rs"]
mod tests;
