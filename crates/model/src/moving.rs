//! Moving tasks: how much of a service stays up meanwhile, whether it is moved for the sake of
//! balance, and why each of its tasks came to be.

use std::fmt;
use std::str::FromStr;

/// How a service takes it that its tasks are moved. Changes restart nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moving {
    /// What is to be available while tasks are moved or renewed; none: what the order of updates
    /// and their bounds leave.
    pub min_available: Option<MinAvailable>,
    pub rebalance: Rebalance,
}

/// Slots with a task that works, at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MinAvailable {
    Count(u32),
    /// Of the wanted slots, rounded up: 0 to 100.
    Percent(u8),
}

impl MinAvailable {
    pub const PERCENT_MAX: u8 = 100;

    /// Of so many wanted slots; never more than there are.
    pub fn of(self, wanted: u32) -> u32 {
        match self {
            Self::Count(count) => count.min(wanted),
            Self::Percent(percent) => {
                let part = u64::from(wanted) * u64::from(percent.min(Self::PERCENT_MAX));
                u32::try_from(part.div_ceil(100)).unwrap_or(wanted)
            }
        }
    }
}

/// Why a text says no least number of tasks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MinAvailableError {
    #[error("{text:?} is neither a number nor a part; write e.g. 2 or 80%")]
    Shape { text: String },
    #[error("{text:?} is more than 100%")]
    TooMuch { text: String },
}

impl FromStr for MinAvailable {
    type Err = MinAvailableError;

    fn from_str(text: &str) -> Result<Self, MinAvailableError> {
        let shape = || MinAvailableError::Shape { text: text.to_owned() };
        let Some(part) = text.strip_suffix('%') else {
            return text.parse().map(Self::Count).map_err(|_| shape());
        };
        let percent: u32 = part.parse().map_err(|_| shape())?;
        let percent = u8::try_from(percent).ok().filter(|percent| *percent <= Self::PERCENT_MAX);
        let too_much = || MinAvailableError::TooMuch { text: text.to_owned() };
        percent.map(Self::Percent).ok_or_else(too_much)
    }
}

impl fmt::Display for MinAvailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// Whether what runs well is moved to nodes that came later. Of a service and of the cluster:
/// both must agree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Rebalance {
    /// But for services that keep data in volumes of their node.
    #[default]
    Auto,
    Never,
    /// Of a service alone: volumes or not. What it kept in them stays where it was.
    Always,
}

impl Rebalance {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Never => "never",
            Self::Always => "always",
        }
    }
}

/// Why a text does not say whether to balance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not known; write auto, never or, of a service, always")]
pub struct RebalanceError(String);

impl FromStr for Rebalance {
    type Err = RebalanceError;

    fn from_str(text: &str) -> Result<Self, RebalanceError> {
        match text {
            "auto" => Ok(Self::Auto),
            "never" => Ok(Self::Never),
            "always" => Ok(Self::Always),
            _ => Err(RebalanceError(text.to_owned())),
        }
    }
}

impl fmt::Display for Rebalance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why the planner made a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Its slot had none: the service is new, was scaled up, or got a node.
    Wanted,
    /// The one before had another template.
    Update,
    /// The one before ended.
    Failure,
    /// The node of the one before was out of reach.
    Lost,
    /// The node of the one before drains, or is no worker any more.
    Drain,
    /// The one before may not be on its node any more: a constraint or a taint.
    Placement,
    /// The one before had to be off its node: the drain's deadline was over.
    Deadline,
    /// A node that came later had fewer of the service.
    Balance,
}

impl Cause {
    pub const ALL: [Self; 8] = [
        Self::Wanted,
        Self::Update,
        Self::Failure,
        Self::Lost,
        Self::Drain,
        Self::Placement,
        Self::Deadline,
        Self::Balance,
    ];

    /// One word, for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wanted => "wanted",
            Self::Update => "update",
            Self::Failure => "failure",
            Self::Lost => "lost",
            Self::Drain => "drain",
            Self::Placement => "placement",
            Self::Deadline => "deadline",
            Self::Balance => "balance",
        }
    }
}

/// Where a task came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    pub cause: Cause,
    /// Of the state, that made it.
    pub revision: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_numbers() {
        let parse = |text: &str| match text.parse::<MinAvailable>() {
            Ok(least) => least.to_string(),
            Err(error) => error.to_string(),
        };
        for good in ["0", "2", "0%", "80%", "100%"] {
            assert_eq!(parse(good), good);
        }
        assert_eq!(parse("101%"), "\"101%\" is more than 100%");
        assert_eq!(parse("1000%"), "\"1000%\" is more than 100%");
        for bad in ["", "%", "-1", "2.5", "half", "80 %"] {
            assert!(parse(bad).ends_with("write e.g. 2 or 80%"), "{bad}");
        }
        let of = |text: &str, wanted| text.parse::<MinAvailable>().unwrap().of(wanted);
        assert_eq!([of("2", 5), of("9", 5), of("80%", 5), of("50%", 5)], [2, 5, 4, 3]);
        assert_eq!([of("100%", 5), of("0%", 5), of("1%", 5), of("80%", 0)], [5, 0, 1, 0]);
        assert_eq!(of("100%", u32::MAX), u32::MAX);
    }

    #[test]
    fn whether_to_balance() {
        for known in [Rebalance::Auto, Rebalance::Never, Rebalance::Always] {
            assert_eq!(known.to_string().parse(), Ok(known));
        }
        let error = "on".parse::<Rebalance>().unwrap_err().to_string();
        assert_eq!(error, "\"on\" is not known; write auto, never or, of a service, always");
    }
}
