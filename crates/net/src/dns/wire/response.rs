//! Walking what an upstream server answered, and handing it on.

use super::writer::{OPT_LEN, REPEATED, write_opt};
use super::{Asked, HEADER_LEN, Rcode, fixed_at, flag, kind, skip_name, u16_at, u32_at};

/// RFC 2181 section 8: with the upper bit set, it is none.
const TTL_MAX_S: u32 = i32::MAX as u32;

/// An answer that may be kept and handed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Response {
    /// Without its OPT record and what followed that.
    message: Box<[u8]>,
    /// Bytes of the question, after the header.
    question_len: usize,
    ttls_at: Box<[u16]>,
    pub(crate) rcode: u16,
    /// Whether the server had more to say than fits a datagram.
    pub(crate) truncated: bool,
    /// For how long it may be kept: none says not at all.
    pub(crate) ttl_s: Option<u32>,
}

/// Why a message is not the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Misfit {
    /// To another query, or forged: the right one may still come.
    Foreign,
    /// The server's own, but nothing to be handed on.
    Broken,
}

impl Response {
    /// The answer in `message` to the query `id` for `question` (name, type, class).
    pub(crate) fn read(message: &[u8], id: u16, question: &[u8]) -> Result<Self, Misfit> {
        let flags = u16_at(message, 2).ok_or(Misfit::Foreign)?;
        let ours = u16_at(message, 0) == Some(id)
            && message.len() >= HEADER_LEN
            && flags & flag::RESPONSE != 0
            && flags & flag::OPCODE == 0;
        if !ours {
            return Err(Misfit::Foreign);
        }
        let rcode = flags & flag::RCODE;
        let repeated = message.get(HEADER_LEN..HEADER_LEN + question.len());
        let repeats = u16_at(message, 4) == Some(1)
            && repeated.is_some_and(|repeated| is_same(repeated, question));
        if !repeats {
            // A server that does not understand need not repeat what it did not understand.
            let complains = rcode != Rcode::NoError as u16 && rcode != Rcode::NxDomain as u16;
            let empty = u16_at(message, 4) == Some(0) && message.len() == HEADER_LEN;
            return Err(if complains && empty { Misfit::Broken } else { Misfit::Foreign });
        }
        let mut response = Self {
            message: Box::default(),
            question_len: question.len(),
            ttls_at: Box::default(),
            rcode,
            truncated: flags & flag::TRUNCATED != 0,
            ttl_s: None,
        };
        if response.truncated {
            return Ok(response);
        }
        response.walk(message).ok_or(Misfit::Broken)?;
        Ok(response)
    }

    fn walk(&mut self, message: &[u8]) -> Option<()> {
        let mut at = HEADER_LEN + self.question_len;
        let mut ttls_at = Vec::new();
        let (mut least, mut authority) = (TTL_MAX_S, false);
        let answers = u16_at(message, 6)?;
        let mut additional = 0u16;
        'sections: for section in 0..3 {
            for _ in 0..u16_at(message, 6 + 2 * section)? {
                let start = at;
                at = skip_name(message, at)?;
                let fixed = fixed_at(message, at)?;
                at = fixed.data.end;
                if fixed.kind == kind::OPT {
                    if section != 2 {
                        return None;
                    }
                    at = start;
                    break 'sections;
                }
                ttls_at.push(u16::try_from(fixed.ttl_at).ok()?);
                let ttl = if fixed.ttl > TTL_MAX_S { 0 } else { fixed.ttl };
                least = least.min(ttl);
                if section == 1 && fixed.kind == kind::SOA {
                    // RFC 2308 section 5: the last number of the record bounds it too.
                    let data = &message[fixed.data];
                    least = least.min(u32_at(data, data.len().checked_sub(4)?)?);
                    authority = true;
                }
                if section == 2 {
                    additional += 1;
                }
            }
        }
        let lasting = self.rcode == Rcode::NoError as u16 && answers > 0 || authority;
        self.ttl_s = (lasting && self.is_usable() && least > 0).then_some(least);
        let mut kept: Vec<u8> = message[..at].to_vec();
        kept[10..12].copy_from_slice(&additional.to_be_bytes());
        self.message = kept.into();
        self.ttls_at = ttls_at.into();
        Some(())
    }

    /// Whether it answers the question; else another server may.
    pub(crate) fn is_usable(&self) -> bool {
        self.rcode == Rcode::NoError as u16 || self.rcode == Rcode::NxDomain as u16
    }

    /// Whether there is no such name, or nothing of that type.
    pub(crate) fn is_negative(&self) -> bool {
        self.rcode != Rcode::NoError as u16 || u16_at(&self.message, 6) == Some(0)
    }

    /// Bytes of memory.
    pub(crate) fn size(&self) -> usize {
        size_of::<Self>() + self.message.len() + 2 * self.ttls_at.len()
    }

    /// Writes the answer, `age_s` seconds old, for one who asked the same question.
    pub(crate) fn write(&self, out: &mut Vec<u8>, asked: &Asked<'_>, age_s: u32, limit: usize) {
        out.clear();
        out.extend_from_slice(&self.message);
        let edns_len = if asked.edns.is_some() { OPT_LEN } else { 0 };
        let mut flags = u16_at(out, 2).unwrap_or(0);
        flags &= flag::RESPONSE | flag::AUTHENTIC | flag::RCODE;
        flags |= flag::RECURSION_AVAILABLE | asked.flags & REPEATED;
        let mut records = self.ttls_at.len();
        if out.len() + edns_len > limit {
            let (end, answers) = self.fit(limit.saturating_sub(edns_len));
            records = usize::from(answers);
            out.truncate(end);
            out[6..8].copy_from_slice(&answers.to_be_bytes());
            out[8..12].fill(0);
            flags |= flag::TRUNCATED;
        }
        for at in self.ttls_at[..records].iter().copied().map(usize::from) {
            let ttl = u32_at(out, at).unwrap_or(0);
            let ttl = if ttl > TTL_MAX_S { 0 } else { ttl.saturating_sub(age_s) };
            out[at..at + 4].copy_from_slice(&ttl.to_be_bytes());
        }
        out[..2].copy_from_slice(&asked.id.to_be_bytes());
        out[2..4].copy_from_slice(&flags.to_be_bytes());
        out[HEADER_LEN..HEADER_LEN + self.question_len].copy_from_slice(asked.question);
        if let Some(edns) = asked.edns {
            let additional = u16_at(out, 10).unwrap_or(0) + 1;
            out[10..12].copy_from_slice(&additional.to_be_bytes());
            write_opt(out, edns.dnssec, Rcode::NoError);
        }
    }

    /// Where the last answer ends that is within `limit`, and how many there are until there:
    /// resolvers that know no TCP take what there is.
    fn fit(&self, limit: usize) -> (usize, u16) {
        let (mut end, mut answers) = (HEADER_LEN + self.question_len, 0);
        let of_all = u16_at(&self.message, 6).unwrap_or(0);
        for ttl_at in self.ttls_at.iter().take(usize::from(of_all)).copied().map(usize::from) {
            let next = ttl_at + 6 + usize::from(u16_at(&self.message, ttl_at + 4).unwrap_or(0));
            if next > limit {
                break;
            }
            (end, answers) = (next, answers + 1);
        }
        (end, answers)
    }
}

/// Whether two questions are the same: names in any case, type and class exactly.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    let (Some((one, one_kind)), Some((other, other_kind))) =
        (one.split_last_chunk::<4>(), other.split_last_chunk::<4>())
    else {
        return false;
    };
    one_kind == other_kind && one.eq_ignore_ascii_case(other)
}
