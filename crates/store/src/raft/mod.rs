//! Consensus: the only module that knows which library does it.
//!
//! Everything of it runs in one thread with its own runtime, so that neither a
//! slow plan nor a slow caller costs an election. A cluster of one voter has no
//! timers at all: it elects itself once at start and then sleeps until it is
//! given something to do.

mod answer;
mod clock;
mod contact;
mod follow;
mod log_store;
mod machine;
mod members;
mod network;
mod receive;
mod runtime;
mod send;
mod types;
mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use openraft::errors::{ClientWriteError, InitializeError, RaftError};
use openraft::impls::BasicNode;
use openraft::raft::ClientWriteResult;
use openraft::{Config, SnapshotPolicy};
use tokio::sync::{mpsc, watch};
use warren_base::rng::Rng;
use warren_state::change::Outcome;

use crate::codec::WirePosition;
use crate::log::Log;
use crate::metrics::StoreMetrics;
use crate::publish::Published;
use crate::snapshot::{SnapshotError, Snapshots};
use crate::transport::Transport;
use contact::Contact;
pub(crate) use follow::Signals;
use log_store::LogStore;
pub(crate) use machine::MachineOptions;
use machine::{Draft, Machine, beside};
pub use members::{MembershipError, Progress, Status};
use network::Peers;
pub(crate) use network::REMOVED;
use receive::Reception;
use types::{Answer, Command, Types};

/// Entries that were given to consensus and not answered. More than one keeps the disk busy while
/// an entry is applied; few keep the batches large.
pub(crate) const IN_FLIGHT_MAX: u32 = 4;

/// How fast a silent leader is replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Election {
    /// Managers in one place: heartbeats each 75 ms, elections after 150 to 300 ms of silence on
    /// top of the leader's lease of 300 ms.
    #[default]
    Lan,
    /// Managers far apart: 250 ms, 1 to 2 s.
    Wan,
}

/// Why consensus cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("start consensus: {0}")]
    Fatal(String),
    #[error("this store belongs to node {found}, not to node {expected}")]
    OtherNode { expected: u64, found: String },
    #[error("begin a cluster: {0}")]
    Initialize(String),
    #[error("consensus ended before it began")]
    Ended,
}

/// What became of an entry.
pub(crate) type Submitted = Result<Vec<Outcome>, SubmitError>;

/// Why an entry was not applied, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SubmitError {
    /// Not taken: another node leads, or none.
    NotLeader {
        leader: Option<u64>,
    },
    /// It may still be applied, by another leader.
    Unknown,
    Stopped(String),
}

/// What all parts of a member share.
pub(crate) struct Shared {
    pub(crate) number: u64,
    transport: Option<Arc<dyn Transport>>,
    published: Arc<Published>,
    snapshots: Snapshots,
    log: Log,
    rng: Arc<dyn Rng>,
    inline: bool,
    contact: Contact,
    reception: Arc<Reception>,
    /// Others said that this member was removed.
    pub(crate) removed: watch::Sender<bool>,
    pub(crate) metrics: Arc<StoreMetrics>,
    /// Held by whoever changes which snapshots there are.
    drafting: tokio::sync::Mutex<()>,
    /// Index of the last applied entry.
    applied: watch::Receiver<u64>,
}

impl Shared {
    /// Of the recovery that this member's state is from.
    fn epoch(&self) -> u64 {
        self.published.view().cluster().map_or(0, |cluster| cluster.epoch)
    }
}

/// A member of the consensus group.
#[derive(Clone)]
pub(crate) struct Node {
    raft: openraft::Raft<Types, Machine>,
    pub(crate) shared: Arc<Shared>,
}

/// What a member is made from.
pub(crate) struct Parts {
    pub(crate) number: u64,
    pub(crate) log: Log,
    pub(crate) snapshots: Snapshots,
    pub(crate) published: Arc<Published>,
    pub(crate) position: WirePosition,
    pub(crate) current: Option<crate::snapshot::SnapshotFile>,
    pub(crate) options: MachineOptions,
    pub(crate) transport: Option<Arc<dyn Transport>>,
    pub(crate) election: Election,
    pub(crate) rng: Arc<dyn Rng>,
    pub(crate) metrics: Arc<StoreMetrics>,
}

fn config(election: Election) -> Config {
    let pace = election.pace();
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let heartbeat_interval = ms(pace.heartbeat);
    let (election_timeout_min, election_timeout_max) =
        (ms(pace.patience_min), ms(pace.patience_max));
    Config {
        cluster_name: "warren".to_owned(),
        heartbeat_interval,
        election_timeout_min,
        election_timeout_max,
        // A leader that others hear and that hears nobody must fall silent, or they would never
        // elect another: at least its lease and an election.
        quorum_loss_probe_interval: Some(election_timeout_max * 5 / 2),
        enable_pre_vote: Some(true),
        // A leader of before has to be elected again: its first entry tells when all is applied.
        enable_leader_restore: Some(false),
        // Never: the module `clock` keeps time.
        enable_tick: false,
        // Connections have pauses of their own; this keeps the log from spinning.
        backoff: "20ms 40ms ..400ms".to_owned(),
        // Counted in entries; ours are counted in bytes.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        // Whoever is behind gets what the log has: it is bounded, by bytes.
        replication_lag_threshold: u64::MAX,
        max_append_entries: Some(256),
        api_channel_size: Some(1024),
        api_batch_capacity: 64,
        notification_channel_size: Some(1024),
        ..Config::default()
    }
}

impl Node {
    /// Starts a member on the current runtime; returns it and what it tells of itself.
    pub(crate) async fn start(parts: Parts) -> Result<(Self, Signals), StartError> {
        let fatal = |error: &dyn std::fmt::Display| StartError::Fatal(error.to_string());
        let config = config(parts.election).validate().map_err(|error| fatal(&error))?;
        if parts.options.inline {
            runtime::seed(parts.rng.next_u64());
        }
        let store = LogStore::new(parts.log.clone());
        let (drafts, written) = mpsc::channel(1);
        let (machine, applied) = Machine::new(&parts, drafts).map_err(|error| fatal(&error))?;
        let shared = Arc::new(Shared {
            number: parts.number,
            transport: parts.transport,
            published: parts.published,
            snapshots: parts.snapshots,
            log: parts.log,
            rng: parts.rng,
            inline: parts.options.inline,
            contact: Contact::default(),
            reception: Arc::default(),
            removed: watch::Sender::new(false),
            metrics: parts.metrics,
            drafting: tokio::sync::Mutex::new(()),
            applied: applied.index,
        });
        let (peers, number) = (Peers(shared.clone()), parts.number);
        let raft = openraft::Raft::new(number, Arc::new(config), peers, store, machine)
            .await
            .map_err(|error| fatal(&error))?;
        let node = Self { raft, shared };
        let signals = node.follow(applied.by);
        tokio::spawn(node.clone().keep_time(parts.election.pace()));
        tokio::spawn(node.clone().write_drafts(written));
        Ok((node, signals))
    }

    /// Makes this node the only voter of a new cluster.
    pub(crate) async fn initialize(&self, address: &str) -> Result<(), StartError> {
        let node = BasicNode { addr: address.to_owned() };
        let members = BTreeMap::from([(self.shared.number, node)]);
        match self.raft.initialize(members).await {
            Ok(()) => Ok(()),
            Err(RaftError::APIError(InitializeError::NotAllowed(error))) => {
                Err(StartError::Initialize(error.to_string()))
            }
            Err(error) => Err(StartError::Initialize(error.to_string())),
        }
    }

    /// Stands for election at once if nobody else could win it. Whether it is alone.
    pub(crate) async fn elect_if_alone(&self) -> Result<bool, StartError> {
        // Asked of the member itself: its metrics say nothing before it has done something.
        let voters = self.raft.with_raft_state(|state| {
            state.membership_state.effective().voter_ids().collect::<Vec<u64>>()
        });
        let voters = voters.await.map_err(|error| StartError::Fatal(error.to_string()))?;
        if voters != [self.shared.number] {
            return Ok(false);
        }
        let elected = self.raft.trigger().elect(false).await;
        elected.map_err(|error| StartError::Fatal(error.to_string()))?;
        Ok(true)
    }

    /// Gives an entry to consensus; `done` hears what became of it, at once if nothing can.
    pub(crate) async fn submit(
        &self,
        payload: bytes::Bytes,
        done: impl FnOnce(Submitted) + Send + 'static,
    ) {
        let answer = Answer::new(move |result: ClientWriteResult<Types>| {
            done(result.map(|response| response.data.0).map_err(submit_error));
        });
        // An error drops the answer unheard; its owner takes that for the end.
        let _ = self.raft.client_write_ff(Command(payload), Some(answer)).await;
    }

    /// Writes snapshots when the state machine has a draft for one; ends with it.
    async fn write_drafts(self, mut drafts: mpsc::Receiver<Draft>) {
        while let Some(draft) = drafts.recv().await {
            if let Err(error) = self.write_draft(draft).await {
                tracing::error!(%error, "snapshot: write");
            }
        }
    }

    async fn write_draft(&self, draft: Draft) -> std::io::Result<()> {
        let purgeable = {
            let _drafting = self.shared.drafting.lock().await;
            draft.write().await?
        };
        let ended = |_| std::io::Error::other("consensus has ended");
        self.raft.trigger().snapshot().await.map_err(ended)?;
        if let Some(upto) = purgeable {
            self.raft.trigger().purge_log(upto).await.map_err(ended)?;
        }
        Ok(())
    }

    /// Seals the snapshots with the active data key.
    pub(crate) async fn reseal(&self) -> Result<(), SnapshotError> {
        let _drafting = self.shared.drafting.lock().await;
        let snapshots = self.shared.snapshots.clone();
        let resealed = beside(self.shared.inline, move || snapshots.reseal()).await;
        resealed.map_err(|source| SnapshotError::Disk {
            action: "seal anew",
            name: "*".to_owned(),
            source,
        })?
    }

    /// Writes a snapshot of what is applied now.
    pub(crate) async fn snapshot_now(&self) -> std::io::Result<()> {
        let ended = |_| std::io::Error::other("consensus has ended");
        let draft = self.raft.with_state_machine(|machine| {
            let draft = machine.draft_now();
            std::future::ready(draft).boxed()
        });
        self.write_draft(draft.await.map_err(ended)?).await
    }

    /// Ends the member; what was submitted before is answered or dropped.
    pub(crate) async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(%error, "consensus: ended badly");
        }
    }
}

fn submit_error(error: ClientWriteError<Types>) -> SubmitError {
    match error {
        ClientWriteError::ForwardToLeader(forward) => {
            SubmitError::NotLeader { leader: forward.leader_id }
        }
        ClientWriteError::LogEntryDiscarded(_) => SubmitError::Unknown,
        ClientWriteError::ChangeMembershipError(error) => SubmitError::Stopped(error.to_string()),
        ClientWriteError::PreconditionFailed(error) => SubmitError::Stopped(error.to_string()),
    }
}
