//! Supervised tasks: every one is named, owned and ends.
//!
//! A component owns a [`Tasks`]; what it spawns is cancelled by [`Tasks::stop`]
//! or by dropping the owner. A panic in a task is logged under its name and
//! ends that task alone.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// A group of tasks that end together.
#[derive(Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    pub fn new() -> Self {
        Self::default()
    }

    /// Resolves when the group is asked to stop; for loops that want to end by themselves.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Runs `task` until it ends or the group is asked to stop (it is dropped then, at an await).
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        let guarded = AssertUnwindSafe(task).catch_unwind();
        let run = async move {
            tokio::select! {
                () = stop.cancelled() => {}
                outcome = guarded => if outcome.is_err() {
                    tracing::error!(task = name, "task panicked");
                }
            }
        };
        self.tracker.spawn(run.instrument(tracing::info_span!("task", name)));
    }

    /// Runs `task` to its end: it watches [`Tasks::stopping`] itself and may finish its work.
    pub fn spawn_graceful(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let run = async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                tracing::error!(task = name, "task panicked");
            }
        };
        self.tracker.spawn(run.instrument(tracing::info_span!("task", name)));
    }

    /// Tasks that have not ended.
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }

    /// Asks all to stop and waits at most `grace`; returns whether all ended.
    pub async fn stop(&self, grace: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_end_and_a_panic_stays_alone() {
        let tasks = Tasks::new();
        tasks.spawn("forever", std::future::pending());
        tasks.spawn("bad", async { panic!("on purpose") });
        let stopping = tasks.stopping();
        tasks.spawn_graceful("tidy", async move { stopping.cancelled().await });
        assert_eq!(tasks.len(), 3);
        assert!(tasks.stop(Duration::from_secs(5)).await);
        assert!(tasks.is_empty());
    }
}
