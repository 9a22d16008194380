//! How updates and rollbacks go: flags of `service create` and `service update`.

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use warren_model::ServiceSpec;
use warren_model::quantity::format_duration_ms;
use warren_model::service::{
    FailureAction, RollbackPolicy, UpdateOrder, UpdatePolicy, UpdateStatus,
};

use super::spec::{count, duration};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OrderFlag {
    StartFirst,
    StopFirst,
}

impl From<OrderFlag> for UpdateOrder {
    fn from(flag: OrderFlag) -> Self {
        match flag {
            OrderFlag::StartFirst => Self::StartFirst,
            OrderFlag::StopFirst => Self::StopFirst,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ActionFlag {
    Pause,
    Continue,
    Rollback,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RollbackActionFlag {
    Pause,
    Continue,
}

/// How updates and rollbacks of a service go.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct PaceFlags {
    /// Replicas replaced at a time; 0 is all [default: 1]
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = count)]
    update_parallelism: Option<u32>,
    /// Pause between batches
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = duration)]
    update_delay: Option<u64>,
    /// Whether the new one starts before the old one stops [default: start-first]
    #[arg(long, value_enum, value_name = "ORDER")]
    update_order: Option<OrderFlag>,
    /// A new replica must stay up for so long to be good [default: 1s]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = duration)]
    update_monitor: Option<u64>,
    /// Part of the replicas that may fail, from 0 to 1 [default: 0]
    #[arg(long, value_name = "RATIO", allow_hyphen_values = true, value_parser = ratio)]
    update_max_failure_ratio: Option<u32>,
    /// What becomes of an update when more fail [default: pause]
    #[arg(long, value_enum, value_name = "ACTION")]
    update_failure_action: Option<ActionFlag>,
    /// With start-first, replicas beyond the wanted ones at a time; 'none' is no limit of its own
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = bound)]
    update_max_surge: Option<Bound>,
    /// With stop-first, replicas that may be missing, for whatever reason; 'none' is no limit of
    /// its own
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = bound)]
    update_max_unavailable: Option<Bound>,
    /// No progress for so long counts as failed; 0 is no limit [default: 0]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = duration)]
    update_deadline: Option<u64>,
    /// Of a rollback: replicas replaced at a time; 0 is all [default: as updates]
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = count)]
    rollback_parallelism: Option<u32>,
    /// Of a rollback: pause between batches [default: as updates]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = duration)]
    rollback_delay: Option<u64>,
    /// Of a rollback: which comes first [default: as updates]
    #[arg(long, value_enum, value_name = "ORDER")]
    rollback_order: Option<OrderFlag>,
    /// Of a rollback: a replica must stay up for so long to be good [default: as updates]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = duration)]
    rollback_monitor: Option<u64>,
    /// Of a rollback: part of the replicas that may fail, from 0 to 1 [default: as updates]
    #[arg(long, value_name = "RATIO", allow_hyphen_values = true, value_parser = ratio)]
    rollback_max_failure_ratio: Option<u32>,
    /// What becomes of a rollback when more fail [default: pause]
    #[arg(long, value_enum, value_name = "ACTION")]
    rollback_failure_action: Option<RollbackActionFlag>,
}

/// A limit, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bound(Option<u32>);

fn bound(text: &str) -> Result<Bound, String> {
    if text == "none" {
        return Ok(Bound(None));
    }
    count(text).map(|n| Bound(Some(n))).map_err(|error| format!("{error}, nor none"))
}

/// Thousandths of `0.25`.
fn ratio(text: &str) -> Result<u32, String> {
    let wrong = || format!("{text:?} is not a ratio from 0 to 1, with at most three decimals");
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || whole.is_empty() || part.len() > 3 {
        return Err(wrong());
    }
    let whole: u32 = whole.parse().map_err(|_| wrong())?;
    let part: u32 = format!("{part:0<3}").parse().map_err(|_| wrong())?;
    let millis = whole.checked_mul(1000).and_then(|millis| millis.checked_add(part));
    millis.filter(|millis| *millis <= UpdatePolicy::FAILURE_MILLIS_MAX).ok_or_else(wrong)
}

impl PaceFlags {
    /// Puts what was given into `spec`.
    pub(crate) fn apply(&self, spec: &mut ServiceSpec) {
        let update = &mut spec.update;
        update.parallelism = self.update_parallelism.unwrap_or(update.parallelism);
        update.delay_ms = self.update_delay.unwrap_or(update.delay_ms);
        update.order = self.update_order.map_or(update.order, Into::into);
        update.monitor_ms = self.update_monitor.unwrap_or(update.monitor_ms);
        update.max_failure_millis =
            self.update_max_failure_ratio.unwrap_or(update.max_failure_millis);
        match self.update_failure_action {
            Some(ActionFlag::Pause) => update.failure_action = FailureAction::Pause,
            Some(ActionFlag::Continue) => update.failure_action = FailureAction::Continue,
            Some(ActionFlag::Rollback) => update.failure_action = FailureAction::Rollback,
            None => {}
        }
        if let Some(Bound(limit)) = self.update_max_surge {
            update.max_surge = limit;
        }
        if let Some(Bound(limit)) = self.update_max_unavailable {
            update.max_unavailable = limit;
        }
        if let Some(ms) = self.update_deadline {
            update.deadline_ms = (ms > 0).then_some(ms);
        }
        self.apply_rollback(&mut spec.rollback);
    }

    fn apply_rollback(&self, rollback: &mut RollbackPolicy) {
        rollback.parallelism = self.rollback_parallelism.or(rollback.parallelism);
        rollback.delay_ms = self.rollback_delay.or(rollback.delay_ms);
        rollback.order = self.rollback_order.map(Into::into).or(rollback.order);
        rollback.monitor_ms = self.rollback_monitor.or(rollback.monitor_ms);
        rollback.max_failure_millis =
            self.rollback_max_failure_ratio.or(rollback.max_failure_millis);
        match self.rollback_failure_action {
            Some(RollbackActionFlag::Pause) => {
                rollback.failure_action = Some(FailureAction::Pause);
            }
            Some(RollbackActionFlag::Continue) => {
                rollback.failure_action = Some(FailureAction::Continue);
            }
            None => {}
        }
    }
}

/// A policy in the words of the flags.
fn policy_json(policy: &UpdatePolicy) -> Value {
    json!({
        "parallelism": policy.parallelism,
        "delay": format_duration_ms(policy.delay_ms),
        "order": policy.order.as_str(),
        "monitor": format_duration_ms(policy.monitor_ms),
        "max_failure_ratio": f64::from(policy.max_failure_millis) / 1000.0,
        "failure_action": policy.failure_action.as_str(),
        "max_surge": policy.max_surge,
        "max_unavailable": policy.max_unavailable,
        "deadline": policy.deadline_ms.map(format_duration_ms),
    })
}

/// How updates go, and rollbacks, whole.
pub(crate) fn policies_json(spec: &ServiceSpec) -> (Value, Value) {
    (policy_json(&spec.update), policy_json(&spec.rollback.over(&spec.update)))
}

/// What is known of the last update.
pub(crate) fn status_json(state: &str, message: &str, status: Option<&UpdateStatus>) -> Value {
    json!({
        "state": state,
        "message": Some(message).filter(|message| !message.is_empty()),
        "started_at": status.map(|status| status.started.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios() {
        let check = |text: &str, expected: Option<u32>| {
            assert_eq!(ratio(text).ok(), expected, "{text}");
        };
        for (text, millis) in [("0", 0), ("1", 1000), ("0.25", 250), ("0.005", 5), ("1.000", 1000)]
        {
            check(text, Some(millis));
        }
        for bad in ["", ".5", "1.001", "2", "-1", "0.0001", "25%", "0,5", "1e-1", "99999999999"] {
            check(bad, None);
        }
        assert_eq!(
            ratio("25%").unwrap_err(),
            "\"25%\" is not a ratio from 0 to 1, with at most three decimals"
        );
    }
}
