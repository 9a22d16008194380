//! A machine of the cluster.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::Subnet;
use crate::defaults::Defaults;
use crate::id::NodeId;
use crate::placement::{Taint, image_arch};
use crate::quantity::Time;
use crate::resources::{Resource, Resources};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub id: NodeId,
    pub description: Description,
    pub manager: bool,
    pub worker: bool,
    pub availability: Availability,
    pub status: NodeStatus,
    /// Address blocks of its containers, in order of granting.
    pub blocks: Vec<Subnet>,
    /// In the consensus group. Given by the state with each promotion, never twice; that of a
    /// former manager stays until it has another. Absent: was never a manager.
    pub number: Option<u64>,
    /// Set by people; what the node says of itself is in its description.
    pub labels: BTreeMap<String, String>,
    /// SHA-256 of the public key of its certificate; zeros: it has none.
    pub key_hash: [u8; 32],
    pub certificate_not_after: Time,
    /// SHA-256 of the public key of the authority that issued its certificate.
    pub issuer_hash: [u8; 32],
    pub joined: Time,
    /// What people said of tasks that a recovery made managers forget.
    pub forgotten: Option<Forgotten>,
    /// What only people can count, such as GPUs: pieces of each, by name. Never 0.
    pub generic: BTreeMap<String, u64>,
    /// Not for tasks: what the machine itself needs. Set by people.
    pub system_reserved: Resources,
    /// Of its tasks that say nothing of it; before the cluster's. Set by people.
    pub defaults: Defaults,
    /// Keep tasks of services off it that do not tolerate them. Set by people.
    pub taints: Vec<Taint>,
    /// Since when it takes tasks without a break; 0: since before anybody noted it. Kept by the
    /// state.
    pub opened: Time,
    /// While it drains: when whatever is left there ends, with or without a place elsewhere.
    pub drain_deadline: Option<Time>,
    /// Nodes of larger ids that it is cut off from, and who passes on. By peer.
    pub relays: Vec<Relay>,
    /// Revision of the last change.
    pub revision: u64,
}

impl Node {
    /// As many as anybody sorts machines by.
    pub const LABELS_MAX: usize = 128;
    /// The kernel's default on small machines (`kernel.pid_max`); no machine has less.
    pub const PIDS: u64 = 32_768;
    /// 30 days: a node that may take longer to empty has no deadline.
    pub const DRAIN_MS_MAX: u64 = 30 * 86_400_000;

    /// A worker nobody has heard of yet.
    pub fn new(id: NodeId, description: Description) -> Self {
        Self {
            id,
            description,
            manager: false,
            worker: true,
            availability: Availability::Active,
            status: NodeStatus::Down,
            blocks: Vec::new(),
            number: None,
            labels: BTreeMap::new(),
            key_hash: [0; 32],
            certificate_not_after: Time(0),
            issuer_hash: [0; 32],
            joined: Time(0),
            forgotten: None,
            generic: BTreeMap::new(),
            system_reserved: Resources::default(),
            defaults: Defaults::default(),
            taints: Vec::new(),
            opened: Time(0),
            drain_deadline: None,
            relays: Vec::new(),
            revision: 0,
        }
    }

    /// Whether new tasks may be placed there.
    pub fn is_open(&self) -> bool {
        self.worker && self.availability == Availability::Active && self.status == NodeStatus::Ready
    }

    /// As images call it: `linux/arm64`.
    pub fn platform(&self) -> String {
        let kernel = self.description.architecture.as_str();
        format!("linux/{}", image_arch(kernel).unwrap_or(kernel))
    }

    /// How much the machine has of something. Processes are what every Linux kernel allows; a
    /// disk is as large as the file system of the data folder.
    pub fn total(&self, resource: Resource<'_>) -> u64 {
        match resource {
            Resource::Cpu => u64::from(self.description.cpus) * 1000,
            Resource::Memory => self.description.memory_bytes,
            Resource::Pids => Self::PIDS,
            Resource::Disk => self.description.disk_bytes,
            Resource::Generic(name) => match self.description.devices.get(name) {
                Some(names) => names.len() as u64,
                None => self.generic.get(name).copied().unwrap_or_default(),
            },
        }
    }

    /// How much of it all tasks together may reserve.
    pub fn capacity(&self, resource: Resource<'_>) -> u64 {
        self.total(resource).saturating_sub(self.system_reserved.get(resource))
    }
}

/// A removed node: refused until its certificate has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tombstone {
    pub node: NodeId,
    pub key_hash: [u8; 32],
    pub keep_until: Time,
}

/// What a node says of itself when it connects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Description {
    pub hostname: String,
    /// Where others reach it: `host:port`.
    pub address: String,
    /// Of Warren.
    pub version: String,
    pub cpus: u32,
    pub memory_bytes: u64,
    pub architecture: String,
    pub kernel: String,
    pub labels: BTreeMap<String, String>,
    /// Of the file system that its data folder is on.
    pub disk_bytes: u64,
    /// Of it, when the node last connected; not to the byte.
    pub disk_free_bytes: u64,
    /// What its kernel can do: `overlayfs`, `nf_tables`, `cgroup-v2`, …
    pub features: Vec<String>,
    /// Public key of its end of the overlay (X25519, as WireGuard's); zeros: it has none.
    pub overlay_key: [u8; 32],
    /// A second one that it accepts too, while it replaces one by the other; zeros: none.
    pub overlay_key_other: [u8; 32],
    /// Where that listens, and others send to (UDP); 0: not told, it is as with them.
    pub overlay_port: u16,
    /// What it can give to tasks: names by kind, see [`crate::device`].
    pub devices: BTreeMap<String, BTreeSet<String>>,
}

/// Two nodes do not reach each other over the tunnel: a third passes on what they send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Relay {
    /// The other one; kept by the node with the smaller id.
    pub peer: NodeId,
    /// Who passes on.
    pub via: NodeId,
    /// Which of the ports behind that one's own: no two relays of a node by the same other have the
    /// same.
    pub slot: u8,
}

impl Relay {
    /// Ports of a node for this.
    pub const SLOTS: u8 = 16;
    /// Of one node. More than a few say that something else is wrong with it.
    pub const MAX: usize = 64;

    /// The port of a slot at a node whose tunnel listens at `overlay_port`; `None`: there is none.
    pub fn port(overlay_port: u16, slot: u8) -> Option<u16> {
        overlay_port.checked_add(1)?.checked_add(slot.into())
    }
}

/// Whether the planner may use a node; set by people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    Active,
    /// Keeps what it has, gets nothing new.
    Pause,
    /// Its tasks move away.
    Drain,
}

impl Availability {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Pause => "pause",
            Self::Drain => "drain",
        }
    }
}

/// What becomes of a node's tasks that managers do not know after a recovery; set by people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forgotten {
    /// Recovery epoch that it is said of; after the next one it says nothing.
    pub epoch: u64,
    pub choice: ForgottenChoice,
}

/// Without a choice they run on for a while and are removed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForgottenChoice {
    /// They run on until people say otherwise.
    Keep,
    /// They are removed now.
    Drop,
}

impl ForgottenChoice {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Drop => "drop",
        }
    }
}

/// Whether a node is heard of; set by the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeStatus {
    Ready,
    Down,
}
