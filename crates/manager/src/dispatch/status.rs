//! The one writer of reports: takes them from all sessions, writes them in batches.
//!
//! Reports that say nothing new are dropped before they cost a write: an agent
//! that reconnects repeats everything it knows, and an idle cluster writes nothing.

use std::sync::Arc;

use tokio::sync::mpsc;
use warren_model::task::TaskStatus;
use warren_model::{NodeId, TaskId};
use warren_state::State;
use warren_state::change::{Mutation, Transaction};

use crate::core::Core;
use crate::dispatch::batch::Batch;

/// Messages waiting for the writer; sessions wait when it is full. A few for each of a hundred
/// nodes that all start containers at once.
pub(crate) const INBOX_MAX: usize = 256;
/// Pause after a write that was not taken: an election takes some hundred ms.
const RETRY_MS: u64 = 100;

/// What a node saw of its tasks.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) node: NodeId,
    pub(crate) statuses: Vec<(TaskId, TaskStatus)>,
}

/// Runs until all sessions and the manager are gone.
pub(crate) async fn run(core: Arc<Core>, mut inbox: mpsc::Receiver<Report>) {
    let mut batch = Batch::default();
    loop {
        let due = batch.due_at_ms();
        tokio::select! {
            report = inbox.recv() => match report {
                None => return,
                Some(report) => put(&core, &mut batch, report),
            },
            () = core.sleep_until(due) => {
                while let Ok(report) = inbox.try_recv() {
                    put(&core, &mut batch, report);
                }
                write(&core, &mut batch).await;
            }
        }
    }
}

fn put(core: &Core, batch: &mut Batch, report: Report) {
    core.metrics.reports.inc_by(report.statuses.len() as u64);
    for (task, status) in report.statuses {
        batch.put(report.node, task, status);
    }
}

async fn write(core: &Core, batch: &mut Batch) {
    let view = core.store.view();
    let mut mutations = batch.take(core.clock.monotonic_ms());
    mutations.retain(|mutation| is_news(&view, mutation));
    if mutations.is_empty() {
        return;
    }
    let transaction = Transaction { mutations: mutations.clone(), ..Transaction::default() };
    if let Err(error) = core.store.propose(transaction).await {
        tracing::warn!(%error, reports = mutations.len(), "write reports");
        let now_ms = core.clock.monotonic_ms();
        // Who begins a session repeats all it knows, here or with another manager. What it said in
        // one that has ended must not be written over that.
        mutations.retain(|mutation| match mutation {
            Mutation::ReportTask { node, .. } => core.sessions.line(*node).is_some(),
            _ => true,
        });
        batch.put_back(mutations, now_ms + RETRY_MS);
    }
}

/// Whether the state would change: the task is known, placed on that node, and seen differently.
fn is_news(view: &State, mutation: &Mutation) -> bool {
    match mutation {
        Mutation::ReportTask { id, node, status } => {
            view.task(*id).is_some_and(|task| task.node == Some(*node) && task.status != *status)
        }
        _ => true,
    }
}
