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
use warren_model::service::{CompanionName, Hook};
use warren_proto::v1;
use warren_proto::v1::frame::Kind;
use warren_runtime::{LogLine, LogQuery, Stream};

use super::{Code, Failure, Gone, Line, Outcome, find_task};
use crate::core::TaskView;
use crate::effects::chain;
use crate::worker::Tools;

/// Tasks in one stream: as many files are open.
const TASKS_MAX: usize = 1000;
/// Lines put in order at once while following.
const BATCH_MAX: usize = 256;

#[derive(Debug, Clone)]
struct Source {
    task: TaskId,
    /// An init container or a sidecar; none: the task's own.
    container: Option<CompanionName>,
    service: String,
    slot: u32,
    /// Which hook of its service; 0: it has a slot.
    hook: u32,
}

pub(super) async fn serve(tools: &Arc<Tools>, request: v1::Logs, line: &mut Line) -> Outcome {
    let sources = match sources(tools, &request.tasks, &request.container).await {
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
    let since = |at: usize, last: &mut BTreeMap<usize, SystemTime>| match last.remove(&at) {
        // Lines carry nanoseconds: the next one is later.
        Some(at) => Some(at + Duration::from_nanos(1)),
        None if query.tail == Some(0) => Some(opened),
        None => query.since,
    };
    let mut lines = StreamMap::new();
    for (at, source) in sources.iter().enumerate() {
        let query = LogQuery { tail: None, since: since(at, &mut last), follow: true };
        if let Some(receiver) = read(tools, source, query).await {
            lines.insert(at, ReceiverStream::new(receiver));
        }
    }
    follow(&sources, lines, line).await
}

async fn sources(
    tools: &Tools,
    tasks: &[Vec<u8>],
    container: &str,
) -> Result<Vec<Source>, Failure> {
    if tasks.len() > TASKS_MAX {
        let message = format!("{} tasks in one stream of logs, at most {TASKS_MAX}", tasks.len());
        return Err(Failure::new(Code::BadInput, message));
    }
    let mut sources = Vec::with_capacity(tasks.len());
    for id in tasks {
        let task = warren_proto::task_id("logs.tasks", id)?;
        // A task that was cleaned up between the question and now has no logs any more.
        if let Ok(view) = find_task(tools, task).await {
            sources.extend(of_task(&view, container));
        }
    }
    if sources.is_empty() && !tasks.is_empty() && !container.is_empty() {
        let text = format!("no task on this node has a container {container:?}");
        return Err(Failure::new(Code::NotFound, text)
            .hint("warren task inspect shows the containers of a task"));
    }
    Ok(sources)
}

/// Its own container and those beside it, or the one that is named.
fn of_task(view: &TaskView, wanted: &str) -> Vec<Source> {
    let companions = view.spec.template.companions.iter();
    let names = companions.map(|companion| Some(companion.name.clone()));
    let meant = |name: &Option<CompanionName>| {
        let name = name.as_ref().map_or(CompanionName::MAIN, CompanionName::as_str);
        wanted.is_empty() || wanted == name
    };
    let source = |container| Source {
        task: view.spec.id,
        container,
        service: view.service_name.clone(),
        slot: view.spec.slot,
        hook: view.spec.hook().map_or(0, Hook::number),
    };
    std::iter::once(None).chain(names).filter(meant).map(source).collect()
}

/// A task that never started has no folder: no lines, no error.
async fn read(tools: &Tools, source: &Source, query: LogQuery) -> Option<mpsc::Receiver<LogLine>> {
    let dir = match &source.container {
        None => tools.log_dir(source.task),
        Some(name) => tools.companion_log_dir(source.task, name.as_str()),
    };
    match tools.runtime.logs(dir, query).await {
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
) -> Result<BTreeMap<usize, SystemTime>, Gone> {
    let mut readers = Vec::new();
    // The next line of each reader, by time and reader.
    let mut heads: BTreeMap<(SystemTime, usize), LogLine> = BTreeMap::new();
    for (place, source) in sources.iter().enumerate() {
        let Some(mut receiver) = read(tools, source, query.clone()).await else { continue };
        if let Some(head) = receiver.recv().await {
            heads.insert((head.at, readers.len()), head);
            readers.push((place, receiver));
        }
    }
    let mut last = BTreeMap::new();
    while let Some(((at, reader), head)) = heads.pop_first() {
        let (place, receiver) = &mut readers[reader];
        last.insert(*place, at);
        line.send(frame(&sources[*place], head)).await?;
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
        container: source.container.as_ref().map(ToString::to_string).unwrap_or_default(),
        hook: source.hook,
    })
}
