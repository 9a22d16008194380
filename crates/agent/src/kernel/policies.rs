//! What policies make of the containers of this node: a list of clauses each way for each
//! service that has tasks here.
//!
//! Pure; follows from the table alone. Services have the addresses of all their tasks that
//! have not ended, also of those that take no connections. Made anew when the table is
//! another, and shared with what was made before where it is the same.
//!
//! Not here: which policies a node is told of (managers), what is judged where (`net`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use warren_model::node_table::{TablePeers, TablePolicy};
use warren_model::policy::{self, PolicyAction, PolicyPort};
use warren_model::service::Protocol as PortProtocol;
use warren_model::{NodeTable, PolicyId, ServiceId};
use warren_net::{
    Action, Clause, Direction, Entries, PeerSet, Peers, Policy, PortRange, Protocol, Traffic,
};

use super::{Site, addresses};

/// Of all policies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Drawn {
    pub(super) of: BTreeMap<ServiceId, Vec<Arc<Policy>>>,
    /// Whom they name, by key.
    pub(super) peers: Entries<PeerSet>,
}

/// Which end of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    From,
    To,
}

/// What `table` says; `before` is used again where it is the same.
pub(super) fn draw(site: &Site, table: &NodeTable, before: &Drawn) -> Drawn {
    if table.policies.is_empty() {
        return Drawn::default();
    }
    let mut sorted: Vec<(&PolicyId, &TablePolicy)> =
        table.policies.iter().map(|(id, policy)| (id, &**policy)).collect();
    sorted.sort_by(|(_, a), (_, b)| {
        policy::order(a.priority, a.action, &a.name)
            .cmp(&policy::order(b.priority, b.action, &b.name))
    });
    let mut sets: BTreeMap<(PolicyId, End), Arc<PeerSet>> = BTreeMap::new();
    let mut drawn = Drawn::default();
    for (id, service) in &table.services {
        let here = service.tasks.iter().filter(|task| task.node == site.node);
        let subjects: Vec<IpAddr> = here.flat_map(|task| addresses(site, table, task)).collect();
        if subjects.is_empty() {
            continue;
        }
        let both = [Direction::In, Direction::Out].into_iter().filter_map(|direction| {
            let clauses = clauses(*id, direction, &sorted);
            (!clauses.is_empty()).then(|| Policy {
                key: format!("{id}/{}", word(direction)).into(),
                subjects: subjects.clone(),
                direction,
                clauses,
            })
        });
        let known = before.of.get(id).map_or(&[][..], Vec::as_slice);
        let same = |new: &Policy| known.iter().find(|old| ***old == *new);
        let both: Vec<Arc<Policy>> = both.map(|policy| shared(same, policy)).collect();
        if !both.is_empty() {
            drawn.of.insert(*id, both);
        }
    }
    for (id, policy) in sorted {
        for (end, peers) in [(End::From, &policy.from), (End::To, &policy.to)] {
            let Some(peers) = peers.as_ref().filter(|peers| !peers.services.is_empty()) else {
                continue;
            };
            let set =
                PeerSet { key: set_key(*id, end).into(), addresses: members(site, table, peers) };
            let same = |new: &PeerSet| before.peers.get(&new.key).filter(|old| ***old == *new);
            sets.insert((*id, end), shared(same, set));
        }
    }
    drawn.peers = sets.into_values().collect();
    drawn
}

fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::In => "in",
        Direction::Out => "out",
    }
}

fn set_key(policy: PolicyId, end: End) -> String {
    let end = match end {
        End::From => "from",
        End::To => "to",
    };
    format!("{policy}/{end}")
}

/// Containers of the services of one end.
fn members(site: &Site, table: &NodeTable, peers: &TablePeers) -> Vec<IpAddr> {
    let services = peers.services.iter().filter_map(|id| table.services.get(id));
    let tasks = services.flat_map(|service| &service.tasks);
    tasks.flat_map(|task| addresses(site, table, task)).collect()
}

/// What decides about what `service` is sent, or sends, in order.
fn clauses(
    service: ServiceId,
    direction: Direction,
    sorted: &[(&PolicyId, &TablePolicy)],
) -> Vec<Clause> {
    let mut clauses = Vec::new();
    let mut shut: Option<&PolicyId> = None;
    for (id, policy) in sorted {
        let (subject, peers, end, only) = match direction {
            Direction::In => (&policy.to, &policy.from, End::From, PolicyAction::OnlyFrom),
            Direction::Out => (&policy.from, &policy.to, End::To, PolicyAction::OnlyTo),
        };
        let is_about = subject.as_ref().is_none_or(|peers| peers.services.contains(&service));
        if !is_about {
            continue;
        }
        clauses.push(Clause {
            name: id.to_string().into(),
            action: if policy.action.allows() { Action::Allow } else { Action::Deny },
            peers: peers.as_ref().map_or(Peers::Any, |peers| those(**id, end, peers)),
            traffic: policy.ports.iter().map(traffic).collect(),
        });
        if policy.action == only {
            shut = shut.or(Some(id));
        }
    }
    // What no policy matches, where one is an "only".
    clauses.extend(shut.map(|id| Clause {
        name: id.to_string().into(),
        action: Action::Deny,
        peers: Peers::Any,
        traffic: Vec::new(),
    }));
    clauses
}

fn those(id: PolicyId, end: End, peers: &TablePeers) -> Peers {
    let TablePeers { services, ranges, outside } = peers;
    Peers::Some {
        set: (!services.is_empty()).then(|| set_key(id, end).into()),
        subnets: ranges.iter().map(|range| (range.address, range.prefix)).collect(),
        outside: *outside,
    }
}

fn traffic(port: &PolicyPort) -> Traffic {
    match *port {
        PolicyPort::Icmp => Traffic::Icmp,
        PolicyPort::Ports { protocol, first, last } => {
            let protocol = match protocol {
                PortProtocol::Tcp => Protocol::Tcp,
                PortProtocol::Udp => Protocol::Udp,
            };
            Traffic::Ports(PortRange { protocol, first, last })
        }
    }
}

/// What was the same before, if anything was.
fn shared<'a, T: 'a>(same: impl Fn(&T) -> Option<&'a Arc<T>>, new: T) -> Arc<T> {
    same(&new).map_or_else(|| Arc::new(new), Arc::clone)
}
