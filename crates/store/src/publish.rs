//! What readers see: the state after the last applied entry, its revision, its events.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use warren_model::Event;
use warren_state::State;

use crate::ring::{Resync, Ring};

/// One writer, the state machine; any number of readers, who never wait for it.
pub(crate) struct Published {
    view: ArcSwap<State>,
    ring: Mutex<Ring>,
    revision: watch::Sender<u64>,
}

impl Published {
    pub(crate) fn new(state: State) -> Self {
        let revision = state.revision();
        Self {
            view: ArcSwap::from_pointee(state),
            ring: Mutex::new(Ring::new(revision)),
            revision: watch::Sender::new(revision),
        }
    }

    pub(crate) fn view(&self) -> Arc<State> {
        self.view.load_full()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    pub(crate) fn events_after(&self, revision: u64) -> Result<Vec<Event>, Resync> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).after(revision)
    }

    /// View first, then events, then the call: who is called finds both.
    pub(crate) fn publish(&self, state: State, events: Vec<Event>) {
        let revision = state.revision();
        self.view.store(Arc::new(state));
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).push(revision, events);
        self.revision.send_if_modified(|known| std::mem::replace(known, revision) != revision);
    }

    /// A state from elsewhere: what happened in between is not known.
    pub(crate) fn replace(&self, state: State) {
        let revision = state.revision();
        self.view.store(Arc::new(state));
        *self.ring.lock().unwrap_or_else(PoisonError::into_inner) = Ring::new(revision);
        self.revision.send_if_modified(|known| std::mem::replace(known, revision) != revision);
    }
}
