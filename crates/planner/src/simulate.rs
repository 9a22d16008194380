//! What would happen if: the real planner over a copy of the state, with a clock of its own and
//! agents that do at once as they are told.
//!
//! Nothing is written: a state is cloned in no time, and the copy is thrown away.
//! Every task that is placed gets to run, and is healthy; every task that is
//! not wanted ends. So the answer says where things would be once all works, not
//! whether it does. Time goes on to whenever the planner wants to look again:
//! waits for lost nodes, pauses between moves and deadlines are in it.
//!
//! Not here: images that cannot be pulled, programs that fail, how long it takes
//! to start.

use std::collections::{BTreeMap, BTreeSet};

use warren_model::Time;
use warren_model::health::{Health, HealthState};
use warren_model::id::{NodeId, ServiceId};
use warren_model::node::{Availability, Node, NodeStatus};
use warren_model::service::{Mode, Service};
use warren_model::task::{Desired, Task, TaskState, TaskStatus};
use warren_state::State;
use warren_state::change::{Mutation, Outcome, Rejection, Transaction};

use crate::explain::Explanation;
use crate::{Beats, IdSource, Index, Seen, explain_service, is_pending, plan};

/// Plans and steps of agents in one answer: far above what a drain of the largest node takes. A
/// state that does not come to rest by then is told as it is.
const ROUNDS_MAX: usize = 10_000;
/// Simulated time after which nothing more is waited for: longer than any wait that is usual, and
/// short of services that wait for their nodes for weeks.
const TIME_MAX_MS: u64 = 3_600_000;
/// Changes in one question.
pub const STEPS_MAX: usize = 32;

/// One thing that is supposed to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Supposed {
    Drain(NodeId),
    /// They are silent, all at once.
    Lose(Vec<NodeId>),
    Scale {
        service: ServiceId,
        replicas: u32,
    },
    /// It joins, as ready as any; its id decides between equals, and will be another one.
    Add(Box<Node>),
}

/// Why a step cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SimulateError {
    #[error("{given} steps, at most {STEPS_MAX} are simulated at once")]
    TooMany { given: usize },
    #[error("service {0} is a job: its tasks end by themselves")]
    Job(String),
    #[error("service {0} is global: it has one task on every node")]
    Global(String),
    #[error("{0} does not exist")]
    Gone(String),
    #[error("{0}")]
    Rejected(#[from] Rejection),
}

/// A slot that is somewhere else, or newly somewhere, or nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub service: ServiceId,
    /// 0 of a global service.
    pub slot: u32,
    /// None: it did not exist, or waited.
    pub from: Option<NodeId>,
    /// None: it ends, or waits.
    pub to: Option<NodeId>,
    /// It has no place: it waits, or stays where it should not.
    pub pending: bool,
    /// Its task is the same one as before. It waited already, or waits still.
    pub kept: bool,
}

/// How it would be.
#[derive(Debug, Clone)]
pub struct Simulation {
    /// In order of service and slot; what stays as it is is left out, what waits is not.
    pub changes: Vec<Change>,
    /// Of services with tasks that wait: why, as `explain` tells of the state that would be.
    pub pending: Vec<Explanation>,
    /// The copy at its end.
    pub state: State,
    /// Nodes that are there only in it.
    pub added: Vec<NodeId>,
    /// Of the copy's clock, until it came to rest.
    pub took_ms: u64,
    /// It had not come to rest by [`ROUNDS_MAX`] or [`TIME_MAX_MS`].
    pub unsettled: bool,
}

/// Lets steps happen to a copy of the state, one after the other, each to its end. `now` is the
/// leader's clock; nodes that are ready are taken to be heard for ever, unless they are lost.
///
/// # Errors
/// [`SimulateError`] of the first step that cannot be.
pub fn simulate(
    state: &State,
    steps: &[Supposed],
    ids: &mut dyn IdSource,
    now: Time,
) -> Result<Simulation, SimulateError> {
    if steps.len() > STEPS_MAX {
        return Err(SimulateError::TooMany { given: steps.len() });
    }
    let begin = now.max(state.time());
    let mut copy = Copy::new(state, ids, begin);
    copy.suspend_schedules()?;
    for step in steps {
        copy.suppose(step)?;
        copy.settle()?;
    }
    let added: Vec<NodeId> = steps.iter().filter_map(added).collect();
    let pending = waiting(&copy.state).into_iter();
    let pending = pending.filter_map(|service| explain_service(&copy.state, service)).collect();
    let changes = changes(state, &copy.state);
    let (took_ms, unsettled) = (copy.now.since_ms(begin), copy.unsettled);
    Ok(Simulation { changes, pending, state: copy.state, added, took_ms, unsettled })
}

fn added(step: &Supposed) -> Option<NodeId> {
    match step {
        Supposed::Add(node) => Some(node.id),
        Supposed::Drain(_) | Supposed::Lose(_) | Supposed::Scale { .. } => None,
    }
}

/// Services with tasks that wait for a place.
fn waiting(state: &State) -> BTreeSet<ServiceId> {
    state.tasks().filter(|task| is_pending(task)).map(|task| task.service).collect()
}

struct Copy<'i> {
    state: State,
    beats: Beats,
    index: Index,
    ids: &'i mut dyn IdSource,
    now: Time,
    unsettled: bool,
}

/// When nodes are heard that nobody loses.
const ALWAYS: Time = Time(u64::MAX >> 1);

impl<'i> Copy<'i> {
    fn new(state: &State, ids: &'i mut dyn IdSource, now: Time) -> Self {
        let heard = state.nodes().filter(|node| node.status == NodeStatus::Ready);
        let seen = heard.map(|node| (node.id, Seen { at: ALWAYS, rtt_ms: 0 })).collect();
        let beats = Beats { since: now, seen, ..Beats::default() };
        Self { state: state.clone(), beats, index: Index::default(), ids, now, unsettled: false }
    }

    /// What a schedule begins meanwhile is no consequence of what is supposed.
    fn suspend_schedules(&mut self) -> Result<(), SimulateError> {
        let scheduled = self.state.services().filter(|service| {
            service.spec.job.schedule.is_some()
                && service.job.as_ref().is_some_and(|job| !job.suspended)
        });
        let suspend =
            scheduled.map(|service| Mutation::Suspend { id: service.id, suspended: true });
        let mutations: Vec<Mutation> = suspend.collect();
        if mutations.is_empty() { Ok(()) } else { self.write(mutations) }
    }

    fn write(&mut self, mutations: Vec<Mutation>) -> Result<(), SimulateError> {
        let transaction = Transaction { mutations, ..Transaction::default() };
        let outcome = self.state.apply(self.now, &[transaction], &mut Vec::new()).pop();
        match outcome {
            Some(Outcome::Rejected(rejection)) => Err(rejection.into()),
            Some(Outcome::Applied { .. } | Outcome::Repeated { .. }) | None => Ok(()),
        }
    }

    fn suppose(&mut self, step: &Supposed) -> Result<(), SimulateError> {
        match step {
            Supposed::Drain(id) => {
                let (id, availability) = (*id, Availability::Drain);
                self.write(vec![Mutation::SetAvailability { id, availability, deadline_ms: None }])
            }
            Supposed::Lose(nodes) => {
                for id in nodes {
                    if self.state.node(*id).is_none() {
                        return Err(SimulateError::Gone(format!("node {id}")));
                    }
                    if self.beats.seen.get(id).is_some_and(|seen| seen.at == ALWAYS) {
                        self.beats.seen.insert(*id, Seen { at: self.now, rtt_ms: 0 });
                    }
                }
                Ok(())
            }
            Supposed::Scale { service, replicas } => {
                let gone = || SimulateError::Gone(format!("service {service}"));
                let before = self.state.service(*service).ok_or_else(gone)?;
                let mut spec = before.spec.clone();
                match &mut spec.mode {
                    Mode::Replicated { replicas: wanted } => *wanted = *replicas,
                    Mode::Global => return Err(SimulateError::Global(spec.name.to_string())),
                    Mode::ReplicatedJob { .. } | Mode::GlobalJob => {
                        return Err(SimulateError::Job(spec.name.to_string()));
                    }
                }
                self.write(vec![Mutation::UpdateService { id: *service, spec }])
            }
            Supposed::Add(node) => {
                self.beats.seen.insert(node.id, Seen { at: ALWAYS, rtt_ms: 0 });
                self.write(vec![Mutation::CreateNode(Node::clone(node))])
            }
        }
    }

    /// Until nothing is to be done any more.
    fn settle(&mut self) -> Result<(), SimulateError> {
        let until = self.now.plus_ms(TIME_MAX_MS);
        for _ in 0..ROUNDS_MAX {
            let plan = plan(&self.state, &mut self.index, &self.beats, self.ids, self.now);
            let more = plan.more;
            let planned = !plan.transaction.mutations.is_empty();
            if planned {
                self.write(plan.transaction.mutations)?;
            }
            if more && planned {
                continue;
            }
            if self.obey()? || planned {
                continue;
            }
            // What waits beyond that waits for people.
            match plan.wake_at.filter(|at| *at <= until) {
                Some(at) => self.now = self.now.max(at),
                None => return Ok(()),
            }
        }
        self.unsettled = true;
        Ok(())
    }

    /// Agents that are heard do as they are told; says whether they had anything to do.
    fn obey(&mut self) -> Result<bool, SimulateError> {
        let heard = |task: &&Task| {
            let seen = task.node.and_then(|node| self.beats.seen.get(&node));
            seen.is_some_and(|seen| seen.at == ALWAYS)
        };
        let reports = self.state.tasks().filter(heard).filter_map(|task| self.report(task));
        let reports: Vec<Mutation> = reports.collect();
        let busy = !reports.is_empty();
        for some in reports.chunks(Transaction::MUTATIONS_MAX) {
            self.write(some.to_vec())?;
        }
        Ok(busy)
    }

    fn report(&self, task: &Task) -> Option<Mutation> {
        let state = match task.desired {
            Desired::Running if task.hook().is_some() && !task.status.state.is_terminal() => {
                TaskState::Complete
            }
            Desired::Running if task.status.state < TaskState::Running => TaskState::Running,
            Desired::Running if is_unwell(task) => TaskState::Running,
            Desired::Shutdown if !task.status.state.is_terminal() => TaskState::Complete,
            Desired::Remove if task.status.state != TaskState::Removed => TaskState::Removed,
            Desired::Running | Desired::Shutdown | Desired::Remove => return None,
        };
        let mut status = TaskStatus { state, since: self.now, ..task.status.clone() };
        status.attempt = status.attempt.max(1);
        status.started = status.started.or(Some(self.now));
        let health = status.health.filter(|_| state == TaskState::Running);
        status.health = health.map(|_| Health { state: HealthState::Healthy, since: self.now });
        Some(Mutation::ReportTask { id: task.id, node: task.node?, status })
    }
}

fn is_unwell(task: &Task) -> bool {
    task.status.state == TaskState::Running && !task.status.is_ready()
}

/// Of a slot: its task that is somewhere, of two while one takes over the newer, and whether one
/// waits.
type Places<'a> = BTreeMap<(ServiceId, u32, Option<NodeId>), (&'a Task, bool)>;

fn places(state: &State) -> Places<'_> {
    let mut places = Places::new();
    let live = |task: &&Task| task.desired == Desired::Running && !task.status.state.is_terminal();
    for task in state.tasks().filter(live).filter(|task| task.hook().is_none()) {
        let global = state.service(task.service).is_some_and(|s| s.spec.mode == Mode::Global);
        let key = match global {
            true => (task.service, 0, task.node),
            false => (task.service, task.slot, None),
        };
        let (best, waits) = places.entry(key).or_insert((task, false));
        *waits |= task.node.is_none();
        let age = |task: &Task| (task.node.is_some(), task.created, task.id);
        if age(task) > age(best) {
            *best = task;
        }
    }
    places
}

fn changes(before: &State, after: &State) -> Vec<Change> {
    let (old, new) = (places(before), places(after));
    let keys: BTreeSet<_> = old.keys().chain(new.keys()).copied().collect();
    let lost = |node: NodeId| after.node(node).is_none_or(|node| node.status == NodeStatus::Down);
    let drains = |node: NodeId| {
        after.node(node).is_some_and(|node| node.availability == Availability::Drain)
    };
    // Its tasks end by themselves.
    let job = |id: ServiceId| after.service(id).is_some_and(|service| service.job.is_some());
    let change = |key: (ServiceId, u32, Option<NodeId>)| {
        let (service, slot, _) = key;
        let (was, is) = (old.get(&key), new.get(&key));
        let node = |place: Option<&(&Task, bool)>| place.and_then(|(task, _)| task.node);
        let (from, to) = (node(was), node(is));
        let stays = from == to && to.is_some_and(drains) && !job(service);
        let pending = stays || is.is_some_and(|(_, waits)| *waits);
        let kept = was.zip(is).is_some_and(|((was, _), (is, _))| was.id == is.id);
        // What is kept on a node that is gone is told: nobody replaces it.
        let told = from != to || pending || !kept || to.is_some_and(lost);
        told.then_some(Change { service, slot, from, to, pending, kept })
    };
    keys.into_iter().filter_map(change).collect()
}

/// Whether a change is a task that is left on a node that is lost.
pub fn is_left_behind(simulation: &Simulation, change: &Change) -> bool {
    let down = |node: &Node| node.status == NodeStatus::Down;
    let there = change.to.and_then(|node| simulation.state.node(node));
    change.kept && there.is_some_and(down)
}

/// A node as another one is, without what is there.
pub fn like(node: &Node, id: NodeId, hostname: String) -> Node {
    let mut description = node.description.clone();
    description.hostname = hostname;
    Node {
        worker: true,
        status: NodeStatus::Ready,
        labels: node.labels.clone(),
        generic: node.generic.clone(),
        system_reserved: node.system_reserved.clone(),
        defaults: node.defaults,
        taints: node.taints.clone(),
        ..Node::new(id, description)
    }
}

/// What a person would call a slot: `web.2`, or `web` of a global service.
pub fn slot_name(service: &Service, slot: u32) -> String {
    match slot {
        0 => service.spec.name.to_string(),
        slot => format!("{}.{slot}", service.spec.name),
    }
}
