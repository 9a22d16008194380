//! Watches for the loss of our table: `nft flush ruleset`, or a restart of the
//! `nftables` service, removes everybody's.
//!
//! Tells that something may be wrong, never what: whoever is told looks for himself.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::Error;
use crate::firewall::open_socket;
use crate::netlink::{Socket, attribute, text};
use crate::rules::{DELETE_TABLE, table_name};

/// Changes of nf_tables (`NFNLGRP_NFTABLES` is 7).
const GROUP: u32 = 1 << (7 - 1);

pub(crate) struct Watch {
    socket: Socket,
    stop: OwnedFd,
    table: String,
}

impl Watch {
    /// In the calling thread's network namespace, until the returned descriptor is closed.
    pub(crate) fn open(node_key: &str) -> Result<(Self, OwnedFd), Error> {
        let failed = |source: io::Error| Error::io("watch the packet filter", source);
        let mut socket = open_socket()?;
        socket.subscribe(GROUP).map_err(failed)?;
        let (stop, open) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        Ok((Self { socket, stop, table: table_name(node_key) }, open))
    }

    /// Calls `lost` after each removal of our table, also by ourselves, until it fails.
    pub(crate) fn run<E>(mut self, mut lost: impl FnMut() -> Result<(), E>) {
        loop {
            let mut waiting =
                [PollFd::new(&self.socket, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
            match poll(&mut waiting, None) {
                Ok(_) if !waiting[1].revents().is_empty() => return,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return warn(&error.into()),
            }
            let mut removed = false;
            let drained = self.socket.drain(|kind, payload| {
                let name = payload.get(4..).and_then(|attributes| attribute(attributes, 1));
                removed |= kind == DELETE_TABLE && name.map(text).is_some_and(|n| n == self.table);
            });
            match drained {
                Ok(complete) => removed |= !complete,
                Err(error) => return warn(&error),
            }
            if removed && lost().is_err() {
                return;
            }
        }
    }
}

fn warn(error: &io::Error) {
    tracing::warn!(%error, "watch of the packet filter ended: it is not set again if somebody empties it");
}
