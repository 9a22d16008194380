//! Wakes the sessions that a change of the state concerns, and no others.

use std::sync::Arc;

use warren_state::State;

use crate::core::Core;
use crate::dispatch::assign::{Touched, touched};

/// Runs until the store goes away. `seen` is the state that no open session is behind of.
pub(crate) async fn run(core: Arc<Core>, mut seen: Arc<State>) {
    let mut moved = core.store.watch();
    loop {
        let view = core.store.view();
        if view.revision() != seen.revision() {
            // The view may be there a moment before its events are.
            if moved.wait_for(|revision| *revision >= view.revision()).await.is_err() {
                return;
            }
            let events = core.store.events_after(seen.revision()).ok();
            match touched(&seen, &view, events.as_deref()) {
                Touched::Everyone => core.sessions.wake_all(view.revision()),
                Touched::Nodes(nodes) => core.sessions.wake(nodes, view.revision()),
            }
            seen = view;
        }
        if moved.changed().await.is_err() {
            return;
        }
    }
}
