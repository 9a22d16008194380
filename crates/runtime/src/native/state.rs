//! What is on disk about one container, and where.
//!
//! `<run_dir>/c/<id>/`: `state.json` (ours, before the shim starts), `run`, `exit` and `sock` (the
//! shim's). `<data_dir>/containers/<id>/`: the writable layer. The run folder is made first and
//! removed last, so that nothing else can be left without it.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use warren_shim::protection::{Protection, kept};
use warren_shim::record::{self, EXIT_FILE, RUN_FILE, Run, SOCKET};

use crate::{ContainerSpec, Exit};

/// Raised when a field changes its meaning; an older file is not understood and its container is
/// treated as lost.
const VERSION: u32 = 1;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    version: u32,
    pub(crate) boot_id: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// Labels of the descriptors that the shim keeps, by their order.
    pub(crate) kept: Vec<String>,
    pub(crate) stop_signal: i32,
    /// Its processes do not end by themselves with the first one.
    #[serde(default)]
    pub(crate) host_pid: bool,
}

impl State {
    pub(crate) fn new(spec: &ContainerSpec, boot_id: &str) -> Self {
        Self {
            version: VERSION,
            boot_id: boot_id.to_owned(),
            labels: spec.labels.clone(),
            kept: spec.keep.iter().map(|(label, _)| label.clone()).collect(),
            stop_signal: spec.stop_signal,
            host_pid: spec.privileges.host_pid,
        }
    }
}

/// Folders of a node's containers.
#[derive(Debug, Clone)]
pub(crate) struct Folders {
    containers: PathBuf,
    layers: PathBuf,
}

/// Mode of folders that are for root alone.
fn private() -> u32 {
    if kept(Protection::PrivateFolders) { 0o700 } else { 0o755 }
}

/// What the files of one container say.
#[derive(Debug)]
pub(crate) enum Found {
    /// Never got as far as running, or not understood: to be removed.
    Rubbish,
    Container {
        state: State,
        run: Run,
        exit: Option<Exit>,
    },
}

impl Folders {
    /// Makes the folders of all containers, for root alone.
    pub(crate) fn make(run_dir: &Path, data_dir: &Path) -> io::Result<Self> {
        let folders = Self { containers: run_dir.join("c"), layers: data_dir.join("containers") };
        for folder in [&folders.containers, &folders.layers] {
            DirBuilder::new().recursive(true).mode(private()).create(folder)?;
        }
        Ok(folders)
    }

    pub(crate) fn state(&self, id: &str) -> PathBuf {
        self.containers.join(id)
    }

    pub(crate) fn upper(&self, id: &str) -> PathBuf {
        self.layers.join(id).join("upper")
    }

    pub(crate) fn work(&self, id: &str) -> PathBuf {
        self.layers.join(id).join("work")
    }

    /// Ids of all containers that have a folder.
    pub(crate) fn ids(&self) -> io::Result<Vec<String>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.containers)? {
            ids.extend(entry?.file_name().into_string().ok());
        }
        ids.sort();
        Ok(ids)
    }

    /// Makes the folders of one container. `top` is its highest layer, whose root folder the
    /// container's own is to look like.
    pub(crate) fn create(&self, id: &str, state: &State, top: &Path) -> io::Result<()> {
        let mut private = DirBuilder::new();
        private.mode(self::private());
        let folder = self.state(id);
        private.create(&folder)?;
        fs::write(folder.join("state.json"), serde_json::to_vec(state)?)?;
        private.create(self.layers.join(id))?;
        private.create(self.work(id))?;
        let upper = self.upper(id);
        private.create(&upper)?;
        let top = fs::metadata(top)?;
        fs::set_permissions(&upper, Permissions::from_mode(top.mode() & 0o7777))?;
        if (top.uid(), top.gid()) != (0, 0) {
            chown(&upper, Some(top.uid()), Some(top.gid()))?;
        }
        Ok(())
    }

    pub(crate) fn load(&self, id: &str) -> io::Result<Option<Found>> {
        let folder = self.state(id);
        let Some(bytes) = read_if_any(&folder.join("state.json"))? else {
            return Ok(fs::exists(&folder)?.then_some(Found::Rubbish));
        };
        let state = serde_json::from_slice::<State>(&bytes).ok();
        let run = read_if_any(&folder.join(RUN_FILE))?.and_then(|bytes| Run::decode(&bytes));
        let (Some(state), Some(run)) = (state.filter(|state| state.version == VERSION), run) else {
            return Ok(Some(Found::Rubbish));
        };
        let exit = self.exit(id)?;
        Ok(Some(Found::Container { state, run, exit }))
    }

    pub(crate) fn exit(&self, id: &str) -> io::Result<Option<Exit>> {
        let bytes = read_if_any(&self.state(id).join(EXIT_FILE))?;
        Ok(bytes.and_then(|bytes| record::Exit::decode(&bytes)).map(|exit| Exit {
            code: exit.code,
            signal: (exit.signal != 0).then_some(exit.signal),
            oom_killed: exit.oom_killed,
            supervisor_lost: exit.supervisor_lost,
            at: time(exit.at_ns),
        }))
    }

    /// Writes the exit that a lost shim could not, unless it did.
    pub(crate) fn leave_exit(&self, id: &str, at: SystemTime) -> io::Result<Exit> {
        if let Some(exit) = self.exit(id)? {
            return Ok(exit);
        }
        let signal = libc::SIGKILL;
        let exit = record::Exit {
            code: 128 + signal,
            signal,
            oom_killed: false,
            supervisor_lost: true,
            at_ns: nanos(at),
            lines_lost: 0,
        };
        let folder = self.state(id);
        fs::write(folder.join("exit.tmp"), exit.encode())?;
        fs::rename(folder.join("exit.tmp"), folder.join(EXIT_FILE))?;
        Ok(Exit {
            code: exit.code,
            signal: Some(signal),
            oom_killed: false,
            supervisor_lost: true,
            at: time(exit.at_ns),
        })
    }

    /// Tries the names that are always there first: listing folders takes most of the time.
    pub(crate) fn remove(&self, id: &str) -> io::Result<()> {
        let layers = self.layers.join(id);
        let work = layers.join("work");
        // As overlayfs leaves its work folder after a volatile mount.
        let _ = fs::remove_file(work.join("work/incompat/volatile/dirty"));
        for folder in ["work/incompat/volatile", "work/incompat", "work", ""] {
            let _ = fs::remove_dir(work.join(folder));
        }
        let _ = fs::remove_dir(layers.join("upper"));
        remove_tree(&layers)?;
        let state = self.state(id);
        for file in ["state.json", RUN_FILE, SOCKET, EXIT_FILE] {
            let _ = fs::remove_file(state.join(file));
        }
        remove_tree(&state)
    }

    /// Removes the folders of all containers, which must be empty.
    pub(crate) fn dispose(&self) -> io::Result<()> {
        fs::remove_dir(&self.containers)?;
        fs::remove_dir(&self.layers)
    }

    /// Removes writable layers without a run folder: those of before a reboot that cleared it.
    pub(crate) fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.layers)? {
            let name = entry?.file_name();
            if !fs::exists(self.containers.join(&name))? {
                remove_tree(&self.layers.join(&name))?;
            }
        }
        Ok(())
    }
}

fn read_if_any(file: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(file) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Quick when the folder is empty.
fn remove_tree(folder: &Path) -> io::Result<()> {
    let removed = fs::remove_dir(folder).or_else(|error| match error.kind() {
        io::ErrorKind::DirectoryNotEmpty => fs::remove_dir_all(folder),
        _ => Err(error),
    });
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

pub(crate) fn time(at_ns: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(at_ns)
}

pub(crate) fn nanos(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders() -> (tempfile::TempDir, Folders) {
        let base = tempfile::tempdir().unwrap();
        let folders = Folders::make(&base.path().join("run"), &base.path().join("data")).unwrap();
        (base, folders)
    }

    fn state() -> State {
        State {
            version: VERSION,
            boot_id: "b".to_owned(),
            labels: BTreeMap::from([("task".to_owned(), "t1".to_owned())]),
            kept: vec!["port".to_owned()],
            stop_signal: 15,
            host_pid: false,
        }
    }

    #[test]
    fn life_of_the_files() {
        let (base, folders) = folders();
        assert!(folders.load("web.1").unwrap().is_none());
        folders.create("web.1", &state(), base.path()).unwrap();
        assert!(matches!(folders.load("web.1").unwrap(), Some(Found::Rubbish)));

        let run = Run { shim_pid: 1, pid: 2, at_ns: 3 };
        fs::write(folders.state("web.1").join(RUN_FILE), run.encode()).unwrap();
        let Some(Found::Container { state, run, exit }) = folders.load("web.1").unwrap() else {
            panic!("not a container");
        };
        assert_eq!((state.kept, run.pid, exit), (vec!["port".to_owned()], 2, None));

        let lost = folders.leave_exit("web.1", time(7)).unwrap();
        assert!(lost.supervisor_lost && lost.code == 137);
        assert_eq!(folders.leave_exit("web.1", time(8)).unwrap(), lost);

        assert_eq!(folders.ids().unwrap(), ["web.1"]);
        folders.remove("web.1").unwrap();
        folders.remove("web.1").unwrap();
        assert!(folders.ids().unwrap().is_empty());
        assert!(!folders.upper("web.1").exists());
    }

    #[test]
    fn broken_files_are_rubbish() {
        let (base, folders) = folders();
        folders.create("web.1", &state(), base.path()).unwrap();
        let folder = folders.state("web.1");
        fs::write(folder.join(RUN_FILE), b"").unwrap();
        assert!(matches!(folders.load("web.1").unwrap(), Some(Found::Rubbish)));
        fs::write(folder.join(RUN_FILE), Run { shim_pid: 1, pid: 2, at_ns: 3 }.encode()).unwrap();
        fs::write(folder.join("state.json"), b"{").unwrap();
        assert!(matches!(folders.load("web.1").unwrap(), Some(Found::Rubbish)));
    }

    #[test]
    fn orphaned_layers_are_swept() {
        let (base, folders) = folders();
        folders.create("web.1", &state(), base.path()).unwrap();
        folders.create("web.2", &state(), base.path()).unwrap();
        fs::remove_dir_all(folders.state("web.1")).unwrap();
        folders.sweep().unwrap();
        assert!(!folders.upper("web.1").exists());
        assert!(folders.upper("web.2").exists());
    }
}
