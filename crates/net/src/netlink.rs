//! Netlink: message encoding, decoding, and one blocking socket.
//!
//! Contract: [`Messages`] collects requests, [`Socket::transact`] sends them in one
//! system call and reports the first that the kernel refused by its position. The
//! kernel answers before `sendto` returns, so nothing here ever waits.
//!
//! Not here: what the messages mean (`link`, `rules`, `conntrack`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use zeroize::Zeroize as _;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto,
    socket_with, sockopt,
};

/// Flags of `struct nlmsghdr`, from `linux/netlink.h`.
pub(crate) mod flag {
    pub(crate) const REQUEST: u16 = 0x1;
    pub(crate) const MULTI: u16 = 0x2;
    pub(crate) const ACK: u16 = 0x4;
    pub(crate) const REPLACE: u16 = 0x100;
    pub(crate) const EXCL: u16 = 0x200;
    pub(crate) const DUMP: u16 = 0x300;
    pub(crate) const CREATE: u16 = 0x400;
    pub(crate) const APPEND: u16 = 0x800;
}

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER_LEN: usize = 16;
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

/// The kernel never makes a dump message larger than this (`NLMSG_GOODSIZE` growth stops at 32 KiB).
const DUMP_LEN: usize = 32 * 1024;
/// An acknowledgement is a header and an errno; the echoed request behind it is of no use.
const ACK_LEN: usize = 64;
/// Half of Linux's default send buffer: below this no enlargement is needed.
const SEND_DEFAULT: usize = 100 * 1024;

/// Attributes being written to the end of a message.
pub(crate) struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let at = self.open(kind);
        self.0.extend_from_slice(value);
        self.close(at);
        self
    }

    pub(crate) fn nested(
        &mut self,
        kind: u16,
        body: impl FnOnce(&mut Attributes<'_>),
    ) -> &mut Self {
        let at = self.open(kind | NESTED);
        body(&mut Attributes(self.0));
        self.close(at);
        self
    }

    /// As `nested`, but leaves no trace if `body` writes nothing.
    pub(crate) fn nested_unless_empty(
        &mut self,
        kind: u16,
        body: impl FnOnce(&mut Attributes<'_>),
    ) -> &mut Self {
        let at = self.open(kind | NESTED);
        body(&mut Attributes(self.0));
        if self.0.len() == at + 4 {
            self.0.truncate(at);
        } else {
            self.close(at);
        }
        self
    }

    /// An attribute whose value starts with a fixed struct, then attributes (veth's peer).
    pub(crate) fn headed(
        &mut self,
        kind: u16,
        header: &[u8],
        body: impl FnOnce(&mut Attributes<'_>),
    ) -> &mut Self {
        let at = self.open(kind | NESTED);
        self.0.extend_from_slice(header);
        body(&mut Attributes(self.0));
        self.close(at);
        self
    }

    /// A string with the terminating zero that the kernel's policies want.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let at = self.open(kind);
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
        self.close(at);
        self
    }

    /// A number in host order, as rtnetlink writes them.
    pub(crate) fn host32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A number in network order, as nfnetlink writes them.
    pub(crate) fn net32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    fn open(&mut self, kind: u16) -> usize {
        let at = self.0.len();
        self.0.extend_from_slice(&[0, 0]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        at
    }

    fn close(&mut self, at: usize) {
        let len = u16::try_from(self.0.len() - at).expect("callers chunk what could exceed 64 KiB");
        self.0[at..at + 2].copy_from_slice(&len.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// Requests for one system call.
#[derive(Default)]
pub(crate) struct Messages {
    bytes: Vec<u8>,
    starts: Vec<usize>,
}

impl Messages {
    pub(crate) fn push(
        &mut self,
        kind: u16,
        flags: u16,
        header: &[u8],
        body: impl FnOnce(&mut Attributes<'_>),
    ) -> &mut Self {
        let start = self.bytes.len();
        self.starts.push(start);
        let sequence = u32::try_from(self.starts.len()).expect("a batch fits memory");
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | flag::REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(header);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        body(&mut Attributes(&mut self.bytes));
        let len = u32::try_from(self.bytes.len() - start).expect("attributes are at most 64 KiB");
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
        self
    }

    pub(crate) fn len(&self) -> usize {
        self.starts.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Leaves nothing of them in memory: they held a secret.
    pub(crate) fn wipe(&mut self) {
        self.bytes.zeroize();
        self.starts.clear();
    }

    /// Asks for an acknowledgement of the message at `index` alone: refusals are reported without asking.
    fn acknowledge(&mut self, index: usize) {
        let at = self.starts[index] + 6;
        let flags = u16_at(&self.bytes, at).unwrap_or_default() | flag::ACK;
        self.bytes[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
    }
}

/// The kernel's refusal of one message.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Position in the batch; 0 if the batch as a whole could not be sent.
    pub(crate) index: usize,
    pub(crate) source: io::Error,
}

pub(crate) struct Socket {
    fd: OwnedFd,
    sendable: usize,
}

impl Socket {
    /// For links, addresses and routes of the calling thread's network namespace; it stays there wherever it is used.
    pub(crate) fn route() -> io::Result<Self> {
        // Number 0, which the kernel also takes no protocol for.
        Self::open(None)
    }

    /// For packet filter and connection tracking, likewise.
    pub(crate) fn netfilter() -> io::Result<Self> {
        Self::open(Some(netlink::NETFILTER))
    }

    /// For protocols that have a name and no number of their own, likewise.
    pub(crate) fn generic() -> io::Result<Self> {
        Self::open(Some(netlink::GENERIC))
    }

    /// Joins multicast groups, a bit each. The socket then only receives.
    pub(crate) fn subscribe(&mut self, groups: u32) -> io::Result<()> {
        Ok(bind(&self.fd, &SocketAddrNetlink::new(0, groups))?)
    }

    /// Makes room for many messages, as far as we may: with less, some are lost, and that is told.
    pub(crate) fn receive_many(&mut self, len: usize) {
        if sockopt::set_socket_recv_buffer_size_force(&self.fd, len).is_err() {
            let _ = sockopt::set_socket_recv_buffer_size(&self.fd, len);
        }
    }

    /// Hands every message that waits to `each`; `false` if some were lost.
    pub(crate) fn drain(&mut self, mut each: impl FnMut(u16, &[u8])) -> io::Result<bool> {
        let mut buffer = vec![0; DUMP_LEN];
        let mut complete = true;
        loop {
            match recv(&self.fd, &mut buffer[..], RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
                Ok((len, whole)) => {
                    complete &= whole == len;
                    messages_in(&buffer[..len]).for_each(|m| each(m.kind, m.payload));
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(complete),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::NOBUFS) => complete = false,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        Ok(Self { fd, sendable: SEND_DEFAULT })
    }

    /// Sends all messages at once; the last must be one that the kernel can acknowledge.
    pub(crate) fn transact(&mut self, messages: &mut Messages) -> Result<(), Refused> {
        let last = messages.len().saturating_sub(1);
        self.transact_until(messages, last)
    }

    /// As `transact`, with the acknowledgement asked of the message at `last`.
    pub(crate) fn transact_until(
        &mut self,
        messages: &mut Messages,
        last: usize,
    ) -> Result<(), Refused> {
        match self.attempt(messages, last) {
            Ok(refused) => refused.into_iter().next().map_or(Ok(()), Err),
            Err(source) => Err(Refused { index: 0, source }),
        }
    }

    /// Sends all messages at once and returns every refusal; what was not refused was done
    /// (of an nf_tables batch: nothing was, if anything was refused).
    pub(crate) fn attempt(
        &mut self,
        messages: &mut Messages,
        last: usize,
    ) -> io::Result<Vec<Refused>> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        messages.acknowledge(last);
        self.send(messages.as_bytes())?;
        let mut refused = Vec::new();
        let mut acknowledged = false;
        let mut buffer = [0; ACK_LEN];
        loop {
            let len = match recv(&self.fd, &mut buffer, RecvFlags::DONTWAIT) {
                Ok((len, _)) => len,
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => continue,
                // Too many refusals for the receive buffer: the first ones tell enough.
                Err(rustix::io::Errno::NOBUFS) if !refused.is_empty() => continue,
                Err(error) => return Err(error.into()),
            };
            let Some((sequence, code)) = acknowledgement(&buffer[..len]) else { continue };
            let index = (sequence as usize).saturating_sub(1);
            if code == 0 {
                acknowledged |= index == last;
            } else {
                refused.push(Refused { index, source: io::Error::from_raw_os_error(-code) });
            }
        }
        if acknowledged || !refused.is_empty() {
            return Ok(refused);
        }
        Err(io::Error::other("the kernel did not answer"))
    }

    /// Sends one request and hands every answer's type and payload to `each`.
    pub(crate) fn query(
        &mut self,
        messages: &Messages,
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        debug_assert_eq!(messages.len(), 1, "answers are told apart by nothing but their order");
        self.send(messages.as_bytes())?;
        let mut buffer = vec![0; DUMP_LEN];
        loop {
            let (len, whole) = match recv(&self.fd, &mut buffer[..], RecvFlags::TRUNC) {
                Ok(lens) => lens,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            if whole > len {
                return Err(io::Error::other("the kernel's answer is larger than any dump may be"));
            }
            let mut more = false;
            for message in messages_in(&buffer[..len]) {
                match message.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code = i32_at(message.payload, 0).unwrap_or_default();
                        return match code {
                            0 => Ok(()),
                            code => Err(io::Error::from_raw_os_error(-code)),
                        };
                    }
                    kind => {
                        more |= message.flags & flag::MULTI != 0;
                        each(kind, message.payload);
                    }
                }
            }
            if !more {
                return Ok(());
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > self.sendable {
            // An atomic batch must be one datagram, whatever the administrator's limit on buffers.
            sockopt::set_socket_send_buffer_size_force(&self.fd, bytes.len())?;
            self.sendable = bytes.len();
        }
        let sent = sendto(&self.fd, bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) payload: &'a [u8],
}

/// The messages of one datagram; stops at the first that is malformed.
pub(crate) fn messages_in(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let len = u32_at(bytes, 0)? as usize;
        if len < HEADER_LEN || len > bytes.len() {
            return None;
        }
        let message = Message {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            payload: &bytes[HEADER_LEN..len],
        };
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes of a message or of a nested attribute; stops at the first that is malformed.
pub(crate) fn attributes_in(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(bytes, 0)?);
        if len < 4 || len > bytes.len() {
            return None;
        }
        let attribute = (u16_at(bytes, 2)? & TYPE_MASK, &bytes[4..len]);
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(attribute)
    })
}

/// The value of attribute `kind`, if it is there.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes_in(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A string attribute without its terminating zero.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Sequence and code of an `NLMSG_ERROR`. The length field also counts the echoed request, which was cut off.
fn acknowledgement(bytes: &[u8]) -> Option<(u32, i32)> {
    (u16_at(bytes, 4)? == NLMSG_ERROR).then_some(())?;
    Some((u32_at(bytes, 8)?, i32_at(bytes, HEADER_LEN)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut messages = Messages::default();
        messages.push(7, flag::CREATE, &[1, 2, 3], |a| {
            a.text(1, "abc").nested(2, |a| {
                a.net32(3, 0x0102_0304).bytes(4, &[9]);
            });
        });
        messages.push(8, 0, &[], |_| {});
        let read: Vec<_> = messages_in(messages.as_bytes()).collect();
        assert_eq!(read.len(), 2);
        assert_eq!((read[0].kind, read[0].flags), (7, flag::CREATE | flag::REQUEST));
        let attributes = &read[0].payload[4..];
        assert_eq!(text(attribute(attributes, 1).unwrap()), "abc");
        let nested = attribute(attributes, 2).unwrap();
        assert_eq!(attribute(nested, 3), Some(&[1, 2, 3, 4][..]));
        assert_eq!(attribute(nested, 4), Some(&[9][..]));
        assert_eq!(attribute(nested, 5), None);
    }

    #[test]
    fn malformed_bytes_end_the_iteration() {
        assert_eq!(messages_in(&[1, 0, 0, 0]).count(), 0);
        assert_eq!(messages_in(&[200, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).count(), 0);
        assert_eq!(attributes_in(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(attributes_in(&[5, 0, 1, 0, 7]).count(), 1);
        assert_eq!(attributes_in(&[9, 0, 1, 0, 7]).count(), 0);
    }
}
