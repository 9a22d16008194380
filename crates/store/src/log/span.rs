//! Reading entries back from their segment, many at once.

use std::sync::Arc;

use super::index::Place;
use super::segment::{Entry, LogId, Record, RecordHead};
use super::{LogError, READ_MAX, Readable, Shared, known_id};

/// Neighbours in one segment, to be read at once.
pub(super) struct Span {
    source: Arc<Readable>,
    segment: u64,
    offset: u64,
    len: usize,
    pub(super) ids: Vec<(LogId, Place)>,
}

impl Span {
    pub(super) fn plan(
        shared: &Shared,
        from: u64,
        end: u64,
        bytes_max: usize,
    ) -> Result<Self, LogError> {
        let missing = |index| LogError::Missing { what: format!("entry {index}") };
        let place = |index| shared.index.get(index).filter(|place| place.len > 0);
        let first = place(from).ok_or_else(|| missing(from))?;
        let source = shared.readable.get(&first.segment).ok_or_else(|| missing(from))?;
        let start = u64::from(first.offset);
        let mut span = Self {
            source: source.clone(),
            segment: first.segment,
            offset: start,
            len: 0,
            ids: Vec::new(),
        };
        for index in from..end {
            let place = place(index).ok_or_else(|| missing(index))?;
            let reach = (u64::from(place.offset) + u64::from(place.len)).checked_sub(start);
            let reach = reach.and_then(|reach| usize::try_from(reach).ok());
            // Records of votes and marks between entries are read over.
            let Some(reach) = reach.filter(|_| place.segment == span.segment) else { break };
            if !span.ids.is_empty() && reach > READ_MAX.min(bytes_max) {
                break;
            }
            span.len = reach;
            span.ids.push((known_id(&shared.index, index)?, place));
        }
        Ok(span)
    }

    pub(super) fn read(self, entries: &mut Vec<Entry>) -> Result<usize, LogError> {
        let mut bytes = vec![0; self.len];
        let read = self.source.file.read_at(&mut bytes, self.offset);
        read.map_err(LogError::disk("read segment"))?;
        let mut payloads = 0;
        for (id, place) in self.ids {
            let damaged = LogError::Damaged {
                segment: self.segment,
                offset: u64::from(place.offset),
                counter: 0,
            };
            let at = usize::try_from(u64::from(place.offset) - self.offset).unwrap_or(usize::MAX);
            let rest = bytes.get_mut(at..).unwrap_or_default();
            let head = RecordHead::decode(rest);
            let opened =
                head.and_then(|head| Some((head.kind, head.open(&self.source.opener, rest)?)));
            match opened.and_then(|(kind, text)| Record::decode(kind, text)) {
                Some(Record::Entry(entry)) if entry.id == id => {
                    payloads += entry.payload.len();
                    entries.push(entry);
                }
                Some(_) | None => return Err(damaged),
            }
        }
        Ok(payloads)
    }
}
