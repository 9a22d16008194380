//! Containers of one node: start, watch, stop, exec, logs, recover.
//!
//! [`Runtime`] is the seam: [`native::Native`] runs real containers through one
//! static shim each; [`fake::Fake`] exists for tests of the layers above. The
//! caller resolves everything beforehand (image layers, network namespace,
//! limits); the runtime never talks to a registry, a network or the cluster.
//!
//! Containers, their logs and exit codes outlive the process that holds a
//! `Runtime`: a new one finds them with [`Runtime::list`].
//!
//! Not here: images (`warren-image`), namespaces' links and rules (`warren-net`),
//! restart policy and health (`warren-agent`).

pub mod fake;
mod logs;
pub mod native;
mod privileges;
pub mod storage;
mod watched;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

pub use self::privileges::{Privileges, Seccomp, Sysctl, Ulimit};
pub use self::watched::{Watched, watch};

/// What to run, with every reference resolved.
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    /// Unique on this node; `[a-z0-9.-]{1,64}`. One container per attempt of a task.
    pub id: String,
    /// Overlay lower folders, topmost first; never written to.
    pub layers: Vec<PathBuf>,
    /// Arguments, first the program; looked up in the container's PATH when it has no slash.
    pub args: Vec<String>,
    /// `KEY=value`, later entries win. PATH and HOME get Docker's defaults when missing.
    pub env: Vec<String>,
    /// Working directory inside the container; made when missing. Empty is `/`.
    pub cwd: String,
    /// `user`, `user:group`, `uid`, `uid:gid` as in Docker; empty is root. Looked up in the container's root.
    pub user: String,
    pub hostname: String,
    /// Root mounted read-only.
    pub read_only: bool,
    pub limits: Limits,
    pub mounts: Vec<Mount>,
    /// Size of /dev/shm; `None` is 64 MiB.
    pub shm_bytes: Option<u64>,
    /// Of the machine, beside those that every container has.
    pub devices: Vec<Device>,
    /// Small files that the runtime writes and bind-mounts, e.g. `/etc/hosts`.
    pub files: Vec<InjectedFile>,
    /// Names as in `CAP_NET_ADMIN` or `NET_ADMIN`; `ALL` is allowed.
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    /// On by default.
    pub no_new_privileges: bool,
    /// Default seccomp profile, none, or one of its own.
    pub seccomp: Seccomp,
    /// What it may do beyond what all may, and limits of its processes.
    pub privileges: Privileges,
    /// Signal number of a graceful stop, from the image or an override.
    pub stop_signal: i32,
    /// Network namespace made and wired beforehand; `None` shares the host's.
    pub netns: Option<Arc<OwnedFd>>,
    /// Descriptors that the shim keeps open for as long as the container lives, by label (reserved ports).
    pub keep: Vec<(String, Arc<OwnedFd>)>,
    pub log: LogPolicy,
    /// Opaque to the runtime, kept beside the container and returned by [`Runtime::list`].
    pub labels: BTreeMap<String, String>,
}

/// Zero or `None` means no limit, except pids, which always have one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    pub memory_bytes: Option<u64>,
    /// Thousandths of a core (CFS quota).
    pub cpu_millis: Option<u32>,
    /// Relative weight, cgroup v1 scale: 1024 is the default.
    pub cpu_shares: Option<u32>,
    /// Default [`Limits::PIDS_DEFAULT`].
    pub pids: Option<u32>,
    /// Swap beside the memory; none is none at all. Only with a limit of memory.
    pub swap_bytes: Option<u64>,
    /// Processors and memory nodes, as the kernel lists them: `0-3,7`.
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    /// Relative weight when disks are busy, Docker's scale: 10 to 1000.
    pub io_weight: Option<u16>,
    pub io: Vec<IoLimit>,
}

/// The most that is read from, or written to, one block device of the node in a second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoLimit {
    pub kind: IoKind,
    pub device: PathBuf,
    /// Bytes, or operations.
    pub rate: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoKind {
    ReadBps,
    WriteBps,
    ReadIops,
    WriteIops,
}

impl Limits {
    /// Room for any sane service, far below what exhausts a node.
    pub const PIDS_DEFAULT: u32 = 4096;
}

#[derive(Debug, Clone)]
pub struct Mount {
    pub kind: MountKind,
    /// Absolute path inside the container.
    pub target: String,
    pub read_only: bool,
}

#[derive(Debug, Clone)]
pub enum MountKind {
    /// Host folder or file.
    Bind { source: PathBuf },
    Tmpfs {
        size_bytes: Option<u64>,
        mode: u32,
        /// Programs in it may be executed.
        exec: bool,
    },
    /// What a descriptor stands for, wherever its path leads by then.
    Open(Arc<Opened>),
}

/// A folder or file of the host, found and judged by the caller (see [`storage`]).
#[derive(Debug)]
pub struct Opened {
    /// As `O_PATH` opens it.
    pub file: OwnedFd,
    /// How errors call it.
    pub name: String,
    /// With what is mounted below it.
    pub recursive: bool,
    /// Mounts that the host makes below it later are seen, too.
    pub follows: bool,
}

/// A device of the machine that a container may open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Absolute, in /dev, inside the container.
    pub path: String,
    /// Device file of the machine that says which one it is.
    pub host_path: PathBuf,
    pub read: bool,
    pub write: bool,
    /// Permissions and owner; `None`: as those of the machine's file.
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

#[derive(Debug, Clone)]
pub struct InjectedFile {
    pub target: String,
    pub data: Vec<u8>,
    pub mode: u32,
    /// The container's user and group own it, not root.
    pub of_user: bool,
}

/// Where the container's output goes and when it rotates.
#[derive(Debug, Clone)]
pub struct LogPolicy {
    /// Folder of this task's log files; shared by its attempts, one after another.
    pub dir: PathBuf,
    pub max_bytes: u64,
    /// Files kept, the current one included; at least 1.
    pub max_files: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// First process, in the host's pid namespace.
    pub pid: u32,
    pub at: SystemTime,
}

/// How a container ended; kept on disk until [`Runtime::remove`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// As a shell shows it: the exit code, or 128 + signal.
    pub code: i32,
    pub signal: Option<i32>,
    /// The kernel killed a process of this container for want of memory.
    pub oom_killed: bool,
    /// The shim died and took the container with it.
    pub supervisor_lost: bool,
    pub at: SystemTime,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    Running { pid: u32, started_at: SystemTime },
    Exited(Exit),
}

#[derive(Debug, Clone)]
pub struct ContainerInfo {
    pub id: String,
    pub labels: BTreeMap<String, String>,
    pub state: ContainerState,
}

#[derive(Debug, Clone, Default)]
pub struct ExecSpec {
    pub args: Vec<String>,
    /// Added to the container's own environment.
    pub env: Vec<String>,
    pub cwd: Option<String>,
    pub user: Option<String>,
    /// Terminal with rows and columns.
    pub tty: Option<(u16, u16)>,
    /// Give the process a standard input.
    pub stdin: bool,
}

/// A process started beside a container's own, its streams open.
pub struct Exec {
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// With a terminal, everything comes here.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    pub control: Box<dyn ExecControl>,
}

#[async_trait]
pub trait ExecControl: Send {
    async fn resize(&mut self, rows: u16, columns: u16) -> Result<(), Error>;
    async fn signal(&mut self, signal: i32) -> Result<(), Error>;
    /// Exit code as a shell shows it.
    async fn wait(&mut self) -> Result<i32, Error>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    pub at: SystemTime,
    pub stream: Stream,
    /// Without the newline; cut at the named limit.
    pub line: Vec<u8>,
}

#[derive(Debug, Clone, Default)]
pub struct LogQuery {
    /// Only the last so many lines.
    pub tail: Option<usize>,
    pub since: Option<SystemTime>,
    /// Wait for more until the receiver goes away.
    pub follow: bool,
}

/// What went wrong, and whose business it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The specification cannot work (missing command, unknown user, bad path): trying again will not help.
    #[error("{0}")]
    Rejected(String),
    #[error("no container {0}")]
    NotFound(String),
    #[error("container {0} is not running")]
    NotRunning(String),
    #[error("{action}")]
    Io { action: String, source: std::io::Error },
    /// The kernel lacks something we need.
    #[error("{0}")]
    Unsupported(String),
}

/// Containers of one node. All calls are safe to repeat: doing one twice is harmless.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Starts a container and returns once its program has been executed.
    ///
    /// # Errors
    /// [`Error::Rejected`] when the program, user, working directory or a mount is wrong; nothing is left behind.
    async fn start(&self, spec: ContainerSpec) -> Result<Started, Error>;
    /// Resolves when the container has ended (at once if it already has).
    async fn wait(&self, id: &str) -> Result<Exit, Error>;
    /// Sends one signal to the container's first process.
    async fn signal(&self, id: &str, signal: i32) -> Result<(), Error>;
    /// Stop signal, then SIGKILL to all its processes after `grace`; returns when it has ended.
    async fn stop(&self, id: &str, grace: Duration) -> Result<Exit, Error>;
    /// Kills what still runs and removes mounts, cgroups and state; keeps logs. Unknown ids are fine.
    async fn remove(&self, id: &str) -> Result<(), Error>;
    async fn exec(&self, id: &str, exec: ExecSpec) -> Result<Exec, Error>;
    /// Every container known on this node, those of earlier processes included.
    async fn list(&self) -> Result<Vec<ContainerInfo>, Error>;
    /// A duplicate of a descriptor that a running container's shim keeps under `label`.
    async fn kept(&self, id: &str, label: &str) -> Result<Option<OwnedFd>, Error>;
    /// The log lines of a folder given in [`LogPolicy::dir`], oldest first.
    async fn logs(
        &self,
        dir: PathBuf,
        query: LogQuery,
    ) -> Result<tokio::sync::mpsc::Receiver<LogLine>, Error>;
}
