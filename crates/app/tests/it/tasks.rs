//! Single tasks, what is filled in, what an image says of its health, and who makes room for whom:
//! by the real binary.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::node::{Node, until};

const HEARS: &str = "trap 'echo hup >> /tmp/heard' HUP; while :; do sleep 0.05; done";

fn only(node: &Node, service: &str) -> Value {
    node.json(&["service", "ps", service, "--filter", "desired-state=running"]).remove(0)
}

#[test]
fn host_single_tasks() {
    let node = Node::with_image();
    node.ok(&[
        "service",
        "create",
        "web",
        "--image",
        "bb:1",
        "--stop-signal",
        "KILL",
        "--label",
        "team=shop",
        "--hostname",
        "web-{{.Task.Slot}}",
        "-e",
        "ME={{.Service.Name}}.{{.Task.Slot}} {{index .Service.Labels \"team\"}}",
        "sh",
        "-c",
        HEARS,
    ]);
    let said = node.ok(&["exec", "web.1", "sh", "-c", "echo $ME; hostname"]);
    assert_eq!(said, "web.1 shop\nweb-1\n");
    let said = node.warren(&["service", "update", "--env-add", "A={{.Task.Slt}}", "web"]);
    assert_eq!(said.exit, 2, "{}", said.err);
    assert!(said.err.contains("at 3: \".Task.Slt\" is not known"), "{}", said.err);

    node.ok(&["task", "signal", "web.1", "HUP"]);
    until("the signal is heard", || {
        let said = node.warren(&["exec", "web.1", "cat", "/tmp/heard"]);
        (said.out == "hup\n").then_some(())
    });
    let before = only(&node, "web");
    node.ok(&["task", "restart", "web.1"]);
    let again = only(&node, "web");
    assert_eq!((&before["id"], &before["address"]), (&again["id"], &again["address"]));
    assert_eq!((&before["attempt"], &again["attempt"]), (&json!(1), &json!(2)));
    assert_ne!(before["pid"], again["pid"]);

    let id = before["id"].as_str().unwrap();
    let said = node.warren(&["task", "stop", &id[..12]]);
    assert_eq!(said.exit, 0, "{}", said.err);
    assert!(said.err.contains("service web starts another in its place"), "{}", said.err);
    node.ok(&["wait", "service", "web"]);
    assert_ne!(only(&node, "web")["id"], before["id"]);
    assert_eq!(node.warren(&["task", "restart", id]).exit, 4);
    let audit = node.ok(&["audit"]);
    for action in ["task.signal", "task.restart", "task.stop"] {
        assert!(audit.contains(action), "{audit}");
    }
}

#[test]
fn host_who_comes_first() {
    let node = Node::with_image();
    let host = node.json(&["node", "ls"])[0]["hostname"].as_str().unwrap().to_owned();
    node.ok(&["node", "update", "--resource", "gpu=1", &host]);
    let create = |name: &str, more: &[&str]| {
        let begin = [
            "service",
            "create",
            name,
            "--image",
            "bb:1",
            "--stop-signal",
            "KILL",
            "--reserve",
            "gpu=1",
        ];
        node.ok(&[&begin[..], more, &["sleep", "1000"]].concat());
    };
    create("low", &[]);
    create("top", &["--priority", "5", "--preempt", "lower"]);
    assert_eq!(only(&node, "top")["state"], "running");
    let low = only(&node, "low");
    assert_eq!(low["state"], "pending", "{low}");
    let events = node.ok(&["events"]);
    assert!(events.contains("ended for top.1 of priority 5"), "{events}");
}

/// An archive as `docker save` writes it, of a folder that the busybox image is made of.
fn archive(node: &Node, health: &Value) -> String {
    let folder = node.folder();
    let layer = folder.join("rootfs.tar");
    let sum = Command::new("sha256sum").arg(&layer).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap().split(' ').next().unwrap().to_owned();
    let machine = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": machine, "os": "linux",
        "config": {"Cmd": ["sleep", "1000"], "Healthcheck": health},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{sum}")]},
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let manifest =
        json!([{"Config": "config.json", "RepoTags": ["checked:1"], "Layers": ["rootfs.tar"]}]);
    fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
    let archive = folder.join("image.tar");
    let made = Command::new("tar")
        .args(["-C", folder.to_str().unwrap(), "-cf", archive.to_str().unwrap()])
        .args(["manifest.json", "config.json", "rootfs.tar"])
        .status()
        .unwrap();
    assert!(made.success());
    archive.to_str().unwrap().to_owned()
}

#[test]
fn host_what_the_image_says_of_its_health() {
    let node = Node::with_image();
    let health = json!({"Test": ["CMD-SHELL", "test -e /tmp/ok"], "Interval": 1_000_000_000_u64});
    let archive = archive(&node, &health);
    node.ok(&["image", "load", &archive]);
    node.ok(&[
        "service",
        "create",
        "web",
        "--image",
        "checked:1",
        "--stop-signal",
        "KILL",
        "--detach",
    ]);
    until("it runs, and is not healthy", || {
        let task = only(&node, "web");
        (task["state"] == "running" && task["health"] == "starting").then_some(())
    });
    node.ok(&["exec", "web.1", "touch", "/tmp/ok"]);
    node.ok(&["wait", "service", "web"]);
    assert_eq!(only(&node, "web")["health"], "healthy");
    let health = &node.json(&["service", "inspect", "web"])[0]["spec"]["health"];
    assert_eq!((&health["origin"], &health["interval"]), (&json!("image"), &json!("1s")));
    node.ok(&["service", "update", "--no-healthcheck", "web"]);
    assert_eq!(only(&node, "web")["health"], "none");
}
