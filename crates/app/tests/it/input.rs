//! Input that is wrong in ways that only a node can know, and what changes nothing.

use crate::node::{Node, until};

#[test]
fn host_bad_input_is_refused_and_changes_nothing() {
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
        "8080:80",
        "httpd",
        "-f",
        "-p",
        "80",
        "-h",
        "/www",
    ]);
    let _foreign = node.occupy(9999);
    let before = node.ok(&["service", "inspect", "web"]);
    let own = std::process::id().to_string();
    let base = ["service", "create", "x", "--image"];
    // Arguments behind `service create x --image`, exit code, a word that must be said.
    let table: &[(&[&str], i32, &str)] = &[
        (&["Not A Reference"], 2, "Not A Reference"),
        (&["127.0.0.1:1/none:1"], 1, "127.0.0.1:1"),
        (&["bb:1", "--user", "nosuchuser"], 2, "nosuchuser"),
        (&["bb:1", "no-such-command"], 2, "no-such-command"),
        (&["bb:1", "-w", "/etc/passwd", "true"], 2, "/etc/passwd"),
        (&["bb:1", "-p", "8080:80", "httpd"], 4, "web"),
        (&["bb:1", "-p", "9999:80", "httpd"], 4, &own),
        (&["bb:1", "-p", "99999:80"], 2, "99999"),
        (&["bb:1", "--limit-memory", "lots"], 2, "lots"),
        (&["bb:1", "--stop-grace-period", "5"], 2, "5"),
        (&["bb:1", "-e", "=x"], 2, "=x"),
    ];
    for (args, exit, word) in table {
        let mut line = base.to_vec();
        line.extend(*args);
        let said = node.warren(&line);
        assert!(said.exit == *exit && said.err.contains(word), "{args:?}: {said:?}");
        assert!(said.err.starts_with("error: ") || said.err.contains("\nerror: "), "{said:?}");
    }
    let said = node.warren(&[
        "service",
        "create",
        "web",
        "--image",
        "bb:1",
        "--stop-signal",
        "KILL",
        "true",
    ]);
    assert_eq!(said.exit, 4, "{said:?}");
    for line in [
        &["service", "rm", "none"][..],
        &["service", "update", "none", "--force"],
        &["service", "scale", "none=1"],
        &["service", "logs", "none"],
        &["exec", "web.9", "true"],
        &["image", "rm", "none:1"],
        &["wait", "service", "none"],
    ] {
        let said = node.warren(line);
        assert_eq!(said.exit, 3, "{line:?}: {said:?}");
    }
    assert_eq!(node.json(&["service", "ls"]).len(), 1);
    assert_eq!(node.ok(&["service", "inspect", "web"]), before);
    until("it still answers", || node.get("127.0.0.1:8080"));
}

#[test]
fn host_bad_archives_are_refused() {
    let node = Node::start();
    let garbage = node.data_dir().with_file_name("garbage.tar");
    std::fs::write(&garbage, vec![b'x'; 100_000]).unwrap();
    let path = garbage.to_str().unwrap();
    for line in [&["image", "import", path, "x:1"][..], &["image", "load", path]] {
        let said = node.warren(line);
        assert_eq!(said.exit, 2, "{line:?}: {said:?}");
    }
    let said = node.warren(&["image", "import", path, "Bad Name"]);
    assert!(said.exit == 2 && said.err.contains("Bad Name"), "{said:?}");
    let said = node.warren_with_input(&["image", "load"], b"short");
    assert_eq!(said.exit, 2, "{said:?}");
    assert!(node.json(&["image", "ls"]).is_empty());
}
