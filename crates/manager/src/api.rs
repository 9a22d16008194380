//! Reception: what people and their tools call.
//!
//! Who are you, may you, is it well-formed, is it there; then a transaction.
//! No rule of the cluster lives here: those are the state's. Reads are of this
//! manager's view, at least as new as the caller asks; writes go to the leader
//! through the store, whichever manager takes them.

mod audit;
pub(crate) mod authorize;
mod backup;
mod check;
pub(crate) mod cluster;
mod info;
mod leave;
mod list;
mod lock;
pub(crate) mod nodes;
mod operators;
mod request;
mod resolve;
mod serve;
mod services;
pub(crate) mod table;
mod token;
mod wait;
mod watch;

use std::sync::Arc;

use tonic::{Request, Status};
use warren_state::State;
use warren_state::change::Transaction;

use crate::core::Core;
use crate::metrics::Metrics;
use crate::quorum;
use crate::refusal::Refusal;
use authorize::{Who, authorize};
use table::Rpc;

/// How long a read waits for the revision that it is to see.
const REVISION_WAIT_MS: u64 = 5000;
/// A change that was read, decided and lost to another is tried again so often.
pub(crate) const RACES_MAX: usize = 5;

/// The service that the command line calls.
#[derive(Clone)]
pub struct Control {
    core: Arc<Core>,
}

impl Control {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

/// One call: asks who it is, does the work, counts how it ended.
pub(crate) async fn call<Q, A, W>(
    core: &Arc<Core>,
    rpc: Rpc,
    request: Request<Q>,
    work: impl FnOnce(Arc<Core>, Who, Q) -> W + Send,
) -> Result<A, Status>
where
    Q: Send + Sync,
    W: Future<Output = Result<A, Status>> + Send,
{
    let outcome = match authorize(core, rpc, &request).await {
        Ok(who) => work(Arc::clone(core), who, request.into_inner()).await,
        Err(refusal) => Err(refusal.into()),
    };
    let code = match &outcome {
        Ok(_) => tonic::Code::Ok,
        Err(status) => status.code(),
    };
    note(&core.metrics, rpc, code);
    outcome
}

fn note(metrics: &Metrics, rpc: Rpc, code: tonic::Code) {
    let code = match code {
        tonic::Code::Ok => "OK",
        tonic::Code::Cancelled => "CANCELLED",
        tonic::Code::Unknown => "UNKNOWN",
        tonic::Code::InvalidArgument => "INVALID_ARGUMENT",
        tonic::Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        tonic::Code::NotFound => "NOT_FOUND",
        tonic::Code::AlreadyExists => "ALREADY_EXISTS",
        tonic::Code::PermissionDenied => "PERMISSION_DENIED",
        tonic::Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        tonic::Code::FailedPrecondition => "FAILED_PRECONDITION",
        tonic::Code::Aborted => "ABORTED",
        tonic::Code::OutOfRange => "OUT_OF_RANGE",
        tonic::Code::Unimplemented => "UNIMPLEMENTED",
        tonic::Code::Internal => "INTERNAL",
        tonic::Code::Unavailable => "UNAVAILABLE",
        tonic::Code::DataLoss => "DATA_LOSS",
        tonic::Code::Unauthenticated => "UNAUTHENTICATED",
    };
    metrics.calls.get_or_create(&[("method", rpc.as_str()), ("code", code)]).inc();
}

/// The state once it has reached `revision`.
pub(crate) async fn view_at(
    core: &Core,
    revision: u64,
    wait_ms: u64,
) -> Result<Arc<State>, Refusal> {
    let mut moved = core.store.watch();
    let reached = async {
        loop {
            let view = core.store.view();
            if view.revision() >= revision {
                return Some(view);
            }
            moved.changed().await.ok()?;
        }
    };
    let view = tokio::select! {
        view = reached => view,
        () = core.clock.sleep(wait_ms) => None,
    };
    view.ok_or_else(|| {
        let own = core.store.view().revision();
        Refusal::unavailable(format!("this manager is at revision {own}, not yet at {revision}"))
    })
}

/// The state for a read: as new as anything acknowledged before, if that is asked for.
async fn read(core: &Core, min_revision: u64, linearizable: bool) -> Result<Arc<State>, Refusal> {
    if linearizable {
        quorum::barrier(core).await?;
    }
    view_at(core, min_revision, REVISION_WAIT_MS).await
}

/// Applies a transaction and says at which revision.
pub(crate) async fn propose(core: &Core, transaction: Transaction) -> Result<u64, Refusal> {
    let outcome = core.store.propose(transaction).await;
    outcome.map_err(|error| Refusal::of_propose(&core.store.view(), error))
}

/// Looks, decides and writes; again when somebody else was faster. What `decide` makes must expect
/// what it looked at.
async fn change(
    core: &Core,
    mut decide: impl FnMut(&State) -> Result<Transaction, Refusal>,
) -> Result<u64, Refusal> {
    let mut race = 0;
    loop {
        let transaction = decide(&core.store.view())?;
        match propose(core, transaction).await {
            Err(refusal) if refusal.code == tonic::Code::Aborted && race < RACES_MAX => race += 1,
            outcome => return outcome,
        }
    }
}
