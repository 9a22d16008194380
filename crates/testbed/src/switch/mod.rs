//! An Ethernet switch in user space: moves frames between the cards of
//! machines, and treats each direction between two of them as its [`Link`] says.
//!
//! One thread for all ports. A frame on a line without rules goes from one card
//! to the other at once; others wait in a queue for their moment. Cards have
//! addresses that tell their port, so nothing is learned; broadcast and
//! multicast go to everybody, each over its own line.
//!
//! Not here: offloads (frames have at most 1514 bytes), VLANs, priorities.

mod ear;
mod fabric;
mod line;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

pub use fabric::Traffic;
use fabric::{Fabric, PORTS_MAX};
pub use line::{Link, REORDER_HOLD};

/// A plug of the switch; a machine keeps its own for life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(u8);

impl Port {
    pub(crate) fn new(number: usize) -> Option<Self> {
        (number < PORTS_MAX).then(|| u8::try_from(number).ok().map(Self)).flatten()
    }

    pub(crate) fn number(self) -> usize {
        usize::from(self.0)
    }

    /// The address of the card: a local one that ends with the port.
    pub(crate) fn mac(self) -> [u8; 6] {
        let [a, b, c, d, e] = fabric::MAC_HEAD;
        [a, b, c, d, e, self.0]
    }
}

/// Wakes the thread to end it.
const STOP: u64 = u64::MAX;
/// Events of one wake-up; more are found at the next.
const EVENTS: usize = 64;

struct Shared {
    fabric: Mutex<Fabric>,
    epoll: OwnedFd,
    stop: OwnedFd,
    start: Instant,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Fabric> {
        self.fabric.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The running switch. Dropping it leaves every card without a wire.
pub struct Switch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    /// Dice are thrown from `seed`.
    pub fn start(seed: u64) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &stop, epoll::EventData::new_u64(STOP), epoll::EventFlags::IN)?;
        let fabric = Mutex::new(Fabric::new(seed));
        let shared = Arc::new(Shared { fabric, epoll, stop, start: Instant::now() });
        let inside = shared.clone();
        let thread =
            std::thread::Builder::new().name("switch".into()).spawn(move || serve(&inside))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Puts a card's wire into a port.
    pub(crate) fn plug(&self, port: Port, card: OwnedFd) -> io::Result<()> {
        let mut fabric = self.shared.lock();
        let data = epoll::EventData::new_u64(port.number() as u64);
        epoll::add(&self.shared.epoll, &card, data, epoll::EventFlags::IN)?;
        fabric.plug(port, card);
        Ok(())
    }

    /// Takes it out; the card goes with it.
    pub(crate) fn unplug(&self, port: Port) {
        let mut fabric = self.shared.lock();
        if let Some(card) = fabric.unplug(port) {
            // Closing does it as well, unless something else holds the file.
            let _ = epoll::delete(&self.shared.epoll, card.as_fd());
        }
    }

    /// From now on, one direction is like `link`.
    pub fn set(&self, from: Port, to: Port, link: Link) {
        self.shared.lock().set(from, to, link);
    }

    /// How one direction is now.
    pub fn link(&self, from: Port, to: Port) -> Link {
        self.shared.lock().link(from, to)
    }

    /// All lines are perfect wires again; frames under way arrive when they were to.
    pub fn heal(&self) {
        self.shared.lock().heal();
    }

    /// Keeps, from now on, what machines say to each other.
    pub fn listen(&self) {
        self.shared.lock().listen();
    }

    /// What was said since: each direction of each connection. Nothing if nobody listened, or if it
    /// was more than can be kept.
    pub fn heard(&self) -> Option<Vec<Vec<u8>>> {
        self.shared.lock().heard()
    }

    /// What passed one direction since the start.
    pub fn traffic(&self, from: Port, to: Port) -> Traffic {
        self.shared.lock().traffic(from, to)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(shared: &Shared) {
    let mut events = Vec::with_capacity(EVENTS);
    let mut buffer = vec![0; fabric::FRAME_MAX];
    loop {
        let due = shared.lock().next_due();
        let wait = due.map(|due| Duration::from_nanos(due.saturating_sub(shared.now())));
        let wait = wait.and_then(|wait| Timespec::try_from(wait).ok());
        events.clear();
        match epoll::wait(&shared.epoll, spare_capacity(&mut events), wait.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            // The switch is broken; its tests will tell by their time limits.
            Err(_) => return,
        }
        let mut fabric = shared.lock();
        fabric.release(shared.now());
        for event in &events {
            match event.data.u64() {
                STOP => return,
                number => {
                    let port = usize::try_from(number).ok().and_then(Port::new);
                    if let Some(port) = port {
                        fabric.drain(port, shared.now(), &mut buffer);
                    }
                }
            }
        }
    }
}
