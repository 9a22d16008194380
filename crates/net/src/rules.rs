//! What the kernel's packet filter should hold, and how to get there.
//!
//! Pure: a [`Ports`] (the wanted table, sorted) becomes [`Op`]s, either everything
//! from nothing ([`install`]) or the difference to what is held ([`diff`]). A list
//! of operations is meant to be applied as one atomic batch.
//!
//! Invariants:
//! - a difference touches the chains of ports that differ, and nothing else;
//! - a chain is never deleted before what refers to it;
//! - `diff(a, a)` is empty.
//!
//! ```text
//! raw prerouting   no packet for 127/8 but from lo; a container sends as itself only
//! nat prerouting ─┐
//! nat output     ─┴─▶ ports ──verdict map──▶ one chain a port: DNAT, or a refusal
//! nat postrouting  127/8 and hairpins appear as the gateway; leaving the pool: masquerade
//! forward          into containers only what was published; nothing astray out of the pool
//! ```
//!
//! Not here: bytes (`encode`), the socket (`firewall`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::link::GATEWAY;
use crate::{NetConfig, Protocol, Table};

mod encode;
mod expression;
#[cfg(test)]
mod tests;

pub(crate) use encode::{DELETE_TABLE, GET_TABLE, HEADER, encode, table_name};
pub(crate) use expression::{Expression, Type, Verdict};

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

/// Sets and maps of the table. A port is in exactly one of the first four.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Set {
    /// Ports with backends on every local address, protocol . port : the port's chain.
    Anywhere,
    /// Ports with backends on one address, protocol . address . port : the port's chain.
    Bound,
    /// Ports without backends on every local address, protocol . port : a refusal.
    RefusedAnywhere,
    /// Ports without backends on one address, protocol . address . port : a refusal.
    RefusedBound,
    /// All backends, address . address: each may be a client of its own.
    Hairpin,
}

impl Set {
    const ALL: [Self; 5] =
        [Self::Anywhere, Self::Bound, Self::RefusedAnywhere, Self::RefusedBound, Self::Hairpin];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Anywhere => "anywhere",
            Self::Bound => "bound",
            Self::RefusedAnywhere => "refused-anywhere",
            Self::RefusedBound => "refused-bound",
            Self::Hairpin => "hairpin",
        }
    }

    fn of(port: &Port, has_backends: bool) -> Self {
        match (port.bind.is_unspecified(), has_backends) {
            (true, true) => Self::Anywhere,
            (false, true) => Self::Bound,
            (true, false) => Self::RefusedAnywhere,
            (false, false) => Self::RefusedBound,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Element {
    Port(Port),
    Hairpin(Ipv4Addr),
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => port.fmt(f),
            Self::Hairpin(address) => address.fmt(f),
        }
    }
}

/// Where the kernel calls a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    RawPrerouting,
    NatPrerouting,
    NatOutput,
    NatPostrouting,
    Input,
    Forward,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    AddTable,
    DeleteTable,
    AddChain {
        name: String,
        hook: Option<Hook>,
    },
    DeleteChain {
        name: String,
    },
    /// Removes all rules of a chain, and the anonymous maps that they use.
    ClearChain {
        name: String,
    },
    AddRule {
        chain: String,
        rule: Vec<Expression>,
    },
    AddSet(Set),
    AddElements {
        set: Set,
        elements: Vec<Element>,
    },
    DeleteElements {
        set: Set,
        elements: Vec<Element>,
    },
    /// An anonymous map from a number to a backend, for the next rule; `id` is its name within the batch.
    AddBackends {
        id: u32,
        backends: Vec<SocketAddrV4>,
    },
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable => f.write_str("add table"),
            Self::DeleteTable => f.write_str("delete table"),
            Self::AddChain { name, .. } => write!(f, "add chain {name}"),
            Self::DeleteChain { name } => write!(f, "delete chain {name}"),
            Self::ClearChain { name } => write!(f, "clear chain {name}"),
            Self::AddRule { chain, rule } => {
                write!(f, "add rule {chain}:")?;
                rule.iter().try_for_each(|expression| write!(f, " {expression}"))
            }
            Self::AddSet(set) => write!(f, "add set {}", set.name()),
            Self::AddElements { set, elements } => {
                write!(f, "add to {}:", set.name())?;
                elements.iter().try_for_each(|element| write!(f, " {element}"))
            }
            Self::DeleteElements { set, elements } => {
                write!(f, "delete from {}:", set.name())?;
                elements.iter().try_for_each(|element| write!(f, " {element}"))
            }
            Self::AddBackends { id, backends } => {
                write!(f, "add map {id}:")?;
                backends.iter().try_for_each(|backend| write!(f, " {backend}"))
            }
        }
    }
}

/// Elements of one message: at most 64 KiB in an attribute, at most 80 bytes an element.
const ELEMENTS_MAX: usize = 512;

/// Up to so many addresses are looked for in every port; for more, collecting all first is faster.
const SCAN_MAX: usize = 64;

/// The chain that refuses. Not done where the destination would be translated: what is
/// dropped in an output chain is an error of the host's own client (EPERM), not an answer.
pub(crate) fn refusal(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "refuse-tcp",
        Protocol::Udp => "refuse-udp",
    }
}

/// Everything of the node, replacing what may be there.
pub(crate) fn install(config: &NetConfig, wanted: &Ports, round: usize) -> Vec<Op> {
    // Adding first makes the deletion succeed whether or not there was a table.
    let mut ops = vec![Op::AddTable, Op::DeleteTable, Op::AddTable];
    ops.extend(Set::ALL.map(Op::AddSet));
    let add = |name: &str, hook| Op::AddChain { name: name.to_owned(), hook };
    ops.extend([
        add("ports", None),
        add(refusal(Protocol::Tcp), None),
        add(refusal(Protocol::Udp), None),
        add("guard", Some(Hook::RawPrerouting)),
        add("prerouting", Some(Hook::NatPrerouting)),
        add("output", Some(Hook::NatOutput)),
        add("postrouting", Some(Hook::NatPostrouting)),
        add("input", Some(Hook::Input)),
        add("forward", Some(Hook::Forward)),
    ]);
    for (chain, rule) in base_rules(config) {
        ops.push(Op::AddRule { chain: chain.to_owned(), rule });
    }
    ops.extend(diff(&Ports::new(), wanted, round));
    ops
}

/// Nothing of the node.
pub(crate) fn remove() -> Vec<Op> {
    vec![Op::AddTable, Op::DeleteTable]
}

/// From `held` to `wanted`. `round` rotates backends, so that after many changes in a row
/// the first connections do not all go to the same one.
pub(crate) fn diff(held: &Ports, wanted: &Ports, round: usize) -> Vec<Op> {
    let mut ops = Vec::new();
    let mut next_map = 0;
    push_elements(&mut ops, held, wanted, |set, elements| Op::DeleteElements { set, elements });
    for port in served(held).filter(|port| !is_served(wanted, port)) {
        ops.push(Op::ClearChain { name: port.to_string() });
        ops.push(Op::DeleteChain { name: port.to_string() });
    }
    push_hairpins(&mut ops, held, wanted, |set, elements| Op::DeleteElements { set, elements });
    push_hairpins(&mut ops, wanted, held, |set, elements| Op::AddElements { set, elements });
    for port in served(wanted) {
        match held.get(port) {
            Some(same) if wanted.get(port) == Some(same) => continue,
            Some(backends) if !backends.is_empty() => {
                ops.push(Op::ClearChain { name: port.to_string() });
            }
            _ => ops.push(Op::AddChain { name: port.to_string(), hook: None }),
        }
        push_port(&mut ops, &mut next_map, port, &wanted[port], round);
    }
    push_elements(&mut ops, wanted, held, |set, elements| Op::AddElements { set, elements });
    ops
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
    let set_of = |port, backends: &BTreeSet<_>| Set::of(port, !backends.is_empty());
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

/// The rules that do not depend on what is published, in order within their chain.
fn base_rules(config: &NetConfig) -> Vec<(&'static str, Vec<Expression>)> {
    use Expression::{
        DestinationIn, DestinationIs, DestinationNotIn, FromLink, FromLinkNot, HostUnreachable,
        InvalidState, Known, LocalDestination, LookUp, Masquerade, NewState, NoReturnRoute,
        OverTcp, PortUnreachable, Published, ResetTcp, SourceAs, SourceIn, ToBackend, ToLink,
        ToLinkNot, Verdict as Then,
    };
    const LOOPBACK: (Ipv4Addr, u8) = (Ipv4Addr::new(127, 0, 0, 0), 8);
    let ours = || crate::link_prefix(&config.node_key);
    let pool = config.pool;
    let jump = || Then(Verdict::Jump("ports".to_owned()));
    vec![
        // route_localnet on our links must not open the host's loopback to anyone.
        ("guard", vec![FromLinkNot("lo".into()), DestinationIn(LOOPBACK), Then(Verdict::Drop)]),
        // Anti-spoofing by the routing table: it has each container's address on its own link.
        ("guard", vec![FromLink(ours()), NoReturnRoute, Then(Verdict::Drop)]),
        ("prerouting", vec![jump()]),
        ("output", vec![jump()]),
        ("ports", vec![LookUp(Set::Bound)]),
        // The gateway is for the node's own services, and foreign hosts' ports are theirs.
        ("ports", vec![DestinationIs(GATEWAY), Then(Verdict::Return)]),
        ("ports", vec![LocalDestination, LookUp(Set::Anywhere)]),
        // A reply to one of the host's own clients may have any port.
        ("input", vec![NewState, LookUp(Set::RefusedBound)]),
        ("input", vec![DestinationIs(GATEWAY), Then(Verdict::Return)]),
        ("input", vec![NewState, LookUp(Set::RefusedAnywhere)]),
        (refusal(Protocol::Tcp), vec![ResetTcp]),
        (refusal(Protocol::Udp), vec![PortUnreachable]),
        ("postrouting", vec![ToLink(ours()), SourceIn(LOOPBACK), SourceAs(GATEWAY)]),
        ("postrouting", vec![ToLink(ours()), LookUp(Set::Hairpin), SourceAs(GATEWAY)]),
        (
            "postrouting",
            vec![ToLinkNot(ours()), SourceIn(pool), DestinationNotIn(pool), Masquerade],
        ),
        // A container that is gone: its traffic must not leave by the default route.
        (
            "forward",
            vec![ToLinkNot(ours()), DestinationIn(pool), FromLink(ours()), HostUnreachable],
        ),
        // Backends of ours, not the whole pool: another node may share this namespace. An
        // ICMP error about a translated packet would not find its way back; a reset does.
        ("forward", vec![ToLinkNot(ours()), ToBackend, Published, OverTcp, ResetTcp]),
        ("forward", vec![ToLinkNot(ours()), ToBackend, Published, Then(Verdict::Drop)]),
        ("forward", vec![Known, Then(Verdict::Accept)]),
        // Invalid packets escape translation; dropped where translation is ours alone.
        ("forward", vec![FromLink(ours()), InvalidState, Then(Verdict::Drop)]),
        // From elsewhere only what was published: not what is invalid or untracked either.
        ("forward", vec![ToLink(ours()), FromLinkNot(ours()), Published, Then(Verdict::Accept)]),
        ("forward", vec![ToLink(ours()), FromLinkNot(ours()), Then(Verdict::Drop)]),
    ]
}
