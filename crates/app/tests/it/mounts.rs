//! Volumes, paths of the node and memory in containers, by the real binary.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use serde_json::json;

use crate::node::{Node, Said, until};

/// `data:1`: busybox with content that belongs to somebody, links that lead out, two volumes.
fn image(node: &Node) {
    let rootfs = node.folder().join("rootfs.tar");
    let extra = node.folder().join("extra");
    fs::create_dir_all(extra.join("data/deep")).unwrap();
    fs::create_dir(extra.join("inner")).unwrap();
    fs::write(extra.join("data/deep/seed"), "of the image\n").unwrap();
    symlink("../../../inner", extra.join("link")).unwrap();
    symlink(node.folder().join("closed"), extra.join("gone")).unwrap();
    let run = |program: &str, words: &[&str]| {
        let done = Command::new(program).args(words).current_dir(&extra).status().unwrap();
        assert!(done.success(), "{program} {words:?}");
    };
    run("chmod", &["2750", "data"]);
    run("chown", &["-R", "1000:1001", "data"]);
    let tar = rootfs.to_str().unwrap();
    run("tar", &["--append", "-f", tar, "data", "inner", "link", "gone"]);
    let sum = Command::new("sha256sum").arg(tar).output().unwrap().stdout;
    let sum = String::from_utf8(sum).unwrap();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Volumes": {"/data": {}, "/cache/": {}}},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", &sum[..64])]},
    });
    let layers = ["rootfs.tar"];
    let manifest = json!([{"Config": "config.json", "RepoTags": ["data:1"], "Layers": layers}]);
    fs::write(node.folder().join("config.json"), config.to_string()).unwrap();
    fs::write(node.folder().join("manifest.json"), manifest.to_string()).unwrap();
    let (archive, folder) = (node.folder().join("image.tar"), node.folder().to_str().unwrap());
    let archive = archive.to_str().unwrap();
    run("tar", &["-C", folder, "-cf", archive, "manifest.json", "config.json", "rootfs.tar"]);
    node.ok(&["image", "load", archive]);
}

fn create(node: &Node, name: &str, flags: &[&str]) -> Said {
    let mut args = vec!["service", "create", name, "--image", "data:1", "--stop-signal", "KILL"];
    args.extend(flags);
    args.extend(["sleep", "1000"]);
    node.warren(&args)
}

fn sh(node: &Node, script: &str) -> Said {
    node.warren(&["exec", "db.1", "sh", "-c", script])
}

#[test]
fn host_volumes_keep_what_is_in_them() {
    let node = Node::with_image();
    image(&node);
    let said = create(
        &node,
        "db",
        &[
            "--mount",
            "source={{.Service.Name}}-{{.Task.Slot}},target=/data,volume-label=team=shop",
            "--tmpfs",
            "/scratch/new:size=1m,mode=700",
            "--shm-size",
            "2m",
            "--read-only",
            "--workdir",
            "/work/here",
        ],
    );
    assert_eq!(said.exit, 0, "{said:?}");
    let content = sh(&node, "pwd; cat /data/deep/seed; stat -c '%u:%g %a' /data /data/deep/seed");
    assert_eq!(content.out, "/work/here\nof the image\n1000:1001 2750\n1000:1001 644\n");
    let said = sh(&node, "echo kept > /data/file && echo lost > /cache/file && ! touch /file");
    assert_eq!(said.exit, 0, "{said:?}");
    // Sizes hold, and what is executed there is not.
    let said = sh(&node, "dd if=/dev/zero of=/scratch/new/x bs=64k count=32 2>/dev/null");
    assert_ne!(said.exit, 0, "2 MiB in 1 MiB");
    let sizes = sh(
        &node,
        "stat -c %s /scratch/new/x; busybox df -k /dev/shm | tail -1 | busybox awk '{print $2}'",
    );
    assert_eq!(sizes.out, "1048576\n2048\n");
    let options = sh(&node, "busybox grep -E ' /(data|scratch/new) ' /proc/mounts").out;
    assert_eq!(options.matches("nosuid,nodev").count(), 2, "{options}");
    assert_eq!(options.matches("noexec").count(), 1, "{options}");

    let anonymous = || fs::read_dir(node.data_dir().join("shared")).unwrap().count();
    assert_eq!(anonymous(), 1);
    node.ok(&["cluster", "update", "--history-limit", "0"]);
    node.ok(&["service", "update", "--env-add", "A=1", "db"]);
    assert_eq!(sh(&node, "cat /data/file; echo $A").out, "kept\n1\n");
    assert_ne!(sh(&node, "test -e /cache/file").exit, 0, "it went with its task");
    until("the older task's volume is gone", || (anonymous() == 1).then_some(()));

    let volumes = node.json(&["volume", "inspect", "db-1"]);
    let [volume] = &volumes[..] else { panic!("{volumes:?}") };
    assert_eq!(
        (&volume["used_by"], &volume["labels"]),
        (&json!(["db.1"]), &json!({"team": "shop"}))
    );
    assert!(volume["size_bytes"].as_u64().unwrap() > 0);
    let said = node.warren(&["volume", "rm", "db-1"]);
    assert_eq!(said.exit, 4, "{said:?}");
    assert!(said.err.contains("volume db-1 is in use by db.1"), "{said:?}");
    assert_eq!(node.ok(&["volume", "prune", "--force"]), "");
    node.ok(&["service", "rm", "db"]);
    until("nothing of the task is left", || (anonymous() == 0).then_some(()));
    until("nobody uses it", || {
        (node.ok(&["volume", "ls", "--filter", "in_use=false", "-q"]) == "db-1\n").then_some(())
    });
    assert_eq!(node.ok(&["volume", "prune", "--dry-run", "--label", "team=bar"]), "");
    assert_eq!(node.ok(&["volume", "prune", "--dry-run", "--label", "team=shop"]), "db-1\n");
    assert_eq!(node.ok(&["volume", "rm", "db-1"]), "db-1\n");
    assert_eq!(node.warren(&["volume", "rm", "db-1"]).exit, 3);
    assert_eq!(node.ok(&["volume", "ls", "-q"]), "");
}

#[test]
fn host_only_paths_of_the_list_are_mounted() {
    let node = Node::with_image();
    image(&node);
    let path = |name: &str| node.folder().join(name).to_str().unwrap().to_owned();
    let (open, closed) = (path("open"), path("closed"));
    fs::create_dir_all(node.folder().join("open/here")).unwrap();
    fs::create_dir(&closed).unwrap();
    fs::write(node.folder().join("closed/secret"), "secret").unwrap();
    symlink(&closed, node.folder().join("open/out")).unwrap();
    let said = create(&node, "no", &["-v", &format!("{open}:/mnt")]);
    assert_eq!(said.exit, 2, "{said:?}");
    assert!(said.err.contains(&format!("warren cluster update --allow-bind {open}")), "{said:?}");

    let run = path("run");
    node.ok(&["cluster", "update", "--allow-bind", &open, "--allow-bind", &run]);
    node.ok(&["cluster", "update", "--allow-bind", &format!("{closed}/part:ro")]);
    let said = create(&node, "ro", &["-v", &format!("{closed}/part:/mnt")]);
    assert!(said.exit == 2 && said.err.contains("to be read alone"), "{said:?}");
    // What only the node knows is the task's error.
    let denied = "no path that this cluster lets containers mount";
    for (name, mount, expected) in [
        ("out", format!("{open}/out:/mnt"), denied),
        ("deep", format!("{open}/out/secret:/mnt"), denied),
        ("none", format!("{open}/none:/mnt"), "is not on this node"),
        ("own", format!("{run}/warren.sock:/mnt"), "what Warren keeps"),
        ("gone", format!("{open}/here:/gone/below"), "target in the image"),
    ] {
        let said = create(&node, name, &["--detach", "-v", &mount]);
        assert_eq!(said.exit, 0, "{said:?}");
        until(expected, || {
            let errors = node.tasks(name).into_iter().map(|task| task["error"].to_string());
            errors.into_iter().any(|error| error.contains(expected)).then_some(())
        });
        node.ok(&["service", "rm", name]);
    }
    assert!(!node.folder().join("closed/below").exists());
    // A link of the image at the target stays in the container's root.
    let said = create(
        &node,
        "db",
        &["-v", &format!("{open}/here:/link/below"), "-v", &format!("{open}:/ro:ro")],
    );
    assert_eq!(said.exit, 0, "{said:?}");
    assert_eq!(sh(&node, "echo hello > /link/below/file; ! touch /ro/x").exit, 0);
    assert_eq!(fs::read_to_string(node.folder().join("open/here/file")).unwrap(), "hello\n");
    assert_eq!(sh(&node, "cat /inner/below/file").out, "hello\n");
    assert!(!std::path::Path::new("/inner").exists());
}
