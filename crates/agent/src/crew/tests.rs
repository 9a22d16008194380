//! What a crew does next: inits in their order, sidecars that end, ends of all kinds.

use warren_model::health::{HealthSpec, Probe};
use warren_model::service::Companion;

use super::*;

/// Companions are letters, init containers lower and sidecars upper case, `P` and `Q` those that say
/// how they are asked; `m` is the task's own.
struct Script {
    crew: Crew,
    names: Vec<char>,
    now: Now,
    out: Vec<String>,
}

fn name(letter: char) -> CompanionName {
    let kind = if letter.is_ascii_lowercase() { 'c' } else { 's' };
    format!("{kind}{}", letter.to_ascii_lowercase()).parse().unwrap()
}

fn template(letters: &str) -> TaskTemplate {
    let companion = |letter: char| Companion {
        name: name(letter),
        kind: match letter.is_ascii_lowercase() {
            true => CompanionKind::Init,
            false => CompanionKind::Sidecar,
        },
        task: TaskTemplate {
            health: match letter {
                'P' | 'Q' => {
                    let check = HealthSpec::new(Probe::Tcp { port: 1 });
                    Healthcheck::Explicit(Box::new(check))
                }
                _ => Healthcheck::default(),
            },
            ..TaskTemplate::default()
        },
    };
    TaskTemplate { companions: letters.chars().map(companion).collect(), ..TaskTemplate::default() }
}

fn now(ms: u64) -> Now {
    Now { wall: Time(1000 + ms), mono_ms: ms }
}

fn ended(code: i32, ms: u64) -> Ended {
    let at = Time(1000 + ms);
    Ended { code, signal: None, oom_killed: false, supervisor_lost: false, at }
}

impl Script {
    fn new(letters: &str, made: (Crew, Vec<Step>)) -> Self {
        let mut names: Vec<char> = letters.chars().collect();
        names.sort_by_key(char::is_ascii_uppercase);
        let mut script = Self { crew: made.0, names, now: now(0), out: vec![] };
        script.print(&made.1);
        script
    }

    fn print(&mut self, steps: &[Step]) {
        let word = |step: &Step| match step {
            Step::Start(at) => format!("start:{}", self.names[*at]),
            Step::Wait(at) => format!("wait:{}", self.names[*at]),
            Step::Probe(at) => format!("probe:{}", self.names[*at]),
            Step::StartMain => "start:m".to_owned(),
            Step::WaitMain => "wait:m".to_owned(),
            Step::Stop(at) => format!("stop:{}", self.names[*at]),
            Step::Answer(Answer::Started { .. }) => "STARTED".to_owned(),
            Step::Answer(Answer::NotStarted(failure)) => format!("NOT({})", failure.message),
            Step::Answer(Answer::InitFailed { why, .. }) => format!("INIT({why})"),
            Step::Answer(Answer::Ending) => "ENDING".to_owned(),
            Step::Answer(Answer::Exited(ended)) => format!("EXITED({})", ended.code),
        };
        let words: Vec<String> = steps.iter().map(word).collect();
        self.out.push(if words.is_empty() { "-".to_owned() } else { words.join(" ") });
    }

    /// `+a` started, `!a` did not, `a3` ended with 3, `halt`, `ill:A`, `ok:P`, `@MS` time is that.
    fn run(mut self, words: &str) -> Self {
        for word in words.split_whitespace() {
            let happened = self.happened(word);
            let steps = happened.map(|happened| self.crew.step(happened, self.now));
            self.print(&steps.unwrap_or_default());
        }
        self
    }

    fn happened(&mut self, word: &str) -> Option<Happened> {
        let at = |letter: char| self.names.iter().position(|known| *known == letter).unwrap();
        let when = self.now.wall;
        let failure = || Failure { message: "no".to_owned(), kind: FailureKind::Transient };
        let mut letters = word.chars();
        Some(match (letters.next().unwrap(), letters.as_str()) {
            ('@', ms) => {
                self.now = now(ms.parse().unwrap());
                let due = self.crew.wake_at().is_some_and(|due| due <= self.now.mono_ms);
                return due.then_some(Happened::Wake);
            }
            (_, "alt") => Happened::Halt,
            (_, rest) if rest.starts_with("ll:") => {
                Happened::Ailing { at: at(rest.chars().last().unwrap()) }
            }
            ('o', rest) => Happened::Ready { at: at(rest.chars().last().unwrap()) },
            ('+', "m") => Happened::MainStarted { pid: 9, when },
            ('!', "m") => Happened::MainNotStarted(failure()),
            ('+', rest) => Happened::Started { at: at(rest.chars().next().unwrap()), pid: 7, when },
            ('!', rest) => {
                Happened::NotStarted { at: at(rest.chars().next().unwrap()), failure: failure() }
            }
            ('m', code) => Happened::MainEnded(ended(code.parse().unwrap(), self.now.mono_ms)),
            (letter, code) => {
                let ended = ended(code.parse().unwrap(), self.now.mono_ms);
                Happened::Ended { at: at(letter), ended }
            }
        })
    }
}

#[track_caller]
fn check(letters: &str, words: &str, expected: &str) -> Script {
    let script = Script::new(letters, Crew::begin(&template(letters), &[], now(0))).run(words);
    assert_eq!(script.out.join(" | "), expected);
    script
}

#[test]
fn order_of_starts_and_stops() {
    let script = check(
        "Aab",
        "+a a0 +b b0 +A +m m0 A143",
        "start:a | wait:a | start:b | wait:b | start:A | wait:A start:m | wait:m STARTED | \
         ENDING stop:A | EXITED(0)",
    );
    assert!(script.crew.is_over());
    check(
        "AB",
        "+A +B +m m3 B143 A143",
        "start:A | wait:A start:B | wait:B start:m | wait:m STARTED | ENDING stop:B | stop:A | \
         EXITED(3)",
    );
    check("a", "+a a0 +m m1", "start:a | wait:a | start:m | wait:m STARTED | EXITED(1)");
}

#[test]
fn a_failing_init_ends_the_start() {
    check("abA", "+a a2", "start:a | wait:a | INIT(init container `ca` exited with 2)");
    let script = check("a", "!a", "start:a | NOT(init container `ca`: no)");
    assert!(script.crew.is_over());
    // A sidecar that cannot be started takes those before it along.
    check("AB", "+A !B A143", "start:A | wait:A start:B | stop:A | NOT(sidecar `sb`: no)");
    check("A", "+A !m A143", "start:A | wait:A start:m | stop:A | NOT(no)");
}

#[test]
fn a_sidecar_that_ends_is_started_again() {
    let script = check(
        "A",
        "+A +m @50 A1 @149 @150 +A @160 A0 @359 @360 !A",
        "start:A | wait:A start:m | wait:m STARTED | - | - | - | start:A | wait:A | - | - | - | \
         start:A | -",
    );
    assert_eq!(script.crew.statuses()[0].restarts, 2);
    assert_eq!(script.crew.wake_at(), Some(760));
    // The task ends while it waits: it is not started any more.
    let script = script.run("m0");
    assert_eq!(script.out.last().unwrap(), "EXITED(0)");
    assert_eq!(script.crew.wake_at(), None);
}

#[test]
fn one_that_is_being_started_is_stopped_after_that() {
    check(
        "A",
        "+A +m A1 @100 m0 +A A143",
        "start:A | wait:A start:m | wait:m STARTED | - | start:A | ENDING | wait:A stop:A | \
         EXITED(0)",
    );
    check(
        "A",
        "+A +m ill:A ill:A A143 @100 +A",
        "start:A | wait:A start:m | wait:m STARTED | stop:A | - | - | start:A | wait:A",
    );
}

#[test]
fn a_start_that_nobody_wants_any_more() {
    const NOT: &str = "NOT(stopped before it began)";
    check("a", "+a halt a143", &format!("start:a | wait:a | stop:a | {NOT}"));
    check("a", "halt +a a143", &format!("start:a | - | wait:a stop:a | {NOT}"));
    check("a", "halt !a", "start:a | - | NOT(init container `ca`: no)");
    check(
        "AB",
        "+A halt +B B143 A143",
        &format!("start:A | wait:A start:B | - | wait:B stop:B | stop:A | {NOT}"),
    );
    // Its machine stops what has started.
    check(
        "A",
        "+A halt +m m143 A143",
        "start:A | wait:A start:m | - | wait:m STARTED | \
         ENDING stop:A | EXITED(143)",
    );
}

#[test]
fn who_is_asked_is_waited_for() {
    check(
        "PAQ",
        "+P ok:P +A +Q ok:Q +m m0 Q143 A143 P143",
        "start:P | wait:P probe:P | start:A | wait:A start:Q | wait:Q probe:Q | start:m | \
         wait:m STARTED | ENDING stop:Q | stop:A | stop:P | EXITED(0)",
    );
    // It ends, or is not well, before it is ever ready; what was said of it before is old.
    check(
        "P",
        "+P P1 ok:P @99 @100 +P ok:P +m",
        "start:P | wait:P probe:P | - | - | - | start:P | wait:P probe:P | start:m | \
         wait:m STARTED",
    );
    check(
        "P",
        "+P ill:P P143 @100 +P",
        "start:P | wait:P probe:P | stop:P | - | start:P | wait:P probe:P",
    );
    // Another one ends meanwhile, and cannot be started for a moment.
    check(
        "AP",
        "+A +P A1 @100 !A @300 +A ok:P",
        "start:A | wait:A start:P | wait:P probe:P | - | start:A | - | start:A | wait:A | start:m",
    );
    const NOT: &str = "NOT(stopped before it began)";
    check("P", "+P halt P143", &format!("start:P | wait:P probe:P | stop:P | {NOT}"));
    check("P", "halt +P P143", &format!("start:P | - | wait:P stop:P | {NOT}"));
    check("P", "!P", "start:P | NOT(sidecar `sp`: no)");
}

/// Found: `a` or `A` runs, `a0` ended so.
fn found(text: &str) -> Vec<FoundCompanion> {
    let each = text.split_whitespace().map(|word| {
        let (letter, code) = word.split_at(1);
        let state = match code {
            "" => FoundState::Running { pid: 5, at: Time(1000) },
            code => FoundState::Exited { started: None, ended: ended(code.parse().unwrap(), 0) },
        };
        let name = name(letter.chars().next().unwrap());
        FoundCompanion { task: TaskId::MIN, attempt: 1, name, restarts: 0, state }
    });
    each.collect()
}

#[test]
fn a_start_goes_on_where_an_earlier_process_left_it() {
    let check = |letters: &str, left: &str, words: &str, expected: &str| {
        let made = Crew::begin(&template(letters), &found(left), now(0));
        assert_eq!(Script::new(letters, made).run(words).out.join(" | "), expected, "{left}");
    };
    check("abA", "a", "a0", "wait:a | start:b");
    check("abA", "a0 b0", "+A", "start:A | wait:A start:m");
    check("abA", "a0 b3", "", "start:b");
    check("aAB", "a0 A", "+B", "wait:A start:B | wait:B start:m");
    check("aA", "a0 A1", "", "start:A");
    check("PA", "P", "ok:P", "wait:P probe:P | start:A");
    check("PQ", "P Q", "ok:P ok:Q", "wait:P probe:P | wait:Q probe:Q | start:m");
}

#[test]
fn what_runs_is_adopted() {
    let check = |letters: &str, left: &str, words: &str, expected: &str| {
        let made = Crew::adopt(&template(letters), &found(left), now(0));
        assert_eq!(Script::new(letters, made).run(words).out.join(" | "), expected, "{left}");
    };
    check("aAB", "a0 A B", "m0 B0 A0", "wait:m wait:A wait:B | ENDING stop:B | stop:A | EXITED(0)");
    // One ended while nobody looked.
    check("AB", "A0 B", "+A", "wait:m wait:B start:A | wait:A");
}
