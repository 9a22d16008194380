//! Laws that hold for any cluster and any order of events.
//!
//! `World::plan` checks with every plan that an index changes nothing, that the state accepts it,
//! and that a pass right after it is empty.

use std::collections::BTreeMap;

use proptest::prelude::*;
use warren_model::cluster::Subnet;
use warren_model::moving::Cause;
use warren_model::service::OnDisconnect;
use warren_model::task::{Desired, Task, TaskState};
use warren_planner::{Convergence, SUSPICION_MS, progress};
use warren_state::State;
use warren_state::change::Mutation;

use crate::world::{World, is_live, node_id, service_id};

const NODES: [&str; 3] = ["a", "b", "c"];

fn any_service_words() -> impl Strategy<Value = String> {
    let mode = prop_oneof![
        4 => (0..4u32).prop_map(|n| format!("n={n}")),
        1 => Just("global".to_owned()),
    ];
    let order = prop_oneof![Just("start-first"), Just("stop-first")];
    let rest = prop_oneof![
        3 => Just(""),
        1 => Just("host=80"),
        1 => Just("delay=7s"),
        1 => Just("cond=on-failure"),
        1 => Just("cond=none"),
        1 => Just("keep"),
        1 => Just("stop-after=4s"),
        1 => Just("replace-after=9s"),
    ];
    (mode, 0..3u32, order, 0..3u8, rest).prop_map(|(mode, par, order, image, rest)| {
        format!("{mode} par={par} {order} image={image} {rest}")
    })
}

fn any_command() -> impl Strategy<Value = String> {
    let node = (0..NODES.len()).prop_map(|at| NODES[at]);
    let on = |verb: &'static str| node.clone().prop_map(move |node| format!("{verb} {node}"));
    prop_oneof![
        3 => any_service_words().prop_map(|words| format!("update web {words}")),
        1 => (0..3u8).prop_map(|image| format!("update web image={image}")),
        1 => (0..3u32).prop_map(|n| format!("update api n={n}")),
        2 => on("lose"),
        2 => on("up"),
        1 => on("drain"),
        1 => on("pause"),
        2 => on("active"),
        4 => (0..9_000u64).prop_map(|ms| format!("wait {ms}ms")),
        1 => Just("wait 500s".to_owned()),
        // Of an agent: which of its tasks, and what becomes of it.
        12 => (any::<u16>(), 0..6u8).prop_map(|(which, what)| format!("agent {which} {what}")),
        3 => Just("start".to_owned()),
        3 => Just("obey".to_owned()),
    ]
}

/// Lets an agent do something plausible with one of its tasks.
fn act(world: &mut World, which: u16, what: u8) {
    let mine = |task: &&Task| is_live(task) && world.hears(task);
    let tasks: Vec<Task> = world.state.tasks().filter(mine).cloned().collect();
    let Some(task) = tasks.get(usize::from(which) % tasks.len().max(1)) else { return };
    let state = match (task.desired, what) {
        (Desired::Running, 0) => TaskState::Failed,
        (Desired::Running, 1) => TaskState::Rejected,
        (Desired::Running, 2) => TaskState::Complete,
        (Desired::Running, 3) => TaskState::Starting,
        (Desired::Running, _) => TaskState::Running,
        (Desired::Shutdown, _) => TaskState::Complete,
        (Desired::Remove, _) => TaskState::Removed,
    };
    world.report(task, state);
}

fn run(world: &mut World, command: &str) {
    let words: Vec<&str> = command.split_whitespace().collect();
    match words[..] {
        ["agent", which, what] => act(world, which.parse().unwrap(), what.parse().unwrap()),
        _ => drop(world.run(command)),
    }
}

fn cluster(prefix: u8, words: &str) -> World {
    let mut world = World::new();
    world.cluster(|cluster| {
        cluster.pool = Subnet { address: [10, 128, 0, 0].into(), prefix };
        cluster.block_prefix = 29;
    });
    NODES.iter().for_each(|node| world.add_node(node, vec![]));
    world.run(&format!("service web {words}"));
    world.run("service api n=1");
    world.plan();
    world
}

/// Everything works again, for long enough.
fn heal(world: &mut World) {
    for node in NODES {
        world.run(&format!("up {node}"));
        world.run(&format!("active {node}"));
    }
    for _ in 0..40 {
        world.run("wait 500s");
        while world.plan().more {}
        world.run("start");
        world.obey();
    }
    while world.plan().more {}
}

/// Slots of web by number: how many tasks run, and whether the slot is being renewed.
fn slots(world: &World) -> BTreeMap<u32, (u32, bool)> {
    let service = world.state.service(service_id("web")).unwrap();
    let mut slots: BTreeMap<u32, Vec<&Task>> = BTreeMap::new();
    for task in world.state.tasks_of(service.id) {
        slots.entry(task.slot).or_default().push(task);
    }
    let judge = |tasks: Vec<&Task>| {
        let wanted = tasks.iter().filter(|task| task.desired == Desired::Running);
        let runs = |task: &&&Task| task.status.state == TaskState::Running;
        let running = wanted.clone().filter(runs).count();
        let mut new = wanted.filter(|task| task.template == service.template);
        let renewing = match new.next() {
            Some(new) => new.status.state != TaskState::Running,
            None => tasks.iter().all(|task| task.desired != Desired::Running),
        };
        (u32::try_from(running).unwrap(), renewing)
    };
    slots.into_iter().map(|(slot, tasks)| (slot, judge(tasks))).collect()
}

/// Whether a lost task may have a successor by now.
fn check_wait(world: &World, before: &State, task: &Task) -> Result<(), TestCaseError> {
    let policy = before.service(task.service).unwrap().spec.on_disconnect;
    let seen = world.beats.seen[&task.node.unwrap()];
    let silent = world.now.since_ms(seen.at);
    let listened = world.now.since_ms(world.beats.since);
    prop_assert!(listened > SUSPICION_MS, "{} after listening for {listened} ms", task.id);
    let needed = match policy {
        OnDisconnect::Keep => u64::MAX,
        OnDisconnect::ReplaceAfter { ms } => ms.max(SUSPICION_MS),
        OnDisconnect::StopAfter { ms } => ms + 1_000,
    };
    prop_assert!(silent > needed, "{:?}: {} after {} ms", policy, task.id, silent);
    Ok(())
}

proptest! {
    #![proptest_config(crate::cases(256))]

    /// Whatever happens, plans are accepted and stable, the state stays sound, and once everything
    /// works again all services converge, or say why they do not.
    #[test]
    fn any_cluster_heals(
        words in any_service_words(),
        prefix in prop_oneof![Just(16u8), Just(27)],
        commands in prop::collection::vec(any_command(), 0..40),
    ) {
        let mut world = cluster(prefix, &words);
        for command in &commands {
            run(&mut world, command);
            while world.plan().more {}
        }
        prop_assert_eq!(world.state.check(), Vec::<String>::new());
        heal(&mut world);
        prop_assert_eq!(world.state.check(), Vec::<String>::new());
        for name in ["web", "api"] {
            let service = service_id(name);
            match progress(&world.state, service) {
                Convergence::Converged | Convergence::Failed { .. } => {}
                Convergence::Waiting { message } => prop_assert!(false, "{}: {}", name, message),
            }
            // One that runs, one that is halted before it, and its history of two. What was global
            // may have left one on each node, which a halted rollout does not touch.
            let global = words.contains("global") || commands.iter().any(|c| c.contains("global"));
            let most = if global { 3 + NODES.len() } else { 4 };
            let mut slots: BTreeMap<_, u32> = BTreeMap::new();
            for task in world.state.tasks_of(service) {
                *slots.entry((task.slot, task.node.filter(|_| words.contains("global")))).or_default() += 1;
            }
            let last = world.state.service(service).unwrap().spec.mode;
            let numbered = matches!(last, warren_model::service::Mode::Replicated { .. });
            if numbered {
                prop_assert!(slots.values().all(|tasks| *tasks as usize <= most), "{slots:?}");
            }
        }
        for name in ["web", "api"] {
            world.write(Mutation::RemoveService { id: service_id(name) });
        }
        heal(&mut world);
        prop_assert_eq!(world.state.tasks().count() + world.state.services().len(), 0);
    }

    /// While nothing fails, an update takes no more slots at a time than it may: start-first never
    /// leaves one without a running task, stop-first no more than `parallelism`.
    #[test]
    fn updates_stay_within_parallelism(
        n in 1..6u32,
        par in 1..4u32,
        stop_first: bool,
        commands in prop::collection::vec((0..5u8, any::<u16>()), 0..60),
    ) {
        let order = if stop_first { "stop-first" } else { "start-first" };
        let mut world = cluster(16, &format!("n={n} par={par} {order}"));
        world.run("start");
        for (command, which) in commands {
            match command {
                0 => drop(world.run(&format!("update web image={}", which % 3))),
                1 => drop(world.run("wait 1s")),
                2 => world.obey(),
                // Starting or ending, one by one.
                _ => act(&mut world, which, 5),
            }
            while world.plan().more {}
            let slots = slots(&world);
            let renewing = slots.values().filter(|(_, renewing)| *renewing).count();
            prop_assert!(renewing <= par as usize, "{slots:?}");
            let dark = slots.values().filter(|(running, _)| *running == 0).count();
            let allowed = if stop_first { par as usize } else { 0 };
            prop_assert!(dark <= allowed, "{slots:?}");
            prop_assert_eq!(slots.len(), n as usize);
        }
        heal(&mut world);
        prop_assert_eq!(progress(&world.state, service_id("web")), Convergence::Converged);
    }

    /// While nothing is asked for and nodes are silent for shorter than a window, nothing is done
    /// to tasks, however often.
    #[test]
    fn nothing_moves_without_a_cause(
        words in any_service_words(),
        blips in prop::collection::vec((0..NODES.len(), 0..3_001u64, any::<bool>()), 0..40),
    ) {
        let mut world = cluster(16, &words);
        heal(&mut world);
        let before = world.state.revision();
        for (node, ms, leader) in blips {
            world.lose(node_id(NODES[node]));
            world.run(&format!("wait {ms}ms"));
            let plan = world.plan();
            prop_assert_eq!(&plan.transaction.mutations, &vec![], "{:?}", plan);
            world.hear(node_id(NODES[node]));
            if leader {
                world.beats.since = world.now;
            }
        }
        prop_assert_eq!(world.state.revision(), before);
    }

    /// Whatever nodes do, what is out of reach has no successor before its service allows one, and
    /// never with `keep`; once all nodes are back there is one task a slot, and with `keep` it is
    /// the same as ever.
    #[test]
    fn successors_wait(
        policy in prop_oneof![
            Just("keep".to_owned()),
            (0..9u64).prop_map(|s| format!("replace-after={s}s")),
            (1..9u64).prop_map(|s| format!("stop-after={s}s grace=1s")),
        ],
        order in prop_oneof![Just("start-first"), Just("stop-first")],
        commands in prop::collection::vec((0..6u8, 0..NODES.len(), 0..9_000u64), 0..60),
    ) {
        let mut world = cluster(16, &format!("n=4 {policy} {order}"));
        heal(&mut world);
        let tasks = |world: &World| -> Vec<_> {
            let wanted = world.state.tasks_of(service_id("web"));
            wanted.filter(|task| task.desired == Desired::Running).map(|task| task.id).collect()
        };
        let first = tasks(&world);
        for (command, node, ms) in commands {
            match command {
                0 | 1 => world.lose(node_id(NODES[node])),
                2 => world.hear(node_id(NODES[node])),
                3 => drop(world.run("start")),
                4 => world.obey(),
                // Another leader.
                _ if ms % 8 == 0 => world.beats.since = world.now,
                _ => {}
            }
            world.run(&format!("wait {ms}ms"));
            loop {
                let before = world.state.clone();
                let plan = world.plan();
                for mutation in &plan.transaction.mutations {
                    let Mutation::CreateTask(new) = mutation else { continue };
                    // Beside the one that runs, not instead of it.
                    if new.origin.is_some_and(|origin| origin.cause == Cause::Balance) {
                        continue;
                    }
                    let lost = before.tasks_of(new.service).filter(|task| {
                        task.slot == new.slot && is_live(task) && !world.hears(task)
                            && task.desired == Desired::Running
                    });
                    for task in lost {
                        check_wait(&world, &before, task)?;
                    }
                }
                if !plan.more {
                    break;
                }
            }
        }
        heal(&mut world);
        prop_assert_eq!(progress(&world.state, service_id("web")), Convergence::Converged);
        prop_assert_eq!(tasks(&world).len(), 4);
        if policy == "keep" {
            prop_assert_eq!(tasks(&world), first);
        }
    }

    /// The same cluster and the same ids give the same plans.
    #[test]
    fn plans_are_deterministic(
        words in any_service_words(),
        commands in prop::collection::vec(any_command(), 0..20),
    ) {
        let (mut one, mut other) = (cluster(16, &words), cluster(16, &words));
        for command in &commands {
            run(&mut one, command);
            run(&mut other, command);
            prop_assert_eq!(one.plan(), other.plan());
        }
        prop_assert_eq!(one.state.checksum(), other.state.checksum());
    }
}
