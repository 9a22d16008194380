//! Many datagrams in one system call (recvmmsg(2), sendmmsg(2)).
//!
//! A server that listens on several addresses with one socket answers from the address that
//! was asked: resolvers take no other's answer.

#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;
use std::ptr;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Datagrams in a call: beyond these, the calls themselves are a small part of the work.
pub(super) const BATCH: usize = 16;
/// [`BATCH`] as the system call has it.
const BATCH_LEN: libc::c_uint = 16;
const _: () = assert!(BATCH_LEN as usize == BATCH);
/// Longer queries are none: they hold one name.
const QUERY_LEN_MAX: usize = 2048;

/// The families as addresses have them (linux/socket.h).
const AF_INET: libc::sa_family_t = 2;
const AF_INET6: libc::sa_family_t = 10;

/// Room for one control message with an address of either family; aligned as the kernel has it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Who asked, and at which of our addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    /// With the link that it came by. None: the socket has but one.
    local: Option<(IpAddr, u32)>,
}

/// A message to be sent.
pub(super) struct Outgoing {
    pub(super) peer: Peer,
    pub(super) message: Vec<u8>,
}

impl Outgoing {
    pub(super) fn new(peer: Peer) -> Self {
        Self { peer, message: Vec::new() }
    }
}

/// Room for what a call brings.
pub(super) struct Batch {
    buffers: Box<[[u8; QUERY_LEN_MAX]; BATCH]>,
    names: Box<[libc::sockaddr_storage; BATCH]>,
    controls: Box<[Control; BATCH]>,
    /// Of what was received: length, flags, length of the control message.
    heads: [(usize, libc::c_int, usize); BATCH],
}

impl Batch {
    pub(super) fn new() -> Self {
        // SAFETY: all zeroes is a value of each: numbers and arrays of numbers.
        let names = Box::new(unsafe { zeroed::<[libc::sockaddr_storage; BATCH]>() });
        Self {
            buffers: Box::new([[0; QUERY_LEN_MAX]; BATCH]),
            names,
            controls: Box::new([Control([0; 64]); BATCH]),
            heads: [(0, 0, 0); BATCH],
        }
    }

    /// Takes what is there, without waiting.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        // SAFETY: all zeroes is a value of both: numbers and null pointers.
        let (mut parts, mut headers) =
            unsafe { (zeroed::<[libc::iovec; BATCH]>(), zeroed::<[libc::mmsghdr; BATCH]>()) };
        for at in 0..BATCH {
            parts[at] = libc::iovec {
                iov_base: self.buffers[at].as_mut_ptr().cast(),
                iov_len: QUERY_LEN_MAX,
            };
            let header = &mut headers[at].msg_hdr;
            header.msg_name = ptr::from_mut(&mut self.names[at]).cast();
            header.msg_namelen = len_of::<libc::sockaddr_storage>();
            header.msg_iov = &raw mut parts[at];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[at].0.as_mut_ptr().cast();
            header.msg_controllen = size_of::<Control>();
        }
        // SAFETY: each header points to a buffer, a name, a control buffer and an iovec that
        // live until after the call, with their true lengths; there are BATCH of each.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH_LEN,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        for (head, header) in self.heads.iter_mut().zip(&headers[..received]) {
            let hdr = &header.msg_hdr;
            *head = (header.msg_len as usize, hdr.msg_flags, hdr.msg_controllen);
        }
        Ok(received)
    }

    /// The first `received` of the last call; what was too long or has no sender is left out.
    pub(super) fn messages(&self, received: usize) -> impl Iterator<Item = (Peer, &[u8])> {
        (0..received).filter_map(|at| {
            let (len, flags, control_len) = self.heads[at];
            if flags & libc::MSG_TRUNC != 0 {
                return None;
            }
            let address = address_of(&self.names[at]).filter(|address| address.port() != 0)?;
            let local = local_of(&self.controls[at], control_len);
            Some((Peer { address, local }, self.buffers[at].get(..len)?))
        })
    }
}

fn len_of<T>() -> libc::socklen_t {
    // Structs of the kernel have a few dozen bytes.
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}

fn address_of(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match name.ss_family {
        AF_INET => {
            // SAFETY: the kernel wrote a sockaddr_in, which is shorter and no stricter aligned.
            let name = unsafe { ptr::from_ref(name).cast::<libc::sockaddr_in>().read() };
            let address = Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr));
            Some(SocketAddrV4::new(address, u16::from_be(name.sin_port)).into())
        }
        AF_INET6 => {
            // SAFETY: as above, of a sockaddr_in6.
            let name = unsafe { ptr::from_ref(name).cast::<libc::sockaddr_in6>().read() };
            let (address, port) = (name.sin6_addr.s6_addr, u16::from_be(name.sin6_port));
            Some(SocketAddrV6::new(address.into(), port, 0, name.sin6_scope_id).into())
        }
        _ => None,
    }
}

/// The address that was asked, where [`want_local_address`] wants it.
fn local_of(control: &Control, len: usize) -> Option<(IpAddr, u32)> {
    let head = size_of::<libc::cmsghdr>();
    if len < head {
        return None;
    }
    // SAFETY: the buffer holds a whole header and is aligned for it.
    let message = unsafe { control.0.as_ptr().cast::<libc::cmsghdr>().read() };
    let data = control.0.get(head..message.cmsg_len.min(control.0.len()))?;
    match (message.cmsg_level, message.cmsg_type) {
        (libc::IPPROTO_IP, libc::IP_PKTINFO) if data.len() >= size_of::<libc::in_pktinfo>() => {
            // SAFETY: that many bytes are there, and any bytes are a value.
            let of = unsafe { data.as_ptr().cast::<libc::in_pktinfo>().read_unaligned() };
            let address = Ipv4Addr::from(u32::from_be(of.ipi_addr.s_addr));
            Some((address.into(), u32::try_from(of.ipi_ifindex).unwrap_or(0)))
        }
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO)
            if data.len() >= size_of::<libc::in6_pktinfo>() =>
        {
            // SAFETY: that many bytes are there, and any bytes are a value.
            let of = unsafe { data.as_ptr().cast::<libc::in6_pktinfo>().read_unaligned() };
            Some((Ipv6Addr::from(of.ipi6_addr.s6_addr).into(), of.ipi6_ifindex))
        }
        _ => None,
    }
}

/// Tells when there is something to read. Not when there is room to write: each answer that left
/// would wake this task once more.
pub(super) fn watch(socket: UdpSocket) -> io::Result<AsyncFd<UdpSocket>> {
    // SAFETY: a UdpSocket has the same open descriptor for as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE)? })
}

/// Asks the kernel for the address of each datagram, where the socket has several.
pub(super) fn want_local_address(socket: &UdpSocket) -> io::Result<()> {
    let (level, option) = match socket.local_addr()? {
        SocketAddr::V4(own) if own.ip().is_unspecified() => (libc::IPPROTO_IP, libc::IP_PKTINFO),
        SocketAddr::V6(own) if own.ip().is_unspecified() || own.ip().is_unicast_link_local() => {
            (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)
        }
        SocketAddr::V4(_) | SocketAddr::V6(_) => return Ok(()),
    };
    let on: libc::c_int = 1;
    // SAFETY: the option is an int, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            ptr::from_ref(&on).cast(),
            len_of::<libc::c_int>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends what the kernel takes, without waiting; the number of those that it did not.
pub(super) fn send(socket: &UdpSocket, messages: &[Outgoing]) -> u64 {
    messages.chunks(BATCH).map(|messages| send_batch(socket, messages)).sum()
}

fn send_batch(socket: &UdpSocket, messages: &[Outgoing]) -> u64 {
    // SAFETY: all zeroes is a value of each: numbers, arrays of numbers and null pointers.
    let (mut parts, mut names, mut headers) = unsafe {
        (
            zeroed::<[libc::iovec; BATCH]>(),
            zeroed::<[libc::sockaddr_storage; BATCH]>(),
            zeroed::<[libc::mmsghdr; BATCH]>(),
        )
    };
    let mut controls = [Control([0; 64]); BATCH];
    for (at, Outgoing { peer, message }) in messages.iter().enumerate() {
        parts[at] = libc::iovec {
            // The kernel only reads it.
            iov_base: message.as_ptr().cast_mut().cast(),
            iov_len: message.len(),
        };
        let header = &mut headers[at].msg_hdr;
        header.msg_namelen = write_address(&mut names[at], peer.address);
        header.msg_name = ptr::from_mut(&mut names[at]).cast();
        header.msg_iov = &raw mut parts[at];
        header.msg_iovlen = 1;
        if let Some(local) = peer.local {
            header.msg_controllen = write_local(&mut controls[at], local);
            header.msg_control = controls[at].0.as_mut_ptr().cast();
        }
    }
    let (mut at, mut unsent) = (0, 0);
    while at < messages.len() {
        let rest = &mut headers[at..messages.len()];
        let len = libc::c_uint::try_from(rest.len()).unwrap_or(0);
        // SAFETY: each header points to a message, a name and perhaps a control message that
        // live until after the call, with their true lengths; `len` of them are there.
        let sent = unsafe {
            libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), len, libc::MSG_DONTWAIT)
        };
        match usize::try_from(sent) {
            Ok(sent @ 1..) => at += sent,
            _ if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => {
                return unsent + (messages.len() - at) as u64;
            }
            // The first one cannot be sent, perhaps others can.
            _ => {
                at += 1;
                unsent += 1;
            }
        }
    }
    unsent
}

fn write_address(name: &mut libc::sockaddr_storage, address: SocketAddr) -> libc::socklen_t {
    match address {
        SocketAddr::V4(address) => {
            // SAFETY: it is longer and as strictly aligned, and holds numbers alone.
            let name = unsafe { &mut *ptr::from_mut(name).cast::<libc::sockaddr_in>() };
            name.sin_family = AF_INET;
            name.sin_port = address.port().to_be();
            name.sin_addr.s_addr = address.ip().to_bits().to_be();
            len_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(address) => {
            // SAFETY: as above.
            let name = unsafe { &mut *ptr::from_mut(name).cast::<libc::sockaddr_in6>() };
            name.sin6_family = AF_INET6;
            name.sin6_port = address.port().to_be();
            name.sin6_addr.s6_addr = address.ip().octets();
            name.sin6_scope_id = address.scope_id();
            len_of::<libc::sockaddr_in6>()
        }
    }
}

/// Makes the answer come from `address`; the bytes that say so.
fn write_local(control: &mut Control, (address, link): (IpAddr, u32)) -> usize {
    // SAFETY: all zeroes is a value: numbers and arrays of numbers.
    let (v4, v6) = unsafe { (zeroed::<libc::in_pktinfo>(), zeroed::<libc::in6_pktinfo>()) };
    match address {
        IpAddr::V4(address) => {
            let mut of = v4;
            of.ipi_spec_dst.s_addr = address.to_bits().to_be();
            write_control(control, libc::IPPROTO_IP, libc::IP_PKTINFO, of)
        }
        IpAddr::V6(address) => {
            let mut of = v6;
            of.ipi6_addr.s6_addr = address.octets();
            // Every link has this one.
            of.ipi6_ifindex = if address.is_unicast_link_local() { link } else { 0 };
            write_control(control, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, of)
        }
    }
}

fn write_control<T: Copy>(
    control: &mut Control,
    level: libc::c_int,
    kind: libc::c_int,
    of: T,
) -> usize {
    let head = size_of::<libc::cmsghdr>();
    const { assert!(size_of::<libc::cmsghdr>() + size_of::<T>() <= size_of::<Control>()) };
    // SAFETY: all zeroes is a value: numbers.
    let mut message = unsafe { zeroed::<libc::cmsghdr>() };
    message.cmsg_len = head + size_of::<T>();
    message.cmsg_level = level;
    message.cmsg_type = kind;
    // SAFETY: both fit one after the other (asserted above), and neither needs to be aligned.
    unsafe {
        control.0.as_mut_ptr().cast::<libc::cmsghdr>().write_unaligned(message);
        control.0.as_mut_ptr().add(head).cast::<T>().write_unaligned(of);
    }
    (head + size_of::<T>()).next_multiple_of(size_of::<usize>())
}
