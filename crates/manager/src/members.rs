//! Who is to be a voter: what the leader does next about the group of managers.
//!
//! Pure: what the state wants and what consensus has go in, one [`Step`] comes
//! out; [`run`] carries it out and looks again. Calling again after a step was
//! carried out, with nothing else moved, never undoes it.
//!
//! Rules, in order:
//! - who is no longer wanted leaves first, the unreachable before the others;
//! - nobody is taken in or out if the voters then reachable were no majority;
//! - a new manager learns first and votes once it has caught up; those that
//!   have caught up vote together, so that three form without a time of two;
//! - the leader never takes itself out: it hands over, and its successor does.
//!
//! Not here: whether a person may demote somebody (`api::nodes`), which asks
//! before the state says so.

pub(crate) mod run;

use std::collections::{BTreeMap, BTreeSet};

/// More cost every write an answer more and survive no likelier loss; the rest learn, ready to
/// take a place that becomes free.
pub const VOTERS_MAX: usize = 7;

/// A member of the consensus group as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) address: String,
    pub(crate) voter: bool,
    /// Has (nearly) everything that the leader has.
    pub(crate) caught_up: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) me: u64,
    /// Nodes that the state wants to be managers: their addresses by number, empty if not said yet.
    pub(crate) wanted: BTreeMap<u64, String>,
    /// The group as it is, by number.
    pub(crate) held: BTreeMap<u64, Held>,
    /// Who answers.
    pub(crate) reachable: BTreeSet<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Takes a manager in as a learner, or learns of its new address.
    Learn { number: u64, address: String },
    /// These are the voters from now on.
    Vote(BTreeSet<u64>),
    /// A learner that is not wanted any more.
    Forget(u64),
    /// Lets another lead.
    HandOver(u64),
}

impl Look {
    fn voters(&self) -> BTreeSet<u64> {
        self.held.iter().filter(|(_, held)| held.voter).map(|(number, _)| *number).collect()
    }

    fn reachable(&self, number: u64) -> bool {
        number == self.me || self.reachable.contains(&number)
    }

    /// Whether these voters could decide anything now.
    fn has_quorum(&self, voters: &BTreeSet<u64>) -> bool {
        let reachable = voters.iter().filter(|number| self.reachable(**number)).count();
        reachable * 2 > voters.len()
    }
}

/// What to do next; `None` when all is as wanted, or nothing can be done about it now.
pub(crate) fn decide(look: &Look) -> Option<Step> {
    forget(look)
        .or_else(|| dismiss(look))
        .or_else(|| promote(look))
        .or_else(|| learn(look))
        .or_else(|| hand_over(look))
}

fn forget(look: &Look) -> Option<Step> {
    let stray = |(number, held): &(&u64, &Held)| !held.voter && !look.wanted.contains_key(number);
    look.held.iter().find(stray).map(|(number, _)| Step::Forget(*number))
}

fn dismiss(look: &Look) -> Option<Step> {
    let voters = look.voters();
    let unwanted = voters.iter().filter(|n| **n != look.me && !look.wanted.contains_key(n));
    let mut unwanted: Vec<u64> = unwanted.copied().collect();
    unwanted.sort_by_key(|number| (look.reachable(*number), *number));
    unwanted.into_iter().find_map(|number| {
        let mut left = voters.clone();
        left.remove(&number);
        look.has_quorum(&left).then_some(Step::Vote(left))
    })
}

fn promote(look: &Look) -> Option<Step> {
    let ready = |number: &u64, held: &Held| {
        !held.voter && held.caught_up && look.wanted.contains_key(number) && look.reachable(*number)
    };
    let ready = look.held.iter().filter(|(number, held)| ready(number, held));
    let mut voters = look.voters();
    let before = voters.len();
    voters.extend(ready.map(|(number, _)| *number).take(VOTERS_MAX.saturating_sub(before)));
    (voters.len() > before && look.has_quorum(&voters)).then_some(Step::Vote(voters))
}

fn learn(look: &Look) -> Option<Step> {
    let news = |number: &u64, address: &String| {
        let known = look.held.get(number).map(|held| &held.address);
        // A new one is only worth it while it is there; a new address may be why it is not.
        !address.is_empty()
            && known != Some(address)
            && (known.is_some() || look.reachable(*number))
    };
    let (number, address) = look.wanted.iter().find(|(number, address)| news(number, address))?;
    Some(Step::Learn { number: *number, address: address.clone() })
}

fn hand_over(look: &Look) -> Option<Step> {
    if look.wanted.contains_key(&look.me) || !look.voters().contains(&look.me) {
        return None;
    }
    let fit = |number: &u64, held: &Held| {
        held.voter && held.caught_up && look.wanted.contains_key(number) && look.reachable(*number)
    };
    let successor = look.held.iter().find(|(number, held)| fit(number, held));
    successor.map(|(number, _)| Step::HandOver(*number))
}

/// Whether so many voters are worth a warning: one more than an odd number survives no more losses.
pub(crate) fn is_even(voters: usize) -> bool {
    voters > 0 && voters.is_multiple_of(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Managers in words: number, then `v`oter, `l`earner (behind) or `c`aught-up learner, then
    /// `-` if it is not wanted, `!` if it is not reachable, `@` if its address is new. A number
    /// alone is wanted only. We are 1.
    fn look(text: &str) -> Look {
        let mut look = Look { me: 1, ..Look::default() };
        for word in text.split_whitespace() {
            let digits = word.trim_end_matches(|c: char| !c.is_ascii_digit());
            let number: u64 = digits.parse().unwrap();
            let has = |letter: char| word.contains(letter);
            let address = format!("h{number}");
            if !has('-') {
                let address = if has('@') { "new".into() } else { address.clone() };
                look.wanted.insert(number, address);
            }
            if !has('!') {
                look.reachable.insert(number);
            }
            if has('v') || has('l') || has('c') {
                let held = Held { address, voter: has('v'), caught_up: !has('l') };
                look.held.insert(number, held);
            }
        }
        look
    }

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let got = match decide(&look(text)) {
            None => "calm".to_owned(),
            Some(Step::Learn { number, address }) => format!("learn {number} at {address}"),
            Some(Step::Vote(voters)) => {
                let numbers: Vec<String> = voters.iter().map(u64::to_string).collect();
                format!("vote {}", numbers.join(" "))
            }
            Some(Step::Forget(number)) => format!("forget {number}"),
            Some(Step::HandOver(number)) => format!("hand over to {number}"),
        };
        assert_eq!(got, expected, "{text}");
    }

    #[test]
    fn steps() {
        check("1v", "calm");
        check("1v 2v 3v", "calm");
        // Joining.
        check("1v 2", "learn 2 at h2");
        check("1v 2!", "calm");
        check("1v 2l 3", "learn 3 at h3");
        check("1v 2l", "calm");
        check("1v 2c", "vote 1 2");
        check("1v 2c 3c", "vote 1 2 3");
        check("1v 2c! 3c", "vote 1 3");
        // No more than seven.
        check("1v 2v 3v 4v 5v 6v 7c 8c", "vote 1 2 3 4 5 6 7");
        check("1v 2v 3v 4v 5v 6v 7v 8c", "calm");
        // With one of two dead, a third saves the group only once it votes.
        check("1v 2v! 3c", "vote 1 2 3");
        check("1v 2v@ 3v", "learn 2 at new");
        check("1v 2v@! 3v", "learn 2 at new");
        // Leaving.
        check("1v 2v 3v-", "vote 1 2");
        check("1v 2v- 3v!", "calm");
        check("1v 2v- 3v-", "vote 1 3");
        check("1v 2v 3v-!", "vote 1 2");
        check("1v 2v- 3v-! 4v 5v", "vote 1 2 4 5");
        check("1v 2c- 3v", "forget 2");
        // A dead one is replaced: first out, then in.
        check("1v 2v 3v-! 4c", "vote 1 2");
        check("1v 2v 4c", "vote 1 2 4");
        // The leader itself.
        check("1v- 2v 3v", "hand over to 2");
        check("1v- 2v! 3v", "hand over to 3");
        check("1v-", "calm");
        check("1v- 2c", "vote 1 2");
        check("1v- 2v-", "vote 1");
    }

    #[test]
    fn steps_end() {
        // Every mix of four managers comes to rest, and no step is undone by a later one.
        let kinds = ["", "v", "l", "c", "v-", "c-", "v!", "v-!", "c!"];
        for mix in 0..kinds.len().pow(3) {
            let kind = |at: u32| kinds[mix / kinds.len().pow(at) % kinds.len()];
            let text = format!("1v 2{} 3{} 4{}", kind(0), kind(1), kind(2));
            let mut look = look(&text);
            let mut steps = 0;
            while let Some(step) = decide(&look) {
                steps += 1;
                assert!(steps < 20, "{text}: goes on with {step:?}");
                match step {
                    Step::Learn { number, address } => {
                        let voter = look.held.get(&number).is_some_and(|held| held.voter);
                        look.held.insert(number, Held { address, voter, caught_up: true });
                    }
                    Step::Vote(voters) => {
                        assert!(look.has_quorum(&voters) && voters.contains(&1), "{text}");
                        for (number, held) in &mut look.held {
                            held.voter = voters.contains(number);
                        }
                    }
                    Step::Forget(number) => {
                        look.held.remove(&number);
                    }
                    Step::HandOver(_) => unreachable!("{text}: the leader is wanted"),
                }
            }
        }
    }

    #[test]
    fn even_numbers_warn() {
        assert_eq!([0, 1, 2, 3, 4].map(is_even), [false, false, true, false, true]);
    }
}
