//! Messages between managers as they travel, and the library's types.
//!
//! Private to this crate, like everything of consensus. Each request says the
//! recovery epoch of its sender: after a recovery, managers of before are not
//! listened to. Whatever comes in is checked here; nothing is trusted to have a
//! field.

use bytes::Bytes;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, VoteRequest, VoteResponse,
};
use prost::Message;

use super::types::{
    Entry, LogId, Types, Vote, entry_from, log_id, our_entry, our_log_id, our_vote, vote,
};
use crate::codec::{CodecError, WireLogId, WirePosition};
use crate::log;

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct WireVote {
    #[prost(uint64, tag = "1")]
    pub(super) term: u64,
    #[prost(uint64, tag = "2")]
    pub(super) node: u64,
    #[prost(bool, tag = "3")]
    pub(super) committed: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct WireEntry {
    #[prost(uint64, tag = "1")]
    pub(super) term: u64,
    #[prost(uint64, tag = "2")]
    pub(super) node: u64,
    #[prost(uint64, tag = "3")]
    pub(super) index: u64,
    #[prost(uint32, tag = "4")]
    pub(super) kind: u32,
    /// Decoded from a slice it is a copy: it lives in the log's memory, the message does not.
    #[prost(bytes = "bytes", tag = "5")]
    pub(super) payload: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct WireAppend {
    #[prost(uint64, tag = "1")]
    pub(super) epoch: u64,
    #[prost(message, optional, tag = "2")]
    pub(super) vote: Option<WireVote>,
    #[prost(message, optional, tag = "3")]
    pub(super) previous: Option<WireLogId>,
    #[prost(message, optional, tag = "4")]
    pub(super) committed: Option<WireLogId>,
    #[prost(message, repeated, tag = "5")]
    pub(super) entries: Vec<WireEntry>,
}

/// Both absent: done.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct WireAppended {
    /// The log does not have the entry before.
    #[prost(bool, tag = "1")]
    pub(super) conflict: bool,
    #[prost(message, optional, tag = "2")]
    pub(super) higher: Option<WireVote>,
}

/// A vote is asked for, truly or to see whether it would be granted.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct WireVoteRequest {
    #[prost(uint64, tag = "1")]
    pub(super) epoch: u64,
    #[prost(message, optional, tag = "2")]
    pub(super) vote: Option<WireVote>,
    #[prost(message, optional, tag = "3")]
    pub(super) last: Option<WireLogId>,
    #[prost(bool, tag = "4")]
    pub(super) transfer: bool,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct WireVoted {
    #[prost(message, optional, tag = "1")]
    pub(super) vote: Option<WireVote>,
    #[prost(bool, tag = "2")]
    pub(super) granted: bool,
    #[prost(message, optional, tag = "3")]
    pub(super) last: Option<WireLogId>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct WireTransfer {
    #[prost(uint64, tag = "1")]
    pub(super) epoch: u64,
    #[prost(message, optional, tag = "2")]
    pub(super) from: Option<WireVote>,
    #[prost(uint64, tag = "3")]
    pub(super) to: u64,
    #[prost(message, optional, tag = "4")]
    pub(super) last: Option<WireLogId>,
}

/// A part of a snapshot: chunks of its text, packed and not sealed.
#[derive(Clone, PartialEq, Message)]
pub(super) struct WirePart {
    #[prost(uint64, tag = "1")]
    pub(super) epoch: u64,
    #[prost(message, optional, tag = "2")]
    pub(super) vote: Option<WireVote>,
    #[prost(message, optional, tag = "3")]
    pub(super) position: Option<WirePosition>,
    /// Of this transfer; drawn by the sender.
    #[prost(uint64, tag = "4")]
    pub(super) transfer: u64,
    /// From 0.
    #[prost(uint64, tag = "5")]
    pub(super) part: u64,
    #[prost(bytes = "vec", repeated, tag = "6")]
    pub(super) chunks: Vec<Vec<u8>>,
    #[prost(bool, tag = "7")]
    pub(super) last: bool,
    /// The sender gives up: what came so far is of no use.
    #[prost(bool, tag = "8")]
    pub(super) abort: bool,
}

/// The receiver's vote, after each part: a higher one ends the transfer.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct WireVoteOnly {
    #[prost(message, optional, tag = "1")]
    pub(super) vote: Option<WireVote>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct WireRead {
    #[prost(uint64, tag = "1")]
    pub(super) epoch: u64,
}

/// Up to where the log must be applied; absent: not the leader, or without a majority.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct WireReadIndex {
    #[prost(uint64, optional, tag = "1")]
    pub(super) index: Option<u64>,
}

pub(super) fn decode<M: Message + Default>(
    what: &'static str,
    payload: &[u8],
) -> Result<M, CodecError> {
    M::decode(payload).map_err(|source| CodecError::Bytes { what, source })
}

pub(super) fn encode(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

fn absent(what: &'static str) -> CodecError {
    CodecError::Field { what, problem: "it is missing".to_owned() }
}

pub(super) fn wire_vote(vote: &Vote) -> WireVote {
    let log::Vote { term, node, committed } = our_vote(vote);
    WireVote { term, node, committed }
}

pub(super) fn vote_from(wire: Option<WireVote>) -> Result<Vote, CodecError> {
    let WireVote { term, node, committed } = wire.ok_or_else(|| absent("vote"))?;
    Ok(vote(log::Vote { term, node, committed }))
}

fn wire_id(id: &LogId) -> WireLogId {
    let log::LogId { term, node, index } = our_log_id(id);
    WireLogId { term, node, index }
}

fn id_from(wire: WireLogId) -> LogId {
    log_id(log::LogId { term: wire.term, node: wire.node, index: wire.index })
}

pub(super) fn append(request: AppendEntriesRequest<Types>, epoch: u64) -> WireAppend {
    let entries = request.entries.into_iter().map(|entry| {
        let log::Entry { id, kind, payload } = our_entry(entry);
        let (term, node, index) = (id.term, id.node, id.index);
        WireEntry { term, node, index, kind: u32::from(kind.number()), payload }
    });
    WireAppend {
        epoch,
        vote: Some(wire_vote(&request.vote)),
        previous: request.prev_log_id.as_ref().map(wire_id),
        committed: request.leader_commit.as_ref().map(wire_id),
        entries: entries.collect(),
    }
}

pub(super) fn append_from(wire: WireAppend) -> Result<AppendEntriesRequest<Types>, CodecError> {
    let previous = wire.previous.map(id_from);
    let first = previous.map_or(0, |id| id.index.saturating_add(1));
    let mut entries = Vec::with_capacity(wire.entries.len());
    for (next, entry) in (first..).zip(wire.entries) {
        let entry = one_entry(entry)?;
        if entry.log_id.index != next {
            let problem = format!("entry {} instead of {next}", entry.log_id.index);
            return Err(CodecError::Field { what: "entries", problem });
        }
        entries.push(entry);
    }
    Ok(AppendEntriesRequest {
        vote: vote_from(wire.vote)?,
        prev_log_id: previous,
        entries,
        leader_commit: wire.committed.map(id_from),
    })
}

fn one_entry(wire: WireEntry) -> Result<Entry, CodecError> {
    let WireEntry { term, node, index, kind, payload } = wire;
    let kind = u8::try_from(kind).ok().and_then(log::EntryKind::from_number);
    let kind = kind.ok_or_else(|| CodecError::Field {
        what: "entry",
        problem: "its kind is of a newer version".to_owned(),
    })?;
    if payload.len() > log::PAYLOAD_MAX {
        let problem = format!("{} bytes", payload.len());
        return Err(CodecError::Field { what: "entry", problem });
    }
    let id = log::LogId { term, node, index };
    entry_from(log::Entry { id, kind, payload })
}

pub(super) fn appended(response: &AppendEntriesResponse<Types>) -> WireAppended {
    match response {
        AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_) => {
            WireAppended::default()
        }
        AppendEntriesResponse::Conflict => WireAppended { conflict: true, higher: None },
        AppendEntriesResponse::HigherVote(vote) => {
            WireAppended { conflict: false, higher: Some(wire_vote(vote)) }
        }
    }
}

/// What a request with these ends came to.
pub(super) fn appended_from(
    wire: WireAppended,
    previous: Option<LogId>,
    last: Option<LogId>,
) -> Result<StreamAppendResult<Types>, CodecError> {
    if let Some(higher) = wire.higher {
        return Ok(Err(StreamAppendError::HigherVote(vote_from(Some(higher))?)));
    }
    if !wire.conflict {
        return Ok(Ok(last));
    }
    // Nothing cannot conflict with anything.
    let previous = previous.ok_or_else(|| absent("entry in conflict"))?;
    Ok(Err(StreamAppendError::Conflict(previous)))
}

pub(super) fn vote_request(request: &VoteRequest<Types>, epoch: u64) -> WireVoteRequest {
    WireVoteRequest {
        epoch,
        vote: Some(wire_vote(&request.vote)),
        last: request.last_log_id.as_ref().map(wire_id),
        transfer: request.leadership_transfer,
    }
}

pub(super) fn vote_request_from(wire: WireVoteRequest) -> Result<VoteRequest<Types>, CodecError> {
    Ok(VoteRequest {
        vote: vote_from(wire.vote)?,
        last_log_id: wire.last.map(id_from),
        leadership_transfer: wire.transfer,
    })
}

pub(super) fn voted(response: &VoteResponse<Types>) -> WireVoted {
    WireVoted {
        vote: Some(wire_vote(&response.vote)),
        granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(wire_id),
    }
}

pub(super) fn voted_from(wire: WireVoted) -> Result<VoteResponse<Types>, CodecError> {
    Ok(VoteResponse {
        vote: vote_from(wire.vote)?,
        vote_granted: wire.granted,
        last_log_id: wire.last.map(id_from),
    })
}

pub(super) fn transfer(request: &TransferLeaderRequest<Types>, epoch: u64) -> WireTransfer {
    WireTransfer {
        epoch,
        from: Some(wire_vote(request.from_leader())),
        to: *request.to_node_id(),
        last: request.last_log_id().map(wire_id),
    }
}

pub(super) fn transfer_from(
    wire: WireTransfer,
) -> Result<TransferLeaderRequest<Types>, CodecError> {
    let from = vote_from(wire.from)?;
    Ok(TransferLeaderRequest::new(from, wire.to, wire.last.map(id_from)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::log::EntryKind;

    fn id(index: u64) -> LogId {
        log_id(log::LogId { term: 3, node: 1, index })
    }

    fn request() -> AppendEntriesRequest<Types> {
        let entries = (5..8).map(|index| {
            let id = log::LogId { term: 3, node: 1, index };
            let payload = Bytes::from(vec![u8::try_from(index).unwrap(); 9]);
            entry_from(log::Entry { id, kind: EntryKind::Transactions, payload }).unwrap()
        });
        AppendEntriesRequest {
            vote: vote(log::Vote { term: 3, node: 1, committed: true }),
            prev_log_id: Some(id(4)),
            entries: entries.collect(),
            leader_commit: Some(id(2)),
        }
    }

    #[test]
    fn appends_come_back() {
        let wire = append(request(), 4);
        let bytes = encode(&wire);
        let back: WireAppend = decode("append", &bytes).unwrap();
        assert_eq!(back, wire);
        let back = append_from(back).unwrap();
        assert_eq!(append(back, 4), wire);
    }

    #[test]
    fn appends_are_checked() {
        let check = |change: &dyn Fn(&mut WireAppend), expected: &str| {
            let mut wire = append(request(), 0);
            change(&mut wire);
            let error = append_from(wire).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(&|wire| wire.vote = None, "vote: it is missing");
        check(&|wire| wire.entries[1].index = 9, "entry 9 instead of 6");
        check(&|wire| drop(wire.entries.remove(0)), "entry 6 instead of 5");
        check(&|wire| wire.entries[0].kind = 300, "newer version");
        check(&|wire| wire.entries[0].payload = vec![0; log::PAYLOAD_MAX + 1].into(), "bytes");
    }

    #[test]
    fn answers_come_back() {
        let last = Some(id(7));
        let check = |response: AppendEntriesResponse<Types>, expected| {
            let back = appended_from(appended(&response), Some(id(4)), last).unwrap();
            assert_eq!(back, expected);
        };
        let higher = vote(log::Vote { term: 9, node: 2, committed: false });
        check(AppendEntriesResponse::Success, Ok(last));
        check(AppendEntriesResponse::Conflict, Err(StreamAppendError::Conflict(id(4))));
        check(
            AppendEntriesResponse::HigherVote(higher),
            Err(StreamAppendError::HigherVote(higher)),
        );
        let nothing = WireAppended { conflict: true, higher: None };
        assert!(appended_from(nothing, None, last).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<WireAppend>("x", &bytes).map(append_from);
            let _ = decode::<WireVoteRequest>("x", &bytes).map(vote_request_from);
            let _ = decode::<WireVoted>("x", &bytes).map(voted_from);
            let _ = decode::<WireTransfer>("x", &bytes).map(transfer_from);
            let _ = decode::<WirePart>("x", &bytes);
        }
    }
}
