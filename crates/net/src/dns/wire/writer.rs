//! Writing answers, and the queries that are forwarded.

use super::{
    Asked, CLASS_IN, DATAGRAM_LEN, Data, Edns, HEADER_LEN, LABEL_LEN_MAX, NAME_LEN_MAX, PLAIN_LEN,
    Rcode, Record, flag, kind,
};
use crate::dns::SUFFIX;

/// An OPT record without options.
pub(super) const OPT_LEN: usize = 11;
/// The question's name, which stands right after the header.
const QUESTION_NAME: [u8; 2] = [0xc0, 12];
/// [`DATAGRAM_LEN`] as the OPT record has it.
const OPT_PAYLOAD: u16 = 1232;
const _: () = assert!(OPT_PAYLOAD as usize == DATAGRAM_LEN);
/// Bits of a query that its answer repeats.
pub(super) const REPEATED: u16 = flag::RECURSION_DESIRED | flag::CHECKING_DISABLED;

/// An answer in the making. What does not fit is left out and the answer says so.
pub(crate) struct Writer<'a> {
    out: &'a mut Vec<u8>,
    limit: usize,
    edns: Option<Edns>,
    flags: u16,
    answers: u16,
    authorities: u16,
    additional: u16,
}

impl<'a> Writer<'a> {
    /// Begins the answer for `asked` in `out`, of at most `limit` bytes (see [`Edns::limit`]).
    pub(crate) fn new(out: &'a mut Vec<u8>, asked: &Asked<'_>, limit: usize) -> Self {
        out.clear();
        out.extend_from_slice(&asked.id.to_be_bytes());
        out.extend_from_slice(&[0; HEADER_LEN - 2]);
        out.extend_from_slice(asked.question);
        let limit = limit - if asked.edns.is_some() { OPT_LEN } else { 0 };
        let flags = flag::RESPONSE | flag::RECURSION_AVAILABLE | asked.flags & REPEATED;
        Self { out, limit, edns: asked.edns, flags, answers: 0, authorities: 0, additional: 0 }
    }

    /// A record of the name that was asked for. False when there is no room for it.
    pub(crate) fn answer(&mut self, record: &Record) -> bool {
        let start = self.out.len();
        self.out.extend_from_slice(&QUESTION_NAME);
        if self.record(record, start) {
            self.answers += 1;
            return true;
        }
        self.flags |= flag::TRUNCATED;
        false
    }

    /// A record that may save a question; left out silently.
    pub(crate) fn additional(&mut self, owner: &str, record: &Record) {
        let start = self.out.len();
        if write_name(self.out, owner) && self.record(record, start) {
            self.additional += 1;
        } else {
            self.out.truncate(start);
        }
    }

    /// What makes a negative answer one of ours (RFC 2308 section 3).
    pub(crate) fn authority(&mut self, record: &Record) {
        let start = self.out.len();
        if write_name(self.out, SUFFIX) && self.record(record, start) {
            self.authorities += 1;
        } else {
            self.out.truncate(start);
        }
    }

    pub(crate) fn finish(self, rcode: Rcode, authoritative: bool) {
        let mut flags = self.flags | (rcode as u16 & flag::RCODE);
        if authoritative {
            flags |= flag::AUTHORITATIVE;
        }
        let edns = self.edns.is_some();
        if let Some(edns) = self.edns {
            write_opt(self.out, edns.dnssec, rcode);
        }
        let counts = [1, self.answers, self.authorities, self.additional + u16::from(edns)];
        self.out[2..4].copy_from_slice(&flags.to_be_bytes());
        for (at, count) in counts.into_iter().enumerate() {
            self.out[4 + 2 * at..6 + 2 * at].copy_from_slice(&count.to_be_bytes());
        }
    }

    /// All but the owner, which begins at `start`; takes it back when the whole does not fit.
    fn record(&mut self, record: &Record, start: usize) -> bool {
        let kind = match record.data {
            Data::A(_) => kind::A,
            Data::Aaaa(_) => kind::AAAA,
            Data::Srv { .. } => kind::SRV,
            Data::Ptr(_) => kind::PTR,
            Data::Soa => kind::SOA,
        };
        self.out.extend_from_slice(&kind.to_be_bytes());
        self.out.extend_from_slice(&CLASS_IN.to_be_bytes());
        self.out.extend_from_slice(&record.ttl_s.to_be_bytes());
        let len_at = self.out.len();
        self.out.extend_from_slice(&[0; 2]);
        let written = write_data(self.out, &record.data);
        let len = u16::try_from(self.out.len() - len_at - 2);
        match len {
            Ok(len) if written && self.out.len() <= self.limit => {
                self.out[len_at..len_at + 2].copy_from_slice(&len.to_be_bytes());
                true
            }
            _ => {
                self.out.truncate(start);
                false
            }
        }
    }
}

impl Edns {
    /// Bytes that may be sent in a datagram to one who says this, or nothing.
    pub(crate) fn limit(edns: Option<Self>) -> usize {
        edns.map_or(PLAIN_LEN, |edns| usize::from(edns.payload).clamp(PLAIN_LEN, DATAGRAM_LEN))
    }
}

fn write_data(out: &mut Vec<u8>, data: &Data) -> bool {
    match data {
        Data::A(address) => out.extend_from_slice(&address.octets()),
        Data::Aaaa(address) => out.extend_from_slice(&address.octets()),
        Data::Srv { port, target } => {
            // Priority, and a weight that is the same for all.
            out.extend_from_slice(&[0, 0, 0, 1]);
            out.extend_from_slice(&port.to_be_bytes());
            return write_name(out, target);
        }
        Data::Ptr(name) => return write_name(out, name),
        Data::Soa => {
            let written = write_name(out, SUFFIX) && write_name(out, SUFFIX);
            // Serial, refresh, retry, expire: nobody transfers this zone. Minimum: keep nothing.
            for number in [1u32, 3600, 600, 86_400, 0] {
                out.extend_from_slice(&number.to_be_bytes());
            }
            return written;
        }
    }
    true
}

/// False when `name` cannot be on the wire; what was written is the caller's to take back.
fn write_name(out: &mut Vec<u8>, name: &str) -> bool {
    if name.len() + 2 > NAME_LEN_MAX {
        return false;
    }
    for label in name.split('.') {
        match u8::try_from(label.len()) {
            Ok(len @ 1..) if usize::from(len) <= LABEL_LEN_MAX => out.push(len),
            _ => return false,
        }
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    true
}

pub(super) fn write_opt(out: &mut Vec<u8>, dnssec: bool, rcode: Rcode) {
    out.push(0);
    out.extend_from_slice(&kind::OPT.to_be_bytes());
    out.extend_from_slice(&OPT_PAYLOAD.to_be_bytes());
    let upper = u8::from(matches!(rcode, Rcode::BadVers));
    out.extend_from_slice(&[upper, 0, if dnssec { 0x80 } else { 0 }, 0, 0, 0]);
}

/// A header alone: what was asked is not understood.
pub(crate) fn refusal(out: &mut Vec<u8>, id: u16, flags: u16, rcode: Rcode) {
    let flags = flag::RESPONSE | flags & (flag::OPCODE | REPEATED) | (rcode as u16 & flag::RCODE);
    out.clear();
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&[0; HEADER_LEN - 4]);
}

/// A query of ours: nothing of the asker but the question and what it wants to be told.
pub(crate) fn write_query(id: u16, flags: u16, question: &[u8], dnssec: Option<bool>) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_LEN + question.len() + OPT_LEN);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&(flags | flag::RECURSION_DESIRED).to_be_bytes());
    out.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, u8::from(dnssec.is_some())]);
    out.extend_from_slice(question);
    if let Some(dnssec) = dnssec {
        write_opt(&mut out, dnssec, Rcode::NoError);
    }
    out
}
