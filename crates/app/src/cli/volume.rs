//! `warren volume ls|inspect|rm|prune`: volumes of nodes.
//!
//! Nothing of them is in the state: each node is asked for those that it keeps.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::{Args, Subcommand};
use futures::StreamExt;
use serde::Serialize;
use serde_json::{Value, json};
use warren_model::Time;
use warren_proto::v1::{self, frame, open_stream};

use super::client::Client;
use super::context::Context;
use super::failure::{Exit, Failure, nearest};
use super::listing::{ListFlags, Record, View, size};
use super::rows::service_id;
use super::template::Format;

/// Nodes that are asked at the same time.
const ASKED_AT_ONCE: usize = 16;
/// Of a listing: a node that needs longer is left out, and named.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Of a column in a table, unless whole values are wanted.
const CELL_CHARS: usize = 40;

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeVerb {
    /// List the volumes of all nodes
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Show everything about volumes, with what they take
    Inspect(InspectArgs),
    /// Remove volumes, with what is in them
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    /// Remove volumes that no task of their node uses, with what is in them
    Prune(PruneArgs),
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Of this node alone: host name, id or a beginning of it; repeat for more
    #[arg(long, value_name = "NODE")]
    node: Vec<String>,
    #[command(flatten)]
    list: ListFlags,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Names of volumes
    #[arg(value_name = "VOLUME", required = true)]
    volumes: Vec<String>,
    /// Of this node alone; repeat for more
    #[arg(long, value_name = "NODE")]
    node: Vec<String>,
    /// json, yaml or a template such as '{{.Path}}'
    #[arg(long, value_name = "FORMAT", default_value = "json")]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Names of volumes
    #[arg(value_name = "VOLUME", required = true)]
    volumes: Vec<String>,
    /// On this node; needed where several have a volume of that name; repeat for more
    #[arg(long, value_name = "NODE")]
    node: Vec<String>,
    /// On all nodes that have it
    #[arg(long, conflicts_with = "node")]
    all_nodes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// On this node; repeat for more [default: the one the call arrives at]
    #[arg(long, value_name = "NODE")]
    node: Vec<String>,
    /// On all nodes
    #[arg(long, conflicts_with = "node")]
    all_nodes: bool,
    /// Only those with this label; repeat for more, all of which they must have
    #[arg(long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Only say which
    #[arg(long)]
    dry_run: bool,
    /// Yes, remove what is in them
    #[arg(short, long)]
    force: bool,
}

/// A volume on a node.
#[derive(Debug, Serialize)]
pub(crate) struct VolumeRow {
    name: String,
    node: String,
    node_id: String,
    driver: &'static str,
    created_at: Option<String>,
    labels: BTreeMap<String, String>,
    path: String,
    used_by: Vec<String>,
    in_use: bool,
    #[serde(skip)]
    created: Time,
    #[serde(skip)]
    size_bytes: Option<u64>,
}

impl Record for VolumeRow {
    const COLUMNS: &'static [&'static str] = &["VOLUME", "NODE", "CREATED", "USED BY"];
    const KEYS: &'static [&'static str] =
        &["name", "node", "node_id", "driver", "created_at", "path", "used_by", "in_use"];
    const IDS: &'static [(&'static str, &'static str)] = &[("node", "node_id")];

    fn cells(&self, view: View) -> Vec<String> {
        vec![
            self.name.clone(),
            self.node.clone(),
            if self.created_at.is_some() { view.ago(self.created) } else { "N/A".to_owned() },
            view.cut(&self.used_by.join(", "), CELL_CHARS),
        ]
    }

    fn key(&self) -> &str {
        &self.name
    }
}

/// A node that may have volumes.
struct Keeper {
    name: String,
    id: Vec<u8>,
}

impl Keeper {
    fn row(&self, wire: v1::VolumeRow) -> VolumeRow {
        let created = Time(wire.created);
        VolumeRow {
            name: wire.name,
            node: self.name.clone(),
            node_id: service_id(&self.id),
            driver: "local",
            created_at: (wire.created > 0).then(|| created.to_string()),
            labels: wire.labels.into_iter().collect(),
            path: wire.path,
            in_use: !wire.users.is_empty(),
            used_by: wire.users,
            created,
            size_bytes: wire.size_bytes,
        }
    }
}

pub(crate) async fn run(context: &mut Context<'_>, verb: VolumeVerb) -> Result<(), Failure> {
    match verb {
        VolumeVerb::Ls(args) => {
            let keepers = keepers(context, &args.node).await?;
            let rows = rows(context, &keepers, Vec::new(), false).await?;
            let view = context.view();
            context.printer.list(&rows, &args.list, view)
        }
        VolumeVerb::Inspect(args) => inspect(context, args).await,
        VolumeVerb::Rm(args) => rm(context, args).await,
        VolumeVerb::Prune(args) => prune(context, args).await,
    }
}

/// Nodes that are up, or those that are named.
async fn keepers(context: &mut Context<'_>, named: &[String]) -> Result<Vec<Keeper>, Failure> {
    let request = v1::ListNodesRequest::default();
    let listed = context.client.call(async |mut control| control.list_nodes(request).await).await?;
    let keeper = |node: &v1::Node| Keeper {
        name: node.description.as_ref().map(|d| d.hostname.clone()).unwrap_or_default(),
        id: node.id.clone(),
    };
    if named.is_empty() {
        let up = |node: &&v1::Node| node.status() == v1::NodeStatus::Ready && node.worker;
        return Ok(listed.nodes.iter().filter(up).map(keeper).collect());
    }
    let all: Vec<Keeper> = listed.nodes.iter().map(keeper).collect();
    let find = |text: &String| {
        let by_name = all.iter().find(|keeper| keeper.name == *text);
        let by_id = || all.iter().find(|keeper| service_id(&keeper.id).starts_with(text.as_str()));
        let found =
            by_name.or_else(by_id).map(|k| Keeper { name: k.name.clone(), id: k.id.clone() });
        found.ok_or_else(|| {
            let failure = Failure::new(Exit::NotFound, format!("no node {text}"));
            match nearest(text, all.iter().map(|keeper| keeper.name.as_str())) {
                Some(name) => failure.hint(format!("did you mean {name}?")),
                None => failure.hint("warren node ls shows them"),
            }
        })
    };
    named.iter().map(find).collect()
}

/// What nodes keep; tells which of them did not answer.
async fn rows(
    context: &mut Context<'_>,
    keepers: &[Keeper],
    names: Vec<String>,
    sizes: bool,
) -> Result<Vec<VolumeRow>, Failure> {
    let client = &context.client;
    let asked = keepers.iter().map(|keeper| {
        let kind = open_stream::Kind::VolumeList(v1::VolumeList { names: names.clone(), sizes });
        async move {
            let answer = tokio::time::timeout(ANSWER_MAX, ask(client, &keeper.id, kind)).await;
            (keeper, answer.unwrap_or_else(|_| Err(Failure::failed("it does not answer"))))
        }
    });
    let answers: Vec<_> =
        futures::stream::iter(asked).buffer_unordered(ASKED_AT_ONCE).collect().await;
    let (mut rows, mut last) = (Vec::new(), None);
    let silent = answers.iter().filter(|(_, answer)| answer.is_err()).count();
    let alone = silent == answers.len();
    for (keeper, answer) in answers {
        match answer {
            Ok(found) => rows.extend(found.volumes.into_iter().map(|row| keeper.row(row))),
            Err(failure) if alone => last = Some(failure),
            Err(failure) => {
                let text = format!("volumes of node {} are left out: {failure}", keeper.name);
                context.printer.warning(text);
            }
        }
    }
    rows.sort_by(|a: &VolumeRow, b| (&a.name, &a.node).cmp(&(&b.name, &b.node)));
    last.map_or(Ok(rows), Err)
}

async fn ask(
    client: &Client,
    node: &[u8],
    kind: open_stream::Kind,
) -> Result<v1::Volumes, Failure> {
    let mut frames = client.open_at(node.to_vec(), kind).await?;
    while let Some(message) = frames.from.message().await? {
        match message.kind {
            Some(frame::Kind::Volumes(found)) => return Ok(found),
            Some(frame::Kind::Error(error)) => return Err(error.into()),
            _ => {}
        }
    }
    Err(Failure::failed("it said nothing"))
}

fn must_be_there(rows: &[VolumeRow], names: &[String]) -> Result<(), Failure> {
    match names.iter().find(|name| !rows.iter().any(|row| row.name == **name)) {
        None => Ok(()),
        Some(name) => Err(Failure::new(Exit::NotFound, format!("no node has a volume {name}"))
            .hint("warren volume ls shows them")),
    }
}

async fn inspect(context: &mut Context<'_>, args: InspectArgs) -> Result<(), Failure> {
    let keepers = keepers(context, &args.node).await?;
    let rows = rows(context, &keepers, args.volumes.clone(), true).await?;
    must_be_there(&rows, &args.volumes)?;
    let object = |row: &VolumeRow| {
        let mut object = row.object();
        if let Value::Object(all) = &mut object {
            all.insert("size_bytes".to_owned(), json!(row.size_bytes));
        }
        object
    };
    context.printer.inspected(rows.iter().map(object).collect(), &args.format)
}

async fn rm(context: &mut Context<'_>, args: RmArgs) -> Result<(), Failure> {
    let keepers = keepers(context, &args.node).await?;
    let rows = rows(context, &keepers, args.volumes.clone(), false).await?;
    must_be_there(&rows, &args.volumes)?;
    for name in &args.volumes {
        let on: Vec<&str> =
            rows.iter().filter(|row| row.name == *name).map(|row| row.node.as_str()).collect();
        if on.len() > 1 && args.node.is_empty() && !args.all_nodes {
            let text = format!("volume {name} is on several nodes: {}", on.join(", "));
            return Err(
                Failure::new(Exit::Conflict, text).hint("say on which with --node, or --all-nodes")
            );
        }
    }
    for keeper in &keepers {
        let here = rows.iter().filter(|row| row.node_id == service_id(&keeper.id));
        let names: Vec<String> = here.map(|row| row.name.clone()).collect();
        if names.is_empty() {
            continue;
        }
        let request = v1::VolumeRemove { names, ..v1::VolumeRemove::default() };
        let kind = open_stream::Kind::VolumeRemove(request);
        let done = ask(&context.client, &keeper.id, kind).await?;
        done.removed.iter().try_for_each(|name| context.printer.line(name))?;
    }
    Ok(())
}

async fn prune(context: &mut Context<'_>, args: PruneArgs) -> Result<(), Failure> {
    if !args.force && !args.dry_run {
        return Err(Failure::input(
            "volume prune: it removes what is in volumes that no task uses at the moment",
        )
        .hint("say so with --force, or look first with --dry-run"));
    }
    // Nobody named: the node that the call arrives at.
    let nodes = match args.node.is_empty() && !args.all_nodes {
        true => vec![Vec::new()],
        false => keepers(context, &args.node).await?.into_iter().map(|keeper| keeper.id).collect(),
    };
    let mut freed = 0;
    for node in nodes {
        let request = v1::VolumeRemove {
            names: Vec::new(),
            prune: true,
            labels: args.label.clone(),
            dry_run: args.dry_run,
        };
        let kind = open_stream::Kind::VolumeRemove(request);
        let done = ask(&context.client, &node, kind).await?;
        done.removed.iter().try_for_each(|name| context.printer.line(name))?;
        freed += done.freed_bytes;
    }
    let bytes = size(freed);
    context.printer.note(match args.dry_run {
        true => format!("{bytes} would be freed"),
        false => format!("{bytes} freed"),
    });
    Ok(())
}
