//! What openraft uses of the crate of this name: a histogram over powers of two.
//!
//! The original computes 26 MiB of tables when its first histogram is made,
//! most of a node's memory, for statistics that nobody reads: openraft's
//! feature `runtime-stats` is off. Here are 64 counters and no tables. See
//! `docs/adr/002-histograms-of-openraft.md`.
//!
//! Not here: scales, interpolation, and charts worth looking at.

use std::fmt;
use std::marker::PhantomData;

/// Values counted by the number of their bits; `T` is for compatibility alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: [u64; 65],
    mark: PhantomData<T>,
}

impl<T> Histogram<T> {
    pub fn new() -> Self {
        Self { counts: [0; 65], mark: PhantomData }
    }

    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value `n` times.
    pub fn record_n(&mut self, value: u64, n: u64) {
        let bits = u64::BITS - value.leading_zeros();
        self.counts[bits as usize] += n;
    }

    /// Values counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Percentiles, each as the smallest value of its number of bits.
    pub fn percentile_stats(&self) -> PercentileStats {
        let at = |permille: u64| self.at(permille);
        PercentileStats {
            samples: self.total(),
            p0_1: at(1),
            p1: at(10),
            p5: at(50),
            p10: at(100),
            p50: at(500),
            p90: at(900),
            p99: at(990),
            p99_9: at(999),
        }
    }

    fn at(&self, permille: u64) -> u64 {
        let wanted = (self.total() * permille).div_ceil(1000);
        let mut seen = 0;
        for (bits, count) in (0_u32..).zip(&self.counts) {
            seen += count;
            if seen >= wanted && seen > 0 {
                return if bits == 0 { 0 } else { 1 << (bits - 1) };
            }
        }
        0
    }
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Percentiles of a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n={} p50={} p90={} p99={}", self.samples, self.p50, self.p90, self.p99)
    }
}

/// Histograms side by side, a line each.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart {
    lines: Vec<String>,
}

impl AsciiChart {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn add<T>(mut self, name: &str, histogram: Histogram<T>) -> Self {
        self.lines.push(format!("{name}: {}", histogram.percentile_stats()));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}
