//! Asking containers how they are: who is due, what they answer, what is news.
//!
//! One task holds all deadlines and sleeps until the first ([`run`]); a probe
//! is a task of its own while it lasts. A container is never asked twice at
//! once, and no more are asked at a time than [`NET_MAX`] over the network and
//! [`EXEC_MAX`] by a program of their own: who is due then waits its turn.
//! The agent's loop hears of what changed, not of each answer.
//!
//! Not here: what follows from health (`task`), how to ask (`probes`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use warren_base::rng::Rng;
use warren_base::tasks::Tasks;
use warren_model::TaskId;
use warren_model::health::{Gate, HealthAction, HealthState, Healthcheck, Probe};
use warren_model::service::{Companion, CompanionName};

use crate::core::{Input, Order, companion_id};
use crate::metrics::{Metrics, count, gauge};
use crate::task::Event;
use crate::worker::{Message, Tools};

mod exec;
mod grpc;
mod http;
mod image;
pub(crate) mod judge;
mod probes;
mod tls;

pub(crate) use image::of_image;
pub use probes::{NetProbes, Probes};

use judge::{Answer, Judge, Rhythm};

/// Probes over the network at a time: a node of a thousand containers that all time out still
/// asks each within its interval.
const NET_MAX: usize = 512;
/// Programs at a time: each is a process, on a machine that has other things to do.
const EXEC_MAX: usize = 16;
/// A probe that nobody declared: connections to a container of this node are accepted within
/// microseconds.
const IMPLICIT_TIMEOUT_MS: u64 = 1_000;
/// What is shown of a failed probe.
pub(crate) const OUTPUT_BYTES: usize = 256;
/// From then on people are told why a container is not ready yet.
const TELL_AFTER_MS: u64 = 1_000;
/// A container of a task: its own, or a companion by its place among them, from 1.
type Subject = (TaskId, usize);
/// The task's own container.
const OWN: usize = 0;

/// Tasks whose health is watched, and when each is due.
#[derive(Debug, Default)]
pub(crate) struct Prober {
    state: Mutex<State>,
    /// Something may be due earlier than was thought.
    moved: Notify,
}

#[derive(Debug, Default)]
struct State {
    watched: BTreeMap<Subject, Watched>,
    net: Lane,
    exec: Lane,
    last_number: u64,
    /// Until when the loop sleeps.
    sleeps_until: u64,
}

/// Probes of one kind.
#[derive(Debug, Default)]
struct Lane {
    due: BTreeSet<(u64, Subject)>,
    under_way: usize,
}

#[derive(Debug)]
struct Watched {
    /// Tells it from an earlier watch of the same task.
    number: u64,
    ask: Arc<Ask>,
    judge: Judge,
    rhythm: Rhythm,
    /// What people were told of a container that starts.
    told: String,
    began_ms: u64,
}

/// What is asked of a container.
#[derive(Debug, Clone)]
struct Ask {
    task: TaskId,
    /// Which of its containers.
    place: usize,
    /// Of a sidecar.
    name: Option<CompanionName>,
    /// A sidecar that is unhealthy begins anew.
    renew: bool,
    /// It is asked before the task's own container is started, which waits for it.
    before: bool,
    attempt: u32,
    container: String,
    address: Option<Ipv4Addr>,
    probe: Probe,
    timeout_ms: u64,
    gone: CancellationToken,
}

impl Ask {
    /// What was said, and by whom if that is a sidecar.
    fn of_whom(&self, text: String) -> String {
        match &self.name {
            None => text,
            Some(name) => format!("sidecar `{name}`: {text}"),
        }
    }

    fn subject(&self) -> Subject {
        (self.task, self.place)
    }

    fn is_exec(&self) -> bool {
        matches!(self.probe, Probe::Exec(_) | Probe::Shell(_))
    }
}

/// A probe to be made now.
struct Turn {
    number: u64,
    ask: Arc<Ask>,
    began_ms: u64,
}

/// What the agent's loop is to hear.
struct News {
    state: HealthState,
    output: Option<Box<str>>,
}

/// What is asked of the container of an order, and how often; nothing, if it has no gate.
fn what(order: &Order) -> Option<(Probe, u64, Rhythm)> {
    let health = &order.spec.template.health;
    match health.gate(&[]) {
        // Sidecars alone may be asked.
        Gate::Open | Gate::Implicit { .. } if *health == Healthcheck::Off => None,
        Gate::Explicit(spec) => Some((spec.probe.clone(), spec.timeout_ms, Rhythm::of(spec))),
        Gate::Open | Gate::Implicit { .. } => {
            Some((Probe::Tcp { port: order.port? }, IMPLICIT_TIMEOUT_MS, Rhythm::implicit()))
        }
    }
}

/// Whom to ask of the containers of an order.
fn asks(order: &Order) -> Vec<(Ask, Rhythm)> {
    let (task, attempt) = (order.spec.id, order.attempt);
    let address = order.spec.probed_at();
    let mut asks = Vec::new();
    if let Some((probe, timeout_ms, rhythm)) = what(order) {
        let ask = Ask {
            task,
            place: OWN,
            name: None,
            renew: false,
            before: false,
            attempt,
            container: order.spec.container_id(attempt),
            address,
            probe,
            timeout_ms,
            gone: CancellationToken::new(),
        };
        asks.push((ask, rhythm));
    }
    let companions = order.spec.template.companions.iter().enumerate();
    asks.extend(companions.filter_map(|(at, companion)| of_sidecar(order, at, companion)));
    asks
}

/// Of the companion at a place, if it says how it is asked.
fn of_sidecar(order: &Order, at: usize, companion: &Companion) -> Option<(Ask, Rhythm)> {
    let Healthcheck::Explicit(spec) = &companion.task.health else { return None };
    let (task, attempt) = (order.spec.id, order.attempt);
    let ask = Ask {
        task,
        place: at + 1,
        name: Some(companion.name.clone()),
        renew: spec.action == HealthAction::Restart,
        before: false,
        attempt,
        container: companion_id(task, attempt, &companion.name),
        address: order.spec.probed_at(),
        probe: spec.probe.clone(),
        timeout_ms: spec.timeout_ms,
        gone: CancellationToken::new(),
    };
    Some((ask, Rhythm::of(spec)))
}

impl Prober {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches the container of an order from now on, instead of an earlier one of the task.
    pub(crate) fn watch(
        &self,
        order: &Order,
        known: HealthState,
        ran_ms: u64,
        now_ms: u64,
        lot: u64,
    ) {
        let asks = asks(order);
        let mut state = self.lock();
        state.forget_task(order.spec.id);
        let mut wakes = false;
        for (ask, rhythm) in asks {
            let judge = Judge::new(rhythm, known, ran_ms, now_ms, lot);
            wakes |= state.begin(Arc::new(ask), judge, rhythm, now_ms);
        }
        drop(state);
        if wakes {
            self.moved.notify_one();
        }
    }

    /// Watches a sidecar that has just been started, before the task's own container is.
    pub(crate) fn watch_sidecar(&self, order: &Order, name: &str, now_ms: u64, lot: u64) {
        let companions = &order.spec.template.companions;
        let Some(at) = companions.iter().position(|known| known.name.as_str() == name) else {
            return;
        };
        let Some((ask, rhythm)) = of_sidecar(order, at, &companions[at]) else { return };
        let ask = Arc::new(Ask { before: true, ..ask });
        let mut state = self.lock();
        state.forget(ask.subject());
        let judge = Judge::new(rhythm, HealthState::Starting, 0, now_ms, lot);
        if state.begin(ask, judge, rhythm, now_ms) {
            drop(state);
            self.moved.notify_one();
        }
    }

    /// A sidecar is asked as from its start, from a moment on; whether it is asked at all.
    pub(crate) fn begin_anew(&self, task: TaskId, name: &str, now_ms: u64, lot: u64) -> bool {
        let mut state = self.lock();
        let of_task = state.watched.range((task, OWN + 1)..=(task, usize::MAX));
        let named = |watched: &Watched| {
            watched.ask.name.as_ref().is_some_and(|known| known.as_str() == name)
        };
        let mut of_task = of_task.map(|(_, watched)| watched);
        let Some(watched) = of_task.find(|watched| named(watched)) else { return false };
        let rhythm = watched.rhythm;
        let ask = Arc::new(Ask { gone: CancellationToken::new(), ..Ask::clone(&watched.ask) });
        state.forget(ask.subject());
        let judge = Judge::new(rhythm, HealthState::Starting, 0, now_ms, lot);
        if state.begin(ask, judge, rhythm, now_ms) {
            drop(state);
            self.moved.notify_one();
        }
        true
    }

    /// Asks a task no more; a probe under way ends.
    pub(crate) fn look_away(&self, task: TaskId) {
        self.lock().forget_task(task);
    }

    /// Whose turn it is, and when it is the next one's.
    fn turns(&self, now_ms: u64, metrics: &Metrics) -> (Vec<Turn>, u64) {
        let mut state = self.lock();
        let State { watched, net, exec, .. } = &mut *state;
        gauge(&metrics.watched, watched.len() as u64);
        let mut turns = Vec::new();
        let mut next = u64::MAX;
        for (lane, most) in [(net, NET_MAX), (exec, EXEC_MAX)] {
            while let Some((due, task)) = lane.due.first().copied() {
                // With a probe that ends there is room again, and the loop is woken.
                if lane.under_way >= most {
                    break;
                }
                if due > now_ms {
                    next = next.min(due);
                    break;
                }
                lane.due.pop_first();
                let Some(watched) = watched.get(&task) else { continue };
                lane.under_way += 1;
                let (number, ask) = (watched.number, Arc::clone(&watched.ask));
                turns.push(Turn { number, ask, began_ms: now_ms });
            }
        }
        state.sleeps_until = next;
        (turns, next)
    }

    /// Takes in what a probe found; what is news of it.
    fn hear(
        &self,
        turn: &Turn,
        found: &Result<(), String>,
        ended_ms: u64,
        lot: u64,
    ) -> Option<News> {
        let mut state = self.lock();
        let watched = state.watched.get_mut(&turn.ask.subject())?;
        if watched.number != turn.number {
            return None;
        }
        let answer = Answer { good: found.is_ok(), began_ms: turn.began_ms, ended_ms };
        let news = watched.judge.hear(answer, lot);
        let output = found.as_ref().err().map(|text| cut(text));
        let output = output.map(|text| turn.ask.of_whom(text));
        if let Some(state) = news.filter(|_| turn.ask.before) {
            return Some(News { state, output: output.map(Into::into) });
        }
        if let Some(found) = news {
            let of_task = state.watched.range((turn.ask.task, OWN)..=(turn.ask.task, usize::MAX));
            let mut others = of_task.map(|(_, watched)| watched.judge.state());
            // All of them are to be well.
            let well = others.all(|state| state == HealthState::Healthy);
            let tells = found != HealthState::Healthy || well;
            return tells.then(|| News { state: found, output: output.map(Into::into) });
        }
        let output = output?;
        let waits_long = ended_ms.saturating_sub(watched.began_ms) >= TELL_AFTER_MS;
        let starts = watched.judge.state() == HealthState::Starting;
        if !starts || !waits_long || watched.told == output {
            return None;
        }
        watched.told.clone_from(&output);
        Some(News { state: HealthState::Starting, output: Some(output.into()) })
    }

    /// A probe is over: the next one may be queued.
    fn rest(&self, turn: &Turn) {
        let mut state = self.lock();
        let lane = if turn.ask.is_exec() { &mut state.exec } else { &mut state.net };
        let was_full = lane.under_way >= if turn.ask.is_exec() { EXEC_MAX } else { NET_MAX };
        lane.under_way = lane.under_way.saturating_sub(1);
        let task = turn.ask.subject();
        let watched = state.watched.get(&task).filter(|watched| watched.number == turn.number);
        let due = watched.and_then(|watched| watched.judge.next_ms());
        let wakes = state.queue(task, due) || was_full;
        drop(state);
        if wakes {
            self.moved.notify_one();
        }
    }
}

impl State {
    fn forget_task(&mut self, task: TaskId) {
        let places = self.watched.range((task, OWN)..=(task, usize::MAX));
        let subjects: Vec<Subject> = places.map(|(subject, _)| *subject).collect();
        for subject in subjects {
            self.forget(subject);
        }
    }

    /// Whether the loop must be woken for it.
    fn begin(&mut self, ask: Arc<Ask>, judge: Judge, rhythm: Rhythm, now_ms: u64) -> bool {
        self.last_number += 1;
        let (number, subject, due) = (self.last_number, ask.subject(), judge.next_ms());
        let told = String::new();
        let watched = Watched { number, ask, judge, rhythm, told, began_ms: now_ms };
        self.watched.insert(subject, watched);
        self.queue(subject, due)
    }

    fn forget(&mut self, task: Subject) {
        let Some(watched) = self.watched.remove(&task) else { return };
        watched.ask.gone.cancel();
        if let Some(due) = watched.judge.next_ms() {
            self.net.due.remove(&(due, task));
            self.exec.due.remove(&(due, task));
        }
    }

    /// Whether the loop must be woken for it.
    fn queue(&mut self, task: Subject, due: Option<u64>) -> bool {
        let (Some(due), Some(watched)) = (due, self.watched.get(&task)) else { return false };
        let lane = if watched.ask.is_exec() { &mut self.exec } else { &mut self.net };
        lane.due.insert((due, task));
        due < self.sleeps_until
    }
}

/// On one line, and short enough for a status.
fn cut(text: &str) -> String {
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.extend(word.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }));
        if line.len() > OUTPUT_BYTES {
            line.truncate(line.floor_char_boundary(OUTPUT_BYTES - '…'.len_utf8()));
            line.push('…');
            break;
        }
    }
    line
}

/// Has everybody asked when it is time, until the agent stops.
pub(crate) async fn run(tools: Arc<Tools>, tasks: Arc<Tasks>, rng: Arc<dyn Rng>) {
    loop {
        let now_ms = tools.clock.monotonic_ms();
        let (turns, next) = tools.prober.turns(now_ms, &tools.metrics);
        for turn in turns {
            let (tools, rng) = (Arc::clone(&tools), Arc::clone(&rng));
            tasks.spawn("probe", async move { take(&tools, rng.as_ref(), &turn).await });
        }
        tokio::select! {
            () = tools.prober.moved.notified() => {}
            () = tools.clock.sleep_until(next) => {}
            () = tools.stopping.cancelled() => return,
        }
    }
}

/// Asks once, and tells what is news.
async fn take(tools: &Tools, rng: &dyn Rng, turn: &Turn) {
    // Given back whatever becomes of the probe.
    let _resting = Resting { prober: &tools.prober, turn };
    let found = tokio::select! {
        biased;
        () = turn.ask.gone.cancelled() => return,
        found = ask(tools, &turn.ask) => found,
    };
    let metrics = &tools.metrics;
    count(if found.is_ok() { &metrics.probes_good } else { &metrics.probes_failed }, 1);
    let news = tools.prober.hear(turn, &found, tools.clock.monotonic_ms(), rng.next_u64());
    let Some(News { state, output }) = news else { return };
    if state == HealthState::Unhealthy {
        count(&metrics.became_unhealthy, 1);
    }
    let (task, attempt) = (turn.ask.task, turn.ask.attempt);
    let event = Event::Health { state, output };
    tell(&event, task);
    if turn.ask.before && state == HealthState::Healthy {
        let name = turn.ask.name.as_ref().map_or("", CompanionName::as_str);
        return tools.crews.ready(task, attempt, name).await;
    }
    // An unhealthy sidecar is no reason to stop the task's own container.
    let event = match (event, &turn.ask.name) {
        (Event::Health { state: HealthState::Starting, output }, Some(_)) if turn.ask.before => {
            Event::SidecarIll(output.unwrap_or_default())
        }
        (Event::Health { state: HealthState::Unhealthy, output }, Some(name)) => {
            if turn.ask.renew {
                tools.crews.renew(task, attempt, name.as_str()).await;
            }
            Event::SidecarIll(output.unwrap_or_default())
        }
        (event, _) => event,
    };
    let input = Input::Done { task, attempt, event, claimed: None };
    tools.tell(Message::Input(Box::new(input))).await;
}

struct Resting<'a> {
    prober: &'a Prober,
    turn: &'a Turn,
}

impl Drop for Resting<'_> {
    fn drop(&mut self) {
        self.prober.rest(self.turn);
    }
}

fn tell(event: &Event, task: TaskId) {
    let Event::Health { state, output } = event else { return };
    let output = output.as_deref().unwrap_or_default();
    match state {
        HealthState::Starting => tracing::debug!(task_id = %task, output, "not healthy yet"),
        HealthState::Healthy => tracing::info!(task_id = %task, "healthy"),
        HealthState::Unhealthy => tracing::warn!(task_id = %task, output, "unhealthy"),
    }
}

/// One probe within its time.
async fn ask(tools: &Tools, ask: &Ask) -> Result<(), String> {
    let timeout = tools.clock.sleep(ask.timeout_ms);
    if ask.is_exec() {
        return exec::ask(tools, &ask.container, &ask.probe, timeout, ask.timeout_ms).await;
    }
    let Some(address) = ask.address else {
        return Err("the container has no address".to_owned());
    };
    tokio::select! {
        biased;
        found = tools.probes.ask(address, &ask.probe) => found,
        () = timeout => Err(late(ask.timeout_ms)),
    }
}

fn late(timeout_ms: u64) -> String {
    format!("no answer within {}", warren_model::quantity::format_duration_ms(timeout_ms))
}

#[cfg(test)]
mod tests;
