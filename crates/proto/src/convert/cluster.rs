//! The cluster and its nodes, those that left included.

use std::collections::BTreeSet;

use warren_model::cluster::{Authority, BackupPolicy, Cluster, JoinToken, Subnet};
use warren_model::id::NodeId;
use warren_model::node::{
    Availability, Description, Forgotten, ForgottenChoice, Node, NodeStatus, Relay, Tombstone,
};
use warren_model::placement::Strategy;
use warren_model::{OverlayKind, Secret, Time};

use super::defaults::defaults_if_any;
use super::moving::{rebalance_if_any, rebalance_unless_default};
use super::placement::{amounts, amounts_from, read, resources_if_any, strategy_if_any, written};
use super::{
    Error, address, byte_up_to, choice, cluster_id, each, enums, hash, hash_or_zeros, node_id,
    part, part_if_any, part_or_default,
};
use crate::v1;

/// Bits of an IPv4 address.
const PREFIX_MAX: u8 = 32;
/// Of a join token's secret.
const TOKEN_BYTES: usize = 16;

enums! {
    Availability, v1::Availability { Active Pause Drain }
    NodeStatus, v1::NodeStatus { Ready Down }
    ForgottenChoice, v1::ForgottenChoice { Keep Drop }
    OverlayKind, v1::OverlayKind { Wireguard Vxlan None }
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

impl From<&Authority> for v1::Authority {
    fn from(authority: &Authority) -> Self {
        Self { certificates: authority.certificates.clone(), key: authority.key.expose().to_vec() }
    }
}

impl TryFrom<v1::Authority> for Authority {
    type Error = Error;

    fn try_from(wire: v1::Authority) -> Result<Self, Error> {
        Ok(Self { certificates: wire.certificates, key: Secret::new(wire.key) })
    }
}

impl From<&JoinToken> for v1::JoinToken {
    fn from(token: &JoinToken) -> Self {
        Self { secret: token.secret.to_vec(), expires: token.expires.map(|time| time.0) }
    }
}

impl TryFrom<v1::JoinToken> for JoinToken {
    type Error = Error;

    fn try_from(wire: v1::JoinToken) -> Result<Self, Error> {
        let len = wire.secret.len();
        let secret = wire.secret.try_into();
        let secret = secret
            .map_err(|_| Error::new("secret", format!("has {len} bytes, not {TOKEN_BYTES}")))?;
        Ok(Self { secret, expires: wire.expires.map(Time) })
    }
}

impl From<&BackupPolicy> for v1::BackupPolicy {
    fn from(policy: &BackupPolicy) -> Self {
        let BackupPolicy { folder, interval_ms, keep, recipient } = policy.clone();
        Self { folder, interval_ms, keep, recipient }
    }
}

impl TryFrom<v1::BackupPolicy> for BackupPolicy {
    type Error = Error;

    fn try_from(wire: v1::BackupPolicy) -> Result<Self, Error> {
        let v1::BackupPolicy { folder, interval_ms, keep, recipient } = wire;
        Ok(Self { folder, interval_ms, keep, recipient })
    }
}

/// Whole, secrets included: for the log, snapshots and managers. What leaves them is
/// [`v1::Cluster::settings_only`].
impl From<&Cluster> for v1::Cluster {
    fn from(cluster: &Cluster) -> Self {
        Self {
            id: cluster.id.as_bytes().to_vec(),
            history_limit: cluster.history_limit,
            pool: Some((&cluster.pool).into()),
            block_prefix: cluster.block_prefix.into(),
            authority: cluster.ca.as_ref().map(Into::into),
            worker_token: cluster.worker_token.as_ref().map(Into::into),
            manager_token: cluster.manager_token.as_ref().map(Into::into),
            certificate_lifetime_ms: cluster.certificate_lifetime_ms,
            epoch: cluster.epoch,
            unlock_key: cluster
                .unlock_key
                .as_ref()
                .map_or_else(Vec::new, |key| key.expose().to_vec()),
            next_number: cluster.next_number,
            backup: cluster.backup.as_ref().map(Into::into),
            vip_pool: vip_pool(cluster),
            overlay: overlay(cluster),
            strategy: strategy(cluster).into(),
            rebalance: rebalance_unless_default(cluster.rebalance).into(),
            defaults: defaults_if_any(&cluster.defaults),
            allow_bind: written(&cluster.allow_bind),
            allowed: super::privileges::allowed(&cluster.allowed),
        }
    }
}

/// The default is left out: an older reader knows no other.
fn vip_pool(cluster: &Cluster) -> Option<v1::Subnet> {
    Some(&cluster.vip_pool).filter(|pool| **pool != Cluster::VIP_POOL).map(Into::into)
}

/// Likewise.
fn overlay(cluster: &Cluster) -> i32 {
    let known = Some(cluster.overlay).filter(|kind| *kind != OverlayKind::default());
    known.map(v1::OverlayKind::from).unwrap_or_default().into()
}

/// The default is left out, too.
fn strategy(cluster: &Cluster) -> v1::Strategy {
    match cluster.strategy {
        Strategy::Spread => v1::Strategy::Unspecified,
        other @ Strategy::BinPack => other.into(),
    }
}

impl v1::Cluster {
    /// What agents may know: no authority, token or key, nothing that is for managers alone.
    pub fn settings_only(cluster: &Cluster) -> Self {
        Self {
            id: cluster.id.as_bytes().to_vec(),
            history_limit: cluster.history_limit,
            pool: Some((&cluster.pool).into()),
            block_prefix: cluster.block_prefix.into(),
            certificate_lifetime_ms: cluster.certificate_lifetime_ms,
            epoch: cluster.epoch,
            authority: None,
            worker_token: None,
            manager_token: None,
            unlock_key: Vec::new(),
            next_number: 0,
            backup: None,
            vip_pool: vip_pool(cluster),
            overlay: overlay(cluster),
            strategy: v1::Strategy::Unspecified.into(),
            rebalance: v1::Rebalance::Unspecified.into(),
            defaults: defaults_if_any(&cluster.defaults),
            allow_bind: written(&cluster.allow_bind),
            allowed: super::privileges::allowed(&cluster.allowed),
        }
    }
}

/// What older versions wrote has neither a lifetime nor a next number.
impl TryFrom<v1::Cluster> for Cluster {
    type Error = Error;

    fn try_from(wire: v1::Cluster) -> Result<Self, Error> {
        let lifetime = match wire.certificate_lifetime_ms {
            0 => Self::CERTIFICATE_LIFETIME_MS,
            lifetime => lifetime,
        };
        Ok(Self {
            id: cluster_id("id", &wire.id)?,
            history_limit: wire.history_limit,
            pool: part("pool", wire.pool)?,
            block_prefix: byte_up_to("block_prefix", wire.block_prefix, PREFIX_MAX)?,
            ca: part_if_any("authority", wire.authority)?,
            worker_token: part_if_any("worker_token", wire.worker_token)?,
            manager_token: part_if_any("manager_token", wire.manager_token)?,
            certificate_lifetime_ms: lifetime,
            epoch: wire.epoch,
            unlock_key: (!wire.unlock_key.is_empty()).then(|| Secret::new(wire.unlock_key)),
            next_number: wire.next_number.max(Self::FIRST_NUMBER),
            backup: part_if_any("backup", wire.backup)?,
            vip_pool: part_if_any("vip_pool", wire.vip_pool)?.unwrap_or(Self::VIP_POOL),
            overlay: match wire.overlay {
                0 => OverlayKind::default(),
                known => choice::<v1::OverlayKind, _>("overlay", known)?,
            },
            strategy: strategy_if_any(wire.strategy)?.unwrap_or_default(),
            rebalance: rebalance_if_any(wire.rebalance)?.unwrap_or_default(),
            defaults: wire.defaults.map(Into::into).unwrap_or_default(),
            allow_bind: read("allow_bind", wire.allow_bind)?,
            allowed: super::privileges::allowed_from(&wire.allowed)?,
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
            disk_bytes: d.disk_bytes,
            disk_free_bytes: d.disk_free_bytes,
            features: d.features,
            overlay_key: bytes_unless_zeros(&d.overlay_key),
            overlay_key_other: bytes_unless_zeros(&d.overlay_key_other),
            overlay_port: d.overlay_port.into(),
            devices: d.devices.into_iter().map(kind).collect(),
        }
    }
}

fn kind((kind, names): (String, BTreeSet<String>)) -> v1::DeviceKind {
    v1::DeviceKind { kind, names: names.into_iter().collect() }
}

fn names(wire: v1::DeviceKind) -> (String, BTreeSet<String>) {
    (wire.kind, wire.names.into_iter().collect())
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
            disk_bytes: wire.disk_bytes,
            disk_free_bytes: wire.disk_free_bytes,
            features: wire.features,
            overlay_key: hash_or_zeros("overlay_key", &wire.overlay_key)?,
            overlay_key_other: hash_or_zeros("overlay_key_other", &wire.overlay_key_other)?,
            overlay_port: port("overlay_port", wire.overlay_port)?,
            devices: wire.devices.into_iter().map(names).collect(),
        })
    }
}

/// `leader`, `reachability` and `reserved` are left empty: only a listing knows.
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
            number: node.number,
            labels: node.labels.clone().into_iter().collect(),
            key_hash: bytes_unless_zeros(&node.key_hash),
            certificate_not_after: node.certificate_not_after.0,
            issuer_hash: bytes_unless_zeros(&node.issuer_hash),
            joined: node.joined.0,
            reachability: String::new(),
            forgotten: node.forgotten.map(Into::into),
            generic: amounts(&node.generic),
            system_reserved: resources_if_any(&node.system_reserved),
            taints: written(&node.taints),
            reserved: None,
            opened: node.opened.0,
            drain_deadline: node.drain_deadline.map(|time| time.0),
            relays: node.relays.iter().map(|relay| wire_relay(node.id, relay)).collect(),
            defaults: defaults_if_any(&node.defaults),
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
            number: wire.number,
            labels: wire.labels.into_iter().collect(),
            key_hash: hash_or_zeros("key_hash", &wire.key_hash)?,
            certificate_not_after: Time(wire.certificate_not_after),
            issuer_hash: hash_or_zeros("issuer_hash", &wire.issuer_hash)?,
            joined: Time(wire.joined),
            forgotten: part_if_any("forgotten", wire.forgotten)?,
            generic: amounts_from("generic", wire.generic)?,
            system_reserved: part_or_default("system_reserved", wire.system_reserved)?,
            taints: read("taints", wire.taints)?,
            opened: Time(wire.opened),
            drain_deadline: wire.drain_deadline.map(Time),
            relays: wire
                .relays
                .into_iter()
                .map(|one| relay(one).map(|(_, relay)| relay))
                .collect::<Result<_, _>>()?,
            defaults: wire.defaults.map(Into::into).unwrap_or_default(),
            revision: wire.revision,
        })
    }
}

fn port(field: &'static str, wire: u32) -> Result<u16, Error> {
    u16::try_from(wire).map_err(|_| Error::new(field, format!("{wire} is no port")))
}

/// One of `node`.
pub fn wire_relay(node: NodeId, relay: &Relay) -> v1::Relay {
    v1::Relay {
        node: node.as_bytes().to_vec(),
        peer: relay.peer.as_bytes().to_vec(),
        via: relay.via.as_bytes().to_vec(),
        slot: relay.slot.into(),
        names: Vec::new(),
    }
}

/// Whose it is, and the rest.
///
/// # Errors
/// An id is none, or the slot.
pub fn relay(wire: v1::Relay) -> Result<(NodeId, Relay), Error> {
    let slot = u8::try_from(wire.slot).ok().filter(|slot| *slot < Relay::SLOTS);
    let slot = slot.ok_or_else(|| {
        let (found, max) = (wire.slot, Relay::SLOTS);
        Error::new("relay.slot", format!("{found}, it must be below {max}"))
    })?;
    let (peer, via) = (node_id("relay.peer", &wire.peer)?, node_id("relay.via", &wire.via)?);
    Ok((node_id("relay.node", &wire.node)?, Relay { peer, via, slot }))
}

impl From<Forgotten> for v1::Forgotten {
    fn from(forgotten: Forgotten) -> Self {
        let choice = v1::ForgottenChoice::from(forgotten.choice).into();
        Self { epoch: forgotten.epoch, choice }
    }
}

impl TryFrom<v1::Forgotten> for Forgotten {
    type Error = Error;

    fn try_from(wire: v1::Forgotten) -> Result<Self, Error> {
        let choice = choice::<v1::ForgottenChoice, _>("choice", wire.choice)?;
        Ok(Self { epoch: wire.epoch, choice })
    }
}

fn bytes_unless_zeros(hash: &[u8; 32]) -> Vec<u8> {
    if *hash == [0; 32] { Vec::new() } else { hash.to_vec() }
}

impl From<&Tombstone> for v1::Tombstone {
    fn from(tombstone: &Tombstone) -> Self {
        Self {
            node: tombstone.node.as_bytes().to_vec(),
            key_hash: tombstone.key_hash.to_vec(),
            keep_until: tombstone.keep_until.0,
        }
    }
}

impl TryFrom<v1::Tombstone> for Tombstone {
    type Error = Error;

    fn try_from(wire: v1::Tombstone) -> Result<Self, Error> {
        Ok(Self {
            node: node_id("node", &wire.node)?,
            key_hash: hash("key_hash", &wire.key_hash)?,
            keep_until: Time(wire.keep_until),
        })
    }
}
