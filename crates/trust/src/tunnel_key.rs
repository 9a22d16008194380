//! The sealed `tunnel` file of a node: the private key of its end of the tunnel.
//!
//! It is no loss if it is gone: a node makes another and tells its new public half. So whatever
//! is wrong with the file is one error, without kinds to choose between.
//!
//! Bytes: magic, version (u16, little endian), salt, then sealed: the key.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use warren_base::file::write_atomic;
use warren_base::rng::Rng;
use zeroize::Zeroizing;

use crate::key_file::KeyFile;
use crate::seal::{Opener, SALT_LEN, SEAL_OVERHEAD, Sealer, derive};

const MAGIC: &[u8; 8] = b"WRNTUNL\0";
const VERSION: u16 = 1;
const HEAD_LEN: usize = MAGIC.len() + 2 + SALT_LEN;
const KEY_LEN: usize = 32;
const LEN: usize = HEAD_LEN + KEY_LEN + SEAL_OVERHEAD;
const PURPOSE: &str = "warren tunnel key";

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

/// Writes a key to `path`, mode 0600.
///
/// # Errors
/// [`TunnelKeyError::Write`]; what was there is untouched then.
pub fn write_tunnel_key(
    path: &Path,
    key: &[u8; KEY_LEN],
    key_file: &KeyFile,
    rng: &dyn Rng,
) -> Result<(), TunnelKeyError> {
    let mut salt = [0; SALT_LEN];
    rng.fill(&mut salt);
    let mut head = Vec::with_capacity(HEAD_LEN);
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&salt);
    // Full room at once: the buffer holds the key until it is sealed in place.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LEN));
    bytes.extend_from_slice(&head);
    bytes.extend_from_slice(key);
    let mut sealer = Sealer::new(derive(key_file.secret(), &salt, PURPOSE), 0);
    sealer.seal(&head, &mut bytes, HEAD_LEN).expect("a new sealer has all its counters left");
    write_atomic(path, &bytes, 0o600)
        .map_err(|source| TunnelKeyError::Write { path: path.to_owned(), source })
}

/// Reads what [`write_tunnel_key`] wrote.
///
/// # Errors
/// All of [`TunnelKeyError`] but the one of writing.
pub fn read_tunnel_key(
    path: &Path,
    key_file: &KeyFile,
) -> Result<Zeroizing<[u8; KEY_LEN]>, TunnelKeyError> {
    let fail = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => TunnelKeyError::Missing { path: path.to_owned() },
        _ => TunnelKeyError::Read { path: path.to_owned(), source },
    };
    let damaged = || TunnelKeyError::Damaged { path: path.to_owned() };
    let file = File::open(path).map_err(fail)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(LEN + 1));
    file.take(LEN as u64 + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() != LEN || !bytes.starts_with(MAGIC) || bytes[8..10] != VERSION.to_le_bytes() {
        return Err(damaged());
    }
    let (head, sealed) = bytes.split_at_mut(HEAD_LEN);
    let mut salt = [0; SALT_LEN];
    salt.copy_from_slice(&head[MAGIC.len() + 2..]);
    let opener = Opener::new(derive(key_file.secret(), &salt, PURPOSE));
    let text = opener.open(0, head, sealed).map_err(|_| damaged())?;
    let key: [u8; KEY_LEN] = (&*text).try_into().map_err(|_| damaged())?;
    Ok(Zeroizing::new(key))
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
        let missing = read_tunnel_key(&path, &key_file).unwrap_err();
        assert!(matches!(missing, TunnelKeyError::Missing { .. }), "{missing}");
        write_tunnel_key(&path, &[7; KEY_LEN], &key_file, &SystemRng).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(*read_tunnel_key(&path, &key_file).unwrap(), [7; KEY_LEN]);
        let good = fs::read(&path).unwrap();
        assert_eq!(good.len(), LEN);
        assert!(!good.windows(8).any(|part| part == [7; 8]), "the key is in the clear");
        let other = KeyFile::in_memory([4; 32]);
        let foreign = read_tunnel_key(&path, &other).unwrap_err();
        assert!(matches!(foreign, TunnelKeyError::Damaged { .. }), "{foreign}");
        let mut bad: Vec<Vec<u8>> = (0..LEN).map(|len| good[..len].to_vec()).collect();
        bad.extend((0..LEN).map(|at| {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            bytes
        }));
        bad.push([&good[..], b"x"].concat());
        for bytes in bad {
            fs::write(&path, bytes).unwrap();
            let damaged = read_tunnel_key(&path, &key_file).unwrap_err();
            assert!(matches!(damaged, TunnelKeyError::Damaged { .. }), "{damaged}");
        }
        let nowhere = dir.path().join("missing/tunnel");
        assert!(write_tunnel_key(&nowhere, &[7; KEY_LEN], &key_file, &SystemRng).is_err());
    }
}
