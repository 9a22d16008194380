//! What a node must know of the network, and what of it changed between two states.
//!
//! Pure. A node is told of networks that its own tasks are on, of all services
//! on these, and of other services the published ports that any node answers,
//! with the tasks behind them; of all nodes how they are reached, since any of
//! them may answer such a port or be behind it, and since keys must be there
//! before the first packet is.
//!
//! A task that does not run, is not healthy, is not wanted any more, or whose node is
//! not heard of is no backend from the moment that the state says so; its address stays
//! a member of its networks until it has ended.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use warren_model::cluster::Cluster;
use warren_model::network::{Network, VipHolder};
use warren_model::node::{Node, NodeStatus, Relay};
use warren_model::node_table::{
    NodeTable, Peer, TableAttachment, TableChange, TableNetwork, TableRelay, TableService,
    TableTask,
};
use warren_model::service::expand;
use warren_model::service::{Attachment, PublishMode, Service};
use warren_model::task::{Desired, Task};
use warren_model::{NetworkId, NodeId, ServiceId};
use warren_proto::v1;
use warren_state::State;

#[path = "policies.rs"]
mod policies;

/// Bytes of the objects of one message, about; a single one may be larger. Beats and other
/// assignments are not held up for long behind it.
const PART_BYTES: usize = 1 << 20;
/// Of an object within a message.
const FRAMING_BYTES: usize = 6;

/// Everything that `node` must know.
pub fn complete(view: &State, node: NodeId) -> NodeTable {
    let scope = scope(view, node);
    let peers = view.nodes().map(|node| (node.id, Arc::new(peer(view, node))));
    let networks = scope.iter().filter_map(|id| view.network(*id));
    let networks = networks.map(|network| (network.id, Arc::new(table_network(network))));
    let services = view.services();
    let services = services.filter_map(|service| {
        let told = told(view, service, Scope::Of(&scope))?;
        Some((service.id, Arc::new(told)))
    });
    NodeTable {
        cluster: view.cluster().map(|cluster| cluster.id),
        peers: peers.collect(),
        networks: networks.collect(),
        services: services.collect(),
        policies: policies::of(view, node, &scope),
        relays: relays(view, node),
    }
}

/// Those that a node has a part in, in order.
fn relays(view: &State, node: NodeId) -> Vec<TableRelay> {
    let mut found: Vec<TableRelay> = view
        .nodes()
        .flat_map(|owner| owner.relays.iter().map(|relay| table_relay(owner.id, *relay)))
        .filter(|relay| relay.via == node || relay.ends.contains(&node))
        .collect();
    found.sort_unstable();
    found
}

fn table_relay(owner: NodeId, relay: Relay) -> TableRelay {
    TableRelay { ends: [owner, relay.peer], via: relay.via, slot: relay.slot }
}

/// Relays of a node, as it keeps them.
fn kept(view: &State, id: NodeId) -> &[Relay] {
    view.node(id).map_or(&[], |node| &node.relays)
}

/// What changed of it. Costs what differs between the states, and the tasks of the node.
pub(crate) fn changes(old: &State, new: &State, node: NodeId) -> Option<TableChange> {
    let (before, after) = (scope(old, node), scope(new, node));
    let mut ids: BTreeSet<ServiceId> = new.services_since(old).into_iter().collect();
    let mut change = TableChange::default();
    for network in before.symmetric_difference(&after) {
        match after.contains(network) {
            true => change
                .networks
                .extend(new.network(*network).map(|new| (new.id, Arc::new(table_network(new))))),
            false => change.removed_networks.push(*network),
        }
        ids.extend(users(old, *network).chain(users(new, *network)));
    }
    let mut relayed = false;
    for id in new.nodes_since(old) {
        peer_changes(old, new, id, &mut change);
        relayed |= kept(old, id) != kept(new, id);
        if status(old, id) != status(new, id) {
            ids.extend(new.tasks_on(id).map(|task| task.service));
        }
    }
    policies::changes(
        old,
        new,
        &policies::Since { node, before: &before, after: &after, ids: &ids },
        &mut change,
    );
    for id in ids {
        let known = old.service(id).and_then(|service| told(old, service, Scope::Of(&before)));
        let now = new.service(id).and_then(|service| told(new, service, Scope::Of(&after)));
        match (known, now) {
            (known, Some(now)) if known.as_ref() != Some(&now) => {
                change.services.push((id, Arc::new(now)));
            }
            (Some(_), None) => change.removed_services.push(id),
            (_, Some(_)) | (None, None) => {}
        }
    }
    if relayed {
        let now = relays(new, node);
        change.relays = Some(now).filter(|now| *now != relays(old, node));
    }
    let cluster = |view: &State| view.cluster().map(|cluster| cluster.id);
    change.cluster = cluster(new).filter(|_| cluster(old) != cluster(new));
    (!change.is_empty()).then_some(change)
}

fn peer_changes(old: &State, new: &State, id: NodeId, change: &mut TableChange) {
    let of = |view: &State| view.node(id).map(|node| peer(view, node));
    match (of(old), of(new)) {
        (known, Some(now)) if known.as_ref() != Some(&now) => {
            change.peers.push((id, Arc::new(now)));
        }
        (Some(_), None) => change.removed_peers.push(id),
        (_, Some(_)) | (None, None) => {}
    }
}

/// Whose table may have changed, when these services and nodes did.
pub(crate) enum Concerned {
    Everyone,
    Nodes(BTreeSet<NodeId>),
}

pub(crate) fn concerned(
    old: &State,
    new: &State,
    mut services: BTreeSet<ServiceId>,
    nodes: &BTreeSet<NodeId>,
) -> Concerned {
    for id in nodes {
        let of = |view: &State| view.node(*id).map(|node| peer(view, node));
        if of(old) != of(new) {
            return Concerned::Everyone;
        }
        if status(old, *id) != status(new, *id) {
            services.extend(new.tasks_on(*id).map(|task| task.service));
        }
    }
    let mut found = BTreeSet::new();
    for id in nodes {
        let (was, is) = (kept(old, *id), kept(new, *id));
        let differing = was.iter().filter(|relay| !is.contains(relay));
        for relay in differing.chain(is.iter().filter(|relay| !was.contains(relay))) {
            found.extend([*id, relay.peer, relay.via]);
        }
    }
    let mut networks = BTreeSet::new();
    for id in services {
        let of = |view: &State| view.service(id).and_then(|s| told(view, s, Scope::All));
        let (before, after) = (of(old), of(new));
        if before == after {
            continue;
        }
        let told = [before, after];
        if told.iter().flatten().any(|service| service.mesh_ports().next().is_some()) {
            return Concerned::Everyone;
        }
        networks.extend(told.iter().flatten().flat_map(|s| &s.on).map(|on| on.network));
    }
    for network in networks {
        for view in [old, new] {
            for service in users(view, network) {
                let live = view.tasks_of(service).filter(|task| is_member(task));
                found.extend(live.filter_map(|task| task.node));
                if found.len() >= new.nodes().len() {
                    return Concerned::Everyone;
                }
            }
        }
    }
    Concerned::Nodes(found)
}

/// Networks that tasks of a node are on.
fn scope(view: &State, node: NodeId) -> BTreeSet<NetworkId> {
    let live = view.tasks_on(node).filter(|task| is_member(task));
    let services: BTreeSet<ServiceId> = live.map(|task| task.service).collect();
    let services = services.into_iter().filter_map(|id| view.service(id));
    let attachments = services.flat_map(|service| service.spec.attachments());
    attachments.filter_map(|on| view.network_named(&on.network)).map(|on| on.id).collect()
}

fn users(view: &State, network: NetworkId) -> impl Iterator<Item = ServiceId> {
    let network = view.network(network);
    network.into_iter().flat_map(move |network| view.users_of(&network.spec.name))
}

fn status(view: &State, node: NodeId) -> Option<NodeStatus> {
    view.node(node).map(|node| node.status)
}

/// For whom something is told.
#[derive(Clone, Copy)]
enum Scope<'a> {
    /// For somebody on these networks.
    Of(&'a BTreeSet<NetworkId>),
    /// For nobody: to see whether anything of it changed.
    All,
}

impl Scope<'_> {
    fn has(self, network: NetworkId) -> bool {
        match self {
            Self::Of(networks) => networks.contains(&network),
            Self::All => true,
        }
    }
}

fn told(view: &State, service: &Service, scope: Scope<'_>) -> Option<TableService> {
    let spec = &service.spec;
    let on: Vec<TableAttachment> = spec
        .attachments()
        .iter()
        .filter_map(|on| {
            let network = view.network_named(&on.network)?;
            scope.has(network.id).then(|| attachment(view, service, network, on))
        })
        .collect();
    let mesh = |mode: PublishMode| mode == PublishMode::Ingress;
    let shared = !on.is_empty();
    if !shared && !spec.ports.iter().any(|port| mesh(port.mode)) {
        return None;
    }
    let ports = spec.ports.iter().filter(|port| shared || mesh(port.mode));
    let members = view.tasks_of(service.id).filter(|task| is_member(task));
    let tasks = members.filter_map(|task| table_task(view, task));
    Some(TableService {
        name: spec.name.clone(),
        on,
        endpoint: spec.endpoint,
        ports: ports.copied().collect(),
        // Of those who may find it by names alone.
        // One that is filled in on the node is not known here.
        hostname: spec
            .task
            .hostname
            .as_deref()
            .filter(|name| shared && !expand::is_template(name))
            .map(Into::into),
        tasks: tasks.filter(|task| shared || task.ready).collect(),
    })
}

fn attachment(
    view: &State,
    service: &Service,
    network: &Network,
    on: &Attachment,
) -> TableAttachment {
    let vip = |slot| -> Option<Ipv4Addr> {
        view.vip_of(VipHolder { service: service.id, network: network.id, slot })
    };
    let slots = 1..=service.spec.addressed_slots();
    TableAttachment {
        network: network.id,
        aliases: on.aliases.iter().cloned().collect(),
        vip: vip(0),
        slots: slots.filter_map(|slot| Some((slot, vip(slot)?))).collect(),
    }
}

/// Whether a task's address is its own still.
fn is_member(task: &Task) -> bool {
    !task.status.state.is_terminal()
}

fn table_task(view: &State, task: &Task) -> Option<TableTask> {
    let (node, address) = (task.node?, task.address?);
    // A hook serves nobody.
    let ready = task.status.is_ready()
        && task.hook().is_none()
        && task.desired == Desired::Running
        && status(view, node) == Some(NodeStatus::Ready);
    let weight = TableTask::WEIGHT;
    Some(TableTask { task: task.id, slot: task.slot, address, node, weight, ready })
}

fn table_network(network: &Network) -> TableNetwork {
    TableNetwork {
        name: network.spec.name.clone(),
        internal: network.spec.internal,
        attachable: network.spec.attachable,
        encrypted: network.spec.encrypted,
        subnet_v6: network.spec.subnet_v6,
    }
}

/// Any node: one that runs no containers answers published ports all the same.
fn peer(view: &State, node: &Node) -> Peer {
    Peer {
        number: view.cluster().map_or(0, |cluster| number(cluster, node)),
        underlay: host(&node.description.address).to_owned(),
        blocks: node.blocks.clone(),
        overlay_key: node.description.overlay_key,
        overlay_key_other: node.description.overlay_key_other,
        name: node.description.hostname.clone(),
        overlay_port: node.description.overlay_port,
    }
}

/// The place of a node's first block in the pool, from 1. Nodes never have the same block; while
/// they have none, they have no containers to be reached.
fn number(cluster: &Cluster, node: &Node) -> u32 {
    let Some(block) = node.blocks.first() else { return 0 };
    let at = block.address.to_bits().saturating_sub(cluster.pool.address.to_bits());
    let bits = 32 - u32::from(cluster.block_prefix.min(32));
    at.checked_shr(bits).unwrap_or(0).saturating_add(1)
}

/// `10.0.0.1` of `10.0.0.1:2377`, `fd00::1` of `[fd00::1]:2377`.
fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// An update in messages that are not too large; `more` says which is not the last.
pub(crate) fn parts(mut update: v1::NetUpdate) -> Vec<v1::NetUpdate> {
    use prost::Message;
    let services = std::mem::take(&mut update.services);
    let policies = std::mem::take(&mut update.policies);
    let mut cutting = Cutting { bytes: update.encoded_len(), part: update, parts: Vec::new() };
    for service in services {
        cutting.part_for(service.encoded_len()).services.push(service);
    }
    for policy in policies {
        cutting.part_for(policy.encoded_len()).policies.push(policy);
    }
    cutting.parts.push(cutting.part);
    cutting.parts
}

/// An update that is being cut.
struct Cutting {
    parts: Vec<v1::NetUpdate>,
    part: v1::NetUpdate,
    /// Of the last part, so far.
    bytes: usize,
}

impl Cutting {
    /// Where an object of `len` bytes goes.
    fn part_for(&mut self, len: usize) -> &mut v1::NetUpdate {
        if self.bytes + len > PART_BYTES && self.bytes > 0 {
            self.part.more = true;
            self.parts.push(std::mem::take(&mut self.part));
            self.bytes = 0;
        }
        self.bytes += len + FRAMING_BYTES;
        &mut self.part
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
