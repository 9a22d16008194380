//! Which agents are connected to this manager, and how to reach each.
//!
//! One session per node: a newer one takes the place of the older, which is a
//! leftover of a connection that its agent gave up already.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use warren_model::NodeId;
use warren_proto::v1;

/// Messages on their way to an agent.
pub(crate) type Outbox = mpsc::Sender<Result<v1::ManagerMessage, Status>>;

/// What the rest of the manager holds of a session.
#[derive(Clone)]
pub(crate) struct Line {
    number: u64,
    pub(crate) outbox: Outbox,
    /// Something that concerns this node has changed.
    pub(crate) wake: Arc<Notify>,
    /// Ends the session; cancelled as well when it ended by itself.
    pub(crate) end: CancellationToken,
}

#[derive(Default)]
pub(crate) struct Sessions {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    opened: u64,
    lines: BTreeMap<NodeId, Line>,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seats a session; the node's earlier one is ended.
    pub(crate) fn open(&self, node: NodeId, outbox: Outbox) -> Line {
        let mut inner = self.lock();
        inner.opened += 1;
        let line = Line {
            number: inner.opened,
            outbox,
            wake: Arc::default(),
            end: CancellationToken::new(),
        };
        if let Some(earlier) = inner.lines.insert(node, line.clone()) {
            earlier.end.cancel();
        }
        line
    }

    /// Frees the seat, unless a newer session has it. Says whether the node is without one now.
    pub(crate) fn close(&self, node: NodeId, line: &Line) -> bool {
        let mut inner = self.lock();
        let current = inner.lines.get(&node).is_some_and(|seated| seated.number == line.number);
        if current {
            inner.lines.remove(&node);
        }
        current
    }

    pub(crate) fn line(&self, node: NodeId) -> Option<Line> {
        self.lock().lines.get(&node).cloned()
    }

    /// In order of id.
    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        self.lock().lines.keys().copied().collect()
    }

    pub(crate) fn wake(&self, nodes: impl IntoIterator<Item = NodeId>) {
        let inner = self.lock();
        for line in nodes.into_iter().filter_map(|node| inner.lines.get(&node)) {
            line.wake.notify_one();
        }
    }

    pub(crate) fn wake_all(&self) {
        for line in self.lock().lines.values() {
            line.wake.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_session_takes_the_seat() {
        let sessions = Sessions::default();
        let node = NodeId::from_bytes([1; 10]);
        let (outbox, _inbox) = mpsc::channel(1);
        let first = sessions.open(node, outbox.clone());
        let second = sessions.open(node, outbox);
        assert!(first.end.is_cancelled() && !second.end.is_cancelled());
        assert!(!sessions.close(node, &first));
        assert_eq!(sessions.nodes(), [node]);
        assert!(sessions.close(node, &second));
        assert!(sessions.line(node).is_none());
    }
}
