//! A task whose service must not run without a manager, while there is none.
//!
//! It is stopped in good order and waits in its place: not ended, so that it
//! begins its next attempt once a manager is heard. What was stopped by us is
//! no crash: the restart policy has no say.

use warren_model::task::TaskState;

use super::{Effect, Event, Machine, Next, Now, Phase, Wanted};

impl Machine {
    /// Whether it waits for a manager.
    pub fn is_cut_off(&self) -> bool {
        self.cut_off
    }

    /// Whether [`Event::CutOff`] would change anything.
    pub fn may_be_cut_off(&self) -> bool {
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
        !self.cut_off && !over && self.wanted == Wanted::Running
    }

    /// See [`Event::CutOff`].
    pub(super) fn cut_off(&mut self, why: String, now: Now) -> Vec<Effect> {
        if !self.may_be_cut_off() {
            return vec![];
        }
        self.cut_off = true;
        self.status.error = Some(why.into());
        match self.phase {
            Phase::Paused { next, .. } => self.give_way(next),
            Phase::Preparing => self.give_way(Next::Prepare),
            Phase::Checking | Phase::Publishing | Phase::Running | Phase::Sick => {
                self.claim_failed = false;
                self.phase = Phase::Draining;
                self.enter(TaskState::Draining, now);
                vec![]
            }
            Phase::Starting => self.halt_start(),
            // What is under way looks at it when it is done.
            Phase::Draining
            | Phase::Stopping
            | Phase::Halting
            | Phase::Releasing { .. }
            | Phase::Ended
            | Phase::Cleaning
            | Phase::Gone => vec![],
        }
    }

    /// Its container has ended, as we asked.
    pub(super) fn halt(&mut self, now: Now) -> Vec<Effect> {
        if !self.cut_off {
            // A manager was heard meanwhile: nothing is to be given up for long.
            self.status.error = None;
            return self.restart(0, now);
        }
        self.give_way(Next::Start)
    }

    /// Nothing of it runs: what it holds is for others now. `next` was to come.
    pub(super) fn give_way(&mut self, next: Next) -> Vec<Effect> {
        self.phase = Phase::Halting;
        match next {
            Next::Prepare => vec![Effect::Release],
            // There is a container, or the beginning of one.
            Next::Start => {
                let old = self.status.attempt;
                self.clearing.insert(old);
                vec![Effect::Clear { attempt: old }, Effect::Release]
            }
        }
    }

    /// Address and ports are free.
    pub(super) fn halted(&mut self, now: Now) -> Vec<Effect> {
        if self.wanted > Wanted::Running {
            self.phase = Phase::Releasing { end: self.unstarted_end() };
            return self.released(now);
        }
        self.phase = Phase::Paused { at_ms: now.mono_ms, next: Next::Prepare, for_port: false };
        if self.cut_off { vec![] } else { self.go_on(now) }
    }

    /// See [`Event::Heard`].
    pub(super) fn heard(&mut self, now: Now) -> Vec<Effect> {
        if !std::mem::take(&mut self.cut_off) {
            return vec![];
        }
        match self.phase {
            Phase::Paused { .. } => {
                self.status.error = None;
                self.go_on(now)
            }
            // What is under way goes on from there when it is done.
            Phase::Preparing
            | Phase::Starting
            | Phase::Checking
            | Phase::Publishing
            | Phase::Running
            | Phase::Sick
            | Phase::Draining
            | Phase::Stopping
            | Phase::Halting
            | Phase::Releasing { .. }
            | Phase::Ended
            | Phase::Cleaning
            | Phase::Gone => vec![],
        }
    }

    fn go_on(&mut self, now: Now) -> Vec<Effect> {
        self.status.error = None;
        if self.status.state > TaskState::Preparing {
            self.status.attempt = self.status.attempt.saturating_add(1);
            self.enter(TaskState::Preparing, now);
        }
        self.step(Event::Wake, now)
    }
}
