//! One layer's tar into one folder, made for overlayfs.
//!
//! Blocking code: reads a stream of hostile bytes, writes only below the folder
//! it was given, with fixed buffers. Later entries replace earlier ones, device
//! nodes are skipped and counted, whiteouts become overlayfs' own. The source is
//! read to its end even after the tar ends, so that both digests are of the whole.
//!
//! Contract: on error the folder holds rubbish; the caller removes it. Nothing
//! is flushed here: the caller syncs the file system once per layer.
//!
//! Not here: compression (`decode`), folders that the layer names only in paths
//! get their owner and mode from the layer below in `inherit`.

mod attributes;
mod inherit;
mod meter;
mod root;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::decode;
use crate::digest::Digest;
use crate::recipe::{Tape, Taped};
use crate::tarball::{self, Kind, Member, printable};
use attributes::Times;
use meter::{Bomb, HashRead, Metered};
use root::Root;

pub(crate) use attributes::is_kept;
pub(crate) use inherit::{inherit, is_opaque};
pub(crate) use meter::Aborted;

/// Bounds of one layer.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes after decompression.
    pub bytes_max: u64,
    pub entries_max: u64,
    /// Bytes after decompression for each byte before it,
    pub ratio_max: u64,
    /// once this many came out: small layers of zeros are harmless.
    pub ratio_free_bytes: u64,
}

impl Default for Limits {
    /// The largest public images (machine learning) have layers of about 20 GiB
    /// and 300 k entries; real layers compress 2 to 10 times, gzip at most 1032.
    fn default() -> Self {
        Self {
            bytes_max: 128 << 30,
            entries_max: 2_000_000,
            ratio_max: 200,
            ratio_free_bytes: 256 << 20,
        }
    }
}

/// Names kept in memory until the end of the layer, see [`Times`] and [`Root`]:
/// about 200 k folders, the largest images have 40 k.
const NAMES_BYTES_MAX: usize = 16 << 20;
/// Of one part of a path, in every Linux file system.
const NAME_LEN_MAX: usize = 255;
const COPY_LEN: usize = 128 * 1024;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other aufs bookkeeping, never content.
const AUFS: &[u8] = b".wh..wh.";

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The layer is at fault: what and where.
    #[error("{0}")]
    Bad(String),
    #[error("no space left on the device")]
    Full,
    /// The bytes are not those that were asked for.
    #[error("{actual} but should be {expected}")]
    Digest { expected: Digest, actual: Digest },
    /// The source gave up; its own error says why.
    #[error("source ended early")]
    Aborted,
    #[error("{action}")]
    Io { action: String, source: io::Error },
}

fn bad<T>(what: impl Into<String>) -> Result<T, Error> {
    Err(Error::Bad(what.into()))
}

impl Error {
    /// A system call on our side of the fence.
    fn io(action: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        if is_full(&source) { Self::Full } else { Self::Io { action: action.into(), source } }
    }

    /// A read of the layer.
    fn read(error: io::Error) -> Self {
        match error.get_ref() {
            Some(inner) if inner.is::<Aborted>() => Self::Aborted,
            Some(inner) if inner.is::<Bomb>() => Self::Bad(error.to_string()),
            Some(inner) if inner.is::<decode::Unsupported>() => Self::Bad(error.to_string()),
            _ if error.raw_os_error().is_some() => Self::io("read layer", error),
            _ => Self::Bad(format!("data is damaged: {error}")),
        }
    }
}

impl From<tarball::Error> for Error {
    fn from(error: tarball::Error) -> Self {
        match error {
            tarball::Error::Bad(what) => Self::Bad(what),
            tarball::Error::Read(error) => Self::read(error),
        }
    }
}

/// Out of blocks, inodes or quota.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOSPC | Errno::DQUOT))
}

/// What came out of a layer.
#[derive(Debug)]
pub(crate) struct Unpacked {
    /// Of the tar.
    pub(crate) diff: Digest,
    /// Bytes of files written.
    pub(crate) size: u64,
    pub(crate) devices_skipped: u64,
    pub(crate) xattrs_dropped: u64,
    /// The tar can be put together again by what was written down.
    pub(crate) has_recipe: bool,
    /// Folders that entries lie in but that have no entry themselves.
    pub(crate) implied: Vec<Vec<u8>>,
}

/// Unpacks the layer that `source` yields into the empty folder `target`.
/// `expected` is the digest of the bytes as they come; `recipe` an empty file to write
/// down how the tar is put together again.
pub(crate) fn unpack(
    source: impl Read,
    target: &Path,
    expected: Option<&Digest>,
    recipe: Option<File>,
    limits: &Limits,
) -> Result<Unpacked, Error> {
    let tape = Tape::new(recipe).map_err(|error| Error::io("write recipe", error))?;
    let mut raw = HashRead::new(source);
    let result = unpack_from(&mut raw, target, &tape, limits);
    match &result {
        // Altered bytes look like a bad layer: read on and tell the cause, not the symptom.
        Err(Error::Bad(_)) if expected.is_some() => drain(&mut raw)?,
        Ok(_) => drain(&mut raw)?,
        Err(_) => {}
    }
    let actual = raw.finish();
    match (result, expected) {
        (Ok(_) | Err(Error::Bad(_)), Some(expected)) if *expected != actual => {
            Err(Error::Digest { expected: expected.clone(), actual })
        }
        (Ok((diff, layer)), _) => {
            let has_recipe = tape.finish().map_err(|error| Error::io("write recipe", error))?;
            Ok(layer.unpacked(diff, has_recipe))
        }
        (Err(error), _) => Err(error),
    }
}

fn unpack_from(
    raw: &mut HashRead<impl Read>,
    target: &Path,
    tape: &Rc<Tape>,
    limits: &Limits,
) -> Result<(Digest, Layer), Error> {
    let tally = raw.tally();
    let decoded = decode::decode(raw).map_err(Error::read)?;
    let mut tar = HashRead::new(Metered::new(decoded, tally, limits));
    let mut layer = Layer::open(target, tape)?;
    let buffered = io::BufReader::with_capacity(COPY_LEN, &mut tar);
    let mut reader = tarball::Reader::new(Taped::new(buffered, Rc::clone(tape)));
    layer.take_all(&mut reader, limits)?;
    layer.times.apply(&layer.root)?;
    drain(&mut reader.into_inner())?;
    Ok((tar.finish(), layer))
}

/// What follows the end of a tar counts for the digest, not for the content.
fn drain(source: &mut impl Read) -> Result<(), Error> {
    io::copy(source, &mut io::sink()).map(drop).map_err(Error::read)
}

struct Layer {
    root: Root,
    times: Times,
    tape: Rc<Tape>,
    buffer: Vec<u8>,
    size: u64,
    devices_skipped: u64,
    xattrs_dropped: u64,
}

impl Layer {
    fn open(target: &Path, tape: &Rc<Tape>) -> Result<Self, Error> {
        Ok(Self {
            root: Root::open(target, Rc::clone(tape))?,
            times: Times::default(),
            tape: Rc::clone(tape),
            buffer: vec![0; COPY_LEN],
            size: 0,
            devices_skipped: 0,
            xattrs_dropped: 0,
        })
    }

    fn take_all(
        &mut self,
        reader: &mut tarball::Reader<impl Read>,
        limits: &Limits,
    ) -> Result<(), Error> {
        let mut entries = 0;
        while let Some(member) = reader.next()? {
            entries += 1;
            if entries > limits.entries_max {
                return bad(format!("more than {} entries", limits.entries_max));
            }
            self.take(&member, reader).map_err(|error| match error {
                Error::Bad(what) => Error::Bad(format!("entry \"{}\": {what}", member.name())),
                Error::Io { action, source } => {
                    Error::Io { action: format!("{action} \"{}\"", member.name()), source }
                }
                other @ (Error::Full | Error::Aborted | Error::Digest { .. }) => other,
            })?;
        }
        Ok(())
    }

    fn take(&mut self, member: &Member, data: &mut impl Read) -> Result<(), Error> {
        let parts = split(&member.path)?;
        let Some((name, parents)) = parts.split_last() else {
            return self.take_root(member);
        };
        if member.kind == Kind::Device {
            self.devices_skipped += 1;
            return Ok(());
        }
        // A file or a whiteout in place of a folder hides all that was in it; umoci still
        // writes a whiteout for each.
        if name.starts_with(WHITEOUT) && self.root.is_blocked(parents) {
            return Ok(());
        }
        let dir = self.root.folder(parents)?;
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return if *name == OPAQUE {
                root::mark_opaque(dir.as_fd())
            } else if name.starts_with(AUFS) {
                Ok(())
            } else {
                whiteout(&dir, hidden)
            };
        }
        match member.kind {
            Kind::Dir => self.dir(member, &dir, name, &parts),
            Kind::File => self.file(member, &dir, &parts, data),
            Kind::Symlink => self.symlink(member, &dir, name),
            Kind::HardLink => self.hard_link(member, &dir, name),
            Kind::Fifo => self.fifo(member, &dir, name),
            Kind::Device => Ok(()),
        }
    }

    fn take_root(&mut self, member: &Member) -> Result<(), Error> {
        if member.kind != Kind::Dir {
            return bad("the root must be a folder");
        }
        self.root.declare(&[]);
        self.xattrs_dropped += attributes::set(self.root.fd(), member)?;
        self.times.keep(&[], member.mtime);
        Ok(())
    }

    fn dir(
        &mut self,
        member: &Member,
        dir: &OwnedFd,
        name: &[u8],
        parts: &[&[u8]],
    ) -> Result<(), Error> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        let mut opaque = false;
        match rustix::fs::mkdirat(dir, name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => match root::stat(dir.as_fd(), name)? {
                Some(stat) if root::is_dir(&stat) => {}
                existing => {
                    // Hidden by an earlier whiteout: what lies below must stay hidden.
                    opaque = existing.is_some_and(|stat| root::is_whiteout(&stat));
                    self.root.remove(dir.as_fd(), name)?;
                    rustix::fs::mkdirat(dir, name, Mode::RWXU)
                        .map_err(|error| Error::io("make folder", error))?;
                }
            },
            Err(error) => return Err(Error::io("make folder", error)),
        }
        let made = rustix::fs::openat(dir, name, flags, Mode::empty())
            .map_err(|error| Error::io("open folder", error))?;
        if opaque {
            root::mark_opaque(made.as_fd())?;
        }
        self.root.declare(parts);
        self.xattrs_dropped += attributes::set(made.as_fd(), member)?;
        self.times.keep(parts, member.mtime);
        Ok(())
    }

    fn file(
        &mut self,
        member: &Member,
        dir: &OwnedFd,
        parts: &[&[u8]],
        data: &mut impl Read,
    ) -> Result<(), Error> {
        let name = parts.last().copied().unwrap_or_default();
        let path = parts.join(&b'/');
        let note = |tape: &Tape, offset, length| {
            tape.content(&path, offset, length).map_err(|error| Error::io("write recipe", error))
        };
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY;
        let create =
            || rustix::fs::openat(dir, name, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
        let fd = self.replacing(dir, name, create, "make file")?;
        let mut file = File::from(fd);
        match &member.sparse {
            None => {
                note(&self.tape, 0, member.size)?;
                self.copy(data, &mut file, member.size)?;
            }
            Some(pieces) => {
                for &(offset, length) in pieces {
                    note(&self.tape, offset, length)?;
                    file.seek(SeekFrom::Start(offset))
                        .map_err(|error| Error::io("seek in file", error))?;
                    self.copy(data, &mut file, length)?;
                }
                file.set_len(member.size)
                    .map_err(|error| Error::io("set length of file", error))?;
            }
        }
        self.xattrs_dropped += attributes::set(file.as_fd(), member)?;
        attributes::set_times(file.as_fd(), member.mtime)
    }

    fn copy(&mut self, data: &mut impl Read, file: &mut File, mut left: u64) -> Result<(), Error> {
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let count = data.read(&mut self.buffer[..want]).map_err(Error::read)?;
            if count == 0 {
                return bad("archive ends in the middle of an entry");
            }
            file.write_all(&self.buffer[..count])
                .map_err(|error| Error::io("write file", error))?;
            left -= count as u64;
            self.size += count as u64;
        }
        Ok(())
    }

    fn symlink(&mut self, member: &Member, dir: &OwnedFd, name: &[u8]) -> Result<(), Error> {
        if member.link.is_empty() {
            return bad("symbolic link to nothing");
        }
        let create = || rustix::fs::symlinkat(member.link.as_slice(), dir, name);
        self.replacing(dir, name, create, "make symbolic link")?;
        attributes::set_link(dir.as_fd(), name, member)
    }

    /// Links within the layer: `..` is refused, a leading slash means the layer's root.
    fn hard_link(&mut self, member: &Member, dir: &OwnedFd, name: &[u8]) -> Result<(), Error> {
        let target = printable(&member.link);
        let relative = member.link.strip_prefix(b"/").unwrap_or(&member.link);
        let parts = split(relative)
            .map_err(|_| Error::Bad(format!("hard link to \"{target}\" outside of the layer")))?;
        let missing =
            || Error::Bad(format!("hard link to \"{target}\", which is not in the layer"));
        let (last, parents) = parts.split_last().ok_or_else(missing)?;
        let from = self.root.existing(parents)?.ok_or_else(missing)?;
        let stat = root::stat(from.as_fd(), last)?.ok_or_else(missing)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::Symlink | FileType::Fifo => {}
            _ => return bad(format!("hard link to \"{target}\", which is no file")),
        }
        if root::stat(dir.as_fd(), name)?.is_some_and(|other| root::is_same(&other, &stat)) {
            return Ok(());
        }
        let link = || rustix::fs::linkat(&from, *last, dir, name, AtFlags::empty());
        self.replacing(dir, name, link, "make hard link")
    }

    fn fifo(&mut self, member: &Member, dir: &OwnedFd, name: &[u8]) -> Result<(), Error> {
        let create = || rustix::fs::mknodat(dir, name, FileType::Fifo, Mode::RUSR, 0);
        self.replacing(dir, name, create, "make fifo")?;
        rustix::fs::chmodat(dir, name, Mode::from_raw_mode(member.mode), AtFlags::empty())
            .map_err(|error| Error::io("set mode of", error))?;
        attributes::set_link(dir.as_fd(), name, member)
    }

    /// Creates what must not exist yet; if it does, removes it and tries once more.
    fn replacing<T>(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        mut create: impl FnMut() -> rustix::io::Result<T>,
        action: &str,
    ) -> Result<T, Error> {
        match create() {
            Err(Errno::EXIST) => {
                self.root.remove(dir.as_fd(), name)?;
                create()
            }
            first => first,
        }
        .map_err(|error| match error {
            // More links than the file system counts, or one that it forbids.
            Errno::MLINK | Errno::PERM | Errno::NAMETOOLONG => {
                Error::Bad(format!("{action}: {error}"))
            }
            other => Error::io(action, other),
        })
    }

    fn unpacked(self, diff: Digest, has_recipe: bool) -> Unpacked {
        Unpacked {
            diff,
            size: self.size,
            devices_skipped: self.devices_skipped,
            xattrs_dropped: self.xattrs_dropped,
            has_recipe,
            implied: self.root.into_implied(),
        }
    }
}

/// Hides `name` of the layers below. What this very layer holds stays.
fn whiteout(dir: &Rc<OwnedFd>, name: &[u8]) -> Result<(), Error> {
    if matches!(name, b"" | b"." | b"..") {
        return bad("whiteout of nothing");
    }
    match root::stat(dir.as_fd(), name)? {
        Some(stat) if root::is_dir(&stat) => {
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
            let hidden = rustix::fs::openat(dir, name, flags, Mode::empty())
                .map_err(|error| Error::io("open folder", error))?;
            root::mark_opaque(hidden.as_fd())
        }
        Some(_) => Ok(()),
        None => rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)
            .map_err(|error| Error::io("make whiteout", error)),
    }
}

/// The parts of a path, which begins at the layer's root also when it is absolute (archivers
/// differ); `..` has no place in a layer.
fn split(path: &[u8]) -> Result<Vec<&[u8]>, Error> {
    let parts: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&&b".."[..]) {
        return bad("path with \"..\", only paths below the layer's root are allowed");
    }
    match parts.iter().find(|part| part.len() > NAME_LEN_MAX) {
        Some(part) => {
            bad(format!("part of {} bytes, file systems allow {NAME_LEN_MAX}", part.len()))
        }
        None => Ok(parts),
    }
}

#[cfg(test)]
mod tests;
