//! Which policies a node must know, and what of them changed between two states.
//!
//! Pure. A policy is told to nodes that run containers which it may be about,
//! as ids of the services that it means: names and networks are looked up
//! here, since a node does not know all that are on a network. Services that
//! the node is not told of are left out: nothing of theirs gets there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use warren_model::node_table::{NodeTable, TableChange, TablePeers, TablePolicy};
use warren_model::policy::{Policy, PolicyPeer};
use warren_model::service::{PublishMode, Service};
use warren_model::{NetworkId, NetworkName, NodeId, PolicyId, ServiceId, ServiceName};
use warren_state::State;

use super::is_member;

/// All that `node` must know, whose tasks are on the networks of `scope`.
pub(super) fn of(
    view: &State,
    node: NodeId,
    scope: &BTreeSet<NetworkId>,
) -> BTreeMap<PolicyId, Arc<TablePolicy>> {
    if view.policies().len() == 0 {
        return BTreeMap::new();
    }
    let own = own_services(view, node);
    if own.is_empty() {
        return BTreeMap::new();
    }
    let told = view.policies().filter_map(|policy| {
        let told = told(view, policy, scope);
        concerns(&told, &own).then(|| (policy.id, Arc::new(told)))
    });
    told.collect()
}

/// Two states, as one node sees them.
pub(super) struct Since<'a> {
    pub(super) node: NodeId,
    /// Networks that it was on, and is on.
    pub(super) before: &'a BTreeSet<NetworkId>,
    pub(super) after: &'a BTreeSet<NetworkId>,
    /// Services of which something may differ.
    pub(super) ids: &'a BTreeSet<ServiceId>,
}

/// What changed of them. Where nothing did, it costs what differs and the tasks of the node.
pub(super) fn changes(old: &State, new: &State, since: &Since<'_>, change: &mut TableChange) {
    if old.policies().len() == 0 && new.policies().len() == 0 {
        return;
    }
    let meant = |view, id: &ServiceId| State::service(view, *id).map(facts);
    let same = since.before == since.after
        && !new.policies_differ(old)
        && since.ids.iter().all(|id| meant(old, id) == meant(new, id))
        && own_services(old, since.node) == own_services(new, since.node);
    if same {
        return;
    }
    let table =
        |view, scope| NodeTable { policies: of(view, since.node, scope), ..NodeTable::default() };
    let (before, after) = (table(old, since.before), table(new, since.after));
    if let Some(found) = after.since(&before) {
        change.policies = found.policies;
        change.removed_policies = found.removed_policies;
    }
}

/// What decides whether a policy means a service, and whether nodes are told of it.
fn facts(service: &Service) -> (&ServiceName, Vec<&NetworkName>, bool) {
    let networks = service.spec.attachments().iter().map(|on| &on.network);
    (&service.spec.name, networks.collect(), has_mesh(service))
}

fn has_mesh(service: &Service) -> bool {
    service.spec.ports.iter().any(|port| port.mode == PublishMode::Ingress)
}

fn own_services(view: &State, node: NodeId) -> BTreeSet<ServiceId> {
    view.tasks_on(node).filter(|task| is_member(task)).map(|task| task.service).collect()
}

/// Whether some container of `own` may be at one of the ends.
fn concerns(policy: &TablePolicy, own: &BTreeSet<ServiceId>) -> bool {
    let is_here = |peers: &Option<TablePeers>| match peers {
        None => true,
        Some(peers) => peers.services.iter().any(|service| own.contains(service)),
    };
    is_here(&policy.from) || is_here(&policy.to)
}

fn told(view: &State, policy: &Policy, scope: &BTreeSet<NetworkId>) -> TablePolicy {
    let spec = &policy.spec;
    TablePolicy {
        name: spec.name.clone(),
        action: spec.action,
        priority: spec.priority,
        from: peers(view, &spec.from, scope),
        to: peers(view, &spec.to, scope),
        ports: spec.ports.clone(),
    }
}

fn peers(view: &State, peers: &[PolicyPeer], scope: &BTreeSet<NetworkId>) -> Option<TablePeers> {
    if peers.is_empty() {
        return None;
    }
    let mut services = BTreeSet::new();
    let mut end = TablePeers::default();
    for peer in peers {
        match peer {
            PolicyPeer::Service(name) => {
                services.extend(view.service_by_name(name.as_str()).map(|service| service.id));
            }
            PolicyPeer::Network(name) => services.extend(view.users_of(name)),
            PolicyPeer::Range(range) => end.ranges.push(*range),
            PolicyPeer::Outside => end.outside = true,
        }
    }
    let is_told = |id: &ServiceId| view.service(*id).is_some_and(|s| is_told(view, s, scope));
    end.services = services.into_iter().filter(is_told).collect();
    Some(end)
}

/// Whether a node on the networks of `scope` is told of a service.
fn is_told(view: &State, service: &Service, scope: &BTreeSet<NetworkId>) -> bool {
    let mut on = service.spec.attachments().iter();
    let shared =
        on.any(|on| view.network_named(&on.network).is_some_and(|n| scope.contains(&n.id)));
    shared || has_mesh(service)
}
