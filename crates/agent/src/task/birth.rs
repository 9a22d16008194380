//! How a machine begins: fresh, from what managers remember, from what is found.

use std::collections::BTreeSet;

use warren_model::task::{TaskState, TaskStatus};

use super::{Effect, Event, Found, FoundState, Gate, Machine, Now, Phase, Policy, Wanted};

impl Machine {
    /// A task of which nothing is found on this node; `known` is what the managers remember.
    pub fn new(wanted: Wanted, policy: Policy, known: TaskStatus, now: Now) -> (Self, Vec<Effect>) {
        let ended = known.state.is_terminal();
        let mut machine = Self {
            wanted,
            policy,
            phase: Phase::Ended,
            status: known,
            restarts: 0,
            failures: 0,
            clearing: BTreeSet::new(),
            ports_stale: false,
            claim_at_ms: None,
            claim_failed: false,
            cut_off: false,
            watched: false,
            was_ready: false,
            anew: false,
            ailing: None,
            ending: false,
            gate: Gate::Open,
        };
        machine.status.pid = 0;
        machine.status.paused = false;
        let effects = match wanted {
            Wanted::Running if ended => vec![],
            Wanted::Shutdown if ended => vec![],
            Wanted::Running => {
                // What the managers saw started is lost: this is the next attempt.
                let fresh = machine.status.attempt == 0;
                if fresh || machine.status.state > TaskState::Preparing {
                    machine.status.attempt = machine.status.attempt.saturating_add(1);
                }
                machine.enter(TaskState::Preparing, now);
                machine.prepare(now)
            }
            Wanted::Shutdown | Wanted::Remove | Wanted::Forget => machine.end(TaskState::Complete),
        };
        (machine, effects)
    }

    /// A task that can never start, e.g. because its template is not understood.
    pub fn rejected(
        wanted: Wanted,
        policy: Policy,
        known: TaskStatus,
        why: &str,
        now: Now,
    ) -> (Self, Vec<Effect>) {
        let ended = known.state.is_terminal();
        let (mut machine, _) = Self::new(Wanted::Running, policy, known, now);
        machine.phase = Phase::Ended;
        if !ended {
            machine.status.error = Some(why.into());
            machine.enter(TaskState::Rejected, now);
        }
        let effects = machine.step(Event::Wanted(wanted), now);
        (machine, effects)
    }

    /// A task whose container an earlier process of the agent left behind.
    pub fn adopt(
        wanted: Wanted,
        policy: Policy,
        known: TaskStatus,
        found: &Found,
        now: Now,
    ) -> (Self, Vec<Effect>) {
        let ended = known.state.is_terminal();
        let overtaken = known.attempt > found.attempt;
        if found.state == FoundState::Beginning && !ended && !overtaken {
            return Self::go_on_beginning(wanted, policy, known, found, now);
        }
        if ended || overtaken {
            // What is found belongs to the past; life goes on from what is known. The container of
            // a task that ended stays until the task is removed, unless it lives against all order,
            // or is of an attempt that nobody would remove then.
            let other = known.attempt != found.attempt;
            let (mut machine, mut effects) = Self::new(wanted, policy, known, now);
            let stray = other || !matches!(found.state, FoundState::Exited { .. });
            if stray {
                machine.clearing.insert(found.attempt);
                effects.insert(0, Effect::Clear { attempt: found.attempt });
            }
            return (machine, effects);
        }
        let mut machine = Self {
            wanted: Wanted::Running,
            policy,
            phase: Phase::Running,
            status: known,
            restarts: found.restarts,
            failures: 0,
            clearing: BTreeSet::new(),
            ports_stale: false,
            claim_at_ms: None,
            claim_failed: false,
            cut_off: false,
            watched: false,
            was_ready: false,
            anew: false,
            ailing: None,
            ending: false,
            gate: Gate::Open,
        };
        machine.status.attempt = found.attempt;
        machine.status.exit = found.last_exit.or(machine.status.exit);
        let mut effects = match found.state {
            FoundState::Running { pid, at } => {
                machine.status.pid = pid;
                machine.status.started = Some(at);
                machine.status.error = None;
                machine.status.paused = found.paused;
                let mut effects = vec![Effect::Wait, Effect::Claim];
                effects.extend(machine.go_on_watching(at, now));
                if machine.status.state != TaskState::Running {
                    machine.enter(TaskState::Running, now);
                }
                effects
            }
            FoundState::Beginning => vec![],
            FoundState::Exited { started, ended } => {
                machine.status.started = started.or(machine.status.started);
                machine.wanted = wanted;
                machine.exited(ended, now)
            }
        };
        effects.extend(machine.step(Event::Wanted(wanted), now));
        // Of what is paused nobody asks anything.
        if machine.status.paused {
            effects.retain(|effect| !matches!(effect, Effect::Watch { .. }));
            machine.watched = false;
        }
        (machine, effects)
    }
}
