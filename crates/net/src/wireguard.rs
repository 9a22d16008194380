//! WireGuard in the kernel: one device, told whole tables of peers.
//!
//! Contract: [`Wireguard::set_peers`] makes the device's peers those that are wanted, by the
//! difference to what the kernel holds: who stays keeps its session. An endpoint is told once,
//! and again when it is wanted to be another; in between the kernel follows a peer that moves.
//! The device outlives this process and is found again by its name.
//!
//! Source of the messages: `linux/wireguard.h`, `linux/genetlink.h`. Kernels since 5.6.
//!
//! Not here: routes into the device (`overlay`), WireGuard where the kernel has none
//! (`warren_wireguard`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::link::Links;
use crate::netlink::{Attributes, Messages, Socket, attribute, attributes_in, flag, text, u16_at};
use crate::{Error, Subnet};

// linux/rtnetlink.h
const LINKS: u32 = 1;
const RTM_DELLINK: u16 = 17;
const IFLA_IFNAME: u16 = 3;
// linux/genetlink.h
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
// linux/wireguard.h
const FAMILY: &str = "wireguard";
const GET_DEVICE: u8 = 0;
const SET_DEVICE: u8 = 1;
const DEVICE_NAME: u16 = 2;
const DEVICE_PRIVATE_KEY: u16 = 3;
const DEVICE_PUBLIC_KEY: u16 = 4;
const DEVICE_LISTEN_PORT: u16 = 6;
const DEVICE_PEERS: u16 = 8;
const PEER_PUBLIC_KEY: u16 = 1;
const PEER_FLAGS: u16 = 3;
const PEER_ENDPOINT: u16 = 4;
const PEER_HANDSHAKE: u16 = 6;
const PEER_RECEIVED: u16 = 7;
const PEER_SENT: u16 = 8;
const PEER_ALLOWED: u16 = 9;
const REMOVE_ME: u32 = 1;
const REPLACE_ALLOWED: u32 = 2;
const ALLOWED_FAMILY: u16 = 1;
const ALLOWED_ADDRESS: u16 = 2;
const ALLOWED_LEN: u16 = 3;
const KEY_LEN: usize = 32;
/// Prefixes and peers of one message, whose attributes end at 64 KiB. A peer's own are together.
const MESSAGE_MAX: usize = 1000;
/// Of one peer: what is beyond does not come through.
const ALLOWED_MAX: usize = 1000;
/// Older than this a session is dead (WireGuard, section 6.1: `Reject-After-Time`).
const SESSION_MS: u64 = 180_000;

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireguardPeer {
    /// Its public key.
    pub key: [u8; KEY_LEN],
    /// Where it is; `None` if it has to make the first step.
    pub endpoint: Option<SocketAddr>,
    /// What may come from it, and goes to it.
    pub allowed: BTreeSet<Subnet>,
}

/// A peer as the kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireguardState {
    /// Its public key.
    pub key: [u8; KEY_LEN],
    /// Where it was last heard, or is said to be.
    pub endpoint: Option<SocketAddr>,
    /// When a handshake was last done, in ms since 1970; 0: never.
    pub handshake_ms: u64,
    /// Bytes that came from it and went to it, the protocol's own included.
    pub received: u64,
    /// See `received`.
    pub sent: u64,
    /// See [`WireguardPeer::allowed`].
    pub allowed: BTreeSet<Subnet>,
}

/// A device of the kernel's.
pub struct Wireguard {
    name: String,
    socket: Socket,
    family: u16,
    /// Endpoints as last told, by key.
    told: BTreeMap<[u8; KEY_LEN], Option<SocketAddr>>,
}

impl Wireguard {
    /// Makes the device in the calling thread's network namespace, or takes the one that is
    /// there, gives it key and port and raises it. A link of another kind that has the name is
    /// removed: it is an earlier daemon's.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the kernel has no WireGuard; the kernel refuses otherwise, for
    /// one when somebody else has the port.
    pub fn open(
        name: &str,
        private_key: &[u8; KEY_LEN],
        port: u16,
        mtu: u32,
    ) -> Result<Self, Error> {
        let mut links = Links::open()?;
        links.ensure_device(name, FAMILY, mtu)?;
        let failed = |source| Error::io("open a generic netlink socket", source);
        let mut socket = Socket::generic().map_err(failed)?;
        let family = family(&mut socket)?;
        let mut device = Self { name: name.to_owned(), socket, family, told: BTreeMap::default() };
        let mut messages = Messages::default();
        device.push(&mut messages, SET_DEVICE, flag::ACK, |a| {
            a.bytes(DEVICE_PRIVATE_KEY, private_key);
            a.bytes(DEVICE_LISTEN_PORT, &port.to_ne_bytes());
        });
        let configured = device.transact(&mut messages, "set key and port of");
        messages.wipe();
        configured?;
        links.raise(name)?;
        Ok(device)
    }

    /// Its public key, as the kernel says.
    ///
    /// # Errors
    /// The kernel does not answer, or the device is gone.
    pub fn public_key(&mut self) -> Result<[u8; KEY_LEN], Error> {
        let mut found = None;
        self.dump(|attributes| {
            found = found.or_else(|| key(attribute(attributes, DEVICE_PUBLIC_KEY)?));
        })?;
        found.ok_or_else(|| self.gone())
    }

    /// Makes these the device's peers. Says how many were told anew.
    ///
    /// # Errors
    /// The kernel refuses, or the device is gone.
    pub fn set_peers(&mut self, wanted: &[WireguardPeer], now_ms: u64) -> Result<usize, Error> {
        let held: BTreeMap<_, _> = self.state()?.into_iter().map(|s| (s.key, s)).collect();
        let changes = changes(wanted, &held, &self.told, now_ms);
        for some in parts(&changes) {
            let mut messages = Messages::default();
            self.push(&mut messages, SET_DEVICE, flag::ACK, |a| {
                a.nested(DEVICE_PEERS, |a| {
                    for (at, change) in (0..).zip(some) {
                        a.nested(at, |a| write_peer(a, change));
                    }
                });
            });
            self.transact(&mut messages, "set peers of")?;
        }
        self.told = wanted.iter().map(|peer| (peer.key, peer.endpoint)).collect();
        Ok(changes.len())
    }

    /// All peers, as the kernel knows them.
    ///
    /// # Errors
    /// The kernel does not answer, or the device is gone.
    pub fn state(&mut self) -> Result<Vec<WireguardState>, Error> {
        let mut peers: BTreeMap<[u8; KEY_LEN], WireguardState> = BTreeMap::new();
        self.dump(|attributes| {
            let listed = attribute(attributes, DEVICE_PEERS).unwrap_or_default();
            for peer in attributes_in(listed).filter_map(|(_, peer)| read_peer(peer)) {
                // A peer with many prefixes comes in several parts.
                match peers.get_mut(&peer.key) {
                    Some(known) => known.allowed.extend(peer.allowed),
                    None => drop(peers.insert(peer.key, peer)),
                }
            }
        })?;
        Ok(peers.into_values().collect())
    }

    /// Takes the device away. One that is gone is fine.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove(name: &str) -> Result<(), Error> {
        Links::open()?.remove_device(name)
    }

    fn dump(&mut self, mut each: impl FnMut(&[u8])) -> Result<(), Error> {
        let mut messages = Messages::default();
        self.push(&mut messages, GET_DEVICE, flag::DUMP, |_| {});
        let asked = self.socket.query(&messages, |_, payload| {
            each(payload.get(4..).unwrap_or_default());
        });
        asked.map_err(|source| Error::io(format!("ask about {}", self.name), source))
    }

    fn push(
        &self,
        messages: &mut Messages,
        command: u8,
        flags: u16,
        body: impl FnOnce(&mut Attributes<'_>),
    ) {
        messages.push(self.family, flags, &[command, 1, 0, 0], |a| {
            a.text(DEVICE_NAME, &self.name);
            body(a);
        });
    }

    fn transact(&mut self, messages: &mut Messages, what: &str) -> Result<(), Error> {
        let refused = self.socket.transact(messages);
        refused.map_err(|refused| Error::io(format!("{what} {}", self.name), refused.source))
    }

    fn gone(&self) -> Error {
        Error::io(format!("ask about {}", self.name), io::ErrorKind::NotFound.into())
    }
}

/// Tells when the device was taken away by somebody else.
pub struct WireguardWatch {
    socket: AsyncFd<Socket>,
    name: String,
}

impl WireguardWatch {
    /// Of the device of this name, in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel refuses, or the thread has no event loop.
    pub fn open(name: &str) -> Result<Self, Error> {
        let failed = |source| Error::io("watch links", source);
        let mut socket = Socket::route().map_err(failed)?;
        socket.subscribe(LINKS).map_err(failed)?;
        let socket = watched(socket).map_err(failed)?;
        Ok(Self { socket, name: name.to_owned() })
    }

    /// Returns once it may be gone.
    ///
    /// # Errors
    /// The kernel tells nothing any more.
    pub async fn gone(&mut self) -> Result<(), Error> {
        let failed = |source| Error::io("watch links", source);
        loop {
            let mut ready = self.socket.readable_mut().await.map_err(failed)?;
            let mut gone = false;
            let complete = ready.get_inner_mut().drain(|kind, payload| {
                let name = payload.get(16..).and_then(|all| attribute(all, IFLA_IFNAME));
                gone |= kind == RTM_DELLINK && name.map(text).as_deref() == Some(&self.name);
            });
            ready.clear_ready();
            if gone || !complete.map_err(failed)? {
                return Ok(());
            }
        }
    }
}

#[allow(unsafe_code)]
fn watched(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: a `Socket` owns its descriptor, which stays the same until the `AsyncFd` is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE)? })
}

/// One peer's part of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Change {
    key: [u8; KEY_LEN],
    remove: bool,
    endpoint: Option<SocketAddr>,
    /// All of them, if they are not as they were.
    allowed: Option<BTreeSet<Subnet>>,
}

/// In order, as many together as a message takes.
fn parts(mut changes: &[Change]) -> Vec<&[Change]> {
    let mut parts = Vec::new();
    while !changes.is_empty() {
        let mut weight = 0;
        let fits = changes.iter().take_while(|change| {
            // A peer without prefixes is as large as four of them.
            weight += 4 + change.allowed.as_ref().map_or(0, |all| all.len().min(ALLOWED_MAX));
            weight <= MESSAGE_MAX
        });
        let (part, rest) = changes.split_at(fits.count().max(1));
        parts.push(part);
        changes = rest;
    }
    parts
}

/// What the kernel has to be told. Removals come first: a prefix belongs to one peer.
fn changes(
    wanted: &[WireguardPeer],
    held: &BTreeMap<[u8; KEY_LEN], WireguardState>,
    told: &BTreeMap<[u8; KEY_LEN], Option<SocketAddr>>,
    now_ms: u64,
) -> Vec<Change> {
    let keys: BTreeSet<_> = wanted.iter().map(|peer| peer.key).collect();
    let gone = held.keys().filter(|key| !keys.contains(*key));
    let mut changes: Vec<Change> =
        gone.map(|&key| Change { key, remove: true, endpoint: None, allowed: None }).collect();
    for peer in wanted {
        let known = held.get(&peer.key);
        // Of an earlier daemon: a peer that answers is where the kernel says.
        let lives =
            known.is_some_and(|k| k.handshake_ms > 0 && now_ms < k.handshake_ms + SESSION_MS);
        let endpoint = match told.get(&peer.key) {
            Some(before) if known.is_some() => peer.endpoint.filter(|_| *before != peer.endpoint),
            None if lives => None,
            _ => peer.endpoint.filter(|at| known.and_then(|k| k.endpoint) != Some(*at)),
        };
        let allowed = known.is_none_or(|known| known.allowed != peer.allowed);
        if known.is_none() || endpoint.is_some() || allowed {
            let allowed = allowed.then(|| peer.allowed.clone());
            changes.push(Change { key: peer.key, remove: false, endpoint, allowed });
        }
    }
    changes
}

fn write_peer(a: &mut Attributes<'_>, change: &Change) {
    a.bytes(PEER_PUBLIC_KEY, &change.key);
    if change.remove {
        a.host32(PEER_FLAGS, REMOVE_ME);
        return;
    }
    if let Some(endpoint) = change.endpoint {
        a.bytes(PEER_ENDPOINT, &sockaddr(endpoint));
    }
    let Some(allowed) = &change.allowed else { return };
    a.host32(PEER_FLAGS, REPLACE_ALLOWED);
    a.nested(PEER_ALLOWED, |a| {
        for (at, (address, len)) in (0..).zip(allowed.iter().take(ALLOWED_MAX)) {
            a.nested(at, |a| {
                let (family, octets) = match address {
                    IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
                    IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
                };
                let family = u16::try_from(family).unwrap_or_default();
                a.bytes(ALLOWED_FAMILY, &family.to_ne_bytes())
                    .bytes(ALLOWED_ADDRESS, &octets)
                    .bytes(ALLOWED_LEN, &[*len]);
            });
        }
    });
}

/// `None` for what cannot be understood.
fn read_peer(bytes: &[u8]) -> Option<WireguardState> {
    let number = |kind| Some(u64::from_ne_bytes(attribute(bytes, kind)?.try_into().ok()?));
    let handshake = attribute(bytes, PEER_HANDSHAKE).and_then(|time| {
        // `struct __kernel_timespec`
        let seconds = u64::from_ne_bytes(*time.first_chunk()?);
        let nanoseconds = u64::from_ne_bytes(*time.get(8..)?.first_chunk()?);
        Some(seconds.saturating_mul(1000).saturating_add(nanoseconds / 1_000_000))
    });
    let listed = attribute(bytes, PEER_ALLOWED).unwrap_or_default();
    Some(WireguardState {
        key: key(attribute(bytes, PEER_PUBLIC_KEY)?)?,
        endpoint: attribute(bytes, PEER_ENDPOINT).and_then(endpoint),
        handshake_ms: handshake.unwrap_or_default(),
        received: number(PEER_RECEIVED).unwrap_or_default(),
        sent: number(PEER_SENT).unwrap_or_default(),
        allowed: attributes_in(listed).filter_map(|(_, one)| subnet(one)).collect(),
    })
}

fn subnet(bytes: &[u8]) -> Option<Subnet> {
    let address = attribute(bytes, ALLOWED_ADDRESS)?;
    let address = match address.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(address).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
        _ => return None,
    };
    Some((address, *attribute(bytes, ALLOWED_LEN)?.first()?))
}

fn key(bytes: &[u8]) -> Option<[u8; KEY_LEN]> {
    bytes.try_into().ok()
}

/// `struct sockaddr_in` or `struct sockaddr_in6`.
fn sockaddr(at: SocketAddr) -> Vec<u8> {
    let family = match at {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    let mut bytes = u16::try_from(family).unwrap_or_default().to_ne_bytes().to_vec();
    bytes.extend(at.port().to_be_bytes());
    match at {
        SocketAddr::V4(v4) => {
            bytes.extend(v4.ip().octets());
            bytes.extend([0; 8]);
        }
        SocketAddr::V6(v6) => {
            bytes.extend(v6.flowinfo().to_be_bytes());
            bytes.extend(v6.ip().octets());
            bytes.extend(v6.scope_id().to_ne_bytes());
        }
    }
    bytes
}

fn endpoint(bytes: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    let address = match i32::from(u16_at(bytes, 0)?) {
        libc::AF_INET => IpAddr::from(*bytes.get(4..)?.first_chunk::<4>()?),
        libc::AF_INET6 => IpAddr::from(*bytes.get(8..)?.first_chunk::<16>()?),
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

/// The number by which the kernel knows WireGuard today.
fn family(socket: &mut Socket) -> Result<u16, Error> {
    let mut messages = Messages::default();
    messages.push(CONTROL, 0, &[GET_FAMILY, 1, 0, 0], |a| {
        a.text(FAMILY_NAME, FAMILY);
    });
    let mut found = None;
    let asked = socket.query(&messages, |_, payload| {
        let attributes = payload.get(4..).unwrap_or_default();
        let named = attribute(attributes, FAMILY_NAME).map(text);
        if named.as_deref() == Some(FAMILY) {
            found = attribute(attributes, FAMILY_ID).and_then(|id| u16_at(id, 0));
        }
    });
    asked.map_err(|source| Error::io("look for WireGuard in the kernel", source))?;
    found.ok_or_else(|| Error::Unsupported("the kernel has no WireGuard".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnets(text: &str) -> BTreeSet<Subnet> {
        let parse = |word: &str| {
            let (address, len) = word.split_once('/').unwrap();
            (address.parse().unwrap(), len.parse().unwrap())
        };
        text.split_whitespace().map(parse).collect()
    }

    fn at(text: &str) -> Option<SocketAddr> {
        (!text.is_empty()).then(|| text.parse().unwrap())
    }

    fn peer(n: u8, endpoint: &str, allowed: &str) -> WireguardPeer {
        WireguardPeer { key: [n; 32], endpoint: at(endpoint), allowed: subnets(allowed) }
    }

    fn held(n: u8, endpoint: &str, allowed: &str, handshake_ms: u64) -> WireguardState {
        let (endpoint, allowed) = (at(endpoint), subnets(allowed));
        let (received, sent) = (0, 0);
        WireguardState { key: [n; 32], endpoint, handshake_ms, received, sent, allowed }
    }

    /// `-1` removes peer 1, `2@ENDPOINT` tells where it is, `2=ALLOWED` what it may send.
    fn check(
        wanted: &[WireguardPeer],
        kernel: &[WireguardState],
        told: &[(u8, &str)],
        expected: &str,
    ) {
        let kernel = kernel.iter().map(|state| (state.key, state.clone())).collect();
        let told = told.iter().map(|(n, endpoint)| ([*n; 32], at(endpoint))).collect();
        let words = changes(wanted, &kernel, &told, 1_000_000).into_iter().map(|change| {
            let mut word = format!("{}{}", if change.remove { "-" } else { "" }, change.key[0]);
            if let Some(endpoint) = change.endpoint {
                word += &format!("@{endpoint}");
            }
            if let Some(allowed) = change.allowed {
                let all: Vec<String> =
                    allowed.iter().map(|(a, len)| format!("{a}/{len}")).collect();
                word += &format!("={}", all.join(","));
            }
            word
        });
        assert_eq!(words.collect::<Vec<_>>().join(" "), expected);
    }

    #[test]
    fn only_what_differs_is_told() {
        let (a, b) = ("192.0.2.1:8476", "192.0.2.9:999");
        check(&[peer(1, a, "10.1.0.0/24")], &[], &[], "1@192.0.2.1:8476=10.1.0.0/24");
        check(&[peer(1, "", "")], &[], &[], "1=");
        let same = held(1, a, "10.1.0.0/24", 0);
        check(&[peer(1, a, "10.1.0.0/24")], std::slice::from_ref(&same), &[(1, a)], "");
        check(&[], std::slice::from_ref(&same), &[(1, a)], "-1");
        let two = [peer(1, a, "10.1.0.0/24 fd00::/64")];
        check(&two, std::slice::from_ref(&same), &[(1, a)], "1=10.1.0.0/24,fd00::/64");
        check(&[peer(2, b, "10.1.0.0/24")], &[same], &[], "-1 2@192.0.2.9:999=10.1.0.0/24");
    }

    #[test]
    fn who_moved_is_followed_until_told_otherwise() {
        let (a, b, c) = ("192.0.2.1:8476", "192.0.2.9:999", "192.0.2.7:8476");
        let moved = [held(1, b, "10.1.0.0/24", 900_000)];
        check(&[peer(1, a, "10.1.0.0/24")], &moved, &[(1, a)], "");
        check(&[peer(1, c, "10.1.0.0/24")], &moved, &[(1, a)], "1@192.0.2.7:8476");
        // Another daemon told it: what answers is left alone, what does not is told.
        check(&[peer(1, a, "10.1.0.0/24")], &moved, &[], "");
        let silent = [held(1, b, "10.1.0.0/24", 700_000)];
        check(&[peer(1, a, "10.1.0.0/24")], &silent, &[], "1@192.0.2.1:8476");
        // The device was made anew behind our back.
        check(&[peer(1, a, "10.1.0.0/24")], &[], &[(1, a)], "1@192.0.2.1:8476=10.1.0.0/24");
    }

    #[test]
    fn messages_stay_below_their_limit() {
        let one = |prefixes: u16| {
            let prefix =
                |n: u16| (IpAddr::from([10, 1, n.to_be_bytes()[0], n.to_be_bytes()[1]]), 32);
            let allowed = Some((0..prefixes).map(prefix).collect());
            Change { key: [1; 32], remove: false, endpoint: at("[::1]:1"), allowed }
        };
        let check = |counts: &[u16], expected: &[usize]| {
            let changes: Vec<Change> = counts.iter().map(|count| one(*count)).collect();
            let parts = parts(&changes);
            assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), expected);
            for part in parts {
                let mut messages = Messages::default();
                messages.push(1, 0, &[0; 4], |a| {
                    a.nested(DEVICE_PEERS, |a| {
                        (0..).zip(part).for_each(|(at, change)| {
                            a.nested(at, |a| write_peer(a, change));
                        });
                    });
                });
                assert!(messages.as_bytes().len() < 60_000);
            }
        };
        check(&[], &[]);
        check(&[2; 400], &[166, 166, 68]);
        check(&[5000, 1, 996, 1], &[1, 1, 1, 1]);
    }

    #[test]
    fn endpoints_are_read_as_they_are_written() {
        for text in ["192.0.2.1:8476", "[2001:db8::1]:1"] {
            let at: SocketAddr = text.parse().unwrap();
            assert_eq!(endpoint(&sockaddr(at)), Some(at));
        }
        assert_eq!(endpoint(&[]), None);
        assert_eq!(endpoint(&sockaddr("192.0.2.1:1".parse().unwrap())[..6]), None);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_peer_or_none(bytes: Vec<u8>) {
            let _ = read_peer(&bytes);
            let _ = endpoint(&bytes);
        }
    }
}
