//! Whom nodes do not reach, as they told the leader or another manager. In memory alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use warren_model::NodeId;
use warren_proto::v1;
use warren_state::State;

use super::{Cut, Ends, kept};

/// Nodes of one report. Who reaches fewer than all but so many is not helped by relays.
pub(crate) const CUTS_MAX: usize = 256;
/// Who carried nothing for a pair is not chosen for it again for so long.
const FAILED_MS: u64 = 30_000;

pub(crate) struct CutBook {
    page: Mutex<Page>,
    moved: watch::Sender<()>,
}

#[derive(Default)]
struct Page {
    told: BTreeMap<NodeId, Vec<Cut>>,
    /// Until when.
    failed: BTreeMap<(Ends, NodeId), u64>,
}

impl Default for CutBook {
    fn default() -> Self {
        Self { page: Mutex::default(), moved: watch::channel(()).0 }
    }
}

/// What the leader looks at.
pub(crate) struct Read {
    pub(crate) told: BTreeMap<NodeId, Vec<Cut>>,
    pub(crate) failed: BTreeSet<(Ends, NodeId)>,
    /// When somebody may be chosen again.
    pub(crate) wake_ms: Option<u64>,
}

impl CutBook {
    fn page(&self) -> MutexGuard<'_, Page> {
        self.page.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes when a node says something else than before.
    pub(crate) fn watch(&self) -> watch::Receiver<()> {
        self.moved.subscribe()
    }

    /// A node says whom it does not reach: all of them.
    pub(crate) fn tell(&self, node: NodeId, cuts: Vec<Cut>) {
        let mut page = self.page();
        if page.told.get(&node) != Some(&cuts) {
            page.told.insert(node, cuts);
            drop(page);
            self.moved.send_replace(());
        }
    }

    /// Whoever led before has heard what this one has not.
    pub(crate) fn turn_page(&self) {
        *self.page() = Page::default();
    }

    /// What was told of members.
    pub(crate) fn read(&self, view: &State, now_ms: u64) -> Read {
        let mut page = self.page();
        page.told.retain(|node, _| view.node(*node).is_some());
        page.failed.retain(|_, until_ms| *until_ms > now_ms);
        for (ends, relay) in kept(view) {
            let [one, two] = ends;
            let says = |from: NodeId, of: NodeId| {
                let cuts = page.told.get(&from).into_iter().flatten();
                cuts.into_iter().any(|cut| cut.node == of && cut.via_lost == Some(relay.via))
            };
            if says(one, two) || says(two, one) {
                page.failed.entry((ends, relay.via)).or_insert(now_ms + FAILED_MS);
            }
        }
        Read {
            told: page.told.clone(),
            failed: page.failed.keys().copied().collect(),
            wake_ms: page.failed.values().min().copied(),
        }
    }
}

/// What of a report is understood.
pub(crate) fn cuts(wire: Vec<v1::Cut>) -> Vec<Cut> {
    let cut = |wire: v1::Cut| {
        let node = warren_proto::node_id("cut.node", &wire.node).ok()?;
        let via_lost = warren_proto::node_id("cut.via_lost", &wire.via_lost).ok();
        Some(Cut { node, via_lost })
    };
    let mut cuts: Vec<Cut> = wire.into_iter().take(CUTS_MAX).filter_map(cut).collect();
    cuts.sort_unstable_by_key(|cut| cut.node);
    cuts
}

pub(crate) fn wire(cuts: &[Cut]) -> Vec<v1::Cut> {
    let wire = |cut: &Cut| v1::Cut {
        node: cut.node.as_bytes().to_vec(),
        via_lost: cut.via_lost.map_or_else(Vec::new, |via| via.as_bytes().to_vec()),
    };
    cuts.iter().map(wire).collect()
}
