//! Datagram flows that go where a new one would not.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use crate::Protocol;
use crate::conntrack::Flow;
use crate::rules::{Family, Port, Ports, Rules};
use crate::table::{Backend, Frontend};

/// Backends that a service has no more, and what it was reached by.
pub(super) struct Parted<'a> {
    frontends: &'a [Frontend],
    pub(super) removed: Vec<IpAddr>,
}

impl Parted<'_> {
    pub(super) fn is_stale(&self, flow: &Flow) -> bool {
        let reached = |frontend: &Frontend| match *frontend {
            Frontend::Address(vip) => vip == flow.destination,
            Frontend::Port { vip, port, .. } => {
                (vip, port) == (flow.destination, flow.destination_port)
            }
            Frontend::Published { bind, port, .. } => {
                port == flow.destination_port && (bind.is_unspecified() || bind == flow.destination)
            }
            Frontend::Elsewhere { .. } => false,
        };
        self.removed.contains(&flow.answered_by) && self.frontends.iter().any(reached)
    }
}

/// Services that datagrams may have been sent to, each with the backends that it lost.
pub(super) fn parted<'a>(held: &'a Rules, wanted: &'a Rules, family: Family) -> Vec<Parted<'a>> {
    let (old, new) = held.services.list.changes(&wanted.services.list);
    let takes_datagrams = |frontend: &Frontend| match frontend {
        Frontend::Address(_) => true,
        Frontend::Port { protocol, .. } | Frontend::Published { protocol, .. } => {
            *protocol == Protocol::Udp
        }
        Frontend::Elsewhere { .. } => false,
    };
    let old = old.into_iter().filter(|s| s.entry.frontends.iter().any(takes_datagrams));
    old.filter_map(|old| {
        let now = new.iter().find(|new| new.id == old.id).map(|new| &new.entry.backends);
        let is_gone = |backend: &&Backend| {
            family.has(&backend.address)
                && !now.is_some_and(|now| {
                    now.iter().any(|b| b.address == backend.address && b.weight > 0)
                })
        };
        let removed: Vec<IpAddr> =
            old.entry.backends.iter().filter(is_gone).map(|backend| backend.address).collect();
        (!removed.is_empty()).then_some(Parted { frontends: &old.entry.frontends, removed })
    })
    .collect()
}

/// Whether a flow to `port` goes elsewhere than a new one would.
pub(super) fn is_stale(
    flow: &Flow,
    port: &Port,
    wanted: &Ports,
    pool: (Ipv4Addr, u8),
    local: &[Ipv4Addr],
) -> bool {
    let (IpAddr::V4(destination), IpAddr::V4(answered_by)) = (flow.destination, flow.answered_by)
    else {
        return false;
    };
    if !port.bind.is_unspecified() && port.bind != destination {
        return false;
    }
    let backends = wanted.get(port);
    let answers = SocketAddrV4::new(answered_by, flow.answered_by_port);
    let is_backend = |backends: &BTreeSet<SocketAddrV4>| backends.contains(&answers);
    if answered_by == destination {
        // Not translated: begun before there was a backend, or nothing of ours at all.
        let is_local = destination.is_loopback() || local.contains(&destination);
        return is_local && backends.is_some_and(|backends| !backends.is_empty());
    }
    crate::in_network(answered_by, pool) && !backends.is_some_and(is_backend)
}
