//! Sockets of datagrams with descriptors, and terminals.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_int};
use core::mem::zeroed;
use core::ptr::null_mut;

use super::raw::{Word, call};
use super::{Fd, Sys, close, done, number};

pub(crate) fn socket_pair() -> Sys<(Fd, Fd)> {
    let mut fds = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: room for two numbers.
    unsafe { call!(SYS_socketpair, libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) }?;
    Ok((fds[0], fds[1]))
}

/// A listening socket at a name in the working directory, reachable for the owner alone.
pub(crate) fn listen(name: &CStr) -> Sys<Fd> {
    const BACKLOG: c_int = 64;
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory is passed.
    let fd = number(unsafe { call!(SYS_socket, libc::AF_UNIX, kind, 0) })?;
    // SAFETY: sockaddr_un is plain numbers.
    let mut address: libc::sockaddr_un = unsafe { zeroed() };
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).unwrap_or(0);
    for (to, from) in address.sun_path.iter_mut().zip(name.to_bytes()) {
        *to = from.cast_signed();
    }
    let size = size_of::<libc::sockaddr_un>();
    // SAFETY: the address lives through the call and its size is given.
    unsafe { call!(SYS_bind, fd, &raw const address, size) }?;
    // SAFETY: no memory is passed.
    unsafe { call!(SYS_listen, fd, BACKLOG) }?;
    Ok(fd)
}

/// A connection that did not wait for us, and the user id at its other end.
pub(crate) fn accept(listener: Fd) -> Sys<(Fd, u32)> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: null addresses mean that we do not ask for them.
    let fd =
        number(unsafe { call!(SYS_accept4, listener, null_mut::<u8>(), null_mut::<u8>(), flags) })?;
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut len = u32::try_from(size_of::<libc::ucred>()).unwrap_or(0);
    let (level, option) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
    // SAFETY: room and size are those of one ucred.
    unsafe { call!(SYS_getsockopt, fd, level, option, &raw mut peer, &raw mut len) }
        .inspect_err(|_| close(fd))?;
    Ok((fd, peer.uid))
}

/// Descriptors that one datagram may carry here.
pub(crate) const FDS_MAX: usize =
    warren_shim::message::KEPT_MAX + warren_shim::message::TREES_MAX + 4;
const CONTROL: usize = 16 + FDS_MAX * size_of::<Fd>();

#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// One datagram and the descriptors with it. Returns their counts; zero bytes is the end.
pub(crate) fn receive(
    socket: Fd,
    bytes: &mut [u8],
    fds: &mut [Fd; FDS_MAX],
) -> Sys<(usize, usize)> {
    let mut control = Control([0; CONTROL]);
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is plain numbers and pointers, null is valid.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control).cast();
    header.msg_controllen = CONTROL;
    // SAFETY: all buffers live through the call and their sizes are given.
    let count = unsafe { call!(SYS_recvmsg, socket, &raw mut header, libc::MSG_CMSG_CLOEXEC) }?;
    let mut received = 0;
    // SAFETY: walks within the control buffer that the kernel filled.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !message.is_null() {
        // SAFETY: not null, so it points at a header within the control buffer.
        let (level, kind, len) =
            unsafe { ((*message).cmsg_level, (*message).cmsg_type, (*message).cmsg_len) };
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            // SAFETY: data of this message, `len` counts its header too.
            let (data, head) = unsafe { (libc::CMSG_DATA(message), libc::CMSG_LEN(0) as usize) };
            for index in 0..len.saturating_sub(head) / size_of::<Fd>() {
                // SAFETY: within the data of this message.
                let fd = unsafe { data.cast::<Fd>().add(index).read_unaligned() };
                match fds.get_mut(received) {
                    Some(slot) => {
                        *slot = fd;
                        received += 1;
                    }
                    None => close(fd),
                }
            }
        }
        // SAFETY: walks within the control buffer.
        message = unsafe { libc::CMSG_NXTHDR(&raw const header, message) };
    }
    Ok((count.min(bytes.len()), received))
}

/// One datagram, perhaps with a descriptor. Never blocks for long: replies are small and few.
pub(crate) fn send(socket: Fd, bytes: &[u8], fd: Option<Fd>) -> Sys<()> {
    #[repr(C, align(8))]
    struct Control([u8; 32]);
    let mut control = Control([0; 32]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is plain numbers and pointers, null is valid.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    if let Some(fd) = fd {
        header.msg_control = (&raw mut control).cast();
        let size = u32::try_from(size_of::<Fd>()).unwrap_or(0);
        // SAFETY: pure arithmetic; 24 bytes for one descriptor.
        header.msg_controllen = unsafe { libc::CMSG_SPACE(size) } as usize;
        // SAFETY: the control buffer has room for one header and one descriptor.
        unsafe {
            let message = libc::CMSG_FIRSTHDR(&raw const header);
            (*message).cmsg_level = libc::SOL_SOCKET;
            (*message).cmsg_type = libc::SCM_RIGHTS;
            (*message).cmsg_len = libc::CMSG_LEN(size) as usize;
            libc::CMSG_DATA(message).cast::<Fd>().write_unaligned(fd);
        }
    }
    // SAFETY: all buffers live through the call and their sizes are given.
    done(unsafe { call!(SYS_sendmsg, socket, &raw const header, libc::MSG_NOSIGNAL) })
}

/// Opens the other side of a terminal without going through its path in the container.
pub(crate) fn terminal_peer(master: Fd) -> Sys<Fd> {
    let unlock: c_int = 0;
    // SAFETY: reads one number.
    unsafe { call!(SYS_ioctl, master, libc::TIOCSPTLCK, &raw const unlock) }?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the argument is a number.
    number(unsafe { call!(SYS_ioctl, master, libc::TIOCGPTPEER, flags) })
}

pub(crate) fn set_terminal_size(terminal: Fd, rows: u16, columns: u16) -> Sys<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: reads one struct that lives through the call.
    done(unsafe { call!(SYS_ioctl, terminal, libc::TIOCSWINSZ, &raw const size) })
}

pub(crate) fn take_terminal(terminal: Fd) -> Sys<()> {
    // SAFETY: the argument is a number.
    done(unsafe { call!(SYS_ioctl, terminal, libc::TIOCSCTTY, 0) })
}
