//! Whom this node does not reach over the tunnel, as managers are told.
//!
//! The tunnel knows its peers by keys, managers know nodes: this translates, whenever either moves.
//! A session tells it whole, at its beginning and when it differs (`session`).
//!
//! Pure in [`named`]. Not here: finding out (whoever carries), what follows (managers decide).

use std::sync::Arc;

use tokio::sync::watch;
use warren_model::{NodeId, NodeTable};
use warren_proto::v1;

use crate::tunnel::LostPeer;
use crate::worker::Tools;

/// As managers read: of a node that reaches fewer nobody can help the others.
const CUTS_MAX: usize = 256;

/// Nodes that are not reached, as they are told; `None` until that is known.
pub(crate) type Cuts = Option<Arc<Vec<v1::Cut>>>;

/// Keeps what is told up to date, until the agent stops.
pub(crate) async fn run(tools: Arc<Tools>, mut tables: watch::Receiver<Arc<NodeTable>>) {
    let Some(tunnel) = tools.tunnel.clone() else { return };
    let mut lost = tunnel.lost();
    let following = async {
        loop {
            let table = Arc::clone(&tables.borrow_and_update());
            let peers = lost.borrow_and_update().clone();
            // Without a table keys say nothing.
            let peers = peers.filter(|_| table.cluster.is_some());
            let cuts = peers.map(|peers| Arc::new(named(&table, tools.node, &peers)));
            tools.cuts.send_if_modified(|known| {
                let differs = cuts.is_some() && *known != cuts;
                if differs {
                    *known = cuts;
                }
                differs
            });
            tokio::select! {
                moved = tables.changed() => if moved.is_err() { return },
                moved = lost.changed() => if moved.is_err() { return },
            }
        }
    };
    tools.stopping.run_until_cancelled(following).await;
}

/// Peers as nodes, in order; those that the table does not know are no nodes any more.
fn named(table: &NodeTable, own: NodeId, lost: &[LostPeer]) -> Vec<v1::Cut> {
    let via = |node: NodeId| {
        let relay = table.relays.iter().find(|relay| relay.other(own) == Some(node))?;
        Some(relay.via.as_bytes().to_vec())
    };
    let cut = |(id, peer): (&NodeId, &Arc<warren_model::node_table::Peer>)| {
        let keys = [peer.overlay_key, peer.overlay_key_other];
        let found = lost.iter().find(|lost| keys.contains(&lost.key))?;
        let via_lost = via(*id).filter(|_| found.via_lost).unwrap_or_default();
        Some(v1::Cut { node: id.as_bytes().to_vec(), via_lost })
    };
    table.peers.iter().filter(|(id, _)| **id != own).filter_map(cut).take(CUTS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use warren_model::node_table::{Peer, TableRelay};

    use super::*;

    fn node(n: u8) -> NodeId {
        NodeId::from_bytes([n; 10])
    }

    #[test]
    fn peers_are_told_as_nodes() {
        let mut table = NodeTable::default();
        for n in 1..=4 {
            let peer = Peer {
                number: n.into(),
                underlay: format!("192.0.2.{n}"),
                blocks: Vec::new(),
                overlay_key: [n; 32],
                overlay_key_other: [n + 10; 32],
                overlay_port: 0,
                name: String::new(),
            };
            table.peers.insert(node(n), Arc::new(peer));
        }
        table.relays = vec![TableRelay { ends: [node(1), node(3)], via: node(4), slot: 0 }];
        let lost = |key, via_lost| LostPeer { key: [key; 32], via_lost };
        let cut = |n, via: Option<u8>| v1::Cut {
            node: node(n).as_bytes().to_vec(),
            via_lost: via.map_or_else(Vec::new, |via| node(via).as_bytes().to_vec()),
        };
        // By the one key or the other; strangers and this node itself are left out.
        let all = [lost(12, false), lost(3, true), lost(1, false), lost(99, false)];
        assert_eq!(named(&table, node(1), &all), [cut(2, None), cut(3, Some(4))]);
        assert_eq!(named(&table, node(1), &[lost(3, false)]), [cut(3, None)]);
        // Nobody passes on there.
        assert_eq!(named(&table, node(1), &[lost(2, true)]), [cut(2, None)]);
        assert!(named(&table, node(1), &[]).is_empty());
    }
}
