//! Why things are where they are: the planner's own judgement of this manager's view, with names.
//!
//! Reads nothing but the view, so any manager answers; one that is behind can be
//! asked for what is at least as new as the leader's (`linearizable`).

use warren_model::node::{Availability, Node};
use warren_model::service::{ChangeKind, Service, UpdateState};
use warren_model::task::Task;
use warren_planner::{Convergence, Explanation, Finding, NodeExplanation, Tenant, Verdict};
use warren_proto::v1;
use warren_proto::v1::explain_request::What;
use warren_state::State;

use crate::api::services::find;
use crate::api::{jobs, resolve};
use crate::core::Core;
use crate::quorum;
use crate::refusal::Refusal;
use crate::stream::target::find_task;

/// Nodes in one answer: far below what a message may be, far above what people read.
const NODES_MAX: usize = 500;

pub(super) fn explain(
    core: &Core,
    view: &State,
    request: &v1::ExplainRequest,
) -> Result<v1::Explanation, Refusal> {
    let answer = of(view, request)?;
    Ok(v1::Explanation { revision: view.revision(), stale_ms: quorum::stale_ms(core), ..answer })
}

fn of(view: &State, request: &v1::ExplainRequest) -> Result<v1::Explanation, Refusal> {
    match &request.what {
        None => Err(Refusal::bad_input("what: is missing; name a task, a service or a node")),
        Some(What::Task(text)) => task(view, text),
        Some(What::Service(text)) => service(view, text),
        Some(What::Node(text)) => node(view, text),
    }
}

/// By id, or as `web.2`: the task of that slot that is wanted now.
fn task(view: &State, text: &str) -> Result<v1::Explanation, Refusal> {
    let none = || Refusal::not_found(format!("no task {text}")).hint("warren ps shows them");
    let id = match find_task(view, text)? {
        Some(id) => id,
        None => in_slot(view, text).ok_or_else(none)?.id,
    };
    let task = view.task(id).ok_or_else(none)?;
    let service = view.service(task.service).ok_or_else(none)?;
    let explanation = warren_planner::explain_task(view, id).ok_or_else(none)?;
    let name = format!("{}.{}", service.spec.name, task.label());
    let mut summary = summary_of_task(view, &name, task, &explanation);
    for remark in &explanation.remarks {
        summary.push_str("; ");
        summary.push_str(remark);
    }
    let id = id.as_bytes().to_vec();
    let history = history(view, service, Some(task.slot));
    let answer = answer(view, service, "task", id, name, summary, explanation);
    Ok(v1::Explanation { history, ..answer })
}

fn in_slot<'a>(view: &'a State, text: &str) -> Option<&'a Task> {
    let (name, slot) = text.rsplit_once('.')?;
    let slot: u32 = slot.parse().ok()?;
    let service = view.service_by_name(name)?;
    let tasks = view.tasks_of(service.id).filter(|task| task.slot == slot);
    // Of two while one takes over, the one that waits is asked about.
    tasks.max_by_key(|task| {
        let wanted = task.desired == warren_model::task::Desired::Running;
        (wanted, warren_planner::is_pending(task), task.created, task.id)
    })
}

fn summary_of_task(view: &State, name: &str, task: &Task, explanation: &Explanation) -> String {
    let state = task.status.state.as_str();
    let host = task.node.and_then(|id| view.node(id)).map(|node| &node.description.hostname);
    let leaves = explanation.verdicts.first().filter(|verdict| verdict.here);
    let leaves = leaves.and_then(|verdict| verdict.findings.first());
    match (host, leaves) {
        (Some(host), Some(finding)) => {
            format!("{name} is {state} on {host}, and is to leave it: {}", finding.text)
        }
        (Some(host), None) => format!("{name} is {state} on {host}"),
        (None, _) if explanation.reason.is_empty() => {
            format!("{name} is {state}, and fits: it is placed in a moment")
        }
        (None, _) => format!("{name} is {state}: {}", explanation.reason),
    }
}

fn service(view: &State, text: &str) -> Result<v1::Explanation, Refusal> {
    let service = find(view, text)?;
    let pending = view.tasks_of(service.id).filter(|task| warren_planner::is_pending(task)).count();
    let explanation = warren_planner::explain_service(view, service.id)
        .ok_or_else(|| Refusal::not_found(format!("no service {text}")))?;
    let (running, desired) = warren_planner::task_counts(view, service.id);
    let name = service.spec.name.to_string();
    let mut summary = match &service.job {
        None => format!("{name} has {running} of {desired} tasks running, {pending} pending"),
        Some(job) => jobs::summary(view, service, job),
    };
    if !explanation.reason.is_empty() {
        summary.push_str(": ");
        summary.push_str(&explanation.reason);
    }
    let (update, mut fixes) = of_update(view, service);
    if let Some(update) = update {
        summary.push_str("; ");
        summary.push_str(&update);
    }
    // Why it goes no further, an update or a move.
    if let Convergence::Waiting { message } = warren_planner::progress(view, service.id)
        && explanation.reason.is_empty()
    {
        summary.push_str("; ");
        summary.push_str(&message);
    }
    let id = service.id.as_bytes().to_vec();
    let history = history(view, service, None);
    let answer = answer(view, service, "service", id, name, summary, explanation);
    fixes.extend(answer.fixes);
    Ok(v1::Explanation { fixes, history, ..answer })
}

/// Why its tasks were made.
fn history(view: &State, service: &Service, slot: Option<u32>) -> Vec<v1::Decision> {
    let row = |decision: warren_planner::Decision| v1::Decision {
        task: decision.task.as_bytes().to_vec(),
        name: warren_planner::slot_name(service, decision.slot),
        node: host(decision.node.and_then(|id| view.node(id))),
        time: decision.time.0,
        revision: decision.revision,
        cause: decision.cause.map_or(0, |cause| v1::Cause::from(cause).into()),
        text: decision.text,
    };
    warren_planner::decisions(view, service.id, slot).into_iter().map(row).collect()
}

/// Why a drain goes no further: what of each service is there, and what it waits for.
fn of_drain(view: &State, node: &Node, tenants: &[Tenant]) -> Option<String> {
    if node.availability != Availability::Drain {
        return None;
    }
    let mut parts = Vec::new();
    for tenant in tenants.iter().filter(|tenant| tenant.tasks > 0) {
        let name = view.service(tenant.service).map(|service| &service.spec.name)?;
        let stand = match warren_planner::progress(view, tenant.service) {
            Convergence::Waiting { message } => message,
            Convergence::Failed { reason } => reason,
            Convergence::Converged => format!("{} to end", tenant.tasks),
        };
        parts.push(format!("{name}: {stand}"));
    }
    let text = match (parts.is_empty(), node.drain_deadline) {
        (true, _) => "it is empty".to_owned(),
        (false, None) => format!("it drains: {}", parts.join("; ")),
        (false, Some(end)) => format!("it drains, until {end} at the latest: {}", parts.join("; ")),
    };
    Some(text)
}

/// How its last update stands, and what can be done about it.
fn of_update(view: &State, service: &Service) -> (Option<String>, Vec<String>) {
    let (state, message) = warren_planner::update_state(view, service);
    let (name, number) = (&service.spec.name, service.number);
    let back = match service.change.kind {
        ChangeKind::Rollback { to } | ChangeKind::AutomaticRollback { to } => to,
        ChangeKind::Create | ChangeKind::Update => 0,
    };
    let mut fixes = Vec::new();
    let text = match state {
        UpdateState::None | UpdateState::Completed => return (None, fixes),
        UpdateState::Updating => format!("the update to revision {number} is under way"),
        UpdateState::RollingBack => format!("it is going back to revision {back}"),
        UpdateState::RolledBack => format!("it went back to revision {back}"),
        UpdateState::Paused => {
            fixes.push(format!("warren service rollback {name} goes back to the revision before"));
            format!("the update to revision {number} is paused")
        }
        UpdateState::RollbackPaused => format!("going back to revision {back} is paused"),
    };
    match state {
        UpdateState::Paused | UpdateState::RollbackPaused => {
            fixes.push(format!(
                "warren service resume {name} tries again; failures so far do not count any more"
            ));
            fixes.push(format!("warren service update {name} with what is right takes its place"));
        }
        UpdateState::RolledBack => {
            fixes.push(format!("warren service history {name} shows what was tried"));
        }
        UpdateState::None
        | UpdateState::Completed
        | UpdateState::Updating
        | UpdateState::RollingBack => {}
    }
    let text = if message.is_empty() { text } else { format!("{text}: {message}") };
    (Some(text), fixes)
}

pub(super) fn answer(
    view: &State,
    service: &Service,
    kind: &str,
    id: Vec<u8>,
    name: String,
    summary: String,
    explanation: Explanation,
) -> v1::Explanation {
    let template = view.template(service.id, explanation.template);
    let reserve = template.map_or(&service.spec.task, |template| &**template).reserved();
    let nearest = explanation.nearest().map(|verdict| verdict.node.as_bytes().to_vec());
    let left = explanation.verdicts.len().saturating_sub(NODES_MAX);
    let verdicts = explanation.verdicts.iter().take(NODES_MAX);
    v1::Explanation {
        kind: kind.to_owned(),
        id,
        name,
        summary,
        reserve: (!reserve.is_empty()).then(|| reserve.as_ref().into()),
        asks: asks(service),
        nodes: verdicts.map(|verdict| verdict_row(view, verdict)).collect(),
        nodes_left: u32::try_from(left).unwrap_or(u32::MAX),
        nearest: nearest.unwrap_or_default(),
        fixes: explanation.fixes,
        ..v1::Explanation::default()
    }
}

/// What a service wants of nodes, beside room.
fn asks(service: &Service) -> Vec<String> {
    let placement = &service.spec.placement;
    let constraints = placement.constraints.iter().map(ToString::to_string);
    let preferences = placement.preferences.iter().map(|wish| format!("prefer {wish}"));
    let spread = placement.spread.iter().map(|attribute| format!("spread {attribute}"));
    let affinities = placement.affinities.iter().map(|affinity| match affinity.apart {
        true => format!("apart from {affinity}"),
        false => format!("near {affinity}"),
    });
    let tolerations = placement.tolerations.iter().map(|taint| format!("tolerates {taint}"));
    let most = placement.max_per_node.map(|most| format!("at most {most} per node"));
    let all = constraints.chain(preferences).chain(spread).chain(affinities).chain(tolerations);
    all.chain(most).collect()
}

fn host(node: Option<&Node>) -> String {
    node.map(|node| node.description.hostname.clone()).unwrap_or_default()
}

fn verdict_row(view: &State, verdict: &Verdict) -> v1::NodeVerdict {
    v1::NodeVerdict {
        node: verdict.node.as_bytes().to_vec(),
        name: host(view.node(verdict.node)),
        fits: verdict.findings.is_empty(),
        next: verdict.next,
        here: verdict.here,
        tasks: verdict.tasks,
        load: verdict.load,
        obstacles: verdict.findings.iter().map(obstacle).collect(),
    }
}

fn obstacle(finding: &Finding) -> v1::Obstacle {
    let amounts = finding.amounts;
    v1::Obstacle {
        kind: finding.kind.clone(),
        text: finding.text.clone(),
        needed: amounts.map(|amounts| amounts.needed),
        free: amounts.map(|amounts| amounts.free),
        capacity: amounts.map(|amounts| amounts.capacity),
        fix: finding.fix.clone(),
    }
}

fn node(view: &State, text: &str) -> Result<v1::Explanation, Refusal> {
    let node = resolve::node(view, text)?;
    let gone = || Refusal::not_found(format!("no node {text}"));
    let NodeExplanation { rooms, tenants, .. } =
        warren_planner::explain_node(view, node.id).ok_or_else(gone)?;
    let name = node.description.hostname.clone();
    let pending: u32 = tenants.iter().map(|tenant| tenant.pending).sum();
    let tasks = view.live_on(node.id);
    let status = match node.status {
        warren_model::node::NodeStatus::Ready => "ready",
        warren_model::node::NodeStatus::Down => "down",
    };
    let summary = format!(
        "{name} is {status} and {}, has {tasks} tasks; {pending} tasks of the cluster wait for a \
         place",
        node.availability.as_str()
    );
    let summary = match of_drain(view, node, &tenants) {
        None => summary,
        Some(drain) => format!("{summary}; {drain}"),
    };
    let rooms = rooms.into_iter().map(|room| v1::Room {
        resource: room.resource,
        total: room.total,
        system_reserved: room.system_reserved,
        reserved: room.reserved,
        free: room.free,
    });
    Ok(v1::Explanation {
        kind: "node".to_owned(),
        id: node.id.as_bytes().to_vec(),
        name,
        summary,
        reserve: view.reserved_on(node.id).as_ref().map(Into::into),
        asks: node.taints.iter().map(|taint| format!("taint {taint}")).collect(),
        rooms: rooms.collect(),
        services: tenants.iter().map(|tenant| tenant_row(view, tenant)).collect(),
        ..v1::Explanation::default()
    })
}

fn tenant_row(view: &State, tenant: &Tenant) -> v1::TenantVerdict {
    let name = view.service(tenant.service).map(|service| service.spec.name.to_string());
    v1::TenantVerdict {
        service: tenant.service.as_bytes().to_vec(),
        name: name.unwrap_or_default(),
        tasks: tenant.tasks,
        pending: tenant.pending,
        obstacles: tenant.findings.iter().map(obstacle).collect(),
    }
}

#[cfg(test)]
mod tests {
    use warren_state::change::Mutation;

    use super::*;
    use crate::testing::{apply, node_id, world};

    fn ask(view: &State, what: What) -> String {
        match of(view, &v1::ExplainRequest { what: Some(what), ..Default::default() }) {
            Ok(answer) => {
                let node = |node: &v1::NodeVerdict| {
                    let texts: Vec<&str> =
                        node.obstacles.iter().map(|obstacle| obstacle.text.as_str()).collect();
                    let mark = if node.next { " next" } else { "" };
                    format!("\n{}{mark}: {}", node.name, texts.join("; "))
                };
                let nodes: String = answer.nodes.iter().map(node).collect();
                let rooms: String = answer
                    .rooms
                    .iter()
                    .take(2)
                    .map(|room| format!("\n{} {} of {}", room.resource, room.free, room.total))
                    .collect();
                let services: String = answer
                    .services
                    .iter()
                    .map(|of| format!("\n{} {} {}", of.name, of.tasks, of.pending))
                    .collect();
                format!("{}{nodes}{rooms}{services}", answer.summary)
            }
            Err(refusal) => refusal.to_string(),
        }
    }

    #[test]
    fn tasks_services_and_nodes() {
        let mut view = world("web: 1 running a, 2 pending");
        let text = |text: &str| text.to_owned();
        assert_eq!(
            ask(&view, What::Task(text("web.2"))),
            "web.2 is pending, and fits: it is placed in a moment\nhost-b next: \nhost-a: "
        );
        assert_eq!(
            ask(&view, What::Task(text("web.1"))),
            "web.1 is running on host-a\nhost-a: \nhost-b: "
        );
        assert_eq!(ask(&view, What::Task(text("web.9"))), "no task web.9");
        let taint = |letter: char| Mutation::SetTaints {
            id: node_id(letter),
            taints: vec!["gpu:no-execute".parse().unwrap()],
        };
        apply(&mut view, vec![taint('a'), taint('b')]);
        assert_eq!(
            ask(&view, What::Service(text("web"))),
            "web has 1 of 1 tasks running, 1 pending: no node fits: 2 tainted gpu:no-execute\n\
             host-a: tainted gpu:no-execute, which is not tolerated\n\
             host-b: tainted gpu:no-execute, which is not tolerated"
        );
        assert_eq!(
            ask(&view, What::Task(text("web.1"))).lines().next(),
            Some(
                "web.1 is running on host-a, and is to leave it: tainted gpu:no-execute, which is \
                  not tolerated"
            )
        );
        assert_eq!(
            ask(&view, What::Node(text("host-a"))),
            "host-a is ready and active, has 1 tasks; 1 tasks of the cluster wait for a place\n\
             cpu 0 of 0\nmemory 0 of 0\nweb 1 1"
        );
        assert_eq!(ask(&view, What::Node(text("x"))), "no node x");
    }
}
