//! Histories that are known to be true or not, and the search against one that
//! tries every order.

use proptest::prelude::*;
use warren_base::rng::{Rng, SeededRng};

use super::check::{Outcome, check};
use super::model::{Answer, Call, State, step};
use super::*;

/// One operation a line: client, time asked, time answered (`-`: never), call, answer.
///
/// Calls are `c`reate, `w`rite, `s`wap from to, `x` for remove, `r`ead; answers `ok`, `no`
/// (refused), a value or `none` for reads, `?` for unknown.
fn parse(text: &str) -> Vec<Operation> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(parse_line).collect()
}

fn parse_line(line: &str) -> Operation {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |word: &str| word.parse().unwrap_or_else(|_| panic!("{line}: {word}"));
    let (call, rest) = match &words[3..] {
        ["c", value, rest @ ..] => (Call::Create(number(value)), rest),
        ["w", value, rest @ ..] => (Call::Write(number(value)), rest),
        ["s", from, to, rest @ ..] => (Call::Swap { from: number(from), to: number(to) }, rest),
        ["x", rest @ ..] => (Call::Remove, rest),
        ["r", rest @ ..] => (Call::Read, rest),
        _ => panic!("{line}"),
    };
    let answer = match rest {
        ["ok"] => Some(Answer::Done),
        ["no"] => Some(Answer::Refused),
        ["none"] => Some(Answer::Value(None)),
        ["?"] => None,
        [value] => Some(Answer::Value(Some(number(value)))),
        _ => panic!("{line}"),
    };
    let returned = if words[2] == "-" { NEVER } else { number(words[2]) };
    let client = words[0].parse().unwrap();
    Operation { client, key: "k".into(), call, answer, invoked: number(words[1]), returned }
}

#[track_caller]
fn good(text: &str) {
    assert_eq!(check_all(&parse(text), &Limits::default()), Verdict::Linearizable, "{text}");
}

/// The history is impossible, and this is what is left of it.
#[track_caller]
fn bad(text: &str, smallest: &str) {
    match check_all(&parse(text), &Limits::default()) {
        Verdict::Violation(violation) => {
            let said = violation.to_string();
            assert_eq!(violation.operations, parse(smallest), "{said}");
        }
        other => panic!("{other:?}: {text}"),
    }
}

#[test]
fn histories_that_can_be_true() {
    good("");
    good("1 0 1 r none");
    good(
        "1 0 1 c 1 ok \n 1 2 3 r 1 \n 1 4 5 w 2 ok \n 1 6 7 s 2 3 ok \n 1 8 9 x ok \n 1 10 11 r none",
    );
    // Concurrent reads may see either, in an order.
    good("1 0 1 c 1 ok \n 1 2 9 w 2 ok \n 2 3 4 r 1 \n 3 5 6 r 2");
    // Unknown writes happen late, or never.
    good("1 0 1 c 1 ok \n 2 2 - w 2 ? \n 1 3 4 r 1 \n 1 5 6 r 1 \n 1 7 8 r 2");
    good("1 0 1 c 1 ok \n 2 2 - w 2 ? \n 1 3 4 w 3 ok \n 1 5 6 r 3");
    // An unknown creation that is needed.
    good("1 0 - c 1 ? \n 2 5 6 w 2 ok \n 2 7 8 r 2");
    // Refused is refused, whoever had old news.
    good(
        "1 0 1 c 1 ok \n 2 2 3 c 2 no \n 2 4 5 s 1 3 no \n 2 6 7 x ok \n 2 8 9 c 4 no \n 1 10 11 r none",
    );
    // Removing twice.
    good("1 0 1 c 1 ok \n 1 2 3 x ok \n 2 4 5 x ok \n 1 6 7 c 2 ok \n 1 8 9 r 2");
}

#[test]
fn histories_that_cannot() {
    // A stale read. Whatever came before and after: nobody wrote between the two.
    bad(
        "1 0 1 c 1 ok \n 1 2 3 w 2 ok \n 2 4 5 r 2 \n 1 6 7 r 1 \n 1 8 9 w 5 ok \n 2 10 11 r 5",
        "2 4 5 r 2 \n 1 6 7 r 1",
    );
    // A lost write.
    bad("1 0 1 c 1 ok \n 1 2 3 w 2 ok \n 1 4 5 r 1", "1 2 3 w 2 ok \n 1 4 5 r 1");
    // Going back: concurrent with the write, but one after the other.
    bad(
        "1 0 1 c 1 ok \n 1 2 9 w 2 ok \n 2 3 4 r 2 \n 3 5 6 r 1",
        "1 2 - w 2 ? \n 2 3 4 r 2 \n 3 5 6 r 1",
    );
    // Two swaps of one value.
    bad("1 0 1 c 1 ok \n 1 2 5 s 1 2 ok \n 2 3 6 s 1 3 ok", "1 2 5 s 1 2 ok \n 2 3 6 s 1 3 ok");
    // A refused write that took place.
    bad("1 0 1 c 1 ok \n 2 2 3 w 2 no \n 1 4 5 r 2", "1 4 5 r 2");
    // A value that nobody wrote.
    bad("1 0 1 c 1 ok \n 1 2 3 r 7", "1 2 3 r 7");
    // Created twice without a removal.
    bad("1 0 1 c 1 ok \n 2 2 3 c 2 ok", "1 0 1 c 1 ok \n 2 2 3 c 2 ok");
    // A removed one that is there again.
    bad("1 0 1 c 1 ok \n 1 2 3 x ok \n 2 4 5 r 1", "1 2 3 x ok \n 2 4 5 r 1");
}

#[test]
fn registers_are_apart() {
    let mut all = parse("1 0 1 c 1 ok \n 2 2 3 c 2 ok");
    all[1].key = "other".into();
    assert_eq!(check_all(&all, &Limits::default()), Verdict::Linearizable);
}

#[test]
fn limits_end_the_search() {
    // Writes in any order, and a read that none of them explains.
    let mut text: String = (2..26).map(|i| format!("{i} 2 9 w {i} ok\n")).collect();
    text.push_str("1 0 1 c 1 ok \n 99 2 9 r 77\n");
    let operations = parse(&text);
    let few = Limits { memory: 1000, ..Limits::default() };
    assert_eq!(check(&operations, &[State::Never], &few), Outcome::Gave("memory"));
    let short = Limits { time: Duration::ZERO, ..Limits::default() };
    assert_eq!(check(&operations, &[State::Never], &short), Outcome::Gave("time"));
}

#[test]
fn violations_are_told_to_people() {
    let operations = parse("1 2000000 3000000 w 2 ok \n 1 4000000 - s 2 3 ?");
    let starts = vec![State::Never, State::Gone];
    let writers = parse("7 0 - c 1 ?");
    let violation = Violation { key: "k".into(), operations, starts, writers };
    let expected = "register k: no order explains these 2 operations\n  \
                    before: anything that it ever was\n    \
                    0.002000 –   0.003000  client 1   write 2 -> done\n    \
                    0.004000 –      …      client 1   swap 2 for 3 -> unknown\n  \
                    elsewhere in the history:\n    \
                    0.000000 –      …      client 7   create 1 -> unknown\n";
    assert_eq!(violation.to_string(), expected);
}

/// A true history of eight clients: each operation takes effect at one moment of its time, and
/// some never say so.
fn long(seed: u64, count: u64) -> Vec<Operation> {
    let rng = SeededRng::new(seed);
    let mut moments: Vec<(u64, Operation)> = Vec::new();
    let mut free = [0u64; 8];
    for value in 1..=count {
        let client = usize::try_from(rng.below(8)).unwrap();
        let invoked = free[client] + rng.below(50);
        let effect = invoked + rng.below(100);
        let returned = effect + rng.below(100);
        free[client] = returned + 1;
        let call = match rng.below(20) {
            0 => Call::Remove,
            1..3 => Call::Create(value),
            3..6 => Call::Write(value),
            _ => Call::Read,
        };
        let (client, key) = (u32::try_from(client).unwrap(), "k".to_owned());
        let answer = (rng.below(50) > 0).then_some(Answer::Done);
        let returned = if answer.is_some() { returned } else { NEVER };
        let operation = Operation { client, key, call, answer, invoked, returned };
        // Half of those without an answer never happened.
        let effect = if answer.is_none() && rng.below(2) == 0 { NEVER } else { effect };
        moments.push((effect, operation));
    }
    moments.sort_by_key(|(effect, _)| *effect);
    let mut state = State::Never;
    for (effect, operation) in &mut moments {
        if *effect == NEVER {
            continue;
        }
        let held = match state {
            State::Holds(value) => Some(value),
            State::Never | State::Gone => None,
        };
        let mut fitting = [Answer::Done, Answer::Value(held), Answer::Refused].into_iter();
        let answer = fitting.find(|answer| step(state, operation.call, Some(*answer)).is_some());
        state = step(state, operation.call, answer).unwrap();
        operation.answer = operation.answer.and(answer);
    }
    moments.into_iter().map(|(_, operation)| operation).collect()
}

#[test]
fn long_histories_are_decided() {
    for seed in 0..3 {
        let mut operations = long(seed, 500);
        assert_eq!(check_all(&operations, &Limits::default()), Verdict::Linearizable, "{seed}");
        // One read late in it tells what was long overwritten.
        let writes = operations.iter().filter(|o| o.answer == Some(Answer::Done));
        let old = writes.filter_map(|o| o.call.writes()).nth(20).unwrap();
        let late = operations.iter_mut().filter(|o| matches!(o.answer, Some(Answer::Value(_))));
        late.rev().nth(20).unwrap().answer = Some(Answer::Value(Some(old)));
        match check_all(&operations, &Limits::default()) {
            Verdict::Violation(violation) => {
                assert!(violation.operations.len() < 20, "{violation}");
                assert!(violation.to_string().contains(&format!("read -> {old}")), "{violation}");
            }
            other => panic!("{seed}: {other:?}"),
        }
    }
}

/// Tries every order of every set that holds all known outcomes.
fn brute(operations: &[Operation], taken: u32, state: State) -> bool {
    let open = |i: usize| taken & (1 << i) == 0;
    let left = (0..operations.len()).filter(|i| open(*i));
    if left.clone().all(|i| operations[i].answer.is_none()) {
        return true;
    }
    let first_return = left.clone().map(|i| operations[i].returned).min().unwrap_or(NEVER);
    left.filter(|i| operations[*i].invoked <= first_return).any(|i| {
        let after = step(state, operations[i].call, operations[i].answer);
        after.is_some_and(|after| brute(operations, taken | 1 << i, after))
    })
}

fn operation() -> impl Strategy<Value = (u8, u64, u64, u8, u64)> {
    (0u8..5, 0u64..12, 0u64..8, 0u8..10, 0u64..5)
}

/// Histories that are nearly true: answers come from a run of the model in some order, and now
/// and then one is false.
fn history(raw: &[(u8, u64, u64, u8, u64)]) -> Vec<Operation> {
    let mut state = State::Never;
    let mut made = Vec::new();
    for (i, (kind, invoked, lasts, fate, other)) in raw.iter().enumerate() {
        let value = i as u64 + 1;
        let call = match kind {
            0 => Call::Create(value),
            1 => Call::Write(value),
            2 => Call::Swap { from: *other + 1, to: value },
            3 => Call::Remove,
            _ => Call::Read,
        };
        let fits = [Answer::Done, Answer::Value(None), Answer::Refused];
        let value = match state {
            State::Holds(value) => Some(value),
            State::Never | State::Gone => None,
        };
        let mut answers = fits.into_iter().chain([Answer::Value(value)]);
        let answer = answers.find(|answer| step(state, call, Some(*answer)).is_some());
        state = step(state, call, answer).unwrap_or(state);
        let (answer, returned) = match fate {
            0 | 1 => (None, NEVER),
            2 if call == Call::Read => (Some(Answer::Value(Some(*other + 1))), invoked + lasts),
            _ => (answer, invoked + lasts),
        };
        let client = u32::from(*kind);
        let invoked = *invoked;
        made.push(Operation { client, key: "k".into(), call, answer, invoked, returned });
    }
    made
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn as_every_order_says(raw in prop::collection::vec(operation(), 0..8)) {
        let operations = history(&raw);
        let expected = brute(&operations, 0, State::Never);
        let found = check(&operations, &[State::Never], &Limits::default());
        prop_assert_eq!(found == Outcome::Explained, expected, "{:?}", operations);
        if !expected {
            let violation = shrink::shrink("k", &operations, &Limits::default());
            prop_assert!(violation.operations.len() <= operations.len());
            for start in &violation.starts {
                prop_assert!(!brute(&violation.operations, 0, *start), "{}", violation);
            }
        }
    }
}
