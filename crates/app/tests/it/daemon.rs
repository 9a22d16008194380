//! The daemon comes and goes; containers stay.

use std::time::{Duration, Instant};

use rustix::process::Pid;
use serde_json::Value;

use crate::node::{Node, kill_and_wait, until};

fn pids(tasks: &[Value]) -> Vec<(String, Value, Value)> {
    let row = |t: &Value| (t["id"].to_string(), t["pid"].clone(), t["attempt"].clone());
    tasks.iter().map(row).collect()
}

#[test]
fn host_init_run_and_stop() {
    let node = Node::bare();
    let said = node.warren(&["service", "ls"]);
    assert_eq!(said.exit, 5);
    assert!(said.err.contains("warren node run"), "{}", said.err);
    let said = node.warren(&["node", "run", "--detach"]);
    assert_eq!(said.exit, 3, "{said:?}");
    assert!(said.err.contains("warren cluster init"), "{}", said.err);

    node.ok(&["cluster", "init", "--detach"]);
    let nodes = node.json(&["node", "ls"]);
    assert_eq!((&nodes[0]["status"], &nodes[0]["leader"]), (&"ready".into(), &true.into()));
    assert_eq!(node.ok(&["cluster", "info", "--format", "{{.Nodes}}"]), "1\n");
    let pid = node.pid().unwrap();

    let said = node.warren(&["cluster", "init", "--detach"]);
    assert_eq!(said.exit, 4, "{said:?}");
    let said = node.warren(&["node", "run"]);
    let number = pid.as_raw_nonzero().to_string();
    assert!(said.exit == 4 && said.err.contains(&number), "{said:?}");

    node.ok(&["node", "stop"]);
    assert!(node.pid().is_none());
    assert_eq!(node.warren(&["node", "ls"]).exit, 5);
    let said = node.warren(&["cluster", "init"]);
    assert_eq!(said.exit, 4, "{said:?}");
    assert!(said.err.contains("warren node run"), "{}", said.err);
    node.ok(&["node", "run", "--detach"]);
    assert_eq!(node.json(&["node", "ls"])[0]["id"], nodes[0]["id"]);
}

/// The log of a store that was closed says so: its newest file is cut behind a last record. One
/// that was left as after a crash keeps the length that it was made with.
#[test]
fn host_every_stop_closes_the_store() {
    let node = Node::start();
    for round in 0..30 {
        node.ok(&["node", "update", &node.id(), "--label-add", &format!("round={round}")]);
        node.ok(&["node", "stop"]);
        let mut logs: Vec<_> = std::fs::read_dir(node.data_dir().join("store"))
            .unwrap()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
            .collect();
        logs.sort();
        let len = logs.last().unwrap().metadata().unwrap().len();
        assert!(len < 512 << 10, "round {round}: {logs:?} of {len} bytes");
        node.ok(&["node", "run", "--detach"]);
    }
}

#[test]
fn host_containers_survive_a_killed_daemon() {
    let node = Node::with_image();
    node.ok(&[
        "service",
        "create",
        "web",
        "--image",
        "bb:1",
        "--stop-signal",
        "KILL",
        "--replicas",
        "2",
        "-p",
        "8080:80",
        "httpd",
        "-f",
        "-p",
        "80",
        "-h",
        "/www",
    ]);
    node.ok(&[
        "service",
        "create",
        "ends",
        "--image",
        "bb:1",
        "--stop-signal",
        "KILL",
        "--restart-condition",
        "none",
        "sh",
        "-c",
        "while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 9",
    ]);
    let before = node.tasks("web");
    let ending = node.tasks("ends")[0].clone();
    node.ok(&["exec", "ends", "sh", "-c", "echo 1 > /tmp/ready"]);
    node.kill_daemon();
    // It still answers with nobody there.
    assert_eq!(node.get("127.0.0.1:8080").as_deref(), Some("hello"));
    // What ends meanwhile is reported as it ended.
    let root = format!("/proc/{}/root/tmp/go", ending["pid"]);
    let pid = Pid::from_raw(i32::try_from(ending["pid"].as_i64().unwrap()).unwrap()).unwrap();
    std::fs::write(root, "").unwrap();
    until("the container ended", || rustix::process::test_kill_process(pid).err());
    node.ok(&["node", "run", "--detach"]);
    node.ok(&["wait", "service", "web", "--timeout", "30s"]);
    assert_eq!(pids(&node.tasks("web")), pids(&before));
    let ended = until("its end is known", || {
        let task = node.json(&["service", "ps", "ends"]).remove(0);
        (task["exit_code"] != Value::Null).then_some(task)
    });
    assert_eq!((&ended["exit_code"], &ended["id"]), (&9.into(), &ending["id"]));
    // And is still cared for.
    let victim = &node.tasks("web")[0]["pid"];
    kill_and_wait(Pid::from_raw(i32::try_from(victim.as_i64().unwrap()).unwrap()).unwrap());
    until("the replica is back", || {
        let tasks = node.tasks("web");
        let running = tasks.iter().filter(|t| t["state"] == "running" && t["pid"] != *victim);
        (running.count() == 2).then_some(())
    });
}

#[test]
fn host_stop_with_containers_leaves_nothing_and_run_brings_it_back() {
    let node = Node::with_image();
    let clean = node.footprint();
    node.ok(&[
        "service",
        "create",
        "web",
        "--image",
        "bb:1",
        "--stop-signal",
        "KILL",
        "-p",
        "8080:80",
        "httpd",
        "-f",
        "-p",
        "80",
        "-h",
        "/www",
    ]);
    node.ok(&["node", "stop", "--with-containers"]);
    let left = node.footprint();
    for kind in ["mounts", "processes", "cgroups", "cgroups of the node", "run folders"] {
        assert_eq!(left[kind], clean[kind], "{kind}: {left:?}");
    }
    assert_eq!((clean["data planes"], left["data planes"]), (1, 0));
    node.ok(&["node", "run", "--detach"]);
    node.ok(&["wait", "service", "web", "--timeout", "30s"]);
    until("it answers again", || node.get("127.0.0.1:8080"));
}

#[test]
fn host_the_data_plane_outlives_the_daemon_and_not_its_own_end() {
    let node = Node::start();
    let up = |node: &Node| {
        let (_, metrics) = node.admin("/metrics")?;
        metrics.contains("warren_dataplane_up 1\n").then_some(())
    };
    until("the data plane answers", || up(&node));
    let first = node.data_plane().unwrap();
    let kept = std::fs::read(node.data_dir().join("tunnel")).unwrap();
    node.kill_daemon();
    node.ok(&["node", "run", "--detach"]);
    until("it is found again", || up(&node));
    assert_eq!(node.data_plane(), Some(first));
    kill_and_wait(Pid::from_raw(first).unwrap());
    let second = until("another one", || node.data_plane().filter(|pid| *pid != first));
    node.ok(&["node", "stop"]);
    // Another file is another program.
    let copy = node.folder().join("warren");
    std::fs::copy(crate::node::WARREN, &copy).unwrap();
    let upgraded = node.program(&[copy.to_str().unwrap(), "node", "run", "--detach"]).status();
    assert!(upgraded.unwrap().success());
    let third = until("a successor", || node.data_plane().filter(|pid| *pid != second));
    until("the old one ends", || {
        (!std::path::Path::new(&format!("/proc/{second}")).exists()).then_some(())
    });
    until("the successor answers", || up(&node));
    node.ok(&["node", "stop", "--with-containers"]);
    until("none is left", || {
        (!std::path::Path::new(&format!("/proc/{third}")).exists()).then_some(())
    });
    for gone in ["data.sock", "data.pid"] {
        assert!(!node.run_dir().join(gone).exists(), "{gone}");
    }
    assert_eq!(std::fs::read(node.data_dir().join("tunnel")).unwrap(), kept);
}

#[test]
fn host_foreground_daemon_ends_by_signal() {
    let node = Node::bare();
    let mut child = node.command(&["cluster", "init"]).spawn().unwrap();
    until("the node is ready", || (node.warren(&["node", "ls"]).exit == 0).then_some(()));
    let pid = node.pid().unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let start = Instant::now();
    let status = child.wait().unwrap();
    assert!(status.success() && start.elapsed() < Duration::from_secs(20), "{status}");
    assert!(node.pid().is_none());
}

/// Lines of the log that have all of `words`.
fn lines(node: &Node, words: &[&str]) -> usize {
    let log = node.log();
    log.lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

#[test]
fn host_log_lines_say_what_they_are_about() {
    let node = Node::with_image();
    let id = node.id();
    let create = |name: &str| {
        let line = ["service", "create", name, "--image", "bb:1", "--stop-signal", "KILL"];
        node.warren(&[&line[..], &["sh", "-c", "sleep 1000"]].concat())
    };
    for (format, name) in [("text", "one"), ("json", "two")] {
        node.ok(&["node", "stop"]);
        node.ok(&["node", "run", "--detach", "--log-format", format]);
        // As each of them writes a field.
        let field = |key: &str, value: &str| match (format, value) {
            ("text", "") => format!("{key}="),
            ("text", value) => format!("{key}={value}"),
            (_, "") => format!("\"{key}\":\""),
            (_, value) => format!("\"{key}\":\"{value}\""),
        };
        let said = create(name);
        assert_eq!(said.exit, 0, "{said:?}");
        let task = node.tasks(name).remove(0);
        let service = said.out.lines().next().unwrap_or_default().to_owned();
        let whose = [
            field("node_id", &id),
            field("service_id", &service),
            field("task_id", task["id"].as_str().unwrap()),
        ];
        let with = |what: &str| {
            let words: Vec<&str> = whose.iter().map(String::as_str).chain([what]).collect();
            lines(&node, &words)
        };
        assert_eq!(with("container started"), 1, "{format}: {whose:?}");
        assert_eq!(create(name).exit, 4);
        let call =
            [&field("node_id", &id), "call refused", "CreateService", &field("request_id", "")];
        assert_eq!(lines(&node, &call), 1, "{format}: {call:?}");
        node.ok(&["service", "rm", name]);
        assert_eq!(with("stopping container"), 1, "{format}");
        assert_eq!(with("container ended"), 1, "{format}");
    }
}
