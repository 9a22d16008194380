//! What this machine says of itself to the cluster.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};

use warren_model::node::Description;

/// An address of the documentation range: asking for the way there sends nothing.
const ANYWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);

pub(crate) fn describe() -> Description {
    let names = rustix::system::uname();
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    let memory = rustix::system::sysinfo();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    Description {
        hostname: text(names.nodename()),
        address: address().unwrap_or_default(),
        version: warren_base::build::VERSION.to_owned(),
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        memory_bytes: u64::from(memory.mem_unit).saturating_mul(memory.totalram),
        architecture: text(names.machine()),
        kernel: text(names.release()),
        labels: BTreeMap::new(),
    }
}

/// The address that the way out of this machine starts at, if there is a way.
fn address() -> Option<String> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(ANYWHERE).ok()?;
    Some(socket.local_addr().ok()?.ip().to_string())
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_machine() {
        let description = super::describe();
        assert!(description.cpus > 0 && description.memory_bytes > 1 << 20);
        assert!(!description.hostname.is_empty() && !description.kernel.is_empty());
    }
}
