//! Nodes that fall silent, drain or leave, and what becomes of what runs there.

use warren_model::Time;
use warren_model::cluster::Subnet;
use warren_model::task::Desired;
use warren_planner::{MUTATIONS_MAX, SUSPICION_MS, Seen};
use warren_state::change::Mutation;

use crate::world::{World, check, node_id};

#[test]
fn a_blip_moves_nothing() {
    check(
        "nodes a b
        service web n=2
        plan => +web.1@a +web.2@b
        start
        lose b
        plan => wake 3001ms
        wait 3s
        plan => wake 1ms
        up b
        plan =>
        progress web => converged",
    );
}

#[test]
fn replace_after_waits_for_its_time() {
    check(
        "nodes a b
        service web n=2 replace-after=10s
        plan => +web.1@a +web.2@b
        start
        lose b
        wait 4s
        plan => b is down wake 6001ms
        progress web => 1 lost
        wait 6s
        plan => wake 1ms
        wait 1ms
        plan => +web.2@a -web.2
        start
        up b
        plan => b is ready
        obey
        plan => wake 5s
        progress web => converged",
    );
    // Less than the window is the window.
    check(
        "nodes a b
        service web n=2 replace-after=0s
        plan => +web.1@a +web.2@b
        start
        down b
        plan => b is down +web.2@a -web.2",
    );
    // Back in time: nothing is restarted, nothing moves.
    check(
        "nodes a b
        service web n=2 replace-after=10s
        plan => +web.1@a +web.2@b
        start
        down b
        plan => b is down wake 7s
        up b
        plan => b is ready
        wait 60s
        plan =>
        progress web => converged",
    );
}

#[test]
fn stop_after_waits_until_the_node_has_stopped_it() {
    // 10 s, a grace of 2 s, a thousandth for the clocks, a window for the last answer.
    check(
        "nodes a b
        service db n=2 stop-after=10s grace=2s stop-first
        plan => +db.1@a +db.2@b
        start
        down b
        plan => b is down wake 12010ms
        wait 12009ms
        plan => wake 1ms
        wait 1ms
        plan => +db.2@a -db.2",
    );
    // Also what was asked to stop before, if nobody knows that it did.
    check(
        "nodes a b
        service db n=2 stop-after=10s grace=2s stop-first par=0
        plan => +db.1@a +db.2@b
        start
        update db image=b
        plan => -db.1 -db.2
        down b
        plan => b is down wake 12010ms
        wait 13s
        plan => +db.2/2@a
        obey
        plan => +db.1/2@a",
    );
}

#[test]
fn keep_is_never_replaced() {
    check(
        "nodes a b
        service db n=2 keep
        plan => +db.1@a +db.2@b
        start
        down b
        plan => b is down
        wait 500s
        plan =>
        update db image=b
        plan => +db.1/2@a
        start
        plan => -db.1
        progress db => 1 to be updated
        wait 500s
        plan =>
        up b
        plan => b is ready +db.2/2@b
        start
        plan => -db.2
        plan => done db
        progress db => converged",
    );
    // A drained node that is out of reach, too.
    check(
        "nodes a b
        service db n=2 keep
        plan => +db.1@a +db.2@b
        start
        down b
        drain b
        plan => b is down
        update db n=1
        plan => x db.2",
    );
    // One that is lost with the new template does not hold up the others.
    check(
        "nodes a b
        service db n=3 keep
        plan => +db.1@a +db.2@b +db.3@a
        start
        update db image=b
        plan => +db.1/2@b
        start
        down b
        plan => b is down +db.3/2@a
        start
        plan => -db.3
        up b
        plan => b is ready -db.1 +db.2/2@b",
    );
}

#[test]
fn a_removed_nodes_tasks_are_replaced() {
    check(
        "nodes a b
        service web n=2 keep
        service mon global
        plan => +mon.a@a +mon.b@b +web.1@a +web.2@b
        start
        down b
        plan => b is down
        rm b
        plan => +web.2@a
        start
        progress mon => converged
        progress web => converged",
    );
}

#[test]
fn only_workers_get_tasks() {
    check(
        "nodes a b
        service web n=2
        plan => +web.1@a +web.2@b
        start
        role b manager
        plan => +web.2@a
        start
        plan => -web.2
        role a manager
        plan => +web.1
        progress web => 1 pending, 1 to be moved, 1 to be stopped: \
         no node is ready for tasks: 2 not a worker",
    );
}

#[test]
fn what_has_no_other_place_stays_on_a_draining_node() {
    check(
        "nodes a
        service web
        plan => +web.1@a
        start
        drain a
        plan => +web.1
        progress web => 1 pending, 1 to be stopped: no node is ready for tasks: 1 draining
        counts web => 1/1
        nodes b
        plan => place web.1@b
        start
        plan => -web.1",
    );
    check(
        "nodes a
        service web stop-first
        plan => +web.1@a
        start
        drain a
        plan =>
        progress web => 1 to be moved: no node is ready for tasks: 1 draining
        counts web => 1/1
        active a
        plan =>
        progress web => converged
        drain a
        nodes b
        plan => -web.1
        obey
        plan => +web.1@b",
    );
    check(
        "nodes a b
        service web n=2 host=80
        plan => +web.1@a +web.2@b
        start
        drain a
        plan =>
        progress web => 1 to be moved: host port 80 is in use on every ready node (1)",
    );
}

#[test]
fn a_new_leader_waits_for_itself() {
    let mut world = World::new();
    for command in ["nodes a b", "service web n=2", "plan", "start", "down b"] {
        world.run(command);
    }
    // Down is written, but the plan that would have replaced web.2 is lost with its leader.
    world.write(Mutation::SetNodeStatus {
        id: node_id("b"),
        status: warren_model::node::NodeStatus::Down,
    });
    world.beats.since = world.now;
    assert_eq!(world.run("plan"), "wake 3001ms");
    world.run("wait 3001ms");
    assert_eq!(world.run("plan"), "+web.2@a -web.2");
}

#[test]
fn a_leader_that_was_held_up_begins_anew() {
    let mut world = World::new();
    for command in ["nodes a b", "service web n=2", "plan", "start"] {
        world.run(command);
    }
    for node in ["a", "b"] {
        world.beats.seen.insert(node_id(node), Seen { at: world.now, rtt_ms: 0 });
    }
    world.run("wait 30s");
    world.beats.since = world.now;
    assert_eq!(world.run("plan"), "wake 3001ms");
}

#[test]
fn windows_follow_the_round_trip() {
    let mut world = World::new();
    world.run("nodes a b");
    world.run("lose b");
    world.beats.seen.insert(node_id("b"), Seen { at: world.now, rtt_ms: 500 });
    assert_eq!(world.run("plan"), "wake 5001ms");
    world.run("wait 5001ms");
    assert_eq!(world.run("plan"), "b is down");
}

#[test]
fn a_new_leader_goes_on_with_the_wait() {
    let mut world = World::new();
    for command in
        ["nodes a b", "service db n=2 stop-after=3600s grace=2s stop-first", "plan", "start"]
    {
        world.run(command);
    }
    world.run("down b");
    assert_eq!(world.run("plan"), "b is down wake 3605600ms");
    // 50 minutes later, and once more: whoever leads knows since when the node is down.
    for left in ["wake 605600ms", "wake 3001ms"] {
        world.run("wait 3000s");
        world.beats.since = world.now;
        assert_eq!(world.run("plan"), left);
    }
    world.run("wait 3001ms");
    assert_eq!(world.run("plan"), "+db.2@a -db.2");
}

/// A clock that is behind the state's time is no silence.
#[test]
fn silence_is_measured_by_one_clock() {
    let mut world = World::new();
    for command in ["nodes a b", "service web n=2", "plan", "start"] {
        world.run(command);
    }
    world.now = Time(5_000);
    world.beats.since = Time(1_000);
    for node in ["a", "b"] {
        world.beats.seen.insert(node_id(node), Seen { at: Time(4_900), rtt_ms: 0 });
    }
    assert_eq!(world.run("plan"), "wake 2901ms");
}

#[test]
fn many_nodes_lost_at_once_are_replaced_in_order_and_in_slices() {
    let mut world = World::new();
    for n in 0..40u8 {
        let block = Subnet { address: [10, 128, n, 0].into(), prefix: 24 };
        world.add_node(&format!("n{n:02}"), vec![block]);
    }
    world.run("service web n=2400");
    while world.plan().more {}
    world.run("start");
    for n in 0..20 {
        world.run(&format!("lose n{n:02}"));
    }
    world.now = world.now.plus_ms(SUSPICION_MS + 1);
    let (mut slots, mut plans) = (vec![], 0);
    loop {
        let plan = world.plan();
        assert!(plan.transaction.mutations.len() <= MUTATIONS_MAX);
        plans += 1;
        for mutation in &plan.transaction.mutations {
            match mutation {
                Mutation::CreateTask(task) => slots.push(task.slot),
                Mutation::SetDesired { desired, .. } => assert_eq!(*desired, Desired::Shutdown),
                Mutation::SetNodeStatus { .. } | Mutation::GrantBlock { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        if !plan.more {
            break;
        }
    }
    assert_eq!((slots.len(), plans), (1200, 3));
    assert!(slots.is_sorted());
}
