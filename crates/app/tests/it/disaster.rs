//! Managers that are gone: for a while, or for good.

use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::node::{Node, until};

/// A file of the node's folder.
fn file(node: &Node, name: &str) -> String {
    node.folder().join(name).display().to_string()
}

#[test]
fn host_workers_find_a_restored_manager_elsewhere() {
    let one = Node::start();
    let two = one.beside(2);
    two.join(&one, "worker");
    let (key, backup) = (file(&one, "key"), file(&one, "backup"));
    let recipient = one.ok(&["cluster", "backup-key", &key]);
    one.ok(&["cluster", "backup", &backup, "--recipient", recipient.trim()]);
    one.kill_daemon();
    let three = one.beside(3);
    three.ok(&["cluster", "restore", &backup, "--key-file", &key]);
    three.ok(&["node", "run", "--detach"]);
    two.ok(&["node", "stop"]);
    let said = two.warren(&["node", "run", "--detach", "--managers", "0.0.0.0"]);
    assert!(said.exit == 2 && said.err.contains("--managers"), "{said:?}");
    two.ok(&["node", "run", "--detach", "--managers", &three.address()]);
    let id = two.id();
    let ready = || {
        let nodes = three.json(&["node", "ls"]);
        nodes.iter().any(|node| node["id"] == id.as_str() && node["status"] == "ready")
    };
    until("it is there", || ready().then_some(()));
    // It does so from now on.
    two.kill_daemon();
    until("it is missed", || (!ready()).then_some(()));
    two.ok(&["node", "run", "--detach"]);
    until("it is back", || ready().then_some(()));
}

#[test]
fn host_a_worker_leaves_in_time_when_no_manager_answers() {
    let one = Node::start();
    let two = one.beside(2);
    two.join(&one, "worker");
    // Its connections are taken and never answered.
    kill_process(one.pid().unwrap(), Signal::STOP).unwrap();
    let began = Instant::now();
    let said = two.warren(&["node", "leave", "--force"]);
    kill_process(one.pid().unwrap(), Signal::CONT).unwrap();
    assert!(said.exit == 0 && said.err.contains("no manager sees this node off"), "{said:?}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(!two.data_dir().join("node.json").exists());
}

#[test]
fn host_a_manager_alone_says_what_it_cannot_do() {
    let one = Node::start();
    let two = one.beside(2);
    two.join(&one, "manager");
    let id = two.id();
    until("two vote", || {
        let nodes = one.json(&["node", "ls"]);
        nodes.iter().any(|node| node["manager_status"] == "voter").then_some(())
    });
    two.kill_daemon();
    until("it is alone", || (one.admin("/ready")?.0 == 503).then_some(()));
    let (_, ready) = one.admin("/ready").unwrap();
    let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
    assert_eq!((&ready["ready"], &ready["raft"]["ok"]), (&false.into(), &false.into()));
    assert_eq!(ready["raft"]["voters"], 2);
    assert!(ready["raft"]["last"].as_u64().unwrap() > 0, "{ready}");
    let (key, backup) = (file(&one, "key"), file(&one, "backup"));
    let recipient = one.ok(&["cluster", "backup-key", &key]);
    let said = one.warren(&["cluster", "backup", &backup, "--recipient", recipient.trim()]);
    assert!(said.exit == 0 && said.err.contains("this is what this manager knew at"), "{said:?}");
    // Not twice, and not for long.
    let began = Instant::now();
    let said = one.warren(&["cluster", "key", "rotate"]);
    assert!(said.exit == 5 && said.err.contains("some managers keep their data keys"), "{said:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // Started again it knows what was decided, though nobody confirms it.
    one.kill_daemon();
    two.ok(&["node", "run", "--detach"]);
    let said = two.warren(&["cluster", "backup", &backup, "--recipient", recipient.trim()]);
    assert!(said.exit == 0 && said.err.contains("this is what this manager knew at"), "{said:?}");
    assert_eq!(two.id(), id);
}

#[test]
fn host_what_a_node_was_told_is_remembered() {
    let node = Node::bare();
    let run = |args: &[&str]| {
        let mut command = node.command(args);
        command.env_remove("WARREN_LISTEN");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}\n{}", node.log());
    };
    let address = || {
        let nodes = node.json(&["node", "ls"]);
        nodes[0]["address"].as_str().unwrap_or_default().to_owned()
    };
    let listen = ["--listen", "127.0.0.7:4000", "--advertise", "m1.example"];
    run(&[&["cluster", "init", "--detach"][..], &listen].concat());
    assert_eq!(address(), "m1.example:4000");
    run(&["node", "stop"]);
    run(&["node", "run", "--detach"]);
    assert_eq!(address(), "m1.example:4000");
    assert!(node.within(|| std::net::TcpStream::connect("127.0.0.7:4000").is_ok()));
    run(&["node", "stop"]);
    run(&["node", "run", "--detach", "--advertise", "10.9.9.9"]);
    until("it says so", || (address() == "10.9.9.9:4000").then_some(()));
}
