//! Whose an address is: whether a connection that was led to it once is led there still.
//!
//! An address may get another holder while a node looks away (its daemon was restarted, or a table
//! was skipped). What the node's kernel remembers of the first must not reach the second.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::Protocol;
use crate::conntrack::Flow;
use crate::rules::{Family, Rules};
use crate::table::Frontend;

/// Groups that are reached at an address.
type Reached<'a> = (IpAddr, BTreeSet<&'a str>);

/// Of one family, by a table's groups.
pub(super) struct Owners<'a> {
    /// Keys of groups by their addresses.
    groups: BTreeMap<IpAddr, &'a str>,
    keys: BTreeSet<&'a str>,
    /// Groups that are reached by a service's address.
    addresses: BTreeMap<IpAddr, BTreeSet<&'a str>>,
    /// What is reached by a protocol's port, of an address or of any.
    ports: BTreeMap<(u8, u16), Vec<Reached<'a>>>,
    /// Groups of services that have an address.
    reached: BTreeSet<&'a str>,
}

impl<'a> Owners<'a> {
    pub(super) fn new(rules: &'a Rules, family: Family) -> Self {
        let mut owners = Self {
            groups: BTreeMap::new(),
            keys: BTreeSet::new(),
            addresses: BTreeMap::new(),
            ports: BTreeMap::new(),
            reached: BTreeSet::new(),
        };
        for group in rules.isolation.groups.iter() {
            owners.keys.insert(&group.entry.key);
            let of_family = group.entry.addresses.iter().filter(|address| family.has(address));
            owners.groups.extend(of_family.map(|address| (*address, &*group.entry.key)));
        }
        for service in rules.services.list.iter() {
            let group = service.entry.group();
            for frontend in &service.entry.frontends {
                owners.add(frontend, group, family);
            }
        }
        for (port, backends) in &rules.ports {
            let group = |address: IpAddr| owners.groups.get(&address).copied();
            let groups = backends.iter().filter_map(|backend| group((*backend.ip()).into()));
            let reached = (IpAddr::V4(port.bind), groups.collect());
            owners.ports.entry((port.protocol.number(), port.port)).or_default().push(reached);
        }
        owners
    }

    fn add(&mut self, frontend: &Frontend, group: &'a str, family: Family) {
        let (bind, protocol, port) = match *frontend {
            Frontend::Address(address) if family.has(&address) => {
                self.addresses.entry(address).or_default().insert(group);
                self.reached.insert(group);
                return;
            }
            Frontend::Port { vip, protocol, port, .. } => (vip, protocol, port),
            Frontend::Published { bind, protocol, port, .. } => (bind, protocol, port),
            Frontend::Address(_) | Frontend::Elsewhere { .. } => return,
        };
        if family.has(&bind) {
            let reached = self.ports.entry((Protocol::number(protocol), port)).or_default();
            reached.push((bind, BTreeSet::from([group])));
        }
    }

    /// Whether the container that answers a translated connection is not, or is no longer, one of
    /// those whom the client meant.
    pub(super) fn is_stale(&self, flow: &Flow) -> bool {
        let Some(group) = self.groups.get(&flow.answered_by) else { return true };
        let mut meant: BTreeSet<&str> =
            self.addresses.get(&flow.destination).into_iter().flatten().copied().collect();
        let of_port = self.ports.get(&(flow.protocol, flow.destination_port));
        for (bind, groups) in of_port.into_iter().flatten() {
            if bind.is_unspecified() || *bind == flow.destination {
                meant.extend(groups);
            }
        }
        if meant.is_empty() {
            // Its service is gone and it drains, or it is somebody's who was never meant.
            return self.reached.contains(group);
        }
        // Of services without a group nothing is known.
        !meant.contains(group) && meant.iter().all(|meant| self.keys.contains(meant))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::table::{Backend, Group, Networks, Service};
    use crate::{NetConfig, PublishedPort, Table};

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn rules() -> Rules {
        let group = |key: &str, addresses: &[&str]| {
            let addresses = addresses.iter().map(|text| address(text)).collect();
            Arc::new(Group { key: key.into(), addresses, networks: BTreeSet::from([1]) })
        };
        let service = |key: &str, frontend: Frontend, backend: &str| {
            let backend = Backend { address: address(backend), weight: 1, local: false };
            Arc::new(Service {
                key: key.into(),
                frontends: vec![frontend],
                backends: vec![backend],
                affinity: false,
                prefer_local: false,
            })
        };
        let mesh = Frontend::Published {
            bind: address("0.0.0.0"),
            protocol: Protocol::Tcp,
            port: 9000,
            target: 80,
        };
        let vip = |text: &str| Frontend::Address(address(text));
        let table = Table {
            published: vec![PublishedPort {
                protocol: Protocol::Tcp,
                bind: [127, 0, 0, 1].into(),
                port: 9001,
                backends: vec!["10.128.0.3:80".parse().unwrap()],
            }],
            services: [
                service("a/1", vip("10.192.0.2"), "10.128.0.2"),
                service("b/1", vip("10.192.0.3"), "10.128.0.3"),
                service("b/1/2", vip("10.192.0.4"), "10.128.0.3"),
                service("b/mesh", mesh, "10.128.0.3"),
                service("x/1", vip("10.192.0.5"), "10.128.0.2"),
            ]
            .into_iter()
            .collect(),
            networks: Some(Networks {
                // The second of a drains, c has no address.
                groups: [
                    group("a", &["10.128.0.2", "10.128.0.12"]),
                    group("b", &["10.128.0.3"]),
                    group("c", &["10.128.0.4"]),
                ]
                .into_iter()
                .collect(),
                ..Networks::default()
            }),
            ..Table::default()
        };
        let pool = ([10, 128, 0, 0].into(), 10);
        let config = NetConfig { node_key: "k".into(), pool, prepared: 0 };
        Rules::new(&config, &table, Family::V4, None).unwrap()
    }

    #[track_caller]
    fn check(destination: &str, port: u16, answered_by: &str, expected: bool) {
        let flow = Flow {
            destination: address(destination),
            destination_port: port,
            protocol: Protocol::Tcp.number(),
            answered_by: address(answered_by),
            answered_by_port: 80,
        };
        let rules = rules();
        let stale = Owners::new(&rules, Family::V4).is_stale(&flow);
        assert_eq!(stale, expected, "{destination}:{port} by {answered_by}");
    }

    #[test]
    fn who_was_meant() {
        check("10.192.0.2", 80, "10.128.0.2", false);
        check("10.192.0.2", 80, "10.128.0.12", false);
        check("10.192.0.2", 80, "10.128.0.3", true);
        check("10.192.0.2", 80, "10.128.0.9", true);
        check("10.192.0.4", 80, "10.128.0.3", false);
        check("10.192.0.4", 80, "10.128.0.2", true);
        // A node's ports.
        check("192.0.2.1", 9000, "10.128.0.3", false);
        check("192.0.2.1", 9000, "10.128.0.2", true);
        check("127.0.0.1", 9001, "10.128.0.3", false);
        check("127.0.0.1", 9001, "10.128.0.2", true);
        // What nobody answers now: by who drains, or by somebody else.
        check("10.192.0.9", 80, "10.128.0.4", false);
        check("10.192.0.9", 80, "10.128.0.3", true);
        // A service without a group.
        check("10.192.0.5", 80, "10.128.0.2", false);
        check("10.192.0.5", 80, "10.128.0.9", true);
    }
}
