//! From a tree of files to an archive.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Dir, FileType, Mode, OFlags, Stat, fstat, fstatfs, openat, readlinkat};
use rustix::io::Errno;

use super::folder::{kind, open_in};
use super::{Counter, DEPTH_MAX, Error, Tally, Written};
use crate::tarball::printable;

/// Files that the kernel makes up have no size, and no end that is worth copying: proc, sysfs,
/// cgroup, cgroup2, devpts, debugfs, tracefs, securityfs, mqueue, bpf (linux/magic.h).
const MADE_UP: [i64; 10] = [
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x1cd1,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0x1980_0202,
    0xcafe_4a11,
];

/// What to pack.
#[derive(Debug, Clone)]
pub struct Pack<'a> {
    /// As it was written; within the root.
    pub path: &'a [u8],
    /// Of a link, what it leads to.
    pub follow: bool,
    pub bytes_max: u64,
    pub counter: Counter,
}

/// Writes an archive of one file, or of a folder with all that is in it, under its own name. That of
/// what is within a folder (`/.`) begins with the folder `.`.
///
/// # Errors
/// [`Error::NotFound`] when there is nothing; otherwise as they come, with half an archive written.
pub fn pack(root: BorrowedFd<'_>, asked: &Pack<'_>, to: impl Write) -> Result<Tally, Error> {
    let written = Written::parse(asked.path);
    let wrong = |error| Error::of_path("open", asked.path, error);
    let mut flags = OFlags::PATH;
    if !asked.follow && !written.slash {
        flags |= OFlags::NOFOLLOW;
    }
    let source = open_in(root, written.path, flags).map_err(wrong)?;
    let stat = fstat(&source).map_err(wrong)?;
    let name = printable(asked.path);
    if written.slash && kind(&stat) != FileType::Directory {
        return Err(Error::Bad(format!("{name}: is no folder")));
    }
    if is_made_up(source.as_fd()) {
        return Err(Error::Bad(format!("{name}: is made up by the kernel, not a file on a disk")));
    }
    let own = match (written.contents, written.name()) {
        (false, Some(own)) => own,
        _ => b".",
    };
    let mut builder = tar::Builder::new(to);
    builder.sparse(false);
    let mut packer = Packer { builder, tally: Tally::default(), asked };
    packer.add(source, &stat, &mut own.to_vec(), 0)?;
    if packer.tally == (Tally { skipped: 1, ..Tally::default() }) {
        return Err(Error::Bad(format!("{name}: is a device, a socket or a pipe")));
    }
    let finished = packer.builder.into_inner().and_then(|mut to| to.flush());
    finished.map_err(|source| Error::Io { action: "end the archive".to_owned(), source })?;
    Ok(packer.tally)
}

fn is_made_up(fd: BorrowedFd<'_>) -> bool {
    fstatfs(fd).is_ok_and(|found| MADE_UP.contains(&found.f_type))
}

struct Packer<'a, W: Write> {
    builder: tar::Builder<W>,
    tally: Tally,
    asked: &'a Pack<'a>,
}

impl<W: Write> Packer<'_, W> {
    /// Adds what a descriptor of any kind stands for, as `path`.
    fn add(
        &mut self,
        source: OwnedFd,
        stat: &Stat,
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), Error> {
        self.tally.one_more()?;
        match kind(stat) {
            FileType::RegularFile => self.file(&source, path),
            FileType::Directory => self.folder(&source, stat, path, depth),
            FileType::Symlink => self.link(&source, stat, path),
            _ => {
                self.tally.skipped += 1;
                Ok(())
            }
        }
    }

    fn file(&mut self, source: &OwnedFd, path: &[u8]) -> Result<(), Error> {
        let wrong = |error| Error::of_path("read", path, error);
        // The same file, whatever has its name by now.
        let own = format!("/proc/self/fd/{}", source.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::open(own, flags, Mode::empty()).map_err(wrong)?;
        let stat = fstat(&file).map_err(wrong)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.tally.files += 1;
        self.tally.bytes = self.tally.bytes.saturating_add(size);
        if self.tally.bytes > self.asked.bytes_max {
            return Err(too_large(self.asked.bytes_max));
        }
        let mut header = header(&stat, tar::EntryType::Regular);
        header.set_size(size);
        let counter = self.asked.counter.clone();
        let exact = Exact { file: File::from(file), left: size, counter };
        let added = self.builder.append_data(&mut header, as_path(path), exact);
        added.map_err(|source| sending(path, source))
    }

    fn folder(
        &mut self,
        source: &OwnedFd,
        stat: &Stat,
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            let name = printable(path);
            let text = format!("{name}: more than {DEPTH_MAX} folders below each other");
            return Err(Error::Bad(text));
        }
        self.tally.folders += 1;
        let mut header = header(stat, tar::EntryType::Directory);
        header.set_size(0);
        let mut shown = path.clone();
        shown.push(b'/');
        let added = self.builder.append_data(&mut header, as_path(&shown), io::empty());
        added.map_err(|source| sending(path, source))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(source, ".", flags, Mode::empty()).and_then(Dir::new);
        let mut entries = opened.map_err(|error| Error::of_path("list", path, error))?;
        while let Some(entry) = entries.read() {
            let entry = entry.map_err(|error| Error::of_path("list", path, error))?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let len = path.len();
            path.push(b'/');
            path.extend_from_slice(name);
            self.child(source, stat, name, path, depth + 1)?;
            path.truncate(len);
        }
        Ok(())
    }

    fn child(
        &mut self,
        folder: &OwnedFd,
        of_folder: &Stat,
        name: &[u8],
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), Error> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let child = match openat(folder, name, flags, Mode::empty()) {
            // Removed meanwhile.
            Err(Errno::NOENT) => return Ok(()),
            other => other.map_err(|error| Error::of_path("open", path, error))?,
        };
        let stat = fstat(&child).map_err(|error| Error::of_path("look at", path, error))?;
        if stat.st_dev != of_folder.st_dev && is_made_up(child.as_fd()) {
            self.tally.skipped += 1;
            return Ok(());
        }
        self.add(child, &stat, path, depth)
    }

    fn link(&mut self, source: &OwnedFd, stat: &Stat, path: &[u8]) -> Result<(), Error> {
        let leads = readlinkat(source, "", Vec::new());
        let leads = leads.map_err(|error| Error::of_path("read link", path, error))?;
        self.tally.links += 1;
        let mut header = header(stat, tar::EntryType::Symlink);
        header.set_size(0);
        let leads = OsStr::from_bytes(leads.to_bytes());
        let added = self.builder.append_link(&mut header, as_path(path), leads);
        added.map_err(|source| sending(path, source))
    }
}

fn sending(path: &[u8], source: io::Error) -> Error {
    Error::Io { action: format!("copy {}", printable(path)), source }
}

pub(super) fn too_large(bytes_max: u64) -> Error {
    Error::Bad(format!("more than {bytes_max} bytes, which is the limit of one copy"))
}

fn as_path(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

fn header(stat: &Stat, kind: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header
}

/// As many bytes as were promised: a file may grow or shrink while it is read.
struct Exact {
    file: File,
    left: u64,
    counter: Counter,
}

impl Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if room == 0 {
            return Ok(0);
        }
        let mut count = self.file.read(&mut buffer[..room])?;
        if count == 0 {
            buffer[..room].fill(0);
            count = room;
        }
        self.left -= count as u64;
        self.counter.add(count);
        Ok(count)
    }
}
