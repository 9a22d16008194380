//! Amounts of what nodes have and tasks reserve: processor time, memory, processes, disk, and
//! things that people count, such as GPUs.
//!
//! Plain sums; nothing here measures what is used. Additions and subtractions saturate: a sum of
//! reservations never wraps into a small one.

use std::collections::BTreeMap;
use std::fmt;

use crate::device;
use crate::quantity::{format_cores_milli, format_size};

/// Amounts; 0 is none of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    pub disk_bytes: u64,
    /// Pieces of what only people can count, and devices by their kind (`vendor.com/class`), by
    /// name; never 0.
    pub generic: BTreeMap<String, u64>,
}

/// One kind of amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource<'a> {
    Cpu,
    Memory,
    Pids,
    Disk,
    Generic(&'a str),
}

/// Why amounts cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResourceError {
    #[error("{count} kinds are more than {max}", max = Resources::GENERIC_MAX)]
    TooMany { count: usize },
    #[error("{name:?} is not a name of a resource: a-z, 0-9, '-', '_' and '.', a letter first, at most {max} characters", max = Resources::NAME_MAX)]
    Name { name: String },
    #[error("{name:?} is counted by itself and has a field of its own")]
    Known { name: String },
    #[error("{0}")]
    Kind(#[from] device::DeviceError),
    #[error("{name:?} is a kind of devices: nodes tell how many they have")]
    Device { name: String },
}

impl Resources {
    /// Kinds that people may count on one node or ask for in one service.
    pub const GENERIC_MAX: usize = 32;
    /// Characters of a kind's name.
    pub const NAME_MAX: usize = 63;
    /// Names that stand for what is counted anyway.
    pub const KNOWN: [&str; 4] = ["cpu", "memory", "pids", "disk"];

    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// What there is some of, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (Resource<'_>, u64)> {
        let known = [
            (Resource::Cpu, self.cpu_millis),
            (Resource::Memory, self.memory_bytes),
            (Resource::Pids, self.pids),
            (Resource::Disk, self.disk_bytes),
        ];
        let counted = self.generic.iter().map(|(name, amount)| (Resource::Generic(name), *amount));
        known.into_iter().chain(counted).filter(|(_, amount)| *amount > 0)
    }

    pub fn get(&self, resource: Resource<'_>) -> u64 {
        match resource {
            Resource::Cpu => self.cpu_millis,
            Resource::Memory => self.memory_bytes,
            Resource::Pids => self.pids,
            Resource::Disk => self.disk_bytes,
            Resource::Generic(name) => self.generic.get(name).copied().unwrap_or_default(),
        }
    }

    pub fn add(&mut self, other: &Self) {
        self.change(other, u64::saturating_add);
    }

    pub fn subtract(&mut self, other: &Self) {
        self.change(other, u64::saturating_sub);
    }

    fn change(&mut self, other: &Self, apply: impl Fn(u64, u64) -> u64) {
        let Self { cpu_millis, memory_bytes, pids, disk_bytes, generic } = other;
        self.cpu_millis = apply(self.cpu_millis, *cpu_millis);
        self.memory_bytes = apply(self.memory_bytes, *memory_bytes);
        self.pids = apply(self.pids, *pids);
        self.disk_bytes = apply(self.disk_bytes, *disk_bytes);
        for (name, amount) in generic {
            let left = apply(self.get(Resource::Generic(name)), *amount);
            // One that is 0 and one that was never there are the same.
            if left == 0 {
                self.generic.remove(name);
            } else {
                self.generic.insert(name.clone(), left);
            }
        }
    }

    /// Checks names and their number.
    ///
    /// # Errors
    /// [`ResourceError`] with the first name that is wrong.
    pub fn validate(&self) -> Result<(), ResourceError> {
        let count = self.generic.len();
        if count > Self::GENERIC_MAX {
            return Err(ResourceError::TooMany { count });
        }
        self.generic.keys().try_for_each(|name| check_name(name))
    }

    /// Checks amounts that people say of nodes, which count their devices themselves.
    ///
    /// # Errors
    /// [`ResourceError`] with the first name that is wrong.
    pub fn validate_of_node(&self) -> Result<(), ResourceError> {
        self.validate()?;
        match self.generic.keys().find(|name| device::is_kind(name)) {
            None => Ok(()),
            Some(name) => Err(ResourceError::Device { name: name.clone() }),
        }
    }
}

/// # Errors
/// [`ResourceError`] if nothing can be counted under this name.
pub fn check_name(name: &str) -> Result<(), ResourceError> {
    if Resources::KNOWN.contains(&name) {
        return Err(ResourceError::Known { name: name.to_owned() });
    }
    if device::is_kind(name) {
        return Ok(device::check_kind(name)?);
    }
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    let good = name.len() <= Resources::NAME_MAX
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(plain);
    if good { Ok(()) } else { Err(ResourceError::Name { name: name.to_owned() }) }
}

impl Resource<'_> {
    /// An amount of it for people: `512MiB`, `0.5`, `3`.
    pub fn amount(self, amount: u64) -> String {
        match self {
            Self::Cpu => format_cores_milli(amount),
            Self::Memory | Self::Disk => format_size(amount),
            Self::Pids | Self::Generic(_) => amount.to_string(),
        }
    }

    /// Short, and the same everywhere: `cpu`, `memory`, `pids`, `disk`, or its own name.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Disk => "disk",
            Self::Generic(name) => name,
        }
    }
}

impl fmt::Display for Resource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// `cpu=0.5 memory=512MiB gpu=2`; nothing if there is nothing.
impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self
            .iter()
            .map(|(resource, amount)| format!("{resource}={}", resource.amount(amount)))
            .collect();
        f.pad(&words.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpus(count: u64) -> Resources {
        Resources { generic: [("gpu".to_owned(), count)].into(), ..Resources::default() }
    }

    #[test]
    fn sums() {
        let mut sum = Resources { memory_bytes: 512 << 20, cpu_millis: 500, ..gpus(1) };
        sum.add(&gpus(2));
        assert_eq!(sum.to_string(), "cpu=0.5 memory=512MiB gpu=3");
        sum.subtract(&gpus(3));
        assert_eq!(sum.generic, BTreeMap::new(), "what is gone leaves nothing");
        sum.subtract(&Resources { memory_bytes: u64::MAX, ..Resources::default() });
        assert_eq!(sum.to_string(), "cpu=0.5");
        sum.add(&Resources { cpu_millis: u64::MAX, ..Resources::default() });
        assert_eq!(sum.cpu_millis, u64::MAX);
        assert!(Resources::default().is_empty() && !sum.is_empty());
    }

    #[test]
    fn names() {
        for good in ["gpu", "nvidia.com", "ssd-slot", "a", "nvidia.com/gpu"] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "Gpu", "1gpu", "gp u", "gpu=1", &"a".repeat(64)] {
            assert_eq!(check_name(bad), Err(ResourceError::Name { name: bad.into() }));
        }
        assert_eq!(check_name("disk"), Err(ResourceError::Known { name: "disk".into() }));
        assert!(matches!(check_name("nvidia.com/"), Err(ResourceError::Kind(_))));
        let kind = Resources { generic: [("a/b".to_owned(), 1)].into(), ..Resources::default() };
        assert_eq!(kind.validate(), Ok(()));
        assert_eq!(kind.validate_of_node(), Err(ResourceError::Device { name: "a/b".into() }));
        let many = (0..33).map(|n| (format!("r{n}"), 1)).collect();
        let many = Resources { generic: many, ..Resources::default() };
        assert_eq!(many.validate(), Err(ResourceError::TooMany { count: 33 }));
    }
}
