//! Moves the frames of a stream, until either side is done or gone.
//!
//! A tool that has said all it has to say still hears the rest: its half is
//! closed towards the node, no more. A tool that is gone, or a node that ends,
//! ends the stream; what was on its way is dropped.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use warren_proto::v1;
use warren_proto::v1::frame::Kind;

use crate::api::authorize::Who;
use crate::api::table::may_stream;
use crate::core::Core;
use crate::refusal::Refusal;
use crate::stream::route::{Route, route};
use crate::stream::{FRAMES_MAX, Frames, Tunnel, logs, node_name, usage};

/// The first frame comes with the call; a tool that sends none is no tool of ours.
const FIRST_FRAME_MS: u64 = 5000;

/// A tool's call: reads its first frame, opens the node's side, starts the piping.
///
/// What goes wrong before the node has answered is the call's own error, later
/// it is the stream's last frame. What another manager passes on goes to a node
/// of this one as it is, or nowhere: two managers cannot send it round in
/// circles.
pub(crate) async fn open(
    core: &Arc<Core>,
    who: &Who,
    mut from_tool: Streaming<v1::Frame>,
) -> Result<ReceiverStream<Result<v1::Frame, Status>>, Status> {
    let first = tokio::select! {
        first = from_tool.message() => first?,
        () = core.clock.sleep(FIRST_FRAME_MS) => None,
    };
    let Some(v1::Frame { kind: Some(Kind::Open(request)) }) = first else {
        return Err(Refusal::bad_input("a stream begins with open").into());
    };
    if request.kind.as_ref().is_some_and(|kind| !may_stream(who.role, kind)) {
        let name = who.principal.as_str();
        return Err(Refusal::denied(format!("{name} may not open such a stream"))
            .hint("ask somebody with another role: warren operator ls")
            .into());
    }
    let (to_tool, frames) = mpsc::channel(FRAMES_MAX);
    if who.relayed {
        let node = warren_proto::node_id("open.node", &request.node).map_err(Refusal::from)?;
        let tunnel = core.broker.open_here(core, node, request).await?;
        let name = node_name(core, node);
        core.tasks.spawn("relayed stream", pipe(from_tool, tunnel, to_tool, name));
        return Ok(ReceiverStream::new(frames));
    }
    match route(core, request)? {
        Route::Node(node, request) => {
            let tunnel = core.broker.open(core, node, *request).await?;
            let name = node_name(core, node);
            core.tasks.spawn("stream", pipe(from_tool, tunnel, to_tool, name));
        }
        Route::Usage(asked) => {
            let job = usage::start(core, asked)?;
            core.tasks.spawn("usage", job.run(from_tool, to_tool));
        }
        Route::Logs(target, request) => {
            let job = logs::start(core, target, request).await?;
            core.tasks.spawn("logs", job.run(from_tool, to_tool));
        }
    }
    Ok(ReceiverStream::new(frames))
}

async fn pipe(mut from_tool: Streaming<v1::Frame>, tunnel: Tunnel, to_tool: Frames, node: String) {
    let Tunnel { mut from_node, to_node, _place } = tunnel;
    let abort = to_node.downgrade();
    let up = async move {
        while let Ok(Some(frame)) = from_tool.message().await {
            let second_open = matches!(frame.kind, Some(Kind::Open(_)));
            if !second_open && to_node.send(Ok(frame)).await.is_err() {
                break;
            }
        }
        // The tool's half is closed; the stream goes on until the node ends it.
        drop(to_node);
        std::future::pending::<()>().await;
    };
    let down = relay(&mut from_node, &to_tool, &node);
    tokio::select! {
        () = up => {}
        trouble = down => if let Some(trouble) = trouble {
            // The tool may be gone, which is as good an end.
            let _ = to_tool.send(Ok(trouble.into_frame())).await;
        },
        () = to_tool.closed() => if let Some(to_node) = abort.upgrade() {
            // Full: then the node learns it from the stream's end.
            let _ = to_node.try_send(Err(Status::cancelled("the caller went away")));
        },
    }
}

/// From a node to the tool until the node ends. Returns what went wrong, which is the last thing
/// that the node says; a broken connection is such a thing too.
pub(super) async fn relay(
    from_node: &mut Streaming<v1::Frame>,
    to_tool: &Frames,
    node: &str,
) -> Option<Refusal> {
    loop {
        match from_node.message().await {
            // An agent's first frame only says that it is there.
            Ok(Some(v1::Frame { kind: Some(Kind::Open(_)) | None })) => {}
            Ok(Some(v1::Frame { kind: Some(Kind::Error(error)) })) => {
                return Some(Refusal::of_stream(error));
            }
            Ok(Some(frame)) => {
                if to_tool.send(Ok(frame)).await.is_err() {
                    return None;
                }
            }
            Ok(None) => return None,
            Err(error) => {
                tracing::debug!(node, %error, "stream broken");
                return Some(Refusal::unavailable(format!("connection to node {node} was lost")));
            }
        }
    }
}
