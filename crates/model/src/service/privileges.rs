//! What a container may do beyond what all may, and the kernel's limits on its processes.
//!
//! What endangers the node asks for a [`Grant`] of the cluster ([`crate::allowance`]); what only
//! concerns the container itself needs none. Texts are as Docker's flags have them.
//!
//! Not here: plain capabilities (they are as old as templates are), and limits of control groups.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use super::{SpecError, wrong};
use crate::allowance::Grant;

/// Nothing by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Privileges {
    /// All capabilities, all devices of the node, no seccomp profile, nothing masked.
    pub privileged: bool,
    /// Whether programs may not gain privileges by set-user-id bits and file capabilities. `None`:
    /// they may not, unless the container is privileged.
    pub no_new_privileges: Option<bool>,
    pub seccomp: SeccompProfile,
    pub devices: Vec<HostDevice>,
    /// The node's processes are the container's too.
    pub host_pid: bool,
    /// Shared memory, semaphores and message queues of the node.
    pub host_ipc: bool,
    /// Interfaces, addresses and ports of the node, and none of its own. Of a whole task.
    pub host_network: bool,
    /// Supplementary groups: names that the image knows, or numbers.
    pub groups: Vec<String>,
    /// Soft and hard; [`Ulimit::UNLIMITED`] is none.
    pub ulimits: BTreeMap<UlimitKind, Ulimit>,
    /// Settings of the container's own namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// A small init is the first process: it passes signals on and reaps what nobody else does.
    pub init: bool,
    /// How gladly the kernel ends it when memory runs out; 0 by default.
    pub oom_score_adj: Option<i16>,
}

/// Which system calls a container may make.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SeccompProfile {
    /// The default one; of a privileged container: none.
    #[default]
    Default,
    Unconfined,
    /// JSON in the form of Docker's profiles.
    Custom(String),
}

/// A device of the node: `/dev/fuse`, `/dev/sda:/dev/xvda:r`. A folder stands for all in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDevice {
    /// Absolute, in /dev.
    pub host: String,
    /// Likewise, inside the container.
    pub container: String,
    pub read: bool,
    pub write: bool,
    /// Whether nodes of it may be made; the kernel lets every container make nodes, so that this is
    /// kept to be shown.
    pub mknod: bool,
}

/// Why a text is no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostDeviceError {
    #[error("is not a path in /dev, such as /dev/fuse")]
    Path,
    #[error("is not of the form HOST[:CONTAINER[:rwm]], such as /dev/sda:/dev/xvda:r")]
    Shape,
}

impl HostDevice {
    pub const PATH_MAX: usize = 256;

    fn is_path(path: &str) -> bool {
        let sane = |part: &str| !matches!(part, "" | "." | "..");
        path.len() <= Self::PATH_MAX
            && path.chars().all(|c| c.is_ascii_graphic() && c != ':' && c != ',')
            && path.strip_prefix("/dev/").is_some_and(|rest| rest.split('/').all(sane))
    }
}

impl FromStr for HostDevice {
    type Err = HostDeviceError;

    fn from_str(text: &str) -> Result<Self, HostDeviceError> {
        let mut parts = text.split(':');
        let host = parts.next().unwrap_or_default();
        let is_access = |word: &str| !word.is_empty() && word.chars().all(|c| "rwm".contains(c));
        let (container, access) = match (parts.next(), parts.next(), parts.next()) {
            (None, _, _) => (host, "rwm"),
            // As Docker: `/dev/sda:r` is access, not a place.
            (Some(word), None, _) if is_access(word) => (host, word),
            (Some(container), None, _) => (container, "rwm"),
            (Some(container), Some(access), None) if is_access(access) => (container, access),
            _ => return Err(HostDeviceError::Shape),
        };
        if !Self::is_path(host) || !Self::is_path(container) {
            return Err(HostDeviceError::Path);
        }
        let has = |c| access.contains(c);
        Ok(Self {
            host: host.to_owned(),
            container: container.to_owned(),
            read: has('r'),
            write: has('w'),
            mknod: has('m'),
        })
    }
}

/// `/dev/sda:/dev/xvda:r`, always whole.
impl fmt::Display for HostDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, container, read, write, mknod } = self;
        write!(f, "{host}:{container}:")?;
        for (is_set, letter) in [(*read, "r"), (*write, "w"), (*mknod, "m")] {
            f.write_str(if is_set { letter } else { "" })?;
        }
        Ok(())
    }
}

/// What a limit of processes is about (`setrlimit(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UlimitKind(u8);

/// Docker's names with the kernel's numbers on x86-64 and arm64.
const ULIMITS: [(&str, u8); 15] = [
    ("core", 4),
    ("cpu", 0),
    ("data", 2),
    ("fsize", 1),
    ("locks", 10),
    ("memlock", 8),
    ("msgqueue", 12),
    ("nice", 13),
    ("nofile", 7),
    ("nproc", 6),
    ("rss", 5),
    ("rtprio", 14),
    ("rttime", 15),
    ("sigpending", 11),
    ("stack", 3),
];

impl UlimitKind {
    const NICE: Self = Self(13);
    const RTPRIO: Self = Self(14);

    pub fn as_str(self) -> &'static str {
        ULIMITS.iter().find(|(_, number)| *number == self.0).map_or("", |(name, _)| name)
    }

    /// The kernel's number.
    pub fn number(self) -> u32 {
        self.0.into()
    }

    pub fn names() -> impl Iterator<Item = &'static str> {
        ULIMITS.iter().map(|(name, _)| *name)
    }
}

impl FromStr for UlimitKind {
    type Err = UlimitError;

    fn from_str(text: &str) -> Result<Self, UlimitError> {
        let found = ULIMITS.iter().find(|(name, _)| *name == text);
        found.map(|(_, number)| Self(*number)).ok_or_else(|| UlimitError::Kind(text.to_owned()))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ulimit {
    pub soft: u64,
    /// A process without privileges cannot raise it.
    pub hard: u64,
}

/// Why a text is no limit of processes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UlimitError {
    #[error(
        "there is no limit {0:?}; known are core, cpu, data, fsize, locks, memlock, msgqueue, nice, nofile, nproc, rss, rtprio, rttime, sigpending and stack"
    )]
    Kind(String),
    #[error("{0:?} is not of the form NAME=SOFT[:HARD], such as nofile=1024:4096; -1 is unlimited")]
    Shape(String),
    #[error("the soft limit of {0:?} is higher than the hard one")]
    Order(String),
}

impl Ulimit {
    /// The kernel's RLIM_INFINITY.
    pub const UNLIMITED: u64 = u64::MAX;

    /// `nofile=1024:4096`; one number is both.
    ///
    /// # Errors
    /// [`UlimitError`].
    pub fn parse(text: &str) -> Result<(UlimitKind, Self), UlimitError> {
        let shape = || UlimitError::Shape(text.to_owned());
        let (name, values) = text.split_once('=').ok_or_else(shape)?;
        let kind: UlimitKind = name.parse()?;
        let number = |text: &str| match text {
            "-1" | "unlimited" => Some(Self::UNLIMITED),
            _ => text.parse().ok().filter(|_| !text.starts_with('+')),
        };
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let limit = number(soft).zip(number(hard)).map(|(soft, hard)| Self { soft, hard });
        let limit = limit.ok_or_else(shape)?;
        if limit.soft > limit.hard {
            Err(UlimitError::Order(text.to_owned()))
        } else {
            Ok((kind, limit))
        }
    }
}

/// `1024:4096`; -1 is unlimited.
impl fmt::Display for Ulimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |limit: u64| match limit {
            Self::UNLIMITED => "-1".to_owned(),
            limit => limit.to_string(),
        };
        write!(f, "{}:{}", word(self.soft), word(self.hard))
    }
}

/// Settings of IPC namespaces, beside all of `fs.mqueue.`.
const IPC_SYSCTLS: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

impl Privileges {
    /// Of devices, groups and settings, each: more is a slip of the pen.
    pub const COUNT_MAX: usize = 64;
    /// Docker's own profile is 20 KiB.
    pub const SECCOMP_MAX: usize = 128 << 10;
    pub const SYSCTL_MAX: usize = 256;
    /// The kernel's bounds.
    pub const OOM_SCORE_MAX: i16 = 1000;

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether programs may not gain privileges.
    pub fn forbids_new(&self) -> bool {
        self.no_new_privileges.unwrap_or(!self.privileged)
    }

    /// Bytes of its texts.
    pub fn text_len(&self) -> usize {
        let profile = match &self.seccomp {
            SeccompProfile::Default | SeccompProfile::Unconfined => 0,
            SeccompProfile::Custom(profile) => profile.len(),
        };
        let devices = self.devices.iter().map(|d| d.host.len() + d.container.len());
        let sysctls = self.sysctls.iter().map(|(key, value)| key.len() + value.len());
        profile
            + devices.sum::<usize>()
            + self.groups.iter().map(String::len).sum::<usize>()
            + sysctls.sum::<usize>()
            + self.ulimits.len() * 16
    }

    pub(super) fn validate(&self) -> Result<(), SpecError> {
        for (field, count) in [
            ("device", self.devices.len()),
            ("group", self.groups.len()),
            ("sysctl", self.sysctls.len()),
        ] {
            if count > Self::COUNT_MAX {
                return Err(wrong(field, count, format!("is more than {}", Self::COUNT_MAX)));
            }
        }
        let mut places = BTreeSet::new();
        for device in &self.devices {
            // What comes over the wire was read by the same parser.
            if !HostDevice::is_path(&device.host) || !HostDevice::is_path(&device.container) {
                return Err(wrong("device", device, HostDeviceError::Path.to_string()));
            }
            if !places.insert(&device.container) {
                return Err(wrong("device", device, "is at the place of another device"));
            }
        }
        let name = |group: &String| !group.contains(':') && super::is_user(group);
        if let Some(group) = self.groups.iter().find(|group| !name(group)) {
            return Err(wrong("group", group, "is neither the name nor the number of a group"));
        }
        for (kind, limit) in &self.ulimits {
            if limit.soft > limit.hard {
                let text = format!("{}={limit}", kind.as_str());
                return Err(wrong("ulimit", text, "has a soft limit above the hard one"));
            }
        }
        self.sysctls.iter().try_for_each(|(key, value)| self.check_sysctl(key, value))?;
        if let Some(score) = self.oom_score_adj.filter(|n| n.unsigned_abs() > 1000) {
            let most = Self::OOM_SCORE_MAX;
            return Err(wrong(
                "oom_score_adj",
                score,
                format!("is not between -{most} and {most}"),
            ));
        }
        self.check_profile()
    }

    fn check_sysctl(&self, key: &str, value: &str) -> Result<(), SpecError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let good = key.split('.').all(|part| !part.is_empty() && part.chars().all(plain));
        let is_net = key.starts_with("net.");
        let is_ipc = IPC_SYSCTLS.contains(&key) || key.starts_with("fs.mqueue.");
        if !good || key.len() > Self::SYSCTL_MAX || !(is_net || is_ipc) {
            return Err(wrong(
                "sysctl",
                key,
                "is not a setting that a container has of its own: net.*, fs.mqueue.*, \
                 kernel.msg*, kernel.sem and kernel.shm* are; others are the whole node's",
            ));
        }
        if is_net && self.host_network {
            return Err(wrong("sysctl", key, "would be the node's: the service is on its network"));
        }
        if is_ipc && self.host_ipc {
            return Err(wrong("sysctl", key, "would be the node's: --ipc is host"));
        }
        if value.len() > Self::SYSCTL_MAX || value.contains(['\0', '\n']) {
            let problem =
                format!("has no value of one line and at most {} bytes", Self::SYSCTL_MAX);
            return Err(wrong("sysctl", key, problem));
        }
        Ok(())
    }

    fn check_profile(&self) -> Result<(), SpecError> {
        let SeccompProfile::Custom(profile) = &self.seccomp else { return Ok(()) };
        if profile.len() > Self::SECCOMP_MAX {
            let problem = format!("is more than {} bytes", Self::SECCOMP_MAX);
            return Err(wrong(
                "security_opt",
                format!("seccomp of {} bytes", profile.len()),
                problem,
            ));
        }
        if !profile.trim_start().starts_with('{') {
            let problem = "is not a profile: a JSON object with defaultAction and syscalls";
            return Err(wrong("security_opt", "seccomp", problem));
        }
        Ok(())
    }

    /// What it asks of the cluster: field, value, and the grant that covers it.
    pub(crate) fn needs(&self) -> Vec<(&'static str, String, Grant)> {
        let yes = || "true".to_owned();
        let mut needs = Vec::new();
        let mut need = |field, value, grant| needs.push((field, value, grant));
        if self.privileged {
            need("privileged", yes(), Grant::Privileged);
        }
        if self.host_network {
            need("network", "host".to_owned(), Grant::HostNetwork);
        }
        if self.host_pid {
            need("pid", "host".to_owned(), Grant::HostPid);
        }
        if self.host_ipc {
            need("ipc", "host".to_owned(), Grant::HostIpc);
        }
        match &self.seccomp {
            SeccompProfile::Default => {}
            SeccompProfile::Unconfined => {
                need("security_opt", "seccomp=unconfined".to_owned(), Grant::SeccompUnconfined);
            }
            // It may allow everything.
            SeccompProfile::Custom(_) => {
                need("security_opt", "seccomp=FILE".to_owned(), Grant::SeccompUnconfined);
            }
        }
        for device in &self.devices {
            need("device", device.to_string(), Grant::Device(device.host.clone()));
        }
        // As the kernel has it: these come before all others of the node, or outlive them.
        for kind in [UlimitKind::NICE, UlimitKind::RTPRIO] {
            if let Some(limit) = self.ulimits.get(&kind).filter(|limit| limit.hard > 0) {
                let text = format!("{}={limit}", kind.as_str());
                need("ulimit", text, Grant::Capability("SYS_NICE"));
            }
        }
        if let Some(score) = self.oom_score_adj.filter(|score| *score < 0) {
            need("oom_score_adj", score.to_string(), Grant::Capability("SYS_RESOURCE"));
        }
        needs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_device(text: &str, expected: &str) {
        let got = match text.parse::<HostDevice>() {
            Ok(device) => device.to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(got, expected, "{text}");
    }

    #[test]
    fn devices() {
        check_device("/dev/fuse", "/dev/fuse:/dev/fuse:rwm");
        check_device("/dev/sda:/dev/xvda", "/dev/sda:/dev/xvda:rwm");
        check_device("/dev/sda:r", "/dev/sda:/dev/sda:r");
        check_device("/dev/sda:/dev/dm/x:mr", "/dev/sda:/dev/dm/x:rm");
        let path = "is not a path in /dev, such as /dev/fuse";
        for bad in
            ["", "fuse", "/dev", "/dev/", "/etc/passwd", "/dev/../etc", "/dev//x", "/dev/a:b"]
        {
            check_device(bad, path);
        }
        let shape = "is not of the form HOST[:CONTAINER[:rwm]], such as /dev/sda:/dev/xvda:r";
        for bad in ["/dev/a:/dev/b:x", "/dev/a:/dev/b:r:w", "/dev/a:/dev/b:"] {
            check_device(bad, shape);
        }
    }

    #[test]
    fn ulimits() {
        let check = |text: &str, expected: &str| {
            let got = match Ulimit::parse(text) {
                Ok((kind, limit)) => format!("{}({})={limit}", kind.as_str(), kind.number()),
                Err(error) => error.to_string(),
            };
            assert!(got.starts_with(expected), "{text}: {got}");
        };
        check("nofile=1024", "nofile(7)=1024:1024");
        check("nofile=1024:4096", "nofile(7)=1024:4096");
        check("memlock=-1", "memlock(8)=-1:-1");
        check("core=0:unlimited", "core(4)=0:-1");
        check("as=1", "there is no limit \"as\"");
        check("nofile=2:1", "the soft limit of \"nofile=2:1\"");
        check("nofile=-1:1", "the soft limit");
        for bad in ["nofile", "nofile=", "nofile=a", "nofile=1:", "nofile=-2", "nofile=+1"] {
            check(bad, &format!("{bad:?} is not of the form"));
        }
        for name in UlimitKind::names() {
            assert_eq!(name.parse::<UlimitKind>().unwrap().as_str(), name);
        }
    }

    #[track_caller]
    fn refused(edit: impl FnOnce(&mut Privileges), expected: &str) {
        let mut privileges = Privileges::default();
        edit(&mut privileges);
        let got = match privileges.validate() {
            Ok(()) => "ok".to_owned(),
            Err(error) => error.to_string(),
        };
        assert!(got.starts_with(expected), "{got}");
    }

    #[test]
    fn rules() {
        let sysctl = |key: &'static str| {
            move |p: &mut Privileges| drop(p.sysctls.insert(key.into(), "1".into()))
        };
        for good in
            ["net.core.somaxconn", "kernel.sem", "fs.mqueue.msg_max", "kernel.shm_rmid_forced"]
        {
            refused(sysctl(good), "ok");
        }
        for bad in ["vm.swappiness", "kernel.core_pattern", "net", "net..x", "net/x", "net.a/b", ""]
        {
            refused(sysctl(bad), &format!("sysctl: {bad:?} is not a setting that a container"));
        }
        refused(
            |p| {
                sysctl("net.core.somaxconn")(p);
                p.host_network = true;
            },
            "sysctl: \"net.core.somaxconn\" would be the node's",
        );
        refused(
            |p| {
                sysctl("kernel.sem")(p);
                p.host_ipc = true;
            },
            "sysctl: \"kernel.sem\" would be the node's: --ipc is host",
        );
        refused(|p| p.groups = vec!["a:b".into()], "group: \"a:b\" is neither");
        refused(|p| p.groups = vec!["audio".into(), "7".into()], "ok");
        refused(|p| p.oom_score_adj = Some(-1001), "oom_score_adj: \"-1001\" is not between");
        refused(|p| p.oom_score_adj = Some(i16::MIN), "oom_score_adj: \"-32768\" is not");
        let device: HostDevice = "/dev/fuse".parse().unwrap();
        refused(
            |p| p.devices = vec![device.clone(); 2],
            "device: \"/dev/fuse:/dev/fuse:rwm\" is at",
        );
        refused(|p| p.devices = vec![device.clone(); 65], "device: \"65\" is more than 64");
        refused(
            |p| p.seccomp = SeccompProfile::Custom("[]".into()),
            "security_opt: \"seccomp\" is not",
        );
        refused(
            |p| p.seccomp = SeccompProfile::Custom("{".repeat(Privileges::SECCOMP_MAX + 1)),
            "security_opt: \"seccomp of 131073 bytes\" is more",
        );
    }

    #[test]
    fn new_privileges() {
        let of = |privileged, no_new_privileges| {
            Privileges { privileged, no_new_privileges, ..Privileges::default() }.forbids_new()
        };
        assert!(of(false, None) && of(true, Some(true)));
        assert!(!of(true, None) && !of(false, Some(false)));
    }
}
