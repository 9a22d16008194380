//! Writing so that a crash at any instant leaves the old or the new, whole.
//!
//! Files: written aside, flushed, renamed, folder flushed. Layer folders: filled
//! aside, their file system flushed once, renamed, parent flushed. What lies
//! aside is rubbish after a restart.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

/// Only root reads images: they may hold secrets.
const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// The folder for unfinished things.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: PathBuf,
    next: AtomicU64,
}

impl Scratch {
    /// Opens the folder and empties it.
    pub(crate) fn open(dir: PathBuf) -> io::Result<Self> {
        make_dir(&dir)?;
        for entry in fs::read_dir(&dir)? {
            remove(&entry?.path())?;
        }
        Ok(Self { dir, next: AtomicU64::new(0) })
    }

    /// A name nobody else has. One process owns the store, so counting suffices.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// An empty folder that vanishes unless it is [kept](Draft::keep).
    pub(crate) fn draft(&self) -> io::Result<Draft> {
        let path = self.path();
        fs::DirBuilder::new().mode(DIR_MODE).create(&path)?;
        Ok(Draft { path, kept: false })
    }

    /// A file without a name: it vanishes when closed.
    pub(crate) fn file(&self) -> io::Result<File> {
        let path = self.path();
        let file = create_file(&path, true)?;
        fs::remove_file(&path)?;
        Ok(file)
    }

    /// Replaces `target` by `bytes`.
    pub(crate) fn write(&self, target: &Path, bytes: &[u8]) -> io::Result<()> {
        write_by(&self.path(), target, bytes)
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

/// Removes a file or a whole folder.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => fs::remove_dir_all(path),
        result => result,
    }
}

/// A folder being filled. Dropping it removes it; that takes time for a full one.
#[derive(Debug)]
pub(crate) struct Draft {
    path: PathBuf,
    kept: bool,
}

impl Draft {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Flushes the folder and gives it its name. If that name is taken, by the same
    /// content since names are digests, the draft goes.
    pub(crate) fn keep(mut self, target: &Path) -> io::Result<()> {
        rustix::fs::syncfs(File::open(&self.path)?)?;
        match rustix::fs::rename(&self.path, target) {
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
        if !self.kept
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "unfinished layer stays until restart");
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
    fn finished_things_stay() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::open(dir.path().join("tmp")).unwrap();
        let target = dir.path().join("layer");
        for content in ["first", "second"] {
            let draft = scratch.draft().unwrap();
            fs::write(draft.path().join("file"), content).unwrap();
            draft.keep(&target).unwrap();
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
