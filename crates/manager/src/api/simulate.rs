//! What would be if: the planner's own rehearsal on a copy of this manager's view, with names.
//!
//! Reads nothing but the view and writes nothing, so whoever may read may ask.
//! A large state takes as long as planning all of it: the runtime is told.

use std::collections::BTreeMap;

use tokio::runtime::{Handle, RuntimeFlavor};
use warren_base::rng::Rng;
use warren_model::id::NodeId;
use warren_model::node::{Description, Node, NodeStatus};
use warren_model::service::ServiceSpec;
use warren_planner::{
    Change, IdSource, Simulation, Supposed, is_left_behind, like, simulate as rehearse, slot_name,
};
use warren_proto::v1;
use warren_proto::v1::supposed_step::{AddNode, Kind, Lose, Scale};
use warren_state::State;

use crate::api::explain::answer;
use crate::api::resolve;
use crate::api::services::find;
use crate::core::Core;
use crate::quorum;
use crate::refusal::Refusal;

/// Rows of one answer: a message's size, and far more than people read.
const TASKS_MAX: usize = 20_000;
const NODES_MAX: usize = 10_000;
/// Services that are explained: each has verdicts of up to 500 nodes.
const PENDING_MAX: usize = 20;
/// Of a node that nobody described: as small as such machines are.
const CPUS: u32 = 1;
const MEMORY_BYTES: u64 = 1 << 30;
/// A disk that is in nobody's way.
const DISK_BYTES: u64 = 1 << 40;

struct Ids<'a>(&'a dyn Rng);

impl IdSource for Ids<'_> {
    fn id(&mut self) -> [u8; 10] {
        self.0.id_bytes()
    }
}

pub(super) fn simulate(
    core: &Core,
    view: &State,
    request: &v1::SimulateRequest,
) -> Result<v1::Simulation, Refusal> {
    let mut ids = Ids(core.rng.as_ref());
    let mut run = || of(view, request, &mut ids, core.now());
    let answer = match Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread {
        true => tokio::task::block_in_place(run),
        false => run(),
    };
    Ok(v1::Simulation { stale_ms: quorum::stale_ms(core), ..answer? })
}

fn of(
    view: &State,
    request: &v1::SimulateRequest,
    ids: &mut dyn IdSource,
    now: warren_model::Time,
) -> Result<v1::Simulation, Refusal> {
    if request.steps.is_empty() {
        return Err(Refusal::bad_input("steps: there is none; say what is supposed to happen"));
    }
    let mut steps = Vec::new();
    for (at, step) in request.steps.iter().enumerate() {
        steps.push(supposed(view, step, ids, at)?);
    }
    let simulation = rehearse(view, &steps, ids, now);
    let simulation = simulation.map_err(|error| Refusal::bad_input(format!("steps: {error}")))?;
    Ok(told(view, &simulation))
}

fn supposed(
    view: &State,
    step: &v1::SupposedStep,
    ids: &mut dyn IdSource,
    at: usize,
) -> Result<Supposed, Refusal> {
    match &step.kind {
        None => Err(Refusal::bad_input(format!("steps[{at}]: says nothing"))),
        Some(Kind::Drain(node)) => Ok(Supposed::Drain(resolve::node(view, node)?.id)),
        Some(Kind::Lose(lose)) => Ok(Supposed::Lose(lost(view, lose)?)),
        Some(Kind::Scale(Scale { service, replicas })) => {
            let replicas = *replicas;
            if replicas > ServiceSpec::REPLICAS_MAX {
                let most = ServiceSpec::REPLICAS_MAX;
                return Err(Refusal::bad_input(format!(
                    "replicas: {replicas} is more than {most}"
                )));
            }
            Ok(Supposed::Scale { service: find(view, service)?.id, replicas })
        }
        Some(Kind::Add(add)) => Ok(Supposed::Add(Box::new(addition(view, add, ids, at)?))),
    }
}

fn lost(view: &State, lose: &Lose) -> Result<Vec<NodeId>, Refusal> {
    let mut nodes = Vec::new();
    for text in &lose.nodes {
        nodes.push(resolve::node(view, text)?.id);
    }
    if lose.labels.is_empty() {
        return match nodes.is_empty() {
            true => Err(Refusal::bad_input("lose: names neither a node nor a label")),
            false => Ok(nodes),
        };
    }
    let has = |node: &&Node| {
        let value = |key| node.labels.get(key).or_else(|| node.description.labels.get(key));
        lose.labels.iter().all(|(key, wanted)| value(key) == Some(wanted))
    };
    let before = nodes.len();
    nodes.extend(view.nodes().filter(has).map(|node| node.id));
    if nodes.len() == before {
        let labels: BTreeMap<_, _> = lose.labels.iter().collect();
        let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        return Err(Refusal::not_found(format!("no node has label {}", labels.join(" and ")))
            .hint("warren node inspect shows labels"));
    }
    Ok(nodes)
}

fn addition(
    view: &State,
    add: &AddNode,
    ids: &mut dyn IdSource,
    at: usize,
) -> Result<Node, Refusal> {
    let AddNode { hostname, like: model, cpus, memory_bytes, labels } = add;
    let name = match hostname.as_str() {
        "" => format!("new-{}", at + 1),
        name => name.to_owned(),
    };
    if view.nodes().any(|node| node.description.hostname == name) {
        return Err(Refusal::bad_input(format!("hostname: there is a node {name} already")));
    }
    let id = NodeId::from_bytes(ids.id());
    let mut node = match model.as_str() {
        "" => {
            let description = Description {
                hostname: name,
                cpus: CPUS,
                memory_bytes: MEMORY_BYTES,
                disk_bytes: DISK_BYTES,
                ..Description::default()
            };
            Node { status: NodeStatus::Ready, ..Node::new(id, description) }
        }
        model => like(resolve::node(view, model)?, id, name),
    };
    node.description.cpus = cpus.unwrap_or(node.description.cpus);
    node.description.memory_bytes = memory_bytes.unwrap_or(node.description.memory_bytes);
    node.labels.extend(labels.iter().map(|(key, value)| (key.clone(), value.clone())));
    if node.labels.len() > Node::LABELS_MAX {
        let (found, most) = (node.labels.len(), Node::LABELS_MAX);
        return Err(Refusal::bad_input(format!("labels: {found} are more than {most}")));
    }
    Ok(node)
}

fn host(simulation: &Simulation, id: Option<NodeId>) -> String {
    let node = id.and_then(|id| simulation.state.node(id));
    node.map(|node| node.description.hostname.clone()).unwrap_or_default()
}

fn told(view: &State, simulation: &Simulation) -> v1::Simulation {
    let tasks = simulation.changes.iter().take(TASKS_MAX);
    let left = simulation.changes.len().saturating_sub(TASKS_MAX);
    let pending = simulation.pending.iter().take(PENDING_MAX);
    v1::Simulation {
        tasks: tasks.map(|change| task_row(view, simulation, change)).collect(),
        pending: pending.filter_map(|explanation| pending_row(simulation, explanation)).collect(),
        nodes: nodes(view, simulation),
        took_ms: simulation.took_ms,
        unsettled: simulation.unsettled,
        revision: view.revision(),
        stale_ms: 0,
        tasks_left: u32::try_from(left).unwrap_or(u32::MAX),
    }
}

fn task_row(view: &State, simulation: &Simulation, change: &Change) -> v1::SimulatedTask {
    let service = simulation.state.service(change.service).or_else(|| view.service(change.service));
    let what = match (change.pending, change.from, change.to) {
        (true, _, None) => "pending",
        (true, Some(from), Some(to)) if from == to => "stays",
        _ if is_left_behind(simulation, change) => "left",
        (false, _, None) => "ends",
        (_, None, Some(_)) => "placed",
        (_, Some(from), Some(to)) if from == to => "renewed",
        (_, Some(_), Some(_)) => "moves",
    };
    v1::SimulatedTask {
        service: change.service.as_bytes().to_vec(),
        slot: change.slot,
        name: service.map(|service| slot_name(service, change.slot)).unwrap_or_default(),
        from: host(simulation, change.from),
        to: host(simulation, change.to),
        what: what.to_owned(),
    }
}

fn pending_row(
    simulation: &Simulation,
    explanation: &warren_planner::Explanation,
) -> Option<v1::Explanation> {
    let service = simulation.state.service(explanation.service)?;
    let name = service.spec.name.to_string();
    let waits = simulation.state.tasks_of(service.id).filter(|t| warren_planner::is_pending(t));
    let summary = format!("{} of {name} would wait: {}", waits.count(), explanation.reason);
    let id = service.id.as_bytes().to_vec();
    Some(answer(&simulation.state, service, "service", id, name, summary, explanation.clone()))
}

/// Those where anything differs, added ones among them.
fn nodes(view: &State, simulation: &Simulation) -> Vec<v1::SimulatedNode> {
    let state = &simulation.state;
    let row = |node: &Node| v1::SimulatedNode {
        node: node.id.as_bytes().to_vec(),
        name: node.description.hostname.clone(),
        added: simulation.added.contains(&node.id),
        tasks_before: view.live_on(node.id),
        tasks_after: state.live_on(node.id),
        reserved_before: view.reserved_on(node.id).as_ref().map(Into::into),
        reserved_after: state.reserved_on(node.id).as_ref().map(Into::into),
    };
    let differs = |row: &v1::SimulatedNode| {
        row.added
            || row.tasks_before != row.tasks_after
            || row.reserved_before != row.reserved_after
    };
    state.nodes().map(row).filter(differs).take(NODES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use warren_model::Time;

    use super::*;
    use crate::testing::world;

    struct Count(u8);

    impl IdSource for Count {
        fn id(&mut self) -> [u8; 10] {
            self.0 += 1;
            [0, 0, 0, 0, 0, 0, 0, 0, 200, self.0]
        }
    }

    #[track_caller]
    fn check(view: &State, kinds: Vec<Kind>, expected: &str) {
        let steps = kinds.into_iter().map(|kind| v1::SupposedStep { kind: Some(kind) }).collect();
        let request = v1::SimulateRequest { steps, ..Default::default() };
        let before = view.checksum();
        let got = match of(view, &request, &mut Count(0), Time(1_000_000)) {
            Err(refusal) => refusal.to_string(),
            Ok(answer) => {
                assert!(!answer.unsettled);
                let task =
                    |t: &v1::SimulatedTask| format!("{} {} {}>{}", t.name, t.what, t.from, t.to);
                let node = |n: &v1::SimulatedNode| {
                    format!("{} {}>{}", n.name, n.tasks_before, n.tasks_after)
                };
                let tasks: Vec<String> = answer.tasks.iter().map(task).collect();
                let nodes: Vec<String> = answer.nodes.iter().map(node).collect();
                let waits: Vec<String> = answer.pending.iter().map(|p| p.summary.clone()).collect();
                [tasks.join(", "), nodes.join(", "), waits.join(", ")].join(" | ")
            }
        };
        assert_eq!(got, expected);
        assert_eq!(view.checksum(), before, "nothing is written");
    }

    fn lose(nodes: &[&str]) -> Kind {
        let nodes = nodes.iter().map(|node| (*node).to_owned()).collect();
        Kind::Lose(Lose { nodes, labels: Default::default() })
    }

    #[test]
    fn what_would_be() {
        let view = world("web: 1 running a");
        let scale = |replicas| Kind::Scale(Scale { service: "web".into(), replicas });
        let drain = |node: &str| Kind::Drain(node.to_owned());
        check(
            &view,
            vec![drain("host-a")],
            "web.1 moves host-a>host-b | host-a 1>0, host-b 0>1 | ",
        );
        check(&view, vec![lose(&["host-a"])], "web.1 moves host-a>host-b | host-b 0>1 | ");
        check(&view, vec![scale(2)], "web.2 placed >host-b | host-b 0>1 | ");
        check(&view, vec![scale(0)], "web.1 ends host-a> | host-a 1>0 | ");
        check(
            &view,
            vec![drain("host-a"), drain("host-b"), scale(2)],
            "web.1 moves host-a>host-b, web.2 pending > | host-a 1>0, host-b 0>1 | 2 of web would \
             wait: no node is ready for tasks: 2 draining",
        );
        let add = Kind::Add(AddNode { hostname: "c".into(), ..AddNode::default() });
        check(
            &view,
            vec![add, drain("host-a"), drain("host-b")],
            "web.1 moves host-a>c | c 0>1, host-a 1>0 | ",
        );
    }

    #[test]
    fn what_cannot_be() {
        let view = world("web: 1 running a");
        check(&view, vec![], "steps: there is none; say what is supposed to happen");
        check(&view, vec![Kind::Drain("x".into())], "no node x");
        check(&view, vec![lose(&[])], "lose: names neither a node nor a label");
        let rack = Lose { labels: [("rack".to_owned(), "a".to_owned())].into(), ..Lose::default() };
        check(&view, vec![Kind::Lose(rack)], "no node has label rack=a");
        let scale = |service: &str, replicas| {
            vec![Kind::Scale(Scale { service: service.into(), replicas })]
        };
        check(&view, scale("db", 1), "no service db");
        check(&view, scale("web", 100_001), "replicas: 100001 is more than 100000");
        let twin = AddNode { hostname: "host-a".into(), ..AddNode::default() };
        check(&view, vec![Kind::Add(twin)], "hostname: there is a node host-a already");
        let many = vec![Kind::Drain("host-a".into()); 33];
        check(&view, many, "steps: 33 steps, at most 32 are simulated at once");
    }
}
