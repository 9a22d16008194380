//! Which nodes are heard of, in memory: dispatch writes, the leader reads.
//!
//! An open session is the beat; a node without one was last heard of when its
//! session ended. Only members get a session, so the book is no longer than
//! the list of nodes. Never replicated: a new leader starts a page of its own.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use warren_model::{NodeId, Time};
use warren_planner::Beats;

pub(crate) struct BeatBook {
    beats: Mutex<Beats>,
    moved: watch::Sender<()>,
}

impl BeatBook {
    pub(crate) fn new(now: Time) -> Self {
        let beats = Beats { since: now, ..Beats::default() };
        Self { beats: Mutex::new(beats), moved: watch::channel(()).0 }
    }

    fn lock(&self) -> MutexGuard<'_, Beats> {
        self.beats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes when a node came or went.
    pub(crate) fn watch(&self) -> watch::Receiver<()> {
        self.moved.subscribe()
    }

    pub(crate) fn read(&self) -> Beats {
        self.lock().clone()
    }

    /// A new leader believes nothing of the time before it led; open sessions stay.
    pub(crate) fn turn_page(&self, now: Time) {
        let mut beats = self.lock();
        beats.since = now;
        beats.last_seen.clear();
    }

    pub(crate) fn connected(&self, node: NodeId) {
        {
            let mut beats = self.lock();
            beats.connected.insert(node);
            beats.last_seen.remove(&node);
        }
        self.moved.send_replace(());
    }

    pub(crate) fn disconnected(&self, node: NodeId, now: Time) {
        {
            let mut beats = self.lock();
            beats.connected.remove(&node);
            beats.last_seen.insert(node, now);
        }
        self.moved.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_come_and_go() {
        let book = BeatBook::new(Time(1));
        let (a, b) = (NodeId::from_bytes([1; 10]), NodeId::from_bytes([2; 10]));
        let moved = book.watch();
        book.connected(a);
        book.connected(b);
        book.disconnected(a, Time(7));
        assert!(moved.has_changed().unwrap());
        let beats = book.read();
        assert!(beats.connected.contains(&b) && beats.last_seen[&a] == Time(7));
        book.turn_page(Time(9));
        let beats = book.read();
        assert_eq!((beats.since, beats.connected.len(), beats.last_seen.len()), (Time(9), 1, 0));
    }
}
