//! What services ask of nodes, and what nodes have.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use warren_model::placement::{Affinity, Placement, Preempt, Strategy};
use warren_model::resources::Resources;

use super::{Error, choice, each, enums};
use crate::v1;

enums! {
    Strategy, v1::Strategy { Spread BinPack }
}

/// Amounts by name, in order: the same bytes for the same amounts.
pub fn amounts(generic: &BTreeMap<String, u64>) -> Vec<v1::Amount> {
    let amount =
        |(name, amount): (&String, &u64)| v1::Amount { name: name.clone(), amount: *amount };
    generic.iter().map(amount).collect()
}

/// # Errors
/// When a name comes twice; what there is none of is left out.
pub fn amounts_from(field: &str, wire: Vec<v1::Amount>) -> Result<BTreeMap<String, u64>, Error> {
    let mut generic = BTreeMap::new();
    for v1::Amount { name, amount } in wire.into_iter().filter(|wire| wire.amount > 0) {
        if generic.contains_key(&name) {
            return Err(Error::new(field, format!("{name:?} comes twice")));
        }
        generic.insert(name, amount);
    }
    Ok(generic)
}

impl From<&Resources> for v1::Resources {
    fn from(resources: &Resources) -> Self {
        let Resources { cpu_millis, memory_bytes, pids, disk_bytes, generic } = resources;
        Self {
            cpu_millis: *cpu_millis,
            memory_bytes: *memory_bytes,
            pids: *pids,
            disk_bytes: *disk_bytes,
            generic: amounts(generic),
        }
    }
}

impl TryFrom<v1::Resources> for Resources {
    type Error = Error;

    fn try_from(wire: v1::Resources) -> Result<Self, Error> {
        Ok(Self {
            cpu_millis: wire.cpu_millis,
            memory_bytes: wire.memory_bytes,
            pids: wire.pids,
            disk_bytes: wire.disk_bytes,
            generic: amounts_from("generic", wire.generic)?,
        })
    }
}

/// Nothing is left out: an older reader knows no reservations.
pub(super) fn resources_if_any(resources: &Resources) -> Option<v1::Resources> {
    (!resources.is_empty()).then(|| resources.into())
}

impl From<&Affinity> for v1::ServiceAffinity {
    fn from(affinity: &Affinity) -> Self {
        let Affinity { service, apart, soft } = affinity;
        Self { service: service.as_str().to_owned(), apart: *apart, soft: *soft }
    }
}

impl TryFrom<v1::ServiceAffinity> for Affinity {
    type Error = Error;

    fn try_from(wire: v1::ServiceAffinity) -> Result<Self, Error> {
        let service = wire.service.parse();
        let service = service.map_err(|problem| Error::new("service", format!("{problem}")))?;
        Ok(Self { service, apart: wire.apart, soft: wire.soft })
    }
}

pub(super) fn written<T: Display>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

pub(super) fn read<T>(field: &str, texts: Vec<String>) -> Result<Vec<T>, Error>
where
    T: FromStr<Err: Display>,
{
    let one = |(at, text): (usize, String)| {
        text.parse::<T>()
            .map_err(|problem| Error::new(&format!("{field}[{at}]"), format!("{problem}")))
    };
    texts.into_iter().enumerate().map(one).collect()
}

impl From<&Placement> for v1::Placement {
    fn from(placement: &Placement) -> Self {
        let Placement {
            constraints,
            preferences,
            spread,
            affinities,
            max_per_node,
            tolerations,
            strategy,
            priority,
            preempt,
            platforms,
        } = placement;
        let strategy = strategy.map_or(v1::Strategy::Unspecified, v1::Strategy::from);
        Self {
            constraints: written(constraints),
            preferences: written(preferences),
            spread: written(spread),
            affinities: affinities.iter().map(Into::into).collect(),
            max_per_node: max_per_node.unwrap_or_default(),
            tolerations: written(tolerations),
            strategy: strategy.into(),
            priority: (*priority).into(),
            preempt_lower: *preempt == Preempt::Lower,
            platforms: platforms.clone(),
        }
    }
}

impl TryFrom<v1::Placement> for Placement {
    type Error = Error;

    fn try_from(wire: v1::Placement) -> Result<Self, Error> {
        Ok(Self {
            constraints: read("constraints", wire.constraints)?,
            preferences: read("preferences", wire.preferences)?,
            spread: read("spread", wire.spread)?,
            affinities: each("affinities", wire.affinities)?,
            max_per_node: Some(wire.max_per_node).filter(|max| *max > 0),
            tolerations: read("tolerations", wire.tolerations)?,
            strategy: strategy_if_any(wire.strategy)?,
            priority: i16::try_from(wire.priority).map_err(|_| {
                Error::new("priority", format!("{} is out of range", wire.priority))
            })?,
            preempt: if wire.preempt_lower { Preempt::Lower } else { Preempt::Never },
            platforms: wire.platforms,
        })
    }
}

/// Unspecified is none.
pub(super) fn strategy_if_any(number: i32) -> Result<Option<Strategy>, Error> {
    match number {
        0 => Ok(None),
        number => choice::<v1::Strategy, _>("strategy", number).map(Some),
    }
}
