//! What is wanted of jobs, and their runs.

use warren_model::job::{
    Concurrency, Inputs, JobPolicy, JobStatus, Missed, PayloadRule, Run, RunState, Schedule,
};

use super::Digest;

pub(super) fn add_policy(digest: &mut Digest, policy: &JobPolicy) {
    let JobPolicy { time_limit_ms, history, schedule, inputs, concurrency } = policy;
    digest.option(*time_limit_ms, Digest::word);
    digest.word(u64::from(*history));
    digest.option(schedule.as_ref(), |digest, schedule| {
        let Schedule { cron, timezone, concurrency, missed, deadline_ms } = schedule;
        digest.text(cron);
        digest.text(timezone);
        let concurrency = concurrency_word(*concurrency);
        let missed = match missed {
            Missed::Skip => 1,
            Missed::RunOnce => 2,
        };
        digest.word(concurrency << 8 | missed);
        digest.option(*deadline_ms, Digest::word);
    });
    digest.added(145, Some(inputs).filter(|inputs| inputs.is_any()), |digest, inputs| {
        let Inputs { params, payload } = inputs;
        digest.word(params.len() as u64);
        for (name, value) in params {
            digest.text(name);
            digest.option(value.as_deref(), Digest::text);
        }
        digest.word(match payload {
            PayloadRule::Forbidden => 1,
            PayloadRule::Optional => 2,
            PayloadRule::Required => 3,
        });
    });
    digest.added(146, concurrency.map(concurrency_word), Digest::word);
}

fn concurrency_word(concurrency: Concurrency) -> u64 {
    match concurrency {
        Concurrency::Allow => 1,
        Concurrency::Forbid => 2,
        Concurrency::Replace => 3,
    }
}

pub(super) fn add_status(digest: &mut Digest, status: &JobStatus) {
    let JobStatus { last, cursor, suspended, missed, skipped, runs } = status;
    digest.word(u64::from(*last) << 1 | u64::from(*suspended));
    digest.word(cursor.0);
    digest.word(*missed);
    digest.word(*skipped);
    digest.word(runs.len() as u64);
    runs.iter().for_each(|run| add_run(digest, run));
}

fn add_run(digest: &mut Digest, run: &Run) {
    let Run {
        number,
        template,
        scheduled,
        begun,
        state,
        since,
        message,
        completed,
        total,
        forgotten,
        params,
        payload,
        payload_len,
    } = run;
    digest.word(u64::from(*number) << 32 | u64::from(*template));
    digest.option(scheduled.map(|time| time.0), Digest::word);
    digest.word(begun.0);
    digest.word(match state {
        RunState::Running => 1,
        RunState::Complete => 2,
        RunState::Failed => 3,
        RunState::Stopped => 4,
    });
    digest.word(since.0);
    digest.text(message);
    digest.word(u64::from(*completed) << 32 | u64::from(*total));
    digest.word(forgotten.len() as u64);
    forgotten.iter().for_each(|slot| digest.word(u64::from(*slot)));
    digest.added(142, Some(params).filter(|params| !params.is_empty()), Digest::labels);
    digest.added(143, payload.as_deref(), Digest::bytes);
    let len = Some(u64::from(*payload_len)).filter(|len| *len != 0);
    digest.added(144, len, Digest::word);
}
