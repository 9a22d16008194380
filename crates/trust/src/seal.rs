//! Authenticated encryption of records: AES-256-GCM, counter nonces.
//!
//! A [`Sealer`] counts its own nonces upwards and cannot be cloned, so one
//! sealer never uses a nonce twice. Whoever makes a sealer brings a salt that
//! was never used with the same data key: 32 random bytes.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};

/// Bytes that sealing adds to a text: the tag.
pub const SEAL_OVERHEAD: usize = 16;

/// Bytes of a salt.
pub const SALT_LEN: usize = 32;

/// Why a record cannot be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Another key, or changed bytes: which of them cannot be told.
    #[error("the seal does not match: the bytes were changed or sealed with another key")]
    Broken,
    #[error("the sealing counter is used up")]
    Exhausted,
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - 8..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

pub(crate) fn derive(secret: &[u8; 32], salt: &[u8; SALT_LEN], purpose: &str) -> LessSafeKey {
    let salt = Salt::new(HKDF_SHA256, salt);
    let info = [purpose.as_bytes()];
    let key = salt.extract(secret);
    let okm = key.expand(&info, &AES_256_GCM).expect("32 bytes are within HKDF's limit");
    LessSafeKey::new(UnboundKey::from(okm))
}

/// Seals records under ever higher counters.
pub struct Sealer {
    key: LessSafeKey,
    next: u64,
}

impl Sealer {
    /// A sealer whose first record has number `first`.
    pub(crate) fn new(key: LessSafeKey, first: u64) -> Self {
        Self { key, next: first }
    }

    /// The number that the next record gets.
    pub fn next_counter(&self) -> u64 {
        self.next
    }

    /// Seals `buffer[from..]` in place and appends the tag; `aad` is authenticated, not hidden.
    /// Returns the record's number, which [`Opener::open`] needs.
    ///
    /// # Errors
    /// [`SealError::Exhausted`] after 2^64 - 1 records.
    pub fn seal(
        &mut self,
        aad: &[u8],
        buffer: &mut Vec<u8>,
        from: usize,
    ) -> Result<u64, SealError> {
        let counter = self.next;
        let after = counter.checked_add(1).ok_or(SealError::Exhausted)?;
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(counter), Aad::from(aad), &mut buffer[from..])
            .map_err(|_| SealError::Exhausted)?;
        buffer.extend_from_slice(tag.as_ref());
        self.next = after;
        Ok(counter)
    }
}

/// Opens what the [`Sealer`] of the same key, salt and purpose sealed.
pub struct Opener {
    key: LessSafeKey,
}

impl Opener {
    pub(crate) fn new(key: LessSafeKey) -> Self {
        Self { key }
    }

    /// Opens `sealed` in place and returns the text, its first part.
    ///
    /// # Errors
    /// [`SealError::Broken`] when bytes, number or `aad` are not those that were sealed.
    pub fn open<'a>(
        &self,
        counter: u64,
        aad: &[u8],
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8], SealError> {
        self.key
            .open_in_place(nonce(counter), Aad::from(aad), sealed)
            .map_err(|_| SealError::Broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(secret: u8, salt: u8, purpose: &str) -> (Sealer, Opener) {
        let key = || derive(&[secret; 32], &[salt; 32], purpose);
        (Sealer::new(key(), 0), Opener::new(key()))
    }

    #[test]
    fn what_was_sealed_opens_and_nothing_else_does() {
        let (mut sealer, opener) = pair(1, 2, "log");
        let mut buffer = b"head".to_vec();
        buffer.extend_from_slice(b"secret text");
        assert_eq!(sealer.seal(b"aad", &mut buffer, 4), Ok(0));
        assert_eq!(buffer.len(), 4 + 11 + SEAL_OVERHEAD);
        assert_eq!(&buffer[..4], b"head");
        let sealed = buffer.split_off(4);
        let opened = |counter, aad: &[u8], bytes: &[u8], opener: &Opener| {
            let mut bytes = bytes.to_vec();
            opener.open(counter, aad, &mut bytes).map(|text| text.to_vec())
        };
        assert_eq!(opened(0, b"aad", &sealed, &opener), Ok(b"secret text".to_vec()));
        assert_eq!(opened(1, b"aad", &sealed, &opener), Err(SealError::Broken));
        assert_eq!(opened(0, b"other", &sealed, &opener), Err(SealError::Broken));
        assert_eq!(opened(0, b"aad", &sealed[..5], &opener), Err(SealError::Broken));
        for at in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[at] ^= 1;
            assert_eq!(opened(0, b"aad", &flipped, &opener), Err(SealError::Broken));
        }
        for (secret, salt, purpose) in [(2, 2, "log"), (1, 1, "log"), (1, 2, "snapshot")] {
            let other = pair(secret, salt, purpose).1;
            assert_eq!(opened(0, b"aad", &sealed, &other), Err(SealError::Broken));
        }
    }

    #[test]
    fn counters_go_up_and_end() {
        let (mut sealer, _) = pair(1, 2, "log");
        assert_eq!(sealer.seal(b"", &mut vec![], 0), Ok(0));
        assert_eq!(sealer.seal(b"", &mut vec![], 0), Ok(1));
        sealer.next = u64::MAX;
        assert_eq!(sealer.seal(b"", &mut vec![], 0), Err(SealError::Exhausted));
    }
}
