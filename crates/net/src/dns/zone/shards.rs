//! A map whose clones share what neither of them changed.
//!
//! Entries lie in [`SHARDS`] arrays, each in order of hash. A change copies the list of arrays
//! and one array; a look-up is a binary search in one. Against a tree of hashes (`imbl`) it takes
//! less memory, since nothing is half empty, and fewer steps through memory that is not cached.

use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

/// 10,000 services make about 150 entries in the largest map's arrays.
const SHARDS: usize = 512;
/// The leading bits of a hash that say which.
const SHARD_BITS: u32 = SHARDS.ilog2();

#[derive(Debug, Clone)]
pub(super) struct Shards<K, V> {
    /// Keyed: names come from people.
    hasher: RandomState,
    shards: Arc<Vec<Shard<K, V>>>,
    len: usize,
}

type Shard<K, V> = Arc<Vec<Entry<K, V>>>;

#[derive(Debug, Clone)]
struct Entry<K, V> {
    /// The trailing bits.
    hash: u32,
    key: K,
    value: V,
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        let empty: Shard<K, V> = Arc::new(Vec::new());
        let shards = Arc::new(vec![empty; SHARDS]);
        Self { hasher: RandomState::new(), shards, len: 0 }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Shards<K, V> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let (shard, hash) = self.place(key);
        let shard = &self.shards[shard];
        find(shard, hash, key).ok().map(|at| &shard[at].value)
    }

    pub(super) fn contains_key<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    pub(super) fn get_mut<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let (shard, hash) = self.place(key);
        let at = find(&self.shards[shard], hash, key).ok()?;
        Some(&mut self.shard_mut(shard)[at].value)
    }

    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let (shard, hash) = self.place(&key);
        match find(&self.shards[shard], hash, &key) {
            Ok(at) => Some(std::mem::replace(&mut self.shard_mut(shard)[at].value, value)),
            Err(at) => {
                let entries = self.shard_mut(shard);
                if entries.len() == entries.capacity() {
                    // Room for a few: half empty arrays would be a third of all memory.
                    entries.reserve_exact(entries.len() / 8 + 1);
                }
                entries.insert(at, Entry { hash, key, value });
                self.len += 1;
                None
            }
        }
    }

    pub(super) fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let (shard, hash) = self.place(key);
        let at = find(&self.shards[shard], hash, key).ok()?;
        self.len -= 1;
        Some(self.shard_mut(shard).remove(at).value)
    }

    fn shard_mut(&mut self, shard: usize) -> &mut Vec<Entry<K, V>> {
        Arc::make_mut(&mut Arc::make_mut(&mut self.shards)[shard])
    }

    /// The array, and the hash within it.
    fn place<Q: Hash + ?Sized>(&self, key: &Q) -> (usize, u32) {
        let hash = self.hasher.hash_one(key);
        let shard = usize::try_from(hash >> (u64::BITS - SHARD_BITS)).unwrap_or(0);
        (shard, u32::try_from(hash & u64::from(u32::MAX)).unwrap_or(0))
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.shards.iter().flat_map(|shard| shard.iter()).map(|entry| (&entry.key, &entry.value))
    }
}

/// Where `key` is, or where it belongs.
fn find<K: Borrow<Q>, V, Q: Eq + ?Sized>(
    entries: &[Entry<K, V>],
    hash: u32,
    key: &Q,
) -> Result<usize, usize> {
    let first = entries.partition_point(|entry| entry.hash < hash);
    for (at, entry) in entries.iter().enumerate().skip(first) {
        if entry.hash != hash {
            break;
        }
        if entry.key.borrow() == key {
            return Ok(at);
        }
    }
    Err(first)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map_and_clones_stay(steps in prop::collection::vec((0u16..300, any::<Option<u8>>()), 0..600)) {
            let (mut shards, mut map) = (Shards::default(), BTreeMap::new());
            let mut before = Vec::new();
            for (key, value) in steps {
                match value {
                    Some(value) => prop_assert_eq!(shards.insert(key, value), map.insert(key, value)),
                    None => prop_assert_eq!(shards.remove(&key), map.remove(&key)),
                }
                if key == 0 {
                    before.push((shards.clone(), map.clone()));
                }
                if let Some(value) = shards.get_mut(&(key / 2)) {
                    *value = value.wrapping_add(1);
                    map.entry(key / 2).and_modify(|value| *value = value.wrapping_add(1));
                }
            }
            before.push((shards, map));
            for (shards, map) in before {
                prop_assert_eq!(shards.len(), map.len());
                let all: BTreeMap<u16, u8> = shards.iter().map(|(key, value)| (*key, *value)).collect();
                prop_assert_eq!(all, map);
            }
        }
    }
}
