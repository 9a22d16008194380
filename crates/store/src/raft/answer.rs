//! What other managers ask of this one.
//!
//! Refused before consensus sees it: managers of another recovery epoch, and
//! those that were removed. A number is given once, so one that was given and
//! belongs to nobody any more is of a removed manager, however far behind this
//! one may be. Unknown newer numbers are listened to: this member may not have
//! heard yet who joined.

use bytes::Bytes;
use openraft::ReadPolicy;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::AppendEntriesResponse;

use super::Node;
use super::network::REMOVED;
use super::wire::WireVoteRequest;
use super::wire::{self, WireAppend, WirePart, WireRead, WireReadIndex, WireTransfer};
use crate::metrics::StoreMetrics;
use crate::transport::Call;

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Node {
    /// Answers a call of consensus. The first poll hands it over: calls begun in order stay so.
    pub(crate) async fn answer(
        &self,
        from: u64,
        kind: Call,
        payload: Bytes,
    ) -> Result<Bytes, String> {
        match kind {
            Call::Append => {
                let wire: WireAppend = wire::decode("append", &payload).map_err(text)?;
                self.admit(from, wire.epoch)?;
                let request = wire::append_from(wire).map_err(text)?;
                let response = self.raft.append_entries(request).await.map_err(text)?;
                if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
                    self.shared.contact.touch();
                }
                Ok(wire::encode(&wire::appended(&response)))
            }
            Call::Vote | Call::PreVote => {
                let wire: WireVoteRequest = wire::decode("vote", &payload).map_err(text)?;
                self.admit(from, wire.epoch)?;
                let request = wire::vote_request_from(wire).map_err(text)?;
                let response = match kind {
                    Call::PreVote => self.raft.pre_vote(request).await,
                    _ => self.raft.vote(request).await,
                };
                Ok(wire::encode(&wire::voted(&response.map_err(text)?)))
            }
            Call::Transfer => {
                let wire: WireTransfer = wire::decode("transfer", &payload).map_err(text)?;
                self.admit(from, wire.epoch)?;
                let request = wire::transfer_from(wire).map_err(text)?;
                let response = self.raft.handle_transfer_leader(request).await.map_err(text)?;
                response.map_err(text)?;
                Ok(Bytes::new())
            }
            Call::Snapshot => {
                let part: WirePart = wire::decode("snapshot", &payload).map_err(text)?;
                self.admit(from, part.epoch)?;
                Ok(wire::encode(&self.take_part(part).await?))
            }
            Call::ReadIndex => {
                let wire: WireRead = wire::decode("read", &payload).map_err(text)?;
                self.admit(from, wire.epoch)?;
                let index = self.read_index().await;
                Ok(wire::encode(&WireReadIndex { index }))
            }
            Call::Propose | Call::Beats => Err("not a call of consensus".to_owned()),
        }
    }

    /// Whether `from` may ask anything.
    pub(crate) fn admit(&self, from: u64, epoch: u64) -> Result<(), String> {
        let refused = self.refusal(from, epoch);
        if refused.is_some() {
            StoreMetrics::count(&self.shared.metrics.refused_calls);
        }
        refused.map_or(Ok(()), Err)
    }

    fn refusal(&self, from: u64, epoch: u64) -> Option<String> {
        let view = self.shared.published.view();
        // Who has nothing yet takes what it is given.
        let cluster = view.cluster()?;
        if epoch != cluster.epoch {
            let mine = cluster.epoch;
            return Some(format!("the cluster was recovered: epoch {mine}, asked in {epoch}"));
        }
        let given = from < cluster.next_number;
        let held = view.node_by_number(from).is_some_and(|node| node.manager);
        if !given || held || self.is_member(from) {
            return None;
        }
        Some(format!("{REMOVED}: manager {from}"))
    }

    fn is_member(&self, number: u64) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_node(&number).is_some()
    }

    /// Another manager said that this one was removed.
    pub(crate) fn was_removed(&self) {
        self.shared.removed.send_replace(true);
    }

    pub(crate) fn read_request(&self) -> Bytes {
        wire::encode(&WireRead { epoch: self.shared.epoch() })
    }

    pub(crate) fn read_answer(answer: &[u8]) -> Option<u64> {
        wire::decode::<WireReadIndex>("read", answer).ok()?.index
    }

    /// Up to where the log must be applied for a read to see everything that was acknowledged, and
    /// what the leader has decided and not been able to commit yet; `None` when this member does
    /// not lead a majority.
    pub(crate) async fn read_index(&self) -> Option<u64> {
        let linearizer = self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await.ok()?;
        let begun = self.shared.log.range().1.map(|id| id.index);
        Some(linearizer.read_log_id().index().max(begun.unwrap_or(0)))
    }
}
