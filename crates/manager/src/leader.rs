//! The one loop of the leader: look, plan, propose, wait.
//!
//! A wake-up says that something moved, never what: start-up, failover and
//! steady state are one path. Nothing is polled; the planner's `wake_at` is the
//! only timer. The loop holds no state of its own but the planner's index,
//! which may only skip work and starts empty with every term.

use std::sync::Arc;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::watch;
use warren_base::rng::Rng;
use warren_model::Time;
use warren_planner::{IdSource, Index, Plan};
use warren_state::State;
use warren_state::change::{Rejection, Transaction};
use warren_store::ProposeError;

use crate::core::Core;

/// Pause after a plan that was refused for another reason than a lost race, be it a full disk or a
/// fault of ours: it must not become a busy loop.
const REFUSED_MS: u64 = 1000;
/// Pause after leadership was lost: far below an election, far above a busy loop.
const LOST_MS: u64 = 10;
/// Tasks from which on a pass may take longer than a millisecond, so that the runtime is told
/// that this thread is busy.
const LARGE_TASKS: usize = 2000;

/// Runs until the store goes away.
pub(crate) async fn run(core: Arc<Core>) {
    let mut leads = core.store.leader();
    loop {
        if leads.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        tracing::info!("planning");
        core.beats.turn_page(core.now());
        lead(&core, &mut leads).await;
        tracing::info!("no longer planning");
        // The store may take a moment to notice what its answer told us.
        let mut ended = core.store.ended();
        tokio::select! {
            _ = ended.wait_for(|ended| *ended) => return,
            () = core.clock.sleep(LOST_MS) => {}
        }
    }
}

/// One term: until this manager does not lead any more.
async fn lead(core: &Core, leads: &mut watch::Receiver<bool>) {
    let mut index = Index::default();
    let mut moved = core.store.watch();
    let mut beats = core.beats.watch();
    loop {
        moved.mark_unchanged();
        beats.mark_unchanged();
        let view = core.store.view();
        // Never before what the state has seen, should the wall clock be set back.
        let now = core.now().max(view.time());
        let Plan { transaction, wake_at, more } = pass(core, &view, &mut index, now);
        if !transaction.mutations.is_empty() {
            match propose(core, transaction).await {
                Next::Look => continue,
                Next::Yield => return,
            }
        }
        debug_assert!(!more, "a plan cut at its limit has mutations");
        let wake_at_ms =
            wake_at.map(|at| core.clock.monotonic_ms().saturating_add(at.since_ms(now)));
        tokio::select! {
            lost = leads.wait_for(|leads| !leads) => { let _ = lost; return }
            changed = moved.changed() => if changed.is_err() { return },
            _ = beats.changed() => {}
            () = core.sleep_until(wake_at_ms) => {}
        }
    }
}

enum Next {
    Look,
    /// Not ours to decide any more.
    Yield,
}

async fn propose(core: &Core, transaction: Transaction) -> Next {
    let error = match core.store.propose(transaction).await {
        // Stale: someone wrote first. Look again, never patch a plan.
        Ok(_) | Err(ProposeError::Rejected(Rejection::Stale { .. })) => {
            // Plans may follow each other without end; others have work on this thread too.
            tokio::task::yield_now().await;
            return Next::Look;
        }
        Err(error) => error,
    };
    match error {
        ProposeError::NotLeader { .. } | ProposeError::Unknown | ProposeError::Stopped { .. } => {
            tracing::warn!(%error, "propose a plan");
            Next::Yield
        }
        ProposeError::Rejected(_) | ProposeError::TooLarge { .. } | ProposeError::DiskFull => {
            tracing::error!(%error, "propose a plan");
            core.clock.sleep(REFUSED_MS).await;
            Next::Look
        }
    }
}

/// One look. Runs where it is called: elections are on the store's own thread, and a pass is cut
/// at the planner's limit of mutations.
fn pass(core: &Core, view: &State, index: &mut Index, now: Time) -> Plan {
    let beats = core.beats.read();
    let mut ids = Ids(core.rng.as_ref());
    let mut plan = || warren_planner::plan(view, index, &beats, &mut ids, now);
    let many_threads = Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread;
    if many_threads && view.tasks().len() > LARGE_TASKS {
        tokio::task::block_in_place(plan)
    } else {
        plan()
    }
}

struct Ids<'a>(&'a dyn Rng);

impl IdSource for Ids<'_> {
    fn id(&mut self) -> [u8; 10] {
        self.0.id_bytes()
    }
}
