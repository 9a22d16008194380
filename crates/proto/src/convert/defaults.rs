//! What tasks get that say nothing of it, and changes of that.

use warren_model::defaults::Defaults;
use warren_model::service::Limits;

use crate::v1;

impl From<&Defaults> for v1::Defaults {
    fn from(defaults: &Defaults) -> Self {
        let Defaults { reserve_cpu_millis, reserve_memory_bytes, limits } = defaults;
        let some = |amount: u64| Some(amount).filter(|amount| *amount > 0);
        Self {
            reserve_cpu_millis: some(*reserve_cpu_millis),
            reserve_memory_bytes: some(*reserve_memory_bytes),
            limits: (*limits != Limits::default()).then(|| limits.into()),
        }
    }
}

impl From<v1::Defaults> for Defaults {
    fn from(wire: v1::Defaults) -> Self {
        wire.change(Self::default())
    }
}

/// Nothing is left out: an older reader knows no defaults.
pub(super) fn defaults_if_any(defaults: &Defaults) -> Option<v1::Defaults> {
    (!defaults.is_empty()).then(|| defaults.into())
}

impl v1::Defaults {
    /// As a change of others: what is absent stays, 0 takes one away.
    pub fn change(self, before: Defaults) -> Defaults {
        fn limit<T: Default + PartialEq>(new: Option<T>, before: Option<T>) -> Option<T> {
            new.or(before).filter(|limit| *limit != T::default())
        }
        let (new, limits) = (self.limits.unwrap_or_default(), before.limits);
        Defaults {
            reserve_cpu_millis: self.reserve_cpu_millis.unwrap_or(before.reserve_cpu_millis),
            reserve_memory_bytes: self.reserve_memory_bytes.unwrap_or(before.reserve_memory_bytes),
            limits: Limits {
                memory_bytes: limit(new.memory_bytes, limits.memory_bytes),
                cpu_millis: limit(new.cpu_millis, limits.cpu_millis),
                pids: limit(new.pids, limits.pids),
            },
        }
    }
}
