//! From a message to what becomes of it.
//!
//! Pure: the same message, zone and rotation give the same bytes. Nobody is sent more than a
//! header for a message that is not understood, nor more than was asked with for a refusal.
//!
//! Not here: sockets (`server`), asking others (`forward`).

use std::net::IpAddr;

use super::tables::Upstream;
use super::wire::{
    Asked, CLASS_IN, Data, Edns, Malformed, Query, Rcode, Record, STREAM_LEN, Writer, kind, refusal,
};
use super::zone::{Outcome, SUFFIX, Zone};

/// What a message came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Datagram,
    Stream,
}

/// What becomes of a message.
#[derive(Debug)]
pub(crate) enum Action {
    /// Nothing.
    Drop,
    /// It is answered.
    Reply(Kind),
    /// Somebody else is asked.
    Forward(Ask),
}

/// Of a reply, to be counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Answered,
    Refused,
    Malformed,
}

/// A question for somebody else.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) asker: IpAddr,
    pub(crate) upstream: Upstream,
    /// Bytes that the answer may have.
    pub(crate) limit: usize,
    id: u16,
    flags: u16,
    question: Box<[u8]>,
    edns: Option<Edns>,
}

impl Ask {
    pub(crate) fn asked(&self) -> Asked<'_> {
        Asked { id: self.id, flags: self.flags, question: &self.question, edns: self.edns }
    }
}

/// Types that stand for something else than records: transfers, keys of transactions, RFC 6895.
const META: std::ops::RangeInclusive<u16> = 128..=254;

/// What becomes of `message`, and in `out` the reply to it.
pub(crate) fn answer(
    zone: &Zone,
    asker: IpAddr,
    message: &[u8],
    transport: Transport,
    rotation: u32,
    out: &mut Vec<u8>,
) -> Action {
    let query = match Query::read(message) {
        Ok(query) => query,
        Err(Malformed::Silent) => return Action::Drop,
        Err(Malformed::Told { id, flags, rcode }) => {
            refusal(out, id, flags, rcode);
            return Action::Reply(Kind::Malformed);
        }
    };
    let limit = match transport {
        Transport::Datagram => Edns::limit(query.asked.edns),
        Transport::Stream => STREAM_LEN,
    };
    let refuse = |out: &mut Vec<u8>, rcode| {
        Writer::new(out, &query.asked, limit).finish(rcode, false);
        Action::Reply(Kind::Refused)
    };
    if query.asked.edns.is_some_and(|edns| edns.version > 0) {
        return refuse(out, Rcode::BadVers);
    }
    if query.class != CLASS_IN || matches!(query.kind, 0 | kind::OPT) || META.contains(&query.kind)
    {
        return refuse(out, Rcode::Refused);
    }
    let name = query.name.as_str();
    let outcome = zone.lookup(asker, name, query.kind, rotation);
    let rcode = match outcome {
        Outcome::Refused => return refuse(out, Rcode::Refused),
        // Without recursion there is only what is here.
        Outcome::Forward(_) if !query.wants_recursion() => return refuse(out, Rcode::Refused),
        Outcome::Forward(upstream) => {
            return Action::Forward(Ask {
                asker,
                upstream: upstream.clone(),
                limit,
                id: query.asked.id,
                flags: query.asked.flags,
                question: query.asked.question.into(),
                edns: query.asked.edns,
            });
        }
        Outcome::NoName => Rcode::NxDomain,
        Outcome::NoData | Outcome::Found(_) => Rcode::NoError,
    };
    let mut writer = Writer::new(out, &query.asked, limit);
    if let Outcome::Found(answer) = &outcome {
        // Some resolvers take what there is, so as much as fits is given.
        if answer.records.iter().all(|record| writer.answer(record)) {
            for (owner, record) in &answer.additional {
                writer.additional(owner, record);
            }
        }
    } else if name.ends_with(SUFFIX) {
        writer.authority(&Record { ttl_s: 0, data: Data::Soa });
    }
    writer.finish(rcode, true);
    Action::Reply(Kind::Answered)
}
