//! What a person wants of a service, and the rules it must obey.

mod companion;
mod endpoint;
pub mod expand;
mod hooks;
mod mounts;
mod privileges;
mod rules;
mod shared;
#[cfg(test)]
mod tests;
mod tuning;
mod update;
mod words;

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use crate::health::Healthcheck;
use crate::id::ServiceId;
use crate::job::{JobPolicy, JobStatus};
use crate::moving::Moving;
use crate::name::{PortName, ServiceName};
use crate::placement::Placement;
use crate::quantity::format_duration_ms;
use crate::resources::Resources;
pub use crate::service::companion::{Companion, CompanionKind, CompanionName, CompanionNameError};
pub use crate::service::endpoint::{Affinity, Attachment, Endpoint, EndpointMode};
pub use crate::service::hooks::{Hook, HookStatus, Hooks};
pub use crate::service::mounts::{
    Bind, Mount, MountKind, Tmpfs, Volume, is_plain_path, is_volume_name,
};
pub use crate::service::privileges::{
    HostDevice, HostDeviceError, Privileges, SeccompProfile, Ulimit, UlimitError, UlimitKind,
};
pub use crate::service::shared::SharedFolder;
pub use crate::service::tuning::{IoKind, IoLimit, Tuning};
pub use crate::service::update::{
    Change, ChangeKind, FailureAction, Revision, RollbackPolicy, UpdateKind, UpdateOrder,
    UpdatePhase, UpdatePolicy, UpdateState, UpdateStatus,
};
pub use crate::service::words::{
    CAPABILITIES, capability_name, is_capability, is_default_capability, is_hostname, is_user,
    parse_signal, signal_name,
};

/// A service as the state holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub id: ServiceId,
    pub spec: ServiceSpec,
    /// Of the specification, from 1; every change of it adds one.
    pub number: u32,
    /// Number of the current template. A change that needs new containers gets a new one, unless
    /// tasks run that are just so.
    pub template: u32,
    /// The highest number that a template of it ever had: none is given twice.
    pub template_last: u32,
    /// Where the specification came from.
    pub change: Change,
    /// Of the last change of its template; `None` before the first.
    pub update: Option<UpdateStatus>,
    /// Runs of a job; `None` of any other.
    pub job: Option<JobStatus>,
    /// Asked to go: its tasks are removed first.
    pub removing: bool,
    pub created: crate::Time,
    pub updated: crate::Time,
    /// Revision of the last change.
    pub revision: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSpec {
    pub name: ServiceName,
    pub labels: BTreeMap<String, String>,
    pub mode: Mode,
    pub ports: Vec<PortSpec>,
    pub update: UpdatePolicy,
    /// How rollbacks differ from updates.
    pub rollback: RollbackPolicy,
    pub task: TaskTemplate,
    pub on_disconnect: OnDisconnect,
    /// Networks that it is on; none: on the default one. See [`ServiceSpec::attachments`].
    pub networks: Vec<Attachment>,
    pub endpoint: Endpoint,
    pub placement: Placement,
    /// Of jobs alone.
    pub job: JobPolicy,
    pub moving: Moving,
    /// Of services that go on.
    pub hooks: Hooks,
}

/// What becomes of a task whose node is out of reach.
///
/// Nothing stops what runs where nobody is heard: only `StopAfter` keeps two copies from running
/// at once, and only because the node stops its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDisconnect {
    /// Never replaced while out of reach, nor stopped.
    Keep,
    /// The node stops it after that long without a manager; only then is it replaced.
    StopAfter { ms: u64 },
    /// Replaced once the node has been silent for that long; the old copy stops when the node is
    /// back.
    ReplaceAfter { ms: u64 },
}

impl OnDisconnect {
    /// As long as a node must be silent to be taken for lost.
    pub const REPLACE_AFTER_MS: u64 = 3000;
    /// A node needs a second to tell that its manager is gone and to look for another.
    pub const STOP_AFTER_MIN_MS: u64 = 1000;
    /// 30 days; who wants to wait for longer wants `Keep`.
    pub const MS_MAX: u64 = 30 * 86_400_000;

    fn validate(self) -> Result<(), SpecError> {
        let (ms, min) = match self {
            Self::Keep => return Ok(()),
            Self::StopAfter { ms } => (ms, Self::STOP_AFTER_MIN_MS),
            Self::ReplaceAfter { ms } => (ms, 0),
        };
        if (min..=Self::MS_MAX).contains(&ms) {
            return Ok(());
        }
        let (min, max) = (format_duration_ms(min), format_duration_ms(Self::MS_MAX));
        Err(wrong("on_disconnect", self, format!("is not between {min} and {max}")))
    }
}

impl Default for OnDisconnect {
    fn default() -> Self {
        Self::ReplaceAfter { ms: Self::REPLACE_AFTER_MS }
    }
}

impl fmt::Display for OnDisconnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keep => f.write_str("keep"),
            Self::StopAfter { ms } => write!(f, "stop-after {}", format_duration_ms(*ms)),
            Self::ReplaceAfter { ms } => write!(f, "replace-after {}", format_duration_ms(*ms)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Replicated {
        replicas: u32,
    },
    /// One on every active worker.
    Global,
    /// So many tasks to their end, in each run.
    ReplicatedJob {
        completions: u32,
        max_concurrent: u32,
    },
    /// One to its end on every worker that is active while the run goes on.
    GlobalJob,
}

/// A container of the service. Any change here needs new containers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskTemplate {
    /// As given; normalised by whoever pulls.
    pub image: String,
    /// Replaces the image's entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command.
    pub command: Vec<String>,
    /// `KEY=value`, unique keys.
    pub env: Vec<String>,
    pub workdir: Option<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`.
    pub user: Option<String>,
    pub hostname: Option<String>,
    pub container_labels: BTreeMap<String, String>,
    /// Signal name (`SIGTERM`, `TERM`) or number.
    pub stop_signal: Option<String>,
    pub stop_grace_ms: Option<u64>,
    pub read_only: bool,
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    pub privileges: Privileges,
    pub limits: Limits,
    pub tuning: Tuning,
    /// Kept free for it on its node, whether it uses it or not.
    pub reserve: Resources,
    pub restart: RestartPolicy,
    pub log: LogOptions,
    pub health: Healthcheck,
    /// Raised by `restart`: makes a template differ without another change.
    pub force: u32,
    /// Its init containers and sidecars, of each kind in the order in which they are started.
    pub companions: Vec<Companion>,
    /// Folders that it has in common with its companions.
    pub shared: Vec<SharedFolder>,
    /// Paths of the node, volumes and memory.
    pub mounts: Vec<Mount>,
    /// Size of /dev/shm; `None`: [`TaskTemplate::SHM_BYTES`].
    pub shm_bytes: Option<u64>,
}

impl TaskTemplate {
    /// Docker's grace period.
    pub const STOP_GRACE_MS: u64 = 10_000;

    fn text_len(&self) -> usize {
        let labels = self.container_labels.iter().map(|(k, v)| k.len() + v.len());
        let texts = self.env.iter().chain(&self.command).chain(self.entrypoint.iter().flatten());
        labels.sum::<usize>()
            + texts.map(String::len).sum::<usize>()
            + self.image.len()
            + self.health.text_len()
            + self.tuning.text_len()
            + self.privileges.text_len()
            + self.shared.iter().map(SharedFolder::text_len).sum::<usize>()
            + self.mounts.iter().map(Mount::text_len).sum::<usize>()
            + self.companions_text_len()
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    pub memory_bytes: Option<u64>,
    /// Thousandths of a core.
    pub cpu_millis: Option<u32>,
    pub pids: Option<u32>,
}

/// What the agent does when a container ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestartPolicy {
    pub condition: RestartCondition,
    /// Before the first restart; doubles with each further one, up to [`RestartPolicy::DELAY_MAX_MS`].
    pub delay_ms: u64,
    /// Restarts within `window_ms` before the task counts as failed; `None` is no limit.
    pub max_attempts: Option<u32>,
    /// An attempt that ran this long counts as good and forgets earlier ones.
    pub window_ms: u64,
}

impl RestartPolicy {
    /// A crashed service is missed every second: start soon, then back off.
    pub const DELAY_DEFAULT_MS: u64 = 100;
    /// Longest pause between restarts in a crash loop (Kubernetes waits up to 5 min).
    pub const DELAY_MAX_MS: u64 = 60_000;
    /// Long enough to tell a crash loop from bad luck.
    pub const WINDOW_DEFAULT_MS: u64 = 10_000;
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            condition: RestartCondition::Any,
            delay_ms: Self::DELAY_DEFAULT_MS,
            max_attempts: None,
            window_ms: Self::WINDOW_DEFAULT_MS,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartCondition {
    None,
    OnFailure,
    Any,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogOptions {
    pub max_bytes: u64,
    pub max_files: u32,
}

impl LogOptions {
    /// One block of a disk: with less, files would turn at every few lines.
    pub const BYTES_MIN: u64 = 4096;
}

impl Default for LogOptions {
    /// 3 files of 10 MiB: bounded by default, unlike Docker's json-file.
    fn default() -> Self {
        Self { max_bytes: 10 << 20, max_files: 3 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortSpec {
    pub protocol: Protocol,
    /// `0.0.0.0` is every address of the node.
    pub bind: Ipv4Addr,
    pub published: u16,
    pub target: u16,
    pub mode: PublishMode,
    /// For those who ask for the port by SRV.
    pub name: Option<PortName>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PublishMode {
    /// Balanced over the service's ready replicas.
    Ingress,
    /// On the replica's own node, one replica per node and port.
    Host,
}

impl PortSpec {
    /// Whether both would listen on the same address and port.
    pub fn clashes(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.published == other.published
            && (self.bind == other.bind
                || self.bind.is_unspecified()
                || other.bind.is_unspecified())
    }
}

/// `8080:80`, with bind address, protocol, mode and name where they are not the default.
impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.bind.is_unspecified() {
            write!(f, "{}:", self.bind)?;
        }
        write!(f, "{}:{}", self.published, self.target)?;
        if self.protocol == Protocol::Udp {
            f.write_str("/udp")?;
        }
        match (self.mode, self.name) {
            (PublishMode::Ingress, None) => Ok(()),
            (PublishMode::Ingress, Some(name)) => write!(f, " ({name})"),
            (PublishMode::Host, None) => f.write_str(" (host)"),
            (PublishMode::Host, Some(name)) => write!(f, " (host, {name})"),
        }
    }
}

/// One thing wrong with a spec: which field, which value, what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value:?} {problem}")]
pub struct SpecError {
    pub field: String,
    pub value: String,
    pub problem: String,
}

pub(crate) fn wrong(
    field: &str,
    value: impl fmt::Display,
    problem: impl Into<String>,
) -> SpecError {
    SpecError { field: field.to_owned(), value: value.to_string(), problem: problem.into() }
}

impl ServiceSpec {
    /// More than any node set of today runs of one service; keeps a typo from melting the cluster.
    pub const REPLICAS_MAX: u32 = 100_000;
    pub const PORTS_MAX: usize = 256;
    pub const LABELS_MAX: usize = 256;
    /// Of all strings of a spec together; far below the 512 KiB of an object.
    pub const TEXT_MAX: usize = 256 * 1024;

    /// One replica, everything else by default.
    pub fn new(name: ServiceName, task: TaskTemplate) -> Self {
        Self {
            name,
            labels: BTreeMap::new(),
            mode: Mode::Replicated { replicas: 1 },
            ports: Vec::new(),
            update: UpdatePolicy::default(),
            rollback: RollbackPolicy::default(),
            task,
            on_disconnect: OnDisconnect::default(),
            networks: Vec::new(),
            endpoint: Endpoint::default(),
            placement: Placement::default(),
            job: JobPolicy::default(),
            moving: Moving::default(),
            hooks: Hooks::default(),
        }
    }

    /// Checks everything that can be told without a node or an image.
    ///
    /// # Errors
    /// The first [`SpecError`] found, in the order of the fields.
    pub fn validate(&self) -> Result<(), SpecError> {
        if let Mode::Replicated { replicas } = self.mode
            && replicas > Self::REPLICAS_MAX
        {
            return Err(wrong(
                "replicas",
                replicas,
                format!("is more than {}", Self::REPLICAS_MAX),
            ));
        }
        check_labels("labels", &self.labels)?;
        self.check_ports()?;
        self.task.validate()?;
        self.check_updates()?;
        self.on_disconnect.validate()?;
        self.check_networks()?;
        self.placement.validate(&self.name)?;
        self.check_job()?;
        self.check_hooks()?;
        let text = self.text_len();
        if text > Self::TEXT_MAX {
            return Err(wrong(
                "spec",
                format!("{text} bytes"),
                format!("is more than {} bytes", Self::TEXT_MAX),
            ));
        }
        Ok(())
    }

    fn check_ports(&self) -> Result<(), SpecError> {
        if self.ports.len() > Self::PORTS_MAX {
            return Err(wrong(
                "ports",
                self.ports.len(),
                format!("is more than {}", Self::PORTS_MAX),
            ));
        }
        for (at, port) in self.ports.iter().enumerate() {
            if port.published == 0 || port.target == 0 {
                return Err(wrong("ports", port, "has port 0, allowed are 1 to 65535"));
            }
            if let Some(other) = self.ports[..at].iter().find(|other| other.clashes(port)) {
                return Err(wrong("ports", port, format!("publishes the same port as {other}")));
            }
            let differs = |other: &&PortSpec| {
                other.name.is_some()
                    && (other.name, other.protocol) == (port.name, port.protocol)
                    && other.target != port.target
            };
            if let Some(other) = self.ports[..at].iter().find(differs) {
                return Err(wrong("ports", port, format!("has the name of {other}, another port")));
            }
        }
        Ok(())
    }

    fn text_len(&self) -> usize {
        let labels = self.labels.iter().map(|(k, v)| k.len() + v.len());
        let names = self.networks.iter().map(Attachment::text_len).sum::<usize>();
        labels.sum::<usize>()
            + self.task.text_len()
            + names
            + self.placement.text_len()
            + self.job.schedule.as_ref().map_or(0, |s| s.cron.len() + s.timezone.len())
            + self.job.inputs.text_len()
            + self.hooks.text_len()
    }
}

pub(crate) fn check_labels(
    field: &str,
    labels: &BTreeMap<String, String>,
) -> Result<(), SpecError> {
    if labels.len() > ServiceSpec::LABELS_MAX {
        return Err(wrong(
            field,
            labels.len(),
            format!("is more than {}", ServiceSpec::LABELS_MAX),
        ));
    }
    match labels.keys().find(|key| key.is_empty() || key.contains(char::is_whitespace)) {
        Some(key) => Err(wrong(field, key, "is not a label key (not empty, no spaces)")),
        None => Ok(()),
    }
}
