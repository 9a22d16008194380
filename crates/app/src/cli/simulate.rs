//! `warren simulate`: what would be where if. Changes nothing.
//!
//! Several steps are parted by `--then`, each read by a parser of its own, since
//! one command line knows one subcommand.

use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};
use warren_model::quantity::format_duration_ms;
use warren_model::resources::Resources;
use warren_proto::v1;
use warren_proto::v1::supposed_step::{AddNode, Kind, Lose, Scale};

use super::context::Context;
use super::explain;
use super::failure::Failure;
use super::placing::resources_json;
use super::printer::table;
use super::rows::service_id;
use super::spec::{bytes, count, label};
use super::template::Format;
use super::usage;

/// Show what would be where if; changes nothing
///
/// The planner's own rehearsal on a copy of the cluster's state, with containers that start at
/// once and work. Steps: drain NODE; lose NODE... or --label KEY=VALUE; scale SERVICE=N...;
/// add-node [--like NODE] [--cpu N] [--memory SIZE] [--label KEY=VALUE]. Several follow each other
/// with --then: warren simulate lose worker-1 --then scale web=6 --format json
#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    /// drain, lose, scale or add-node, each with its flags; further ones after --then
    #[arg(value_name = "STEP", required = true, num_args = 1..)]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

#[derive(Debug, Parser)]
#[command(name = "warren simulate", no_binary_name = true, disable_help_subcommand = true)]
struct StepArgs {
    #[command(subcommand)]
    step: Step,
    /// table, json, yaml or a template such as '{{.TookMs}}'
    #[arg(long, value_name = "FORMAT", global = true)]
    format: Option<Format>,
    /// Of a view as new as anything acknowledged before
    #[arg(long, global = true)]
    linearizable: bool,
}

#[derive(Debug, Subcommand)]
enum Step {
    /// Everything moves off a node
    Drain {
        /// Ids, beginnings of ids, or host names: one after the other
        #[arg(value_name = "NODE", required = true)]
        nodes: Vec<String>,
    },
    /// Nodes are gone, all at once
    Lose {
        /// Ids, beginnings of ids, or host names
        #[arg(value_name = "NODE", required_unless_present = "label")]
        nodes: Vec<String>,
        /// All that have this label; of several all must hold
        #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
        label: Vec<(String, String)>,
    },
    /// Services get other numbers of replicas
    Scale {
        #[arg(value_name = "SERVICE=N", required = true, value_parser = scale)]
        services: Vec<(String, u32)>,
    },
    /// A node joins
    AddNode {
        /// Has what this node has, labels and taints too
        #[arg(long, value_name = "NODE")]
        like: Option<String>,
        /// Cores
        #[arg(long, value_name = "N", value_parser = count)]
        cpu: Option<u32>,
        /// E.g. 16GiB
        #[arg(long, value_name = "SIZE", value_parser = bytes)]
        memory: Option<u64>,
        /// Set a label
        #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
        label: Vec<(String, String)>,
        /// Its name; new-1 and so on without one
        #[arg(long, value_name = "NAME")]
        hostname: Option<String>,
    },
}

fn scale(text: &str) -> Result<(String, u32), String> {
    let shape = || format!("{text:?} is not of the form SERVICE=N");
    let (name, replicas) = text.split_once('=').ok_or_else(shape)?;
    Ok((name.to_owned(), replicas.parse().map_err(|_| shape())?))
}

impl Step {
    fn kinds(self) -> Vec<Kind> {
        match self {
            Self::Drain { nodes } => nodes.into_iter().map(Kind::Drain).collect(),
            Self::Lose { nodes, label } => {
                vec![Kind::Lose(Lose { nodes, labels: label.into_iter().collect() })]
            }
            Self::Scale { services } => {
                let scale = |(service, replicas)| Kind::Scale(Scale { service, replicas });
                services.into_iter().map(scale).collect()
            }
            Self::AddNode { like, cpu, memory, label, hostname } => vec![Kind::Add(AddNode {
                hostname: hostname.unwrap_or_default(),
                like: like.unwrap_or_default(),
                cpus: cpu,
                memory_bytes: memory,
                labels: label.into_iter().collect(),
            })],
        }
    }
}

pub(crate) async fn run(context: &mut Context<'_>, args: SimulateArgs) -> Result<(), Failure> {
    let mut request = v1::SimulateRequest::default();
    let mut format = Format::Table;
    for words in args.words.split(|word| word == "--then") {
        let parsed = StepArgs::try_parse_from(words);
        let step = parsed.map_err(|error| usage::explain(error, context.printer))?;
        request.linearizable |= step.linearizable;
        format = step.format.unwrap_or(format);
        let kinds = step.step.kinds().into_iter();
        request.steps.extend(kinds.map(|kind| v1::SupposedStep { kind: Some(kind) }));
    }
    let answer =
        context.client.call(async |mut control| control.simulate(request.clone()).await).await?;
    context.stale(answer.stale_ms);
    match &format {
        Format::Table => for_people(&answer).iter().try_for_each(|text| context.printer.line(text)),
        format => context.printer.object(&whole(&answer), format),
    }
}

/// `3 move, 1 waits; nothing was changed`.
fn summary(answer: &v1::Simulation) -> String {
    let count = |what: &str| answer.tasks.iter().filter(|task| task.what == what).count();
    let words = [
        ("moves", "to move"),
        ("placed", "newly placed"),
        ("renewed", "renewed in place"),
        ("ends", "to end"),
        ("left", "left on a lost node"),
        ("stays", "without another place"),
        ("pending", "without a place"),
    ];
    let told = words.into_iter().map(|(what, word)| (count(what), word));
    let told = told.filter(|(count, _)| *count > 0);
    let told: Vec<String> = told.map(|(count, word)| format!("{count} {word}")).collect();
    let told = if told.is_empty() { "all stays as it is".to_owned() } else { told.join(", ") };
    let rest = match answer.unsettled {
        true => "; it does not come to rest".to_owned(),
        false => format!("; at rest after {}", format_duration_ms(answer.took_ms)),
    };
    format!("{told}{rest}; nothing was changed")
}

fn for_people(answer: &v1::Simulation) -> Vec<String> {
    let mut lines = Vec::new();
    let place = |name: &str| if name.is_empty() { "-".to_owned() } else { name.to_owned() };
    if !answer.tasks.is_empty() {
        let row = |task: &v1::SimulatedTask| {
            vec![task.name.clone(), place(&task.from), place(&task.to), task.what.clone()]
        };
        let rows: Vec<Vec<String>> = answer.tasks.iter().map(row).collect();
        lines.push(table(&["TASK", "FROM", "TO", "WHAT"], &rows).trim_end().to_owned());
    }
    if answer.tasks_left > 0 {
        lines.push(format!("{} more are left out", answer.tasks_left));
    }
    if !answer.nodes.is_empty() {
        let row = |node: &v1::SimulatedNode| {
            let (before, after) = (node.tasks_before.to_string(), node.tasks_after.to_string());
            let reserved = explain::amounts(node.reserved_after.as_ref()).to_string();
            vec![node.name.clone(), before, after, reserved]
        };
        let rows: Vec<Vec<String>> = answer.nodes.iter().map(row).collect();
        let titles = ["NODE", "TASKS NOW", "TASKS THEN", "RESERVED THEN"];
        lines.push(table(&titles, &rows).trim_end().to_owned());
    }
    for pending in &answer.pending {
        lines.push(pending.summary.clone());
        lines.extend(pending.fixes.iter().map(|fix| format!("  would help: {fix}")));
    }
    lines.push(summary(answer));
    lines
}

fn amounts(wire: Option<&v1::Resources>) -> Value {
    let resources: Resources = explain::amounts(wire);
    resources_json(&resources)
}

fn whole(answer: &v1::Simulation) -> Value {
    let name = |name: &str| (!name.is_empty()).then(|| name.to_owned());
    let task = |task: &v1::SimulatedTask| {
        json!({
            "service_id": service_id(&task.service),
            "slot": (task.slot > 0).then_some(task.slot),
            "name": task.name,
            "from": name(&task.from),
            "to": name(&task.to),
            "what": task.what,
        })
    };
    let node = |node: &v1::SimulatedNode| {
        json!({
            "id": service_id(&node.node),
            "hostname": node.name,
            "added": node.added,
            "tasks_before": node.tasks_before,
            "tasks_after": node.tasks_after,
            "reserved_before": amounts(node.reserved_before.as_ref()),
            "reserved_after": amounts(node.reserved_after.as_ref()),
        })
    };
    json!({
        "tasks": answer.tasks.iter().map(task).collect::<Vec<_>>(),
        "tasks_left": answer.tasks_left,
        "nodes": answer.nodes.iter().map(node).collect::<Vec<_>>(),
        "pending": answer.pending.iter().map(explain::whole).collect::<Vec<_>>(),
        "took_ms": answer.took_ms,
        "unsettled": answer.unsettled,
        "revision": answer.revision,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: &str) {
        let parsed = StepArgs::try_parse_from(line.split_whitespace());
        let got = match parsed {
            Ok(args) => format!("{:?}", args.step.kinds()),
            Err(error) => error.to_string().lines().next().unwrap_or_default().to_owned(),
        };
        assert!(got.contains(expected), "{got}");
    }

    #[test]
    fn steps() {
        check("drain a b", r#"[Drain("a"), Drain("b")]"#);
        check("lose --label rack=a", r#"labels: {"rack": "a"}"#);
        check("lose", "required arguments were not provided");
        check("scale web=3 db=0", r#"Scale { service: "db", replicas: 0 }"#);
        check("scale web", "\"web\" is not of the form SERVICE=N");
        check("add-node --like a --cpu 4 --memory 8GiB", "memory_bytes: Some(8589934592)");
        check("explode a", "unrecognized subcommand 'explode'");
    }
}
