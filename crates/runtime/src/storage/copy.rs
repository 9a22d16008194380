//! A folder's content in another one, by descriptors: owners, modes, times, links, attributes.
//!
//! Nothing is followed. Files that are one by hard links become two; device files and sockets are
//! left out, as images have none.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::{fs, io::Errno};

/// Far beyond what images have; each level is a pair of descriptors and a stack frame.
const DEPTH_MAX: usize = 200;
/// Of one attribute, and of the names of all of one file: the kernel's.
const ATTRIBUTE_MAX: usize = 64 << 10;

const OPEN: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);
const FOLDER: OFlags = OPEN.union(OFlags::DIRECTORY);

/// Copies what is in `from`, then what `from` itself is like.
pub(super) fn folder(from: &OwnedFd, into: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(io::Error::other(format!("folders more than {DEPTH_MAX} deep")));
    }
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            one(from, into, name, depth)?;
        }
    }
    let stat = fs::fstat(from)?;
    adopt(from.as_fd(), into, &stat)
}

fn one(from: &OwnedFd, into: BorrowedFd<'_>, name: &CStr, depth: usize) -> io::Result<()> {
    let stat = fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            fs::mkdirat(into, name, Mode::RWXU)?;
            let below = fs::openat(from, name, FOLDER, Mode::empty())?;
            let copy = fs::openat(into, name, FOLDER, Mode::empty())?;
            folder(&below, copy.as_fd(), depth + 1)
        }
        FileType::RegularFile => {
            let source = fs::openat(from, name, OPEN, Mode::empty())?;
            let flags = OPEN | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let mut copy = File::from(fs::openat(into, name, flags, Mode::RUSR | Mode::WUSR)?);
            let mut source = File::from(source);
            io::copy(&mut source, &mut copy)?;
            adopt(source.as_fd(), copy.as_fd(), &stat)
        }
        FileType::Symlink => {
            let target = fs::readlinkat(from, name, Vec::new())?;
            fs::symlinkat(target, into, name)?;
            own_by_name(into, name, &stat)
        }
        FileType::Fifo => {
            let mode = Mode::from_raw_mode(stat.st_mode);
            fs::mknodat(into, name, FileType::Fifo, mode, 0)?;
            own_by_name(into, name, &stat)
        }
        FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice
        | FileType::Unknown => Ok(()),
    }
}

/// Owner, mode, attributes and times; the mode after the owner, which takes bits of it away.
fn adopt(from: BorrowedFd<'_>, copy: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
    fs::fchown(copy, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fs::fchmod(copy, Mode::from_raw_mode(stat.st_mode))?;
    attributes(from, copy)?;
    fs::futimens(copy, &times(stat))?;
    Ok(())
}

fn own_by_name(into: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fs::chownat(into, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
    fs::utimensat(into, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanos| Timespec { tv_sec: seconds, tv_nsec: nanos };
    #[allow(clippy::useless_conversion, clippy::cast_possible_wrap, clippy::unnecessary_cast)]
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec as _),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec as _),
    }
}

/// Those that programs and images set. Not overlayfs' own, nor those of the kernel's security.
fn attributes(from: BorrowedFd<'_>, copy: BorrowedFd<'_>) -> io::Result<()> {
    let mut names = vec![0_u8; ATTRIBUTE_MAX];
    let len = match fs::flistxattr(from, names.as_mut_slice()) {
        Ok(len) => len,
        // A file system without any.
        Err(Errno::NOTSUP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for name in names[..len].split(|byte| *byte == 0).filter(|name| wanted(name)) {
        let name = CString::new(name).map_err(|_| io::ErrorKind::InvalidData)?;
        let mut value = vec![0_u8; ATTRIBUTE_MAX];
        let len = fs::fgetxattr(from, &name, value.as_mut_slice())?;
        match fs::fsetxattr(copy, &name, &value[..len], XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn wanted(name: &[u8]) -> bool {
    let users = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
    users || name == b"security.capability"
}
