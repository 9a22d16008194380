//! Operations as one nf_tables netlink batch.
//!
//! Pure. Every message of a batch knows the operation that it came from, so that a
//! refusal can be told in our words.

use std::net::Ipv4Addr;

use crate::netlink::{Attributes, Messages, flag};
use crate::rules::expression::{ANONYMOUS, write_verdict};
use crate::rules::{Element, Hook, Op, Port, Set, Type, Verdict, refusal};

const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
pub(crate) const GET_TABLE: u16 = SUBSYSTEM | 1;
pub(crate) const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const DELETE_CHAIN: u16 = SUBSYSTEM | 5;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const DELETE_RULE: u16 = SUBSYSTEM | 8;
const NEW_SET: u16 = SUBSYSTEM | 9;
const NEW_ELEMENTS: u16 = SUBSYSTEM | 12;
const DELETE_ELEMENTS: u16 = SUBSYSTEM | 14;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

/// `struct nfgenmsg` of family ip.
pub(crate) const HEADER: [u8; 4] = [2, 0, 0, 0];
/// Of the batch's frame: the resource is the subsystem.
const FRAME: [u8; 4] = [0, 0, 0, 10];

const SET_ANONYMOUS: u32 = 0x1;
const SET_CONSTANT: u32 = 0x2;
const SET_MAP: u32 = 0x8;
/// Backends of one message: at most 64 KiB in an attribute, 40 bytes an element.
const BACKENDS_MAX: usize = 1024;

/// Our table's name.
pub(crate) fn table_name(node_key: &str) -> String {
    format!("warren-{node_key}")
}

/// One atomic transaction.
pub(crate) struct Batch {
    pub(crate) messages: Messages,
    /// For each message the operation it belongs to; none for the frame.
    operations: Vec<Option<usize>>,
}

impl Batch {
    /// Position of the last message that the kernel acknowledges on every version.
    pub(crate) fn last(&self) -> usize {
        self.operations.len().saturating_sub(2)
    }

    /// Which operation the message at `index` is part of.
    pub(crate) fn operation(&self, index: usize) -> Option<usize> {
        self.operations.get(index).copied().flatten()
    }
}

pub(crate) fn encode(table: &str, ops: &[Op]) -> Batch {
    let mut batch = Batch { messages: Messages::default(), operations: Vec::new() };
    batch.messages.push(BATCH_BEGIN, 0, &FRAME, |_| {});
    batch.operations.push(None);
    for (index, op) in ops.iter().enumerate() {
        push(&mut batch.messages, table, op);
        batch.operations.resize(batch.messages.len(), Some(index));
    }
    batch.messages.push(BATCH_END, 0, &FRAME, |_| {});
    batch.operations.push(None);
    batch
}

fn push(messages: &mut Messages, table: &str, op: &Op) {
    let mut message = |kind, flags, body: &dyn Fn(&mut Attributes<'_>)| {
        messages.push(kind, flags, &HEADER, |a| {
            a.text(1, table);
            body(a);
        });
    };
    match op {
        Op::AddTable => message(NEW_TABLE, flag::CREATE, &|_| {}),
        Op::DeleteTable => message(DELETE_TABLE, 0, &|_| {}),
        Op::AddChain { name, hook } => message(NEW_CHAIN, flag::CREATE, &|a| {
            a.text(3, name);
            if let Some(hook) = hook {
                let (number, priority, kind) = position(*hook);
                a.nested(4, |a| {
                    a.net32(1, number).bytes(2, &priority.to_be_bytes());
                });
                a.text(7, kind);
            }
        }),
        Op::DeleteChain { name } => message(DELETE_CHAIN, 0, &|a| {
            a.text(3, name);
        }),
        Op::ClearChain { name } => message(DELETE_RULE, 0, &|a| {
            a.text(2, name);
        }),
        Op::AddRule { chain, rule } => message(NEW_RULE, flag::CREATE | flag::APPEND, &|a| {
            a.text(2, chain).nested(4, |a| rule.iter().for_each(|part| part.write(a)));
        }),
        Op::AddSet(set) => message(NEW_SET, flag::CREATE, &|a| write_set(a, *set)),
        Op::AddElements { set, elements } => message(NEW_ELEMENTS, flag::CREATE, &|a| {
            a.text(2, set.name()).nested(3, |a| {
                elements.iter().for_each(|element| write_element(a, element, Some(*set)));
            });
        }),
        Op::DeleteElements { set, elements } => message(DELETE_ELEMENTS, 0, &|a| {
            a.text(2, set.name()).nested(3, |a| {
                elements.iter().for_each(|element| write_element(a, element, None));
            });
        }),
        Op::AddBackends { id, backends } => {
            let count = u32::try_from(backends.len()).expect("a table fits memory");
            message(NEW_SET, flag::CREATE, &|a| {
                a.text(2, ANONYMOUS)
                    .net32(3, SET_ANONYMOUS | SET_CONSTANT | SET_MAP)
                    .net32(4, Type::INTEGER.0)
                    .net32(5, 4)
                    .net32(6, Type::ADDRESS_PORT.0)
                    .net32(7, 8)
                    .nested(9, |a| {
                        a.net32(1, count);
                    })
                    .net32(10, *id);
            });
            let mut number = 0u32;
            for backends in backends.chunks(BACKENDS_MAX) {
                let first = number;
                message(NEW_ELEMENTS, flag::CREATE, &|a| {
                    a.text(2, ANONYMOUS).net32(4, *id).nested(3, |a| {
                        for (number, backend) in (first..).zip(backends) {
                            write_entry(a, &number.to_ne_bytes(), |a| {
                                let [hi, lo] = backend.port().to_be_bytes();
                                let [a0, a1, a2, a3] = backend.ip().octets();
                                a.bytes(1, &[a0, a1, a2, a3, hi, lo, 0, 0]);
                            });
                        }
                    });
                });
                number += u32::try_from(backends.len()).expect("it is at most BACKENDS_MAX");
            }
        }
    }
}

/// Hook, priority and type of a base chain.
fn position(hook: Hook) -> (u32, i32, &'static str) {
    const PREROUTING: u32 = 0;
    const FORWARD: u32 = 2;
    const INPUT: u32 = 1;
    const OUTPUT: u32 = 3;
    const POSTROUTING: u32 = 4;
    match hook {
        // Before connection tracking: replies still carry the gateway's address here.
        Hook::RawPrerouting => (PREROUTING, -300, "filter"),
        Hook::NatPrerouting => (PREROUTING, -100, "nat"),
        Hook::NatOutput => (OUTPUT, -100, "nat"),
        Hook::NatPostrouting => (POSTROUTING, 100, "nat"),
        // Before other firewalls: what is published is not theirs to be silent about.
        Hook::Input => (INPUT, -10, "filter"),
        Hook::Forward => (FORWARD, 0, "filter"),
    }
}

fn write_set(a: &mut Attributes<'_>, set: Set) {
    let (flags, key, len) = match set {
        Set::Anywhere | Set::RefusedAnywhere => (SET_MAP, Type::PROTOCOL_PORT, 8),
        Set::Bound | Set::RefusedBound => (SET_MAP, Type::PROTOCOL_ADDRESS_PORT, 12),
        Set::Hairpin => (0, Type::ADDRESS_ADDRESS, 8),
    };
    a.text(2, set.name()).net32(3, flags).net32(4, key.0).net32(5, len);
    if flags & SET_MAP != 0 {
        a.net32(6, Type::VERDICT.0).net32(7, 0);
    }
    // The kernel wants an id of every set of a batch; anonymous ones use the small numbers.
    a.net32(10, NAMED_IDS + set as u32);
}

/// Ids of named sets within a batch start here.
const NAMED_IDS: u32 = 1 << 31;

/// With its value if it is added to a set, and without if it is deleted.
fn write_element(list: &mut Attributes<'_>, element: &Element, added_to: Option<Set>) {
    match element {
        Element::Port(port) => write_entry(list, &port_key(port), |a| {
            let chain = match added_to {
                Some(Set::Anywhere | Set::Bound) => port.to_string(),
                Some(Set::RefusedAnywhere | Set::RefusedBound) => refusal(port.protocol).to_owned(),
                Some(Set::Hairpin) | None => return,
            };
            write_verdict(a, &Verdict::Goto(chain));
        }),
        Element::Hairpin(address) => {
            let [a, b, c, d] = address.octets();
            write_entry(list, &[a, b, c, d, a, b, c, d], |_| {});
        }
    }
}

/// Key and value of an element; no value attribute if `value` writes nothing.
fn write_entry(list: &mut Attributes<'_>, key: &[u8], value: impl FnOnce(&mut Attributes<'_>)) {
    list.nested(1, |a| {
        a.nested(1, |a| {
            a.bytes(1, key);
        });
        a.nested_unless_empty(2, value);
    });
}

/// Each part of a key fills its own four bytes.
fn port_key(port: &Port) -> Vec<u8> {
    let [hi, lo] = port.port.to_be_bytes();
    let mut key = vec![port.protocol.number(), 0, 0, 0];
    if port.bind != Ipv4Addr::UNSPECIFIED {
        key.extend(port.bind.octets());
    }
    key.extend([hi, lo, 0, 0]);
    key
}
