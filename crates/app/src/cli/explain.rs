//! `warren explain task|service|node`: why something is where it is, or nowhere.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use warren_model::Time;
use warren_model::moving::Cause;
use warren_model::resources::{Resource, Resources};
use warren_proto::v1;
use warren_proto::v1::explain_request::What;

use super::context::Context;
use super::failure::Failure;
use super::listing::ReadFlags;
use super::placing::resources_json;
use super::printer::table;
use super::rows::service_id;
use super::template::Format;

#[derive(Debug, Subcommand)]
pub(crate) enum ExplainVerb {
    /// Why a task is on its node, or on none: what each node has for it
    Task(ExplainArgs),
    /// What the next task of a service would meet on each node
    Service(ExplainArgs),
    /// What a node has, who reserves it, and what keeps those off that wait for a place
    Node(ExplainArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// Of a task its id or SERVICE.SLOT, of others their name or id
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    read: ReadFlags,
    /// table, json, yaml or a template such as '{{.Summary}}'
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

pub(crate) async fn run(context: &mut Context<'_>, verb: ExplainVerb) -> Result<(), Failure> {
    let (what, args) = match verb {
        ExplainVerb::Task(args) => (What::Task(args.name.clone()), args),
        ExplainVerb::Service(args) => (What::Service(args.name.clone()), args),
        ExplainVerb::Node(args) => (What::Node(args.name.clone()), args),
    };
    let linearizable = args.read.linearizable;
    let request = v1::ExplainRequest { what: Some(what), min_revision: 0, linearizable };
    let answer =
        context.client.call(async |mut control| control.explain(request.clone()).await).await?;
    context.stale(answer.stale_ms);
    match &args.format {
        Format::Table => for_people(&answer).iter().try_for_each(|text| context.printer.line(text)),
        format => context.printer.object(&whole(&answer), format),
    }
}

pub(crate) fn amounts(wire: Option<&v1::Resources>) -> Resources {
    wire.cloned().and_then(|wire| Resources::try_from(wire).ok()).unwrap_or_default()
}

fn for_people(answer: &v1::Explanation) -> Vec<String> {
    let mut lines = vec![answer.summary.clone()];
    let reserve = amounts(answer.reserve.as_ref());
    if !reserve.is_empty() {
        lines.push(format!("reserves: {reserve}"));
    }
    if !answer.asks.is_empty() {
        lines.push(format!("asks: {}", answer.asks.join(", ")));
    }
    if !answer.rooms.is_empty() {
        lines.push(rooms(&answer.rooms));
    }
    if !answer.services.is_empty() {
        lines.push(services(&answer.services));
    }
    if !answer.nodes.is_empty() {
        lines.push(nodes(&answer.nodes));
    }
    if answer.nodes_left > 0 {
        lines.push(format!("{} more nodes are further from it", answer.nodes_left));
    }
    if let Some(nearest) = answer.nodes.iter().find(|node| node.node == answer.nearest) {
        lines.push(format!("nearest: {}", nearest.name));
    }
    if !answer.history.is_empty() {
        lines.push(history(&answer.history));
    }
    if !answer.fixes.is_empty() {
        lines.push("would help:".to_owned());
        lines.extend(answer.fixes.iter().map(|fix| format!("  {fix}")));
    }
    lines
}

fn history(decisions: &[v1::Decision]) -> String {
    let row = |decision: &v1::Decision| {
        let revision = match decision.revision {
            0 => "-".to_owned(),
            known => known.to_string(),
        };
        let time = Time(decision.time).to_string();
        vec![time, revision, decision.name.clone(), decision.text.clone()]
    };
    let rows: Vec<Vec<String>> = decisions.iter().map(row).collect();
    table(&["TIME", "REVISION", "TASK", "DECIDED"], &rows).trim_end().to_owned()
}

fn cause(number: i32) -> Option<&'static str> {
    let cause = v1::Cause::try_from(number).ok()?;
    Cause::try_from(cause).ok().map(Cause::as_str)
}

fn texts(obstacles: &[v1::Obstacle]) -> String {
    obstacles.iter().map(|obstacle| obstacle.text.as_str()).collect::<Vec<_>>().join("; ")
}

fn nodes(nodes: &[v1::NodeVerdict]) -> String {
    let row = |node: &v1::NodeVerdict| {
        let fits = match (node.here, node.next, node.fits) {
            (true, _, true) => "here",
            (true, _, false) => "leaves",
            (false, true, _) => "next",
            (false, false, true) => "yes",
            (false, false, false) => "no",
        };
        let (tasks, load) = (node.tasks.to_string(), node.load.to_string());
        vec![node.name.clone(), fits.to_owned(), tasks, load, texts(&node.obstacles)]
    };
    let rows: Vec<Vec<String>> = nodes.iter().map(row).collect();
    table(&["NODE", "FITS", "OF SERVICE", "ALL TASKS", "WHY NOT"], &rows).trim_end().to_owned()
}

fn rooms(rooms: &[v1::Room]) -> String {
    let row = |room: &v1::Room| {
        let resource = match room.resource.as_str() {
            "cpu" => Resource::Cpu,
            "memory" => Resource::Memory,
            "pids" => Resource::Pids,
            "disk" => Resource::Disk,
            name => Resource::Generic(name),
        };
        let amounts = [room.total, room.system_reserved, room.reserved, room.free];
        let amounts = amounts.map(|amount| resource.amount(amount));
        std::iter::once(room.resource.clone()).chain(amounts).collect()
    };
    let rows: Vec<Vec<String>> = rooms.iter().map(row).collect();
    let titles = ["RESOURCE", "TOTAL", "SYSTEM", "RESERVED", "FREE"];
    table(&titles, &rows).trim_end().to_owned()
}

fn services(services: &[v1::TenantVerdict]) -> String {
    let row = |service: &v1::TenantVerdict| {
        let why = match service.pending {
            0 => String::new(),
            _ if service.obstacles.is_empty() => "fits".to_owned(),
            _ => texts(&service.obstacles),
        };
        let (tasks, pending) = (service.tasks.to_string(), service.pending.to_string());
        vec![service.name.clone(), tasks, pending, why]
    };
    let rows: Vec<Vec<String>> = services.iter().map(row).collect();
    table(&["SERVICE", "TASKS HERE", "PENDING", "WHY NOT HERE"], &rows).trim_end().to_owned()
}

fn obstacles(all: &[v1::Obstacle]) -> Vec<Value> {
    let one = |obstacle: &v1::Obstacle| {
        json!({
            "kind": obstacle.kind,
            "text": obstacle.text,
            "needed": obstacle.needed,
            "free": obstacle.free,
            "capacity": obstacle.capacity,
            "fix": obstacle.fix,
        })
    };
    all.iter().map(one).collect()
}

/// Amounts are in the smallest unit: bytes, thousandths of a core, pieces.
pub(crate) fn whole(answer: &v1::Explanation) -> Value {
    let node = |node: &v1::NodeVerdict| {
        json!({
            "id": service_id(&node.node),
            "hostname": node.name,
            "fits": node.fits,
            "next": node.next,
            "here": node.here,
            "tasks_of_service": node.tasks,
            "tasks": node.load,
            "obstacles": obstacles(&node.obstacles),
        })
    };
    let room = |room: &v1::Room| {
        json!({
            "resource": room.resource,
            "total": room.total,
            "system_reserved": room.system_reserved,
            "reserved": room.reserved,
            "free": room.free,
        })
    };
    let service = |service: &v1::TenantVerdict| {
        json!({
            "id": service_id(&service.service),
            "name": service.name,
            "tasks": service.tasks,
            "pending": service.pending,
            "obstacles": obstacles(&service.obstacles),
        })
    };
    let decision = |decision: &v1::Decision| {
        json!({
            "task_id": service_id(&decision.task),
            "name": decision.name,
            "node": (!decision.node.is_empty()).then_some(&decision.node),
            "time": Time(decision.time).to_string(),
            "revision": (decision.revision > 0).then_some(decision.revision),
            "cause": cause(decision.cause),
            "text": decision.text,
        })
    };
    json!({
        "kind": answer.kind,
        "id": service_id(&answer.id),
        "name": answer.name,
        "summary": answer.summary,
        "reserve": resources_json(&amounts(answer.reserve.as_ref())),
        "asks": answer.asks,
        "nodes": answer.nodes.iter().map(node).collect::<Vec<_>>(),
        "nodes_left": answer.nodes_left,
        "nearest": (!answer.nearest.is_empty()).then(|| service_id(&answer.nearest)),
        "fixes": answer.fixes,
        "rooms": answer.rooms.iter().map(room).collect::<Vec<_>>(),
        "services": answer.services.iter().map(service).collect::<Vec<_>>(),
        "history": answer.history.iter().map(decision).collect::<Vec<_>>(),
        "revision": answer.revision,
    })
}
