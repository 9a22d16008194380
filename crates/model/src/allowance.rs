//! What services may ask for that endangers the nodes: nothing, unless the cluster's settings allow
//! it.
//!
//! Checked by managers when a service is made, changed or rolled back, and by a node before a
//! container starts: what is not allowed any more keeps running, and is not started again.
//!
//! Not here: which mounts of the node are allowed.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::service::{TaskTemplate, capability_name, is_default_capability};

/// One thing that is allowed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grant {
    /// Privileged containers: with them all capabilities, devices and system calls.
    Privileged,
    HostNetwork,
    HostPid,
    HostIpc,
    /// No seccomp profile, or one of the service's own.
    SeccompUnconfined,
    /// By name without `CAP_`; `ALL` stands for every one.
    Capability(&'static str),
    /// Path in /dev; a `*` at its end stands for whatever follows.
    Device(String),
}

/// Why a text is no grant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    #[error(
        "{0:?} is not known; allowed are privileged, host-network, host-pid, host-ipc, seccomp-unconfined, cap:NAME, device:/dev/PATH, or none alone"
    )]
    Unknown(String),
    #[error("{0:?} is not a capability; write e.g. cap:NET_ADMIN or cap:ALL")]
    Capability(String),
    #[error("{0:?} is not a device; write e.g. device:/dev/fuse, device:/dev/dri/* or device:*")]
    Device(String),
    #[error("{count} grants are more than {max}")]
    TooMany { count: usize, max: usize },
}

impl FromStr for Grant {
    type Err = GrantError;

    fn from_str(text: &str) -> Result<Self, GrantError> {
        Ok(match text {
            "privileged" => Self::Privileged,
            "host-network" => Self::HostNetwork,
            "host-pid" => Self::HostPid,
            "host-ipc" => Self::HostIpc,
            "seccomp-unconfined" => Self::SeccompUnconfined,
            _ => match text.split_once(':') {
                Some(("cap", name)) => Self::Capability(
                    capability_name(name).ok_or_else(|| GrantError::Capability(name.to_owned()))?,
                ),
                Some(("device", path)) if is_pattern(path) => Self::Device(path.to_owned()),
                Some(("device", path)) => return Err(GrantError::Device(path.to_owned())),
                _ => return Err(GrantError::Unknown(text.to_owned())),
            },
        })
    }
}

fn is_pattern(path: &str) -> bool {
    let plain = path.strip_suffix('*').unwrap_or(path);
    let sane = |c: char| c.is_ascii_graphic() && !"*,:".contains(c);
    let inside = plain.starts_with("/dev/") && !plain.split('/').any(|part| part == "..");
    path.len() <= 256
        && plain.chars().all(sane)
        && (path == "*" || (inside && plain != "/dev/") || path == "/dev/*")
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Privileged => f.write_str("privileged"),
            Self::HostNetwork => f.write_str("host-network"),
            Self::HostPid => f.write_str("host-pid"),
            Self::HostIpc => f.write_str("host-ipc"),
            Self::SeccompUnconfined => f.write_str("seccomp-unconfined"),
            Self::Capability(name) => write!(f, "cap:{name}"),
            Self::Device(path) => write!(f, "device:{path}"),
        }
    }
}

impl Grant {
    /// Whether this one covers what another is about.
    fn covers(&self, wanted: &Self) -> bool {
        match (self, wanted) {
            (Self::Privileged, Self::Capability(_) | Self::Device(_) | Self::SeccompUnconfined) => {
                true
            }
            (Self::Capability("ALL"), Self::Capability(_)) => true,
            (Self::Device(pattern), Self::Device(path)) => match pattern.strip_suffix('*') {
                Some(start) => path.starts_with(start),
                None => pattern == path,
            },
            _ => self == wanted,
        }
    }
}

/// All that is allowed in a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed(BTreeSet<Grant>);

/// What a service asks for and may not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value:?} is not allowed in this cluster, which allows {allowed}")]
pub struct NotAllowed {
    pub field: String,
    pub value: String,
    /// As text.
    pub allowed: String,
    /// Grants that would allow it, with those that are there already.
    pub wanted: String,
}

impl NotAllowed {
    /// The command that allows it.
    pub fn hint(&self) -> String {
        format!("warren cluster update --allow {}", self.wanted)
    }
}

impl Allowed {
    /// Every capability and a device of each kind would be fewer.
    pub const MAX: usize = 128;

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Grant> {
        self.0.iter()
    }

    /// From single texts.
    ///
    /// # Errors
    /// [`GrantError`] of the first that is none, or of too many.
    pub fn from_texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, GrantError> {
        let grants = texts.into_iter().map(str::parse).collect::<Result<BTreeSet<Grant>, _>>()?;
        if grants.len() > Self::MAX {
            return Err(GrantError::TooMany { count: grants.len(), max: Self::MAX });
        }
        Ok(Self(grants))
    }

    /// Whether a template may be run.
    ///
    /// # Errors
    /// [`NotAllowed`] for the first thing that is not; its hint allows all that is missing.
    pub fn check(&self, template: &TaskTemplate) -> Result<(), NotAllowed> {
        let mut missing = needs(template).into_iter().filter(|(_, _, wanted)| !self.allows(wanted));
        let Some((field, value, grant)) = missing.next() else { return Ok(()) };
        let mut wanted = self.0.clone();
        wanted.insert(grant);
        wanted.extend(missing.map(|(_, _, grant)| grant));
        let wanted = Self(wanted).to_string();
        Err(NotAllowed { field, value, allowed: self.to_string(), wanted })
    }

    fn allows(&self, wanted: &Grant) -> bool {
        self.0.iter().any(|grant| grant.covers(wanted))
    }
}

/// `host-pid,cap:NET_ADMIN`, or `none`.
impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        let texts: Vec<String> = self.0.iter().map(Grant::to_string).collect();
        f.write_str(&texts.join(","))
    }
}

impl FromStr for Allowed {
    type Err = GrantError;

    fn from_str(text: &str) -> Result<Self, GrantError> {
        match text {
            "none" => Ok(Self::default()),
            _ => Self::from_texts(text.split(',').map(str::trim)),
        }
    }
}

/// Of the task's own container and of all others of it.
fn needs(template: &TaskTemplate) -> Vec<(String, String, Grant)> {
    let mut all = Vec::new();
    let companions = template.companions.iter().map(|companion| {
        (format!("{} {}: ", companion.kind.as_str(), companion.name), &companion.task)
    });
    for (place, task) in std::iter::once((String::new(), template)).chain(companions) {
        let of_privileges = task.privileges.needs().into_iter();
        let added = task.cap_add.iter().filter(|name| !is_default_capability(name));
        let of_capabilities = added.filter_map(|name| {
            Some(("cap_add", name.clone(), Grant::Capability(capability_name(name)?)))
        });
        all.extend(
            of_privileges
                .chain(of_capabilities)
                .map(|(field, value, grant)| (format!("{place}{field}"), value, grant)),
        );
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::{Companion, CompanionKind};

    #[test]
    fn texts() {
        let check = |text: &str, expected: &str| {
            let got = match text.parse::<Allowed>() {
                Ok(allowed) => allowed.to_string(),
                Err(error) => error.to_string(),
            };
            assert!(got.starts_with(expected), "{text}: {got}");
        };
        check("none", "none");
        check("cap:net_admin, privileged", "privileged,cap:NET_ADMIN");
        check("cap:CAP_SYS_PTRACE,cap:all", "cap:ALL,cap:SYS_PTRACE");
        check(
            "device:/dev/dri/*,device:*,device:/dev/*",
            "device:*,device:/dev/*,device:/dev/dri/*",
        );
        check("", "\"\" is not known; allowed are privileged, host-network");
        check("none,privileged", "\"none\" is not known");
        check("cap:FLY", "\"FLY\" is not a capability");
        for bad in ["", "/dev/", "/etc/x", "/dev/../x", "/dev/*x", "/dev", "/devx*", "/dev/a:b"] {
            check(&format!("device:{bad}"), &format!("{bad:?} is not a device"));
        }
    }

    /// Texts as in `--allow`, what is asked for, and what is wrong with it.
    #[track_caller]
    fn check(allowed: &str, edit: impl FnOnce(&mut TaskTemplate), expected: &str) {
        let mut template = TaskTemplate::default();
        edit(&mut template);
        let got = match allowed.parse::<Allowed>().unwrap().check(&template) {
            Ok(()) => "ok".to_owned(),
            Err(error) => format!("{error}; {}", error.hint()),
        };
        assert_eq!(got, expected);
    }

    fn device(path: &str) -> impl FnOnce(&mut TaskTemplate) {
        let device = path.parse().unwrap();
        move |t| t.privileges.devices = vec![device]
    }

    #[test]
    fn what_is_allowed() {
        check("none", |_| (), "ok");
        check("none", |t| t.cap_add = vec!["cap_chown".into(), "NET_RAW".into()], "ok");
        check(
            "host-pid",
            |t| {
                t.cap_add = vec!["CAP_NET_ADMIN".into()];
                t.privileges.host_ipc = true;
            },
            "ipc: \"host\" is not allowed in this cluster, which allows host-pid; warren cluster \
             update --allow host-pid,host-ipc,cap:NET_ADMIN",
        );
        check("cap:ALL", |t| t.cap_add = vec!["NET_ADMIN".into()], "ok");
        check("cap:NET_ADMIN", |t| t.cap_add = vec!["net_admin".into()], "ok");
        check(
            "cap:NET_ADMIN",
            |t| t.cap_add = vec!["ALL".into()],
            "cap_add: \"ALL\" is not allowed in this cluster, which allows cap:NET_ADMIN; warren \
             cluster update --allow cap:ALL,cap:NET_ADMIN",
        );
        check(
            "none",
            |t| t.privileges.privileged = true,
            "privileged: \"true\" is not allowed in this cluster, which allows none; warren cluster \
             update --allow privileged",
        );
        check("privileged", device("/dev/fuse"), "ok");
        check("privileged", |t| t.cap_add = vec!["ALL".into()], "ok");
        check("device:/dev/dri/*", device("/dev/dri/card0"), "ok");
        check("device:*", device("/dev/kvm:r"), "ok");
        check(
            "device:/dev/dri/*",
            device("/dev/kvm:r"),
            "device: \"/dev/kvm:/dev/kvm:r\" is not allowed in this cluster, which allows \
             device:/dev/dri/*; warren cluster update --allow device:/dev/dri/*,device:/dev/kvm",
        );
        check(
            "cap:SYS_NICE",
            |t| t.privileges.oom_score_adj = Some(-1),
            "oom_score_adj: \"-1\" is not allowed in this cluster, which allows cap:SYS_NICE; \
             warren cluster update --allow cap:SYS_NICE,cap:SYS_RESOURCE",
        );
        check("none", |t| t.privileges.oom_score_adj = Some(500), "ok");
    }

    #[test]
    fn companions_too() {
        let mut task = TaskTemplate::default();
        task.privileges.host_pid = true;
        let companion =
            Companion { name: "spy".parse().unwrap(), kind: CompanionKind::Sidecar, task };
        check(
            "host-network",
            |t| t.companions = vec![companion],
            "sidecar spy: pid: \"host\" is not allowed in this cluster, which allows host-network; \
             warren cluster update --allow host-network,host-pid",
        );
    }
}
