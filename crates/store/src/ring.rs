//! The last events, for those who follow: bounded, never silent about a gap.

use std::collections::VecDeque;

use warren_model::Event;

/// Events kept: some minutes of a busy cluster.
const EVENTS_MAX: usize = 65_536;
/// Of the events and their texts as the allocator counts them; the memory of an idle daemon is
/// counted in MiB.
const BYTES_MAX: usize = 4 << 20;

/// The follower asked for events that are not kept any more: it must take a new view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("events after revision {asked} are not kept any more, only those after {oldest}: resync")]
pub struct Resync {
    pub asked: u64,
    /// Events after this revision are there.
    pub oldest: u64,
    /// Revision of the state now.
    pub revision: u64,
}

pub(crate) struct Ring {
    events: VecDeque<Event>,
    bytes: usize,
    /// Events up to this revision are gone, or were never seen.
    floor: u64,
    revision: u64,
    events_max: usize,
    bytes_max: usize,
}

/// What a text costs beside its bytes: the allocator's own word, and pieces of 16 bytes.
fn allocated(text: &str) -> usize {
    const WORD: usize = size_of::<usize>();
    const LEAST: usize = 32;
    if text.is_empty() { 0 } else { (text.len() + WORD).next_multiple_of(16).max(LEAST) }
}

fn weight(event: &Event) -> usize {
    let texts = [&event.id, &event.name, &event.message];
    size_of::<Event>() + texts.into_iter().map(|text| allocated(text)).sum::<usize>()
}

impl Ring {
    /// Knows nothing of what happened up to `revision`.
    pub(crate) fn new(revision: u64) -> Self {
        Self::with_limits(revision, EVENTS_MAX, BYTES_MAX)
    }

    fn with_limits(revision: u64, events_max: usize, bytes_max: usize) -> Self {
        let events = VecDeque::new();
        Self { events, bytes: 0, floor: revision, revision, events_max, bytes_max }
    }

    /// Adds the events of revisions up to `revision`, in order.
    pub(crate) fn push(&mut self, revision: u64, events: Vec<Event>) {
        self.revision = revision;
        for event in events {
            self.bytes += weight(&event);
            self.events.push_back(event);
        }
        // The events of one revision go together, or a follower would see half a transaction.
        while self.events.len() > self.events_max || self.bytes > self.bytes_max {
            let Some(oldest) = self.events.front().map(|event| event.revision) else { break };
            self.floor = oldest;
            while let Some(event) = self.events.pop_front_if(|event| event.revision == oldest) {
                self.bytes -= weight(&event);
            }
        }
        if self.events.len() < self.events.capacity() / 4 {
            self.events.shrink_to(self.events.len() * 2);
        }
    }

    pub(crate) fn after(&self, revision: u64) -> Result<Vec<Event>, Resync> {
        if revision < self.floor {
            let (asked, oldest) = (revision, self.floor);
            return Err(Resync { asked, oldest, revision: self.revision });
        }
        let from = self.events.partition_point(|event| event.revision <= revision);
        Ok(self.events.range(from..).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use warren_model::Time;
    use warren_model::event::{Action, Kind};

    use super::*;

    fn event(revision: u64) -> Event {
        Event {
            revision,
            time: Time(0),
            kind: Kind::Task,
            action: Action::Update,
            id: String::new(),
            name: "web.1".into(),
            message: String::new(),
        }
    }

    fn after(ring: &Ring, revision: u64) -> Result<Vec<u64>, u64> {
        let events = ring.after(revision).map_err(|resync| resync.oldest)?;
        Ok(events.iter().map(|event| event.revision).collect())
    }

    #[test]
    fn gaps_are_told() {
        let mut ring = Ring::with_limits(10, 4, 1 << 20);
        assert_eq!(after(&ring, 10), Ok(vec![]));
        assert_eq!(after(&ring, 9), Err(10));
        ring.push(12, vec![event(11), event(11), event(12)]);
        assert_eq!(after(&ring, 10), Ok(vec![11, 11, 12]));
        ring.push(14, vec![event(13), event(14)]);
        assert_eq!(after(&ring, 10), Err(11));
        assert_eq!(after(&ring, 11), Ok(vec![12, 13, 14]));
        assert_eq!(after(&ring, 14), Ok(vec![]));
        // Later than now: a follower of another life; it hears of what comes after.
        assert_eq!(after(&ring, 99), Ok(vec![]));
        ring.push(15, (0..9).map(|_| event(15)).collect());
        assert_eq!(after(&ring, 14), Err(15));
        assert_eq!(after(&ring, 15), Ok(vec![]));
    }

    #[test]
    fn bytes_are_bounded() {
        let mut ring = Ring::with_limits(0, 1000, 10 * weight(&event(1)));
        for revision in 1..100 {
            ring.push(revision, vec![event(revision)]);
        }
        assert_eq!(ring.events.len(), 10);
        assert_eq!(ring.bytes, ring.events.iter().map(weight).sum::<usize>());
    }
}
