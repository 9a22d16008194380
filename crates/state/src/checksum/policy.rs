//! Policies in the checksum.

use std::net::IpAddr;

use warren_model::policy::{IpRange, Policy, PolicyAction, PolicyPeer, PolicyPort, PolicySpec};
use warren_model::service::Protocol;

use super::Digest;

pub(super) fn add(digest: &mut Digest, policy: &Policy) {
    let Policy { id, spec, created, revision } = policy;
    let PolicySpec { name, labels, action, from, to, ports, priority } = spec;
    digest.bytes(id.as_bytes());
    digest.text(name.as_str());
    digest.labels(labels);
    let action = match action {
        PolicyAction::Allow => 1,
        PolicyAction::Deny => 2,
        PolicyAction::OnlyFrom => 3,
        PolicyAction::OnlyTo => 4,
    };
    digest.word(action << 16 | u64::from(*priority));
    for peers in [from, to] {
        digest.word(peers.len() as u64);
        peers.iter().for_each(|peer| add_peer(digest, peer));
    }
    digest.word(ports.len() as u64);
    ports.iter().for_each(|port| add_port(digest, port));
    digest.word(created.0);
    digest.word(*revision);
}

fn add_peer(digest: &mut Digest, peer: &PolicyPeer) {
    match peer {
        PolicyPeer::Service(name) => {
            digest.word(1);
            digest.text(name.as_str());
        }
        PolicyPeer::Network(name) => {
            digest.word(2);
            digest.text(name.as_str());
        }
        PolicyPeer::Range(IpRange { address, prefix }) => {
            digest.word(3 << 8 | u64::from(*prefix));
            match address {
                IpAddr::V4(v4) => digest.bytes(&v4.octets()),
                IpAddr::V6(v6) => digest.bytes(&v6.octets()),
            }
        }
        PolicyPeer::Outside => digest.word(4),
    }
}

fn add_port(digest: &mut Digest, port: &PolicyPort) {
    let (kind, first, last) = match *port {
        PolicyPort::Ports { protocol: Protocol::Tcp, first, last } => (1, first, last),
        PolicyPort::Ports { protocol: Protocol::Udp, first, last } => (2, first, last),
        PolicyPort::Icmp => (3, 0, 0),
    };
    digest.word(kind << 32 | u64::from(first) << 16 | u64::from(last));
}
