//! Why a task is where it is, or nowhere: each node's verdict, with numbers, and what would help.
//!
//! Verdicts are those of the code that places ([`Ask::obstacles`]), asked of
//! every node and for all it finds. Read-only and pure: of a view as it is.
//!
//! What is told is what would be decided now; what was decided before, and why,
//! is in `history`.

mod fix;
mod held;
mod history;

use std::collections::BTreeSet;

use warren_model::device::split;
use warren_model::id::{NodeId, ServiceId, TaskId};
use warren_model::node::Node;
use warren_model::placement::{Preempt, TaintEffect};
use warren_model::resources::Resource;
use warren_model::service::Service;
use warren_model::task::{Desired, Task, TaskState};
use warren_state::State;

use self::held::Ahead;
pub use crate::explain::history::{Decision, decisions};
use crate::nodes::Nodes;
use crate::place::{Ask, Board, Obstacle, Rank, Rivals, Search, host_ports, reason, waits};
use crate::slot::{is_live, slots_of};

/// What keeps tasks of a service off a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// One word, for programs: `memory`, `constraint`, `taint`, `down`, …
    pub kind: String,
    /// For people: `needs 512MiB memory, 310MiB free of 2GiB`.
    pub text: String,
    /// Of a resource that is short.
    pub amounts: Option<Amounts>,
    /// What would help: a command, mostly.
    pub fix: String,
}

/// Of one resource, in its smallest unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amounts {
    pub needed: u64,
    pub free: u64,
    /// Of the whole node, for tasks.
    pub capacity: u64,
}

/// One node, seen by a task or a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub node: NodeId,
    /// Empty: it fits.
    pub findings: Vec<Finding>,
    /// It is the one that would be taken next.
    pub next: bool,
    /// The task is there; findings are then what makes it leave.
    pub here: bool,
    /// Wanted tasks of the service there.
    pub tasks: u32,
    /// All tasks there.
    pub load: u32,
}

/// All nodes, seen by a task or a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    pub service: ServiceId,
    pub template: u32,
    /// Why there is no place; empty if there is one, or none is needed.
    pub reason: String,
    /// Where the task is, then those that fit, the next one first, then the others, the nearest
    /// to fitting first.
    pub verdicts: Vec<Verdict>,
    /// What would make room on the nearest node, and what would without changing nodes.
    pub fixes: Vec<String>,
    /// What is odd about where the task is, without making it leave.
    pub remarks: Vec<String>,
}

impl Explanation {
    /// The node that lacks least, if none fits.
    pub fn nearest(&self) -> Option<&Verdict> {
        let none_fits = self.verdicts.iter().all(|verdict| !verdict.findings.is_empty());
        self.verdicts.first().filter(|verdict| none_fits && !verdict.here)
    }
}

/// What a service's next task would meet; `None` for one that does not exist.
pub fn explain_service(state: &State, service: ServiceId) -> Option<Explanation> {
    let service = state.service(service)?;
    // A pending one of an older template is what people ask about.
    let pending = state.tasks_of(service.id).filter(|task| is_pending(task));
    let template = pending.map(|task| task.template).max().unwrap_or(service.template);
    Some(explain(state, service, template, None))
}

/// What a task would meet if it had to be placed now, and whether it may stay where it is.
pub fn explain_task(state: &State, task: TaskId) -> Option<Explanation> {
    let task = state.task(task)?;
    let service = state.service(task.service)?;
    Some(explain(state, service, task.template, Some(task)))
}

/// Whether a task waits for a place.
pub fn is_pending(task: &Task) -> bool {
    task.node.is_none()
        && task.status.state == TaskState::Pending
        && task.desired == Desired::Running
}

fn explain(state: &State, service: &Service, template: u32, task: Option<&Task>) -> Explanation {
    let mut ahead = held::look(state, service, task);
    find_addresses(state, &mut ahead.nodes);
    let nodes = &ahead.nodes;
    let mut board = board(state, service, template, &ahead);
    let slots = slots_of(state, service);
    // Its own slot's tasks do not stand in its way.
    let own =
        slots.iter().filter(|slot| task.is_some_and(|task| slot.tasks().any(|t| t.id == task.id)));
    for mine in own.flat_map(|slot| &slot.wanted).filter(|mine| is_live(mine)) {
        if let Some(at) = mine.node.and_then(|node| nodes.position(node)) {
            board.change(at, nodes, |share| share.wanted = share.wanted.saturating_sub(1));
        }
    }
    let here = task.filter(|task| is_live(task)).and_then(|task| task.node);
    let next = board.best(template, nodes).filter(|_| ahead.own.is_none());
    let next = next.map(|at| nodes.site(at).node.id);
    let ask = board.ask(template).expect("it was prepared above");
    let mut judged: Vec<(Distance, Verdict)> = Vec::with_capacity(nodes.len());
    for (at, site) in nodes.sites().iter().enumerate() {
        let share = board.share(at);
        let is_here = here == Some(site.node.id);
        let (mut findings, mut distance) = (Vec::new(), Distance::default());
        ask.obstacles(site, at, share, |obstacle| {
            if !is_here || moves_away(&obstacle) {
                distance.add(&obstacle);
                let holders = ahead.holders(at);
                findings.push(finding(&obstacle, service, site.node, holders.as_deref()));
            }
            true
        });
        distance.order = match (is_here, next == Some(site.node.id), findings.is_empty()) {
            (true, _, _) => 0,
            (false, true, _) => 1,
            (false, false, true) => 2,
            (false, false, false) => 3,
        };
        distance.rank = if findings.is_empty() { Some(ask.key(site, at, share)) } else { None };
        let (node, tasks, load) = (site.node.id, share.wanted, site.load);
        let next = next == Some(node) && here.is_none();
        judged.push((distance, Verdict { node, findings, next, here: is_here, tasks, load }));
    }
    // Nodes are in order of id, and sorting keeps that among equals.
    judged.sort_by(|(a, _), (b, _)| a.cmp(b));
    let verdicts: Vec<Verdict> = judged.into_iter().map(|(_, verdict)| verdict).collect();
    let stuck = next.is_none() && here.is_none();
    let mut reason = match (stuck, state.cluster()) {
        (true, Some(cluster)) => reason(nodes, cluster, ask, |at| board.share(at)),
        _ => String::new(),
    };
    let mut fixes = if stuck { fix::all(state, service, &verdicts) } else { Vec::new() };
    if stuck {
        reason.push_str(&ahead.all_holders());
        preemption(state, &ahead, &board, ask, task, (&mut reason, &mut fixes));
    }
    let remarks = task.map(|task| lost_devices(state, task)).unwrap_or_default();
    Explanation { service: service.id, template, reason, verdicts, fixes, remarks }
}

/// Devices that a task has and its node has no more.
fn lost_devices(state: &State, task: &Task) -> Vec<String> {
    let Some(node) = task.node.filter(|_| is_live(task)).and_then(|id| state.node(id)) else {
        return Vec::new();
    };
    let has = |kind: &str, name: &str| {
        node.description.devices.get(kind).is_some_and(|names| names.contains(name))
    };
    let gone = task
        .devices
        .iter()
        .filter(|device| split(device).is_none_or(|(kind, name)| !has(kind, name)));
    let host = &node.description.hostname;
    gone.map(|device| format!("its device {device} is gone from {host}")).collect()
}

/// What ending tasks of lower priority does, or would do, for one that has no place.
fn preemption<'a>(
    state: &'a State,
    ahead: &Ahead<'a>,
    board: &Board<'a>,
    ask: &Ask<'a>,
    task: Option<&Task>,
    (reason, fixes): (&mut String, &mut Vec<String>),
) {
    let (service, nodes) = (ask.service, &ahead.nodes);
    let host = |site: usize| &nodes.site(site).node.description.hostname;
    let find = |rivals: &Rivals| {
        let moves = &ahead.moves;
        Search { state, moves, nodes, board, rivals }.find(ask, None)
    };
    let rivals = Rivals::new(state, service, nodes);
    let lower = service.spec.placement.preempt == Preempt::Lower;
    // Of a task that waits, the pass over its service knew.
    let waiting = lower && task.is_some_and(is_pending);
    let room = match (ahead.own, waiting) {
        (Some(site), _) => {
            *reason = waits(host(site));
            return;
        }
        (None, true) => None,
        (None, false) => find(&rivals),
    };
    match room {
        Some(room) if lower => *reason = waits(host(room.site)),
        Some(room) if room.victims.is_empty() => {}
        Some(room) => fixes.push(fix::preempt(service, host(room.site), room.victims.len())),
        None if !lower || waiting && find(&rivals).is_some() => {}
        None => {
            let rivals = rivals.careless();
            let spared: BTreeSet<&str> = find(&rivals)
                .into_iter()
                .flat_map(|room| room.victims)
                .filter_map(|victim| state.service(victim.service))
                .filter(|other| other.spec.moving.min_available.is_some())
                .map(|other| other.spec.name.as_str())
                .collect();
            if !spared.is_empty() {
                let names = spared.into_iter().collect::<Vec<_>>().join(", ");
                reason.push_str(&format!("; no task of {names} is to spare (--min-available)"));
            }
        }
    }
}

/// How far a node is from fitting; less is nearer.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Distance {
    order: u8,
    rank: Option<Rank>,
    /// What nobody changes with a word: it is down, or decides alone.
    severe: u32,
    obstacles: u32,
    /// What is missing, in thousandths of what is needed, summed up.
    missing: u64,
}

impl Distance {
    fn add(&mut self, obstacle: &Obstacle<'_>) {
        self.obstacles += 1;
        match obstacle {
            Obstacle::NotWorker | Obstacle::Down => self.severe += 1,
            Obstacle::Lacks(lack) => {
                let missing = u128::from(lack.needed.saturating_sub(lack.free)) * 1000;
                let part = missing / u128::from(lack.needed.max(1));
                self.missing += u64::try_from(part).unwrap_or(u64::MAX);
            }
            Obstacle::Paused
            | Obstacle::Draining
            | Obstacle::Constraint(_)
            | Obstacle::Platform(_)
            | Obstacle::Taint(_)
            | Obstacle::Near(_)
            | Obstacle::Apart(_)
            | Obstacle::HostPorts
            | Obstacle::MaxPerNode(..)
            | Obstacle::NoAddress => {}
        }
    }
}

/// Whether a task leaves a node because of it, not only stays off.
fn moves_away(obstacle: &Obstacle<'_>) -> bool {
    match obstacle {
        Obstacle::NotWorker | Obstacle::Down | Obstacle::Draining | Obstacle::Constraint(_) => true,
        Obstacle::Taint(taint) => taint.effect == TaintEffect::NoExecute,
        Obstacle::Paused
        | Obstacle::Platform(_)
        | Obstacle::Near(_)
        | Obstacle::Apart(_)
        | Obstacle::HostPorts
        | Obstacle::MaxPerNode(..)
        | Obstacle::Lacks(_)
        | Obstacle::NoAddress => false,
    }
}

/// `holders` are those for whom room is held there.
fn finding(
    obstacle: &Obstacle<'_>,
    service: &Service,
    node: &Node,
    holders: Option<&str>,
) -> Finding {
    let (kind, mut text) = words(obstacle, service, node);
    if let (Obstacle::Lacks(_), Some(holders)) = (obstacle, holders) {
        text.push_str(&format!("; room is held for {holders}"));
    }
    let amounts = match obstacle {
        Obstacle::Lacks(lack) => {
            Some(Amounts { needed: lack.needed, free: lack.free, capacity: lack.capacity })
        }
        _ => None,
    };
    Finding { kind, text, amounts, fix: fix::of(obstacle, service, node) }
}

fn words(obstacle: &Obstacle<'_>, service: &Service, node: &Node) -> (String, String) {
    let (kind, text) = match obstacle {
        Obstacle::NotWorker => ("not-worker", "runs no containers".to_owned()),
        Obstacle::Down => ("down", "is down".to_owned()),
        Obstacle::Paused => ("paused", "is paused: nothing new is placed there".to_owned()),
        Obstacle::Draining => ("draining", "is drained: what is there moves away".to_owned()),
        Obstacle::Constraint(constraint) => {
            let value = constraint.attribute().value(node);
            let has = match value.is_empty() {
                true => format!("has no {}", constraint.attribute()),
                false => format!("its {} is {value}", constraint.attribute()),
            };
            ("constraint", format!("not {constraint}: {has}"))
        }
        Obstacle::Platform(all) => {
            ("platform", format!("image is for {}, node is {}", all.join(", "), node.platform()))
        }
        Obstacle::Taint(taint) => ("taint", format!("tainted {taint}, which is not tolerated")),
        Obstacle::Near(name) => ("affinity", format!("has no task of {name}")),
        Obstacle::Apart(name) => ("anti-affinity", format!("has a task of {name}")),
        Obstacle::HostPorts => {
            let ports = host_ports(service);
            ("port", format!("host port {ports} is in use by another task of it"))
        }
        Obstacle::MaxPerNode(count, most) => {
            ("max-per-node", format!("has {count} of at most {most} of it"))
        }
        Obstacle::NoAddress => ("address", "has no free address, nor has the pool".to_owned()),
        Obstacle::Lacks(lack) => {
            let amount = |amount| lack.resource.amount(amount);
            let (needed, free) = (amount(lack.needed), amount(lack.free));
            let default = lack.default.map(|of| format!(" ({})", of.as_str()));
            let text = format!(
                "needs {needed} {}{}, {free} free of {}",
                lack.resource,
                default.unwrap_or_default(),
                amount(lack.capacity)
            );
            return (lack.resource.as_str().to_owned(), text);
        }
    };
    (kind.to_owned(), text)
}

/// One resource of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    pub resource: String,
    pub total: u64,
    pub system_reserved: u64,
    /// By tasks.
    pub reserved: u64,
    pub free: u64,
}

/// A service, seen by a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    pub service: ServiceId,
    /// Tasks there that have not ended.
    pub tasks: u32,
    /// Tasks that wait for a place, anywhere.
    pub pending: u32,
    /// What keeps further ones off this node; empty: nothing does.
    pub findings: Vec<Finding>,
}

/// What a node has, who is there, and what keeps those off that wait for a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeExplanation {
    pub node: NodeId,
    pub rooms: Vec<Room>,
    /// In order of id.
    pub tenants: Vec<Tenant>,
}

/// What there is on a node, and for whom; `None` for one that does not exist.
pub fn explain_node(state: &State, id: NodeId) -> Option<NodeExplanation> {
    let node = state.node(id)?;
    let reserved = state.reserved_on(id).unwrap_or_default();
    let known = [Resource::Cpu, Resource::Memory, Resource::Pids, Resource::Disk];
    let counted = node.generic.keys().map(|name| Resource::Generic(name));
    let room = |resource: Resource<'_>| Room {
        resource: resource.as_str().to_owned(),
        total: node.total(resource),
        system_reserved: node.system_reserved.get(resource),
        reserved: reserved.get(resource),
        free: node.capacity(resource).saturating_sub(reserved.get(resource)),
    };
    let mut tenants = Vec::new();
    for service in state.services() {
        let (mut tasks, mut waiting) = (0, Vec::new());
        for task in state.tasks_of(service.id) {
            tasks += u32::from(is_live(task) && task.node == Some(id));
            waiting.extend(is_pending(task).then_some(task.template));
        }
        let pending = u32::try_from(waiting.len()).unwrap_or(u32::MAX);
        let mut findings = Vec::new();
        if let Some(template) = waiting.into_iter().max() {
            let mut ahead = held::look(state, service, None);
            find_addresses(state, &mut ahead.nodes);
            let at = ahead.nodes.position(id)?;
            let board = board(state, service, template, &ahead);
            let ask = board.ask(template)?;
            let holders = ahead.holders(at);
            ask.obstacles(ahead.nodes.site(at), at, board.share(at), |obstacle| {
                findings.push(finding(&obstacle, service, node, holders.as_deref()));
                true
            });
        }
        if tasks > 0 || pending > 0 {
            tenants.push(Tenant { service: service.id, tasks, pending, findings });
        }
    }
    let rooms = known.into_iter().chain(counted).map(room).collect();
    Some(NodeExplanation { node: id, rooms, tenants })
}

/// Notes on each node whether an address is left, which is only known by taking one.
fn find_addresses(state: &State, nodes: &mut Nodes<'_>) {
    for at in 0..nodes.len() {
        if let Some(cluster) = state.cluster()
            && nodes.site(at).is_eligible()
        {
            nodes.try_address(state, cluster, at);
        }
    }
}

fn board<'a>(
    state: &'a State,
    service: &'a Service,
    template: u32,
    ahead: &Ahead<'a>,
) -> Board<'a> {
    let nodes = &ahead.nodes;
    let mut board = Board::new(&slots_of(state, service), nodes, state.time());
    board.prepare(template, nodes, || Ask::new(state, &ahead.moves, nodes, service, template));
    board
}
