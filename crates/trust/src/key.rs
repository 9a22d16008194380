//! The key pair of a node, an operator or an authority: ECDSA on P-256.
//!
//! A node makes its own key and sends a signing request; the private part
//! leaves the process only inside sealed files (`node_files`) and, for an
//! authority, inside the sealed state. Keys have no `Debug`.
//!
//! One kind of key alone: whatever else a request brings is refused, so that
//! every signature of a cluster is checked by one algorithm.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use rcgen::{CertificateParams, DistinguishedName, DnType, PublicKeyData};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

/// SHA-256, of a public key or a certificate.
pub type Hash = [u8; 32];

/// Why a key cannot be made or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("make a private key: the crypto library refused")]
    Generate,
    #[error("the private key is damaged, or not a PKCS #8 key on P-256")]
    Shape,
    #[error("make a signing request for {name:?}: {reason}")]
    Request { name: String, reason: String },
}

/// A private key and its public part.
pub struct NodeKey {
    pkcs8: Zeroizing<Vec<u8>>,
    pair: EcdsaKeyPair,
}

impl NodeKey {
    /// A new key, from the system's randomness.
    ///
    /// # Errors
    /// [`KeyError::Generate`] when the crypto library refuses.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .map_err(|_| KeyError::Generate)?;
        let document = pair.to_pkcs8v1().map_err(|_| KeyError::Generate)?;
        Ok(Self { pkcs8: Zeroizing::new(document.as_ref().to_vec()), pair })
    }

    /// Reads what [`NodeKey::pkcs8`] gave.
    ///
    /// # Errors
    /// [`KeyError::Shape`] when the bytes are no such key.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, KeyError> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8)
            .map_err(|_| KeyError::Shape)?;
        Ok(Self { pkcs8: Zeroizing::new(pkcs8.to_vec()), pair })
    }

    /// The private key, PKCS #8 in DER. Whoever copies it keeps the copy in [`Zeroizing`].
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// SHA-256 of the public key's SubjectPublicKeyInfo: what a node is pinned by.
    pub fn key_hash(&self) -> Hash {
        sha256(&self.subject_public_key_info())
    }

    /// A PKCS #10 signing request. The authority takes its public key alone; the name is for
    /// people who look at it.
    ///
    /// # Errors
    /// [`KeyError::Request`] when signing fails.
    pub fn signing_request(&self, common_name: &str) -> Result<Vec<u8>, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let fail = |error: rcgen::Error| KeyError::Request {
            name: common_name.to_owned(),
            reason: error.to_string(),
        };
        Ok(params.serialize_request(self).map_err(fail)?.der().to_vec())
    }

    pub(crate) fn tls_key(&self) -> Result<std::sync::Arc<dyn rustls::sign::SigningKey>, KeyError> {
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pkcs8.as_slice()));
        rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&der).map_err(|_| KeyError::Shape)
    }
}

impl PublicKeyData for NodeKey {
    fn der_bytes(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for NodeKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.pair
            .sign(&SystemRandom::new(), message)
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> Hash {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_back_and_damage_is_refused() {
        let key = NodeKey::generate().unwrap();
        let again = NodeKey::from_pkcs8(key.pkcs8()).unwrap();
        assert_eq!(key.key_hash(), again.key_hash());
        assert_ne!(key.key_hash(), NodeKey::generate().unwrap().key_hash());
        for len in 0..key.pkcs8().len() {
            let cut = NodeKey::from_pkcs8(&key.pkcs8()[..len]);
            assert_eq!(cut.err(), Some(KeyError::Shape), "cut at {len}");
        }
        assert!(!key.signing_request("node").unwrap().is_empty());
        assert!(key.tls_key().is_ok());
    }
}
