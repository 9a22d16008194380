//! What people decide about nodes: roles, availability, labels, removal.
//!
//! A demotion that would cost the cluster its majority is refused here, with
//! the numbers; once the state says it, `members` carries it out. A manager has
//! to leave the voters before it is removed: one that is there is demoted by a
//! person first, one that does not answer by a removal with force.

use tonic::Response;
use tonic::metadata::MetadataValue;
use warren_model::node::{Availability, Forgotten, Node, NodeStatus};
use warren_model::quantity::format_duration_ms;
use warren_proto::v1;
use warren_state::State;
use warren_state::change::{Expect, Key, Mutation, Transaction};

use crate::api::authorize::Who;
use crate::api::request::{Content, repeated, request};
use crate::api::{capacity, change, propose, resolve};
use crate::core::Core;
use crate::describe::reachable_at;
use crate::members::is_even;
use crate::quorum;
use crate::reach::may_leave;
use crate::refusal::Refusal;

/// Metadata of an answer: it was done, but look.
pub const WARNING_KEY: &str = "warren-warning";
/// For a demoted manager to leave the voters; it takes as long as an entry, or an election.
pub(super) const OUT_MS: u64 = 10_000;

pub(super) async fn update(
    core: &Core,
    who: &Who,
    wire: v1::UpdateNodeRequest,
) -> Result<Response<v1::Changed>, Refusal> {
    let view = core.store.view();
    let node = resolve::node(&view, &wire.node)?.clone();
    let demoted = node.manager && wire.manager == Some(false);
    if demoted {
        check_leaving(core, &node).await?;
    }
    let promoted = !node.manager && wire.manager == Some(true);
    if promoted {
        check_promotion(&node)?;
    }
    let content = content(&node, &wire);
    let request = request(&who.principal, &wire.request_id, &content)?;
    let revision = change(core, |view| {
        let node = view.node(node.id).ok_or_else(|| gone(&node))?;
        Ok(Transaction {
            request: request.clone(),
            principal: who.audit(),
            expects: vec![Expect { key: Key::Node(node.id), revision: node.revision }],
            mutations: mutations(node, &wire, epoch(view))?,
        })
    });
    let revision = revision.await?;
    let ids = vec![node.id.as_bytes().to_vec()];
    let mut answer = Response::new(v1::Changed { ids, revision, ..v1::Changed::default() });
    let mut warnings = Vec::new();
    if becomes_worker(&node, &wire) {
        let name = &node.description.hostname;
        warnings.push(format!("node {name} ran no containers; as a worker it takes them"));
    }
    let managers = core.store.view().nodes().filter(|node| node.manager).count();
    if (promoted || demoted) && is_even(managers) {
        warnings.push(format!(
            "{managers} managers survive no more losses than {}: an odd number is better",
            managers - 1
        ));
    }
    if !warnings.is_empty()
        && let Ok(value) = MetadataValue::try_from(warnings.join("; "))
    {
        answer.metadata_mut().insert(WARNING_KEY, value);
    }
    Ok(answer)
}

/// One that only decides, and is to do that no more, has nothing else to be.
fn becomes_worker(node: &Node, wire: &v1::UpdateNodeRequest) -> bool {
    wire.manager == Some(false) && wire.worker.is_none() && !node.worker
}

fn gone(node: &Node) -> Refusal {
    Refusal::not_found(format!("node {} is gone", node.description.hostname))
}

fn content(node: &Node, wire: &v1::UpdateNodeRequest) -> Content {
    let flag = |flag: Option<bool>| [flag.map_or(2, u8::from)];
    let mut content = Content::new("update-node")
        .with(node.id.as_bytes())
        .with(&flag(wire.manager))
        .with(&flag(wire.worker))
        .with(&wire.availability.to_le_bytes())
        .with(&wire.forgotten.to_le_bytes())
        .with(&wire.drain_deadline_ms.unwrap_or(u64::MAX).to_le_bytes());
    // The wire's map is in no order.
    let mut added: Vec<(&String, &String)> = wire.labels_add.iter().collect();
    added.sort();
    for (key, value) in added {
        content = content.with(key.as_bytes()).with(value.as_bytes());
    }
    let removed = wire.labels_remove.iter();
    let content = removed.fold(content.with(b"-"), |content, key| content.with(key.as_bytes()));
    capacity::content(content, wire)
}

/// What is to be written; may be nothing.
fn mutations(
    node: &Node,
    wire: &v1::UpdateNodeRequest,
    epoch: u64,
) -> Result<Vec<Mutation>, Refusal> {
    let mut mutations = Vec::new();
    let id = node.id;
    let manager = wire.manager.unwrap_or(node.manager);
    let worker = wire.worker.unwrap_or_else(|| node.worker || becomes_worker(node, wire));
    // Managers that a recovery took the office from are neither until somebody says.
    if !manager && !worker && (node.manager || node.worker) {
        let name = &node.description.hostname;
        return Err(Refusal::bad_input(format!("node {name} would be neither manager nor worker"))
            .hint("remove it instead: warren node rm"));
    }
    if (manager, worker) != (node.manager, node.worker) {
        mutations.push(Mutation::SetRole { id, manager, worker });
    }
    if wire.availability != i32::from(v1::Availability::Unspecified) {
        let availability = v1::Availability::try_from(wire.availability).map_err(|_| {
            Refusal::bad_input(format!("availability: {} is not known", wire.availability))
        })?;
        let availability = Availability::try_from(availability)?;
        let deadline_ms = deadline(wire, availability)?;
        let same = availability == node.availability
            && deadline_ms.is_none()
            && node.drain_deadline.is_none();
        if !same {
            mutations.push(Mutation::SetAvailability { id, availability, deadline_ms });
        }
    }
    if wire.availability == i32::from(v1::Availability::Unspecified)
        && wire.drain_deadline_ms.is_some()
    {
        return Err(Refusal::bad_input("drain_deadline: is of a drain alone"));
    }
    let mut labels = node.labels.clone();
    for key in &wire.labels_remove {
        labels.remove(key);
    }
    labels.extend(wire.labels_add.iter().map(|(key, value)| (key.clone(), value.clone())));
    if labels != node.labels {
        mutations.push(Mutation::SetLabels { id, labels });
    }
    if let Some(forgotten) = forgotten(wire.forgotten, epoch)?
        && node.forgotten != Some(forgotten)
    {
        mutations.push(Mutation::SetForgotten { id, forgotten });
    }
    mutations.extend(capacity::mutations(node, wire)?);
    Ok(mutations)
}

/// Of a drain; whoever drains without one takes off what was said before.
fn deadline(
    wire: &v1::UpdateNodeRequest,
    availability: Availability,
) -> Result<Option<u64>, Refusal> {
    let Some(ms) = wire.drain_deadline_ms else { return Ok(None) };
    if availability != Availability::Drain {
        let to = availability.as_str();
        return Err(Refusal::bad_input(format!("drain_deadline: is of a drain, not of {to}")));
    }
    if ms > Node::DRAIN_MS_MAX {
        let (ms, most) = (format_duration_ms(ms), format_duration_ms(Node::DRAIN_MS_MAX));
        return Err(Refusal::bad_input(format!("drain_deadline: {ms} is more than {most}")));
    }
    Ok(Some(ms))
}

fn epoch(view: &State) -> u64 {
    view.cluster().map_or(0, |cluster| cluster.epoch)
}

/// What is said of tasks that the recovery of `epoch` made managers forget.
fn forgotten(wire: i32, epoch: u64) -> Result<Option<Forgotten>, Refusal> {
    if wire == i32::from(v1::ForgottenChoice::Unspecified) {
        return Ok(None);
    }
    let choice = v1::ForgottenChoice::try_from(wire)
        .map_err(|_| Refusal::bad_input(format!("forgotten: {wire} is not known")))?;
    if epoch == 0 {
        return Err(Refusal::not_now("this cluster was never restored or recovered")
            .hint("no node has tasks that managers forgot"));
    }
    Ok(Some(Forgotten { epoch, choice: choice.try_into()? }))
}

fn check_promotion(node: &Node) -> Result<(), Refusal> {
    let name = &node.description.hostname;
    if node.status == NodeStatus::Down {
        return Err(Refusal::not_now(format!("node {name} is down, it cannot become a manager"))
            .hint("start it first: warren node run"));
    }
    reachable_at(&node.description.address).map_err(|refusal| {
        Refusal::not_now(format!("node {name} cannot become a manager: {refusal}"))
            .hint("start it with --advertise ADDR[:PORT]")
    })
}

/// Whether the managers can do without one of them.
pub(super) async fn check_leaving(core: &Core, node: &Node) -> Result<(), Refusal> {
    let Some(number) = node.number else { return Ok(()) };
    let reachable = core.reach.now(core).await;
    let voters = quorum::group(core).voters();
    may_leave(&voters, &reachable, number, &node.description.hostname)?;
    // What consensus has not carried out yet counts as well: two demotions at once.
    let view = core.store.view();
    let wanted = view.nodes().filter(|node| node.manager).filter_map(|node| node.number).collect();
    may_leave(&wanted, &reachable, number, &node.description.hostname)
}

pub(super) async fn remove(
    core: &Core,
    who: &Who,
    wire: v1::RemoveNodeRequest,
) -> Result<v1::Changed, Refusal> {
    let content =
        Content::new("remove-node").with(wire.node.as_bytes()).with(&[u8::from(wire.force)]);
    let request = request(&who.principal, &wire.request_id, &content)?;
    let view = core.store.view();
    if let Some(revision) = repeated(&view, request.as_ref())? {
        return Ok(v1::Changed { ids: Vec::new(), revision, ..v1::Changed::default() });
    }
    let node = resolve::node(&view, &wire.node)?;
    let name = &node.description.hostname;
    if node.manager {
        check_dismissal(core, node, wire.force).await?;
    }
    if node.status == NodeStatus::Ready && !wire.force {
        return Err(Refusal::not_now(format!("node {name} is ready"))
            .hint("let it leave by itself (warren node leave there), or add --force"));
    }
    let demoted = if node.manager { Some(dismiss(core, who, node).await?) } else { None };
    let node = demoted.as_ref().unwrap_or(node);
    wait_out(core, node).await?;
    let mutation = removal(core, node, wire.force);
    let transaction = Transaction {
        request,
        principal: who.audit(),
        expects: vec![Expect { key: Key::Node(node.id), revision: node.revision }],
        mutations: vec![mutation],
    };
    let revision = propose(core, transaction).await?;
    Ok(v1::Changed { ids: vec![node.id.as_bytes().to_vec()], revision, ..v1::Changed::default() })
}

/// A manager that answers is demoted first; one that does not may be removed with force.
async fn check_dismissal(core: &Core, node: &Node, force: bool) -> Result<(), Refusal> {
    let answers = match node.number {
        Some(number) => core.reach.now(core).await.contains(&number),
        None => false,
    };
    if force && !answers {
        return Ok(());
    }
    let name = &node.description.hostname;
    let mut hint = format!("demote it first: warren node demote {name}");
    if !answers {
        hint.push_str("; or add --force");
    }
    Err(Refusal::not_now(format!("node {name} is a manager")).hint(hint))
}

/// Takes the office from a manager that is not there to be asked; the node as it is after.
async fn dismiss(core: &Core, who: &Who, node: &Node) -> Result<Node, Refusal> {
    check_leaving(core, node).await?;
    let role = Mutation::SetRole { id: node.id, manager: false, worker: true };
    let transaction = Transaction {
        request: None,
        principal: who.audit(),
        expects: vec![Expect { key: Key::Node(node.id), revision: node.revision }],
        mutations: vec![role],
    };
    propose(core, transaction).await?;
    core.store.view().node(node.id).cloned().ok_or_else(|| gone(node))
}

/// Refused for as long as its certificate would be good.
pub(super) fn removal(core: &Core, node: &Node, force: bool) -> Mutation {
    let keep_until = node.certificate_not_after.max(core.now());
    Mutation::RemoveNode { id: node.id, keep_until, force }
}

/// Until a demoted manager is out of the group.
pub(super) async fn wait_out(core: &Core, node: &Node) -> Result<(), Refusal> {
    let Some(number) = node.number else { return Ok(()) };
    let left = quorum::until(core, |group| !group.members.contains_key(&number));
    let left = tokio::select! {
        () = left => true,
        () = core.clock.sleep(OUT_MS) => false,
    };
    if left {
        return Ok(());
    }
    let (name, seconds) = (&node.description.hostname, OUT_MS / 1000);
    Err(Refusal::unavailable(format!(
        "node {name} has not left the managers within {seconds} s: the others may not be reachable"
    ))
    .hint("warren node ls shows who can be reached"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::node;

    fn check(wire: v1::UpdateNodeRequest, expected: &str) {
        check_at(3, node('a'), wire, expected);
    }

    #[track_caller]
    fn check_node(node: Node, wire: v1::UpdateNodeRequest, expected: &str) {
        check_at(3, node, wire, expected);
    }

    #[track_caller]
    fn check_at(epoch: u64, mut node: Node, wire: v1::UpdateNodeRequest, expected: &str) {
        node.labels.insert("rack".into(), "1".into());
        let got = match mutations(&node, &wire, epoch) {
            Err(refusal) => refusal.to_string(),
            Ok(mutations) => {
                let one = |mutation: &Mutation| match mutation {
                    Mutation::SetRole { manager, worker, .. } => format!("role {manager} {worker}"),
                    Mutation::SetAvailability { availability, deadline_ms, .. } => {
                        let end = deadline_ms.map(|ms| format!(" within {ms} ms"));
                        format!("{}{}", availability.as_str(), end.unwrap_or_default())
                    }
                    Mutation::SetLabels { labels, .. } => format!("labels {labels:?}"),
                    Mutation::SetForgotten { forgotten, .. } => {
                        format!("{} of {}", forgotten.choice.as_str(), forgotten.epoch)
                    }
                    other => format!("{other:?}"),
                };
                mutations.iter().map(one).collect::<Vec<_>>().join(", ")
            }
        };
        assert_eq!(got, expected);
    }

    #[test]
    fn a_manager_without_containers_becomes_a_worker() {
        let wire = v1::UpdateNodeRequest::default;
        let only = || Node { worker: false, ..node('a') };
        let demote = || v1::UpdateNodeRequest { manager: Some(false), ..wire() };
        check_node(only(), demote(), "role false true");
        let neither = "node host-a would be neither manager nor worker";
        check_node(only(), v1::UpdateNodeRequest { worker: Some(false), ..demote() }, neither);
        // What a recovery left: labels may be set, and it may become something.
        let none = || Node { manager: false, ..only() };
        let drain = v1::Availability::Drain.into();
        check_node(none(), v1::UpdateNodeRequest { availability: drain, ..wire() }, "drain");
        check_node(none(), demote(), "role false true");
    }

    #[test]
    fn updates() {
        let wire = v1::UpdateNodeRequest::default;
        check(wire(), "");
        check(v1::UpdateNodeRequest { manager: Some(true), ..wire() }, "");
        check(v1::UpdateNodeRequest { manager: Some(false), ..wire() }, "role false true");
        check(
            v1::UpdateNodeRequest { manager: Some(false), worker: Some(false), ..wire() },
            "node host-a would be neither manager nor worker",
        );
        let drain = v1::Availability::Drain.into();
        check(v1::UpdateNodeRequest { availability: drain, ..wire() }, "drain");
        let within = |ms: u64, availability: v1::Availability| v1::UpdateNodeRequest {
            availability: availability.into(),
            drain_deadline_ms: Some(ms),
            ..wire()
        };
        check(within(9, v1::Availability::Drain), "drain within 9 ms");
        check(within(9, v1::Availability::Active), "drain_deadline: is of a drain, not of active");
        check(
            within(u64::MAX, v1::Availability::Drain),
            "drain_deadline: 213503982334d14h25m51s615ms is more than 30d",
        );
        check(
            v1::UpdateNodeRequest { drain_deadline_ms: Some(9), ..wire() },
            "drain_deadline: is of a drain alone",
        );
        check(
            v1::UpdateNodeRequest { availability: 77, ..wire() },
            "availability: 77 is not known",
        );
        check(
            v1::UpdateNodeRequest {
                labels_add: [("disk".to_owned(), "ssd".to_owned())].into(),
                labels_remove: vec!["rack".into(), "none".into()],
                ..wire()
            },
            "labels {\"disk\": \"ssd\"}",
        );
        let said = |forgotten: i32| v1::UpdateNodeRequest { forgotten, ..wire() };
        check(said(v1::ForgottenChoice::Drop.into()), "drop of 3");
        check(said(77), "forgotten: 77 is not known");
        let keep = said(v1::ForgottenChoice::Keep.into());
        check_at(0, node('a'), keep, "this cluster was never restored or recovered");
        let same = [("rack".to_owned(), "1".to_owned())].into();
        check(v1::UpdateNodeRequest { labels_add: same, ..wire() }, "");
    }
}
