//! Commands about moving tasks, and about what would be.

use expect_test::{Expect, expect};

use super::fake::{FakeNode, World};
use super::samples::web;
use super::say;

/// What is said, then what the node was asked for.
async fn check(line: &str, expected: Expect) {
    let node = FakeNode::start(World { services: vec![web()], ..World::default() });
    let mut said = say(&node, line).await.all();
    let (asked, created) =
        node.world(|world| (std::mem::take(&mut world.asked), std::mem::take(&mut world.created)));
    for asked in asked {
        said.push_str(&format!("asked {asked}\n"));
    }
    for spec in created.into_iter().filter_map(|wire| wire.spec) {
        said.push_str(&format!("moving {:?}\n", spec.moving));
    }
    expected.assert_eq(&said);
}

#[tokio::test]
async fn services_say_how_they_are_moved() {
    check(
        "service create db -d --image nginx --min-available 80% --rebalance never",
        expect![[r#"
            exit 0
            --- out
            0c1g60r30c1g60r3
            moving Some(Moving { rebalance: Never, min_available: Some(Percent(80)) })
        "#]],
    )
    .await;
    check(
        "service create db -d --image nginx --min-available 120%",
        expect![[r#"
        exit 2
        --- err
        error: --min-available: "120%" is more than 100%
    "#]],
    )
    .await;
    check(
        "service create db -d --image nginx --rebalance sometimes",
        expect![[r#"
        exit 2
        --- err
        error: --rebalance: "sometimes" is not known; write auto or never
    "#]],
    )
    .await;
    check("cluster update --rebalance never", expect![[r#"
        exit 0
        asked UpdateClusterRequest { history_limit: None, certificate_lifetime_ms: None, backup: None, backup_off: false, request_id: [], strategy: Unspecified, rebalance: Never }
    "#]]).await;
}

#[tokio::test]
async fn nodes_are_drained_and_activated() {
    check("node drain alpha --deadline 10m", expect![[r#"
        exit 0
        --- out
        081040g2081040g2
        asked UpdateNodeRequest { node: "alpha", manager: None, worker: None, availability: Drain, labels_add: {}, labels_remove: [], request_id: [], forgotten: Unspecified, generic: [], system_reserved: None, taints_add: [], taints_remove: [], drain_deadline_ms: Some(600000) }
    "#]]).await;
    check(
        "node drain alpha --deadline soon",
        expect![[r#"
        exit 2
        --- err
        error: --deadline: "soon" is not a duration; write numbers with ms, s, m, h or d, e.g. 1m30s
    "#]],
    )
    .await;
    check("node activate alpha beta", expect![[r#"
        exit 0
        --- out
        081040g2081040g2
        081040g2081040g2
        asked UpdateNodeRequest { node: "alpha", manager: None, worker: None, availability: Active, labels_add: {}, labels_remove: [], request_id: [], forgotten: Unspecified, generic: [], system_reserved: None, taints_add: [], taints_remove: [], drain_deadline_ms: None }
        asked UpdateNodeRequest { node: "beta", manager: None, worker: None, availability: Active, labels_add: {}, labels_remove: [], request_id: [], forgotten: Unspecified, generic: [], system_reserved: None, taints_add: [], taints_remove: [], drain_deadline_ms: None }
    "#]]).await;
}

#[tokio::test]
async fn what_would_be() {
    check("simulate drain alpha --then scale web=6 db=0", expect![[r#""#]]).await;
    check("simulate lose --label rack=a --format json", expect![[r#""#]]).await;
    check("simulate add-node --like alpha --cpu 4", expect![[r#""#]]).await;
    check("simulate drain alpha --then", expect![[r#""#]]).await;
    check("simulate explode", expect![[r#""#]]).await;
}
