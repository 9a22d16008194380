//! The group of managers as this one knows it: who leads, who is in it, and
//! whether what is read here is current.

use std::collections::{BTreeMap, BTreeSet};

use warren_model::NodeId;

use crate::beats::tell::ALONE_MS;
use crate::core::Core;
use crate::refusal::Refusal;

/// Between looks at the group while somebody waits for it.
const LOOK_MS: u64 = 50;

/// A member of the consensus group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) address: String,
    pub(crate) voter: bool,
    /// Has what a voter needs, as far as the leader knows; others know nothing.
    pub(crate) caught_up: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) leader: Option<u64>,
    /// By number.
    pub(crate) members: BTreeMap<u64, Member>,
}

impl Group {
    pub(crate) fn voters(&self) -> BTreeSet<u64> {
        let voters = self.members.iter().filter(|(_, member)| member.voter);
        voters.map(|(number, _)| *number).collect()
    }
}

pub(crate) fn own_number(core: &Core) -> u64 {
    core.store.status().number
}

pub(crate) fn group(core: &Core) -> Group {
    let status = core.store.status();
    let member = |voter: bool, number: u64, address: &str| {
        // Who leads has everything that it has.
        let caught_up = number == status.number || status.caught_up(number);
        (number, Member { address: address.to_owned(), voter, caught_up })
    };
    let voters = status.voters.iter().map(|(number, address)| member(true, *number, address));
    let learners = status.learners.iter().map(|(number, address)| member(false, *number, address));
    Group { leader: status.leader, members: voters.chain(learners).collect() }
}

/// Until the group is as wanted, looked at every [`LOOK_MS`]: consensus does not tell of itself,
/// and who waits is a person.
pub(crate) async fn until(core: &Core, reached: impl Fn(&Group) -> bool) {
    while !reached(&group(core)) {
        core.clock.sleep(LOOK_MS).await;
    }
}

/// All other managers that the state knows, the leader first, those that are down last.
pub(crate) fn others(core: &Core) -> Vec<(u64, String)> {
    let view = core.store.view();
    let leader = group(core).leader;
    let mut others: Vec<(bool, bool, u64, String)> = view
        .nodes()
        .filter(|node| node.manager && node.id != core.node_id)
        .filter(|node| !node.description.address.is_empty())
        .filter_map(|node| {
            let number = node.number?;
            let down = node.status == warren_model::node::NodeStatus::Down;
            Some((down, leader != Some(number), number, node.description.address.clone()))
        })
        .collect();
    others.sort();
    others.into_iter().map(|(_, _, number, address)| (number, address)).collect()
}

/// Nodes that are managers alone, heard by consensus as nobody else hears them, and how long ago.
/// At the leader.
pub(crate) fn heard(core: &Core) -> Vec<(NodeId, u64)> {
    let (view, status) = (core.store.view(), core.store.status());
    let own = std::iter::once((status.number, 0));
    let others = status.progress.iter().filter_map(|(number, p)| Some((*number, p.silent_ms?)));
    own.chain(others)
        .filter_map(|(number, silent_ms)| Some((view.node_by_number(number)?, silent_ms)))
        .filter(|(node, _)| !node.worker)
        .map(|(node, silent_ms)| (node.id, silent_ms))
        .collect()
}

/// For how long this manager has had no leader; 0 with one.
pub(crate) fn stale_ms(core: &Core) -> u64 {
    if in_contact(core) {
        return 0;
    }
    // Never heard one: as stale as can be told.
    core.store.status().last_contact_ms.unwrap_or(ALONE_MS).max(ALONE_MS)
}

/// Whether this manager leads a majority or hears its leader.
pub(crate) fn in_contact(core: &Core) -> bool {
    *core.store.in_touch().borrow()
}

/// Waits until this manager neither leads a majority nor hears its leader.
pub(crate) async fn lost(core: &Core) {
    // Ended: it will never be in contact again.
    let _ = core.store.in_touch().wait_for(|in_touch| !*in_touch).await;
}

/// Waits until this manager has applied everything that was acknowledged before the call.
pub(crate) async fn barrier(core: &Core) -> Result<(), Refusal> {
    let reached = core.store.read_barrier().await;
    reached.map_err(|error| Refusal::of_propose(&core.store.view(), error))
}
