//! The authorities that a cluster trusts, and the verification of certificates against them.
//!
//! A bundle holds self-signed authorities (trust anchors) and cross-signed
//! ones, which lead those who know only an older authority to the newer one.
//! [`Bundle::verify`] is pure: chain, moment and bundle in, [`Peer`] out.
//!
//! An expired leaf is verified as of its last valid moment and marked: a
//! cluster that was off for longer than its certificates last must come back.
//!
//! Not here: revocation (removed nodes are known to the state), TLS (`tls`).

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use warren_model::{ClusterId, Time};
use webpki::{EndEntityCert, KeyUsage};

use crate::key::{Hash, sha256};
use crate::peer::{Claim, Peer, PeerError};
use crate::x509::Fields;

/// Certificates that a peer may send: a leaf and all of the largest bundle.
pub const CHAIN_MAX: usize = 1 + warren_model::cluster::Authority::CERTIFICATES_MAX;

/// How far a certificate's first moment may lie ahead of the clock here. Certificates are
/// backdated by an hour, so that clocks may differ by that much and this.
pub const CLOCK_TOLERANCE_MS: u64 = 300_000;

pub(crate) static ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] =
    &[webpki::aws_lc_rs::ECDSA_P256_SHA256];

/// Why certificates do not make a bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    #[error("a bundle of authorities needs a self-signed certificate, none is there")]
    Empty,
    #[error("a bundle of authorities has {found} certificates, at most {max} are read")]
    TooMany { found: usize, max: usize },
    #[error("certificate {at} of the bundle of authorities is damaged: {reason}")]
    Shape { at: usize, reason: String },
    #[error(
        "certificate {at} of the bundle of authorities is of cluster {found}, the first of {expected}"
    )]
    Cluster { at: usize, found: String, expected: ClusterId },
}

/// What a cluster trusts. Cheap to clone.
#[derive(Clone)]
pub struct Bundle(Arc<Parts>);

struct Parts {
    cluster: ClusterId,
    /// As given: the issuing one first.
    certificates: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    crossed: Vec<CertificateDer<'static>>,
}

impl std::fmt::Debug for Bundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (cluster, len) = (self.0.cluster, self.0.certificates.len());
        write!(f, "Bundle({cluster}, {len} certificates)")
    }
}

impl PartialEq for Bundle {
    fn eq(&self, other: &Self) -> bool {
        self.0.certificates == other.0.certificates
    }
}

impl Eq for Bundle {}

impl Bundle {
    /// Certificates in DER, the issuing one first. The caller vouches for them.
    ///
    /// # Errors
    /// [`BundleError`] for what is not a bundle of one cluster.
    pub fn new<T: AsRef<[u8]>>(certificates: &[T]) -> Result<Self, BundleError> {
        let (found, max) = (certificates.len(), CHAIN_MAX - 1);
        if found > max {
            return Err(BundleError::TooMany { found, max });
        }
        let mut cluster = None;
        let mut parts = (vec![], vec![], vec![]);
        for (at, der) in certificates.iter().enumerate() {
            let at = at + 1;
            let shape = |reason: String| BundleError::Shape { at, reason };
            let der = CertificateDer::from(der.as_ref().to_vec());
            let fields = Fields::parse(&der).map_err(shape)?;
            if !fields.is_ca {
                return Err(shape("it is not an authority's".to_owned()));
            }
            let found = fields.organization.parse::<ClusterId>();
            let found = found.map_err(|error| shape(format!("its organization: {error}")))?;
            let expected = *cluster.get_or_insert(found);
            if found != expected {
                return Err(BundleError::Cluster { at, found: found.to_string(), expected });
            }
            if fields.self_issued {
                let anchor = webpki::anchor_from_trusted_cert(&der);
                parts.1.push(anchor.map_err(|error| shape(error.to_string()))?.to_owned());
            } else {
                parts.2.push(der.clone());
            }
            parts.0.push(der);
        }
        let (certificates, anchors, crossed) = parts;
        let cluster = cluster.filter(|_| !anchors.is_empty()).ok_or(BundleError::Empty)?;
        Ok(Self(Arc::new(Parts { cluster, certificates, anchors, crossed })))
    }

    /// The cluster whose authorities these are.
    pub fn cluster(&self) -> ClusterId {
        self.0.cluster
    }

    /// In DER, the issuing one first.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.0.certificates
    }

    /// SHA-256 of the first certificate: what a join token pins.
    pub fn fingerprint(&self) -> Hash {
        self.0.certificates.first().map_or([0; 32], |first| sha256(first))
    }

    /// SHA-256 of the issuing public key, that of the first certificate: compare with
    /// [`Peer::issuer_hash`].
    pub fn issuer_hash(&self) -> Hash {
        let first = self.0.certificates.first().map(|first| Fields::parse(first));
        // It was parsed when the bundle was made.
        first.and_then(Result::ok).map_or([0; 32], |fields| fields.key_hash)
    }

    /// Who a chain (leaf first) belongs to, verified at `now`.
    ///
    /// # Errors
    /// [`PeerError`] when it belongs to nobody whom this cluster knows. Role, expected node and
    /// expiry are the caller's to look at.
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: Time) -> Result<Peer, PeerError> {
        let (leaf, rest) = chain.split_first().ok_or(PeerError::None)?;
        if chain.len() > CHAIN_MAX {
            return Err(PeerError::TooMany { found: chain.len(), max: CHAIN_MAX });
        }
        let fields = Fields::parse(leaf).map_err(|reason| PeerError::Shape { reason })?;
        let claim = Claim::parse(&fields)?;
        let owner = format!("{} {}", claim.role, fields.common_name);
        if now.plus_ms(CLOCK_TOLERANCE_MS) < fields.not_before {
            return Err(PeerError::NotYetValid { owner, not_before: fields.not_before, now });
        }
        let issuer_hash = self.issuer(leaf, rest, &owner, fields.moment(now))?;
        if claim.cluster != self.0.cluster {
            let (found, expected) = (claim.cluster.to_string(), self.0.cluster);
            return Err(PeerError::Cluster { owner, found, expected });
        }
        Ok(Peer {
            node: claim.node,
            operator: claim.operator,
            role: claim.role,
            cluster: claim.cluster,
            key_hash: fields.key_hash,
            not_before: fields.not_before,
            not_after: fields.not_after,
            expired: now > fields.not_after,
            issuer_hash,
        })
    }

    /// Walks from the leaf to an anchor; gives the hash of the key that signed the leaf.
    fn issuer(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        owner: &str,
        moment: Time,
    ) -> Result<Hash, PeerError> {
        let chain = |error: webpki::Error| {
            use webpki::Error as E;
            let owner = owner.to_owned();
            match error {
                // Another key, or another name: not signed by ours, whatever it says.
                E::UnknownIssuer | E::InvalidSignatureForPublicKey => PeerError::Foreign { owner },
                other => PeerError::Chain { owner, reason: other.to_string() },
            }
        };
        let between: Vec<CertificateDer<'_>> =
            rest.iter().chain(&self.0.crossed).map(|der| CertificateDer::from(&**der)).collect();
        let leaf = EndEntityCert::try_from(leaf).map_err(chain)?;
        let moment = UnixTime::since_unix_epoch(std::time::Duration::from_millis(moment.0));
        // Every leaf of ours is good for client authentication; who may serve is told by the role.
        let path = leaf.verify_for_usage(
            ALGORITHMS,
            &self.0.anchors,
            &between,
            moment,
            KeyUsage::client_auth(),
            None,
            None,
        );
        Ok(sha256(&path.map_err(chain)?.issuer_spki()))
    }
}

impl Fields {
    /// `now`, or the valid moment that is nearest to it.
    fn moment(&self, now: Time) -> Time {
        now.max(self.not_before).min(self.not_after)
    }
}
