//! What must hold once trouble is over: within a bound, and for good.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use warren_base::clock::Clock;
use warren_base::rng::Rng;
use warren_manager::VOTERS_MAX;
use warren_model::node::NodeStatus;
use warren_model::service::{EndpointMode, Mode, PublishMode, Service};
use warren_model::task::{Desired, Task, TaskState};
use warren_model::{NodeId, NodeTable, TaskId};
use warren_planner::{Beats, Convergence, IdSource, Index, Seen};
use warren_state::State;

use super::book::Held;
use super::host::{Host, Running};
use super::world::{World, held};
use crate::jobs;

/// The longest back-off of a service that kept failing, and elections, with room.
const BOUND_MS: u64 = 6 * 60_000;
const LOOK_MS: u64 = 500;

struct Ids<'a>(&'a dyn Rng);

impl IdSource for Ids<'_> {
    fn id(&mut self) -> [u8; 10] {
        self.0.id_bytes()
    }
}

/// Waits until everything is as wanted.
pub(crate) async fn settle(world: &Arc<World>) -> Held {
    let end = world.now_ms() + BOUND_MS;
    loop {
        tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
        let Err(why) = settled(world) else { return Ok(()) };
        if world.now_ms() >= end {
            return Err(format!("not calm {BOUND_MS} ms after the trouble: {why}"));
        }
    }
}

/// Everything that is to hold in a calm world.
pub(crate) fn settled(world: &World) -> Held {
    let (leader, running) = leader(world)?;
    let view = running.store.view();
    replicas(world, &running, &view)?;
    nodes(world, &view)?;
    services(&view)?;
    jobs::check(&view)?;
    machines(world, &view)?;
    tables(world, &view)?;
    plan(world, &leader, &view)?;
    acknowledged(world, &view)
}

fn managers(world: &World) -> Vec<(Arc<Host>, Arc<Running>)> {
    let hosts = world.hosts().into_iter();
    hosts.filter_map(|host| host.running().map(|(_, running)| (host, running))).collect()
}

fn leader(world: &World) -> Result<(Arc<Host>, Arc<Running>), String> {
    let mut leaders = managers(world);
    leaders.retain(|(_, running)| *running.store.leader().borrow());
    match leaders.len() {
        1 => leaders.pop().ok_or_else(|| "no leader".to_owned()),
        none_or_many => Err(format!("{none_or_many} leaders")),
    }
}

/// Of the leader.
pub(crate) fn revision(world: &World) -> Result<u64, String> {
    leader(world).map(|(_, running)| running.store.view().revision())
}

/// Who is to be a manager is one, votes, and knows the same.
fn replicas(world: &World, leader: &Running, view: &State) -> Held {
    let wanted: BTreeSet<u64> =
        view.nodes().filter(|node| node.manager).filter_map(|node| node.number).collect();
    let voters: BTreeSet<u64> = leader.store.status().voters.keys().copied().collect();
    // Of more managers than vote those beyond follow, and take the place of one that goes.
    let enough = voters.len() == wanted.len().min(VOTERS_MAX) && voters.is_subset(&wanted);
    if !enough {
        return Err(format!("voters are {voters:?}, wanted are {wanted:?}"));
    }
    for number in wanted {
        let host = world.manager(number).ok_or_else(|| format!("nobody is manager {number}"))?;
        let Some((_, running)) = host.running() else {
            return Err(format!("{}: manager {number} does not run", host.name));
        };
        let theirs = running.store.view();
        if theirs.revision() != view.revision() || theirs.checksum() != view.checksum() {
            let (theirs, ours) = (theirs.revision(), view.revision());
            return Err(format!("{}: at revision {theirs}, the leader at {ours}", host.name));
        }
    }
    Ok(())
}

fn nodes(world: &World, view: &State) -> Held {
    for host in world.hosts().into_iter().filter(|host| !host.is_lost()) {
        let Some(node) = view.node(host.node) else {
            return Err(format!("{}: unknown", host.name));
        };
        if node.status != NodeStatus::Ready {
            return Err(format!("{} is {:?}", host.name, node.status));
        }
    }
    Ok(())
}

fn services(view: &State) -> Held {
    for service in view.services() {
        let name = &service.spec.name;
        if service.removing {
            return Err(format!("{name} is still being removed"));
        }
        match warren_planner::progress(view, service.id) {
            Convergence::Converged => {}
            Convergence::Waiting { message } => {
                // Who it is that does not get on.
                let tasks = view.tasks_of(service.id);
                let stuck = tasks
                    .filter(|task| task.desired == Desired::Running && !task.status.is_ready());
                let stuck: Vec<_> =
                    stuck.map(|task| (task.slot, task.node, &task.status)).collect();
                return Err(format!("{name} waits: {message}: {stuck:?}"));
            }
            Convergence::Failed { reason } => return Err(format!("{name} failed: {reason}")),
        }
        let running = warren_planner::task_counts(view, service.id).0;
        let Mode::Replicated { replicas } = service.spec.mode else { continue };
        if running != replicas {
            return Err(format!("{name} runs {running} of {replicas}"));
        }
    }
    Ok(())
}

/// Containers are those of the running tasks, on their nodes, and no others.
fn machines(world: &World, view: &State) -> Held {
    let known: BTreeSet<TaskId> = view.tasks().map(|task| task.id).collect();
    let mut running = BTreeMap::new();
    for host in world.hosts().into_iter().filter(|host| !host.is_lost()) {
        let machine = held(&host.machine);
        let strays = machine.strays(&known);
        if !strays.is_empty() {
            return Err(format!("{}: containers of nobody: {strays:?}", host.name));
        }
        for (task, container) in machine.running() {
            if let Some(other) = running.insert(task, host.node) {
                return Err(format!("{task} runs twice, on {other} too, pid {}", container.pid));
            }
        }
    }
    for task in view.tasks() {
        devices(world, task)?;
        let says = task.status.state == TaskState::Running;
        let runs = running.get(&task.id);
        if says != runs.is_some() || runs.is_some_and(|node| Some(*node) != task.node) {
            let state = task.status.state;
            return Err(format!("{} is {state:?} in the state, runs on {runs:?}", task.id));
        }
        if task.desired != Desired::Running && runs.is_some() {
            return Err(format!("{} runs and is not wanted", task.id));
        }
    }
    Ok(())
}

/// Its container has the devices that it was given.
fn devices(world: &World, task: &Task) -> Held {
    let Some(host) = world.hosts().into_iter().find(|host| Some(host.node) == task.node) else {
        return Ok(());
    };
    let machine = held(&host.machine);
    let other = machine.running().find(|(id, c)| *id == task.id && c.devices != task.devices);
    match other {
        Some((id, c)) => Err(format!("{id} has {:?}, not {:?}", c.devices, task.devices)),
        None => Ok(()),
    }
}

/// What each host goes by is what managers would tell it if it began anew, and that is what
/// somebody finds who looks for it without any cleverness.
fn tables(world: &World, view: &State) -> Held {
    for host in world.hosts().into_iter().filter(|host| !host.is_lost()) {
        let known = Arc::clone(&held(&host.machine).net);
        if *known != warren_manager::dispatch::table::complete(view, host.node) {
            return Err(format!("{} goes by another table than managers have for it", host.name));
        }
        plainly(view, host.node, &known).map_err(|why| format!("{}: {why}", host.name))?;
    }
    Ok(())
}

fn plainly(view: &State, node: NodeId, known: &NodeTable) -> Held {
    let networks = |service: &Service| -> BTreeSet<String> {
        service.spec.attachments().iter().map(|on| on.network.to_string()).collect()
    };
    let live = |task: &&Task| !task.status.state.is_terminal();
    let here = view.tasks().filter(live).filter(|task| task.node == Some(node));
    let here: BTreeSet<String> =
        here.filter_map(|task| view.service(task.service)).flat_map(networks).collect();
    let told: BTreeSet<String> = known.networks.values().map(|n| n.name.to_string()).collect();
    if here != told {
        return Err(format!("is on {here:?}, knows {told:?}"));
    }
    for service in view.services() {
        let name = &service.spec.name;
        let common = !networks(service).is_disjoint(&here);
        let mesh = service.spec.ports.iter().any(|port| port.mode == PublishMode::Ingress);
        let Some(told) = known.services.get(&service.id) else {
            if common || mesh {
                return Err(format!("does not know {name}"));
            }
            continue;
        };
        if told.on.is_empty() == common {
            return Err(format!("knows {name} on {:?}", told.on));
        }
        let running = view
            .tasks_of(service.id)
            .filter(|task| task.status.is_ready() && task.desired == Desired::Running);
        let running: BTreeSet<TaskId> = running.map(|task| task.id).collect();
        let backends: BTreeSet<TaskId> = told.backends().map(|task| task.task).collect();
        if running != backends {
            return Err(format!("{name} is ready as {running:?}, its backends are {backends:?}"));
        }
        if told
            .on
            .iter()
            .any(|on| on.vip.is_none() != (service.spec.endpoint.mode == EndpointMode::Dnsrr))
        {
            return Err(format!("{name} has no virtual IP, or one too many: {:?}", told.on));
        }
    }
    Ok(())
}

/// A pass over a calm world changes nothing.
fn plan(world: &World, leader: &Host, view: &State) -> Held {
    let now = warren_model::Time(leader.clock.now_ms()).max(view.time());
    let seen = view.nodes().filter(|node| node.status == NodeStatus::Ready);
    let beats = Beats {
        since: now,
        wall: Some(warren_model::Time(leader.clock.now_ms())),
        seen: seen.map(|node| (node.id, Seen { at: now, rtt_ms: 2 })).collect(),
        ..Beats::default()
    };
    let rng = warren_base::rng::SeededRng::new(world.script.seed);
    let plan = warren_planner::plan(view, &mut Index::default(), &beats, &mut Ids(&rng), now);
    if plan.transaction.mutations.is_empty() {
        return Ok(());
    }
    Err(format!("a calm world is still planned: {:?}", plan.transaction.mutations))
}

/// What somebody was told to be done is in the audit log, at the revision that they were told.
fn acknowledged(world: &World, view: &State) -> Held {
    let written: BTreeMap<u64, &str> =
        view.audit().map(|record| (record.revision, record.object.as_str())).collect();
    for ack in &held(&world.book).acks {
        match written.get(&ack.revision) {
            Some(object) if *object == ack.service => {}
            found => {
                return Err(format!(
                    "write {} of {} was acknowledged at revision {}, where {found:?} is",
                    ack.token, ack.service, ack.revision
                ));
            }
        }
    }
    Ok(())
}

/// All managers lose power, and know the same again.
pub(crate) async fn replay(world: &Arc<World>) -> Held {
    let (_, running) = leader(world)?;
    let before = running.store.view();
    drop(running);
    let hosts: Vec<_> = managers(world).into_iter().map(|(host, _)| host).collect();
    hosts.iter().for_each(|host| host.kill(world, true));
    hosts.iter().for_each(|host| host.boot(world));
    let end = world.now_ms() + BOUND_MS;
    loop {
        tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
        if leader(world).is_ok() && replayed(world, &before)? {
            return settle(world).await;
        }
        if world.now_ms() >= end {
            return Err("no leader after all managers lost power".to_owned());
        }
    }
}

/// Whether all are as far as they were; what they hold of then is in the book of checksums.
fn replayed(world: &World, before: &State) -> Result<bool, String> {
    let (_, running) = leader(world)?;
    let now = running.store.view();
    if now.revision() < before.revision() {
        return Err(format!(
            "revision {} after a restart, it was {}",
            now.revision(),
            before.revision()
        ));
    }
    Ok(true)
}
