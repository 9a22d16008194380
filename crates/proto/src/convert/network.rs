//! Networks, and how services are on them.

use std::net::Ipv6Addr;

use warren_model::ipv6::Subnet6;
use warren_model::network::{Network, NetworkSpec, Vip, VipHolder};
use warren_model::overlap::HostRoute;
use warren_model::service::{Affinity, Attachment, Endpoint, EndpointMode};
use warren_model::{Alias, Time};

use super::{Error, address, byte_up_to, choice, enums, network_id, part, part_if_any, service_id};
use crate::v1;

/// Bits of an IPv6 address.
const PREFIX_MAX: u8 = 128;

enums! {
    EndpointMode, v1::EndpointMode { Vip Dnsrr }
    Affinity, v1::Affinity { None ClientAddress }
}

impl From<&Subnet6> for v1::Subnet6 {
    fn from(subnet: &Subnet6) -> Self {
        Self { address: subnet.address.octets().to_vec(), prefix: subnet.prefix.into() }
    }
}

impl TryFrom<v1::Subnet6> for Subnet6 {
    type Error = Error;

    fn try_from(wire: v1::Subnet6) -> Result<Self, Error> {
        let len = wire.address.len();
        let address = <[u8; 16]>::try_from(wire.address);
        let address =
            address.map_err(|_| Error::new("address", format!("has {len} bytes, not 16")))?;
        let prefix = byte_up_to("prefix", wire.prefix, PREFIX_MAX)?;
        Ok(Self { address: Ipv6Addr::from(address), prefix })
    }
}

impl From<&HostRoute> for v1::HostRoute {
    fn from(route: &HostRoute) -> Self {
        Self { destination: Some((&route.destination).into()), link: route.link.clone() }
    }
}

impl TryFrom<v1::HostRoute> for HostRoute {
    type Error = Error;

    fn try_from(wire: v1::HostRoute) -> Result<Self, Error> {
        Ok(Self { destination: part("destination", wire.destination)?, link: wire.link })
    }
}

impl From<&NetworkSpec> for v1::NetworkSpec {
    fn from(spec: &NetworkSpec) -> Self {
        Self {
            name: spec.name.to_string(),
            labels: spec.labels.clone().into_iter().collect(),
            internal: spec.internal,
            attachable: spec.attachable,
            plain: !spec.encrypted,
            subnet: spec.subnet.as_ref().map(Into::into),
            subnet_v6: spec.subnet_v6.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<v1::NetworkSpec> for NetworkSpec {
    type Error = Error;

    fn try_from(wire: v1::NetworkSpec) -> Result<Self, Error> {
        Ok(Self {
            name: wire.name.parse().map_err(|problem| Error::new("name", format!("{problem}")))?,
            labels: wire.labels.into_iter().collect(),
            internal: wire.internal,
            attachable: wire.attachable,
            encrypted: !wire.plain,
            subnet: part_if_any("subnet", wire.subnet)?,
            subnet_v6: part_if_any("subnet_v6", wire.subnet_v6)?,
        })
    }
}

/// Without its users: only a listing knows.
impl From<&Network> for v1::Network {
    fn from(network: &Network) -> Self {
        Self {
            id: network.id.as_bytes().to_vec(),
            spec: Some((&network.spec).into()),
            created: network.created.0,
            revision: network.revision,
            users: Vec::new(),
        }
    }
}

impl TryFrom<v1::Network> for Network {
    type Error = Error;

    fn try_from(wire: v1::Network) -> Result<Self, Error> {
        Ok(Self {
            id: network_id("id", &wire.id)?,
            spec: part("spec", wire.spec)?,
            created: Time(wire.created),
            revision: wire.revision,
        })
    }
}

impl From<VipHolder> for v1::VipHolder {
    fn from(holder: VipHolder) -> Self {
        let VipHolder { service, network, slot } = holder;
        let (service, network) = (service.as_bytes().to_vec(), network.as_bytes().to_vec());
        Self { service, network, slot }
    }
}

impl TryFrom<v1::VipHolder> for VipHolder {
    type Error = Error;

    fn try_from(wire: v1::VipHolder) -> Result<Self, Error> {
        Ok(Self {
            service: service_id("service", &wire.service)?,
            network: network_id("network", &wire.network)?,
            slot: wire.slot,
        })
    }
}

impl From<&Vip> for v1::Vip {
    fn from(vip: &Vip) -> Self {
        Self {
            address: vip.address.into(),
            holder: Some(vip.holder.into()),
            released: vip.released.map(|time| time.0),
        }
    }
}

impl TryFrom<v1::Vip> for Vip {
    type Error = Error;

    fn try_from(wire: v1::Vip) -> Result<Self, Error> {
        Ok(Self {
            address: address(wire.address),
            holder: part("holder", wire.holder)?,
            released: wire.released.map(Time),
        })
    }
}

impl From<&Attachment> for v1::Attachment {
    fn from(attachment: &Attachment) -> Self {
        Self {
            network: attachment.network.to_string(),
            aliases: attachment.aliases.iter().map(ToString::to_string).collect(),
            address: attachment.address.map(Into::into),
        }
    }
}

impl TryFrom<v1::Attachment> for Attachment {
    type Error = Error;

    fn try_from(wire: v1::Attachment) -> Result<Self, Error> {
        let network = wire.network.parse();
        let aliases = wire.aliases.iter().map(|alias| alias.parse::<Alias>());
        Ok(Self {
            network: network.map_err(|problem| Error::new("network", format!("{problem}")))?,
            aliases: aliases
                .collect::<Result<_, _>>()
                .map_err(|problem| Error::new("aliases", format!("{problem}")))?,
            address: wire.address.map(address),
        })
    }
}

impl From<Endpoint> for v1::Endpoint {
    fn from(endpoint: Endpoint) -> Self {
        let Endpoint { mode, affinity, prefer_local, slot_addresses } = endpoint;
        Self {
            mode: v1::EndpointMode::from(mode).into(),
            affinity: v1::Affinity::from(affinity).into(),
            prefer_local,
            slot_addresses,
        }
    }
}

impl TryFrom<v1::Endpoint> for Endpoint {
    type Error = Error;

    fn try_from(wire: v1::Endpoint) -> Result<Self, Error> {
        Ok(Self {
            mode: choice::<v1::EndpointMode, _>("mode", wire.mode)?,
            affinity: choice::<v1::Affinity, _>("affinity", wire.affinity)?,
            prefer_local: wire.prefer_local,
            slot_addresses: wire.slot_addresses,
        })
    }
}
