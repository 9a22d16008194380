//! Folders that nobody is led out of.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, openat2, statat};
use rustix::io::Errno;

use super::{DEPTH_MAX, Error};
use crate::tarball::printable;

/// The kernel asks to try again when a rename anywhere raced with a `..` on the way.
const RESOLVE_TRIES: usize = 64;

/// What becomes of symbolic links on the way to an entry of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Followed, as if the root were `/`: within a container.
    InRoot,
    /// Refused: an archive of somebody else's must not be led anywhere by links that it made.
    Refused,
}

/// Opens a path within `root`, following links as if it were `/`.
pub(super) fn open_in(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    resolve(root, path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

fn resolve(
    at: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    how: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let mut tries = RESOLVE_TRIES;
    loop {
        tries -= 1;
        match openat2(at, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) if tries > 0 => {}
            result => return result,
        }
    }
}

pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// What is there under a name, links not followed.
pub(super) fn look(folder: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where an archive goes.
pub(super) struct Base<'a> {
    root: BorrowedFd<'a>,
    /// Within the root.
    path: Vec<u8>,
    /// The same, opened.
    fd: OwnedFd,
    links: Links,
    /// The folder of the entry before: entries of one folder follow each other.
    cached: Option<(Vec<u8>, OwnedFd)>,
}

impl<'a> Base<'a> {
    /// # Errors
    /// When there is no such folder.
    pub(super) fn open(root: BorrowedFd<'a>, path: &[u8], links: Links) -> Result<Self, Error> {
        let fd = open_in(root, path, OFlags::DIRECTORY | OFlags::RDONLY)
            .map_err(|error| Error::of_path("open", path, error))?;
        Ok(Self { root, path: path.to_vec(), fd, links, cached: None })
    }

    /// The folder of that path below it, made where it is missing.
    pub(super) fn folder(&mut self, parts: &[&[u8]]) -> Result<BorrowedFd<'_>, Error> {
        if parts.len() > DEPTH_MAX {
            return Err(Error::Bad(format!("more than {DEPTH_MAX} folders below each other")));
        }
        let path = parts.join(&b'/');
        if self.cached.as_ref().is_none_or(|(cached, _)| *cached != path) {
            let fd = match self.resolve(&path) {
                Ok(fd) => fd,
                Err(Errno::NOENT) => self.make(parts)?,
                Err(error) => return Err(Error::of_path("open", &path, error)),
            };
            self.cached = Some((path, fd));
        }
        Ok(self.cached.as_ref().map_or_else(|| self.fd.as_fd(), |(_, fd)| fd.as_fd()))
    }

    fn resolve(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY;
        match self.links {
            Links::InRoot => {
                let mut whole = self.path.clone();
                whole.push(b'/');
                whole.extend_from_slice(path);
                open_in(self.root, &whole, flags)
            }
            Links::Refused => {
                let how =
                    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
                resolve(self.fd.as_fd(), if path.is_empty() { b"." } else { path }, flags, how)
            }
        }
    }

    fn make(&self, parts: &[&[u8]]) -> Result<OwnedFd, Error> {
        let wrong = |path: &[u8], error| Error::of_path("make folder", path, error);
        let mut parent = self.resolve(b"").map_err(|error| wrong(b".", error))?;
        for depth in 1..=parts.len() {
            let path = parts[..depth].join(&b'/');
            parent = match self.resolve(&path) {
                Err(Errno::NOENT) => {
                    match rustix::fs::mkdirat(&parent, parts[depth - 1], Mode::from(0o755)) {
                        // A link to nothing.
                        Err(Errno::EXIST) => {
                            let name = printable(&path);
                            return Err(Error::Conflict(format!("{name}: a link to nothing")));
                        }
                        other => other.map_err(|error| wrong(&path, error))?,
                    }
                    self.resolve(&path).map_err(|error| wrong(&path, error))?
                }
                other => other.map_err(|error| wrong(&path, error))?,
            };
        }
        Ok(parent)
    }
}
