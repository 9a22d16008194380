//! Commands before and after a deploy, by the real binary.

use serde_json::Value;

use crate::node::{Node, Said};

fn update(node: &Node, flags: &[&str]) -> Said {
    node.warren(&[&["service", "update", "web"], flags].concat())
}

fn hooks(node: &Node, name: &str) -> Vec<Value> {
    let mut all = node.json(&["service", "ps", "web"]);
    all.retain(|task| task["hook"] == name);
    all
}

fn replicas(node: &Node) -> Vec<(Value, Value)> {
    let mut tasks = node.tasks("web");
    tasks.retain(|task| task["hook"].is_null() && task["desired_state"] == "running");
    tasks.into_iter().map(|task| (task["id"].clone(), task["pid"].clone())).collect()
}

#[test]
fn host_hooks_run_before_and_after_a_deploy() {
    let node = Node::with_image();
    let create = "service create web --image bb:1 --replicas 2 --stop-signal KILL -e A=1";
    let mut args: Vec<&str> = create.split(' ').collect();
    args.extend([
        "--pre-deploy-cmd",
        "echo before $A",
        "--post-deploy-cmd",
        "[\"/bin/echo\",\"after\"]",
    ]);
    args.extend(["sleep", "3600"]);
    node.ok(&args);
    let logs = node.ok(&["service", "logs", "web"]);
    let said = |name: &str, text: &str| {
        let mut lines = logs.lines().filter_map(|line| line.split_once('|'));
        lines.any(|(of, line)| of.trim() == name && line.trim() == text)
    };
    assert!(said("web.pre-deploy", "before 1") && said("web.post-deploy", "after"), "{logs}");
    assert!(node.ok(&["service", "logs", "web.post-deploy"]).ends_with("after\n"));
    let logs = node.ok(&["service", "logs", "web.pre-deploy"]);
    assert!(logs.ends_with("before 1\n") && logs.lines().count() == 1, "{logs}");
    for hook in ["pre-deploy", "post-deploy"] {
        let tasks = hooks(&node, hook);
        assert_eq!(tasks.len(), 1, "{tasks:?}");
        assert_eq!((&tasks[0]["state"], &tasks[0]["exit_code"]), (&"complete".into(), &0.into()));
        assert_eq!(tasks[0]["name"], format!("web.{hook}"));
    }
    let before = replicas(&node);
    assert_eq!(before.len(), 2);

    // Neither for what restarts nothing.
    assert_eq!(update(&node, &["--replicas", "3"]).exit, 0);
    assert_eq!(hooks(&node, "pre-deploy").len(), 1);

    // One that fails leaves everything as it was.
    let before = replicas(&node);
    let said = update(&node, &["--env-add", "A=2", "--pre-deploy-cmd", "echo no; exit 7"]);
    assert_eq!(said.exit, 1, "{said:?}");
    assert!(said.err.contains("the update is paused: web.pre-deploy is failed"), "{said:?}");
    assert!(said.err.contains("exit code 7"), "{said:?}");
    assert_eq!(replicas(&node), before);
    let row = node.json(&["service", "ls"]).remove(0);
    assert_eq!(row["update_state"], "paused", "{row}");
    assert!(row["update_message"].as_str().unwrap().contains("exit code 7"), "{row}");
    let told = node.ok(&["explain", "service", "web"]);
    assert!(told.contains("exit code 7"), "{told}");

    // Mended, it goes on, and the one after runs once for it.
    node.ok(&["service", "update", "web", "-d", "--pre-deploy-cmd", "echo before $A"]);
    node.ok(&["service", "resume", "web"]);
    let after = replicas(&node);
    assert!(after.len() == 3 && after.iter().all(|task| !before.contains(task)), "{after:?}");
    let done = hooks(&node, "post-deploy");
    assert_eq!(done.iter().filter(|task| task["desired_state"] == "running").count(), 1);
    let logs = node.ok(&["service", "logs", "web"]);
    assert!(logs.contains("before 2"), "{logs}");

    // One after that fails, and goes back.
    let flags =
        ["--env-add", "A=3", "--post-deploy-cmd", "exit 8", "--update-failure-action", "rollback"];
    let said = update(&node, &flags);
    assert_eq!(said.exit, 1, "{said:?}");
    assert!(said.err.contains("web.post-deploy is failed"), "{said:?}");
    assert_eq!(node.json(&["service", "ls"])[0]["update_state"], "rolled_back");
    node.ok(&["service", "rm", "web"]);
    assert!(node.json(&["ps", "-a"]).is_empty());
}

#[test]
fn hooks_that_make_no_sense_are_refused() {
    let node = Node::start();
    let refused = |flags: &[&str], expected: &str| {
        let said = node.warren(&[&["service", "create", "x", "--image", "bb:1"], flags].concat());
        assert_eq!(said.exit, 2, "{said:?}");
        assert!(said.err.contains(expected), "{expected}\n{said:?}");
    };
    refused(&["--hook-timeout", "5s"], "--hook-timeout is of no use without a command");
    refused(
        &["--pre-deploy-cmd", "x", "--hook-timeout", "25h"],
        "--hook-timeout: \"1d1h\" is not between 1ms and 1d",
    );
    refused(
        &["--post-deploy-cmd", "[\"a\",1]"],
        "--post-deploy-cmd: \"[\\\"a\\\",1]\" is neither a line for a shell nor a JSON array",
    );
    refused(
        &["--mode", "global-job", "--pre-deploy-cmd", "x"],
        "--pre-deploy-cmd: \"/bin/sh\" is for services that go on",
    );
    refused(&["--param", "x"], "--param: \"x\" is for jobs, and the mode is replicated");
}
