//! Lists of shared entries that two tables have in common for the most part.
//!
//! A list is a tree by key: a copy costs a pointer, a change of one entry the way to it, and two
//! lists of which one was made of the other are compared in the time that their difference takes.

use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::{DiffItem, Values};
use imbl::shared_ptr::DefaultSharedPtr;

/// Has a name that is unique in its list.
pub trait Keyed: PartialEq {
    /// The name.
    fn key(&self) -> &Arc<str>;
}

/// Entries by key; of two with the same key the later.
#[derive(Debug)]
pub struct Entries<T>(OrdMap<Arc<str>, Arc<T>>);

impl<T> Clone for Entries<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self(OrdMap::new())
    }
}

impl<T: Eq> PartialEq for Entries<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0.diff(&other.0).next().is_none()
    }
}

impl<T: Eq> Eq for Entries<T> {}

/// What became of one entry.
pub(crate) enum Became<'a, T> {
    /// It is new, or is another one.
    Is(&'a Arc<T>),
    /// It is no more.
    Gone(&'a Arc<str>),
}

impl<T: Keyed + Eq> Entries<T> {
    /// Puts an entry in the place of what had its key.
    pub fn insert(&mut self, entry: Arc<T>) {
        // What is the same stays the same tree.
        if self.0.get(entry.key()) != Some(&entry) {
            self.0.insert(Arc::clone(entry.key()), entry);
        }
    }

    /// Removes what has `key`, if anything has.
    pub fn remove(&mut self, key: &str) {
        self.0.remove(key);
    }

    /// What has `key`.
    pub fn get(&self, key: &str) -> Option<&Arc<T>> {
        self.0.get(key)
    }

    /// All, in order of key.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.0.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What makes this list of `before`.
    pub(crate) fn since<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = Became<'a, T>> {
        before.0.diff(&self.0).map(|item| match item {
            DiffItem::Add(_, new) | DiffItem::Update { old: _, new: (_, new) } => Became::Is(new),
            DiffItem::Remove(key, _) => Became::Gone(key),
        })
    }
}

impl<'a, T> IntoIterator for &'a Entries<T> {
    type Item = &'a Arc<T>;
    type IntoIter = Values<'a, Arc<str>, Arc<T>, DefaultSharedPtr>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.values()
    }
}

impl<T: Keyed + Eq> FromIterator<Arc<T>> for Entries<T> {
    fn from_iter<I: IntoIterator<Item = Arc<T>>>(entries: I) -> Self {
        Self(entries.into_iter().map(|entry| (Arc::clone(entry.key()), entry)).collect())
    }
}

impl<T: Keyed + Eq> From<Vec<Arc<T>>> for Entries<T> {
    fn from(entries: Vec<Arc<T>>) -> Self {
        entries.into_iter().collect()
    }
}
