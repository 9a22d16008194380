//! The one writer of the log: many callers, one write, one sync.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use warren_base::rng::Rng;
use warren_trust::Sealer;

use super::segment::{Base, END_LEN, Entry, HEAD_LEN, LogId, RECORD_OVERHEAD, Record, Vote};
use super::spare::{Maker, Spare, Spares};
use super::{Done, LogError, LogOptions, Readable, Retired, SharedRef, locked, segment_name};
use crate::disk::{Disk, DiskFile};
use crate::keys::Keys;
use crate::metrics::LogMetrics;

/// Written at once at most, beside a single larger entry: what a disk takes in a few ms.
const BATCH_MAX: usize = 2 << 20;
/// Room of what is committed.
const COMMITTED_LEN: usize = RECORD_OVERHEAD + 8;
/// Room that a segment keeps for its end.
const END_LEN_MAX: usize = COMMITTED_LEN + END_LEN;
/// Room of what goes around a record: a base with the largest text it can have, what is committed,
/// and the end.
const AROUND_LEN_MAX: usize = RECORD_OVERHEAD + 128 + COMMITTED_LEN + END_LEN_MAX;
/// Quiet time after which a mark says that the last batch was acknowledged. It is not synced:
/// the kernel writes it back within half a minute, and an idle log stays idle.
const MARK_AFTER: Duration = Duration::from_millis(100);
/// Room of a mark.
const MARK_LEN: usize = COMMITTED_LEN;
/// Entries whose commit is not known at the mark are waited for twice as long each time, so often.
const MARKS_MAX: u32 = 6;
/// Below this room, with no next segment in sight, new work is refused.
const ROOM_MIN: usize = 4 << 20;
/// What an idle writer keeps of its buffer.
const BUFFER_KEPT: usize = 64 << 10;

/// Something to write.
pub(super) enum Op {
    Append { entries: Vec<Entry>, done: Done },
    Vote { vote: Vote, done: Done },
    Truncate { after: Option<LogId>, done: Done },
    Purge { upto: LogId, done: Done },
    Renew { done: Done },
    Close { done: Done },
}

impl Op {
    /// Whether it may share a sync with its neighbours, and its rough size.
    fn groups(&self) -> Option<usize> {
        match self {
            Self::Append { entries, .. } => Some(entries.iter().map(|e| e.payload.len()).sum()),
            Self::Vote { .. } => Some(0),
            Self::Truncate { .. }
            | Self::Purge { .. }
            | Self::Renew { .. }
            | Self::Close { .. } => None,
        }
    }

    fn into_done(self) -> Done {
        match self {
            Self::Append { done, .. }
            | Self::Vote { done, .. }
            | Self::Truncate { done, .. }
            | Self::Purge { done, .. }
            | Self::Renew { done }
            | Self::Close { done } => done,
        }
    }
}

/// Where the writer goes on after recovery.
pub(super) struct Position {
    pub(super) next_sequence: u64,
    pub(super) next_counter: u64,
    pub(super) base: Base,
    pub(super) committed: Option<u64>,
    pub(super) retired: Vec<Retired>,
}

/// The segment being written.
struct Current {
    sequence: u64,
    file: Arc<dyn DiskFile>,
    sealer: Sealer,
    offset: usize,
    capacity: usize,
    /// Its base record is not written yet.
    fresh: bool,
}

/// A record in the buffer that holds an entry.
struct Placed {
    index: u64,
    offset: usize,
    len: usize,
}

pub(super) struct Writer {
    disk: Arc<dyn Disk>,
    keys: Keys,
    spares: Arc<Spares>,
    shared: SharedRef,
    current: Current,
    retired: Vec<Retired>,
    /// As written so far; the shared one runs ahead.
    base: Base,
    /// Last counter known to be on disk.
    durable: u64,
    /// What the log says of commits.
    committed: Option<u64>,
    /// Acknowledged records that no mark speaks of yet.
    unmarked: bool,
    /// Marks since then that did not say all.
    marks: u32,
    stopped: Option<Arc<str>>,
    /// Said that it ends: nothing may follow.
    closed: bool,
    /// Sealed records that go to the disk next.
    buffer: Vec<u8>,
    placed: Vec<Placed>,
    metrics: Arc<LogMetrics>,
}

impl Writer {
    pub(super) fn start(
        disk: Arc<dyn Disk>,
        keys: Keys,
        rng: Arc<dyn Rng>,
        options: LogOptions,
        position: Position,
        shared: SharedRef,
    ) -> Result<Self, LogError> {
        let maker = Maker { disk: disk.clone(), keys: keys.clone(), rng };
        let first = maker
            .make(position.next_sequence, options.first_segment_bytes)
            .map_err(LogError::disk("make segment"))?;
        let spares = if options.inline {
            Spares::inline(maker, options.segment_bytes)
        } else {
            Spares::threaded(maker, options.segment_bytes, position.next_sequence + 1)
                .map_err(LogError::disk("start the maker of segments"))?
        };
        // From 1: a first record says that nothing before it is durable, which is 0.
        let counter = position.next_counter.max(1);
        Ok(Self {
            current: Self::adopt(&keys, &shared, first, counter),
            disk,
            keys,
            spares: Arc::new(spares),
            shared,
            retired: position.retired,
            base: position.base,
            durable: counter - 1,
            committed: position.committed,
            unmarked: false,
            marks: 0,
            stopped: None,
            closed: false,
            buffer: Vec::new(),
            placed: Vec::new(),
            metrics: Arc::default(),
        })
    }

    pub(super) fn spares(&self) -> Arc<Spares> {
        self.spares.clone()
    }

    pub(super) fn metrics(&self) -> Arc<LogMetrics> {
        self.metrics.clone()
    }

    /// Takes a spare into use; readers find it from now on.
    fn adopt(keys: &Keys, shared: &SharedRef, spare: Spare, counter: u64) -> Current {
        let Spare { sequence, file, head, capacity } = spare;
        let keys = &keys.ring();
        let readable =
            Readable { file: file.clone(), opener: head.opener(keys), key: head.key_id() };
        locked(shared).readable.insert(sequence, Arc::new(readable));
        let sealer = head.sealer(keys, counter);
        Current { sequence, file, sealer, offset: HEAD_LEN, capacity, fresh: true }
    }

    /// Does operations that share a sync, and tells their callers.
    fn serve(&mut self, ops: Vec<Op>) {
        let mut dones = Vec::with_capacity(ops.len());
        let mut result = match &self.stopped {
            Some(_) => Err(io::ErrorKind::BrokenPipe.into()),
            None => Ok(()),
        };
        for op in ops {
            result = match result {
                Ok(()) => {
                    let (outcome, done) = self.carry_out(op);
                    dones.push(done);
                    outcome
                }
                Err(error) => {
                    dones.push(op.into_done());
                    Err(error)
                }
            };
        }
        if let Err(error) = result.and_then(|()| self.flush()) {
            self.stop(&error);
        }
        for done in dones {
            done(self.stopped.clone().map_or(Ok(()), |why| Err(LogError::Stopped(why))));
        }
    }

    fn carry_out(&mut self, op: Op) -> (io::Result<()>, Done) {
        match op {
            Op::Append { entries, done } => {
                let pushed =
                    entries.into_iter().try_for_each(|entry| self.push(Record::Entry(entry)));
                (pushed, done)
            }
            Op::Vote { vote, done } => (self.push(Record::Vote(vote)), done),
            Op::Truncate { after, done } => {
                let rolled = if self.current.fresh { Ok(()) } else { self.roll() };
                (rolled.and_then(|()| self.push(Record::Truncate(after))), done)
            }
            Op::Purge { upto, done } => {
                // On disk before a segment goes: it says that what is missing is in a snapshot.
                let pushed = self.push(Record::Purge(upto)).and_then(|()| self.flush());
                if pushed.is_ok() {
                    self.remove_upto(upto.index);
                }
                (pushed, done)
            }
            Op::Renew { done } => {
                let sequence = self.current.sequence + 1;
                let taken = self.spares.take_fresh(sequence);
                (taken.and_then(|spare| self.go_on_in(spare)), done)
            }
            Op::Close { done } => (self.finish(), done),
        }
    }

    fn stop(&mut self, error: &io::Error) {
        if self.stopped.is_some() {
            return;
        }
        let why: Arc<str> = format!("write log segment {}: {error}", self.current.sequence).into();
        tracing::error!(%why, "log: stopped");
        locked(&self.shared).stopped = Some(why.clone());
        self.stopped = Some(why);
    }

    /// Seals a record into the buffer; what does not fit any more goes to the disk first.
    fn push(&mut self, record: Record) -> io::Result<()> {
        let len = record.len() + AROUND_LEN_MAX;
        if self.current.offset + self.buffer.len() + len > self.current.capacity {
            self.roll()?;
        } else if self.buffer.len() + len > BATCH_MAX {
            self.flush()?;
        }
        self.begin()?;
        if self.buffer.is_empty() || self.committed.is_none() {
            self.push_committed()?;
        }
        let offset = self.current.offset + self.buffer.len();
        self.seal(&record)?;
        let len = self.current.offset + self.buffer.len() - offset;
        match record {
            Record::Entry(entry) => {
                self.base.last = Some(entry.id);
                self.placed.push(Placed { index: entry.id.index, offset, len });
            }
            Record::Vote(vote) => self.base.vote = Some(vote),
            Record::Truncate(after) => self.base.last = after,
            Record::Purge(upto) => self.base.purge(upto),
            Record::Base(_) | Record::Mark | Record::Committed(_) | Record::End { .. } => {}
        }
        Ok(())
    }

    /// A segment begins with a base.
    fn begin(&mut self) -> io::Result<()> {
        if self.current.fresh {
            self.current.fresh = false;
            self.seal(&Record::Base(self.base))?;
            // Said anew in each segment: older ones go.
            self.committed = None;
        }
        Ok(())
    }

    /// Says, durably, that the segment ends here, and then cuts it to what is used. `more`: the
    /// next one is there.
    fn end(&mut self, more: bool) -> io::Result<()> {
        self.begin()?;
        self.seal(&Record::End { more })?;
        self.flush()?;
        // Whether this survives a crash does not matter.
        self.current.file.set_len(self.current.offset as u64)
    }

    /// Says what is committed, if that is more than the segment says.
    fn push_committed(&mut self) -> io::Result<bool> {
        let known = locked(&self.shared).committed;
        let Some(index) = known.filter(|_| known > self.committed) else { return Ok(false) };
        self.committed = known;
        self.seal(&Record::Committed(index)).map(|()| true)
    }

    fn seal(&mut self, record: &Record) -> io::Result<()> {
        let sealed = record.seal(&mut self.current.sealer, self.durable, &mut self.buffer);
        sealed.map(|_| ()).map_err(io::Error::other)
    }

    /// Makes everything pushed so far durable.
    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        self.write_buffer()?;
        self.current.file.sync()?;
        self.metrics.synced(begun.elapsed(), self.placed.len());
        self.durable = self.current.sealer.next_counter() - 1;
        (self.unmarked, self.marks) = (true, 0);
        let mut shared = locked(&self.shared);
        for Placed { index, offset, len } in self.placed.drain(..) {
            shared.index.place(index, self.current.sequence, offset, len);
            shared.flushed = shared.flushed.max(index + 1);
        }
        shared.evict();
        shared.room = self.current.capacity - self.current.offset;
        Ok(())
    }

    fn write_buffer(&mut self) -> io::Result<()> {
        self.current.file.write_at(&self.buffer, self.current.offset as u64)?;
        self.current.offset += self.buffer.len();
        self.buffer.clear();
        Ok(())
    }

    /// Goes on in the next segment.
    fn roll(&mut self) -> io::Result<()> {
        let spare = self.spares.take(self.current.sequence + 1)?;
        self.go_on_in(spare)
    }

    fn go_on_in(&mut self, spare: Spare) -> io::Result<()> {
        self.end(true)?;
        let counter = self.current.sealer.next_counter();
        let last = self.base.last.map(|id| id.index);
        self.retired.push(Retired { sequence: self.current.sequence, last });
        self.current = Self::adopt(&self.keys, &self.shared, spare, counter);
        Ok(())
    }

    fn remove_upto(&mut self, index: u64) {
        let gone = self.retired.iter().take_while(|segment| segment.last <= Some(index)).count();
        for at in 0..gone {
            let sequence = self.retired[at].sequence;
            if let Err(error) = self.disk.remove(&segment_name(sequence)) {
                // It stays in the list, and the next purge tries again: oldest first, always.
                tracing::warn!(segment = sequence, %error, "log: remove segment");
                self.retired.drain(..at);
                return;
            }
            locked(&self.shared).readable.remove(&sequence);
        }
        self.retired.drain(..gone);
    }

    /// Says, without a sync, that the last batch was acknowledged, and what is committed.
    fn mark(&mut self) {
        let first = self.marks == 0;
        self.marks += 1;
        self.buffer.shrink_to(BUFFER_KEPT);
        let room = self.current.capacity - self.current.offset;
        if self.stopped.is_some() || self.current.fresh || room < MARK_LEN + END_LEN_MAX {
            self.unmarked = false;
            return;
        }
        let said = self.push_committed().and_then(|said| {
            if first && !said {
                self.seal(&Record::Mark)?;
            }
            if self.buffer.is_empty() { Ok(()) } else { self.write_buffer() }
        });
        if let Err(error) = said {
            self.stop(&error);
        }
        let all = self.committed >= self.base.last.map(|last| last.index);
        self.unmarked = !all && self.marks < MARKS_MAX;
    }

    /// Says that this is all, and cuts the file to what is used.
    fn finish(&mut self) -> io::Result<()> {
        self.flush()?;
        if !self.current.fresh {
            self.push_committed()?;
            self.end(false)?;
            self.current.file.sync()?;
        }
        self.closed = true;
        self.spares.end();
        Ok(())
    }

    fn run(mut self, ops: &Receiver<Op>) {
        let mut carried = None;
        while let Some(op) = carried.take().or_else(|| self.next(ops)) {
            let closing = matches!(op, Op::Close { .. });
            let mut size = op.groups().unwrap_or(BATCH_MAX);
            let mut batch = vec![op];
            while size < BATCH_MAX {
                let Ok(op) = ops.try_recv() else { break };
                let Some(more) = op.groups() else {
                    carried = Some(op);
                    break;
                };
                size += more;
                batch.push(op);
            }
            self.serve(batch);
            if closing {
                return;
            }
        }
        // Every handle is gone without a word.
        self.serve(vec![Op::Close { done: Box::new(|_| {}) }]);
    }

    /// Waits without waking, but for one mark after each burst of work.
    fn next(&mut self, ops: &Receiver<Op>) -> Option<Op> {
        while self.unmarked {
            match ops.recv_timeout(MARK_AFTER * (1 << self.marks)) {
                Ok(op) => return Some(op),
                Err(RecvTimeoutError::Timeout) => self.mark(),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
        ops.recv().ok()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.spares.end();
    }
}

/// The way to the writer.
#[derive(Clone)]
pub(super) enum WriterHandle {
    Thread(Sender<Op>),
    Inline(Arc<Mutex<Writer>>),
}

impl WriterHandle {
    pub(super) fn new(writer: Writer, inline: bool) -> io::Result<Self> {
        if inline {
            return Ok(Self::Inline(Arc::new(Mutex::new(writer))));
        }
        let (sender, ops) = channel();
        let thread = std::thread::Builder::new().name("log-writer".to_owned());
        thread.spawn(move || writer.run(&ops))?;
        Ok(Self::Thread(sender))
    }

    pub(super) fn send(&self, op: Op) -> Result<(), LogError> {
        match self {
            Self::Thread(ops) => {
                ops.send(op).map_err(|_| LogError::Stopped("it was closed".into()))
            }
            Self::Inline(writer) => {
                let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
                if writer.closed {
                    return Err(LogError::Stopped("it was closed".into()));
                }
                writer.serve(vec![op]);
                Ok(())
            }
        }
    }
}

/// Whether there is room for another large entry, now or in a segment that can be made.
pub(super) fn has_room(room: usize, spares: &Spares) -> bool {
    room >= ROOM_MIN || !spares.failing()
}
