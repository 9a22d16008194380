//! A changed template, slot by slot: which to renew next.
//!
//! Start-first keeps the old task until the new one is up, which is to run and to be healthy; stop-first, and any
//! service with host-mode ports, ends the old one first. At most `parallelism`
//! slots are in flight, each counted until its new task has been up for `delay`.
//! Until one new task is good (`watch`), no old one ends for a new one and no
//! further slot begins: what works nowhere costs no replica that works. A slot
//! whose new task failed, as far as that is allowed, is not in flight.
//! While the update is paused nothing further is touched. A node that drains
//! outdates what is on it, so tasks move away at the same pace (and not while an
//! update is paused).
//!
//! Nothing is remembered between passes: all of it follows from the tasks.

use std::cmp::Reverse;

use warren_model::service::{Mode, OnDisconnect, Service, TaskTemplate, UpdatePhase, UpdatePolicy};
use warren_model::task::{Task, TaskState};

use crate::nodes::{Nodes, Site};
use crate::service::Pass;
use crate::slot::{
    Key, Renewed, Slot, Wanted, is_failed, is_live, is_lost, is_outdated, is_stop_first, is_up,
    wanted, wanted_keys, wants_successor,
};
use crate::watch::Watch;
use crate::{balance, hooks};

/// How far the rollout of a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Every slot has the current template.
    Done,
    Moving,
    /// It is paused, or waits for the command before it.
    Halted,
}

pub(crate) fn progress<'a>(
    slots: impl IntoIterator<Item = &'a Slot<'a>>,
    service: &Service,
    nodes: &Nodes<'_>,
) -> Progress {
    let (mut unfinished, mut older) = (false, false);
    for slot in slots {
        let Wanted::Yes = wanted(service, slot.key, nodes) else { continue };
        unfinished |= slot.wanted.iter().any(|task| is_outdated(task, service, nodes));
        older |= slot.has_older(service);
    }
    let paused = service.update.as_ref().is_some_and(|u| u.phase == UpdatePhase::Paused);
    match (unfinished, older && paused || hooks::is_awaited(service)) {
        (false, _) => Progress::Done,
        (true, false) => Progress::Moving,
        (true, true) => Progress::Halted,
    }
}

/// An update that is watched, and whether one of its new tasks was good.
#[derive(Clone, Copy)]
struct Trust {
    watch: Watch,
    earned: bool,
}

fn trust(pass: &Pass<'_, '_>) -> Option<Trust> {
    let watch = Watch::of(pass.service, &pass.slots)?;
    let earned = watch.is_trusted(&pass.slots, &pass.draft.nodes, pass.draft.now);
    Some(Trust { watch, earned })
}

pub(crate) fn advance(pass: &mut Pass<'_, '_>) -> Progress {
    let trust = trust(pass);
    for at in 0..pass.slots.len() {
        hand_over(pass, at, trust);
    }
    let progress = progress(&pass.slots, pass.service, &pass.draft.nodes);
    match progress {
        Progress::Done | Progress::Halted => {}
        Progress::Moving => renew_some(pass),
    }
    progress
}

/// Goes on after replacing: a failed task was in flight until its successor had to wait for a
/// place.
pub(crate) fn resume(pass: &mut Pass<'_, '_>, progress: Progress) {
    match progress {
        Progress::Done | Progress::Halted => {}
        Progress::Moving => renew_some(pass),
    }
}

/// Ends what the current task of a slot makes superfluous.
fn hand_over(pass: &mut Pass<'_, '_>, at: usize, trust: Option<Trust>) {
    let (slot, nodes) = (&pass.slots[at], &pass.draft.nodes);
    let Wanted::Yes = wanted(pass.service, slot.key, nodes) else { return };
    let Some(current) = slot.current(pass.service, nodes) else { return };
    let proven = trust
        .is_none_or(|trust| trust.earned || trust.watch.is_good(current, nodes, pass.draft.now));
    let up = proven && is_up(current, nodes);
    let now = pass.draft.now;
    let takes_over = |task: &Task| balance::is_taking_over(task, current, nodes, now);
    let superfluous = |task: &&&Task| {
        task.id != current.id && (up || !is_useful(task, nodes)) && !takes_over(task)
    };
    let tasks: Vec<_> = slot.wanted.iter().filter(superfluous).copied().collect();
    let moves = slot.wanted.iter().filter(|task| task.id != current.id && takes_over(task));
    let given_up = moves.map(|task| balance::given_up_at(task)).min();
    for task in tasks {
        if pass.draft.room(1) {
            pass.stop(at, task);
        }
    }
    if let Some(at) = given_up {
        pass.wake(at);
    }
}

/// Whether an old task is worth keeping until its successor runs: it does run, or may.
fn is_useful(task: &Task, nodes: &Nodes<'_>) -> bool {
    is_lost(task, nodes) || is_live(task) && task.status.state >= TaskState::Running
}

/// How many slots may still be begun, by each of the policy's limits.
struct Limits {
    in_flight: usize,
    surge: usize,
    unavailable: usize,
}

impl Limits {
    fn new(pace: &UpdatePolicy, spare: usize) -> Self {
        let limit = |limit: Option<u32>| {
            limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
        };
        Self {
            in_flight: limit(Some(pace.parallelism).filter(|limit| *limit > 0)),
            surge: limit(pace.max_surge),
            unavailable: limit(pace.max_unavailable).min(spare),
        }
    }
}

/// How many slots of a service may be without a task that works, whatever updates may do.
fn spare(service: &Service, nodes: &Nodes<'_>) -> usize {
    let Some((least, total)) = budget(service, nodes) else { return usize::MAX };
    usize::try_from(total - least).unwrap_or(usize::MAX)
}

/// How many slots must have a task that works, of how many; none: nobody said so.
pub(crate) fn budget(service: &Service, nodes: &Nodes<'_>) -> Option<(u32, u32)> {
    let least = service.spec.moving.min_available?;
    let total = match service.spec.mode {
        Mode::Replicated { replicas } => replicas,
        Mode::Global => u32::try_from(wanted_keys(service, nodes).len()).unwrap_or(u32::MAX),
        // Its tasks end by themselves.
        Mode::ReplicatedJob { .. } | Mode::GlobalJob => return None,
    };
    Some((least.of(total), total))
}

fn renew_some(pass: &mut Pass<'_, '_>) {
    let trust = trust(pass);
    let spare = spare(pass.service, &pass.draft.nodes);
    let mut left = Limits::new(&pass.service.pace(), spare);
    let mut outdated = Vec::new();
    for at in 0..pass.slots.len() {
        let slot = &pass.slots[at];
        let Wanted::Yes = wanted(pass.service, slot.key, &pass.draft.nodes) else { continue };
        let current = slot.current(pass.service, &pass.draft.nodes);
        // What this plan ends for others works no longer.
        let draft = &pass.draft;
        let works = |task: &&&Task| is_up(task, &draft.nodes) && !draft.moves.is_stopped(task.id);
        let works = slot.wanted.iter().any(|task| works(&task));
        left.unavailable = left.unavailable.saturating_sub(usize::from(!works));
        // What this plan made is not among the wanted ones yet.
        let tasks = slot.wanted.len() + usize::from(slot.renewed != Renewed::No);
        left.surge = left.surge.saturating_sub(tasks.saturating_sub(1));
        if slot.renewed == Renewed::No && current.is_none() && !slot.wanted.is_empty() {
            // What came last is the least proven, and the least missed.
            let newest = slot.wanted.iter().map(|task| task.template).max();
            outdated.push((works, Reverse(newest), at));
        } else if is_in_flight(pass, at, trust) {
            left.in_flight = left.in_flight.saturating_sub(1);
        }
    }
    // What does not work has nothing to lose by going first.
    outdated.sort_unstable();
    for (works, _, at) in outdated {
        if left.in_flight == 0 {
            return;
        }
        let stop_first = is_stop_first(pass.service);
        let doubles = works && !stop_first;
        if works && stop_first && left.unavailable == 0 || doubles && left.surge == 0 {
            continue;
        }
        match renew(pass, at, left.unavailable > 0) {
            Renewal::Begun => {
                let begun = usize::from(is_in_flight(pass, at, trust));
                left.in_flight = left.in_flight.saturating_sub(begun);
                left.surge = left.surge.saturating_sub(usize::from(doubles));
                let stopped = usize::from(works && pass.slots[at].wanted.is_empty());
                left.unavailable = left.unavailable.saturating_sub(stopped);
            }
            Renewal::Impossible => {}
            Renewal::NoRoom => return,
        }
    }
}

/// Whether a slot counts against `parallelism`: it is between two tasks, or its new one has not
/// been up for `delay` yet, or is not good yet while none is. One that only waits for a place, with
/// nothing beside it, does not: it may wait for ever, and nothing of it can break. Nor does one
/// that has failed.
fn is_in_flight(pass: &mut Pass<'_, '_>, at: usize, trust: Option<Trust>) -> bool {
    let (slot, nodes) = (&pass.slots[at], &pass.draft.nodes);
    match slot.renewed {
        Renewed::No => {}
        Renewed::Placed => return true,
        Renewed::Waiting => return !slot.wanted.is_empty(),
    }
    let Some(current) = slot.current(pass.service, nodes) else {
        return slot.wanted.is_empty() && slot.is_stopping(nodes);
    };
    // What is out of reach and kept may be for ever, and runs as far as anybody knows.
    let kept = pass.service.spec.on_disconnect == OnDisconnect::Keep;
    if kept && is_lost(current, nodes) {
        return false;
    }
    let now = pass.draft.now;
    if trust.is_some_and(|trust| trust.watch.failed(slot, nodes, now).is_some()) {
        return false;
    }
    // What ended badly and is not to be tried again is in nobody's way.
    let template = pass.draft.state.template(pass.service.id, current.template);
    let again = |template: &TaskTemplate| wants_successor(current, template.restart.condition);
    if is_failed(current) && !template.is_some_and(|template| again(template)) {
        return false;
    }
    if !is_up(current, nodes) {
        return current.node.is_some() || slot.wanted.len() > 1;
    }
    let since = current.status.ready_since().unwrap_or(current.status.since);
    let delayed = since.plus_ms(pass.service.pace().delay_ms);
    let proven = match trust {
        Some(Trust { watch, earned: false }) => watch.good_at(current, nodes),
        Some(Trust { earned: true, .. }) | None => None,
    };
    let until = proven.map_or(delayed, |proven| proven.max(delayed));
    if now < until {
        pass.wake(until);
        return true;
    }
    false
}

enum Renewal {
    Begun,
    /// What would be stopped could not be started again, or is out of reach and kept.
    Impossible,
    /// The plan is full.
    NoRoom,
}

/// `may_stop`: one more slot may be without a task that works.
fn renew(pass: &mut Pass<'_, '_>, at: usize, may_stop: bool) -> Renewal {
    let olds = pass.slots[at].wanted.clone();
    for task in &olds {
        if pass.is_held(task) {
            return Renewal::Impossible;
        }
    }
    // One to grant a block, one to create, and one for each old task.
    if !pass.draft.room(2 + olds.len()) {
        return Renewal::NoRoom;
    }
    if is_stop_first(pass.service) && stands_in_the_way(pass, at) {
        let eligible = |node| pass.draft.nodes.get(node).is_some_and(Site::is_eligible);
        let returns = olds.iter().any(|task| task.node.is_some_and(eligible));
        if !returns && !pass.has_place(at, pass.service.template) {
            return Renewal::Impossible;
        }
        olds.into_iter().for_each(|task| pass.stop(at, task));
        return Renewal::Begun;
    }
    // First the useless ones, so that their places are free for the new one.
    let nodes = &pass.draft.nodes;
    let (mut keep, mut stop): (Vec<&Task>, Vec<&Task>) =
        olds.into_iter().partition(|task| is_useful(task, nodes) && !is_stop_first(pass.service));
    // Of several that an update in between left behind, the longest proven one is enough.
    keep.sort_by_key(|task| (!is_up(task, nodes), task.status.since, task.id));
    stop.extend(keep.drain(1.min(keep.len())..));
    stop.into_iter().for_each(|task| pass.stop(at, task));
    let created = pass.create(at, pass.service.template);
    let on_node = matches!(pass.slots[at].key, Key::On(_));
    if !created && on_node && may_stop && !pass.draft.is_cut() {
        // No second task fits beside the old one on this node.
        keep.into_iter().for_each(|task| pass.stop(at, task));
    }
    Renewal::Begun
}

/// Whether something of a slot runs that must end before the next starts.
fn stands_in_the_way(pass: &Pass<'_, '_>, at: usize) -> bool {
    let (slot, nodes) = (&pass.slots[at], &pass.draft.nodes);
    let runs = |task: &&Task| is_live(task) && task.node.is_some() && !is_lost(task, nodes);
    slot.wanted.iter().any(runs) || slot.is_stopping(nodes)
}
