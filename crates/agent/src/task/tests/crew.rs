//! What init containers and sidecars mean for a task.

use super::*;

fn of_several(policy: Policy) -> Script {
    fresh(Policy { crew: true, ..policy })
}

const BEGUN: &str = "Prepare preparing#1 | Start starting#1";

#[track_caller]
fn check_begun(policy: Policy, words: &str, expected: &str) -> Script {
    let words = format!("prepared {words}");
    check(of_several(policy), &words, &format!("{BEGUN} | {expected}"))
}

#[test]
fn an_init_container_that_fails_is_a_failed_attempt() {
    let script = check_begun(any(100), "init-failed:3", "Clear(1) preparing#2");
    assert_eq!(script.error(), "init-failed:3; restarts after 100ms");
    assert_eq!(script.machine.status().exit.map(|exit| exit.code), Some(3));
    let none = policy(RestartCondition::None, 0, None);
    let script = check_begun(none, "init-failed:1 released", "Release | failed#1");
    assert_eq!(script.error(), "init-failed:1");
    let once = policy(RestartCondition::OnFailure, 0, Some(1));
    check_begun(
        once,
        "init-failed:1 prepared init-failed:1 released",
        "Clear(1) Prepare preparing#2 | Start starting#2 | Release | failed#2",
    );
}

#[test]
fn a_start_that_takes_long_is_halted() {
    check_begun(any(0), "stop start-failed released", "Halt | Release | complete#1");
    check_begun(any(0), "stop init-failed:143 released", "Halt | Release | complete#1");
    check_begun(any(0), "remove start-failed cleaned", "Halt | Clean[1] | removed#1");
    check_begun(any(0), "cut start-failed released", "Halt | Clear(1) Release | -");
    check_begun(any(0), "anew start-failed", "Halt | Clear(1) Prepare preparing#2");
    // It had started in time: what was asked for is there.
    let script = check_begun(any(0), "anew started published", "Halt | Wait | running#1");
    assert!(!script.machine.anew);
}

#[test]
fn nothing_leads_to_it_once_its_own_container_has_ended() {
    let up = |policy, words: &str, expected: &str| {
        let words = format!("{UP} {words}");
        check(of_several(policy), &words, &format!("{UP_OUT} | {expected}"))
    };
    let job = policy(RestartCondition::OnFailure, 0, None);
    let stops = "draining#1 | Stop(7) stopping#1";
    up(job, "ending published exit:0 released", &format!("{stops} | Release | complete#1"));
    let script =
        up(any(100), "ending published exit:1", &format!("{stops} | Clear(1) preparing#2"));
    assert_eq!(script.error(), "exit code 1; restarts after 100ms");
    // Its sidecars were quicker than the table.
    up(any(0), "ending exit:0", "draining#1 | Clear(1) Prepare preparing#2");
    up(any(0), "ending stop exit:0 released", "draining#1 | - | Release | complete#1");
}

#[test]
fn a_start_that_an_earlier_process_began() {
    let adopt = |wanted| {
        let found = Found {
            attempt: 2,
            restarts: 0,
            last_exit: None,
            state: FoundState::Beginning,
            paused: false,
        };
        let policy = Policy { crew: true, ..any(0) };
        let known = known(TaskState::Starting, 2);
        Script::new(Machine::adopt(wanted, policy, known, &found, now(0))).out.join("")
    };
    assert_eq!(adopt(Wanted::Running), "Prepare preparing#2");
    assert_eq!(adopt(Wanted::Shutdown), "Clear(2) Release starting#2");
    assert_eq!(adopt(Wanted::Remove), "Clear(2) Clean[2] starting#2");
}
