//! A worker's machine: the real agent core, and containers that only exist here.
//!
//! Effects take seeded time. Containers and the kernel's table outlive the
//! daemon, as on a real machine; a power failure takes them. The caller moves
//! time: it calls [`Machine::run_due`] when [`Machine::next_at`] has come.
//!
//! Not here: the session with a manager, and when a daemon dies.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use warren_agent::assignments::Gap;
use warren_agent::core::{Command, Core, FoundTask, Input, Order, group};
use warren_agent::published::PortKey;
use warren_agent::task::{Effect, Ended, Event, Failure, FailureKind, Found, FoundState, Now};
use warren_agent::{Applied, Cached, Holding, MembershipView, Site};
use warren_base::rng::{Rng, SeededRng};
use warren_model::device::Devices;
use warren_model::health::{HealthState, Healthcheck};
use warren_model::quantity::Time;
use warren_model::task::TaskExit;
use warren_model::{NodeId, NodeTable, ServiceId, TaskId};
use warren_net::{Frontend, Table};

use crate::queue::Queue;
use crate::{hooks, jobs};

/// Exit code of a process that a signal 9 ended.
const KILLED: i32 = 137;

/// A container as the machine holds it.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub(crate) service: ServiceId,
    pub(crate) slot: u32,
    pub(crate) address: Option<Ipv4Addr>,
    /// That it was given: `kind=name`.
    pub(crate) devices: Devices,
    /// Of its run.
    pub(crate) params: BTreeMap<String, String>,
    pub(crate) pid: u32,
    pub(crate) started: Time,
    restarts: u32,
    last_exit: Option<TaskExit>,
    pub(crate) ended: Option<Ended>,
    /// The present daemon asked to be told of its end.
    waited: bool,
}

/// What will happen here. `life` is the daemon's: what an earlier one began never arrives.
#[derive(Debug)]
enum Due {
    /// An effect of the agent had an outcome.
    Effect { life: u64, input: Box<Input> },
    /// The agent wanted to be woken, or has reports due.
    Wake { life: u64 },
    /// A stopped container's process ends.
    Ends { task: TaskId, attempt: u32, code: i32, signal: Option<i32> },
}

/// What the agent asks of its session.
#[derive(Debug)]
pub(crate) enum Need {
    Reconnect(Gap),
    /// What this node is to know of the cluster.
    Membership(Box<MembershipView>),
}

pub(crate) struct Machine {
    pub(crate) core: Core,
    site: Site,
    pub(crate) containers: BTreeMap<(TaskId, u32), Container>,
    /// What the kernel publishes.
    pub(crate) table: Table,
    /// What the data plane knows of the network; it outlives the daemon.
    pub(crate) net: Arc<NodeTable>,
    rng: Arc<SeededRng>,
    queue: Queue<Due>,
    life: u64,
    /// When the agent's next wake-up is queued for.
    wake_at: Option<u64>,
    next_pid: u32,
    needs: Vec<Need>,
}

impl Machine {
    pub(crate) fn new(node: NodeId, rng: Arc<SeededRng>) -> Self {
        let site = Site { node, device: String::new(), ipv6: false };
        Self {
            core: Core::default().at(site.clone()),
            site,
            containers: BTreeMap::new(),
            table: Table::default(),
            net: Arc::default(),
            rng,
            queue: Queue::new(),
            life: 0,
            wake_at: None,
            next_pid: 1000,
            needs: Vec::new(),
        }
    }

    pub(crate) fn next_at(&self) -> Option<u64> {
        self.queue.next_at()
    }

    /// The agent takes something in and acts.
    pub(crate) fn handle(&mut self, input: Input, now: Now) -> Vec<Need> {
        for command in self.core.handle(input, now) {
            self.command(command, now);
        }
        self.queue_wake(now);
        std::mem::take(&mut self.needs)
    }

    /// What has come to pass by `now`, one happening at a time; `None` when nothing is left.
    pub(crate) fn run_due(&mut self, now: Now) -> Option<(String, Vec<Need>)> {
        self.queue.next_at().filter(|at| *at <= now.mono_ms)?;
        let (at, due) = self.queue.pop()?;
        let name = format!("{due:?}");
        let needs = match due {
            Due::Effect { life, input } if life == self.life => self.handle(*input, now),
            Due::Wake { life } if life == self.life => {
                self.wake_at.take_if(|queued| *queued <= at);
                self.handle(Input::Wake, now)
            }
            // Of a daemon that is dead.
            Due::Effect { .. } | Due::Wake { .. } => Vec::new(),
            Due::Ends { task, attempt, code, signal } => {
                self.container_ends((task, attempt), code, signal, now);
                Vec::new()
            }
        };
        Some((name, needs))
    }

    /// A new daemon looks at what is there, and at what was kept.
    pub(crate) fn restart(&mut self, cached: Option<Cached>, now: Now) -> Vec<Need> {
        self.life += 1;
        self.wake_at = None;
        for container in self.containers.values_mut() {
            container.waited = false;
        }
        self.core = Core::new(self.found()).at(self.site.clone());
        if let Some(cached) = cached {
            self.core = std::mem::take(&mut self.core).with_cached(cached, now);
        }
        self.handle(Input::Wake, now)
    }

    /// The daemon is gone; what it began is not told to the next.
    pub(crate) fn kill(&mut self) {
        self.life += 1;
        self.core = Core::default();
    }

    /// The machine loses power: processes and kernel state are gone.
    pub(crate) fn power_off(&mut self) {
        self.kill();
        self.containers.clear();
        self.table = Table::default();
        self.net = Arc::default();
    }

    /// One of the running containers dies; whether there was one.
    pub(crate) fn crash_one(&mut self, now: Now) -> bool {
        let alive = self.containers.iter().filter(|(_, container)| container.ended.is_none());
        let alive: Vec<(TaskId, u32)> = alive.map(|(key, _)| *key).collect();
        let Some(at) = pick(self.rng.as_ref(), alive.len()) else { return false };
        self.container_ends(alive[at], KILLED, Some(9), now);
        true
    }

    fn found(&self) -> BTreeMap<TaskId, FoundTask> {
        group(self.containers.iter().map(|((task, attempt), container)| {
            let state = match container.ended {
                None => FoundState::Running { pid: container.pid, at: container.started },
                Some(ended) => FoundState::Exited { started: Some(container.started), ended },
            };
            let found = Found {
                attempt: *attempt,
                restarts: container.restarts,
                last_exit: container.last_exit,
                state,
                paused: false,
            };
            (*task, found)
        }))
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = (TaskId, &Container)> {
        self.containers.iter().filter(|(_, c)| c.ended.is_none()).map(|((task, _), c)| (*task, c))
    }

    /// Containers of tasks that are not in `known`.
    pub(crate) fn strays(&self, known: &BTreeSet<TaskId>) -> Vec<TaskId> {
        self.containers.keys().map(|(task, _)| *task).filter(|task| !known.contains(task)).collect()
    }

    fn command(&mut self, command: Command, now: Now) {
        match command {
            Command::Do(order) => self.order(&order, now),
            Command::Apply { generation, table } => {
                self.table = table;
                let applied = Applied::All;
                self.answer(3, Input::Applied { generation, applied }, now);
            }
            Command::Hold(wanted) => {
                let held = wanted.into_iter().map(|(key, tenant)| (key, tenant.service)).collect();
                self.answer(1, Input::Held(Holding { held, ..Holding::default() }), now);
            }
            Command::Resolve(name) => {
                let addresses = vec![Ipv4Addr::LOCALHOST.into()];
                self.answer(3, Input::Resolved { name, addresses }, now);
            }
            Command::Discard { task, attempts } => {
                for attempt in attempts {
                    self.containers.remove(&(task, attempt));
                }
            }
            Command::SweepLogs { .. } | Command::Note(_) | Command::Admit(_) => {}
            Command::Reconnect(gap) => self.needs.push(Need::Reconnect(gap)),
            Command::Membership(view) => self.needs.push(Need::Membership(view)),
            Command::Table(table) => self.net = table,
        }
    }

    /// Addresses that the kernel sends clients of a published port to.
    pub(crate) fn behind(&self, wanted: u16) -> BTreeSet<Ipv4Addr> {
        let own = self.table.published.iter().filter(|published| published.port == wanted);
        let own = own.flat_map(|published| &published.backends).map(|backend| *backend.ip());
        let leads = |frontend: &Frontend| matches!(frontend, Frontend::Published { port, .. } if *port == wanted);
        let mesh = self.table.services.iter().filter(|mesh| mesh.frontends.iter().any(leads));
        let mesh =
            mesh.flat_map(|mesh| &mesh.backends).filter_map(|backend| match backend.address {
                IpAddr::V4(address) => (backend.weight > 0).then_some(address),
                IpAddr::V6(_) => None,
            });
        own.chain(mesh).collect()
    }

    fn answer(&mut self, within_ms: u64, input: Input, now: Now) {
        let at = now.mono_ms + self.rng.below(within_ms + 1);
        self.queue.at(at, Due::Effect { life: self.life, input: Box::new(input) });
    }

    fn done(&mut self, within_ms: u64, order: &Order, event: Event, now: Now) {
        let (task, attempt) = (order.spec.id, order.attempt);
        self.answer(within_ms, Input::Done { task, attempt, event, claimed: None }, now);
    }

    fn order(&mut self, order: &Order, now: Now) {
        let (task, attempt) = (order.spec.id, order.attempt);
        match &order.effect {
            Effect::Prepare => self.prepare(order, now),
            Effect::Start => self.start(order, now),
            Effect::Wait => {
                let Some(container) = self.containers.get_mut(&(task, attempt)) else {
                    return;
                };
                container.waited = true;
                if let Some(ended) = container.ended {
                    self.done(0, order, Event::Exited(ended), now);
                }
            }
            Effect::Stop { grace_ms } => {
                let stubborn = self.rng.below(10) == 0;
                let (code, signal) = if stubborn { (KILLED, Some(9)) } else { (143, Some(15)) };
                let takes_ms =
                    if stubborn { *grace_ms } else { self.rng.below(50.min(*grace_ms + 1)) };
                let at = now.mono_ms + takes_ms;
                self.queue.at(at, Due::Ends { task, attempt, code, signal });
            }
            Effect::Clear { attempt: old } => {
                self.containers.remove(&(task, *old));
                self.done(10, order, Event::Cleared { attempt: *old }, now);
            }
            Effect::Watch { known, .. } => self.watch(order, *known, now),
            // What comes later than that means nothing to the agent.
            Effect::LookAway => {}
            // Its tasks have one container each.
            Effect::Halt => {}
            Effect::Claim => {
                let claimed = order.claims.iter().map(|claim| claim.key).collect();
                self.claimed(order, Event::Claimed, claimed, now);
            }
            Effect::Release => self.claimed(order, Event::Released, Vec::new(), now),
            Effect::Clean { attempts } => {
                for attempt in attempts {
                    self.containers.remove(&(task, *attempt));
                }
                self.claimed(order, Event::Cleaned, Vec::new(), now);
            }
        }
    }

    /// Most are well soon; some fall ill later, and recover if they are left alone.
    fn watch(&mut self, order: &Order, known: HealthState, now: Now) {
        let health = |state| {
            let output = (state == HealthState::Unhealthy).then(|| "no answer".into());
            Event::Health { state, output }
        };
        let well_ms = match known {
            HealthState::Healthy => 0,
            HealthState::Starting | HealthState::Unhealthy => {
                let at = self.rng.below(400);
                self.later(at, order, health(HealthState::Healthy), now);
                at
            }
        };
        // What nobody declared is asked until the first success alone.
        let declared = order.spec.template.health != Healthcheck::Implicit;
        if declared && self.rng.below(8) == 0 {
            let ill_ms = well_ms + 1 + self.rng.below(2_000);
            self.later(ill_ms, order, health(HealthState::Unhealthy), now);
            let again_ms = ill_ms + 1 + self.rng.below(2_000);
            self.later(again_ms, order, health(HealthState::Healthy), now);
        }
    }

    fn later(&mut self, after_ms: u64, order: &Order, event: Event, now: Now) {
        let (task, attempt) = (order.spec.id, order.attempt);
        let input = Box::new(Input::Done { task, attempt, event, claimed: None });
        self.queue.at(now.mono_ms + after_ms, Due::Effect { life: self.life, input });
    }

    fn claimed(&mut self, order: &Order, event: Event, claimed: Vec<PortKey>, now: Now) {
        let (task, attempt) = (order.spec.id, order.attempt);
        let claimed = Some(claimed.into_iter().collect());
        self.answer(5, Input::Done { task, attempt, event, claimed }, now);
    }

    fn prepare(&mut self, order: &Order, now: Now) {
        if self.rng.below(20) == 0 {
            let message = "registry is away".to_owned();
            let failure = Failure { message, kind: FailureKind::Transient };
            self.done(200, order, Event::PrepareFailed(failure), now);
            return;
        }
        let claimed = order.claims.iter().map(|claim| claim.key).collect();
        self.claimed(order, Event::Prepared, claimed, now);
    }

    fn start(&mut self, order: &Order, now: Now) {
        let key = (order.spec.id, order.attempt);
        if self.rng.below(40) == 0 {
            let failure =
                Failure { message: "no memory now".to_owned(), kind: FailureKind::Transient };
            self.done(10, order, Event::StartFailed(failure), now);
            return;
        }
        let next_pid = &mut self.next_pid;
        // Doing it twice is harmless.
        let container = self.containers.entry(key).or_insert_with(|| {
            *next_pid += 1;
            Container {
                service: order.spec.service,
                slot: order.spec.slot,
                address: order.spec.address,
                devices: order.spec.devices.clone(),
                params: order.spec.given.params.clone(),
                pid: *next_pid,
                started: now.wall,
                restarts: order.restarts,
                last_exit: order.last_exit,
                ended: None,
                waited: false,
            }
        });
        let event = Event::Started { pid: container.pid, at: container.started };
        self.done(8, order, event, now);
        let (code, within_ms) = match hooks::program(&order.spec.template) {
            // Some programs are broken: their service is called so.
            Some("crash") => (1, 100),
            // Others come to an end.
            Some(jobs::PROGRAM) => (0, 3000),
            Some(hooks::UNSURE) => (i32::from(self.rng.below(3) == 0), 1500),
            Some(_) | None => return,
        };
        let (task, attempt) = key;
        let at = now.mono_ms + 8 + self.rng.below(within_ms);
        self.queue.at(at, Due::Ends { task, attempt, code, signal: None });
    }

    fn container_ends(&mut self, key: (TaskId, u32), code: i32, signal: Option<i32>, now: Now) {
        let ended = Ended { code, signal, oom_killed: false, supervisor_lost: false, at: now.wall };
        let Some(container) = self.containers.get_mut(&key).filter(|c| c.ended.is_none()) else {
            return;
        };
        container.ended = Some(ended);
        if container.waited {
            let event = Event::Exited(ended);
            self.answer(2, Input::Done { task: key.0, attempt: key.1, event, claimed: None }, now);
        }
    }

    fn queue_wake(&mut self, now: Now) {
        let wishes = [self.core.wake_at(), self.core.report_due_at()];
        let Some(at) = wishes.into_iter().flatten().min() else { return };
        let at = at.max(now.mono_ms + 1);
        // An earlier wake-up asks again anyway.
        if self.wake_at.is_none_or(|queued| at < queued) {
            self.wake_at = Some(at);
            self.queue.at(at, Due::Wake { life: self.life });
        }
    }
}

/// Any of `len` things.
pub(crate) fn pick(rng: &dyn Rng, len: usize) -> Option<usize> {
    usize::try_from(rng.below(len as u64)).ok().filter(|at| *at < len)
}
