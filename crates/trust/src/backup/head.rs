//! The head of a backup file: how the file's key is found.

use std::io::Read;

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::LessSafeKey;
use zeroize::Zeroizing;

use super::recipient::{ENCAPSULATED_LEN, WRAPPED_LEN};
use super::{BackupError, BackupLock, BackupUnlock};
use crate::seal::{SALT_LEN, derive};

const MAGIC: &[u8; 8] = b"WRNBKUP\0";
pub(super) const VERSION: u16 = 1;
const FIXED_LEN: usize = MAGIC.len() + 2 + 1 + SALT_LEN;
const BY_PASSPHRASE: u8 = 0;
const FOR_KEY: u8 = 1;

/// RFC 9106, section 4, the choice for less memory: 64 MiB, three passes, four lanes.
const COSTS: Costs = Costs { memory_kib: 64 * 1024, passes: 3, lanes: 4 };
/// Beyond these a file is not ours: opening it would take the machine instead.
const COSTS_MAX: Costs = Costs { memory_kib: 1024 * 1024, passes: 16, lanes: 16 };

#[derive(Clone, Copy)]
struct Costs {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

enum Kind {
    Passphrase(Costs),
    Key { encapsulated: [u8; ENCAPSULATED_LEN], wrapped: [u8; WRAPPED_LEN] },
}

pub(super) struct Head {
    pub(super) bytes: Vec<u8>,
    pub(super) salt: [u8; SALT_LEN],
    kind: Kind,
}

/// A new head and the file's key.
pub(super) fn make(
    lock: &BackupLock,
    salt: &[u8; SALT_LEN],
) -> Result<(Vec<u8>, Zeroizing<[u8; 32]>), BackupError> {
    let mut head = Vec::from(MAGIC);
    head.extend_from_slice(&VERSION.to_le_bytes());
    match lock {
        BackupLock::Passphrase(passphrase) if passphrase.is_empty() => {
            Err(BackupError::EmptyPassphrase)
        }
        BackupLock::Passphrase(passphrase) => {
            head.push(BY_PASSPHRASE);
            head.extend_from_slice(salt);
            for cost in [COSTS.memory_kib, COSTS.passes, COSTS.lanes] {
                head.extend_from_slice(&cost.to_le_bytes());
            }
            let key = stretch(passphrase, salt, COSTS);
            Ok((head, key.map_err(|reason| BackupError::Encrypt { reason })?))
        }
        BackupLock::Recipient(recipient) => {
            head.push(FOR_KEY);
            head.extend_from_slice(salt);
            let (encapsulated, wrapped, key) =
                recipient.wrap().map_err(|reason| BackupError::Encrypt { reason })?;
            head.extend_from_slice(&encapsulated);
            head.extend_from_slice(&wrapped);
            Ok((head, key))
        }
    }
}

/// The key of the chunks; the salt makes it another one for each file.
pub(super) fn chunk_key(key: &[u8; 32], salt: &[u8; SALT_LEN]) -> LessSafeKey {
    derive(key, salt, "warren backup")
}

impl Head {
    pub(super) fn read(input: &mut dyn Read) -> Result<Self, BackupError> {
        let mut bytes = vec![0; FIXED_LEN];
        let (magic, rest) = bytes.split_at_mut(MAGIC.len());
        match read_exact(input, magic) {
            Ok(()) if magic == MAGIC => {}
            Ok(()) | Err(BackupError::Truncated) => return Err(BackupError::NotBackup),
            Err(error) => return Err(error),
        }
        read_exact(input, rest)?;
        let found = u16::from_le_bytes([bytes[8], bytes[9]]);
        if found != VERSION {
            return Err(BackupError::Version { found });
        }
        let mut salt = [0; SALT_LEN];
        salt.copy_from_slice(&bytes[11..]);
        let kind = match bytes[10] {
            BY_PASSPHRASE => {
                let mut costs = [0; 12];
                read_exact(input, &mut costs)?;
                bytes.extend_from_slice(&costs);
                let [memory_kib, passes, lanes] = [0, 4, 8].map(|at| {
                    u32::from_le_bytes([costs[at], costs[at + 1], costs[at + 2], costs[at + 3]])
                });
                Kind::Passphrase(Costs { memory_kib, passes, lanes })
            }
            FOR_KEY => {
                let (mut encapsulated, mut wrapped) = ([0; ENCAPSULATED_LEN], [0; WRAPPED_LEN]);
                read_exact(input, &mut encapsulated)?;
                read_exact(input, &mut wrapped)?;
                bytes.extend_from_slice(&encapsulated);
                bytes.extend_from_slice(&wrapped);
                Kind::Key { encapsulated, wrapped }
            }
            _ => return Err(BackupError::NotBackup),
        };
        Ok(Self { bytes, salt, kind })
    }

    pub(super) fn key(&self, unlock: &BackupUnlock) -> Result<Zeroizing<[u8; 32]>, BackupError> {
        match (&self.kind, unlock) {
            (Kind::Passphrase(costs), BackupUnlock::Passphrase(passphrase)) => {
                if costs.memory_kib > COSTS_MAX.memory_kib
                    || costs.passes > COSTS_MAX.passes
                    || costs.lanes > COSTS_MAX.lanes
                {
                    return Err(BackupError::Costs);
                }
                stretch(passphrase, &self.salt, *costs).map_err(|_| BackupError::Costs)
            }
            (Kind::Key { encapsulated, wrapped }, BackupUnlock::Key(key)) => {
                key.unwrap_key(encapsulated, wrapped).ok_or(BackupError::WrongKey)
            }
            (Kind::Passphrase(_), BackupUnlock::Key(_)) => Err(BackupError::NeedsPassphrase),
            (Kind::Key { .. }, BackupUnlock::Passphrase(_)) => Err(BackupError::NeedsKey),
        }
    }
}

/// Fills `out`, or says that the backup ends before.
pub(super) fn read_exact(input: &mut dyn Read, out: &mut [u8]) -> Result<(), BackupError> {
    input.read_exact(out).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => BackupError::Truncated,
        _ => BackupError::Read(error),
    })
}

fn stretch(
    passphrase: &str,
    salt: &[u8; SALT_LEN],
    costs: Costs,
) -> Result<Zeroizing<[u8; 32]>, String> {
    let text = |error: argon2::Error| error.to_string();
    let params =
        Params::new(costs.memory_kib, costs.passes, costs.lanes, Some(32)).map_err(text)?;
    let mut key = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.as_bytes(), salt, key.as_mut_slice())
        .map_err(text)?;
    Ok(key)
}
