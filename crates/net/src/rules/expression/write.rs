//! The parts of a rule as the kernel's expressions.
//!
//! Numbers are those of `linux/netfilter/nf_tables.h`. A condition loads registers and
//! compares them; none reads what an earlier part of the rule left there.

use std::net::IpAddr;

use super::{Expression, Field, Verdict};
use crate::conntrack::DENIED_MARK;
use crate::netlink::Attributes;
use crate::overlay::MARK_MASK;
use crate::rules::{Family, Front, Holds, Set};
use crate::table::Subnet;

/// Registers of four bytes. The sixteen-byte register 1 lies over the first four.
const VERDICT_REGISTER: u32 = 0;
const R0: u32 = 8;
const R1: u32 = 9;
const R2: u32 = 10;
/// For link names.
const WIDE: u32 = 1;
/// Port, id and turn of a frontend, behind the registers of its key; then the backend.
///
/// `nft` (1.0.6) aborts when it lists a rule that looks up a key which begins with what a
/// map gave, and passes over one whose key begins where it knows of nothing: so what
/// begins a key is never the first of what a map gives.
const TARGET: u32 = 16;
const ID: u32 = 17;
const TURN: u32 = 18;
const CHOSEN: u32 = 20;
/// Combinations of two containers, a key together: each is given twice, for the same reason.
const OF_SOURCE: u32 = 17;
const OF_DESTINATION: u32 = 18;

const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const LIST_ELEMENT: u16 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;
const CMP_LTE: u32 = 3;
const CMP_GTE: u32 = 5;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_L4PROTO: u32 = 16;
const PAYLOAD_NETWORK: u32 = 1;
const PAYLOAD_TRANSPORT: u32 = 2;
const PORT_OFFSET: u32 = 2;
const TCP_FLAGS_OFFSET: u32 = 13;
const TCP_SYN: u8 = 2;
const TCP_RST: u8 = 4;
const TCP_OPTION_MSS: u8 = 2;
const EXTHDR_TCP_OPTION: u32 = 1;
const RT_TCP_MSS: u32 = 3;
const BYTEORDER_HTON: u32 = 1;
const LOOKUP_INVERTED: u32 = 1;
const CT_STATE: u32 = 0;
const CT_DIRECTION: u32 = 1;
const CT_STATUS: u32 = 2;
const CT_MARK: u32 = 3;
const CT_DST_IP: u32 = 20;
const CT_DST_IP6: u32 = 22;
const CT_ORIGINAL: u8 = 0;
const CT_REPLY: u8 = 1;
const META_MARK: u32 = 3;
const PAYLOAD_LINK: u32 = 0;
const SOURCE_MAC_OFFSET: u32 = 6;
const STATE_INVALID: u32 = 1;
const STATE_ESTABLISHED_RELATED: u32 = 2 | 4;
const STATE_NEW: u32 = 8;
const STATUS_DST_NAT: u32 = 1 << 5;
const FIB_OIF: u32 = 1;
const FIB_ADDRTYPE: u32 = 3;
const FIB_SADDR: u32 = 1;
const FIB_DADDR: u32 = 2;
const FIB_IIF: u32 = 8;
const ICMP_ECHO_REQUEST: u8 = 8;
const ICMP6_ECHO_REQUEST: u8 = 128;
const RANDOM: u32 = 1;
const HASH_JENKINS: u32 = 0;
/// The same on every node, so that clients find their backend by whichever they come.
const HASH_SEED: u32 = 0x7761_7272;
const DYNSET_ADD: u32 = 0;
const RTN_LOCAL: u32 = 2;
const NAT_SNAT: u32 = 0;
const NAT_DNAT: u32 = 1;
const NFPROTO_IPV4: u32 = 2;
const NFPROTO_IPV6: u32 = 10;
const REJECT_UNREACHABLE: u32 = 0;
const REJECT_RESET: u32 = 1;
const ICMP_HOST_UNREACHABLE: u8 = 1;
const ICMP_PORT_UNREACHABLE: u8 = 3;
const ICMP6_ADDRESS_UNREACHABLE: u8 = 3;
const ICMP6_PORT_UNREACHABLE: u8 = 4;

/// Anonymous sets are called so in a batch, told apart by their id.
pub(crate) const ANONYMOUS: &str = "__map%d";

impl Expression {
    /// Writes the kernel's expressions for this part of a rule.
    pub(crate) fn write(&self, list: &mut Attributes<'_>, family: Family) {
        match self {
            Self::FromLink(name) => link(list, META_IIFNAME, CMP_EQ, name),
            Self::FromLinkNot(name) => link(list, META_IIFNAME, CMP_NEQ, name),
            Self::ToLink(name) => link(list, META_OIFNAME, CMP_EQ, name),
            Self::ToLinkNot(name) => link(list, META_OIFNAME, CMP_NEQ, name),
            Self::SourceIn(network) => within(list, family, Field::Source, CMP_EQ, *network),
            Self::DestinationIn(network) => {
                within(list, family, Field::Destination, CMP_EQ, *network);
            }
            Self::DestinationNotIn(network) => {
                within(list, family, Field::Destination, CMP_NEQ, *network);
            }
            Self::DestinationIs(address) => {
                load(list, family, R0, Field::Destination);
                compare(list, R0, CMP_EQ, &octets(address));
            }
            Self::SourceNotIn(network) => within(list, family, Field::Source, CMP_NEQ, *network),
            Self::DestinationPorts(first, last) => {
                load(list, family, R0, Field::DestinationPort);
                compare(list, R0, CMP_GTE, &first.to_be_bytes());
                compare(list, R0, CMP_LTE, &last.to_be_bytes());
            }
            Self::DestinationPort(port) => {
                load(list, family, R0, Field::DestinationPort);
                compare(list, R0, CMP_EQ, &port.to_be_bytes());
            }
            Self::LocalDestination => {
                fib(list, FIB_ADDRTYPE, FIB_DADDR);
                compare(list, R0, CMP_EQ, &RTN_LOCAL.to_ne_bytes());
            }
            Self::LocalSource => {
                fib(list, FIB_ADDRTYPE, FIB_SADDR);
                compare(list, R0, CMP_EQ, &RTN_LOCAL.to_ne_bytes());
            }
            Self::NoReturnRoute => {
                fib(list, FIB_OIF, FIB_SADDR | FIB_IIF);
                compare(list, R0, CMP_EQ, &[0; 4]);
            }
            Self::Known => tracked(list, CT_STATE, STATE_ESTABLISHED_RELATED),
            Self::InvalidState => tracked(list, CT_STATE, STATE_INVALID),
            Self::ToBackend => {
                load_all(list, family, R0, &[Field::Destination, Field::Destination]);
                look_up(list, Set::Hairpin, R0, false);
            }
            Self::NewState => tracked(list, CT_STATE, STATE_NEW),
            Self::Published => tracked(list, CT_STATUS, STATUS_DST_NAT),
            Self::Over(protocol) => {
                load(list, family, R0, Field::Protocol);
                compare(list, R0, CMP_EQ, &[protocol.number()]);
            }
            Self::Syn => {
                payload(list, R0, PAYLOAD_TRANSPORT, TCP_FLAGS_OFFSET, 1);
                mask(list, &[TCP_SYN | TCP_RST]);
                compare(list, R0, CMP_EQ, &[TCP_SYN]);
            }
            Self::LookUp(set) | Self::In(set) => {
                load_all(list, family, R0, set.key());
                look_up(list, *set, R0, false);
            }
            Self::NotIn(set) => {
                load_all(list, family, R0, set.key());
                look_up(list, *set, R0, true);
            }
            Self::Verdict(verdict) => {
                expression(list, "immediate", |a| {
                    a.net32(1, VERDICT_REGISTER).nested(2, |a| write_verdict(a, verdict));
                });
            }
            Self::Destination(backend) => {
                immediate(list, R0, &backend.ip().octets());
                immediate(list, R1, &backend.port().to_be_bytes());
                nat(list, family, NAT_DNAT, R0, Some(R1));
            }
            Self::NextDestination { map, modulus } => {
                expression(list, "numgen", |a| {
                    // Incremental: in turn. The kernel starts at zero with each new rule.
                    a.net32(1, R0).net32(2, *modulus).net32(3, 0).net32(4, 0);
                });
                expression(list, "lookup", |a| {
                    a.text(1, ANONYMOUS).net32(2, R0).net32(3, R1).net32(4, *map);
                });
                nat(list, family, NAT_DNAT, R1, Some(R2));
            }
            Self::SourceAs(address) => {
                immediate(list, R0, &octets(address));
                nat(list, family, NAT_SNAT, R0, None);
            }
            Self::Masquerade => expression(list, "masq", |_| {}),
            Self::Clamp => clamp(list),
            Self::EchoRequest => {
                let kind = match family {
                    Family::V4 => ICMP_ECHO_REQUEST,
                    Family::V6 => ICMP6_ECHO_REQUEST,
                };
                load(list, family, R0, Field::Protocol);
                compare(list, R0, CMP_EQ, &[family.icmp()]);
                payload(list, R0, PAYLOAD_TRANSPORT, 0, 1);
                compare(list, R0, CMP_EQ, &[kind]);
            }
            Self::Choose(front) => {
                load_all(list, family, R0, front.set().key());
                look_up_data(list, front.set(), R0, TARGET);
                look_up(list, front.turns(), TURN, false);
            }
            Self::AtRandom { front, turns } => {
                load_all(list, family, R0, front.set().key());
                look_up_data(list, front.set(), R0, TARGET);
                expression(list, "numgen", |a| {
                    a.net32(1, TURN).net32(2, *turns).net32(3, RANDOM).net32(4, 0);
                });
                look_up(list, Set::Counted, ID, false);
                to_chosen(list, family, *front);
            }
            Self::ByClient { front, turns } => {
                load_all(list, family, R0, front.set().key());
                look_up_data(list, front.set(), R0, TARGET);
                load(list, family, R0, Field::Source);
                let len = Field::Source.len(family);
                expression(list, "hash", |a| {
                    a.net32(1, R0).net32(2, TURN).net32(3, len).net32(4, *turns);
                    a.net32(5, HASH_SEED).net32(7, HASH_JENKINS);
                });
                look_up(list, Set::Counted, ID, false);
                to_chosen(list, family, *front);
            }
            Self::DestinationAs(address) => {
                immediate(list, R0, &octets(address));
                nat(list, family, NAT_DNAT, R0, None);
            }
            Self::OriginallyNotIn(network) => originally(list, family, CMP_NEQ, *network),
            Self::OriginallyIn(network) => originally(list, family, CMP_EQ, *network),
            Self::Untranslated => {
                expression(list, "ct", |a| {
                    a.net32(1, R0).net32(2, CT_STATUS);
                });
                mask(list, &STATUS_DST_NAT.to_ne_bytes());
                compare(list, R0, CMP_EQ, &[0; 4]);
            }
            Self::DestinationIsOf { set, is } => {
                load(list, family, R0, Field::Destination);
                look_up(list, *set, R0, !is);
            }
            Self::Icmp => {
                load(list, family, R0, Field::Protocol);
                compare(list, R0, CMP_EQ, &[family.icmp()]);
            }
            Self::Denied => tracked(list, CT_MARK, DENIED_MARK),
            Self::Together => {
                load(list, family, R0, Field::Source);
                look_up_data(list, Set::Combination, R0, OF_SOURCE - 1);
                load(list, family, R0, Field::Destination);
                look_up_data(list, Set::Combination, R0, OF_DESTINATION);
                look_up(list, Set::Together, OF_SOURCE, false);
            }
            Self::Peer { number, field } => {
                immediate(list, R0, &number.to_ne_bytes());
                load(list, family, R1, *field);
                look_up(list, Set::Peers, R0, false);
            }
            Self::ToOwnNode(len) => {
                load(list, family, R0, Field::Destination);
                mask(list, &prefix_mask(family, *len));
                let behind = R0 + Field::Destination.len(family).div_ceil(4);
                load(list, family, behind, Field::Source);
                look_up(list, Set::Homes, R0, false);
            }
            Self::Count => expression(list, "counter", |_| {}),
            Self::KeepNode => {
                load(list, family, R0, Field::SourceMac);
                look_up_data(list, Set::Marks, R0, ID);
                expression(list, "ct", |a| {
                    a.net32(2, CT_MARK).net32(4, ID);
                });
            }
            Self::BackToNode => {
                expression(list, "ct", |a| {
                    a.net32(1, R0).net32(2, CT_DIRECTION);
                });
                compare(list, R0, CMP_EQ, &[CT_REPLY]);
                expression(list, "ct", |a| {
                    a.net32(1, R0).net32(2, CT_MARK);
                });
                mask(list, &MARK_MASK.to_ne_bytes());
                compare(list, R0, CMP_NEQ, &[0; 4]);
                set_mark(list, R0);
            }
            Self::MarkAs(mark) => {
                immediate(list, R0, &mark.to_ne_bytes());
                set_mark(list, R0);
            }
            Self::Remember(set) => {
                load_all(list, family, R0, set.key());
                expression(list, "dynset", |a| {
                    a.text(1, set.name()).net32(3, DYNSET_ADD).net32(4, R0);
                });
            }
            Self::ResetTcp => reject(list, REJECT_RESET, 0),
            Self::PortUnreachable => match family {
                Family::V4 => reject(list, REJECT_UNREACHABLE, ICMP_PORT_UNREACHABLE),
                Family::V6 => reject(list, REJECT_UNREACHABLE, ICMP6_PORT_UNREACHABLE),
            },
            Self::HostUnreachable => match family {
                Family::V4 => reject(list, REJECT_UNREACHABLE, ICMP_HOST_UNREACHABLE),
                Family::V6 => reject(list, REJECT_UNREACHABLE, ICMP6_ADDRESS_UNREACHABLE),
            },
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

/// Loads fields of the packet into registers one after the other; the first behind them.
fn load_all(list: &mut Attributes<'_>, family: Family, first: u32, fields: &[Field]) -> u32 {
    fields.iter().fold(first, |register, field| {
        load(list, family, register, *field);
        register + field.len(family).div_ceil(4)
    })
}

fn load(list: &mut Attributes<'_>, family: Family, register: u32, field: Field) {
    let address = |list: &mut Attributes<'_>, offset| {
        payload(list, register, PAYLOAD_NETWORK, offset, field.len(family));
    };
    match (field, family) {
        (Field::Source, Family::V4) => address(list, 12),
        (Field::Destination, Family::V4) => address(list, 16),
        (Field::Source, Family::V6) => address(list, 8),
        (Field::Destination, Family::V6) => address(list, 24),
        (Field::SourceMac, _) => payload(list, register, PAYLOAD_LINK, SOURCE_MAC_OFFSET, 6),
        (Field::Protocol, _) => expression(list, "meta", |a| {
            a.net32(2, META_L4PROTO).net32(1, register);
        }),
        (Field::Number, _) => debug_assert!(false, "numbers are not in packets"),
        (Field::DestinationPort, _) => {
            payload(list, register, PAYLOAD_TRANSPORT, PORT_OFFSET, 2);
        }
    }
}

/// Keeps only some bits of the first register and those that follow it.
fn mask(list: &mut Attributes<'_>, mask: &[u8]) {
    let len = u32::try_from(mask.len()).expect("a mask is an address at most");
    expression(list, "bitwise", |a| {
        a.net32(1, R0).net32(2, R0).net32(3, len);
        a.nested(4, |a| {
            a.bytes(DATA_VALUE, mask);
        });
        a.nested(5, |a| {
            a.bytes(DATA_VALUE, &[0; 16][..mask.len()]);
        });
    });
}

fn within(list: &mut Attributes<'_>, family: Family, field: Field, op: u32, network: Subnet) {
    let (address, len) = crate::subnet_of(network);
    load(list, family, R0, field);
    mask(list, &prefix_mask(family, len));
    compare(list, R0, op, &octets(&address));
}

/// What the client connected to, compared with a network.
fn originally(list: &mut Attributes<'_>, family: Family, op: u32, network: Subnet) {
    let (address, len) = crate::subnet_of(network);
    let key = match family {
        Family::V4 => CT_DST_IP,
        Family::V6 => CT_DST_IP6,
    };
    expression(list, "ct", |a| {
        a.net32(1, R0).net32(2, key).bytes(3, &[CT_ORIGINAL]);
    });
    mask(list, &prefix_mask(family, len));
    compare(list, R0, op, &octets(&address));
}

fn prefix_mask(family: Family, len: u8) -> Vec<u8> {
    let full = match family {
        Family::V4 => IpAddr::V4(std::net::Ipv4Addr::BROADCAST),
        Family::V6 => IpAddr::V6(std::net::Ipv6Addr::from_bits(u128::MAX)),
    };
    octets(&crate::subnet_of((full, len)).0)
}

fn set_mark(list: &mut Attributes<'_>, register: u32) {
    expression(list, "meta", |a| {
        a.net32(2, META_MARK).net32(3, register);
    });
}

fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// True if any of `bits` is set.
fn tracked(list: &mut Attributes<'_>, key: u32, bits: u32) {
    expression(list, "ct", |a| {
        a.net32(1, R0).net32(2, key);
    });
    mask(list, &bits.to_ne_bytes());
    compare(list, R0, CMP_NEQ, &[0; 4]);
}

fn fib(list: &mut Attributes<'_>, result: u32, flags: u32) {
    expression(list, "fib", |a| {
        a.net32(1, R0).net32(2, result).net32(3, flags);
    });
}

/// A map's verdict, or nothing but whether the key is there, or is not.
fn look_up(list: &mut Attributes<'_>, set: Set, first: u32, inverted: bool) {
    expression(list, "lookup", |a| {
        a.text(1, set.name()).net32(2, first);
        if set.value() == Holds::Verdict {
            a.net32(3, VERDICT_REGISTER);
        }
        if inverted {
            a.net32(5, LOOKUP_INVERTED);
        }
    });
}

/// What a map has for a key, into registers from `to` on.
fn look_up_data(list: &mut Attributes<'_>, map: Set, first: u32, to: u32) {
    expression(list, "lookup", |a| {
        a.text(1, map.name()).net32(2, first).net32(3, to);
    });
}

/// To the backend whose turn it is: its id and turn are loaded.
fn to_chosen(list: &mut Attributes<'_>, family: Family, front: Front) {
    look_up_data(list, Set::Backends, ID, CHOSEN);
    let port = match front {
        Front::Port | Front::Published => Some(TARGET),
        Front::Address => None,
    };
    nat(list, family, NAT_DNAT, CHOSEN, port);
}

/// As `tcp option maxseg size set rt mtu` of `nft`.
fn clamp(list: &mut Attributes<'_>) {
    expression(list, "rt", |a| {
        a.net32(1, R0).net32(2, RT_TCP_MSS);
    });
    expression(list, "byteorder", |a| {
        a.net32(1, R0).net32(2, R0).net32(3, BYTEORDER_HTON).net32(4, 2).net32(5, 2);
    });
    expression(list, "exthdr", |a| {
        // Two bytes behind the option's kind and length; the register to write from.
        a.net32(7, R0).bytes(2, &[TCP_OPTION_MSS]).net32(3, 2).net32(4, 2);
        a.net32(6, EXTHDR_TCP_OPTION);
    });
}

fn nat(list: &mut Attributes<'_>, family: Family, kind: u32, address: u32, port: Option<u32>) {
    let number = match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    };
    expression(list, "nat", |a| {
        a.net32(1, kind).net32(2, number).net32(3, address).net32(4, address);
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
