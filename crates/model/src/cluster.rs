//! The cluster itself: who it is, its settings and its secrets.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use zeroize::Zeroize;

use crate::allowance::Allowed;
use crate::bind::BindRule;
use crate::defaults::Defaults;
use crate::id::ClusterId;
use crate::moving::Rebalance;
use crate::overlay::OverlayKind;
use crate::placement::Strategy;
use crate::quantity::Time;
use crate::secret::Secret;

/// One per state. Settings have defaults that suit a small cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    pub id: ClusterId,
    /// Ended tasks kept per slot, for `service ps` and post-mortems.
    pub history_limit: u32,
    /// Addresses of containers; every node gets blocks of it.
    pub pool: Subnet,
    /// Prefix length of a node's block.
    pub block_prefix: u8,
    /// Virtual IPs of services; apart from the addresses of containers.
    pub vip_pool: Subnet,
    /// How containers' packets travel between nodes.
    pub overlay: OverlayKind,
    /// Absent in a cluster that never listened to others.
    pub ca: Option<Authority>,
    /// Lets workers join.
    pub worker_token: Option<JoinToken>,
    /// Lets managers join.
    pub manager_token: Option<JoinToken>,
    /// Of certificates of nodes.
    pub certificate_lifetime_ms: u64,
    /// Bumped by restore and recover: peers of before are refused.
    pub epoch: u64,
    /// Locks the key files of managers.
    pub unlock_key: Option<Secret>,
    /// Of the next manager in the consensus group; kept by the state, only goes up.
    pub next_number: u64,
    /// Backups that the leader writes by itself.
    pub backup: Option<BackupPolicy>,
    /// Of services that name none of their own.
    pub strategy: Strategy,
    /// Whether services that do not say otherwise are moved to nodes that came later.
    pub rebalance: Rebalance,
    /// Of tasks that say nothing of it.
    pub defaults: Defaults,
    /// Paths of nodes that containers may mount; none: no path.
    pub allow_bind: Vec<BindRule>,
    /// What services may ask for that endangers nodes.
    pub allowed: Allowed,
}

impl Cluster {
    /// 90 days: long enough to be away, short enough that what was stolen ends.
    pub const CERTIFICATE_LIFETIME_MS: u64 = 90 * 86_400_000;
    /// Shorter, and one busy moment at the time of renewal would cost a member its place.
    pub const CERTIFICATE_LIFETIME_MIN_MS: u64 = 10_000;
    /// Ten years; what lives longer is never rotated.
    pub const CERTIFICATE_LIFETIME_MAX_MS: u64 = 3650 * 86_400_000;
    /// Of the manager that founds a cluster.
    pub const FIRST_NUMBER: u64 = 1;
    /// 16,384 nodes of 253 containers, in the part of 10.0.0.0/8 that is used least.
    pub const POOL: Subnet = Subnet { address: Ipv4Addr::new(10, 128, 0, 0), prefix: 10 };
    /// 262,142 virtual IPs, right behind the containers.
    pub const VIP_POOL: Subnet = Subnet { address: Ipv4Addr::new(10, 192, 0, 0), prefix: 14 };

    pub fn new(id: ClusterId) -> Self {
        Self {
            id,
            history_limit: 5,
            pool: Self::POOL,
            block_prefix: 24,
            vip_pool: Self::VIP_POOL,
            overlay: OverlayKind::default(),
            ca: None,
            worker_token: None,
            manager_token: None,
            certificate_lifetime_ms: Self::CERTIFICATE_LIFETIME_MS,
            epoch: 0,
            unlock_key: None,
            next_number: Self::FIRST_NUMBER,
            backup: None,
            strategy: Strategy::default(),
            rebalance: Rebalance::default(),
            defaults: Defaults::default(),
            allow_bind: Vec::new(),
            allowed: Allowed::default(),
        }
    }
}

/// The cluster's certificate authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// DER. The first one issues; the others are trusted too, cross-signed ones last.
    pub certificates: Vec<Vec<u8>>,
    /// Of the first one, PKCS#8 DER.
    pub key: Secret,
}

impl Authority {
    /// The current one, those before it until all nodes have changed, and their cross-signed ones.
    pub const CERTIFICATES_MAX: usize = 8;
}

/// Lets a node join; without its secret nobody gets in.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub secret: [u8; 16],
    /// Good for nothing from then on.
    pub expires: Option<Time>,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("expires", &self.expires).finish_non_exhaustive()
    }
}

impl Drop for JoinToken {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

/// Backups that the leader writes by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupPolicy {
    /// On the leader's machine, whichever that is.
    pub folder: String,
    pub interval_ms: u64,
    /// Newest ones kept; older ones are removed.
    pub keep: u32,
    /// A public key for backups, `wrnb1-…`.
    pub recipient: String,
}

impl BackupPolicy {
    /// A backup is the whole state: more often, and it would never be idle.
    pub const INTERVAL_MIN_MS: u64 = 60_000;
    /// A year of daily ones, twice.
    pub const KEEP_MAX: u32 = 1000;
}

/// An IPv4 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    pub address: Ipv4Addr,
    pub prefix: u8,
}

impl Subnet {
    /// Addresses in the network, edges included.
    pub fn size(&self) -> u64 {
        1 << (32 - u32::from(self.prefix.min(32)))
    }

    /// The `n`th address, `None` past the end.
    pub fn nth(&self, n: u64) -> Option<Ipv4Addr> {
        let offset = u32::try_from(n).ok().filter(|_| n < self.size())?;
        u32::from(self.address).checked_add(offset).map(Ipv4Addr::from)
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let first = u64::from(u32::from(self.address));
        (first..first + self.size()).contains(&u64::from(u32::from(address)))
    }

    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }
}

/// Why a text is no subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    #[error("{text:?} is not a subnet; write e.g. {example}")]
    Shape { text: String, example: &'static str },
    #[error("{text:?} has bits after its prefix; {meant} has none")]
    HostBits { text: String, meant: String },
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let shape = || SubnetError::Shape { text: text.into(), example: "10.20.0.0/16" };
        let (address, prefix) = text.split_once('/').ok_or_else(shape)?;
        let address: Ipv4Addr = address.parse().map_err(|_| shape())?;
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32).ok_or_else(shape)?;
        let bits = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        let first = Self { address: Ipv4Addr::from_bits(address.to_bits() & bits), prefix };
        if first.address == address {
            return Ok(first);
        }
        Err(SubnetError::HostBits { text: text.into(), meant: first.to_string() })
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_are_apart() {
        assert!(!Cluster::POOL.overlaps(&Cluster::VIP_POOL));
        assert_eq!(Cluster::VIP_POOL.size(), 1 << 18);
    }

    #[test]
    fn subnets_as_text() {
        let parse = |text: &str| match text.parse::<Subnet>() {
            Ok(subnet) => subnet.to_string(),
            Err(error) => error.to_string(),
        };
        for good in ["10.0.0.0/8", "0.0.0.0/0", "1.2.3.4/32"] {
            assert_eq!(parse(good), good);
        }
        assert_eq!(
            parse("10.1.2.3/16"),
            "\"10.1.2.3/16\" has bits after its prefix; 10.1.0.0/16 has none"
        );
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0/8", "fd00::/8", "10.0.0.0/-1"] {
            assert!(parse(bad).ends_with("is not a subnet; write e.g. 10.20.0.0/16"), "{bad}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let cluster = Cluster {
            ca: Some(Authority { certificates: vec![], key: Secret::new(vec![211; 9]) }),
            worker_token: Some(JoinToken { secret: [211; 16], expires: None }),
            unlock_key: Some(Secret::new(vec![211; 32])),
            ..Cluster::new(ClusterId::from_bytes([1; 10]))
        };
        let text = format!("{cluster:?}");
        assert!(!text.contains("211"), "{text}");
        assert!(text.contains("history_limit"), "what is not secret is printed");
    }
}
