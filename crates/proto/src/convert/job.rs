//! Jobs: what is wanted of them, and their runs.

use warren_model::Time;
use warren_model::job::{
    Concurrency, Given, Inputs, JobPolicy, JobStatus, Missed, PayloadRule, Run, RunState, Schedule,
};

use super::{Error, choice, each, enums, part_if_any};
use crate::v1;

enums! {
    Concurrency, v1::Concurrency { Allow Forbid Replace }
    Missed, v1::Missed { Skip RunOnce }
    RunState, v1::RunState { Running Complete Failed Stopped }
}

impl From<&JobPolicy> for v1::JobPolicy {
    fn from(policy: &JobPolicy) -> Self {
        Self {
            time_limit_ms: policy.time_limit_ms,
            history: policy.history,
            schedule: policy.schedule.as_ref().map(Into::into),
            params: policy.inputs.params.iter().map(declared).collect(),
            payload: match policy.inputs.payload {
                PayloadRule::Forbidden => 0,
                PayloadRule::Optional => 1,
                PayloadRule::Required => 2,
            },
            concurrency: policy.concurrency.map_or(0, |rule| v1::Concurrency::from(rule).into()),
        }
    }
}

impl TryFrom<v1::JobPolicy> for JobPolicy {
    type Error = Error;

    fn try_from(wire: v1::JobPolicy) -> Result<Self, Error> {
        Ok(Self {
            time_limit_ms: wire.time_limit_ms,
            history: if wire.history == 0 { Self::HISTORY } else { wire.history },
            schedule: part_if_any("schedule", wire.schedule)?,
            inputs: Inputs {
                params: wire.params.into_iter().map(declaration).collect(),
                payload: match wire.payload {
                    0 => PayloadRule::Forbidden,
                    1 => PayloadRule::Optional,
                    2 => PayloadRule::Required,
                    other => {
                        return Err(Error::new("payload", format!("{other} is not a known value")));
                    }
                },
            },
            concurrency: match wire.concurrency {
                0 => None,
                rule => Some(choice::<v1::Concurrency, _>("concurrency", rule)?),
            },
        })
    }
}

fn declared((name, default): (&String, &Option<String>)) -> String {
    default.as_ref().map_or_else(|| name.clone(), |value| format!("{name}={value}"))
}

/// Names have no `=` in them.
fn declaration(text: String) -> (String, Option<String>) {
    match text.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (text, None),
    }
}

/// What a run is given, from its parts.
pub fn given(
    params: impl IntoIterator<Item = (String, String)>,
    payload: Option<Vec<u8>>,
) -> Given {
    Given { params: params.into_iter().collect(), payload: payload.map(Into::into) }
}

impl From<&Schedule> for v1::Schedule {
    fn from(schedule: &Schedule) -> Self {
        Self {
            cron: schedule.cron.clone(),
            timezone: schedule.timezone.clone(),
            concurrency: v1::Concurrency::from(schedule.concurrency).into(),
            missed: v1::Missed::from(schedule.missed).into(),
            deadline_ms: schedule.deadline_ms,
        }
    }
}

impl TryFrom<v1::Schedule> for Schedule {
    type Error = Error;

    fn try_from(wire: v1::Schedule) -> Result<Self, Error> {
        Ok(Self {
            cron: wire.cron,
            timezone: wire.timezone,
            concurrency: choice::<v1::Concurrency, _>("concurrency", wire.concurrency)?,
            missed: choice::<v1::Missed, _>("missed", wire.missed)?,
            deadline_ms: wire.deadline_ms,
        })
    }
}

/// When the schedule comes next is left unsaid: only a listing knows.
impl From<&JobStatus> for v1::JobStatus {
    fn from(status: &JobStatus) -> Self {
        Self {
            last: status.last,
            cursor: status.cursor.0,
            suspended: status.suspended,
            missed: status.missed,
            skipped: status.skipped,
            runs: status.runs.iter().map(Into::into).collect(),
            next: 0,
        }
    }
}

impl TryFrom<v1::JobStatus> for JobStatus {
    type Error = Error;

    fn try_from(wire: v1::JobStatus) -> Result<Self, Error> {
        Ok(Self {
            last: wire.last,
            cursor: Time(wire.cursor),
            suspended: wire.suspended,
            missed: wire.missed,
            skipped: wire.skipped,
            runs: each("runs", wire.runs)?,
        })
    }
}

impl From<&Run> for v1::Run {
    fn from(run: &Run) -> Self {
        Self {
            number: run.number,
            template: run.template,
            scheduled: run.scheduled.map(|time| time.0),
            begun: run.begun.0,
            state: v1::RunState::from(run.state).into(),
            since: run.since.0,
            message: run.message.clone(),
            completed: run.completed,
            total: run.total,
            forgotten: run.forgotten.clone(),
            running: 0,
            params: run.params.clone().into_iter().collect(),
            payload: run.payload.as_deref().map(Into::into),
            payload_len: run.payload_len,
        }
    }
}

impl TryFrom<v1::Run> for Run {
    type Error = Error;

    fn try_from(wire: v1::Run) -> Result<Self, Error> {
        Ok(Self {
            number: wire.number,
            template: wire.template,
            scheduled: wire.scheduled.map(Time),
            begun: Time(wire.begun),
            state: choice::<v1::RunState, _>("state", wire.state)?,
            since: Time(wire.since),
            message: wire.message,
            completed: wire.completed,
            total: wire.total,
            forgotten: wire.forgotten,
            params: wire.params.into_iter().collect(),
            payload: wire.payload.map(Into::into),
            payload_len: wire.payload_len,
        })
    }
}
