//! The containers of one attempt of a task that has init containers or sidecars: who is started
//! and stopped, and when.
//!
//! Pure: what happened goes in, what to do next comes out; a wish to be called again is data
//! ([`Crew::wake_at`]). Init containers run one after another to their end, then sidecars are
//! started in order, then the task's own container. One that says how it is asked for its health
//! is waited for: it is ready before the next is started. A sidecar that ends is started again
//! after a growing pause. When the task's own container has ended, sidecars are stopped in reverse order,
//! one after another, and only then is the attempt over.
//!
//! Invariants:
//! - nothing but one init container runs until the last of them ended with 0;
//! - after [`Answer::NotStarted`], [`Answer::InitFailed`] and [`Answer::Exited`] nothing of the
//!   attempt runs, nor will.
//!
//! Not here: what follows from an attempt's end (`task`), how containers are started (`drive`).

use std::sync::Arc;

use warren_model::health::Healthcheck;
use warren_model::quantity::Time;
use warren_model::service::{CompanionKind, CompanionName, RestartCondition, RestartPolicy};
use warren_model::task::{CompanionState, CompanionStatus, TaskExit};
use warren_model::{TaskId, TaskTemplate};

use crate::restart::{self, Run, Verdict};
use crate::task::{Ended, Failure, FailureKind, FoundState, Now};

mod drive;
#[cfg(test)]
mod tests;

pub(crate) use drive::{Crews, adopt, begin, merged};

/// A companion's container that an earlier process left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundCompanion {
    pub(crate) task: TaskId,
    pub(crate) attempt: u32,
    pub(crate) name: CompanionName,
    pub(crate) restarts: u32,
    pub(crate) state: FoundState,
}

/// Something happened; containers by their place in the order of starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Happened {
    Started {
        at: usize,
        pid: u32,
        when: Time,
    },
    NotStarted {
        at: usize,
        failure: Failure,
    },
    Ended {
        at: usize,
        ended: Ended,
    },
    MainStarted {
        pid: u32,
        when: Time,
    },
    MainNotStarted(Failure),
    MainEnded(Ended),
    /// The start is not wanted any more.
    Halt,
    /// A sidecar has answered well.
    Ready {
        at: usize,
    },
    /// A sidecar is not what it should be: it is to begin anew.
    Ailing {
        at: usize,
    },
    Wake,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// In place of what may be left under its name; tell when it has ended.
    Start(usize),
    /// Tell when it has ended.
    Wait(usize),
    /// Ask it for its health from now on; tell when it is ready.
    Probe(usize),
    StartMain,
    WaitMain,
    /// Stop signal, then SIGKILL after its grace period.
    Stop(usize),
    Answer(Answer),
}

/// What the task's machine is to hear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Started {
        pid: u32,
        when: Time,
    },
    NotStarted(Failure),
    InitFailed {
        ended: Ended,
        why: String,
    },
    /// The task's own container has ended; sidecars are being stopped.
    Ending,
    Exited(Ended),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// Begins with the container at this place.
    Starting(usize),
    StartingMain,
    Up,
    /// What runs is being stopped, then this is said.
    Stopping(Answer),
    Over,
}

/// One container beside the task's own.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    name: CompanionName,
    kind: CompanionKind,
    state: CompanionState,
    since: Time,
    pid: u32,
    restarts: u32,
    exit: Option<TaskExit>,
    /// Restarts since it last ran for long.
    streak: u32,
    /// A start is under way.
    starting: bool,
    /// A stop is under way.
    stopping: bool,
    /// Others are started once it is ready.
    awaited: bool,
    ready: bool,
    /// When it is started again.
    again_ms: Option<u64>,
}

impl Member {
    fn enter(&mut self, state: CompanionState, when: Time) {
        self.state = state;
        self.since = when;
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Crew {
    members: Vec<Member>,
    phase: Phase,
    restart: RestartPolicy,
    halted: bool,
}

impl Crew {
    /// Of a template, with what an earlier process left of this attempt.
    fn new(template: &TaskTemplate, found: &[FoundCompanion]) -> Self {
        let inits = template.of_kind(CompanionKind::Init);
        let all = inits.chain(template.of_kind(CompanionKind::Sidecar));
        let members = all.map(|companion| Member {
            name: companion.name.clone(),
            kind: companion.kind,
            state: CompanionState::Waiting,
            since: Time(0),
            pid: 0,
            restarts: 0,
            exit: None,
            streak: 0,
            starting: false,
            stopping: false,
            awaited: companion.kind == CompanionKind::Sidecar
                && matches!(companion.task.health, Healthcheck::Explicit(_)),
            ready: false,
            again_ms: None,
        });
        // It has no end of its own: it is there for as long as the task.
        let restart = RestartPolicy {
            condition: RestartCondition::Any,
            max_attempts: None,
            ..template.restart
        };
        let members = members.collect();
        let mut crew = Self { members, phase: Phase::Starting(0), restart, halted: false };
        for found in found {
            if let Some(member) = crew.members.iter_mut().find(|m| m.name == found.name) {
                member.restarts = found.restarts;
                member.streak = found.restarts;
                match found.state {
                    FoundState::Running { pid, at } => {
                        member.pid = pid;
                        member.enter(CompanionState::Running, at);
                    }
                    FoundState::Exited { ended, .. } => {
                        member.exit = Some(exit(&ended));
                        member.enter(CompanionState::Exited, ended.at);
                    }
                    FoundState::Beginning => {}
                }
            }
        }
        crew
    }

    /// A start, from where an earlier process left it.
    pub(crate) fn begin(
        template: &TaskTemplate,
        found: &[FoundCompanion],
        now: Now,
    ) -> (Self, Vec<Step>) {
        let mut crew = Self::new(template, found);
        let steps = crew.go_on(now);
        (crew, steps)
    }

    /// The task's own container runs, or ended while nobody looked.
    pub(crate) fn adopt(
        template: &TaskTemplate,
        found: &[FoundCompanion],
        now: Now,
    ) -> (Self, Vec<Step>) {
        let mut crew = Self::new(template, found);
        crew.phase = Phase::Up;
        let mut steps = vec![Step::WaitMain];
        for at in 0..crew.members.len() {
            let member = &mut crew.members[at];
            match (member.kind, member.state) {
                // It ended well, or nothing else would have been started.
                (CompanionKind::Init, _) => {
                    member.enter(CompanionState::Exited, member.since);
                    member.exit = member.exit.or(Some(TaskExit { code: 0, oom_killed: false }));
                }
                (CompanionKind::Sidecar, CompanionState::Running) => steps.push(Step::Wait(at)),
                (CompanionKind::Sidecar, _) => member.again_ms = Some(now.mono_ms),
            }
        }
        steps.extend(crew.wake(now));
        (crew, steps)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// When to tell [`Happened::Wake`], on the monotonic clock.
    pub(crate) fn wake_at(&self) -> Option<u64> {
        self.members.iter().filter_map(|member| member.again_ms).min()
    }

    pub(crate) fn statuses(&self) -> Arc<Vec<CompanionStatus>> {
        let status = |member: &Member| CompanionStatus {
            name: member.name.clone(),
            kind: member.kind,
            state: member.state,
            since: member.since,
            pid: member.pid,
            restarts: member.restarts,
            exit: member.exit,
        };
        Arc::new(self.members.iter().map(status).collect())
    }

    /// What follows.
    pub(crate) fn step(&mut self, happened: Happened, now: Now) -> Vec<Step> {
        match happened {
            Happened::Started { at, pid, when } => {
                let member = &mut self.members[at];
                (member.starting, member.pid) = (false, pid);
                member.enter(CompanionState::Running, when);
                let mut steps = vec![Step::Wait(at)];
                steps.extend(self.settle(at, now));
                steps
            }
            Happened::NotStarted { at, failure } => self.not_started(at, failure, now),
            Happened::Ended { at, ended } => self.ended(at, ended, now),
            Happened::MainStarted { pid, when } => {
                self.phase = Phase::Up;
                vec![Step::WaitMain, Step::Answer(Answer::Started { pid, when })]
            }
            Happened::MainNotStarted(failure) => self.stop_all(Answer::NotStarted(failure)),
            Happened::MainEnded(ended) => {
                let mut steps = self.stop_all(Answer::Exited(ended));
                if !self.is_over() {
                    steps.insert(0, Step::Answer(Answer::Ending));
                }
                steps
            }
            Happened::Halt => self.halt(now),
            Happened::Ready { at } => self.ready(at, now),
            Happened::Ailing { at } => match self.phase {
                Phase::Starting(_) | Phase::StartingMain | Phase::Up => {
                    self.stop_member(at).into_iter().collect()
                }
                Phase::Stopping(_) | Phase::Over => vec![],
            },
            Happened::Wake => self.wake(now),
        }
    }

    /// Starts whoever is next.
    fn go_on(&mut self, now: Now) -> Vec<Step> {
        let mut steps = Vec::new();
        while let Phase::Starting(at) = self.phase {
            if self.halted {
                steps.extend(self.stop_all(Answer::NotStarted(halted())));
                break;
            }
            let Some(member) = self.members.get_mut(at) else {
                self.phase = Phase::StartingMain;
                steps.push(Step::StartMain);
                steps.extend(self.wake(now));
                break;
            };
            let well = member.exit.is_some_and(|exit| exit.code == 0 && !exit.oom_killed);
            match (member.kind, member.state) {
                (CompanionKind::Init, CompanionState::Exited) if well => {}
                // Found by a new process, which waits for it as the old one did.
                (CompanionKind::Init, CompanionState::Running) => {
                    steps.push(Step::Wait(at));
                    break;
                }
                // Left by an earlier process, or ready by now.
                (CompanionKind::Sidecar, CompanionState::Running) => {
                    if !member.ready {
                        steps.push(Step::Wait(at));
                    }
                    if member.awaited && !member.ready {
                        steps.push(Step::Probe(at));
                        break;
                    }
                }
                (CompanionKind::Init | CompanionKind::Sidecar, _) => {
                    member.starting = true;
                    steps.push(Step::Start(at));
                    break;
                }
            }
            self.phase = Phase::Starting(at + 1);
        }
        steps
    }

    /// A sidecar is as it should be: whoever waits for it is next.
    fn ready(&mut self, at: usize, now: Now) -> Vec<Step> {
        let member = &mut self.members[at];
        // Said of one that has ended since.
        if member.state != CompanionState::Running {
            return vec![];
        }
        member.ready = true;
        if self.phase != Phase::Starting(at) {
            return vec![];
        }
        self.go_on(now)
    }

    /// The container at `started` has just been started.
    fn settle(&mut self, started: usize, now: Now) -> Vec<Step> {
        match self.phase {
            // Again: others are waited for.
            Phase::Starting(at) if at != started => vec![],
            Phase::Starting(at) if self.members[at].awaited && !self.halted => {
                vec![Step::Probe(at)]
            }
            // An init container is waited for, unless nobody wants it any more.
            Phase::Starting(at) if self.members[at].kind == CompanionKind::Init => {
                if self.halted {
                    self.stop_all(Answer::NotStarted(halted()))
                } else {
                    vec![]
                }
            }
            Phase::Starting(at) => {
                self.phase = Phase::Starting(at + 1);
                self.go_on(now)
            }
            Phase::StartingMain | Phase::Up => vec![],
            Phase::Stopping(_) => self.stop_next(),
            Phase::Over => vec![],
        }
    }

    fn not_started(&mut self, at: usize, failure: Failure, now: Now) -> Vec<Step> {
        self.members[at].starting = false;
        match self.phase {
            Phase::Starting(_) if self.members[at].restarts == 0 => {
                let member = &self.members[at];
                let (kind, name) = (member.kind.words(), &member.name);
                let message = format!("{kind} `{name}`: {}", failure.message);
                self.stop_all(Answer::NotStarted(Failure { message, ..failure }))
            }
            // It ran before: as one that ends at once.
            Phase::Starting(_) | Phase::StartingMain | Phase::Up => {
                self.again(at, 0, now);
                vec![]
            }
            Phase::Stopping(_) => self.stop_next(),
            Phase::Over => vec![],
        }
    }

    fn ended(&mut self, at: usize, ended: Ended, now: Now) -> Vec<Step> {
        let member = &mut self.members[at];
        let ran_ms = ended.at.since_ms(member.since);
        (member.stopping, member.ready, member.pid) = (false, false, 0);
        member.exit = Some(exit(&ended));
        member.enter(CompanionState::Exited, ended.at);
        match (&self.phase, member.kind) {
            (Phase::Starting(_), CompanionKind::Init) => {
                let well = ended.code == 0 && !ended.oom_killed && !ended.supervisor_lost;
                if self.halted {
                    return self.stop_all(Answer::NotStarted(halted()));
                }
                if !well {
                    let why = init_failed(&member.name, &ended);
                    return self.stop_all(Answer::InitFailed { ended, why });
                }
                self.go_on(now)
            }
            (Phase::Starting(_) | Phase::StartingMain | Phase::Up, _) => {
                self.again(at, ran_ms, now);
                self.wake(now)
            }
            (Phase::Stopping(_), _) => self.stop_next(),
            (Phase::Over, _) => vec![],
        }
    }

    /// A sidecar is started again after a pause.
    fn again(&mut self, at: usize, ran_ms: u64, now: Now) {
        let member = &mut self.members[at];
        let verdict = restart::decide(&self.restart, member.streak, Run { ran_ms, well: false });
        let (after_ms, streak) = match verdict {
            Verdict::Restart { after_ms, restarts } => (after_ms, restarts),
            // Not with this policy.
            Verdict::Complete | Verdict::Failed => (RestartPolicy::DELAY_MAX_MS, member.streak),
        };
        member.streak = streak;
        member.again_ms = Some(now.mono_ms.saturating_add(after_ms));
    }

    /// Sidecars whose pause is over.
    fn wake(&mut self, now: Now) -> Vec<Step> {
        let mut steps = Vec::new();
        for (at, member) in self.members.iter_mut().enumerate() {
            if member.again_ms.is_some_and(|due| due <= now.mono_ms) {
                member.again_ms = None;
                member.restarts = member.restarts.saturating_add(1);
                member.starting = true;
                steps.push(Step::Start(at));
            }
        }
        steps
    }

    fn halt(&mut self, now: Now) -> Vec<Step> {
        self.halted = true;
        match self.phase {
            Phase::Starting(at) => match self.members.get(at) {
                // It is stopped once it has started.
                Some(member) if member.starting => vec![],
                Some(_) => self.stop_all(Answer::NotStarted(halted())),
                None => self.go_on(now),
            },
            // The task's machine stops it when it has started.
            Phase::StartingMain | Phase::Up | Phase::Stopping(_) | Phase::Over => vec![],
        }
    }

    fn stop_all(&mut self, answer: Answer) -> Vec<Step> {
        for member in &mut self.members {
            member.again_ms = None;
        }
        self.phase = Phase::Stopping(answer);
        self.stop_next()
    }

    /// Stops the last that runs; when none does, it is over.
    fn stop_next(&mut self) -> Vec<Step> {
        let busy = |member: &Member| {
            member.starting || member.stopping || member.state == CompanionState::Running
        };
        if let Some(at) = self.members.iter().rposition(busy) {
            return self.stop_member(at).into_iter().collect();
        }
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Stopping(answer) => vec![Step::Answer(answer)],
            Phase::Starting(_) | Phase::StartingMain | Phase::Up | Phase::Over => vec![],
        }
    }

    /// Unless it is on its way already, up or down.
    fn stop_member(&mut self, at: usize) -> Option<Step> {
        let member = &mut self.members[at];
        let stops = member.state == CompanionState::Running && !member.starting && !member.stopping;
        member.stopping |= stops;
        stops.then_some(Step::Stop(at))
    }
}

fn halted() -> Failure {
    Failure { message: "stopped before it began".to_owned(), kind: FailureKind::Transient }
}

fn exit(ended: &Ended) -> TaskExit {
    TaskExit { code: ended.code, oom_killed: ended.oom_killed }
}

fn init_failed(name: &CompanionName, ended: &Ended) -> String {
    if ended.supervisor_lost || ended.oom_killed || ended.signal.is_some() {
        return format!("init container `{name}`: {}", ended.describe());
    }
    format!("init container `{name}` exited with {}", ended.code)
}
