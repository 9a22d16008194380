//! One agent's session: hello in, the whole set out, then changes out and
//! reports in until either side goes.
//!
//! Nothing is queued but what was computed already: a session that cannot be
//! written to is woken once and later gets one difference over all it missed.
//! Reading and writing do not wait for each other, so two full pipes cannot
//! hold each other up.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use warren_model::node::Description;
use warren_model::task::TaskStatus;
use warren_model::{NodeId, TaskId};
use warren_proto::v1;
use warren_proto::v1::agent_message::{Hello, Kind, Report};
use warren_state::change::{Mutation, Transaction};

use crate::core::Core;
use crate::dispatch::assign;
use crate::dispatch::sessions::{Line, Outbox};
use crate::dispatch::status;
use crate::refusal::Refusal;

/// Messages on their way to an agent: a few stream requests beside an assignment. More would only
/// be stale by the time they are read.
const OUTBOX_MAX: usize = 8;
/// An agent says hello with its first packet; whoever does not is no agent.
const HELLO_MS: u64 = 5000;

/// Takes the hello and starts the session's task.
pub(crate) async fn open(
    core: &Arc<Core>,
    mut inbound: Streaming<v1::AgentMessage>,
) -> Result<ReceiverStream<Result<v1::ManagerMessage, Status>>, Status> {
    let first = tokio::select! {
        first = inbound.message() => first?,
        () = core.clock.sleep(HELLO_MS) => None,
    };
    let Some(v1::AgentMessage { kind: Some(Kind::Hello(hello)) }) = first else {
        return Err(Refusal::bad_input("a session begins with hello").into());
    };
    let node = describe(core, hello).await?;
    let (outbox, messages) = mpsc::channel(OUTBOX_MAX);
    let line = core.sessions.open(node, outbox.clone());
    core.beats.connected(node);
    let seat = Seat { core: Arc::clone(core), node, line: line.clone() };
    core.tasks.spawn("session", async move {
        let core = &seat.core;
        let why = tokio::select! {
            why = read(core, node, inbound) => why,
            why = write(core, node, &line, &outbox) => why,
            () = line.end.cancelled() => "the node opened another session",
        };
        tracing::info!(%node, why, "session ended");
        // The agent learns that this is not the end of the managers; it may be gone already.
        let _ = outbox.try_send(Err(Status::aborted(why)));
    });
    tracing::info!(%node, "session opened");
    Ok(ReceiverStream::new(messages))
}

/// Checks that the node is a member, and writes down what it says of itself if that is new.
async fn describe(core: &Core, hello: Hello) -> Result<NodeId, Refusal> {
    let id = warren_proto::node_id("hello.node_id", &hello.node_id)?;
    let description = hello.description.unwrap_or_default();
    let description =
        Description::try_from(description).map_err(|e| e.within("hello.description"))?;
    let view = core.store.view();
    let Some(node) = view.node(id) else {
        return Err(Refusal::not_found(format!("node {id} is not a member of this cluster")));
    };
    if node.description != description {
        let mutations = vec![Mutation::DescribeNode { id, description }];
        let transaction = Transaction { mutations, ..Transaction::default() };
        let outcome = core.store.propose(transaction).await;
        outcome.map_err(|error| Refusal::of_propose(&view, error))?;
    }
    Ok(id)
}

/// The session's place among the others; given up however the session ends.
struct Seat {
    core: Arc<Core>,
    node: NodeId,
    line: Line,
}

impl Drop for Seat {
    fn drop(&mut self) {
        // Tells those who wait for this agent to open a tunnel.
        self.line.end.cancel();
        if self.core.sessions.close(self.node, &self.line) {
            self.core.beats.disconnected(self.node, self.core.now());
        }
    }
}

async fn read(core: &Core, node: NodeId, mut inbound: Streaming<v1::AgentMessage>) -> &'static str {
    loop {
        match inbound.message().await {
            Ok(Some(v1::AgentMessage { kind: Some(Kind::Report(report)) })) => {
                let report = status::Report { node, statuses: statuses(report) };
                // Waits when the store is behind: the agent is slowed down, not forgotten.
                if core.reports.send(report).await.is_err() {
                    return "this manager stops";
                }
            }
            Ok(Some(v1::AgentMessage { kind: Some(Kind::Hello(_)) })) => {
                return "the node said hello twice";
            }
            // A kind that this version does not know: from a newer agent.
            Ok(Some(v1::AgentMessage { kind: None })) => {}
            Ok(None) => return "the node closed it",
            Err(error) => {
                tracing::debug!(%node, %error, "session broken");
                return "the connection broke";
            }
        }
    }
}

/// What cannot be understood is left out: the rest of the report is still true.
fn statuses(report: Report) -> Vec<(TaskId, TaskStatus)> {
    let understand = |status: v1::agent_message::Status| {
        let understood = warren_proto::task_id("task", &status.task).and_then(|task| {
            let status = TaskStatus::try_from(status.status.unwrap_or_default())?;
            Ok((task, status))
        });
        understood.inspect_err(|error| tracing::warn!(%error, "report not understood")).ok()
    };
    report.statuses.into_iter().filter_map(understand).collect()
}

async fn write(core: &Core, node: NodeId, line: &Line, outbox: &Outbox) -> &'static str {
    let mut held = core.store.view();
    // What the agent has, which may be older than what was looked at and found no different.
    let mut applies_to = held.revision();
    let mut next = Some(assign::complete(&held, node));
    loop {
        if let Some(assignment) = next.take() {
            applies_to = assignment.revision;
            let kind = Some(v1::manager_message::Kind::Assignment(assignment));
            if outbox.send(Ok(v1::ManagerMessage { kind })).await.is_err() {
                return "the node is gone";
            }
        }
        tokio::select! {
            () = line.wake.notified() => {}
            () = outbox.closed() => return "the node is gone",
        }
        let view = core.store.view();
        next = assign::incremental(&held, &view, node, applies_to);
        held = view;
    }
}
