//! The state machine: entries in, published state out, snapshots now and then.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{Stream, TryStreamExt};
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::{EntryPayload, OptionalSend};
use tokio::sync::{mpsc, oneshot, watch};
use warren_model::{Event, Time};
use warren_state::State;
use warren_state::change::Outcome;

use super::Parts;
use super::types::{
    Command, LeaderId, LogId, Outcomes, StoredMembership, Types, position, position_from,
};
use crate::codec::{self, CodecError};
use crate::publish::Published;
use crate::snapshot::{SnapshotError, SnapshotFile, Snapshots};

/// Entries applied before readers see them and callers are answered: bounds the wait of the first
/// caller, and how long the thread of consensus is busy without a pause.
const GROUP_ENTRIES: usize = 64;
const GROUP_BYTES: usize = 256 << 10;
/// Log since the last snapshot, as a multiple of its size, that calls for the next one.
const SNAPSHOT_FACTOR: u64 = 2;
/// More log than this takes too long to replay, however large the snapshot.
const SNAPSHOT_LOG_MAX: u64 = 256 << 20;
/// Where little happens, log waits no longer than this for a snapshot (in the time of entries), or
/// the index of its entries would grow for hours.
const SNAPSHOT_AGE_MS: u64 = 180_000;
/// Least log for that: an idle cluster writes nothing, a calm one not twice as much as before.
const SNAPSHOT_AGED_BYTES: u64 = 1 << 20;
/// Each start of the daemon begins a segment: many of them are as good a reason as much log.
const SEGMENTS_MAX: usize = 64;
/// Bytes of an entry beside its payload, about.
const ENTRY_BYTES: u64 = 64;

/// A state to be written as a snapshot, with its place in the log.
pub(super) struct Draft {
    state: State,
    last: Option<LogId>,
    membership: StoredMembership,
    snapshots: Snapshots,
    current: Arc<Mutex<Option<Current>>>,
    inline: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct MachineOptions {
    /// Least log between snapshots.
    pub(crate) snapshot_log_bytes: u64,
    /// Write snapshots on the caller's thread: for simulations.
    pub(crate) inline: bool,
}

/// The newest snapshot and what it stands for.
struct Current {
    last: Option<LogId>,
    membership: StoredMembership,
    file: SnapshotFile,
}

pub(super) struct Machine {
    state: State,
    applied: Option<LogId>,
    membership: StoredMembership,
    published: Arc<Published>,
    snapshots: Snapshots,
    current: Arc<Mutex<Option<Current>>>,
    options: MachineOptions,
    drafts: mpsc::Sender<Draft>,
    applied_by: watch::Sender<Option<LeaderId>>,
    applied_index: watch::Sender<u64>,
    /// Of log since the last snapshot was begun.
    log_bytes: u64,
    /// When that was.
    drafted: Time,
}

/// What was applied last; told after it was published.
pub(super) struct Applied {
    /// The leadership that its entry is of.
    pub(super) by: watch::Receiver<Option<LeaderId>>,
    pub(super) index: watch::Receiver<u64>,
}

/// Entries applied and not published yet.
#[derive(Default)]
struct Group {
    events: Vec<Event>,
    answers: Vec<(Option<ApplyResponder<Types>>, Vec<Outcome>)>,
    bytes: usize,
}

impl Machine {
    pub(super) fn new(
        parts: &Parts,
        drafts: mpsc::Sender<Draft>,
    ) -> Result<(Self, Applied), CodecError> {
        let (applied, membership) = position_from(parts.position.clone())?;
        let (applied_by, by) = watch::channel(None);
        let (applied_index, index) = watch::channel(applied.map_or(0, |id| id.index));
        let current = parts.current.clone().map(|file| Current {
            last: applied,
            membership: membership.clone(),
            file,
        });
        let state = State::clone(&parts.published.view());
        let machine = Self {
            drafted: state.time(),
            state,
            applied,
            membership,
            published: parts.published.clone(),
            snapshots: parts.snapshots.clone(),
            current: Arc::new(Mutex::new(current)),
            options: parts.options,
            drafts,
            applied_by,
            applied_index,
            log_bytes: if parts.log.segments() > SEGMENTS_MAX { SNAPSHOT_LOG_MAX } else { 0 },
        };
        Ok((machine, Applied { by, index }))
    }

    fn apply_one(&mut self, id: LogId, command: &Command, group: &mut Group) -> io::Result<()> {
        let decoded = codec::decode_entry(&command.0);
        let (time, transactions) = decoded.map_err(|error| {
            // Skipping it would make this replica another than the others.
            tracing::error!(entry = id.index, %error, "state: an entry cannot be understood");
            io::Error::other(error)
        })?;
        let outcomes = self.state.apply(time, &transactions, &mut group.events);
        group.bytes += command.0.len();
        self.log_bytes += command.0.len() as u64 + ENTRY_BYTES;
        if let Some((_, answer)) = group.answers.last_mut() {
            *answer = outcomes;
        }
        Ok(())
    }

    fn finish(&mut self, group: &mut Group) {
        let group = std::mem::take(group);
        self.published.publish(self.state.clone(), group.events);
        for (responder, outcomes) in group.answers {
            if let Some(responder) = responder {
                responder.send(Outcomes(outcomes));
            }
        }
        if let Some(id) = &self.applied {
            let (by, index) = (Some(id.leader_id), id.index);
            self.applied_index.send_replace(index);
            self.applied_by.send_if_modified(|known| std::mem::replace(known, by) != by);
        }
        self.ask_for_snapshot();
    }

    fn ask_for_snapshot(&mut self) {
        let last = held(&self.current).as_ref().map_or(0, |current| current.file.bytes);
        let age_ms = self.state.time().since_ms(self.drafted);
        let due = self.log_bytes >= enough_log(last, age_ms, self.options.snapshot_log_bytes);
        if due && self.drafts.try_send(self.draft()).is_ok() {
            // Should it fail, the next attempt comes after as much log again.
            self.log_bytes = 0;
            self.drafted = self.state.time();
        }
    }

    /// A draft of what is applied now.
    pub(super) fn draft_now(&self) -> Draft {
        self.draft()
    }

    fn draft(&self) -> Draft {
        Draft {
            state: self.state.clone(),
            last: self.applied,
            membership: self.membership.clone(),
            snapshots: self.snapshots.clone(),
            current: self.current.clone(),
            inline: self.options.inline,
        }
    }
}

/// How much log calls for a snapshot, where the last one has `last` bytes and is `age_ms` old, and
/// `least` is the least that a busy cluster waits for.
fn enough_log(last: u64, age_ms: u64, least: u64) -> u64 {
    let busy = (last * SNAPSHOT_FACTOR).min(SNAPSHOT_LOG_MAX).max(least);
    let aged = last.max(SNAPSHOT_AGED_BYTES);
    if age_ms >= SNAPSHOT_AGE_MS { aged.min(busy) } else { busy }
}

impl Draft {
    /// Writes it; returns up to where the log is in every snapshot that is kept.
    pub(super) async fn write(self) -> Result<Option<u64>, io::Error> {
        let Self { state, last, membership, snapshots, current, inline } = self;
        let position = position(last.as_ref(), &membership);
        let written = beside(inline, move || {
            let file = snapshots.write(&state, &position)?;
            tracing::info!(name = file.name, bytes = file.bytes, "snapshot: written");
            Ok::<_, SnapshotError>((file, snapshots.purgeable()?))
        });
        let (file, purgeable) = written.await?.map_err(io::Error::other)?;
        *held(&current) = Some(Current { last, membership, file });
        Ok(purgeable)
    }
}

fn held(current: &Mutex<Option<Current>>) -> std::sync::MutexGuard<'_, Option<Current>> {
    current.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Current {
    fn to_snapshot(&self) -> SnapshotOf<Types, SnapshotFile> {
        let (last_log_id, last_membership) = (self.last, self.membership.clone());
        let meta = SnapshotMetaOf::<Types> { last_log_id, last_membership };
        SnapshotOf::<Types, SnapshotFile> { meta, snapshot: self.file.clone() }
    }
}

/// Runs slow disk work beside the thread of consensus.
pub(super) async fn beside<T: Send + 'static>(
    inline: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    if inline {
        return Ok(work());
    }
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("snapshot".to_owned())
        .spawn(move || drop(sender.send(work())))?;
    receiver.await.map_err(|_| io::Error::other("the snapshot's thread panicked"))
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut group = Group::default();
        while let Some((entry, responder)) = entries.try_next().await? {
            group.answers.push((responder, Vec::new()));
            self.applied = Some(entry.log_id);
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(command) => {
                    self.apply_one(entry.log_id, &command, &mut group)?
                }
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                }
            }
            if group.answers.len() >= GROUP_ENTRIES || group.bytes >= GROUP_BYTES {
                self.finish(&mut group);
                // Votes and heartbeats wait behind this in the same thread.
                tokio::task::yield_now().await;
            }
        }
        if !group.answers.is_empty() {
            self.finish(&mut group);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { draft: Some(self.draft()), current: self.current.clone() }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Types>,
        snapshot: SnapshotFile,
    ) -> Result<(), io::Error> {
        let (snapshots, name) = (self.snapshots.clone(), snapshot.name);
        // Whoever received it has read it already, to see that it is whole.
        let loaded = match snapshots.take_ready(&name) {
            Some(loaded) => loaded,
            None => beside(self.options.inline, move || snapshots.read(&name))
                .await?
                .map_err(io::Error::other)?,
        };
        self.state = loaded.state.clone();
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.log_bytes = 0;
        *held(&self.current) = Some(Current {
            last: meta.last_log_id,
            membership: meta.last_membership.clone(),
            file: loaded.file,
        });
        self.published.replace(loaded.state);
        self.applied_index.send_replace(meta.last_log_id.map_or(0, |id| id.index));
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<Types, SnapshotFile>>, io::Error> {
        Ok(held(&self.current).as_ref().map(Current::to_snapshot))
    }
}

/// Hands over the newest snapshot. They are written beforehand, as drafts: a disk that is full
/// then is a warning; here it would be the end of the member.
pub(super) struct Builder {
    draft: Option<Draft>,
    current: Arc<Mutex<Option<Current>>>,
}

impl Builder {
    fn newest(&self) -> Option<SnapshotOf<Types, SnapshotFile>> {
        held(&self.current).as_ref().map(Current::to_snapshot)
    }
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types, SnapshotFile>, io::Error> {
        if self.newest().is_none()
            && let Some(draft) = self.draft.take()
        {
            draft.write().await?;
        }
        self.newest().ok_or_else(|| io::Error::other("no snapshot could be written"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_much_log_calls_for_a_snapshot() {
        const MIB: u64 = 1 << 20;
        let check = |last, age_ms, expected| {
            assert_eq!(enough_log(last * MIB, age_ms, 16 * MIB), expected * MIB, "{last} {age_ms}");
        };
        check(0, 0, 16);
        check(9, 0, 18);
        check(200, 0, 256);
        // Where it is calm: as much as the snapshot, or a little.
        check(0, SNAPSHOT_AGE_MS, 1);
        check(5, SNAPSHOT_AGE_MS, 5);
        check(20, SNAPSHOT_AGE_MS, 20);
        check(400, SNAPSHOT_AGE_MS, 256);
        // A test's small limit holds for both.
        assert_eq!(enough_log(0, SNAPSHOT_AGE_MS, 4096), 4096);
    }
}
