//! What listings look like.

use expect_test::{Expect, expect};

use super::fake::{FakeNode, World};
use super::samples::{task, web};
use super::say;
use crate::cli::listing::{Record, View};
use crate::cli::rows::{EventRow, ImageRow, NodeRow, ServiceRow, TaskRow};
use warren_model::Time;
use warren_proto::v1;

fn world() -> World {
    let mut failed = task(2, v1::TaskState::Failed, v1::Desired::Shutdown);
    failed.created -= 5000;
    let status = failed.status.as_mut().unwrap();
    status.pid = 0;
    status.exit = Some(v1::TaskExit { code: 137, oom_killed: true });
    status.error = Some("out of memory".into());
    World {
        services: vec![web()],
        tasks: vec![
            failed,
            task(2, v1::TaskState::Running, v1::Desired::Running),
            task(1, v1::TaskState::Running, v1::Desired::Running),
        ],
        ..World::default()
    }
}

async fn check(line: &str, expected: Expect) {
    let node = FakeNode::start(world());
    expected.assert_eq(&say(&node, line).await.all());
}

#[tokio::test]
async fn services() {
    check(
        "service ls",
        expect![[r#"
        exit 0
        --- out
        ID                 NAME   MODE         REPLICAS   IMAGE        PORTS     UPDATE
        0c1g60r30c1g60r3   web    replicated   2/3        nginx:1.27   8080:80   none
    "#]],
    )
    .await;
    check(
        "service ls --format json",
        expect![[r#"
            exit 0
            --- out
            [
              {
                "completed": 0,
                "created_at": "2027-01-15T08:00:00.000Z",
                "desired": 3,
                "id": "0c1g60r30c1g60r3",
                "image": "nginx:1.27",
                "job_state": null,
                "mode": "replicated",
                "name": "web",
                "next_run_at": null,
                "ports": [
                  "8080:80"
                ],
                "revision": 2,
                "running": 2,
                "update_message": null,
                "update_state": "none",
                "updated_at": "2027-01-15T08:00:00.000Z"
              }
            ]
        "#]],
    )
    .await;
    check(
        "service ls --format yaml",
        expect![[r#"
            exit 0
            --- out
            - completed: 0
              created_at: "2027-01-15T08:00:00.000Z"
              desired: 3
              id: "0c1g60r30c1g60r3"
              image: "nginx:1.27"
              job_state: null
              mode: replicated
              name: web
              next_run_at: null
              ports:
              - "8080:80"
              revision: 2
              running: 2
              update_message: null
              update_state: none
              updated_at: "2027-01-15T08:00:00.000Z"
        "#]],
    )
    .await;
    check(
        "service ls -q",
        expect![[r#"
        exit 0
        --- out
        0c1g60r30c1g60r3
    "#]],
    )
    .await;
    check(
        "service ls --format '{{.Name}} {{.ID}} {{.Replicas}}'",
        expect![[r#"
        exit 0
        --- out
        web 0c1g60r30c1g60r3 2/3
    "#]],
    )
    .await;
    check(
        "service ls --format 'table {{.Name}}\\t{{.UpdateState}}'",
        expect![[r#"
        exit 0
        --- out
        NAME   UPDATE STATE
        web    none
    "#]],
    )
    .await;
    check(
        "service ls --filter name=db --format json",
        expect![[r#"
        exit 0
        --- out
        []
    "#]],
    )
    .await;
    check(
        "service ls --filter nam=db",
        expect![[r#"
        exit 2
        --- err
        error: --filter: there is no key "nam"
        hint: did you mean name?
    "#]],
    )
    .await;
}

#[tokio::test]
async fn tasks_on_a_node_that_is_down() {
    let mut world = world();
    world.tasks.iter_mut().for_each(|task| task.node_status = v1::NodeStatus::Down.into());
    let node = FakeNode::start(world);
    let rows = say(&node, "service ps web").await.all();
    let doubts: Vec<bool> = rows.lines().skip(3).map(|row| row.contains("(node down)")).collect();
    assert_eq!(doubts, [true, true, false], "{rows}");
    let format = "service ps web --format '{{.State}} {{.NodeStatus}}'";
    expect![[r#"
        exit 0
        --- out
        running down
        running down
        failed down
    "#]]
    .assert_eq(&say(&node, format).await.all());
}

#[tokio::test]
async fn tasks() {
    check(
        "service ps web --format '{{.Name}} {{.State}} {{.pid}} {{.ExitCode}}|{{.Error}}'",
        expect![[r#"
            exit 0
            --- out
            web.1 running 1001 |
            web.2 running 1002 |
            web.2 failed 0 137|out of memory
        "#]],
    )
    .await;
    check(
        "ps -q",
        expect![[r#"
        exit 0
        --- out
        0g2081040g208181
        0g2081040g208182
        0g2081040g208282
    "#]],
    )
    .await;
    let row = TaskRow::from(&world().tasks[0]);
    let view = View { now: Time(super::fake::NOW + 180_000), whole: false };
    expect![[r#"
        NAME    ID                 IMAGE        NODE    DESIRED STATE   CURRENT STATE          RESTARTS   ADDRESS      ERROR
        web.2   0g2081040g208282   nginx:1.27   alpha   shutdown        failed 3 minutes ago   0          10.128.0.3   out of memory
    "#]].assert_eq(&crate::cli::printer::table(TaskRow::COLUMNS, &[row.cells(view)]));
}

#[tokio::test]
async fn nodes_and_cluster() {
    check(
        "node ls",
        expect![[r#"
            exit 0
            --- out
            ID                 HOSTNAME   ROLE     STATUS   AVAILABILITY   MANAGER   ADDRESS         VERSION
            081040g2081040g2   alpha      hybrid   ready    active         leader    10.0.0.1:2377   0.1.0
            0m2ga1850m2ga185   beta       worker   down     drain                    10.0.0.2:2377   0.1.0
        "#]],
    )
    .await;
    check(
        "node ls --format json",
        expect![[r#"
            exit 0
            --- out
            [
              {
                "address": "10.0.0.1:2377",
                "architecture": "",
                "availability": "active",
                "certificate_not_after": "2027-01-15T08:00:01.000Z",
                "cpus": 2,
                "defaults": {
                  "limit_cpus": null,
                  "limit_memory_bytes": null,
                  "limit_pids": null,
                  "reserve_cpus": null,
                  "reserve_memory_bytes": null
                },
                "devices": {},
                "disk_bytes": 0,
                "disk_free_bytes": 0,
                "drain_deadline": null,
                "features": [],
                "forgotten": null,
                "generic": {},
                "hostname": "alpha",
                "id": "081040g2081040g2",
                "joined_at": "2027-01-15T08:00:00.000Z",
                "kernel": "",
                "labels": {},
                "leader": true,
                "manager_status": "leader",
                "memory_bytes": 1073741824,
                "open_since": null,
                "reserved": {
                  "cpus": 0.0,
                  "disk_bytes": 0,
                  "generic": {},
                  "memory_bytes": 0,
                  "pids": 0
                },
                "role": "hybrid",
                "status": "ready",
                "system_reserved": {
                  "cpus": 0.0,
                  "disk_bytes": 0,
                  "generic": {},
                  "memory_bytes": 0,
                  "pids": 0
                },
                "taints": [],
                "version": "0.1.0"
              },
              {
                "address": "10.0.0.2:2377",
                "architecture": "",
                "availability": "drain",
                "certificate_not_after": null,
                "cpus": 2,
                "defaults": {
                  "limit_cpus": null,
                  "limit_memory_bytes": null,
                  "limit_pids": null,
                  "reserve_cpus": null,
                  "reserve_memory_bytes": null
                },
                "devices": {},
                "disk_bytes": 0,
                "disk_free_bytes": 0,
                "drain_deadline": null,
                "features": [],
                "forgotten": null,
                "generic": {},
                "hostname": "beta",
                "id": "0m2ga1850m2ga185",
                "joined_at": null,
                "kernel": "",
                "labels": {
                  "rack": "7"
                },
                "leader": false,
                "manager_status": "",
                "memory_bytes": 1073741824,
                "open_since": null,
                "reserved": {
                  "cpus": 0.0,
                  "disk_bytes": 0,
                  "generic": {},
                  "memory_bytes": 0,
                  "pids": 0
                },
                "role": "worker",
                "status": "down",
                "system_reserved": {
                  "cpus": 0.0,
                  "disk_bytes": 0,
                  "generic": {},
                  "memory_bytes": 0,
                  "pids": 0
                },
                "taints": [],
                "version": "0.1.0"
              }
            ]
        "#]],
    )
    .await;
    check(
        "cluster info",
        expect![[r#"
            exit 0
            --- out
            cluster id: 040g2081040g2081
            epoch: 0
            leader: alpha
            leader id: 081040g2081040g2
            manager addresses: 10.0.0.1:2377
            managers: 1
            managers reachable: 1
            node id: 081040g2081040g2
            nodes: 1
            revision: 7
            services: 2
            stale ms: 0
            tasks: 3
            version: 0.1.0
        "#]],
    )
    .await;
}

#[tokio::test]
async fn inspect() {
    check(
        "service inspect web",
        expect![[r#"
            exit 0
            --- out
            [
              {
                "addresses": [
                  {
                    "address": "10.192.0.2",
                    "address_v6": "fd01:101:101:1::ac0:2",
                    "network": "default",
                    "slot": null
                  }
                ],
                "changed_by": null,
                "completed": 0,
                "created_at": "2027-01-15T08:00:00.000Z",
                "desired": 3,
                "id": "0c1g60r30c1g60r3",
                "job": null,
                "name": "web",
                "removing": false,
                "revision": 2,
                "running": 2,
                "spec": {
                  "cap_add": [],
                  "cap_drop": [],
                  "command": [],
                  "container_labels": {},
                  "endpoint": {
                    "affinity": "none",
                    "mode": "vip",
                    "prefer_local": false,
                    "slot_addresses": false
                  },
                  "entrypoint": null,
                  "env": [
                    "LOG=info"
                  ],
                  "force": 0,
                  "health": {
                    "action": "none",
                    "declared": false,
                    "origin": "ports",
                    "probe": "tcp 80",
                    "until": "the first success"
                  },
                  "hooks": null,
                  "hostname": null,
                  "image": "nginx:1.27",
                  "init_containers": [],
                  "job": null,
                  "labels": {
                    "team": "shop"
                  },
                  "limit": {
                    "cpus": 0.5,
                    "memory_bytes": 134217728,
                    "pids": null
                  },
                  "log": {
                    "max_bytes": 10485760,
                    "max_files": 3
                  },
                  "mode": "replicated",
                  "mounts": [],
                  "moving": {
                    "min_available": null,
                    "rebalance": "auto"
                  },
                  "name": "web",
                  "networks": [
                    {
                      "aliases": [],
                      "ip": null,
                      "name": "default"
                    }
                  ],
                  "on_disconnect": "replace-after 3s",
                  "placement": {
                    "affinity": [],
                    "anti_affinity": [],
                    "constraints": [],
                    "platforms": [],
                    "preempt": "never",
                    "prefer": [],
                    "priority": 0,
                    "replicas_max_per_node": null,
                    "spread": [],
                    "strategy": null,
                    "tolerations": []
                  },
                  "ports": [
                    {
                      "host_ip": "0.0.0.0",
                      "mode": "ingress",
                      "protocol": "tcp",
                      "published": 8080,
                      "target": 80
                    }
                  ],
                  "privileges": {
                    "devices": [],
                    "groups": [],
                    "init": false,
                    "ipc": "private",
                    "no_new_privileges": true,
                    "oom_score_adj": 0,
                    "pid": "private",
                    "privileged": false,
                    "seccomp": "default",
                    "sysctls": {},
                    "ulimits": {}
                  },
                  "read_only": false,
                  "replicas": 3,
                  "reserve": {
                    "cpus": 0.0,
                    "disk_bytes": 0,
                    "generic": {},
                    "memory_bytes": 0,
                    "pids": 0
                  },
                  "restart": {
                    "condition": "any",
                    "delay": "100ms",
                    "max_attempts": null,
                    "window": "10s"
                  },
                  "rollback": {
                    "deadline": null,
                    "delay": "0s",
                    "failure_action": "pause",
                    "max_failure_ratio": 0.0,
                    "max_surge": null,
                    "max_unavailable": null,
                    "monitor": "1s",
                    "order": "start-first",
                    "parallelism": 1
                  },
                  "sidecars": [],
                  "stop_grace_period": "10s",
                  "stop_signal": null,
                  "tuning": {
                    "blkio_weight": null,
                    "cpu_shares": null,
                    "cpuset_cpus": null,
                    "cpuset_mems": null,
                    "device_limits": [],
                    "swap_bytes": null
                  },
                  "update": {
                    "deadline": null,
                    "delay": "0s",
                    "failure_action": "pause",
                    "max_failure_ratio": 0.0,
                    "max_surge": null,
                    "max_unavailable": null,
                    "monitor": "1s",
                    "order": "start-first",
                    "parallelism": 1
                  },
                  "user": null,
                  "workdir": null
                },
                "state_revision": 5,
                "template": 1,
                "update": {
                  "message": null,
                  "started_at": null,
                  "state": "none"
                },
                "update_message": null,
                "update_state": "none",
                "updated_at": "2027-01-15T08:00:00.000Z"
              }
            ]
        "#]],
    )
    .await;
    check(
        "service inspect web --format '{{.Spec.Image}} {{.Spec.Limit.Cpus}}'",
        expect![[r#"
        exit 0
        --- out
        nginx:1.27 0.5
    "#]],
    )
    .await;
    check(
        "service inspect web --format table",
        expect![[r#"
        exit 2
        --- err
        error: --format: inspect has no table
        hint: write json, yaml or a template
    "#]],
    )
    .await;
}

#[test]
fn keys_are_what_is_promised() {
    fn check<R: Record>(row: &R) {
        let object = row.object();
        let mut keys: Vec<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
        let mut promised = R::KEYS.to_vec();
        keys.sort_unstable();
        promised.sort_unstable();
        assert_eq!(keys, promised);
        let view = View { now: Time(0), whole: false };
        assert_eq!(row.cells(view).len(), R::COLUMNS.len());
    }
    check(&ServiceRow::try_from(&web()).unwrap());
    check(&TaskRow::from(&world().tasks[0]));
    check(&NodeRow::from(&v1::Node::default()));
    check(&ImageRow::from(&v1::ImageRow::default()));
    check(&EventRow::from(v1::Event::default()));
    check(&crate::cli::Check::ok("kernel", "6.18"));
}

#[test]
fn an_image_without_a_moment_has_none() {
    let view = View { now: Time(60_000), whole: false };
    let row = |created| ImageRow::from(&v1::ImageRow { created, ..v1::ImageRow::default() });
    assert_eq!(row(0).cells(view)[2], "N/A");
    assert!(row(0).object()["created_at"].is_null());
    assert_eq!(row(1_000).cells(view)[2], "59 seconds ago");
}

#[test]
fn work_that_is_done_is_told_apart() {
    let service = v1::Service { running: 0, desired: 1, completed: 1, ..web() };
    let row = ServiceRow::try_from(&service).unwrap();
    let view = View { now: Time(0), whole: false };
    assert_eq!(row.cells(view)[3], "0/1 (1/1 completed)");
}
