//! All names of the cluster as one node knows them: an immutable snapshot.
//!
//! Pure. [`Zone::new`] indexes whole tables; a clone costs nothing and shares everything, and
//! changing one service of it costs a few tree paths, so a change is: clone, put, publish.
//! Which names exist does not depend on the order of changes.
//!
//! Invariants:
//! - an answer holds addresses of services that share a network with the asker, and no others;
//! - a task that is not ready is in no answer;
//! - a name that exists without an answer is no data, never no name (RFC 2308): resolvers take
//!   the latter for all types at once (RFC 8020);
//! - whose a name is follows from which services exist, never from which are ready: nobody
//!   answers in another's stead.
//!
//! Not here: messages (`answer`), what is asked of upstream servers (`forward`).

mod find;
mod index;
mod reverse;
mod shards;
#[cfg(test)]
pub(crate) mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use warren_model::id::ServiceId;

use super::tables::{
    Addresses, Asker, Attachment, Endpoint, Prefix, Service, Tables, Task, Upstream,
};
use super::wire::{Data, Record, kind};
use crate::Protocol;
use find::{Found, Part};
use index::{Key, Owners};
use shards::Shards;

/// The domain of every name of the cluster.
pub const SUFFIX: &str = "warren.internal";

/// A virtual address stays; the second spares a question of those who connect in a row.
const VIP_TTL_S: u32 = 1;
/// A task may go at any moment.
const TASK_TTL_S: u32 = 0;
/// What a message over TCP has room for.
const ADDRESSES_MAX: usize = 4000;
/// Each has a name to be made; the others come by rotation.
const LOCATIONS_MAX: usize = 512;

/// What to tell an asker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// At least one record.
    Found(Answer),
    /// The name exists, with nothing of this type.
    NoData,
    /// There is no such name.
    NoName,
    /// Not the cluster's: somebody else may know.
    Forward(&'a Upstream),
    /// Nobody who may ask, or nobody to pass it on to.
    Refused,
}

/// Records of a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Of the name that was asked for, in an order that changes from one to the next.
    pub records: Vec<Record>,
    /// Addresses of names in `records`, each with its owner.
    pub additional: Vec<(Box<str>, Record)>,
}

/// The snapshot.
#[derive(Debug, Clone, Default)]
pub struct Zone {
    services: Shards<ServiceId, Arc<Service>>,
    /// Names on each network.
    names: Shards<Key, Owners>,
    /// Names that services have anywhere, and how many.
    known: Shards<Box<str>, u32>,
    /// On each network, stacks, and how many services of theirs are there.
    stacks: Shards<Key, u32>,
    /// Who may have an address, by [`index::tail`] of it.
    addresses: Shards<u32, Owners>,
    askers: Shards<IpAddr, Arc<Asker>>,
    pools: Arc<[Prefix]>,
}

impl Zone {
    /// Of whole tables.
    pub fn new(tables: Tables) -> Self {
        let mut zone = Self { pools: tables.pools.into(), ..Self::default() };
        for service in tables.services {
            zone.put_service(service);
        }
        for asker in tables.askers {
            zone.put_asker(asker);
        }
        zone
    }

    /// Adds a service, or replaces what was known of it.
    pub fn put_service(&mut self, mut service: Service) {
        index::normalize(&mut service);
        let service = Arc::new(service);
        let old = self.services.insert(service.id, Arc::clone(&service));
        self.reindex(old.as_deref(), Some(&service));
    }

    /// Forgets a service; one that is not there is fine.
    pub fn remove_service(&mut self, id: ServiceId) {
        let old = self.services.remove(&id);
        self.reindex(old.as_deref(), None);
    }

    /// Adds a container, or replaces what was known of those at its addresses.
    pub fn put_asker(&mut self, mut asker: Asker) {
        if let Some(stack) = &mut asker.stack {
            stack.make_ascii_lowercase();
        }
        let asker = Arc::new(asker);
        for address in asker.addresses.each() {
            self.remove_asker(address);
        }
        for address in asker.addresses.each() {
            self.askers.insert(address, Arc::clone(&asker));
        }
    }

    /// Forgets the container at `address`, by all of its addresses.
    pub fn remove_asker(&mut self, address: IpAddr) {
        if let Some(asker) = self.askers.remove(&address) {
            for address in asker.addresses.each() {
                self.askers.remove(&address);
            }
        }
    }

    /// Whether the container at `address` may ask.
    pub fn is_asker(&self, address: IpAddr) -> bool {
        self.askers.contains_key(&address.to_canonical())
    }

    /// How many services there are.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// What the container at `asker` is told of `name` (lower case, no final dot) and a record
    /// type of [`kind`]. `rotation` says where its records begin.
    pub fn lookup(&self, asker: IpAddr, name: &str, kind: u16, rotation: u32) -> Outcome<'_> {
        let Some(asker) = self.askers.get(&asker.to_canonical()) else {
            return Outcome::Refused;
        };
        if let Some(address) = reverse::address(name) {
            return self.reverse(asker, address, kind);
        }
        let relative = relative(name);
        if relative == Some("") {
            let soa = matches!(kind, kind::SOA | kind::ANY);
            return if soa { found(vec![record(0, Data::Soa)]) } else { Outcome::NoData };
        }
        match self.find(asker, relative.unwrap_or(name), relative.is_some()) {
            Some(found) => found.outcome(kind, rotation),
            None if relative.is_some() => Outcome::NoName,
            None => self.outside(asker, name, kind),
        }
    }

    /// What becomes of a name that the asker cannot see.
    fn outside<'a>(&'a self, asker: &'a Asker, name: &str, kind: u16) -> Outcome<'a> {
        if self.is_held_back(name, kind) {
            return Outcome::NoName;
        }
        forward(asker)
    }

    /// Whether `name` may be one of the cluster's, and so is nobody else's to hear.
    fn is_held_back(&self, name: &str, kind: u16) -> bool {
        let (host, service) = find::bases(name);
        if self.known.contains_key(host) || self.known.contains_key(service) {
            return true;
        }
        // What validators ask of top-level domains is not a host's name.
        let of_zones = matches!(kind, kind::NS | kind::SOA | kind::DS | kind::DNSKEY);
        !host.is_empty() && !host.contains('.') && !of_zones
    }

    /// What is told of the name of an address.
    fn reverse<'a>(&'a self, asker: &'a Asker, address: IpAddr, kind: u16) -> Outcome<'a> {
        let mut names = Vec::new();
        let owners = self.addresses.get(&index::tail(address));
        for service in owners.into_iter().flat_map(Owners::iter) {
            let Some(service) = self.services.get(&service) else { continue };
            let shared = |attachment: &&Attachment| asker.networks.contains(&attachment.network);
            let shared: Vec<&Attachment> = service.attachments.iter().filter(shared).collect();
            if shared.is_empty() {
                continue;
            }
            let is_vip = |attachment: &&Attachment| match attachment.endpoint {
                Endpoint::Vip(vip) => vip.each().any(|vip| vip == address),
                Endpoint::Tasks => false,
            };
            if shared.iter().any(is_vip) {
                names.push((VIP_TTL_S, index::full_name(service)));
            }
            let at = |task: &&Task| task.ready && task.addresses.each().any(|at| at == address);
            names.extend(
                service.tasks.iter().filter(at).map(|t| (TASK_TTL_S, index::slot_name(service, t))),
            );
        }
        if names.is_empty() {
            let ours = self.pools.iter().any(|pool| pool.contains(address));
            return if ours { Outcome::NoName } else { forward(asker) };
        }
        if !matches!(kind, kind::PTR | kind::ANY) {
            return Outcome::NoData;
        }
        let pointer = |(ttl_s, name): (u32, String)| record(ttl_s, Data::Ptr(name.into()));
        found(names.into_iter().map(pointer).collect())
    }
}

fn forward(asker: &Asker) -> Outcome<'_> {
    match &asker.upstream {
        Upstream::Nobody => Outcome::Refused,
        upstream @ (Upstream::Host | Upstream::Servers(_)) => Outcome::Forward(upstream),
    }
}

/// What is before the suffix; nothing, if `name` is not below it.
fn relative(name: &str) -> Option<&str> {
    let before = name.strip_suffix(SUFFIX)?;
    if before.is_empty() { Some(before) } else { before.strip_suffix('.') }
}

fn record(ttl_s: u32, data: Data) -> Record {
    Record { ttl_s, data }
}

fn found(records: Vec<Record>) -> Outcome<'static> {
    Outcome::Found(Answer { records, additional: Vec::new() })
}

/// Where a name leads: to a service's virtual address, or to a task.
struct Target<'a> {
    service: &'a Service,
    task: Option<&'a Task>,
    addresses: Addresses,
}

impl Target<'_> {
    fn name(&self) -> String {
        match self.task {
            Some(task) => index::slot_name(self.service, task),
            None => index::full_name(self.service),
        }
    }
}

impl Found<'_> {
    fn outcome(&self, kind: u16, rotation: u32) -> Outcome<'static> {
        let mut targets = self.targets();
        let ttl_s = if targets.iter().any(|t| t.task.is_some()) { TASK_TTL_S } else { VIP_TTL_S };
        let mut answer = Answer::default();
        match &self.port {
            None => {
                for target in &targets {
                    push_addresses(&mut answer.records, kind, ttl_s, target.addresses);
                }
                rotate(&mut answer.records, rotation);
                answer.records.truncate(ADDRESSES_MAX);
            }
            Some((port, protocol)) if matches!(kind, kind::SRV | kind::ANY) => {
                // Tasks of one slot have one name.
                let slot =
                    |target: &mut Target<'_>| (target.service.id, target.task.map(|t| t.slot));
                targets.dedup_by_key(slot);
                rotate(&mut targets, rotation);
                targets.truncate(LOCATIONS_MAX);
                for target in &targets {
                    push_location(&mut answer, port, *protocol, ttl_s, target);
                }
            }
            Some(_) => {}
        }
        if answer.records.is_empty() { Outcome::NoData } else { Outcome::Found(answer) }
    }

    fn targets(&self) -> Vec<Target<'_>> {
        let mut targets = Vec::new();
        for hit in &self.hits {
            let service = hit.service;
            match (self.part, hit.attachment.endpoint) {
                (Part::Whole, Endpoint::Vip(addresses)) if hit.hostname.is_none() => {
                    targets.push(Target { service, task: None, addresses });
                }
                _ => targets.extend(hit.tasks(self.part).map(|task| {
                    let addresses = task.addresses;
                    Target { service, task: Some(task), addresses }
                })),
            }
        }
        targets
    }
}

fn rotate<T>(list: &mut [T], rotation: u32) {
    if !list.is_empty() {
        let first = usize::try_from(rotation).unwrap_or(0) % list.len();
        list.rotate_left(first);
    }
}

fn push_location(
    answer: &mut Answer,
    name: &str,
    protocol: Protocol,
    ttl_s: u32,
    target: &Target<'_>,
) {
    let ports = target.service.ports.iter();
    for port in ports.filter(|port| (&*port.name, port.protocol) == (name, protocol)) {
        let name: Box<str> = target.name().into();
        let mut addresses = Vec::new();
        push_addresses(&mut addresses, kind::ANY, ttl_s, target.addresses);
        answer.additional.extend(addresses.into_iter().map(|record| (name.clone(), record)));
        answer.records.push(record(ttl_s, Data::Srv { port: port.port, target: name }));
    }
}

fn push_addresses(records: &mut Vec<Record>, kind: u16, ttl_s: u32, addresses: Addresses) {
    if let Some(address) = addresses.v4.filter(|_| matches!(kind, kind::A | kind::ANY)) {
        records.push(record(ttl_s, Data::A(address)));
    }
    if let Some(address) = addresses.v6.filter(|_| matches!(kind, kind::AAAA | kind::ANY)) {
        records.push(record(ttl_s, Data::Aaaa(address)));
    }
}
