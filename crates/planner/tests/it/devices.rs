//! Devices that nodes have, and who is given which.

use warren_model::resources::Resource;
use warren_planner::explain_task;
use warren_state::change::Mutation;

use crate::world::{World, check, node_id};

/// Who has which devices: `web.1=0,1`.
#[track_caller]
fn check_given(world: &World, expected: &str) {
    let mut found: Vec<String> = Vec::new();
    for task in world.state.tasks().filter(|task| !task.devices.is_empty()) {
        let service = world.state.service(task.service).unwrap();
        let names: Vec<&str> =
            task.devices.iter().filter_map(|name| name.strip_prefix("v/d=")).collect();
        found.push(format!("{}.{}={}", service.spec.name, task.slot, names.join(",")));
    }
    found.sort();
    assert_eq!(found.join(" "), expected);
    assert_eq!(world.state.check(), Vec::<String>::new());
}

#[test]
fn each_to_one_task() {
    check(
        "nodes a b
        has b dev=xy
        service ml n=3 v/d=1
        plan => +ml.1@b +ml.2@b +ml.3
        explain ml.3 => no node fits: 2 short of v/d (needs 1) | \
         a: needs 1 v/d, 0 free of 0 | b: needs 1 v/d, 0 free of 2 | near a
        fix ml => add a node with 1 v/d, or write its specifications into /etc/cdi
        start
        fail ml.1
        plan => place ml.3@b wake 1s",
    );
}

#[test]
fn which_ones() {
    let mut world = World::new();
    for line in ["nodes a", "has a dev=xyz", "service ml n=1 v/d=2"] {
        world.run(line);
    }
    assert_eq!(world.run("plan"), "+ml.1@a");
    check_given(&world, "ml.1=x,y");
    world.run("start");
    world.run("service one n=2 v/d=1");
    assert_eq!(world.run("plan"), "+one.1@a +one.2");
    check_given(&world, "ml.1=x,y one.1=z");
    // What is given to nobody may go and come.
    world.run("has a dev=wxyz");
    assert_eq!(world.run("plan"), "place one.2@a");
    check_given(&world, "ml.1=x,y one.1=z one.2=w");
}

#[test]
fn one_that_vanishes() {
    let mut world = World::new();
    for line in ["nodes a", "has a dev=xy", "service ml n=1 v/d=1", "plan", "start"] {
        world.run(line);
    }
    world.run("has a dev=y");
    assert_eq!(world.run("plan"), "");
    let task = world.state.tasks().next().unwrap().id;
    let told = explain_task(&world.state, task).unwrap();
    assert_eq!(told.remarks, ["its device v/d=x is gone from a"]);
    // The other one is free all the same.
    world.run("update ml n=3");
    assert_eq!(world.run("plan"), "+ml.2@a +ml.3");
    check_given(&world, "ml.1=x ml.2=y");
    assert_eq!(world.state.node(node_id("a")).unwrap().capacity(Resource::Generic("v/d")), 1);
}

#[test]
fn who_is_ended_leaves_them() {
    check(
        "nodes a
        has a dev=x
        service low n=1 v/d=1
        plan => +low.1@a
        start
        service top n=1 v/d=1 prio=1 preempt
        plan => !low.1 for top.1 +top.1 more
        plan => +low.1 more
        plan =>
        obey
        plan => place top.1@a",
    );
    // One that is gone helps nobody.
    check(
        "nodes a
        has a dev=x
        service low n=1 v/d=1
        plan => +low.1@a
        start
        has a dev=
        service top n=1 v/d=1 prio=1 preempt
        plan => +top.1 more",
    );
}

#[test]
fn nobody_is_given_what_another_has() {
    let mut world = World::new();
    for line in ["nodes a", "has a dev=x", "service ml n=2 v/d=1", "plan"] {
        world.run(line);
    }
    let waiting = world.state.tasks().find(|task| task.node.is_none()).unwrap().id;
    let devices = ["v/d=x".to_owned()].into_iter().collect();
    let place = Mutation::PlaceTask { id: waiting, node: node_id("a"), address: None, devices };
    let refused = format!("{:?}", world.try_write(place));
    assert!(refused.contains("device v/d=x is in use by task"), "{refused}");
}
