//! What the state accepts: transactions of typed mutations, and what becomes of them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use warren_model::cluster::Cluster;
use warren_model::defaults::Defaults;
use warren_model::device::Devices;
use warren_model::id::{NetworkId, NodeId, PolicyId, ServiceId, TaskId};
use warren_model::job::{Given, RunState};
use warren_model::network::{NetworkSpec, VipHolder};
use warren_model::node::{Availability, Description, Forgotten, Node, NodeStatus, Relay};
use warren_model::operator::{Operator, OperatorName};
use warren_model::placement::Taint;
use warren_model::policy::PolicySpec;
use warren_model::resources::Resources;
use warren_model::service::{Hook, ServiceSpec, UpdatePhase};
use warren_model::task::{Desired, Task, TaskControl, TaskStatus};
use warren_model::{NetworkName, PolicyName, ServiceName, Time, cluster::Subnet};

/// One change, applied whole or not at all with the rest of its transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mutation {
    /// Makes or replaces the cluster's settings. Its next number and epoch never go back, whatever
    /// is said here.
    SetCluster(Cluster),
    /// A node joins; a manager gets its number.
    CreateNode(Node),
    /// A node says what it is now.
    DescribeNode {
        id: NodeId,
        description: Description,
    },
    SetNodeStatus {
        id: NodeId,
        status: NodeStatus,
    },
    SetAvailability {
        id: NodeId,
        availability: Availability,
        /// Of a drain: what is left after so long ends, with or without a place elsewhere.
        deadline_ms: Option<u64>,
    },
    /// All nodes of larger ids that a node is cut off from, and who passes on.
    SetRelays {
        id: NodeId,
        relays: Vec<Relay>,
    },
    GrantBlock {
        id: NodeId,
        block: Subnet,
    },
    /// With each promotion a manager gets a number that no other ever had.
    SetRole {
        id: NodeId,
        manager: bool,
        worker: bool,
    },
    /// Replaces the labels that people gave.
    SetLabels {
        id: NodeId,
        labels: BTreeMap<String, String>,
    },
    /// The certificate that a node was given.
    SetCertificate {
        id: NodeId,
        key_hash: [u8; 32],
        not_after: Time,
        issuer_hash: [u8; 32],
    },
    /// What becomes of tasks that the last recovery made managers forget.
    SetForgotten {
        id: NodeId,
        forgotten: Forgotten,
    },
    /// Replaces what people say that a node has, what of all it has is not for tasks, and its
    /// defaults.
    SetResources {
        id: NodeId,
        generic: BTreeMap<String, u64>,
        system_reserved: Resources,
        /// Of its tasks that say nothing of it.
        defaults: Defaults,
    },
    /// Replaces a node's taints.
    SetTaints {
        id: NodeId,
        taints: Vec<Taint>,
    },
    /// Forgets a node and its tasks; it is refused until `keep_until`. Not while it is a manager,
    /// and unless forced not while it is up and has tasks that have not ended.
    RemoveNode {
        id: NodeId,
        keep_until: Time,
        force: bool,
    },
    /// Makes or replaces an operator.
    PutOperator(Operator),
    RemoveOperator {
        name: OperatorName,
    },
    /// The state was restored or recovered: revisions go on from at least this one, and what knew
    /// the epoch before is refused.
    Restored {
        epoch: u64,
        revision_at_least: u64,
    },
    CreateNetwork {
        id: NetworkId,
        spec: NetworkSpec,
    },
    /// Not while a service is on it or a policy names it, and never the default one. What is left
    /// of its virtual IPs goes into quarantine.
    RemoveNetwork {
        id: NetworkId,
    },
    /// Services and networks that it names are there. Services may be gone later: it holds by name.
    CreatePolicy {
        id: PolicyId,
        spec: PolicySpec,
    },
    RemovePolicy {
        id: PolicyId,
    },
    /// A service on the network, or one of its slots, gets a virtual IP; one that it had before
    /// goes into quarantine. Addresses that a service's spec asks for are granted with the spec.
    GrantVip {
        holder: VipHolder,
        address: Ipv4Addr,
    },
    /// Nobody has it any more, nor gets it for a while.
    ReleaseVip {
        address: Ipv4Addr,
    },
    CreateService {
        id: ServiceId,
        spec: ServiceSpec,
    },
    /// A new spec under the same name, as the next revision. Of a differing task template the
    /// number is that of a task that has the same, or a new one.
    UpdateService {
        id: ServiceId,
        spec: ServiceSpec,
    },
    /// The specification of an earlier revision again, as a revision of its own. With a reason it
    /// is the planner's doing: an update failed. Tasks that are as that says stay.
    RollBackService {
        id: ServiceId,
        to: u32,
        why: String,
    },
    /// How far the update under way is: paused (why), to go on, or done.
    SetUpdate {
        id: ServiceId,
        phase: UpdatePhase,
        message: String,
    },
    /// Which hook of the update under way is due from now on; none: the one that was is over.
    SetHook {
        id: ServiceId,
        hook: Option<Hook>,
    },
    /// A run of a job begins, for a time of its schedule or because somebody says so. Refused when
    /// that time is decided already, and when the schedule allows no other beside one that goes on.
    BeginRun {
        id: ServiceId,
        scheduled: Option<Time>,
        /// What is left out is by default.
        given: Given,
    },
    /// A run is over.
    EndRun {
        id: ServiceId,
        run: u32,
        state: RunState,
        message: String,
        completed: u32,
        total: u32,
    },
    /// Times of a job's schedule up to `until` begin nothing.
    PassSchedule {
        id: ServiceId,
        until: Time,
        /// Those among them that nobody was there for; of the others a run was in the way.
        missed: u32,
        message: String,
    },
    /// A job's schedule begins nothing, or does again from now on.
    Suspend {
        id: ServiceId,
        suspended: bool,
    },
    /// Marks it as going; the planner removes its tasks, then drops it.
    RemoveService {
        id: ServiceId,
    },
    DropService {
        id: ServiceId,
    },
    CreateTask(Task),
    /// Where a pending task runs.
    PlaceTask {
        id: TaskId,
        node: NodeId,
        address: Option<Ipv4Addr>,
        /// Of the node, and nobody else's.
        devices: Devices,
    },
    /// Only downwards.
    SetDesired {
        id: TaskId,
        desired: Desired,
    },
    /// Why a task stays pending; writes its error, nothing else.
    ExplainTask {
        id: TaskId,
        error: String,
    },
    /// What the agent of `node` saw. Refused (alone, not its transaction) from another node, for an
    /// older attempt or a task that is unknown: reports are never worth failing their batch.
    ReportTask {
        id: TaskId,
        node: NodeId,
        status: TaskStatus,
    },
    DropTask {
        id: TaskId,
    },
    /// Ends a task so that one of a slot of another service, of higher priority, has its room.
    /// Without effect on one that is not wanted any more.
    PreemptTask {
        id: TaskId,
        by: ServiceId,
        slot: u32,
    },
    /// A person asked its node to do something with its container. Changes nothing but the records
    /// of who did what: it is done by asking the node.
    ControlTask {
        id: TaskId,
        control: TaskControl,
    },
}

/// An object that a transaction writes or relies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Cluster,
    Node(NodeId),
    Service(ServiceId),
    Task(TaskId),
    Operator(OperatorName),
    Network(NetworkId),
    Policy(PolicyId),
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cluster => f.write_str("the cluster"),
            Self::Node(id) => write!(f, "node {id}"),
            Self::Service(id) => write!(f, "service {id}"),
            Self::Task(id) => write!(f, "task {id}"),
            Self::Operator(name) => write!(f, "operator {name}"),
            Self::Network(id) => write!(f, "network {id}"),
            Self::Policy(id) => write!(f, "policy {id}"),
        }
    }
}

/// "This object is as I saw it": its revision, 0 for "does not exist".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expect {
    pub key: Key,
    pub revision: u64,
}

/// Who asked, and under which number, so that a retry is answered and not done twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// E.g. `socket:0` (uid of a local caller).
    pub principal: String,
    /// Chosen by the caller, random.
    pub id: u128,
    /// Of the request's content: the same id with another content is refused.
    pub hash: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    pub request: Option<Request>,
    pub expects: Vec<Expect>,
    pub mutations: Vec<Mutation>,
    /// The person who asked for it, e.g. `operator:anna`: then it goes into the audit log.
    pub principal: Option<String>,
}

impl Transaction {
    /// Room for a plan (at most 1,000) and for any request of a person.
    pub const MUTATIONS_MAX: usize = 2000;
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Applied {
        revision: u64,
    },
    /// The same request was applied before, at this revision.
    Repeated {
        revision: u64,
    },
    Rejected(Rejection),
}

/// Why nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("{key} is at revision {found}, expected {expected}")]
    Stale { key: Key, expected: u64, found: u64 },
    #[error("service {name} exists already")]
    NameTaken { name: ServiceName, holder: ServiceId },
    #[error("port {port} is published by service {holder}")]
    PortTaken { port: String, holder: ServiceName },
    #[error("network {name} exists already")]
    NetworkTaken { name: NetworkName },
    #[error("there is no network {name}")]
    NoNetwork { name: NetworkName },
    #[error("network {name} is in use by {users}")]
    NetworkInUse { name: NetworkName, users: String },
    #[error("policy {name} exists already")]
    PolicyTaken { name: PolicyName },
    #[error("there is no service {name}")]
    NoService { name: ServiceName },
    #[error("virtual IP {address} {why}")]
    AddressTaken { address: Ipv4Addr, why: String },
    #[error("{key} does not exist")]
    NotFound { key: Key },
    #[error("{key} exists already")]
    Exists { key: Key },
    #[error("request id was used before for something else")]
    RequestReused,
    #[error("{mutations} mutations in one transaction, at most {max} are allowed", max = Transaction::MUTATIONS_MAX)]
    TooMany { mutations: usize },
    #[error("{0}")]
    Invalid(String),
}
