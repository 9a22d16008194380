//! Commands before and after a deploy.

use crate::world::check;

#[test]
fn nothing_new_is_made_before_the_hook_has_done_its_work() {
    check(
        "nodes a b
        service web n=2 before=migrate
        progress web => pre-deploy command to be started
        plan => +web.pre-deploy@a wake 600s
        progress web => pre-deploy command assigned
        counts web => 0/2
        start
        progress web => pre-deploy command running
        counts web => 0/2
        plan => wake 600s
        complete web.pre-deploy
        plan => hook web over
        plan => +web.1@a +web.2@b
        start
        plan => done web
        plan =>
        progress web => converged
        update web image=b
        plan => -web.pre-deploy +web.pre-deploy/2@a wake 600s
        start
        counts web => 2/2
        complete web.pre-deploy
        plan => hook web over
        plan => +web.1/2@a
        start
        plan => -web.1 +web.2/2@b
        start
        plan => -web.2
        plan => done web",
    );
}

#[test]
fn what_restarts_nothing_runs_nothing() {
    check(
        "nodes a
        service web n=1
        plan => +web.1@a
        start
        update web before=migrate after=notify n=2
        plan => +web.2@a
        start
        plan =>
        state web => none",
    );
}

#[test]
fn a_hook_that_fails_stops_the_update() {
    check(
        "nodes a
        service web n=2
        plan => +web.1@a +web.2@a
        start
        plan =>
        update web image=b before=migrate
        plan => +web.pre-deploy/2@a wake 600s
        start
        fail web.pre-deploy
        plan => pause web: web.pre-deploy is failed on a: exit code 3
        plan =>
        progress web => failed: the update is paused: web.pre-deploy is failed on a: exit code 3
        counts web => 2/2
        update web n=3
        plan =>
        wait 1s
        go web
        plan => -web.pre-deploy/2 +web.pre-deploy/2@a wake 600s
        start
        complete web.pre-deploy
        plan => hook web over
        plan => +web.3/2@a
        start
        plan => +web.1/2@a",
    );
    // Back to what worked, whose hook ran then.
    check(
        "nodes a
        service web n=1 before=one fail=rollback
        plan => +web.pre-deploy@a wake 600s
        complete web.pre-deploy
        plan => hook web over
        plan => +web.1@a
        start
        plan => done web
        update web image=b
        plan => -web.pre-deploy +web.pre-deploy/2@a wake 600s
        reject web.pre-deploy
        plan => back web to 1: web.pre-deploy is rejected on a: no such image
        plan => done web
        plan =>
        state web => rolled_back: web.pre-deploy is rejected on a: no such image",
    );
    // Nothing goes on without it.
    check(
        "nodes a
        service web n=1 fail=continue before=one
        plan => +web.pre-deploy@a wake 600s
        fail web.pre-deploy
        plan => pause web: web.pre-deploy is failed on a: exit code 3
        update web no-before
        plan => hook web over
        plan => +web.1@a",
    );
}

#[test]
fn the_time_of_a_hook_is_limited() {
    check(
        "nodes a
        service web n=1 before=migrate timeout=10s
        plan => +web.pre-deploy@a wake 10s
        start
        wait 10s
        plan => pause web: pre-deploy command took longer than 10s
        plan => -web.pre-deploy",
    );
}

#[test]
fn the_hook_after_runs_once_all_is_good() {
    check(
        "nodes a
        service web n=2 after=notify
        plan => +web.1@a +web.2@a
        start
        plan => hook web post-deploy
        plan => +web.post-deploy@a wake 600s
        progress web => post-deploy command assigned
        state web => updating
        start
        complete web.post-deploy
        plan => done web
        plan =>
        progress web => converged
        state web => completed",
    );
    check(
        "nodes a
        service web n=1 after=notify fail=continue
        plan => +web.1@a
        start
        plan => hook web post-deploy
        plan => +web.post-deploy@a wake 600s
        fail web.post-deploy
        plan => done web
        plan =>
        progress web => converged
        state web => completed: web.post-deploy is failed on a: exit code 3",
    );
    check(
        "nodes a
        service web n=1
        plan => +web.1@a
        start
        update web image=b after=notify fail=rollback
        plan => +web.1/2@a
        start
        plan => -web.1
        plan => hook web post-deploy
        plan => +web.post-deploy/2@a wake 600s
        fail web.post-deploy
        plan => back web to 1: web.post-deploy is failed on a: exit code 3",
    );
}

#[test]
fn another_update_ends_the_hook_of_the_one_before() {
    check(
        "nodes a
        service web n=1 before=migrate
        plan => +web.pre-deploy@a wake 600s
        start
        update web image=b
        plan => -web.pre-deploy wake 600s
        plan => wake 600s
        obey
        plan => +web.pre-deploy/2@a wake 600s
        start
        complete web.pre-deploy
        plan => hook web over",
    );
    check(
        "nodes a
        service web n=1
        plan => +web.1@a
        start
        update web image=b before=migrate
        plan => +web.pre-deploy/2@a wake 600s
        start
        back web 1
        plan => -web.pre-deploy/2 done web
        plan =>
        obey
        plan =>
        remove web
        plan => x web.1 x web.pre-deploy/2",
    );
}

#[test]
fn a_hook_on_a_lost_node_runs_again() {
    check(
        "nodes a b
        service web n=1 before=migrate
        plan => +web.pre-deploy@a wake 600s
        start
        down a
        plan => a is down +web.pre-deploy@b -web.pre-deploy wake 596999ms
        start
        complete web.pre-deploy
        plan => hook web over
        plan => +web.1@b",
    );
    // Nobody asks it to leave: it ends by itself, or at the deadline.
    check(
        "nodes a b
        service web n=1 before=migrate
        plan => +web.pre-deploy@a wake 600s
        start
        drain a 30s
        plan => wake 30s
        wait 30s
        plan => -web.pre-deploy wake 570s
        plan => wake 570s
        obey
        plan => +web.pre-deploy@b wake 570s",
    );
}

#[test]
fn a_pause_by_hand_lets_the_hook_end() {
    check(
        "nodes a
        service web n=1
        plan => +web.1@a
        start
        update web image=b before=migrate
        plan => +web.pre-deploy/2@a wake 600s
        start
        hold web
        plan =>
        complete web.pre-deploy
        plan => hook web over
        plan =>
        go web
        plan => +web.1/2@a",
    );
}

#[test]
fn ports_and_limits_of_replicas_are_none_of_a_hooks() {
    check(
        "nodes a
        service web n=1 host=80 max=1 stop-first
        plan => +web.1@a
        start
        update web image=b before=migrate
        plan => +web.pre-deploy/2@a wake 600s",
    );
    check(
        "nodes a
        has a mem=1000
        service web n=1 mem=600
        plan => +web.1@a
        start
        update web image=b before=migrate timeout=20s
        plan => +web.pre-deploy/2 wake 20s
        progress web => pre-deploy command pending: no node fits: 1 short of memory (needs 600MiB)
        wait 20s
        plan => pause web: pre-deploy command took longer than 20s
        plan => drop web.pre-deploy/2",
    );
}
