//! Networks: who may reach whom, and by which names; and the virtual IPs that
//! services have on them.
//!
//! A network is policy, not a subnet: a container has one address whatever
//! networks its service is on, and none of them runs out of addresses. It has
//! no driver either, since the cluster's overlay carries all of them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::cluster::Subnet;
use crate::id::{NetworkId, ServiceId};
use crate::ipv6::Subnet6;
use crate::name::{NameError, NetworkName};
use crate::quantity::Time;
use crate::service::{SpecError, check_labels};

/// A network as the state holds it. It is never changed, only made and removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub id: NetworkId,
    pub spec: NetworkSpec,
    pub created: Time,
    /// Of its creation.
    pub revision: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSpec {
    pub name: NetworkName,
    pub labels: BTreeMap<String, String>,
    /// Nothing on it reaches what is outside of the cluster, nor is reached from there.
    pub internal: bool,
    /// Means nothing: every container is a service's. Kept of those that were made with it.
    pub attachable: bool,
    /// What goes from node to node is encrypted.
    pub encrypted: bool,
    /// Virtual IPs on it are of this part of the cluster's pool, and of no other network.
    pub subnet: Option<Subnet>,
    /// IPv6 virtual IPs are of this subnet of the cluster's.
    pub subnet_v6: Option<Subnet6>,
}

impl NetworkSpec {
    /// One with everything as by default.
    pub fn new(name: NetworkName) -> Self {
        Self {
            name,
            labels: BTreeMap::new(),
            internal: false,
            attachable: false,
            encrypted: true,
            subnet: None,
            subnet_v6: None,
        }
    }

    /// The one that services are on which name none.
    ///
    /// # Errors
    /// Never: the name is one.
    pub fn of_default() -> Result<Self, NameError> {
        NetworkName::DEFAULT.parse().map(Self::new)
    }

    /// Checks what can be told without the cluster.
    ///
    /// # Errors
    /// The first [`SpecError`] found.
    pub fn validate(&self) -> Result<(), SpecError> {
        check_labels("labels", &self.labels)?;
        if self.attachable {
            let (field, value) = ("attachable".to_owned(), "true".to_owned());
            let problem = "means nothing here: every container is a service's, and services join \
                           networks by themselves";
            return Err(SpecError { field, value, problem: problem.to_owned() });
        }
        let Some(subnet) = self.subnet else { return Ok(()) };
        if subnet.prefix > Self::SUBNET_PREFIX_MAX {
            let (field, value) = ("subnet".to_owned(), subnet.to_string());
            let problem = format!("has room for no service: at most /{}", Self::SUBNET_PREFIX_MAX);
            return Err(SpecError { field, value, problem });
        }
        Ok(())
    }

    /// With a longer prefix nothing is left between the first and the last address.
    pub const SUBNET_PREFIX_MAX: u8 = 30;
}

/// An address that stands for a service, or for one of its slots, on one network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vip {
    pub address: Ipv4Addr,
    pub holder: VipHolder,
    /// Since when nobody has it. Others may still remember whose it was, so for
    /// [`Vip::QUARANTINE_MS`] nobody but its last holder gets it.
    pub released: Option<Time>,
}

/// Who has a virtual IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct VipHolder {
    pub service: ServiceId,
    pub network: NetworkId,
    /// From 1; 0 is the service itself.
    pub slot: u32,
}

impl Vip {
    /// Far longer than any answer of ours lives (names: 1 s), and than programs that remember
    /// addresses by themselves do (a Java machine: 30 s). Connections that are open longer were
    /// told of the end of what they talked to.
    pub const QUARANTINE_MS: u64 = 10 * 60_000;

    /// Until when nobody else gets it; `None` while somebody has it.
    pub fn quarantined_until(&self) -> Option<Time> {
        self.released.map(|at| at.plus_ms(Self::QUARANTINE_MS))
    }

    /// Whether an address of a pool can be one: not its first nor its last, which look like a
    /// network and a broadcast to people and programs.
    pub fn is_usable(pool: Subnet, address: Ipv4Addr) -> bool {
        let edges = [pool.nth(0), pool.nth(pool.size() - 1)];
        pool.contains(address) && !edges.contains(&Some(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_network() {
        let spec = NetworkSpec::of_default().unwrap();
        assert_eq!(spec.name.as_str(), "default");
        assert!(spec.encrypted && !spec.internal && spec.validate().is_ok());
    }

    #[test]
    fn subnets_have_room() {
        let with = |text: &str| {
            let subnet = Some(text.parse().unwrap());
            NetworkSpec { subnet, ..NetworkSpec::of_default().unwrap() }.validate()
        };
        assert_eq!(with("10.192.4.0/30"), Ok(()));
        assert_eq!(
            with("10.192.4.0/31").unwrap_err().to_string(),
            "subnet: \"10.192.4.0/31\" has room for no service: at most /30"
        );
    }

    #[test]
    fn nothing_is_attachable() {
        let spec = NetworkSpec { attachable: true, ..NetworkSpec::of_default().unwrap() };
        let text = spec.validate().unwrap_err().to_string();
        assert!(text.starts_with("attachable: \"true\" means nothing here"), "{text}");
    }

    #[test]
    fn edges_are_not_usable() {
        let pool: Subnet = "10.192.0.0/30".parse().unwrap();
        let usable = (0..6).filter(|n| Vip::is_usable(pool, [10, 192, 0, *n].into()));
        assert_eq!(usable.collect::<Vec<_>>(), [1, 2]);
    }
}
