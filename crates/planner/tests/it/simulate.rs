//! What is told of what would be is what then is.

use std::collections::BTreeMap;

use proptest::prelude::*;
use warren_model::id::NodeId;
use warren_model::node::{Description, Node, NodeStatus};
use warren_model::task::Desired;
use warren_planner::{Simulation, Supposed, is_left_behind, simulate};
use warren_state::State;
use warren_state::change::Mutation;

use crate::world::{Ids, World, is_live, node_id, service_id};

const NODES: [&str; 4] = ["a", "b", "c", "d"];
const SERVICES: [&str; 3] = ["web", "db", "ml"];

/// Where each slot is: of two while one takes over where the newer is, if it has a place.
fn places(state: &State) -> BTreeMap<(String, u32), String> {
    type Found = (bool, warren_model::Time, warren_model::TaskId, String);
    let mut newest: BTreeMap<(String, u32), Found> = BTreeMap::new();
    for task in state.tasks().filter(|t| t.desired == Desired::Running && is_live(t)) {
        let name = state.service(task.service).unwrap().spec.name.to_string();
        let node = task.node.map_or("-".to_owned(), |node| node.to_string());
        let found = (task.node.is_some(), task.created, task.id, node);
        let slot = newest.entry((name, task.slot)).or_insert(found.clone());
        *slot = slot.clone().max(found);
    }
    newest.into_iter().map(|(slot, (.., node))| (slot, node)).collect()
}

/// What the changes make of where slots were.
fn predicted(before: &State, simulation: &Simulation) -> BTreeMap<(String, u32), String> {
    let mut places = places(before);
    for change in &simulation.changes {
        let name = simulation.state.service(change.service).unwrap().spec.name.to_string();
        let key = (name, change.slot);
        match (change.to, change.pending) {
            (Some(node), _) => drop(places.insert(key, node.to_string())),
            (None, true) => drop(places.insert(key, "-".into())),
            (None, false) => drop(places.remove(&key)),
        }
    }
    places
}

fn any_world() -> impl Strategy<Value = Vec<String>> {
    let node = (0..6u32, prop_oneof![Just("zone:x"), Just("zone:y")]);
    let nodes = prop::collection::vec(node, 2..4);
    let asks = prop_oneof![
        4 => Just(""),
        1 => Just("spread=zone"),
        1 => Just("max=1"),
        1 => Just("where=zone==x"),
        1 => Just("apart=web"),
        1 => Just("stop-first least=50%"),
        1 => Just("keep"),
        1 => Just("rebalance=never"),
        1 => Just("replace-after=20s"),
    ];
    let service = (0..6u32, prop_oneof![Just(""), Just("mem=100"), Just("mem=250")], asks);
    let services = prop::collection::vec(service, 1..3);
    (nodes, services).prop_map(|(nodes, services)| {
        let mut script = Vec::new();
        for (at, (mem, zone)) in nodes.iter().enumerate() {
            script.push(format!("nodes {}", NODES[at]));
            script.push(format!("has {} mem={} {zone}", NODES[at], mem * 100));
        }
        for (at, (n, reserve, asks)) in services.iter().enumerate() {
            let asks = if at == 0 && asks.starts_with("apart") { "" } else { asks };
            script.push(format!("service {} n={n} par=0 {reserve} {asks}", SERVICES[at]));
        }
        script
    })
}

#[derive(Debug, Clone)]
enum Step {
    Drain(usize),
    Lose(usize),
    Scale(usize, u32),
    Add(u32),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..3usize).prop_map(Step::Drain),
        2 => (0..3usize).prop_map(Step::Lose),
        2 => (0..2usize, 0..8u32).prop_map(|(at, n)| Step::Scale(at, n)),
        1 => (1..6u32).prop_map(Step::Add),
    ]
}

fn new_node(mem: u32) -> Node {
    let description = Description {
        hostname: "d".into(),
        memory_bytes: u64::from(mem * 100) << 20,
        ..Description::default()
    };
    let blocks = vec!["10.128.9.0/24".parse().unwrap()];
    let node = Node::new(node_id("d"), description);
    Node { manager: true, status: NodeStatus::Ready, blocks, ..node }
}

/// The step as it is supposed, and as it then happens.
fn both(world: &World, step: &Step) -> Option<(Supposed, Vec<String>)> {
    let node = |at: usize| NODES[at % world.state.nodes().len().min(3)];
    let there = |at: usize| SERVICES[at % world.state.services().len()];
    Some(match step {
        Step::Drain(at) => {
            (Supposed::Drain(node_id(node(*at))), vec![format!("drain {}", node(*at))])
        }
        Step::Lose(at) => {
            let ids: Vec<NodeId> = vec![node_id(node(*at))];
            (Supposed::Lose(ids), vec![format!("lose {}", node(*at))])
        }
        Step::Scale(at, n) => {
            let service = service_id(there(*at));
            let step = Supposed::Scale { service, replicas: *n };
            (step, vec![format!("update {} n={n}", there(*at))])
        }
        Step::Add(mem) if world.state.node(node_id("d")).is_none() => {
            (Supposed::Add(Box::new(new_node(*mem))), vec!["add".into()])
        }
        Step::Add(_) => return None,
    })
}

/// Who has no other place is told of, also while others of its service wait their turn.
#[test]
fn what_stays_on_a_node_that_drains() {
    for flags in ["", "stop-first", "par=0", "stop-first least=50%"] {
        let mut world = World::new();
        world.run("nodes a");
        world.run(&format!("service web n=3 {flags}"));
        world.settle();
        world.run("wait 30s");
        let drain = [Supposed::Drain(node_id("a"))];
        let told = simulate(&world.state, &drain, &mut Ids::apart(), world.now).unwrap();
        let slots: Vec<u32> = told.changes.iter().map(|change| change.slot).collect();
        assert_eq!(slots, [1, 2, 3], "{flags}");
        assert!(told.changes.iter().all(|change| change.pending), "{flags}: {:?}", told.changes);
    }
}

proptest! {
    #![proptest_config(crate::cases(100))]

    /// Of any cluster and any steps: each slot is where it was told to be, and nothing is written.
    #[test]
    fn what_is_told_comes_true(
        script in any_world(),
        steps in prop::collection::vec(any_step(), 1..4),
    ) {
        let mut world = World::new();
        script.iter().for_each(|command| drop(world.run(command)));
        world.settle();
        world.run("wait 30s");
        let mut supposed = Vec::new();
        let mut commands = Vec::new();
        let mut added = false;
        for step in &steps {
            if matches!(step, Step::Add(_)) && added {
                continue;
            }
            let Some((step, happens)) = both(&world, step) else { continue };
            added |= matches!(step, Supposed::Add(_));
            supposed.push(step);
            commands.push(happens);
        }
        let (before, checksum) = (world.state.clone(), world.state.checksum());
        let told = simulate(&world.state, &supposed, &mut Ids::apart(), world.now).unwrap();
        prop_assert_eq!(world.state.checksum(), checksum);
        prop_assert!(!told.unsettled);
        for (happens, step) in commands.iter().zip(&supposed) {
            match step {
                Supposed::Add(node) => {
                    world.hear(node.id);
                    world.write(Mutation::CreateNode(Node::clone(node)));
                }
                _ => happens.iter().for_each(|command| drop(world.run(command))),
            }
            world.settle();
        }
        prop_assert_eq!(predicted(&before, &told), places(&world.state));
        prop_assert_eq!(places(&told.state), places(&world.state));
        for explanation in &told.pending {
            prop_assert!(!explanation.reason.is_empty());
        }
        for change in &told.changes {
            let lost = change.to.is_some_and(|node| !world.connected.contains(&node));
            prop_assert_eq!(is_left_behind(&told, change), lost && change.kept, "{:?}", change);
        }
    }
}
