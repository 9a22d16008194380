//! Decisions while a new template replaces the old one.

use crate::world::check;

#[test]
fn rollout_start_first() {
    check(
        "nodes a b
        service web n=3
        plan => +web.1@a +web.2@b +web.3@a
        start
        update web image=b
        progress web => 3 to be updated
        plan => +web.1/2@b
        counts web => 3/3
        plan =>
        start
        plan => -web.1 +web.2/2@a
        progress web => 1 assigned, 1 to be updated, 1 to be stopped
        obey
        start
        plan => -web.2 +web.3/2@a
        start
        plan => -web.3
        progress web => staying up
        plan => done web
        progress web => converged
        obey
        plan =>",
    );
    check(
        "nodes a
        service web n=3 par=2
        plan => +web.1@a +web.2@a +web.3@a
        start
        update web image=b
        plan => +web.1/2@a +web.2/2@a
        start web.1
        plan => -web.1 +web.3/2@a",
    );
    check(
        "nodes a
        service web n=3 par=0
        plan => +web.1@a +web.2@a +web.3@a
        start
        update web image=b
        plan => +web.1/2@a +web.2/2@a +web.3/2@a",
    );
}

#[test]
fn rollout_stop_first() {
    let tail = "plan => +web.1@a +web.2@a
        start
        update web image=b
        plan => -web.1
        plan =>
        obey
        plan => +web.1/2@a
        counts web => 1/2
        plan =>
        start
        plan => -web.2
        obey
        plan => +web.2/2@a
        start
        plan => done web
        progress web => converged";
    check(&format!("nodes a\n service web n=2 stop-first\n {tail}"));
    // One replica per node: a second cannot start beside the first, whatever the policy says.
    let tail = tail.replace("web.2@a", "web.2@b").replace("web.2/2@a", "web.2/2@b");
    check(&format!("nodes a b\n service web n=2 host=80\n {tail}"));
}

#[test]
fn rollout_pauses_between_slots() {
    check(
        "nodes a
        service web n=2 delay=10s
        plan => +web.1@a +web.2@a
        start
        wait 60s
        update web image=b
        plan => +web.1/2@a
        wait 1s
        start
        plan => -web.1 wake 10s
        wait 10s
        plan => +web.2/2@a
        start
        plan => -web.2",
    );
}

#[test]
fn a_failed_new_task_halts_the_rollout() {
    check(
        "nodes a
        service web n=3
        plan => +web.1@a +web.2@a +web.3@a
        start
        update web image=b
        plan => +web.1/2@a
        fail web.1
        plan => pause web: web.1 is failed on a: exit code 3
        progress web => failed: the update is paused: web.1 is failed on a: exit code 3
        counts web => 3/3
        wait 600s
        plan =>
        update web image=c
        plan => -web.1/2 +web.1/3@a
        start
        plan => -web.1 +web.2/3@a",
    );
    // Back to what it was mends it: it has the number that tasks of it still have.
    check(
        "nodes a
        service web n=2 stop-first
        plan => +web.1@a +web.2@a
        start
        update web image=b
        plan => -web.1
        obey
        plan => +web.1/2@a
        reject web.1
        plan => pause web: web.1 is rejected on a: no such image
        progress web => failed: the update is paused: web.1 is rejected on a: no such image
        update web image=a
        plan => -web.1/2 +web.1@a",
    );
    // The others are kept alive as they were while it is halted.
    check(
        "nodes a
        service web n=2
        plan => +web.1@a +web.2@a
        start
        update web image=b
        plan => +web.1/2@a
        fail web.1
        fail web.2
        plan => pause web: web.1 is failed on a: exit code 3
        plan => wake 1s
        wait 1s
        plan => -web.2 +web.2@a",
    );
    // The last slot: nothing is left to wait for, so it is tried again.
    check(
        "nodes a
        service web stop-first
        plan => +web.1@a
        start
        update web image=b
        plan => -web.1
        obey
        plan => +web.1/2@a
        fail web.1
        progress web => 1 failed
        plan => pause web: web.1 is failed on a: exit code 3
        progress web => failed: the update is paused: web.1 is failed on a: exit code 3
        plan => wake 1s
        wait 1s
        plan => -web.1/2 +web.1/2@a",
    );
}

#[test]
fn rollout_begins_with_what_does_not_work() {
    check(
        "nodes a
        service web n=3
        plan => +web.1@a +web.2@a +web.3@a
        start
        fail web.3
        update web image=b
        plan => -web.3 +web.3/2@a",
    );
    // Never ran: nothing to keep.
    check(
        "nodes a
        service web
        plan => +web.1@a
        update web image=b
        plan => -web.1 +web.1/2@a
        update web image=c
        plan => -web.1/2 +web.1/3@a",
    );
    check("service web\n plan => +web.1\n update web image=b\n plan => drop web.1 +web.1/2");
}

#[test]
fn scaling_during_a_rollout_uses_the_new_template() {
    check(
        "nodes a
        service web n=2
        plan => +web.1@a +web.2@a
        start
        update web image=b n=3
        plan => +web.3/2@a
        start
        plan => +web.1/2@a",
    );
}

#[test]
fn a_lost_task_keeps_its_template_during_a_rollout() {
    check(
        "nodes a b
        service web n=3
        plan => +web.1@a +web.2@b +web.3@a
        start
        update web image=b
        plan => +web.1/2@b
        down b
        plan => b is down +web.1/2@a -web.1/2 +web.2@a -web.2",
    );
}

#[test]
fn draining_moves_tasks_like_a_rollout() {
    check(
        "nodes a b
        service web n=2
        plan => +web.1@a +web.2@b
        start
        drain b
        plan => +web.2@a
        counts web => 2/2
        start
        plan => -web.2
        obey
        progress web => converged",
    );
}

/// Running is not enough: a new task must be healthy before the old one goes.
#[test]
fn a_rollout_waits_for_health() {
    check(
        "nodes a b
        service web n=2
        plan => +web.1@a +web.2@b
        begins web.1
        begins web.2
        counts web => 0/2
        progress web => 2 not healthy yet
        plan =>
        healthy web.1
        healthy web.2
        counts web => 2/2
        progress web => converged
        update web image=b
        plan => +web.1/2@a
        begins web.1
        plan =>
        wait 600s
        plan =>
        counts web => 2/2
        unhealthy web.1
        plan =>
        counts web => 2/2
        progress web => 1 unhealthy, 1 to be updated, 1 to be stopped
        healthy web.1
        plan => -web.1 +web.2/2@b
        healthy web.2
        plan => -web.2
        plan => done web
        progress web => converged",
    );
}

/// The delay of an update begins when the new task is healthy.
#[test]
fn a_pause_begins_with_health() {
    check(
        "nodes a
        service web n=2 delay=10s
        plan => +web.1@a +web.2@a
        start
        wait 60s
        update web image=b
        plan => +web.1/2@a
        begins web.1
        wait 60s
        plan =>
        healthy web.1
        plan => -web.1 wake 10s
        wait 10s
        plan => +web.2/2@a",
    );
}

/// Who is unhealthy is left to its node: it is not replaced elsewhere beside what runs.
#[test]
fn unhealthy_tasks_are_not_replaced_while_they_run() {
    check(
        "nodes a b
        service web n=2
        plan => +web.1@a +web.2@b
        healthy web.1
        healthy web.2
        unhealthy web.1
        plan =>
        counts web => 1/2
        progress web => 1 unhealthy
        wait 600s
        plan =>
        healthy web.1
        progress web => converged
        fail web.1
        wait 1s
        plan => -web.1 +web.1@b",
    );
    // Those that do not work are renewed first.
    check(
        "nodes a
        service web n=3
        plan => +web.1@a +web.2@a +web.3@a
        start
        unhealthy web.3
        update web image=b
        plan => +web.3/2@a
        healthy web.3
        plan => -web.3 +web.1/2@a",
    );
}
