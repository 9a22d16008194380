//! Spreading what runs over nodes that came later: a few tasks at a time.
//!
//! A node that joined, came back or was activated (`Node::opened`) may take
//! tasks that were placed before it could: only such tasks are moved, and only
//! to such nodes. So nothing moves without an event, each task moves at most
//! once for each event, and it ends: no timer looks for work. A move must lessen
//! a difference of more than one task, between nodes or, first, between values
//! of what is spread over, and may not lead to a node that is liked less.
//!
//! The new task is up before the old one ends, and nothing is moved that must
//! end before its successor starts, nor while an update is under way, too few
//! of the service work, or it packs nodes full. One that does not come up is
//! given up, and its node is not tried again before it opens anew.
//!
//! Nothing is remembered between passes: all of it follows from tasks and nodes.

use std::collections::{BTreeMap, BTreeSet};

use warren_model::Time;
use warren_model::health::HealthState;
use warren_model::moving::{Cause, Rebalance};
use warren_model::placement::Strategy;
use warren_model::service::{Mode, OnDisconnect, Service, UpdatePhase};
use warren_model::task::Task;
use warren_state::State;

use crate::draft::earlier;
use crate::nodes::Nodes;
use crate::place::PENALTY_MS;
use crate::rollout::Progress;
use crate::service::Pass;
use crate::slot::{
    Renewed, Slot, Wanted, is_failed, is_live, is_lost, is_stop_first, is_up, wanted,
};

/// Moves of one service at a time: with the usual handful of replicas more would be felt.
pub(crate) const MOVES_OF_SERVICE_MAX: usize = 2;
/// Moves of the whole cluster at a time: as many containers start at once on a node that came.
pub(crate) const MOVES_MAX: usize = 8;
/// How long a node must have been open before anything is moved to it: one that comes and goes
/// every few seconds attracts nothing.
pub(crate) const COOL_MS: u64 = 5_000;
/// How long a moved task must have been up before it counts as done; as an update's `monitor`.
pub(crate) const SETTLE_MS: u64 = 1_000;
/// How long a new task may take to come up: a large image over a slow line. Then it is given up.
pub(crate) const PATIENCE_MS: u64 = 300_000;

/// Whether a task was made to move another.
pub(crate) fn is_move(task: &Task) -> bool {
    task.origin.is_some_and(|origin| origin.cause == Cause::Balance)
}

/// When a move is given up that does not come up.
pub(crate) fn given_up_at(task: &Task) -> Time {
    task.created.plus_ms(PATIENCE_MS)
}

/// Whether a task may still come up to take over from an older one that works.
pub(crate) fn is_taking_over(task: &Task, current: &Task, nodes: &Nodes<'_>, now: Time) -> bool {
    let crashed = task.status.attempt > 1 && task.status.exit.is_some();
    is_move(task)
        && task.created > current.created
        && task.template == current.template
        && is_live(task)
        && !is_lost(task, nodes)
        && !crashed
        && task.node.and_then(|node| nodes.get(node)).is_some_and(|site| site.is_lasting())
        && now < given_up_at(task)
}

/// Whether a move still counts against the limits, and until when if nothing happens.
fn in_flight(task: &Task, now: Time) -> Option<Time> {
    let until = match task.status.ready_since() {
        Some(since) => since.plus_ms(SETTLE_MS).min(given_up_at(task)),
        None => given_up_at(task),
    };
    (is_move(task) && is_live(task) && now < until).then_some(until)
}

/// Moves under way in the whole cluster, and when the first of them ends if nothing happens.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Traffic {
    count: usize,
    until: Option<Time>,
}

impl Traffic {
    /// By a look at every task: only asked for when something could be moved.
    pub(crate) fn of(state: &State, now: Time) -> Self {
        let mut traffic = Self::default();
        let wanted = |task: &&Task| task.desired == warren_model::task::Desired::Running;
        for until in state.tasks().filter(wanted).filter_map(|task| in_flight(task, now)) {
            traffic.count += 1;
            traffic.until = earlier(traffic.until, Some(until));
        }
        traffic
    }

    pub(crate) fn add(&mut self, now: Time) {
        self.count += 1;
        self.until = earlier(self.until, Some(now.plus_ms(PATIENCE_MS)));
    }
}

/// Whether a service is one whose tasks may be moved for balance at all.
pub(crate) fn applies(state: &State, service: &Service) -> bool {
    let Some(cluster) = state.cluster() else { return false };
    let updating = service.update.as_ref().is_some_and(|u| u.phase != UpdatePhase::Done);
    let strategy = service.spec.placement.strategy.unwrap_or(cluster.strategy);
    // What a service keeps in volumes of a node does not move with it.
    let may_move = match service.spec.moving.rebalance {
        Rebalance::Auto => !service.spec.task.keeps_data(),
        Rebalance::Never => false,
        Rebalance::Always => true,
    };
    cluster.rebalance != Rebalance::Never
        && may_move
        && strategy == Strategy::Spread
        // Others are tied to their node, or must never run twice.
        && matches!(service.spec.on_disconnect, OnDisconnect::ReplaceAfter { .. })
        && matches!(service.spec.mode, Mode::Replicated { .. })
        && !updating
        && !service.removing
        && !is_stop_first(service)
}

/// Tasks of a service over nodes, each slot counted once: where it is going to be.
pub(crate) struct Spread {
    /// By position of the node; none where there are none.
    on: BTreeMap<usize, u32>,
    /// Values of what is spread over, of every node; empty without such.
    paths: Vec<Vec<String>>,
    below: BTreeMap<Vec<String>, u32>,
}

impl Spread {
    pub(crate) fn new(
        service: &Service,
        nodes: &Nodes<'_>,
        sites: impl Iterator<Item = usize>,
    ) -> Self {
        let levels = &service.spec.placement.spread;
        let paths = match levels.is_empty() {
            true => Vec::new(),
            false => {
                let values = |site: &crate::nodes::Site<'_>| {
                    levels.iter().map(|level| level.value(site.node)).collect()
                };
                nodes.sites().iter().map(values).collect()
            }
        };
        let mut spread = Self { on: BTreeMap::new(), paths, below: BTreeMap::new() };
        sites.for_each(|site| spread.add(site));
        spread
    }

    fn add(&mut self, site: usize) {
        *self.on.entry(site).or_default() += 1;
        for depth in 1..=self.path(site).len() {
            *self.below.entry(self.path(site)[..depth].to_vec()).or_default() += 1;
        }
    }

    fn take(&mut self, site: usize) {
        if let Some(count) = self.on.get_mut(&site) {
            *count = count.saturating_sub(1);
        }
        for depth in 1..=self.path(site).len() {
            let path = self.path(site)[..depth].to_vec();
            if let Some(count) = self.below.get_mut(&path) {
                *count = count.saturating_sub(1);
            }
        }
    }

    fn path(&self, site: usize) -> &[String] {
        self.paths.get(site).map_or(&[], Vec::as_slice)
    }

    fn count(&self, site: usize) -> u32 {
        self.on.get(&site).copied().unwrap_or_default()
    }

    fn below(&self, path: &[String]) -> u32 {
        self.below.get(path).copied().unwrap_or_default()
    }

    /// Whether a move makes it more even: the first difference between the two nodes is of more
    /// than one task.
    fn gains(&self, from: usize, to: usize) -> bool {
        let (there, here) = (self.path(from), self.path(to));
        for depth in 1..=there.len().min(here.len()) {
            if there[..depth] != here[..depth] {
                return self.below(&there[..depth]) > self.below(&here[..depth]) + 1;
            }
        }
        self.count(from) > self.count(to) + 1
    }

    /// What is taken first of nodes that are liked as much: less is better.
    fn load(&self, site: usize) -> Vec<u32> {
        let path = self.path(site);
        let branches = (1..=path.len()).map(|depth| self.below(&path[..depth]));
        branches.chain([self.count(site)]).collect()
    }

    /// Whether any task could move to a node that opened after it was made; `oldest` is the
    /// earliest of the service's tasks. For a look at a glance: what nodes have room is not asked.
    pub(crate) fn is_uneven(&self, nodes: &Nodes<'_>, oldest: Time) -> bool {
        let mut targets = openings(nodes, oldest);
        targets.any(|to| self.on.keys().any(|from| self.gains(*from, to)))
    }
}

/// Nodes that take tasks, and began to after `since`.
fn openings(nodes: &Nodes<'_>, since: Time) -> impl Iterator<Item = usize> {
    let sites = nodes.sites().iter().enumerate();
    // One that this very plan lets in has not opened yet.
    let open = sites.filter(move |(_, site)| site.node.is_open() && site.is_eligible());
    let open = open.filter(move |(_, site)| site.node.opened > since);
    open.map(|(at, _)| at)
}

/// Where each slot's task is going to stay.
fn sites<'s>(slots: &'s [Slot<'_>], nodes: &'s Nodes<'_>) -> impl Iterator<Item = usize> {
    slots.iter().filter_map(|slot| {
        let mut live = slot.wanted.iter().filter(|task| is_live(task));
        // Newest first: of a move under way the one that takes over.
        live.find_map(|task| nodes.position(task.node?))
    })
}

/// Begins moves, as many as may be.
pub(crate) fn balance(pass: &mut Pass<'_, '_>, progress: Progress) {
    let calm = progress == Progress::Done && !pass.unplaced;
    if !calm || !applies(pass.draft.state, pass.service) {
        return;
    }
    let live = pass.slots.iter().flat_map(|slot| &slot.wanted).filter(|task| is_live(task));
    let Some(oldest) = live.map(|task| task.created).min() else { return };
    if pass.draft.nodes.newest_opening() <= oldest {
        return;
    }
    if pass.slots.iter().any(|slot| slot.renewed != Renewed::No) {
        // What this very plan placed is not among the tasks that are counted here.
        pass.is_held_back = true;
        return;
    }
    let spread =
        Spread::new(pass.service, &pass.draft.nodes, sites(&pass.slots, &pass.draft.nodes));
    if !spread.is_uneven(&pass.draft.nodes, oldest) || !is_available(pass) {
        return;
    }
    await_pardon(pass);
    begin(pass, spread, oldest);
}

/// Whether as many slots work as the service wants.
fn is_available(pass: &Pass<'_, '_>) -> bool {
    let Some(least) = pass.service.spec.moving.min_available else { return true };
    let Mode::Replicated { replicas } = pass.service.spec.mode else { return true };
    let up = |task: &Task| is_up(task, &pass.draft.nodes) && !pass.draft.moves.is_stopped(task.id);
    let works = |slot: &&Slot<'_>| slot.wanted.iter().any(|task| up(task));
    pass.slots.iter().filter(works).count() >= least.of(replicas) as usize
}

fn begin(pass: &mut Pass<'_, '_>, mut spread: Spread, oldest: Time) {
    let mut left = MOVES_OF_SERVICE_MAX.saturating_sub(under_way(pass));
    let refused = refused(pass);
    while let Some(Move { slot, from, to }) = choose(pass, &spread, oldest, &refused) {
        if left == 0 || !pass.draft.room(2) {
            return;
        }
        let traffic = pass.draft.traffic();
        if traffic.count >= MOVES_MAX {
            if let Some(until) = traffic.until {
                pass.wake(until);
            }
            // Others' moves end without anything of this service changing.
            pass.depends_on_others = true;
            return;
        }
        if !pass.create_on(slot, pass.service.template, to) {
            return;
        }
        left -= 1;
        pass.draft.note_move();
        spread.take(from);
        spread.add(to);
    }
}

/// Moves of this service that are not over; asks to be called again when one may be.
fn under_way(pass: &mut Pass<'_, '_>) -> usize {
    let mut count = 0;
    for at in 0..pass.slots.len() {
        let slot = &pass.slots[at];
        let until = slot.wanted.iter().find_map(|task| in_flight(task, pass.draft.now));
        let moved = slot.wanted.first().is_some_and(|task| is_move(task));
        let stopping = moved && slot.is_stopping(&pass.draft.nodes);
        count += usize::from(until.is_some() || stopping);
        if let Some(until) = until {
            pass.wake(until);
        }
    }
    count
}

/// Nodes where a move of this service was given up since they opened.
fn refused(pass: &Pass<'_, '_>) -> BTreeSet<usize> {
    let nodes = &pass.draft.nodes;
    let is_there = |slot: &&Slot<'_>| matches!(wanted(pass.service, slot.key, nodes), Wanted::Yes);
    let slots = pass.slots.iter().filter(is_there);
    let tried = slots.flat_map(|slot| &slot.past);
    let tried = tried.filter(|task| is_refusal(task, pass.service, nodes));
    tried.filter_map(|task| nodes.position(task.node?)).collect()
}

/// Whether a task that is not wanted any more tells that its node was tried since it opened, in
/// vain. Such are kept, whatever the limit of history: one for each slot and node at most.
pub(crate) fn is_refusal(task: &Task, service: &Service, nodes: &Nodes<'_>) -> bool {
    let opened = task.node.and_then(|node| nodes.get(node)).map(|site| site.node.opened);
    let status = &task.status;
    let healthy = status.health.is_none_or(|health| health.state == HealthState::Healthy);
    let worked = status.started.is_some() && healthy && status.attempt <= 1 && !is_failed(task);
    is_move(task)
        && !worked
        && task.template == service.template
        && opened.is_some_and(|opened| opened < task.created)
}

struct Move {
    slot: usize,
    from: usize,
    to: usize,
}

/// The move that is best now; asks to be called again if one only has to wait.
fn choose(
    pass: &mut Pass<'_, '_>,
    spread: &Spread,
    oldest: Time,
    refused: &BTreeSet<usize>,
) -> Option<Move> {
    let mut targets: Vec<usize> = openings(&pass.draft.nodes, oldest).collect();
    targets.retain(|to| !refused.contains(to));
    targets.sort_by_cached_key(|to| (spread.load(*to), *to));
    let mut sources: Vec<usize> = spread.on.keys().copied().collect();
    sources.sort_by_cached_key(|from| (std::cmp::Reverse(spread.load(*from)), *from));
    let mut waits = None;
    for to in targets {
        let opened = pass.draft.nodes.site(to).node.opened;
        let cool = opened.plus_ms(COOL_MS);
        for from in sources.iter().copied().filter(|from| spread.gains(*from, to)) {
            let Some(slot) = movable(pass, from, opened) else { continue };
            // First: what other services do meanwhile changes no waiting.
            if pass.draft.now < cool {
                waits = earlier(waits, Some(cool));
                break;
            }
            if !pass.likes(slot, pass.service.template, from, to) {
                // As of what waits for a place: a node may get room.
                (pass.unplaced, pass.is_held_back) = (true, true);
                pass.depends_on_others |= pass.has_neighbours(pass.service.template);
                continue;
            }
            return Some(Move { slot, from, to });
        }
    }
    if let Some(at) = waits {
        pass.wake(at);
    }
    None
}

/// Asks to be called again when a node is not avoided any more because tasks failed there.
fn await_pardon(pass: &mut Pass<'_, '_>) {
    let now = pass.draft.now;
    let past = pass.slots.iter().flat_map(|slot| slot.tasks()).filter(|task| is_failed(task));
    let forgotten = past.map(|task| task.status.since.plus_ms(PENALTY_MS));
    if let Some(at) = forgotten.filter(|at| *at > now).min() {
        pass.wake(at);
    }
}

/// The slot whose task on a node is moved first: the last made is the least proven.
fn movable(pass: &Pass<'_, '_>, from: usize, opened: Time) -> Option<usize> {
    let nodes = &pass.draft.nodes;
    let one = |at: usize| {
        let slot = &pass.slots[at];
        let [task] = slot.wanted[..] else { return None };
        let here = nodes.position(task.node?) == Some(from);
        let fine = is_up(task, nodes) && is_live(task) && task.template == pass.service.template;
        // One move of a slot at a time: it counts once.
        let busy = slot.is_stopping(nodes) || in_flight(task, pass.draft.now).is_some();
        let free = slot.renewed == Renewed::No && !busy;
        let moves = here && fine && free && task.created < opened;
        moves.then_some((task.created, at))
    };
    (0..pass.slots.len()).filter_map(one).max().map(|(_, at)| at)
}
