//! All counters of a node as Prometheus reads them.
//!
//! The registry is made for each question: what there is to tell changes when a
//! node becomes a manager or ceases to be one, and handles are cheap.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::{Rooms, network, plane};

const PREFIX: &str = "warren";
/// Of Linux on every machine that Warren knows.
const PAGE_BYTES: u64 = 4096;

/// `plane_status` is what the data plane said of itself, `figures` what the kernel counted, just now.
pub(super) fn text(
    rooms: Option<&Rooms>,
    plane_status: Option<&warren_dataplane::Status>,
    figures: Option<&network::Figures>,
) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix(PREFIX);
    process(&mut registry);
    if let Some(rooms) = rooms {
        rooms.shared.metrics.register(&mut registry);
        if let Some(metrics) = rooms.shared.manager_metrics.load_full() {
            metrics.register(registry.sub_registry_with_prefix("manager"));
        }
        if let Some(store) = rooms.shared.store.load_full() {
            store_metrics(registry.sub_registry_with_prefix("store"), &store.metrics());
        }
        agent(registry.sub_registry_with_prefix("agent"), &rooms.agent);
        identity(&mut registry, rooms);
        let nodes = rooms.plane.nodes();
        plane::register(registry.sub_registry_with_prefix("dataplane"), plane_status, &nodes);
        if let Some(figures) = figures {
            let table = rooms.plane.table();
            network::register(registry.sub_registry_with_prefix("network"), figures, &table);
        }
    }
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

pub(super) fn gauge(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge = Gauge::<i64>::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    registry.register(name, help, gauge);
}

fn bytes(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge = Gauge::<i64>::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    registry.register_with_unit(name, help, Unit::Bytes, gauge);
}

fn counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let counter = Counter::<u64>::default();
    counter.inc_by(value);
    registry.register(name, help, counter);
}

fn process(registry: &mut Registry) {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok());
    let resident = pages.unwrap_or(0).saturating_mul(PAGE_BYTES);
    bytes(registry, "process_resident_memory", "Memory of this process", resident);
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64);
    gauge(registry, "process_open_fds", "Open descriptors of this process", open);
}

fn store_metrics(registry: &mut Registry, m: &warren_store::metrics::Metrics) {
    gauge(registry, "term", "Term of the managers' consensus", m.term);
    gauge(registry, "last_index", "Last entry of the log", m.last_index);
    gauge(registry, "applied_index", "Last entry that was applied", m.applied_index);
    gauge(registry, "leads", "Whether this manager leads", m.leads.into());
    gauge(registry, "voters", "Managers that vote", m.voters);
    gauge(registry, "learners", "Managers that do not vote yet", m.learners);
    bytes(registry, "log", "Size of the log", m.log_bytes);
    gauge(registry, "log_segments", "Files of the log", m.log_segments);
    bytes(registry, "snapshot", "Size of the newest snapshot", m.snapshot_bytes);
    gauge(registry, "snapshot_index", "Last entry in the newest snapshot", m.snapshot_index);
    counter(registry, "proposals", "Transactions that were proposed here", m.proposals);
    counter(registry, "forwarded", "Transactions that went on to the leader", m.forwarded);
    counter(registry, "batches", "Entries that transactions were gathered in", m.batches);
    counter(registry, "refused_calls", "Calls of other managers refused", m.refused_calls);
    counter(registry, "snapshots_sent", "Snapshots sent to others", m.snapshots_sent);
    counter(registry, "snapshots_received", "Snapshots that came", m.snapshots_received);
    counter(registry, "syncs", "Syncs of the log", m.sync.syncs);
    counter(registry, "synced_entries", "Entries made safe by them", m.sync.entries);
    let seconds = Counter::<f64, AtomicU64>::default();
    #[expect(clippy::cast_precision_loss, reason = "microseconds of centuries fit")]
    seconds.inc_by(m.sync.sync_us as f64 / 1e6);
    registry.register_with_unit("sync", "Time in syncs of the log", Unit::Seconds, seconds);
}

fn agent(registry: &mut Registry, m: &warren_agent::Metrics) {
    let read = |value: &AtomicU64| value.load(Ordering::Relaxed);
    let mut count = |name: &str, help: &str, value: &AtomicU64| {
        counter(registry, name, help, read(value));
    };
    count("sessions", "Sessions with managers", &m.sessions_opened);
    count("switches", "Sessions with another manager than before", &m.switches);
    count("attempts_failed", "Attempts at a manager that failed", &m.attempts_failed);
    count("beats_missed", "Beats that no manager answered", &m.beats_missed);
    count("assignments", "Assignments that were applied", &m.assignments_applied);
    count("assignments_refused", "Assignments that did not follow", &m.assignments_refused);
    count("cache_writes", "Writes of the kept assignments", &m.cache_writes);
    count("probes_good", "Health probes that found a container well", &m.probes_good);
    count("probes_failed", "Health probes that did not, or were not answered", &m.probes_failed);
    count("unhealthy", "Times that a container became unhealthy", &m.became_unhealthy);
    count("cache_failures", "Writes of them that failed", &m.cache_failures);
    gauge(registry, "watched", "Containers whose health is asked for", read(&m.watched));
    let rtt = Gauge::<f64, AtomicU64>::default();
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of centuries fit")]
    rtt.set(read(&m.rtt_ms) as f64 / 1e3);
    registry.register_with_unit("round_trip", "To the manager and back", Unit::Seconds, rtt);
}

fn identity(registry: &mut Registry, rooms: &Rooms) {
    if let Some(own) = rooms.shared.dialer.credentials().own() {
        let help = "When this node's certificate ends, in seconds since the epoch";
        let at = Gauge::<i64>::default();
        at.set(i64::try_from(own.not_after.0 / 1000).unwrap_or(i64::MAX));
        registry.register_with_unit("certificate_not_after", help, Unit::Seconds, at);
    }
    let session = u64::from(rooms.manager.borrow().is_some());
    gauge(registry, "agent_connected", "Whether there is a session with a manager", session);
}
