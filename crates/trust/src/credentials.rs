//! What a process shows to others and trusts in them, swapped while it runs.
//!
//! [`Credentials`] is a cheap handle. The TLS configurations made from it
//! (`tls`) read it anew on each handshake, so a renewed certificate or a
//! rotated authority needs no new listener, and open connections stay.
//!
//! Validity is judged by the wall clock or by [`Credentials::advance`], the
//! last moment the cluster is known to have reached, whichever is later: a
//! clock that was set back does not revive what has expired.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use warren_base::clock::Clock;
use warren_model::Time;

use crate::bundle::Bundle;
use crate::ca::to_chain;
use crate::key::{KeyError, NodeKey};
use crate::peer::{Peer, PeerError};
use crate::x509::Fields;

/// Why key, certificate and bundle do not make an identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("the certificate of this node")]
    Certificate(#[from] PeerError),
    #[error("the private key of this node")]
    Key(#[from] KeyError),
    #[error("the certificate of this node is not for its private key")]
    Mismatch,
}

/// A private key, the certificate for it, and the authorities of its cluster.
pub struct Identity {
    key: NodeKey,
    chain: Vec<CertificateDer<'static>>,
    bundle: Bundle,
    peer: Peer,
}

impl Identity {
    /// Puts together what belongs together. An expired certificate does, too.
    ///
    /// # Errors
    /// [`IdentityError`] when the certificate is not for this key or not of this bundle.
    pub fn new(key: NodeKey, chain: &[Vec<u8>], bundle: Bundle) -> Result<Self, IdentityError> {
        let chain = to_chain(chain);
        let leaf = chain.first().ok_or(PeerError::None)?;
        let fields = Fields::parse(leaf).map_err(|reason| PeerError::Shape { reason })?;
        // As of its own first moment: the clock may be off by any amount here, and is not asked.
        let peer = bundle.verify(&chain, fields.not_before)?;
        if peer.key_hash != key.key_hash() {
            return Err(IdentityError::Mismatch);
        }
        Ok(Self { key, chain, bundle, peer })
    }

    /// The same key with a new certificate: after a renewal.
    ///
    /// # Errors
    /// As [`Identity::new`].
    pub fn renewed(&self, chain: &[Vec<u8>], bundle: Bundle) -> Result<Self, IdentityError> {
        Self::new(NodeKey::from_pkcs8(self.key.pkcs8())?, chain, bundle)
    }

    pub fn key(&self) -> &NodeKey {
        &self.key
    }

    /// In DER, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// As others see it; `expired` is not looked at here.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }
}

/// The handle. Clones share what is set.
#[derive(Clone)]
pub struct Credentials(Arc<Shared>);

struct Shared {
    current: ArcSwap<Current>,
    clock: Arc<dyn Clock>,
    /// Milliseconds since the epoch; only goes up.
    reached: AtomicU64,
}

#[derive(Clone)]
struct Current {
    bundle: Bundle,
    own: Option<(Arc<CertifiedKey>, Peer)>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let current = self.0.current.load();
        let node = current.own.as_ref().map(|(_, peer)| peer.node);
        f.debug_struct("Credentials").field("bundle", &current.bundle).field("node", &node).finish()
    }
}

impl Credentials {
    /// Trusts `bundle` and shows nothing.
    pub fn new(bundle: Bundle, clock: Arc<dyn Clock>) -> Self {
        let current = ArcSwap::from_pointee(Current { bundle, own: None });
        Self(Arc::new(Shared { current, clock, reached: AtomicU64::new(0) }))
    }

    /// From now on shows the identity's certificate and trusts its bundle.
    ///
    /// # Errors
    /// [`IdentityError::Key`] when the key is not usable for TLS; nothing has changed then.
    pub fn set(&self, identity: &Identity) -> Result<(), IdentityError> {
        let key = CertifiedKey::new(identity.chain.clone(), identity.key.tls_key()?);
        let own = Some((Arc::new(key), identity.peer.clone()));
        self.0.current.store(Arc::new(Current { bundle: identity.bundle.clone(), own }));
        Ok(())
    }

    /// From now on trusts `bundle`; what is shown stays.
    pub fn set_bundle(&self, bundle: Bundle) {
        self.0.current.rcu(|current| Current { bundle: bundle.clone(), own: current.own.clone() });
    }

    /// The cluster has reached this moment: certificates that ended before it have expired.
    pub fn advance(&self, reached: Time) {
        self.0.reached.fetch_max(reached.0, Ordering::Relaxed);
    }

    /// The moment by which certificates are judged.
    pub fn now(&self) -> Time {
        Time(self.0.clock.now_ms().max(self.0.reached.load(Ordering::Relaxed)))
    }

    pub fn bundle(&self) -> Bundle {
        self.0.current.load().bundle.clone()
    }

    /// What is shown to others, as they see it now.
    pub fn own(&self) -> Option<Peer> {
        let mut peer = self.0.current.load().own.as_ref().map(|(_, peer)| peer.clone())?;
        peer.expired = self.now() > peer.not_after;
        Some(peer)
    }

    /// Who is at the other end of an established connection: call it with what
    /// `peer_certificates()` gave. `None` for who showed no certificate.
    ///
    /// # Errors
    /// [`PeerError`] when it is nobody whom this cluster trusts.
    pub fn peer_of(
        &self,
        certificates: Option<&[CertificateDer<'_>]>,
    ) -> Result<Option<Peer>, PeerError> {
        match certificates {
            None | Some([]) => Ok(None),
            Some(chain) => self.verify(chain).map(Some),
        }
    }

    pub(crate) fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<Peer, PeerError> {
        self.0.current.load().bundle.verify(chain, self.now())
    }

    pub(crate) fn shown(&self) -> Option<Arc<CertifiedKey>> {
        self.0.current.load().own.as_ref().map(|(key, _)| key.clone())
    }
}
