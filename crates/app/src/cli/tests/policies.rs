//! Policies: made, shown with what they did, removed.

use expect_test::{Expect, expect};
use warren_proto::v1;
use warren_proto::v1::frame;

use super::fake::{FakeNode, World};
use super::say;

fn world() -> World {
    let count = |policy: u8, denied, packets| v1::PolicyCount {
        policy: vec![policy; 10],
        denied,
        packets,
        bytes: packets * 60,
    };
    let nobodys = v1::PolicyCount { policy: Vec::new(), denied: true, packets: 9, bytes: 9 };
    let counts = vec![count(8, true, 5), count(9, false, 7), count(9, true, 2), nobodys];
    let frames = vec![frame::Kind::PolicyCounts(v1::PolicyCounts { counts })];
    World { frames, ..World::default() }
}

async fn check(line: &str, expected: Expect) {
    let node = FakeNode::start(world());
    expected.assert_eq(&say(&node, line).await.all());
}

/// What arrives of a command.
async fn asked(line: &str) -> String {
    let node = FakeNode::start(World::default());
    let said = say(&node, line).await;
    assert_eq!(said.exit, 0, "{}", said.err);
    node.world(|world| world.asked.join(" "))
}

#[tokio::test]
async fn policies_are_made() {
    check("policy create db-in --to db --only-from web --port 5432/tcp", expect![[r#""#]]).await;
    let wire = asked(
        "policy create db-in --to db --only-from web,network=back --only-from outside \
         --port 5432,icmp --priority 7 --label a=b",
    )
    .await;
    for part in [
        "name: \"db-in\"",
        "action: OnlyFrom",
        "from: [PolicyPeer { kind: Some(Service(\"web\")) }, \
         PolicyPeer { kind: Some(Network(\"back\")) }, PolicyPeer { kind: Some(Outside(true)) }]",
        "to: [PolicyPeer { kind: Some(Service(\"db\")) }]",
        "PolicyPort { protocol: Tcp, first: 5432, last: 5432 }, PolicyPort { protocol: Icmp, first: 0, last: 0 }",
        "priority: Some(7)",
        "{\"a\": \"b\"}",
    ] {
        assert!(wire.contains(part), "{part} is not in {wire}");
    }
    let wire = asked("policy create db-out --from db --deny --to 192.0.2.0/24,2001:db8::/32").await;
    assert!(wire.contains("action: Deny") && wire.contains("prefix: 24"), "{wire}");
}

#[tokio::test]
async fn mistakes_are_named() {
    check("policy create p --to db", expect![[r#""#]]).await;
    check("policy create p --deny --allow --to db", expect![[r#""#]]).await;
    check("policy create p --only-from web --from api --to db", expect![[r#""#]]).await;
    check("policy create p --deny --to db --port 80/sctp", expect![[r#""#]]).await;
    check("policy create p --deny --to 192.0.2.7/24", expect![[r#""#]]).await;
    check("policy create p --deny --from outside --to 192.0.2.0/24", expect![[r#""#]]).await;
    check("policy create p --deny --to db --priority 2000", expect![[r#""#]]).await;
}

#[tokio::test]
async fn policies_are_shown_with_what_they_did() {
    check("policy ls", expect![[r#""#]]).await;
    check(
        "policy ls --filter name=db-in --format '{{.Name}} {{.Allowed}} {{.Denied}} {{.Missing}}'",
        expect![[r#""#]],
    )
    .await;
    check("policy inspect db-in", expect![[r#""#]]).await;
    // Ids need no figures, and no node is asked for them.
    let node = FakeNode::start(world());
    let said = say(&node, "policy ls -q").await;
    assert_eq!(said.out.lines().count(), 2);
    assert!(node.world(|world| world.opened.is_empty()));
    // A node that does not say is named, and the rest is shown.
    let node = FakeNode::start(World::default());
    expect![[r#""#]]
        .assert_eq(&say(&node, "policy ls --format '{{.Name}} {{.Denied}}'").await.all());
}

#[tokio::test]
async fn policies_are_removed() {
    check("policy rm db-in db-out", expect![[r#""#]]).await;
    assert!(asked("policy rm db-in").await.contains("policies: [\"db-in\"]"));
}
