//! `warren network create|ls|inspect|rm`.

use std::net::{Ipv4Addr, Ipv6Addr};

use clap::{ArgAction, Args, Subcommand};
use serde::Serialize;
use serde_json::{Value, json};
use warren_model::cluster::Subnet;
use warren_model::ipv6::Subnet6;
use warren_model::network::NetworkSpec;
use warren_model::{Network, NetworkName, Time};
use warren_proto::v1;

use super::client::request_id;
use super::context::Context;
use super::failure::Failure;
use super::listing::{ListFlags, ReadFlags, Record, View};
use super::rows::service_id;
use super::spec::{flag_error, label, labels};
use super::template::Format;
use super::tunnel_keys::{self, RotateKeysArgs};

#[derive(Debug, Subcommand)]
pub(crate) enum NetworkVerb {
    /// Make a network
    Create(CreateArgs),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Show everything about networks: who is on them, under which names and addresses
    Inspect(InspectArgs),
    /// Remove networks that no service is on
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    /// Replace the keys that nodes encrypt with what they send to each other
    RotateKeys(RotateKeysArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Name: a-z, 0-9, '-' and '_', at most 63
    #[arg(value_name = "NAME")]
    name: NetworkName,
    /// Nothing on it reaches what is outside of the cluster
    #[arg(long)]
    internal: bool,
    /// As Docker has it; there is nothing to attach here
    #[arg(long, hide = true)]
    attachable: bool,
    /// Insist that what goes from node to node is encrypted, or is not: the cluster's overlay
    /// decides, and what it does not do is refused
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    encrypted: Option<bool>,
    /// Part of the cluster's pool that its virtual IPs are from; once for IPv4, once for IPv6
    #[arg(long, value_name = "CIDR", value_parser = range, action = ArgAction::Append)]
    subnet: Vec<Range>,
    /// Label of the network
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
}

/// A subnet of either family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Range {
    V4(Subnet),
    V6(Subnet6),
}

fn range(text: &str) -> Result<Range, String> {
    match text.contains(':') {
        true => text.parse().map(Range::V6).map_err(|e| format!("{e}")),
        false => text.parse().map(Range::V4).map_err(|e| format!("{e}")),
    }
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    read: ReadFlags,
    #[command(flatten)]
    list: ListFlags,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Names, ids or beginnings of ids
    #[arg(value_name = "NETWORK", required = true)]
    networks: Vec<String>,
    /// json, yaml or a template such as '{{.Subnet}}'
    #[arg(long, value_name = "FORMAT", default_value = "json")]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Names, ids or beginnings of ids
    #[arg(value_name = "NETWORK", required = true)]
    networks: Vec<String>,
}

pub(crate) async fn run(context: &mut Context<'_>, verb: NetworkVerb) -> Result<(), Failure> {
    match verb {
        NetworkVerb::Create(args) => create(context, args).await,
        NetworkVerb::Ls(args) => ls(context, &args).await,
        NetworkVerb::Inspect(args) => inspect(context, args).await,
        NetworkVerb::Rm(args) => rm(context, args).await,
        NetworkVerb::RotateKeys(args) => tunnel_keys::run(context, &args).await,
    }
}

impl CreateArgs {
    fn spec(self) -> Result<NetworkSpec, Failure> {
        let mut spec = NetworkSpec {
            labels: labels("--label", self.label)?,
            internal: self.internal,
            attachable: self.attachable,
            encrypted: self.encrypted.unwrap_or(true),
            ..NetworkSpec::new(self.name)
        };
        for range in self.subnet {
            let (twice, text) = match range {
                Range::V4(range) => (spec.subnet.replace(range).is_some(), range.to_string()),
                Range::V6(range) => (spec.subnet_v6.replace(range).is_some(), range.to_string()),
            };
            if twice {
                let text = format!("--subnet: {text} is a second one of its family");
                return Err(Failure::input(text));
            }
        }
        spec.validate().map_err(|e| flag_error(&e))?;
        Ok(spec)
    }
}

/// Refuses what the cluster's overlay does not do.
async fn check_encryption(context: &mut Context<'_>, wanted: bool) -> Result<(), Failure> {
    let request = v1::GetClusterRequest {};
    let cluster = context.client.call(async |mut c| c.get_cluster(request).await).await?;
    let text = match (wanted, encrypts(cluster.overlay())) {
        (true, false) => "true is not to be had: this cluster's overlay does not encrypt",
        (false, true) => "false is not to be had: this cluster's overlay encrypts all networks",
        (true, true) | (false, false) => return Ok(()),
    };
    let hint =
        "leave it out; the overlay is chosen when a cluster is made: warren cluster settings";
    Err(Failure::input(format!("--encrypted: {text}")).hint(hint))
}

/// Whether packets between nodes are encrypted, of whatever network.
fn encrypts(overlay: v1::OverlayKind) -> bool {
    overlay == v1::OverlayKind::Wireguard
}

async fn create(context: &mut Context<'_>, args: CreateArgs) -> Result<(), Failure> {
    let asked = args.encrypted;
    let spec = args.spec()?;
    if let Some(wanted) = asked {
        check_encryption(context, wanted).await?;
    }
    let request = v1::CreateNetworkRequest { spec: Some((&spec).into()), request_id: request_id() };
    let changed = context
        .client
        .call(async |mut control| control.create_network(request.clone()).await)
        .await?;
    changed.ids.iter().try_for_each(|id| context.printer.line(service_id(id)))
}

/// What is told of networks.
struct Told {
    networks: Vec<v1::Network>,
    /// Whether the overlay encrypts them.
    encrypted: bool,
    /// Nodes that do not reach each other.
    relays: Vec<v1::Relay>,
}

async fn list(
    context: &mut Context<'_>,
    networks: Vec<String>,
    users: bool,
    read: ReadFlags,
) -> Result<Told, Failure> {
    let linearizable = read.linearizable;
    let request = v1::ListNetworksRequest { networks, min_revision: 0, linearizable, users };
    let answer = context
        .client
        .call(async |mut control| control.list_networks(request.clone()).await)
        .await?;
    context.stale(answer.stale_ms);
    let encrypted = encrypts(answer.overlay());
    Ok(Told { networks: answer.networks, encrypted, relays: answer.relays })
}

async fn ls(context: &mut Context<'_>, args: &LsArgs) -> Result<(), Failure> {
    let Told { networks, encrypted, .. } = list(context, Vec::new(), true, args.read).await?;
    let rows = networks.into_iter().map(|network| NetworkRow::new(network, encrypted));
    let mut rows: Vec<NetworkRow> = rows.collect::<Result<_, _>>()?;
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    let view = context.view();
    context.printer.list(&rows, &args.list, view)
}

async fn inspect(context: &mut Context<'_>, args: InspectArgs) -> Result<(), Failure> {
    let told = list(context, args.networks, true, ReadFlags::default()).await?;
    let Told { networks, encrypted, relays } = told;
    let relays: Vec<Value> = relays.iter().filter_map(relay).collect();
    let objects = networks.into_iter().map(|network| whole(network, encrypted, &relays));
    let objects: Vec<Value> = objects.collect::<Result<_, _>>()?;
    context.printer.inspected(objects, &args.format)
}

async fn rm(context: &mut Context<'_>, args: RmArgs) -> Result<(), Failure> {
    let request =
        v1::RemoveNetworksRequest { networks: args.networks.clone(), request_id: request_id() };
    context.client.call(async |mut control| control.remove_networks(request.clone()).await).await?;
    args.networks.iter().try_for_each(|name| context.printer.line(name))
}

fn understood(message: &v1::Network) -> Result<Network, Failure> {
    Network::try_from(message.clone())
        .map_err(|e| Failure::failed(format!("read the answer about a network: {e}")))
}

/// A network as `inspect` shows it.
fn whole(message: v1::Network, encrypted: bool, relays: &[Value]) -> Result<Value, Failure> {
    let Network { id, spec, created, revision } = understood(&message)?;
    let services: Vec<Value> = message.users.into_iter().map(user).collect();
    Ok(json!({
        "id": id.to_string(),
        "name": spec.name.to_string(),
        "labels": spec.labels,
        "internal": spec.internal,
        "encrypted": encrypted,
        "subnet": spec.subnet.map(|subnet| subnet.to_string()),
        "subnet_v6": spec.subnet_v6.map(|subnet| subnet.to_string()),
        "created_at": created.to_string(),
        "revision": revision,
        "services": services,
        "relays": relays,
    }))
}

/// Two nodes that do not reach each other, and who passes on.
fn relay(relay: &v1::Relay) -> Option<Value> {
    let [one, two, via] = relay.names.as_slice() else { return None };
    Some(json!({ "nodes": [one, two], "via": via }))
}

fn user(user: v1::NetworkUser) -> Value {
    let v4 = |address: u32| Ipv4Addr::from(address).to_string();
    let v6 = <[u8; 16]>::try_from(user.address_v6).ok().map(Ipv6Addr::from);
    let slots = user.slots.into_iter().map(|slot| (slot.slot.to_string(), v4(slot.address).into()));
    json!({
        "id": service_id(&user.service),
        "name": user.name,
        "endpoint_mode": match v1::EndpointMode::try_from(user.mode) {
            Ok(v1::EndpointMode::Dnsrr) => "dnsrr",
            Ok(v1::EndpointMode::Vip | v1::EndpointMode::Unspecified) | Err(_) => "vip",
        },
        "address": user.address.map(v4),
        "address_v6": v6.map(|address| address.to_string()),
        "aliases": user.aliases,
        "slot_addresses": slots.collect::<serde_json::Map<String, Value>>(),
        "tasks": user.tasks.into_iter().map(v4).collect::<Vec<_>>(),
    })
}

#[derive(Debug, Serialize)]
pub(crate) struct NetworkRow {
    id: String,
    name: String,
    internal: bool,
    /// Whether the cluster's overlay encrypts what goes between nodes.
    encrypted: bool,
    subnet: Option<String>,
    subnet_v6: Option<String>,
    /// How many are on it.
    services: usize,
    created_at: String,
    #[serde(skip)]
    created_ms: u64,
}

impl NetworkRow {
    pub(crate) fn new(message: v1::Network, encrypted: bool) -> Result<Self, Failure> {
        let Network { id, spec, created, revision: _ } = understood(&message)?;
        let Time(created_ms) = created;
        Ok(Self {
            id: id.to_string(),
            name: spec.name.to_string(),
            internal: spec.internal,
            encrypted,
            subnet: spec.subnet.map(|subnet| subnet.to_string()),
            subnet_v6: spec.subnet_v6.map(|subnet| subnet.to_string()),
            services: message.users.len(),
            created_at: created.to_string(),
            created_ms,
        })
    }
}

impl Record for NetworkRow {
    const COLUMNS: &'static [&'static str] =
        &["ID", "NAME", "INTERNAL", "ENCRYPTED", "SUBNET", "SERVICES", "CREATED"];
    const KEYS: &'static [&'static str] =
        &["id", "name", "internal", "encrypted", "subnet", "subnet_v6", "services", "created_at"];

    fn cells(&self, view: View) -> Vec<String> {
        let yes = |said: bool| if said { "yes" } else { "no" }.to_owned();
        let subnets = [&self.subnet, &self.subnet_v6].into_iter().flatten().cloned();
        vec![
            self.id.clone(),
            self.name.clone(),
            yes(self.internal),
            yes(self.encrypted),
            subnets.collect::<Vec<_>>().join(", "),
            self.services.to_string(),
            view.ago(Time(self.created_ms)),
        ]
    }

    fn key(&self) -> &str {
        &self.id
    }
}
