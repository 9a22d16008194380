//! The cluster and its nodes.

use warren_model::cluster::{Cluster, Subnet};
use warren_model::node::{Availability, Description, Node, NodeStatus};

use super::{Error, address, byte_up_to, choice, cluster_id, each, enums, node_id, part};
use crate::v1;

/// Bits of an IPv4 address.
const PREFIX_MAX: u8 = 32;

enums! {
    Availability, v1::Availability { Active Pause Drain }
    NodeStatus, v1::NodeStatus { Ready Down }
}

impl From<&Subnet> for v1::Subnet {
    fn from(subnet: &Subnet) -> Self {
        Self { address: subnet.address.into(), prefix: subnet.prefix.into() }
    }
}

impl TryFrom<v1::Subnet> for Subnet {
    type Error = Error;

    fn try_from(wire: v1::Subnet) -> Result<Self, Error> {
        let prefix = byte_up_to("prefix", wire.prefix, PREFIX_MAX)?;
        Ok(Self { address: address(wire.address), prefix })
    }
}

impl From<&Cluster> for v1::Cluster {
    fn from(cluster: &Cluster) -> Self {
        Self {
            id: cluster.id.as_bytes().to_vec(),
            history_limit: cluster.history_limit,
            pool: Some((&cluster.pool).into()),
            block_prefix: cluster.block_prefix.into(),
        }
    }
}

impl TryFrom<v1::Cluster> for Cluster {
    type Error = Error;

    fn try_from(wire: v1::Cluster) -> Result<Self, Error> {
        Ok(Self {
            id: cluster_id("id", &wire.id)?,
            history_limit: wire.history_limit,
            pool: part("pool", wire.pool)?,
            block_prefix: byte_up_to("block_prefix", wire.block_prefix, PREFIX_MAX)?,
        })
    }
}

impl From<&Description> for v1::NodeDescription {
    fn from(description: &Description) -> Self {
        let d = description.clone();
        Self {
            hostname: d.hostname,
            address: d.address,
            version: d.version,
            cpus: d.cpus,
            memory_bytes: d.memory_bytes,
            architecture: d.architecture,
            kernel: d.kernel,
            labels: d.labels.into_iter().collect(),
        }
    }
}

impl TryFrom<v1::NodeDescription> for Description {
    type Error = Error;

    fn try_from(wire: v1::NodeDescription) -> Result<Self, Error> {
        Ok(Self {
            hostname: wire.hostname,
            address: wire.address,
            version: wire.version,
            cpus: wire.cpus,
            memory_bytes: wire.memory_bytes,
            architecture: wire.architecture,
            kernel: wire.kernel,
            labels: wire.labels.into_iter().collect(),
        })
    }
}

/// `leader` is left false: only a listing knows.
impl From<&Node> for v1::Node {
    fn from(node: &Node) -> Self {
        Self {
            id: node.id.as_bytes().to_vec(),
            description: Some((&node.description).into()),
            manager: node.manager,
            worker: node.worker,
            availability: v1::Availability::from(node.availability).into(),
            status: v1::NodeStatus::from(node.status).into(),
            blocks: node.blocks.iter().map(Into::into).collect(),
            revision: node.revision,
            leader: false,
        }
    }
}

impl TryFrom<v1::Node> for Node {
    type Error = Error;

    fn try_from(wire: v1::Node) -> Result<Self, Error> {
        Ok(Self {
            id: node_id("id", &wire.id)?,
            description: part("description", wire.description)?,
            manager: wire.manager,
            worker: wire.worker,
            availability: choice::<v1::Availability, _>("availability", wire.availability)?,
            status: choice::<v1::NodeStatus, _>("status", wire.status)?,
            blocks: each("blocks", wire.blocks)?,
            revision: wire.revision,
        })
    }
}
