//! One machine as the kernel sees it: namespaces of processes, network, mounts
//! and host name that exist while one process does, and nowhere by name.
//!
//! That process, the first of its process namespace, waits on a pipe from us:
//! when we end, however we end, it ends, and the kernel kills everything that
//! runs in there. Mounts and links go with the last process. What is left
//! (control groups, folders) is swept by whoever comes next (`sweep`).
//!
//! Contract: children that were started inside must be waited for by their
//! owner once the machine was told to end; until then it cannot go.

#![allow(unsafe_code)]

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags};

use crate::wait::ended_within;

/// Bash, since it buries orphans whose parent it has become. Name, file with the boot id.
const FIRST: &str = r#"
set -eu
mount -t proc proc /proc
echo "$1" >/proc/sys/kernel/hostname
mount --bind "$2" /proc/sys/kernel/random/boot_id
ip link set lo up
echo up
trap '' HUP INT TERM
read -r _ || true
"#;
/// For the kernel to kill and bury everything inside; containers may hold much memory.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Namespaces of one machine from its start to its end.
#[derive(Debug)]
pub(crate) struct Space {
    /// `unshare`, which ends with the first process inside.
    keeper: Child,
    first: OwnedFd,
    first_pid: Pid,
}

impl Space {
    /// A machine without links but its own loopback.
    pub(crate) fn open(hostname: &str, boot_id: &Path) -> Result<Self> {
        let mut keeper = Command::new("unshare")
            .args(["--net", "--uts", "--pid", "--mount", "--ipc", "--fork", "--kill-child", "--"])
            .args(["bash", "-c", FIRST, "first", hostname])
            .arg(boot_id)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Read when it fails; at its end unshare complains of its own death.
            .stderr(Stdio::piped())
            .spawn()
            .context("run unshare, of util-linux")?;
        let mut said = [0; 3];
        let out = keeper.stdout.as_mut().context("unshare has an output")?;
        if let Err(error) = out.read_exact(&mut said) {
            let _ = keeper.kill();
            let mut why = String::new();
            let _ = keeper.stderr.take().map(|mut err| err.read_to_string(&mut why));
            let _ = keeper.wait();
            let why = why.trim();
            bail!("make namespaces for {hostname}: {error}: {why} (it needs root and iproute2)");
        }
        let pid = only_child(keeper.id())?;
        let first = pidfd_open(pid, PidfdFlags::empty()).context("hold the first process")?;
        Ok(Self { keeper, first, first_pid: pid })
    }

    /// The first process, as seen from outside: `nsenter --all --target` takes it.
    pub(crate) fn pid(&self) -> i32 {
        self.first_pid.as_raw_nonzero().get()
    }

    /// Runs `work` on a thread inside; what it starts is inside too.
    pub(crate) fn within<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter().context("enter the namespaces")?;
                Ok(work())
            });
            match inside.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Moves the calling thread, for good.
    fn enter(&self) -> std::io::Result<()> {
        // SAFETY: the thread is ours alone, lives for one piece of work, and nothing in it counts
        // on the root or working directory being that of the other threads.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS)? };
        let all = ThreadNameSpaceType::NETWORK
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::PROCESS_ID
            | ThreadNameSpaceType::MOUNT;
        Ok(rustix::thread::move_into_thread_name_spaces(self.first.as_fd(), all)?)
    }

    /// Pulls the plug: everything inside is killed now, and buried once its parents wait for it.
    pub(crate) fn pull_plug(&self) {
        // It has ended already: all the better.
        let _ = pidfd_send_signal(&self.first, Signal::KILL);
    }

    /// Returns when nothing is left.
    pub(crate) fn gone(mut self) -> Result<()> {
        self.pull_plug();
        if !ended_within(self.first.as_fd(), END_LIMIT)? {
            bail!("processes inside were not waited for: the machine cannot end");
        }
        self.keeper.wait().context("wait for unshare")?;
        Ok(())
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.pull_plug();
        // Bounded: a parent that forgot to wait must not hold up everybody.
        if ended_within(self.first.as_fd(), END_LIMIT).unwrap_or(false) {
            let _ = self.keeper.wait();
        }
    }
}

/// The one child of a process that has one.
fn only_child(parent: u32) -> Result<Pid> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let number = text.split_whitespace().next().and_then(|word| word.parse().ok());
    number.and_then(Pid::from_raw).with_context(|| format!("{path} names no process: {text:?}"))
}
