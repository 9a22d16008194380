//! `warren node inspect|update|promote|demote|rm|log-level`: nodes of the
//! cluster, whichever they are.

use clap::{Args, ValueEnum};
use warren_model::placement::{Taint, Toleration};
use warren_model::resources::Resources;
use warren_proto::v1;

use super::client::request_id;
use super::context::Context;
use super::defaults::DefaultFlags;
use super::failure::{Exit, Failure};
use super::listing::Record;
use super::placing::{amount, resources};
use super::rows::{NodeRow, service_id};
use super::settle::{Goal, WaitFlags, settled};
use super::spec::label;
use super::template::Format;
use crate::settings::{Filter, LEVEL_HINT, shown_level};

#[derive(Debug, Args)]
pub(crate) struct NodeInspectArgs {
    /// Ids, beginnings of ids, or host names; `self` is the node that answers
    #[arg(value_name = "NODE", required = true)]
    nodes: Vec<String>,
    /// json, yaml or a template such as '{{.Status}}'
    #[arg(long, value_name = "FORMAT", default_value = "json")]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AvailabilityFlag {
    Active,
    Pause,
    Drain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ForgottenFlag {
    Keep,
    Drop,
}

#[derive(Debug, Args)]
pub(crate) struct NodeUpdateArgs {
    /// Id, the beginning of it, or host name
    #[arg(value_name = "NODE")]
    node: String,
    /// active; pause: nothing new is placed here; drain: what runs here moves away
    #[arg(long, value_enum, value_name = "AVAILABILITY")]
    availability: Option<AvailabilityFlag>,
    /// Set a label
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label_add: Vec<(String, String)>,
    /// Take a label away
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    /// Whether it runs containers
    #[arg(long, value_name = "true|false")]
    worker: Option<bool>,
    /// Of tasks that managers do not know since the last restore or recovery. They run on for ten
    /// minutes; keep: until you say otherwise; drop: they are removed now
    #[arg(long, value_enum, value_name = "keep|drop")]
    forgotten: Option<ForgottenFlag>,
    /// How much it has of what only people can count, e.g. gpu=4; 0 takes it back
    #[arg(long, value_name = "NAME=N", value_parser = amount)]
    resource: Vec<(String, u64)>,
    /// What of it is not for tasks, all of it at once: cpu=0.5,memory=512MiB; none for nothing
    #[arg(long, value_name = "AMOUNTS", value_parser = resources)]
    system_reserve: Option<Resources>,
    #[command(flatten)]
    defaults: DefaultFlags,
    #[command(flatten)]
    wait: WaitFlags,
}

#[derive(Debug, Args)]
pub(crate) struct NodeTaintArgs {
    /// Id, the beginning of it, or host name
    #[arg(value_name = "NODE")]
    node: String,
    /// KEY[=VALUE][:EFFECT]; effects are no-schedule (nothing new, the default), prefer-no-schedule
    /// (only if no other node fits) and no-execute (what is there moves away, too)
    #[arg(value_name = "TAINT")]
    taints: Vec<Taint>,
    /// Take away a taint: KEY, KEY=VALUE, KEY:EFFECT, or * for all
    #[arg(long, value_name = "TAINT")]
    rm: Vec<Toleration>,
}

#[derive(Debug, Args)]
pub(crate) struct NodeNamesArgs {
    /// Ids, beginnings of ids, or host names
    #[arg(value_name = "NODE", required = true)]
    nodes: Vec<String>,
    #[command(flatten)]
    wait: WaitFlags,
}

#[derive(Debug, Args)]
pub(crate) struct NodeRmArgs {
    /// Ids, beginnings of ids, or host names
    #[arg(value_name = "NODE", required = true)]
    nodes: Vec<String>,
    /// Remove it even if it is there or has tasks: they are taken for lost
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LogLevelArgs {
    /// error, warn, info, debug, or by module: info,warren_store=debug
    #[arg(value_name = "FILTER")]
    filter: String,
}

pub(crate) async fn inspect(
    context: &mut Context<'_>,
    args: &NodeInspectArgs,
) -> Result<(), Failure> {
    let nodes = list(context, false).await?;
    let mut own = None;
    if args.nodes.iter().any(|name| name == "self") {
        let info = context.client.call(async |mut c| c.get_info(v1::GetInfoRequest {}).await);
        own = Some(info.await?.node_id);
    }
    let mut objects = Vec::new();
    for name in &args.nodes {
        let found = match (&own, name.as_str()) {
            (Some(own), "self") => nodes.iter().find(|node| node.id == *own),
            _ => find(&nodes, name)?,
        };
        let found = found.ok_or_else(|| {
            Failure::new(Exit::NotFound, format!("there is no node {name}"))
                .hint("`warren node ls` shows all")
        })?;
        objects.push(NodeRow::from(found).object());
    }
    context.printer.inspected(objects, &args.format)
}

/// By id, host name, or the beginning of an id, if that is one node's alone.
pub(crate) fn find<'a>(nodes: &'a [v1::Node], name: &str) -> Result<Option<&'a v1::Node>, Failure> {
    let exact = |node: &&v1::Node| service_id(&node.id) == name;
    let host =
        |node: &&v1::Node| node.description.as_ref().is_some_and(|about| about.hostname == name);
    if let Some(node) = nodes.iter().find(exact) {
        return Ok(Some(node));
    }
    let begins = |node: &&v1::Node| !name.is_empty() && service_id(&node.id).starts_with(name);
    let mut found: Vec<&v1::Node> = nodes.iter().filter(host).collect();
    if found.is_empty() {
        found = nodes.iter().filter(begins).collect();
    }
    if found.len() > 1 {
        let ids: Vec<String> = found.iter().map(|node| service_id(&node.id)).collect();
        let text = format!("{name} may be any of {}", ids.join(", "));
        return Err(Failure::input(text).hint("write an id"));
    }
    Ok(found.first().copied())
}

pub(crate) async fn list(
    context: &mut Context<'_>,
    linearizable: bool,
) -> Result<Vec<v1::Node>, Failure> {
    let request = v1::ListNodesRequest { min_revision: 0, linearizable };
    let answer = context.client.call(async |mut control| control.list_nodes(request).await).await?;
    context.stale(answer.stale_ms);
    Ok(answer.nodes)
}

pub(crate) async fn update(context: &mut Context<'_>, args: NodeUpdateArgs) -> Result<(), Failure> {
    let availability = match args.availability {
        None => v1::Availability::Unspecified,
        Some(AvailabilityFlag::Active) => v1::Availability::Active,
        Some(AvailabilityFlag::Pause) => v1::Availability::Pause,
        Some(AvailabilityFlag::Drain) => v1::Availability::Drain,
    };
    let forgotten = match args.forgotten {
        None => v1::ForgottenChoice::Unspecified,
        Some(ForgottenFlag::Keep) => v1::ForgottenChoice::Keep,
        Some(ForgottenFlag::Drop) => v1::ForgottenChoice::Drop,
    };
    let defaults = args.defaults.wire();
    let nothing = args.availability.is_none()
        && args.label_add.is_empty()
        && args.label_rm.is_empty()
        && args.worker.is_none()
        && args.forgotten.is_none()
        && args.resource.is_empty()
        && args.system_reserve.is_none()
        && defaults.is_none();
    if nothing {
        return Err(Failure::input("node update: nothing is to be changed").hint(
            "give --availability, --label-add, --label-rm, --worker, --resource, \
             --system-reserve, --default-reserve-memory (and the like) or --forgotten",
        ));
    }
    let request = v1::UpdateNodeRequest {
        node: args.node,
        manager: None,
        worker: args.worker,
        availability: availability.into(),
        labels_add: args.label_add.into_iter().collect(),
        labels_remove: args.label_rm,
        request_id: request_id(),
        forgotten: forgotten.into(),
        generic: named(args.resource),
        system_reserved: args.system_reserve.as_ref().map(Into::into),
        taints_add: Vec::new(),
        taints_remove: Vec::new(),
        drain_deadline_ms: None,
        defaults,
    };
    let empties = availability == v1::Availability::Drain || args.worker == Some(false);
    let ids = change(context, request).await?;
    match empties {
        true => settled(context, &ids, Goal::Empty, &args.wait).await,
        false => Ok(()),
    }
}

fn named(amounts: Vec<(String, u64)>) -> Vec<v1::Amount> {
    amounts.into_iter().map(|(name, amount)| v1::Amount { name, amount }).collect()
}

/// Adds taints to a node and takes others away.
pub(crate) async fn taint(context: &mut Context<'_>, args: NodeTaintArgs) -> Result<(), Failure> {
    if args.taints.is_empty() && args.rm.is_empty() {
        return Err(Failure::input("node taint: nothing is to be changed")
            .hint("give KEY[=VALUE][:EFFECT], or --rm KEY"));
    }
    let request = v1::UpdateNodeRequest {
        node: args.node,
        taints_add: args.taints.iter().map(ToString::to_string).collect(),
        taints_remove: args.rm.iter().map(ToString::to_string).collect(),
        request_id: request_id(),
        ..v1::UpdateNodeRequest::default()
    };
    change(context, request).await.map(drop)
}

/// Makes nodes managers, or takes that from them.
pub(crate) async fn set_manager(
    context: &mut Context<'_>,
    args: NodeNamesArgs,
    manager: bool,
) -> Result<(), Failure> {
    let mut ids = Vec::new();
    for node in args.nodes {
        let request = v1::UpdateNodeRequest {
            node,
            manager: Some(manager),
            request_id: request_id(),
            ..v1::UpdateNodeRequest::default()
        };
        ids.extend(change(context, request).await?);
    }
    let goal = if manager { Goal::Votes } else { Goal::Left };
    settled(context, &ids, goal, &args.wait).await
}

/// Returns the ids of what was changed, and prints them.
pub(crate) async fn change(
    context: &mut Context<'_>,
    request: v1::UpdateNodeRequest,
) -> Result<Vec<Vec<u8>>, Failure> {
    let ids = change_quietly(context, request).await?;
    ids.iter().try_for_each(|id| context.printer.line(service_id(id)))?;
    Ok(ids)
}

pub(crate) async fn change_quietly(
    context: &mut Context<'_>,
    request: v1::UpdateNodeRequest,
) -> Result<Vec<Vec<u8>>, Failure> {
    let (changed, warning) = context
        .client
        .warned(async |mut control| control.update_node(request.clone()).await)
        .await?;
    if let Some(warning) = warning {
        context.printer.warning(warning);
    }
    Ok(changed.ids)
}

pub(crate) async fn remove(context: &mut Context<'_>, args: NodeRmArgs) -> Result<(), Failure> {
    for node in args.nodes {
        let request = v1::RemoveNodeRequest { node, force: args.force, request_id: request_id() };
        let changed = context
            .client
            .call(async |mut control| control.remove_node(request.clone()).await)
            .await?;
        changed.ids.iter().try_for_each(|id| context.printer.line(service_id(id)))?;
    }
    Ok(())
}

pub(crate) async fn log_level(
    context: &mut Context<'_>,
    args: &LogLevelArgs,
) -> Result<(), Failure> {
    let filter = args.filter.parse::<Filter>();
    let filter = filter.map_err(|e| Failure::input(format!("FILTER: {e}")).hint(LEVEL_HINT))?;
    let request = v1::SetLogLevelRequest { filter: filter.to_string() };
    let answer = context
        .client
        .call(async |mut control| control.set_log_level(request.clone()).await)
        .await?;
    context.printer.note(format!("log level was {}", shown_level(&answer.before)));
    Ok(())
}
