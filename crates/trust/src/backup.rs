//! Encryption of backup files: by a passphrase, or for the holder of a key.
//!
//! A backup leaves the cluster and its keys, so it carries all it needs to be
//! opened by a person: the head says how the file's key is found (Argon2id of a
//! passphrase, or HPKE of RFC 9180 to a public key), then chunks of at most 64
//! KiB follow, each sealed under its number, the last one marked. Both ends
//! stream; a file that was cut anywhere is told from a whole one.
//!
//! Bytes: magic, version, kind, salt, then by kind the costs of Argon2 or the
//! encapsulated key; an empty sealed record, which tells a wrong passphrase
//! before anything is read; chunks of length (u32, highest bit: last) and text.
//!
//! Not here: what is in a backup (the store), where it is put.

use std::io::{self, Read, Write};

use warren_base::rng::Rng;
use zeroize::Zeroizing;

use crate::seal::{Opener, SALT_LEN, SEAL_OVERHEAD, SealError, Sealer};

mod head;
mod recipient;

pub use recipient::{BackupKey, BackupKeyError, Recipient};

/// Text of a chunk: large enough that sealing costs next to nothing, small enough to hold.
const CHUNK_LEN: usize = 64 * 1024;
/// In the length of a chunk: nothing follows.
const LAST: u32 = 1 << 31;

/// Why a backup cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("write the backup")]
    Write(#[source] io::Error),
    #[error("read the backup")]
    Read(#[source] io::Error),
    #[error("encrypt the backup: the passphrase is empty")]
    EmptyPassphrase,
    #[error("encrypt the backup: {reason}")]
    Encrypt { reason: String },
    #[error("this is not a backup of Warren")]
    NotBackup,
    #[error("the backup is of version {found}, this binary knows {known}", known = head::VERSION)]
    Version { found: u16 },
    #[error("the backup is encrypted by a passphrase, not for a key")]
    NeedsPassphrase,
    #[error("the backup is encrypted for a key, not by a passphrase")]
    NeedsKey,
    #[error("the passphrase is not the one of this backup")]
    WrongPassphrase,
    #[error("the key is not the one that this backup is for")]
    WrongKey,
    #[error("the backup asks for more memory or time than any of Warren's does: it is damaged")]
    Costs,
    #[error("the backup is cut off: its end is missing")]
    Truncated,
    #[error("the backup is damaged at chunk {chunk}")]
    Damaged { chunk: u64 },
}

/// What a backup is encrypted with.
#[derive(Clone)]
pub enum BackupLock {
    Passphrase(Zeroizing<String>),
    Recipient(Recipient),
}

/// What a backup is opened with.
pub enum BackupUnlock {
    Passphrase(Zeroizing<String>),
    Key(BackupKey),
}

/// Begins a backup: what is written to the result goes encrypted to `out`. The caller ends it
/// by [`Encryptor::finish`]; without that the file counts as cut off.
///
/// # Errors
/// [`BackupError`] when the lock is not usable or `out` refuses.
pub fn encrypt<W: Write>(
    mut out: W,
    lock: &BackupLock,
    rng: &dyn Rng,
) -> Result<Encryptor<W>, BackupError> {
    let mut salt = [0; SALT_LEN];
    rng.fill(&mut salt);
    let (head, key) = head::make(lock, &salt)?;
    let mut sealer = Sealer::new(head::chunk_key(&key, &salt), 0);
    let mut check = Vec::with_capacity(SEAL_OVERHEAD);
    let seal = |error: SealError| BackupError::Encrypt { reason: error.to_string() };
    sealer.seal(&head, &mut check, 0).map_err(seal)?;
    out.write_all(&head).and_then(|()| out.write_all(&check)).map_err(BackupError::Write)?;
    Ok(Encryptor { out, sealer, buffer: Zeroizing::new(Vec::with_capacity(ROOM)) })
}

/// Opens a backup for reading.
///
/// # Errors
/// [`BackupError`] for what is not a backup, or not one for this passphrase or key. Later damage
/// comes out of reading, as an [`io::Error`] with a [`BackupError`] inside.
pub fn decrypt<R: Read>(mut input: R, unlock: &BackupUnlock) -> Result<Decryptor<R>, BackupError> {
    let head = head::Head::read(&mut input)?;
    let key = head.key(unlock)?;
    let opener = Opener::new(head::chunk_key(&key, &head.salt));
    let mut check = [0; SEAL_OVERHEAD];
    head::read_exact(&mut input, &mut check)?;
    opener.open(0, &head.bytes, &mut check).map_err(|_| match unlock {
        BackupUnlock::Passphrase(_) => BackupError::WrongPassphrase,
        BackupUnlock::Key(_) => BackupError::WrongKey,
    })?;
    let buffer = Zeroizing::new(Vec::with_capacity(ROOM));
    Ok(Decryptor { input, opener, buffer, at: 0, chunk: 0, last: false })
}

/// Room for a sealed chunk: buffers with plain text never grow, so that no copy is left behind.
const ROOM: usize = CHUNK_LEN + SEAL_OVERHEAD;

/// Encrypts what is written to it.
pub struct Encryptor<W: Write> {
    out: W,
    sealer: Sealer,
    buffer: Zeroizing<Vec<u8>>,
}

impl<W: Write> Encryptor<W> {
    /// Writes the end, without which a backup is no good. The caller syncs the file.
    ///
    /// # Errors
    /// Whatever the place where it goes to says.
    pub fn finish(mut self) -> Result<W, BackupError> {
        self.chunk(true).and_then(|()| self.out.flush()).map_err(BackupError::Write)?;
        Ok(self.out)
    }

    fn chunk(&mut self, last: bool) -> io::Result<()> {
        let len = u32::try_from(self.buffer.len()).map_err(io::Error::other)?;
        let mark = (if last { len | LAST } else { len }).to_le_bytes();
        self.sealer.seal(&mark, &mut self.buffer, 0).map_err(io::Error::other)?;
        self.out.write_all(&mark)?;
        self.out.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

impl<W: Write> Write for Encryptor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() == CHUNK_LEN {
            self.chunk(false)?;
        }
        let taken = bytes.len().min(CHUNK_LEN - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    /// Passes on what is encrypted; a chunk that is not full stays.
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Gives the text of a backup. Nothing comes out of a chunk before its seal was checked; that
/// the backup is whole is known only when reading says that it is at its end.
pub struct Decryptor<R: Read> {
    input: R,
    opener: Opener,
    buffer: Zeroizing<Vec<u8>>,
    at: usize,
    chunk: u64,
    last: bool,
}

impl<R: Read> Decryptor<R> {
    fn next(&mut self) -> Result<(), BackupError> {
        let mut mark = [0; 4];
        head::read_exact(&mut self.input, &mut mark)?;
        let len = u32::from_le_bytes(mark);
        let (last, len) = (len & LAST != 0, usize::try_from(len & !LAST).unwrap_or(usize::MAX));
        self.chunk += 1;
        let damaged = BackupError::Damaged { chunk: self.chunk };
        if len > CHUNK_LEN {
            return Err(damaged);
        }
        self.at = 0;
        self.buffer.clear();
        self.buffer.resize(len + SEAL_OVERHEAD, 0);
        let opened = head::read_exact(&mut self.input, &mut self.buffer).and_then(|()| {
            self.opener.open(self.chunk, &mark, &mut self.buffer).map_err(|_| damaged)
        });
        if let Err(error) = opened {
            self.buffer.clear();
            return Err(error);
        }
        self.buffer.truncate(len);
        self.last = last;
        let mut more = [0];
        if last && self.input.read(&mut more).map_err(BackupError::Read)? != 0 {
            return Err(BackupError::Damaged { chunk: self.chunk + 1 });
        }
        Ok(())
    }
}

impl<R: Read> Read for Decryptor<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.buffer.len() && !self.last && !out.is_empty() {
            self.next().map_err(|error| match error {
                BackupError::Read(error) => error,
                BackupError::Truncated => io::Error::new(io::ErrorKind::UnexpectedEof, error),
                error => io::Error::new(io::ErrorKind::InvalidData, error),
            })?;
        }
        let len = out.len().min(self.buffer.len() - self.at);
        out[..len].copy_from_slice(&self.buffer[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

#[cfg(test)]
mod tests;
