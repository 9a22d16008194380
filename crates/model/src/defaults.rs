//! What tasks get that say nothing of it themselves: of the whole cluster, and of one node, whose
//! own word comes first.
//!
//! Defaults are looked up whenever they matter, and never written into a service: a change of one
//! restarts nothing. A reservation counts at once, also for what runs; a limit is a container's
//! from its next start on.

use std::borrow::Cow;
use std::fmt;

use crate::quantity::{format_cores_milli, format_size};
use crate::resources::{Resource, Resources};
use crate::service::{Limits, TaskTemplate};

/// Nothing by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Defaults {
    /// Reserved for a task whose template reserves none; thousandths of a core, 0 is none.
    pub reserve_cpu_millis: u64,
    /// Likewise; bytes.
    pub reserve_memory_bytes: u64,
    /// Of a container whose template has no such limit.
    pub limits: Limits,
}

/// Why defaults cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DefaultsError {
    #[error("default_limit_memory: {0} bytes is less than {min} bytes (6 MiB); 0 is none", min = TaskTemplate::MEMORY_MIN)]
    Memory(u64),
    #[error(
        "default_limit_{resource}: {limit} is less than the {reserved} that are reserved by \
         default; raise it or lower --default-reserve-{resource}"
    )]
    Below { resource: &'static str, limit: String, reserved: String },
}

impl Defaults {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// These, and where they say nothing the others.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        let first = |own: u64, other: u64| if own == 0 { other } else { own };
        Self {
            reserve_cpu_millis: first(self.reserve_cpu_millis, other.reserve_cpu_millis),
            reserve_memory_bytes: first(self.reserve_memory_bytes, other.reserve_memory_bytes),
            limits: Limits {
                memory_bytes: self.limits.memory_bytes.or(other.limits.memory_bytes),
                cpu_millis: self.limits.cpu_millis.or(other.limits.cpu_millis),
                pids: self.limits.pids.or(other.limits.pids),
            },
        }
    }

    /// What is reserved for a task beside what its template says: 0 of what that says.
    pub fn beside(&self, reserve: &Resources) -> [(Resource<'static>, u64); 2] {
        let unless = |stated: u64, default: u64| if stated == 0 { default } else { 0 };
        [
            (Resource::Cpu, unless(reserve.cpu_millis, self.reserve_cpu_millis)),
            (Resource::Memory, unless(reserve.memory_bytes, self.reserve_memory_bytes)),
        ]
    }

    /// All that is reserved for a task, by its template and by default.
    pub fn complete<'r>(&self, reserve: &'r Resources) -> Cow<'r, Resources> {
        let [(_, cpu), (_, memory)] = self.beside(reserve);
        if (cpu, memory) == (0, 0) {
            return Cow::Borrowed(reserve);
        }
        let mut all = reserve.clone();
        all.add(&Resources { cpu_millis: cpu, memory_bytes: memory, ..Resources::default() });
        Cow::Owned(all)
    }

    /// The limits of a container of a template. A default never is below what is reserved for it.
    pub fn limits_of(&self, template: &TaskTemplate) -> Limits {
        let (own, reserve) = (template.limits, &template.reserve);
        let [(_, cpu), (_, memory)] = self.beside(reserve);
        let cpu = u32::try_from(reserve.cpu_millis.max(cpu)).unwrap_or(u32::MAX);
        let memory = reserve.memory_bytes.max(memory);
        let pids = u32::try_from(reserve.pids).unwrap_or(u32::MAX);
        Limits {
            memory_bytes: own
                .memory_bytes
                .or_else(|| self.limits.memory_bytes.map(|all| all.max(memory))),
            cpu_millis: own.cpu_millis.or_else(|| self.limits.cpu_millis.map(|all| all.max(cpu))),
            pids: own.pids.or_else(|| self.limits.pids.map(|all| all.max(pids))),
        }
    }

    /// # Errors
    /// [`DefaultsError`] of a limit that no container lives with, or below what is reserved.
    pub fn validate(&self) -> Result<(), DefaultsError> {
        let Limits { memory_bytes, cpu_millis, pids: _ } = self.limits;
        if let Some(memory) = memory_bytes.filter(|memory| *memory < TaskTemplate::MEMORY_MIN) {
            return Err(DefaultsError::Memory(memory));
        }
        for (resource, limit, reserved) in [
            (Resource::Cpu, cpu_millis.map(u64::from), self.reserve_cpu_millis),
            (Resource::Memory, memory_bytes, self.reserve_memory_bytes),
        ] {
            if let Some(limit) = limit.filter(|limit| *limit < reserved) {
                let resource_name = if resource == Resource::Cpu { "cpu" } else { "memory" };
                return Err(DefaultsError::Below {
                    resource: resource_name,
                    limit: resource.amount(limit),
                    reserved: resource.amount(reserved),
                });
            }
        }
        Ok(())
    }
}

/// `reserve-cpu=0.1 limit-memory=256MiB`; nothing if there is nothing.
impl fmt::Display for Defaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reserve_cpu_millis: cpu, reserve_memory_bytes: memory, limits } = *self;
        let words = [
            ("reserve-cpu", Some(cpu).filter(|cpu| *cpu > 0).map(format_cores_milli)),
            ("reserve-memory", Some(memory).filter(|memory| *memory > 0).map(format_size)),
            ("limit-cpu", limits.cpu_millis.map(|cpu| format_cores_milli(cpu.into()))),
            ("limit-memory", limits.memory_bytes.map(format_size)),
            ("limit-pids", limits.pids.map(|pids| pids.to_string())),
        ];
        let words =
            words.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?)));
        f.pad(&words.collect::<Vec<_>>().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults(cpu: u64, memory: u64, limit: Option<u64>) -> Defaults {
        let limits = Limits { memory_bytes: limit, ..Limits::default() };
        Defaults { reserve_cpu_millis: cpu, reserve_memory_bytes: memory, limits }
    }

    #[test]
    fn the_first_word_counts() {
        let both = defaults(100, 0, None).or(defaults(50, 64 << 20, Some(1 << 30)));
        assert_eq!(both.to_string(), "reserve-cpu=0.1 reserve-memory=64MiB limit-memory=1GiB");
        assert!(Defaults::default().or(Defaults::default()).is_empty());
        assert_eq!(Defaults::default().to_string(), "");
    }

    #[test]
    fn what_a_template_says_comes_first() {
        let all = defaults(100, 64 << 20, Some(128 << 20));
        let mut template = TaskTemplate::default();
        assert_eq!(
            all.beside(&template.reserve),
            [(Resource::Cpu, 100), (Resource::Memory, 64 << 20)]
        );
        template.reserve.cpu_millis = 1;
        assert_eq!(all.beside(&template.reserve)[0].1, 0);
        assert_eq!(all.limits_of(&template).memory_bytes, Some(128 << 20));
        template.reserve.memory_bytes = 1 << 30;
        assert_eq!(
            all.limits_of(&template).memory_bytes,
            Some(1 << 30),
            "not below what it reserves"
        );
        template.limits.memory_bytes = Some(2 << 30);
        assert_eq!(all.limits_of(&template).memory_bytes, Some(2 << 30));
        assert_eq!(all.limits_of(&template).pids, None);
    }

    #[test]
    fn what_cannot_be_meant() {
        let check = |defaults: Defaults| defaults.validate().map_err(|error| error.to_string());
        assert_eq!(check(defaults(0, 64 << 20, Some(64 << 20))), Ok(()));
        assert_eq!(
            check(defaults(0, 64 << 20, Some(32 << 20))),
            Err(
                "default_limit_memory: 32MiB is less than the 64MiB that are reserved by default; \
                 raise it or lower --default-reserve-memory"
                    .into()
            )
        );
        assert!(check(defaults(0, 0, Some(1))).unwrap_err().contains("6 MiB"));
    }
}
