//! rtnetlink messages of an overlay: reading what is there, changing it.
//!
//! A refusal of one item does not stop the others: what can be reached is reached.

use std::io;
use std::net::IpAddr;

use super::Held;
use super::abi::{
    ADDR_GEN_NONE, AF_BRIDGE, AF_INET, AF_INET6, FR_ACT_GOTO, FR_ACT_NOP, FR_ACT_TO_TBL,
    FRA_FWMARK, FRA_FWMASK, FRA_GOTO, FRA_PRIORITY, FRA_PROTOCOL, FRA_SRC, FRA_TABLE, IFA_ADDRESS,
    IFA_F_NODAD, IFA_LOCAL, IFF_UP, IFLA_ADDRESS, IFLA_AF_SPEC, IFLA_IFNAME, IFLA_INET_CONF,
    IFLA_INET6_ADDR_GEN_MODE, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MTU,
    IFLA_VXLAN_ID, IFLA_VXLAN_LEARNING, IFLA_VXLAN_LOCAL, IFLA_VXLAN_LOCAL6, IFLA_VXLAN_PORT,
    NDA_DST, NDA_LLADDR, NDA_PORT, NTF_SELF, NUD_PERMANENT, RT_SCOPE_LINK, RT_SCOPE_NOWHERE,
    RT_SCOPE_UNIVERSE, RT_TABLE_UNSPEC, RTA_DST, RTA_GATEWAY, RTA_METRICS, RTA_OIF, RTA_PREFSRC,
    RTA_PRIORITY, RTA_TABLE, RTAX_MTU, RTM_DELADDR, RTM_DELLINK, RTM_DELNEIGH, RTM_DELROUTE,
    RTM_DELRULE, RTM_GETADDR, RTM_GETLINK, RTM_GETNEIGH, RTM_GETROUTE, RTM_GETRULE, RTM_NEWADDR,
    RTM_NEWLINK, RTM_NEWNEIGH, RTM_NEWROUTE, RTM_NEWRULE, RTM_SETLINK, RTN_UNICAST,
    RTN_UNREACHABLE, RTNH_F_ONLINK, family, len_max, octets,
};
use super::parse::{parse_address, parse_device, parse_neighbour, parse_route, parse_rule};
use crate::Error;
use crate::netlink::{Messages, Refused, Socket, flag, u32_at};
use crate::overlay::{By, Item, Lookup, MARK_ACROSS, MARK_MASK, Numbers, Route, Rule, Vxlan, mark};

/// What marks a route as ours (`rtm_protocol`); of the numbers above 64 that nobody registered.
pub(crate) const PROTOCOL: u8 = 87;

/// Changes of one system call: about 100 KiB.
const BATCH: usize = 1000;

/// A link, as far as an overlay wants to know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(super) vxlan: Option<Vxlan>,
}

pub(crate) struct Kernel {
    socket: Socket,
    numbers: Numbers,
}

impl Kernel {
    pub(crate) fn open(numbers: Numbers) -> Result<Self, Error> {
        let socket =
            Socket::route().map_err(|source| Error::io("open a route netlink socket", source))?;
        Ok(Self { socket, numbers })
    }

    pub(crate) fn devices(&mut self) -> Result<Vec<Device>, Error> {
        let mut links = Vec::new();
        self.dump(RTM_GETLINK, &[0; 16], "list links", |kind, payload| {
            if kind == RTM_NEWLINK {
                links.extend(parse_device(payload));
            }
        })?;
        Ok(links)
    }

    /// The index of the link that has `address`.
    pub(crate) fn holder(&mut self, address: IpAddr) -> Result<Option<u32>, Error> {
        let mut holder = None;
        self.dump(
            RTM_GETADDR,
            &[family(&address), 0, 0, 0, 0, 0, 0, 0],
            "list addresses",
            |kind, payload| {
                if kind == RTM_NEWADDR && parse_address(payload) == Some(address) {
                    holder = u32_at(payload, 4);
                }
            },
        )?;
        Ok(holder)
    }

    /// The index of the VXLAN device `name`, made or made anew if it is not as wanted.
    pub(crate) fn ensure(
        &mut self,
        name: &str,
        vxlan: &Vxlan,
        links: &[Device],
    ) -> Result<u32, Error> {
        let is_as_wanted = |held: &Vxlan| {
            let unspecified = held.local.is_unspecified() && vxlan.local.is_unspecified();
            let local = if unspecified { vxlan.local } else { held.local };
            Vxlan { mtu: vxlan.mtu, local, ..held.clone() } == *vxlan
        };
        let mut found = links.iter().find(|link| link.name == name);
        if let Some(link) = found.filter(|link| !link.vxlan.as_ref().is_some_and(is_as_wanted)) {
            self.remove(link.index)?;
            found = None;
        }
        if let Some(link) = found.filter(|link| link.up && link.mtu == vxlan.mtu) {
            return Ok(link.index);
        }
        let mut messages = Messages::default();
        if found.is_none() {
            messages.push(RTM_NEWLINK, flag::CREATE | flag::EXCL, &[0; 16], |a| {
                a.text(IFLA_IFNAME, name).bytes(IFLA_ADDRESS, &vxlan.mac).nested(
                    IFLA_LINKINFO,
                    |a| {
                        a.text(IFLA_INFO_KIND, "vxlan").nested(IFLA_INFO_DATA, |a| {
                            a.host32(IFLA_VXLAN_ID, vxlan.vni)
                                .bytes(IFLA_VXLAN_LEARNING, &[0])
                                .bytes(IFLA_VXLAN_PORT, &vxlan.port.to_be_bytes());
                            match vxlan.local {
                                IpAddr::V4(local) => a.bytes(IFLA_VXLAN_LOCAL, &local.octets()),
                                IpAddr::V6(local) => a.bytes(IFLA_VXLAN_LOCAL6, &local.octets()),
                            };
                        });
                    },
                );
            });
        }
        let conf = device_conf();
        let has_ipv6 = std::path::Path::new("/proc/sys/net/ipv6").exists();
        messages.push(RTM_SETLINK, 0, &[0; 16], |a| {
            a.text(IFLA_IFNAME, name).host32(IFLA_MTU, vxlan.mtu).nested(IFLA_AF_SPEC, |a| {
                a.nested(u16::from(AF_INET), |a| {
                    a.nested(IFLA_INET_CONF, |a| {
                        for (key, value) in conf {
                            a.host32(key, value);
                        }
                    });
                });
                if has_ipv6 {
                    a.nested(u16::from(AF_INET6), |a| {
                        a.bytes(IFLA_INET6_ADDR_GEN_MODE, &[ADDR_GEN_NONE]);
                    });
                }
            });
        });
        // Apart: a link that comes up gives itself an address at once.
        messages.push(RTM_SETLINK, 0, &up(), |a| {
            a.text(IFLA_IFNAME, name);
        });
        self.socket.transact(&mut messages).map_err(|Refused { source, .. }| {
            match source.raw_os_error() {
                Some(libc::EOPNOTSUPP) => Error::Unsupported(format!(
                    "make link {name}: the kernel has no VXLAN links (CONFIG_VXLAN, module vxlan)"
                )),
                _ => Error::io(format!("make VXLAN link {name}"), source),
            }
        })?;
        let links = self.devices()?;
        let made = links.iter().find(|link| link.name == name);
        made.map(|link| link.index).ok_or_else(|| {
            Error::io(format!("make VXLAN link {name}"), io::ErrorKind::NotFound.into())
        })
    }

    /// Removes a link; one that is gone already is fine.
    pub(crate) fn remove(&mut self, index: u32) -> Result<(), Error> {
        let mut header = [0; 16];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        let mut messages = Messages::default();
        messages.push(RTM_DELLINK, 0, &header, |_| {});
        match self.socket.transact(&mut messages) {
            Err(Refused { source, .. }) if source.raw_os_error() != Some(libc::ENODEV) => {
                Err(Error::io(format!("remove link {index}"), source))
            }
            _ => Ok(()),
        }
    }

    /// What this node has: of the VXLAN device with `index`, whose port is `port`, and of routes.
    pub(crate) fn items(
        &mut self,
        index: u32,
        carrier: Option<u32>,
        port: u16,
    ) -> Result<Held, Error> {
        let mut held = Held::new();
        if index > 0 {
            self.dump(RTM_GETADDR, &[0; 8], "list addresses", |kind, payload| {
                if kind == RTM_NEWADDR && u32_at(payload, 4) == Some(index) {
                    held.extend(parse_address(payload).map(Item::Address));
                }
            })?;
            for family in [AF_INET, AF_INET6, AF_BRIDGE] {
                let mut header = [0; 12];
                header[0] = family;
                self.dump(RTM_GETNEIGH, &header, "list neighbours", |kind, payload| {
                    if kind == RTM_NEWNEIGH && u32_at(payload, 4) == Some(index) {
                        held.extend(parse_neighbour(payload, port));
                    }
                })?;
            }
        }
        let numbers = self.numbers;
        for family in [AF_INET, AF_INET6] {
            let mut header = [0; 12];
            header[0] = family;
            self.dump(RTM_GETROUTE, &header, "list routes", |kind, payload| {
                if kind == RTM_NEWROUTE {
                    held.extend(parse_route(payload, index, carrier, numbers).map(Item::Route));
                }
            })?;
        }
        for family in [AF_INET, AF_INET6] {
            let mut header = [0; 12];
            header[0] = family;
            self.dump(RTM_GETRULE, &header, "list policy rules", |kind, payload| {
                if kind == RTM_NEWRULE {
                    held.extend(parse_rule(payload, numbers).map(Item::Rule));
                }
            })?;
        }
        Ok(held)
    }

    /// Takes away `removed`, then adds `added`; the first refusal that matters is the error.
    pub(crate) fn change(
        &mut self,
        removed: &[Item],
        added: &[Item],
        index: u32,
        carrier: Option<u32>,
        port: u16,
    ) -> Result<(), Error> {
        let target = Target { index, carrier, port, numbers: self.numbers };
        let mut first = None;
        for (items, add) in [(removed, false), (added, true)] {
            for items in items.chunks(BATCH) {
                let mut messages = Messages::default();
                for item in items {
                    target.push(&mut messages, item, add);
                }
                let refused = self
                    .socket
                    .attempt(&mut messages, items.len() - 1)
                    .map_err(|source| Error::io("change routes", source))?;
                for Refused { index, source } in refused {
                    if !add && is_gone(&source) {
                        continue;
                    }
                    let item = items.get(index).map(ToString::to_string).unwrap_or_default();
                    let verb = if add { "add" } else { "remove" };
                    first.get_or_insert_with(|| Error::io(format!("{verb} {item}"), source));
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    fn dump(
        &mut self,
        kind: u16,
        header: &[u8],
        action: &str,
        each: impl FnMut(u16, &[u8]),
    ) -> Result<(), Error> {
        let mut messages = Messages::default();
        messages.push(kind, flag::DUMP, header, |_| {});
        match self.socket.query(&messages, each) {
            // The kernel has no IPv6.
            Err(source)
                if matches!(source.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT)) =>
            {
                Ok(())
            }
            other => other.map_err(|source| Error::io(action, source)),
        }
    }
}

/// Where changes go.
struct Target {
    index: u32,
    carrier: Option<u32>,
    port: u16,
    numbers: Numbers,
}

impl Target {
    fn push(&self, messages: &mut Messages, item: &Item, add: bool) {
        let kind = |new, del| if add { new } else { del };
        let flags = if add { flag::CREATE | flag::REPLACE } else { 0 };
        match item {
            Item::Address(address) => {
                // struct ifaddrmsg
                let mut header = [family(address), len_max(address), IFA_F_NODAD, 0, 0, 0, 0, 0];
                header[4..8].copy_from_slice(&self.index.to_ne_bytes());
                messages.push(kind(RTM_NEWADDR, RTM_DELADDR), flags, &header, |a| {
                    a.bytes(IFA_LOCAL, &octets(address)).bytes(IFA_ADDRESS, &octets(address));
                });
            }
            Item::Neighbour { address, mac } => {
                let header = neighbour_header(family(address), self.index, 0);
                messages.push(kind(RTM_NEWNEIGH, RTM_DELNEIGH), flags, &header, |a| {
                    a.bytes(NDA_DST, &octets(address)).bytes(NDA_LLADDR, mac);
                });
            }
            Item::Forwarding { mac, to, port } => {
                let header = neighbour_header(AF_BRIDGE, self.index, NTF_SELF);
                messages.push(kind(RTM_NEWNEIGH, RTM_DELNEIGH), flags, &header, |a| {
                    a.bytes(NDA_LLADDR, mac).bytes(NDA_DST, &octets(to));
                    if *port != self.port {
                        a.bytes(NDA_PORT, &port.to_be_bytes());
                    }
                });
            }
            Item::Rule(rule) => self.push_rule(messages, *rule, add),
            Item::Route(route) => {
                let mut header = route_header(route);
                if !add {
                    header[6] = RT_SCOPE_NOWHERE;
                }
                messages.push(kind(RTM_NEWROUTE, RTM_DELROUTE), flags, &header, |a| {
                    a.bytes(RTA_DST, &octets(&route.to.0))
                        .host32(RTA_PRIORITY, self.numbers.metric + u32::from(is_refusal(route)))
                        .host32(RTA_TABLE, self.numbers.table(route.table));
                    match &route.by {
                        // Where it leads to is enough to take it away.
                        By::Unreachable | By::Elsewhere => {}
                        By::Gateway(gateway) => {
                            a.bytes(RTA_GATEWAY, &octets(gateway));
                        }
                        By::Vxlan(gateway) => {
                            a.host32(RTA_OIF, self.index).bytes(RTA_GATEWAY, &octets(gateway));
                        }
                        By::Segment => {
                            a.host32(RTA_OIF, self.index);
                        }
                        By::Device => {
                            a.host32(RTA_OIF, self.carrier.unwrap_or_default());
                        }
                    }
                    if let Some(source) = &route.source {
                        a.bytes(RTA_PREFSRC, &octets(source));
                    }
                    if route.mtu > 0 {
                        a.nested(RTA_METRICS, |a| {
                            a.host32(RTAX_MTU, route.mtu);
                        });
                    }
                });
            }
        }
    }

    fn push_rule(&self, messages: &mut Messages, rule: Rule, add: bool) {
        let (kind, flags) = match add {
            true => (RTM_NEWRULE, flag::CREATE | flag::EXCL),
            false => (RTM_DELRULE, 0),
        };
        let (v4, action, marked, table) = match rule {
            Rule::Unmarked { v4 } => (v4, FR_ACT_GOTO, Some((0, MARK_MASK)), None),
            Rule::Back { v4, number } => {
                (v4, FR_ACT_TO_TBL, Some((mark(number), MARK_MASK)), Some(Lookup::Back(number)))
            }
            Rule::Across { v4 } => {
                (v4, FR_ACT_TO_TBL, Some((MARK_ACROSS, MARK_MASK)), Some(Lookup::Across))
            }
            Rule::Loopback => (true, FR_ACT_TO_TBL, None, Some(Lookup::Across)),
            Rule::End => (false, FR_ACT_NOP, None, None),
        };
        // struct fib_rule_hdr
        let mut header = [0; 12];
        header[0] = if v4 { AF_INET } else { AF_INET6 };
        header[2] = if rule == Rule::Loopback { 8 } else { 0 };
        header[7] = action;
        messages.push(kind, flags, &header, |a| {
            a.host32(FRA_PRIORITY, self.numbers.priority(rule)).bytes(FRA_PROTOCOL, &[PROTOCOL]);
            if rule == Rule::Loopback {
                a.bytes(FRA_SRC, &[127, 0, 0, 0]);
            }
            if let Some((mark, mask)) = marked {
                a.host32(FRA_FWMARK, mark).host32(FRA_FWMASK, mask);
            }
            if let Some(table) = table {
                a.host32(FRA_TABLE, self.numbers.table(table));
            }
            if action == FR_ACT_GOTO {
                a.host32(FRA_GOTO, self.numbers.priority(Rule::End));
            }
        });
    }
}

fn is_refusal(route: &Route) -> bool {
    route.by == By::Unreachable
}

/// `struct rtmsg`
fn route_header(route: &Route) -> [u8; 12] {
    let (scope, kind, flags) = match route.by {
        By::Unreachable => (RT_SCOPE_UNIVERSE, RTN_UNREACHABLE, 0),
        By::Gateway(_) | By::Elsewhere => (RT_SCOPE_UNIVERSE, RTN_UNICAST, 0),
        By::Vxlan(_) => (RT_SCOPE_UNIVERSE, RTN_UNICAST, RTNH_F_ONLINK),
        By::Device | By::Segment => (RT_SCOPE_LINK, RTN_UNICAST, 0),
    };
    let mut header =
        [family(&route.to.0), route.to.1, 0, 0, RT_TABLE_UNSPEC, PROTOCOL, scope, kind, 0, 0, 0, 0];
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header
}

/// `struct ndmsg`
fn neighbour_header(family: u8, index: u32, flags: u8) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
    header[10] = flags;
    header
}

/// `struct ifinfomsg` that brings a link up.
fn up() -> [u8; 16] {
    let mut header = [0; 16];
    header[8..12].copy_from_slice(&IFF_UP.to_ne_bytes());
    header[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    header
}

/// Settings of the VXLAN device, by `IPV4_DEVCONF_*` number.
fn device_conf() -> [(u16, u32); 5] {
    // Packets of foreign clients come in here and their answers leave here, which the strict
    // check of the main table would not understand; the looser of the two settings holds.
    let all = std::fs::read_to_string("/proc/sys/net/ipv4/conf/all/rp_filter");
    let rp_filter = if all.is_ok_and(|value| value.trim() != "0") { 2 } else { 0 };
    [
        (1, 1), // forwarding
        (4, 0), // accept_redirects
        (6, 0), // send_redirects
        (8, rp_filter),
        (26, 1), // route_localnet: what the host sends to its own published ports
    ]
}

fn is_gone(error: &io::Error) -> bool {
    let gone = [libc::ENOENT, libc::ESRCH, libc::ENODEV, libc::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| gone.contains(&code))
}
