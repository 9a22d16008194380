//! The search for an order: Wing and Gong's algorithm with Lowe's memory.
//!
//! Wing, Gong: "Testing and verifying concurrent objects" (1993); Lowe: "Testing
//! for linearizability" (2017). Invocations and returns are a list in order of
//! time. An operation may be next when it was invoked before the first return
//! in the list; taking it removes both its entries. What was taken, as a set,
//! together with the state it led to, is remembered: coming there again by
//! another order leads nowhere new.
//!
//! Operations of unknown outcome have no return: they may be taken, and need
//! not. They are tried after the known ones, and only where they change
//! something. Those that could not help are left out beforehand; of those that
//! are alike, the first is taken first; and a place that was reached with fewer
//! of them taken need not be looked at again. Without that, each of them would
//! double the search.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::model::{Answer, Call, State, Value, step};
use super::{NEVER, Operation};

/// When the search gives up.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For one register.
    pub time: Duration,
    /// Remembered sets of one register; some 100 bytes each.
    pub memory: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { time: Duration::from_secs(30), memory: 4_000_000 }
    }
}

/// What the search came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// An order was found.
    Explained,
    /// All were tried.
    Impossible,
    /// A limit came first.
    Gave(&'static str),
}

/// Steps between two looks at the clock.
const LOOK_EVERY: u32 = 4096;
/// Stands for all values that nobody saw: nothing tells them apart.
const UNSEEN: Value = u64::MAX;

/// Whether the operations of one register can be true, begun from any of `starts`.
pub fn check(operations: &[Operation], starts: &[State], limits: &Limits) -> Outcome {
    let (known, unknown) = relevant(operations);
    let deadline = Instant::now() + limits.time;
    let mut outcome = Outcome::Impossible;
    for start in starts {
        let search = Search::new(&known, &unknown, deadline, limits.memory);
        match search.run(*start) {
            Outcome::Explained => return Outcome::Explained,
            Outcome::Impossible => {}
            gave @ Outcome::Gave(_) => outcome = gave,
        }
    }
    outcome
}

/// An operation whose answer is known.
struct Known {
    call: Call,
    answer: Answer,
    invoked: u64,
    returned: u64,
}

/// One whose answer is not.
struct Unknown {
    call: Call,
    invoked: u64,
    /// The one before that is just like it.
    twin: Option<usize>,
}

/// Without what constrains nothing: refusals, reads without an answer, and writes without an
/// answer whose value nobody saw and which made nothing be there.
fn relevant(operations: &[Operation]) -> (Vec<Known>, Vec<Unknown>) {
    let seen: HashSet<Value> = operations.iter().filter_map(sees).collect();
    let (mut known, mut unknown) = (Vec::new(), Vec::<Unknown>::new());
    let mut sorted: Vec<&Operation> = operations.iter().collect();
    sorted.sort_by_key(|operation| (operation.invoked, operation.returned));
    for Operation { call, answer, invoked, returned, .. } in sorted {
        match (*call, *answer) {
            (_, Some(Answer::Refused)) | (Call::Read, None) => {}
            (call, Some(answer)) => {
                known.push(Known { call, answer, invoked: *invoked, returned: *returned });
            }
            (Call::Write(value) | Call::Swap { to: value, .. }, None) if !seen.contains(&value) => {
            }
            (call, None) => {
                let call = match call {
                    Call::Create(value) if !seen.contains(&value) => Call::Create(UNSEEN),
                    call => call,
                };
                let twin = unknown.iter().rposition(|other| other.call == call);
                unknown.push(Unknown { call, invoked: *invoked, twin });
            }
        }
    }
    (known, unknown)
}

/// The value that an operation depends on.
pub(super) fn sees(operation: &Operation) -> Option<Value> {
    match (operation.call, operation.answer) {
        (Call::Swap { from, .. }, _) => Some(from),
        (Call::Read, Some(Answer::Value(value))) => value,
        _ => None,
    }
}

/// The end of the list, and what is before its beginning.
const NONE: usize = usize::MAX;

/// Where a search stands at one moment: which candidate it looks at.
#[derive(Clone, Copy)]
enum At {
    /// An entry of the list.
    Entry(usize),
    /// One of unknown outcome, by number.
    Unknown(usize),
}

/// A candidate that was taken, and what was before.
struct Taken {
    at: At,
    earlier: State,
}

/// A place: known operations are mostly taken in their order, so their set is a number of leading
/// ones, and bits; and the state it led to.
type Place = (usize, Box<[u64]>, State);

/// Entries of the list: `2 * i` is the invocation of known operation `i`, `2 * i + 1` its return.
struct Search<'a> {
    known: &'a [Known],
    unknown: &'a [Unknown],
    next: Vec<usize>,
    before: Vec<usize>,
    first: usize,
    /// Known outcomes that are not taken yet.
    left: usize,
    known_taken: Vec<u64>,
    unknown_taken: Vec<u64>,
    /// Sets of the unknown that were taken when a place was reached; none contains another.
    remembered: HashMap<Place, Vec<Box<[u64]>>>,
    remembered_count: usize,
    deadline: Instant,
    memory: usize,
}

impl<'a> Search<'a> {
    fn new(known: &'a [Known], unknown: &'a [Unknown], deadline: Instant, memory: usize) -> Self {
        let n = known.len();
        let mut entries: Vec<(u64, u8, usize)> = Vec::with_capacity(2 * n);
        for (i, operation) in known.iter().enumerate() {
            // At the same moment invocations come first: touching intervals overlap.
            entries.push((operation.invoked, 0, 2 * i));
            entries.push((operation.returned, 1, 2 * i + 1));
        }
        entries.sort_unstable();
        let (mut next, mut before) = (vec![NONE; 2 * n], vec![NONE; 2 * n]);
        for pair in entries.windows(2) {
            next[pair[0].2] = pair[1].2;
            before[pair[1].2] = pair[0].2;
        }
        Self {
            known,
            unknown,
            next,
            before,
            first: entries.first().map_or(NONE, |entry| entry.2),
            left: n,
            known_taken: vec![0; n.div_ceil(64)],
            unknown_taken: vec![0; unknown.len().div_ceil(64)],
            remembered: HashMap::new(),
            remembered_count: 0,
            deadline,
            memory,
        }
    }

    fn run(mut self, start: State) -> Outcome {
        let mut path: Vec<Taken> = Vec::new();
        let (mut state, mut at) = (start, At::Entry(self.first));
        let mut steps = 0u32;
        while self.left > 0 {
            steps = steps.wrapping_add(1);
            if steps.is_multiple_of(LOOK_EVERY) && Instant::now() > self.deadline {
                return Outcome::Gave("time");
            }
            match self.candidate(at) {
                Candidate::None => {
                    // What returned first should have been taken by now. Try another order.
                    let Some(last) = path.pop() else { return Outcome::Impossible };
                    self.put_back(last.at);
                    state = last.earlier;
                    at = self.after(last.at);
                }
                Candidate::End => at = At::Unknown(0),
                Candidate::Step(call, answer) => match step(state, call, answer) {
                    Some(then) if (answer.is_some() || then != state) && self.take(at, then) => {
                        if self.remembered_count > self.memory {
                            return Outcome::Gave("memory");
                        }
                        path.push(Taken { at, earlier: state });
                        state = then;
                        at = At::Entry(self.first);
                    }
                    _ => at = self.after(at),
                },
                Candidate::NotNow => at = self.after(at),
            }
        }
        Outcome::Explained
    }

    fn candidate(&self, at: At) -> Candidate {
        match at {
            At::Entry(entry) if entry != NONE && entry.is_multiple_of(2) => {
                let operation = &self.known[entry / 2];
                Candidate::Step(operation.call, Some(operation.answer))
            }
            At::Entry(_) => Candidate::End,
            At::Unknown(i) => {
                let Some(operation) = self.unknown.get(i) else { return Candidate::None };
                // Everything known that returned before it was asked must have been taken.
                if operation.invoked > self.first_return() {
                    return Candidate::None;
                }
                let taken = |i: usize| self.unknown_taken[i / 64] & 1 << (i % 64) != 0;
                if taken(i) || operation.twin.is_some_and(|twin| !taken(twin)) {
                    return Candidate::NotNow;
                }
                Candidate::Step(operation.call, None)
            }
        }
    }

    fn first_return(&self) -> u64 {
        let mut entry = self.first;
        while entry != NONE && entry.is_multiple_of(2) {
            entry = self.next[entry];
        }
        if entry == NONE { NEVER } else { self.known[entry / 2].returned }
    }

    fn after(&self, at: At) -> At {
        match at {
            At::Entry(entry) => At::Entry(self.next[entry]),
            At::Unknown(i) => At::Unknown(i + 1),
        }
    }

    /// Takes a candidate, unless that leads where the search has been before.
    fn take(&mut self, at: At, then: State) -> bool {
        self.flip(at);
        if !self.remember(then) {
            self.flip(at);
            return false;
        }
        if let At::Entry(entry) = at {
            self.unlink(entry);
            self.unlink(entry + 1);
            self.left -= 1;
        }
        true
    }

    /// Whether what is taken now is somewhere new.
    fn remember(&mut self, state: State) -> bool {
        let whole = self.known_taken.iter().take_while(|word| **word == u64::MAX).count();
        let some = self.known_taken.iter().rposition(|word| *word != 0).map_or(0, |i| i + 1);
        let place = (whole, self.known_taken[whole..some.max(whole)].into(), state);
        let sets = self.remembered.entry(place).or_default();
        let now = &self.unknown_taken;
        let within = |one: &[u64], other: &[u64]| one.iter().zip(other).all(|(a, b)| a & !b == 0);
        if sets.iter().any(|set| within(set, now)) {
            return false;
        }
        let before = sets.len();
        sets.retain(|set| !within(now, set));
        sets.push(now.as_slice().into());
        self.remembered_count = self.remembered_count + sets.len() - before;
        true
    }

    /// Undoes the last `take`, in the opposite order.
    fn put_back(&mut self, at: At) {
        if let At::Entry(entry) = at {
            self.link(entry + 1);
            self.link(entry);
            self.left += 1;
        }
        self.flip(at);
    }

    fn flip(&mut self, at: At) {
        match at {
            At::Entry(entry) => self.known_taken[entry / 128] ^= 1 << (entry / 2 % 64),
            At::Unknown(i) => self.unknown_taken[i / 64] ^= 1 << (i % 64),
        }
    }

    fn unlink(&mut self, entry: usize) {
        let (before, next) = (self.before[entry], self.next[entry]);
        match before {
            NONE => self.first = next,
            before => self.next[before] = next,
        }
        if next != NONE {
            self.before[next] = before;
        }
    }

    fn link(&mut self, entry: usize) {
        let (before, next) = (self.before[entry], self.next[entry]);
        match before {
            NONE => self.first = entry,
            before => self.next[before] = entry,
        }
        if next != NONE {
            self.before[next] = entry;
        }
    }
}

/// What a search finds where it looks.
enum Candidate {
    /// Something to take, if it fits.
    Step(Call, Option<Answer>),
    /// Something that another has to be taken before, or that was taken.
    NotNow,
    /// No more that is known.
    End,
    /// Nothing more.
    None,
}
