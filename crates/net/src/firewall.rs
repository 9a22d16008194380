//! Makes the kernel's packet filter hold what was asked: `rules` carried out.
//!
//! One thread, one table at a time: of several waiting only the last is applied,
//! since each is whole. What the kernel holds is remembered; after any doubt (a
//! restart, a refused batch) everything is replaced in one transaction. Tracked
//! connections are not part of the table: they live through each change, except
//! datagram flows to backends that are no more, what policies deny now, and what
//! is answered from an address that somebody else has now.

mod connections;
mod gone;
mod owners;
mod policies;
mod stale;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use rustix::io::Errno;

use self::stale::is_stale;
use crate::conntrack::{Conntrack, Exposed};
use crate::docker::Opening;
use crate::link::Links;
use crate::netlink::{Messages, Refused, Socket};
use crate::rules::{self, Counted, Counter, Family, GET_TABLE, Op, Port, Ports, Rules, header};
use crate::table::{Connections, Count};
use crate::wire::Reply;
use crate::{Error, NetConfig, Protocol, Table};

pub(crate) enum Order {
    Apply {
        table: Table,
        reply: Reply<()>,
    },
    Clean {
        reply: Reply<()>,
    },
    /// Somebody may have removed our table, or has changed it.
    Check {
        changed: bool,
    },
    Count {
        reply: Reply<Vec<Count>>,
    },
    Connections {
        reply: Reply<Vec<Connections>>,
    },
    /// Docker's firewall appeared, or lost a rule.
    Open,
    /// Containers are gone: nothing is to be left of their addresses.
    Forget,
}

/// The tables of the families that have one.
type Both = [Option<Rules>; 2];

pub(crate) struct Firewall {
    config: NetConfig,
    table: String,
    socket: Socket,
    conntrack: Conntrack,
    links: Links,
    exposed: Arc<Exposed>,
    /// In Docker's, unless everything is to be gone.
    opening: Opening,
    is_clean: bool,
    /// What the kernel holds of each family; `None` if that is not certain.
    held: Option<Both>,
    /// Counts changes, to begin with another backend each time.
    round: usize,
    /// What policies counted in chains that are no more.
    carried: Counts,
    /// What services counted in tables that are no more, by their keys.
    carried_led: Led,
}

/// Connections by services' keys.
type Led = BTreeMap<Box<str>, u64>;

/// By clauses' names and actions.
type Counts = BTreeMap<Counted, Counter>;

impl Firewall {
    /// In the calling thread's network namespace. A table left by an earlier daemon keeps
    /// working until the first `apply`; without one the base rules are set now.
    pub(crate) fn open(config: &NetConfig, exposed: Arc<Exposed>) -> Result<Self, Error> {
        let mut socket = open_socket()?;
        let table = rules::table_name(&config.node_key);
        let exists = table_exists(&mut socket, &table, Family::V4)?;
        let mut firewall = Self {
            config: config.clone(),
            table,
            socket,
            conntrack: Conntrack::open()?,
            links: Links::open()?,
            exposed,
            opening: Opening::new(&config.node_key),
            is_clean: false,
            held: None,
            round: 0,
            carried: Counts::new(),
            carried_led: Led::new(),
        };
        if !exists {
            firewall.apply(&Table::default())?;
        }
        firewall.open_docker();
        Ok(firewall)
    }

    pub(crate) fn run(mut self, orders: &Receiver<Order>) {
        while let Ok(order) = orders.recv() {
            let mut waiting = Vec::new();
            let mut last = None;
            let mut next = Some(order);
            while let Some(Order::Apply { table, reply }) = next {
                waiting.push(reply);
                last = Some(table);
                next = orders.try_recv().ok();
            }
            if let Some(table) = last {
                let result = self.apply(&table);
                for reply in waiting {
                    // A caller that went away does not need the answer.
                    let _ = reply.send(result.as_ref().map_err(Error::again).copied());
                }
            }
            match next {
                Some(Order::Clean { reply }) => {
                    let _ = reply.send(self.clean());
                }
                Some(Order::Count { reply }) => {
                    let _ = reply.send(self.counts());
                }
                Some(Order::Check { changed }) => {
                    if let Err(error) = self.check(changed) {
                        tracing::error!(
                            error = &error as &dyn std::error::Error,
                            "restore the packet filter"
                        );
                    }
                }
                Some(Order::Connections { reply }) => {
                    let _ = reply.send(self.connections());
                }
                Some(Order::Open) => self.open_docker(),
                Some(Order::Forget) => {
                    if let Err(error) = self.forget_gone() {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "forget containers that are gone"
                        );
                    }
                }
                Some(Order::Apply { .. }) | None => {}
            }
        }
    }

    fn apply(&mut self, table: &Table) -> Result<(), Error> {
        let of = |family, held: Option<&Rules>| Rules::new(&self.config, table, family, held);
        let mut wanted = match &self.held {
            Some([v4, v6]) => [of(Family::V4, v4.as_ref()), of(Family::V6, v6.as_ref())],
            None => [of(Family::V4, None), of(Family::V6, None)],
        };
        if self.held.as_ref() == Some(&wanted) {
            return Ok(());
        }
        self.round = self.round.wrapping_add(1);
        let held = self.held.take();
        let changed = match &held {
            Some(held) => match self.change(held, &mut wanted) {
                Ok(()) => true,
                Err(Refusal { operation, source }) => {
                    // Somebody else emptied the rule set, most likely (`nft flush ruleset`).
                    tracing::warn!(operation, %source, "packet filter is not as it was set: replacing all of it");
                    false
                }
            },
            None => false,
        };
        if !changed {
            self.install(&mut wanted)?;
        }
        let (before, after) = (published(held.as_ref()), published(Some(&wanted)));
        // Those of ports that did not change were added when they did.
        let differs = |(port, backends): &(&Port, &BTreeSet<SocketAddrV4>)| {
            before.is_none_or(|before| before.get(*port) != Some(*backends))
        };
        let none = Ports::new();
        let after = after.unwrap_or(&none);
        let fresh = after.iter().filter(differs).flat_map(|(_, backends)| backends);
        self.exposed.add(fresh.map(|backend| (*backend.ip()).into()));
        self.forget(before, after)?;
        self.part(held.as_ref(), &wanted)?;
        if held.is_none() && table.networks.is_some() {
            self.disown(table, &wanted)?;
        }
        self.judge(held.as_ref(), &wanted)?;
        self.held = Some(wanted);
        if std::mem::take(&mut self.is_clean) {
            self.open_docker();
        }
        Ok(())
    }

    /// From what is held to what is wanted; counts of chains that go are kept.
    fn change(&mut self, held: &Both, wanted: &mut Both) -> Result<(), Refusal> {
        let ops = changes(Some(held), wanted, self.round);
        for ((family, ops), held) in ops.iter().zip(held) {
            let Some(held) = held else { continue };
            let cleared = |op: &Op| match op {
                Op::ClearChain { name } => rules::is_policy_chain(name).then(|| name.clone()),
                _ => None,
            };
            let whole = ops.contains(&Op::DeleteTable);
            let cleared: BTreeSet<String> = ops.iter().filter_map(cleared).collect();
            if whole {
                self.carry_led(*family, held);
            }
            if whole || !cleared.is_empty() {
                self.carry(*family, held, |chain| whole || cleared.contains(chain));
            }
        }
        self.commit(&ops)?;
        // Nobody asks for those of policies that are gone.
        let rules = || wanted.iter().flatten();
        let names: BTreeSet<&str> = rules().flat_map(|rules| rules.counted_names()).collect();
        self.carried.retain(|(name, _), _| name.is_empty() || names.contains(&**name));
        if !self.carried_led.is_empty() {
            let services = rules().flat_map(|rules| rules.services.list.iter());
            let keys: BTreeSet<&str> = services.map(|service| &*service.entry.key).collect();
            self.carried_led.retain(|key, _| keys.contains(&**key));
        }
        Ok(())
    }

    /// Replaces everything, whatever is there.
    fn install(&mut self, wanted: &mut Both) -> Result<(), Error> {
        let mut ops = changes(None, wanted, self.round);
        for ((family, ops), wanted) in ops.iter_mut().zip(&*wanted) {
            // An earlier daemon may have had a table that is not wanted any more.
            if wanted.is_none() && table_exists(&mut self.socket, &self.table, *family)? {
                *ops = rules::remove();
            }
        }
        self.commit(&ops).map_err(|refusal| refusal.explain(&self.table))?;
        // What the rules remembered is gone with them; the connections are not.
        for (family, wanted) in Family::ALL.into_iter().zip(wanted) {
            if wanted.is_some() {
                let answering = self.conntrack.answering(family)?;
                let of = |(number, address): (u8, IpAddr)| {
                    let known = [Protocol::Tcp, Protocol::Udp];
                    let protocol = known.into_iter().find(|p| p.number() == number)?;
                    Some((protocol, address))
                };
                let ops = rules::remember_served(answering.into_iter().filter_map(of));
                self.commit(&[(family, ops)]).map_err(|refusal| refusal.explain(&self.table))?;
            }
        }
        Ok(())
    }

    /// `doctor` tells what is in the way without it.
    fn open_docker(&mut self) {
        if self.is_clean {
            return;
        }
        if let Err(error) = self.opening.make(&mut self.socket) {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "Docker's firewall drops what containers send and are sent"
            );
        }
    }

    fn clean(&mut self) -> Result<(), Error> {
        let held = self.held.take();
        self.is_clean = true;
        self.opening.close(&mut self.socket)?;
        self.install(&mut [None, None])?;
        self.forget(published(held.as_ref()), &Ports::new())
    }

    /// Sets everything again if our table is gone, or is not as it was set.
    fn check(&mut self, changed: bool) -> Result<(), Error> {
        let Some(mut held) = self.held.clone() else { return Ok(()) };
        let mut exist = !changed;
        for (family, held) in Family::ALL.into_iter().zip(&held) {
            exist =
                exist && (held.is_none() || table_exists(&mut self.socket, &self.table, family)?);
        }
        if exist {
            return Ok(());
        }
        tracing::warn!(
            table = self.table,
            "the packet filter was changed by somebody else: setting it again"
        );
        self.held = None;
        for (family, held) in Family::ALL.into_iter().zip(&held) {
            held.iter().for_each(|held| self.carry(family, held, |_| true));
        }
        self.install(&mut held)?;
        self.held = Some(held);
        Ok(())
    }

    /// Carries out operations as one transaction.
    fn commit(&mut self, ops: &[(Family, Vec<Op>)]) -> Result<(), Refusal> {
        if ops.iter().all(|(_, ops)| ops.is_empty()) {
            return Ok(());
        }
        let mut batch = rules::encode(&self.table, ops);
        let last = batch.last();
        self.socket.transact_until(&mut batch.messages, last).map_err(|refused| {
            let Refused { index, source } = refused;
            let mut ops = ops.iter().flat_map(|(_, ops)| ops);
            let operation = batch.operation(index).and_then(|index| ops.nth(index));
            let operation = operation.map_or_else(|| "send a batch".to_owned(), Op::to_string);
            Refusal { operation, source }
        })
    }

    /// Ends datagram flows that a changed port no longer sends where they go: they would
    /// stay there for as long as their client sends.
    fn forget(&mut self, held: Option<&Ports>, wanted: &Ports) -> Result<(), Error> {
        let none = Ports::new();
        let is_changed = |port: &&Port| {
            port.protocol == Protocol::Udp && held.is_none_or(|h| h.get(*port) != wanted.get(*port))
        };
        let before = held.unwrap_or(&none);
        let mut changed: BTreeMap<u16, Vec<Port>> = BTreeMap::new();
        for port in before.keys().chain(wanted.keys()).filter(is_changed) {
            changed.entry(port.port).or_default().push(*port);
        }
        let Some((first, _)) = changed.first_key_value() else { return Ok(()) };
        let only = (changed.len() == 1).then_some((Protocol::Udp, *first));
        let local = self.links.addresses()?;
        let pool = self.config.pool;
        let removed = self.conntrack.remove(Family::V4, only, |flow| {
            let Some(ports) = changed.get(&flow.destination_port) else { return false };
            flow.protocol == Protocol::Udp.number()
                && ports.iter().any(|port| is_stale(flow, port, wanted, pool, &local))
        })?;
        tracing::debug!(removed, "ended stale datagram flows");
        Ok(())
    }
}

/// From what is held to what is wanted, of both families.
fn changes(held: Option<&Both>, wanted: &mut Both, round: usize) -> Vec<(Family, Vec<Op>)> {
    let none = [None, None];
    let held = held.unwrap_or(&none);
    let change = |(family, (held, wanted)): (Family, (&Option<Rules>, &mut Option<Rules>))| {
        let ops = match (held, wanted) {
            (Some(held), Some(wanted)) => rules::diff(held, wanted, round),
            (None, Some(wanted)) => rules::install(wanted, round),
            (Some(_), None) => rules::remove(),
            (None, None) => Vec::new(),
        };
        (family, ops)
    };
    Family::ALL.into_iter().zip(held.iter().zip(wanted)).map(change).collect()
}

/// What is published, of the family that has it.
fn published(rules: Option<&Both>) -> Option<&Ports> {
    rules.and_then(|[v4, _]| v4.as_ref()).map(|rules| &rules.ports)
}

/// The kernel did not take a batch.
struct Refusal {
    operation: String,
    source: io::Error,
}

impl Refusal {
    fn explain(self, table: &str) -> Error {
        let Self { operation, source } = self;
        match Errno::from_io_error(&source) {
            // A batch refers to nothing that it does not make: it is the kernel that lacks a part.
            Some(Errno::NOENT | Errno::OPNOTSUPP | Errno::PROTONOSUPPORT) => Error::Unsupported(
                format!("the kernel's nf_tables lacks a part that is needed for: {operation}"),
            ),
            _ => Error::io(format!("{operation} (table {table})"), source),
        }
    }
}

pub(crate) fn open_socket() -> Result<Socket, Error> {
    Socket::netfilter().map_err(|source| match Errno::from_io_error(&source) {
        Some(Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT) => unsupported("netfilter netlink"),
        _ => Error::io("open a netfilter netlink socket", source),
    })
}

/// Whether the kernel holds table `name`; `Unsupported` if it holds no tables at all.
pub(crate) fn table_exists(socket: &mut Socket, name: &str, family: Family) -> Result<bool, Error> {
    let mut messages = Messages::default();
    messages.push(GET_TABLE, 0, &header(family), |a| {
        a.text(1, name);
    });
    let mut found = false;
    let answer = socket.query(&messages, |_, _| found = true);
    match answer.as_ref().err().and_then(Errno::from_io_error) {
        None => answer.map(|()| found).map_err(|e| Error::io("look up our table", e)),
        Some(Errno::NOENT) => Ok(false),
        // The subsystem is not there, or does not know the family. Nobody needs IPv6 unless it is asked for.
        Some(Errno::INVAL | Errno::OPNOTSUPP | Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT)
            if family == Family::V6 =>
        {
            Ok(false)
        }
        Some(Errno::INVAL | Errno::OPNOTSUPP | Errno::PROTONOSUPPORT) => {
            Err(unsupported("nf_tables"))
        }
        Some(errno) => Err(Error::io(format!("look up table {name}"), errno.into())),
    }
}

fn unsupported(what: &str) -> Error {
    Error::Unsupported(format!(
        "the kernel has no {what} (CONFIG_NF_TABLES and CONFIG_NF_TABLES_IPV4, module nf_tables): ports cannot be published"
    ))
}
