//! Which nodes are heard of, in the leader's time and memory: sessions and
//! other managers write, the leader reads.
//!
//! A beat is a node's word that it is alive, wherever its session is. Kept by
//! the monotonic clock: a wall clock that jumps must not silence a cluster.
//! The leader's loop ticks; when one comes later than it should by [`LATE_MS`]
//! this process was held up (stopped, starved, its machine paused), and silence
//! meanwhile says nothing about nodes: the page is turned. A new leader begins
//! with an empty page, but for nodes that the state holds for down: since when,
//! every manager has seen for itself (`down`). When nobody led for a while
//! before, or this process was held up for long, nodes get time to come back
//! (`touch`). Only members get a session, so the book is no longer than the list
//! of nodes. Never replicated.

pub(crate) mod down;
pub(crate) mod stall;
pub(crate) mod tell;
pub(crate) mod touch;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use warren_model::{NodeId, Time};
use warren_planner::{Beats, RETURN_MS, SUSPICION_MS, Seen};
use warren_state::State;

use self::down::Downs;
use self::stall::Stalls;
use crate::dispatch::membership::beat_ms;

/// The leader's loop looks at the clock that often.
const TICK_MS: u64 = 200;
/// The same where the only node is the one that leads: there is nobody to be wrong about.
const ALONE_TICK_MS: u64 = 1_000;
/// A tick that comes so much later is a gap: the loop did not run.
const LATE_MS: u64 = 300;
/// A node that is heard after more silence than this wakes the leader: it may count as down.
/// Shorter than any suspicion, longer than the beats of a large cluster are apart.
const QUIET_MS: u64 = 2500;

/// When, by the monotonic clock, and how far away.
#[derive(Debug, Clone, Copy)]
struct Heard {
    at_ms: u64,
    rtt_ms: u32,
}

struct Page {
    since_ms: u64,
    tick_ms: u64,
    pace_ms: u64,
    unheard_ms: u64,
    /// How far beats of a node are apart in a cluster of this size.
    beat_ms: u64,
    heard: BTreeMap<NodeId, Heard>,
    downs: Downs,
    stalls: Stalls,
}

pub(crate) struct BeatBook {
    page: Mutex<Page>,
    moved: watch::Sender<()>,
}

impl BeatBook {
    pub(crate) fn new(mono_ms: u64) -> Self {
        let page = Page {
            since_ms: mono_ms,
            tick_ms: mono_ms,
            pace_ms: TICK_MS,
            unheard_ms: RETURN_MS,
            beat_ms: 0,
            heard: BTreeMap::new(),
            downs: Downs::default(),
            stalls: Stalls::new(mono_ms),
        };
        Self { page: Mutex::new(page), moved: watch::channel(()).0 }
    }

    fn lock(&self) -> MutexGuard<'_, Page> {
        self.page.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes when a node is heard that was not for a while.
    pub(crate) fn watch(&self) -> watch::Receiver<()> {
        self.moved.subscribe()
    }

    /// The book in the time of `now`, which is the moment `mono_ms`.
    pub(crate) fn read(&self, now: Time, mono_ms: u64) -> Beats {
        let mut page = self.lock();
        page.tick(mono_ms);
        let then = |at_ms: u64| Time(now.0.saturating_sub(mono_ms.saturating_sub(at_ms)));
        // Before it was held for down it was silent for the shortest window at least.
        let silent = |at_ms: u64| Time(then(at_ms).0.saturating_sub(SUSPICION_MS + 1));
        let before = page.downs.before(page.since_ms);
        let mut seen: BTreeMap<NodeId, Seen> =
            before.map(|(node, at_ms)| (node, Seen { at: silent(at_ms), rtt_ms: 0 })).collect();
        for (node, heard) in &page.heard {
            // What was not heard while nobody listened is no silence.
            let at_ms = if seen.contains_key(node) { 0 } else { page.since_ms };
            let at = then(heard.at_ms.max(at_ms));
            seen.insert(*node, Seen { at, rtt_ms: heard.rtt_ms });
        }
        let (unheard_ms, beat_ms) = (page.unheard_ms, page.beat_ms);
        let since = then(page.since_ms);
        Beats { since, unheard_ms, beat_ms, seen, ..Beats::default() }
    }

    /// What the state says of nodes is to be known to every manager: it may lead next.
    pub(crate) fn look(&self, view: &State, mono_ms: u64) {
        self.lock().downs.look(view, mono_ms);
    }

    /// How long the leader is to wait for its next tick.
    pub(crate) fn pace_ms(&self) -> u64 {
        self.lock().pace_ms
    }

    /// To be called at that pace by the leader. Says whether there was a gap.
    pub(crate) fn tick(&self, mono_ms: u64) -> bool {
        let mut page = self.lock();
        page.stalls.look(mono_ms);
        page.tick(mono_ms)
    }

    /// This process runs now. Says when the last time ended for which it did not.
    pub(crate) fn stalled_until(&self, mono_ms: u64) -> Option<u64> {
        self.lock().stalls.look(mono_ms)
    }

    /// From now on somebody looks; before, nobody did.
    pub(crate) fn begin_to_look(&self, mono_ms: u64) {
        self.lock().stalls.begin(mono_ms);
    }

    /// A new leader believes nothing of the time before it led. After an `outage` nodes have
    /// longer to find it.
    pub(crate) fn turn_page(&self, mono_ms: u64, outage: bool) {
        let mut page = self.lock();
        (page.since_ms, page.tick_ms) = (mono_ms, mono_ms);
        page.unheard_ms = if outage { RETURN_MS } else { 0 };
        page.heard.clear();
    }

    /// A node was heard at that moment, perhaps by another manager.
    pub(crate) fn heard(&self, node: NodeId, at_ms: u64, rtt_ms: u32) {
        let heard = Heard { at_ms, rtt_ms };
        let (before, quiet_ms) = {
            let mut page = self.lock();
            // A beat that comes in time is nothing to look at, however far they are apart.
            let quiet_ms = QUIET_MS.max(page.beat_ms * 2);
            let before = page.heard.get(&node).copied();
            // Word of another manager may be overtaken by the node's next session.
            if before.is_none_or(|before| before.at_ms <= at_ms) {
                page.heard.insert(node, heard);
            }
            (before, quiet_ms)
        };
        if before.is_none_or(|before| at_ms > before.at_ms + quiet_ms) {
            self.moved.send_replace(());
        }
    }

    /// Strikes out who is no member any more.
    pub(crate) fn keep(&self, members: usize, is_member: impl Fn(NodeId) -> bool) {
        let mut page = self.lock();
        page.pace_ms = if members > 1 { TICK_MS } else { ALONE_TICK_MS };
        page.beat_ms = beat_ms(members).into();
        if page.heard.len() > members {
            page.heard.retain(|node, _| is_member(*node));
        }
    }
}

impl Page {
    fn tick(&mut self, mono_ms: u64) -> bool {
        let apart_ms = mono_ms.saturating_sub(self.tick_ms);
        let gap = apart_ms > self.pace_ms + LATE_MS;
        if gap {
            self.since_ms = mono_ms;
            self.unheard_ms = if apart_ms >= touch::OUTAGE_MS { RETURN_MS } else { 0 };
        }
        self.tick_ms = mono_ms;
        gap
    }
}

#[cfg(test)]
mod tests {
    use warren_model::node::{Description, Node, NodeStatus};
    use warren_state::change::Mutation;

    use super::*;
    use crate::testing::apply;

    fn node(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 10])
    }

    #[test]
    fn beats_are_told_in_the_leaders_time() {
        let book = BeatBook::new(100);
        let moved = book.watch();
        book.heard(node(1), 150, 7);
        assert!(moved.has_changed().unwrap());
        let beats = book.read(Time(10_000), 400);
        assert_eq!(beats.since, Time(9_700));
        assert_eq!(beats.seen[&node(1)], Seen { at: Time(9_750), rtt_ms: 7 });
        // The wall clock jumps by a day: the node was heard 250 ms ago all the same.
        let beats = book.read(Time(86_410_000), 400);
        assert_eq!(beats.seen[&node(1)].at, Time(86_409_750));
    }

    #[test]
    fn beats_of_a_large_cluster_wake_nobody() {
        let book = BeatBook::new(0);
        book.keep(10_000, |_| true);
        book.heard(node(1), 1_000, 0);
        let mut moved = book.watch();
        moved.mark_unchanged();
        book.heard(node(1), 11_000, 0);
        assert!(!moved.has_changed().unwrap());
        assert_eq!(book.read(Time(50_000), 11_000).beat_ms, 10_000);
        book.heard(node(1), 32_000, 0);
        assert!(moved.has_changed().unwrap());
    }

    #[test]
    fn only_a_nodes_return_wakes() {
        let book = BeatBook::new(0);
        let mut moved = book.watch();
        let mut woken = |node_at: u64| {
            book.heard(node(1), node_at, 0);
            let woken = moved.has_changed().unwrap();
            moved.mark_unchanged();
            woken
        };
        let beats = [0, 500, 3000, 5501, 5400, 6000];
        assert_eq!(beats.map(&mut woken), [true, false, false, true, false, false]);
        book.keep(0, |_| false);
        assert!(book.read(Time(9000), 400).seen.is_empty());
    }

    fn changed(state: &State, mutation: Mutation) -> State {
        let mut next = state.clone();
        apply(&mut next, vec![mutation]);
        next
    }

    #[test]
    fn since_when_a_node_is_down_is_known_to_the_next_leader() {
        let (book, id) = (BeatBook::new(0), node(1));
        let status = |status| Mutation::SetNodeStatus { id, status };
        let joined = Node::new(id, Description::default());
        let ready = changed(&State::default(), Mutation::CreateNode(joined));
        let ready = changed(&ready, status(NodeStatus::Ready));
        let silent = |mono_ms: u64| {
            let seen = book.read(Time(1_000_000), mono_ms).seen.get(&id).copied();
            seen.map(|seen| 1_000_000 - seen.at.0)
        };
        book.look(&ready, 100);
        assert_eq!(silent(200), None);
        let down = changed(&ready, status(NodeStatus::Down));
        book.look(&down, 1_000);
        book.look(&down, 5_000);
        assert_eq!(silent(9_000), Some(8_000 + SUSPICION_MS + 1));
        // The page of who leads next says nothing of it; a node that is heard is heard.
        book.turn_page(9_000, false);
        assert_eq!(silent(10_000), Some(9_000 + SUSPICION_MS + 1));
        book.heard(id, 9_500, 0);
        assert_eq!(silent(10_000), Some(500));
        book.turn_page(10_000, false);
        // It came and went while nobody looked here.
        let again = changed(&changed(&down, status(NodeStatus::Ready)), status(NodeStatus::Down));
        book.look(&again, 20_000);
        assert_eq!(silent(20_000), Some(SUSPICION_MS + 1));
        book.look(&changed(&again, status(NodeStatus::Ready)), 21_000);
        assert_eq!(silent(22_000), None);
    }

    #[test]
    fn gaps_begin_a_new_window() {
        let book = BeatBook::new(0);
        assert!(!book.tick(200) && !book.tick(700));
        assert_eq!(book.read(Time(1000), 1000).since, Time(0));
        // Stopped for a while: whoever looks first finds out.
        assert_eq!(book.read(Time(5000), 5000).since, Time(5000));
        assert!(!book.tick(5200));
        assert!(book.tick(5701));
        book.heard(node(1), 5800, 0);
        book.turn_page(6000, false);
        let beats = book.read(Time(6000), 6000);
        assert_eq!((beats.since, beats.seen.len()), (Time(6000), 0));
    }

    #[test]
    fn after_an_outage_nodes_have_longer() {
        let book = BeatBook::new(0);
        let unheard = |at_ms| book.read(Time(at_ms), at_ms).unheard_ms;
        book.turn_page(100, true);
        assert_eq!(unheard(100), RETURN_MS);
        book.turn_page(200, false);
        assert_eq!(unheard(200), 0);
        // Held up: shortly, for long, shortly.
        assert_eq!([1000, 9000, 9100, 9700].map(unheard), [0, RETURN_MS, RETURN_MS, 0]);
    }

    #[test]
    fn who_is_alone_looks_more_seldom() {
        let book = BeatBook::new(0);
        assert_eq!(book.pace_ms(), 200);
        book.keep(1, |_| true);
        assert_eq!(book.pace_ms(), 1000);
        assert!(!book.tick(1300) && book.tick(2601));
        book.keep(2, |_| true);
        assert_eq!(book.pace_ms(), 200);
        assert!(!book.tick(3101) && book.tick(3602));
    }
}
