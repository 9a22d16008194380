//! Jobs: services whose tasks end, in runs that somebody or a schedule begins.
//!
//! A job has *runs*, numbered from 1. Without a schedule the first begins with the service, and
//! each change of its template begins the next. With one, a run begins at each time that it
//! names; such a run is known by that time, so none is begun twice.

mod inputs;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use crate::job::inputs::{Inputs, PayloadRule};
use crate::quantity::format_duration_ms;
pub use crate::schedule::{Calendar, Concurrency, Missed, Schedule, ScheduleError};
use crate::service::{
    Mode, RestartCondition, RestartPolicy, RollbackPolicy, ServiceSpec, SpecError, UpdatePolicy,
    wrong,
};
use crate::task::TaskState;
use crate::{Task, Time};

/// What is wanted of a job beside its template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobPolicy {
    /// From a run's beginning; what runs then is stopped, and the run has failed.
    pub time_limit_ms: Option<u64>,
    /// Runs that ended and are kept, with their tasks.
    pub history: u32,
    /// Absent: runs begin with the service, its changes, and when somebody says so.
    pub schedule: Option<Schedule>,
    /// What a run takes. If it takes anything, runs begin when somebody says so alone.
    pub inputs: Inputs,
    /// Without a schedule: what becomes of a run that begins while another goes on. See
    /// [`JobPolicy::concurrency`].
    pub concurrency: Option<Concurrency>,
}

impl JobPolicy {
    /// Enough to see what is usual, and little to keep.
    pub const HISTORY: u32 = 5;
    /// A run is one record of its service, which is written whole with each change.
    pub const HISTORY_MAX: u32 = 50;
    /// A month: what takes longer is a service.
    pub const TIME_MAX_MS: u64 = 31 * 86_400_000;
    /// Restarts of a task in place, unless something else is said: a job that cannot work is to
    /// say so, not to try for ever.
    pub const MAX_ATTEMPTS: u32 = 3;

    /// What holds when a run is to begin while another goes on: what the schedule says, or the job.
    /// If neither does, runs with inputs are each for themselves, and of others the last counts.
    pub fn concurrency(&self) -> Concurrency {
        match (&self.schedule, self.concurrency) {
            (Some(schedule), _) => schedule.concurrency,
            (None, Some(rule)) => rule,
            (None, None) if self.inputs.is_any() => Concurrency::Allow,
            (None, None) => Concurrency::Replace,
        }
    }

    /// Whether runs begin with the service and its changes.
    pub fn begins_with_service(&self) -> bool {
        self.schedule.is_none() && !self.inputs.is_any()
    }
}

impl Default for JobPolicy {
    fn default() -> Self {
        Self {
            time_limit_ms: None,
            history: Self::HISTORY,
            schedule: None,
            inputs: Inputs::default(),
            concurrency: None,
        }
    }
}

/// What is remembered of a job's runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobStatus {
    /// The highest number that a run of it ever had: none is given twice.
    pub last: u32,
    /// Times of the schedule up to here are decided: begun, skipped or missed.
    pub cursor: Time,
    /// Its schedule begins nothing.
    pub suspended: bool,
    /// Times that passed by while nobody was there to begin them.
    pub missed: u64,
    /// Times at which nothing was begun because of a run that had not ended.
    pub skipped: u64,
    /// In order of number: those that have not ended, and the last that have.
    pub runs: Vec<Run>,
}

/// Tasks of a job once to their end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// From 1; that of its tasks.
    pub number: u32,
    /// Of its tasks.
    pub template: u32,
    /// The time of the schedule that it stands for; no other run has the same.
    pub scheduled: Option<Time>,
    pub begun: Time,
    pub state: RunState,
    /// When its state became what it is now.
    pub since: Time,
    /// Why it failed or was stopped; for people, at most [`Run::MESSAGE_MAX`].
    pub message: String,
    /// Slots whose task did its work, and slots that there were; of one that has ended.
    pub completed: u32,
    pub total: u32,
    /// Slots whose task did its work on a node that was removed since; in order.
    pub forgotten: Vec<u32>,
    /// What it was given, defaults included.
    pub params: BTreeMap<String, String>,
    /// Given to each of its containers; none once it has ended.
    pub payload: Option<Arc<[u8]>>,
    /// Bytes of the payload that it had.
    pub payload_len: u32,
}

/// What whoever begins a run gives it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    pub params: BTreeMap<String, String>,
    pub payload: Option<Arc<[u8]>>,
}

impl Given {
    pub fn text_len(&self) -> usize {
        let params = self.params.iter().map(|(name, value)| name.len() + value.len() + 6);
        params.sum::<usize>() + self.payload.as_ref().map_or(0, |payload| payload.len())
    }
}

impl Run {
    /// Bytes; a task's error has as many.
    pub const MESSAGE_MAX: usize = 1024;

    pub fn is_active(&self) -> bool {
        self.state == RunState::Running
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    Running,
    /// Every slot has done its work.
    Complete,
    /// A slot could not, or the time was over.
    Failed,
    /// Another run took its place, or somebody stopped it.
    Stopped,
}

impl RunState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }
}

impl JobStatus {
    /// Runs at the same time: a schedule that begins faster than runs end is to be noticed.
    pub const ACTIVE_MAX: usize = 16;

    pub fn run(&self, number: u32) -> Option<&Run> {
        let at = self.runs.binary_search_by_key(&number, |run| run.number).ok()?;
        self.runs.get(at)
    }

    /// Those that have not ended.
    pub fn active(&self) -> impl DoubleEndedIterator<Item = &Run> {
        self.runs.iter().filter(|run| run.is_active())
    }

    /// The last that began.
    pub fn latest(&self) -> Option<&Run> {
        self.runs.last()
    }
}

/// Whether a task of a job has done its work. One that ended because it was told to has not.
pub fn has_done(task: &Task) -> bool {
    task.desired == crate::task::Desired::Running && task.status.state == TaskState::Complete
}

impl Mode {
    /// Whether its tasks end and are not begun again.
    pub fn is_job(self) -> bool {
        match self {
            Self::ReplicatedJob { .. } | Self::GlobalJob => true,
            Self::Replicated { .. } | Self::Global => false,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replicated { .. } => "replicated",
            Self::Global => "global",
            Self::ReplicatedJob { .. } => "replicated-job",
            Self::GlobalJob => "global-job",
        }
    }
}

impl ServiceSpec {
    pub(crate) fn check_job(&self) -> Result<(), SpecError> {
        if !self.mode.is_job() {
            return self.check_no_job();
        }
        if let Mode::ReplicatedJob { completions, max_concurrent } = self.mode {
            self.check_counts(completions, max_concurrent)?;
        }
        self.check_no_update()?;
        let restart = &self.task.restart;
        if restart.condition == RestartCondition::Any {
            let problem = "would run what is done again and again; of a job allowed are none, \
                           on-failure";
            return Err(wrong("restart_condition", "any", problem));
        }
        if restart.window_ms != RestartPolicy::WINDOW_DEFAULT_MS {
            let problem = "means nothing for a job: each failure counts, however long it ran";
            return Err(wrong("restart_window", format_duration_ms(restart.window_ms), problem));
        }
        let JobPolicy { time_limit_ms, history, schedule, inputs, concurrency } = &self.job;
        let max = JobPolicy::TIME_MAX_MS;
        match time_limit_ms {
            Some(0) => {
                let problem = "leaves no time; leave it out for no limit";
                return Err(wrong("job_time_limit", "0s", problem));
            }
            Some(ms) if *ms > max => {
                let problem = format!("is more than {}", format_duration_ms(max));
                return Err(wrong("job_time_limit", format_duration_ms(*ms), problem));
            }
            Some(_) | None => {}
        }
        if *history == 0 || *history > JobPolicy::HISTORY_MAX {
            let problem = format!("is not between 1 and {}", JobPolicy::HISTORY_MAX);
            return Err(wrong("job_history", history, problem));
        }
        inputs.validate()?;
        let Some(schedule) = schedule else { return Ok(()) };
        if let Some(required) = inputs.required() {
            let problem = format!(
                "begins runs that nobody says anything to, and each needs {required}; give \
                 parameters a default (--param NAME=VALUE), make the payload optional, or leave \
                 the schedule out"
            );
            return Err(wrong("schedule", &schedule.cron, problem));
        }
        if let Some(rule) = concurrency {
            let problem = "is for jobs without a schedule; use --schedule-concurrency";
            return Err(wrong("job_concurrency", rule.as_str(), problem));
        }
        schedule.validate()
    }

    fn check_counts(&self, completions: u32, max_concurrent: u32) -> Result<(), SpecError> {
        if completions == 0 {
            return Err(wrong("replicas", 0, "leaves a job nothing to do, allowed is 1 or more"));
        }
        if max_concurrent == 0 {
            let problem = "lets nothing begin, allowed is 1 or more";
            return Err(wrong("max_concurrent", 0, problem));
        }
        let max = Self::REPLICAS_MAX;
        let kept = u64::from(completions) * (u64::from(self.job.history) + 1);
        if completions > max {
            return Err(wrong("replicas", completions, format!("is more than {max}")));
        }
        if kept > u64::from(max) {
            let problem = format!(
                "keeps up to {kept} tasks with {completions} of each run, at most {max} are \
                 allowed; lower it or --replicas"
            );
            return Err(wrong("job_history", self.job.history, problem));
        }
        Ok(())
    }

    /// What has a meaning for jobs alone.
    fn check_no_job(&self) -> Result<(), SpecError> {
        let mode = self.mode.as_str();
        let problem =
            format!("is for jobs, and the mode is {mode}; use --mode replicated-job or global-job");
        let JobPolicy { time_limit_ms, history, schedule, inputs, concurrency } = &self.job;
        if let Some((name, _)) = inputs.params.first_key_value() {
            return Err(wrong("param", name, problem));
        }
        if inputs.payload != PayloadRule::Forbidden {
            return Err(wrong("payload", inputs.payload.as_str(), problem));
        }
        if let Some(rule) = concurrency {
            return Err(wrong("job_concurrency", rule.as_str(), problem));
        }
        if let Some(schedule) = schedule {
            return Err(wrong("schedule", &schedule.cron, problem));
        }
        if let Some(ms) = time_limit_ms {
            return Err(wrong("job_time_limit", format_duration_ms(*ms), problem));
        }
        if *history != JobPolicy::HISTORY {
            return Err(wrong("job_history", history, problem));
        }
        Ok(())
    }

    /// A new template of a job begins a new run: there is nothing to be paced.
    fn check_no_update(&self) -> Result<(), SpecError> {
        let problem = "is for services that go on: a changed job begins a new run";
        let (update, usual) = (&self.update, UpdatePolicy::default());
        let time = |ms: u64| format_duration_ms(ms);
        let number = |limit: Option<u32>| limit.map(|n| n.to_string()).unwrap_or_default();
        let deadline = update.deadline_ms.map(time).unwrap_or_default();
        let fields = [
            (
                "parallelism",
                update.parallelism != usual.parallelism,
                update.parallelism.to_string(),
            ),
            ("delay", update.delay_ms != usual.delay_ms, time(update.delay_ms)),
            ("order", update.order != usual.order, update.order.as_str().to_owned()),
            ("monitor", update.monitor_ms != usual.monitor_ms, time(update.monitor_ms)),
            (
                "max_failure_ratio",
                update.max_failure_millis != usual.max_failure_millis,
                (f64::from(update.max_failure_millis) / 1000.0).to_string(),
            ),
            (
                "failure_action",
                update.failure_action != usual.failure_action,
                update.failure_action.as_str().to_owned(),
            ),
            ("max_surge", update.max_surge.is_some(), number(update.max_surge)),
            ("max_unavailable", update.max_unavailable.is_some(), number(update.max_unavailable)),
            ("deadline", update.deadline_ms.is_some(), deadline),
        ];
        if let Some((field, _, value)) = fields.into_iter().find(|(_, differs, _)| *differs) {
            return Err(wrong(&format!("update_{field}"), value, problem));
        }
        if self.rollback != RollbackPolicy::default() {
            return Err(wrong("rollback", "policy", problem));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
