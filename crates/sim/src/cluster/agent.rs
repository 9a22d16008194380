//! The agent of a host, for one life of its daemon: the real core, fed by a
//! session with whichever manager serves.
//!
//! Does what the agent's own session does, in few words: beats, a manager that
//! is silent for a second is given up, the next one is another. Its real code
//! (`pulse`, `route`) has its own tests; what is proven here is the core.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;
use tonic::Status;
use warren_agent::assignments::{Assignment, Gap};
use warren_agent::core::Input;
use warren_agent::{Changed, MembershipView};
use warren_base::clock::Clock;
use warren_base::rng::Rng;
use warren_model::task::TaskState;
use warren_proto::v1;
use warren_proto::v1::agent_message::{Beat, Hello, Kind as Said, Report};
use warren_proto::v1::manager_message::Kind;

use super::host::{Host, Life};
use super::plan::LIE;
use super::session::{self, Session};
use super::world::{World, held};
use crate::machine::{Need, pick};

const SILENCE_MS: u64 = 1_000;
const BEAT_MS: u64 = 500;
const RETRY_MS: u64 = 100;
/// A burst of assignments is one write; statuses change more often.
const KEEP_SET_MS: u64 = 200;
const KEEP_STATUS_MS: u64 = 1_000;
const KEEP_TABLE_MS: u64 = 5_000;

/// One life of an agent.
struct Agent {
    world: Arc<World>,
    host: Arc<Host>,
    life: Arc<Life>,
    instance: u64,
    managers: Vec<String>,
    last: Option<String>,
    session: Option<Session>,
    opening: Option<(u64, oneshot::Receiver<Result<Session, Status>>)>,
    retry_at: u64,
    hello_at: Option<u64>,
    beat_at: u64,
    heard_at: u64,
    number: u64,
    sent: BTreeMap<u64, u64>,
    keep_at: Option<u64>,
    held: (u64, u64),
}

/// Runs until the life ends.
pub(crate) async fn live(world: Arc<World>, host: Arc<Host>, life: Arc<Life>) {
    let kept = held(&host.kept).clone();
    let known = kept.as_ref().and_then(|kept| kept.set.membership.clone());
    let managers = known.map(|view| view.managers).filter(|list| !list.is_empty());
    let managers = managers.unwrap_or_else(|| world.first_managers());
    let instance = world.rng.next_u64();
    let mut agent = Agent {
        managers,
        instance,
        last: None,
        session: None,
        opening: None,
        retry_at: 0,
        hello_at: None,
        beat_at: 0,
        heard_at: 0,
        number: 0,
        sent: BTreeMap::new(),
        keep_at: None,
        held: (0, 0),
        world,
        host,
        life,
    };
    let needs = held(&agent.host.machine).restart(kept, agent.host.clock.now());
    agent.serve(needs);
    agent.run().await;
}

impl Agent {
    fn now_ms(&self) -> u64 {
        self.host.clock.monotonic_ms()
    }

    async fn run(&mut self) {
        loop {
            let now_ms = self.now_ms();
            self.work();
            self.keep(now_ms);
            self.upkeep(now_ms);
            self.begin_anew();
            self.report(now_ms);
            let wake = self.wake_at().max(now_ms + 1);
            let sleep = self.host.clock.sleep_until(wake);
            tokio::select! {
                biased;
                () = self.life.ended() => return,
                told = next(&mut self.session) => self.told(told),
                opened = opened(&mut self.opening) => self.opened(opened),
                () = self.host.poked() => {}
                () = sleep => {}
            }
            // Stopped in the middle of it: goes on where it was.
            while let Some(until) = self.world.net.stopped_until(self.host.place) {
                tokio::time::sleep_until(until).await;
                if self.life.has_ended() {
                    return;
                }
            }
        }
    }

    fn wake_at(&self) -> u64 {
        let machine = held(&self.host.machine).next_at();
        let line = match (&self.session, &self.opening) {
            (Some(_), _) => self.beat_at.min(self.heard_at + SILENCE_MS),
            (None, Some((since, _))) => since + SILENCE_MS,
            (None, None) => self.retry_at,
        };
        let wishes = [machine, Some(line), self.keep_at];
        wishes.into_iter().flatten().min().unwrap_or(u64::MAX)
    }

    /// Everything that is due on the machine.
    fn work(&mut self) {
        loop {
            let now = self.host.clock.now();
            let due = held(&self.host.machine).run_due(now);
            let Some((_, needs)) = due else { return };
            self.serve(needs);
        }
    }

    fn take(&mut self, input: Input) {
        let now = self.host.clock.now();
        let needs = held(&self.host.machine).handle(input, now);
        self.serve(needs);
    }

    fn serve(&mut self, needs: Vec<Need>) {
        let (changed, holds) = {
            let mut machine = held(&self.host.machine);
            let holds = (machine.core.epoch(), machine.core.set().revision);
            (machine.core.take_changed(), holds)
        };
        if holds < self.held {
            let (name, before) = (&self.host.name, self.held);
            self.world.fail(format!("{name}: went back from {before:?} to {holds:?}"));
        }
        self.held = holds;
        self.world.machine_moved(&self.host);
        let wait = match changed {
            None => None,
            Some(Changed::Set) => Some(KEEP_SET_MS),
            Some(Changed::Statuses) => Some(KEEP_STATUS_MS),
            Some(Changed::Table) => Some(KEEP_TABLE_MS),
        };
        if let Some(wait) = wait {
            let due = self.now_ms() + wait;
            self.keep_at = Some(self.keep_at.map_or(due, |earlier| earlier.min(due)));
        }
        for need in needs {
            match need {
                Need::Reconnect(gap) => {
                    self.world.trace((self.host.place, format!("{gap}")));
                    let now_ms = self.now_ms();
                    let pause = if matches!(gap, Gap::Older { .. }) { RETRY_MS } else { 0 };
                    self.leave(now_ms + pause);
                }
                Need::Membership(view) => self.joined(*view),
            }
        }
    }

    /// What managers say of this node's place among them.
    fn joined(&mut self, view: MembershipView) {
        if !view.managers.is_empty() {
            self.managers = view.managers;
        }
        match (view.manager, view.number) {
            (true, Some(number)) if self.host.number().is_none() => {
                self.world.note(|| format!("{}: becomes manager {number}", self.host.name));
                self.host.becomes_manager(number, false);
                self.host.begin_managing(&self.world, &self.life);
            }
            (false, _) => {
                if let Some(number) = self.host.number() {
                    let (world, host) = (Arc::clone(&self.world), Arc::clone(&self.host));
                    tokio::spawn(dismissed(world, host, Arc::clone(&self.life), number));
                }
            }
            _ => {}
        }
    }

    fn keep(&mut self, now_ms: u64) {
        if self.keep_at.take_if(|due| *due <= now_ms).is_some() {
            let cached = held(&self.host.machine).core.cached(self.host.clock.now());
            *held(&self.host.kept) = Some(cached);
        }
    }

    fn leave(&mut self, retry_at: u64) {
        if let Some(session) = self.session.take() {
            // Its end is heard at the other side when it gets there; here it is over.
            drop(session);
        }
        self.opening = None;
        self.retry_at = retry_at;
    }

    fn upkeep(&mut self, now_ms: u64) {
        if let Some(session) = &self.session {
            if now_ms >= self.heard_at + SILENCE_MS {
                let with = session.with.name.clone();
                self.world.note(|| format!("{}: {with} is silent", self.host.name));
                self.leave(now_ms);
            } else if now_ms >= self.beat_at {
                self.beat_at = now_ms + BEAT_MS;
                self.number += 1;
                self.sent.insert(self.number, now_ms);
                let beat = Beat { number: self.number, rtt_ms: 2 };
                session.said.send(v1::AgentMessage { kind: Some(Said::Beat(beat)) });
            }
        }
        let late = self.opening.as_ref().is_some_and(|(at, _)| now_ms >= at + SILENCE_MS);
        if late {
            self.opening = None;
        }
        if self.session.is_none() && self.opening.is_none() && now_ms >= self.retry_at {
            self.open(now_ms);
        }
    }

    fn open(&mut self, now_ms: u64) {
        if let Some(named) = held(&self.host.told).take() {
            self.managers = named;
        }
        let others: Vec<&String> =
            self.managers.iter().filter(|address| Some(*address) != self.last.as_ref()).collect();
        let rng = self.world.rng.as_ref();
        let address = match pick(rng, others.len()) {
            Some(at) => others[at].clone(),
            None => match self.managers.first() {
                Some(only) => only.clone(),
                None => return self.retry_at = now_ms + RETRY_MS,
            },
        };
        self.last = Some(address.clone());
        let Some(with) = self.world.host_at(&address) else {
            return self.retry_at = now_ms + RETRY_MS;
        };
        let (revision, epoch) = {
            let machine = held(&self.host.machine);
            (machine.core.revision(), machine.core.epoch())
        };
        let hello = Hello {
            node_id: self.host.node.as_bytes().to_vec(),
            description: Some((&self.host.description()).into()),
            assigned_revision: revision,
            epoch,
            instance: self.instance,
        };
        self.hello_at = Some(now_ms);
        let (done, opened) = oneshot::channel();
        let opening = session::open(self.world.clone(), self.host.clone(), with, hello);
        tokio::spawn(async move {
            let mut done = done;
            tokio::select! {
                // Given up meanwhile.
                () = done.closed() => {}
                session = opening => drop(done.send(session)),
            }
        });
        self.opening = Some((now_ms, opened));
    }

    fn opened(&mut self, opened: Option<Result<Session, Status>>) {
        let now_ms = self.now_ms();
        self.opening = None;
        match opened {
            Some(Ok(session)) => {
                let with = session.with.name.clone();
                self.world.note(|| format!("{}: session with {with}", self.host.name));
                self.session = Some(session);
                self.sent.clear();
                (self.beat_at, self.heard_at) = (now_ms, now_ms);
                let resumed = held(&self.host.machine).core.revision() > 0;
                self.take(Input::Opened);
                if resumed {
                    self.take(Input::Resumed);
                }
            }
            Some(Err(status)) => {
                self.world.trace((self.host.place, status.code() as u32));
                if status.metadata().get("warren-removed").is_some() {
                    self.removed();
                }
                self.retry_at = now_ms + RETRY_MS + self.world.rng.below(RETRY_MS);
            }
            None => self.retry_at = now_ms + RETRY_MS,
        }
    }

    fn removed(&mut self) {
        self.world.note(|| format!("{}: hears that it was removed", self.host.name));
        self.host.lost.store(true, Ordering::Relaxed);
        self.take(Input::Removed);
    }

    fn told(&mut self, told: Option<session::Told>) {
        let now_ms = self.now_ms();
        let Some(Ok(message)) = told else { return self.leave(now_ms + RETRY_MS) };
        self.heard_at = now_ms;
        if let Some(sent_ms) = self.hello_at.take() {
            self.take(Input::Heard { sent_ms });
        }
        match message.kind {
            Some(Kind::Assignment(wire)) => {
                let assignment = Assignment::from(wire);
                if let Some(problem) = assignment.problems.first() {
                    self.world.fail(format!("{}: {problem}", self.host.name));
                }
                self.world.trace((self.host.place, assignment.revision));
                self.take(Input::Assigned(Box::new(assignment)));
            }
            Some(Kind::Beat(beat)) => {
                let Some(sent_ms) = self.sent.remove(&beat.number) else { return };
                self.sent = self.sent.split_off(&beat.number);
                self.take(Input::Heard { sent_ms });
            }
            Some(Kind::Stream(_)) | None => {}
        }
    }

    /// What people want to begin anew.
    fn begin_anew(&mut self) {
        let wished = std::mem::take(&mut *held(&self.host.restarts));
        for task in wished {
            self.take(Input::Restart(task));
        }
    }

    /// Says that a task of another node failed, if this host is to lie.
    fn lie(&self) {
        let Some(session) = &self.session else { return };
        if !self.host.lies.swap(false, Ordering::Relaxed) {
            return;
        }
        let Some((_, running)) = session.with.running() else { return };
        let view = running.store.view();
        let others: Vec<_> =
            view.tasks().filter(|task| task.node.is_some_and(|n| n != self.host.node)).collect();
        let Some(at) = pick(self.world.rng.as_ref(), others.len()) else { return };
        let mut status = others[at].status.clone();
        (status.state, status.error) = (TaskState::Failed, Some(LIE.into()));
        let status = v1::agent_message::Status {
            task: others[at].id.as_bytes().to_vec(),
            status: Some(v1::TaskStatus::from(&status)),
        };
        let kind = Some(Said::Report(Report { statuses: vec![status], ..Report::default() }));
        session.said.send(v1::AgentMessage { kind });
    }

    fn report(&mut self, now_ms: u64) {
        self.lie();
        let Some(session) = &self.session else {
            // It is said anew with the next session; until then it would only wake.
            held(&self.host.machine).core.outbox().take_through();
            return;
        };
        let (statuses, through) = {
            let mut machine = held(&self.host.machine);
            let outbox = machine.core.outbox();
            (outbox.take(now_ms), outbox.take_through().unwrap_or(0))
        };
        if statuses.is_empty() && through == 0 {
            return;
        }
        let statuses = statuses.into_iter().map(|(task, status)| v1::agent_message::Status {
            task: task.as_bytes().to_vec(),
            status: Some(v1::TaskStatus::from(&status)),
        });
        let statuses = statuses.collect();
        let kind = Some(Said::Report(Report { statuses, through, ..Report::default() }));
        session.said.send(v1::AgentMessage { kind });
    }
}

async fn next(session: &mut Option<Session>) -> Option<session::Told> {
    match session {
        Some(session) => session.told.recv().await,
        None => std::future::pending().await,
    }
}

async fn opened(
    opening: &mut Option<(u64, oneshot::Receiver<Result<Session, Status>>)>,
) -> Option<Result<Session, Status>> {
    match opening {
        Some((_, opened)) => opened.await.ok(),
        None => std::future::pending().await,
    }
}

/// A manager that was demoted goes on until it is no member any more, or others say so.
async fn dismissed(world: Arc<World>, host: Arc<Host>, life: Arc<Life>, number: u64) {
    const LOOK_MS: u64 = 200;
    // One that became a manager again is another one.
    while !life.has_ended() && host.number() == Some(number) {
        if let Some((_, running)) = host.running() {
            let status = running.store.status();
            if !status.member || status.removed {
                return host.stop_managing(&world, &life).await;
            }
            running.store.ask_members().await;
        }
        host.sleep(LOOK_MS).await;
    }
}
