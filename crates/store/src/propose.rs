//! From callers to entries: many transactions, one entry, one sync.
//!
//! The leader stamps the time here, the only moment when an entry meets a
//! clock: never earlier than the entry before.

use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::{AcqRel, Acquire};

use prost::Message;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use warren_base::clock::{Clock, Steady};
use warren_model::Time;
use warren_proto::v1;
use warren_state::change::{Mutation, Outcome, Rejection, Transaction};

use crate::codec;
use crate::log::Log;
use crate::metrics::StoreMetrics;
use crate::publish::Published;
use crate::raft::{Node, SubmitError, Submitted};

/// Of one encoded mutation, that is, of the object in it.
pub const OBJECT_BYTES_MAX: usize = 512 << 10;
/// Of one encoded transaction: an entry must not hold up heartbeats on a slow link.
pub const TRANSACTION_BYTES_MAX: usize = 1 << 20;
/// Transactions are put together into one entry up to this; a larger one goes by itself.
const ENTRY_BYTES: usize = 256 << 10;
const ENTRY_TRANSACTIONS: usize = 512;
/// Callers that wait in line; more wait for a place in it.
pub(crate) const QUEUE_LEN: usize = 1024;

/// Why a transaction was not applied, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The state refused it; nothing was changed.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// Nothing was changed; ask the leader.
    #[error("this node does not lead the managers")]
    NotLeader { leader: Option<u64> },
    /// Nothing was changed, and never will be by this transaction.
    #[error("{what} has {size}, at most {max} are allowed")]
    TooLarge { what: &'static str, size: usize, max: usize },
    /// Nothing was changed: no majority of the managers answered in time.
    #[error("no majority of the managers answers")]
    NoQuorum,
    /// Nothing was changed.
    #[error("the disk of the store is full")]
    DiskFull,
    /// It may have been applied or not: ask again with the same request id.
    #[error("the change was under way when the leader was lost or a majority did not answer")]
    Unknown,
    /// It may have been applied or not: ask again with the same request id.
    #[error("the store has stopped{}", because(why))]
    Stopped { why: String },
}

fn because(why: &str) -> String {
    if why.is_empty() { String::new() } else { format!(": {why}") }
}

impl ProposeError {
    pub(crate) fn stopped() -> Self {
        Self::Stopped { why: String::new() }
    }
}

impl From<SubmitError> for ProposeError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::NotLeader { leader } => Self::NotLeader { leader },
            SubmitError::Unknown => Self::Unknown,
            SubmitError::Stopped(why) => Self::Stopped { why },
        }
    }
}

/// A transaction on its way.
pub(crate) struct Proposal {
    wire: v1::Transaction,
    len: usize,
    answer: oneshot::Sender<Result<u64, ProposeError>>,
    taken: Arc<AtomicU8>,
}

/// Nobody has it yet.
const WAITING: u8 = 0;
/// It is in an entry.
const TAKEN: u8 = 1;
/// Its caller gave up before.
const GIVEN_UP: u8 = 2;

/// The caller's side of a proposal.
pub(crate) struct Waiting {
    answered: oneshot::Receiver<Result<u64, ProposeError>>,
    taken: Arc<AtomicU8>,
}

impl Waiting {
    /// What became of it, or by `deadline` what is known: nothing was done, or it is unknown.
    pub(crate) async fn answer(self, deadline: Instant) -> Result<u64, ProposeError> {
        match tokio::time::timeout_at(deadline, self.answered).await {
            Ok(Ok(answer)) => answer,
            // Dropped: by a store that is ending, before or after it began with it.
            Ok(Err(_)) if self.taken.load(Acquire) == WAITING => {
                Err(ProposeError::NotLeader { leader: None })
            }
            Ok(Err(_)) => Err(ProposeError::stopped()),
            Err(_) => {
                let given_up = self.taken.compare_exchange(WAITING, GIVEN_UP, AcqRel, Acquire);
                Err(if given_up.is_ok() { ProposeError::NoQuorum } else { ProposeError::Unknown })
            }
        }
    }
}

impl Proposal {
    /// Encodes on the caller's thread, and refuses what is too large.
    pub(crate) fn new(transaction: &Transaction) -> Result<(Self, Waiting), ProposeError> {
        Ok(Self::with(Self::check(transaction)?))
    }

    /// A transaction's wire form, unless it is too large.
    pub(crate) fn check(transaction: &Transaction) -> Result<v1::Transaction, ProposeError> {
        let wire = codec::transaction(transaction);
        within_limits(&wire, |at| transaction.mutations.get(at).map_or("", object_name))?;
        Ok(wire)
    }

    /// A transaction that another manager encoded.
    pub(crate) fn from_wire(wire: v1::Transaction) -> Result<(Self, Waiting), ProposeError> {
        within_limits(&wire, |_| "bytes of an object")?;
        Ok(Self::with(wire))
    }

    fn with(wire: v1::Transaction) -> (Self, Waiting) {
        let (answer, answered) = oneshot::channel();
        let taken = Arc::new(AtomicU8::new(WAITING));
        let len = wire.encoded_len();
        (Self { wire, len, answer, taken: taken.clone() }, Waiting { answered, taken })
    }

    /// Whether its caller still wants it; from now on its outcome may be unknown.
    fn take(&self) -> bool {
        self.taken.compare_exchange(WAITING, TAKEN, AcqRel, Acquire).is_ok()
    }
}

fn within_limits(
    wire: &v1::Transaction,
    name: impl Fn(usize) -> &'static str,
) -> Result<(), ProposeError> {
    let mutations = wire.mutations.len();
    let max = Transaction::MUTATIONS_MAX;
    if mutations > max {
        let what = "mutations in a transaction";
        return Err(ProposeError::TooLarge { what, size: mutations, max });
    }
    let sizes = wire.mutations.iter().map(Message::encoded_len).enumerate();
    let largest = sizes.max_by_key(|(_, size)| *size);
    if let Some((at, size)) = largest.filter(|(_, size)| *size > OBJECT_BYTES_MAX) {
        return Err(ProposeError::TooLarge { what: name(at), size, max: OBJECT_BYTES_MAX });
    }
    let size = wire.encoded_len();
    if size > TRANSACTION_BYTES_MAX {
        let (what, max) = ("bytes of a transaction", TRANSACTION_BYTES_MAX);
        return Err(ProposeError::TooLarge { what, size, max });
    }
    Ok(())
}

fn object_name(mutation: &Mutation) -> &'static str {
    match mutation {
        Mutation::SetCluster(_) | Mutation::Restored { .. } => "bytes of the cluster's settings",
        Mutation::CreateNode(_)
        | Mutation::DescribeNode { .. }
        | Mutation::SetNodeStatus { .. }
        | Mutation::SetAvailability { .. }
        | Mutation::SetRole { .. }
        | Mutation::SetLabels { .. }
        | Mutation::SetCertificate { .. }
        | Mutation::SetForgotten { .. }
        | Mutation::SetResources { .. }
        | Mutation::SetTaints { .. }
        | Mutation::RemoveNode { .. }
        | Mutation::SetRelays { .. }
        | Mutation::GrantBlock { .. } => "bytes of a node",
        Mutation::PutOperator(_) | Mutation::RemoveOperator { .. } => "bytes of an operator",
        Mutation::CreateNetwork { .. } | Mutation::RemoveNetwork { .. } => "bytes of a network",
        Mutation::CreatePolicy { .. } | Mutation::RemovePolicy { .. } => "bytes of a policy",
        Mutation::GrantVip { .. } | Mutation::ReleaseVip { .. } => "bytes of a virtual IP",
        Mutation::CreateService { .. }
        | Mutation::UpdateService { .. }
        | Mutation::RollBackService { .. }
        | Mutation::SetUpdate { .. }
        | Mutation::BeginRun { .. }
        | Mutation::SetHook { .. }
        | Mutation::EndRun { .. }
        | Mutation::PassSchedule { .. }
        | Mutation::Suspend { .. }
        | Mutation::RemoveService { .. }
        | Mutation::DropService { .. } => "bytes of a service",
        Mutation::CreateTask(_)
        | Mutation::PlaceTask { .. }
        | Mutation::SetDesired { .. }
        | Mutation::ExplainTask { .. }
        | Mutation::ReportTask { .. }
        | Mutation::DropTask { .. }
        | Mutation::PreemptTask { .. }
        | Mutation::ControlTask { .. } => "bytes of a task",
    }
}

/// Turns proposals into entries until the last caller is gone.
pub(crate) struct Proposer {
    pub(crate) node: Node,
    pub(crate) log: Log,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) published: Arc<Published>,
    /// Of entries that consensus has taken and not answered.
    pub(crate) places: Arc<Semaphore>,
    pub(crate) metrics: Arc<StoreMetrics>,
}

impl Proposer {
    pub(crate) async fn run(self, proposals: &mut mpsc::Receiver<Proposal>) {
        let mut steady = Steady::default();
        while let Some(first) = proposals.recv().await {
            // Waiting for a place is when others join the line.
            let Ok(place) = self.places.clone().acquire_owned().await else { return };
            let (wires, answers) = gather(first, proposals);
            if wires.is_empty() {
                continue;
            }
            if !self.log.has_room() {
                answers
                    .into_iter()
                    .for_each(|answer| drop(answer.send(Err(ProposeError::DiskFull))));
                continue;
            }
            let floor = self.published.view().time();
            let (wall, monotonic) = (self.clock.now_ms(), self.clock.monotonic_ms());
            let time = Time(steady.now_ms(wall, floor.0, monotonic));
            let payload = codec::encode_entry(time, wires);
            StoreMetrics::count(&self.metrics.batches);
            let done = move |submitted| {
                drop(place);
                tell(answers, submitted);
            };
            self.node.submit(payload, done).await;
        }
    }
}

type Answers = Vec<oneshot::Sender<Result<u64, ProposeError>>>;

/// Everyone who still waits, as far as an entry has room.
fn gather(
    first: Proposal,
    proposals: &mut mpsc::Receiver<Proposal>,
) -> (Vec<v1::Transaction>, Answers) {
    let (mut wires, mut answers, mut bytes) = (Vec::new(), Vec::new(), 0);
    let mut next = Some(first);
    while let Some(proposal) = next {
        if proposal.take() {
            bytes += proposal.len;
            wires.push(proposal.wire);
            answers.push(proposal.answer);
        }
        if bytes >= ENTRY_BYTES || wires.len() >= ENTRY_TRANSACTIONS {
            break;
        }
        next = proposals.try_recv().ok();
    }
    (wires, answers)
}

/// A caller who is gone does not hear; its transaction was applied all the same.
fn tell(answers: Answers, submitted: Submitted) {
    match submitted {
        Ok(outcomes) => {
            for (answer, outcome) in answers.into_iter().zip(outcomes) {
                let _ = answer.send(match outcome {
                    Outcome::Applied { revision } | Outcome::Repeated { revision } => Ok(revision),
                    Outcome::Rejected(rejection) => Err(rejection.into()),
                });
            }
        }
        Err(error) => {
            for answer in answers {
                let _ = answer.send(Err(error.clone().into()));
            }
        }
    }
}
