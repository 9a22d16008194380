//! Tables of differences, and batches decoded again.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::encode::{self, encode};
use super::{Family, Op, Rules, diff, install};
mod isolation;
mod policies;
mod services;

use crate::netlink::{attribute, attributes_in, messages_in, text};
use crate::{NetConfig, Protocol, PublishedPort, Table};

/// `tcp/8080=1:80,2:80 udp/127.0.0.1/53=`: backends are last octets of 10.0.0.0/24 with their port.
fn table(notation: &str) -> Table {
    let published = notation.split_ascii_whitespace().map(|port| {
        let (port, backends) = port.split_once('=').unwrap();
        let parts: Vec<&str> = port.split('/').collect();
        PublishedPort {
            protocol: if parts[0] == "tcp" { Protocol::Tcp } else { Protocol::Udp },
            bind: if parts.len() == 3 { parts[1].parse().unwrap() } else { Ipv4Addr::UNSPECIFIED },
            port: parts.last().unwrap().parse().unwrap(),
            backends: backends
                .split_terminator(',')
                .map(|backend| format!("10.0.0.{backend}").parse().unwrap())
                .collect(),
        }
    });
    Table { published: published.collect(), ..Table::default() }
}

fn rules(table: &Table) -> Rules {
    Rules::new(&config(), table, Family::V4, None).unwrap()
}

fn parse(notation: &str) -> Rules {
    rules(&table(notation))
}

fn batch(ops: &[Op]) -> encode::Batch {
    encode("warren-abcdefgh", &[(Family::V4, ops.to_vec())])
}

#[track_caller]
fn check(held: &str, wanted: &str, expected: &[&str]) {
    let ops = diff(&parse(held), &mut parse(wanted), 0);
    let ops: Vec<String> = ops.iter().map(ToString::to_string).collect();
    assert_eq!(ops, expected);
}

#[test]
fn nothing_changes_nothing() {
    check("", "", &[]);
    check("tcp/80=1:80,2:80", "tcp/80=2:80,1:80", &[]);
    check("tcp/80=1:80 udp/80=", "udp/80= tcp/80=1:80", &[]);
}

#[test]
fn a_new_port() {
    check(
        "tcp/80=1:80",
        "tcp/80=1:80 tcp/81=2:90",
        &[
            "add to hairpin: 10.0.0.2",
            "add chain tcp-81",
            "add rule tcp-81: dnat 10.0.0.2:90",
            "add to anywhere: tcp-81",
        ],
    );
    check(
        "",
        "udp/127.0.0.1/53=1:53,2:53",
        &[
            "add to hairpin: 10.0.0.1 10.0.0.2",
            "add chain udp-127.0.0.1-53",
            "add map 1: 10.0.0.1:53 10.0.0.2:53",
            "add rule udp-127.0.0.1-53: dnat map 1 of 2",
            "add to bound: udp-127.0.0.1-53",
        ],
    );
    // Named twice: one port with the backends of both.
    check(
        "",
        "tcp/80=1:80 tcp/80=2:80",
        &[
            "add to hairpin: 10.0.0.1 10.0.0.2",
            "add chain tcp-80",
            "add map 1: 10.0.0.1:80 10.0.0.2:80",
            "add rule tcp-80: dnat map 1 of 2",
            "add to anywhere: tcp-80",
        ],
    );
}

#[test]
fn backends_come_and_go() {
    check(
        "tcp/80=1:80 tcp/81=1:80",
        "tcp/80=1:80,2:80 tcp/81=1:80",
        &[
            "add to hairpin: 10.0.0.2",
            "clear chain tcp-80",
            "add map 1: 10.0.0.1:80 10.0.0.2:80",
            "add rule tcp-80: dnat map 1 of 2",
        ],
    );
    // The other port still has it: it may still be its own backend.
    check(
        "tcp/80=1:80,2:80 tcp/81=2:80",
        "tcp/80=1:80 tcp/81=2:80",
        &["clear chain tcp-80", "add rule tcp-80: dnat 10.0.0.1:80"],
    );
    check(
        "tcp/80=1:80 udp/80=2:80",
        "tcp/80= udp/80=",
        &[
            "delete from anywhere: tcp-80 udp-80",
            "clear chain tcp-80",
            "delete chain tcp-80",
            "clear chain udp-80",
            "delete chain udp-80",
            "delete from hairpin: 10.0.0.1 10.0.0.2",
            "add to refused-anywhere: tcp-80 udp-80",
        ],
    );
    check(
        "tcp/80= udp/127.0.0.1/53=",
        "tcp/80=1:80",
        &[
            "delete from refused-anywhere: tcp-80",
            "delete from refused-bound: udp-127.0.0.1-53",
            "add to hairpin: 10.0.0.1",
            "add chain tcp-80",
            "add rule tcp-80: dnat 10.0.0.1:80",
            "add to anywhere: tcp-80",
        ],
    );
}

#[test]
fn a_port_goes() {
    check(
        "tcp/80=1:80 tcp/127.0.0.1/81=1:80 tcp/82=2:80",
        "tcp/82=2:80",
        &[
            "delete from anywhere: tcp-80",
            "delete from bound: tcp-127.0.0.1-81",
            "clear chain tcp-80",
            "delete chain tcp-80",
            "clear chain tcp-127.0.0.1-81",
            "delete chain tcp-127.0.0.1-81",
            "delete from hairpin: 10.0.0.1",
        ],
    );
}

#[test]
fn many_addresses_are_compared_as_few_are() {
    let backends = |range: std::ops::Range<u8>| -> String {
        range.map(|last| format!("{last}:80")).collect::<Vec<_>>().join(",")
    };
    let held = parse(&format!("tcp/80={} tcp/81={}", backends(0..200), backends(0..100)));
    let mut wanted = parse(&format!("tcp/80=250:80 tcp/81={}", backends(0..100)));
    let removed: Vec<String> = diff(&held, &mut wanted, 0)
        .iter()
        .map(ToString::to_string)
        .filter(|op| op.starts_with("delete from hairpin"))
        .collect();
    assert_eq!(removed.len(), 1);
    assert_eq!(removed[0].split(' ').count() - 3, 100);
}

#[test]
fn each_round_begins_with_another_backend() {
    let first = |round| diff(&parse(""), &mut parse("tcp/80=1:80,2:80,3:80"), round)[2].to_string();
    assert_eq!(first(0), "add map 1: 10.0.0.1:80 10.0.0.2:80 10.0.0.3:80");
    assert_eq!(first(1), "add map 1: 10.0.0.2:80 10.0.0.3:80 10.0.0.1:80");
    assert_eq!(first(3), first(0));
}

fn config() -> NetConfig {
    NetConfig { node_key: "abcdefgh".into(), pool: (Ipv4Addr::new(10, 0, 0, 0), 24), prepared: 0 }
}

/// One line a message: type, names, expressions of a rule, number of elements.
fn decode(bytes: &[u8]) -> Vec<String> {
    let line = |message: crate::netlink::Message<'_>| {
        if message.kind < 256 {
            return format!("frame {}", message.kind);
        }
        let kind = [
            "newtable", "gettable", "deltable", "newchain", "getchain", "delchain", "newrule",
            "getrule", "delrule", "newset", "getset", "delset", "newelem", "getelem", "delelem",
        ][usize::from(message.kind & 0xff)];
        let attributes = &message.payload[4..];
        assert_eq!(text(attribute(attributes, 1).unwrap()), "warren-abcdefgh");
        // A chain has its name third, everything else second.
        let at = if kind.ends_with("chain") { 3 } else { 2 };
        let name = attribute(attributes, at).map(text).unwrap_or_default();
        let mut line = format!("{kind} {name}");
        if kind == "newrule" {
            for (_, expression) in attributes_in(attribute(attributes, 4).unwrap()) {
                line += &format!(" {}", text(attribute(expression, 1).unwrap()));
            }
        }
        if kind.ends_with("elem") {
            for (_, element) in attributes_in(attribute(attributes, 3).unwrap()) {
                let key = attribute(attribute(element, 1).unwrap(), 1).unwrap();
                line += &format!(" {key:?}");
                let verdict = attribute(element, 2).and_then(|value| attribute(value, 2));
                if let Some(chain) = verdict.and_then(|verdict| attribute(verdict, 2)) {
                    line += &format!("={}", text(chain));
                }
            }
        }
        line
    };
    messages_in(bytes).map(line).collect()
}

#[test]
fn a_change_is_one_framed_batch() {
    let ops = diff(
        &parse("tcp/80=1:80 udp/127.0.0.1/53=1:53"),
        &mut parse("tcp/80=1:80,2:80 tcp/258=1:80"),
        0,
    );
    let batch = batch(&ops);
    let number = |n: u32| format!("{:?}", n.to_ne_bytes());
    assert_eq!(
        decode(batch.messages.as_bytes()),
        [
            "frame 16".to_owned(),
            "delelem bound [17, 0, 0, 0, 127, 0, 0, 1, 0, 53, 0, 0]".into(),
            "delrule udp-127.0.0.1-53".into(),
            "delchain udp-127.0.0.1-53".into(),
            "newelem hairpin [10, 0, 0, 2, 10, 0, 0, 2]".into(),
            "delrule tcp-80".into(),
            "newset __map%d".into(),
            format!("newelem __map%d {} {}", number(0), number(1)),
            "newrule tcp-80 numgen lookup nat".into(),
            "newchain tcp-258".into(),
            "newrule tcp-258 immediate immediate nat".into(),
            "newelem anywhere [6, 0, 0, 0, 1, 2, 0, 0]=tcp-258".into(),
            "frame 17".into(),
        ]
    );
    // The last that the kernel acknowledges, and whose fault each message is.
    assert_eq!(batch.last(), 11);
    assert_eq!(batch.operation(0), None);
    assert_eq!(ops[batch.operation(7).unwrap()].to_string(), "add map 1: 10.0.0.1:80 10.0.0.2:80");
}

#[test]
fn installing_replaces_the_table_first() {
    let batch = batch(&install(&mut parse("tcp/80=1:80"), 0));
    let lines = decode(batch.messages.as_bytes());
    assert_eq!(lines[1..4], ["newtable ", "deltable ", "newtable "]);
    let chains: BTreeSet<&str> =
        lines.iter().filter_map(|line| line.strip_prefix("newchain ")).collect();
    let expected = [
        "denied",
        "forward",
        "guard",
        "input",
        "isolate",
        "leaving",
        "output",
        "ports",
        "postrouting",
        "prerouting",
        "refuse-tcp",
        "refuse-udp",
        "services",
        "tcp-80",
        "tracked",
        "untranslated",
        "untranslated-output",
    ];
    assert_eq!(chains, BTreeSet::from(expected));
    // A jump to a chain comes after the chain.
    let at = |wanted: &str| lines.iter().position(|line| line.starts_with(wanted)).unwrap();
    assert!(at("newchain ports") < at("newrule prerouting"));
    assert!(at("newchain tcp-80") < at("newelem anywhere"));
}

#[test]
fn thousands_of_ports_and_backends_fit_their_attributes() {
    let mut table = Table::default();
    for port in 1..=5000 {
        table.published.push(PublishedPort {
            protocol: Protocol::Tcp,
            bind: Ipv4Addr::UNSPECIFIED,
            port,
            backends: Vec::new(),
        });
    }
    table.published[0].backends = (0..4000)
        .map(|offset| std::net::SocketAddrV4::new(Ipv4Addr::from_bits(0x0a00_0000 + offset), 80))
        .collect();
    let batch = batch(&install(&mut rules(&table), 7));
    let lines = decode(batch.messages.as_bytes());
    let elements = |name: &str| {
        let lines = lines.iter().filter(|line| line.starts_with(name));
        lines.map(|line| line.matches('[').count()).sum::<usize>()
    };
    assert_eq!(elements("newelem anywhere"), 1);
    assert_eq!(elements("newelem refused-anywhere"), 4999);
    assert_eq!(elements("newelem __map"), 4000);
    assert_eq!(elements("newelem hairpin"), 4000);
}
