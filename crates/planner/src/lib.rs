//! Decisions: what follows from the state.
//!
//! Pure and only ever run by the leader: state, heartbeats, random ids and the
//! clock go in, one transaction comes out. The caller proposes it and calls
//! again when the state changes or at `wake_at`. A pass right after applying a
//! pass changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use warren_model::Time;
use warren_model::id::{NodeId, ServiceId};
use warren_state::State;
use warren_state::change::Transaction;

/// What the leader hears of nodes; kept in memory, never replicated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beats {
    /// Nodes with an open session.
    pub connected: BTreeSet<NodeId>,
    /// When this leader began to observe: it declares nobody down before a window of its own.
    pub since: Time,
    /// When a node that is not connected was heard of last.
    pub last_seen: BTreeMap<NodeId, Time>,
}

/// Where ids come from: random bytes, seeded in simulations.
pub trait IdSource {
    fn id(&mut self) -> [u8; 10];
}

/// What to do now, and when to look again though nothing moved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Empty of mutations when nothing is to be done.
    pub transaction: Transaction,
    pub wake_at: Option<Time>,
    /// The plan was cut at its limit of mutations: apply it and call again.
    pub more: bool,
}

/// What the planner remembers between passes. May only skip work, never change a plan: a fresh
/// one gives the same.
#[derive(Debug, Clone, Default)]
pub struct Index {}

/// Whether a service is as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Convergence {
    Converged,
    /// On its way; what is missing, for people.
    Waiting {
        message: String,
    },
    /// It will not converge by itself; why.
    Failed {
        reason: String,
    },
}

/// Decides what follows from the state.
pub fn plan(
    _state: &State,
    _index: &mut Index,
    _beats: &Beats,
    _ids: &mut dyn IdSource,
    _now: Time,
) -> Plan {
    Plan::default()
}

/// Slots of a service that run, and that are wanted.
pub fn task_counts(_state: &State, _service: ServiceId) -> (u32, u32) {
    (0, 0)
}

/// Whether a service is as it is wanted.
pub fn progress(_state: &State, _service: ServiceId) -> Convergence {
    Convergence::Waiting { message: String::new() }
}
