//! Writing so that a crash at any instant leaves the old or the new, whole.
//!
//! Files: written aside, flushed, renamed, folder flushed. Layer folders: filled
//! aside, their file system flushed once, renamed, parent flushed. What lies
//! aside is rubbish after a restart.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags};
use rustix::io::Errno;

/// Only root reads images: they may hold secrets.
pub(crate) const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// The folder for unfinished things.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: PathBuf,
    names: Arc<Mutex<Names>>,
}

/// One process owns the store, so counting makes names that nobody else has.
#[derive(Debug, Default)]
struct Names {
    next: u64,
    /// Somebody works with these.
    live: BTreeSet<u64>,
}

/// A name in the folder of unfinished things, nobody else's for as long as this lives.
#[derive(Debug)]
pub(crate) struct Aside {
    path: PathBuf,
    number: u64,
    names: Arc<Mutex<Names>>,
}

impl Aside {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Beside what it is about: a layer's recipe.
    fn recipe(&self) -> PathBuf {
        self.path.with_extension("recipe")
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.live.remove(&self.number);
    }
}

impl Scratch {
    /// Opens the folder and empties it.
    pub(crate) fn open(dir: PathBuf) -> io::Result<Self> {
        make_dir(&dir)?;
        // All names first: removing deep folders makes, and unmakes, names of its own.
        let left: Vec<PathBuf> =
            fs::read_dir(&dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
        for path in left {
            remove(&path)?;
        }
        Ok(Self { dir, names: Arc::default() })
    }

    /// A name nobody else has.
    pub(crate) fn name(&self) -> Aside {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let number = names.next;
        names.next += 1;
        names.live.insert(number);
        Aside { path: self.dir.join(number.to_string()), number, names: Arc::clone(&self.names) }
    }

    /// What lies here and nobody works with: what could not be removed.
    pub(crate) fn leftovers(&self) -> io::Result<Vec<PathBuf>> {
        // Listed first: what comes after that is not looked at.
        let listed: Vec<PathBuf> =
            fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let is_live = |path: &PathBuf| {
            let number = path.file_name().and_then(|name| name.to_str()?.split('.').next());
            number.and_then(|text| text.parse().ok()).is_some_and(|n: u64| names.live.contains(&n))
        };
        Ok(listed.into_iter().filter(|path| !is_live(path)).collect())
    }

    /// An empty folder that vanishes unless it is [kept](Draft::keep).
    pub(crate) fn draft(&self) -> io::Result<Draft> {
        let aside = self.name();
        fs::DirBuilder::new().mode(DIR_MODE).create(aside.path())?;
        Ok(Draft { aside, kept: false, flushed: false, has_recipe: false })
    }

    /// A file without a name: it vanishes when closed.
    pub(crate) fn file(&self) -> io::Result<File> {
        let aside = self.name();
        let file = create_file(aside.path(), true)?;
        fs::remove_file(aside.path())?;
        Ok(file)
    }

    /// Replaces `target` by `bytes`.
    pub(crate) fn write(&self, target: &Path, bytes: &[u8]) -> io::Result<()> {
        write_by(self.name().path(), target, bytes)
    }
}

/// Writes `bytes` to `aside`, then makes it `target`.
pub(crate) fn write_by(aside: &Path, target: &Path, bytes: &[u8]) -> io::Result<()> {
    let write = || {
        let mut file = create_file(aside, false)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(aside, target)?;
        sync_parent(target)
    };
    write().inspect_err(|_| {
        // What cannot be removed now is swept at the next start.
        let _ = fs::remove_file(aside);
    })
}

fn create_file(path: &Path, read: bool) -> io::Result<File> {
    fs::OpenOptions::new().write(true).read(read).create_new(true).mode(FILE_MODE).open(path)
}

pub(crate) fn make_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(DIR_MODE).recursive(true).create(path)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Removes a file or a whole folder; deep parts are moved beside it on the way.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    Trash::beside(path).remove_at(CWD, path.as_os_str().as_bytes())
}

/// Folders entered at once while removing: two descriptors each.
const DEPTH_MAX: usize = 32;

/// Removal with bounded descriptors and stack. A layer may nest folders without end
/// (through its links also deeper than any path reaches); std keeps a descriptor
/// for each level. What lies too deep is moved to a place beside and removed there.
#[derive(Debug)]
pub(crate) struct Trash {
    dir: PathBuf,
    prefix: OsString,
    next: u64,
    pending: Vec<PathBuf>,
}

impl Trash {
    /// Uses names that start with that of `path`, and a dot, in the same folder.
    pub(crate) fn beside(path: &Path) -> Self {
        let dir = path.parent().unwrap_or(path).to_owned();
        let mut prefix = path.file_name().unwrap_or_default().to_owned();
        prefix.push(".");
        Self { dir, prefix, next: 0, pending: Vec::new() }
    }

    /// Removes what `name` is in `dir`. Never follows a link.
    pub(crate) fn remove_at(&mut self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        self.remove_one(dir, name)?;
        while let Some(path) = self.pending.pop() {
            self.remove_one(CWD, path.as_os_str().as_bytes())?;
        }
        Ok(())
    }

    fn remove_one(&mut self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) => return Ok(()),
            Err(Errno::ISDIR) => {}
            Err(error) => return Err(error.into()),
        }
        self.empty(dir, name, 0)?;
        Ok(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?)
    }

    fn empty(&mut self, dir: BorrowedFd<'_>, name: &[u8], depth: usize) -> io::Result<()> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, name, flags, Mode::empty())?;
        for entry in Dir::read_from(&fd)? {
            let entry = entry?;
            let inside = entry.file_name().to_bytes();
            if matches!(inside, b"." | b"..") {
                continue;
            }
            match rustix::fs::unlinkat(&fd, inside, AtFlags::empty()) {
                Ok(()) => continue,
                Err(Errno::ISDIR) => {}
                Err(error) => return Err(error.into()),
            }
            if depth == DEPTH_MAX {
                self.move_aside(fd.as_fd(), inside)?;
                continue;
            }
            self.empty(fd.as_fd(), inside, depth + 1)?;
            rustix::fs::unlinkat(&fd, inside, AtFlags::REMOVEDIR)?;
        }
        Ok(())
    }

    fn move_aside(&mut self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        loop {
            let mut free = self.prefix.clone();
            free.push(self.next.to_string());
            self.next += 1;
            let aside = self.dir.join(free);
            match rustix::fs::renameat(dir, name, CWD, &aside) {
                Ok(()) => {
                    self.pending.push(aside);
                    return Ok(());
                }
                // Left by a removal that was interrupted.
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A folder being filled. Dropping it removes it; that takes time for a full one.
#[derive(Debug)]
pub(crate) struct Draft {
    aside: Aside,
    kept: bool,
    flushed: bool,
    has_recipe: bool,
}

impl Draft {
    pub(crate) fn path(&self) -> &Path {
        self.aside.path()
    }

    /// A file beside it for its recipe; dropped with it unless [said](Self::has_recipe) whole.
    pub(crate) fn recipe(&self) -> io::Result<File> {
        create_file(&self.aside.recipe(), false)
    }

    /// What was written to the recipe is whole.
    pub(crate) fn has_recipe(&mut self) {
        self.has_recipe = true;
    }

    /// Flushes what was written so far: one call for the whole file system, since one
    /// for each file costs a journal commit each.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        rustix::fs::syncfs(File::open(self.path())?)?;
        self.flushed = true;
        Ok(())
    }

    /// Something was written after the flush.
    pub(crate) fn touch(&mut self) {
        self.flushed = false;
    }

    /// Flushes the folder and gives it its name, and its recipe that one. If the name is
    /// taken, by the same content since names are digests, the draft goes.
    pub(crate) fn keep(mut self, target: &Path, recipe: &Path) -> io::Result<()> {
        if !self.flushed {
            self.flush()?;
        }
        // Before the folder: what is there has its recipe. Flushed with the folder's name,
        // in the same journal; one that a crash loses is no harm.
        if self.has_recipe {
            fs::rename(self.aside.recipe(), recipe)?;
        }
        match rustix::fs::rename(self.path(), target) {
            Ok(()) => {
                self.kept = true;
                sync_parent(target)
            }
            Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Renamed, or of no use.
        let _ = fs::remove_file(self.aside.recipe());
        if !self.kept
            && let Err(error) = remove(self.path())
        {
            tracing::warn!(path = %self.path().display(), %error, "unfinished layer stays until restart");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn unfinished_things_vanish() {
        let dir = tempfile::tempdir().unwrap();
        let aside = dir.path().join("tmp");
        let scratch = Scratch::open(aside.clone()).unwrap();
        let draft = scratch.draft().unwrap();
        fs::write(draft.path().join("file"), "x").unwrap();
        drop(draft);
        drop(scratch.file().unwrap());
        assert_eq!(fs::read_dir(&aside).unwrap().count(), 0);
        // As after a crash.
        fs::create_dir_all(aside.join("7/deep")).unwrap();
        fs::write(aside.join("8"), "x").unwrap();
        Scratch::open(aside.clone()).unwrap();
        assert_eq!(fs::read_dir(&aside).unwrap().count(), 0);
    }

    #[test]
    fn folders_of_any_depth_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::create_dir(&victim).unwrap();
        fs::write(dir.path().join("safe"), "x").unwrap();
        // Of a removal that was interrupted.
        fs::create_dir_all(dir.path().join("victim.0/left")).unwrap();
        let mut fd = rustix::fs::open(&victim, OFlags::DIRECTORY, Mode::empty()).unwrap();
        // Three times the descriptors that a process usually has.
        for _ in 0..3000 {
            rustix::fs::symlinkat("../../safe", &fd, "link").unwrap();
            for name in ["a", "b"] {
                rustix::fs::mkdirat(&fd, name, Mode::RWXU).unwrap();
            }
            fd = rustix::fs::openat(&fd, "a", OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        drop(fd);
        remove(&victim).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["safe", "victim.0"]);
    }

    #[test]
    fn finished_things_stay() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::open(dir.path().join("tmp")).unwrap();
        let target = dir.path().join("layer");
        for content in ["first", "second"] {
            let draft = scratch.draft().unwrap();
            fs::write(draft.path().join("file"), content).unwrap();
            draft.keep(&target, &dir.path().join("recipe")).unwrap();
        }
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "first");
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
        scratch.write(&dir.path().join("file"), b"a").unwrap();
        scratch.write(&dir.path().join("file"), b"b").unwrap();
        assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"b");
        let mode = fs::metadata(dir.path().join("file")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
