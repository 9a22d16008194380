//! Whom a name means, for one asker.

use warren_model::id::ServiceId;

use super::index::{KeyText, OF_ANY_STACK};
use super::{Asker, Attachment, Service, Task, Zone};
use crate::Protocol;
use crate::dns::NetworkId;

/// Services of one name: stacks that share a network may be many.
const HITS_MAX: usize = 512;

/// A service that a name means, on the first network that the asker has in common with it.
pub(super) struct Hit<'a> {
    pub(super) service: &'a Service,
    pub(super) attachment: &'a Attachment,
    /// The name is one of tasks, not of the service.
    pub(super) hostname: Option<&'a str>,
}

impl Hit<'_> {
    /// Those that are ready, of `part`.
    pub(super) fn tasks(&self, part: Part) -> impl Iterator<Item = &Task> {
        self.every_task(part).filter(|task| task.ready)
    }

    fn every_task(&self, part: Part) -> impl Iterator<Item = &Task> {
        // Sorted by slot.
        let tasks = match part {
            Part::Whole | Part::Tasks => &self.service.tasks[..],
            Part::Slot(slot) => {
                let first = self.service.tasks.partition_point(|task| task.slot < slot);
                let end = self.service.tasks.partition_point(|task| task.slot <= slot);
                &self.service.tasks[first..end]
            }
        };
        let named =
            |task: &&Task| self.hostname.is_none() || task.hostname.as_deref() == self.hostname;
        tasks.iter().filter(named)
    }
}

/// Which part of its service a name means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    Tasks,
    Slot(u32),
}

/// A name that exists.
pub(super) struct Found<'a> {
    pub(super) part: Part,
    /// None: the name only has others below it.
    pub(super) hits: Vec<Hit<'a>>,
    pub(super) port: Option<(Box<str>, Protocol)>,
}

impl Zone {
    /// Whom `name` means, without the suffix. `exactly`: it had the suffix, so that a service
    /// without a stack has to be one; else the asker's own stack comes first.
    pub(super) fn find(&self, asker: &Asker, name: &str, exactly: bool) -> Option<Found<'_>> {
        if let Some((part, hits)) = self.part(asker, name, exactly) {
            return Some(Found { part, hits, port: None });
        }
        if let Some((port, protocol, base)) = location(name) {
            let (part, hits) = self.part(asker, base, exactly)?;
            let of_port = |hit: &Hit<'_>| {
                let mut ports = hit.service.ports.iter().filter(|p| p.protocol == protocol);
                ports.any(|p| port.is_none_or(|port| *p.name == *port))
            };
            if !hits.iter().any(of_port) {
                return None;
            }
            return Some(match port {
                Some(port) => Found { part, hits, port: Some((port.into(), protocol)) },
                None => Found { part, hits: Vec::new(), port: None },
            });
        }
        let is_stack = |network: &_| {
            KeyText::new(*network, &[name]).is_some_and(|k| self.stacks.contains_key(k.as_bytes()))
        };
        let has_more = exactly && asker.networks.iter().any(is_stack);
        has_more.then(|| Found { part: Part::Whole, hits: Vec::new(), port: None })
    }

    /// Services, or parts of them.
    fn part(&self, asker: &Asker, name: &str, exactly: bool) -> Option<(Part, Vec<Hit<'_>>)> {
        let hits = self.hits(asker, name, exactly);
        if !hits.is_empty() {
            return Some((Part::Whole, hits));
        }
        let (part, rest) = part_of(name)?;
        let mut hits = self.hits(asker, rest, exactly);
        if matches!(part, Part::Slot(_)) {
            hits.retain(|hit| hit.every_task(part).next().is_some());
        }
        (!hits.is_empty()).then_some((part, hits))
    }

    /// Services by name, alias or hostname: of the asker's stack, else of none, else of others.
    fn hits(&self, asker: &Asker, name: &str, exactly: bool) -> Vec<Hit<'_>> {
        if exactly {
            return self.owners(asker, name, Whose::Full);
        }
        if let Some(stack) = &asker.stack {
            let hits = self.owners(asker, name, Whose::OfStack(stack));
            if !hits.is_empty() {
                return hits;
            }
        }
        let hits = self.owners(asker, name, Whose::Full);
        if hits.is_empty() { self.owners(asker, name, Whose::OfAnyStack) } else { hits }
    }

    fn owners(&self, asker: &Asker, name: &str, whose: Whose<'_>) -> Vec<Hit<'_>> {
        let mut hits: Vec<Hit<'_>> = Vec::new();
        for network in &asker.networks {
            let key = match whose {
                Whose::Full => KeyText::new(*network, &[name]),
                Whose::OfStack(stack) => KeyText::new(*network, &[name, ".", stack]),
                Whose::OfAnyStack => KeyText::new(*network, &[OF_ANY_STACK, name]),
            };
            let Some(key) = key else { return hits };
            let Some(owners) = self.names.get(key.as_bytes()) else { continue };
            let several = hits.len();
            for id in owners.iter() {
                let has = |hit: &Hit<'_>| hit.service.id == id;
                if hits.len() < HITS_MAX && !hits[..several].iter().any(has) {
                    hits.extend(self.hit(id, *network, name, whose));
                }
            }
        }
        // Nobody takes a service's name by calling a container so.
        if hits.iter().any(|hit| hit.hostname.is_none()) {
            hits.retain(|hit| hit.hostname.is_none());
        }
        hits
    }

    /// What `name` means of a service that has its key.
    fn hit(
        &self,
        id: ServiceId,
        network: NetworkId,
        name: &str,
        whose: Whose<'_>,
    ) -> Option<Hit<'_>> {
        let service = self.services.get(&id)?;
        let attachment = service.attachments.iter().find(|a| a.network == network)?;
        let stack = service.stack.as_deref();
        let own = |mine: &str| match (whose, stack) {
            (Whose::Full, Some(stack)) => {
                let rest = name.strip_prefix(mine).and_then(|rest| rest.strip_prefix('.'));
                rest == Some(stack)
            }
            (Whose::Full, None) | (Whose::OfAnyStack, Some(_)) => name == mine,
            (Whose::OfStack(wanted), Some(stack)) => wanted == stack && name == mine,
            (Whose::OfStack(_) | Whose::OfAnyStack, None) => false,
        };
        if own(&service.name) || attachment.aliases.iter().any(|alias| own(alias)) {
            return Some(Hit { service, attachment, hostname: None });
        }
        let mut hostnames = service.tasks.iter().filter_map(|task| task.hostname.as_deref());
        let hostname = Some(hostnames.find(|hostname| own(hostname))?);
        Some(Hit { service, attachment, hostname })
    }
}

/// Which services are meant.
#[derive(Debug, Clone, Copy)]
enum Whose<'a> {
    /// Those whose full name it is: with their stack, if they have one.
    Full,
    OfStack(&'a str),
    OfAnyStack,
}

/// `tasks.web` and `2.web`.
fn part_of(name: &str) -> Option<(Part, &str)> {
    let (first, rest) = name.split_once('.')?;
    if first == "tasks" {
        return Some((Part::Tasks, rest));
    }
    let plain = first == "0" || !first.starts_with(['0', '+']);
    let slot = first.parse().ok().filter(|_| plain)?;
    Some((Part::Slot(slot), rest))
}

/// `_http._tcp.web`, and `_tcp.web`, which has such names below it.
fn location(name: &str) -> Option<(Option<&str>, Protocol, &str)> {
    let protocol = |label: &str| match label {
        "_tcp" => Some(Protocol::Tcp),
        "_udp" => Some(Protocol::Udp),
        _ => None,
    };
    let (first, rest) = name.split_once('.')?;
    if let Some(protocol) = protocol(first) {
        return Some((None, protocol, rest));
    }
    let port = first.strip_prefix('_')?;
    let (second, base) = rest.split_once('.')?;
    Some((Some(port), protocol(second)?, base))
}

/// In any form of a name: what is not port and protocol, and of that what is not a part.
pub(super) fn bases(name: &str) -> (&str, &str) {
    let host = location(name).map_or(name, |(_, _, base)| base);
    (host, part_of(host).map_or(host, |(_, base)| base))
}
