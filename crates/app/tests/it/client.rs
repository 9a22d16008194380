//! The command line where it meets the system: signals, terminals, names, pipes.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use crate::node::{Node, PATIENCE, WARREN, until};

/// The process that carries the command out, below `nsenter` (which becomes
/// `timeout`) and `timeout`.
fn below(parent: u32) -> Pid {
    until("the command runs", || {
        let children = format!("/proc/{parent}/task/{parent}/children");
        let text = std::fs::read_to_string(children).ok()?;
        let pid: i32 = text.split_whitespace().next()?.parse().ok()?;
        let exe = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        (exe == std::path::Path::new(WARREN)).then(|| Pid::from_raw(pid)).flatten()
    })
}

#[test]
fn host_interrupted_waiting_leaves_the_service() {
    let node = Node::with_image();
    node.ok(&[
        "service",
        "create",
        "loops",
        "--image",
        "bb:1",
        "--restart-delay",
        "60s",
        "--detach",
        "sh",
        "-c",
        "exit 3",
    ]);
    until("it waits to be started again", || {
        let task = node.json(&["service", "ps", "loops"]).remove(0);
        (task["state"] != "running" && task["exit_code"] == 3).then_some(())
    });
    let mut command = node.command(&["wait", "service", "loops"]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut err = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    err.read_line(&mut said).unwrap();
    kill_process(below(child.id()), Signal::INT).unwrap();
    err.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{said}");
    assert!(said.contains("stopped waiting; service loops stays"), "{said}");
    assert_eq!(node.json(&["service", "ls"]).len(), 1);
}

#[test]
fn host_interrupted_waiting_leaves_the_drain_going() {
    let node = Node::with_image();
    node.ok(&["service", "create", "web", "--image", "bb:1", "sleep", "3600"]);
    // There is nowhere to go, so it never ends.
    let id = node.id();
    let args = ["node", "update", &id, "--availability", "drain", "--wait"];
    let mut child = node.command(&args).stderr(Stdio::piped()).spawn().unwrap();
    let mut err = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    err.read_line(&mut said).unwrap();
    kill_process(below(child.id()), Signal::INT).unwrap();
    err.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{said}");
    assert!(said.contains("stopped waiting: ") && said.contains("1 task"), "{said}");
    assert!(said.contains("it goes on by itself; warren node ls shows how far it is"), "{said}");
    assert_eq!(node.json(&["node", "ls"])[0]["availability"], "drain");
}

#[test]
fn host_exec_gives_a_terminal() {
    let node = Node::with_image();
    node.ok(&[
        "service",
        "create",
        "idle",
        "--image",
        "bb:1",
        "--stop-signal",
        "KILL",
        "sleep",
        "1000",
    ]);
    let inner = "[ -t 0 ] && [ -t 1 ] && echo terminal; echo $TERMS; exit 5";
    let line = format!("{WARREN} exec -it -e TERMS=many idle sh -c '{inner}'");
    // `script` is the terminal: it gives the command one and passes its exit code on.
    let mut script = std::process::Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).stdin(Stdio::null());
    script.env("WARREN_RUN_DIR", node.run_dir()).env_remove("WARREN_SOCKET");
    let output = script.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("terminal\r\n") && text.contains("many\r\n"), "{text}");
    assert_eq!(output.status.code(), Some(5), "{text}");
    let said = node.warren(&["exec", "-it", "idle", "true"]);
    assert!(said.exit == 2 && said.err.contains("--tty"), "{said:?}");
}

#[test]
fn host_alias_and_pipes() {
    let node = Node::with_image();
    let alias = node.folder().join("wrn");
    std::os::unix::fs::symlink(WARREN, &alias).unwrap();
    let run = |shell: &str| {
        let mut command = std::process::Command::new("bash");
        command.args(["-o", "pipefail", "-c", shell]).env("WARREN_RUN_DIR", node.run_dir());
        command.env_remove("WARREN_SOCKET").output().unwrap()
    };
    let wrn = alias.display();
    let output = run(&format!("{wrn} version --format '{{{{.Version}}}}'"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{}\n", env!("CARGO_PKG_VERSION")));
    // A reader that has seen enough is no error, however much is left.
    for _ in 0..5 {
        let output = run(&format!("{wrn} completion bash | head -n 1"));
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output.stderr, b"", "{output:?}");
    }
}

#[test]
fn host_events_tell_what_happened() {
    let node = Node::with_image();
    let mut follow = node.command(&["events", "-f", "--format", "{{.Kind}} {{.Action}} {{.Name}}"]);
    let mut child = follow.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // What is made after the subscription is seen; before it, nobody knows.
    // The pipe stays open: a follower whose reader is gone ends.
    let seen = std::thread::spawn(move || {
        let last = lines.find(|l| l.as_deref().is_ok_and(|l| l.ends_with(" last")));
        (last, lines)
    });
    let start = std::time::Instant::now();
    let mut made = 0;
    while !seen.is_finished() {
        assert!(start.elapsed() < PATIENCE);
        let name = format!("s{made}");
        made += 1;
        node.ok(&["service", "create", &name, "--image", "bb:1", "--replicas", "0", "-d", "true"]);
        node.ok(&["service", "create", "last", "--image", "bb:1", "--replicas", "0", "-d", "true"]);
        node.ok(&["service", "rm", "last"]);
    }
    let (last, _lines) = seen.join().unwrap();
    assert!(last.is_some());
    kill_process(below(child.id()), Signal::INT).unwrap();
    assert!(child.wait().unwrap().success());
    let all = node.ok(&["events", "--format", "json"]);
    let events: Vec<serde_json::Value> =
        all.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(events.iter().any(|e| e["kind"] == "service" && e["name"] == "s0"), "{all}");
}

#[test]
fn host_systemd_is_told() {
    let node = Node::bare();
    let path = node.folder().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut child = node.command(&["cluster", "init"]).env("NOTIFY_SOCKET", &path).spawn().unwrap();
    let hear = || {
        let mut buffer = [0; 64];
        let n = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    };
    assert_eq!(hear(), "READY=1");
    assert_eq!(node.warren(&["node", "ls"]).exit, 0);
    node.ok(&["node", "stop"]);
    assert_eq!(hear(), "STOPPING=1");
    assert!(child.wait().unwrap().success());
}

#[test]
fn host_a_detached_start_that_fails_is_told() {
    let node = Node::bare();
    let deep = node.folder().join("x".repeat(120));
    let said = node.warren(&["cluster", "init", "--detach", "--run-dir", deep.to_str().unwrap()]);
    assert!(said.exit == 2 && said.err.contains("--run-dir"), "{said:?}");
    let file = node.folder().join("file");
    std::fs::write(&file, "").unwrap();
    let said = node.warren(&["cluster", "init", "--detach", "--data-dir", file.to_str().unwrap()]);
    assert!(said.exit == 1 && said.err.contains("file"), "{said:?}");
    let said = node.warren(&["cluster", "init", "--detach", "--log-level", "=x=y"]);
    assert!(said.exit == 2 && said.err.contains("--log-level"), "{said:?}");
    // What an interrupted init left is in nobody's way.
    node.ok(&["cluster", "init", "--detach"]);
}

#[test]
fn host_calls_survive_a_daemon_that_is_started_again() {
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
        "0",
        "-d",
        "true",
    ]);
    // Waits for what the killed daemon cannot give any more.
    let mut waiting = node.command(&[
        "service",
        "create",
        "slow",
        "--image",
        "bb:1",
        "--stop-signal",
        "KILL",
        "--restart-delay",
        "0s",
        "sleep",
        "1000",
    ]);
    let mut child = waiting.stderr(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut id = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut id).unwrap();
    node.kill_daemon();
    node.ok(&["node", "run", "--detach"]);
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(node.tasks("slow")[0]["state"], "running");
    assert_eq!(id.trim().len(), 16);
}
