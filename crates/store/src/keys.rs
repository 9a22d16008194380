//! The data keys of an open store, and their rotation.
//!
//! New files are sealed with the newest key; a key that no file needs any more
//! is forgotten. The ring is on disk, wrapped by the node's key file, before a
//! new key seals anything.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use warren_base::rng::Rng;
use warren_trust::{KeyFile, KeyRing, KeyRingError};

use crate::disk::{self, Disk};

pub(crate) const KEYS_FILE: &str = "KEYS";

/// Why the data key was not rotated.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    #[error("rotate the data key of the store in {place}")]
    Ring { place: String, source: KeyRingError },
    #[error("write the keys of the store in {place}")]
    Disk { place: String, source: io::Error },
    #[error("begin a log segment with the new data key")]
    Log(#[from] crate::log::LogError),
    #[error("write a snapshot with the new data key")]
    Snapshot(#[from] crate::snapshot::SnapshotError),
    #[error("the store has stopped")]
    Stopped,
}

/// The keys; clones are the same.
#[derive(Clone)]
pub struct Keys {
    ring: Arc<ArcSwap<KeyRing>>,
}

impl From<Arc<KeyRing>> for Keys {
    fn from(ring: Arc<KeyRing>) -> Self {
        Self { ring: Arc::new(ArcSwap::new(ring)) }
    }
}

impl Keys {
    pub(crate) fn ring(&self) -> Arc<KeyRing> {
        self.ring.load_full()
    }

    /// Puts a changed ring to disk, then into use.
    fn replace(
        &self,
        disk: &dyn Disk,
        key_file: &KeyFile,
        rng: &dyn Rng,
        change: impl FnOnce(&mut KeyRing) -> Result<(), KeyRingError>,
    ) -> Result<(), RotateError> {
        let ring_error = |source| RotateError::Ring { place: disk.place(), source };
        let wrapped = self.ring().wrap(key_file, rng);
        let mut ring = KeyRing::unwrap(&wrapped, key_file).map_err(ring_error)?;
        change(&mut ring).map_err(ring_error)?;
        disk::write_atomic(disk, KEYS_FILE, &ring.wrap(key_file, rng))
            .map_err(|source| RotateError::Disk { place: disk.place(), source })?;
        self.ring.store(Arc::new(ring));
        Ok(())
    }

    /// Makes a new key the active one.
    pub(crate) fn rotate(
        &self,
        disk: &dyn Disk,
        key_file: &KeyFile,
        rng: &dyn Rng,
    ) -> Result<(), RotateError> {
        self.replace(disk, key_file, rng, |ring| ring.rotate(rng))
    }

    /// Forgets keys that are not in `used`; how many.
    pub(crate) fn forget_unused(
        &self,
        disk: &dyn Disk,
        key_file: &KeyFile,
        rng: &dyn Rng,
        used: &[u32],
    ) -> Result<usize, RotateError> {
        let ring = self.ring();
        let unused = ring.ids().filter(|id| *id != ring.active().id() && !used.contains(id));
        let unused = unused.count();
        if unused > 0 {
            self.replace(disk, key_file, rng, |ring| {
                ring.retain(used);
                Ok(())
            })?;
        }
        Ok(unused)
    }
}
