//! Streams: bytes between a person's tool and a node, joined here by number.
//!
//! The manager asks the node's session to open a tunnel; the agent calls back
//! with the stream's number; [`Broker`] joins the two. Frames flow through
//! bounded channels, so whoever reads slowly slows down whoever writes, all the
//! way to the container. Nothing of a stream touches the state.
//!
//! [`target`] finds out which tasks are meant, [`route`] which nodes to ask,
//! [`pipe`] moves the frames, [`logs`] and [`usage`] do so for many nodes at once, [`relay`]
//! reaches nodes whose session is with another manager.

mod logs;
mod pipe;
mod relay;
pub(crate) mod route;
pub(crate) mod target;
mod usage;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use warren_model::NodeId;
use warren_proto::v1;

use crate::api::authorize::Who;
use crate::core::Core;
use crate::metrics::Open;
use crate::quorum;
use crate::refusal::{Mark, Refusal};

pub(crate) use pipe::open;

/// Frames on their way in one direction. With frames of up to 64 KiB this is half a megabyte a
/// stream at most, and enough to keep a local pipe busy.
pub(crate) const FRAMES_MAX: usize = 8;
/// Streams open at a time through this manager; each costs two tasks' worth of buffers.
const STREAMS_MAX: usize = 1024;
/// An agent opens its side at once; one that takes this long is stuck.
const OPEN_MS: u64 = 5000;

/// A frame on its way out.
pub(crate) type Frames = mpsc::Sender<Result<v1::Frame, Status>>;

/// The node's side of a stream.
pub(crate) struct Tunnel {
    pub(crate) from_node: Streaming<v1::Frame>,
    pub(crate) to_node: Frames,
    _place: Place,
}

/// Among all streams open at a time.
struct Place {
    _permit: OwnedSemaphorePermit,
    _open: Open,
}

/// Both directions as the agent's call brings them.
type Ends = (Streaming<v1::Frame>, Frames);

/// Somebody who waits for a node's call.
struct Wait {
    node: NodeId,
    joined: oneshot::Sender<Ends>,
}

/// Joins tools and nodes.
pub(crate) struct Broker {
    waiting: Mutex<BTreeMap<u64, Wait>>,
    room: Arc<Semaphore>,
}

impl Default for Broker {
    fn default() -> Self {
        Self { waiting: Mutex::default(), room: Arc::new(Semaphore::new(STREAMS_MAX)) }
    }
}

/// Takes a number out of the list of those waited for, however the waiting ends.
struct Waiting<'a> {
    broker: &'a Broker,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.broker.lock().remove(&self.id);
    }
}

impl Broker {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Wait>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks `node` for a tunnel, here or through the manager that has its session, and waits until
    /// it has opened it.
    pub(crate) async fn open(
        &self,
        core: &Core,
        node: NodeId,
        open: v1::OpenStream,
    ) -> Result<Tunnel, Refusal> {
        if core.sessions.line(node).is_some() {
            return self.open_here(core, node, open).await;
        }
        let place = self.place(core)?;
        let (from_node, to_node) = relay::open(core, node, open).await?;
        Ok(Tunnel { from_node, to_node, _place: place })
    }

    fn place(&self, core: &Core) -> Result<Place, Refusal> {
        let permit = Arc::clone(&self.room).try_acquire_owned().map_err(|_| {
            Refusal::busy(format!("{STREAMS_MAX} streams are open already, which is the limit"))
        })?;
        Ok(Place { _permit: permit, _open: Open::new(&core.metrics.streams) })
    }

    /// Asks `node` for a tunnel if its session is with this manager.
    pub(crate) async fn open_here(
        &self,
        core: &Core,
        node: NodeId,
        open: v1::OpenStream,
    ) -> Result<Tunnel, Refusal> {
        let name = node_name(core, node);
        let place = self.place(core)?;
        let line = core.sessions.line(node).ok_or_else(|| not_connected(core, node))?;
        // Random: an agent cannot guess a stream that was not meant for it.
        let stream_id = core.rng.next_u64();
        let (joined, ends) = oneshot::channel();
        self.lock().insert(stream_id, Wait { node, joined });
        let _waiting = Waiting { broker: self, id: stream_id };
        let request = v1::StreamRequest { stream_id, open: Some(open) };
        let kind = Some(v1::manager_message::Kind::Stream(request));
        let opened = async {
            line.outbox.send(Ok(v1::ManagerMessage { kind })).await.ok()?;
            ends.await.ok()
        };
        let opened = tokio::select! {
            opened = opened => opened,
            () = line.end.cancelled() => None,
            () = core.clock.sleep(OPEN_MS) => {
                let within = OPEN_MS / 1000;
                return Err(Refusal::unavailable(format!(
                    "node {name} did not answer within {within} s"
                )));
            }
        };
        let Some((from_node, to_node)) = opened else {
            return Err(Refusal::unavailable(format!("node {name} went away")));
        };
        Ok(Tunnel { from_node, to_node, _place: place })
    }

    /// The agent's call for stream `id`; returns what goes to the agent.
    pub(crate) fn accept(
        &self,
        id: u64,
        who: &Who,
        from_node: Streaming<v1::Frame>,
    ) -> Result<ReceiverStream<Result<v1::Frame, Status>>, Refusal> {
        let wait = {
            let mut waiting = self.lock();
            if let Some(wait) = waiting.get(&id) {
                who.must_be(wait.node)?;
            }
            waiting.remove(&id)
        };
        let Some(wait) = wait else {
            return Err(Refusal::not_found(format!("nobody waits for stream {id}")));
        };
        let (to_node, frames) = mpsc::channel(FRAMES_MAX);
        wait.joined
            .send((from_node, to_node))
            .map_err(|_| Refusal::not_found(format!("nobody waits for stream {id} any more")))?;
        Ok(ReceiverStream::new(frames))
    }
}

fn not_connected(core: &Core, node: NodeId) -> Refusal {
    let name = node_name(core, node);
    Refusal::unavailable(format!("node {name} is not connected"))
        .hint(hint(core))
        .mark(Mark::Elsewhere)
}

/// What to do when a node cannot be asked.
fn hint(core: &Core) -> &'static str {
    if quorum::in_contact(core) {
        return "warren node ls shows which nodes are ready";
    }
    "without a majority of managers nodes have none that asks them; bring managers back, or after a \
     loss for good: warren cluster recover"
}

/// For messages: the host's name if it is known.
pub(crate) fn node_name(core: &Core, node: NodeId) -> String {
    let view = core.store.view();
    let hostname = view.node(node).map(|node| node.description.hostname.clone());
    hostname.filter(|name| !name.is_empty()).unwrap_or_else(|| node.to_string())
}
