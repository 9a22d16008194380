//! Tasks that are ended for others of higher priority.

use std::collections::BTreeSet;

use proptest::prelude::*;
use warren_model::TaskId;
use warren_model::placement::Preempt;
use warren_model::service::{Mode, Service};
use warren_model::task::{Desired, Task};
use warren_planner::Plan;
use warren_state::State;
use warren_state::change::Mutation;

use crate::world::{World, check, is_live};

#[test]
fn the_lowest_and_fewest_make_room() {
    check(
        "nodes a
        has a mem=1000
        service low n=1 mem=300 prio=-5
        service mid n=1 mem=100
        plan => +mid.1@a +low.1@a
        wait 1s
        update low n=2
        plan => +low.2@a
        wait 1s
        update low n=3
        plan => +low.3@a
        start
        service top n=1 mem=400 prio=9 preempt
        plan => !low.2 for top.1 !low.3 for top.1 +top.1 more
        why top.1 => waits until tasks of lower priority have ended on a
        plan => +low.2 +low.3 more
        plan =>
        obey
        plan => place top.1@a
        start
        plan =>",
    );
}

#[test]
fn nobody_is_ended_without_need_or_for_equals() {
    check(
        "nodes a b
        has a mem=1000
        has b mem=300
        service low n=1 mem=900 where=node.hostname==a
        plan => +low.1@a
        service top n=2 mem=300 prio=1 preempt
        plan => +top.1@b !low.1 for top.2 +top.2 more
        obey
        plan => place top.2@a +low.1",
    );
    check(
        "nodes a
        has a mem=1000
        service one n=1 mem=900 prio=5
        plan => +one.1@a
        service two n=1 mem=900 prio=5 preempt
        plan => +two.1 more
        why two.1 => no node fits: 1 short of memory (needs 900MiB)",
    );
    check(
        "nodes a
        has a mem=1000
        service one n=1 mem=900
        plan => +one.1@a
        service two n=1 mem=900 prio=5
        plan => +two.1
        update two preempt
        plan => !one.1 for two.1 why two.1: waits until tasks of lower priority have ended on a more",
    );
}

#[test]
fn what_ends_anyway_is_waited_for() {
    check(
        "nodes a
        has a mem=1000
        service low n=2 mem=500
        plan => +low.1@a +low.2@a
        start
        update low n=1
        plan => x low.2
        service top n=1 mem=500 prio=1 preempt
        plan => +top.1 more
        why top.1 => waits until tasks of lower priority have ended on a
        service late n=1 mem=500
        plan => +late.1 more
        obey
        plan => place top.1@a drop low.2",
    );
}

#[test]
fn room_is_held_for_whom_it_was_made() {
    // The first of two victims has ended: nobody else gets its room.
    check(
        "nodes a
        has a mem=1000
        service low n=2 mem=500
        plan => +low.1@a +low.2@a
        start
        service top n=1 mem=1000 prio=1 preempt
        plan => !low.2 for top.1 !low.1 for top.1 +top.1 more
        plan => +low.1 +low.2 more
        ends low.2
        plan =>
        ends low.1
        plan => place top.1@a
        plan =>",
    );
}

#[test]
fn no_more_than_a_service_can_spare() {
    check(
        "nodes a
        has a mem=1000
        service low n=4 mem=250 least=3
        plan => +low.1@a +low.2@a +low.3@a +low.4@a
        start
        service top n=2 mem=250 prio=1 preempt
        plan => !low.2 for top.1 +top.1 +top.2 more
        plan => +low.2 more
        why top.2 => no node fits: 1 short of memory (needs 250MiB)
        obey
        plan => place top.1@a more
        start
        explain top.2 => no node fits: 1 short of memory (needs 250MiB); no task of low is to \
         spare (--min-available) | a: needs 250MiB memory, 0B free of 1000MiB | near a
        update low least=2
        explain top.2 => waits until tasks of lower priority have ended on a | a: needs 250MiB \
         memory, 0B free of 1000MiB | near a",
    );
}

#[test]
fn whose_room_it_is_is_told() {
    check(
        "nodes a
        has a mem=1000
        service low n=2 mem=500
        plan => +low.1@a +low.2@a
        start
        service top n=1 mem=1000 prio=1 preempt
        plan => !low.2 for top.1 !low.1 for top.1 +top.1 more
        plan => +low.1 +low.2 more
        ends low.2
        explain low.2 => no node fits: 1 short of memory (needs 500MiB); room on a is held for \
         top.1 | a: needs 500MiB memory, 0B free of 1000MiB; room is held for top.1 | near a
        explain top.1 => waits until tasks of lower priority have ended on a | a: needs 1000MiB \
         memory, 500MiB free of 1000MiB | near a",
    );
}

#[test]
fn a_slot_that_works_or_fails_ends_nobody() {
    // An update that needs room beside the old one waits.
    check(
        "nodes a
        has a mem=1000
        service low n=1 mem=500
        service top n=1 mem=500 prio=1 preempt start-first
        plan => +top.1@a +low.1@a
        start
        update top image=2
        plan => +top.1/2
        plan =>",
    );
}

const NODES: [&str; 3] = ["a", "b", "c"];
const SERVICES: [&str; 4] = ["web", "db", "ml", "api"];

fn any_service() -> impl Strategy<Value = String> {
    let mode =
        prop_oneof![4 => (0..4u32).prop_map(|n| format!("n={n}")), 1 => Just("global".into())];
    let order = prop_oneof![Just("start-first"), Just("stop-first")];
    let preempt = prop_oneof![2 => Just("preempt"), 1 => Just("")];
    let least = prop_oneof![2 => Just(""), 1 => Just("least=1"), 1 => Just("least=50%")];
    let one = (mode, 1..5u32, -2..3i32, order, preempt, least);
    one.prop_map(|(mode, mem, prio, order, preempt, least)| {
        format!("{mode} mem={} prio={prio} par=0 {order} {preempt} {least}", mem * 100)
    })
}

fn any_event() -> impl Strategy<Value = String> {
    let service = (0..SERVICES.len()).prop_map(|at| SERVICES[at]);
    let node = (0..NODES.len()).prop_map(|at| NODES[at]);
    prop_oneof![
        2 => (service.clone(), 0..5u32).prop_map(|(name, n)| format!("update {name} n={n}")),
        2 => (service.clone(), -2..3i32).prop_map(|(name, n)| format!("update {name} prio={n}")),
        1 => (service, 0..3u8).prop_map(|(name, n)| format!("update {name} image={n}")),
        1 => node.clone().prop_map(|node| format!("drain {node}")),
        2 => node.prop_map(|node| format!("active {node}")),
        3 => Just("start".to_owned()),
        3 => Just("obey".to_owned()),
        1 => Just("wait 700s".to_owned()),
    ]
}

/// Slots of a service of which something works.
fn slots_up(state: &State, service: &Service, without: &BTreeSet<TaskId>) -> usize {
    let up = |task: &&Task| {
        task.desired == Desired::Running && task.status.is_ready() && !without.contains(&task.id)
    };
    let slot = |task: &Task| (task.slot, task.node.filter(|_| service.spec.mode == Mode::Global));
    state.tasks_of(service.id).filter(up).map(slot).collect::<BTreeSet<_>>().len()
}

/// Ending tasks leaves as much of each service as it asks for, if it had that.
fn check_available(before: &State, plan: &Plan) -> Result<(), TestCaseError> {
    let ended: BTreeSet<TaskId> = plan
        .transaction
        .mutations
        .iter()
        .filter_map(|mutation| match mutation {
            Mutation::PreemptTask { id, .. } => Some(*id),
            _ => None,
        })
        .collect();
    for service in before.services().filter(|service| !service.removing) {
        let Some(least) = service.spec.moving.min_available else { continue };
        let Mode::Replicated { replicas } = service.spec.mode else { continue };
        let had = slots_up(before, service, &BTreeSet::new());
        let has = slots_up(before, service, &ended);
        let least = least.of(replicas) as usize;
        prop_assert!(has == had || has >= least, "{}: {has} of {least}", service.spec.name);
    }
    Ok(())
}

/// What is ended is of lower priority, for one that asks for it and of which nothing works.
fn check_victims(before: &State, plan: &Plan) -> Result<usize, TestCaseError> {
    let mut victims = 0;
    for mutation in &plan.transaction.mutations {
        let Mutation::PreemptTask { id, by, slot } = mutation else { continue };
        victims += 1;
        let (victim, by) = (before.task(*id).unwrap(), before.service(*by).unwrap());
        let other = before.service(victim.service).unwrap();
        prop_assert_eq!(by.spec.placement.preempt, Preempt::Lower);
        prop_assert!(other.spec.placement.priority < by.spec.placement.priority);
        prop_assert!(is_live(victim));
        // What this plan stops itself makes room for its successor.
        let stopped = |task: &Task| {
            plan.transaction.mutations.iter().any(
                |mutation| matches!(mutation, Mutation::SetDesired { id, .. } if *id == task.id),
            )
        };
        let works = |task: &Task| {
            is_live(task) && task.node.is_some() && task.slot == *slot && !stopped(task)
        };
        let global = by.spec.mode == Mode::Global;
        let wanted = |task: &&Task| task.desired == Desired::Running;
        prop_assert!(global || !before.tasks_of(by.id).filter(wanted).any(works));
        let placed = plan.transaction.mutations.iter().any(|mutation| match mutation {
            Mutation::CreateTask(task) => {
                task.service == by.id && task.slot == *slot && task.node.is_some()
            }
            _ => false,
        });
        prop_assert!(global || !placed, "{} was placed all the same", by.spec.name);
    }
    Ok(victims)
}

fn settle(world: &mut World) -> Result<usize, TestCaseError> {
    let mut victims = 0;
    for _ in 0..50 {
        let before = world.state.clone();
        let plan = world.plan();
        victims += check_victims(&before, &plan)?;
        check_available(&before, &plan)?;
        for node in world.state.nodes() {
            for (resource, reserved) in world.state.reserved_on(node.id).unwrap().iter() {
                prop_assert!(reserved <= node.capacity(resource), "{resource} of {}", node.id);
            }
        }
        if !plan.more {
            return Ok(victims);
        }
    }
    Err(TestCaseError::fail("plans go on without end"))
}

proptest! {
    #![proptest_config(crate::cases(if cfg!(debug_assertions) { 64 } else { 512 }))]

    #[test]
    fn preemption_keeps_its_laws(
        mem in prop::collection::vec(2..9u32, 3),
        services in prop::collection::vec(any_service(), 1..5),
        events in prop::collection::vec(any_event(), 0..14),
    ) {
        let mut world = World::new();
        for (node, mem) in NODES.iter().zip(mem) {
            world.run(&format!("nodes {node}"));
            world.run(&format!("has {node} mem={}", mem * 100));
        }
        for (name, words) in SERVICES.iter().zip(&services) {
            world.run(&format!("service {name} {words}"));
        }
        settle(&mut world)?;
        for event in &events {
            let known = SERVICES.iter().take(services.len()).any(|name| event.contains(name));
            if known || !event.starts_with("update") {
                world.run(event);
            }
            settle(&mut world)?;
        }
        // Left alone it comes to rest, and then nobody is ended any more.
        let mut last = 0;
        for _ in 0..40 {
            world.run("wait 700s");
            world.run("start");
            world.obey();
            last = settle(&mut world)?;
        }
        prop_assert_eq!(last, 0, "to and fro without end");
    }
}
