//! The unlock key of a cluster with autolock, and its text.
//!
//! `WRNKEY-<base 32 of the key and four bytes of its SHA-256>`: a typing error
//! is told before a locked file is tried. Upper and lower case are the same,
//! spaces and line ends around it do not count: it may have been on paper.
//!
//! No `Debug` of the key; errors show none of its characters.

use std::fmt;
use std::str::FromStr;

use warren_base::rng::Rng;
use zeroize::Zeroizing;

use crate::key::sha256;
use crate::text::{Base32Error, from_base32, push_base32, text_len};

const TAG: &str = "WRNKEY";
const CHECK_LEN: usize = 4;
const BYTES: usize = 32 + CHECK_LEN;

/// Why a text is not an unlock key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnlockKeyError {
    #[error("this is no unlock key: it does not begin with {TAG:?}")]
    Kind,
    #[error("the unlock key has {len} characters, a whole one has {whole}")]
    Length { len: usize, whole: usize },
    #[error("the character at position {at} of the unlock key cannot be there")]
    Character { at: usize },
    #[error("the unlock key has a typing error: its check value does not match")]
    Typo,
}

/// What the key files of all managers of a cluster are locked with.
#[derive(Clone)]
pub struct UnlockKey(Zeroizing<[u8; 32]>);

impl UnlockKey {
    pub fn generate(rng: &dyn Rng) -> Self {
        let mut key = Zeroizing::new([0; 32]);
        rng.fill(key.as_mut_slice());
        Self(key)
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// What the state keeps, if it is one.
    pub fn from_state(kept: &warren_model::Secret) -> Option<Self> {
        let bytes: &[u8; 32] = kept.expose().try_into().ok()?;
        Some(Self::from_bytes(*bytes))
    }

    /// What the state keeps.
    pub fn to_state(&self) -> warren_model::Secret {
        warren_model::Secret::new(self.0.to_vec())
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key as text, in a buffer that is wiped.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0; BYTES]);
        bytes[..32].copy_from_slice(self.0.as_slice());
        bytes[32..].copy_from_slice(&sha256(self.0.as_slice())[..CHECK_LEN]);
        let mut text = Zeroizing::new(String::with_capacity(TAG.len() + 1 + text_len(BYTES)));
        text.push_str(TAG);
        text.push('-');
        push_base32(&mut text, bytes.as_slice());
        text.make_ascii_uppercase();
        text
    }
}

/// Writes the whole key: that is what the text is for.
impl fmt::Display for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text())
    }
}

impl fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnlockKey")
    }
}

impl FromStr for UnlockKey {
    type Err = UnlockKeyError;

    fn from_str(text: &str) -> Result<Self, UnlockKeyError> {
        let text = Zeroizing::new(text.trim().to_ascii_lowercase());
        let (tag, rest) = text.split_once('-').ok_or(UnlockKeyError::Kind)?;
        if !tag.eq_ignore_ascii_case(TAG) {
            return Err(UnlockKeyError::Kind);
        }
        let from = TAG.len() + 1;
        let bytes = from_base32::<BYTES>(rest).map_err(|error| match error {
            Base32Error::Length(len) => {
                UnlockKeyError::Length { len: from + len, whole: from + text_len(BYTES) }
            }
            Base32Error::Character(at) => UnlockKeyError::Character { at: from + at + 1 },
        })?;
        let mut key = Zeroizing::new([0; 32]);
        key.copy_from_slice(&bytes[..32]);
        if sha256(key.as_slice())[..CHECK_LEN] != bytes[32..] {
            return Err(UnlockKeyError::Typo);
        }
        Ok(Self(key))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_are_read_and_typos_told() {
        let key = UnlockKey::from_bytes([7; 32]);
        let text = key.to_string();
        assert_eq!(text.len(), 65);
        assert!(text.starts_with("WRNKEY-A4DQOBYHA4DQ"), "{text}");
        assert_eq!(format!("{key:?}"), "UnlockKey");
        let read = |text: &str| text.parse::<UnlockKey>().map(|key| *key.as_bytes());
        assert_eq!(read(&text), Ok([7; 32]));
        assert_eq!(read(&format!("  {}\n", text.to_lowercase())), Ok([7; 32]));
        assert_eq!(read(""), Err(UnlockKeyError::Kind));
        assert_eq!(read("wrn1-w-aaaa"), Err(UnlockKeyError::Kind));
        assert_eq!(read(&text[..60]), Err(UnlockKeyError::Length { len: 60, whole: 65 }));
        assert_eq!(read(&text.replacen('4', "1", 1)), Err(UnlockKeyError::Character { at: 9 }));
        assert_eq!(read(&text.replacen("A4DQ", "A4QD", 1)), Err(UnlockKeyError::Typo));
        let kept = key.to_state();
        assert_eq!(UnlockKey::from_state(&kept).map(|key| *key.as_bytes()), Some([7; 32]));
        assert!(UnlockKey::from_state(&warren_model::Secret::new(vec![1; 31])).is_none());
    }

    proptest! {
        #[test]
        fn keys_survive_and_texts_never_panic(bytes in any::<[u8; 32]>(), text in "\\PC{0,80}") {
            let key: UnlockKey = UnlockKey::from_bytes(bytes).to_string().parse().unwrap();
            prop_assert_eq!(*key.as_bytes(), bytes);
            prop_assert!(text.parse::<UnlockKey>().is_err());
            let text = format!("WRNKEY-{text}");
            prop_assert!(text.parse::<UnlockKey>().is_err());
        }
    }
}
