//! Policies as chains that their subjects' packets pass.
//!
//! Addresses of peers are in a set beside them, a number for each of the table's sets, so
//! that chains and their counts stay when containers come and go.
//!
//! ```text
//! to a container     Inbound ──▶ clauses
//! from a container   Outbound ─▶ is it for another container, by its own address or a
//!                    service's? then that is judged there; else clauses
//! ```
//!
//! Not here: where in the forward and input chains these are asked (`base`), connections
//! that were there before (`judge`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::numbered::Numbered;
use super::{
    Base, Counted, Element, Expression, Field, Isolation, Op, Part, Set, Value, Verdict,
    push_difference,
};
use crate::table::{Action, Clause, Direction, Peers, Policy, Subnet, Traffic};

/// What chains are made of.
pub(crate) struct Chains<'a> {
    base: &'a Base,
    isolation: &'a Isolation,
    numbers: BTreeMap<&'a str, u32>,
}

/// A rule of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) rule: Vec<Expression>,
    /// Under which its counter counts, if it has one.
    pub(crate) counted: Option<Counted>,
}

pub(crate) fn chain(id: u32) -> String {
    format!("policy-{id}")
}

/// From what is held to what is wanted; says whether some address is the subject of two.
pub(super) fn diff(ops: &mut Vec<Op>, held: &Chains<'_>, wanted: &Chains<'_>) -> bool {
    let (old, new) = held.isolation.policies.changes(&wanted.isolation.policies);
    let was: BTreeMap<u32, &Numbered<Policy>> = old.iter().map(|p| (p.id, *p)).collect();
    let is: BTreeSet<u32> = new.iter().map(|policy| policy.id).collect();
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for policy in &new {
        let rules = wanted.rules(policy);
        let name = chain(policy.id);
        match was.get(&policy.id) {
            Some(was) if held.rules(was) == rules => {}
            was => {
                ops.push(match was {
                    Some(_) => Op::ClearChain { name: name.clone() },
                    None => Op::AddChain { name: name.clone(), hook: None },
                });
                let add = |rule: Rule| Op::AddRule { chain: name.clone(), rule: rule.rule };
                ops.extend(rules.into_iter().map(add));
            }
        }
        wanted.push_subjects(&mut after, policy);
    }
    old.iter().for_each(|policy| held.push_subjects(&mut before, policy));
    let (old_sets, new_sets) = held.isolation.sets.changes(&wanted.isolation.sets);
    let family = wanted.base.family();
    for (sets, all) in [(old_sets, &mut before), (new_sets, &mut after)] {
        for set in sets {
            let of_family = set.entry.addresses.iter().filter(|address| family.has(address));
            let key = |address| vec![Part::Number(set.id), Part::Address(address)];
            all.extend(of_family.map(|peer| (Set::Peers, Element::key_of(key(*peer)))));
        }
        all.sort_unstable();
        all.dedup();
    }
    // An address has one policy each way: the first, the kernel refuses the second.
    let count = after.len();
    after.dedup_by(|b, a| a.0 == b.0 && a.1.key() == b.1.key());
    push_difference(ops, &before, &after);
    for policy in old.iter().filter(|policy| !is.contains(&policy.id)) {
        ops.push(Op::ClearChain { name: chain(policy.id) });
        ops.push(Op::DeleteChain { name: chain(policy.id) });
    }
    after.len() < count
}

impl<'a> Chains<'a> {
    pub(crate) fn new(base: &'a Base, isolation: &'a Isolation) -> Self {
        let numbers = isolation.sets.iter().map(|set| (&*set.entry.key, set.id)).collect();
        Self { base, isolation, numbers }
    }

    fn push_subjects(&self, all: &mut Vec<(Set, Element)>, policy: &Numbered<Policy>) {
        let set = match policy.entry.direction {
            Direction::In => Set::Inbound,
            Direction::Out => Set::Outbound,
        };
        let family = self.base.family();
        for subject in policy.entry.subjects.iter().filter(|subject| family.has(subject)) {
            let value = Value::Verdict(Verdict::Jump(chain(policy.id)));
            all.push((set, Element::Entry { key: vec![Part::Address(*subject)], value }));
        }
    }

    /// The rules of a policy's chain, in order.
    pub(crate) fn rules(&self, policy: &Numbered<Policy>) -> Vec<Rule> {
        let policy = &policy.entry;
        let plain = |rule| Rule { rule, counted: None };
        if policy.clauses.len() > Policy::CLAUSES_MAX {
            return vec![plain(vec![Expression::Verdict(Verdict::Drop)])];
        }
        let mut rules: Vec<Rule> = match policy.direction {
            Direction::In => Vec::new(),
            Direction::Out => self.judged_there().into_iter().map(plain).collect(),
        };
        for clause in &policy.clauses {
            for peers in self.peers(&clause.peers, policy.direction) {
                for traffic in traffic(&clause.traffic) {
                    let matches = [&peers[..], &traffic[..]].concat();
                    self.push_verdict(&mut rules, clause, policy.direction, matches);
                }
            }
        }
        rules
    }

    /// What goes to containers otherwise than by a port of the node is judged where they are.
    fn judged_there(&self) -> Vec<Vec<Expression>> {
        use Expression::{DestinationIn, DestinationIsOf, OriginallyIn, Untranslated};
        let there = || Expression::Verdict(Verdict::Return);
        let no_node = DestinationIsOf { set: Set::Nodes, is: false };
        let mut rules = vec![vec![DestinationIn(self.base.pool()), no_node, Untranslated, there()]];
        rules.extend(self.base.vips().map(|vips| vec![OriginallyIn(*vips), there()]));
        rules
    }

    fn push_verdict(
        &self,
        rules: &mut Vec<Rule>,
        clause: &Clause,
        direction: Direction,
        matches: Vec<Expression>,
    ) {
        let counted = Some((clause.name.clone(), clause.action));
        let verdict = match clause.action {
            Action::Allow => Verdict::Return,
            Action::Deny => Verdict::Drop,
        };
        if (clause.action, direction) == (Action::Allow, Direction::Out) {
            // It is counted once: where it arrives.
            let within = Expression::DestinationIn(self.base.pool());
            let rule = [&matches[..], &[within, Expression::Verdict(verdict.clone())]].concat();
            rules.push(Rule { rule, counted: None });
        }
        let end = [Expression::Count, Expression::Verdict(verdict)];
        rules.push(Rule { rule: [&matches[..], &end[..]].concat(), counted });
    }

    /// Each alternative that the other end may match; none if it is nobody of this family.
    fn peers(&self, peers: &Peers, direction: Direction) -> Vec<Vec<Expression>> {
        let Peers::Some { set, subnets, outside } = peers else { return vec![Vec::new()] };
        let field = match direction {
            Direction::In => Field::Source,
            Direction::Out => Field::Destination,
        };
        let mut all = Vec::new();
        let number = set.as_ref().and_then(|key| self.numbers.get(&**key));
        all.extend(number.map(|number| vec![Expression::Peer { number: *number, field }]));
        let family = self.base.family();
        let within = |subnet: &Subnet| match direction {
            Direction::In => Expression::SourceIn(*subnet),
            Direction::Out => Expression::DestinationIn(*subnet),
        };
        let subnets = subnets.iter().filter(|subnet| family.has(&subnet.0));
        all.extend(subnets.map(|subnet| vec![within(subnet)]));
        if *outside {
            let pool = self.base.pool();
            all.extend(
                match direction {
                    Direction::In => [Expression::SourceNotIn(pool), Expression::In(Set::Nodes)],
                    Direction::Out => [
                        Expression::DestinationNotIn(pool),
                        Expression::DestinationIsOf { set: Set::Nodes, is: true },
                    ],
                }
                .map(|outside| vec![outside]),
            );
        }
        all
    }
}

/// Each alternative of what a connection may be for.
fn traffic(all: &[Traffic]) -> Vec<Vec<Expression>> {
    if all.is_empty() {
        return vec![Vec::new()];
    }
    let one = |traffic: &Traffic| match traffic {
        Traffic::Icmp => vec![Expression::Icmp],
        Traffic::Ports(range) => {
            let mut both = vec![Expression::Over(range.protocol)];
            if (range.first, range.last) != (0, u16::MAX) {
                both.push(Expression::DestinationPorts(range.first, range.last));
            }
            both
        }
    };
    all.iter().map(one).collect()
}

/// Whether a connection between containers that are in both may be judged otherwise.
pub(super) fn judge_otherwise(held: &Isolation, wanted: &Isolation) -> bool {
    let (old, new) = held.policies.changes(&wanted.policies);
    let (old_sets, new_sets) = held.sets.changes(&wanted.sets);
    if old.len() != new.len() || old_sets.len() != new_sets.len() {
        return true;
    }
    let mut moved: BTreeSet<IpAddr> = BTreeSet::new();
    let mut add = |before: &[IpAddr], after: &[IpAddr]| {
        let all = |list: &[IpAddr]| list.iter().copied().collect::<BTreeSet<IpAddr>>();
        moved.extend(all(before).symmetric_difference(&all(after)));
    };
    for (before, after) in old.iter().zip(&new) {
        let same = before.id == after.id && before.entry.clauses == after.entry.clauses;
        if !same {
            return true;
        }
        add(&before.entry.subjects, &after.entry.subjects);
    }
    for (before, after) in old_sets.iter().zip(&new_sets) {
        if before.id != after.id {
            return true;
        }
        add(&before.entry.addresses, &after.entry.addresses);
    }
    if moved.is_empty() {
        return false;
    }
    let has = |isolation: &Isolation| -> BTreeSet<IpAddr> {
        let all = isolation.groups.iter().flat_map(|group| &group.entry.addresses);
        all.filter(|address| moved.contains(address)).copied().collect()
    };
    // Who came or went has no connections.
    !has(held).is_disjoint(&has(wanted))
}

/// Whether a chain is a policy's.
pub(crate) fn is_chain(name: &str) -> bool {
    name.starts_with("policy-")
}
