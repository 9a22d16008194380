//! The process of the data plane, as the daemon has it: started, found again, ended.
//!
//! It is held by a pidfd, so a signal never hits another one. One that listens is found by
//! connecting; one that should and does not, by its mark.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::net::UnixStream;
use warren_model::id::NodeId;

use super::Options;
use super::link::Link;
use crate::descriptors::Descriptors;
use crate::mark::{self, Mark};
use crate::serve::SOCKET;
use crate::wire::{Ask, Nothing};

/// A process that was killed is gone within this; so is one that was asked to end.
const GONE_MAX: Duration = Duration::from_secs(2);
/// One that hands over finishes what waits first.
const DRAINED_MAX: Duration = Duration::from_secs(10);
/// A log that is longer is begun anew: it is of processes that are gone.
const LOG_LEN_MAX: u64 = 1 << 20;

pub(super) struct Process {
    pub(super) link: Link,
    /// Second descriptors of all that it held when it was connected to.
    pub(super) held: Descriptors,
    pidfd: OwnedFd,
    /// Whether it was told by an earlier daemon, or by nobody yet.
    pub(super) is_new: bool,
}

impl Process {
    pub(super) async fn start(options: &Options) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let theirs = theirs.into_std()?;
        theirs.set_nonblocking(false)?;
        let log = match &options.log {
            Some(path) => log(path)?.into(),
            None => Stdio::null(),
        };
        let child = Command::new(&options.program)
            .arg0("warren")
            .args(&options.arguments)
            // Nothing of ours is its business.
            .env_clear()
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        // Not reaped before we have this, so the number cannot be anybody else's.
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pidfd = pidfd_open(pid.ok_or(io::ErrorKind::InvalidData)?, PidfdFlags::empty())?;
        match Link::open(ours).await {
            Ok((link, held)) => Ok(Self { link, held, pidfd, is_new: true }),
            Err(error) => {
                end(&pidfd, GONE_MAX).await;
                let text = format!("start {}: {error}", options.program.display());
                Err(io::Error::new(error.kind(), text))
            }
        }
    }

    /// That of an earlier daemon of this node. What is in the way of a new one is ended.
    pub(super) async fn find(run_dir: &Path, node: NodeId) -> Option<Self> {
        let found = match connect(run_dir).await {
            Ok((link, held, pidfd)) => Some(Self { link, held, pidfd, is_new: false }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(%error, "no data plane answers in {}", run_dir.display());
                None
            }
        };
        let found = match found {
            Some(process) if process.link.welcome.node == node.as_bytes() => return Some(process),
            other => other,
        };
        if let Some(foreign) = found {
            tracing::warn!("the data plane in {} is of another node", run_dir.display());
            foreign.kill().await;
        }
        let left = Mark::read(&run_dir.join(mark::FILE));
        if let Some(pidfd) = left.and_then(|mark| mark.process()) {
            tracing::warn!("a data plane that nobody reaches is ended");
            end(&pidfd, Duration::ZERO).await;
        }
        None
    }

    /// Ends it at once.
    pub(super) async fn kill(self) {
        end(&self.pidfd, Duration::ZERO).await;
    }

    /// Waits elsewhere until it has ended by itself, and ends it if it does not.
    pub(super) fn retire(self) {
        tokio::spawn(async move { end(&self.pidfd, DRAINED_MAX).await });
    }
}

/// Ends the data plane of this folder, if there is one.
pub(super) async fn remove(run_dir: &Path) {
    if let Ok((mut link, _, pidfd)) = connect(run_dir).await {
        if let Err(error) = link.ask(Ask::End(Nothing {}), &[]).await {
            tracing::warn!(%error, "the data plane does not end by itself");
        }
        end(&pidfd, GONE_MAX).await;
    }
    let path = run_dir.join(mark::FILE);
    if let Some(pidfd) = Mark::read(&path).and_then(|mark| mark.process()) {
        end(&pidfd, Duration::ZERO).await;
    }
    for left in [run_dir.join(SOCKET), path] {
        // It has removed them itself, unless it was killed.
        let _ = fs::remove_file(left);
    }
}

async fn connect(run_dir: &Path) -> io::Result<(Link, Descriptors, OwnedFd)> {
    // Through a descriptor, since socket addresses end at 107 bytes.
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let folder = File::options().read(true).custom_flags(flags).open(run_dir)?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd());
    let stream = UnixStream::connect(path).await?;
    let peer = stream.peer_cred()?;
    if peer.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let pid = peer.pid().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
    // While the connection is open the listener lives, and the number is its own.
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    match Link::open(stream).await {
        Ok((link, held)) => Ok((link, held, pidfd)),
        Err(error) => {
            // It listens and does not answer: it was stopped, or is mad.
            end(&pidfd, Duration::ZERO).await;
            Err(error)
        }
    }
}

/// Waits until the process has ended, and kills it if it has not by then.
async fn end(pidfd: &OwnedFd, patience: Duration) {
    if !gone(pidfd, patience).await {
        // One that has ended meanwhile is fine.
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
        if !gone(pidfd, GONE_MAX).await {
            tracing::error!("a data plane that was killed does not end");
        }
    }
    // Ours if this daemon started it; else somebody else's to collect.
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let _ = waitid(WaitId::PidFd(pidfd.as_fd()), options);
}

/// Whether it ends within `patience`. On a thread that may wait: it happens once in a while.
async fn gone(pidfd: &OwnedFd, patience: Duration) -> bool {
    let Ok(pidfd) = pidfd.try_clone() else { return false };
    let wait = move || {
        let patience = Timespec::try_from(patience).unwrap_or_default();
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        poll(&mut fds, Some(&patience)).is_ok_and(|ready| ready > 0)
    };
    tokio::task::spawn_blocking(wait).await.unwrap_or(false)
}

fn log(path: &Path) -> io::Result<File> {
    let is_long = fs::metadata(path).is_ok_and(|about| about.len() > LOG_LEN_MAX);
    let mut options = OpenOptions::new();
    options.create(true).mode(0o600);
    if is_long {
        // Not truncated: a predecessor that still writes would leave a hole.
        fs::remove_file(path)?;
    }
    options.append(true).open(path)
}
