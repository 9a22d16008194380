//! Ports of the routing mesh: every node answers them, also one that runs none
//! of the tasks behind them.
//!
//! Pure. A node answers a port while it holds its reservation, so that a
//! process of the host which listens there keeps its clients. What could not be
//! had is told once and tried again: when a port of ours is given up, when
//! another set is wanted, and now and then, since foreign processes say nothing
//! when they end.
//!
//! Not here: sockets (`ports`), rules (`kernel`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use warren_model::name::ServiceName;
use warren_model::node_table::TableService;
use warren_model::{NodeTable, ServiceId};

use crate::published::PortKey;
use crate::restart::doubled;

/// Between attempts at what a foreign process has.
const RETRY_FIRST_MS: u64 = 1_000;
const RETRY_MAX_MS: u64 = 60_000;

/// For whom a port is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    pub service: ServiceId,
    pub service_name: String,
}

/// What came of holding ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holding {
    pub held: BTreeMap<PortKey, ServiceId>,
    /// Who has the others.
    pub refused: BTreeMap<PortKey, String>,
    /// Others still are of addresses that this node does not have.
    pub absent: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Mesh {
    /// What `claims` were made of.
    table: Arc<NodeTable>,
    /// Who wants each port: the first has it.
    claims: BTreeMap<PortKey, BTreeMap<ServiceId, ServiceName>>,
    held: Arc<BTreeMap<PortKey, ServiceId>>,
    /// Who has the others.
    refused: BTreeMap<PortKey, String>,
    absent: bool,
    /// Something else may be had now.
    due: bool,
    in_flight: bool,
    /// What can be had was found out once.
    known: bool,
    retry_at_ms: Option<u64>,
    failures: u32,
}

impl Mesh {
    /// Takes the ports of a newly arrived table. Of two services with one port the first has it.
    pub(crate) fn want(&mut self, table: &Arc<NodeTable>) {
        let before = std::mem::replace(&mut self.table, Arc::clone(table));
        let mut changed = false;
        for (id, was, is) in table.services_since(&before) {
            let ports = |service: Option<&Arc<TableService>>| -> BTreeSet<PortKey> {
                service.iter().flat_map(|service| service.mesh_ports()).map(PortKey::of).collect()
            };
            let (was_ports, is_ports) = (ports(was), ports(is));
            if was_ports == is_ports && was.map(|s| &s.name) == is.map(|s| &s.name) {
                continue;
            }
            for key in was_ports {
                let Some(claims) = self.claims.get_mut(&key) else { continue };
                changed |= claims.keys().next() == Some(&id);
                claims.remove(&id);
                if claims.is_empty() {
                    self.claims.remove(&key);
                }
            }
            for key in is_ports {
                let claims = self.claims.entry(key).or_default();
                claims.extend(is.map(|service| (id, service.name.clone())));
                changed |= claims.keys().next() == Some(&id);
            }
        }
        if changed {
            self.again();
        }
    }

    fn tenant(&self, key: PortKey) -> Option<(ServiceId, &ServiceName)> {
        self.claims.get(&key)?.first_key_value().map(|(id, name)| (*id, name))
    }

    /// Somebody gave up a port.
    pub(crate) fn freed(&mut self) {
        if self.absent || !self.refused.is_empty() {
            self.again();
        }
    }

    fn again(&mut self) {
        self.due = true;
        self.failures = 0;
        self.retry_at_ms = None;
    }

    /// What to hold now, if it is time.
    pub(crate) fn next(&mut self, now_ms: u64) -> Option<BTreeMap<PortKey, Tenant>> {
        let due = self.due || self.retry_at_ms.is_some_and(|at| at <= now_ms);
        if self.in_flight || !due {
            return None;
        }
        (self.in_flight, self.due, self.retry_at_ms) = (true, false, None);
        let tenant = |(key, claims): (&PortKey, &BTreeMap<ServiceId, ServiceName>)| {
            let (service, name) = claims.first_key_value()?;
            Some((*key, Tenant { service: *service, service_name: name.to_string() }))
        };
        Some(self.claims.iter().filter_map(tenant).collect())
    }

    /// What came of it. Says whether other ports are held now than before, and what is newly
    /// refused.
    pub(crate) fn done(&mut self, holding: Holding, now_ms: u64) -> (bool, Vec<String>) {
        (self.in_flight, self.known) = (false, true);
        if holding.absent || !holding.refused.is_empty() {
            let pause = doubled(RETRY_FIRST_MS, self.failures, RETRY_MAX_MS);
            self.failures = self.failures.saturating_add(1);
            self.retry_at_ms = Some(now_ms.saturating_add(pause));
        }
        let known = &self.refused;
        let news = holding.refused.iter().filter(|(key, why)| known.get(key) != Some(why));
        let news = news.map(|(key, why)| self.tell(key, why)).collect();
        let changed = *self.held != holding.held;
        if changed {
            self.held = Arc::new(holding.held);
        }
        (self.refused, self.absent) = (holding.refused, holding.absent);
        (changed, news)
    }

    /// Whether it is certain what is held.
    pub(crate) fn is_known(&self) -> bool {
        self.known || self.claims.is_empty()
    }

    pub(crate) fn held(&self) -> &Arc<BTreeMap<PortKey, ServiceId>> {
        &self.held
    }

    /// Whether this node answers `key` to nobody, since something else has it.
    pub(crate) fn is_refused(&self, key: PortKey, service: ServiceId) -> bool {
        let ours = self.tenant(key).is_some_and(|(tenant, _)| tenant == service);
        ours && self.refused.contains_key(&key)
    }

    pub(crate) fn wake_at(&self) -> Option<u64> {
        self.retry_at_ms.filter(|_| !self.in_flight)
    }

    /// What this node does not answer, in words.
    pub(crate) fn troubles(&self) -> Vec<String> {
        self.refused.iter().map(|(key, why)| self.tell(key, why)).collect()
    }

    fn tell(&self, key: &PortKey, why: &str) -> String {
        let name = self.tenant(*key).map_or("?", |(_, name)| name.as_str());
        format!("port {key} of service {name} is not answered by this node: {why}")
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use warren_model::service::{Endpoint, PortSpec, Protocol, PublishMode};

    use super::*;

    fn key(port: u16) -> PortKey {
        PortKey { protocol: Protocol::Tcp, bind: Ipv4Addr::UNSPECIFIED, port }
    }

    /// Services by letter with the ports that they publish; `h`: on their node alone.
    fn table(text: &str) -> Arc<NodeTable> {
        let services = text.split_whitespace().map(|word| {
            let (name, port) = word.split_once(':').unwrap();
            let mode = if port.ends_with('h') { PublishMode::Host } else { PublishMode::Ingress };
            let published = port.trim_end_matches('h').parse().unwrap();
            let spec = PortSpec {
                protocol: Protocol::Tcp,
                bind: Ipv4Addr::UNSPECIFIED,
                published,
                target: 80,
                mode,
                name: None,
            };
            let service = TableService {
                name: name.parse().unwrap(),
                on: vec![],
                endpoint: Endpoint::default(),
                ports: vec![spec],
                hostname: None,
                tasks: vec![],
            };
            (ServiceId::from_bytes([name.as_bytes()[0]; 10]), Arc::new(service))
        });
        Arc::new(NodeTable { services: services.collect(), ..NodeTable::default() })
    }

    fn ports(wanted: Option<BTreeMap<PortKey, Tenant>>) -> String {
        let Some(wanted) = wanted else { return "-".to_owned() };
        let port =
            |(key, tenant): (&PortKey, &Tenant)| format!("{}{}", tenant.service_name, key.port);
        wanted.iter().map(port).collect::<Vec<_>>().join(" ")
    }

    fn holding(held: &[u16], refused: &[(u16, &str)]) -> Holding {
        Holding {
            held: held.iter().map(|port| (key(*port), ServiceId::MIN)).collect(),
            absent: false,
            refused: refused.iter().map(|(port, why)| (key(*port), (*why).to_owned())).collect(),
        }
    }

    #[test]
    fn what_is_wanted_is_held_once() {
        let mut mesh = Mesh::default();
        assert_eq!(ports(mesh.next(0)), "-");
        mesh.want(&table("a:80 b:90 c:80 d:91h"));
        assert_eq!(ports(mesh.next(0)), "a80 b90");
        mesh.want(&table("a:80"));
        assert_eq!(ports(mesh.next(0)), "-", "one at a time");
        assert_eq!(mesh.done(holding(&[80, 90], &[]), 0), (true, vec![]));
        assert_eq!(ports(mesh.next(0)), "a80");
        assert_eq!(mesh.done(holding(&[80], &[]), 0), (true, vec![]));
        mesh.want(&table("a:80"));
        assert_eq!((ports(mesh.next(0)), mesh.wake_at()), ("-".to_owned(), None));
    }

    #[test]
    fn what_is_refused_is_told_once_and_tried_again() {
        let mut mesh = Mesh::default();
        mesh.want(&table("a:80"));
        mesh.next(0);
        let (changed, news) = mesh.done(holding(&[], &[(80, "taken by nginx (pid 7)")]), 0);
        let text = "port 80/tcp of service a is not answered by this node: taken by nginx (pid 7)";
        assert_eq!((changed, news), (false, vec![text.to_owned()]));
        assert_eq!(mesh.troubles(), [text]);
        assert_eq!((ports(mesh.next(999)), mesh.wake_at()), ("-".to_owned(), Some(1000)));
        assert_eq!(ports(mesh.next(1000)), "a80");
        let again = mesh.done(holding(&[], &[(80, "taken by nginx (pid 7)")]), 1000);
        assert_eq!((again, mesh.wake_at()), ((false, vec![]), Some(3000)));
        mesh.freed();
        assert_eq!(ports(mesh.next(1001)), "a80");
        assert_eq!(mesh.done(holding(&[80], &[]), 1001), (true, vec![]));
        assert_eq!((mesh.troubles().len(), mesh.wake_at()), (0, None));
    }
}
