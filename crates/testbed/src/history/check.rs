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
//! not. Those that could not help anything are left out beforehand.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::model::{Answer, Call, State, step};
use super::{NEVER, Operation};

/// When the search gives up.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For one register.
    pub time: Duration,
    /// Remembered sets of one register; each is a bit an operation, and some 64 bytes.
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

/// Whether the operations of one register can be true, begun from any of `starts`.
pub fn check(operations: &[Operation], starts: &[State], limits: &Limits) -> Outcome {
    let kept = relevant(operations);
    let deadline = Instant::now() + limits.time;
    let mut outcome = Outcome::Impossible;
    for start in starts {
        match Search::new(&kept).run(*start, deadline, limits.memory) {
            Outcome::Explained => return Outcome::Explained,
            Outcome::Impossible => {}
            gave @ Outcome::Gave(_) => outcome = gave,
        }
    }
    outcome
}

/// Without what constrains nothing: refusals, reads without an answer, and writes without an
/// answer whose value nobody saw and which made nothing be there.
fn relevant(operations: &[Operation]) -> Vec<&Operation> {
    let seen: HashSet<u64> = operations.iter().filter_map(sees).collect();
    let helps = |operation: &&Operation| match (operation.call, operation.answer) {
        (_, Some(Answer::Refused)) | (Call::Read, None) => false,
        (Call::Write(value) | Call::Swap { to: value, .. }, None) => seen.contains(&value),
        _ => true,
    };
    let mut kept: Vec<&Operation> = operations.iter().filter(helps).collect();
    kept.sort_by_key(|operation| (operation.invoked, operation.returned));
    kept
}

/// The value that an operation depends on.
pub(super) fn sees(operation: &Operation) -> Option<u64> {
    match (operation.call, operation.answer) {
        (Call::Swap { from, .. }, _) => Some(from),
        (Call::Read, Some(Answer::Value(value))) => value,
        _ => None,
    }
}

/// The end of the list, and what is before its beginning.
const NONE: usize = usize::MAX;

/// Entries of the list: `2 * i` is the invocation of operation `i`, `2 * i + 1` its return.
struct Search<'a> {
    operations: &'a [&'a Operation],
    next: Vec<usize>,
    before: Vec<usize>,
    first: usize,
    /// Known outcomes that are not taken yet.
    left: usize,
    taken: Vec<u64>,
}

impl<'a> Search<'a> {
    fn new(operations: &'a [&'a Operation]) -> Self {
        let n = operations.len();
        let mut entries: Vec<(u64, u8, usize)> = Vec::with_capacity(2 * n);
        for (i, operation) in operations.iter().enumerate() {
            // At the same moment invocations come first: touching intervals overlap.
            entries.push((operation.invoked, 0, 2 * i));
            if operation.returned != NEVER {
                entries.push((operation.returned, 1, 2 * i + 1));
            }
        }
        entries.sort_unstable();
        let (mut next, mut before) = (vec![NONE; 2 * n], vec![NONE; 2 * n]);
        for pair in entries.windows(2) {
            next[pair[0].2] = pair[1].2;
            before[pair[1].2] = pair[0].2;
        }
        Self {
            operations,
            next,
            before,
            first: entries.first().map_or(NONE, |entry| entry.2),
            left: operations.iter().filter(|operation| operation.answer.is_some()).count(),
            taken: vec![0; n.div_ceil(64)],
        }
    }

    fn run(mut self, start: State, deadline: Instant, memory: usize) -> Outcome {
        let mut seen: HashSet<(Box<[u64]>, State)> = HashSet::new();
        let mut path: Vec<(usize, State)> = Vec::new();
        let (mut state, mut entry) = (start, self.first);
        let mut steps = 0u32;
        while self.left > 0 {
            steps = steps.wrapping_add(1);
            if steps.is_multiple_of(LOOK_EVERY) && Instant::now() > deadline {
                return Outcome::Gave("time");
            }
            if entry != NONE && entry.is_multiple_of(2) {
                let i = entry / 2;
                let operation = self.operations[i];
                if let Some(after) = step(state, operation.call, operation.answer) {
                    self.flip(i);
                    if seen.insert((self.taken.clone().into(), after)) {
                        if seen.len() > memory {
                            return Outcome::Gave("memory");
                        }
                        path.push((i, state));
                        state = after;
                        self.take(i);
                        entry = self.first;
                        continue;
                    }
                    self.flip(i);
                }
                entry = self.next[entry];
                continue;
            }
            // A return: what it belongs to should have been taken by now. Try another order.
            let Some((i, earlier)) = path.pop() else { return Outcome::Impossible };
            state = earlier;
            self.flip(i);
            self.put_back(i);
            entry = self.next[2 * i];
        }
        Outcome::Explained
    }

    fn flip(&mut self, i: usize) {
        self.taken[i / 64] ^= 1 << (i % 64);
    }

    fn take(&mut self, i: usize) {
        self.unlink(2 * i);
        if self.operations[i].answer.is_some() {
            self.unlink(2 * i + 1);
            self.left -= 1;
        }
    }

    /// Undoes the last `take`, in the opposite order.
    fn put_back(&mut self, i: usize) {
        if self.operations[i].answer.is_some() {
            self.link(2 * i + 1);
            self.left += 1;
        }
        self.link(2 * i);
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
