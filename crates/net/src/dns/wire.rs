//! Messages of RFC 1035 as bytes: queries are read, answers written, answers of others walked.
//!
//! Pure, and without allocations where it matters: at 5,000 queries a second what is left is
//! system calls (docs/adr/006). Every reader takes any bytes; offsets only go forward and
//! compression pointers are not followed, so no message makes a loop.
//!
//! Not here: what is answered.

mod query;
mod response;
#[cfg(test)]
mod tests;
mod writer;

use std::net::{Ipv4Addr, Ipv6Addr};

pub(crate) use query::{Edns, Malformed, Query};
pub(crate) use response::{Misfit, Response};
pub(crate) use writer::{Writer, refusal, write_query};

/// Identifier, flags, four counts.
pub(crate) const HEADER_LEN: usize = 12;
/// What fits a datagram when the asker says nothing (RFC 1035 section 4.2.1).
pub(crate) const PLAIN_LEN: usize = 512;
/// The most that is put into or asked for in a datagram: below IPv6's least MTU of 1280.
pub(crate) const DATAGRAM_LEN: usize = 1232;
/// What a length of two bytes can say.
pub(crate) const STREAM_LEN: usize = 65_535;
/// A name on the wire, with its final zero (RFC 1035 section 2.3.4).
pub(crate) const NAME_LEN_MAX: usize = 255;
/// A label.
pub(crate) const LABEL_LEN_MAX: usize = 63;

/// Record types (IANA).
pub mod kind {
    /// IPv4 address.
    pub const A: u16 = 1;
    /// Name server.
    pub const NS: u16 = 2;
    /// Canonical name.
    pub const CNAME: u16 = 5;
    /// Start of authority.
    pub const SOA: u16 = 6;
    /// Name of an address.
    pub const PTR: u16 = 12;
    /// Text.
    pub const TXT: u16 = 16;
    /// IPv6 address.
    pub const AAAA: u16 = 28;
    /// Location of a service (RFC 2782).
    pub const SRV: u16 = 33;
    /// Not a record: EDNS (RFC 6891).
    pub const OPT: u16 = 41;
    /// Delegation signer.
    pub const DS: u16 = 43;
    /// Key of a zone.
    pub const DNSKEY: u16 = 48;
    /// Whatever there is.
    pub const ANY: u16 = 255;
}

/// The Internet.
pub(crate) const CLASS_IN: u16 = 1;

/// Bits of the header's second word.
pub(crate) mod flag {
    pub(crate) const RESPONSE: u16 = 1 << 15;
    pub(crate) const AUTHORITATIVE: u16 = 1 << 10;
    pub(crate) const TRUNCATED: u16 = 1 << 9;
    pub(crate) const RECURSION_DESIRED: u16 = 1 << 8;
    pub(crate) const RECURSION_AVAILABLE: u16 = 1 << 7;
    pub(crate) const AUTHENTIC: u16 = 1 << 5;
    pub(crate) const CHECKING_DISABLED: u16 = 1 << 4;
    pub(crate) const OPCODE: u16 = 0xf << 11;
    pub(crate) const RCODE: u16 = 0xf;
}

/// What an answer repeats of its query, and whom it is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) id: u16,
    pub(crate) flags: u16,
    /// As it stands in the message: name, type, class. Some check that their upper and lower
    /// case comes back.
    pub(crate) question: &'a [u8],
    pub(crate) edns: Option<Edns>,
}

/// How a query ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rcode {
    NoError = 0,
    FormErr = 1,
    ServFail = 2,
    NxDomain = 3,
    NotImp = 4,
    Refused = 5,
    /// Its upper bits are in the OPT record.
    BadVers = 16,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// Where a service is; priority 0, all of one weight.
    Srv {
        /// Its port.
        port: u16,
        /// A name, lower case, without its final dot.
        target: Box<str>,
    },
    /// A name, lower case, without its final dot.
    Ptr(Box<str>),
    /// Of the zone below the suffix: nothing of it is to be kept.
    Soa,
}

/// One record; whose it is follows from where it stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// For how many seconds it may be kept.
    pub ttl_s: u32,
    /// What it says.
    pub data: Data,
}

/// A name as text: lower case, labels parted by dots, no final dot; the root is empty.
///
/// Bytes that no name of the cluster has (dots within a label among them) are question marks.
#[derive(Clone)]
pub(crate) struct NameText {
    bytes: [u8; NAME_LEN_MAX],
    len: usize,
}

impl NameText {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; NAME_LEN_MAX], len: 0 }
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }

    fn push_label(&mut self, label: &[u8]) -> Option<()> {
        let dot = usize::from(self.len > 0);
        let room = self.bytes.get_mut(self.len..self.len + dot + label.len())?;
        if dot == 1 {
            room[0] = b'.';
        }
        for (to, from) in room[dot..].iter_mut().zip(label) {
            *to = match from.to_ascii_lowercase() {
                plain @ (b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_') => plain,
                _ => b'?',
            };
        }
        self.len += dot + label.len();
        Some(())
    }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Where the name at `at` ends; a pointer ends it and is not followed.
fn skip_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    let start = at;
    loop {
        let len = *bytes.get(at)?;
        match len {
            0 => return Some(at + 1),
            1..=63 => at += 1 + usize::from(len),
            0xc0.. => return bytes.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
        if at - start >= NAME_LEN_MAX {
            return None;
        }
    }
}

/// What stands after a record's name.
struct Fixed {
    kind: u16,
    class: u16,
    ttl_at: usize,
    ttl: u32,
    data: std::ops::Range<usize>,
}

fn fixed_at(bytes: &[u8], at: usize) -> Option<Fixed> {
    let len = usize::from(u16_at(bytes, at + 8)?);
    let data = at + 10..at + 10 + len;
    bytes.get(data.clone())?;
    Some(Fixed {
        kind: u16_at(bytes, at)?,
        class: u16_at(bytes, at + 2)?,
        ttl_at: at + 4,
        ttl: u32_at(bytes, at + 4)?,
        data,
    })
}
