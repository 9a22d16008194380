//! [`Net`]: what the agent holds of a node's network.
//!
//! Seven threads do the work, each with sockets of its own: attaching, removal, filling
//! the pool, the packet filter, the routes to other nodes, and one each that watches these two. They inherit the network namespace of the
//! thread that called [`Net::open`] and end when the `Net` is dropped. Dropping it
//! leaves containers, links and rules as they are: the next daemon adopts them.
//!
//! Queues are not bounded by themselves: each entry has a caller that waits for it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use tokio::sync::oneshot;

use crate::conntrack::Exposed;
use crate::firewall::{Firewall, Order};
use crate::link::Links;
use crate::namespace::{STACK_LEN, write_setting};
use crate::routes::{Course, Routes};
use crate::sandbox::{Maker, Names, Pool};
use crate::watch::Watch;
use crate::wire::{Board, Errand, Removal, Reply, Wiring, Wish};
use crate::{
    Addresses, Connections, Count, Error, NetConfig, Protocol, Sandbox, Table, container_prefix,
    fnv, reserve,
};

/// The thread that writes the packet filter: what it does is nobody else's.
const WRITER: &str = "net-rules";

/// The network of one node.
pub struct Net {
    board: Arc<Board>,
    wishes: Sender<Wish>,
    errands: Sender<Errand>,
    orders: Sender<Order>,
    courses: Sender<Course>,
    /// Dropping them ends the watches.
    _watched: [OwnedFd; 2],
}

impl Net {
    /// In the calling thread's network namespace. Changes nothing of what an earlier daemon left.
    pub async fn open(config: NetConfig) -> Result<Self, Error> {
        check(&config)?;
        enable_forwarding()?;
        let exposed = Arc::new(Exposed::default());
        let firewall = Firewall::open(&config, Arc::clone(&exposed))?;
        let routes = Routes::open(&config)?;
        let (watch, watched) = Watch::rules(&config.node_key, WRITER)?;
        let prefix = container_prefix(&config.node_key);
        let earlier = Links::open()?.list(&prefix)?;
        let names = Arc::new(Names::after(prefix, &earlier));
        let board = Arc::new(Board::new(Pool::new(config.prepared), Arc::clone(&names), exposed));
        let (route_watch, route_watched) = Watch::routes(&config.node_key, Arc::clone(&board))?;
        let wiring = Wiring::open(Arc::clone(&board), earlier)?;
        let removal = Removal::open(Arc::clone(&board), link_group(&config.node_key))?;
        let maker = Maker::open(names)?;

        let wishes = start("net-wire", move |wishes| wiring.run(&wishes))?;
        let errands = start("net-remove", move |errands| removal.run(&errands))?;
        let orders = start(WRITER, move |orders| firewall.run(&orders))?;
        let pool = Arc::clone(&board);
        // `Pool::close` ends it: it has nothing to be told.
        let _: Sender<()> = start("net-pool", move |_| pool.pool.fill(maker))?;
        let checks = orders.clone();
        let _: Sender<()> = start("net-watch", move |_| {
            watch.run(|doubt| {
                if doubt.table || doubt.rules {
                    checks.send(Order::Check { changed: doubt.rules }).map_err(|_| ())?;
                }
                if doubt.docker {
                    checks.send(Order::Open).map_err(|_| ())?;
                }
                Ok::<(), ()>(())
            });
        })?;
        let courses = start("net-routes", move |courses| routes.run(&courses))?;
        let (routes, links) = (courses.clone(), wishes.clone());
        let _: Sender<()> = start("net-watch-links", move |_| {
            route_watch.run(|doubt| {
                if doubt.overlay {
                    routes.send(Course::Check).map_err(|_| ())?;
                }
                if doubt.containers {
                    links.send(Wish::Check).map_err(|_| ())?;
                }
                Ok::<(), ()>(())
            });
        })?;
        let watched = [watched, route_watched];
        Ok(Self { board, wishes, errands, orders, courses, _watched: watched })
    }

    /// Waits until the pool is full, or filling it failed. For start-up and measurements: no call needs it.
    pub async fn ready(&self) {
        let board = Arc::clone(&self.board);
        // It fails only if the runtime is being shut down, and then nobody waits.
        let _ = tokio::task::spawn_blocking(move || board.pool.wait_full()).await;
    }

    /// Wires a prepared namespace to `addresses` for container `id`; idempotent by id.
    pub async fn attach(
        &self,
        id: &str,
        addresses: impl Into<Addresses>,
    ) -> Result<Sandbox, Error> {
        let (id, addresses) = (id.to_owned(), addresses.into());
        // Given back also if the caller stops waiting.
        struct Entered<'a>(&'a Pool);
        impl Drop for Entered<'_> {
            fn drop(&mut self) {
                self.0.leave();
            }
        }
        self.board.pool.enter();
        let _entered = Entered(&self.board.pool);
        ask(&self.wishes, |reply| Wish::Attach { id, addresses, reply }).await
    }

    /// After a restart of the daemon: container `id` of process `pid` still holds its namespace and `addresses`.
    ///
    /// Repairs what is missing of its link, route and address.
    pub async fn adopt(
        &self,
        id: &str,
        addresses: impl Into<Addresses>,
        pid: u32,
    ) -> Result<(), Error> {
        let (id, addresses) = (id.to_owned(), addresses.into());
        ask(&self.wishes, |reply| Wish::Adopt { id, addresses, pid, reply }).await
    }

    /// Removes the link and route of `id`, and ends its connections. Unknown ids are fine.
    ///
    /// Calls that wait at the same time are carried out as one.
    pub async fn detach(&self, id: &str) -> Result<(), Error> {
        let id = id.to_owned();
        let detached = ask(&self.errands, |reply| Errand::Detach { id, reply }).await;
        // Its thread ends with this handle alone.
        let _ = self.orders.send(Order::Forget);
        detached
    }

    /// Makes the kernel hold exactly `table`; [`Error::Overlay`] when all but the way to other nodes holds. Established connections stay, but for datagram flows to removed backends.
    pub async fn apply(&self, table: Table) -> Result<(), Error> {
        let overlay = table.overlay.clone();
        // One peer that cannot be reached must not keep the others' changes back.
        let routed = ask(&self.courses, |reply| Course::Apply { overlay, reply }).await;
        ask(&self.orders, |reply| Order::Apply { table, reply }).await?;
        routed.map_err(|error| Error::Overlay(Box::new(error)))
    }

    /// How often each clause of a policy decided, and how often containers that share no network
    /// tried to reach each other.
    pub async fn counts(&self) -> Result<Vec<Count>, Error> {
        ask(&self.orders, |reply| Order::Count { reply }).await
    }

    /// How many connections were led to each service. Asks the kernel: for whoever wants figures,
    /// not for every second.
    pub async fn connections(&self) -> Result<Vec<Connections>, Error> {
        ask(&self.orders, |reply| Order::Connections { reply }).await
    }

    /// Reserves a published port by a bound, non-listening socket, in the calling thread's network namespace.
    pub fn reserve(&self, protocol: Protocol, bind: Ipv4Addr, port: u16) -> Result<OwnedFd, Error> {
        reserve::reserve(protocol, bind, port)
    }

    /// A copy of the reservation that was given to process `pid`, after a restart of the daemon; `None` if it has none.
    pub fn reclaim(
        &self,
        protocol: Protocol,
        bind: Ipv4Addr,
        port: u16,
        pid: u32,
    ) -> Result<Option<OwnedFd>, Error> {
        reserve::reclaim(protocol, bind, port, pid)
    }

    /// Removes links of containers that are not in `keep` (after a crash).
    pub async fn sweep(&self, keep: &[String]) -> Result<(), Error> {
        let keep: BTreeSet<String> = keep.iter().cloned().collect();
        ask(&self.errands, |reply| Errand::Sweep { keep, reply }).await
    }

    /// Removes everything of this node from the kernel. `ip_forward` stays: others may have come to need it.
    pub async fn clean(&self) -> Result<(), Error> {
        ask(&self.courses, |reply| Course::Apply { overlay: None, reply }).await?;
        ask(&self.orders, |reply| Order::Clean { reply }).await?;
        ask(&self.errands, |reply| Errand::Clean { reply }).await
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.board.pool.close();
    }
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Net").field("names", &self.board.names).finish_non_exhaustive()
    }
}

fn start<T: Send + 'static>(
    name: &str,
    run: impl FnOnce(Receiver<T>) + Send + 'static,
) -> Result<Sender<T>, Error> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK_LEN)
        .spawn(move || run(receiver))
        .map_err(|source| Error::io(format!("start thread {name}"), source))?;
    Ok(sender)
}

async fn ask<T, R>(to: &Sender<T>, message: impl FnOnce(Reply<R>) -> T) -> Result<R, Error> {
    let (reply, answer) = oneshot::channel();
    let ended = || Error::io("ask a network thread", io::ErrorKind::BrokenPipe.into());
    to.send(message(reply)).map_err(|_| ended())?;
    answer.await.map_err(|_| ended())?
}

fn check(config: &NetConfig) -> Result<(), Error> {
    let key = &config.node_key;
    let refuse = |text: String| {
        Err(Error::io("open the node's network", io::Error::new(io::ErrorKind::InvalidInput, text)))
    };
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    // Six characters go into link names; a table's name has room for many.
    if !(6..=64).contains(&key.len()) || !key.bytes().all(fits) {
        return refuse(format!("node key {key:?} is not 6 to 64 characters of a-z and 0-9"));
    }
    if config.pool.1 > 32 {
        return refuse(format!("{}/{} is no network", config.pool.0, config.pool.1));
    }
    Ok(())
}

/// Writing it resets settings of every link: only if it is off.
fn enable_forwarding() -> Result<(), Error> {
    let read = fs::read_to_string("/proc/sys/net/ipv4/ip_forward");
    match read.map_err(|source| Error::io("read net/ipv4/ip_forward", source))?.trim() {
        "1" => Ok(()),
        _ => write_setting("ipv4/ip_forward", "1"),
    }
}

/// A link group of this node, far from the small numbers that people use.
fn link_group(node_key: &str) -> u32 {
    fnv(node_key) | 0x8000_0000
}
