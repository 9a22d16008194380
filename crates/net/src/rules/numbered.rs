//! Long lists of shared entries, compared in the time that their difference takes.
//!
//! Entries that stand where they stood are compared by pointer from both ends of the
//! list; what is left in the middle is matched by key. So one change among thousands
//! costs thousands of pointer comparisons (microseconds) and one entry's work.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Has a name that is unique in its list.
pub(crate) trait Keyed: PartialEq {
    fn key(&self) -> &str;
}

/// An entry and the number that stands for it in the kernel's maps, for as long as it is there.
#[derive(Debug)]
pub(crate) struct Numbered<T> {
    pub(crate) entry: Arc<T>,
    pub(crate) id: u32,
}

impl<T> Clone for Numbered<T> {
    fn clone(&self) -> Self {
        Self { entry: Arc::clone(&self.entry), id: self.id }
    }
}

impl<T: PartialEq> PartialEq for Numbered<T> {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && (Arc::ptr_eq(&self.entry, &other.entry) || self.entry == other.entry)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct List<T> {
    entries: Vec<Numbered<T>>,
    last_id: u32,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), last_id: 0 }
    }
}

impl<T: PartialEq> PartialEq for List<T> {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl<T: PartialEq> Eq for List<T> {}

impl<T: Keyed> List<T> {
    /// `wanted` with the numbers that `self` has for the same keys.
    pub(crate) fn next(&self, wanted: &[Arc<T>]) -> Self {
        let held = &self.entries;
        let (start, end) = common(held, wanted, |held, wanted| Arc::ptr_eq(&held.entry, wanted));
        let middle = &held[start..held.len() - end];
        let known: BTreeMap<&str, u32> =
            middle.iter().map(|held| (held.entry.key(), held.id)).collect();
        let mut next = Self { entries: Vec::with_capacity(wanted.len()), last_id: self.last_id };
        next.entries.extend_from_slice(&held[..start]);
        for entry in &wanted[start..wanted.len() - end] {
            let id = known.get(entry.key()).copied().unwrap_or_else(|| {
                next.last_id = next.last_id.wrapping_add(1);
                next.last_id
            });
            next.entries.push(Numbered { entry: Arc::clone(entry), id });
        }
        next.entries.extend_from_slice(&held[held.len() - end..]);
        next
    }

    /// No entries, but the memory of numbers.
    pub(crate) fn bare(&self) -> Self {
        Self { entries: Vec::new(), last_id: self.last_id }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Numbered<T>> {
        self.entries.iter()
    }

    /// Entries that are not the same in both: as they were, and as they are.
    pub(crate) fn changes<'a>(
        &'a self,
        next: &'a Self,
    ) -> (Vec<&'a Numbered<T>>, Vec<&'a Numbered<T>>) {
        let same =
            |a: &Numbered<T>, b: &Numbered<T>| a.id == b.id && Arc::ptr_eq(&a.entry, &b.entry);
        let (start, end) = common(&self.entries, &next.entries, same);
        let old = &self.entries[start..self.entries.len() - end];
        let new = &next.entries[start..next.entries.len() - end];
        let by_id = |list: &'a [Numbered<T>]| -> BTreeMap<u32, &'a Numbered<T>> {
            list.iter().map(|numbered| (numbered.id, numbered)).collect()
        };
        let (olds, news) = (by_id(old), by_id(new));
        let differs = |others: &BTreeMap<u32, &'a Numbered<T>>, numbered: &Numbered<T>| {
            others.get(&numbered.id).is_none_or(|other| **other != *numbered)
        };
        (
            old.iter().filter(|numbered| differs(&news, numbered)).collect(),
            new.iter().filter(|numbered| differs(&olds, numbered)).collect(),
        )
    }
}

/// How many entries at the beginning and at the end of two lists are the same.
fn common<A, B>(a: &[A], b: &[B], same: impl Fn(&A, &B) -> bool) -> (usize, usize) {
    let start = a.iter().zip(b).take_while(|(a, b)| same(a, b)).count();
    let rest = a[start..].iter().rev().zip(b[start..].iter().rev());
    (start, rest.take_while(|(a, b)| same(a, b)).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Entry(&'static str, u32);

    impl Keyed for Entry {
        fn key(&self) -> &str {
            self.0
        }
    }

    /// `a1 b2`: entry a with value 1, entry b with value 2; those of `known` are shared.
    fn list(notation: &'static str, known: &[Arc<Entry>]) -> Vec<Arc<Entry>> {
        let entry = |word: &'static str| Entry(&word[..1], word[1..].parse().unwrap());
        let share = |entry: Entry| {
            known.iter().find(|k| ***k == entry).cloned().unwrap_or_else(|| Arc::new(entry))
        };
        notation.split_whitespace().map(entry).map(share).collect()
    }

    #[track_caller]
    fn check(held: &'static str, wanted: &'static str, expected: &str) {
        let entries = list(held, &[]);
        let held = List::default().next(&entries);
        let next = held.next(&list(wanted, &entries));
        let text = |list: Vec<&Numbered<Entry>>| -> String {
            list.iter().map(|n| format!("{}{}#{} ", n.entry.0, n.entry.1, n.id)).collect()
        };
        let (old, new) = held.changes(&next);
        assert_eq!(format!("-{}+{}", text(old), text(new)).replace(' ', ""), expected);
    }

    #[test]
    fn what_differs() {
        check("", "", "-+");
        check("a1 b1 c1", "a1 b1 c1", "-+");
        check("a1 b1 c1", "a1 b2 c1", "-b1#2+b2#2");
        check("a1 b1 c1", "a1 c1", "-b1#2+");
        check("a1 c1", "a1 b1 c1", "-+b1#3");
        check("", "a1 b1", "-+a1#1b1#2");
        check("a1 b1", "", "-a1#1b1#2+");
        // Moved is not changed, and a number is not given twice.
        check("a1 b1 c1", "c1 b1 a1", "-+");
        check("a1 b1 c1", "d1 b1 c1", "-a1#1+d1#4");
    }
}
