//! How a service changes: the pace of updates and rollbacks, what became of the
//! last one, and the revisions before.

use std::fmt;

use super::{HookStatus, PublishMode, Service, ServiceSpec, SpecError, wrong};
use crate::Time;
use crate::quantity::format_duration_ms;

/// How a new template replaces the old one, how fast, and what counts as a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpdatePolicy {
    /// Slots replaced at a time; 0 is all.
    pub parallelism: u32,
    /// Pause after each batch.
    pub delay_ms: u64,
    pub order: UpdateOrder,
    /// A new task that has been up for that long is good. Until the first of an update is, no
    /// further slot is touched and no old task is stopped for a new one; the update has ended when
    /// all are.
    pub monitor_ms: u64,
    /// Thousandths of the slots whose new task may fail.
    pub max_failure_millis: u32,
    pub failure_action: FailureAction,
    /// Tasks beyond the wanted ones while one takes over; of start-first alone.
    pub max_surge: Option<u32>,
    /// Slots without a working task before no further one is stopped; of stop-first alone.
    pub max_unavailable: Option<u32>,
    /// For so long nothing may get further before the update counts as failed.
    pub deadline_ms: Option<u64>,
}

impl UpdatePolicy {
    /// Programs that cannot work mostly end within their first second; Docker's 5 s would be the
    /// largest part of most updates.
    pub const MONITOR_MS: u64 = 1000;
    pub const FAILURE_MILLIS_MAX: u32 = 1000;
    /// An update that goes on whatever fails has no other end for those who wait for it, unless a
    /// deadline is given: as long as Kubernetes waits for progress.
    pub const PATIENCE_MS: u64 = 600_000;
    /// A week: who wants longer pauses updates by hand.
    pub const TIME_MAX_MS: u64 = 7 * 86_400_000;
}

impl Default for UpdatePolicy {
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay_ms: 0,
            order: UpdateOrder::StartFirst,
            monitor_ms: Self::MONITOR_MS,
            max_failure_millis: 0,
            failure_action: FailureAction::Pause,
            max_surge: None,
            max_unavailable: None,
            deadline_ms: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateOrder {
    StartFirst,
    StopFirst,
}

impl UpdateOrder {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StartFirst => "start-first",
            Self::StopFirst => "stop-first",
        }
    }
}

/// What becomes of an update when more new tasks failed than may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureAction {
    /// Everything stays as it is until somebody says what to do.
    Pause,
    /// As if nothing had been.
    Continue,
    /// Back to the last revision that was good.
    Rollback,
}

impl FailureAction {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Continue => "continue",
            Self::Rollback => "rollback",
        }
    }
}

/// How a rollback differs from an update; what is not said is as there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RollbackPolicy {
    pub parallelism: Option<u32>,
    pub delay_ms: Option<u64>,
    pub order: Option<UpdateOrder>,
    pub monitor_ms: Option<u64>,
    pub max_failure_millis: Option<u32>,
    /// Not [`FailureAction::Rollback`]; absent: pause.
    pub failure_action: Option<FailureAction>,
}

impl RollbackPolicy {
    /// The whole policy of a rollback.
    pub fn over(&self, update: &UpdatePolicy) -> UpdatePolicy {
        let order = self.order.unwrap_or(update.order);
        let same = order == update.order;
        UpdatePolicy {
            parallelism: self.parallelism.unwrap_or(update.parallelism),
            delay_ms: self.delay_ms.unwrap_or(update.delay_ms),
            order,
            monitor_ms: self.monitor_ms.unwrap_or(update.monitor_ms),
            max_failure_millis: self.max_failure_millis.unwrap_or(update.max_failure_millis),
            failure_action: self.failure_action.unwrap_or(FailureAction::Pause),
            max_surge: update.max_surge.filter(|_| same),
            max_unavailable: update.max_unavailable.filter(|_| same),
            deadline_ms: update.deadline_ms,
        }
    }
}

/// What is remembered of the last change of a service's template; all else follows from its tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateStatus {
    pub kind: UpdateKind,
    pub phase: UpdatePhase,
    /// What failed before does not count.
    pub started: Time,
    /// Why it is paused, or was rolled back; for people, at most [`UpdateStatus::MESSAGE_MAX`].
    pub message: String,
    /// None while no hook is due.
    pub hook: Option<HookStatus>,
}

impl UpdateStatus {
    /// Bytes; a task's error has as many.
    pub const MESSAGE_MAX: usize = 1024;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateKind {
    Update,
    /// Asked for by a person.
    Rollback,
    /// Because an update failed.
    AutomaticRollback,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdatePhase {
    /// Slots are being renewed, or watched still.
    Moving,
    Paused,
    /// Every slot has its new task, and each was good.
    Done,
}

/// Where a change of a service came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// The principal who asked for it, e.g. `operator:anna`; the planner has none.
    pub by: Option<String>,
    pub kind: ChangeKind,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ChangeKind {
    /// It began with it, or the version before this one did not say.
    #[default]
    Create,
    Update,
    Rollback {
        to: u32,
    },
    AutomaticRollback {
        to: u32,
    },
}

/// A specification that a service had before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision {
    /// From 1.
    pub number: u32,
    pub spec: ServiceSpec,
    /// When it became what is wanted.
    pub time: Time,
    pub change: Change,
    /// Nothing was on its way when the next one came: it is what failing updates go back to.
    pub good: bool,
}

impl Service {
    /// The policy that the change under way follows.
    pub fn pace(&self) -> UpdatePolicy {
        let update = self.spec.update;
        match &self.update {
            Some(UpdateStatus {
                kind: UpdateKind::Rollback | UpdateKind::AutomaticRollback,
                phase: UpdatePhase::Moving | UpdatePhase::Paused,
                ..
            }) => self.spec.rollback.over(&update),
            Some(_) | None => update,
        }
    }
}

impl ServiceSpec {
    pub(super) fn check_updates(&self) -> Result<(), SpecError> {
        if self.rollback.failure_action == Some(FailureAction::Rollback) {
            let problem = "a rollback that fails is paused or goes on; allowed are pause, continue";
            return Err(wrong("rollback_failure_action", "rollback", problem));
        }
        self.check_pace("update", &self.update)?;
        self.check_pace("rollback", &self.rollback.over(&self.update))
    }

    fn check_pace(&self, prefix: &str, policy: &UpdatePolicy) -> Result<(), SpecError> {
        let field = |name: &str| format!("{prefix}_{name}");
        let max = UpdatePolicy::TIME_MAX_MS;
        let deadline = policy.deadline_ms.unwrap_or(1);
        let times =
            [("delay", policy.delay_ms), ("monitor", policy.monitor_ms), ("deadline", deadline)];
        for (name, ms) in times {
            if ms > max {
                let problem = format!("is more than {}", format_duration_ms(max));
                return Err(wrong(&field(name), format_duration_ms(ms), problem));
            }
        }
        if policy.max_failure_millis > UpdatePolicy::FAILURE_MILLIS_MAX {
            let ratio = f64::from(policy.max_failure_millis) / 1000.0;
            return Err(wrong(&field("max_failure_ratio"), ratio, "is not between 0 and 1"));
        }
        let steady = policy.delay_ms.max(policy.monitor_ms);
        if policy.deadline_ms.is_some_and(|ms| ms <= steady) {
            let problem = format!(
                "is over before a slot can be done: it must be more than delay and monitor, {}",
                format_duration_ms(steady)
            );
            return Err(wrong(&field("deadline"), format_duration_ms(deadline), problem));
        }
        self.check_bounds(prefix, policy)
    }

    /// Surge and unavailability are bounds within an order, not another way to say which.
    fn check_bounds(&self, prefix: &str, policy: &UpdatePolicy) -> Result<(), SpecError> {
        let field = |name: &str| format!("{prefix}_{name}");
        let host_ports = self.ports.iter().any(|port| port.mode == PublishMode::Host);
        let stop_first = policy.order == UpdateOrder::StopFirst || host_ports;
        let why = if host_ports { "host ports" } else { policy.order.as_str() };
        match (stop_first, policy.max_surge, policy.max_unavailable) {
            (true, Some(surge), _) => {
                let problem = format!("never comes about with {why}: old tasks end first");
                Err(wrong(&field("max_surge"), surge, problem))
            }
            (false, _, Some(unavailable)) => {
                let problem =
                    format!("never comes about with {why}: old tasks stay until new ones are up");
                Err(wrong(&field("max_unavailable"), unavailable, problem))
            }
            (false, Some(0), _) => {
                let problem = "lets no task start before one stops; use order stop-first";
                Err(wrong(&field("max_surge"), 0, problem))
            }
            (true, _, Some(0)) => {
                let problem = "lets no task stop before one starts; use order start-first";
                Err(wrong(&field("max_unavailable"), 0, problem))
            }
            (_, Some(_) | None, Some(_) | None) => Ok(()),
        }
    }
}

/// As listings and people call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateState {
    None,
    Updating,
    Completed,
    Paused,
    RollingBack,
    RolledBack,
    RollbackPaused,
}

impl UpdateState {
    pub fn of(status: &UpdateStatus) -> Self {
        match (status.kind, status.phase) {
            (UpdateKind::Update, UpdatePhase::Moving) => Self::Updating,
            (UpdateKind::Update, UpdatePhase::Paused) => Self::Paused,
            (UpdateKind::Update, UpdatePhase::Done) => Self::Completed,
            (_, UpdatePhase::Moving) => Self::RollingBack,
            (_, UpdatePhase::Paused) => Self::RollbackPaused,
            (_, UpdatePhase::Done) => Self::RolledBack,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Updating => "updating",
            Self::Completed => "completed",
            Self::Paused => "paused",
            Self::RollingBack => "rolling_back",
            Self::RolledBack => "rolled_back",
            Self::RollbackPaused => "rollback_paused",
        }
    }
}

impl fmt::Display for ChangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create => f.write_str("created"),
            Self::Update => f.write_str("updated"),
            Self::Rollback { to } => write!(f, "rolled back to {to}"),
            Self::AutomaticRollback { to } => write!(f, "rolled back to {to} by itself"),
        }
    }
}
