//! A node leaves for good: drained, demoted, forgotten.
//!
//! A manager is seen off by another one: it cannot be out of the group and
//! write down that it is. So whoever is asked about its own node passes the
//! call on, as that node, and stops its daemon once it is done. What waits here
//! ends with the caller; what was decided (drained, demoted) stays.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use warren_model::NodeId;
use warren_model::node::{Availability, Node};
use warren_proto::v1;
use warren_proto::v1::control_client::ControlClient;
use warren_state::change::{Mutation, Transaction};

use crate::api::authorize::Who;
use crate::api::nodes::{check_leaving, removal, wait_out};
use crate::api::propose;
use crate::core::Core;
use crate::peers;
use crate::quorum;
use crate::refusal::Refusal;

/// Lines on their way to the reader; a slow one holds up nobody but itself.
const QUEUE_MAX: usize = 8;

type Lines = mpsc::Sender<Result<v1::LeaveProgress, Status>>;

pub(super) async fn open(
    core: &Arc<Core>,
    who: Who,
    wire: v1::LeaveClusterRequest,
) -> Result<ReceiverStream<Result<v1::LeaveProgress, Status>>, Refusal> {
    let id = who.node.unwrap_or(core.node_id);
    let view = core.store.view();
    let node = view
        .node(id)
        .ok_or_else(|| Refusal::not_found(format!("node {id} is no member any more")))?;
    if node.manager {
        check_leaving(core, node).await?;
    }
    let (out, lines) = mpsc::channel(QUEUE_MAX);
    let task_core = Arc::clone(core);
    core.tasks.spawn("leave", async move {
        let core = &task_core;
        let outcome = if id == core.node_id {
            pass_on(core, wire, &out).await
        } else {
            see_off(core, &who, id, wire.force, &out).await
        };
        let last = outcome.map(|()| v1::LeaveProgress { message: "left".to_owned(), done: true });
        let done = last.is_ok();
        // The reader may be gone; what was done stays done.
        let _ = out.send(last.map_err(Status::from)).await;
        if done && id == core.node_id {
            (core.stop_node)(true);
        }
    });
    Ok(ReceiverStream::new(lines))
}

async fn say(out: &Lines, message: String) -> Result<(), Refusal> {
    let line = v1::LeaveProgress { message, done: false };
    out.send(Ok(line)).await.map_err(|_| Refusal::failed("the caller went away"))
}

/// Asks another manager to see this node off.
async fn pass_on(core: &Core, wire: v1::LeaveClusterRequest, out: &Lines) -> Result<(), Refusal> {
    let mut trouble = Refusal::not_now("this is the only manager: nobody could go on without it")
        .hint("to end the cluster, stop the node and remove its data folder");
    for (number, address) in quorum::others(core) {
        let channel = match peers::channel(core, number, &address).await {
            Ok(channel) => channel,
            Err(refusal) => {
                trouble = refusal;
                continue;
            }
        };
        let answer = ControlClient::new(channel).leave_cluster(wire).await;
        let mut lines = match answer {
            Ok(lines) => lines.into_inner(),
            Err(status) if status.code() == tonic::Code::Unavailable => {
                trouble = Refusal::of_status(&status);
                continue;
            }
            Err(status) => return Err(Refusal::of_status(&status)),
        };
        loop {
            let line = lines.message().await.map_err(|status| Refusal::of_status(&status))?;
            match line {
                Some(line) if line.done => return Ok(()),
                Some(line) => say(out, line.message).await?,
                None => return Err(Refusal::unavailable(format!("manager {address} went away"))),
            }
        }
    }
    Err(trouble)
}

async fn see_off(
    core: &Core,
    who: &Who,
    id: NodeId,
    force: bool,
    out: &Lines,
) -> Result<(), Refusal> {
    let find = || core.store.view().node(id).cloned();
    let write = |mutation| {
        let mutations = vec![mutation];
        let transaction =
            Transaction { principal: who.audit(), mutations, ..Transaction::default() };
        propose(core, transaction)
    };
    // Gone at any moment: somebody else removed it, which is what is wanted.
    let Some(node) = find() else { return Ok(()) };
    if node.availability != Availability::Drain {
        let availability = Availability::Drain;
        write(Mutation::SetAvailability { id, availability, deadline_ms: None }).await?;
    }
    if !force {
        drain(core, id, out).await?;
    }
    let Some(node) = find() else { return Ok(()) };
    if node.manager {
        say(out, "leaving the managers".to_owned()).await?;
        check_leaving(core, &node).await?;
        write(Mutation::SetRole { id, manager: false, worker: true }).await?;
    }
    let Some(node) = find() else { return Ok(()) };
    wait_out(core, &node).await?;
    forget(core, who, &node, force).await
}

async fn forget(core: &Core, who: &Who, node: &Node, force: bool) -> Result<(), Refusal> {
    let mutations = vec![removal(core, node, force)];
    let transaction = Transaction { principal: who.audit(), mutations, ..Transaction::default() };
    propose(core, transaction).await.map(drop)
}

/// Until no task is left on the node; tells how many whenever that has changed.
async fn drain(core: &Core, id: NodeId, out: &Lines) -> Result<(), Refusal> {
    let mut moved = core.store.watch();
    let mut told = None;
    loop {
        moved.mark_unchanged();
        let live = core.store.view().live_on(id);
        if live == 0 {
            return Ok(());
        }
        if told.replace(live) != Some(live) {
            let tasks = if live == 1 { "task" } else { "tasks" };
            say(out, format!("{live} {tasks} to move")).await?;
        }
        tokio::select! {
            changed = moved.changed() => if changed.is_err() {
                return Err(Refusal::unavailable("this manager stops"));
            },
            () = out.closed() => return Err(Refusal::failed("the caller went away")),
        }
    }
}
