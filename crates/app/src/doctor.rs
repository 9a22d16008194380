//! What this machine must have to run containers, as `warren doctor` looks at it.
//!
//! Reads /proc and asks the kernel; changes nothing. The running node adds
//! what only it can know.

use std::fs;
use std::path::Path;

use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink, socket_with};

use crate::cli::{Check, Level};
use crate::settings::Place;

/// `mount_setattr` came last of the calls that the runtime makes.
const KERNEL_MIN: (u32, u32) = (5, 12);
/// Less than this fills up with the first image.
const FREE_MIN_BYTES: u64 = 1 << 30;
const NAMESPACES: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

pub(crate) fn local(place: &Place) -> Vec<Check> {
    vec![
        user(),
        kernel(),
        namespaces(Path::new("/proc/self/ns")),
        cgroups(&read("/proc/self/mounts"), &read("/proc/cgroups")),
        overlay(&read("/proc/filesystems")),
        seccomp(),
        nftables(),
        free(&place.run_dir, "run folder"),
    ]
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn user() -> Check {
    match rustix::process::geteuid().is_root() {
        true => Check::ok("user", "root"),
        false => Check::new(Level::Warn, "user", "not root", "nodes are run by root"),
    }
}

fn kernel() -> Check {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    kernel_of(&release)
}

fn kernel_of(release: &str) -> Check {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= KERNEL_MIN {
        return Check::ok("kernel", release);
    }
    let hint = format!("Linux {}.{} or newer is needed", KERNEL_MIN.0, KERNEL_MIN.1);
    Check::new(Level::Bad, "kernel", release, hint)
}

fn namespaces(folder: &Path) -> Check {
    let missing: Vec<&str> =
        NAMESPACES.into_iter().filter(|name| !folder.join(name).exists()).collect();
    match missing.as_slice() {
        [] => Check::ok("namespaces", NAMESPACES.join(", ")),
        missing => Check::new(
            Level::Bad,
            "namespaces",
            format!("missing: {}", missing.join(", ")),
            "the kernel was built without them",
        ),
    }
}

fn cgroups(mounts: &str, known: &str) -> Check {
    let kinds: Vec<&str> = mounts.lines().filter_map(|l| l.split(' ').nth(2)).collect();
    let (v1, v2) = (kinds.contains(&"cgroup"), kinds.contains(&"cgroup2"));
    let hierarchy = match (v1, v2) {
        (true, true) => "hybrid",
        (true, false) => "v1",
        (false, true) => "v2",
        (false, false) => {
            let hint = "mount cgroup2 at /sys/fs/cgroup";
            return Check::new(Level::Bad, "cgroups", "none is mounted", hint);
        }
    };
    // Columns: name, hierarchy, groups, enabled. Kernels without v1 have no table.
    let enabled = |name: &&str| {
        known.is_empty()
            || known.lines().any(|line| {
                let mut words = line.split_whitespace();
                words.next() == Some(name) && words.nth(2) == Some("1")
            })
    };
    let missing: Vec<&str> = CONTROLLERS.into_iter().filter(|name| !enabled(name)).collect();
    match missing.as_slice() {
        [] => Check::ok("cgroups", format!("{hierarchy}: {}", CONTROLLERS.join(", "))),
        missing => Check::new(
            Level::Bad,
            "cgroups",
            format!("{hierarchy}, without {}", missing.join(", ")),
            format!("boot with cgroup_enable={}", missing.join(",")),
        ),
    }
}

fn overlay(filesystems: &str) -> Check {
    let known =
        filesystems.lines().any(|line| line.trim_start_matches("nodev").trim() == "overlay");
    match known {
        true => Check::ok("overlayfs", "in the kernel"),
        false => Check::new(Level::Bad, "overlayfs", "not known to the kernel", "modprobe overlay"),
    }
}

fn seccomp() -> Check {
    match fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(actions) if actions.contains("errno") => Check::ok("seccomp", "filters"),
        Ok(_) | Err(_) => Check::new(
            Level::Bad,
            "seccomp",
            "no filters",
            "the kernel was built without CONFIG_SECCOMP_FILTER",
        ),
    }
}

fn nftables() -> Check {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::NETFILTER),
    );
    match socket {
        Ok(_) => Check::ok("netfilter", "answers"),
        Err(error) => Check::new(
            Level::Bad,
            "netfilter",
            error.to_string(),
            "modprobe nf_tables; published ports need it",
        ),
    }
}

/// Room where `folder` is, or will be.
fn free(folder: &Path, name: &str) -> Check {
    let there = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(there) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let mib = free >> 20;
            let enough = free >= FREE_MIN_BYTES / 16;
            let level = if enough { Level::Ok } else { Level::Warn };
            let hint = if enough { "" } else { "make room" };
            Check::new(level, name, format!("{mib} MiB free at {}", there.display()), hint)
        }
        Err(error) => Check::new(Level::Warn, name, format!("{}: {error}", there.display()), ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels() {
        assert_eq!(kernel_of("6.18.5-amd64").level, Level::Ok);
        assert_eq!(kernel_of("5.12").level, Level::Ok);
        assert_eq!(kernel_of("5.4.0-100-generic").level, Level::Bad);
        assert_eq!(kernel_of("").level, Level::Bad);
    }

    #[test]
    fn hierarchies() {
        let table =
            "#subsys_name hierarchy num_cgroups enabled\ncpu 1 1 1\nmemory 2 1 1\npids 3 1 1\n";
        let check = |mounts: &str, table: &str| cgroups(mounts, table).detail;
        assert_eq!(
            check("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", table),
            "v2: cpu, memory, pids"
        );
        assert_eq!(check("a /b cgroup2 rw\na /c cgroup rw\n", table), "hybrid: cpu, memory, pids");
        assert_eq!(check("a /c cgroup rw\n", ""), "v1: cpu, memory, pids");
        let off = table.replace("memory 2 1 1", "memory 2 1 0");
        assert_eq!(check("a /c cgroup rw\n", &off), "v1, without memory");
        assert_eq!(check("", table), "none is mounted");
    }

    #[test]
    fn file_systems() {
        assert_eq!(overlay("nodev\tsysfs\nnodev\toverlay\n").level, Level::Ok);
        assert_eq!(overlay("nodev\tsysfs\n\text4\n").level, Level::Bad);
    }
}
