//! `warren service history|rollback|pause|resume`: what a service was, and going back.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;
use serde_json::Value;
use warren_model::service::{ChangeKind, Revision};
use warren_model::{Time, image};
use warren_proto::v1;

use super::client::request_id;
use super::context::Context;
use super::failure::{Exit, Failure};
use super::inspect::spec_json;
use super::listing::{ListFlags, ReadFlags, Record, View};
use super::service::{Target, WaitFlags, converge};
use super::template::{Format, plain};

/// Longest list of changes in a table; `--no-trunc` shows it all.
const CHANGES_WIDTH: usize = 80;

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Name or id of the service
    #[arg(value_name = "SERVICE")]
    service: String,
    /// Show this revision whole
    #[arg(long, value_name = "REV", value_parser = number, conflicts_with = "diff")]
    rev: Option<u32>,
    /// Show what differs between two revisions
    #[arg(long, value_name = "A..B", value_parser = range)]
    diff: Option<(u32, u32)>,
    #[command(flatten)]
    read: ReadFlags,
    #[command(flatten)]
    list: ListFlags,
}

#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// Name or id of the service
    #[arg(value_name = "SERVICE")]
    service: String,
    /// Revision to go back to, as `service history` numbers them [default: the one before]
    #[arg(long, value_name = "REV", value_parser = number)]
    to: Option<u32>,
    #[command(flatten)]
    wait: WaitFlags,
}

#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    /// Names or ids of services
    #[arg(value_name = "SERVICE", required = true)]
    services: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    /// Name or id of the service
    #[arg(value_name = "SERVICE")]
    service: String,
    #[command(flatten)]
    wait: WaitFlags,
}

fn number(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| format!("{text:?} is not the number of a revision, which is 1 or more"))
}

fn range(text: &str) -> Result<(u32, u32), String> {
    let (from, to) = text
        .split_once("..")
        .ok_or_else(|| format!("{text:?} is not of the form A..B, e.g. 2..3"))?;
    Ok((number(from)?, number(to)?))
}

/// A change from the revision before, or between two that are compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Difference {
    /// In the words of the flags: `image`, `update.order`.
    field: String,
    from: Option<Value>,
    to: Option<Value>,
    #[serde(skip)]
    text: String,
}

#[derive(Debug, Serialize)]
struct RevisionRow {
    revision: u32,
    time: String,
    /// Who asked for it; `null`: nobody, or it is not known.
    by: Option<String>,
    action: &'static str,
    rollback_to: Option<u32>,
    current: bool,
    /// Nothing was on its way when the next one came.
    good: bool,
    image: String,
    /// From the revision before, if that is kept.
    changes: Vec<Difference>,
    #[serde(skip)]
    time_ms: u64,
    #[serde(skip)]
    what: String,
    #[serde(skip)]
    key: String,
}

impl Record for RevisionRow {
    const COLUMNS: &'static [&'static str] =
        &["REVISION", "WHEN", "BY", "WHAT", "IMAGE", "CHANGES"];
    const KEYS: &'static [&'static str] =
        &["revision", "time", "by", "action", "rollback_to", "current", "good", "image", "changes"];

    fn cells(&self, view: View) -> Vec<String> {
        let mark = if self.current { " (current)" } else { "" };
        let changes: Vec<&str> = self.changes.iter().map(|change| change.text.as_str()).collect();
        vec![
            format!("{}{mark}", self.revision),
            view.ago(Time(self.time_ms)),
            self.by.clone().unwrap_or_default(),
            self.what.clone(),
            match view.whole {
                true => self.image.clone(),
                false => image::without_pin(&self.image).to_owned(),
            },
            view.cut(&changes.join("; "), CHANGES_WIDTH),
        ]
    }

    fn key(&self) -> &str {
        &self.key
    }
}

/// What differs between two specifications, field by field.
fn differences(from: &Value, to: &Value) -> Vec<Difference> {
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    flatten(String::new(), from, &mut before);
    flatten(String::new(), to, &mut after);
    let mut fields: Vec<&String> = before.keys().chain(after.keys()).collect();
    fields.sort_unstable();
    fields.dedup();
    let differing = fields.into_iter().filter(|field| before.get(*field) != after.get(*field));
    let difference = |field: &String| {
        let (from, to) = (before.get(field).copied(), after.get(field).copied());
        let text = format!("{field}: {}", describe(from, to));
        Difference { field: field.clone(), from: from.cloned(), to: to.cloned(), text }
    };
    differing.map(difference).collect()
}

/// Lists stay whole: their items are compared, not their positions.
fn flatten<'v>(prefix: String, value: &'v Value, out: &mut BTreeMap<String, &'v Value>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let dot = if prefix.is_empty() { "" } else { "." };
                flatten(format!("{prefix}{dot}{key}"), value, out);
            }
        }
        _ => drop(out.insert(prefix, value)),
    }
}

fn describe(from: Option<&Value>, to: Option<&Value>) -> String {
    let empty = Vec::new();
    let list = |value: Option<&Value>| match value {
        Some(Value::Array(items)) => Some(items.clone()),
        Some(Value::Null) | None => Some(empty.clone()),
        Some(_) => None,
    };
    let either = [from, to].into_iter().flatten().any(Value::is_array);
    if either && let (Some(before), Some(after)) = (list(from), list(to)) {
        let gone = before.iter().filter(|item| !after.contains(item));
        let new = after.iter().filter(|item| !before.contains(item));
        let words: Vec<String> = gone
            .map(|item| format!("-{}", plain(item)))
            .chain(new.map(|item| format!("+{}", plain(item))))
            .collect();
        if !words.is_empty() {
            return words.join(" ");
        }
    }
    let word = |value: Option<&Value>| match value {
        None | Some(Value::Null) => "none".to_owned(),
        Some(Value::String(text)) if text.is_empty() => "''".to_owned(),
        Some(value) => plain(value),
    };
    format!("{} -> {}", word(from), word(to))
}

async fn fetch(
    context: &mut Context<'_>,
    service: &str,
    read: ReadFlags,
) -> Result<(String, Vec<(Revision, bool)>), Failure> {
    let (service, linearizable) = (service.to_owned(), read.linearizable);
    let request = v1::ListRevisionsRequest { service, min_revision: 0, linearizable };
    let answer = context
        .client
        .call(async |mut control| control.list_revisions(request.clone()).await)
        .await?;
    context.stale(answer.stale_ms);
    let revisions = answer.revisions.into_iter().map(|wire| {
        let current = wire.current;
        Revision::try_from(wire)
            .map(|revision| (revision, current))
            .map_err(|e| Failure::failed(format!("read the answer about a revision: {e}")))
    });
    Ok((answer.name, revisions.collect::<Result<_, _>>()?))
}

pub(crate) async fn history(context: &mut Context<'_>, args: HistoryArgs) -> Result<(), Failure> {
    let (name, revisions) = fetch(context, &args.service, args.read).await?;
    let find = |flag: &str, wanted: u32| {
        let found = revisions.iter().find(|(revision, _)| revision.number == wanted);
        found.map(|(revision, _)| revision).ok_or_else(|| {
            let known: Vec<String> = revisions.iter().map(|(r, _)| r.number.to_string()).collect();
            let text = format!("{flag}: service {name} has no revision {wanted}");
            Failure::new(Exit::NotFound, text).hint(format!("it has {}", known.join(", ")))
        })
    };
    if let Some(wanted) = args.rev {
        let whole = spec_json(&find("--rev", wanted)?.spec);
        // One whole object is nothing for a table.
        let format = match args.list.format() {
            Format::Table => Format::Json,
            format => format,
        };
        return context.printer.object(&whole, &format);
    }
    if let Some((from, to)) = args.diff {
        let (from, to) = (find("--diff", from)?, find("--diff", to)?);
        let all = differences(&spec_json(&from.spec), &spec_json(&to.spec));
        return match args.list.format() {
            Format::Table => all.iter().try_for_each(|one| context.printer.line(&one.text)),
            format => {
                let value = serde_json::to_value(&all)
                    .map_err(|e| Failure::failed(format!("write the differences: {e}")))?;
                context.printer.object(&value, &format)
            }
        };
    }
    let view = context.view();
    context.printer.list(&rows(&revisions), &args.list, view)
}

/// Newest first.
fn rows(revisions: &[(Revision, bool)]) -> Vec<RevisionRow> {
    let mut before: Option<Value> = None;
    let mut rows: Vec<RevisionRow> = Vec::with_capacity(revisions.len());
    for (revision, current) in revisions {
        let spec = spec_json(&revision.spec);
        let changes = before.as_ref().map(|before| differences(before, &spec));
        rows.push(row(revision, *current, changes.unwrap_or_default()));
        before = Some(spec);
    }
    rows.reverse();
    rows
}

fn row(revision: &Revision, current: bool, changes: Vec<Difference>) -> RevisionRow {
    let (action, rollback_to) = match revision.change.kind {
        ChangeKind::Create => ("create", None),
        ChangeKind::Update => ("update", None),
        ChangeKind::Rollback { to } => ("rollback", Some(to)),
        ChangeKind::AutomaticRollback { to } => ("automatic-rollback", Some(to)),
    };
    RevisionRow {
        revision: revision.number,
        time: revision.time.to_string(),
        by: revision.change.by.clone(),
        action,
        rollback_to,
        current,
        good: revision.good,
        image: revision.spec.task.image.clone(),
        changes,
        time_ms: revision.time.0,
        what: revision.change.kind.to_string(),
        key: revision.number.to_string(),
    }
}

pub(crate) async fn rollback(context: &mut Context<'_>, args: RollbackArgs) -> Result<(), Failure> {
    let request = v1::RollBackServiceRequest {
        service: args.service.clone(),
        to: args.to.unwrap_or(0),
        request_id: request_id(),
    };
    let changed = context
        .client
        .call(async |mut control| control.roll_back_service(request.clone()).await)
        .await?;
    context.printer.line(&changed.name)?;
    let target = Target { revision: changed.revision, number: changed.number };
    converge(context, &args.wait, &changed.name, target).await
}

async fn hold(
    context: &mut Context<'_>,
    service: &str,
    paused: bool,
) -> Result<v1::ServiceChanged, Failure> {
    let request =
        v1::HoldUpdateRequest { service: service.to_owned(), paused, request_id: request_id() };
    let changed =
        context.client.call(async |mut control| control.hold_update(request.clone()).await).await?;
    context.printer.line(&changed.name)?;
    Ok(changed)
}

pub(crate) async fn pause(context: &mut Context<'_>, args: PauseArgs) -> Result<(), Failure> {
    for service in &args.services {
        hold(context, service, true).await?;
    }
    Ok(())
}

pub(crate) async fn resume(context: &mut Context<'_>, args: ResumeArgs) -> Result<(), Failure> {
    let changed = hold(context, &args.service, false).await?;
    let target = Target { revision: changed.revision, number: changed.number };
    converge(context, &args.wait, &changed.name, target).await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(from: Value, to: Value, expected: &[&str]) {
        let found = differences(&from, &to);
        let texts: Vec<&str> = found.iter().map(|one| one.text.as_str()).collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn what_differs() {
        check(json!({"image": "a", "n": 1}), json!({"image": "a", "n": 1}), &[]);
        check(
            json!({"image": "a", "replicas": 3, "env": ["A=1", "B=2"], "user": null}),
            json!({"image": "b", "replicas": 5, "env": ["B=2", "C=3"], "user": "www"}),
            &["env: -A=1 +C=3", "image: a -> b", "replicas: 3 -> 5", "user: none -> www"],
        );
        check(
            json!({"labels": {"team": "a"}, "update": {"order": "start-first"}}),
            json!({"labels": {"tier": "b"}, "update": {"order": "stop-first"}}),
            &[
                "labels.team: a -> none",
                "labels.tier: none -> b",
                "update.order: start-first -> stop-first",
            ],
        );
        // The same items in another order are another list.
        check(
            json!({"command": ["a", "b"]}),
            json!({"command": ["b", "a"]}),
            &["command: a, b -> b, a"],
        );
        check(
            json!({"entrypoint": null}),
            json!({"entrypoint": ["/bin/x"]}),
            &["entrypoint: +/bin/x"],
        );
    }

    #[test]
    fn numbers_and_ranges() {
        assert_eq!(range("2..3"), Ok((2, 3)));
        assert_eq!(range("2-3"), Err("\"2-3\" is not of the form A..B, e.g. 2..3".to_owned()));
        assert_eq!(
            range("0..3"),
            Err("\"0\" is not the number of a revision, which is 1 or more".to_owned())
        );
    }
}
