//! What makes a process a daemon: folders, locks, pid file, socket, readiness.
//!
//! Nothing here knows what the daemon does.

pub(crate) mod detach;
pub(crate) mod inherited;
mod scrub;
mod socket;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::cli::failure::{Exit, Failure};
use crate::settings::NodeSettings;
pub(crate) use scrub::scrub;
pub(crate) use socket::bind;

const LOCK_NAME: &str = "lock";
/// Replaced files in a row before a lock counts as somebody else's.
const LOCK_TRIES_MAX: u32 = 8;

/// A folder that only root reads.
const PRIVATE: u32 = 0o700;
/// The run folder may be entered by those who may use the socket.
const ENTERED: u32 = 0o755;

/// This process alone uses the folders while this lives.
pub(crate) struct Held {
    pid_path: PathBuf,
    socket: PathBuf,
    _pid: File,
    _data: File,
}

/// Makes the folder and its parents.
pub(crate) fn folder(path: &Path, mode: u32) -> Result<(), Failure> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(|e| Failure::failed(format!("make folder {}: {e}", path.display())))
}

/// Whether the folders can be those of a daemon at all.
///
/// # Errors
/// [`Exit::Input`] for a path that is too long for a socket.
pub(crate) fn check(settings: &NodeSettings) -> Result<(), Failure> {
    socket::check(&settings.socket())
}

/// Makes the folders and takes them for this process.
///
/// # Errors
/// [`Exit::Conflict`] naming the process that has them.
pub(crate) fn hold(settings: &NodeSettings) -> Result<Held, Failure> {
    folder(&settings.data_dir, PRIVATE)?;
    folder(&settings.run_dir, ENTERED)?;
    let data = lock(&settings.data_dir.join(LOCK_NAME), &settings.data_dir)?;
    let pid_path = settings.pid_file();
    let pid = lock(&pid_path, &settings.run_dir)?;
    Ok(Held { pid_path, socket: settings.socket(), _pid: pid, _data: data })
}

impl Drop for Held {
    fn drop(&mut self) {
        // While the lock is still ours, so that they are not a successor's files.
        let _ = fs::remove_file(&self.socket);
        let _ = fs::remove_file(&self.pid_path);
    }
}

/// Locks `path` and writes our pid into it; `what` is taken by it.
fn lock(path: &Path, what: &Path) -> Result<File, Failure> {
    let failed = |e: std::io::Error| Failure::failed(format!("lock {}: {e}", path.display()));
    for _ in 0..LOCK_TRIES_MAX {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(path)
            .map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(taken(&mut file, what)),
            Err(e) => return Err(failed(e.into())),
        }
        // A daemon that ended may have removed the file after we opened it.
        let ours = file.metadata().map_err(failed)?.ino();
        if fs::metadata(path).is_ok_and(|now| now.ino() == ours) {
            file.set_len(0).map_err(failed)?;
            writeln!(file, "{}", std::process::id()).map_err(failed)?;
            return Ok(file);
        }
    }
    Err(Failure::new(Exit::Conflict, format!("{} is being replaced all the time", path.display())))
}

fn taken(file: &mut File, what: &Path) -> Failure {
    let mut pid = String::new();
    // Without its pid the refusal is still right.
    let _ = file.rewind().and_then(|()| file.read_to_string(&mut pid));
    let message = format!("{} is used by a running daemon, pid {}", what.display(), pid.trim());
    Failure::new(Exit::Conflict, message)
        .hint("stop it with `warren node stop`, or use other --data-dir and --run-dir")
}

/// Descriptors as many as the system lets us have: each container needs a few.
/// Containers do not inherit this, their limits are set anew.
pub(crate) fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, "limit of open files stays at {current:?}");
    }
}

/// Tells systemd how we are, when it asked to be told.
pub(crate) fn tell_systemd(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let path = PathBuf::from(path);
    let address = match path.to_str().and_then(|text| text.strip_prefix('@')) {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let sent = address
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!(%error, "systemd could not be told {state}");
    }
}

#[cfg(test)]
mod tests {
    use warren_base::telemetry::LogFormat;

    use super::*;
    use crate::settings::{Encryption, Profile};

    #[test]
    fn folders_are_held_once() {
        let dir = tempfile::tempdir().unwrap();
        let settings = NodeSettings {
            data_dir: dir.path().join("data"),
            run_dir: dir.path().join("run"),
            listen: "127.0.0.1:1".parse().unwrap(),
            advertise: None,
            admin: None,
            overlay_port: None,
            image_gc: None,
            wireguard: Encryption::Auto,
            profile: Profile::Lan,
            insecure_registries: Vec::new(),
            registry_mirrors: Vec::new(),
            cdi_spec_dirs: Vec::new(),
            managers: Vec::new(),
            told: crate::settings::Told::default(),
            log_level: "info".into(),
            log_format: LogFormat::Text,
        };
        let held = hold(&settings).unwrap();
        let pid = std::process::id();
        assert_eq!(fs::read_to_string(settings.pid_file()).unwrap().trim(), pid.to_string());
        let refused = hold(&settings).err().unwrap();
        assert_eq!(refused.exit, Exit::Conflict);
        assert!(refused.message.ends_with(&format!("pid {pid}")), "{refused}");
        drop(held);
        assert!(!settings.pid_file().exists());
        hold(&settings).unwrap();
        let mode = fs::metadata(&settings.data_dir).unwrap().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
