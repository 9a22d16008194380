//! Devices that tasks are given, and what holds for services that say nothing: by the real binary.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use crate::node::{Node, until};

const THING: &str = "test.example/thing";

/// The file of one device: this machine's TUN device under another name.
fn specification(node: &Node, name: &str) -> String {
    let kit = node.folder().join("kit");
    fs::write(&kit, "tools\n").unwrap();
    format!(
        "---\ncdiVersion: 0.6.0\nkind: {THING}\ndevices:\n- name: \"{name}\"\n  containerEdits:\n    \
         env:\n    - THING={name}\n    deviceNodes:\n    - path: /dev/things/one\n      hostPath: \
         /dev/net/tun\n      fileMode: 0600\ncontainerEdits:\n  mounts:\n  - hostPath: {}\n    \
         containerPath: /opt/kit\n    options: [ro, bind]\n",
        kit.display()
    )
}

#[test]
fn host_devices_are_given_to_one_task_each() {
    let node = Node::with_image();
    let folder = node.folder().join("cdi");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("a.yaml"), specification(&node, "a")).unwrap();
    fs::write(folder.join("b.yaml"), specification(&node, "b")).unwrap();
    fs::write(folder.join("broken.json"), "{").unwrap();
    until("the devices are told", || {
        let devices = node.json(&["node", "inspect", "self"])[0]["devices"][THING].clone();
        (devices == json!(["a", "b"])).then_some(())
    });
    assert!(node.log().contains("broken.json"), "{}", node.log());
    let reserve = format!("{THING}=1");
    node.ok(&[
        "service",
        "create",
        "ml",
        "--image",
        "bb:1",
        "--replicas",
        "3",
        "--reserve",
        &reserve,
        "--stop-signal",
        "KILL",
        "--detach",
        "sleep",
        "1000",
    ]);
    let up = until("two run", || {
        let mut tasks = node.tasks("ml");
        tasks.retain(|task| task["state"] == "running");
        (tasks.len() == 2).then_some(tasks)
    });
    let mut given = BTreeSet::new();
    for task in &up {
        let slot = format!("ml.{}", task["slot"]);
        let script = "echo $THING; cat /opt/kit; stat -c %a /dev/things/one; \
                      exec 3<>/dev/things/one && echo opened; echo > /opt/kit || echo locked";
        let said = node.warren(&["exec", &slot, "sh", "-c", script]);
        let name = said.out.lines().next().unwrap_or_default().to_owned();
        assert_eq!(said.out, format!("{name}\ntools\n600\nopened\nlocked\n"), "{}", said.err);
        assert_eq!(task["devices"], json!([format!("{THING}={name}")]));
        given.insert(name);
    }
    assert_eq!(given, ["a".to_owned(), "b".to_owned()].into());
    let waits = node.tasks("ml").into_iter().find(|task| task["state"] == "pending").unwrap();
    let error = waits["error"].as_str().unwrap();
    assert_eq!(error, format!("no node fits: 1 short of {THING} (needs 1)"));
    // One that vanishes is left to its task, and given to nobody.
    fs::remove_file(folder.join("b.yaml")).unwrap();
    let b = format!("{THING}=b");
    let holder = up.iter().find(|task| task["devices"] == json!([b])).unwrap();
    let slot = format!("ml.{}", holder["slot"]);
    until("it is told that it is gone", || {
        let told = node.ok(&["explain", "task", &slot]);
        told.contains(&format!("is running on {}", node_name(&node))).then_some(())?;
        told.contains(&format!("its device {b} is gone from")).then_some(())
    });
}

fn node_name(node: &Node) -> String {
    node.json(&["node", "ls"])[0]["hostname"].as_str().unwrap().to_owned()
}

#[test]
fn host_who_says_nothing_has_the_defaults() {
    let node = Node::with_image();
    let set = |flags: &[&str]| node.warren(&[&["cluster", "update"], flags].concat());
    let said = set(&["--default-reserve-memory", "64MiB", "--default-limit-memory", "32MiB"]);
    assert_eq!(said.exit, 2, "{}", said.err);
    assert!(said.err.contains("32MiB is less than the 64MiB"), "{}", said.err);
    let said = set(&["--default-reserve-memory", "8MiB", "--default-limit-memory", "48MiB"]);
    assert_eq!(said.exit, 0, "{}", said.err);
    let create = |name: &str, more: &[&str]| {
        let begin = ["service", "create", name, "--image", "bb:1", "--stop-signal", "KILL"];
        node.ok(&[&begin[..], more, &["sleep", "1000"]].concat());
    };
    create("web", &[]);
    let limit = "cat /sys/fs/cgroup/memory.max 2>/dev/null || \
                 cat /sys/fs/cgroup/memory/memory.limit_in_bytes";
    assert_eq!(node.ok(&["exec", "web.1", "sh", "-c", limit]), "50331648\n");
    let inspected = || node.json(&["node", "inspect", "self"]).remove(0);
    assert_eq!(inspected()["reserved"]["memory_bytes"], 8 << 20);
    // A change restarts nothing, and counts at once.
    let before: Value = node.tasks("web").remove(0);
    assert_eq!(set(&["--default-reserve-memory", "1TiB", "--default-limit-memory", "0"]).exit, 0);
    create("late", &["--detach"]);
    until("it waits", || (node.tasks("late")[0]["state"] == "pending").then_some(()));
    let told = node.ok(&["explain", "service", "late"]);
    assert!(told.contains("needs 1TiB memory (default of the cluster)"), "{told}");
    node.ok(&["node", "update", "--default-reserve-memory", "4MiB", &node_name(&node)]);
    node.ok(&["wait", "service", "late"]);
    let after = node.tasks("web").remove(0);
    assert_eq!((&before["id"], &before["attempt"]), (&after["id"], &after["attempt"]));
    assert_eq!(inspected()["defaults"]["reserve_memory_bytes"], 4 << 20);
    let limit = node.ok(&["exec", "late.1", "sh", "-c", limit]);
    assert_ne!(limit, "50331648\n", "there is no default limit any more");
}
