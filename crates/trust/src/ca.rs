//! The cluster's certificate authority: issues, is rotated, kept in the sealed state.
//!
//! Of a signing request only the public key is taken, never its names: who the
//! owner is, is said by whoever let it in. The authority's name carries a mark
//! of its key, so that two authorities of one cluster have different names and
//! chains are found without trying.
//!
//! Rotation: a new key issues from then on; the old certificate stays trusted,
//! and the new key's, signed by the old key, goes along in chains, so that
//! those who know only the old one still verify. [`Authority::finish_rotation`]
//! ends the trust in the old one.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, PublicKeyData, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateDer;
use warren_base::rng::{Rng, SystemRng};
use warren_model::operator::{OperatorName, OperatorRole};
use warren_model::{ClusterId, NodeId, Time};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use crate::bundle::{Bundle, BundleError};
use crate::key::{Hash, KeyError, NodeKey, sha256};
use crate::peer::{BACKDATED_MS, PeerRole};
use crate::x509::{Fields, to_x509, whole_seconds};

const DAY_MS: u64 = 86_400_000;
/// Longer than any cluster lives; ended earlier by rotation.
const AUTHORITY_LIFETIME_MS: u64 = 20 * 365 * DAY_MS;
/// More than leaves are backdated, so that an authority is never younger than what it signs.
const AUTHORITY_BACKDATED_MS: u64 = DAY_MS;
/// Ours have about 300 bytes.
pub const SIGNING_REQUEST_LEN_MAX: usize = 4096;
/// RFC 5280 allows 20 bytes; 16 random ones never meet.
const SERIAL_LEN: usize = 16;

/// Why the authority cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("key of the certificate authority")]
    Key(#[from] KeyError),
    #[error("certificates of the certificate authority")]
    Certificates(#[from] BundleError),
    #[error("the certificate authority's key is not that of its first certificate")]
    Mismatch,
    #[error("sign a certificate for {subject}: {reason}")]
    Sign { subject: String, reason: String },
    #[error("the certificate authority is being rotated already: finish that first")]
    Rotating,
}

/// Why no certificate is issued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    #[error("the signing request has {len} bytes, at most {SIGNING_REQUEST_LEN_MAX} are read")]
    TooLong { len: usize },
    #[error("the signing request is damaged, or none in PKCS #10")]
    Shape,
    #[error("the signing request is not signed by the key it brings")]
    Signature,
    #[error("the signing request brings a key that is not ECDSA on P-256")]
    Key,
    #[error("issue a certificate for {subject}: a lifetime of nothing")]
    Lifetime { subject: String },
    #[error("issue a certificate for {subject}: the authority's own ended at {not_after}")]
    Ended { subject: String, not_after: Time },
    #[error("issue a certificate for {subject}: {reason}")]
    Sign { subject: String, reason: String },
}

/// Whom a certificate is issued to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    Node { id: NodeId, manager: bool },
    Operator { name: OperatorName, role: OperatorRole },
}

impl Subject {
    fn role(&self) -> PeerRole {
        match self {
            Self::Node { manager: true, .. } => PeerRole::Manager,
            Self::Node { manager: false, .. } => PeerRole::Worker,
            Self::Operator { role, .. } => PeerRole::Operator(*role),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Node { id, .. } => id.to_string(),
            Self::Operator { name, .. } => name.to_string(),
        }
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.role(), self.name())
    }
}

/// A new certificate and what the state keeps of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// In DER: the leaf, then the authority's certificates.
    pub chain: Vec<Vec<u8>>,
    pub key_hash: Hash,
    pub not_after: Time,
    pub issuer_hash: Hash,
}

/// The authority with its private key.
pub struct Authority {
    bundle: Bundle,
    not_after: Time,
    issuer: Issuer<'static, NodeKey>,
}

impl Authority {
    /// A new authority for a new cluster.
    ///
    /// # Errors
    /// [`AuthorityError`] when the crypto library refuses.
    pub fn generate(cluster: ClusterId, now: Time) -> Result<Self, AuthorityError> {
        let key = NodeKey::generate()?;
        let params = authority_params(cluster, &key, now, Time::MAX);
        let der = params.self_signed(&key).map_err(sign_error(cluster))?.der().to_vec();
        Self::assemble(vec![der], key)
    }

    /// An authority from certificates (DER, the issuing one first) and its key (PKCS #8).
    ///
    /// # Errors
    /// [`AuthorityError`] when they are damaged or do not belong together.
    pub fn from_parts(certificates: Vec<Vec<u8>>, key: &[u8]) -> Result<Self, AuthorityError> {
        Self::assemble(certificates, NodeKey::from_pkcs8(key)?)
    }

    /// From what the state keeps.
    ///
    /// # Errors
    /// As [`Authority::from_parts`].
    pub fn from_state(kept: &warren_model::cluster::Authority) -> Result<Self, AuthorityError> {
        Self::from_parts(kept.certificates.clone(), kept.key.expose())
    }

    /// What the state keeps.
    pub fn to_state(&self) -> warren_model::cluster::Authority {
        warren_model::cluster::Authority {
            certificates: self.bundle.certificates().iter().map(|der| der.to_vec()).collect(),
            key: warren_model::Secret::new(self.key().pkcs8().to_vec()),
        }
    }

    fn assemble(certificates: Vec<Vec<u8>>, key: NodeKey) -> Result<Self, AuthorityError> {
        let bundle = Bundle::new(&certificates)?;
        let first = bundle.certificates().first().ok_or(BundleError::Empty)?;
        let shape = |reason| AuthorityError::Certificates(BundleError::Shape { at: 1, reason });
        let fields = Fields::parse(first).map_err(shape)?;
        if !fields.self_issued || fields.key_hash != key.key_hash() {
            return Err(AuthorityError::Mismatch);
        }
        let issuer = Issuer::from_ca_cert_der(first, key).map_err(|e| shape(e.to_string()))?;
        Ok(Self { not_after: fields.not_after, issuer, bundle })
    }

    fn key(&self) -> &NodeKey {
        self.issuer.key()
    }

    /// What members of the cluster trust.
    pub fn bundle(&self) -> Bundle {
        self.bundle.clone()
    }

    /// SHA-256 of the issuing certificate: what join tokens pin.
    pub fn fingerprint(&self) -> Hash {
        self.bundle.fingerprint()
    }

    /// SHA-256 of the issuing public key: `issuer_hash` of every certificate issued from now on.
    pub fn issuer_hash(&self) -> Hash {
        self.key().key_hash()
    }

    /// Whether an older authority is still trusted.
    pub fn is_rotating(&self) -> bool {
        self.bundle.certificates().len() > 1
    }

    /// Issues a certificate for the public key of a signing request (PKCS #10 in DER).
    ///
    /// # Errors
    /// [`IssueError`] when the request is not to be used.
    pub fn issue(
        &self,
        request: &[u8],
        subject: &Subject,
        lifetime: Duration,
        now: Time,
    ) -> Result<Issued, IssueError> {
        let key = requested_key(request)?;
        let lifetime_ms = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
        let not_after = whole_seconds(now.plus_ms(lifetime_ms).min(self.not_after));
        if lifetime_ms == 0 {
            return Err(IssueError::Lifetime { subject: subject.to_string() });
        }
        if now > self.not_after {
            let subject = subject.to_string();
            return Err(IssueError::Ended { subject, not_after: self.not_after });
        }
        let sign = |error: rcgen::Error| IssueError::Sign {
            subject: subject.to_string(),
            reason: error.to_string(),
        };
        let mut params = leaf_params(self.bundle.cluster(), subject).map_err(sign)?;
        params.not_before = to_x509(Time(now.0.saturating_sub(BACKDATED_MS)));
        params.not_after = to_x509(not_after);
        let leaf = params.signed_by(&key, &self.issuer).map_err(sign)?.der().to_vec();
        let authorities = self.bundle.certificates().iter().map(|der| der.to_vec());
        Ok(Issued {
            chain: std::iter::once(leaf).chain(authorities).collect(),
            key_hash: sha256(&key.subject_public_key_info()),
            not_after,
            issuer_hash: self.issuer_hash(),
        })
    }

    /// The authority with a new key; this one's certificate stays trusted beside it.
    ///
    /// # Errors
    /// [`AuthorityError::Rotating`] before the last rotation was finished.
    pub fn rotate(&self, now: Time) -> Result<Self, AuthorityError> {
        if self.is_rotating() {
            return Err(AuthorityError::Rotating);
        }
        let cluster = self.bundle.cluster();
        let fail = sign_error(cluster);
        let key = NodeKey::generate()?;
        let own = authority_params(cluster, &key, now, Time::MAX);
        let crossed = authority_params(cluster, &key, now, self.not_after);
        let mut certificates = vec![own.self_signed(&key).map_err(&fail)?.der().to_vec()];
        certificates.extend(self.bundle.certificates().iter().map(|der| der.to_vec()));
        certificates.push(crossed.signed_by(&key, &self.issuer).map_err(&fail)?.der().to_vec());
        Self::assemble(certificates, key)
    }

    /// The authority that trusts nothing but its own certificate. For when every member has a
    /// certificate with this [`Authority::issuer_hash`]; who has not is locked out.
    ///
    /// # Errors
    /// None but for a damaged authority.
    pub fn finish_rotation(&self) -> Result<Self, AuthorityError> {
        let first = self.bundle.certificates().first().map(|der| der.to_vec());
        Self::from_parts(first.into_iter().collect(), self.key().pkcs8())
    }
}

fn sign_error(cluster: ClusterId) -> impl Fn(rcgen::Error) -> AuthorityError {
    move |error| AuthorityError::Sign {
        subject: format!("the authority of cluster {cluster}"),
        reason: error.to_string(),
    }
}

fn serial() -> SerialNumber {
    let mut bytes = vec![0; SERIAL_LEN];
    SystemRng.fill(&mut bytes);
    // Positive, and as long as it looks: DER drops leading zeros.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from(bytes)
}

fn authority_params(
    cluster: ClusterId,
    key: &NodeKey,
    now: Time,
    not_after_max: Time,
) -> CertificateParams {
    let mark: String = key.key_hash()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, format!("Warren cluster {cluster}"));
    name.push(DnType::OrganizationName, cluster.to_string());
    name.push(DnType::OrganizationalUnitName, format!("authority {mark}"));
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.serial_number = Some(serial());
    params.not_before = to_x509(Time(now.0.saturating_sub(AUTHORITY_BACKDATED_MS)));
    params.not_after = to_x509(now.plus_ms(AUTHORITY_LIFETIME_MS).min(not_after_max));
    // One below it: the next authority, cross-signed while rotating.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.use_authority_key_identifier_extension = true;
    params
}

fn leaf_params(cluster: ClusterId, subject: &Subject) -> Result<CertificateParams, rcgen::Error> {
    let mut params = match subject {
        Subject::Node { id, .. } => CertificateParams::new(vec![format!("{id}.warren")])?,
        Subject::Operator { .. } => CertificateParams::default(),
    };
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, subject.name());
    name.push(DnType::OrganizationName, cluster.to_string());
    name.push(DnType::OrganizationalUnitName, subject.role().to_string());
    params.distinguished_name = name;
    params.serial_number = Some(serial());
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if subject.role() == PeerRole::Manager {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// The public key of a request that is signed by it.
fn requested_key(request: &[u8]) -> Result<SubjectPublicKeyInfo, IssueError> {
    let len = request.len();
    if len > SIGNING_REQUEST_LEN_MAX {
        return Err(IssueError::TooLong { len });
    }
    let (rest, parsed) =
        X509CertificationRequest::from_der(request).map_err(|_| IssueError::Shape)?;
    if !rest.is_empty() {
        return Err(IssueError::Shape);
    }
    let key = SubjectPublicKeyInfo::from_der(parsed.certification_request_info.subject_pki.raw)
        .map_err(|_| IssueError::Key)?;
    if key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
        return Err(IssueError::Key);
    }
    parsed.verify_signature().map_err(|_| IssueError::Signature)?;
    Ok(key)
}

/// The leaf and the rest of a chain as rustls wants them.
pub(crate) fn to_chain(chain: &[Vec<u8>]) -> Vec<CertificateDer<'static>> {
    chain.iter().map(|der| CertificateDer::from(der.clone())).collect()
}

#[cfg(test)]
pub(crate) mod tests;
