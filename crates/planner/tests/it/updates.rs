//! Updates that go wrong, are paused, superseded or undone.

use proptest::prelude::*;
use warren_model::id::TaskId;
use warren_model::service::{UpdateKind, UpdatePhase};
use warren_model::task::{Desired, Task, TaskState};

use crate::world::{World, check, is_live, service_id};

#[test]
fn a_new_task_is_to_prove_itself_once() {
    // Nothing old ends before one new task has been up for the monitor; after that no other waits.
    check(
        "nodes a
        service web n=3 monitor=5s
        plan => +web.1@a +web.2@a +web.3@a
        start
        wait 60s
        update web image=b
        state web => updating
        plan => +web.1/2@a
        wait 1s
        start
        plan => wake 5s
        counts web => 3/3
        wait 5s
        plan => -web.1 +web.2/2@a
        start
        plan => -web.2 +web.3/2@a wake 5s
        start
        plan => -web.3 wake 5s
        progress web => staying up
        wait 5s
        state web => updating
        plan => done web
        state web => completed
        progress web => converged
        plan =>",
    );
}

#[test]
fn what_does_not_stay_up_pauses_the_update() {
    let begin = "nodes a
        service web n=3 monitor=1s FLAGS
        plan => +web.1@a +web.2@a +web.3@a
        start
        wait 60s
        update web image=b
        plan => +web.1/2@a
        start";
    let pauses = "crash web.1
        plan => pause web: web.1 does not stay up on a: exit code 3
        state web => paused: web.1 does not stay up on a: exit code 3
        progress web => failed: the update is paused: web.1 does not stay up on a: exit code 3
        counts web => 3/3
        start
        wait 600s
        plan => -web.1
        plan =>";
    check(&format!("{}\n{pauses}", begin.replace("FLAGS", "")));
    // The same without an older one to keep.
    check(
        "nodes a
        service web n=2 monitor=1s stop-first
        plan => +web.1@a +web.2@a
        start
        wait 60s
        update web image=b
        plan => -web.1
        obey
        plan => +web.1/2@a
        start
        crash web.1
        plan => pause web: web.1 does not stay up on a: exit code 3
        counts web => 1/2
        plan =>",
    );
}

#[test]
fn a_failed_update_goes_back_and_restarts_nothing_else() {
    check(
        "nodes a
        service web n=4 par=2 fail=rollback monitor=1s
        plan => +web.1@a +web.2@a +web.3@a +web.4@a
        start
        wait 60s
        update web image=b
        plan => +web.1/2@a +web.2/2@a
        reject web.2
        plan => back web to 1: web.2 is rejected on a: no such image
        state web => rolling_back: web.2 is rejected on a: no such image
        plan => -web.1/2 -web.2/2
        counts web => 4/4
        plan => done web
        state web => rolled_back: web.2 is rejected on a: no such image
        progress web => converged
        revision web => 3
        obey
        plan =>",
    );
    // Those that were renewed and good are renewed again; the others are not touched.
    check(
        "nodes a
        service web n=3 fail=rollback
        plan => +web.1@a +web.2@a +web.3@a
        start
        update web image=b
        plan => +web.1/2@a
        start
        plan => -web.1 +web.2/2@a
        obey
        fail web.2
        plan => back web to 1: web.2 is failed on a: exit code 3
        plan => -web.2/2 +web.1@a
        start
        plan => -web.1/2
        plan => done web",
    );
    // The last slot, too.
    check(
        "nodes a
        service web fail=rollback stop-first
        plan => +web.1@a
        start
        update web image=b
        plan => -web.1
        obey
        plan => +web.1/2@a
        fail web.1
        plan => back web to 1: web.1 is failed on a: exit code 3
        plan => -web.1/2 +web.1@a
        start
        plan => done web",
    );
}

#[test]
fn a_rollback_that_fails_is_paused_and_never_goes_round() {
    check(
        "nodes a
        service web fail=rollback stop-first
        plan => +web.1@a
        start
        update web image=b
        plan => -web.1
        obey
        plan => +web.1/2@a
        fail web.1
        plan => back web to 1: web.1 is failed on a: exit code 3
        plan => -web.1/2 +web.1@a
        obey
        wait 1s
        fail web.1
        plan => pause web: web.1 is failed on a: exit code 3
        state web => rollback_paused: web.1 is failed on a: exit code 3
        progress web => failed: the rollback is paused: web.1 is failed on a: exit code 3
        wait 600s
        plan => -web.1 +web.1@a x web.1
        start
        plan => done web
        state web => rolled_back
        revision web => 3",
    );
    // Of a revision whose port is another's by now there is no way back.
    check(
        "nodes a b
        service web fail=rollback host=80
        plan => +web.1@a
        start
        update web image=b no-ports
        plan => +web.1/2@b
        service other host=80
        plan => +other.1@a
        fail web.1
        plan => pause web: web.1 is failed on b: exit code 3; back to revision 1 it cannot go: port 80:80 (host) is published by service other",
    );
}

#[test]
fn back_to_the_last_that_was_good_not_to_the_last() {
    check(
        "nodes a
        service web n=2 fail=rollback
        plan => +web.1@a +web.2@a
        start
        update web image=b
        plan => +web.1/2@a
        update web image=c
        plan => -web.1/2 +web.1/3@a
        fail web.1
        plan => back web to 1: web.1 is failed on a: exit code 3
        plan => -web.1/3
        plan => done web",
    );
}

#[test]
fn as_many_may_fail_as_the_ratio_says() {
    check(
        "nodes a
        service web n=4 ratio=250
        plan => +web.1@a +web.2@a +web.3@a +web.4@a
        start
        update web image=b
        plan => +web.1/2@a
        fail web.1
        plan => +web.2/2@a wake 1s
        start web.2
        plan => -web.2 +web.3/2@a wake 1s
        fail web.3
        plan => pause web: 2 of 4 failed, e.g. web.1 is failed on a: exit code 3
        counts web => 4/4
        plan =>",
    );
    check(
        "nodes a
        service web n=2 fail=continue
        plan => +web.1@a +web.2@a
        start
        update web image=b
        plan => +web.1/2@a
        fail web.1
        plan => +web.2/2@a wake 1s
        fail web.2
        plan => wake 1s
        counts web => 2/2
        state web => updating",
    );
}

#[test]
fn no_progress_for_the_deadline_counts_as_failed() {
    // It has no place.
    check(
        "nodes a
        service web n=2 deadline=60s fail=rollback
        plan => +web.1@a +web.2@a
        start
        wait 60s
        update web image=b mem=99
        plan => +web.1/2 wake 60s
        wait 60s
        plan => back web to 1: no progress within 1m: web.1 is pending: no node fits: 1 short of memory (needs 99MiB)
        plan => drop web.1/2 wake 60s
        plan => done web",
    );
    // It never gets to run; each that does begins the time anew.
    check(
        "nodes a
        service web n=2 deadline=60s
        plan => +web.1@a +web.2@a
        start
        update web image=b
        plan => +web.1/2@a wake 60s
        wait 50s
        start
        plan => -web.1 +web.2/2@a wake 60s
        wait 59s
        plan => wake 1s
        wait 1s
        plan => pause web: no progress within 1m: web.2 is assigned",
    );
}

#[test]
fn nobody_waits_for_ever_for_what_has_no_place() {
    check(
        "nodes a
        service web n=2 deadline=60s fail=continue
        plan => +web.1@a +web.2@a
        start
        wait 60s
        patience web => for ever
        update web image=b mem=99
        plan => +web.1/2 wake 60s
        patience web => ask in 60s
        wait 59s
        patience web => ask in 1s
        wait 1s
        patience web => none: no progress within 1m: web.1 is pending: no node fits: 1 short of memory (needs 99MiB)",
    );
    // Its policy acts by itself.
    check(
        "nodes a
        service web n=1 deadline=60s
        plan => +web.1@a
        start
        wait 60s
        update web image=b mem=99
        plan => +web.1/2 wake 60s
        wait 60s
        patience web => for ever",
    );
}

#[test]
fn people_pause_and_resume() {
    check(
        "nodes a
        service web n=3
        plan => +web.1@a +web.2@a +web.3@a
        start
        update web image=b
        plan => +web.1/2@a
        hold web
        state web => paused: by anna
        start
        plan => -web.1
        plan =>
        progress web => failed: the update is paused: by anna
        go web
        state web => updating
        plan => +web.2/2@a
        fail web.2
        plan => pause web: web.2 is failed on a: exit code 3
        wait 1ms
        go web
        plan => wake 999ms
        wait 1s
        plan => -web.2/2 +web.2/2@a
        start
        plan => -web.2 +web.3/2@a
        start
        plan => -web.3
        plan => done web",
    );
}

#[test]
fn an_update_supersedes_another() {
    // Of the middle one first, and never three in a slot.
    check(
        "nodes a
        service web n=3 monitor=5s
        plan => +web.1@a +web.2@a +web.3@a
        start
        wait 60s
        update web image=b
        plan => +web.1/2@a
        start
        wait 5s
        plan => -web.1 +web.2/2@a
        start
        update web image=c
        plan => +web.1/3@a
        start
        wait 5s
        plan => -web.1/2 -web.2/2 +web.2/3@a",
    );
    // Back to what the others still are: they stay.
    check(
        "nodes a
        service web n=3
        plan => +web.1@a +web.2@a +web.3@a
        start
        update web image=b
        plan => +web.1/2@a
        update web image=a
        plan => -web.1/2
        plan => done web
        plan =>",
    );
}

#[test]
fn a_rollback_by_hand() {
    check(
        "nodes a
        service web n=2
        plan => +web.1@a +web.2@a
        start
        update web image=b
        plan => +web.1/2@a
        start
        plan => -web.1 +web.2/2@a
        start
        plan => -web.2
        plan => done web
        back web 1
        state web => rolling_back
        plan => +web.1@a
        start
        plan => -web.1/2 +web.2@a
        start
        plan => -web.2/2
        plan => done web
        state web => rolled_back
        revision web => 3",
    );
}

#[test]
fn what_needs_no_other_containers_restarts_none() {
    let flags = [
        "n=2",
        "par=3",
        "delay=5s",
        "monitor=2s",
        "ratio=100",
        "fail=rollback",
        "stop-first",
        "back-fail=continue",
        "back-par=0",
        "prefer=disk==ssd",
        "spread=zone",
        "pack",
        "keep",
        "tolerate=gpu",
        "apart=db:soft",
        "dnsrr",
        "surge=2",
        "deadline=9s",
    ];
    for flag in flags {
        check(&format!(
            "nodes a
            service web n=2
            plan => +web.1@a +web.2@a
            start
            update web {flag}
            plan =>
            state web => none"
        ));
    }
}

#[test]
fn surge_and_unavailability_are_bounds() {
    check(
        "nodes a
        service web n=4 par=0 surge=2
        plan => +web.1@a +web.2@a +web.3@a +web.4@a
        start
        update web image=b
        plan => +web.1/2@a +web.2/2@a
        start web.1
        plan => -web.1 +web.3/2@a",
    );
    check(
        "nodes a
        service web n=4 par=0 stop-first unavailable=2
        plan => +web.1@a +web.2@a +web.3@a +web.4@a
        start
        fail web.4
        update web image=b
        plan => -web.4 +web.4/2@a -web.1
        obey
        plan => +web.1/2@a
        start
        plan => -web.2 -web.3",
    );
}

#[test]
fn what_comes_late_is_renewed_though_another_failed_for_good() {
    check(
        "nodes a b
        service web global
        plan => +web.a@a +web.b@b
        start
        pause b
        update web image=b cond=none
        plan => +web.a/2@a
        start
        plan => -web.a
        plan => done web
        fail web.a
        plan =>
        active b
        plan => +web.b/2@b
        start
        plan => -web.b
        progress web => failed: web.1 is failed on a: exit code 3",
    );
}

#[test]
fn an_update_of_a_version_that_remembered_nothing_goes_on() {
    // Of no update yet: what fails is tried again, as ever.
    check(
        "nodes a
        service web n=1
        plan => +web.1@a
        fail web.1
        state web => none
        plan => wake 1s",
    );
}

fn wanted(world: &World) -> Vec<Task> {
    let tasks = world.state.tasks_of(service_id("web"));
    tasks.filter(|task| task.desired == Desired::Running).cloned().collect()
}

/// Something happens to a task of the failing template, but it is never good.
fn befall(world: &mut World, which: u16, what: u8) {
    let new = |task: &Task| task.template == 2 && is_live(task) && task.node.is_some();
    let tasks: Vec<Task> = wanted(world).into_iter().filter(new).collect();
    let Some(task) = tasks.get(usize::from(which) % tasks.len().max(1)) else { return };
    match what {
        0 | 1 => world.report(task, TaskState::Running),
        2 => world.report(task, TaskState::Failed),
        3 => world.report(task, TaskState::Rejected),
        _ => world.crash(task),
    }
}

proptest! {
    #![proptest_config(crate::cases(256))]

    /// What works nowhere: never more slots than may are touched; start-first costs no replica,
    /// stop-first no more than it may; going back restarts what was touched and nothing else.
    #[test]
    fn what_works_nowhere_costs_no_more_than_it_may(
        n in 1..6u32,
        par in 1..4u32,
        stop_first: bool,
        rollback: bool,
        events in prop::collection::vec((0..7u8, any::<u16>()), 0..40),
    ) {
        let order = if stop_first { "stop-first" } else { "start-first" };
        let action = if rollback { "rollback" } else { "pause" };
        let mut world = World::new();
        world.run("nodes a b c");
        world.run(&format!("service web n={n} par={par} {order} fail={action} monitor=1s"));
        while world.plan().more {}
        world.run("start");
        world.run("wait 60s");
        let first: Vec<TaskId> = wanted(&world).iter().map(|task| task.id).collect();
        world.run("update web image=b");
        let mut touched: Vec<u32> = Vec::new();
        // At the end everything fails, so that the update does.
        let ends = [(5, 0), (2, 0)].into_iter().cycle().take(16);
        for (what, which) in events.into_iter().chain(ends) {
            match what {
                5 => world.obey(),
                // Nobody is good: none runs for a second.
                6 if wanted(&world).iter().all(|t| t.template == 1 || t.status.state != TaskState::Running) => {
                    drop(world.run("wait 300ms"));
                }
                6 => {}
                what => befall(&mut world, which, what),
            }
            while world.plan().more {}
            let tasks = wanted(&world);
            touched.extend(tasks.iter().filter(|t| t.template == 2).map(|t| t.slot));
            touched.sort_unstable();
            touched.dedup();
            prop_assert!(touched.len() <= par as usize, "{touched:?}");
            let up = tasks.iter().filter(|t| t.template == 1 && t.status.state == TaskState::Running);
            let fewest = if stop_first { n.saturating_sub(par) } else { n };
            prop_assert!(up.count() >= fewest as usize);
        }
        let update = world.state.service(service_id("web")).unwrap().update.clone().unwrap();
        if rollback {
            prop_assert_eq!(update.kind, UpdateKind::AutomaticRollback);
            for _ in 0..4 {
                world.obey();
                while world.plan().more {}
                world.run("start");
                world.run("wait 1s");
                while world.plan().more {}
            }
            let update = world.state.service(service_id("web")).unwrap().update.clone().unwrap();
            prop_assert_eq!(update.phase, UpdatePhase::Done);
            let last = wanted(&world);
            prop_assert_eq!(last.len(), n as usize);
            for task in last {
                let kept = first.contains(&task.id);
                prop_assert!(kept || stop_first && touched.contains(&task.slot), "{task:?}");
                prop_assert_eq!(task.template, 1);
            }
        } else {
            prop_assert_eq!(update.phase, UpdatePhase::Paused);
        }
    }
}

#[test]
fn nobody_waits_for_ever_for_what_goes_on_whatever_fails() {
    let story = |policy: &str, wake: &str, patience: &str, said: &str| {
        check(&format!(
            "nodes a
            service web n=1
            plan => +web.1@a
            start
            update web image=b fail=continue {policy}
            plan => +web.1/2@a{wake}
            start
            crash web.1
            progress web => 1 preparing, 1 to be stopped
            wait {patience}
            crash web.1
            progress web => failed: no progress within {said}: web.1 is preparing
            state web => updating
            start
            progress web => 1 to be stopped"
        ));
    };
    story("", "", "600s", "10m");
    story("deadline=20s", " wake 20s", "20s", "20s");
}
