//! Who may reach whom by networks.
//!
//! Containers on the same networks have one number, their combination. Two may talk if
//! the pair of their combinations is in a set. So a container that comes is one element,
//! whatever the number of its networks and of others on them.
//!
//! Not here: where in the forward chain this is asked (`base`), policies (`policies`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::numbered::{List, Numbered};
use super::{Element, Family, Op, Part, Set, Value, push_difference};
use crate::table::{Group, Networks, PeerSet, Policy};

/// Networks and policies of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Isolation {
    pub(crate) groups: List<Group>,
    pub(crate) policies: List<Policy>,
    /// Whom policies' clauses name.
    pub(crate) sets: List<PeerSet>,
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
        let none = Networks::default();
        let Networks { groups, internal: _, policies, peers } = networks.unwrap_or(&none);
        Self {
            groups: self.groups.next(groups),
            policies: self.policies.next(policies),
            sets: self.sets.next(peers),
            combinations: Arc::clone(&self.combinations),
            contested: self.contested,
        }
    }

    /// Nothing that the kernel holds.
    pub(crate) fn bare(&self) -> Self {
        Self {
            groups: self.groups.bare(),
            policies: self.policies.bare(),
            sets: self.sets.bare(),
            ..Self::default()
        }
    }

    /// Addresses whose container is no more.
    pub(crate) fn vanished(&self, next: &Self, family: Family) -> Vanished {
        let (old, new) = self.groups.changes(&next.groups);
        let of = |groups: Vec<&Numbered<Group>>| -> BTreeSet<(IpAddr, Arc<str>)> {
            let pairs = groups.iter().flat_map(|group| {
                let key = &group.entry.key;
                group.entry.addresses.iter().map(|address| (*address, Arc::clone(key)))
            });
            pairs.filter(|(address, _)| family.has(address)).collect()
        };
        let (old, new) = (of(old), of(new));
        let held: BTreeSet<IpAddr> = new.iter().map(|(address, _)| *address).collect();
        let left: BTreeSet<IpAddr> = old.difference(&new).map(|(address, _)| *address).collect();
        let (inherited, gone) = left.into_iter().partition(|address| held.contains(address));
        Vanished { gone, inherited }
    }
}

/// Addresses that were a container's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Vanished {
    /// And are nobody's.
    pub(crate) gone: Vec<IpAddr>,
    /// And are one's of another group.
    pub(crate) inherited: Vec<IpAddr>,
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
    before.sort_unstable();
    before.dedup();
    after.sort_unstable();
    after.dedup();
    // An address has one group: the first, the kernel refuses the second.
    let count = after.len();
    after.dedup_by(|b, a| a.0 == b.0 && a.1.key() == b.1.key());
    let contested = held.contested || after.len() < count;
    push_difference(ops, &before, &after);
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
