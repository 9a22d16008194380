//! Nodes as the planner sees them: the state's, plus what this plan has done to them so far.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use warren_model::Time;
use warren_model::cluster::{Cluster, Subnet};
use warren_model::defaults::Defaults;
use warren_model::device::{Devices, is_kind};
use warren_model::id::{NodeId, TaskId};
use warren_model::node::{Availability, Node, NodeStatus};
use warren_model::resources::{Resource, Resources};
use warren_model::task::Task;
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
    /// By tasks of the state that have not ended, as their templates say.
    reserved: Option<&'a Resources>,
    /// For those that say nothing of it: processor time and memory.
    by_default: (u64, u64),
    /// What holds there for tasks that say nothing of it.
    pub(crate) defaults: Defaults,
    /// By tasks that this plan placed.
    added: Resources,
    /// Devices that tasks of the state have.
    held: Option<&'a BTreeMap<String, TaskId>>,
    /// Those that this plan gave to tasks.
    given: BTreeSet<String>,
    /// None is left, nor can be had.
    pub(crate) has_no_address: bool,
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

    /// Whether what is there is to stay there, as far as anybody knows.
    pub(crate) fn is_lasting(&self) -> bool {
        self.status == NodeStatus::Ready && !self.is_draining()
    }

    /// Whether tasks are to move away from there.
    pub(crate) fn is_draining(&self) -> bool {
        self.node.availability == Availability::Drain || !self.node.worker
    }

    /// How much of something no task has reserved.
    pub(crate) fn free(&self, resource: Resource<'_>) -> u64 {
        self.node.capacity(resource).saturating_sub(self.taken(resource))
    }

    /// Names of all that it has of a kind of devices, in order.
    fn devices(&self, kind: &str) -> impl Iterator<Item = String> {
        let names = self.node.description.devices.get(kind).into_iter().flatten();
        names.map(move |name| format!("{kind}={name}"))
    }

    fn is_held(&self, device: &str) -> bool {
        self.held.is_some_and(|held| held.contains_key(device))
    }

    /// Of a task's devices of a kind, how many the node has still.
    pub(crate) fn present(&self, kind: &str, task: &Task) -> u64 {
        let present = self.devices(kind).filter(|name| task.devices.iter().any(|has| has == name));
        present.count() as u64
    }

    /// How much of something tasks have reserved; more than it has, where that was lowered.
    pub(crate) fn taken(&self, resource: Resource<'_>) -> u64 {
        if let Resource::Generic(kind) = resource
            && is_kind(kind)
        {
            // Of those that are gone none is missed.
            let held = self.devices(kind).filter(|name| self.is_held(name)).count();
            return (held as u64).saturating_add(self.added.get(resource));
        }
        let reserved = self.reserved.map_or(0, |reserved| reserved.get(resource));
        let by_default = match resource {
            Resource::Cpu => self.by_default.0,
            Resource::Memory => self.by_default.1,
            Resource::Pids | Resource::Disk | Resource::Generic(_) => 0,
        };
        reserved.saturating_add(by_default).saturating_add(self.added.get(resource))
    }
}

/// In order of id.
pub(crate) struct Nodes<'a> {
    sites: Vec<Site<'a>>,
    /// Of the sites, close together: they are searched for each task.
    ids: Vec<NodeId>,
    /// When the last of those opened that take tasks.
    newest_opening: Time,
    /// The pool has no further block, which does not change while a plan is made.
    used_up: bool,
}

impl<'a> Nodes<'a> {
    pub(crate) fn new(state: &'a State) -> Self {
        let sites = state.nodes().map(|node| Site {
            node,
            status: node.status,
            silence: None,
            load: state.live_on(node.id),
            reserved: state.stated_on(node.id),
            by_default: state.by_default_on(node.id),
            defaults: state.defaults_of(node),
            added: Resources::default(),
            held: state.devices_on(node.id).filter(|held| !held.is_empty()),
            given: BTreeSet::new(),
            has_no_address: false,
            pool: None,
            granted: Vec::new(),
        });
        let sites: Vec<Site<'a>> = sites.collect();
        let ids = sites.iter().map(|site| site.node.id).collect();
        let open = sites.iter().filter(|site| site.is_eligible());
        let newest_opening = open.map(|site| site.node.opened).max().unwrap_or_default();
        Self { sites, ids, newest_opening, used_up: false }
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

    /// When the last node opened that takes tasks: what was placed since had the choice.
    pub(crate) fn newest_opening(&self) -> Time {
        self.newest_opening
    }

    pub(crate) fn position(&self, id: NodeId) -> Option<usize> {
        self.ids.binary_search(&id).ok()
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

    /// A task more, with what it reserves.
    pub(crate) fn add_load(&mut self, at: usize, reserve: Option<&Resources>) {
        self.sites[at].load += 1;
        if let Some(reserve) = reserve {
            let site = &mut self.sites[at];
            site.added.add(reserve);
            let [(_, cpu), (_, memory)] = site.defaults.beside(reserve);
            site.added.cpu_millis = site.added.cpu_millis.saturating_add(cpu);
            site.added.memory_bytes = site.added.memory_bytes.saturating_add(memory);
        }
    }

    /// Gives the first free devices to a task that was found to fit.
    pub(crate) fn take_devices(&mut self, at: usize, reserve: &Resources) -> Devices {
        let mut taken = Vec::new();
        for (kind, count) in reserve.generic.iter().filter(|(name, _)| is_kind(name)) {
            let site = &mut self.sites[at];
            let free = |name: &String| !site.is_held(name) && !site.given.contains(name);
            let count = usize::try_from(*count).unwrap_or(usize::MAX);
            let free: Vec<String> = site.devices(kind).filter(free).take(count).collect();
            site.given.extend(free.iter().cloned());
            taken.extend(free);
        }
        taken.into_iter().collect()
    }

    /// Whether nothing is heard of what runs there.
    pub(crate) fn is_down(&self, id: NodeId) -> bool {
        self.get(id).is_none_or(|site| site.status == NodeStatus::Down)
    }

    /// Notes on a node whether it has no free address; takes none.
    pub(crate) fn try_address(&mut self, state: &State, cluster: &Cluster, at: usize) {
        if self.take_address(state, cluster, at).is_some() {
            let site = &mut self.sites[at];
            (site.pool, site.granted) = (None, Vec::new());
        }
    }

    /// A free address on a node, and the block to grant for it if all others are full; notes on the
    /// node if there is none.
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
            Pool::new(&blocks, state.addresses_on(id), state.last_given(id))
        });
        if let Some(address) = pool.take(|| state.tasks_on(id)) {
            return Some((address, None));
        }
        let block = self.grant(cluster, at);
        let site = &mut self.sites[at];
        let Some(block) = block else {
            site.has_no_address = true;
            return None;
        };
        let pool = site.pool.as_mut()?;
        pool.add(block);
        Some((pool.take(|| state.tasks_on(id))?, Some(block)))
    }

    /// The next block of the pool, which the node has from now on.
    pub(crate) fn grant(&mut self, cluster: &Cluster, at: usize) -> Option<Subnet> {
        if self.used_up {
            return None;
        }
        let granted =
            self.sites.iter().flat_map(|site| site.node.blocks.iter().chain(&site.granted));
        let block = next_block(cluster, granted.copied());
        self.used_up = block.is_none();
        self.sites[at].granted.extend(block);
        block
    }
}
