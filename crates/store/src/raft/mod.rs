//! Consensus: the only module that knows which library does it.
//!
//! Everything of it runs in one thread with its own runtime, so that neither a
//! slow plan nor a slow caller costs an election. A cluster of one voter has no
//! timers at all: it elects itself once at start and then sleeps until it is
//! given something to do.
//!
//! Not here yet: a way to other managers. Peers are unreachable until there is
//! a transport; elections, replication and membership are written for many.

mod log_store;
mod machine;
mod network;
mod types;

use std::collections::BTreeMap;
use std::sync::Arc;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, InitializeError, RaftError};
use openraft::impls::BasicNode;
use openraft::raft::ClientWriteResult;
use openraft::{Config, ServerState, SnapshotPolicy};
use tokio::sync::{mpsc, watch};
use warren_state::change::Outcome;

use crate::codec::WirePosition;
use crate::log::Log;
use crate::publish::Published;
use crate::snapshot::Snapshots;
use log_store::LogStore;
pub(crate) use machine::MachineOptions;
use machine::{Draft, Machine};
use network::NoPeers;
use types::{Answer, Command, Types, metrics_leads};

/// Entries that were given to consensus and not answered. More than one keeps the disk busy while
/// an entry is applied; few keep the batches large.
pub(crate) const IN_FLIGHT_MAX: u32 = 4;

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

/// A member of the consensus group.
#[derive(Clone)]
pub(crate) struct Node {
    raft: openraft::Raft<Types, Machine>,
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
}

fn config() -> Config {
    Config {
        cluster_name: "warren".to_owned(),
        heartbeat_interval: 50,
        election_timeout_min: 150,
        election_timeout_max: 300,
        enable_pre_vote: Some(true),
        // A leader of before has to be elected again: its first entry tells when all is applied.
        enable_leader_restore: Some(false),
        // Off until there is a second voter.
        enable_tick: false,
        // Counted in entries; ours are counted in bytes.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        max_append_entries: Some(256),
        api_channel_size: Some(1024),
        api_batch_capacity: 64,
        notification_channel_size: Some(1024),
        ..Config::default()
    }
}

impl Node {
    /// Starts a member on the current runtime; returns it and whether it leads.
    pub(crate) async fn start(parts: Parts) -> Result<(Self, watch::Receiver<bool>), StartError> {
        let fatal = |error: &dyn std::fmt::Display| StartError::Fatal(error.to_string());
        let config = config().validate().map_err(|error| fatal(&error))?;
        let store = LogStore::new(parts.log.clone());
        let number = parts.number;
        let (drafts, written) = mpsc::channel(1);
        let (machine, applied_term) = Machine::new(parts, drafts).map_err(|error| fatal(&error))?;
        let raft = openraft::Raft::new(number, Arc::new(config), NoPeers, store, machine)
            .await
            .map_err(|error| fatal(&error))?;
        let node = Self { raft };
        let (leads, leader) = watch::channel(false);
        tokio::spawn(node.clone().follow(applied_term, leads));
        tokio::spawn(node.clone().write_drafts(written));
        Ok((node, leader))
    }

    /// Makes this node the only voter of a new cluster.
    pub(crate) async fn initialize(&self, number: u64) -> Result<(), StartError> {
        let members = BTreeMap::from([(number, BasicNode::default())]);
        match self.raft.initialize(members).await {
            Ok(()) => Ok(()),
            Err(RaftError::APIError(InitializeError::NotAllowed(error))) => {
                Err(StartError::Initialize(error.to_string()))
            }
            Err(error) => Err(StartError::Initialize(error.to_string())),
        }
    }

    /// Stands for election at once if nobody else could win it. Whether it is alone.
    pub(crate) async fn elect_if_alone(&self, number: u64) -> Result<bool, StartError> {
        // Asked of the member itself: its metrics say nothing before it has done something.
        let voters = self.raft.with_raft_state(|state| {
            state.membership_state.effective().voter_ids().collect::<Vec<u64>>()
        });
        let voters = voters.await.map_err(|error| StartError::Fatal(error.to_string()))?;
        if !voters.contains(&number) {
            let found = voters.first().map_or_else(|| "none".to_owned(), u64::to_string);
            return Err(StartError::OtherNode { expected: number, found });
        }
        if voters.len() > 1 {
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

    /// Keeps `leader` true while this node leads and has applied an entry of its own term, and
    /// timers running while there is more than one voter. Ends with the member.
    async fn follow(self, mut applied_term: watch::Receiver<u64>, leader: watch::Sender<bool>) {
        let mut metrics = self.raft.server_metrics();
        loop {
            let (leads, term, voters) = {
                let now = metrics.borrow_watched();
                let voters = now.membership_config.voter_ids().count();
                (now.state == ServerState::Leader, metrics_leads(&now.vote), voters)
            };
            self.raft.runtime_config().tick(voters > 1);
            let ready = leads && term == Some(*applied_term.borrow_and_update());
            leader.send_if_modified(|known| std::mem::replace(known, ready) != ready);
            let alive = tokio::select! {
                changed = metrics.changed() => changed.is_ok(),
                changed = applied_term.changed() => changed.is_ok(),
            };
            if !alive {
                leader.send_replace(false);
                return;
            }
        }
    }

    /// Writes snapshots when the state machine has a draft for one; ends with it.
    async fn write_drafts(self, mut drafts: mpsc::Receiver<Draft>) {
        while let Some(draft) = drafts.recv().await {
            let purgeable = match draft.write().await {
                Ok(purgeable) => purgeable,
                Err(error) => {
                    tracing::error!(%error, "snapshot: write");
                    continue;
                }
            };
            if self.raft.trigger().snapshot().await.is_err() {
                return;
            }
            if let Some(upto) = purgeable
                && self.raft.trigger().purge_log(upto).await.is_err()
            {
                return;
            }
        }
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
