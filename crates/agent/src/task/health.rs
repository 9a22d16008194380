//! What follows from a container's health.
//!
//! One that has a gate to pass is named in the table only while it is healthy.
//! An unhealthy one is out of it at once; where its service says so, it is
//! then stopped in good order, and its restart policy decides as after an
//! attempt that failed.

use warren_model::health::{Health, HealthState};
use warren_model::quantity::Time;
use warren_model::task::{TaskState, TaskStatus};

use super::{Effect, Gate, Machine, Now, Phase};

impl Machine {
    /// See [`super::Event::Gate`]. What runs has passed its own already, unless that is the first
    /// thing it is asked for: a port that was wrong may be put right.
    pub(super) fn change_gate(&mut self, gate: Gate, now: Now) -> Vec<Effect> {
        self.policy.gate = gate;
        if self.phase != Phase::Checking || self.gate != Gate::Once {
            return vec![];
        }
        self.gate = gate;
        self.status.error = None;
        if gate == Gate::Open {
            self.status.health = None;
            self.was_ready = true;
            self.watched = false;
            self.phase = Phase::Publishing;
            return vec![Effect::LookAway];
        }
        let started = self.status.started.unwrap_or(now.wall);
        vec![self.watch(HealthState::Starting, started, now)]
    }

    /// The container has just started.
    pub(super) fn begin_watching(&mut self, started: Time, now: Now) -> Option<Effect> {
        self.was_ready = false;
        self.ailing = None;
        self.gate = self.policy.gate;
        if self.gate == Gate::Open {
            self.was_ready = true;
            self.phase = Phase::Publishing;
            return None;
        }
        self.phase = Phase::Checking;
        self.status.error = None;
        self.enter(TaskState::Running, now);
        self.found(HealthState::Starting, now);
        Some(self.watch(HealthState::Starting, started, now))
    }

    /// A container that an earlier process of the agent watched, or not: as of then.
    pub(super) fn go_on_watching(&mut self, started: Time, now: Now) -> Option<Effect> {
        let known = self.status.health.map(|health| health.state);
        let told = self.status.state == TaskState::Running;
        self.gate = self.policy.gate;
        let state = match (self.gate, known) {
            (Gate::Open, _) => {
                self.was_ready = true;
                self.status.health = None;
                return None;
            }
            // It never was told of: it has only just started.
            (_, _) if !told => HealthState::Starting,
            // It serves, or has been ready before anybody asked.
            (_, None | Some(HealthState::Healthy)) => HealthState::Healthy,
            (_, Some(state)) => state,
        };
        self.was_ready = state != HealthState::Starting;
        self.phase = match state {
            HealthState::Starting => Phase::Checking,
            HealthState::Healthy => Phase::Running,
            HealthState::Unhealthy => Phase::Sick,
        };
        if self.status.state != TaskState::Running {
            self.enter(TaskState::Running, now);
        }
        self.found(state, now);
        let passed = self.gate == Gate::Once && state == HealthState::Healthy;
        (!passed).then(|| self.watch(state, started, now))
    }

    pub(super) fn watch(&mut self, known: HealthState, started: Time, now: Now) -> Effect {
        self.watched = true;
        Effect::Watch { known, ran_ms: now.wall.since_ms(started) }
    }

    /// Nobody asks for the health of what is paused, drains, stops or has ended.
    pub(super) fn look_away(&mut self) -> Option<Effect> {
        let over = self.watched && (!self.is_running() || self.status.paused);
        if over {
            self.watched = false;
        }
        over.then_some(Effect::LookAway)
    }

    /// Notes what is known of its health.
    pub(super) fn found(&mut self, state: HealthState, now: Now) {
        if self.status.health.is_none_or(|health| health.state != state) {
            // Managers tell by it which of two reports is the later one.
            let before = self.status.health.map_or(Time(0), |health| health.since.plus_ms(1));
            self.status.health = Some(Health { state, since: now.wall.max(before) });
        }
    }

    /// Managers were told of its health by an earlier process, which died before it had written
    /// that down: what this one sees is the later news, whatever its clock says.
    pub fn speak_after(&mut self, known: &TaskStatus, now: Now) {
        let same = (known.attempt, known.state) == (self.status.attempt, self.status.state);
        if let (true, Some(told), Some(own)) = (same, known.health, &mut self.status.health)
            && own.state != told.state
            && own.since <= told.since
        {
            own.since = now.wall.max(told.since.plus_ms(1));
        }
    }

    /// See [`super::Event::Health`].
    pub(super) fn health(
        &mut self,
        state: HealthState,
        output: Option<Box<str>>,
        now: Now,
    ) -> Vec<Effect> {
        match state {
            HealthState::Starting => {
                if self.phase == Phase::Checking {
                    self.show(output);
                }
                return vec![];
            }
            HealthState::Healthy => {
                if matches!(self.phase, Phase::Checking | Phase::Sick) {
                    self.was_ready = true;
                    self.phase = Phase::Publishing;
                }
                return vec![];
            }
            // Of such a container nothing is asked once it was well.
            HealthState::Unhealthy if self.gate == Gate::Once => return vec![],
            HealthState::Unhealthy => {}
        }
        self.found(HealthState::Unhealthy, now);
        if self.gate == (Gate::Always { restart: true }) {
            self.ailing = Some(output.clone().unwrap_or_default());
            self.show(output);
            self.phase = Phase::Draining;
            self.enter(TaskState::Draining, now);
        } else {
            self.show(output);
            // What was never ready may still become so: nothing leads to it.
            self.phase = if self.was_ready { Phase::Sick } else { Phase::Checking };
        }
        vec![]
    }

    /// See [`super::Event::SidecarIll`]: nothing leads to it until all of it is well.
    pub(super) fn sidecar_ill(&mut self, output: Box<str>, now: Now) -> Vec<Effect> {
        // Its own container is not there yet, and waits for the sidecar.
        if self.phase == Phase::Starting {
            self.show(Some(output));
            return vec![];
        }
        self.found(HealthState::Unhealthy, now);
        self.show(Some(output));
        self.phase = if self.was_ready { Phase::Sick } else { Phase::Checking };
        vec![]
    }

    fn show(&mut self, output: Option<Box<str>>) {
        // Ports that cannot be had are the worse news.
        if output.is_some() && !self.claim_failed {
            self.status.error = output;
        }
    }
}
