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
        asked UpdateClusterRequest { history_limit: None, certificate_lifetime_ms: None, backup: None, backup_off: false, request_id: [], strategy: Unspecified, rebalance: Never, defaults: None, allowed: None }
    "#]]).await;
}

#[tokio::test]
async fn nodes_are_drained_and_activated() {
    check("node drain alpha --deadline 10m", expect![[r#"
        exit 0
        --- out
        081040g2081040g2
        asked UpdateNodeRequest { node: "alpha", manager: None, worker: None, availability: Drain, labels_add: {}, labels_remove: [], request_id: [], forgotten: Unspecified, generic: [], system_reserved: None, taints_add: [], taints_remove: [], drain_deadline_ms: Some(600000), defaults: None }
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
        asked UpdateNodeRequest { node: "alpha", manager: None, worker: None, availability: Active, labels_add: {}, labels_remove: [], request_id: [], forgotten: Unspecified, generic: [], system_reserved: None, taints_add: [], taints_remove: [], drain_deadline_ms: None, defaults: None }
        asked UpdateNodeRequest { node: "beta", manager: None, worker: None, availability: Active, labels_add: {}, labels_remove: [], request_id: [], forgotten: Unspecified, generic: [], system_reserved: None, taints_add: [], taints_remove: [], drain_deadline_ms: None, defaults: None }
    "#]]).await;
}

#[tokio::test]
async fn what_would_be() {
    check("simulate drain alpha --then scale web=6 db=0", expect![[r#"
        exit 0
        --- out
        TASK    FROM    TO     WHAT
        web.1   alpha   beta   moves
        web.2   alpha   -      pending
        NODE    TASKS NOW   TASKS THEN   RESERVED THEN
        alpha   2           0
        web.2 is pending: no node fits
          would help: free 202MiB more memory on alpha
          would help: warren service update --reserve-memory 310MiB web
        1 to move, 1 without a place; at rest after 3s1ms; nothing was changed
        asked SimulateRequest { steps: [SupposedStep { kind: Some(Drain("alpha")) }, SupposedStep { kind: Some(Scale(Scale { service: "web", replicas: 6 })) }, SupposedStep { kind: Some(Scale(Scale { service: "db", replicas: 0 })) }], min_revision: 0, linearizable: false }
    "#]]).await;
    check("simulate lose --label rack=a --format json", expect![[r#"
        exit 0
        --- out
        {
          "nodes": [
            {
              "added": false,
              "hostname": "alpha",
              "id": "081040g2081040g2",
              "reserved_after": {
                "cpus": 0.0,
                "disk_bytes": 0,
                "generic": {},
                "memory_bytes": 0,
                "pids": 0
              },
              "reserved_before": {
                "cpus": 0.0,
                "disk_bytes": 0,
                "generic": {},
                "memory_bytes": 0,
                "pids": 0
              },
              "tasks_after": 0,
              "tasks_before": 2
            }
          ],
          "pending": [
            {
              "asks": [
                "node.labels.disk==ssd"
              ],
              "fixes": [
                "free 202MiB more memory on alpha",
                "warren service update --reserve-memory 310MiB web"
              ],
              "history": [],
              "id": "0g2081040g208104",
              "kind": "task",
              "name": "web.2",
              "nearest": "081040g2081040g2",
              "nodes": [
                {
                  "fits": false,
                  "here": false,
                  "hostname": "alpha",
                  "id": "081040g2081040g2",
                  "next": false,
                  "obstacles": [
                    {
                      "capacity": 2147483648,
                      "fix": "free 202MiB more memory on alpha",
                      "free": 325058560,
                      "kind": "memory",
                      "needed": 536870912,
                      "text": "needs 512MiB memory, 310MiB free of 2GiB"
                    }
                  ],
                  "tasks": 3,
                  "tasks_of_service": 1
                },
                {
                  "fits": false,
                  "here": false,
                  "hostname": "beta",
                  "id": "0m2ga1850m2ga185",
                  "next": false,
                  "obstacles": [
                    {
                      "capacity": 2147483648,
                      "fix": "free 202MiB more memory on alpha",
                      "free": 325058560,
                      "kind": "memory",
                      "needed": 536870912,
                      "text": "needs 512MiB memory, 310MiB free of 2GiB"
                    },
                    {
                      "capacity": null,
                      "fix": "warren node update --label-add 'disk=ssd' beta",
                      "free": null,
                      "kind": "constraint",
                      "needed": null,
                      "text": "not node.labels.disk==ssd: has no node.labels.disk"
                    }
                  ],
                  "tasks": 3,
                  "tasks_of_service": 1
                }
              ],
              "nodes_left": 0,
              "reserve": {
                "cpus": 0.0,
                "disk_bytes": 0,
                "generic": {},
                "memory_bytes": 536870912,
                "pids": 0
              },
              "revision": 7,
              "rooms": [],
              "services": [],
              "summary": "web.2 is pending: no node fits"
            }
          ],
          "revision": 7,
          "tasks": [
            {
              "from": "alpha",
              "name": "web.1",
              "service_id": "0c1g60r30c1g60r3",
              "slot": 1,
              "to": "beta",
              "what": "moves"
            },
            {
              "from": "alpha",
              "name": "web.2",
              "service_id": "0c1g60r30c1g60r3",
              "slot": 2,
              "to": null,
              "what": "pending"
            }
          ],
          "tasks_left": 0,
          "took_ms": 3001,
          "unsettled": false
        }
        asked SimulateRequest { steps: [SupposedStep { kind: Some(Lose(Lose { nodes: [], labels: {"rack": "a"} })) }], min_revision: 0, linearizable: false }
    "#]]).await;
    check("simulate add-node --like alpha --cpu 4", expect![[r#"
        exit 0
        --- out
        TASK    FROM    TO     WHAT
        web.1   alpha   beta   moves
        web.2   alpha   -      pending
        NODE    TASKS NOW   TASKS THEN   RESERVED THEN
        alpha   2           0
        web.2 is pending: no node fits
          would help: free 202MiB more memory on alpha
          would help: warren service update --reserve-memory 310MiB web
        1 to move, 1 without a place; at rest after 3s1ms; nothing was changed
        asked SimulateRequest { steps: [SupposedStep { kind: Some(Add(AddNode { hostname: "", like: "alpha", cpus: Some(4), memory_bytes: None, labels: {} })) }], min_revision: 0, linearizable: false }
    "#]]).await;
    check(
        "simulate drain alpha --then",
        expect![[r#"
        exit 2
        --- err
        Usage: warren simulate [OPTIONS] <COMMAND>

        Commands:
          drain     Everything moves off a node
          lose      Nodes are gone, all at once
          scale     Services get other numbers of replicas
          add-node  A node joins

        Options:
              --format <FORMAT>  table, json, yaml or a template such as '{{.TookMs}}'
              --linearizable     Of a view as new as anything acknowledged before
          -h, --help             Print help
    "#]],
    )
    .await;
    check(
        "simulate explode",
        expect![[r#"
        exit 2
        --- err
        error: there is no command "explode"
        hint: warren --help lists the commands
    "#]],
    )
    .await;
}
