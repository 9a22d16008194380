//! The first transaction of a cluster: its settings, its authority, its first
//! node.
//!
//! Pure: whoever founds a cluster brings keys and times.

use warren_model::cluster::{Authority, Cluster, JoinToken, Subnet};
use warren_model::network::NetworkSpec;
use warren_model::node::{Description, Node};
use warren_model::overlap::Pool;
use warren_model::{ClusterId, NetworkId, NodeId, OverlayKind, Time};
use warren_state::change::{Mutation, Transaction};

/// What a cluster is founded with.
pub struct Founding {
    pub cluster: ClusterId,
    pub node: NodeId,
    /// With the address that others reach this node at.
    pub description: Description,
    /// Whether it runs containers as well.
    pub worker: bool,
    /// `warren_trust::Authority::to_state`.
    pub authority: Authority,
    /// Of the first node's own certificate, as `warren_trust::Issued` says.
    pub key_hash: [u8; 32],
    pub not_after: Time,
    pub issuer_hash: [u8; 32],
    /// Fresh, `warren_trust::JoinToken::new_secret`.
    pub worker_secret: [u8; 16],
    pub manager_secret: [u8; 16],
    pub now: Time,
    /// Of the network of services that name none.
    pub network: NetworkId,
    pub terms: Terms,
}

/// What is chosen when a cluster is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Terms {
    pub pools: Pools,
    pub overlay: OverlayKind,
}

/// Where a cluster's addresses are from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pools {
    /// Of containers.
    pub containers: Subnet,
    /// Of services.
    pub vips: Subnet,
}

impl Pools {
    pub fn of(cluster: &Cluster) -> Self {
        Self { containers: cluster.pool, vips: cluster.vip_pool }
    }

    /// As they are called where they overlap something.
    pub fn named(&self) -> [Pool; 2] {
        [
            Pool { what: "container pool", range: self.containers },
            Pool { what: "pool of virtual IPs", range: self.vips },
        ]
    }
}

impl Default for Pools {
    fn default() -> Self {
        Self { containers: Cluster::POOL, vips: Cluster::VIP_POOL }
    }
}

/// The transaction. The node has the first block of the pool and, given by the state, the first
/// number among the managers; it counts as down until its agent is heard.
pub fn founding(with: Founding) -> Transaction {
    let token = |secret| Some(JoinToken { secret, expires: None });
    let cluster = Cluster {
        pool: with.terms.pools.containers,
        vip_pool: with.terms.pools.vips,
        overlay: with.terms.overlay,
        ca: Some(with.authority),
        worker_token: token(with.worker_secret),
        manager_token: token(with.manager_secret),
        ..Cluster::new(with.cluster)
    };
    let block = Subnet { address: cluster.pool.address, prefix: cluster.block_prefix };
    let node = Node {
        manager: true,
        worker: with.worker,
        blocks: vec![block],
        key_hash: with.key_hash,
        certificate_not_after: with.not_after,
        issuer_hash: with.issuer_hash,
        joined: with.now,
        ..Node::new(with.node, with.description)
    };
    let mut mutations = vec![Mutation::SetCluster(cluster), Mutation::CreateNode(node)];
    if let Ok(spec) = NetworkSpec::of_default() {
        mutations.push(Mutation::CreateNetwork { id: with.network, spec });
    }
    Transaction { mutations, ..Transaction::default() }
}

#[cfg(test)]
mod tests {
    use warren_model::Secret;
    use warren_state::State;

    use super::*;

    #[test]
    fn a_new_cluster_has_all_it_needs() {
        let transaction = founding(Founding {
            cluster: ClusterId::from_bytes([1; 10]),
            node: NodeId::from_bytes([2; 10]),
            description: Description { hostname: "a".into(), ..Description::default() },
            worker: true,
            authority: Authority { certificates: vec![vec![1]], key: Secret::new(vec![2]) },
            key_hash: [3; 32],
            not_after: Time(9000),
            issuer_hash: [4; 32],
            worker_secret: [5; 16],
            manager_secret: [6; 16],
            now: Time(1000),
            network: NetworkId::from_bytes([7; 10]),
            terms: Terms {
                pools: Pools { containers: "10.1.0.0/16".parse().unwrap(), ..Pools::default() },
                overlay: OverlayKind::None,
            },
        });
        let mut state = State::default();
        crate::testing::apply(&mut state, transaction.mutations);
        let node = state.nodes().next().unwrap();
        assert_eq!((node.number, node.manager, node.worker), (Some(1), true, true));
        assert_eq!((node.key_hash, node.joined), ([3; 32], Time(1000)));
        let cluster = state.cluster().unwrap();
        assert_eq!(cluster.worker_token.as_ref().unwrap().secret, [5; 16]);
        assert_eq!(cluster.manager_token.as_ref().unwrap().secret, [6; 16]);
        assert!(cluster.ca.is_some());
        assert_eq!(node.blocks[0].to_string(), "10.1.0.0/24");
        assert_eq!(cluster.vip_pool, Cluster::VIP_POOL);
        assert_eq!(cluster.overlay, OverlayKind::None);
        assert_eq!(state.resolve_network("default").unwrap().id, NetworkId::from_bytes([7; 10]));
    }
}
