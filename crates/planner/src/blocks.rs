//! Every node has a block of addresses, whether or not it ever runs a container.
//!
//! Others know it by that: without one it has no number, no address on the
//! overlay, and answers no published port of containers elsewhere.
//!
//! Not here: further blocks, which come with a placement (`place`).

use warren_state::change::Mutation;

use crate::draft::Draft;

/// Grants a block to each node that has none, while there are some.
pub(crate) fn grant_first(draft: &mut Draft<'_>) {
    for at in 0..draft.nodes.len() {
        if !draft.nodes.site(at).node.blocks.is_empty() {
            continue;
        }
        if !draft.room(1) {
            return;
        }
        let Some(block) = draft.nodes.grant(draft.cluster, at) else { return };
        let id = draft.nodes.site(at).node.id;
        draft.push(Mutation::GrantBlock { id, block });
    }
}
