//! What a process is told, and when.
//!
//! Tables and askers first, descriptors last: the first question that it reads is answered from
//! all that there is.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::watch;
use warren_model::NodeTable;
use warren_model::id::TaskId;
use warren_wireguard::{PrivateKey, PublicKey};

use super::link::{self, unexpected};
use super::process::Process;
use super::{Keeping, Wanted};
use crate::asker::Asker;
use crate::descriptors::{Descriptors, Error, Tunnel};
use crate::peers::has_peers;
use crate::serve::SOCKET;
use crate::wire::{
    Answer, Ask, Heard, LostPeer, Nothing, Settle, Update, WireAsker, WirePrefix, differing, parts,
};

/// Between attempts to hear who is not reached.
const FOLLOW_PAUSE: Duration = Duration::from_millis(200);

/// What one process has been told on one connection.
#[derive(Default)]
struct Told {
    table: Option<Arc<NodeTable>>,
    known: Arc<BTreeMap<String, IpAddr>>,
    askers: Option<BTreeMap<TaskId, Arc<Asker>>>,
    /// Kinds of descriptors that it has.
    settled: Option<(bool, bool)>,
    /// Public halves of this node's keys that it has.
    keys: Vec<PublicKey>,
}

impl Keeping {
    /// Tells `process` what is wanted, for as long as it is there and good for it. Returns its
    /// successor.
    pub(super) async fn tend(&mut self, mut process: Process) -> io::Result<Process> {
        let outcome = self.tell_on(&mut process).await;
        match outcome {
            Ok(successor) => {
                process.retire();
                Ok(successor)
            }
            Err(error) => {
                // Whatever it is that does not answer, it must not have the descriptors.
                process.kill().await;
                Err(error)
            }
        }
    }

    async fn tell_on(&mut self, process: &mut Process) -> io::Result<Process> {
        self.held.complete(std::mem::take(&mut process.held));
        let mut told = Told::default();
        if !process.is_new {
            if !self.is_as_wanted(process) {
                return self.replace(process).await;
            }
            // Of an earlier daemon: it has what it listens with, and these are copies.
            told.settled = Some((self.held.has_names(), self.held.has_tunnel()));
            let keys = self.wants.borrow().keys.clone();
            self.settle(process, &Descriptors::default(), &[], &keys).await?;
            told.keys = public(&keys);
        }
        let reach = follow(self.options.run_dir.join(SOCKET), self.reach.clone());
        let mut reach = std::pin::pin!(reach);
        loop {
            let wanted = self.wants.borrow_and_update().clone();
            self.tell(process, &mut told, &wanted, &[]).await?;
            self.told.send_replace(wanted.generation);
            tokio::select! {
                // The sender is ours: there is no end to it.
                _ = self.wants.changed() => {}
                () = &mut reach => {}
                () = process.link.broken() => {
                    return Err(io::Error::from(io::ErrorKind::ConnectionReset));
                }
                Some(question) = self.asked.recv() => {
                    let status = process.link.status().await?;
                    // Whoever asked may have gone.
                    let _ = question.send(status);
                }
            }
        }
    }

    fn is_as_wanted(&self, process: &Process) -> bool {
        let welcome = &process.link.welcome;
        let port = self.options.overlay.as_ref().map(|overlay| overlay.port);
        welcome.build == self.options.build
            && port.is_none_or(|port| self.held.listens_at(port))
            && (port.is_some() || !self.held.has_tunnel())
    }

    /// A process of this program takes over from `old`.
    async fn replace(&mut self, old: &mut Process) -> io::Result<Process> {
        tracing::info!(build = old.link.welcome.build, "the data plane is replaced");
        let mut successor = Process::start(&self.options).await?;
        let wanted = self.wants.borrow_and_update().clone();
        let mut told = Told::default();
        tell_table(&mut successor, &mut told, &wanted).await?;
        let port = self.options.overlay.as_ref().map(|overlay| overlay.port);
        let heard = match old.link.ask(Ask::HandOver(Nothing {}), &[]).await? {
            Answer::HandedOver(handed) => handed.heard,
            other => return Err(unexpected(&other)),
        };
        if port.is_none_or(|port| !self.held.listens_at(port)) {
            // Peers look elsewhere from now on; the device has routes and stays.
            self.held.udp.clear();
            if port.is_none() {
                self.held.tun.clear();
            }
        }
        self.open(&wanted);
        let held = self.held.duplicate()?;
        self.settle(&mut successor, &held, &heard, &wanted.keys).await?;
        successor.is_new = false;
        successor.held = held;
        Ok(successor)
    }

    async fn tell(
        &mut self,
        process: &mut Process,
        told: &mut Told,
        wanted: &Wanted,
        heard: &[Heard],
    ) -> io::Result<()> {
        tell_table(process, told, wanted).await?;
        self.open(wanted);
        // Nobody may ask before somebody is known, and nothing is known before there is a table:
        // until then questions wait, instead of hearing that there is no such name.
        let names = self.held.has_names() && wanted.table.is_some() && !wanted.askers.is_empty();
        let (has_names, has_tunnel) = told.settled.unwrap_or_default();
        let now = (names || has_names, self.held.has_tunnel());
        let keys = public(&wanted.keys);
        if told.settled.is_some() && (has_names, has_tunnel) == now && told.keys == keys {
            return Ok(());
        }
        let mut held = self.held.duplicate()?;
        if !now.0 || has_names {
            (held.questions, held.connections) = (Vec::new(), Vec::new());
        }
        if has_tunnel {
            (held.tun, held.udp) = (Vec::new(), Vec::new());
        }
        self.settle(process, &held, heard, &wanted.keys).await?;
        (told.settled, told.keys) = (Some(now), keys);
        Ok(())
    }

    /// Makes the descriptors that are wanted and not there. What cannot be had is tried again
    /// with the next change.
    fn open(&mut self, wanted: &Wanted) {
        let mut complaints = Vec::new();
        if !self.held.has_names() {
            let at = warren_net::name_server(&self.options.node_key);
            complaints.extend(self.held.open_names(at).err());
        }
        let table = wanted.table.as_deref();
        let has_peers = table.is_some_and(|table| has_peers(table, self.options.node));
        if let Some(overlay) = self.options.overlay.as_ref().filter(|_| has_peers)
            && !self.held.has_tunnel()
        {
            complaints.extend(self.open_tunnel(overlay.address, overlay.port, overlay.queues));
        }
        let complaints = complaints.iter().map(chain).collect::<Vec<_>>().join("; ");
        let complaint = Some(complaints).filter(|text| !text.is_empty());
        if self.complaint != complaint {
            if let Some(text) = &complaint {
                tracing::error!(error = text, "the data plane lacks what it works with");
            }
            self.complaint = complaint;
        }
    }

    fn open_tunnel(&mut self, address: IpAddr, port: u16, queues: usize) -> Option<Error> {
        let name = warren_net::tunnel_name(&self.options.node_key);
        self.held.open_tunnel(&Tunnel { name, address, port, queues }).err()
    }

    async fn settle(
        &self,
        process: &mut Process,
        held: &Descriptors,
        heard: &[Heard],
        keys: &[PrivateKey],
    ) -> io::Result<()> {
        let (kinds, fds) = held.listed();
        let overlay = self.options.overlay.as_ref();
        let settle = Settle {
            node: self.options.node.as_bytes().to_vec(),
            pools: self.options.pools.iter().map(WirePrefix::from).collect(),
            keys: overlay.map_or_else(Vec::new, |_| private(keys)),
            port: overlay.map_or(0, |overlay| overlay.port.into()),
            heard: heard.to_vec(),
            kinds,
        };
        match process.link.ask(Ask::Settle(settle), &fds).await? {
            Answer::Done(Nothing {}) => Ok(()),
            other => Err(unexpected(&other)),
        }
    }
}

/// Has it told whom the process that listens there does not reach. Never returns.
async fn follow(socket: PathBuf, tell: watch::Sender<Option<Vec<LostPeer>>>) {
    loop {
        let followed = match UnixStream::connect(&socket).await {
            Ok(stream) => link::follow(stream, &tell).await,
            Err(error) => Err(error),
        };
        let Err(error) = followed;
        tracing::debug!(%error, "nobody says who is not reached");
        // It listens a moment after it was told what it works with.
        tokio::time::sleep(FOLLOW_PAUSE).await;
    }
}

fn private(keys: &[PrivateKey]) -> Vec<Vec<u8>> {
    keys.iter().map(PrivateKey::to_bytes).map(|key| key.to_vec()).collect()
}

fn public(keys: &[PrivateKey]) -> Vec<PublicKey> {
    keys.iter().map(PrivateKey::public).collect()
}

/// What differs from what it was told.
async fn tell_table(process: &mut Process, told: &mut Told, wanted: &Wanted) -> io::Result<()> {
    let change = wanted.table.as_ref().and_then(|table| match &told.table {
        Some(before) if Arc::ptr_eq(before, table) => None,
        Some(before) => table.since(before),
        None => Some(table.whole()),
    });
    let is_known = Arc::ptr_eq(&told.known, &wanted.known) || told.known == wanted.known;
    let change = change.or_else(|| {
        (!is_known && wanted.table.is_some()).then(warren_model::node_table::TableChange::default)
    });
    let none = BTreeMap::new();
    let (admitted, dismissed) = differing(told.askers.as_ref().unwrap_or(&none), &wanted.askers);
    let mut first = Update {
        table: None,
        all_askers: told.askers.is_none(),
        admitted: admitted.iter().map(|asker| WireAsker::from(&**asker)).collect(),
        dismissed: dismissed.iter().map(|task| task.as_bytes().to_vec()).collect(),
        known: BTreeMap::new(),
    };
    let is_empty = !first.all_askers && first.admitted.is_empty() && first.dismissed.is_empty();
    let known = || wanted.known.iter().map(|(name, at)| (name.clone(), at.to_string())).collect();
    let updates: Vec<Update> = match change {
        Some(change) => {
            let parts = parts(&change).into_iter();
            let with =
                |part| Update { table: Some(part), known: known(), ..std::mem::take(&mut first) };
            parts.map(with).collect()
        }
        None if is_empty => Vec::new(),
        None => vec![first],
    };
    for update in updates {
        match process.link.ask(Ask::Update(update), &[]).await? {
            Answer::Done(Nothing {}) => {}
            other => return Err(unexpected(&other)),
        }
    }
    told.table = wanted.table.clone();
    told.known = Arc::clone(&wanted.known);
    told.askers = Some(wanted.askers.clone());
    Ok(())
}

/// An error and what is behind it.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(behind) = cause {
        text = format!("{text}: {behind}");
        cause = behind.source();
    }
    text
}
