//! Decisions, stage by stage.

use warren_model::Time;
use warren_model::cluster::Subnet;
use warren_state::change::Key;

use crate::world::{World, check, node_id, service_id};

#[test]
fn a_new_service_is_one_plan() {
    check(
        "nodes a b
        service web n=3
        counts web => 0/3
        progress web => 3 to be started
        plan => +web.1@a +web.2@b +web.3@a
        progress web => 3 assigned
        start web.2
        counts web => 1/3
        start
        plan =>
        progress web => converged
        counts web => 3/3",
    );
    // One per node and only as many as there are.
    check("nodes a b c\n service web n=2\n plan => +web.1@a +web.2@b");
    check("nodes a\n service web n=0\n plan =>\n progress web => converged");
    check(
        "nodes a
        service job n=2 cond=on-failure
        plan => +job.1@a +job.2@a
        start
        complete job.1
        counts job => 1/2, 1 completed",
    );
}

#[test]
fn tasks_spread_by_service_then_by_load() {
    check(
        "nodes a b c
        service api n=1
        plan => +api.1@a
        service web n=4
        plan => +web.1@b +web.2@c +web.3@a +web.4@b",
    );
}

#[test]
fn scaling() {
    check(
        "nodes a
        service web n=3
        plan => +web.1@a +web.2@a +web.3@a
        start
        update web n=1
        progress web => 2 to be stopped
        plan => x web.3 x web.2
        obey
        plan => drop web.3 drop web.2
        progress web => converged
        update web n=2
        plan => +web.2@a",
    );
    // Scaled up again before the old one is gone: they are told apart.
    check(
        "nodes a
        service web n=2
        plan => +web.1@a +web.2@a
        update web n=1
        plan => x web.2
        update web n=2
        plan => +web.2@a
        obey
        plan => drop web.2",
    );
}

#[test]
fn removing_a_service_removes_its_tasks_first() {
    check(
        "nodes a
        service web n=2
        plan => +web.1@a +web.2@a
        start
        fail web.2
        remove web
        plan => x web.1 x web.2
        counts web => 0/0
        progress web => removing, 2 tasks left
        obey
        plan => drop web.1 drop web.2 drop-service web
        progress web => failed: service exjp400000000000 does not exist",
    );
    check("service web\n plan => +web.1\n remove web\n plan => drop web.1 drop-service web");
    check("nodes a\n service web n=0\n plan =>\n remove web\n plan => drop-service web");
}

#[test]
fn what_cannot_be_placed_says_why_once() {
    check(
        "service web
        plan => +web.1
        progress web => 1 pending: the cluster has no node
        plan =>
        nodes a
        plan => place web.1@a",
    );
    check(
        "nodes a b
        pause a
        drain b
        service web
        plan => +web.1
        progress web => 1 pending: no node is ready for tasks: 1 paused, 1 draining
        active b
        pause b
        plan => why web.1: no node is ready for tasks: 2 paused
        active b
        plan => place web.1@b",
    );
    check(
        "nodes a b
        service web n=3 host=80
        plan => +web.1@a +web.2@b +web.3
        progress web => 2 assigned, 1 pending: \
         host port 80 is in use on every ready node (2)
        start
        fail web.1
        plan => place web.3@a wake 1s
        wait 1s
        plan => -web.1 +web.1",
    );
}

#[test]
fn nodes_are_down_after_a_window_and_not_before() {
    check(
        "nodes a b
        plan =>
        lose b
        plan => wake 3001ms
        wait 3s
        plan => wake 1ms
        wait 1ms
        plan => b is down
        wait 60s
        plan =>
        up b
        plan => b is ready",
    );
    // A new leader has heard nothing yet.
    let mut world = World::new();
    world.run("nodes a b");
    world.beats.seen.clear();
    world.beats.since = world.now;
    assert_eq!(world.run("plan"), "wake 3001ms");
    world.run("wait 2s");
    world.run("up a");
    assert_eq!(world.run("plan"), "wake 1001ms");
    world.run("wait 2s");
    assert_eq!(world.run("plan"), "b is down");
}

#[test]
fn nodes_of_a_large_cluster_may_miss_beats() {
    let mut world = World::new();
    world.beats.beat_ms = 10_000;
    world.run("nodes a b");
    world.run("lose b");
    assert_eq!(world.run("plan"), "wake 30001ms");
    world.run("wait 30s");
    assert_eq!(world.run("plan"), "wake 1ms");
    world.run("wait 1ms");
    assert_eq!(world.run("plan"), "b is down");
}

#[test]
fn lost_tasks_move_if_another_node_can_take_them() {
    check(
        "nodes a b
        service web n=2
        plan => +web.1@a +web.2@b
        start
        down b
        plan => b is down +web.2@a -web.2
        counts web => 1/2
        progress web => 1 assigned
        start
        up b
        plan => b is ready
        obey
        plan => wake 5s
        progress web => converged",
    );
    check(
        "nodes a
        service web
        plan => +web.1@a
        start
        down a
        plan => a is down
        counts web => 0/1
        progress web => 1 lost
        up a
        plan => a is ready
        progress web => converged",
    );
    // It had ended before its node was lost: that is known, and a failure like any other.
    check(
        "nodes a b
        service web
        plan => +web.1@a
        start
        fail web.1
        down a
        plan => a is down -web.1 +web.1@b",
    );
}

#[test]
fn failures_back_off_and_avoid_the_node() {
    check(
        "nodes a b
        service web
        plan => +web.1@a
        start
        fail web.1
        progress web => failed: web.1 is failed on a: exit code 3
        plan => wake 1s
        wait 1s
        plan => -web.1 +web.1@b
        progress web => 1 assigned
        reject web.1
        progress web => failed: web.1 is rejected on b: no such image
        plan => wake 5s
        wait 5s
        plan => -web.1 +web.1@a
        fail web.1
        plan => wake 30s
        wait 30s
        plan => -web.1 +web.1@b x web.1
        fail web.1
        plan => wake 30s",
    );
    // A task that ran for its window is no link of the chain.
    check(
        "nodes a
        service web
        plan => +web.1@a
        fail web.1
        wait 1s
        plan => -web.1 +web.1@a
        start
        wait 10s
        fail web.1
        plan => wake 1s
        wait 1s
        plan => -web.1 +web.1@a
        fail web.1
        plan => wake 1s",
    );
    // A new template is a new story.
    check(
        "nodes a
        service web
        plan => +web.1@a
        fail web.1
        wait 1s
        plan => -web.1 +web.1@a
        fail web.1
        plan => wake 5s
        update web image=b
        plan => -web.1 +web.1/2@a
        fail web.1
        plan => pause web: web.1 is failed on a: exit code 3
        plan => wake 1s",
    );
}

#[test]
fn history_is_bounded() {
    let mut world = World::new();
    world.cluster(|cluster| cluster.history_limit = 8);
    for command in ["nodes a", "service web", "plan"] {
        world.run(command);
    }
    let mut wakes = vec![];
    for _ in 0..12 {
        world.run("fail web.1");
        wakes.push(world.run("plan"));
        world.run("wait 480s");
        world.run("plan");
        world.obey();
        world.run("plan");
    }
    assert_eq!(
        wakes[..6],
        ["wake 1s", "wake 5s", "wake 30s", "wake 120s", "wake 480s", "wake 480s"]
    );
    assert_eq!(world.state.tasks().count(), 9);
    world.cluster(|cluster| cluster.history_limit = 0);
    world.run("start");
    world.run("plan");
    world.obey();
    world.run("plan");
    assert_eq!(world.state.tasks().count(), 1);
}

#[test]
fn what_ends_as_it_should_is_not_replaced() {
    check(
        "nodes a
        service job n=2 cond=none
        plan => +job.1@a +job.2@a
        start
        complete job.1
        plan =>
        start
        progress job => converged
        fail job.2
        plan =>
        progress job => failed: job.2 is failed on a: exit code 3",
    );
    check(
        "nodes a
        service job cond=on-failure
        plan => +job.1@a
        start
        complete job.1
        plan =>
        progress job => converged",
    );
    check(
        "nodes a
        service job cond=on-failure
        plan => +job.1@a
        fail job.1
        plan => wake 1s",
    );
    check(
        "nodes a
        service web
        plan => +web.1@a
        complete web.1
        plan =>
        progress web => failed: web.1 is complete on a",
    );
}

#[test]
fn global_services_follow_the_nodes() {
    check(
        "nodes a b
        service mon global
        plan => +mon.a@a +mon.b@b
        start
        progress mon => converged
        nodes c
        counts mon => 2/3
        plan => +mon.c@c
        start
        pause b
        plan =>
        counts mon => 3/2
        drain b
        plan => x mon.b
        obey
        plan => drop mon.b
        progress mon => converged
        down c
        plan => c is down
        progress mon => converged
        up c
        plan => c is ready
        active b
        plan => +mon.b@b",
    );
    check(
        "nodes a b
        service mon global
        plan => +mon.a@a +mon.b@b
        start
        update mon image=b
        plan => +mon.a/2@a
        start
        plan => -mon.a +mon.b/2@b
        fail mon.b
        plan => pause mon: mon.1 is failed on b: exit code 3
        plan =>
        progress mon => failed: the update is paused: mon.1 is failed on b: exit code 3",
    );
    check(
        "nodes a
        service mon global
        plan => +mon.a@a
        fail mon.a
        plan => wake 1s
        wait 1s
        plan => -mon.a +mon.a@a",
    );
}

#[test]
fn a_change_of_mode_keeps_what_fits() {
    check(
        "nodes a b
        service web n=3
        plan => +web.1@a +web.2@b +web.3@a
        start
        update web global
        plan => -web.a
        progress web => converged
        obey
        update web n=1
        plan => +web.1@a x web.3 x web.2",
    );
}

#[test]
fn every_node_has_a_block() {
    let mut world = World::new();
    world.add_node("a", vec![]);
    world.run("nodes b");
    world.run("role a manager");
    world.add_node("c", vec![]);
    let granted = world.run("plan");
    assert_eq!(granted.matches("grant").count(), 2, "{granted}");
    assert!(granted.contains("grant a") && granted.contains("grant c"), "{granted}");
    assert_eq!(world.run("plan"), "");
    // The first container of a node needs no other one.
    world.run("service web global");
    assert!(!world.run("plan").contains("grant"));
}

#[test]
fn addresses_and_blocks() {
    let addresses = |world: &World| {
        let mut found: Vec<_> = world.state.tasks().map(|task| (task.slot, task.address)).collect();
        found.sort();
        let found = found.into_iter().map(|(_, a)| a.map_or("-".into(), |a| a.to_string()));
        found.collect::<Vec<String>>().join(" ")
    };
    let mut world = World::new();
    world.cluster(|cluster| {
        cluster.pool = Subnet { address: [10, 128, 0, 0].into(), prefix: 28 };
        cluster.block_prefix = 30;
    });
    world.add_node("a", vec![]);
    world.run("service web n=5");
    assert_eq!(
        world.run("plan"),
        "grant a 10.128.0.0/30 +web.1@a grant a 10.128.0.4/30 +web.2@a \
         grant a 10.128.0.8/30 +web.3@a grant a 10.128.0.12/30 +web.4@a +web.5"
    );
    assert_eq!(addresses(&world), "10.128.0.2 10.128.0.6 10.128.0.10 10.128.0.14 -");
    let why = "no free address: the pool 10.128.0.0/28 is used up";
    assert_eq!(world.run("progress web"), format!("4 assigned, 1 pending: {why}"));
    world.run("start");
    world.run("update web n=1");
    world.run("plan");
    world.run("obey");
    world.run("plan");
    world.run("update web n=2");
    assert_eq!(world.run("plan"), "+web.2@a");
    assert_eq!(addresses(&world), "10.128.0.2 10.128.0.6");
    // An ended task's address is used again only when no other is left.
    world.run("fail web.2");
    world.run("wait 1s");
    world.run("plan");
    assert_eq!(addresses(&world), "10.128.0.2 10.128.0.6 10.128.0.10");
}

#[test]
fn plans_are_cut_and_go_on() {
    let mut world = World::new();
    world.add_node("a", vec![]);
    world.run("service web n=2500");
    let mut sizes = vec![];
    loop {
        let plan = world.plan();
        sizes.push(plan.transaction.mutations.len());
        if !plan.more {
            break;
        }
    }
    // Ten blocks of 253 addresses besides, and the service's own.
    assert_eq!(sizes.iter().sum::<usize>(), 2511);
    assert_eq!(sizes.len(), 3);
    assert_eq!(world.state.tasks().filter(|task| task.address.is_some()).count(), 2500);
    world.run("remove web");
    while world.plan().more {}
    world.obey();
    while world.plan().more {}
    assert!(world.state.service(service_id("web")).is_none());
    assert_eq!(world.state.tasks().count(), 0);
}

#[test]
fn plans_name_what_they_rely_on() {
    let mut world = World::new();
    world.run("nodes a b");
    world.run("service web n=1");
    world.run("service api n=0 dnsrr");
    let plan = world.look();
    let keys: Vec<Key> = plan.transaction.expects.iter().map(|expect| expect.key).collect();
    assert_eq!(keys, [Key::Node(node_id("a")), Key::Service(service_id("web"))]);
    world.plan();
    assert!(world.look().transaction.expects.is_empty());
}

#[test]
fn a_clock_behind_the_state_is_not_believed() {
    let mut world = World::new();
    world.run("nodes a");
    world.run("service web");
    world.run("plan");
    world.run("fail web.1");
    world.now = Time(5);
    assert_eq!(world.look().wake_at, Some(Time(101_000)));
}

#[test]
fn nothing_before_the_cluster_has_settings() {
    let mut world = World::new();
    world.state = warren_state::State::default();
    assert_eq!(world.look(), warren_planner::Plan::default());
}
