//! Answers, and what they amount to.

use proptest::prelude::*;

use super::*;

const DECLARED: Rhythm = Rhythm {
    interval_ms: Some(1_000),
    retries: 3,
    start_period_ms: 5_000,
    start_interval_ms: 500,
    is_exec: false,
};

/// Asks when it is time; `y` and `n` are answers after 1 ms, `t` one after 1.5 s, `N*` is repeated.
/// Prints what is news as `state@when`, and the last pause.
#[track_caller]
fn check(mut judge: Judge, answers: &str, expected: &str) {
    let mut out = Vec::new();
    let mut ended_ms = 0;
    for word in answers.split_whitespace() {
        let (times, letter) = word.split_once('*').unwrap_or(("1", word));
        for _ in 0..times.parse::<usize>().unwrap() {
            let Some(began_ms) = judge.next_ms() else { panic!("nothing is asked any more") };
            assert!(began_ms >= ended_ms, "two at once");
            ended_ms = began_ms + if letter == "t" { 1_500 } else { 1 };
            let answer = Answer { good: letter == "y", began_ms, ended_ms };
            if let Some(state) = judge.hear(answer, 999) {
                out.push(format!("{}@{ended_ms}", state.as_str()));
            }
        }
    }
    out.push(
        judge.next_ms().map_or_else(|| "never".to_owned(), |at| format!("+{}", at - ended_ms)),
    );
    assert_eq!(out.join(" "), expected);
}

fn fresh(rhythm: Rhythm) -> Judge {
    Judge::new(rhythm, HealthState::Starting, 0, 0, 0)
}

#[test]
fn a_start_is_looked_at_closely() {
    check(fresh(DECLARED), "y", "healthy@1 +999");
    check(fresh(DECLARED), "n n n y", "healthy@10 +999");
    // An eighth of what it took, and no more than was said.
    check(fresh(DECLARED), "20*n", "+13");
    check(fresh(DECLARED), "40*n", "+145");
    check(fresh(DECLARED), "52*n", "+500");
    let exec = Rhythm { is_exec: true, ..DECLARED };
    check(fresh(exec), "2*n", "+50");
}

#[test]
fn failures_of_a_start_are_forgiven_for_a_while() {
    check(fresh(DECLARED), "52*n", "+500");
    // The period is over with the next; then they count.
    check(fresh(DECLARED), "55*n", "unhealthy@7276 +999");
    let none = Rhythm { start_period_ms: 0, ..DECLARED };
    check(fresh(none), "n n n", "unhealthy@2001 +999");
    // Once it was well, the period is over.
    check(fresh(DECLARED), "y n n n", "healthy@1 unhealthy@3001 +999");
}

#[test]
fn so_many_in_a_row_are_needed_and_one_heals() {
    let well = || Judge::new(DECLARED, HealthState::Healthy, 60_000, 0, 0);
    check(well(), "n n y n n", "+999");
    check(well(), "n n n", "unhealthy@2001 +999");
    check(well(), "n n n y n", "unhealthy@2001 healthy@3001 +999");
    // It is said again: who was not stopped for the first may be for the next.
    check(well(), "6*n", "unhealthy@2001 unhealthy@5001 +999");
    let once = Judge::new(Rhythm { retries: 1, ..DECLARED }, HealthState::Healthy, 9, 0, 0);
    check(once, "y n", "unhealthy@1001 +999");
}

#[test]
fn a_late_answer_puts_the_next_question_off() {
    let well = Judge::new(DECLARED, HealthState::Healthy, 60_000, 0, 0);
    check(well, "t t t", "unhealthy@4500 +0");
}

#[test]
fn what_nobody_declared_is_asked_until_the_first_success() {
    check(fresh(Rhythm::implicit()), "y", "healthy@1 never");
    check(fresh(Rhythm::implicit()), "5*n y", "healthy@16 never");
    check(fresh(Rhythm::implicit()), "200*n", "+5000");
}

#[test]
fn those_found_running_are_not_asked_all_at_once() {
    let next = |lot| Judge::new(DECLARED, HealthState::Healthy, 0, 100, lot).next_ms();
    assert_eq!((next(0), next(999), next(1_000)), (Some(100), Some(1_099), Some(100)));
    // Long up and not well yet: its period is over.
    let late = Judge::new(DECLARED, HealthState::Starting, 5_000, 5_000, 7);
    check(late, "n n n", "unhealthy@7001 +999");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever the answers: never two at once, never later than an interval, healthy exactly after
    /// a success, unhealthy only after enough failures in a row.
    #[test]
    fn it_keeps_its_word(
        answers in prop::collection::vec((any::<bool>(), 0..3_000u64, any::<u64>()), 1..200),
        numbers in (1..5_000u64, 1..5u32, 0..20_000u64, 10..2_000u64),
    ) {
        let (interval_ms, retries, start_period_ms, start_interval_ms) = numbers;
        let rhythm = Rhythm {
            interval_ms: Some(interval_ms), retries, start_period_ms, start_interval_ms,
            is_exec: false,
        };
        let mut judge = fresh(rhythm);
        let (mut row, mut was_well) = (0, false);
        for (good, took_ms, lot) in answers {
            let began_ms = judge.next_ms().unwrap();
            let ended_ms = began_ms + took_ms;
            let news = judge.hear(Answer { good, began_ms, ended_ms }, lot);
            let next_ms = judge.next_ms().unwrap();
            prop_assert!(next_ms >= ended_ms);
            prop_assert!(next_ms <= ended_ms + interval_ms.max(start_interval_ms));
            row = if good { 0 } else { row + 1 };
            was_well |= good;
            prop_assert!(!good || judge.state() == HealthState::Healthy);
            if news == Some(HealthState::Unhealthy) {
                prop_assert!(row >= retries);
                prop_assert!(was_well || ended_ms >= start_period_ms);
            }
            if was_well && row >= retries {
                prop_assert_eq!(judge.state(), HealthState::Unhealthy);
            }
        }
    }
}
