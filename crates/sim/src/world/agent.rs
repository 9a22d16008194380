//! The agent's side of the world: what its commands do to the machine, and when they answer.

use warren_agent::core::{Command, Input, Order};
use warren_agent::published::PortKey;
use warren_agent::task::{Effect, Ended, Event, Failure, FailureKind};
use warren_base::rng::Rng;
use warren_model::TaskId;

use super::{Happening, Held, World};
use crate::node::Container;

/// Exit code of a process that a signal 9 ended.
const KILLED: i32 = 137;

impl World {
    pub(super) fn agent(&mut self, input: Input) -> Held {
        let now = self.now();
        let commands = self.node.core.handle(input, now);
        for command in commands {
            self.command(command);
        }
        self.send_reports();
        self.queue_wake();
        Ok(())
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Do(order) => self.order(&order),
            Command::Apply { generation, table } => {
                self.node.table = table;
                self.answer(3, Input::Applied { generation, error: None });
            }
            Command::Discard { task, attempts } => {
                for attempt in attempts {
                    self.node.containers.remove(&(task, attempt));
                }
            }
            Command::SweepLogs { .. } => {}
            Command::Reconnect(_) => self.connect(),
        }
    }

    fn answer(&mut self, within_ms: u64, input: Input) {
        let at = self.soon(within_ms);
        self.queue.at(at, Happening::Effect { life: self.life, input });
    }

    fn done(&mut self, within_ms: u64, order: &Order, event: Event) {
        let (task, attempt) = (order.spec.id, order.attempt);
        self.answer(within_ms, Input::Done { task, attempt, event, claimed: None });
    }

    fn order(&mut self, order: &Order) {
        let (task, attempt) = (order.spec.id, order.attempt);
        match &order.effect {
            Effect::Prepare => self.prepare(order),
            Effect::Start => self.start(order),
            Effect::Wait => {
                let Some(container) = self.node.containers.get_mut(&(task, attempt)) else {
                    return;
                };
                container.waited = true;
                if let Some(ended) = container.ended {
                    self.done(0, order, Event::Exited(ended));
                }
            }
            Effect::Stop { grace_ms } => {
                let stubborn = self.rng.below(10) == 0;
                let (within, code, signal) =
                    if stubborn { (*grace_ms, KILLED, Some(9)) } else { (50, 143, Some(15)) };
                let at = self.now_ms + if stubborn { within } else { self.rng.below(within) };
                self.queue.at(at, Happening::ContainerEnds { task, attempt, code, signal });
            }
            Effect::Clear { attempt: old } => {
                self.node.containers.remove(&(task, *old));
                self.done(10, order, Event::Cleared { attempt: *old });
            }
            Effect::Claim => {
                let claimed = order.claims.iter().map(|claim| claim.key).collect();
                self.claimed(order, Event::Claimed, claimed);
            }
            Effect::Release => self.claimed(order, Event::Released, Vec::new()),
            Effect::Clean { attempts } => {
                for attempt in attempts {
                    self.node.containers.remove(&(task, *attempt));
                }
                self.claimed(order, Event::Cleaned, Vec::new());
            }
        }
    }

    fn claimed(&mut self, order: &Order, event: Event, claimed: Vec<PortKey>) {
        let (task, attempt) = (order.spec.id, order.attempt);
        let claimed = Some(claimed.into_iter().collect());
        self.answer(5, Input::Done { task, attempt, event, claimed });
    }

    fn prepare(&mut self, order: &Order) {
        if self.rng.below(20) == 0 {
            let message = "registry is away".to_owned();
            let failure = Failure { message, kind: FailureKind::Transient };
            self.done(200, order, Event::PrepareFailed(failure));
            return;
        }
        let claimed = order.claims.iter().map(|claim| claim.key).collect();
        self.claimed(order, Event::Prepared, claimed);
    }

    fn start(&mut self, order: &Order) {
        let key = (order.spec.id, order.attempt);
        if self.rng.below(40) == 0 {
            let failure =
                Failure { message: "no memory now".to_owned(), kind: FailureKind::Transient };
            self.done(10, order, Event::StartFailed(failure));
            return;
        }
        let (pid, started) = match self.node.containers.get(&key) {
            // Doing it twice is harmless.
            Some(container) => (container.pid, container.started),
            None => (self.node.pid(), self.wall()),
        };
        self.node.containers.entry(key).or_insert_with(|| Container {
            pid,
            started,
            restarts: order.restarts,
            last_exit: order.last_exit,
            ended: None,
            waited: false,
        });
        self.done(8, order, Event::Started { pid, at: started });
        // Some programs are broken: their service is called so.
        if order.spec.template.command.first().is_some_and(|word| word == "crash") {
            let (task, attempt) = key;
            let at = self.now_ms + 8 + self.rng.below(100);
            self.queue.at(at, Happening::ContainerEnds { task, attempt, code: 1, signal: None });
        }
    }

    pub(super) fn container_ends(&mut self, key: (TaskId, u32), code: i32, signal: Option<i32>) {
        let ended =
            Ended { code, signal, oom_killed: false, supervisor_lost: false, at: self.wall() };
        if self.node.end(key, ended) {
            let event = Event::Exited(ended);
            self.answer(2, Input::Done { task: key.0, attempt: key.1, event, claimed: None });
        }
    }

    pub(super) fn crash_container(&mut self) {
        let alive: Vec<(TaskId, u32)> = self
            .node
            .containers
            .iter()
            .filter(|(_, container)| container.ended.is_none())
            .map(|(key, _)| *key)
            .collect();
        if alive.is_empty() {
            return;
        }
        let at = usize::try_from(self.rng.below(alive.len() as u64)).unwrap_or(0);
        self.report.container_crashes += 1;
        self.container_ends(alive[at], KILLED, Some(9));
    }

    fn send_reports(&mut self) {
        let statuses = self.node.core.outbox().take(self.now_ms);
        let Some(session) = &mut self.session else { return };
        if statuses.is_empty() {
            return;
        }
        let at = (self.now_ms + self.rng.below(4)).max(session.last_report);
        session.last_report = at;
        self.queue.at(at, Happening::Reported { life: self.life, statuses });
    }

    fn queue_wake(&mut self) {
        let core = &self.node.core;
        let wishes = [core.wake_at(), core.report_due_at()];
        let Some(at) = wishes.into_iter().flatten().min() else { return };
        let at = at.max(self.now_ms + 1);
        // An earlier wake-up asks again anyway.
        if self.agent_wake.first_key_value().is_none_or(|(queued, ())| at < *queued) {
            self.agent_wake.insert(at, ());
            self.queue.at(at, Happening::AgentWake { life: self.life });
        }
    }
}
