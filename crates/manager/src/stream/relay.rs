//! Streams of nodes that have their session with another manager.
//!
//! The others are asked one after the other, never at once: a command must not
//! be carried out twice because two of them believe to have the node. Who has
//! it not says so at once; who does not answer costs a second.

use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Request, Streaming};
use warren_model::NodeId;
use warren_proto::v1;
use warren_proto::v1::control_client::ControlClient;
use warren_proto::v1::frame::Kind;

use crate::api::authorize::RELAYED_KEY;
use crate::core::Core;
use crate::peers;
use crate::quorum;
use crate::refusal::{Mark, Refusal};
use crate::stream::{Ends, FRAMES_MAX, OPEN_MS, hint, node_name, not_connected};

/// More than the other manager waits for its node, so that its words arrive.
const ANSWER_MS: u64 = OPEN_MS + 1000;

/// Opens a stream of `node` at the manager that has its session.
///
/// # Errors
/// What that manager said; marked [`Mark::Elsewhere`] when no manager has the node.
pub(super) async fn open(core: &Core, node: NodeId, open: v1::OpenStream) -> Result<Ends, Refusal> {
    let mut trouble = None;
    for (number, address) in quorum::others(core) {
        match ask(core, number, &address, open.clone()).await {
            Ok(ends) => return Ok(ends),
            Err(refusal) if refusal.mark == Some(Mark::Elsewhere) => {}
            // That manager may be the one, but cannot be asked.
            Err(refusal) if refusal.code == tonic::Code::Unavailable => {
                trouble = trouble.or(Some(refusal));
            }
            Err(refusal) => return Err(refusal),
        }
    }
    Err(match trouble {
        None => not_connected(core, node),
        Some(trouble) => Refusal::unavailable(format!(
            "node {} is not connected to this manager, and others do not answer: {trouble}",
            node_name(core, node)
        ))
        .hint(hint(core)),
    })
}

async fn ask(
    core: &Core,
    number: u64,
    address: &str,
    open: v1::OpenStream,
) -> Result<Ends, Refusal> {
    let channel = peers::channel(core, number, address).await?;
    let (to_node, frames) = mpsc::channel(FRAMES_MAX);
    // There is room: the channel is new.
    let _ = to_node.try_send(Ok(v1::Frame { kind: Some(Kind::Open(open)) }));
    // An error says that the tool gave up: the call itself is dropped then.
    let frames = ReceiverStream::new(frames).map_while(Result::ok);
    let mut request = Request::new(frames);
    request.metadata_mut().insert(RELAYED_KEY, MetadataValue::from_static("1"));
    let mut client = ControlClient::new(channel);
    let from_node: Streaming<v1::Frame> = tokio::select! {
        opened = client.stream(request) => match opened {
            Ok(response) => response.into_inner(),
            Err(status) => return Err(Refusal::of_status(&status)),
        },
        () = core.clock.sleep(ANSWER_MS) => {
            return Err(Refusal::unavailable(format!("manager {address} does not answer")));
        }
    };
    Ok((from_node, to_node))
}
