//! Jobs: when their runs begin and end, as far as that is to be agreed upon.
//!
//! A time of a schedule is decided once: what it was decided to be moves the job's cursor there,
//! and nothing at or before the cursor is begun any more, whoever leads and whatever its clock
//! says. A schedule's text is not looked at here.

use std::collections::BTreeMap;

use warren_model::Time;
use warren_model::event::Action;
use warren_model::id::ServiceId;
use warren_model::job::{Concurrency, Given, JobPolicy, JobStatus, Run, RunState, has_done};
use warren_model::service::{Mode, Service, ServiceSpec};

use super::{Step, invalid};
use crate::change::Rejection;

/// How a run ends.
pub(super) struct End<'a> {
    pub(super) state: RunState,
    pub(super) message: &'a str,
    pub(super) completed: u32,
    pub(super) total: u32,
}

impl Step<'_> {
    /// Of a service that is being created; a job without a schedule begins at once.
    pub(super) fn new_job(&self, spec: &ServiceSpec) -> Option<JobStatus> {
        if !spec.mode.is_job() {
            return None;
        }
        let mut job = JobStatus { cursor: self.state.time, ..JobStatus::default() };
        if spec.job.begins_with_service() {
            job.last = 1;
            job.runs.push(self.run(1, 1, None));
        }
        Some(job)
    }

    /// What a change of its specification does to a job.
    pub(super) fn changed_job(
        &self,
        before: &Service,
        spec: &ServiceSpec,
        template: u32,
        renewed: bool,
    ) -> Result<Option<JobStatus>, Rejection> {
        let Some(mut job) = before.job.clone() else { return Ok(None) };
        let times = |policy: &JobPolicy| {
            policy.schedule.as_ref().map(|s| (s.cron.clone(), s.timezone.clone()))
        };
        if times(&before.spec.job) != times(&spec.job) {
            // Times that it did not name before are not made up for.
            job.cursor = job.cursor.max(self.state.time);
        }
        if spec.job.schedule.is_none() {
            job.suspended = false;
            if renewed && spec.job.begins_with_service() {
                let service = Service { spec: spec.clone(), template, ..before.clone() };
                self.push_run(&service, &mut job, None, &Given::default())?;
            }
        }
        trim(&mut job, spec.job.history);
        Ok(Some(job))
    }

    pub(super) fn begin_run(
        &mut self,
        id: ServiceId,
        scheduled: Option<Time>,
        given: &Given,
    ) -> Result<(), Rejection> {
        let service = self.there(id)?;
        let (name, mut job) = self.job_of(service)?;
        if let Some(time) = scheduled {
            if job.suspended || service.spec.job.schedule.is_none() {
                return invalid(format!("job {name} has no schedule, or it is suspended"));
            }
            if time <= job.cursor {
                return invalid(format!("what job {name} does at {time} is decided already"));
            }
            job.cursor = time;
        }
        let service = service.clone();
        self.push_run(&service, &mut job, scheduled, given)?;
        trim(&mut job, service.spec.job.history);
        let text = match scheduled {
            Some(time) => format!("run {} begins, for {time}", job.last),
            None => format!("run {} begins", job.last),
        };
        self.write_job(&service, job, text);
        Ok(())
    }

    pub(super) fn end_run(
        &mut self,
        id: ServiceId,
        number: u32,
        end: End<'_>,
    ) -> Result<(), Rejection> {
        let service = self.service(id)?;
        let (name, mut job) = self.job_of(service)?;
        let (now, service) = (self.state.time, service.clone());
        let at = job.runs.iter().position(|run| run.number == number && run.is_active());
        let Some(run) = at.and_then(|at| job.runs.get_mut(at)) else {
            return invalid(format!("run {number} of job {name} does not go on"));
        };
        if end.state == RunState::Running {
            return invalid(format!("run {number} of job {name} goes on already"));
        }
        (run.state, run.since, run.message) = (end.state, now, cut(end.message));
        (run.completed, run.total, run.payload) = (end.completed, end.total, None);
        let text = match run.message.as_str() {
            "" => format!("run {number} is {}", end.state.as_str()),
            why => format!("run {number} is {}: {why}", end.state.as_str()),
        };
        trim(&mut job, service.spec.job.history);
        self.write_job(&service, job, text);
        Ok(())
    }

    pub(super) fn pass_schedule(
        &mut self,
        id: ServiceId,
        until: Time,
        missed: u32,
        message: &str,
    ) -> Result<(), Rejection> {
        let service = self.there(id)?;
        let (name, mut job) = self.job_of(service)?;
        if until <= job.cursor {
            return invalid(format!("what job {name} does until {until} is decided already"));
        }
        job.cursor = until;
        match missed {
            0 => job.skipped = job.skipped.saturating_add(1),
            missed => job.missed = job.missed.saturating_add(missed.into()),
        }
        let service = service.clone();
        self.write_job(&service, job, cut(message));
        Ok(())
    }

    pub(super) fn suspend(&mut self, id: ServiceId, suspended: bool) -> Result<(), Rejection> {
        let service = self.there(id)?;
        let (name, mut job) = self.job_of(service)?;
        if service.spec.job.schedule.is_none() {
            return invalid(format!("job {name} has no schedule"));
        }
        if job.suspended == suspended {
            let how = if suspended { "suspended already" } else { "not suspended" };
            return invalid(format!("job {name} is {how}"));
        }
        job.suspended = suspended;
        // What passed by meanwhile was not to be.
        job.cursor = job.cursor.max(self.state.time);
        let text = if suspended { "schedule suspended" } else { "schedule goes on" };
        let service = service.clone();
        self.write_job(&service, job, text.to_owned());
        Ok(())
    }

    /// Completed slots of runs that go on, whose tasks are about to be forgotten with their node.
    pub(super) fn remember_done(&mut self, node: warren_model::NodeId) {
        let done = self.state.tasks_on(node).filter(|task| task.run != 0 && has_done(task));
        let done: Vec<_> = done.map(|task| (task.service, task.run, task.slot)).collect();
        for (id, number, slot) in done {
            let Some(service) = self.state.service(id).cloned() else { continue };
            // A global job does what it does on a node, which is no more.
            if service.spec.mode == Mode::GlobalJob {
                continue;
            }
            let Some(mut job) = service.job.clone() else { continue };
            let active = |run: &&mut Run| run.number == number && run.is_active();
            let Some(run) = job.runs.iter_mut().find(active) else { continue };
            if let Err(at) = run.forgotten.binary_search(&slot) {
                run.forgotten.insert(at, slot);
            }
            let service = Service { job: Some(job), revision: self.revision, ..service };
            self.state.set_service(self.journal, id, Some(service));
        }
    }

    fn job_of(&self, service: &Service) -> Result<(String, JobStatus), Rejection> {
        let name = service.spec.name.to_string();
        match &service.job {
            Some(job) => Ok((name, job.clone())),
            None => invalid(format!("service {name} is no job")),
        }
    }

    fn write_job(&mut self, service: &Service, job: JobStatus, text: String) {
        let (id, spec) = (service.id, service.spec.clone());
        let service = Service { job: Some(job), revision: self.revision, ..service.clone() };
        self.state.set_service(self.journal, id, Some(service));
        self.emit_service(Action::Update, id, &spec, text);
    }

    /// Adds the next run; one that goes on is in its way, or makes way.
    fn push_run(
        &self,
        service: &Service,
        job: &mut JobStatus,
        scheduled: Option<Time>,
        given: &Given,
    ) -> Result<(), Rejection> {
        let name = &service.spec.name;
        let Some(number) = job.last.checked_add(1) else {
            return invalid(format!("job {name} ran too often"));
        };
        let active = job.active().next_back().map(|run| run.number);
        match (active, service.spec.job.concurrency()) {
            (Some(other), Concurrency::Forbid) => {
                return invalid(format!("run {other} of job {name} goes on"));
            }
            (Some(_), Concurrency::Allow) if job.active().count() >= JobStatus::ACTIVE_MAX => {
                let max = JobStatus::ACTIVE_MAX;
                return invalid(format!("{max} runs of job {name} go on, more may not"));
            }
            (Some(_), Concurrency::Replace) => self.replace(job, service, number),
            (Some(_), Concurrency::Allow) | (None, _) => {}
        }
        job.last = number;
        let payload_len = given.payload.as_ref().map_or(0, |payload| payload.len());
        job.runs.push(Run {
            params: service.spec.job.inputs.filled(&given.params),
            payload: given.payload.clone(),
            payload_len: u32::try_from(payload_len).unwrap_or(u32::MAX),
            ..self.run(number, service.template, scheduled)
        });
        Ok(())
    }

    fn replace(&self, job: &mut JobStatus, service: &Service, by: u32) {
        for run in job.runs.iter_mut().filter(|run| run.is_active()) {
            let done = self.state.tasks_of(service.id).filter(|task| task.run == run.number);
            let done = done.filter(|task| has_done(task)).count();
            let forgotten = run.forgotten.len();
            run.completed = u32::try_from(done + forgotten).unwrap_or(u32::MAX);
            run.total = match service.spec.mode {
                Mode::ReplicatedJob { completions, .. } => completions,
                _ => run.completed,
            };
            (run.state, run.since, run.payload) = (RunState::Stopped, self.state.time, None);
            run.message = format!("run {by} took its place");
        }
    }

    fn run(&self, number: u32, template: u32, scheduled: Option<Time>) -> Run {
        Run {
            number,
            template,
            scheduled,
            begun: self.state.time,
            state: RunState::Running,
            since: self.state.time,
            message: String::new(),
            completed: 0,
            total: 0,
            forgotten: Vec::new(),
            params: BTreeMap::new(),
            payload: None,
            payload_len: 0,
        }
    }
}

/// Forgets the first that ended beyond the limit, and never the last run.
fn trim(job: &mut JobStatus, history: u32) {
    let keep = usize::try_from(history.clamp(1, JobPolicy::HISTORY_MAX)).unwrap_or(usize::MAX);
    let ended = job.runs.iter().filter(|run| !run.is_active()).count();
    let mut over = ended.saturating_sub(keep);
    let last = job.last;
    job.runs.retain(|run| {
        let forget = over > 0 && !run.is_active() && run.number != last;
        over -= usize::from(forget);
        !forget
    });
}

fn cut(message: &str) -> String {
    message[..message.floor_char_boundary(Run::MESSAGE_MAX)].to_owned()
}
