//! Restarts in place that a person asked for.

use super::*;

#[test]
fn begins_anew_in_good_order_whatever_the_policy_says() {
    let none = policy(RestartCondition::None, 0, Some(0));
    let script = check_up(
        none,
        "anew published exit:137 cleared:1 prepared started published",
        "draining#1 | Stop(7) stopping#1 | Clear(1) Prepare preparing#2 | - | Start starting#2 | \
         Wait | running#2",
    );
    assert_eq!((script.machine.restarts(), script.error()), (0, "none"));
}

#[test]
fn a_pause_is_cut_short_and_failures_are_forgotten() {
    let script =
        check_up(any(50_000), "exit:1 cleared:1 anew", "Clear(1) preparing#2 | - | Prepare");
    assert_eq!(script.machine.restarts(), 0);
    // What begins just now need not be asked.
    check(fresh(any(0)), "anew prepared", "Prepare preparing#1 | - | Start starting#1");
}

#[test]
fn what_is_not_wanted_or_has_ended_does_not_begin_anew() {
    check_up(
        any(0),
        "stop anew published exit:143",
        "draining#1 | - | Stop(7) stopping#1 | Release",
    );
    check_up(
        any(0),
        "anew stop published exit:143",
        "draining#1 | - | Stop(7) stopping#1 | Release",
    );
    let none = policy(RestartCondition::None, 0, None);
    let script = check_up(none, "exit:0 released anew", "Release | complete#1 | -");
    assert!(!script.machine.may_begin_anew());
}

#[test]
fn an_unhealthy_one_does_not_wait() {
    let mut policy = any(9000);
    policy.gate = Gate::Always { restart: true };
    check(
        fresh(policy),
        "prepared started well published ill anew published exit:143",
        "Prepare preparing#1 | Start starting#1 | Wait Watch(starting) running#1 | - | - | \
         LookAway draining#1 | - | Stop(7) stopping#1 | Clear(1) Prepare preparing#2",
    );
}
