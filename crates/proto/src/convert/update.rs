//! How services change: policies, what became of the last change, and revisions.

use warren_model::Time;
use warren_model::service::{
    Change, ChangeKind, FailureAction, Hook, HookStatus, Hooks, Revision, RollbackPolicy,
    UpdateKind, UpdateOrder, UpdatePhase, UpdatePolicy, UpdateStatus,
};

use super::{Error, choice, enums, part, part_or_default};
use crate::v1;

enums! {
    UpdateOrder, v1::UpdateOrder { StartFirst StopFirst }
    FailureAction, v1::FailureAction { Pause Continue Rollback }
    UpdateKind, v1::UpdateKind { Update Rollback AutomaticRollback }
    UpdatePhase, v1::UpdatePhase { Moving Paused Done }
}

/// An enum field that may be absent.
fn choice_if_any<W, M>(field: &str, number: i32) -> Result<Option<M>, Error>
where
    W: TryFrom<i32>,
    M: TryFrom<W, Error = Error>,
{
    if number == 0 { Ok(None) } else { choice::<W, M>(field, number).map(Some) }
}

impl From<&UpdatePolicy> for v1::UpdatePolicy {
    fn from(policy: &UpdatePolicy) -> Self {
        let action = policy.failure_action;
        Self {
            parallelism: policy.parallelism,
            delay_ms: policy.delay_ms,
            order: v1::UpdateOrder::from(policy.order).into(),
            // Defaults are left out: an older reader knows no other.
            monitor_ms: (policy.monitor_ms != UpdatePolicy::MONITOR_MS)
                .then_some(policy.monitor_ms),
            max_failure_millis: policy.max_failure_millis,
            failure_action: match action {
                FailureAction::Pause => 0,
                FailureAction::Continue | FailureAction::Rollback => {
                    v1::FailureAction::from(action).into()
                }
            },
            max_surge: policy.max_surge,
            max_unavailable: policy.max_unavailable,
            deadline_ms: policy.deadline_ms,
        }
    }
}

impl TryFrom<v1::UpdatePolicy> for UpdatePolicy {
    type Error = Error;

    fn try_from(wire: v1::UpdatePolicy) -> Result<Self, Error> {
        let action = choice_if_any::<v1::FailureAction, _>("failure_action", wire.failure_action)?;
        Ok(Self {
            parallelism: wire.parallelism,
            delay_ms: wire.delay_ms,
            order: choice::<v1::UpdateOrder, _>("order", wire.order)?,
            monitor_ms: wire.monitor_ms.unwrap_or(Self::MONITOR_MS),
            max_failure_millis: wire.max_failure_millis,
            failure_action: action.unwrap_or(FailureAction::Pause),
            max_surge: wire.max_surge,
            max_unavailable: wire.max_unavailable,
            deadline_ms: wire.deadline_ms,
        })
    }
}

impl From<&RollbackPolicy> for v1::RollbackPolicy {
    fn from(policy: &RollbackPolicy) -> Self {
        let order = policy.order.map(v1::UpdateOrder::from);
        let action = policy.failure_action.map(v1::FailureAction::from);
        Self {
            parallelism: policy.parallelism,
            delay_ms: policy.delay_ms,
            order: order.map_or(0, Into::into),
            monitor_ms: policy.monitor_ms,
            max_failure_millis: policy.max_failure_millis,
            failure_action: action.map_or(0, Into::into),
        }
    }
}

impl TryFrom<v1::RollbackPolicy> for RollbackPolicy {
    type Error = Error;

    fn try_from(wire: v1::RollbackPolicy) -> Result<Self, Error> {
        let action = choice_if_any::<v1::FailureAction, _>("failure_action", wire.failure_action)?;
        Ok(Self {
            parallelism: wire.parallelism,
            delay_ms: wire.delay_ms,
            order: choice_if_any::<v1::UpdateOrder, _>("order", wire.order)?,
            monitor_ms: wire.monitor_ms,
            max_failure_millis: wire.max_failure_millis,
            failure_action: action,
        })
    }
}

impl From<&UpdateStatus> for v1::UpdateStatus {
    fn from(status: &UpdateStatus) -> Self {
        Self {
            kind: v1::UpdateKind::from(status.kind).into(),
            phase: v1::UpdatePhase::from(status.phase).into(),
            started: status.started.0,
            message: status.message.clone(),
            hook: status.hook.map_or(0, |due| due.hook.number()),
            hook_since: status.hook.map_or(0, |due| due.since.0),
        }
    }
}

impl TryFrom<v1::UpdateStatus> for UpdateStatus {
    type Error = Error;

    fn try_from(wire: v1::UpdateStatus) -> Result<Self, Error> {
        Ok(Self {
            kind: choice::<v1::UpdateKind, _>("kind", wire.kind)?,
            phase: choice::<v1::UpdatePhase, _>("phase", wire.phase)?,
            started: Time(wire.started),
            message: wire.message,
            hook: hook(wire.hook)?.map(|hook| HookStatus { hook, since: Time(wire.hook_since) }),
        })
    }
}

/// A hook by its number; 0: none.
pub fn hook(number: u32) -> Result<Option<Hook>, Error> {
    match (number, Hook::from_number(number)) {
        (0, _) => Ok(None),
        (_, None) => Err(Error::new("hook", format!("{number} is not a known value"))),
        (_, known) => Ok(known),
    }
}

impl From<&Hooks> for v1::Hooks {
    fn from(hooks: &Hooks) -> Self {
        Self {
            before: hooks.before.clone(),
            after: hooks.after.clone(),
            timeout_ms: hooks.timeout_ms,
            retries: hooks.retries,
        }
    }
}

impl TryFrom<v1::Hooks> for Hooks {
    type Error = Error;

    fn try_from(wire: v1::Hooks) -> Result<Self, Error> {
        let v1::Hooks { before, after, timeout_ms, retries } = wire;
        Ok(Self { before, after, timeout_ms, retries })
    }
}

impl From<&Change> for v1::ServiceChange {
    fn from(change: &Change) -> Self {
        let (kind, to) = match change.kind {
            ChangeKind::Create => (v1::ChangeKind::Create, 0),
            ChangeKind::Update => (v1::ChangeKind::Update, 0),
            ChangeKind::Rollback { to } => (v1::ChangeKind::Rollback, to),
            ChangeKind::AutomaticRollback { to } => (v1::ChangeKind::AutomaticRollback, to),
        };
        Self { by: change.by.clone(), kind: kind.into(), to }
    }
}

impl TryFrom<v1::ServiceChange> for Change {
    type Error = Error;

    fn try_from(wire: v1::ServiceChange) -> Result<Self, Error> {
        let to = wire.to;
        let kind = match v1::ChangeKind::try_from(wire.kind) {
            Ok(v1::ChangeKind::Create) => ChangeKind::Create,
            Ok(v1::ChangeKind::Update) => ChangeKind::Update,
            Ok(v1::ChangeKind::Rollback) => ChangeKind::Rollback { to },
            Ok(v1::ChangeKind::AutomaticRollback) => ChangeKind::AutomaticRollback { to },
            Ok(v1::ChangeKind::Unspecified) => return Err(Error::missing("kind")),
            Err(_) => {
                return Err(Error::new("kind", format!("{} is not a known value", wire.kind)));
            }
        };
        Ok(Self { by: wire.by, kind })
    }
}

/// Whether it is the current one is left unsaid: only a listing knows.
impl From<&Revision> for v1::ServiceRevision {
    fn from(revision: &Revision) -> Self {
        Self {
            number: revision.number,
            spec: Some((&revision.spec).into()),
            time: revision.time.0,
            change: Some((&revision.change).into()),
            good: revision.good,
            current: false,
        }
    }
}

impl TryFrom<v1::ServiceRevision> for Revision {
    type Error = Error;

    fn try_from(wire: v1::ServiceRevision) -> Result<Self, Error> {
        Ok(Self {
            number: wire.number,
            spec: part("spec", wire.spec)?,
            time: Time(wire.time),
            change: part_or_default("change", wire.change)?,
            good: wire.good,
        })
    }
}
