//! A task: one slot of a service, at one revision, on one node.
//!
//! Two writers, one field each: managers write [`Task::desired`] (and where it
//! runs), the node's agent writes [`Task::status`].

use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::device::Devices;
use crate::health::{Health, HealthState};
use crate::id::{NodeId, ServiceId, TaskId};
use crate::moving::Origin;
use crate::quantity::Time;
use crate::service::{CompanionKind, CompanionName};

/// Lean on purpose: a cluster may hold a million.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    pub id: TaskId,
    pub service: ServiceId,
    /// From 1; for a global service the same on every node. 0: it has none, but is a hook
    /// ([`Task::hook`]).
    pub slot: u32,
    /// Which template of the service it runs.
    pub template: u32,
    /// Of which run of a job it is; without a slot, which hook; 0 of any other.
    pub run: u32,
    pub node: Option<NodeId>,
    /// Chosen with the node, from one of its blocks; kept over restarts in place.
    pub address: Option<Ipv4Addr>,
    /// Of its node, chosen with it; nobody else has them until it has ended.
    pub devices: Devices,
    pub desired: Desired,
    pub status: TaskStatus,
    pub created: Time,
    /// Why it was made; none: by a version that did not say.
    pub origin: Option<Origin>,
    /// Revision of the last change.
    pub revision: u64,
}

/// What managers want of a task; only goes down the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Desired {
    Running,
    /// Stopped, but kept for history.
    Shutdown,
    /// Stopped, cleaned up and forgotten.
    Remove,
}

/// What a person may ask the node of a task to do with its container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskControl {
    /// In place: the same task, its next attempt.
    Restart,
    /// A signal, by its number, to the first process.
    Signal(i32),
    /// Its processes get no processor any more.
    Pause,
    Unpause,
}

/// What the agent saw last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskStatus {
    pub state: TaskState,
    /// When `state` was entered.
    pub since: Time,
    /// From 1 with the first start; restarts in place add one.
    pub attempt: u32,
    /// First process in the host's pid namespace while running.
    pub pid: u32,
    pub started: Option<Time>,
    /// Of the last attempt that ended.
    pub exit: Option<TaskExit>,
    /// Why it is not running, in words for people.
    pub error: Option<Box<str>>,
    /// Of the attempt that runs; none while nothing is to be found out about it, and of agents
    /// that know of no checks.
    pub health: Option<Health>,
    /// Of its init containers and sidecars, in the order in which they are started; none of a task
    /// that has none, of which nothing was started yet, and of agents that know of no such thing.
    pub companions: Option<Arc<Vec<CompanionStatus>>>,
    /// Its processes stand still because a person asked for it; only while it runs.
    pub paused: bool,
}

/// One more container of a task, as the agent saw it last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompanionStatus {
    pub name: CompanionName,
    pub kind: CompanionKind,
    pub state: CompanionState,
    /// When `state` was entered.
    pub since: Time,
    /// First process in the host's pid namespace while running.
    pub pid: u32,
    /// Within this attempt of the task.
    pub restarts: u32,
    /// Of its last end.
    pub exit: Option<TaskExit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CompanionState {
    /// Its turn has not come.
    Waiting,
    Running,
    /// A sidecar is started again while the task is to run.
    Exited,
}

impl CompanionState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Exited => "exited",
        }
    }
}

impl TaskStatus {
    pub fn new(state: TaskState, since: Time) -> Self {
        Self {
            state,
            since,
            attempt: 0,
            pid: 0,
            started: None,
            exit: None,
            error: None,
            health: None,
            companions: None,
            paused: false,
        }
    }

    pub fn companions(&self) -> &[CompanionStatus] {
        self.companions.as_deref().map_or(&[], Vec::as_slice)
    }

    /// Restarts of all its sidecars in this attempt: only goes up.
    pub fn companion_restarts(&self) -> u64 {
        self.companions().iter().map(|companion| u64::from(companion.restarts)).sum()
    }

    /// What its companions do that is worth a word: `init migrate 1/2`, `sidecar proxy exited`.
    pub fn companion_note(&self) -> Option<String> {
        let of = |kind| self.companions().iter().filter(move |c| c.kind == kind);
        let ended = |c: &&CompanionStatus| c.state == CompanionState::Exited;
        match self.state {
            TaskState::Starting => {
                let count = of(CompanionKind::Init).count();
                let runs = |c: &CompanionStatus| c.state == CompanionState::Running;
                if let Some(at) = of(CompanionKind::Init).position(runs) {
                    let name = &of(CompanionKind::Init).nth(at)?.name;
                    return Some(format!("init {name} {}/{count}", at + 1));
                }
                // The last that was started is the one that others wait for.
                let count = of(CompanionKind::Sidecar).count();
                let (at, last) =
                    of(CompanionKind::Sidecar).enumerate().filter(|(_, c)| runs(c)).last()?;
                Some(format!("sidecar {} {}/{count}", last.name, at + 1))
            }
            TaskState::Running => {
                let name = &of(CompanionKind::Sidecar).find(ended)?.name;
                Some(format!("sidecar {name} exited"))
            }
            _ => None,
        }
    }

    /// How a paused task is shown, in place of its state.
    pub const PAUSED: &str = "paused";

    /// Whether it does its work: it runs, is not paused, and is healthy where that is to be found
    /// out.
    pub fn is_ready(&self) -> bool {
        self.state == TaskState::Running
            && !self.paused
            && self.health.is_none_or(|health| health.state == HealthState::Healthy)
    }

    /// Since when it does its work, if it does.
    pub fn ready_since(&self) -> Option<Time> {
        let since = self.health.map_or(self.since, |health| health.since.max(self.since));
        self.is_ready().then_some(since)
    }

    /// Its state for people: `running (healthy)`.
    pub fn describe(&self) -> String {
        if self.paused {
            return Self::PAUSED.to_owned();
        }
        let state = self.state.as_str();
        match (self.health, self.companion_note()) {
            (Some(health), None) => format!("{state} ({})", health.state.as_str()),
            (Some(health), Some(note)) => format!("{state} ({}, {note})", health.state.as_str()),
            (None, Some(note)) => format!("{state} ({note})"),
            (None, None) => state.to_owned(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskExit {
    /// As a shell shows it: code, or 128 + signal.
    pub code: i32,
    pub oom_killed: bool,
}

/// States of a task. Within an attempt they only go forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TaskState {
    /// Not placed yet; the error says why.
    Pending,
    Assigned,
    /// Image, address, namespace.
    Preparing,
    Starting,
    Running,
    /// Takes no new connections; still answers old ones.
    Draining,
    Stopping,
    /// Ended well and is not wanted again.
    Complete,
    /// Ended badly and its restart policy is exhausted.
    Failed,
    /// Cannot start as specified.
    Rejected,
    /// Cleaned up on its node.
    Removed,
}

impl TaskState {
    /// In order of a task's life; also the wire's numbering from 1.
    pub const ALL: [Self; 11] = [
        Self::Pending,
        Self::Assigned,
        Self::Preparing,
        Self::Starting,
        Self::Running,
        Self::Draining,
        Self::Stopping,
        Self::Complete,
        Self::Failed,
        Self::Rejected,
        Self::Removed,
    ];

    /// Whether nothing of the task runs any more, nor will.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Complete | Self::Failed | Self::Rejected | Self::Removed)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Preparing => "preparing",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::Complete => "complete",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Removed => "removed",
        }
    }
}
