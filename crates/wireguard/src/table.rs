//! The whole table of own keys and peers that an engine is given, and what it must fulfil.
//!
//! Pure. Not here: which peer an address belongs to (`routing`), sessions (`link`).

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;

use crate::key::{PresharedKey, PrivateKey, PublicKey};

/// Two overlap while a key is replaced.
pub const KEYS_MAX: usize = 2;
/// An index on the wire has 24 bits for the pair of keys; this is far below, and far above a cluster.
pub const PEERS_MAX: usize = 65_536;
/// A node has a few blocks of addresses; a gateway to a site may have more.
pub const ALLOWED_MAX: usize = 1024;

/// A block of addresses, e.g. `10.128.3.0/24`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

impl Prefix {
    /// Bits of `address` beyond `len` are cleared.
    pub fn new(address: IpAddr, len: u8) -> Result<Self, TableError> {
        let len_max = if address.is_ipv4() { 32 } else { 128 };
        if len > len_max {
            return Err(TableError::PrefixLen { len, len_max });
        }
        let address = match address {
            IpAddr::V4(a) => {
                let mask = u32::MAX.checked_shl(u32::from(32 - len)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from(u32::from(a) & mask))
            }
            IpAddr::V6(a) => {
                let mask = u128::MAX.checked_shl(u32::from(128 - len)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from(u128::from(a) & mask))
            }
        };
        Ok(Self { address, len })
    }

    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Bits that addresses in it share.
    pub fn length(&self) -> u8 {
        self.len
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        Self::new(address, self.len).is_ok_and(|prefix| prefix == *self)
    }

    /// First and last address as numbers.
    pub(crate) fn bounds(&self) -> (u128, u128) {
        let (first, bits) = match self.address {
            IpAddr::V4(a) => (u128::from(u32::from(a)), 32),
            IpAddr::V6(a) => (u128::from(a), 128),
        };
        let host = u128::MAX.checked_shr(128 - (bits - u32::from(self.len))).unwrap_or(0);
        (first, first | host)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One peer. Tables that share a public key speak of the same one: it keeps its sessions,
/// the endpoint it was last heard from, and its counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// The first is used for new handshakes, all are accepted.
    pub keys: Vec<PublicKey>,
    pub preshared_key: Option<PresharedKey>,
    /// Where it can be reached, until it is heard from elsewhere.
    pub endpoint: Option<SocketAddr>,
    /// Messages go there instead, and are passed on: it is not reached itself (see `Relays`).
    pub via: Option<SocketAddr>,
    /// Where its packets may come from, and whose packets go to it.
    pub allowed: Vec<Prefix>,
    /// Seconds after which silence is broken, so that address translation on the way keeps its entry.
    pub keepalive: Option<NonZeroU16>,
}

/// All that an engine must hold; what is not in it is refused.
#[derive(Debug, Clone)]
pub struct Table {
    /// The first is offered in new handshakes, all are accepted.
    pub own: Vec<PrivateKey>,
    pub peers: Vec<PeerConfig>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    #[error("prefix length {len} is over {len_max}")]
    PrefixLen { len: u8, len_max: u8 },
    #[error("{found} keys of this node, it must be 1 to {KEYS_MAX}")]
    OwnKeys { found: usize },
    #[error("{found} keys of one peer, it must be 1 to {KEYS_MAX}")]
    PeerKeys { found: usize },
    #[error("key {key} is named twice")]
    KeyTwice { key: PublicKey },
    #[error("{found} peers, at most {PEERS_MAX} are held")]
    Peers { found: usize },
    #[error("{found} allowed prefixes of peer {key}, at most {ALLOWED_MAX} are held")]
    Allowed { key: PublicKey, found: usize },
    #[error("prefix {prefix} belongs to two peers")]
    PrefixTwice { prefix: Prefix },
}

impl Table {
    pub(crate) fn check(&self) -> Result<(), TableError> {
        if self.own.is_empty() || self.own.len() > KEYS_MAX {
            return Err(TableError::OwnKeys { found: self.own.len() });
        }
        if self.peers.len() > PEERS_MAX {
            return Err(TableError::Peers { found: self.peers.len() });
        }
        let (mut keys, mut prefixes) = (BTreeSet::new(), BTreeSet::new());
        let own = self.own.iter().map(PrivateKey::public);
        for key in own.chain(self.peers.iter().flat_map(|peer| peer.keys.iter().copied())) {
            if !keys.insert(key) {
                return Err(TableError::KeyTwice { key });
            }
        }
        for peer in &self.peers {
            let found = peer.keys.len();
            let Some(&key) = peer.keys.first().filter(|_| found <= KEYS_MAX) else {
                return Err(TableError::PeerKeys { found });
            };
            if peer.allowed.len() > ALLOWED_MAX {
                return Err(TableError::Allowed { key, found: peer.allowed.len() });
            }
            for &prefix in &peer.allowed {
                if !prefixes.insert(prefix) {
                    return Err(TableError::PrefixTwice { prefix });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        let (address, len) = text.split_once('/').unwrap();
        Prefix::new(address.parse().unwrap(), len.parse().unwrap()).unwrap()
    }

    fn key(n: u8) -> PrivateKey {
        PrivateKey::from_bytes([n; 32])
    }

    /// Own keys, then peers as `keys allowed`, e.g. `"1", &["2 10.0.0.0/8"]`.
    #[track_caller]
    fn check(own: &str, peers: &[&str], expected: &str) {
        let keys = |text: &str| text.bytes().map(|b| key(b - b'0')).collect::<Vec<_>>();
        let table = Table {
            own: keys(own),
            peers: peers
                .iter()
                .map(|peer| {
                    let mut words = peer.split(' ');
                    PeerConfig {
                        keys: keys(words.next().unwrap()).iter().map(PrivateKey::public).collect(),
                        preshared_key: None,
                        endpoint: None,
                        via: None,
                        allowed: words.map(prefix).collect(),
                        keepalive: None,
                    }
                })
                .collect(),
        };
        let found = table.check().map_or_else(|e| e.to_string(), |()| "fine".into());
        assert_eq!(found, expected);
    }

    #[test]
    fn tables() {
        check("1", &["2 10.0.0.0/8", "3 10.1.0.0/16"], "fine");
        check("12", &["34 10.0.0.0/8"], "fine");
        check("1", &[], "fine");
        check("", &[], "0 keys of this node, it must be 1 to 2");
        check("123", &[], "3 keys of this node, it must be 1 to 2");
        check("1", &["234"], "3 keys of one peer, it must be 1 to 2");
        check("1", &["2", "2"], &format!("key {} is named twice", key(2).public()));
        check("1", &["1"], &format!("key {} is named twice", key(1).public()));
        let twice = "prefix 10.0.0.0/8 belongs to two peers";
        check("1", &["2 10.0.0.0/8", "3 10.9.9.9/8"], twice);
    }

    #[test]
    fn prefixes() {
        assert_eq!(prefix("10.1.2.3/8").to_string(), "10.0.0.0/8");
        assert_eq!(prefix("fd00::1/64").to_string(), "fd00::/64");
        assert_eq!(prefix("1.2.3.4/0").bounds(), (0, u128::from(u32::MAX)));
        assert_eq!(prefix("::/0").bounds(), (0, u128::MAX));
        assert_eq!(prefix("::5/128").bounds(), (5, 5));
        assert!(prefix("10.0.0.0/8").contains("10.255.0.1".parse().unwrap()));
        assert!(!prefix("10.0.0.0/8").contains("11.0.0.1".parse().unwrap()));
        assert!(!prefix("0.0.0.0/0").contains("::1".parse().unwrap()));
        assert!(Prefix::new("10.0.0.0".parse().unwrap(), 33).is_err());
    }

    #[test]
    fn secrets_are_not_shown() {
        let text = format!("{:?} {:?}", key(7), PresharedKey::from_bytes([7; 32]));
        assert_eq!(text, "PrivateKey PresharedKey");
    }
}
