//! Steps of a single task.

use warren_model::health::Health;
use warren_model::service::{RestartCondition, RestartPolicy};

use super::*;

mod anew;
mod crew;
mod cut_off;
mod health;
mod pause;

/// A machine driven by words; each word prints what it caused and, where it moved, the state.
///
/// Events: `prepared` `prepare-failed` `port-taken` `no-image` `started` `start-failed`
/// `bad-command` `init-failed:CODE` `ending` `published` `refused` `exit:CODE` `oom` `lost` `cleared:N` `released` `cleaned`
/// `well` `ill[:starting]` `gate:open|once` `ports` `freed` `claimed` `claim-failed` `cut` `heard` `anew` `stop` `remove` `forget` `trouble`; `+MS` lets time pass
/// and wakes the machine if it asked for it.
struct Script {
    machine: Machine,
    now: Now,
    out: Vec<String>,
}

fn now(ms: u64) -> Now {
    Now { wall: Time(1000 + ms), mono_ms: ms }
}

fn any(delay_ms: u64) -> Policy {
    policy(RestartCondition::Any, delay_ms, None)
}

fn policy(condition: RestartCondition, delay_ms: u64, max_attempts: Option<u32>) -> Policy {
    let restart = RestartPolicy { condition, delay_ms, max_attempts, window_ms: 10_000 };
    Policy { restart, stop_grace_ms: 7, gate: Gate::Open, crew: false }
}

fn known(state: TaskState, attempt: u32) -> TaskStatus {
    TaskStatus { attempt, ..TaskStatus::new(state, Time(0)) }
}

fn name(effect: &Effect) -> String {
    match effect {
        Effect::Prepare => "Prepare".to_owned(),
        Effect::Start => "Start".to_owned(),
        Effect::Halt => "Halt".to_owned(),
        Effect::Wait => "Wait".to_owned(),
        Effect::Stop { grace_ms } => format!("Stop({grace_ms})"),
        Effect::Clear { attempt } => format!("Clear({attempt})"),
        Effect::Claim => "Claim".to_owned(),
        Effect::Watch { known, .. } => format!("Watch({})", known.as_str()),
        Effect::LookAway => "LookAway".to_owned(),
        Effect::Release => "Release".to_owned(),
        Effect::Clean { attempts } => format!("Clean{attempts:?}"),
    }
}

impl Script {
    fn new((machine, effects): (Machine, Vec<Effect>)) -> Self {
        let mut script = Self { machine, now: now(0), out: vec![] };
        script.print(&effects, None);
        script
    }

    fn print(&mut self, effects: &[Effect], before: Option<(TaskState, u32)>) {
        let status = self.machine.status();
        let mut words: Vec<String> = effects.iter().map(name).collect();
        if before != Some((status.state, status.attempt)) {
            words.push(format!("{}#{}", status.state.as_str(), status.attempt));
        }
        let text = if words.is_empty() { "-".to_owned() } else { words.join(" ") };
        self.out.push(text);
    }

    fn run(mut self, words: &str) -> Self {
        for word in words.split_whitespace() {
            let status = self.machine.status();
            let before = Some((status.state, status.attempt));
            let event = match word.strip_prefix('+') {
                Some(ms) => {
                    self.now = now(self.now.mono_ms + ms.parse::<u64>().unwrap());
                    let due = self.machine.wake_at().is_some_and(|at| at <= self.now.mono_ms);
                    due.then_some(Event::Wake)
                }
                None => Some(self.event(word)),
            };
            let effects = event.map(|event| self.machine.step(event, self.now));
            self.print(&effects.unwrap_or_default(), before);
        }
        self
    }

    fn event(&self, word: &str) -> Event {
        let failure = |kind| Failure { message: word.to_owned(), kind };
        let ended = |code| Ended {
            code,
            signal: None,
            oom_killed: false,
            supervisor_lost: false,
            at: self.now.wall,
        };
        match word.split_once(':').unwrap_or((word, "")) {
            ("prepared", _) => Event::Prepared,
            ("prepare-failed", _) => Event::PrepareFailed(failure(FailureKind::Transient)),
            ("port-taken", _) => Event::PrepareFailed(failure(FailureKind::Port)),
            ("no-image", _) => Event::PrepareFailed(failure(FailureKind::Permanent)),
            ("started", _) => Event::Started { pid: 42, at: self.now.wall },
            ("start-failed", _) => Event::StartFailed(failure(FailureKind::Transient)),
            ("bad-command", _) => Event::StartFailed(failure(FailureKind::Permanent)),
            ("init-failed", code) => {
                Event::InitFailed { ended: ended(code.parse().unwrap()), why: word.to_owned() }
            }
            ("ending", _) => Event::Ending,
            ("published", _) => Event::Published,
            ("refused", _) => Event::PublishFailed(word.to_owned()),
            ("exit", code) => Event::Exited(ended(code.parse().unwrap())),
            ("oom", _) => Event::Exited(Ended { oom_killed: true, ..ended(137) }),
            ("lost", _) => Event::Exited(Ended { supervisor_lost: true, ..ended(137) }),
            ("cleared", attempt) => Event::Cleared { attempt: attempt.parse().unwrap() },
            ("released", _) => Event::Released,
            ("pause", _) => Event::Paused(true),
            ("unpause", _) => Event::Paused(false),
            ("cleaned", _) => Event::Cleaned,
            ("ports", _) => Event::PortsChanged,
            ("freed", _) => Event::PortsFreed,
            ("claimed", _) => Event::Claimed,
            ("claim-failed", _) => Event::ClaimFailed(word.to_owned()),
            ("well", _) => Event::Health { state: HealthState::Healthy, output: None },
            ("ill", state) => {
                let output = Some("ill".into());
                let starts = state == "starting";
                let state = if starts { HealthState::Starting } else { HealthState::Unhealthy };
                Event::Health { state, output }
            }
            ("gate", gate) => Event::Gate(if gate == "open" { Gate::Open } else { Gate::Once }),
            ("trouble", _) => Event::Trouble(word.to_owned()),
            ("cut", _) => Event::CutOff("no manager".to_owned()),
            ("heard", _) => Event::Heard,
            ("anew", _) => Event::Restart,
            ("stop", _) => Event::Wanted(Wanted::Shutdown),
            ("remove", _) => Event::Wanted(Wanted::Remove),
            ("forget", _) => Event::Wanted(Wanted::Forget),
            (other, _) => panic!("unknown word {other}"),
        }
    }

    fn error(&self) -> &str {
        self.machine.status().error.as_deref().unwrap_or("none")
    }
}

fn fresh(policy: Policy) -> Script {
    Script::new(Machine::new(Wanted::Running, policy, known(TaskState::Assigned, 0), now(0)))
}

#[track_caller]
fn check(script: Script, words: &str, expected: &str) -> Script {
    let script = script.run(words);
    assert_eq!(script.out.join(" | "), expected);
    script
}

const UP: &str = "prepared started published";
const UP_OUT: &str = "Prepare preparing#1 | Start starting#1 | Wait | running#1";

#[track_caller]
fn check_up(policy: Policy, words: &str, expected: &str) -> Script {
    check(fresh(policy), &format!("{UP} {words}"), &format!("{UP_OUT} | {expected}"))
}

#[test]
fn starts() {
    let script = check(fresh(any(0)), UP, UP_OUT);
    let status = script.machine.status();
    assert_eq!((status.pid, status.started), (42, Some(Time(1000))));
    assert!(script.machine.is_serving() && script.machine.is_up());
}

#[test]
fn restarts_in_place_with_growing_pauses() {
    check_up(any(0), "exit:1 prepared", "Clear(1) Prepare preparing#2 | Start starting#2");
    let script = check_up(
        any(100),
        "exit:1 +99 cleared:1 +1 prepared started published exit:0",
        "Clear(1) preparing#2 | - | - | Prepare | Start starting#2 | Wait | running#2 | \
         Clear(2) preparing#3",
    );
    assert_eq!(script.error(), "exit code 0; restarts after 200ms");
    assert_eq!(script.machine.wake_at(), Some(300));
}

#[test]
fn a_good_attempt_forgets_the_bad_ones() {
    let script = check_up(
        any(100),
        "exit:1 cleared:1 +100 prepared started published +10000 exit:1",
        "Clear(1) preparing#2 | - | Prepare | Start starting#2 | Wait | running#2 | - | \
         Clear(2) preparing#3",
    );
    assert_eq!(script.error(), "exit code 1; restarts after 100ms");
}

#[test]
fn conditions_and_exhaustion() {
    let none = policy(RestartCondition::None, 0, None);
    check_up(none, "exit:0 released", "Release | complete#1");
    check_up(none, "exit:3 released", "Release | failed#1");
    let on_failure = policy(RestartCondition::OnFailure, 0, Some(1));
    check_up(on_failure, "exit:0 released", "Release | complete#1");
    let script = check_up(
        on_failure,
        "oom prepared started published lost released +99999",
        "Clear(1) Prepare preparing#2 | Start starting#2 | Wait | running#2 | Release | failed#2 | -",
    );
    assert_eq!(script.error(), "supervisor lost");
}

#[test]
fn a_loop_of_quick_exits_waits_for_its_rubbish() {
    // Attempt 3 is not prepared before the container of attempt 1 is gone.
    check_up(
        any(0),
        "exit:1 prepared started exit:1 +10 cleared:1 prepared",
        "Clear(1) Prepare preparing#2 | Start starting#2 | Wait | Clear(2) preparing#3 | - | \
         Prepare | Start starting#3",
    );
}

#[test]
fn what_may_pass_is_tried_again_what_cannot_is_rejected() {
    let script = check(
        fresh(any(0)),
        "prepare-failed +249 +1 prepare-failed +500 prepared",
        "Prepare preparing#1 | - | - | Prepare | - | Prepare | Start starting#1",
    );
    assert_eq!(script.error(), "prepare-failed");
    let script = check(
        fresh(any(0)),
        "no-image released +99999",
        "Prepare preparing#1 | Release | rejected#1 | -",
    );
    assert_eq!(script.error(), "no-image");
    check(
        fresh(any(0)),
        "prepared start-failed +250 bad-command released",
        "Prepare preparing#1 | Start starting#1 | - | Start | Release | rejected#1",
    );
}

#[test]
fn a_freed_port_ends_the_pause_of_those_who_wait_for_one() {
    check(fresh(any(0)), "port-taken freed", "Prepare preparing#1 | - | Prepare");
    check(fresh(any(0)), "prepare-failed freed", "Prepare preparing#1 | - | -");
}

#[test]
fn shutdown_drains_first() {
    let script = check_up(
        any(0),
        "stop published trouble exit:143 released",
        "draining#1 | Stop(7) stopping#1 | - | Release | complete#1",
    );
    assert_eq!(script.error(), "none");
    check_up(
        any(0),
        "stop refused oom released remove cleaned",
        "draining#1 | Stop(7) stopping#1 | Release | failed#1 | Clean[1] | removed#1",
    );
    check_up(any(0), "stop exit:0 released", "draining#1 | Release | complete#1");
}

#[test]
fn shutdown_before_it_runs() {
    check(
        fresh(any(0)),
        "stop prepared released",
        "Prepare preparing#1 | Release | - | complete#1",
    );
    check(
        fresh(any(0)),
        "prepared stop started exit:143 released",
        "Prepare preparing#1 | Start starting#1 | - | Wait Stop(7) stopping#1 | Release | complete#1",
    );
    check(
        fresh(any(0)),
        "prepared stop start-failed released",
        "Prepare preparing#1 | Start starting#1 | - | Release | complete#1",
    );
    check_up(any(50), "exit:1 stop released", "Clear(1) preparing#2 | Release | failed#2");
}

#[test]
fn removal_cleans_everything() {
    let script = check_up(
        any(0),
        "remove published exit:143 cleaned",
        "draining#1 | Stop(7) stopping#1 | Clean[1] | removed#1",
    );
    assert!(script.machine.is_gone());
    check_up(any(50), "exit:1 forget cleaned", "Clear(1) preparing#2 | Clean[1, 2] | removed#2");
    check_up(
        any(0),
        "stop published remove exit:137 forget cleaned",
        "draining#1 | Stop(7) stopping#1 | - | Clean[1] | - | removed#1",
    );
}

#[test]
fn a_table_that_is_refused_shows() {
    let script = check(
        fresh(any(0)),
        "prepared started refused",
        "Prepare preparing#1 | Start starting#1 | Wait | -",
    );
    assert_eq!(script.error(), "refused");
    let script = script.run("published");
    assert_eq!((script.error(), script.machine.status().state), ("none", TaskState::Running));
}

#[test]
fn ports_that_change_are_claimed_until_they_are_held() {
    let script = check_up(
        any(0),
        "ports claim-failed +250 claim-failed freed",
        "Claim | - | Claim | - | Claim",
    );
    assert_eq!(script.error(), "claim-failed");
    let script = script.run("claimed +99999");
    assert_eq!(script.error(), "none");
    assert_eq!(script.machine.wake_at(), None);
    check(
        fresh(any(0)),
        "prepared ports started",
        "Prepare preparing#1 | Start starting#1 | - | Wait Claim",
    );
}

#[test]
fn late_answers_change_nothing() {
    check_up(any(0), "prepared started no-image released cleaned", "- | - | - | - | -");
}

#[test]
fn what_managers_know_decides_where_life_goes_on() {
    let new = |wanted, state, attempt| {
        Script::new(Machine::new(wanted, any(0), known(state, attempt), now(0))).out.join("")
    };
    assert_eq!(new(Wanted::Running, TaskState::Preparing, 2), "Prepare preparing#2");
    assert_eq!(new(Wanted::Running, TaskState::Running, 2), "Prepare preparing#3");
    assert_eq!(new(Wanted::Running, TaskState::Failed, 2), "failed#2");
    assert_eq!(new(Wanted::Shutdown, TaskState::Complete, 2), "complete#2");
    assert_eq!(new(Wanted::Shutdown, TaskState::Running, 2), "Release running#2");
    assert_eq!(new(Wanted::Remove, TaskState::Complete, 2), "Clean[2] complete#2");
}

/// A container found: `2r` runs as attempt 2, `2e137` ended so.
#[track_caller]
fn check_adopt(wanted: Wanted, state: TaskState, attempt: u32, found: &str, expected: &str) {
    let (number, rest) = found.split_at(1);
    let state_found = match rest.split_at(1) {
        ("r", _) => FoundState::Running { pid: 7, at: Time(5) },
        (_, code) => FoundState::Exited {
            started: Some(Time(5)),
            ended: Ended {
                code: code.parse().unwrap(),
                signal: None,
                oom_killed: false,
                supervisor_lost: false,
                at: Time(6),
            },
        },
    };
    let found = Found {
        attempt: number.parse().unwrap(),
        restarts: 1,
        last_exit: None,
        state: state_found,
        paused: false,
    };
    let adopted = Machine::adopt(wanted, any(100), known(state, attempt), &found, now(0));
    assert_eq!(Script::new(adopted).out.join(""), expected);
}

#[test]
fn adoption() {
    use TaskState::{Complete, Preparing, Running, Starting};
    let run = Wanted::Running;
    check_adopt(run, Running, 2, "2r", "Wait Claim running#2");
    check_adopt(run, Starting, 1, "2r", "Wait Claim running#2");
    check_adopt(Wanted::Shutdown, Running, 2, "2r", "Wait Claim draining#2");
    // Ended while we were away; the pause is that of the second restart.
    check_adopt(run, Running, 2, "2e137", "Clear(2) preparing#3");
    check_adopt(Wanted::Shutdown, Running, 2, "2e137", "Release running#2");
    check_adopt(Wanted::Remove, Running, 2, "2e137", "Clean[2] running#2");
    // Its next attempt was announced already.
    check_adopt(run, Preparing, 3, "2e137", "Clear(2) Prepare preparing#3");
    // Ended for good: its container stays until it is removed.
    check_adopt(run, Complete, 2, "2e0", "complete#2");
    check_adopt(run, Complete, 2, "2r", "Clear(2) complete#2");
    // Begun while nobody could say that it had ended: no removal would name it.
    check_adopt(Wanted::Shutdown, Complete, 1, "2e0", "Clear(2) complete#1");
    check_adopt(Wanted::Remove, Complete, 1, "2e0", "Clear(2) Clean[1] complete#1");
}

#[test]
fn rejected_from_the_start() {
    let policy = any(0);
    let rejected = |wanted| {
        let known = known(TaskState::Assigned, 0);
        Script::new(Machine::rejected(wanted, policy, known, "why", now(0)))
    };
    assert_eq!(rejected(Wanted::Running).out.join(""), "rejected#1");
    assert_eq!(rejected(Wanted::Remove).out.join(""), "Clean[1] rejected#1");
    assert_eq!(rejected(Wanted::Running).error(), "why");
}

#[test]
fn a_crash_loop_is_bounded_history() {
    let mut script = fresh(any(0)).run(UP);
    for _ in 0..1000 {
        let attempt = script.machine.attempt();
        let words = format!("exit:1 cleared:{attempt} +60000 prepared started published");
        script = script.run(&words);
        script.out.clear();
    }
    assert_eq!(script.machine.attempt(), 1001);
    assert!(script.machine.clearing.is_empty());
}
