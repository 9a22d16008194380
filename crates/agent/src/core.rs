//! Everything this agent knows, and what follows from it.
//!
//! Pure: one [`Input`] at a time in, [`Command`]s out; the loop in `worker`
//! feeds it and does what it says. It owns the assigned set, a machine per
//! task, the wanted table, the outbox of reports and the leases.
//!
//! A set kept from an earlier life counts as held from the start, and is acted
//! upon once a manager has confirmed or replaced it, or after [`ALONE_MS`]
//! without a word.
//!
//! Invariant: after [`Core::handle`] nothing is left that could be decided now.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use warren_model::bind::BindRule;
use warren_model::defaults::Defaults;
use warren_model::health;
use warren_model::service::PortSpec;
use warren_model::task::TaskStatus;
use warren_model::{Allowed, ServiceId, TaskId, TaskTemplate};

use crate::assignments::Set;
use crate::cache::{Cached, Changed};
use crate::kernel::{Drawing, Site};
use crate::lease::Lease;
use crate::mesh::Mesh;
use crate::names::Asker;
use crate::published::{self, Claim, PortKey};
use crate::report::Outbox;
use crate::table::Publisher;
use crate::task::{Effect, Event, Machine, Now, Wanted};
use crate::underlay::Underlay;

use self::network::Reached;

mod alone;
mod assigned;
mod kinds;
mod network;
#[cfg(test)]
mod tests;

pub use alone::{ALONE_MS, KEPT_MS, RULES_KEPT_MS};
pub use kinds::{
    Command, FoundTask, Input, Order, TaskSpec, TaskView, VolumeUser, companion_id, container_id,
    group,
};

#[derive(Debug)]
struct Held {
    machine: Machine,
    spec: Arc<TaskSpec>,
    claimed: BTreeSet<PortKey>,
    /// As last given to the outbox.
    told: Option<TaskStatus>,
    /// As last admitted.
    asker: Option<Asker>,
}

#[derive(Debug, Default)]
pub struct Core {
    set: Set,
    tasks: BTreeMap<TaskId, Held>,
    found: BTreeMap<TaskId, FoundTask>,
    publisher: Publisher,
    drawing: Drawing,
    mesh: Mesh,
    underlay: Underlay,
    /// Why something of the way to other nodes does not hold.
    unreached: Option<String>,
    outbox: Outbox,
    table_stale: bool,
    reached: Reached,
    /// The set must be replaced by a complete one.
    broken: bool,
    /// The set is acted upon.
    live: bool,
    /// When a kept set is acted upon without a manager's word.
    alone_at_ms: Option<u64>,
    /// Until when the kernel keeps the rules of an earlier process: they may be newer than the
    /// kept set that is acted upon.
    rules_kept_until_ms: Option<u64>,
    /// A complete set of a manager was taken in this life.
    swept: bool,
    lease: Lease,
    /// Something of the present session was taken: what is held is what managers want.
    current: bool,
    /// Containers of an unknown task that an earlier epoch may have known.
    spared: BTreeSet<TaskId>,
    /// How tasks ended in an earlier life, until the first word of a manager has been taken in.
    ended: BTreeMap<TaskId, TaskStatus>,
    /// Until when tasks of an earlier epoch are kept.
    kept_until_ms: Option<u64>,
    /// What is not on disk yet.
    changed: Option<Changed>,
    commands: Vec<Command>,
}

impl Core {
    /// `found` is what an earlier process left running or ended.
    pub fn new(found: BTreeMap<TaskId, FoundTask>) -> Self {
        Self { found, ..Self::default() }
    }

    /// On this node.
    #[must_use]
    pub fn at(mut self, site: Site) -> Self {
        self.drawing = Drawing::new(site);
        self
    }

    /// What to tell managers that we hold; 0 asks for everything.
    pub fn revision(&self) -> u64 {
        if self.broken { 0 } else { self.set.revision }
    }

    /// Recovery epoch of what we hold.
    pub fn epoch(&self) -> u64 {
        self.set.epoch()
    }

    pub fn set(&self) -> &Set {
        &self.set
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
            may_restart: held.machine.may_begin_anew(),
            may_pause: held.machine.may_pause(),
        })
    }

    /// Tasks whose containers run, with their attempts.
    pub fn up(&self) -> Vec<(TaskId, u32)> {
        let up = self.tasks.iter().filter(|(_, held)| held.machine.is_up());
        up.map(|(id, held)| (*id, held.machine.attempt())).collect()
    }

    /// References of the images that tasks of this node need, and that their services may go back
    /// to.
    pub fn images(&self) -> BTreeSet<String> {
        let gone = |held: &&Held| !held.machine.is_gone();
        let images = self.tasks.values().filter(gone).map(|held| held.spec.template.image.clone());
        let kept = self.set.all_services().flat_map(|(_, service)| service.kept_images.clone());
        images.chain(self.companion_images()).chain(kept).collect()
    }

    /// Those of init containers and sidecars alone.
    pub fn companion_images(&self) -> BTreeSet<String> {
        let gone = |held: &&Held| !held.machine.is_gone();
        let companions = self.tasks.values().filter(gone).flat_map(|h| &h.spec.template.companions);
        companions.map(|companion| companion.task.image.clone()).collect()
    }

    /// Tasks of this node that use volumes with a name.
    pub fn volume_users(&self) -> Vec<VolumeUser> {
        let held = self.tasks.values().filter(|held| !held.machine.is_gone());
        let held = held.filter(|held| held.spec.template.keeps_data());
        held.map(|held| VolumeUser {
            spec: Arc::clone(&held.spec),
            service_name: self.service_name(held.spec.service).to_owned(),
            labels: self
                .set
                .service(held.spec.service)
                .map(|s| s.labels.clone())
                .unwrap_or_default(),
        })
        .collect()
    }

    /// When to send [`Input::Wake`], on the monotonic clock.
    pub fn wake_at(&self) -> Option<u64> {
        let machines = self.tasks.values().filter_map(|held| held.machine.wake_at());
        let own = self.publisher.wake_at().into_iter().chain(self.alone_wake_at());
        let own = own.chain(self.mesh.wake_at()).chain(self.underlay.wake_at());
        let own = own.chain(self.rules_kept_until_ms);
        machines.chain(own).min()
    }

    pub fn handle(&mut self, input: Input, now: Now) -> Vec<Command> {
        self.lease.begin(now.mono_ms);
        match input {
            Input::Assigned(message) => self.assigned(*message, now),
            Input::Opened => {
                self.current = false;
                self.reached.told = 0;
            }
            Input::Heard { sent_ms } => self.heard(sent_ms, now),
            Input::Removed => self.removed(now),
            Input::Done { task, attempt, event, claimed } => {
                self.done(task, attempt, event, claimed, now);
            }
            Input::Applied { generation, applied } => self.applied(generation, &applied, now),
            Input::Held(holding) => self.held(holding, now),
            Input::Resolved { name, addresses } => {
                self.table_stale |= self.underlay.found(&name, &addresses, now.mono_ms);
            }
            Input::Resumed => self.resumed(now),
            Input::PortsFreed => {
                self.mesh.freed();
                self.step_all(|_| Some(Event::PortsFreed), now);
            }
            Input::Restart(task) => self.step(task, Event::Restart, now),
            Input::Paused(task, paused) => self.step(task, Event::Paused(paused), now),
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

    fn resumed(&mut self, now: Now) {
        let kept = &self.set.kept.tasks;
        let spoken = |held: &&Held| {
            held.machine.wanted() < Wanted::Forget && !kept.contains_key(&held.spec.id)
        };
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
        let (serving, reached) = (held.machine.is_serving(), held.machine.is_reached());
        let effects = held.machine.step(event, now);
        let turned = serving != held.machine.is_serving();
        self.table_stale |= turned || reached != held.machine.is_reached();
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
                labels: match (&effect, self.set.service(held.spec.service)) {
                    // Whoever looks after sidecars from then on may start them again.
                    (Effect::Start | Effect::Wait, Some(service)) => service.labels.clone(),
                    (_, _) => BTreeMap::new(),
                },
                claims: match held.spec.hook() {
                    None => self.claims(held.spec.service),
                    Some(_) => Vec::new(),
                },
                attempt: held.machine.attempt(),
                restarts: held.machine.restarts(),
                last_exit: held.machine.status().exit,
                asker: held.asker.clone(),
                generation: self.publisher.needed(held.spec.service),
                defaults: self.defaults(),
                allow_bind: match &effect {
                    Effect::Start | Effect::Wait => self.allow_bind(),
                    _ => Vec::new(),
                },
                refused: self.refused(&held.spec.template),
                parted: self.parted(held.spec.service),
                port: health::first_tcp(self.ports(held.spec.service)),
                effect,
            };
            self.commands.push(Command::Do(Box::new(order)));
        }
    }

    /// Managers have looked when the service was made; since then less may be allowed.
    fn refused(&self, template: &TaskTemplate) -> Option<String> {
        let none = Allowed::default();
        let allowed = self.set.settings.as_ref().map_or(&none, |settings| &settings.allowed);
        let error = allowed.check(template).err()?;
        Some(format!("{error}; {}", error.hint()))
    }

    fn defaults(&self) -> Defaults {
        self.set.settings.as_ref().map(|settings| settings.defaults).unwrap_or_default()
    }

    fn allow_bind(&self) -> Vec<BindRule> {
        let settings = self.set.settings.as_ref();
        settings.map(|settings| settings.allow_bind.clone()).unwrap_or_default()
    }

    fn tell(&mut self, id: TaskId, now: Now) {
        let Some(held) = self.tasks.get_mut(&id) else { return };
        // Of kept tasks managers know nothing, nor could they do anything with it.
        if held.machine.wanted() == Wanted::Forget || self.set.kept.tasks.contains_key(&id) {
            self.outbox.forget(id);
            return;
        }
        let status = held.machine.status();
        if held.told.as_ref() != Some(status) {
            held.told = Some(status.clone());
            self.outbox.put(id, status.clone(), now.mono_ms);
            self.changed = self.changed.max(Some(Changed::Statuses));
        }
    }

    /// Draws every conclusion that can be drawn now.
    fn settle(&mut self, now: Now) {
        self.look_around(now);
        // Before it is known which ports are held, they would be taken from their clients.
        self.rules_kept_until_ms = self.rules_kept_until_ms.filter(|until| *until > now.mono_ms);
        // Nor at first from a kept table of which the next one has come in part.
        let is_whole = self.set.is_whole() || self.reached.drawn > 0;
        let may_draw =
            self.live && is_whole && self.mesh.is_known() && self.rules_kept_until_ms.is_none();
        loop {
            if may_draw && std::mem::take(&mut self.table_stale) {
                self.draw();
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
            if agreed.is_empty() && !dropped && !(may_draw && self.table_stale) {
                break;
            }
        }
        self.look_outside(now);
        if may_draw && self.set.is_whole() {
            self.reached.drawn = self.set.revision;
        }
        if let Some((generation, table)) = self.publisher.next(now.mono_ms) {
            self.reached.under_way = self.reached.drawn;
            self.commands.push(Command::Apply { generation, table });
        }
        self.tell_reached();
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

    /// Without those of the mesh that something else here has, if other nodes answer them: a task
    /// does not wait for what it can be reached without.
    fn claims(&self, service: ServiceId) -> Vec<Claim> {
        let Some(held) = self.set.service(service) else { return Vec::new() };
        let mut claims = published::claims(&held.ports);
        if self.set.table.peers.len() > 1 {
            claims.retain(|claim| !self.mesh.is_refused(claim.key, service));
        }
        claims
    }

    /// Published ports of a service.
    fn ports(&self, service: ServiceId) -> &[PortSpec] {
        self.set.service(service).map_or(&[], |held| &held.ports)
    }

    fn service_name(&self, service: ServiceId) -> &str {
        self.set.service(service).map_or("", |held| held.name.as_str())
    }
}
