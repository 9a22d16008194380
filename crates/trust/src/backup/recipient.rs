//! Keys for backups that nobody types a passphrase for: scheduled ones.
//!
//! The private key, `WRNBACKUP-…`, is made by a person and kept away from the
//! cluster; the cluster gets the public one, `wrnb1-…`, and can write backups
//! that it cannot read. HPKE (RFC 9180), X25519 with HKDF-SHA256 and AES-256-GCM.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::agreement::{PrivateKey, X25519};
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as HPKE;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke, HpkePrivateKey, HpkePublicKey};
use warren_base::rng::{Rng, SystemRng};
use zeroize::Zeroizing;

use crate::key::sha256;
use crate::seal::SEAL_OVERHEAD;
use crate::text::{Base32Error, from_base32, push_base32, text_len};

const PUBLIC_TAG: &str = "wrnb1";
const PRIVATE_TAG: &str = "WRNBACKUP";
const CHECK_LEN: usize = 4;
const BYTES: usize = 32 + CHECK_LEN;
const INFO: &[u8] = b"warren backup 1";
pub(super) const ENCAPSULATED_LEN: usize = 32;
pub(super) const WRAPPED_LEN: usize = 32 + SEAL_OVERHEAD;

/// Why a text is not a backup key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackupKeyError {
    #[error("this is no {kind} of backups: it does not begin with {tag:?}")]
    Kind { kind: &'static str, tag: &'static str },
    #[error("the {kind} of backups has {len} characters, a whole one has {whole}")]
    Length { kind: &'static str, len: usize, whole: usize },
    #[error("the character at position {at} of the {kind} of backups cannot be there")]
    Character { kind: &'static str, at: usize },
    #[error("the {kind} of backups has a typing error: its check value does not match")]
    Typo { kind: &'static str },
    #[error("make a key for backups: the crypto library refused")]
    Generate,
}

/// A public key: encrypts backups.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Recipient([u8; 32]);

/// A private key: opens backups.
#[derive(Clone)]
pub struct BackupKey(Zeroizing<[u8; 32]>);

/// Encapsulated secret, wrapped key of the file, and that key.
type Wrapped = ([u8; ENCAPSULATED_LEN], [u8; WRAPPED_LEN], Zeroizing<[u8; 32]>);

impl Recipient {
    pub(super) fn wrap(&self) -> Result<Wrapped, String> {
        let mut key = Zeroizing::new([0; 32]);
        SystemRng.fill(key.as_mut_slice());
        let to = HpkePublicKey(self.0.to_vec());
        let sealed = HPKE.seal(INFO, b"", key.as_slice(), &to);
        let (EncapsulatedSecret(encapsulated), wrapped) = sealed.map_err(|e| e.to_string())?;
        let length = |_| "the crypto library gave another length".to_owned();
        Ok((encapsulated.try_into().map_err(length)?, wrapped.try_into().map_err(length)?, key))
    }
}

impl BackupKey {
    /// # Errors
    /// [`BackupKeyError::Generate`] when the crypto library refuses.
    pub fn generate() -> Result<Self, BackupKeyError> {
        let (_, key) = HPKE.generate_key_pair().map_err(|_| BackupKeyError::Generate)?;
        let bytes: &[u8; 32] =
            key.secret_bytes().try_into().map_err(|_| BackupKeyError::Generate)?;
        Ok(Self(Zeroizing::new(*bytes)))
    }

    /// The public key that goes with it.
    ///
    /// # Errors
    /// [`BackupKeyError::Generate`] when the crypto library refuses.
    pub fn recipient(&self) -> Result<Recipient, BackupKeyError> {
        let fail = |_| BackupKeyError::Generate;
        let key = PrivateKey::from_private_key(&X25519, self.0.as_slice());
        let public = key.map_err(|_| BackupKeyError::Generate)?.compute_public_key();
        let public = public.map_err(|_| BackupKeyError::Generate)?;
        Ok(Recipient(public.as_ref().try_into().map_err(fail)?))
    }

    pub(super) fn unwrap_key(
        &self,
        encapsulated: &[u8; ENCAPSULATED_LEN],
        wrapped: &[u8; WRAPPED_LEN],
    ) -> Option<Zeroizing<[u8; 32]>> {
        let encapsulated = EncapsulatedSecret(encapsulated.to_vec());
        let private = HpkePrivateKey::from(self.0.to_vec());
        let opened = HPKE.open(&encapsulated, INFO, b"", wrapped, &private).ok()?;
        let opened = Zeroizing::new(opened);
        let key: &[u8; 32] = opened.as_slice().try_into().ok()?;
        Some(Zeroizing::new(*key))
    }

    /// The key as text, in a buffer that is wiped.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = to_text(PRIVATE_TAG, &self.0);
        text.make_ascii_uppercase();
        text
    }
}

/// Writes the whole key: that is what the text is for.
impl fmt::Display for BackupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text())
    }
}

impl fmt::Debug for BackupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BackupKey")
    }
}

impl FromStr for BackupKey {
    type Err = BackupKeyError;

    fn from_str(text: &str) -> Result<Self, BackupKeyError> {
        let text = Zeroizing::new(text.to_ascii_lowercase());
        from_text("private key", PRIVATE_TAG, &text).map(Self)
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_text(PUBLIC_TAG, &self.0))
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Recipient {
    type Err = BackupKeyError;

    fn from_str(text: &str) -> Result<Self, BackupKeyError> {
        from_text("public key", PUBLIC_TAG, text).map(|bytes| Self(*bytes))
    }
}

fn to_text(tag: &str, key: &[u8; 32]) -> Zeroizing<String> {
    let mut bytes = Zeroizing::new([0; BYTES]);
    bytes[..32].copy_from_slice(key);
    bytes[32..].copy_from_slice(&check(tag, key));
    let mut text = Zeroizing::new(String::with_capacity(tag.len() + 1 + text_len(BYTES)));
    text.push_str(tag);
    text.push('-');
    push_base32(&mut text, bytes.as_slice());
    text
}

/// Of another kind of key it is another one.
fn check(tag: &str, key: &[u8; 32]) -> [u8; CHECK_LEN] {
    let bytes = Zeroizing::new([tag.as_bytes(), key].concat());
    let hash = sha256(&bytes);
    [hash[0], hash[1], hash[2], hash[3]]
}

fn from_text(
    kind: &'static str,
    tag: &'static str,
    text: &str,
) -> Result<Zeroizing<[u8; 32]>, BackupKeyError> {
    let found = text.trim().split_once('-').filter(|(found, _)| found.eq_ignore_ascii_case(tag));
    let (_, rest) = found.ok_or(BackupKeyError::Kind { kind, tag })?;
    let from = tag.len() + 1;
    let bytes = from_base32::<BYTES>(rest).map_err(|error| match error {
        Base32Error::Length(len) => {
            BackupKeyError::Length { kind, len: from + len, whole: from + text_len(BYTES) }
        }
        Base32Error::Character(at) => BackupKeyError::Character { kind, at: from + at + 1 },
    })?;
    let mut key = Zeroizing::new([0; 32]);
    key.copy_from_slice(&bytes[..32]);
    if check(tag, &key) != bytes[32..] {
        return Err(BackupKeyError::Typo { kind });
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_are_read_and_kinds_kept_apart() {
        let key = BackupKey::generate().unwrap();
        let to = key.recipient().unwrap();
        assert_eq!(to.to_string().parse(), Ok(to));
        assert_eq!(format!("{key:?}"), "BackupKey");
        let again: BackupKey = key.to_string().parse().unwrap();
        assert_eq!(again.recipient(), Ok(to));
        let public = |text: &str| text.parse::<Recipient>().unwrap_err().to_string();
        assert!(public(&key.to_string()).contains("does not begin with \"wrnb1\""));
        let text = to.to_string();
        assert!(public(&text[..30]).contains("has 30 characters, a whole one has 64"));
        assert!(public(&text.replacen('-', "-1", 1)).contains("position 7 "));
        let last = if text.ends_with('q') { "a" } else { "q" };
        let typo = format!("{}{}{}", &text[..20], last, &text[21..]);
        if typo != text {
            assert!(public(&typo).contains("typing error"), "{typo}");
        }
        // The bytes of the one are not the other.
        let (_, rest) = text.split_once('-').unwrap();
        let crossed = format!("WRNBACKUP-{rest}").parse::<BackupKey>();
        assert_eq!(crossed.err(), Some(BackupKeyError::Typo { kind: "private key" }));
    }

    proptest! {
        #[test]
        fn texts_never_panic(text in "\\PC{0,80}") {
            let (public, private) = (format!("wrnb1-{text}"), format!("WRNBACKUP-{text}"));
            prop_assert!(public.parse::<Recipient>().is_err());
            prop_assert!(private.parse::<BackupKey>().is_err());
            prop_assert!(text.parse::<Recipient>().is_err());
        }
    }
}
