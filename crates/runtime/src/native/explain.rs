//! What the shim reports, in words, and whose fault it is.

use std::io;

use warren_shim::message::{Reply, Step};

use super::spec::sysctl_at;
use crate::{ContainerSpec, Error, MountKind};

/// The parts of a specification that messages name.
pub(crate) struct Subject<'a> {
    program: &'a str,
    cwd: &'a str,
    user: &'a str,
    spec: Option<&'a ContainerSpec>,
}

impl<'a> Subject<'a> {
    pub(crate) fn container(spec: &'a ContainerSpec) -> Self {
        Self {
            program: spec.args.first().map(String::as_str).unwrap_or_default(),
            cwd: &spec.cwd,
            user: &spec.user,
            spec: Some(spec),
        }
    }

    pub(crate) fn exec(exec: &'a crate::ExecSpec) -> Self {
        Self {
            program: exec.args.first().map(String::as_str).unwrap_or_default(),
            cwd: exec.cwd.as_deref().unwrap_or_default(),
            user: exec.user.as_deref().unwrap_or_default(),
            spec: None,
        }
    }

    /// The error of an answer that is not the one hoped for.
    pub(crate) fn error(&self, reply: Reply) -> Error {
        match reply {
            Reply::Failed { step, errno, index } => self.failed(step, errno, index as usize),
            Reply::Started { .. }
            | Reply::Terminal
            | Reply::Exited { .. }
            | Reply::Signalled { .. } => Error::Io {
                action: "talk to the shim".to_owned(),
                source: io::ErrorKind::InvalidData.into(),
            },
        }
    }

    fn failed(&self, step: Step, errno: i32, index: usize) -> Error {
        let source = io::Error::from_raw_os_error(errno);
        let rejected = match step {
            Step::Exec => Some(self.not_executed(errno, &source)),
            Step::Interpreter => Some(format!(
                "command \"{}\" is in the image, the interpreter or loader it names is not",
                self.program
            )),
            Step::UserUnknown => {
                let user = self.user.split(':').next().unwrap_or_default();
                Some(format!("no user \"{user}\" in the image"))
            }
            Step::GroupUnknown => {
                let group = self.user.split(':').nth(1).unwrap_or_default();
                Some(format!("no group \"{group}\" in the image"))
            }
            Step::UserFile => {
                Some(format!("read /etc/passwd and /etc/group of the image: {source}"))
            }
            Step::CwdNotFolder => {
                Some(format!("working directory \"{}\" is not a directory", self.cwd))
            }
            Step::Cwd if errno == libc::ENOENT => {
                Some(format!("working directory \"{}\" does not exist", self.cwd))
            }
            Step::Cwd => Some(format!("working directory \"{}\": {source}", self.cwd)),
            Step::MountSource => Some(format!("{}: {source}", self.mount(index))),
            Step::MountTarget => {
                Some(format!("{}: target in the image: {source}", self.mount(index)))
            }
            Step::Mount if errno == libc::ENOTDIR => {
                let what = self.mount(index);
                Some(format!("{what}: a directory and a file cannot be mounted on each other"))
            }
            Step::Device => Some(format!("make device {}: {source}", self.device(index))),
            Step::Sysctl => Some(self.not_set(index, errno, &source)),
            Step::Ulimit => Some(self.not_limited(index, errno, &source)),
            Step::ExtraGroup => {
                let group = self.spec.and_then(|spec| spec.privileges.groups.get(index));
                let group = group.map(String::as_str).unwrap_or_default();
                Some(format!("no group \"{group}\" in the image"))
            }
            Step::OutOfMemoryScore if errno == libc::EACCES => Some(
                "oom_score_adj: lowering it needs CAP_SYS_RESOURCE, which this node's daemon lacks"
                    .to_owned(),
            ),
            Step::File => {
                Some(format!("put file {} into the container: {source}", self.file(index)))
            }
            _ => None,
        };
        match rejected {
            Some(text) => Error::Rejected(text),
            None => Error::Io { action: self.action(step, index), source },
        }
    }

    fn not_set(&self, index: usize, errno: i32, source: &io::Error) -> String {
        let setting = self.spec.map(|spec| sysctl_at(spec, index)).unwrap_or_default();
        match errno {
            libc::ENOENT => format!("setting {setting}: this node's kernel has none of that name"),
            libc::EINVAL => format!("setting {setting}: the kernel does not take this value"),
            _ => format!("setting {setting}: {source}"),
        }
    }

    fn not_limited(&self, index: usize, errno: i32, source: &io::Error) -> String {
        let limit = self.spec.and_then(|spec| spec.privileges.ulimits.get(index));
        let name = limit.map(|limit| limit.name).unwrap_or_default();
        match errno {
            libc::EPERM => format!(
                "ulimit {name}: it is above what this node's daemon has, and may give only with \
                 CAP_SYS_RESOURCE (nofile: up to fs.nr_open)"
            ),
            _ => format!("ulimit {name}: {source}"),
        }
    }

    fn not_executed(&self, errno: i32, source: &io::Error) -> String {
        let program = self.program;
        match errno {
            libc::ENOENT | libc::ENOTDIR => format!("command \"{program}\" not found in the image"),
            libc::EACCES => format!("command \"{program}\" cannot be executed: permission denied"),
            libc::ENOEXEC => format!("command \"{program}\" is not a program for this machine"),
            libc::E2BIG => {
                format!("command \"{program}\": arguments and environment are too large")
            }
            _ => format!("command \"{program}\" cannot be executed: {source}"),
        }
    }

    fn mount(&self, index: usize) -> String {
        let Some(mount) = self.spec.and_then(|spec| spec.mounts.get(index)) else {
            return format!("mount {index}");
        };
        match &mount.kind {
            MountKind::Bind { source } => {
                format!("mount {} at {}", source.display(), mount.target)
            }
            MountKind::Tmpfs { .. } => format!("mount tmpfs at {}", mount.target),
            MountKind::Open(opened) => format!("mount {} at {}", opened.name, mount.target),
        }
    }

    fn device(&self, index: usize) -> &str {
        let device = self.spec.and_then(|spec| spec.devices.get(index));
        device.map(|device| device.path.as_str()).unwrap_or_default()
    }

    fn file(&self, index: usize) -> &str {
        let file = self.spec.and_then(|spec| spec.files.get(index));
        file.map(|file| file.target.as_str()).unwrap_or_default()
    }

    fn action(&self, step: Step, index: usize) -> String {
        let text = match step {
            Step::Protocol => "understand the request (shim of another version?)",
            Step::StateDir => "enter the state folder",
            Step::Socket => "open the shim's socket",
            Step::Pipe => "make pipes",
            Step::Clone => "clone the container's process",
            Step::Cgroup => "join the control groups",
            Step::NetworkNamespace => "enter the network namespace",
            Step::Propagation => "make the host's mounts private",
            Step::Layer => return format!("open layer {} of the image", self.layer(index)),
            Step::Overlay => "mount the image's layers",
            Step::Proc => "mount /proc (it must be a real directory in the image)",
            Step::Sys => "mount /sys (it must be a real directory in the image)",
            Step::Dev => "mount /dev (it must be a real directory in the image)",
            Step::CgroupView => "mount /sys/fs/cgroup",
            Step::Mount | Step::MountSource | Step::MountTarget => return self.mount(index),
            Step::Device => return format!("make device {}", self.device(index)),
            Step::File => return format!("put file {} into the container", self.file(index)),
            Step::MaskedPath => "mask paths of /proc and /sys",
            Step::ReadOnlyPath => "make paths of /proc and /sys read-only",
            Step::PivotRoot => "change to the container's root",
            Step::Hostname => "set the hostname",
            Step::UserUnknown | Step::GroupUnknown | Step::UserFile => "look up the user",
            Step::Cwd | Step::CwdNotFolder => "enter the working directory",
            Step::Limits => "set resource limits",
            Step::Identity => "change to the user",
            Step::Capabilities => "set capabilities",
            Step::NoNewPrivileges => "set no_new_privs",
            Step::Seccomp => "load the seccomp profile",
            Step::Interpreter | Step::Exec => "execute the command",
            Step::DaemonGone => "wait for the shim",
            Step::RunFile => "write the run file",
            Step::Namespaces => "enter the container's namespaces",
            Step::Terminal => "open a terminal in the container",
            Step::Busy => "accept one more exec in this container",
            Step::Keyring => "join a new session keyring",
            Step::LogFolder => "open the log folder",
            Step::OutOfMemoryScore => "set the out-of-memory score",
            Step::Sysctl => "change a setting of its namespaces",
            Step::Ulimit => "set a limit of its processes",
            Step::ExtraGroup => "look up its groups",
            Step::Init => "start its init",
        };
        text.to_owned()
    }

    fn layer(&self, index: usize) -> String {
        let layer = self.spec.and_then(|spec| spec.layers.get(index));
        layer.map(|layer| layer.display().to_string()).unwrap_or_default()
    }
}
