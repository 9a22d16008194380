//! One register: what an operation does to it and what it may answer.

use std::fmt;

/// What is written; every write of a history has its own.
pub type Value = u64;

/// What a register may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// It was never made.
    Never,
    /// It holds a value.
    Holds(Value),
    /// It was removed: it may be going still.
    Gone,
}

/// What may be asked of a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    /// Make it, unless it is there.
    Create(Value),
    /// Change it, if it is there.
    Write(Value),
    /// Change it, if it holds the value that was read with the revision given.
    Swap {
        /// What it must hold.
        from: Value,
        /// What it holds afterwards.
        to: Value,
    },
    /// Remove it.
    Remove,
    /// Look at it.
    Read,
}

/// What may come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Answer {
    /// The change was made.
    Done,
    /// No change was made.
    Refused,
    /// What it holds; nothing: it is not there.
    Value(Option<Value>),
}

impl Call {
    /// The value that it writes.
    pub fn writes(self) -> Option<Value> {
        match self {
            Self::Create(value) | Self::Write(value) | Self::Swap { to: value, .. } => Some(value),
            Self::Remove | Self::Read => None,
        }
    }
}

/// The register after `call` had its moment, if `answer` can be what came back; an unknown answer
/// fits always.
pub(crate) fn step(state: State, call: Call, answer: Option<Answer>) -> Option<State> {
    let there = matches!(state, State::Holds(_));
    let (after, fitting) = match call {
        Call::Read => {
            let seen = match state {
                State::Holds(value) => Some(value),
                State::Never | State::Gone => None,
            };
            (state, Answer::Value(seen))
        }
        Call::Create(value) if !there => (State::Holds(value), Answer::Done),
        Call::Write(value) if there => (State::Holds(value), Answer::Done),
        Call::Swap { from, to } if state == State::Holds(from) => (State::Holds(to), Answer::Done),
        // Removing what is being removed is no mistake.
        Call::Remove if state != State::Never => (State::Gone, Answer::Done),
        Call::Create(_) | Call::Write(_) | Call::Swap { .. } | Call::Remove => {
            (state, Answer::Refused)
        }
    };
    match answer {
        None => Some(after),
        Some(Answer::Refused) if call != Call::Read => Some(state),
        Some(given) => (given == fitting).then_some(after),
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("never made"),
            Self::Holds(value) => write!(f, "{value}"),
            Self::Gone => f.write_str("removed"),
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(value) => write!(f, "create {value}"),
            Self::Write(value) => write!(f, "write {value}"),
            Self::Swap { from, to } => write!(f, "swap {from} for {to}"),
            Self::Remove => f.write_str("remove"),
            Self::Read => f.write_str("read"),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Refused => f.write_str("refused"),
            Self::Value(Some(value)) => write!(f, "{value}"),
            Self::Value(None) => f.write_str("not there"),
        }
    }
}
