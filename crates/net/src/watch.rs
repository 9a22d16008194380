//! Watches for changes of what is ours by somebody else: `nft flush ruleset`, a restart of
//! the `nftables` service, a network manager that tidies up, a hand on `ip`.
//!
//! Tells that something may be wrong, never what: whoever is told looks for himself.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::Error;
use crate::container_prefix;
use crate::docker;
use crate::firewall::open_socket;
use crate::netlink::{Socket, attribute, text, u32_at};
use crate::routes::PROTOCOL;
use crate::rules::{DELETE_TABLE, NEW_GENERATION, table_name};
use crate::wire::Board;

/// Changes of nf_tables (`NFNLGRP_NFTABLES` is 7).
const RULES: u32 = 1 << (7 - 1);
/// Of links, neighbours, addresses and routes of both families, and policy rules
/// (`RTNLGRP_*` 1, 3, 5, 7, 8, 9, 11, 19).
const ROUTES: u32 = 1 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 18;
/// A burst of a thousand containers, and a table of thousands of services.
const RECEIVE_LEN: usize = 8 << 20;

// linux/netfilter/nfnetlink.h, nf_tables.h
const GENERATION_NAME: u16 = 3;
const OBJECT_TABLE: u16 = 1;
// linux/rtnetlink.h, linux/neighbour.h
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_DELROUTE: u16 = 25;
const RTM_DELNEIGH: u16 = 29;
const RTM_DELRULE: u16 = 33;
const RTA_OIF: u16 = 4;
const IFLA_IFNAME: u16 = 3;
const IFF_UP: u32 = 1;

/// What may not be as it was set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Doubt {
    /// Whether our table is there at all.
    pub(crate) table: bool,
    /// What is in our table: somebody else changed it.
    pub(crate) rules: bool,
    /// Our opening in Docker's firewall.
    pub(crate) docker: bool,
    pub(crate) overlay: bool,
    pub(crate) containers: bool,
}

pub(crate) struct Watch {
    socket: Socket,
    stop: OwnedFd,
    of: Kind,
}

enum Kind {
    /// The table of this name. Changes of it come before the name of the thread that made them.
    Rules { table: String, writer: &'static str, touched: bool },
    /// Links, routes and neighbours; containers' links begin so.
    Routes { prefix: String, board: Arc<Board> },
}

impl Watch {
    /// The packet filter, in the calling thread's network namespace, until the returned descriptor
    /// is closed. What the thread called `writer` does is no reason for doubt.
    pub(crate) fn rules(node_key: &str, writer: &'static str) -> Result<(Self, OwnedFd), Error> {
        let table = table_name(node_key);
        Self::open(open_socket()?, RULES, Kind::Rules { table, writer, touched: false })
    }

    /// Links, routes and neighbours, likewise.
    pub(crate) fn routes(node_key: &str, board: Arc<Board>) -> Result<(Self, OwnedFd), Error> {
        let socket =
            Socket::route().map_err(|source| Error::io("open a route netlink socket", source))?;
        Self::open(socket, ROUTES, Kind::Routes { prefix: container_prefix(node_key), board })
    }

    fn open(mut socket: Socket, groups: u32, of: Kind) -> Result<(Self, OwnedFd), Error> {
        let failed = |source: io::Error| Error::io("watch the kernel's network", source);
        socket.receive_many(RECEIVE_LEN);
        socket.subscribe(groups).map_err(failed)?;
        let (stop, open) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        Ok((Self { socket, stop, of }, open))
    }

    /// Calls `tell` after each change that gives reason for doubt, until it fails.
    pub(crate) fn run<E>(mut self, mut tell: impl FnMut(Doubt) -> Result<(), E>) {
        loop {
            let mut waiting =
                [PollFd::new(&self.socket, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
            match poll(&mut waiting, None) {
                Ok(_) if !waiting[1].revents().is_empty() => return,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return warn(&error.into()),
            }
            let mut doubt = Doubt::default();
            let of = &mut self.of;
            let drained = self.socket.drain(|kind, payload| of.consider(kind, payload, &mut doubt));
            match drained {
                Ok(true) => {}
                Ok(false) => of.consider_all(&mut doubt),
                Err(error) => return warn(&error),
            }
            if doubt != Doubt::default() && tell(doubt).is_err() {
                return;
            }
        }
    }
}

impl Kind {
    fn consider(&mut self, kind: u16, payload: &[u8], doubt: &mut Doubt) {
        match self {
            Self::Rules { table, writer, touched } => {
                let attributes = payload.get(4..).unwrap_or_default();
                let named = |at, name: &str| {
                    attribute(attributes, at).map(text).is_some_and(|found| found == name)
                };
                if kind == NEW_GENERATION {
                    doubt.rules |= *touched && !named(GENERATION_NAME, writer);
                    *touched = false;
                } else if named(OBJECT_TABLE, table) {
                    *touched = true;
                    doubt.table |= kind == DELETE_TABLE;
                } else {
                    doubt.docker |= docker::concerns(kind, attributes);
                }
            }
            Self::Routes { prefix, board } => consider_route(kind, payload, prefix, board, doubt),
        }
    }

    /// Messages were lost. The packet filter is not set again for that alone: doing so makes more
    /// of them than anything else.
    fn consider_all(&self, doubt: &mut Doubt) {
        match self {
            Self::Rules { .. } => (doubt.table, doubt.docker) = (true, true),
            Self::Routes { .. } => (doubt.overlay, doubt.containers) = (true, true),
        }
    }
}

fn consider_route(kind: u16, payload: &[u8], prefix: &str, board: &Board, doubt: &mut Doubt) {
    let is_wired = |index: Option<u32>| index.is_some_and(|index| board.is_wired(index));
    match kind {
        RTM_NEWLINK | RTM_DELLINK => {
            let name = payload.get(16..).and_then(|a| attribute(a, IFLA_IFNAME)).map(text);
            if name.is_some_and(|name| name.starts_with(prefix)) {
                let is_up = u32_at(payload, 8).is_some_and(|flags| flags & IFF_UP != 0);
                let lost = kind == RTM_DELLINK || !is_up;
                doubt.containers |= lost && is_wired(u32_at(payload, 4));
            } else {
                // Also an uplink that came back: the kernel took our routes away when it went.
                doubt.overlay = true;
            }
        }
        RTM_DELROUTE => {
            doubt.overlay |= payload.get(5) == Some(&PROTOCOL);
            let out = payload.get(12..).and_then(|attributes| attribute(attributes, RTA_OIF));
            doubt.containers |= is_wired(out.and_then(|out| u32_at(out, 0)));
        }
        RTM_DELNEIGH | RTM_DELADDR => {
            let index = u32_at(payload, 4);
            doubt.containers |= is_wired(index);
            doubt.overlay |= !is_wired(index);
        }
        RTM_NEWADDR => doubt.overlay |= !is_wired(u32_at(payload, 4)),
        RTM_DELRULE => doubt.overlay = true,
        _ => {}
    }
}

fn warn(error: &io::Error) {
    tracing::warn!(%error, "a watch of the kernel's network ended: what somebody else changes stays so until the next change of ours");
}
