//! Chains of published ports whose backends are this node's own containers.
//!
//! A port has a chain of its own, so that backends take turns exactly; there are
//! hundreds on a node at most.
//!
//! Not here: services' addresses and ports that every node answers (`services`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use super::{ELEMENTS_MAX, Element, Expression, Op, Set};
use crate::{Protocol, Table};

/// Up to so many addresses are looked for in every port; for more, collecting all first is faster.
const SCAN_MAX: usize = 64;

/// What clients connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Port {
    pub(crate) protocol: Protocol,
    pub(crate) bind: Ipv4Addr,
    pub(crate) port: u16,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bind {
            Ipv4Addr::UNSPECIFIED => write!(f, "{}-{}", self.protocol, self.port),
            bind => write!(f, "{}-{bind}-{}", self.protocol, self.port),
        }
    }
}

/// The published ports in order, each with its backends.
pub(crate) type Ports = BTreeMap<Port, BTreeSet<SocketAddrV4>>;

/// Sorted, and of ports named twice the union.
pub(crate) fn ports(table: &Table) -> Ports {
    let mut ports = Ports::new();
    for published in &table.published {
        let port =
            Port { protocol: published.protocol, bind: published.bind, port: published.port };
        ports.entry(port).or_default().extend(&published.backends);
    }
    ports
}

/// From `held` to `wanted`.
pub(super) fn diff(ops: &mut Vec<Op>, held: &Ports, wanted: &Ports, round: usize) {
    if held == wanted {
        return;
    }
    let mut next_map = 0;
    push_elements(ops, held, wanted, |set, elements| Op::DeleteElements { set, elements });
    for port in served(held).filter(|port| !is_served(wanted, port)) {
        ops.push(Op::ClearChain { name: port.to_string() });
        ops.push(Op::DeleteChain { name: port.to_string() });
    }
    push_hairpins(ops, held, wanted, |set, elements| Op::DeleteElements { set, elements });
    push_hairpins(ops, wanted, held, |set, elements| Op::AddElements { set, elements });
    for port in served(wanted) {
        match held.get(port) {
            Some(same) if wanted.get(port) == Some(same) => continue,
            Some(backends) if !backends.is_empty() => {
                ops.push(Op::ClearChain { name: port.to_string() });
            }
            _ => ops.push(Op::AddChain { name: port.to_string(), hook: None }),
        }
        push_port(ops, &mut next_map, port, &wanted[port], round);
    }
    push_elements(ops, wanted, held, |set, elements| Op::AddElements { set, elements });
}

fn set_of(port: &Port, has_backends: bool) -> Set {
    match (port.bind.is_unspecified(), has_backends) {
        (true, true) => Set::Anywhere,
        (false, true) => Set::Bound,
        (true, false) => Set::RefusedAnywhere,
        (false, false) => Set::RefusedBound,
    }
}

fn served(ports: &Ports) -> impl Iterator<Item = &Port> {
    ports.iter().filter(|(_, backends)| !backends.is_empty()).map(|(port, _)| port)
}

fn is_served(ports: &Ports, port: &Port) -> bool {
    ports.get(port).is_some_and(|backends| !backends.is_empty())
}

/// The rule of one port's chain.
fn push_port(
    ops: &mut Vec<Op>,
    next_map: &mut u32,
    port: &Port,
    backends: &BTreeSet<SocketAddrV4>,
    round: usize,
) {
    let mut backends: Vec<SocketAddrV4> = backends.iter().copied().collect();
    let rule = if let [backend] = backends.as_slice() {
        vec![Expression::Destination(*backend)]
    } else {
        *next_map += 1;
        let len = backends.len();
        backends.rotate_left(round % len);
        ops.push(Op::AddBackends { id: *next_map, backends });
        let modulus = u32::try_from(len).expect("a table fits memory");
        vec![Expression::NextDestination { map: *next_map, modulus }]
    };
    ops.push(Op::AddRule { chain: port.to_string(), rule });
}

/// Ports of `these` that are in another set in `those`, or in none.
fn push_elements(
    ops: &mut Vec<Op>,
    these: &Ports,
    those: &Ports,
    op: impl Fn(Set, Vec<Element>) -> Op,
) {
    let set_of = |port, backends: &BTreeSet<_>| set_of(port, !backends.is_empty());
    for set in [Set::Anywhere, Set::Bound, Set::RefusedAnywhere, Set::RefusedBound] {
        let elements: Vec<Element> = these
            .iter()
            .filter(|(port, backends)| set_of(port, backends) == set)
            .filter(|(port, _)| those.get(*port).is_none_or(|other| set_of(port, other) != set))
            .map(|(port, _)| Element::Port(*port))
            .collect();
        ops.extend(elements.chunks(ELEMENTS_MAX).map(|elements| op(set, elements.to_vec())));
    }
}

/// Backends of `these` that `those` does not have.
fn push_hairpins(
    ops: &mut Vec<Op>,
    these: &Ports,
    those: &Ports,
    op: impl Fn(Set, Vec<Element>) -> Op,
) {
    // Only ports that differ can make a difference, but another port may still have the backend.
    let changed: BTreeSet<Ipv4Addr> = these
        .iter()
        .filter(|(port, backends)| those.get(port) != Some(backends))
        .flat_map(|(_, backends)| backends.iter().map(|backend| *backend.ip()))
        .collect();
    if changed.is_empty() {
        return;
    }
    let mut elements = changed;
    if elements.len() > SCAN_MAX {
        elements.retain({
            let others = addresses(those);
            move |address| !others.contains(address)
        });
    } else {
        for backends in those.values() {
            elements.retain(|address| !has_address(backends, *address));
        }
    }
    let elements: Vec<Element> = elements.into_iter().map(Element::Hairpin).collect();
    ops.extend(elements.chunks(ELEMENTS_MAX).map(|elements| op(Set::Hairpin, elements.to_vec())));
}

fn has_address(backends: &BTreeSet<SocketAddrV4>, address: Ipv4Addr) -> bool {
    let at = |port| SocketAddrV4::new(address, port);
    backends.range(at(0)..=at(u16::MAX)).next().is_some()
}

fn addresses(ports: &Ports) -> BTreeSet<Ipv4Addr> {
    ports.values().flatten().map(|backend| *backend.ip()).collect()
}
