//! What containers use, and their processes: counters as the kernel has them.

use std::time::SystemTime;

/// Counters since the container began, and what it holds now. Who reads twice knows a rate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// When it was read, in nanoseconds of the monotonic clock.
    pub at_ns: u64,
    pub cpu_ns: u64,
    /// Periods of the limit of cpu, those in which it was reached, and for how long it stood then.
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_ns: u64,
    /// Without file pages that were not used lately: what the kernel cannot simply give up.
    pub memory_bytes: u64,
    /// None: no limit.
    pub memory_limit: Option<u64>,
    /// File pages.
    pub cache_bytes: u64,
    /// From and to disks.
    pub io: Option<Traffic>,
    pub pids: u32,
    pub pids_limit: Option<u32>,
    /// Received and sent by its network namespace, loopback left out.
    pub network: Option<Traffic>,
    /// Of cgroup v2 alone.
    pub pressure: Option<Pressure>,
    pub paused: bool,
}

/// Bytes in and out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    pub taken: u64,
    pub given: u64,
}

/// Part of the last ten seconds in which some process of it waited, in hundredths of a percent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    pub cpu: u32,
    pub memory: u32,
    pub io: u32,
}

/// One process of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// In the host's pid namespace.
    pub pid: u32,
    pub parent: u32,
    /// In the container's own.
    pub inner: u32,
    pub uid: u32,
    /// As ps shows it: `R`, `S`, `D`, `T`, `Z`, …
    pub state: char,
    pub resident_bytes: u64,
    /// Processor time, its threads included.
    pub cpu_ms: u64,
    pub started: SystemTime,
    pub threads: u32,
    /// Its arguments, or its name in brackets. What is not text is escaped; cut at
    /// [`Process::COMMAND_MAX`].
    pub command: String,
}

impl Process {
    /// Shown of one container.
    pub const COUNT_MAX: usize = 4096;
    /// Bytes of a command.
    pub const COMMAND_MAX: usize = 4096;
}
