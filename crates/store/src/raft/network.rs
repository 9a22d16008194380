//! Consensus calls other managers: the library's network over a [`Transport`].
//!
//! Appends are pipelined: the next leaves before the last is answered, within a
//! window of calls and bytes. A call that never left says so (unreachable, the
//! library pauses); one that may have arrived is only lost.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use openraft::OptionalSend;
use openraft::base::BoxStream;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::impls::BasicNode;
use openraft::network::v2::RaftNetworkV2;
use openraft::network::{RPCOption, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError,
    StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use prost::Message;

use super::Shared;
use super::types::{LogId, Types, Vote};
use super::wire;
use crate::codec::CodecError;
use crate::snapshot::SnapshotFile;
use crate::transport::{Call, Member, TransportError};

/// Appends under way to one member, and their bytes. More would only queue up in its socket.
const FLIGHTS_MAX: usize = 64;
const FLIGHT_BYTES_MAX: usize = 4 << 20;

/// What refusals of managers that were removed begin with; they learn it so.
pub(crate) const REMOVED: &str = "not one of the managers any more";

/// Makes ways to members.
pub(super) struct Peers(pub(super) Arc<Shared>);

impl RaftNetworkFactory<Types> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        let member = Member { number: target, address: node.addr.clone() };
        Peer { shared: self.0.clone(), member }
    }
}

/// The way to one member.
#[derive(Clone)]
pub(super) struct Peer {
    pub(super) shared: Arc<Shared>,
    pub(super) member: Member,
}

pub(super) type Answered = BoxFuture<'static, Result<Bytes, TransportError>>;

fn unreachable<E: std::error::Error + 'static>(error: &E) -> Unreachable<Types> {
    Unreachable::new(error)
}

fn misunderstood(error: CodecError) -> RPCError<Types> {
    NetworkError::new(&error).into()
}

impl Peer {
    pub(super) fn call(&self, kind: Call, message: &impl Message) -> Answered {
        match &self.shared.transport {
            Some(transport) => transport.call(&self.member, kind, wire::encode(message)),
            None => {
                let (to, why) = (self.member.number, "no transport".to_owned());
                futures::future::ready(Err(TransportError::Unreachable { to, why })).boxed()
            }
        }
    }

    pub(super) fn rpc_error(&self, error: TransportError) -> RPCError<Types> {
        match &error {
            TransportError::Unreachable { .. } => unreachable(&error).into(),
            TransportError::Lost { .. } => NetworkError::new(&error).into(),
            TransportError::Refused { why, .. } => {
                if why.contains(REMOVED) {
                    self.shared.removed.send_replace(true);
                }
                unreachable(&error).into()
            }
        }
    }

    async fn ask<R: Message + Default>(
        &self,
        kind: Call,
        message: &impl Message,
    ) -> Result<R, RPCError<Types>> {
        let answer = self.call(kind, message).await;
        let answer = answer.map_err(|error| self.rpc_error(error))?;
        wire::decode("answer", &answer).map_err(misunderstood)
    }

    fn append(&self, request: AppendEntriesRequest<Types>) -> Flight {
        let previous = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.log_id).or(previous);
        let message = wire::append(request, self.shared.epoch());
        let bytes = message.entries.iter().map(|entry| entry.payload.len()).sum();
        Flight { previous, last, bytes, answer: self.call(Call::Append, &message) }
    }

    fn landed(
        &self,
        flight: (Option<LogId>, Option<LogId>),
        answer: Result<Bytes, TransportError>,
    ) -> Result<StreamAppendResult<Types>, RPCError<Types>> {
        let answer = answer.map_err(|error| self.rpc_error(error))?;
        let wire = wire::decode("answer", &answer).map_err(misunderstood)?;
        wire::appended_from(wire, flight.0, flight.1).map_err(misunderstood)
    }
}

/// An append under way.
struct Flight {
    previous: Option<LogId>,
    last: Option<LogId>,
    bytes: usize,
    answer: Answered,
}

/// Appends one after the other, answers in the same order.
struct Pipeline<S> {
    peer: Peer,
    requests: S,
    ended: bool,
    flights: VecDeque<Flight>,
    bytes: usize,
    /// The last entry that the member said to have.
    acked: Option<LogId>,
}

impl<S: Stream<Item = AppendEntriesRequest<Types>> + Unpin> Stream for Pipeline<S> {
    type Item = Result<StreamAppendResult<Types>, RPCError<Types>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        while !this.ended && this.flights.len() < FLIGHTS_MAX && this.bytes < FLIGHT_BYTES_MAX {
            match this.requests.poll_next_unpin(context) {
                Poll::Ready(Some(request)) => {
                    let flight = this.peer.append(request);
                    this.bytes += flight.bytes;
                    this.flights.push_back(flight);
                }
                Poll::Ready(None) => this.ended = true,
                Poll::Pending => break,
            }
        }
        let Some(first) = this.flights.front_mut() else {
            return if this.ended { Poll::Ready(None) } else { Poll::Pending };
        };
        let Poll::Ready(answer) = first.answer.poll_unpin(context) else { return Poll::Pending };
        let ends = (first.previous, first.last);
        this.bytes -= first.bytes;
        this.flights.pop_front();
        let mut result = this.peer.landed(ends, answer);
        match &result {
            Ok(Ok(last)) => this.acked = this.acked.max(*last),
            // It came before the one that it follows: only the order was lost, not an entry.
            Ok(Err(StreamAppendError::Conflict(at))) if Some(*at) <= this.acked => {
                result = Err(NetworkError::from_string("appends came out of order").into());
            }
            Ok(Err(_)) | Err(_) => {}
        }
        if !matches!(result, Ok(Ok(_))) {
            // What follows one that failed cannot succeed.
            this.ended = true;
            this.flights.clear();
        }
        Poll::Ready(Some(result))
    }
}

impl RaftNetworkV2<Types> for Peer {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let Flight { previous, last, answer, .. } = self.append(request);
        Ok(match self.landed((previous, last), answer.await)? {
            Ok(_) => AppendEntriesResponse::Success,
            Err(StreamAppendError::Conflict(_)) => AppendEntriesResponse::Conflict,
            Err(StreamAppendError::HigherVote(vote)) => AppendEntriesResponse::HigherVote(vote),
        })
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        let pipeline = Pipeline {
            peer: self.clone(),
            requests: input,
            ended: false,
            flights: VecDeque::new(),
            bytes: 0,
            acked: None,
        };
        let stream: BoxStream<'s, _> = Box::pin(pipeline);
        futures::future::ready(Ok(stream)).boxed()
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let message = wire::vote_request(&request, self.shared.epoch());
        wire::voted_from(self.ask(Call::Vote, &message).await?).map_err(misunderstood)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let message = wire::vote_request(&request, self.shared.epoch());
        wire::voted_from(self.ask(Call::PreVote, &message).await?).map_err(misunderstood)
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let message = wire::transfer(&request, self.shared.epoch());
        let answer = self.call(Call::Transfer, &message).await;
        answer.map(|_| Ok(())).map_err(|error| self.rpc_error(error))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<Types, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        super::send::send(self, vote, snapshot, cancel).await
    }
}
