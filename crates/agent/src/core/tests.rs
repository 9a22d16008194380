//! The core with hands that always succeed: what runs, when, and why not.

use std::net::Ipv4Addr;
use std::sync::Arc;

use warren_model::TaskTemplate;
use warren_model::job::Given;
use warren_model::node::{Forgotten, ForgottenChoice};
use warren_model::quantity::Time;
use warren_model::service::{OnDisconnect, RestartPolicy};
use warren_model::task::{Desired, TaskState};
use warren_proto::v1;

use super::*;
use crate::assignments::{AssignedService, AssignedTask, Assignment};
use crate::membership::MembershipView;
use crate::task::{Ended, Found, FoundState};

const KEEP: OnDisconnect = OnDisconnect::Keep;
const STOP_30S: OnDisconnect = OnDisconnect::StopAfter { ms: 30_000 };

fn id(letter: char) -> TaskId {
    TaskId::from_bytes([u8::try_from(letter).unwrap(); 10])
}

fn letter(id: TaskId) -> char {
    char::from(id.as_bytes()[0])
}

/// A complete set of that epoch and revision with these tasks, all of one service.
fn set(epoch: u64, revision: u64, tasks: &str, on_disconnect: OnDisconnect) -> Assignment {
    let service = ServiceId::from_bytes([1; 10]);
    let restart = RestartPolicy { delay_ms: 0, ..RestartPolicy::default() };
    let template = TaskTemplate { image: "web:1".into(), restart, ..TaskTemplate::default() };
    let tasks = tasks.chars().map(|letter| AssignedTask {
        id: id(letter),
        service,
        slot: 1,
        template: 1,
        desired: Desired::Running,
        address: Some(Ipv4Addr::LOCALHOST),
        devices: Default::default(),
        known: TaskStatus::new(TaskState::Assigned, Time(0)),
        given: Given::default(),
    });
    let held = AssignedService {
        name: "web".into(),
        on_disconnect,
        templates: [(1, Arc::new(template))].into(),
        ..AssignedService::default()
    };
    Assignment {
        complete: true,
        revision,
        tasks: tasks.collect(),
        services: vec![(service, held)],
        membership: Some(MembershipView { epoch, ..MembershipView::default() }),
        ..Assignment::default()
    }
}

struct World {
    core: Core,
    now_ms: u64,
    up: BTreeSet<(TaskId, u32)>,
    starts: usize,
    notes: Vec<String>,
    gaps: usize,
    discarded: String,
    /// When the kernel got a table.
    applied: Vec<u64>,
}

impl World {
    fn new(core: Core) -> Self {
        Self {
            core,
            now_ms: 0,
            up: BTreeSet::new(),
            starts: 0,
            notes: vec![],
            gaps: 0,
            discarded: String::new(),
            applied: vec![],
        }
    }

    fn now(&self) -> Now {
        Now { wall: Time(1000 + self.now_ms), mono_ms: self.now_ms }
    }

    /// Feeds an input and does all that follows from it, at once.
    fn feed(&mut self, input: Input) -> &mut Self {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let now = self.now();
            for command in self.core.handle(input, now) {
                match command {
                    Command::Do(order) => inputs.splice(0..0, self.order(*order)).for_each(drop),
                    Command::Apply { generation, .. } => {
                        self.applied.push(self.now_ms);
                        inputs
                            .insert(0, Input::Applied { generation, applied: crate::Applied::All });
                    }
                    Command::Discard { task, .. } => self.discarded.push(letter(task)),
                    Command::Reconnect(_) => self.gaps += 1,
                    Command::Note(text) => self.notes.push(text),
                    Command::Hold(wanted) => {
                        let held = wanted.into_iter().map(|(key, by)| (key, by.service)).collect();
                        let holding = crate::Holding { held, ..crate::Holding::default() };
                        inputs.insert(0, Input::Held(holding));
                    }
                    Command::SweepLogs { .. }
                    | Command::Membership(_)
                    | Command::Table(_)
                    | Command::Resolve(_)
                    | Command::Admit(_) => {}
                }
            }
        }
        self
    }

    fn order(&mut self, order: Order) -> Vec<Input> {
        let (task, attempt) = (order.spec.id, order.attempt);
        let at = self.now().wall;
        let event = match order.effect {
            Effect::Prepare => Event::Prepared,
            Effect::Start => {
                self.up.insert((task, attempt));
                self.starts += 1;
                Event::Started { pid: 7, at }
            }
            Effect::Watch { .. } => {
                Event::Health { state: health::HealthState::Healthy, output: None }
            }
            Effect::Wait | Effect::LookAway | Effect::Halt => return vec![],
            Effect::Stop { .. } => {
                self.up.remove(&(task, attempt));
                Event::Exited(ended(143, at))
            }
            Effect::Clear { attempt } => {
                self.up.remove(&(task, attempt));
                Event::Cleared { attempt }
            }
            Effect::Claim => Event::Claimed,
            Effect::Release => Event::Released,
            Effect::Clean { .. } => {
                self.up.retain(|(up, _)| *up != task);
                Event::Cleaned
            }
        };
        vec![Input::Done { task, attempt, event, claimed: None }]
    }

    /// A session opens and its manager says what it wants.
    fn session(&mut self, set: Assignment) -> &mut Self {
        let sent_ms = self.now_ms;
        self.feed(Input::Opened).feed(Input::Heard { sent_ms }).feed(Input::Assigned(Box::new(set)))
    }

    /// Lets time pass, waking as the core wishes.
    fn until(&mut self, at_ms: u64) -> &mut Self {
        let mut wakes = 0;
        while let Some(wake) = self.core.wake_at().filter(|wake| *wake <= at_ms) {
            wakes += 1;
            assert!(wakes < 100, "it spins");
            self.now_ms = self.now_ms.max(wake);
            self.feed(Input::Wake);
        }
        self.now_ms = at_ms;
        self.feed(Input::Wake)
    }

    fn runs(&self) -> String {
        self.up.iter().map(|(id, attempt)| format!("{}{attempt}", letter(*id))).collect()
    }

    fn error(&self, task: char) -> Option<String> {
        self.core.task(id(task))?.status.error.map(|text| text.to_string())
    }

    /// The process dies and another begins; `power` takes the containers.
    fn reborn(&mut self, power: bool) -> &mut Self {
        let cached = self.core.cached(self.now());
        self.reborn_with(cached, power)
    }

    /// It begins with what was written at another time.
    fn reborn_with(&mut self, cached: Cached, power: bool) -> &mut Self {
        self.now_ms += 10;
        if power {
            self.up.clear();
        }
        let found = self.up.iter().map(|(task, attempt)| {
            let state = FoundState::Running { pid: 7, at: Time(1000) };
            (*task, Found { attempt: *attempt, restarts: 0, last_exit: None, state, paused: false })
        });
        self.core = Core::new(group(found)).with_cached(cached, self.now());
        self
    }
}

fn ended(code: i32, at: Time) -> Ended {
    Ended { code, signal: None, oom_killed: false, supervisor_lost: false, at }
}

fn started(set: Assignment) -> World {
    let mut world = World::new(Core::default());
    world.session(set);
    world
}

#[test]
fn after_a_reboot_without_managers_what_was_assigned_is_started() {
    let mut world = started(set(1, 5, "ab", KEEP));
    assert_eq!(world.runs(), "a1b1");
    world.reborn(true).until(ALONE_MS + 9);
    assert_eq!(world.runs(), "", "a manager may answer yet");
    assert_eq!((world.core.revision(), world.core.epoch()), (5, 1), "it is held all the same");
    world.until(ALONE_MS + 10);
    assert_eq!(world.runs(), "a2b2");
    assert!(world.notes[0].starts_with("no manager answers: 2 tasks"), "{:?}", world.notes);
    let starts = world.starts;
    world.session(set(1, 5, "ab", KEEP)).until(99_999);
    assert_eq!((world.runs().as_str(), world.starts), ("a2b2", starts), "nothing is restarted");
}

#[test]
fn rules_of_an_earlier_process_stay_until_a_manager_speaks_or_for_a_while() {
    // What is kept of the network may be older than what the kernel holds.
    let mut world = started(set(1, 5, "ab", KEEP));
    world.reborn(false);
    let (begun, before) = (world.now_ms, world.applied.len());
    world.until(begun + ALONE_MS + RULES_KEPT_MS - 1);
    assert_eq!(world.applied.len(), before);
    world.until(begun + 99_999);
    assert_eq!(world.applied[before..], [begun + ALONE_MS + RULES_KEPT_MS]);
    // A manager's word is newer than either.
    let alone = world.now_ms + ALONE_MS + 10;
    world.reborn(false).until(alone);
    let before = world.applied.len();
    world.session(set(1, 6, "ab", KEEP));
    assert_eq!(world.applied[before..], [world.now_ms]);
    // After a reboot there are none.
    let mut world = started(set(1, 5, "ab", KEEP));
    world.reborn(true);
    let (begun, before) = (world.now_ms, world.applied.len());
    world.until(begun + ALONE_MS);
    assert_eq!(world.applied[before..], [begun + ALONE_MS]);
}

#[test]
fn a_manager_that_answers_first_is_followed() {
    let mut world = started(set(1, 5, "ab", KEEP));
    world.reborn(true).until(500).session(set(1, 6, "b", KEEP));
    assert_eq!(world.runs(), "b1", "as that manager remembers it");
    world.until(99_999);
    assert_eq!(world.runs(), "b1");
}

#[test]
fn a_process_that_begins_touches_nothing_that_runs() {
    let mut world = started(set(1, 5, "ab", KEEP));
    world.reborn(false).until(99_999);
    assert_eq!((world.runs().as_str(), world.starts), ("a1b1", 2));
    world.session(set(1, 5, "ab", KEEP));
    assert_eq!((world.runs().as_str(), world.starts), ("a1b1", 2));
    world.reborn(false).session(set(1, 7, "b", KEEP));
    assert_eq!((world.runs().as_str(), world.discarded.as_str()), ("a1b1", "a"));
}

#[test]
fn what_is_older_is_refused_also_by_the_next_process() {
    let mut world = started(set(1, 5, "ab", KEEP));
    world.session(set(1, 4, "", KEEP));
    assert_eq!((world.gaps, world.runs().as_str(), world.core.revision()), (1, "a1b1", 5));
    world.reborn(false).session(set(1, 4, "", KEEP));
    world.session(set(0, 9, "", KEEP));
    assert_eq!((world.gaps, world.runs().as_str(), world.core.revision()), (3, "a1b1", 5));
    let change = Assignment { applies_to: 4, revision: 6, ..Assignment::default() };
    world.feed(Input::Assigned(Box::new(change)));
    assert_eq!((world.gaps, world.core.revision()), (4, 0), "after a gap all is asked for");
}

#[test]
fn a_crash_while_cut_off_is_restarted_by_policy() {
    for policy in [KEEP, OnDisconnect::default()] {
        let mut world = started(set(1, 5, "a", policy));
        world.until(3_600_000);
        world.up.clear();
        let event = Event::Exited(ended(1, world.now().wall));
        world.feed(Input::Done { task: id('a'), attempt: 1, event, claimed: None });
        assert_eq!(world.runs(), "a2");
    }
}

#[test]
fn a_lease_that_ends_stops_and_a_manager_starts_again() {
    let mut world = started(set(1, 5, "ab", STOP_30S));
    world.until(29_999);
    assert_eq!(world.runs(), "a1b1");
    assert_eq!(world.core.wake_at(), Some(30_000));
    world.until(30_000);
    assert_eq!(world.runs(), "");
    assert_eq!(world.error('a').as_deref(), Some("stopped: no manager for 30s"));
    assert_eq!(world.core.task(id('a')).unwrap().status.state, TaskState::Stopping);
    assert_eq!(world.core.wake_at(), None, "nothing to wait for but a manager");
    world.until(99_000).feed(Input::Opened).feed(Input::Heard { sent_ms: 99_000 });
    assert_eq!(world.runs(), "", "heard, but what it wants is not known");
    world.feed(Input::Assigned(Box::new(set(1, 6, "b", STOP_30S))));
    assert_eq!(world.runs(), "b2");
    assert_eq!(world.error('b'), None);
    assert!(world.core.task(id('a')).is_none());
}

#[test]
fn beats_renew_the_lease_from_their_sending_on() {
    let mut world = started(set(1, 5, "a", STOP_30S));
    for at in [10_000, 20_000] {
        world.until(at).feed(Input::Heard { sent_ms: at - 400 });
    }
    world.until(49_599);
    assert_eq!(world.runs(), "a1");
    world.until(49_600);
    assert_eq!(world.runs(), "");
    world.feed(Input::Heard { sent_ms: 49_600 });
    assert_eq!(world.runs(), "a2", "the session is the same: what is held is wanted");
}

#[test]
fn a_process_that_begins_alone_has_no_lease() {
    let mut world = started(set(1, 5, "a", STOP_30S));
    world.reborn(true).until(99_000);
    assert_eq!((world.runs().as_str(), world.starts), ("", 1));
    assert!(world.error('a').unwrap().starts_with("not started: no manager has answered"));
    world.session(set(1, 5, "a", STOP_30S));
    assert_eq!(world.runs(), "a2");
}

#[test]
fn a_process_that_begins_goes_on_with_the_lease() {
    let mut world = started(set(1, 5, "a", STOP_30S));
    world.until(1_000).reborn(false).until(29_999);
    assert_eq!(world.runs(), "a1", "the lease is of 0");
    // However often it begins anew, if it lives long enough to do anything.
    for at in (2_500..32_500).step_by(1_500) {
        world.reborn(false).until(29_999 + at);
        assert_eq!(world.runs(), "", "{at}");
    }

    // What was written says little: a manager that restarts too is waited for, once.
    let mut world = started(set(1, 5, "a", STOP_30S));
    let old = world.core.cached(world.now());
    for sent_ms in (0..90_000).step_by(500) {
        world.until(sent_ms).feed(Input::Heard { sent_ms });
    }
    world.until(90_000 - 10).reborn_with(old, false);
    assert_eq!(world.core.take_changed(), Some(Changed::Set), "the next is to know");
    world.until(90_900).reborn(false).until(91_999);
    assert_eq!(world.runs(), "a1");
    world.until(92_000);
    assert_eq!(world.runs(), "");
}

#[test]
fn silence_is_kept_and_its_end_too() {
    let mut world = started(set(1, 5, "a", STOP_30S));
    world.core.take_changed();
    world.until(4_999);
    assert_eq!(world.core.take_changed(), None);
    world.until(6_000);
    assert_eq!(world.core.take_changed(), Some(Changed::Statuses));
    world.until(9_000);
    assert_eq!(world.core.take_changed(), None);
    let cut_off = world.core.cached(world.now());
    world.feed(Input::Heard { sent_ms: 9_000 });
    assert_eq!(world.core.take_changed(), Some(Changed::Statuses));
    world.until(9_500).feed(Input::Heard { sent_ms: 9_500 });
    assert_eq!(world.core.take_changed(), None, "no beat is worth a write");
    world.reborn_with(cut_off, false).until(29_999);
    assert_eq!(world.runs(), "a1");
    world.until(30_000);
    assert_eq!(world.runs(), "");
}

#[test]
fn the_lease_is_a_matter_of_the_service() {
    let mut world = started(set(1, 5, "a", STOP_30S));
    world.until(10).feed(Input::Assigned(Box::new(set(1, 6, "a", KEEP))));
    world.until(99_000);
    assert_eq!(world.runs(), "a1");
    let short = OnDisconnect::StopAfter { ms: 1000 };
    world.session(set(1, 7, "a", short)).until(99_999);
    assert_eq!(world.runs(), "a1");
    world.until(100_000);
    assert_eq!(world.runs(), "");
}

#[test]
fn what_a_restored_manager_does_not_know_runs_on_for_a_while() {
    let mut world = started(set(1, 50, "abc", KEEP));
    world.until(1000).session(set(2, 3, "a", KEEP));
    assert_eq!(world.runs(), "a1b1c1");
    assert!(world.notes[0].contains("do not know 2 tasks"), "{:?}", world.notes);
    // A crash is restarted, and nobody is told.
    world.until(2000).up.remove(&(id('b'), 1));
    world.core.outbox().clear();
    world.core.outbox().take_through();
    let event = Event::Exited(ended(1, world.now().wall));
    world.feed(Input::Done { task: id('b'), attempt: 1, event, claimed: None });
    assert_eq!(world.runs(), "a1b2c1");
    assert_eq!(world.core.report_due_at(), None);
    // The manager comes to know one of them; that goes on.
    world.session(set(2, 4, "ac", KEEP)).until(1000 + KEPT_MS - 1);
    assert_eq!(world.runs(), "a1b2c1");
    world.until(1000 + KEPT_MS);
    assert_eq!(world.runs(), "a1c1");
    assert!(world.notes[1].contains("1 tasks"), "{:?}", world.notes);
    world.until(9 * KEPT_MS);
    assert_eq!((world.runs().as_str(), world.starts), ("a1c1", 4));
}

/// The same, with what people said of tasks that the recovery of `said` made managers forget.
fn told(set: Assignment, said: u64, choice: ForgottenChoice) -> Assignment {
    let view = set.membership.clone().unwrap();
    let forgotten = Some(Forgotten { epoch: said, choice }.into());
    let told = v1::Membership { forgotten, ..v1::Membership::from(&view) };
    Assignment { membership: Some(told.try_into().unwrap()), ..set }
}

#[test]
fn people_say_what_becomes_of_forgotten_tasks() {
    let (keep, drop) = (ForgottenChoice::Keep, ForgottenChoice::Drop);
    let mut world = started(set(1, 50, "ab", KEEP));
    // What was said of another recovery says nothing.
    world.session(told(set(2, 3, "a", KEEP), 1, drop)).until(1_000);
    assert_eq!(world.core.forgotten(world.now()), Some((1, Some(KEPT_MS - 1_000))));
    world.session(told(set(2, 4, "a", KEEP), 2, keep)).until(2 * KEPT_MS);
    assert_eq!((world.runs().as_str(), world.core.wake_at()), ("a1b1", None));
    world.reborn(false).until(4 * KEPT_MS);
    assert_eq!(world.core.forgotten(world.now()), Some((1, None)));
    world.session(told(set(2, 4, "a", KEEP), 2, keep));
    assert_eq!(world.runs(), "a1b1", "also in the next process");
    world.session(told(set(2, 5, "a", KEEP), 2, drop));
    assert_eq!((world.runs().as_str(), world.core.forgotten(world.now())), ("a1", None));
    assert!(world.notes.last().unwrap().ends_with("as people said"), "{:?}", world.notes);
    // Said before it came: it comes and drops.
    let mut world = started(set(1, 50, "ab", KEEP));
    world.session(told(set(2, 3, "a", KEEP), 2, drop));
    assert_eq!(world.runs(), "a1");
}

#[test]
fn keeping_goes_on_in_the_next_process() {
    let mut world = started(set(1, 50, "ab", KEEP));
    world.session(set(2, 3, "a", KEEP)).until(100_000).reborn(true);
    world.session(set(2, 3, "a", KEEP));
    assert_eq!(world.runs(), "a1b2", "the manager remembers nothing of a");
    world.until(KEPT_MS + 9);
    assert_eq!(world.runs(), "a1b2");
    world.until(KEPT_MS + 10);
    assert_eq!(world.runs(), "a1");
}

#[test]
fn containers_of_nobody_are_spared_by_a_new_epoch_alone() {
    for (epoch, spared) in [(0, false), (3, true)] {
        let mut world = started(set(0, 5, "ab", KEEP));
        let cached = std::mem::take(&mut world.core);
        drop(cached);
        let found = world.up.iter().map(|(task, attempt)| {
            let state = FoundState::Running { pid: 7, at: Time(1000) };
            (*task, Found { attempt: *attempt, restarts: 0, last_exit: None, state, paused: false })
        });
        world.core = Core::new(group(found));
        world.session(set(epoch, 9, "a", KEEP));
        assert_eq!(world.discarded, if spared { "" } else { "b" }, "epoch {epoch}");
        world.until(KEPT_MS);
        assert_eq!(world.discarded, "b");
    }
}

#[test]
fn of_a_node_that_was_removed_nothing_is_left() {
    let mut world = started(set(1, 5, "ab", STOP_30S));
    world.session(set(2, 3, "a", STOP_30S)).until(50_000);
    assert_eq!(world.runs(), "");
    world.session(set(2, 3, "a", STOP_30S)).feed(Input::Removed);
    assert_eq!((world.runs().as_str(), world.core.up().len()), ("", 0));
    let mut world = started(set(1, 5, "ab", KEEP));
    world.reborn(false).feed(Input::Removed);
    assert_eq!(world.discarded, "ab");
}

#[test]
fn only_what_changed_is_to_be_kept() {
    let mut world = started(set(1, 5, "a", KEEP));
    assert_eq!(world.core.take_changed(), Some(Changed::Set));
    assert_eq!(world.core.take_changed(), None);
    world.feed(Input::Heard { sent_ms: 5 }).feed(Input::Wake);
    assert_eq!(world.core.take_changed(), None);
    world.up.clear();
    let event = Event::Exited(ended(1, world.now().wall));
    world.feed(Input::Done { task: id('a'), attempt: 1, event, claimed: None });
    assert_eq!(world.core.take_changed(), Some(Changed::Statuses));
    assert_eq!(world.core.cached(world.now()).set.tasks[&id('a')].known.attempt, 2);
}

/// What managers said of the only task of a set, whose template is to be as `edit` makes it.
fn known(
    mut set: Assignment,
    known: TaskStatus,
    edit: impl FnOnce(&mut TaskTemplate),
) -> Assignment {
    let mut template = TaskTemplate::clone(&set.services[0].1.templates[&1]);
    edit(&mut template);
    set.services[0].1.templates = [(1, Arc::new(template))].into();
    set.tasks[0].known = known;
    set
}

#[test]
fn what_ended_unheard_does_not_begin_again_after_a_reboot() {
    let job = |known_as| {
        let once = |template: &mut TaskTemplate| {
            template.restart.condition = warren_model::service::RestartCondition::OnFailure;
        };
        known(set(1, 5, "a", KEEP), known_as, once)
    };
    let mut world = started(job(TaskStatus::new(TaskState::Assigned, Time(0))));
    let running = world.core.task(id('a')).unwrap().status;
    world.up.clear();
    let event = Event::Exited(ended(0, world.now().wall));
    world.feed(Input::Done { task: id('a'), attempt: 1, event, claimed: None });
    // A manager answers at once, and has not heard of it.
    world.reborn(true).session(job(running.clone()));
    assert_eq!((world.runs().as_str(), world.starts), ("", 1));
    let told = world.core.outbox().take(99_999);
    assert_eq!((told.len(), told[0].1.state, told[0].1.attempt), (1, TaskState::Complete, 1));
    // Of another recovery: what was may be wanted again.
    let mut anew = job(running);
    anew.membership = Some(MembershipView { epoch: 2, ..MembershipView::default() });
    world.reborn(true).session(anew);
    assert_eq!(world.runs(), "a2");
}

#[test]
fn health_that_was_not_kept_is_told_as_later_news() {
    use health::{Health, HealthSpec, HealthState, Healthcheck, Probe};

    let watched = |known_as| {
        let check = |template: &mut TaskTemplate| {
            let check = HealthSpec::new(Probe::Tcp { port: 80 });
            template.health = Healthcheck::Explicit(Box::new(check));
        };
        known(set(1, 5, "a", KEEP), known_as, check)
    };
    let mut world = started(watched(TaskStatus::new(TaskState::Assigned, Time(0))));
    let healthy = world.core.task(id('a')).unwrap().status;
    assert_eq!(healthy.health.map(|health| health.state), Some(HealthState::Healthy));
    // It told that it fell ill, and died before it had written that; its clock is set back too.
    let ill = Health { state: HealthState::Unhealthy, since: Time(70_000) };
    let told = TaskStatus { health: Some(ill), ..healthy };
    world.reborn(false).until(5_000).session(watched(told.clone()));
    let news = world.core.outbox().take(99_999);
    let health = news.iter().find_map(|(_, status)| status.health).unwrap();
    assert_eq!((health.state, health.since), (HealthState::Healthy, Time(70_001)));
    // That is the same the next time.
    world.until(6_000).session(watched(TaskStatus { health: Some(health), ..told }));
    assert!(world.core.outbox().take(99_999).is_empty());
}

/// What the data plane is handed.
fn tables(commands: &[Command]) -> String {
    let count = |command: &Command| match command {
        Command::Table(table) => Some(table.networks.len().to_string()),
        _ => None,
    };
    commands.iter().filter_map(count).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_networks_table_is_handed_on_when_it_changed() {
    use crate::assignments::TablePart;
    use crate::cache::Changed;
    use warren_model::NetworkId;
    use warren_model::node_table::{TableChange, TableNetwork};

    let now = |mono_ms| Now { wall: Time(mono_ms), mono_ms };
    let part = |n: u8, complete, more| {
        let network = TableNetwork {
            name: "back".parse().unwrap(),
            internal: false,
            attachable: false,
            encrypted: true,
            subnet_v6: None,
        };
        let networks = vec![(NetworkId::from_bytes([n; 10]), Arc::new(network))];
        let change = TableChange { complete, networks, ..TableChange::default() };
        Some(TablePart { change, more })
    };
    let mut core = Core::default();
    let first = Assignment { table: part(1, true, true), ..set(1, 5, "", KEEP) };
    assert_eq!(tables(&core.handle(Input::Assigned(Box::new(first)), now(0))), "");
    assert_eq!(core.take_changed(), Some(Changed::Set));
    let follow = |applies_to, revision, table| {
        Input::Assigned(Box::new(Assignment {
            applies_to,
            revision,
            table,
            ..Assignment::default()
        }))
    };
    assert_eq!(tables(&core.handle(follow(5, 5, part(2, false, false)), now(1))), "2");
    assert_eq!(core.take_changed(), Some(Changed::Table), "it is written seldom");
    // The same again, and nothing at all.
    assert_eq!(tables(&core.handle(follow(5, 6, part(2, false, false)), now(2))), "");
    assert_eq!(tables(&core.handle(follow(6, 7, None), now(3))), "");
    // What was kept is handed on at once, before any manager's word.
    let cached = core.cached(now(4));
    let mut next = Core::default().with_cached(cached, now(5));
    assert_eq!(tables(&next.handle(Input::Wake, now(5))), "2");
    assert_eq!(tables(&next.handle(Input::Wake, now(6))), "");
}
