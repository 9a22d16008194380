//! A connection to a shim: datagrams with descriptors over a unix socket of packets.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg,
    sendmsg, socket_with, socketpair,
};
use rustix::process::{PidfdFlags, pidfd_open};
use tokio::io::Interest;
use warren_shim::message::{Reply, Request};
use warren_shim::record::SOCKET;

use crate::watched::{Watched, watch};

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

#[derive(Debug)]
pub(crate) struct Channel {
    socket: Watched,
}

impl Channel {
    /// Our end, and one for a shim that is about to be started.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok((Self { socket: watch(ours)? }, theirs))
    }

    /// Connects to the shim of a state folder.
    pub(crate) fn connect(folder: &Path) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?;
        // Through a descriptor, since socket addresses end at 107 bytes.
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let folder = File::options().read(true).custom_flags(flags).open(folder)?;
        let path = format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd());
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self { socket: watch(socket)? })
    }

    /// The process that listens at the other end; `None` when it has died meanwhile.
    pub(crate) fn peer(&self) -> io::Result<Option<OwnedFd>> {
        let peer = socket_peercred(&self.socket)?;
        let pidfd = match pidfd_open(peer.pid, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            other => other?,
        };
        // The number may have been given to somebody else before we got the descriptor; not if the
        // listener still lives.
        Ok(if self.is_open()? { Some(pidfd) } else { None })
    }

    fn is_open(&self) -> io::Result<bool> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut entries = [PollFd::new(&self.socket, PollFlags::empty())];
        poll(&mut entries, Some(&Timespec::default()))?;
        Ok(!entries[0].revents().intersects(PollFlags::HUP | PollFlags::ERR))
    }

    pub(crate) async fn request(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let bytes = request.encode();
        self.socket.async_io(Interest::WRITABLE, |socket| send(socket, &bytes, fds)).await
    }

    /// Sends at once, from a thread that may not wait; a fresh socket always has room.
    pub(crate) fn request_now(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        send(self.socket.get_ref(), &request.encode(), fds)
    }

    /// The next answer and a descriptor that came with it. The end is UnexpectedEof.
    pub(crate) async fn reply(&self) -> io::Result<(Reply, Option<OwnedFd>)> {
        self.socket.async_io(Interest::READABLE, receive).await
    }
}

fn send(socket: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let rights = SendAncillaryMessage::ScmRights(fds);
    let mut space = vec![MaybeUninit::uninit(); rights.size()];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(rights) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(socket: &OwnedFd) -> io::Result<(Reply, Option<OwnedFd>)> {
    let mut bytes = [0; Reply::LEN + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut fd = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            fd = fds.next();
        }
    }
    let reply = Reply::decode(&bytes[..received.bytes]).ok_or(io::ErrorKind::InvalidData)?;
    Ok((reply, fd))
}
