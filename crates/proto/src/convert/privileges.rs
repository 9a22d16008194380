//! What containers may do beyond what all may, and what the cluster allows of it.

use warren_model::Allowed;
use warren_model::service::{HostDevice, Privileges, SeccompProfile, Ulimit};

use super::Error;
use crate::v1;

impl From<&Privileges> for v1::Privileges {
    fn from(privileges: &Privileges) -> Self {
        let p = privileges.clone();
        let (seccomp_unconfined, seccomp_profile) = match p.seccomp {
            SeccompProfile::Default => (false, String::new()),
            SeccompProfile::Unconfined => (true, String::new()),
            SeccompProfile::Custom(profile) => (false, profile),
        };
        let ulimits = p.ulimits.iter();
        Self {
            privileged: p.privileged,
            no_new_privileges: p.no_new_privileges,
            seccomp_unconfined,
            seccomp_profile,
            devices: p.devices.iter().map(ToString::to_string).collect(),
            host_pid: p.host_pid,
            host_ipc: p.host_ipc,
            host_network: p.host_network,
            groups: p.groups,
            ulimits: ulimits.map(|(kind, limit)| format!("{}={limit}", kind.as_str())).collect(),
            sysctls: p.sysctls.into_iter().collect(),
            init: p.init,
            oom_score_adj: p.oom_score_adj.map(Into::into),
        }
    }
}

impl TryFrom<v1::Privileges> for Privileges {
    type Error = Error;

    fn try_from(wire: v1::Privileges) -> Result<Self, Error> {
        let device = |text: &String| {
            text.parse::<HostDevice>()
                .map_err(|error| Error::new("devices", format!("{text:?} {error}")))
        };
        let ulimit = |text: &String| {
            Ulimit::parse(text).map_err(|error| Error::new("ulimits", error.to_string()))
        };
        let score = wire.oom_score_adj.map(i16::try_from).transpose();
        Ok(Self {
            privileged: wire.privileged,
            no_new_privileges: wire.no_new_privileges,
            seccomp: match (wire.seccomp_unconfined, wire.seccomp_profile) {
                (true, _) => SeccompProfile::Unconfined,
                (false, profile) if profile.is_empty() => SeccompProfile::Default,
                (false, profile) => SeccompProfile::Custom(profile),
            },
            devices: wire.devices.iter().map(device).collect::<Result<_, _>>()?,
            host_pid: wire.host_pid,
            host_ipc: wire.host_ipc,
            host_network: wire.host_network,
            groups: wire.groups,
            ulimits: wire.ulimits.iter().map(ulimit).collect::<Result<_, _>>()?,
            sysctls: wire.sysctls.into_iter().collect(),
            init: wire.init,
            oom_score_adj: score.map_err(|_| Error::new("oom_score_adj", "is out of range"))?,
        })
    }
}

/// Texts of what is allowed.
pub(super) fn allowed(allowed: &Allowed) -> Vec<String> {
    allowed.iter().map(ToString::to_string).collect()
}

/// # Errors
/// When one is not known here, or there are too many.
pub(super) fn allowed_from(wire: &[String]) -> Result<Allowed, Error> {
    let texts = wire.iter().map(String::as_str);
    Allowed::from_texts(texts).map_err(|error| Error::new("allowed", error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_comes_back() {
        let privileges = Privileges {
            privileged: true,
            no_new_privileges: Some(false),
            seccomp: SeccompProfile::Custom("{}".into()),
            devices: vec!["/dev/sda:/dev/xvda:r".parse().unwrap()],
            host_pid: true,
            host_ipc: true,
            host_network: true,
            groups: vec!["audio".into(), "7".into()],
            ulimits: [Ulimit::parse("nofile=1:-1").unwrap()].into(),
            sysctls: [("net.core.somaxconn".into(), "9".into())].into(),
            init: true,
            oom_score_adj: Some(-7),
        };
        let unconfined =
            Privileges { seccomp: SeccompProfile::Unconfined, ..Privileges::default() };
        for one in [privileges, unconfined, Privileges::default()] {
            assert_eq!(Privileges::try_from(v1::Privileges::from(&one)), Ok(one));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let check = |wire: v1::Privileges, expected: &str| {
            let error = Privileges::try_from(wire).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        };
        let wire = v1::Privileges::default;
        check(v1::Privileges { devices: vec!["x".into()], ..wire() }, "devices: \"x\" is not");
        check(v1::Privileges { ulimits: vec!["x=1".into()], ..wire() }, "ulimits: there is no");
        check(v1::Privileges { oom_score_adj: Some(1 << 20), ..wire() }, "oom_score_adj: is out");
        assert!(allowed_from(&["fly".into()]).is_err());
        let given = ["host-pid".to_owned(), "device:/dev/fuse".to_owned()];
        assert_eq!(allowed(&allowed_from(&given).unwrap()), given);
    }
}
