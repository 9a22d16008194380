//! What the kernel and the names of this node follow from, within the core.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use warren_model::service::{PortSpec, PublishMode};
use warren_model::{ServiceId, TaskId};
use warren_net::Addresses;
use warren_net::dns::Upstream;

use super::{Command, Core, Event, Now};
use crate::kernel::{Ground, Held, Local, Part};
use crate::mesh::Holding;
use crate::names::Asker;
use crate::published::{self, Replica};
use crate::table::Applied;

/// Revisions of the set, as far as the kernel has come with them.
#[derive(Debug, Default)]
pub(super) struct Reached {
    /// All of it is in what is wanted of the kernel.
    pub(super) drawn: u64,
    /// Of what the kernel is taking.
    pub(super) under_way: u64,
    /// What it acts upon.
    through: u64,
    /// What managers were told.
    pub(super) told: u64,
}

impl Core {
    /// The kernel's table, as it should be now.
    pub(super) fn draw(&mut self) {
        let locals: BTreeMap<TaskId, Local> = self
            .tasks
            .iter()
            .map(|(id, held)| {
                let (service, machine) = (held.spec.service, &held.machine);
                let serving = machine.is_serving() && held.spec.hook().is_none();
                (*id, Local { service, serving, up: machine.is_reached() })
            })
            .collect();
        let held = self.held_ports();
        let ground = Ground {
            table: &self.set.table,
            settings: self.set.settings.as_deref(),
            locals: &locals,
            held: &held,
            addresses: self.underlay.addresses(),
        };
        let mut whole = self.drawing.draw(&ground);
        for (service, published) in self.published() {
            let known = whole.parts.get(&service).map(|part| {
                let Part { published: _, services, group, policies } = &**part;
                (services.clone(), group.clone(), policies.clone())
            });
            let (mut services, group, policies) = known.unwrap_or_default();
            let v6 = |address| self.address6(Some(address));
            services.extend(published::services6(service, &published, v6));
            whole.parts.insert(service, Arc::new(Part { published, services, group, policies }));
        }
        self.publisher.want(whole);
    }

    /// Until when others may send connections to a container of `service`, after nothing here leads
    /// to it any more.
    pub(super) fn parted(&self, service: ServiceId) -> Option<u64> {
        self.drawing.is_reached_from_elsewhere(service).then_some(self.set.revision)
    }

    /// Others wait until this node acts upon a change.
    pub(super) fn tell_reached(&mut self) {
        if self.publisher.rules_hold() {
            self.reached.through = self.reached.drawn;
        }
        if self.reached.through != self.reached.told {
            self.reached.told = self.reached.through;
            self.outbox.through(self.reached.through);
        }
    }

    /// Ports of the mesh that this node holds: by itself, or by a task of the service.
    fn held_ports(&self) -> Held {
        let claimed = self.tasks.values().flat_map(|task| {
            let service = task.spec.service;
            task.claimed.iter().map(move |key| (*key, service))
        });
        Held { node: Arc::clone(self.mesh.held()), tasks: claimed.collect() }
    }

    /// Ports of this node's own containers: of one of them alone, or of services that managers
    /// do not know.
    fn published(&self) -> BTreeMap<ServiceId, Vec<warren_net::PublishedPort>> {
        let replicas: Vec<Replica<'_>> = self
            .tasks
            .values()
            .map(|held| Replica {
                service: held.spec.service,
                address: held.spec.address,
                serving: held.machine.is_serving() && held.spec.hook().is_none(),
                claimed: &held.claimed,
            })
            .collect();
        let ports = self.set.all_services().map(|(id, service)| {
            let known = self.set.table.services.contains_key(id);
            let own = service.ports.iter().filter(|port| !known || port.mode == PublishMode::Host);
            (*id, own.copied().collect::<Vec<PortSpec>>())
        });
        let ports: Vec<(ServiceId, Vec<PortSpec>)> = ports.collect();
        let ports = ports.iter().map(|(id, ports)| (*id, ports.as_slice()));
        published::table(ports, &replicas)
    }

    pub(super) fn applied(&mut self, generation: u64, applied: &Applied, now: Now) {
        self.publisher.done(generation, applied, now.mono_ms);
        if !matches!(applied, Applied::Nothing(_)) {
            self.reached.through = self.reached.under_way;
        }
        let unreached = match applied {
            Applied::All => None,
            Applied::RulesAlone(why) => Some(why.clone()),
            Applied::Nothing(error) => {
                let message = format!("published ports: {error}");
                self.step_all(
                    |machine| machine.awaits_table().then(|| Event::PublishFailed(message.clone())),
                    now,
                );
                return;
            }
        };
        if unreached != self.unreached {
            self.commands.extend(unreached.clone().map(Command::Note));
            self.unreached = unreached;
        }
    }

    pub(super) fn held(&mut self, holding: Holding, now: Now) {
        let (changed, news) = self.mesh.done(holding, now.mono_ms);
        self.table_stale |= changed;
        self.commands.extend(news.into_iter().map(Command::Note));
    }

    /// Another table came, or the kept one is acted upon.
    pub(super) fn table_came(&mut self) {
        self.mesh.want(&self.set.table);
        self.underlay.want(&self.set.table);
        let mut admitted = Vec::new();
        let ids: Vec<TaskId> = self.tasks.keys().copied().collect();
        for id in ids {
            let Some(held) = self.tasks.get(&id) else { continue };
            let asker =
                held.spec.addresses().map(|addresses| self.asker(id, held.spec.service, addresses));
            if asker != held.asker {
                let up = held.machine.is_up();
                admitted.extend(asker.clone().filter(|_| up));
                if let Some(held) = self.tasks.get_mut(&id) {
                    held.asker = asker;
                }
            }
        }
        if !admitted.is_empty() {
            self.commands.push(Command::Admit(admitted));
        }
    }

    /// What is asked of others: sockets, names of nodes.
    pub(super) fn look_outside(&mut self, now: Now) {
        if !self.live {
            return;
        }
        if let Some(wanted) = self.mesh.next(now.mono_ms) {
            self.commands.push(Command::Hold(wanted));
        }
        let names = self.underlay.next(now.mono_ms);
        self.commands.extend(names.into_iter().map(Command::Resolve));
    }

    /// The IPv6 address beside an IPv4 one, where there is IPv6.
    pub(super) fn address6(&self, address: Option<Ipv4Addr>) -> Option<std::net::Ipv6Addr> {
        let v6 = self.set.table.container_v6(address?);
        v6.filter(|_| self.drawing.site().ipv6)
    }

    /// A container of `service` as whoever answers for names is to know it.
    pub fn asker(&self, task: TaskId, service: ServiceId, addresses: Addresses) -> Asker {
        let table = &self.set.table;
        let service = table.services.get(&service);
        let networks: Vec<_> =
            service.iter().flat_map(|service| &service.on).map(|on| on.network).collect();
        let internal = |id| table.networks.get(id).is_some_and(|network| network.internal);
        let shut_in = !networks.is_empty() && networks.iter().all(internal);
        let upstream = if shut_in { Upstream::Nobody } else { Upstream::Host };
        Asker { task, addresses, stack: None, networks, upstream }
    }

    /// Who and where the other nodes are.
    pub(crate) fn map(&self) -> crate::doctor::Map {
        crate::doctor::Map {
            table: Arc::clone(&self.set.table),
            overlay: self.drawing.overlay(),
            addresses: self.underlay.addresses().clone(),
            managers: self.set.membership.iter().flat_map(|m| m.managers.clone()).collect(),
        }
    }

    /// What this node cannot do for networks right now, in words.
    pub fn troubles(&self) -> Vec<String> {
        let mut troubles = self.mesh.troubles();
        troubles.extend(self.underlay.troubles());
        troubles.extend(self.unreached.clone());
        troubles
    }
}
