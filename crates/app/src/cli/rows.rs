//! What listings show of services, tasks, nodes, images and events.
//!
//! The JSON keys are a promise to scripts: `KEYS` lists them, a test holds the
//! structs to it. Rows are made of wire messages and never travel further.

use serde::Serialize;
use warren_model::ServiceId;
use warren_model::moving::Cause;
use warren_model::service::{Hook, PortSpec};
use warren_model::task::{TaskState, TaskStatus};
use warren_model::{ServiceSpec, Time, image};
use warren_proto::v1;

use super::failure::Failure;
use super::job;
use super::listing::{Allowed, Record, View, size};

mod event;
mod node;

pub(crate) use event::EventRow;
pub(crate) use node::NodeRow;

/// Longest error in a table; `--no-trunc` shows it all.
const ERROR_WIDTH: usize = 60;
/// Digits of a digest in a table, as Docker.
const DIGEST_WIDTH: usize = 12;

fn id_text(bytes: &[u8]) -> String {
    // Ids of all kinds are written alike.
    match <[u8; 10]>::try_from(bytes) {
        Ok(bytes) => ServiceId::from_bytes(bytes).to_string(),
        Err(_) => String::new(),
    }
}

/// Bytes that are no id, such as hashes.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn service_id(bytes: &[u8]) -> String {
    id_text(bytes)
}

pub(crate) fn cluster_id(bytes: &[u8]) -> String {
    id_text(bytes)
}

/// The spec of a service that a manager sent.
pub(crate) fn spec_of(service: &v1::Service) -> Result<ServiceSpec, Failure> {
    let spec = service.spec.clone().unwrap_or_default();
    ServiceSpec::try_from(spec)
        .map_err(|e| Failure::failed(format!("read the answer about a service: {e}")))
}

#[derive(Debug, Serialize)]
pub(crate) struct ServiceRow {
    id: String,
    name: String,
    mode: &'static str,
    /// Without the digest, if it is pinned by one.
    image: String,
    image_digest: Option<String>,
    running: u32,
    desired: u32,
    /// Slots whose task has done its work.
    completed: u32,
    ports: Vec<String>,
    /// Of its specification, as `service history` numbers them.
    revision: u32,
    update_state: String,
    /// Why the update is paused, or was rolled back.
    update_message: Option<String>,
    created_at: String,
    updated_at: String,
    /// Of a job: `running`, `complete`, `failed`, `stopped`, `scheduled` or `suspended`.
    job_state: Option<&'static str>,
    next_run_at: Option<String>,
}

impl TryFrom<&v1::Service> for ServiceRow {
    type Error = Failure;

    fn try_from(service: &v1::Service) -> Result<Self, Failure> {
        let spec = spec_of(service)?;
        Ok(Self {
            id: id_text(&service.id),
            name: spec.name.to_string(),
            mode: spec.mode.as_str(),
            image: image::without_pin(&spec.task.image).to_owned(),
            image_digest: image::digest(&spec.task.image).map(str::to_owned),
            running: service.running,
            desired: service.desired,
            completed: service.completed,
            ports: spec.ports.iter().map(PortSpec::to_string).collect(),
            revision: service.number.max(1),
            update_message: Some(service.update_message.clone()).filter(|text| !text.is_empty()),
            update_state: match service.removing {
                true => "removing".to_owned(),
                false => service.update_state.clone(),
            },
            created_at: Time(service.created).to_string(),
            updated_at: Time(service.updated).to_string(),
            job_state: service
                .job
                .as_ref()
                .map(|status| job::row_state(status, job::is_on_demand(service))),
            next_run_at: service.job.as_ref().and_then(|job| moment(job.next)),
        })
    }
}

impl ServiceRow {
    /// As Docker says it: `0/1 (1/1 completed)`.
    fn replicas(&self) -> String {
        if self.job_state.is_some() {
            let done = format!("{}/{} completed", self.completed, self.desired);
            return match self.running {
                0 => done,
                running => format!("{done}, {running} running"),
            };
        }
        let running = format!("{}/{}", self.running, self.desired);
        match self.completed {
            0 => running,
            completed => format!("{running} ({completed}/{} completed)", self.desired),
        }
    }
}

impl Record for ServiceRow {
    const COLUMNS: &'static [&'static str] =
        &["ID", "NAME", "MODE", "REPLICAS", "IMAGE", "PORTS", "UPDATE"];
    const KEYS: &'static [&'static str] = &[
        "id",
        "name",
        "mode",
        "image",
        "image_digest",
        "running",
        "desired",
        "completed",
        "ports",
        "revision",
        "update_state",
        "update_message",
        "created_at",
        "updated_at",
        "job_state",
        "next_run_at",
    ];

    fn cells(&self, view: View) -> Vec<String> {
        vec![
            self.id.clone(),
            self.name.clone(),
            self.mode.to_owned(),
            self.replicas(),
            whole_image(view, &self.image, self.image_digest.as_ref()),
            self.ports.join(", "),
            match self.job_state {
                Some(state) if self.update_state != "removing" => state.to_owned(),
                Some(_) | None => self.update_state.clone(),
            },
        ]
    }

    fn key(&self) -> &str {
        &self.id
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct TaskRow {
    id: String,
    name: String,
    service: String,
    slot: u32,
    /// Of a job.
    run: Option<u32>,
    /// `pre-deploy` or `post-deploy` of what has no slot.
    hook: Option<&'static str>,
    node_id: Option<String>,
    node: String,
    /// Of a node that is `down`, `state` is the last that was heard of the task.
    node_status: &'static str,
    /// As that of its service.
    image: String,
    image_digest: Option<String>,
    desired_state: &'static str,
    /// Why it was made: `wanted`, `update`, `failure`, `lost`, `drain`, `placement`, `deadline` or
    /// `balance`; null: a version made it that did not say.
    cause: Option<&'static str>,
    state: &'static str,
    /// `starting`, `healthy` or `unhealthy`; `none` where nothing is asked, or nothing runs.
    health: &'static str,
    /// Nobody declared what is asked: see `service inspect`.
    health_implicit: bool,
    attempt: u32,
    restarts: u32,
    /// 0 while nothing runs.
    pid: u32,
    address: Option<String>,
    /// `vendor.com/class=name`.
    devices: Vec<String>,
    created_at: String,
    started_at: Option<String>,
    since: String,
    exit_code: Option<i32>,
    oom_killed: bool,
    error: Option<String>,
    /// What its init containers and sidecars do, if that is worth a word.
    #[serde(skip)]
    note: Option<String>,
    #[serde(skip)]
    is_unknown: bool,
    #[serde(skip)]
    since_ms: u64,
    #[serde(skip)]
    created_ms: u64,
}

fn node_status(number: i32) -> &'static str {
    match v1::NodeStatus::try_from(number) {
        Ok(v1::NodeStatus::Ready) => "ready",
        Ok(v1::NodeStatus::Down) => "down",
        Ok(v1::NodeStatus::Unspecified) | Err(_) => "unknown",
    }
}

/// Nobody knows what became of a task on a node that is down; one that ended before does not
/// come back.
fn is_unknown(task: &v1::Task) -> bool {
    let state = task.status.as_ref().and_then(|status| state_of(status.state));
    let ended = state.is_some_and(TaskState::is_terminal);
    task.node_status == i32::from(v1::NodeStatus::Down) && !ended
}

/// The state that a manager sent as a number.
pub(crate) fn state_of(number: i32) -> Option<TaskState> {
    let at = usize::try_from(number).ok()?.checked_sub(1)?;
    TaskState::ALL.get(at).copied()
}

impl From<&v1::Task> for TaskRow {
    fn from(task: &v1::Task) -> Self {
        let status = task.status.clone().unwrap_or_default();
        let state = state_of(status.state);
        let known = TaskStatus::try_from(status.clone()).ok();
        let service = match task.service_name.as_str() {
            "" => id_text(&task.service),
            name => name.to_owned(),
        };
        let hook = (task.slot == 0).then(|| Hook::from_number(task.run)).flatten();
        let hook = hook.map(Hook::as_str);
        let desired_state = match v1::Desired::try_from(task.desired) {
            Ok(v1::Desired::Running) => "running",
            Ok(v1::Desired::Shutdown) => "shutdown",
            Ok(v1::Desired::Remove) => "remove",
            Ok(v1::Desired::Unspecified) | Err(_) => "unknown",
        };
        Self {
            id: id_text(&task.id),
            name: match hook {
                Some(hook) => format!("{service}.{hook}"),
                None => format!("{service}.{}", task.slot),
            },
            service,
            slot: task.slot,
            run: Some(task.run).filter(|run| *run > 0 && hook.is_none()),
            hook,
            node_id: task.node.as_deref().map(id_text),
            node: task.node_name.clone(),
            node_status: node_status(task.node_status),
            image: image::without_pin(&task.image).to_owned(),
            image_digest: image::digest(&task.image).map(str::to_owned),
            desired_state,
            cause: task
                .origin
                .and_then(|origin| Cause::try_from(origin.cause()).ok())
                .map(Cause::as_str),
            state: match status.paused {
                true => TaskStatus::PAUSED,
                false => state.map_or("unknown", TaskState::as_str),
            },
            health: health_of(&status),
            health_implicit: task.health_implicit,
            attempt: status.attempt,
            restarts: status.attempt.saturating_sub(1),
            pid: status.pid,
            address: task.address.map(|a| std::net::Ipv4Addr::from(a).to_string()),
            devices: task.devices.clone(),
            created_at: Time(task.created).to_string(),
            started_at: status.started.map(|at| Time(at).to_string()),
            since: Time(status.since).to_string(),
            exit_code: status.exit.as_ref().map(|e| e.code),
            oom_killed: status.exit.as_ref().is_some_and(|e| e.oom_killed),
            error: status.error.filter(|e| !e.is_empty()),
            note: known.and_then(|known| known.companion_note()),
            is_unknown: is_unknown(task),
            since_ms: status.since,
            created_ms: task.created,
        }
    }
}

fn health_of(status: &v1::TaskStatus) -> &'static str {
    let health = status.health.as_ref().map(v1::Health::state);
    match health {
        Some(v1::HealthState::Starting) => "starting",
        Some(v1::HealthState::Healthy) => "healthy",
        Some(v1::HealthState::Unhealthy) => "unhealthy",
        Some(v1::HealthState::Unspecified) | None => "none",
    }
}

impl TaskRow {
    /// ` (healthy)` beside a state.
    fn well(&self) -> String {
        let health = match (self.health, self.health_implicit) {
            ("none", _) => None,
            (health, true) => Some(format!("{health}, implicit")),
            (health, false) => Some(health.to_owned()),
        };
        let words: Vec<String> = health.into_iter().chain(self.note.clone()).collect();
        if words.is_empty() { String::new() } else { format!(" ({})", words.join(", ")) }
    }

    /// By service and slot; within a slot what is wanted now comes first, then the newest.
    pub(crate) fn sort(rows: &mut [Self]) {
        let place = |row: &Self| {
            let past = row.desired_state != "running";
            let (run, created) = (std::cmp::Reverse(row.run), std::cmp::Reverse(row.created_ms));
            (row.service.clone(), run, row.slot, past, created, row.id.clone())
        };
        rows.sort_by_cached_key(place);
    }
}

impl Record for TaskRow {
    const COLUMNS: &'static [&'static str] = &[
        "NAME",
        "ID",
        "IMAGE",
        "NODE",
        "DESIRED STATE",
        "CURRENT STATE",
        "RESTARTS",
        "ADDRESS",
        "ERROR",
    ];
    const KEYS: &'static [&'static str] = &[
        "id",
        "name",
        "service",
        "slot",
        "run",
        "hook",
        "node_id",
        "node",
        "node_status",
        "image",
        "image_digest",
        "desired_state",
        "cause",
        "state",
        "health",
        "health_implicit",
        "attempt",
        "restarts",
        "pid",
        "address",
        "devices",
        "created_at",
        "started_at",
        "since",
        "exit_code",
        "oom_killed",
        "error",
    ];
    const IDS: &'static [(&'static str, &'static str)] = &[("node", "node_id")];

    fn allowed(key: &str) -> Allowed {
        match key {
            "slot" | "attempt" | "restarts" | "pid" => Allowed::Number,
            "state" => {
                let states = TaskState::ALL.iter().map(|state| state.as_str());
                Allowed::Words(states.chain([TaskStatus::PAUSED]).collect())
            }
            "desired_state" => Allowed::Words(vec!["running", "shutdown", "remove"]),
            "health" => Allowed::Words(vec!["starting", "healthy", "unhealthy", "none"]),
            "node_status" => Allowed::Words(vec!["ready", "down", "unknown"]),
            "health_implicit" | "oom_killed" => Allowed::Words(vec!["true", "false"]),
            _ => Allowed::Any,
        }
    }

    fn cells(&self, view: View) -> Vec<String> {
        let error = match (&self.error, self.exit_code) {
            (Some(error), _) => error.clone(),
            (None, Some(_)) if self.state == "running" => String::new(),
            (None, Some(code)) if code != 0 => format!("exit code {code}"),
            (None, _) => String::new(),
        };
        let doubt = if self.is_unknown { " (node down)" } else { "" };
        let run = self.run.map(|run| format!(" (run {run})")).unwrap_or_default();
        vec![
            format!("{}{run}", self.name),
            self.id.clone(),
            whole_image(view, &self.image, self.image_digest.as_ref()),
            self.node.clone(),
            self.desired_state.to_owned(),
            format!("{}{}{doubt} {}", self.state, self.well(), view.ago(Time(self.since_ms))),
            self.restarts.to_string(),
            self.address.clone().unwrap_or_default(),
            view.cut(&error, ERROR_WIDTH),
        ]
    }

    fn key(&self) -> &str {
        &self.id
    }
}

/// With its digest where nothing is to be shortened.
fn whole_image(view: View, image: &str, digest: Option<&String>) -> String {
    match digest {
        Some(digest) if view.whole && !image.contains('@') => format!("{image}@{digest}"),
        Some(_) | None => image.to_owned(),
    }
}

/// A moment, unless it never was.
fn moment(at: u64) -> Option<String> {
    (at != 0).then(|| Time(at).to_string())
}

#[derive(Debug, Serialize)]
pub(crate) struct ImageRow {
    name: String,
    id: String,
    digest: Option<String>,
    size_bytes: u64,
    /// Builders that want the same image twice leave it out.
    created_at: Option<String>,
    #[serde(skip)]
    created_ms: u64,
}

impl From<&v1::ImageRow> for ImageRow {
    fn from(image: &v1::ImageRow) -> Self {
        Self {
            name: image.name.clone(),
            id: image.id.clone(),
            digest: Some(image.digest.clone()).filter(|d| !d.is_empty()),
            size_bytes: image.size_bytes,
            created_at: moment(image.created),
            created_ms: image.created,
        }
    }
}

impl Record for ImageRow {
    const COLUMNS: &'static [&'static str] = &["NAME", "ID", "CREATED", "SIZE"];
    const KEYS: &'static [&'static str] = &["name", "id", "digest", "size_bytes", "created_at"];

    fn cells(&self, view: View) -> Vec<String> {
        let digits = self.id.strip_prefix("sha256:").unwrap_or(&self.id);
        let id = match view.whole {
            true => self.id.clone(),
            false => digits.chars().take(DIGEST_WIDTH).collect(),
        };
        let created = match self.created_at {
            Some(_) => view.ago(Time(self.created_ms)),
            None => "N/A".to_owned(),
        };
        vec![self.name.clone(), id, created, size(self.size_bytes)]
    }

    fn key(&self) -> &str {
        &self.id
    }
}
