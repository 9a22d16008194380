//! Laws of placement, on random clusters: what is asked is kept, and nothing else decides.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use warren_model::placement::TaintEffect;
use warren_model::service::Service;
use warren_model::task::{Desired, Task, TaskState};
use warren_planner::{explain_task, is_pending};
use warren_state::State;
use warren_state::change::Mutation;

use crate::world::{World, is_live};

const NODES: [&str; 5] = ["a", "b", "c", "d", "e"];
const SERVICES: [&str; 4] = ["web", "db", "ml", "api"];

fn any_node() -> impl Strategy<Value = (String, String)> {
    let zone = prop_oneof![Just(""), Just("zone:x"), Just("zone:y")];
    let disk = prop_oneof![Just(""), Just("disk:ssd")];
    let taint = prop_oneof![
        4 => Just(""),
        1 => Just("t:no-schedule"),
        1 => Just("t:no-execute"),
        1 => Just("t:prefer-no-schedule"),
    ];
    (0..6u32, 0..3u32, zone, disk, taint).prop_map(|(mem, gpu, zone, disk, taint)| {
        (format!("mem={} gpu={gpu} {zone} {disk}", mem * 100), taint.to_owned())
    })
}

fn any_service() -> impl Strategy<Value = String> {
    let asks = prop_oneof![
        3 => Just(""),
        1 => Just("where=disk==ssd"),
        1 => Just("where=zone!=x"),
        1 => Just("spread=zone"),
        1 => Just("prefer=disk==ssd spread=zone"),
        1 => Just("tolerate=t"),
        1 => Just("max=1"),
        1 => Just("max=2 pack"),
        1 => Just("apart=web"),
        1 => Just("near=web"),
        1 => Just("near=db:soft apart=api:soft"),
        1 => Just("host=80"),
    ];
    let reserve = prop_oneof![Just(""), Just("mem=100"), Just("mem=250"), Just("gpu=1")];
    let order = prop_oneof![Just("start-first"), Just("stop-first")];
    (0..5u32, asks.clone(), asks, reserve, order, 0..2u8).prop_map(
        |(n, one, two, reserve, order, image)| {
            // A service is near or apart from another once, and has a port once.
            let two = if one.is_empty() || two.contains("host") { "" } else { two };
            let clash = ["web", "db"].iter().any(|w| one.contains(w) && two.contains(w));
            let two = if clash { "" } else { two };
            format!("n={n} par=0 image={image} {reserve} {order} {one} {two}")
        },
    )
}

/// The same, with priorities and with what is said of moves.
fn any_mixed_service() -> impl Strategy<Value = String> {
    let more = prop_oneof![
        2 => Just(""),
        1 => Just("prio=9"),
        1 => Just("prio=1 least=1"),
        1 => Just("prio=2 preempt"),
        1 => Just("prio=9 preempt least=1"),
        1 => Just("least=2"),
        1 => Just("rebalance=never"),
    ];
    (any_service(), more).prop_map(|(words, more)| format!("{words} {more}"))
}

fn any_event() -> impl Strategy<Value = String> {
    let node = (0..NODES.len()).prop_map(|at| NODES[at]);
    let service = (0..SERVICES.len()).prop_map(|at| SERVICES[at]);
    prop_oneof![
        2 => (service.clone(), 0..6u32).prop_map(|(name, n)| format!("update {name} n={n}")),
        1 => (service, 0..3u8).prop_map(|(name, n)| format!("update {name} image={n}")),
        1 => node.clone().prop_map(|node| format!("drain {node}")),
        1 => node.clone().prop_map(|node| format!("active {node}")),
        1 => node.clone().prop_map(|node| format!("has {node} disk:ssd")),
        1 => node.prop_map(|node| format!("has {node} disk:hdd")),
        3 => (any::<u16>(), 0..4u8).prop_map(|(which, what)| format!("agent {which} {what}")),
        2 => Just("start".to_owned()),
        2 => Just("obey".to_owned()),
        1 => Just("wait 10s".to_owned()),
    ]
}

fn happen(world: &mut World, event: &str) {
    let words: Vec<&str> = event.split_whitespace().collect();
    let ["agent", which, what] = words[..] else { return drop(world.run(event)) };
    let mine = |task: &&Task| is_live(task) && task.node.is_some();
    let tasks: Vec<Task> = world.state.tasks().filter(mine).cloned().collect();
    let which: usize = which.parse().unwrap();
    let Some(task) = tasks.get(which % tasks.len().max(1)) else { return };
    let state = match (task.desired, what) {
        (Desired::Running, "0") => TaskState::Failed,
        (Desired::Running, "1") => TaskState::Complete,
        (Desired::Running, _) => TaskState::Running,
        (Desired::Shutdown, _) => TaskState::Complete,
        (Desired::Remove, _) => TaskState::Removed,
    };
    world.report(task, state);
}

fn build(nodes: &[(String, String)], services: &[String], order: &[usize]) -> World {
    let mut world = World::new();
    for at in order.iter().filter(|at| **at < nodes.len()) {
        let (has, taint) = &nodes[*at];
        world.run(&format!("nodes {}", NODES[*at]));
        world.run(&format!("has {} {has}", NODES[*at]));
        world.run(&format!("taint {} {taint}", NODES[*at]));
    }
    for at in order.iter().filter(|at| **at < services.len()) {
        // Nobody is near or apart from itself: the model refuses it.
        let own = SERVICES[*at];
        let itself =
            |word: &&str| *word != format!("apart={own}") && *word != format!("near={own}");
        let words: Vec<&str> = services[*at].split_whitespace().filter(itself).collect();
        // A port is published once in a cluster.
        let words = words.join(" ").replace("host=80", &format!("host=8{at}"));
        world.run(&format!("service {own} {words}"));
    }
    world
}

/// Whether what a plan placed is where it may be, in the state after it.
fn check_placed(before: &State, after: &State, task: &Task) -> Result<(), TestCaseError> {
    let service: &Service = before.service(task.service).unwrap();
    let (node, placement) = (after.node(task.node.unwrap()).unwrap(), &service.spec.placement);
    let template = after.template(task.service, task.template).unwrap();
    for (resource, _) in template.reserve.iter() {
        let reserved = after.reserved_on(node.id).unwrap().get(resource);
        prop_assert!(reserved <= node.capacity(resource), "{resource} of {}", node.id);
    }
    for constraint in &placement.constraints {
        prop_assert!(constraint.holds(node), "{constraint}");
    }
    let hard = node.taints.iter().filter(|t| t.effect != TaintEffect::PreferNoSchedule);
    for taint in hard {
        prop_assert!(placement.tolerations.iter().any(|t| t.covers(taint)), "{taint}");
    }
    let there = |name: &str| {
        let other = after.service_by_name(name);
        let tasks = other.into_iter().flat_map(|other| after.tasks_of(other.id));
        tasks.filter(|task| is_live(task) && task.node == Some(node.id)).collect::<Vec<_>>()
    };
    if let Some(most) = placement.max_per_node {
        let own = there(service.spec.name.as_str());
        let wanted = own.iter().filter(|task| task.desired == Desired::Running);
        let slots: BTreeSet<u32> = wanted.map(|task| task.slot).collect();
        prop_assert!(slots.len() <= most as usize, "{slots:?}");
    }
    for affinity in placement.affinities.iter().filter(|affinity| !affinity.soft) {
        let others = there(affinity.service.as_str());
        prop_assert_eq!(others.is_empty(), affinity.apart, "{} {}", affinity, node.id);
    }
    let apart = |other: &&Service| {
        let affinities = &other.spec.placement.affinities;
        affinities.iter().any(|a| a.apart && !a.soft && a.service == service.spec.name)
    };
    for other in before.services().filter(apart) {
        prop_assert!(there(other.spec.name.as_str()).is_empty(), "{}", other.spec.name);
    }
    Ok(())
}

/// Plans to the end, and looks at each placement.
fn settle(world: &mut World) -> Result<(), TestCaseError> {
    loop {
        let before = world.state.clone();
        let plan = world.plan();
        for mutation in &plan.transaction.mutations {
            let id = match mutation {
                Mutation::CreateTask(task) => task.id,
                Mutation::PlaceTask { id, .. } => *id,
                _ => continue,
            };
            let Some(task) = world.state.task(id).filter(|task| task.node.is_some()) else {
                continue;
            };
            check_placed(&before, &world.state, task)?;
        }
        if !plan.more {
            return Ok(());
        }
    }
}

/// Nodes by service and slot.
fn places(state: &State) -> BTreeMap<(String, u32), Vec<String>> {
    let mut places: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for task in state.tasks() {
        let name = state.service(task.service).unwrap().spec.name.to_string();
        let node = task.node.map_or("-".to_owned(), |node| node.to_string());
        places.entry((name, task.slot)).or_default().push(node);
    }
    places.values_mut().for_each(|nodes| nodes.sort());
    places
}

proptest! {
    #![proptest_config(crate::cases(192))]

    /// No node over its capacity, every constraint kept, whatever happens; what waits is told a
    /// reason, and its explanation finds no place either.
    #[test]
    fn what_is_asked_is_kept(
        nodes in prop::collection::vec(any_node(), 1..5),
        services in prop::collection::vec(any_mixed_service(), 1..4),
        events in prop::collection::vec(any_event(), 0..25),
    ) {
        let mut world = build(&nodes, &services, &[0, 1, 2, 3]);
        settle(&mut world)?;
        let known = |event: &String| {
            let word = event.split_whitespace().nth(1).unwrap_or_default();
            let node = NODES.iter().position(|name| *name == word);
            let service = SERVICES.iter().position(|name| *name == word);
            node.is_none_or(|at| at < nodes.len()) && service.is_none_or(|at| at < services.len())
        };
        for event in events.iter().filter(|event| known(event)) {
            happen(&mut world, event);
            settle(&mut world)?;
            for task in world.state.tasks().filter(|task| is_pending(task)) {
                let told = explain_task(&world.state, task.id).unwrap();
                prop_assert!(!told.reason.is_empty(), "after {event}: {} fits\n{told:?}", task.slot);
                prop_assert!(task.status.error.is_some());
                prop_assert!(!told.fixes.is_empty());
            }
        }
        prop_assert_eq!(world.state.check(), Vec::<String>::new());
    }

    /// In whatever order nodes and services came to be, tasks are in the same places.
    #[test]
    fn order_of_arrival_decides_nothing(
        nodes in prop::collection::vec(any_node(), 1..5),
        services in prop::collection::vec(any_service(), 1..4),
        order in Just(vec![0usize, 1, 2, 3, 4]).prop_shuffle(),
    ) {
        let mut one = build(&nodes, &services, &[0, 1, 2, 3, 4]);
        let mut other = build(&nodes, &services, &order);
        settle(&mut one)?;
        settle(&mut other)?;
        prop_assert_eq!(places(&one.state), places(&other.state));
    }

    /// Once all is placed that can be, time alone moves nothing.
    #[test]
    fn nothing_moves_without_a_cause(
        nodes in prop::collection::vec(any_node(), 1..5),
        services in prop::collection::vec(any_mixed_service(), 1..4),
        waits in prop::collection::vec(1..700_000u64, 0..6),
    ) {
        let mut world = build(&nodes, &services, &[0, 1, 2, 3]);
        for _ in 0..3 {
            settle(&mut world)?;
            world.run("start");
            world.obey();
        }
        settle(&mut world)?;
        let before = world.state.revision();
        for ms in waits {
            world.run(&format!("wait {ms}ms"));
            let plan = world.plan();
            prop_assert_eq!(&plan.transaction.mutations, &vec![]);
        }
        prop_assert_eq!(world.state.revision(), before);
    }
}
