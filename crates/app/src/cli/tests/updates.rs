//! Revisions, rollbacks, and flags of updates.

use expect_test::{Expect, expect};
use warren_model::service::{FailureAction, UpdateOrder};

use super::fake::{FakeNode, World};
use super::{samples, say};
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
    check("service history web", expect![[r#"
        exit 0
        --- out
        REVISION      WHEN                     BY              WHAT      IMAGE        CHANGES
        2 (current)   less than a second ago   operator:anna   updated   nginx:1.27   replicas: 1 -> 3
        1             less than a second ago   socket:0        created   nginx:1.27
    "#]]).await;
    check(
        "service history web --format json",
        expect![[r#"
        exit 0
        --- out
        [
          {
            "action": "update",
            "by": "operator:anna",
            "changes": [
              {
                "field": "replicas",
                "from": 1,
                "to": 3
              }
            ],
            "current": true,
            "good": true,
            "image": "nginx:1.27",
            "revision": 2,
            "rollback_to": null,
            "time": "2027-01-15T08:00:00.000Z"
          },
          {
            "action": "create",
            "by": "socket:0",
            "changes": [],
            "current": false,
            "good": true,
            "image": "nginx:1.27",
            "revision": 1,
            "rollback_to": null,
            "time": "2027-01-15T07:58:00.000Z"
          }
        ]
    "#]],
    )
    .await;
    check(
        "service history web --diff 1..2",
        expect![[r#"
        exit 0
        --- out
        replicas: 1 -> 3
    "#]],
    )
    .await;
    check(
        "service history web --diff 2..1 --format '{{.}}'",
        expect![[r#"
        exit 0
        --- out
        {"field":"replicas","from":3,"to":1}
    "#]],
    )
    .await;
    check(
        "service history web --rev 1 --format '{{.replicas}}'",
        expect![[r#"
        exit 0
        --- out
        1
    "#]],
    )
    .await;
    check(
        "service history web --rev 7",
        expect![[r#"
        exit 3
        --- err
        error: --rev: service web has no revision 7
        hint: it has 1, 2
    "#]],
    )
    .await;
    check(
        "service history web --diff 1..9",
        expect![[r#"
        exit 3
        --- err
        error: --diff: service web has no revision 9
        hint: it has 1, 2
    "#]],
    )
    .await;
    check(
        "service history web --diff 1-2",
        expect![[r#"
        exit 2
        --- err
        error: --diff: "1-2" is not of the form A..B, e.g. 2..3
    "#]],
    )
    .await;
    check(
        "service history web --rev 0",
        expect![[r#"
        exit 2
        --- err
        error: --rev: "0" is not the number of a revision, which is 1 or more
    "#]],
    )
    .await;
    check(
        "service history web --rev 1 --diff 1..2",
        expect![[r#"
        exit 2
        --- err
        error: --rev and --diff exclude each other
    "#]],
    )
    .await;
    check(
        "service history",
        expect![[r#"
        exit 2
        --- err
        error: SERVICE is missing
        hint: usage: warren service history <SERVICE>
    "#]],
    )
    .await;
    check(
        "service history nope",
        expect![[r#"
        exit 3
        --- err
        error: no service nope
    "#]],
    )
    .await;
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
    expect![[r#"
        exit 0
        --- out
        web
        --- err
        web: 3/3 running
    "#]]
    .assert_eq(&said.all());
    assert_eq!(node.world(|world| world.waited[0].number), 3);
    let said = say(&node, "service resume web").await;
    expect![[r#"
        exit 0
        --- out
        web
        --- err
        web: 3/3 running
    "#]]
    .assert_eq(&said.all());
    let said = say(&node, "service pause web api").await;
    expect![[r#"
        exit 0
        --- out
        web
        api
    "#]]
    .assert_eq(&said.all());
    let said = say(&node, "service rollback web -d").await;
    expect![[r#"
        exit 0
        --- out
        web
    "#]]
    .assert_eq(&said.all());
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
    expect![[r#"
        exit 1
        --- out
        web
        --- err
        web: 3/3 running, 1 starting
        web: 3/3 running, rolling
        web: 3/3 running
        error: service web will not converge: rolled back to revision 2: web.1 is failed on alpha: exit code 3
        hint: warren explain service web; warren service history web
    "#]].assert_eq(&said.all());
    // The one after the one that was read.
    assert_eq!(node.world(|world| world.waited[0].number), 3);
    // One that changes nothing says so, and waits for what is there.
    let node = FakeNode::start(World { progress: progress(&[("", true, "")]), ..world() });
    let said = say(&node, "service update web --image nginx:1.27").await;
    expect![[r#"
        exit 0
        --- out
        web
        --- err
        nothing to change: service web stays at revision 2
        web: 3/3 running
    "#]]
    .assert_eq(&said.all());
    assert_eq!(node.world(|world| world.waited[0].number), 2);
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
    let spec = node.world(|world| world.updated[0].spec.clone()).unwrap();
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
        (
            "--update-max-failure-ratio 1.5",
            expect![[r#"
            exit 2
            --- err
            error: --update-max-failure-ratio: "1.5" is not a ratio from 0 to 1, with at most three decimals
        "#]],
        ),
        (
            "--update-failure-action undo",
            expect![[r#"
            exit 2
            --- err
            error: --update-failure-action: "undo" is not one of pause, continue, rollback
        "#]],
        ),
        (
            "--rollback-failure-action rollback",
            expect![[r#"
            exit 2
            --- err
            error: --rollback-failure-action: "rollback" is not one of pause, continue
        "#]],
        ),
        (
            "--update-max-surge 0",
            expect![[r#"
            exit 2
            --- err
            error: --update-max-surge: "0" lets no task start before one stops; use order stop-first
        "#]],
        ),
        (
            "--update-max-unavailable 1",
            expect![[r#"
            exit 2
            --- err
            error: --update-max-unavailable: "1" never comes about with start-first: old tasks stay until new ones are up
        "#]],
        ),
        (
            "--update-order stop-first --update-max-unavailable 0",
            expect![[r#"
            exit 2
            --- err
            error: --update-max-unavailable: "0" lets no task stop before one starts; use order start-first
        "#]],
        ),
        (
            "--update-order stop-first --update-max-surge 1",
            expect![[r#"
            exit 2
            --- err
            error: --update-max-surge: "1" never comes about with stop-first: old tasks end first
        "#]],
        ),
        (
            "--update-deadline 500ms",
            expect![[r#"
            exit 2
            --- err
            error: --update-deadline: "500ms" is over before a slot can be done: it must be more than delay and monitor, 1s
        "#]],
        ),
        (
            "--update-delay 30d",
            expect![[r#"
            exit 2
            --- err
            error: --update-delay: "30d" is more than 7d
        "#]],
        ),
        (
            "--update-max-surge many",
            expect![[r#"
            exit 2
            --- err
            error: --update-max-surge: "many" is not a number from 0 to 4294967295, nor none
        "#]],
        ),
        (
            "--update-monitor soon",
            expect![[r#"
            exit 2
            --- err
            error: --update-monitor: "soon" is not a duration; write numbers with ms, s, m, h or d, e.g. 1m30s
        "#]],
        ),
    ] {
        check(&format!("service update web {flags}"), expected).await;
    }
}
