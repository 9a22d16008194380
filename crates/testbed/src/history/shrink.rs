//! From a long history that cannot be true to a short one that shows why.
//!
//! Only what keeps the meaning is done: whenever the long one could be true, so
//! could the short one. So what is left at the end is a fault that was there,
//! not one that the cutting made.
//! - The end is cut off: what was not answered by then is unknown.
//! - The beginning is cut off: what was answered by then is dropped, the
//!   register may have been anything it ever was, and what was under way is
//!   unknown.
//! - What changes nothing (reads, refusals) is dropped, and what is unknown and
//!   could help nothing.
//! - What is known is made unknown.

use std::collections::BTreeSet;

use super::check::{Limits, Outcome, check, sees};
use super::model::{Answer, Call, State};
use super::{NEVER, Operation, Violation};

/// The smallest part that was found of one register's history, which is known to be impossible.
pub(crate) fn shrink(key: &str, operations: &[Operation], limits: &Limits) -> Violation {
    let fails =
        |part: &[Operation], starts: &[State]| check(part, starts, limits) == Outcome::Impossible;
    let mut part = operations.to_vec();
    part.sort_by_key(|operation| (operation.invoked, operation.returned));
    let mut starts = vec![State::Never];

    // A longer beginning of an impossible history is impossible too: halve.
    let ends = times(&part, |operation| operation.returned);
    let end = first(ends.len(), |i| fails(&until(&part, ends[i]), &starts));
    part = end.map_or_else(|| part.clone(), |i| until(&part, ends[i]));

    // The later the start, the less is known: halve again.
    let begins = times(&part, |operation| operation.invoked);
    let at = |begin: u64| {
        let later = since(&part, begin);
        let starts = states(operations, &later);
        (later, starts)
    };
    let lost = first(begins.len(), |i| {
        let (later, starts) = at(begins[i]);
        !fails(&later, &starts)
    });
    let last_failing = lost.unwrap_or(begins.len()).checked_sub(1);
    if let Some((later, any)) = last_failing.map(|i| at(begins[i]))
        && later.len() < part.len()
        && fails(&later, &any)
    {
        (part, starts) = (later, any);
    }

    let mut i = 0;
    while i < part.len() {
        let mut fewer = part.clone();
        let removed = fewer.remove(i);
        let harmless = removed.call == Call::Read
            || removed.answer == Some(Answer::Refused)
            || removed.answer.is_none() && !can_matter(&removed, &fewer);
        if harmless && fails(&fewer, &starts) {
            part = fewer;
            continue;
        }
        let mut weaker = part.clone();
        weaker[i] = weaker[i].clone().forgotten();
        if part[i].answer.is_some() && fails(&weaker, &starts) {
            part = weaker;
            continue;
        }
        i += 1;
    }
    let writers = writers(operations, &part);
    Violation { key: key.to_owned(), operations: part, starts, writers }
}

/// Where the values come from that a part sees and does not write.
fn writers(operations: &[Operation], part: &[Operation]) -> Vec<Operation> {
    let seen: BTreeSet<u64> = part.iter().filter_map(sees).collect();
    let elsewhere = operations.iter().filter(|operation| {
        let value = operation.call.writes();
        let inside = part.iter().any(|other| other.call.writes() == value);
        value.is_some_and(|value| seen.contains(&value)) && !inside
    });
    elsewhere.cloned().collect()
}

/// Whether taking an operation of unknown outcome could help others to be true.
fn can_matter(unknown: &Operation, others: &[Operation]) -> bool {
    let Some(value) = unknown.call.writes() else { return true };
    let seen = others.iter().any(|other| sees(other) == Some(value));
    // A creation also makes the register be there.
    seen || matches!(unknown.call, Call::Create(_))
}

/// What was known at `end`.
fn until(operations: &[Operation], end: u64) -> Vec<Operation> {
    let begun = operations.iter().filter(|operation| operation.invoked <= end);
    begun
        .map(|operation| match operation.returned {
            returned if returned <= end => operation.clone(),
            _ => operation.clone().forgotten(),
        })
        .collect()
}

/// What came after `begin`.
fn since(operations: &[Operation], begin: u64) -> Vec<Operation> {
    let open = operations.iter().filter(|operation| operation.returned >= begin);
    open.map(|operation| match operation.invoked {
        invoked if invoked >= begin => operation.clone(),
        _ => operation.clone().forgotten(),
    })
    .collect()
}

/// Everything that a register may have been before a part of its history. One stands for all the
/// values that the part does not see.
fn states(operations: &[Operation], part: &[Operation]) -> Vec<State> {
    let seen: BTreeSet<u64> = part.iter().filter_map(sees).collect();
    let written = operations.iter().filter(|operation| operation.answer != Some(Answer::Refused));
    let values: BTreeSet<u64> = written.filter_map(|operation| operation.call.writes()).collect();
    let unseen = values.iter().find(|value| !seen.contains(value));
    let values = values.intersection(&seen).chain(unseen).copied().map(State::Holds);
    [State::Never, State::Gone].into_iter().chain(values).collect()
}

fn times(operations: &[Operation], of: impl Fn(&Operation) -> u64) -> Vec<u64> {
    let times: BTreeSet<u64> = operations.iter().map(of).filter(|time| *time != NEVER).collect();
    times.into_iter().collect()
}

/// The first of `0..n` for which `holds`, given that it holds for all after it.
fn first(n: usize, holds: impl Fn(usize) -> bool) -> Option<usize> {
    let (mut low, mut high) = (0, n);
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    (low < n).then_some(low)
}
