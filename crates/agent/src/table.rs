//! Keeping the kernel's table at what is wanted, one change at a time.
//!
//! Pure. Changes that come while one is applied are merged into the next. Who
//! waits for the table, waits for the part of one service alone: trouble with
//! another service's port does not hold it up.

use std::collections::BTreeMap;

use warren_model::{ServiceId, TaskId};
use warren_net::{PublishedPort, Table};

use crate::restart::doubled;

/// A kernel that refuses a table seldom takes it a moment later; connections wait, though.
const RETRY_FIRST_MS: u64 = 100;
const RETRY_MAX_MS: u64 = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Publisher {
    wanted: BTreeMap<ServiceId, Vec<PublishedPort>>,
    /// Counts changes of `wanted`.
    generation: u64,
    /// Generation that the kernel holds; 0 is whatever an earlier process left there.
    applied: u64,
    in_flight: bool,
    /// When each service's part changed last.
    changed: BTreeMap<ServiceId, u64>,
    waiting: BTreeMap<TaskId, u64>,
    retry_at_ms: u64,
    failures: u32,
}

impl Publisher {
    /// Takes a newly computed table.
    pub(crate) fn want(&mut self, wanted: BTreeMap<ServiceId, Vec<PublishedPort>>) {
        if self.generation > 0 && wanted == self.wanted {
            return;
        }
        self.generation += 1;
        for (service, ports) in &wanted {
            if self.wanted.get(service) != Some(ports) {
                self.changed.insert(*service, self.generation);
            }
        }
        for service in self.wanted.keys().filter(|service| !wanted.contains_key(service)) {
            self.changed.insert(*service, self.generation);
        }
        self.wanted = wanted;
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

    /// `task` waits no longer.
    pub(crate) fn forget(&mut self, task: TaskId) {
        self.waiting.remove(&task);
    }

    /// The next table to apply, if it is time.
    pub(crate) fn next(&mut self, now_ms: u64) -> Option<(u64, Table)> {
        if self.in_flight || self.generation == self.applied || now_ms < self.retry_at_ms {
            return None;
        }
        self.in_flight = true;
        let mut published: Vec<_> = self.wanted.values().flatten().cloned().collect();
        published.sort();
        Some((self.generation, Table { published, ..Table::default() }))
    }

    /// The kernel holds `generation`, or does not.
    pub(crate) fn done(&mut self, generation: u64, ok: bool, now_ms: u64) {
        self.in_flight = false;
        if ok {
            self.applied = generation;
            self.failures = 0;
            self.changed.retain(|_, at| *at > generation);
        } else {
            let pause = doubled(RETRY_FIRST_MS, self.failures, RETRY_MAX_MS);
            self.failures = self.failures.saturating_add(1);
            if generation == self.generation {
                self.retry_at_ms = now_ms.saturating_add(pause);
            }
        }
    }

    pub(crate) fn wake_at(&self) -> Option<u64> {
        (!self.in_flight && self.generation > self.applied).then_some(self.retry_at_ms)
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

    fn wanted(ports: &[(u8, u16)]) -> BTreeMap<ServiceId, Vec<PublishedPort>> {
        let port = |port| PublishedPort {
            protocol: warren_net::Protocol::Tcp,
            bind: Ipv4Addr::UNSPECIFIED,
            port,
            backends: vec![],
        };
        ports.iter().map(|(n, p)| (service(*n), vec![port(*p)])).collect()
    }

    fn generation(next: Option<(u64, Table)>) -> Option<u64> {
        next.map(|(generation, _)| generation)
    }

    #[test]
    fn changes_during_an_apply_are_merged() {
        let mut publisher = Publisher::default();
        assert_eq!(publisher.next(0), None);
        publisher.want(wanted(&[]));
        assert_eq!(generation(publisher.next(0)), Some(1), "the first is applied even if empty");
        publisher.want(wanted(&[(1, 80)]));
        publisher.want(wanted(&[(1, 80), (2, 90)]));
        assert_eq!(publisher.next(0), None, "one at a time");
        assert!(!publisher.agrees(task(1), service(1)));
        publisher.done(1, true, 0);
        assert!(!publisher.agrees(task(1), service(1)));
        assert!(publisher.agrees(task(9), service(9)), "nothing published, nothing to wait for");
        assert_eq!(generation(publisher.next(0)), Some(3));
        publisher.done(3, true, 0);
        assert!(publisher.agrees(task(1), service(1)));
        assert_eq!(publisher.next(0), None);
        publisher.want(wanted(&[(1, 80), (2, 90)]));
        assert_eq!(publisher.wake_at(), None);
    }

    #[test]
    fn a_refusal_is_tried_again_later_or_when_something_changes() {
        let mut publisher = Publisher::default();
        publisher.want(wanted(&[(1, 80)]));
        assert_eq!(generation(publisher.next(0)), Some(1));
        publisher.done(1, false, 0);
        assert_eq!(publisher.next(0), None);
        assert_eq!(publisher.wake_at(), Some(100));
        assert_eq!(generation(publisher.next(100)), Some(1));
        publisher.done(1, false, 100);
        assert_eq!(publisher.wake_at(), Some(300));
        publisher.want(wanted(&[]));
        assert_eq!(generation(publisher.next(100)), Some(2));
    }
}
