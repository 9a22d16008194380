//! Tables of differences between services.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::config;
use crate::Protocol;
use crate::rules::{Family, Op, Rules, diff, install};
use crate::table::{Backend, Frontend, Service, Table};

/// `web v1:80>8080,p:90>9090/udp = 1,2*3,4l` : frontends and backends; `v1` is 10.64.0.1, `p` every
/// address of the node, `e` of other nodes alone, `v1` alone every port; backends are last octets of 10.0.0.0/24 with their
/// weight, `l` on this node. `web~` has affinity, `web!` prefers what is local.
fn service(notation: &str) -> Service {
    let (head, backends) = notation.split_once('=').unwrap();
    let (name, frontends) = head.trim().split_once(' ').unwrap();
    let frontend = |text: &str| {
        let Some((at, ports)) = text.split_once(':') else {
            return Frontend::Address(format!("10.64.0.{}", &text[1..]).parse().unwrap());
        };
        let (ports, protocol) = match ports.strip_suffix("/udp") {
            Some(ports) => (ports, Protocol::Udp),
            None => (ports, Protocol::Tcp),
        };
        let (port, target) = ports.split_once('>').unwrap();
        let (port, target) = (port.parse().unwrap(), target.parse().unwrap());
        match at.strip_prefix('v') {
            Some(last) => {
                let vip = format!("10.64.0.{last}").parse().unwrap();
                Frontend::Port { vip, protocol, port, target }
            }
            None if at == "e" => Frontend::Elsewhere { protocol, target },
            None => {
                Frontend::Published { bind: "0.0.0.0".parse().unwrap(), protocol, port, target }
            }
        }
    };
    let backend = |text: &str| {
        let (text, local) = match text.strip_suffix('l') {
            Some(text) => (text, true),
            None => (text, false),
        };
        let (last, weight) = text.split_once('*').unwrap_or((text, "1"));
        let address = format!("10.0.0.{last}").parse().unwrap();
        Backend { address, weight: weight.parse().unwrap(), local }
    };
    Service {
        key: name.trim_end_matches(['~', '!']).into(),
        frontends: frontends.trim().split(',').map(frontend).collect(),
        backends: backends.trim().split_terminator(',').map(backend).collect(),
        affinity: name.contains('~'),
        prefer_local: name.contains('!'),
    }
}

fn table(services: &[&str]) -> Table {
    Table {
        services: services.iter().map(|text| Arc::new(service(text))).collect(),
        ..Table::default()
    }
}

fn held(services: &[&str]) -> Rules {
    let mut rules = Rules::new(&config(), &table(services), Family::V4, None).unwrap();
    install(&mut rules, 0);
    rules
}

fn changes(before: &[&str], after: &[&str]) -> Vec<Op> {
    let held = held(before);
    let mut wanted = Rules::new(&config(), &table(after), Family::V4, Some(&held)).unwrap();
    diff(&held, &mut wanted, 0)
}

#[track_caller]
fn check(before: &[&str], after: &[&str], expected: &[&str]) {
    let ops: Vec<String> = changes(before, after).iter().map(ToString::to_string).collect();
    assert_eq!(ops, expected);
}

#[test]
fn a_service_comes() {
    check(
        &["web v1:80>8080 = 1,2"],
        &["web v1:80>8080 = 1,2", "db v2 = 3"],
        &[
            "add chain address-turns-1",
            "add rule address-turns-1: random 1 of front-addresses",
            "add to turns-addresses: 1=address-turns-1",
            "add to vips: 10.64.0.2",
            "add to front-addresses: 10.64.0.2=0/2/1",
            "add to backends: 2/0=10.0.0.3",
            "add to counted: 2",
        ],
    );
    // The chain for so many turns is there already.
    check(
        &["web v1:80>8080 = 1,2"],
        &["db v2:80>80 = 3,4", "web v1:80>8080 = 1,2"],
        &[
            "add to vips: 10.64.0.2",
            "add to front-ports: tcp/10.64.0.2/80=80/2/2",
            "add to backends: 2/0=10.0.0.3 2/1=10.0.0.4",
            "add to counted: 2",
        ],
    );
}

#[test]
fn a_backend_changes() {
    check(&["web v1:80>80 = 1,2"], &["web v1:80>80 = 2,1"], &[]);
    // As many as before: only whose turn it is.
    check(
        &["web v1:80>80 = 1,2,3", "db v2 = 4"],
        &["web v1:80>80 = 1,3,5", "db v2 = 4"],
        &[
            "delete from backends: 2/1=10.0.0.2 2/2=10.0.0.3",
            "add to backends: 2/1=10.0.0.3 2/2=10.0.0.5",
        ],
    );
    check(
        &["web v1:80>80 = 1,2"],
        &["web v1:80>80 = 1,2,3"],
        &[
            "add chain port-turns-3",
            "add rule port-turns-3: random 3 of front-ports",
            "add to turns-ports: 3=port-turns-3",
            "delete from front-ports: tcp/10.64.0.1/80=80/1/2",
            "add to front-ports: tcp/10.64.0.1/80=80/1/3",
            "add to backends: 1/2=10.0.0.3",
        ],
    );
}

#[test]
fn without_backends_a_service_is_there_and_refuses() {
    check(
        &["web v1:80>80,p:90>80 = 1"],
        &["web v1:80>80,p:90>80 = "],
        &[
            "delete from front-ports: tcp/10.64.0.1/80=80/1/1",
            "delete from front-published: tcp/90=80/1/1",
            "delete from backends: 1/0=10.0.0.1",
            "add to refused-anywhere: tcp/90=refuse-tcp",
        ],
    );
    check(&["web v1:80>80 = 1*0"], &["web v1:80>80 = "], &[]);
    check(
        &["web v1:80>80 = 1"],
        &[],
        &[
            "delete from vips: 10.64.0.1",
            "delete from front-ports: tcp/10.64.0.1/80=80/1/1",
            "delete from backends: 1/0=10.0.0.1",
            "delete from counted: 1",
        ],
    );
}

#[test]
fn weights_are_turns() {
    let turns = |notation: &str| -> BTreeMap<String, usize> {
        let mut turns = BTreeMap::new();
        for op in changes(&[], &[notation]) {
            let text = op.to_string();
            if let Some(elements) = text.strip_prefix("add to backends: ") {
                for element in elements.split(' ') {
                    let address = element.split_once('=').unwrap().1;
                    *turns.entry(address.rsplit('.').next().unwrap().to_owned()).or_default() += 1;
                }
            }
        }
        turns
    };
    let expect = |list: &[(&str, usize)]| -> BTreeMap<String, usize> {
        list.iter().map(|(a, n)| ((*a).to_owned(), *n)).collect()
    };
    assert_eq!(turns("web v1 = 1*90,2*10"), expect(&[("1", 9), ("2", 1)]));
    assert_eq!(turns("web v1 = 1*7,2*7,3*0"), expect(&[("1", 1), ("2", 1)]));
    // Of more than there may be turns the shares are rounded.
    let rounded = turns("web v1 = 1*65535,2*1,3*32768");
    assert_eq!((rounded["2"], rounded["1"] / rounded["3"]), (1, 2));
    assert!(rounded.values().sum::<usize>() <= 4097);
    // Local ones alone, if there are any.
    assert_eq!(turns("web! v1 = 1,2l,3l"), expect(&[("2", 1), ("3", 1)]));
    assert_eq!(turns("web! v1 = 1,2"), expect(&[("1", 1), ("2", 1)]));
}

#[test]
fn affinity_moves_only_what_must_move() {
    let owners = |notation: &str| -> BTreeMap<u32, String> {
        let mut owners = BTreeMap::new();
        for op in changes(&[], &[notation]) {
            if let Some(elements) = op.to_string().strip_prefix("add to backends: 1/") {
                for element in elements.split(" 1/") {
                    let (turn, owner) = element.split_once('=').unwrap();
                    owners.insert(turn.parse().unwrap(), owner.to_owned());
                }
            }
        }
        owners
    };
    let three = owners("web~ v1 = 1,2,3");
    assert_eq!(three.len(), 128);
    let count = |last: &str| three.values().filter(|owner| owner.ends_with(last)).count();
    for last in ["1", "2", "3"] {
        assert!((28..=58).contains(&count(last)), "{last}: {}", count(last));
    }
    let two = owners("web~ v1 = 1,3");
    for (turn, owner) in &three {
        assert!(owner.ends_with('2') || two[turn] == *owner, "turn {turn}");
    }
    // The order in which they are told does not matter, the weight does.
    assert_eq!(owners("web~ v1 = 3,1,2"), three);
    let heavy = owners("web~ v1 = 1*3,2");
    let heavy = heavy.values().filter(|owner| owner.ends_with('1')).count();
    assert!((80..=112).contains(&heavy), "{heavy}");
}

#[test]
fn local_backends_may_reach_themselves() {
    check(
        &["web v1 = 1l", "api v2 = 1l"],
        &["web v1 = 1l", "api v2 = 2l"],
        &[
            "delete from backends: 1/0=10.0.0.1",
            "add to backends: 1/0=10.0.0.2",
            "add to loops: 10.0.0.2/10.0.0.2",
        ],
    );
    // Every node brings clients to published ports: here they may come in.
    check(
        &[],
        &["web p:80>8080 = 1l,2"],
        &[
            "add chain published-turns-2",
            "add rule published-turns-2: random 2 of front-published",
            "add to turns-published: 2=published-turns-2",
            "add to exposed: tcp/10.0.0.1/8080",
            "add to front-published: tcp/80=8080/1/2",
            "add to backends: 1/0=10.0.0.1 1/1=10.0.0.2",
            "add to counted: 1",
            "add to loops: 10.0.0.1/10.0.0.1",
        ],
    );
    // Also where somebody else has the port.
    check(
        &[],
        &["web e:80>8080 = 1l,2"],
        &[
            "add to exposed: tcp/10.0.0.1/8080",
            "add to backends: 1/0=10.0.0.1 1/1=10.0.0.2",
            "add to loops: 10.0.0.1/10.0.0.1",
        ],
    );
}

#[test]
fn of_two_with_one_address_the_first_has_it() {
    let held = held(&["api v1:80>80 = 1", "web v1:80>90 = 2"]);
    let after = table(&["web v1:80>90 = 2"]);
    let mut wanted = Rules::new(&config(), &after, Family::V4, Some(&held)).unwrap();
    let ops: Vec<String> = diff(&held, &mut wanted, 0).iter().map(ToString::to_string).collect();
    // Not what differs, but everything: the second has it now.
    assert_eq!(ops[0], "add table");
    assert!(ops.contains(&"add to front-ports: tcp/10.64.0.1/80=90/2/1".to_owned()), "{ops:?}");
}

#[test]
fn other_families_are_not_seen() {
    let mut only6 = service("web v1:80>80 = 1");
    only6.frontends = vec![Frontend::Address("fd00::1".parse().unwrap())];
    only6.backends[0].address = "fd00::2".parse().unwrap();
    let table = Table { services: vec![Arc::new(only6)].into(), ..Table::default() };
    let held = held(&[]);
    let mut wanted = Rules::new(&config(), &table, Family::V4, Some(&held)).unwrap();
    assert!(diff(&held, &mut wanted, 0).is_empty());
    assert!(Rules::new(&config(), &table, Family::V6, None).is_none());
}
