//! What a node is told of the cluster and of its own place in it.
//!
//! Pure. Sent complete with the first assignment, and again whenever it
//! changed; told apart by what it is made of, so that a look at a thousand
//! sessions parses no certificate.

use warren_model::NodeId;
use warren_model::node::Forgotten;
use warren_proto::v1;
use warren_state::State;
use warren_trust::Bundle;

/// Time between beats of a node, in a cluster of up to [`BEAT_NODES`].
const BEAT_MS: u64 = 500;
/// A single node tells itself alone.
const ALONE_BEAT_MS: u32 = 1_000;
/// Larger clusters beat more slowly, so that the leader hears as many beats a second.
const BEAT_NODES: u64 = 500;
/// Steps of the interval: not every node that joins is told to all others.
const BEAT_STEP_MS: u64 = 100;

/// How often nodes of a cluster of that size say that they are there.
pub(crate) fn beat_ms(nodes: usize) -> u32 {
    if nodes == 1 {
        return ALONE_BEAT_MS;
    }
    let nodes = u64::try_from(nodes).unwrap_or(u64::MAX);
    let ms = (BEAT_MS * nodes).div_ceil(BEAT_NODES).max(BEAT_MS);
    u32::try_from(ms.next_multiple_of(BEAT_STEP_MS)).unwrap_or(u32::MAX)
}

/// Where managers can be reached, in order of node.
pub(crate) fn managers(view: &State) -> Vec<String> {
    let managers = view.nodes().filter(|node| node.manager);
    let addresses = managers.map(|node| node.description.address.clone());
    addresses.filter(|address| !address.is_empty()).collect()
}

/// What all nodes are told alike.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Common<'a> {
    epoch: u64,
    managers: Vec<String>,
    beat_ms: u32,
    authorities: &'a [Vec<u8>],
    certificate_lifetime_ms: u64,
}

pub(crate) fn common(view: &State) -> Option<Common<'_>> {
    let cluster = view.cluster()?;
    Some(Common {
        epoch: cluster.epoch,
        managers: managers(view),
        beat_ms: beat_ms(view.nodes().len()),
        authorities: cluster.ca.as_ref().map_or(&[], |ca| &ca.certificates),
        certificate_lifetime_ms: cluster.certificate_lifetime_ms,
    })
}

/// What it alone is told.
#[derive(Debug, PartialEq, Eq)]
struct Own {
    manager: bool,
    worker: bool,
    number: Option<u64>,
    forgotten: Option<Forgotten>,
}

fn own(view: &State, node: NodeId) -> Option<Own> {
    view.node(node).map(|node| Own {
        manager: node.manager,
        worker: node.worker,
        number: node.number,
        forgotten: node.forgotten,
    })
}

/// What `node` is told; nothing before the cluster has settings.
pub(crate) fn of(view: &State, node: NodeId) -> Option<v1::Membership> {
    let common = common(view)?;
    let Own { manager, worker, number, forgotten } = own(view, node)?;
    // Checked when it was written: nobody but a manager makes an authority.
    let issuer = Bundle::new(common.authorities).map(|bundle| bundle.issuer_hash());
    Some(v1::Membership {
        epoch: common.epoch,
        managers: common.managers,
        manager,
        number,
        beat_ms: common.beat_ms,
        authorities: common.authorities.to_vec(),
        issuer_hash: issuer.map(|hash| hash.to_vec()).unwrap_or_default(),
        certificate_lifetime_ms: common.certificate_lifetime_ms,
        worker,
        forgotten: forgotten.map(Into::into),
    })
}

/// The same if it has changed.
pub(crate) fn changed(old: &State, new: &State, node: NodeId) -> Option<v1::Membership> {
    if old.topology() == new.topology() {
        return None;
    }
    let same = own(old, node) == own(new, node) && common(old) == common(new);
    if same { None } else { of(new, node) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_clusters_beat_more_slowly() {
        let got = [0, 1, 2, 500, 501, 600, 1000, 5000].map(beat_ms);
        assert_eq!(got, [500, 1000, 500, 500, 600, 600, 1000, 5000]);
    }
}
