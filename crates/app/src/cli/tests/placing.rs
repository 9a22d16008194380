//! Commands about where tasks run, and why.

use expect_test::{Expect, expect};
use warren_model::ServiceSpec;

use super::fake::{FakeNode, World};
use super::samples::web;
use super::say;

/// What is said, then what the node was asked for.
async fn check(line: &str, expected: Expect) {
    let node = FakeNode::start(World { services: vec![web()], ..World::default() });
    let mut said = say(&node, line).await.all();
    let (asked, created, updated) = node.world(|world| {
        use std::mem::take;
        (take(&mut world.asked), take(&mut world.created), take(&mut world.updated))
    });
    for asked in asked {
        said.push_str(&format!("asked {asked}\n"));
    }
    let specs = created.into_iter().map(|wire| wire.spec);
    for spec in specs.chain(updated.into_iter().map(|wire| wire.spec)) {
        let spec = ServiceSpec::try_from(spec.unwrap()).unwrap();
        let placement = crate::cli::placing::placement_json(&spec.placement);
        said.push_str(&format!("spec {} {placement}\n", spec.task.reserve));
    }
    expected.assert_eq(&said);
}

#[tokio::test]
async fn placing_a_service() {
    check("service create db -d --image nginx --reserve-memory 512MiB --reserve-cpu 0.5 --reserve gpu=1 --constraint 'node.labels.disk == ssd' --prefer node.role==worker --placement-pref spread=node.labels.zone --affinity web --anti-affinity api:soft --toleration gpu --replicas-max-per-node 2 --strategy bin-pack", expect![[r#"
        exit 0
        --- out
        0c1g60r30c1g60r3
        spec cpu=0.5 memory=512MiB gpu=1 {"affinity":["web"],"anti_affinity":["api:soft"],"constraints":["node.labels.disk==ssd"],"platforms":[],"preempt":"never","prefer":["node.role==worker"],"priority":0,"replicas_max_per_node":2,"spread":["node.labels.zone"],"strategy":"bin-pack","tolerations":["gpu"]}
    "#]]).await;
    check("service update web -d --constraint-add node.labels.disk==ssd --constraint-rm node.id==x --reserve-memory 64MiB", expect![[r#"
        exit 0
        --- out
        web
        --- err
        warning: --constraint-rm: the service has no node.id==x
        spec memory=64MiB {"affinity":[],"anti_affinity":[],"constraints":["node.labels.disk==ssd"],"platforms":[],"preempt":"never","prefer":[],"priority":0,"replicas_max_per_node":null,"spread":[],"strategy":null,"tolerations":[]}
    "#]]).await;
}

#[tokio::test]
async fn what_is_no_placement() {
    check("service create db --image nginx --constraint node.zone==a", expect![[r#"
        exit 2
        --- err
        error: --constraint: "node.zone" is not an attribute of nodes; there are node.id, node.hostname, node.role, node.platform.os, node.platform.arch and node.labels.NAME
    "#]]).await;
    check("service create db --image nginx --constraint node.labels.disk=ssd", expect![[r#"
        exit 2
        --- err
        error: --constraint: "node.labels.disk=ssd" has no operator; write ATTRIBUTE and ==, !=, =~, in, < or >, e.g. node.labels.disk==ssd
    "#]]).await;
    check(
        "service create db --image nginx --placement-pref zone",
        expect![[r#"
        exit 2
        --- err
        error: --placement-pref: "zone" is not of the form spread=node.labels.zone
    "#]],
    )
    .await;
    check("service create db --image nginx --affinity db", expect![[r#"
        exit 2
        --- err
        error: --affinity: "db" is the service itself; to have its replicas apart, use --replicas-max-per-node 1
    "#]]).await;
    check("service create db --image nginx --anti-affinity web:hard", expect![[r#"
        exit 2
        --- err
        error: --anti-affinity: "hard" after a service's name is not "soft"; write SERVICE or SERVICE:soft
    "#]]).await;
    check(
        "service create db --image nginx --toleration =x",
        expect![[r#"
        exit 2
        --- err
        error: --toleration: "=x" has no key; write KEY[=VALUE][:EFFECT], e.g. gpu=yes:no-schedule
    "#]],
    )
    .await;
    check(
        "service create db --image nginx --strategy tight",
        expect![[r#"
        exit 2
        --- err
        error: --strategy: "tight" is not a strategy; write spread or bin-pack, or default
    "#]],
    )
    .await;
    check(
        "service create db --image nginx --reserve memory=5",
        expect![[r#"
        exit 2
        --- err
        error: --reserve: "memory" is counted by itself and has a field of its own: --reserve-memory
    "#]],
    )
    .await;
    check(
        "service create db --image nginx --reserve gpu",
        expect![[r#"
        exit 2
        --- err
        error: --reserve: "gpu" is not of the form NAME=N, e.g. gpu=2
    "#]],
    )
    .await;
    check(
        "service create db --image nginx --reserve-memory 1GiB --limit-memory 512MiB",
        expect![[r#"
            exit 2
            --- err
            error: --limit-memory: "512MiB" is less than the 1GiB that are reserved; raise it or lower --reserve-memory
        "#]],
    )
    .await;
    check(
        "node update beta --resource gpu=many",
        expect![[r#"
        exit 2
        --- err
        error: --resource: "gpu=many" is not of the form NAME=N, e.g. gpu=2
    "#]],
    )
    .await;
    check(
        "node update beta --system-reserve memory",
        expect![[r#"
        exit 2
        --- err
        error: --system-reserve: "memory" is not of the form cpu=0.5, memory=512MiB or NAME=N
    "#]],
    )
    .await;
    check("node taint beta gpu:never", expect![[r#"
        exit 2
        --- err
        error: [TAINT]: "never" is not an effect; write no-schedule, prefer-no-schedule or no-execute
    "#]]).await;
    check(
        "node taint beta",
        expect![[r#"
        exit 2
        --- err
        error: node taint: nothing is to be changed
        hint: give KEY[=VALUE][:EFFECT], or --rm KEY
    "#]],
    )
    .await;
}

#[tokio::test]
async fn nodes_and_the_cluster() {
    check(
        "node update beta --resource gpu=4 --system-reserve cpu=0.5,memory=512MiB",
        expect![[r#"
            exit 0
            --- out
            081040g2081040g2
            asked UpdateNodeRequest { node: "beta", manager: None, worker: None, availability: Unspecified, labels_add: {}, labels_remove: [], request_id: [], forgotten: Unspecified, generic: [Amount { name: "gpu", amount: 4 }], system_reserved: Some(Resources { cpu_millis: 500, memory_bytes: 536870912, pids: 0, disk_bytes: 0, generic: [] }), taints_add: [], taints_remove: [], drain_deadline_ms: None, defaults: None }
        "#]],
    )
    .await;
    check("node taint beta gpu=yes repair:no-execute --rm old", expect![[r#"
        exit 0
        --- out
        081040g2081040g2
        asked UpdateNodeRequest { node: "beta", manager: None, worker: None, availability: Unspecified, labels_add: {}, labels_remove: [], request_id: [], forgotten: Unspecified, generic: [], system_reserved: None, taints_add: ["gpu=yes:no-schedule", "repair:no-execute"], taints_remove: ["old"], drain_deadline_ms: None, defaults: None }
    "#]]).await;
    check("cluster update --strategy bin-pack", expect![[r#"
        exit 0
        asked UpdateClusterRequest { history_limit: None, certificate_lifetime_ms: None, backup: None, backup_off: false, request_id: [], strategy: BinPack, rebalance: Unspecified, defaults: None, allowed: None }
    "#]]).await;
}

#[tokio::test]
async fn explanations() {
    check("explain task web.2", expect![[r#"
        exit 0
        --- out
        web.2 is pending: no node fits
        reserves: memory=512MiB
        asks: node.labels.disk==ssd
        NODE    FITS   OF SERVICE   ALL TASKS   WHY NOT
        alpha   no     1            3           needs 512MiB memory, 310MiB free of 2GiB
        beta    no     1            3           needs 512MiB memory, 310MiB free of 2GiB; not node.labels.disk==ssd: has no node.labels.disk
        nearest: alpha
        would help:
          free 202MiB more memory on alpha
          warren service update --reserve-memory 310MiB web
        asked ExplainRequest { min_revision: 0, linearizable: false, what: Some(Task("web.2")) }
    "#]]).await;
    check("explain service web --format '{{.Nearest}} {{.Fixes}}'", expect![[r#"
        exit 0
        --- out
        081040g2081040g2 free 202MiB more memory on alpha, warren service update --reserve-memory 310MiB web
        asked ExplainRequest { min_revision: 0, linearizable: false, what: Some(Service("web")) }
    "#]]).await;
    check(
        "explain task web.2 --format json",
        expect![[r#"
            exit 0
            --- out
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
            asked ExplainRequest { min_revision: 0, linearizable: false, what: Some(Task("web.2")) }
        "#]],
    )
    .await;
    check("explain", expect![[r#"
        exit 2
        --- err
        Show why something is where it is, or nowhere, and what would help

        Usage: warren explain [OPTIONS] <COMMAND>

        Commands:
          task     Why a task is on its node, or on none: what each node has for it
          service  What the next task of a service would meet on each node
          node     What a node has, who reserves it, and what keeps those off that wait for a place

        Options:
          -h, --help  Print help

        Where:
              --config <FILE>   Configuration file [env: WARREN_CONFIG] [default: /etc/warren/warren.toml]
              --run-dir <DIR>   Folder of the socket, pid file and shims [env: WARREN_RUN_DIR] [default: /run/warren]
              --context <NAME>  Call this cluster from afar, not the node of this machine [env: WARREN_CONTEXT]
    "#]]).await;
}
