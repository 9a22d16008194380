//! What the data plane counts, as it said when it was asked.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};
use warren_dataplane::{DnsCounters, Status};

use super::scrape::gauge;

type Labelled = Family<[(&'static str, String); 1], Counter>;

/// Registers what is known; of a data plane that does not answer, that it does not.
pub(super) fn register(registry: &mut Registry, status: Option<&Status>) {
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
    let sum = |bytes: fn(&warren_dataplane::PeerStatus) -> u64| -> u64 {
        status.peers.iter().map(bytes).sum()
    };
    let (sent, received) = (sum(|peer| peer.sent_bytes), sum(|peer| peer.received_bytes));
    total(registry, "tunnel_sent", "Sent to other nodes", sent);
    total(registry, "tunnel_received", "Received from other nodes", received);
    let by = labelled("reason", status.drops.iter().map(|(reason, n)| (reason.clone(), *n)));
    registry.register("tunnel_drops", "Packets dropped by the tunnel, by reason", by);
    let help = "Whether packets are not carried as they should be; its log says why";
    gauge(registry, "troubled", help, status.trouble.is_some().into());
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
        register(&mut registry, status);
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
        let text = text(Some(&status));
        for line in [
            "up 1",
            "questions_total{outcome=\"answered\"} 3",
            "tunnel_drops_total{reason=\"forged\"} 2",
            "tunnel_sent_bytes_total 0",
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line} is not in {text}");
        }
    }
}
