//! A machine of the cluster.

use std::collections::BTreeMap;

use crate::cluster::Subnet;
use crate::id::NodeId;

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
    /// Revision of the last change.
    pub revision: u64,
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

/// Whether a node is heard of; set by the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeStatus {
    Ready,
    Down,
}
