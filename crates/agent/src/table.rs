//! Keeping the kernel at what is wanted, one change at a time.
//!
//! Pure. Changes that come while one is applied are merged into the next. Who
//! waits for the kernel, waits for the part of one service alone: trouble with
//! another service's port does not hold it up, nor does a node that cannot be
//! reached.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use warren_model::{ServiceId, TaskId};
use warren_net::{Entries, Networks, PublishedPort, Service, Table};

use crate::kernel::{Part, Whole};
use crate::restart::doubled;

/// A kernel that refuses a table seldom takes it a moment later; connections wait, though.
const RETRY_FIRST_MS: u64 = 100;
const RETRY_MAX_MS: u64 = 10_000;

/// What the kernel made of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    All,
    /// The rules hold; of routes and links to other nodes something does not.
    RulesAlone(String),
    /// Nothing is certain.
    Nothing(String),
}

#[derive(Debug, Default)]
pub(crate) struct Publisher {
    wanted: Whole,
    /// The same as it is applied.
    table: Table,
    /// Ports of this node's own containers, of services that have any.
    published: BTreeMap<ServiceId, Vec<PublishedPort>>,
    /// Counts changes of `wanted`.
    generation: u64,
    /// Generation whose rules the kernel holds; 0 is whatever an earlier process left there.
    applied: u64,
    /// Of what the kernel holds by its rules, something else is missing.
    owed: bool,
    in_flight: bool,
    /// When each service's part changed last.
    changed: BTreeMap<ServiceId, u64>,
    waiting: BTreeMap<TaskId, u64>,
    retry_at_ms: u64,
    failures: u32,
}

impl Publisher {
    /// Takes what was newly drawn. Costs what differs from what was wanted before.
    pub(crate) fn want(&mut self, wanted: Whole) {
        let before = std::mem::replace(&mut self.wanted, wanted);
        let wanted = &self.wanted;
        let same = before.overlay == wanted.overlay
            && before.internal == wanted.internal
            && before.peers == wanted.peers;
        let mut changes = before.parts.diff(&wanted.parts).peekable();
        if self.generation > 0 && same && changes.peek().is_none() {
            return;
        }
        self.generation += 1;
        let networks = self.table.networks.get_or_insert_default();
        networks.internal.clone_from(&wanted.internal);
        networks.peers.clone_from(&wanted.peers);
        self.table.overlay.clone_from(&wanted.overlay);
        for change in changes {
            let (id, was, is) = match change {
                DiffItem::Add(id, is) => (*id, None, Some(is)),
                DiffItem::Update { old: (id, was), new: (_, is) } => (*id, Some(was), Some(is)),
                DiffItem::Remove(id, was) => (*id, Some(was), None),
            };
            self.changed.insert(id, self.generation);
            was.into_iter().for_each(|part| remove(&mut self.table.services, networks, part));
            is.into_iter().for_each(|part| insert(&mut self.table.services, networks, part));
            match is.map(|part| &part.published).filter(|published| !published.is_empty()) {
                Some(published) => self.published.insert(id, published.clone()),
                None => self.published.remove(&id),
            };
        }
        self.table.published = self.published.values().flatten().cloned().collect();
        self.table.published.sort();
        // Something else may well be possible now.
        self.retry_at_ms = 0;
    }

    /// Whether `task` has what it waits for: the kernel holds what was wanted of its service when
    /// it began to wait.
    pub(crate) fn agrees(&mut self, task: TaskId, service: ServiceId) -> bool {
        let changed = self.changed.get(&service).copied().unwrap_or(0);
        let needed = *self.waiting.entry(task).or_insert(changed);
        let agrees = needed <= self.applied;
        if agrees {
            self.waiting.remove(&task);
        }
        agrees
    }

    /// The generation that a container of `service` must not be started before: the rules around
    /// it are there then.
    pub(crate) fn needed(&self, service: ServiceId) -> u64 {
        match self.applied {
            0 => self.generation.max(1),
            _ => self.changed.get(&service).copied().unwrap_or(0),
        }
    }

    /// `task` waits no longer.
    pub(crate) fn forget(&mut self, task: TaskId) {
        self.waiting.remove(&task);
    }

    /// Whether the kernel's rules are as they are wanted.
    pub(crate) fn rules_hold(&self) -> bool {
        self.generation > 0 && self.generation == self.applied
    }

    fn is_behind(&self) -> bool {
        self.owed || self.generation > self.applied
    }

    /// The next table to apply, if it is time.
    pub(crate) fn next(&mut self, now_ms: u64) -> Option<(u64, Table)> {
        if self.in_flight || !self.is_behind() || now_ms < self.retry_at_ms {
            return None;
        }
        self.in_flight = true;
        Some((self.generation, self.table.clone()))
    }

    /// What came of `generation`.
    pub(crate) fn done(&mut self, generation: u64, applied: &Applied, now_ms: u64) {
        self.in_flight = false;
        let (rules, all) = match applied {
            Applied::All => (true, true),
            Applied::RulesAlone(_) => (true, false),
            Applied::Nothing(_) => (false, false),
        };
        if rules {
            self.applied = generation;
            self.owed = !all;
            self.changed.retain(|_, at| *at > generation);
        }
        if all {
            self.failures = 0;
            return;
        }
        let pause = doubled(RETRY_FIRST_MS, self.failures, RETRY_MAX_MS);
        self.failures = self.failures.saturating_add(1);
        if generation == self.generation {
            self.retry_at_ms = now_ms.saturating_add(pause);
        }
    }

    pub(crate) fn wake_at(&self) -> Option<u64> {
        (!self.in_flight && self.is_behind()).then_some(self.retry_at_ms)
    }
}

fn remove(services: &mut Entries<Service>, networks: &mut Networks, part: &Part) {
    part.services.iter().for_each(|service| services.remove(&service.key));
    part.group.iter().for_each(|group| networks.groups.remove(&group.key));
    part.policies.iter().for_each(|policy| networks.policies.remove(&policy.key));
}

fn insert(services: &mut Entries<Service>, networks: &mut Networks, part: &Part) {
    part.services.iter().for_each(|service| services.insert(Arc::clone(service)));
    part.group.iter().for_each(|group| networks.groups.insert(Arc::clone(group)));
    part.policies.iter().for_each(|policy| networks.policies.insert(Arc::clone(policy)));
}

#[cfg(test)]
impl Publisher {
    pub(crate) fn table(&self) -> &Table {
        &self.table
    }
}

#[cfg(test)]
impl Whole {
    /// As it is applied.
    pub(crate) fn table(&self) -> Table {
        let mut publisher = Publisher::default();
        publisher.want(self.clone());
        publisher.table
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn service(n: u8) -> ServiceId {
        ServiceId::from_bytes([n; 10])
    }

    fn task(n: u8) -> TaskId {
        TaskId::from_bytes([n; 10])
    }

    fn wanted(ports: &[(u8, u16)]) -> Whole {
        let port = |port| PublishedPort {
            protocol: warren_net::Protocol::Tcp,
            bind: Ipv4Addr::UNSPECIFIED,
            port,
            backends: vec![],
        };
        let part = |p| Arc::new(Part { published: vec![port(p)], ..Part::default() });
        let parts = ports.iter().map(|(n, p)| (service(*n), part(*p))).collect();
        Whole { parts, ..Whole::default() }
    }

    fn generation(next: Option<(u64, Table)>) -> Option<u64> {
        next.map(|(generation, _)| generation)
    }

    #[test]
    fn changes_during_an_apply_are_merged() {
        let mut publisher = Publisher::default();
        assert_eq!(publisher.next(0), None);
        publisher.want(wanted(&[]));
        assert_eq!(publisher.needed(service(1)), 1, "nothing is known of the kernel yet");
        assert_eq!(generation(publisher.next(0)), Some(1), "the first is applied even if empty");
        publisher.want(wanted(&[(1, 80)]));
        publisher.want(wanted(&[(1, 80), (2, 90)]));
        assert_eq!(publisher.next(0), None, "one at a time");
        assert!(!publisher.agrees(task(1), service(1)));
        publisher.done(1, &Applied::All, 0);
        assert!(!publisher.agrees(task(1), service(1)));
        assert!(publisher.agrees(task(9), service(9)), "nothing published, nothing to wait for");
        assert_eq!([1, 2, 9].map(|n| publisher.needed(service(n))), [2, 3, 0]);
        assert_eq!(generation(publisher.next(0)), Some(3));
        publisher.done(3, &Applied::All, 0);
        assert!(publisher.agrees(task(1), service(1)));
        assert_eq!(publisher.next(0), None);
        publisher.want(wanted(&[(1, 80), (2, 90)]));
        assert_eq!(publisher.wake_at(), None);
    }

    #[test]
    fn a_refusal_is_tried_again_later_or_when_something_changes() {
        let refused = Applied::Nothing("busy".to_owned());
        let mut publisher = Publisher::default();
        publisher.want(wanted(&[(1, 80)]));
        assert_eq!(generation(publisher.next(0)), Some(1));
        publisher.done(1, &refused, 0);
        assert_eq!(publisher.next(0), None);
        assert_eq!(publisher.wake_at(), Some(100));
        assert_eq!(generation(publisher.next(100)), Some(1));
        publisher.done(1, &refused, 100);
        assert_eq!(publisher.wake_at(), Some(300));
        publisher.want(wanted(&[]));
        assert_eq!(generation(publisher.next(100)), Some(2));
    }

    #[test]
    fn nobody_waits_for_a_node_that_cannot_be_reached() {
        let mut publisher = Publisher::default();
        publisher.want(wanted(&[(1, 80)]));
        assert!(!publisher.agrees(task(1), service(1)));
        assert_eq!(generation(publisher.next(0)), Some(1));
        publisher.done(1, &Applied::RulesAlone("no route".to_owned()), 0);
        assert!(publisher.agrees(task(1), service(1)));
        assert_eq!((publisher.next(99), publisher.wake_at()), (None, Some(100)));
        assert_eq!(generation(publisher.next(100)), Some(1));
        publisher.done(1, &Applied::All, 100);
        assert_eq!((publisher.next(9999), publisher.wake_at()), (None, None));
    }
}
