//! What a template asks for beyond what all containers have, in the runtime's words.

use std::collections::BTreeSet;

use warren_model::TaskTemplate;
use warren_model::service::{HostDevice, SeccompProfile};
use warren_runtime::{Device, Privileges, Seccomp, Sysctl, Ulimit};

use crate::cdi::DeviceNode;

pub(super) fn of(template: &TaskTemplate) -> Privileges {
    let p = &template.privileges;
    let limits = p.ulimits.iter().map(|(kind, limit)| Ulimit {
        name: kind.as_str(),
        resource: kind.number(),
        soft: limit.soft,
        hard: limit.hard,
    });
    let settings = p.sysctls.iter();
    Privileges {
        privileged: p.privileged,
        host_pid: p.host_pid,
        host_ipc: p.host_ipc,
        groups: p.groups.clone(),
        ulimits: limits.collect(),
        sysctls: settings
            .map(|(key, value)| Sysctl { key: key.clone(), value: value.clone() })
            .collect(),
        init: p.init,
        oom_score_adj: p.oom_score_adj,
    }
}

pub(super) fn seccomp(template: &TaskTemplate) -> Seccomp {
    match &template.privileges.seccomp {
        SeccompProfile::Default => Seccomp::Default,
        SeccompProfile::Unconfined => Seccomp::Unconfined,
        SeccompProfile::Custom(profile) => Seccomp::Custom(profile.as_str().into()),
    }
}

/// Those of specifications of the node, and those that the template names; these win.
pub(super) fn devices(template: &TaskTemplate, nodes: Vec<DeviceNode>) -> Vec<Device> {
    let named = &template.privileges.devices;
    let places: BTreeSet<&str> = named.iter().map(|device| device.container.as_str()).collect();
    let nodes = nodes.into_iter().filter(|node| !places.contains(node.path.as_str()));
    let of_node = nodes.map(|node| {
        let DeviceNode { path, host_path, read, write, mode, uid, gid } = node;
        Device { path, host_path: host_path.into(), read, write, mode, uid, gid }
    });
    let of_template = named.iter().map(|device| {
        let HostDevice { host, container, read, write, mknod: _ } = device;
        Device {
            path: container.clone(),
            host_path: host.into(),
            read: *read,
            write: *write,
            mode: None,
            uid: None,
            gid: None,
        }
    });
    of_node.chain(of_template).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_passed_on() {
        let mut template = TaskTemplate::default();
        assert_eq!(of(&template), Privileges::default());
        assert_eq!(seccomp(&template), Seccomp::Default);
        let p = &mut template.privileges;
        p.privileged = true;
        p.groups = vec!["audio".into()];
        p.ulimits = [warren_model::service::Ulimit::parse("nofile=5:9").unwrap()].into();
        p.sysctls = [("net.core.somaxconn".into(), "9".into())].into();
        p.seccomp = SeccompProfile::Custom("{}".into());
        p.devices = vec!["/dev/sda:/dev/x:r".parse().unwrap()];
        let got = of(&template);
        assert!(got.privileged && !got.init);
        assert_eq!(got.ulimits[0], Ulimit { name: "nofile", resource: 7, soft: 5, hard: 9 });
        assert_eq!(got.sysctls[0].key, "net.core.somaxconn");
        assert_eq!(seccomp(&template), Seccomp::Custom("{}".into()));
        let node = |path: &str| DeviceNode {
            path: path.into(),
            host_path: "/dev/nvidia0".into(),
            read: true,
            write: true,
            mode: Some(0o600),
            uid: None,
            gid: None,
        };
        let got = devices(&template, vec![node("/dev/x"), node("/dev/y")]);
        let got: Vec<_> = got.iter().map(|d| (d.path.as_str(), d.read, d.write)).collect();
        assert_eq!(got, [("/dev/y", true, true), ("/dev/x", true, false)]);
    }
}
