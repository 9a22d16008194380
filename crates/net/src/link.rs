//! Links, addresses, routes and neighbours of one network namespace, by rtnetlink.
//!
//! A [`Links`] acts in the namespace of the thread that opened it, from whatever
//! thread it is used. Methods send all that they can in one system call.
//!
//! rtnetlink of our own: an attach is two system calls of four messages; the
//! general crate would need a runtime task and a round trip for each message.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::Error;
use crate::netlink::{Messages, Refused, Socket, attribute, attributes_in, flag, text, u32_at};

/// The gateway that every container sees; each host-side link holds it.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
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
const RTM_NEWNEIGH: u16 = 28;
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

    /// Brings up the host side of a pair, with its settings and the gateway's address.
    pub(crate) fn raise_host(&mut self, link: &Link) -> Result<(), Error> {
        let mut messages = Messages::default();
        messages.push(RTM_SETLINK, 0, &ifinfo(link.index, IFF_UP, IFF_UP), |a| {
            a.nested(IFLA_AF_SPEC, |a| {
                a.nested(u16::from(AF_INET), |a| {
                    a.nested(IFLA_INET_CONF, |a| {
                        for (key, value) in HOST_CONF {
                            a.host32(key, value);
                        }
                    });
                });
            });
        });
        push_address(&mut messages, link.index, GATEWAY, RT_SCOPE_LINK);
        self.transact(
            &mut messages,
            &["bring up link", "give the gateway address to link"],
            &link.name,
        )
    }

    /// Everything inside a namespace that does not depend on the container's address.
    pub(crate) fn furnish(&mut self, inside: &Link) -> Result<(), Error> {
        let mut messages = Messages::default();
        messages.push(RTM_SETLINK, 0, &ifinfo(LOOPBACK_INDEX, IFF_UP, IFF_UP), |_| {});
        messages.push(RTM_SETLINK, 0, &ifinfo(inside.index, IFF_UP, IFF_UP), |_| {});
        push_neighbour(&mut messages, inside.index, GATEWAY, GATEWAY_MAC);
        push_route(&mut messages, inside.index, None, Some(GATEWAY));
        let labels = [
            "bring up lo for",
            "bring up",
            "set the gateway's neighbour of",
            "set the default route of",
        ];
        self.transact(&mut messages, &labels, "a container's eth0")
    }

    /// Gives the inner side its address.
    pub(crate) fn settle(&mut self, inside: &Link, address: Ipv4Addr) -> Result<(), Error> {
        let mut messages = Messages::default();
        push_address(&mut messages, inside.index, address, RT_SCOPE_UNIVERSE);
        self.transact(&mut messages, &["add"], &format!("{address} to a container's eth0"))
    }

    /// Ties the host side to a container: its id as alias, the route, the neighbour.
    pub(crate) fn wire(
        &mut self,
        link: &Link,
        id: &str,
        address: Ipv4Addr,
        mac: [u8; 6],
    ) -> Result<(), Error> {
        let mut messages = Messages::default();
        messages.push(RTM_SETLINK, 0, &ifinfo(link.index, 0, 0), |a| {
            a.bytes(IFLA_IFALIAS, id.as_bytes());
        });
        push_route(&mut messages, link.index, Some(address), None);
        push_neighbour(&mut messages, link.index, address, mac);
        let labels = ["set the alias of link", "set the route to", "set the neighbour of"];
        self.transact(&mut messages, &labels, &format!("{} ({id}, {address})", link.name))
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

/// A /32, or nothing new if it is there already.
fn push_address(messages: &mut Messages, index: u32, address: Ipv4Addr, scope: u8) {
    // struct ifaddrmsg
    let mut header = [AF_INET, 32, 0, scope, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    messages.push(RTM_NEWADDR, flag::CREATE | flag::REPLACE, &header, |a| {
        a.bytes(IFA_LOCAL, &address.octets()).bytes(IFA_ADDRESS, &address.octets());
    });
}

/// To one address, or to everything (`None`); through a gateway that need not be on the link.
fn push_route(
    messages: &mut Messages,
    index: u32,
    to: Option<Ipv4Addr>,
    gateway: Option<Ipv4Addr>,
) {
    let (len, scope) = (to.map_or(0, |_| 32), gateway.map_or(RT_SCOPE_LINK, |_| RT_SCOPE_UNIVERSE));
    // struct rtmsg
    let mut header =
        [AF_INET, len, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST, 0, 0, 0, 0];
    if gateway.is_some() {
        header[8..12].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
    }
    messages.push(RTM_NEWROUTE, flag::CREATE | flag::REPLACE, &header, |a| {
        if let Some(to) = to {
            a.bytes(RTA_DST, &to.octets());
        }
        a.host32(RTA_OIF, index);
        if let Some(gateway) = gateway {
            a.bytes(RTA_GATEWAY, &gateway.octets());
        }
    });
}

fn push_neighbour(messages: &mut Messages, index: u32, address: Ipv4Addr, mac: [u8; 6]) {
    // struct ndmsg
    let mut header = [0; 12];
    header[0] = AF_INET;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
    messages.push(RTM_NEWNEIGH, flag::CREATE | flag::REPLACE, &header, |a| {
        a.bytes(NDA_DST, &address.octets()).bytes(NDA_LLADDR, &mac);
    });
}

fn parse_link(kind: u16, payload: &[u8]) -> Option<Link> {
    (kind == RTM_NEWLINK).then_some(())?;
    let mut link = Link { index: u32_at(payload, 4)?, ..Link::default() };
    for (kind, value) in attributes_in(payload.get(16..)?) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_IFALIAS => link.alias = Some(text(value)),
            IFLA_ADDRESS => link.mac = value.try_into().ok(),
            IFLA_LINK => link.peer = u32_at(value, 0),
            IFLA_GROUP => link.group = u32_at(value, 0)?,
            _ => {}
        }
    }
    Some(link)
}
