//! Folders of a layer, reached without ever leaving it.
//!
//! Every path is resolved by the kernel with `RESOLVE_IN_ROOT`: symbolic links
//! of the layer are followed as if the folder were `/`, so no link leads out.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, XattrFlags};
use rustix::io::Errno;

use super::{Error, NAMES_BYTES_MAX, bad};
use crate::disk::Trash;
use crate::recipe::Tape;
use crate::tarball::printable;

/// overlayfs: nothing of the layers below shows through this folder.
pub(super) const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
/// Folders that the layer does not describe and that no layer below has.
const IMPLIED_MODE: Mode = Mode::from_raw_mode(0o755);
/// The kernel asks to try again when a rename anywhere raced with a `..` on the way.
const RESOLVE_TRIES: usize = 64;

pub(super) struct Root {
    fd: OwnedFd,
    /// The folder of the entry before: entries of one folder follow each other.
    cached: Option<(Vec<u8>, Rc<OwnedFd>)>,
    implied: BTreeSet<Vec<u8>>,
    implied_bytes: usize,
    trash: Trash,
    tape: Rc<Tape>,
}

impl Root {
    pub(super) fn open(path: &Path, tape: Rc<Tape>) -> Result<Self, Error> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let open = || {
            let fd = rustix::fs::open(path, flags, Mode::empty())?;
            rustix::fs::fchmod(&fd, IMPLIED_MODE)?;
            Ok(fd)
        };
        let fd = open().map_err(|error: Errno| {
            Error::io(format!("open layer folder {}", path.display()), error)
        })?;
        let implied = BTreeSet::from([Vec::new()]);
        let trash = Trash::beside(path);
        Ok(Self { fd, cached: None, implied, implied_bytes: 0, trash, tape })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The folder of that path, made if it is missing.
    pub(super) fn folder(&mut self, parts: &[&[u8]]) -> Result<Rc<OwnedFd>, Error> {
        let path = parts.join(&b'/');
        if let Some((cached, fd)) = &self.cached
            && *cached == path
        {
            return Ok(Rc::clone(fd));
        }
        let fd = match self.resolve(&path) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => self.make(parts)?,
            Err(error) => return Err(unreachable_folder(&path, error)),
        };
        let fd = Rc::new(fd);
        self.cached = Some((path, Rc::clone(&fd)));
        Ok(fd)
    }

    /// The folder of that path, if there is one.
    pub(super) fn existing(&self, parts: &[&[u8]]) -> Result<Option<OwnedFd>, Error> {
        let path = parts.join(&b'/');
        match self.resolve(&path) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(unreachable_folder(&path, error)),
        }
    }

    /// Whether the layer has something else than a folder there.
    pub(super) fn is_blocked(&self, parts: &[&[u8]]) -> bool {
        matches!(self.resolve(&parts.join(&b'/')), Err(Errno::NOTDIR))
    }

    /// The folder has an entry of its own.
    pub(super) fn declare(&mut self, parts: &[&[u8]]) {
        self.implied.remove(&parts.join(&b'/'));
    }

    /// Folders without an entry, parents before children.
    pub(super) fn into_implied(self) -> Vec<Vec<u8>> {
        self.implied.into_iter().collect()
    }

    /// Removes what an earlier entry made, folders with all that is in them.
    pub(super) fn remove(&mut self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Error> {
        self.cached = None;
        // Of what is gone the tar cannot be put together again; whiteouts have no content.
        if !stat(dir, name)?.is_some_and(|stat| is_whiteout(&stat)) {
            self.tape.spoil();
        }
        self.trash.remove_at(dir, name).map_err(|error| Error::io("remove replaced", error))
    }

    pub(super) fn resolve(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut tries = RESOLVE_TRIES;
        loop {
            tries -= 1;
            match rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) if tries > 0 => {}
                result => return result,
            }
        }
    }

    /// Makes the missing folders of a path, from the top.
    fn make(&mut self, parts: &[&[u8]]) -> Result<OwnedFd, Error> {
        let mut parent =
            self.resolve(b"").map_err(|error| Error::io("open layer folder", error))?;
        for depth in 1..=parts.len() {
            let path = parts[..depth].join(&b'/');
            let name = parts[depth - 1];
            parent = match self.resolve(&path) {
                Ok(fd) => fd,
                Err(Errno::NOENT) => self.make_one(&parent, name, path, false)?,
                Err(Errno::NOTDIR) => match stat(parent.as_fd(), name)? {
                    // A folder in place of what an earlier whiteout hid.
                    Some(stat) if is_whiteout(&stat) => {
                        self.remove(parent.as_fd(), name)?;
                        self.make_one(&parent, name, path, true)?
                    }
                    _ => {
                        return bad(format!(
                            "lies in \"{}\", which is no folder",
                            printable(&path)
                        ));
                    }
                },
                Err(error) => return Err(unreachable_folder(&path, error)),
            };
        }
        Ok(parent)
    }

    fn make_one(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        path: Vec<u8>,
        opaque: bool,
    ) -> Result<OwnedFd, Error> {
        match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                return bad(format!(
                    "lies in \"{}\", a symbolic link to nothing",
                    printable(&path)
                ));
            }
            Err(error) => return Err(Error::io("make folder of", error)),
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, name, flags, Mode::empty())
            .and_then(|fd| rustix::fs::fchmod(&fd, IMPLIED_MODE).map(|()| fd))
            .map_err(|error| Error::io("make folder of", error))?;
        if opaque {
            mark_opaque(fd.as_fd())?;
        }
        self.implied_bytes += path.len();
        if self.implied_bytes > NAMES_BYTES_MAX {
            return bad("too many folders without an entry of their own");
        }
        self.implied.insert(path);
        Ok(fd)
    }
}

fn unreachable_folder(path: &[u8], error: Errno) -> Error {
    match error {
        Errno::LOOP => Error::Bad(format!("lies in \"{}\", a loop of links", printable(path))),
        Errno::NAMETOOLONG => Error::Bad(format!("lies in \"{}\", too long", printable(path))),
        Errno::NOSYS => {
            Error::io("resolve a folder: Linux 5.6 or newer is needed (openat2)", error)
        }
        other => Error::io("open folder of", other),
    }
}

pub(super) fn stat(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Stat>, Error> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(Error::io("look at", error)),
    }
}

pub(super) fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

pub(super) fn is_same(a: &Stat, b: &Stat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

pub(super) fn mark_opaque(fd: BorrowedFd<'_>) -> Result<(), Error> {
    rustix::fs::fsetxattr(fd, OPAQUE_XATTR, b"y", XattrFlags::empty())
        .map_err(|error| Error::io("mark folder as opaque", error))
}
