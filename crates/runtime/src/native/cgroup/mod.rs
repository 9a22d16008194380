//! Control groups of containers: `/warren-<node>/<container>` in every hierarchy that is used.
//!
//! [`Cgroups`] hides whether the kernel has version 1 (also as part of a hybrid) or version 2.
//! This side makes, limits, kills and removes groups; the container's first process moves itself
//! in (see [`Membership`]), so that no process is ever moved by another.
//!
//! Not here: devices for single containers; all have the same rules.

mod devices;
mod disks;
mod v1;
mod v2;

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::device::Node;
use crate::{Error, Limits};

pub(crate) use devices::Rule;
pub(crate) use v1::V1;
pub(crate) use v2::V2;

/// CFS period; quotas are shares of it.
const CPU_PERIOD_US: u64 = 100_000;
/// The kernel refuses quotas below 1 ms.
const CPU_QUOTA_MIN_US: u64 = 1_000;
/// Docker's lower bound: below, a container dies before its program runs.
const MEMORY_MIN_BYTES: u64 = 6 << 20;
/// A group is busy until the kernel has let go of its last process: at most some milliseconds,
/// unless the machine is drowning.
const REMOVE_PAUSES_MS: [u64; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];

/// How a process becomes a member, and what it may see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Membership {
    /// v1: files that a process writes itself into.
    pub(crate) tasks: Vec<PathBuf>,
    /// Files that the shim writes itself into: beside the containers, and not the daemon's group.
    pub(crate) shim_tasks: Vec<PathBuf>,
    /// v2: folder to be born into.
    pub(crate) folder: Option<PathBuf>,
    /// Names below /sys/fs/cgroup (empty: the folder itself) and what is seen there.
    pub(crate) views: Vec<(String, PathBuf)>,
    /// Links below /sys/fs/cgroup, for controllers that share a hierarchy.
    pub(crate) links: Vec<(String, String)>,
    /// Has a line `oom_kill N`.
    pub(crate) oom_file: Option<PathBuf>,
}

/// Group of all shims of a node, beside those of its containers, whose ids cannot be this.
pub(crate) const SHIMS: &str = "_shims";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    V1,
    /// v1 controllers with an empty v2 hierarchy beside them.
    Hybrid,
    V2,
}

pub(crate) trait Cgroups: Debug + Send + Sync {
    fn mode(&self) -> Mode;
    /// Controllers that limits need and this kernel does not offer.
    fn missing(&self) -> Vec<&'static str>;
    /// Makes the container's groups. Those of an earlier try are taken over.
    /// Beside what every container has it may use some devices, or (`None`) all.
    fn create(&self, id: &str, limits: &Limits, devices: Option<&[Node]>) -> Result<(), Error>;
    fn membership(&self, id: &str) -> Membership;
    /// Members, as the host numbers them.
    fn processes(&self, id: &str) -> io::Result<Vec<i32>>;
    /// Sends SIGKILL to every member once.
    fn kill(&self, id: &str) -> io::Result<()>;
    /// Removes groups, killing who is left in them; those that are missing are fine.
    fn remove(&self, id: &str) -> io::Result<()>;
    /// Removes the parent of all containers' groups, which must be empty.
    fn dispose(&self) -> io::Result<()>;
}

/// What limits of ours need.
const NEEDED: [&str; 5] = ["memory", "cpu", "cpuacct", "pids", "devices"];

/// Finds the hierarchies in the text of `/proc/self/mountinfo`.
pub(crate) fn detect(mountinfo: &str, node_key: &str) -> Result<Box<dyn Cgroups>, Error> {
    let parent = format!("warren-{node_key}");
    let mounts = mountinfo.lines().filter_map(Mounted::parse).collect::<Vec<_>>();
    let unified = mounts.iter().find(|mount| mount.kind == "cgroup2");
    let v1 = V1::new(&parent, &mounts, unified.is_some());
    if v1.is_usable() {
        return Ok(Box::new(v1));
    }
    match unified {
        Some(mount) => Ok(Box::new(V2::new(mount.path.clone(), &parent))),
        None => Err(Error::Unsupported(
            "this host has no control groups: neither cgroup2 nor the v1 memory and pids \
             controllers are mounted under /sys/fs/cgroup"
                .to_owned(),
        )),
    }
}

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mounted {
    kind: String,
    path: PathBuf,
    /// Of the super block; names the controllers of v1.
    options: Vec<String>,
}

impl Mounted {
    /// One line of mountinfo, when it is a cgroup file system.
    fn parse(line: &str) -> Option<Self> {
        let (head, tail) = line.split_once(" - ")?;
        let path = head.split(' ').nth(4)?;
        let mut tail = tail.split(' ');
        let kind = tail.next().filter(|kind| *kind == "cgroup" || *kind == "cgroup2")?;
        let options = tail.nth(1)?.split(',').map(str::to_owned).collect();
        Some(Self { kind: kind.to_owned(), path: PathBuf::from(path), options })
    }
}

fn io_error(action: String) -> impl FnOnce(io::Error) -> Error {
    |source| Error::Io { action, source }
}

/// Refuses limits that cannot work, before anything is made.
fn check_limits(limits: &Limits) -> Result<(), Error> {
    match limits.memory_bytes {
        Some(bytes) if bytes > 0 && bytes < MEMORY_MIN_BYTES => Err(Error::Rejected(format!(
            "memory limit of {bytes} bytes: at least {MEMORY_MIN_BYTES} are needed"
        ))),
        Some(_) | None => Ok(()),
    }
}

fn cpu_quota_us(millis: u32) -> u64 {
    (u64::from(millis) * CPU_PERIOD_US / 1000).max(CPU_QUOTA_MIN_US)
}

/// Writes a setting. The kernel makes these files with their folder; in tests a plain folder stands
/// in for it.
fn write(file: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create(cfg!(test))
        .truncate(cfg!(test))
        .open(file)?
        .write_all(value.as_bytes())
}

fn set(file: &Path, value: &str, what: &str) -> Result<(), Error> {
    write(file, value).map_err(io_error(format!("set {what} to {value} in {}", file.display())))
}

/// Makes a group; true when it is new.
fn make(folder: &Path) -> Result<bool, Error> {
    match fs::create_dir(folder) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => {
            Err(Error::Io { action: format!("make control group {}", folder.display()), source })
        }
    }
}

fn members(folder: &Path) -> io::Result<Vec<i32>> {
    match fs::read_to_string(folder.join("cgroup.procs")) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
        Err(error) if is_gone(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The folder is missing, or was removed while we looked.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

fn kill_each(pids: &[i32]) -> io::Result<()> {
    for pid in pids {
        // 0 stands for a process of a pid namespace that is not ours.
        let Some(pid) = Pid::from_raw(*pid) else { continue };
        match kill_process(pid, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Removes a group, killing who is left in it and waiting a little for the kernel to see the end.
fn remove(folder: &Path) -> io::Result<()> {
    let mut pauses = REMOVE_PAUSES_MS.iter();
    loop {
        let error = match fs::remove_dir(folder) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => error,
        };
        let Some(pause) = pauses.next().filter(|_| is_busy(&error)) else { return Err(error) };
        kill_each(&members(folder)?)?;
        std::thread::sleep(Duration::from_millis(*pause));
    }
}

fn is_busy(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ResourceBusy
}

fn read(file: &Path) -> io::Result<String> {
    io::read_to_string(File::open(file)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 23 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
34 30 0:30 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
35 30 0:31 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
36 30 0:32 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
37 30 0:33 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
";

    #[test]
    fn hybrid_uses_v1() {
        let cgroups = detect(HYBRID, "abcdefgh").unwrap();
        assert_eq!(cgroups.mode(), Mode::Hybrid);
        assert!(cgroups.missing().is_empty());
        let membership = cgroups.membership("web.1");
        let tasks = membership.tasks.iter().map(|path| path.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(
            tasks,
            [
                "/sys/fs/cgroup/cpu,cpuacct/warren-abcdefgh/web.1/tasks",
                "/sys/fs/cgroup/memory/warren-abcdefgh/web.1/tasks",
                "/sys/fs/cgroup/pids/warren-abcdefgh/web.1/tasks",
                "/sys/fs/cgroup/devices/warren-abcdefgh/web.1/tasks",
            ]
        );
        assert_eq!(membership.views[0].0, "cpu,cpuacct");
        let links = [
            ("cpu".to_owned(), "cpu,cpuacct".to_owned()),
            ("cpuacct".to_owned(), "cpu,cpuacct".to_owned()),
        ];
        assert_eq!(membership.links, links);
        assert_eq!(membership.folder, None);
        let oom_file = "/sys/fs/cgroup/memory/warren-abcdefgh/web.1/memory.oom_control";
        assert_eq!(membership.oom_file.unwrap().to_str(), Some(oom_file));
    }

    #[test]
    fn other_hosts() {
        let pure = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(detect(pure, "abcdefgh").unwrap().mode(), Mode::V2);
        let v1 = HYBRID.lines().filter(|line| !line.contains("cgroup2")).collect::<Vec<_>>();
        assert_eq!(detect(&v1.join("\n"), "abcdefgh").unwrap().mode(), Mode::V1);
        let error = detect("", "abcdefgh").unwrap_err();
        assert!(matches!(error, Error::Unsupported(_)), "{error}");
        let no_pids = HYBRID.replace("rw,pids", "rw,perf_event");
        assert_eq!(detect(&no_pids, "abcdefgh").unwrap().mode(), Mode::V2);
    }
}
