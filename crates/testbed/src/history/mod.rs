//! What concurrent clients did and saw, and whether it can be true.
//!
//! A history is a set of operations on named registers (services, whose value
//! is a label), each with the time it was asked and the time it was answered.
//! It is linearizable when every operation can have happened at one moment
//! between the two, one after the other, as [`model`] says. Registers do not
//! know of each other, so each is checked alone ([`check`]).
//!
//! Outcomes: *known* must fit; *unknown* (no answer came) may have happened at
//! any later moment, or never. A refusal says nothing but that it changed
//! nothing: managers refuse early by what they know themselves, which may be
//! old, so refused operations are left out and their values must never be seen.
//!
//! A history that cannot be true is cut down to what still cannot ([`shrink`]).

mod check;
mod model;
mod shrink;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

pub use check::{Limits, check};
pub use model::{Answer, Call, State, Value};

/// When an operation is answered that never was.
pub const NEVER: u64 = u64::MAX;

/// One operation of one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Whose it is: a client does one after the other, unless an outcome is unknown.
    pub client: u32,
    /// Which register.
    pub key: String,
    /// What was asked.
    pub call: Call,
    /// What came back; nothing: unknown.
    pub answer: Option<Answer>,
    /// When it was asked, ns of the run.
    pub invoked: u64,
    /// When it was answered; [`NEVER`] when the outcome is unknown.
    pub returned: u64,
}

impl Operation {
    /// An operation whose outcome nobody knows.
    #[must_use]
    pub(crate) fn forgotten(mut self) -> Self {
        self.answer = None;
        self.returned = NEVER;
        self
    }
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains everything.
    Linearizable,
    /// There is none; the smallest part that shows it.
    Violation(Violation),
    /// Neither was found within the limits; which limit.
    Undecided(&'static str),
}

/// Operations that cannot all be true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The register.
    pub key: String,
    /// In order of their invocation.
    pub operations: Vec<Operation>,
    /// What the register may have been before them, as far as they can tell: anything it ever
    /// was, when the part does not begin with the history.
    pub starts: Vec<State>,
    /// Not part of it: where the values come from that it sees and does not write.
    pub writers: Vec<Operation>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, operations, starts, writers } = self;
        writeln!(f, "register {key}: no order explains these {} operations", operations.len())?;
        match starts.as_slice() {
            [only] => writeln!(f, "  before: {only}")?,
            _ => writeln!(f, "  before: anything that it ever was")?,
        }
        operations.iter().try_for_each(|operation| writeln!(f, "{operation}"))?;
        if !writers.is_empty() {
            writeln!(f, "  elsewhere in the history:")?;
        }
        writers.iter().try_for_each(|operation| writeln!(f, "{operation}"))
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |ns| Duration::from_nanos(ns).as_secs_f64();
        let Self { client, call, answer, invoked, returned, .. } = self;
        write!(f, "  {:10.6} – ", at(*invoked))?;
        match returned {
            &NEVER => write!(f, "     …    ")?,
            returned => write!(f, "{:10.6}", at(*returned))?,
        }
        write!(f, "  client {client:<3} {call} -> ")?;
        match answer {
            Some(answer) => write!(f, "{answer}"),
            None => f.write_str("unknown"),
        }
    }
}

/// Checks each register alone; the first that cannot be true is cut down and told.
pub fn check_all(operations: &[Operation], limits: &Limits) -> Verdict {
    let mut registers: BTreeMap<&str, Vec<Operation>> = BTreeMap::new();
    for operation in operations {
        registers.entry(&operation.key).or_default().push(operation.clone());
    }
    let mut outcome = Verdict::Linearizable;
    for (key, part) in registers {
        match check(&part, &[State::Never], limits) {
            check::Outcome::Explained => {}
            check::Outcome::Gave(limit) => outcome = Verdict::Undecided(limit),
            check::Outcome::Impossible => {
                return Verdict::Violation(shrink::shrink(key, &part, limits));
            }
        }
    }
    outcome
}
