//! What this node's packet filter counts: connections to services, and what policies decided.
//!
//! Read from the kernel for each question, and at no other time. Of services and policies there
//! are so many lines at most, the first by id; sums are of all.

use std::collections::BTreeMap;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use warren_model::{NodeTable, PolicyId, ServiceId};
use warren_net::{Action, Connections, Count, Net};

type Labels = [(&'static str, String); 3];

/// Services with a line of their own, each by address and by port.
const SERVICES_MAX: usize = 1024;
/// As many as a cluster may have.
const POLICIES_MAX: usize = 1000;
/// What keys of ports of the nodes end with, where every node answers.
const MESH: &str = "mesh";
/// What keys of ports of one node go on with.
const NODE: &str = "node/";

/// What the kernel said.
#[derive(Debug, Default)]
pub(super) struct Figures {
    connections: Vec<Connections>,
    counts: Vec<Count>,
}

impl Figures {
    /// What cannot be read is left out, and is in the log.
    pub(super) async fn ask(net: &Net) -> Self {
        let connections = net.connections().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "count connections to services");
            Vec::new()
        });
        let counts = net.counts().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "count what policies did");
            Vec::new()
        });
        Self { connections, counts }
    }
}

pub(super) fn register(registry: &mut Registry, figures: &Figures, table: &NodeTable) {
    let mut by_service: BTreeMap<(ServiceId, &str), u64> = BTreeMap::new();
    let mut all = 0_u64;
    for Connections { key, led } in &figures.connections {
        all = all.saturating_add(*led);
        let Some((id, rest)) = key.split_once('/') else { continue };
        let Ok(id) = id.parse() else { continue };
        let by = if rest == MESH || rest.starts_with(NODE) { "port" } else { "address" };
        let sum = by_service.entry((id, by)).or_default();
        *sum = sum.saturating_add(*led);
    }
    let total = Counter::<u64>::default();
    total.inc_by(all);
    registry.register("connections", "Connections that this node led to services", total);
    let family: Family<Labels, Counter> = Family::default();
    let known = by_service.into_iter().filter_map(|((id, by), led)| {
        Some((id, table.services.get(&id)?.name.to_string(), by, led))
    });
    for (id, name, by, led) in known.take(2 * SERVICES_MAX) {
        let labels = [("service", id.to_string()), ("name", name), ("by", by.to_owned())];
        family.get_or_create(&labels).inc_by(led);
    }
    let help = "Connections that this node led to a service, by its address or by a port of a node";
    registry.register("service_connections", help, family);
    policies(registry, &figures.counts, table);
}

fn policies(registry: &mut Registry, counts: &[Count], table: &NodeTable) {
    let parted = Counter::<u64>::default();
    let (packets, bytes): (Family<Labels, Counter>, Family<Labels, Counter>) = Default::default();
    let mut lines = 0;
    for count in counts {
        if count.name.is_empty() {
            parted.inc_by(count.packets);
            continue;
        }
        let policy = count.name.parse::<PolicyId>().ok();
        let Some((id, of)) = policy.and_then(|id| Some((id, table.policies.get(&id)?))) else {
            continue;
        };
        lines += 1;
        if lines > POLICIES_MAX {
            break;
        }
        let action = match count.action {
            Action::Allow => "allow",
            Action::Deny => "deny",
        };
        let labels =
            [("policy", id.to_string()), ("name", of.name.to_string()), ("action", action.into())];
        packets.get_or_create(&labels).inc_by(count.packets);
        bytes.get_or_create(&labels).inc_by(count.bytes);
    }
    let help = "Packets dropped because their ends share no network";
    registry.register("parted_packets", help, parted);
    let help = "Packets that began a connection, or tried to, and were decided by a policy";
    registry.register("policy_packets", help, packets);
    registry.register("policy_bytes", "Bytes of these packets", bytes);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prometheus_client::encoding::text::encode;
    use warren_model::node_table::{TablePolicy, TableService};
    use warren_model::policy::PolicyAction;
    use warren_model::service::Endpoint;

    use super::*;

    fn service(name: &str) -> Arc<TableService> {
        Arc::new(TableService {
            name: name.parse().unwrap(),
            on: Vec::new(),
            endpoint: Endpoint::default(),
            ports: Vec::new(),
            hostname: None,
            tasks: Vec::new(),
        })
    }

    #[test]
    fn each_service_and_policy_has_its_lines() {
        let (web, gone) = (ServiceId::from_bytes([1; 10]), ServiceId::from_bytes([2; 10]));
        let deny = PolicyId::from_bytes([3; 10]);
        let mut table = NodeTable::default();
        table.services.insert(web, service("web"));
        let policy = TablePolicy {
            name: "no".parse().unwrap(),
            action: PolicyAction::Deny,
            priority: 1,
            from: None,
            to: None,
            ports: Vec::new(),
        };
        table.policies.insert(deny, Arc::new(policy));
        let led = |key: String, led| Connections { key: key.into(), led };
        let count = |name: String, packets| Count {
            name: name.into(),
            action: Action::Deny,
            packets,
            bytes: packets * 60,
        };
        let figures = Figures {
            connections: vec![
                led(format!("{web}/0abc"), 3),
                led(format!("{web}/0abc/2"), 2),
                led(format!("{web}/mesh"), 7),
                led(format!("{web}/node/80/tcp"), 1),
                led(format!("{gone}/mesh"), 10),
            ],
            counts: vec![count(String::new(), 5), count(deny.to_string(), 6)],
        };
        let mut registry = Registry::default();
        register(&mut registry, &figures, &table);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "connections_total 23".to_owned(),
            format!("service_connections_total{{service=\"{web}\",name=\"web\",by=\"address\"}} 5"),
            format!("service_connections_total{{service=\"{web}\",name=\"web\",by=\"port\"}} 8"),
            "parted_packets_total 5".to_owned(),
            format!("policy_packets_total{{policy=\"{deny}\",name=\"no\",action=\"deny\"}} 6"),
            format!("policy_bytes_total{{policy=\"{deny}\",name=\"no\",action=\"deny\"}} 360"),
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line} is not in {text}");
        }
        assert!(!text.contains(&gone.to_string()), "{text}");
    }
}
