//! Reports of all agents on their way into one transaction.
//!
//! Pure. The first report goes at once; what comes within [`GAP_MS`] of the
//! last write goes together. Of a task only the latest status counts, so what
//! waits here is never more than there are tasks.

use std::collections::BTreeMap;

use warren_model::task::TaskStatus;
use warren_model::{NodeId, TaskId};
use warren_state::change::Mutation;
use warren_state::is_news;

/// Least time between two writes of reports. Long enough to take what a burst of starts brings,
/// too short for people to notice.
pub(crate) const GAP_MS: u64 = 20;
/// Reports in one transaction: half of what the state takes, as for plans.
pub(crate) const BATCH_MAX: usize = 1000;

#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// By node too: a report from the wrong node must not hide the right one.
    latest: BTreeMap<(TaskId, NodeId), TaskStatus>,
    /// Nothing is due before.
    not_before_ms: u64,
}

impl Batch {
    pub(crate) fn put(&mut self, node: NodeId, task: TaskId, status: TaskStatus) {
        // What comes by a session that has ended may be the earlier one.
        let known = self.latest.get(&(task, node));
        if known.is_none_or(|known| is_news(known, &status)) {
            self.latest.insert((task, node), status);
        }
    }

    /// When [`Batch::take`] should be called.
    pub(crate) fn due_at_ms(&self) -> Option<u64> {
        (!self.latest.is_empty()).then_some(self.not_before_ms)
    }

    /// The next transaction's worth of reports.
    pub(crate) fn take(&mut self, now_ms: u64) -> Vec<Mutation> {
        let rest = match self.latest.keys().nth(BATCH_MAX).copied() {
            Some(first_left) => self.latest.split_off(&first_left),
            None => BTreeMap::new(),
        };
        let taken = std::mem::replace(&mut self.latest, rest);
        // A full batch is no burst that might still grow: the rest follows at once.
        self.not_before_ms = if self.latest.is_empty() { now_ms + GAP_MS } else { now_ms };
        taken
            .into_iter()
            .map(|((id, node), status)| Mutation::ReportTask { id, node, status })
            .collect()
    }

    /// Takes back what could not be written, unless newer reports came; nothing is due for a while.
    pub(crate) fn put_back(&mut self, mutations: Vec<Mutation>, not_before_ms: u64) {
        for mutation in mutations {
            if let Mutation::ReportTask { id, node, status } = mutation {
                self.latest.entry((id, node)).or_insert(status);
            }
        }
        self.not_before_ms = self.not_before_ms.max(not_before_ms);
    }
}

#[cfg(test)]
mod tests {
    use warren_model::Time;
    use warren_model::task::TaskState;

    use super::*;

    fn task(n: u16) -> TaskId {
        let mut bytes = [0; 10];
        bytes[..2].copy_from_slice(&n.to_be_bytes());
        TaskId::from_bytes(bytes)
    }

    fn status(state: TaskState) -> TaskStatus {
        TaskStatus::new(state, Time(1))
    }

    fn show(mutations: &[Mutation]) -> String {
        let one = |mutation: &Mutation| match mutation {
            Mutation::ReportTask { id, status, .. } => {
                format!("{}:{}", id.as_bytes()[1], status.state.as_str())
            }
            other => format!("{other:?}"),
        };
        mutations.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn first_at_once_then_together() {
        let node = NodeId::from_bytes([9; 10]);
        let mut batch = Batch::default();
        assert_eq!(batch.due_at_ms(), None);
        batch.put(node, task(1), status(TaskState::Starting));
        assert_eq!(batch.due_at_ms(), Some(0));
        assert_eq!(show(&batch.take(100)), "1:starting");
        batch.put(node, task(2), status(TaskState::Starting));
        batch.put(node, task(1), status(TaskState::Running));
        batch.put(node, task(2), status(TaskState::Running));
        assert_eq!(batch.due_at_ms(), Some(120));
        assert_eq!(show(&batch.take(120)), "1:running 2:running");
        assert_eq!(batch.due_at_ms(), None);
    }

    #[test]
    fn what_failed_waits_and_yields_to_newer() {
        let node = NodeId::from_bytes([9; 10]);
        let mut batch = Batch::default();
        batch.put(node, task(1), status(TaskState::Starting));
        batch.put(node, task(2), status(TaskState::Starting));
        let taken = batch.take(0);
        batch.put(node, task(1), status(TaskState::Running));
        batch.put_back(taken, 100);
        assert_eq!(batch.due_at_ms(), Some(100));
        assert_eq!(show(&batch.take(100)), "1:running 2:starting");
    }

    #[test]
    fn more_than_a_batch_goes_in_turns() {
        let node = NodeId::from_bytes([9; 10]);
        let mut batch = Batch::default();
        for n in 0..2500 {
            batch.put(node, task(n), status(TaskState::Running));
        }
        let sizes: Vec<usize> = std::iter::from_fn(|| {
            batch.due_at_ms().filter(|due| *due <= 50)?;
            Some(batch.take(50).len())
        })
        .collect();
        assert_eq!(sizes, [1000, 1000, 500]);
    }
}
