//! The ledger: what the cluster agreed on, durable, in order, read without waiting.
//!
//! [`Store::propose`] puts a transaction into the replicated log, wherever the
//! leader is, and answers once it is durable and in this manager's view;
//! [`Store::view`] is the state after the last applied entry; [`Store::watch`]
//! and [`Store::events_after`] tell that, and what, has changed. Everything on
//! disk is sealed. Other managers are reached by a [`transport::Transport`] and
//! reach this one by [`Store::answer`].
//!
//! Not here: what transactions mean (`state`), who may propose what (`manager`),
//! who may connect (`app`).

pub mod codec;
mod disaster;
pub mod disk;
mod forward;
mod keys;
mod life;
pub mod log;
pub mod metrics;
mod open;
mod propose;
mod publish;
mod raft;
mod refusal;
mod ring;
pub mod sim_disk;
pub mod snapshot;
#[cfg(test)]
mod tests;
pub mod transport;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use warren_model::Event;
use warren_state::State;
use warren_state::change::Transaction;
use warren_trust::KeyFile;

pub use crate::codec::CodecError;
pub use crate::disaster::{Export, RestoreError, Restored};
pub use crate::keys::{Keys, RotateError};
use crate::life::Begin;
use crate::log::Log;
use crate::metrics::{Metrics, StoreMetrics};
pub use crate::open::{KeySource, OpenError, Options};
use crate::propose::Proposal;
pub use crate::propose::{OBJECT_BYTES_MAX, ProposeError, TRANSACTION_BYTES_MAX};
use crate::publish::Published;
pub use crate::raft::{Election, MembershipError, Progress, StartError, Status};
use crate::raft::{Node, Signals};
pub use crate::ring::Resync;
use crate::snapshot::Snapshots;
use crate::transport::serve::{Answer, ServeError};
use crate::transport::tcp::BoxStream;
use crate::transport::{Call, Transport, TransportError};

/// A handle on the store; clones are the same store. It goes on until [`Store::shutdown`], or
/// until the last handle is gone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    number: u64,
    proposals: mpsc::Sender<Proposal>,
    published: Arc<Published>,
    node: Node,
    signals: Signals,
    transport: Option<Arc<dyn Transport>>,
    log: Log,
    vault: Vault,
    metrics: Arc<StoreMetrics>,
    beats: mpsc::Sender<Beats>,
    beats_heard: Mutex<Option<mpsc::Receiver<Beats>>>,
    runtime: tokio::runtime::Handle,
    stop: watch::Sender<bool>,
    ended: watch::Receiver<bool>,
}

/// What rotating the data key needs.
struct Vault {
    disk: Arc<dyn disk::Disk>,
    keys: Keys,
    key_file: Arc<KeyFile>,
    rng: Arc<dyn warren_base::rng::Rng>,
    snapshots: Snapshots,
}

/// What a follower told of nodes; only whoever called [`Store::beats`] knows what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beats {
    pub from: u64,
    pub payload: Bytes,
}

/// Beats that wait for their reader: one of each follower, four a second.
const BEATS_MAX: usize = 64;

impl Store {
    /// Makes a store and begins a new cluster with this node as its only manager. Its state is
    /// empty: the caller proposes the cluster's settings next.
    ///
    /// # Errors
    /// [`OpenError`], naming what is in the way.
    pub async fn create(options: Options) -> Result<Self, OpenError> {
        life::begin(options, Begin::Create).await
    }

    /// Makes an empty store that waits until a leader adds it ([`Store::add_learner`] there). What
    /// it holds then is the cluster's.
    ///
    /// # Errors
    /// [`OpenError`], naming what is in the way.
    pub async fn join(options: Options) -> Result<Self, OpenError> {
        life::begin(options, Begin::Join).await
    }

    /// Opens a store: newest snapshot, then the log since. A node that is the only manager leads
    /// when this returns, and its view is what it was; others find or elect a leader.
    ///
    /// # Errors
    /// [`OpenError`], naming what is missing, damaged, newer or in use.
    pub async fn open(options: Options) -> Result<Self, OpenError> {
        life::begin(options, Begin::Open).await
    }

    /// Applies a transaction and returns its revision; a repeated request gets the revision of
    /// the first time. On any manager: the leader gets it from here. When this returns, the
    /// change is on the disks of a majority and in [`Store::view`]. Ends within 4 s.
    ///
    /// # Errors
    /// [`ProposeError`], which says whether the change may have happened.
    pub async fn propose(&self, transaction: Transaction) -> Result<u64, ProposeError> {
        self.propose_within(transaction, forward::TOTAL).await
    }

    /// As [`Store::propose`], giving up after `limit` at the latest: for who has waited already.
    ///
    /// # Errors
    /// Those of [`Store::propose`].
    pub async fn propose_within(
        &self,
        transaction: Transaction,
        limit: Duration,
    ) -> Result<u64, ProposeError> {
        self.inner.propose(transaction, limit.min(forward::TOTAL)).await
    }

    /// As [`Store::propose`], if this manager leads: for what only a leader may decide.
    ///
    /// # Errors
    /// [`ProposeError::NotLeader`] besides those of [`Store::propose`].
    pub async fn propose_here(&self, transaction: Transaction) -> Result<u64, ProposeError> {
        StoreMetrics::count(&self.inner.metrics.proposals);
        self.inner.propose_here(&transaction, Instant::now() + forward::TOTAL).await
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

    /// Whether this node leads, has applied an entry of its own term, and heard from a majority
    /// within a second.
    pub fn leader(&self) -> watch::Receiver<bool> {
        self.inner.signals.leads.clone()
    }

    /// Who leads, as far as this manager is in touch with a majority.
    pub fn leader_number(&self) -> watch::Receiver<Option<u64>> {
        self.inner.signals.leader.clone()
    }

    /// Whether this manager is in touch with a majority: it leads one, or has heard its leader
    /// within a second. Its view is stale when not.
    pub fn in_touch(&self) -> watch::Receiver<bool> {
        self.inner.signals.in_touch.clone()
    }

    /// Becomes true when other managers said that this one was removed.
    pub fn removed(&self) -> watch::Receiver<bool> {
        self.inner.signals.removed.clone()
    }

    /// Asks other managers whether this one was removed; [`Store::removed`] says so then.
    pub async fn ask_members(&self) {
        self.inner.ask_members().await;
    }

    /// The member now.
    pub fn status(&self) -> Status {
        self.inner.node.status(*self.inner.signals.leader.borrow())
    }

    /// All counters and sizes.
    pub fn metrics(&self) -> Metrics {
        let status = self.status();
        let counts = &self.inner.metrics;
        Metrics {
            term: status.term,
            last_index: status.last,
            applied_index: status.applied,
            leads: *self.inner.signals.leads.borrow(),
            voters: status.voters.len() as u64,
            learners: status.learners.len() as u64,
            log_bytes: status.log_bytes,
            log_segments: self.inner.log.segments() as u64,
            snapshot_bytes: status.snapshot_bytes,
            snapshot_index: status.snapshot,
            sync: self.inner.log.metrics().snapshot(),
            proposals: counts.proposals.load(Relaxed),
            forwarded: counts.forwarded.load(Relaxed),
            batches: counts.batches.load(Relaxed),
            refused_calls: counts.refused_calls.load(Relaxed),
            snapshots_sent: counts.snapshots_sent.load(Relaxed),
            snapshots_received: counts.snapshots_received.load(Relaxed),
        }
    }

    /// Adds a manager that gets everything and does not vote; it waits with [`Store::join`].
    /// Again with another address: tells the members its new one. On the leader.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub async fn add_learner(&self, number: u64, address: &str) -> Result<(), MembershipError> {
        self.inner.node.add_learner(number, address).await
    }

    /// Lets these members vote, and no others: those stay as learners. On the leader. A learner
    /// should have caught up before ([`Status::caught_up`]).
    ///
    /// # Errors
    /// [`MembershipError`].
    pub async fn set_voters(&self, voters: BTreeSet<u64>) -> Result<(), MembershipError> {
        self.inner.node.set_voters(voters).await
    }

    /// Ends a membership, its vote included; nothing to do for who is no member. On the leader,
    /// which may remove itself: another leads then.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub async fn remove(&self, number: u64) -> Result<(), MembershipError> {
        self.inner.node.remove(number).await
    }

    /// Lets another voter lead, the one that is furthest if none is named; who leads then.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub async fn hand_over(&self, to: Option<u64>) -> Result<u64, MembershipError> {
        self.inner.node.hand_over(to).await
    }

    /// When this returns, [`Store::view`] has everything that anybody was told to be done before
    /// this call began. Ends within 4 s.
    ///
    /// # Errors
    /// [`ProposeError::NoQuorum`].
    pub async fn read_barrier(&self) -> Result<(), ProposeError> {
        self.inner.read_barrier().await
    }

    /// Answers a call of another manager. The first poll hands it over: calls begun in order
    /// stay in order.
    ///
    /// # Errors
    /// Why not, for the caller.
    pub fn answer(
        &self,
        from: u64,
        kind: Call,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, String>> {
        self.inner.clone().answer(from, kind, payload)
    }

    /// Serves a connection of another manager until it is closed, in the store's own thread.
    /// `stream` gives it there, so that a socket can be watched by that thread (see
    /// [`transport::tcp::moved_here`]): else each message wakes another thread first.
    /// `known` is the caller's number, when its certificate's node has one in the state.
    ///
    /// # Errors
    /// [`ServeError`]: what the caller did wrong, or what the network did.
    pub async fn serve(
        &self,
        stream: impl FnOnce() -> std::io::Result<BoxStream> + Send + 'static,
        known: Option<u64>,
    ) -> Result<(), ServeError> {
        let mut ended = self.inner.ended.clone();
        // Connections do not keep a store alive that nobody has any more.
        let answers = Answers { number: self.inner.number, inner: Arc::downgrade(&self.inner) };
        let serving = self.inner.runtime.spawn(async move {
            let served = async {
                let stream = stream().map_err(ServeError::Read)?;
                transport::serve::serve(stream, known, &answers).await
            };
            tokio::select! {
                biased;
                served = served => served,
                _ = ended.wait_for(|ended| *ended) => Err(ServeError::Ending),
            }
        });
        let mut serving = AbortOnDrop(serving);
        (&mut serving.0).await.unwrap_or(Err(ServeError::Ending))
    }

    /// Tells the leader what this manager heard of nodes.
    ///
    /// # Errors
    /// [`TransportError`]; no leader is unreachable.
    pub async fn tell_leader(&self, payload: Bytes) -> Result<(), TransportError> {
        let leader = *self.inner.signals.leader.borrow();
        let Some(leader) = leader.filter(|leader| *leader != self.inner.number) else {
            return Err(TransportError::Unreachable { to: 0, why: "nobody else leads".to_owned() });
        };
        self.inner.call(leader, Call::Beats, payload).await.map(|_| ())
    }

    /// What followers tell, see [`Store::tell_leader`]; once, for one reader.
    pub fn beats(&self) -> Option<mpsc::Receiver<Beats>> {
        self.inner.beats_heard.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Writes a snapshot now; the log before the one before goes.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn snapshot_now(&self) -> std::io::Result<()> {
        self.inner.node.snapshot_now().await
    }

    /// Seals what is written from now on, and the snapshots, with a new data key; older keys are
    /// forgotten when nothing on disk needs them.
    ///
    /// # Errors
    /// [`RotateError`]; what was sealed before stays readable.
    pub async fn rotate_data_key(&self) -> Result<(), RotateError> {
        self.inner.rotate_data_key().await
    }

    /// The state now as bytes that [`Store::restore`] reads; not encrypted.
    pub fn export(&self) -> Export {
        Export::new(&self.view())
    }

    /// Makes a store from what [`Store::export`] gave, for a new cluster of this manager alone;
    /// [`Store::open`] with the number in the answer goes on from there. Its first transaction
    /// makes this node a manager, which gets that number, and demotes the last one of before: a
    /// state is never without a manager.
    ///
    /// # Errors
    /// [`RestoreError`]; nothing is left behind then that could be taken for a store.
    pub fn restore(
        options: &Options,
        from: &mut dyn std::io::Read,
    ) -> Result<Restored, RestoreError> {
        disaster::restore(options, from)
    }

    /// Makes the store of a survivor one of a cluster of this manager alone, with all that its
    /// log has. The others must join anew: they are refused as long as they hold what they have.
    ///
    /// # Errors
    /// [`RestoreError`]; the store is as it was then, or can be recovered again.
    pub fn recover(options: &Options) -> Result<Restored, RestoreError> {
        disaster::recover(options)
    }

    /// Becomes true when the store has ended, asked or not: a failed disk ends it as well.
    pub fn ended(&self) -> watch::Receiver<bool> {
        self.inner.ended.clone()
    }

    /// Ends the store: what was proposed before is answered, another voter leads if there is one,
    /// the log is closed, the lock given back. Later calls, and other handles, find it stopped.
    pub async fn shutdown(&self) {
        self.inner.stop.send_replace(true);
        let mut ended = self.inner.ended.clone();
        // An error means that it ended without a word, which is an end as well.
        let _ = ended.wait_for(|ended| *ended).await;
    }
}

impl Inner {
    fn answer(
        self: Arc<Self>,
        from: u64,
        kind: Call,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, String>> {
        match kind {
            Call::Append
            | Call::Vote
            | Call::PreVote
            | Call::Transfer
            | Call::Snapshot
            | Call::ReadIndex => async move { self.node.answer(from, kind, payload).await }.boxed(),
            Call::Propose => async move { self.answer_proposal(from, payload).await }.boxed(),
            Call::Beats => {
                // The next ones say it all again.
                let heard = self.beats.try_send(Beats { from, payload });
                let answer = heard.map(|()| Bytes::new()).map_err(|error| error.to_string());
                futures::future::ready(answer).boxed()
            }
        }
    }

    async fn rotate_data_key(&self) -> Result<(), RotateError> {
        let Vault { disk, keys, key_file, rng, .. } = &self.vault;
        keys.rotate(disk.as_ref(), key_file, rng.as_ref())?;
        let (done, renewed) = oneshot::channel();
        self.log.renew(Box::new(move |result| drop(done.send(result))))?;
        renewed.await.map_err(|_| RotateError::Stopped)??;
        self.node.snapshot_now().await.map_err(|_| RotateError::Stopped)?;
        self.node.reseal().await?;
        self.forget_keys()
    }

    /// Forgets the data keys that nothing on disk needs.
    fn forget_keys(&self) -> Result<(), RotateError> {
        let Vault { disk, keys, key_file, rng, snapshots } = &self.vault;
        let mut used = self.log.data_keys();
        used.extend(snapshots.data_keys()?);
        let forgotten = keys.forget_unused(disk.as_ref(), key_file, rng.as_ref(), &used)?;
        if forgotten > 0 {
            tracing::info!(forgotten, "keys: data keys that nothing needs any more");
        }
        Ok(())
    }
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Answers the calls of a connection.
struct Answers {
    number: u64,
    inner: Weak<Inner>,
}

impl Answer for Answers {
    fn number(&self) -> u64 {
        self.number
    }

    fn answer(
        &self,
        from: u64,
        kind: Call,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, String>> {
        match self.inner.upgrade() {
            Some(inner) => inner.answer(from, kind, payload),
            None => futures::future::ready(Err("the store has ended".to_owned())).boxed(),
        }
    }
}
