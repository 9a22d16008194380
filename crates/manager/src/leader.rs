//! What the leader does: look, plan, propose, wait.
//!
//! A wake-up says that something moved, never what: start-up, failover and
//! steady state are one path. Nothing is polled; the planner's `wake_at` and
//! the tick that finds gaps (`beats`) are the only timers. The loop holds no
//! state of its own but the planner's index, which may only skip work and
//! starts empty with every term.

use std::sync::Arc;

use tokio::runtime::{Handle, RuntimeFlavor};
use tracing::Level;
use warren_base::clock::Steady;
use warren_base::rng::Rng;
use warren_model::Time;
use warren_model::node::NodeStatus;
use warren_planner::{Beats, IdSource, Index, Plan};
use warren_state::State;
use warren_state::change::{Mutation, Rejection, Transaction};
use warren_store::ProposeError;

use crate::core::Core;
use crate::metrics::count;
use crate::quorum;

/// Pause after a plan that was refused for another reason than a lost race, be it a full disk or a
/// fault of ours: it must not become a busy loop.
const REFUSED_MS: u64 = 1000;
/// Pause after leadership was lost: far below an election, far above a busy loop.
const LOST_MS: u64 = 10;
/// Tasks from which on a pass may take longer than a millisecond, so that the runtime is told
/// that this thread is busy.
const LARGE_TASKS: usize = 2000;

/// Does `work` in every term of this manager's, until the term or the work ends. Runs until the
/// store goes away.
pub(crate) async fn while_leading<W>(core: Arc<Core>, work: impl Fn(Arc<Core>) -> W + Send)
where
    W: Future<Output = ()> + Send,
{
    let mut leads = core.store.leader();
    let mut ended = core.store.ended();
    loop {
        if leads.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        tokio::select! {
            () = work(Arc::clone(&core)) => {}
            lost = leads.wait_for(|leads| !leads) => if lost.is_err() { return },
        }
        // The store may take a moment to notice what its answer told us.
        tokio::select! {
            _ = ended.wait_for(|ended| *ended) => return,
            () = core.clock.sleep(LOST_MS) => {}
        }
    }
}

/// One term of planning: until this manager does not lead any more.
pub(crate) async fn plan(core: Arc<Core>) {
    tracing::info!("planning");
    let now_ms = core.clock.monotonic_ms();
    core.beats.turn_page(now_ms, core.touch.is_after_outage(now_ms));
    let mut index = Index::default();
    let mut steady = Steady::default();
    let mut moved = core.store.watch();
    let mut beats = core.beats.watch();
    loop {
        moved.mark_unchanged();
        beats.mark_unchanged();
        let view = core.store.view();
        // Never before what the state has seen, should the wall clock be set back.
        let (wall, monotonic_ms) = (core.clock.now_ms(), core.clock.monotonic_ms());
        let now = Time(steady.now_ms(wall, view.time().0, monotonic_ms));
        let Plan { transaction, wake_at, more } = pass(&core, &view, &mut index, now);
        if !transaction.mutations.is_empty() {
            match propose(&core, &view, transaction).await {
                Next::Look => continue,
                Next::Yield => break,
            }
        }
        debug_assert!(!more, "a plan cut at its limit has mutations");
        let wake_at_ms =
            wake_at.map(|at| core.clock.monotonic_ms().saturating_add(at.since_ms(now)));
        tokio::select! {
            changed = moved.changed() => if changed.is_err() { break },
            _ = beats.changed() => {}
            () = core.sleep_until(wake_at_ms) => {}
            () = gap(&core) => {}
        }
    }
    tracing::info!("no longer planning");
}

/// Resolves after this process was held up: what is believed of nodes is to be looked at again.
/// Meanwhile hears those managers that have no agent to beat for them.
async fn gap(core: &Core) {
    loop {
        core.clock.sleep(core.beats.pace_ms()).await;
        let now_ms = core.clock.monotonic_ms();
        for (node, silent_ms) in quorum::heard(core) {
            core.beats.heard(node, now_ms.saturating_sub(silent_ms), 0);
        }
        if core.beats.tick(now_ms) {
            core.metrics.beat_gaps.inc();
            tracing::warn!("held up for a while: silence of nodes meanwhile does not count");
            return;
        }
    }
}

enum Next {
    Look,
    /// Not ours to decide any more.
    Yield,
}

async fn propose(core: &Core, view: &State, transaction: Transaction) -> Next {
    let notable = notable(&transaction.mutations);
    let error = match core.store.propose_here(transaction).await {
        Ok(revision) => {
            notable.iter().for_each(|mutation| tell(view, mutation, revision));
            count(&core.metrics.proposals, "result", "ok");
            // Plans may follow each other without end; others have work on this thread too.
            tokio::task::yield_now().await;
            return Next::Look;
        }
        // Someone wrote first. Look again, never patch a plan.
        Err(ProposeError::Rejected(Rejection::Stale { .. } | Rejection::AddressTaken { .. })) => {
            count(&core.metrics.proposals, "result", "stale");
            tokio::task::yield_now().await;
            return Next::Look;
        }
        Err(error) => error,
    };
    count(&core.metrics.proposals, "result", "failed");
    match error {
        ProposeError::NotLeader { .. }
        | ProposeError::NoQuorum
        | ProposeError::Unknown
        | ProposeError::Stopped { .. } => {
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

/// What of a plan is to be told once it holds: of placements only if somebody wants to know.
fn notable(mutations: &[Mutation]) -> Vec<Mutation> {
    let placements = tracing::enabled!(Level::DEBUG);
    let is_notable = |mutation: &&Mutation| match mutation {
        Mutation::SetNodeStatus { .. } | Mutation::ExplainTask { .. } => true,
        Mutation::CreateTask(_)
        | Mutation::PlaceTask { .. }
        | Mutation::SetDesired { .. }
        | Mutation::DropTask { .. } => placements,
        _ => false,
    };
    mutations.iter().filter(is_notable).cloned().collect()
}

fn tell(view: &State, mutation: &Mutation, revision: u64) {
    let service = |task| view.task(task).map(|task| tracing::field::display(task.service));
    match mutation {
        Mutation::SetNodeStatus { id, status } => {
            let what = match status {
                NodeStatus::Ready => "node is ready",
                NodeStatus::Down => "node is down",
            };
            tracing::info!(node_id = %id, revision, "{what}");
        }
        Mutation::ExplainTask { id, error } => {
            let service_id = service(*id);
            tracing::info!(task_id = %id, service_id, revision, error, "a task cannot be placed");
        }
        Mutation::CreateTask(task) => tracing::debug!(
            task_id = %task.id, service_id = %task.service, slot = task.slot,
            on = task.node.map(tracing::field::display), revision, "task made"
        ),
        Mutation::PlaceTask { id, node, .. } => {
            tracing::debug!(task_id = %id, service_id = service(*id), on = %node, revision, "task placed");
        }
        Mutation::SetDesired { id, desired } => {
            tracing::debug!(task_id = %id, service_id = service(*id), ?desired, revision, "task ended");
        }
        Mutation::DropTask { id } => {
            tracing::debug!(task_id = %id, service_id = service(*id), revision, "task forgotten");
        }
        _ => {}
    }
}

/// One look. Runs where it is called: elections are on the store's own thread, and a pass is cut
/// at the planner's limit of mutations.
fn pass(core: &Core, view: &State, index: &mut Index, now: Time) -> Plan {
    let begun_ms = core.clock.monotonic_ms();
    // For people who look at figures; nothing depends on it.
    let clock = std::time::Instant::now();
    core.beats.keep(view.nodes().len(), |node| view.node(node).is_some());
    core.beats.look(view, begun_ms);
    let wall = Some(Time(core.clock.now_ms()));
    let beats = Beats { wall, ..core.beats.read(now, begun_ms) };
    let mut ids = Ids(core.rng.as_ref());
    let mut plan = || warren_planner::plan(view, index, &beats, &mut ids, now);
    let many_threads = Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread;
    let plan = if many_threads && view.tasks().len() > LARGE_TASKS {
        tokio::task::block_in_place(plan)
    } else {
        plan()
    };
    core.metrics.plans.inc();
    core.metrics.plan_seconds.observe(clock.elapsed().as_secs_f64());
    plan
}

struct Ids<'a>(&'a dyn Rng);

impl IdSource for Ids<'_> {
    fn id(&mut self) -> [u8; 10] {
        self.0.id_bytes()
    }
}
