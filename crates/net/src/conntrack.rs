//! Removal of tracked connections, by ctnetlink.
//!
//! Whole connections are read and judged here; the kernel's own filter only narrows
//! what it sends. An entry that ends meanwhile is fine.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use crate::netlink::{Attributes, Messages, Socket, attribute, attributes_in, flag};
use crate::rules::{Family, Passage, header};
use crate::{Error, Protocol};

// linux/netfilter/nfnetlink_conntrack.h
const CT_GET: u16 = (1 << 8) | 1;
const CT_DELETE: u16 = (1 << 8) | 2;
const CT_NEW: u16 = 1 << 8;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
const FILTER_PROTOCOL: u32 = 1 << 3;
const FILTER_DESTINATION_PORT: u32 = 1 << 5;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_MARK: u16 = 8;
const CTA_MARK_MASK: u16 = 21;
/// Bit of a connection's mark: policies deny it, since after it began. Nodes' numbers have others.
pub(crate) const DENIED_MARK: u32 = 1 << 10;
/// `struct nfgenmsg`
const HEADER_LEN: usize = 4;
/// Entries deleted or changed by one system call: about 8 KiB.
const BATCH: usize = 100;

/// A connection as its first packet had it, and who answers it after translation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) destination: IpAddr,
    pub(crate) destination_port: u16,
    pub(crate) protocol: u8,
    pub(crate) answered_by: IpAddr,
    pub(crate) answered_by_port: u16,
}

pub(crate) struct Conntrack(Socket);

impl Conntrack {
    /// Of the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self, Error> {
        Socket::netfilter()
            .map(Self)
            .map_err(|source| Error::io("open a conntrack netlink socket", source))
    }

    /// Removes the connections of a family that `doomed` chooses; with `to`, only those to that port are looked at.
    pub(crate) fn remove(
        &mut self,
        family: Family,
        to: Option<(Protocol, u16)>,
        doomed: impl Fn(&Flow) -> bool,
    ) -> Result<usize, Error> {
        let mut keys = Vec::new();
        let list = list_request(family, to);
        self.0
            .query(&list, |kind, payload| {
                let attributes = payload.get(HEADER_LEN..).unwrap_or_default();
                let flow = if kind == CT_NEW { parse(attributes) } else { None };
                let wanted = |flow: &Flow| {
                    to.is_none_or(|(protocol, port)| {
                        (flow.protocol, flow.destination_port) == (protocol.number(), port)
                    })
                };
                if flow.is_some_and(|flow| wanted(&flow) && doomed(&flow)) {
                    keys.push(Key::of(attributes));
                }
            })
            .map_err(|source| Error::io("list tracked connections", source))?;
        self.each(family, CT_DELETE, &keys, "remove tracked connections", |_| {})?;
        Ok(keys.len())
    }

    /// Marks connections of a family as `denies` says, unless it says nothing; returns how many
    /// were marked and how many are free again.
    pub(crate) fn judge(
        &mut self,
        family: Family,
        denies: impl Fn(&Passage) -> Option<bool>,
    ) -> Result<(usize, usize), Error> {
        let (mut denied, mut freed) = (Vec::new(), Vec::new());
        let list = list_request(family, None);
        self.0
            .query(&list, |kind, payload| {
                let attributes = payload.get(HEADER_LEN..).unwrap_or_default();
                let passage = if kind == CT_NEW { parse_passage(attributes) } else { None };
                let verdict = passage.and_then(|passage| denies(&passage));
                match (verdict, is_denied(attributes)) {
                    (Some(true), false) => denied.push(Key::of(attributes)),
                    (Some(false), true) => freed.push(Key::of(attributes)),
                    (None | Some(_), _) => {}
                }
            })
            .map_err(|source| Error::io("list tracked connections", source))?;
        for (keys, mark) in [(&denied, DENIED_MARK), (&freed, 0)] {
            self.each(family, CT_NEW, keys, "mark tracked connections", |a| {
                a.net32(CTA_MARK, mark).net32(CTA_MARK_MASK, DENIED_MARK);
            })?;
        }
        Ok((denied.len(), freed.len()))
    }

    /// One message for each connection; those that are gone are fine.
    fn each(
        &mut self,
        family: Family,
        kind: u16,
        keys: &[Key],
        what: &str,
        more: impl Fn(&mut Attributes<'_>),
    ) -> Result<(), Error> {
        for keys in keys.chunks(BATCH) {
            let mut messages = Messages::default();
            for key in keys {
                messages.push(kind, 0, &header(family), |a| {
                    a.bytes(CTA_TUPLE_ORIG | 0x8000, &key.tuple);
                    if let Some(zone) = &key.zone {
                        a.bytes(CTA_ZONE, zone);
                    }
                    more(a);
                });
            }
            let refused = self.0.attempt(&mut messages, keys.len() - 1);
            let refused = refused.map_err(|source| Error::io(what, source))?;
            let gone = |code| code == Some(libc::ENOENT);
            if let Some(refused) = refused.into_iter().find(|r| !gone(r.source.raw_os_error())) {
                return Err(Error::io(what, refused.source));
            }
        }
        Ok(())
    }
}

impl Conntrack {
    /// Who answers translated connections, each with its protocol's number.
    pub(crate) fn answering(&mut self, family: Family) -> Result<BTreeSet<(u8, IpAddr)>, Error> {
        let mut answering = BTreeSet::new();
        let list = list_request(family, None);
        let each = |kind, payload: &[u8]| {
            let flow = payload.get(HEADER_LEN..).filter(|_| kind == CT_NEW).and_then(parse);
            if let Some(flow) = flow.filter(|flow| flow.answered_by != flow.destination) {
                answering.insert((flow.protocol, flow.answered_by));
            }
        };
        self.0
            .query(&list, each)
            .map_err(|source| Error::io("list tracked connections", source))?;
        Ok(answering)
    }
}

/// Addresses that were backends of a published port at some time: only to them are there
/// translated connections.
#[derive(Debug, Default)]
pub(crate) struct Exposed {
    exposed: Mutex<BTreeSet<IpAddr>>,
    /// Were exposed, and have no container any more.
    gone: Mutex<BTreeSet<IpAddr>>,
}

impl Exposed {
    pub(crate) fn add(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.exposed.lock().unwrap_or_else(PoisonError::into_inner).extend(addresses);
    }

    /// Those that [`Exposed::take`] returned since this was asked last.
    pub(crate) fn take_gone(&self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut *self.gone.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Forgets `gone` and returns which of them were exposed.
    pub(crate) fn take(&self, gone: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        let mut exposed = self.exposed.lock().unwrap_or_else(PoisonError::into_inner);
        let taken: BTreeSet<IpAddr> =
            gone.iter().copied().filter(|address| exposed.remove(address)).collect();
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).extend(&taken);
        taken
    }
}

/// What names a connection to the kernel, as the kernel wrote it.
struct Key {
    tuple: Vec<u8>,
    zone: Option<Vec<u8>>,
}

impl Key {
    fn of(attributes: &[u8]) -> Self {
        Self {
            tuple: attribute(attributes, CTA_TUPLE_ORIG).unwrap_or_default().to_vec(),
            zone: attribute(attributes, CTA_ZONE).map(<[u8]>::to_vec),
        }
    }
}

fn list_request(family: Family, to: Option<(Protocol, u16)>) -> Messages {
    let mut messages = Messages::default();
    messages.push(CT_GET, flag::DUMP, &header(family), |a| {
        let Some((protocol, port)) = to else { return };
        // Kernels before 5.8 ignore the filter, and send all.
        a.nested(CTA_TUPLE_ORIG, |a| {
            a.nested(CTA_TUPLE_PROTO, |a| {
                a.bytes(CTA_PROTO_NUM, &[protocol.number()])
                    .bytes(CTA_PROTO_DST_PORT, &port.to_be_bytes());
            });
        });
        a.nested(CTA_FILTER, |a| {
            a.host32(CTA_FILTER_ORIG_FLAGS, FILTER_PROTOCOL | FILTER_DESTINATION_PORT)
                .host32(CTA_FILTER_REPLY_FLAGS, 0);
        });
    });
    messages
}

/// `None` for what has no ports (ICMP): it is not ours to end.
pub(crate) fn parse(attributes: &[u8]) -> Option<Flow> {
    let original = attribute(attributes, CTA_TUPLE_ORIG)?;
    let reply = attribute(attributes, CTA_TUPLE_REPLY)?;
    let (ip, protocol) =
        (attribute(original, CTA_TUPLE_IP)?, attribute(original, CTA_TUPLE_PROTO)?);
    Some(Flow {
        destination: address(ip, [CTA_IP_V4_DST, CTA_IP_V6_DST])?,
        destination_port: port(protocol, CTA_PROTO_DST_PORT)?,
        protocol: *attribute(protocol, CTA_PROTO_NUM)?.first()?,
        answered_by: address(attribute(reply, CTA_TUPLE_IP)?, [CTA_IP_V4_SRC, CTA_IP_V6_SRC])?,
        answered_by_port: port(attribute(reply, CTA_TUPLE_PROTO)?, CTA_PROTO_SRC_PORT)?,
    })
}

/// Of any protocol; one without ports has the port 0.
fn parse_passage(attributes: &[u8]) -> Option<Passage> {
    let original = attribute(attributes, CTA_TUPLE_ORIG)?;
    let reply = attribute(attributes, CTA_TUPLE_REPLY)?;
    let (ip, protocol) =
        (attribute(original, CTA_TUPLE_IP)?, attribute(original, CTA_TUPLE_PROTO)?);
    let answered = attribute(reply, CTA_TUPLE_PROTO)?;
    Some(Passage {
        source: address(ip, [CTA_IP_V4_SRC, CTA_IP_V6_SRC])?,
        destination: address(ip, [CTA_IP_V4_DST, CTA_IP_V6_DST])?,
        answered_by: address(attribute(reply, CTA_TUPLE_IP)?, [CTA_IP_V4_SRC, CTA_IP_V6_SRC])?,
        protocol: *attribute(protocol, CTA_PROTO_NUM)?.first()?,
        port: port(answered, CTA_PROTO_SRC_PORT).unwrap_or(0),
    })
}

fn is_denied(attributes: &[u8]) -> bool {
    let mark = attribute(attributes, CTA_MARK).and_then(|mark| <[u8; 4]>::try_from(mark).ok());
    mark.is_some_and(|mark| u32::from_be_bytes(mark) & DENIED_MARK != 0)
}

/// Of whichever family the tuple is.
fn address(attributes: &[u8], [v4, v6]: [u16; 2]) -> Option<IpAddr> {
    match attribute(attributes, v4) {
        Some(octets) => Some(IpAddr::from(<[u8; 4]>::try_from(octets).ok()?)),
        None => Some(IpAddr::from(<[u8; 16]>::try_from(attribute(attributes, v6)?).ok()?)),
    }
}

fn port(attributes: &[u8], kind: u16) -> Option<u16> {
    let bytes = attributes_in(attributes).find(|(found, _)| *found == kind)?.1;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}
