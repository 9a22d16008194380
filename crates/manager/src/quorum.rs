//! The group of managers as this one knows it: who leads, who is in it, and
//! whether what is read here is current.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::watch;
use crate::beats::tell::ALONE_MS;
use crate::core::Core;
use crate::refusal::Refusal;

/// A member of the consensus group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) address: String,
    pub(crate) voter: bool,
    /// Entries that it lacks, as far as the leader knows; others know nothing.
    pub(crate) behind: Option<u64>,
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
    let member = |voter: bool| {
        move |(number, peer): (&u64, &warren_store::MemberStatus)| {
            let behind = peer.matched.map(|matched| status.last_log.saturating_sub(matched));
            (*number, Member { address: peer.address.clone(), voter, behind })
        }
    };
    let voters = status.voters.iter().map(member(true));
    Group {
        leader: status.leader,
        members: voters.chain(status.learners.iter().map(member(false))).collect(),
    }
}

/// Wakes when leader or members have changed.
pub(crate) fn watch(core: &Core) -> watch::Receiver<u64> {
    core.store.group_watch()
}

/// Until the group is as wanted; false if the store has ended before.
pub(crate) async fn until(core: &Core, reached: impl Fn(&Group) -> bool) -> bool {
    let mut moved = watch(core);
    loop {
        moved.mark_unchanged();
        if reached(&group(core)) {
            return true;
        }
        if moved.changed().await.is_err() {
            return false;
        }
    }
}

/// The leader and where it is, unless it is this manager.
pub(crate) fn leader_of_others(core: &Core) -> Option<(u64, String)> {
    let group = group(core);
    let number = group.leader.filter(|number| *number != own_number(core))?;
    let view = core.store.view();
    let address = match view.node_by_number(number) {
        Some(node) if !node.description.address.is_empty() => node.description.address.clone(),
        // It leads, but the state here does not know it yet.
        Some(_) | None => group.members.get(&number)?.address.clone(),
    };
    Some((number, address))
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

/// For how long this manager has had no leader; 0 with one.
pub(crate) fn stale_ms(core: &Core) -> u64 {
    if *core.store.leader().borrow() {
        return 0;
    }
    let silent_ms = core.store.status().last_contact_ms;
    if silent_ms > ALONE_MS { silent_ms } else { 0 }
}

/// Whether this manager leads or hears its leader.
pub(crate) fn in_contact(core: &Core) -> bool {
    let leads = *core.store.leader().borrow();
    leads || (core.store.status().leader.is_some() && stale_ms(core) == 0)
}

/// Waits until this manager has applied everything that was acknowledged before the call.
pub(crate) async fn barrier(core: &Core) -> Result<(), Refusal> {
    let reached = core.store.read_barrier().await;
    reached.map_err(|error| Refusal::of_propose(&core.store.view(), error))
}
