//! `warren stats` and `warren top`: what containers use, and their processes.
//!
//! Nodes are asked once for each picture, and only while somebody looks. They say counters; rates
//! are the difference of two pictures.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use warren_model::Time;
use warren_model::service::Hook;
use warren_proto::v1;
use warren_proto::v1::{frame, open_stream};

use super::context::{Context, now};
use super::failure::Failure;
use super::interrupt::Interrupt;
use super::listing::{ListFlags, Record, View, size};

use super::printer::table;
use super::rows::service_id;
use super::template::Format;

/// Between two pictures.
const INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// Print one picture, and end
    #[arg(long)]
    no_stream: bool,
    #[command(flatten)]
    list: ListFlags,
    /// Services, SERVICE.SLOT or task ids; none: all
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
}

/// Rates are null until there were two pictures; what the node does not count is null, too.
#[derive(Debug, Serialize)]
pub(crate) struct StatsRow {
    name: String,
    id: String,
    node: String,
    /// Of an init container or a sidecar.
    container: Option<String>,
    /// Of one processor.
    cpu_percent: Option<f64>,
    cpu_seconds: f64,
    /// Of the time between two pictures, or of all periods so far.
    throttled_percent: Option<f64>,
    throttled_seconds: f64,
    memory_bytes: u64,
    memory_limit_bytes: Option<u64>,
    memory_percent: Option<f64>,
    cache_bytes: u64,
    io_read_bytes: Option<u64>,
    io_written_bytes: Option<u64>,
    pids: u32,
    pids_limit: Option<u32>,
    net_received_bytes: Option<u64>,
    net_sent_bytes: Option<u64>,
    /// Part of the last ten seconds in which something of it waited.
    cpu_pressure_percent: Option<f64>,
    memory_pressure_percent: Option<f64>,
    io_pressure_percent: Option<f64>,
    paused: bool,
}

type Picture = BTreeMap<(Vec<u8>, String), v1::UsageRow>;

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn part(of: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| rounded(of as f64 * 100.0 / whole as f64))
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn seconds(ns: u64) -> f64 {
    rounded(ns as f64 / 1e9)
}

impl StatsRow {
    fn new(row: &v1::UsageRow, before: Option<&v1::UsageRow>) -> Self {
        // A container that began anew counts anew.
        let before = before.filter(|b| b.cpu_ns <= row.cpu_ns && b.at_ns < row.at_ns);
        let hundredths = |value: Option<u32>| value.map(|value| f64::from(value) / 100.0);
        let slot = match Hook::from_number(row.hook) {
            Some(hook) => hook.as_str().to_owned(),
            None => row.slot.to_string(),
        };
        let throttled = match before {
            Some(b) => (
                row.throttled_periods - b.throttled_periods.min(row.throttled_periods),
                row.periods - b.periods.min(row.periods),
            ),
            None => (row.throttled_periods, row.periods),
        };
        let container = Some(row.container.clone()).filter(|name| !name.is_empty());
        let beside = container.as_ref().map(|name| format!("/{name}")).unwrap_or_default();
        let limit = Some(row.memory_limit).filter(|limit| *limit > 0);
        Self {
            name: format!("{}.{slot}{beside}", row.service),
            id: service_id(&row.task),
            node: row.node.clone(),
            container,
            cpu_percent: before.and_then(|b| part(row.cpu_ns - b.cpu_ns, row.at_ns - b.at_ns)),
            cpu_seconds: seconds(row.cpu_ns),
            throttled_percent: part(throttled.0, throttled.1),
            throttled_seconds: seconds(row.throttled_ns),
            memory_bytes: row.memory_bytes,
            memory_limit_bytes: limit,
            memory_percent: limit.and_then(|limit| part(row.memory_bytes, limit)),
            cache_bytes: row.cache_bytes,
            io_read_bytes: row.read_bytes,
            io_written_bytes: row.written_bytes,
            pids: row.pids,
            pids_limit: Some(row.pids_limit).filter(|limit| *limit > 0),
            net_received_bytes: row.received_bytes,
            net_sent_bytes: row.sent_bytes,
            cpu_pressure_percent: hundredths(row.cpu_pressure),
            memory_pressure_percent: hundredths(row.memory_pressure),
            io_pressure_percent: hundredths(row.io_pressure),
            paused: row.paused,
        }
    }
}

impl Record for StatsRow {
    const COLUMNS: &'static [&'static str] = &[
        "NAME",
        "NODE",
        "CPU %",
        "THROTTLED",
        "MEMORY",
        "MEM %",
        "READ/WRITTEN",
        "PIDS",
        "NET IN/OUT",
        "PRESSURE",
    ];
    const KEYS: &'static [&'static str] = &[
        "name",
        "id",
        "node",
        "container",
        "cpu_percent",
        "cpu_seconds",
        "throttled_percent",
        "throttled_seconds",
        "memory_bytes",
        "memory_limit_bytes",
        "memory_percent",
        "cache_bytes",
        "io_read_bytes",
        "io_written_bytes",
        "pids",
        "pids_limit",
        "net_received_bytes",
        "net_sent_bytes",
        "cpu_pressure_percent",
        "memory_pressure_percent",
        "io_pressure_percent",
        "paused",
    ];

    fn cells(&self, _: View) -> Vec<String> {
        let percent =
            |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.2}%"));
        let both = |one: Option<u64>, two: Option<u64>| match (one, two) {
            (Some(one), Some(two)) => format!("{} / {}", size(one), size(two)),
            _ => "-".to_owned(),
        };
        let memory = match self.memory_limit_bytes {
            Some(limit) => format!("{} / {}", size(self.memory_bytes), size(limit)),
            None => size(self.memory_bytes),
        };
        let pids = match self.pids_limit {
            Some(limit) => format!("{} / {limit}", self.pids),
            None => self.pids.to_string(),
        };
        let pressure =
            [self.cpu_pressure_percent, self.memory_pressure_percent, self.io_pressure_percent];
        let pressure = match pressure {
            [Some(cpu), Some(memory), Some(io)] => format!("{cpu:.0}/{memory:.0}/{io:.0}%"),
            _ => "-".to_owned(),
        };
        let paused = if self.paused { " (paused)" } else { "" };
        vec![
            format!("{}{paused}", self.name),
            self.node.clone(),
            percent(self.cpu_percent),
            percent(self.throttled_percent),
            memory,
            percent(self.memory_percent),
            both(self.io_read_bytes, self.io_written_bytes),
            pids,
            both(self.net_received_bytes, self.net_sent_bytes),
            pressure,
        ]
    }

    fn key(&self) -> &str {
        &self.id
    }
}

pub(crate) async fn stats(context: &mut Context<'_>, args: StatsArgs) -> Result<(), Failure> {
    let mut interrupt = Interrupt::new();
    let mut before = picture(context, &args.targets).await?;
    let is_table = matches!(args.list.format(), Format::Table);
    loop {
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            // Looking has no other end: stopping it is no error.
            () = interrupt.pressed() => return Ok(()),
        }
        let after = picture(context, &args.targets).await?;
        let rows: Vec<StatsRow> =
            after.iter().map(|(key, row)| StatsRow::new(row, before.get(key))).collect();
        let mut rows = rows;
        rows.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        if !args.no_stream && is_table && super::terminal::stdout_is_terminal() {
            // Home, and nothing below what is shown now.
            context.printer.raw(b"\x1b[H\x1b[J")?;
        }
        context.printer.list(&rows, &args.list, View::at(now()))?;
        if args.no_stream {
            return Ok(());
        }
        before = after;
    }
}

/// What all that are meant use, now. Nodes that cannot be asked are told of.
async fn picture(context: &mut Context<'_>, targets: &[String]) -> Result<Picture, Failure> {
    let request = v1::Usage { targets: targets.to_vec(), tasks: Vec::new() };
    let mut frames = context.client.open(open_stream::Kind::Usage(request)).await?;
    let mut all = Picture::new();
    while let Some(message) = frames.from.message().await? {
        match message.kind {
            Some(frame::Kind::Usage(rows)) => {
                all.extend(
                    rows.rows.into_iter().map(|r| ((r.task.clone(), r.container.clone()), r)),
                );
            }
            Some(frame::Kind::Error(error)) if all.is_empty() => return Err(error.into()),
            Some(frame::Kind::Error(error)) => context.printer.warning(error.message),
            _ => {}
        }
    }
    Ok(all)
}

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// table, json, yaml or a template
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// An init container or a sidecar of the task, instead of its own
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    container: String,
    /// Task id, SERVICE.SLOT, or SERVICE for any of its running tasks
    #[arg(value_name = "TARGET")]
    target: String,
}

#[derive(Debug, Serialize)]
struct ProcessRow {
    /// As the node numbers them.
    pid: u32,
    parent_pid: u32,
    /// Within the container.
    inner_pid: u32,
    uid: u32,
    state: String,
    threads: u32,
    resident_bytes: u64,
    cpu_seconds: f64,
    started_at: String,
    command: String,
    #[serde(skip)]
    started_ms: u64,
}

pub(crate) async fn top(context: &mut Context<'_>, args: TopArgs) -> Result<(), Failure> {
    let request = v1::Top { target: args.target, container: args.container, task: Vec::new() };
    let mut frames = context.client.open(open_stream::Kind::Top(request)).await?;
    let mut rows = Vec::new();
    while let Some(message) = frames.from.message().await? {
        match message.kind {
            Some(frame::Kind::Processes(all)) => {
                rows.extend(all.processes.into_iter().map(ProcessRow::from));
            }
            Some(frame::Kind::Error(error)) => return Err(error.into()),
            _ => {}
        }
    }
    if args.format != Format::Table {
        let objects: Vec<_> =
            rows.iter().map(|row| serde_json::to_value(row).unwrap_or_default()).collect();
        return context.printer.inspected(objects, &args.format);
    }
    let view = View::at(now());
    let titles = ["UID", "PID", "PPID", "IN", "S", "RSS", "TIME", "STARTED", "COMMAND"];
    let cells: Vec<Vec<String>> = rows.iter().map(|row| row.cells(view)).collect();
    context.printer.raw(table(&titles, &cells).as_bytes())
}

impl From<v1::Process> for ProcessRow {
    fn from(process: v1::Process) -> Self {
        Self {
            pid: process.pid,
            parent_pid: process.parent,
            inner_pid: process.inner,
            uid: process.uid,
            state: process.state,
            threads: process.threads,
            resident_bytes: process.resident_bytes,
            cpu_seconds: seconds(process.cpu_ms.saturating_mul(1_000_000)),
            started_at: Time(process.started).to_string(),
            command: process.command,
            started_ms: process.started,
        }
    }
}

impl ProcessRow {
    fn cells(&self, view: View) -> Vec<String> {
        vec![
            self.uid.to_string(),
            self.pid.to_string(),
            self.parent_pid.to_string(),
            self.inner_pid.to_string(),
            self.state.clone(),
            size(self.resident_bytes),
            format!("{:.2}s", self.cpu_seconds),
            view.ago(Time(self.started_ms)),
            self.command.clone(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(at_s: u64, cpu_ms: u64) -> v1::UsageRow {
        v1::UsageRow {
            service: "web".into(),
            slot: 1,
            node: "a".into(),
            at_ns: at_s * 1_000_000_000,
            cpu_ns: cpu_ms * 1_000_000,
            periods: at_s * 10,
            throttled_periods: at_s,
            memory_bytes: 50_000_000,
            memory_limit: 200_000_000,
            pids: 3,
            read_bytes: Some(1000),
            written_bytes: Some(0),
            ..v1::UsageRow::default()
        }
    }

    #[track_caller]
    fn check(before: Option<v1::UsageRow>, after: &v1::UsageRow, expected: &str) {
        let row = StatsRow::new(after, before.as_ref());
        assert_eq!(row.cells(View::at(Time(0))).join(" | "), expected);
    }

    #[test]
    fn rates() {
        let rest = "50.0MB / 200MB | 25.00% | 1.0kB / 0B | 3 | - | -";
        check(Some(row(1, 100)), &row(2, 850), &format!("web.1 | a | 75.00% | 10.00% | {rest}"));
        check(Some(row(1, 100)), &row(3, 100), &format!("web.1 | a | 0.00% | 10.00% | {rest}"));
        // Nothing to compare with, or one that began anew.
        for before in [None, Some(row(1, 900)), Some(row(2, 1))] {
            check(before, &row(2, 850), &format!("web.1 | a | - | 10.00% | {rest}"));
        }
        let mut sidecar = row(2, 0);
        sidecar.container = "proxy".into();
        sidecar.paused = true;
        (sidecar.cpu_pressure, sidecar.memory_pressure, sidecar.io_pressure) =
            (Some(1250), Some(0), Some(100));
        (sidecar.memory_limit, sidecar.pids_limit, sidecar.periods) = (0, 9, 0);
        check(
            Some(row(1, 0)),
            &sidecar,
            "web.1/proxy (paused) | a | 0.00% | - | 50.0MB | - | 1.0kB / 0B | 3 / 9 | - | 12/0/1%",
        );
    }
}
