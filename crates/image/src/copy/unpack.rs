//! From an archive to a tree of files.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, chownat, fchmod, fchown,
    fstat, futimens, linkat, mkdirat, openat, readlinkat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::folder::{Base, Links, kind, look, open_in};
use super::pack::too_large;
use super::{Counter, Error, Found, Tally, Target, Written, target};
use crate::tarball::{Kind, Member, Reader, printable};

/// Read and written at once.
const PIECE: usize = 64 * 1024;
/// Folders whose mode keeps even their owner out are closed last of all; each holds a descriptor.
const CLOSED_MAX: usize = 256;
/// Links behind each other, as the kernel has it.
const LINKS_MAX: usize = 40;

/// Where an archive goes, and how.
#[derive(Debug, Clone)]
pub struct Unpack<'a> {
    /// As it was written; within the root.
    pub path: &'a [u8],
    /// The archive goes into the folder `path` as it is. Otherwise it is of one file or folder, and
    /// where that goes depends on what is there.
    pub plain: bool,
    /// Of what is within a folder.
    pub contents: bool,
    /// Owners, and the bits that lend them to others, are those of the archive.
    pub archive: bool,
    pub links: Links,
    pub bytes_max: u64,
    pub counter: Counter,
}

/// Reads an archive to its end.
///
/// # Errors
/// As they come, with what was copied until then left in place.
pub fn unpack(root: BorrowedFd<'_>, asked: &Unpack<'_>, from: impl Read) -> Result<Tally, Error> {
    let mut reader = Reader::new(from);
    let Some(first) = reader.next()? else {
        return Err(Error::Bad("the archive is empty".to_owned()));
    };
    let place = Place::find(root, asked, &first)?;
    let mut unpacker = Unpacker { place, asked, tally: Tally::default(), closed: Vec::new() };
    let mut member = Some(first);
    while let Some(entry) = member {
        unpacker.tally.one_more()?;
        unpacker.entry(&entry, &mut reader)?;
        member = reader.next()?;
    }
    for (folder, mode) in unpacker.closed.drain(..) {
        fchmod(&folder, mode).map_err(|error| Error::io("set a folder's mode".into(), error))?;
    }
    Ok(unpacker.tally)
}

/// The folder that everything goes into, and what names become there.
struct Place<'a> {
    base: Base<'a>,
    /// The first part of every name, and what it is replaced by (nothing: the folder itself).
    renamed: Option<(Vec<u8>, Option<Vec<u8>>)>,
}

impl<'a> Place<'a> {
    fn find(root: BorrowedFd<'a>, asked: &Unpack<'_>, first: &Member) -> Result<Self, Error> {
        let written = Written::parse(asked.path);
        if asked.plain {
            let base = Base::open(root, written.path, asked.links)?;
            return Ok(Self { base, renamed: None });
        }
        let place = followed(root, written.path)?;
        let written = Written { slash: written.slash, ..Written::parse(&place) };
        let parts = split(&first.path)?;
        let own = parts.first().copied().unwrap_or_default().to_vec();
        let found = match open_in(root, written.path, OFlags::PATH) {
            Ok(fd) => match fstat(&fd).map(|stat| kind(&stat)) {
                Ok(FileType::Directory) => Found::Folder,
                _ => Found::File,
            },
            Err(Errno::NOENT) => Found::Nothing,
            Err(error) => return Err(Error::of_path("open", asked.path, error)),
        };
        let is_folder = first.kind == Kind::Dir;
        let goes = target(is_folder, asked.contents, found, written.slash);
        let goes =
            goes.map_err(|why| Error::Conflict(format!("{}: {why}", printable(asked.path))))?;
        let (base, name) = match (goes, found) {
            // Into a folder that is there.
            (Target::Below, _) => (written.path, Some(own.clone()).filter(|own| !own.is_empty())),
            (Target::Itself, Found::Folder) => (written.path, None),
            (Target::Itself, Found::Nothing | Found::File) => {
                let name = written.name().ok_or_else(|| Error::NotFound(printable(asked.path)))?;
                (written.parent(), Some(name.to_vec()))
            }
        };
        let base = Base::open(root, base, asked.links)?;
        Ok(Self { base, renamed: Some((own, name)) })
    }

    /// Where a name of the archive goes, in parts; none: the folder itself.
    fn parts<'n>(&'n self, name: &'n [u8]) -> Result<Vec<&'n [u8]>, Error> {
        let mut parts = split(name)?;
        let Some((own, new)) = &self.renamed else { return Ok(parts) };
        if !own.is_empty() {
            if parts.first() != Some(&own.as_slice()) {
                let (name, own) = (printable(name), printable(own));
                return Err(Error::Bad(format!("archive: {name} is not below {own}")));
            }
            parts.remove(0);
        }
        if let Some(new) = new {
            parts.insert(0, new);
        }
        Ok(parts)
    }
}

/// What a place leads to if it is a link: the place to copy to may be one, as for a shell.
fn followed(root: BorrowedFd<'_>, path: &[u8]) -> Result<Vec<u8>, Error> {
    let mut path = path.to_vec();
    for _ in 0..LINKS_MAX {
        let wrong = |error| Error::of_path("follow", &path, error);
        let found = match open_in(root, &path, OFlags::PATH | OFlags::NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(path),
            other => other.map_err(wrong)?,
        };
        if kind(&fstat(&found).map_err(wrong)?) != FileType::Symlink {
            return Ok(path);
        }
        let leads = readlinkat(&found, "", Vec::new()).map_err(wrong)?.into_bytes();
        path = match leads.first() {
            Some(b'/') => leads,
            _ => [Written::parse(&path).parent(), b"/", &leads].concat(),
        };
    }
    Err(Error::of_path("follow", &path, Errno::LOOP))
}

/// The parts of a name; refuses those that lead up.
fn split(name: &[u8]) -> Result<Vec<&[u8]>, Error> {
    let parts = name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    let parts: Vec<&[u8]> = parts.collect();
    match parts.contains(&&b".."[..]) {
        true => Err(Error::Bad(format!("archive: {} leads out of the folder", printable(name)))),
        false => Ok(parts),
    }
}

struct Unpacker<'a> {
    place: Place<'a>,
    asked: &'a Unpack<'a>,
    tally: Tally,
    closed: Vec<(OwnedFd, Mode)>,
}

impl Unpacker<'_> {
    fn entry<R: Read>(&mut self, member: &Member, reader: &mut Reader<R>) -> Result<(), Error> {
        let parts: Vec<Vec<u8>> =
            self.place.parts(&member.path)?.into_iter().map(<[u8]>::to_vec).collect();
        let Some((name, above)) = parts.split_last() else {
            // The folder itself, which is there.
            self.tally.folders += 1;
            return Ok(());
        };
        if member.sparse.is_some() {
            let text = format!("archive: {}: has holes; pack it without --sparse", member.name());
            return Err(Error::Bad(text));
        }
        let above: Vec<&[u8]> = above.iter().map(Vec::as_slice).collect();
        match member.kind {
            Kind::Dir => self.folder(member, &above, name),
            Kind::File => self.file(member, &above, name, reader),
            Kind::Symlink => self.link(member, &above, name),
            Kind::HardLink => self.hard_link(member, &above, name),
            Kind::Fifo | Kind::Device => {
                self.tally.skipped += 1;
                Ok(())
            }
        }
    }

    /// Folders that are there stay as they are.
    fn folder(&mut self, member: &Member, above: &[&[u8]], name: &[u8]) -> Result<(), Error> {
        let wrong = |error| Error::of_path("make folder", &member.path, error);
        self.tally.folders += 1;
        let links = self.asked.links;
        let parent = self.place.base.folder(above)?;
        match mkdirat(parent, name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let found = look(parent, name).map_err(wrong)?.map(|stat| kind(&stat));
                return match found {
                    Some(FileType::Directory) => Ok(()),
                    // Resolved within the root when something is put into it.
                    Some(FileType::Symlink) if links == Links::InRoot => Ok(()),
                    _ => Err(Error::Conflict(format!(
                        "{}: a folder cannot take the place of a file",
                        member.name()
                    ))),
                };
            }
            Err(error) => return Err(wrong(error)),
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        let made = openat(parent, name, flags, Mode::empty()).map_err(wrong)?;
        self.owned(&made, member).map_err(wrong)?;
        let mode = self.mode(member);
        if mode.contains(Mode::RWXU) {
            return fchmod(&made, mode).map_err(wrong);
        }
        self.closed.push((made, mode));
        if self.closed.len() > CLOSED_MAX {
            // Most archives are done with what they began with.
            let (folder, mode) = self.closed.remove(0);
            fchmod(&folder, mode).map_err(wrong)?;
        }
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        member: &Member,
        above: &[&[u8]],
        name: &[u8],
        reader: &mut Reader<R>,
    ) -> Result<(), Error> {
        let wrong = |error| Error::of_path("write", &member.path, error);
        self.tally.files += 1;
        self.tally.bytes = self.tally.bytes.saturating_add(member.size);
        if self.tally.bytes > self.asked.bytes_max {
            return Err(too_large(self.asked.bytes_max));
        }
        let file = new_file(self.place.base.folder(above)?, name, member)?;
        let mut file = File::from(file);
        let mut piece = vec![0; PIECE];
        let mut left = member.size;
        while left > 0 {
            let room = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE);
            let count = reader.read(&mut piece[..room]).map_err(crate::tarball::Error::Read)?;
            if count == 0 {
                return Err(Error::Bad("the archive ends within a file".to_owned()));
            }
            let written = file.write_all(&piece[..count]);
            written.map_err(|source| Error::Io {
                action: format!("write {}", member.name()),
                source,
            })?;
            self.asked.counter.add(count);
            left -= count as u64;
        }
        self.owned(file.as_fd(), member).map_err(wrong)?;
        fchmod(&file, self.mode(member)).map_err(wrong)?;
        let at = Timespec { tv_sec: member.mtime.0, tv_nsec: member.mtime.1.into() };
        futimens(&file, &Timestamps { last_access: at, last_modification: at }).map_err(wrong)
    }

    fn link(&mut self, member: &Member, above: &[&[u8]], name: &[u8]) -> Result<(), Error> {
        let wrong = |error| Error::of_path("make link", &member.path, error);
        self.tally.links += 1;
        let archive = self.asked.archive;
        let parent = self.place.base.folder(above)?;
        clear(parent, name, member)?;
        symlinkat(member.link.as_slice(), parent, name).map_err(wrong)?;
        if archive {
            let (user, group) = owner(member);
            chownat(parent, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(wrong)?;
        }
        Ok(())
    }

    fn hard_link(&mut self, member: &Member, above: &[&[u8]], name: &[u8]) -> Result<(), Error> {
        let wrong = |error| Error::of_path("link", &member.path, error);
        self.tally.links += 1;
        let leads: Vec<Vec<u8>> =
            self.place.parts(&member.link)?.into_iter().map(<[u8]>::to_vec).collect();
        let Some((other, there)) = leads.split_last() else {
            return Err(Error::Bad(format!("archive: {}: links a folder", member.name())));
        };
        let there: Vec<&[u8]> = there.iter().map(Vec::as_slice).collect();
        let there = self.place.base.folder(&there)?.try_clone_to_owned();
        let there =
            there.map_err(|source| Error::Io { action: "hold a folder".to_owned(), source })?;
        let parent = self.place.base.folder(above)?;
        clear(parent, name, member)?;
        linkat(&there, other.as_slice(), parent, name, AtFlags::empty()).map_err(wrong)
    }

    fn owned(&self, fd: impl AsFd, member: &Member) -> Result<(), Errno> {
        if !self.asked.archive {
            return Ok(());
        }
        let (user, group) = owner(member);
        fchown(fd, Some(user), Some(group))
    }

    /// Bits that lend an owner's rights go with the owner alone.
    fn mode(&self, member: &Member) -> Mode {
        let allowed = match (self.asked.archive, self.asked.links) {
            (true, _) | (false, Links::InRoot) => 0o7777,
            (false, Links::Refused) => 0o1777,
        };
        Mode::from_raw_mode(member.mode & allowed)
    }
}

fn owner(member: &Member) -> (Uid, Gid) {
    // Numbers that no kernel has are nobody's.
    let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX).unwrap_or(65_534);
    (Uid::from_raw(id(member.uid)), Gid::from_raw(id(member.gid)))
}

/// Takes away what is there under a name, unless it is a folder; false when it is mounted there.
fn clear(folder: BorrowedFd<'_>, name: &[u8], member: &Member) -> Result<bool, Error> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::BUSY) => Ok(false),
        Err(Errno::ISDIR | Errno::PERM)
            if look(folder, name)
                .ok()
                .flatten()
                .is_some_and(|stat| kind(&stat) == FileType::Directory) =>
        {
            let name = member.name();
            Err(Error::Conflict(format!("{name}: a file cannot take the place of a folder")))
        }
        Err(error) => Err(Error::of_path("replace", &member.path, error)),
    }
}

/// A file of ours alone in place of whatever was there. What is mounted there, such as /etc/hosts
/// of a container, is written over.
fn new_file(folder: BorrowedFd<'_>, name: &[u8], member: &Member) -> Result<OwnedFd, Error> {
    let wrong = |error| Error::of_path("write", &member.path, error);
    let always = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if clear(folder, name, member)? {
        let flags = always | OFlags::CREATE | OFlags::EXCL;
        return openat(folder, name, flags, Mode::RUSR | Mode::WUSR).map_err(wrong);
    }
    // Looked at before it is opened: opening a device does something.
    let found = openat(folder, name, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty());
    let found = found.map_err(wrong)?;
    if kind(&fstat(&found).map_err(wrong)?) != FileType::RegularFile {
        let name = member.name();
        return Err(Error::Conflict(format!("{name}: something is mounted there, no file")));
    }
    openat(folder, name, always | OFlags::TRUNC, Mode::empty()).map_err(wrong)
}
