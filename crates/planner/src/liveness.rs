//! Whether nodes are heard of: connected is ready, silent for a while is down.
//!
//! Only transitions are written. A leader declares nobody down before it has
//! itself observed for a whole window: what its predecessor heard is lost.

use warren_model::node::NodeStatus;
use warren_state::change::Mutation;

use crate::Beats;
use crate::draft::Draft;

/// Silence after which a node counts as down.
pub const SUSPICION_MS: u64 = 5_000;

pub(crate) fn judge(draft: &mut Draft<'_>, beats: &Beats) {
    for at in 0..draft.nodes.len() {
        let site = draft.nodes.site(at);
        let id = site.node.id;
        let status = if beats.connected.contains(&id) {
            NodeStatus::Ready
        } else if site.status == NodeStatus::Down {
            NodeStatus::Down
        } else {
            let heard = beats.last_seen.get(&id).map_or(beats.since, |seen| beats.since.max(*seen));
            // Later than the window, not at its end.
            let deadline = heard.plus_ms(SUSPICION_MS + 1);
            if draft.now < deadline {
                draft.wake(Some(deadline));
                NodeStatus::Ready
            } else {
                NodeStatus::Down
            }
        };
        if draft.nodes.site(at).status != status && draft.room(1) {
            draft.nodes.set_status(at, status);
            draft.push(Mutation::SetNodeStatus { id, status });
        }
    }
}
