//! Who is in the tunnel: other nodes by their keys, made of what managers told; and for whom this
//! node passes messages on.
//!
//! Pure. The engine takes a table whole or not at all, so one node that makes no sense (a copied
//! disk: two nodes of one key) must not cost the others theirs: it is left out, and told of.
//!
//! Not here: own keys (`serve`), what a peer is allowed to send beyond its blocks (nothing is).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use warren_model::id::NodeId;
use warren_model::ipv6;
use warren_model::node::Relay;
use warren_model::node_table::{NodeTable, Peer, TableRelay};
use warren_wireguard::{
    ALLOWED_MAX, PEERS_MAX, PeerConfig, Prefix, PublicKey, RELAYED_MAX, Relayed,
};

/// A node without a key has no tunnel.
const NO_KEY: [u8; 32] = [0; 32];

/// What was left out, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skipped {
    /// Its key is another's, or ours.
    Key(NodeId),
    /// A block of it is another's.
    Block(NodeId),
    /// There are too many.
    Peer(NodeId),
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(node) => write!(f, "node {node}: another node has its key"),
            Self::Block(node) => write!(f, "node {node}: another node has a block of it"),
            Self::Peer(node) => write!(f, "node {node}: there are {PEERS_MAX} peers already"),
        }
    }
}

/// Where nodes listen.
struct Places<'a> {
    table: &'a NodeTable,
    /// Of those that did not say.
    port: u16,
    /// Of those that are told by name.
    known: &'a BTreeMap<String, IpAddr>,
}

impl Places<'_> {
    fn of(&self, peer: &Peer) -> Option<SocketAddr> {
        let at = peer.underlay.parse().ok().or_else(|| self.known.get(&peer.underlay).copied())?;
        let port = if peer.overlay_port == 0 { self.port } else { peer.overlay_port };
        Some(SocketAddr::new(at, port))
    }

    fn of_node(&self, node: NodeId) -> Option<SocketAddr> {
        self.of(self.table.peers.get(&node)?)
    }

    /// Where a node passes on what is for another.
    fn of_relay(&self, relay: &TableRelay) -> Option<SocketAddr> {
        let mut at = self.of_node(relay.via)?;
        at.set_port(Relay::port(at.port(), relay.slot)?);
        Some(at)
    }
}

/// For whom this node passes messages on.
pub fn relayed(
    table: &NodeTable,
    own: NodeId,
    port: u16,
    known: &BTreeMap<String, IpAddr>,
) -> Vec<Relayed> {
    let places = Places { table, port, known };
    let ours = table.relays.iter().filter(|relay| relay.via == own);
    let each = ours.filter_map(|relay| {
        let [one, two] = relay.ends;
        let ends = [places.of_node(one)?, places.of_node(two)?];
        Some(Relayed { port: places.of_relay(relay)?.port(), ends })
    });
    each.take(RELAYED_MAX).collect()
}

/// All other nodes that have keys. `port` is where those listen that did not say; `known` are
/// addresses of those that are told by name.
pub fn peers(
    table: &NodeTable,
    own: NodeId,
    own_keys: &[PublicKey],
    port: u16,
    known: &BTreeMap<String, IpAddr>,
) -> (Vec<PeerConfig>, Vec<Skipped>) {
    let places = Places { table, port, known };
    let vias = table.relays.iter().filter_map(|relay| Some((relay.other(own)?, relay)));
    let vias: BTreeMap<NodeId, &TableRelay> = vias.collect();
    let mut keys: BTreeSet<PublicKey> = own_keys.iter().copied().collect();
    let (mut prefixes, mut skipped) = (BTreeSet::new(), Vec::new());
    let mut peers = Vec::new();
    for (&node, peer) in &table.peers {
        if node == own || peer.overlay_key == NO_KEY {
            continue;
        }
        let key = PublicKey::from_bytes(peer.overlay_key);
        if !keys.insert(key) {
            skipped.push(Skipped::Key(node));
            continue;
        }
        let mut its_keys = vec![key];
        // While it replaces one by the other.
        let other = Some(peer.overlay_key_other).filter(|key| *key != NO_KEY);
        if let Some(other) = other.map(PublicKey::from_bytes) {
            match keys.insert(other) {
                true => its_keys.push(other),
                false => skipped.push(Skipped::Key(node)),
            }
        }
        if peers.len() == PEERS_MAX {
            skipped.push(Skipped::Peer(node));
            continue;
        }
        let mut allowed = allowed(table, peer);
        let count = allowed.len();
        allowed.truncate(ALLOWED_MAX);
        allowed.retain(|prefix| prefixes.insert(*prefix));
        if allowed.len() < count {
            skipped.push(Skipped::Block(node));
        }
        peers.push(PeerConfig {
            keys: its_keys,
            via: vias.get(&node).and_then(|relay| places.of_relay(relay)),
            preshared_key: None,
            endpoint: places.of(peer),
            allowed,
            keepalive: None,
        });
    }
    (peers, skipped)
}

/// Whether anybody but this node has a key.
pub fn has_peers(table: &NodeTable, own: NodeId) -> bool {
    table.peers.iter().any(|(&node, peer)| node != own && peer.overlay_key != NO_KEY)
}

/// Blocks of both families: the second follows from the first.
fn allowed(table: &NodeTable, peer: &Peer) -> Vec<Prefix> {
    let mut allowed = Vec::with_capacity(peer.blocks.len() * 2);
    for block in &peer.blocks {
        allowed.extend(Prefix::new(block.address.into(), block.prefix).ok());
        if let Some(cluster) = table.cluster {
            let six = ipv6::of_block(cluster, *block);
            allowed.extend(Prefix::new(six.address.into(), six.prefix).ok());
        }
    }
    allowed
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use warren_model::id::ClusterId;

    use super::*;

    fn node(n: u8) -> NodeId {
        NodeId::from_bytes([n; 10])
    }

    /// `2=192.0.2.2/7:3,4` is node 2 at 192.0.2.2 with key 7 and the blocks 10.128.3.0/24 and .4;
    /// `7+8` are two keys.
    fn table(text: &str) -> NodeTable {
        let mut table = NodeTable::default();
        for (at, word) in text.split_whitespace().enumerate() {
            let (n, rest) = word.split_once('=').unwrap();
            let (underlay, rest) = rest.split_once('/').unwrap();
            let (key, blocks) = rest.split_once(':').unwrap();
            let blocks = blocks.split(',').filter(|block| !block.is_empty());
            let (key, other) = key.split_once('+').unwrap_or((key, "0"));
            let peer = Peer {
                number: u32::try_from(at).unwrap(),
                underlay: underlay.to_owned(),
                blocks: blocks.map(|n| format!("10.128.{n}.0/24").parse().unwrap()).collect(),
                overlay_key: [key.parse().unwrap(); 32],
                overlay_key_other: [other.parse().unwrap(); 32],
                overlay_port: 0,
                name: String::new(),
            };
            table.peers.insert(node(n.parse().unwrap()), Arc::new(peer));
        }
        table
    }

    #[track_caller]
    fn check(text: &str, expected: &[&str], left_out: &[Skipped]) {
        let own = [PublicKey::from_bytes([1; 32])];
        let known = BTreeMap::from([("b.test".to_owned(), [192, 0, 2, 9].into())]);
        let (peers, skipped) = peers(&table(text), node(1), &own, 51820, &known);
        let shown: Vec<String> = peers
            .iter()
            .map(|peer| {
                let endpoint = peer.endpoint.map_or_else(|| "-".to_owned(), |at| at.to_string());
                let allowed: Vec<String> = peer.allowed.iter().map(ToString::to_string).collect();
                let keys: Vec<String> =
                    peer.keys.iter().map(|key| key.as_bytes()[0].to_string()).collect();
                format!("{} {endpoint} {}", keys.join("+"), allowed.join(","))
            })
            .collect();
        assert_eq!(shown, expected);
        assert_eq!(skipped, left_out);
    }

    #[test]
    fn nodes_with_keys_are_peers() {
        check("", &[], &[]);
        // Ourselves, and one that has no key yet.
        check("1=192.0.2.1/1:1 2=192.0.2.2/0:2", &[], &[]);
        check(
            "1=192.0.2.1/1:1 2=192.0.2.2/7:3,4 3=b.test/8:5 4=c.test/9:",
            &[
                "7 192.0.2.2:51820 10.128.3.0/24,10.128.4.0/24",
                "8 192.0.2.9:51820 10.128.5.0/24",
                "9 - ",
            ],
            &[],
        );
        // One that replaces its key; the other one is somebody else's.
        check("2=192.0.2.2/7+8:3", &["7+8 192.0.2.2:51820 10.128.3.0/24"], &[]);
        check("2=192.0.2.2/7+1:3", &["7 192.0.2.2:51820 10.128.3.0/24"], &[Skipped::Key(node(2))]);
        check("2=2001:db8::2/7:3", &["7 [2001:db8::2]:51820 10.128.3.0/24"], &[]);
    }

    #[test]
    fn nodes_listen_where_they_say_and_others_pass_on() {
        let mut table = table("1=192.0.2.1/1:1 2=192.0.2.2/7:2 3=192.0.2.3/8:3 4=b.test/9:4");
        let mut says = (*table.peers[&node(3)]).clone();
        says.overlay_port = 4000;
        table.peers.insert(node(3), Arc::new(says));
        let relay =
            |one, two, via, slot| TableRelay { ends: [node(one), node(two)], via: node(via), slot };
        table.relays = vec![relay(1, 2, 3, 0), relay(1, 4, 3, 1), relay(2, 3, 1, 5)];
        let known = BTreeMap::from([("b.test".to_owned(), [192, 0, 2, 9].into())]);
        let (all, _) = peers(&table, node(1), &[], 51820, &known);
        let shown: Vec<_> = all.iter().map(|p| (p.endpoint.unwrap(), p.via)).collect();
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert_eq!(
            shown,
            [
                (at("192.0.2.2:51820"), Some(at("192.0.2.3:4001"))),
                (at("192.0.2.3:4000"), None),
                (at("192.0.2.9:51820"), Some(at("192.0.2.3:4002"))),
            ]
        );
        let here = relayed(&table, node(1), 51820, &known);
        let ends = [at("192.0.2.2:51820"), at("192.0.2.3:4000")];
        assert_eq!(here, [Relayed { port: 51826, ends }]);
        assert!(relayed(&table, node(2), 51820, &known).is_empty());
    }

    #[test]
    fn what_two_have_the_first_has() {
        check(
            "2=192.0.2.2/7:3 3=192.0.2.3/7:4 4=192.0.2.4/1:5 5=192.0.2.5/9:3,6",
            &["7 192.0.2.2:51820 10.128.3.0/24", "9 192.0.2.5:51820 10.128.6.0/24"],
            &[Skipped::Key(node(3)), Skipped::Key(node(4)), Skipped::Block(node(5))],
        );
    }

    #[test]
    fn blocks_have_their_second_family() {
        let mut table = table("2=192.0.2.2/7:3");
        table.cluster = Some(ClusterId::from_bytes([1; 10]));
        let (peers, _) = peers(&table, node(1), &[], 1, &BTreeMap::new());
        let six = Prefix::new("fd01:101:101::a80:300".parse().unwrap(), 120).unwrap();
        assert!(peers[0].allowed.contains(&six), "{:?}", peers[0].allowed);
    }
}
