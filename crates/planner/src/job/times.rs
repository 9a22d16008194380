//! What the schedule of a job says now.
//!
//! Pure, from the job's cursor, its schedule and the leader's wall clock. That may
//! go back, which begins nothing anew; forwards every time between the cursor and now is decided here, and
//! moving the cursor says so. Of several that are due the last may begin a run;
//! those before it were missed.

use warren_model::Time;
use warren_model::job::{Calendar, Concurrency, Given, JobStatus, Schedule};
use warren_model::service::Service;
use warren_state::change::Mutation;

use crate::service::Pass;

/// Times that are looked at in one look: a minute's schedule over three days. More that passed by
/// are decided by the next look.
const DUE_MAX: u32 = 5000;

/// Writes what is due. `true`: something was, and nothing else is to be concluded.
pub(super) fn decide(pass: &mut Pass<'_, '_>, job: &JobStatus) -> bool {
    let Some(schedule) = &pass.service.spec.job.schedule else { return false };
    if job.suspended {
        return false;
    }
    // The manager that took it knew the zone; one that does not leaves it to those that do.
    let Ok(calendar) = schedule.calendar() else { return false };
    let Due { last, count, next } = due(&calendar, job.cursor, pass.draft.wall);
    let Some(last) = last else {
        if let Some(next) = next {
            let left_ms = next.since_ms(pass.draft.wall);
            pass.wake(pass.draft.now.plus_ms(left_ms));
        }
        return false;
    };
    let mutations = answer(pass, job, schedule, last, count);
    if pass.draft.room(mutations.len()) {
        mutations.into_iter().for_each(|mutation| pass.draft.push(mutation));
        pass.draft.look_again();
    }
    true
}

struct Due {
    /// The last time up to now.
    last: Option<Time>,
    /// How many there are, that one included.
    count: u32,
    /// The first after now.
    next: Option<Time>,
}

fn due(calendar: &Calendar, cursor: Time, now: Time) -> Due {
    let (mut last, mut count, mut at) = (None, 0, cursor);
    loop {
        let next = calendar.next_after(at);
        match next {
            Some(time) if time <= now && count < DUE_MAX => {
                (last, count, at) = (Some(time), count + 1, time);
            }
            Some(_) | None => return Due { last, count, next },
        }
    }
}

/// When the schedule of a service comes next, as far as it is decided; `None`: it has none, or is
/// suspended.
pub fn next_time(service: &Service) -> Option<Time> {
    let job = service.job.as_ref().filter(|job| !job.suspended)?;
    service.spec.job.schedule.as_ref()?.calendar().ok()?.next_after(job.cursor)
}

/// What is done about `count` times that are due, of which `last` is the last.
fn answer(
    pass: &Pass<'_, '_>,
    job: &JobStatus,
    schedule: &Schedule,
    last: Time,
    count: u32,
) -> Vec<Mutation> {
    let id = pass.service.id;
    let now = pass.draft.wall;
    let pass_by = |until: Time, missed: u32, message: String| Mutation::PassSchedule {
        id,
        until,
        missed,
        message,
    };
    let late = schedule.late_ms().is_some_and(|ms| now.since_ms(last) > ms);
    if late || count >= DUE_MAX {
        let message = format!("{count} missed, the last was due at {last}");
        return vec![pass_by(last, count, message)];
    }
    let mut mutations = Vec::new();
    if count > 1 {
        // Up to just before the last: no two times are in one millisecond.
        let until = Time(last.0.saturating_sub(1));
        let missed = count - 1;
        mutations.push(pass_by(until, missed, format!("{missed} missed before {last}")));
    }
    let active = job.active().map(|run| run.number);
    let active: Vec<u32> = active.collect();
    let in_the_way = match (schedule.concurrency, active.last()) {
        (Concurrency::Forbid, Some(run)) => Some(format!("run {run} goes on")),
        (Concurrency::Allow, Some(_)) if active.len() >= JobStatus::ACTIVE_MAX => {
            Some(format!("{} runs go on", active.len()))
        }
        (Concurrency::Allow | Concurrency::Forbid | Concurrency::Replace, _) => None,
    };
    mutations.push(match in_the_way {
        Some(why) => pass_by(last, 0, format!("skipped {last}: {why}")),
        None => Mutation::BeginRun { id, scheduled: Some(last), given: Given::default() },
    });
    mutations
}
