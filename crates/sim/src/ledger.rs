//! The real log on a simulated disk: entries go in encoded and sealed, and come
//! out again after a kill or a power failure.

use std::sync::Arc;
use std::sync::mpsc;

use warren_base::rng::{Rng, SeededRng};
use warren_model::Time;
use warren_state::State;
use warren_state::change::{Outcome, Transaction};
use warren_store::codec;
use warren_store::log::{Entry, EntryKind, Log, LogId, LogOptions};
use warren_store::sim_disk::SimDisk;
use warren_trust::KeyRing;

/// Small segments: a run must meet many of them.
const SEGMENT_BYTES: usize = 16 << 10;

pub(crate) struct Ledger {
    disk: SimDisk,
    keys: Arc<KeyRing>,
    rng: Arc<SeededRng>,
    log: Log,
    next_index: u64,
}

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: SEGMENT_BYTES,
        first_segment_bytes: SEGMENT_BYTES,
        inline: true,
        ..LogOptions::default()
    }
}

impl Ledger {
    pub(crate) fn create(seed: u64) -> Result<Self, String> {
        let rng = Arc::new(SeededRng::new(seed));
        let keys = Arc::new(KeyRing::generate(rng.as_ref()));
        let disk = SimDisk::new();
        let log = Log::create(Arc::new(disk.clone()), keys.clone(), rng.clone(), options())
            .map_err(|error| format!("create the log: {error}"))?;
        Ok(Self { disk, keys, rng, log, next_index: 0 })
    }

    pub(crate) fn entries(&self) -> u64 {
        self.next_index
    }

    /// Makes one entry durable.
    pub(crate) fn append(
        &mut self,
        time: Time,
        transactions: &[Transaction],
    ) -> Result<(), String> {
        let wire = transactions.iter().map(codec::transaction).collect();
        let entry = Entry {
            id: LogId { term: 1, node: 1, index: self.next_index },
            kind: EntryKind::Transactions,
            payload: codec::encode_entry(time, wire),
        };
        let (done, outcome) = mpsc::channel();
        let report = Box::new(move |result| {
            // The receiver waits below for as long as this exists.
            let _ = done.send(result);
        });
        self.log.append(vec![entry], report).map_err(|error| format!("append: {error}"))?;
        outcome
            .recv()
            .map_err(|_| "the log forgot an append".to_owned())?
            .map_err(|error| format!("append: {error}"))?;
        self.next_index += 1;
        Ok(())
    }

    /// What the log says the state is.
    pub(crate) fn replay(&self) -> Result<State, String> {
        let entries = self
            .log
            .read(0..self.next_index, usize::MAX)
            .map_err(|error| format!("read the log: {error}"))?;
        if entries.len() as u64 != self.next_index {
            return Err(format!("{} of {} entries came back", entries.len(), self.next_index));
        }
        let mut state = State::default();
        for entry in entries {
            let (time, transactions) =
                codec::decode_entry(&entry.payload).map_err(|error| format!("decode: {error}"))?;
            let outcomes = state.apply(time, &transactions, &mut Vec::new());
            let applied = |outcome: &Outcome| match outcome {
                Outcome::Applied { .. } | Outcome::Repeated { .. } | Outcome::Rejected(_) => true,
            };
            debug_assert!(outcomes.iter().all(applied));
        }
        Ok(state)
    }

    /// The daemon dies; with `power` the machine does.
    pub(crate) fn crash(&mut self, power: bool, rng: &dyn Rng) -> Result<(), String> {
        self.disk = if power { self.disk.crash(rng) } else { self.disk.kill() };
        self.log =
            Log::open(Arc::new(self.disk.clone()), self.keys.clone(), self.rng.clone(), options())
                .map_err(|error| format!("open the log again: {error}"))?;
        let held = self.log.range().1.map_or(0, |last| last.index + 1);
        if held < self.next_index {
            return Err(format!("{held} of {} acknowledged entries survived", self.next_index));
        }
        self.next_index = held;
        Ok(())
    }
}
