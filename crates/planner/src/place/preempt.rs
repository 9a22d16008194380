//! Clearing for a task that fits nowhere, made by ending tasks of lower priority.
//!
//! Only for services that ask for it, only for a slot of which nothing works,
//! and only where nothing but reservations stand in the way. Of the nodes where
//! it would do, the one is taken where the victims' highest priority is lowest,
//! then where they are fewest, then where their priorities are lowest together.
//! What is ending anyway counts as gone: who waits for that needs no victim. Of a service that
//! says how much of it is to be available, no more are ended than that leaves.
//!
//! A victim keeps its reservation until it has ended, so its place is held for
//! whom it was ended for: services are looked at by priority, and one that waits
//! counts on its node as if it were there. Nothing of that is stored: each plan
//! finds it again.
//!
//! Never: tasks of equal or higher priority; for a slot whose last task failed
//! lately, which would end others at the pace at which it fails.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;

use warren_model::Time;
use warren_model::device::is_kind;
use warren_model::id::{NodeId, ServiceId, TaskId};
use warren_model::placement::Preempt;
use warren_model::resources::{Resource, Resources};
use warren_model::service::Service;
use warren_model::task::{Desired, Task};
use warren_state::State;
use warren_state::change::{Key as ObjectKey, Mutation};

use super::ask::{Ask, Obstacle};
use super::board::{Board, PENALTY_MS};
use crate::draft::{Hold, Moves};
use crate::nodes::{Nodes, Site};
use crate::rollout::budget;
use crate::service::Pass;
use crate::slot::{is_failed, is_live, is_lost, is_up, slots_of};

/// Links of a chain: a task that is ended may end others, as its service asks. Tasks that could set
/// off longer ones are not ended.
pub(crate) const CASCADE_MAX: u32 = 3;
/// Tasks that are ended for one: whoever needs more asks for a node of its own.
pub(crate) const VICTIMS_MAX: usize = 32;

/// Services whose tasks may be ended for another.
pub(crate) struct Rivals(BTreeMap<ServiceId, Rival>);

struct Rival {
    priority: i16,
    /// Of a service that says how much of it is to be available.
    spare: Option<Spare>,
}

/// How many of its tasks may be ended: of those that work, and of all.
#[derive(Clone, Copy)]
struct Spare {
    up: u32,
    all: u32,
}

impl Spare {
    fn of(state: &State, service: &Service, nodes: &Nodes<'_>) -> Option<Self> {
        let (least, _) = budget(service, nodes)?;
        let (mut up, mut all) = (0u32, 0u32);
        for slot in slots_of(state, service) {
            let there =
                |task: &&&Task| is_live(task) && task.node.is_some() && !is_lost(task, nodes);
            up += u32::from(slot.wanted.iter().any(|task| is_up(task, nodes)));
            all += u32::from(slot.wanted.iter().any(|task| there(&task)));
        }
        Some(Self { up: up.saturating_sub(least), all: all.saturating_sub(least) })
    }

    /// Takes one task off, if that may be.
    fn take(&mut self, is_up: bool) -> bool {
        let may = self.all > 0 && (!is_up || self.up > 0);
        if may {
            self.all -= 1;
            self.up -= u32::from(is_up);
        }
        may
    }
}

impl Rivals {
    pub(crate) fn new(state: &State, service: &Service, nodes: &Nodes<'_>) -> Self {
        let own = service.spec.placement.priority;
        let mut all: Vec<&Service> = state.services().collect();
        all.sort_by_key(|other| other.spec.placement.priority);
        let (mut rivals, mut below) = (BTreeMap::new(), 0);
        for same in all.chunk_by(|a, b| a.spec.placement.priority == b.spec.placement.priority) {
            let mut deepest = below;
            for other in same {
                // How long a chain may be that begins with one of its tasks.
                let links = match other.spec.placement.preempt {
                    Preempt::Never => 0,
                    Preempt::Lower => below + 1,
                };
                deepest = deepest.max(links);
                let priority = other.spec.placement.priority;
                if priority < own && links < CASCADE_MAX {
                    let spare = Spare::of(state, other, nodes);
                    rivals.insert(other.id, Rival { priority, spare });
                }
            }
            below = deepest;
        }
        Self(rivals)
    }

    /// As if none said how much of it is to be available.
    pub(crate) fn careless(mut self) -> Self {
        self.0.values_mut().for_each(|rival| rival.spare = None);
        self
    }

    /// Whether a service says how much of it is to be available.
    pub(crate) fn is_careful(&self, service: ServiceId) -> bool {
        self.0.get(&service).is_some_and(|rival| rival.spare.is_some())
    }
}

/// A task that may be ended.
#[derive(Clone)]
pub(crate) struct Victim<'a> {
    pub(crate) id: TaskId,
    pub(crate) service: ServiceId,
    priority: i16,
    created: Time,
    /// It works.
    up: bool,
    reserve: Cow<'a, Resources>,
}

/// Where there is room once these have ended; none: once what ends anyway has.
pub(crate) struct Clearing<'a> {
    pub(crate) site: usize,
    pub(crate) victims: Vec<Victim<'a>>,
}

/// What is looked at to find room.
pub(crate) struct Search<'s, 'a> {
    pub(crate) state: &'a State,
    pub(crate) moves: &'s Moves,
    pub(crate) nodes: &'s Nodes<'a>,
    pub(crate) board: &'s Board<'a>,
    pub(crate) rivals: &'s Rivals,
}

impl<'a> Search<'_, 'a> {
    /// The best node for a task that fits nowhere, or whether the one that is named would do.
    pub(crate) fn find(&self, ask: &Ask<'a>, only: Option<NodeId>) -> Option<Clearing<'a>> {
        let mut best = None;
        for (at, site) in self.nodes.sites().iter().enumerate() {
            let meant = only.is_none_or(|node| node == site.node.id);
            if !meant || !lacks_room_alone(ask, site, at, self.board) {
                continue;
            }
            let Some(victims) = self.on(site, &ask.reserve) else { continue };
            let highest = victims.iter().map(|victim| victim.priority).max();
            let sum: i64 = victims.iter().map(|victim| i64::from(victim.priority)).sum();
            let price = (highest, victims.len(), sum);
            if best.as_ref().is_none_or(|(known, _)| price < *known) {
                best = Some((price, Clearing { site: at, victims }));
            }
        }
        best.map(|(_, room)| room)
    }

    /// Who would have to end on a node for so much room.
    fn on(&self, site: &Site<'a>, reserve: &Resources) -> Option<Vec<Victim<'a>>> {
        let (mut going, mut candidates) = (Resources::default(), Vec::new());
        for task in self.state.tasks_on(site.node.id).filter(|task| is_live(task)) {
            let Some(template) = self.state.template(task.service, task.template) else { continue };
            if task.desired != Desired::Running || self.moves.is_stopped(task.id) {
                going.add(&freed(site, task, template.reserved()));
            } else if let Some(rival) = self.rivals.0.get(&task.service) {
                let (id, service, created) = (task.id, task.service, task.created);
                let (priority, up) = (rival.priority, is_up(task, self.nodes));
                let reserve = freed(site, task, template.reserved());
                candidates.push(Victim { id, service, priority, created, up, reserve });
            }
        }
        self.spare(&mut candidates);
        let beside = site.defaults.beside(reserve);
        let missing = reserve.iter().chain(beside).filter_map(|(resource, needed)| {
            let has = site.node.capacity(resource).saturating_add(going.get(resource));
            let missing = needed.saturating_sub(has.saturating_sub(site.taken(resource)));
            (missing > 0).then_some((resource, missing))
        });
        pick(&missing.collect::<Vec<_>>(), candidates)
    }
}

impl Search<'_, '_> {
    /// Leaves out those of whose service no more may be missing; what began last may first.
    fn spare(&self, candidates: &mut Vec<Victim<'_>>) {
        let is_careful = |victim: &Victim<'_>| self.rivals.is_careful(victim.service);
        if !candidates.iter().any(is_careful) {
            return;
        }
        let mut left: BTreeMap<ServiceId, Spare> = BTreeMap::new();
        candidates.sort_by_key(|victim| (Reverse(victim.created), victim.id));
        candidates.retain(|victim| {
            let Some(spare) = self.rivals.0.get(&victim.service).and_then(|rival| rival.spare)
            else {
                return true;
            };
            let left = left.entry(victim.service).or_insert_with(|| {
                let mut left = spare;
                // What this plan stopped was counted as there.
                let stopped = self.state.tasks_of(victim.service).filter(|task| {
                    task.desired == Desired::Running && self.moves.is_stopped(task.id)
                });
                stopped.for_each(|task| {
                    let up = is_up(task, self.nodes);
                    left.all = left.all.saturating_sub(1);
                    left.up = left.up.saturating_sub(u32::from(up));
                });
                left
            });
            left.take(victim.up)
        });
    }
}

/// What a task that ends leaves to others: its devices only if the node has them still.
fn freed<'a>(site: &Site<'_>, task: &Task, reserve: Cow<'a, Resources>) -> Cow<'a, Resources> {
    let mut all = match reserve {
        Cow::Borrowed(reserve) => site.defaults.complete(reserve),
        Cow::Owned(reserve) => Cow::Owned(site.defaults.complete(&reserve).into_owned()),
    };
    if !task.devices.is_empty() {
        for (kind, count) in all.to_mut().generic.iter_mut().filter(|(name, _)| is_kind(name)) {
            *count = site.present(kind, task);
        }
    }
    all
}

/// Whether nothing but reservations keep tasks off a node.
fn lacks_room_alone<'a>(ask: &Ask<'a>, site: &Site<'a>, at: usize, board: &Board<'a>) -> bool {
    let (mut lacks, mut other) = (false, false);
    ask.obstacles(site, at, board.share(at), |obstacle| {
        let is_lack = matches!(obstacle, Obstacle::Lacks(_));
        lacks |= is_lack;
        other |= !is_lack;
        is_lack
    });
    lacks && !other
}

/// Of the candidates those that give what is missing: of as low priority as it can be, then few,
/// then those that began last.
fn pick<'a>(
    missing: &[(Resource<'_>, u64)],
    mut candidates: Vec<Victim<'a>>,
) -> Option<Vec<Victim<'a>>> {
    let enough = |sum: &Resources| missing.iter().all(|(of, needed)| sum.get(*of) >= *needed);
    let helps = |victim: &Victim<'_>| missing.iter().any(|(of, _)| victim.reserve.get(*of) > 0);
    candidates.retain(helps);
    candidates.sort_by_key(|victim| (victim.priority, Reverse(victim.created), victim.id));
    let mut sum = Resources::default();
    if enough(&sum) {
        return Some(Vec::new());
    }
    let highest = candidates.iter().find_map(|victim| {
        sum.add(&victim.reserve);
        enough(&sum).then_some(victim.priority)
    })?;
    candidates.retain(|victim| victim.priority <= highest);
    let (mut sum, mut chosen) = (Resources::default(), Vec::new());
    while !enough(&sum) {
        if chosen.len() == VICTIMS_MAX {
            return None;
        }
        // The first of equals: the lowest, then the one that began last.
        let cover = |victim: &Victim<'_>| cover(victim, &sum, missing);
        let (at, _) =
            candidates.iter().enumerate().min_by_key(|(_, victim)| Reverse(cover(victim)))?;
        let victim = candidates.remove(at);
        sum.add(&victim.reserve);
        chosen.push(victim);
    }
    spare(&mut chosen, sum, enough);
    Some(chosen)
}

/// How much of what is still missing a victim gives, in thousandths, summed up.
fn cover(victim: &Victim<'_>, sum: &Resources, missing: &[(Resource<'_>, u64)]) -> u64 {
    let part = |(of, needed): &(Resource<'_>, u64)| {
        let rest = needed.saturating_sub(sum.get(*of));
        let part = u128::from(victim.reserve.get(*of).min(rest)) * 1000 / u128::from(*needed);
        u64::try_from(part).unwrap_or(u64::MAX)
    };
    missing.iter().map(part).sum()
}

/// Lets those go that were not needed after all: the highest and oldest first.
fn spare(chosen: &mut Vec<Victim<'_>>, mut sum: Resources, enough: impl Fn(&Resources) -> bool) {
    chosen.sort_by_key(|victim| (Reverse(victim.priority), victim.created, victim.id));
    chosen.retain(|victim| {
        let mut without = sum.clone();
        without.subtract(&victim.reserve);
        let spared = enough(&without);
        if spared {
            sum = without;
        }
        !spared
    });
}

impl<'a> Pass<'_, 'a> {
    /// Whether tasks may be ended for one of a slot that has no place.
    pub(super) fn may_displace(&mut self, at: usize, template: u32) -> bool {
        if self.service.spec.placement.preempt == Preempt::Never
            || self.hopeless.contains(&template)
        {
            return false;
        }
        let slot = &self.slots[at];
        let nodes = &self.draft.nodes;
        let works = |task: &_| is_live(task) && task.node.is_some() && !is_lost(task, nodes);
        if slot.wanted.iter().any(|task| works(task)) {
            return false;
        }
        let failed = slot.past.first().filter(|task| is_failed(task));
        let until = failed.map(|task| task.status.since.plus_ms(PENALTY_MS));
        match until.filter(|until| *until > self.draft.now) {
            None => true,
            Some(until) => {
                self.wake(until);
                false
            }
        }
    }

    /// Ends tasks of lower priority for one of a slot, or waits for what ends; why it waits.
    pub(super) fn displace(&mut self, at: usize, template: u32) -> Option<String> {
        if !self.may_displace(at, template) {
            return None;
        }
        let key = self.slots[at].key;
        let only = key.node();
        self.board(template);
        let (state, service) = (self.draft.state, self.service);
        let (moves, nodes) = (&self.draft.moves, &self.draft.nodes);
        let rivals = self.rivals.get_or_insert_with(|| Rivals::new(state, service, nodes));
        let board = self.board.as_ref()?;
        let search = Search { state, moves, nodes, board, rivals };
        let ask = board.ask(template)?;
        let (reserve, found) = (ask.reserve.clone(), search.find(ask, only));
        let Some(Clearing { site, victims }) = found else {
            if only.is_none() {
                self.hopeless.insert(template);
            }
            return None;
        };
        // One to make the task.
        if !self.draft.room(victims.len() + 1) {
            return None;
        }
        let slot = key.slot();
        for victim in &victims {
            let Some(other) = state.service(victim.service) else { continue };
            self.draft.note_stop(other, victim.id);
            self.draft.push(Mutation::PreemptTask { id: victim.id, by: service.id, slot });
        }
        let node = self.draft.nodes.site(site).node;
        if !victims.is_empty() {
            self.draft.expect(ObjectKey::Node(node.id));
            self.draft.look_again();
        }
        // Nobody after it in this plan may have what it waits for.
        self.draft.nodes.add_load(site, Some(&reserve));
        self.draft.held.push(Hold { site, service, slot });
        self.change(site, |_| {});
        Some(waits(&node.description.hostname))
    }
}

pub(crate) fn waits(host: &str) -> String {
    format!("waits until tasks of lower priority have ended on {host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each candidate is `priority:memory:age`, in the order of their ids.
    #[track_caller]
    fn check(missing: u64, candidates: &str, expected: &str) {
        let words: Vec<Vec<i64>> = candidates
            .split_whitespace()
            .map(|word| word.split(':').map(|part| part.parse().unwrap()).collect())
            .collect();
        let reserves: Vec<Resources> = words
            .iter()
            .map(|parts| Resources {
                memory_bytes: u64::try_from(parts[1]).unwrap(),
                ..Resources::default()
            })
            .collect();
        let victims =
            words.iter().zip(&reserves).enumerate().map(|(at, (parts, reserve))| Victim {
                id: TaskId::from_bytes([u8::try_from(at).unwrap(); 10]),
                service: ServiceId::from_bytes([0; 10]),
                priority: i16::try_from(parts[0]).unwrap(),
                created: Time(1000 - u64::try_from(parts[2]).unwrap()),
                up: true,
                reserve: Cow::Borrowed(reserve),
            });
        let picked = pick(&[(Resource::Memory, missing)], victims.collect());
        let got = picked.map_or_else(
            || "none".to_owned(),
            |picked| {
                let mut at: Vec<String> =
                    picked.iter().map(|victim| victim.id.as_bytes()[0].to_string()).collect();
                at.sort();
                at.join(" ")
            },
        );
        assert_eq!(got, expected, "{candidates}");
    }

    #[test]
    fn victims() {
        check(0, "0:5:1", "");
        check(5, "0:4:1", "none");
        check(5, "", "none");
        // The lowest that will do, however many, before any of a higher priority.
        check(4, "5:4:1 0:2:1 0:2:2", "1 2");
        // Of those as few as it takes, then those that began last.
        check(4, "0:1:1 0:1:1 0:1:1 0:1:1 0:4:9", "4");
        check(4, "0:4:9 0:4:1", "1");
        // Where a higher one is needed anyway, a lower one may be spared.
        check(8, "0:1:1 5:8:1", "1");
        check(9, "0:1:1 5:8:1 5:8:2", "0 1");
        check(1, "0:0:1 0:1:1", "1");
    }

    #[test]
    fn no_more_than_so_many() {
        check(33, &"0:1:1 ".repeat(40), "none");
    }
}
