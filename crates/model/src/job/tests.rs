//! What the specification of a job may say, and what is wrong with one.

use super::*;
use crate::service::{TaskTemplate, UpdateOrder};

/// `ok`, or what is wrong with the spec of a job of that mode once `change` was made.
#[track_caller]
fn check(mode: Mode, change: impl FnOnce(&mut ServiceSpec), expected: &str) {
    let task = TaskTemplate { image: "a".into(), ..TaskTemplate::default() };
    let mut spec = ServiceSpec::new("job".parse().unwrap(), task);
    spec.mode = mode;
    if mode.is_job() {
        spec.task.restart.condition = RestartCondition::OnFailure;
    }
    change(&mut spec);
    let got = spec.validate().map_or_else(|error| error.to_string(), |()| "ok".to_owned());
    assert_eq!(got, expected);
}

const JOB: Mode = Mode::ReplicatedJob { completions: 3, max_concurrent: 2 };

#[test]
fn what_a_job_may_be() {
    check(JOB, |_| {}, "ok");
    check(Mode::GlobalJob, |s| s.job.schedule = Some(Schedule::new("@daily")), "ok");
    check(
        Mode::ReplicatedJob { completions: 0, max_concurrent: 1 },
        |_| {},
        "replicas: \"0\" leaves a job nothing to do, allowed is 1 or more",
    );
    check(
        Mode::ReplicatedJob { completions: 1, max_concurrent: 0 },
        |_| {},
        "max_concurrent: \"0\" lets nothing begin, allowed is 1 or more",
    );
    check(
        Mode::ReplicatedJob { completions: 50_000, max_concurrent: 1 },
        |_| {},
        "job_history: \"5\" keeps up to 300000 tasks with 50000 of each run, at most 100000 are \
         allowed; lower it or --replicas",
    );
    check(
        JOB,
        |s| s.update.order = UpdateOrder::StopFirst,
        "update_order: \"stop-first\" is for services that go on: a changed job begins a new run",
    );
    check(
        JOB,
        |s| s.update.parallelism = 2,
        "update_parallelism: \"2\" is for services that go on: a changed job begins a new run",
    );
    check(
        JOB,
        |s| s.rollback.parallelism = Some(2),
        "rollback: \"policy\" is for services that go on: a changed job begins a new run",
    );
    check(
        JOB,
        |s| s.task.restart.condition = RestartCondition::Any,
        "restart_condition: \"any\" would run what is done again and again; of a job allowed are \
         none, on-failure",
    );
    check(
        JOB,
        |s| s.task.restart.window_ms = 5000,
        "restart_window: \"5s\" means nothing for a job: each failure counts, however long it ran",
    );
    check(
        JOB,
        |s| s.job.time_limit_ms = Some(0),
        "job_time_limit: \"0s\" leaves no time; leave it out for no limit",
    );
    check(JOB, |s| s.job.history = 51, "job_history: \"51\" is not between 1 and 50");
    check(
        JOB,
        |s| s.endpoint.slot_addresses = true,
        "slot_addresses: \"true\" cannot be had by a job: its tasks come and go",
    );
}

#[test]
fn what_is_for_jobs_alone() {
    let problem =
        "is for jobs, and the mode is replicated; use --mode replicated-job or global-job";
    let replicated = Mode::Replicated { replicas: 1 };
    check(
        replicated,
        |s| s.job.schedule = Some(Schedule::new("@daily")),
        &format!("schedule: \"@daily\" {problem}"),
    );
    check(
        replicated,
        |s| s.job.time_limit_ms = Some(5000),
        &format!("job_time_limit: \"5s\" {problem}"),
    );
    check(replicated, |s| s.job.history = 2, &format!("job_history: \"2\" {problem}"));
}
