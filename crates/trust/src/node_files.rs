//! The sealed `certificate` file of a node: private key, certificate chain and trusted authorities.
//!
//! One file, written whole, so that key, certificate and authorities always
//! belong together. Sealed by the wrapping key of the node's key file: without
//! that, the disk holds no private key.
//!
//! Bytes: magic, version, mark of the wrapping key, salt, then sealed: private
//! key, chain, bundle, each list as count and lengths (u32, little endian).

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use warren_base::file::write_atomic;
use warren_base::rng::Rng;
use zeroize::Zeroizing;

use crate::bundle::{Bundle, BundleError, CHAIN_MAX};
use crate::credentials::{Identity, IdentityError};
use crate::key::NodeKey;
use crate::key_file::KeyFile;
use crate::seal::{Opener, SALT_LEN, SEAL_OVERHEAD, Sealer, derive};
use crate::x509::CERTIFICATE_LEN_MAX;

const MAGIC: &[u8; 8] = b"WRNCERT\0";
const VERSION: u16 = 1;
const MARK_LEN: usize = 8;
const HEAD_LEN: usize = MAGIC.len() + 2 + MARK_LEN + SALT_LEN;
const PURPOSE: &str = "warren node certificate";
/// Of a PKCS #8 key on P-256; ours have 138 bytes.
const KEY_LEN_MAX: usize = 512;
/// The longest chain and bundle there can be.
const LEN_MAX: usize = HEAD_LEN + KEY_LEN_MAX + 2 * CHAIN_MAX * (CERTIFICATE_LEN_MAX + 8) + 64;

/// Why a node's certificate file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateFileError {
    #[error("certificate file {path} does not exist: this node has not joined a cluster")]
    Missing { path: PathBuf },
    #[error("read certificate file {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("write certificate file {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("certificate file {path} is truncated or not a certificate file")]
    Shape { path: PathBuf },
    #[error("certificate file {path} is of version {found}, this binary knows {VERSION}")]
    Version { path: PathBuf, found: u16 },
    #[error(
        "certificate file {path} is sealed with another key than {key_file}: it is of another node, or the key file was replaced"
    )]
    OtherKey { path: PathBuf, key_file: PathBuf },
    #[error("certificate file {path} is damaged: its seal does not match")]
    Damaged { path: PathBuf },
    #[error("authorities in certificate file {path}")]
    Bundle { path: PathBuf, source: BundleError },
    #[error("identity in certificate file {path}")]
    Identity { path: PathBuf, source: IdentityError },
}

/// Writes a node's identity to `path`, mode 0600.
///
/// # Errors
/// [`CertificateFileError::Write`]; what was there is untouched then.
pub fn write_certificate(
    path: &Path,
    identity: &Identity,
    key_file: &KeyFile,
    rng: &dyn Rng,
) -> Result<(), CertificateFileError> {
    let mut salt = [0; SALT_LEN];
    rng.fill(&mut salt);
    let mut head = Vec::with_capacity(HEAD_LEN);
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&mark(key_file));
    head.extend_from_slice(&salt);
    // Full room at once: the buffer holds the key until it is sealed in place.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LEN_MAX));
    bytes.extend_from_slice(&head);
    push(&mut bytes, identity.key().pkcs8());
    for list in [identity.chain(), identity.bundle().certificates()] {
        bytes.extend_from_slice(&len(list.len()));
        for der in list {
            push(&mut bytes, der);
        }
    }
    let mut sealer = Sealer::new(derive(key_file.secret(), &salt, PURPOSE), 0);
    sealer.seal(&head, &mut bytes, HEAD_LEN).expect("a new sealer has all its counters left");
    write_atomic(path, &bytes, 0o600)
        .map_err(|source| CertificateFileError::Write { path: path.to_owned(), source })
}

/// Reads what [`write_certificate`] wrote.
///
/// # Errors
/// One of [`CertificateFileError`] for each way in which the file can be wrong. An expired
/// certificate is not one of them.
pub fn read_certificate(path: &Path, key_file: &KeyFile) -> Result<Identity, CertificateFileError> {
    let owned = || path.to_owned();
    let shape = || CertificateFileError::Shape { path: owned() };
    let mut bytes = load(path)?;
    if bytes.len() < HEAD_LEN + SEAL_OVERHEAD || &bytes[..MAGIC.len()] != MAGIC {
        return Err(shape());
    }
    let (head, sealed) = bytes.split_at_mut(HEAD_LEN);
    let found = u16::from_le_bytes([head[8], head[9]]);
    if found != VERSION {
        return Err(CertificateFileError::Version { path: owned(), found });
    }
    if head[10..10 + MARK_LEN] != mark(key_file) {
        let key_file = key_file.path().to_owned();
        return Err(CertificateFileError::OtherKey { path: owned(), key_file });
    }
    let mut salt = [0; SALT_LEN];
    salt.copy_from_slice(&head[10 + MARK_LEN..]);
    let opener = Opener::new(derive(key_file.secret(), &salt, PURPOSE));
    let text = opener.open(0, head, sealed);
    let text = text.map_err(|_| CertificateFileError::Damaged { path: owned() })?;
    let (key, chain, bundle) = parse(text).ok_or_else(shape)?;
    let bundle = Bundle::new(&bundle)
        .map_err(|source| CertificateFileError::Bundle { path: owned(), source })?;
    let key = NodeKey::from_pkcs8(key).map_err(IdentityError::from);
    key.and_then(|key| Identity::new(key, &chain, bundle))
        .map_err(|source| CertificateFileError::Identity { path: owned(), source })
}

/// Tells another key file from damage; says nothing else about the key.
fn mark(key_file: &KeyFile) -> [u8; MARK_LEN] {
    let mut sealer = Sealer::new(derive(key_file.secret(), &[0; SALT_LEN], "warren key mark"), 0);
    let mut bytes = Vec::with_capacity(SEAL_OVERHEAD);
    sealer.seal(b"", &mut bytes, 0).expect("a new sealer has all its counters left");
    let mut mark = [0; MARK_LEN];
    mark.copy_from_slice(&bytes[..MARK_LEN]);
    mark
}

fn load(path: &Path) -> Result<Zeroizing<Vec<u8>>, CertificateFileError> {
    let fail = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => CertificateFileError::Missing { path: path.to_owned() },
        _ => CertificateFileError::Read { path: path.to_owned(), source },
    };
    let file = File::open(path).map_err(fail)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(LEN_MAX + 1));
    file.take(LEN_MAX as u64 + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() > LEN_MAX {
        return Err(CertificateFileError::Shape { path: path.to_owned() });
    }
    Ok(bytes)
}

fn len(len: usize) -> [u8; 4] {
    u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes()
}

fn push(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&len(bytes.len()));
    out.extend_from_slice(bytes);
}

type Parts<'a> = (&'a [u8], Vec<Vec<u8>>, Vec<Vec<u8>>);

fn parse(text: &[u8]) -> Option<Parts<'_>> {
    let mut rest = text;
    let key = take(&mut rest)?;
    let mut lists = [vec![], vec![]];
    for list in &mut lists {
        let count = take_len(&mut rest)?;
        if count > CHAIN_MAX {
            return None;
        }
        for _ in 0..count {
            list.push(take(&mut rest)?.to_vec());
        }
    }
    let [chain, bundle] = lists;
    rest.is_empty().then_some((key, chain, bundle))
}

fn take_len(rest: &mut &[u8]) -> Option<usize> {
    let (len, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    usize::try_from(u32::from_le_bytes(*len)).ok()
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = take_len(rest)?;
    let (bytes, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;
    use warren_base::rng::SystemRng;

    use super::*;
    use crate::testing::{NOW, authority, identity, manager};

    fn name(result: Result<Identity, CertificateFileError>) -> &'static str {
        match result {
            Ok(_) => "ok",
            Err(CertificateFileError::Missing { .. }) => "missing",
            Err(CertificateFileError::Read { .. }) => "read",
            Err(CertificateFileError::Write { .. }) => "write",
            Err(CertificateFileError::Shape { .. }) => "shape",
            Err(CertificateFileError::Version { .. }) => "version",
            Err(CertificateFileError::OtherKey { .. }) => "other key",
            Err(CertificateFileError::Damaged { .. }) => "damaged",
            Err(CertificateFileError::Bundle { .. }) => "bundle",
            Err(CertificateFileError::Identity { .. }) => "identity",
        }
    }

    #[test]
    fn identities_are_kept_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("certificate");
        let key_file = KeyFile::in_memory([3; 32]);
        assert_eq!(name(read_certificate(&path, &key_file)), "missing");
        let kept = identity(&authority(1).rotate(NOW).unwrap(), &manager(2), NOW);
        write_certificate(&path, &kept, &key_file, &SystemRng).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let read = read_certificate(&path, &key_file).unwrap();
        assert_eq!(read.key().pkcs8(), kept.key().pkcs8());
        assert_eq!((read.chain(), read.bundle()), (kept.chain(), kept.bundle()));
        assert_eq!(read.peer(), kept.peer());
        let bytes = fs::read(&path).unwrap();
        let secret = &kept.key().pkcs8()[36..68];
        assert!(kept.key().pkcs8().windows(32).any(|part| part == secret));
        assert!(!bytes.windows(32).any(|part| part == secret), "the key is in the clear");
        // Again: another salt, so nothing repeats.
        write_certificate(&path, &kept, &key_file, &SystemRng).unwrap();
        assert_ne!(fs::read(&path).unwrap()[HEAD_LEN..], bytes[HEAD_LEN..]);
        let other = KeyFile::in_memory([4; 32]);
        assert_eq!(name(read_certificate(&path, &other)), "other key");
        let nowhere = dir.path().join("missing/certificate");
        assert!(write_certificate(&nowhere, &kept, &key_file, &SystemRng).is_err());
        assert_eq!(name(read_certificate(dir.path(), &key_file)), "read");
    }

    #[test]
    fn damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("certificate");
        let key_file = KeyFile::in_memory([3; 32]);
        let kept = identity(&authority(1), &manager(2), NOW);
        write_certificate(&path, &kept, &key_file, &SystemRng).unwrap();
        let good = fs::read(&path).unwrap();
        let check = |bytes: &[u8], expected: &[&str]| {
            fs::write(&path, bytes).unwrap();
            let got = name(read_certificate(&path, &key_file));
            assert!(expected.contains(&got), "{got}");
        };
        for len in (0..good.len()).step_by(7) {
            check(&good[..len], &["shape", "damaged"]);
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            let expected = match at {
                0..8 => "shape",
                8..10 => "version",
                10..18 => "other key",
                _ => "damaged",
            };
            check(&bad, &[expected]);
        }
        check(&vec![1; LEN_MAX + 1], &["shape"]);
        check(&[&good[..], b"x"].concat(), &["damaged"]);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
