//! What a manager counts, for whoever serves `/metrics`.
//!
//! Every label has few values that are known beforehand: names of calls, codes,
//! reasons. Nothing that a person or a node chooses ever becomes one.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

type Reasons = Family<[(&'static str, &'static str); 1], Counter>;
type Calls = Family<[(&'static str, &'static str); 2], Counter>;

/// Cheap to clone; clones are the same counters.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(crate) sessions: Gauge,
    pub(crate) sessions_ended: Reasons,
    pub(crate) beats: Counter,
    pub(crate) beat_gaps: Counter,
    pub(crate) joins: Reasons,
    pub(crate) plans: Counter,
    pub(crate) plan_seconds: Histogram,
    pub(crate) proposals: Reasons,
    pub(crate) reports: Counter,
    pub(crate) streams: Gauge,
    pub(crate) calls: Calls,
    pub(crate) member_steps: Reasons,
    pub(crate) backups: Reasons,
    pub(crate) relays: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            sessions: Gauge::default(),
            sessions_ended: Family::default(),
            beats: Counter::default(),
            beat_gaps: Counter::default(),
            joins: Family::default(),
            plans: Counter::default(),
            // From a tenth of a millisecond, an idle look, to 1.6 s, a hundred thousand tasks.
            plan_seconds: Histogram::new(exponential_buckets(0.000_1, 4.0, 8)),
            proposals: Family::default(),
            reports: Counter::default(),
            streams: Gauge::default(),
            calls: Family::default(),
            member_steps: Family::default(),
            backups: Family::default(),
            relays: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Makes everything appear in what `registry` writes.
    pub fn register(&self, registry: &mut Registry) {
        let m = self.clone();
        registry.register("sessions", "Nodes with a session at this manager", m.sessions);
        registry.register("sessions_ended", "Sessions that ended, by reason", m.sessions_ended);
        registry.register("beats", "Beats of nodes that this manager answered", m.beats);
        registry.register("beat_gaps", "Times that the leader's loop was held up", m.beat_gaps);
        registry.register("joins", "Attempts of nodes to join, by result", m.joins);
        registry.register("plans", "Looks of the planner", m.plans);
        let help = "Time of a look of the planner";
        registry.register_with_unit("plan", help, Unit::Seconds, m.plan_seconds);
        registry.register("proposals", "Proposals of the leader's plans, by result", m.proposals);
        registry.register("reports", "Task statuses that nodes reported", m.reports);
        registry.register("streams", "Streams open through this manager", m.streams);
        registry.register("calls", "Calls by method and gRPC code", m.calls);
        let help = "Changes of the group of managers, by step and result";
        registry.register("member_steps", help, m.member_steps);
        registry.register("backups", "Backups that were written, by result", m.backups);
        let help = "Pairs of nodes that do not reach each other, and for whom a third passes on";
        registry.register("relays", help, m.relays);
    }
}

/// Adds one to a family's counter.
pub(crate) fn count(family: &Reasons, label: &'static str, value: &'static str) {
    family.get_or_create(&[(label, value)]).inc();
}

/// Holds a gauge up while something is open.
pub(crate) struct Open(Gauge);

impl Open {
    pub(crate) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_written() {
        let metrics = Metrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        count(&metrics.joins, "result", "ok");
        metrics.calls.get_or_create(&[("method", "GetInfo"), ("code", "Ok")]).inc();
        let open = Open::new(&metrics.streams);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "joins_total{result=\"ok\"} 1",
            "calls_total{method=\"GetInfo\",code=\"Ok\"} 1",
            "streams 1",
            "# TYPE plan_seconds histogram",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
        drop(open);
        assert_eq!(metrics.streams.get(), 0);
    }
}
