//! How an attempt ends: by itself, by order, for good or to begin anew.

use warren_model::quantity::format_duration_ms;
use warren_model::task::{TaskExit, TaskState};

use super::{Effect, Ended, Machine, Next, Now, Phase, Wanted};
use crate::restart::{self, Run, Verdict};

impl Machine {
    pub(super) fn exited(&mut self, ended: Ended, now: Now) -> Vec<Effect> {
        let well = ended.code == 0 && !ended.oom_killed && !ended.supervisor_lost;
        self.status.pid = 0;
        self.status.paused = false;
        self.status.exit = Some(TaskExit { code: ended.code, oom_killed: ended.oom_killed });
        self.claim_at_ms = None;
        self.claim_failed = false;
        if self.wanted > Wanted::Running {
            // We asked for it: dying of our signals is a good end.
            let bad = ended.oom_killed || ended.supervisor_lost;
            self.status.error = bad.then(|| ended.describe().into());
            return self.end(if bad { TaskState::Failed } else { TaskState::Complete });
        }
        if std::mem::take(&mut self.anew) && !self.cut_off {
            return self.ended_for_anew(now);
        }
        let ailing = self.ailing.take().filter(|_| !self.cut_off);
        let ending = std::mem::take(&mut self.ending) && !self.cut_off;
        let stopped = matches!(self.phase, Phase::Draining | Phase::Stopping);
        if stopped && ailing.is_none() && !ending {
            return self.halt(now);
        }
        let well = well && ailing.is_none();
        let why = match ailing {
            Some(output) if output.is_empty() => "unhealthy".to_owned(),
            Some(output) => format!("unhealthy: {output}"),
            None => ended.describe(),
        };
        self.status.error = (!well).then(|| why.as_str().into());
        let ran_ms = match self.was_ready {
            true => self.status.started.map_or(0, |started| ended.at.since_ms(started)),
            // However long it ran, it was of no use.
            false => 0,
        };
        match restart::decide(&self.policy.restart, self.restarts, Run { ran_ms, well }) {
            Verdict::Complete => self.end(TaskState::Complete),
            Verdict::Failed => self.end(TaskState::Failed),
            Verdict::Restart { after_ms, restarts } => {
                self.restarts = restarts;
                if after_ms > 0 {
                    let pause = format_duration_ms(after_ms);
                    self.status.error = Some(format!("{why}; restarts after {pause}").into());
                }
                self.restart(after_ms, now)
            }
        }
    }

    pub(super) fn restart(&mut self, after_ms: u64, now: Now) -> Vec<Effect> {
        let old = self.status.attempt;
        self.clearing.insert(old);
        self.status.attempt = old.saturating_add(1);
        self.status.companions = None;
        self.failures = 0;
        self.enter(TaskState::Preparing, now);
        let mut effects = vec![Effect::Clear { attempt: old }];
        if after_ms == 0 {
            effects.extend(self.prepare(now));
        } else {
            let at_ms = now.mono_ms.saturating_add(after_ms);
            self.phase = Phase::Paused { at_ms, next: Next::Prepare, for_port: false };
        }
        effects
    }

    /// Nothing runs and nothing will: free what it held, then say so.
    pub(super) fn end(&mut self, end: TaskState) -> Vec<Effect> {
        if self.wanted >= Wanted::Remove {
            return self.clean();
        }
        self.phase = Phase::Releasing { end };
        vec![Effect::Release]
    }

    pub(super) fn released(&mut self, now: Now) -> Vec<Effect> {
        let Phase::Releasing { end } = self.phase else { return vec![] };
        self.phase = Phase::Ended;
        self.enter(end, now);
        if self.wanted >= Wanted::Remove { self.clean() } else { vec![] }
    }

    pub(super) fn clean(&mut self) -> Vec<Effect> {
        self.phase = Phase::Cleaning;
        let mut attempts = self.clearing.clone();
        attempts.insert(self.status.attempt);
        vec![Effect::Clean { attempts: attempts.into_iter().collect() }]
    }

    /// How a task ends that is not wanted any more while nothing of it runs.
    pub(super) fn unstarted_end(&self) -> TaskState {
        if self.status.state == TaskState::Stopping {
            // It was stopped by us, for want of a manager.
            return TaskState::Complete;
        }
        let crashed = self.status.exit.is_some_and(|exit| exit.code != 0 || exit.oom_killed);
        if crashed { TaskState::Failed } else { TaskState::Complete }
    }
}
