//! What tasks of one template ask of nodes, and whether a node has it.
//!
//! [`Ask::obstacles`] is the only place that says whether a task may be on a
//! node: placing stops at the first obstacle, explaining looks at all.

use std::borrow::Cow;
use std::collections::BTreeSet;

use warren_model::ServiceName;
use warren_model::node::{Availability, NodeStatus};
use warren_model::placement::{Constraint, Strategy, Taint, TaintEffect};
use warren_model::resources::{Resource, Resources};
use warren_model::service::{Mode, Service, ServiceSpec};
use warren_model::task::{Desired, Task};
use warren_state::State;

use crate::draft::Moves;
use crate::nodes::{Nodes, Site};
use crate::slot::{has_host_ports, is_live};

/// Why a node cannot take a task now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Obstacle<'a> {
    /// It is for deciding alone.
    NotWorker,
    Down,
    Paused,
    Draining,
    /// Does not hold.
    Constraint(&'a Constraint),
    /// There is no build of the image for it; for these there are.
    Platform(&'a [String]),
    /// Not tolerated.
    Taint(&'a Taint),
    /// No task of this service is there.
    Near(&'a ServiceName),
    /// A task of this service is there.
    Apart(&'a ServiceName),
    /// A task of the same service has the host's ports.
    HostPorts,
    /// Slots of the service that are there, and the most that may be.
    MaxPerNode(u32, u32),
    Lacks(Shortage<'a>),
    /// Its blocks are full, and the pool has no other.
    NoAddress,
}

/// Less of something is free than is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shortage<'a> {
    pub(crate) resource: Resource<'a>,
    pub(crate) needed: u64,
    pub(crate) free: u64,
    /// Of the whole node, for tasks.
    pub(crate) capacity: u64,
    /// Whose default it is, if the service does not say so itself.
    pub(crate) default: Option<DefaultOf>,
}

/// Who says what holds for those that say nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DefaultOf {
    Cluster,
    Node,
}

impl DefaultOf {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "default of the cluster",
            Self::Node => "default of the node",
        }
    }

    fn find(site: &Site<'_>, resource: Resource<'_>) -> Self {
        let own = &site.node.defaults;
        match (resource, own.reserve_cpu_millis, own.reserve_memory_bytes) {
            (Resource::Cpu, 1.., _) | (Resource::Memory, _, 1..) => Self::Node,
            _ => Self::Cluster,
        }
    }
}

/// Tasks of one service on one node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Share {
    /// Live and wanted: what is to be spread.
    pub(crate) wanted: u32,
    /// Live: what holds ports.
    pub(crate) live: u32,
}

/// A service that tasks are to be near, or not.
struct Neighbour<'a> {
    service: &'a ServiceName,
    apart: bool,
    soft: bool,
    /// Nodes that have a task of it, by position.
    sites: BTreeSet<usize>,
}

impl Neighbour<'_> {
    fn is_content(&self, site: usize) -> bool {
        self.sites.contains(&site) != self.apart
    }
}

pub(crate) struct Ask<'a> {
    pub(crate) service: &'a Service,
    pub(crate) reserve: Cow<'a, Resources>,
    /// The same, kind by kind.
    needs: Vec<(Resource<'a>, u64)>,
    pub(crate) strategy: Strategy,
    exclusive: bool,
    neighbours: Vec<Neighbour<'a>>,
}

impl<'a> Ask<'a> {
    pub(crate) fn new(
        state: &'a State,
        moves: &Moves,
        nodes: &Nodes<'_>,
        service: &'a Service,
        template: u32,
    ) -> Self {
        let task = state.template(service.id, template).map(|template| &**template);
        let strategy = state.cluster().map(|cluster| cluster.strategy).unwrap_or_default();
        let mut neighbours = Vec::new();
        let mut add = |name: &'a ServiceName, apart: bool, soft: bool| {
            let sites = match state.service_by_name(name.as_str()) {
                None => BTreeSet::new(),
                Some(other) => {
                    // One that is on its way out is still there, but nobody to be near to.
                    let counts = |task: &&Task| {
                        let wanted = task.desired == Desired::Running;
                        is_live(task) && (apart || wanted && !moves.is_stopped(task.id))
                    };
                    let tasks = state.tasks_of(other.id).filter(counts);
                    let mut sites: BTreeSet<usize> =
                        tasks.filter_map(|task| nodes.position(task.node?)).collect();
                    sites.extend(moves.placed(other.id));
                    sites
                }
            };
            neighbours.push(Neighbour { service: name, apart, soft, sites });
        };
        for affinity in &service.spec.placement.affinities {
            add(&affinity.service, affinity.apart, affinity.soft);
        }
        // Who wants to be apart from this one would not be, if only its own wish counted.
        for other in apart_from(state, service) {
            add(&other.spec.name, true, false);
        }
        let task = task.unwrap_or(&service.spec.task);
        Self {
            service,
            reserve: task.reserved(),
            needs: task.needs(),
            strategy: service.spec.placement.strategy.unwrap_or(strategy),
            exclusive: has_host_ports(service),
            neighbours,
        }
    }

    /// Whether a change of other services' tasks alone may make room.
    pub(crate) fn depends_on_others(&self) -> bool {
        self.neighbours.iter().any(|neighbour| !neighbour.soft)
    }

    /// Whether tasks of other services matter at all.
    pub(crate) fn has_neighbours(&self) -> bool {
        !self.neighbours.is_empty()
    }

    /// Services whose tasks make room (`apart`: are one more reason why there is none) by being
    /// placed.
    pub(crate) fn awaits(&self, apart: bool) -> impl Iterator<Item = &'a ServiceName> {
        let hard = self.neighbours.iter().filter(|neighbour| !neighbour.soft);
        hard.filter(move |neighbour| neighbour.apart == apart).map(|neighbour| neighbour.service)
    }

    pub(crate) fn fits(&self, site: &Site<'a>, at: usize, share: Share) -> bool {
        let mut fits = true;
        self.obstacles(site, at, share, |_| {
            fits = false;
            false
        });
        fits
    }

    /// Calls `found` with each reason why the node cannot take a task, for as long as it says so.
    /// What is likely to last comes first.
    pub(crate) fn obstacles(
        &self,
        site: &Site<'a>,
        at: usize,
        share: Share,
        mut found: impl FnMut(Obstacle<'a>) -> bool,
    ) {
        let placement = &self.service.spec.placement;
        if let Some(obstacle) = unavailable(site)
            && !found(obstacle)
        {
            return;
        }
        let broken = placement.constraints.iter().filter(|constraint| !constraint.holds(site.node));
        for constraint in broken {
            if !found(Obstacle::Constraint(constraint)) {
                return;
            }
        }
        if !placement.platforms.is_empty()
            && !placement.has_build_for(site.node)
            && !found(Obstacle::Platform(&placement.platforms))
        {
            return;
        }
        for taint in hard_taints(self.service, site) {
            if !found(Obstacle::Taint(taint)) {
                return;
            }
        }
        for neighbour in self.neighbours.iter().filter(|neighbour| !neighbour.soft) {
            let obstacle = match neighbour.apart {
                true => Obstacle::Apart(neighbour.service),
                false => Obstacle::Near(neighbour.service),
            };
            if !neighbour.is_content(at) && !found(obstacle) {
                return;
            }
        }
        if self.exclusive && share.live > 0 && !found(Obstacle::HostPorts) {
            return;
        }
        if let Some(most) = placement.max_per_node.filter(|most| share.wanted >= *most)
            && !found(Obstacle::MaxPerNode(share.wanted, most))
        {
            return;
        }
        for (resource, needed) in self.needs(site) {
            let (free, capacity) = (site.free(resource), site.node.capacity(resource));
            if needed <= free {
                continue;
            }
            let stated = self.reserve.get(resource) > 0;
            let default = (!stated).then(|| DefaultOf::find(site, resource));
            let shortage = Shortage { resource, needed, free, capacity, default };
            if !found(Obstacle::Lacks(shortage)) {
                return;
            }
        }
        if site.has_no_address {
            found(Obstacle::NoAddress);
        }
    }

    /// What a task reserves on a node: as its template says, and by default.
    fn needs(&self, site: &Site<'a>) -> impl Iterator<Item = (Resource<'a>, u64)> {
        let beside = site.defaults.beside(&self.reserve);
        self.needs.iter().copied().chain(beside.into_iter().filter(|(_, amount)| *amount > 0))
    }

    /// How far a node that fits is from what is wished; less is better. First of all come taints
    /// that ask to be avoided, then failures, preferences, soft affinities.
    pub(crate) fn class(&self, site: &Site<'a>, at: usize, failed: u32) -> Class {
        let placement = &self.service.spec.placement;
        let soft = site.node.taints.iter().filter(|taint| {
            taint.effect == TaintEffect::PreferNoSchedule && !tolerates(self.service, taint)
        });
        let unmet = placement.preferences.iter().map(|wish| u32::from(!wish.holds(site.node)));
        let wishes = self.neighbours.iter().filter(|neighbour| neighbour.soft);
        Class {
            avoided: count(soft.count()),
            failed,
            // The first is the highest bit of as many as there are: it outweighs all others.
            unmet: unmet.fold(0, |bits, unmet| bits << 1 | unmet),
            lonely: count(wishes.filter(|neighbour| !neighbour.is_content(at)).count()),
        }
    }

    /// Which of the nodes of one class is better; less is better.
    pub(crate) fn key(&self, site: &Site<'a>, at: usize, share: Share) -> Key {
        let part = |(resource, _): (Resource<'_>, u64)| {
            let capacity = u128::from(site.node.capacity(resource)).max(1);
            let used = capacity.saturating_sub(u128::from(site.free(resource)));
            u32::try_from((used << 16) / capacity).unwrap_or(u32::MAX)
        };
        let fill = self.needs(site).map(part).max().unwrap_or_default();
        match self.strategy {
            Strategy::Spread => Key([share.wanted, fill, site.load], at),
            Strategy::BinPack => Key([0, u32::MAX - fill, u32::MAX - site.load], at),
        }
    }
}

/// Nodes of a lower class are taken first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Class {
    avoided: u32,
    /// Tasks of the template that failed there lately.
    failed: u32,
    unmet: u32,
    lonely: u32,
}

/// A total order: the last part is the node's position, which is that of its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key([u32; 3], pub(crate) usize);

#[cfg(test)]
impl Key {
    pub(crate) fn plain(first: u32, at: usize) -> Self {
        Self([first, 0, 0], at)
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn unavailable<'a>(site: &Site<'_>) -> Option<Obstacle<'a>> {
    match (site.node.availability, site.status) {
        _ if !site.node.worker => Some(Obstacle::NotWorker),
        (_, NodeStatus::Down) => Some(Obstacle::Down),
        (Availability::Pause, NodeStatus::Ready) => Some(Obstacle::Paused),
        (Availability::Drain, NodeStatus::Ready) => Some(Obstacle::Draining),
        (Availability::Active, NodeStatus::Ready) => None,
    }
}

/// Services whose tasks must not be where tasks of `service` are.
fn apart_from<'a>(state: &'a State, service: &'a Service) -> impl Iterator<Item = &'a Service> {
    let own = &service.spec;
    let apart = |of: &ServiceSpec, from: &ServiceName| {
        of.placement.affinities.iter().any(|a| a.apart && !a.soft && a.service == *from)
    };
    state
        .services()
        .filter(move |other| apart(&other.spec, &own.name) && !apart(own, &other.spec.name))
}

fn tolerates(service: &Service, taint: &Taint) -> bool {
    service.spec.placement.tolerations.iter().any(|toleration| toleration.covers(taint))
}

/// Taints that keep new tasks of a service away.
fn hard_taints<'a>(service: &Service, site: &Site<'a>) -> impl Iterator<Item = &'a Taint> {
    site.node.taints.iter().filter(move |taint| match taint.effect {
        TaintEffect::NoSchedule | TaintEffect::NoExecute => !tolerates(service, taint),
        TaintEffect::PreferNoSchedule => false,
    })
}

/// Whether tasks of a service may stay on a node: its constraints hold, and no taint drives them
/// away.
pub(crate) fn may_stay(service: &Service, site: &Site<'_>) -> bool {
    let placement = &service.spec.placement;
    let driven =
        |taint: &Taint| taint.effect == TaintEffect::NoExecute && !tolerates(service, taint);
    placement.constraints.iter().all(|constraint| constraint.holds(site.node))
        && !site.node.taints.iter().any(driven)
}

/// Whether a taint keeps new tasks of a global service away from a node.
pub(crate) fn is_closed(service: &Service, site: &Site<'_>) -> bool {
    matches!(service.spec.mode, Mode::Global | Mode::GlobalJob)
        && hard_taints(service, site).next().is_some()
}
