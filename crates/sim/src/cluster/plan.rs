//! What a seed means: how large the cluster is, and what befalls it.

use warren_base::rng::{Rng, SeededRng};
use warren_model::ServiceId;

/// Label of a user's services: which write the present specification is of.
pub(crate) const TOKEN: &str = "write";

/// A service that people contend for. Its label says the write, and which one that is made from.
pub(crate) const SHARED: &str = "shared";

/// What a node says of a task that is not its own.
pub(crate) const LIE: &str = "a lie";

/// Networks that services are on, beside the default one.
pub(crate) const NETWORKS: [&str; 3] = ["red", "green", "blue"];

/// A kind of devices that some hosts have.
pub(crate) const DEVICE: &str = "sim.test/gpu";

/// Services that nobody touches: their slots never have two copies at once.
const SENTINELS: [[u8; 10]; 2] = [[0xee; 10], [0xed; 10]];

pub(crate) fn sentinels() -> [ServiceId; 2] {
    SENTINELS.map(ServiceId::from_bytes)
}

pub(crate) fn is_sentinel(id: ServiceId) -> bool {
    sentinels().contains(&id)
}

/// What befalls a cluster most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// A little of everything.
    Mixed,
    /// Managers die and machines lose power, all at once too.
    Power,
    /// Links are cut, slow and lossy, processes stop and go on.
    Network,
    /// Managers come and go, some for good.
    Members,
    /// Wall clocks are set, and managers die.
    Clocks,
}

impl Profile {
    pub const ALL: [Self; 5] =
        [Self::Mixed, Self::Power, Self::Network, Self::Members, Self::Clocks];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mixed => "mixed",
            Self::Power => "power",
            Self::Network => "network",
            Self::Members => "members",
            Self::Clocks => "clocks",
        }
    }
}

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    KillManager,
    PowerManager,
    /// In the middle of what the disk does.
    TearManager,
    PowerManagers,
    FullDisk,
    /// Syncs that do nothing, then a power failure: that manager is lost.
    LyingDisk,
    StopHost,
    CutHosts,
    CutOneWay,
    CutWorker,
    SlowLink,
    Loss,
    KillWorker,
    PowerWorker,
    CrashContainers,
    Promote,
    Demote,
    Drain,
    /// A node speaks for tasks of another.
    Lie,
    /// Of any host, back or ahead.
    SetClock,
}

/// Weights of faults.
type Mix = &'static [(Fault, u64)];

const MIXED: Mix = &[
    (Fault::KillManager, 6),
    (Fault::PowerManager, 4),
    (Fault::TearManager, 3),
    (Fault::PowerManagers, 1),
    (Fault::FullDisk, 2),
    (Fault::LyingDisk, 1),
    (Fault::StopHost, 5),
    (Fault::CutHosts, 5),
    (Fault::CutOneWay, 4),
    (Fault::CutWorker, 5),
    (Fault::SlowLink, 3),
    (Fault::Loss, 2),
    (Fault::KillWorker, 3),
    (Fault::PowerWorker, 3),
    (Fault::CrashContainers, 5),
    (Fault::Promote, 2),
    (Fault::Demote, 2),
    (Fault::Drain, 6),
    (Fault::Lie, 2),
    (Fault::SetClock, 3),
];
const POWER: Mix = &[
    (Fault::KillManager, 6),
    (Fault::PowerManager, 6),
    (Fault::TearManager, 8),
    (Fault::PowerManagers, 5),
    (Fault::FullDisk, 2),
    (Fault::CutOneWay, 1),
    (Fault::CutHosts, 2),
    (Fault::PowerWorker, 3),
    (Fault::CrashContainers, 2),
];
const NETWORK: Mix = &[
    (Fault::KillManager, 3),
    (Fault::StopHost, 6),
    (Fault::CutHosts, 8),
    (Fault::CutOneWay, 8),
    (Fault::CutWorker, 8),
    (Fault::SlowLink, 5),
    (Fault::Loss, 5),
    (Fault::KillWorker, 2),
    (Fault::CrashContainers, 3),
    (Fault::Drain, 5),
];
const MEMBERS: Mix = &[
    (Fault::KillManager, 4),
    (Fault::PowerManager, 3),
    (Fault::LyingDisk, 2),
    (Fault::StopHost, 2),
    (Fault::CutHosts, 3),
    (Fault::Promote, 6),
    (Fault::Demote, 6),
    (Fault::CrashContainers, 2),
    (Fault::Drain, 3),
];

const CLOCKS: Mix = &[
    (Fault::SetClock, 10),
    (Fault::KillManager, 5),
    (Fault::PowerManagers, 1),
    (Fault::StopHost, 2),
    (Fault::CutHosts, 2),
    (Fault::KillWorker, 3),
    (Fault::PowerWorker, 2),
    (Fault::CrashContainers, 3),
];

/// 2026-01-01: any day will do, but 1970 hides bugs.
const EPOCH_MS: u64 = 1_767_225_600_000;
const MINUTE_MS: u64 = 60_000;

/// One run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Script {
    pub(crate) seed: u64,
    /// Of wall clocks when it begins: soon a minute is full, when schedules begin runs.
    pub(crate) epoch_ms: u64,
    pub(crate) managers: u32,
    pub(crate) workers: u32,
    /// Managers run containers too.
    pub(crate) hybrid: bool,
    pub(crate) profile: Profile,
    /// Somebody drains nodes now and then.
    pub(crate) drains: bool,
    pub(crate) trouble_ms: u64,
    /// Between faults, at most.
    pub(crate) pause_ms: u64,
    /// Between what a user does, at most.
    pub(crate) user_pause_ms: u64,
}

impl Script {
    pub(crate) fn of(seed: u64, profile: Option<Profile>, trouble_ms: u64) -> Self {
        // Apart from the run's own numbers: a script can be changed without changing all.
        let rng = SeededRng::new(seed ^ 0x005c_7197);
        let managers = match rng.below(8) {
            0 | 1 => 1,
            2..=5 => 3,
            _ => 5,
        };
        let drawn = match rng.below(10) {
            0..=2 => Profile::Mixed,
            3 | 4 => Profile::Power,
            5 | 6 => Profile::Network,
            7 | 8 => Profile::Clocks,
            _ => Profile::Members,
        };
        Self {
            seed,
            epoch_ms: EPOCH_MS + MINUTE_MS - 5_000 - rng.below(15_000),
            managers,
            workers: 1 + u32::try_from(rng.below(4)).unwrap_or(0),
            hybrid: rng.below(4) == 0,
            profile: profile.unwrap_or(drawn),
            drains: rng.below(3) == 0,
            trouble_ms,
            pause_ms: 400 + rng.below(2_000),
            user_pause_ms: 100 + rng.below(1_500),
        }
    }

    pub(crate) fn draw(&self, rng: &dyn Rng) -> Fault {
        let mix = match self.profile {
            Profile::Mixed => MIXED,
            Profile::Power => POWER,
            Profile::Network => NETWORK,
            Profile::Members => MEMBERS,
            Profile::Clocks => CLOCKS,
        };
        let total = mix.iter().map(|(_, weight)| weight).sum();
        let mut at = rng.below(total);
        for (fault, weight) in mix {
            if at < *weight {
                return *fault;
            }
            at -= weight;
        }
        Fault::CrashContainers
    }
}
