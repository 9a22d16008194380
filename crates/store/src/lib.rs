//! The ledger: what the cluster agreed on, durable, in order, read without waiting.
//!
//! [`Store::propose`] puts a transaction into the replicated log and answers
//! once it is on disk and applied; [`Store::view`] is the state after the last
//! applied entry; [`Store::watch`] and [`Store::events_after`] tell that, and
//! what, has changed. Everything on disk is sealed.
//!
//! Not here: what transactions mean (`state`), who may propose what (`manager`).

pub mod codec;
pub mod disk;
pub mod log;
mod open;
mod propose;
mod publish;
mod raft;
mod ring;
pub mod sim_disk;
pub mod snapshot;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use warren_model::Event;
use warren_state::State;
use warren_state::change::Transaction;

pub use crate::codec::CodecError;
use crate::log::Log;
use crate::open::Ground;
pub use crate::open::{KeySource, OpenError, Options};
pub use crate::propose::{OBJECT_BYTES_MAX, ProposeError, TRANSACTION_BYTES_MAX};
use crate::propose::{Proposal, Proposer, QUEUE_LEN};
use crate::publish::Published;
pub use crate::raft::StartError;
use crate::raft::{IN_FLIGHT_MAX, MachineOptions, Node, Parts};
pub use crate::ring::Resync;

/// A handle on the store; clones are the same store. It goes on until [`Store::shutdown`], or
/// until the last handle is gone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    proposals: mpsc::Sender<Proposal>,
    published: Arc<Published>,
    leader: watch::Receiver<bool>,
    stop: watch::Sender<bool>,
    ended: watch::Receiver<bool>,
}

/// How long an ending store waits for entries that consensus has taken.
const GRACE: Duration = Duration::from_secs(5);

/// How the store came to be.
#[derive(Clone, Copy)]
enum Begin {
    Create,
    Open,
}

impl Store {
    /// Makes a store and begins a new cluster with this node as its only manager. Its state is
    /// empty: the caller proposes the cluster's settings next.
    ///
    /// # Errors
    /// [`OpenError`], naming what is in the way.
    pub async fn create(options: Options) -> Result<Self, OpenError> {
        Self::begin(options, Begin::Create).await
    }

    /// Opens a store: newest snapshot, then the log since. A node that is the only manager leads
    /// when this returns, and its view is what it was.
    ///
    /// # Errors
    /// [`OpenError`], naming what is missing, damaged, newer or in use.
    pub async fn open(options: Options) -> Result<Self, OpenError> {
        Self::begin(options, Begin::Open).await
    }

    async fn begin(options: Options, begin: Begin) -> Result<Self, OpenError> {
        let (ready, started) = oneshot::channel();
        if options.inline {
            tokio::spawn(serve(options, begin, ready));
        } else {
            std::thread::Builder::new()
                .name("store".to_owned())
                .spawn(move || run(options, begin, ready))
                .map_err(|source| OpenError::Disk {
                    action: "start the store's thread",
                    place: "this process".to_owned(),
                    source,
                })?;
        }
        started.await.map_err(|_| OpenError::Ended)?
    }

    /// Applies a transaction and returns its revision; a repeated request gets the revision of
    /// the first time. When this returns, the change is on disk and in [`Store::view`].
    ///
    /// # Errors
    /// [`ProposeError`], which says whether the change may have happened.
    pub async fn propose(&self, transaction: Transaction) -> Result<u64, ProposeError> {
        let (proposal, answered) = Proposal::new(&transaction)?;
        drop(transaction);
        let sent = self.inner.proposals.send(proposal).await;
        sent.map_err(|_| ProposeError::stopped())?;
        answered.await.map_err(|_| ProposeError::stopped())?
    }

    /// The state now. Cheap; keep it as long as a consistent look is needed, no longer.
    pub fn view(&self) -> Arc<State> {
        self.inner.published.view()
    }

    /// The revision, whenever it has changed. View and events are there when this tells.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.inner.published.watch()
    }

    /// Events after `revision`, in order.
    ///
    /// # Errors
    /// [`Resync`] when they are not kept any more: take a new view.
    pub fn events_after(&self, revision: u64) -> Result<Vec<Event>, Resync> {
        self.inner.published.events_after(revision)
    }

    /// Whether this node leads and has applied an entry of its own term.
    pub fn leader(&self) -> watch::Receiver<bool> {
        self.inner.leader.clone()
    }

    /// Becomes true when the store has ended, asked or not: a failed disk ends it as well.
    pub fn ended(&self) -> watch::Receiver<bool> {
        self.inner.ended.clone()
    }

    /// Ends the store: what was proposed before is answered, the log is closed, the lock given
    /// back. Later calls, and other handles, find it stopped.
    pub async fn shutdown(&self) {
        self.inner.stop.send_replace(true);
        let mut ended = self.inner.ended.clone();
        // An error means that it ended without a word, which is an end as well.
        let _ = ended.wait_for(|ended| *ended).await;
    }
}

type Ready = oneshot::Sender<Result<Store, OpenError>>;

/// The thread of the store.
fn run(options: Options, begin: Begin, ready: Ready) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    match runtime {
        Ok(runtime) => runtime.block_on(serve(options, begin, ready)),
        Err(source) => {
            let (action, place) = ("start the store's runtime", "this process".to_owned());
            // Nobody waits any more: nobody to tell.
            let _ = ready.send(Err(OpenError::Disk { action, place, source }));
        }
    }
}

async fn serve(options: Options, begin: Begin, ready: Ready) {
    let running = match start(&options, begin).await {
        Ok(running) => running,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let (proposals, mut waiting) = mpsc::channel(QUEUE_LEN);
    let (stop, mut stopping) = watch::channel(false);
    let (end, ended) = watch::channel(false);
    let Running { ground_lock, node, log, published, leader } = running;
    let mut failing = leader.clone();
    let places = Arc::new(Semaphore::new(IN_FLIGHT_MAX as usize));
    let store = Store {
        inner: Arc::new(Inner { proposals, published: published.clone(), leader, stop, ended }),
    };
    if ready.send(Ok(store)).is_ok() {
        let proposer = Proposer {
            node: node.clone(),
            log: log.clone(),
            clock: options.clock,
            published,
            places: places.clone(),
        };
        tokio::select! {
            () = proposer.run(&mut waiting) => {}
            // Gone with its last handle: the proposer sees that too.
            _ = stopping.wait_for(|stop| *stop) => {}
            // Consensus ended by itself: its disk failed.
            () = async { while failing.changed().await.is_ok() {} } => {
                tracing::error!("store: consensus has ended");
            }
        }
    }
    waiting.close();
    while waiting.try_recv().is_ok() {}
    // What consensus has taken is answered; not for ever, its disk may hang.
    let in_flight = places.acquire_many(IN_FLIGHT_MAX);
    if tokio::time::timeout(GRACE, in_flight).await.is_err() {
        tracing::warn!("store: entries under way are given up");
    }
    node.shutdown().await;
    close(&log).await;
    drop(ground_lock);
    end.send_replace(true);
}

async fn close(log: &Log) {
    let (sender, receiver) = oneshot::channel();
    let closing = log.close(Box::new(move |result| drop(sender.send(result))));
    let closed = match closing {
        Ok(()) => receiver.await.unwrap_or(Ok(())),
        Err(error) => Err(error),
    };
    if let Err(error) = closed {
        tracing::error!(%error, "log: close");
    }
}

struct Running {
    ground_lock: disk::Lock,
    node: Node,
    log: Log,
    published: Arc<Published>,
    leader: watch::Receiver<bool>,
}

async fn start(options: &Options, begin: Begin) -> Result<Running, OpenError> {
    let ground = match begin {
        Begin::Create => open::create(options)?,
        Begin::Open => open::open(options)?,
    };
    let Ground { lock, log, snapshots, state, position, current } = ground;
    let published = Arc::new(Published::new(state));
    let number = options.node_number;
    let machine =
        MachineOptions { snapshot_log_bytes: options.snapshot_log_bytes, inline: options.inline };
    let parts = Parts {
        number,
        log: log.clone(),
        snapshots,
        published: published.clone(),
        position,
        current,
        options: machine,
    };
    let (node, mut leader) = Node::start(parts).await?;
    let alone = match begin {
        Begin::Create => {
            node.initialize(number).await?;
            true
        }
        Begin::Open => node.elect_if_alone(number).await?,
    };
    if alone {
        let leads = leader.wait_for(|leads| *leads).await;
        leads.map_err(|_| StartError::Ended)?;
    }
    if let Begin::Create = begin {
        open::complete(options.disk.as_ref())?;
    }
    Ok(Running { ground_lock: lock, node, log, published, leader })
}
