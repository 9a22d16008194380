//! Network namespaces for containers, made ahead of need.
//!
//! A prepared namespace has lo and eth0 up, a host-side link with the gateway on
//! it, the default route and the gateway's neighbour entry: all but the address.
//! Making one takes about a millisecond, giving it an address a twentieth of that.
//! Namespaces are held by descriptor alone: a daemon that dies leaks none.
//!
//! Not here: which container has which namespace (`wire`).

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::Error;
use crate::link::{Link, Links};
use crate::namespace::{in_new_namespace, write_setting};

/// Names of links left by a daemon that died may linger while the kernel takes its namespaces apart.
const NAME_ATTEMPTS: usize = 16;

/// Settings of every sandbox, under `/proc/sys/net`, as Docker sets them or stricter.
const SANDBOX_SETTINGS: [(&str, &str); 8] = [
    // Containers without root may ping and may listen on low ports: both touch nobody but themselves.
    ("ipv4/ping_group_range", "0 2147483647"),
    ("ipv4/ip_unprivileged_port_start", "0"),
    // There is one gateway: whoever says otherwise lies.
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv6/conf/all/accept_redirects", "0"),
    // Links made from now on have the addresses that we give them, and routes from nobody else.
    ("ipv6/conf/default/addr_gen_mode", "1"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/accept_redirects", "0"),
];

/// A namespace and its link, waiting for an address.
pub(crate) struct Prepared {
    pub(crate) netns: Arc<OwnedFd>,
    pub(crate) host: Link,
    pub(crate) inside: Link,
    /// A socket in the namespace.
    pub(crate) within: Links,
}

/// Numbers the links of a node; shared by all who make some.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) prefix: String,
    first: u64,
    next: AtomicU64,
}

impl Names {
    /// Starts after the highest number that is in use.
    pub(crate) fn after(prefix: String, used: &[Link]) -> Self {
        let numbers = used.iter().filter_map(|link| number(&prefix, &link.name));
        let first = numbers.max().map_or(0, |highest| highest + 1);
        Self { prefix, first, next: AtomicU64::new(first) }
    }

    fn next(&self) -> String {
        format!("{}{}", self.prefix, base36(self.next.fetch_add(1, Ordering::Relaxed)))
    }

    /// Whether a link of this name was made since the daemon started.
    pub(crate) fn is_recent(&self, name: &str) -> bool {
        number(&self.prefix, name).is_some_and(|number| number >= self.first)
    }
}

fn number(prefix: &str, name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix(prefix)?, 36).ok()
}

fn base36(mut number: u64) -> String {
    let mut digits = Vec::new();
    loop {
        let digit = u32::try_from(number % 36).expect("a remainder of 36 is small");
        digits.push(char::from_digit(digit, 36).expect("it is a digit of base 36"));
        number /= 36;
        if number == 0 {
            return digits.iter().rev().collect();
        }
    }
}

/// Makes sandboxes, from a thread in the daemon's network namespace.
pub(crate) struct Maker {
    links: Links,
    names: Arc<Names>,
}

impl Maker {
    pub(crate) fn open(names: Arc<Names>) -> Result<Self, Error> {
        Ok(Self { links: Links::open()?, names })
    }

    pub(crate) fn make(&mut self) -> Result<Prepared, Error> {
        let (netns, within) = in_new_namespace(|| {
            for (setting, value) in SANDBOX_SETTINGS {
                write_setting(setting, value)?;
            }
            let netns = File::open("/proc/thread-self/ns/net")
                .map_err(|source| Error::io("open a new network namespace", source))?;
            Ok((OwnedFd::from(netns), Links::open()?))
        })?;
        self.join(Arc::new(netns), within)
    }

    /// Ties a namespace to the host by a new link.
    pub(crate) fn join(
        &mut self,
        netns: Arc<OwnedFd>,
        mut within: Links,
    ) -> Result<Prepared, Error> {
        let name = self.create_pair(&netns)?;
        let inside = within.find_inside()?;
        within.furnish(&inside)?;
        // No IPv6 between container and host until it has an address: the host's guard is the
        // family's table.
        write_setting(&format!("ipv6/conf/{name}/disable_ipv6"), "1")?;
        let host = self.links.find(&name)?;
        self.links.raise_host(&host)?;
        Ok(Prepared { netns, host, inside, within })
    }

    fn create_pair(&mut self, netns: &OwnedFd) -> Result<String, Error> {
        let mut attempts = 0;
        loop {
            let name = self.names.next();
            attempts += 1;
            match self.links.create_pair(&name, netns.as_fd()) {
                Ok(()) => return Ok(name),
                Err(Error::Io { source, .. })
                    if source.kind() == io::ErrorKind::AlreadyExists
                        && attempts < NAME_ATTEMPTS => {}
                Err(Error::Io { action, source })
                    if source.raw_os_error() == Some(libc::EOPNOTSUPP) =>
                {
                    return Err(Error::Unsupported(format!(
                        "{action}: the kernel has no veth links (CONFIG_VETH, module veth)"
                    )));
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Sandboxes in stock.
pub(crate) struct Pool {
    state: Mutex<Stock>,
    changed: Condvar,
    wanted: usize,
}

#[derive(Default)]
struct Stock {
    ready: VecDeque<Prepared>,
    /// Nothing is made until the next is taken.
    paused: bool,
    /// The filling thread is making one right now.
    making: bool,
    /// Attaches that are waited for. Making sandboxes meanwhile would slow them: both want the kernel's one lock.
    attaching: usize,
    closed: bool,
}

impl Stock {
    /// Not while attaches are waited for, unless they wait for this.
    fn is_to_be_filled(&self, wanted: usize) -> bool {
        let len = self.ready.len();
        !self.paused && len < wanted && (self.attaching == 0 || len == 0)
    }
}

impl Pool {
    pub(crate) fn new(wanted: usize) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), wanted }
    }

    /// One that is ready, if any is.
    pub(crate) fn take(&self) -> Option<Prepared> {
        let mut stock = self.lock();
        let taken = stock.ready.pop_front();
        if stock.ready.is_empty() {
            drop(stock);
            self.changed.notify_all();
        }
        taken
    }

    /// An attach begins.
    pub(crate) fn enter(&self) {
        self.lock().attaching += 1;
    }

    /// An attach is done. After the last of several the filling thread goes to work.
    pub(crate) fn leave(&self) {
        let mut stock = self.lock();
        stock.paused = false;
        stock.attaching -= 1;
        if stock.attaching == 0 {
            drop(stock);
            self.changed.notify_all();
        }
    }

    /// Empties the stock and stops filling until the next `take`.
    pub(crate) fn drain(&self) -> VecDeque<Prepared> {
        let mut stock = self.lock();
        stock.paused = true;
        while stock.making {
            stock = self.changed.wait(stock).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::take(&mut stock.ready)
    }

    /// Ends the filling thread.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Waits until the stock is full, or nothing is being made.
    pub(crate) fn wait_full(&self) {
        let mut stock = self.lock();
        while !stock.closed && !stock.paused && stock.ready.len() < self.wanted {
            stock = self.changed.wait(stock).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Keeps the stock full until `close`.
    pub(crate) fn fill(&self, mut maker: Maker) {
        loop {
            let mut stock = self.lock();
            while !stock.closed && !stock.is_to_be_filled(self.wanted) {
                stock = self.changed.wait(stock).unwrap_or_else(PoisonError::into_inner);
            }
            if stock.closed {
                return;
            }
            stock.making = true;
            drop(stock);
            let made = maker.make();
            let mut stock = self.lock();
            stock.making = false;
            match made {
                Ok(prepared) => stock.ready.push_back(prepared),
                Err(error) => {
                    // The next take tries again, and its caller gets the error.
                    stock.paused = true;
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "prepare a network namespace"
                    );
                }
            }
            drop(stock);
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Stock> {
        // A panic elsewhere cannot leave the stock half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_start_after_those_in_use() {
        let used: Vec<Link> = ["wabc0", "wabc1z", "wabc-x", "eth0"]
            .iter()
            .map(|name| Link { name: (*name).to_owned(), ..Link::default() })
            .collect();
        let names = Names::after("wabc".into(), &used);
        assert_eq!(names.next(), "wabc20");
        assert!(names.is_recent("wabc20") && names.is_recent("wabczz"));
        assert!(!names.is_recent("wabc1z") && !names.is_recent("eth0"));
    }

    #[test]
    fn names_fit_a_link() {
        assert_eq!(base36(0), "0");
        assert_eq!(base36(35), "z");
        assert_eq!(base36(36), "10");
        // A thousand a second for 80 years.
        assert!(base36(1000 * 86_400 * 366 * 80).len() <= 8);
    }
}
