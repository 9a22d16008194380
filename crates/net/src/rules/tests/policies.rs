//! Tables of differences between policies, and what they say of connections that are there.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;

use super::config;
use crate::Protocol;
use crate::rules::policies::Chains;
use crate::rules::{Expression, Family, Field, Judge, Passage, Rules, Set, Verdict, diff, install};
use crate::table::{
    Action, Carrier, Clause, Direction, Group, Member, Networks, Overlay, PeerSet, Peers, Policy,
    PortRange, Table, Traffic,
};

/// `10.0.0.7` of `7`.
fn container(last: &str) -> IpAddr {
    format!("10.0.0.{last}").parse().unwrap()
}

/// `web = 1 2`: who is in a set, or a group.
fn named(text: &str) -> (Box<str>, Vec<IpAddr>) {
    let (name, addresses) = text.split_once('=').unwrap();
    (name.trim().into(), addresses.split_whitespace().map(container).collect())
}

/// `+p web 192.0.2.0/24 outside : tcp/80-89 icmp`: a clause; nobody named is everybody.
fn clause(text: &str) -> Clause {
    let (ends, traffic) = text.split_once(" : ").unwrap_or((text, ""));
    let mut words = ends.split_whitespace();
    let (sign, name) = words.next().unwrap().split_at(1);
    let (mut set, mut subnets, mut outside, mut any) = (None, vec![], false, true);
    for word in words {
        any = false;
        match word.split_once('/') {
            Some((address, len)) => {
                subnets.push((address.parse().unwrap(), len.parse().unwrap()));
            }
            None if word == "outside" => outside = true,
            None => set = Some(word.into()),
        }
    }
    let traffic = traffic.split_whitespace().map(|word| match word.split_once('/') {
        None => Traffic::Icmp,
        Some((protocol, ports)) => {
            let (first, last) = ports.split_once('-').unwrap();
            let protocol = if protocol == "tcp" { Protocol::Tcp } else { Protocol::Udp };
            let (first, last) = (first.parse().unwrap(), last.parse().unwrap());
            Traffic::Ports(PortRange { protocol, first, last })
        }
    });
    Clause {
        name: name.into(),
        action: if sign == "+" { Action::Allow } else { Action::Deny },
        peers: if any { Peers::Any } else { Peers::Some { set, subnets, outside } },
        traffic: traffic.collect(),
    }
}

/// `db in 1: +p web : tcp/80-89 ; -p`: a policy of container 1.
fn policy(text: &str) -> Policy {
    let (head, clauses) = text.split_once(": ").unwrap();
    let words: Vec<&str> = head.split_whitespace().collect();
    Policy {
        key: words[..2].join("/").into(),
        subjects: words[2..].iter().map(|last| container(last)).collect(),
        direction: if words[1] == "in" { Direction::In } else { Direction::Out },
        clauses: clauses.split(';').map(clause).collect(),
    }
}

/// Lines with `=` are sets, others are policies.
fn networks(text: &[&str]) -> Networks {
    let (sets, policies): (Vec<&str>, Vec<&str>) = text.iter().partition(|line| line.contains('='));
    let set = |line: &&str| {
        let (key, addresses) = named(line);
        Arc::new(PeerSet { key: key.into(), addresses })
    };
    let addresses = (0..20).map(|last| container(&last.to_string())).collect();
    Networks {
        groups: vec![Arc::new(Group { key: "all".into(), addresses, networks: [1].into() })].into(),
        policies: policies.iter().map(|line| Arc::new(policy(line))).collect(),
        peers: sets.iter().map(set).collect(),
        ..Networks::default()
    }
}

/// A node with the own address 10.0.0.100 and one peer, 10.0.0.200; services at 10.9.0.0/16.
fn table(text: &[&str]) -> Table {
    let member = |number: u16, inner: [u8; 4]| Member {
        number,
        underlay: [192, 0, 2, u8::try_from(number).unwrap()].into(),
        port: 8477,
        inner: inner.into(),
        inner6: None,
        blocks: vec![],
    };
    let overlay = Overlay {
        carrier: Carrier::Vxlan,
        device: None,
        vni: 1,
        port: 8477,
        own: member(1, [10, 0, 0, 100]),
        peers: vec![member(2, [10, 0, 0, 200])],
        vips: vec![("10.9.0.0".parse().unwrap(), 16)],
        pool6: None,
    };
    Table { overlay: Some(Arc::new(overlay)), networks: Some(networks(text)), ..Table::default() }
}

fn rules(text: &[&str], held: Option<&Rules>) -> Rules {
    Rules::new(&config(), &table(text), Family::V4, held).unwrap()
}

#[track_caller]
fn check(before: &[&str], after: &[&str], expected: &[&str]) {
    let mut held = rules(before, None);
    install(&mut held, 0);
    let mut wanted = rules(after, Some(&held));
    let ops: Vec<String> = diff(&held, &mut wanted, 0).iter().map(ToString::to_string).collect();
    assert_eq!(ops, expected);
}

const WEB: &str = "web = 2 3";

#[test]
fn policies_are_chains() {
    let db = "db in 1: +p web : tcp/80-89 ; -p";
    check(
        &[],
        &[WEB, db],
        &[
            "add chain policy-1",
            "add rule policy-1: Source peer 1 tcp dport 80-89 count Return",
            "add rule policy-1: count Drop",
            "add to inbound: 10.0.0.1=policy-1",
            "add to peers: 1/10.0.0.2 1/10.0.0.3",
        ],
    );
    // A peer that comes leaves the chain and its counts alone, and so does a subject.
    check(&["web = 2", db], &[WEB, db], &["add to peers: 1/10.0.0.3"]);
    check(
        &[WEB, db],
        &[WEB, "db in 1 4: +p web : tcp/80-89 ; -p"],
        &["add to inbound: 10.0.0.4=policy-1"],
    );
    check(
        &[WEB, db],
        &["db in 1: -q 11.0.0.0/8 fd00::/8 : udp/0-65535 icmp"],
        &[
            "clear chain policy-1",
            "add rule policy-1: src 11.0.0.0/8 udp count Drop",
            "add rule policy-1: src 11.0.0.0/8 icmp count Drop",
            "delete from peers: 1/10.0.0.2 1/10.0.0.3",
        ],
    );
    check(
        &[WEB, db],
        &[],
        &[
            "delete from inbound: 10.0.0.1=policy-1",
            "delete from peers: 1/10.0.0.2 1/10.0.0.3",
            "clear chain policy-1",
            "delete chain policy-1",
        ],
    );
    // Nobody is nobody.
    check(
        &[],
        &["db in 1: +p gone ; -p"],
        &[
            "add chain policy-1",
            "add rule policy-1: count Drop",
            "add to inbound: 10.0.0.1=policy-1",
        ],
    );
}

#[test]
fn what_leaves_is_judged_where_it_arrives_unless_that_is_no_container() {
    check(
        &[],
        &[WEB, "db out 1: +p web outside ; -p"],
        &[
            "add chain policy-1",
            "add rule policy-1: dst 10.0.0.0/24 dst not in nodes untranslated Return",
            "add rule policy-1: for 10.9.0.0/16 Return",
            "add rule policy-1: Destination peer 1 dst 10.0.0.0/24 Return",
            "add rule policy-1: Destination peer 1 count Return",
            "add rule policy-1: dst-not 10.0.0.0/24 dst 10.0.0.0/24 Return",
            "add rule policy-1: dst-not 10.0.0.0/24 count Return",
            "add rule policy-1: dst in nodes dst 10.0.0.0/24 Return",
            "add rule policy-1: dst in nodes count Return",
            "add rule policy-1: count Drop",
            "add to outbound: 10.0.0.1=policy-1",
            "add to peers: 1/10.0.0.2 1/10.0.0.3",
        ],
    );
}

#[test]
fn too_many_clauses_let_nothing_pass() {
    let many = vec!["+p"; Policy::CLAUSES_MAX + 1].join(";");
    let text = format!("db in 1: {many}");
    check(
        &[],
        &[&text],
        &["add chain policy-1", "add rule policy-1: Drop", "add to inbound: 10.0.0.1=policy-1"],
    );
    let rules = rules(&[&text], None);
    assert_eq!(Judge::new(&rules).denies(&passage("2>1 tcp/80")), Some(true));
}

#[test]
fn one_address_with_two_policies_has_the_first() {
    let mut contested = rules(&["a in 1: -p", "b in 1: +q"], None);
    let ops: Vec<String> = install(&mut contested, 0).iter().map(ToString::to_string).collect();
    let subjects: Vec<&String> = ops.iter().filter(|op| op.contains("inbound:")).collect();
    assert_eq!(subjects, ["add to inbound: 10.0.0.1=policy-1"]);
    assert!(contested.isolation.contested);
}

#[test]
fn counters_are_of_clauses() {
    let rules =
        rules(&[WEB, "db in 1: +p web : tcp/80-80 icmp ; -q outside ; -p", "db out 1: +r"], None);
    let found = BTreeMap::from([
        // Each alternative of a clause has a counter.
        ("policy-1".to_owned(), vec![(1, 60), (2, 120), (4, 4), (8, 8), (16, 16)]),
        ("policy-2".to_owned(), vec![(32, 32)]),
        ("isolate".to_owned(), vec![(64, 64), (128, 128)]),
    ]);
    let mut sums: BTreeMap<(Box<str>, Action), u64> = BTreeMap::new();
    for (counted, (packets, _)) in rules.counted(&found) {
        *sums.entry(counted).or_default() += packets;
    }
    let sums: Vec<String> =
        sums.iter().map(|((name, action), n)| format!("{name} {action:?} {n}")).collect();
    assert_eq!(sums, [" Deny 192", "p Allow 3", "p Deny 16", "q Deny 12", "r Allow 32"]);
}

/// `2>1 tcp/80`, `2>9.5:1 udp/53` by a service's address, `2>p100:1` by a port of the node.
fn passage(text: &str) -> Passage {
    let (ends, what) = text.split_once(' ').unwrap();
    let (source, to) = ends.split_once('>').unwrap();
    let address = |text: &str| match text.split_once('.') {
        Some((service, rest)) if !rest.contains('.') => {
            format!("10.{service}.0.{rest}").parse().unwrap()
        }
        Some(_) => text.parse().unwrap(),
        None => container(text.trim_start_matches('p')),
    };
    let (destination, answered_by) = to.split_once(':').unwrap_or((to, to));
    let (protocol, port) = what.split_once('/').unwrap_or((what, "0"));
    let protocol = match protocol {
        "tcp" => 6,
        "udp" => 17,
        _ => 1,
    };
    Passage {
        source: address(source),
        destination: address(destination),
        answered_by: address(answered_by),
        protocol,
        port: port.parse().unwrap(),
    }
}

#[test]
fn connections_that_are_there_are_judged_too() {
    let rules = rules(
        &[
            WEB,
            "db in 1: +p web : tcp/5432-5432 ; -p",
            "db out 1: -q outside",
            "web out 2 3: -r 192.0.2.0/24 : tcp/1-1000",
        ],
        None,
    );
    let judge = Judge::new(&rules);
    let check = |text: &str, expected: Option<bool>| {
        assert_eq!(judge.denies(&passage(text)), expected, "{text}");
    };
    check("2>1 tcp/5432", Some(false));
    check("2>1 tcp/80", Some(true));
    check("2>1 udp/5432", Some(true));
    check("4>1 tcp/5432", Some(true));
    check("198.51.100.1>1 tcp/5432", Some(true));
    check("1>198.51.100.1 tcp/80", Some(true));
    check("1>2 tcp/80", Some(false));
    // A node is outside, this one as well as others.
    check("1>100 tcp/22", Some(true));
    check("1>200 tcp/22", Some(true));
    // By a service's address it is judged as by the container's own.
    check("1>9.5:198.51.100.1 tcp/80", Some(false));
    check("1>1 tcp/80", Some(false));
    check("1>169.254.1.1:127.64.0.1 udp/53", Some(false));
    check("2>192.0.2.9 tcp/80", Some(true));
    check("2>192.0.2.9 tcp/2000", Some(false));
    check("2>192.0.2.9 icmp", Some(false));
    // One that no policy is about, and one that is not ours.
    check("7>8 tcp/80", Some(false));
    check("192.0.2.1>192.0.2.2 tcp/80", None);
}

#[test]
fn connections_are_judged_again_when_more_than_containers_changed() {
    let same = |before: &[&str], after: &[&str]| {
        let held = rules(before, None);
        !held.judges_otherwise(&rules(after, Some(&held)))
    };
    let db = "db in 1: +p web ; -p";
    assert!(same(&[WEB, db], &[WEB, db]));
    // Containers 30 and 31 come and go with the change: they have no connections.
    assert!(same(&["web = 2 30", db], &["web = 2 31", db]));
    assert!(!same(&["web = 2", db], &["web = 2 3", db]));
    assert!(!same(&[WEB, db], &[WEB, "db in 1: +p web : icmp ; -p"]));
    assert!(!same(&[WEB], &[WEB, db]));
    assert!(!same(&[WEB, db], &[]));
    assert!(!same(&[WEB, db], &[WEB, "db in 1 4: +p web ; -p"]));
}

/// What the kernel would make of a packet that begins a connection, by a chain's rules.
fn by_rules(rules: &Rules, passage: &Passage) -> bool {
    let chains = Chains::new(&rules.base, &rules.isolation);
    let of = |direction: Direction, subject: IpAddr| {
        let mut policies = rules.isolation.policies.iter();
        policies.find(|p| p.entry.direction == direction && p.entry.subjects.contains(&subject))
    };
    let both = [of(Direction::Out, passage.source), of(Direction::In, passage.answered_by)];
    both.into_iter().flatten().any(|policy| {
        let decided = chains.rules(policy).into_iter().find_map(|rule| {
            let (last, conditions) = rule.rule.split_last().unwrap();
            let Expression::Verdict(verdict) = last else { panic!("{last}") };
            conditions.iter().all(|c| holds(rules, c, passage)).then(|| verdict.clone())
        });
        decided == Some(Verdict::Drop)
    })
}

fn within(address: IpAddr, subnet: crate::table::Subnet) -> bool {
    crate::subnet_of((address, subnet.1)) == crate::subnet_of(subnet)
}

fn holds(rules: &Rules, condition: &Expression, packet: &Passage) -> bool {
    use Expression as E;
    let is_node = |address: IpAddr| {
        rules
            .peers
            .iter()
            .any(|(set, element)| *set == Set::Nodes && element.to_string() == address.to_string())
    };
    match condition {
        E::SourceIn(subnet) => within(packet.source, *subnet),
        E::SourceNotIn(subnet) => !within(packet.source, *subnet),
        E::DestinationIn(subnet) => within(packet.answered_by, *subnet),
        E::DestinationNotIn(subnet) => !within(packet.answered_by, *subnet),
        E::OriginallyIn(subnet) => within(packet.destination, *subnet),
        E::Untranslated => packet.destination == packet.answered_by,
        E::In(Set::Nodes) => is_node(packet.source),
        E::DestinationIsOf { set: Set::Nodes, is } => is_node(packet.answered_by) == *is,
        E::Peer { number, field } => {
            let peer = match field {
                Field::Source => packet.source,
                _ => packet.answered_by,
            };
            let set = rules.isolation.sets.iter().find(|set| set.id == *number).unwrap();
            set.entry.addresses.contains(&peer)
        }
        E::Over(protocol) => packet.protocol == protocol.number(),
        E::DestinationPorts(first, last) => (*first..=*last).contains(&packet.port),
        E::Icmp => packet.protocol == 1,
        E::Count => true,
        other => panic!("{other} is in no policy"),
    }
}

fn any_clause() -> impl Strategy<Value = String> {
    let peers =
        prop::sample::subsequence(vec!["web", "outside", "192.0.2.0/24", "10.0.0.0/30"], 0..=2);
    let traffic = prop::sample::subsequence(vec!["tcp/80-89", "udp/0-65535", "icmp"], 0..=2);
    (any::<bool>(), peers, traffic).prop_map(|(allow, peers, traffic)| {
        let sign = if allow { '+' } else { '-' };
        format!("{sign}p {} : {}", peers.join(" "), traffic.join(" "))
    })
}

proptest! {
    /// Rules and judge agree, of everything that may go on.
    #[test]
    fn the_judge_says_what_rules_say(
        into in prop::collection::vec(any_clause(), 1..4),
        out in prop::collection::vec(any_clause(), 1..4),
        ends in prop::sample::subsequence(vec!["1", "2", "3", "7", "100", "200", "192.0.2.9", "198.51.100.1"], 2),
        turned in any::<bool>(),
        by in prop::sample::select(vec!["", "9.5:", "p100:"]),
        what in prop::sample::select(vec!["tcp/80", "tcp/5432", "udp/53", "icmp"]),
    ) {
        let (into, out) = (format!("db in 1 2: {}", into.join(" ; ")), format!("db out 1 3: {}", out.join(" ; ")));
        let rules = rules(&[WEB, &into, &out], None);
        let (from, to) = if turned { (ends[1], ends[0]) } else { (ends[0], ends[1]) };
        let passage = passage(&format!("{from}>{by}{to} {what}"));
        let judged = Judge::new(&rules).denies(&passage).unwrap_or(false);
        prop_assert_eq!(judged, by_rules(&rules, &passage), "{:?}", passage);
    }
}
