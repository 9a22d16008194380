//! A snapshot that the leader sends: put to disk part by part, then into use.
//!
//! One at a time; a new one takes the place of one under way. A transfer that
//! its sender aborts, or that nothing more comes of, leaves nothing behind. What
//! is received is not trusted for having arrived: it is decoded and its checksum
//! compared before it replaces anything.

use std::sync::Arc;
use std::time::Duration;

use openraft::raft::SnapshotResponse;
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Node;
use super::machine::beside;
use super::types::{Types, Vote, position_from};
use super::wire::{self, WirePart, WireVoteOnly};
use crate::metrics::StoreMetrics;
use crate::snapshot::{Draft, SnapshotError, SnapshotFile};

/// A transfer is given up when nothing came for so long.
const QUIET_MAX: Duration = Duration::from_secs(30);

/// A transfer under way.
struct Incoming {
    transfer: u64,
    next: u64,
    draft: Draft,
    touched: Instant,
}

/// The place for one transfer.
#[derive(Default)]
pub(super) struct Reception {
    incoming: Mutex<Option<Incoming>>,
}

impl Reception {
    /// Removes a transfer that went quiet; ends with it.
    async fn watch(self: Arc<Self>, transfer: u64) {
        loop {
            let quiet_at = {
                let mut incoming = self.incoming.lock().await;
                let Some(found) = incoming.as_ref().filter(|i| i.transfer == transfer) else {
                    return;
                };
                let quiet_at = found.touched + QUIET_MAX;
                if Instant::now() >= quiet_at {
                    tracing::warn!("snapshot: nothing more comes, given up");
                    *incoming = None;
                    return;
                }
                quiet_at
            };
            tokio::time::sleep_until(quiet_at).await;
        }
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Node {
    /// Takes a part; answers with this member's vote.
    pub(super) async fn take_part(&self, part: WirePart) -> Result<WireVoteOnly, String> {
        let vote = wire::vote_from(part.vote).map_err(text)?;
        let mine = self.vote().await?;
        // A leader of before: it steps down when it hears of this vote.
        if mine > vote {
            return Ok(answer(&mine));
        }
        let mut incoming = self.shared.reception.incoming.lock().await;
        if part.abort {
            incoming.take_if(|incoming| incoming.transfer == part.transfer);
            return Ok(answer(&mine));
        }
        let position = part.position.ok_or("a part of a snapshot without its place")?;
        if part.part == 0 {
            // Gone before the new one begins: both may have the same name.
            *incoming = None;
            let draft = self.shared.snapshots.receive(&position).map_err(text)?;
            let touched = Instant::now();
            *incoming = Some(Incoming { transfer: part.transfer, next: 0, draft, touched });
            tokio::spawn(self.shared.reception.clone().watch(part.transfer));
        }
        let fits = |incoming: &mut Incoming| {
            incoming.transfer == part.transfer && incoming.next == part.part
        };
        let taken = incoming.take_if(fits).ok_or("a part of another transfer")?;
        let (chunks, last) = (part.chunks, part.last);
        let _drafting = self.shared.drafting.lock().await;
        let written = beside(self.shared.inline, move || write(taken.draft, chunks, last)).await;
        match written.map_err(text)?.map_err(text)? {
            Written::Part(draft) => {
                let (transfer, touched) = (part.transfer, Instant::now());
                *incoming = Some(Incoming { transfer, next: part.part + 1, draft, touched });
                Ok(answer(&mine))
            }
            Written::Whole(file) => {
                drop(incoming);
                StoreMetrics::count(&self.shared.metrics.snapshots_received);
                self.install(vote, position, file).await
            }
        }
    }

    async fn install(
        &self,
        vote: Vote,
        position: crate::codec::WirePosition,
        file: SnapshotFile,
    ) -> Result<WireVoteOnly, String> {
        let (last_log_id, last_membership) = position_from(position.clone()).map_err(text)?;
        let meta = SnapshotMetaOf::<Types> { last_log_id, last_membership };
        let (snapshots, name) = (self.shared.snapshots.clone(), file.name.clone());
        // Reading it proves that it is whole. The library would take a failure for the end.
        let loaded = beside(self.shared.inline, move || snapshots.read(&name)).await;
        let loaded = match loaded.map_err(text)? {
            Ok(loaded) => loaded,
            Err(error) => {
                self.shared.snapshots.set_aside(&error);
                return Err(text(error));
            }
        };
        if loaded.position != position {
            return Err("a snapshot that stands elsewhere than its parts said".to_owned());
        }
        self.shared.snapshots.put_ready(loaded);
        tracing::info!(name = file.name, bytes = file.bytes, "snapshot: received");
        let snapshot = SnapshotOf::<Types, SnapshotFile> { meta, snapshot: file };
        let installed = self.raft.install_full_snapshot(vote, snapshot).await;
        let SnapshotResponse { vote } = installed.map_err(text)?;
        self.shared.contact.touch();
        Ok(answer(&vote))
    }

    async fn vote(&self) -> Result<Vote, String> {
        self.raft.with_raft_state(|state| *state.vote_ref()).await.map_err(text)
    }
}

fn answer(vote: &Vote) -> WireVoteOnly {
    WireVoteOnly { vote: Some(wire::wire_vote(vote)) }
}

enum Written {
    Part(Draft),
    Whole(SnapshotFile),
}

fn write(mut draft: Draft, chunks: Vec<Vec<u8>>, last: bool) -> Result<Written, SnapshotError> {
    let count = chunks.len();
    for (at, packed) in chunks.into_iter().enumerate() {
        draft.chunk(&packed, last && at + 1 == count)?;
    }
    if last { draft.finish().map(Written::Whole) } else { Ok(Written::Part(draft)) }
}
