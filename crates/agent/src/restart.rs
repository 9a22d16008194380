//! When a container that ended is started again, and after how long.
//!
//! Pure. History is one number, the restarts since the last good attempt: a
//! crash loop of a year costs four bytes.
//!
//! Not here: choosing another node, which is the planner's answer to
//! [`Verdict::Failed`].

use warren_model::service::{RestartCondition, RestartPolicy};

/// An attempt that lived shorter than this crashed by itself, even when the
/// policy asks for no delay: a loop of 1 ms exits must not spin. One that lived
/// longer was rather killed by something, and is missed now.
const QUICK_MS: u64 = 200;

/// First pause of a quick loop whose policy asks for none; ten containers a
/// hundred milliseconds are noise for a node, and doubling ends that soon.
const QUICK_DELAY_MS: u64 = 10;

/// How an attempt went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) ran_ms: u64,
    /// Exit code 0, no want of memory.
    pub(crate) well: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Start again after a pause; `restarts` is the count to remember.
    Restart {
        after_ms: u64,
        restarts: u32,
    },
    Complete,
    Failed,
}

/// What follows from the end of an attempt, after `restarts` earlier ones that
/// were not good.
pub(crate) fn decide(policy: &RestartPolicy, restarts: u32, run: Run) -> Verdict {
    let again = match policy.condition {
        RestartCondition::None => false,
        RestartCondition::OnFailure => !run.well,
        RestartCondition::Any => true,
    };
    if !again {
        return if run.well { Verdict::Complete } else { Verdict::Failed };
    }
    // No window would make every attempt good and the pause never grow.
    let window_ms = match policy.window_ms {
        0 => RestartPolicy::WINDOW_DEFAULT_MS,
        ms => ms,
    };
    let restarts = if run.ran_ms >= window_ms { 0 } else { restarts };
    if policy.max_attempts.is_some_and(|max| restarts >= max) {
        return Verdict::Failed;
    }
    let after_ms = pause_ms(policy.delay_ms, restarts, run.ran_ms);
    Verdict::Restart { after_ms, restarts: restarts.saturating_add(1) }
}

fn pause_ms(delay_ms: u64, restarts: u32, ran_ms: u64) -> u64 {
    let (first, doublings) = match (delay_ms, restarts) {
        (0, 0) => return 0,
        (0, _) if ran_ms >= QUICK_MS => return 0,
        (0, again) => (QUICK_DELAY_MS, again - 1),
        (delay, again) => (delay, again),
    };
    doubled(first, doublings, RestartPolicy::DELAY_MAX_MS)
}

/// `first_ms * 2^times`, at most `max_ms` (or `first_ms`, if that is more).
pub(crate) fn doubled(first_ms: u64, times: u32, max_ms: u64) -> u64 {
    let factor = 1u64.checked_shl(times).unwrap_or(u64::MAX);
    first_ms.saturating_mul(factor).min(max_ms.max(first_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each run is `code@ms`; prints what follows each: pause, `complete` or `failed`.
    #[track_caller]
    fn check(policy: RestartPolicy, runs: &str, expected: &str) {
        let mut restarts = 0;
        let mut out = Vec::new();
        for run in runs.split(' ') {
            let (code, ms) = run.split_once('@').unwrap();
            let run = Run { ran_ms: ms.parse().unwrap(), well: code == "0" };
            out.push(match decide(&policy, restarts, run) {
                Verdict::Restart { after_ms, restarts: count } => {
                    restarts = count;
                    after_ms.to_string()
                }
                Verdict::Complete => "complete".to_owned(),
                Verdict::Failed => "failed".to_owned(),
            });
        }
        assert_eq!(out.join(" "), expected);
    }

    fn policy(condition: RestartCondition, delay_ms: u64, max: Option<u32>) -> RestartPolicy {
        RestartPolicy { condition, delay_ms, max_attempts: max, window_ms: 10_000 }
    }

    #[test]
    fn conditions() {
        let with = |condition| policy(condition, 100, None);
        check(with(RestartCondition::None), "0@5", "complete");
        check(with(RestartCondition::None), "1@5", "failed");
        check(with(RestartCondition::OnFailure), "1@5 0@5", "100 complete");
        check(with(RestartCondition::Any), "0@5 1@5", "100 200");
    }

    #[test]
    fn pauses_double_and_a_good_attempt_forgets() {
        let any = policy(RestartCondition::Any, 100, None);
        check(any, "1@5 1@5 1@5 1@9999 1@10000 1@5", "100 200 400 800 100 200");
        let slow = policy(RestartCondition::Any, 50_000, None);
        check(slow, "1@5 1@5 1@5", "50000 60000 60000");
        let slower = policy(RestartCondition::Any, 90_000, None);
        check(slower, "1@5 1@5", "90000 90000");
    }

    #[test]
    fn no_delay_is_prompt_unless_it_loops() {
        let any = policy(RestartCondition::Any, 0, None);
        check(any, "1@1 1@1 1@1 1@1 1@500 1@1", "0 10 20 40 0 160");
    }

    #[test]
    fn attempts_run_out_unless_one_was_good() {
        let two = policy(RestartCondition::OnFailure, 0, Some(2));
        check(two, "1@1 1@1 1@1", "0 10 failed");
        check(two, "1@1 1@1 1@10000 1@1 1@1", "0 10 0 10 failed");
    }

    #[test]
    fn no_window_is_the_default_one() {
        let none = RestartPolicy { window_ms: 0, ..policy(RestartCondition::Any, 100, None) };
        check(none, "1@0 1@0 1@10000", "100 200 100");
    }

    #[test]
    fn numbers_do_not_overflow() {
        assert_eq!(doubled(3, 200, 60_000), 60_000);
        assert_eq!(doubled(u64::MAX, 3, 1), u64::MAX);
        assert_eq!(doubled(5, 0, 60_000), 5);
    }
}
