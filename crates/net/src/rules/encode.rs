//! Operations as one nf_tables netlink batch.
//!
//! Pure. Every message of a batch knows the operation that it came from, so that a
//! refusal can be told in our words.

use std::net::{IpAddr, Ipv4Addr};

use crate::netlink::{Attributes, Messages, attribute, attributes_in, flag, text};
use crate::rules::expression::{
    ANONYMOUS, BACKEND_TYPE, INTEGER_TYPE, VERDICT_TYPE, concatenated, write_verdict,
};
use crate::rules::{Element, Family, Holds, Hook, Op, Part, Port, Set, Value, Verdict, refusal};

const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
pub(crate) const GET_TABLE: u16 = SUBSYSTEM | 1;
pub(crate) const DELETE_TABLE: u16 = SUBSYSTEM | 2;
pub(crate) const NEW_CHAIN: u16 = SUBSYSTEM | 3;
pub(crate) const GET_CHAIN: u16 = SUBSYSTEM | 4;
const DELETE_CHAIN: u16 = SUBSYSTEM | 5;
pub(crate) const NEW_RULE: u16 = SUBSYSTEM | 6;
pub(crate) const DELETE_RULE: u16 = SUBSYSTEM | 8;
const NEW_SET: u16 = SUBSYSTEM | 9;
const NEW_ELEMENTS: u16 = SUBSYSTEM | 12;
const GET_ELEMENTS: u16 = SUBSYSTEM | 13;
const DELETE_ELEMENTS: u16 = SUBSYSTEM | 14;
pub(crate) const GET_RULE: u16 = SUBSYSTEM | 7;
/// The end of what one transaction changed, to those who watch.
pub(crate) const NEW_GENERATION: u16 = SUBSYSTEM | 15;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

/// `struct nfgenmsg`
pub(crate) fn header(family: Family) -> [u8; 4] {
    match family {
        Family::V4 => [2, 0, 0, 0],
        Family::V6 => [10, 0, 0, 0],
    }
}
/// Of the batch's frame: the resource is the subsystem.
const FRAME: [u8; 4] = [0, 0, 0, 10];

const SET_ANONYMOUS: u32 = 0x1;
const SET_CONSTANT: u32 = 0x2;
const SET_MAP: u32 = 0x8;
const SET_DYNAMIC: u32 = 0x20;
/// Elements that rules may add to one set.
const DYNAMIC_MAX: u32 = 1 << 20;
/// Backends of one message: at most 64 KiB in an attribute, 40 bytes an element.
const BACKENDS_MAX: usize = 1024;

/// Our table's name.
pub(crate) fn table_name(node_key: &str) -> String {
    format!("warren-{node_key}")
}

/// One atomic transaction.
pub(crate) struct Batch {
    pub(crate) messages: Messages,
    /// For each message the operation it belongs to, counted through; none for the frame.
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

/// Around the messages of one transaction.
pub(crate) fn framed(push: impl FnOnce(&mut Messages)) -> Messages {
    let mut messages = Messages::default();
    messages.push(BATCH_BEGIN, 0, &FRAME, |_| {});
    push(&mut messages);
    messages.push(BATCH_END, 0, &FRAME, |_| {});
    messages
}

/// Operations of several families' tables of one name, as one batch.
pub(crate) fn encode(table: &str, ops: &[(Family, Vec<Op>)]) -> Batch {
    let mut batch = Batch { messages: Messages::default(), operations: Vec::new() };
    batch.messages.push(BATCH_BEGIN, 0, &FRAME, |_| {});
    batch.operations.push(None);
    let ops = ops.iter().flat_map(|(family, ops)| ops.iter().map(|op| (*family, op)));
    for (index, (family, op)) in ops.enumerate() {
        push(&mut batch.messages, table, family, op);
        batch.operations.resize(batch.messages.len(), Some(index));
    }
    batch.messages.push(BATCH_END, 0, &FRAME, |_| {});
    batch.operations.push(None);
    batch
}

fn push(messages: &mut Messages, table: &str, family: Family, op: &Op) {
    let mut message = |kind, flags, body: &dyn Fn(&mut Attributes<'_>)| {
        messages.push(kind, flags, &header(family), |a| {
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
            a.text(2, chain).nested(4, |a| rule.iter().for_each(|part| part.write(a, family)));
        }),
        Op::AddSet(set) => message(NEW_SET, flag::CREATE, &|a| write_set(a, *set, family)),
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
                    .net32(4, INTEGER_TYPE)
                    .net32(5, 4)
                    .net32(6, BACKEND_TYPE)
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

/// Asks whether a set has an element.
pub(crate) fn get_element(table: &str, family: Family, set: Set, element: &Element) -> Messages {
    let mut messages = Messages::default();
    messages.push(GET_ELEMENTS, 0, &header(family), |a| {
        a.text(1, table).text(2, set.name()).nested(3, |a| write_element(a, element, None));
    });
    messages
}

/// Asks for all rules of our table.
pub(crate) fn get_rules(table: &str, family: Family) -> Messages {
    let mut messages = Messages::default();
    messages.push(GET_RULE, flag::DUMP, &header(family), |a| {
        a.text(1, table);
    });
    messages
}

/// A rule's chain and what its counter has, packets and bytes; `None` of one without.
pub(crate) fn parse_counter(kind: u16, payload: &[u8]) -> Option<(String, u64, u64)> {
    let attributes = payload.get(4..).filter(|_| kind == NEW_RULE)?;
    let chain = attribute(attributes, 2).map(text)?;
    let counter = attributes_in(attribute(attributes, 4)?).find_map(|(_, expression)| {
        let is_counter = attribute(expression, 1).map(text).is_some_and(|name| name == "counter");
        is_counter.then(|| attribute(expression, 2)).flatten()
    })?;
    let number = |kind| Some(u64::from_be_bytes(attribute(counter, kind)?.try_into().ok()?));
    Some((chain, number(2)?, number(1)?))
}

/// Asks for all elements of a set of our table.
pub(crate) fn get_elements(table: &str, family: Family, set: Set) -> Messages {
    let mut messages = Messages::default();
    messages.push(GET_ELEMENTS, flag::DUMP, &header(family), |a| {
        a.text(1, table).text(2, set.name());
    });
    messages
}

/// Elements whose key is a number, each with how often it was found.
pub(crate) fn parse_counted(kind: u16, payload: &[u8]) -> Vec<(u32, u64)> {
    let elements = payload.get(4..).filter(|_| kind == NEW_ELEMENTS);
    let elements = elements.and_then(|attributes| attribute(attributes, 3)).unwrap_or_default();
    let element = |(_, element): (u16, &[u8])| {
        let key = attribute(attribute(element, 1)?, 1)?.try_into().ok()?;
        let counter = attribute(element, 7)?;
        let packets = attribute(attribute(counter, 2)?, 2)?.try_into().ok()?;
        Some((u32::from_ne_bytes(key), u64::from_be_bytes(packets)))
    };
    attributes_in(elements).filter_map(element).collect()
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
        Hook::Tracked => (PREROUTING, -150, "filter"),
        Hook::Leaving => (POSTROUTING, -150, "filter"),
        // Behind destination translation. What the host sends is routed again if its mark changes.
        Hook::Translated => (PREROUTING, -90, "filter"),
        Hook::TranslatedOutput => (OUTPUT, -90, "route"),
        Hook::Input => (INPUT, -10, "filter"),
        Hook::Forward => (FORWARD, 0, "filter"),
    }
}

fn write_set(a: &mut Attributes<'_>, set: Set, family: Family) {
    let kinds = set.key().iter().map(|field| field.kind(family));
    let len = set.key().iter().map(|field| field.len(family)).sum();
    let flags = match set.value() {
        Holds::Nothing if set.is_dynamic() => SET_DYNAMIC,
        Holds::Nothing => 0,
        Holds::Verdict | Holds::Data(_) => SET_MAP,
    };
    a.text(2, set.name()).net32(3, flags).net32(4, concatenated(kinds)).net32(5, len);
    match set.value() {
        Holds::Nothing => {}
        Holds::Verdict => {
            a.net32(6, VERDICT_TYPE).net32(7, 0);
        }
        Holds::Data(fields) => {
            let kinds = fields.iter().map(|field| field.kind(family));
            let len = fields.iter().map(|field| field.len(family)).sum();
            a.net32(6, concatenated(kinds)).net32(7, len);
        }
    }
    if set.counts() {
        // Each element that is added has one of its own.
        a.nested(17, |a| {
            a.text(1, "counter").nested(2, |_| {});
        });
    }
    if set.is_dynamic() {
        a.nested(9, |a| {
            a.net32(1, DYNAMIC_MAX);
        });
    }
    // The kernel wants an id of every set of a batch; anonymous ones use the small numbers.
    a.net32(10, NAMED_IDS + set as u32 + FAMILY_IDS * family as u32);
}

/// Ids of named sets within a batch start here.
const NAMED_IDS: u32 = 1 << 31;
/// Those of the second family start so much later.
const FAMILY_IDS: u32 = 1 << 16;

/// With its value if it is added to a set, and without if it is deleted.
fn write_element(list: &mut Attributes<'_>, element: &Element, added_to: Option<Set>) {
    match element {
        Element::Port(port) => write_entry(list, &port_key(port), |a| {
            let chain = match added_to {
                Some(Set::Anywhere | Set::Bound) => port.to_string(),
                Some(Set::RefusedAnywhere | Set::RefusedBound) => refusal(port.protocol).to_owned(),
                _ => return,
            };
            write_verdict(a, &Verdict::Goto(chain));
        }),
        Element::Hairpin(address) => {
            let [a, b, c, d] = address.octets();
            write_entry(list, &[a, b, c, d, a, b, c, d], |_| {});
        }
        Element::Entry { key, value } => write_entry(list, &bytes_of(key), |a| match value {
            _ if added_to.is_none() => {}
            Value::Nothing => {}
            Value::Parts(parts) => {
                a.bytes(1, &bytes_of(parts));
            }
            Value::Verdict(verdict) => write_verdict(a, verdict),
        }),
    }
}

/// Each part fills whole registers.
fn bytes_of(parts: &[Part]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(parts.len() * 16);
    for part in parts {
        match part {
            Part::Address(IpAddr::V4(address)) => bytes.extend(address.octets()),
            Part::Address(IpAddr::V6(address)) => bytes.extend(address.octets()),
            Part::Number(number) => bytes.extend(number.to_ne_bytes()),
            Part::Protocol(protocol) => bytes.extend([protocol.number(), 0, 0, 0]),
            Part::Mac(mac) => bytes.extend(mac),
            Part::Port(port) => {
                let [hi, lo] = port.to_be_bytes();
                bytes.extend([hi, lo, 0, 0]);
            }
        }
    }
    bytes
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
