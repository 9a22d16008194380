//! Folders that a layer does not describe take owner, mode and time from below.
//!
//! A tar may hold `etc/app/conf` without `etc`: unpacked alone, `etc` would
//! become root's with mode 755 in the merged view, whatever the layers below say.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::Error;
use super::root::OPAQUE_XATTR;
use crate::tree::{Node, Tree};

/// Folders flushed one by one: for more of them the whole file system is cheaper.
/// Most layers have one, their root.
const FLUSHED_MAX: usize = 8;

/// Completes the unpacked folder `target` from `lower`, topmost first. Tells whether
/// all changes are on disk.
pub(crate) fn inherit(
    target: &Path,
    implied: &[Vec<u8>],
    lower: &[PathBuf],
) -> Result<bool, Error> {
    let flush = implied.len() <= FLUSHED_MAX;
    let tree = Tree::new(lower);
    for path in implied {
        let found = tree
            .lookup(path)
            .map_err(|error| Error::io(format!("look up /{}", show(path)), error))?;
        let Some(Node::Dir(folders)) = found else {
            continue;
        };
        let Some(folder) = folders.first() else {
            continue;
        };
        copy(folder, target, path, flush)
            .map_err(|error| Error::io(format!("set attributes of /{}", show(path)), error))?;
    }
    Ok(flush)
}

fn copy(from: &Path, target: &Path, path: &[u8], flush: bool) -> std::io::Result<()> {
    let metadata = from.symlink_metadata()?;
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let root = rustix::fs::open(target, flags, Mode::empty())?;
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let fd = match rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve) {
        Ok(fd) => fd,
        // Replaced by a later entry, or reached through a link: described elsewhere.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let (uid, gid) = (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
    rustix::fs::fchown(&fd, Some(uid), Some(gid))?;
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(metadata.mode() & 0o7777))?;
    let time = Timespec { tv_sec: metadata.mtime(), tv_nsec: metadata.mtime_nsec() };
    rustix::fs::futimens(&fd, &Timestamps { last_access: time, last_modification: time })?;
    if flush {
        rustix::fs::fsync(&fd)?;
    }
    Ok(())
}

/// Whether the folder hides all that lies below it.
pub(crate) fn is_opaque(folder: &Path) -> bool {
    let mut value = [0; 1];
    match rustix::fs::lgetxattr(folder, OPAQUE_XATTR, &mut value) {
        Ok(count) => count == 1 && value[0] == b'y',
        Err(_) => false,
    }
}

fn show(path: &[u8]) -> String {
    std::ffi::OsStr::from_bytes(path).to_string_lossy().into_owned()
}
