//! What follows from an assignment: machines are made, adopted, told off.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use warren_model::service::{PortSpec, RestartCondition};
use warren_model::task::{TaskState, TaskStatus};
use warren_model::{ServiceId, TaskId};

use super::{Changed, Command, Core, Event, Held, Machine, Now, TaskSpec};
use crate::assignments::{self, AssignedTask, Assignment, Gap};
use crate::reconcile::{self, Action};
use crate::task::{Effect, Policy};

impl Core {
    pub(super) fn assigned(&mut self, message: Assignment, now: Now) {
        let complete = message.complete;
        let of_table = message.is_table_alone();
        let table_before = Arc::clone(&self.set.table);
        let ports_before: BTreeMap<ServiceId, Vec<PortSpec>> =
            self.set.services.iter().map(|(id, held)| (*id, held.ports.clone())).collect();
        let told_before = self.set.membership.clone();
        let ended = if self.live { BTreeMap::new() } else { self.ended_before() };
        let taken = match self.set.apply(message) {
            Ok(taken) => taken,
            Err(gap) => {
                // A manager that is behind says nothing about what we hold.
                self.broken |= matches!(gap, Gap::Missed { .. });
                self.commands.push(Command::Reconnect(gap));
                return;
            }
        };
        self.broken = false;
        self.live = true;
        self.alone_at_ms = None;
        self.rules_kept_until_ms = None;
        self.table_stale = true;
        let what = if of_table { Changed::Table } else { Changed::Set };
        self.changed = self.changed.max(Some(what));
        if !Arc::ptr_eq(&self.set.table, &table_before) {
            self.commands.push(Command::Table(Arc::clone(&self.set.table)));
            self.table_came();
        }
        if taken.new_epoch {
            self.keep(now);
        } else {
            self.ended = ended;
        }
        self.heed_choice(now);
        self.reconcile(now);
        self.ended.clear();
        self.announce_ports(&ports_before, now);
        self.current = true;
        self.let_go_on(now);
        if complete {
            self.report_news(now);
        }
        if complete && !std::mem::replace(&mut self.swept, true) {
            let mut keep: BTreeSet<TaskId> = self.tasks.keys().copied().collect();
            keep.extend(self.spared.iter().copied());
            self.commands.push(Command::SweepLogs { keep });
        }
        if self.set.membership != told_before {
            self.tell_membership();
        }
    }

    /// Tasks that are known to have ended, of which nothing was concluded in this life yet.
    fn ended_before(&self) -> BTreeMap<TaskId, TaskStatus> {
        let ended = |status: &TaskStatus| {
            matches!(status.state, TaskState::Complete | TaskState::Failed | TaskState::Rejected)
        };
        let tasks = self.set.tasks.values().filter(|task| ended(&task.known));
        tasks.map(|task| (task.id, task.known.clone())).collect()
    }

    /// What a task has come to: what managers say, unless they have not heard of its end.
    fn known(&mut self, task: &AssignedTask) -> TaskStatus {
        let own = self
            .ended
            .remove(&task.id)
            .filter(|own| !task.known.state.is_terminal() && own.attempt >= task.known.attempt);
        own.unwrap_or_else(|| task.known.clone())
    }

    pub(super) fn tell_membership(&mut self) {
        if let Some(view) = self.set.membership.clone() {
            self.commands.push(Command::Membership(Box::new(view)));
        }
    }

    /// A status that managers have need not be told again.
    fn report_news(&mut self, now: Now) {
        let set = &self.set;
        for (id, held) in &mut self.tasks {
            if let Some(task) = set.tasks.get(id) {
                held.machine.speak_after(&task.known, now);
            }
        }
        let news = self.tasks.iter().filter(|(id, held)| {
            set.tasks.get(id).is_some_and(|task| task.known != *held.machine.status())
        });
        let news: Vec<_> = news.map(|(id, held)| (*id, held.machine.status().clone())).collect();
        for held in self.tasks.values_mut() {
            held.told = Some(held.machine.status().clone());
        }
        self.outbox.clear();
        for (id, status) in news {
            self.outbox.put(id, status, now.mono_ms);
        }
    }

    pub(super) fn reconcile(&mut self, now: Now) {
        if !self.live {
            return;
        }
        let held = self.tasks.iter().map(|(id, held)| {
            (*id, reconcile::Held { service: held.spec.service, wanted: held.machine.wanted() })
        });
        let held = held.collect();
        for action in reconcile::reconcile(&self.set, &held, &self.found) {
            match action {
                Action::Make(id) | Action::Adopt(id) => {
                    let tasks = [&self.set.tasks, &self.set.kept.tasks];
                    let task = tasks.into_iter().find_map(|tasks| tasks.get(&id)).cloned();
                    if let Some(task) = task {
                        self.make(task, now);
                    }
                }
                Action::Want(id, wanted) => self.step(id, Event::Wanted(wanted), now),
                Action::Discard(task) if self.spared.contains(&task) => {}
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
        let template = self.set.template(task.service, task.template).cloned();
        let found = self.found.remove(&task.id);
        let understood = template.is_some();
        let template = template.unwrap_or_default();
        let slotless = task.slot == 0;
        let ports = if slotless { &[] } else { self.ports(task.service) };
        let mut policy = assignments::policy(&template, ports);
        let (wanted, known) = (task.wanted(), self.known(&task));
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
        let claimed = if machine.holds_ports() && !slotless {
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
            address6: self.address6(task.address),
            given: task.given,
            devices: task.devices.clone(),
        };
        let told = Some(task.known);
        let asker = spec.addresses().map(|addresses| self.asker(task.id, task.service, addresses));
        self.tasks.insert(task.id, Held { machine, spec: Arc::new(spec), claimed, told, asker });
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
        let of_changed = self
            .tasks
            .iter()
            .filter(|(_, held)| changed.contains(&held.spec.service) && held.spec.hook().is_none());
        let ids: Vec<TaskId> = of_changed.map(|(id, _)| *id).collect();
        for id in ids {
            let Some(held) = self.tasks.get(&id) else { continue };
            let ports = self.ports(held.spec.service);
            let gate = assignments::policy(&held.spec.template, ports).gate;
            self.step(id, Event::Gate(gate), now);
            self.step(id, Event::PortsChanged, now);
        }
    }
}

fn never_again(policy: Policy) -> Policy {
    let mut policy = policy;
    policy.restart.condition = RestartCondition::None;
    policy
}
