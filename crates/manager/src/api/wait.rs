//! Waiting for a service: a line at once, one whenever something changed, the
//! last one says how it ended.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use warren_model::service::{ChangeKind, Service};
use warren_model::task::{Desired, Task};
use warren_model::{ServiceId, Time};
use warren_planner::Convergence;
use warren_proto::v1;
use warren_state::State;

use crate::api::services::find;
use crate::api::{REVISION_WAIT_MS, view_at};
use crate::core::Core;
use crate::refusal::Refusal;

/// How long what runs must have stayed up before a service counts as converged: programs that
/// cannot work mostly end within their first second.
const STEADY_MS: u64 = 1000;
/// Lines on their way to one reader. A slow reader misses lines in between, never the last.
const QUEUE_MAX: usize = 4;

pub(super) async fn open(
    core: &Arc<Core>,
    request: v1::WaitServiceRequest,
) -> Result<ReceiverStream<Result<v1::Progress, Status>>, Refusal> {
    // Before the first look: nothing after it is missed.
    let moved = core.store.watch();
    let view = view_at(core, request.min_revision, REVISION_WAIT_MS).await?;
    let (out, lines) = mpsc::channel(QUEUE_MAX);
    match find(&view, &request.service) {
        Ok(service) => {
            let (removed, number, run) = (request.removed, request.number, request.run);
            let goal = Goal { service: service.id, removed, number, run };
            core.tasks.spawn("wait", follow(Arc::clone(core), moved, goal, out));
        }
        // Gone already: that is what is waited for.
        Err(_) if request.removed => {
            // There is room: the channel is new.
            let _ = out.try_send(Ok(v1::Progress { converged: true, ..v1::Progress::default() }));
        }
        Err(refusal) => return Err(refusal),
    }
    Ok(ReceiverStream::new(lines))
}

#[derive(Debug, Clone, Copy)]
struct Goal {
    service: ServiceId,
    removed: bool,
    /// Of the specification that is waited for; 0: whichever is wanted.
    number: u32,
    /// Of a job; 0: the last, if nothing but a change begins one.
    run: u32,
}

async fn follow(
    core: Arc<Core>,
    mut moved: watch::Receiver<u64>,
    goal: Goal,
    out: mpsc::Sender<Result<v1::Progress, Status>>,
) {
    let mut told = None;
    // What a line depends on: while these stand, nothing is to be counted again.
    let mut counted = None;
    let mut steady_at_ms = None;
    // An update that stands still is told of by nothing but the clock.
    let (began, began_ms) = (core.store.view().time(), core.clock.monotonic_ms());
    let mut stuck_at_ms: Option<u64> = None;
    loop {
        moved.mark_unchanged();
        let view = core.store.view();
        let basis = (view.activity(goal.service), view.topology());
        let moved_on = counted.replace(basis) != Some(basis);
        let now_ms = core.clock.monotonic_ms();
        let due = |at: Option<u64>| at.is_some_and(|at| at <= now_ms);
        if moved_on || due(steady_at_ms) || due(stuck_at_ms) {
            let mut line = observe(&view, goal);
            let left = if line.converged { unsteady_ms(&view, goal, core.now()) } else { 0 };
            // Counted from here on the monotonic clock, once: clocks of nodes may differ.
            steady_at_ms = match steady_at_ms {
                Some(at) if !moved_on => Some(at),
                _ => (left > 0).then(|| core.clock.monotonic_ms() + left),
            };
            if steady_at_ms.is_some_and(|at| at > core.clock.monotonic_ms()) {
                line.converged = false;
                line.message = "staying up".to_owned();
            }
            // Counted from the state's own time: clocks of nodes may differ.
            let now = view.time().max(began.plus_ms(now_ms.saturating_sub(began_ms)));
            if !goal.removed && !line.converged && line.failure.is_empty() {
                match warren_planner::patience(&view, goal.service, now) {
                    Ok(at) => stuck_at_ms = at.map(|at| now_ms + at.since_ms(now).max(1)),
                    Err(reason) => line.failure = reason,
                }
            }
            let last = line.converged || !line.failure.is_empty();
            if told.as_ref() != Some(&line) {
                if out.send(Ok(line.clone())).await.is_err() {
                    return;
                }
                told = Some(line);
            }
            if last {
                return;
            }
        }
        tokio::select! {
            changed = moved.changed() => if changed.is_err() { return },
            () = core.sleep_until(steady_at_ms.into_iter().chain(stuck_at_ms).min()) => {}
            () = out.closed() => return,
        }
    }
}

/// For how much longer the youngest task that is up must stay so; 0 when all have.
fn unsteady_ms(view: &State, goal: Goal, now: Time) -> u64 {
    let wanted = view.tasks_of(goal.service).filter(|task| task.desired == Desired::Running);
    let youngest = wanted.filter_map(|task| task.status.ready_since()).max();
    // A clock that is ahead of ours asks for no more than the whole time.
    youngest.map_or(0, |since| STEADY_MS.saturating_sub(now.since_ms(since)))
}

fn observe(view: &State, goal: Goal) -> v1::Progress {
    let Some(service) = view.service(goal.service) else {
        let failure = if goal.removed { "" } else { "it was removed" }.to_owned();
        return v1::Progress { converged: goal.removed, failure, ..v1::Progress::default() };
    };
    let (running, desired) = warren_planner::task_counts(view, goal.service);
    let mut line = v1::Progress { running, desired, ..v1::Progress::default() };
    if goal.removed {
        let left = view.tasks_of(goal.service).filter(|t| !t.status.state.is_terminal()).count();
        line.message = format!("{left} to stop");
        return line;
    }
    if service.removing {
        line.failure = "it is being removed".to_owned();
        return line;
    }
    if service.job.is_some() {
        return observe_job(view, service, goal, line);
    }
    let back = gone_back(service, goal);
    match (warren_planner::progress(view, goal.service), back) {
        (Convergence::Converged, Some(back)) => line.failure = format!("rolled {back}"),
        (Convergence::Waiting { message }, Some(back)) => {
            line.message = message;
            line.warning = format!("rolling {back}");
        }
        (convergence, _) => {
            tell(&mut line, convergence, || warning(view, goal.service, service.template))
        }
    }
    line
}

fn observe_job(view: &State, service: &Service, goal: Goal, line: v1::Progress) -> v1::Progress {
    let last = service.job.as_ref().map_or(0, |job| job.last);
    let run = if goal.run == 0 { last } else { goal.run };
    let standing = warren_planner::standing(view, service.id, run).unwrap_or_default();
    let completed = standing.completed;
    let mut line = v1::Progress { job: true, completed, ..line };
    if run != 0 {
        (line.running, line.desired) = (standing.running, standing.total);
    }
    let convergence = match goal.run {
        0 => warren_planner::progress(view, service.id),
        run => warren_planner::run_progress(view, service.id, run),
    };
    let trouble = standing.trouble;
    tell(&mut line, convergence, || trouble);
    line
}

/// `back to revision 3: why`, if what was waited for failed and is undone by itself.
fn gone_back(service: &Service, goal: Goal) -> Option<String> {
    let ChangeKind::AutomaticRollback { to } = service.change.kind else { return None };
    if goal.number == 0 || service.number <= goal.number {
        return None;
    }
    let why = service.update.as_ref().map_or("", |update| update.message.as_str());
    Some(format!("back to revision {to}: {why}"))
}

fn tell(line: &mut v1::Progress, convergence: Convergence, warning: impl FnOnce() -> String) {
    match convergence {
        Convergence::Converged => line.converged = true,
        Convergence::Waiting { message } => {
            line.message = message;
            line.warning = warning();
        }
        Convergence::Failed { reason } => line.failure = reason,
    }
}

/// The latest thing that went wrong with a task of the current template and is being retried.
fn warning(view: &State, service: ServiceId, template: u32) -> String {
    let troubled = |task: &&Task| {
        task.template == template && task.desired != Desired::Remove && task.status.error.is_some()
    };
    let latest = view.tasks_of(service).filter(troubled).max_by_key(|t| (t.status.since, t.id));
    let Some(task) = latest else { return String::new() };
    let name = view.service(service).map(|service| service.spec.name.to_string());
    let (name, slot) = (name.unwrap_or_default(), task.label());
    format!("{name}.{slot}: {}", task.status.error.as_deref().unwrap_or_default())
}
