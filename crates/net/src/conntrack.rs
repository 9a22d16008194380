//! Removal of tracked connections, by ctnetlink.
//!
//! Whole connections are read and judged here; the kernel's own filter only narrows
//! what it sends. An entry that ends meanwhile is fine.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};

use crate::netlink::{Messages, Socket, attribute, attributes_in, flag};
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
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
/// `struct nfgenmsg` of family ip.
const HEADER: [u8; 4] = [2, 0, 0, 0];
/// Entries deleted by one system call: about 8 KiB.
const DELETE_BATCH: usize = 100;

/// A connection as its first packet had it, and who answers it after translation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) destination_port: u16,
    pub(crate) protocol: u8,
    pub(crate) answered_by: Ipv4Addr,
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

    /// Removes the connections that `doomed` chooses; with `to`, only those to that port are looked at.
    pub(crate) fn remove(
        &mut self,
        to: Option<(Protocol, u16)>,
        doomed: impl Fn(&Flow) -> bool,
    ) -> Result<usize, Error> {
        let mut keys = Vec::new();
        let list = list_request(to);
        self.0
            .query(&list, |kind, payload| {
                let attributes = payload.get(HEADER.len()..).unwrap_or_default();
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
        for keys in keys.chunks(DELETE_BATCH) {
            let mut messages = Messages::default();
            for key in keys {
                messages.push(CT_DELETE, 0, &HEADER, |a| {
                    a.bytes(CTA_TUPLE_ORIG | 0x8000, &key.tuple);
                    if let Some(zone) = &key.zone {
                        a.bytes(CTA_ZONE, zone);
                    }
                });
            }
            let refused = self
                .0
                .attempt(&mut messages, keys.len() - 1)
                .map_err(|source| Error::io("remove tracked connections", source))?;
            let gone = |code| code == Some(libc::ENOENT);
            if let Some(refused) = refused.into_iter().find(|r| !gone(r.source.raw_os_error())) {
                return Err(Error::io("remove a tracked connection", refused.source));
            }
        }
        Ok(keys.len())
    }
}

/// Addresses that were backends of a published port at some time: only to them are there
/// translated connections.
#[derive(Debug, Default)]
pub(crate) struct Exposed(Mutex<BTreeSet<Ipv4Addr>>);

impl Exposed {
    pub(crate) fn add(&self, addresses: impl IntoIterator<Item = Ipv4Addr>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(addresses);
    }

    /// Forgets `gone` and returns which of them were exposed.
    pub(crate) fn take(&self, gone: &BTreeSet<Ipv4Addr>) -> BTreeSet<Ipv4Addr> {
        let mut exposed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gone.iter().copied().filter(|address| exposed.remove(address)).collect()
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

fn list_request(to: Option<(Protocol, u16)>) -> Messages {
    let mut messages = Messages::default();
    messages.push(CT_GET, flag::DUMP, &HEADER, |a| {
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
fn parse(attributes: &[u8]) -> Option<Flow> {
    let original = attribute(attributes, CTA_TUPLE_ORIG)?;
    let reply = attribute(attributes, CTA_TUPLE_REPLY)?;
    let (ip, protocol) =
        (attribute(original, CTA_TUPLE_IP)?, attribute(original, CTA_TUPLE_PROTO)?);
    Some(Flow {
        source: address(ip, CTA_IP_V4_SRC)?,
        destination: address(ip, CTA_IP_V4_DST)?,
        destination_port: port(protocol, CTA_PROTO_DST_PORT)?,
        protocol: *attribute(protocol, CTA_PROTO_NUM)?.first()?,
        answered_by: address(attribute(reply, CTA_TUPLE_IP)?, CTA_IP_V4_SRC)?,
        answered_by_port: port(attribute(reply, CTA_TUPLE_PROTO)?, CTA_PROTO_SRC_PORT)?,
    })
}

fn address(attributes: &[u8], kind: u16) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = attribute(attributes, kind)?.try_into().ok()?;
    Some(octets.into())
}

fn port(attributes: &[u8], kind: u16) -> Option<u16> {
    let bytes = attributes_in(attributes).find(|(found, _)| *found == kind)?.1;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}
