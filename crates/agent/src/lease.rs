//! How long what runs here may go on without a manager.
//!
//! Pure. Services that asked for `stop-after` have a lease: it begins with the
//! last beat that a manager answered (from its sending on, since the manager
//! knew of us no earlier), on the monotonic clock, and is renewed by the next.
//!
//! A process that begins knows nothing of the lease of the one before. It gives
//! what runs a moment to be confirmed, and starts nothing of such services
//! until a manager has answered: that copy may run elsewhere by now.

use warren_model::quantity::format_duration_ms;
use warren_model::service::OnDisconnect;

/// For managers to answer a process that begins, before it stops what it found: enough for one
/// that restarts together with it, little enough for who waits for the lease to end.
const FIRST_ANSWER_MS: u64 = 2_000;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Lease {
    begun_ms: Option<u64>,
    heard_ms: Option<u64>,
}

impl Lease {
    /// The process begins; later calls change nothing.
    pub(crate) fn begin(&mut self, now_ms: u64) {
        self.begun_ms.get_or_insert(now_ms);
    }

    /// A beat sent at that moment was answered.
    pub(crate) fn heard(&mut self, sent_ms: u64) {
        self.heard_ms = self.heard_ms.max(Some(sent_ms));
    }

    /// When what runs must be stopped; `None`: never.
    pub(crate) fn ends_ms(&self, policy: OnDisconnect) -> Option<u64> {
        let OnDisconnect::StopAfter { ms } = policy else { return None };
        Some(match (self.heard_ms, self.begun_ms) {
            (Some(heard), _) => heard.saturating_add(ms),
            (None, begun) => begun.unwrap_or(0).saturating_add(ms.min(FIRST_ANSWER_MS)),
        })
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
