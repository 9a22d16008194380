//! Tables of differences between networks and policies.

use std::sync::Arc;

use super::config;
use crate::Protocol;
use crate::rules::{Family, Rules, diff, install};
use crate::table::{Action, Clause, Direction, Group, Networks, Peers, Policy, PortRange, Table};

/// `web 1,2 = 1 2`: containers 10.0.0.1 and 10.0.0.2 on networks 1 and 2.
fn group(notation: &str) -> Group {
    let (head, addresses) = notation.split_once('=').unwrap();
    let (name, networks) = head.trim().split_once(' ').unwrap();
    Group {
        key: name.into(),
        addresses: addresses
            .split_whitespace()
            .map(|last| format!("10.0.0.{last}").parse().unwrap())
            .collect(),
        networks: networks.split(',').map(|network| network.parse().unwrap()).collect(),
    }
}

fn rules(groups: &[&str], policies: &[Policy], held: Option<&Rules>) -> Rules {
    let networks = Networks {
        groups: groups.iter().map(|text| Arc::new(group(text))).collect(),
        internal: [9].into(),
        policies: policies.iter().cloned().map(Arc::new).collect(),
    };
    let table = Table { networks: Some(networks), ..Table::default() };
    Rules::new(&config(), &table, Family::V4, held).unwrap()
}

#[track_caller]
fn check(before: (&[&str], &[Policy]), after: (&[&str], &[Policy]), expected: &[&str]) {
    let mut held = rules(before.0, before.1, None);
    install(&mut held, 0);
    let mut wanted = rules(after.0, after.1, Some(&held));
    let ops: Vec<String> = diff(&held, &mut wanted, 0).iter().map(ToString::to_string).collect();
    assert_eq!(ops, expected);
}

#[test]
fn containers_come_and_go() {
    let one: &[&str] = &["web 1 = 1 2"];
    check((one, &[]), (one, &[]), &[]);
    check((one, &[]), (&["web 1 = 1 2 3"], &[]), &["add to combination: 10.0.0.3=1/1"]);
    check((one, &[]), (&["web 1 = 2"], &[]), &["delete from combination: 10.0.0.1=1/1"]);
    // The first on a network, alone there; then one that is on both.
    check(
        (one, &[]),
        (&["web 1 = 1 2", "db 2 = 3"], &[]),
        &["add to combination: 10.0.0.3=2/2", "add to together: 2/2"],
    );
    check(
        (&["web 1 = 1 2", "db 2 = 3"], &[]),
        (&["web 1 = 1 2", "db 2 = 3", "api 1,2 = 4"], &[]),
        &["add to combination: 10.0.0.4=3/3", "add to together: 1/3 2/3 3/1 3/2 3/3"],
    );
    // A container moves to another network.
    check(
        (&["web 1 = 1", "db 2 = 2"], &[]),
        (&["web 2 = 1", "db 2 = 2"], &[]),
        &["delete from combination: 10.0.0.1=1/1", "add to combination: 10.0.0.1=2/2"],
    );
}

#[test]
fn internal_networks_confine() {
    check(
        (&[], &[]),
        (&["job 9 = 1", "both 1,9 = 2"], &[]),
        &[
            "add to combination: 10.0.0.1=1/1 10.0.0.2=2/2",
            "add to together: 1/1 1/2 2/1 2/2",
            "add to confined: 10.0.0.1",
        ],
    );
}

fn policy(key: &str, clauses: Vec<Clause>) -> Policy {
    Policy {
        key: key.into(),
        subjects: vec!["10.0.0.1".parse().unwrap()],
        direction: Direction::In,
        clauses,
        otherwise: Action::Deny,
    }
}

fn from(lasts: &[u8]) -> Clause {
    let peers = lasts.iter().map(|last| format!("10.0.0.{last}").parse().unwrap()).collect();
    let ports = vec![PortRange { protocol: Protocol::Tcp, first: 80, last: 89 }];
    Clause { action: Action::Allow, peers: Peers::Containers(peers), ports }
}

#[test]
fn policies_are_chains() {
    let none = (&[][..], &[][..]);
    check(
        none,
        (&[], &[policy("a", vec![from(&[2, 3])])]),
        &[
            "add chain policy-1",
            "add rule policy-1: Source peer 256 tcp dport 80-89 count Return",
            "add rule policy-1: count Drop",
            "add to inbound: 10.0.0.1=policy-1",
            "add to peers: 256/10.0.0.2 256/10.0.0.3",
        ],
    );
    // A peer that comes leaves the chain and its counts alone.
    check(
        (&[], &[policy("a", vec![from(&[2])])]),
        (&[], &[policy("a", vec![from(&[2, 3])])]),
        &["add to peers: 256/10.0.0.3"],
    );
    let world = |text: &str| Clause {
        action: Action::Deny,
        peers: Peers::Subnets(vec![(text.parse().unwrap(), 8), ("fd00::".parse().unwrap(), 8)]),
        ports: Vec::new(),
    };
    check(
        (&[], &[policy("a", vec![from(&[2])])]),
        (&[], &[policy("a", vec![world("11.0.0.0")])]),
        &[
            "clear chain policy-1",
            "add rule policy-1: src 11.0.0.0/8 count Drop",
            "add rule policy-1: count Drop",
            "delete from peers: 256/10.0.0.2",
        ],
    );
    check(
        (&[], &[policy("a", vec![from(&[2])])]),
        none,
        &[
            "delete from inbound: 10.0.0.1=policy-1",
            "delete from peers: 256/10.0.0.2",
            "clear chain policy-1",
            "delete chain policy-1",
        ],
    );
}
