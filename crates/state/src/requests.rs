//! Requests answered lately, so that a retry is answered and not done twice.

use std::sync::Arc;

use imbl::OrdMap;
use warren_model::Time;

use crate::change::Request;

/// How long an answer is kept, in entry time: many times as long as any client retries
/// (docs/adr/004).
pub(crate) const KEPT_MS: u64 = 600_000;
/// So many of the last answers are kept however long ago they were given: entry time is the wall
/// clock of whoever leads, so one that is set, or the next leader's, may jump over [`KEPT_MS`]
/// while a client still retries. Half a minute of a busy cluster.
pub(crate) const KEPT_MIN: usize = 1_024;
/// Bound on memory whatever callers do; the oldest go first.
pub(crate) const KEPT_MAX: usize = 65_536;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) hash: u64,
    pub(crate) revision: u64,
    pub(crate) time: Time,
}

/// The number first: it is random, so comparing it is nearly always enough.
type RequestKey = (u128, Arc<str>);

#[derive(Debug, Clone, Default)]
pub(crate) struct Requests {
    answers: OrdMap<RequestKey, Answer>,
    /// By revision, which is also the order of time: every transaction has its own.
    order: OrdMap<u64, RequestKey>,
}

impl Requests {
    pub(crate) fn get(&self, request: &Request) -> Option<Answer> {
        // An owned key for a lookup: requests come from people, not a thousand times a second.
        self.answers.get(&key(request)).copied()
    }

    /// Remembers an answer; forgets the oldest beyond [`KEPT_MAX`].
    pub(crate) fn insert(&mut self, request: &Request, revision: u64, time: Time) {
        let key = key(request);
        let answer = Answer { hash: request.hash, revision, time };
        if let Some(before) = self.answers.insert(key.clone(), answer) {
            self.order.remove(&before.revision);
        }
        self.order.insert(revision, key);
        while self.answers.len() > KEPT_MAX {
            self.forget_oldest();
        }
    }

    /// Forgets what was answered more than [`KEPT_MS`] before `now`, but for the last [`KEPT_MIN`].
    pub(crate) fn expire(&mut self, now: Time) {
        while self.answers.len() > KEPT_MIN
            && let Some((_, key)) = self.order.get_min()
            && self.answers.get(key).is_none_or(|answer| now.since_ms(answer.time) > KEPT_MS)
        {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((revision, key)) = self.order.get_min().cloned() {
            self.order.remove(&revision);
            self.answers.remove(&key);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.answers.len()
    }

    /// In order of revision.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Request, u64, Time)> {
        self.order.iter().filter_map(|(revision, key)| {
            let answer = self.answers.get(key)?;
            let request = Request { principal: key.1.to_string(), id: key.0, hash: answer.hash };
            Some((request, *revision, answer.time))
        })
    }

    /// Whether both maps say the same.
    pub(crate) fn is_consistent(&self) -> bool {
        self.answers.len() == self.order.len()
            && self.order.iter().all(|(revision, key)| {
                self.answers.get(key).is_some_and(|answer| answer.revision == *revision)
            })
    }
}

fn key(request: &Request) -> RequestKey {
    (request.id, request.principal.as_str().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: u128) -> Request {
        Request { principal: "anna".into(), id, hash: 5 }
    }

    /// Of the last requests whatever the time, of those before for ten minutes.
    #[test]
    fn answers_outlast_a_clock_that_is_set() {
        let mut requests = Requests::default();
        for (id, revision) in (1..=KEPT_MIN as u128).zip(1..) {
            requests.insert(&request(id), revision, Time(9));
        }
        requests.expire(Time(u64::MAX));
        assert!(requests.get(&request(1)).is_some());
        requests.insert(&request(0), 9_999, Time(9));
        requests.expire(Time(9 + KEPT_MS));
        assert!(requests.get(&request(1)).is_some());
        requests.expire(Time(10 + KEPT_MS));
        assert!(requests.get(&request(1)).is_none());
        assert!(requests.get(&request(2)).is_some());
        assert!(requests.is_consistent());
    }
}
