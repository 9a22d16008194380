//! How long what runs here may go on without a manager.
//!
//! Pure. Services that asked for `stop-after` have a lease: it begins with the
//! last beat that a manager answered (from its sending on, since the manager
//! knew of us no earlier), on the monotonic clock, and is renewed by the next.
//!
//! A process that begins goes on with the lease of the one before, as far as
//! that was kept ([`Contact`]): what was kept is never later than the truth. It
//! gives what runs a moment to be confirmed, once for all processes that follow
//! each other unheard, and starts nothing of such services until a manager has
//! answered: that copy may run elsewhere by now.
//!
//! Not here: when it is written. Beats are not worth a write, beginning to be
//! heard and ceasing to be heard are.

use warren_model::quantity::format_duration_ms;
use warren_model::service::OnDisconnect;

/// For managers to answer a process that begins, before it stops what it found: enough for one
/// that restarts together with it, little enough for who waits for the lease to end.
const FIRST_ANSWER_MS: u64 = 2_000;
/// So long without an answer is worth a write...
const SILENT_MS: u64 = 5_000;
/// ...and so many beats, which are lost in no crowd: large clusters beat slowly.
const SILENT_BEATS: u64 = 10;

/// What the next process is to know; moments of the clock that all processes of a boot share.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Contact {
    /// A beat sent then was answered, and perhaps later ones.
    pub heard_ms: Option<u64>,
    /// Nothing was heard since then, and no later beat than that was answered before.
    pub alone_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Lease {
    /// Of the first process that nobody answered yet.
    begun_ms: Option<u64>,
    heard_ms: Option<u64>,
    /// Silence was noticed then.
    silent_ms: Option<u64>,
    /// Heard by a process before.
    before_ms: Option<u64>,
}

impl Lease {
    /// The process begins; later calls change nothing.
    pub(crate) fn begin(&mut self, now_ms: u64) {
        self.begun_ms.get_or_insert(now_ms);
    }

    /// The process begins after another one.
    pub(crate) fn recall(&mut self, before: Contact, now_ms: u64) {
        self.before_ms = before.heard_ms.map(|at| at.min(now_ms));
        self.begin(before.alone_ms.unwrap_or(now_ms).min(now_ms));
    }

    /// What the next process is to know.
    pub(crate) fn contact(&self) -> Contact {
        match self.heard_ms {
            Some(_) => Contact { heard_ms: self.heard_ms, alone_ms: self.silent_ms },
            None => Contact { heard_ms: self.before_ms, alone_ms: self.begun_ms },
        }
    }

    /// A beat sent at that moment was answered. Says whether that is worth a write.
    pub(crate) fn heard(&mut self, sent_ms: u64) -> bool {
        let first = self.heard_ms.is_none();
        self.heard_ms = self.heard_ms.max(Some(sent_ms));
        let was_silent = self.silent_ms.take().is_some();
        first || was_silent
    }

    /// When silence is worth a write; `None` when there is none that was not noticed.
    pub(crate) fn silent_at_ms(&self, beat_ms: u64) -> Option<u64> {
        let heard = self.heard_ms.filter(|_| self.silent_ms.is_none())?;
        Some(heard.saturating_add(beat_ms.saturating_mul(SILENT_BEATS).max(SILENT_MS)))
    }

    /// Says whether there is silence that was not noticed before.
    pub(crate) fn notice_silence(&mut self, beat_ms: u64, now_ms: u64) -> bool {
        let silent = self.silent_at_ms(beat_ms).is_some_and(|at| at <= now_ms);
        if silent {
            self.silent_ms = Some(now_ms);
        }
        silent
    }

    /// When what runs must be stopped; `None`: never.
    pub(crate) fn ends_ms(&self, policy: OnDisconnect) -> Option<u64> {
        let OnDisconnect::StopAfter { ms } = policy else { return None };
        Some(match (self.heard_ms, self.begun_ms) {
            (Some(heard), _) => heard.saturating_add(ms),
            (None, begun) => begun.unwrap_or(0).saturating_add(ms.min(FIRST_ANSWER_MS)),
        })
        .max(self.before_ms.map(|heard| heard.saturating_add(ms)))
    }

    /// Whether something may be started.
    pub(crate) fn is_held(&self, policy: OnDisconnect, now_ms: u64) -> bool {
        match policy {
            OnDisconnect::Keep | OnDisconnect::ReplaceAfter { .. } => true,
            OnDisconnect::StopAfter { ms } => {
                self.heard_ms.is_some_and(|heard| now_ms < heard.saturating_add(ms))
            }
        }
    }

    /// Why it does not run, for people.
    pub(crate) fn why(&self, policy: OnDisconnect, was_up: bool) -> String {
        match policy {
            OnDisconnect::StopAfter { ms } if self.heard_ms.is_some() => {
                format!("stopped: no manager for {}", format_duration_ms(ms))
            }
            _ if was_up => "stopped: no manager has answered since this node started".to_owned(),
            _ => "not started: no manager has answered since this node started".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Policy, process begun at 100, heard at; prints when it ends and whether it may start at
    /// 31,000.
    #[track_caller]
    fn check(policy: OnDisconnect, heard: &[u64], expected: &str) {
        let mut lease = Lease::default();
        lease.begin(100);
        lease.begin(900);
        for at in heard {
            lease.heard(*at);
        }
        let ends = lease.ends_ms(policy).map_or_else(|| "never".to_owned(), |at| at.to_string());
        assert_eq!(format!("{ends} {}", lease.is_held(policy, 31_000)), expected);
    }

    #[test]
    fn leases() {
        let stop = |ms| OnDisconnect::StopAfter { ms };
        check(OnDisconnect::Keep, &[], "never true");
        check(OnDisconnect::ReplaceAfter { ms: 5 }, &[1], "never true");
        check(stop(30_000), &[500], "30500 false");
        check(stop(30_000), &[500, 2000], "32000 true");
        check(stop(30_000), &[2000, 500], "32000 true");
        check(stop(30_000), &[1000], "31000 false");
        check(stop(30_000), &[], "2100 false");
        check(stop(1000), &[], "1100 false");
        check(stop(u64::MAX), &[7], "18446744073709551615 true");
    }

    /// What the file says (`heard alone`), process begun at 10,000, lease of 6 s; prints when it
    /// ends and what the next process is to know.
    #[track_caller]
    fn check_next(heard: Option<u64>, alone: Option<u64>, expected: &str) {
        let mut lease = Lease::default();
        lease.recall(Contact { heard_ms: heard, alone_ms: alone }, 10_000);
        let policy = OnDisconnect::StopAfter { ms: 6_000 };
        assert!(!lease.is_held(policy, 10_001), "nothing is started unheard");
        let ends = lease.ends_ms(policy).unwrap();
        let Contact { heard_ms, alone_ms } = lease.contact();
        let text = |at: Option<u64>| at.map_or_else(|| "-".to_owned(), |at| at.to_string());
        assert_eq!(format!("{ends} {} {}", text(heard_ms), text(alone_ms)), expected);
    }

    #[test]
    fn the_next_process_gains_no_time() {
        check_next(None, None, "12000 - 10000");
        // Heard just before, or long ago as far as is known: one moment for all that follow.
        check_next(Some(9_500), None, "15500 9500 10000");
        check_next(Some(100), None, "12000 100 10000");
        check_next(Some(100), Some(9_000), "11000 100 9000");
        check_next(Some(100), Some(5_100), "7100 100 5100");
        // Cut off by then, which was noticed: to the end of the lease and no further.
        check_next(Some(4_500), Some(9_500), "11500 4500 9500");
        check_next(Some(7_000), Some(7_000), "13000 7000 7000");
        // A clock that went backwards gives nothing either.
        check_next(Some(99_000), Some(99_000), "16000 10000 10000");
    }

    #[test]
    fn silence_and_its_end_are_worth_a_write() {
        let mut lease = Lease::default();
        lease.begin(0);
        assert_eq!(lease.silent_at_ms(500), None);
        assert!(lease.heard(100));
        assert!(!lease.heard(600));
        assert_eq!(lease.silent_at_ms(500), Some(5_600));
        assert_eq!(lease.silent_at_ms(6_000), Some(60_600));
        assert!(!lease.notice_silence(500, 5_599));
        assert_eq!(lease.contact(), Contact { heard_ms: Some(600), alone_ms: None });
        assert!(lease.notice_silence(500, 5_600));
        assert!(!lease.notice_silence(500, 9_000));
        assert_eq!(lease.silent_at_ms(500), None);
        assert_eq!(lease.contact(), Contact { heard_ms: Some(600), alone_ms: Some(5_600) });
        assert!(lease.heard(9_100));
        assert_eq!(lease.contact(), Contact { heard_ms: Some(9_100), alone_ms: None });
    }

    #[test]
    fn reasons() {
        let mut lease = Lease::default();
        let stop = OnDisconnect::StopAfter { ms: 30_000 };
        assert!(lease.why(stop, true).starts_with("stopped: no manager has answered"));
        assert!(lease.why(stop, false).starts_with("not started"));
        lease.heard(1);
        assert_eq!(lease.why(stop, true), "stopped: no manager for 30s");
    }
}
