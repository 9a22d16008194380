//! Who takes part: adding, promoting, removing, handing over, and what is known of it all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::impls::BasicNode;
use openraft::metrics::RaftServerMetrics;
use openraft::raft::ClientWriteResponse;
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{Instant as _, RaftMetrics};
use tokio::time::Instant;

use super::Node;
use super::types::Types;

/// Of one step of a change: as long as a proposal.
const CHANGE_MAX: Duration = crate::forward::TOTAL;
/// How long a leader waits for its successor.
const HAND_OVER_MAX: Duration = Duration::from_secs(1);
/// More would only slow everyone down.
const VOTERS_MAX: usize = 7;

pub(super) type ServerWatch = WatchReceiverOf<Types, RaftServerMetrics<Types>>;

/// Why the members were not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    #[error("this manager does not lead")]
    NotLeader { leader: Option<u64> },
    #[error("another change of the managers is under way")]
    InProgress,
    #[error("manager {number} is not a member")]
    NotMember { number: u64 },
    #[error("{voters} voting managers, 1 to {VOTERS_MAX} are allowed")]
    Voters { voters: usize },
    #[error("there is no other voting manager to hand over to")]
    NobodyElse,
    /// It may still happen.
    #[error("the change of the managers was not confirmed by a majority in time")]
    NoQuorum,
    #[error("change the managers: {0}")]
    Refused(String),
}

/// How far a member is, as its leader knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Index of the last entry that it is known to have.
    pub matched: u64,
    /// Since it last answered.
    pub silent_ms: Option<u64>,
}

/// A member at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub number: u64,
    /// Who leads, if this member is in touch with a majority.
    pub leader: Option<u64>,
    pub term: u64,
    /// The term that it leads in, whether or not it is in touch with a majority.
    pub leads_in: Option<u64>,
    /// Numbers and addresses.
    pub voters: BTreeMap<u64, String>,
    pub learners: BTreeMap<u64, String>,
    /// Whether this manager is one of them; false before it was added and after it was removed.
    pub member: bool,
    /// Others said that it was removed.
    pub removed: bool,
    /// Indexes.
    pub last: u64,
    pub committed: u64,
    pub applied: u64,
    /// Since the leader, or for a leader a majority, was last heard; 0 when alone.
    pub last_contact_ms: Option<u64>,
    pub log_bytes: u64,
    /// Index of the newest snapshot, and its size.
    pub snapshot: u64,
    pub snapshot_bytes: u64,
    /// Of the others; empty when this member does not lead.
    pub progress: BTreeMap<u64, Progress>,
}

impl Status {
    /// Whether a learner has all that a voter needs: it may vote without slowing anyone down.
    pub fn caught_up(&self, number: u64) -> bool {
        /// Entries that it may be behind: what is under way anyhow.
        const BEHIND_MAX: u64 = 64;
        let matched = self.progress.get(&number).map(|progress| progress.matched);
        matched.is_some_and(|matched| matched + BEHIND_MAX >= self.last)
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn change_error(error: RaftError<Types, ClientWriteError<Types>>) -> MembershipError {
    use openraft::errors::ChangeMembershipError as Change;
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            MembershipError::NotLeader { leader: forward.leader_id }
        }
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => MembershipError::NoQuorum,
        RaftError::APIError(ClientWriteError::ChangeMembershipError(Change::InProgress(_))) => {
            MembershipError::InProgress
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(Change::LearnerNotFound(
            error,
        ))) => MembershipError::NotMember { number: error.node_id },
        RaftError::APIError(error) => MembershipError::Refused(error.to_string()),
        RaftError::Fatal(error) => MembershipError::Refused(error.to_string()),
    }
}

type Changed = Result<ClientWriteResponse<Types>, RaftError<Types, ClientWriteError<Types>>>;

/// Waits for a change, not for ever: without a majority it never comes.
async fn in_time(change: impl Future<Output = Changed>) -> Result<(), MembershipError> {
    match tokio::time::timeout(CHANGE_MAX, change).await {
        Ok(changed) => changed.map(|_| ()).map_err(change_error),
        Err(_) => Err(MembershipError::NoQuorum),
    }
}

impl Node {
    /// Adds a member that gets everything and does not vote. Again with another address: moves it.
    pub(crate) async fn add_learner(
        &self,
        number: u64,
        address: &str,
    ) -> Result<(), MembershipError> {
        let node = BasicNode { addr: address.to_owned() };
        // Numbers are given once, so an address is all that can differ.
        let nodes = ChangeMembers::SetNodes(BTreeMap::from([(number, node)]));
        in_time(self.raft.change_membership(nodes, true)).await
    }

    /// Lets these and no others vote; who did and does not any more stays as a learner.
    pub(crate) async fn set_voters(&self, voters: BTreeSet<u64>) -> Result<(), MembershipError> {
        if voters.is_empty() || voters.len() > VOTERS_MAX {
            return Err(MembershipError::Voters { voters: voters.len() });
        }
        in_time(self.raft.change_membership(ChangeMembers::ReplaceAllVoters(voters), true)).await
    }

    /// Ends a membership.
    pub(crate) async fn remove(&self, number: u64) -> Result<(), MembershipError> {
        let (votes, known) = {
            let metrics = self.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            let membership = metrics.membership_config.membership();
            let mut voters = membership.voter_ids();
            (voters.any(|voter| voter == number), membership.get_node(&number).is_some())
        };
        if !known {
            return Ok(());
        }
        let numbers = BTreeSet::from([number]);
        if votes {
            return in_time(
                self.raft.change_membership(ChangeMembers::RemoveVoters(numbers), false),
            )
            .await;
        }
        in_time(self.raft.change_membership(ChangeMembers::RemoveNodes(numbers), false)).await
    }

    /// Lets `to` lead, or whoever is furthest of those that answer. Waits until it does.
    pub(crate) async fn hand_over(&self, to: Option<u64>) -> Result<u64, MembershipError> {
        let to = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            if metrics.state != ServerState::Leader {
                return Err(MembershipError::NotLeader { leader: metrics.current_leader });
            }
            match to {
                Some(number) if !metrics.membership_config.voter_ids().any(|id| id == number) => {
                    return Err(MembershipError::NotMember { number });
                }
                Some(number) => number,
                None => {
                    successor(&metrics, self.shared.number).ok_or(MembershipError::NobodyElse)?
                }
            }
        };
        if to == self.shared.number {
            return Ok(to);
        }
        let refused = |error: &dyn std::fmt::Display| MembershipError::Refused(error.to_string());
        self.raft.trigger().transfer_leader(to).await.map_err(|error| refused(&error))?;
        let mut server = self.raft.server_metrics();
        let deadline = Instant::now() + HAND_OVER_MAX;
        loop {
            let leader = server.borrow_and_update().current_leader;
            if let Some(leader) = leader.filter(|leader| *leader != self.shared.number) {
                return Ok(leader);
            }
            let changed = tokio::time::timeout_at(deadline, server.changed()).await;
            changed.map_err(|_| MembershipError::NoQuorum)?.map_err(|error| refused(&error))?;
        }
    }

    /// Hands over if this member leads and another can.
    pub(crate) async fn step_aside(&self) {
        match self.hand_over(None).await {
            Ok(leader) => tracing::info!(leader, "consensus: handed over"),
            Err(MembershipError::NotLeader { .. } | MembershipError::NobodyElse) => {}
            Err(error) => tracing::warn!(%error, "consensus: hand over"),
        }
    }

    pub(crate) fn address_of(&self, number: u64) -> Option<String> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let node = metrics.membership_config.membership().get_node(&number);
        node.map(|node| node.addr.clone())
    }

    /// Waits until a read of the view sees everything that was acknowledged before this call.
    pub(crate) async fn wait_applied(&self, index: u64) -> bool {
        let mut applied = self.shared.applied.clone();
        applied.wait_for(|applied| *applied >= index).await.is_ok()
    }

    pub(crate) fn status(&self, leader: Option<u64>) -> Status {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        // While voters change there are two sets, and what the first says holds until the change is
        // done: who comes does not vote alone yet, who goes is still needed.
        let voters = membership.get_joint_config().first().cloned().unwrap_or_default();
        let (mut voting, mut learners) = (BTreeMap::new(), BTreeMap::new());
        for (number, node) in membership.nodes() {
            let list = if voters.contains(number) { &mut voting } else { &mut learners };
            list.insert(*number, node.addr.clone());
        }
        let leads = metrics.state == ServerState::Leader;
        let number = self.shared.number;
        let last_contact = if leads && voters.len() == 1 {
            Some(Duration::ZERO)
        } else if leads {
            metrics.last_quorum_acked.map(|acked| acked.elapsed())
        } else {
            self.shared.contact.last().map(|last| last.elapsed())
        };
        Status {
            number,
            leader,
            term: metrics.current_term,
            leads_in: leads.then_some(metrics.current_term),
            member: voting.contains_key(&number) || learners.contains_key(&number),
            voters: voting,
            learners,
            removed: *self.shared.removed.borrow(),
            last: metrics.last_log_index.unwrap_or(0),
            committed: metrics.cluster_committed.map_or(0, |id| id.index),
            applied: metrics.last_applied.map_or(0, |id| id.index),
            last_contact_ms: last_contact.map(ms),
            log_bytes: self.shared.log.bytes(),
            snapshot: metrics.snapshot.map_or(0, |id| id.index),
            snapshot_bytes: self.shared.snapshots.newest_bytes(),
            progress: progress(&metrics, number),
        }
    }
}

fn progress(metrics: &RaftMetrics<Types>, number: u64) -> BTreeMap<u64, Progress> {
    let heard = metrics.heartbeat.as_ref();
    let silent = |other: &u64| {
        let heard = heard.and_then(|heard| heard.get(other).copied().flatten());
        heard.map(|heard| ms(heard.elapsed()))
    };
    let others = metrics.replication.iter().flatten().filter(|(other, _)| **other != number);
    others
        .map(|(other, matched)| {
            let matched = matched.map_or(0, |id| id.index);
            (*other, Progress { matched, silent_ms: silent(other) })
        })
        .collect()
}

/// The voter that is furthest, of those that were heard lately.
fn successor(metrics: &RaftMetrics<Types>, number: u64) -> Option<u64> {
    let progress = progress(metrics, number);
    let voters = metrics.membership_config.voter_ids().filter(|voter| *voter != number);
    let known = voters.filter_map(|voter| Some((voter, *progress.get(&voter)?)));
    let lately = ms(super::follow::SILENCE_MAX);
    known
        .max_by_key(|(voter, known)| {
            let alive = known.silent_ms.is_some_and(|silent| silent < lately);
            (alive, known.matched, std::cmp::Reverse(*voter))
        })
        .map(|(voter, _)| voter)
}
