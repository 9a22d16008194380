//! Tables of differences between networks.

use std::sync::Arc;

use super::config;
use crate::rules::{Family, Rules, diff, install};
use crate::table::{Group, Networks, Table};

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

fn rules(groups: &[&str], held: Option<&Rules>) -> Rules {
    let networks = Networks {
        groups: groups.iter().map(|text| Arc::new(group(text))).collect(),
        internal: [9].into(),
        ..Networks::default()
    };
    let table = Table { networks: Some(networks), ..Table::default() };
    Rules::new(&config(), &table, Family::V4, held).unwrap()
}

#[track_caller]
fn check(before: &[&str], after: &[&str], expected: &[&str]) {
    let mut held = rules(before, None);
    install(&mut held, 0);
    let mut wanted = rules(after, Some(&held));
    let ops: Vec<String> = diff(&held, &mut wanted, 0).iter().map(ToString::to_string).collect();
    assert_eq!(ops, expected);
}

#[test]
fn containers_come_and_go() {
    let one: &[&str] = &["web 1 = 1 2"];
    check(one, one, &[]);
    check(one, &["web 1 = 1 2 3"], &["add to combination: 10.0.0.3=1/1"]);
    check(one, &["web 1 = 2"], &["delete from combination: 10.0.0.1=1/1"]);
    // The first on a network, alone there; then one that is on both.
    check(
        one,
        &["web 1 = 1 2", "db 2 = 3"],
        &["add to combination: 10.0.0.3=2/2", "add to together: 2/2"],
    );
    check(
        &["web 1 = 1 2", "db 2 = 3"],
        &["web 1 = 1 2", "db 2 = 3", "api 1,2 = 4"],
        &["add to combination: 10.0.0.4=3/3", "add to together: 1/3 2/3 3/1 3/2 3/3"],
    );
    // A container moves to another network.
    check(
        &["web 1 = 1", "db 2 = 2"],
        &["web 2 = 1", "db 2 = 2"],
        &["delete from combination: 10.0.0.1=2/2", "add to combination: 10.0.0.1=1/1"],
    );
}

#[test]
fn internal_networks_confine() {
    check(
        &[],
        &["job 9 = 1", "both 1,9 = 2"],
        &[
            "add to combination: 10.0.0.1=2/2 10.0.0.2=1/1",
            "add to together: 1/1 1/2 2/1 2/2",
            "add to confined: 10.0.0.1",
        ],
    );
}
