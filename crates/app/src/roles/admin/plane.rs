//! What the data plane counts, as it said when it was asked.
//!
//! Of other nodes each has its own counters, up to a limit; sums are of all.

use std::collections::BTreeMap;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use warren_dataplane::{DnsCounters, PeerStatus, Status};

use super::scrape::gauge;
use crate::roles::plane::NodeLabel;

type Labelled = Family<[(&'static str, String); 1], Counter>;
type NodeLabels = [(&'static str, String); 2];

/// Nodes with counters of their own: each has seven lines.
const NODES_MAX: usize = 1024;

/// Registers what is known; of a data plane that does not answer, that it does not.
pub(super) fn register(
    registry: &mut Registry,
    status: Option<&Status>,
    nodes: &BTreeMap<String, NodeLabel>,
) {
    gauge(registry, "up", "Whether the data plane answers", status.is_some().into());
    let Some(status) = status else { return };
    gauge(registry, "uptime_seconds", "How long its process has run", status.uptime_ms / 1000);
    gauge(registry, "services", "Services that have names here", status.services);
    gauge(registry, "askers", "Containers that may ask for names", status.askers);
    if let Some(dns) = &status.dns {
        let by = labelled("outcome", outcomes(dns));
        registry.register("questions", "Questions about names, by outcome", by);
    }
    gauge(registry, "carries", "Whether packets go to other nodes", status.carries.into());
    gauge(registry, "peers", "Other nodes with a tunnel", status.peers.len() as u64);
    let shaken = status.peers.iter().filter(|peer| peer.handshake_ms > 0).count();
    gauge(registry, "peers_met", "Of these, nodes that were heard", shaken as u64);
    let sum = |bytes: fn(&PeerStatus) -> u64| -> u64 { status.peers.iter().map(bytes).sum() };
    let (sent, received) = (sum(|peer| peer.sent_bytes), sum(|peer| peer.received_bytes));
    total(registry, "tunnel_sent", "Sent to other nodes", sent);
    total(registry, "tunnel_received", "Received from other nodes", received);
    let by = labelled("reason", status.drops.iter().map(|(reason, n)| (reason.clone(), *n)));
    registry.register("tunnel_drops", "Packets dropped by the tunnel, by reason", by);
    let help = "Whether packets are not carried as they should be; its log says why";
    gauge(registry, "troubled", help, status.trouble.is_some().into());
    each_node(registry.sub_registry_with_prefix("peer"), status, nodes);
}

/// What is counted of each other node.
fn each_node(registry: &mut Registry, status: &Status, nodes: &BTreeMap<String, NodeLabel>) {
    // One that is in no table any more is told with the next status.
    let known = status.peers.iter().filter_map(|peer| Some((nodes.get(&peer.key)?, peer)));
    let known: Vec<(&NodeLabel, &PeerStatus)> = known.take(NODES_MAX).collect();
    let labels = |node: &NodeLabel| [("node", node.id.clone()), ("name", node.name.clone())];
    type Count = (&'static str, &'static str, Option<Unit>, fn(&PeerStatus) -> u64);
    let counts: [Count; 6] = [
        ("sent", "Sent to the node", Some(Unit::Bytes), |peer| peer.sent_bytes),
        ("received", "Received from it", Some(Unit::Bytes), |peer| peer.received_bytes),
        ("sent_packets", "Messages sent to it", None, |peer| peer.sent_packets),
        ("received_packets", "Messages received from it", None, |peer| peer.received_packets),
        ("drops", "Packets of it and to it that were dropped", None, |peer| peer.dropped_packets),
        ("handshakes_failed", "Handshakes begun here that it did not answer", None, |peer| {
            peer.handshakes_failed
        }),
    ];
    for (name, help, unit, count) in counts {
        let family: Family<NodeLabels, Counter> = Family::default();
        for (node, peer) in &known {
            family.get_or_create(&labels(node)).inc_by(count(peer));
        }
        match unit {
            Some(unit) => registry.register_with_unit(name, help, unit, family),
            None => registry.register(name, help, family),
        }
    }
    let family: Family<NodeLabels, Gauge> = Family::default();
    for (node, peer) in known.iter().filter(|(_, peer)| peer.handshake_ms > 0) {
        let at = i64::try_from(peer.handshake_ms / 1000).unwrap_or(i64::MAX);
        family.get_or_create(&labels(node)).set(at);
    }
    let help = "When the last handshake with it was, in seconds since the epoch";
    registry.register_with_unit("last_handshake", help, Unit::Seconds, family);
    type Is = fn(&PeerStatus) -> bool;
    let states: [(&str, &str, Is); 2] = [
        ("relayed", "It is not reached directly, another node passes on", |peer| {
            !peer.via.is_empty()
        }),
        ("unreachable", "It is reached neither directly nor by another node", |peer| {
            peer.lost && (peer.via.is_empty() || peer.via_lost)
        }),
    ];
    for (name, help, is) in states {
        let family: Family<NodeLabels, Gauge> = Family::default();
        for (node, peer) in &known {
            family.get_or_create(&labels(node)).set(is(peer).into());
        }
        registry.register(name, help, family);
    }
}

fn outcomes(dns: &DnsCounters) -> impl Iterator<Item = (String, u64)> {
    let DnsCounters { received, answered, recalled, forwarded, refused, malformed, .. } = *dns;
    let DnsCounters { overloaded, connections_refused, unsent, .. } = *dns;
    [
        ("received", received),
        ("answered", answered),
        ("recalled", recalled),
        ("forwarded", forwarded),
        ("refused", refused),
        ("malformed", malformed),
        ("overloaded", overloaded),
        ("connection-refused", connections_refused),
        ("unsent", unsent),
    ]
    .into_iter()
    .map(|(outcome, count)| (outcome.to_owned(), count))
}

fn labelled(name: &'static str, values: impl Iterator<Item = (String, u64)>) -> Labelled {
    let family = Labelled::default();
    for (value, count) in values {
        family.get_or_create(&[(name, value)]).inc_by(count);
    }
    family
}

fn total(registry: &mut Registry, name: &str, help: &str, bytes: u64) {
    let counter = Counter::<u64>::default();
    counter.inc_by(bytes);
    registry.register_with_unit(name, help, Unit::Bytes, counter);
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    fn text(status: Option<&Status>) -> String {
        let mut registry = Registry::default();
        let label = NodeLabel { id: "0abc".to_owned(), name: "w2".to_owned() };
        register(&mut registry, status, &BTreeMap::from([("key".to_owned(), label)]));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn what_does_not_answer_is_down() {
        assert!(text(None).contains("\nup 0\n"));
        let dns = DnsCounters { answered: 3, ..DnsCounters::default() };
        let mut status = Status { dns: Some(dns), ..Status::default() };
        status.drops.insert("forged".to_owned(), 2);
        let peer = PeerStatus {
            key: "key".to_owned(),
            sent_bytes: 7,
            handshake_ms: 5_999,
            handshakes_failed: 4,
            ..PeerStatus::default()
        };
        let stranger = PeerStatus { key: "other".to_owned(), ..peer.clone() };
        status.peers = vec![peer, stranger];
        let text = text(Some(&status));
        for line in [
            "up 1",
            "questions_total{outcome=\"answered\"} 3",
            "tunnel_drops_total{reason=\"forged\"} 2",
            "tunnel_sent_bytes_total 14",
            "peer_sent_bytes_total{node=\"0abc\",name=\"w2\"} 7",
            "peer_handshakes_failed_total{node=\"0abc\",name=\"w2\"} 4",
            "peer_last_handshake_seconds{node=\"0abc\",name=\"w2\"} 5",
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line} is not in {text}");
        }
        assert_eq!(text.matches("peer_sent_bytes_total{").count(), 1, "{text}");
    }
}
