//! Devices of this machine, as files say that tools of their makers wrote: the CNCF Container
//! Device Interface.
//!
//! Read are `*.json` and `*.yaml` of some folders; of a later folder a device
//! counts more than of an earlier one, and of two files of one folder none does.
//! A file that cannot be read is one warning that names it. When a folder
//! changes all is read again: inotify tells, nothing looks by the clock.
//!
//! Managers give devices to tasks; here is told which there are, and what is to
//! be done to a container that has some.

mod spec;
#[cfg(test)]
mod tests;
mod watch;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch as watched;
use warren_model::device::{DEVICES_MAX, KINDS_MAX, split};

use self::spec::Spec;
pub(crate) use self::spec::{BindMount, DeviceNode, Edits};

/// Of one file; those of GPUs have some twenty KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// In one folder.
const FILES_MAX: usize = 128;

/// Names by kind, as a node tells them.
pub(crate) type Names = BTreeMap<String, BTreeSet<String>>;

/// What is known of devices now.
#[derive(Debug, Default)]
struct Known {
    devices: BTreeMap<String, Device>,
}

/// Of one device: what is done to a container, what its file's others have in common included.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Device {
    own: Edits,
    /// Once for a container, however many of them it has.
    common: Arc<Edits>,
}

/// The devices of a node, shared by whoever asks.
#[derive(Debug)]
pub(crate) struct Devices {
    folders: Vec<PathBuf>,
    known: watched::Sender<Arc<Known>>,
    names: watched::Sender<Arc<Names>>,
    /// What was wrong when the folders were read last: it is told once.
    problems: Mutex<BTreeSet<String>>,
}

impl Devices {
    /// Reads the folders once.
    pub(crate) fn new(folders: Vec<PathBuf>) -> Self {
        let devices = Self {
            folders,
            known: watched::Sender::default(),
            names: watched::Sender::default(),
            problems: Mutex::default(),
        };
        devices.read();
        devices
    }

    /// Which there are, and when that changes.
    pub(crate) fn names(&self) -> watched::Receiver<Arc<Names>> {
        self.names.subscribe()
    }

    /// Reads all folders again, and tells of it if something is different.
    fn read(&self) {
        let (known, problems) = known(&self.folders);
        let problems: BTreeSet<String> = problems.into_iter().collect();
        let mut told = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        for problem in problems.difference(&told) {
            tracing::warn!("device specification {problem}");
        }
        *told = problems;
        drop(told);
        let names = Arc::new(names(&known));
        self.known.send_replace(Arc::new(known));
        self.names.send_if_modified(|before| {
            let differs = **before != *names;
            if differs {
                let count = names.values().map(BTreeSet::len).sum::<usize>();
                tracing::info!(count, "devices of this machine");
                *before = names;
            }
            differs
        });
    }

    /// What is done to a container that has these, `vendor.com/class=name` each.
    ///
    /// # Errors
    /// Naming the first that is not there.
    pub(crate) fn edits<'n>(
        &self,
        devices: impl IntoIterator<Item = &'n str>,
    ) -> Result<Edits, String> {
        let known = Arc::clone(&self.known.borrow());
        let (mut edits, mut common) = (Edits::default(), Vec::<Arc<Edits>>::new());
        for name in devices {
            let device = known.devices.get(name).ok_or_else(|| {
                format!("device {name} is not on this node: no specification names it")
            })?;
            edits.add(&device.own);
            if !common.iter().any(|other| Arc::ptr_eq(other, &device.common)) {
                common.push(Arc::clone(&device.common));
            }
        }
        common.iter().for_each(|common| edits.add(common));
        Ok(edits)
    }

    /// Follows the folders for as long as it is polled.
    pub(crate) async fn follow(self: Arc<Self>) {
        loop {
            let changes = match watch::Changes::of(&self.folders) {
                Ok(changes) => changes,
                Err(error) => {
                    tracing::warn!(%error, "changes of device specifications are not noticed");
                    return;
                }
            };
            // What changed before it was watched is seen now.
            let devices = Arc::clone(&self);
            if tokio::task::spawn_blocking(move || devices.read()).await.is_err() {
                return;
            }
            if let Err(error) = changes.next().await {
                tracing::warn!(%error, "changes of device specifications are not noticed");
                return;
            }
        }
    }
}

/// By kind. What is more than managers take is left out, the last of it.
fn names(known: &Known) -> Names {
    let mut names = Names::new();
    for device in known.devices.keys().take(DEVICES_MAX) {
        let Some((kind, name)) = split(device) else { continue };
        if names.len() < KINDS_MAX || names.contains_key(kind) {
            names.entry(kind.to_owned()).or_default().insert(name.to_owned());
        }
    }
    names
}

/// All devices of some folders, and what is wrong with files in them.
fn known(folders: &[PathBuf]) -> (Known, Vec<String>) {
    let (mut known, mut problems) = (Known::default(), Vec::new());
    for folder in folders {
        let mut here: BTreeMap<String, Device> = BTreeMap::new();
        let mut twice = BTreeSet::new();
        for file in files(folder, &mut problems) {
            let spec = match load(&file) {
                Ok(spec) => spec,
                Err(problem) => {
                    problems.push(format!("{}: {problem}", file.display()));
                    continue;
                }
            };
            if !spec.left_out.is_empty() {
                let what: Vec<&str> = spec.left_out.iter().copied().collect();
                problems.push(format!("{}: has {}", file.display(), what.join(", and ")));
            }
            let common = Arc::new(spec.common);
            for (name, own) in spec.devices {
                let device = Device { own, common: Arc::clone(&common) };
                let name = format!("{}={name}", spec.kind);
                if here.insert(name.clone(), device).is_some() {
                    let text = "is named by another file too: neither counts";
                    problems.push(format!("{}: {name} {text}", file.display()));
                    twice.insert(name);
                }
            }
        }
        known.devices.extend(here);
        for name in twice {
            known.devices.remove(&name);
        }
    }
    if known.devices.len() > DEVICES_MAX {
        let count = known.devices.len();
        problems.push(format!("folders name {count} devices, at most {DEVICES_MAX} are told"));
    }
    (known, problems)
}

/// In order of name; of a folder that is not there none.
fn files(folder: &Path, problems: &mut Vec<String>) -> Vec<PathBuf> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            problems.push(format!("folder {}: {error}", folder.display()));
            return Vec::new();
        }
    };
    let is_spec =
        |path: &PathBuf| path.extension().is_some_and(|end| end == "json" || end == "yaml");
    let mut files: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_spec).collect();
    files.sort();
    if files.len() > FILES_MAX {
        let (count, folder) = (files.len(), folder.display());
        problems.push(format!("folder {folder}: {count} files, the first {FILES_MAX} are read"));
        files.truncate(FILES_MAX);
    }
    files
}

fn load(path: &Path) -> Result<Spec, String> {
    // A pipe under such a name would hold up whoever opens it.
    let about = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !about.is_file() {
        return Err("is no file".to_owned());
    }
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("is larger than {FILE_BYTES_MAX} bytes"));
    }
    // Somebody begins to write it.
    if text.is_empty() {
        return Ok(Spec::default());
    }
    read_text(&text, path.extension().is_some_and(|end| end == "json"))
}

fn read_text(text: &str, is_json: bool) -> Result<Spec, String> {
    let value = match is_json {
        true => serde_json::from_str(text).map_err(|error| error.to_string())?,
        false => yaml::parse(text)?,
    };
    spec::parse(value)
}
