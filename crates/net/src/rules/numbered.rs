//! Lists of entries with numbers that stand for them in the kernel's maps.
//!
//! Like the [`Entries`] that they are made of, one is made of another, and compared with it, in
//! the time that their difference takes: one change among thousands costs one entry's work.

use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use crate::entries::{Became, Entries, Keyed};

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

#[derive(Debug)]
pub(crate) struct List<T> {
    /// What it was made of.
    of: Entries<T>,
    entries: OrdMap<Arc<str>, Numbered<T>>,
    last_id: u32,
}

impl<T> Clone for List<T> {
    fn clone(&self) -> Self {
        let (of, entries) = (self.of.clone(), self.entries.clone());
        Self { of, entries, last_id: self.last_id }
    }
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { of: Entries::default(), entries: OrdMap::new(), last_id: 0 }
    }
}

impl<T: PartialEq> PartialEq for List<T> {
    fn eq(&self, other: &Self) -> bool {
        self.entries.diff(&other.entries).next().is_none()
    }
}

impl<T: PartialEq> Eq for List<T> {}

/// Entries that are not the same in two lists: as they were, and as they are.
pub(crate) type Changes<'a, T> = (Vec<&'a Numbered<T>>, Vec<&'a Numbered<T>>);

impl<T: Keyed + Eq> List<T> {
    /// `wanted` with the numbers that `self` has for the same keys.
    pub(crate) fn next(&self, wanted: &Entries<T>) -> Self {
        let mut next = self.clone();
        for became in wanted.since(&self.of) {
            match became {
                Became::Gone(key) => {
                    next.entries.remove(key);
                }
                Became::Is(entry) => {
                    let id =
                        self.entries.get(entry.key()).map(|held| held.id).unwrap_or_else(|| {
                            next.last_id = next.last_id.wrapping_add(1);
                            next.last_id
                        });
                    let numbered = Numbered { entry: Arc::clone(entry), id };
                    next.entries.insert(Arc::clone(entry.key()), numbered);
                }
            }
        }
        next.of = wanted.clone();
        next
    }

    /// No entries, but the memory of numbers.
    pub(crate) fn bare(&self) -> Self {
        Self { last_id: self.last_id, ..Self::default() }
    }

    /// In order of key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Numbered<T>> {
        self.entries.values()
    }

    /// What is not the same in `next`, in order of key.
    pub(crate) fn changes<'a>(&'a self, next: &'a Self) -> Changes<'a, T> {
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for item in self.entries.diff(&next.entries) {
            match item {
                DiffItem::Add(_, is) => new.push(is),
                DiffItem::Update { old: (_, was), new: (_, is) } => {
                    old.push(was);
                    new.push(is);
                }
                DiffItem::Remove(_, was) => old.push(was),
            }
        }
        (old, new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    struct Entry(Arc<str>, u32);

    impl Keyed for Entry {
        fn key(&self) -> &Arc<str> {
            &self.0
        }
    }

    /// `a1 b2`: entry a with value 1, entry b with value 2; those of `known` are shared.
    fn list(notation: &str, known: &Entries<Entry>) -> Entries<Entry> {
        let entry = |word: &str| Entry(word[..1].into(), word[1..].parse().unwrap());
        let share = |entry: Entry| {
            let same = known.get(&entry.0).filter(|known| ***known == entry).cloned();
            same.unwrap_or_else(|| Arc::new(entry))
        };
        notation.split_whitespace().map(entry).map(share).collect()
    }

    #[track_caller]
    fn check(held: &str, wanted: &str, expected: &str) {
        let entries = list(held, &Entries::default());
        let held = List::default().next(&entries);
        let next = held.next(&list(wanted, &entries));
        let text = |list: Vec<&Numbered<Entry>>| -> String {
            list.iter().map(|n| format!("{}{}#{} ", n.entry.0, n.entry.1, n.id)).collect()
        };
        let (old, new) = held.changes(&next);
        assert_eq!(held == next, expected == "-+");
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
        // Order says nothing, and a number is not given twice.
        check("a1 b1 c1", "c1 b1 a1", "-+");
        check("a1 b1 c1", "d1 b1 c1", "-a1#1+d1#4");
    }
}
