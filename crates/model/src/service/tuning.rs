//! How the kernel shares a node among containers, beside plain limits: which processors and memory
//! they may use, their weights, swap, and the pace of disks.

use std::fmt;
use std::str::FromStr;

use super::{SpecError, wrong};

/// Nothing by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tuning {
    /// Processors and memory nodes that may be used, as the kernel lists them: `0-3,7`.
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    /// Weight against others when the processors are busy; 1024 is what all have.
    pub cpu_shares: Option<u32>,
    /// Swap beside the limit of memory; none is none at all.
    pub swap_bytes: Option<u64>,
    /// Weight against others when disks are busy.
    pub io_weight: Option<u16>,
    pub io_limits: Vec<IoLimit>,
}

/// The most that is read from, or written to, one device in a second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoLimit {
    pub kind: IoKind,
    /// Of the node: an absolute path, e.g. `/dev/sda`.
    pub device: String,
    /// Bytes, or operations.
    pub rate: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum IoKind {
    ReadBps,
    WriteBps,
    ReadIops,
    WriteIops,
}

impl IoKind {
    /// Also the wire's numbering from 1.
    pub const ALL: [Self; 4] = [Self::ReadBps, Self::WriteBps, Self::ReadIops, Self::WriteIops];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReadBps => "read_bps",
            Self::WriteBps => "write_bps",
            Self::ReadIops => "read_iops",
            Self::WriteIops => "write_iops",
        }
    }
}

/// `read_bps /dev/sda 1048576`.
impl fmt::Display for IoLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.kind.as_str(), self.device, self.rate)
    }
}

impl Tuning {
    /// The kernel's, of version 1; version 2 has its own scale.
    pub const CPU_SHARES: (u32, u32) = (2, 262_144);
    /// Docker's.
    pub const IO_WEIGHT: (u16, u16) = (10, 1000);
    /// Devices times kinds of a large machine.
    pub const IO_LIMITS_MAX: usize = 64;
    /// As the kernel writes its longest lists.
    pub const SET_MAX: usize = 256;
    pub const DEVICE_MAX: usize = 256;

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn validate(&self, memory: Option<u64>) -> Result<(), SpecError> {
        for (field, set) in [("cpuset_cpus", &self.cpuset_cpus), ("cpuset_mems", &self.cpuset_mems)]
        {
            if let Some(set) = set.as_ref().filter(|set| !is_set(set)) {
                let problem = "is not a list of numbers and ranges, such as 0-3,7";
                return Err(wrong(field, set, problem));
            }
        }
        let (least, most) = Self::CPU_SHARES;
        if let Some(shares) = self.cpu_shares.filter(|n| !(least..=most).contains(n)) {
            let problem = format!("is not between {least} and {most}");
            return Err(wrong("cpu_shares", shares, problem));
        }
        if let Some(swap) = self.swap_bytes.filter(|_| memory.is_none()) {
            let problem = "needs a limit of memory beside it: --limit-memory";
            return Err(wrong("limit_swap", swap, problem));
        }
        let (least, most) = Self::IO_WEIGHT;
        if let Some(weight) = self.io_weight.filter(|n| !(least..=most).contains(n)) {
            return Err(wrong(
                "blkio_weight",
                weight,
                format!("is not between {least} and {most}"),
            ));
        }
        self.check_io()
    }

    fn check_io(&self) -> Result<(), SpecError> {
        let count = self.io_limits.len();
        if count > Self::IO_LIMITS_MAX {
            let problem = format!("is more than {}", Self::IO_LIMITS_MAX);
            return Err(wrong("device limits", count, problem));
        }
        for (at, limit) in self.io_limits.iter().enumerate() {
            let IoLimit { kind, device, rate } = limit;
            let field = format!("device_{}", kind.as_str());
            let plain = |c: char| c.is_ascii_graphic();
            let good = device.len() <= Self::DEVICE_MAX && device.chars().all(plain);
            if !good || !device.starts_with("/dev/") {
                return Err(wrong(&field, device, "is not the path of a device, e.g. /dev/sda"));
            }
            if *rate == 0 {
                return Err(wrong(&field, device, "has a rate of 0, allowed is 1 or more"));
            }
            let same = |other: &IoLimit| other.kind == *kind && other.device == *device;
            if self.io_limits[..at].iter().any(same) {
                return Err(wrong(&field, device, "is limited twice"));
            }
        }
        Ok(())
    }

    pub(super) fn text_len(&self) -> usize {
        let sets = [&self.cpuset_cpus, &self.cpuset_mems].into_iter().flatten();
        let devices = self.io_limits.iter().map(|limit| limit.device.len());
        sets.map(String::len).sum::<usize>() + devices.sum::<usize>()
    }
}

/// Whether a text is a list as the kernel takes it.
fn is_set(text: &str) -> bool {
    let number = |text: &str| u16::from_str(text).ok().filter(|_| !text.starts_with('+'));
    let part = |part: &str| match part.split_once('-') {
        None => number(part).is_some(),
        Some((first, last)) => match (number(first), number(last)) {
            (Some(first), Some(last)) => first <= last,
            (_, _) => false,
        },
    };
    text.len() <= Tuning::SET_MAX && text.split(',').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets() {
        for good in ["0", "0-3", "0-3,7", "1,2,3"] {
            assert!(is_set(good), "{good}");
        }
        for bad in ["", "a", "3-1", "1,,2", "-1", "1-", "+1", "0 - 3", "70000"] {
            assert!(!is_set(bad), "{bad}");
        }
    }

    #[track_caller]
    fn refused(tuning: Tuning, expected: &str) {
        let error = tuning.validate(None).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }

    #[test]
    fn what_is_refused() {
        let io = |kind, device: &str, rate| IoLimit { kind, device: device.into(), rate };
        let with = |io_limits| Tuning { io_limits, ..Tuning::default() };
        refused(
            Tuning { cpuset_cpus: Some("x".into()), ..Tuning::default() },
            "cpuset_cpus: \"x\" is not a list",
        );
        refused(
            Tuning { cpu_shares: Some(1), ..Tuning::default() },
            "cpu_shares: \"1\" is not between 2 and 262144",
        );
        refused(Tuning { swap_bytes: Some(1), ..Tuning::default() }, "limit_swap: \"1\" needs");
        refused(
            Tuning { io_weight: Some(9), ..Tuning::default() },
            "blkio_weight: \"9\" is not between 10 and 1000",
        );
        refused(
            with(vec![io(IoKind::ReadBps, "sda", 1)]),
            "device_read_bps: \"sda\" is not the path",
        );
        refused(
            with(vec![io(IoKind::WriteIops, "/dev/sda", 0)]),
            "device_write_iops: \"/dev/sda\" has",
        );
        let twice = vec![io(IoKind::ReadBps, "/dev/a", 1), io(IoKind::ReadBps, "/dev/a", 2)];
        refused(with(twice), "device_read_bps: \"/dev/a\" is limited twice");
    }
}
