//! What happens next: events by time, then by order of arrival.

use std::collections::BTreeMap;

#[derive(Debug)]
pub(crate) struct Queue<E> {
    events: BTreeMap<(u64, u64), E>,
    order: u64,
}

impl<E> Queue<E> {
    pub(crate) fn new() -> Self {
        Self { events: BTreeMap::new(), order: 0 }
    }

    pub(crate) fn at(&mut self, at_ms: u64, event: E) {
        self.order += 1;
        self.events.insert((at_ms, self.order), event);
    }

    pub(crate) fn pop(&mut self) -> Option<(u64, E)> {
        self.events.pop_first().map(|((at, _), event)| (at, event))
    }

    pub(crate) fn next_at(&self) -> Option<u64> {
        self.events.first_key_value().map(|((at, _), _)| *at)
    }
}
