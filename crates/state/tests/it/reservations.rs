//! What tasks reserve on nodes, and what nodes have.

use warren_state::State;

use crate::rules::check;
use crate::script::{node, run};

/// Runs a script that is all well and tells what is reserved on node `a`.
#[track_caller]
fn check_reserved(script: &str, expected: &str) {
    let (state, outcomes) = run(script);
    assert!(outcomes.iter().all(|outcome| outcome == "ok"), "{outcomes:?}");
    assert_eq!(state.check(), Vec::<String>::new());
    let reserved = |state: &State| state.reserved_on(node("a")).map(|all| all.to_string());
    assert_eq!(reserved(&state).as_deref(), Some(expected));
    let again = State::import(state.head(), state.export()).unwrap();
    assert_eq!(reserved(&again), reserved(&state), "a snapshot has the same");
}

#[test]
fn tasks_reserve_until_they_end() {
    let with = |rest: &str| format!("node a\n service web reserve=4096\n{rest}");
    check_reserved(&with(""), "");
    check_reserved(&with("task 1 web.1\n"), "");
    check_reserved(&with("task 1 web.1\n place 1 @a\n"), "memory=4KiB");
    check_reserved(&with("task 1 web.1 @a\n task 2 web.2 @a\n"), "memory=8KiB");
    let both = with("task 1 web.1 @a\n task 2 web.2 @a\n");
    check_reserved(&format!("{both} report 1 @a running#1\n desired 1 shutdown"), "memory=8KiB");
    check_reserved(&format!("{both} report 1 @a failed#1"), "memory=4KiB");
    check_reserved(&format!("{both} drop 1\n drop 2"), "");
}

#[test]
fn each_task_reserves_what_its_own_template_says() {
    let script = "node a\n service web reserve=gpu:2\n task 1 web.1 @a\n update web reserve=1024\n \
                  task 2 web.1 t2 @a";
    check_reserved(script, "memory=1KiB gpu=2");
    check_reserved(&format!("{script}\n report 1 @a complete#1"), "memory=1KiB");
}

#[test]
fn defaults_count_for_what_says_nothing() {
    let script = "cluster default:128\n node a\n service web\n service db reserve=4096\n \
                  task 1 web.1 @a\n task 2 db.1 @a\n task 3 web.2 @a";
    check_reserved(script, "memory=4.2KiB");
    check_reserved(&format!("{script}\n report 1 @a failed#1"), "memory=4.1KiB");
    check_reserved(&format!("{script}\n cluster default:0"), "memory=4KiB");
}

#[test]
fn more_room_is_noted() {
    let roomier = |script: &str| run(script).0.roomier();
    let begin = "node a 10.128.0.0/24\n service web\n task 1 web.1 @a .2\n task 2 web.2";
    assert_eq!(roomier(begin), 1);
    assert_eq!(roomier(&format!("{begin}\n report 1 @a running#1")), 1);
    assert_eq!(roomier(&format!("{begin}\n grant a 10.128.1.0/24")), 1);
    assert_eq!(roomier(&format!("{begin}\n report 1 @a failed#1")), 5);
    assert_eq!(roomier(&format!("{begin}\n drop 2\n drop 1")), 6);
    assert_eq!(roomier(&format!("{begin}\n taint a gpu")), 5);
    assert_eq!(roomier(&format!("{begin}\n cluster")), 5);
}

#[test]
fn resources_and_taints_of_nodes() {
    check("node a\n has a 512 gpu:4\n has a", "ok");
    check(
        "node a\n has a Gpu:1",
        "resources: \"Gpu\" is not a name of a resource: a-z, 0-9, '-', '_' and '.', a letter first, at most 63 characters",
    );
    check("node a\n has a gpu:0", "resources: 0 gpu is none");
    check(
        "node a\n has a memory:5",
        "resources: \"memory\" is counted by itself and has a field of its own",
    );
    check("has a gpu:1", "node a does not exist");
    check("node a\n taint a gpu gpu:no-execute\n taint a", "ok");
    check("node a\n taint a gpu=1 gpu=2", "taints: gpu=2:no-schedule is there twice");
}
