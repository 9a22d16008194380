//! The sealed `tunnel` file of a node: the private keys of its end of the tunnel.
//!
//! It is no loss if it is gone: a node makes another and tells its new public half. So whatever
//! is wrong with the file is one error, without kinds to choose between.
//!
//! Bytes: magic, version (u16, little endian), salt, then sealed: one or two keys, each with when
//! it was made (u64, little endian, milliseconds since the epoch). Version 1 had one key alone.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use warren_base::file::write_atomic;
use warren_base::rng::Rng;
use zeroize::Zeroizing;

use crate::key_file::KeyFile;
use crate::seal::{Opener, SALT_LEN, SEAL_OVERHEAD, Sealer, derive};

const MAGIC: &[u8; 8] = b"WRNTUNL\0";
const VERSION: u16 = 2;
/// It had one key, and nothing of its age.
const VERSION_PLAIN: u16 = 1;
const HEAD_LEN: usize = MAGIC.len() + 2 + SALT_LEN;
const KEY_LEN: usize = 32;
const ENTRY_LEN: usize = KEY_LEN + 8;
/// While one is replaced by the other.
const KEYS_MAX: usize = 2;
const LEN_MAX: usize = HEAD_LEN + KEYS_MAX * ENTRY_LEN + SEAL_OVERHEAD;
const PURPOSE: &str = "warren tunnel key";

/// A private key and its age.
#[derive(Clone)]
pub struct TunnelKey {
    pub key: Zeroizing<[u8; KEY_LEN]>,
    /// Milliseconds since the epoch; 0: not told.
    pub made_ms: u64,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum TunnelKeyError {
    #[error("tunnel key {path} does not exist")]
    Missing { path: PathBuf },
    #[error("read tunnel key {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("write tunnel key {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("tunnel key {path} is damaged, or sealed with another key file")]
    Damaged { path: PathBuf },
}

/// Writes one or two keys to `path`, mode 0600. The first is the one that is offered.
///
/// # Errors
/// [`TunnelKeyError::Write`]; what was there is untouched then.
pub fn write_tunnel_keys(
    path: &Path,
    keys: &[TunnelKey],
    key_file: &KeyFile,
    rng: &dyn Rng,
) -> Result<(), TunnelKeyError> {
    let fail = |source| TunnelKeyError::Write { path: path.to_owned(), source };
    if keys.is_empty() || keys.len() > KEYS_MAX {
        let text = format!("{} keys, it must be 1 to {KEYS_MAX}", keys.len());
        return Err(fail(io::Error::new(io::ErrorKind::InvalidInput, text)));
    }
    let mut salt = [0; SALT_LEN];
    rng.fill(&mut salt);
    let mut head = Vec::with_capacity(HEAD_LEN);
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&salt);
    // Full room at once: the buffer holds the keys until they are sealed in place.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LEN_MAX));
    bytes.extend_from_slice(&head);
    for TunnelKey { key, made_ms } in keys {
        bytes.extend_from_slice(&**key);
        bytes.extend_from_slice(&made_ms.to_le_bytes());
    }
    let mut sealer = Sealer::new(derive(key_file.secret(), &salt, PURPOSE), 0);
    sealer.seal(&head, &mut bytes, HEAD_LEN).expect("a new sealer has all its counters left");
    write_atomic(path, &bytes, 0o600).map_err(fail)
}

/// Reads what [`write_tunnel_keys`] wrote, of this version or the one before.
///
/// # Errors
/// All of [`TunnelKeyError`] but the one of writing.
pub fn read_tunnel_keys(path: &Path, key_file: &KeyFile) -> Result<Vec<TunnelKey>, TunnelKeyError> {
    let fail = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => TunnelKeyError::Missing { path: path.to_owned() },
        _ => TunnelKeyError::Read { path: path.to_owned(), source },
    };
    let damaged = || TunnelKeyError::Damaged { path: path.to_owned() };
    let file = File::open(path).map_err(fail)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(LEN_MAX + 1));
    file.take(LEN_MAX as u64 + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() < HEAD_LEN + SEAL_OVERHEAD || !bytes.starts_with(MAGIC) {
        return Err(damaged());
    }
    let (head, sealed) = bytes.split_at_mut(HEAD_LEN);
    let version = u16::from_le_bytes([head[MAGIC.len()], head[MAGIC.len() + 1]]);
    let mut salt = [0; SALT_LEN];
    salt.copy_from_slice(&head[MAGIC.len() + 2..]);
    let opener = Opener::new(derive(key_file.secret(), &salt, PURPOSE));
    let text = opener.open(0, head, sealed).map_err(|_| damaged())?;
    parse(version, text).ok_or_else(damaged)
}

/// `None` of what this version does not know.
fn parse(version: u16, text: &[u8]) -> Option<Vec<TunnelKey>> {
    let entry = |bytes: &[u8]| {
        let (key, made) = bytes.split_first_chunk::<KEY_LEN>()?;
        let made_ms = match made {
            [] => 0,
            made => u64::from_le_bytes(made.try_into().ok()?),
        };
        Some(TunnelKey { key: Zeroizing::new(*key), made_ms })
    };
    let fits = match version {
        VERSION_PLAIN => text.len() == KEY_LEN,
        VERSION => (1..=KEYS_MAX).any(|count| text.len() == count * ENTRY_LEN),
        _ => false,
    };
    fits.then(|| text.chunks(ENTRY_LEN).map(entry).collect()).flatten()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use warren_base::rng::SystemRng;

    use super::*;

    #[test]
    fn keys_are_kept_sealed_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tunnel");
        let key_file = KeyFile::in_memory([3; 32]);
        let missing = read_tunnel_keys(&path, &key_file).err().unwrap();
        assert!(matches!(missing, TunnelKeyError::Missing { .. }), "{missing}");
        let key = |n, made_ms| TunnelKey { key: Zeroizing::new([n; KEY_LEN]), made_ms };
        let shown = |keys: &[TunnelKey]| -> Vec<(u8, u64)> {
            keys.iter().map(|key| (key.key[0], key.made_ms)).collect()
        };
        let write = |keys: &[TunnelKey]| write_tunnel_keys(&path, keys, &key_file, &SystemRng);
        assert!(write(&[]).is_err() && write(&[key(1, 1), key(2, 2), key(3, 3)]).is_err());
        write(&[key(7, 5)]).unwrap();
        assert_eq!(shown(&read_tunnel_keys(&path, &key_file).unwrap()), [(7, 5)]);
        write(&[key(7, 5), key(8, u64::MAX)]).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let both = read_tunnel_keys(&path, &key_file).unwrap();
        assert_eq!(shown(&both), [(7, 5), (8, u64::MAX)]);
        let good = fs::read(&path).unwrap();
        assert_eq!(good.len(), LEN_MAX);
        assert!(!good.windows(8).any(|part| part == [7; 8]), "the key is in the clear");
        let other = KeyFile::in_memory([4; 32]);
        let foreign = read_tunnel_keys(&path, &other).err().unwrap();
        assert!(matches!(foreign, TunnelKeyError::Damaged { .. }), "{foreign}");
        let mut bad: Vec<Vec<u8>> = (0..LEN_MAX).map(|len| good[..len].to_vec()).collect();
        bad.extend((0..LEN_MAX).map(|at| {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            bytes
        }));
        bad.push([&good[..], b"x"].concat());
        for bytes in bad {
            fs::write(&path, bytes).unwrap();
            let damaged = read_tunnel_keys(&path, &key_file).err().unwrap();
            assert!(matches!(damaged, TunnelKeyError::Damaged { .. }), "{damaged}");
        }
        let nowhere = dir.path().join("missing/tunnel");
        assert!(write_tunnel_keys(&nowhere, &[key(7, 5)], &key_file, &SystemRng).is_err());
    }

    #[test]
    fn what_the_version_before_wrote_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tunnel");
        let key_file = KeyFile::in_memory([3; 32]);
        let salt = [9; SALT_LEN];
        let head = [&MAGIC[..], &VERSION_PLAIN.to_le_bytes(), &salt].concat();
        let mut bytes = [&head[..], &[7; KEY_LEN]].concat();
        let mut sealer = Sealer::new(derive(key_file.secret(), &salt, PURPOSE), 0);
        sealer.seal(&head, &mut bytes, HEAD_LEN).unwrap();
        fs::write(&path, bytes).unwrap();
        let keys = read_tunnel_keys(&path, &key_file).unwrap();
        assert_eq!((keys.len(), *keys[0].key, keys[0].made_ms), (1, [7; KEY_LEN], 0));
    }
}
