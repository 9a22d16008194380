//! The shim's program, in memory: one sealed file for each daemon, executed for each container.
//!
//! All shims of one daemon share its pages. Sealed, and nowhere in the file system: a container
//! that gets hold of `/proc/<pid>/exe` has nothing to write to (CVE-2019-5736).

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use warren_shim::protection::{Protection, kept};

static SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/warren-shim"));

/// Newer than rustix' list: keeps the file executable where `vm.memfd_noexec` is set.
const MFD_EXEC: MemfdFlags = MemfdFlags::from_bits_retain(0x10);

const SEALS: SealFlags =
    SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::SEAL);

#[derive(Debug)]
pub(crate) struct Binary {
    file: File,
}

impl Binary {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = match memfd_create("warren-shim", flags | MFD_EXEC) {
            // Before Linux 6.3 every memory file is executable.
            Err(rustix::io::Errno::INVAL) => memfd_create("warren-shim", flags)?,
            other => other?,
        };
        if !kept(Protection::SealedProgram) {
            let mut file = File::from(file);
            file.write_all(SHIM)?;
            return Ok(Self { file });
        }
        Ok(Self { file: sealed(file, SHIM)? })
    }

    /// Starts a shim that will read its orders from `stdin`. The answer is its pidfd; whoever
    /// watches that reaps it.
    pub(crate) fn spawn(&self, id: &str, stdin: OwnedFd) -> io::Result<OwnedFd> {
        let mut command = Command::new(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        if kept(Protection::PrivateEnvironment) {
            command.env_clear();
        }
        let child = command
            .arg0("warren-shim")
            .arg(id)
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        // Not reaped before we have this, so the number cannot be anybody else's.
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::InvalidData)?;
        Ok(pidfd_open(pid, PidfdFlags::empty())?)
    }
}

/// A memory file with these bytes that nobody can change any more.
pub(crate) fn sealed_bytes(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    Ok(sealed(memfd_create("warren-message", flags)?, bytes)?.into())
}

fn sealed(file: OwnedFd, bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(file);
    file.write_all(bytes)?;
    fcntl_add_seals(&file, SEALS)?;
    Ok(file)
}
