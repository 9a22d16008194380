//! Revisions, rollbacks, and flags of updates.

use expect_test::{Expect, expect};
use warren_model::service::{FailureAction, UpdateOrder};

use super::fake::{FakeNode, World};
use super::{say, samples};
use warren_proto::v1;

fn world() -> World {
    World { services: vec![samples::web()], ..World::default() }
}

async fn check(line: &str, expected: Expect) {
    let node = FakeNode::start(world());
    expected.assert_eq(&say(&node, line).await.all());
}

#[tokio::test]
async fn history() {
    check("service history web", expect![[""]]).await;
    check("service history web --format json", expect![[""]]).await;
    check("service history web --diff 1..2", expect![[""]]).await;
    check("service history web --diff 2..1 --format '{{.}}'", expect![[""]]).await;
    check("service history web --rev 1 --format '{{.replicas}}'", expect![[""]]).await;
    check("service history web --rev 7", expect![[""]]).await;
    check("service history web --diff 1..9", expect![[""]]).await;
    check("service history web --diff 1-2", expect![[""]]).await;
    check("service history web --rev 0", expect![[""]]).await;
    check("service history web --rev 1 --diff 1..2", expect![[""]]).await;
    check("service history", expect![[""]]).await;
    check("service history nope", expect![[""]]).await;
}

fn progress(lines: &[(&str, bool, &str)]) -> Vec<v1::Progress> {
    let line = |(message, converged, failure): &(&str, bool, &str)| v1::Progress {
        running: 3,
        desired: 3,
        message: (*message).into(),
        converged: *converged,
        failure: (*failure).into(),
        ..v1::Progress::default()
    };
    lines.iter().map(line).collect()
}

#[tokio::test]
async fn rollbacks_are_waited_for() {
    let node = FakeNode::start(World { progress: progress(&[("", true, "")]), ..world() });
    let said = say(&node, "service rollback web --to 1").await;
    expect![[""]].assert_eq(&said.all());
    assert_eq!(node.world().waited[0].number, 3);
    let said = say(&node, "service resume web").await;
    expect![[""]].assert_eq(&said.all());
    let said = say(&node, "service pause web api").await;
    expect![[""]].assert_eq(&said.all());
    let said = say(&node, "service rollback web -d").await;
    expect![[""]].assert_eq(&said.all());
}

#[tokio::test]
async fn an_update_that_was_undone_is_a_failure() {
    let lines = [
        ("1 starting", false, ""),
        ("rolling", false, ""),
        ("", false, "rolled back to revision 2: web.1 is failed on alpha: exit code 3"),
    ];
    let node = FakeNode::start(World { progress: progress(&lines), ..world() });
    let said = say(&node, "service update web --image nginx:9").await;
    expect![[""]].assert_eq(&said.all());
    // The one after the one that was read.
    assert_eq!(node.world().waited[0].number, 3);
    // One that changes nothing says so, and waits for what is there.
    let node = FakeNode::start(World { progress: progress(&[("", true, "")]), ..world() });
    let said = say(&node, "service update web --image nginx:1.27").await;
    expect![[""]].assert_eq(&said.all());
    assert_eq!(node.world().waited[0].number, 2);
}

#[tokio::test]
async fn flags_of_updates() {
    let node = FakeNode::start(World { progress: progress(&[("", true, "")]), ..world() });
    let line = "service update web --update-parallelism 2 --update-delay 3s \
                --update-monitor 4s --update-max-failure-ratio 0.25 \
                --update-failure-action rollback --update-max-surge 1 --update-deadline 1m \
                --rollback-parallelism 0 --rollback-order stop-first --rollback-monitor 0s \
                --rollback-delay 1s --rollback-max-failure-ratio 1 \
                --rollback-failure-action continue";
    let said = say(&node, line).await;
    assert_eq!(said.exit, 0, "{}", said.all());
    let spec = node.world().updated[0].spec.clone().unwrap();
    let spec = warren_model::ServiceSpec::try_from(spec).unwrap();
    let update = spec.update;
    assert_eq!((update.parallelism, update.delay_ms, update.monitor_ms), (2, 3000, 4000));
    assert_eq!((update.max_failure_millis, update.max_surge), (250, Some(1)));
    assert_eq!(update.failure_action, FailureAction::Rollback);
    assert_eq!((update.deadline_ms, update.order), (Some(60_000), UpdateOrder::StartFirst));
    let back = spec.rollback.over(&update);
    assert_eq!((back.parallelism, back.order), (0, UpdateOrder::StopFirst));
    assert_eq!((back.monitor_ms, back.delay_ms, back.max_failure_millis), (0, 1000, 1000));
    assert_eq!((back.failure_action, back.max_surge), (FailureAction::Continue, None));
}

#[tokio::test]
async fn bad_flags_of_updates() {
    for (flags, expected) in [
        ("--update-max-failure-ratio 1.5", expect![[""]]),
        ("--update-failure-action undo", expect![[""]]),
        ("--rollback-failure-action rollback", expect![[""]]),
        ("--update-max-surge 0", expect![[""]]),
        ("--update-max-unavailable 1", expect![[""]]),
        ("--update-order stop-first --update-max-unavailable 0", expect![[""]]),
        ("--update-order stop-first --update-max-surge 1", expect![[""]]),
        ("--update-deadline 500ms", expect![[""]]),
        ("--update-delay 30d", expect![[""]]),
        ("--update-max-surge many", expect![[""]]),
        ("--update-monitor soon", expect![[""]]),
    ] {
        check(&format!("service update web {flags}"), expected).await;
    }
}
