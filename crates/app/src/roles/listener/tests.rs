//! Everybody who may knock at the port, over loopback.

use std::time::Instant;

use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsConnector;
use warren_base::clock::RealClock;
use warren_model::{ClusterId, NodeId, Time};
use warren_trust::{Authority, Identity, NodeKey, Subject};

use super::*;

/// For everything that is closed at once; a busy machine gets time.
const SOON: Duration = Duration::from_secs(5);
const HANDSHAKE: Duration = Duration::from_millis(300);

fn now() -> Time {
    use warren_base::clock::Clock;
    Time(RealClock::new().now_ms())
}

struct Cluster(Authority);

impl Cluster {
    fn new(id: u8) -> Self {
        Self(Authority::generate(ClusterId::from_bytes([id; 10]), now()).unwrap())
    }

    /// What a node of this cluster shows and trusts; `None` shows nothing.
    fn credentials(&self, node: Option<(u8, bool)>) -> Credentials {
        let credentials = Credentials::new(self.0.bundle(), Arc::new(RealClock::new()));
        if let Some((id, manager)) = node {
            let key = NodeKey::generate().unwrap();
            let request = key.signing_request("node").unwrap();
            let subject = Subject::Node { id: NodeId::from_bytes([id; 10]), manager };
            let lifetime = Duration::from_secs(3600);
            let issued = self.0.issue(&request, &subject, lifetime, now()).unwrap();
            let own = Identity::new(key, &issued.chain, self.0.bundle()).unwrap();
            credentials.set(&own).unwrap();
        }
        credentials
    }
}

struct Port {
    cluster: Cluster,
    address: SocketAddr,
    metrics: Metrics,
    arrivals: Arrivals,
    _stop: tokio_util::sync::DropGuard,
}

impl Port {
    fn open(limits: Limits) -> Self {
        let cluster = Cluster::new(1);
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let (metrics, stop) = (Metrics::default(), CancellationToken::new());
        let credentials = cluster.credentials(Some((1, true)));
        let arrivals = serve(listener, credentials, limits, metrics.clone(), stop.clone());
        let _stop = stop.drop_guard();
        Self { cluster, address, metrics, arrivals: arrivals.unwrap(), _stop }
    }

    fn quick() -> Self {
        Self::open(Limits { handshake: HANDSHAKE, ..Limits::default() })
    }

    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn tls(
        &self,
        credentials: &Credentials,
        protocols: &[&[u8]],
    ) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let config = warren_trust::client_config(credentials, None, protocols).unwrap();
        let stream = self.tcp().await;
        TlsConnector::from(config).connect(warren_trust::server_name(), stream).await
    }

    /// Waits until so many connections were turned away for a reason.
    async fn turned(&self, reason: &'static str, count: u64) {
        let start = Instant::now();
        while self.metrics.count(reason) < count {
            let seen = self.metrics.count(reason);
            assert!(start.elapsed() < SOON, "{reason}: {seen} of {count}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(self.metrics.count(reason), count, "{reason}");
    }
}

/// Resolves when the other side has closed; what it says meanwhile does not matter.
async fn closed(stream: &mut (impl tokio::io::AsyncRead + Unpin)) {
    let mut rest = Vec::new();
    let end = tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await;
    // A reset is an end as well.
    let _ = end.expect("the connection is closed");
}

#[tokio::test]
async fn plain_words_and_garbage_are_turned_away() {
    let port = Port::quick();
    for (at, words) in
        [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], PREFACE, &[0; 64], b"\x16\x03\x01\x00\x05hello"]
            .iter()
            .enumerate()
    {
        let mut stream = port.tcp().await;
        stream.write_all(words).await.unwrap();
        closed(&mut stream).await;
        port.turned("tls", at as u64 + 1).await;
    }
}

#[tokio::test]
async fn silence_and_slowness_end_at_the_deadline() {
    let port = Port::quick();
    let start = Instant::now();
    let mut silent = port.tcp().await;
    let mut slow = port.tcp().await;
    slow.write_all(b"\x16\x03\x01\x02\x00").await.unwrap();
    // Through TLS, and then nothing.
    let nobody = port.cluster.credentials(None);
    let mut mute = port.tls(&nobody, &[GRPC]).await.unwrap();
    closed(&mut silent).await;
    closed(&mut slow).await;
    closed(&mut mute).await;
    assert!(start.elapsed() >= HANDSHAKE);
    port.turned("late", 3).await;
    // Half open: they have said all they will.
    let mut half = port.tcp().await;
    half.shutdown().await.unwrap();
    closed(&mut half).await;
    port.turned("gone", 1).await;
}

#[tokio::test]
async fn who_is_who() {
    let mut port = Port::quick();
    let worker = port.cluster.credentials(Some((2, false)));
    let mut stream = port.tls(&worker, &[GRPC]).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(b"more").await.unwrap();
    let mut arrived = port.arrivals.grpc.recv().await.unwrap();
    let peer = arrived.peer().unwrap();
    assert_eq!(peer.node, Some(NodeId::from_bytes([2; 10])));
    // What was looked at is read again by who serves.
    let mut read = vec![0; PREFACE.len() + 4];
    arrived.read_exact(&mut read).await.unwrap();
    assert_eq!(read, [PREFACE, b"more"].concat());
    // Nobody in particular may try to join.
    let nobody = port.cluster.credentials(None);
    let mut stream = port.tls(&nobody, &[GRPC]).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    assert!(port.arrivals.grpc.recv().await.unwrap().peer().is_none());
    let manager = port.cluster.credentials(Some((3, true)));
    let _stream = port.tls(&manager, &[PEER]).await.unwrap();
    let arrived = port.arrivals.peers.recv().await.unwrap();
    assert_eq!(arrived.peer().unwrap().role, PeerRole::Manager);
}

#[tokio::test]
async fn wrong_protocols_and_roles_are_turned_away() {
    let port = Port::quick();
    let worker = port.cluster.credentials(Some((2, false)));
    let mut stream = port.tls(&worker, &[PEER]).await.unwrap();
    closed(&mut stream).await;
    port.turned("role", 1).await;
    let nobody = port.cluster.credentials(None);
    let mut stream = port.tls(&nobody, &[PEER]).await.unwrap();
    closed(&mut stream).await;
    port.turned("role", 2).await;
    let mut stream = port.tls(&worker, &[]).await.unwrap();
    closed(&mut stream).await;
    port.turned("protocol", 1).await;
    assert!(port.tls(&worker, &[b"http/1.1"]).await.is_err());
    port.turned("protocol", 2).await;
    let mut stream = port.tls(&worker, &[GRPC]).await.unwrap();
    stream.write_all(&[b'x'; 24]).await.unwrap();
    closed(&mut stream).await;
    port.turned("protocol", 3).await;
}

#[tokio::test]
async fn strangers_are_turned_away() {
    let port = Port::quick();
    // It trusts us, and shows a certificate of its own cluster.
    let other = Cluster::new(9).credentials(Some((2, true)));
    other.set_bundle(port.cluster.0.bundle());
    if let Ok(mut stream) = port.tls(&other, &[GRPC]).await {
        closed(&mut stream).await;
    }
    port.turned("certificate", 1).await;
    // It does not trust us.
    let other = Cluster::new(9).credentials(Some((2, true)));
    assert!(port.tls(&other, &[GRPC]).await.is_err());
    port.turned("distrusted", 1).await;
}

#[tokio::test]
async fn places_are_bounded_and_given_back() {
    let limits = Limits { connections: 4, handshakes: 8, handshake: HANDSHAKE, of_source: 2 };
    let mut port = Port::open(limits);
    // Of one certificate two, and of one address two that have none.
    let worker = port.cluster.credentials(Some((2, false)));
    let knock = async |port: &Port, credentials: &Credentials| {
        let mut stream = port.tls(credentials, &[GRPC]).await?;
        stream.write_all(PREFACE).await?;
        Ok::<_, io::Error>(stream)
    };
    let mut held = Vec::new();
    for _ in 0..2 {
        let stream = knock(&port, &worker).await.unwrap();
        held.push((stream, port.arrivals.grpc.recv().await.unwrap()));
    }
    if let Ok(mut stream) = knock(&port, &worker).await {
        closed(&mut stream).await;
    }
    port.turned("source", 1).await;
    // Another certificate has places of its own.
    let other = port.cluster.credentials(Some((3, false)));
    for _ in 0..2 {
        let stream = knock(&port, &other).await.unwrap();
        held.push((stream, port.arrivals.grpc.recv().await.unwrap()));
    }
    let mut full = port.tcp().await;
    closed(&mut full).await;
    port.turned("full", 1).await;
    held.clear();
    let stream = knock(&port, &worker).await;
    assert!(stream.is_ok(), "places are given back");
    port.arrivals.grpc.recv().await.unwrap();
}

#[tokio::test]
async fn a_crowd_of_half_open_connections_leaves_nothing_behind() {
    let limits = Limits { handshakes: 16, handshake: HANDSHAKE, ..Limits::default() };
    let mut port = Port::open(limits);
    let mut crowd = Vec::new();
    for _ in 0..200 {
        crowd.push(port.tcp().await);
    }
    for stream in &mut crowd {
        closed(stream).await;
    }
    let turned = || port.metrics.count("busy") + port.metrics.count("late");
    let start = Instant::now();
    while turned() < 200 {
        assert!(start.elapsed() < SOON, "{} were turned away", turned());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let worker = port.cluster.credentials(Some((2, false)));
    let mut stream = port.tls(&worker, &[GRPC]).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    assert!(port.arrivals.grpc.recv().await.is_some());
}

#[test]
fn taken_addresses_are_told() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let first = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let failure = bind(first.local_addr().unwrap()).unwrap_err();
        assert_eq!(failure.exit, Exit::Conflict);
        assert!(failure.message.contains("--listen: 127.0.0.1:"), "{failure}");
        let failure = bind("192.0.2.1:1".parse().unwrap()).unwrap_err();
        assert_eq!(failure.exit, Exit::Input);
    });
}
