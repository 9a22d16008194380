//! Files into and out of a container's root, as a tar archive that is made and read on the way.
//!
//! Every path is resolved by the kernel: within a root whose links cannot lead out of it, or below
//! a folder without following any link ([`Links`]). Devices, sockets and pipes are left out and
//! counted; so is what the kernel makes up (`/proc`, `/sys`). Lengths, depths and sizes have named
//! limits, for either side may be hostile to the other.
//!
//! Not here: which container, and how bytes travel. Extended attributes stay behind.

mod folder;
mod pack;
#[cfg(test)]
mod tests;
mod unpack;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

pub use folder::Links;
pub use pack::{Pack, pack};
pub use unpack::{Unpack, unpack};

/// Folders below each other.
const DEPTH_MAX: usize = 128;
/// Files, folders and links of one copy.
const ENTRIES_MAX: u64 = 4_000_000;
/// Bytes of files in one copy, unless another limit is asked for.
pub const BYTES_DEFAULT: u64 = 64 << 30;

/// What was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub files: u64,
    pub folders: u64,
    pub links: u64,
    pub bytes: u64,
    /// Devices, sockets, pipes, and what the kernel makes up.
    pub skipped: u64,
}

impl Tally {
    fn one_more(&self) -> Result<(), Error> {
        match self.files + self.folders + self.links + self.skipped < ENTRIES_MAX {
            true => Ok(()),
            false => Err(Error::Bad(format!("more than {ENTRIES_MAX} files in one copy"))),
        }
    }
}

/// How far it has got, for people who wait.
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes of files.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}: no such file or folder")]
    NotFound(String),
    /// The archive, or what was asked for.
    #[error("{0}")]
    Bad(String),
    /// Something else is there.
    #[error("{0}")]
    Conflict(String),
    #[error("{action}")]
    Io { action: String, source: io::Error },
}

impl Error {
    fn io(action: String, error: Errno) -> Self {
        Self::Io { action, source: error.into() }
    }

    /// Of something looked for under a name.
    fn of_path(action: &str, path: &[u8], error: Errno) -> Self {
        let name = crate::tarball::printable(path);
        match error {
            Errno::NOENT => Self::NotFound(name),
            Errno::NOTDIR => Self::Bad(format!("{name}: a part of the path is no folder")),
            Errno::LOOP => {
                Self::Bad(format!("{name}: a link is in the way that may not be followed"))
            }
            Errno::XDEV => Self::Bad(format!("{name}: leads out of the folder")),
            other => Self::io(format!("{action} {name}"), other),
        }
    }
}

impl From<crate::tarball::Error> for Error {
    fn from(error: crate::tarball::Error) -> Self {
        match error {
            crate::tarball::Error::Bad(text) => Self::Bad(format!("archive: {text}")),
            crate::tarball::Error::Read(source) => {
                Self::Io { action: "read the archive".to_owned(), source }
            }
        }
    }
}

/// What is at the place to copy to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    /// Or anything else that is no folder.
    File,
    Folder,
}

/// Where the first entry of an archive goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// It becomes the place itself.
    Itself,
    /// Below the place, under its own name.
    Below,
}

/// As `docker cp`: `contents` is a source that ends in `/.`, `slash` a place that ends in `/`.
fn target(is_folder: bool, contents: bool, found: Found, slash: bool) -> Result<Target, String> {
    match (is_folder, found) {
        (true, Found::File) => Err("a folder cannot take the place of a file".to_owned()),
        (true, Found::Nothing) => Ok(Target::Itself),
        (true, Found::Folder) if contents => Ok(Target::Itself),
        (true | false, Found::Folder) => Ok(Target::Below),
        (false, Found::Nothing | Found::File) if slash => {
            Err("there is no folder of that name".to_owned())
        }
        (false, Found::Nothing | Found::File) => Ok(Target::Itself),
    }
}

/// A path as people write it: its last name, and whether it is about what is within.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Written<'a> {
    /// Without slashes and dots at its end; empty: the root.
    path: &'a [u8],
    /// It ended in `/.`.
    contents: bool,
    /// It ended in `/`, `/.` or is the root: a folder is meant.
    slash: bool,
}

impl<'a> Written<'a> {
    fn parse(text: &'a [u8]) -> Self {
        let mut path = text;
        let mut contents = false;
        loop {
            if let Some(rest) = path.strip_suffix(b"/") {
                path = rest;
            } else if path == b"." || path.ends_with(b"/.") {
                path = &path[..path.len() - 1];
                contents = true;
            } else {
                break;
            }
        }
        let slash = path.len() < text.len() || path.is_empty();
        Self { path, contents: contents || path.is_empty(), slash }
    }

    /// Its last part; none of the root, or when that leads up.
    fn name(&self) -> Option<&'a [u8]> {
        let name = self.path.rsplit(|byte| *byte == b'/').next()?;
        (!name.is_empty() && name != b"..").then_some(name)
    }

    /// All before its last part.
    fn parent(&self) -> &'a [u8] {
        match self.path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => &self.path[..at],
            None => b"",
        }
    }
}
