//! Streams of a node without a manager: its own agent, asked directly.
//!
//! The agent serves a stream by opening a tunnel to whoever asked; here a
//! little of a manager's dispatcher stands at the other end of a pipe and joins
//! tunnel and caller. What a stream of this node's cannot be without a manager
//! (one for another node, a name that only the state knows) is refused by it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use warren_manager::STREAM_ID_KEY;
use warren_model::NodeId;
use warren_proto::v1;
use warren_proto::v1::dispatch_server::{Dispatch, DispatchServer};
use warren_proto::v1::frame::Kind;
use warren_proto::v1::open_stream;

use super::wire::{self, Pipe};

/// Frames on their way in one direction.
const FRAMES_MAX: usize = 64;
/// For the agent, in this process, to open its tunnel.
const TUNNEL_MAX: Duration = Duration::from_secs(10);
/// For a caller to say what it wants.
const OPEN_MAX: Duration = Duration::from_secs(10);

type Answer<T> = Result<Response<T>, Status>;
type Frames = ReceiverStream<Result<v1::Frame, Status>>;

/// Opens a stream at the agent: with a channel to answer through, and what is wanted.
pub(crate) type Ask = Arc<dyn Fn(tonic::transport::Channel, v1::StreamRequest) + Send + Sync>;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Streams {
    node: NodeId,
    ask: Ask,
    pipe: Pipe,
    waiting: Arc<Waiting>,
}

#[derive(Default)]
struct Waiting {
    last: AtomicU64,
    callers: Mutex<BTreeMap<u64, oneshot::Sender<Tunnel>>>,
}

/// The agent's end: what it says, and where to send what it should hear.
struct Tunnel {
    from: Streaming<v1::Frame>,
    to: mpsc::Sender<Result<v1::Frame, Status>>,
}

impl Streams {
    /// Needs a tokio runtime around it; what it serves with ends with the last clone.
    pub(crate) fn new(node: NodeId, ask: Ask) -> Self {
        let waiting = Arc::<Waiting>::default();
        let (pipe, incoming) = wire::pair();
        let service = DispatchServer::new(Tunnels(Arc::clone(&waiting)));
        tokio::spawn(warren_manager::server().add_service(service).serve_with_incoming(incoming));
        Self { node, ask, pipe, waiting }
    }

    /// Joins a caller with the agent.
    ///
    /// # Errors
    /// The caller asks for what this node alone cannot do.
    pub(crate) async fn open(&self, mut caller: Streaming<v1::Frame>) -> Answer<Frames> {
        let first = tokio::time::timeout(OPEN_MAX, caller.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("nothing was asked for"))??;
        let Some(v1::Frame { kind: Some(Kind::Open(open)) }) = first else {
            return Err(Status::invalid_argument("the first frame of a stream is not open"));
        };
        self.check(&open)?;
        let stream_id = self.waiting.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (ready, opened) = oneshot::channel();
        self.waiting.lock().insert(stream_id, ready);
        let forget = Forget(&self.waiting, stream_id);
        let channel = self.pipe.connect().await;
        let channel = channel.map_err(|e| Status::unavailable(e.to_string()))?;
        (self.ask)(channel, v1::StreamRequest { stream_id, open: Some(open) });
        let tunnel = tokio::time::timeout(TUNNEL_MAX, opened).await;
        drop(forget);
        let Ok(Ok(Tunnel { mut from, to })) = tunnel else {
            return Err(Status::unavailable("the node's agent does not answer"));
        };
        let (out, answers) = mpsc::channel(FRAMES_MAX);
        tokio::spawn(async move {
            while let Ok(Some(frame)) = caller.message().await {
                if to.send(Ok(frame)).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            while let Ok(Some(frame)) = from.message().await {
                if out.send(Ok(frame)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    fn check(&self, open: &v1::OpenStream) -> Result<(), Status> {
        let elsewhere = || {
            super::door::refusal(
                tonic::Code::Unimplemented,
                "this node is a worker; a manager does this",
                "run it on a manager, or use a context",
            )
        };
        if !open.node.is_empty() && open.node != self.node.as_bytes() {
            return Err(elsewhere());
        }
        match &open.kind {
            // Names of services and tasks are the state's, and so are the records of who did what.
            Some(
                open_stream::Kind::Exec(_)
                | open_stream::Kind::Logs(_)
                | open_stream::Kind::Copy(_)
                | open_stream::Kind::Usage(_)
                | open_stream::Kind::Top(_)
                | open_stream::Kind::ControlTask(_),
            ) => Err(elsewhere()),
            _ => Ok(()),
        }
    }
}

impl Waiting {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, oneshot::Sender<Tunnel>>> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A caller that gave up leaves nothing behind.
struct Forget<'a>(&'a Waiting, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

/// As much of a dispatcher as an agent needs to serve a stream.
struct Tunnels(Arc<Waiting>);

#[tonic::async_trait]
impl Dispatch for Tunnels {
    type SessionStream = ReceiverStream<Result<v1::ManagerMessage, Status>>;
    type TunnelStream = Frames;

    async fn session(
        &self,
        _: Request<Streaming<v1::AgentMessage>>,
    ) -> Answer<Self::SessionStream> {
        Err(Status::unimplemented("there is no manager here"))
    }

    async fn parted(&self, _: Request<v1::PartedRequest>) -> Answer<v1::PartedResponse> {
        Err(Status::unimplemented("there is no manager here"))
    }

    async fn tunnel(&self, request: Request<Streaming<v1::Frame>>) -> Answer<Frames> {
        let id = request.metadata().get(STREAM_ID_KEY);
        let id = id.and_then(|id| id.to_str().ok()).and_then(|id| id.parse::<u64>().ok());
        let caller = id.and_then(|id| self.0.lock().remove(&id));
        let caller = caller.ok_or_else(|| Status::not_found("nobody waits for that stream"))?;
        let (to, frames) = mpsc::channel(FRAMES_MAX);
        let from = request.into_inner();
        caller.send(Tunnel { from, to }).map_err(|_| Status::cancelled("the caller went away"))?;
        Ok(Response::new(ReceiverStream::new(frames)))
    }
}
