//! Where each entry of the log is: ids by runs of leaders, places by index.
//!
//! 16 bytes an entry. Pure: no file is touched here.

use std::collections::{BTreeMap, VecDeque};

use super::segment::LogId;

/// A place in a segment; `len` is 0 until the entry was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) offset: u32,
    pub(super) len: u32,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    /// Index of the first entry in `places`.
    first: u64,
    places: VecDeque<Place>,
    /// From which index on which (term, node) led; one item an election.
    leaders: BTreeMap<u64, (u64, u64)>,
}

impl Index {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Nothing but the knowledge that `last` came before.
    pub(super) fn reset(&mut self, last: Option<LogId>) {
        self.places.clear();
        self.leaders.clear();
        self.first = last.map_or(0, |id| id.index + 1);
    }

    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// The index that the next entry must have.
    pub(super) fn next(&self) -> u64 {
        self.first + self.places.len() as u64
    }

    /// Adds an entry, which must be the next one; it has no place yet.
    pub(super) fn push(&mut self, id: LogId) {
        debug_assert_eq!(id.index, self.next(), "entries come in order");
        let leader = (id.term, id.node);
        if self.leaders.last_key_value().map(|(_, known)| *known) != Some(leader) {
            self.leaders.insert(id.index, leader);
        }
        self.places.push_back(Place { segment: 0, offset: 0, len: 0 });
    }

    fn slot(&self, index: u64) -> Option<usize> {
        usize::try_from(index.checked_sub(self.first)?).ok()
    }

    /// Notes where an entry was written; one that is gone meanwhile stays gone.
    pub(super) fn place(&mut self, index: u64, segment: u64, offset: usize, len: usize) {
        let place = self.slot(index).and_then(|slot| self.places.get_mut(slot));
        if let Some(place) = place {
            let small = |n: usize| u32::try_from(n).expect("segments are far below 4 GiB");
            *place = Place { segment, offset: small(offset), len: small(len) };
        }
    }

    pub(super) fn get(&self, index: u64) -> Option<Place> {
        self.places.get(self.slot(index)?).copied()
    }

    /// The id of an entry that is in the index.
    pub(super) fn id(&self, index: u64) -> Option<LogId> {
        self.slot(index).filter(|slot| *slot < self.places.len())?;
        let (_, (term, node)) = self.leaders.range(..=index).next_back()?;
        Some(LogId { term: *term, node: *node, index })
    }

    pub(super) fn truncate_after(&mut self, after: Option<LogId>) {
        let next = after.map_or(0, |id| id.index + 1);
        if next < self.first {
            // Reading back, with the void entries in a segment that is gone: they were purged.
            return self.reset(after);
        }
        let keep = usize::try_from(next - self.first).unwrap_or(usize::MAX);
        self.places.truncate(keep);
        self.leaders.split_off(&self.next());
    }

    pub(super) fn purge(&mut self, upto: LogId) {
        self.purge_upto(Some(upto.index));
        if self.places.is_empty() && upto.index >= self.first {
            self.reset(Some(upto));
        }
    }

    pub(super) fn purge_upto(&mut self, upto: Option<u64>) {
        let Some(next) = upto.map(|index| index + 1) else { return };
        while self.first < next && self.places.pop_front().is_some() {
            self.first += 1;
        }
        // The run that the new first entry is in stays, under that entry's index.
        if let Some((_, leader)) = self.leaders.range(..=self.first).next_back() {
            let leader = *leader;
            self.leaders = self.leaders.split_off(&self.first);
            self.leaders.insert(self.first, leader);
        }
    }

    /// Bytes of the entries from `from` on.
    pub(super) fn bytes_from(&self, from: u64) -> u64 {
        let skip = usize::try_from(from.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.places.iter().skip(skip).map(|place| u64::from(place.len)).sum()
    }

    /// Last entry of each leader in `from..=upto`, one of each.
    pub(super) fn key_ids(&self, from: u64, upto: u64) -> Vec<LogId> {
        let later = self.leaders.range(..=upto).filter(|(first, _)| **first > from);
        let later = later.map(|(first, _)| first - 1);
        later.chain([upto]).filter_map(|index| self.id(index)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(term: u64, index: u64) -> LogId {
        LogId { term, node: 1, index }
    }

    fn last(index: &Index) -> Option<LogId> {
        index.id(index.next().checked_sub(1)?)
    }

    fn filled(terms: &[u64]) -> Index {
        let mut index = Index::new();
        for (at, term) in terms.iter().enumerate() {
            index.push(id(*term, at as u64));
            index.place(at as u64, 1, at * 10, 10);
        }
        index
    }

    #[test]
    fn ids_and_places() {
        let mut index = filled(&[1, 1, 2, 2, 2, 5]);
        assert_eq!((last(&index), index.next()), (Some(id(5, 5)), 6));
        assert_eq!(index.key_ids(1, 5), [id(1, 1), id(2, 4), id(5, 5)]);
        assert_eq!(index.key_ids(2, 4), [id(2, 4)]);
        assert_eq!(index.key_ids(5, 5), [id(5, 5)]);
        assert_eq!(index.bytes_from(4), 20);
        index.truncate_after(Some(id(2, 3)));
        assert_eq!((last(&index), index.next()), (Some(id(2, 3)), 4));
        index.push(id(7, 4));
        assert_eq!(index.get(4).unwrap().len, 0);
        index.purge(id(2, 2));
        assert_eq!((index.first(), index.id(2), index.id(3)), (3, None, Some(id(2, 3))));
        assert_eq!(index.key_ids(3, 4), [id(2, 3), id(7, 4)]);
        index.place(1, 9, 9, 9);
        index.purge(id(9, 20));
        assert_eq!((index.first(), index.next(), last(&index)), (21, 21, None));
        index.push(id(9, 21));
        assert_eq!(last(&index), Some(id(9, 21)));
    }

    #[test]
    fn truncating_everything() {
        let mut index = filled(&[1, 1]);
        index.truncate_after(None);
        assert_eq!((index.next(), last(&index)), (0, None));
        index.push(id(4, 0));
        assert_eq!(index.id(0), Some(id(4, 0)));
    }
}
