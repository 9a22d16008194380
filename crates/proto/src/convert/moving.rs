//! How services are moved, and where tasks came from.

use warren_model::moving::{Cause, MinAvailable, Moving, Origin, Rebalance};

use super::{Error, byte_up_to, choice, enums};
use crate::v1;

enums! {
    Rebalance, v1::Rebalance { Auto Never Always }
    Cause, v1::Cause { Wanted Update Failure Lost Drain Placement Deadline Balance }
}

/// Auto is left out: an older reader knows nothing else.
pub(super) fn rebalance_unless_default(rebalance: Rebalance) -> v1::Rebalance {
    match rebalance {
        Rebalance::Auto => v1::Rebalance::Unspecified,
        Rebalance::Never => v1::Rebalance::Never,
        Rebalance::Always => v1::Rebalance::Always,
    }
}

/// Unspecified is none.
pub(super) fn rebalance_if_any(number: i32) -> Result<Option<Rebalance>, Error> {
    match number {
        0 => Ok(None),
        number => choice::<v1::Rebalance, _>("rebalance", number).map(Some),
    }
}

impl From<Moving> for v1::Moving {
    fn from(moving: Moving) -> Self {
        use v1::moving::MinAvailable as Wire;
        let Moving { min_available, rebalance } = moving;
        Self {
            min_available: min_available.map(|least| match least {
                MinAvailable::Count(count) => Wire::Count(count),
                MinAvailable::Percent(percent) => Wire::Percent(percent.into()),
            }),
            rebalance: rebalance_unless_default(rebalance).into(),
        }
    }
}

impl TryFrom<v1::Moving> for Moving {
    type Error = Error;

    fn try_from(wire: v1::Moving) -> Result<Self, Error> {
        use v1::moving::MinAvailable as Wire;
        let min_available = match wire.min_available {
            None => None,
            Some(Wire::Count(count)) => Some(MinAvailable::Count(count)),
            Some(Wire::Percent(percent)) => Some(MinAvailable::Percent(byte_up_to(
                "percent",
                percent,
                MinAvailable::PERCENT_MAX,
            )?)),
        };
        let rebalance = rebalance_if_any(wire.rebalance)?.unwrap_or_default();
        Ok(Self { min_available, rebalance })
    }
}

impl From<Origin> for v1::Origin {
    fn from(origin: Origin) -> Self {
        Self { cause: v1::Cause::from(origin.cause).into(), revision: origin.revision }
    }
}

impl TryFrom<v1::Origin> for Origin {
    type Error = Error;

    fn try_from(wire: v1::Origin) -> Result<Self, Error> {
        let cause = choice::<v1::Cause, _>("cause", wire.cause)?;
        Ok(Self { cause, revision: wire.revision })
    }
}
