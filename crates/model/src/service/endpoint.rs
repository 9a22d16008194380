//! Where others find a service: its networks, its names and addresses there,
//! and how what arrives is spread over its tasks.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::LazyLock;

use super::{Mode, ServiceSpec, SpecError, wrong};
use crate::name::{Alias, NetworkName};

/// A service on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    pub network: NetworkName,
    /// Names it has there beside its own.
    pub aliases: BTreeSet<Alias>,
    /// Its virtual IP there, instead of one that is chosen. With [`Endpoint::slot_addresses`],
    /// slot 1 has the next address, and so on.
    pub address: Option<Ipv4Addr>,
}

impl Attachment {
    pub fn new(network: NetworkName) -> Self {
        Self { network, aliases: BTreeSet::new(), address: None }
    }

    /// Bytes of its names.
    pub fn text_len(&self) -> usize {
        let aliases = self.aliases.iter().map(|alias| alias.as_str().len());
        self.network.as_str().len() + aliases.sum::<usize>()
    }
}

/// How a service is found and reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Endpoint {
    pub mode: EndpointMode,
    pub affinity: Affinity,
    /// Tasks on the node that a connection comes from take it, as long as there is one.
    pub prefer_local: bool,
    /// Each slot has an address of its own, which its tasks inherit from each other.
    pub slot_addresses: bool,
}

/// What a service's name stands for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EndpointMode {
    /// A virtual IP that is spread over the tasks.
    #[default]
    Vip,
    /// The addresses of its tasks, in turn.
    Dnsrr,
}

impl EndpointMode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vip => "vip",
            Self::Dnsrr => "dnsrr",
        }
    }
}

/// What keeps the connections of one client together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Affinity {
    #[default]
    None,
    /// The same client address meets the same task, as long as it is there.
    ClientAddress,
}

impl Affinity {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::ClientAddress => "client-ip",
        }
    }
}

/// Where a service is that names no network.
static DEFAULT: LazyLock<Attachment> = LazyLock::new(|| {
    Attachment::new(NetworkName::DEFAULT.parse().expect("the name of the default network is one"))
});

impl ServiceSpec {
    /// Docker's services have a handful.
    pub const NETWORKS_MAX: usize = 32;
    /// On one network.
    pub const ALIASES_MAX: usize = 32;
    /// Of a service whose slots have addresses; larger ones are found by their service's.
    pub const SLOT_ADDRESSES_MAX: u32 = 1000;

    /// The networks that it is on; on the node's own: none.
    pub fn attachments(&self) -> &[Attachment] {
        if self.task.privileges.host_network {
            return &[];
        }
        if self.networks.is_empty() { std::slice::from_ref(&*DEFAULT) } else { &self.networks }
    }

    /// How many slots have an address of their own.
    pub fn addressed_slots(&self) -> u32 {
        match self.mode {
            Mode::Replicated { replicas } if self.endpoint.slot_addresses => replicas,
            Mode::Replicated { .. }
            | Mode::Global
            | Mode::ReplicatedJob { .. }
            | Mode::GlobalJob => 0,
        }
    }

    pub(super) fn check_networks(&self) -> Result<(), SpecError> {
        if self.task.privileges.host_network {
            return self.check_host_network();
        }
        let count = self.networks.len();
        if count > Self::NETWORKS_MAX {
            return Err(wrong("network", count, format!("is more than {}", Self::NETWORKS_MAX)));
        }
        for (at, attachment) in self.networks.iter().enumerate() {
            let Attachment { network, aliases, address } = attachment;
            if self.networks[..at].iter().any(|other| other.network == *network) {
                return Err(wrong("network", network, "is named twice"));
            }
            if aliases.len() > Self::ALIASES_MAX {
                let max = Self::ALIASES_MAX;
                let problem = format!("has {} aliases, at most {max} are allowed", aliases.len());
                return Err(wrong("network", network, problem));
            }
            let Some(address) = address else { continue };
            if self.endpoint.mode == EndpointMode::Dnsrr && !self.endpoint.slot_addresses {
                let problem = "cannot be had without a virtual IP: the endpoint mode is dnsrr";
                return Err(wrong("network", address, problem));
            }
            if address.to_bits().checked_add(self.addressed_slots()).is_none() {
                return Err(wrong("network", address, "leaves no room for the slots"));
            }
        }
        self.check_slots()
    }

    /// What has no address of its own can neither be on other networks nor be published.
    fn check_host_network(&self) -> Result<(), SpecError> {
        if let Some(on) = self.networks.first() {
            let problem = "cannot be had beside the node's own network (host)";
            return Err(wrong("network", &on.network, problem));
        }
        if let Some(port) = self.ports.first() {
            let problem = "cannot be published: on the node's own network (host) the program's \
                           ports are the node's already";
            return Err(wrong("ports", port, problem));
        }
        match self.endpoint.slot_addresses {
            true => {
                let problem = "cannot be had on the node's own network (host)";
                Err(wrong("slot_addresses", true, problem))
            }
            false => Ok(()),
        }
    }

    fn check_slots(&self) -> Result<(), SpecError> {
        if !self.endpoint.slot_addresses {
            return Ok(());
        }
        match self.mode {
            Mode::Global => Err(wrong(
                "slot_addresses",
                true,
                "cannot be had by a global service: its tasks have no slots",
            )),
            Mode::ReplicatedJob { .. } | Mode::GlobalJob => {
                Err(wrong("slot_addresses", true, "cannot be had by a job: its tasks come and go"))
            }
            Mode::Replicated { replicas } if replicas > Self::SLOT_ADDRESSES_MAX => {
                let max = Self::SLOT_ADDRESSES_MAX;
                let problem = format!("is more than the {max} whose slots can have addresses");
                Err(wrong("replicas", replicas, problem))
            }
            Mode::Replicated { .. } => Ok(()),
        }
    }
}
