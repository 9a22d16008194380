//! The log: entries and votes, on disk before they count.
//!
//! Append-only segments, written by one thread that serves all waiting callers
//! with one sync (group commit). Every record is sealed. A segment is filled
//! with zeros before it is used, by another thread, so that a commit never
//! waits for the file system to find room. Recent entries are kept in memory,
//! bounded by bytes; older ones are read from their segment.
//!
//! After a failed write or sync the log refuses everything until it is opened
//! again: what is on disk is unknown then, and a second sync does not tell.
//!
//! Not here: what entries mean ([`crate::codec`]), consensus ([`crate::raft`]).

mod index;
mod recover;
mod segment;
mod span;
mod spare;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use warren_base::rng::Rng;
use warren_trust::Opener;

use crate::disk::{Disk, DiskFile};
use crate::keys::Keys;
use crate::metrics::LogMetrics;
use index::Index;
use recover::recover;
use segment::{Base, TEXT_MAX};
pub use segment::{Entry, EntryKind, HeadError, LogId, Vote};
use span::Span;
use spare::Spares;
use writer::{Op, Writer, WriterHandle};

/// Largest payload of an entry.
pub const PAYLOAD_MAX: usize = TEXT_MAX - 64;

/// Bytes read from a segment at once.
const READ_MAX: usize = 1 << 20;

/// Why the log cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("{action}")]
    Disk { action: &'static str, source: io::Error },
    #[error("log segment {segment} is damaged in its head")]
    Head { segment: u64, source: HeadError },
    #[error(
        "log segment {segment} is damaged at byte {offset} (record {counter}): acknowledged writes are lost; restore this node from a backup or remove and join it again"
    )]
    Damaged { segment: u64, offset: u64, counter: u64 },
    #[error(
        "log segment {segment} has a record of unknown kind {kind} at byte {offset}: written by a newer version"
    )]
    Undecodable { segment: u64, offset: u64, kind: u8 },
    #[error("log segment {segment} is out of order at byte {offset}: {problem}")]
    Disorder { segment: u64, offset: u64, problem: String },
    #[error("the log is incomplete: {what} is missing")]
    Missing { what: String },
    #[error("a log is there already")]
    Exists,
    #[error("the log stopped: {0}")]
    Stopped(Arc<str>),
}

impl LogError {
    fn disk(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Disk { action, source }
    }
}

/// Sizes of a log, and who writes it.
#[derive(Debug, Clone, Copy)]
pub struct LogOptions {
    /// Of a segment. Larger ones took the disk for seconds when they were filled with zeros.
    pub segment_bytes: usize,
    /// Of the segment made when the log is opened: someone waits for it.
    pub first_segment_bytes: usize,
    /// Of entries in memory. What is not on disk yet comes on top.
    pub cache_bytes: usize,
    /// Write on the caller's thread instead of one of its own: for simulations.
    pub inline: bool,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 8 << 20,
            first_segment_bytes: 512 << 10,
            cache_bytes: 1 << 20,
            inline: false,
        }
    }
}

/// Called once the operation is durable, or failed; on the writer's thread.
pub type Done = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// What an older segment holds, for purging.
struct Retired {
    sequence: u64,
    /// Last index when it ended; `None`: no entry yet.
    last: Option<u64>,
}

/// A segment that entries can be read from.
struct Readable {
    file: Arc<dyn DiskFile>,
    opener: Opener,
    /// That it is sealed with.
    key: u32,
}

/// What readers and the writer share. `index` runs ahead of the disk: it has what was handed to
/// [`Log::append`], `flushed` says up to where it is durable.
struct Shared {
    index: Index,
    base: Base,
    cache: VecDeque<(EntryKind, Bytes)>,
    cache_bytes: usize,
    cache_bytes_max: usize,
    /// First index that is not durable yet.
    flushed: u64,
    /// Last index that the group is known to have committed.
    committed: Option<u64>,
    readable: BTreeMap<u64, Arc<Readable>>,
    stopped: Option<Arc<str>>,
    /// Bytes left in the current segment.
    room: usize,
}

impl Shared {
    fn cache_first(&self) -> u64 {
        self.index.next() - self.cache.len() as u64
    }

    fn evict(&mut self) {
        while self.cache_bytes > self.cache_bytes_max && self.cache_first() < self.flushed {
            let Some((_, payload)) = self.cache.pop_front() else { return };
            self.cache_bytes -= payload.len();
        }
    }

    fn forget_cache_below(&mut self, first: u64) {
        while self.cache_first() < first {
            let Some((_, payload)) = self.cache.pop_front() else { return };
            self.cache_bytes -= payload.len();
        }
    }
}

type SharedRef = Arc<Mutex<Shared>>;

fn locked(shared: &SharedRef) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn segment_name(sequence: u64) -> String {
    format!("{sequence:016}.log")
}

fn sequence_of(name: &str) -> Option<u64> {
    name.strip_suffix(".log").filter(|digits| digits.len() == 16)?.parse().ok()
}

/// A handle on the log; clones are the same log.
#[derive(Clone)]
pub struct Log {
    shared: SharedRef,
    writer: WriterHandle,
    spares: Arc<Spares>,
    metrics: Arc<LogMetrics>,
}

impl Log {
    /// Makes an empty log.
    ///
    /// # Errors
    /// [`LogError::Exists`] when segments are there, or what the disk says.
    pub fn create(
        disk: Arc<dyn Disk>,
        keys: impl Into<Keys>,
        rng: Arc<dyn Rng>,
        options: LogOptions,
    ) -> Result<Self, LogError> {
        let names = disk.list().map_err(LogError::disk("list the log"))?;
        if names.iter().any(|name| sequence_of(name).is_some()) {
            return Err(LogError::Exists);
        }
        let recovered = recover::Recovered::empty();
        Self::start(disk, keys.into(), rng, options, recovered)
    }

    /// Reads a log back, and cuts off a torn write that was never acknowledged.
    ///
    /// # Errors
    /// A [`LogError`] that says which segment is damaged or missing.
    pub fn open(
        disk: Arc<dyn Disk>,
        keys: impl Into<Keys>,
        rng: Arc<dyn Rng>,
        options: LogOptions,
    ) -> Result<Self, LogError> {
        let keys = keys.into();
        let recovered = recover(disk.as_ref(), &keys.ring())?;
        if recovered.torn {
            let last = recovered.base.last.map(|id| id.index);
            tracing::warn!(?last, "log: cut off a write that was never acknowledged");
        }
        Self::start(disk, keys, rng, options, recovered)
    }

    fn start(
        disk: Arc<dyn Disk>,
        keys: Keys,
        rng: Arc<dyn Rng>,
        options: LogOptions,
        recovered: recover::Recovered,
    ) -> Result<Self, LogError> {
        let shared = Arc::new(Mutex::new(Shared {
            flushed: recovered.index.next(),
            index: recovered.index,
            base: recovered.base,
            committed: recovered.committed,
            cache: VecDeque::new(),
            cache_bytes: 0,
            cache_bytes_max: options.cache_bytes,
            readable: recovered.readable,
            stopped: None,
            room: options.first_segment_bytes,
        }));
        let position = writer::Position {
            next_sequence: recovered.next_sequence,
            next_counter: recovered.next_counter,
            base: recovered.base,
            committed: recovered.committed,
            retired: recovered.retired,
        };
        let writer = Writer::start(disk, keys, rng, options, position, shared.clone())?;
        let (spares, metrics) = (writer.spares(), writer.metrics());
        let writer = WriterHandle::new(writer, options.inline)
            .map_err(LogError::disk("start the log's writer"))?;
        Ok(Self { shared, writer, spares, metrics })
    }

    /// Appends entries, which must follow the last one. `done` is called when they are durable.
    ///
    /// # Errors
    /// [`LogError::Stopped`], and [`LogError::Disorder`] for an entry out of order or too large.
    pub fn append(&self, entries: Vec<Entry>, done: Done) -> Result<(), LogError> {
        {
            let mut shared = locked(&self.shared);
            if let Some(why) = &shared.stopped {
                return Err(LogError::Stopped(why.clone()));
            }
            for (next, entry) in (shared.index.next()..).zip(&entries) {
                let Entry { id, payload, .. } = entry;
                if id.index != next || payload.len() > PAYLOAD_MAX {
                    let problem =
                        format!("entry {} of {} bytes instead of {next}", id.index, payload.len());
                    return Err(LogError::Disorder { segment: 0, offset: 0, problem });
                }
            }
            for entry in &entries {
                shared.index.push(entry.id);
                shared.cache.push_back((entry.kind, entry.payload.clone()));
                shared.cache_bytes += entry.payload.len();
                shared.base.last = Some(entry.id);
            }
        }
        self.writer.send(Op::Append { entries, done })
    }

    /// Records a vote. `done` is called when it is durable.
    ///
    /// # Errors
    /// [`LogError::Stopped`].
    pub fn save_vote(&self, vote: Vote, done: Done) -> Result<(), LogError> {
        locked(&self.shared).base.vote = Some(vote);
        self.writer.send(Op::Vote { vote, done })
    }

    /// Says that the group has committed entries up to `index`. Not durable by itself: it goes to
    /// the disk with what is written next, or a moment later, and may lag behind after a crash.
    pub fn save_committed(&self, index: u64) {
        let mut shared = locked(&self.shared);
        shared.committed = shared.committed.max(Some(index));
    }

    /// The last entry that is known to be committed and is in the log, or was purged from it last.
    pub fn committed(&self) -> Option<LogId> {
        let shared = locked(&self.shared);
        let index = shared.committed?;
        let purged = shared.base.purged.filter(|purged| purged.index == index);
        purged.or_else(|| shared.index.id(index))
    }

    /// Voids all entries after `after`. No append may be made before `done` was called.
    ///
    /// # Errors
    /// [`LogError::Stopped`].
    pub fn truncate_after(&self, after: Option<LogId>, done: Done) -> Result<(), LogError> {
        {
            let mut shared = locked(&self.shared);
            let before = shared.index.next();
            shared.index.truncate_after(after);
            let next = shared.index.next();
            for _ in next..before {
                let Some((_, payload)) = shared.cache.pop_back() else { break };
                shared.cache_bytes -= payload.len();
            }
            shared.flushed = shared.flushed.min(next);
            shared.base.last = after;
        }
        self.writer.send(Op::Truncate { after, done })
    }

    /// Forgets entries up to `upto`, which are in a snapshot; segments go when all of theirs are.
    ///
    /// # Errors
    /// [`LogError::Stopped`].
    pub fn purge(&self, upto: LogId, done: Done) -> Result<(), LogError> {
        {
            let mut shared = locked(&self.shared);
            shared.index.purge(upto);
            let first = shared.index.first();
            if shared.index.next() == first {
                shared.cache.clear();
                shared.cache_bytes = 0;
            } else {
                shared.forget_cache_below(first);
            }
            shared.flushed = shared.flushed.max(first);
            shared.base.purge(upto);
        }
        self.writer.send(Op::Purge { upto, done })
    }

    /// Entries of `range` that the log has, from its start, until `bytes_max` (at least one).
    ///
    /// # Errors
    /// What the disk says; [`LogError::Damaged`] when a record does not open any more.
    pub fn read(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<Entry>, LogError> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut at = range.start;
        while at < range.end && (entries.is_empty() || bytes < bytes_max) {
            let shared = locked(&self.shared);
            at = at.max(shared.index.first());
            let end = range.end.min(shared.index.next());
            if at >= end {
                break;
            }
            let cached = shared.cache_first();
            if at >= cached {
                let skip = usize::try_from(at - cached).unwrap_or(usize::MAX);
                for (kind, payload) in shared.cache.iter().skip(skip) {
                    if at >= end || (bytes >= bytes_max && !entries.is_empty()) {
                        break;
                    }
                    let id = known_id(&shared.index, at)?;
                    bytes += payload.len();
                    entries.push(Entry { id, kind: *kind, payload: payload.clone() });
                    at += 1;
                }
                break;
            }
            let span = Span::plan(&shared, at, end.min(cached), bytes_max.saturating_sub(bytes))?;
            drop(shared);
            at += span.ids.len() as u64;
            bytes += span.read(&mut entries)?;
        }
        Ok(entries)
    }

    /// The last vote that was saved.
    pub fn vote(&self) -> Option<Vote> {
        locked(&self.shared).base.vote
    }

    /// (last purged, last) entry.
    pub fn range(&self) -> (Option<LogId>, Option<LogId>) {
        let base = locked(&self.shared).base;
        (base.purged, base.last)
    }

    /// The id of an entry that is in the log.
    pub fn id(&self, index: u64) -> Option<LogId> {
        locked(&self.shared).index.id(index)
    }

    /// Last entry of each leader between two indexes.
    pub fn key_ids(&self, from: u64, upto: u64) -> Vec<LogId> {
        locked(&self.shared).index.key_ids(from, upto)
    }

    /// Bytes on disk of the entries from `from` on.
    pub fn bytes_from(&self, from: u64) -> u64 {
        locked(&self.shared).index.bytes_from(from)
    }

    /// Bytes of entries held in memory.
    pub fn cached_bytes(&self) -> usize {
        locked(&self.shared).cache_bytes
    }

    /// Files that the log consists of.
    pub fn segments(&self) -> usize {
        locked(&self.shared).readable.len()
    }

    /// Goes on in a segment that is sealed with the key that is active now.
    ///
    /// # Errors
    /// [`LogError::Stopped`].
    pub fn renew(&self, done: Done) -> Result<(), LogError> {
        self.writer.send(Op::Renew { done })
    }

    /// The data keys that segments are sealed with.
    pub fn data_keys(&self) -> Vec<u32> {
        let mut ids: Vec<u32> =
            locked(&self.shared).readable.values().map(|segment| segment.key).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// What the writer did so far.
    pub fn metrics(&self) -> &LogMetrics {
        &self.metrics
    }

    /// Bytes of all entries on disk.
    pub fn bytes(&self) -> u64 {
        locked(&self.shared).index.bytes_from(0)
    }

    /// Whether there is room for another large entry. Callers refuse new work when there is not.
    pub fn has_room(&self) -> bool {
        let room = locked(&self.shared).room;
        writer::has_room(room, &self.spares)
    }

    /// Finishes what was given, says that this is all and ends the writer.
    /// `done` is called at the end.
    ///
    /// # Errors
    /// [`LogError::Stopped`] when it had ended before.
    pub fn close(&self, done: Done) -> Result<(), LogError> {
        self.writer.send(Op::Close { done })
    }
}

fn known_id(index: &Index, at: u64) -> Result<LogId, LogError> {
    index.id(at).ok_or_else(|| LogError::Missing { what: format!("entry {at}") })
}
