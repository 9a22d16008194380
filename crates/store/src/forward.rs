//! Proposals find the leader, wherever they are made.
//!
//! A manager that does not lead sends the transaction on, and answers once its
//! own view has it: a caller reads what it wrote. What certainly was not applied
//! is tried again, with whoever leads then; what may have been, only when it
//! carries a request id. All of it ends within [`TOTAL`].

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::time::Instant;
use warren_proto::v1;
use warren_state::change::Transaction;

use crate::Inner;
use crate::metrics::StoreMetrics;
use crate::propose::{Proposal, ProposeError};
use crate::raft::Node;
use crate::refusal::{WireProposed, proposed, proposed_from};
use crate::transport::{Call, Member, TransportError};

/// From the call to its answer, whatever happens: a person waits.
pub(crate) const TOTAL: Duration = Duration::from_millis(3750);
/// What the leader takes of it: its answer must still be heard.
const LEADER_TOTAL: Duration = Duration::from_millis(3250);
/// Before another attempt when nothing is known to have changed.
const PAUSE: Duration = Duration::from_millis(25);
/// For one manager to say whether this one is still wanted.
const ASK_MAX: Duration = Duration::from_millis(500);

#[derive(Clone, PartialEq, Message)]
struct WireProposal {
    #[prost(uint64, tag = "1")]
    epoch: u64,
    #[prost(message, optional, tag = "2")]
    transaction: Option<v1::Transaction>,
}

impl Inner {
    /// Proposes wherever the leader is.
    pub(crate) async fn propose(
        &self,
        transaction: Transaction,
        limit: Duration,
    ) -> Result<u64, ProposeError> {
        StoreMetrics::count(&self.metrics.proposals);
        let deadline = Instant::now() + limit;
        let repeatable = transaction.request.is_some();
        // Whether an attempt that failed may have been carried out.
        let mut unsure = false;
        loop {
            let leader = *self.signals.leader.borrow();
            let result = match leader {
                Some(leader) => {
                    let attempt = self.attempt(leader, &transaction, deadline);
                    let mut now = self.signals.leader.clone();
                    // Another leads: who was asked may never answer, and asking twice does no harm.
                    let replaced = now.wait_for(|now| now.is_some_and(|now| now != leader));
                    tokio::select! {
                        biased;
                        result = attempt => result,
                        _ = replaced, if repeatable => Err(ProposeError::Unknown),
                    }
                }
                None => Err(ProposeError::NoQuorum),
            };
            let failed = match result {
                Ok(revision) => return Ok(revision),
                Err(error) => error,
            };
            match failed {
                ProposeError::NotLeader { .. } | ProposeError::NoQuorum => {}
                ProposeError::Unknown if repeatable => unsure = true,
                error => return Err(error),
            }
            if self.proposals.is_closed() {
                return Err(if unsure { ProposeError::Unknown } else { ProposeError::stopped() });
            }
            if !self.wait_for_leader(leader, deadline).await {
                return Err(if unsure { ProposeError::Unknown } else { ProposeError::NoQuorum });
            }
        }
    }

    async fn attempt(
        &self,
        leader: u64,
        transaction: &Transaction,
        deadline: Instant,
    ) -> Result<u64, ProposeError> {
        if leader == self.number {
            return self.propose_here(transaction, deadline).await;
        }
        self.propose_there(leader, transaction, deadline).await
    }

    /// Waits until another leader is known, or a little when the same one may take it yet. False
    /// when time is up.
    async fn wait_for_leader(&self, tried: Option<u64>, deadline: Instant) -> bool {
        let mut leader = self.signals.leader.clone();
        let other = leader.wait_for(|now| now.is_some() && *now != tried);
        if tried.is_some() {
            let again_at = (Instant::now() + PAUSE).min(deadline);
            // Either way it is tried again.
            let _ = tokio::time::timeout_at(again_at, other).await;
        } else if !matches!(tokio::time::timeout_at(deadline, other).await, Ok(Ok(_))) {
            return false;
        }
        Instant::now() < deadline
    }

    /// Proposes as the leader.
    pub(crate) async fn propose_here(
        &self,
        transaction: &Transaction,
        deadline: Instant,
    ) -> Result<u64, ProposeError> {
        self.give(Proposal::new(transaction)?, deadline).await
    }

    async fn give(
        &self,
        (proposal, waiting): (Proposal, crate::propose::Waiting),
        deadline: Instant,
    ) -> Result<u64, ProposeError> {
        match tokio::time::timeout_at(deadline, self.proposals.send(proposal)).await {
            Ok(Ok(())) => waiting.answer(deadline).await,
            // The store is ending; another manager will lead.
            Ok(Err(_)) => Err(ProposeError::NotLeader { leader: None }),
            Err(_) => Err(ProposeError::NoQuorum),
        }
    }

    async fn propose_there(
        &self,
        leader: u64,
        transaction: &Transaction,
        deadline: Instant,
    ) -> Result<u64, ProposeError> {
        // Refuses what is too large before it goes anywhere.
        let transaction = Proposal::check(transaction)?;
        let message = WireProposal { epoch: self.epoch(), transaction: Some(transaction) };
        StoreMetrics::count(&self.metrics.forwarded);
        let payload = message.encode_to_vec().into();
        let called = self.call(leader, Call::Propose, payload);
        let Ok(answer) = tokio::time::timeout_at(deadline, called).await else {
            return Err(ProposeError::Unknown);
        };
        let answer = match answer {
            Ok(answer) => answer,
            // Said by a leader that did not take it.
            Err(TransportError::Unreachable { .. } | TransportError::Refused { .. }) => {
                return Err(ProposeError::NotLeader { leader: None });
            }
            Err(TransportError::Lost { .. }) => return Err(ProposeError::Unknown),
        };
        let decoded = WireProposed::decode(answer).ok().map(proposed_from);
        let Some(Ok(result)) = decoded else { return Err(ProposeError::Unknown) };
        let revision = result?;
        let mut watch = self.published.watch();
        let seen = watch.wait_for(|seen| *seen >= revision);
        match tokio::time::timeout_at(deadline, seen).await {
            Ok(Ok(_)) => Ok(revision),
            Ok(Err(_)) => Err(ProposeError::stopped()),
            Err(_) => Err(ProposeError::Unknown),
        }
    }

    /// Waits until the view has everything that was acknowledged before.
    pub(crate) async fn read_barrier(&self) -> Result<(), ProposeError> {
        let deadline = Instant::now() + TOTAL;
        loop {
            let leader = *self.signals.leader.borrow();
            let index = match leader {
                Some(leader) if leader == self.number => {
                    tokio::time::timeout_at(deadline, self.node.read_index()).await.ok().flatten()
                }
                Some(leader) => {
                    let asked = self.call(leader, Call::ReadIndex, self.node.read_request());
                    let answer = tokio::time::timeout_at(deadline, asked).await;
                    answer.ok().and_then(Result::ok).and_then(|answer| Node::read_answer(&answer))
                }
                None => None,
            };
            if let Some(index) = index {
                let applied = self.node.wait_applied(index);
                return match tokio::time::timeout_at(deadline, applied).await {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(ProposeError::stopped()),
                    Err(_) => Err(ProposeError::NoQuorum),
                };
            }
            if self.proposals.is_closed() {
                return Err(ProposeError::stopped());
            }
            if !self.wait_for_leader(leader, deadline).await {
                return Err(ProposeError::NoQuorum);
            }
        }
    }

    /// Answers a manager that forwards.
    pub(crate) async fn answer_proposal(&self, from: u64, payload: Bytes) -> Result<Bytes, String> {
        let deadline = Instant::now() + LEADER_TOTAL;
        let wire = WireProposal::decode(payload).map_err(|error| error.to_string())?;
        self.node.admit(from, wire.epoch)?;
        let transaction = wire.transaction.ok_or("a proposal without a transaction")?;
        let result = if *self.signals.leader.borrow() == Some(self.number) {
            match Proposal::from_wire(transaction) {
                Ok(proposal) => self.give(proposal, deadline).await,
                Err(error) => Err(error),
            }
        } else {
            // Not sent on: two managers could send it to each other.
            Err(ProposeError::NotLeader { leader: *self.signals.leader.borrow() })
        };
        Ok(proposed(&result).encode_to_vec().into())
    }

    /// Calls a member by its number.
    pub(crate) async fn call(
        &self,
        to: u64,
        kind: Call,
        payload: Bytes,
    ) -> Result<Bytes, TransportError> {
        let unreachable = |why: &str| TransportError::Unreachable { to, why: why.to_owned() };
        let transport = self.transport.as_ref().ok_or_else(|| unreachable("no transport"))?;
        let address = self.node.address_of(to).ok_or_else(|| unreachable("not a member"))?;
        transport.call(&Member { number: to, address }, kind, payload).await
    }

    /// Asks the members that this one knows of whether it still is one of them. A learner that was
    /// removed hears of it no other way: it never stands for election.
    pub(crate) async fn ask_members(&self) {
        let status = self.node.status(None);
        let others = status.voters.keys().chain(status.learners.keys());
        for other in others.copied().filter(|other| *other != self.number) {
            let asked = self.call(other, Call::ReadIndex, self.node.read_request());
            let answer = tokio::time::timeout(ASK_MAX, asked).await;
            let Ok(Err(TransportError::Refused { why, .. })) = answer else { continue };
            if why.contains(crate::raft::REMOVED) {
                self.node.was_removed();
                return;
            }
        }
    }

    fn epoch(&self) -> u64 {
        self.published.view().cluster().map_or(0, |cluster| cluster.epoch)
    }
}
