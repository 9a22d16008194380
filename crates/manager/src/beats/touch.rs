//! Whether a leader was to be found before this manager became it.
//!
//! Nodes without a manager look for one ever more seldom. Who leads after such a
//! time, or after its own start, hears of them later than who takes over at
//! once, and must not take them for dead.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::core::Core;

/// So long without a majority is an outage; longer than an election takes.
pub(crate) const OUTAGE_MS: u64 = 2_000;
/// An outage that ended so lately is still felt.
const RECENT_MS: u64 = 1_000;

/// Since when this manager is out of touch with a majority, or how that ended.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Since the start of the process: nobody knows how long before.
    Never,
    Lost {
        since_ms: u64,
    },
    Found {
        at_ms: u64,
        outage: bool,
    },
}

pub(crate) struct Touch(Mutex<Phase>);

impl Touch {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Phase::Never))
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In touch with a majority or not, from now on.
    fn moved(&self, in_touch: bool, now_ms: u64) {
        let mut phase = self.lock();
        *phase = match (*phase, in_touch) {
            (Phase::Never, false) | (Phase::Lost { .. }, false) | (Phase::Found { .. }, true) => {
                *phase
            }
            (Phase::Found { .. }, false) => Phase::Lost { since_ms: now_ms },
            (before, true) => Phase::Found { at_ms: now_ms, outage: before.is_outage(now_ms) },
        };
    }

    /// Whether who begins to lead now does so after an outage.
    pub(crate) fn is_after_outage(&self, now_ms: u64) -> bool {
        self.lock().is_outage(now_ms)
    }
}

impl Phase {
    fn is_outage(self, now_ms: u64) -> bool {
        match self {
            Self::Never => true,
            Self::Lost { since_ms } => now_ms.saturating_sub(since_ms) >= OUTAGE_MS,
            Self::Found { at_ms, outage } => outage && now_ms.saturating_sub(at_ms) <= RECENT_MS,
        }
    }
}

/// Follows the store until it goes away.
pub(crate) async fn follow(core: Arc<Core>) {
    let mut in_touch = core.store.in_touch();
    loop {
        let now = *in_touch.borrow_and_update();
        core.touch.moved(now, core.clock.monotonic_ms());
        if in_touch.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `+MS` in touch then, `-MS` not; `?MS` begins to lead.
    #[track_caller]
    fn check(words: &str, expected: &str) {
        let touch = Touch::new();
        let mut out = Vec::new();
        for word in words.split_whitespace() {
            let (what, at) = word.split_at(1);
            let at = at.parse().unwrap();
            match what {
                "?" => out.push(if touch.is_after_outage(at) { "outage" } else { "-" }),
                what => touch.moved(what == "+", at),
            }
        }
        assert_eq!(out.join(" "), expected);
    }

    #[test]
    fn outages_are_long_and_recent() {
        check("?5 +10 ?11 ?1010 ?1011", "outage outage outage -");
        check("-0 +10 ?20", "outage");
        check("+10 -5000 ?5500 +5600 ?5601", "- -");
        check("+10 -5000 ?7000 +7100 ?7200 ?8101", "outage outage -");
        check("+10 -5000 -6000 +7000 ?7001", "outage");
    }
}
