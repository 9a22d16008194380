//! Devices of machines that tasks are given, each to one at a time: GPUs and the like.
//!
//! Names are those of the CNCF Container Device Interface (SPEC.md): a kind is
//! `vendor.com/class`, a device `vendor.com/class=name`.

use std::fmt;
use std::sync::Arc;

/// Why a text names neither a kind nor a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    #[error(
        "{0:?} is not a kind of devices: vendor.com/class of a-z, A-Z, 0-9, '-' and '_', at most \
         {KIND_MAX} characters"
    )]
    Kind(String),
    #[error(
        "{0:?} is not a device's name: a-z, A-Z, 0-9, '-', '_', '.' and ':', at most {NAME_MAX} \
         characters"
    )]
    Name(String),
}

/// Characters of a kind; as of any resource.
pub const KIND_MAX: usize = 63;
/// Characters of a name within its kind; serial numbers have forty.
pub const NAME_MAX: usize = 63;
/// Of one node: kinds, and devices of them together.
pub const KINDS_MAX: usize = 32;
pub const DEVICES_MAX: usize = 512;

/// Whether a resource is a kind of devices, and not pieces that people count.
pub fn is_kind(resource: &str) -> bool {
    resource.contains('/')
}

/// # Errors
/// [`DeviceError`] unless it is `vendor.com/class`.
pub fn check_kind(kind: &str) -> Result<(), DeviceError> {
    let part = |text: &str, more: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    let good = |(vendor, class): (&str, &str)| part(vendor, "-_.") && part(class, "-_");
    match kind.len() <= KIND_MAX && kind.split_once('/').is_some_and(good) {
        true => Ok(()),
        false => Err(DeviceError::Kind(kind.to_owned())),
    }
}

/// # Errors
/// [`DeviceError`] for what is no name within a kind.
pub fn check_name(name: &str) -> Result<(), DeviceError> {
    let good = name.len() <= NAME_MAX
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:".contains(c));
    if good { Ok(()) } else { Err(DeviceError::Name(name.to_owned())) }
}

/// `vendor.com/class=name`, in its parts.
pub fn split(device: &str) -> Option<(&str, &str)> {
    device.split_once('=')
}

/// Those of one task, `vendor.com/class=name` in order. Nearly all tasks have none, which costs
/// nothing.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Devices(Option<Arc<[String]>>);

impl Devices {
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(|all| all.iter()).map(String::as_str)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

impl FromIterator<String> for Devices {
    fn from_iter<I: IntoIterator<Item = String>>(names: I) -> Self {
        let mut names: Vec<String> = names.into_iter().collect();
        names.sort_unstable();
        Self((!names.is_empty()).then(|| names.into()))
    }
}

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_names() {
        for good in ["nvidia.com/gpu", "a/b", "Intel-x.com/sriov_net"] {
            assert_eq!(check_kind(good), Ok(()), "{good}");
        }
        for bad in ["", "gpu", "/gpu", "a/", "1.com/x", "a./x", "a/b/c", "a/b.c", "a/b="] {
            assert!(check_kind(bad).is_err(), "{bad}");
        }
        assert!(check_kind(&format!("a/{}", "b".repeat(62))).is_err());
        for good in ["0", "GPU-8a3f:1", "mig0.1"] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "-0", "a=b", "a/b", "x-", &"x".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert_eq!(split("a/b=0"), Some(("a/b", "0")));
    }

    #[test]
    fn of_a_task() {
        let all: Devices = ["a/b=1".to_owned(), "a/b=0".to_owned()].into_iter().collect();
        assert_eq!(all.iter().collect::<Vec<_>>(), ["a/b=0", "a/b=1"]);
        assert!(Devices::default().is_empty() && Devices::from_iter([]).is_empty());
    }
}
