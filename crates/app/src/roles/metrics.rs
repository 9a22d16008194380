//! What the roles of a node count.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::listener;

/// Cheap to clone; clones are the same counters.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    pub(crate) listener: listener::Metrics,
    pub(crate) renewals: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        self.listener.register(registry);
        let help = "Renewals of this node's certificate, by result";
        registry.register("certificate_renewals", help, self.renewals.clone());
    }
}
