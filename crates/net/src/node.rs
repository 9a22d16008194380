//! What of a node in the kernel others must find: made of its key, so that nobody has to tell.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use crate::overlay::{DEVICE_PREFIX, Numbers};
use crate::routes::Kernel;
use crate::{Error, fnv};

/// Where no program listens by default, below the ports that the kernel gives out: a resolver of
/// the host that has port 53 of every address must not be in the way.
const NAME_SERVER_PORT: u16 = 5391;
/// What a link is taken to carry if nothing is known of it (RFC 894).
pub(crate) const MTU_DEFAULT: u32 = 1500;

/// Where a node's name server listens. Questions of its containers to port 53 of their gateway
/// come there.
///
/// An address of the host's loopback, of a quarter that nobody uses (127.64.0.0/10): nodes that
/// share a network namespace have one each, and the world has no way to it.
pub fn name_server(node_key: &str) -> SocketAddrV4 {
    let [_, b, c, d] = fnv(node_key).to_be_bytes();
    SocketAddrV4::new(Ipv4Addr::new(127, 64 | (b & 63), c, d), NAME_SERVER_PORT)
}

/// Name of a node's tunnel device. No name of another node's device begins with it: keys have
/// no capitals.
pub fn tunnel_name(node_key: &str) -> String {
    format!("{DEVICE_PREFIX}T{}", node_key.get(..6).unwrap_or(node_key))
}

/// What the link carries that has this address, looked up in the calling thread's network
/// namespace; 1500 if none has it.
///
/// # Errors
/// The kernel does not say.
pub fn underlay_mtu(address: IpAddr) -> Result<u32, Error> {
    // No routes are read or written: the numbers do not matter.
    let mut kernel = Kernel::open(Numbers::of(""))?;
    let Some(holder) = kernel.holder(address)? else { return Ok(MTU_DEFAULT) };
    let links = kernel.devices()?;
    Ok(links.iter().find(|link| link.index == holder).map_or(MTU_DEFAULT, |link| link.mtu))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_node_has_its_own() {
        let keys: Vec<String> = (0..200).map(|n| format!("node{n:04}")).collect();
        let servers: BTreeSet<_> = keys.iter().map(|key| name_server(key)).collect();
        assert_eq!(servers.len(), keys.len());
        for server in servers {
            let [a, b, ..] = server.ip().octets();
            assert!(a == 127 && (64..128).contains(&b), "{server}");
        }
        assert_eq!(tunnel_name("abcdefgh"), "w-Tabcdef");
    }

    #[test]
    fn loopback_is_a_link_like_others() {
        assert!(underlay_mtu(Ipv4Addr::LOCALHOST.into()).unwrap() >= MTU_DEFAULT);
        assert_eq!(underlay_mtu("192.0.2.77".parse().unwrap()).unwrap(), MTU_DEFAULT);
    }
}
