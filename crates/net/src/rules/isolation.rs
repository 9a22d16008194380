//! Who may reach whom: networks and policies.
//!
//! Containers on the same networks have one number, their combination. Two may talk if
//! the pair of their combinations is in a set. So a container that comes is one element,
//! whatever the number of its networks and of others on them.
//!
//! A policy is a chain that its subjects' packets pass; addresses of peers are in a set
//! beside it, so that the chain stays when containers come and go.
//!
//! Not here: where in the forward chain these are asked (`base`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::numbered::{Keyed, List, Numbered};
use super::{Element, Expression, Family, Field, Op, Part, Set, Value, Verdict, push_difference};
use crate::table::{Action, Direction, Group, Networks, Peers, Policy};

impl Keyed for Group {
    fn key(&self) -> &str {
        &self.key
    }
}

impl Keyed for Policy {
    fn key(&self) -> &str {
        &self.key
    }
}

/// Networks and policies of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Isolation {
    pub(crate) groups: List<Group>,
    pub(crate) policies: List<Policy>,
    combinations: Arc<Combinations>,
    /// Some address is in two groups, or the subject of two policies.
    pub(super) contested: bool,
}

/// Numbers of sets of networks. They stay until all is installed anew: there are few.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Combinations {
    ids: BTreeMap<BTreeSet<u32>, u32>,
    /// Combinations that a network is part of.
    by_network: BTreeMap<u32, BTreeSet<u32>>,
}

impl Isolation {
    /// The same as `self` where nothing changed, with its numbers.
    pub(crate) fn next(&self, networks: Option<&Networks>) -> Self {
        let (groups, policies) =
            networks.map_or((&[][..], &[][..]), |n| (&n.groups[..], &n.policies[..]));
        Self {
            groups: self.groups.next(groups),
            policies: self.policies.next(policies),
            combinations: Arc::clone(&self.combinations),
            contested: self.contested,
        }
    }

    /// Nothing that the kernel holds.
    pub(crate) fn bare(&self) -> Self {
        Self { groups: self.groups.bare(), policies: self.policies.bare(), ..Self::default() }
    }

    /// Addresses that were a container's and are none any more.
    pub(crate) fn vanished(&self, next: &Self, family: Family) -> Vec<IpAddr> {
        let (old, new) = self.groups.changes(&next.groups);
        let of = |groups: Vec<&Numbered<Group>>| -> BTreeSet<IpAddr> {
            let addresses = groups.iter().flat_map(|group| &group.entry.addresses);
            addresses.copied().filter(|address| family.has(address)).collect()
        };
        of(old).difference(&of(new)).copied().collect()
    }
}

/// From `held` to `wanted`, whose numbers are brought up to date.
pub(super) fn diff(
    ops: &mut Vec<Op>,
    held: &Isolation,
    wanted: &mut Isolation,
    internal: &BTreeSet<u32>,
    family: Family,
) {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let mut combinations = Arc::clone(&held.combinations);
    let (old_groups, new_groups) = held.groups.changes(&wanted.groups);
    for group in old_groups {
        push_group(&mut before, &held.combinations, &group.entry, internal, family);
    }
    for group in new_groups {
        if !combinations.ids.contains_key(&group.entry.networks) {
            after.extend(Arc::make_mut(&mut combinations).add(&group.entry.networks));
        }
        push_group(&mut after, &combinations, &group.entry, internal, family);
    }
    let (old, new) = held.policies.changes(&wanted.policies);
    let was: BTreeMap<u32, &Numbered<Policy>> = old.iter().map(|p| (p.id, *p)).collect();
    let is: BTreeSet<u32> = new.iter().map(|policy| policy.id).collect();
    for policy in &new {
        let rules = chain_rules(policy, family);
        match was.get(&policy.id) {
            Some(was) if chain_rules(was, family) == rules => {}
            was => {
                ops.push(match was {
                    Some(_) => Op::ClearChain { name: chain(policy.id) },
                    None => Op::AddChain { name: chain(policy.id), hook: None },
                });
                ops.extend(
                    rules
                        .into_iter()
                        .map(|(_, rule)| Op::AddRule { chain: chain(policy.id), rule }),
                );
            }
        }
        push_policy(&mut after, policy, family);
    }
    old.iter().for_each(|policy| push_policy(&mut before, policy, family));
    before.sort_unstable();
    before.dedup();
    after.sort_unstable();
    after.dedup();
    // An address has one group, and one policy each way: the first, the kernel refuses the second.
    let count = after.len();
    after.dedup_by(|b, a| a.0 == b.0 && a.1.key() == b.1.key());
    let contested = held.contested || after.len() < count;
    push_difference(ops, &before, &after);
    for policy in old.iter().filter(|policy| !is.contains(&policy.id)) {
        ops.push(Op::ClearChain { name: chain(policy.id) });
        ops.push(Op::DeleteChain { name: chain(policy.id) });
    }
    wanted.combinations = combinations;
    wanted.contested = contested;
}

impl Combinations {
    /// Gives `networks` a number, and returns what it may reach.
    fn add(&mut self, networks: &BTreeSet<u32>) -> Vec<(Set, Element)> {
        let id = u32::try_from(self.ids.len()).expect("combinations fit memory") + 1;
        self.ids.insert(networks.clone(), id);
        let mut others = BTreeSet::new();
        for network in networks {
            let of_network = self.by_network.entry(*network).or_default();
            of_network.insert(id);
            others.extend(of_network.iter().copied());
        }
        let pair = |a, b| (Set::Together, Element::key_of(vec![Part::Number(a), Part::Number(b)]));
        others.into_iter().flat_map(|other| [pair(id, other), pair(other, id)]).collect()
    }
}

fn push_group(
    all: &mut Vec<(Set, Element)>,
    combinations: &Combinations,
    group: &Group,
    internal: &BTreeSet<u32>,
    family: Family,
) {
    let number = combinations.ids.get(&group.networks).copied().unwrap_or_default();
    let is_confined = group.networks.is_subset(internal);
    for address in group.addresses.iter().filter(|address| family.has(address)) {
        let key = vec![Part::Address(*address)];
        if is_confined {
            all.push((Set::Confined, Element::key_of(key.clone())));
        }
        let value = Value::Parts(vec![Part::Number(number), Part::Number(number)]);
        all.push((Set::Combination, Element::Entry { key, value }));
    }
}

pub(crate) fn chain(id: u32) -> String {
    format!("policy-{id}")
}

/// A clause's number in the set of peers.
fn clause_number(policy: u32, clause: usize) -> u32 {
    (policy << 8) | u32::try_from(clause).unwrap_or(u32::MAX).min(0xff)
}

fn push_policy(all: &mut Vec<(Set, Element)>, policy: &Numbered<Policy>, family: Family) {
    let set = match policy.entry.direction {
        Direction::In => Set::Inbound,
        Direction::Out => Set::Outbound,
    };
    for subject in policy.entry.subjects.iter().filter(|subject| family.has(subject)) {
        let value = Value::Verdict(Verdict::Jump(chain(policy.id)));
        all.push((set, Element::Entry { key: vec![Part::Address(*subject)], value }));
    }
    for (index, clause) in policy.entry.clauses.iter().take(Policy::CLAUSES_MAX).enumerate() {
        let Peers::Containers(peers) = &clause.peers else { continue };
        let number = Part::Number(clause_number(policy.id, index));
        for peer in peers.iter().filter(|peer| family.has(peer)) {
            all.push((Set::Peers, Element::key_of(vec![number.clone(), Part::Address(*peer)])));
        }
    }
}

/// The rules of a policy's chain, each with the position of its clause.
pub(crate) fn chain_rules(
    policy: &Numbered<Policy>,
    family: Family,
) -> Vec<(usize, Vec<Expression>)> {
    let field = match policy.entry.direction {
        Direction::In => Field::Source,
        Direction::Out => Field::Destination,
    };
    let verdict = |action| match action {
        Action::Allow => Expression::Verdict(Verdict::Return),
        Action::Deny => Expression::Verdict(Verdict::Drop),
    };
    let mut rules = Vec::new();
    let clauses = policy.entry.clauses.iter().take(Policy::CLAUSES_MAX);
    for (index, clause) in clauses.enumerate() {
        let peers = match &clause.peers {
            Peers::Any => vec![Vec::new()],
            Peers::Containers(_) => {
                vec![vec![Expression::Peer { number: clause_number(policy.id, index), field }]]
            }
            Peers::Subnets(subnets) => {
                let of_family = subnets.iter().filter(|subnet| family.has(&subnet.0));
                let within = |subnet| match field {
                    Field::Destination => Expression::DestinationIn(subnet),
                    _ => Expression::SourceIn(subnet),
                };
                of_family.map(|subnet| vec![within(*subnet)]).collect()
            }
        };
        let ports: Vec<Vec<Expression>> = match clause.ports.as_slice() {
            [] => vec![Vec::new()],
            ports => {
                let range = |range: &crate::table::PortRange| {
                    let ports = Expression::DestinationPorts(range.first, range.last);
                    vec![Expression::Over(range.protocol), ports]
                };
                ports.iter().map(range).collect()
            }
        };
        for peers in &peers {
            for ports in &ports {
                let end = [Expression::Count, verdict(clause.action)];
                rules.push((index, [&peers[..], &ports[..], &end[..]].concat()));
            }
        }
    }
    let last = policy.entry.clauses.len();
    rules.push((last, vec![Expression::Count, verdict(policy.entry.otherwise)]));
    rules
}
