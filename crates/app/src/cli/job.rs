//! `warren job …` and what services say of jobs: flags, runs, schedules.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Value, json};
use warren_model::job::{Concurrency, JobPolicy, JobStatus, Missed, Run, Schedule};
use warren_model::quantity::format_duration_ms;
use warren_model::service::{Mode, RestartCondition, RestartPolicy};
use warren_model::{ServiceSpec, Time};
use warren_proto::v1;

use super::client::request_id;
use super::context::Context;
use super::dispatch::{DispatchArgs, InputFlags, dispatch, inputs_json};
use super::failure::Failure;
use super::listing::{ListFlags, ReadFlags, Record, View};
use super::rows::service_id;
use super::service::{WaitFlags, list};
use super::spec::{count, duration};
use super::wait::{Goal, until};

/// Longest reason in a table; `--no-trunc` shows it all.
const MESSAGE_WIDTH: usize = 60;
/// Longest list of parameters in one.
const PARAMS_WIDTH: usize = 40;

/// Flags of jobs, that `create` and `update` share.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct JobFlags {
    /// Tasks of a replicated-job at the same time [default: all]
    #[arg(long, help_heading = "Jobs", value_name = "N", allow_hyphen_values = true, value_parser = count)]
    max_concurrent: Option<u32>,
    /// Time for a whole run, from its beginning; what runs then is stopped; 0 is no limit
    #[arg(long, help_heading = "Jobs", value_name = "DURATION", allow_hyphen_values = true, value_parser = duration)]
    job_time_limit: Option<u64>,
    /// Runs that ended and are kept, with their tasks [default: 5]
    #[arg(long, help_heading = "Jobs", value_name = "N", allow_hyphen_values = true, value_parser = count)]
    job_history: Option<u32>,
    /// Begin runs at these times: "MINUTE HOUR DAY MONTH WEEKDAY" or @hourly, @daily, @weekly,
    /// @monthly, @yearly; '' takes the schedule away
    #[arg(long, help_heading = "Jobs", value_name = "SCHEDULE")]
    schedule: Option<String>,
    /// Time zone of the schedule, e.g. Europe/Berlin [default: UTC]
    #[arg(long, help_heading = "Jobs", value_name = "ZONE")]
    schedule_timezone: Option<String>,
    /// When a run is due while another goes on: allow, forbid or replace [default: forbid]
    #[arg(long, help_heading = "Jobs", value_name = "RULE")]
    schedule_concurrency: Option<Concurrency>,
    /// What becomes of times at which no manager was there: skip or run-once [default: skip]
    #[arg(long, help_heading = "Jobs", value_name = "RULE")]
    schedule_missed: Option<Missed>,
    /// A run that is due for longer is missed [default: 1m; with run-once: however late]
    #[arg(long, help_heading = "Jobs", value_name = "DURATION", allow_hyphen_values = true, value_parser = duration)]
    schedule_deadline: Option<u64>,
    #[command(flatten)]
    inputs: InputFlags,
}

impl JobFlags {
    pub(crate) fn apply(&self, spec: &mut ServiceSpec) -> Result<(), Failure> {
        if let Some(given) = self.max_concurrent {
            match &mut spec.mode {
                Mode::ReplicatedJob { max_concurrent, .. } => *max_concurrent = given,
                Mode::Replicated { .. } | Mode::Global | Mode::GlobalJob => {
                    let mode = spec.mode.as_str();
                    return Err(Failure::input(format!(
                        "--max-concurrent: {given} is for --mode replicated-job, and the mode is {mode}"
                    )));
                }
            }
        }
        if let Some(ms) = self.job_time_limit {
            spec.job.time_limit_ms = (ms > 0).then_some(ms);
        }
        spec.job.history = self.job_history.unwrap_or(spec.job.history);
        self.apply_schedule(&mut spec.job)?;
        self.inputs.apply(&mut spec.job)
    }

    fn apply_schedule(&self, job: &mut JobPolicy) -> Result<(), Failure> {
        match self.schedule.as_deref() {
            None => {}
            Some("") => job.schedule = None,
            Some(cron) => {
                // What was said of runs without a schedule is over.
                job.concurrency = None;
                let known = job.schedule.take().unwrap_or_else(|| Schedule::new(""));
                job.schedule = Some(Schedule { cron: cron.to_owned(), ..known });
            }
        }
        let given = [
            ("timezone", self.schedule_timezone.clone()),
            ("concurrency", self.schedule_concurrency.map(|rule| rule.as_str().to_owned())),
            ("missed", self.schedule_missed.map(|rule| rule.as_str().to_owned())),
            ("deadline", self.schedule_deadline.map(format_duration_ms)),
        ];
        let Some(schedule) = &mut job.schedule else {
            return match given.into_iter().find_map(|(flag, value)| Some((flag, value?))) {
                None => Ok(()),
                Some((flag, value)) => Err(Failure::input(format!(
                    "--schedule-{flag}: {value:?} is of a schedule, and there is none"
                ))
                .hint("give the times, too: --schedule \"*/5 * * * *\"")),
            };
        };
        if let Some(zone) = &self.schedule_timezone {
            schedule.timezone.clone_from(zone);
        }
        schedule.concurrency = self.schedule_concurrency.unwrap_or(schedule.concurrency);
        schedule.missed = self.schedule_missed.unwrap_or(schedule.missed);
        schedule.deadline_ms = self.schedule_deadline.or(schedule.deadline_ms);
        Ok(())
    }
}

/// How a job's tasks are begun again, unless something else is said.
pub(crate) fn restart() -> RestartPolicy {
    RestartPolicy {
        condition: RestartCondition::OnFailure,
        max_attempts: Some(JobPolicy::MAX_ATTEMPTS),
        ..RestartPolicy::default()
    }
}

/// The mode of a job with so many completions.
pub(crate) fn mode(completions: Option<u32>, max_concurrent: Option<u32>) -> Mode {
    let completions = completions.unwrap_or(1);
    Mode::ReplicatedJob { completions, max_concurrent: max_concurrent.unwrap_or(completions) }
}

#[derive(Debug, Subcommand)]
pub(crate) enum JobVerb {
    /// Begin a run now
    Run(RunArgs),
    /// Begin a run with parameters and a payload
    Dispatch(DispatchArgs),
    /// List the runs of a job
    Runs(RunsArgs),
    /// Stop the runs that go on
    Stop(StopArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Name or id of the job
    #[arg(value_name = "JOB")]
    job: String,
    #[command(flatten)]
    wait: WaitFlags,
}

#[derive(Debug, Args)]
pub(crate) struct RunsArgs {
    /// Name or id of the job
    #[arg(value_name = "JOB")]
    job: String,
    #[command(flatten)]
    read: ReadFlags,
    #[command(flatten)]
    list: ListFlags,
}

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Name or id of the job
    #[arg(value_name = "JOB")]
    job: String,
    /// This run alone
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    run: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct SuspendArgs {
    /// Names or ids of jobs with a schedule
    #[arg(value_name = "SERVICE", required = true)]
    services: Vec<String>,
}

pub(crate) async fn run(context: &mut Context<'_>, verb: JobVerb) -> Result<(), Failure> {
    match verb {
        JobVerb::Run(args) => begin(context, args).await,
        JobVerb::Dispatch(args) => dispatch(context, args).await,
        JobVerb::Runs(args) => runs(context, args).await,
        JobVerb::Stop(args) => stop(context, args).await,
    }
}

async fn begin(context: &mut Context<'_>, args: RunArgs) -> Result<(), Failure> {
    let request = v1::RunJobRequest {
        service: args.job,
        request_id: request_id(),
        ..v1::RunJobRequest::default()
    };
    begun(context, request, &args.wait).await
}

/// Begins a run, says its number, and waits for its end.
pub(crate) async fn begun(
    context: &mut Context<'_>,
    request: v1::RunJobRequest,
    wait: &WaitFlags,
) -> Result<(), Failure> {
    let begun =
        context.client.call(async |mut control| control.run_job(request.clone()).await).await?;
    let run = begun.runs.first().copied().unwrap_or_default();
    context.printer.line(run.to_string())?;
    if wait.is_detached() {
        return Ok(());
    }
    let name = begun.name.as_str();
    let (revision, id) = (begun.revision, service_id(&begun.id));
    let goal = Goal { service: &id, name, revision, number: 0, run, removed: false, timeout: None };
    until(&mut context.client, context.printer, &goal).await
}

async fn stop(context: &mut Context<'_>, args: StopArgs) -> Result<(), Failure> {
    let run = args.run.unwrap_or_default();
    let request = v1::StopJobRequest { service: args.job, run, request_id: request_id() };
    let stopped =
        context.client.call(async |mut control| control.stop_job(request.clone()).await).await?;
    for run in stopped.runs {
        context.printer.line(run.to_string())?;
    }
    Ok(())
}

/// `service suspend` and `unsuspend`.
pub(crate) async fn suspend(
    context: &mut Context<'_>,
    args: SuspendArgs,
    suspended: bool,
) -> Result<(), Failure> {
    for service in args.services {
        let request = v1::SuspendJobRequest { service, suspended, request_id: request_id() };
        let changed = context
            .client
            .call(async |mut control| control.suspend_job(request.clone()).await)
            .await?;
        context.printer.line(changed.name)?;
    }
    Ok(())
}

async fn runs(context: &mut Context<'_>, args: RunsArgs) -> Result<(), Failure> {
    let services = list(context, vec![args.job], args.read).await?;
    let mut rows = Vec::new();
    for service in &services {
        let Some(job) = &service.job else {
            let name = service.spec.as_ref().map_or("", |spec| spec.name.as_str());
            return Err(Failure::input(format!("service {name} is no job"))
                .hint("jobs are made with --mode replicated-job or global-job"));
        };
        // The newest first, as people ask for it.
        rows.extend(job.runs.iter().rev().map(RunRow::from));
    }
    let view = context.view();
    context.printer.list(&rows, &args.list, view)
}

#[derive(Debug, Serialize)]
pub(crate) struct RunRow {
    run: u32,
    state: &'static str,
    /// The time of the schedule that it stands for.
    scheduled_at: Option<String>,
    begun_at: String,
    ended_at: Option<String>,
    completed: u32,
    total: u32,
    running: u32,
    template: u32,
    /// What it was given, defaults included.
    params: BTreeMap<String, String>,
    payload_bytes: Option<u32>,
    message: Option<String>,
    #[serde(skip)]
    key: String,
    #[serde(skip)]
    begun_ms: u64,
    #[serde(skip)]
    lasted_ms: Option<u64>,
}

impl From<&v1::Run> for RunRow {
    fn from(run: &v1::Run) -> Self {
        let state = state(run.state);
        let ended = (state != "running").then_some(run.since);
        Self {
            run: run.number,
            state,
            scheduled_at: run.scheduled.map(|at| Time(at).to_string()),
            begun_at: Time(run.begun).to_string(),
            ended_at: ended.map(|at| Time(at).to_string()),
            completed: run.completed,
            total: run.total,
            running: run.running,
            template: run.template,
            params: run.params.clone().into_iter().collect(),
            payload_bytes: Some(run.payload_len).filter(|len| *len > 0),
            message: Some(run.message.clone()).filter(|text| !text.is_empty()),
            key: run.number.to_string(),
            begun_ms: run.begun,
            lasted_ms: ended.map(|at| at.saturating_sub(run.begun)),
        }
    }
}

fn state(number: i32) -> &'static str {
    match v1::RunState::try_from(number) {
        Ok(v1::RunState::Running) => "running",
        Ok(v1::RunState::Complete) => "complete",
        Ok(v1::RunState::Failed) => "failed",
        Ok(v1::RunState::Stopped) => "stopped",
        Ok(v1::RunState::Unspecified) | Err(_) => "unknown",
    }
}

impl RunRow {
    /// `DAY=monday +12B`.
    fn given(&self) -> String {
        let params = self.params.iter().map(|(name, value)| format!("{name}={value}"));
        let payload = self.payload_bytes.map(|bytes| format!("+{bytes}B"));
        params.chain(payload).collect::<Vec<_>>().join(" ")
    }
}

impl Record for RunRow {
    const COLUMNS: &'static [&'static str] =
        &["RUN", "STATE", "COMPLETED", "SCHEDULED", "BEGAN", "TOOK", "PARAMS", "MESSAGE"];
    const KEYS: &'static [&'static str] = &[
        "run",
        "state",
        "scheduled_at",
        "begun_at",
        "ended_at",
        "completed",
        "total",
        "running",
        "template",
        "params",
        "payload_bytes",
        "message",
    ];

    fn cells(&self, view: View) -> Vec<String> {
        vec![
            self.run.to_string(),
            self.state.to_owned(),
            format!("{}/{}", self.completed, self.total),
            self.scheduled_at.clone().unwrap_or_default(),
            view.ago(Time(self.begun_ms)),
            self.lasted_ms.map(format_duration_ms).unwrap_or_default(),
            view.cut(&self.given(), PARAMS_WIDTH),
            view.cut(self.message.as_deref().unwrap_or_default(), MESSAGE_WIDTH),
        ]
    }

    fn key(&self) -> &str {
        &self.key
    }
}

/// Whether its runs begin when somebody says so alone.
pub(crate) fn is_on_demand(service: &v1::Service) -> bool {
    let policy = service.spec.as_ref().and_then(|spec| spec.job.as_ref());
    policy.is_some_and(|policy| policy.schedule.is_none())
}

/// What a listing says of a job in a few words: its last run, or that it has none.
pub(crate) fn row_state(job: &v1::JobStatus, on_demand: bool) -> &'static str {
    match job.runs.last() {
        _ if job.suspended => "suspended",
        None if on_demand => "on demand",
        None => "scheduled",
        Some(run) => state(run.state),
    }
}

/// A job's runs and schedule, for `service inspect`.
pub(crate) fn job_json(status: Option<&JobStatus>, message: &v1::Service) -> Value {
    let (Some(status), Some(wire)) = (status, &message.job) else { return Value::Null };
    let runs: Vec<RunRow> = wire.runs.iter().map(RunRow::from).collect();
    let active: Vec<u32> = status.active().map(|run: &Run| run.number).collect();
    json!({
        "state": row_state(wire, is_on_demand(message)),
        "last_run": Some(status.last).filter(|run| *run > 0),
        "active_runs": active,
        "suspended": status.suspended,
        "missed": status.missed,
        "skipped": status.skipped,
        "next_run_at": Some(wire.next).filter(|at| *at > 0).map(|at| Time(at).to_string()),
        "runs": runs,
    })
}

/// What is wanted of a job beside its template, in the words of the flags.
pub(crate) fn policy_json(spec: &ServiceSpec) -> Value {
    let JobPolicy { time_limit_ms, history, schedule, .. } = &spec.job;
    if !spec.mode.is_job() {
        return Value::Null;
    }
    let max_concurrent = match spec.mode {
        Mode::ReplicatedJob { max_concurrent, .. } => Some(max_concurrent),
        Mode::GlobalJob | Mode::Replicated { .. } | Mode::Global => None,
    };
    let mut value = json!({
        "max_concurrent": max_concurrent,
        "time_limit": time_limit_ms.map(format_duration_ms),
        "history": history,
        "schedule": schedule.as_ref().map(|schedule| json!({
            "times": schedule.cron,
            "timezone": schedule.timezone,
            "concurrency": schedule.concurrency.as_str(),
            "missed": schedule.missed.as_str(),
            "deadline": schedule.late_ms().map(format_duration_ms),
        })),
    });
    if let Value::Object(all) = &mut value {
        all.extend(inputs_json(&spec.job).map(|(key, value)| (key.to_owned(), value)));
    }
    value
}
