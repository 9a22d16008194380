//! The files of a container's state folder that its shim writes.
//!
//! `run` appears before the program is executed, `exit` (by rename, so whole or not at all) after
//! it has ended. Neither is synced: they are read within the same boot only, where the page cache
//! keeps them whatever dies; after a power cut the containers are gone anyway.

use crate::message::{MAGIC, VERSION, i32_at, u32_at, u64_at};

/// Names within the state folder.
pub const RUN_FILE: &str = "run";
pub const EXIT_FILE: &str = "exit";
pub const SOCKET: &str = "sock";

/// A container whose program was executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub shim_pid: u32,
    pub pid: u32,
    /// Nanoseconds since 1970.
    pub at_ns: u64,
}

impl Run {
    pub const LEN: usize = 24;

    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.shim_pid.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.pid.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.at_ns.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        if u32_at(bytes, 0)? != MAGIC || u32_at(bytes, 4)? != VERSION {
            return None;
        }
        Some(Self {
            shim_pid: u32_at(bytes, 8)?,
            pid: u32_at(bytes, 12)?,
            at_ns: u64_at(bytes, 16)?,
        })
    }
}

/// How a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, or 128 + signal.
    pub code: i32,
    /// Zero when it was not a signal.
    pub signal: i32,
    pub oom_killed: bool,
    pub supervisor_lost: bool,
    pub at_ns: u64,
    /// Log lines that found no room on the disk.
    pub lines_lost: u64,
}

impl Exit {
    pub const LEN: usize = 40;

    pub fn encode(&self) -> [u8; Self::LEN] {
        let flags = u32::from(self.oom_killed) | u32::from(self.supervisor_lost) << 1;
        let mut bytes = [0; Self::LEN];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.code.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.signal.to_le_bytes());
        bytes[16..20].copy_from_slice(&flags.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.at_ns.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.lines_lost.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        if u32_at(bytes, 0)? != MAGIC || u32_at(bytes, 4)? != VERSION {
            return None;
        }
        let flags = u32_at(bytes, 16)?;
        Some(Self {
            code: i32_at(bytes, 8)?,
            signal: i32_at(bytes, 12)?,
            oom_killed: flags & 1 != 0,
            supervisor_lost: flags & 2 != 0,
            at_ns: u64_at(bytes, 24)?,
            lines_lost: u64_at(bytes, 32)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let run = Run { shim_pid: 7, pid: 8, at_ns: 9 };
        assert_eq!(Run::decode(&run.encode()), Some(run));
        assert_eq!(Run::decode(&[]), None);
        assert_eq!(Run::decode(&[0; Run::LEN]), None);
        let exit = Exit {
            code: 137,
            signal: 9,
            oom_killed: true,
            supervisor_lost: false,
            at_ns: 10,
            lines_lost: 3,
        };
        assert_eq!(Exit::decode(&exit.encode()), Some(exit));
        assert_eq!(Exit::decode(&exit.encode()[1..]), None);
        assert_eq!(Exit::decode(&[0; Exit::LEN]), None);
    }
}
