//! What this kernel and this process offer to containers.
//!
//! [`features`] is for people (`warren doctor`) and for a clear refusal at start; it changes
//! nothing. Not here: what the network needs.

use std::fs;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mount::{FsOpenFlags, fsopen};
use rustix::system::uname;

use super::{capability, cgroup};

/// `mount_setattr`, the newest system call without which no container can be set up.
const KERNEL_MIN: (u32, u32) = (5, 12);
/// Of the daemon: CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETGID, SETUID, SETPCAP, NET_ADMIN, SYS_CHROOT,
/// SYS_PTRACE, SYS_ADMIN, MKNOD.
const CAPABILITIES: u64 = 1
    | 1 << 1
    | 1 << 3
    | 1 << 5
    | 1 << 6
    | 1 << 7
    | 1 << 8
    | 1 << 12
    | 1 << 18
    | 1 << 19
    | 1 << 21
    | 1 << 27;

/// One thing that containers need or can use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feature {
    pub name: &'static str,
    pub ok: bool,
    /// Without it no container starts.
    pub required: bool,
    pub detail: String,
}

/// Checks everything that the native runtime builds on.
pub fn features() -> Vec<Feature> {
    vec![
        kernel(),
        privileges(),
        overlay(),
        namespaces(),
        seccomp(),
        memory_files(),
        cgroups(),
        controllers(),
    ]
}

fn feature(name: &'static str, required: bool, answer: Result<String, String>) -> Feature {
    let ok = answer.is_ok();
    Feature { name, ok, required, detail: answer.unwrap_or_else(|detail| detail) }
}

fn kernel() -> Feature {
    feature("kernel", true, new_enough(&uname().release().to_string_lossy()))
}

fn new_enough(release: &str) -> Result<String, String> {
    let mut parts = release.split(|char: char| !char.is_ascii_digit()).map(str::parse::<u32>);
    let version = (parts.next().and_then(Result::ok), parts.next().and_then(Result::ok));
    let (major, minor) = KERNEL_MIN;
    match version {
        (Some(own_major), Some(own_minor)) if (own_major, own_minor) < KERNEL_MIN => {
            Err(format!("Linux {release}: at least {major}.{minor} is needed"))
        }
        (Some(_), Some(_)) => Ok(format!("Linux {release}")),
        // An unusual name proves nothing; the other checks will tell.
        (_, _) => Ok(format!("Linux {release}, version not understood")),
    }
}

fn privileges() -> Feature {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    feature("privileges", true, mighty_enough(capability::available(&status)))
}

fn mighty_enough(own: u64) -> Result<String, String> {
    let missing = capability::names(CAPABILITIES & !own).join(", ");
    match missing.is_empty() {
        true => Ok("root with the capabilities that containers need".to_owned()),
        false => Err(format!("the daemon must run as root; it lacks the capabilities {missing}")),
    }
}

fn overlay() -> Feature {
    // Loads the module where it is one.
    let answer = match fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(_) => Ok("overlayfs".to_owned()),
        Err(error) => Err(format!("overlayfs cannot be used: {error}")),
    };
    feature("overlayfs", true, answer)
}

fn namespaces() -> Feature {
    let missing = ["pid", "mnt", "net", "uts", "ipc", "cgroup"]
        .into_iter()
        .filter(|name| !fs::exists(format!("/proc/self/ns/{name}")).unwrap_or(false))
        .collect::<Vec<_>>();
    let answer = if missing.is_empty() {
        Ok("pid, mount, network, uts, ipc and cgroup namespaces".to_owned())
    } else {
        Err(format!("the kernel has no {} namespaces", missing.join(", ")))
    };
    feature("namespaces", true, answer)
}

fn seccomp() -> Feature {
    let answer = match fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(actions) => Ok(format!("seccomp filters: {}", actions.trim())),
        Err(error) => Err(format!("the kernel has no seccomp filters: {error}")),
    };
    feature("seccomp", true, answer)
}

fn memory_files() -> Feature {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::from_bits_retain(0x10);
    let answer = match memfd_create("warren-check", flags) {
        Ok(_) | Err(rustix::io::Errno::INVAL) => Ok("programs run from memory".to_owned()),
        Err(error) => {
            Err(format!("programs cannot run from memory ({error}): see sysctl vm.memfd_noexec"))
        }
    };
    feature("memfd", true, answer)
}

fn mounted() -> Result<Box<dyn cgroup::Cgroups>, crate::Error> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    cgroup::detect(&mountinfo, "doctor")
}

fn cgroups() -> Feature {
    let answer = match mounted() {
        Ok(cgroups) => Ok(match cgroups.mode() {
            cgroup::Mode::V1 => "version 1".to_owned(),
            cgroup::Mode::Hybrid => "version 1, with an empty version 2 beside it".to_owned(),
            cgroup::Mode::V2 => "version 2".to_owned(),
        }),
        Err(error) => Err(error.to_string()),
    };
    feature("cgroups", true, answer)
}

/// Version of the control groups that containers get: `v1`, `hybrid` or `v2`.
pub fn cgroup_version() -> Option<&'static str> {
    Some(match mounted().ok()?.mode() {
        cgroup::Mode::V1 => "v1",
        cgroup::Mode::Hybrid => "hybrid",
        cgroup::Mode::V2 => "v2",
    })
}

fn controllers() -> Feature {
    let missing = mounted().map(|cgroups| cgroups.missing()).unwrap_or_default();
    let answer = if missing.is_empty() {
        Ok("all that limits need".to_owned())
    } else {
        Err(format!("missing: {}", missing.join(", ")))
    };
    feature("cgroup controllers", false, answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(answer: Result<String, String>, expected: &str) {
        let text = answer.unwrap_or_else(|why| format!("missing: {why}"));
        assert_eq!(text, expected);
    }

    #[test]
    fn kernels() {
        check(new_enough("5.12.0"), "Linux 5.12.0");
        check(new_enough("6.1.0-18-amd64"), "Linux 6.1.0-18-amd64");
        check(
            new_enough("5.10.0-28-amd64"),
            "missing: Linux 5.10.0-28-amd64: at least 5.12 is needed",
        );
        check(new_enough("4.19"), "missing: Linux 4.19: at least 5.12 is needed");
        check(new_enough("mine"), "Linux mine, version not understood");
    }

    #[test]
    fn daemons_without_privileges() {
        check(mighty_enough(u64::MAX), "root with the capabilities that containers need");
        let no_network = mighty_enough(!(1 << 12));
        check(
            no_network,
            "missing: the daemon must run as root; it lacks the capabilities NET_ADMIN",
        );
        let nobody = mighty_enough(0).unwrap_err();
        assert!(nobody.ends_with("CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETGID, SETUID, SETPCAP, NET_ADMIN, SYS_CHROOT, SYS_PTRACE, SYS_ADMIN, MKNOD"), "{nobody}");
    }

    #[test]
    fn host_features_are_there() {
        for feature in features() {
            assert!(feature.ok || !feature.required, "{feature:?}");
        }
    }
}
