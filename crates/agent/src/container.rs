//! From an image and a template to a container, as Docker does it.
//!
//! Pure, but for [`host_resolver`]. The labels written here are what a later
//! process of the agent finds its tasks by ([`parse_labels`]).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use warren_image::{Image, ImageConfig};
use warren_model::job::Inputs;
use warren_model::service::expand::{self, Facts};
use warren_model::service::{
    self, Companion, CompanionName, TaskTemplate, is_hostname, parse_signal,
};
use warren_model::task::TaskExit;
use warren_model::{ServiceId, TaskId, Time};
use warren_net::{Addresses, Sandbox};
use warren_runtime::{
    ContainerInfo, ContainerSpec, ContainerState, Exit, InjectedFile, IoKind, IoLimit, Limits,
    LogPolicy, Mount, MountKind,
};

use crate::cdi::{BindMount, Edits};
use crate::core::{Order, TaskSpec, companion_id};
use crate::crew::{self, FoundCompanion};
use crate::published::Claim;
use crate::task::{Ended, Found, FoundState};

mod privileges;

const TASK: &str = "warren.task";
const ATTEMPT: &str = "warren.attempt";
const RESTARTS: &str = "warren.restarts";
const LAST_EXIT: &str = "warren.last-exit";
const STARTED: &str = "warren.started";
const SERVICE: &str = "warren.service";
const SERVICE_NAME: &str = "warren.service-name";
const ADDRESS: &str = "warren.address";
const ADDRESS6: &str = "warren.address6";
const PORTS: &str = "warren.ports";
const IMAGE_ID: &str = "warren.image-id";
/// Of an init container or a sidecar: its name.
const COMPANION: &str = "warren.companion";

/// Docker's; a container without a PATH finds nothing.
const PATH_DEFAULT: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Docker's length of a container id in a host name.
const HOSTNAME_LEN: usize = 12;
const SIGTERM: i32 = 15;

/// Why a template and an image do not make a container.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("image {image} has no command, and none is given")]
    NoCommand { image: String },
    #[error(
        "hostname: {given:?} comes to {name:?}, which is not a host name (letters, digits and '-', at most 64)"
    )]
    Hostname { given: String, name: String },
    #[error("env: {given:?} comes to a text with a zero byte")]
    Zero { given: String },
}

/// What the worker has gathered for a start.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    pub(crate) image: Image,
    /// On the node's own network: none.
    pub(crate) sandbox: Option<Sandbox>,
    pub(crate) keep: Vec<(String, Arc<OwnedFd>)>,
    /// What its devices need.
    pub(crate) edits: Edits,
}

/// Of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) number: u32,
    /// Restarts since the last good attempt.
    pub(crate) restarts: u32,
    pub(crate) last_exit: Option<TaskExit>,
    pub(crate) at: Time,
}

/// The container of an attempt. `resolver` is the text of its resolv.conf.
///
/// # Errors
/// [`Error`] when there is nothing to run.
pub(crate) fn container(
    order: &Order,
    facts: &Facts<'_>,
    attempt: Attempt,
    parts: Parts,
    resolver: &str,
    logs: &Path,
) -> Result<ContainerSpec, Error> {
    let (task, claims) = (&*order.spec, &order.claims);
    let template = &filled(&task.template, facts)?;
    let config = &parts.image.config;
    let args = arguments(template, config);
    if args.is_empty() {
        return Err(Error::NoCommand { image: template.image.clone() });
    }
    let hostname = hostname(task, template, facts.hostname);
    Ok(ContainerSpec {
        id: task.container_id(attempt.number),
        args,
        env: with_edits(
            given_environment(task, environment(template, config, &hostname)),
            parts.edits.env,
        ),
        cwd: template.workdir.clone().unwrap_or_else(|| config.workdir.clone()),
        user: template.user.clone().unwrap_or_else(|| config.user.clone()),
        files: files(task, &hostname, parts.sandbox.as_ref(), resolver),
        hostname,
        read_only: template.read_only,
        limits: limits_of(order.defaults.limits_of(template), template),
        mounts: parts.edits.mounts.into_iter().map(mount).collect(),
        shm_bytes: template.shm_bytes,
        devices: privileges::devices(template, parts.edits.nodes),
        cap_add: template.cap_add.clone(),
        cap_drop: template.cap_drop.clone(),
        no_new_privileges: template.privileges.forbids_new(),
        seccomp: privileges::seccomp(template),
        privileges: privileges::of(template),
        stop_signal: stop_signal(template, config),
        netns: parts.sandbox.map(|sandbox| sandbox.netns),
        keep: parts.keep,
        log: LogPolicy {
            dir: logs.to_owned(),
            max_bytes: template.log.max_bytes,
            max_files: template.log.max_files,
        },
        labels: labels(task, template, facts.service_name, claims, &parts.image.id, attempt),
        layers: parts.image.layers,
    })
}

/// One of the other containers of an attempt. What it has not of its own is the task's.
///
/// # Errors
/// [`Error`] when there is nothing to run.
pub(crate) fn companion(
    order: &Order,
    companion: &Companion,
    facts: &Facts<'_>,
    attempt: Attempt,
    parts: Parts,
    resolver: &str,
    logs: &Path,
) -> Result<ContainerSpec, Error> {
    let task = &*order.spec;
    let merged = TaskSpec { template: Arc::new(crew::merged(task, companion)), ..task.clone() };
    let merged = Order { spec: Arc::new(merged), claims: Vec::new(), ..order.clone() };
    let mut spec = container(&merged, facts, attempt, parts, resolver, logs)?;
    spec.id = companion_id(task.id, attempt.number, &companion.name);
    spec.labels.insert(COMPANION.to_owned(), companion.name.to_string());
    Ok(spec)
}

fn limits_of(limits: service::Limits, template: &TaskTemplate) -> Limits {
    let tuning = template.tuning.clone();
    let io = tuning.io_limits.into_iter().map(|limit| IoLimit {
        kind: match limit.kind {
            service::IoKind::ReadBps => IoKind::ReadBps,
            service::IoKind::WriteBps => IoKind::WriteBps,
            service::IoKind::ReadIops => IoKind::ReadIops,
            service::IoKind::WriteIops => IoKind::WriteIops,
        },
        device: limit.device.into(),
        rate: limit.rate,
    });
    Limits {
        memory_bytes: limits.memory_bytes,
        cpu_millis: limits.cpu_millis,
        cpu_shares: tuning.cpu_shares,
        pids: limits.pids,
        swap_bytes: tuning.swap_bytes,
        cpuset_cpus: tuning.cpuset_cpus,
        cpuset_mems: tuning.cpuset_mems,
        io_weight: tuning.io_weight,
        io: io.collect(),
    }
}

/// Overriding the entrypoint drops the image's command, which was meant for the other one.
pub(crate) fn arguments(template: &TaskTemplate, config: &ImageConfig) -> Vec<String> {
    let (entrypoint, fallback) = match &template.entrypoint {
        Some(entrypoint) => (entrypoint, &[][..]),
        None => (&config.entrypoint, config.cmd.as_slice()),
    };
    let command = if template.command.is_empty() { fallback } else { &template.command };
    entrypoint.iter().chain(command).cloned().collect()
}

/// Later entries win: defaults, image, template.
pub(crate) fn environment(
    template: &TaskTemplate,
    config: &ImageConfig,
    hostname: &str,
) -> Vec<String> {
    let own = [PATH_DEFAULT.to_owned(), format!("HOSTNAME={hostname}")];
    let mut merged: Vec<String> = Vec::new();
    for pair in own.iter().chain(&config.env).chain(&template.env) {
        let key = pair.split('=').next().unwrap_or_default();
        let same = |old: &&mut String| old.split('=').next() == Some(key);
        match merged.iter_mut().find(same) {
            Some(old) => old.clone_from(pair),
            None => merged.push(pair.clone()),
        }
    }
    merged
}

/// With what the run was given, which wins.
pub(crate) fn given_environment(task: &TaskSpec, mut env: Vec<String>) -> Vec<String> {
    let given = &task.given;
    let params = given.params.iter();
    let mut own: Vec<(String, &str)> =
        params.map(|(name, value)| (Inputs::variable(name), value.as_str())).collect();
    if given.payload.is_some() {
        own.push((Inputs::PAYLOAD_VARIABLE.to_owned(), Inputs::PAYLOAD_FILE));
    }
    for (key, value) in own {
        env.retain(|pair| pair.split('=').next() != Some(key.as_str()));
        env.push(format!("{key}={value}"));
    }
    env
}

/// What devices need comes last, as the specification of their files has it.
fn with_edits(mut env: Vec<String>, edits: Vec<String>) -> Vec<String> {
    let key = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
    for pair in edits {
        env.retain(|other| key(other) != key(&pair));
        env.push(pair);
    }
    env
}

fn mount(mount: BindMount) -> Mount {
    let BindMount { host_path, target, read_only } = mount;
    Mount { kind: MountKind::Bind { source: host_path.into() }, target, read_only }
}

/// The template with everything filled in that is to be.
fn filled(template: &TaskTemplate, facts: &Facts<'_>) -> Result<TaskTemplate, Error> {
    let mut filled = template.clone();
    for pair in filled.env.iter_mut().filter(|pair| expand::is_template(pair)) {
        let text = expand::expand(pair, facts);
        if text.contains('\0') {
            return Err(Error::Zero { given: pair.clone() });
        }
        *pair = text;
    }
    for value in filled.container_labels.values_mut() {
        *value = expand::expand(value, facts);
    }
    if let Some(given) = template.hostname.as_ref().filter(|name| expand::is_template(name)) {
        let name = expand::expand(given, facts);
        if !is_hostname(&name) {
            return Err(Error::Hostname { given: given.clone(), name });
        }
        filled.hostname = Some(name);
    }
    Ok(filled)
}

/// On the node's own network it has the node's name, as in Docker.
fn hostname(task: &TaskSpec, template: &TaskTemplate, node: &str) -> String {
    template.hostname.clone().unwrap_or_else(|| {
        if template.privileges.host_network {
            return node.to_owned();
        }
        let mut id = task.id.to_string();
        id.truncate(HOSTNAME_LEN);
        id
    })
}

fn stop_signal(template: &TaskTemplate, config: &ImageConfig) -> i32 {
    let given = template.stop_signal.as_deref().unwrap_or(&config.stop_signal);
    parse_signal(given).unwrap_or(SIGTERM)
}

fn files(
    task: &TaskSpec,
    hostname: &str,
    sandbox: Option<&Sandbox>,
    resolver: &str,
) -> Vec<InjectedFile> {
    // Debian's way for a name without an address of its own.
    let address = sandbox.map_or(Ipv4Addr::new(127, 0, 1, 1), |sandbox| sandbox.address);
    let short = hostname.split('.').next().unwrap_or(hostname);
    let names = if short == hostname { short.to_owned() } else { format!("{hostname} {short}") };
    let mut hosts = format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n{address}\t{names}\n"
    );
    if let Some(address) = sandbox.and_then(|sandbox| sandbox.address6) {
        hosts.push_str(&format!("{address}\t{names}\n"));
    }
    let file = |target: &str, text: String| InjectedFile {
        target: target.to_owned(),
        data: text.into_bytes(),
        mode: 0o644,
        of_user: false,
    };
    let payload = task.given.payload.as_ref().map(|payload| InjectedFile {
        target: Inputs::PAYLOAD_FILE.to_owned(),
        data: payload.to_vec(),
        mode: 0o400,
        of_user: true,
    });
    let mut files = vec![
        file("/etc/hosts", hosts),
        file("/etc/hostname", format!("{hostname}\n")),
        file("/etc/resolv.conf", resolver.to_owned()),
    ];
    files.extend(payload);
    files
}

/// The host's resolver as a container can use it: servers on the host's own
/// loopback cannot be reached from inside, so they go unless nothing else is left.
pub(crate) fn resolv_conf(host: &str) -> String {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next().unwrap_or_default().to_owned())
    };
    let is_local = |server: &str| server.starts_with("127.") || server == "::1";
    let lines = || host.lines().map(str::trim).filter(|l| !l.starts_with(['#', ';']));
    let reachable = lines().filter_map(server).any(|server| !is_local(&server));
    let mut out = String::new();
    for line in lines() {
        let keep = match server(line) {
            Some(server) => !reachable || !is_local(&server),
            None => ["search", "options", "domain"]
                .iter()
                .any(|word| line.split_whitespace().next() == Some(*word)),
        };
        if keep {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// The resolver settings of this host, behind systemd-resolved's stub if there is one.
pub(crate) async fn host_resolver() -> String {
    let read = |path: &'static str| async move { tokio::fs::read_to_string(path).await };
    let plain = read("/etc/resolv.conf").await.unwrap_or_default();
    if plain.lines().any(|line| line.split_whitespace().eq(["nameserver", "127.0.0.53"])) {
        // Written by systemd-resolved for exactly this use.
        return read("/run/systemd/resolve/resolv.conf").await.unwrap_or(plain);
    }
    plain
}

fn labels(
    task: &TaskSpec,
    template: &TaskTemplate,
    service_name: &str,
    claims: &[Claim],
    image_id: &str,
    attempt: Attempt,
) -> BTreeMap<String, String> {
    let users = template.container_labels.iter();
    let mut labels: BTreeMap<String, String> = users
        .filter(|(key, _)| !key.starts_with("warren."))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let mut put = |key: &str, value: String| labels.insert(key.to_owned(), value);
    put(TASK, task.id.to_string());
    put(ATTEMPT, attempt.number.to_string());
    put(RESTARTS, attempt.restarts.to_string());
    put(STARTED, attempt.at.0.to_string());
    if let Some(exit) = attempt.last_exit {
        let oom = if exit.oom_killed { " oom" } else { "" };
        put(LAST_EXIT, format!("{}{oom}", exit.code));
    }
    put(SERVICE, task.service.to_string());
    put(SERVICE_NAME, service_name.to_owned());
    let ports: Vec<String> = claims.iter().map(|claim| claim.to_text()).collect();
    put(PORTS, ports.join(" "));
    put("warren.slot", task.slot.to_string());
    put("warren.template", task.template_number.to_string());
    put(IMAGE_ID, image_id.to_owned());
    put("warren.image", task.template.image.clone());
    if let Some(address) = task.address {
        put(ADDRESS, address.to_string());
    }
    if let Some(address) = task.address6 {
        put(ADDRESS6, address.to_string());
    }
    labels
}

/// A container of ours as listed by the runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) task: TaskId,
    pub(crate) service: ServiceId,
    pub(crate) service_name: String,
    pub(crate) addresses: Option<Addresses>,
    pub(crate) claims: Vec<Claim>,
    pub(crate) image_id: String,
    /// It is an init container or a sidecar of the task.
    pub(crate) companion: Option<CompanionName>,
    pub(crate) found: Found,
}

impl Listed {
    /// Its first process, if it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        match self.found.state {
            FoundState::Running { pid, .. } => Some(pid),
            FoundState::Exited { .. } | FoundState::Beginning => None,
        }
    }

    /// If it is beside the task's own container.
    pub(crate) fn found_companion(&self) -> Option<FoundCompanion> {
        Some(FoundCompanion {
            task: self.task,
            attempt: self.found.attempt,
            name: self.companion.clone()?,
            restarts: self.found.restarts,
            state: self.found.state,
        })
    }
}

/// Whether a container goes beside a task's own.
pub(crate) fn is_companion(info: &ContainerInfo) -> bool {
    info.labels.contains_key(COMPANION)
}

/// What the labels and state of a container say; `None` for one that is not ours.
pub(crate) fn parse_labels(info: &ContainerInfo) -> Option<Listed> {
    let label = |key: &str| info.labels.get(key).map(String::as_str);
    let task: TaskId = label(TASK)?.parse().ok()?;
    let started = label(STARTED).and_then(|text| text.parse().ok()).map(Time);
    let last_exit = label(LAST_EXIT).and_then(|text| {
        let (code, oom) = text.split_once(' ').unwrap_or((text, ""));
        Some(TaskExit { code: code.parse().ok()?, oom_killed: oom == "oom" })
    });
    let state = match &info.state {
        ContainerState::Running { pid, started_at } => {
            FoundState::Running { pid: *pid, at: time(*started_at) }
        }
        ContainerState::Exited(exit) => FoundState::Exited { started, ended: ended(exit) },
    };
    let found = Found {
        attempt: label(ATTEMPT)?.parse().ok()?,
        restarts: label(RESTARTS).and_then(|text| text.parse().ok()).unwrap_or(0),
        last_exit,
        state,
    };
    let addresses = label(ADDRESS)
        .and_then(|text| text.parse().ok())
        .map(|v4| Addresses { v4, v6: label(ADDRESS6).and_then(|text| text.parse().ok()) });
    let service = label(SERVICE)?.parse().ok()?;
    let service_name = label(SERVICE_NAME).unwrap_or_default().to_owned();
    let ports = label(PORTS).unwrap_or_default();
    let claims = ports.split_whitespace().filter_map(Claim::parse).collect();
    let image_id = label(IMAGE_ID).unwrap_or_default().to_owned();
    let companion = label(COMPANION).map(str::parse).transpose().ok()?;
    Some(Listed { task, service, service_name, addresses, claims, image_id, companion, found })
}

/// What was found of each attempt as a whole.
pub(crate) fn by_attempt(listed: Vec<Listed>) -> Vec<(TaskId, Found)> {
    let (own, others): (Vec<_>, Vec<_>) = listed.into_iter().partition(|l| l.companion.is_none());
    let mut found: BTreeMap<(TaskId, u32), Found> =
        own.into_iter().map(|l| ((l.task, l.found.attempt), l.found)).collect();
    for Listed { task, found: other, .. } in others {
        let runs = matches!(other.state, FoundState::Running { .. });
        let of_task = found.entry((task, other.attempt)).or_insert_with(|| Found {
            state: FoundState::Beginning,
            restarts: 0,
            ..other
        });
        // Its sidecars are to be stopped yet: until then it has not ended.
        if let FoundState::Exited { started, ended } = of_task.state
            && runs
        {
            let at = started.unwrap_or(ended.at);
            of_task.state = FoundState::Running { pid: 0, at };
        }
    }
    found.into_iter().map(|((task, _), found)| (task, found)).collect()
}

pub(crate) fn ended(exit: &Exit) -> Ended {
    Ended {
        code: exit.code,
        signal: exit.signal,
        oom_killed: exit.oom_killed,
        supervisor_lost: exit.supervisor_lost,
        at: time(exit.at),
    }
}

pub(crate) fn time(at: SystemTime) -> Time {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Time(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use warren_model::job::Given;

    use warren_model::NodeId;

    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// Entrypoint and command of image and template, `-` for none.
    #[track_caller]
    fn check(image: (&str, &str), template: (&str, &str), expected: &str) {
        let config = ImageConfig {
            entrypoint: words(image.0),
            cmd: words(image.1),
            ..ImageConfig::default()
        };
        let template = TaskTemplate {
            entrypoint: (template.0 != "-").then(|| words(template.0)),
            command: words(template.1),
            ..TaskTemplate::default()
        };
        assert_eq!(arguments(&template, &config).join(" "), expected);
    }

    #[test]
    fn what_runs() {
        check(("e", "c"), ("-", ""), "e c");
        check(("e", "c"), ("-", "x y"), "e x y");
        check(("", "c"), ("-", ""), "c");
        check(("e", "c"), ("E", ""), "E");
        check(("e", "c"), ("E", "x"), "E x");
        check(("e", "c"), ("", "x"), "x");
        check(("", ""), ("-", ""), "");
    }

    #[test]
    fn templates_are_filled_in() {
        let labels = BTreeMap::from([("team".to_owned(), "shop".to_owned())]);
        let facts = Facts {
            service: ServiceId::from_bytes([1; 10]),
            service_name: "web",
            labels: &labels,
            node: NodeId::from_bytes([2; 10]),
            hostname: "alpha",
            architecture: "x86_64",
            task: TaskId::from_bytes([3; 10]),
            slot: 4,
            params: &BTreeMap::from([("DAY".to_owned(), "monday".to_owned())]),
        };
        let mut template = TaskTemplate {
            env: vec![
                "ME={{.Service.Name}}.{{.Task.Slot}}@{{.Node.Hostname}}".into(),
                "DAY={{.Param.DAY}}".into(),
            ],
            hostname: Some("{{index .Service.Labels \"team\"}}-{{.Task.Slot}}".into()),
            ..TaskTemplate::default()
        };
        template.container_labels.insert("arch".into(), "{{.Node.Platform.Architecture}}".into());
        let got = filled(&template, &facts).unwrap();
        assert_eq!(got.env, ["ME=web.4@alpha", "DAY=monday"]);
        assert_eq!(got.hostname.as_deref(), Some("shop-4"));
        assert_eq!(got.container_labels["arch"], "x86_64");
        template.hostname = Some("{{index .Service.Labels \"none\"}}".into());
        let error = filled(&template, &facts).unwrap_err().to_string();
        assert!(error.contains("comes to \"\", which is not a host name"), "{error}");
    }

    #[test]
    fn env_later_wins() {
        let config = ImageConfig { env: words("PATH=/bin A=1 B=2"), ..ImageConfig::default() };
        let template = TaskTemplate { env: words("B=3 C=4"), ..TaskTemplate::default() };
        assert_eq!(
            environment(&template, &config, "h").join(" "),
            "PATH=/bin HOSTNAME=h A=1 B=3 C=4"
        );
    }

    #[test]
    fn resolvers() {
        let check = |host: &str, expected: &str| {
            assert_eq!(resolv_conf(host), expected);
        };
        check("nameserver 127.0.0.53\n", "nameserver 127.0.0.53\n");
        check(
            "# by hand\nsearch a.b\nnameserver 127.0.0.1\nnameserver 9.9.9.9\noptions ndots:2\nsortlist x\n",
            "search a.b\nnameserver 9.9.9.9\noptions ndots:2\n",
        );
        check("", "");
    }

    #[test]
    fn what_a_run_was_given_wins() {
        let given = Given {
            params: BTreeMap::from([("day".to_owned(), "a=b".to_owned())]),
            payload: Some([1, 2].into()),
        };
        let mut task = task(given);
        let env = vec!["A=1".to_owned(), "WARREN_PARAM_DAY=x".to_owned()];
        let told = given_environment(&task, env.clone());
        assert_eq!(told, ["A=1", "WARREN_PARAM_DAY=a=b", "WARREN_PAYLOAD=/run/warren/payload"]);
        task.given = Given::default();
        assert_eq!(given_environment(&task, env.clone()), env);
    }

    fn task(given: Given) -> TaskSpec {
        TaskSpec {
            id: TaskId::from_bytes([7; 10]),
            service: ServiceId::from_bytes([8; 10]),
            slot: 3,
            template_number: 2,
            template: Arc::new(TaskTemplate::default()),
            address: Some(Ipv4Addr::new(10, 128, 0, 9)),
            address6: Some("fd00::a80:9".parse().unwrap()),
            given,
            devices: Default::default(),
        }
    }

    #[test]
    fn labels_come_back() {
        let task = task(Given::default());
        let last_exit = Some(TaskExit { code: 137, oom_killed: true });
        let attempt = Attempt { number: 4, restarts: 2, last_exit, at: Time(5) };
        let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(9);
        let info = ContainerInfo {
            id: task.container_id(4),
            labels: labels(&task, &task.template, "web", &[], "sha256:ab", attempt),
            state: ContainerState::Running { pid: 11, started_at: at },
        };
        let listed = parse_labels(&info).unwrap();
        assert_eq!(listed.task, task.id);
        assert_eq!(listed.addresses, task.addresses());
        let state = FoundState::Running { pid: 11, at: Time(9) };
        assert_eq!(listed.found, Found { attempt: 4, restarts: 2, last_exit, state });
        let foreign = ContainerInfo { labels: BTreeMap::new(), ..info };
        assert_eq!(parse_labels(&foreign), None);
    }
}
