//! What containers may do beyond what all may, and limits of their processes: flags of `service
//! create` and `service update`, keys of `--sidecar` and `--init-container`, and how it is shown.
//!
//! Names and forms are Docker's. Files of seccomp profiles are read here; whether they can be used
//! a node tells.

use std::io::Read;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use warren_model::NetworkName;
use warren_model::service::{
    Attachment, HostDevice, Privileges, SeccompProfile, Ulimit, UlimitKind,
};

use super::failure::{Failure, nearest};

/// Whose namespace a container is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Namespace {
    Host,
    Private,
}

/// What `create` and `update` share.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct PrivilegeFlags {
    /// All capabilities and devices of the node, and no system call refused; the cluster must
    /// allow it, as all below that reaches out of the container
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    privileged: Option<bool>,
    /// no-new-privileges=BOOL [default: true], seccomp=default|unconfined|FILE
    #[arg(long, value_name = "OPTION", value_parser = security_opt)]
    security_opt: Vec<SecurityOpt>,
    /// Whose processes it sees: host or private [default: private]
    #[arg(long, value_enum, value_name = "WHOSE")]
    pid: Option<Namespace>,
    /// Whose shared memory and message queues it has: host or private [default: private]
    #[arg(long, value_enum, value_name = "WHOSE")]
    ipc: Option<Namespace>,
    /// Run a small init first, which passes signals on and reaps processes
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    init: Option<bool>,
    /// How gladly the kernel ends it when memory runs out: -1000 to 1000 [default: 0]
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = score)]
    oom_score_adj: Option<i16>,
}

/// Lists, as `create` has them.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct PrivilegeLists {
    /// Give it a device of the node, or all in a folder: /dev/fuse, /dev/sda:/dev/xvda:r
    #[arg(long, value_name = "HOST[:CONTAINER[:rwm]]", value_parser = device)]
    device: Vec<HostDevice>,
    /// One more group of its user: a name in the image, or a number
    #[arg(long, alias = "group", value_name = "GROUP")]
    group_add: Vec<String>,
    /// Limit of each of its processes, e.g. nofile=1024:4096; -1 is unlimited
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = ulimit)]
    ulimit: Vec<(UlimitKind, Ulimit)>,
    /// Setting of its own namespaces, e.g. net.core.somaxconn=1024
    #[arg(long, value_name = "KEY=VALUE", value_parser = sysctl)]
    sysctl: Vec<(String, String)>,
}

/// Lists, as `update` changes them.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct PrivilegeEdits {
    /// Give it a device of the node, or another one at its place in the container
    #[arg(long, value_name = "HOST[:CONTAINER[:rwm]]", value_parser = device)]
    device_add: Vec<HostDevice>,
    /// Take a device away, by its path on the node or in the container
    #[arg(long, value_name = "PATH")]
    device_rm: Vec<String>,
    /// Add a group of its user
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Remove a group of its user
    #[arg(long, value_name = "GROUP")]
    group_rm: Vec<String>,
    /// Add or change a limit of its processes
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = ulimit)]
    ulimit_add: Vec<(UlimitKind, Ulimit)>,
    /// Take a limit of its processes back
    #[arg(long, value_name = "NAME")]
    ulimit_rm: Vec<UlimitKind>,
    /// Add or change a setting of its namespaces
    #[arg(long, value_name = "KEY=VALUE", value_parser = sysctl)]
    sysctl_add: Vec<(String, String)>,
    /// Take a setting of its namespaces back
    #[arg(long, value_name = "KEY")]
    sysctl_rm: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SecurityOpt {
    NoNewPrivileges(bool),
    Seccomp(SeccompProfile),
}

fn security_opt(text: &str) -> Result<SecurityOpt, String> {
    let (key, value) = text.split_once(['=', ':']).unwrap_or((text, ""));
    match (key, value) {
        ("no-new-privileges", "" | "true") => Ok(SecurityOpt::NoNewPrivileges(true)),
        ("no-new-privileges", "false") => Ok(SecurityOpt::NoNewPrivileges(false)),
        ("no-new-privileges", _) => Err(format!("{value:?} is neither true nor false")),
        ("seccomp", "default" | "builtin") => Ok(SecurityOpt::Seccomp(SeccompProfile::Default)),
        ("seccomp", "unconfined") => Ok(SecurityOpt::Seccomp(SeccompProfile::Unconfined)),
        ("seccomp", "") => Err("seccomp: is empty; give default, unconfined or a file".to_owned()),
        ("seccomp", file) => profile(file).map(SecurityOpt::Seccomp),
        ("apparmor" | "label", _) => Err(format!(
            "{key}: {} profiles are not built into Warren; leave it out, seccomp and capabilities \
             protect the node",
            if key == "label" { "SELinux" } else { "AppArmor" }
        )),
        ("systempaths", _) => {
            Err("systempaths: paths of /proc and /sys are masked unless --privileged".to_owned())
        }
        _ => {
            let meant = nearest(key, ["no-new-privileges", "seccomp"]);
            let meant = meant.map(|known| format!("did you mean {known}?"));
            let known =
                meant.unwrap_or_else(|| "options are no-new-privileges, seccomp".to_owned());
            Err(format!("there is no option {key:?}; {known}"))
        }
    }
}

fn profile(file: &str) -> Result<SeccompProfile, String> {
    let most = Privileges::SECCOMP_MAX;
    let within = |error: std::io::Error| format!("seccomp: {file}: {error}");
    let opened = std::fs::File::open(file).map_err(within)?;
    let mut text = String::new();
    opened.take(most as u64 + 1).read_to_string(&mut text).map_err(within)?;
    if text.len() > most {
        return Err(format!("seccomp: {file} is larger than {most} bytes"));
    }
    match serde_json::from_str::<Value>(&text) {
        // Without what is for people's eyes, of which all nodes would be told.
        Ok(value @ Value::Object(_)) => Ok(SeccompProfile::Custom(value.to_string())),
        Ok(_) => Err(format!("seccomp: {file} is not a profile: a JSON object")),
        Err(error) => Err(format!("seccomp: {file} is not JSON: {error}")),
    }
}

fn device(text: &str) -> Result<HostDevice, String> {
    text.parse().map_err(|error| format!("{text:?} {error}"))
}

fn ulimit(text: &str) -> Result<(UlimitKind, Ulimit), String> {
    Ulimit::parse(text).map_err(|error| error.to_string())
}

fn sysctl(text: &str) -> Result<(String, String), String> {
    let shape = || format!("{text:?} is not of the form KEY=VALUE, e.g. net.core.somaxconn=1024");
    let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(shape)?;
    // As sysctl(8) takes it, too.
    Ok((key.replace('/', "."), value.to_owned()))
}

fn score(text: &str) -> Result<i16, String> {
    let most = Privileges::OOM_SCORE_MAX;
    let number = text.parse().ok().filter(|number| (-most..=most).contains(number));
    number.ok_or_else(|| format!("{text:?} is not a number from -{most} to {most}"))
}

impl PrivilegeFlags {
    pub(crate) fn apply(&self, privileges: &mut Privileges) {
        privileges.privileged = self.privileged.unwrap_or(privileges.privileged);
        privileges.init = self.init.unwrap_or(privileges.init);
        let namespaces =
            [(&mut privileges.host_pid, self.pid), (&mut privileges.host_ipc, self.ipc)];
        for (is_host, given) in namespaces {
            *is_host = given.map_or(*is_host, |whose| whose == Namespace::Host);
        }
        if let Some(score) = self.oom_score_adj {
            privileges.oom_score_adj = (score != 0).then_some(score);
        }
        self.security_opt.iter().for_each(|option| secure(privileges, option));
    }
}

fn secure(privileges: &mut Privileges, option: &SecurityOpt) {
    match option {
        SecurityOpt::NoNewPrivileges(forbidden) => {
            privileges.no_new_privileges = Some(*forbidden);
        }
        SecurityOpt::Seccomp(profile) => privileges.seccomp = profile.clone(),
    }
}

impl PrivilegeLists {
    pub(crate) fn apply(self, privileges: &mut Privileges) {
        privileges.devices = self.device;
        privileges.groups = self.group_add;
        // As in Docker, the last word counts.
        privileges.ulimits = self.ulimit.into_iter().collect();
        privileges.sysctls = self.sysctl.into_iter().collect();
    }
}

impl PrivilegeEdits {
    pub(crate) fn apply(&self, privileges: &mut Privileges, remarks: &mut Vec<String>) {
        let mut absent = |flag: &str, what: &str, name: &str| {
            remarks.push(format!("{flag}: the service has no {what} {name}"));
        };
        for path in &self.device_rm {
            let before = privileges.devices.len();
            privileges.devices.retain(|d| d.host != *path && d.container != *path);
            if privileges.devices.len() == before {
                absent("--device-rm", "device", path);
            }
        }
        for given in &self.device_add {
            privileges.devices.retain(|known| known.container != given.container);
            privileges.devices.push(given.clone());
        }
        for group in &self.group_rm {
            let before = privileges.groups.len();
            privileges.groups.retain(|known| known != group);
            if privileges.groups.len() == before {
                absent("--group-rm", "group", group);
            }
        }
        for group in &self.group_add {
            if !privileges.groups.contains(group) {
                privileges.groups.push(group.clone());
            }
        }
        for kind in &self.ulimit_rm {
            if privileges.ulimits.remove(kind).is_none() {
                absent("--ulimit-rm", "limit", kind.as_str());
            }
        }
        privileges.ulimits.extend(self.ulimit_add.iter().copied());
        for key in &self.sysctl_rm {
            if privileges.sysctls.remove(&key.replace('/', ".")).is_none() {
                absent("--sysctl-rm", "setting", key);
            }
        }
        privileges.sysctls.extend(self.sysctl_add.iter().cloned());
    }
}

/// Keys of one container beside the service's own.
pub(crate) const KEYS: [&str; 10] = [
    "privileged",
    "security-opt",
    "device",
    "group-add",
    "ulimit",
    "sysctl",
    "pid",
    "ipc",
    "init",
    "oom-score-adj",
];
/// Those that may be given more than once.
pub(crate) const AGAIN: [&str; 5] = ["security-opt", "device", "group-add", "ulimit", "sysctl"];

/// Sets one of [`KEYS`].
pub(crate) fn set(privileges: &mut Privileges, key: &str, value: &str) -> Result<(), String> {
    let yes = || match value {
        "" | "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("{value:?} is neither true nor false")),
    };
    let is_host = || match value {
        "host" => Ok(true),
        "private" => Ok(false),
        _ => Err(format!("{value:?} is neither host nor private")),
    };
    match key {
        "privileged" => privileges.privileged = yes()?,
        "init" => privileges.init = yes()?,
        "pid" => privileges.host_pid = is_host()?,
        "ipc" => privileges.host_ipc = is_host()?,
        "security-opt" => secure(privileges, &security_opt(value)?),
        "device" => privileges.devices.push(device(value)?),
        "group-add" => privileges.groups.push(value.to_owned()),
        "ulimit" => privileges.ulimits.extend([ulimit(value)?]),
        "sysctl" => privileges.sysctls.extend([sysctl(value)?]),
        "oom-score-adj" => privileges.oom_score_adj = Some(score(value)?).filter(|n| *n != 0),
        _ => return Err(format!("there is no key {key:?}")),
    }
    Ok(())
}

/// Takes the nodes' own network out of those that were given; says whether it was there.
pub(crate) fn take_host(networks: &mut Vec<Attachment>) -> Result<bool, Failure> {
    let is_host = |on: &Attachment| on.network.as_str() == NetworkName::HOST;
    let Some(at) = networks.iter().position(is_host) else { return Ok(false) };
    let on = networks.remove(at);
    if on != Attachment::new(on.network.clone()) {
        return Err(Failure::input("--network: \"host\" has neither aliases nor addresses"));
    }
    Ok(true)
}

/// As `inspect` shows it.
pub(crate) fn privileges_json(privileges: &Privileges) -> Value {
    let whose = |is_host: bool| if is_host { "host" } else { "private" };
    let number = |limit: u64| Some(limit).filter(|limit| *limit != Ulimit::UNLIMITED);
    let limit = |(kind, limit): (&UlimitKind, &Ulimit)| {
        let value = json!({"soft": number(limit.soft), "hard": number(limit.hard)});
        (kind.as_str().to_owned(), value)
    };
    json!({
        "privileged": privileges.privileged,
        "no_new_privileges": privileges.forbids_new(),
        "seccomp": match &privileges.seccomp {
            SeccompProfile::Default if privileges.privileged => json!("unconfined"),
            SeccompProfile::Default => json!("default"),
            SeccompProfile::Unconfined => json!("unconfined"),
            SeccompProfile::Custom(profile) => serde_json::from_str(profile).unwrap_or_default(),
        },
        "devices": privileges.devices.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "pid": whose(privileges.host_pid),
        "ipc": whose(privileges.host_ipc),
        "groups": privileges.groups,
        "ulimits": privileges.ulimits.iter().map(limit).collect::<serde_json::Map<_, _>>(),
        "sysctls": privileges.sysctls,
        "init": privileges.init,
        "oom_score_adj": privileges.oom_score_adj.unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn security_options() {
        let check = |text: &str, expected: &str| {
            let got = match security_opt(text) {
                Ok(option) => format!("{option:?}"),
                Err(problem) => problem,
            };
            assert!(got.starts_with(expected), "{text}: {got}");
        };
        check("no-new-privileges", "NoNewPrivileges(true)");
        check("no-new-privileges:false", "NoNewPrivileges(false)");
        check("no-new-privileges=maybe", "\"maybe\" is neither");
        check("seccomp=unconfined", "Seccomp(Unconfined)");
        check("seccomp:default", "Seccomp(Default)");
        check("seccomp=", "seccomp: is empty");
        check("seccomp=/none.json", "seccomp: /none.json: No such file");
        check("apparmor=docker-default", "apparmor: AppArmor profiles are not built");
        check("label=disable", "label: SELinux profiles are not built");
        check("systempaths=unconfined", "systempaths: paths");
        check("secomp=unconfined", "there is no option \"secomp\"; did you mean seccomp?");
        check("fly", "there is no option \"fly\"; options are");
    }

    #[test]
    fn profiles_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.json");
        let option = format!("seccomp={}", file.display());
        std::fs::write(&file, "{ \"defaultAction\" : \"SCMP_ACT_ALLOW\" }\n").unwrap();
        let custom = SeccompProfile::Custom("{\"defaultAction\":\"SCMP_ACT_ALLOW\"}".into());
        assert_eq!(security_opt(&option), Ok(SecurityOpt::Seccomp(custom)));
        for (text, expected) in [
            ("[]", "is not a profile: a JSON object"),
            ("{", "is not JSON"),
            (&" ".repeat(Privileges::SECCOMP_MAX + 1), "is larger than 131072 bytes"),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = security_opt(&option).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn lists_come_and_go() {
        let mut privileges = Privileges::default();
        let lists = PrivilegeLists {
            device: vec![device("/dev/fuse").unwrap()],
            group_add: vec!["audio".into()],
            ulimit: vec![ulimit("nofile=1").unwrap(), ulimit("nofile=2").unwrap()],
            sysctl: vec![sysctl("net/core/somaxconn=5").unwrap()],
        };
        lists.apply(&mut privileges);
        assert_eq!(privileges.sysctls["net.core.somaxconn"], "5");
        let edits = PrivilegeEdits {
            device_add: vec![device("/dev/kvm:/dev/fuse:r").unwrap()],
            device_rm: vec!["/dev/none".into()],
            group_add: vec!["audio".into(), "7".into()],
            group_rm: vec!["video".into()],
            ulimit_add: vec![ulimit("core=0").unwrap()],
            ulimit_rm: vec!["nofile".parse().unwrap(), "nproc".parse().unwrap()],
            sysctl_add: vec![sysctl("kernel.sem=1 2 3 4").unwrap()],
            sysctl_rm: vec!["net.core.somaxconn".into(), "net.x".into()],
        };
        let mut remarks = Vec::new();
        edits.apply(&mut privileges, &mut remarks);
        assert_eq!(
            remarks,
            [
                "--device-rm: the service has no device /dev/none",
                "--group-rm: the service has no group video",
                "--ulimit-rm: the service has no limit nproc",
                "--sysctl-rm: the service has no setting net.x",
            ]
        );
        assert_eq!(
            privileges_json(&privileges),
            json!({
                "privileged": false,
                "no_new_privileges": true,
                "seccomp": "default",
                "devices": ["/dev/kvm:/dev/fuse:r"],
                "pid": "private",
                "ipc": "private",
                "groups": ["audio", "7"],
                "ulimits": {"core": {"soft": 0, "hard": 0}},
                "sysctls": {"kernel.sem": "1 2 3 4"},
                "init": false,
                "oom_score_adj": 0,
            })
        );
    }

    #[test]
    fn keys_are_all_known() {
        let mut privileges = Privileges::default();
        let values = [
            "",
            "seccomp=unconfined",
            "/dev/fuse",
            "7",
            "nofile=-1",
            "net.core.somaxconn=5",
            "host",
            "host",
            "",
            "-9",
        ];
        for (key, value) in KEYS.iter().zip(values) {
            set(&mut privileges, key, value).unwrap();
            assert!(AGAIN.contains(key) || set(&mut privileges, key, "?").is_err(), "{key}");
        }
        assert!(privileges.host_pid && privileges.init && privileges.privileged);
        assert_eq!(privileges_json(&privileges)["ulimits"]["nofile"]["soft"], Value::Null);
    }
}
