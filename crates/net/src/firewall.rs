//! Makes the kernel's packet filter hold what was asked: `rules` carried out.
//!
//! One thread, one table at a time: of several waiting only the last is applied,
//! since each is whole. What the kernel holds is remembered; after any doubt (a
//! restart, a refused batch) everything is replaced in one transaction. Tracked
//! connections are not part of the table: they live through each change, except
//! datagram flows to backends that are no more.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use rustix::io::Errno;

use crate::conntrack::{Conntrack, Exposed, Flow};
use crate::link::Links;
use crate::netlink::{Messages, Refused, Socket};
use crate::rules::{self, GET_TABLE, HEADER, Op, Port, Ports};
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
    /// Somebody may have removed our table.
    Check,
}

pub(crate) struct Firewall {
    config: NetConfig,
    table: String,
    socket: Socket,
    conntrack: Conntrack,
    links: Links,
    exposed: Arc<Exposed>,
    /// What the kernel holds; `None` if that is not certain.
    held: Option<Ports>,
    /// Counts changes, to begin with another backend each time.
    round: usize,
}

impl Firewall {
    /// In the calling thread's network namespace. A table left by an earlier daemon keeps
    /// working until the first `apply`; without one the base rules are set now.
    pub(crate) fn open(config: &NetConfig, exposed: Arc<Exposed>) -> Result<Self, Error> {
        let mut socket = open_socket()?;
        let table = rules::table_name(&config.node_key);
        let exists = table_exists(&mut socket, &table)?;
        let mut firewall = Self {
            config: config.clone(),
            table,
            socket,
            conntrack: Conntrack::open()?,
            links: Links::open()?,
            exposed,
            held: None,
            round: 0,
        };
        if !exists {
            firewall.apply(&Table::default())?;
        }
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
                Some(Order::Check) => {
                    if let Err(error) = self.check() {
                        tracing::error!(
                            error = &error as &dyn std::error::Error,
                            "restore the packet filter"
                        );
                    }
                }
                Some(Order::Apply { .. }) | None => {}
            }
        }
    }

    fn apply(&mut self, table: &Table) -> Result<(), Error> {
        let wanted = rules::ports(table);
        if self.held.as_ref() == Some(&wanted) {
            return Ok(());
        }
        self.round = self.round.wrapping_add(1);
        let held = self.held.take();
        let changed = match &held {
            Some(held) => match self.commit(&rules::diff(held, &wanted, self.round)) {
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
            let ops = rules::install(&self.config, &wanted, self.round);
            self.commit(&ops).map_err(|refusal| refusal.explain(&self.table))?;
        }
        // Those of ports that did not change were added when they did.
        let differs = |(port, backends): &(&Port, &BTreeSet<SocketAddrV4>)| {
            held.as_ref().is_none_or(|held| held.get(*port) != Some(*backends))
        };
        let fresh = wanted.iter().filter(differs).flat_map(|(_, backends)| backends);
        self.exposed.add(fresh.map(|backend| *backend.ip()));
        self.forget(held.as_ref(), &wanted)?;
        self.held = Some(wanted);
        Ok(())
    }

    fn clean(&mut self) -> Result<(), Error> {
        let held = self.held.take().unwrap_or_default();
        self.commit(&rules::remove()).map_err(|refusal| refusal.explain(&self.table))?;
        self.forget(Some(&held), &Ports::new())
    }

    /// Sets everything again if our table is gone.
    fn check(&mut self) -> Result<(), Error> {
        let Some(held) = &self.held else { return Ok(()) };
        if table_exists(&mut self.socket, &self.table)? {
            return Ok(());
        }
        tracing::warn!(
            table = self.table,
            "the packet filter was emptied by somebody else: setting it again"
        );
        let ops = rules::install(&self.config, held, self.round);
        self.commit(&ops).map_err(|refusal| refusal.explain(&self.table))
    }

    /// Carries out operations as one transaction.
    fn commit(&mut self, ops: &[Op]) -> Result<(), Refusal> {
        let mut batch = rules::encode(&self.table, ops);
        let last = batch.last();
        self.socket.transact_until(&mut batch.messages, last).map_err(|refused| {
            let Refused { index, source } = refused;
            let operation = batch.operation(index).and_then(|index| ops.get(index));
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
        let removed = self.conntrack.remove(only, |flow| {
            let Some(ports) = changed.get(&flow.destination_port) else { return false };
            flow.protocol == Protocol::Udp.number()
                && ports.iter().any(|port| is_stale(flow, port, wanted, pool, &local))
        })?;
        tracing::debug!(removed, "ended stale datagram flows");
        Ok(())
    }
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

/// Whether a flow to `port` goes elsewhere than a new one would.
fn is_stale(
    flow: &Flow,
    port: &Port,
    wanted: &Ports,
    pool: (Ipv4Addr, u8),
    local: &[Ipv4Addr],
) -> bool {
    if !port.bind.is_unspecified() && port.bind != flow.destination {
        return false;
    }
    let backends = wanted.get(port);
    let answers = SocketAddrV4::new(flow.answered_by, flow.answered_by_port);
    let is_backend = |backends: &BTreeSet<SocketAddrV4>| backends.contains(&answers);
    if flow.answered_by == flow.destination {
        // Not translated: begun before there was a backend, or nothing of ours at all.
        let is_local = flow.destination.is_loopback() || local.contains(&flow.destination);
        return is_local && backends.is_some_and(|backends| !backends.is_empty());
    }
    crate::in_network(flow.answered_by, pool) && !backends.is_some_and(is_backend)
}

pub(crate) fn open_socket() -> Result<Socket, Error> {
    Socket::netfilter().map_err(|source| match Errno::from_io_error(&source) {
        Some(Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT) => unsupported("netfilter netlink"),
        _ => Error::io("open a netfilter netlink socket", source),
    })
}

/// Whether the kernel holds table `name`; `Unsupported` if it holds no tables at all.
pub(crate) fn table_exists(socket: &mut Socket, name: &str) -> Result<bool, Error> {
    let mut messages = Messages::default();
    messages.push(GET_TABLE, 0, &HEADER, |a| {
        a.text(1, name);
    });
    let mut found = false;
    let answer = socket.query(&messages, |_, _| found = true);
    match answer.as_ref().err().and_then(Errno::from_io_error) {
        None => answer.map(|()| found).map_err(|e| Error::io("look up our table", e)),
        Some(Errno::NOENT) => Ok(false),
        // The subsystem is not there, or does not know the family.
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
