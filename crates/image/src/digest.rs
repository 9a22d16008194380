//! SHA-256 digests as images write them: `sha256:` and 64 hex digits.
//!
//! Contract: a [`Digest`] is always well-formed, so its hex part is safe as a
//! file name. Other algorithms are refused: no registry in use hands them out.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

const PREFIX: &str = "sha256:";
const HEX_LEN: usize = 64;
/// Digits shown to people, as Docker does.
const SHORT_LEN: usize = 12;

/// A well-formed SHA-256 digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("digest {0:?} is not sha256: and 64 hex digits")]
pub struct Malformed(pub String);

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_hash(&Sha256::digest(bytes))
    }

    fn from_hash(hash: &[u8]) -> Self {
        let mut text = String::with_capacity(PREFIX.len() + HEX_LEN);
        text.push_str(PREFIX);
        for byte in hash {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
            }
        }
        Self(text)
    }

    /// The chain id of a layer with this diff id on top of `parent`.
    pub(crate) fn chained(&self, parent: Option<&Self>) -> Self {
        match parent {
            None => self.clone(),
            Some(parent) => Self::of(format!("{parent} {self}").as_bytes()),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Without the algorithm.
    pub fn hex(&self) -> &str {
        &self.0[PREFIX.len()..]
    }

    /// The first digits, for people.
    pub fn short(&self) -> &str {
        &self.hex()[..SHORT_LEN]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Digest {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let hex = text.strip_prefix(PREFIX).ok_or_else(|| Malformed(text.to_owned()))?;
        let valid = hex.len() == HEX_LEN
            && hex.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'));
        if valid { Ok(Self(text.to_owned())) } else { Err(Malformed(text.to_owned())) }
    }
}

/// Hashes a stream piece by piece.
#[derive(Default)]
pub(crate) struct Hasher(Sha256);

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> Digest {
        Digest::from_hash(&self.0.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_checked() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").as_str(), empty);
        assert_eq!(empty.parse(), Ok(Digest::of(b"")));
        assert_eq!(Digest::of(b"").short(), "e3b0c44298fc");
        for bad in ["", "sha256:", "sha512:00", "sha256:../../x", &empty.to_uppercase()] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn chain_ids_follow_the_specification() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(a.chained(None), a);
        assert_eq!(b.chained(Some(&a)), Digest::of(format!("{a} {b}").as_bytes()));
    }
}
