//! What the kernel tells of links, addresses, neighbours, routes and policy rules.
//!
//! Whatever cannot be read is not ours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::abi::{
    AF_BRIDGE, AF_INET, FR_ACT_GOTO, FR_ACT_NOP, FR_ACT_TO_TBL, FRA_PRIORITY, FRA_PROTOCOL,
    FRA_SRC, FRA_TABLE, IFA_ADDRESS, IFA_LOCAL, IFF_UP, IFLA_ADDRESS, IFLA_IFNAME, IFLA_INFO_DATA,
    IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MTU, IFLA_VXLAN_ID, IFLA_VXLAN_LOCAL, IFLA_VXLAN_LOCAL6,
    IFLA_VXLAN_PORT, NDA_DST, NDA_LLADDR, NDA_PORT, NUD_PERMANENT, RTA_DST, RTA_GATEWAY,
    RTA_METRICS, RTA_OIF, RTA_PREFSRC, RTA_PRIORITY, RTA_TABLE, RTAX_MTU, RTM_F_CLONED,
    RTN_UNREACHABLE, address_of,
};
use super::kernel::{Device, PROTOCOL};
use crate::netlink::{attribute, attributes_in, text, u32_at};
use crate::overlay::{By, Item, Lookup, Numbers, Route, Rule, Vxlan};
use crate::table::Subnet;

pub(super) fn parse_device(payload: &[u8]) -> Option<Device> {
    let mut device = Device {
        index: u32_at(payload, 4)?,
        up: u32_at(payload, 8)? & IFF_UP != 0,
        ..Device::default()
    };
    let attributes = payload.get(16..)?;
    let mut mac = None;
    for (kind, value) in attributes_in(attributes) {
        match kind {
            IFLA_IFNAME => device.name = text(value),
            IFLA_MTU => device.mtu = u32_at(value, 0)?,
            IFLA_ADDRESS => mac = <[u8; 6]>::try_from(value).ok(),
            _ => {}
        }
    }
    let info = attribute(attributes, IFLA_LINKINFO).unwrap_or_default();
    let is_vxlan = attribute(info, IFLA_INFO_KIND).map(text).is_some_and(|kind| kind == "vxlan");
    if let (true, Some(mac), Some(data)) = (is_vxlan, mac, attribute(info, IFLA_INFO_DATA)) {
        let local =
            attribute(data, IFLA_VXLAN_LOCAL).or_else(|| attribute(data, IFLA_VXLAN_LOCAL6));
        // Without a source of its own none is told.
        let local = local.map_or(Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), address_of);
        device.vxlan = local.and_then(|local| {
            let port = attribute(data, IFLA_VXLAN_PORT)?.try_into().ok()?;
            Some(Vxlan {
                vni: u32_at(attribute(data, IFLA_VXLAN_ID)?, 0)?,
                port: u16::from_be_bytes(port),
                local,
                mac,
                mtu: device.mtu,
            })
        });
    }
    Some(device)
}

pub(super) fn parse_address(payload: &[u8]) -> Option<IpAddr> {
    let attributes = payload.get(8..)?;
    // IPv6 has no local address apart from the address.
    let value = attribute(attributes, IFA_LOCAL).or_else(|| attribute(attributes, IFA_ADDRESS))?;
    address_of(value)
}

pub(super) fn parse_neighbour(payload: &[u8], port: u16) -> Option<Item> {
    let state = u16::from_ne_bytes(payload.get(8..10)?.try_into().ok()?);
    let attributes = payload.get(12..)?;
    let mac = attribute(attributes, NDA_LLADDR)?.try_into().ok()?;
    let address = address_of(attribute(attributes, NDA_DST)?)?;
    match *payload.first()? {
        AF_BRIDGE => {
            let own = attribute(attributes, NDA_PORT).and_then(|port| port.try_into().ok());
            let port = own.map_or(port, u16::from_be_bytes);
            Some(Item::Forwarding { mac, to: address, port })
        }
        _ if state & NUD_PERMANENT != 0 => Some(Item::Neighbour { address, mac }),
        _ => None,
    }
}

/// Only what is ours.
pub(super) fn parse_route(
    payload: &[u8],
    index: u32,
    carrier: Option<u32>,
    numbers: Numbers,
) -> Option<Route> {
    let &[family, len, _, _, _, protocol, _, kind, ..] = payload else { return None };
    let attributes = payload.get(12..)?;
    let number = |kind| attribute(attributes, kind).and_then(|value| u32_at(value, 0));
    let is_refusal = kind == RTN_UNREACHABLE;
    let ours =
        protocol == PROTOCOL && number(RTA_PRIORITY)? == numbers.metric + u32::from(is_refusal);
    if !ours || u32_at(payload, 8)? & RTM_F_CLONED != 0 {
        return None;
    }
    let any = if family == AF_INET {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let to: Subnet = (attribute(attributes, RTA_DST).map_or(Some(any), address_of)?, len);
    let gateway = attribute(attributes, RTA_GATEWAY).and_then(address_of);
    let out = number(RTA_OIF);
    let by = match gateway {
        _ if is_refusal => By::Unreachable,
        Some(gateway) if out == Some(index) => By::Vxlan(gateway),
        Some(gateway) => By::Gateway(gateway),
        None if out == Some(index) => By::Segment,
        None if carrier.is_some() && out == carrier => By::Device,
        None => By::Elsewhere,
    };
    let metrics = attribute(attributes, RTA_METRICS).unwrap_or_default();
    let mtu = attribute(metrics, RTAX_MTU).and_then(|value| u32_at(value, 0)).unwrap_or(0);
    let source = attribute(attributes, RTA_PREFSRC).and_then(address_of);
    let table = numbers.lookup(number(RTA_TABLE)?)?;
    Some(Route { table, to, by, mtu, source })
}

/// Only what is ours.
pub(super) fn parse_rule(payload: &[u8], numbers: Numbers) -> Option<Rule> {
    let &[family, _, _, _, _, _, _, action, ..] = payload else { return None };
    let attributes = payload.get(12..)?;
    let number = |kind| attribute(attributes, kind).and_then(|value| u32_at(value, 0));
    if attribute(attributes, FRA_PROTOCOL) != Some(&[PROTOCOL][..]) {
        return None;
    }
    let v4 = family == AF_INET;
    let has_source = attribute(attributes, FRA_SRC).is_some();
    let rule = match (action, numbers.lookup(number(FRA_TABLE).unwrap_or(0))) {
        (FR_ACT_GOTO, _) => Rule::Unmarked { v4 },
        (FR_ACT_NOP, _) => Rule::End,
        (FR_ACT_TO_TBL, Some(Lookup::Back(number))) => Rule::Back { v4, number },
        (FR_ACT_TO_TBL, Some(Lookup::Across)) if has_source => Rule::Loopback,
        (FR_ACT_TO_TBL, Some(Lookup::Across)) => Rule::Across { v4 },
        _ => return None,
    };
    (number(FRA_PRIORITY)? == numbers.priority(rule)).then_some(rule)
}
