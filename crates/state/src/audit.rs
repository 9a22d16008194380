//! Who changed what: a ring of the last records.
//!
//! What a record says is taken from the mutations, before they are applied,
//! in the words of those who run clusters. Values that may be secret (of the
//! environment, of keys and tokens) never get in; their field's name does.
//! Nothing is recorded of what managers and agents do by themselves.

use std::sync::Arc;

use imbl::Vector;
use warren_model::cluster::Cluster;
use warren_model::job::Given;
use warren_model::network::NetworkSpec;
use warren_model::node::Node;
use warren_model::policy::{PolicyPeer, PolicySpec};
use warren_model::quantity::format_duration_ms;
use warren_model::resources::Resources;
use warren_model::service::{Mode, ServiceSpec, TaskTemplate, UpdatePhase, signal_name};
use warren_model::task::{Desired, TaskControl};
use warren_model::{AuditRecord, NodeId, Time};

use crate::State;
use crate::change::Mutation;

/// Weeks of a busy team; who needs more ships them elsewhere.
pub(crate) const KEPT_MAX: usize = 4096;
/// Of a record's detail; longer ones are cut.
const DETAIL_BYTES_MAX: usize = 1024;

#[derive(Debug, Clone, Default)]
pub(crate) struct Audit {
    /// Oldest first.
    records: Vector<Arc<AuditRecord>>,
}

impl Audit {
    pub(crate) fn push(&mut self, record: Arc<AuditRecord>) {
        self.records.push_back(record);
        while self.records.len() > KEPT_MAX {
            self.records.pop_front();
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<AuditRecord>> + Clone {
        self.records.iter()
    }
}

/// What a transaction did, while it is being applied.
#[derive(Default)]
pub(crate) struct Notes(Vec<Note>);

struct Note {
    action: &'static str,
    object: String,
    detail: String,
}

impl Notes {
    /// Adds what a mutation is about to do; several of one kind to one object are one note.
    pub(crate) fn add(&mut self, state: &State, mutation: &Mutation) {
        let Some(note) = note(state, mutation) else { return };
        match self.0.last_mut() {
            Some(last) if last.action == note.action && last.object == note.object => {
                last.detail.push(' ');
                last.detail.push_str(&note.detail);
            }
            Some(_) | None => self.0.push(note),
        }
    }

    pub(crate) fn record(self, audit: &mut Audit, revision: u64, time: Time, principal: &str) {
        for Note { action, object, mut detail } in self.0 {
            detail.truncate(detail.floor_char_boundary(DETAIL_BYTES_MAX));
            audit.push(Arc::new(AuditRecord {
                revision,
                time,
                principal: principal.to_owned(),
                action: action.to_owned(),
                object,
                detail: detail.trim().to_owned(),
            }));
        }
    }
}

fn note(state: &State, mutation: &Mutation) -> Option<Note> {
    let note = |action, object, detail| Some(Note { action, object, detail });
    let node = |id: NodeId| {
        let node = state.node(id);
        node.map_or_else(|| id.to_string(), |node| node.description.hostname.clone())
    };
    let service = |id| {
        let service = state.service(id);
        service.map_or_else(String::new, |service| service.spec.name.to_string())
    };
    let task = |id| {
        let task = state.task(id);
        task.map_or_else(String::new, |task| format!("{}.{}", service(task.service), task.label()))
    };
    match mutation {
        Mutation::SetCluster(cluster) => match state.cluster() {
            None => note("cluster.create", cluster.id.to_string(), String::new()),
            Some(before) => note("cluster.update", String::new(), settings(before, cluster)),
        },
        Mutation::Restored { epoch, revision_at_least: _ } => {
            note("cluster.restore", String::new(), format!("epoch={epoch}"))
        }
        Mutation::CreateNode(node) => {
            let detail = roles(node.manager, node.worker);
            note("node.create", node.description.hostname.clone(), detail)
        }
        Mutation::SetAvailability { id, availability, deadline_ms } => {
            let mut detail = format!("availability={}", availability.as_str());
            if let Some(ms) = deadline_ms {
                detail.push_str(&format!(" deadline={}", format_duration_ms(*ms)));
            }
            note("node.update", node(*id), detail)
        }
        Mutation::SetRole { id, manager, worker } => {
            note("node.update", node(*id), changed_roles(state.node(*id), *manager, *worker))
        }
        Mutation::SetLabels { id, labels } => {
            let keys: Vec<&str> = labels.keys().map(String::as_str).collect();
            note("node.update", node(*id), format!("labels={}", keys.join(",")))
        }
        Mutation::SetResources { id, generic, system_reserved, defaults } => {
            let has = Resources { generic: generic.clone(), ..Resources::default() };
            note(
                "node.update",
                node(*id),
                format!("resources={has} system_reserved={system_reserved} defaults={defaults}"),
            )
        }
        Mutation::SetTaints { id, taints } => {
            let taints: Vec<String> = taints.iter().map(ToString::to_string).collect();
            note("node.update", node(*id), format!("taints={}", taints.join(",")))
        }
        Mutation::SetForgotten { id, forgotten } => {
            note("node.update", node(*id), format!("forgotten={}", forgotten.choice.as_str()))
        }
        Mutation::RemoveNode { id, keep_until: _, force } => {
            note("node.remove", node(*id), if *force { "force".to_owned() } else { String::new() })
        }
        Mutation::PutOperator(operator) => {
            let known = state.operator(operator.name).is_some();
            let action = if known { "operator.update" } else { "operator.create" };
            let mut detail = format!("role={}", operator.role);
            if let Some(expires) = operator.expires {
                detail.push_str(&format!(" expires={expires}"));
            }
            note(action, operator.name.to_string(), detail)
        }
        Mutation::RemoveOperator { name } => {
            note("operator.remove", name.to_string(), String::new())
        }
        Mutation::CreateNetwork { id: _, spec } => {
            note("network.create", spec.name.to_string(), network(spec))
        }
        Mutation::RemoveNetwork { id } => {
            let name = state.network(*id).map(|network| network.spec.name.to_string());
            note("network.remove", name.unwrap_or_default(), String::new())
        }
        Mutation::CreatePolicy { id: _, spec } => {
            note("policy.create", spec.name.to_string(), policy(spec))
        }
        Mutation::RemovePolicy { id } => {
            let name = state.policy(*id).map(|policy| policy.spec.name.to_string());
            note("policy.remove", name.unwrap_or_default(), String::new())
        }
        Mutation::CreateService { id: _, spec } => {
            let detail = format!("image={} {}", spec.task.image, mode(spec.mode));
            note("service.create", spec.name.to_string(), detail)
        }
        Mutation::UpdateService { id, spec } => {
            let before = state.service(*id).map(|service| &service.spec);
            let detail = before.map_or_else(String::new, |before| changes(before, spec));
            note("service.update", spec.name.to_string(), detail)
        }
        Mutation::RollBackService { id, to, why: _ } => {
            note("service.rollback", service(*id), format!("to={to}"))
        }
        Mutation::SetUpdate { id, phase, message: _ } => match phase {
            UpdatePhase::Moving => note("service.resume", service(*id), String::new()),
            UpdatePhase::Paused => note("service.pause", service(*id), String::new()),
            UpdatePhase::Done => None,
        },
        Mutation::BeginRun { id, scheduled: _, given } => {
            note("job.run", service(*id), inputs(given))
        }
        Mutation::EndRun { id, run, .. } => note("job.stop", service(*id), format!("run={run}")),
        Mutation::Suspend { id, suspended: true } => {
            note("service.suspend", service(*id), String::new())
        }
        Mutation::Suspend { id, suspended: false } => {
            note("service.unsuspend", service(*id), String::new())
        }
        Mutation::SetDesired { id, desired: Desired::Shutdown } => {
            note("task.stop", task(*id), format!("id={id}"))
        }
        Mutation::ControlTask { id, control: TaskControl::Restart } => {
            note("task.restart", task(*id), format!("id={id}"))
        }
        Mutation::ControlTask { id, control: TaskControl::Signal(number) } => {
            let signal = signal_name(*number);
            note("task.signal", task(*id), format!("signal={signal} id={id}"))
        }
        Mutation::RemoveService { id } => note("service.remove", service(*id), String::new()),
        Mutation::DescribeNode { .. }
        | Mutation::SetNodeStatus { .. }
        | Mutation::SetRelays { .. }
        | Mutation::GrantBlock { .. }
        | Mutation::SetCertificate { .. }
        | Mutation::DropService { .. }
        | Mutation::PassSchedule { .. }
        | Mutation::SetHook { .. }
        | Mutation::GrantVip { .. }
        | Mutation::ReleaseVip { .. }
        | Mutation::CreateTask(_)
        | Mutation::PlaceTask { .. }
        | Mutation::SetDesired { .. }
        | Mutation::PreemptTask { .. }
        | Mutation::ExplainTask { .. }
        | Mutation::ReportTask { .. }
        | Mutation::DropTask { .. } => None,
    }
}

/// What differs from a network with everything as by default.
fn network(spec: &NetworkSpec) -> String {
    let NetworkSpec { name: _, labels: _, internal, attachable, encrypted, subnet, subnet_v6 } =
        spec;
    let word = |said: bool, word: &str| (said, word.to_owned());
    let subnet_text = subnet.map_or_else(String::new, |subnet| format!("subnet={subnet}"));
    let v6_text = subnet_v6.map_or_else(String::new, |subnet| format!("subnet={subnet}"));
    joined([
        word(*internal, "internal"),
        word(*attachable, "attachable"),
        word(!*encrypted, "encrypted=false"),
        (subnet.is_some(), subnet_text),
        (subnet_v6.is_some(), v6_text),
    ])
}

fn policy(spec: &PolicySpec) -> String {
    let list = |words: Vec<String>| words.join(",");
    let ends = |peers: &[PolicyPeer]| list(peers.iter().map(ToString::to_string).collect());
    let ports = list(spec.ports.iter().map(ToString::to_string).collect());
    joined([
        (true, format!("action={}", spec.action)),
        (!spec.from.is_empty(), format!("from={}", ends(&spec.from))),
        (!spec.to.is_empty(), format!("to={}", ends(&spec.to))),
        (!spec.ports.is_empty(), format!("ports={ports}")),
        (spec.priority != PolicySpec::PRIORITY, format!("priority={}", spec.priority)),
    ])
}

fn roles(manager: bool, worker: bool) -> String {
    format!("manager={manager} worker={worker}")
}

fn changed_roles(before: Option<&Node>, manager: bool, worker: bool) -> String {
    match before {
        Some(node) if node.worker == worker => format!("manager={manager}"),
        Some(node) if node.manager == manager => format!("worker={worker}"),
        Some(_) | None => roles(manager, worker),
    }
}

fn mode(mode: Mode) -> String {
    match mode {
        Mode::Replicated { replicas } => format!("replicas={replicas}"),
        Mode::Global => "mode=global".to_owned(),
        Mode::ReplicatedJob { completions, max_concurrent } => {
            format!("mode=replicated-job replicas={completions} max_concurrent={max_concurrent}")
        }
        Mode::GlobalJob => "mode=global-job".to_owned(),
    }
}

/// Names of the fields that differ, with the value where it is short and no secret.
fn settings(before: &Cluster, after: &Cluster) -> String {
    let Cluster {
        id: _,
        history_limit,
        pool,
        block_prefix,
        vip_pool,
        overlay,
        ca,
        worker_token,
        manager_token,
        certificate_lifetime_ms,
        epoch: _,
        unlock_key,
        next_number: _,
        backup,
        strategy,
        rebalance,
        defaults,
        allow_bind,
        allowed,
    } = after;
    let words = [
        (*history_limit != before.history_limit, format!("history_limit={history_limit}")),
        (*pool != before.pool, format!("pool={pool}")),
        (*block_prefix != before.block_prefix, format!("block_prefix={block_prefix}")),
        (*vip_pool != before.vip_pool, format!("vip_pool={vip_pool}")),
        (*overlay != before.overlay, format!("overlay={overlay}")),
        (*ca != before.ca, "authority".to_owned()),
        (*worker_token != before.worker_token, "worker_token".to_owned()),
        (*manager_token != before.manager_token, "manager_token".to_owned()),
        (
            *certificate_lifetime_ms != before.certificate_lifetime_ms,
            format!("certificate_lifetime_ms={certificate_lifetime_ms}"),
        ),
        (
            *unlock_key != before.unlock_key,
            format!("locked={}", if unlock_key.is_some() { "true" } else { "false" }),
        ),
        (*backup != before.backup, "backup".to_owned()),
        (*strategy != before.strategy, format!("strategy={strategy}")),
        (*rebalance != before.rebalance, format!("rebalance={rebalance}")),
        (*defaults != before.defaults, format!("defaults={defaults}")),
        (*allow_bind != before.allow_bind, format!("allow_bind={}", texts(allow_bind))),
        (*allowed != before.allowed, format!("allowed={allowed}")),
    ];
    joined(words)
}

/// In a list, without spaces.
fn texts<T: std::fmt::Display>(all: &[T]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Names alone: what is given may be nobody else's business.
fn inputs(given: &Given) -> String {
    let names: Vec<&str> = given.params.keys().map(String::as_str).collect();
    joined([
        (!names.is_empty(), format!("params={}", names.join(","))),
        (
            given.payload.is_some(),
            format!("payload_bytes={}", given.payload.as_ref().map_or(0, |payload| payload.len())),
        ),
    ])
}

fn changes(before: &ServiceSpec, after: &ServiceSpec) -> String {
    let ServiceSpec {
        name: _,
        labels,
        mode: wanted,
        ports,
        update,
        rollback,
        task,
        on_disconnect,
        networks,
        endpoint,
        placement,
        job,
        moving,
        hooks,
    } = after;
    let words = [
        (*wanted != before.mode, mode(*wanted)),
        (*labels != before.labels, "labels".to_owned()),
        (*ports != before.ports, "ports".to_owned()),
        (*update != before.update, "update".to_owned()),
        (*rollback != before.rollback, "rollback".to_owned()),
        (*on_disconnect != before.on_disconnect, format!("on_disconnect={on_disconnect}")),
        (*networks != before.networks, "networks".to_owned()),
        (*endpoint != before.endpoint, "endpoint".to_owned()),
        (*placement != before.placement, "placement".to_owned()),
        (*job != before.job, "job".to_owned()),
        (*moving != before.moving, "moving".to_owned()),
        (*hooks != before.hooks, "hooks".to_owned()),
    ];
    let words = joined(words);
    let template = template_changes(&before.task, task);
    if words.is_empty() { template } else { format!("{words} {template}") }
}

fn template_changes(before: &TaskTemplate, after: &TaskTemplate) -> String {
    let TaskTemplate {
        image,
        entrypoint,
        command,
        env,
        workdir,
        user,
        hostname,
        container_labels,
        stop_signal,
        stop_grace_ms,
        read_only,
        cap_add,
        cap_drop,
        privileges,
        limits,
        tuning,
        reserve,
        restart,
        log,
        health,
        force,
        companions,
        shared,
        mounts,
        shm_bytes,
    } = after;
    let word = |differs: bool, word: &str| (differs, word.to_owned());
    joined([
        (*image != before.image, format!("image={image}")),
        word(*entrypoint != before.entrypoint, "entrypoint"),
        word(*command != before.command, "command"),
        word(*env != before.env, "env"),
        word(*workdir != before.workdir, "workdir"),
        word(*user != before.user, "user"),
        word(*hostname != before.hostname, "hostname"),
        word(*container_labels != before.container_labels, "container_labels"),
        word(*stop_signal != before.stop_signal, "stop_signal"),
        word(*stop_grace_ms != before.stop_grace_ms, "stop_grace"),
        word(*read_only != before.read_only, "read_only"),
        word(*cap_add != before.cap_add, "cap_add"),
        word(*cap_drop != before.cap_drop, "cap_drop"),
        word(*privileges != before.privileges, "privileges"),
        word(*limits != before.limits, "limits"),
        word(*tuning != before.tuning, "tuning"),
        word(*reserve != before.reserve, "reserve"),
        word(*restart != before.restart, "restart_policy"),
        word(*log != before.log, "log"),
        word(*health != before.health, "health"),
        word(*force != before.force, "restart"),
        word(*companions != before.companions, "companions"),
        word(*shared != before.shared || *mounts != before.mounts, "mounts"),
        word(*shm_bytes != before.shm_bytes, "shm_size"),
    ])
}

fn joined<const N: usize>(words: [(bool, String); N]) -> String {
    let words = words.into_iter().filter(|(differs, _)| *differs).map(|(_, word)| word);
    words.collect::<Vec<_>>().join(" ")
}
