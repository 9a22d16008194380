//! The plan while it is being made.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use warren_model::cluster::Cluster;
use warren_model::id::{ServiceId, TaskId};
use warren_model::network::VipHolder;
use warren_model::service::Service;
use warren_model::{ServiceName, Time};
use warren_state::State;
use warren_state::change::{Expect, Key, Mutation, Transaction};

use crate::balance::Traffic;
use crate::nodes::Nodes;
use crate::vips;
use crate::{IdSource, MUTATIONS_MAX, Plan};

/// What this plan did to tasks so far, as far as tasks of other services look at it.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    /// Where it placed some of each service, by position of the node.
    placed: BTreeMap<ServiceId, BTreeSet<usize>>,
    /// Not wanted any more.
    stopped: BTreeSet<TaskId>,
}

impl Moves {
    pub(crate) fn placed(&self, service: ServiceId) -> impl Iterator<Item = usize> {
        self.placed.get(&service).into_iter().flatten().copied()
    }

    pub(crate) fn is_stopped(&self, task: TaskId) -> bool {
        self.stopped.contains(&task)
    }
}

/// Room that is held on a node for a slot of a service.
pub(crate) struct Hold<'a> {
    pub(crate) site: usize,
    pub(crate) service: &'a Service,
    pub(crate) slot: u32,
}

pub(crate) struct Draft<'a> {
    pub(crate) state: &'a State,
    pub(crate) cluster: &'a Cluster,
    /// Never before a time of the state.
    pub(crate) now: Time,
    /// What schedules are compared with: not before the state only because its clock is.
    pub(crate) wall: Time,
    /// As the leader's clock says: what beats are compared with.
    pub(crate) clock: Time,
    pub(crate) nodes: Nodes<'a>,
    /// Nodes came or went by this plan.
    pub(crate) nodes_changed: bool,
    pub(crate) moves: Moves,
    /// What waits for others to end; for who explains.
    pub(crate) held: Vec<Hold<'a>>,
    /// Services that tasks wait for to be near to.
    awaited: BTreeSet<&'a ServiceName>,
    /// Moves for balance under way in the cluster; counted when first asked for.
    traffic: Option<Traffic>,
    /// Services because of whose tasks something has no place.
    minded: BTreeSet<&'a ServiceName>,
    /// See [`Draft::note_hunger`].
    hungry: bool,
    /// Virtual IPs; looked up when the first is asked for.
    vips: Option<vips::Pool>,
    ids: Box<dyn IdSource + 'a>,
    mutations: Vec<Mutation>,
    expects: BTreeMap<Key, u64>,
    wake_at: Option<Time>,
    more: bool,
    again: bool,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(
        state: &'a State,
        cluster: &'a Cluster,
        ids: impl IdSource + 'a,
        clock: Time,
    ) -> Self {
        Self {
            state,
            cluster,
            // A new leader's clock may be behind the last entry's.
            now: clock.max(state.time()),
            wall: clock.max(state.time()),
            clock,
            nodes: Nodes::new(state),
            nodes_changed: false,
            moves: Moves::default(),
            held: Vec::new(),
            awaited: BTreeSet::new(),
            traffic: None,
            minded: BTreeSet::new(),
            hungry: false,
            vips: None,
            ids: Box::new(ids),
            mutations: Vec::new(),
            expects: BTreeMap::new(),
            wake_at: None,
            more: false,
            again: false,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.mutations.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.mutations.len()
    }

    /// Whether `count` more mutations fit; if not, the plan says that there is more. What belongs
    /// together asks for all its room at once.
    pub(crate) fn room(&mut self, count: usize) -> bool {
        // A single step larger than any plan must not be put off for ever.
        let fits = self.mutations.is_empty() || self.mutations.len() + count <= MUTATIONS_MAX;
        self.more |= !fits;
        fits
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.more
    }

    pub(crate) fn push(&mut self, mutation: Mutation) {
        self.mutations.push(mutation);
    }

    /// Relies on an object being as it is now.
    pub(crate) fn expect(&mut self, key: Key) {
        let revision = self.state.revision_of(key);
        self.expects.insert(key, revision);
    }

    /// Asks to be called again at `at`, or earlier.
    pub(crate) fn wake(&mut self, at: Option<Time>) {
        self.wake_at = earlier(self.wake_at, at);
    }

    /// Asks to be called again once this plan is applied.
    pub(crate) fn look_again(&mut self) {
        self.again = true;
    }

    /// A task of a service has a place on a node.
    pub(crate) fn note_place(&mut self, service: &Service, at: usize) {
        self.moves.placed.entry(service.id).or_default().insert(at);
        // What waited for just that was looked at before, and why something has no place.
        let name = &service.spec.name;
        self.again |= self.awaited.contains(name) || self.minded.contains(name);
    }

    /// A task of a service is not wanted any more.
    pub(crate) fn note_stop(&mut self, service: &Service, task: TaskId) {
        self.moves.stopped.insert(task);
        self.again |= self.awaited.contains(&service.spec.name);
    }

    /// Something has no place for which others may be ended. Who waits for what follows from all that
    /// is decided, also later in this plan: the next one looks at it again.
    pub(crate) fn note_hunger(&mut self, hungry: bool) {
        self.hungry |= hungry;
    }

    /// Whether room may be held for something that waits.
    pub(crate) fn is_hungry(&self) -> bool {
        self.hungry
    }

    /// Something has no place, also because of tasks of these.
    pub(crate) fn mind(&mut self, services: impl IntoIterator<Item = &'a ServiceName>) {
        self.minded.extend(services);
    }

    /// Something has no place for as long as these have none.
    pub(crate) fn wait_for(&mut self, services: impl IntoIterator<Item = &'a ServiceName>) {
        self.awaited.extend(services);
    }

    /// Moves for balance, those of this plan included.
    pub(crate) fn traffic(&mut self) -> Traffic {
        let (state, now) = (self.state, self.now);
        *self.traffic.get_or_insert_with(|| Traffic::of(state, now))
    }

    pub(crate) fn note_move(&mut self) {
        if let Some(traffic) = &mut self.traffic {
            traffic.add(self.now);
        }
    }

    pub(crate) fn id(&mut self) -> [u8; 10] {
        self.ids.id()
    }

    pub(crate) fn task_id(&mut self) -> TaskId {
        TaskId::from_bytes(self.id())
    }

    /// A virtual IP that is free.
    pub(crate) fn take_vip(&mut self, holder: VipHolder) -> Option<Ipv4Addr> {
        let (state, cluster, now) = (self.state, self.cluster, self.now);
        let pool = self.vips.get_or_insert_with(|| vips::Pool::new(state, now));
        pool.take(state, cluster, holder)
    }

    pub(crate) fn mutations(&self) -> &[Mutation] {
        &self.mutations
    }

    /// Nodes and tasks as this plan would leave them.
    pub(crate) fn into_ground(self) -> (Nodes<'a>, Moves) {
        (self.nodes, self.moves)
    }

    pub(crate) fn finish(self) -> Plan {
        let again = self.again || (self.hungry && !self.mutations.is_empty());
        let expects = if self.mutations.is_empty() { BTreeMap::new() } else { self.expects };
        let expects = expects.into_iter().map(|(key, revision)| Expect { key, revision });
        Plan {
            transaction: Transaction {
                request: None,
                expects: expects.collect(),
                mutations: self.mutations,
                principal: None,
            },
            wake_at: self.wake_at,
            more: self.more || again,
        }
    }
}

/// The earlier of two times, either of which may not be set.
pub(crate) fn earlier(a: Option<Time>, b: Option<Time>) -> Option<Time> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
