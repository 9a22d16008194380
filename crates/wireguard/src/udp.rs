//! The UDP socket: many datagrams of one peer in one call, in both directions.
//!
//! `UDP_SEGMENT` lets one send carry up to 64 datagrams of equal length (the last may be shorter),
//! `UDP_GRO` lets one receive bring as many of one sender (udp(7)). Not here: what is in them.

#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::Error;

/// Receives of one call; each may bring as many datagrams as fit into 64 KiB.
const BATCH: usize = 8;
const MESSAGE_LEN: usize = 65_536;
/// All that one turn of a worker may receive.
pub(crate) const RECEIVED_LEN: usize = BATCH * MESSAGE_LEN;
/// `UDP_MAX_SEGMENTS` of kernels before 6.10; later ones take 128.
pub(crate) const SEGMENTS_MAX: usize = 64;
/// What UDP carries over IPv6 without jumbograms, and a little less than over IPv4.
pub(crate) const SEND_LEN_MAX: usize = 65_535 - 8 - 40;
/// Bursts of all peers while a worker is busy elsewhere: some 10 ms at 3 Gbit/s.
const BUFFER_LEN: libc::c_int = 4 << 20;
/// A link that takes nothing for this long loses packets instead of holding up the worker.
const SEND_TIMEOUT_MS: i64 = 100;

/// A bound socket, for both families where it is bound to IPv6's unspecified address.
#[derive(Debug)]
pub struct Udp {
    fd: OwnedFd,
    is_v6: bool,
    /// Off once the kernel says that the way out cannot do it.
    segments: AtomicBool,
}

impl Udp {
    /// Binds `count` sockets to the same address and port: the kernel gives each peer to one.
    pub fn bind(address: SocketAddr, count: usize) -> Result<Vec<Self>, Error> {
        let what = |source| Error::io(format!("bind UDP {address}"), source);
        let mut sockets = Vec::with_capacity(count);
        let mut address = address;
        for _ in 0..count {
            let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
            let fd =
                rustix::net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
            let fd = fd.map_err(|e| what(e.into()))?;
            if count > 1 {
                set(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, 1).map_err(what)?;
            }
            if address.is_ipv6() {
                set(fd.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0).map_err(what)?;
            }
            rustix::net::bind(&fd, &address).map_err(|e| what(e.into()))?;
            let socket = Self::adopt(fd)?;
            // Port 0 is chosen once.
            address = socket.address()?;
            sockets.push(socket);
        }
        Ok(sockets)
    }

    /// Takes over a bound socket, e.g. of another process.
    pub fn adopt(fd: OwnedFd) -> Result<Self, Error> {
        let mut socket = Self { fd, is_v6: false, segments: AtomicBool::new(true) };
        socket.is_v6 = socket.address()?.is_ipv6();
        let raw = socket.fd.as_raw_fd();
        let what = |source| Error::io("set up a UDP socket", source);
        set(raw, libc::SOL_UDP, libc::UDP_GRO, 1).map_err(what)?;
        // As the kernel's WireGuard: what is too long for the way is cut, never refused.
        let (level, name) = if socket.is_v6 {
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
        } else {
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
        };
        set(raw, level, name, libc::IP_PMTUDISC_DONT).map_err(what)?;
        for (forced, asked) in
            [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
        {
            // Without the capability the system's limit applies, which is enough to work.
            if set(raw, libc::SOL_SOCKET, forced, BUFFER_LEN).is_err() {
                set(raw, libc::SOL_SOCKET, asked, BUFFER_LEN).map_err(what)?;
            }
        }
        let timeout = libc::timeval { tv_sec: 0, tv_usec: SEND_TIMEOUT_MS * 1000 };
        set(raw, libc::SOL_SOCKET, libc::SO_SNDTIMEO, timeout).map_err(what)?;
        Ok(socket)
    }

    /// Where it is bound.
    pub fn address(&self) -> Result<SocketAddr, Error> {
        let what = |source| Error::io("read the address of a UDP socket", source);
        let address = rustix::net::getsockname(&self.fd).map_err(|e| what(e.into()))?;
        SocketAddr::try_from(address).map_err(|e| what(e.into()))
    }

    /// A second descriptor of the same socket, for a successor.
    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// Takes what is there, without waiting.
    pub(crate) fn receive(&self, into: &mut Received) -> io::Result<()> {
        into.count = 0;
        // SAFETY: all three are plain data, for which zeros are valid.
        let (mut names, mut messages, mut vectors) = unsafe {
            (
                mem::zeroed::<[libc::sockaddr_storage; BATCH]>(),
                mem::zeroed::<[libc::mmsghdr; BATCH]>(),
                mem::zeroed::<[libc::iovec; BATCH]>(),
            )
        };
        // Room for one control message with an int, aligned.
        let mut controls = [[0_u64; 4]; BATCH];
        for (place, buffer) in into.buffer.chunks_exact_mut(MESSAGE_LEN).enumerate() {
            vectors[place].iov_base = buffer.as_mut_ptr().cast();
            vectors[place].iov_len = buffer.len();
            let header = &mut messages[place].msg_hdr;
            header.msg_name = (&raw mut names[place]).cast();
            header.msg_namelen = length_of::<libc::sockaddr_storage>();
            header.msg_iov = &raw mut vectors[place];
            header.msg_iovlen = 1;
            header.msg_control = controls[place].as_mut_ptr().cast();
            header.msg_controllen = size_of_val(&controls[place]);
        }
        let fd = self.fd.as_raw_fd();
        let vlen = u32::try_from(BATCH).unwrap_or(1);
        // SAFETY: each header points to a name, a vector, a buffer and controls of the lengths
        // given, all of which live until the call returns.
        let count = unsafe {
            libc::recvmmsg(
                fd,
                messages.as_mut_ptr(),
                vlen,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for place in 0..count {
            let len = usize::try_from(messages[place].msg_len).unwrap_or(0).min(MESSAGE_LEN);
            // SAFETY: the kernel has filled the header and what it points to.
            let segment = unsafe { segment_len(&messages[place].msg_hdr) };
            let Some(from) = address_of(&names[place]) else { continue };
            into.messages[into.count] =
                Message { place, len, segment: segment.unwrap_or(len).max(1), from };
            into.count += 1;
        }
        Ok(())
    }

    /// Sends one datagram.
    pub(crate) fn send(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        rustix::net::sendto(&self.fd, datagram, rustix::net::SendFlags::empty(), &self.reach(to))?;
        Ok(())
    }

    /// Sends datagrams of `len` bytes each, the last may be shorter. Returns how many were not sent.
    pub(crate) fn send_segments(&self, to: SocketAddr, datagrams: &[u8], len: usize) -> usize {
        debug_assert!(datagrams.len() <= SEND_LEN_MAX.max(len));
        debug_assert!(datagrams.len() <= len * SEGMENTS_MAX);
        if datagrams.len() > len && self.segments.load(Ordering::Relaxed) {
            match self.send_at_once(to, datagrams, len) {
                Ok(()) => return 0,
                Err(error) => match error.raw_os_error() {
                    // No checksums on the way out.
                    Some(libc::EIO) => self.segments.store(false, Ordering::Relaxed),
                    // Longer than the link's MTU, which single datagrams may be.
                    Some(libc::EINVAL | libc::EMSGSIZE) => {}
                    _ => return datagrams.len().div_ceil(len),
                },
            }
        }
        datagrams.chunks(len).filter(|datagram| self.send(to, datagram).is_err()).count()
    }

    fn send_at_once(&self, to: SocketAddr, datagrams: &[u8], len: usize) -> io::Result<()> {
        let (mut name, name_len) = storage(self.reach(to));
        let mut vector = libc::iovec {
            iov_base: datagrams.as_ptr().cast_mut().cast(),
            iov_len: datagrams.len(),
        };
        let mut control = [0_u64; 4];
        // SAFETY: a msghdr is plain data, for which zeros are valid.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_name = (&raw mut name).cast();
        header.msg_namelen = name_len;
        header.msg_iov = &raw mut vector;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        let size = u16::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: `control` is aligned and has room for one control message with two bytes, so
        // there is a first one; sendmsg reads what the header points to, all of which lives on.
        let sent = unsafe {
            header.msg_controllen = libc::CMSG_SPACE(2) as usize;
            let message = libc::CMSG_FIRSTHDR(&raw const header);
            (*message).cmsg_level = libc::SOL_UDP;
            (*message).cmsg_type = libc::UDP_SEGMENT;
            (*message).cmsg_len = libc::CMSG_LEN(2) as usize;
            libc::CMSG_DATA(message).cast::<u16>().write_unaligned(size);
            libc::sendmsg(self.fd.as_raw_fd(), &raw const header, 0)
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// An address as this socket's family writes it.
    fn reach(&self, to: SocketAddr) -> SocketAddr {
        match to {
            SocketAddr::V4(v4) if self.is_v6 => {
                SocketAddr::new(IpAddr::V6(v4.ip().to_ipv6_mapped()), v4.port())
            }
            other => other,
        }
    }
}

impl AsFd for Udp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What one call received. The memory is touched only as far as something arrived.
#[derive(Debug)]
pub(crate) struct Received {
    buffer: Vec<u8>,
    messages: [Message; BATCH],
    count: usize,
}

#[derive(Debug, Clone, Copy)]
struct Message {
    place: usize,
    len: usize,
    segment: usize,
    from: SocketAddr,
}

impl Received {
    pub(crate) fn new() -> Self {
        let from = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);
        let none = Message { place: 0, len: 0, segment: 1, from };
        Self { buffer: vec![0; RECEIVED_LEN], messages: [none; BATCH], count: 0 }
    }

    /// Sender, bytes, and the length of each datagram in them but the last.
    pub(crate) fn messages(&self) -> impl Iterator<Item = (SocketAddr, &[u8], usize)> {
        self.messages[..self.count].iter().map(|message| {
            let start = message.place * MESSAGE_LEN;
            (message.from, &self.buffer[start..start + message.len], message.segment)
        })
    }
}

/// # Safety
/// The header must be as the kernel has left it, with its control messages still there.
unsafe fn segment_len(header: &libc::msghdr) -> Option<usize> {
    // SAFETY: as promised by the caller; each message's data is read only if it is ours.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            if (*message).cmsg_level == libc::SOL_UDP && (*message).cmsg_type == libc::UDP_GRO {
                let len = libc::CMSG_DATA(message).cast::<libc::c_int>().read_unaligned();
                return usize::try_from(len).ok();
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    None
}

fn address_of(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that this is a sockaddr_in, and the storage is large enough.
            let name = unsafe { &*(&raw const *name).cast::<libc::sockaddr_in>() };
            let ip = u32::from_be(name.sin_addr.s_addr).into();
            Some(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(name.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that this is a sockaddr_in6, and the storage is large enough.
            let name = unsafe { &*(&raw const *name).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
            let port = u16::from_be(name.sin6_port);
            Some(ip.to_ipv4_mapped().map_or_else(
                || SocketAddr::V6(SocketAddrV6::new(ip, port, 0, name.sin6_scope_id)),
                |ip| SocketAddr::V4(SocketAddrV4::new(ip, port)),
            ))
        }
        _ => None,
    }
}

fn storage(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: plain data, for which zeros are valid.
    let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
    match address {
        SocketAddr::V4(v4) => {
            let name = libc::sockaddr_in {
                sin_family: family(libc::AF_INET),
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
                sin_zero: [0; 8],
            };
            // SAFETY: a sockaddr_storage is large enough and aligned for every address.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(name) };
            (storage, length_of::<libc::sockaddr_in>())
        }
        SocketAddr::V6(v6) => {
            let name = libc::sockaddr_in6 {
                sin6_family: family(libc::AF_INET6),
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: a sockaddr_storage is large enough and aligned for every address.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(name) };
            (storage, length_of::<libc::sockaddr_in6>())
        }
    }
}

fn family(family: libc::c_int) -> libc::sa_family_t {
    libc::sa_family_t::try_from(family).unwrap_or(0)
}

fn length_of<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}

fn set<T>(fd: RawFd, level: libc::c_int, name: libc::c_int, value: T) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes of `value` as it has.
    let done =
        unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), length_of::<T>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &Udp) -> Vec<(SocketAddr, Vec<usize>)> {
        let mut into = Received::new();
        rustix::event::poll(
            &mut [rustix::event::PollFd::new(socket, rustix::event::PollFlags::IN)],
            None,
        )
        .unwrap();
        socket.receive(&mut into).unwrap();
        into.messages()
            .map(|(from, bytes, len)| (from, bytes.chunks(len).map(<[u8]>::len).collect()))
            .collect()
    }

    fn pair(to: &str) -> (Udp, Udp, SocketAddr, SocketAddr) {
        let bind = |address: &str| Udp::bind(address.parse().unwrap(), 1).unwrap().remove(0);
        let (here, there) = (bind("127.0.0.1:0"), bind(to));
        let port = there.address().unwrap().port();
        let (from, to) = (here.address().unwrap(), SocketAddr::from(([127, 0, 0, 1], port)));
        (here, there, from, to)
    }

    #[test]
    fn many_datagrams_in_one_call() {
        // The second is of both families: it sees the sender as IPv4 all the same.
        for to in ["127.0.0.1:0", "[::]:0"] {
            let (here, there, from, to) = pair(to);
            assert_eq!(here.send_segments(to, &[7; 3300], 1000), 0);
            assert_eq!(received(&there), [(from, vec![1000, 1000, 1000, 300])]);
            there.send_segments(from, &[7; 250], 100);
            assert_eq!(received(&here)[0].1, [100, 100, 50]);
            here.send(to, &[1]).unwrap();
            assert_eq!(received(&there), [(from, vec![1])]);
        }
    }

    #[test]
    fn sockets_of_one_port() {
        let sockets = Udp::bind("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let ports: Vec<_> = sockets.iter().map(|s| s.address().unwrap().port()).collect();
        assert!(ports[0] != 0 && ports.iter().all(|port| *port == ports[0]));
    }

    #[test]
    fn failures_are_counted_in_datagrams() {
        let (here, ..) = pair("127.0.0.1:0");
        assert_eq!(here.send_segments("[::1]:9".parse().unwrap(), &[0; 250], 100), 3);
    }
}
