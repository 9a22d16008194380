//! Whoever shows wrong tokens again and again has to wait.
//!
//! Pure. A secret of 128 bits is not guessed; this keeps a misconfigured
//! machine, or a curious one, from filling logs and costing signatures. One
//! entry an address, a bounded number of them: a crowd pushes out those that
//! failed longest ago, never grows the table.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// Failures within [`WINDOW_MS`] after which an address is refused unseen.
pub(crate) const FAILURES_MAX: u32 = 10;
/// Failures are forgotten after so long.
pub(crate) const WINDOW_MS: u64 = 60_000;
/// Addresses remembered: more fail at once only in an attack, which one address less does not help.
const ADDRESSES_MAX: usize = 1024;

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    last_ms: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Limiter {
    failed: BTreeMap<IpAddr, Failures>,
}

impl Limiter {
    /// How long an address must wait; `None` if it may try.
    pub(crate) fn wait_ms(&self, address: IpAddr, now_ms: u64) -> Option<u64> {
        let failures = self.failed.get(&address).filter(|f| f.count >= FAILURES_MAX)?;
        (failures.last_ms + WINDOW_MS).checked_sub(now_ms).filter(|wait| *wait > 0)
    }

    pub(crate) fn failed(&mut self, address: IpAddr, now_ms: u64) {
        self.failed.retain(|_, failures| failures.last_ms + WINDOW_MS > now_ms);
        if self.failed.len() >= ADDRESSES_MAX && !self.failed.contains_key(&address) {
            let oldest = self.failed.iter().min_by_key(|(_, failures)| failures.last_ms);
            if let Some(oldest) = oldest.map(|(address, _)| *address) {
                self.failed.remove(&oldest);
            }
        }
        let failures = self.failed.entry(address).or_insert(Failures { count: 0, last_ms: now_ms });
        failures.count = failures.count.saturating_add(1);
        failures.last_ms = now_ms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u16) -> IpAddr {
        let [a, b] = n.to_be_bytes();
        IpAddr::from([10, 0, a, b])
    }

    #[test]
    fn after_too_many_failures_there_is_a_pause() {
        let mut limiter = Limiter::default();
        for at in 0..u64::from(FAILURES_MAX) {
            assert_eq!(limiter.wait_ms(address(1), at), None);
            limiter.failed(address(1), at);
        }
        let last = u64::from(FAILURES_MAX) - 1;
        assert_eq!(limiter.wait_ms(address(1), last + 1000), Some(WINDOW_MS - 1000));
        assert_eq!(limiter.wait_ms(address(2), last), None);
        assert_eq!(limiter.wait_ms(address(1), last + WINDOW_MS), None);
        limiter.failed(address(1), last + WINDOW_MS);
        assert_eq!(limiter.wait_ms(address(1), last + WINDOW_MS), None);
    }

    #[test]
    fn a_crowd_does_not_grow_the_table() {
        let mut limiter = Limiter::default();
        for n in 0..3000 {
            limiter.failed(address(n), u64::from(n));
        }
        assert_eq!(limiter.failed.len(), ADDRESSES_MAX);
        assert!(limiter.failed.contains_key(&address(2999)));
    }
}
