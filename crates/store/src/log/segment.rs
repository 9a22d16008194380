//! The format of a log segment: a sealed head, then sealed records.
//!
//! ```text
//! head    magic 8 | version u16 | 0 u16 | data key u32 | sequence u64 | capacity u64 | salt 32 | tag 16
//! record  len u32 | kind u8 | 0 x3 | counter u64 | durable u64 | sealed text (len)
//! ```
//!
//! All numbers little endian. Counters go up by one from record to record,
//! through all segments, and are the nonces of the seal; each segment has a
//! salt, hence a key, of its own. `durable` is the last counter known to be on
//! disk when the record was written: a record that proves that a damaged one
//! before it had been acknowledged. Zeros follow the last record, up to the
//! capacity. A file that is shorter was cut by the log itself, and says so in
//! its last record: one that does not has lost what it held.

use bytes::{Buf, BufMut, Bytes};
use warren_base::rng::Rng;
use warren_trust::{DataKey, KeyRing, KeyRingError, Opener, SEAL_OVERHEAD, Sealer};

const MAGIC: &[u8; 8] = b"WRNLOG\0\0";
const VERSION: u16 = 2;
const HEAD_TEXT_LEN: usize = 64;
/// Bytes before the first record.
pub(super) const HEAD_LEN: usize = HEAD_TEXT_LEN + SEAL_OVERHEAD;
const RECORD_HEAD_LEN: usize = 24;
/// Bytes of a record beside its text.
pub(super) const RECORD_OVERHEAD: usize = RECORD_HEAD_LEN + SEAL_OVERHEAD;
/// An entry holds one transaction of 1 MiB, or several small ones; the rest is room for framing.
pub(super) const TEXT_MAX: usize = 2 << 20;
const COMMITTED_LEN: usize = 8;
/// Bytes of the record that ends a segment.
pub(super) const END_LEN: usize = RECORD_OVERHEAD + 1;
/// Bytes of an entry's record beside its payload.
const ENTRY_OVERHEAD: usize = RECORD_OVERHEAD + 25;

const PURPOSE_HEAD: &str = "warren log head 1";
const PURPOSE_RECORDS: &str = "warren log records 1";

/// Where in the log an entry is and which leader put it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogId {
    pub term: u64,
    pub node: u64,
    pub index: u64,
}

/// Who this node voted for, or follows when `committed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vote {
    pub term: u64,
    pub node: u64,
    pub committed: bool,
}

/// What an entry's payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    Blank,
    Transactions,
    Membership,
}

/// One entry of the replicated log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub id: LogId,
    pub kind: EntryKind,
    pub payload: Bytes,
}

/// What a segment begins with: all that older segments are needed for beside their entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) vote: Option<Vote>,
    pub(super) purged: Option<LogId>,
    pub(super) last: Option<LogId>,
}

impl Base {
    pub(super) fn purge(&mut self, upto: LogId) {
        self.purged = Some(upto);
        self.last = self.last.filter(|last| last.index > upto.index).or(Some(upto));
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    Base(Base),
    Entry(Entry),
    Vote(Vote),
    /// Entries after this one are void.
    Truncate(Option<LogId>),
    /// Entries up to this one are in a snapshot.
    Purge(LogId),
    /// Nothing but its `durable`.
    Mark,
    /// The group has committed entries up to this index, all of which are in the log.
    Committed(u64),
    /// Nothing follows in this segment; `more`: the next one is there.
    End {
        more: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHead {
    pub(super) len: usize,
    pub(super) kind: u8,
    pub(super) counter: u64,
    pub(super) durable: u64,
}

/// Why a segment's head is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("it is cut off")]
    Short,
    #[error("it does not begin as a log segment")]
    Magic,
    #[error("it is of version {found}, this binary knows {VERSION}")]
    Version { found: u16 },
    #[error("its head says segment {found}")]
    Sequence { found: u64 },
    #[error(transparent)]
    Key(#[from] KeyRingError),
    #[error("the seal of its head does not match")]
    Seal,
}

/// A new head, and the sealer of the records that follow.
pub(super) struct NewHead {
    pub(super) bytes: Vec<u8>,
    salt: [u8; 32],
    key: u32,
}

impl NewHead {
    pub(super) fn make(keys: &KeyRing, sequence: u64, capacity: usize, rng: &dyn Rng) -> Self {
        let key = keys.active();
        let mut salt = [0; 32];
        rng.fill(&mut salt);
        let mut bytes = Vec::with_capacity(HEAD_LEN);
        bytes.put_slice(MAGIC);
        bytes.put_u16_le(VERSION);
        bytes.put_u16_le(0);
        bytes.put_u32_le(key.id());
        bytes.put_u64_le(sequence);
        bytes.put_u64_le(capacity as u64);
        bytes.put_slice(&salt);
        let text = bytes.clone();
        let mut sealer = key.sealer(&salt, PURPOSE_HEAD, 0);
        sealer.seal(&text, &mut bytes, HEAD_TEXT_LEN).expect("a new sealer has its counters left");
        Self { bytes, salt, key: key.id() }
    }

    /// Of the data key that it is sealed with.
    pub(super) fn key_id(&self) -> u32 {
        self.key
    }

    fn key<'a>(&self, keys: &'a KeyRing) -> &'a DataKey {
        keys.key(self.key).expect("keys are never taken out of a ring in use")
    }

    pub(super) fn sealer(&self, keys: &KeyRing, first: u64) -> Sealer {
        self.key(keys).sealer(&self.salt, PURPOSE_RECORDS, first)
    }

    pub(super) fn opener(&self, keys: &KeyRing) -> Opener {
        self.key(keys).opener(&self.salt, PURPOSE_RECORDS)
    }
}

/// What a segment's head says.
pub(super) struct Head {
    /// Of its records.
    pub(super) opener: Opener,
    /// Data key that the records are sealed with.
    pub(super) key: u32,
    /// Bytes of the file when it was made, and until the log cuts it.
    pub(super) capacity: u64,
}

/// Checks a head.
pub(super) fn open_head(bytes: &[u8], sequence: u64, keys: &KeyRing) -> Result<Head, HeadError> {
    let head = bytes.get(..HEAD_LEN).ok_or(HeadError::Short)?;
    let (text, tag) = head.split_at(HEAD_TEXT_LEN);
    let mut rest = text;
    let mut magic = [0; 8];
    rest.copy_to_slice(&mut magic);
    if &magic != MAGIC {
        return Err(HeadError::Magic);
    }
    let found = rest.get_u16_le();
    if found != VERSION {
        return Err(HeadError::Version { found });
    }
    rest.advance(2);
    let key = keys.key(rest.get_u32_le())?;
    let found = rest.get_u64_le();
    let capacity = rest.get_u64_le();
    let mut salt = [0; 32];
    rest.copy_to_slice(&mut salt);
    let mut tag = tag.to_vec();
    let head_opener = key.opener(&salt, PURPOSE_HEAD);
    head_opener.open(0, text, &mut tag).map_err(|_| HeadError::Seal)?;
    if found != sequence {
        return Err(HeadError::Sequence { found });
    }
    Ok(Head { opener: key.opener(&salt, PURPOSE_RECORDS), key: key.id(), capacity })
}

fn put_log_id(out: &mut Vec<u8>, id: LogId) {
    out.put_u64_le(id.term);
    out.put_u64_le(id.node);
    out.put_u64_le(id.index);
}

fn put_optional(out: &mut Vec<u8>, id: Option<LogId>) {
    out.put_u8(u8::from(id.is_some()));
    if let Some(id) = id {
        put_log_id(out, id);
    }
}

fn put_vote(out: &mut Vec<u8>, vote: Vote) {
    out.put_u64_le(vote.term);
    out.put_u64_le(vote.node);
    out.put_u8(u8::from(vote.committed));
}

impl EntryKind {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Blank => 0,
            Self::Transactions => 1,
            Self::Membership => 2,
        }
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        [Self::Blank, Self::Transactions, Self::Membership]
            .into_iter()
            .find(|kind| kind.number() == number)
    }
}

impl Record {
    fn kind(&self) -> u8 {
        match self {
            Self::Base(_) => 1,
            Self::Entry(_) => 2,
            Self::Vote(_) => 3,
            Self::Truncate(_) => 4,
            Self::Purge(_) => 5,
            Self::Mark => 6,
            Self::Committed(_) => 7,
            Self::End { .. } => 8,
        }
    }

    /// Bytes that it takes in a segment.
    pub(super) fn len(&self) -> usize {
        let text = match self {
            Self::Entry(entry) => return ENTRY_OVERHEAD + entry.payload.len(),
            Self::Base(_) => 128,
            Self::Vote(_) => 17,
            Self::Truncate(_) => 25,
            Self::Purge(_) => 24,
            Self::Mark => 0,
            Self::Committed(_) => COMMITTED_LEN,
            Self::End { .. } => return END_LEN,
        };
        RECORD_OVERHEAD + text
    }

    fn put_text(&self, out: &mut Vec<u8>) {
        match self {
            Self::Base(base) => {
                out.put_u8(u8::from(base.vote.is_some()));
                if let Some(vote) = base.vote {
                    put_vote(out, vote);
                }
                put_optional(out, base.purged);
                put_optional(out, base.last);
            }
            Self::Entry(entry) => {
                put_log_id(out, entry.id);
                out.put_u8(entry.kind.number());
                out.put_slice(&entry.payload);
            }
            Self::Vote(vote) => put_vote(out, *vote),
            Self::Truncate(after) => put_optional(out, *after),
            Self::Purge(upto) => put_log_id(out, *upto),
            Self::Mark => {}
            Self::Committed(index) => out.put_u64_le(*index),
            Self::End { more } => out.put_u8(u8::from(*more)),
        }
    }

    /// Appends the sealed record; returns its counter.
    pub(super) fn seal(
        &self,
        sealer: &mut Sealer,
        durable: u64,
        out: &mut Vec<u8>,
    ) -> Result<u64, warren_trust::SealError> {
        let start = out.len();
        out.put_bytes(0, RECORD_HEAD_LEN);
        self.put_text(out);
        let sealed_len = out.len() - start - RECORD_HEAD_LEN + SEAL_OVERHEAD;
        let head = RecordHead {
            len: sealed_len,
            kind: self.kind(),
            counter: sealer.next_counter(),
            durable,
        };
        let head = head.encode();
        out[start..start + RECORD_HEAD_LEN].copy_from_slice(&head);
        sealer.seal(&head, out, start + RECORD_HEAD_LEN)
    }

    /// `None` when the text does not fit the kind: written by something newer, or a fault of ours.
    pub(super) fn decode(kind: u8, text: &[u8]) -> Option<Self> {
        let mut rest = text;
        let record = match kind {
            1 => {
                let vote = if flag(&mut rest)? { Some(take_vote(&mut rest)?) } else { None };
                let purged = take_optional(&mut rest)?;
                Self::Base(Base { vote, purged, last: take_optional(&mut rest)? })
            }
            2 => {
                let id = take_log_id(&mut rest)?;
                let kind = EntryKind::from_number(rest.try_get_u8().ok()?)?;
                Self::Entry(Entry {
                    id,
                    kind,
                    payload: Bytes::copy_from_slice(std::mem::take(&mut rest)),
                })
            }
            3 => Self::Vote(take_vote(&mut rest)?),
            4 => Self::Truncate(take_optional(&mut rest)?),
            5 => Self::Purge(take_log_id(&mut rest)?),
            6 => Self::Mark,
            7 => Self::Committed(rest.try_get_u64_le().ok()?),
            8 => Self::End { more: flag(&mut rest)? },
            _ => return None,
        };
        rest.is_empty().then_some(record)
    }
}

fn flag(rest: &mut &[u8]) -> Option<bool> {
    match rest.try_get_u8().ok()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn take_log_id(rest: &mut &[u8]) -> Option<LogId> {
    let term = rest.try_get_u64_le().ok()?;
    let node = rest.try_get_u64_le().ok()?;
    Some(LogId { term, node, index: rest.try_get_u64_le().ok()? })
}

fn take_optional(rest: &mut &[u8]) -> Option<Option<LogId>> {
    Some(if flag(rest)? { Some(take_log_id(rest)?) } else { None })
}

fn take_vote(rest: &mut &[u8]) -> Option<Vote> {
    let term = rest.try_get_u64_le().ok()?;
    let node = rest.try_get_u64_le().ok()?;
    Some(Vote { term, node, committed: flag(rest)? })
}

impl RecordHead {
    fn encode(&self) -> [u8; RECORD_HEAD_LEN] {
        let mut out = [0; RECORD_HEAD_LEN];
        let len = u32::try_from(self.len).expect("texts are far below 4 GiB");
        out[..4].copy_from_slice(&len.to_le_bytes());
        out[4] = self.kind;
        out[8..16].copy_from_slice(&self.counter.to_le_bytes());
        out[16..].copy_from_slice(&self.durable.to_le_bytes());
        out
    }

    /// A head that could be one of ours; whether it is, the seal says.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.get(..RECORD_HEAD_LEN)?;
        let len = usize::try_from(rest.get_u32_le()).ok()?;
        let kind = rest.get_u8();
        rest.advance(3);
        let head = Self { len, kind, counter: rest.get_u64_le(), durable: rest.get_u64_le() };
        let sane = (SEAL_OVERHEAD..=TEXT_MAX + SEAL_OVERHEAD).contains(&len);
        (sane && head.durable < head.counter && bytes[5..8] == [0; 3]).then_some(head)
    }

    pub(super) fn record_len(&self) -> usize {
        RECORD_HEAD_LEN + self.len
    }

    /// Opens the record that `bytes` begins with, in place.
    pub(super) fn open<'a>(&self, opener: &Opener, bytes: &'a mut [u8]) -> Option<&'a [u8]> {
        let record = bytes.get_mut(..self.record_len())?;
        let (head, sealed) = record.split_at_mut(RECORD_HEAD_LEN);
        opener.open(self.counter, head, sealed).ok().map(|text| &*text)
    }
}

#[cfg(test)]
mod tests {
    use warren_base::rng::SeededRng;

    use super::*;

    fn id(index: u64) -> LogId {
        LogId { term: 3, node: 1, index }
    }

    #[test]
    fn records_round_trip() {
        let rng = SeededRng::new(4);
        let keys = KeyRing::generate(&rng);
        let head = NewHead::make(&keys, 7, 4096, &rng);
        assert_eq!(head.bytes.len(), HEAD_LEN);
        let Head { opener, key, capacity } = open_head(&head.bytes, 7, &keys).unwrap();
        assert_eq!((key, capacity), (head.key_id(), 4096));
        let mut sealer = head.sealer(&keys, 1);
        let vote = Vote { term: 3, node: 1, committed: true };
        let entry =
            Entry { id: id(9), kind: EntryKind::Transactions, payload: Bytes::from_static(b"abc") };
        let records = [
            Record::Base(Base { vote: Some(vote), purged: None, last: Some(id(4)) }),
            Record::Entry(entry),
            Record::Vote(vote),
            Record::Truncate(None),
            Record::Truncate(Some(id(2))),
            Record::Purge(id(1)),
            Record::Mark,
            Record::Committed(7),
            Record::End { more: true },
        ];
        for (at, record) in records.iter().enumerate() {
            let mut bytes = Vec::new();
            let counter = record.seal(&mut sealer, at as u64, &mut bytes).unwrap();
            let found = RecordHead::decode(&bytes).unwrap();
            assert_eq!((found.counter, found.durable), (counter, at as u64));
            assert_eq!(found.record_len(), bytes.len());
            if let Record::Entry(entry) = record {
                assert_eq!(bytes.len(), ENTRY_OVERHEAD + entry.payload.len());
            }
            let text = found.open(&opener, &mut bytes).unwrap();
            assert_eq!(Record::decode(found.kind, text).as_ref(), Some(record));
            for cut in 0..text.len() {
                let short = Record::decode(found.kind, &text[..cut]);
                assert_ne!(short.as_ref(), Some(record));
            }
        }
        assert_eq!(Record::decode(99, b""), None);
        assert_eq!(Record::decode(6, b"x"), None);
    }

    #[test]
    fn heads_are_checked() {
        let rng = SeededRng::new(4);
        let keys = KeyRing::generate(&rng);
        let good = NewHead::make(&keys, 7, 4096, &rng).bytes;
        assert!(matches!(open_head(&good, 8, &keys), Err(HeadError::Sequence { found: 7 })));
        assert!(matches!(open_head(&good[..79], 7, &keys), Err(HeadError::Short)));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(open_head(&bad, 7, &keys).is_err(), "bit {bit}");
        }
        let other = KeyRing::generate(&rng);
        assert!(matches!(open_head(&good, 7, &other), Err(HeadError::Seal)));
    }
}
