//! Nodes that do not reach each other over the tunnel, and who passes on what they send.
//!
//! Nodes say whom they do not reach ([`Cut`]); the leader keeps that in memory ([`book`]) and
//! chooses, for each pair that is cut, one node that reaches both ([`decide`]). The choice is a fact
//! of the state, kept by the node with the smaller id: rare, told to everybody by the same way as
//! all that nodes must know, and the same after a change of leaders.
//!
//! A choice stands until both ends say that they reach each other, or somebody better has to take
//! over: who passes on is gone, or carries nothing. A leader undoes nothing before it has heard both
//! ends itself.
//!
//! Pure, but for [`run`]. Not here: finding out (`warren_wireguard`), passing on (data planes).

pub(crate) mod book;
pub(crate) mod run;

use std::collections::{BTreeMap, BTreeSet};

use warren_model::node::{Availability, Node, NodeStatus, Relay};
use warren_model::{NodeId, OverlayKind};
use warren_state::State;

/// Of the cluster: of a split in two halves managers hear one half alone, so more than a few say
/// that relays are no answer.
const RELAYS_MAX: usize = 1024;

/// A node that another does not reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) node: NodeId,
    /// Who should pass on, and carries nothing either.
    pub(crate) via_lost: Option<NodeId>,
}

/// Two nodes, the smaller id first.
type Ends = [NodeId; 2];

fn ends(one: NodeId, two: NodeId) -> Ends {
    if one < two { [one, two] } else { [two, one] }
}

/// What is decided from.
pub(crate) struct Look<'a> {
    pub(crate) view: &'a State,
    /// What nodes said last; who said nothing in this term is not in it.
    pub(crate) told: &'a BTreeMap<NodeId, Vec<Cut>>,
    /// Who does not carry for whom.
    pub(crate) failed: &'a BTreeSet<(Ends, NodeId)>,
}

/// Nodes whose relays are to be others, with all that each is to have.
pub(crate) fn decide(look: &Look<'_>) -> BTreeMap<NodeId, Vec<Relay>> {
    let mut draft = Draft::new(look);
    for (ends, relay) in kept(look.view) {
        draft.renew(ends, relay);
    }
    for ends in draft.cut.clone() {
        draft.begin(ends);
    }
    draft.changes()
}

/// All relays, by their ends.
fn kept(view: &State) -> Vec<(Ends, Relay)> {
    let of = |node: &Node| {
        let id = node.id;
        node.relays.iter().map(move |relay| ([id, relay.peer], *relay)).collect::<Vec<_>>()
    };
    view.nodes().filter(|node| !node.relays.is_empty()).flat_map(of).collect()
}

/// Pairs of which one says that it does not reach the other.
fn cut(look: &Look<'_>) -> BTreeSet<Ends> {
    let said = look.told.iter().flat_map(|(node, cuts)| cuts.iter().map(|cut| (*node, cut.node)));
    let members = said.filter(|(one, two)| {
        let carries = |id| look.view.node(id).is_some_and(carries);
        one != two && carries(*one) && carries(*two)
    });
    members.map(|(one, two)| ends(one, two)).collect()
}

fn carries(node: &Node) -> bool {
    node.description.overlay_key != [0; 32]
}

/// Relays as they are to be.
struct Draft<'a> {
    look: &'a Look<'a>,
    is_carried: bool,
    cut: BTreeSet<Ends>,
    relays: BTreeMap<Ends, Relay>,
}

impl<'a> Draft<'a> {
    fn new(look: &'a Look<'a>) -> Self {
        let overlay = look.view.cluster().map(|cluster| cluster.overlay);
        let is_carried = overlay == Some(OverlayKind::Wireguard);
        // All that there are, so that none of them is in the way of the others when one is renewed.
        let relays = kept(look.view).into_iter().collect();
        let cut = if is_carried { cut(look) } else { BTreeSet::new() };
        Self { look, is_carried, cut, relays }
    }

    /// One that is there: it stays, goes another way, or ends.
    fn renew(&mut self, ends: Ends, relay: Relay) {
        self.relays.remove(&ends);
        let view = self.look.view;
        let both_told = ends.iter().all(|end| self.look.told.contains_key(end));
        let are_members = ends.iter().all(|end| view.node(*end).is_some());
        let is_needed = self.cut.contains(&ends) || !both_told;
        if !self.is_carried || !are_members || !is_needed {
            return;
        }
        // One that is away for a moment goes on when it is back, if nobody else can.
        let stays = view.node(relay.via).map(|_| relay);
        let chosen = match self.may_carry(relay.via, ends) {
            true => Some(relay),
            false => self.choose(ends).or(stays),
        };
        self.relays.extend(chosen.map(|relay| (ends, relay)));
    }

    /// One that is not there yet, if somebody can.
    fn begin(&mut self, ends: Ends) {
        let [owner, _] = ends;
        let of_owner = self.relays.keys().filter(|[one, _]| *one == owner).count();
        let is_full = self.relays.len() >= RELAYS_MAX || of_owner >= Relay::MAX;
        let is_heard = |end: &NodeId| {
            let node = self.look.view.node(*end);
            self.look.told.contains_key(end)
                && node.is_some_and(|node| node.status == NodeStatus::Ready)
        };
        if is_full || self.relays.contains_key(&ends) || !ends.iter().all(is_heard) {
            return;
        }
        let chosen = self.choose(ends);
        self.relays.extend(chosen.map(|relay| (ends, relay)));
    }

    /// Whether `via` is there and reaches both, as far as anybody says.
    fn may_carry(&self, via: NodeId, pair: Ends) -> bool {
        let is_open = self.look.view.node(via).is_some_and(|node| {
            node.status == NodeStatus::Ready
                && node.availability != Availability::Drain
                && carries(node)
        });
        let reaches = |end: NodeId| {
            let way = ends(via, end);
            via != end && !self.cut.contains(&way) && !self.relays.contains_key(&way)
        };
        // Of a version that passes nothing on nothing is heard.
        is_open
            && self.look.told.contains_key(&via)
            && pair.into_iter().all(reaches)
            && !self.look.failed.contains(&(pair, via))
    }

    /// The one that passes on least, of those the first.
    fn choose(&self, pair: Ends) -> Option<Relay> {
        let all = self.look.view.nodes().map(|node| node.id);
        let could = all.filter(|via| self.may_carry(*via, pair));
        let (_, via, slot) = could
            .filter_map(|via| {
                let load = self.relays.values().filter(|relay| relay.via == via).count();
                Some((load, via, self.slot(via, pair)?))
            })
            .min()?;
        let [_, peer] = pair;
        Some(Relay { peer, via, slot })
    }

    /// A port at which neither end finds anybody else.
    fn slot(&self, via: NodeId, pair: Ends) -> Option<u8> {
        let shares = |ends: &Ends| ends.iter().any(|end| pair.contains(end));
        let of_via = self.relays.iter().filter(|(ends, relay)| relay.via == via && shares(ends));
        let taken: BTreeSet<u8> = of_via.map(|(_, relay)| relay.slot).collect();
        (0..Relay::SLOTS).find(|slot| !taken.contains(slot))
    }

    fn changes(self) -> BTreeMap<NodeId, Vec<Relay>> {
        let mut wanted: BTreeMap<NodeId, Vec<Relay>> = BTreeMap::new();
        for ([owner, _], relay) in &self.relays {
            wanted.entry(*owner).or_default().push(*relay);
        }
        let owners = self.look.view.nodes().filter(|node| !node.relays.is_empty());
        for owner in owners {
            wanted.entry(owner.id).or_default();
        }
        let differs = |id: &NodeId, relays: &Vec<Relay>| {
            self.look.view.node(*id).is_some_and(|node| node.relays != *relays)
        };
        wanted.retain(|id, relays| differs(id, relays));
        wanted
    }
}

#[cfg(test)]
mod tests;
