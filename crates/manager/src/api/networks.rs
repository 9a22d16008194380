//! Making, removing and listing networks, and whose addresses are on them.

use std::net::Ipv4Addr;

use warren_model::network::{Network, NetworkSpec, VipHolder};
use warren_model::service::{Attachment, Service};
use warren_model::{NetworkId, NetworkName, NodeId, ServiceSpec, ipv6};
use warren_proto::v1;
use warren_state::State;
use warren_state::change::{Mutation, Transaction};

use crate::api::authorize::Who;
use crate::api::propose;
use crate::api::request::{Content, repeated, request};
use crate::core::Core;
use crate::quorum;
use crate::refusal::Refusal;

pub(super) async fn create(
    core: &Core,
    who: &Who,
    wire: v1::CreateNetworkRequest,
) -> Result<v1::Changed, Refusal> {
    let spec = wire.spec.ok_or_else(|| Refusal::bad_input("spec: is missing"))?;
    let spec = NetworkSpec::try_from(spec)?;
    spec.validate()?;
    if spec.name.as_str() == NetworkName::HOST {
        return Err(Refusal::bad_input("name: \"host\" is the nodes' own network")
            .hint("services are put on it by --network host; take another name"));
    }
    let content = content(&spec);
    let id = NetworkId::from_bytes(core.rng.id_bytes());
    let name = spec.name.clone();
    let transaction = Transaction {
        request: request(&who.principal, &wire.request_id, &content)?,
        principal: who.audit(),
        expects: Vec::new(),
        mutations: vec![Mutation::CreateNetwork { id, spec }],
    };
    let revision = propose(core, transaction).await?;
    // A retry is answered with what its first try made.
    let view = core.store.view();
    let made = view.network_named(&name).map_or(id, |network| network.id);
    Ok(v1::Changed { ids: vec![made.as_bytes().to_vec()], revision, ..v1::Changed::default() })
}

fn content(spec: &NetworkSpec) -> Content {
    // The wire's maps are in no order; the model's are.
    let wire = v1::NetworkSpec { labels: Default::default(), ..spec.into() };
    let content = Content::new("create-network").with_message(&wire);
    spec.labels
        .iter()
        .fold(content, |content, (key, value)| content.with(key.as_bytes()).with(value.as_bytes()))
}

pub(super) async fn remove(
    core: &Core,
    who: &Who,
    wire: v1::RemoveNetworksRequest,
) -> Result<v1::Changed, Refusal> {
    if wire.networks.is_empty() {
        return Err(Refusal::bad_input("networks: names none"));
    }
    let content = Content::new("remove-networks");
    let content = wire.networks.iter().fold(content, |c, name| c.with(name.as_bytes()));
    let request = request(&who.principal, &wire.request_id, &content)?;
    let view = core.store.view();
    if let Some(revision) = repeated(&view, request.as_ref())? {
        return Ok(v1::Changed { ids: Vec::new(), revision, ..v1::Changed::default() });
    }
    let mut ids = Vec::with_capacity(wire.networks.len());
    for name in &wire.networks {
        let id = find(&view, name)?.id;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    let mutations = ids.iter().map(|id| Mutation::RemoveNetwork { id: *id }).collect();
    let transaction =
        Transaction { request, principal: who.audit(), expects: Vec::new(), mutations };
    let revision = propose(core, transaction).await?;
    Ok(v1::Changed {
        ids: ids.iter().map(|id| id.as_bytes().to_vec()).collect(),
        revision,
        ..v1::Changed::default()
    })
}

/// A network by name, id or a beginning of its id.
fn find<'a>(view: &'a State, text: &str) -> Result<&'a Network, Refusal> {
    view.resolve_network(text).ok_or_else(|| {
        Refusal::not_found(format!("no network {text}")).hint("warren network ls shows them")
    })
}

/// Puts names in the place of ids, for networks that are called by those.
pub(super) fn resolve(view: &State, spec: &mut ServiceSpec) {
    for attachment in &mut spec.networks {
        let name = &attachment.network;
        if let Some(network) = view.resolve_network(name.as_str()) {
            attachment.network = network.spec.name.clone();
        }
    }
}

pub(super) fn list(
    core: &Core,
    view: &State,
    wire: &v1::ListNetworksRequest,
) -> Result<v1::ListNetworksResponse, Refusal> {
    let mut networks: Vec<&Network> = Vec::new();
    for name in &wire.networks {
        let network = find(view, name)?;
        if !networks.iter().any(|known| known.id == network.id) {
            networks.push(network);
        }
    }
    if wire.networks.is_empty() {
        networks.extend(view.networks());
    }
    let row = |network: &Network| {
        let users = if wire.users { users(view, network) } else { Vec::new() };
        v1::Network { users, ..network.into() }
    };
    let (revision, stale_ms) = (view.revision(), quorum::stale_ms(core));
    let networks = networks.into_iter().map(row).collect();
    let overlay = view.cluster().map(|cluster| v1::OverlayKind::from(cluster.overlay));
    let overlay = overlay.unwrap_or_default().into();
    let relays = view.nodes().flat_map(|node| {
        node.relays.iter().map(|relay| {
            let name = |id: NodeId| {
                view.node(id).map_or_else(|| id.to_string(), |n| n.description.hostname.clone())
            };
            let names = [node.id, relay.peer, relay.via].map(name).to_vec();
            v1::Relay { names, ..warren_proto::wire_relay(node.id, relay) }
        })
    });
    let relays = relays.collect();
    Ok(v1::ListNetworksResponse { networks, revision, stale_ms, overlay, relays })
}

fn users(view: &State, network: &Network) -> Vec<v1::NetworkUser> {
    let services = view.users_of(&network.spec.name).filter_map(|id| view.service(id));
    services.filter_map(|service| user(view, network, service)).collect()
}

fn user(view: &State, network: &Network, service: &Service) -> Option<v1::NetworkUser> {
    let mut attachments = service.spec.attachments().iter();
    let on: &Attachment = attachments.find(|on| on.network == network.spec.name)?;
    let address = |slot| view.vip_of(VipHolder { service: service.id, network: network.id, slot });
    let slots = (1..=service.spec.addressed_slots()).filter_map(|slot| {
        address(slot).map(|address| v1::SlotAddress { slot, address: address.into() })
    });
    let live = view.tasks_of(service.id).filter(|task| view.is_live(task.id));
    Some(v1::NetworkUser {
        service: service.id.as_bytes().to_vec(),
        name: service.spec.name.to_string(),
        address: address(0).map(Into::into),
        address_v6: address(0).map_or_else(Vec::new, |address| v6(view, network, address)),
        aliases: on.aliases.iter().map(ToString::to_string).collect(),
        slots: slots.collect(),
        mode: v1::EndpointMode::from(service.spec.endpoint.mode).into(),
        tasks: live.filter_map(|task| task.address.map(Into::into)).collect(),
    })
}

/// Bytes of the virtual IP beside an IPv4 one.
fn v6(view: &State, network: &Network, address: Ipv4Addr) -> Vec<u8> {
    let cluster = view.cluster().map(|cluster| cluster.id);
    let address = cluster.map(|id| ipv6::of_vip(id, network.spec.subnet_v6, address));
    address.map_or_else(Vec::new, |address| address.octets().to_vec())
}

/// What a service has on each of its networks, for listings.
pub(super) fn addresses(view: &State, service: &Service) -> Vec<v1::ServiceAddress> {
    let row = |(holder, address): (VipHolder, Ipv4Addr)| {
        let network = view.network(holder.network)?;
        Some(v1::ServiceAddress {
            network: network.spec.name.to_string(),
            slot: holder.slot,
            address: address.into(),
            address_v6: v6(view, network, address),
        })
    };
    view.vips_of(service.id).filter_map(row).collect()
}
