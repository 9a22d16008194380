//! Nodes as the planner sees them: the state's, plus what this plan has done to them so far.

use std::net::Ipv4Addr;

use warren_model::cluster::{Cluster, Subnet};
use warren_model::id::NodeId;
use warren_model::node::{Availability, Node, NodeStatus};
use warren_state::State;

use crate::address::{Pool, next_block};
use crate::liveness::Silence;

pub(crate) struct Site<'a> {
    pub(crate) node: &'a Node,
    pub(crate) status: NodeStatus,
    /// Of which a leader knows; listings do not.
    silence: Option<Silence>,
    /// Tasks that have not ended, new ones included.
    pub(crate) load: u32,
    /// Addresses; looked up when the first is asked for.
    pool: Option<Pool>,
    /// Granted by this plan.
    granted: Vec<Subnet>,
}

impl Site<'_> {
    /// Whether it may get new tasks.
    pub(crate) fn is_eligible(&self) -> bool {
        self.node.worker
            && self.node.availability == Availability::Active
            && self.status == NodeStatus::Ready
    }
}

/// In order of id.
pub(crate) struct Nodes<'a> {
    sites: Vec<Site<'a>>,
}

impl<'a> Nodes<'a> {
    pub(crate) fn new(state: &'a State) -> Self {
        let sites = state.nodes().map(|node| Site {
            node,
            status: node.status,
            silence: None,
            load: state.live_on(node.id),
            pool: None,
            granted: Vec::new(),
        });
        Self { sites: sites.collect() }
    }

    pub(crate) fn len(&self) -> usize {
        self.sites.len()
    }

    pub(crate) fn site(&self, at: usize) -> &Site<'a> {
        &self.sites[at]
    }

    pub(crate) fn sites(&self) -> &[Site<'a>] {
        &self.sites
    }

    pub(crate) fn position(&self, id: NodeId) -> Option<usize> {
        self.sites.binary_search_by_key(&id, |site| site.node.id).ok()
    }

    pub(crate) fn get(&self, id: NodeId) -> Option<&Site<'a>> {
        self.sites.get(self.position(id)?)
    }

    pub(crate) fn set_status(&mut self, at: usize, status: NodeStatus) {
        self.sites[at].status = status;
    }

    pub(crate) fn set_silence(&mut self, at: usize, silence: Silence) {
        self.sites[at].silence = Some(silence);
    }

    pub(crate) fn silence(&self, id: NodeId) -> Option<Silence> {
        self.get(id)?.silence
    }

    /// The nodes that are not heard of, and for how long.
    pub(crate) fn silent(&self) -> Vec<(NodeId, Option<Silence>)> {
        let down = self.sites.iter().filter(|site| site.status == NodeStatus::Down);
        down.map(|site| (site.node.id, site.silence)).collect()
    }

    pub(crate) fn add_load(&mut self, at: usize) {
        self.sites[at].load += 1;
    }

    /// Whether nothing is heard of what runs there.
    pub(crate) fn is_down(&self, id: NodeId) -> bool {
        self.get(id).is_none_or(|site| site.status == NodeStatus::Down)
    }

    /// Whether tasks are to move away from there.
    pub(crate) fn is_draining(&self, id: NodeId) -> bool {
        self.get(id)
            .is_none_or(|site| site.node.availability == Availability::Drain || !site.node.worker)
    }

    /// A free address on a node, and the block to grant for it if all others are full.
    pub(crate) fn take_address(
        &mut self,
        state: &State,
        cluster: &Cluster,
        at: usize,
    ) -> Option<(Ipv4Addr, Option<Subnet>)> {
        let site = &mut self.sites[at];
        let id = site.node.id;
        let pool = site.pool.get_or_insert_with(|| {
            let blocks = [&site.node.blocks[..], &site.granted[..]].concat();
            Pool::new(&blocks, state.addresses_on(id))
        });
        if let Some(address) = pool.take(|| state.tasks_on(id)) {
            return Some((address, None));
        }
        let block = self.grant(cluster, at)?;
        let pool = self.sites[at].pool.as_mut()?;
        pool.add(block);
        Some((pool.take(|| state.tasks_on(id))?, Some(block)))
    }

    /// The next block of the pool, which the node has from now on.
    pub(crate) fn grant(&mut self, cluster: &Cluster, at: usize) -> Option<Subnet> {
        let granted =
            self.sites.iter().flat_map(|site| site.node.blocks.iter().chain(&site.granted));
        let block = next_block(cluster, granted.copied())?;
        self.sites[at].granted.push(block);
        Some(block)
    }
}
