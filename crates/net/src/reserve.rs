//! Reservation of published ports, and who holds one that is taken.
//!
//! A reserved port is a bound socket that never listens: published traffic is
//! translated before it could reach any socket, so the only effect is that nobody
//! else can bind the port in the belief of being reachable.
//!
//! TCP: bound without SO_REUSEADDR, because with it any server that sets it too
//! could bind and listen beside us. Only if nothing but left-over connections of an
//! earlier server holds the port is it bound with SO_REUSEADDR, which those allow;
//! then, a server that sets it as well is not kept out.
//!
//! A port on every address is reserved for both families, by one socket.
//!
//! A process that was given the socket (a container's supervisor) keeps the port
//! reserved while the daemon is away; [`reclaim`] takes it from there.
//!
//! Not here: translation (`rules`). /proc is read as the calling thread sees it.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, getpeername, getsockname, socket_with, sockopt,
};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::{Error, Protocol};

/// Listening, as /proc/net/tcp writes it.
const LISTEN: u8 = 0x0a;

pub(crate) fn reserve(protocol: Protocol, on: Ipv4Addr, port: u16) -> Result<OwnedFd, Error> {
    let failed = |source| Error::io(format!("reserve port {port}/{protocol} on {on}"), source);
    if port == 0 {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "port 0 means any port")));
    }
    let error = match try_bind(protocol, on, port, false) {
        Ok(socket) => return Ok(socket),
        Err(Errno::ADDRINUSE) => Errno::ADDRINUSE,
        Err(Errno::ADDRNOTAVAIL) => {
            return Err(Error::NoAddress { protocol: protocol.name(), bind: on, port });
        }
        Err(error) => return Err(failed(error.into())),
    };
    let holders = holders(protocol, on, port).map_err(failed)?;
    let only_leftovers = !holders.is_empty() && !holders.iter().any(|holder| holder.listens);
    if only_leftovers && let Ok(socket) = try_bind(protocol, on, port, true) {
        return Ok(socket);
    }
    tracing::debug!(port, %protocol, %on, %error, "port is taken");
    // The one who listens is the one to name.
    let holder = holders.iter().max_by_key(|holder| holder.listens);
    let holder = holder.map_or_else(
        || "a socket that is bound and does not listen".to_owned(),
        |holder| name_of(holder.inode),
    );
    Err(Error::PortTaken { protocol: protocol.name(), bind: on, port, holder })
}

fn try_bind(
    protocol: Protocol,
    on: Ipv4Addr,
    port: u16,
    beside_leftovers: bool,
) -> Result<OwnedFd, Errno> {
    if on.is_unspecified() {
        match try_bind_to(protocol, (Ipv6Addr::UNSPECIFIED, port).into(), beside_leftovers) {
            // The kernel has no IPv6, or it was turned off.
            Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => {}
            bound => return bound,
        }
    }
    try_bind_to(protocol, (on, port).into(), beside_leftovers)
}

fn try_bind_to(
    protocol: Protocol,
    to: SocketAddr,
    beside_leftovers: bool,
) -> Result<OwnedFd, Errno> {
    let (kind, family) = match to {
        SocketAddr::V4(_) => (socket_type(protocol), AddressFamily::INET),
        SocketAddr::V6(_) => (socket_type(protocol), AddressFamily::INET6),
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if to.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    match protocol {
        Protocol::Tcp if beside_leftovers => sockopt::set_socket_reuseaddr(&socket, true)?,
        Protocol::Tcp => {}
        // Nobody reads: what arrives before the rules do must not fill memory. The kernel rounds up to its minimum.
        Protocol::Udp => sockopt::set_socket_recv_buffer_size(&socket, 1)?,
    }
    bind(&socket, &to)?;
    if beside_leftovers {
        // Others that tolerate company, our own second attempt among them, are to find none here.
        sockopt::set_socket_reuseaddr(&socket, false)?;
    }
    Ok(socket)
}

/// A copy of the reservation that process `pid` holds, if it holds it.
pub(crate) fn reclaim(
    protocol: Protocol,
    on: Ipv4Addr,
    port: u16,
    pid: u32,
) -> Result<Option<OwnedFd>, Error> {
    let failed = |source: io::Error| {
        Error::io(format!("reclaim port {port}/{protocol} on {on} from process {pid}"), source)
    };
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let raw = raw.ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let process = pidfd_open(raw, PidfdFlags::empty()).map_err(|e| failed(e.into()))?;
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).map_err(failed)?.flatten() {
        let is_socket = fs::read_link(entry.path())
            .is_ok_and(|target| target.as_os_str().as_encoded_bytes().starts_with(b"socket:"));
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if !is_socket {
            continue;
        }
        match pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) {
            Ok(socket) if is_reservation(&socket, protocol, on, port) => return Ok(Some(socket)),
            // Another socket, or one that was closed meanwhile.
            Ok(_) | Err(Errno::BADF) => {}
            Err(error) => return Err(failed(error.into())),
        }
    }
    Ok(None)
}

fn is_reservation(socket: &OwnedFd, protocol: Protocol, on: Ipv4Addr, port: u16) -> bool {
    let name = getsockname(socket).ok();
    let v4 = name.clone().and_then(|name| SocketAddrV4::try_from(name).ok());
    let v6 = name.and_then(|name| SocketAddrV6::try_from(name).ok());
    let any = v6.is_some_and(|v6| v6.ip().is_unspecified() && v6.port() == port);
    (v4 == Some(SocketAddrV4::new(on, port)) || (on.is_unspecified() && any))
        && sockopt::socket_type(socket) == Ok(socket_type(protocol))
        && sockopt::socket_acceptconn(socket) == Ok(false)
        && getpeername(socket).is_err()
}

fn socket_type(protocol: Protocol) -> SocketType {
    match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Holder {
    listens: bool,
    inode: u64,
}

/// Sockets that are in the way of a bind.
fn holders(protocol: Protocol, on: Ipv4Addr, port: u16) -> io::Result<Vec<Holder>> {
    let mut holders = Vec::new();
    for suffix in ["", "6"] {
        let path = format!("/proc/thread-self/net/{}{suffix}", protocol.name());
        let table = match fs::read_to_string(path) {
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            table => table?,
        };
        holders.extend(parse(&table, protocol, on, port));
    }
    Ok(holders)
}

fn parse(table: &str, protocol: Protocol, on: Ipv4Addr, port: u16) -> Vec<Holder> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (address, held) = fields.get(1)?.split_once(':')?;
        let state = u8::from_str_radix(fields.get(3)?, 16).ok()?;
        let inode = fields.get(9)?.parse().ok()?;
        let address = parse_address(address)?;
        let overlaps = address.is_unspecified() || on.is_unspecified() || address == IpAddr::V4(on);
        let in_way = overlaps && u16::from_str_radix(held, 16) == Ok(port);
        in_way.then_some(Holder { listens: protocol == Protocol::Udp || state == LISTEN, inode })
    };
    table.lines().skip(1).filter_map(line).collect()
}

/// A local address in /proc/net, the one it stands for where that is of IPv4; `::` takes all.
fn parse_address(hex: &str) -> Option<IpAddr> {
    // Written as numbers in host order of what is in network order in memory.
    let word = |at: usize| {
        let number = u32::from_str_radix(hex.get(at * 8..at * 8 + 8)?, 16).ok()?;
        Some(u32::from_be_bytes(number.to_ne_bytes()))
    };
    match hex.len() {
        8 => Some(IpAddr::V4(word(0)?.into())),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let bits = words.into_iter().fold(0_u128, |bits, word| bits << 32 | u128::from(word));
            Some(IpAddr::V6(Ipv6Addr::from(bits)).to_canonical())
        }
        _ => None,
    }
}

/// `nginx (pid 123)`, by looking for the socket in every process.
fn name_of(inode: u64) -> String {
    let link = format!("socket:[{inode}]");
    let holds = |pid: &u32| {
        fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|descriptors| {
            descriptors
                .filter_map(|descriptor| fs::read_link(descriptor.ok()?.path()).ok())
                .any(|target| target.as_os_str() == link.as_str())
        })
    };
    let processes = fs::read_dir("/proc").into_iter().flatten();
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    match pids.into_iter().find(holds) {
        Some(pid) => {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("{} (pid {pid})", name.trim_end())
        }
        None => "a socket whose process cannot be seen from here".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 0 100 0 0 10 0
   1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12 1 0 100 0 0 10 0
   2: 0101A8C0:1F90 0201A8C0:C001 06 00000000:00000000 03:00000000 00000000     0        0 0 3 0
garbage
";
    const TCP6: &str = "\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 21 1 0 100 0 0 10 0
   1: 0000000000000000FFFF00000100007F:1F91 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 22 1 0 100 0 0 10 0
   2: 000080FE00000000000000000100000A:1F91 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 23 1 0 100 0 0 10 0
";

    #[track_caller]
    fn check(table: &str, on: [u8; 4], port: u16, expected: &[u64]) {
        let found = parse(table, Protocol::Tcp, on.into(), port);
        assert_eq!(found.iter().map(|holder| holder.inode).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn sockets_in_the_way() {
        check(TCP, [0, 0, 0, 0], 8080, &[11, 0]);
        check(TCP, [127, 0, 0, 1], 8080, &[11]);
        check(TCP, [192, 168, 1, 2], 8080, &[]);
        check(TCP, [192, 168, 1, 1], 80, &[12]);
        check(TCP, [0, 0, 0, 0], 81, &[]);
        check(TCP6, [0, 0, 0, 0], 8080, &[21]);
        check(TCP6, [10, 0, 0, 1], 8080, &[21]);
        check(TCP6, [127, 0, 0, 1], 8081, &[22]);
        check(TCP6, [0, 0, 0, 0], 8081, &[22, 23]);
        check(TCP6, [10, 0, 0, 1], 8081, &[]);
    }

    #[test]
    fn only_listeners_listen() {
        let found = parse(TCP, Protocol::Tcp, Ipv4Addr::UNSPECIFIED, 8080);
        assert_eq!(found.iter().map(|holder| holder.listens).collect::<Vec<_>>(), [true, false]);
    }
}
