//! What policies say of connections that are there already.
//!
//! Rules judge a connection when it begins; this does the same later, when policies have
//! changed. Pure. It agrees with the chains of `policies`: a test asks both.
//!
//! Not here: where connections are found and marked (`conntrack`, `firewall`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Element, Family, Part, Rules, Set};
use crate::table::{Action, Direction, Peers, Policy, Subnet, Traffic};

/// A connection as its first packet had it, and who answers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Passage {
    pub(crate) source: IpAddr,
    /// What was connected to.
    pub(crate) destination: IpAddr,
    /// What is reached.
    pub(crate) answered_by: IpAddr,
    /// Of the protocol.
    pub(crate) protocol: u8,
    /// Of what is reached; 0 where there is none.
    pub(crate) port: u16,
}

/// Policies of one family, looked up by address.
pub(crate) struct Judge<'a> {
    family: Family,
    pool: Subnet,
    vips: Vec<Subnet>,
    nodes: BTreeSet<IpAddr>,
    inbound: BTreeMap<IpAddr, &'a Policy>,
    outbound: BTreeMap<IpAddr, &'a Policy>,
    sets: BTreeMap<&'a str, BTreeSet<IpAddr>>,
}

fn is_in(address: IpAddr, subnet: &Subnet) -> bool {
    address.is_ipv4() == subnet.0.is_ipv4()
        && crate::subnet_of((address, subnet.1)) == crate::subnet_of(*subnet)
}

impl<'a> Judge<'a> {
    pub(crate) fn new(rules: &'a Rules) -> Self {
        let family = rules.base.family();
        let by = |direction: Direction| {
            let policies = rules.isolation.policies.iter().map(|policy| &*policy.entry);
            let policies = policies.filter(move |policy| policy.direction == direction);
            let mut all = BTreeMap::new();
            for policy in policies {
                for subject in policy.subjects.iter().filter(|subject| family.has(subject)) {
                    all.entry(*subject).or_insert(policy);
                }
            }
            all
        };
        let node = |(set, element): &(Set, Element)| match (set, element.key()) {
            (Set::Nodes, Some([Part::Address(address)])) => Some(*address),
            _ => None,
        };
        let sets = rules.isolation.sets.iter().map(|set| &set.entry);
        Self {
            family,
            pool: rules.base.pool(),
            vips: rules.base.vips().copied().collect(),
            nodes: rules.peers.iter().filter_map(node).collect(),
            inbound: by(Direction::In),
            outbound: by(Direction::Out),
            sets: sets.map(|set| (&*set.key, set.addresses.iter().copied().collect())).collect(),
        }
    }

    /// Whether it is denied now; `None` if no container is at one of its ends.
    pub(crate) fn denies(&self, passage: &Passage) -> Option<bool> {
        let outbound = self.outbound.get(&passage.source);
        let inbound = self.inbound.get(&passage.answered_by);
        if outbound.is_none() && inbound.is_none() {
            // One of ours that a policy may have been about before.
            let ours = [passage.source, passage.answered_by];
            return ours.iter().any(|end| is_in(*end, &self.pool)).then_some(false);
        }
        // Itself, and the node's name server.
        if passage.source == passage.answered_by || passage.answered_by.is_loopback() {
            return Some(false);
        }
        let out = outbound.filter(|_| !self.is_judged_there(passage));
        let denies = |policy: &&Policy, peer| self.verdict(policy, passage, peer) == Action::Deny;
        Some(
            out.is_some_and(|policy| denies(policy, passage.answered_by))
                || inbound.is_some_and(|policy| denies(policy, passage.source)),
        )
    }

    fn is_judged_there(&self, passage: &Passage) -> bool {
        if self.vips.iter().any(|vips| is_in(passage.destination, vips)) {
            return true;
        }
        let to = passage.answered_by;
        passage.destination == to && is_in(to, &self.pool) && !self.nodes.contains(&to)
    }

    fn verdict(&self, policy: &Policy, passage: &Passage, peer: IpAddr) -> Action {
        if policy.clauses.len() > Policy::CLAUSES_MAX {
            return Action::Deny;
        }
        let found = policy.clauses.iter().find(|clause| {
            self.is_peer(&clause.peers, peer)
                && (clause.traffic.is_empty()
                    || clause.traffic.iter().any(|traffic| self.is_for(*traffic, passage)))
        });
        found.map_or(Action::Allow, |clause| clause.action)
    }

    fn is_peer(&self, peers: &Peers, peer: IpAddr) -> bool {
        let Peers::Some { set, subnets, outside } = peers else { return true };
        let set = set.as_ref().and_then(|key| self.sets.get(&**key));
        set.is_some_and(|set| set.contains(&peer))
            || subnets.iter().any(|subnet| is_in(peer, subnet))
            || (*outside && (!is_in(peer, &self.pool) || self.nodes.contains(&peer)))
    }

    fn is_for(&self, traffic: Traffic, passage: &Passage) -> bool {
        match traffic {
            Traffic::Icmp => passage.protocol == self.family.icmp(),
            Traffic::Ports(range) => {
                passage.protocol == range.protocol.number()
                    && (range.first..=range.last).contains(&passage.port)
            }
        }
    }
}
