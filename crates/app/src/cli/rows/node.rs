//! Nodes, as listings and `node inspect` show them.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use warren_model::resources::Resources;
use warren_proto::v1;

use super::{id_text, moment, node_status};
use crate::cli::defaults::defaults_json;
use crate::cli::listing::{Record, View};
use crate::cli::placing::resources_json;

#[derive(Debug, Serialize)]
pub(crate) struct NodeRow {
    id: String,
    hostname: String,
    role: &'static str,
    status: &'static str,
    availability: &'static str,
    /// Of managers: leader, voter, learner, joining or unreachable.
    manager_status: String,
    leader: bool,
    address: String,
    version: String,
    cpus: u32,
    memory_bytes: u64,
    disk_bytes: u64,
    /// When it last connected.
    disk_free_bytes: u64,
    kernel: String,
    architecture: String,
    features: Vec<String>,
    labels: BTreeMap<String, String>,
    certificate_not_after: Option<String>,
    joined_at: Option<String>,
    /// What was said of tasks that managers forgot: keep or drop.
    forgotten: Option<&'static str>,
    /// Pieces of what only people can count.
    generic: BTreeMap<String, u64>,
    /// Names of devices that tasks may be given, by kind.
    devices: BTreeMap<String, Vec<String>>,
    /// Not for tasks.
    system_reserved: Value,
    /// Of its tasks that say nothing of it, before the cluster's.
    defaults: Value,
    /// By its tasks together.
    reserved: Value,
    taints: Vec<String>,
    /// Since when it takes tasks without a break.
    open_since: Option<String>,
    /// Of a drain: when what is left ends.
    drain_deadline: Option<String>,
}

fn amounts(wire: Option<&v1::Resources>) -> Value {
    let resources = wire.cloned().map(Resources::try_from);
    resources_json(&resources.and_then(Result::ok).unwrap_or_default())
}

impl From<&v1::Node> for NodeRow {
    fn from(node: &v1::Node) -> Self {
        let about = node.description.clone().unwrap_or_default();
        Self {
            id: id_text(&node.id),
            hostname: about.hostname,
            role: match (node.manager, node.worker) {
                (true, true) => "hybrid",
                (true, false) => "manager",
                (false, true) => "worker",
                // A manager that a recovery took the office from, and that ran no containers.
                (false, false) => "none",
            },
            status: node_status(node.status),
            availability: match v1::Availability::try_from(node.availability) {
                Ok(v1::Availability::Active) => "active",
                Ok(v1::Availability::Pause) => "pause",
                Ok(v1::Availability::Drain) => "drain",
                Ok(v1::Availability::Unspecified) | Err(_) => "unknown",
            },
            manager_status: match node.leader {
                true => "leader".to_owned(),
                false => node.reachability.clone(),
            },
            leader: node.leader,
            address: about.address,
            version: about.version,
            cpus: about.cpus,
            memory_bytes: about.memory_bytes,
            disk_bytes: about.disk_bytes,
            disk_free_bytes: about.disk_free_bytes,
            kernel: about.kernel,
            architecture: about.architecture,
            features: about.features,
            labels: node.labels.clone().into_iter().collect(),
            certificate_not_after: moment(node.certificate_not_after),
            joined_at: moment(node.joined),
            forgotten: node.forgotten.and_then(|said| match said.choice() {
                v1::ForgottenChoice::Keep => Some("keep"),
                v1::ForgottenChoice::Drop => Some("drop"),
                v1::ForgottenChoice::Unspecified => None,
            }),
            generic: node.generic.iter().map(|a| (a.name.clone(), a.amount)).collect(),
            devices: about.devices.into_iter().map(|of| (of.kind, of.names)).collect(),
            system_reserved: amounts(node.system_reserved.as_ref()),
            defaults: defaults_json(node.defaults),
            reserved: amounts(node.reserved.as_ref()),
            taints: node.taints.clone(),
            open_since: moment(node.opened),
            drain_deadline: node.drain_deadline.and_then(moment),
        }
    }
}

impl Record for NodeRow {
    const COLUMNS: &'static [&'static str] =
        &["ID", "HOSTNAME", "ROLE", "STATUS", "AVAILABILITY", "MANAGER", "ADDRESS", "VERSION"];
    const KEYS: &'static [&'static str] = &[
        "id",
        "hostname",
        "role",
        "status",
        "availability",
        "manager_status",
        "leader",
        "address",
        "version",
        "cpus",
        "memory_bytes",
        "disk_bytes",
        "disk_free_bytes",
        "kernel",
        "architecture",
        "features",
        "labels",
        "certificate_not_after",
        "joined_at",
        "forgotten",
        "generic",
        "devices",
        "system_reserved",
        "defaults",
        "reserved",
        "taints",
        "open_since",
        "drain_deadline",
    ];

    fn cells(&self, _: View) -> Vec<String> {
        vec![
            self.id.clone(),
            self.hostname.clone(),
            self.role.to_owned(),
            self.status.to_owned(),
            self.availability.to_owned(),
            self.manager_status.clone(),
            self.address.clone(),
            self.version.clone(),
        ]
    }

    fn key(&self) -> &str {
        &self.id
    }
}
