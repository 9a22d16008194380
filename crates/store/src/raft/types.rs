//! The library's types, filled in with ours, and the ways between.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use openraft::impls::{BasicNode, BoxedErrorSource, InlineBatch, leader_id_adv};
use openraft::raft::responder::Responder;
use openraft::type_config::alias::{LogIdOf, StoredMembershipOf, VoteOf};
use openraft::{EntryPayload, Membership, OptionalSend, RaftTypeConfig};
use warren_state::change::Outcome;

use crate::codec::{
    self, CodecError, WireLogId, WireMember, WireMembership, WirePosition, WireVoters,
};
use crate::log;

/// An encoded entry: decoded when it is applied, on every node alike.
#[derive(Clone, PartialEq)]
pub(crate) struct Command(pub(super) Bytes);

/// What became of each transaction of an entry.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outcomes(pub(super) Vec<Outcome>);

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Outcomes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} outcomes", self.0.len())
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Types;

impl RaftTypeConfig for Types {
    type D = Command;
    type R = Outcomes;
    type NodeId = u64;
    type Node = BasicNode;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = EntryPayload<Command, u64, BasicNode>;
    type Entry = openraft::Entry<LeaderId, Self::Payload>;
    type AsyncRuntime = super::runtime::Runtime;
    type Responder<T>
        = Answer<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = BoxedErrorSource;
}

/// A leadership is a term and a member: in one term a candidate with a higher number may follow
/// one with a lower, so the term alone names no leader.
pub(super) type LeaderId = leader_id_adv::LeaderId<u64, u64>;
pub(super) type LogId = LogIdOf<Types>;
pub(super) type StoredMembership = StoredMembershipOf<Types>;
pub(super) type Entry = <Types as RaftTypeConfig>::Entry;
pub(super) type Vote = VoteOf<Types>;

/// Calls back in the thread of consensus: no task and no channel in between.
pub(crate) struct Answer<T>(Box<dyn FnOnce(T) + Send>);

impl<T> Answer<T> {
    pub(super) fn new(call: impl FnOnce(T) + Send + 'static) -> Self {
        Self(Box::new(call))
    }
}

impl<T: OptionalSend + 'static> Responder<Types, T> for Answer<T> {
    fn on_complete(self, result: T) {
        (self.0)(result);
    }
}

pub(super) fn log_id(id: log::LogId) -> LogId {
    let leader_id = LeaderId { term: id.term, node_id: id.node };
    LogId { leader_id, index: id.index }
}

pub(super) fn our_log_id(id: &LogId) -> log::LogId {
    log::LogId { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

pub(super) fn vote(vote: log::Vote) -> Vote {
    let leader_id = LeaderId { term: vote.term, node_id: vote.node };
    Vote { leader_id, committed: vote.committed }
}

pub(super) fn our_vote(vote: &Vote) -> log::Vote {
    log::Vote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
}

/// The leadership that a majority granted.
pub(super) fn granted(vote: &Vote) -> Option<LeaderId> {
    vote.committed.then_some(vote.leader_id)
}

fn wire_log_id(id: &LogId) -> WireLogId {
    WireLogId { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

fn from_wire_log_id(id: WireLogId) -> LogId {
    log_id(log::LogId { term: id.term, node: id.node, index: id.index })
}

fn wire_membership(membership: &Membership<u64, BasicNode>) -> WireMembership {
    let voters = membership.get_joint_config().iter();
    let members = membership.nodes();
    WireMembership {
        voters: voters.map(|set| WireVoters { nodes: set.iter().copied().collect() }).collect(),
        members: members
            .map(|(node, known)| WireMember { node: *node, address: known.addr.clone() })
            .collect(),
    }
}

fn membership_from(wire: WireMembership) -> Result<Membership<u64, BasicNode>, CodecError> {
    let voters: Vec<BTreeSet<u64>> =
        wire.voters.into_iter().map(|set| set.nodes.into_iter().collect()).collect();
    let members: BTreeMap<u64, BasicNode> = wire
        .members
        .into_iter()
        .map(|member| (member.node, BasicNode { addr: member.address }))
        .collect();
    if voters.is_empty() && members.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(voters, members)
        .map_err(|error| CodecError::Field { what: "membership", problem: error.to_string() })
}

/// What a snapshot says of its place in the log.
pub(super) fn position(last: Option<&LogId>, membership: &StoredMembership) -> WirePosition {
    WirePosition {
        last: last.map(wire_log_id),
        membership_at: membership.log_id().as_ref().map(wire_log_id),
        membership: Some(wire_membership(membership.membership())),
    }
}

pub(super) fn position_from(
    wire: WirePosition,
) -> Result<(Option<LogId>, StoredMembership), CodecError> {
    let membership = membership_from(wire.membership.unwrap_or_default())?;
    let at = wire.membership_at.map(from_wire_log_id);
    Ok((wire.last.map(from_wire_log_id), StoredMembership::new(at, membership)))
}

/// An entry for the log.
pub(super) fn our_entry(entry: Entry) -> log::Entry {
    let id = our_log_id(&entry.log_id);
    let (kind, payload) = match entry.payload {
        EntryPayload::Blank => (log::EntryKind::Blank, Bytes::new()),
        EntryPayload::Normal(Command(bytes)) => (log::EntryKind::Transactions, bytes),
        EntryPayload::Membership(membership) => {
            let wire = wire_membership(&membership);
            (log::EntryKind::Membership, codec::encode_membership(&wire))
        }
    };
    log::Entry { id, kind, payload }
}

/// An entry from the log.
pub(super) fn entry_from(entry: log::Entry) -> Result<Entry, CodecError> {
    let payload = match entry.kind {
        log::EntryKind::Blank => EntryPayload::Blank,
        log::EntryKind::Transactions => EntryPayload::Normal(Command(entry.payload)),
        log::EntryKind::Membership => {
            let wire = codec::decode_membership(&entry.payload)?;
            EntryPayload::Membership(membership_from(wire)?)
        }
    };
    Ok(Entry { log_id: log_id(entry.id), payload })
}
