//! The rules that do not depend on what is published or who is where.
//!
//! Links are told apart by name: containers' begin with the node's prefix, every
//! node's VXLAN device with another that no container's link has.

mod around;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};

use super::{Element, Expression, Family, Front, Part, Set, Value, Verdict, refusal};
use crate::link::GATEWAY;
use crate::node::name_server;
use crate::overlay::{DEVICE_PREFIX, MARK_ACROSS, device_name, mark};
use crate::table::{Carrier, Overlay, Subnet};
use crate::{NetConfig, Protocol, Table, subnet_of};

const LOOPBACK: Subnet = (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8);

/// The chain of connections that are denied since they began.
pub(super) const DENIED: &str = "denied";

/// Where containers ask for names.
const DNS: u16 = 53;

/// What the constant rules of one family are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Base {
    family: Family,
    /// What names of containers' links begin with.
    ours: String,
    /// Addresses of containers.
    pool: Subnet,
    overlay: Option<Crossing>,
    /// Whether networks part containers, and those without a way out.
    isolated: bool,
    internal: BTreeSet<u32>,
    /// The node's own; containers know it as their gateway's.
    name_server: SocketAddrV4,
}

/// What the rules know of the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Crossing {
    /// The VXLAN device.
    vxlan: String,
    carrier: Carrier,
    /// Where containers' packets go to other nodes, if that is not the uplink.
    device: Option<String>,
    /// The port of the VXLAN device, if this family is below it.
    port: Option<u16>,
    /// This node's own address on the overlay.
    inner: Option<IpAddr>,
    vips: Vec<Subnet>,
    /// How long prefixes of nodes' blocks are.
    block_len: Option<u8>,
}

/// What the sets about other nodes have, sorted.
pub(super) fn peers(table: &Table, family: Family) -> Vec<(Set, Element)> {
    let Some(overlay) = &table.overlay else { return Vec::new() };
    let mut elements = Vec::with_capacity(overlay.peers.len() * 3);
    for peer in &overlay.peers {
        let outer = match overlay.carrier {
            Carrier::Plain | Carrier::Vxlan => peer.underlay,
            Carrier::Device => peer.inner.into(),
        };
        let inners = [Some(IpAddr::V4(peer.inner)), peer.inner6.map(IpAddr::V6)];
        let of = |set, address| (set, Element::key_of(vec![Part::Address(address)]));
        let all = inners.into_iter().flatten().map(|inner| (Set::Nodes, inner));
        let all = all.chain([(Set::Members, outer)]);
        elements.extend(all.filter(|(_, a)| family.has(a)).map(|(set, a)| of(set, a)));
        let blocks = peer.blocks.iter().filter(|block| {
            family.has(&block.0)
                && family.has(&peer.underlay)
                && Some(block.1) == block_len(overlay, family)
        });
        elements.extend(blocks.map(|block| {
            let key = vec![Part::Address(subnet_of(*block).0), Part::Address(peer.underlay)];
            (Set::Homes, Element::key_of(key))
        }));
        let value = Value::Parts(vec![Part::Number(mark(peer.number))]);
        elements.push((Set::Marks, Element::Entry { key: vec![Part::Mac(peer.mac())], value }));
    }
    let own = [Some(IpAddr::V4(overlay.own.inner)), overlay.own.inner6.map(IpAddr::V6)];
    let own = own.into_iter().flatten().filter(|address| family.has(address));
    elements.extend(own.map(|a| (Set::Nodes, Element::key_of(vec![Part::Address(a)]))));
    elements.sort_unstable();
    elements.dedup();
    elements
}

/// Of all nodes' blocks: a cluster has one length for all.
fn block_len(overlay: &Overlay, family: Family) -> Option<u8> {
    let blocks = overlay.own.blocks.iter().chain(overlay.peers.iter().flat_map(|p| &p.blocks));
    blocks.filter(|block| family.has(&block.0)).map(|block| block.1).next()
}

impl Base {
    pub(super) fn new(config: &NetConfig, table: &Table, family: Family) -> Option<Self> {
        let pool = match family {
            Family::V4 => Some((config.pool.0.into(), config.pool.1)),
            Family::V6 => {
                table.overlay.as_ref().and_then(|o| o.pool6).map(|pool| (pool.0.into(), pool.1))
            }
        };
        let overlay = table.overlay.as_ref().map(|overlay| {
            let vxlan = device_name(&config.node_key);
            let own = &overlay.own;
            let outer = match overlay.carrier {
                Carrier::Plain | Carrier::Vxlan => own.underlay,
                Carrier::Device => own.inner.into(),
            };
            Crossing {
                device: match overlay.carrier {
                    Carrier::Plain if family.has(&own.underlay) => None,
                    // Plain routes have no way for the family that the underlay lacks.
                    Carrier::Plain | Carrier::Vxlan => Some(vxlan.clone()),
                    Carrier::Device => overlay.device.clone(),
                },
                vxlan,
                carrier: overlay.carrier,
                port: family.has(&outer).then_some(overlay.port),
                inner: match family {
                    Family::V4 => Some(own.inner.into()),
                    Family::V6 => own.inner6.map(Into::into),
                },
                vips: overlay
                    .vips
                    .iter()
                    .filter(|v| family.has(&v.0))
                    .map(|v| subnet_of(*v))
                    .collect(),
                block_len: block_len(overlay, family),
            }
        });
        let ours = crate::container_prefix(&config.node_key);
        let networks = table.networks.as_ref();
        Some(Self {
            family,
            ours,
            pool: subnet_of(pool?),
            overlay,
            isolated: networks.is_some(),
            internal: networks.map(|networks| networks.internal.clone()).unwrap_or_default(),
            name_server: name_server(&config.node_key),
        })
    }

    pub(super) fn pool(&self) -> Subnet {
        self.pool
    }

    /// Services' addresses.
    pub(super) fn vips(&self) -> impl Iterator<Item = &Subnet> {
        self.overlay.iter().flat_map(|overlay| &overlay.vips)
    }

    pub(super) fn internal(&self) -> &BTreeSet<u32> {
        &self.internal
    }

    /// The rules in order within their chain.
    pub(super) fn rules(&self) -> Vec<(&'static str, Vec<Expression>)> {
        let mut rules = self.guard();
        rules.extend(self.crossing());
        rules.extend(self.confinement());
        rules.extend(self.translation());
        rules.extend(self.forward());
        rules.extend(self.isolation());
        rules.extend(self.denial());
        rules
    }

    pub(super) fn family(&self) -> Family {
        self.family
    }

    fn ours(&self) -> String {
        self.ours.clone()
    }

    /// Who appears to be the client of a container that reaches itself.
    fn gateway(&self) -> Option<IpAddr> {
        match self.family {
            Family::V4 => Some(GATEWAY.into()),
            // The gateway's own address is good on one link alone.
            Family::V6 => self.overlay.as_ref().and_then(|overlay| overlay.inner),
        }
    }

    /// Who answers when a service's address is pinged.
    fn echo(&self) -> Option<IpAddr> {
        self.overlay.as_ref().and_then(|overlay| overlay.inner).or_else(|| self.gateway())
    }

    /// Before connection tracking: what is forged.
    fn guard(&self) -> Vec<(&'static str, Vec<Expression>)> {
        use Expression::{
            DestinationIn, DestinationPort, FromLink, FromLinkNot, LocalDestination, LocalSource,
            NoReturnRoute, NotIn, Over, SourceIn, Verdict as Then,
        };
        let drop = || Then(Verdict::Drop);
        let mut rules = Vec::new();
        if self.family == Family::V4 {
            // route_localnet on our links must not open the host's loopback to anyone.
            rules.push(vec![FromLinkNot("lo".into()), DestinationIn(LOOPBACK), drop()]);
        }
        // Anti-spoofing by the routing table: it has each container's address on its own link.
        rules.push(vec![FromLink(self.ours()), NoReturnRoute, drop()]);
        let Some(overlay) = &self.overlay else { return named("guard", rules) };
        if let Some(port) = overlay.port {
            // Whoever else sends VXLAN packets could send as any container.
            let to_port = [Over(Protocol::Udp), DestinationPort(port), LocalDestination];
            rules.push([&to_port[..], &[NotIn(Set::Members), drop()]].concat());
        }
        rules.push(vec![FromLink(overlay.vxlan.clone()), LocalSource, drop()]);
        if let Some(device) = &overlay.device {
            rules.push(vec![FromLink(device.clone()), SourceIn(self.pool), NoReturnRoute, drop()]);
        }
        // A container's address from anywhere else.
        let mut elsewhere = vec![FromLinkNot(DEVICE_PREFIX.into()), FromLinkNot("lo".into())];
        elsewhere.extend([SourceIn(self.pool), NoReturnRoute, drop()]);
        rules.push(elsewhere);
        named("guard", rules)
    }

    /// Foreign clients' packets that come to a container by another node, and answers that go
    /// back by it. So the container sees its client's own address.
    fn crossing(&self) -> Vec<(&'static str, Vec<Expression>)> {
        use Expression::{
            BackToNode, DestinationIn, FromLink, FromLinkNot, KeepNode, MarkAs, NewState,
            Published, SourceNotIn, ToLink, ToLinkNot,
        };
        let Some(overlay) = &self.overlay else { return Vec::new() };
        let (vxlan, pool) = (|| overlay.vxlan.clone(), self.pool);
        let crosses = overlay.device.as_ref() != Some(&overlay.vxlan);
        let mut keep = vec![FromLink(vxlan()), NewState];
        // Containers come by it too if it carries all: they have a route.
        keep.extend((!crosses).then_some(SourceNotIn(pool)));
        keep.push(KeepNode);
        let mut rules = vec![
            ("tracked", keep),
            ("tracked", vec![FromLink(self.ours()), BackToNode]),
            // The packet around this one must not go the same way.
            ("leaving", vec![ToLink(vxlan()), MarkAs(0)]),
        ];
        if crosses {
            // Blocks go another way, which takes containers' own addresses alone.
            let foreign = [Published, DestinationIn(pool), SourceNotIn(pool), MarkAs(MARK_ACROSS)];
            let from = [FromLinkNot(self.ours()), FromLinkNot(DEVICE_PREFIX.into())];
            rules.push(("untranslated", [&from[..], &foreign[..]].concat()));
            rules.push(("untranslated-output", [&[ToLinkNot(self.ours())], &foreign[..]].concat()));
        }
        rules
    }

    /// Questions of this node's containers come to this node's server, whoever else is here.
    fn to_name_server(&self) -> Vec<(&'static str, Vec<Expression>)> {
        use Expression::{Destination, DestinationIs, DestinationPort, FromLink, Over};
        if self.family == Family::V6 {
            return Vec::new();
        }
        let asked = [DestinationIs(GATEWAY.into()), DestinationPort(DNS)];
        let rule = |protocol| {
            let from = [FromLink(self.ours()), Over(protocol)];
            ("prerouting", [&from[..], &asked, &[Destination(self.name_server)]].concat())
        };
        vec![rule(Protocol::Udp), rule(Protocol::Tcp)]
    }

    fn translation(&self) -> Vec<(&'static str, Vec<Expression>)> {
        use Expression::{
            Choose, DestinationAs, DestinationIn, DestinationIs, DestinationNotIn, EchoRequest,
            FromLink, In, InvalidState, LocalDestination, LookUp, Masquerade, NewState,
            OriginallyNotIn, Over, PortUnreachable, Published, Remember, ResetTcp, SourceAs,
            SourceIn, ToLink, ToLinkNot, ToOwnNode, Verdict as Then,
        };
        let jump = || Then(Verdict::Jump("ports".to_owned()));
        let gateway = || DestinationIs(GATEWAY.into());
        let to_services = || Then(Verdict::Jump("services".to_owned()));
        let mut rules = self.to_name_server();
        rules.extend([
            // Whoever may route to the node from outside has no business with services' addresses.
            ("prerouting", vec![FromLink(self.ours()), to_services()]),
            ("prerouting", vec![jump()]),
            ("output", vec![to_services()]),
            ("output", vec![jump()]),
            ("services", vec![Choose(Front::Port)]),
            ("services", vec![Over(Protocol::Tcp), Choose(Front::Address)]),
            ("services", vec![Over(Protocol::Udp), Choose(Front::Address)]),
        ]);
        if let Some(echo) = self.echo() {
            rules.push(("services", vec![In(Set::Vips), EchoRequest, DestinationAs(echo)]));
        }
        if self.family == Family::V4 {
            rules.extend([
                ("ports", vec![LookUp(Set::Bound)]),
                // The gateway is for the node's own services, and foreign hosts' ports are theirs.
                ("ports", vec![gateway(), Then(Verdict::Return)]),
                ("ports", vec![LocalDestination, LookUp(Set::Anywhere)]),
                // A reply to one of the host's own clients may have any port.
                ("input", vec![NewState, LookUp(Set::RefusedBound)]),
                ("input", vec![gateway(), Then(Verdict::Return)]),
                ("input", vec![NewState, LookUp(Set::RefusedAnywhere)]),
            ]);
        }
        if self.family == Family::V6 {
            // Nothing of this address leaves the host, and nothing for it comes back.
            let loopback = DestinationIs(Ipv6Addr::LOCALHOST.into());
            rules.push(("ports", vec![loopback, Then(Verdict::Return)]));
        }
        rules.extend([
            ("ports", vec![LocalDestination, Choose(Front::Port)]),
            ("ports", vec![LocalDestination, Choose(Front::Published)]),
        ]);
        if self.family == Family::V6 {
            rules.extend([
                ("input", vec![NewState, LookUp(Set::RefusedBound)]),
                ("input", vec![NewState, LookUp(Set::RefusedAnywhere)]),
            ]);
        }
        // What is for a service and was not translated. An invalid packet is no reason to end
        // the connection that it pretends to be of.
        rules.push(("untranslated", vec![In(Set::Vips), InvalidState, Then(Verdict::Drop)]));
        for chain in ["untranslated", "untranslated-output"] {
            rules.extend([
                (chain, vec![In(Set::Vips), Over(Protocol::Tcp), ResetTcp]),
                (chain, vec![In(Set::Vips), Over(Protocol::Udp), PortUnreachable]),
            ]);
        }
        // Asked when a backend goes: only then the kernel's connections are looked through.
        rules.push(("postrouting", vec![Published, Remember(Set::Served)]));
        rules.extend([
            (refusal(Protocol::Tcp), vec![ResetTcp]),
            (refusal(Protocol::Udp), vec![PortUnreachable]),
        ]);
        let ours = || ToLink(self.ours());
        if let Some(gateway) = self.gateway() {
            rules.push(("postrouting", vec![ours(), In(Set::Loops), SourceAs(gateway)]));
        }
        if self.family == Family::V4 {
            rules.extend([
                ("postrouting", vec![ours(), SourceIn(LOOPBACK), SourceAs(GATEWAY.into())]),
                ("postrouting", vec![ours(), In(Set::Hairpin), SourceAs(GATEWAY.into())]),
            ]);
            // To a container of another node, which can answer none of our loopback's addresses.
            if let Some(inner) = self.overlay.as_ref().and_then(|overlay| overlay.inner) {
                let from_loopback =
                    vec![SourceIn(LOOPBACK), DestinationIn(self.pool), SourceAs(inner)];
                rules.push(("postrouting", from_loopback));
            }
        }
        if let (true, Some(overlay)) = (self.isolated, &self.overlay)
            && let Some(inner) = overlay.inner
        {
            // A container that comes by a port of this node need not share a network with the
            // one behind it: the other node takes it for this one, as it takes its clients.
            let mut by_node = vec![ToLinkNot(self.ours()), SourceIn(self.pool)];
            by_node.extend([DestinationIn(self.pool), Published]);
            by_node.extend(overlay.vips.iter().map(|vips| OriginallyNotIn(*vips)));
            rules.push(("postrouting", [&by_node[..], &[SourceAs(inner)]].concat()));
        }
        if let Some(overlay) = &self.overlay
            && let (Some(inner), Some(len)) = (overlay.inner, overlay.block_len)
        {
            // A client that is a node, and is led to a container of its own: it would take no
            // packet that has its own address as source, and answer the container itself.
            let own = vec![ToLinkNot(self.ours()), Published, ToOwnNode(len), SourceAs(inner)];
            rules.push(("postrouting", own));
        }
        let mut leaves = vec![ToLinkNot(self.ours()), ToLinkNot(DEVICE_PREFIX.into())];
        leaves.extend([SourceIn(self.pool), DestinationNotIn(self.pool), Masquerade]);
        rules.push(("postrouting", leaves));
        rules
    }

    fn forward(&self) -> Vec<(&'static str, Vec<Expression>)> {
        use Expression::{
            Clamp, Count, Denied, DestinationIn, DestinationNotIn, FromLink, FromLinkNot,
            HostUnreachable, In, InvalidState, Known, LookUp, Over, Published, ResetTcp, SourceIn,
            SourceNotIn, Syn, ToBackend, ToLink, ToLinkNot, Verdict as Then,
        };
        let (drop, accept) = (|| Then(Verdict::Drop), || Then(Verdict::Accept));
        let (to_ours, to_others) = (|| ToLink(self.ours()), || ToLinkNot(self.ours()));
        let (from_ours, from_others) = (|| FromLink(self.ours()), || FromLinkNot(self.ours()));
        let isolate = || Then(Verdict::Goto("isolate".to_owned()));
        let mut rules = Vec::new();
        match &self.overlay {
            Some(overlay) => {
                for link in overlay.links() {
                    // Not all paths tell when a packet is too large for them.
                    rules.push(vec![ToLink(link), Over(Protocol::Tcp), Syn, Clamp]);
                }
                for vips in &overlay.vips {
                    // Nobody has it, or it would have been translated.
                    rules.push(vec![DestinationIn(*vips), from_ours(), HostUnreachable]);
                }
            }
            // A container that is gone: its traffic must not leave by the default route.
            None => rules.push(vec![
                to_others(),
                DestinationIn(self.pool),
                from_ours(),
                HostUnreachable,
            ]),
        }
        if self.family == Family::V4 {
            // Backends of ours, not the whole pool: another node may share this namespace. An
            // ICMP error about a translated packet would not find its way back; a reset does.
            rules.extend([
                vec![to_others(), ToBackend, Published, Over(Protocol::Tcp), ResetTcp],
                vec![to_others(), ToBackend, Published, drop()],
            ]);
        }
        if self.isolated {
            // One comparison for what goes on, whatever there is of policies.
            rules.push(vec![Denied, Then(Verdict::Jump(DENIED.to_owned()))]);
        }
        rules.push(vec![Known, accept()]);
        // Invalid packets escape translation; dropped where translation is ours alone.
        rules.push(vec![from_ours(), InvalidState, drop()]);
        if self.isolated {
            // Nobody is kept from itself.
            rules.push(vec![from_ours(), to_ours(), In(Set::Loops), accept()]);
            if self.family == Family::V4 {
                rules.push(vec![from_ours(), to_ours(), In(Set::Hairpin), accept()]);
            }
            rules.extend([
                vec![from_ours(), LookUp(Set::Outbound)],
                vec![to_ours(), LookUp(Set::Inbound)],
                vec![
                    from_ours(),
                    to_others(),
                    DestinationNotIn(self.pool),
                    In(Set::Confined),
                    Count,
                    drop(),
                ],
            ]);
        }
        rules.push(vec![from_ours(), to_ours(), isolate()]);
        if let Some(overlay) = &self.overlay {
            rules.push(vec![from_ours(), DestinationIn(self.pool), isolate()]);
            for link in overlay.links() {
                let (from, to) = (|| FromLink(link.clone()), || ToLink(link.clone()));
                let within = [SourceIn(self.pool), DestinationIn(self.pool), accept()];
                rules.push(vec![from(), InvalidState, drop()]);
                // Between two that do not reach each other this node may stand in the middle.
                rules.push([&[from(), to()], &within[..]].concat());
                rules.push(vec![to(), from_others(), Published, accept()]);
                rules.push(vec![to(), from_others(), drop()]);
            }
            let from_vxlan = || FromLink(overlay.vxlan.clone());
            rules.push(vec![
                to_ours(),
                from_vxlan(),
                SourceNotIn(self.pool),
                In(Set::Exposed),
                accept(),
            ]);
            rules.push(vec![to_ours(), from_vxlan(), In(Set::Nodes), accept()]);
            let from_peers = match (&overlay.device, overlay.carrier) {
                (Some(device), _) => Some(vec![FromLink(device.clone())]),
                // The guard has seen that the way back leads there.
                (None, Carrier::Plain) => {
                    Some(vec![from_others(), FromLinkNot(DEVICE_PREFIX.into())])
                }
                (None, Carrier::Vxlan | Carrier::Device) => None,
            };
            if let Some(from_peers) = from_peers {
                rules.push(
                    [&[to_ours(), SourceIn(self.pool)], &from_peers[..], &[isolate()]].concat(),
                );
            }
        }
        // From elsewhere only what was published: not what is invalid or untracked either.
        rules.push(vec![to_ours(), from_others(), Published, accept()]);
        rules.push(vec![to_ours(), from_others(), drop()]);
        named("forward", rules)
    }
}

impl Crossing {
    /// Each link that leads to other nodes alone.
    fn links(&self) -> Vec<String> {
        let mut links = vec![self.vxlan.clone()];
        links.extend(self.device.clone().filter(|device| *device != self.vxlan));
        links
    }
}

fn named(chain: &'static str, rules: Vec<Vec<Expression>>) -> Vec<(&'static str, Vec<Expression>)> {
    rules.into_iter().map(|rule| (chain, rule)).collect()
}
