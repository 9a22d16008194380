//! `service create`: flags to a specification.
//!
//! Parsing happens flag by flag (the error names the flag), the rules of the
//! whole are the model's. Nothing here talks to anyone.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use warren_model::quantity::{parse_cores_milli, parse_duration_ms, parse_size};
use warren_model::service::{
    Attachment, Limits, LogOptions, Mode, OnDisconnect, Privileges, RestartCondition,
    RestartPolicy, SpecError,
};
use warren_model::{ServiceName, ServiceSpec, TaskTemplate};

use super::attach::{self, EndpointFlags};
use super::companion::CompanionFlags;
use super::env;
use super::failure::{Failure, nearest};
use super::health::HealthFlags;
use super::hooks::HookFlags;
use super::job::{self, JobFlags};
use super::mounts::MountFlags;
use super::moving::MovingFlags;
use super::pace::PaceFlags;
use super::placing::{PlacingFlags, ReserveFlags};
use super::ports::{self, Publish};
use super::privileges::{PrivilegeFlags, PrivilegeLists, take_host};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeFlag {
    Replicated,
    Global,
    ReplicatedJob,
    GlobalJob,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConditionFlag {
    None,
    OnFailure,
    Any,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct CreateFlags {
    /// Name of the service: a-z, 0-9, '-' and '_', at most 63
    #[arg(value_name = "NAME")]
    name: ServiceName,
    /// Image to run, e.g. nginx:1.27
    #[arg(long, value_name = "REF")]
    image: String,
    /// Number of replicas; of a job, of tasks to their end [default: 1]
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = count)]
    replicas: Option<u32>,
    /// replicated, or global: one on every node; of a job tasks end and are not begun again
    #[arg(long, value_enum, default_value_t = ModeFlag::Replicated)]
    mode: ModeFlag,
    /// Publish a port: [IP:]PUBLISHED:TARGET[/udp] or published=,target=,protocol=,mode=ingress|host,host_ip=
    #[arg(short, long, value_name = "PORT", value_parser = ports::parse)]
    publish: Vec<Publish>,
    /// Set a variable; KEY alone takes the caller's value
    #[arg(short, long, value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// Read variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Label of the service
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// Label of its containers
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    container_label: Vec<(String, String)>,
    /// Put it on a network: NAME[,alias=A][,ip=ADDRESS]; repeat for more; host is the node's own
    /// [default: default]
    #[arg(long, value_name = "NETWORK", value_parser = attach::parse)]
    network: Vec<Attachment>,
    /// Host name of its containers
    #[arg(long, value_name = "HOST", allow_hyphen_values = true)]
    hostname: Option<String>,
    /// Add a capability
    #[arg(long, value_name = "CAP")]
    cap_add: Vec<String>,
    /// Drop a capability
    #[arg(long, value_name = "CAP")]
    cap_drop: Vec<String>,
    #[command(flatten)]
    privileges: PrivilegeLists,
    /// Root file system cannot be written to
    #[arg(long)]
    read_only: bool,
    #[command(flatten)]
    companions: CompanionFlags,
    #[command(flatten)]
    mounts: MountFlags,
    #[command(flatten)]
    placing: PlacingFlags,
    #[command(flatten)]
    common: CommonFlags,
    /// Command and its arguments, instead of the image's
    #[arg(value_name = "CMD", trailing_var_arg = true)]
    command: Vec<String>,
}

/// Flags that `create` and `update` share, word for word.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct CommonFlags {
    /// User: name, uid, user:group or uid:gid
    #[arg(short, long, value_name = "USER", allow_negative_numbers = true)]
    pub(crate) user: Option<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// Entrypoint instead of the image's, split like a shell does
    #[arg(long, value_name = "COMMAND", value_parser = words)]
    pub(crate) entrypoint: Option<Words>,
    /// Processor time, e.g. 0.5 or 2 cores
    #[arg(long, value_name = "CORES", allow_hyphen_values = true, value_parser = cores)]
    pub(crate) limit_cpu: Option<u32>,
    /// Memory, e.g. 128MiB
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = bytes)]
    pub(crate) limit_memory: Option<u64>,
    /// Processes and threads
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = count)]
    pub(crate) limit_pids: Option<u32>,
    /// Size of /dev/shm, e.g. 256m; 0 is the default [default: 64MiB]
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub(crate) shm_size: Option<u64>,
    /// Signal that asks a container to end
    #[arg(long, value_name = "SIGNAL")]
    pub(crate) stop_signal: Option<String>,
    /// Time from that signal to SIGKILL, e.g. 10s
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = duration)]
    pub(crate) stop_grace_period: Option<u64>,
    /// When a container that ended is started again [default: any; of a job: on-failure]
    #[arg(long, value_enum, value_name = "CONDITION")]
    pub(crate) restart_condition: Option<ConditionFlag>,
    /// Pause before a restart; doubles while it keeps failing [default: 100ms]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = duration)]
    pub(crate) restart_delay: Option<u64>,
    /// Restarts within the window before the replica counts as failed; 0 is no limit [default: 0; of
    /// a job: 3]
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = count)]
    pub(crate) restart_max_attempts: Option<u32>,
    /// Running this long forgets earlier failures [default: 10s]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = duration)]
    pub(crate) restart_window: Option<u64>,
    #[command(flatten)]
    pub(crate) pace: PaceFlags,
    #[command(flatten)]
    pub(crate) job: JobFlags,
    #[command(flatten)]
    pub(crate) hooks: HookFlags,
    /// When the node is out of reach: keep; stop-after=D: the node stops it; replace-after=D: it
    /// is started elsewhere [default: replace-after=3s]
    #[arg(long, value_name = "POLICY", value_parser = on_disconnect)]
    pub(crate) on_disconnect: Option<OnDisconnect>,
    #[command(flatten)]
    pub(crate) health: HealthFlags,
    #[command(flatten)]
    pub(crate) reserve: ReserveFlags,
    #[command(flatten)]
    pub(crate) moving: MovingFlags,
    #[command(flatten)]
    pub(crate) endpoint: EndpointFlags,
    #[command(flatten)]
    pub(crate) privileges: PrivilegeFlags,
    /// Rotation of logs: max-size=10MiB, max-file=3
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',', value_parser = log_option)]
    pub(crate) log_opt: Vec<LogOption>,
}

/// A command line split into words; a type of its own so that clap takes it as one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Words(pub(crate) Vec<String>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogOption {
    MaxSize(u64),
    MaxFile(u32),
}

pub(crate) fn words(text: &str) -> Result<Words, String> {
    shlex::split(text).map(Words).ok_or_else(|| format!("{text:?} has a quote that is not closed"))
}

pub(crate) fn count(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("{text:?} is not a number from 0 to {}", u32::MAX))
}

pub(crate) fn cores(text: &str) -> Result<u32, String> {
    // 0 lifts a limit, as in Docker.
    if text == "0" { Ok(0) } else { parse_cores_milli(text).map_err(|e| e.to_string()) }
}

pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|e| e.to_string())
}

pub(crate) fn duration(text: &str) -> Result<u64, String> {
    parse_duration_ms(text).map_err(|e| e.to_string())
}

pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        return Err(format!("{text:?} is not of the form KEY=value"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

fn on_disconnect(text: &str) -> Result<OnDisconnect, String> {
    let (word, ms) = match text.split_once('=') {
        None => (text, None),
        Some((word, value)) => (word, Some(duration(value)?)),
    };
    match (word, ms) {
        ("keep", None) => Ok(OnDisconnect::Keep),
        ("stop-after", Some(ms)) => Ok(OnDisconnect::StopAfter { ms }),
        ("replace-after", Some(ms)) => Ok(OnDisconnect::ReplaceAfter { ms }),
        _ => Err(format!("{text:?} is not one of keep, stop-after=D, replace-after=D")),
    }
}

fn log_option(text: &str) -> Result<LogOption, String> {
    const KEYS: [&str; 2] = ["max-size", "max-file"];
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} is not of the form max-size=10MiB or max-file=3"))?;
    match key {
        "max-size" => bytes(value).map(LogOption::MaxSize),
        "max-file" => count(value).map(LogOption::MaxFile),
        _ => {
            let meant = nearest(key, KEYS).map(|k| format!("did you mean {k}?"));
            let known = meant.unwrap_or_else(|| format!("options are {}", KEYS.join(", ")));
            Err(format!("there is no option {key:?}; {known}"))
        }
    }
}

impl CommonFlags {
    /// Puts what was given into `spec`; an empty text or 0 takes a setting back.
    pub(crate) fn apply(&self, spec: &mut ServiceSpec) -> Result<(), Failure> {
        let task = &mut spec.task;
        set_text(&mut task.user, self.user.as_ref());
        set_text(&mut task.workdir, self.workdir.as_ref());
        set_text(&mut task.stop_signal, self.stop_signal.as_ref());
        if let Some(Words(words)) = &self.entrypoint {
            task.entrypoint = (!words.is_empty()).then(|| words.clone());
        }
        if self.stop_grace_period.is_some() {
            task.stop_grace_ms = self.stop_grace_period;
        }
        set_limit(&mut task.limits.cpu_millis, self.limit_cpu);
        set_limit(&mut task.limits.memory_bytes, self.limit_memory);
        set_limit(&mut task.limits.pids, self.limit_pids);
        set_limit(&mut task.shm_bytes, self.shm_size);
        self.apply_restart(&mut task.restart);
        for option in &self.log_opt {
            match option {
                LogOption::MaxSize(bytes) => task.log.max_bytes = *bytes,
                LogOption::MaxFile(files) => task.log.max_files = *files,
            }
        }
        spec.on_disconnect = self.on_disconnect.unwrap_or(spec.on_disconnect);
        self.endpoint.apply(spec);
        self.privileges.apply(&mut spec.task.privileges);
        self.reserve.apply(spec);
        self.moving.apply(spec);
        self.pace.apply(spec);
        self.job.apply(spec)?;
        self.hooks.apply(spec)?;
        self.health.apply(spec)
    }

    fn apply_restart(&self, restart: &mut RestartPolicy) {
        match self.restart_condition {
            Some(ConditionFlag::None) => restart.condition = RestartCondition::None,
            Some(ConditionFlag::OnFailure) => restart.condition = RestartCondition::OnFailure,
            Some(ConditionFlag::Any) => restart.condition = RestartCondition::Any,
            None => {}
        }
        restart.delay_ms = self.restart_delay.unwrap_or(restart.delay_ms);
        restart.window_ms = self.restart_window.unwrap_or(restart.window_ms);
        set_limit(&mut restart.max_attempts, self.restart_max_attempts);
    }
}

pub(crate) fn set_text(field: &mut Option<String>, given: Option<&String>) {
    if let Some(text) = given {
        *field = (!text.is_empty()).then(|| text.clone());
    }
}

fn set_limit<N: Copy + Default + PartialEq>(field: &mut Option<N>, given: Option<N>) {
    if let Some(limit) = given {
        *field = (limit != N::default()).then_some(limit);
    }
}

impl CreateFlags {
    /// The specification that the flags describe.
    pub(crate) fn spec(mut self, lookup: env::Lookup<'_>) -> Result<ServiceSpec, Failure> {
        let mut privileges =
            Privileges { host_network: take_host(&mut self.network)?, ..Privileges::default() };
        self.privileges.apply(&mut privileges);
        let mode = match (self.mode, self.replicas) {
            (ModeFlag::Replicated, replicas) => {
                Mode::Replicated { replicas: replicas.unwrap_or(1) }
            }
            (ModeFlag::Global, None) => Mode::Global,
            (ModeFlag::ReplicatedJob, replicas) => job::mode(replicas, None),
            (ModeFlag::GlobalJob, None) => Mode::GlobalJob,
            (ModeFlag::Global, Some(n)) => {
                return Err(Failure::input(format!(
                    "--replicas: {n} cannot be asked of a global service, which has one replica on every node"
                )));
            }
            (ModeFlag::GlobalJob, Some(n)) => {
                return Err(Failure::input(format!(
                    "--replicas: {n} cannot be asked of a global job, which has one task on every node"
                )));
            }
        };
        let restart = if mode.is_job() { job::restart() } else { RestartPolicy::default() };
        let mut task = TaskTemplate {
            image: self.image,
            command: self.command,
            env: env::gather(&self.env_file, &self.env, lookup)?,
            hostname: self.hostname,
            container_labels: labels("--container-label", self.container_label)?,
            read_only: self.read_only,
            cap_add: self.cap_add,
            cap_drop: self.cap_drop,
            privileges,
            limits: Limits::default(),
            restart,
            log: LogOptions::default(),
            companions: self.companions.companions(lookup)?,
            ..TaskTemplate::default()
        };
        self.mounts.apply(&mut task);
        let mut spec = ServiceSpec {
            labels: labels("--label", self.label)?,
            mode,
            ports: self.publish.into_iter().flat_map(|Publish(ports)| ports).collect(),
            networks: self.network,
            placement: self.placing.placement(),
            ..ServiceSpec::new(self.name, task)
        };
        self.common.apply(&mut spec)?;
        spec.validate().map_err(|e| flag_error(&e))?;
        Ok(spec)
    }
}

pub(crate) fn labels(
    flag: &str,
    given: Vec<(String, String)>,
) -> Result<BTreeMap<String, String>, Failure> {
    let mut labels = BTreeMap::new();
    for (key, value) in given {
        if labels.insert(key.clone(), value).is_some() {
            return Err(Failure::input(format!("{flag}: {key:?} is given twice")));
        }
    }
    Ok(labels)
}

/// A rule of the model that is broken, in words of the command line.
pub(crate) fn flag_error(error: &SpecError) -> Failure {
    let flag = match error.field.as_str() {
        "ports" => "--publish",
        "labels" => "--label",
        "container_labels" => "--container-label",
        "command" => "CMD",
        "capabilities" => "--cap-add or --cap-drop",
        "log" => "--log-opt",
        "spec" => "the whole specification",
        "companions" => "--init-container and --sidecar",
        "group" => "--group-add",
        field => &format!("--{}", field.replace('_', "-")),
    };
    Failure::input(format!("{flag}: {:?} {}", error.value, error.problem))
}
