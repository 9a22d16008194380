//! Data folders that are not what they should be: each is told in words that say
//! which file and what to do, and nothing starts on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::node::{Node, until};

/// A copy of a data folder, mode and owner included.
fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// The largest file of the log: the one that holds what was agreed on.
fn segment(data_dir: &Path) -> PathBuf {
    let mut found = Vec::new();
    let mut folders = vec![data_dir.join("store")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    found.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    found.sort();
    found.into_iter().next().expect("there is a log")
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// A start on a folder that is not right ends, and says so with this word.
#[track_caller]
fn refused(node: &Node, what: &str, word: &str) {
    let said = node.warren(&["node", "run", "--detach"]);
    assert!(said.exit != 0 && said.exit != 101, "{what}: {said:?}");
    assert!(said.err.contains("error: ") && said.err.contains(word), "{what}: {said:?}");
    assert!(!node.log().contains("panicked"), "{what}: {}", node.log());
    assert!(node.pid().is_none() || node.warren(&["node", "ls"]).exit == 5, "{what}: it runs");
}

/// What is done to a data folder, and a word that must be said of it.
type Case = (&'static str, Box<dyn Fn(&Path)>, &'static str);

fn cases(foreign: PathBuf) -> Vec<Case> {
    let from = foreign.clone();
    let whole = move |file: &'static str| {
        let foreign = from.clone();
        move |data: &Path| assert!(fs::copy(foreign.join(file), data.join(file)).unwrap() > 0)
    };
    let cut = |file: &'static str| {
        move |data: &Path| change(&data.join(file), |bytes| bytes.truncate(bytes.len() / 2))
    };
    vec![
        ("the identity of another node", Box::new(whole("node.json")), "node"),
        ("the certificate of another node", Box::new(whole("certificate")), "certificate"),
        ("the key of another node", Box::new(whole("node.key")), "key"),
        (
            "the store of another node",
            Box::new(move |data| copy(&foreign.join("store"), &data.join("store"))),
            "store",
        ),
        (
            "the identity of a newer version",
            Box::new(|data| {
                change(&data.join("node.json"), |bytes| {
                    let text =
                        String::from_utf8_lossy(bytes).replace("\"version\": 1", "\"version\": 9");
                    *bytes = text.into_bytes();
                });
            }),
            "version 9",
        ),
        (
            "the store of a newer version",
            Box::new(|data| fs::write(data.join("store/VERSION"), "warren-store 9\n").unwrap()),
            "format 9",
        ),
        ("a cut identity", Box::new(cut("node.json")), "node.json"),
        ("a cut certificate", Box::new(cut("certificate")), "certificate"),
        ("a cut key", Box::new(cut("node.key")), "node.key"),
        (
            "a missing key",
            Box::new(|data| fs::remove_file(data.join("node.key")).unwrap()),
            "node.key",
        ),
        (
            "a key that all may read",
            Box::new(|data| {
                use std::os::unix::fs::PermissionsExt;
                let mode = fs::Permissions::from_mode(0o644);
                fs::set_permissions(data.join("node.key"), mode).unwrap();
            }),
            "chmod 600",
        ),
        (
            "a flipped bit in the log",
            Box::new(|data| change(&segment(data), |bytes| bytes[600] ^= 4)),
            "log segment 1 is damaged at byte",
        ),
        (
            "a log that is cut in its middle",
            Box::new(|data| change(&segment(data), |bytes| bytes.truncate(700))),
            "log segment 1 is damaged at byte",
        ),
        (
            "a log without its last record",
            Box::new(|data| change(&segment(data), |bytes| bytes.truncate(bytes.len() - 41))),
            "log segment 1 is damaged at byte",
        ),
    ]
}

#[test]
fn host_data_folders_that_are_not_right_are_told() {
    let (node, other) = (Node::start(), Node::start());
    let right = node.folder().join("right");
    for node in [&node, &other] {
        // Something that must not be lost.
        node.ok(&["node", "update", &node.id(), "--label-add", "a=b"]);
        node.ok(&["node", "stop"]);
    }
    copy(&node.data_dir(), &right);
    for (what, damage, word) in cases(other.data_dir()) {
        copy(&right, &node.data_dir());
        damage(&node.data_dir());
        refused(&node, what, word);
    }
    copy(&right, &node.data_dir());
    node.ok(&["node", "run", "--detach"]);
    assert_eq!(node.ok(&["node", "inspect", "self", "--format", "{{.Labels.a}}"]), "b\n");
}

/// A mount that is gone with this.
struct Mount(PathBuf);

impl Mount {
    fn new(args: &[&str], at: PathBuf) -> Self {
        assert!(Command::new("mount").args(args).arg(&at).status().unwrap().success());
        Self(at)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn host_disks_that_take_nothing_are_told() {
    let node = Node::start();
    node.ok(&["node", "stop"]);
    let data = node.data_dir();
    let text = data.to_str().unwrap();
    let read_only = Mount::new(&["--bind", text], data.clone());
    let remounted = Command::new("mount").args(["-o", "remount,bind,ro", text]).status().unwrap();
    assert!(remounted.success());
    refused(&node, "a read-only folder", "ead-only");
    drop(read_only);

    // Full from the start, and full while it runs.
    let kept = node.folder().join("kept");
    copy(&data, &kept);
    let small = Mount::new(&["-t", "tmpfs", "-o", "size=40m", "tmpfs"], data.clone());
    let copied = Command::new("cp").args(["-a"]).arg(kept.join(".")).arg(&data).status().unwrap();
    assert!(copied.success());
    node.ok(&["node", "run", "--detach"]);
    let id = node.id();
    let fill = || {
        let mut file = fs::File::create(data.join("filler")).unwrap();
        while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    };
    fill();
    let big = "x".repeat(100_000);
    // There and away: what is ready of the log takes some megabytes.
    let changes = (0..400).flat_map(|n| {
        [
            ["--label-add".to_owned(), format!("k={n}{big}")],
            ["--label-rm".to_owned(), "k".to_owned()],
        ]
    });
    let mut said =
        changes.map(|[flag, value]| node.warren(&["node", "update", &id, &flag, &value]));
    let said = said.find(|said| said.exit != 0).expect("the disk is full at some time");
    assert!(said.exit == 1 && said.err.contains("disk of the store is full"), "{said:?}");
    assert!(said.err.contains("\nhint: make room"), "{said:?}");
    assert!(!node.log().contains("panicked"), "{}", node.log());
    // Reads go on, and with room again writes do.
    node.ok(&["node", "ls"]);
    fs::remove_file(data.join("filler")).unwrap();
    until("it takes changes again", || {
        (node.warren(&["node", "update", &id, "--label-add", "a=b"]).exit == 0).then_some(())
    });
    node.ok(&["node", "stop"]);
    drop(small);
}
