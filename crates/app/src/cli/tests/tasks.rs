//! Single tasks: what is sent, what is waited for, how it ends.

use expect_test::expect;
use warren_proto::v1;

use super::fake::{FakeNode, World};
use super::samples::task;
use super::say;

fn world(state: v1::TaskState, attempt: u32) -> World {
    let mut task = task(1, state, v1::Desired::Running);
    task.status.as_mut().unwrap().attempt = attempt;
    World { tasks: vec![task], ..World::default() }
}

#[tokio::test]
async fn stop_says_what_follows() {
    let node = FakeNode::start(world(v1::TaskState::Complete, 1));
    let said = say(&node, "task stop web.1").await;
    expect![[r#"
        exit 0
        --- out
        web.1
        --- err
        web.1: service web starts another
    "#]]
    .assert_eq(&said.all());
    expect![[r#"
        [
            "ControlTaskRequest { task: \"0g2081040g208201\", request_id: [], what: Some(Stop(Stop)) }",
        ]
    "#]].assert_debug_eq(&node.world(|world| world.asked.clone()));
}

#[tokio::test]
async fn restart_waits_for_the_next_attempt() {
    let node = FakeNode::start(world(v1::TaskState::Running, 2));
    let said = say(&node, "task restart web.1").await;
    expect![[r#"
        exit 0
        --- out
        web.1
    "#]]
    .assert_eq(&said.all());
    let node = FakeNode::start(world(v1::TaskState::Failed, 1));
    let said = say(&node, "task restart web.1").await;
    expect![[r#"
        exit 1
        --- out
        web.1
        --- err
        error: web.1 is failed
        hint: warren service ps shows what follows
    "#]]
    .assert_eq(&said.all());
    let node = FakeNode::start(world(v1::TaskState::Running, 1));
    let said = say(&node, "task restart --detach web.1").await;
    expect![[r#"
        exit 0
        --- out
        web.1
    "#]]
    .assert_eq(&said.all());
}

#[tokio::test]
async fn signal_and_inspect() {
    let node = FakeNode::start(world(v1::TaskState::Running, 1));
    let said = say(&node, "task signal web.1 HUP").await;
    expect![[r#"
        exit 0
        --- out
        web.1
    "#]]
    .assert_eq(&said.all());
    let said = say(&node, "task inspect web.1 --format '{{.Name}} {{.Template}} {{.State}}'").await;
    expect![[r#"
        exit 0
        --- out
        web.1 1 running
    "#]]
    .assert_eq(&said.all());
}

#[tokio::test]
async fn filters_of_tasks() {
    let node = FakeNode::start(world(v1::TaskState::Running, 1));
    for (line, expected) in [
        ("ps -q --filter desired-state=running --filter slot=1", 0),
        ("task ls --filter node=nobody -q", 0),
        ("ps --filter state=runing", 2),
        ("ps --filter slot=one", 2),
        ("ps --filter colour=red", 2),
    ] {
        let said = say(&node, line).await;
        assert_eq!(said.exit, expected, "{line}: {}", said.all());
    }
    let said = say(&node, "ps --filter state=runing").await;
    expect![[r#"
        exit 2
        --- err
        error: --filter: state: "runing" is not one of pending, assigned, preparing, starting, running, draining, stopping, complete, failed, rejected, removed, paused
        hint: did you mean running?
    "#]].assert_eq(&said.all());
}
