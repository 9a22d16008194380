//! Where tasks of a service may run, and where they run best.
//!
//! Constraints, tolerations, strict affinities and the most per node are kept
//! always; spreads, preferences and soft affinities only choose among nodes
//! that fit. Reservations are the template's ([`crate::service::TaskTemplate`]),
//! since a container keeps what it was started with.
//!
//! Not here: choosing (the planner), what nodes have ([`crate::node`]).

mod constraint;
mod taint;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

pub(crate) use self::constraint::image_arch;
pub use self::constraint::{Attribute, Constraint, ConstraintError};
pub use self::taint::{Taint, TaintEffect, TaintError, Toleration, check_taints};
use crate::name::{NameError, ServiceName};
use crate::node::Node;
use crate::service::{SpecError, wrong};

/// What a service asks of nodes; nothing by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// All of them hold of every node that a task is on.
    pub constraints: Vec<Constraint>,
    /// Nodes of which an earlier one holds are better, whatever later ones say.
    pub preferences: Vec<Constraint>,
    /// Tasks are spread evenly over the values of the first; within those, of the next.
    pub spread: Vec<Attribute>,
    pub affinities: Vec<Affinity>,
    /// Slots on one node; `None` is no limit.
    pub max_per_node: Option<u32>,
    pub tolerations: Vec<Toleration>,
    /// `None`: the cluster's.
    pub strategy: Option<Strategy>,
    /// Who is placed first, and who may be ended for whom: higher is more. Within
    /// ±[`Placement::PRIORITY_MAX`].
    pub priority: i16,
    pub preempt: Preempt,
    /// What there are builds of the image for, `linux/arm64`, as a registry said when it was
    /// deployed; none: unknown. Not for people to set.
    pub platforms: Vec<String>,
}

/// Whether others are ended for a task that fits nowhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Preempt {
    /// It waits.
    #[default]
    Never,
    /// Tasks of services of lower priority are.
    Lower,
}

impl Preempt {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Lower => "lower",
        }
    }
}

impl Placement {
    pub const CONSTRAINTS_MAX: usize = 32;
    /// One bit each in a rank.
    pub const PREFERENCES_MAX: usize = 16;
    /// Region, zone, rack, and one to spare.
    pub const SPREAD_MAX: usize = 4;
    pub const AFFINITIES_MAX: usize = 16;
    pub const TOLERATIONS_MAX: usize = 32;
    /// Room for classes of ten and a hundred, and for what comes between.
    pub const PRIORITY_MAX: i16 = 1000;
    /// Of the official images some have a dozen.
    pub const PLATFORMS_MAX: usize = 64;
    /// Bytes of one of them.
    pub const PLATFORM_MAX: usize = 64;

    pub(crate) fn validate(&self, own: &ServiceName) -> Result<(), SpecError> {
        let Self { constraints, preferences, spread, affinities, tolerations, .. } = self;
        for (field, count, max) in [
            ("constraint", constraints.len(), Self::CONSTRAINTS_MAX),
            ("prefer", preferences.len(), Self::PREFERENCES_MAX),
            ("placement_pref", spread.len(), Self::SPREAD_MAX),
            ("affinity", affinities.len(), Self::AFFINITIES_MAX),
            ("toleration", tolerations.len(), Self::TOLERATIONS_MAX),
            ("platforms", self.platforms.len(), Self::PLATFORMS_MAX),
        ] {
            if count > max {
                return Err(wrong(field, count, format!("is more than {max}")));
            }
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = spread.iter().find(|attribute| !seen.insert(*attribute)) {
            return Err(wrong("placement_pref", twice, "is spread over twice"));
        }
        for (at, affinity) in affinities.iter().enumerate() {
            if affinity.service == *own {
                let problem = "is the service itself; to have its replicas apart, use \
                               --replicas-max-per-node 1";
                return Err(wrong(affinity.field(), own, problem));
            }
            let same = |other: &&Affinity| other.service == affinity.service;
            if affinities[..at].iter().any(|other| same(&other)) {
                let problem = "is named twice; a service is near, apart, or neither";
                return Err(wrong(affinity.field(), &affinity.service, problem));
            }
        }
        if let Some(long) = self.platforms.iter().find(|text| text.len() > Self::PLATFORM_MAX) {
            return Err(wrong("platforms", long, "is no platform, as linux/arm64 is"));
        }
        let most = Self::PRIORITY_MAX;
        if !(-most..=most).contains(&self.priority) {
            return Err(wrong(
                "priority",
                self.priority,
                format!("is not between -{most} and {most}"),
            ));
        }
        if self.max_per_node == Some(0) {
            return Err(wrong("replicas_max_per_node", 0, "leaves no node, allowed is 1 or more"));
        }
        Ok(())
    }

    /// Whether there is a build of the image for a node, as far as anybody knows.
    pub fn has_build_for(&self, node: &Node) -> bool {
        self.platforms.is_empty()
            || node.description.architecture.is_empty()
            || self.platforms.contains(&node.platform())
    }

    /// Bytes of its texts.
    pub fn text_len(&self) -> usize {
        let Self { constraints, preferences, spread, affinities, tolerations, .. } = self;
        let constraints = constraints.iter().chain(preferences).map(Constraint::text_len);
        let names = affinities.iter().map(|affinity| affinity.service.as_str().len());
        constraints.sum::<usize>()
            + names.sum::<usize>()
            + self.platforms.iter().map(String::len).sum::<usize>()
            + spread.iter().map(Attribute::text_len).sum::<usize>()
            + tolerations.iter().map(Toleration::text_len).sum::<usize>()
    }
}

/// A service whose tasks are to be near, or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Affinity {
    pub service: ServiceName,
    /// On no node that has a task of it, instead of only on such.
    pub apart: bool,
    /// As far as nodes allow.
    pub soft: bool,
}

impl Affinity {
    fn field(&self) -> &'static str {
        if self.apart { "anti_affinity" } else { "affinity" }
    }

    /// `db`, or `db:soft`.
    ///
    /// # Errors
    /// [`AffinityError`] for what is no name.
    pub fn parse(text: &str, apart: bool) -> Result<Self, AffinityError> {
        let (name, soft) = match text.split_once(':') {
            None => (text, false),
            Some((name, "soft")) => (name, true),
            Some((_, word)) => return Err(AffinityError::Word { word: word.to_owned() }),
        };
        Ok(Self { service: name.parse()?, apart, soft })
    }
}

/// Why a text does not say near or apart of what.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AffinityError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("{word:?} after a service's name is not \"soft\"; write SERVICE or SERVICE:soft")]
    Word { word: String },
}

impl fmt::Display for Affinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.service, if self.soft { ":soft" } else { "" })
    }
}

/// Which of the nodes that are as good is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Strategy {
    /// The one with the least on it.
    #[default]
    Spread,
    /// The fullest one, so that others stay empty.
    BinPack,
}

impl Strategy {
    pub const ALL: [Self; 2] = [Self::Spread, Self::BinPack];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Spread => "spread",
            Self::BinPack => "bin-pack",
        }
    }
}

/// Why a text is no strategy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a strategy; write spread or bin-pack")]
pub struct StrategyError(String);

impl FromStr for Strategy {
    type Err = StrategyError;

    fn from_str(text: &str) -> Result<Self, StrategyError> {
        // As Docker's classic swarm and Nomad wrote it.
        let same = |strategy: &Self| {
            strategy.as_str() == text || text == "binpack" && *strategy == Self::BinPack
        };
        Self::ALL.into_iter().find(same).ok_or_else(|| StrategyError(text.to_owned()))
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
