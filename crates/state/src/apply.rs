//! Entries of transactions into the state.
//!
//! Total: any transaction gives an [`Outcome`], none panics. Atomic: a rejected
//! one leaves no trace, neither in the tables nor in the events. One at a time:
//! each applied transaction is one revision. What each mutation does is in
//! `mutate`.

use warren_model::{Event, Time};

use crate::State;
use crate::audit::Notes;
use crate::change::{Mutation, Outcome, Rejection, Transaction};
use crate::mutate::Step;
use crate::table::Journal;
use crate::weight;

/// More than a cluster writes in a hundred years, and far from the end of the numbers.
const REVISION_JUMP_MAX: u64 = 1 << 48;

impl State {
    /// Applies one log entry: transactions in order, each by itself, at the time that its leader
    /// stamped (never earlier than the entry before).
    ///
    /// Events of applied transactions are added to `events`, in order of revision.
    pub fn apply(
        &mut self,
        time: Time,
        transactions: &[Transaction],
        events: &mut Vec<Event>,
    ) -> Vec<Outcome> {
        self.time = self.time.max(time);
        self.requests.expire(self.time);
        self.expire_tombstones();
        self.expire_quarantine();
        transactions.iter().map(|transaction| self.apply_one(transaction, events)).collect()
    }

    fn apply_one(&mut self, transaction: &Transaction, events: &mut Vec<Event>) -> Outcome {
        if let Some(request) = &transaction.request
            && let Some(answer) = self.requests.get(request)
        {
            return if answer.hash == request.hash {
                Outcome::Repeated { revision: answer.revision }
            } else {
                Outcome::Rejected(Rejection::RequestReused)
            };
        }
        if let Err(rejection) = self.admit(transaction) {
            return Outcome::Rejected(rejection);
        }
        let revision = match self.next_revision(transaction) {
            Ok(revision) => revision,
            Err(rejection) => return Outcome::Rejected(rejection),
        };
        let events_before = events.len();
        let mut journal = Journal::default();
        let mut notes = Notes::default();
        let principal = transaction.principal.as_deref();
        let mut step = Step { state: self, journal: &mut journal, events, revision, principal };
        let result = transaction.mutations.iter().try_for_each(|mutation| {
            if transaction.principal.is_some() {
                notes.add(step.state, mutation);
            }
            step.mutate(mutation)
        });
        if let Err(rejection) = result {
            self.undo(journal);
            events.truncate(events_before);
            return Outcome::Rejected(rejection);
        }
        self.commit(journal, revision);
        if let Some(request) = &transaction.request {
            self.requests.insert(request, revision, self.time);
        }
        if let Some(principal) = &transaction.principal {
            notes.record(&mut self.audit, revision, self.time, principal);
        }
        Outcome::Applied { revision }
    }

    /// One more than the last, unless a restore lets it jump.
    fn next_revision(&self, transaction: &Transaction) -> Result<u64, Rejection> {
        let jumps = transaction.mutations.iter().filter_map(|mutation| match mutation {
            Mutation::Restored { epoch: _, revision_at_least } => Some(*revision_at_least),
            _ => None,
        });
        let next = self.revision.saturating_add(1);
        match jumps.max() {
            Some(jump) if jump > self.revision.saturating_add(REVISION_JUMP_MAX) => {
                let (from, max) = (self.revision, REVISION_JUMP_MAX);
                Err(Rejection::Invalid(format!("revision {jump} is more than {max} after {from}")))
            }
            Some(jump) => Ok(next.max(jump)),
            None => Ok(next),
        }
    }

    /// Limits and expectations: what can be said before anything is written.
    fn admit(&self, transaction: &Transaction) -> Result<(), Rejection> {
        let mutations = transaction.mutations.len();
        if mutations > Transaction::MUTATIONS_MAX {
            return Err(Rejection::TooMany { mutations });
        }
        weight::check(transaction)?;
        for expect in &transaction.expects {
            let found = self.revision_of(expect.key);
            if found != expect.revision {
                let (key, expected) = (expect.key, expect.revision);
                return Err(Rejection::Stale { key, expected, found });
            }
        }
        Ok(())
    }
}
