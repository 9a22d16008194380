//! The parts of a rule, and how each is written for the kernel.
//!
//! One variant is one condition or action of ours, not one of the kernel's
//! expressions: a condition loads a register and compares it. Numbers are those of
//! `linux/netfilter/nf_tables.h`.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::Protocol;
use crate::netlink::Attributes;
use crate::rules::Set;

/// Links are matched by exact name if it is a whole one, or by the prefix of ours.
type LinkName = String;
type Network = (Ipv4Addr, u8);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Drop,
    Accept,
    Return,
    Jump(String),
    Goto(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expression {
    FromLink(LinkName),
    FromLinkNot(LinkName),
    ToLink(LinkName),
    ToLinkNot(LinkName),
    SourceIn(Network),
    DestinationIn(Network),
    DestinationNotIn(Network),
    DestinationIs(Ipv4Addr),
    LocalDestination,
    /// The source is not routed by the link that the packet came from.
    NoReturnRoute,
    /// Established or related.
    Known,
    InvalidState,
    /// The destination is a backend of a published port.
    ToBackend,
    /// Of a connection without an answer so far.
    NewState,
    /// Its destination was translated.
    Published,
    OverTcp,
    /// Verdict maps decide, sets are a condition.
    LookUp(Set),
    Verdict(Verdict),
    Destination(SocketAddrV4),
    /// One of the batch's anonymous map, in turn.
    NextDestination {
        map: u32,
        modulus: u32,
    },
    SourceAs(Ipv4Addr),
    Masquerade,
    ResetTcp,
    PortUnreachable,
    HostUnreachable,
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FromLink(name) => write!(f, "from {name}"),
            Self::FromLinkNot(name) => write!(f, "from-not {name}"),
            Self::ToLink(name) => write!(f, "to {name}"),
            Self::ToLinkNot(name) => write!(f, "to-not {name}"),
            Self::SourceIn((address, len)) => write!(f, "src {address}/{len}"),
            Self::DestinationIn((address, len)) => write!(f, "dst {address}/{len}"),
            Self::DestinationNotIn((address, len)) => write!(f, "dst-not {address}/{len}"),
            Self::DestinationIs(address) => write!(f, "dst {address}"),
            Self::LocalDestination => f.write_str("dst local"),
            Self::NoReturnRoute => f.write_str("src unroutable"),
            Self::Known => f.write_str("known"),
            Self::InvalidState => f.write_str("invalid"),
            Self::ToBackend => f.write_str("dst backend"),
            Self::NewState => f.write_str("new"),
            Self::Published => f.write_str("published"),
            Self::OverTcp => f.write_str("tcp"),
            Self::LookUp(set) => write!(f, "in {}", set.name()),
            Self::Verdict(verdict) => write!(f, "{verdict:?}"),
            Self::Destination(backend) => write!(f, "dnat {backend}"),
            Self::NextDestination { map, modulus } => write!(f, "dnat map {map} of {modulus}"),
            Self::SourceAs(address) => write!(f, "snat {address}"),
            Self::Masquerade => f.write_str("masquerade"),
            Self::ResetTcp => f.write_str("reset"),
            Self::PortUnreachable => f.write_str("port-unreachable"),
            Self::HostUnreachable => f.write_str("host-unreachable"),
        }
    }
}

/// Data types as the `nft` tool numbers them: the kernel only keeps them for display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Type(pub(crate) u32);

impl Type {
    pub(crate) const VERDICT: Self = Self(0xffff_ff00);
    pub(crate) const INTEGER: Self = Self(4);
    const ADDRESS: u32 = 7;
    const PROTOCOL: u32 = 12;
    const PORT: u32 = 13;
    pub(crate) const ADDRESS_PORT: Self = Self((Self::ADDRESS << 6) | Self::PORT);
    pub(crate) const ADDRESS_ADDRESS: Self = Self((Self::ADDRESS << 6) | Self::ADDRESS);
    pub(crate) const PROTOCOL_PORT: Self = Self((Self::PROTOCOL << 6) | Self::PORT);
    pub(crate) const PROTOCOL_ADDRESS_PORT: Self =
        Self((Self::PROTOCOL << 12) | (Self::ADDRESS << 6) | Self::PORT);
}

/// Registers of four bytes. The sixteen-byte register 1 lies over the first four.
const VERDICT_REGISTER: u32 = 0;
const R0: u32 = 8;
const R1: u32 = 9;
const R2: u32 = 10;
/// For link names.
const WIDE: u32 = 1;

const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const LIST_ELEMENT: u16 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_L4PROTO: u32 = 16;
const PAYLOAD_NETWORK: u32 = 1;
const PAYLOAD_TRANSPORT: u32 = 2;
const SOURCE_OFFSET: u32 = 12;
const DESTINATION_OFFSET: u32 = 16;
const PORT_OFFSET: u32 = 2;
const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
const STATE_INVALID: u32 = 1;
const STATE_ESTABLISHED_RELATED: u32 = 2 | 4;
const STATE_NEW: u32 = 8;
const STATUS_DST_NAT: u32 = 1 << 5;
const FIB_OIF: u32 = 1;
const FIB_ADDRTYPE: u32 = 3;
const FIB_SADDR: u32 = 1;
const FIB_DADDR: u32 = 2;
const FIB_IIF: u32 = 8;
const RTN_LOCAL: u32 = 2;
const NAT_SNAT: u32 = 0;
const NAT_DNAT: u32 = 1;
const NFPROTO_IPV4: u32 = 2;
const REJECT_UNREACHABLE: u32 = 0;
const REJECT_RESET: u32 = 1;
const ICMP_HOST_UNREACHABLE: u8 = 1;
const ICMP_PORT_UNREACHABLE: u8 = 3;

/// Anonymous sets are called so in a batch, told apart by their id.
pub(crate) const ANONYMOUS: &str = "__map%d";

impl Expression {
    /// Writes the kernel's expressions for this part of a rule.
    pub(crate) fn write(&self, list: &mut Attributes<'_>) {
        match self {
            Self::FromLink(name) => link(list, META_IIFNAME, CMP_EQ, name),
            Self::FromLinkNot(name) => link(list, META_IIFNAME, CMP_NEQ, name),
            Self::ToLink(name) => link(list, META_OIFNAME, CMP_EQ, name),
            Self::ToLinkNot(name) => link(list, META_OIFNAME, CMP_NEQ, name),
            Self::SourceIn(network) => within(list, SOURCE_OFFSET, CMP_EQ, *network),
            Self::DestinationIn(network) => within(list, DESTINATION_OFFSET, CMP_EQ, *network),
            Self::DestinationNotIn(network) => within(list, DESTINATION_OFFSET, CMP_NEQ, *network),
            Self::DestinationIs(address) => {
                payload(list, R0, PAYLOAD_NETWORK, DESTINATION_OFFSET, 4);
                compare(list, R0, CMP_EQ, &address.octets());
            }
            Self::LocalDestination => {
                fib(list, FIB_ADDRTYPE, FIB_DADDR);
                compare(list, R0, CMP_EQ, &RTN_LOCAL.to_ne_bytes());
            }
            Self::NoReturnRoute => {
                fib(list, FIB_OIF, FIB_SADDR | FIB_IIF);
                compare(list, R0, CMP_EQ, &[0; 4]);
            }
            Self::Known => tracked(list, CT_STATE, STATE_ESTABLISHED_RELATED),
            Self::InvalidState => tracked(list, CT_STATE, STATE_INVALID),
            Self::ToBackend => {
                payload(list, R0, PAYLOAD_NETWORK, DESTINATION_OFFSET, 4);
                payload(list, R1, PAYLOAD_NETWORK, DESTINATION_OFFSET, 4);
                look_up_registers(list, Set::Hairpin);
            }
            Self::NewState => tracked(list, CT_STATE, STATE_NEW),
            Self::Published => tracked(list, CT_STATUS, STATUS_DST_NAT),
            Self::OverTcp => {
                l4_protocol(list);
                compare(list, R0, CMP_EQ, &[Protocol::Tcp.number()]);
            }
            Self::LookUp(set) => look_up(list, *set),
            Self::Verdict(verdict) => {
                expression(list, "immediate", |a| {
                    a.net32(1, VERDICT_REGISTER).nested(2, |a| write_verdict(a, verdict));
                });
            }
            Self::Destination(backend) => {
                immediate(list, R0, &backend.ip().octets());
                immediate(list, R1, &backend.port().to_be_bytes());
                nat(list, NAT_DNAT, R0, Some(R1));
            }
            Self::NextDestination { map, modulus } => {
                expression(list, "numgen", |a| {
                    // Incremental: in turn. The kernel starts at zero with each new rule.
                    a.net32(1, R0).net32(2, *modulus).net32(3, 0).net32(4, 0);
                });
                expression(list, "lookup", |a| {
                    a.text(1, ANONYMOUS).net32(2, R0).net32(3, R1).net32(4, *map);
                });
                nat(list, NAT_DNAT, R1, Some(R2));
            }
            Self::SourceAs(address) => {
                immediate(list, R0, &address.octets());
                nat(list, NAT_SNAT, R0, None);
            }
            Self::Masquerade => expression(list, "masq", |_| {}),
            Self::ResetTcp => reject(list, REJECT_RESET, 0),
            Self::PortUnreachable => reject(list, REJECT_UNREACHABLE, ICMP_PORT_UNREACHABLE),
            Self::HostUnreachable => reject(list, REJECT_UNREACHABLE, ICMP_HOST_UNREACHABLE),
        }
    }
}

/// As the value of a map's element or of a rule.
pub(crate) fn write_verdict(data: &mut Attributes<'_>, verdict: &Verdict) {
    let (code, chain): (i32, Option<&str>) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
        Verdict::Return => (-5, None),
    };
    data.nested(DATA_VERDICT, |a| {
        a.bytes(1, &code.to_be_bytes());
        if let Some(chain) = chain {
            a.text(2, chain);
        }
    });
}

fn expression(list: &mut Attributes<'_>, name: &str, body: impl FnOnce(&mut Attributes<'_>)) {
    list.nested(LIST_ELEMENT, |a| {
        a.text(EXPRESSION_NAME, name).nested(EXPRESSION_DATA, body);
    });
}

fn compare(list: &mut Attributes<'_>, register: u32, op: u32, value: &[u8]) {
    expression(list, "cmp", |a| {
        a.net32(1, register).net32(2, op).nested(3, |a| {
            a.bytes(DATA_VALUE, value);
        });
    });
}

fn immediate(list: &mut Attributes<'_>, register: u32, value: &[u8]) {
    expression(list, "immediate", |a| {
        a.net32(1, register).nested(2, |a| {
            a.bytes(DATA_VALUE, value);
        });
    });
}

/// Compares as many bytes as `name` has: a prefix. `lo` alone is meant whole, with its zero.
fn link(list: &mut Attributes<'_>, key: u32, op: u32, name: &str) {
    expression(list, "meta", |a| {
        a.net32(2, key).net32(1, WIDE);
    });
    let mut value = name.as_bytes().to_vec();
    if name == "lo" {
        value.push(0);
    }
    compare(list, WIDE, op, &value);
}

fn payload(list: &mut Attributes<'_>, register: u32, base: u32, offset: u32, len: u32) {
    expression(list, "payload", |a| {
        a.net32(1, register).net32(2, base).net32(3, offset).net32(4, len);
    });
}

fn mask(list: &mut Attributes<'_>, mask: [u8; 4]) {
    expression(list, "bitwise", |a| {
        a.net32(1, R0).net32(2, R0).net32(3, 4);
        a.nested(4, |a| {
            a.bytes(DATA_VALUE, &mask);
        });
        a.nested(5, |a| {
            a.bytes(DATA_VALUE, &[0; 4]);
        });
    });
}

fn within(list: &mut Attributes<'_>, offset: u32, op: u32, (address, len): Network) {
    let bits = u32::MAX.checked_shl(32 - u32::from(len.min(32))).unwrap_or(0);
    payload(list, R0, PAYLOAD_NETWORK, offset, 4);
    mask(list, bits.to_be_bytes());
    compare(list, R0, op, &(address.to_bits() & bits).to_be_bytes());
}

/// True if any of `bits` is set.
fn tracked(list: &mut Attributes<'_>, key: u32, bits: u32) {
    expression(list, "ct", |a| {
        a.net32(1, R0).net32(2, key);
    });
    mask(list, bits.to_ne_bytes());
    compare(list, R0, CMP_NEQ, &[0; 4]);
}

fn fib(list: &mut Attributes<'_>, result: u32, flags: u32) {
    expression(list, "fib", |a| {
        a.net32(1, R0).net32(2, result).net32(3, flags);
    });
}

fn l4_protocol(list: &mut Attributes<'_>) {
    expression(list, "meta", |a| {
        a.net32(2, META_L4PROTO).net32(1, R0);
    });
}

fn look_up(list: &mut Attributes<'_>, set: Set) {
    match set {
        Set::Anywhere | Set::RefusedAnywhere => {
            l4_protocol(list);
            payload(list, R1, PAYLOAD_TRANSPORT, PORT_OFFSET, 2);
        }
        Set::Bound | Set::RefusedBound => {
            l4_protocol(list);
            payload(list, R1, PAYLOAD_NETWORK, DESTINATION_OFFSET, 4);
            payload(list, R2, PAYLOAD_TRANSPORT, PORT_OFFSET, 2);
        }
        Set::Hairpin => {
            payload(list, R0, PAYLOAD_NETWORK, SOURCE_OFFSET, 4);
            payload(list, R1, PAYLOAD_NETWORK, DESTINATION_OFFSET, 4);
        }
    }
    look_up_registers(list, set);
}

fn look_up_registers(list: &mut Attributes<'_>, set: Set) {
    expression(list, "lookup", |a| {
        a.text(1, set.name()).net32(2, R0);
        match set {
            Set::Anywhere | Set::Bound | Set::RefusedAnywhere | Set::RefusedBound => {
                a.net32(3, VERDICT_REGISTER);
            }
            Set::Hairpin => {}
        }
    });
}

fn nat(list: &mut Attributes<'_>, kind: u32, address: u32, port: Option<u32>) {
    expression(list, "nat", |a| {
        a.net32(1, kind).net32(2, NFPROTO_IPV4).net32(3, address).net32(4, address);
        if let Some(port) = port {
            a.net32(5, port).net32(6, port);
        }
    });
}

fn reject(list: &mut Attributes<'_>, kind: u32, code: u8) {
    expression(list, "reject", |a| {
        a.net32(1, kind).bytes(2, &[code]);
    });
}
