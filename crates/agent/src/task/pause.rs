//! A container that stands still because a person asked for it.
//!
//! Nothing leads to it, and nobody asks for its health, until it goes on. It is
//! as healthy then as it was before. Stopping it ends the pause.

use warren_model::health::HealthState;

use super::{Effect, Gate, Machine, Now, Phase};

impl Machine {
    /// Whether [`super::Event::Paused`] would be heeded.
    pub fn may_pause(&self) -> bool {
        self.is_running()
    }

    /// See [`super::Event::Paused`].
    pub(super) fn pause(&mut self, paused: bool, now: Now) -> Vec<Effect> {
        if self.status.paused == paused {
            return vec![];
        }
        self.status.paused = paused;
        // Managers tell by it which of two reports is the later one.
        self.status.since = now.wall.max(self.status.since.plus_ms(1));
        if paused {
            return vec![];
        }
        if self.phase == Phase::Running {
            self.phase = Phase::Publishing;
        }
        let known = self.status.health.map_or(HealthState::Healthy, |health| health.state);
        let passed = match self.gate {
            Gate::Open => true,
            Gate::Once => known == HealthState::Healthy,
            Gate::Always { .. } => false,
        };
        let started = self.status.started.unwrap_or(now.wall);
        if passed { vec![] } else { vec![self.watch(known, started, now)] }
    }
}
