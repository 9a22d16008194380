//! The key file: the wrapping key of a node, as one line of text.
//!
//! `warren-key-1 <64 hex digits> <8 hex digits of SHA-256>`: text, so that it
//! can be kept in a vault or on paper; with a check value, so that a damaged
//! file is told from a foreign one.
//!
//! With autolock the file is `warren-locked-1 <salt> <sealed key> <check>`: the
//! same key, sealed by the cluster's unlock key. Locking and unlocking rewrite
//! the file whole; the wrapping key never changes, so nothing else is touched,
//! and after a crash the file is of one kind or the other.
//!
//! Not here: overwriting the old blocks of the disk. Who fears for them makes
//! the cluster with autolock from the start, or rotates the data keys after it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use warren_base::file::write_atomic;
use warren_base::rng::Rng;
use zeroize::Zeroizing;

use crate::seal::{Opener, SALT_LEN, SEAL_OVERHEAD, Sealer, derive};
use crate::unlock::UnlockKey;

const TAG: &str = "warren-key-1";
const LOCKED_TAG: &str = "warren-locked-1";
/// Bytes of the sealed key.
const SEALED_LEN: usize = 32 + SEAL_OVERHEAD;
/// Longer than a locked file with its 187 characters; editors add a line end.
const LEN_MAX: usize = 256;
const PURPOSE: &str = "warren autolock";
/// In place of a path, for keys without a file.
const MEMORY: &str = "(memory)";

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
    #[error(
        "key file {path} is of version {found:?}, this binary knows {TAG:?} and {LOCKED_TAG:?}"
    )]
    Version { path: PathBuf, found: String },
    #[error("key file {path} is locked; it opens with the cluster's unlock key")]
    Locked { path: PathBuf },
    #[error("key file {path} holds another key than when it was read; it is left alone")]
    Changed { path: PathBuf },
    #[error("key file {path} does not open with this unlock key")]
    WrongUnlockKey { path: PathBuf },
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
        Self { key: Zeroizing::new(key), path: PathBuf::from(MEMORY) }
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
    /// One of [`KeyFileError`] for each way in which the file can be wrong;
    /// [`KeyFileError::Locked`] when only [`KeyFile::unlock`] can read it.
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        match load(path)? {
            Content::Plain(key) => Ok(Self { key, path: path.to_owned() }),
            Content::Locked { .. } => Err(KeyFileError::Locked { path: path.to_owned() }),
        }
    }

    /// Reads the key at `path` with the cluster's unlock key. A file that is not locked is read
    /// all the same.
    ///
    /// # Errors
    /// As [`KeyFile::read`], and [`KeyFileError::WrongUnlockKey`].
    pub fn unlock(path: &Path, unlock: &UnlockKey) -> Result<Self, KeyFileError> {
        let key = match load(path)? {
            Content::Plain(key) => key,
            Content::Locked { salt, sealed } => open(&salt, &sealed, unlock)
                .ok_or_else(|| KeyFileError::WrongUnlockKey { path: path.to_owned() })?,
        };
        Ok(Self { key, path: path.to_owned() })
    }

    /// Makes the file locked by this unlock key, or open. Says whether it had to be written; a
    /// key that lives in memory has none.
    ///
    /// # Errors
    /// As [`KeyFile::read`]; [`KeyFileError::Changed`] when the file holds another key by now,
    /// [`KeyFileError::Write`] when the disk refuses. The file is as before then.
    pub fn set_lock(
        &self,
        unlock: Option<&UnlockKey>,
        rng: &dyn Rng,
    ) -> Result<bool, KeyFileError> {
        let fail = |source| KeyFileError::Write { path: self.path.clone(), source };
        let other = || KeyFileError::Changed { path: self.path.clone() };
        if self.path == Path::new(MEMORY) {
            return Ok(false);
        }
        match (load(&self.path)?, unlock) {
            (Content::Plain(found), _) if found != self.key => return Err(other()),
            (Content::Plain(_), None) => return Ok(false),
            (Content::Locked { salt, sealed }, Some(unlock)) => {
                match open(&salt, &sealed, unlock) {
                    Some(found) if found == self.key => return Ok(false),
                    Some(_) => return Err(other()),
                    // Locked by an older unlock key.
                    None => {}
                }
            }
            (Content::Plain(_), Some(_)) | (Content::Locked { .. }, None) => {}
        }
        let text = match unlock {
            Some(unlock) => to_locked_text(&self.key, unlock, rng),
            None => to_text(&self.key),
        };
        // The file itself, should `path` be a link to where it is kept.
        let target = self.path.canonicalize().map_err(fail)?;
        sweep(&target).map_err(fail)?;
        write_atomic(&target, text.as_bytes(), 0o600).map_err(fail)?;
        Ok(true)
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

/// What a key file holds.
enum Content {
    Plain(Zeroizing<[u8; 32]>),
    Locked { salt: [u8; SALT_LEN], sealed: [u8; SEALED_LEN] },
}

fn load(path: &Path) -> Result<Content, KeyFileError> {
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

/// Removes what a crash left of an earlier writing: it may hold the key in the clear.
fn sweep(target: &Path) -> io::Result<()> {
    let (Some(folder), Some(name)) = (target.parent(), target.file_name()) else {
        return Ok(());
    };
    let prefix = [name.as_encoded_bytes(), b"."].concat();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let found = entry.file_name();
        let found = found.as_encoded_bytes();
        if found.starts_with(&prefix) && found.ends_with(b".tmp") {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn open(
    salt: &[u8; SALT_LEN],
    sealed: &[u8; SEALED_LEN],
    unlock: &UnlockKey,
) -> Option<Zeroizing<[u8; 32]>> {
    let mut buffer = Zeroizing::new(*sealed);
    let opener = Opener::new(derive(unlock.as_bytes(), salt, PURPOSE));
    let key = opener.open(0, LOCKED_TAG.as_bytes(), buffer.as_mut_slice()).ok()?;
    let mut out = Zeroizing::new([0; 32]);
    out.copy_from_slice(key);
    Some(out)
}

fn check_value(bytes: &[u8]) -> [u8; 4] {
    let hash = digest(&SHA256, bytes);
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
    push_hex(&mut text, &check_value(key.as_slice()));
    text.push('\n');
    text
}

fn to_locked_text(key: &[u8; 32], unlock: &UnlockKey, rng: &dyn Rng) -> Zeroizing<String> {
    let mut salt = [0; SALT_LEN];
    rng.fill(&mut salt);
    // Full room at once: the buffer holds the key until it is sealed in place.
    let mut bytes = Vec::with_capacity(SALT_LEN + SEALED_LEN);
    bytes.extend_from_slice(&salt);
    bytes.extend_from_slice(key);
    let mut sealer = Sealer::new(derive(unlock.as_bytes(), &salt, PURPOSE), 0);
    sealer
        .seal(LOCKED_TAG.as_bytes(), &mut bytes, SALT_LEN)
        .expect("a new sealer has all its counters left");
    let mut text = Zeroizing::new(String::with_capacity(LEN_MAX));
    text.push_str(LOCKED_TAG);
    text.push(' ');
    push_hex(&mut text, &bytes[..SALT_LEN]);
    text.push(' ');
    push_hex(&mut text, &bytes[SALT_LEN..]);
    text.push(' ');
    push_hex(&mut text, &check_value(&bytes));
    text.push('\n');
    text
}

fn parse(text: &str, path: &Path) -> Result<Content, KeyFileError> {
    let shape = || KeyFileError::Shape { path: path.to_owned() };
    let damaged = || KeyFileError::Damaged { path: path.to_owned() };
    let mut words = text.split_ascii_whitespace();
    let tag = words.next().ok_or_else(shape)?;
    let locked = match tag {
        TAG => false,
        LOCKED_TAG => true,
        // A version of ours, or no key file at all; never show what may be a key.
        other => {
            let version = ["warren-key-", "warren-locked-"].map(|kind| other.strip_prefix(kind));
            let ours = version.into_iter().flatten().any(|v| v.parse::<u32>().is_ok());
            let found = other.to_owned();
            return Err(if ours {
                KeyFileError::Version { path: path.to_owned(), found }
            } else {
                shape()
            });
        }
    };
    let mut word = |bytes: usize| words.next().filter(|w| w.len() == 2 * bytes).ok_or_else(shape);
    let content = if locked {
        let (salt, sealed, check) = (word(SALT_LEN)?, word(SEALED_LEN)?, word(4)?);
        let (Some(salt), Some(sealed), Some(check)) =
            (from_hex::<SALT_LEN>(salt), from_hex::<SEALED_LEN>(sealed), from_hex::<4>(check))
        else {
            return Err(damaged());
        };
        if check_value(&[salt.as_slice(), sealed.as_slice()].concat()) != *check {
            return Err(damaged());
        }
        Content::Locked { salt: *salt, sealed: *sealed }
    } else {
        let (key, check) = (word(32)?, word(4)?);
        let (Some(key), Some(check)) = (from_hex::<32>(key), from_hex::<4>(check)) else {
            return Err(damaged());
        };
        if check_value(key.as_slice()) != *check {
            return Err(damaged());
        }
        Content::Plain(key)
    };
    match words.next() {
        None => Ok(content),
        Some(_) => Err(shape()),
    }
}

#[cfg(test)]
mod tests;
