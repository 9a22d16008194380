//! Managers among each other: ways out, and who may come in.
//!
//! A connection is for one manager: the certificate says which node it is, the
//! state which number that node has. A node that was removed loses its
//! connections at once. A manager that is only learning knows nobody yet: it
//! takes whoever the cluster's authority vouches for.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use warren_manager::Peers;
use warren_model::NodeId;
use warren_state::State;
use warren_store::Store;
use warren_store::transport::Member;
use warren_store::transport::serve::ServeError;
use warren_store::transport::tcp::{BoxStream, Dial};
use warren_trust::Peer;

use crate::roles::dial::{Dialer, Whom};
use crate::roles::listener::Connection;
use crate::roles::node::Shared;

/// Channels to other managers that are kept: more than a cluster has managers.
const CHANNELS_MAX: usize = 16;

/// Who manager `number` is, if the state here says so.
fn whom(shared: &Shared, number: u64) -> Whom {
    let store = shared.store.load();
    let view = store.as_ref().map(|store| store.view());
    let node = view
        .and_then(|view| view.nodes().find(|node| node.number == Some(number)).map(|node| node.id));
    node.map_or(Whom::Any, Whom::Node)
}

/// Streams for consensus.
pub(super) struct Raft {
    shared: Arc<Shared>,
    /// Of its own: what it keeps for names belongs to the event loop of consensus.
    dialer: Dialer,
}

impl Raft {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let dialer = Dialer::new(shared.dialer.credentials().clone());
        Self { shared, dialer }
    }
}

impl Dial for Raft {
    fn dial(&self, to: &Member) -> BoxFuture<'static, io::Result<BoxStream>> {
        let (shared, dialer, to) = (Arc::clone(&self.shared), self.dialer.clone(), to.clone());
        async move {
            let stream = dialer.peer(&to.address, whom(&shared, to.number)).await;
            stream.map(|stream| Box::new(stream) as BoxStream).map_err(io::Error::other)
        }
        .boxed()
    }
}

/// What the manager needs of others.
pub(super) struct Ways {
    shared: Arc<Shared>,
    channels: Mutex<BTreeMap<(u64, String), Channel>>,
}

impl Ways {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, channels: Mutex::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<(u64, String), Channel>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl Peers for Ways {
    async fn channel(&self, number: u64, address: &str) -> Result<Channel, String> {
        let key = (number, address.to_owned());
        let kept = self.lock().get(&key).cloned();
        if let Some(channel) = kept {
            return Ok(channel);
        }
        let whom = whom(&self.shared, number);
        let channel = self.shared.dialer.lasting(address, whom).await;
        let channel = channel.map_err(|error| error.to_string())?;
        let mut channels = self.lock();
        if channels.len() >= CHANNELS_MAX {
            // Managers that were: those that are come back at once.
            channels.clear();
        }
        channels.insert(key, channel.clone());
        Ok(channel)
    }
}

/// What the state says of a manager that wants in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Its number, if it is known here.
    In(Option<u64>),
    Out(&'static str),
}

fn standing(view: &State, id: NodeId, peer: &Peer) -> Standing {
    match view.node(id) {
        Some(node) if node.key_hash != peer.key_hash => Standing::Out("another key than its own"),
        Some(node) if node.number.is_none() => Standing::Out("never was a manager"),
        Some(node) => Standing::In(node.number),
        None if view.tombstone(id).is_some() => Standing::Out("removed from the cluster"),
        None if peer.expired => Standing::Out("not known, and its certificate has expired"),
        // This manager may be behind; the cluster's authority has vouched for it.
        None => Standing::In(None),
    }
}

struct Guest {
    id: NodeId,
    peer: Peer,
    out: CancellationToken,
}

/// Serves connections as they come; closes those of nodes that were removed.
pub(super) async fn serve(mut arrivals: mpsc::Receiver<Connection>, store: Store) {
    let mut guests: Vec<Guest> = Vec::new();
    let mut moved = store.watch();
    let mut seen = store.view().topology();
    loop {
        let arrived = tokio::select! {
            arrived = arrivals.recv() => match arrived {
                Some(connection) => Some(connection),
                None => return,
            },
            changed = moved.changed() => {
                if changed.is_err() {
                    return;
                }
                None
            }
        };
        let view = store.view();
        if seen != view.topology() {
            seen = view.topology();
            guests.retain(|guest| match standing(&view, guest.id, &guest.peer) {
                Standing::In(_) => true,
                Standing::Out(why) => {
                    tracing::warn!(node_id = %guest.id, why, "a manager is cut off");
                    guest.out.cancel();
                    false
                }
            });
        }
        let Some(connection) = arrived else { continue };
        let Some((id, peer)) = connection.peer().and_then(|p| Some((p.node?, p.clone()))) else {
            continue;
        };
        let known = match standing(&view, id, &peer) {
            Standing::In(known) => known,
            Standing::Out(why) => {
                let from = connection.from();
                tracing::warn!(node_id = %id, %from, why, "a manager is not let in");
                continue;
            }
        };
        guests.retain(|guest| !guest.out.is_cancelled());
        let out = CancellationToken::new();
        guests.push(Guest { id, peer, out: out.clone() });
        tokio::spawn(converse(connection, known, store.clone(), id, out));
    }
}

async fn converse(
    connection: Connection,
    known: Option<u64>,
    store: Store,
    id: NodeId,
    out: CancellationToken,
) {
    // Whatever the end: its guest is to be forgotten.
    let over = out.clone().drop_guard();
    let served = tokio::select! {
        served = store.serve(|| Ok(Box::new(connection.moved_here()?)), known) => served,
        () = out.cancelled() => return,
    };
    drop(over);
    match served {
        Ok(()) => {}
        Err(error @ (ServeError::Read(_) | ServeError::Write(_) | ServeError::Ending)) => {
            tracing::debug!(node_id = %id, %error, "connection of a manager ended");
        }
        Err(error) => tracing::warn!(node_id = %id, %error, "connection of a manager refused"),
    }
}
