//! Real containers: namespaces, control groups and overlayfs, one static shim each.
//!
//! The daemon decides (this module), the shim does (`warren-shim`). State lives in folders
//! ([`state`]), so that any later process finds every container again: running ones by the socket
//! their shim listens on, ended ones by the exit file, lost ones by having neither.
//!
//! Operations on one container exclude each other; different containers do not wait for one
//! another. Nothing polls: exits are pidfds, replies are sockets.

mod binary;
mod capability;
mod cgroup;
mod channel;
mod container;
mod device;
mod exec;
mod explain;
mod features;
mod seccomp;
mod spec;
mod start;
mod state;
mod tree;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use tokio::sync::{OwnedMutexGuard, Semaphore, mpsc};
use warren_shim::message::{KEPT_BASE, Operation, Reply, Request};

use crate::logs;
use crate::{
    ContainerInfo, ContainerSpec, Error, Exec, ExecSpec, Exit, LogLine, LogQuery, Runtime, Started,
};

pub use features::{Feature, cgroup_version, features};
pub use seccomp::check as check_seccomp;

use binary::Binary;
use cgroup::Cgroups;
use channel::Channel;
use container::Container;
use seccomp::Programs;
use state::Folders;

/// Where containers live on this host. Two nodes on one host differ in all three.
#[derive(Debug, Clone)]
pub struct Options {
    /// Sockets and state of running containers, e.g. `/run/warren`.
    pub run_dir: PathBuf,
    /// Writable layers, e.g. `/var/lib/warren`.
    pub data_dir: PathBuf,
    /// Control groups are `/warren-<node_key>/<container id>`; `[a-z0-9]{1,32}`.
    pub node_key: String,
}

/// The native runtime. Cheap to keep, one for each node.
#[derive(Debug)]
pub struct Native {
    shared: Arc<Shared>,
}

/// Work on the file system at once. It is the kernel's locks that starts wait for, so that more
/// threads only cost memory.
const BLOCKING_MAX: usize = 16;

/// A container once it is known; locked while something is done to it.
type Slot = Option<Arc<Container>>;
type Lock = Arc<tokio::sync::Mutex<Slot>>;

#[derive(Debug)]
struct Shared {
    folders: Folders,
    boot_id: String,
    cgroups: Box<dyn Cgroups>,
    binary: Binary,
    seccomp: Programs,
    /// What this process can hand on to containers.
    capabilities: u64,
    reset_oom_score: bool,
    masked: Vec<String>,
    slots: Mutex<BTreeMap<String, Lock>>,
    /// Bounds threads that wait for the file system.
    blocking: Semaphore,
    swept: AtomicBool,
}

impl Native {
    /// Looks at the host and makes the folders. Containers are found by [`Runtime::list`], or one
    /// by one when something is asked of them.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the kernel or the process lacks something that is needed.
    pub fn open(options: Options) -> Result<Self, Error> {
        #[cfg(feature = "mutants")]
        leave_one_out();
        let key = &options.node_key;
        if key.is_empty() || key.len() > 32 || !key.bytes().all(|byte| byte.is_ascii_alphanumeric())
        {
            return Err(Error::Rejected(format!("node key \"{key}\" is not allowed")));
        }
        if let Some(missing) = features().into_iter().find(|known| known.required && !known.ok) {
            return Err(Error::Unsupported(format!("{}: {}", missing.name, missing.detail)));
        }
        // A shim works in its own folder, where a relative path means something else.
        let run_dir = std::path::absolute(&options.run_dir).map_err(io_error("find run_dir"))?;
        let data_dir = std::path::absolute(&options.data_dir).map_err(io_error("find data_dir"))?;
        let folders = Folders::make(&run_dir, &data_dir)
            .map_err(io_error("make the folders of containers"))?;
        let cgroups = cgroup::detect(&read("/proc/self/mountinfo")?, key)?;
        Ok(Self {
            shared: Arc::new(Shared {
                folders,
                boot_id: read("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
                cgroups,
                binary: Binary::new().map_err(io_error("put the shim into memory"))?,
                seccomp: Programs::default(),
                capabilities: capability::available(&read("/proc/self/status")?),
                reset_oom_score: read("/proc/self/oom_score_adj")?.trim() != "0",
                masked: throttle_paths(),
                slots: Mutex::default(),
                blocking: Semaphore::new(BLOCKING_MAX),
                swept: AtomicBool::new(false),
            }),
        })
    }
}

impl Native {
    /// Removes the folders and control groups that all containers of this node share, for a node
    /// that stopped with its containers. [`Native::open`] makes them again.
    ///
    /// # Errors
    /// When containers are left, or the kernel refuses.
    pub fn dispose(&self) -> Result<(), Error> {
        let shared = &self.shared;
        let action = "remove the folders and control groups of all containers";
        shared.folders.dispose().map_err(io_error(action))?;
        shared.cgroups.dispose().map_err(io_error(action))
    }
}

fn read(file: &str) -> Result<String, Error> {
    fs::read_to_string(file).map_err(io_error(format!("read {file}")))
}

fn io_error(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    |source| Error::Io { action: action.into(), source }
}

/// Processors that report throttling tell a container what its neighbours do (moby masks them).
fn throttle_paths() -> Vec<String> {
    (0..)
        .map(|number| format!("/sys/devices/system/cpu/cpu{number}"))
        .take_while(|folder| fs::exists(folder).unwrap_or(false))
        .map(|folder| format!("{folder}/thermal_throttle"))
        .filter(|folder| fs::exists(folder).unwrap_or(false))
        .collect()
}

/// The protection that the environment names is missing from now on.
#[cfg(feature = "mutants")]
fn leave_one_out() {
    use warren_shim::protection::{Protection, leave_out};
    let Ok(name) = std::env::var("WARREN_LEAVE_OUT") else { return };
    let at = Protection::ALL.iter().position(|known| known.name() == name);
    let at = at.expect("WARREN_LEAVE_OUT names a protection");
    leave_out(u32::try_from(at).map_or(0, |at| at + 1));
}

impl Shared {
    /// Runs file system work about one container on a thread that may wait.
    async fn blocking<T, F>(self: &Arc<Self>, id: &str, work: F) -> T
    where
        T: Send + 'static,
        F: FnOnce(&Self, &str) -> T + Send + 'static,
    {
        let (shared, id) = (Arc::clone(self), id.to_owned());
        // Never closed.
        let _permit = self.blocking.acquire().await;
        match tokio::task::spawn_blocking(move || work(&shared, &id)).await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime shuts down and drops this future with everything else.
                Err(_cancelled) => std::future::pending().await,
            },
        }
    }

    /// Locks the slot of an id, making it when needed.
    async fn lock(&self, id: &str) -> OwnedMutexGuard<Slot> {
        loop {
            let lock = {
                let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
                Arc::clone(slots.entry(id.to_owned()).or_default())
            };
            let guard = Arc::clone(&lock).lock_owned().await;
            // While we waited the container may have been removed, and its slot with it.
            let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            if slots.get(id).is_some_and(|known| Arc::ptr_eq(known, &lock)) {
                return guard;
            }
        }
    }

    /// Forgets a slot; its holder still has the lock.
    fn forget(&self, id: &str) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    async fn find(self: &Arc<Self>, id: &str) -> Result<Arc<Container>, Error> {
        spec::check_id(id)?;
        let mut slot = self.lock(id).await;
        match self.attached(id, &mut slot).await? {
            Some(container) => Ok(container),
            None => {
                self.forget(id);
                Err(Error::NotFound(id.to_owned()))
            }
        }
    }

    async fn find_running(self: &Arc<Self>, id: &str) -> Result<Arc<Container>, Error> {
        let container = self.find(id).await?;
        if container.exit().is_some() {
            return Err(Error::NotRunning(id.to_owned()));
        }
        Ok(container)
    }

    /// A connection to a running container's shim.
    fn channel(&self, id: &str) -> Result<Channel, Error> {
        Channel::connect(&self.folders.state(id)).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Error::NotRunning(id.to_owned())
            }
            _ => Error::Io { action: format!("connect to the shim of container {id}"), source },
        })
    }

    async fn signal(&self, id: &str, signal: i32) -> Result<(), Error> {
        let channel = self.channel(id)?;
        let request = Request { operation: Operation::Signal, argument: signal };
        let gone = || Error::NotRunning(id.to_owned());
        channel.request(&request, &[]).await.map_err(|_| gone())?;
        match channel.reply().await.map_err(|_| gone())? {
            (Reply::Signalled { errno: 0 }, _) => Ok(()),
            (Reply::Signalled { errno: libc::ESRCH }, _) => Err(gone()),
            (Reply::Signalled { errno }, _) => Err(Error::Io {
                action: format!("send signal {signal} to container {id}"),
                source: io::Error::from_raw_os_error(errno),
            }),
            (reply, _) => Err(explain::Subject::exec(&ExecSpec::default()).error(reply)),
        }
    }

    /// The containers of an unfinished sweep keep their data; it is tried again at the next start.
    fn sweep_once(self: &Arc<Self>) {
        if self.swept.swap(true, Ordering::Relaxed) {
            return;
        }
        let shared = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = shared.folders.sweep() {
                tracing::warn!(%error, "remove writable layers of before a reboot");
            }
        });
    }
}

/// Runs to its end whether or not the caller still waits: half a start or removal helps nobody.
async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_cancelled) => std::future::pending().await,
        },
    }
}

#[async_trait]
impl Runtime for Native {
    async fn start(&self, mut spec: ContainerSpec) -> Result<Started, Error> {
        spec::check(&mut spec)?;
        device::expand(&mut spec)?;
        let shared = Arc::clone(&self.shared);
        whole(async move {
            let mut slot = shared.lock(&spec.id).await;
            if let Some(container) = shared.attached(&spec.id, &mut slot).await? {
                return Ok(container.started());
            }
            let id = spec.id.clone();
            let started = shared.start(Arc::new(spec), &mut slot).await;
            if started.is_err() {
                shared.forget(&id);
            }
            Ok(started?.started())
        })
        .await
    }

    async fn wait(&self, id: &str) -> Result<Exit, Error> {
        self.shared.find(id).await?.wait().await
    }

    async fn signal(&self, id: &str, signal: i32) -> Result<(), Error> {
        spec::check_signal(signal)?;
        self.shared.find_running(id).await?;
        self.shared.signal(id, signal).await
    }

    async fn stop(&self, id: &str, grace: Duration) -> Result<Exit, Error> {
        let container = self.shared.find(id).await?;
        if let Some(exit) = container.exit() {
            return Ok(exit);
        }
        match self.shared.signal(id, container.state.stop_signal).await {
            Ok(()) | Err(Error::NotRunning(_)) => {}
            Err(error) => return Err(error),
        }
        match tokio::time::timeout(grace, container.wait()).await {
            Ok(exit) => exit,
            Err(_elapsed) => container.kill(&self.shared).await,
        }
    }

    async fn remove(&self, id: &str) -> Result<(), Error> {
        spec::check_id(id)?;
        let (shared, id) = (Arc::clone(&self.shared), id.to_owned());
        whole(async move {
            let mut slot = shared.lock(&id).await;
            let container = shared.attached(&id, &mut slot).await?;
            if let Some(container) = container {
                container.kill(&shared).await?;
                shared.clean(&id).await?;
            }
            shared.forget(&id);
            Ok(())
        })
        .await
    }

    async fn exec(&self, id: &str, exec: ExecSpec) -> Result<Exec, Error> {
        self.shared.find_running(id).await?;
        self.shared.exec(id, &exec).await
    }

    async fn list(&self) -> Result<Vec<ContainerInfo>, Error> {
        self.shared.sweep_once();
        let ids = self.shared.blocking("", |shared, _| shared.folders.ids()).await;
        let mut containers = Vec::new();
        for id in ids.map_err(io_error("list the folders of containers"))? {
            match self.shared.find(&id).await {
                Ok(container) => containers.push(container.info()),
                // Removed meanwhile, rubbish, or a name that we never gave.
                Err(Error::NotFound(_) | Error::Rejected(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(containers)
    }

    async fn kept(&self, id: &str, label: &str) -> Result<Option<OwnedFd>, Error> {
        let container = self.shared.find(id).await?;
        let at = container.state.kept.iter().position(|known| known == label);
        let (Some(at), Some(shim)) = (at, container.shim()) else { return Ok(None) };
        let number = KEPT_BASE + i32::try_from(at).unwrap_or(i32::MAX - KEPT_BASE);
        let flags = PidfdGetfdFlags::empty();
        match pidfd_getfd(shim, number, flags) {
            Ok(fd) => Ok(Some(fd)),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(Error::Io {
                action: format!("fetch descriptor {label} of container {id}"),
                source: error.into(),
            }),
        }
    }

    async fn logs(&self, dir: PathBuf, query: LogQuery) -> Result<mpsc::Receiver<LogLine>, Error> {
        logs::read(dir, query).await
    }
}
