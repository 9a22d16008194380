//! A manager that was started with another address says so.
//!
//! Its agent would say it too, but a node that is a manager alone has none. Ends
//! once the state says what is true, and looks again whenever nodes change: a
//! node that was just taken in is not in the state yet.

use std::sync::Arc;

use warren_model::node::Description;
use warren_state::change::{Mutation, Transaction};

use crate::core::Core;

/// Pause after a write that was not taken: there may be no leader yet.
const RETRY_MS: u64 = 1000;

/// Runs until it is written.
pub(crate) async fn run(core: Arc<Core>) {
    if core.advertise.is_empty() {
        return;
    }
    let mut moved = core.store.watch();
    loop {
        let view = core.store.view();
        match view.node(core.node_id) {
            Some(node) if node.description.address == core.advertise => return,
            Some(node) => {
                let description =
                    Description { address: core.advertise.clone(), ..node.description.clone() };
                let mutation = Mutation::DescribeNode { id: node.id, description };
                let transaction =
                    Transaction { mutations: vec![mutation], ..Transaction::default() };
                if let Err(error) = core.store.propose(transaction).await {
                    tracing::warn!(%error, address = core.advertise, "tell others where we are");
                    core.clock.sleep(RETRY_MS).await;
                }
            }
            None => {
                if moved.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}
