//! Connections to managers: names, TCP, TLS, gRPC, for everybody on this side.
//!
//! The agent, consensus, relays and a joining node reach managers through a
//! [`Dialer`]; they differ in whom they accept at the other end, which is the
//! TLS configuration's to say. Every step has a deadline, and an error names
//! the address and the step.
//!
pub(crate) mod calling;
mod names;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use warren_base::clock::Clock;
use warren_model::NodeId;
use warren_trust::{Credentials, JoinToken, PeerError, Refusal, TlsError};

use self::names::Names;
use super::listener::{GRPC, PEER};
use crate::address::{Address, Host};

/// A machine that is there answers within a round trip; one that is not never does.
const CONNECT_MAX: Duration = Duration::from_secs(2);
const HANDSHAKE_MAX: Duration = Duration::from_secs(3);
/// Addresses of one name that are tried: more are somebody's mistake.
const ADDRESSES_MAX: usize = 8;
/// On lines without beats of their own: how long an idle one goes unasked, and what it may take.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(20);
const KEEPALIVE_MAX: Duration = Duration::from_secs(10);

/// What a connection is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Whom {
    /// Any manager of our cluster.
    Any,
    /// This manager of our cluster.
    Node(NodeId),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("{address} is not an address: {why}")]
    Address { address: String, why: String },
    #[error("find the address of {name}: {why}")]
    Resolve { name: String, why: String },
    #[error("connect to {address}: {}", crate::cli::failure::plain(source))]
    Connect { address: String, source: io::Error },
    #[error("connect to {address}: no answer")]
    Silent { address: String },
    #[error("{address}: {why}")]
    Untrusted { address: String, why: PeerError },
    /// A manager that cannot do it now.
    #[error("{address}: {why}")]
    Busy { address: String, why: String },
    #[error("{address} does not accept the certificate of this node; the log there says why")]
    Distrusted { address: String },
    #[error("{address} does not speak TLS as Warren does: {}", crate::cli::failure::plain(source))]
    Handshake { address: String, source: io::Error },
    #[error(transparent)]
    Setup(#[from] TlsError),
    #[error("{address} does not speak gRPC")]
    Grpc { address: String },
}

/// Makes connections. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Dialer {
    credentials: Credentials,
    names: Names,
}

impl Dialer {
    /// An address that a name has, the first of them.
    pub(crate) async fn find(&self, name: &str) -> Option<IpAddr> {
        match self.names.find(name).await {
            Ok(found) => found.first().copied(),
            Err(error) => {
                tracing::debug!(%error, "a node's address");
                None
            }
        }
    }

    pub(crate) fn new(credentials: Credentials) -> Self {
        Self { credentials, names: Names::default() }
    }

    pub(crate) fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The addresses of a machine's name.
    ///
    /// # Errors
    /// [`DialError::Resolve`].
    pub(crate) async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, DialError> {
        self.names.find(name).await
    }

    /// A stream of the managers' own protocol.
    ///
    /// # Errors
    /// [`DialError`].
    pub(crate) async fn peer(
        &self,
        address: &str,
        whom: Whom,
    ) -> Result<TlsStream<TcpStream>, DialError> {
        let config = self.config(whom, PEER)?;
        stream(&self.names, &parse(address)?, config).await
    }

    /// A gRPC channel that is connected now; once broken it stays so.
    ///
    /// # Errors
    /// [`DialError`].
    pub(crate) async fn channel(&self, address: &str, whom: Whom) -> Result<Channel, DialError> {
        let config = self.config(whom, GRPC)?;
        once(&self.names, &parse(address)?, config).await
    }

    /// A gRPC channel that is connected now, and again when it is used after it broke.
    ///
    /// # Errors
    /// [`DialError`].
    pub(crate) async fn lasting(&self, address: &str, whom: Whom) -> Result<Channel, DialError> {
        let address = parse(address)?;
        let first = stream(&self.names, &address, self.config(whom, GRPC)?).await?;
        let (dialer, named) = (self.clone(), address.to_string());
        let mut first = Some(first);
        let connector = tower::service_fn(move |_| {
            let (taken, dialer, address) = (first.take(), dialer.clone(), address.clone());
            async move {
                let stream = match taken {
                    Some(stream) => stream,
                    None => {
                        let config = dialer.config(whom, GRPC).map_err(io::Error::other)?;
                        let dialled = stream(&dialer.names, &address, config).await;
                        dialled.map_err(io::Error::other)?
                    }
                };
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        });
        let endpoint = endpoint().keep_alive_while_idle(true);
        let channel = endpoint.connect_with_connector(connector).await;
        channel.map_err(|_| DialError::Grpc { address: named })
    }

    fn config(&self, whom: Whom, protocol: &[u8]) -> Result<Arc<ClientConfig>, TlsError> {
        let expected = match whom {
            Whom::Any => None,
            Whom::Node(node) => Some(node),
        };
        warren_trust::client_config(&self.credentials, expected, &[protocol])
    }
}

/// A gRPC channel to a manager of the cluster that a token is of; nothing is shown to it.
///
/// # Errors
/// [`DialError`].
pub(crate) async fn joining(
    address: &Address,
    token: &JoinToken,
    clock: Arc<dyn Clock>,
) -> Result<Channel, DialError> {
    let config = warren_trust::join_config(token.fingerprint, clock, &[GRPC])?;
    once(&Names::default(), address, config).await
}

fn parse(address: &str) -> Result<Address, DialError> {
    Address::parse(address, crate::settings::PORT)
        .map_err(|why| DialError::Address { address: address.to_owned(), why })
}

fn endpoint() -> Endpoint {
    Endpoint::from_static("http://manager.invalid")
        .initial_stream_window_size(warren_manager::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(warren_manager::CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_MAX)
}

async fn once(
    names: &Names,
    address: &Address,
    config: Arc<ClientConfig>,
) -> Result<Channel, DialError> {
    let stream = stream(names, address, config).await?;
    over(address, stream).await
}

/// gRPC over what is connected.
async fn over<S>(address: &Address, stream: S) -> Result<Channel, DialError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut stream = Some(TokioIo::new(stream));
    // The address is never looked at: the connector hands out the stream, once.
    let connector = tower::service_fn(move |_| {
        let taken = stream.take();
        async move { taken.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    let channel = endpoint().connect_with_connector(connector).await;
    channel.map_err(|_| DialError::Grpc { address: address.to_string() })
}

async fn stream(
    names: &Names,
    address: &Address,
    config: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, DialError> {
    let shown = || address.to_string();
    let stream = connect(names, address).await?;
    // Small messages must not wait for more of them; without it they are late, not lost.
    let _ = stream.set_nodelay(true);
    let handshake = TlsConnector::from(config).connect(warren_trust::server_name(), stream);
    match tokio::time::timeout(HANDSHAKE_MAX, handshake).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(source)) => Err(match warren_trust::refusal(&source) {
            Some(Refusal::Ours(why)) => DialError::Untrusted { address: shown(), why: why.clone() },
            Some(Refusal::Theirs) => DialError::Distrusted { address: shown() },
            None => DialError::Handshake { address: shown(), source },
        }),
        Err(_) => Err(DialError::Silent { address: shown() }),
    }
}

/// TCP to the first address of the host that answers.
async fn connect(names: &Names, address: &Address) -> Result<TcpStream, DialError> {
    let hosts = match &address.host {
        Host::Ip(ip) => vec![*ip],
        Host::Name(name) => names.find(name).await?,
    };
    let mut last = DialError::Silent { address: address.to_string() };
    for ip in hosts.into_iter().take(ADDRESSES_MAX) {
        let to = SocketAddr::new(ip, address.port);
        let address = to.to_string();
        match tokio::time::timeout(CONNECT_MAX, TcpStream::connect(to)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(source)) => last = DialError::Connect { address, source },
            Err(_) => last = DialError::Silent { address },
        }
    }
    Err(last)
}
