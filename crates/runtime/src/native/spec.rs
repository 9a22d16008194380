//! From a [`ContainerSpec`] to the shim's message, refusing what cannot work.
//!
//! Pure: paths are judged by their text. What only the container's root can tell (users, working
//! directories, programs, mount sources) the shim reports, and [`super::explain`] words.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::sync::Arc;

use warren_shim::message::{
    Builder, File, HasNul, KEPT_MAX, LAYERS_MAX, MESSAGE_MAX, MountKind as Kind, STRINGS_MAX,
    Settings, TREES_MAX, Tag, Ulimit, flags,
};

use super::cgroup::Membership;
use super::device::Node;
use crate::{ContainerSpec, Error, ExecSpec, Mount, MountKind, Sysctl};

const ID_MAX: usize = 64;
const SYSCTL_MAX: usize = 256;
/// The kernel's.
const HOSTNAME_MAX: usize = 64;
const PATH_MAX: usize = 4095;
/// Docker's.
const PATH_DEFAULT: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Rotating after each line helps nobody.
const LOG_MIN_BYTES: u64 = 64 << 10;
const SIGNAL_MAX: i32 = 64;

/// moby's current lists.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Docker's: who is not root may listen below 1024, and ping without a capability. Only within the
/// container's own network namespace.
const NET_DEFAULTS: [(&str, &str); 2] =
    [("net/ipv4/ip_unprivileged_port_start", "0"), ("net/ipv4/ping_group_range", "0 2147483647")];

/// What the node adds to a specification.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    pub(crate) state_dir: &'a Path,
    pub(crate) upper: &'a Path,
    pub(crate) work: &'a Path,
    pub(crate) membership: &'a Membership,
    pub(crate) capabilities: u64,
    pub(crate) seccomp: Option<Arc<[u8]>>,
    pub(crate) reset_oom_score: bool,
    /// Masked beside the fixed ones, because this machine has them.
    pub(crate) masked: &'a [String],
    pub(crate) devices: &'a [Node],
}

/// Refuses what is wrong whatever the node is like; sorts mounts so that outer ones come first.
pub(crate) fn check(spec: &mut ContainerSpec) -> Result<(), Error> {
    check_id(&spec.id)?;
    if spec.layers.is_empty() || spec.layers.len() > LAYERS_MAX {
        let count = spec.layers.len();
        return rejected(format!("{count} image layers: 1 to {LAYERS_MAX} are allowed"));
    }
    if spec.args.first().is_none_or(String::is_empty) {
        return rejected("no command: neither the image nor the service names one".to_owned());
    }
    if spec.args.len() > STRINGS_MAX || spec.env.len() > STRINGS_MAX - 2 {
        return rejected(format!("more than {STRINGS_MAX} arguments or environment entries"));
    }
    check_env(&spec.env)?;
    check_cwd(&spec.cwd)?;
    if spec.hostname.len() > HOSTNAME_MAX {
        return rejected(format!("hostname longer than {HOSTNAME_MAX} bytes"));
    }
    for mount in &spec.mounts {
        check_target(&mount.target)?;
        if let MountKind::Bind { source } = &mount.kind
            && !source.is_absolute()
        {
            return rejected(format!("mount source \"{}\" is not absolute", source.display()));
        }
    }
    spec.files.iter().try_for_each(|file| check_target(&file.target))?;
    check_privileges(spec)?;
    for device in &spec.devices {
        check_target(&device.path)?;
        if !device.path.starts_with("/dev/") {
            return rejected(format!("device \"{}\" is not to be in /dev", device.path));
        }
    }
    spec.mounts.sort_by_key(|mount| Path::new(&mount.target).components().count());
    let trees = spec.mounts.iter().filter(|mount| matches!(mount.kind, MountKind::Open(_)));
    if trees.count() > TREES_MAX {
        return rejected(format!("more than {TREES_MAX} folders to mount"));
    }
    if spec.keep.len() > KEPT_MAX {
        return rejected(format!("more than {KEPT_MAX} descriptors to keep"));
    }
    check_signal(spec.stop_signal)
}

/// What would otherwise be told by number alone.
fn check_privileges(spec: &ContainerSpec) -> Result<(), Error> {
    let privileges = &spec.privileges;
    for Sysctl { key, value } in &privileges.sysctls {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let good = key.split('.').all(|part| !part.is_empty() && part.chars().all(plain));
        let is_net = key.starts_with("net.");
        let is_ipc = ["fs.mqueue.", "kernel.msg", "kernel.sem", "kernel.shm"]
            .iter()
            .any(|start| key.starts_with(start));
        if !good || key.len() > SYSCTL_MAX || value.len() > SYSCTL_MAX || value.contains('\n') {
            return rejected(format!("setting \"{key}\" is not one of the kernel's"));
        }
        // Anything else, and these without a namespace, is the node's.
        if !(is_net && spec.netns.is_some() || is_ipc && !privileges.host_ipc) {
            return rejected(format!("setting \"{key}\" is not of the container's namespaces"));
        }
    }
    match privileges.oom_score_adj {
        Some(score) if !(-1000..=1000).contains(&score) => {
            rejected(format!("oom_score_adj {score} is not between -1000 and 1000"))
        }
        Some(_) | None => Ok(()),
    }
}

pub(crate) fn check_id(id: &str) -> Result<(), Error> {
    let allowed = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'.' || byte == b'-'
    };
    let is_fine = !id.is_empty() && id.len() <= ID_MAX && id.bytes().all(allowed);
    // Ids are names of folders.
    if is_fine && !id.starts_with('.') {
        return Ok(());
    }
    rejected(format!("container id \"{}\" is not allowed", id.escape_default()))
}

pub(crate) fn check_signal(signal: i32) -> Result<(), Error> {
    if (1..=SIGNAL_MAX).contains(&signal) {
        Ok(())
    } else {
        rejected(format!("no signal {signal}"))
    }
}

fn check_env(env: &[String]) -> Result<(), Error> {
    match env.iter().find(|entry| entry.find('=').is_none_or(|at| at == 0)) {
        Some(entry) => rejected(format!("environment entry \"{entry}\" is not KEY=value")),
        None => Ok(()),
    }
}

fn check_cwd(cwd: &str) -> Result<(), Error> {
    if cwd.is_empty() || (cwd.starts_with('/') && cwd.len() <= PATH_MAX) {
        return Ok(());
    }
    rejected(format!("working directory \"{cwd}\" is not an absolute path"))
}

/// Where something may be mounted: not on the root, and not on what hides or shows the host.
fn check_target(target: &str) -> Result<(), Error> {
    let path = Path::new(target);
    let mut components = path.components().skip(1);
    let plain =
        path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !plain || target.len() > PATH_MAX {
        return rejected(format!(
            "mount target \"{target}\" is not an absolute path without \"..\""
        ));
    }
    match components.next() {
        None => rejected("mount target \"/\" would hide the image".to_owned()),
        Some(first) if first.as_os_str() == "proc" => {
            rejected(format!("mount target \"{target}\" lies in /proc"))
        }
        Some(_) => Ok(()),
    }
}

/// The message of a checked specification.
pub(crate) fn message(spec: &ContainerSpec, around: &Surroundings<'_>) -> Result<Vec<u8>, Error> {
    let mut flag_bits = 0;
    for (flag, is_set) in [
        (flags::READ_ONLY, spec.read_only),
        (flags::NO_NEW_PRIVILEGES, spec.no_new_privileges),
        (flags::NETWORK_NAMESPACE, spec.netns.is_some()),
        (flags::RESET_OOM_SCORE, around.reset_oom_score),
        (flags::PRIVILEGED, spec.privileges.privileged),
        (flags::HOST_PROCESSES, spec.privileges.host_pid),
        (flags::HOST_IPC, spec.privileges.host_ipc),
        (flags::INIT, spec.privileges.init),
    ] {
        flag_bits |= if is_set { flag } else { 0 };
    }
    #[cfg(feature = "mutants")]
    {
        use warren_shim::protection::{FLAGS_SHIFT, left_out};
        flag_bits |= left_out() << FLAGS_SHIFT;
    }
    let mut builder = Builder::new(&Settings {
        flags: flag_bits,
        kept: u32::try_from(spec.keep.len()).unwrap_or(u32::MAX),
        capabilities: around.capabilities,
        log_max_bytes: spec.log.max_bytes.max(LOG_MIN_BYTES),
        log_max_files: spec.log.max_files.max(1),
        rows: 0,
        columns: 0,
    });
    fill(&mut builder, spec, around).map_err(|HasNul| has_nul())?;
    builder.finish().ok_or_else(too_large)
}

fn fill(
    builder: &mut Builder,
    spec: &ContainerSpec,
    around: &Surroundings<'_>,
) -> Result<(), HasNul> {
    builder.text(Tag::StateDir, bytes(around.state_dir))?;
    builder.text(Tag::UpperDir, bytes(around.upper))?;
    builder.text(Tag::WorkDir, bytes(around.work))?;
    builder.text(Tag::LogDir, bytes(&spec.log.dir))?;
    for layer in &spec.layers {
        builder.text(Tag::Layer, bytes(layer))?;
    }
    for arg in &spec.args {
        builder.text(Tag::Arg, arg.as_bytes())?;
    }
    for entry in environment(spec) {
        builder.text(Tag::Env, entry.as_bytes())?;
    }
    builder.text(Tag::Cwd, spec.cwd.as_bytes())?;
    builder.text(Tag::User, spec.user.as_bytes())?;
    builder.text(Tag::Hostname, spec.hostname.as_bytes())?;
    let mut trees = 0;
    for mount in &spec.mounts {
        push_mount(builder, mount, &mut trees)?;
    }
    if let Some(bytes) = spec.shm_bytes {
        builder.shared_memory(bytes);
    }
    around.devices.iter().for_each(|node| builder.device(&node.message()));
    for file in &spec.files {
        let owner = if file.of_user { File::OF_USER } else { 0 };
        let mode = file.mode & 0o7777 | owner;
        builder.file(mode, file.target.as_bytes(), &file.data)?;
    }
    push_membership(builder, around.membership)?;
    if let Some(seccomp) = &around.seccomp {
        builder.bytes(Tag::Seccomp, seccomp);
    }
    push_privileges(builder, spec)?;
    if spec.privileges.privileged {
        return Ok(());
    }
    for path in MASKED.into_iter().chain(around.masked.iter().map(String::as_str)) {
        builder.text(Tag::MaskedPath, path.as_bytes())?;
    }
    READ_ONLY.iter().try_for_each(|path| builder.text(Tag::ReadOnlyPath, path.as_bytes()))
}

fn push_privileges(builder: &mut Builder, spec: &ContainerSpec) -> Result<(), HasNul> {
    let privileges = &spec.privileges;
    if privileges.host_ipc {
        builder.mount(Kind::Bind, false, b"/dev/shm", b"/dev/shm")?;
    }
    for group in &privileges.groups {
        builder.text(Tag::Group, group.as_bytes())?;
    }
    for limit in &privileges.ulimits {
        let (resource, soft, hard) = (limit.resource, limit.soft, limit.hard);
        builder.ulimit(Ulimit { resource, soft, hard });
    }
    if spec.netns.is_some() {
        for (file, value) in NET_DEFAULTS {
            builder.pair(Tag::Sysctl, format!("-{file}").as_bytes(), value.as_bytes())?;
        }
    }
    for Sysctl { key, value } in &privileges.sysctls {
        builder.pair(Tag::Sysctl, key.replace('.', "/").as_bytes(), value.as_bytes())?;
    }
    if let Some(score) = privileges.oom_score_adj {
        builder.text(Tag::OutOfMemoryScore, score.to_string().as_bytes())?;
    }
    Ok(())
}

/// Name of the setting that comes at `index` in the message.
pub(crate) fn sysctl_at(spec: &ContainerSpec, index: usize) -> String {
    let defaults = if spec.netns.is_some() { NET_DEFAULTS.len() } else { 0 };
    let own = index.checked_sub(defaults).and_then(|at| spec.privileges.sysctls.get(at));
    match own {
        Some(setting) => format!("{}={}", setting.key, setting.value),
        None => NET_DEFAULTS.get(index).map_or("?", |(file, _)| file).replace('/', "."),
    }
}

/// `trees`: those before it.
fn push_mount(builder: &mut Builder, mount: &Mount, trees: &mut u32) -> Result<(), HasNul> {
    let target = mount.target.as_bytes();
    match &mount.kind {
        MountKind::Bind { source } => {
            builder.mount(Kind::Bind, mount.read_only, bytes(source), target)
        }
        MountKind::Tmpfs { size_bytes, mode, exec } => {
            let size_bytes = size_bytes.unwrap_or(0);
            let kind = Kind::Tmpfs { size_bytes, mode: mode & 0o7777, exec: *exec };
            builder.mount(kind, mount.read_only, b"", target)
        }
        MountKind::Open(_) => {
            let kind = Kind::Tree { index: *trees };
            *trees += 1;
            builder.mount(kind, mount.read_only, b"", target)
        }
    }
}

fn push_membership(builder: &mut Builder, membership: &Membership) -> Result<(), HasNul> {
    for tasks in &membership.tasks {
        builder.text(Tag::CgroupTasks, bytes(tasks))?;
    }
    for tasks in &membership.shim_tasks {
        builder.text(Tag::ShimTasks, bytes(tasks))?;
    }
    if let Some(folder) = &membership.folder {
        builder.text(Tag::CgroupDir, bytes(folder))?;
    }
    for (name, folder) in &membership.views {
        builder.pair(Tag::CgroupView, name.as_bytes(), bytes(folder))?;
    }
    for (name, target) in &membership.links {
        builder.pair(Tag::CgroupLink, name.as_bytes(), target.as_bytes())?;
    }
    membership.oom_file.as_ref().map_or(Ok(()), |file| builder.text(Tag::OomFile, bytes(file)))
}

/// The last entry of each key, and Docker's own PATH and HOSTNAME. HOME, when missing, is the
/// shim's to find.
fn environment(spec: &ContainerSpec) -> Vec<String> {
    fn key(entry: &str) -> &str {
        entry.split_once('=').map_or(entry, |(key, _)| key)
    }
    let mut kept: Vec<String> = Vec::with_capacity(spec.env.len() + 2);
    let host = format!("HOSTNAME={}", spec.hostname);
    let defaults = [PATH_DEFAULT, host.as_str()];
    let defaults = &defaults[..if spec.hostname.is_empty() { 1 } else { 2 }];
    for entry in defaults.iter().copied().chain(spec.env.iter().map(String::as_str)) {
        match kept.iter_mut().find(|known| key(known) == key(entry)) {
            Some(known) => entry.clone_into(known),
            None => kept.push(entry.to_owned()),
        }
    }
    kept
}

/// The message of an exec in a running container.
pub(crate) fn exec_message(exec: &ExecSpec) -> Result<Vec<u8>, Error> {
    if exec.args.first().is_none_or(String::is_empty) {
        return rejected("no command to execute".to_owned());
    }
    if exec.args.len() > STRINGS_MAX || exec.env.len() > STRINGS_MAX / 2 {
        return rejected(format!("more than {STRINGS_MAX} arguments or environment entries"));
    }
    check_env(&exec.env)?;
    check_cwd(exec.cwd.as_deref().unwrap_or_default())?;
    let (rows, columns) = exec.tty.unwrap_or_default();
    let flags = if exec.tty.is_some() { flags::TERMINAL } else { 0 };
    let mut builder = Builder::new(&Settings { flags, rows, columns, ..Settings::default() });
    fill_exec(&mut builder, exec).map_err(|HasNul| has_nul())?;
    builder.finish().ok_or_else(too_large)
}

fn fill_exec(builder: &mut Builder, exec: &ExecSpec) -> Result<(), HasNul> {
    for arg in &exec.args {
        builder.text(Tag::Arg, arg.as_bytes())?;
    }
    let has_term = exec.env.iter().any(|entry| entry.starts_with("TERM="));
    if exec.tty.is_some() && !has_term {
        builder.text(Tag::Env, b"TERM=xterm")?;
    }
    for entry in &exec.env {
        builder.text(Tag::Env, entry.as_bytes())?;
    }
    if let Some(cwd) = &exec.cwd {
        builder.text(Tag::Cwd, cwd.as_bytes())?;
    }
    exec.user.as_ref().map_or(Ok(()), |user| builder.text(Tag::User, user.as_bytes()))
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

fn has_nul() -> Error {
    Error::Rejected("an argument, environment entry or path holds a NUL byte".to_owned())
}

fn too_large() -> Error {
    Error::Rejected(format!(
        "arguments, environment and files together are larger than {MESSAGE_MAX} bytes"
    ))
}

fn rejected<T>(text: String) -> Result<T, Error> {
    Err(Error::Rejected(text))
}
