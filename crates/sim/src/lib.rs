//! Whole clusters in one thread: the real thing over a seeded clock, disk, wire
//! and container runtime. The same seed gives the same run, to the byte.
//!
//! Two kinds of them. [`cluster`]: several managers and workers, with the real
//! consensus between the managers. [`run`], of this module: one node whose
//! ledger is the real log without consensus; thousands of runs a minute.
//!
//! A run of one node makes services come, change, scale and go while containers
//! crash, the daemon is killed and the power fails; then everything calms down
//! and the world must be as wanted. Checked after every step: the state's own
//! invariants. Checked once all is calm: every service converged, containers
//! and published ports are exactly those of its running tasks, a second plan
//! changes nothing, the log replays to the same state.
//!
//! Not here: TLS and sockets, the kernel.

pub mod cluster;
mod hooks;
mod jobs;
mod ledger;
mod machine;
mod queue;
mod world;

pub use world::World;

/// How long and how rough a run is.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub seed: u64,
    /// Simulated milliseconds of trouble before the calm.
    pub trouble_ms: u64,
}

impl Options {
    /// Long enough for a few hundred changes and a dozen crashes.
    pub const TROUBLE_MS: u64 = 60_000;

    pub fn of_seed(seed: u64) -> Self {
        Self { seed, trouble_ms: Self::TROUBLE_MS }
    }
}

/// What a run did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Hash of everything that happened, in order.
    pub trace: u64,
    pub events: u64,
    pub entries: u64,
    pub container_crashes: u32,
    pub daemon_kills: u32,
    pub power_failures: u32,
}

/// What did not hold, and how to see it again.
#[derive(Debug)]
pub struct Failure {
    pub seed: u64,
    pub at_ms: u64,
    pub what: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "at {} ms: {}\nreproduce: cargo run -p warren-sim -- --reproduce {}",
            self.at_ms, self.what, self.seed
        )
    }
}

impl std::error::Error for Failure {}

/// Runs one world from its seed to the calm.
///
/// # Errors
/// The first thing that did not hold.
pub fn run(options: Options) -> Result<Report, Failure> {
    World::new(options).run()
}
