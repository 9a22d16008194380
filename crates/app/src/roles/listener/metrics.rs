//! What happens at the port, in numbers.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

type Label = [(&'static str, &'static str); 1];

/// Cheap to clone; clones are the same counters.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    accepted: Family<Label, Counter>,
    refused: Family<Label, Counter>,
    open: Family<Label, Gauge>,
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let m = self.clone();
        let help = "Connections that were let in, by protocol";
        registry.register("connections", help, m.accepted);
        let help = "Connections that were closed before anything was said, by reason";
        registry.register("connections_refused", help, m.refused);
        registry.register("connections_open", "Connections now, by protocol", m.open);
    }

    pub(super) fn turned(&self, reason: &'static str) {
        self.refused.get_or_create(&[("reason", reason)]).inc();
    }

    /// Counted as open until dropped.
    pub(super) fn open(&self, protocol: &'static str) -> Open {
        let label = [("protocol", protocol)];
        self.accepted.get_or_create(&label).inc();
        let gauge = self.open.get_or_create(&label).clone();
        gauge.inc();
        Open(gauge)
    }

    #[cfg(test)]
    pub(super) fn count(&self, reason: &'static str) -> u64 {
        self.refused.get_or_create(&[("reason", reason)]).get()
    }
}

pub(crate) struct Open(Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
