//! What the kernel's packet filter should hold, and how to get there.
//!
//! Pure: a [`Rules`] (the wanted table, sorted, of one address family) becomes [`Op`]s,
//! either everything from nothing ([`install`]) or the difference to what is held
//! ([`diff`]). A list of operations is meant to be applied as one atomic batch.
//!
//! Invariants:
//! - a difference touches what differs, and nothing else;
//! - a chain is never deleted before what refers to it;
//! - `diff(a, a)` is empty.
//!
//! ```text
//! raw prerouting   forged sources, strangers' VXLAN packets, 127/8 from outside: dropped
//! tracked          what came by another node is remembered, answers go back by it
//! nat prerouting ─┐ from containers: services ──maps──▶ a chain of so many turns: DNAT
//! nat output     ─┴▶ ports ──verdict map──▶ one chain a port: DNAT, or a refusal
//! untranslated     for a service that has no backend, or not this port: refused
//! forward          policies, then isolate: who shares no network is parted; into containers
//!                  from elsewhere only what was published
//! nat postrouting  127/8 and hairpins appear as the gateway; leaving the pool: masquerade
//! ```
//!
//! Not here: bytes (`encode`), the socket (`firewall`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddrV4};

use crate::table::Action;
use crate::{NetConfig, Protocol, Table};

mod base;
mod encode;
mod expression;
mod isolation;
mod judge;
mod numbered;
mod policies;
mod published;
mod services;
mod set;
#[cfg(test)]
mod tests;

pub(crate) use base::Base;
pub(crate) use encode::{
    DELETE_RULE, DELETE_TABLE, GET_CHAIN, GET_RULE, GET_TABLE, NEW_CHAIN, NEW_GENERATION, NEW_RULE,
    encode, framed, get_element, get_elements, get_rules, header, parse_counted, parse_counter,
    table_name,
};
pub(crate) use expression::{Expression, Field, Verdict};
pub(crate) use isolation::{Isolation, Vanished};
pub(crate) use judge::{Judge, Passage};
pub(crate) use policies::is_chain as is_policy_chain;
pub(crate) use published::{Port, Ports, ports};
pub(crate) use services::{Front, Services};
pub(crate) use set::{Element, Holds, Part, Set, Value};

/// Address families, each with a table of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub(crate) fn has(self, address: &IpAddr) -> bool {
        Self::of(address) == self
    }

    /// The number of its ICMP.
    pub(crate) fn icmp(self) -> u8 {
        match self {
            Self::V4 => 1,
            Self::V6 => 58,
        }
    }
}

/// What clauses are counted under.
pub(crate) type Counted = (Box<str>, Action);
/// Packets and bytes.
pub(crate) type Counter = (u64, u64);

/// What one family's table should hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rules {
    /// What the constant rules are made of: if it differs, everything is installed anew.
    pub(crate) base: Base,
    /// What is known of other nodes, sorted.
    pub(crate) peers: Vec<(Set, Element)>,
    /// Of IPv6 there are none.
    pub(crate) ports: Ports,
    pub(crate) services: Services,
    pub(crate) isolation: Isolation,
}

impl Rules {
    /// After `held`, whose numbers are kept; `None` if the family needs no table.
    pub(crate) fn new(
        config: &NetConfig,
        table: &Table,
        family: Family,
        held: Option<&Self>,
    ) -> Option<Self> {
        let base = Base::new(config, table, family)?;
        let peers = base::peers(table, family);
        let ports = if family == Family::V4 { ports(table) } else { Ports::new() };
        let networks = table.networks.as_ref();
        let (services, isolation) = match held {
            Some(held) => (held.services.next(&table.services), held.isolation.next(networks)),
            None => {
                (Services::default().next(&table.services), Isolation::default().next(networks))
            }
        };
        Some(Self { base, peers, ports, services, isolation })
    }

    /// Whose the counters are that were found in each chain, in the order of its rules.
    pub(crate) fn counted(
        &self,
        found: &BTreeMap<String, Vec<Counter>>,
    ) -> Vec<(Counted, Counter)> {
        let mut counted = Vec::new();
        let chains = policies::Chains::new(&self.base, &self.isolation);
        for policy in self.isolation.policies.iter() {
            let Some(counts) = found.get(&policies::chain(policy.id)) else { continue };
            let rules = chains.rules(policy).into_iter().filter_map(|rule| rule.counted);
            counted.extend(rules.zip(counts.iter().copied()));
        }
        let parted = found.get(ISOLATE).into_iter().flatten();
        counted.extend(parted.map(|count| ((Box::default(), Action::Deny), *count)));
        counted
    }

    /// Whose the connections are that were counted by number.
    pub(crate) fn connections<'a>(
        &'a self,
        found: &'a BTreeMap<u32, u64>,
    ) -> impl Iterator<Item = (&'a str, u64)> {
        let services = self.services.list.iter();
        services.filter_map(|of| Some((&*of.entry.key, *found.get(&of.id)?)))
    }

    /// Whether connections that are there may have another verdict in `next`: policies differ, in
    /// more than containers that came or went.
    pub(crate) fn judges_otherwise(&self, next: &Self) -> bool {
        policies::judge_otherwise(&self.isolation, &next.isolation)
    }

    /// What clauses can be counted under.
    pub(crate) fn counted_names(&self) -> BTreeSet<&str> {
        let policies = self.isolation.policies.iter();
        policies.flat_map(|policy| &policy.entry.clauses).map(|clause| &*clause.name).collect()
    }

    /// The same without anything that changes.
    fn bare(&self) -> Self {
        Self {
            base: self.base.clone(),
            peers: Vec::new(),
            ports: Ports::new(),
            services: self.services.bare(),
            isolation: self.isolation.bare(),
        }
    }
}

/// Where the kernel calls a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    RawPrerouting,
    /// Connections are known, and not yet translated.
    Tracked,
    NatPrerouting,
    NatOutput,
    NatPostrouting,
    /// Where everything that leaves comes by.
    Leaving,
    /// After translation, before routing.
    Translated,
    /// The same of what the host itself sends.
    TranslatedOutput,
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

/// The chain that new packets between containers go to.
const ISOLATE: &str = "isolate";

/// Elements of one message: at most 64 KiB in an attribute, at most 120 bytes an element.
const ELEMENTS_MAX: usize = 512;

/// The chain that refuses. Not done where the destination would be translated: what is
/// dropped in an output chain is an error of the host's own client (EPERM), not an answer.
pub(crate) fn refusal(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "refuse-tcp",
        Protocol::Udp => "refuse-udp",
    }
}

/// Everything of the node, replacing what may be there.
pub(crate) fn install(wanted: &mut Rules, round: usize) -> Vec<Op> {
    // Adding first makes the deletion succeed whether or not there was a table.
    let mut ops = vec![Op::AddTable, Op::DeleteTable, Op::AddTable];
    ops.extend(Set::ALL.map(Op::AddSet));
    let add = |name: &str, hook| Op::AddChain { name: name.to_owned(), hook };
    ops.extend([
        add("services", None),
        add("ports", None),
        add(refusal(Protocol::Tcp), None),
        add(refusal(Protocol::Udp), None),
        add("guard", Some(Hook::RawPrerouting)),
        add("prerouting", Some(Hook::NatPrerouting)),
        add("output", Some(Hook::NatOutput)),
        add("postrouting", Some(Hook::NatPostrouting)),
        add("tracked", Some(Hook::Tracked)),
        add("leaving", Some(Hook::Leaving)),
        add(ISOLATE, None),
        add(base::DENIED, None),
        add("untranslated", Some(Hook::Translated)),
        add("untranslated-output", Some(Hook::TranslatedOutput)),
        add("input", Some(Hook::Input)),
        add("forward", Some(Hook::Forward)),
    ]);
    for (chain, rule) in wanted.base.rules() {
        ops.push(Op::AddRule { chain: chain.to_owned(), rule });
    }
    ops.extend(changes(&wanted.bare(), wanted, round));
    ops
}

/// Nothing of the node.
pub(crate) fn remove() -> Vec<Op> {
    vec![Op::AddTable, Op::DeleteTable]
}

/// From `held` to `wanted`. `round` rotates backends, so that after many changes in a row
/// the first connections do not all go to the same one.
pub(crate) fn diff(held: &Rules, wanted: &mut Rules, round: usize) -> Vec<Op> {
    let is_contested = (held.services.contested && held.services != wanted.services)
        || (held.isolation.contested && held.isolation != wanted.isolation);
    if held.base != wanted.base || is_contested {
        return install(wanted, round);
    }
    changes(held, wanted, round)
}

fn changes(held: &Rules, wanted: &mut Rules, round: usize) -> Vec<Op> {
    let mut ops = Vec::new();
    push_difference(&mut ops, &held.peers, &wanted.peers);
    published::diff(&mut ops, &held.ports, &wanted.ports, round);
    let family = wanted.base.family();
    services::diff(&mut ops, &held.services, &mut wanted.services, family);
    let internal = wanted.base.internal().clone();
    isolation::diff(&mut ops, &held.isolation, &mut wanted.isolation, &internal, family);
    wanted.isolation.contested |= policies::diff(
        &mut ops,
        &policies::Chains::new(&held.base, &held.isolation),
        &policies::Chains::new(&wanted.base, &wanted.isolation),
    );
    ops
}

/// Where it is remembered that connections were translated to a backend.
pub(crate) fn served(protocol: Protocol, address: IpAddr) -> (Set, Element) {
    let key = vec![Part::Protocol(protocol), Part::Address(address)];
    (Set::Served, Element::key_of(key))
}

/// Remembers backends that connections were translated to, as rules do from now on.
pub(crate) fn remember_served(all: impl IntoIterator<Item = (Protocol, IpAddr)>) -> Vec<Op> {
    let mut ops = Vec::new();
    let elements = all.into_iter().map(|(protocol, address)| served(protocol, address).1);
    push_changes(&mut ops, Set::Served, Vec::new(), elements.collect());
    ops
}

/// Forgets that connections were translated to a backend.
pub(crate) fn forget_served(protocol: Protocol, address: IpAddr) -> Op {
    let (set, element) = served(protocol, address);
    Op::DeleteElements { set, elements: vec![element] }
}

/// What goes, then what comes, in messages of a size that the kernel takes.
fn push_changes(ops: &mut Vec<Op>, set: Set, gone: Vec<Element>, come: Vec<Element>) {
    for elements in gone.chunks(ELEMENTS_MAX) {
        ops.push(Op::DeleteElements { set, elements: elements.to_vec() });
    }
    for elements in come.chunks(ELEMENTS_MAX) {
        ops.push(Op::AddElements { set, elements: elements.to_vec() });
    }
}

/// Elements of one set each, sorted: all that go, then all that come. What has the same key with
/// another value does both.
fn push_difference(ops: &mut Vec<Op>, before: &[(Set, Element)], after: &[(Set, Element)]) {
    let only = |these: &[(Set, Element)], those: &[(Set, Element)]| {
        let mut only: BTreeMap<Set, Vec<Element>> = BTreeMap::new();
        for (set, element) in these {
            if those.binary_search_by(|(s, e)| (s, e).cmp(&(set, element))).is_err() {
                only.entry(*set).or_default().push(element.clone());
            }
        }
        only
    };
    for (set, gone) in only(before, after) {
        push_changes(ops, set, gone, Vec::new());
    }
    for (set, come) in only(after, before) {
        push_changes(ops, set, Vec::new(), come);
    }
}
