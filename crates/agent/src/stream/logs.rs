//! Log lines of tasks on this node, ended attempts included, merged by time.
//!
//! What is there is merged exactly; what follows is passed on as it comes, with
//! the lines that wait at the same moment put in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;
use tokio_stream::StreamMap;
use tokio_stream::wrappers::ReceiverStream;
use warren_model::TaskId;
use warren_model::service::Hook;
use warren_proto::v1;
use warren_proto::v1::frame::Kind;
use warren_runtime::{LogLine, LogQuery, Stream};

use super::{Code, Failure, Gone, Line, Outcome, find_task};
use crate::effects::chain;
use crate::worker::Tools;

/// Tasks in one stream: as many files are open.
const TASKS_MAX: usize = 1000;
/// Lines put in order at once while following.
const BATCH_MAX: usize = 256;

#[derive(Debug, Clone)]
struct Source {
    task: TaskId,
    service: String,
    slot: u32,
    /// Which hook of its service; 0: it has a slot.
    hook: u32,
}

pub(super) async fn serve(tools: &Arc<Tools>, request: v1::Logs, line: &mut Line) -> Outcome {
    let sources = match sources(tools, &request.tasks).await {
        Ok(sources) => sources,
        Err(failure) => return Outcome::Failed(failure),
    };
    let opened = SystemTime::UNIX_EPOCH + Duration::from_millis(tools.clock.now_ms());
    let query = LogQuery {
        tail: request.tail.map(|lines| usize::try_from(lines).unwrap_or(usize::MAX)),
        since: request.since.map(|ms| UNIX_EPOCH + Duration::from_millis(ms)),
        follow: false,
    };
    let mut last = match history(tools, &sources, &query, line).await {
        Ok(last) => last,
        Err(Gone) => return Outcome::Gone,
    };
    if !request.follow {
        return Outcome::Served;
    }
    let since = |task: &TaskId, last: &mut BTreeMap<TaskId, SystemTime>| match last.remove(task) {
        // Lines carry nanoseconds: the next one is later.
        Some(at) => Some(at + Duration::from_nanos(1)),
        None if query.tail == Some(0) => Some(opened),
        None => query.since,
    };
    let mut lines = StreamMap::new();
    for (at, source) in sources.iter().enumerate() {
        let query = LogQuery { tail: None, since: since(&source.task, &mut last), follow: true };
        if let Some(receiver) = read(tools, source, query).await {
            lines.insert(at, ReceiverStream::new(receiver));
        }
    }
    follow(&sources, lines, line).await
}

async fn sources(tools: &Tools, tasks: &[Vec<u8>]) -> Result<Vec<Source>, Failure> {
    if tasks.len() > TASKS_MAX {
        let message = format!("{} tasks in one stream of logs, at most {TASKS_MAX}", tasks.len());
        return Err(Failure::new(Code::BadInput, message));
    }
    let mut sources = Vec::with_capacity(tasks.len());
    for id in tasks {
        let task = warren_proto::task_id("logs.tasks", id)?;
        // A task that was cleaned up between the question and now has no logs any more.
        if let Ok(view) = find_task(tools, task).await {
            let hook = view.spec.hook().map_or(0, Hook::number);
            sources.push(Source { task, service: view.service_name, slot: view.spec.slot, hook });
        }
    }
    Ok(sources)
}

/// A task that never started has no folder: no lines, no error.
async fn read(tools: &Tools, source: &Source, query: LogQuery) -> Option<mpsc::Receiver<LogLine>> {
    match tools.runtime.logs(tools.log_dir(source.task), query).await {
        Ok(receiver) => Some(receiver),
        Err(error) => {
            tracing::debug!(task_id = %source.task, error = chain(&error), "read logs");
            None
        }
    }
}

/// Sends what is there, oldest first; says when the last line of each task was written.
async fn history(
    tools: &Tools,
    sources: &[Source],
    query: &LogQuery,
    line: &Line,
) -> Result<BTreeMap<TaskId, SystemTime>, Gone> {
    let mut readers = Vec::new();
    // The next line of each reader, by time and reader.
    let mut heads: BTreeMap<(SystemTime, usize), LogLine> = BTreeMap::new();
    for source in sources {
        let Some(mut receiver) = read(tools, source, query.clone()).await else { continue };
        if let Some(head) = receiver.recv().await {
            heads.insert((head.at, readers.len()), head);
            readers.push((source, receiver));
        }
    }
    let mut last = BTreeMap::new();
    while let Some(((at, reader), head)) = heads.pop_first() {
        let (source, receiver) = &mut readers[reader];
        last.insert(source.task, at);
        line.send(frame(source, head)).await?;
        if let Some(next) = receiver.recv().await {
            // Lines of two attempts may overlap by a moment; order within a task stays.
            heads.insert((next.at.max(at), reader), next);
        }
    }
    Ok(last)
}

async fn follow(
    sources: &[Source],
    mut lines: StreamMap<usize, ReceiverStream<LogLine>>,
    line: &mut Line,
) -> Outcome {
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            // Nothing to follow is followed until the reader has enough.
            count = lines.next_many(&mut batch, BATCH_MAX), if !lines.is_empty() => {
                if count == 0 {
                    return Outcome::Served;
                }
            }
            () = line.gone() => return Outcome::Gone,
        }
        batch.sort_by_key(|(_, line)| line.at);
        for (at, found) in batch.drain(..) {
            if line.send(frame(&sources[at], found)).await.is_err() {
                return Outcome::Gone;
            }
        }
    }
}

fn frame(source: &Source, line: LogLine) -> Kind {
    let since = line.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Kind::Log(v1::LogLine {
        task: source.task.as_bytes().to_vec(),
        time_ns: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
        stderr: line.stream == Stream::Stderr,
        line: line.line,
        service: source.service.clone(),
        slot: source.slot,
        hook: source.hook,
    })
}
