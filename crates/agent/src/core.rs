//! Everything this agent knows, and what follows from it.
//!
//! Pure: one [`Input`] at a time in, [`Command`]s out; the loop in `worker`
//! feeds it and does what it says. It owns the assigned set, a machine per
//! task, the wanted table and the outbox of reports.
//!
//! Invariant: after [`Core::handle`] nothing is left that could be decided now.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use warren_model::service::PortSpec;
use warren_model::task::TaskStatus;
use warren_model::{ServiceId, TaskId};

use crate::assignments::{self, AssignedTask, Assignment, Set};
use crate::published::{self, Claim, PortKey, Replica};
use crate::reconcile::{self, Action};
use crate::report::Outbox;
use crate::table::Publisher;
use crate::task::{Effect, Event, Machine, Now, Policy, Wanted};

mod kinds;

pub use kinds::{Command, FoundTask, Input, Order, TaskSpec, TaskView, container_id, group};

#[derive(Debug)]
struct Held {
    machine: Machine,
    spec: Arc<TaskSpec>,
    claimed: BTreeSet<PortKey>,
    /// As last given to the outbox.
    told: Option<TaskStatus>,
}

#[derive(Debug, Default)]
pub struct Core {
    set: Set,
    tasks: BTreeMap<TaskId, Held>,
    found: BTreeMap<TaskId, FoundTask>,
    publisher: Publisher,
    outbox: Outbox,
    table_stale: bool,
    /// The set must be replaced by a complete one.
    broken: bool,
    commands: Vec<Command>,
}

impl Core {
    /// `found` is what an earlier process left running or ended.
    pub fn new(found: BTreeMap<TaskId, FoundTask>) -> Self {
        Self { found, ..Self::default() }
    }

    /// What to tell managers that we hold; 0 asks for everything.
    pub fn revision(&self) -> u64 {
        if self.broken { 0 } else { self.set.revision }
    }

    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    pub fn report_due_at(&self) -> Option<u64> {
        self.outbox.due_at()
    }

    pub fn task(&self, id: TaskId) -> Option<TaskView> {
        let held = self.tasks.get(&id)?;
        Some(TaskView {
            spec: Arc::clone(&held.spec),
            service_name: self.service_name(held.spec.service).to_owned(),
            status: held.machine.status().clone(),
            is_up: held.machine.is_up(),
        })
    }

    /// Tasks whose containers run, with their attempts.
    pub fn up(&self) -> Vec<(TaskId, u32)> {
        let up = self.tasks.iter().filter(|(_, held)| held.machine.is_up());
        up.map(|(id, held)| (*id, held.machine.attempt())).collect()
    }

    /// References of the images that tasks of this node need.
    pub fn images(&self) -> BTreeSet<String> {
        let gone = |held: &&Held| !held.machine.is_gone();
        self.tasks.values().filter(gone).map(|held| held.spec.template.image.clone()).collect()
    }

    /// When to send [`Input::Wake`], on the monotonic clock.
    pub fn wake_at(&self) -> Option<u64> {
        let machines = self.tasks.values().filter_map(|held| held.machine.wake_at());
        machines.chain(self.publisher.wake_at()).min()
    }

    pub fn handle(&mut self, input: Input, now: Now) -> Vec<Command> {
        match input {
            Input::Assigned(message) => self.assigned(message, now),
            Input::Done { task, attempt, event, claimed } => {
                self.done(task, attempt, event, claimed, now);
            }
            Input::Applied { generation, error } => self.applied(generation, error, now),
            Input::Resumed => self.resumed(now),
            Input::PortsFreed => self.step_all(|_| Some(Event::PortsFreed), now),
            Input::Wake => {
                let due = |machine: &Machine| {
                    machine.wake_at().is_some_and(|at| at <= now.mono_ms).then_some(Event::Wake)
                };
                self.step_all(due, now);
            }
        }
        self.settle(now);
        std::mem::take(&mut self.commands)
    }

    fn assigned(&mut self, message: Assignment, now: Now) {
        let first = self.set.revision == 0;
        let complete = message.complete;
        let ports_before: BTreeMap<ServiceId, Vec<PortSpec>> =
            self.set.services.iter().map(|(id, held)| (*id, held.ports.clone())).collect();
        if let Err(gap) = self.set.apply(message) {
            self.broken = true;
            self.commands.push(Command::Reconnect(gap.to_string()));
            return;
        }
        self.broken = false;
        self.table_stale = true;
        self.reconcile(now);
        self.announce_ports(&ports_before, now);
        if complete {
            let set = &self.set;
            // A status that managers have need not be told again.
            let news = self.tasks.iter().filter(|(id, held)| {
                set.tasks.get(id).is_some_and(|task| task.known != *held.machine.status())
            });
            let news: Vec<_> =
                news.map(|(id, held)| (*id, held.machine.status().clone())).collect();
            for held in self.tasks.values_mut() {
                held.told = Some(held.machine.status().clone());
            }
            self.outbox.clear();
            for (id, status) in news {
                self.outbox.put(id, status, now.mono_ms);
            }
        }
        if first {
            let keep = self.tasks.keys().copied().collect();
            self.commands.push(Command::SweepLogs { keep });
        }
    }

    fn reconcile(&mut self, now: Now) {
        let held = self.tasks.iter().map(|(id, held)| {
            (*id, reconcile::Held { service: held.spec.service, wanted: held.machine.wanted() })
        });
        let held = held.collect();
        for action in reconcile::reconcile(&self.set, &held, &self.found) {
            match action {
                Action::Make(id) | Action::Adopt(id) => {
                    if let Some(task) = self.set.tasks.get(&id).cloned() {
                        self.make(task, now);
                    }
                }
                Action::Want(id, wanted) => self.step(id, Event::Wanted(wanted), now),
                Action::Discard(task) => {
                    if let Some(found) = self.found.remove(&task) {
                        let mut attempts = found.older;
                        attempts.push(found.newest.attempt);
                        self.commands.push(Command::Discard { task, attempts });
                    }
                }
            }
        }
    }

    fn make(&mut self, task: AssignedTask, now: Now) {
        let service = self.set.services.get(&task.service);
        let template = service.and_then(|service| service.templates.get(&task.template)).cloned();
        let found = self.found.remove(&task.id);
        let understood = template.is_some();
        let template = template.unwrap_or_default();
        let mut policy = assignments::policy(&template);
        let (wanted, known) = (task.wanted(), task.known.clone());
        let why =
            || format!("template {} of service {} is not understood", task.template, task.service);
        let (machine, mut effects) = match &found {
            Some(found) if understood => Machine::adopt(wanted, policy, known, &found.newest, now),
            Some(found) => {
                // What runs goes on running; it cannot be started again.
                policy = never_again(policy);
                Machine::adopt(wanted, policy, known, &found.newest, now)
            }
            None if understood => Machine::new(wanted, policy, known, now),
            None => Machine::rejected(wanted, policy, known, &why(), now),
        };
        let older = found.map(|found| found.older).unwrap_or_default();
        effects.extend(older.into_iter().map(|attempt| Effect::Clear { attempt }));
        // Its shim holds them, or held them until a moment ago; the claim says for certain.
        let claimed = if machine.is_serving() {
            self.claims(task.service).iter().map(|claim| claim.key).collect()
        } else {
            BTreeSet::new()
        };
        let spec = TaskSpec {
            id: task.id,
            service: task.service,
            slot: task.slot,
            template_number: task.template,
            template,
            address: task.address,
        };
        let told = Some(task.known);
        self.tasks.insert(task.id, Held { machine, spec: Arc::new(spec), claimed, told });
        self.order(task.id, effects);
        self.tell(task.id, now);
    }

    /// Running tasks of services whose published ports changed must hold the new ones.
    fn announce_ports(&mut self, before: &BTreeMap<ServiceId, Vec<PortSpec>>, now: Now) {
        let changed: BTreeSet<ServiceId> = self
            .set
            .services
            .iter()
            .filter(|(id, service)| before.get(id).is_some_and(|ports| *ports != service.ports))
            .map(|(id, _)| *id)
            .collect();
        if changed.is_empty() {
            return;
        }
        let of_changed = self.tasks.iter().filter(|(_, held)| changed.contains(&held.spec.service));
        let ids: Vec<TaskId> = of_changed.map(|(id, _)| *id).collect();
        for id in ids {
            self.step(id, Event::PortsChanged, now);
        }
    }

    fn done(
        &mut self,
        task: TaskId,
        attempt: u32,
        event: Event,
        claimed: Option<BTreeSet<PortKey>>,
        now: Now,
    ) {
        let Some(held) = self.tasks.get_mut(&task) else { return };
        let of_another = attempt != held.machine.attempt();
        if of_another && !matches!(event, Event::Cleared { .. }) {
            return;
        }
        if let Some(claimed) = claimed
            && claimed != held.claimed
        {
            held.claimed = claimed;
            self.table_stale = true;
        }
        self.step(task, event, now);
    }

    fn applied(&mut self, generation: u64, error: Option<String>, now: Now) {
        self.publisher.done(generation, error.is_none(), now.mono_ms);
        if let Some(error) = error {
            let message = format!("published ports: {error}");
            self.step_all(
                |machine| machine.awaits_table().then(|| Event::PublishFailed(message.clone())),
                now,
            );
        }
    }

    fn resumed(&mut self, now: Now) {
        let spoken = |held: &&Held| held.machine.wanted() < Wanted::Forget;
        let statuses: Vec<_> = self
            .tasks
            .values()
            .filter(spoken)
            .map(|held| (held.spec.id, held.machine.status().clone()))
            .collect();
        self.outbox.clear();
        for (id, status) in statuses {
            self.outbox.repeat(id, status, now.mono_ms);
        }
    }

    fn step_all(&mut self, event: impl Fn(&Machine) -> Option<Event>, now: Now) {
        let events: Vec<(TaskId, Event)> = self
            .tasks
            .iter()
            .filter_map(|(id, held)| event(&held.machine).map(|event| (*id, event)))
            .collect();
        for (id, event) in events {
            self.step(id, event, now);
        }
    }

    fn step(&mut self, id: TaskId, event: Event, now: Now) {
        let Some(held) = self.tasks.get_mut(&id) else { return };
        let serving = held.machine.is_serving();
        let effects = held.machine.step(event, now);
        let turned = serving != held.machine.is_serving();
        self.table_stale |= turned;
        if turned || !held.machine.awaits_table() {
            // What it waited for is not what it waits for now.
            self.publisher.forget(id);
        }
        self.order(id, effects);
        self.tell(id, now);
    }

    fn order(&mut self, id: TaskId, effects: Vec<Effect>) {
        let Some(held) = self.tasks.get(&id) else { return };
        for effect in effects {
            let order = Order {
                spec: Arc::clone(&held.spec),
                service_name: self.service_name(held.spec.service).to_owned(),
                claims: self.claims(held.spec.service),
                attempt: held.machine.attempt(),
                restarts: held.machine.restarts(),
                last_exit: held.machine.status().exit,
                effect,
            };
            self.commands.push(Command::Do(Box::new(order)));
        }
    }

    fn tell(&mut self, id: TaskId, now: Now) {
        let Some(held) = self.tasks.get_mut(&id) else { return };
        if held.machine.wanted() == Wanted::Forget {
            self.outbox.forget(id);
            return;
        }
        let status = held.machine.status();
        if held.told.as_ref() != Some(status) {
            held.told = Some(status.clone());
            self.outbox.put(id, status.clone(), now.mono_ms);
        }
    }

    /// Draws every conclusion that can be drawn now.
    fn settle(&mut self, now: Now) {
        loop {
            if std::mem::take(&mut self.table_stale) && self.set.revision > 0 {
                let table = self.table();
                self.publisher.want(table);
            }
            let mut agreed = Vec::new();
            for (id, held) in &self.tasks {
                let waits = held.machine.awaits_table();
                if waits && self.publisher.agrees(*id, held.spec.service) {
                    agreed.push(*id);
                }
            }
            for id in &agreed {
                self.step(*id, Event::Published, now);
            }
            let dropped = self.drop_gone(now);
            if agreed.is_empty() && !dropped && !self.table_stale {
                break;
            }
        }
        if let Some((generation, table)) = self.publisher.next(now.mono_ms) {
            self.commands.push(Command::Apply { generation, table });
        }
    }

    /// Forgets machines that are done; one may be wanted anew.
    fn drop_gone(&mut self, now: Now) -> bool {
        let gone = |held: &Held| held.machine.is_gone() && held.machine.wanted() == Wanted::Forget;
        let ids: Vec<TaskId> =
            self.tasks.iter().filter(|(_, held)| gone(held)).map(|(id, _)| *id).collect();
        for id in &ids {
            self.tasks.remove(id);
            self.outbox.forget(*id);
            self.publisher.forget(*id);
        }
        if !ids.is_empty() {
            self.table_stale = true;
            self.reconcile(now);
        }
        !ids.is_empty()
    }

    fn table(&self) -> BTreeMap<ServiceId, Vec<warren_net::PublishedPort>> {
        let replicas: Vec<Replica<'_>> = self
            .tasks
            .values()
            .map(|held| Replica {
                service: held.spec.service,
                address: held.spec.address,
                serving: held.machine.is_serving(),
                claimed: &held.claimed,
            })
            .collect();
        let ports = self.set.services.iter().map(|(id, service)| (*id, service.ports.as_slice()));
        published::table(ports, &replicas)
    }

    fn claims(&self, service: ServiceId) -> Vec<Claim> {
        self.set
            .services
            .get(&service)
            .map(|held| published::claims(&held.ports))
            .unwrap_or_default()
    }

    fn service_name(&self, service: ServiceId) -> &str {
        self.set.services.get(&service).map_or("", |held| held.name.as_str())
    }
}

fn never_again(policy: Policy) -> Policy {
    let mut policy = policy;
    policy.restart.condition = warren_model::service::RestartCondition::None;
    policy
}
