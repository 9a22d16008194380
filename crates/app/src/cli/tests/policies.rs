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
    check(
        "policy create db-in --to db --only-from web --port 5432/tcp",
        expect![[r#"
        exit 0
        --- out
        1040g2081040g208
    "#]],
    )
    .await;
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
    check(
        "policy create p --to db",
        expect![[r#"
        exit 2
        --- err
        error: it is not said what becomes of connections
        hint: write --allow, --deny, --only-from PEER or --only-to PEER
    "#]],
    )
    .await;
    check(
        "policy create p --deny --allow --to db",
        expect![[r#"
        exit 2
        --- err
        error: --deny and --allow exclude each other
    "#]],
    )
    .await;
    check(
        "policy create p --only-from web --from api --to db",
        expect![[r#"
        exit 2
        --- err
        error: --only-from and --from exclude each other
    "#]],
    )
    .await;
    check("policy create p --deny --to db --port 80/sctp", expect![[r#"
        exit 2
        --- err
        error: --port: "80/sctp" is none of PORT[/tcp|udp], FIRST-LAST[/tcp|udp], tcp, udp, icmp; ports are 1 to 65535
    "#]]).await;
    check(
        "policy create p --deny --to 192.0.2.7/24",
        expect![[r#"
        exit 2
        --- err
        error: --to: "192.0.2.7/24" has bits after its prefix; 192.0.2.0/24 has none
    "#]],
    )
    .await;
    check("policy create p --deny --from outside --to 192.0.2.0/24", expect![[r#"
        exit 2
        --- err
        error: --from, to: "outside to 192.0.2.0/24" no end is a container: one of them names services or networks, or is left out
    "#]]).await;
    check(
        "policy create p --deny --to db --priority 2000",
        expect![[r#"
        exit 2
        --- err
        error: --priority: "2000" is more than 1000
    "#]],
    )
    .await;
}

#[tokio::test]
async fn policies_are_shown_with_what_they_did() {
    check(
        "policy ls",
        expect![[r#"
        exit 0
        --- out
        PRIORITY   NAME     ACTION      FROM              TO        PORTS      ALLOWED   DENIED
        7          db-out   deny        db                outside   all        0         5
        100        db-in    only-from   web, api (gone)   db        5432/tcp   7         2
    "#]],
    )
    .await;
    check(
        "policy ls --filter name=db-in --format '{{.Name}} {{.Allowed}} {{.Denied}} {{.Missing}}'",
        expect![[r#"
            exit 0
            --- out
            db-in 7 2 api
        "#]],
    )
    .await;
    check(
        "policy inspect db-in",
        expect![[r#"
        exit 0
        --- out
        [
          {
            "action": "only-from",
            "allowed": {
              "bytes": 420,
              "packets": 7
            },
            "created_at": "2027-01-15T08:00:00.000Z",
            "denied": {
              "bytes": 120,
              "packets": 2
            },
            "from": [
              "web",
              "api"
            ],
            "id": "144gj289144gj289",
            "labels": {},
            "missing": [
              "api"
            ],
            "name": "db-in",
            "nodes": [
              {
                "allowed": {
                  "bytes": 420,
                  "packets": 7
                },
                "denied": {
                  "bytes": 120,
                  "packets": 2
                },
                "node": "alpha"
              }
            ],
            "ports": [
              "5432/tcp"
            ],
            "priority": 100,
            "revision": 4,
            "to": [
              "db"
            ]
          }
        ]
    "#]],
    )
    .await;
    // Ids need no figures, and no node is asked for them.
    let node = FakeNode::start(world());
    let said = say(&node, "policy ls -q").await;
    assert_eq!(said.out.lines().count(), 2);
    assert!(node.world(|world| world.opened.is_empty()));
    // A node that does not say is named, and the rest is shown.
    let node = FakeNode::start(World::default());
    expect![[r#"
        exit 0
        --- out
        db-out 0
        db-in 0
        --- err
        warning: what policies did on node alpha is left out: it said nothing
    "#]]
    .assert_eq(&say(&node, "policy ls --format '{{.Name}} {{.Denied}}'").await.all());
}

#[tokio::test]
async fn policies_are_removed() {
    check(
        "policy rm db-in db-out",
        expect![[r#"
        exit 0
        --- out
        db-in
        db-out
    "#]],
    )
    .await;
    assert!(asked("policy rm db-in").await.contains("policies: [\"db-in\"]"));
}
