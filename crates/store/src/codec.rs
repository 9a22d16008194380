//! Bytes of entries and snapshots: a version, then protobuf.
//!
//! Nothing is skipped: a field of a newer version would be dropped by protobuf
//! in silence, so new fields and kinds are only written once every manager
//! knows them; what cannot be understood here stops the node.
//!
//! The types of the state have no wire form of their own outside of the log,
//! hence the conversions here and not in `proto`.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use warren_model::Time;
use warren_model::cluster::Cluster;
use warren_model::placement::{Taint, TaintError};
use warren_model::service::{Hook, TaskTemplate};
use warren_model::task::TaskControl;
use warren_proto::{
    Error as FieldError, amounts, amounts_from, hash, network_id, node_id, operator_name,
    policy_id, relay, service_id, task_id, v1, wire_relay,
};
use warren_state::change::{Expect, Key, Mutation, Request, Transaction};
use warren_state::{Head, Object};

/// Of an entry's payload.
const ENTRY_VERSION: u8 = 1;

/// Why bytes are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("an entry is of version {found}, this binary knows {ENTRY_VERSION}")]
    Version { found: u8 },
    #[error("decode {what}")]
    Bytes { what: &'static str, source: prost::DecodeError },
    #[error("decode {what}: {problem}")]
    Field { what: &'static str, problem: String },
}

fn field(what: &'static str) -> impl Fn(FieldError) -> CodecError {
    move |error| CodecError::Field { what, problem: error.to_string() }
}

fn absent(what: &'static str) -> CodecError {
    CodecError::Field { what, problem: "it is empty, or of a newer version".to_owned() }
}

/// A log entry from transactions that are encoded already.
pub fn encode_entry(time: Time, transactions: Vec<v1::Transaction>) -> Bytes {
    let entry = v1::Entry { time: time.0, transactions };
    let mut out = Vec::with_capacity(1 + entry.encoded_len());
    out.push(ENTRY_VERSION);
    entry.encode_raw(&mut out);
    out.into()
}

pub fn decode_entry(payload: &[u8]) -> Result<(Time, Vec<Transaction>), CodecError> {
    let (version, bytes) = payload.split_first().ok_or_else(|| absent("entry"))?;
    if *version != ENTRY_VERSION {
        return Err(CodecError::Version { found: *version });
    }
    let entry =
        v1::Entry::decode(bytes).map_err(|source| CodecError::Bytes { what: "entry", source })?;
    let transactions = entry.transactions.into_iter().map(transaction_from);
    Ok((Time(entry.time), transactions.collect::<Result<_, _>>()?))
}

pub fn transaction(from: &Transaction) -> v1::Transaction {
    v1::Transaction {
        request: from.request.as_ref().map(request),
        expects: from.expects.iter().map(expect).collect(),
        mutations: from.mutations.iter().map(mutation).collect(),
        principal: from.principal.clone(),
    }
}

fn transaction_from(wire: v1::Transaction) -> Result<Transaction, CodecError> {
    Ok(Transaction {
        request: wire.request.map(request_from).transpose()?,
        expects: wire.expects.into_iter().map(expect_from).collect::<Result<_, _>>()?,
        mutations: wire.mutations.into_iter().map(mutation_from).collect::<Result<_, _>>()?,
        principal: wire.principal,
    })
}

fn request(from: &Request) -> v1::Request {
    v1::Request {
        principal: from.principal.clone(),
        id: from.id.to_be_bytes().to_vec(),
        hash: from.hash,
    }
}

fn request_from(wire: v1::Request) -> Result<Request, CodecError> {
    let id = <[u8; 16]>::try_from(wire.id.as_slice()).map_err(|_| absent("request id"))?;
    Ok(Request { principal: wire.principal, id: u128::from_be_bytes(id), hash: wire.hash })
}

pub(crate) fn expect(from: &Expect) -> v1::Expect {
    use v1::key::Kind;
    let kind = match from.key {
        Key::Cluster => Kind::Cluster(true),
        Key::Node(id) => Kind::Node(id.as_bytes().to_vec()),
        Key::Service(id) => Kind::Service(id.as_bytes().to_vec()),
        Key::Task(id) => Kind::Task(id.as_bytes().to_vec()),
        Key::Operator(name) => Kind::Operator(name.as_str().to_owned()),
        Key::Network(id) => Kind::Network(id.as_bytes().to_vec()),
        Key::Policy(id) => Kind::Policy(id.as_bytes().to_vec()),
    };
    v1::Expect { key: Some(v1::Key { kind: Some(kind) }), revision: from.revision }
}

pub(crate) fn expect_from(wire: v1::Expect) -> Result<Expect, CodecError> {
    use v1::key::Kind;
    let kind = wire.key.and_then(|key| key.kind).ok_or_else(|| absent("expectation"))?;
    let wrong = field("expectation");
    let key = match kind {
        Kind::Cluster(_) => Key::Cluster,
        Kind::Node(id) => Key::Node(node_id("node", &id).map_err(wrong)?),
        Kind::Service(id) => Key::Service(service_id("service", &id).map_err(wrong)?),
        Kind::Task(id) => Key::Task(task_id("task", &id).map_err(wrong)?),
        Kind::Operator(name) => Key::Operator(operator_name("operator", &name).map_err(wrong)?),
        Kind::Network(id) => Key::Network(network_id("network", &id).map_err(wrong)?),
        Kind::Policy(id) => Key::Policy(policy_id("policy", &id).map_err(wrong)?),
    };
    Ok(Expect { key, revision: wire.revision })
}

fn mutation(from: &Mutation) -> v1::Mutation {
    use v1::mutation as wire;
    use v1::mutation::Kind;
    let kind = match from {
        Mutation::SetCluster(cluster) => Kind::SetCluster(cluster.into()),
        Mutation::CreateNode(node) => Kind::CreateNode(node.into()),
        Mutation::DescribeNode { id, description } => Kind::DescribeNode(wire::DescribeNode {
            id: id.as_bytes().to_vec(),
            description: Some(description.into()),
        }),
        Mutation::SetNodeStatus { id, status } => Kind::SetNodeStatus(wire::SetNodeStatus {
            id: id.as_bytes().to_vec(),
            status: v1::NodeStatus::from(*status).into(),
        }),
        Mutation::SetAvailability { id, availability, deadline_ms } => {
            Kind::SetAvailability(wire::SetAvailability {
                id: id.as_bytes().to_vec(),
                availability: v1::Availability::from(*availability).into(),
                deadline_ms: *deadline_ms,
            })
        }
        Mutation::SetRelays { id, relays } => Kind::SetRelays(wire::SetRelays {
            id: id.as_bytes().to_vec(),
            relays: relays.iter().map(|relay| wire_relay(*id, relay)).collect(),
        }),
        Mutation::GrantBlock { id, block } => Kind::GrantBlock(wire::GrantBlock {
            id: id.as_bytes().to_vec(),
            block: Some(block.into()),
        }),
        Mutation::SetRole { id, manager, worker } => Kind::SetRole(wire::SetRole {
            id: id.as_bytes().to_vec(),
            manager: *manager,
            worker: *worker,
        }),
        Mutation::SetLabels { id, labels } => Kind::SetLabels(wire::SetLabels {
            id: id.as_bytes().to_vec(),
            labels: labels.clone().into_iter().collect(),
        }),
        Mutation::SetCertificate { id, key_hash, not_after, issuer_hash } => {
            Kind::SetCertificate(wire::SetCertificate {
                id: id.as_bytes().to_vec(),
                key_hash: key_hash.to_vec(),
                not_after: not_after.0,
                issuer_hash: issuer_hash.to_vec(),
            })
        }
        Mutation::SetForgotten { id, forgotten } => Kind::SetForgotten(wire::SetForgotten {
            id: id.as_bytes().to_vec(),
            forgotten: Some((*forgotten).into()),
        }),
        Mutation::SetResources { id, generic, system_reserved, defaults } => {
            Kind::SetResources(wire::SetResources {
                id: id.as_bytes().to_vec(),
                generic: amounts(generic),
                system_reserved: Some(system_reserved.into()),
                defaults: (!defaults.is_empty()).then(|| defaults.into()),
            })
        }
        Mutation::SetTaints { id, taints } => Kind::SetTaints(wire::SetTaints {
            id: id.as_bytes().to_vec(),
            taints: taints.iter().map(ToString::to_string).collect(),
        }),
        Mutation::RemoveNode { id, keep_until, force } => Kind::RemoveNode(wire::RemoveNode {
            id: id.as_bytes().to_vec(),
            keep_until: keep_until.0,
            force: *force,
        }),
        Mutation::PutOperator(operator) => Kind::PutOperator(operator.into()),
        Mutation::RemoveOperator { name } => Kind::RemoveOperator(name.as_str().to_owned()),
        Mutation::Restored { epoch, revision_at_least } => {
            Kind::Restored(wire::Restored { epoch: *epoch, revision_at_least: *revision_at_least })
        }
        Mutation::CreateNetwork { id, spec } => Kind::CreateNetwork(wire::CreateNetwork {
            id: id.as_bytes().to_vec(),
            spec: Some(spec.into()),
        }),
        Mutation::RemoveNetwork { id } => Kind::RemoveNetwork(id.as_bytes().to_vec()),
        Mutation::CreatePolicy { id, spec } => Kind::CreatePolicy(wire::CreatePolicy {
            id: id.as_bytes().to_vec(),
            spec: Some(spec.into()),
        }),
        Mutation::RollBackService { id, to, why } => {
            let id = id.as_bytes().to_vec();
            Kind::RollBackService(wire::RollBackService { id, to: *to, why: why.clone() })
        }
        Mutation::SetUpdate { id, phase, message } => Kind::SetUpdate(wire::SetUpdate {
            id: id.as_bytes().to_vec(),
            phase: v1::UpdatePhase::from(*phase).into(),
            message: message.clone(),
        }),
        Mutation::SetHook { id, hook } => Kind::SetHook(wire::SetHook {
            id: id.as_bytes().to_vec(),
            hook: hook.map_or(0, Hook::number),
        }),
        Mutation::BeginRun { id, scheduled, given } => Kind::BeginRun(wire::BeginRun {
            id: id.as_bytes().to_vec(),
            scheduled: scheduled.map(|time| time.0),
            params: given.params.clone().into_iter().collect(),
            payload: given.payload.as_deref().map(Into::into),
        }),
        Mutation::EndRun { id, run, state, message, completed, total } => {
            Kind::EndRun(wire::EndRun {
                id: id.as_bytes().to_vec(),
                run: *run,
                state: v1::RunState::from(*state).into(),
                message: message.clone(),
                completed: *completed,
                total: *total,
            })
        }
        Mutation::PassSchedule { id, until, missed, message } => {
            Kind::PassSchedule(wire::PassSchedule {
                id: id.as_bytes().to_vec(),
                until: until.0,
                missed: *missed,
                message: message.clone(),
            })
        }
        Mutation::Suspend { id, suspended } => {
            Kind::Suspend(wire::Suspend { id: id.as_bytes().to_vec(), suspended: *suspended })
        }
        Mutation::PreemptTask { id, by, slot } => Kind::PreemptTask(wire::PreemptTask {
            id: id.as_bytes().to_vec(),
            by: by.as_bytes().to_vec(),
            slot: *slot,
        }),
        Mutation::ControlTask { id, control } => Kind::ControlTask(wire::ControlTask {
            id: id.as_bytes().to_vec(),
            signal: match control {
                TaskControl::Restart | TaskControl::Pause | TaskControl::Unpause => None,
                TaskControl::Signal(number) => Some(*number),
            },
            pause: match control {
                TaskControl::Pause => Some(true),
                TaskControl::Unpause => Some(false),
                TaskControl::Restart | TaskControl::Signal(_) => None,
            },
        }),
        Mutation::RemovePolicy { id } => Kind::RemovePolicy(id.as_bytes().to_vec()),
        Mutation::GrantVip { holder, address } => Kind::GrantVip(wire::GrantVip {
            holder: Some((*holder).into()),
            address: (*address).into(),
        }),
        Mutation::ReleaseVip { address } => Kind::ReleaseVip((*address).into()),
        Mutation::CreateService { id, spec } => Kind::CreateService(wire::PutService {
            id: id.as_bytes().to_vec(),
            spec: Some(spec.into()),
        }),
        Mutation::UpdateService { id, spec } => Kind::UpdateService(wire::PutService {
            id: id.as_bytes().to_vec(),
            spec: Some(spec.into()),
        }),
        Mutation::RemoveService { id } => Kind::RemoveService(id.as_bytes().to_vec()),
        Mutation::DropService { id } => Kind::DropService(id.as_bytes().to_vec()),
        Mutation::CreateTask(task) => Kind::CreateTask(task.into()),
        Mutation::PlaceTask { id, node, address, devices } => Kind::PlaceTask(wire::PlaceTask {
            id: id.as_bytes().to_vec(),
            node: node.as_bytes().to_vec(),
            address: address.map(u32::from),
            devices: devices.iter().map(str::to_owned).collect(),
        }),
        Mutation::SetDesired { id, desired } => Kind::SetDesired(wire::SetDesired {
            id: id.as_bytes().to_vec(),
            desired: v1::Desired::from(*desired).into(),
        }),
        Mutation::ExplainTask { id, error } => Kind::ExplainTask(wire::ExplainTask {
            id: id.as_bytes().to_vec(),
            error: error.clone(),
        }),
        Mutation::ReportTask { id, node, status } => Kind::ReportTask(wire::ReportTask {
            id: id.as_bytes().to_vec(),
            node: node.as_bytes().to_vec(),
            status: Some(status.into()),
        }),
        Mutation::DropTask { id } => Kind::DropTask(id.as_bytes().to_vec()),
    };
    v1::Mutation { kind: Some(kind) }
}

/// A required message field.
fn part<W, M: TryFrom<W, Error = FieldError>>(
    what: &'static str,
    wire: Option<W>,
) -> Result<M, CodecError> {
    M::try_from(wire.ok_or_else(|| absent(what))?).map_err(field(what))
}

/// A required enum field.
fn choice<W: TryFrom<i32>, M: TryFrom<W, Error = FieldError>>(
    what: &'static str,
    number: i32,
) -> Result<M, CodecError> {
    M::try_from(W::try_from(number).map_err(|_| absent(what))?).map_err(field(what))
}

fn mutation_from(wire: v1::Mutation) -> Result<Mutation, CodecError> {
    use v1::mutation::Kind;
    let node = |id: &[u8]| node_id("node", id).map_err(field("mutation"));
    let network = |id: &[u8]| network_id("network", id).map_err(field("mutation"));
    let policy = |id: &[u8]| policy_id("policy", id).map_err(field("mutation"));
    let service = |id: &[u8]| service_id("service", id).map_err(field("mutation"));
    let task = |id: &[u8]| task_id("task", id).map_err(field("mutation"));
    Ok(match wire.kind.ok_or_else(|| absent("mutation"))? {
        Kind::SetCluster(m) => Mutation::SetCluster(part("cluster", Some(m))?),
        Kind::CreateNode(m) => Mutation::CreateNode(part("node", Some(m))?),
        Kind::DescribeNode(m) => Mutation::DescribeNode {
            id: node(&m.id)?,
            description: part("node description", m.description)?,
        },
        Kind::SetNodeStatus(m) => Mutation::SetNodeStatus {
            id: node(&m.id)?,
            status: choice::<v1::NodeStatus, _>("node status", m.status)?,
        },
        Kind::SetAvailability(m) => Mutation::SetAvailability {
            id: node(&m.id)?,
            availability: choice::<v1::Availability, _>("availability", m.availability)?,
            deadline_ms: m.deadline_ms,
        },
        Kind::SetRelays(m) => {
            let relays = m.relays.into_iter().map(|one| relay(one).map(|(_, relay)| relay));
            Mutation::SetRelays {
                id: node(&m.id)?,
                relays: relays.collect::<Result<_, _>>().map_err(field("mutation"))?,
            }
        }
        Kind::GrantBlock(m) => {
            Mutation::GrantBlock { id: node(&m.id)?, block: part("block", m.block)? }
        }
        Kind::SetRole(m) => {
            Mutation::SetRole { id: node(&m.id)?, manager: m.manager, worker: m.worker }
        }
        Kind::SetLabels(m) => {
            Mutation::SetLabels { id: node(&m.id)?, labels: m.labels.into_iter().collect() }
        }
        Kind::SetCertificate(m) => Mutation::SetCertificate {
            id: node(&m.id)?,
            key_hash: hash("key_hash", &m.key_hash).map_err(field("mutation"))?,
            not_after: Time(m.not_after),
            issuer_hash: hash("issuer_hash", &m.issuer_hash).map_err(field("mutation"))?,
        },
        Kind::SetForgotten(m) => {
            Mutation::SetForgotten { id: node(&m.id)?, forgotten: part("forgotten", m.forgotten)? }
        }
        Kind::SetResources(m) => Mutation::SetResources {
            id: node(&m.id)?,
            generic: amounts_from("generic", m.generic).map_err(field("mutation"))?,
            system_reserved: part("resources", m.system_reserved)?,
            defaults: m.defaults.map(Into::into).unwrap_or_default(),
        },
        Kind::SetTaints(m) => {
            Mutation::SetTaints { id: node(&m.id)?, taints: taints_from(&m.taints)? }
        }
        Kind::RemoveNode(m) => Mutation::RemoveNode {
            id: node(&m.id)?,
            keep_until: Time(m.keep_until),
            force: m.force,
        },
        Kind::PutOperator(m) => Mutation::PutOperator(part("operator", Some(m))?),
        Kind::RemoveOperator(name) => Mutation::RemoveOperator {
            name: operator_name("operator", &name).map_err(field("mutation"))?,
        },
        Kind::Restored(m) => {
            Mutation::Restored { epoch: m.epoch, revision_at_least: m.revision_at_least }
        }
        Kind::CreateNetwork(m) => {
            Mutation::CreateNetwork { id: network(&m.id)?, spec: part("network", m.spec)? }
        }
        Kind::RemoveNetwork(id) => Mutation::RemoveNetwork { id: network(&id)? },
        Kind::CreatePolicy(m) => {
            Mutation::CreatePolicy { id: policy(&m.id)?, spec: part("policy", m.spec)? }
        }
        Kind::RollBackService(m) => {
            Mutation::RollBackService { id: service(&m.id)?, to: m.to, why: m.why }
        }
        Kind::SetUpdate(m) => Mutation::SetUpdate {
            id: service(&m.id)?,
            phase: choice::<v1::UpdatePhase, _>("phase", m.phase)?,
            message: m.message,
        },
        Kind::SetHook(m) => Mutation::SetHook {
            id: service(&m.id)?,
            hook: warren_proto::hook(m.hook).map_err(field("mutation"))?,
        },
        Kind::BeginRun(m) => Mutation::BeginRun {
            id: service(&m.id)?,
            scheduled: m.scheduled.map(Time),
            given: warren_proto::given(m.params, m.payload),
        },
        Kind::EndRun(m) => Mutation::EndRun {
            id: service(&m.id)?,
            run: m.run,
            state: choice::<v1::RunState, _>("run", m.state)?,
            message: m.message,
            completed: m.completed,
            total: m.total,
        },
        Kind::PassSchedule(m) => Mutation::PassSchedule {
            id: service(&m.id)?,
            until: Time(m.until),
            missed: m.missed,
            message: m.message,
        },
        Kind::Suspend(m) => Mutation::Suspend { id: service(&m.id)?, suspended: m.suspended },
        Kind::PreemptTask(m) => {
            Mutation::PreemptTask { id: task(&m.id)?, by: service(&m.by)?, slot: m.slot }
        }
        Kind::ControlTask(m) => Mutation::ControlTask {
            id: task(&m.id)?,
            control: match (m.signal, m.pause) {
                (Some(number), _) => TaskControl::Signal(number),
                (None, Some(true)) => TaskControl::Pause,
                (None, Some(false)) => TaskControl::Unpause,
                (None, None) => TaskControl::Restart,
            },
        },
        Kind::RemovePolicy(id) => Mutation::RemovePolicy { id: policy(&id)? },
        Kind::GrantVip(m) => {
            Mutation::GrantVip { holder: part("holder", m.holder)?, address: m.address.into() }
        }
        Kind::ReleaseVip(address) => Mutation::ReleaseVip { address: address.into() },
        Kind::CreateService(m) => {
            Mutation::CreateService { id: service(&m.id)?, spec: part("service", m.spec)? }
        }
        Kind::UpdateService(m) => {
            Mutation::UpdateService { id: service(&m.id)?, spec: part("service", m.spec)? }
        }
        Kind::RemoveService(id) => Mutation::RemoveService { id: service(&id)? },
        Kind::DropService(id) => Mutation::DropService { id: service(&id)? },
        Kind::CreateTask(m) => Mutation::CreateTask(part("task", Some(m))?),
        Kind::PlaceTask(m) => Mutation::PlaceTask {
            id: task(&m.id)?,
            node: node(&m.node)?,
            address: m.address.map(Into::into),
            devices: m.devices.into_iter().collect(),
        },
        Kind::SetDesired(m) => Mutation::SetDesired {
            id: task(&m.id)?,
            desired: choice::<v1::Desired, _>("desired", m.desired)?,
        },
        Kind::ExplainTask(m) => Mutation::ExplainTask { id: task(&m.id)?, error: m.error },
        Kind::ReportTask(m) => Mutation::ReportTask {
            id: task(&m.id)?,
            node: node(&m.node)?,
            status: part("task status", m.status)?,
        },
        Kind::DropTask(id) => Mutation::DropTask { id: task(&id)? },
    })
}

fn taints_from(texts: &[String]) -> Result<Vec<Taint>, CodecError> {
    let wrong = |problem: TaintError| CodecError::Field {
        what: "mutation",
        problem: format!("taints: {problem}"),
    };
    texts.iter().map(|text| text.parse().map_err(wrong)).collect()
}

// ---- snapshots -------------------------------------------------------------

pub(crate) fn head(from: &Head, objects: u64, checksum: u64) -> v1::SnapshotHead {
    v1::SnapshotHead {
        revision: from.revision,
        time: from.time.0,
        cluster: from.cluster.as_ref().map(Into::into),
        objects,
        checksum,
    }
}

pub(crate) fn head_from(wire: v1::SnapshotHead) -> Result<Head, CodecError> {
    let cluster = wire.cluster.map(Cluster::try_from).transpose().map_err(field("cluster"))?;
    Ok(Head { revision: wire.revision, time: Time(wire.time), cluster })
}

pub(crate) fn object(from: &Object) -> v1::SnapshotObject {
    use v1::snapshot_object::Kind;
    let kind = match from {
        Object::Node(node) => Kind::Node(node.into()),
        Object::Service(service) => Kind::Service(service.into()),
        Object::Template { service, number, template } => Kind::Template(v1::Template {
            service: service.as_bytes().to_vec(),
            number: *number,
            task: Some(template.as_ref().into()),
        }),
        Object::Task(task) => Kind::Task(task.into()),
        Object::Tombstone(tombstone) => Kind::Tombstone(tombstone.into()),
        Object::Operator(operator) => Kind::Operator(operator.into()),
        Object::Audit(record) => Kind::Audit(record.as_ref().into()),
        Object::Network(network) => Kind::Network(network.into()),
        Object::Vip(vip) => Kind::Vip(vip.into()),
        Object::Policy(policy) => Kind::Policy(policy.into()),
        Object::Revision { service, revision } => Kind::Revision(v1::StoredRevision {
            service: service.as_bytes().to_vec(),
            revision: Some(revision.as_ref().into()),
        }),
        Object::Given { node, address } => Kind::Given(v1::GivenAddress {
            node: node.as_bytes().to_vec(),
            address: u32::from(*address),
        }),
        Object::Request { request: asked, revision, time } => Kind::Request(v1::AnsweredRequest {
            request: Some(request(asked)),
            revision: *revision,
            time: time.0,
        }),
    };
    v1::SnapshotObject { kind: Some(kind) }
}

pub(crate) fn object_from(wire: v1::SnapshotObject) -> Result<Object, CodecError> {
    use v1::snapshot_object::Kind;
    Ok(match wire.kind.ok_or_else(|| absent("object"))? {
        Kind::Node(node) => Object::Node(part("node", Some(node))?),
        Kind::Service(service) => Object::Service(part("service", Some(service))?),
        Kind::Template(template) => Object::Template {
            service: service_id("service", &template.service).map_err(field("template"))?,
            number: template.number,
            template: Arc::new(part::<_, TaskTemplate>("template", template.task)?),
        },
        Kind::Task(task) => Object::Task(part("task", Some(task))?),
        Kind::Tombstone(tombstone) => Object::Tombstone(part("tombstone", Some(tombstone))?),
        Kind::Operator(operator) => Object::Operator(part("operator", Some(operator))?),
        Kind::Audit(record) => Object::Audit(Arc::new(part("audit record", Some(record))?)),
        Kind::Network(network) => Object::Network(part("network", Some(network))?),
        Kind::Vip(vip) => Object::Vip(part("virtual IP", Some(vip))?),
        Kind::Policy(policy) => Object::Policy(part("policy", Some(policy))?),
        Kind::Revision(stored) => Object::Revision {
            service: service_id("service", &stored.service).map_err(field("revision"))?,
            revision: Arc::new(part("revision", stored.revision)?),
        },
        Kind::Given(given) => Object::Given {
            node: node_id("node", &given.node).map_err(field("last address"))?,
            address: given.address.into(),
        },
        Kind::Request(answered) => Object::Request {
            request: request_from(answered.request.ok_or_else(|| absent("request"))?)?,
            revision: answered.revision,
            time: Time(answered.time),
        },
    })
}

// ---- consensus -------------------------------------------------------------

/// Position in the log.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct WireLogId {
    #[prost(uint64, tag = "1")]
    pub(crate) term: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) node: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) index: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct WireVoters {
    #[prost(uint64, repeated, tag = "1")]
    pub(crate) nodes: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct WireMember {
    #[prost(uint64, tag = "1")]
    pub(crate) node: u64,
    #[prost(string, tag = "2")]
    pub(crate) address: String,
}

/// Who takes part in consensus; two sets of voters while it changes.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct WireMembership {
    #[prost(message, repeated, tag = "1")]
    pub(crate) voters: Vec<WireVoters>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) members: Vec<WireMember>,
}

/// Which part of the log a snapshot stands for.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct WirePosition {
    #[prost(message, optional, tag = "1")]
    pub(crate) last: Option<WireLogId>,
    #[prost(message, optional, tag = "2")]
    pub(crate) membership_at: Option<WireLogId>,
    #[prost(message, optional, tag = "3")]
    pub(crate) membership: Option<WireMembership>,
}

pub(crate) fn encode_membership(membership: &WireMembership) -> Bytes {
    let mut out = vec![ENTRY_VERSION];
    membership.encode_raw(&mut out);
    out.into()
}

pub(crate) fn decode_membership(payload: &[u8]) -> Result<WireMembership, CodecError> {
    let (version, bytes) = payload.split_first().ok_or_else(|| absent("membership"))?;
    if *version != ENTRY_VERSION {
        return Err(CodecError::Version { found: *version });
    }
    WireMembership::decode(bytes).map_err(|source| CodecError::Bytes { what: "membership", source })
}
