//! What init containers and sidecars mean for the life of a task.
//!
//! The machine sees one start and one end of the whole group: who of it is
//! started and stopped when is `crate::crew`'s business.

use std::collections::BTreeSet;

use warren_model::quantity::format_duration_ms;
use warren_model::task::{TaskExit, TaskState, TaskStatus};

use super::{Effect, Ended, Found, Machine, Next, Now, Phase, Policy, Wanted};
use crate::restart::{self, Run, Verdict};

impl Machine {
    /// A start that is not wanted any more: init containers may take as long as they like.
    pub(super) fn halt_start(&self) -> Vec<Effect> {
        if self.policy.crew { vec![Effect::Halt] } else { vec![] }
    }

    /// See [`super::Event::InitFailed`]: as an attempt that failed at once.
    pub(super) fn init_failed(&mut self, ended: &Ended, why: String, now: Now) -> Vec<Effect> {
        self.status.exit = Some(TaskExit { code: ended.code, oom_killed: ended.oom_killed });
        self.anew = false;
        if self.wanted > Wanted::Running {
            return self.end(TaskState::Complete);
        }
        if self.cut_off {
            return self.give_way(Next::Start);
        }
        match restart::decide(&self.policy.restart, self.restarts, Run { ran_ms: 0, well: false }) {
            Verdict::Complete | Verdict::Failed => {
                self.status.error = Some(why.into());
                self.end(TaskState::Failed)
            }
            Verdict::Restart { after_ms, restarts } => {
                self.restarts = restarts;
                let pause = format_duration_ms(after_ms);
                self.status.error = Some(match after_ms {
                    0 => why.into(),
                    _ => format!("{why}; restarts after {pause}").into(),
                });
                self.restart(after_ms, now)
            }
        }
    }

    /// See [`super::Event::Ending`]: nothing may lead to it any more, as if it were being stopped.
    pub(super) fn ending(&mut self, now: Now) -> Vec<Effect> {
        self.ending = true;
        self.claim_at_ms = None;
        self.phase = Phase::Draining;
        self.enter(TaskState::Draining, now);
        vec![]
    }

    /// A start that an earlier process of the agent began: image, namespace and ports are looked
    /// for again, and the start goes on from what runs.
    pub(super) fn go_on_beginning(
        wanted: Wanted,
        policy: Policy,
        known: TaskStatus,
        found: &Found,
        now: Now,
    ) -> (Self, Vec<Effect>) {
        let attempt = found.attempt;
        if wanted > Wanted::Running {
            let known = TaskStatus { attempt, ..known };
            let (mut machine, mut effects) = Self::new(wanted, policy, known, now);
            machine.clearing = BTreeSet::from([attempt]);
            effects.insert(0, Effect::Clear { attempt });
            return (machine, effects);
        }
        let known = TaskStatus { attempt, state: TaskState::Preparing, ..known };
        let (mut machine, effects) = Self::new(Wanted::Running, policy, known, now);
        machine.restarts = found.restarts;
        machine.status.exit = found.last_exit.or(machine.status.exit);
        (machine, effects)
    }
}
