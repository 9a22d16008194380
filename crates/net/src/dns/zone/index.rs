//! Where names are kept, and what changes when a service does.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::hash::Hash;
use std::net::IpAddr;

use warren_model::id::ServiceId;

use super::shards::Shards;
use super::{Endpoint, SUFFIX, Service, Task, Zone};
use crate::dns::NetworkId;
use crate::dns::wire::NAME_LEN_MAX;

/// A name on a network: its id, then the text. Kept as one, so that it can be looked up from the stack.
pub(super) type Key = Box<[u8]>;

/// Before names of services that have some stack, for askers of another.
pub(super) const OF_ANY_STACK: &str = "*.";

/// Services of one name: nearly always one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owners {
    One(ServiceId),
    /// At least two, sorted. Boxed for the size of the others: there are a dozen a service.
    #[allow(clippy::box_collection)]
    Many(Box<Vec<ServiceId>>),
}

impl Owners {
    pub(super) fn iter(&self) -> impl Iterator<Item = ServiceId> {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Many(ids) => ids.as_slice(),
        }
        .iter()
        .copied()
    }
}

/// The last 32 bits of an address: all of an IPv4 one, and of an IPv6 one that was made of that the
/// same. So both are found by one entry; whose an address is has to be looked up with the services
/// that are found.
pub(super) fn tail(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(v4) => v4.to_bits(),
        IpAddr::V6(v6) => {
            let [.., high, low] = v6.segments();
            u32::from(high) << 16 | u32::from(low)
        }
    }
}

/// A name as a key, made without memory of its own.
pub(super) struct KeyText {
    bytes: [u8; 10 + NAME_LEN_MAX * 2],
    len: usize,
}

impl KeyText {
    pub(super) fn new(network: NetworkId, parts: &[&str]) -> Option<Self> {
        let mut key = Self { bytes: [0; _], len: 0 };
        for part in std::iter::once(network.0.as_slice()).chain(parts.iter().map(|p| p.as_bytes()))
        {
            key.bytes.get_mut(key.len..key.len + part.len())?.copy_from_slice(part);
            key.len += part.len();
        }
        Some(key)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Everything under which a service is found.
#[derive(Default)]
struct Entries {
    names: BTreeSet<Key>,
    known: BTreeSet<Box<str>>,
    stacks: BTreeSet<Key>,
    addresses: BTreeSet<u32>,
}

impl Entries {
    fn of(service: Option<&Service>) -> Self {
        let mut entries = Self::default();
        let Some(service) = service else { return entries };
        let stack = service.stack.as_deref();
        entries.known.insert(service.name.clone());
        if let Some(stack) = stack {
            entries.known.insert(format!("{}.{stack}", service.name).into());
        }
        for attachment in &service.attachments {
            let network = attachment.network;
            let insert = |set: &mut BTreeSet<Key>, parts: &[&str]| {
                // What is longer cannot be asked for.
                set.extend(KeyText::new(network, parts).map(|key| key.as_bytes().into()));
            };
            let hostnames = service.tasks.iter().filter_map(|task| task.hostname.as_ref());
            for name in std::iter::once(&service.name).chain(&attachment.aliases).chain(hostnames) {
                match stack {
                    Some(stack) => {
                        insert(&mut entries.names, &[name, ".", stack]);
                        insert(&mut entries.names, &[OF_ANY_STACK, name]);
                    }
                    None => insert(&mut entries.names, &[name]),
                }
            }
            if let Some(stack) = stack {
                insert(&mut entries.stacks, &[stack]);
            }
            if let Endpoint::Vip(vip) = attachment.endpoint {
                entries.addresses.extend(vip.each().map(tail));
            }
        }
        entries
            .addresses
            .extend(service.tasks.iter().flat_map(|task| task.addresses.each()).map(tail));
        entries
    }
}

impl Zone {
    /// Makes the indices say of a service what `new` says instead of `old`.
    pub(super) fn reindex(&mut self, old: Option<&Service>, new: Option<&Service>) {
        let Some(id) = new.or(old).map(|service| service.id) else { return };
        if let (Some(old), Some(new)) = (old, new)
            && is_found_alike(old, new)
        {
            return;
        }
        let (old, new) = (Entries::of(old), Entries::of(new));
        for key in old.names.difference(&new.names) {
            disown(&mut self.names, key, id);
        }
        for key in new.names.difference(&old.names) {
            own(&mut self.names, key, id);
        }
        for address in old.addresses.difference(&new.addresses) {
            disown(&mut self.addresses, address, id);
        }
        for address in new.addresses.difference(&old.addresses) {
            own(&mut self.addresses, address, id);
        }
        recount(&mut self.known, &old.known, &new.known);
        recount(&mut self.stacks, &old.stacks, &new.stacks);
    }
}

/// Whether only what is not indexed differs, such as which tasks are ready: the frequent case.
fn is_found_alike(old: &Service, new: &Service) -> bool {
    let task = |task: &Task| (task.addresses, task.hostname.clone());
    (&old.name, &old.stack, &old.attachments) == (&new.name, &new.stack, &new.attachments)
        && old.tasks.iter().map(task).eq(new.tasks.iter().map(task))
}

fn own<K: Hash + Eq + Clone>(map: &mut Shards<K, Owners>, key: &K, id: ServiceId) {
    let Some(owners) = map.get_mut(key) else {
        map.insert(key.clone(), Owners::One(id));
        return;
    };
    match owners {
        Owners::One(other) => {
            let (low, high) = if *other < id { (*other, id) } else { (id, *other) };
            *owners = Owners::Many(Box::new(vec![low, high]));
        }
        Owners::Many(ids) => {
            if let Err(at) = ids.binary_search(&id) {
                ids.insert(at, id);
            }
        }
    }
}

fn disown<K: Hash + Eq + Clone>(map: &mut Shards<K, Owners>, key: &K, id: ServiceId) {
    let Some(owners) = map.get_mut(key) else { return };
    match owners {
        Owners::Many(ids) => {
            ids.retain(|other| *other != id);
            let last = if let [last] = ids[..] { Some(last) } else { None };
            if let Some(last) = last {
                *owners = Owners::One(last);
            }
        }
        Owners::One(other) if *other == id => {
            map.remove(key);
        }
        Owners::One(_) => {}
    }
}

fn recount<K: Hash + Ord + Clone>(map: &mut Shards<K, u32>, old: &BTreeSet<K>, new: &BTreeSet<K>) {
    for key in old.difference(new) {
        match map.get_mut(key) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                map.remove(key);
            }
        }
    }
    for key in new.difference(old) {
        match map.get_mut(key) {
            Some(count) => *count += 1,
            None => {
                map.insert(key.clone(), 1);
            }
        }
    }
}

/// Lower case throughout, and tasks by slot.
pub(super) fn normalize(service: &mut Service) {
    service.name.make_ascii_lowercase();
    if let Some(stack) = &mut service.stack {
        stack.make_ascii_lowercase();
    }
    for alias in service.attachments.iter_mut().flat_map(|attachment| &mut attachment.aliases) {
        alias.make_ascii_lowercase();
    }
    for port in &mut service.ports {
        port.name.make_ascii_lowercase();
    }
    for hostname in service.tasks.iter_mut().filter_map(|task| task.hostname.as_mut()) {
        hostname.make_ascii_lowercase();
    }
    service.tasks.sort_by_key(|task| task.slot);
    service.tasks.shrink_to_fit();
    service.attachments.shrink_to_fit();
    service.ports.shrink_to_fit();
}

/// The name that means this service for everybody.
pub(super) fn full_name(service: &Service) -> String {
    let stack = service.stack.as_deref().map_or(Cow::Borrowed(""), |s| format!(".{s}").into());
    format!("{}{stack}.{SUFFIX}", service.name)
}

/// The name that means the slot of this task.
pub(super) fn slot_name(service: &Service, task: &Task) -> String {
    format!("{}.{}", task.slot, full_name(service))
}
