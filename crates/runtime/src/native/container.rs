//! One container as this process knows it: attached to its shim, or ended.
//!
//! A task waits for the shim's pidfd, so that an exit costs no thread and no polling. When the shim
//! is gone without an exit on disk it was lost: what is left of the container is killed (the kernel
//! has killed its first process already, unless a program changed user and so cleared that), and
//! the loss is written down.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::sync::watch;
use warren_shim::record::Run;

use super::Shared;
use super::state::{State, time};
use crate::watched::{Watched, watch};
use crate::{ContainerInfo, ContainerState, Error, Exit, Started};

/// After SIGKILL a process ends at once, unless the kernel holds it in a device or file system that
/// hangs. Then it is not waited for any longer.
const KILLED_WAIT: Duration = Duration::from_secs(10);
/// Processes that fork while they are killed take another round.
const KILL_ROUNDS: usize = 100;

#[derive(Debug)]
pub(crate) struct Container {
    id: String,
    pub(crate) state: State,
    run: Run,
    /// `None` for one that had ended when it was found.
    shim: Option<Arc<Watched>>,
    exit: watch::Receiver<Option<Exit>>,
}

impl Container {
    /// One whose shim runs; `pidfd` is the shim's.
    pub(crate) fn running(
        shared: &Arc<Shared>,
        id: &str,
        state: State,
        run: Run,
        pidfd: Arc<Watched>,
    ) -> Self {
        let (sender, exit) = watch::channel(None);
        let (shared, owned_id, shim) = (Arc::clone(shared), id.to_owned(), Arc::clone(&pidfd));
        let lingers = state.host_pid;
        tokio::spawn(async move {
            ended(&shim).await;
            if lingers && let Err(error) = shared.kill(&owned_id).await {
                tracing::warn!(container = owned_id, %error, "end what its first process left");
            }
            let exit = shared.read_exit(&owned_id).await;
            sender.send_replace(Some(exit));
        });
        Self { id: id.to_owned(), state, run, shim: Some(pidfd), exit }
    }

    pub(crate) fn exited(id: &str, state: State, run: Run, exit: Exit) -> Self {
        Self { id: id.to_owned(), state, run, shim: None, exit: watch::channel(Some(exit)).1 }
    }

    pub(crate) fn started(&self) -> Started {
        Started { pid: self.run.pid, at: time(self.run.at_ns) }
    }

    pub(crate) fn exit(&self) -> Option<Exit> {
        self.exit.borrow().clone()
    }

    pub(crate) fn info(&self) -> ContainerInfo {
        let state = match self.exit() {
            Some(exit) => ContainerState::Exited(exit),
            None => {
                let Started { pid, at } = self.started();
                ContainerState::Running { pid, started_at: at }
            }
        };
        ContainerInfo { id: self.id.clone(), labels: self.state.labels.clone(), state }
    }

    /// The shim's pidfd while the container runs.
    pub(crate) fn shim(&self) -> Option<&OwnedFd> {
        self.shim.as_ref().filter(|_| self.exit().is_none()).map(|shim| shim.get_ref())
    }

    pub(crate) async fn wait(&self) -> Result<Exit, Error> {
        let mut exit = self.exit.clone();
        let known = exit.wait_for(Option::is_some).await;
        // The task that sends it ends early only with the whole process.
        known.ok().and_then(|exit| exit.clone()).ok_or_else(|| Error::NotFound(self.id.clone()))
    }

    /// Kills all processes and waits for the end. A shim that does not see it is killed as well.
    pub(crate) async fn kill(&self, shared: &Arc<Shared>) -> Result<Exit, Error> {
        if let Some(exit) = self.exit() {
            return Ok(exit);
        }
        shared.kill(&self.id).await?;
        if let Ok(exit) = tokio::time::timeout(KILLED_WAIT, self.wait()).await {
            return exit;
        }
        if let Some(shim) = self.shim() {
            tracing::warn!(container = self.id, "shim does not report the end, killing it");
            // An error means that it has ended meanwhile.
            let _ = pidfd_send_signal(shim, Signal::KILL);
        }
        self.wait().await
    }
}

/// Waits for a process to end, and reaps it if it is a child of ours.
pub(crate) async fn ended(pidfd: &Watched) {
    // An error means that the runtime shuts down.
    let Ok(_ready) = pidfd.readable().await else { return };
    // Not our child when another daemon started it: then init reaps it.
    let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
}

impl Shared {
    /// The exit of a container whose shim has ended.
    pub(crate) async fn read_exit(self: &Arc<Self>, id: &str) -> Exit {
        // One small file on a tmpfs, quicker read here than on another thread.
        match self.folders.exit(id) {
            Ok(Some(exit)) => exit,
            Ok(None) => self.lost(id).await,
            Err(error) => {
                tracing::warn!(container = id, %error, "exit file");
                self.lost(id).await
            }
        }
    }

    /// Ends what a lost shim left and writes down that it was lost.
    pub(crate) async fn lost(self: &Arc<Self>, id: &str) -> Exit {
        tracing::warn!(container = id, "supervisor lost");
        for _ in 0..KILL_ROUNDS {
            let left = self.cgroups.processes(id).unwrap_or_default();
            if left.is_empty() {
                break;
            }
            let watched = left.iter().filter_map(|pid| watch_process(*pid)).collect::<Vec<_>>();
            if let Err(error) = self.kill(id).await {
                tracing::warn!(container = id, %error, "kill what a lost shim left");
            }
            for process in &watched {
                if tokio::time::timeout(KILLED_WAIT, ended(process)).await.is_err() {
                    tracing::warn!(container = id, "a killed process does not end");
                }
            }
        }
        let at = SystemTime::now();
        let written = self.blocking(id, move |shared, id| shared.folders.leave_exit(id, at)).await;
        written.unwrap_or_else(|error| {
            tracing::warn!(container = id, %error, "write the exit of a lost container");
            Exit {
                code: 128 + libc::SIGKILL,
                signal: Some(libc::SIGKILL),
                oom_killed: false,
                supervisor_lost: true,
                at,
            }
        })
    }

    async fn kill(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let killed = self.blocking(id, |shared, id| shared.cgroups.kill(id)).await;
        killed.map_err(|source| Error::Io { action: format!("kill container {id}"), source })
    }
}

fn watch_process(pid: i32) -> Option<Watched> {
    let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    watch(pidfd).ok()
}
