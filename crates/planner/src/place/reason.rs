//! Why tasks of a service have no place, in one line: for `ps` and for those who wait.
//!
//! Each node counts once, under the first thing that keeps tasks off it. What
//! is free where is not in it: it would have to be written anew whenever
//! anything moves. For the same reason a reason is found again only after a node
//! changed or got more room. `explain` has the numbers, and all there is now.

use std::collections::BTreeMap;

use warren_model::cluster::Cluster;
use warren_model::service::{PublishMode, Service};

use super::ask::{Ask, Obstacle, Share};
use crate::nodes::Nodes;

/// Different things that are told; a service with more has a summary for its last.
const PARTS_MAX: usize = 8;

pub(crate) fn reason<'a>(
    nodes: &Nodes<'a>,
    cluster: &Cluster,
    ask: &Ask<'a>,
    share: impl Fn(usize) -> Share,
) -> String {
    if nodes.len() == 0 {
        return "the cluster has no node".to_owned();
    }
    let mut counts: BTreeMap<(Kind, String), usize> = BTreeMap::new();
    let mut ready = 0;
    for (at, site) in nodes.sites().iter().enumerate() {
        ready += usize::from(site.is_eligible());
        let mut first = None;
        ask.obstacles(site, at, share(at), |obstacle| {
            first = Some(obstacle);
            false
        });
        // One that fits after all is full in another way: its address was tried.
        let Some(obstacle) = first else { continue };
        *counts.entry(told(&obstacle, ask.service)).or_default() += 1;
    }
    let only = |kind: Kind| {
        let mut rest = counts.keys().filter(|(other, _)| !other.is_of_node());
        ready > 0 && rest.all(|(other, _)| *other == kind)
    };
    if only(Kind::Address) {
        return format!("no free address: the pool {} is used up", cluster.pool);
    }
    if only(Kind::Ports) {
        let ports = host_ports(ask.service);
        return format!("host port {ports} is in use on every ready node ({ready})");
    }
    let begin = if ready == 0 { "no node is ready for tasks" } else { "no node fits" };
    let rest = counts.len().saturating_sub(PARTS_MAX);
    let parts = counts.iter().take(PARTS_MAX);
    let mut parts: Vec<String> =
        parts.map(|((_, text), count)| format!("{count} {text}")).collect();
    if rest > 0 {
        parts.push(format!("{rest} other reasons"));
    }
    format!("{begin}: {}", parts.join(", "))
}

/// In the order in which they are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Resources,
    Constraint,
    Platform,
    Taint,
    Affinity,
    Ports,
    MaxPerNode,
    Address,
    Down,
    Paused,
    Draining,
    NotWorker,
}

impl Kind {
    /// Whether it is the node's own, whatever a service asks.
    fn is_of_node(self) -> bool {
        self >= Self::Down
    }
}

/// What is counted together, and its words after the number of nodes.
fn told(obstacle: &Obstacle<'_>, service: &Service) -> (Kind, String) {
    match obstacle {
        Obstacle::NotWorker => (Kind::NotWorker, "not a worker".to_owned()),
        Obstacle::Down => (Kind::Down, "down".to_owned()),
        Obstacle::Paused => (Kind::Paused, "paused".to_owned()),
        Obstacle::Draining => (Kind::Draining, "draining".to_owned()),
        Obstacle::Constraint(constraint) => (Kind::Constraint, format!("not {constraint}")),
        Obstacle::Platform(all) => {
            (Kind::Platform, format!("without a build of the image (it is for {})", all.join(", ")))
        }
        Obstacle::Taint(taint) => (Kind::Taint, format!("tainted {taint}")),
        Obstacle::Near(name) => (Kind::Affinity, format!("without {name}")),
        Obstacle::Apart(name) => (Kind::Affinity, format!("with {name}")),
        Obstacle::HostPorts => {
            (Kind::Ports, format!("with host port {} in use", host_ports(service)))
        }
        Obstacle::MaxPerNode(_, most) => {
            (Kind::MaxPerNode, format!("with as many of it as may be ({most})"))
        }
        Obstacle::Lacks(shortage) => {
            let (resource, needed) = (shortage.resource, shortage.resource.amount(shortage.needed));
            let text = match shortage.default {
                None => format!("short of {resource} (needs {needed})"),
                Some(of) => format!("short of {resource} (needs {needed}, {})", of.as_str()),
            };
            (Kind::Resources, text)
        }
        Obstacle::NoAddress => (Kind::Address, "without a free address".to_owned()),
    }
}

pub(crate) fn host_ports(service: &Service) -> String {
    let ports = service.spec.ports.iter().filter(|port| port.mode == PublishMode::Host);
    ports.map(|port| port.published.to_string()).collect::<Vec<_>>().join(", ")
}
