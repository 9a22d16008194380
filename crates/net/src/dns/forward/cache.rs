//! Answers of others, for as long as they hold and there is room.
//!
//! Pure; time is given. Two generations: what is used moves to the young one, and when that is
//! full the old one is dropped whole. So what was not asked for in a while goes first, without a
//! list of who came last.

use std::collections::HashMap;
use std::sync::Arc;

use super::Kept;
use crate::dns::answer::Ask;
use crate::dns::tables::Upstream;
use crate::dns::wire::flag;

/// Of both generations: some 10,000 answers.
pub(super) const BYTES_MAX: usize = 4 << 20;
/// What an entry costs beside its bytes: the map's place, two allocations, the count.
const ENTRY_COST: usize = 128;
/// Bits of a query that its answer depends on.
const BITS: u16 = flag::AUTHENTIC | flag::CHECKING_DISABLED;

/// A question as others are asked it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// Name in lower case, type, class.
    pub(super) question: Box<[u8]>,
    /// Of the header.
    pub(super) flags: u16,
    /// Whether signatures are wanted.
    pub(super) dnssec: bool,
    /// Whom it is asked of.
    upstream: Upstream,
}

impl Key {
    pub(super) fn of(ask: &Ask) -> Self {
        let asked = ask.asked();
        let mut question: Box<[u8]> = asked.question.into();
        // The length of a label is below any letter.
        if let Some((name, _)) = question.split_last_chunk_mut::<4>() {
            name.make_ascii_lowercase();
        }
        Self {
            question,
            flags: asked.flags & BITS,
            dnssec: asked.edns.is_some_and(|edns| edns.dnssec),
            upstream: ask.upstream.clone(),
        }
    }
}

#[derive(Default)]
pub(super) struct Cache {
    young: HashMap<Key, Arc<Kept>>,
    old: HashMap<Key, Arc<Kept>>,
    young_bytes: usize,
}

impl Cache {
    pub(super) fn get(&mut self, key: &Key, now_ms: u64) -> Option<Arc<Kept>> {
        if let Some(kept) = self.young.get(key) {
            return (kept.until_ms > now_ms).then(|| Arc::clone(kept));
        }
        let (key, kept) = self.old.remove_entry(key)?;
        if kept.until_ms <= now_ms {
            return None;
        }
        self.put(key, Arc::clone(&kept));
        Some(kept)
    }

    pub(super) fn put(&mut self, key: Key, kept: Arc<Kept>) {
        let bytes = cost(&key, &kept);
        if self.young_bytes + bytes > BYTES_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += bytes;
        self.old.remove(&key);
        let (key_bytes, old) = (key.question.len(), self.young.insert(key, kept));
        if let Some(old) = old {
            self.young_bytes -= ENTRY_COST + key_bytes + size(&old);
        }
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.young.iter().chain(&self.old).map(|(key, kept)| cost(key, kept)).sum()
    }
}

fn cost(key: &Key, kept: &Kept) -> usize {
    ENTRY_COST + key.question.len() + size(kept)
}

fn size(kept: &Kept) -> usize {
    size_of::<Kept>() + kept.response.as_ref().map_or(0, crate::dns::wire::Response::size)
}
