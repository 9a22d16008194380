//! What daemon and data plane say to each other.
//!
//! The daemon asks, the process answers each message with one, but for the first: it begins with
//! [`Welcome`]. Fields are added, never given another meaning: a daemon may be newer than the
//! process, or older.

mod convert;

use std::collections::BTreeMap;

use prost::Message;
use warren_proto::v1;

pub(crate) use convert::{Gathered, Malformed, differing, parts};

/// Raised when an older process would do the wrong thing with what it is told.
pub(crate) const VERSION: u32 = 1;

/// What the daemon asks.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Request {
    #[prost(oneof = "Ask", tags = "1, 2, 3, 4, 5, 6, 30")]
    pub(crate) ask: Option<Ask>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Ask {
    /// What to work with; with descriptors.
    #[prost(message, tag = "1")]
    Settle(Settle),
    #[prost(message, tag = "2")]
    Update(Update),
    /// What was told so far.
    #[prost(message, tag = "3")]
    Recall(Nothing),
    #[prost(message, tag = "4")]
    Status(Nothing),
    /// A successor takes over: stop with the descriptors, finish what waits, end.
    #[prost(message, tag = "5")]
    HandOver(Nothing),
    /// End, with all that is carried.
    #[prost(message, tag = "6")]
    End(Nothing),
    /// Who is not reached; answered once that is something else than what was answered before.
    #[prost(message, tag = "30")]
    Watch(Watch),
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Watch {
    /// Of the last answer; 0: there was none.
    #[prost(uint64, tag = "1")]
    pub(crate) seen: u64,
}

/// Who is not reached.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Reach {
    #[prost(uint64, tag = "1")]
    pub(crate) version: u64,
    #[prost(message, repeated, tag = "2")]
    pub(crate) lost: Vec<LostPeer>,
}

/// A peer that is not reached on the direct way.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct LostPeer {
    /// Its public key.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// Nor by the node that passes on.
    #[prost(bool, tag = "2")]
    pub via_lost: bool,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Nothing {}

/// Whole each time; descriptors only of kinds that the process does not hold.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(crate) struct Settle {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) node: Vec<u8>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) pools: Vec<WirePrefix>,
    /// Private; the first is offered.
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub(crate) keys: Vec<Vec<u8>>,
    /// Where peers listen.
    #[prost(uint32, tag = "4")]
    pub(crate) port: u32,
    /// Whom a predecessor had sessions with.
    #[prost(message, repeated, tag = "5")]
    pub(crate) heard: Vec<Heard>,
    /// What the descriptors are, one each.
    #[prost(uint32, repeated, tag = "6")]
    pub(crate) kinds: Vec<u32>,
}

impl std::fmt::Debug for Settle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settle").field("kinds", &self.kinds).finish_non_exhaustive()
    }
}

impl Drop for Settle {
    fn drop(&mut self) {
        for key in &mut self.keys {
            zeroize::Zeroize::zeroize(key);
        }
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct WirePrefix {
    #[prost(string, tag = "1")]
    address: String,
    #[prost(uint32, tag = "2")]
    len: u32,
}

/// A peer, and where it was last heard.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Heard {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(string, tag = "2")]
    at: String,
}

/// What changed. Nothing of it holds before the part without `more` has come.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Update {
    #[prost(message, optional, tag = "1")]
    pub(crate) table: Option<v1::NetUpdate>,
    /// There were none before.
    #[prost(bool, tag = "2")]
    pub(crate) all_askers: bool,
    #[prost(message, repeated, tag = "3")]
    pub(crate) admitted: Vec<WireAsker>,
    #[prost(bytes = "vec", repeated, tag = "4")]
    pub(crate) dismissed: Vec<Vec<u8>>,
    /// Addresses of nodes that are told by name; whole, if there is a table.
    #[prost(btree_map = "string, string", tag = "5")]
    pub(crate) known: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct WireAsker {
    #[prost(bytes = "vec", tag = "1")]
    task: Vec<u8>,
    #[prost(string, tag = "2")]
    v4: String,
    #[prost(string, tag = "3")]
    v6: String,
    #[prost(string, optional, tag = "4")]
    stack: Option<String>,
    #[prost(bytes = "vec", repeated, tag = "5")]
    networks: Vec<Vec<u8>>,
    /// 0: the host's; 1: `servers`; 2: nobody.
    #[prost(uint32, tag = "6")]
    upstream: u32,
    #[prost(string, repeated, tag = "7")]
    servers: Vec<String>,
}

/// What the process answers.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Reply {
    #[prost(oneof = "Answer", tags = "1, 2, 3, 4, 5, 6, 30")]
    pub(crate) answer: Option<Answer>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Answer {
    #[prost(message, tag = "1")]
    Welcome(Welcome),
    #[prost(message, tag = "2")]
    Done(Nothing),
    #[prost(string, tag = "3")]
    Refused(String),
    /// More of them follow while the table has `more`.
    #[prost(message, tag = "4")]
    Recalled(Update),
    #[prost(message, tag = "5")]
    Status(Status),
    #[prost(message, tag = "6")]
    HandedOver(HandedOver),
    #[prost(message, tag = "30")]
    Reach(Reach),
}

/// The first message of a connection, with all descriptors that the process holds.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Welcome {
    #[prost(uint32, tag = "1")]
    pub(crate) version: u32,
    /// Of its program.
    #[prost(string, tag = "2")]
    pub(crate) build: String,
    /// Whose it is; empty before it was told.
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) node: Vec<u8>,
    #[prost(uint32, repeated, tag = "4")]
    pub(crate) kinds: Vec<u32>,
    /// Public halves of its keys, in order.
    #[prost(bytes = "vec", repeated, tag = "5")]
    pub(crate) keys: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct HandedOver {
    #[prost(message, repeated, tag = "1")]
    pub(crate) heard: Vec<Heard>,
}

/// What the data plane does.
#[derive(Clone, PartialEq, Message)]
pub struct Status {
    /// Its process.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// How long it has been there.
    #[prost(uint64, tag = "2")]
    pub uptime_ms: u64,
    /// Services that have names here.
    #[prost(uint64, tag = "3")]
    pub services: u64,
    /// Containers that may ask.
    #[prost(uint64, tag = "4")]
    pub askers: u64,
    /// What the name server did.
    #[prost(message, optional, tag = "5")]
    pub dns: Option<DnsCounters>,
    /// Whether packets are carried to other nodes.
    #[prost(bool, tag = "6")]
    pub carries: bool,
    /// Other nodes.
    #[prost(message, repeated, tag = "7")]
    pub peers: Vec<PeerStatus>,
    /// Packets that were dropped, of all peers and of none, by reason.
    #[prost(btree_map = "string, uint64", tag = "8")]
    pub drops: BTreeMap<String, u64>,
    /// Why packets are not carried, if they should be.
    #[prost(string, optional, tag = "9")]
    pub trouble: Option<String>,
    /// For whom it passes messages on.
    #[prost(message, repeated, tag = "30")]
    pub relayed: Vec<RelayStatus>,
    /// Datagrams that it was to pass on and did not: of nobody whom a pair names, or none of
    /// WireGuard's; and those that could not be sent.
    #[prost(uint64, tag = "31")]
    pub relay_refused: u64,
    /// See `relay_refused`.
    #[prost(uint64, tag = "32")]
    pub relay_lost: u64,
}

/// Two nodes that do not reach each other.
#[derive(Clone, PartialEq, Message)]
pub struct RelayStatus {
    /// Where each listens.
    #[prost(string, repeated, tag = "1")]
    pub ends: Vec<String>,
    /// At which port they find each other.
    #[prost(uint32, tag = "2")]
    pub port: u32,
    /// Of both, WireGuard's messages.
    #[prost(uint64, tag = "3")]
    pub bytes: u64,
}

/// As [`warren_net::dns::Counters`].
#[derive(Clone, Copy, PartialEq, Message)]
pub struct DnsCounters {
    #[prost(uint64, tag = "1")]
    pub received: u64,
    #[prost(uint64, tag = "2")]
    pub answered: u64,
    #[prost(uint64, tag = "3")]
    pub recalled: u64,
    #[prost(uint64, tag = "4")]
    pub forwarded: u64,
    #[prost(uint64, tag = "5")]
    pub refused: u64,
    #[prost(uint64, tag = "6")]
    pub malformed: u64,
    #[prost(uint64, tag = "7")]
    pub overloaded: u64,
    #[prost(uint64, tag = "8")]
    pub connections_refused: u64,
    #[prost(uint64, tag = "9")]
    pub unsent: u64,
}

/// One other node.
#[derive(Clone, PartialEq, Message)]
pub struct PeerStatus {
    /// Its public key, in base64.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Where it was last heard, else where it should be; empty if nobody knows.
    #[prost(string, tag = "2")]
    pub endpoint: String,
    /// When the last handshake was completed, in milliseconds since the epoch; 0 before the first.
    #[prost(uint64, tag = "3")]
    pub handshake_ms: u64,
    #[prost(uint64, tag = "4")]
    pub received_bytes: u64,
    #[prost(uint64, tag = "5")]
    pub sent_bytes: u64,
    #[prost(uint64, tag = "6")]
    pub received_packets: u64,
    #[prost(uint64, tag = "7")]
    pub sent_packets: u64,
    /// How long ago anything of it came in, its handshakes included.
    #[prost(uint64, optional, tag = "8")]
    pub heard_ago_ms: Option<u64>,
    /// Handshakes that were begun here and never answered.
    #[prost(uint64, tag = "9")]
    pub handshakes_failed: u64,
    /// Packets of it and to it that were dropped.
    #[prost(uint64, tag = "10")]
    pub dropped_packets: u64,
    /// It is not reached on the direct way.
    #[prost(bool, tag = "30")]
    pub lost: bool,
    /// Where messages for it go instead; empty: nowhere else.
    #[prost(string, tag = "31")]
    pub via: String,
    /// They do not reach it there either.
    #[prost(bool, tag = "32")]
    pub via_lost: bool,
}
