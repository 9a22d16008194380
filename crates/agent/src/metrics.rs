//! Counters of the agent; whoever shows metrics reads them.
//!
//! Plain atomics: counting costs nanoseconds and waits for nobody.

use std::sync::atomic::{AtomicU64, Ordering};

/// All count up from the start of the agent, but for what is said to be a gauge.
#[derive(Debug, Default)]
pub struct Metrics {
    pub sessions_opened: AtomicU64,
    /// Sessions with another manager than the one before.
    pub switches: AtomicU64,
    /// Attempts at a manager that came to nothing.
    pub attempts_failed: AtomicU64,
    pub beats_missed: AtomicU64,
    /// Gauge: smoothed round trip to the manager, in milliseconds.
    pub rtt_ms: AtomicU64,
    pub assignments_applied: AtomicU64,
    /// Old, or not following what is held.
    pub assignments_refused: AtomicU64,
    pub cache_writes: AtomicU64,
    pub cache_failures: AtomicU64,
    pub probes_good: AtomicU64,
    /// Late ones included.
    pub probes_failed: AtomicU64,
    pub became_unhealthy: AtomicU64,
    /// Gauge: tasks whose health is asked for.
    pub watched: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

pub(crate) fn gauge(gauge: &AtomicU64, value: u64) {
    gauge.store(value, Ordering::Relaxed);
}
