//! What this machine says of itself to the cluster.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use warren_model::node::Description;

use crate::address::Address;
use crate::settings::NodeSettings;

/// An address of the documentation range: asking for the way there sends nothing.
const ANYWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);

pub(crate) fn describe(advertise: &Address) -> Description {
    let names = rustix::system::uname();
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    let memory = rustix::system::sysinfo();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    Description {
        hostname: text(names.nodename()),
        address: advertise.to_string(),
        version: warren_base::build::VERSION.to_owned(),
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        memory_bytes: u64::from(memory.mem_unit).saturating_mul(memory.totalram),
        architecture: text(names.machine()),
        kernel: text(names.release()),
        labels: BTreeMap::new(),
    }
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
    fn this_machine() {
        let address = Address::parse("10.0.0.1:2377", 1).unwrap();
        let description = describe(&address);
        assert!(description.cpus > 0 && description.memory_bytes > 1 << 20);
        assert!(!description.hostname.is_empty() && !description.kernel.is_empty());
        assert_eq!(description.address, "10.0.0.1:2377");
    }
}
