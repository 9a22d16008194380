//! Policies, as people make them and as nodes are told of them.

use std::net::IpAddr;
use std::sync::Arc;

use warren_model::id::PolicyId;
use warren_model::node_table::{TablePeers, TablePolicy};
use warren_model::policy::{IpRange, Policy, PolicyAction, PolicyPeer, PolicyPort, PolicySpec};
use warren_model::service::Protocol;
use warren_model::{PolicyName, ServiceId, Time};

use super::{
    Error, byte_up_to, choice, each, enums, part, part_if_any, policy_id, port, service_id,
};
use crate::v1;

enums! {
    PolicyAction, v1::PolicyAction { Allow Deny OnlyFrom OnlyTo }
}

impl From<&IpRange> for v1::IpRange {
    fn from(range: &IpRange) -> Self {
        let address = match range.address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        Self { address, prefix: range.prefix.into() }
    }
}

impl TryFrom<v1::IpRange> for IpRange {
    type Error = Error;

    fn try_from(wire: v1::IpRange) -> Result<Self, Error> {
        let address = match wire.address.len() {
            4 => <[u8; 4]>::try_from(wire.address).ok().map(IpAddr::from),
            16 => <[u8; 16]>::try_from(wire.address).ok().map(IpAddr::from),
            _ => None,
        };
        let address = address.ok_or_else(|| Error::new("address", "has not 4 or 16 bytes"))?;
        let prefix = byte_up_to("prefix", wire.prefix, Self::prefix_max(address))?;
        Ok(Self { address, prefix })
    }
}

impl From<&PolicyPeer> for v1::PolicyPeer {
    fn from(peer: &PolicyPeer) -> Self {
        use v1::policy_peer::Kind;
        let kind = match peer {
            PolicyPeer::Service(name) => Kind::Service(name.to_string()),
            PolicyPeer::Network(name) => Kind::Network(name.to_string()),
            PolicyPeer::Range(range) => Kind::Range(range.into()),
            PolicyPeer::Outside => Kind::Outside(true),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<v1::PolicyPeer> for PolicyPeer {
    type Error = Error;

    fn try_from(wire: v1::PolicyPeer) -> Result<Self, Error> {
        use v1::policy_peer::Kind;
        let kind = wire.kind.ok_or_else(|| {
            Error::new("kind", "is none that this version knows: service, network, range, outside")
        })?;
        Ok(match kind {
            Kind::Service(name) => Self::Service(
                name.parse().map_err(|problem| Error::new("service", format!("{problem}")))?,
            ),
            Kind::Network(name) => Self::Network(
                name.parse().map_err(|problem| Error::new("network", format!("{problem}")))?,
            ),
            Kind::Range(range) => {
                Self::Range(IpRange::try_from(range).map_err(|e| e.within("range"))?)
            }
            Kind::Outside(_) => Self::Outside,
        })
    }
}

impl From<&PolicyPort> for v1::PolicyPort {
    fn from(port: &PolicyPort) -> Self {
        let (protocol, first, last) = match *port {
            PolicyPort::Icmp => (v1::PolicyProtocol::Icmp, 0, 0),
            PolicyPort::Ports { protocol: Protocol::Tcp, first, last } => {
                (v1::PolicyProtocol::Tcp, first, last)
            }
            PolicyPort::Ports { protocol: Protocol::Udp, first, last } => {
                (v1::PolicyProtocol::Udp, first, last)
            }
        };
        Self { protocol: protocol.into(), first: first.into(), last: last.into() }
    }
}

impl TryFrom<v1::PolicyPort> for PolicyPort {
    type Error = Error;

    fn try_from(wire: v1::PolicyPort) -> Result<Self, Error> {
        let known = v1::PolicyProtocol::try_from(wire.protocol).ok();
        let protocol = match known {
            Some(v1::PolicyProtocol::Tcp) => Protocol::Tcp,
            Some(v1::PolicyProtocol::Udp) => Protocol::Udp,
            Some(v1::PolicyProtocol::Icmp) => return Ok(Self::Icmp),
            Some(v1::PolicyProtocol::Unspecified) => return Err(Error::missing("protocol")),
            None => {
                let problem = format!("{} is not a known value", wire.protocol);
                return Err(Error::new("protocol", problem));
            }
        };
        let (first, last) = (port("first", wire.first)?, port("last", wire.last)?);
        if first > last {
            return Err(Error::new("last", format!("{last} is less than the first, {first}")));
        }
        Ok(Self::Ports { protocol, first, last })
    }
}

impl From<&PolicySpec> for v1::PolicySpec {
    fn from(spec: &PolicySpec) -> Self {
        Self {
            name: spec.name.to_string(),
            labels: spec.labels.clone().into_iter().collect(),
            action: v1::PolicyAction::from(spec.action).into(),
            from: spec.from.iter().map(Into::into).collect(),
            to: spec.to.iter().map(Into::into).collect(),
            ports: spec.ports.iter().map(Into::into).collect(),
            priority: Some(spec.priority.into()),
        }
    }
}

fn priority(wire: Option<u32>) -> Result<u16, Error> {
    let Some(number) = wire else { return Ok(PolicySpec::PRIORITY) };
    u16::try_from(number).map_err(|_| {
        Error::new("priority", format!("{number} is more than {}", PolicySpec::PRIORITY_MAX))
    })
}

fn name(text: &str) -> Result<PolicyName, Error> {
    text.parse().map_err(|problem| Error::new("name", format!("{problem}")))
}

impl TryFrom<v1::PolicySpec> for PolicySpec {
    type Error = Error;

    fn try_from(wire: v1::PolicySpec) -> Result<Self, Error> {
        Ok(Self {
            name: name(&wire.name)?,
            labels: wire.labels.into_iter().collect(),
            action: choice::<v1::PolicyAction, _>("action", wire.action)?,
            from: each("from", wire.from)?,
            to: each("to", wire.to)?,
            ports: each("ports", wire.ports)?,
            priority: priority(wire.priority)?,
        })
    }
}

/// Without whom it means: only a listing knows.
impl From<&Policy> for v1::Policy {
    fn from(policy: &Policy) -> Self {
        Self {
            id: policy.id.as_bytes().to_vec(),
            spec: Some((&policy.spec).into()),
            created: policy.created.0,
            revision: policy.revision,
            missing: Vec::new(),
        }
    }
}

impl TryFrom<v1::Policy> for Policy {
    type Error = Error;

    fn try_from(wire: v1::Policy) -> Result<Self, Error> {
        Ok(Self {
            id: policy_id("id", &wire.id)?,
            spec: part("spec", wire.spec)?,
            created: Time(wire.created),
            revision: wire.revision,
        })
    }
}

impl From<&TablePeers> for v1::NetPeers {
    fn from(peers: &TablePeers) -> Self {
        let TablePeers { services, ranges, outside } = peers;
        Self {
            services: services.iter().map(|id| id.as_bytes().to_vec()).collect(),
            ranges: ranges.iter().map(Into::into).collect(),
            outside: *outside,
        }
    }
}

impl TryFrom<v1::NetPeers> for TablePeers {
    type Error = Error;

    fn try_from(wire: v1::NetPeers) -> Result<Self, Error> {
        let services = wire.services.iter().map(|id| service_id("services", id));
        Ok(Self {
            services: services.collect::<Result<Vec<ServiceId>, _>>()?,
            ranges: each("ranges", wire.ranges)?,
            outside: wire.outside,
        })
    }
}

pub(super) fn wire_policy((id, policy): &(PolicyId, Arc<TablePolicy>)) -> v1::NetPolicy {
    let TablePolicy { name, action, priority, from, to, ports } = &**policy;
    v1::NetPolicy {
        id: id.as_bytes().to_vec(),
        name: name.to_string(),
        action: v1::PolicyAction::from(*action).into(),
        priority: (*priority).into(),
        from: from.as_ref().map(Into::into),
        to: to.as_ref().map(Into::into),
        ports: ports.iter().map(Into::into).collect(),
    }
}

pub(super) fn table_policy(wire: v1::NetPolicy) -> Result<(PolicyId, Arc<TablePolicy>), Error> {
    let id = policy_id("policy.id", &wire.id)?;
    let convert = || -> Result<TablePolicy, Error> {
        Ok(TablePolicy {
            name: name(&wire.name)?,
            action: choice::<v1::PolicyAction, _>("action", wire.action)?,
            priority: priority(Some(wire.priority))?,
            from: part_if_any("from", wire.from)?,
            to: part_if_any("to", wire.to)?,
            ports: each("ports", wire.ports)?,
        })
    };
    convert().map(|policy| (id, Arc::new(policy))).map_err(|e| e.within("policy"))
}
