//! Listings: rows of the view, with what only a view can tell beside them.

use std::collections::BTreeSet;

use warren_model::health::Healthcheck;
use warren_model::node::Node;
use warren_model::service::Service;
use warren_model::task::{Desired, Task};
use warren_model::{NodeId, ServiceId, TaskId};
use warren_proto::v1;
use warren_state::State;

use crate::api::services::find;
use crate::api::{jobs, networks, resolve};
use crate::core::Core;
use crate::quorum::{self, Group};
use crate::reach::Answers;
use crate::refusal::Refusal;
use crate::stream::target;

pub(super) fn services(
    core: &Core,
    view: &State,
    request: &v1::ListServicesRequest,
) -> Result<v1::ListServicesResponse, Refusal> {
    let wanted = wanted(view, &request.services)?;
    let services = match &wanted {
        Some(ids) => ids.iter().filter_map(|id| view.service(*id)).map(|s| row(view, s)).collect(),
        None => view.services().map(|service| row(view, service)).collect(),
    };
    let (revision, stale_ms) = (view.revision(), quorum::stale_ms(core));
    Ok(v1::ListServicesResponse { services, revision, stale_ms })
}

/// Services by name, each once, in the order in which they were named; `None` for all.
fn wanted(view: &State, names: &[String]) -> Result<Option<Vec<ServiceId>>, Refusal> {
    let mut ids = Vec::with_capacity(names.len());
    for name in names {
        let id = find(view, name)?.id;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok((!names.is_empty()).then_some(ids))
}

fn row(view: &State, service: &Service) -> v1::Service {
    let (running, desired) = warren_planner::task_counts(view, service.id);
    let (update_state, update_message) = warren_planner::update_state(view, service);
    let update_state = update_state.as_str().to_owned();
    let completed = warren_planner::completed_count(view, service.id);
    let addresses = networks::addresses(view, service);
    let job = service.job.as_ref().map(|job| jobs::listed(view, service, job));
    v1::Service {
        job,
        running,
        desired,
        completed,
        update_state,
        update_message,
        addresses,
        ..service.into()
    }
}

pub(super) fn tasks(
    core: &Core,
    view: &State,
    request: &v1::ListTasksRequest,
) -> Result<v1::ListTasksResponse, Refusal> {
    let mut tasks: Vec<&Task> = Vec::new();
    for id in named_tasks(view, &request.ids)? {
        tasks.extend(view.task(id));
    }
    let shown = |task: &&Task| request.all || is_current(task);
    match wanted(view, &request.services)? {
        Some(ids) => {
            for id in ids {
                tasks.extend(view.tasks_of(id).filter(shown));
            }
        }
        None if request.ids.is_empty() => {
            for service in view.services() {
                tasks.extend(view.tasks_of(service.id).filter(shown));
            }
        }
        None => {}
    }
    let nodes = named_nodes(view, &request.nodes)?;
    if !nodes.is_empty() {
        tasks.retain(|task| task.node.is_some_and(|node| nodes.contains(&node)));
    }
    let tasks = tasks.into_iter().map(|task| task_row(view, task)).collect();
    let (revision, stale_ms) = (view.revision(), quorum::stale_ms(core));
    Ok(v1::ListTasksResponse { tasks, revision, stale_ms })
}

/// Not history: wanted, or not ended yet.
fn is_current(task: &Task) -> bool {
    task.desired == Desired::Running || !task.status.state.is_terminal()
}

fn named_tasks(view: &State, texts: &[String]) -> Result<BTreeSet<TaskId>, Refusal> {
    texts.iter().map(|text| target::one(view, text).map(|task| task.id)).collect()
}

/// Tasks of these nodes alone; none named: of all.
fn named_nodes(view: &State, texts: &[String]) -> Result<BTreeSet<NodeId>, Refusal> {
    texts.iter().map(|text| resolve::node(view, text).map(|node| node.id)).collect()
}

fn task_row(view: &State, task: &Task) -> v1::Task {
    let service = view.service(task.service).map(|service| service.spec.name.to_string());
    let node = task.node.and_then(|id| view.node(id));
    let node_status = node.map(|node| v1::NodeStatus::from(node.status).into());
    let template = view.template(task.service, task.template);
    v1::Task {
        service_name: service.unwrap_or_default(),
        node_name: node.map(|node| node.description.hostname.clone()).unwrap_or_default(),
        node_status: node_status.unwrap_or_default(),
        health_implicit: template.is_some_and(|template| template.health == Healthcheck::Implicit),
        image: template.map(|template| template.image.clone()).unwrap_or_default(),
        ..task.into()
    }
}

pub(super) async fn nodes(core: &Core, view: &State) -> v1::ListNodesResponse {
    let answers = core.reach.lately(core).await;
    let group = quorum::group(core);
    let mut nodes: Vec<v1::Node> =
        view.nodes().map(|node| node_row(&group, &answers, view, node)).collect();
    // What was said of an earlier recovery says nothing.
    let epoch = view.cluster().map_or(0, |cluster| cluster.epoch);
    for node in &mut nodes {
        node.forgotten = node.forgotten.filter(|said| said.epoch == epoch);
    }
    let (revision, stale_ms) = (view.revision(), quorum::stale_ms(core));
    v1::ListNodesResponse { nodes, revision, stale_ms }
}

/// With the node's part in the group of managers.
fn node_row(group: &Group, answers: &Answers, view: &State, node: &Node) -> v1::Node {
    let number = node.number.filter(|_| node.manager);
    let reachability = match number {
        // Decided, and not carried out yet.
        None if node.number.is_some_and(|number| group.members.contains_key(&number)) => "leaving",
        None => "",
        Some(number) if answers.joining.contains(&number) => "joining",
        Some(number) if !answers.there.contains(&number) => "unreachable",
        Some(number) => match group.members.get(&number) {
            Some(member) if member.voter => "voter",
            Some(_) => "learner",
            // Not taken in yet.
            None => "joining",
        },
    };
    v1::Node {
        leader: number.is_some() && group.leader == number,
        reachability: reachability.to_owned(),
        reserved: view.reserved_on(node.id).filter(|all| !all.is_empty()).as_ref().map(Into::into),
        ..node.into()
    }
}
