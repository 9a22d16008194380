//! Entries of transactions into the state.
//!
//! Total: any transaction gives an [`Outcome`], none panics. Atomic: a rejected
//! one leaves no trace, neither in the tables nor in the events. One at a time:
//! each applied transaction is one revision. What each mutation does is in
//! `mutate`.

use warren_model::{Event, Time};

use crate::State;
use crate::change::{Outcome, Rejection, Transaction};
use crate::mutate::Step;
use crate::table::Journal;
use crate::weight;

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
        let revision = self.revision.saturating_add(1);
        let events_before = events.len();
        let mut journal = Journal::default();
        let mut step = Step { state: self, journal: &mut journal, events, revision };
        let result = transaction.mutations.iter().try_for_each(|mutation| step.mutate(mutation));
        if let Err(rejection) = result {
            self.undo(journal);
            events.truncate(events_before);
            return Outcome::Rejected(rejection);
        }
        self.commit(journal, revision);
        if let Some(request) = &transaction.request {
            self.requests.insert(request, revision, self.time);
        }
        Outcome::Applied { revision }
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
