//! Tables of what an overlay wants.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use super::{Below, Item, Lookup, Numbers, device_name, diff, items, vxlan};
use crate::NetConfig;
use crate::table::{Carrier, Member, Overlay};

fn config() -> NetConfig {
    NetConfig { node_key: "abcdefgh".into(), pool: (Ipv4Addr::new(10, 128, 0, 0), 10), prepared: 0 }
}

/// Node `n`: 192.0.2.n, 10.128.n.0/24, with IPv6 also 2001:db8::n and fd00:n::/64.
fn member(n: u8, underlay6: bool, dual: bool) -> Member {
    let ip = |text: String| -> IpAddr { text.parse().unwrap() };
    let mut blocks = vec![(ip(format!("10.128.{n}.0")), 24)];
    if dual {
        blocks.push((ip(format!("fd00:{n}::")), 64));
    }
    Member {
        number: u16::from(n),
        underlay: if underlay6 { ip(format!("2001:db8::{n}")) } else { ip(format!("192.0.2.{n}")) },
        port: 4789,
        inner: Ipv4Addr::new(10, 128, n, 0),
        inner6: dual.then(|| format!("fd00:{n}::").parse().unwrap()),
        blocks,
    }
}

fn overlay(carrier: Carrier, underlay6: bool, dual: bool, peers: &[u8]) -> Overlay {
    Overlay {
        carrier,
        device: (carrier == Carrier::Device).then(|| "tun0".to_owned()),
        vni: 7,
        port: 4789,
        own: member(1, underlay6, dual),
        peers: peers.iter().map(|n| member(*n, underlay6, dual)).collect(),
        vips: vec![("10.64.0.0".parse().unwrap(), 16)],
        pool6: dual.then(|| ("fd00::".parse().unwrap(), 16)),
    }
}

const BELOW: Below = Below { mtu: 1500, holds: true, device: true };

/// What it wants of the main table and the links.
#[track_caller]
fn check(overlay: &Overlay, below: Below, expected: &[&str]) {
    let items: Vec<String> = items(&config(), overlay, below)
        .iter()
        .map(ToString::to_string)
        .filter(|item| !["back", "across", "rule"].iter().any(|of| item.starts_with(of)))
        .collect();
    assert_eq!(items, expected);
}

/// What it wants of the other tables.
#[track_caller]
fn check_mesh(overlay: &Overlay, expected: &[&str]) {
    let items: Vec<String> = items(&config(), overlay, BELOW)
        .iter()
        .map(ToString::to_string)
        .filter(|item| ["back", "across", "rule"].iter().any(|of| item.starts_with(of)))
        .collect();
    assert_eq!(items, expected);
}

#[test]
fn foreign_clients_go_across_and_answers_back() {
    check_mesh(&overlay(Carrier::Vxlan, false, true, &[]), &[]);
    check_mesh(
        &overlay(Carrier::Device, false, false, &[2]),
        &[
            "back 2 0.0.0.0/0 vxlan 10.128.2.0 mtu 1370",
            "across 10.128.2.0/24 vxlan 10.128.2.0 mtu 1370",
            "rule Unmarked { v4: true }",
            "rule Back { v4: true, number: 2 }",
            "rule Across { v4: true }",
            "rule Loopback",
        ],
    );
    check_mesh(
        &overlay(Carrier::Plain, false, true, &[2]),
        &[
            "back 2 0.0.0.0/0 vxlan 10.128.2.0 mtu 1450",
            "back 2 ::/0 vxlan fe80::2 mtu 1450",
            "across 10.128.2.0/24 vxlan 10.128.2.0 mtu 1450",
            "across fd00:2::/64 vxlan fe80::2 mtu 1450",
            "rule Unmarked { v4: false }",
            "rule Unmarked { v4: true }",
            "rule Back { v4: false, number: 2 }",
            "rule Back { v4: true, number: 2 }",
            "rule Across { v4: false }",
            "rule Across { v4: true }",
            "rule Loopback",
            "rule End",
        ],
    );
}

#[test]
fn a_node_alone_leads_nowhere() {
    check(
        &overlay(Carrier::Vxlan, false, false, &[]),
        BELOW,
        &[
            "address 10.128.1.0",
            "route 10.64.0.0/16 unreachable",
            "route 10.64.0.0/16 segment src 10.128.1.0",
            "route 10.128.0.0/10 unreachable",
        ],
    );
}

#[test]
fn each_carrier_has_its_routes() {
    let common = [
        "address 10.128.1.0",
        "neighbour 10.128.2.0 2",
        "forward 2 192.0.2.2:4789",
        "route 10.64.0.0/16 unreachable",
        "route 10.64.0.0/16 segment src 10.128.1.0",
        "route 10.128.0.0/10 unreachable",
    ];
    let with = |last| [&common[..], &[last]].concat();
    check(
        &overlay(Carrier::Plain, false, false, &[2]),
        BELOW,
        &with("route 10.128.2.0/24 via 192.0.2.2 src 10.128.1.0"),
    );
    check(
        &overlay(Carrier::Vxlan, false, false, &[2]),
        BELOW,
        &with("route 10.128.2.0/24 vxlan 10.128.2.0 mtu 1450 src 10.128.1.0"),
    );
    let mut tunnelled = with("route 10.128.2.0/24 device mtu 1420 src 10.128.1.0");
    // VXLAN runs within the device.
    tunnelled[2] = "forward 2 10.128.2.0:4789";
    check(&overlay(Carrier::Device, false, false, &[2]), BELOW, &tunnelled);
    // Without the device nothing goes out in the clear.
    tunnelled.pop();
    let below = Below { device: false, ..BELOW };
    check(&overlay(Carrier::Device, false, false, &[2]), below, &tunnelled);
}

#[test]
fn both_families() {
    let dual = [
        "address 10.128.1.0",
        "address fd00:1::",
        "neighbour 10.128.2.0 2",
        "neighbour fe80::2 2",
        "forward 2 192.0.2.2:4789",
        "route 10.64.0.0/16 unreachable",
        "route 10.64.0.0/16 segment src 10.128.1.0",
        "route 10.128.0.0/10 unreachable",
        "route 10.128.2.0/24 via 192.0.2.2 src 10.128.1.0",
        "route fd00::/16 unreachable",
        // The underlay has no IPv6: this family goes by VXLAN.
        "route fd00:2::/64 vxlan fe80::2 mtu 1450 src fd00:1::",
    ];
    check(&overlay(Carrier::Plain, false, true, &[2]), BELOW, &dual);
    let over6 = overlay(Carrier::Vxlan, true, true, &[2]);
    let routes: Vec<String> = items(&config(), &over6, BELOW)
        .iter()
        .map(ToString::to_string)
        .filter(|item| item.starts_with("route") && item.contains("mtu"))
        .collect();
    assert_eq!(
        routes,
        [
            "route 10.128.2.0/24 vxlan 10.128.2.0 mtu 1430 src 10.128.1.0",
            "route fd00:2::/64 vxlan fe80::2 mtu 1430 src fd00:1::",
        ]
    );
}

#[test]
fn the_device_fits_its_carrier() {
    let mtu = |carrier, underlay6, mtu| {
        let below = Below { mtu, holds: true, device: true };
        vxlan(&overlay(carrier, underlay6, false, &[2]), below).mtu
    };
    assert_eq!(mtu(Carrier::Vxlan, false, 1500), 1450);
    assert_eq!(mtu(Carrier::Vxlan, true, 1500), 1430);
    assert_eq!(mtu(Carrier::Vxlan, false, 9000), 8950);
    assert_eq!(mtu(Carrier::Device, false, 1500), 1370);
    // What IPv6 needs is the least.
    assert_eq!(mtu(Carrier::Device, false, 1300), 1280);
}

#[test]
fn nodes_on_one_host() {
    let mut shared = overlay(Carrier::Plain, false, false, &[2]);
    shared.peers[0].underlay = shared.own.underlay;
    shared.peers[0].port = 4790;
    check(
        &shared,
        BELOW,
        &[
            "address 10.128.1.0",
            "neighbour 10.128.2.0 2",
            "forward 2 192.0.2.1:4790",
            "route 10.64.0.0/16 unreachable",
            "route 10.64.0.0/16 segment src 10.128.1.0",
            "route 10.128.0.0/10 unreachable",
        ],
    );
    let (one, two) = (Numbers::of("abcdefgh"), Numbers::of("abcdefgi"));
    assert_ne!(one.metric, two.metric);
    for lookup in [Lookup::Main, Lookup::Back(1), Lookup::Back(0x7ffe), Lookup::Across] {
        assert_eq!(one.lookup(one.table(lookup)), Some(lookup));
    }
    assert_eq!(one.lookup(one.table(Lookup::Across) + 0x1_0000), None);
    assert_eq!(device_name("abcdefgh"), "w-abcdef");
}

#[track_caller]
fn check_diff(held: &Overlay, wanted: &Overlay, removed: &[&str], added: &[&str]) {
    let of = |overlay| items(&config(), overlay, BELOW);
    let text = |items: Vec<Item>| items.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (gone, come) = diff(&of(held), &of(wanted));
    assert_eq!(
        (text(gone), text(come)),
        (
            removed.iter().map(ToString::to_string).collect(),
            added.iter().map(ToString::to_string).collect(),
        )
    );
}

#[test]
fn differences() {
    let one = overlay(Carrier::Vxlan, false, false, &[2]);
    check_diff(&one, &one, &[], &[]);
    check_diff(
        &one,
        &overlay(Carrier::Vxlan, false, false, &[2, 3]),
        &[],
        &[
            "neighbour 10.128.3.0 3",
            "forward 3 192.0.2.3:4789",
            "route 10.128.3.0/24 vxlan 10.128.3.0 mtu 1450 src 10.128.1.0",
            "back 3 0.0.0.0/0 vxlan 10.128.3.0 mtu 1450",
            "across 10.128.3.0/24 vxlan 10.128.3.0 mtu 1450",
            "rule Back { v4: true, number: 3 }",
        ],
    );
    // In reverse: a route goes before what it leads through.
    check_diff(
        &one,
        &overlay(Carrier::Vxlan, false, false, &[]),
        &[
            "rule Loopback",
            "rule Across { v4: true }",
            "rule Back { v4: true, number: 2 }",
            "rule Unmarked { v4: true }",
            "across 10.128.2.0/24 vxlan 10.128.2.0 mtu 1450",
            "back 2 0.0.0.0/0 vxlan 10.128.2.0 mtu 1450",
            "route 10.128.2.0/24 vxlan 10.128.2.0 mtu 1450 src 10.128.1.0",
            "forward 2 192.0.2.2:4789",
            "neighbour 10.128.2.0 2",
        ],
        &[],
    );
    // What moved is replaced where it is.
    let mut moved = one.clone();
    moved.peers[0].underlay = "192.0.2.9".parse().unwrap();
    check_diff(&one, &moved, &[], &["forward 2 192.0.2.9:4789"]);
    let plain = overlay(Carrier::Plain, false, false, &[2]);
    check_diff(&one, &plain, &[], &["route 10.128.2.0/24 via 192.0.2.2 src 10.128.1.0"]);
    let (gone, come) = diff(&items(&config(), &one, BELOW), &BTreeSet::new());
    assert_eq!((gone.len(), come.len()), (13, 0));
}
