//! Messages with descriptors over a unix socket.
//!
//! A frame is a length, a count of descriptors (u32 each, little endian), and as many bytes. A
//! stream, not datagrams: a table is longer than what a datagram may have. Descriptors travel
//! beside the first bytes of their frame (unix(7), SCM_RIGHTS), and belong to the frame that
//! counts them.
//!
//! Buffers are wiped: keys pass through.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recv, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use zeroize::Zeroizing;

/// More than one service with a hundred thousand tasks; tables are told in parts.
pub(crate) const LEN_MAX: usize = 8 << 20;
/// Queues and sockets of sixteen workers, and the name server's.
pub(crate) const DESCRIPTORS_MAX: usize = 40;
const HEAD_LEN: usize = 8;

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Frames {
    stream: UnixStream,
    /// Came, and are of a frame that is not complete.
    came: VecDeque<OwnedFd>,
}

impl Frames {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, came: VecDeque::new() }
    }

    /// Resolves when the other end is gone, or says something that nobody asked for.
    pub(crate) async fn stirred(&self) {
        // Looked at, not asked of the event loop: that remembers what was read already.
        let look = || Ok(recv(&self.stream, &mut [0_u8; 1], RecvFlags::PEEK)?);
        // An error is an end as well.
        let _ = self.stream.async_io(Interest::READABLE, look).await;
    }

    pub(crate) async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "a message that is too long");
        if bytes.len() > LEN_MAX || fds.len() > DESCRIPTORS_MAX {
            return Err(too_long());
        }
        let (len, count) = (u32::try_from(bytes.len()), u32::try_from(fds.len()));
        let mut head = [0; HEAD_LEN];
        head[..4].copy_from_slice(&len.map_err(|_| too_long())?.to_le_bytes());
        head[4..].copy_from_slice(&count.map_err(|_| too_long())?.to_le_bytes());
        let mut sent = 0;
        while sent < HEAD_LEN + bytes.len() {
            let fds = if sent == 0 { fds } else { &[] };
            let rest = [&head[sent.min(HEAD_LEN)..], &bytes[sent.saturating_sub(HEAD_LEN)..]];
            let now = || push(&self.stream, &rest, fds);
            sent += self.stream.async_io(Interest::WRITABLE, now).await?;
        }
        Ok(())
    }

    /// The next frame.
    ///
    /// # Errors
    /// `UnexpectedEof` when the other end is gone; `InvalidData` for what is no frame.
    pub(crate) async fn receive(&mut self) -> io::Result<(Zeroizing<Vec<u8>>, Vec<OwnedFd>)> {
        let mut head = [0; HEAD_LEN];
        self.fill(&mut head).await?;
        let number = |at: usize| {
            let bytes = [head[at], head[at + 1], head[at + 2], head[at + 3]];
            usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(usize::MAX)
        };
        let (len, count) = (number(0), number(4));
        if len > LEN_MAX || count > DESCRIPTORS_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = Zeroizing::new(vec![0; len]);
        self.fill(&mut bytes).await?;
        // The kernel drops what this process has no room for.
        if self.came.len() < count {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "descriptors did not arrive"));
        }
        Ok((bytes, self.came.drain(..count).collect()))
    }

    async fn fill(&mut self, into: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            let (stream, came) = (&self.stream, &mut self.came);
            let rest = &mut into[done..];
            let now = || pull(stream, rest, came);
            let count = stream.async_io(Interest::READABLE, now).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            done += count;
        }
        Ok(())
    }
}

fn push(stream: &UnixStream, parts: &[&[u8]], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let rights = SendAncillaryMessage::ScmRights(fds);
    let mut space = vec![MaybeUninit::uninit(); rights.size()];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(rights) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let parts: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    Ok(sendmsg(stream.as_fd(), &parts, &mut control, SendFlags::NOSIGNAL)?)
}

fn pull(stream: &UnixStream, into: &mut [u8], came: &mut VecDeque<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(into)];
    let received = recvmsg(stream.as_fd(), &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            came.extend(fds);
        }
    }
    if came.len() > DESCRIPTORS_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    use super::*;

    fn pair() -> (Frames, Frames) {
        let (one, two) = UnixStream::pair().unwrap();
        (Frames::new(one), Frames::new(two))
    }

    fn file(text: &str) -> OwnedFd {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.into()
    }

    fn text(fd: OwnedFd) -> String {
        let (mut file, mut text) = (File::from(fd), String::new());
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[tokio::test]
    async fn frames_come_as_they_went_with_their_descriptors() {
        let (one, mut two) = pair();
        let long = vec![7; 3 << 20];
        let (a, b, c) = (file("a"), file("b"), file("c"));
        let sending = async {
            one.send(b"first", &[a.as_fd(), b.as_fd()]).await.unwrap();
            one.send(b"", &[]).await.unwrap();
            one.send(&long, &[c.as_fd()]).await.unwrap();
            one.send(b"last", &[]).await.unwrap();
        };
        let receiving = async {
            let mut all = Vec::new();
            for _ in 0..4 {
                let (bytes, fds) = two.receive().await.unwrap();
                all.push((bytes, fds.into_iter().map(text).collect::<Vec<_>>()));
            }
            all
        };
        let ((), all) = tokio::join!(sending, receiving);
        let texts: Vec<_> = all.iter().map(|(_, fds)| fds.join("")).collect();
        assert_eq!(texts, ["ab", "", "c", ""]);
        assert_eq!(
            (&all[0].0[..], &all[1].0[..], &all[3].0[..]),
            (&b"first"[..], &b""[..], &b"last"[..])
        );
        assert!(*all[2].0 == long);
        // What was read stirs nobody; the end does.
        let none = tokio::time::timeout(std::time::Duration::from_millis(50), two.stirred()).await;
        assert!(none.is_err());
        drop(one);
        two.stirred().await;
        assert_eq!(two.receive().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn what_is_no_frame_is_refused() {
        for head in [[0xff; 8], [0, 0, 0, 0, 0xff, 0, 0, 0], [1, 0, 0, 0, 1, 0, 0, 0]] {
            let (one, mut two) = pair();
            one.stream.writable().await.unwrap();
            one.stream.try_write(&head).unwrap();
            one.stream.try_write(b"x").unwrap();
            assert_eq!(two.receive().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        let (one, _two) = pair();
        let refused = one.send(&vec![0; LEN_MAX + 1], &[]).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }
}
