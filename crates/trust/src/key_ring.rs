//! A key ring: the data keys of one store, wrapped by the node's key file.
//!
//! Bytes: magic, version, salt of the wrapping, then the sealed list of
//! (id, key). Rotation adds a key and makes it the active one; old keys stay
//! until nothing sealed with them is left. The ring does not know where it is
//! kept: its owner writes the bytes.

use warren_base::rng::Rng;
use zeroize::Zeroizing;

use crate::key_file::KeyFile;
use crate::seal::{Opener, SALT_LEN, SEAL_OVERHEAD, Sealer, derive};

const MAGIC: &[u8; 8] = b"WRNRING\0";
const VERSION: u16 = 1;
const HEAD_LEN: usize = MAGIC.len() + 2 + SALT_LEN;
const KEY_LEN: usize = 4 + 32;
/// Far more than are ever in use: a key goes with the last file sealed by it.
const KEYS_MAX: usize = 64;

/// Why a key ring cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyRingError {
    #[error("the key ring is truncated or not a key ring")]
    Shape,
    #[error("the key ring is of version {found}, this binary knows {VERSION}")]
    Version { found: u16 },
    #[error("the key ring does not open with key file {key_file}: another key, or a damaged ring")]
    Broken { key_file: String },
    #[error("the key ring has no key number {id}")]
    NoKey { id: u32 },
    #[error("the key ring is full: {KEYS_MAX} keys are still in use")]
    Full,
}

/// One key, from which the keys of files are derived.
pub struct DataKey {
    id: u32,
    secret: Zeroizing<[u8; 32]>,
}

impl DataKey {
    fn generate(id: u32, rng: &dyn Rng) -> Self {
        let mut secret = Zeroizing::new([0; 32]);
        rng.fill(secret.as_mut_slice());
        Self { id, secret }
    }

    /// Its number in the ring; written, in the clear, into what it seals.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// A sealer for one file. `salt` must be random and new; `purpose` keeps kinds of files apart.
    pub fn sealer(&self, salt: &[u8; SALT_LEN], purpose: &str, first: u64) -> Sealer {
        Sealer::new(derive(&self.secret, salt, purpose), first)
    }

    /// Opens what [`DataKey::sealer`] sealed with the same salt and purpose.
    pub fn opener(&self, salt: &[u8; SALT_LEN], purpose: &str) -> Opener {
        Opener::new(derive(&self.secret, salt, purpose))
    }
}

/// The data keys of one store; the last one seals, all of them open.
pub struct KeyRing {
    keys: Vec<DataKey>,
}

impl KeyRing {
    /// A ring with one new key.
    pub fn generate(rng: &dyn Rng) -> Self {
        Self { keys: vec![DataKey::generate(1, rng)] }
    }

    /// Adds a key and makes it the active one. Nothing is forgotten: files sealed with the old
    /// keys stay readable.
    ///
    /// # Errors
    /// [`KeyRingError::Full`] when the ring holds as many keys as it can.
    pub fn rotate(&mut self, rng: &dyn Rng) -> Result<(), KeyRingError> {
        let id = self.active().id.checked_add(1).ok_or(KeyRingError::Full)?;
        if self.keys.len() >= KEYS_MAX {
            return Err(KeyRingError::Full);
        }
        self.keys.push(DataKey::generate(id, rng));
        Ok(())
    }

    /// Of all keys, oldest first.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        self.keys.iter().map(|key| key.id)
    }

    /// Forgets the keys that are not in `used`; never the active one.
    pub fn retain(&mut self, used: &[u32]) {
        let active = self.active().id;
        self.keys.retain(|key| key.id == active || used.contains(&key.id));
    }

    /// The key that new files are sealed with.
    pub fn active(&self) -> &DataKey {
        self.keys.last().expect("a ring is made with a key and never loses its last")
    }

    /// The key of a file that names `id`.
    ///
    /// # Errors
    /// [`KeyRingError::NoKey`] when the ring does not have it.
    pub fn key(&self, id: u32) -> Result<&DataKey, KeyRingError> {
        self.keys.iter().find(|key| key.id == id).ok_or(KeyRingError::NoKey { id })
    }

    /// The ring's bytes, sealed with the node's key file.
    pub fn wrap(&self, key_file: &KeyFile, rng: &dyn Rng) -> Vec<u8> {
        let mut salt = [0; SALT_LEN];
        rng.fill(&mut salt);
        let mut head = Vec::with_capacity(HEAD_LEN);
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&VERSION.to_le_bytes());
        head.extend_from_slice(&salt);
        // Full room at once: the buffer holds keys until they are sealed in place.
        let mut out = Vec::with_capacity(HEAD_LEN + self.keys.len() * KEY_LEN + SEAL_OVERHEAD);
        out.extend_from_slice(&head);
        for key in &self.keys {
            out.extend_from_slice(&key.id.to_le_bytes());
            out.extend_from_slice(key.secret.as_slice());
        }
        let mut sealer = Sealer::new(derive(key_file.secret(), &salt, "warren key ring"), 0);
        sealer.seal(&head, &mut out, HEAD_LEN).expect("a new sealer has all its counters left");
        out
    }

    /// Opens a ring with the node's key file.
    ///
    /// # Errors
    /// [`KeyRingError`] when the bytes are not a ring, or not of this key file.
    pub fn unwrap(bytes: &[u8], key_file: &KeyFile) -> Result<Self, KeyRingError> {
        if bytes.len() < HEAD_LEN || &bytes[..MAGIC.len()] != MAGIC {
            return Err(KeyRingError::Shape);
        }
        let (head, sealed) = bytes.split_at(HEAD_LEN);
        let found = u16::from_le_bytes([head[8], head[9]]);
        if found != VERSION {
            return Err(KeyRingError::Version { found });
        }
        let keys = sealed.len().checked_sub(SEAL_OVERHEAD).ok_or(KeyRingError::Shape)?;
        if keys == 0 || keys % KEY_LEN != 0 || keys / KEY_LEN > KEYS_MAX {
            return Err(KeyRingError::Shape);
        }
        let mut salt = [0; SALT_LEN];
        salt.copy_from_slice(&head[10..]);
        let mut sealed = Zeroizing::new(sealed.to_vec());
        let opener = Opener::new(derive(key_file.secret(), &salt, "warren key ring"));
        let text = opener.open(0, head, &mut sealed).map_err(|_| KeyRingError::Broken {
            key_file: key_file.path().display().to_string(),
        })?;
        let keys = text.chunks_exact(KEY_LEN).map(|chunk| {
            let mut secret = Zeroizing::new([0; 32]);
            secret.copy_from_slice(&chunk[4..]);
            DataKey { id: u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]), secret }
        });
        Ok(Self { keys: keys.collect() })
    }
}

#[cfg(test)]
mod tests {
    use warren_base::rng::SeededRng;

    use super::*;

    fn error(bytes: &[u8], key: u8) -> Option<KeyRingError> {
        KeyRing::unwrap(bytes, &KeyFile::in_memory([key; 32])).err()
    }

    #[test]
    fn rings_survive_wrapping_and_rotation() {
        let rng = SeededRng::new(1);
        let file = KeyFile::in_memory([9; 32]);
        let mut ring = KeyRing::generate(&rng);
        for _ in 0..3 {
            ring.rotate(&rng).unwrap();
        }
        assert_eq!(ring.active().id(), 4);
        let again = KeyRing::unwrap(&ring.wrap(&file, &rng), &file).unwrap();
        assert_eq!(again.active().id(), 4);
        let mut sealed = b"text".to_vec();
        ring.key(2).unwrap().sealer(&[5; 32], "log", 3).seal(b"", &mut sealed, 0).unwrap();
        let opener = again.key(2).unwrap().opener(&[5; 32], "log");
        assert_eq!(opener.open(3, b"", &mut sealed).unwrap(), b"text");
        assert_eq!(again.key(9).err(), Some(KeyRingError::NoKey { id: 9 }));
        while ring.rotate(&rng).is_ok() {}
        assert_eq!((ring.keys.len(), ring.active().id()), (KEYS_MAX, 64));
        assert!(KeyRing::unwrap(&ring.wrap(&file, &rng), &file).is_ok());
    }

    #[test]
    fn damage_is_refused() {
        let rng = SeededRng::new(1);
        let bytes = KeyRing::generate(&rng).wrap(&KeyFile::in_memory([9; 32]), &rng);
        assert_eq!(error(&bytes, 9), None);
        assert!(matches!(error(&bytes, 8), Some(KeyRingError::Broken { .. })));
        for len in 0..bytes.len() {
            assert_eq!(error(&bytes[..len], 9), Some(KeyRingError::Shape), "cut at {len}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(error(&bad, 9).is_some(), "bit {bit}");
        }
        let mut newer = bytes;
        newer[8] = 2;
        assert_eq!(error(&newer, 9), Some(KeyRingError::Version { found: 2 }));
    }
}
