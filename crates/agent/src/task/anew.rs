//! A restart in place that a person asked for.
//!
//! It goes as any other end of an attempt: out of the table, stopped in good
//! order, begun anew with the same address. It is no crash: the restart policy
//! has no say, the next attempt waits for nothing, and earlier failures are
//! forgotten.

use warren_model::task::TaskState;

use super::{Effect, Machine, Now, Phase, Wanted};

impl Machine {
    /// Whether [`super::Event::Restart`] would be heeded: it is wanted, and has not ended for good.
    pub fn may_begin_anew(&self) -> bool {
        let over = match self.phase {
            Phase::Releasing { .. } | Phase::Ended | Phase::Cleaning | Phase::Gone => true,
            Phase::Paused { .. }
            | Phase::Preparing
            | Phase::Starting
            | Phase::Checking
            | Phase::Publishing
            | Phase::Running
            | Phase::Sick
            | Phase::Draining
            | Phase::Stopping
            | Phase::Halting => false,
        };
        !over && !self.cut_off && self.wanted == Wanted::Running
    }

    /// See [`super::Event::Restart`].
    pub(super) fn begin_anew(&mut self, now: Now) -> Vec<Effect> {
        if !self.may_begin_anew() {
            return vec![];
        }
        match &mut self.phase {
            // It waits for its next attempt, which need not wait any longer.
            Phase::Paused { at_ms, .. } => {
                *at_ms = now.mono_ms;
                (self.restarts, self.failures) = (0, 0);
                self.wake(now)
            }
            Phase::Checking | Phase::Publishing | Phase::Running | Phase::Sick => {
                self.anew = true;
                self.claim_at_ms = None;
                self.phase = Phase::Draining;
                self.enter(TaskState::Draining, now);
                vec![]
            }
            // It is being stopped for another reason, and would begin anew by its policy.
            Phase::Draining | Phase::Stopping => {
                self.anew = true;
                vec![]
            }
            // An init container may run for long.
            Phase::Starting if self.policy.crew => {
                self.anew = true;
                self.halt_start()
            }
            // It begins just now.
            Phase::Preparing
            | Phase::Starting
            | Phase::Halting
            | Phase::Releasing { .. }
            | Phase::Ended
            | Phase::Cleaning
            | Phase::Gone => vec![],
        }
    }

    /// Its container has ended for that.
    pub(super) fn ended_for_anew(&mut self, now: Now) -> Vec<Effect> {
        self.ailing = None;
        self.status.error = None;
        self.restarts = 0;
        self.restart(0, now)
    }
}
