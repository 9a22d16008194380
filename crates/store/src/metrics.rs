//! What the store counts, for whoever shows it.
//!
//! Counters only go up. Plain atomics: nothing here waits.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper ends of the buckets of sync times, in microseconds; one more has the rest.
pub const SYNC_BUCKETS_US: [u64; 12] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000];

/// Of the log's writer.
#[derive(Debug, Default)]
pub struct LogMetrics {
    syncs: AtomicU64,
    sync_us: AtomicU64,
    entries: AtomicU64,
    buckets: [AtomicU64; SYNC_BUCKETS_US.len() + 1],
}

impl LogMetrics {
    pub(crate) fn synced(&self, took: Duration, entries: usize) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.syncs.fetch_add(1, Relaxed);
        self.sync_us.fetch_add(us, Relaxed);
        self.entries.fetch_add(entries as u64, Relaxed);
        let bucket = SYNC_BUCKETS_US.iter().position(|end| us <= *end);
        self.buckets[bucket.unwrap_or(SYNC_BUCKETS_US.len())].fetch_add(1, Relaxed);
    }

    pub(crate) fn snapshot(&self) -> SyncCounts {
        SyncCounts {
            syncs: self.syncs.load(Relaxed),
            sync_us: self.sync_us.load(Relaxed),
            entries: self.entries.load(Relaxed),
            buckets: std::array::from_fn(|at| self.buckets[at].load(Relaxed)),
        }
    }
}

/// Of the store as a whole.
#[derive(Debug, Default)]
pub(crate) struct StoreMetrics {
    pub(crate) proposals: AtomicU64,
    pub(crate) forwarded: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) refused_calls: AtomicU64,
    pub(crate) snapshots_sent: AtomicU64,
    pub(crate) snapshots_received: AtomicU64,
}

impl StoreMetrics {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }
}

/// How often, and how long, the log was made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncCounts {
    pub syncs: u64,
    /// Sum of all, with the write before.
    pub sync_us: u64,
    /// Entries written.
    pub entries: u64,
    /// Not cumulative; the last has what took longer than the last of [`SYNC_BUCKETS_US`].
    pub buckets: [u64; SYNC_BUCKETS_US.len() + 1],
}

/// All counters and sizes of a store at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    pub term: u64,
    /// Index of the last entry, and of the last applied one.
    pub last_index: u64,
    pub applied_index: u64,
    pub leads: bool,
    pub voters: u64,
    pub learners: u64,
    pub log_bytes: u64,
    pub log_segments: u64,
    pub snapshot_bytes: u64,
    pub snapshot_index: u64,
    pub sync: SyncCounts,
    /// Transactions of this manager's callers, and how many of them went to the leader.
    pub proposals: u64,
    pub forwarded: u64,
    /// Entries that transactions were put into.
    pub batches: u64,
    /// Calls of managers that are none any more, or of another recovery epoch.
    pub refused_calls: u64,
    pub snapshots_sent: u64,
    pub snapshots_received: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syncs_fall_into_buckets() {
        let metrics = LogMetrics::default();
        for us in [100, 101, 999_999, 2_000_000] {
            metrics.synced(Duration::from_micros(us), 2);
        }
        let counts = metrics.snapshot();
        assert_eq!((counts.syncs, counts.entries, counts.sync_us), (4, 8, 3_000_200));
        assert_eq!(counts.buckets, [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
    }
}
