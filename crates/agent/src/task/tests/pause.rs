//! Tasks that stand still for a while.

use super::*;

const GATES: [Gate; 3] = [Gate::Open, Gate::Once, Gate::Always { restart: true }];

fn running(gate: Gate) -> Script {
    fresh(Policy { gate, ..any(100) }).run("prepared started well published")
}

#[test]
fn nothing_leads_to_what_stands_still() {
    for gate in GATES {
        let script = running(gate);
        let (since, ready) = (script.machine.status().since, script.machine.status().is_ready());
        assert!(ready && script.machine.is_serving());
        let script = script.run("pause");
        assert_eq!(script.machine.status().describe(), "paused");
        assert!(!script.machine.is_serving() && !script.machine.status().is_ready());
        assert!(script.machine.is_up() && script.machine.may_pause());
        assert!(script.machine.status().since > since);
        let asks = gate == Gate::Always { restart: true };
        // Of one that was healthy once nothing is asked any more: looking away costs nothing.
        let watched = gate != Gate::Open;
        assert_eq!(script.out.last().unwrap().contains("LookAway"), watched, "{gate:?}");
        // Nobody says anything of it meanwhile, nor is it paused twice.
        let script = script.run("ill pause +60000");
        assert_eq!(script.out[script.out.len() - 3..].join(""), "---", "{:?}", script.out);
        let script = script.run("unpause");
        assert_eq!(script.out.last().unwrap().contains("Watch(healthy)"), asks, "{gate:?}");
        assert!(script.machine.is_serving() && script.machine.awaits_table());
        let script = script.run("published");
        assert!(script.machine.status().is_ready(), "{gate:?}");
        assert_eq!(script.machine.attempt(), 1);
    }
}

#[test]
fn whatever_ends_it_ends_its_pause() {
    for end in ["stop", "remove", "cut", "exit:1", "oom", "anew"] {
        let script = running(GATES[2]).run("pause").run(end);
        assert!(!script.machine.status().paused, "{end}: {:?}", script.out);
    }
    // What does not run cannot stand still.
    for before in ["", "prepared", "prepared started published stop", "no-image"] {
        let script = fresh(any(100)).run(before).run("pause");
        assert!(!script.machine.status().paused, "{before}");
        assert_eq!(script.out.last().unwrap(), "-", "{before}");
    }
}

#[test]
fn another_process_finds_it_standing_still() {
    for gate in GATES {
        let mut known = known(TaskState::Running, 1);
        known.health = Some(Health { state: HealthState::Healthy, since: Time(3) });
        let state = FoundState::Running { pid: 7, at: Time(5) };
        let found = Found { attempt: 1, restarts: 0, last_exit: None, state, paused: true };
        let policy = Policy { gate, ..any(100) };
        let script = Script::new(Machine::adopt(Wanted::Running, policy, known, &found, now(0)));
        assert_eq!(script.machine.status().describe(), "paused");
        assert!(!script.out[0].contains("Watch"), "{:?}", script.out);
        assert!(!script.machine.is_serving());
        let script = script.run("unpause");
        let asks = gate == Gate::Always { restart: true };
        assert_eq!(script.out.last().unwrap().contains("Watch(healthy)"), asks, "{gate:?}");
    }
}
