//! Tasks that must not run without a manager.

use super::*;

#[test]
fn cut_off_it_stops_and_waits_and_begins_anew() {
    let none = policy(RestartCondition::None, 0, None);
    let script = check_up(
        none,
        "cut published exit:143 released cleared:1 +99999 heard",
        "draining#1 | Stop(7) stopping#1 | Clear(1) Release | - | - | - | Prepare preparing#2",
    );
    assert_eq!(script.error(), "none");
    let waiting = check_up(
        none,
        "cut published exit:143 released",
        "draining#1 | Stop(7) stopping#1 | Clear(1) Release | -",
    );
    assert_eq!(waiting.error(), "no manager");
    assert_eq!(waiting.machine.wake_at(), None);
    assert!(waiting.machine.is_cut_off() && !waiting.machine.may_be_cut_off());
    assert_eq!(waiting.machine.status().exit.unwrap().code, 143);
}

#[test]
fn a_manager_that_comes_back_while_it_stops() {
    check_up(
        any(0),
        "cut heard published exit:143 prepared",
        "draining#1 | - | Stop(7) stopping#1 | Clear(1) Prepare preparing#2 | Start starting#2",
    );
    check_up(
        any(0),
        "cut published exit:143 heard released cleared:1",
        "draining#1 | Stop(7) stopping#1 | Clear(1) Release | - | Prepare preparing#2 | -",
    );
    check_up(
        any(0),
        "cut heard cut published exit:143 released",
        "draining#1 | - | - | Stop(7) stopping#1 | Clear(1) Release | -",
    );
}

#[test]
fn cut_off_on_the_way() {
    check(
        fresh(any(0)),
        "cut prepared released +9999 heard",
        "Prepare preparing#1 | Release | - | - | - | Prepare",
    );
    check(
        fresh(any(0)),
        "prepared cut started exit:143 released heard",
        "Prepare preparing#1 | Start starting#1 | - | Wait Stop(7) stopping#1 | \
         Clear(1) Release | - | Prepare preparing#2",
    );
    check(
        fresh(any(0)),
        "prepared cut heard started published",
        "Prepare preparing#1 | Start starting#1 | - | - | Wait | running#1",
    );
    check(
        fresh(any(0)),
        "prepared cut start-failed released heard",
        "Prepare preparing#1 | Start starting#1 | - | Clear(1) Release | - | Prepare preparing#2",
    );
    check_up(
        any(100),
        "exit:1 cut cleared:1 +100 released heard",
        "Clear(1) preparing#2 | Release | - | - | - | Prepare",
    );
    check(
        fresh(any(0)),
        "prepared start-failed cut released cleared:1 heard",
        "Prepare preparing#1 | Start starting#1 | - | Clear(1) Release | - | - | \
         Prepare preparing#2",
    );
}

#[test]
fn cut_off_and_not_wanted_any_more() {
    check_up(
        any(0),
        "cut published exit:143 released stop released heard",
        "draining#1 | Stop(7) stopping#1 | Clear(1) Release | - | Release | complete#1 | -",
    );
    check_up(
        any(0),
        "cut published exit:143 stop released",
        "draining#1 | Stop(7) stopping#1 | Clear(1) Release | - | complete#1",
    );
    check_up(
        any(0),
        "cut stop published exit:143 released",
        "draining#1 | - | Stop(7) stopping#1 | Release | complete#1",
    );
    check_up(
        any(0),
        "cut published exit:143 forget released cleaned",
        "draining#1 | Stop(7) stopping#1 | Clear(1) Release | - | Clean[1] complete#1 | removed#1",
    );
    // What has ended has nothing to wait for.
    check_up(
        policy(RestartCondition::None, 0, None),
        "exit:0 cut released heard",
        "Release | - | complete#1 | -",
    );
}
