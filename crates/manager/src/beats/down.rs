//! Since when the state says that a node is down, by this manager's own clock.
//!
//! Every manager looks, whoever leads: the next leader goes on with waits that
//! the last one began, without comparing the clocks of two machines. A manager
//! that starts knows of nothing before that moment, so it errs towards waiting.
//! A node that changed in any way meanwhile may have come and gone: its time
//! begins anew.
//!
//! Not here: what follows from it (the planner).

use std::collections::BTreeMap;
use std::sync::Arc;

use warren_model::NodeId;
use warren_model::node::NodeStatus;
use warren_state::State;

use crate::core::Core;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Down {
    /// Of the node: another one, and it is another silence.
    revision: u64,
    at_ms: u64,
}

#[derive(Debug, Default)]
pub(super) struct Downs {
    topology: Option<u64>,
    nodes: BTreeMap<NodeId, Down>,
}

impl Downs {
    pub(super) fn look(&mut self, view: &State, mono_ms: u64) {
        if self.topology == Some(view.topology()) {
            return;
        }
        self.topology = Some(view.topology());
        let before = std::mem::take(&mut self.nodes);
        let down = view.nodes().filter(|node| node.status == NodeStatus::Down);
        let since = down.map(|node| {
            let known = before.get(&node.id).filter(|down| down.revision == node.revision);
            let fresh = Down { revision: node.revision, at_ms: mono_ms };
            (node.id, known.copied().unwrap_or(fresh))
        });
        self.nodes = since.collect();
    }

    /// Nodes that were down by then, and since when.
    pub(super) fn before(&self, mono_ms: u64) -> impl Iterator<Item = (NodeId, u64)> + '_ {
        let down = self.nodes.iter().filter(move |(_, down)| down.at_ms <= mono_ms);
        down.map(|(node, down)| (*node, down.at_ms))
    }
}

/// Looks whenever the state moved, until the store goes away.
pub(crate) async fn run(core: Arc<Core>) {
    let mut moved = core.store.watch();
    loop {
        moved.mark_unchanged();
        core.beats.look(&core.store.view(), core.clock.monotonic_ms());
        if moved.changed().await.is_err() {
            return;
        }
    }
}
