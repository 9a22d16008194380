//! Tables in, what the kernel is to hold out.

use std::fmt::Write as _;

use warren_model::PolicyId;
use warren_model::cluster::Subnet as Pool;
use warren_model::id::ClusterId;
use warren_model::node_table::{Peer, TableAttachment, TableNetwork, TablePeers, TablePolicy};
use warren_model::policy::{PolicyAction, PolicyPeer};
use warren_model::service::{Endpoint, Protocol, PublishMode};

use super::*;

mod policies;
mod random;

fn bytes(word: &str) -> [u8; 10] {
    let mut bytes = [0; 10];
    bytes[..word.len()].copy_from_slice(word.as_bytes());
    bytes
}

/// A cluster in a few words, one object a line:
/// ```text
/// node a [HOST]               number, block and address follow from the letter
/// network back [internal]     known here
/// web back=.5 front p80 t1a+ t2b- s2=.9 local sticky
///                             on networks with virtual IPs (`-`: none), a mesh port, tasks by
///                             number and node (`+` ready as managers say), slots' addresses
/// ```
/// This node is `a`. Without IPv6, so that lines are short.
#[derive(Debug, Clone)]
struct Town {
    table: NodeTable,
    settings: Cluster,
    locals: BTreeMap<TaskId, Local>,
    held: BTreeMap<PortKey, ServiceId>,
    addresses: Addresses,
}

fn node(word: &str) -> NodeId {
    NodeId::from_bytes(bytes(word))
}

fn task(number: &str) -> TaskId {
    TaskId::from_bytes(bytes(number))
}

fn address(node: u8, last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 128, node - b'a', last)
}

impl Town {
    fn new(text: &str) -> Self {
        let cluster = ClusterId::from_bytes([1; 10]);
        let mut town = Self {
            table: NodeTable { cluster: Some(cluster), ..NodeTable::default() },
            settings: Cluster::new(cluster),
            locals: BTreeMap::new(),
            held: BTreeMap::new(),
            addresses: Addresses::new(),
        };
        text.lines().map(str::trim).filter(|line| !line.is_empty()).for_each(|line| town.add(line));
        town
    }

    fn add(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["node", name, ref host @ ..] => {
                let at = name.as_bytes()[0];
                let own = format!("192.0.2.{}", at - b'a' + 1);
                let peer = Peer {
                    number: u32::from(at - b'a') + 1,
                    underlay: host.first().map_or(own, |host| (*host).to_owned()),
                    blocks: vec![Pool { address: address(at, 0), prefix: 24 }],
                    overlay_key: [0; 32],
                    overlay_key_other: [0; 32],
                    overlay_port: 0,
                    name: String::new(),
                };
                self.table.peers.insert(node(name), Arc::new(peer));
            }
            ["policy", name, action, ref words @ ..] => self.policy(name, action, words),
            ["network", name, ref internal @ ..] => {
                let network = TableNetwork {
                    name: name.parse().unwrap(),
                    internal: !internal.is_empty(),
                    attachable: false,
                    encrypted: false,
                    subnet_v6: None,
                };
                let id = NetworkId::from_bytes(bytes(name));
                self.table.networks.insert(id, Arc::new(network));
            }
            [name, ref words @ ..] => self.service(name, words),
            [] => {}
        }
    }

    /// `policy NAME ACTION [from A,B] [to C] [ports D] [priority N]`, as people write them.
    fn policy(&mut self, name: &str, action: &str, words: &[&str]) {
        let actions = PolicyAction::ALL;
        let mut policy = TablePolicy {
            name: name.parse().unwrap(),
            action: actions.into_iter().find(|a| a.as_str() == action).unwrap(),
            priority: 100,
            from: None,
            to: None,
            ports: vec![],
        };
        let peers = |text: &str| {
            let mut peers = TablePeers::default();
            for word in text.split(',') {
                match word.parse().unwrap() {
                    PolicyPeer::Outside => peers.outside = true,
                    PolicyPeer::Range(range) => peers.ranges.push(range),
                    PolicyPeer::Service(name) => {
                        peers.services.push(ServiceId::from_bytes(bytes(name.as_str())));
                    }
                    PolicyPeer::Network(_) => unreachable!("managers look networks up"),
                }
            }
            Some(peers)
        };
        for pair in words.chunks(2) {
            match pair {
                ["from", text] => policy.from = peers(text),
                ["to", text] => policy.to = peers(text),
                ["ports", text] => {
                    policy.ports = text.split(',').map(|p| p.parse().unwrap()).collect()
                }
                _ => policy.priority = pair[1].parse().unwrap(),
            }
        }
        self.table.policies.insert(PolicyId::from_bytes(bytes(name)), Arc::new(policy));
    }

    fn service(&mut self, name: &str, words: &[&str]) {
        let id = ServiceId::from_bytes(bytes(name));
        let mut service = TableService {
            name: name.parse().unwrap(),
            on: vec![],
            endpoint: Endpoint::default(),
            ports: vec![],
            hostname: None,
            tasks: vec![],
        };
        let vip =
            |text: &str| Ipv4Addr::new(10, 192, 0, text.trim_start_matches('.').parse().unwrap());
        for word in words {
            if let Some(port) = word.strip_prefix('p').and_then(|port| port.parse().ok()) {
                let (protocol, bind) = (Protocol::Tcp, Ipv4Addr::UNSPECIFIED);
                let mode = PublishMode::Ingress;
                let name = None;
                let port = PortSpec { protocol, bind, published: port, target: port, mode, name };
                self.held.insert(PortKey::of(&port), id);
                service.ports.push(port);
            } else if let Some(rest) = word.strip_prefix('t').filter(|t| t.ends_with(['+', '-'])) {
                let (number, at) = (&rest[..1], rest.as_bytes()[1]);
                let slot: u8 = number.parse().unwrap();
                service.tasks.push(TableTask {
                    task: task(number),
                    slot: slot.into(),
                    address: address(at, slot + 1),
                    node: node(&rest[1..2]),
                    weight: TableTask::WEIGHT,
                    ready: rest.ends_with('+'),
                });
            } else if let Some((slot, text)) = word
                .strip_prefix('s')
                .and_then(|word| word.split_once('='))
                .filter(|(slot, _)| slot.len() == 1)
            {
                for on in &mut service.on {
                    on.slots.push((slot.parse().unwrap(), vip(text)));
                }
            } else if *word == "local" {
                service.endpoint.prefer_local = true;
            } else if *word == "sticky" {
                service.endpoint.affinity = Affinity::ClientAddress;
            } else {
                let (network, at) = word.split_once('=').unwrap_or((word, "-"));
                service.on.push(TableAttachment {
                    network: NetworkId::from_bytes(bytes(network)),
                    aliases: vec![],
                    vip: (at != "-").then(|| vip(at)),
                    slots: vec![],
                });
            }
        }
        self.table.services.insert(id, Arc::new(service));
    }

    /// Tasks that run here: `1+ 2- 3.`, the first serves, the last has ended.
    fn here(mut self, text: &str) -> Self {
        self.locals.clear();
        for word in text.split_whitespace() {
            let id = task(&word[..1]);
            let of =
                |service: &&Arc<TableService>| service.tasks.iter().any(|task| task.task == id);
            let found = self.table.services.iter().find(|(_, service)| of(service));
            let service = found.map_or(ServiceId::MIN, |(id, _)| *id);
            self.locals.insert(
                id,
                Local { service, serving: word.ends_with('+'), up: !word.ends_with('.') },
            );
        }
        self
    }

    fn draw(&self, drawing: &mut Drawing) -> Whole {
        drawing.draw(&Ground {
            table: &Arc::new(self.table.clone()),
            settings: Some(&self.settings),
            locals: &self.locals,
            held: &Held { node: Arc::new(self.held.clone()), ..Held::default() },
            addresses: &self.addresses,
        })
    }
}

fn site() -> Site {
    Site { node: node("a"), device: "wtestwg".to_owned(), ipv6: false }
}

/// Services and groups, one a line, in short.
fn shown(whole: &Whole) -> String {
    let mut text = String::new();
    let short = |address: &IpAddr| address.to_string().trim_start_matches("10.").to_owned();
    for service in &whole.table().services {
        let key = service.key.split('/').skip(1).collect::<Vec<_>>().join("/");
        let _ = match key.as_str() {
            "mesh" => write!(text, "mesh"),
            _ => write!(text, "vip"),
        };
        for frontend in &service.frontends {
            let _ = match frontend {
                Frontend::Address(vip) => write!(text, " {}", short(vip)),
                Frontend::Published { port, .. } => write!(text, " :{port}"),
                Frontend::Elsewhere { target, .. } => write!(text, " ({target})"),
                Frontend::Port { .. } => unreachable!("none is drawn"),
            };
        }
        text.push_str(" >");
        for backend in &service.backends {
            let here = match backend.weight {
                0 => "-",
                _ if backend.local => "!",
                _ => "",
            };
            let _ = write!(text, " {}{here}", short(&backend.address));
        }
        text.push_str(if service.affinity { " sticky" } else { "" });
        text.push_str(if service.prefer_local { " local" } else { "" });
        text.push('\n');
    }
    for group in &whole.table().networks.unwrap().groups {
        let addresses: Vec<String> = group.addresses.iter().map(short).collect();
        let _ = writeln!(text, "group {:?}: {}", group.networks, addresses.join(" "));
    }
    text
}

#[track_caller]
fn check(town: &str, here: &str, expected: &str) {
    let whole = Town::new(town).here(here).draw(&mut Drawing::new(site()));
    let expected: Vec<&str> = expected.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    assert_eq!(shown(&whole).lines().map(str::trim_end).collect::<Vec<_>>(), expected);
}

const TOWN: &str = "
    node a
    node b
    network back
";

#[test]
fn who_is_behind_a_virtual_ip() {
    let check =
        |service: &str, here: &str, expected| check(&[TOWN, service].concat(), here, expected);
    // Elsewhere as managers say.
    check("web back=.5 t1b+ t2b-", "", "vip 192.0.5 > 128.1.2\n group {1}: 128.1.2 128.1.3");
    // Here as it is: gone before managers know, and there before as well.
    check("web back=.5 t1a+ t2b+", "1.", "vip 192.0.5 > 128.1.3\n group {1}: 128.0.2 128.1.3");
    // What others send to it is let in for as long as it runs.
    check(
        "web back=.5 t1a+ t2b+",
        "1-",
        "vip 192.0.5 > 128.0.2- 128.1.3\n group {1}: 128.0.2 128.1.3",
    );
    check(
        "web back=.5 t1a- t2b+",
        "1+",
        "vip 192.0.5 > 128.0.2! 128.1.3\n group {1}: 128.0.2 128.1.3",
    );
    check("web back=.5 t1a+", "", "vip 192.0.5 >\n group {1}: 128.0.2");
    // `dnsrr` has none; members all the same.
    check("web back t1b+", "", "group {1}: 128.1.2");
    check(
        "web back=.5 t1b+ local sticky",
        "",
        "vip 192.0.5 > 128.1.2 sticky local\n group {1}: 128.1.2",
    );
    check(
        "web back=.5 t1b+ t2b+ s1=.7 s2=.8",
        "",
        "vip 192.0.5 > 128.1.2 128.1.3\n vip 192.0.7 > 128.1.2\n vip 192.0.8 > 128.1.3\n group {1}: 128.1.2 128.1.3",
    );
}

#[test]
fn ports_of_the_mesh() {
    let check =
        |service: &str, here: &str, expected| check(&[TOWN, service].concat(), here, expected);
    check("web p80 t1b+", "", "mesh :80 > 128.1.2");
    check(
        "web back=.5 p80 t1a- t2b+",
        "1+",
        "
        vip 192.0.5 > 128.0.2! 128.1.3
        mesh :80 > 128.0.2! 128.1.3
        group {1}: 128.0.2 128.1.3",
    );
    check("web p80", "", "mesh :80 >");
    let mut town = Town::new(&[TOWN, "web p80 t1b+"].concat());
    town.held.clear();
    assert_eq!(shown(&town.draw(&mut Drawing::new(site()))), "", "somebody else listens there");
    // What runs here all the same is reached by those who answer.
    let mut town = Town::new(&[TOWN, "web p80 t1a+ t2b+"].concat()).here("1+");
    town.held.clear();
    let shown = shown(&town.draw(&mut Drawing::new(site())));
    assert_eq!(shown, "mesh (80) > 128.0.2! 128.1.3\n");
}

#[test]
fn a_port_on_every_address_is_of_both_families() {
    let draw = |port: &str| {
        let mut town = Town::new(&[TOWN, "web t1b+"].concat());
        let id = ServiceId::from_bytes(bytes("web"));
        let bind = port.parse().unwrap();
        let (protocol, mode) = (Protocol::Tcp, PublishMode::Ingress);
        let port = PortSpec { protocol, bind, published: 80, target: 80, mode, name: None };
        town.held.insert(PortKey::of(&port), id);
        Arc::make_mut(town.table.services.get_mut(&id).unwrap()).ports.push(port);
        let whole = town.draw(&mut Drawing::new(Site { ipv6: true, ..site() }));
        let bind = |frontend: &Frontend| match frontend {
            Frontend::Published { bind, .. } => bind.to_string(),
            other => panic!("{other:?}"),
        };
        let table = whole.table();
        let frontends = table.services.iter().flat_map(|service| &service.frontends);
        frontends.map(bind).collect::<Vec<_>>()
    };
    assert_eq!(draw("0.0.0.0"), ["0.0.0.0", "::"]);
    assert_eq!(draw("192.0.2.1"), ["192.0.2.1"]);
}

#[test]
fn networks_have_numbers_of_their_own() {
    check(
        "node a\n node b\n network back internal\n network front\n web front back t1b+\n db back t2b+",
        "",
        "group {1}: 128.1.3\n group {1, 2}: 128.1.2",
    );
    let town = Town::new("node a\n network back internal\n network front\n web front back t1a+");
    let mut drawing = Drawing::new(site());
    assert_eq!(town.draw(&mut drawing).internal, [1].into());
    // A network that is gone and one that comes: nobody is taken for another.
    let town = Town::new("node a\n network front\n network new\n web front new t1a+");
    assert_eq!(shown(&town.draw(&mut drawing)), "group {2, 3}: 128.0.2\n");
}

#[test]
fn without_a_place_among_the_nodes_there_is_only_what_is_here() {
    check(
        "node b\n network back\n web back=.5 t1a- t2b+",
        "1+",
        "
        vip 192.0.5 > 128.0.2!
        group {1}: 128.0.2 128.1.3",
    );
    let whole = Town::new("node b").draw(&mut Drawing::new(site()));
    assert_eq!(whole.overlay, None);
}

fn overlay(town: &Town, site: Site) -> Overlay {
    let whole = town.draw(&mut Drawing::new(site));
    Overlay::clone(&whole.overlay.expect("there is an overlay"))
}

#[test]
fn the_overlay_is_of_the_nodes() {
    let mut town = Town::new("node a\n node b\n node c");
    let drawn = overlay(&town, Site { ipv6: true, ..site() });
    assert_eq!(
        (drawn.carrier, drawn.device.clone(), drawn.vni),
        (warren_net::Carrier::Vxlan, None, 0x01_0101)
    );
    assert_eq!((drawn.own.number, drawn.own.inner), (1, address(b'a', 0)));
    assert_eq!(drawn.peers.iter().map(|peer| peer.number).collect::<Vec<_>>(), [2, 3]);
    let blocks: Vec<String> =
        drawn.own.blocks.iter().map(|(a, len)| format!("{a}/{len}")).collect();
    assert_eq!(blocks, ["10.128.0.0/24", "fd01:101:101::a80:0/120"]);
    let vips: Vec<String> = drawn.vips.iter().map(|(a, len)| format!("{a}/{len}")).collect();
    assert_eq!(vips, ["10.192.0.0/14", "fd01:101:101:1::/64"]);
    assert_eq!(drawn.pool6, Some(("fd01:101:101::a80:0".parse().unwrap(), 106)));
    let v4 = overlay(&town, site());
    assert_eq!((v4.pool6, v4.own.inner6, v4.vips.len(), v4.own.blocks.len()), (None, None, 1, 1));

    town.settings.overlay = OverlayKind::None;
    assert_eq!(overlay(&town, site()).carrier, warren_net::Carrier::Plain);
    town.settings.overlay = OverlayKind::Wireguard;
    let drawn = overlay(&town, site());
    assert_eq!(
        (drawn.carrier, drawn.device.as_deref()),
        (warren_net::Carrier::Device, Some("wtestwg"))
    );
}

#[test]
fn nodes_that_share_an_address_have_ports_of_their_own() {
    let town = Town::new("node a\n node b 192.0.2.9\n node c 192.0.2.9\n node d 192.0.2.1");
    let drawn = overlay(&town, site());
    let ports: Vec<u16> = drawn.peers.iter().map(|peer| peer.port).collect();
    assert_eq!((drawn.own.port, ports), (8477, vec![8477, 8478, 8478]));
}

#[test]
fn nodes_by_name_are_reached_once_they_are_found() {
    let mut town = Town::new("node a m1.test\n node b m2.test");
    let drawn = overlay(&town, site());
    assert_eq!((drawn.own.underlay.to_string().as_str(), drawn.peers.len()), ("0.0.0.0", 0));
    town.addresses.insert("m2.test".to_owned(), "192.0.2.2".parse().unwrap());
    assert_eq!(overlay(&town, site()).peers[0].underlay.to_string(), "192.0.2.2");
}

#[test]
fn what_did_not_change_is_the_same_pointer() {
    let mut drawing = Drawing::new(site());
    let town = Town::new(&[TOWN, "web back=.5 t1a+ t2b+\n api back=.6 t3b+\n"].concat());
    let first = town.clone().here("1+").draw(&mut drawing);
    let again = town.clone().here("1+").draw(&mut drawing);
    assert!(first == again);
    let id = |name| ServiceId::from_bytes(bytes(name));
    let same = |a: &Whole, b: &Whole, name| Arc::ptr_eq(&a.parts[&id(name)], &b.parts[&id(name)]);
    assert!(same(&first, &again, "web") && same(&first, &again, "api"));
    assert!(Arc::ptr_eq(first.overlay.as_ref().unwrap(), again.overlay.as_ref().unwrap()));
    // One of web's tasks drains: api is not even looked at, web's members stay.
    let drained = town.here("1-").draw(&mut drawing);
    assert!(!same(&first, &drained, "web") && same(&first, &drained, "api"));
    let group = |whole: &Whole| whole.parts[&id("web")].group.clone().unwrap();
    assert!(Arc::ptr_eq(&group(&first), &group(&drained)));
    // Another network is known here: what is not on it is the same all the same.
    let mut town = Town::new(&[TOWN, "web back=.5 t1a+ t2b+\n api back=.6 t3b+\n"].concat());
    town.add("network front");
    let joined = town.here("1-").draw(&mut drawing);
    assert!(same(&drained, &joined, "web") && same(&drained, &joined, "api"));
}
