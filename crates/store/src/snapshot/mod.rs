//! Snapshot files: the whole state, sealed, compressed, streamed.
//!
//! [`text`] makes chunks of a state, [`file`] seals them. Written to a temporary
//! name, synced, renamed. A snapshot of another manager comes as chunks that are
//! not sealed, and gets the seal of this node's own keys.

mod file;
pub(crate) mod text;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use warren_base::rng::Rng;
use warren_state::{ImportError, State};
use warren_trust::KeyRingError;

use crate::codec::{CodecError, WirePosition};
use crate::disk::Disk;
use crate::keys::Keys;
use file::VERSION;
pub(crate) use file::{SealedReader, SealedWriter};
use text::{ChunkSink, ChunkSource};

/// The newest, and the one before with the log since, in case the newest cannot be read.
const KEPT: usize = 2;

const SUFFIX: &str = ".snap";

/// Why a snapshot cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("{action} snapshot {name}")]
    Disk { action: &'static str, name: String, source: io::Error },
    #[error("snapshot {name} is cut off or not a snapshot")]
    Shape { name: String },
    #[error("snapshot {name} is of version {found}, this binary knows {VERSION}")]
    Version { name: String, found: u16 },
    #[error("snapshot {name}")]
    Key { name: String, source: KeyRingError },
    #[error("snapshot {name} is damaged in chunk {chunk}")]
    Damaged { name: String, chunk: u64 },
    #[error("snapshot {name}")]
    Codec { name: String, source: CodecError },
    #[error("snapshot {name}")]
    Import { name: String, source: ImportError },
    #[error(
        "snapshot {name} holds a state with checksum {found:016x}, written was {expected:016x}"
    )]
    Checksum { name: String, expected: u64, found: u64 },
}

/// A snapshot that was read.
pub struct Loaded {
    pub(crate) state: State,
    pub(crate) position: WirePosition,
    pub(crate) file: SnapshotFile,
}

impl Loaded {
    pub fn state(&self) -> &State {
        &self.state
    }
}

/// A snapshot on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotFile {
    pub(crate) name: String,
    pub(crate) bytes: u64,
}

impl SnapshotFile {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The snapshots of a store.
#[derive(Clone)]
pub struct Snapshots {
    disk: Arc<dyn Disk>,
    keys: Keys,
    rng: Arc<dyn Rng>,
    /// Read and not in use yet.
    ready: Arc<Mutex<Option<Loaded>>>,
    newest_bytes: Arc<AtomicU64>,
}

impl Snapshots {
    pub fn new(disk: Arc<dyn Disk>, keys: impl Into<Keys>, rng: Arc<dyn Rng>) -> Self {
        Self { disk, keys: keys.into(), rng, ready: Arc::default(), newest_bytes: Arc::default() }
    }

    /// Names, oldest first.
    fn names(&self) -> Result<Vec<String>, SnapshotError> {
        let fail = |source| SnapshotError::Disk { action: "list", name: "*".to_owned(), source };
        let mut names = self.disk.list().map_err(fail)?;
        names.retain(|name| name.ends_with(SUFFIX));
        Ok(names)
    }

    /// Writes a state that stands in no log.
    ///
    /// # Errors
    /// [`SnapshotError::Disk`].
    pub fn write_state(&self, state: &State) -> Result<SnapshotFile, SnapshotError> {
        self.write(state, &WirePosition::default())
    }

    /// Writes a snapshot and removes those that are not needed any more.
    ///
    /// # Errors
    /// [`SnapshotError::Disk`]; the older snapshots are untouched then.
    pub(crate) fn write(
        &self,
        state: &State,
        position: &WirePosition,
    ) -> Result<SnapshotFile, SnapshotError> {
        let name = name_of(position);
        let mut draft = self.begin(&name)?;
        match text::write(draft.writer.as_mut(), state, position) {
            Ok(()) => draft.finish(),
            Err(source) => Err(SnapshotError::Disk { action: "write", name, source }),
        }
    }

    /// Begins a file that is not there until [`Draft::finish`]; dropped, it leaves nothing.
    fn begin(&self, name: &str) -> Result<Draft, SnapshotError> {
        let tmp = format!("{name}.tmp");
        let started = self.disk.create(&tmp).and_then(|file| {
            let ring = self.keys.ring();
            SealedWriter::start(file, &ring, self.rng.as_ref())
        });
        let writer = match started {
            Ok(writer) => writer,
            Err(source) => {
                // Gives the room back; the first error is the one to tell.
                let _ = self.disk.remove(&tmp);
                let (action, name) = ("write", name.to_owned());
                return Err(SnapshotError::Disk { action, name, source });
            }
        };
        Ok(Draft {
            snapshots: self.clone(),
            name: name.to_owned(),
            tmp,
            writer: Box::new(writer),
            finished: false,
        })
    }

    /// Begins a snapshot that comes from elsewhere, chunk by chunk.
    pub(crate) fn receive(&self, position: &WirePosition) -> Result<Draft, SnapshotError> {
        self.begin(&name_of(position))
    }

    /// The chunks of a snapshot, not sealed.
    pub(crate) fn chunks(&self, name: &str) -> Result<SealedReader, SnapshotError> {
        SealedReader::start(self.disk.as_ref(), &self.keys.ring(), name)
    }

    /// The newest snapshot that can be read, and what was wrong with newer ones.
    ///
    /// # Errors
    /// The newest one's error when none can be read.
    pub(crate) fn load(&self) -> Result<Option<(Loaded, Vec<SnapshotError>)>, SnapshotError> {
        let mut wrong = Vec::new();
        for name in self.names()?.iter().rev() {
            match self.read(name) {
                Ok(loaded) => return Ok(Some((loaded, wrong))),
                Err(error) => wrong.push(error),
            }
        }
        match wrong.into_iter().next() {
            Some(newest) => Err(newest),
            None => Ok(None),
        }
    }

    /// Where in the log the oldest kept snapshot stands, if as many are kept as should be.
    pub(crate) fn purgeable(&self) -> Result<Option<u64>, SnapshotError> {
        let names = self.names()?;
        if names.len() < KEPT {
            return Ok(None);
        }
        Ok(names.first().and_then(|name| name.strip_suffix(SUFFIX)?.parse().ok()))
    }

    /// Removes all but `name`: those before have another membership, or another key.
    pub(crate) fn keep_only(&self, name: &str) -> Result<(), SnapshotError> {
        for old in self.names()?.iter().filter(|old| *old != name) {
            self.disk.remove(old).map_err(|source| SnapshotError::Disk {
                action: "remove",
                name: old.clone(),
                source,
            })?;
        }
        Ok(())
    }

    /// Seals what is sealed with another key than the active one anew.
    pub(crate) fn reseal(&self) -> Result<(), SnapshotError> {
        let active = self.keys.ring().active().id();
        for name in self.names()? {
            if file::key_of(self.disk.as_ref(), &name)? == active {
                continue;
            }
            let mut reader = self.chunks(&name)?;
            let mut draft = self.begin(&name)?;
            while let Some((packed, last)) = reader.chunk()? {
                draft.chunk(&packed, last)?;
            }
            draft.finish()?;
        }
        Ok(())
    }

    /// The data keys that snapshots are sealed with.
    pub(crate) fn data_keys(&self) -> Result<Vec<u32>, SnapshotError> {
        self.names()?.iter().map(|name| file::key_of(self.disk.as_ref(), name)).collect()
    }

    /// Keeps what was read for whoever is about to use it.
    pub(crate) fn put_ready(&self, loaded: Loaded) {
        *self.ready.lock().unwrap_or_else(PoisonError::into_inner) = Some(loaded);
    }

    pub(crate) fn take_ready(&self, name: &str) -> Option<Loaded> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.take().filter(|loaded| loaded.file.name == name)
    }

    /// Size of the snapshot that was written or read last.
    pub(crate) fn newest_bytes(&self) -> u64 {
        self.newest_bytes.load(Ordering::Relaxed)
    }

    /// Sets an unreadable file aside, so that it is not counted among those kept.
    pub(crate) fn set_aside(&self, error: &SnapshotError) {
        let name = error.name();
        if let Err(error) = self.disk.rename(name, &format!("{name}.damaged")) {
            tracing::warn!(name, %error, "snapshot: set the damaged one aside");
        }
    }

    /// Reads one snapshot and checks it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(&self, name: &str) -> Result<Loaded, SnapshotError> {
        let mut reader = self.chunks(name)?;
        let (state, position) = text::read(&mut reader)?;
        let file = SnapshotFile { name: name.to_owned(), bytes: reader.offset };
        self.newest_bytes.store(file.bytes, Ordering::Relaxed);
        Ok(Loaded { state, position, file })
    }
}

/// A snapshot being written. Dropped before its end, it leaves nothing.
pub(crate) struct Draft {
    snapshots: Snapshots,
    name: String,
    tmp: String,
    writer: Box<SealedWriter>,
    finished: bool,
}

impl Draft {
    pub(crate) fn chunk(&mut self, packed: &[u8], last: bool) -> Result<(), SnapshotError> {
        self.writer.chunk(packed, last).map_err(|source| SnapshotError::Disk {
            action: "write",
            name: self.name.clone(),
            source,
        })
    }

    /// Durable, under its name, and older ones removed.
    pub(crate) fn finish(mut self) -> Result<SnapshotFile, SnapshotError> {
        let name = self.name.clone();
        let fail = |action| {
            let name = name.clone();
            move |source| SnapshotError::Disk { action, name, source }
        };
        let bytes = self.writer.finish().map_err(fail("write"))?;
        let disk = &self.snapshots.disk;
        disk.rename(&self.tmp, &name).map_err(fail("rename"))?;
        self.finished = true;
        disk.sync_names().map_err(fail("rename"))?;
        let names = self.snapshots.names()?;
        for old in &names[..names.len().saturating_sub(KEPT)] {
            disk.remove(old).map_err(fail("remove the one before"))?;
        }
        self.snapshots.newest_bytes.store(bytes, Ordering::Relaxed);
        Ok(SnapshotFile { name, bytes })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.finished {
            // If it stays, the next start removes it.
            let _ = self.snapshots.disk.remove(&self.tmp);
        }
    }
}

impl SnapshotError {
    fn name(&self) -> &str {
        match self {
            Self::Disk { name, .. }
            | Self::Shape { name }
            | Self::Version { name, .. }
            | Self::Key { name, .. }
            | Self::Damaged { name, .. }
            | Self::Codec { name, .. }
            | Self::Import { name, .. }
            | Self::Checksum { name, .. } => name,
        }
    }
}

fn name_of(position: &WirePosition) -> String {
    let index = position.last.map_or(0, |last| last.index);
    format!("{index:016}{SUFFIX}")
}
