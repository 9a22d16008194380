//! Addresses of nodes that are known by a name.
//!
//! Pure: says which names to look up and when. An address that was found is
//! good until another is found, so a name server that is away costs nothing.
//! Names are looked up again now and then, because nobody tells of a change.
//!
//! Not here: looking up ([`Resolve`] is the caller's).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use async_trait::async_trait;
use warren_model::NodeTable;

use crate::kernel::Addresses;
use crate::restart::doubled;

/// A name that has an address is asked for again after this.
const FRESH_MS: u64 = 5 * 60_000;
/// One that has none.
const RETRY_FIRST_MS: u64 = 1_000;
const RETRY_MAX_MS: u64 = 60_000;

/// Looks up names of machines.
#[async_trait]
pub trait Resolve: Send + Sync + 'static {
    /// The addresses of `host`.
    ///
    /// # Errors
    /// When nobody knows, in words for people.
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>>;
}

#[derive(Debug, Default)]
struct Name {
    due_ms: u64,
    in_flight: bool,
    failures: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Underlay {
    names: BTreeMap<String, Name>,
    addresses: Addresses,
}

impl Underlay {
    /// Takes the nodes of a newly arrived table.
    pub(crate) fn want(&mut self, table: &NodeTable) {
        let hosts = table.peers.values().map(|peer| peer.underlay.as_str());
        let hosts = hosts.filter(|host| !host.is_empty() && host.parse::<IpAddr>().is_err());
        let names: BTreeSet<&str> = hosts.collect();
        self.names.retain(|name, _| names.contains(name.as_str()));
        self.addresses.retain(|name, _| names.contains(name.as_str()));
        for name in names.into_iter().filter(|name| !self.addresses.contains_key(*name)) {
            self.names.entry(name.to_owned()).or_default();
        }
    }

    pub(crate) fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Names to look up now.
    pub(crate) fn next(&mut self, now_ms: u64) -> Vec<String> {
        let due = self.names.iter_mut().filter(|(_, n)| !n.in_flight && n.due_ms <= now_ms);
        due.map(|(text, name)| {
            name.in_flight = true;
            text.clone()
        })
        .collect()
    }

    /// What was found for a name. Says whether its address is another one now.
    pub(crate) fn found(&mut self, text: &str, found: &[IpAddr], now_ms: u64) -> bool {
        let Some(name) = self.names.get_mut(text) else { return false };
        name.in_flight = false;
        let known = self.addresses.get(text);
        // The same as before if there is a choice; else always the same one.
        let kept = known.filter(|known| found.contains(known)).copied();
        let Some(address) = kept.or_else(|| found.iter().min().copied()) else {
            let pause = doubled(RETRY_FIRST_MS, name.failures, RETRY_MAX_MS);
            name.failures = name.failures.saturating_add(1);
            name.due_ms = now_ms.saturating_add(pause);
            return false;
        };
        (name.failures, name.due_ms) = (0, now_ms.saturating_add(FRESH_MS));
        self.addresses.insert(text.to_owned(), address) != Some(address)
    }

    pub(crate) fn wake_at(&self) -> Option<u64> {
        self.names.values().filter(|name| !name.in_flight).map(|name| name.due_ms).min()
    }

    /// Nodes that cannot be reached because nobody knows where they are.
    pub(crate) fn troubles(&self) -> Vec<String> {
        let lost = self
            .names
            .iter()
            .filter(|(text, name)| name.failures > 0 && !self.addresses.contains_key(*text));
        lost.map(|(text, _)| format!("no address is found for node {text}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use warren_model::NodeId;
    use warren_model::node_table::Peer;

    use super::*;

    fn table(hosts: &str) -> NodeTable {
        let peers = hosts.split_whitespace().zip(1..).map(|(host, number)| {
            let peer = Peer {
                number,
                underlay: host.into(),
                blocks: vec![],
                overlay_key: [0; 32],
                overlay_key_other: [0; 32],
                overlay_port: 0,
                name: String::new(),
            };
            (NodeId::from_bytes([u8::try_from(number).unwrap(); 10]), Arc::new(peer))
        });
        NodeTable { peers: peers.collect(), ..NodeTable::default() }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn names_are_looked_up_and_addresses_are_not() {
        let mut underlay = Underlay::default();
        underlay.want(&table("10.0.0.1 fd00::1 m2.test"));
        assert_eq!(underlay.next(0), ["m2.test"]);
        assert_eq!((underlay.next(0).len(), underlay.wake_at()), (0, None));
        assert!(underlay.found("m2.test", &[ip("fd00::2"), ip("10.0.0.2")], 0));
        assert_eq!(underlay.addresses()["m2.test"], ip("10.0.0.2"));
        assert_eq!(underlay.wake_at(), Some(FRESH_MS));
        assert_eq!(underlay.next(FRESH_MS), ["m2.test"]);
        assert!(!underlay.found("m2.test", &[ip("10.0.0.1"), ip("10.0.0.2")], FRESH_MS));
        // Nobody answers any more: what is known stays.
        underlay.next(2 * FRESH_MS);
        assert!(!underlay.found("m2.test", &[], 2 * FRESH_MS));
        assert_eq!(underlay.addresses().len(), 1);
        assert!(underlay.troubles().is_empty());
        underlay.want(&table("10.0.0.1"));
        assert!(underlay.addresses().is_empty() && underlay.wake_at().is_none());
    }

    #[test]
    fn what_is_not_found_is_told_and_tried_again() {
        let mut underlay = Underlay::default();
        underlay.want(&table("m2.test"));
        underlay.next(0);
        assert!(!underlay.found("m2.test", &[], 0));
        assert_eq!(underlay.troubles(), ["no address is found for node m2.test"]);
        assert_eq!((underlay.next(999).len(), underlay.wake_at()), (0, Some(1000)));
        assert_eq!(underlay.next(1000), ["m2.test"]);
        assert!(underlay.found("m2.test", &[ip("10.0.0.2")], 1000));
        assert!(underlay.troubles().is_empty());
        assert!(!underlay.found("other", &[ip("10.0.0.2")], 1000), "nobody asked");
    }
}
