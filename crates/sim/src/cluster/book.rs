//! What was seen so far, and what must never be seen.
//!
//! Pure: looks come in, the first thing that does not hold comes out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use warren_model::network::{Vip, VipHolder};
use warren_model::node::NodeStatus;
use warren_model::{NodeId, NodeTable, ServiceId, TaskId, Time};
use warren_planner::SUSPICION_MS;
use warren_state::State;

use super::laws::Laws;
use super::net::Place;
use super::plan::{LIE, SHARED, TOKEN, is_sentinel};
use crate::machine::Machine;

pub(crate) type Held = Result<(), String>;

/// How much a window may be shorter than it should: clocks of hosts differ by so much of it.
const DRIFT_MS: u64 = 4;

/// A leader without a majority for a second leads no more, so a decision is written within that;
/// a beat so long before shows that it was a wrong one.
const WRITTEN_MS: std::ops::Range<u64> = 1_000..2_000;

/// Elections that elect nobody, one after the other: with a vote asked for before it is cast, who
/// cannot win does not begin one, and ties are broken soon.
const TERMS_MAX: u64 = 8;

/// A container that runs.
type Copy = (ServiceId, u32, TaskId);

/// A write that somebody was told to be done.
#[derive(Debug, Clone)]
pub(crate) struct Ack {
    pub(crate) service: String,
    pub(crate) token: String,
    pub(crate) revision: u64,
}

#[derive(Default)]
pub(crate) struct Book {
    /// Of the state at that revision and time, wherever it was.
    checksums: BTreeMap<(u64, Time), u64>,
    /// Who led in a term.
    terms: BTreeMap<u64, u64>,
    /// The last term that a manager led in.
    led: BTreeMap<u64, u64>,
    /// Salts of segments of a manager's log, and which segments.
    salts: BTreeMap<(u64, [u8; 32]), u64>,
    newest: u64,
    /// Writes of the service that people contend for, in order.
    shared: Vec<String>,
    /// In which term, and since when.
    leading: BTreeMap<Place, (u64, u64)>,
    /// Of those that lead now, since when without a pause.
    leaders: BTreeMap<Place, u64>,
    /// When a stopped host went on.
    resumed: BTreeMap<Place, u64>,
    /// When a host's manager was last reached by a beat of a node.
    beats: BTreeMap<(Place, NodeId), u64>,
    down: BTreeMap<Place, BTreeSet<NodeId>>,
    /// Revision of a service when it got a token.
    tokens: BTreeMap<(String, String), u64>,
    copies: BTreeMap<Place, Vec<Copy>>,
    /// Who had a virtual IP last, and when somebody was last seen with it.
    vips: BTreeMap<Ipv4Addr, (VipHolder, Option<Time>)>,
    /// Of which service a task is and at which address, for all that ever were.
    tasks: BTreeMap<TaskId, (ServiceId, Option<Ipv4Addr>)>,
    /// Table that a host's data plane was last seen with.
    tables: BTreeMap<Place, Arc<NodeTable>>,
    pub(crate) acks: Vec<Ack>,
    pub(crate) laws: Laws,
    /// Copies of one slot on two nodes are wanted: somebody drains nodes.
    pub(crate) drains: bool,
}

impl Book {
    /// A replica's state after a change.
    pub(crate) fn look(&mut self, place: Place, name: &str, view: &State, at_ms: u64) -> Held {
        let (key, sum) = ((view.revision(), view.time()), view.checksum());
        let known = self.checksums.get(&key).copied();
        if known.is_none() {
            let wrong = view.check();
            if !wrong.is_empty() {
                return Err(format!("{name}: the state does not hold: {}", wrong.join("; ")));
            }
            self.checksums.insert(key, sum);
            self.look_at_tokens(view)?;
            self.look_at_vips(view)?;
            self.look_at_tasks(view);
            self.look_at_shared(view)?;
            self.laws.look(view)?;
            let lie = view.tasks().find(|task| task.status.error.as_deref() == Some(LIE));
            if let Some(task) = lie {
                return Err(format!(
                    "{name}: took a lie about {}, of a node it is not on",
                    task.id
                ));
            }
        } else if known != Some(sum) {
            return Err(format!("{name}: replicas differ at revision {}", view.revision()));
        }
        self.look_at_nodes(place, name, view, at_ms)
    }

    /// Each write of a user carries a token of its own: it is applied once.
    fn look_at_tokens(&mut self, view: &State) -> Held {
        // A removal is another write, and the planner that finishes it none of anybody's: a replica
        // that catches up shows the write itself later.
        for service in view.services().filter(|service| !service.removing) {
            let Some(token) = service.spec.labels.get(TOKEN) else { continue };
            let key = (service.spec.name.to_string(), token.clone());
            let first = *self.tokens.entry(key).or_insert_with(|| u64::from(service.number));
            if first != u64::from(service.number) {
                return Err(format!(
                    "write {token} of {} was applied at revision {first} and again at {}",
                    service.spec.name, service.revision
                ));
            }
        }
        Ok(())
    }

    /// A replica that catches up shows states that nobody saw before, from before a task had its
    /// address: what was seen of it later holds.
    fn look_at_tasks(&mut self, view: &State) {
        for task in view.tasks() {
            let known = self.tasks.entry(task.id).or_insert((task.service, None));
            known.1 = task.address.or(known.1);
        }
    }

    /// A virtual IP means one thing at a time, and after that nothing for a while.
    fn look_at_vips(&mut self, view: &State) -> Held {
        // Replicas lag behind each other: only what is newest goes on from what was seen.
        if view.revision() < self.newest {
            return Ok(());
        }
        for vip in view.vips() {
            let known = self.vips.get(&vip.address).copied();
            if let Some((before, released)) = known.filter(|(before, _)| *before != vip.holder) {
                let address = vip.address;
                let Some(released) = released else {
                    return Err(format!("{address} went from {before:?} to {:?}", vip.holder));
                };
                let rested = view.time().since_ms(released);
                if rested < Vip::QUARANTINE_MS {
                    return Err(format!("{address} rested for {rested} ms after {before:?}"));
                }
            }
            self.vips.insert(vip.address, (vip.holder, vip.released));
        }
        Ok(())
    }

    /// What a host's data plane goes by: nothing of networks that it is not on, and no task as
    /// another service's, or at another's address.
    pub(crate) fn knows(&mut self, place: Place, table: &Arc<NodeTable>) -> Held {
        if self.tables.get(&place).is_some_and(|known| Arc::ptr_eq(known, table)) {
            return Ok(());
        }
        self.tables.insert(place, Arc::clone(table));
        let mut vips = BTreeMap::new();
        for (id, service) in &table.services {
            let name = &service.name;
            let foreign = service.on.iter().find(|on| !table.networks.contains_key(&on.network));
            if let Some(on) = foreign {
                let network = on.network;
                return Err(format!("host {place} knows {name} on {network}, which it is not on"));
            }
            if service.on.is_empty() && service.mesh_ports().next().is_none() {
                return Err(format!("host {place} knows {name}, which is none of its business"));
            }
            if service.on.is_empty() && service.tasks.iter().any(|task| !task.ready) {
                return Err(format!("host {place} knows more than the backends of {name}"));
            }
            for on in &service.on {
                let slots = on.slots.iter().map(|(_, address)| *address);
                for address in on.vip.into_iter().chain(slots) {
                    if let Some(other) = vips.insert(address, (*id, on.network)) {
                        return Err(format!("host {place}: {address} is of {other:?} and {name}"));
                    }
                }
            }
            for task in &service.tasks {
                match self.tasks.get(&task.task) {
                    Some((of, at)) if of == id && *at == Some(task.address) => {}
                    known => {
                        let (task, address) = (task.task, task.address);
                        return Err(format!(
                            "host {place} knows {task} at {address} of {name}, it is {known:?}"
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// Each write says which one it is made from: it replaces that one and no other.
    fn look_at_shared(&mut self, view: &State) -> Held {
        if view.revision() <= self.newest {
            return Ok(());
        }
        self.newest = view.revision();
        let shared = view.service_by_name(SHARED).and_then(|s| s.spec.labels.get(TOKEN));
        let Some(text) = shared else { return Ok(()) };
        let (token, base) = text.split_once('<').unwrap_or((text, ""));
        let last = self.shared.last().map_or("", String::as_str);
        if token == last {
            return Ok(());
        }
        // Between two looks there may have been more than one write.
        if base != last && self.shared.iter().any(|known| known == base) {
            return Err(format!(
                "write {token} of {SHARED} is made from {base}, it replaced {last}"
            ));
        }
        self.shared.push(token.to_owned());
        Ok(())
    }

    /// A segment of a manager's log: no other has its key.
    pub(crate) fn segment(&mut self, manager: u64, sequence: u64, salt: [u8; 32]) -> Held {
        let known = *self.salts.entry((manager, salt)).or_insert(sequence);
        if known != sequence {
            return Err(format!(
                "manager {manager} seals segments {known} and {sequence} of its log with one key"
            ));
        }
        Ok(())
    }

    /// A manager begins again with what it remembers.
    pub(crate) fn begins(&self, number: u64, term: u64) -> Held {
        match self.led.get(&number) {
            Some(led) if term < *led => {
                Err(format!("manager {number} led in term {led}, and remembers only {term}"))
            }
            _ => Ok(()),
        }
    }

    /// A leader that takes a node for dead has listened for a whole window itself.
    fn look_at_nodes(&mut self, place: Place, name: &str, view: &State, at_ms: u64) -> Held {
        let down = view.nodes().filter(|node| node.status == NodeStatus::Down);
        let down: BTreeSet<NodeId> = down.map(|node| node.id).collect();
        let before = self.down.insert(place, down.clone());
        let (Some((_, since)), Some(before)) = (self.leading.get(&place), before) else {
            return Ok(());
        };
        let Some(reigns_since) = self.leaders.get(&place) else { return Ok(()) };
        // What it decided before it lost its majority is written when it has one again.
        let is_new = at_ms.saturating_sub(*reigns_since) < SUSPICION_MS;
        let resumed = self.resumed.get(&place).copied().unwrap_or(0);
        if at_ms <= resumed {
            // It stands still: what is written now was decided before.
            return Ok(());
        }
        // It was stopped with a decision under way, and found its majority again in the same term.
        let regained = is_new && *since < resumed && resumed < *reigns_since;
        let began = if regained { *since } else { (*since).max(resumed) };
        for node in down.difference(&before) {
            // Created so: nobody has heard of it yet.
            if view.node(*node).is_some_and(|node| node.revision == view.revision())
                && at_ms.saturating_sub(began) + DRIFT_MS < SUSPICION_MS
            {
                let listened = at_ms.saturating_sub(began);
                return Err(format!(
                    "{name} takes {node} for dead after it listened for {listened} ms"
                ));
            }
            // What was decided before the last beat may be written after it, but not for long.
            let silent = self.beats.get(&(place, *node)).map(|heard| at_ms.saturating_sub(*heard));
            if let Some(silent) = silent.filter(|ms| !is_new && WRITTEN_MS.contains(ms)) {
                return Err(format!("{name} heard {node} {silent} ms before it took it for dead"));
            }
        }
        Ok(())
    }

    pub(crate) fn leads(&mut self, place: Place, number: u64, term: u64, at_ms: u64) -> Held {
        self.leaders.entry(place).or_insert(at_ms);
        let began = self.leading.entry(place).or_insert((term, at_ms));
        if began.0 != term {
            *began = (term, at_ms);
        }
        let before = self.terms.last_key_value().map_or(0, |(term, _)| *term);
        if term > before + TERMS_MAX {
            return Err(format!("nobody was elected from term {before} to {term}"));
        }
        self.led.insert(number, term);
        // In one term a higher number may follow a lower one, never the other way round.
        let known = self.terms.insert(term, number).unwrap_or(number);
        if known > number {
            return Err(format!("manager {number} leads in term {term} after {known}"));
        }
        Ok(())
    }

    pub(crate) fn leads_no_more(&mut self, place: Place) {
        self.leaders.remove(&place);
    }

    pub(crate) fn resumed(&mut self, place: Place, at_ms: u64) {
        self.resumed.insert(place, at_ms);
    }

    pub(crate) fn heard(&mut self, place: Place, node: NodeId, at_ms: u64) {
        self.beats.insert((place, node), at_ms);
    }

    /// What runs on a host now.
    pub(crate) fn runs(&mut self, place: Place, machine: &Machine) -> Held {
        let copies = machine.running().map(|(task, c)| (c.service, c.slot, task));
        let copies: Vec<Copy> = copies.collect();
        if self.copies.get(&place) == Some(&copies) {
            return Ok(());
        }
        let (mut addresses, mut devices) = (BTreeMap::new(), BTreeMap::new());
        // What is not assigned any more is on its way out. An agent that began alone, with a set of
        // a moment before its end, may run such a task for as long as that takes.
        let assigned = machine.running().filter(|(task, _)| machine.core.set().holds(*task));
        for (task, container) in assigned {
            self.laws.is_given(task, &container.params)?;
            for device in container.devices.iter() {
                if let Some(other) = devices.insert(device, task).filter(|other| *other != task) {
                    return Err(format!("{other} and {task} both have device {device}"));
                }
            }
            let Some(address) = container.address else { continue };
            let other = addresses.insert(address, (task, container));
            if let Some((other, older)) = other.filter(|(other, _)| *other != task) {
                return Err(format!(
                    "{other} (since {}) and {task} (since {}) both run at {address}",
                    older.started.0, container.started.0
                ));
            }
        }
        for (elsewhere, others) in self.copies.iter().filter(|(other, _)| **other != place) {
            for (service, slot, task) in &copies {
                let twice = others.iter().find(|other| {
                    let same_slot = (other.0, other.1) == (*service, *slot);
                    other.2 == *task || (same_slot && is_sentinel(*service) && !self.drains)
                });
                if let Some(other) = twice {
                    return Err(format!(
                        "slot {slot} of {service} runs on hosts {place} ({task}) and {elsewhere} \
                         ({})",
                        other.2
                    ));
                }
            }
        }
        self.copies.insert(place, copies);
        Ok(())
    }
}
