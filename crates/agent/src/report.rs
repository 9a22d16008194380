//! What managers still have to hear: the latest status of each task, coalesced.
//!
//! Pure. What people wait for (running, ended, draining) is due at once; what
//! will be overtaken within milliseconds (preparing, starting, not healthy yet) only if it still
//! stands after [`LAZY_MS`]: a task that starts from a present image costs one
//! report, not three. A task is reported at most once in [`GAP_MS`], so a crash
//! loop costs bounded work upstream.

use std::collections::BTreeMap;

use warren_model::TaskId;
use warren_model::health::HealthState;
use warren_model::task::{TaskState, TaskStatus};

/// Longer than a start with the image present takes, too short to be felt by people who watch.
const LAZY_MS: u64 = 40;
/// Least time between two reports of one task; managers batch for about as long anyway.
const GAP_MS: u64 = 20;
/// Statuses in one message: about 60 KiB.
pub const BATCH_MAX: usize = 1000;

#[derive(Debug, Default)]
pub struct Outbox {
    /// Not sent yet, with the moment it is due.
    dirty: BTreeMap<TaskId, (u64, TaskStatus)>,
    /// When a task was last reported; only while that still matters.
    sent_at: BTreeMap<TaskId, u64>,
    /// How far this node has come, to be told.
    through: Option<u64>,
}

impl Outbox {
    /// A status to be reported; replaces an earlier one of the task.
    pub fn put(&mut self, task: TaskId, status: TaskStatus, now_ms: u64) {
        let begins = status.health.is_some_and(|health| health.state == HealthState::Starting);
        let lazy = match status.state {
            TaskState::Running if begins => LAZY_MS,
            TaskState::Pending
            | TaskState::Assigned
            | TaskState::Preparing
            | TaskState::Starting
            | TaskState::Stopping => LAZY_MS,
            TaskState::Running
            | TaskState::Draining
            | TaskState::Complete
            | TaskState::Failed
            | TaskState::Rejected
            | TaskState::Removed => 0,
        };
        let after_gap = self.sent_at.get(&task).map_or(0, |at| at + GAP_MS);
        let due = (now_ms + lazy).max(after_gap);
        // A later lazy status must not put off what is due already.
        let due =
            self.dirty.get(&task).map_or(due, |(earlier, _)| due.min(*earlier).max(after_gap));
        self.dirty.insert(task, (due, status));
    }

    /// The kernel acts upon the set of this revision: others wait for it.
    pub fn through(&mut self, revision: u64) {
        self.through = Some(revision);
    }

    /// The last such revision that was not told yet.
    pub fn take_through(&mut self) -> Option<u64> {
        self.through.take()
    }

    /// A status that the managers may have heard, in a session that was lost: not urgent, since
    /// a complete assignment says soon what they know.
    pub fn repeat(&mut self, task: TaskId, status: TaskStatus, now_ms: u64) {
        self.dirty.insert(task, (now_ms + LAZY_MS, status));
    }

    /// Nothing about this task is to be said any more.
    pub fn forget(&mut self, task: TaskId) {
        self.dirty.remove(&task);
        self.sent_at.remove(&task);
    }

    /// Forgets what was not sent.
    pub fn clear(&mut self) {
        self.dirty.clear();
    }

    pub fn due_at(&self) -> Option<u64> {
        if self.through.is_some() {
            return Some(0);
        }
        self.dirty.values().map(|(due, _)| *due).min()
    }

    /// What is due, oldest tasks first, at most [`BATCH_MAX`].
    pub fn take(&mut self, now_ms: u64) -> Vec<(TaskId, TaskStatus)> {
        self.sent_at.retain(|_, at| *at + GAP_MS > now_ms);
        let due: Vec<TaskId> = self
            .dirty
            .iter()
            .filter(|(_, (due, _))| *due <= now_ms)
            .map(|(task, _)| *task)
            .take(BATCH_MAX)
            .collect();
        due.into_iter()
            .filter_map(|task| {
                let (_, status) = self.dirty.remove(&task)?;
                self.sent_at.insert(task, now_ms);
                Some((task, status))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use warren_model::quantity::Time;

    use super::*;

    /// `a:running@5` puts, `take@5` takes and prints, `due` prints when.
    #[track_caller]
    fn check(script: &str, expected: &str) {
        let mut outbox = Outbox::default();
        let mut out = Vec::new();
        for word in script.split_whitespace() {
            if word == "due" {
                out.push(outbox.due_at().map_or_else(|| "never".to_owned(), |at| at.to_string()));
                continue;
            }
            let (what, at) = word.split_once('@').unwrap();
            let at = at.parse().unwrap();
            if what == "take" {
                let taken = outbox.take(at);
                let name = |id: &TaskId| char::from(id.as_bytes()[0]);
                let text = taken.iter().map(|(id, s)| format!("{}:{}", name(id), s.state.as_str()));
                out.push(format!("[{}]", text.collect::<Vec<_>>().join(" ")));
                continue;
            }
            let (task, state) = what.split_once(':').unwrap();
            let id = TaskId::from_bytes([task.as_bytes()[0]; 10]);
            let state = TaskState::ALL.into_iter().find(|s| s.as_str() == state).unwrap();
            outbox.put(id, TaskStatus::new(state, Time(at)), at);
        }
        assert_eq!(out.join(" "), expected);
    }

    #[test]
    fn running_goes_at_once_and_swallows_what_led_to_it() {
        check(
            "a:preparing@0 due a:starting@3 a:running@5 due take@5 due",
            "40 5 [a:running] never",
        );
        check("a:preparing@0 take@5 a:starting@30 due take@40", "[] 40 [a:starting]");
    }

    #[test]
    fn one_report_a_task_in_a_while() {
        check(
            "a:running@0 take@0 a:running@1 due b:running@1 take@1 take@20",
            "[a:running] 20 [b:running] [a:running]",
        );
        check("a:running@0 take@0 a:preparing@1 a:running@2 due", "[a:running] 20");
        check("a:running@0 a:preparing@1 due take@1", "0 [a:preparing]");
    }
}
