//! Decisions: what follows from the state.
//!
//! Pure and only ever run by the leader: state, heartbeats, random ids and the
//! clock go in, one transaction comes out. The caller proposes it and calls
//! again when the state changes, when a node is heard that was silent, or at
//! `wake_at`; there is no other timer, and beats as such wake nobody.
//!
//! Stages, in order: liveness of nodes, the default network, blocks of new nodes, then for each
//! service: hooks (commands before and after), watch (how an update stands), virtual IPs, orchestrate (slots wanted), roll out (which slots get
//! the new template now), replace (failed, lost), place (a node and an address),
//! balance (what a node that came later takes over), reap (history). Jobs have a pass of their
//! own (`job`). A new task is created with its place, so a new service costs
//! one plan.
//!
//! Invariants (tested on random clusters):
//! - a pass right after applying a pass changes nothing;
//! - at most `parallelism` slots of a service are being renewed;
//! - the [`Index`] only skips work: a fresh one gives the same plan;
//! - a task is ended for another only if that has a higher priority, asks for it and fits nowhere;
//! - what runs where nobody is heard has no successor before its service allows
//!   one.
//!
//! Not here: restarts in place (the agent), what tasks really use (reservations
//! are promises), moving what runs well without an event (`balance`).

mod address;
mod balance;
mod blocks;
mod draft;
mod drain;
mod explain;
mod hooks;
mod job;
mod liveness;
mod nodes;
mod orchestrate;
mod place;
mod progress;
mod reap;
mod replace;
mod rollout;
mod service;
mod simulate;
mod slot;
mod vips;
mod watch;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use warren_model::Time;
use warren_model::id::{NodeId, ServiceId};
use warren_model::service::Service;
use warren_state::State;
use warren_state::change::Transaction;

use crate::draft::Draft;
pub use crate::explain::{
    Amounts, Decision, Explanation, Finding, NodeExplanation, Room, Tenant, Verdict, decisions,
    explain_node, explain_service, explain_task, is_pending,
};
pub use crate::job::{Standing, next_time, run_progress, standing};
use crate::liveness::Silence;
pub use crate::liveness::{BEATS_MISSED, RETURN_MS, SUSPICION_MAX_MS, SUSPICION_MS, suspicion_ms};
pub use crate::progress::{Convergence, completed_count, patience, progress, task_counts};
pub use crate::simulate::{
    Change, STEPS_MAX, SimulateError, Simulation, Supposed, is_left_behind, like, simulate,
    slot_name,
};
pub use crate::watch::update_state;

/// What the leader hears of nodes; kept in memory, never replicated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beats {
    /// When this leader began to observe: it declares nobody down before a window of its own.
    pub since: Time,
    /// Nodes that it has not heard since then have at least this long to find it: [`RETURN_MS`]
    /// after a time without any leader, else 0.
    pub unheard_ms: u64,
    /// What the leader's wall clock says, which is what schedules go by: behind the time of the plan
    /// where it was set back. Absent: that time.
    pub wall: Option<Time>,
    /// How far beats of a node are apart, as large clusters have it: some missed ones say nothing.
    /// 0: less than would matter.
    pub beat_ms: u64,
    /// Nodes that it heard of; one whose session ended keeps its last. Of a node that the state
    /// held for down before: a moment since which it was certainly silent.
    pub seen: BTreeMap<NodeId, Seen>,
}

/// The last word of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// By the leader's clock, the same that [`plan`] is given.
    pub at: Time,
    /// Measured between the node and its manager.
    pub rtt_ms: u32,
}

/// Where ids come from: random bytes, seeded in simulations.
pub trait IdSource {
    fn id(&mut self) -> [u8; 10];
}

impl<T: IdSource + ?Sized> IdSource for &mut T {
    fn id(&mut self) -> [u8; 10] {
        (**self).id()
    }
}

/// What to do now, and when to look again though nothing moved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Empty of mutations when nothing is to be done. Its expectations name the services written
    /// and the nodes that tasks were placed on.
    pub transaction: Transaction,
    /// Call again at this time at the latest, or, like always, when the state has changed.
    pub wake_at: Option<Time>,
    /// The plan was cut at [`MUTATIONS_MAX`]: apply it and call again.
    pub more: bool,
}

/// Of one plan: a slice of work that never holds up the log (half of what a transaction may have).
pub const MUTATIONS_MAX: usize = 1000;

/// What the planner remembers between passes: services with nothing to do.
///
/// May only skip work, never change a plan: a fresh one gives the same.
#[derive(Debug, Clone, Default)]
pub struct Index {
    revision: u64,
    topology: u64,
    silent: Vec<(NodeId, Option<Silence>)>,
    idle: BTreeMap<ServiceId, Idle>,
}

/// A service had nothing to do at this activity of its own, and will not before `wake_at`.
#[derive(Debug, Clone, Copy)]
struct Idle {
    activity: u64,
    wake_at: Option<Time>,
    /// [`State::roomier`] at that time, if something has no place.
    roomier: Option<u64>,
}

impl Index {
    /// Forgets everything if nodes changed, or for how long they have been silent: they matter to
    /// every service.
    fn follow(&mut self, state: &State, silent: Vec<(NodeId, Option<Silence>)>) {
        let back = state.revision() < self.revision;
        if state.topology() != self.topology || silent != self.silent || back {
            self.idle.clear();
        }
        self.silent = silent;
        // Dropped services are few and cheap to keep, but not for ever.
        if self.idle.len() > 2 * state.services().len() {
            self.idle.retain(|id, _| state.service(*id).is_some());
        }
        (self.revision, self.topology) = (state.revision(), state.topology());
    }

    fn idle(&self, id: ServiceId, activity: u64, roomier: u64, now: Time) -> Option<Idle> {
        let idle = *self.idle.get(&id)?;
        let due = idle.wake_at.is_some_and(|at| at <= now);
        let room = idle.roomier.is_some_and(|before| before != roomier);
        (idle.activity == activity && !due && !room).then_some(idle)
    }
}

/// By priority, the highest first: what has room for one only is for that one. Then by id.
fn in_order(state: &State) -> Vec<&Service> {
    let mut services: Vec<&Service> = state.services().collect();
    services.sort_by_key(|service| Reverse(service.spec.placement.priority));
    services
}

/// Decides what follows from the state; nothing before the cluster has settings.
pub fn plan(
    state: &State,
    index: &mut Index,
    beats: &Beats,
    ids: &mut dyn IdSource,
    now: Time,
) -> Plan {
    let Some(cluster) = state.cluster() else { return Plan::default() };
    let mut draft = Draft::new(state, cluster, ids, now);
    draft.wall = beats.wall.unwrap_or(draft.now);
    liveness::judge(&mut draft, beats);
    vips::make_default(&mut draft);
    blocks::grant_first(&mut draft);
    index.follow(state, draft.nodes.silent());
    // Services see nodes as they are about to be; what they conclude holds once that is applied.
    let calm = draft.is_empty();
    for service in in_order(state) {
        let activity = state.activity(service.id);
        if calm && let Some(idle) = index.idle(service.id, activity, state.roomier(), draft.now) {
            draft.wake(idle.wake_at);
            continue;
        }
        if !draft.room(1) {
            break;
        }
        let verdict = service::pass(&mut draft, service);
        draft.wake(verdict.wake_at);
        // Room that is held for others is given up without anything that the index would see.
        let may_be_held = draft.is_hungry() && verdict.unplaced;
        if calm && verdict.idle && !may_be_held {
            let roomier = verdict.unplaced.then(|| state.roomier());
            index.idle.insert(service.id, Idle { activity, wake_at: verdict.wake_at, roomier });
        }
    }
    draft.finish()
}
