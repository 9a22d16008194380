//! The disk as the store sees it: one flat folder of files.
//!
//! The seam for simulations: [`FsDisk`] is a folder of the file system,
//! [`crate::sim_disk::SimDisk`] is memory that loses power. Contract of both:
//! what was written is durable after [`DiskFile::sync`], names (creations,
//! renames, removals) are durable after [`Disk::sync_names`], in order.

use std::any::Any;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open file. Shared by a writer and many readers.
pub trait DiskFile: Send + Sync {
    /// Length in bytes.
    ///
    /// # Errors
    /// What the disk says.
    fn len(&self) -> io::Result<u64>;

    /// Whether it has no bytes.
    ///
    /// # Errors
    /// What the disk says.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buffer` from `offset`; returns fewer bytes only at the end of the file.
    ///
    /// # Errors
    /// What the disk says.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// What the disk says; an unknown part may be written then.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Cuts or extends (with zeros).
    ///
    /// # Errors
    /// What the disk says.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes content and length durable.
    ///
    /// # Errors
    /// What the disk says. What is durable then is unknown, and a second call does not tell.
    fn sync(&self) -> io::Result<()>;
}

/// Why a folder cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("{place} is in use by process {holder}")]
    Held { place: String, holder: String },
    #[error("lock {place}")]
    Io { place: String, source: io::Error },
}

/// Keeps others out until it is dropped.
pub type Lock = Box<dyn Any + Send + Sync>;

/// A flat folder.
pub trait Disk: Send + Sync + 'static {
    /// For messages: where this is.
    fn place(&self) -> String;

    /// Makes an empty file, replacing what has the name.
    ///
    /// # Errors
    /// What the disk says.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens what is there.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`], or what the disk says.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// All names, sorted.
    ///
    /// # Errors
    /// What the disk says.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Gives a file another name, replacing what has it.
    ///
    /// # Errors
    /// What the disk says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a name; what has the file open keeps it.
    ///
    /// # Errors
    /// What the disk says.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes names durable.
    ///
    /// # Errors
    /// What the disk says.
    fn sync_names(&self) -> io::Result<()>;

    /// Takes the folder for this process.
    ///
    /// # Errors
    /// [`LockError::Held`] with the holder's pid.
    fn lock(&self) -> Result<Lock, LockError>;
}

/// Reads a whole small file.
pub(crate) fn read_all(disk: &dyn Disk, name: &str, len_max: u64) -> io::Result<Vec<u8>> {
    let file = disk.open(name)?;
    let len = file.len()?;
    if len > len_max {
        return Err(io::Error::other(format!("{name} has {len} bytes, more than {len_max}")));
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    let read = file.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Replaces a small file: afterwards the old or the new content is there, whatever happens.
pub(crate) fn write_atomic(disk: &dyn Disk, name: &str, bytes: &[u8]) -> io::Result<()> {
    let tmp = format!("{name}.tmp");
    let file = disk.create(&tmp)?;
    file.write_at(bytes, 0)?;
    file.sync()?;
    disk.rename(&tmp, name)?;
    disk.sync_names()
}

/// A folder of the file system; files have mode 0600.
pub struct FsDisk {
    root: PathBuf,
}

impl FsDisk {
    const LOCK: &str = "LOCK";

    /// The folder `root`, made (mode 0700, parents too) when it is missing.
    ///
    /// # Errors
    /// What the file system says.
    pub fn new(root: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(root)?;
        Ok(Self { root: root.to_owned() })
    }
}

fn holder_of(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(32).read_to_string(&mut text));
    let pid = text.trim();
    if read.is_err() || pid.is_empty() { "unknown".to_owned() } else { pid.to_owned() }
}

impl Disk for FsDisk {
    fn place(&self) -> String {
        self.root.display().to_string()
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        Ok(Arc::new(options.open(self.root.join(name))?))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(self.root.join(name))?;
        Ok(Arc::new(file))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            // Not ours if it is not text: we never make such names.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.root.join(from), self.root.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.root.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        warren_base::file::sync_folder(&self.root)
    }

    fn lock(&self) -> Result<Lock, LockError> {
        let fail = |source| LockError::Io { place: self.place(), source };
        let mut options = OpenOptions::new();
        // Not truncated: until the lock is ours, the content is the holder's.
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(self.root.join(Self::LOCK)).map_err(fail)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LockError::Held { place: self.place(), holder: holder_of(&mut file) });
            }
            Err(TryLockError::Error(source)) => return Err(fail(source)),
        }
        file.set_len(0).map_err(fail)?;
        file.rewind().map_err(fail)?;
        writeln!(file, "{}", std::process::id()).map_err(fail)?;
        Ok(Box::new(file))
    }
}

impl DiskFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match FileExt::read_at(self, &mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_holds_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let disk = FsDisk::new(&dir.path().join("a/b")).unwrap();
        let lock = disk.lock().unwrap();
        // Locks belong to open files, so a second one in this process is refused as well.
        let error = disk.lock().err().unwrap().to_string();
        assert!(error.ends_with(&format!("is in use by process {}", std::process::id())));
        drop(lock);
        assert!(disk.lock().is_ok());
    }

    #[test]
    fn files_are_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let disk = FsDisk::new(dir.path()).unwrap();
        write_atomic(&disk, "x", b"one").unwrap();
        write_atomic(&disk, "x", b"three").unwrap();
        assert_eq!(read_all(&disk, "x", 10).unwrap(), b"three");
        assert!(read_all(&disk, "x", 4).is_err());
        assert_eq!(disk.list().unwrap(), ["x"]);
        let file = disk.open("x").unwrap();
        let mut buffer = [0; 9];
        assert_eq!(file.read_at(&mut buffer, 2).unwrap(), 3);
        assert_eq!(disk.open("y").err().unwrap().kind(), io::ErrorKind::NotFound);
    }
}
