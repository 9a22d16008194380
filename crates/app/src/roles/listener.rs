//! The one port that others reach this node at: TLS, then who speaks what.
//!
//! Whoever connects has [`HANDSHAKE_MAX`] to show a TLS handshake, a protocol
//! and its first bytes; then the connection goes to gRPC or to the managers'
//! own protocol. What does not get that far is closed, counted by reason, and
//! costs no more than its place: connections, handshakes and places of one
//! source are all bounded.
//!
//! Not here: what is said on a connection, and whether its owner may say it.
//! Removed nodes are known to the state, so each call asks there.

mod limit;
mod metrics;
mod sorted;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use warren_trust::{Credentials, Peer, PeerRole, Refusal};

use crate::cli::failure::{Exit, Failure};
use limit::{Sources, Sparing};
pub(crate) use metrics::Metrics;
pub(crate) use sorted::Connection;

/// gRPC.
pub(crate) const GRPC: &[u8] = b"h2";
/// Managers among each other.
pub(crate) const PEER: &[u8] = b"warren-peer/1";

/// Thousands of agents, and a person.
const CONNECTIONS_MAX: usize = 4096;
/// A handshake costs half a millisecond: what is more than this waits for somebody who is slow.
const HANDSHAKES_MAX: usize = 256;
/// From the accepted connection to its first bytes inside TLS.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// Connections of one address without a certificate, or of one certificate. A machine that runs
/// hundreds of agents or clients for a test stays below it.
const OF_SOURCE_MAX: usize = 512;
/// The kernel keeps that many until they are accepted: a storm of agents that lost their manager.
const BACKLOG: u32 = 1024;
/// Connections on their way to whoever serves them.
const WAITING_MAX: usize = 64;
/// After an accept that failed for want of descriptors: more fail at once, and spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Length of what every HTTP/2 connection begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Of which there are so many that tests would need seconds or thousands of connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) connections: usize,
    pub(crate) handshakes: usize,
    pub(crate) handshake: Duration,
    pub(crate) of_source: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: CONNECTIONS_MAX,
            handshakes: HANDSHAKES_MAX,
            handshake: HANDSHAKE_MAX,
            of_source: OF_SOURCE_MAX,
        }
    }
}

/// Connections that got through, by protocol.
pub(crate) struct Arrivals {
    pub(crate) grpc: mpsc::Receiver<Connection>,
    pub(crate) peers: mpsc::Receiver<Connection>,
}

/// Listens at `address`; nothing is accepted yet.
///
/// # Errors
/// [`Exit::Conflict`] when somebody else does.
pub(crate) fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    let made = || {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        // Connections of an earlier life must not keep the port.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    made().map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            Failure::new(Exit::Conflict, format!("--listen: {address} is in use"))
                .hint("another node or program listens there; choose another port")
        }
        io::ErrorKind::AddrNotAvailable => {
            Failure::input(format!("--listen: {address} is no address of this machine"))
        }
        _ => Failure::failed(format!("listen at {address}: {error}")),
    })
}

/// Accepts until told to stop. Needs a tokio runtime around it.
pub(crate) fn serve(
    listener: TcpListener,
    credentials: Credentials,
    limits: Limits,
    metrics: Metrics,
    stop: CancellationToken,
) -> Result<Arrivals, warren_trust::TlsError> {
    let config = warren_trust::server_config(&credentials, &[GRPC, PEER])?;
    let (grpc, to_grpc) = mpsc::channel(WAITING_MAX);
    let (peers, to_peers) = mpsc::channel(WAITING_MAX);
    let door = Arc::new(Door {
        acceptor: TlsAcceptor::from(config),
        credentials,
        limits,
        connections: Arc::new(Semaphore::new(limits.connections)),
        handshakes: Arc::new(Semaphore::new(limits.handshakes)),
        sources: Sources::new(limits.of_source),
        // One address may take half: another still gets through.
        greeting: Sources::new(limits.handshakes.div_ceil(2)),
        sparing: Sparing::default(),
        metrics,
        grpc,
        peers,
    });
    tokio::spawn(door.run(listener, stop).in_current_span());
    Ok(Arrivals { grpc: to_grpc, peers: to_peers })
}

struct Door {
    acceptor: TlsAcceptor,
    credentials: Credentials,
    limits: Limits,
    connections: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    sources: Sources,
    /// Handshakes of each address.
    greeting: Sources,
    sparing: Sparing,
    metrics: Metrics,
    grpc: mpsc::Sender<Connection>,
    peers: mpsc::Sender<Connection>,
}

/// Why a connection got no further.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Turned {
    /// As many connections as this node serves.
    Full,
    /// As many handshakes are under way.
    Busy,
    /// As many of this source are here.
    Source,
    /// Not within the time there is.
    Late,
    /// Not TLS, or broken TLS.
    Tls(String),
    /// A certificate that is not to be trusted, and why.
    Certificate(String),
    /// They did not trust ours.
    Distrusted,
    /// Neither protocol, or not what its first bytes should be.
    Protocol,
    /// The managers' protocol with another certificate than a manager's.
    Role,
    /// They went away.
    Gone,
}

impl Turned {
    /// For metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Busy => "busy",
            Self::Source => "source",
            Self::Late => "late",
            Self::Tls(_) => "tls",
            Self::Certificate(_) => "certificate",
            Self::Distrusted => "distrusted",
            Self::Protocol => "protocol",
            Self::Role => "role",
            Self::Gone => "gone",
        }
    }
}

impl std::fmt::Display for Turned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full => f.write_str("all places are taken"),
            Self::Busy => f.write_str("too many handshakes are under way"),
            Self::Source => f.write_str("too many connections of this source"),
            Self::Late => f.write_str("the handshake took too long"),
            Self::Tls(why) | Self::Certificate(why) => f.write_str(why),
            Self::Distrusted => f.write_str("they did not trust this node's certificate"),
            Self::Protocol => f.write_str("neither gRPC nor a manager's protocol"),
            Self::Role => f.write_str("a manager's protocol without a manager's certificate"),
            Self::Gone => f.write_str("they went away"),
        }
    }
}

impl Door {
    async fn run(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            match accepted {
                Ok((stream, from)) => self.admit(stream, from, &stop),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Finds a place for a connection, or closes it at once.
    fn admit(self: &Arc<Self>, stream: TcpStream, from: SocketAddr, stop: &CancellationToken) {
        let connection = Arc::clone(&self.connections).try_acquire_owned();
        let Ok(connection) = connection else { return self.turn(from, &Turned::Full) };
        let handshake = Arc::clone(&self.handshakes).try_acquire_owned();
        let Ok(handshake) = handshake else { return self.turn(from, &Turned::Busy) };
        let address = Source::from(from.ip().to_canonical());
        let Some(greeting) = self.greeting.enter(address) else {
            return self.turn(from, &Turned::Busy);
        };
        let (door, stop) = (Arc::clone(self), stop.clone());
        let greeted = async move {
            let greeted = tokio::select! {
                greeted = tokio::time::timeout(door.limits.handshake, door.greet(stream)) => {
                    greeted.unwrap_or(Err(Turned::Late))
                }
                () = stop.cancelled() => return,
            };
            drop((handshake, greeting));
            let (stream, peer, first) = match greeted {
                Ok(greeted) => greeted,
                Err(turned) => return door.turn(from, &turned),
            };
            // From here on its certificate is its source, if it has one: many nodes may share an
            // address.
            let source = peer.as_ref().map_or(address, |peer| peer.key_hash.into());
            let Some(source) = door.sources.enter(source) else {
                return door.turn(from, &Turned::Source);
            };
            let grpc = stream.get_ref().1.alpn_protocol() == Some(GRPC);
            let open = door.metrics.open(if grpc { "grpc" } else { "peer" });
            let connection = Connection::new(stream, first, peer, from, (connection, source, open));
            let line = if grpc { &door.grpc } else { &door.peers };
            // Nobody serves any more: the node is stopping.
            let _ = line.send(connection).await;
        };
        tokio::spawn(greeted.in_current_span());
    }

    /// TLS, the protocol, the first bytes.
    async fn greet(
        &self,
        stream: TcpStream,
    ) -> Result<(Box<TlsStream<TcpStream>>, Option<Peer>, Vec<u8>), Turned> {
        // Small messages must not wait for more of them; without it they are late, not lost.
        let _ = stream.set_nodelay(true);
        let accepted = self.acceptor.accept(stream).into_fallible().await;
        let mut stream = match accepted {
            Ok(stream) => Box::new(stream),
            Err((error, stream)) => {
                let turned = judge(&error);
                if matches!(turned, Turned::Certificate(_)) {
                    linger(stream).await;
                }
                return Err(turned);
            }
        };
        let connection = stream.get_ref().1;
        let peer = self.credentials.peer_of(connection.peer_certificates());
        let peer = peer.map_err(|error| Turned::Certificate(error.to_string()))?;
        let mut first = Vec::new();
        match connection.alpn_protocol() {
            Some(GRPC) => {
                first.resize(PREFACE.len(), 0);
                stream.read_exact(&mut first).await.map_err(|e| judge(&e))?;
                if first != PREFACE {
                    return Err(Turned::Protocol);
                }
            }
            Some(PEER) if peer.as_ref().is_some_and(|p| p.role == PeerRole::Manager) => {}
            Some(PEER) => return Err(Turned::Role),
            _ => return Err(Turned::Protocol),
        }
        Ok((stream, peer, first))
    }

    fn turn(&self, from: SocketAddr, turned: &Turned) {
        self.metrics.turned(turned.reason());
        if !self.sparing.may_say() {
            return;
        }
        let from = from.to_string();
        match turned {
            // Scanners, and whoever was interrupted: of no interest unless looked for.
            Turned::Gone => tracing::debug!(from, "connection: {turned}"),
            _ => tracing::info!(from, reason = turned.reason(), "connection refused: {turned}"),
        }
    }
}

/// Lets the refusal arrive: who closes with something unread sends a reset, and the other side may
/// see that instead of the reason.
async fn linger(mut stream: TcpStream) {
    const FOR: Duration = Duration::from_millis(500);
    const BYTES_MAX: u64 = 64 << 10;
    let rest = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut (&mut stream).take(BYTES_MAX), &mut tokio::io::sink()).await
    };
    // Whatever happens: it was refused, and is closed now.
    let _ = tokio::time::timeout(FOR, rest).await;
}

/// What a failed handshake, or a failed first read, was.
fn judge(error: &io::Error) -> Turned {
    match warren_trust::refusal(error) {
        Some(Refusal::Ours(reason)) => return Turned::Certificate(reason.to_string()),
        Some(Refusal::Theirs) => return Turned::Distrusted,
        None => {}
    }
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match (tls, error.kind()) {
        (Some(rustls::Error::NoApplicationProtocol), _) => Turned::Protocol,
        (Some(error), _) => Turned::Tls(format!("not TLS as it should be: {error}")),
        (None, io::ErrorKind::InvalidData) => Turned::Tls("not TLS".to_owned()),
        (None, _) => Turned::Gone,
    }
}

/// Whom a place is counted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    Address(IpAddr),
    Key([u8; 32]),
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        // Whoever has one IPv6 address has its whole network.
        match address {
            IpAddr::V4(_) => Self::Address(address),
            IpAddr::V6(six) => {
                let network = u128::from(six) & !u128::from(u64::MAX);
                Self::Address(IpAddr::V6(network.into()))
            }
        }
    }
}

impl From<[u8; 32]> for Source {
    fn from(key: [u8; 32]) -> Self {
        Self::Key(key)
    }
}
