//! Several nodes on one host, which share its network: on 127.0.0.x each.

use std::io::{Read, Write};

use crate::node::{Node, until};

/// What `node ls` of `of` says of node `id`.
fn seen(of: &Node, id: &str, key: &str) -> Option<String> {
    let nodes = of.json(&["node", "ls"]);
    let node = nodes.iter().find(|node| node["id"] == id)?;
    Some(node[key].as_str().unwrap_or_default().to_owned())
}

#[test]
fn host_workers_join_and_leave() {
    let one = Node::start();
    let two = one.beside(2);
    two.join(&one, "worker");
    let id = two.id();
    assert_eq!(seen(&one, &id, "status").as_deref(), Some("ready"));
    assert_eq!(seen(&one, &id, "role").as_deref(), Some("worker"));
    assert_eq!(seen(&one, &id, "address"), Some(two.address()));
    // What only managers know is asked there.
    let said = two.warren(&["service", "ls"]);
    assert!(said.exit == 1 && said.err.contains("this node is a worker"), "{said:?}");
    let said = two.warren(&["events"]);
    assert!(said.exit == 1 && said.err.contains("this node is a worker"), "{said:?}");
    let said = two.warren(&["cluster", "info"]);
    assert!(said.out.contains(&format!("manager addresses: {}\n", one.address())), "{said:?}");
    assert!(said.out.contains("nodes: \n"), "what it does not know is not zero: {said:?}");
    two.ok(&["node", "log-level", "debug"]);
    assert!(two.log().contains("log level changed"), "{}", two.log());
    // Images are each node's own.
    assert_eq!(two.ok(&["image", "ls", "-q"]), "");
    // Nobody sees the token that let it in, and its data folder does not hold it.
    let token = one.ok(&["cluster", "token", "worker", "-q"]);
    let pid = two.pid().unwrap().as_raw_nonzero();
    for file in ["cmdline", "environ"] {
        let seen = std::fs::read(format!("/proc/{pid}/{file}")).unwrap();
        assert!(!String::from_utf8_lossy(&seen).contains(token.trim()), "{file}");
    }
    assert!(!two.log().contains(token.trim()));
    // Each has a tunnel to the other.
    for node in [&one, &two] {
        until("there is a tunnel", || {
            let (_, metrics) = node.admin("/metrics")?;
            let lines = ["warren_dataplane_carries 1\n", "warren_dataplane_peers 1\n"];
            lines.iter().all(|line| metrics.contains(line)).then_some(())
        });
    }
    // It is there again after it was killed, with its manager and without.
    two.kill_daemon();
    two.ok(&["node", "run", "--detach"]);
    until("it is ready again", || (seen(&one, &id, "status")? == "ready").then_some(()));
    two.kill_daemon();
    one.kill_daemon();
    two.ok(&["node", "run", "--detach"]);
    let (status, body) = two.admin("/ready").unwrap();
    assert!(status == 503 && body.contains("no manager"), "{body}");
    one.ok(&["node", "run", "--detach"]);
    until("it has a manager again", || (two.admin("/ready")?.0 == 200).then_some(()));
    two.ok(&["node", "leave"]);
    assert_eq!(seen(&one, &id, "status"), None);
    assert!(two.pid().is_none());
    for gone in ["node.json", "node.key", "certificate", "tunnel", "agent", "store"] {
        assert!(!two.data_dir().join(gone).exists(), "{gone} is there");
    }
    // The same folder may join again, as another node.
    two.join(&one, "worker");
    assert_ne!(two.id(), id);
}

#[test]
fn host_tokens_are_asked_for() {
    let one = Node::start();
    let two = one.beside(2);
    let worker = one.ok(&["cluster", "token", "worker", "-q"]).trim().to_owned();
    let refuse = |token: &str, addresses: &str, exit: i32, words: &str| {
        let said = two.join_with(token, addresses);
        assert!(said.exit == exit && said.err.contains(words), "{said:?}");
        assert!(!two.data_dir().join("node.json").exists());
    };
    refuse("hello", &one.address(), 2, "no join token");
    refuse(&worker[..worker.len() - 3], &one.address(), 2, "cut off");
    refuse("", &one.address(), 2, "a token is needed");
    refuse(&worker, "0.0.0.0", 2, "nobody can connect to 0.0.0.0");
    // Nobody there.
    refuse(&worker, "127.0.0.9:2377", 5, "127.0.0.9:2377: Connection refused");
    // Another secret, another cluster.
    let last = if worker.ends_with('a') { 'e' } else { 'a' };
    let wrong = format!("{}{last}", &worker[..worker.len() - 1]);
    refuse(&wrong, &one.address(), 1, "the join token is not valid");
    let other = Node::start();
    let foreign = other.ok(&["cluster", "token", "worker", "-q"]);
    refuse(foreign.trim(), &one.address(), 1, "no manager lets this node join");
    // Replaced, and over.
    let next = one.ok(&["cluster", "token", "worker", "-q", "--rotate"]);
    refuse(&worker, &one.address(), 1, "the join token is not valid");
    let short = one.ok(&["cluster", "token", "worker", "-q", "--rotate", "--expires", "1ms"]);
    refuse(short.trim(), &one.address(), 1, "expired");
    refuse(next.trim(), &one.address(), 1, "not valid");
    // A manager that does not answer is passed over.
    let good = one.ok(&["cluster", "token", "worker", "-q", "--rotate"]);
    let said = two.join_with(good.trim(), &format!("127.0.0.9,{}", one.address()));
    assert_eq!(said.exit, 0, "{said:?}");
    let (_, metrics) = one.admin("/metrics").unwrap();
    assert!(metrics.contains("joins_total{result=\"expired_token\"} 1"), "{metrics}");
}

#[test]
fn host_managers_join_lead_and_step_back() {
    let one = Node::start();
    let (two, three) = (one.beside(2), one.beside(3));
    two.join(&one, "manager");
    three.join(&one, "worker");
    let (second, third) = (two.id(), three.id());
    one.ok(&["node", "promote", &third]);
    until("three vote", || {
        let voters = ["voter", "leader"];
        let votes = |id: &str| Some(voters.contains(&seen(&two, id, "manager_status")?.as_str()));
        (votes(&second)? && votes(&third)?).then_some(())
    });
    until("it serves as a manager", || (three.warren(&["node", "ls"]).exit == 0).then_some(()));
    // One that does not lead lets others in as well.
    let leads =
        |of: &str| one.json(&["node", "ls"]).iter().any(|n| n["id"] == of && n["leader"] == true);
    let follower = if leads(&second) { &one } else { &two };
    let four = one.beside(4);
    four.join(follower, "worker");
    let fourth = four.id();
    until("the guest is heard of", || (seen(&one, &fourth, "status")? == "ready").then_some(()));
    four.ok(&["node", "leave"]);
    // The leader goes; what any manager is asked for is done.
    one.kill_daemon();
    three.ok(&["node", "update", &second, "--label-add", "a=b"]);
    let two_seen = two.ok(&["node", "inspect", "self", "--format", "{{.Labels.a}}"]);
    assert_eq!(two_seen, "b\n");
    one.ok(&["node", "run", "--detach"]);
    until("it is back", || (one.json(&["node", "ls"]).len() == 3).then_some(()));
    // Back to a worker: its store is gone, and it runs on.
    two.ok(&["node", "demote", &third]);
    until("it is a worker", || (!three.data_dir().join("store").exists()).then_some(()));
    until("it is heard of", || (seen(&one, &third, "status")? == "ready").then_some(()));
    assert_eq!(seen(&one, &third, "role").as_deref(), Some("worker"));
    // Without a majority reads are marked and writes end in time.
    two.kill_daemon();
    until("it is told to be old", || {
        let said = one.warren(&["node", "ls"]);
        (said.exit == 0 && said.err.contains("no leader")).then_some(())
    });
    let began = std::time::Instant::now();
    let said = one.warren(&["node", "update", &third, "--availability", "drain"]);
    assert!(said.exit == 5 && began.elapsed().as_secs() < 6, "{said:?}");
    assert_eq!(one.admin("/ready").unwrap().0, 503);
    two.ok(&["node", "run", "--detach"]);
    until("there is a leader again", || (one.admin("/ready")?.0 == 200).then_some(()));
    // Removed by others: it ends, and what made it a node is gone.
    one.ok(&["node", "rm", "--force", &third]);
    until("its daemon has ended", || three.pid().is_none().then_some(()));
    assert!(three.log().contains("removed from the cluster"), "{}", three.log());
    assert!(!three.data_dir().join("node.json").exists());
}

#[test]
fn host_locked_managers_wait_for_the_key() {
    let node = Node::start();
    let key = node.ok(&["cluster", "lock", "-q"]);
    let file = || std::fs::read_to_string(node.data_dir().join("node.key")).unwrap();
    until("the key file is locked", || file().starts_with("warren-locked-1").then_some(()));
    node.kill_daemon();
    let said = node.warren(&["node", "run", "--detach"]);
    assert!(said.exit == 0 && said.err.contains("cluster unlock"), "{said:?}");
    let began = std::time::Instant::now();
    let said = node.warren(&["node", "ls"]);
    assert!(said.exit == 5 && said.err.contains("locked"), "{said:?}");
    assert!(began.elapsed().as_secs() < 3, "{:?}", began.elapsed());
    assert_eq!(node.warren_with_input(&["cluster", "unlock"], b"WRNKEY-AAAA\n").exit, 2);
    assert_eq!(node.warren_with_input(&["cluster", "unlock"], key.as_bytes()).exit, 0);
    until("it is open", || (node.warren(&["node", "ls"]).exit == 0).then_some(()));
    node.ok(&["cluster", "lock", "--off"]);
    until("the key file is open", || file().starts_with("warren-key-1").then_some(()));
}

#[test]
fn host_a_lock_is_not_undone_by_an_older_snapshot() {
    let one = Node::start();
    let two = one.beside(2);
    two.join(&one, "manager");
    let id = two.id();
    until("two vote", || (seen(&one, &id, "manager_status")? == "voter").then_some(()));
    // Both have a snapshot that knows of no lock.
    one.ok(&["cluster", "key", "rotate"]);
    let key = one.ok(&["cluster", "lock", "-q"]);
    let locked = |node: &Node| {
        let text = std::fs::read_to_string(node.data_dir().join("node.key")).unwrap();
        text.starts_with("warren-locked-1")
    };
    until("both are locked", || (locked(&one) && locked(&two)).then_some(()));
    for node in [&one, &two] {
        node.kill_daemon();
    }
    let open = |node: &Node| {
        node.ok(&["node", "run", "--detach"]);
        assert_eq!(node.warren_with_input(&["cluster", "unlock"], key.as_bytes()).exit, 0);
    };
    open(&one);
    until("it waits", || one.log().contains("stays locked until").then_some(()));
    assert!(locked(&one));
    open(&two);
    until("they go on", || (one.admin("/ready")?.0 == 200).then_some(()));
    assert!(locked(&one) && locked(&two));
    one.ok(&["cluster", "lock", "--off"]);
    until("both are open", || (!locked(&one) && !locked(&two)).then_some(()));
}

#[test]
fn host_backups_are_restored_and_survivors_recover() {
    let one = Node::start();
    let two = one.beside(2);
    two.join(&one, "manager");
    one.ok(&["node", "update", &one.id(), "--label-add", "kept=yes"]);
    let (key, backup) = (one.folder().join("key"), one.folder().join("backup"));
    let recipient = one.ok(&["cluster", "backup-key", key.to_str().unwrap()]);
    let backup = backup.to_str().unwrap();
    one.ok(&["cluster", "backup", backup, "--recipient", recipient.trim()]);
    // Half of the managers is no majority.
    two.kill_daemon();
    one.kill_daemon();
    let said = one.warren(&["cluster", "recover"]);
    assert!(said.exit == 2 && said.err.contains("--yes"), "{said:?}");
    one.ok(&["cluster", "recover", "--yes"]);
    one.ok(&["node", "run", "--detach"]);
    let labels = one.ok(&["node", "inspect", "self", "--format", "{{.Labels.kept}}"]);
    assert_eq!(labels, "yes\n");
    // The other one comes back as a worker.
    two.ok(&["node", "run", "--detach"]);
    until("it is a worker", || (!two.data_dir().join("store").exists()).then_some(()));
    // Elsewhere, from the backup alone.
    let other = Node::bare();
    let wrong = other.folder().join("wrong");
    std::fs::write(&wrong, "not the passphrase").unwrap();
    let refused =
        other.warren(&["cluster", "restore", backup, "--passphrase-file", wrong.to_str().unwrap()]);
    assert_eq!(refused.exit, 2, "{refused:?}");
    other.ok(&["cluster", "restore", backup, "--key-file", key.to_str().unwrap()]);
    other.ok(&["node", "run", "--detach"]);
    let nodes = other.json(&["node", "ls"]);
    assert_eq!(nodes.len(), 3, "{nodes:?}");
    assert!(nodes.iter().any(|node| node["labels"]["kept"] == "yes"), "{nodes:?}");
    let said = other.warren(&["cluster", "restore", backup, "--key-file", key.to_str().unwrap()]);
    assert_eq!(said.exit, 4, "{said:?}");
}

#[test]
fn host_operators_call_from_afar() {
    let one = Node::start();
    let home = one.folder().join("home");
    let call = |args: &[&str]| {
        let mut command = one.command(args);
        command.env("XDG_CONFIG_HOME", &home).env("WARREN_RUN_DIR", one.folder().join("none"));
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let file = one.folder().join("anna.json");
    let file = file.to_str().unwrap();
    one.ok(&["operator", "create", "anna", "--role", "read", "--context-file", file]);
    one.ok(&[
        "operator",
        "create",
        "boss",
        "--role",
        "admin",
        "--certificate",
        "--context-file",
        &format!("{file}.2"),
    ]);
    assert_eq!(call(&["context", "create", "anna", "--from", file]).0, 0);
    assert_eq!(call(&["context", "create", "boss", "--from", &format!("{file}.2")]).0, 0);
    assert_eq!(call(&["node", "ls"]).0, 5, "nothing is current yet");
    assert_eq!(call(&["context", "use", "anna"]).0, 0);
    assert_eq!(call(&["node", "ls"]).0, 0);
    let (exit, err) = call(&["node", "update", &one.id(), "--availability", "pause"]);
    assert!(exit == 1 && err.contains("may not call"), "{err}");
    let update = ["--context", "boss", "node", "update", &one.id(), "--availability", "pause"];
    assert_eq!(call(&update).0, 0);
    let audit = one.json(&["audit"]);
    let done = audit.iter().any(|r| r["principal"] == "operator:boss" && r["object"] != "");
    assert!(done, "{audit:?}");
    one.ok(&["operator", "rm", "anna"]);
    let (exit, err) = call(&["node", "ls"]);
    assert!(exit == 1 && err.contains("not one of this cluster"), "{err}");
}

#[test]
fn host_strangers_at_the_port_are_closed_and_counted() {
    let node = Node::start();
    let mut plain = node.connect();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut rest = Vec::new();
    // An alert, or nothing: never an answer to what was asked.
    let _ = plain.read_to_end(&mut rest);
    assert!(!rest.starts_with(b"HTTP"));
    let mut silent = node.connect();
    let _ = silent.read_to_end(&mut rest);
    let (status, metrics) = node.admin("/metrics").unwrap();
    assert_eq!(status, 200);
    for reason in ["tls", "late"] {
        let line = format!("warren_connections_refused_total{{reason=\"{reason}\"}} 1");
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
    }
    assert_eq!(node.admin("/health").unwrap().0, 200);
    let (status, ready) = node.admin("/ready").unwrap();
    assert_eq!(status, 200, "{ready}");
    // Two nodes on one address: the second one says so.
    let two = node.beside(1);
    let said = two.warren(&["cluster", "init", "--detach"]);
    assert!(said.exit == 4 && said.err.contains("in use"), "{said:?}");
}

#[test]
fn host_a_node_of_before_there_were_others_gets_what_it_lacks() {
    let one = Node::start();
    one.ok(&["node", "stop"]);
    // As if it had been made by a version without certificates.
    std::fs::remove_file(one.data_dir().join("certificate")).unwrap();
    one.ok(&["node", "run", "--detach"]);
    let two = one.beside(2);
    two.join(&one, "worker");
    assert_eq!(one.json(&["node", "ls"]).len(), 2);
}
