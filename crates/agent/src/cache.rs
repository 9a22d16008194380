//! What this node must hold, kept on disk: it works on after a reboot without
//! managers.
//!
//! One file, `<data dir>/agent/assignments`, replaced as a whole (tmp, fsync,
//! rename):
//!
//! ```text
//! magic 8 | version u16 | length of the ring u16 | salt 32 | ring | sealed set
//! ```
//!
//! Every file has a data key of its own, in a key ring that the node's key file
//! wraps; so no nonce is used twice, and there is nothing to rotate. A file
//! that does not open is set aside and told of, never trusted in part.
//!
//! Not here: when to write ([`Pace`] says it, the worker does it), what a kept
//! set means (`core`).

use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message;
use warren_base::file::{sync_folder, write_atomic};
use warren_base::rng::Rng;
use warren_model::NodeId;
use warren_proto::v1;
use warren_trust::{KeyFile, KeyRing, KeyRingError, SealError};
use zeroize::Zeroizing;

use crate::assignments::Set;
use crate::lease::Contact;
use crate::restart::doubled;

const MAGIC: &[u8; 8] = b"WRNASGN\0";
const VERSION: u16 = 1;
const SALT_LEN: usize = 32;
const HEAD_LEN: usize = MAGIC.len() + 2 + 2 + SALT_LEN;
const PURPOSE: &str = "warren agent assignments 1";
/// A node with ten thousand tasks has a few megabytes.
const BYTES_MAX: u64 = 128 << 20;
/// Another after each boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What comes at once is one write.
const SET_SOON_MS: u64 = 20;
/// In a burst of assignments there is a write this often.
const SET_MS: u64 = 200;
/// Statuses change far more often, and lose less: at worst a container is started once more.
const STATUS_MS: u64 = 1_000;
/// The network changes with every task of every node, and a table of five thousand services has a
/// megabyte; managers that go away take a few seconds of it with them.
const TABLE_MS: u64 = 5_000;
/// A disk that refuses is asked again, ever more seldom.
const RETRY_MAX_MS: u64 = 10_000;

/// Why what is kept cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("{action} {path}")]
    Disk { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} is cut off or no set of assignments")]
    Shape { path: PathBuf },
    #[error("{path} is of version {found}, this binary knows {VERSION}")]
    Version { path: PathBuf, found: u16 },
    #[error("open {path}")]
    Key { path: PathBuf, source: KeyRingError },
    #[error("open {path}")]
    Seal { path: PathBuf, source: SealError },
    #[error("{path} is of node {found}, this is node {node}")]
    Foreign { path: PathBuf, found: String, node: NodeId },
    #[error("{path} holds no set of assignments")]
    Text { path: PathBuf, source: prost::DecodeError },
}

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cached {
    pub set: Set,
    /// For how long tasks of an earlier epoch are to be kept yet.
    pub kept_left_ms: u64,
    /// How far leases go that managers gave.
    pub contact: Contact,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireCache {
    #[prost(message, optional, tag = "1")]
    set: Option<v1::Assignment>,
    #[prost(message, optional, tag = "2")]
    kept: Option<v1::Assignment>,
    #[prost(uint64, tag = "3")]
    kept_left_ms: u64,
    /// Of another node it says nothing, and its revisions are of another cluster's history.
    #[prost(bytes = "vec", tag = "4")]
    node: Vec<u8>,
    #[prost(uint64, optional, tag = "5")]
    heard_ms: Option<u64>,
    #[prost(uint64, optional, tag = "6")]
    alone_ms: Option<u64>,
    /// Whose clock those two are of; of another boot they say nothing.
    #[prost(string, tag = "7")]
    boot: String,
}

/// The file of one node.
#[derive(Clone)]
pub struct Cache {
    path: PathBuf,
    node: NodeId,
    key: Arc<KeyFile>,
    rng: Arc<dyn Rng>,
    /// Empty when the kernel does not say.
    boot: String,
}

impl Cache {
    pub fn new(data_dir: &Path, node: NodeId, key: Arc<KeyFile>, rng: Arc<dyn Rng>) -> Self {
        let boot = std::fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned();
        Self { path: data_dir.join("agent").join("assignments"), node, key, rng, boot }
    }

    /// What is kept, if it is there and whole; what is wrong is logged, and a file that does not
    /// open is set aside. Blocks on the disk.
    pub fn load(&self) -> Option<Cached> {
        let error = match self.read() {
            Ok(cached) => return cached,
            Err(error) => error,
        };
        let error_text = crate::effects::chain(&error);
        if matches!(error, CacheError::Disk { .. }) {
            tracing::error!(error = error_text, "assignments are not read; waiting for a manager");
            return None;
        }
        let aside = self.path.with_extension("damaged");
        let moved = std::fs::rename(&self.path, &aside).err().map(|error| error.to_string());
        tracing::error!(
            error = error_text,
            set_aside = %aside.display(),
            not_moved = moved,
            "assignments are not used; waiting for a manager"
        );
        None
    }

    /// What is kept; `None` when nothing is. Blocks on the disk.
    ///
    /// # Errors
    /// One of [`CacheError`] for each way in which the file can be wrong.
    pub fn read(&self) -> Result<Option<Cached>, CacheError> {
        let fail = |source| self.disk("read", source);
        let file = match std::fs::File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(error)),
        };
        let len = file.metadata().map_err(fail)?.len();
        if len > BYTES_MAX {
            return Err(CacheError::Shape { path: self.path.clone() });
        }
        let room = usize::try_from(len).unwrap_or(0);
        let mut bytes = Zeroizing::new(Vec::with_capacity(room));
        file.take(BYTES_MAX).read_to_end(&mut bytes).map_err(fail)?;
        self.open(&mut bytes).map(Some)
    }

    fn open(&self, bytes: &mut [u8]) -> Result<Cached, CacheError> {
        let path = || self.path.clone();
        let shape = || CacheError::Shape { path: path() };
        if bytes.len() < HEAD_LEN || !bytes.starts_with(MAGIC) {
            return Err(shape());
        }
        let found = u16::from_le_bytes([bytes[8], bytes[9]]);
        if found != VERSION {
            return Err(CacheError::Version { path: path(), found });
        }
        let ring_len = usize::from(u16::from_le_bytes([bytes[10], bytes[11]]));
        let mut salt = [0; SALT_LEN];
        salt.copy_from_slice(&bytes[12..HEAD_LEN]);
        let (head, sealed) = bytes.split_at_mut_checked(HEAD_LEN + ring_len).ok_or_else(shape)?;
        let ring = KeyRing::unwrap(&head[HEAD_LEN..], &self.key)
            .map_err(|source| CacheError::Key { path: path(), source })?;
        let text = ring
            .active()
            .opener(&salt, PURPOSE)
            .open(0, head, sealed)
            .map_err(|source| CacheError::Seal { path: path(), source })?;
        let wire = WireCache::decode(&*text)
            .map_err(|source| CacheError::Text { path: path(), source })?;
        if wire.node != self.node.as_bytes() {
            let found = warren_proto::node_id("node", &wire.node);
            let found = found.map_or_else(|_| "nobody".to_owned(), |found| found.to_string());
            return Err(CacheError::Foreign { path: path(), found, node: self.node });
        }
        let (set, kept) = (wire.set.unwrap_or_default(), wire.kept.unwrap_or_default());
        let (set, problems) = Set::from_wire(set, kept);
        for problem in problems {
            tracing::error!(problem, "a kept assignment is not understood in full");
        }
        let contact = if wire.boot == self.boot && !self.boot.is_empty() {
            Contact { heard_ms: wire.heard_ms, alone_ms: wire.alone_ms }
        } else {
            Contact::default()
        };
        Ok(Cached { set, kept_left_ms: wire.kept_left_ms, contact })
    }

    /// Replaces what is kept. Blocks on the disk.
    ///
    /// # Errors
    /// [`CacheError`]; what was kept before is untouched then.
    pub fn write(&self, cached: &Cached) -> Result<(), CacheError> {
        let bytes = self.seal(cached)?;
        let fail = |source| self.disk("write", source);
        let folder = self.path.parent().unwrap_or(&self.path);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(fail)?;
        write_atomic(&self.path, &bytes, 0o600).map_err(fail)
    }

    fn seal(&self, cached: &Cached) -> Result<Vec<u8>, CacheError> {
        let (set, kept) = cached.set.to_wire();
        let wire = WireCache {
            set: Some(set),
            kept: Some(kept),
            kept_left_ms: cached.kept_left_ms,
            node: self.node.as_bytes().to_vec(),
            heard_ms: cached.contact.heard_ms,
            alone_ms: cached.contact.alone_ms,
            boot: self.boot.clone(),
        };
        let ring = KeyRing::generate(&*self.rng);
        let wrapped = ring.wrap(&self.key, &*self.rng);
        let ring_len = u16::try_from(wrapped.len())
            .map_err(|_| CacheError::Shape { path: self.path.clone() })?;
        let mut salt = [0; SALT_LEN];
        self.rng.fill(&mut salt);
        // All room at once: a buffer that grows would leave copies of the text behind.
        let room = HEAD_LEN + wrapped.len() + wire.encoded_len() + warren_trust::SEAL_OVERHEAD;
        let mut out = Vec::with_capacity(room);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&ring_len.to_le_bytes());
        out.extend_from_slice(&salt);
        out.extend_from_slice(&wrapped);
        let head = out.clone();
        wire.encode(&mut out).expect("a vector has all the room there is");
        let mut sealer = ring.active().sealer(&salt, PURPOSE, 0);
        sealer
            .seal(&head, &mut out, head.len())
            .map_err(|source| CacheError::Seal { path: self.path.clone(), source })?;
        Ok(out)
    }

    /// Nothing is kept any more. Blocks on the disk.
    ///
    /// # Errors
    /// [`CacheError::Disk`].
    pub fn remove(&self) -> Result<(), CacheError> {
        match std::fs::remove_file(&self.path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.disk("remove", error)),
        }
        let folder = self.path.parent().unwrap_or(&self.path);
        sync_folder(folder).map_err(|source| self.disk("remove", source))
    }

    fn disk(&self, action: &'static str, source: io::Error) -> CacheError {
        CacheError::Disk { action, path: self.path.clone(), source }
    }
}

/// What differs from what is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Changed {
    /// What this node knows of the network alone.
    Table,
    Statuses,
    Set,
}

/// When to write: soon, seldom, one write at a time.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    due_ms: Option<u64>,
    begun_ms: Option<u64>,
    writing: bool,
    failures: u32,
}

impl Pace {
    pub(crate) fn changed(&mut self, what: Changed, now_ms: u64) {
        let since = self.begun_ms.map_or(SET_MS, |begun| now_ms.saturating_sub(begun));
        let wait = match what {
            Changed::Table => TABLE_MS,
            Changed::Statuses => STATUS_MS,
            Changed::Set => SET_MS.saturating_sub(since).max(SET_SOON_MS),
        };
        // A disk that refuses is not asked more often because there is more to write.
        let wait = if self.failures > 0 { wait.max(self.retry_ms()) } else { wait };
        let due = now_ms.saturating_add(wait);
        self.due_ms = Some(self.due_ms.map_or(due, |earlier| earlier.min(due)));
    }

    fn retry_ms(&self) -> u64 {
        doubled(SET_MS, self.failures, RETRY_MAX_MS)
    }

    /// When to write next; `None` while there is no need or a write is under way.
    pub(crate) fn due_ms(&self) -> Option<u64> {
        self.due_ms.filter(|_| !self.writing)
    }

    /// Whether there is something that is not on disk.
    pub(crate) fn is_behind(&self) -> bool {
        self.writing || self.due_ms.is_some()
    }

    pub(crate) fn begin(&mut self, now_ms: u64) {
        (self.writing, self.due_ms, self.begun_ms) = (true, None, Some(now_ms));
    }

    pub(crate) fn done(&mut self, ok: bool, now_ms: u64) {
        self.writing = false;
        if ok {
            self.failures = 0;
        } else {
            self.failures = self.failures.saturating_add(1);
            self.due_ms = Some(now_ms.saturating_add(self.retry_ms()));
        }
    }
}

#[cfg(test)]
mod tests;
