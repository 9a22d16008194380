//! Beats that waited in sockets while this manager did not run are no news.
//!
//! Pure. A manager that was held up (stopped, starved, its machine paused) finds
//! beats that nodes sent long ago, perhaps nodes that are dead by now. What is
//! read right after such a stall is in doubt: a beat counts again once it comes
//! [`APART_MS`] after the one before, since what waited comes all at once. A beat
//! that does not count is not answered either: its node would take the answer
//! for a lease of which the leader does not know.
//!
//! That a session opens counts at once: it takes round trips with a process that
//! runs.
//!
//! Stalls are found by whoever looks first; with sessions, somebody looks every
//! quarter of a second (`tell`, or the leader's loop).

/// Not having run for so long is a stall: long against the quarter of a second, short against any
/// suspicion.
const STALL_MS: u64 = 1_400;
/// Less than beats are apart, more than it takes to read what waited.
const APART_MS: u64 = 200;

/// When this process ran last, and when it last began to run again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stalls {
    ran_ms: u64,
    until_ms: Option<u64>,
}

impl Stalls {
    pub(super) fn new(mono_ms: u64) -> Self {
        Self { ran_ms: mono_ms, until_ms: None }
    }

    /// Nobody looked until now.
    pub(super) fn begin(&mut self, mono_ms: u64) {
        self.ran_ms = self.ran_ms.max(mono_ms);
    }

    /// It runs now. Says when the last stall ended.
    pub(super) fn look(&mut self, mono_ms: u64) -> Option<u64> {
        if mono_ms.saturating_sub(self.ran_ms) > STALL_MS {
            self.until_ms = Some(mono_ms);
        }
        self.ran_ms = self.ran_ms.max(mono_ms);
        self.until_ms
    }
}

/// Whether something that is read now may have waited through a stall that ended then.
pub(crate) fn is_doubtful(stalled_until: Option<u64>, now_ms: u64) -> bool {
    stalled_until.is_some_and(|until| now_ms.saturating_sub(until) < APART_MS)
}

/// Which beats of one session count.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fresh {
    /// The last stall that is known of.
    stalled_until: Option<u64>,
    doubt: bool,
    read_ms: u64,
}

impl Fresh {
    /// A session that is opened now.
    pub(crate) fn new(stalled_until: Option<u64>, now_ms: u64) -> Self {
        Self { stalled_until, doubt: is_doubtful(stalled_until, now_ms), read_ms: now_ms }
    }

    /// A beat is read. Says whether it counts.
    pub(crate) fn beat(&mut self, stalled_until: Option<u64>, now_ms: u64) -> bool {
        let apart_ms = now_ms.saturating_sub(self.read_ms);
        self.read_ms = now_ms;
        if stalled_until > self.stalled_until {
            (self.stalled_until, self.doubt) = (stalled_until, true);
            return false;
        }
        self.doubt &= apart_ms < APART_MS;
        !self.doubt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When somebody looks (`.`) or a beat is read (`b`); `+` for each that counts.
    #[track_caller]
    fn check(words: &str, expected: &str) {
        let mut stalls = Stalls::new(0);
        let mut fresh = Fresh::new(None, 0);
        let mut out = String::new();
        for word in words.split_whitespace() {
            let at_ms: u64 = word[1..].parse().unwrap();
            let until = stalls.look(at_ms);
            if word.starts_with('b') {
                out.push(if fresh.beat(until, at_ms) { '+' } else { '-' });
            }
        }
        assert_eq!(out, expected);
    }

    #[test]
    fn what_waited_does_not_count() {
        check(".250 b500 .750 b1000 .1250 b1500", "+++");
        // Stopped from 1500 on; whoever looks first finds out.
        check(".1500 b31000 b31001 b31002 .31100 b31500 .31750 b32000", "---++");
        check(".1000 .1500 .31000 b31001 b31250 b31260", "-++");
        check(".1000 .1500 b2400 b2500", "++");
        // One after the other.
        check("b500 .1000 b5000 b5300 .6000 .8000 b8001 b8500", "+-+-+");
    }

    #[test]
    fn where_nobody_looked_there_was_no_stall() {
        let mut stalls = Stalls::new(0);
        stalls.begin(60_000);
        assert_eq!(stalls.look(60_500), None);
        assert_eq!(stalls.look(62_000), Some(62_000));
    }

    #[test]
    fn sessions_that_open_right_after_a_stall_are_in_doubt() {
        let mut fresh = Fresh::new(Some(5_000), 5_010);
        assert!(!fresh.beat(Some(5_000), 5_011));
        assert!(fresh.beat(Some(5_000), 5_511));
        let mut fresh = Fresh::new(Some(5_000), 5_200);
        assert!(fresh.beat(Some(5_000), 5_201));
    }
}
