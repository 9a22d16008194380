//! What the name server answers, made of what managers told and who is here.
//!
//! Pure. [`Names`] holds both and the zone that follows from them. A change of a few services
//! costs those services; what all depend on (the cluster's id, networks) has the zone made anew.
//! Which way it came about makes no difference: a test compares.
//!
//! Not here: how a name is looked up (`net::dns`). Stacks are not in the tables, and slots' own
//! virtual addresses are not in the zone: the name of a slot leads to its tasks.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use warren_model::NodeTable;
use warren_model::id::{ServiceId, TaskId};
use warren_model::node_table::{TableAttachment, TableChange, TableService, TableTask};
use warren_model::service::{EndpointMode, Protocol};
use warren_net::dns::{self, NamedPort, Prefix, Tables, Zone};

use crate::asker::Asker;

/// Tables, askers, and the zone of both.
#[derive(Debug, Clone, Default)]
pub struct Names {
    table: NodeTable,
    askers: BTreeMap<TaskId, Arc<Asker>>,
    pools: Vec<Prefix>,
    zone: Zone,
}

impl Names {
    /// What is answered; a clone costs nothing.
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    pub(crate) fn table(&self) -> &NodeTable {
        &self.table
    }

    pub(crate) fn askers(&self) -> &BTreeMap<TaskId, Arc<Asker>> {
        &self.askers
    }

    /// Where the cluster takes addresses from.
    pub fn set_pools(&mut self, pools: Vec<Prefix>) {
        if self.pools != pools {
            self.pools = pools;
            self.rebuild();
        }
    }

    /// Takes what changed of the table.
    pub fn change(&mut self, change: TableChange) {
        let is_large = change.complete
            || change.cluster.is_some_and(|cluster| self.table.cluster != Some(cluster))
            || !change.networks.is_empty()
            || !change.removed_networks.is_empty();
        let changed: Vec<ServiceId> = change.services.iter().map(|(id, _)| *id).collect();
        let removed = change.removed_services.clone();
        self.table.apply(change);
        if is_large {
            return self.rebuild();
        }
        for id in removed {
            self.zone.remove_service(id);
        }
        for id in changed {
            match self.table.services.get(&id).and_then(|found| service(&self.table, id, found)) {
                Some(service) => self.zone.put_service(service),
                None => self.zone.remove_service(id),
            }
        }
    }

    /// A container may ask from now on; replaces what was known of its task.
    pub fn admit(&mut self, asker: Asker) {
        self.dismiss(asker.task);
        // Of a task that is gone and was not dismissed: the address is the new one's.
        let others = self.askers.values();
        let stale = others.filter(|other| other.addresses.v4 == asker.addresses.v4);
        for task in stale.map(|other| other.task).collect::<Vec<_>>() {
            self.dismiss(task);
        }
        self.zone.put_asker(asker.in_zone());
        self.askers.insert(asker.task, Arc::new(asker));
    }

    /// A container is gone; one that was never there is fine.
    pub fn dismiss(&mut self, task: TaskId) {
        if let Some(asker) = self.askers.remove(&task) {
            self.zone.remove_asker(asker.addresses.v4.into());
        }
    }

    /// These are all containers.
    pub fn restore(&mut self, askers: Vec<Asker>) {
        for task in self.askers.keys().copied().collect::<Vec<_>>() {
            self.dismiss(task);
        }
        for asker in askers {
            self.admit(asker);
        }
    }

    fn rebuild(&mut self) {
        let services = self.table.services.iter();
        let services = services.filter_map(|(id, found)| service(&self.table, *id, found));
        self.zone = Zone::new(Tables {
            pools: self.pools.clone(),
            services: services.collect(),
            askers: self.askers.values().map(|asker| asker.in_zone()).collect(),
        });
    }
}

/// A service as the zone knows it; none if nobody here may find it by its name.
fn service(table: &NodeTable, id: ServiceId, service: &TableService) -> Option<dns::Service> {
    if service.on.is_empty() {
        return None;
    }
    let attachments = service.on.iter().map(|on| attachment(table, service, on));
    Some(dns::Service {
        id,
        name: service.name.as_str().into(),
        stack: None,
        attachments: attachments.collect(),
        ports: ports(service),
        tasks: service.tasks.iter().map(|found| task(table, service, found)).collect(),
    })
}

/// Ports that have names, each once: it may be published more than once.
fn ports(service: &TableService) -> Vec<NamedPort> {
    let mut ports: Vec<NamedPort> = Vec::new();
    for port in &service.ports {
        let Some(name) = port.name else { continue };
        let protocol = match port.protocol {
            Protocol::Tcp => warren_net::Protocol::Tcp,
            Protocol::Udp => warren_net::Protocol::Udp,
        };
        let named = NamedPort { name: name.as_str().into(), protocol, port: port.target };
        if !ports.contains(&named) {
            ports.push(named);
        }
    }
    ports
}

fn attachment(table: &NodeTable, service: &TableService, on: &TableAttachment) -> dns::Attachment {
    let vip = on.vip.filter(|_| service.endpoint.mode == EndpointMode::Vip);
    dns::Attachment {
        network: dns::NetworkId(*on.network.as_bytes()),
        endpoint: match vip {
            Some(vip) => dns::Endpoint::Vip(both(vip, table.vip_v6(on.network, vip))),
            None => dns::Endpoint::Tasks,
        },
        aliases: on.aliases.iter().map(|alias| alias.as_str().into()).collect(),
    }
}

fn task(table: &NodeTable, service: &TableService, task: &TableTask) -> dns::Task {
    dns::Task {
        slot: task.slot,
        hostname: service.hostname.clone(),
        addresses: both(task.address, table.container_v6(task.address)),
        ready: task.ready,
    }
}

fn both(v4: Ipv4Addr, v6: Option<std::net::Ipv6Addr>) -> dns::Addresses {
    dns::Addresses { v4: Some(v4), v6 }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use warren_model::id::{ClusterId, NetworkId, NodeId};
    use warren_model::node_table::TableNetwork;
    use warren_model::service::{Endpoint, PortSpec, PublishMode};
    use warren_net::dns::{Data, Outcome, Upstream, kind};

    use super::*;

    fn network(n: u8) -> NetworkId {
        NetworkId::from_bytes([n; 10])
    }

    /// `web@1=192:1,-2` is a service on network 1 with the virtual IP 10.192.0.192 and tasks at .1,
    /// ready, and .2, not; without `=` it answers with its tasks. `n1` is network 1. After that
    /// `%http/80` is a named port, published twice, and `#box` what its containers are called.
    fn table(text: &str) -> NodeTable {
        let mut table =
            NodeTable { cluster: Some(ClusterId::from_bytes([1; 10])), ..NodeTable::default() };
        for word in text.split_whitespace() {
            let Some((name, rest)) = word.split_once('@') else {
                let n: u8 = word.strip_prefix('n').unwrap().parse().unwrap();
                let spec = TableNetwork {
                    name: word.parse().unwrap(),
                    internal: false,
                    attachable: false,
                    encrypted: true,
                    subnet_v6: None,
                };
                table.networks.insert(network(n), Arc::new(spec));
                continue;
            };
            let (rest, hostname) = rest.split_once('#').map_or((rest, None), |(r, h)| (r, Some(h)));
            let (rest, port) = rest.split_once('%').map_or((rest, None), |(r, p)| (r, Some(p)));
            let (at, tasks) = rest.split_once(':').unwrap();
            let port = port.map(|port| {
                let (name, target) = port.split_once('/').unwrap();
                PortSpec {
                    protocol: Protocol::Tcp,
                    bind: [0; 4].into(),
                    published: 8080,
                    target: target.parse().unwrap(),
                    mode: PublishMode::Ingress,
                    name: Some(name.parse().unwrap()),
                }
            });
            let nameless = port.map(|port| PortSpec { published: 9090, name: None, ..port });
            let again = port.map(|port| PortSpec { published: 8081, ..port });
            let (on, vip) = at.split_once('=').map_or((at, None), |(on, vip)| (on, Some(vip)));
            let tasks = tasks.split(',').filter(|task| !task.is_empty()).map(|task| {
                let n: u8 = task.trim_start_matches('-').parse().unwrap();
                TableTask {
                    task: TaskId::from_bytes([n; 10]),
                    slot: n.into(),
                    address: [10, 128, 0, n].into(),
                    node: NodeId::from_bytes([3; 10]),
                    weight: TableTask::WEIGHT,
                    ready: !task.starts_with('-'),
                }
            });
            let on = on.split('+').filter(|on| !on.is_empty()).map(|on| TableAttachment {
                network: network(on.parse().unwrap()),
                aliases: vec![format!("{name}-too").parse().unwrap()],
                vip: vip.map(|n| [10, 192, 0, n.parse().unwrap()].into()),
                slots: vec![],
            });
            let service = TableService {
                name: name.parse().unwrap(),
                on: on.collect(),
                endpoint: Endpoint::default(),
                ports: [port, nameless, again].into_iter().flatten().collect(),
                hostname: hostname.map(Into::into),
                tasks: tasks.collect(),
            };
            let id = ServiceId::from_bytes([name.as_bytes()[0]; 10]);
            table.services.insert(id, Arc::new(service));
        }
        table
    }

    fn asker(task: u8, last: u8, on: &[u8]) -> Asker {
        Asker {
            task: TaskId::from_bytes([task; 10]),
            addresses: Ipv4Addr::new(10, 128, 0, last).into(),
            stack: None,
            networks: on.iter().map(|n| network(*n)).collect(),
            upstream: Upstream::Nobody,
        }
    }

    fn told(names: &Names, from: u8, name: &str, kind: u16) -> String {
        let from = IpAddr::from([10, 128, 0, from]);
        let outcome = match names.zone().lookup(from, name, kind, 0) {
            Outcome::Found(answer) => {
                let mut all: Vec<String> = answer
                    .records
                    .iter()
                    .map(|record| match &record.data {
                        Data::A(address) => address.to_string(),
                        Data::Aaaa(address) => address.to_string(),
                        other => format!("{other:?}"),
                    })
                    .collect();
                all.sort();
                return all.join(" ");
            }
            Outcome::NoData => "no data",
            Outcome::NoName => "no name",
            Outcome::Forward(_) => "forward",
            Outcome::Refused => "refused",
        };
        outcome.to_owned()
    }

    #[test]
    fn names_lead_where_the_table_says() {
        let mut names = Names::default();
        names.change(table("n1 n2 web@1=9:1,-2 db@1:3,-4 api@2:5 mesh@:6").whole());
        names.admit(asker(1, 1, &[1]));
        let check = |from, name: &str, kind, expected: &str| {
            assert_eq!(told(&names, from, name, kind), expected, "{name} from {from}");
        };
        check(1, "web", kind::A, "10.192.0.9");
        check(1, "web-too", kind::A, "10.192.0.9");
        check(1, "web", kind::AAAA, "fd01:101:101:1::ac0:9");
        check(1, "tasks.web", kind::A, "10.128.0.1");
        check(1, "db", kind::A, "10.128.0.3");
        check(1, "db", kind::AAAA, "fd01:101:101::a80:3");
        check(1, "2.web", kind::A, "no data");
        check(1, "api", kind::A, "no name");
        check(1, "mesh", kind::A, "no name");
        check(9, "web", kind::A, "refused");
    }

    #[test]
    fn slots_ports_and_host_names_lead_to_tasks() {
        let mut names = Names::default();
        names.change(table("n1 n2 web@1=9:1,2%http/80#box db@1:3,-4%pg/5432 box@2:5").whole());
        names.admit(asker(1, 1, &[1]));
        names.admit(asker(5, 5, &[2]));
        let check = |from, name: &str, kind, expected: &str| {
            assert_eq!(told(&names, from, name, kind), expected, "{name} from {from}");
        };
        let srv = |port: u16, target: &str| {
            format!("{:?}", Data::Srv { port, target: format!("{target}.warren.internal").into() })
        };
        check(1, "1.web", kind::A, "10.128.0.1");
        check(1, "2.web", kind::AAAA, "fd01:101:101::a80:2");
        check(1, "3.web", kind::A, "no name");
        check(1, "3.db", kind::A, "10.128.0.3");
        check(1, "4.db", kind::A, "no data");
        check(1, "_http._tcp.web", kind::SRV, &srv(80, "web"));
        check(1, "_http._tcp.web", kind::A, "no data");
        check(1, "_http._udp.web", kind::SRV, "no name");
        check(1, "_pg._tcp.db", kind::SRV, &srv(5432, "3.db"));
        check(1, "box", kind::A, "10.128.0.1 10.128.0.2");
        check(5, "box", kind::A, "10.128.0.5");
        check(5, "_http._tcp.web", kind::SRV, "no name");
    }

    #[test]
    fn askers_come_and_go() {
        let mut names = Names::default();
        names.change(table("n1 n2 web@1=9:1 api@2:5").whole());
        names.admit(asker(1, 1, &[1]));
        names.admit(asker(2, 2, &[2]));
        assert_eq!(told(&names, 2, "api", kind::A), "10.128.0.5");
        // The same task elsewhere; another task at its address.
        names.admit(asker(1, 7, &[1]));
        assert_eq!(told(&names, 1, "web", kind::A), "refused");
        assert_eq!(told(&names, 7, "web", kind::A), "10.192.0.9");
        names.admit(asker(3, 7, &[2]));
        assert_eq!(told(&names, 7, "web", kind::A), "no name");
        names.dismiss(TaskId::from_bytes([1; 10]));
        assert_eq!(told(&names, 7, "api", kind::A), "10.128.0.5");
        names.restore(vec![asker(5, 5, &[1])]);
        assert_eq!(names.askers().len(), 1);
        for (from, expected) in [(2, "refused"), (7, "refused"), (5, "10.192.0.9")] {
            assert_eq!(told(&names, from, "web", kind::A), expected);
        }
    }

    #[test]
    fn a_change_ends_where_the_whole_begins() {
        let tables = [
            "",
            "n1 web@1=9:1",
            "n1 web@1=9:1,2 db@1:3",
            "n1 n2 web@1+2=9:1,2 db@1:-3 api@2:4",
            "n1 web@:1 db@1:3",
            "n1 db@1=8:3",
        ];
        for before in tables {
            for after in tables {
                let (before, after) = (table(before), table(after));
                let mut names = Names::default();
                names.change(before.whole());
                names.admit(asker(1, 1, &[1, 2]));
                if let Some(change) = after.since(&before) {
                    names.change(change);
                }
                let mut whole = Names::default();
                whole.admit(asker(1, 1, &[1, 2]));
                whole.change(after.whole());
                assert_eq!(names.table(), whole.table());
                for name in ["web", "db", "api", "tasks.web", "web-too", "1.web", "x"] {
                    let (changed, made) =
                        (told(&names, 1, name, kind::A), told(&whole, 1, name, kind::A));
                    assert_eq!(changed, made, "{name}");
                }
            }
        }
    }
}
