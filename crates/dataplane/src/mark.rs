//! Which process it is: number, start, boot; written into the run folder.
//!
//! A number alone could be another process's by now. With the moment of its start and the boot it
//! is one process and no other.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use warren_base::file::write_atomic;

/// In the run folder.
pub(crate) const FILE: &str = "data.pid";
/// Three short words.
const LEN_MAX: u64 = 256;
/// Fields of `/proc/<pid>/stat` behind the name: the moment of the start, in ticks since the boot.
const START: usize = 19;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) pid: i32,
    start: u64,
    boot: String,
}

impl Mark {
    /// Of this process.
    pub(crate) fn own() -> io::Result<Self> {
        Self::of(rustix::process::getpid().as_raw_nonzero().get())
    }

    /// Of a process that lives.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        Ok(Self { pid, start: start(pid)?, boot })
    }

    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let Self { pid, start, boot } = self;
        write_atomic(path, format!("{pid} {start} {boot}\n").as_bytes(), 0o600)
    }

    /// What is written there, if it is a mark.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        if fs::metadata(path).ok()?.len() > LEN_MAX {
            return None;
        }
        let text = fs::read_to_string(path).ok()?;
        let mut words = text.split_whitespace();
        let pid = words.next()?.parse().ok().filter(|pid| *pid > 0)?;
        let start = words.next()?.parse().ok()?;
        Some(Self { pid, start, boot: words.next()?.to_owned() })
    }

    /// The process, if it is this one and lives.
    pub(crate) fn process(&self) -> Option<OwnedFd> {
        let pidfd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // In this order: what the descriptor is of, this is read of, or it has ended.
        (Self::of(self.pid).ok()? == *self).then_some(pidfd)
    }
}

fn start(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name is in parentheses and may have any character, these included.
    let fields = stat.rsplit_once(") ").map(|(_, fields)| fields);
    let start = fields.and_then(|fields| fields.split_whitespace().nth(START)?.parse().ok());
    start.ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is odd")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_process_is_meant() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        assert_eq!(Mark::read(&path), None);
        let own = Mark::own().unwrap();
        own.write(&path).unwrap();
        assert_eq!(Mark::read(&path), Some(own.clone()));
        assert!(own.process().is_some());
        let others = [
            Mark { start: own.start + 1, ..own.clone() },
            Mark { boot: "another".to_owned(), ..own.clone() },
            Mark { pid: i32::MAX, ..own },
        ];
        for other in others {
            assert!(other.process().is_none(), "{other:?}");
        }
        for text in ["", "1", "1 2", "x 2 b", "-1 2 b", &"1 2 b".repeat(99)] {
            fs::write(&path, text).unwrap();
            assert_eq!(Mark::read(&path), None, "{text}");
        }
    }
}
