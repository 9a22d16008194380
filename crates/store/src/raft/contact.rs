//! When this member last heard from its leader.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

#[derive(Default)]
pub(super) struct Contact {
    last: Mutex<Option<Instant>>,
    /// Woken when a leader is heard again that was not.
    heard: Notify,
}

impl Contact {
    /// The leader spoke.
    pub(super) fn touch(&self) {
        let now = Instant::now();
        let before = self.last.lock().unwrap_or_else(PoisonError::into_inner).replace(now);
        if before.is_none_or(|before| now - before >= super::follow::SILENCE_MAX) {
            self.heard.notify_one();
        }
    }

    pub(super) fn last(&self) -> Option<Instant> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn heard(&self) {
        self.heard.notified().await;
    }
}
