//! What nodes are told of the network.
//!
//! An object that makes no sense is left out and told of, never the rest with
//! it: a newer manager must not cost a node its network.

use std::sync::Arc;

use warren_model::Alias;
use warren_model::id::{NetworkId, NodeId, PolicyId, ServiceId};
use warren_model::node::Relay;
use warren_model::node_table::{
    Peer, TableAttachment, TableChange, TableNetwork, TableRelay, TableService, TableTask,
};
use warren_model::service::Endpoint;

use super::cluster::{relay, wire_relay};
use super::policy::{table_policy, wire_policy};
use super::{
    Error, address, cluster_id, each, hash_or_zeros, network_id, node_id, part_if_any,
    part_or_default, policy_id, service_id, task_id,
};
use crate::v1;

fn bytes<I: Copy>(ids: &[I], bytes: impl Fn(&I) -> &[u8; 10]) -> Vec<Vec<u8>> {
    ids.iter().map(|id| bytes(id).to_vec()).collect()
}

/// `more` is left to whoever cuts it in parts.
impl From<&TableChange> for v1::NetUpdate {
    fn from(change: &TableChange) -> Self {
        Self {
            complete: change.complete,
            more: false,
            cluster: change.cluster.map_or_else(Vec::new, |id| id.as_bytes().to_vec()),
            peers: change.peers.iter().map(wire_peer).collect(),
            removed_peers: bytes(&change.removed_peers, NodeId::as_bytes),
            networks: change.networks.iter().map(wire_network).collect(),
            removed_networks: bytes(&change.removed_networks, NetworkId::as_bytes),
            services: change.services.iter().map(wire_service).collect(),
            removed_services: bytes(&change.removed_services, ServiceId::as_bytes),
            policies: change.policies.iter().map(wire_policy).collect(),
            removed_policies: bytes(&change.removed_policies, PolicyId::as_bytes),
            relays: change.relays.iter().flatten().map(wire_table_relay).collect(),
            relays_told: change.relays.is_some(),
        }
    }
}

/// What of an update is understood, and what is wrong with the rest.
pub fn table_change(wire: v1::NetUpdate) -> (TableChange, Vec<Error>) {
    let mut wrong = Vec::new();
    let mut fine = |error: Error| wrong.push(error);
    let cluster = Some(wire.cluster).filter(|id| !id.is_empty());
    let cluster = cluster.and_then(|id| cluster_id("cluster", &id).map_err(&mut fine).ok());
    let peers = wire.peers.into_iter().map(peer);
    let peers = peers.filter_map(|peer| peer.map_err(&mut fine).ok()).collect();
    let removed = wire.removed_peers.iter().map(|id| node_id("removed_peers", id));
    let removed_peers = removed.filter_map(|id| id.map_err(&mut fine).ok()).collect();
    let networks = wire.networks.into_iter().map(network);
    let networks = networks.filter_map(|network| network.map_err(&mut fine).ok()).collect();
    let removed = wire.removed_networks.iter().map(|id| network_id("removed_networks", id));
    let removed_networks = removed.filter_map(|id| id.map_err(&mut fine).ok()).collect();
    let services = wire.services.into_iter().map(service);
    let services = services.filter_map(|service| service.map_err(&mut fine).ok()).collect();
    let removed = wire.removed_services.iter().map(|id| service_id("removed_services", id));
    let removed_services = removed.filter_map(|id| id.map_err(&mut fine).ok()).collect();
    let policies = wire.policies.into_iter().map(table_policy);
    let policies = policies.filter_map(|policy| policy.map_err(&mut fine).ok()).collect();
    let removed = wire.removed_policies.iter().map(|id| policy_id("removed_policies", id));
    let removed_policies = removed.filter_map(|id| id.map_err(&mut fine).ok()).collect();
    let relays = wire.relays.into_iter().map(table_relay);
    let relays: Vec<_> = relays.filter_map(|relay| relay.map_err(&mut fine).ok()).collect();
    let change = TableChange {
        complete: wire.complete,
        cluster,
        peers,
        removed_peers,
        networks,
        removed_networks,
        services,
        removed_services,
        policies,
        removed_policies,
        relays: wire.relays_told.then_some(relays),
    };
    (change, wrong)
}

fn wire_table_relay(of: &TableRelay) -> v1::Relay {
    let [node, peer] = of.ends;
    wire_relay(node, &Relay { peer, via: of.via, slot: of.slot })
}

fn table_relay(wire: v1::Relay) -> Result<TableRelay, Error> {
    let (node, Relay { peer, via, slot }) = relay(wire)?;
    Ok(TableRelay { ends: [node, peer], via, slot })
}

fn wire_peer((id, peer): &(NodeId, Arc<Peer>)) -> v1::NetPeer {
    let Peer { number, underlay, blocks, overlay_key, overlay_key_other, name, overlay_port } =
        &**peer;
    let unless_zeros = |key: &[u8; 32]| match *key == [0; 32] {
        true => Vec::new(),
        false => key.to_vec(),
    };
    v1::NetPeer {
        node: id.as_bytes().to_vec(),
        number: *number,
        underlay: underlay.clone(),
        blocks: blocks.iter().map(Into::into).collect(),
        overlay_key: unless_zeros(overlay_key),
        overlay_key_other: unless_zeros(overlay_key_other),
        name: name.clone(),
        overlay_port: (*overlay_port).into(),
    }
}

fn peer(wire: v1::NetPeer) -> Result<(NodeId, Arc<Peer>), Error> {
    let id = node_id("peer.node", &wire.node)?;
    let peer = Peer {
        number: wire.number,
        underlay: wire.underlay,
        blocks: each("blocks", wire.blocks).map_err(|e| e.within("peer"))?,
        overlay_key: hash_or_zeros("peer.overlay_key", &wire.overlay_key)?,
        overlay_key_other: hash_or_zeros("peer.overlay_key_other", &wire.overlay_key_other)?,
        name: wire.name,
        overlay_port: u16::try_from(wire.overlay_port)
            .map_err(|_| Error::new("peer.overlay_port", "is no port".to_owned()))?,
    };
    Ok((id, Arc::new(peer)))
}

fn wire_network((id, network): &(NetworkId, Arc<TableNetwork>)) -> v1::NetNetwork {
    let TableNetwork { name, internal, attachable, encrypted, subnet_v6 } = &**network;
    v1::NetNetwork {
        id: id.as_bytes().to_vec(),
        name: name.to_string(),
        internal: *internal,
        attachable: *attachable,
        plain: !encrypted,
        subnet_v6: subnet_v6.as_ref().map(Into::into),
    }
}

fn network(wire: v1::NetNetwork) -> Result<(NetworkId, Arc<TableNetwork>), Error> {
    let id = network_id("network.id", &wire.id)?;
    let name = wire.name.parse();
    let network = TableNetwork {
        name: name.map_err(|problem| Error::new("network.name", format!("{problem}")))?,
        internal: wire.internal,
        attachable: wire.attachable,
        encrypted: !wire.plain,
        subnet_v6: part_if_any("subnet_v6", wire.subnet_v6).map_err(|e| e.within("network"))?,
    };
    Ok((id, Arc::new(network)))
}

fn wire_service((id, service): &(ServiceId, Arc<TableService>)) -> v1::NetService {
    let TableService { name, on, endpoint, ports, hostname, tasks } = &**service;
    v1::NetService {
        id: id.as_bytes().to_vec(),
        name: name.to_string(),
        on: on.iter().map(Into::into).collect(),
        endpoint: (*endpoint != Endpoint::default()).then(|| (*endpoint).into()),
        ports: ports.iter().map(Into::into).collect(),
        tasks: tasks.iter().map(Into::into).collect(),
        hostname: hostname.as_deref().map(str::to_owned),
    }
}

fn service(wire: v1::NetService) -> Result<(ServiceId, Arc<TableService>), Error> {
    let id = service_id("service.id", &wire.id)?;
    let within = |error: Error| error.within("service");
    let name = wire.name.parse();
    let service = TableService {
        name: name.map_err(|problem| Error::new("service.name", format!("{problem}")))?,
        on: each("on", wire.on).map_err(within)?,
        endpoint: part_or_default("endpoint", wire.endpoint).map_err(within)?,
        ports: each("ports", wire.ports).map_err(within)?,
        hostname: wire.hostname.map(Into::into),
        tasks: each("tasks", wire.tasks).map_err(within)?,
    };
    Ok((id, Arc::new(service)))
}

impl From<&TableAttachment> for v1::NetAttachment {
    fn from(on: &TableAttachment) -> Self {
        let slot = |(slot, address): &(u32, std::net::Ipv4Addr)| v1::SlotAddress {
            slot: *slot,
            address: (*address).into(),
        };
        Self {
            network: on.network.as_bytes().to_vec(),
            aliases: on.aliases.iter().map(ToString::to_string).collect(),
            address: on.vip.map(Into::into),
            slots: on.slots.iter().map(slot).collect(),
        }
    }
}

impl TryFrom<v1::NetAttachment> for TableAttachment {
    type Error = Error;

    fn try_from(wire: v1::NetAttachment) -> Result<Self, Error> {
        let aliases = wire.aliases.iter().map(|alias| alias.parse::<Alias>());
        let slots = wire.slots.into_iter().map(|slot| (slot.slot, address(slot.address)));
        Ok(Self {
            network: network_id("network", &wire.network)?,
            aliases: aliases
                .collect::<Result<_, _>>()
                .map_err(|problem| Error::new("aliases", format!("{problem}")))?,
            vip: wire.address.map(address),
            slots: slots.collect(),
        })
    }
}

impl From<&TableTask> for v1::NetTask {
    fn from(task: &TableTask) -> Self {
        let TableTask { task, slot, address, node, weight, ready } = *task;
        Self {
            task: task.as_bytes().to_vec(),
            slot,
            address: address.into(),
            node: node.as_bytes().to_vec(),
            weight: weight.into(),
            ready,
        }
    }
}

impl TryFrom<v1::NetTask> for TableTask {
    type Error = Error;

    fn try_from(wire: v1::NetTask) -> Result<Self, Error> {
        let weight = u16::try_from(wire.weight)
            .map_err(|_| Error::new("weight", format!("{} is too much", wire.weight)))?;
        Ok(Self {
            task: task_id("task", &wire.task)?,
            slot: wire.slot,
            address: address(wire.address),
            node: node_id("node", &wire.node)?,
            weight,
            ready: wire.ready,
        })
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use warren_model::node_table::{TablePeers, TablePolicy};
    use warren_model::policy::PolicyAction;
    use warren_model::service::{EndpointMode, PortSpec, Protocol, PublishMode};
    use warren_model::{ClusterId, TaskId};

    use super::*;

    fn change() -> TableChange {
        let node = NodeId::from_bytes([1; 10]);
        let network = NetworkId::from_bytes([2; 10]);
        let peer = Peer {
            number: 3,
            underlay: "192.0.2.7".to_owned(),
            blocks: vec!["10.128.2.0/24".parse().unwrap()],
            overlay_key: [7; 32],
            overlay_key_other: [8; 32],
            name: "w7".to_owned(),
            overlay_port: 4000,
        };
        let table_network = TableNetwork {
            name: "back".parse().unwrap(),
            internal: true,
            attachable: true,
            encrypted: false,
            subnet_v6: Some("fd00:1:2:3::/64".parse().unwrap()),
        };
        let on = TableAttachment {
            network,
            aliases: vec!["www".parse().unwrap()],
            vip: Some([10, 192, 0, 2].into()),
            slots: vec![(1, [10, 192, 0, 3].into())],
        };
        let task = TableTask {
            task: TaskId::from_bytes([4; 10]),
            slot: 1,
            address: [10, 128, 2, 2].into(),
            node,
            weight: TableTask::WEIGHT,
            ready: true,
        };
        let port = PortSpec {
            protocol: Protocol::Udp,
            bind: [0; 4].into(),
            published: 53,
            target: 5353,
            mode: PublishMode::Ingress,
            name: Some("dns".parse().unwrap()),
        };
        let service = TableService {
            name: "web".parse().unwrap(),
            on: vec![on],
            endpoint: Endpoint { mode: EndpointMode::Dnsrr, ..Endpoint::default() },
            ports: vec![port],
            hostname: Some("db-1".into()),
            tasks: vec![task, TableTask { ready: false, ..task }],
        };
        let policy = TablePolicy {
            name: "db-in".parse().unwrap(),
            action: PolicyAction::OnlyFrom,
            priority: 7,
            from: Some(TablePeers {
                services: vec![ServiceId::from_bytes([7; 10])],
                ranges: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
                outside: true,
            }),
            to: None,
            ports: vec!["5432/tcp".parse().unwrap(), "icmp".parse().unwrap()],
        };
        TableChange {
            complete: true,
            cluster: Some(ClusterId::from_bytes([9; 10])),
            peers: vec![(node, Arc::new(peer))],
            removed_peers: vec![NodeId::from_bytes([5; 10])],
            networks: vec![(network, Arc::new(table_network))],
            removed_networks: vec![NetworkId::from_bytes([6; 10])],
            services: vec![(ServiceId::from_bytes([7; 10]), Arc::new(service))],
            removed_services: vec![ServiceId::from_bytes([8; 10])],
            policies: vec![(PolicyId::from_bytes([11; 10]), Arc::new(policy))],
            removed_policies: vec![PolicyId::from_bytes([12; 10])],
            relays: Some(vec![TableRelay {
                ends: [node, NodeId::from_bytes([2; 10])],
                via: NodeId::from_bytes([3; 10]),
                slot: 15,
            }]),
        }
    }

    #[test]
    fn changes_survive() {
        for given in [change(), TableChange::default()] {
            let bytes = v1::NetUpdate::from(&given).encode_to_vec();
            let (found, wrong) = table_change(v1::NetUpdate::decode(bytes.as_slice()).unwrap());
            assert_eq!((found, wrong), (given, vec![]));
        }
    }

    #[test]
    fn what_makes_no_sense_costs_its_object_alone() {
        let mut wire = v1::NetUpdate::from(&change());
        wire.services.push(v1::NetService { name: "Bad".into(), ..wire.services[0].clone() });
        wire.peers[0].overlay_key.pop();
        wire.removed_networks.push(vec![1]);
        let newer = v1::NetPolicy { action: 99, ..wire.policies[0].clone() };
        wire.policies.push(newer);
        let (found, wrong) = table_change(wire);
        let expected = TableChange { peers: vec![], ..change() };
        assert_eq!(found, expected);
        let fields: Vec<&str> = wrong.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(
            fields,
            ["peer.overlay_key", "removed_networks", "service.name", "policy.action"]
        );
    }
}
