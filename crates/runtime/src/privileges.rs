//! What a container may do beyond what all may, and the kernel's limits on its processes.
//!
//! Whether it may ask for that is the caller's business.

use std::sync::Arc;

/// Nothing by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Privileges {
    /// All capabilities that the daemon has, all devices of the node, nothing of /proc and /sys
    /// masked or read-only; no default seccomp profile.
    pub privileged: bool,
    /// In the node's namespace of processes.
    pub host_pid: bool,
    /// In the node's namespace of shared memory and message queues, with its /dev/shm.
    pub host_ipc: bool,
    /// Supplementary groups beside those of the user: names in the image, or numbers.
    pub groups: Vec<String>,
    pub ulimits: Vec<Ulimit>,
    pub sysctls: Vec<Sysctl>,
    /// A small init is the first process, its program the second.
    pub init: bool,
    /// -1000 to 1000; `None`: 0.
    pub oom_score_adj: Option<i16>,
}

/// One limit of processes; `u64::MAX` is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    /// For messages, e.g. `nofile`.
    pub name: &'static str,
    /// The kernel's number.
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

/// A setting of the container's namespaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// With dots, e.g. `net.core.somaxconn`.
    pub key: String,
    pub value: String,
}

/// Which system calls a container may make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seccomp {
    /// moby's profile; of a privileged container: none.
    Default,
    Unconfined,
    /// JSON in the form of Docker's profiles.
    Custom(Arc<str>),
}
