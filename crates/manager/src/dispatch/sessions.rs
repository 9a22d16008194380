//! Which agents are connected to this manager, and how to reach each.
//!
//! One session per node. A newer one of the same life of the node's daemon
//! takes the place of the older, which is a leftover of a connection that its
//! agent gave up already. One of another life takes it only once the seated one
//! has fallen silent: two machines with one identity must not push each other
//! out for ever, and a daemon that was killed is silent.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use warren_model::NodeId;
use warren_proto::v1;

use crate::api::authorize::removed;
use crate::refusal::Refusal;
use crate::relays::Cut;

/// Messages on their way to an agent.
pub(crate) type Outbox = mpsc::Sender<Result<v1::ManagerMessage, Status>>;

/// A session heard within so long is alive. An agent gives up a connection after as long.
const ALIVE_MS: u64 = 1000;

/// Who wants a seat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) node: NodeId,
    /// Of one life of the node's daemon.
    pub(crate) instance: u64,
    /// Where it calls from, for people.
    pub(crate) address: String,
}

/// When a session was heard last, by the monotonic clock, and how far away it is.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    at_ms: AtomicU64,
    rtt_ms: AtomicU32,
}

impl Pulse {
    pub(crate) fn beat(&self, at_ms: u64, rtt_ms: u32) {
        // Two numbers that need not fit each other to the millisecond.
        self.rtt_ms.store(rtt_ms, Ordering::Relaxed);
        self.at_ms.store(at_ms, Ordering::Relaxed);
    }

    pub(crate) fn at_ms(&self) -> u64 {
        self.at_ms.load(Ordering::Relaxed)
    }

    pub(crate) fn rtt_ms(&self) -> u32 {
        self.rtt_ms.load(Ordering::Relaxed)
    }
}

/// How far the node of a session has come with what changes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Marks {
    /// Of the last change that concerned it; all of them until it was looked at first.
    woken: u64,
    /// Up to here it was looked at what concerns it.
    looked: u64,
    /// Of the last assignment it was sent.
    sent: u64,
    /// What its kernel acts upon.
    through: u64,
}

impl Marks {
    /// Whether it acts upon everything up to `revision` that concerns it. An assignment is one
    /// difference over several revisions, so it counts as a whole.
    fn are_past(&self, revision: u64) -> bool {
        let looked = self.looked >= revision.min(self.woken);
        looked && self.through >= revision.min(self.sent)
    }
}

/// Whether nodes have come as far as somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Past {
    All,
    /// Some have not. Look again when something moved; or then, when one may count for gone.
    NotYet {
        again_ms: Option<u64>,
    },
}

/// Whom the node of a session does not reach, and when it said so; 0: never.
#[derive(Debug, Default, Clone)]
struct Told {
    at_ms: u64,
    cuts: Vec<Cut>,
}

/// Why a manager ends a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Replaced,
    /// This manager has no leader: others may have.
    NoLeader,
    Removed,
}

impl End {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Replaced => "replaced",
            Self::NoLeader => "no leader",
            Self::Removed => "removed",
        }
    }

    /// What the agent is told.
    pub(crate) fn status(self, node: NodeId) -> Status {
        match self {
            Self::Replaced => Status::aborted("the node opened another session"),
            Self::NoLeader => Refusal::unavailable("this manager has no leader").into(),
            Self::Removed => removed(node).into(),
        }
    }
}

/// What the rest of the manager holds of a session.
#[derive(Clone)]
pub(crate) struct Line {
    number: u64,
    life: Life,
    pub(crate) outbox: Outbox,
    pub(crate) pulse: Arc<Pulse>,
    /// Something that concerns this node has changed.
    pub(crate) wake: Arc<Notify>,
    marks: Arc<Mutex<Marks>>,
    cuts: Arc<Mutex<Told>>,
    /// Cancelled when the session is to end, and when it has ended by itself.
    pub(crate) end: CancellationToken,
    why: Arc<OnceLock<End>>,
}

impl Line {
    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What concerns the node was looked at up to `revision`; `sent` is that of the assignment that
    /// it is sent.
    pub(crate) fn looked(&self, revision: u64, sent: Option<u64>) {
        let mut marks = self.marks();
        if marks.woken == u64::MAX {
            marks.woken = revision;
        }
        marks.looked = marks.looked.max(revision);
        marks.sent = sent.unwrap_or(marks.sent);
    }

    /// The node says whom it does not reach.
    pub(crate) fn tell_cuts(&self, cuts: Vec<Cut>, now_ms: u64) {
        let mut told = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        *told = Told { at_ms: now_ms.max(1), cuts };
    }

    /// Ends the session; the first reason counts.
    pub(crate) fn end(&self, why: End) {
        // An error says that there is a reason already.
        let _ = self.why.set(why);
        self.end.cancel();
    }

    pub(crate) fn why(&self) -> Option<End> {
        self.why.get().copied()
    }
}

pub(crate) struct Sessions {
    inner: Mutex<Inner>,
    count: watch::Sender<usize>,
    /// A node came further, or need not any more.
    moved: watch::Sender<()>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self { inner: Mutex::default(), count: watch::channel(0).0, moved: watch::channel(()).0 }
    }
}

#[derive(Default)]
struct Inner {
    opened: u64,
    lines: BTreeMap<NodeId, Line>,
    /// Up to here everybody whom a change concerns was woken.
    woken: u64,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seats a session, heard for the first time at `now_ms`; the node's earlier one is ended.
    ///
    /// # Errors
    /// When another life of the node has the seat and is alive: it is returned.
    pub(crate) fn open(&self, life: Life, outbox: Outbox, now_ms: u64) -> Result<Line, Life> {
        let mut inner = self.lock();
        let node = life.node;
        if let Some(seated) = inner.lines.get(&node) {
            let alive = now_ms.saturating_sub(seated.pulse.at_ms()) < ALIVE_MS;
            if alive && seated.life.instance != life.instance {
                return Err(seated.life.clone());
            }
        }
        inner.opened += 1;
        let line = Line {
            number: inner.opened,
            life,
            outbox,
            pulse: Arc::default(),
            wake: Arc::default(),
            marks: Arc::new(Mutex::new(Marks { woken: u64::MAX, ..Marks::default() })),
            cuts: Arc::default(),
            end: CancellationToken::new(),
            why: Arc::default(),
        };
        line.pulse.beat(now_ms, 0);
        if let Some(earlier) = inner.lines.insert(node, line.clone()) {
            earlier.end(End::Replaced);
        }
        self.count.send_replace(inner.lines.len());
        Ok(line)
    }

    /// Frees the seat, unless a newer session has it.
    pub(crate) fn close(&self, node: NodeId, line: &Line) {
        let mut inner = self.lock();
        if inner.lines.get(&node).is_some_and(|seated| seated.number == line.number) {
            inner.lines.remove(&node);
            self.count.send_replace(inner.lines.len());
            self.moved();
        }
    }

    /// How many there are, whenever that has changed.
    pub(crate) fn count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    pub(crate) fn line(&self, node: NodeId) -> Option<Line> {
        self.lock().lines.get(&node).cloned()
    }

    /// In order of id.
    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        self.lock().lines.keys().copied().collect()
    }

    /// Nodes heard after `after_ms`: when, and how far away they are.
    pub(crate) fn heard_after(&self, after_ms: u64) -> Vec<(NodeId, u64, u32)> {
        let inner = self.lock();
        let pulses = inner.lines.iter().map(|(node, line)| (*node, &line.pulse));
        let heard = pulses.filter(|(_, pulse)| pulse.at_ms() > after_ms);
        heard.map(|(node, pulse)| (node, pulse.at_ms(), pulse.rtt_ms())).collect()
    }

    /// Whom nodes do not reach: of those that said so after `after_ms`, or since `lately_from_ms`, and
    /// of all others that do not reach somebody.
    pub(crate) fn cuts_after(&self, after_ms: u64, lately_from_ms: u64) -> Vec<(NodeId, Vec<Cut>)> {
        let inner = self.lock();
        let told = inner.lines.iter().filter_map(|(node, line)| {
            let told = line.cuts.lock().unwrap_or_else(PoisonError::into_inner);
            let is_new = told.at_ms > after_ms || told.at_ms >= lately_from_ms;
            let tells = told.at_ms > 0 && (is_new || !told.cuts.is_empty());
            tells.then(|| (*node, told.cuts.clone()))
        });
        told.collect()
    }

    /// Wakes those whom what happened up to `revision` concerns.
    pub(crate) fn wake(&self, nodes: impl IntoIterator<Item = NodeId>, revision: u64) {
        let mut inner = self.lock();
        for line in nodes.into_iter().filter_map(|node| inner.lines.get(&node)) {
            line.marks().woken = revision;
            line.wake.notify_one();
        }
        inner.woken = revision;
        drop(inner);
        self.moved();
    }

    pub(crate) fn wake_all(&self, revision: u64) {
        let all = self.nodes();
        self.wake(all, revision);
    }

    /// The node's kernel acts upon the assignment of `revision`.
    pub(crate) fn is_through(&self, line: &Line, revision: u64) {
        line.marks().through = revision;
        self.moved();
    }

    fn moved(&self) {
        if self.moved.receiver_count() > 0 {
            self.moved.send_replace(());
        }
    }

    /// Wakes when [`Sessions::past`] may say something else.
    pub(crate) fn moves(&self) -> watch::Receiver<()> {
        self.moved.subscribe()
    }

    /// Nodes that are heard of and act upon what concerns them up to `revision`.
    pub(crate) fn passed(&self, revision: u64, now_ms: u64) -> Vec<NodeId> {
        let inner = self.lock();
        if inner.woken < revision {
            return Vec::new();
        }
        let passed = inner.lines.iter().filter(|(_, line)| {
            line.pulse.at_ms() + ALIVE_MS > now_ms && line.marks().are_past(revision)
        });
        passed.map(|(node, _)| *node).collect()
    }

    /// Whether all nodes but one act upon what concerns them up to `revision`. Those that are not
    /// heard of are not waited for.
    pub(crate) fn past(&self, but: NodeId, revision: u64, now_ms: u64) -> Past {
        let inner = self.lock();
        if inner.woken < revision {
            return Past::NotYet { again_ms: None };
        }
        let gone_ms = |line: &Line| line.pulse.at_ms() + ALIVE_MS;
        let behind = inner.lines.iter().filter(|(node, line)| {
            **node != but && gone_ms(line) > now_ms && !line.marks().are_past(revision)
        });
        match behind.map(|(_, line)| gone_ms(line)).min() {
            None => Past::All,
            again_ms => Past::NotYet { again_ms },
        }
    }

    /// Ends every session.
    pub(crate) fn end_all(&self, why: End) {
        for line in self.lock().lines.values() {
            line.end(why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Marks as `woken looked sent through`.
    #[track_caller]
    fn check_past(marks: [u64; 4], revision: u64, expected: bool) {
        let [woken, looked, sent, through] = marks;
        let marks = Marks { woken, looked, sent, through };
        assert_eq!(marks.are_past(revision), expected, "{marks:?} {revision}");
    }

    #[test]
    fn a_node_is_past_what_concerns_it() {
        // Nothing concerned it since.
        check_past([5, 5, 5, 5], 9, true);
        check_past([9, 5, 5, 5], 9, false);
        check_past([9, 9, 5, 5], 9, true);
        check_past([9, 9, 9, 5], 9, false);
        check_past([9, 9, 9, 9], 9, true);
        // More has come since, which says nothing of what was asked for.
        check_past([12, 9, 9, 9], 9, true);
        check_past([12, 12, 12, 9], 9, true);
        check_past([12, 12, 12, 5], 9, false);
        // Just opened.
        check_past([u64::MAX, 0, 0, 0], 9, false);
        check_past([u64::MAX, 9, 9, 0], 9, false);
        check_past([u64::MAX, 9, 9, 9], 9, true);
        check_past([12, 9, 9, 9], 11, false);
    }

    #[test]
    fn others_are_waited_for_while_they_are_heard_of() {
        let sessions = Sessions::default();
        let (outbox, _inbox) = mpsc::channel(1);
        let line = sessions.open(life(1), outbox, 100).unwrap();
        let (node, other) = (life(1).node, NodeId::from_bytes([2; 10]));
        let not_yet = |again_ms| Past::NotYet { again_ms };
        assert_eq!(sessions.past(other, 7, 100), not_yet(None), "nobody was woken so far");
        sessions.wake([node], 7);
        assert_eq!(sessions.past(other, 7, 100), not_yet(Some(1100)));
        assert_eq!(sessions.past(node, 7, 100), Past::All);
        assert_eq!(sessions.past(other, 7, 1100), Past::All, "silent");
        line.pulse.beat(1000, 0);
        line.looked(7, Some(7));
        let moves = sessions.moves();
        assert_eq!(sessions.past(other, 7, 1100), not_yet(Some(2000)));
        sessions.is_through(&line, 7);
        assert!(moves.has_changed().unwrap());
        assert_eq!(sessions.past(other, 7, 1100), Past::All);
    }

    fn life(instance: u64) -> Life {
        let node = NodeId::from_bytes([1; 10]);
        Life { node, instance, address: format!("10.0.0.{instance}:1") }
    }

    #[test]
    fn a_newer_session_takes_the_seat() {
        let sessions = Sessions::default();
        let node = life(1).node;
        let (outbox, _inbox) = mpsc::channel(1);
        let first = sessions.open(life(1), outbox.clone(), 0).unwrap();
        let second = sessions.open(life(1), outbox, 0).unwrap();
        assert!(first.end.is_cancelled() && !second.end.is_cancelled());
        assert_eq!((first.why(), second.why()), (Some(End::Replaced), None));
        sessions.close(node, &first);
        assert_eq!(sessions.nodes(), [node]);
        assert_eq!(*sessions.count().borrow(), 1);
        sessions.close(node, &second);
        assert!(sessions.line(node).is_none());
        assert_eq!(*sessions.count().borrow(), 0);
    }

    #[test]
    fn another_life_waits_until_the_seated_one_is_silent() {
        let sessions = Sessions::default();
        let (outbox, _inbox) = mpsc::channel(1);
        let first = sessions.open(life(1), outbox.clone(), 0).unwrap();
        first.pulse.beat(500, 3);
        let seated = sessions.open(life(2), outbox.clone(), 1499).err().unwrap();
        assert_eq!(seated.address, "10.0.0.1:1");
        assert!(!first.end.is_cancelled());
        assert_eq!(sessions.heard_after(499), [(life(1).node, 500, 3)]);
        assert_eq!(sessions.heard_after(500), []);
        sessions.open(life(2), outbox, 1500).unwrap();
        assert_eq!(first.why(), Some(End::Replaced));
        sessions.end_all(End::NoLeader);
        assert_eq!(first.why(), Some(End::Replaced));
        assert_eq!(sessions.line(life(2).node).unwrap().why(), Some(End::NoLeader));
    }
}
