//! Jobs in the simulation: what they are like, and what must hold of them.

use warren_base::rng::Rng;
use warren_model::job::{Concurrency, Given, PayloadRule, RunState, Schedule};
use warren_model::service::{Mode, RestartCondition, Service, ServiceSpec};
use warren_state::State;

/// First word of a program that ends well after a while.
pub(crate) const PROGRAM: &str = "job";
/// Label of jobs whose schedule people suspend and resume: times pass by meanwhile.
pub(crate) const RESTS: &str = "rests";
const MINUTE_MS: u64 = 60_000;

/// Makes a job of a service: every other one with a run each minute.
pub(crate) fn make(spec: &mut ServiceSpec, rng: &dyn Rng) {
    let completions = 1 + u32::try_from(rng.below(3)).unwrap_or(0);
    let max_concurrent = 1 + u32::try_from(rng.below(2)).unwrap_or(0);
    spec.mode = Mode::ReplicatedJob { completions, max_concurrent };
    spec.task.command = vec![PROGRAM.to_owned()];
    // What trouble ends is no failure of the job's own, so it is tried again for ever.
    spec.task.restart.condition = RestartCondition::OnFailure;
    spec.task.restart.max_attempts = None;
    (spec.update, spec.rollback) = Default::default();
    if rng.below(2) == 0 {
        let mut schedule = Schedule::new("* * * * *");
        let rules = [Concurrency::Allow, Concurrency::Forbid, Concurrency::Replace];
        schedule.concurrency = rules[usize::try_from(rng.below(3)).unwrap_or(0)];
        spec.job.schedule = Some(schedule);
    } else if rng.below(2) == 0 {
        let inputs = &mut spec.job.inputs;
        inputs.params =
            [("day".to_owned(), None), ("zone".to_owned(), Some("a".to_owned()))].into();
        inputs.payload = PayloadRule::Optional;
        spec.job.concurrency = match rng.below(4) {
            0 => Some(Concurrency::Forbid),
            1 => Some(Concurrency::Replace),
            _ => None,
        };
    }
}

/// What a run is given, of a job that takes anything.
pub(crate) fn given(service: &Service, rng: &dyn Rng) -> Option<Given> {
    let takes = service.spec.job.inputs.is_any();
    takes.then(|| Given {
        params: [("day".to_owned(), rng.below(7).to_string())].into(),
        payload: (rng.below(2) == 0).then(|| vec![7; 9].into()),
    })
}

/// Another number of completions.
pub(crate) fn resize(spec: &mut ServiceSpec, rng: &dyn Rng) {
    if let Mode::ReplicatedJob { completions, .. } = &mut spec.mode {
        *completions = 1 + u32::try_from(rng.below(4)).unwrap_or(0);
    }
}

/// Every time of each schedule was decided once: begun, skipped or missed. Of one that is
/// suspended the last may have been left out, of one that was now and then any.
///
/// # Errors
/// What does not hold.
pub(crate) fn check(view: &State) -> Result<(), String> {
    view.services().try_for_each(check_one)
}

fn check_one(service: &Service) -> Result<(), String> {
    let Some(job) = &service.job else { return Ok(()) };
    let name = &service.spec.name;
    for run in job.runs.iter().filter(|run| run.state == RunState::Complete) {
        if run.completed != run.total || run.total == 0 {
            let (number, done, total) = (run.number, run.completed, run.total);
            return Err(format!("run {number} of {name} is complete with {done} of {total}"));
        }
    }
    for run in &job.runs {
        let takes = service.spec.job.inputs.is_any();
        let has = run.params.len() == 2
            && run.payload.is_some() == (run.is_active() && run.payload_len > 0);
        if takes && !has {
            return Err(format!(
                "run {} of {name} has lost what it was given: {run:?}",
                run.number
            ));
        }
    }
    if service.spec.job.schedule.is_none() {
        return Ok(());
    }
    let there_were = job.cursor.0 / MINUTE_MS - service.created.0 / MINUTE_MS;
    let decided = u64::from(job.last) + job.missed + job.skipped;
    let exact = !job.suspended && !service.spec.labels.contains_key(RESTS);
    if decided > there_were || decided < there_were && exact {
        return Err(format!("{name}: {decided} times are decided of {there_were}"));
    }
    Ok(())
}
