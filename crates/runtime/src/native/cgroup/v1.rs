//! Version 1: one hierarchy for each controller, or for a few together.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use warren_shim::protection::{Protection, kept};

use super::disks;
use super::{
    CPU_PERIOD_US, Cgroups, Membership, Mode, Mounted, NEEDED, SHIMS, check_limits, cpu_quota_us,
    devices, kill_each, make, members, read, remove, set,
};
use crate::native::device::Node;
use crate::{Error, IoKind, Limits};

/// Controllers of limits that few ask for.
const OPTIONAL: [&str; 2] = ["cpuset", "blkio"];

#[derive(Debug)]
pub(crate) struct V1 {
    hierarchies: Vec<Hierarchy>,
    /// Of which only those containers are that ask for it.
    optional: Vec<Hierarchy>,
    parent: String,
    hybrid: bool,
}

#[derive(Debug)]
struct Hierarchy {
    /// As the folder under /sys/fs/cgroup is called.
    name: String,
    path: PathBuf,
    controllers: Vec<&'static str>,
}

impl V1 {
    pub(super) fn new(parent: &str, mounts: &[Mounted], hybrid: bool) -> Self {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for mount in mounts.iter().filter(|mount| mount.kind == "cgroup") {
            let offers = |name: &&'static str| mount.options.iter().any(|option| option == name);
            let controllers = NEEDED.into_iter().filter(offers).collect::<Vec<_>>();
            let known = hierarchies.iter().any(|known| known.controllers == controllers);
            let name = mount.path.file_name().and_then(|name| name.to_str());
            if let Some(name) = name.filter(|_| !controllers.is_empty() && !known) {
                let (name, path) = (name.to_owned(), mount.path.clone());
                hierarchies.push(Hierarchy { name, path, controllers });
            }
        }
        let optional = optional(mounts, &hierarchies);
        Self { hierarchies, optional, parent: parent.to_owned(), hybrid }
    }

    /// Whether containers can be limited here at all; otherwise version 2 has the controllers.
    pub(super) fn is_usable(&self) -> bool {
        self.hierarchy("memory").is_some() && self.hierarchy("pids").is_some()
    }

    fn hierarchy(&self, controller: &str) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.controllers.contains(&controller))
    }

    fn folder(&self, hierarchy: &Hierarchy, id: &str) -> PathBuf {
        hierarchy.path.join(&self.parent).join(id)
    }

    fn make(&self, hierarchy: &Hierarchy, id: &str) -> Result<(), Error> {
        let folder = self.folder(hierarchy, id);
        match make(&folder) {
            Ok(_) => Ok(()),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                make(&hierarchy.path.join(&self.parent))?;
                make(&folder).map(drop)
            }
            Err(error) => Err(error),
        }
    }

    /// Optional hierarchies that a container is in.
    fn tuned(&self, id: &str) -> impl Iterator<Item = &Hierarchy> {
        let made = |hierarchy: &&Hierarchy| self.folder(hierarchy, id).exists();
        self.optional.iter().filter(made).collect::<Vec<_>>().into_iter()
    }

    /// The group of a container in the hierarchy of a controller that only some need.
    fn ask_for(&self, controller: &'static str, id: &str) -> Result<PathBuf, Error> {
        let all = self.optional.iter().chain(&self.hierarchies);
        let found = all.into_iter().find(|hierarchy| hierarchy.controllers.contains(&controller));
        let hierarchy = found.ok_or_else(|| {
            Error::Unsupported(format!("this limit needs the {controller} controller"))
        })?;
        self.make(hierarchy, id)?;
        Ok(self.folder(hierarchy, id))
    }

    fn tune(&self, id: &str, limits: &Limits) -> Result<(), Error> {
        if disks::needs_cpuset(limits) {
            let folder = self.ask_for("cpuset", id)?;
            let parent = folder.parent().unwrap_or(&folder).to_owned();
            let root = parent.parent().unwrap_or(&parent).to_owned();
            let lists = [("cpuset.cpus", &limits.cpuset_cpus, "processors")];
            let lists =
                lists.into_iter().chain([("cpuset.mems", &limits.cpuset_mems, "memory nodes")]);
            for (name, given, what) in lists {
                // A group without any can have no process; the parent has all.
                let all = read(&root.join(name)).unwrap_or_default().trim().to_owned();
                set(&parent.join(name), &all, what)?;
                disks::set_list(&folder.join(name), given.as_ref().unwrap_or(&all), what)?;
            }
        }
        if !disks::needs_io(limits) {
            return Ok(());
        }
        let folder = self.ask_for("blkio", id)?;
        if let Some(weight) = limits.io_weight {
            let names = ["blkio.weight", "blkio.bfq.weight"].map(|name| folder.join(name));
            let files = names.iter().map(|file| (&**file, weight.to_string())).collect::<Vec<_>>();
            disks::set_one(&files, "weight of disks")?;
        }
        for limit in disks::paced(&limits.io)? {
            let name = match limit.kind {
                IoKind::ReadBps => "blkio.throttle.read_bps_device",
                IoKind::WriteBps => "blkio.throttle.write_bps_device",
                IoKind::ReadIops => "blkio.throttle.read_iops_device",
                IoKind::WriteIops => "blkio.throttle.write_iops_device",
            };
            let value = format!("{} {}", limit.device, limit.rate);
            set(&folder.join(name), &value, "the pace of a disk")?;
        }
        Ok(())
    }

    fn limit(
        &self,
        controller: &str,
        folder: &Path,
        limits: &Limits,
        nodes: Option<&[Node]>,
    ) -> Result<(), Error> {
        match controller {
            "memory" => limit_memory(folder, limits),
            "cpu" => limit_cpu(folder, limits),
            "pids" if !kept(Protection::ProcessLimit) => Ok(()),
            "devices" if !kept(Protection::DeviceRules) => Ok(()),
            "pids" => {
                let pids = limits.pids.filter(|pids| *pids > 0).unwrap_or(Limits::PIDS_DEFAULT);
                set(&folder.join("pids.max"), &pids.to_string(), "the limit of processes")
            }
            "devices" => {
                let allow = folder.join("devices.allow");
                let Some(nodes) = nodes else { return set(&allow, "a", "device rules") };
                set(&folder.join("devices.deny"), "a", "device rules")?;
                let made = ["c *:* m", "b *:* m"].map(str::to_owned);
                let own = nodes.iter().map(|node| &node.rule);
                let uses = devices::RULES.iter().chain(own).map(devices::Rule::text);
                let mut rules = made.into_iter().chain(uses);
                rules.try_for_each(|rule| set(&allow, &rule, "device rules"))
            }
            // cpuacct only counts.
            _ => Ok(()),
        }
    }
}

impl Cgroups for V1 {
    fn mode(&self) -> Mode {
        if self.hybrid { Mode::Hybrid } else { Mode::V1 }
    }

    fn missing(&self) -> Vec<&'static str> {
        NEEDED.into_iter().filter(|name| self.hierarchy(name).is_none()).collect()
    }

    fn create(&self, id: &str, limits: &Limits, nodes: Option<&[Node]>) -> Result<(), Error> {
        check_limits(limits)?;
        if self.hierarchy("cpu").is_none()
            && (limits.cpu_millis.is_some() || limits.cpu_shares.is_some())
        {
            return Err(Error::Unsupported("a limit of cpu needs the cpu controller".to_owned()));
        }
        for hierarchy in &self.hierarchies {
            self.make(hierarchy, id)?;
            self.make(hierarchy, SHIMS)?;
            let folder = self.folder(hierarchy, id);
            for controller in &hierarchy.controllers {
                self.limit(controller, &folder, limits, nodes)?;
            }
        }
        self.tune(id, limits)
    }

    fn membership(&self, id: &str) -> Membership {
        let mut membership = Membership::default();
        let shims = self.hierarchies.iter().map(|known| self.folder(known, SHIMS).join("tasks"));
        membership.shim_tasks.extend(shims);
        for hierarchy in self.hierarchies.iter().chain(self.tuned(id)) {
            let folder = self.folder(hierarchy, id);
            membership.tasks.push(folder.join("tasks"));
            membership.views.push((hierarchy.name.clone(), folder));
            if let [_, _, ..] = hierarchy.controllers.as_slice() {
                let links = hierarchy.controllers.iter();
                let links = links.map(|name| ((*name).to_owned(), hierarchy.name.clone()));
                membership.links.extend(links);
            }
        }
        let memory = self.hierarchy("memory");
        membership.oom_file =
            memory.map(|hierarchy| self.folder(hierarchy, id).join("memory.oom_control"));
        membership
    }

    fn processes(&self, id: &str) -> io::Result<Vec<i32>> {
        // All members are in all hierarchies; this one always exists.
        let hierarchy = self.hierarchy("pids");
        hierarchy.map_or(Ok(Vec::new()), |hierarchy| members(&self.folder(hierarchy, id)))
    }

    fn kill(&self, id: &str) -> io::Result<()> {
        kill_each(&self.processes(id)?)
    }

    fn remove(&self, id: &str) -> io::Result<()> {
        let all = self.hierarchies.iter().chain(&self.optional);
        all.into_iter().try_for_each(|hierarchy| remove(&self.folder(hierarchy, id)))
    }

    fn dispose(&self) -> io::Result<()> {
        let all = self.hierarchies.iter().chain(&self.optional);
        let parents = all.map(|hierarchy| hierarchy.path.join(&self.parent));
        parents.into_iter().try_for_each(|parent| {
            remove(&parent.join(SHIMS))?;
            remove(&parent)
        })
    }
}

/// Hierarchies of controllers that few containers need.
fn optional(mounts: &[Mounted], needed: &[Hierarchy]) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for mount in mounts.iter().filter(|mount| mount.kind == "cgroup") {
        let offers = |name: &&'static str| mount.options.iter().any(|option| option == name);
        let controllers = OPTIONAL.into_iter().filter(offers).collect::<Vec<_>>();
        let known = found.iter().any(|known| known.controllers == controllers)
            || needed.iter().any(|known| known.path == mount.path);
        let name = mount.path.file_name().and_then(|name| name.to_str());
        if let Some(name) = name.filter(|_| !controllers.is_empty() && !known) {
            let (name, path) = (name.to_owned(), mount.path.clone());
            found.push(Hierarchy { name, path, controllers });
        }
    }
    found
}

fn limit_memory(folder: &Path, limits: &Limits) -> Result<(), Error> {
    let Some(bytes) = limits.memory_bytes.filter(|bytes| *bytes > 0) else { return Ok(()) };
    let value = bytes.to_string();
    set(&folder.join("memory.limit_in_bytes"), &value, "the limit of memory")?;
    // Memory and swap together. Kernels may count no swap at all.
    let with_swap = folder.join("memory.memsw.limit_in_bytes");
    let swap = limits.swap_bytes.unwrap_or_default();
    let both = bytes.saturating_add(swap).to_string();
    if fs::exists(&with_swap).unwrap_or(false) {
        return set(&with_swap, &both, "the limit of memory and swap");
    }
    if swap > 0 {
        let text = "a limit of swap needs a kernel that counts it (swapaccount=1)";
        return Err(Error::Unsupported(text.to_owned()));
    }
    Ok(())
}

fn limit_cpu(folder: &Path, limits: &Limits) -> Result<(), Error> {
    if let Some(millis) = limits.cpu_millis.filter(|millis| *millis > 0) {
        set(&folder.join("cpu.cfs_period_us"), &CPU_PERIOD_US.to_string(), "the cpu period")?;
        let quota = cpu_quota_us(millis).to_string();
        set(&folder.join("cpu.cfs_quota_us"), &quota, "the limit of cpu")?;
    }
    if let Some(shares) = limits.cpu_shares.filter(|shares| *shares > 0) {
        set(&folder.join("cpu.shares"), &shares.to_string(), "the weight of cpu")?;
    }
    Ok(())
}
