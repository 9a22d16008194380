//! Which container has which namespace and link; two threads that change it.
//!
//! `Wiring` attaches and adopts, one after the other; `Removal` takes links away
//! in batches, since removing one makes the kernel wait for its readers. Both stay
//! in the network namespace in which they were started.
//!
//! Kernel state is the record: a link's alias is its container's id, so a new
//! daemon finds what an old one made.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::conntrack::{Conntrack, Exposed, Flow};
use crate::link::{GATEWAY, Link, Links};
use crate::namespace::{links_of, write_setting};
use crate::rules::Family;
use crate::sandbox::{Maker, Names, Pool, Prepared};
use crate::{Addresses, Error, Sandbox};

/// The kernel's limit on an alias (`IFALIASZ` with its terminating zero).
const ID_LEN_MAX: usize = 255;

pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// A container's end of the wire and ours.
#[derive(Debug, Clone)]
struct Wired {
    host: Link,
    /// Of the inner side.
    mac: [u8; 6],
    sandbox: Sandbox,
}

/// What both threads know.
pub(crate) struct Board {
    pub(crate) pool: Pool,
    pub(crate) names: Arc<Names>,
    exposed: Arc<Exposed>,
    wired: Mutex<BTreeMap<String, Wired>>,
}

impl Board {
    pub(crate) fn new(pool: Pool, names: Arc<Names>, exposed: Arc<Exposed>) -> Self {
        Self { pool, names, exposed, wired: Mutex::default() }
    }

    /// Whether the link with this index is a container's.
    pub(crate) fn is_wired(&self, index: u32) -> bool {
        self.wired().values().any(|wired| wired.host.index == index)
    }

    fn wired(&self) -> MutexGuard<'_, BTreeMap<String, Wired>> {
        // Every change is one insertion or removal: a panic elsewhere leaves no half.
        self.wired.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) enum Wish {
    Attach {
        id: String,
        addresses: Addresses,
        reply: Reply<Sandbox>,
    },
    Adopt {
        id: String,
        addresses: Addresses,
        pid: u32,
        reply: Reply<()>,
    },
    /// Somebody may have changed containers' links or routes.
    Check,
}

pub(crate) struct Wiring {
    board: Arc<Board>,
    links: Links,
    maker: Maker,
    /// Links of an earlier daemon by alias: looking each up in a listing would be quadratic.
    earlier: BTreeMap<String, Link>,
    /// Sockets in namespaces that need no more wiring: closed when nobody waits, a tenth of an attach each.
    spent: Vec<Links>,
}

impl Wiring {
    pub(crate) fn open(board: Arc<Board>, earlier: Vec<Link>) -> Result<Self, Error> {
        let earlier =
            earlier.into_iter().filter_map(|link| Some((link.alias.clone()?, link))).collect();
        let maker = Maker::open(Arc::clone(&board.names))?;
        Ok(Self { board, links: Links::open()?, maker, earlier, spent: Vec::new() })
    }

    pub(crate) fn run(mut self, wishes: &Receiver<Wish>) {
        let mut next = wishes.recv();
        while let Ok(wish) = next {
            // A caller that went away does not need the answer.
            match wish {
                Wish::Attach { id, addresses, reply } => {
                    let _ = reply.send(self.attach(&id, addresses));
                }
                Wish::Adopt { id, addresses, pid, reply } => {
                    let _ = reply.send(self.adopt(&id, addresses, pid));
                }
                Wish::Check => {
                    if let Err(error) = self.check() {
                        let error = &error as &dyn std::error::Error;
                        tracing::error!(error, "restore containers' links");
                    }
                }
            }
            next = wishes.try_recv().or_else(|_| {
                self.spent.clear();
                wishes.recv()
            });
        }
    }

    fn attach(&mut self, id: &str, addresses: Addresses) -> Result<Sandbox, Error> {
        check_id(id)?;
        if let Some(sandbox) = self.already(id, addresses)? {
            return Ok(sandbox);
        }
        let prepared = match self.board.pool.take() {
            Some(prepared) => prepared,
            None => self.maker.make()?,
        };
        self.connect(id, addresses, prepared)
    }

    fn adopt(&mut self, id: &str, addresses: Addresses, pid: u32) -> Result<(), Error> {
        check_id(id)?;
        if self.already(id, addresses)?.is_some() {
            return Ok(());
        }
        let path = format!("/proc/{pid}/ns/net");
        let netns = File::open(&path)
            .map_err(|source| Error::io(format!("open {path} of container {id}"), source))?;
        let netns = Arc::new(OwnedFd::from(netns));
        if is_own_namespace(&netns)? {
            let text =
                format!("process {pid} of container {id} is in the host's network namespace");
            return Err(Error::io("adopt", io::Error::new(io::ErrorKind::InvalidInput, text)));
        }
        let mut within = links_of(&netns)?;
        let prepared = match (self.earlier.remove(id), within.find_inside()) {
            (Some(host), Ok(inside)) if inside.peer == Some(host.index) => {
                within.furnish(&inside)?;
                self.links.raise_host(&host)?;
                Prepared { netns, host, inside, within }
            }
            // A link whose other end is elsewhere, or none: its eth0 cannot reach us, and a new one is made.
            (host, inside) => {
                if let Some(host) = host {
                    self.links.delete(&[host.index], 0)?;
                }
                if let Ok(inside) = inside {
                    within.delete(&[inside.index], 0)?;
                }
                tracing::info!(container = id, "the container's link was gone: making a new one");
                self.maker.join(netns, within)?
            }
        };
        self.connect(id, addresses, prepared).map(|_| ())
    }

    /// Repairs what somebody else took away of containers' links, routes and neighbours.
    fn check(&mut self) -> Result<(), Error> {
        let links = self.links.list(&self.board.names.prefix)?;
        let links: BTreeMap<u32, Link> = links.into_iter().map(|link| (link.index, link)).collect();
        let reached = self.links.reached()?;
        let wired = self.board.wired().clone();
        for (id, Wired { host, mac, sandbox }) in wired {
            let addresses = Addresses { v4: sandbox.address, v6: sandbox.address6 };
            let is_up = links.get(&host.index).map(|link| link.up);
            let is_whole = addresses_of(&sandbox).all(|a| reached.contains(&(host.index, a)))
                && reached.contains(&(host.index, GATEWAY.into()));
            if is_up == Some(true) && is_whole {
                continue;
            }
            // Meanwhile it may have been detached.
            if !self.board.is_wired(host.index) {
                continue;
            }
            tracing::warn!(
                container = id,
                "a container's link was changed by somebody else: setting it again"
            );
            if is_up.is_some() {
                self.links.raise_host(&host)?;
                self.links.wire(&host, &id, addresses, mac)?;
                continue;
            }
            let within = links_of(&sandbox.netns)?;
            let prepared = self.maker.join(Arc::clone(&sandbox.netns), within)?;
            self.connect(&id, addresses, prepared)?;
        }
        Ok(())
    }

    /// The sandbox that `id` has, if any.
    fn already(&self, id: &str, addresses: Addresses) -> Result<Option<Sandbox>, Error> {
        let wired = self.board.wired();
        let Some(wired) = wired.get(id) else { return Ok(None) };
        let held = Addresses { v4: wired.sandbox.address, v6: wired.sandbox.address6 };
        if held == addresses {
            return Ok(Some(wired.sandbox.clone()));
        }
        let text = format!("it is attached with {held} already");
        let source = io::Error::new(io::ErrorKind::AlreadyExists, text);
        Err(Error::io(format!("attach container {id} with {addresses}"), source))
    }

    fn connect(
        &mut self,
        id: &str,
        addresses: Addresses,
        prepared: Prepared,
    ) -> Result<Sandbox, Error> {
        let Prepared { netns, host, inside, mut within } = prepared;
        let Some(mac) = inside.mac else {
            let source = io::Error::other("the kernel did not tell its hardware address");
            return Err(Error::io(format!("wire container {id}"), source));
        };
        // What has no address of a family has no way to the host by it.
        let allowed = match addresses.v6 {
            Some(_) => write_setting(&format!("ipv6/conf/{}/disable_ipv6", host.name), "0"),
            None => Ok(()),
        };
        let done = allowed
            .and_then(|()| within.settle(&inside, addresses))
            .and_then(|()| self.links.wire(&host, id, addresses, mac));
        self.spent.push(within);
        if let Err(error) = done {
            // Half wired is worse than not: with the link goes everything that hangs on it.
            if let Err(left) = self.links.delete(&[host.index], 0) {
                tracing::warn!(
                    link = host.name,
                    error = &left as &dyn std::error::Error,
                    "remove a half wired link"
                );
            }
            return Err(error);
        }
        let sandbox = Sandbox { netns, address: addresses.v4, address6: addresses.v6 };
        let wired = Wired { host, mac, sandbox: sandbox.clone() };
        self.board.wired().insert(id.to_owned(), wired);
        Ok(sandbox)
    }
}

pub(crate) enum Errand {
    Detach { id: String, reply: Reply<()> },
    Sweep { keep: BTreeSet<String>, reply: Reply<()> },
    Clean { reply: Reply<()> },
}

pub(crate) struct Removal {
    board: Arc<Board>,
    links: Links,
    conntrack: Conntrack,
    group: u32,
}

impl Removal {
    /// `group` is a link group number of this node alone.
    pub(crate) fn open(board: Arc<Board>, group: u32) -> Result<Self, Error> {
        Ok(Self { board, links: Links::open()?, conntrack: Conntrack::open()?, group })
    }

    pub(crate) fn run(mut self, errands: &Receiver<Errand>) {
        while let Ok(errand) = errands.recv() {
            let mut ids = Vec::new();
            let mut replies = Vec::new();
            let mut next = Some(errand);
            // Whatever was asked meanwhile goes in the same batch.
            while let Some(Errand::Detach { id, reply }) = next {
                ids.push(id);
                replies.push(reply);
                next = errands.try_recv().ok();
            }
            if !replies.is_empty() {
                answer(self.detach(&ids), replies);
            }
            match next {
                Some(Errand::Sweep { keep, reply }) => answer(self.sweep(&keep), vec![reply]),
                Some(Errand::Clean { reply }) => answer(self.clean(), vec![reply]),
                Some(Errand::Detach { .. }) | None => {}
            }
        }
    }

    fn detach(&mut self, ids: &[String]) -> Result<(), Error> {
        let mut gone = Vec::new();
        let mut unknown = BTreeSet::new();
        {
            let mut wired = self.board.wired();
            for id in ids {
                match wired.remove(id) {
                    Some(found) => gone.push(found),
                    None => {
                        unknown.insert(id.as_str());
                    }
                }
            }
        }
        let mut indices: Vec<u32> = gone.iter().map(|wired| wired.host.index).collect();
        if !unknown.is_empty() {
            // Perhaps a container of an earlier daemon that was never adopted.
            let links = self.links.list(&self.board.names.prefix)?;
            let named = |link: &&Link| link.alias.as_deref().is_some_and(|a| unknown.contains(a));
            indices.extend(links.iter().filter(named).map(|link| link.index));
        }
        // First: what still comes is then sent to another backend, and not after a link that is gone.
        self.forget(&gone.iter().flat_map(|wired| addresses_of(&wired.sandbox)).collect())?;
        self.links.delete(&indices, self.group)
    }

    fn sweep(&mut self, keep: &BTreeSet<String>) -> Result<(), Error> {
        let mut gone = Vec::new();
        let mut addresses = BTreeSet::new();
        {
            let links = self.links.list(&self.board.names.prefix)?;
            let mut wired = self.board.wired();
            let of_link: BTreeMap<u32, String> =
                wired.iter().map(|(id, wired)| (wired.host.index, id.clone())).collect();
            for link in links {
                let id = of_link.get(&link.index);
                // Ours and without a container: it is in the pool, or on the way into it.
                if id.is_none() && self.board.names.is_recent(&link.name) {
                    continue;
                }
                let id = id.cloned().or(link.alias);
                // An earlier link of a container that has a newer one is of no use.
                let superseded =
                    |id: &String| wired.get(id).is_some_and(|wired| wired.host.index != link.index);
                match id {
                    Some(id) if keep.contains(&id) && !superseded(&id) => {}
                    id => {
                        gone.push(link.index);
                        if let Some(removed) =
                            id.filter(|id| !superseded(id)).and_then(|id| wired.remove(&id))
                        {
                            addresses.extend(addresses_of(&removed.sandbox));
                        }
                    }
                }
            }
        }
        self.links.delete(&gone, self.group)?;
        self.forget(&addresses)
    }

    fn clean(&mut self) -> Result<(), Error> {
        drop(self.board.pool.drain());
        let wired = std::mem::take(&mut *self.board.wired());
        let links = self.links.list(&self.board.names.prefix)?;
        self.links.delete(&links.iter().map(|link| link.index).collect::<Vec<_>>(), self.group)?;
        self.forget(&wired.values().flat_map(|wired| addresses_of(&wired.sandbox)).collect())
    }

    /// Ends the connections to addresses that are no more: their peers learn it at the next
    /// packet, and the next holder of an address gets none of them. Only of addresses that
    /// were published: the kernel takes some 10 ms to walk its table, however empty.
    fn forget(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), Error> {
        let addresses = self.board.exposed.take(addresses);
        let gone = |flow: &Flow| addresses.contains(&flow.answered_by);
        for family in Family::ALL {
            if addresses.iter().any(|address| family.has(address)) {
                self.conntrack.remove(family, None, gone)?;
            }
        }
        Ok(())
    }
}

fn addresses_of(sandbox: &Sandbox) -> impl Iterator<Item = IpAddr> {
    [Some(IpAddr::V4(sandbox.address)), sandbox.address6.map(IpAddr::V6)].into_iter().flatten()
}

fn answer(result: Result<(), Error>, replies: Vec<Reply<()>>) {
    match result {
        Ok(()) => replies.into_iter().for_each(|reply| {
            let _ = reply.send(Ok(()));
        }),
        Err(error) => {
            for reply in replies {
                let _ = reply.send(Err(error.again()));
            }
        }
    }
}

fn check_id(id: &str) -> Result<(), Error> {
    if (1..=ID_LEN_MAX).contains(&id.len()) {
        return Ok(());
    }
    let text = format!("it has {} bytes; 1 to {ID_LEN_MAX} are allowed", id.len());
    let source = io::Error::new(io::ErrorKind::InvalidInput, text);
    Err(Error::io(format!("name a link after container {id:?}"), source))
}

/// Whether a descriptor is of the calling thread's own network namespace.
fn is_own_namespace(netns: &OwnedFd) -> Result<bool, Error> {
    let own = rustix::fs::stat("/proc/thread-self/ns/net");
    let (own, other) = own
        .and_then(|own| Ok((own, rustix::fs::fstat(netns)?)))
        .map_err(|source| Error::io("compare network namespaces", source.into()))?;
    Ok((own.st_dev, own.st_ino) == (other.st_dev, other.st_ino))
}
