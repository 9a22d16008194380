//! What a run leaves in the kernel and on the disk, and who removes it.
//!
//! Processes, mounts and links end with their run, however it ended. Folders
//! and control groups stay when it was killed. Each run holds a lock on its
//! folder; the next one that starts takes the locks that nobody holds any more,
//! and removes what those folders tell of.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};

/// Short: paths of sockets have 108 bytes.
const PARENT: &str = "/var/tmp";
const PREFIX: &str = "wtb";
const OWNER: &str = "owner";
/// Held while a folder gets its owner: a folder without one is nobody's.
const GATE: &str = ".wtb.lock";
const CGROUPS: &str = "/sys/fs/cgroup";
/// Groups of a node are `warren-KEY`, of its containers below.
const GROUP_PREFIX: &str = "warren-";
/// Characters of a node's id that names in the kernel are made of.
const KEY_LEN: usize = 8;
/// Levels below a node's group.
const GROUP_DEPTH_MAX: usize = 6;
/// Killed processes leave their groups when they are buried.
const RMDIR_TRIES: u32 = 100;
const RMDIR_PAUSE: Duration = Duration::from_millis(10);

/// The folder of a run, locked for its life.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    _owner: File,
}

impl Folder {
    /// A new one; what killed runs left is removed first.
    pub(crate) fn new() -> Result<Self> {
        let gate_path = Path::new(PARENT).join(GATE);
        let gate = File::create(&gate_path);
        let gate = gate.with_context(|| format!("open {}", gate_path.display()))?;
        flock(&gate, FlockOperation::LockExclusive).context("wait for other runs to start")?;
        sweep(Path::new(PARENT));
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(PARENT);
        let folder = folder.with_context(|| format!("make a folder in {PARENT}"))?;
        let owner = File::create(folder.path().join(OWNER)).context("own the folder")?;
        flock(&owner, FlockOperation::NonBlockingLockExclusive).context("lock the folder")?;
        Ok(Self { path: folder.keep(), _owner: owner })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Removes the folders whose owner is gone.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        let named = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if named && is_orphan(&path) {
            remove(&path);
        }
    }
}

fn is_orphan(folder: &Path) -> bool {
    match File::open(folder.join(OWNER)) {
        Ok(owner) => flock(&owner, FlockOperation::NonBlockingLockExclusive).is_ok(),
        Err(error) => error.kind() == ErrorKind::NotFound && folder.is_dir(),
    }
}

/// A run's folder and the groups of its nodes. What resists is tried again by the next run.
fn remove(folder: &Path) {
    for host in fs::read_dir(folder).into_iter().flatten().flatten() {
        if let Some(key) = node_key(&host.path().join("data")) {
            remove_groups(Path::new(CGROUPS), &key);
        }
    }
    let _ = fs::remove_dir_all(folder);
}

/// What a node's names in the kernel are made of, from its data folder.
pub(crate) fn node_key(data_dir: &Path) -> Option<String> {
    let text = fs::read(data_dir.join("node.json")).ok()?;
    let value: serde_json::Value = serde_json::from_slice(&text).ok()?;
    let key: String = value["node_id"].as_str()?.chars().take(KEY_LEN).collect();
    (key.len() == KEY_LEN && key.chars().all(|c| c.is_ascii_alphanumeric())).then_some(key)
}

/// The groups of a node are at the top of each hierarchy, or of the one.
fn remove_groups(root: &Path, key: &str) {
    let name = format!("{GROUP_PREFIX}{key}");
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.path());
    for folder in hierarchies.chain([root.to_owned()]) {
        let group = folder.join(&name);
        if group.is_dir() {
            remove_group(&group, GROUP_DEPTH_MAX);
        }
    }
}

/// The innermost first: a group with children stays.
fn remove_group(group: &Path, depth: usize) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path(), depth - 1);
        }
    }
    for _ in 0..RMDIR_TRIES {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                std::thread::sleep(RMDIR_PAUSE);
            }
            Ok(()) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_without_an_owner_are_swept() {
        let parent = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let folder = parent.path().join(name);
            fs::create_dir(&folder).unwrap();
            folder
        };
        let (held, left, bare, other) = (make("wtbA"), make("wtbB"), make("wtbC"), make("xyz"));
        let owner = File::create(held.join(OWNER)).unwrap();
        flock(&owner, FlockOperation::NonBlockingLockExclusive).unwrap();
        File::create(left.join(OWNER)).unwrap();
        sweep(parent.path());
        assert!(held.is_dir() && other.is_dir());
        assert!(!left.exists() && !bare.exists());
    }

    #[test]
    fn keys_are_read_with_suspicion() {
        let data = tempfile::tempdir().unwrap();
        let check = |text: &str, expected: Option<&str>| {
            fs::write(data.path().join("node.json"), text).unwrap();
            assert_eq!(node_key(data.path()).as_deref(), expected, "{text}");
        };
        check(r#"{"node_id": "abcdefgh23456789"}"#, Some("abcdefgh"));
        check(r#"{"node_id": "abc"}"#, None);
        check(r#"{"node_id": "../../../../x"}"#, None);
        check("", None);
    }

    #[test]
    fn groups_go_innermost_first() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("cpu/warren-abcdefgh/web.1");
        let other = root.path().join("cpu/warren-zzzzzzzz");
        fs::create_dir_all(&inner).unwrap();
        fs::create_dir_all(&other).unwrap();
        fs::create_dir_all(root.path().join("warren-abcdefgh")).unwrap();
        remove_groups(root.path(), "abcdefgh");
        assert!(!root.path().join("cpu/warren-abcdefgh").exists() && other.exists());
        assert!(!root.path().join("warren-abcdefgh").exists());
    }
}
