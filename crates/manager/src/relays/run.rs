//! Has it carried out what [`super::decide`] says, as long as this manager leads.

use std::collections::BTreeMap;
use std::sync::Arc;

use warren_model::NodeId;
use warren_model::node::Relay;
use warren_state::change::{Mutation, Transaction};

use super::{Look, decide, kept};
use crate::core::Core;

/// Of one transaction.
const CHANGES_MAX: usize = 256;
/// After one that was refused.
const AGAIN_MS: u64 = 500;

/// One term. What nodes said before is heard again from the managers that have their sessions.
pub(crate) async fn run(core: Arc<Core>) {
    core.cuts.turn_page();
    for (node, cuts) in core.sessions.cuts_after(0, 0) {
        core.cuts.tell(node, cuts);
    }
    let mut moved = core.store.watch();
    let mut told = core.cuts.watch();
    loop {
        moved.mark_unchanged();
        told.mark_unchanged();
        let (view, now_ms) = (core.store.view(), core.clock.monotonic_ms());
        let read = core.cuts.read(&view, now_ms);
        let changes = decide(&Look { view: &view, told: &read.told, failed: &read.failed });
        core.metrics.relays.set(i64::try_from(kept(&view).len()).unwrap_or(i64::MAX));
        let mut wake_ms = read.wake_ms;
        if !changes.is_empty() {
            if propose(&core, changes).await {
                continue;
            }
            wake_ms = Some(now_ms + AGAIN_MS);
        }
        // Of the state nodes alone matter, of all others what they say.
        let nodes_moved = async {
            while core.store.view().nodes_since(&view).is_empty() {
                if moved.changed().await.is_err() {
                    return false;
                }
            }
            true
        };
        tokio::select! {
            goes_on = nodes_moved => if !goes_on { return },
            _ = told.changed() => {}
            () = core.sleep_until(wake_ms) => {}
        }
    }
}

/// Says whether it is so now.
async fn propose(core: &Core, changes: BTreeMap<NodeId, Vec<Relay>>) -> bool {
    for (id, relays) in &changes {
        tracing::info!(node_id = %id, ?relays, "nodes that do not reach each other");
    }
    let mutations = changes.into_iter().map(|(id, relays)| Mutation::SetRelays { id, relays });
    let mutations = mutations.take(CHANGES_MAX).collect();
    let transaction = Transaction { mutations, ..Transaction::default() };
    match core.store.propose_here(transaction).await {
        Ok(_) => true,
        Err(error) => {
            tracing::warn!(%error, "propose who passes on for whom");
            false
        }
    }
}
