//! The key file: the wrapping key of a node, as one line of text.
//!
//! `warren-key-1 <64 hex digits> <8 hex digits of SHA-256>`: text, so that it
//! can be kept in a vault or on paper; with a check value, so that a damaged
//! file is told from a foreign one.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use warren_base::file::write_atomic;
use warren_base::rng::Rng;
use zeroize::Zeroizing;

const TAG: &str = "warren-key-1";
/// Tag, key, check value, two spaces, line end; a little room for editors that add a line end.
const LEN_MAX: usize = 128;

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error(
        "key file {path} does not exist; without it the data of this node cannot be read: restore it from where it is kept"
    )]
    Missing { path: PathBuf },
    #[error("key file {path} exists already; it is not overwritten")]
    Exists { path: PathBuf },
    #[error("read key file {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("write key file {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("key file {path} is readable by others (mode {mode:o}); run: chmod 600 {path}")]
    TooOpen { path: PathBuf, mode: u32 },
    #[error("key file {path} is truncated or not a key file")]
    Shape { path: PathBuf },
    #[error("key file {path} is of version {found:?}, this binary knows {TAG:?}")]
    Version { path: PathBuf, found: String },
    #[error("key file {path} is damaged: its check value does not match")]
    Damaged { path: PathBuf },
}

/// The wrapping key of a node.
pub struct KeyFile {
    key: Zeroizing<[u8; 32]>,
    path: PathBuf,
}

impl KeyFile {
    /// A key that lives in memory only: for simulations.
    pub fn in_memory(key: [u8; 32]) -> Self {
        Self { key: Zeroizing::new(key), path: PathBuf::from("(memory)") }
    }

    /// Makes a new key and writes it to `path`, mode 0600; missing folders are made, mode 0700.
    ///
    /// # Errors
    /// [`KeyFileError::Exists`] when something is there, [`KeyFileError::Write`] when the disk refuses.
    pub fn create(path: &Path, rng: &dyn Rng) -> Result<Self, KeyFileError> {
        let fail = |source| KeyFileError::Write { path: path.to_owned(), source };
        if path.try_exists().map_err(fail)? {
            return Err(KeyFileError::Exists { path: path.to_owned() });
        }
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            use std::os::unix::fs::DirBuilderExt;
            let mut builder = std::fs::DirBuilder::new();
            builder.recursive(true).mode(0o700).create(folder).map_err(fail)?;
        }
        let mut key = Zeroizing::new([0; 32]);
        rng.fill(key.as_mut_slice());
        write_atomic(path, to_text(&key).as_bytes(), 0o600).map_err(fail)?;
        Ok(Self { key, path: path.to_owned() })
    }

    /// Reads the key at `path`.
    ///
    /// # Errors
    /// One of [`KeyFileError`] for each way in which the file can be wrong.
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        let owned = || path.to_owned();
        let fail = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => KeyFileError::Missing { path: owned() },
            _ => KeyFileError::Read { path: owned(), source },
        };
        let file = File::open(path).map_err(fail)?;
        let mode = file.metadata().map_err(fail)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyFileError::TooOpen { path: owned(), mode });
        }
        // Room for the longest file at once: a growing buffer would leave copies of the key behind.
        let mut text = Zeroizing::new(String::with_capacity(LEN_MAX + 1));
        let read = file.take(LEN_MAX as u64 + 1).read_to_string(&mut text);
        match read {
            Ok(len) if len <= LEN_MAX => {}
            Ok(_) => return Err(KeyFileError::Shape { path: owned() }),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(KeyFileError::Damaged { path: owned() });
            }
            Err(source) => return Err(KeyFileError::Read { path: owned(), source }),
        }
        parse(&text, path)
    }

    /// Reads the key at `path`, or makes it when nothing is there.
    ///
    /// # Errors
    /// As [`KeyFile::read`] and [`KeyFile::create`].
    pub fn read_or_create(path: &Path, rng: &dyn Rng) -> Result<Self, KeyFileError> {
        match Self::read(path) {
            Err(KeyFileError::Missing { .. }) => Self::create(path, rng),
            other => other,
        }
    }

    /// Where it was read from, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn secret(&self) -> &[u8; 32] {
        &self.key
    }
}

fn check_value(key: &[u8; 32]) -> [u8; 4] {
    let hash = digest(&SHA256, key);
    let mut check = [0; 4];
    check.copy_from_slice(&hash.as_ref()[..4]);
    check
}

fn push_hex(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        for nibble in [byte >> 4, byte & 15] {
            out.push(char::from_digit(u32::from(nibble), 16).expect("a nibble is below 16"));
        }
    }
}

fn from_hex<const N: usize>(text: &str) -> Option<Zeroizing<[u8; N]>> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut out = Zeroizing::new([0; N]);
    for (slot, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *slot = u8::try_from(high << 4 | low).ok()?;
    }
    Some(out)
}

fn to_text(key: &[u8; 32]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(LEN_MAX));
    text.push_str(TAG);
    text.push(' ');
    push_hex(&mut text, key);
    text.push(' ');
    push_hex(&mut text, &check_value(key));
    text.push('\n');
    text
}

fn parse(text: &str, path: &Path) -> Result<KeyFile, KeyFileError> {
    let owned = || path.to_owned();
    let mut words = text.split_ascii_whitespace();
    let tag = words.next().ok_or_else(|| KeyFileError::Shape { path: owned() })?;
    if tag != TAG {
        // A version of ours, or no key file at all; never show what may be a key.
        let ours = tag.strip_prefix("warren-key-").filter(|v| v.parse::<u32>().is_ok());
        return Err(match ours {
            Some(_) => KeyFileError::Version { path: owned(), found: tag.to_owned() },
            None => KeyFileError::Shape { path: owned() },
        });
    }
    let (Some(key), Some(check), None) = (words.next(), words.next(), words.next()) else {
        return Err(KeyFileError::Shape { path: owned() });
    };
    if key.len() != 64 || check.len() != 8 {
        return Err(KeyFileError::Shape { path: owned() });
    }
    let (Some(key), Some(check)) = (from_hex::<32>(key), from_hex::<4>(check)) else {
        return Err(KeyFileError::Damaged { path: owned() });
    };
    if check_value(&key) != *check {
        return Err(KeyFileError::Damaged { path: owned() });
    }
    Ok(KeyFile { key, path: owned() })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use warren_base::rng::SystemRng;

    use super::*;

    fn written(bytes: &[u8], mode: u32) -> Result<KeyFile, KeyFileError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        KeyFile::read(&path)
    }

    fn name(result: Result<KeyFile, KeyFileError>) -> &'static str {
        match result {
            Ok(_) => "ok",
            Err(KeyFileError::Missing { .. }) => "missing",
            Err(KeyFileError::Exists { .. }) => "exists",
            Err(KeyFileError::Read { .. }) => "read",
            Err(KeyFileError::Write { .. }) => "write",
            Err(KeyFileError::TooOpen { .. }) => "open",
            Err(KeyFileError::Shape { .. }) => "shape",
            Err(KeyFileError::Version { .. }) => "version",
            Err(KeyFileError::Damaged { .. }) => "damaged",
        }
    }

    #[test]
    fn a_new_key_is_read_back_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/keys/node.key");
        assert_eq!(name(KeyFile::read(&path)), "missing");
        let made = KeyFile::create(&path, &SystemRng).unwrap();
        let read = KeyFile::read(&path).unwrap();
        assert_eq!(made.secret(), read.secret());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(name(KeyFile::create(&path, &SystemRng)), "exists");
        assert_eq!(KeyFile::read_or_create(&path, &SystemRng).unwrap().secret(), made.secret());
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_refused() {
        let good = to_text(&[7; 32]);
        let good = good.as_bytes();
        assert_eq!(name(written(good, 0o600)), "ok");
        assert_eq!(name(written(good, 0o400)), "ok");
        assert_eq!(name(written(good, 0o640)), "open");
        // Without its line end it is still whole.
        for len in 0..good.len() - 1 {
            assert_eq!(name(written(&good[..len], 0o600)), "shape", "cut at {len}");
        }
        for bit in 0..(good.len() - 1) * 8 {
            let mut bad = good.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            let got = name(written(&bad, 0o600));
            // Hex digits have two cases: such a flip changes nothing.
            let same = good.eq_ignore_ascii_case(&bad) && bit / 8 > TAG.len();
            assert_eq!(got == "ok", same, "bit {bit}: {got}");
        }
        assert_eq!(name(written(&[b'a'; 4096], 0o600)), "shape");
        assert_eq!(name(written(b"warren-key-2 00 00\n", 0o600)), "version");
    }
}
