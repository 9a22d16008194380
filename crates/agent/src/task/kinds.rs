//! What a task machine takes in and gives out.

use std::sync::Arc;

use warren_model::health::HealthState;
use warren_model::quantity::Time;
use warren_model::service::RestartPolicy;
use warren_model::task::{CompanionStatus, TaskExit};

/// Both clocks: people's for records, the monotonic one for deadlines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    pub wall: Time,
    pub mono_ms: u64,
}

/// What is wanted of a task; only goes down the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wanted {
    Running,
    /// Stopped, logs and exit kept.
    Shutdown,
    /// Stopped, cleaned up, and reported so.
    Remove,
    /// No longer ours: stopped, cleaned up, not mentioned again.
    Forget,
}

/// The part of a template that decides a task's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    pub restart: RestartPolicy,
    pub stop_grace_ms: u64,
    pub gate: Gate,
    /// It has init containers or sidecars: a start may take long, and can be halted.
    pub crew: bool,
}

/// What a container must pass to be named in the kernel's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Nothing.
    Open,
    /// To be healthy once.
    Once,
    /// To be healthy.
    Always {
        /// One that is unhealthy is stopped, as if it had failed.
        restart: bool,
    },
}

/// Why a step did not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For people.
    pub message: String,
    pub kind: FailureKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// As specified it can never work.
    Permanent,
    /// It may work later.
    Transient,
    /// It may work as soon as somebody gives up a port.
    Port,
}

/// How a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub code: i32,
    pub signal: Option<i32>,
    pub oom_killed: bool,
    pub supervisor_lost: bool,
    pub at: Time,
}

/// Something happened to the current attempt (those of others are dropped before).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Wanted(Wanted),
    /// Image, namespace and ports are there.
    Prepared,
    PrepareFailed(Failure),
    Started {
        pid: u32,
        at: Time,
    },
    StartFailed(Failure),
    /// An init container ended badly; why, for people.
    InitFailed {
        ended: Ended,
        why: String,
    },
    /// What became of its init containers and sidecars.
    Companions(Arc<Vec<CompanionStatus>>),
    /// Its own container has ended, its sidecars are being stopped.
    Ending,
    /// The kernel's table agrees with [`Machine::is_serving`].
    Published,
    PublishFailed(String),
    Exited(Ended),
    /// The container of an earlier attempt is gone.
    Cleared {
        attempt: u32,
    },
    Released,
    Cleaned,
    /// An effect that is insisted upon did not work yet.
    Trouble(String),
    /// The service's published ports are other ones now.
    PortsChanged,
    /// Somebody gave up a port.
    PortsFreed,
    Claimed,
    ClaimFailed(String),
    /// Containers of the task must pass another gate.
    Gate(Gate),
    /// What was found out about its health.
    Health {
        state: HealthState,
        /// Of the probe that failed, for people.
        output: Option<Box<str>>,
    },
    /// A sidecar is unhealthy, or has ended though it is to be healthy; why, for people.
    SidecarIll(Box<str>),
    /// No manager was heard for as long as the service allows, and why that ends it.
    CutOff(String),
    /// A manager was heard again, and wants what it wanted.
    Heard,
    /// A person asked for its next attempt.
    Restart,
    /// A person has its processes stand still, or go on.
    Paused(bool),
    /// [`Machine::wake_at`] has come.
    Wake,
}

/// Something to do for the current attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Get image, network namespace and ports, all at once.
    Prepare,
    /// Start the container.
    Start,
    /// Give up a start that is under way; it fails.
    Halt,
    /// Tell when the container has ended.
    Wait,
    /// Stop signal, then SIGKILL after the grace period.
    Stop { grace_ms: u64 },
    /// Remove the container of an ended attempt; logs stay.
    Clear { attempt: u32 },
    /// Hold exactly the ports that the service publishes now.
    Claim,
    /// Find out about its health, and tell when that changes.
    Watch {
        known: HealthState,
        /// For how long it has run.
        ran_ms: u64,
    },
    /// Its health is of no interest any more.
    LookAway,
    /// Give up preparing, if it is under way; free address and ports.
    Release,
    /// Remove containers, logs, address, ports.
    Clean { attempts: Vec<u32> },
}

/// What is known of a container that an earlier process started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub attempt: u32,
    /// Restarts since the last good attempt, as of its start.
    pub restarts: u32,
    /// End of the attempt before it.
    pub last_exit: Option<TaskExit>,
    pub state: FoundState,
    /// Its processes stand still.
    pub paused: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundState {
    Running {
        pid: u32,
        at: Time,
    },
    Exited {
        started: Option<Time>,
        ended: Ended,
    },
    /// There are init containers or sidecars of it, and it itself was not started yet.
    Beginning,
}

impl Ended {
    /// How it ended, in words for people.
    pub fn describe(&self) -> String {
        if self.supervisor_lost {
            return "supervisor lost".to_owned();
        }
        let how = match self.signal {
            Some(9) => format!("killed (exit code {})", self.code),
            Some(signal) => format!("ended by signal {signal} (exit code {})", self.code),
            None => format!("exit code {}", self.code),
        };
        if self.oom_killed { format!("out of memory: {how}") } else { how }
    }
}
