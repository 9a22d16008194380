//! Tasks whose containers have something to pass.

use super::*;

const ONCE: Gate = Gate::Once;
const KEEP: Gate = Gate::Always { restart: false };
const RESTART: Gate = Gate::Always { restart: true };

fn gated(gate: Gate) -> Script {
    fresh(Policy { gate, ..any(100) })
}

fn health(script: &Script) -> String {
    script.machine.status().describe()
}

#[test]
fn nothing_leads_to_it_until_it_is_well() {
    let start = "Prepare preparing#1 | Start starting#1 | Wait Watch(starting) running#1";
    let script = check(gated(RESTART), "prepared started", start);
    assert_eq!(health(&script), "running (starting)");
    assert!(!script.machine.is_serving() && !script.machine.is_reached());
    assert!(script.machine.is_up() && !script.machine.awaits_table());
    let script = script.run("ill:starting");
    assert_eq!((health(&script).as_str(), script.error()), ("running (starting)", "ill"));
    let script = script.run("well");
    assert!(script.machine.is_serving() && script.machine.awaits_table());
    assert_eq!(health(&script), "running (starting)");
    let script = script.run("published");
    assert_eq!((health(&script).as_str(), script.error()), ("running (healthy)", "none"));
}

#[test]
fn out_at_once_and_back_in() {
    let script = gated(KEEP).run("prepared started well published +5 ill");
    assert_eq!((health(&script).as_str(), script.error()), ("running (unhealthy)", "ill"));
    assert!(!script.machine.is_serving() && script.machine.is_reached());
    let script = script.run("well");
    assert!(script.machine.is_serving());
    // It is said when it holds.
    assert_eq!(health(&script), "running (unhealthy)");
    let script = script.run("+1 published");
    assert_eq!((health(&script).as_str(), script.error()), ("running (healthy)", "none"));
    assert_eq!(script.machine.status().ready_since(), Some(Time(1006)));
}

#[test]
fn unhealthy_is_stopped_as_if_it_had_failed() {
    let begun = "prepared started well published +5 ill published exit:0";
    let script = gated(RESTART).run(begun);
    let out = script.out.join(" | ");
    let end = "LookAway draining#1 | Stop(7) stopping#1 | Clear(1) preparing#2";
    assert!(out.ends_with(end), "{out}");
    assert_eq!(script.error(), "unhealthy: ill; restarts after 100ms");
    assert_eq!(script.machine.status().health, None);
    // The restart policy decides, though the program ended well.
    let policy = policy(RestartCondition::OnFailure, 0, Some(1));
    let script = fresh(Policy { gate: RESTART, ..policy }).run(begun);
    assert_eq!(script.machine.attempt(), 2);
    let script = script.run("cleared:1 prepared started ill published exit:0 released");
    assert_eq!(
        (script.machine.status().state, script.error()),
        (TaskState::Failed, "unhealthy: ill")
    );
}

#[test]
fn what_never_was_of_use_is_not_forgiven() {
    let mut script = gated(RESTART);
    for (attempt, pause) in [(1, "100ms"), (2, "200ms"), (3, "400ms")] {
        // Longer than the window within which failures are counted.
        script = script.run("prepared started +20000 ill published exit:143");
        let expected = format!("unhealthy: ill; restarts after {pause}");
        assert_eq!(script.error(), expected);
        script = script.run(&format!("cleared:{attempt} +400"));
    }
}

#[test]
fn nobody_asks_what_stops_or_has_ended() {
    for end in ["stop", "remove", "cut", "exit:1"] {
        let script = gated(RESTART).run("prepared started well published").run(end);
        assert!(script.out.last().unwrap().contains("LookAway"), "{end}: {:?}", script.out);
        let script = script.run("ill");
        assert_ne!(health(&script), "running (unhealthy)");
    }
    let script = gated(RESTART).run("prepared started stop published");
    assert!(script.out.last().unwrap().starts_with("Stop(7)"), "{:?}", script.out);
}

#[test]
fn what_nobody_declared_keeps_it_out_and_no_more() {
    let script = gated(ONCE).run("prepared started ill ill +60000 ill");
    assert_eq!(health(&script), "running (starting)");
    let script = script.run("well published ill");
    assert_eq!(health(&script), "running (healthy)");
    assert!(script.machine.is_serving());
}

#[test]
fn a_port_that_was_wrong_is_put_right() {
    let script = gated(ONCE).run("prepared started gate:once");
    assert!(script.out.last().unwrap().contains("Watch(starting)"));
    let script = script.run("gate:open");
    assert!(script.out.last().unwrap().contains("LookAway"));
    let script = script.run("published");
    assert_eq!(health(&script), "running");
    // What is ready already has nothing to prove.
    let script = gated(Gate::Open).run("prepared started published gate:once");
    assert!(script.machine.is_serving());
    assert_eq!(health(&script), "running");
}

#[track_caller]
fn adopted(gate: Gate, health: Option<HealthState>, state: TaskState, expected: &str) {
    let mut known = known(state, 1);
    known.health = health.map(|state| Health { state, since: Time(3) });
    let found = FoundState::Running { pid: 7, at: Time(5) };
    let found = Found { attempt: 1, restarts: 0, last_exit: None, state: found, paused: false };
    let policy = Policy { gate, ..any(100) };
    let adopted = Machine::adopt(Wanted::Running, policy, known, &found, now(0));
    let script = Script::new(adopted);
    let serves = if script.machine.is_serving() { "serves" } else { "waits" };
    let health = script.machine.status().describe();
    assert_eq!(format!("{} {health} {serves}", script.out.join("")), expected);
}

#[test]
fn adoption_goes_on_from_what_is_known() {
    use HealthState::{Healthy, Starting, Unhealthy};
    let run = TaskState::Running;
    adopted(
        KEEP,
        Some(Healthy),
        run,
        "Wait Claim Watch(healthy) running#1 running (healthy) serves",
    );
    // Of a version that asked nobody: what serves goes on serving.
    adopted(KEEP, None, run, "Wait Claim Watch(healthy) running#1 running (healthy) serves");
    adopted(
        KEEP,
        Some(Starting),
        run,
        "Wait Claim Watch(starting) running#1 running (starting) waits",
    );
    adopted(
        KEEP,
        Some(Unhealthy),
        run,
        "Wait Claim Watch(unhealthy) running#1 running (unhealthy) waits",
    );
    adopted(
        KEEP,
        None,
        TaskState::Starting,
        "Wait Claim Watch(starting) running#1 running (starting) waits",
    );
    adopted(ONCE, Some(Healthy), run, "Wait Claim running#1 running (healthy) serves");
    adopted(
        ONCE,
        Some(Starting),
        run,
        "Wait Claim Watch(starting) running#1 running (starting) waits",
    );
    adopted(Gate::Open, Some(Starting), run, "Wait Claim running#1 running serves");
}
