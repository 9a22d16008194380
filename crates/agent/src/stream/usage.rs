//! What tasks of this node use, and the processes of one: read when somebody asks, at no other time.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use warren_model::service::Hook;
use warren_proto::v1;
use warren_proto::v1::frame::Kind;
use warren_runtime::{Process, Usage};

use super::control::named_containers;
use super::{Code, Failure, Line, Outcome, exec, find_task};
use crate::core::TaskView;
use crate::effects::chain;
use crate::worker::Tools;

/// Tasks that one stream asks about.
const TASKS_MAX: usize = 10_000;
/// Rows of one frame.
const ROWS_MAX: usize = 100;

/// One row for each container that runs, then the end.
pub(super) async fn usage(tools: &Arc<Tools>, asked: &v1::Usage, line: &Line) -> Outcome {
    if asked.tasks.len() > TASKS_MAX {
        let text = format!("{} tasks in one question, at most {TASKS_MAX}", asked.tasks.len());
        return Outcome::Failed(Failure::new(Code::BadInput, text));
    }
    let mut rows = Vec::new();
    for bytes in &asked.tasks {
        let id = match warren_proto::task_id("usage.tasks", bytes) {
            Ok(id) => id,
            Err(error) => return Outcome::Failed(error.into()),
        };
        // It may have gone between the question and now.
        let Ok(task) = find_task(tools, id).await else { continue };
        for (name, container) in named_containers(&task) {
            match tools.runtime.usage(&container).await {
                Ok(usage) => rows.push(row(tools, &task, name, usage)),
                Err(error) => tracing::debug!(container, error = chain(&error), "read usage"),
            }
        }
        if rows.len() >= ROWS_MAX && line.send(frame(&mut rows)).await.is_err() {
            return Outcome::Gone;
        }
    }
    line.send(frame(&mut rows)).await.map_or(Outcome::Gone, |()| Outcome::Served)
}

fn frame(rows: &mut Vec<v1::UsageRow>) -> Kind {
    Kind::Usage(v1::UsageRows { rows: std::mem::take(rows) })
}

fn row(tools: &Tools, task: &TaskView, container: String, usage: Usage) -> v1::UsageRow {
    let (taken, given) = usage.io.map(|io| (io.taken, io.given)).unzip();
    let (received, sent) = usage.network.map(|io| (io.taken, io.given)).unzip();
    let pressure = usage.pressure;
    v1::UsageRow {
        task: task.spec.id.as_bytes().to_vec(),
        service: task.service_name.clone(),
        slot: task.spec.slot,
        container,
        node: tools.hostname.clone(),
        at_ns: usage.at_ns,
        cpu_ns: usage.cpu_ns,
        periods: usage.periods,
        throttled_periods: usage.throttled_periods,
        throttled_ns: usage.throttled_ns,
        memory_bytes: usage.memory_bytes,
        memory_limit: usage.memory_limit.unwrap_or(0),
        cache_bytes: usage.cache_bytes,
        read_bytes: taken,
        written_bytes: given,
        pids: usage.pids,
        pids_limit: usage.pids_limit.unwrap_or(0),
        received_bytes: received,
        sent_bytes: sent,
        cpu_pressure: pressure.map(|pressure| pressure.cpu),
        memory_pressure: pressure.map(|pressure| pressure.memory),
        io_pressure: pressure.map(|pressure| pressure.io),
        paused: usage.paused,
        hook: task.spec.hook().map_or(0, Hook::number),
        run: 0,
    }
}

/// The processes of one container.
pub(super) async fn top(tools: &Arc<Tools>, asked: &v1::Top, line: &Line) -> Outcome {
    match processes(tools, asked).await {
        Ok(all) => {
            let processes = all.into_iter().map(wire).collect();
            let answer = Kind::Processes(v1::Processes { processes });
            line.send(answer).await.map_or(Outcome::Gone, |()| Outcome::Served)
        }
        Err(failure) => Outcome::Failed(failure),
    }
}

async fn processes(tools: &Tools, asked: &v1::Top) -> Result<Vec<Process>, Failure> {
    let task = find_task(tools, warren_proto::task_id("top.task", &asked.task)?).await?;
    let id = exec::container(&task, &asked.container)?;
    Ok(tools.runtime.processes(&id).await?)
}

fn wire(process: Process) -> v1::Process {
    let since = process.started.duration_since(UNIX_EPOCH).unwrap_or_default();
    v1::Process {
        pid: process.pid,
        parent: process.parent,
        inner: process.inner,
        uid: process.uid,
        state: process.state.to_string(),
        resident_bytes: process.resident_bytes,
        cpu_ms: process.cpu_ms,
        started: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        threads: process.threads,
        command: process.command,
    }
}
