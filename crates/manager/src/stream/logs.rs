//! Log lines of a service, a slot or a task, from every node that has some.
//!
//! One tunnel a node, lines in the order in which they come. When following,
//! tasks that appear later get a tunnel of their own as soon as they are
//! placed, so that `logs -f` goes on across an update. What goes wrong on one
//! node is told at the end and does not hide the lines of the others.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::watch;
use tonic::Streaming;
use warren_model::{NodeId, TaskId};
use warren_proto::v1;
use warren_proto::v1::open_stream::Kind;

use crate::core::Core;
use crate::refusal::Refusal;
use crate::stream::pipe::relay;
use crate::stream::route::{group_by_node, request};
use crate::stream::target::{Target, tasks};
use crate::stream::{Frames, Tunnel, node_name};

pub(super) struct Job {
    core: Arc<Core>,
    target: Target,
    /// As the tool asked; each node gets its own list of tasks.
    logs: v1::Logs,
    /// Tasks that have a tunnel.
    known: BTreeSet<TaskId>,
    tunnels: Vec<(NodeId, Tunnel)>,
    /// The first thing that went wrong.
    trouble: Option<Refusal>,
    moved: watch::Receiver<u64>,
}

/// Opens a tunnel to each node that has tasks of the target.
///
/// # Errors
/// When none of them can be opened.
pub(super) async fn start(
    core: &Arc<Core>,
    target: Target,
    logs: v1::Logs,
) -> Result<Job, Refusal> {
    let mut job = Job {
        core: Arc::clone(core),
        target,
        logs,
        known: BTreeSet::new(),
        tunnels: Vec::new(),
        trouble: None,
        // Before the first look: nothing after it is missed.
        moved: core.store.watch(),
    };
    job.open_new(true).await;
    match (job.tunnels.is_empty(), job.trouble.take()) {
        (true, Some(refusal)) => Err(refusal),
        (_, trouble) => {
            job.trouble = trouble;
            Ok(job)
        }
    }
}

impl Job {
    /// Opens tunnels for tasks that have none; later ones are read from their beginning.
    async fn open_new(&mut self, first: bool) {
        let view = self.core.store.view();
        let groups = group_by_node(tasks(&view, self.target), &mut self.known);
        for (node, ids) in groups {
            let mut logs = self.logs.clone();
            logs.tasks = ids.iter().map(|id| id.as_bytes().to_vec()).collect();
            if !first {
                (logs.tail, logs.since) = (None, None);
            }
            let open = request(node, Kind::Logs(logs));
            match self.core.broker.open(&self.core, node, open).await {
                Ok(tunnel) => self.tunnels.push((node, tunnel)),
                Err(refusal) => self.trouble = self.trouble.take().or(Some(refusal)),
            }
        }
    }

    /// Whether more tasks may appear.
    fn goes_on(&self) -> bool {
        let view = self.core.store.view();
        self.logs.follow
            && match self.target {
                Target::Service(id) | Target::Slot(id, _) | Target::Hook(id, _) => {
                    view.service(id).is_some()
                }
                Target::Task(id) => view.task(id).is_some_and(|task| task.node.is_none()),
            }
    }

    pub(super) async fn run(mut self, from_tool: Streaming<v1::Frame>, to_tool: Frames) {
        // Nothing more is to come from the tool; kept so that its half stays open.
        let _from_tool = from_tool;
        let mut relays: FuturesUnordered<BoxFuture<'static, Option<Refusal>>> =
            FuturesUnordered::new();
        loop {
            for (node, tunnel) in self.tunnels.drain(..) {
                let name = node_name(&self.core, node);
                relays.push(Box::pin(read(tunnel, to_tool.clone(), name)));
            }
            let goes_on = self.goes_on();
            if relays.is_empty() && !goes_on {
                break;
            }
            tokio::select! {
                ended = relays.next(), if !relays.is_empty() => {
                    self.trouble = self.trouble.take().or_else(|| ended.flatten());
                }
                changed = self.moved.changed(), if goes_on => {
                    if changed.is_err() {
                        break;
                    }
                    self.open_new(false).await;
                }
                () = to_tool.closed() => return,
            }
        }
        if let Some(trouble) = self.trouble.take() {
            // The tool may be gone, which is as good an end.
            let _ = to_tool.send(Ok(trouble.into_frame())).await;
        }
    }
}

async fn read(mut tunnel: Tunnel, to_tool: Frames, node: String) -> Option<Refusal> {
    relay(&mut tunnel.from_node, &to_tool, &node).await
}
