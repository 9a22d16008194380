//! Input that is wrong in ways that only a node can know, and what changes nothing.

use std::path::Path;
use std::process::Command;

use crate::node::{Node, WARREN, until};
use crate::registry::{Registry, layer};

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
        (&["bb:1", "-p", "198.51.100.1:80:80", "httpd"], 2, "198.51.100.1"),
        (&["bb:1", "-p", "99999:80"], 2, "99999"),
        (&["bb:1", "--limit-memory", "lots"], 2, "lots"),
        (&["bb:1", "--limit-memory", "5MiB"], 2, "--limit-memory"),
        (&["bb:1", "--stop-grace-period", "5"], 2, "5"),
        (&["bb:1", "-e", "=x"], 2, "=x"),
    ];
    for (args, exit, word) in table {
        let mut line = base.to_vec();
        line.extend(*args);
        let said = node.warren(&line);
        assert!(said.exit == *exit && said.err.contains(word), "{args:?}: {said:?}");
        assert!(said.err.starts_with("error: ") || said.err.contains("\nerror: "), "{said:?}");
        assert_eq!(said.out, "", "{args:?}");
    }
    let table: &[(&[&str], i32, &str)] = &[
        (&["--image", "127.0.0.1:1/none:1"], 1, "127.0.0.1:1"),
        (&["--user", "nosuchuser"], 2, "nosuchuser"),
        (&["--publish-add", "9999:80"], 4, &own),
        (&["--limit-memory", "-5"], 2, "--limit-memory"),
        (&["--replica", "2"], 2, "--replicas"),
    ];
    for (args, exit, word) in table {
        let mut line = vec!["service", "update", "web"];
        line.extend(*args);
        let said = node.warren(&line);
        assert!(said.exit == *exit && said.err.contains(word), "{args:?}: {said:?}");
        assert_eq!(said.out, "", "{args:?}");
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
        &["service", "rm", "web", "none"],
        &["service", "logs", "none"],
        &["service", "logs", "web.9"],
        &["exec", "none", "true"],
        &["exec", "web.9", "true"],
        &["registry", "logout", "registry.invalid"],
        &["image", "rm", "none:1"],
        &["wait", "service", "none"],
    ] {
        let said = node.warren(line);
        assert!(said.exit == 3 && said.out.is_empty(), "{line:?}: {said:?}");
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
    let said = node.warren(&["image", "import", path, "x:1", "--user", "a:b:c"]);
    assert!(said.exit == 2 && said.err.contains("\"a:b:c\""), "{said:?}");
    let said = node.warren_with_input(&["image", "load"], b"short");
    assert_eq!(said.exit, 2, "{said:?}");
    assert!(node.json(&["image", "ls"]).is_empty());
}

#[test]
fn host_waiting_in_vain_is_told() {
    let node = Node::with_image();
    let line = ["service", "create", "ends", "--image", "bb:1", "--restart-delay", "60s", "-d"];
    node.ok(&[&line[..], &["sh", "-c", "exit 3"]].concat());
    until("it waits to be started again", || {
        // Nobody waited for it: its task may not be there yet.
        let task = node.json(&["service", "ps", "ends"]).into_iter().next()?;
        (task["state"] != "running" && task["exit_code"] == 3).then_some(())
    });
    let said = node.warren(&["wait", "service", "ends", "--timeout", "100ms"]);
    assert!(said.exit == 1 && said.out.is_empty(), "{said:?}");
    assert!(said.err.contains("error: ") && said.err.contains("ends"), "{said:?}");
}

#[test]
fn host_faults_of_registries_leave_nothing() {
    let node = Node::start();
    let good = layer("etc/motd", b"hello");
    let registry = node.within(|| {
        Registry::start(|registry| {
            registry.status("private", 401);
            registry.status("broken", 500);
            registry.image("altered", &good, |bytes| bytes[600] ^= 1);
            registry.image("short", &good, |bytes| bytes.truncate(700));
            registry.image("climbs", &layer("../../escape", b"x"), |_| {});
        })
    });
    let table = [
        ("nothing", 3, "not found in registry"),
        ("private", 1, "warren registry login"),
        ("broken", 1, "answered 500"),
        ("altered", 1, "but should be sha256:"),
        ("short", 1, "ended after 700 of"),
        ("climbs", 2, "path with \"..\""),
    ];
    for (repository, exit, words) in table {
        let image = registry.name(repository);
        for line in
            [&["image", "pull", &image][..], &["service", "create", "x", "--image", &image, "true"]]
        {
            let said = node.warren(line);
            assert!(said.exit == exit && said.err.contains(words), "{line:?}: {said:?}");
            assert!(said.err.contains("\nhint: ") && said.out.is_empty(), "{line:?}: {said:?}");
        }
    }
    assert!(node.json(&["image", "ls"]).is_empty() && node.json(&["service", "ls"]).is_empty());
    assert_eq!(std::fs::read_dir(node.data_dir().join("images/layers")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(node.data_dir().join("images/tmp")).unwrap().count(), 0);
}

/// A file system of few bytes; gone with this.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &str) -> Self {
        let disk = Self(tempfile::tempdir_in("/var/tmp").unwrap());
        let option = format!("size={size}");
        let mount = ["-t", "tmpfs", "-o", &option, "tmpfs"];
        assert!(Command::new("mount").args(mount).arg(disk.path()).status().unwrap().success());
        disk
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn used(&self) -> u64 {
        let about = rustix::fs::statvfs(self.path()).unwrap();
        (about.f_blocks - about.f_bfree) * about.f_frsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

#[test]
fn host_a_disk_that_fills_is_told_and_emptied_again() {
    // Before the node: it must be gone first.
    let disk = SmallDisk::new("48m");
    let node = Node::bare();
    std::os::unix::fs::symlink(disk.path(), node.data_dir()).unwrap();
    node.ok(&["cluster", "init", "--detach"]);
    let large = layer("large", &vec![b'x'; 64 << 20]);
    let registry =
        node.within(|| Registry::start(|registry| registry.image("large", &large, |_| {})));
    let archive = node.folder().join("large.tar");
    std::fs::write(&archive, &large).unwrap();
    let before = disk.used();
    for line in [
        &["image", "pull", &registry.name("large")][..],
        &["image", "import", archive.to_str().unwrap(), "large:1"],
    ] {
        let said = node.warren(line);
        assert!(said.exit == 1 && said.err.contains("error: disk is full"), "{line:?}: {said:?}");
        assert!(said.err.contains("\nhint: free space") && said.out.is_empty(), "{said:?}");
    }
    assert!(node.json(&["image", "ls"]).is_empty());
    // The log of the store may have grown meanwhile, images have not.
    assert!(disk.used() < before + (1 << 20), "{} after {before}", disk.used());
}

#[test]
fn host_what_a_machine_lacks_is_told_before_anything_is_made() {
    let node = Node::bare();
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin", WARREN]);
    command.args(["cluster", "init", "--detach"]);
    command.env("WARREN_DATA_DIR", node.data_dir()).env("WARREN_RUN_DIR", node.run_dir());
    let output = command.output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.starts_with("error: privileges: ") && err.contains("NET_ADMIN"), "{err}");
    assert!(err.contains("\nhint: warren doctor"), "{err}");

    let config = node.folder().join("warren.toml");
    let init = ["cluster", "init", "--detach"];
    for (text, word) in [
        ("log_levle = \"info\"", "did you mean log_level?"),
        ("log_level = \"loud\"", "\"loud\""),
        ("log_format = \"xml\"", "\"xml\""),
        ("insecure_registry = \"a\"", "insecure_registry is not a list"),
        ("\nlog_level =", "warren.toml:2: "),
    ] {
        std::fs::write(&config, text).unwrap();
        let said = node.warren(&[&["--config", config.to_str().unwrap()], &init[..]].concat());
        assert!(said.exit == 2 && said.err.contains(word), "{text}: {said:?}");
    }
    let said = node.warren(&[&init[..], &["--datadir", "/x"]].concat());
    assert!(said.exit == 2 && said.err.contains("did you mean --data-dir?"), "{said:?}");
    let said = node.warren(&["node", "run", "--detach"]);
    assert!(said.exit == 3 && said.err.contains("warren cluster init"), "{said:?}");
    let deep = node.folder().join("x".repeat(120));
    let said = node.warren(&[&init[..], &["--run-dir", deep.to_str().unwrap()]].concat());
    assert!(said.exit == 2 && said.err.contains("--run-dir"), "{said:?}");
    assert!(!node.data_dir().exists() && !node.run_dir().exists());
}
