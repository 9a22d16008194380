//! Privileges and limits of containers, by the real binary.

use serde_json::json;

use crate::node::{Node, until};

fn create(node: &Node, name: &str, flags: &[&str], script: &str) -> crate::node::Said {
    let mut args = vec!["service", "create", name, "--image", "bb:1", "--stop-signal", "KILL"];
    args.extend(flags);
    args.extend(["sh", "-c", script]);
    node.warren(&args)
}

#[test]
fn host_what_endangers_a_node_must_be_allowed() {
    let node = Node::with_image();
    let said = create(&node, "spy", &["--pid", "host", "--cap-add", "sys_ptrace"], "sleep 1000");
    assert_eq!(said.exit, 2, "{said:?}");
    for part in [
        "pid: \"host\" is not allowed in this cluster, which allows none",
        "warren cluster update --allow host-pid,cap:SYS_PTRACE",
    ] {
        assert!(said.err.contains(part), "{said:?}");
    }
    let sidecar = "name=beside,image=bb:1,cmd=\"sleep 1000\",stop-signal=KILL,privileged";
    let said = create(&node, "two", &["--sidecar", sidecar], "sleep 1000");
    assert_eq!(said.exit, 2, "{said:?}");
    assert!(said.err.contains("sidecar beside: privileged: \"true\" is not allowed"), "{said:?}");
    node.ok(&["cluster", "update", "--allow", "host-pid,cap:SYS_PTRACE"]);
    let allowed = node.ok(&["cluster", "settings", "--format", "{{.Allowed}}"]);
    assert!(allowed.contains("host-pid") && allowed.contains("cap:SYS_PTRACE"), "{allowed}");

    // The very command that was refused.
    let show = "grep CapEff /proc/self/status; readlink /proc/self/ns/pid; sleep 1000";
    let said = create(&node, "spy", &["--pid", "host", "--cap-add", "sys_ptrace"], show);
    assert_eq!(said.exit, 0, "{said:?}");
    let own = std::fs::read_link("/proc/self/ns/pid").unwrap();
    until("it has looked", || {
        let said = node.ok(&["service", "logs", "spy"]);
        let expected = format!("spy.1 | CapEff:\t00000000a80c25fb\nspy.1 | {}\n", own.display());
        (said == expected).then_some(())
    });
    let audit = node.ok(&["audit", "--format", "json"]);
    assert!(audit.contains("allowed=host-pid,cap:SYS_PTRACE"), "{audit}");

    // What is not allowed any more runs on, and does not start again.
    node.ok(&["cluster", "update", "--allow", "none"]);
    assert_eq!(node.tasks("spy")[0]["state"], "running");
    node.ok(&["service", "scale", "--detach", "spy=2"]);
    until("the second one is refused", || {
        let tasks = node.tasks("spy");
        let second = tasks.iter().find(|task| task["slot"] == 2)?;
        let error = second["error"].as_str()?;
        error.contains("pid: \"host\" is not allowed in this cluster").then_some(())
    });
    assert!(node.tasks("spy").iter().any(|task| task["slot"] == 1 && task["state"] == "running"));
    let said = node.warren(&["service", "update", "spy", "--env-add", "A=1"]);
    assert_eq!(said.exit, 2, "{said:?}");
    node.ok(&[
        "service",
        "update",
        "spy",
        "--pid",
        "private",
        "--cap-drop",
        "SYS_PTRACE",
        "--replicas",
        "1",
    ]);
    node.ok(&["service", "rm", "spy"]);
}

#[test]
fn host_limits_settings_and_the_nodes_network() {
    let node = Node::with_image();
    let script = "echo $$; id -G; ulimit -n; cat /proc/sys/net/core/somaxconn \
        /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/self/oom_score_adj; sleep 1000";
    let flags = [
        "--init",
        "--group-add",
        "4242",
        "--ulimit",
        "nofile=100:200",
        "--sysctl",
        "net.core.somaxconn=77",
        "--oom-score-adj",
        "5",
        "--sidecar",
        "name=beside,image=bb:1,stop-signal=KILL,init,ulimit=nofile=50,\
         cmd=\"sh -c 'echo $$; ulimit -n; cat /proc/sys/net/core/somaxconn; sleep 1000'\"",
    ];
    let said = create(&node, "web", &flags, script);
    assert_eq!(said.exit, 0, "{said:?}");
    let logs = |container: &str, expected: &str| {
        until("it has looked", || {
            let said = node.ok(&["service", "logs", "web", "--container", container]);
            let lines: Vec<&str> =
                said.lines().filter_map(|l| Some(l.split_once("| ")?.1)).collect();
            (lines.join(" ") == expected).then_some(())
        });
    };
    logs("main", "2 0 4242 100 77 0 5");
    logs("beside", "2 50 77");
    let spec = &node.json(&["service", "inspect", "web"])[0]["spec"];
    assert_eq!(spec["privileges"]["ulimits"]["nofile"], json!({"soft": 100, "hard": 200}));
    assert_eq!(spec["sidecars"][0]["privileges"]["init"], true);
    node.ok(&["service", "rm", "web"]);

    let said = create(&node, "edge", &["--network", "host", "-p", "8099:80"], "sleep 1000");
    assert_eq!(said.exit, 2, "{said:?}");
    assert!(said.err.contains("cannot be published"), "{said:?}");
    node.ok(&["cluster", "update", "--allow", "host-network"]);
    let show = "readlink /proc/self/ns/net; sleep 1000";
    let flags = ["--network", "host", "--health-cmd", "true"];
    let said = create(&node, "edge", &flags, show);
    assert_eq!(said.exit, 0, "{said:?}");
    let task = node.tasks("edge").remove(0);
    assert_eq!((&task["address"], &task["health"]), (&json!(null), &json!("healthy")));
    let pid = task["pid"].as_u64().unwrap();
    let daemon = node.pid().unwrap().as_raw_nonzero();
    let theirs = std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    let daemon = std::fs::read_link(format!("/proc/{daemon}/ns/net")).unwrap();
    assert_eq!(theirs, daemon);
    let spec = &node.json(&["service", "inspect", "edge"])[0]["spec"];
    assert_eq!(spec["networks"][0]["name"], "host");
    // And back: a network of its own.
    node.ok(&["service", "update", "edge", "--network-rm", "host"]);
    let task = node.tasks("edge").into_iter().find(|task| task["state"] == "running").unwrap();
    assert!(task["address"].as_str().is_some_and(|address| address.starts_with("10.")), "{task}");
    node.ok(&["service", "rm", "edge"]);
}
