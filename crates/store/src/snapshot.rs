//! Snapshot files: the whole state, sealed, compressed, streamed.
//!
//! ```text
//! head   magic 8 | version u16 | 0 u16 | data key u32 | salt 32 | tag 16
//! chunk  len u32 | last u8 | 0 x3 | sealed zstd text (len)
//! ```
//!
//! The first text holds the position in the log and the head of the state, the
//! others objects, kind by kind, each after its length. The chunk marked last
//! ends the file: a cut file is told. The state's checksum is compared after
//! loading. Written to a temporary name, synced, renamed. Memory is bounded by
//! a chunk, whatever the size of the state.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use prost::Message;
use warren_base::rng::Rng;
use warren_proto::v1;
use warren_state::{ImportError, Object, State};
use warren_trust::{KeyRing, KeyRingError, Opener, SEAL_OVERHEAD, Sealer};

use crate::codec::{self, CodecError, WirePosition};
use crate::disk::{Disk, DiskFile};

const MAGIC: &[u8; 8] = b"WRNSNAP\0";
const VERSION: u16 = 1;
const HEAD_TEXT_LEN: usize = 48;
const HEAD_LEN: usize = HEAD_TEXT_LEN + SEAL_OVERHEAD;
const CHUNK_HEAD_LEN: usize = 8;
const PURPOSE_HEAD: &str = "warren snapshot head 1";
const PURPOSE_CHUNKS: &str = "warren snapshot chunks 1";

/// Text of a chunk: large enough to compress well, small enough to hold a few of.
const CHUNK_TEXT: usize = 256 << 10;
/// A chunk's text and one object of 512 KiB on top, with room.
const CHUNK_TEXT_MAX: usize = 2 << 20;
/// Level 1: a snapshot must not take a core for long; higher levels save a tenth.
const LEVEL: i32 = 1;
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
    keys: Arc<KeyRing>,
    rng: Arc<dyn Rng>,
}

impl Snapshots {
    pub fn new(disk: Arc<dyn Disk>, keys: Arc<KeyRing>, rng: Arc<dyn Rng>) -> Self {
        Self { disk, keys, rng }
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
        let fail = |action| {
            let name = name.clone();
            move |source| SnapshotError::Disk { action, name, source }
        };
        let tmp = format!("{name}.tmp");
        let written = self.write_tmp(&tmp, state, position);
        let bytes = match written {
            Ok(bytes) => bytes,
            Err(source) => {
                // Gives the room back; the first error is the one to tell.
                let _ = self.disk.remove(&tmp);
                return Err(fail("write")(source));
            }
        };
        self.disk.rename(&tmp, &name).map_err(fail("rename"))?;
        self.disk.sync_names().map_err(fail("rename"))?;
        let names = self.names()?;
        for old in &names[..names.len().saturating_sub(KEPT)] {
            self.disk.remove(old).map_err(fail("remove the one before"))?;
        }
        Ok(SnapshotFile { name, bytes })
    }

    fn write_tmp(&self, tmp: &str, state: &State, position: &WirePosition) -> io::Result<u64> {
        let file = self.disk.create(tmp)?;
        let mut writer = ChunkWriter::start(file, &self.keys, self.rng.as_ref())?;
        let objects = state.object_count() as u64;
        writer.message(position)?;
        writer.message(&codec::head(&state.head(), objects, state.checksum()))?;
        writer.flush(false)?;
        for object in state.export() {
            writer.message(&codec::object(&object))?;
        }
        writer.finish()
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
        let mut reader = ChunkReader::start(self, name)?;
        let position: WirePosition = reader.expect_message()?;
        let head: v1::SnapshotHead = reader.expect_message()?;
        let expected = head.checksum;
        let codec_error = |source| SnapshotError::Codec { name: name.to_owned(), source };
        let head = codec::head_from(head).map_err(codec_error)?;
        // An iterator cannot fail, so it ends early and leaves its error here.
        let failed = RefCell::new(None);
        let objects = std::iter::from_fn(|| match reader.object() {
            Ok(object) => object,
            Err(error) => {
                *failed.borrow_mut() = Some(error);
                None
            }
        });
        let imported = State::import(head, objects);
        if let Some(error) = failed.into_inner() {
            return Err(error);
        }
        let state =
            imported.map_err(|source| SnapshotError::Import { name: name.to_owned(), source })?;
        let found = state.checksum();
        if found != expected {
            return Err(SnapshotError::Checksum { name: name.to_owned(), expected, found });
        }
        let file = SnapshotFile { name: name.to_owned(), bytes: reader.offset };
        Ok(Loaded { state, position, file })
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

struct ChunkWriter {
    file: Arc<dyn DiskFile>,
    sealer: Sealer,
    compressor: zstd::bulk::Compressor<'static>,
    text: Vec<u8>,
    packed: Vec<u8>,
    out: Vec<u8>,
    offset: u64,
}

impl ChunkWriter {
    fn start(file: Arc<dyn DiskFile>, keys: &KeyRing, rng: &dyn Rng) -> io::Result<Self> {
        let key = keys.active();
        let mut salt = [0; 32];
        rng.fill(&mut salt);
        let mut head = Vec::with_capacity(HEAD_LEN);
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&VERSION.to_le_bytes());
        head.extend_from_slice(&[0; 2]);
        head.extend_from_slice(&key.id().to_le_bytes());
        head.extend_from_slice(&salt);
        let text = head.clone();
        let mut sealer = key.sealer(&salt, PURPOSE_HEAD, 0);
        sealer.seal(&text, &mut head, HEAD_TEXT_LEN).map_err(io::Error::other)?;
        file.write_at(&head, 0)?;
        Ok(Self {
            file,
            sealer: key.sealer(&salt, PURPOSE_CHUNKS, 0),
            compressor: zstd::bulk::Compressor::new(LEVEL)?,
            text: Vec::with_capacity(CHUNK_TEXT),
            packed: Vec::new(),
            out: Vec::new(),
            offset: head.len() as u64,
        })
    }

    fn message(&mut self, message: &impl Message) -> io::Result<()> {
        let len = message.encoded_len();
        if self.text.len() + len > CHUNK_TEXT && !self.text.is_empty() {
            self.flush(false)?;
        }
        message.encode_length_delimited(&mut self.text).map_err(io::Error::other)
    }

    fn flush(&mut self, last: bool) -> io::Result<()> {
        self.packed.clear();
        self.packed.reserve(zstd::zstd_safe::compress_bound(self.text.len()));
        let len = self.compressor.compress_to_buffer(&self.text, &mut self.packed)?;
        self.text.clear();
        let sealed_len = u32::try_from(len + SEAL_OVERHEAD).map_err(io::Error::other)?;
        let mut head = [0; CHUNK_HEAD_LEN];
        head[..4].copy_from_slice(&sealed_len.to_le_bytes());
        head[4] = u8::from(last);
        self.out.clear();
        self.out.extend_from_slice(&head);
        self.out.extend_from_slice(&self.packed[..len]);
        self.sealer.seal(&head, &mut self.out, CHUNK_HEAD_LEN).map_err(io::Error::other)?;
        self.file.write_at(&self.out, self.offset)?;
        self.offset += self.out.len() as u64;
        Ok(())
    }

    fn finish(mut self) -> io::Result<u64> {
        self.flush(true)?;
        self.file.sync()?;
        Ok(self.offset)
    }
}

struct ChunkReader {
    name: String,
    file: Arc<dyn DiskFile>,
    opener: Opener,
    decompressor: zstd::bulk::Decompressor<'static>,
    sealed: Vec<u8>,
    text: Vec<u8>,
    at: usize,
    chunk: u64,
    offset: u64,
    ended: bool,
}

impl ChunkReader {
    fn start(snapshots: &Snapshots, name: &str) -> Result<Self, SnapshotError> {
        let owned = || name.to_owned();
        let fail = |source| SnapshotError::Disk { action: "read", name: owned(), source };
        let file = snapshots.disk.open(name).map_err(fail)?;
        let mut head = [0; HEAD_LEN];
        let read = file.read_at(&mut head, 0).map_err(fail)?;
        if read < HEAD_LEN || &head[..8] != MAGIC {
            return Err(SnapshotError::Shape { name: owned() });
        }
        let found = u16::from_le_bytes([head[8], head[9]]);
        if found != VERSION {
            return Err(SnapshotError::Version { name: owned(), found });
        }
        let id = u32::from_le_bytes([head[12], head[13], head[14], head[15]]);
        let key = snapshots.keys.key(id);
        let key = key.map_err(|source| SnapshotError::Key { name: owned(), source })?;
        let mut salt = [0; 32];
        salt.copy_from_slice(&head[16..HEAD_TEXT_LEN]);
        let (text, tag) = head.split_at_mut(HEAD_TEXT_LEN);
        key.opener(&salt, PURPOSE_HEAD)
            .open(0, text, tag)
            .map_err(|_| SnapshotError::Damaged { name: owned(), chunk: 0 })?;
        Ok(Self {
            name: owned(),
            file,
            opener: key.opener(&salt, PURPOSE_CHUNKS),
            decompressor: zstd::bulk::Decompressor::new().map_err(fail)?,
            sealed: Vec::new(),
            text: Vec::new(),
            at: 0,
            chunk: 0,
            offset: HEAD_LEN as u64,
            ended: false,
        })
    }

    fn damaged(&self) -> SnapshotError {
        SnapshotError::Damaged { name: self.name.clone(), chunk: self.chunk }
    }

    /// Reads the next chunk's text; false at the end.
    fn fill(&mut self) -> Result<bool, SnapshotError> {
        let disk = |name: &str, source| SnapshotError::Disk {
            action: "read",
            name: name.to_owned(),
            source,
        };
        self.text.clear();
        self.at = 0;
        if self.ended {
            return Ok(false);
        }
        let mut head = [0; CHUNK_HEAD_LEN];
        let read = self.file.read_at(&mut head, self.offset);
        let read = read.map_err(|source| disk(&self.name, source))?;
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let sane = SEAL_OVERHEAD..=zstd::zstd_safe::compress_bound(CHUNK_TEXT_MAX) + SEAL_OVERHEAD;
        if read < CHUNK_HEAD_LEN || head[4] > 1 || !sane.contains(&len) {
            return Err(self.damaged());
        }
        self.sealed.resize(len, 0);
        let at = self.offset + CHUNK_HEAD_LEN as u64;
        let read = self.file.read_at(&mut self.sealed, at);
        if read.map_err(|source| disk(&self.name, source))? < len {
            return Err(self.damaged());
        }
        let opened = self.opener.open(self.chunk, &head, &mut self.sealed);
        let Ok(packed) = opened else { return Err(self.damaged()) };
        self.text.reserve(CHUNK_TEXT_MAX);
        let unpacked = self.decompressor.decompress_to_buffer(packed, &mut self.text);
        if unpacked.is_err() {
            return Err(self.damaged());
        }
        self.chunk += 1;
        self.offset = at + len as u64;
        self.ended = head[4] == 1;
        Ok(true)
    }

    /// The next message; `None` at the end of the file.
    fn message<M: Message + Default>(&mut self) -> Result<Option<M>, SnapshotError> {
        while self.at == self.text.len() {
            if !self.fill()? {
                return Ok(None);
            }
        }
        let mut rest = &self.text[self.at..];
        let before = rest.len();
        let message = M::decode_length_delimited(&mut rest).map_err(|source| {
            let source = CodecError::Bytes { what: "snapshot", source };
            SnapshotError::Codec { name: self.name.clone(), source }
        })?;
        self.at += before - rest.len();
        Ok(Some(message))
    }

    fn expect_message<M: Message + Default>(&mut self) -> Result<M, SnapshotError> {
        let message = self.message()?;
        message.ok_or_else(|| SnapshotError::Shape { name: self.name.clone() })
    }

    fn object(&mut self) -> Result<Option<Object>, SnapshotError> {
        let Some(wire) = self.message::<v1::SnapshotObject>()? else { return Ok(None) };
        let object = codec::object_from(wire);
        let name = || self.name.clone();
        object.map(Some).map_err(|source| SnapshotError::Codec { name: name(), source })
    }
}
