//! A snapshot's file: packed chunks, each sealed, the last one marked.
//!
//! ```text
//! head   magic 8 | version u16 | 0 u16 | data key u32 | salt 32 | tag 16
//! chunk  len u32 | last u8 | 0 x3 | sealed zstd text (len)
//! ```

use std::io;
use std::sync::Arc;

use warren_base::rng::Rng;
use warren_trust::{KeyRing, Opener, SEAL_OVERHEAD, Sealer};

use super::SnapshotError;
use super::text::{ChunkSink, ChunkSource, PACKED_MAX};
use crate::disk::{Disk, DiskFile};

const MAGIC: &[u8; 8] = b"WRNSNAP\0";
pub(super) const VERSION: u16 = 1;
const HEAD_TEXT_LEN: usize = 48;
const HEAD_LEN: usize = HEAD_TEXT_LEN + SEAL_OVERHEAD;
const CHUNK_HEAD_LEN: usize = 8;
const PURPOSE_HEAD: &str = "warren snapshot head 1";
const PURPOSE_CHUNKS: &str = "warren snapshot chunks 1";

/// Writes a file from its chunks.
pub(crate) struct SealedWriter {
    file: Arc<dyn DiskFile>,
    sealer: Sealer,
    out: Vec<u8>,
    offset: u64,
}

impl SealedWriter {
    pub(super) fn start(
        file: Arc<dyn DiskFile>,
        keys: &KeyRing,
        rng: &dyn Rng,
    ) -> io::Result<Self> {
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
        let sealer = key.sealer(&salt, PURPOSE_CHUNKS, 0);
        Ok(Self { file, sealer, out: Vec::new(), offset: head.len() as u64 })
    }

    /// Makes it durable; returns its size.
    pub(super) fn finish(&self) -> io::Result<u64> {
        self.file.sync()?;
        Ok(self.offset)
    }
}

impl ChunkSink for SealedWriter {
    fn chunk(&mut self, packed: &[u8], last: bool) -> io::Result<()> {
        let sealed_len = u32::try_from(packed.len() + SEAL_OVERHEAD).map_err(io::Error::other)?;
        let mut head = [0; CHUNK_HEAD_LEN];
        head[..4].copy_from_slice(&sealed_len.to_le_bytes());
        head[4] = u8::from(last);
        self.out.clear();
        self.out.extend_from_slice(&head);
        self.out.extend_from_slice(packed);
        self.sealer.seal(&head, &mut self.out, CHUNK_HEAD_LEN).map_err(io::Error::other)?;
        self.file.write_at(&self.out, self.offset)?;
        self.offset += self.out.len() as u64;
        Ok(())
    }
}

/// Reads a file back, chunk by chunk, each one proven authentic.
pub(crate) struct SealedReader {
    name: String,
    file: Arc<dyn DiskFile>,
    opener: Opener,
    chunk: u64,
    pub(super) offset: u64,
    ended: bool,
}

struct Head {
    bytes: [u8; HEAD_LEN],
    key: u32,
}

fn read_head(file: &dyn DiskFile, name: &str) -> Result<Head, SnapshotError> {
    let owned = || name.to_owned();
    let mut bytes = [0; HEAD_LEN];
    let read = file.read_at(&mut bytes, 0);
    let read =
        read.map_err(|source| SnapshotError::Disk { action: "read", name: owned(), source })?;
    if read < HEAD_LEN || &bytes[..8] != MAGIC {
        return Err(SnapshotError::Shape { name: owned() });
    }
    let found = u16::from_le_bytes([bytes[8], bytes[9]]);
    if found != VERSION {
        return Err(SnapshotError::Version { name: owned(), found });
    }
    let key = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
    Ok(Head { bytes, key })
}

/// The data key that a snapshot is sealed with.
pub(super) fn key_of(disk: &dyn Disk, name: &str) -> Result<u32, SnapshotError> {
    let opened = disk.open(name);
    let file = opened.map_err(|source| SnapshotError::Disk {
        action: "read",
        name: name.to_owned(),
        source,
    })?;
    Ok(read_head(file.as_ref(), name)?.key)
}

impl SealedReader {
    pub(super) fn start(
        disk: &dyn Disk,
        keys: &KeyRing,
        name: &str,
    ) -> Result<Self, SnapshotError> {
        let owned = || name.to_owned();
        let fail = |source| SnapshotError::Disk { action: "read", name: owned(), source };
        let file = disk.open(name).map_err(fail)?;
        let Head { bytes: mut head, key } = read_head(file.as_ref(), name)?;
        let key = keys.key(key);
        let key = key.map_err(|source| SnapshotError::Key { name: owned(), source })?;
        let mut salt = [0; 32];
        salt.copy_from_slice(&head[16..HEAD_TEXT_LEN]);
        let (text, tag) = head.split_at_mut(HEAD_TEXT_LEN);
        key.opener(&salt, PURPOSE_HEAD)
            .open(0, text, tag)
            .map_err(|_| SnapshotError::Damaged { name: owned(), chunk: 0 })?;
        let opener = key.opener(&salt, PURPOSE_CHUNKS);
        let offset = HEAD_LEN as u64;
        Ok(Self { name: owned(), file, opener, chunk: 0, offset, ended: false })
    }
}

impl ChunkSource for SealedReader {
    fn name(&self) -> &str {
        &self.name
    }

    fn chunks_read(&self) -> u64 {
        self.chunk
    }

    fn chunk(&mut self) -> Result<Option<(Vec<u8>, bool)>, SnapshotError> {
        if self.ended {
            return Ok(None);
        }
        let disk = |source| SnapshotError::Disk { action: "read", name: self.name.clone(), source };
        let mut head = [0; CHUNK_HEAD_LEN];
        let read = self.file.read_at(&mut head, self.offset).map_err(disk)?;
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let sane = SEAL_OVERHEAD..=PACKED_MAX + SEAL_OVERHEAD;
        if read < CHUNK_HEAD_LEN || head[4] > 1 || !sane.contains(&len) {
            return Err(self.damaged());
        }
        let mut sealed = vec![0; len];
        let at = self.offset + CHUNK_HEAD_LEN as u64;
        if self.file.read_at(&mut sealed, at).map_err(disk)? < len {
            return Err(self.damaged());
        }
        let opened = self.opener.open(self.chunk, &head, &mut sealed);
        let Ok(packed) = opened else { return Err(self.damaged()) };
        let packed_len = packed.len();
        // The text is opened in place, at the front.
        debug_assert_eq!(packed_len + SEAL_OVERHEAD, len);
        sealed.truncate(packed_len);
        self.chunk += 1;
        self.offset = at + len as u64;
        self.ended = head[4] == 1;
        Ok(Some((sealed, self.ended)))
    }
}
