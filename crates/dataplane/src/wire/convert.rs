//! Messages to and from what they are about: all that arrives is checked here.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use prost::Message;
use warren_model::id::NodeId;
use warren_model::node_table::TableChange;
use warren_net::dns::{Prefix, Upstream};
use warren_proto::v1;
use warren_wireguard::{KEY_LEN, KEYS_MAX, PrivateKey, PublicKey};
use zeroize::Zeroizing;

use super::{Answer, Ask, Heard, Reply, Request, Settle, WireAsker, WirePrefix};
use crate::asker::Asker;

/// Services of one message of a table.
const SERVICES_PER_PART: usize = 512;

/// What was told that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {found:?} is {problem}")]
pub(crate) struct Malformed {
    pub(crate) field: &'static str,
    pub(crate) found: String,
    pub(crate) problem: &'static str,
}

fn parsed<T: std::str::FromStr>(
    field: &'static str,
    text: &str,
    problem: &'static str,
) -> Result<T, Malformed> {
    text.parse().map_err(|_| Malformed { field, found: text.chars().take(64).collect(), problem })
}

fn odd(field: &'static str, problem: impl ToString) -> Malformed {
    Malformed { field, found: problem.to_string(), problem: "no id" }
}

impl Request {
    pub(crate) fn of(ask: Ask) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(Self { ask: Some(ask) }.encode_to_vec())
    }
}

impl Reply {
    pub(crate) fn of(answer: Answer) -> Vec<u8> {
        Self { answer: Some(answer) }.encode_to_vec()
    }
}

impl Settle {
    pub(crate) fn node(&self) -> Result<NodeId, Malformed> {
        warren_proto::node_id("node", &self.node).map_err(|e| odd("node", e))
    }

    pub(crate) fn private_keys(&self) -> Result<Vec<PrivateKey>, Malformed> {
        let wrong = |found: usize| Malformed {
            field: "keys",
            found: found.to_string(),
            problem: "not the length of a key, or too many keys",
        };
        if self.keys.len() > KEYS_MAX {
            return Err(wrong(self.keys.len()));
        }
        let key = |bytes: &Vec<u8>| {
            let bytes: [u8; KEY_LEN] = bytes[..].try_into().map_err(|_| wrong(bytes.len()))?;
            let bytes = Zeroizing::new(bytes);
            Ok(PrivateKey::from_bytes(*bytes))
        };
        self.keys.iter().map(key).collect()
    }
}

impl From<&Prefix> for WirePrefix {
    fn from(prefix: &Prefix) -> Self {
        Self { address: prefix.address.to_string(), len: prefix.len.into() }
    }
}

impl TryFrom<&WirePrefix> for Prefix {
    type Error = Malformed;

    fn try_from(wire: &WirePrefix) -> Result<Self, Malformed> {
        let address: IpAddr = parsed("pools.address", &wire.address, "no address")?;
        let len = parsed("pools.len", &wire.len.to_string(), "no length of a prefix")?;
        Ok(Self { address, len })
    }
}

impl From<&(PublicKey, SocketAddr)> for Heard {
    fn from((key, at): &(PublicKey, SocketAddr)) -> Self {
        Self { key: key.as_bytes().to_vec(), at: at.to_string() }
    }
}

impl TryFrom<&Heard> for (PublicKey, SocketAddr) {
    type Error = Malformed;

    fn try_from(wire: &Heard) -> Result<Self, Malformed> {
        let key: [u8; KEY_LEN] = wire.key[..].try_into().map_err(|_| odd("heard.key", "?"))?;
        Ok((PublicKey::from_bytes(key), parsed("heard.at", &wire.at, "no address with a port")?))
    }
}

impl From<&Asker> for WireAsker {
    fn from(asker: &Asker) -> Self {
        let (upstream, servers) = match &asker.upstream {
            Upstream::Host => (0, &[][..]),
            Upstream::Servers(servers) => (1, &servers[..]),
            Upstream::Nobody => (2, &[][..]),
        };
        Self {
            task: asker.task.as_bytes().to_vec(),
            v4: asker.addresses.v4.to_string(),
            v6: asker.addresses.v6.map_or_else(String::new, |v6| v6.to_string()),
            stack: asker.stack.clone(),
            networks: asker.networks.iter().map(|id| id.as_bytes().to_vec()).collect(),
            upstream,
            servers: servers.iter().map(ToString::to_string).collect(),
        }
    }
}

impl TryFrom<&WireAsker> for Asker {
    type Error = Malformed;

    fn try_from(wire: &WireAsker) -> Result<Self, Malformed> {
        let v6 = (!wire.v6.is_empty()).then(|| parsed("asker.v6", &wire.v6, "no IPv6 address"));
        let servers = wire.servers.iter();
        let servers = servers.map(|text| parsed("asker.servers", text, "no address with a port"));
        let networks = wire.networks.iter();
        let networks = networks.map(|id| warren_proto::network_id("asker.networks", id));
        Ok(Self {
            task: warren_proto::task_id("asker.task", &wire.task)
                .map_err(|e| odd("asker.task", e))?,
            addresses: warren_net::Addresses {
                v4: parsed("asker.v4", &wire.v4, "no IPv4 address")?,
                v6: v6.transpose()?,
            },
            stack: wire.stack.clone(),
            networks: networks.collect::<Result<_, _>>().map_err(|e| odd("asker.networks", e))?,
            upstream: match wire.upstream {
                0 => Upstream::Host,
                1 => Upstream::Servers(servers.collect::<Result<Vec<_>, _>>()?.into()),
                // Of what is not known the one that lets nothing out.
                _ => Upstream::Nobody,
            },
        })
    }
}

/// A change in messages of bounded length. Policies are the kernel's business alone.
pub(crate) fn parts(change: &TableChange) -> Vec<v1::NetUpdate> {
    let mut parts = Vec::new();
    let mut services = change.services.chunks(SERVICES_PER_PART);
    let first = TableChange {
        services: services.next().unwrap_or_default().to_vec(),
        policies: Vec::new(),
        removed_policies: Vec::new(),
        ..change.clone()
    };
    parts.push(v1::NetUpdate::from(&first));
    for chunk in services {
        let part = TableChange { services: chunk.to_vec(), ..TableChange::default() };
        parts.push(v1::NetUpdate::from(&part));
    }
    let last = parts.len() - 1;
    for part in &mut parts[..last] {
        part.more = true;
    }
    parts
}

/// The change that parts make, as they come.
#[derive(Debug, Default)]
pub(crate) struct Gathered(TableChange);

impl Gathered {
    /// The whole, with its last part. What is not understood is left out, and told of.
    pub(crate) fn add(&mut self, part: v1::NetUpdate) -> Option<TableChange> {
        let more = part.more;
        let (part, wrong) = warren_proto::table_change(part);
        for error in wrong {
            tracing::warn!(%error, "part of the table is not understood");
        }
        let all = &mut self.0;
        all.complete |= part.complete;
        all.cluster = part.cluster.or(all.cluster);
        all.peers.extend(part.peers);
        all.removed_peers.extend(part.removed_peers);
        all.networks.extend(part.networks);
        all.removed_networks.extend(part.removed_networks);
        all.services.extend(part.services);
        all.removed_services.extend(part.removed_services);
        all.relays = part.relays.or_else(|| all.relays.take());
        (!more).then(|| std::mem::take(all))
    }
}

/// Askers that must be told, and those that are gone.
pub(crate) fn differing<K: Ord + Copy>(
    before: &BTreeMap<K, Arc<Asker>>,
    after: &BTreeMap<K, Arc<Asker>>,
) -> (Vec<Arc<Asker>>, Vec<K>) {
    let same = |id: &K, asker: &Arc<Asker>| {
        before.get(id).is_some_and(|old| Arc::ptr_eq(old, asker) || old == asker)
    };
    let news = after.iter().filter(|(id, asker)| !same(id, asker)).map(|(_, a)| Arc::clone(a));
    let gone = before.keys().filter(|id| !after.contains_key(id)).copied();
    (news.collect(), gone.collect())
}

#[cfg(test)]
mod tests {
    use warren_model::id::{NetworkId, NodeId, ServiceId, TaskId};
    use warren_model::node_table::{TableRelay, TableService};
    use warren_model::service::Endpoint;

    use super::*;

    #[test]
    fn askers_go_there_and_back() {
        let upstreams = [
            Upstream::Host,
            Upstream::Nobody,
            Upstream::Servers(["192.0.2.1:53".parse().unwrap(), "[::1]:5".parse().unwrap()].into()),
        ];
        for (n, upstream) in (0..).zip(upstreams) {
            let asker = Asker {
                task: TaskId::from_bytes([n; 10]),
                addresses: warren_net::Addresses {
                    v4: [10, 0, 0, n].into(),
                    v6: (n > 0).then(|| "fd00::1".parse().unwrap()),
                },
                stack: (n > 0).then(|| "shop".to_owned()),
                networks: (0..n).map(|n| NetworkId::from_bytes([n; 10])).collect(),
                upstream,
            };
            assert_eq!(Asker::try_from(&WireAsker::from(&asker)).unwrap(), asker);
        }
        let fine = WireAsker { task: vec![1; 10], v4: "10.0.0.1".into(), ..WireAsker::default() };
        assert!(Asker::try_from(&fine).is_ok());
        let check = |wire: WireAsker, expected: &str| {
            assert!(Asker::try_from(&wire).unwrap_err().to_string().starts_with(expected));
        };
        check(WireAsker { v4: "x".into(), ..fine.clone() }, "asker.v4: \"x\" is no IPv4 address");
        check(WireAsker { v6: "10.0.0.1".into(), ..fine.clone() }, "asker.v6");
        check(WireAsker { task: vec![1], ..fine.clone() }, "asker.task");
        check(WireAsker { networks: vec![vec![]], ..fine.clone() }, "asker.networks");
        let servers = WireAsker { upstream: 1, servers: vec!["1.1.1.1".into()], ..fine };
        check(servers, "asker.servers");
    }

    #[test]
    fn keys_are_not_shown_and_bounded() {
        let with = |keys| {
            let mut settle = Settle::default();
            settle.keys = keys;
            settle
        };
        let settle = with(vec![vec![7; 32]; 2]);
        assert_eq!(settle.private_keys().unwrap().len(), 2);
        assert!(!format!("{settle:?}").contains('7'));
        for keys in [vec![vec![7; 31]], vec![vec![7; 32]; 3]] {
            assert!(with(keys).private_keys().is_err());
        }
    }

    #[test]
    fn changes_come_whole_and_in_parts() {
        let service = |n: u32| {
            let mut id = [0; 10];
            id[..4].copy_from_slice(&n.to_be_bytes());
            let service = TableService {
                name: format!("s{n}").parse().unwrap(),
                on: vec![],
                endpoint: Endpoint::default(),
                ports: vec![],
                hostname: None,
                tasks: vec![],
            };
            (ServiceId::from_bytes(id), Arc::new(service))
        };
        for count in [0_u32, 1, 512, 513, 1500] {
            let change = TableChange {
                complete: true,
                services: (0..count).map(service).collect(),
                relays: Some(vec![TableRelay {
                    ends: [NodeId::from_bytes([1; 10]), NodeId::from_bytes([2; 10])],
                    via: NodeId::from_bytes([3; 10]),
                    slot: 4,
                }]),
                ..TableChange::default()
            };
            let parts = parts(&change);
            let per_part = u32::try_from(SERVICES_PER_PART).unwrap();
            assert_eq!(parts.len(), usize::try_from(count.div_ceil(per_part).max(1)).unwrap());
            let mut gathered = Gathered::default();
            let last = parts.len() - 1;
            for (at, part) in parts.into_iter().enumerate() {
                match gathered.add(part) {
                    None => assert!(at < last),
                    Some(whole) => assert_eq!((at, whole), (last, change.clone())),
                }
            }
        }
    }
}
