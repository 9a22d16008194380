//! An opening for this node's containers in Docker's firewall.
//!
//! Docker drops what is forwarded and not its own (the policy of iptables' chain FORWARD), and an
//! accept in our table does not override a drop in another. It leaves one chain to the people of
//! the machine, `DOCKER-USER`, and never empties it: there our rules are, written as `iptables`
//! writes them, each with a comment that says whose they are. What passes by them is still held to
//! our own table.
//!
//! They come behind what people wrote there, and before the chain's plain `RETURN`. They are added
//! whenever the chain appears, put back when somebody removes them, and removed with the node's
//! network. Without the chain nothing is done, nor with iptables-legacy, whose tables no netlink
//! shows (`features` finds it).

use std::io;

use crate::Error;
use crate::container_prefix;
use crate::netlink::{Attributes, Messages, Socket, attribute, attributes_in, flag, text};
use crate::node::tunnel_name;
use crate::overlay::device_name;
use crate::rules::{
    DELETE_RULE, Expression, Family, GET_CHAIN, GET_RULE, NEW_CHAIN, NEW_RULE, Verdict, framed,
    header,
};

const TABLE: &str = "filter";
const CHAIN: &str = "DOCKER-USER";
/// What comments of ours begin with.
const OURS: &str = "warren node ";

// linux/netfilter/nf_tables.h
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_POSITION: u16 = 6;
const RULE_USERDATA: u16 = 7;
const CHAIN_NAME: u16 = 3;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const IMMEDIATE_DATA: u16 = 2;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const RETURN: i32 = -5;
/// How `nft` and `iptables` write a comment: this kind, its length, its text with a zero.
const USERDATA_COMMENT: u8 = 0;

/// A rule of the chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Found {
    handle: u64,
    comment: String,
    /// It ends the chain for everything.
    returns: bool,
}

/// What is to be done to the chain.
#[derive(Debug, Default, PartialEq, Eq)]
struct Change {
    removed: Vec<u64>,
    /// Rules of ours are to be added, before the rule of this handle or at the end.
    added: Option<Option<u64>>,
}

/// The rules of one node.
#[derive(Debug)]
pub(crate) struct Opening {
    comment: String,
    rules: Vec<Vec<Expression>>,
}

impl Opening {
    pub(crate) fn new(node_key: &str) -> Self {
        let links =
            [container_prefix(node_key), device_name(node_key), tunnel_name(node_key)].into_iter();
        let rule = |link| vec![link, Expression::Count, Expression::Verdict(Verdict::Accept)];
        let both = |link: String| [Expression::FromLink(link.clone()), Expression::ToLink(link)];
        Self {
            comment: format!("{OURS}{node_key}"),
            rules: links.flat_map(both).map(rule).collect(),
        }
    }

    /// Makes the opening where the chain is, unless it is there.
    pub(crate) fn make(&self, socket: &mut Socket) -> Result<(), Error> {
        self.change(socket, "open Docker's firewall for containers", |found| self.missing(found))
    }

    /// Takes it away.
    pub(crate) fn close(&self, socket: &mut Socket) -> Result<(), Error> {
        self.change(socket, "take our rules out of Docker's firewall", |found| {
            let ours = found.iter().filter(|rule| rule.comment == self.comment);
            Change { removed: ours.map(|rule| rule.handle).collect(), added: None }
        })
    }

    fn change(
        &self,
        socket: &mut Socket,
        what: &str,
        decide: impl Fn(&[Found]) -> Change,
    ) -> Result<(), Error> {
        let mut messages = framed(|messages| {
            for family in Family::ALL {
                let Some(found) = rules_of(socket, family) else { continue };
                self.push(messages, family, &decide(&found));
            }
        });
        // The frame alone is two.
        let last = messages.len().saturating_sub(2);
        if last == 0 {
            return Ok(());
        }
        let sent = socket.transact_until(&mut messages, last);
        sent.map_err(|refused| Error::io(what, refused.source))
    }

    fn missing(&self, found: &[Found]) -> Change {
        let ours = found.iter().filter(|rule| rule.comment == self.comment);
        let returning = found.iter().position(|rule| rule.returns);
        let behind = found.iter().rposition(|rule| rule.comment == self.comment);
        let is_reached = returning.is_none_or(|at| behind.is_some_and(|last| last < at));
        if ours.clone().count() == self.rules.len() && is_reached {
            return Change::default();
        }
        Change {
            removed: ours.map(|rule| rule.handle).collect(),
            added: Some(returning.map(|at| found[at].handle)),
        }
    }

    fn push(&self, messages: &mut Messages, family: Family, change: &Change) {
        let place = |a: &mut Attributes<'_>| {
            a.text(RULE_TABLE, TABLE).text(RULE_CHAIN, CHAIN);
        };
        for handle in &change.removed {
            messages.push(DELETE_RULE, 0, &header(family), |a| {
                place(a);
                a.bytes(RULE_HANDLE, &handle.to_be_bytes());
            });
        }
        let Some(before) = change.added else { return };
        // Without a position: behind all; with one and without this flag: before it.
        let append = if before.is_some() { 0 } else { flag::APPEND };
        for rule in &self.rules {
            messages.push(NEW_RULE, flag::CREATE | append, &header(family), |a| {
                place(a);
                a.nested(RULE_EXPRESSIONS, |a| rule.iter().for_each(|part| part.write(a, family)));
                if let Some(handle) = before {
                    a.bytes(RULE_POSITION, &handle.to_be_bytes());
                }
                a.bytes(RULE_USERDATA, &userdata(&self.comment));
            });
        }
    }
}

/// Whether some node of ours has its opening there.
pub(crate) fn is_open(socket: &mut Socket) -> bool {
    let found = rules_of(socket, Family::V4).unwrap_or_default();
    found.iter().any(|rule| rule.comment.starts_with(OURS))
}

/// Whether a change of nf_tables is a reason to look: the chain appeared, or lost a rule.
pub(crate) fn concerns(kind: u16, attributes: &[u8]) -> bool {
    let named = |at, name: &str| attribute(attributes, at).map(text).is_some_and(|it| it == name);
    match kind {
        NEW_CHAIN => named(RULE_TABLE, TABLE) && named(CHAIN_NAME, CHAIN),
        DELETE_RULE => named(RULE_TABLE, TABLE) && named(RULE_CHAIN, CHAIN),
        _ => false,
    }
}

/// The rules of the chain in order; `None`: there is no such chain.
fn rules_of(socket: &mut Socket, family: Family) -> Option<Vec<Found>> {
    let mut request = Messages::default();
    // A dump of a chain that is not there is empty: it is asked for first.
    request.push(GET_CHAIN, 0, &header(family), |a| {
        a.text(RULE_TABLE, TABLE).text(CHAIN_NAME, CHAIN);
    });
    socket.query(&request, |_, _| {}).ok()?;
    let mut request = Messages::default();
    request.push(GET_RULE, flag::DUMP, &header(family), |a| {
        a.text(RULE_TABLE, TABLE).text(RULE_CHAIN, CHAIN);
    });
    let mut found = Vec::new();
    let listed = socket.query(&request, |kind, payload| {
        let attributes = payload.get(4..).filter(|_| kind == NEW_RULE);
        found.extend(attributes.and_then(parse));
    });
    match listed {
        Ok(()) => Some(found),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(%error, "look at Docker's firewall");
            }
            None
        }
    }
}

fn parse(attributes: &[u8]) -> Option<Found> {
    // Kernels before 4.14 do not filter by chain.
    attribute(attributes, RULE_CHAIN).map(text).filter(|chain| chain == CHAIN)?;
    let handle = attribute(attributes, RULE_HANDLE)?.try_into().ok()?;
    let comment = attribute(attributes, RULE_USERDATA).and_then(comment).unwrap_or_default();
    let expressions = attribute(attributes, RULE_EXPRESSIONS).unwrap_or_default();
    let mut returns = false;
    for (_, expression) in attributes_in(expressions) {
        match attribute(expression, EXPRESSION_NAME).map(text).as_deref() {
            Some("counter") => {}
            Some("immediate") => returns = verdict(expression) == Some(RETURN),
            // A condition.
            _ => {
                return Some(Found { handle: u64::from_be_bytes(handle), comment, returns: false });
            }
        }
    }
    Some(Found { handle: u64::from_be_bytes(handle), comment, returns })
}

fn verdict(expression: &[u8]) -> Option<i32> {
    let data = attribute(attribute(expression, EXPRESSION_DATA)?, IMMEDIATE_DATA)?;
    let code = attribute(attribute(data, DATA_VERDICT)?, VERDICT_CODE)?;
    Some(i32::from_be_bytes(code.try_into().ok()?))
}

fn userdata(comment: &str) -> Vec<u8> {
    let mut data = vec![USERDATA_COMMENT];
    // Keys of nodes have at most 64 characters.
    data.push(u8::try_from(comment.len() + 1).unwrap_or(u8::MAX));
    data.extend_from_slice(comment.as_bytes());
    data.push(0);
    data
}

fn comment(mut data: &[u8]) -> Option<String> {
    while let [kind, len, rest @ ..] = data {
        let value = rest.get(..usize::from(*len))?;
        if *kind == USERDATA_COMMENT {
            return Some(text(value));
        }
        data = &rest[usize::from(*len)..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rules by handle: `o`urs, `f`oreign, `r`eturn; prints what is removed and before which rule
    /// ours come.
    #[track_caller]
    fn check(rules: &str, expected: &str) {
        let opening = Opening::new("testnode");
        let found: Vec<Found> = (1..)
            .zip(rules.chars())
            .map(|(handle, kind)| Found {
                handle,
                comment: if kind == 'o' { opening.comment.clone() } else { String::new() },
                returns: kind == 'r',
            })
            .collect();
        let Change { removed, added } = opening.missing(&found);
        let mut shown: Vec<String> = removed.iter().map(|handle| format!("-{handle}")).collect();
        shown.extend(
            added.map(|before| before.map_or_else(|| "+end".into(), |at| format!("+{at}"))),
        );
        assert_eq!(shown.join(" "), expected, "{rules}");
    }

    #[test]
    fn where_rules_go() {
        check("", "+end");
        check("r", "+1");
        check("ffr", "+3");
        check("foooooor", "");
        check("oooooo", "");
        check("oooooof", "");
        // Some are gone; or never reached.
        check("ooor", "-1 -2 -3 +4");
        check("roooooo", "-2 -3 -4 -5 -6 -7 +1");
    }

    #[test]
    fn comments_are_read_back() {
        assert_eq!(comment(&userdata("warren node a")).as_deref(), Some("warren node a"));
        assert_eq!(comment(&[7, 1, 9, 0, 2, b'x', 0]).as_deref(), Some("x"));
        assert_eq!(comment(&[0, 9, 1]), None);
        assert_eq!(comment(&[]), None);
    }
}
