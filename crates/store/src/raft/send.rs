//! A snapshot on its way to a member that is too far behind for the log.
//!
//! Parts of about a megabyte, one after the other, each answered: a slow
//! receiver slows this down and nothing else. Reading and opening the file is
//! done beside the thread of consensus.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;

use futures::future::{Either, select};
use openraft::errors::{NetworkError, ReplicationClosed, StreamingError};
use openraft::raft::SnapshotResponse;
use openraft::type_config::alias::SnapshotOf;
use tokio::sync::Mutex;

use super::machine::beside;
use super::network::Peer;
use super::types::{Types, Vote, position};
use super::wire::{self, WirePart, WireVoteOnly};
use crate::metrics::StoreMetrics;
use crate::snapshot::text::ChunkSource;
use crate::snapshot::{SealedReader, SnapshotError, SnapshotFile};
use crate::transport::Call;

/// Of a part's chunks; the last one may go over it.
const PART_BYTES: usize = 1 << 20;

/// Chunks of the next part, and whether they are the last.
type Part = (Vec<Vec<u8>>, bool);

fn read_part(reader: &mut SealedReader) -> Result<Part, SnapshotError> {
    let (mut chunks, mut bytes) = (Vec::new(), 0);
    while bytes < PART_BYTES {
        let Some((packed, last)) = reader.chunk()? else { break };
        bytes += packed.len();
        chunks.push(packed);
        if last {
            return Ok((chunks, true));
        }
    }
    Ok((chunks, false))
}

pub(super) async fn send(
    peer: &Peer,
    vote: Vote,
    snapshot: SnapshotOf<Types, SnapshotFile>,
    cancel: impl Future<Output = ReplicationClosed>,
) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
    let transfer = peer.shared.rng.next_u64();
    let sent = match select(pin!(parts(peer, vote, snapshot, transfer)), pin!(cancel)).await {
        Either::Left((sent, _)) => sent,
        Either::Right((closed, _)) => Err(StreamingError::Closed(closed)),
    };
    match &sent {
        Ok(_) => StoreMetrics::count(&peer.shared.metrics.snapshots_sent),
        Err(error) => {
            tracing::warn!(to = peer.member.number, %error, "snapshot: not sent");
            let part = WirePart { abort: true, transfer, ..part(peer, vote) };
            // Best effort: the receiver gives up by itself as well.
            drop(peer.call(Call::Snapshot, &part));
        }
    }
    sent
}

fn part(peer: &Peer, vote: Vote) -> WirePart {
    let (epoch, vote) = (peer.shared.epoch(), Some(wire::wire_vote(&vote)));
    WirePart { epoch, vote, ..WirePart::default() }
}

async fn parts(
    peer: &Peer,
    vote: Vote,
    snapshot: SnapshotOf<Types, SnapshotFile>,
    transfer: u64,
) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
    let shared = &peer.shared;
    let broken = |error: &SnapshotError| NetworkError::new(error);
    let disk = |error: io::Error| NetworkError::new(&error);
    let position = position(snapshot.meta.last_log_id.as_ref(), &snapshot.meta.last_membership);
    let (snapshots, name) = (shared.snapshots.clone(), snapshot.snapshot.name);
    tracing::info!(to = peer.member.number, name, "snapshot: sending");
    let reader = beside(shared.inline, move || snapshots.chunks(&name)).await.map_err(disk)?;
    let reader = Arc::new(Mutex::new(reader.map_err(|error| broken(&error))?));
    for number in 0.. {
        let mut held = reader.clone().lock_owned().await;
        let read = beside(shared.inline, move || read_part(&mut held)).await.map_err(disk)?;
        let (chunks, last) = read.map_err(|error| broken(&error))?;
        let position = Some(position.clone());
        let part = WirePart { position, transfer, part: number, chunks, last, ..part(peer, vote) };
        let answer = peer.call(Call::Snapshot, &part).await;
        let answer = answer.map_err(|error| peer.rpc_error(error))?;
        let theirs = wire::decode::<WireVoteOnly>("answer", &answer)
            .and_then(|wire| wire::vote_from(wire.vote));
        let theirs = theirs.map_err(|error| NetworkError::new(&error))?;
        if last || theirs > vote {
            return Ok(SnapshotResponse::new(theirs));
        }
    }
    unreachable!("parts are counted without end")
}
