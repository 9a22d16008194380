//! What this machine says of itself to the cluster.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;

use warren_model::node::Description;
use warren_model::{Cluster, ClusterId};

use crate::address::{Address, Host};
use crate::settings::NodeSettings;

/// An address of the documentation range: asking for the way there sends nothing.
const ANYWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);

/// `data_dir` is, or will be, the node's data folder. Tries what the kernel can do, which takes
/// some milliseconds.
pub(crate) fn describe(advertise: &Address, data_dir: &Path) -> Description {
    let disk = warren_agent::disk(data_dir);
    let names = rustix::system::uname();
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    let memory = rustix::system::sysinfo();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    Description {
        hostname: hostname(&text(names.nodename()), advertise),
        address: advertise.to_string(),
        version: warren_base::build::VERSION.to_owned(),
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        memory_bytes: u64::from(memory.mem_unit).saturating_mul(memory.totalram),
        architecture: text(names.machine()),
        kernel: text(names.release()),
        labels: BTreeMap::new(),
        disk_bytes: disk.map_or(0, |disk| disk.bytes),
        disk_free_bytes: disk.map_or(0, |disk| disk.free_bytes),
        features: features(),
        // Whoever has the key says so.
        overlay_key: [0; 32],
        overlay_key_other: [0; 32],
        overlay_port: 0,
        // The agent says so.
        devices: BTreeMap::new(),
    }
}

/// The machine's name as managers take it. A machine that was given none, or one of nothing that
/// names have, is called by its address.
fn hostname(given: &str, advertise: &Address) -> String {
    /// What Linux says of a machine that was never given a name.
    const NONE: &str = "(none)";
    let fits = |text: &str| -> String {
        let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        text.chars().map(|c| if fit(c) { c } else { '-' }).collect()
    };
    match fits(given) {
        name if given != NONE && name.contains(|c: char| c.is_ascii_alphanumeric()) => name,
        _ => {
            let at = match &advertise.host {
                Host::Ip(address) => address.to_string(),
                Host::Name(name) => name.clone(),
            };
            format!("node-{}", fits(&at).replace('.', "-"))
        }
    }
}

/// What this kernel can do that containers and networks may build on, each of it tried.
fn features() -> Vec<String> {
    let pool = Cluster::new(ClusterId::MIN).pool;
    let net = warren_net::features((pool.address, pool.prefix));
    let of_containers = warren_runtime::native::features().into_iter();
    let mut found: Vec<String> = of_containers
        .filter(|feature| feature.ok && matches!(feature.name, "overlayfs" | "seccomp"))
        .map(|feature| feature.name.to_owned())
        .collect();
    let tun = File::options().read(true).write(true).open("/dev/net/tun");
    // Its file system comes with the system call.
    let ebpf = std::fs::read_to_string("/proc/filesystems")
        .is_ok_and(|all| all.lines().any(|line| line.ends_with("\tbpf")));
    let tried =
        [("nf_tables", net.nf_tables), ("veth", net.veth), ("tun", tun.is_ok()), ("ebpf", ebpf)];
    found.extend(tried.into_iter().filter(|(_, there)| *there).map(|(name, _)| name.to_owned()));
    let links = warren_net::link_kinds(&["vxlan", "wireguard"]);
    found.extend(links.into_iter().map(str::to_owned));
    found.extend(
        warren_runtime::native::cgroup_version().map(|version| format!("cgroup-{version}")),
    );
    found.sort();
    found
}

/// Where others reach this node: as told, else where it listens, else where the way out starts.
/// A machine without any way out is there for itself.
pub(crate) fn advertised(settings: &NodeSettings) -> Address {
    if let Some(address) = &settings.advertise {
        return address.clone();
    }
    let listen = settings.listen;
    if !listen.ip().is_unspecified() {
        return Address::of(listen);
    }
    let out = way_out().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    Address::of(SocketAddr::new(out, listen.port()))
}

/// The address that the way out of this machine starts at, if there is a way.
fn way_out() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(ANYWHERE).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_what_containers_need_is_told() {
        let found = features();
        for feature in ["overlayfs", "seccomp", "nf_tables", "veth"] {
            assert!(found.iter().any(|known| known == feature), "{feature} is not in {found:?}");
        }
        assert_eq!(found.iter().filter(|known| known.starts_with("cgroup-")).count(), 1);
    }

    #[test]
    fn every_machine_has_a_name() {
        let check = |given: &str, expected: &str| {
            let address = Address::parse("10.0.0.1:2377", 1).unwrap();
            assert_eq!(hostname(given, &address), expected, "{given:?}");
        };
        check("web-1.example", "web-1.example");
        check("(none)", "node-10-0-0-1");
        check("", "node-10-0-0-1");
        check("büro 7", "b-ro-7");
        check("((", "node-10-0-0-1");
        let address = Address::parse("[fd00::1]:2377", 1).unwrap();
        assert_eq!(hostname("(none)", &address), "node-fd00--1");
    }

    #[test]
    fn this_machine() {
        let address = Address::parse("10.0.0.1:2377", 1).unwrap();
        let description = describe(&address, Path::new("/nowhere/yet"));
        assert!(description.cpus > 0 && description.memory_bytes > 1 << 20);
        assert!(!description.hostname.is_empty() && !description.kernel.is_empty());
        assert_eq!(description.address, "10.0.0.1:2377");
        assert!(description.disk_bytes > 1 << 20);
    }
}
