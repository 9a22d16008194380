//! WireGuard in this process: between a TUN device and UDP sockets, for whole tables of peers.
//!
//! ```text
//!             read 64 KiB        cut          encrypt        64 datagrams a send
//! TUN device ────────────▶ segment ─▶ link (boringtun) ─▶ udp ────────────▶ peers
//!            ◀──────────── coalesce ◀─ link ◀──────────── udp ◀────────────
//!             write 64 KiB       merge     check, decrypt     64 a receive
//! ```
//!
//! An [`Engine`] is given a [`Table`]: own keys and all peers. It can be given another at any time;
//! what is not in the newest is refused at once, what stays keeps its sessions. Peers cost memory
//! for sessions only once they are talked to. While nothing is carried, nothing runs.
//!
//! Rules that always hold:
//! - a packet goes to the one peer whose allowed addresses hold its destination most closely, and
//!   comes only from a peer that would get the answer (cryptokey routing);
//! - nothing of a network is trusted before its tag is right, and no bytes make it panic;
//! - packets of one stream keep their order.
//!
//! A peer that does not answer on the direct way is found out within seconds while there is something
//! to send, and told of; messages for it can go by another host ([`PeerConfig::via`]), which passes
//! them on as they are ([`Relays`]) and understands none of them.
//!
//! Keys are replaced without a break: an own key is offered first while the one before is still
//! accepted, and a peer may be known by two; whoever has the newest session uses that.
//!
//! Not here: addresses and routes of the device, who is in the table, who is in between, and when keys change.

mod allowed;
mod checksum;
mod coalesce;
mod counters;
mod engine;
mod inbound;
mod key;
mod link;
mod outbound;
mod packet;
mod peer;
mod reach;
mod relay;
mod routing;
mod segment;
mod shared;
mod table;
mod timers;
mod tun;
mod udp;
mod worker;

use std::io;
use std::time::Duration;

pub use counters::{PeerStats, Reason};
pub use engine::{Engine, Handover, Options, Tell};
pub use key::{KEY_LEN, PresharedKey, PrivateKey, PublicKey};
pub use relay::{RELAYED_MAX, RelayStats, Relayed, Relays};
pub use table::{ALLOWED_MAX, KEYS_MAX, PEERS_MAX, PeerConfig, Prefix, Table, TableError};
pub use tun::{MTU_MAX, MTU_MIN, NAME_LEN_MAX, QUEUES_MAX, Tun, TunOptions};
pub use udp::Udp;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what}")]
    Io { what: String, source: io::Error },
    #[error(transparent)]
    Table(#[from] TableError),
    #[error("{name:?} is no name for a device")]
    TunName { name: String },
    #[error("{found} queues, it must be 1 to {QUEUES_MAX}")]
    Queues { found: usize },
    #[error("an MTU of {found}, it must be {MTU_MIN} to {MTU_MAX}")]
    Mtu { found: u16 },
    #[error("the descriptor is no TUN device with virtio-net headers")]
    NotOurTun,
    #[error("{queues} queues of the device and {sockets} sockets, it must be as many, and some")]
    Workers { queues: usize, sockets: usize },
    #[error("{found} pairs to pass messages on for, at most {RELAYED_MAX} are")]
    Relayed { found: usize },
    /// Peers would refuse every handshake for so long. A new key is not held back.
    #[error("the clock is {behind:?} behind the last handshake of this key")]
    ClockBehind { behind: Duration },
}

impl Error {
    fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }
}
