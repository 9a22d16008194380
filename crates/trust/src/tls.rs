//! TLS 1.3 for every connection between machines: configurations and verifiers.
//!
//! - [`server_config`]: the one port. A client certificate is asked for and may
//!   be absent (joining nodes have none); one that is shown must be good.
//! - [`client_config`]: to managers of the own cluster.
//! - [`join_config`]: to a manager of a cluster that is known by a token's
//!   fingerprint alone.
//!
//! Host names play no part: a manager is recognised by its authority, cluster,
//! role and, if wanted, node id. Sessions are never resumed: each connection
//! shows its certificate anew, so that a removed node does not come back by a
//! ticket. The crypto provider is given, not a default of the process.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError,
    PeerMisbehaved, ServerConfig, SignatureScheme,
};
use warren_base::clock::Clock;
use warren_model::{NodeId, Time};

use crate::bundle::{ALGORITHMS, Bundle};
use crate::credentials::Credentials;
use crate::key::{Hash, sha256};
use crate::peer::{Peer, PeerError, PeerRole};

/// Of handshakes: the one kind of key there is.
static SIGNATURES: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: ALGORITHMS,
    mapping: &[(SignatureScheme::ECDSA_NISTP256_SHA256, ALGORITHMS)],
};

/// Why no configuration can be made: the library and the provider do not fit together.
#[derive(Debug, thiserror::Error)]
#[error("set up TLS")]
pub struct TlsError(#[from] rustls::Error);

/// What to give to a TLS client as name of the server. Neither sent nor looked at.
pub fn server_name() -> ServerName<'static> {
    let nobody: IpAddr = Ipv4Addr::UNSPECIFIED.into();
    ServerName::IpAddress(nobody.into())
}

/// For a listener. `protocols` are ALPN names, in order of preference; a client that offers
/// none of them is refused.
///
/// # Errors
/// [`TlsError`], on a broken build alone.
pub fn server_config(
    credentials: &Credentials,
    protocols: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    let shown = Arc::new(Shown(credentials.clone()));
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(ClientVerifier(credentials.clone())))
        .with_cert_resolver(shown);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

/// For a connection to a manager of the own cluster: to this one, if `expected` is given.
///
/// # Errors
/// [`TlsError`], on a broken build alone.
pub fn client_config(
    credentials: &Credentials,
    expected: Option<NodeId>,
    protocols: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier = ServerVerifier { credentials: credentials.clone(), expected };
    let mut config = dangerous_client(Arc::new(verifier), protocols)?;
    config.client_auth_cert_resolver = Arc::new(Shown(credentials.clone()));
    Ok(Arc::new(config))
}

/// For joining: a connection to a manager whose authority has this fingerprint. Nothing is
/// shown to it.
///
/// # Errors
/// [`TlsError`], on a broken build alone.
pub fn join_config(
    fingerprint: Hash,
    clock: Arc<dyn Clock>,
    protocols: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier = JoinVerifier { fingerprint, clock: HiddenClock(clock) };
    dangerous_client(Arc::new(verifier), protocols).map(Arc::new)
}

/// Who answers a join: a manager whose chain leads to the authority with this fingerprint. The
/// authority must be in the chain. Expired managers are refused: the token is told to them.
///
/// # Errors
/// [`PeerError`] for anybody else.
pub fn pinned_peer(
    chain: &[CertificateDer<'_>],
    fingerprint: &Hash,
    now: Time,
) -> Result<Peer, PeerError> {
    let authorities = chain.get(1..).unwrap_or_default();
    let pinned = authorities.iter().find(|der| sha256(der) == *fingerprint);
    let pinned = pinned.ok_or(PeerError::NotPinned)?;
    let bundle = Bundle::new(&[pinned]);
    let bundle = bundle.map_err(|error| PeerError::Shape { reason: error.to_string() })?;
    let peer = manager(bundle.verify(chain, now)?)?;
    if peer.expired {
        return Err(PeerError::Expired { owner: owner(&peer), not_after: peer.not_after, now });
    }
    Ok(peer)
}

/// Which side refused in a failed handshake, or on the first read after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal<'a> {
    /// This side, for this reason.
    Ours(&'a PeerError),
    /// The other side did not accept what this side showed; its log says why.
    Theirs,
}

/// Tells refused certificates from other failures of a connection.
pub fn refusal(error: &io::Error) -> Option<Refusal<'_>> {
    use rustls::AlertDescription as Alert;
    let mut cause: Option<&(dyn std::error::Error + 'static)> =
        error.get_ref().map(|inner| inner as _);
    while let Some(error) = cause {
        match error.downcast_ref::<rustls::Error>() {
            Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner)))) => {
                return inner.downcast_ref().map(Refusal::Ours);
            }
            Some(rustls::Error::AlertReceived(
                Alert::BadCertificate
                | Alert::CertificateUnknown
                | Alert::CertificateExpired
                | Alert::UnknownCA
                | Alert::AccessDenied
                | Alert::CertificateRequired,
            )) => return Some(Refusal::Theirs),
            _ => cause = error.source(),
        }
    }
    None
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn dangerous_client(
    verifier: Arc<dyn ServerCertVerifier>,
    protocols: &[&[u8]],
) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

fn owner(peer: &Peer) -> String {
    let node = peer.node.map(|id| id.to_string());
    let name = node.or_else(|| peer.operator.map(|name| name.to_string()));
    format!("{} {}", peer.role, name.unwrap_or_default())
}

fn manager(peer: Peer) -> Result<Peer, PeerError> {
    match peer.role {
        PeerRole::Manager => Ok(peer),
        role => Err(PeerError::NotManager { owner: owner(&peer), role }),
    }
}

fn refuse(error: PeerError) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

fn chain<'a>(
    leaf: &'a CertificateDer<'a>,
    rest: &'a [CertificateDer<'a>],
) -> Vec<CertificateDer<'a>> {
    let all = std::iter::once(leaf).chain(rest);
    all.map(|der| CertificateDer::from(der.as_ref())).collect()
}

/// Shows what the credentials hold at the moment of the handshake.
#[derive(Debug)]
struct Shown(Credentials);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.shown()
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let shown = self.0.shown()?;
        shown.key.choose_scheme(schemes).is_some().then_some(shown)
    }

    fn has_certs(&self) -> bool {
        self.0.shown().is_some()
    }
}

/// The parts of rustls' verifier traits that are the same for all of ours.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls13_signature(message, certificate, signed, &SIGNATURES)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            SIGNATURES.supported_schemes()
        }
    };
}

#[derive(Debug)]
struct ClientVerifier(Credentials);

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// No hints: they could not follow the bundle, and members have one certificate anyway.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.0.verify(&chain(leaf, rest)).map_err(refuse)?;
        Ok(ClientCertVerified::assertion())
    }

    signatures!();
}

#[derive(Debug)]
struct ServerVerifier {
    credentials: Credentials,
    expected: Option<NodeId>,
}

impl ServerVerifier {
    fn peer(&self, chain: &[CertificateDer<'_>]) -> Result<Peer, PeerError> {
        let peer = manager(self.credentials.verify(chain)?)?;
        match self.expected {
            Some(expected) if peer.node != Some(expected) => {
                let found = peer.node.map_or_else(|| owner(&peer), |id| id.to_string());
                Err(PeerError::OtherNode { found, expected })
            }
            _ => Ok(peer),
        }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.peer(&chain(leaf, rest)).map_err(refuse)?;
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}

#[derive(Debug)]
struct JoinVerifier {
    fingerprint: Hash,
    clock: HiddenClock,
}

struct HiddenClock(Arc<dyn Clock>);

impl std::fmt::Debug for HiddenClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

impl ServerCertVerifier for JoinVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let now = Time(self.clock.0.now_ms());
        pinned_peer(&chain(leaf, rest), &self.fingerprint, now).map_err(refuse)?;
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}

#[cfg(test)]
mod tests;
