//! A service from `create` to `rm`, by the real binary.

use std::collections::BTreeSet;

use rustix::process::Pid;

use crate::node::{Node, kill_and_wait, until};

const PAGE: &str = "hostname > /www/index.html; exec httpd -f -p 80 -h /www";

/// `n` distinct answers at the port.
fn all_answer(node: &Node, address: &str, n: usize) {
    let mut seen = BTreeSet::new();
    until("every replica answered", || {
        seen.extend(node.get(address));
        (seen.len() == n).then_some(())
    });
}

#[test]
fn host_service_from_create_to_rm() {
    let node = Node::with_image();
    let clean = node.footprint();
    let id = node.ok(&[
        "service",
        "create",
        "web",
        "--image",
        "bb:1",
        "--stop-signal",
        "KILL",
        "--replicas",
        "3",
        "-p",
        "8080:80",
        "-e",
        "COLOR=blue",
        "--restart-delay",
        "0s",
        "sh",
        "-c",
        PAGE,
    ]);
    assert_eq!(id.trim().len(), 16);
    let services = node.json(&["service", "ls"]);
    assert_eq!(services[0]["running"], 3);
    assert_eq!(services[0]["ports"][0], "8080:80");
    all_answer(&node, "127.0.0.1:8080", 3);

    assert_eq!(
        node.ok(&["exec", "web.2", "sh", "-c", "echo $COLOR; hostname"]).lines().next(),
        Some("blue")
    );
    let said = node.warren(&["exec", "web.1", "sh", "-c", "echo oops >&2; exit 42"]);
    assert_eq!((said.exit, said.err.as_str()), (42, "oops\n"));
    let said = node.warren_with_input(&["exec", "-i", "web.1", "cat"], &vec![b'x'; 300_000]);
    assert_eq!((said.exit, said.out.len()), (0, 300_000));

    node.ok(&["service", "scale", "web=5"]);
    assert_eq!(node.tasks("web").len(), 5);
    all_answer(&node, "127.0.0.1:8080", 5);
    node.ok(&["service", "scale", "web=2"]);

    node.ok(&["service", "update", "web", "--env-add", "COLOR=red"]);
    assert_eq!(node.ok(&["exec", "web.1", "sh", "-c", "echo $COLOR"]), "red\n");
    let before: Vec<_> = node.tasks("web").iter().map(|t| t["pid"].clone()).collect();
    node.ok(&["service", "restart", "web"]);
    let after: Vec<_> = node.tasks("web").iter().map(|t| t["pid"].clone()).collect();
    assert!(before.iter().all(|pid| !after.contains(pid)), "{before:?} {after:?}");
    all_answer(&node, "127.0.0.1:8080", 2);

    node.ok(&["service", "rm", "web"]);
    assert!(node.json(&["service", "ls"]).is_empty());
    // But the group that the containers of a node share, which stays as long as the node.
    let of_containers = |mut footprint: std::collections::BTreeMap<_, _>| {
        footprint.remove("cgroups of the node");
        footprint
    };
    let clean = of_containers(clean);
    until("nothing is left", || (of_containers(node.footprint()) == clean).then_some(()));
    assert!(node.get("127.0.0.1:8080").is_none());
}

#[test]
fn host_killed_container_is_healed() {
    let node = Node::with_image();
    node.ok(&[
        "service",
        "create",
        "web",
        "--image",
        "bb:1",
        "--stop-signal",
        "KILL",
        "-p",
        "127.0.0.1:8080:80",
        "--restart-delay",
        "0s",
        "sh",
        "-c",
        PAGE,
    ]);
    let old = node.tasks("web")[0].clone();
    let pid = Pid::from_raw(i32::try_from(old["pid"].as_i64().unwrap()).unwrap()).unwrap();
    kill_and_wait(pid);
    let new = until("the container runs again", || {
        let task = node.tasks("web").remove(0);
        (task["state"] == "running" && task["pid"] != old["pid"]).then_some(task)
    });
    assert_eq!((&new["id"], &new["attempt"], &new["restarts"]), (&old["id"], &2.into(), &1.into()));
    assert_eq!(new["exit_code"], 137);
    until("it answers", || node.get("127.0.0.1:8080"));
}

#[test]
fn host_logs_are_kept_and_told_apart() {
    let node = Node::with_image();
    node.ok(&[
        "service",
        "create",
        "talk",
        "--image",
        "bb:1",
        "--stop-signal",
        "KILL",
        "--replicas",
        "2",
        "sh",
        "-c",
        "echo out; echo err >&2; exec sleep 1000",
    ]);
    let said = until("both have spoken", || {
        let said = node.warren(&["service", "logs", "talk"]);
        (said.out.lines().count() == 2 && said.err.lines().count() == 2).then_some(said)
    });
    let mut lines: Vec<&str> = said.out.lines().chain(said.err.lines()).collect();
    lines.sort_unstable();
    assert_eq!(lines, ["talk.1 | err", "talk.1 | out", "talk.2 | err", "talk.2 | out"]);
    let last = node.warren(&["service", "logs", "talk.2", "--tail", "1", "--timestamps", "--raw"]);
    let last = last.out + &last.err;
    assert!(last.lines().count() == 1 && last.contains("Z "), "{last}");
    assert_eq!(node.ok(&["service", "logs", "talk", "--since", "2100-01-01"]), "");
}

#[test]
fn host_exit_codes_of_ended_tasks_are_true() {
    let node = Node::with_image();
    // It may well be seen running before it ends.
    node.warren(&[
        "service",
        "create",
        "once",
        "--image",
        "bb:1",
        "--restart-condition",
        "none",
        "sh",
        "-c",
        "exit 7",
    ]);
    let task = until("the task has ended", || {
        let task = node.json(&["service", "ps", "once"]).remove(0);
        (task["state"] == "failed").then_some(task)
    });
    assert_eq!(task["exit_code"], 7);
}

#[test]
fn host_what_ends_at_once_has_not_converged() {
    let node = Node::with_image();
    let create = |name: &str, more: &[&str]| {
        let mut args = vec!["service", "create", name, "--image", "bb:1", "--restart-delay", "0s"];
        args.extend(more);
        node.warren(&args)
    };
    let said = create("ends", &["--restart-max-attempts", "1", "sh", "-c", "exit 3"]);
    assert!(said.exit == 1 && said.err.contains("will not converge"), "{said:?}");
    assert!(said.err.contains("exit code 3"), "{said:?}");
    // A job that has done its work has.
    let said = create("done", &["--restart-condition", "none", "true"]);
    assert_eq!(said.exit, 0, "{said:?}");
}
