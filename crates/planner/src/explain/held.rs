//! Room that is held for others: what those wait for that are looked at before counts as taken.
//!
//! Who holds what is nowhere written down: each plan finds it again. So does
//! this, with the code of the plan: services that come before are passed over a
//! draft that nobody carries out. Only where somebody may end others, or wait
//! for others that end.

use std::collections::BTreeMap;

use warren_model::placement::Preempt;
use warren_model::service::Service;
use warren_model::task::Task;
use warren_state::State;
use warren_state::change::Mutation;

use super::is_pending;
use crate::draft::{Draft, Hold, Moves};
use crate::nodes::Nodes;
use crate::{IdSource, in_order, service, slot_name};

/// Names in one line: more would not be read.
const NAMES_MAX: usize = 3;

/// Ids of what is never made.
struct Nameless(u64);

impl IdSource for Nameless {
    fn id(&mut self) -> [u8; 10] {
        self.0 += 1;
        let mut id = [0xff; 10];
        id[2..].copy_from_slice(&self.0.to_be_bytes());
        id
    }
}

/// Nodes as those leave them that are looked at before.
pub(super) struct Ahead<'a> {
    pub(super) nodes: Nodes<'a>,
    pub(super) moves: Moves,
    /// For whom room is held, by position of the node.
    held: BTreeMap<usize, Vec<String>>,
    /// Where room is held for the task itself.
    pub(super) own: Option<usize>,
}

impl Ahead<'_> {
    /// For whom room is held anywhere, as the end of a reason; nothing if for nobody.
    pub(super) fn all_holders(&self) -> String {
        let Some(at) = self.held.keys().next() else { return String::new() };
        let host = &self.nodes.site(*at).node.description.hostname;
        let elsewhere = if self.held.len() > 1 { " and elsewhere" } else { "" };
        self.holders(*at).map_or_else(String::new, |holders| {
            format!("; room on {host}{elsewhere} is held for {holders}")
        })
    }

    /// For whom room is held on a node: `top.1, top.2`.
    pub(super) fn holders(&self, at: usize) -> Option<String> {
        let names = self.held.get(&at)?;
        let rest = names.len().saturating_sub(NAMES_MAX);
        let mut text = names[..names.len().min(NAMES_MAX)].join(", ");
        if rest > 0 {
            text.push_str(&format!(" and {rest} more"));
        }
        Some(text)
    }
}

/// What a task of a service finds, or any of it.
pub(super) fn look<'a>(state: &'a State, service: &'a Service, task: Option<&Task>) -> Ahead<'a> {
    let own = service.spec.placement.priority;
    let before = |other: &Service| {
        let placement = &other.spec.placement;
        placement.preempt == Preempt::Lower && placement.priority >= own
    };
    if !state.services().any(before) {
        let (nodes, moves) = (Nodes::new(state), Moves::default());
        return Ahead { nodes, moves, held: BTreeMap::new(), own: None };
    }
    let waits = task.filter(|task| is_pending(task));
    let Some(task) = waits.filter(|_| service.spec.placement.preempt == Preempt::Lower) else {
        return pass(state, service, None).0;
    };
    let (mut with_own, placed) = pass(state, service, Some(task));
    if with_own.own.is_none() && !placed {
        return with_own;
    }
    let (ahead, _) = pass(state, service, None);
    Ahead { own: with_own.own.take(), ..ahead }
}

/// Passes over those before a service, and over itself for one of its tasks; whether that task got
/// a place.
fn pass<'a>(state: &'a State, service: &'a Service, task: Option<&Task>) -> (Ahead<'a>, bool) {
    let Some(cluster) = state.cluster() else {
        let (nodes, moves) = (Nodes::new(state), Moves::default());
        return (Ahead { nodes, moves, held: BTreeMap::new(), own: None }, false);
    };
    let mut draft = Draft::new(state, cluster, Nameless(0), state.time());
    for other in in_order(state) {
        if other.id == service.id {
            if task.is_some() {
                service::pass(&mut draft, other);
            }
            break;
        }
        service::pass(&mut draft, other);
    }
    let mine = |hold: &Hold<'_>| {
        task.is_some_and(|task| (hold.service.id, hold.slot) == (task.service, task.slot))
    };
    let own = draft.held.iter().find(|hold| mine(hold)).map(|hold| hold.site);
    let mut held: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for hold in draft.held.iter().filter(|hold| !mine(hold)) {
        held.entry(hold.site).or_default().push(slot_name(hold.service, hold.slot));
    }
    let placed = task.is_some_and(|task| {
        let is_it = |mutation: &Mutation| {
            matches!(mutation, Mutation::PlaceTask { id, .. } if *id == task.id)
        };
        draft.mutations().iter().any(is_it)
    });
    let (nodes, moves) = draft.into_ground();
    (Ahead { nodes, moves, held, own }, placed)
}
