//! Which ports this node publishes, who must hold them, and who answers.
//!
//! Pure: services and local tasks in, a whole table out. A port appears
//! only while a task of the service holds its reservation, so that traffic of a
//! foreign process on the same port is never taken away.
//!
//! An `ingress` port is one reservation shared by all local replicas, balanced
//! over those that serve; a `host` port belongs to one replica.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::sync::Arc;

use warren_model::ServiceId;
use warren_model::service::{PortSpec, Protocol, PublishMode};
use warren_net::{Backend, Frontend, PublishedPort, Service};

/// A port of this node that can be reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortKey {
    pub protocol: Protocol,
    pub bind: Ipv4Addr,
    pub port: u16,
}

impl PortKey {
    pub fn of(spec: &PortSpec) -> Self {
        Self { protocol: spec.protocol, bind: spec.bind, port: spec.published }
    }

    /// Under which name a container's shim keeps the reservation.
    pub fn label(&self) -> String {
        format!("port:{}:{}:{}", self.protocol.as_str(), self.bind, self.port)
    }

    pub fn net_protocol(&self) -> warren_net::Protocol {
        match self.protocol {
            Protocol::Tcp => warren_net::Protocol::Tcp,
            Protocol::Udp => warren_net::Protocol::Udp,
        }
    }
}

/// `8080/tcp`, with the address where it is not every one.
impl fmt::Display for PortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.bind.is_unspecified() {
            write!(f, "{}:", self.bind)?;
        }
        write!(f, "{}/{}", self.port, self.protocol.as_str())
    }
}

/// A reservation that a task needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    pub key: PortKey,
    /// With the other replicas of the service on this node.
    pub shared: bool,
}

impl Claim {
    /// As kept in a container's labels: `shared:tcp:0.0.0.0:8080`.
    pub fn to_text(self) -> String {
        let kind = if self.shared { "shared" } else { "own" };
        let PortKey { protocol, bind, port } = self.key;
        format!("{kind}:{}:{bind}:{port}", protocol.as_str())
    }

    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let shared = match parts.next()? {
            "shared" => true,
            "own" => false,
            _ => return None,
        };
        let protocol = match parts.next()? {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return None,
        };
        let (bind, port) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some(Self { key: PortKey { protocol, bind, port }, shared })
    }
}

/// The reservations that a task of a service with `ports` needs.
pub fn claims(ports: &[PortSpec]) -> Vec<Claim> {
    let claim = |port: &PortSpec| Claim {
        key: PortKey::of(port),
        shared: match port.mode {
            PublishMode::Ingress => true,
            PublishMode::Host => false,
        },
    };
    ports.iter().map(claim).collect()
}

/// A task of this node as the table sees it.
#[derive(Debug, Clone)]
pub struct Replica<'a> {
    pub service: ServiceId,
    pub address: Option<Ipv4Addr>,
    /// Running, ready and not draining.
    pub serving: bool,
    /// What it holds.
    pub claimed: &'a BTreeSet<PortKey>,
}

/// Everything the kernel should publish for this node, by service.
pub fn table<'a>(
    services: impl Iterator<Item = (ServiceId, &'a [PortSpec])>,
    replicas: &[Replica<'_>],
) -> BTreeMap<ServiceId, Vec<PublishedPort>> {
    let mut of_service: BTreeMap<ServiceId, Vec<&Replica<'_>>> = BTreeMap::new();
    for replica in replicas {
        of_service.entry(replica.service).or_default().push(replica);
    }
    let mut table = BTreeMap::new();
    for (id, ports) in services {
        let Some(replicas) = of_service.get(&id) else { continue };
        let mut published: Vec<_> =
            ports.iter().filter_map(|port| publish(port, replicas)).collect();
        if !published.is_empty() {
            published.sort();
            table.insert(id, published);
        }
    }
    table
}

fn publish(port: &PortSpec, replicas: &[&Replica<'_>]) -> Option<PublishedPort> {
    let key = PortKey::of(port);
    let holds = |replica: &&&Replica<'_>| replica.claimed.contains(&key);
    if !replicas.iter().any(|replica| holds(&replica)) {
        return None;
    }
    let answers = |replica: &&&Replica<'_>| match port.mode {
        PublishMode::Ingress => replica.serving,
        PublishMode::Host => replica.serving && holds(replica),
    };
    let address = |replica: &&Replica<'_>| {
        replica.address.map(|address| SocketAddrV4::new(address, port.target))
    };
    let mut backends: Vec<_> = replicas.iter().filter(answers).filter_map(address).collect();
    backends.sort();
    backends.dedup();
    Some(PublishedPort { protocol: key.net_protocol(), bind: key.bind, port: key.port, backends })
}

/// The same ports on IPv6, those that are for every address. `v6` is a container's other address.
///
/// Chains of ports know IPv4 alone, so these are services of one port.
pub fn services6(
    id: ServiceId,
    ports: &[PublishedPort],
    v6: impl Fn(Ipv4Addr) -> Option<Ipv6Addr>,
) -> Vec<Arc<Service>> {
    let service = |published: &PublishedPort| {
        let PublishedPort { protocol, bind: _, port, backends } = published;
        let backend = |at: &SocketAddrV4| {
            v6(*at.ip()).map(|v6| Backend { address: v6.into(), weight: 1, local: true })
        };
        Arc::new(Service {
            key: format!("{id}/node/{port}/{protocol}").into(),
            frontends: vec![Frontend::Published {
                bind: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
                protocol: *protocol,
                port: *port,
                // Nobody is led anywhere without a backend.
                target: backends.first().map_or(*port, SocketAddrV4::port),
            }],
            backends: backends.iter().filter_map(backend).collect(),
            affinity: false,
            prefer_local: false,
        })
    };
    ports.iter().filter(|port| port.bind.is_unspecified()).map(service).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> [u8; 10] {
        [n; 10]
    }

    /// Ports of service 1 as `PUB:TARGET[h]`; replicas as `state address ports`, `+` serves,
    /// `-` does not. Prints `port>backends`.
    #[track_caller]
    fn check(ports: &str, replicas: &str, expected: &str) {
        let ports: Vec<PortSpec> = ports
            .split_whitespace()
            .map(|text| {
                let host = text.ends_with('h');
                let (published, target) = text.trim_end_matches('h').split_once(':').unwrap();
                PortSpec {
                    protocol: Protocol::Tcp,
                    bind: Ipv4Addr::UNSPECIFIED,
                    published: published.parse().unwrap(),
                    target: target.parse().unwrap(),
                    mode: if host { PublishMode::Host } else { PublishMode::Ingress },
                    name: None,
                }
            })
            .collect();
        let parsed: Vec<(bool, Option<Ipv4Addr>, BTreeSet<PortKey>)> = replicas
            .split(',')
            .filter(|text| !text.trim().is_empty())
            .map(|text| {
                let mut words = text.split_whitespace();
                let serving = words.next().unwrap() == "+";
                let last: u8 = words.next().unwrap().parse().unwrap();
                let key = |port: &str| PortKey {
                    protocol: Protocol::Tcp,
                    bind: Ipv4Addr::UNSPECIFIED,
                    port: port.parse().unwrap(),
                };
                (serving, Some(Ipv4Addr::new(10, 0, 0, last)), words.map(key).collect())
            })
            .collect();
        let replicas: Vec<Replica<'_>> = parsed
            .iter()
            .map(|(serving, address, claimed)| Replica {
                service: ServiceId::from_bytes(id(1)),
                address: *address,
                serving: *serving,
                claimed,
            })
            .collect();
        let services = [
            (ServiceId::from_bytes(id(1)), ports.as_slice()),
            (ServiceId::from_bytes(id(2)), ports.as_slice()),
        ];
        let got: Vec<String> = table(services.into_iter(), &replicas)
            .values()
            .flatten()
            .map(|port| {
                let backends: Vec<String> = port.backends.iter().map(ToString::to_string).collect();
                format!("{}>{}", port.port, backends.join("+"))
            })
            .collect();
        assert_eq!(got.join(" "), expected);
    }

    #[test]
    fn who_answers() {
        check("80:8", "", "");
        check("80:8", "- 1", "");
        check("80:8", "- 1 80", "80>");
        check("80:8", "+ 1 80", "80>10.0.0.1:8");
        check("80:8", "+ 2 80, + 1 80, - 3 80", "80>10.0.0.1:8+10.0.0.2:8");
        check("80:8", "+ 1, + 2 80", "80>10.0.0.1:8+10.0.0.2:8");
        check("90:9 80:8", "+ 1 80 90", "80>10.0.0.1:8 90>10.0.0.1:9");
        check("90:9 80:8", "+ 1 90", "90>10.0.0.1:9");
    }

    #[test]
    fn a_host_port_belongs_to_one() {
        check("80:8h", "+ 1 80, + 2", "80>10.0.0.1:8");
        check("80:8h", "- 1 80, + 2", "80>");
    }

    #[test]
    fn ports_of_every_address_are_of_both_families() {
        let port = |bind, port, backends: &[u8]| PublishedPort {
            protocol: warren_net::Protocol::Tcp,
            bind,
            port,
            backends: backends
                .iter()
                .map(|last| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, *last), 8))
                .collect(),
        };
        let any = Ipv4Addr::UNSPECIFIED;
        let ports = [port(any, 80, &[1]), port(any, 81, &[]), port(Ipv4Addr::LOCALHOST, 82, &[1])];
        let made = services6(ServiceId::from_bytes(id(1)), &ports, |v4| {
            Some(Ipv6Addr::from([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, v4.octets()[3]]))
        });
        let shown: Vec<String> = made
            .iter()
            .map(|service| {
                let backends: Vec<_> =
                    service.backends.iter().map(|backend| backend.address.to_string()).collect();
                let Frontend::Published { bind, port, target, .. } = service.frontends[0] else {
                    unreachable!()
                };
                format!("[{bind}]:{port}>{target} {}", backends.join("+"))
            })
            .collect();
        assert_eq!(shown, ["[::]:80>8 fd00::1", "[::]:81>81 "]);
    }

    #[test]
    fn labels_and_names() {
        let mut key = PortKey { protocol: Protocol::Tcp, bind: Ipv4Addr::UNSPECIFIED, port: 8080 };
        assert_eq!(key.label(), "port:tcp:0.0.0.0:8080");
        assert_eq!(key.to_string(), "8080/tcp");
        let claim = Claim { key, shared: true };
        assert_eq!(claim.to_text(), "shared:tcp:0.0.0.0:8080");
        assert_eq!(Claim::parse(&claim.to_text()), Some(claim));
        let own = Claim { key: PortKey { protocol: Protocol::Udp, ..key }, shared: false };
        assert_eq!(Claim::parse(&own.to_text()), Some(own));
        assert_eq!(Claim::parse("own:sctp:0.0.0.0:1"), None);
        key.bind = Ipv4Addr::LOCALHOST;
        key.protocol = Protocol::Udp;
        assert_eq!(key.to_string(), "127.0.0.1:8080/udp");
    }
}
