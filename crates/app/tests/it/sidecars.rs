//! Init containers and sidecars, by the real binary.

use std::process::Command;

use serde_json::{Value, json};

use crate::node::{Node, until};

fn create(node: &Node, name: &str, flags: &[&str], script: &str) -> crate::node::Said {
    let mut args = vec!["service", "create", name, "--image", "bb:1", "--stop-signal", "KILL"];
    args.extend(flags);
    args.extend(["sh", "-c", script]);
    node.warren(&args)
}

fn inspect(node: &Node, task: &str) -> Value {
    node.json(&["task", "inspect", task]).remove(0)
}

fn container<'a>(task: &'a Value, name: &str) -> &'a Value {
    let all = task["containers"].as_array().unwrap();
    all.iter().find(|container| container["name"] == name).unwrap()
}

#[test]
fn host_a_task_of_several_containers() {
    let node = Node::with_image();
    // What the sidecar answers is heard on the task's own loopback.
    let proxy = "name=proxy,image=bb:1,stop-signal=KILL,\
                 cmd=\"sh -c 'echo up; while :; do echo hello | nc -l -p 9000; done'\",\
                 health-cmd=true,env=A=1";
    let said = create(
        &node,
        "web",
        &[
            "--init-container",
            "name=first,image=bb:1,cmd=\"sh -c 'echo one; hostname'\"",
            "--init-container",
            "name=second,image=bb:1,cmd=\"sh -c 'echo two; echo three > /out/file'\",mount=work:/out",
            "--mount",
            "type=task,name=work,target=/in,readonly",
            "--sidecar",
            proxy,
        ],
        "while :; do nc 127.0.0.1 9000 && break; sleep 0.05; done; sleep 1000",
    );
    assert_eq!(said.exit, 0, "{said:?}");
    until("it has heard from its sidecar", || {
        let said = node.ok(&["service", "logs", "web", "--container", "main"]);
        (said == "web.1 | hello\n").then_some(())
    });
    let logs = node.ok(&["service", "logs", "web", "--container", "first"]);
    let host = node.ok(&["exec", "web.1", "hostname"]);
    assert_eq!(logs, format!("web.1 first | one\nweb.1 first | {host}"));
    assert!(node.ok(&["service", "logs", "web"]).contains("web.1 second | two\n"));
    assert_eq!(node.ok(&["exec", "--container", "proxy", "web.1", "sh", "-c", "echo $A"]), "1\n");
    assert_eq!(node.ok(&["exec", "web.1", "cat", "/in/file"]), "three\n");
    assert_ne!(node.warren(&["exec", "web.1", "touch", "/in/file"]).exit, 0);
    let said = node.warren(&["exec", "--container", "nobody", "web.1", "true"]);
    assert_eq!(said.exit, 3, "{said:?}");
    assert!(said.err.contains("it has main, first, second, proxy"), "{said:?}");

    let before = inspect(&node, "web.1");
    assert_eq!(before["health"], "healthy");
    let first = container(&before, "first");
    assert_eq!((&first["state"], &first["exit_code"]), (&json!("exited"), &json!(0)));
    let pid = container(&before, "proxy")["pid"].as_u64().unwrap();
    let net = |pid: &Value| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    let ids = |pid: &Value| std::fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
    assert_eq!(net(&before["pid"]), net(&json!(pid)));
    assert_ne!(ids(&before["pid"]), ids(&json!(pid)));

    // One that dies is started again, and nothing else is.
    let killed = Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    assert!(killed.success());
    let pid_now = until("the sidecar runs again", || {
        let task = inspect(&node, "web.1");
        let proxy = container(&task, "proxy");
        let again = proxy["restarts"] == 1 && proxy["state"] == "running";
        assert_eq!((&task["pid"], &task["attempt"]), (&before["pid"], &json!(1)));
        again.then(|| proxy["pid"].as_u64().unwrap())
    });
    assert_ne!(pid, pid_now);

    // What is changed of a sidecar is rolled out as everything else.
    let spec = &node.json(&["service", "inspect", "web"])[0]["spec"];
    assert_eq!(spec["sidecars"][0]["name"], "proxy");
    node.ok(&["service", "update", "web", "--sidecar-rm", "proxy", "--init-container-rm", "first"]);
    let task = inspect(&node, "web.1");
    assert_ne!(task["id"], before["id"]);
    assert_eq!(task["containers"].as_array().unwrap().len(), 1);
    node.ok(&["service", "rm", "web"]);
    until("its folders are gone", || {
        let left = std::fs::read_dir(node.data_dir().join("shared")).unwrap();
        (left.count() == 0).then_some(())
    });
}

#[test]
fn host_inits_that_fail_and_jobs_that_end() {
    let node = Node::with_image();
    let said = create(
        &node,
        "bad",
        &[
            "--init-container",
            "name=migrate,image=bb:1,cmd=\"sh -c 'exit 3'\"",
            "--restart-condition",
            "none",
        ],
        "sleep 1000",
    );
    assert_eq!(said.exit, 1, "{said:?}");
    assert!(said.err.contains("init container `migrate` exited with 3"), "{said:?}");
    let all = node.ok(&["service", "ps", "bad", "--no-trunc"]);
    assert!(all.contains("init container `migrate` exited with 3"), "{all}");
    node.ok(&["service", "rm", "bad"]);

    let flags = [
        "--mode",
        "replicated-job",
        "--sidecar",
        "name=beside,image=bb:1,cmd=\"sleep 1000\",stop-signal=KILL",
    ];
    let said = create(&node, "sum", &flags, "exit 0");
    assert_eq!(said.exit, 0, "{said:?}");
    let task = node.tasks("sum").remove(0);
    assert_eq!((&task["state"], &task["exit_code"]), (&json!("complete"), &json!(0)));
    let task = inspect(&node, task["id"].as_str().unwrap());
    assert_eq!(container(&task, "beside")["state"], "exited");
    node.ok(&["service", "rm", "sum"]);
}

#[test]
fn host_a_daemon_that_dies_finds_all_containers() {
    let node = Node::with_image();
    let flags = [
        "--detach",
        "--init-container",
        "name=wait,image=bb:1,stop-signal=KILL,\
         cmd=\"sh -c 'until test -e /tmp/go; do sleep 0.05; done'\"",
        "--sidecar",
        "name=beside,image=bb:1,cmd=\"sleep 1000\",stop-signal=KILL",
    ];
    let said = create(&node, "web", &flags, "sleep 1000");
    assert_eq!(said.exit, 0, "{said:?}");
    let id = node.ok(&["service", "ps", "-q", "web"]).trim().to_owned();
    let wait = |what: &str, state: &str| {
        until(what, || {
            let task = inspect(&node, &id);
            (task["state"] == state).then_some(task)
        })
    };
    let pid = until("its init container runs", || {
        let task = inspect(&node, &id);
        let mut told = task["containers"].as_array()?.iter();
        let pid = told.find(|container| container["name"] == "wait")?["pid"].clone();
        pid.as_u64().is_some_and(|pid| pid > 0).then_some(pid)
    });
    let shown = node.ok(&["service", "ps", "web"]);
    assert!(shown.contains("starting (init wait 1/1)"), "{shown}");
    node.kill_daemon();
    node.ok(&["node", "run", "--detach"]);
    assert_eq!(container(&inspect(&node, &id), "wait")["pid"], pid);
    node.ok(&["exec", "--container", "wait", &id, "touch", "/tmp/go"]);
    let running = wait("it runs", "running");
    assert_eq!(running["attempt"], 1);
    node.kill_daemon();
    node.ok(&["node", "run", "--detach"]);
    let after = wait("it runs still", "running");
    assert_eq!(after["pid"], running["pid"]);
    assert_eq!(container(&after, "beside"), container(&running, "beside"));
    node.ok(&["service", "rm", "web"]);
}

#[test]
fn containers_that_make_no_sense_are_refused() {
    let node = Node::start();
    let refused = |flags: &[&str], expected: &str| {
        let said = create(&node, "web", flags, "exit 0");
        assert_eq!(said.exit, 2, "{said:?}");
        assert!(said.err.contains(expected), "{said:?}");
    };
    let proxy = "name=proxy,image=bb:1";
    refused(&["--sidecar", "name=proxy"], "proxy lacks image=REF");
    refused(&["--sidecar", "name=main,image=bb:1"], "is the name of the service's own container");
    refused(
        &["--sidecar", proxy, "--init-container", proxy],
        "--sidecar: \"proxy\" is the name of two containers of the service",
    );
    refused(&["--sidecar", "name=proxy,imagw=bb:1"], "did you mean image?");
    refused(
        &["--init-container", "name=a,image=bb:1,health-cmd=true"],
        "--init-container a: health: \"\" cannot be asked of what runs to its end",
    );
}
