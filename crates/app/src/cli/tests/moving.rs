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
        expect![[""]],
    )
    .await;
    check("service create db -d --image nginx --min-available 120%", expect![[""]]).await;
    check("service create db -d --image nginx --rebalance sometimes", expect![[""]]).await;
    check("cluster update --rebalance never", expect![[""]]).await;
}

#[tokio::test]
async fn nodes_are_drained_and_activated() {
    check("node drain alpha --deadline 10m", expect![[""]]).await;
    check("node drain alpha --deadline soon", expect![[""]]).await;
    check("node activate alpha beta", expect![[""]]).await;
}

#[tokio::test]
async fn what_would_be() {
    check("simulate drain alpha --then scale web=6 db=0", expect![[""]]).await;
    check("simulate lose --label rack=a --format json", expect![[""]]).await;
    check("simulate add-node --like alpha --cpu 4", expect![[""]]).await;
    check("simulate drain alpha --then", expect![[""]]).await;
    check("simulate explode", expect![[""]]).await;
}
