//! Backups: one encrypted stream of the whole state, for a person or, by the
//! leader itself, into a folder.
//!
//! The leader writes when the policy says that one is due: into a temporary
//! file, synced, then renamed, so that a name never stands for half a backup;
//! then it removes what is too much. The folder is on the leader's machine,
//! whichever that is. What fails is told and tried again; it never holds up
//! anything else.

mod files;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use warren_model::cluster::BackupPolicy;
use warren_model::{ClusterId, Time};
use warren_trust::backup::{BackupError, BackupLock, Recipient, encrypt};

use crate::core::Core;
use crate::metrics::count;
use crate::refusal::Refusal;

/// A backup a minute is enough for anybody.
const INTERVAL_MIN_MS: u64 = 60_000;
/// A year: rarer is never.
const INTERVAL_MAX_MS: u64 = 366 * 86_400_000;
const KEEP_MAX: u32 = 10_000;
/// Pause after one that failed: the disk may be full, the folder not mounted.
const RETRY_MS: u64 = 60_000;
/// Of one write to the file.
const BUFFER_BYTES: usize = 256 << 10;

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the recipient of the backups is not a key: {0}")]
    Recipient(String),
    #[error("{action} {}", path.display())]
    Disk { action: &'static str, path: PathBuf, source: io::Error },
    #[error("encrypt the backup")]
    Encrypt(#[from] BackupError),
    #[error("write the backup")]
    Write(#[source] io::Error),
    #[error("the thread that wrote the backup ended early")]
    Thread,
}

impl Error {
    /// With its causes, in one line.
    pub(crate) fn in_words(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}

/// # Errors
/// Naming the field that cannot be right.
pub(crate) fn check_policy(policy: &BackupPolicy) -> Result<(), Refusal> {
    let BackupPolicy { folder, interval_ms, keep, recipient } = policy;
    if !Path::new(folder).is_absolute() {
        return Err(Refusal::bad_input(format!("backup.folder: {folder:?} is not absolute")));
    }
    if !(INTERVAL_MIN_MS..=INTERVAL_MAX_MS).contains(interval_ms) {
        let (min, max) = (INTERVAL_MIN_MS / 1000, INTERVAL_MAX_MS / 86_400_000);
        let text = format!("backup.interval: {interval_ms} ms is not between {min} s and {max} d");
        return Err(Refusal::bad_input(text));
    }
    if !(1..=KEEP_MAX).contains(keep) {
        let text = format!("backup.keep: {keep} is not between 1 and {KEEP_MAX}");
        return Err(Refusal::bad_input(text));
    }
    let key = recipient.parse::<Recipient>();
    key.map(drop).map_err(|error| Refusal::bad_input(format!("backup.recipient: {error}")))
}

/// Writes a whole backup to `out`. Blocks.
pub(crate) fn write<W: Write>(core: &Core, lock: &BackupLock, out: W) -> Result<W, Error> {
    let mut encrypted = encrypt(out, lock, core.rng.as_ref())?;
    io::copy(&mut core.store.export(), &mut encrypted).map_err(Error::Write)?;
    Ok(encrypted.finish()?)
}

/// Writes backups as the policy says; runs as long as this manager leads.
pub(crate) async fn run(core: Arc<Core>) {
    let mut moved = core.store.watch();
    loop {
        moved.mark_unchanged();
        let policy = policy(&core);
        let Some(current) = policy.clone() else {
            if !policy_moved(&core, &mut moved, &policy).await {
                return;
            }
            continue;
        };
        let wait_ms = match look(&core, &current).await {
            Ok(wait_ms) => wait_ms,
            Err(error) => {
                count(&core.metrics.backups, "result", "failed");
                tracing::error!(error = error.in_words(), "scheduled backup");
                RETRY_MS
            }
        };
        tokio::select! {
            () = core.clock.sleep(wait_ms) => {}
            goes_on = policy_moved(&core, &mut moved, &policy) => if !goes_on { return },
        }
    }
}

fn policy(core: &Core) -> Option<BackupPolicy> {
    core.store.view().cluster().and_then(|cluster| cluster.backup.clone())
}

/// Until there is another policy; false if the store has ended before.
async fn policy_moved(
    core: &Core,
    moved: &mut tokio::sync::watch::Receiver<u64>,
    known: &Option<BackupPolicy>,
) -> bool {
    // Settings change with the topology alone: a busy cluster is not compared at each step.
    let mut topology = core.store.view().topology();
    while moved.changed().await.is_ok() {
        let view = core.store.view();
        if view.topology() != topology && policy(core) != *known {
            return true;
        }
        topology = view.topology();
    }
    false
}

/// Writes a backup if one is due; says when to look again.
async fn look(core: &Arc<Core>, policy: &BackupPolicy) -> Result<u64, Error> {
    let (core, policy) = (Arc::clone(core), policy.clone());
    let work = tokio::task::spawn_blocking(move || {
        let now = core.now();
        let folder = Path::new(&policy.folder);
        let due = files::due(core.cluster_id, &list(folder)?, policy.interval_ms, now);
        if due > now {
            return Ok(due.since_ms(now));
        }
        keep_one(&core, &policy, now)?;
        count(&core.metrics.backups, "result", "ok");
        Ok(policy.interval_ms)
    });
    work.await.map_err(|_| Error::Thread)?
}

fn keep_one(core: &Core, policy: &BackupPolicy, now: Time) -> Result<(), Error> {
    let folder = Path::new(&policy.folder);
    let recipient = policy.recipient.parse::<Recipient>();
    let recipient = recipient.map_err(|error| Error::Recipient(error.to_string()))?;
    let name = files::name(core.cluster_id, now);
    let bytes = into_folder(folder, &name, |file| {
        write(core, &BackupLock::Recipient(recipient), BufWriter::with_capacity(BUFFER_BYTES, file))
    })?;
    tracing::info!(file = %folder.join(&name).display(), bytes, "backup written");
    tidy(folder, core.cluster_id, policy.keep)
}

fn disk(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Disk { action, path, source }
}

fn list(folder: &Path) -> Result<Vec<String>, Error> {
    let entries = fs::read_dir(folder).map_err(disk("list the folder", folder))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.collect())
}

/// A file that is there whole or not at all; returns its size.
fn into_folder(
    folder: &Path,
    name: &str,
    fill: impl FnOnce(File) -> Result<BufWriter<File>, Error>,
) -> Result<u64, Error> {
    use std::os::unix::fs::OpenOptionsExt;
    let unfinished = folder.join(format!("{name}.tmp"));
    let place = folder.join(name);
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let file = options.open(&unfinished).map_err(disk("make", &unfinished))?;
    let written = fill(file).and_then(|file| {
        let file = file.into_inner().map_err(io::IntoInnerError::into_error);
        let file = file.map_err(disk("write", &unfinished))?;
        file.sync_all().map_err(disk("sync", &unfinished))?;
        file.metadata().map(|data| data.len()).map_err(disk("measure", &unfinished))
    });
    let bytes = written.inspect_err(|_| {
        // What is left is removed with the next one at the latest.
        let _ = fs::remove_file(&unfinished);
    })?;
    fs::rename(&unfinished, &place).map_err(disk("rename to", &place))?;
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(disk("sync the folder", folder))?;
    Ok(bytes)
}

/// Removes the oldest, and what another leader left unfinished.
fn tidy(folder: &Path, cluster: ClusterId, keep: u32) -> Result<(), Error> {
    let names = list(folder)?;
    let left_over = names.iter().map(String::as_str).filter(|name| {
        name.starts_with(&format!("warren-{cluster}-")) && name.ends_with(files::UNFINISHED_SUFFIX)
    });
    for name in files::surplus(cluster, &names, keep).into_iter().chain(left_over) {
        let path = folder.join(name);
        fs::remove_file(&path).map_err(disk("remove", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_whole_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let cluster = ClusterId::from_bytes([1; 10]);
        let fail = |_: File| {
            let source = io::Error::other("full");
            Err(Error::Disk { action: "write", path: "x".into(), source })
        };
        let error = into_folder(folder.path(), "a", fail).unwrap_err();
        assert_eq!(error.in_words(), "write x: full");
        assert_eq!(list(folder.path()).unwrap(), Vec::<String>::new());
        for at in 0..3 {
            let name = files::name(cluster, Time(at * 1000));
            let write = |file: File| {
                let mut file = BufWriter::new(file);
                file.write_all(b"12345").unwrap();
                Ok(file)
            };
            assert_eq!(into_folder(folder.path(), &name, write).unwrap(), 5);
        }
        let unfinished = format!("{}.tmp", files::name(cluster, Time(9000)));
        fs::write(folder.path().join(unfinished), b"1").unwrap();
        fs::write(folder.path().join("other"), b"1").unwrap();
        tidy(folder.path(), cluster, 2).unwrap();
        let mut names = list(folder.path()).unwrap();
        names.sort();
        let kept = [1000, 2000].map(|at| files::name(cluster, Time(at)));
        assert_eq!(names, [vec!["other".to_owned()], kept.to_vec()].concat());
    }

    #[test]
    fn policies() {
        let policy = |folder: &str, interval_ms, keep| BackupPolicy {
            folder: folder.into(),
            interval_ms,
            keep,
            recipient: "nobody".into(),
        };
        let why = |policy| check_policy(&policy).unwrap_err().to_string();
        assert_eq!(why(policy("b", 60_000, 1)), "backup.folder: \"b\" is not absolute");
        assert!(why(policy("/b", 1, 1)).starts_with("backup.interval: 1 ms is not between 60 s"));
        assert!(why(policy("/b", 60_000, 0)).starts_with("backup.keep: 0 is not"));
        assert!(why(policy("/b", 60_000, 1)).starts_with("backup.recipient: "));
    }
}
