//! Version 2: one hierarchy; controllers are handed down from folder to folder.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use warren_shim::protection::{Protection, kept};

use super::devices::Rule;
use super::disks;
use super::{
    CPU_PERIOD_US, Cgroups, Membership, Mode, SHIMS, check_limits, cpu_quota_us, devices, io_error,
    is_busy, is_gone, kill_each, make, members, read, remove, set, write,
};
use crate::native::device::Node;
use crate::{Error, IoKind, Limits};

const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

#[derive(Debug)]
pub(crate) struct V2 {
    root: PathBuf,
    parent: PathBuf,
    /// Controllers that the parent hands to containers, once it exists.
    handed: OnceLock<Vec<&'static str>>,
    /// Device rules, once loaded.
    devices: OnceLock<OwnedFd>,
}

impl V2 {
    /// `root` is where the hierarchy is mounted.
    pub(super) fn new(root: PathBuf, parent: &str) -> Self {
        let parent = root.join(parent);
        Self { root, parent, handed: OnceLock::new(), devices: OnceLock::new() }
    }

    fn folder(&self, id: &str) -> PathBuf {
        self.parent.join(id)
    }

    fn offered(&self) -> Vec<&'static str> {
        let text = read(&self.root.join("cgroup.controllers")).unwrap_or_default();
        let offers = |name: &&'static str| text.split_ascii_whitespace().any(|word| word == *name);
        CONTROLLERS.into_iter().filter(offers).collect()
    }

    /// Makes the parent and hands controllers down to it and through it.
    fn prepare(&self) -> Result<&[&'static str], Error> {
        if let Some(handed) = self.handed.get() {
            return Ok(handed);
        }
        let offered = self.offered();
        make(&self.parent)?;
        make(&self.folder(SHIMS))?;
        self.hand_down(&self.root, &offered)?;
        self.hand_down(&self.parent, &offered)?;
        Ok(self.handed.get_or_init(|| offered))
    }

    fn hand_down(&self, folder: &Path, controllers: &[&str]) -> Result<(), Error> {
        if controllers.is_empty() {
            return Ok(());
        }
        let file = folder.join("cgroup.subtree_control");
        let known = read(&file).unwrap_or_default();
        let missing = controllers
            .iter()
            .filter(|name| !known.split_ascii_whitespace().any(|word| word == **name))
            .map(|name| format!("+{name}"))
            .collect::<Vec<_>>()
            .join(" ");
        if missing.is_empty() {
            return Ok(());
        }
        let action = || format!("hand {missing} down in {}", folder.display());
        match write(&file, &missing) {
            Ok(()) => Ok(()),
            // Inside a container the root is a folder like any other: with processes in it, it may
            // hand nothing down.
            Err(error) if is_busy(&error) => {
                self.clear(folder)?;
                write(&file, &missing).map_err(io_error(action()))
            }
            Err(error) => Err(io_error(action())(error)),
        }
    }

    fn guard_devices(&self, folder: &Path, nodes: &[Node]) -> Result<(), Error> {
        // A plain folder stands in for the kernel.
        if cfg!(test) || !kept(Protection::DeviceRules) {
            return Ok(());
        }
        let load = |rules: &[Rule]| {
            devices::load(rules)
                .map_err(io_error("load the device rules into the kernel".to_owned()))
        };
        let action = format!("attach the device rules to {}", folder.display());
        if !nodes.is_empty() {
            // All programs of a group must agree: one of its own, in place of what all share.
            let own = nodes.iter().map(|node| node.rule);
            let rules: Vec<Rule> = devices::RULES.into_iter().chain(own).collect();
            return devices::attach(&load(&rules)?, folder).map_err(io_error(action));
        }
        let program = match self.devices.get() {
            Some(program) => program,
            None => {
                let program = load(&devices::RULES)?;
                self.devices.get_or_init(|| program)
            }
        };
        devices::attach(program, folder).map_err(io_error(action))
    }

    /// Hands a controller down that only some containers need.
    fn ask_for(&self, controller: &'static str) -> Result<(), Error> {
        let text = read(&self.root.join("cgroup.controllers")).unwrap_or_default();
        if !text.split_ascii_whitespace().any(|word| word == controller) {
            let text = format!("this limit needs the {controller} controller of cgroup2");
            return Err(Error::Unsupported(text));
        }
        self.hand_down(&self.root, &[controller])?;
        self.hand_down(&self.parent, &[controller])
    }

    fn tune(&self, folder: &Path, limits: &Limits) -> Result<(), Error> {
        if disks::needs_cpuset(limits) {
            self.ask_for("cpuset")?;
        }
        if let Some(cpus) = &limits.cpuset_cpus {
            disks::set_list(&folder.join("cpuset.cpus"), cpus, "processors")?;
        }
        if let Some(mems) = &limits.cpuset_mems {
            disks::set_list(&folder.join("cpuset.mems"), mems, "memory nodes")?;
        }
        if !disks::needs_io(limits) {
            return Ok(());
        }
        self.ask_for("io")?;
        if let Some(weight) = limits.io_weight {
            let scaled = 1 + u64::from(weight.clamp(10, 1000) - 10) * 9999 / 990;
            let (io, bfq) = (folder.join("io.weight"), folder.join("io.bfq.weight"));
            let files = [(&*io, format!("default {scaled}")), (&*bfq, weight.to_string())];
            disks::set_one(&files, "weight of disks")?;
        }
        for limit in disks::paced(&limits.io)? {
            let word = match limit.kind {
                IoKind::ReadBps => "rbps",
                IoKind::WriteBps => "wbps",
                IoKind::ReadIops => "riops",
                IoKind::WriteIops => "wiops",
            };
            let value = format!("{} {word}={}", limit.device, limit.rate);
            set(&folder.join("io.max"), &value, "the pace of a disk")?;
        }
        Ok(())
    }

    /// Moves processes out of a folder, to one below it.
    fn clear(&self, folder: &Path) -> Result<(), Error> {
        let aside = folder.join("warren-host");
        make(&aside)?;
        let pids = members(folder)
            .map_err(io_error(format!("list the processes of {}", folder.display())))?;
        for pid in pids {
            match write(&aside.join("cgroup.procs"), &pid.to_string()) {
                Ok(()) => {}
                // It has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) => {
                    let action = format!("move process {pid} out of {}", folder.display());
                    return Err(io_error(action)(error));
                }
            }
        }
        Ok(())
    }
}

impl Cgroups for V2 {
    fn mode(&self) -> Mode {
        Mode::V2
    }

    fn missing(&self) -> Vec<&'static str> {
        let offered = self.offered();
        CONTROLLERS.into_iter().filter(|name| !offered.contains(name)).collect()
    }

    fn create(&self, id: &str, limits: &Limits, nodes: Option<&[Node]>) -> Result<(), Error> {
        check_limits(limits)?;
        let handed = self.prepare()?;
        let folder = self.folder(id);
        make(&folder)?;
        if let Some(nodes) = nodes {
            self.guard_devices(&folder, nodes)?;
        }
        let need = |controller: &'static str| {
            if handed.contains(&controller) {
                return Ok(());
            }
            let text = format!("this limit needs the {controller} controller of cgroup2");
            Err(Error::Unsupported(text))
        };
        if let Some(bytes) = limits.memory_bytes.filter(|bytes| *bytes > 0) {
            need("memory")?;
            set(&folder.join("memory.max"), &bytes.to_string(), "the limit of memory")?;
            let swap = limits.swap_bytes.unwrap_or_default();
            match set(&folder.join("memory.swap.max"), &swap.to_string(), "the limit of swap") {
                // A kernel that does not count swap.
                Err(Error::Io { source, .. }) if is_gone(&source) && swap == 0 => {}
                other => other?,
            }
        }
        if let Some(millis) = limits.cpu_millis.filter(|millis| *millis > 0) {
            need("cpu")?;
            let quota = format!("{} {CPU_PERIOD_US}", cpu_quota_us(millis));
            set(&folder.join("cpu.max"), &quota, "the limit of cpu")?;
        }
        if let Some(shares) = limits.cpu_shares.filter(|shares| *shares > 0) {
            need("cpu")?;
            set(&folder.join("cpu.weight"), &weight(shares).to_string(), "the weight of cpu")?;
        }
        self.tune(&folder, limits)?;
        need("pids")?;
        if !kept(Protection::ProcessLimit) {
            return Ok(());
        }
        let pids = limits.pids.filter(|pids| *pids > 0).unwrap_or(Limits::PIDS_DEFAULT);
        set(&folder.join("pids.max"), &pids.to_string(), "the limit of processes")
    }

    fn membership(&self, id: &str) -> Membership {
        let folder = self.folder(id);
        Membership {
            tasks: Vec::new(),
            shim_tasks: vec![self.folder(SHIMS).join("cgroup.procs")],
            folder: Some(folder.clone()),
            oom_file: Some(folder.join("memory.events")),
            views: vec![(String::new(), folder)],
            links: Vec::new(),
        }
    }

    fn processes(&self, id: &str) -> io::Result<Vec<i32>> {
        members(&self.folder(id))
    }

    fn kill(&self, id: &str) -> io::Result<()> {
        let folder = self.folder(id);
        match write(&folder.join("cgroup.kill"), "1") {
            Ok(()) => Ok(()),
            // Missing folder, or a kernel before 5.14.
            Err(error) if is_gone(&error) => kill_each(&members(&folder)?),
            Err(error) => Err(error),
        }
    }

    fn remove(&self, id: &str) -> io::Result<()> {
        remove(&self.folder(id))
    }

    fn dispose(&self) -> io::Result<()> {
        remove(&self.folder(SHIMS))?;
        remove(&self.parent)
    }
}

/// v1 shares (2 to 262144, 1024 is the default) as a v2 weight (1 to 10000), as everybody converts.
fn weight(shares: u32) -> u64 {
    let shares = u64::from(shares.clamp(2, 262_144));
    1 + (shares - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A folder that looks like the root of a hierarchy.
    fn tree(controllers: &str) -> (tempfile::TempDir, V2) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cgroup.controllers"), controllers).unwrap();
        fs::write(folder.path().join("cgroup.subtree_control"), "").unwrap();
        let v2 = V2::new(folder.path().to_owned(), "warren-abcdefgh");
        (folder, v2)
    }

    fn limits() -> Limits {
        Limits {
            memory_bytes: Some(64 << 20),
            cpu_millis: Some(500),
            cpu_shares: Some(1024),
            pids: Some(100),
            cpuset_cpus: Some("0-1".into()),
            io_weight: Some(1000),
            ..Limits::default()
        }
    }

    #[test]
    fn settings() {
        let (folder, v2) = tree("cpuset cpu io memory pids\n");
        v2.create("web.1", &limits(), Some(&[])).unwrap();
        let file = |name: &str| {
            fs::read_to_string(folder.path().join("warren-abcdefgh").join(name)).unwrap()
        };
        let root = fs::read_to_string(folder.path().join("cgroup.subtree_control")).unwrap();
        // A plain file keeps what was written last.
        assert_eq!(root, "+io");
        assert_eq!(file("web.1/cpuset.cpus"), "0-1");
        assert_eq!(file("web.1/io.weight"), "default 10000");
        assert_eq!(file("web.1/memory.max"), "67108864");
        assert_eq!(file("web.1/memory.swap.max"), "0");
        assert_eq!(file("web.1/cpu.max"), "50000 100000");
        assert_eq!(file("web.1/cpu.weight"), "39");
        assert_eq!(file("web.1/pids.max"), "100");
        assert!(v2.missing().is_empty());
    }

    #[test]
    fn no_limits_but_of_processes() {
        let (folder, v2) = tree("memory pids\n");
        v2.create("web.1", &Limits::default(), Some(&[])).unwrap();
        let group = folder.path().join("warren-abcdefgh/web.1");
        assert_eq!(fs::read_to_string(group.join("pids.max")).unwrap(), "4096");
        assert!(!group.join("memory.max").exists());
        assert_eq!(v2.missing(), ["cpu"]);
        v2.kill("web.1").unwrap();
        assert_eq!(fs::read_to_string(group.join("cgroup.kill")).unwrap(), "1");
    }

    #[test]
    fn handed_down_once() {
        let (folder, v2) = tree("memory pids\n");
        let control = folder.path().join("cgroup.subtree_control");
        fs::write(&control, "memory pids").unwrap();
        v2.create("web.1", &Limits::default(), Some(&[])).unwrap();
        assert_eq!(fs::read_to_string(&control).unwrap(), "memory pids");
    }

    #[test]
    fn refusals() {
        let (_folder, v2) = tree("memory pids\n");
        let error = v2.create("web.1", &limits(), Some(&[])).unwrap_err();
        assert_eq!(error.to_string(), "this limit needs the cpu controller of cgroup2");
        let tiny = Limits { memory_bytes: Some(1024), ..Limits::default() };
        let error = v2.create("web.1", &tiny, Some(&[])).unwrap_err();
        assert!(matches!(error, Error::Rejected(_)), "{error}");
    }

    #[test]
    fn members_and_removal() {
        let (folder, v2) = tree("memory pids\n");
        assert!(v2.processes("web.1").unwrap().is_empty());
        v2.remove("web.1").unwrap();
        let group = folder.path().join("warren-abcdefgh/web.1");
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("cgroup.procs"), "12\n0\n34\n").unwrap();
        assert_eq!(v2.processes("web.1").unwrap(), [12, 0, 34]);
        fs::remove_file(group.join("cgroup.procs")).unwrap();
        v2.remove("web.1").unwrap();
        assert!(!group.exists());
    }

    #[test]
    fn processes_of_a_nested_root_move_aside() {
        let (folder, v2) = tree("memory pids\n");
        fs::write(folder.path().join("cgroup.procs"), "12\n").unwrap();
        v2.clear(folder.path()).unwrap();
        let moved = fs::read_to_string(folder.path().join("warren-host/cgroup.procs")).unwrap();
        assert_eq!(moved, "12");
    }

    #[test]
    fn weights() {
        for (shares, expected) in
            [(0, 1), (2, 1), (1024, 39), (262_144, 10_000), (u32::MAX, 10_000)]
        {
            assert_eq!(weight(shares), expected, "{shares}");
        }
    }
}
