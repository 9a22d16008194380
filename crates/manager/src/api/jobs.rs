//! Jobs: runs that people begin and stop, schedules that they suspend, and how runs stand.

use warren_model::Time;
use warren_model::job::{Given, Inputs, JobStatus, PayloadRule, Run, RunState};
use warren_model::service::Service;
use warren_proto::v1;
use warren_state::State;
use warren_state::change::{Expect, Key, Mutation, Transaction};

use crate::api::authorize::Who;
use crate::api::propose;
use crate::api::request::{Content, rehearse, repeated, request};
use crate::api::revisions::changed;
use crate::api::services::find;
use crate::core::Core;
use crate::refusal::Refusal;

pub(super) async fn run(
    core: &Core,
    who: &Who,
    wire: v1::RunJobRequest,
) -> Result<v1::RunChanged, Refusal> {
    let view = core.store.view();
    let service = job(&view, &wire.service)?;
    let id = service.id;
    let given = warren_proto::given(wire.params, wire.payload);
    let mut content = Content::new("run").with(id.as_bytes());
    for (name, value) in &given.params {
        content = content.with(name.as_bytes()).with(value.as_bytes());
    }
    if let Some(payload) = &given.payload {
        content = content.with(payload);
    }
    let request = request(&who.principal, &wire.request_id, &content)?;
    if let Some(revision) = repeated(&view, request.as_ref())? {
        let begun = begun_at(&view, service, revision, &given);
        return Ok(told(service, revision, begun.into_iter().collect()));
    }
    check_given(service, &given)?;
    // The number of the run follows from what the service is now.
    let last = service.job.as_ref().map_or(0, |job| job.last);
    let transaction = Transaction {
        request,
        principal: who.audit(),
        expects: vec![Expect { key: Key::Service(id), revision: service.revision }],
        mutations: vec![Mutation::BeginRun { id, scheduled: None, given: given.clone() }],
    };
    let name = &service.spec.name;
    rehearse(&view, &transaction).map_err(|refusal| {
        refusal.hint(format!("warren job runs {name}; warren job stop {name} ends what goes on"))
    })?;
    let revision = propose(core, transaction).await?;
    // It may be the retry of one that this manager had not heard of, with others after it.
    let view = core.store.view();
    let now = view.service(id).unwrap_or(service);
    let begun = begun_at(&view, now, revision, &given).unwrap_or_else(|| last.saturating_add(1));
    Ok(told(service, revision, vec![begun]))
}

/// The run that was begun at a revision, if both are still known: that of the moment that the audit
/// log has, and of what it was given.
fn begun_at(view: &State, service: &Service, revision: u64, given: &Given) -> Option<u32> {
    let record = view.audit().find(|record| record.revision == revision)?;
    let asked = |run: &&Run| {
        let same = given.params.iter().all(|(name, value)| run.params.get(name) == Some(value));
        let bytes = given.payload.as_ref().map_or(0, |payload| payload.len());
        same && run.scheduled.is_none()
            && run.begun == record.time
            && usize::try_from(run.payload_len) == Ok(bytes)
    };
    let job = service.job.as_ref()?;
    job.runs.iter().find(asked).map(|run| run.number)
}

fn check_given(service: &Service, given: &Given) -> Result<(), Refusal> {
    let inputs = &service.spec.job.inputs;
    let payload = given.payload.as_ref().map(|payload| payload.len());
    inputs.check(&given.params, payload).map_err(|error| {
        let name = &service.spec.name;
        let refusal = Refusal::bad_input(error.to_string());
        match inputs.required() {
            None => refusal.hint(format!("warren service inspect {name} shows what it takes")),
            Some(_) => refusal.hint(format!("warren job dispatch {name}{}", example(inputs))),
        }
    })
}

/// ` --param DAY=VALUE --payload FILE`: what must be said.
fn example(inputs: &Inputs) -> String {
    let required = inputs.params.iter().filter(|(_, default)| default.is_none());
    let mut text: String = required.map(|(name, _)| format!(" --param {name}=VALUE")).collect();
    if inputs.payload == PayloadRule::Required {
        text.push_str(" --payload FILE");
    }
    text
}

pub(super) async fn stop(
    core: &Core,
    who: &Who,
    wire: v1::StopJobRequest,
) -> Result<v1::RunChanged, Refusal> {
    let view = core.store.view();
    let service = job(&view, &wire.service)?;
    let (id, name) = (service.id, &service.spec.name);
    let content = Content::new("stop-job").with(id.as_bytes()).with(&wire.run.to_le_bytes());
    let request = request(&who.principal, &wire.request_id, &content)?;
    if let Some(revision) = repeated(&view, request.as_ref())? {
        return Ok(told(service, revision, Vec::new()));
    }
    let active = service.job.iter().flat_map(JobStatus::active);
    let runs: Vec<&Run> = active.filter(|run| wire.run == 0 || run.number == wire.run).collect();
    if runs.is_empty() {
        let what = match wire.run {
            0 => format!("no run of job {name} goes on"),
            run => format!("run {run} of job {name} does not go on"),
        };
        return Err(Refusal::not_now(what).hint(format!("warren job runs {name}")));
    }
    let message = format!("by {}", who.principal.as_str());
    let end = |run: &&Run| {
        let standing = warren_planner::standing(&view, id, run.number).unwrap_or_default();
        let (completed, total) = (standing.completed, standing.total);
        let (run, state, message) = (run.number, RunState::Stopped, message.clone());
        Mutation::EndRun { id, run, state, message, completed, total }
    };
    let transaction = Transaction {
        request,
        principal: who.audit(),
        expects: vec![Expect { key: Key::Service(id), revision: service.revision }],
        mutations: runs.iter().map(end).collect(),
    };
    let numbers = runs.iter().map(|run| run.number).collect();
    let revision = propose(core, transaction).await?;
    Ok(told(service, revision, numbers))
}

pub(super) async fn suspend(
    core: &Core,
    who: &Who,
    wire: v1::SuspendJobRequest,
) -> Result<v1::ServiceChanged, Refusal> {
    let view = core.store.view();
    let service = job(&view, &wire.service)?;
    let (id, suspended) = (service.id, wire.suspended);
    let content = Content::new("suspend").with(id.as_bytes()).with(&[u8::from(suspended)]);
    let request = request(&who.principal, &wire.request_id, &content)?;
    if let Some(revision) = repeated(&view, request.as_ref())? {
        return Ok(changed(&view, id, revision));
    }
    let transaction = Transaction {
        request,
        principal: who.audit(),
        expects: Vec::new(),
        mutations: vec![Mutation::Suspend { id, suspended }],
    };
    let name = &service.spec.name;
    rehearse(&view, &transaction)
        .map_err(|refusal| refusal.hint(format!("warren service inspect {name}")))?;
    let revision = propose(core, transaction).await?;
    Ok(changed(&core.store.view(), id, revision))
}

fn job<'a>(view: &'a State, text: &str) -> Result<&'a Service, Refusal> {
    let service = find(view, text)?;
    if service.job.is_none() {
        let (name, mode) = (&service.spec.name, service.spec.mode.as_str());
        return Err(Refusal::bad_input(format!("service: {name} is no job, its mode is {mode}"))
            .hint("jobs are made with --mode replicated-job or global-job"));
    }
    Ok(service)
}

fn told(service: &Service, revision: u64, runs: Vec<u32>) -> v1::RunChanged {
    let name = service.spec.name.to_string();
    v1::RunChanged { id: service.id.as_bytes().to_vec(), revision, runs, name }
}

/// A job's runs with what only a view can tell of those that go on.
pub(super) fn listed(view: &State, service: &Service, job: &JobStatus) -> v1::JobStatus {
    let mut wire = v1::JobStatus::from(job);
    for run in &mut wire.runs {
        // For its containers alone.
        run.payload = None;
        let Some(standing) = warren_planner::standing(view, service.id, run.number) else {
            continue;
        };
        (run.completed, run.total) = (standing.completed, standing.total);
        run.running = standing.running;
        if run.message.is_empty() {
            run.message = standing.failure;
        }
    }
    wire.next = warren_planner::next_time(service).map_or(0, |Time(ms)| ms);
    wire
}

/// How a job stands, in one line.
pub(super) fn summary(view: &State, service: &Service, job: &JobStatus) -> String {
    let name = &service.spec.name;
    let mut text = match job.latest() {
        None => format!("{name} has not run yet"),
        Some(run) => {
            let standing =
                warren_planner::standing(view, service.id, run.number).unwrap_or_default();
            let (number, state) = (run.number, run.state.as_str());
            let (done, total) = (standing.completed, standing.total);
            let text = format!("{name}: run {number} is {state}, {done} of {total} completed");
            match standing.failure.as_str() {
                "" => text,
                failure => format!("{text}: {failure}"),
            }
        }
    };
    if job.suspended {
        text.push_str("; its schedule is suspended");
    } else if let Some(next) = warren_planner::next_time(service) {
        text.push_str(&format!("; the next is due at {next}"));
    }
    text
}
