//! Jobs: runs, slots, schedules.

use std::collections::BTreeSet;

use proptest::prelude::*;
use warren_model::Time;
use warren_model::task::{Task, TaskState};

use crate::world::{World, check, service_id};

#[test]
fn a_job_runs_once() {
    check(
        "nodes a b
        service j job=3/2
        counts j => 0/3
        plan => +j.1@a +j.2@b
        progress j => 2 starting, 1 to be started
        start
        progress j => 2 running, 1 to be started
        counts j => 2/3
        complete j.1
        plan => +j.3@a
        start
        complete j.2
        counts j => 1/3, 2 completed
        plan =>
        complete j.3
        plan => complete j#1 3/3 more
        plan =>
        progress j => converged
        runs j => 1 complete 3/3
        counts j => 0/3, 3 completed",
    );
}

#[test]
fn a_slot_that_failed_fails_the_run() {
    check(
        "nodes a b
        service j job=4/2
        plan => +j.1@a +j.2@b
        start
        fail j.1
        progress j => failed: j.1 is failed on a: exit code 3
        plan =>
        complete j.2
        plan => failed j#1 1/4: j.1 is failed on a: exit code 3 more
        plan =>
        progress j => failed: run 1 failed: j.1 is failed on a: exit code 3
        runs j => 1 failed 1/4",
    );
    // What has no place is not waited for.
    check(
        "nodes a
        has a mem=1000
        service j job=2 mem=600
        plan => +j.1@a +j.2
        reject j.1
        plan => failed j#1 0/2: j.1 is rejected on a: no such image more
        plan => drop j.2",
    );
}

#[test]
fn a_change_begins_another_run() {
    check(
        "nodes a
        service j job=2
        plan => +j.1@a +j.2@a
        start
        complete j.1
        update j image=b
        runs j => 1 stopped 1/2, 2 running 0/2
        plan => -j.2
        plan =>
        obey
        plan => +j#2.1/2@a +j#2.2/2@a
        start
        complete j#2.1
        complete j#2.2
        plan => complete j#2 2/2 more
        plan =>
        update j force
        plan => +j#3.1/3@a +j#3.2/3@a",
    );
    // Lowered: what is too much ends, and what is done is enough.
    check(
        "nodes a
        service j job=3
        plan => +j.1@a +j.2@a +j.3@a
        start
        complete j.1
        complete j.2
        update j job=2
        plan => complete j#1 2/2 more
        plan => -j.3",
    );
}

#[test]
fn history_is_of_runs() {
    check(
        "nodes a
        service j job=1 history=1
        plan => +j.1@a
        start
        complete j.1
        plan => complete j#1 1/1 more
        run j
        runs j => 1 complete 1/1, 2 running 0/1
        plan => +j#2.1@a
        start
        complete j#2.1
        plan => complete j#2 1/1 more
        runs j => 2 complete 1/1
        plan => x j.1
        obey
        plan => drop j.1",
    );
}

#[test]
fn the_time_of_a_run_is_limited() {
    check(
        "nodes a
        service j job=2 limit=10s
        plan => +j.1@a +j.2@a wake 10s
        start
        complete j.1
        wait 4s
        plan => wake 6s
        wait 6s
        plan => failed j#1 1/2: time limit of 10s reached: 1 of 2 completed more
        plan => -j.2
        progress j => failed: run 1 failed: time limit of 10s reached: 1 of 2 completed",
    );
}

#[test]
fn a_lost_task_has_a_successor_and_what_is_done_stays_done() {
    check(
        "nodes a b
        service j job=2
        plan => +j.1@a +j.2@b
        start
        complete j.1
        down b
        plan => b is down +j.2@a -j.2
        start
        complete j.2
        plan => complete j#1 2/2 more
        up b
        plan => b is ready",
    );
    // A node that is removed takes the record of what was done there with it, not the fact.
    check(
        "nodes a b
        service j job=2
        plan => +j.1@a +j.2@b
        start
        complete j.1
        rm a
        runs j => 1 running 1/2
        plan =>
        complete j.2
        plan => complete j#1 2/2 more",
    );
    check(
        "nodes a b
        service j job=2
        plan => +j.1@a +j.2@b
        start
        drain a
        plan => -j.1
        obey
        plan => +j.1@b",
    );
}

#[test]
fn a_global_job_is_for_every_node() {
    check(
        "nodes a b
        service j global-job
        plan => +j.a@a +j.b@b
        start
        complete j.a
        progress j => 1 running
        complete j.b
        plan =>
        progress j => converged
        counts j => 0/2, 2 completed
        nodes c
        plan => +j.c@c
        progress j => 1 starting
        start
        complete j.c
        plan =>
        counts j => 0/3, 3 completed
        drain b
        plan =>
        counts j => 0/3, 3 completed
        update j force
        plan => +j#2.a/2@a +j#2.c/2@c",
    );
}

#[test]
fn a_schedule_begins_runs() {
    check(
        "nodes a
        at 10:02
        service j job=1 every=*/5_*_*_*_* forbid
        progress j => converged
        plan => wake 180s
        at 10:05
        plan => run j 10:05 more
        plan => +j.1@a wake 300s
        start
        complete j.1
        plan => complete j#1 1/1 wake 300s more
        plan => wake 300s
        at 10:10:02
        plan => run j 10:10 more
        plan => +j#2.1@a wake 298s
        at 10:15
        plan => pass 0 (skipped 10:15 run 2 goes on) more
        plan => wake 300s
        runs j => 1 complete 1/1, 2 running 0/1",
    );
}

#[test]
fn runs_beside_and_instead_of_each_other() {
    check(
        "nodes a
        at 10:02
        service j job=1 every=*/5_*_*_*_* allow
        at 10:05
        plan => run j 10:05 more
        plan => +j.1@a wake 300s
        start
        at 10:10
        plan => run j 10:10 more
        plan => +j#2.1@a wake 300s",
    );
    check(
        "nodes a
        at 10:02
        service j job=1 every=*/5_*_*_*_* replace
        at 10:05
        plan => run j 10:05 more
        plan => +j.1@a wake 300s
        start
        at 10:10
        plan => run j 10:10 more
        runs j => 1 stopped 0/1, 2 running 0/1
        plan => -j.1 wake 300s
        obey
        plan => +j#2.1@a wake 300s",
    );
}

#[test]
fn times_that_passed_by() {
    // Nobody was there for an hour: the last is too late as well.
    check(
        "nodes a
        at 10:02
        service j job=1 every=*/5_*_*_*_* forbid
        plan => wake 180s
        at 11:03
        plan => pass 12 (12 missed, the last was due at 11:00) more
        plan => wake 120s",
    );
    // It is not if it is less than a minute ago.
    check(
        "nodes a
        at 10:02
        service j job=1 every=*/5_*_*_*_* forbid
        at 11:00:30
        plan => pass 11 (11 missed before 11:00) run j 11:00 more",
    );
    check(
        "nodes a
        at 10:02
        service j job=1 every=*/5_*_*_*_* forbid run-once
        at 11:03
        plan => pass 11 (11 missed before 11:00) run j 11:00 more",
    );
    check(
        "nodes a
        at 10:02
        service j job=1 every=*/5_*_*_*_* forbid run-once late=120s
        at 11:03
        plan => pass 12 (12 missed, the last was due at 11:00) more",
    );
}

#[test]
fn people_and_schedules() {
    check(
        "nodes a
        at 10:02
        service j job=1 every=*/5_*_*_*_* forbid
        run j
        plan => +j.1@a wake 180s
        run j => run 1 of job j goes on
        start
        suspend j
        at 10:30
        plan =>
        unsuspend j
        plan => wake 300s
        complete j.1
        plan => complete j#1 1/1 wake 300s more",
    );
    // Another schedule is not made up for.
    check(
        "nodes a
        at 10:02
        service j job=1 every=0_12_*_*_*
        at 11:30
        update j every=0_*_*_*_*
        plan => wake 1800s",
    );
}

/// Times of the wall clock, in ms: one a minute, on the minute.
fn times(from: Time, to: Time) -> u64 {
    to.0 / 60_000 - from.0 / 60_000
}

proptest! {
    #![proptest_config(crate::cases(128))]

    /// Whatever clocks of leaders say, and however late they look: each time of the schedule is
    /// begun once, or skipped, or missed, and all are counted. A new leader knows nothing (a fresh
    /// index), and its clock may be behind or far ahead.
    #[test]
    fn no_time_is_lost_or_begun_twice(
        rule in prop_oneof![Just("allow"), Just("forbid"), Just("replace")],
        missed in prop_oneof![Just(""), Just("run-once"), Just("late=90s")],
        steps in prop::collection::vec((0..6u8, 0..200_000u64), 1..60),
    ) {
        let mut world = World::new();
        world.run("nodes a");
        world.run(&format!("service j job=1 every=*_*_*_*_* {rule} {missed}"));
        let begun = world.state.time();
        let mut seen = BTreeSet::new();
        for (what, ms) in steps {
            match what {
                // The clock of the next leader is behind, or far ahead.
                0 => world.now = Time(world.now.0.saturating_sub(ms)),
                1 => world.now = world.now.plus_ms(ms * 20),
                2 => drop(world.run("start")),
                3 => {
                    let running = |task: &&Task| task.status.state == TaskState::Running;
                    let task = world.state.tasks().find(running).cloned();
                    if let Some(task) = task {
                        world.report(&task, TaskState::Complete);
                    }
                }
                4 => world.obey(),
                _ => world.now = world.now.plus_ms(ms),
            }
            while world.plan().more {}
            let service = world.state.service(service_id("j")).unwrap();
            let runs = &service.job.as_ref().unwrap().runs;
            let scheduled = runs.iter().filter_map(|run| run.scheduled.map(|at| (run.number, at)));
            seen.extend(scheduled);
        }
        prop_assert_eq!(world.state.check(), Vec::<String>::new());
        let job = world.state.service(service_id("j")).unwrap().job.clone().unwrap();
        let all: BTreeSet<Time> = seen.iter().map(|(_, at)| *at).collect();
        prop_assert_eq!(all.len(), seen.len(), "a time was begun twice: {:?}", seen);
        prop_assert_eq!(usize::try_from(job.last).unwrap(), seen.len());
        // What is decided is all that there was, up to the time of the state.
        let decided = u64::from(job.last) + job.missed + job.skipped;
        prop_assert_eq!(decided, times(begun, world.state.time().max(world.now)));
    }
}

#[test]
fn a_job_with_inputs_runs_when_somebody_says_so() {
    // Nothing begins with it or its changes, and runs do not mind each other.
    check(
        "nodes a
        service j job=1 param=day:monday
        plan =>
        progress j => converged
        counts j => 0/1
        run j
        plan => +j.1@a
        run j
        plan => +j#2.1@a
        start
        update j image=b
        plan =>
        complete j.1
        plan => complete j#1 1/1 more
        complete j#2.1
        plan => complete j#2 1/1 more
        run j
        plan => +j#3.1/2@a",
    );
    check(
        "nodes a
        service j job=1 param=day rule=forbid
        run j
        plan => +j.1@a
        run j => run 1 of job j goes on",
    );
    check(
        "nodes a
        service j job=1 param=day rule=replace
        run j
        plan => +j.1@a
        start
        run j
        plan => -j.1
        plan =>
        obey
        plan => +j#2.1@a",
    );
    // A run of a global job that is begun for itself ends when all nodes are done.
    check(
        "nodes a b
        service j global-job param=day
        run j
        plan => +j.a@a +j.b@b
        start
        complete j.a
        complete j.b
        plan => complete j#1 2/2 more",
    );
    // Sixteen go on at a time.
    let runs = "run j\n".repeat(16);
    check(&format!(
        "nodes a
        service j job=1 param=day
        {runs}
        run j => 16 runs of job j go on, more may not"
    ));
}
