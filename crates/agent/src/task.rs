//! One task of this node: from assigned to gone, restarts in place included.
//!
//! Pure: [`Machine::step`] takes what happened and returns what to do next; a
//! wish to be called again is data ([`Machine::wake_at`]). Effects are named by
//! task and attempt and are harmless to repeat. At most one effect that changes
//! the current attempt is under way at a time; [`Effect::Wait`],
//! [`Effect::Clear`] and [`Effect::Claim`] run beside it.
//!
//! Invariants:
//! - states only go forward within an attempt;
//! - a container is stopped only once the kernel's table no longer names it, or
//!   could not be changed;
//! - `Running` is reported only once the table names it, or as not healthy;
//! - the table names it only while it is healthy, where that is to be found out, and not paused;
//! - a terminal state is reported only once address and ports are free again.
//!
//! Not here: which tasks exist (`reconcile`), how effects are done (`worker`).

use std::collections::BTreeSet;

use warren_model::health::HealthState;
use warren_model::quantity::Time;
use warren_model::task::{TaskState, TaskStatus};

use crate::restart::doubled;

mod anew;
mod birth;
mod crew;
mod cut_off;
mod end;
mod health;
mod kinds;
mod pause;

pub use kinds::{
    Effect, Ended, Event, Failure, FailureKind, Found, FoundState, Gate, Now, Policy, Wanted,
};

/// First pause after a failure that may pass (registry down, disk full, port taken).
const RETRY_FIRST_MS: u64 = 250;
/// Longest such pause: an outage that ends is noticed within half a minute.
const RETRY_MAX_MS: u64 = 30_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Prepare,
    Start,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing under way until `at_ms`.
    Paused {
        at_ms: u64,
        next: Next,
        for_port: bool,
    },
    Preparing,
    Starting,
    /// Runs, and was not healthy yet; the table does not name it.
    Checking,
    /// Runs; the table does not name it yet.
    Publishing,
    Running,
    /// Runs, was healthy and is not any more; the table may still name it.
    Sick,
    /// Runs; the table may still name it.
    Draining,
    Stopping,
    /// Nothing runs and nothing may; address and ports are being freed.
    Halting,
    /// Nothing runs; address and ports are being freed.
    Releasing {
        end: TaskState,
    },
    Ended,
    Cleaning,
    Gone,
}

/// The state machine of one task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    wanted: Wanted,
    policy: Policy,
    phase: Phase,
    status: TaskStatus,
    /// Restarts since the last good attempt.
    restarts: u32,
    /// Failures in a row of the current step.
    failures: u32,
    /// Attempts whose containers are being removed.
    clearing: BTreeSet<u32>,
    /// Ports changed while a claim could not be made.
    ports_stale: bool,
    /// When to try again to claim ports.
    claim_at_ms: Option<u64>,
    /// The error shown is that of a claim.
    claim_failed: bool,
    /// Nothing of it may run until a manager is heard again.
    cut_off: bool,
    /// Its health is being watched.
    watched: bool,
    /// This attempt was ready once.
    was_ready: bool,
    /// It is being stopped because it is unhealthy; why.
    ailing: Option<Box<str>>,
    /// A person asked for it to begin anew, and its container is being stopped for that.
    anew: bool,
    /// Its own container ended by itself, and its sidecars are being stopped.
    ending: bool,
    /// Of this attempt; that of the policy is for the next.
    gate: Gate,
}

impl Machine {
    pub fn status(&self) -> &TaskStatus {
        &self.status
    }

    pub fn attempt(&self) -> u32 {
        self.status.attempt
    }

    pub fn wanted(&self) -> Wanted {
        self.wanted
    }

    /// Restarts since the last good attempt.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// Whether the table should name it.
    pub fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Publishing | Phase::Running) && !self.status.paused
    }

    /// Whether it runs, and is to go on.
    fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Checking | Phase::Publishing | Phase::Running | Phase::Sick)
    }

    /// Whether its container runs and others were led to it in this attempt.
    pub fn is_reached(&self) -> bool {
        self.is_up() && self.was_ready
    }

    /// Whether its ports are held, or are to be.
    pub fn holds_ports(&self) -> bool {
        self.is_running()
    }

    /// Whether [`Event::Published`] is waited for.
    pub fn awaits_table(&self) -> bool {
        matches!(self.phase, Phase::Publishing | Phase::Draining)
    }

    /// Whether its container runs.
    pub fn is_up(&self) -> bool {
        match self.phase {
            Phase::Checking
            | Phase::Publishing
            | Phase::Running
            | Phase::Sick
            | Phase::Draining
            | Phase::Stopping => true,
            Phase::Paused { .. }
            | Phase::Preparing
            | Phase::Starting
            | Phase::Halting
            | Phase::Releasing { .. }
            | Phase::Ended
            | Phase::Cleaning
            | Phase::Gone => false,
        }
    }

    /// Nothing is left of it on this node.
    pub fn is_gone(&self) -> bool {
        self.phase == Phase::Gone
    }

    /// When to send [`Event::Wake`], on the monotonic clock.
    pub fn wake_at(&self) -> Option<u64> {
        match self.phase {
            Phase::Paused { at_ms, next, .. } if self.may_go(next) => Some(at_ms),
            Phase::Checking | Phase::Publishing | Phase::Running | Phase::Sick => self.claim_at_ms,
            Phase::Paused { .. }
            | Phase::Preparing
            | Phase::Starting
            | Phase::Draining
            | Phase::Stopping
            | Phase::Halting
            | Phase::Releasing { .. }
            | Phase::Ended
            | Phase::Cleaning
            | Phase::Gone => None,
        }
    }

    /// Whether the current phase waits for `event`; a late answer means nothing any more.
    fn awaits(&self, event: &Event) -> bool {
        match event {
            Event::Wanted(_)
            | Event::Gate(_)
            | Event::Cleared { .. }
            | Event::PortsFreed
            | Event::CutOff(_)
            | Event::Heard
            | Event::Restart
            | Event::Wake => true,
            Event::Prepared | Event::PrepareFailed(_) => self.phase == Phase::Preparing,
            Event::Started { .. } | Event::StartFailed(_) | Event::InitFailed { .. } => {
                self.phase == Phase::Starting
            }
            Event::Companions(_) => self.phase == Phase::Starting || self.is_up(),
            Event::Ending => self.is_running(),
            Event::Published | Event::PublishFailed(_) => self.awaits_table(),
            Event::Exited(_) => self.is_up(),
            Event::Released => {
                matches!(self.phase, Phase::Releasing { .. } | Phase::Halting)
            }
            Event::Cleaned => self.phase == Phase::Cleaning,
            Event::Trouble(_) => {
                matches!(
                    self.phase,
                    Phase::Stopping | Phase::Halting | Phase::Releasing { .. } | Phase::Cleaning
                )
            }
            Event::PortsChanged => {
                let begins = matches!(self.phase, Phase::Paused { .. } | Phase::Preparing);
                begins || self.phase == Phase::Starting || self.is_running()
            }
            Event::Claimed | Event::ClaimFailed(_) => self.is_running(),
            Event::Health { .. } => self.watched && self.is_running(),
            Event::SidecarIll(_) => {
                self.phase == Phase::Starting || self.watched && self.is_running()
            }
            Event::Paused(_) => self.is_running(),
        }
    }

    /// What follows from `event`. Events that the current phase does not wait for change nothing.
    pub fn step(&mut self, event: Event, now: Now) -> Vec<Effect> {
        if !self.awaits(&event) {
            return vec![];
        }
        let mut effects = self.react(event, now);
        effects.extend(self.look_away());
        effects
    }

    fn react(&mut self, event: Event, now: Now) -> Vec<Effect> {
        match event {
            Event::Wanted(wanted) => self.want(wanted, now),
            Event::Prepared => {
                self.failures = 0;
                self.start(now)
            }
            Event::PrepareFailed(failure) => self.failed(failure, Next::Prepare, now),
            Event::Started { pid, at } => self.started(pid, at, now),
            Event::StartFailed(failure) => self.failed(failure, Next::Start, now),
            Event::InitFailed { ended, why } => self.init_failed(&ended, why, now),
            Event::Companions(all) => {
                self.status.companions = Some(all);
                vec![]
            }
            Event::Ending => self.ending(now),
            Event::Published => self.published(now),
            // A table that cannot be changed must not keep a container alive for ever.
            Event::PublishFailed(_) if self.phase == Phase::Draining => self.stop(now),
            Event::PublishFailed(message) | Event::Trouble(message) => {
                self.status.error = Some(message.into());
                vec![]
            }
            Event::Exited(ended) => self.exited(ended, now),
            Event::Cleared { attempt } => {
                self.clearing.remove(&attempt);
                self.wake(now)
            }
            Event::Released if self.phase == Phase::Halting => self.halted(now),
            Event::Released => self.released(now),
            Event::Cleaned => {
                self.phase = Phase::Gone;
                self.status.error = None;
                self.enter(TaskState::Removed, now);
                vec![]
            }
            Event::PortsChanged if self.is_running() => {
                self.claim_at_ms = None;
                vec![Effect::Claim]
            }
            Event::PortsChanged => {
                self.ports_stale = true;
                vec![]
            }
            Event::PortsFreed => self.ports_freed(now),
            Event::Claimed => {
                self.claimed();
                vec![]
            }
            Event::ClaimFailed(message) => {
                self.claim_at_ms = Some(now.mono_ms.saturating_add(self.retry_ms()));
                self.claim_failed = true;
                self.status.error = Some(message.into());
                vec![]
            }
            Event::Gate(gate) => self.change_gate(gate, now),
            Event::Health { state, output } => self.health(state, output, now),
            Event::SidecarIll(output) => self.sidecar_ill(output, now),
            Event::CutOff(why) => self.cut_off(why, now),
            Event::Heard => self.heard(now),
            Event::Restart => self.begin_anew(now),
            Event::Paused(paused) => self.pause(paused, now),
            Event::Wake => self.wake(now),
        }
    }

    fn published(&mut self, now: Now) -> Vec<Effect> {
        if self.phase == Phase::Draining {
            return self.stop(now);
        }
        self.phase = Phase::Running;
        if !self.claim_failed {
            self.status.error = None;
        }
        if self.status.state != TaskState::Running {
            self.enter(TaskState::Running, now);
        }
        if self.gate != Gate::Open {
            self.found(HealthState::Healthy, now);
        }
        vec![]
    }

    fn claimed(&mut self) {
        self.claim_at_ms = None;
        self.failures = 0;
        if std::mem::take(&mut self.claim_failed) {
            self.status.error = None;
        }
    }

    fn enter(&mut self, state: TaskState, now: Now) {
        self.status.state = state;
        self.status.since = now.wall;
        // Why it is being stopped is worth knowing until it has ended.
        let stops = matches!(state, TaskState::Draining | TaskState::Stopping);
        // Whoever stops it lets it go on first.
        self.status.paused &= state == TaskState::Running;
        if !stops && state != TaskState::Running {
            self.status.health = None;
        }
    }

    fn want(&mut self, wanted: Wanted, now: Now) -> Vec<Effect> {
        if wanted <= self.wanted {
            return vec![];
        }
        self.wanted = wanted;
        match self.phase {
            Phase::Paused { .. } | Phase::Preparing => self.end(self.unstarted_end()),
            Phase::Checking | Phase::Publishing | Phase::Running | Phase::Sick => {
                self.phase = Phase::Draining;
                self.enter(TaskState::Draining, now);
                vec![]
            }
            Phase::Starting => self.halt_start(),
            // What is under way looks at `wanted` when it is done.
            Phase::Draining
            | Phase::Stopping
            | Phase::Halting
            | Phase::Releasing { .. }
            | Phase::Cleaning
            | Phase::Gone => vec![],
            Phase::Ended if wanted >= Wanted::Remove => self.clean(),
            Phase::Ended => vec![],
        }
    }

    fn may_go(&self, next: Next) -> bool {
        match next {
            Next::Prepare | Next::Start if self.cut_off => false,
            // One removal may lag behind; a crash loop must not pile them up.
            Next::Prepare => self.clearing.iter().all(|old| old + 1 >= self.status.attempt),
            Next::Start => true,
        }
    }

    fn wake(&mut self, now: Now) -> Vec<Effect> {
        match self.phase {
            Phase::Paused { at_ms, next, .. } if at_ms <= now.mono_ms && self.may_go(next) => {
                match next {
                    Next::Prepare => self.prepare(now),
                    Next::Start => self.start(now),
                }
            }
            Phase::Checking | Phase::Publishing | Phase::Running | Phase::Sick
                if self.claim_at_ms.is_some_and(|at| at <= now.mono_ms) =>
            {
                self.claim_at_ms = None;
                vec![Effect::Claim]
            }
            Phase::Paused { .. }
            | Phase::Preparing
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

    fn ports_freed(&mut self, now: Now) -> Vec<Effect> {
        match &mut self.phase {
            Phase::Paused { at_ms, for_port: true, .. } => *at_ms = now.mono_ms,
            Phase::Checking | Phase::Publishing | Phase::Running | Phase::Sick => {
                if let Some(at) = &mut self.claim_at_ms {
                    *at = (*at).min(now.mono_ms);
                }
            }
            Phase::Paused { .. }
            | Phase::Preparing
            | Phase::Starting
            | Phase::Draining
            | Phase::Stopping
            | Phase::Halting
            | Phase::Releasing { .. }
            | Phase::Ended
            | Phase::Cleaning
            | Phase::Gone => {}
        }
        self.wake(now)
    }

    fn prepare(&mut self, now: Now) -> Vec<Effect> {
        if !self.may_go(Next::Prepare) {
            self.phase = Phase::Paused { at_ms: now.mono_ms, next: Next::Prepare, for_port: false };
            return vec![];
        }
        self.phase = Phase::Preparing;
        self.ports_stale = false;
        vec![Effect::Prepare]
    }

    fn start(&mut self, now: Now) -> Vec<Effect> {
        self.phase = Phase::Starting;
        if self.status.state != TaskState::Starting {
            self.enter(TaskState::Starting, now);
        }
        vec![Effect::Start]
    }

    fn started(&mut self, pid: u32, at: Time, now: Now) -> Vec<Effect> {
        self.failures = 0;
        self.status.pid = pid;
        self.status.started = Some(at);
        if self.wanted > Wanted::Running || self.cut_off {
            let mut effects = vec![Effect::Wait];
            effects.extend(self.stop(now));
            return effects;
        }
        self.claim_at_ms = None;
        // Who asked for another start while this one was under way has it.
        self.anew = false;
        let mut effects = vec![Effect::Wait];
        effects.extend(self.begin_watching(at, now));
        if std::mem::take(&mut self.ports_stale) {
            effects.push(Effect::Claim);
        }
        effects
    }

    fn stop(&mut self, now: Now) -> Vec<Effect> {
        self.phase = Phase::Stopping;
        if self.status.state != TaskState::Stopping {
            self.enter(TaskState::Stopping, now);
        }
        vec![Effect::Stop { grace_ms: self.policy.stop_grace_ms }]
    }

    fn retry_ms(&mut self) -> u64 {
        let pause = doubled(RETRY_FIRST_MS, self.failures, RETRY_MAX_MS);
        self.failures = self.failures.saturating_add(1);
        pause
    }

    fn failed(&mut self, failure: Failure, next: Next, now: Now) -> Vec<Effect> {
        if std::mem::take(&mut self.anew) && self.wanted == Wanted::Running && !self.cut_off {
            return self.ended_for_anew(now);
        }
        self.status.error = Some(failure.message.into());
        if self.wanted > Wanted::Running {
            return self.end(self.unstarted_end());
        }
        if failure.kind == FailureKind::Permanent {
            return self.end(TaskState::Rejected);
        }
        if self.cut_off {
            return self.give_way(next);
        }
        let at_ms = now.mono_ms.saturating_add(self.retry_ms());
        self.phase = Phase::Paused { at_ms, next, for_port: failure.kind == FailureKind::Port };
        vec![]
    }
}

#[cfg(test)]
mod tests;
