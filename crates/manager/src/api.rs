//! Reception: what people and their tools call.
//!
//! Who are you, may you, is it well-formed, is it there; then a transaction.
//! No rule of the cluster lives here: those are the state's. Reads are of this
//! manager's view, at least as new as the caller asks; writes go to the leader
//! through the store, whichever manager takes them.

mod audit;
pub(crate) mod authorize;
mod backup;
mod capacity;
mod check;
pub(crate) mod cluster;
mod explain;
mod info;
mod jobs;
mod leave;
mod list;
mod lock;
mod mounts;
mod networks;
pub(crate) mod nodes;
mod number;
mod operators;
mod pin;
mod policies;
mod request;
mod resolve;
mod revisions;
mod serve;
mod services;
mod simulate;
pub(crate) mod table;
mod tasks;
mod token;
mod wait;
mod watch;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tonic::{Code, Request, Status};
use tracing::Instrument;
use warren_state::State;
use warren_state::change::Transaction;
use warren_store::ProposeError;

use crate::core::Core;
use crate::metrics::Metrics;
use crate::quorum;
use crate::refusal::Refusal;
use authorize::{Who, authorize};
use number::{Number, Numbered};
use table::Rpc;

/// How long a read waits for the revision that it is to see.
const REVISION_WAIT_MS: u64 = 5000;
/// For a majority to come back: with what it took to see that it is gone less than 4 s.
const SOON: Duration = Duration::from_millis(2000);
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
    Q: Numbered + Send + Sync,
    W: Future<Output = Result<A, Status>> + Send,
{
    let number = Number::of(request.get_ref());
    let span = tracing::debug_span!(
        parent: &core.span, "call", method = rpc.as_str(), request_id = %number
    );
    // Too dear for every call, unless somebody wants to know; whose line it is must be known always.
    let span = if span.is_disabled() { core.span.clone() } else { span };
    // In a box without a name: futures within futures grow too deep for the compiler.
    let answered: Pin<Box<dyn Future<Output = Result<A, Status>> + Send + '_>> = Box::pin(async {
        let outcome = match authorize(core, rpc, &request).await {
            Ok(who) => work(Arc::clone(core), who, request.into_inner()).await,
            Err(refusal) => Err(refusal.into()),
        };
        let refused = outcome.as_ref().err();
        if let Some(status) = refused {
            tell(rpc, number, status);
        }
        note(&core.metrics, rpc, refused.map_or(Code::Ok, Status::code));
        outcome
    });
    answered.instrument(span).await
}

/// Changes that are refused, and callers who may not, are for people; the rest is for who looks
/// for it.
fn tell(rpc: Rpc, number: Number, status: &Status) {
    let (method, code) = (rpc.as_str(), status.code());
    let stranger = matches!(code, Code::Unauthenticated | Code::PermissionDenied);
    let why = status.message();
    if number.is_given() {
        tracing::info!(method, request_id = %number, ?code, why, "call refused");
    } else if stranger {
        tracing::info!(method, ?code, why, "call refused");
    } else {
        tracing::debug!(method, ?code, why, "call refused");
    }
}

fn note(metrics: &Metrics, rpc: Rpc, code: Code) {
    let code = match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
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
    proposed(core, outcome)
}

/// The same after managers were out of touch for a while already: who asked is told in time that
/// there is no majority.
async fn propose_soon(core: &Core, transaction: Transaction) -> Result<u64, Refusal> {
    let outcome = core.store.propose_within(transaction, SOON).await;
    proposed(core, outcome)
}

fn proposed(core: &Core, outcome: Result<u64, ProposeError>) -> Result<u64, Refusal> {
    let outcome = outcome.map_err(|error| Refusal::of_propose(&core.store.view(), error));
    outcome.inspect(|revision| tracing::debug!(revision, "changed"))
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
            Err(refusal) if refusal.code == Code::Aborted && race < RACES_MAX => race += 1,
            outcome => return outcome,
        }
    }
}
