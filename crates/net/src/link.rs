//! Links, addresses, routes and neighbours of one network namespace, by rtnetlink.
//!
//! A [`Links`] acts in the namespace of the thread that opened it, from whatever
//! thread it is used. Methods send all that they can in one system call.
//!
//! rtnetlink of our own: an attach is two system calls of four messages; the
//! general crate would need a runtime task and a round trip for each message.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::netlink::{Messages, Refused, Socket, attribute, attributes_in, flag, text, u32_at};
use crate::{Addresses, Error};

/// The gateway that every container sees; each host-side link holds it.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// Likewise of IPv6.
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Every host side has the same address: the links share no segment, and the container's neighbour entry can be made ahead.
const GATEWAY_MAC: [u8; 6] = [0x02, 0x57, 0xa9, 0xfe, 0x01, 0x01];
/// What the link is called inside.
const INSIDE: &str = "eth0";

// linux/rtnetlink.h
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;
const RTA_TABLE: u16 = 15;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const RTNH_F_ONLINK: u32 = 4;
// linux/if_link.h, linux/veth.h
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INET_CONF: u16 = 1;
const VETH_INFO_PEER: u16 = 1;
const IFF_UP: u32 = 1;
const LOOPBACK_INDEX: u32 = 1;
// linux/if_addr.h, linux/neighbour.h
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_NONE: u8 = 1;
/// No search for others with the same address: nobody else is on the link.
const IFA_F_NODAD: u8 = 2;

/// Settings of a host-side link, by `IPV4_DEVCONF_*` number: set with the link, where `/proc` would need a file each.
const HOST_CONF: [(u16, u32); 5] = [
    (1, 1),  // forwarding
    (4, 0),  // accept_redirects
    (6, 0),  // send_redirects: a hairpin leaves by the link it came from
    (19, 1), // arp_ignore: answer for the gateway alone
    (26, 1), // route_localnet: replies to 127.0.0.1 come back through here
];

/// What is known of a link.
#[derive(Debug, Clone, Default)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) alias: Option<String>,
    pub(crate) mac: Option<[u8; 6]>,
    /// Index of the other end of a pair, in its own namespace.
    pub(crate) peer: Option<u32>,
    pub(crate) group: u32,
    pub(crate) up: bool,
    /// As whoever made it asked for; a real one has none.
    pub(crate) kind: Option<String>,
}

pub(crate) struct Links {
    socket: Socket,
}

impl Links {
    /// Of the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self, Error> {
        let socket =
            Socket::route().map_err(|source| Error::io("open a route netlink socket", source))?;
        Ok(Self { socket })
    }

    /// A pair whose host side is `name` here and whose other side is eth0 of `netns`, there from its first moment.
    pub(crate) fn create_pair(&mut self, name: &str, netns: BorrowedFd<'_>) -> Result<(), Error> {
        let netns = u32::try_from(netns.as_raw_fd()).expect("open descriptors are not negative");
        let mut messages = Messages::default();
        messages.push(RTM_NEWLINK, flag::CREATE | flag::EXCL, &ifinfo(0, 0, 0), |a| {
            // One queue: with one per processor, making the links takes longer and nothing gets faster.
            a.text(IFLA_IFNAME, name)
                .bytes(IFLA_ADDRESS, &GATEWAY_MAC)
                .host32(IFLA_NUM_TX_QUEUES, 1)
                .host32(IFLA_NUM_RX_QUEUES, 1)
                .nested(IFLA_LINKINFO, |a| {
                    a.text(IFLA_INFO_KIND, "veth").nested(IFLA_INFO_DATA, |a| {
                        a.headed(VETH_INFO_PEER, &ifinfo(0, 0, 0), |a| {
                            a.text(IFLA_IFNAME, INSIDE)
                                .host32(IFLA_NET_NS_FD, netns)
                                .host32(IFLA_NUM_TX_QUEUES, 1)
                                .host32(IFLA_NUM_RX_QUEUES, 1);
                        });
                    });
                });
        });
        self.transact(&mut messages, &["create link"], name)
    }

    /// Whether the kernel makes links of this kind; loads the module where it is one.
    pub(crate) fn knows(&mut self, kind: &str) -> bool {
        let mut messages = Messages::default();
        messages.push(RTM_NEWLINK, flag::CREATE | flag::EXCL, &ifinfo(0, 0, 0), |a| {
            a.nested(IFLA_LINKINFO, |a| {
                a.text(IFLA_INFO_KIND, kind);
            });
        });
        match self.socket.transact(&mut messages) {
            Ok(()) => true,
            // It knows the kind well enough to miss what links of this kind must be told.
            Err(refused) => refused.source.raw_os_error() == Some(libc::EINVAL),
        }
    }

    /// A link of this kind and name, made if it is not there; one of another kind gives way.
    pub(crate) fn ensure_device(&mut self, name: &str, kind: &str, mtu: u32) -> Result<(), Error> {
        let create = |links: &mut Self| {
            let mut messages = Messages::default();
            messages.push(RTM_NEWLINK, flag::CREATE | flag::EXCL, &ifinfo(0, 0, 0), |a| {
                a.text(IFLA_IFNAME, name).host32(IFLA_MTU, mtu).nested(IFLA_LINKINFO, |a| {
                    a.text(IFLA_INFO_KIND, kind);
                });
            });
            links.socket.transact(&mut messages).map_err(|refused| refused.source)
        };
        let made = match create(self) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let found = self.find(name)?;
                if found.kind.as_deref() == Some(kind) {
                    return Ok(());
                }
                self.delete_one(found.index)?;
                create(self)
            }
            made => made,
        };
        made.map_err(|source| match source.raw_os_error() {
            Some(libc::EOPNOTSUPP) => {
                Error::Unsupported(format!("the kernel has no links of kind {kind}"))
            }
            _ => Error::io(format!("make the {kind} device {name}"), source),
        })
    }

    /// Brings a link up as it is.
    pub(crate) fn raise(&mut self, name: &str) -> Result<(), Error> {
        let index = self.find(name)?.index;
        let mut messages = Messages::default();
        messages.push(RTM_NEWLINK, 0, &ifinfo(index, IFF_UP, IFF_UP), |_| {});
        self.transact(&mut messages, &["bring up"], name)
    }

    /// Removes a link by its name; one that is gone is fine.
    pub(crate) fn remove_device(&mut self, name: &str) -> Result<(), Error> {
        match self.list(name)?.iter().find(|link| link.name == name) {
            Some(link) => self.delete_one(link.index),
            None => Ok(()),
        }
    }

    /// Brings up the host side of a pair, with its settings and the gateway's address.
    pub(crate) fn raise_host(&mut self, link: &Link) -> Result<(), Error> {
        let has_ipv6 = crate::has_ipv6();
        let mut messages = Messages::default();
        messages.push(RTM_SETLINK, 0, &ifinfo(link.index, 0, 0), |a| {
            a.nested(IFLA_AF_SPEC, |a| {
                a.nested(u16::from(AF_INET), |a| {
                    a.nested(IFLA_INET_CONF, |a| {
                        for (key, value) in HOST_CONF {
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
        messages.push(RTM_SETLINK, 0, &ifinfo(link.index, IFF_UP, IFF_UP), |_| {});
        push_address(&mut messages, link.index, GATEWAY.into(), RT_SCOPE_LINK);
        let labels = ["set up link", "bring up link", "give the gateway address to link"];
        self.transact(&mut messages, &labels, &link.name)
    }

    /// Everything inside a namespace that does not depend on the container's address.
    pub(crate) fn furnish(&mut self, inside: &Link) -> Result<(), Error> {
        let mut messages = Messages::default();
        messages.push(RTM_SETLINK, 0, &ifinfo(LOOPBACK_INDEX, IFF_UP, IFF_UP), |_| {});
        messages.push(RTM_SETLINK, 0, &ifinfo(inside.index, IFF_UP, IFF_UP), |_| {});
        push_neighbour(&mut messages, inside.index, GATEWAY.into(), GATEWAY_MAC);
        push_route(&mut messages, inside.index, None, Some(GATEWAY.into()));
        let labels = [
            "bring up lo for",
            "bring up",
            "set the gateway's neighbour of",
            "set the default route of",
        ];
        self.transact(&mut messages, &labels, "a container's eth0")
    }

    /// Gives the inner side its addresses, and the way out of the second family.
    pub(crate) fn settle(&mut self, inside: &Link, addresses: Addresses) -> Result<(), Error> {
        let mut messages = Messages::default();
        push_address(&mut messages, inside.index, addresses.v4.into(), RT_SCOPE_UNIVERSE);
        if let Some(v6) = addresses.v6 {
            push_address(&mut messages, inside.index, v6.into(), RT_SCOPE_UNIVERSE);
            push_neighbour(&mut messages, inside.index, GATEWAY6.into(), GATEWAY_MAC);
            push_route(&mut messages, inside.index, None, Some(GATEWAY6.into()));
        }
        let labels = ["add", "add", "set the IPv6 gateway's neighbour of", "set the IPv6 route of"];
        self.transact(&mut messages, &labels, &format!("{addresses} to a container's eth0"))
    }

    /// Ties the host side to a container: its id as alias, the routes, the neighbours. Of IPv6 the
    /// link must have been allowed some.
    pub(crate) fn wire(
        &mut self,
        link: &Link,
        id: &str,
        addresses: Addresses,
        mac: [u8; 6],
    ) -> Result<(), Error> {
        let mut messages = Messages::default();
        messages.push(RTM_SETLINK, 0, &ifinfo(link.index, 0, 0), |a| {
            a.bytes(IFLA_IFALIAS, id.as_bytes());
        });
        push_route(&mut messages, link.index, Some(addresses.v4.into()), None);
        push_neighbour(&mut messages, link.index, addresses.v4.into(), mac);
        if let Some(v6) = addresses.v6 {
            push_address(&mut messages, link.index, GATEWAY6.into(), RT_SCOPE_LINK);
            push_route(&mut messages, link.index, Some(v6.into()), None);
            push_neighbour(&mut messages, link.index, v6.into(), mac);
        }
        let labels = [
            "set the alias of link",
            "set the route to",
            "set the neighbour of",
            "give the IPv6 gateway address to link",
            "set the IPv6 route to",
            "set the IPv6 neighbour of",
        ];
        self.transact(&mut messages, &labels, &format!("{} ({id}, {addresses})", link.name))
    }

    /// The link called `name`.
    pub(crate) fn find(&mut self, name: &str) -> Result<Link, Error> {
        let mut messages = Messages::default();
        messages.push(RTM_GETLINK, 0, &ifinfo(0, 0, 0), |a| {
            a.text(IFLA_IFNAME, name);
        });
        let mut found = None;
        self.socket
            .query(&messages, |kind, payload| found = parse_link(kind, payload))
            .map_err(|source| Error::io(format!("look up link {name}"), source))?;
        found.ok_or_else(|| {
            Error::io(format!("look up link {name}"), io::ErrorKind::NotFound.into())
        })
    }

    /// The container's side of the pair.
    pub(crate) fn find_inside(&mut self) -> Result<Link, Error> {
        self.find(INSIDE)
    }

    /// All links whose name starts with `prefix`.
    pub(crate) fn list(&mut self, prefix: &str) -> Result<Vec<Link>, Error> {
        let mut links = self.list_all()?;
        links.retain(|link| link.name.starts_with(prefix));
        Ok(links)
    }

    /// Removes links; those that are gone already are fine. `group` must be a number that nobody else uses for links.
    ///
    /// Several go as one group: the kernel then waits for its readers once, not once a link.
    pub(crate) fn delete(&mut self, indices: &[u32], group: u32) -> Result<(), Error> {
        let mut taken = || Ok::<_, Error>(self.list_all()?.iter().any(|link| link.group == group));
        if indices.len() < 2 || taken()? {
            return indices.iter().try_for_each(|index| self.delete_one(*index));
        }
        let mut messages = Messages::default();
        for index in indices {
            messages.push(RTM_SETLINK, 0, &ifinfo(*index, 0, 0), |a| {
                a.host32(IFLA_GROUP, group);
            });
        }
        let refused = self
            .socket
            .attempt(&mut messages, indices.len() - 1)
            .map_err(|source| Error::io("mark links for removal", source))?;
        if let Some(refused) = refused.iter().find(|refused| !is_gone(&refused.source)) {
            let index = indices.get(refused.index).copied().unwrap_or_default();
            let source = io::Error::from(refused.source.kind());
            return Err(Error::io(format!("mark link {index} for removal"), source));
        }
        let mut messages = Messages::default();
        messages.push(RTM_DELLINK, 0, &ifinfo(0, 0, 0), |a| {
            a.host32(IFLA_GROUP, group);
        });
        match self.socket.transact(&mut messages) {
            Err(refused) if !is_gone(&refused.source) => {
                Err(Error::io(format!("remove {} links", indices.len()), refused.source))
            }
            _ => Ok(()),
        }
    }

    /// Every IPv4 address of this namespace.
    pub(crate) fn addresses(&mut self) -> Result<Vec<Ipv4Addr>, Error> {
        let mut messages = Messages::default();
        messages.push(RTM_GETADDR, flag::DUMP, &[AF_INET, 0, 0, 0, 0, 0, 0, 0], |_| {});
        let mut addresses = Vec::new();
        self.socket
            .query(&messages, |kind, payload| {
                let local = payload.get(8..).and_then(|a| attribute(a, IFA_LOCAL));
                if let (RTM_NEWADDR, Some(Ok(octets))) = (kind, local.map(<[u8; 4]>::try_from)) {
                    addresses.push(Ipv4Addr::from(octets));
                }
            })
            .map_err(|source| Error::io("list addresses", source))?;
        Ok(addresses)
    }

    /// Addresses that a link leads to, by route and by a permanent neighbour, and addresses that it
    /// has itself; each with the link's index.
    pub(crate) fn reached(&mut self) -> Result<BTreeSet<(u32, IpAddr)>, Error> {
        let mut routes = BTreeSet::new();
        let mut neighbours = BTreeSet::new();
        let mut own = BTreeSet::new();
        for family in [AF_INET, AF_INET6] {
            let mut header = [0; 12];
            header[0] = family;
            self.dump(RTM_GETROUTE, &header, "list routes", |kind, payload| {
                let attributes = payload.get(12..).filter(|_| kind == RTM_NEWROUTE);
                let number = |kind| attribute(attributes?, kind).and_then(|v| u32_at(v, 0));
                let to = attributes.and_then(|a| attribute(a, RTA_DST)).and_then(address_of);
                if number(RTA_TABLE) == Some(u32::from(RT_TABLE_MAIN))
                    && let (Some(out), Some(to)) = (number(RTA_OIF), to)
                {
                    routes.insert((out, to));
                }
            })?;
            self.dump(RTM_GETNEIGH, &header, "list neighbours", |kind, payload| {
                let attributes = payload.get(12..).filter(|_| kind == RTM_NEWNEIGH);
                let state = payload.get(8..10).map(|s| u16::from_ne_bytes([s[0], s[1]]));
                let to = attributes.and_then(|a| attribute(a, NDA_DST)).and_then(address_of);
                if state.is_some_and(|state| state & NUD_PERMANENT != 0)
                    && let (Some(index), Some(to)) = (u32_at(payload, 4), to)
                {
                    neighbours.insert((index, to));
                }
            })?;
            self.dump(RTM_GETADDR, &header[..8], "list addresses", |kind, payload| {
                let attributes = payload.get(8..).filter(|_| kind == RTM_NEWADDR);
                let own_address = attributes
                    .and_then(|a| attribute(a, IFA_LOCAL).or_else(|| attribute(a, IFA_ADDRESS)))
                    .and_then(address_of);
                if let (Some(index), Some(address)) = (u32_at(payload, 4), own_address) {
                    own.insert((index, address));
                }
            })?;
        }
        own.extend(routes.intersection(&neighbours).copied());
        Ok(own)
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
            answer => answer.map_err(|source| Error::io(action, source)),
        }
    }

    fn delete_one(&mut self, index: u32) -> Result<(), Error> {
        let mut messages = Messages::default();
        messages.push(RTM_DELLINK, 0, &ifinfo(index, 0, 0), |_| {});
        match self.socket.transact(&mut messages) {
            Err(refused) if !is_gone(&refused.source) => {
                Err(Error::io(format!("remove link {index}"), refused.source))
            }
            _ => Ok(()),
        }
    }

    fn list_all(&mut self) -> Result<Vec<Link>, Error> {
        let mut messages = Messages::default();
        messages.push(RTM_GETLINK, flag::DUMP, &ifinfo(0, 0, 0), |_| {});
        let mut links = Vec::new();
        self.socket
            .query(&messages, |kind, payload| links.extend(parse_link(kind, payload)))
            .map_err(|source| Error::io("list links", source))?;
        Ok(links)
    }

    fn transact(
        &mut self,
        messages: &mut Messages,
        labels: &[&str],
        object: &str,
    ) -> Result<(), Error> {
        self.socket.transact(messages).map_err(|Refused { index, source }| {
            let label = labels.get(index).copied().unwrap_or("configure");
            Error::io(format!("{label} {object}"), source)
        })
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

/// `struct ifinfomsg`
fn ifinfo(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&change.to_ne_bytes());
    bytes
}

fn family(address: &IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn len_max(address: &IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn address_of(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        _ => None,
    }
}

/// The address alone, or nothing new if it is there already.
fn push_address(messages: &mut Messages, index: u32, address: IpAddr, scope: u8) {
    let flags = if address.is_ipv4() { 0 } else { IFA_F_NODAD };
    // struct ifaddrmsg
    let mut header = [family(&address), len_max(&address), flags, scope, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    messages.push(RTM_NEWADDR, flag::CREATE | flag::REPLACE, &header, |a| {
        a.bytes(IFA_LOCAL, &octets(&address)).bytes(IFA_ADDRESS, &octets(&address));
    });
}

/// To one address, or to everything (`None`); through a gateway that need not be on the link.
fn push_route(messages: &mut Messages, index: u32, to: Option<IpAddr>, gateway: Option<IpAddr>) {
    let (len, scope) =
        (to.map_or(0, |to| len_max(&to)), gateway.map_or(RT_SCOPE_LINK, |_| RT_SCOPE_UNIVERSE));
    let family = to.or(gateway).map_or(AF_INET, |address| family(&address));
    // struct rtmsg
    let mut header =
        [family, len, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST, 0, 0, 0, 0];
    if gateway.is_some() {
        header[8..12].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
    }
    messages.push(RTM_NEWROUTE, flag::CREATE | flag::REPLACE, &header, |a| {
        if let Some(to) = to {
            a.bytes(RTA_DST, &octets(&to));
        }
        a.host32(RTA_OIF, index);
        if let Some(gateway) = gateway {
            a.bytes(RTA_GATEWAY, &octets(&gateway));
        }
    });
}

fn push_neighbour(messages: &mut Messages, index: u32, address: IpAddr, mac: [u8; 6]) {
    // struct ndmsg
    let mut header = [0; 12];
    header[0] = family(&address);
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
    messages.push(RTM_NEWNEIGH, flag::CREATE | flag::REPLACE, &header, |a| {
        a.bytes(NDA_DST, &octets(&address)).bytes(NDA_LLADDR, &mac);
    });
}

pub(crate) fn parse_link(kind: u16, payload: &[u8]) -> Option<Link> {
    (kind == RTM_NEWLINK).then_some(())?;
    let up = u32_at(payload, 8)? & IFF_UP != 0;
    let mut link = Link { index: u32_at(payload, 4)?, up, ..Link::default() };
    for (kind, value) in attributes_in(payload.get(16..)?) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_IFALIAS => link.alias = Some(text(value)),
            IFLA_ADDRESS => link.mac = value.try_into().ok(),
            IFLA_LINK => link.peer = u32_at(value, 0),
            IFLA_GROUP => link.group = u32_at(value, 0)?,
            IFLA_LINKINFO => link.kind = attribute(value, IFLA_INFO_KIND).map(text),
            _ => {}
        }
    }
    Some(link)
}
