//! Reading the log back after a stop of any kind.
//!
//! A record that does not open is a torn write if nothing proves that it had
//! been acknowledged: then it and what follows is overwritten with zeros. The
//! proof is any later record whose `durable` mark reaches it, or a file that is
//! shorter than it was made and does not end as the log ends files: then the
//! log is damaged, and opening it fails. Nothing is ever skipped.
//!
//! What was read is made durable before it counts: the process that wrote it
//! may have died before its sync.

use std::collections::BTreeMap;
use std::sync::Arc;

use warren_trust::{KeyRing, Opener};

use super::index::Index;
use super::segment::{
    Base, HEAD_LEN, Head, HeadError, LogId, RECORD_OVERHEAD, Record, RecordHead, open_head,
};
use super::{LogError, Readable, Retired, segment_name, sequence_of};
use crate::disk::{Disk, DiskFile};

/// Longer files are not ours; segments have at most 8 MiB.
const FILE_MAX: u64 = 64 << 20;
/// Zeros written at once.
const ZEROS: usize = 64 << 10;

/// What the log holds, and where its next record goes.
pub(super) struct Recovered {
    pub(super) index: Index,
    pub(super) base: Base,
    pub(super) readable: BTreeMap<u64, Arc<Readable>>,
    pub(super) retired: Vec<Retired>,
    pub(super) next_sequence: u64,
    pub(super) next_counter: u64,
    /// Entries up to this one had been committed.
    pub(super) committed: Option<u64>,
    /// Records that were cut off: a torn, never acknowledged write.
    pub(super) torn: bool,
}

impl Recovered {
    /// A log that was never written.
    pub(super) fn empty() -> Self {
        Self {
            index: Index::new(),
            base: Base::default(),
            readable: BTreeMap::new(),
            retired: Vec::new(),
            next_sequence: 1,
            next_counter: 1,
            committed: None,
            torn: false,
        }
    }
}

struct Found {
    sequence: u64,
    file: Arc<dyn DiskFile>,
    opener: Opener,
    key: u32,
    /// Bytes of the file when it was made.
    capacity: u64,
    /// Counter of the first record, `None` when the segment was never used or its first write tore.
    first: Option<u64>,
}

/// Where the records of a segment end.
enum End {
    /// At the counter that the next segment begins with, or before nothing but zeros.
    Clean { len: usize },
    /// Before something that is not a record.
    Bad { at: usize },
}

pub(super) fn recover(disk: &dyn Disk, keys: &KeyRing) -> Result<Recovered, LogError> {
    let mut found = find(disk, keys)?;
    let used = found.iter().rposition(|segment| segment.first.is_some());
    let Some(used) = used else {
        return Err(LogError::Missing { what: "every record".to_owned() });
    };
    let unused = found.split_off(used + 1);
    // Only a segment in use is ever cut.
    for segment in &unused {
        if segment.len()? != segment.capacity {
            return Err(damaged(segment, HEAD_LEN, 0));
        }
    }
    // A later segment is in use, so this one had been written and acknowledged.
    if let Some(hollow) = found.iter().find(|segment| segment.first.is_none()) {
        return Err(damaged(hollow, HEAD_LEN, 0));
    }
    let mut replay = Replay::new();
    for (at, segment) in found.iter().enumerate() {
        match found.get(at + 1).and_then(|next| next.first) {
            Some(limit) => replay.older(segment, limit)?,
            None => replay.newest(segment, &unused)?,
        }
        replay.retire(segment.sequence);
    }
    // Prepared ahead and never used, or torn at their first write. The first stays until the writer
    // has made that one anew, which takes its place: the log may say already that it is there. The
    // rest goes from its end, so that no gap is left.
    for segment in unused.iter().skip(1).rev() {
        disk.remove(&segment_name(segment.sequence)).map_err(LogError::disk("remove segment"))?;
    }
    replay.finish(found)
}

/// Opens all segments and their heads.
fn find(disk: &dyn Disk, keys: &KeyRing) -> Result<Vec<Found>, LogError> {
    let mut found: Vec<Found> = Vec::new();
    for name in disk.list().map_err(LogError::disk("list the log"))? {
        let Some(sequence) = sequence_of(&name) else { continue };
        if let Some(before) = found.last()
            && before.sequence + 1 != sequence
        {
            return Err(LogError::Missing { what: format!("segment {}", before.sequence + 1) });
        }
        let head_error = |source| LogError::Head { segment: sequence, source };
        let file = disk.open(&name).map_err(LogError::disk("open segment"))?;
        let mut head = vec![0; HEAD_LEN];
        let read = file.read_at(&mut head, 0).map_err(LogError::disk("read segment"))?;
        let Head { opener, key, capacity } =
            open_head(&head[..read], sequence, keys).map_err(head_error)?;
        let mut segment = Found { sequence, file, opener, key, capacity, first: None };
        segment.first = segment.first_counter()?;
        found.push(segment);
    }
    Ok(found)
}

fn damaged(segment: &Found, offset: usize, counter: u64) -> LogError {
    LogError::Damaged { segment: segment.sequence, offset: offset as u64, counter }
}

impl Found {
    fn len(&self) -> Result<u64, LogError> {
        self.file.len().map_err(LogError::disk("read segment"))
    }

    /// Overwrites what is not a record. The length stays: only a segment that says that it ends
    /// is ever shorter than it was made.
    fn clear_from(&self, at: usize) -> Result<(), LogError> {
        let zeros = vec![0; ZEROS];
        let mut at = at as u64;
        while at < self.capacity {
            let len = (self.capacity - at).min(ZEROS as u64);
            let len = usize::try_from(len).unwrap_or(ZEROS);
            self.file.write_at(&zeros[..len], at).map_err(LogError::disk("clear segment"))?;
            at += len as u64;
        }
        Ok(())
    }

    fn read_all(&self) -> Result<Vec<u8>, LogError> {
        let len = self.len()?;
        if len > FILE_MAX {
            return Err(LogError::Head { segment: self.sequence, source: HeadError::Magic });
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        let read = self.file.read_at(&mut bytes, 0).map_err(LogError::disk("read segment"))?;
        bytes.truncate(read);
        Ok(bytes)
    }

    fn first_counter(&self) -> Result<Option<u64>, LogError> {
        let read_at = |buffer: &mut [u8], offset: usize| {
            self.file.read_at(buffer, offset as u64).map_err(LogError::disk("read segment"))
        };
        // The first record is a base, whose text is short; a longer one is no first record.
        let mut bytes = vec![0; RECORD_OVERHEAD + 128];
        let read = read_at(&mut bytes, HEAD_LEN)?;
        bytes.truncate(read);
        let Some(head) = RecordHead::decode(&bytes) else { return Ok(None) };
        Ok(head.open(&self.opener, &mut bytes).map(|_| head.counter))
    }
}

struct Replay {
    index: Index,
    base: Base,
    next_counter: u64,
    retired: Vec<Retired>,
    /// What the oldest segment says was before it.
    oldest: Option<Base>,
    committed: Option<u64>,
    torn: bool,
    started: bool,
    /// The segment that is being read says that it ends, and whether the next one is there.
    ended: Option<bool>,
}

impl Replay {
    fn new() -> Self {
        Self {
            index: Index::new(),
            base: Base::default(),
            next_counter: 0,
            retired: Vec::new(),
            oldest: None,
            committed: None,
            torn: false,
            started: false,
            ended: None,
        }
    }

    fn older(&mut self, segment: &Found, limit: u64) -> Result<(), LogError> {
        let mut bytes = segment.read_all()?;
        let end = self.records(segment, &mut bytes, Some(limit))?;
        let (End::Clean { len: at } | End::Bad { at }) = end;
        // Less than the next segment counts on: something acknowledged is missing.
        if limit != self.next_counter {
            return Err(damaged(segment, at, self.next_counter));
        }
        Ok(())
    }

    fn newest(&mut self, segment: &Found, unused: &[Found]) -> Result<(), LogError> {
        let mut bytes = segment.read_all()?;
        let end = self.records(segment, &mut bytes, None)?;
        let (End::Clean { len } | End::Bad { at: len }) = end;
        let mut durable = 0;
        if let End::Bad { at } = end {
            // Read again: an attempt to open destroys what it was tried on.
            let bytes = segment.read_all()?;
            let rest = bytes.get(at..).unwrap_or_default();
            durable = durable_after(&segment.opener, rest, self.next_counter);
            self.torn = true;
        }
        for later in unused {
            let bytes = later.read_all()?;
            let rest = bytes.get(HEAD_LEN..).unwrap_or_default();
            durable = durable.max(durable_after(&later.opener, rest, self.next_counter));
        }
        let cut = self.ended.is_none() && segment.len()? != segment.capacity;
        if cut || durable >= self.next_counter {
            return Err(damaged(segment, len, self.next_counter));
        }
        if self.ended == Some(true) && unused.is_empty() {
            return Err(LogError::Missing { what: format!("segment {}", segment.sequence + 1) });
        }
        // So that this segment ends here for good.
        if self.torn {
            segment.clear_from(len)?;
        }
        // A process that died may not have come to its sync.
        segment.file.sync().map_err(LogError::disk("sync segment"))
    }

    /// Replays records until `limit`, the end, or something that is not a record.
    fn records(
        &mut self,
        segment: &Found,
        bytes: &mut [u8],
        limit: Option<u64>,
    ) -> Result<End, LogError> {
        let mut at = HEAD_LEN;
        self.ended = None;
        loop {
            if limit == Some(self.next_counter) || self.ended.is_some() {
                return Ok(End::Clean { len: at });
            }
            let Some(head) = RecordHead::decode(&bytes[at..]) else {
                let zeros = bytes[at..].iter().all(|byte| *byte == 0);
                return Ok(if zeros { End::Clean { len: at } } else { End::Bad { at } });
            };
            if self.started && head.counter != self.next_counter {
                return Ok(End::Bad { at });
            }
            let Some(text) = head.open(&segment.opener, &mut bytes[at..]) else {
                return Ok(End::Bad { at });
            };
            let record = Record::decode(head.kind, text).ok_or(LogError::Undecodable {
                segment: segment.sequence,
                offset: at as u64,
                kind: head.kind,
            })?;
            self.started = true;
            self.next_counter = head.counter + 1;
            self.apply(record, segment.sequence, at, head.record_len())?;
            at += head.record_len();
        }
    }

    fn apply(
        &mut self,
        record: Record,
        segment: u64,
        offset: usize,
        len: usize,
    ) -> Result<(), LogError> {
        let disorder =
            |problem: String| LogError::Disorder { segment, offset: offset as u64, problem };
        match record {
            Record::Base(base) => match self.oldest {
                None => {
                    self.oldest = Some(base);
                    self.base = base;
                    self.index.reset(base.last);
                }
                Some(_) if base != self.base => {
                    return Err(disorder("a segment does not continue the one before".to_owned()));
                }
                Some(_) => {}
            },
            _ if self.oldest.is_none() => {
                return Err(disorder("the log does not begin with a base".to_owned()));
            }
            Record::Entry(entry) => {
                let next = self.index.next();
                if entry.id.index != next {
                    return Err(disorder(format!("entry {} instead of {next}", entry.id.index)));
                }
                self.index.push(entry.id);
                self.index.place(entry.id.index, segment, offset, len);
                self.base.last = Some(entry.id);
            }
            Record::Vote(vote) => self.base.vote = Some(vote),
            Record::Truncate(after) => {
                self.index.truncate_after(after);
                self.base.last = after;
            }
            Record::Purge(upto) => {
                self.index.purge(upto);
                self.base.purge(upto);
            }
            Record::Mark => {}
            Record::Committed(index) => self.committed = self.committed.max(Some(index)),
            Record::End { more } => self.ended = Some(more),
        }
        Ok(())
    }

    fn retire(&mut self, sequence: u64) {
        self.retired.push(Retired { sequence, last: self.base.last.map(|id| id.index) });
    }

    fn finish(mut self, found: Vec<Found>) -> Result<Recovered, LogError> {
        let needed = self.oldest.and_then(|base| base.last).map(|id: LogId| id.index);
        let purged = self.base.purged.map(|id| id.index);
        // Entries between the purge mark and the oldest segment were in a file that is gone.
        if needed > purged {
            let first = purged.map_or(0, |index| index + 1);
            return Err(LogError::Missing { what: format!("entries from {first}") });
        }
        self.index.purge_upto(purged);
        // Of a torn batch its end is missing, which may have been committed by others.
        let last = self.base.last.map(|id| id.index);
        let next_sequence = found.last().map_or(1, |segment| segment.sequence + 1);
        let readable = found.into_iter().map(|segment| {
            let Found { sequence, file, opener, key, .. } = segment;
            (sequence, Arc::new(Readable { file, opener, key }))
        });
        Ok(Recovered {
            readable: readable.collect(),
            index: self.index,
            base: self.base,
            retired: self.retired,
            committed: self.committed.min(last),
            next_sequence,
            next_counter: self.next_counter,
            torn: self.torn,
        })
    }
}

/// The highest durable mark among authentic records in `bytes`, wherever they begin.
fn durable_after(opener: &Opener, bytes: &[u8], counter: u64) -> u64 {
    let mut durable = 0;
    let mut at = 0;
    while at < bytes.len() {
        // Cheap tests first: most offsets are no record at all.
        let head = RecordHead::decode(&bytes[at..])
            .filter(|head| head.counter >= counter && head.counter - counter <= bytes.len() as u64);
        let Some(head) = head else {
            at += 1;
            continue;
        };
        let Some(record) = bytes.get(at..at + head.record_len()) else {
            at += 1;
            continue;
        };
        // A copy: what follows is still needed if this is no record.
        let mut copy = record.to_vec();
        if head.open(opener, &mut copy).is_some() {
            durable = durable.max(head.durable);
            at += head.record_len();
        } else {
            at += 1;
        }
    }
    durable
}
