//! The bed: machines on one switch in one folder, and what may happen to the
//! lines between them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use crate::host::{Host, Place};
use crate::sweep::Folder;
use crate::switch::{Link, Port, Switch, Traffic};

/// The machine where nothing of Warren runs: clients, a registry.
pub const HUB: &str = "hub";

/// What a machine is for, which its name and address tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Clients and a registry; one of it.
    Hub,
    /// `m1`, `m2`, …
    Manager,
    /// `w1`, `w2`, …
    Worker,
}

impl Kind {
    /// Third part of the address.
    fn network(self) -> u8 {
        match self {
            Self::Hub => 0,
            Self::Manager => 1,
            Self::Worker => 2,
        }
    }
}

/// Machines of one run. Dropping it removes them and everything they made.
pub struct Testbed {
    // Dropped in this order: machines, wire, folder.
    hosts: Mutex<BTreeMap<String, Arc<Host>>>,
    switch: Arc<Switch>,
    folder: Folder,
}

impl Testbed {
    /// An empty bed; the seed is for what happens on its lines by chance.
    pub fn start(seed: u64) -> Result<Self> {
        let folder = Folder::new()?;
        let switch = Arc::new(Switch::start(seed).context("start the switch")?);
        Ok(Self { hosts: Mutex::default(), switch, folder })
    }

    /// Holds a folder for each machine.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The next machine of a kind, up.
    pub fn add(&self, kind: Kind) -> Result<Arc<Host>> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let letter = match kind {
            Kind::Hub => HUB,
            Kind::Manager => "m",
            Kind::Worker => "w",
        };
        let of_kind = hosts.values().filter(|h| h.address().octets()[2] == kind.network()).count();
        let number = u8::try_from(of_kind + 1).context("at most 255 machines of a kind")?;
        let name = match kind {
            Kind::Hub if of_kind > 0 => bail!("there is one hub"),
            Kind::Hub => HUB.to_owned(),
            Kind::Manager | Kind::Worker => format!("{letter}{number}"),
        };
        let port = Port::new(hosts.len()).context("no port is free")?;
        let network = kind.network();
        let place = Place {
            folder: self.folder().join(&name),
            name: name.clone(),
            port,
            v4: Ipv4Addr::new(10, 99, network, number),
            v6: Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, network.into(), number.into()),
            gateway: Ipv4Addr::new(10, 99, 0, 1),
        };
        let host = Arc::new(Host::start(place, self.switch.clone())?);
        hosts.insert(name, host.clone());
        Ok(host)
    }

    /// A machine by name.
    pub fn host(&self, name: &str) -> Result<Arc<Host>> {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.get(name).cloned().with_context(|| format!("there is no machine {name}"))
    }

    /// All machines, in order of their names.
    pub fn hosts(&self) -> Vec<Arc<Host>> {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.values().cloned().collect()
    }

    /// Makes one direction like `link`.
    pub fn shape_one_way(&self, from: &str, to: &str, link: Link) -> Result<()> {
        self.switch.set(self.host(from)?.port(), self.host(to)?.port(), link);
        Ok(())
    }

    /// Makes both directions like `link`.
    pub fn shape(&self, one: &str, other: &str, link: Link) -> Result<()> {
        self.shape_one_way(one, other, link)?;
        self.shape_one_way(other, one, link)
    }

    /// Nothing passes between two machines.
    pub fn cut(&self, one: &str, other: &str) -> Result<()> {
        self.shape(one, other, Link::CUT)
    }

    /// The machines of `side` reach each other and nobody else; nobody else reaches them.
    pub fn split(&self, side: &[&str]) -> Result<()> {
        for inside in side {
            for outside in self.hosts().iter().filter(|host| !side.contains(&host.name())) {
                self.cut(inside, outside.name())?;
            }
        }
        Ok(())
    }

    /// A machine whose cable is pulled.
    pub fn isolate(&self, name: &str) -> Result<()> {
        self.split(&[name])
    }

    /// All lines are perfect wires again.
    pub fn heal(&self) {
        self.switch.heal();
    }

    /// Makes the lines as told; those not named are perfect wires.
    pub fn set_lines(&self, lines: &BTreeMap<(String, String), Link>) -> Result<()> {
        for from in self.hosts() {
            for to in self.hosts() {
                let pair = (from.name().to_owned(), to.name().to_owned());
                let link = lines.get(&pair).copied().unwrap_or_default();
                self.switch.set(from.port(), to.port(), link);
            }
        }
        for name in lines.keys().flat_map(|(from, to)| [from, to]) {
            self.host(name)?;
        }
        Ok(())
    }

    /// Keeps, from now on, what machines say to each other.
    pub fn listen(&self) {
        self.switch.listen();
    }

    /// What they said since, by direction of each connection.
    pub fn heard(&self) -> Result<Vec<Vec<u8>>> {
        self.switch.heard().context("nobody listened, or it was too much to keep")
    }

    /// What passed one direction.
    pub fn traffic(&self, from: &str, to: &str) -> Result<Traffic> {
        Ok(self.switch.traffic(self.host(from)?.port(), self.host(to)?.port()))
    }
}
