//! Owner, mode, times and extended attributes.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::root::Root;
use super::{Error, NAMES_BYTES_MAX, bad};
use crate::tarball::Member;

/// Every file system has room for values of this length.
const XATTR_LEN_SURE: usize = 2048;

/// Sets owner, mode and attributes of a file or folder; tells how many
/// attributes were dropped. The order matters: a change of owner clears the
/// set-user-id bit and file capabilities.
pub(super) fn set(fd: BorrowedFd<'_>, member: &Member) -> Result<u64, Error> {
    let (uid, gid) = owner(member)?;
    rustix::fs::fchown(fd, Some(uid), Some(gid))
        .map_err(|error| Error::io("set owner of", error))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(member.mode))
        .map_err(|error| Error::io("set mode of", error))?;
    let mut dropped = 0;
    for (name, value) in &member.xattrs {
        if !is_kept(name) {
            dropped += 1;
            continue;
        }
        match rustix::fs::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty()) {
            Ok(()) => {}
            // The file system or the kind of file has none: as Docker, go on without.
            Err(Errno::NOTSUP | Errno::PERM) => dropped += 1,
            Err(Errno::INVAL | Errno::RANGE | Errno::TOOBIG) => {
                return bad(format!(
                    "extended attribute {} is damaged",
                    crate::tarball::printable(name)
                ));
            }
            // ext4 says so of a value larger than its block, on an empty disk too.
            Err(Errno::NOSPC) if value.len() > XATTR_LEN_SURE => {
                return bad(format!(
                    "extended attribute {} of {} bytes does not fit this file system",
                    crate::tarball::printable(name),
                    value.len()
                ));
            }
            Err(error) => return Err(Error::io("set extended attribute of", error)),
        }
    }
    Ok(dropped)
}

/// Owner and time of something that is not opened: a symbolic link or a fifo.
pub(super) fn set_link(dir: BorrowedFd<'_>, name: &[u8], member: &Member) -> Result<(), Error> {
    let (uid, gid) = owner(member)?;
    rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| Error::io("set owner of", error))?;
    rustix::fs::utimensat(dir, name, &times(member.mtime), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| Error::io("set time of", error))
}

pub(super) fn set_times(fd: BorrowedFd<'_>, mtime: (i64, u32)) -> Result<(), Error> {
    rustix::fs::futimens(fd, &times(mtime)).map_err(|error| Error::io("set time of", error))
}

/// What a layer may set: file capabilities, access lists and users' own.
/// `trusted.*` and `user.overlay.*` would steer overlayfs, the rest of
/// `security.*` (SELinux labels, integrity hashes) is the host's policy.
pub(crate) fn is_kept(name: &[u8]) -> bool {
    match name {
        b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default" => true,
        _ => name.starts_with(b"user.") && !name.starts_with(b"user.overlay."),
    }
}

fn owner(member: &Member) -> Result<(Uid, Gid), Error> {
    // The last one means "leave as it is" to the kernel.
    let number = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
    match (number(member.uid), number(member.gid)) {
        (Some(uid), Some(gid)) => Ok((Uid::from_raw(uid), Gid::from_raw(gid))),
        _ => bad(format!("owner {}:{} is out of range", member.uid, member.gid)),
    }
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(nanos) };
    Timestamps { last_access: time, last_modification: time }
}

/// Times of folders, set at the end: each entry made in a folder changes its time.
#[derive(Default)]
pub(super) struct Times {
    folders: Vec<(Vec<u8>, (i64, u32))>,
    bytes: usize,
}

impl Times {
    /// Remembers a folder's time. Past the limit folders keep the time of unpacking.
    pub(super) fn keep(&mut self, parts: &[&[u8]], mtime: (i64, u32)) {
        let path = parts.join(&b'/');
        self.bytes += path.len();
        if self.bytes <= NAMES_BYTES_MAX {
            self.folders.push((path, mtime));
        }
    }

    pub(super) fn apply(&self, root: &Root) -> Result<(), Error> {
        for (path, mtime) in &self.folders {
            match root.resolve(path) {
                Ok(fd) => set_times(fd.as_fd(), *mtime)?,
                // Replaced by a later entry.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(Error::io("set time of", error)),
            }
        }
        Ok(())
    }
}
