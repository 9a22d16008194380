//! Services' addresses, and ports that every node answers.
//!
//! All of it is data in maps, so that a change of one service is a change of a few
//! elements and the kernel has nothing to validate (a rule that translates makes it walk
//! every chain: with a chain for each of thousands of services that alone is milliseconds).
//!
//! ```text
//! frontend ──▶ port . id . turns      what the packet is for
//! turns    ──▶ goto the chain of so many turns (a number must be drawn from a fixed range)
//!              in which: n = random of turns, or a hash of the client's address
//! id . n   ──▶ backend
//! ```
//!
//! A backend of weight 3 has three turns. With affinity there are more turns than backends,
//! shared out by rendezvous hashing (Thaler, Ravishankar 1998): when a backend goes, only its
//! own turns move, and every node has the same.
//!
//! Each connection that is led to a backend is counted under its service's id.
//!
//! Not here: ports of this node's own containers (`published`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::numbered::{List, Numbered};
use super::{Element, Expression, Family, Op, Part, Set, Value, Verdict, push_difference, refusal};
use crate::entries::Entries;
use crate::table::{Frontend, Service};

/// Turns of a service with affinity, unless it has so many backends that they would not be even.
const STICKY_TURNS: u32 = 128;
/// Turns of one service at most: beyond that, weights are rounded.
const TURNS_MAX: u32 = 4096;
/// Set in a number of turns that a hash is to choose from.
const STICKY: u32 = 1 << 31;

/// All services of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Services {
    pub(crate) list: List<Service>,
    /// Chains that there are. They stay until all is installed anew: there are few.
    turns: BTreeSet<(Front, u32)>,
    /// Backends on this node, and in how many services each is.
    local: Arc<BTreeMap<IpAddr, u32>>,
    /// Some frontend has two services: then a difference cannot be told from keys alone.
    pub(super) contested: bool,
}

/// A map that packets are looked up in, and the map of its chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Front {
    /// A port of an address.
    Port,
    /// An address.
    Address,
    /// A port of this node.
    Published,
}

impl Front {
    pub(crate) fn set(self) -> Set {
        match self {
            Self::Port => Set::FrontPorts,
            Self::Address => Set::FrontAddresses,
            Self::Published => Set::FrontPublished,
        }
    }

    pub(crate) fn turns(self) -> Set {
        match self {
            Self::Port => Set::TurnsPorts,
            Self::Address => Set::TurnsAddresses,
            Self::Published => Set::TurnsPublished,
        }
    }

    fn chain(self, turns: u32) -> String {
        let of = match self {
            Self::Port => "port",
            Self::Address => "address",
            Self::Published => "published",
        };
        match turns & STICKY {
            0 => format!("{of}-turns-{turns}"),
            _ => format!("{of}-sticky-{}", turns & !STICKY),
        }
    }

    fn of(frontend: &Frontend) -> Self {
        match frontend {
            Frontend::Address(_) => Self::Address,
            Frontend::Published { bind, .. } if bind.is_unspecified() => Self::Published,
            Frontend::Port { .. } | Frontend::Published { .. } | Frontend::Elsewhere { .. } => {
                Self::Port
            }
        }
    }
}

impl Services {
    /// The same as `self` where nothing changed, with its numbers.
    pub(crate) fn next(&self, services: &Entries<Service>) -> Self {
        Self {
            list: self.list.next(services),
            turns: self.turns.clone(),
            local: Arc::clone(&self.local),
            contested: self.contested,
        }
    }

    /// Nothing that the kernel holds.
    pub(crate) fn bare(&self) -> Self {
        Self { list: self.list.bare(), ..Self::default() }
    }
}

/// From `held` to `wanted`, whose list of chains is brought up to date.
pub(super) fn diff(ops: &mut Vec<Op>, held: &Services, wanted: &mut Services, family: Family) {
    let (old, new) = held.list.changes(&wanted.list);
    let elements = |list: &[&Numbered<Service>]| {
        let mut all: Vec<(Set, Element)> = Vec::new();
        let mut turns = BTreeSet::new();
        list.iter().for_each(|service| push_service(&mut all, &mut turns, service, family));
        all.sort_unstable();
        (all, turns)
    };
    let (mut before, _) = elements(&old);
    let (mut after, turns) = elements(&new);
    // The first service keeps a frontend that two have: the kernel would refuse the second.
    let count = after.len();
    after.dedup_by(|b, a| a.0 == b.0 && a.1.key() == b.1.key());
    wanted.contested = held.contested || after.len() < count;
    let new_turns: Vec<(Front, u32)> = turns.difference(&held.turns).copied().collect();
    for (front, turns) in &new_turns {
        let chain = front.chain(*turns);
        ops.push(Op::AddChain { name: chain.clone(), hook: None });
        let spread = match turns & STICKY {
            0 => Expression::AtRandom { front: *front, turns: *turns },
            _ => Expression::ByClient { front: *front, turns: turns & !STICKY },
        };
        ops.push(Op::AddRule { chain: chain.clone(), rule: vec![spread] });
        let goto = Value::Verdict(Verdict::Goto(chain));
        let element = Element::Entry { key: vec![Part::Number(*turns)], value: goto };
        ops.push(Op::AddElements { set: front.turns(), elements: vec![element] });
    }
    wanted.turns = held.turns.iter().copied().chain(new_turns).collect();
    let loops = |local: &Arc<BTreeMap<IpAddr, u32>>, list: &[&Numbered<Service>], add: bool| {
        let mut local = Arc::clone(local);
        for backend in list.iter().flat_map(|service| &service.entry.backends) {
            if backend.local && family.has(&backend.address) {
                let count = Arc::make_mut(&mut local).entry(backend.address).or_default();
                *count = if add { *count + 1 } else { count.saturating_sub(1) };
            }
        }
        local
    };
    wanted.local = loops(&loops(&held.local, &old, false), &new, true);
    if wanted.local != held.local {
        Arc::make_mut(&mut wanted.local).retain(|_, count| *count > 0);
        let element = |address: &IpAddr| {
            (Set::Loops, Element::key_of(vec![Part::Address(*address), Part::Address(*address)]))
        };
        let new_in = |these: &BTreeMap<IpAddr, u32>, those: &BTreeMap<IpAddr, u32>| {
            these.keys().filter(|a| !those.contains_key(*a)).map(element).collect::<Vec<_>>()
        };
        before.extend(new_in(&held.local, &wanted.local));
        after.extend(new_in(&wanted.local, &held.local));
        before.sort_unstable();
        after.sort_unstable();
    }
    push_difference(ops, &before, &after);
}

/// Everything that one service has in the maps.
fn push_service(
    all: &mut Vec<(Set, Element)>,
    turns: &mut BTreeSet<(Front, u32)>,
    numbered: &Numbered<Service>,
    family: Family,
) {
    let Numbered { entry: service, id } = numbered;
    let (mut vips, mut exposed) = (BTreeSet::new(), BTreeSet::new());
    let (count, backends) = backends_in_turn(service, family);
    for (turn, backend) in (0..).zip(&backends) {
        let key = vec![Part::Number(*id), Part::Number(turn)];
        let value = Value::Parts(vec![Part::Address(*backend)]);
        all.push((Set::Backends, Element::Entry { key, value }));
    }
    // Also without backends: what it has counted stays until the service goes.
    if service.frontends.iter().any(|frontend| leads(frontend, family)) {
        all.push((Set::Counted, Element::key_of(vec![Part::Number(*id)])));
    }
    let here = || service.backends.iter().filter(|b| b.local && family.has(&b.address));
    for frontend in &service.frontends {
        let (address, protocol, port, target) = match *frontend {
            Frontend::Address(vip) => (vip, None, 0, 0),
            Frontend::Port { vip, protocol, port, target } => (vip, Some(protocol), port, target),
            Frontend::Published { bind, protocol, port, target } => {
                (bind, Some(protocol), port, target)
            }
            Frontend::Elsewhere { protocol, target } => {
                exposed.extend(here().map(|backend| (protocol, backend.address, target)));
                continue;
            }
        };
        if !family.has(&address) {
            continue;
        }
        let front = Front::of(frontend);
        let is_published = matches!(frontend, Frontend::Published { .. });
        if !is_published {
            vips.insert(address);
        }
        let mut key = Vec::with_capacity(3);
        key.extend(protocol.map(Part::Protocol));
        if front != Front::Published {
            key.push(Part::Address(address));
        }
        key.extend(protocol.map(|_| Part::Port(port)));
        if backends.is_empty() {
            if let (true, Some(protocol)) = (is_published, protocol) {
                let goto = Value::Verdict(Verdict::Goto(refusal(protocol).to_owned()));
                let set = match front {
                    Front::Published => Set::RefusedAnywhere,
                    Front::Port | Front::Address => Set::RefusedBound,
                };
                all.push((set, Element::Entry { key, value: goto }));
            }
            continue;
        }
        if let (true, Some(protocol)) = (is_published, protocol) {
            exposed.extend(here().map(|backend| (protocol, backend.address, target)));
        }
        turns.insert((front, count));
        let value = vec![Part::Port(target), Part::Number(*id), Part::Number(count)];
        all.push((front.set(), Element::Entry { key, value: Value::Parts(value) }));
    }
    for (protocol, address, port) in exposed {
        let key = vec![Part::Protocol(protocol), Part::Address(address), Part::Port(port)];
        all.push((Set::Exposed, Element::key_of(key)));
    }
    for vip in vips {
        all.push((Set::Vips, Element::key_of(vec![Part::Address(vip)])));
    }
}

/// Whether clients of the family are led anywhere by it.
fn leads(frontend: &Frontend, family: Family) -> bool {
    match frontend {
        Frontend::Address(address)
        | Frontend::Port { vip: address, .. }
        | Frontend::Published { bind: address, .. } => family.has(address),
        Frontend::Elsewhere { .. } => false,
    }
}

/// Who has which turn, and the number of turns with its flag.
fn backends_in_turn(service: &Service, family: Family) -> (u32, Vec<IpAddr>) {
    let able = service.backends.iter().filter(|b| b.weight > 0 && family.has(&b.address));
    let mut weights: BTreeMap<IpAddr, u32> = BTreeMap::new();
    let local_only = service.prefer_local && able.clone().any(|backend| backend.local);
    for backend in able.filter(|backend| backend.local || !local_only) {
        weights.insert(backend.address, u32::from(backend.weight));
    }
    let divisor = weights.values().copied().fold(0, greatest_common_divisor).max(1);
    let total: u32 = weights.values().map(|weight| weight / divisor).sum();
    let share = |weight: u32| match total {
        ..=TURNS_MAX => weight / divisor,
        _ => {
            let exact = u64::from(weight / divisor) * u64::from(TURNS_MAX) / u64::from(total);
            u32::try_from(exact).expect("it is a part of TURNS_MAX").max(1)
        }
    };
    if service.affinity && !weights.is_empty() {
        let wanted = u32::try_from(weights.len()).unwrap_or(TURNS_MAX).saturating_mul(8);
        let turns = wanted.next_power_of_two().clamp(STICKY_TURNS, TURNS_MAX);
        let owners =
            (0..turns).map(|turn| owner(turn, weights.iter().map(|(a, w)| (*a, share(*w)))));
        return (STICKY | turns, owners.collect());
    }
    let turns: Vec<IpAddr> = weights
        .iter()
        .flat_map(|(address, weight)| (0..share(*weight)).map(|_| *address))
        .collect();
    (u32::try_from(turns.len()).unwrap_or(u32::MAX), turns)
}

/// Of a turn: the backend with the highest hash, each having as many as its weight says.
fn owner(turn: u32, weights: impl Iterator<Item = (IpAddr, u32)>) -> IpAddr {
    let score = |(address, weight): (IpAddr, u32)| {
        let seed = match address {
            IpAddr::V4(v4) => u64::from(v4.to_bits()),
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, g, h] = v6.segments().map(u64::from);
                mix((a << 48) | (b << 32) | (c << 16) | d) ^ ((e << 48) | (f << 32) | (g << 16) | h)
            }
        };
        let hash = |copy| mix(mix(seed) ^ (u64::from(turn) << 32) ^ u64::from(copy));
        ((0..weight).map(hash).max(), address)
    };
    weights.map(score).max().map(|(_, address)| address).expect("there is a backend")
}

/// Spreads every bit over all (the finaliser of SplitMix64: Steele, Lea, Flood 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}
