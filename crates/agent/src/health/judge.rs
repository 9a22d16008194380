//! What a container's answers amount to, and when to ask again.
//!
//! Pure. As in Docker: failures within the start period do not count until the
//! container has been healthy once; so many in a row as the check says make it
//! unhealthy, one success makes it healthy again.
//!
//! Right after the start it is asked often: the pause is an eighth of the time
//! that it has taken so far, so that one that is ready is found out soon, and
//! one that takes long is not pestered.

use warren_model::health::{HealthSpec, HealthState};

/// Least pause after a probe that failed while a container starts.
const PAUSE_MIN_MS: u64 = 2;
/// The same where a probe is a program of its own.
const PAUSE_EXEC_MS: u64 = 50;
/// Part of the time since the start that a pause lasts.
const PAUSE_PART: u64 = 8;
/// Longest pause of a check that nobody declared: it goes on until it succeeds.
const IMPLICIT_PAUSE_MS: u64 = 5_000;

/// Of a check, what decides when to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rhythm {
    /// None: it is over with the first success, and failures never count.
    pub(crate) interval_ms: Option<u64>,
    pub(crate) retries: u32,
    pub(crate) start_period_ms: u64,
    pub(crate) start_interval_ms: u64,
    pub(crate) is_exec: bool,
}

impl Rhythm {
    pub(crate) fn implicit() -> Self {
        Self {
            interval_ms: None,
            retries: 0,
            start_period_ms: u64::MAX,
            start_interval_ms: IMPLICIT_PAUSE_MS,
            is_exec: false,
        }
    }

    pub(crate) fn of(spec: &HealthSpec) -> Self {
        use warren_model::health::Probe;
        Self {
            interval_ms: Some(spec.interval_ms),
            retries: spec.retries,
            start_period_ms: spec.start_period_ms,
            start_interval_ms: spec.start_interval_ms,
            is_exec: matches!(spec.probe, Probe::Exec(_) | Probe::Shell(_)),
        }
    }
}

/// One probe, when it began and ended on the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) good: bool,
    pub(crate) began_ms: u64,
    pub(crate) ended_ms: u64,
}

/// Of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Judge {
    rhythm: Rhythm,
    state: HealthState,
    /// In a row, of those that count.
    failures: u32,
    /// When the container was started; may be long ago.
    started_ms: u64,
    /// When to ask next; none: never again.
    next_ms: Option<u64>,
}

impl Judge {
    /// A container that has run for `ran_ms`. One that is not known to start is first asked within
    /// an interval, at a moment that `lot` decides: a thousand of them not all at once.
    pub(crate) fn new(
        rhythm: Rhythm,
        state: HealthState,
        ran_ms: u64,
        now_ms: u64,
        lot: u64,
    ) -> Self {
        let wait_ms = match state {
            HealthState::Starting => 0,
            HealthState::Healthy | HealthState::Unhealthy => {
                lot % rhythm.interval_ms.unwrap_or(0).max(1)
            }
        };
        Self {
            rhythm,
            state,
            failures: 0,
            started_ms: now_ms.saturating_sub(ran_ms),
            next_ms: Some(now_ms.saturating_add(wait_ms)),
        }
    }

    pub(crate) fn state(&self) -> HealthState {
        self.state
    }

    pub(crate) fn next_ms(&self) -> Option<u64> {
        self.next_ms
    }

    /// Takes an answer in; what it amounts to, if that is news. Unhealthy is news each time that
    /// the failures suffice, so that who was not stopped for the first may be for the next.
    pub(crate) fn hear(&mut self, answer: Answer, lot: u64) -> Option<HealthState> {
        match answer.good {
            true => self.succeeded(answer, lot),
            false => self.failed(answer),
        }
    }

    fn succeeded(&mut self, answer: Answer, lot: u64) -> Option<HealthState> {
        self.failures = 0;
        let news = self.state != HealthState::Healthy;
        self.state = HealthState::Healthy;
        let Answer { began_ms, ended_ms, .. } = answer;
        self.next_ms = self.rhythm.interval_ms.map(|interval_ms| {
            // Those that were started together are asked apart from now on.
            let pause = if news { 1 + lot % interval_ms.max(1) } else { interval_ms };
            began_ms.saturating_add(pause).max(ended_ms)
        });
        news.then_some(HealthState::Healthy)
    }

    fn failed(&mut self, answer: Answer) -> Option<HealthState> {
        let Answer { began_ms, ended_ms, .. } = answer;
        let ran_ms = ended_ms.saturating_sub(self.started_ms);
        let period_ms = self.rhythm.start_period_ms;
        let forgiven = self.state == HealthState::Starting
            && (ran_ms < period_ms || self.rhythm.interval_ms.is_none());
        if forgiven {
            let least = if self.rhythm.is_exec { PAUSE_EXEC_MS } else { PAUSE_MIN_MS };
            let most = self.rhythm.start_interval_ms;
            let pause = (ran_ms / PAUSE_PART).max(least).min(most);
            self.next_ms = Some(ended_ms.saturating_add(pause));
            return None;
        }
        let interval_ms = self.rhythm.interval_ms.unwrap_or(IMPLICIT_PAUSE_MS);
        self.next_ms = Some(began_ms.saturating_add(interval_ms).max(ended_ms));
        self.failures = self.failures.saturating_add(1);
        if self.failures < self.rhythm.retries {
            return None;
        }
        self.failures = 0;
        self.state = HealthState::Unhealthy;
        Some(HealthState::Unhealthy)
    }
}

#[cfg(test)]
mod tests;
