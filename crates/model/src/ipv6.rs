//! IPv6 addresses of containers and services: functions of the cluster and of
//! the IPv4 address, so that nobody has to allocate them a second time.
//!
//! A cluster's addresses are Unique Local ones (RFC 4193): `fd`, 40 bits of the
//! cluster's random id as the Global ID, 16 bits of subnet, and an interface
//! identifier that ends in the IPv4 address:
//!
//! ```text
//! fdgg:gggg:gggg:0000::a80:2      the container at 10.128.0.2
//! fdgg:gggg:gggg:0001::ac0:2      the virtual IP 10.192.0.2
//! fdgg:gggg:gggg:ssss::ac0:2      the same on a network with a /64 of its own
//! ```
//!
//! Not here: who gets an IPv4 address (`planner`), routes (`net`).

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::cluster::{Subnet, SubnetError};
use crate::id::ClusterId;

/// Prefix of a subnet of the cluster.
pub const SUBNET_PREFIX: u8 = 64;
/// Prefix of all that a cluster has.
const CLUSTER_PREFIX: u8 = 48;
/// Subnets that networks cannot have.
const CONTAINERS: u16 = 0;
const VIPS: u16 = 1;
/// Bits before the IPv4 address within an address.
const EMBEDDED_AT: u8 = 96;

/// An IPv6 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet6 {
    pub address: Ipv6Addr,
    pub prefix: u8,
}

impl Subnet6 {
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        let bits = u32::from(self.prefix.min(128));
        let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
        (self.address.to_bits() ^ address.to_bits()) & mask == 0
    }

    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }
}

impl fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Subnet6 {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let shape = || SubnetError::Shape { text: text.into(), example: "fd00:1:2:3::/64" };
        let (address, prefix) = text.split_once('/').ok_or_else(shape)?;
        let address: Ipv6Addr = address.parse().map_err(|_| shape())?;
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 128).ok_or_else(shape)?;
        let bits = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
        let first = Self { address: Ipv6Addr::from_bits(address.to_bits() & bits), prefix };
        if first.address == address {
            return Ok(first);
        }
        Err(SubnetError::HostBits { text: text.into(), meant: first.to_string() })
    }
}

/// Everything that a cluster's containers and services have (RFC 4193 section 3.1).
pub fn cluster_prefix(cluster: ClusterId) -> Subnet6 {
    Subnet6 { address: subnet(cluster, 0).address, prefix: CLUSTER_PREFIX }
}

fn subnet(cluster: ClusterId, number: u16) -> Subnet6 {
    let mut bytes = [0; 16];
    bytes[0] = 0xfd;
    // The id is random in all its bits.
    bytes[1..6].copy_from_slice(&cluster.as_bytes()[5..]);
    bytes[6..8].copy_from_slice(&number.to_be_bytes());
    Subnet6 { address: Ipv6Addr::from(bytes), prefix: SUBNET_PREFIX }
}

/// Of all containers.
pub fn container_subnet(cluster: ClusterId) -> Subnet6 {
    subnet(cluster, CONTAINERS)
}

/// Of virtual IPs on networks without a subnet of their own.
pub fn vip_subnet(cluster: ClusterId) -> Subnet6 {
    subnet(cluster, VIPS)
}

/// The address of a container beside its IPv4 one.
pub fn of_container(cluster: ClusterId, address: Ipv4Addr) -> Ipv6Addr {
    embed(container_subnet(cluster), address)
}

/// The virtual IP beside an IPv4 one; `own` is the network's subnet, if it has one.
pub fn of_vip(cluster: ClusterId, own: Option<Subnet6>, address: Ipv4Addr) -> Ipv6Addr {
    embed(own.unwrap_or_else(|| vip_subnet(cluster)), address)
}

/// The addresses of the containers of an IPv4 block.
pub fn of_block(cluster: ClusterId, block: Subnet) -> Subnet6 {
    let address = of_container(cluster, block.address);
    Subnet6 { address, prefix: EMBEDDED_AT + block.prefix.min(32) }
}

fn embed(subnet: Subnet6, address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(subnet.address.to_bits() | u128::from(address.to_bits()))
}

/// Why a subnet cannot be a network's own.
///
/// # Errors
/// In words that follow the subnet.
pub fn check_own(cluster: ClusterId, own: Subnet6) -> Result<(), String> {
    let all = cluster_prefix(cluster);
    if own.prefix != SUBNET_PREFIX || !all.contains(own.address) {
        return Err(format!("is not a /{SUBNET_PREFIX} of {all}, which is this cluster's"));
    }
    let taken = [(container_subnet(cluster), "containers"), (vip_subnet(cluster), "virtual IPs")];
    match taken.into_iter().find(|(subnet, _)| *subnet == own) {
        Some((_, whose)) => Err(format!("is that of all {whose}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId::from_bytes([9, 9, 9, 9, 9, 0x12, 0x34, 0x56, 0x78, 0x9a]);

    #[test]
    fn addresses_follow_from_the_cluster_and_ipv4() {
        let (container, vip) = ([10, 128, 0, 2].into(), [10, 192, 0, 2].into());
        assert_eq!(cluster_prefix(CLUSTER).to_string(), "fd12:3456:789a::/48");
        assert_eq!(of_container(CLUSTER, container).to_string(), "fd12:3456:789a::a80:2");
        assert_eq!(of_vip(CLUSTER, None, vip).to_string(), "fd12:3456:789a:1::ac0:2");
        let own = "fd12:3456:789a:7::/64".parse().unwrap();
        assert_eq!(of_vip(CLUSTER, Some(own), vip).to_string(), "fd12:3456:789a:7::ac0:2");
        let block = Subnet { address: [10, 128, 3, 0].into(), prefix: 24 };
        let wide = of_block(CLUSTER, block);
        assert_eq!(wide.to_string(), "fd12:3456:789a::a80:300/120");
        assert!(wide.contains(of_container(CLUSTER, [10, 128, 3, 255].into())));
        assert!(!wide.contains(of_container(CLUSTER, [10, 128, 4, 0].into())));
    }

    #[test]
    fn a_network_has_a_64_of_the_cluster() {
        let check = |text: &str| {
            let outcome = check_own(CLUSTER, text.parse().unwrap());
            outcome.map_or_else(|why| why, |()| "ok".to_owned())
        };
        assert_eq!(check("fd12:3456:789a:7::/64"), "ok");
        assert_eq!(check("fd12:3456:789a::/64"), "is that of all containers");
        assert_eq!(check("fd12:3456:789a:1::/64"), "is that of all virtual IPs");
        let not = "is not a /64 of fd12:3456:789a::/48, which is this cluster's";
        assert_eq!(check("fd12:3456:789a::/48"), not);
        assert_eq!(check("fd12:3456:789b:7::/64"), not);
    }

    #[test]
    fn subnets_as_text() {
        let parse = |text: &str| match text.parse::<Subnet6>() {
            Ok(subnet) => subnet.to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(parse("fd00::/8"), "fd00::/8");
        assert_eq!(parse("::/0"), "::/0");
        assert_eq!(
            parse("fd00::1/64"),
            "\"fd00::1/64\" has bits after its prefix; fd00::/64 has none"
        );
        for bad in ["fd00::", "fd00::/129", "10.0.0.0/8", "x/64"] {
            assert!(parse(bad).ends_with("is not a subnet; write e.g. fd00:1:2:3::/64"), "{bad}");
        }
        let all: Subnet6 = "::/0".parse().unwrap();
        assert!(all.contains(Ipv6Addr::LOCALHOST) && all.overlaps(&container_subnet(CLUSTER)));
        assert!(!vip_subnet(CLUSTER).overlaps(&container_subnet(CLUSTER)));
    }
}
