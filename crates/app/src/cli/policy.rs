//! `warren policy create|ls|inspect|rm`.
//!
//! What policies did is counted by nodes and asked of each of them, at the time
//! of the command: nothing of it is in the state.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::{ArgAction, Args, Subcommand};
use futures::StreamExt;
use serde::Serialize;
use serde_json::{Value, json};
use warren_model::policy::{PolicyAction, PolicyPeer, PolicyPort, PolicySpec};
use warren_model::{Policy, PolicyId, PolicyName};
use warren_proto::v1::{self, frame, open_stream};

use super::client::{Client, request_id};
use super::context::Context;
use super::failure::Failure;
use super::listing::{ListFlags, ReadFlags, Record, View};
use super::rows::service_id;
use super::spec::{flag_error, label, labels};
use super::template::Format;

/// Nodes that are asked at the same time.
const ASKED_AT_ONCE: usize = 16;
/// A node that needs longer is left out, and named.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Of a column in a table, unless whole values are wanted.
const CELL_CHARS: usize = 40;

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyVerb {
    /// Make a policy: what of the traffic that networks allow is denied after all
    Create(CreateArgs),
    /// List policies in the order in which they are looked at, with what they did
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Show everything about policies
    Inspect(InspectArgs),
    /// Remove policies
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
PEER is a service, service=NAME, network=NAME, an address or CIDR, or outside: whoever is no
container of the cluster. PORT is of the container that is reached: 5432/tcp, 53/udp,
8000-8099, tcp, udp or icmp.

The first policy that matches decides: lower priorities first, at the same priority those
that deny. Networks come before all of them: a policy opens nothing.

  Only web may reach db, on one port; and db may reach nothing outside:
    warren policy create db-in  --to db --only-from web --port 5432/tcp
    warren policy create db-out --from db --deny --to outside")]
pub(crate) struct CreateArgs {
    /// Name: a-z, 0-9, '-' and '_', at most 63
    #[arg(value_name = "NAME")]
    name: PolicyName,
    /// Let pass what matches
    #[arg(long, conflicts_with_all = ["deny", "only_from", "only_to"])]
    allow: bool,
    /// Drop what matches
    #[arg(long, conflicts_with_all = ["only_from", "only_to"])]
    deny: bool,
    /// Who begins connections; anybody if it is left out
    #[arg(long, value_name = "PEER", value_delimiter = ',', action = ArgAction::Append)]
    from: Vec<PolicyPeer>,
    /// Whom they are for; anybody if it is left out
    #[arg(long, value_name = "PEER", value_delimiter = ',', action = ArgAction::Append)]
    to: Vec<PolicyPeer>,
    /// Let these, and what other policies allow, reach those of --to; drop all else for them
    #[arg(long, value_name = "PEER", value_delimiter = ',', action = ArgAction::Append,
          conflicts_with_all = ["from", "only_to"])]
    only_from: Vec<PolicyPeer>,
    /// Let those of --from reach these, and what other policies allow; drop all else of theirs
    #[arg(long, value_name = "PEER", value_delimiter = ',', action = ArgAction::Append,
          conflicts_with = "to")]
    only_to: Vec<PolicyPeer>,
    /// Ports of the container that is reached; everything, of every protocol, if it is left out
    #[arg(short, long, value_name = "PORT", value_delimiter = ',', action = ArgAction::Append)]
    port: Vec<PolicyPort>,
    /// Lower ones are looked at first, 0 to 1000
    #[arg(long, value_name = "N", default_value_t = PolicySpec::PRIORITY)]
    priority: u16,
    /// Label of the policy
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
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
    #[arg(value_name = "POLICY", required = true)]
    policies: Vec<String>,
    /// json, yaml or a template such as '{{.Action}}'
    #[arg(long, value_name = "FORMAT", default_value = "json")]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Names, ids or beginnings of ids
    #[arg(value_name = "POLICY", required = true)]
    policies: Vec<String>,
}

pub(crate) async fn run(context: &mut Context<'_>, verb: PolicyVerb) -> Result<(), Failure> {
    match verb {
        PolicyVerb::Create(args) => create(context, args).await,
        PolicyVerb::Ls(args) => ls(context, &args).await,
        PolicyVerb::Inspect(args) => inspect(context, args).await,
        PolicyVerb::Rm(args) => rm(context, args).await,
    }
}

impl CreateArgs {
    fn spec(self) -> Result<PolicySpec, Failure> {
        let action = match (self.allow, self.deny) {
            _ if !self.only_from.is_empty() => PolicyAction::OnlyFrom,
            _ if !self.only_to.is_empty() => PolicyAction::OnlyTo,
            (true, _) => PolicyAction::Allow,
            (_, true) => PolicyAction::Deny,
            (false, false) => {
                let text = "it is not said what becomes of connections";
                let hint = "write --allow, --deny, --only-from PEER or --only-to PEER";
                return Err(Failure::input(text).hint(hint));
            }
        };
        let spec = PolicySpec {
            name: self.name,
            labels: labels("--label", self.label)?,
            action,
            // One of the two is empty.
            from: self.from.into_iter().chain(self.only_from).collect(),
            to: self.to.into_iter().chain(self.only_to).collect(),
            ports: self.port,
            priority: self.priority,
        };
        spec.validate().map_err(|e| flag_error(&e))?;
        Ok(spec)
    }
}

async fn create(context: &mut Context<'_>, args: CreateArgs) -> Result<(), Failure> {
    let spec = args.spec()?;
    let request = v1::CreatePolicyRequest { spec: Some((&spec).into()), request_id: request_id() };
    let changed = context
        .client
        .call(async |mut control| control.create_policy(request.clone()).await)
        .await?;
    changed.ids.iter().try_for_each(|id| context.printer.line(service_id(id)))
}

async fn list(
    context: &mut Context<'_>,
    policies: Vec<String>,
    read: ReadFlags,
) -> Result<Vec<v1::Policy>, Failure> {
    let linearizable = read.linearizable;
    let request = v1::ListPoliciesRequest { policies, min_revision: 0, linearizable };
    let answer = context
        .client
        .call(async |mut control| control.list_policies(request.clone()).await)
        .await?;
    context.stale(answer.stale_ms);
    Ok(answer.policies)
}

async fn ls(context: &mut Context<'_>, args: &LsArgs) -> Result<(), Failure> {
    let policies = list(context, Vec::new(), args.read).await?;
    // Ids alone need no figures.
    let counted = match args.list.quiet || policies.is_empty() {
        true => Counted::default(),
        false => counted(context).await?,
    };
    let rows = policies.into_iter().map(|policy| PolicyRow::new(policy, &counted));
    let rows: Vec<PolicyRow> = rows.collect::<Result<_, _>>()?;
    let view = context.view();
    context.printer.list(&rows, &args.list, view)
}

async fn inspect(context: &mut Context<'_>, args: InspectArgs) -> Result<(), Failure> {
    let policies = list(context, args.policies, ReadFlags::default()).await?;
    let counted = counted(context).await?;
    let objects = policies.into_iter().map(|policy| whole(policy, &counted));
    let objects: Vec<Value> = objects.collect::<Result<_, _>>()?;
    context.printer.inspected(objects, &args.format)
}

async fn rm(context: &mut Context<'_>, args: RmArgs) -> Result<(), Failure> {
    let request =
        v1::RemovePoliciesRequest { policies: args.policies.clone(), request_id: request_id() };
    context.client.call(async |mut control| control.remove_policies(request.clone()).await).await?;
    args.policies.iter().try_for_each(|name| context.printer.line(name))
}

/// Connections, by their first packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct Tally {
    packets: u64,
    bytes: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// What one policy let pass and dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct Deeds {
    allowed: Tally,
    denied: Tally,
}

/// What policies did, on each node that said so.
#[derive(Debug, Default)]
struct Counted {
    nodes: Vec<(String, BTreeMap<PolicyId, Deeds>)>,
}

impl Counted {
    fn of(&self, policy: PolicyId) -> Deeds {
        let mut sum = Deeds::default();
        for deeds in self.nodes.iter().filter_map(|(_, deeds)| deeds.get(&policy)) {
            sum.allowed.add(deeds.allowed);
            sum.denied.add(deeds.denied);
        }
        sum
    }
}

/// Asks all nodes that are up; tells which of them did not answer.
async fn counted(context: &mut Context<'_>) -> Result<Counted, Failure> {
    let request = v1::ListNodesRequest::default();
    let listed = context.client.call(async |mut control| control.list_nodes(request).await).await?;
    let is_up = |node: &v1::Node| node.status() == v1::NodeStatus::Ready && node.worker;
    let nodes = listed.nodes.into_iter().filter(is_up).map(|node| {
        let name = node.description.map(|about| about.hostname).filter(|name| !name.is_empty());
        (name.unwrap_or_else(|| service_id(&node.id)), node.id)
    });
    let client = &context.client;
    let asked = nodes.map(|(name, id)| async move {
        let answer = tokio::time::timeout(ANSWER_MAX, counts_of(client, id)).await;
        let silent = || Err(Failure::failed("it does not answer"));
        (name, answer.unwrap_or_else(|_| silent()))
    });
    let mut answers: Vec<_> =
        futures::stream::iter(asked).buffer_unordered(ASKED_AT_ONCE).collect().await;
    answers.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut counted = Counted::default();
    for (name, answer) in answers {
        match answer {
            Ok(counts) => counted.nodes.push((name, gathered(counts))),
            Err(failure) => {
                let text = format!("what policies did on node {name} is left out: {failure}");
                context.printer.warning(text);
            }
        }
    }
    Ok(counted)
}

async fn counts_of(client: &Client, node: Vec<u8>) -> Result<Vec<v1::PolicyCount>, Failure> {
    let kind = open_stream::Kind::CountPolicies(v1::CountPolicies {});
    let mut frames = client.open_at(node, kind).await?;
    while let Some(message) = frames.from.message().await? {
        match message.kind {
            Some(frame::Kind::PolicyCounts(found)) => return Ok(found.counts),
            Some(frame::Kind::Error(error)) => return Err(error.into()),
            _ => {}
        }
    }
    Err(Failure::failed("it said nothing"))
}

/// Of one node. What is of no policy is left out.
fn gathered(counts: Vec<v1::PolicyCount>) -> BTreeMap<PolicyId, Deeds> {
    let mut all: BTreeMap<PolicyId, Deeds> = BTreeMap::new();
    for count in counts {
        let Ok(id) = warren_proto::policy_id("policy", &count.policy) else { continue };
        let deeds = all.entry(id).or_default();
        let tally = if count.denied { &mut deeds.denied } else { &mut deeds.allowed };
        tally.add(Tally { packets: count.packets, bytes: count.bytes });
    }
    all
}

fn understood(message: v1::Policy) -> Result<Policy, Failure> {
    Policy::try_from(message)
        .map_err(|e| Failure::failed(format!("read the answer about a policy: {e}")))
}

fn texts<T: ToString>(list: &[T]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

/// A policy as `inspect` shows it.
fn whole(message: v1::Policy, counted: &Counted) -> Result<Value, Failure> {
    let missing = message.missing.clone();
    let Policy { id, spec, created, revision } = understood(message)?;
    let nodes = counted.nodes.iter().map(|(name, deeds)| {
        let Deeds { allowed, denied } = deeds.get(&id).copied().unwrap_or_default();
        json!({ "node": name, "allowed": allowed, "denied": denied })
    });
    let Deeds { allowed, denied } = counted.of(id);
    Ok(json!({
        "id": id.to_string(),
        "name": spec.name.to_string(),
        "labels": spec.labels,
        "priority": spec.priority,
        "action": spec.action.as_str(),
        "from": texts(&spec.from),
        "to": texts(&spec.to),
        "ports": texts(&spec.ports),
        "missing": missing,
        "created_at": created.to_string(),
        "revision": revision,
        "allowed": allowed,
        "denied": denied,
        "nodes": nodes.collect::<Vec<Value>>(),
    }))
}

#[derive(Debug, Serialize)]
pub(crate) struct PolicyRow {
    id: String,
    name: String,
    priority: u16,
    action: &'static str,
    from: Vec<String>,
    to: Vec<String>,
    ports: Vec<String>,
    /// Services that it names and that are not there.
    missing: Vec<String>,
    /// Packets that began connections, on all nodes that answered.
    allowed: u64,
    denied: u64,
    created_at: String,
}

impl PolicyRow {
    fn new(message: v1::Policy, counted: &Counted) -> Result<Self, Failure> {
        let missing = message.missing.clone();
        let Policy { id, spec, created, revision: _ } = understood(message)?;
        let Deeds { allowed, denied } = counted.of(id);
        Ok(Self {
            id: id.to_string(),
            name: spec.name.to_string(),
            priority: spec.priority,
            action: spec.action.as_str(),
            from: texts(&spec.from),
            to: texts(&spec.to),
            ports: texts(&spec.ports),
            missing,
            allowed: allowed.packets,
            denied: denied.packets,
            created_at: created.to_string(),
        })
    }

    /// One end; services that are not there are marked.
    fn end(&self, names: &[String], view: View) -> String {
        let mark = |name: &String| match self.missing.contains(name) {
            true => format!("{name} (gone)"),
            false => name.clone(),
        };
        match names.is_empty() {
            true => "any".to_owned(),
            false => view.cut(&names.iter().map(mark).collect::<Vec<_>>().join(", "), CELL_CHARS),
        }
    }
}

impl Record for PolicyRow {
    const COLUMNS: &'static [&'static str] =
        &["PRIORITY", "NAME", "ACTION", "FROM", "TO", "PORTS", "ALLOWED", "DENIED"];
    const KEYS: &'static [&'static str] = &[
        "id",
        "name",
        "priority",
        "action",
        "from",
        "to",
        "ports",
        "missing",
        "allowed",
        "denied",
        "created_at",
    ];

    fn cells(&self, view: View) -> Vec<String> {
        let ports = match self.ports.is_empty() {
            true => "all".to_owned(),
            false => view.cut(&self.ports.join(", "), CELL_CHARS),
        };
        vec![
            self.priority.to_string(),
            self.name.clone(),
            self.action.to_owned(),
            self.end(&self.from, view),
            self.end(&self.to, view),
            ports,
            self.allowed.to_string(),
            self.denied.to_string(),
        ]
    }

    fn key(&self) -> &str {
        &self.id
    }
}
