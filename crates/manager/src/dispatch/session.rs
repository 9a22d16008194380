//! One agent's session: hello in, the whole set out, then changes out and
//! reports and beats in until either side goes.
//!
//! Nothing is queued but what was computed already: a session that cannot be
//! written to is woken once and later gets one difference over all it missed.
//! Reading and writing do not wait for each other, so two full pipes cannot
//! hold each other up.
//!
//! A session is good for nothing at a manager that does not know what its
//! leader knows: one without a leader takes none, and one that is behind what
//! the node holds already waits a moment, then sends it on to another.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use warren_model::task::TaskStatus;
use warren_model::{NodeId, TaskId};
use warren_proto::v1;
use warren_proto::v1::agent_message::{Beat, Hello, Kind, Report};
use warren_proto::v1::manager_message::Kind as Told;
use warren_state::change::{Mutation, Transaction};

use crate::api::authorize::Who;
use crate::api::view_at;
use crate::beats::stall::Fresh;
use crate::beats::tell;
use crate::core::Core;
use crate::describe;
use crate::dispatch::assign;
use crate::dispatch::sessions::{Life, Line, Outbox};
use crate::dispatch::status;
use crate::metrics::{Open, count};
use crate::quorum;
use crate::refusal::Refusal;
use crate::relays::book::cuts;

/// Messages on their way to an agent: a few stream requests beside an assignment. More would only
/// be stale by the time they are read.
const OUTBOX_MAX: usize = 8;
/// An agent says hello with its first packet; whoever does not is no agent.
const HELLO_MS: u64 = 5000;
/// A manager that is behind usually catches up within a heartbeat; another one is a second away.
const BEHIND_MS: u64 = 2000;

/// Takes the hello and starts the session's task.
pub(crate) async fn open(
    core: &Arc<Core>,
    who: &Who,
    mut inbound: Streaming<v1::AgentMessage>,
) -> Result<ReceiverStream<Result<v1::ManagerMessage, Status>>, Status> {
    let first = tokio::select! {
        first = inbound.message() => first?,
        () = core.clock.sleep(HELLO_MS) => None,
    };
    let Some(v1::AgentMessage { kind: Some(Kind::Hello(hello)) }) = first else {
        return Err(Refusal::bad_input("a session begins with hello").into());
    };
    let node = warren_proto::node_id("hello.node_id", &hello.node_id).map_err(Refusal::from)?;
    who.must_be(node)?;
    ready_for(core, &hello).await?;
    let life = Life {
        node,
        instance: hello.instance,
        address: who.address.map_or_else(|| "this machine".to_owned(), |a| a.to_string()),
    };
    describe_node(core, node, hello).await?;
    confirm(core, node).await?;
    let (outbox, messages) = mpsc::channel(OUTBOX_MAX);
    let now_ms = core.clock.monotonic_ms();
    if core.sessions.nodes().is_empty() && !*core.store.leader().borrow() {
        core.beats.begin_to_look(now_ms);
    }
    let line = core.sessions.open(life.clone(), outbox.clone(), now_ms);
    let line = line.map_err(|seated| twice(&seated, &life))?;
    core.beats.heard(node, now_ms, 0);
    let seat =
        Seat { core: Arc::clone(core), node, line, _open: Open::new(&core.metrics.sessions) };
    core.tasks.spawn("session", run(seat, inbound, outbox));
    tracing::info!(node_id = %node, "session opened");
    Ok(ReceiverStream::new(messages))
}

async fn run(seat: Seat, inbound: Streaming<v1::AgentMessage>, outbox: Outbox) {
    let (core, node, line) = (&seat.core, seat.node, &seat.line);
    let why = tokio::select! {
        why = read(core, node, line, inbound) => why,
        why = write(core, node, line, &outbox) => why,
        () = line.end.cancelled() => "ended by this manager",
    };
    let (label, last) = match line.why() {
        Some(end) => (end.as_str(), end.status(node)),
        // The agent learns that this is not the end of the managers.
        None => ("node", Status::aborted(why)),
    };
    count(&core.metrics.sessions_ended, "reason", label);
    tracing::info!(node_id = %node, why, reason = label, "session ended");
    // It may be gone already.
    let _ = outbox.try_send(Err(last));
}

fn twice(seated: &Life, newcomer: &Life) -> Refusal {
    let (node, here, there) = (seated.node, &seated.address, &newcomer.address);
    tracing::error!(node_id = %node, %here, %there, "two machines call themselves one node");
    Refusal::taken(format!(
        "node {node} is connected from {here} already, and now calls from {there} as well: \
         two machines have the same identity"
    ))
    .hint("a data folder was copied: remove it on one of them and join that one anew")
}

/// Whether this manager can serve a node that knows what it says it knows.
async fn ready_for(core: &Core, hello: &Hello) -> Result<(), Refusal> {
    if !quorum::in_contact(core) {
        return Err(Refusal::unavailable("this manager has no leader"));
    }
    let epoch = core.store.view().cluster().map_or(0, |cluster| cluster.epoch);
    if hello.epoch > epoch {
        return Err(Refusal::unavailable(format!(
            "this manager is of recovery epoch {epoch}, the node has seen {}",
            hello.epoch
        ))
        .hint("the cluster was restored or recovered: this manager is from before"));
    }
    if hello.epoch == epoch {
        view_at(core, hello.assigned_revision, BEHIND_MS).await?;
    }
    Ok(())
}

/// Makes sure that the leader knows that the node is back, and that this manager knows all that
/// was decided before. A node that was away goes on with what the first assignment says: it must
/// not find there what runs elsewhere by now.
async fn confirm(core: &Core, node: NodeId) -> Result<(), Refusal> {
    let confirmed = async {
        tell::at_once(core, node).await;
        quorum::barrier(core).await
    };
    tokio::select! {
        confirmed = confirmed => confirmed,
        () = core.clock.sleep(BEHIND_MS) => {
            Err(Refusal::unavailable("no leader tells this manager whether it is up to date"))
        }
    }
}

/// Checks that the node is a member, and writes down what it says of itself if that is new.
async fn describe_node(core: &Core, id: NodeId, hello: Hello) -> Result<(), Refusal> {
    let description = describe::parse(hello.description.unwrap_or_default())
        .map_err(|refusal| refusal.within("hello"))?;
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
    Ok(())
}

/// The session's place among the others; given up however the session ends.
struct Seat {
    core: Arc<Core>,
    node: NodeId,
    line: Line,
    _open: Open,
}

impl Drop for Seat {
    fn drop(&mut self) {
        // Tells those who wait for this agent to open a tunnel.
        self.line.end.cancel();
        self.core.sessions.close(self.node, &self.line);
    }
}

async fn read(
    core: &Core,
    node: NodeId,
    line: &Line,
    mut inbound: Streaming<v1::AgentMessage>,
) -> &'static str {
    let opened_ms = core.clock.monotonic_ms();
    let mut fresh = Fresh::new(core.beats.stalled_until(opened_ms), opened_ms);
    loop {
        match inbound.message().await {
            Ok(Some(v1::AgentMessage { kind: Some(Kind::Beat(beat)) })) => {
                let now_ms = core.clock.monotonic_ms();
                if fresh.beat(core.beats.stalled_until(now_ms), now_ms) {
                    answer(core, node, line, beat, now_ms);
                } else {
                    tracing::debug!(node_id = %node, "a beat may have waited: it does not count");
                }
            }
            Ok(Some(v1::AgentMessage { kind: Some(Kind::Report(mut report)) })) => {
                if report.through > 0 {
                    core.sessions.is_through(line, report.through);
                }
                if report.cuts_told {
                    let told = cuts(std::mem::take(&mut report.cuts));
                    line.tell_cuts(told.clone(), core.clock.monotonic_ms());
                    if *core.store.leader().borrow() {
                        core.cuts.tell(node, told);
                    }
                }
                if report.statuses.is_empty() {
                    continue;
                }
                let report = status::Report { node, statuses: statuses(node, report) };
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
                tracing::debug!(node_id = %node, %error, "session broken");
                return "the connection broke";
            }
        }
    }
}

fn answer(core: &Core, node: NodeId, line: &Line, beat: Beat, now_ms: u64) {
    line.pulse.beat(now_ms, beat.rtt_ms);
    core.beats.heard(node, now_ms, beat.rtt_ms);
    core.metrics.beats.inc();
    let kind = Some(Told::Beat(v1::manager_message::Beat { number: beat.number }));
    // Full: the agent does not read, so it would not read this either.
    let _ = line.outbox.try_send(Ok(v1::ManagerMessage { kind }));
}

/// What cannot be understood is left out: the rest of the report is still true.
fn statuses(node: NodeId, report: Report) -> Vec<(TaskId, TaskStatus)> {
    let understand = |status: v1::agent_message::Status| {
        let understood = warren_proto::task_id("task", &status.task).and_then(|task| {
            let status = TaskStatus::try_from(status.status.unwrap_or_default())?;
            Ok((task, status))
        });
        understood
            .inspect_err(|error| tracing::warn!(node_id = %node, %error, "report not understood"))
            .ok()
    };
    report.statuses.into_iter().filter_map(understand).collect()
}

async fn write(core: &Core, node: NodeId, line: &Line, outbox: &Outbox) -> &'static str {
    let mut held = core.store.view();
    // What the agent has, which may be older than what was looked at and found no different.
    let mut applies_to = held.revision();
    let mut next = Some(assign::complete(&held, node));
    loop {
        line.looked(held.revision(), next.as_ref().map(|assignment| assignment.revision));
        if let Some(assignment) = next.take() {
            applies_to = assignment.revision;
            for part in assign::parts(assignment) {
                let kind = Some(Told::Assignment(part));
                if outbox.send(Ok(v1::ManagerMessage { kind })).await.is_err() {
                    return "the node is gone";
                }
            }
        }
        tokio::select! {
            () = line.wake.notified() => {}
            () = outbox.closed() => return "the node is gone",
        }
        let view = core.store.view();
        if view.node(node).is_none() {
            line.end(crate::dispatch::sessions::End::Removed);
            return "the node was removed";
        }
        next = assign::incremental(&held, &view, node, applies_to);
        held = view;
    }
}
