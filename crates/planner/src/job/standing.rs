//! How a run of a job stands: what is done, what failed for good, whether it is over.

use warren_model::Time;
use warren_model::id::ServiceId;
use warren_model::job::{Run, RunState, has_done};
use warren_model::quantity::format_duration_ms;
use warren_model::service::{Mode, Service};
use warren_model::task::{Task, TaskState};
use warren_state::State;

use crate::nodes::Nodes;
use crate::progress::{Convergence, say};
use crate::slot::{Key, Slot, Wanted, is_live, is_lost, keys_of, slots_of, wanted};

/// Slots of a run, by what became of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Did their work.
    pub completed: u32,
    pub running: u32,
    /// Have a task that does not run yet.
    pub starting: u32,
    /// Of those, tasks that have no place.
    pub pending: u32,
    /// Could not do it, and are not tried again.
    pub failed: u32,
    pub total: u32,
    /// Of one that failed for good: `job.2 is failed on host: exit code 3`.
    pub failure: String,
    /// Of a task that has no place, or is tried again.
    pub trouble: String,
    /// A slot of it, on a node that is out of reach or paused, is kept as it is.
    pub kept: u32,
}

/// How a run stands; of one that is over, as it ended.
pub fn standing(state: &State, service: ServiceId, run: u32) -> Option<Standing> {
    let service = state.service(service)?;
    let run = service.job.as_ref()?.run(run)?;
    if !run.is_active() {
        let (completed, total) = (run.completed, run.total);
        let failure = run.message.clone();
        return Some(Standing { completed, total, failure, ..Standing::default() });
    }
    let nodes = Nodes::new(state);
    Some(of(state, service, run, &slots_of(state, service), &nodes))
}

/// Slots that a run of it has, before there is one; of a global job nobody knows.
pub(crate) fn size(service: &Service) -> u32 {
    match service.spec.mode {
        Mode::ReplicatedJob { completions, .. } => completions,
        Mode::GlobalJob | Mode::Replicated { .. } | Mode::Global => 0,
    }
}

/// How a run that goes on stands.
pub(super) fn of(
    state: &State,
    service: &Service,
    run: &Run,
    slots: &[Slot<'_>],
    nodes: &Nodes<'_>,
) -> Standing {
    let mut standing = Standing::default();
    let mut first = None;
    for slot in slots.iter().filter(|slot| slot.key.run() == run.number) {
        let is_wanted = wanted(service, slot.key, nodes);
        let done = slot.wanted.iter().any(|task| has_done(task));
        let Some(task) = slot.wanted.first().copied() else { continue };
        if done {
            // Whatever became of its node since.
            let counts = match service.spec.mode {
                Mode::ReplicatedJob { .. } => matches!(is_wanted, Wanted::Yes),
                Mode::GlobalJob | Mode::Replicated { .. } | Mode::Global => true,
            };
            standing.completed += u32::from(counts);
            continue;
        }
        match is_wanted {
            Wanted::No => continue,
            Wanted::Keep => standing.kept += u32::from(is_live(task)),
            Wanted::Yes => {}
        }
        standing.count(task, nodes);
        if has_failed(task) {
            first = first.or(Some(task));
        }
        if let Some(error) = task.status.error.as_deref().filter(|_| is_live(task))
            && standing.trouble.is_empty()
        {
            standing.trouble = format!("{}.{}: {error}", service.spec.name, task.slot);
        }
    }
    if let Some(task) = first {
        standing.failure = say(state, service, task);
    }
    standing.total = total(service, run, &standing, slots, nodes);
    let forgotten = u32::try_from(run.forgotten.len()).unwrap_or(u32::MAX);
    standing.completed = standing.completed.saturating_add(forgotten).min(standing.total);
    standing
}

impl Standing {
    fn count(&mut self, task: &Task, nodes: &Nodes<'_>) {
        if has_failed(task) {
            self.failed += 1;
        } else if task.status.state == TaskState::Running && !is_lost(task, nodes) {
            self.running += 1;
        } else if is_live(task) {
            self.starting += 1;
            self.pending += u32::from(task.node.is_none());
        }
    }
}

/// A global job is for the nodes that there are, and what was done on others is done.
fn total(
    service: &Service,
    run: &Run,
    standing: &Standing,
    slots: &[Slot<'_>],
    nodes: &Nodes<'_>,
) -> u32 {
    let keys = keys_of(service, run.number, nodes);
    let count = u32::try_from(keys.len()).unwrap_or(u32::MAX);
    if service.spec.mode != Mode::GlobalJob {
        return count;
    }
    let elsewhere = slots.iter().filter(|slot| {
        matches!(slot.key, Key::RunOn(number, _) if number == run.number)
            && keys.binary_search(&slot.key).is_err()
            && slot.wanted.iter().any(|task| has_done(task))
    });
    let elsewhere = u32::try_from(elsewhere.count()).unwrap_or(u32::MAX);
    count.saturating_add(elsewhere).saturating_add(standing.kept)
}

/// Whether a task could not do its work, and is not tried again: the agent has tried as often as
/// the restart policy says.
fn has_failed(task: &Task) -> bool {
    matches!(task.status.state, TaskState::Failed | TaskState::Rejected)
}

/// Whether a run that goes on is over.
pub(super) enum End {
    Now(RunState, String),
    /// Then its time is.
    At(Time),
    Not,
}

pub(super) fn end(service: &Service, run: &Run, standing: &Standing, now: Time) -> End {
    let Standing { completed, running, starting, pending, failed, total, .. } = standing;
    // A global job that nothing begins anew is for nodes that join later, too.
    let lasts = service.spec.mode == Mode::GlobalJob && service.spec.job.begins_with_service();
    let limit = service.spec.job.time_limit_ms;
    if completed == total && *total > 0 && !(lasts && limit.is_none()) {
        let early = lasts && limit.is_some_and(|ms| now < run.begun.plus_ms(ms));
        if !early {
            return End::Now(RunState::Complete, String::new());
        }
    }
    if *failed > 0 && running + (starting - pending) == 0 {
        let why = match failed {
            1 => standing.failure.clone(),
            _ => format!("{failed} of {total} failed, e.g. {}", standing.failure),
        };
        return End::Now(RunState::Failed, why);
    }
    let Some(ms) = limit else { return End::Not };
    let due = run.begun.plus_ms(ms);
    if now < due {
        return End::At(due);
    }
    let limit = format_duration_ms(ms);
    let why = format!("time limit of {limit} reached: {completed} of {total} completed");
    End::Now(RunState::Failed, why)
}

/// Whether a run has ended well, for those who wait for it; `run` 0: the last one.
pub fn run_progress(state: &State, service: ServiceId, run: u32) -> Convergence {
    let Some(service) = state.service(service) else {
        return Convergence::Failed { reason: format!("service {service} does not exist") };
    };
    let Some(job) = &service.job else {
        return Convergence::Failed { reason: "it is no job".to_owned() };
    };
    let found = if run == 0 { job.latest() } else { job.run(run) };
    let Some(found) = found else {
        return match run {
            // Its schedule has begun none yet.
            0 => Convergence::Converged,
            run => Convergence::Failed { reason: format!("run {run} is forgotten") },
        };
    };
    let failed = |reason: String| Convergence::Failed { reason };
    match found.state {
        RunState::Complete => Convergence::Converged,
        RunState::Failed => failed(format!("run {} failed: {}", found.number, found.message)),
        RunState::Stopped => failed(format!("run {} was stopped: {}", found.number, found.message)),
        RunState::Running => {
            let nodes = Nodes::new(state);
            let standing = of(state, service, found, &slots_of(state, service), &nodes);
            if standing.failed > 0 {
                return failed(standing.failure);
            }
            // Of a global job that lasts: all that there is to do for now.
            if standing.completed == standing.total && standing.total > 0 {
                return Convergence::Converged;
            }
            Convergence::Waiting { message: describe(&standing) }
        }
    }
}

/// `2 running, 1 starting: job.3: no node fits`.
fn describe(standing: &Standing) -> String {
    let Standing { completed, running, starting, pending, total, trouble, .. } = standing;
    let left = total.saturating_sub(completed + running + starting);
    let parts = [
        (*running, "running"),
        (starting - pending, "starting"),
        (*pending, "pending"),
        (left, "to be started"),
    ];
    let parts = parts.iter().filter(|(count, _)| *count > 0);
    let text = parts.map(|(count, word)| format!("{count} {word}")).collect::<Vec<_>>().join(", ");
    match (total, trouble.as_str()) {
        (0, _) => "no node is eligible".to_owned(),
        (_, "") => text,
        (_, trouble) => format!("{text}: {trouble}"),
    }
}
