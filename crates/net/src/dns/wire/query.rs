//! Reading a query.

use super::{
    Asked, HEADER_LEN, NAME_LEN_MAX, NameText, Rcode, fixed_at, flag, kind, skip_name, u16_at,
};

/// Records after the question: an OPT, perhaps a signature.
const ADDITIONAL_MAX: u16 = 4;

/// What the asker says of itself (RFC 6891).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Edns {
    /// Bytes that it takes in a datagram.
    pub(crate) payload: u16,
    /// Whether it wants signatures (RFC 3225).
    pub(crate) dnssec: bool,
    pub(crate) version: u8,
}

/// One question.
pub(crate) struct Query<'a> {
    pub(crate) asked: Asked<'a>,
    pub(crate) name: NameText,
    pub(crate) kind: u16,
    pub(crate) class: u16,
}

/// A message that is no question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// To be ignored: answering an answer makes a loop, and what is too short has no sender.
    Silent,
    /// To be told, without repeating anything of the question.
    Told { id: u16, flags: u16, rcode: Rcode },
}

impl<'a> Query<'a> {
    pub(crate) fn read(message: &'a [u8]) -> Result<Self, Malformed> {
        let (Some(id), Some(flags)) = (u16_at(message, 0), u16_at(message, 2)) else {
            return Err(Malformed::Silent);
        };
        if message.len() < HEADER_LEN || flags & flag::RESPONSE != 0 {
            return Err(Malformed::Silent);
        }
        if flags & flag::OPCODE != 0 {
            return Err(Malformed::Told { id, flags, rcode: Rcode::NotImp });
        }
        Self::read_body(message, id, flags).ok_or(Malformed::Told {
            id,
            flags,
            rcode: Rcode::FormErr,
        })
    }

    pub(crate) fn wants_recursion(&self) -> bool {
        self.asked.flags & flag::RECURSION_DESIRED != 0
    }

    fn read_body(message: &'a [u8], id: u16, flags: u16) -> Option<Self> {
        let count = |at| u16_at(message, at);
        if count(4)? != 1 || count(6)? != 0 || count(8)? != 0 || count(10)? > ADDITIONAL_MAX {
            return None;
        }
        let mut name = NameText::new();
        let mut at = read_name(message, HEADER_LEN, &mut name)?;
        let (kind, class) = (u16_at(message, at)?, u16_at(message, at + 2)?);
        at += 4;
        let question = message.get(HEADER_LEN..at)?;
        let mut edns = None;
        for _ in 0..count(10)? {
            let root = message.get(at) == Some(&0);
            at = skip_name(message, at)?;
            let fixed = fixed_at(message, at)?;
            at = fixed.data.end;
            if fixed.kind == kind::OPT {
                if edns.is_some() || !root {
                    return None;
                }
                let [_, version, upper, _] = fixed.ttl.to_be_bytes();
                edns = Some(Edns { payload: fixed.class, dnssec: upper & 0x80 != 0, version });
            }
        }
        Some(Self { asked: Asked { id, flags, question, edns }, name, kind, class })
    }
}

/// The name at `at`, which cannot be compressed: nothing stands before it.
fn read_name(message: &[u8], mut at: usize, name: &mut NameText) -> Option<usize> {
    let start = at;
    loop {
        let len = usize::from(*message.get(at)?);
        at += 1;
        if len == 0 {
            return (at - start <= NAME_LEN_MAX).then_some(at);
        }
        if len > super::LABEL_LEN_MAX {
            return None;
        }
        name.push_label(message.get(at..at + len)?)?;
        at += len;
    }
}
