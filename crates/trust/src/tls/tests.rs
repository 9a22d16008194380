//! Real handshakes, over pipes in memory.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use warren_base::clock::ManualClock;

use super::*;
use crate::ca::Authority;
use crate::peer::BACKDATED_MS;
use crate::testing::{DAY_MS, NOW, authority, cluster, identity, issue, manager, node, worker};
use crate::token::{JoinRole, JoinToken};
use crate::{Identity, NodeKey, Subject};

const H2: &[u8] = b"h2";
const PEER: &[u8] = b"warren-peer/1";

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::at(NOW.0))
}

/// Credentials with a certificate of `ca`, or with none.
fn member(ca: &Authority, subject: Option<&Subject>) -> Credentials {
    let credentials = Credentials::new(ca.bundle(), clock());
    if let Some(subject) = subject {
        credentials.set(&identity(ca, subject, NOW)).unwrap();
    }
    credentials
}

fn connect_to(credentials: &Credentials) -> Arc<ClientConfig> {
    client_config(credentials, None, &[PEER]).unwrap()
}

type Streams =
    (tokio_rustls::client::TlsStream<DuplexStream>, tokio_rustls::server::TlsStream<DuplexStream>);

/// A handshake with one byte each way: a client that was refused learns it with the first read.
async fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> (io::Result<()>, io::Result<Streams>) {
    let (near, far) = duplex(64 * 1024);
    let client = async {
        let mut stream = TlsConnector::from(client).connect(server_name(), near).await?;
        stream.write_all(b"c").await?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        Ok(stream)
    };
    let server = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        stream.write_all(b"s").await?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        Ok(stream)
    };
    match tokio::join!(client, server) {
        (Ok(near), Ok(far)) => (Ok(()), Ok((near, far))),
        (near, far) => (near.map(drop), far.map(|_| unreachable!("the client failed"))),
    }
}

/// How it went, for each side: `ok`, its own reason, `refused` or `failed`.
async fn outcome(client: Arc<ClientConfig>, server: &Credentials) -> [String; 2] {
    let server = server_config(server, &[H2, PEER]).unwrap();
    let (near, far) = handshake(client, server).await;
    [near.err(), far.err()].map(|error| match error {
        None => "ok".to_owned(),
        Some(error) => match refusal(&error) {
            Some(Refusal::Ours(error)) => error.to_string(),
            Some(Refusal::Theirs) => "refused".to_owned(),
            None => "failed".to_owned(),
        },
    })
}

#[track_caller]
fn check(got: &[String; 2], client: &str, server: &str) {
    assert!(got[0].contains(client) && got[1].contains(server), "{got:?}");
}

#[tokio::test]
async fn members_recognise_each_other() {
    let ca = authority(1);
    let (client, server) = (member(&ca, Some(&worker(2))), member(&ca, Some(&manager(1))));
    let config = server_config(&server, &[H2, PEER]).unwrap();
    let streams = handshake(connect_to(&client), config).await.1.unwrap();
    let (near, far) = (streams.0.get_ref().1, streams.1.get_ref().1);
    assert_eq!(far.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(far.alpn_protocol(), Some(PEER));
    assert_eq!(far.server_name(), None);
    let peer = server.peer_of(far.peer_certificates()).unwrap().unwrap();
    assert_eq!((peer.node, peer.role, peer.expired), (Some(node(2)), PeerRole::Worker, false));
    assert_eq!(Some(peer), client.own());
    let peer = client.peer_of(near.peer_certificates()).unwrap().unwrap();
    assert_eq!((peer.node, peer.role), (Some(node(1)), PeerRole::Manager));
}

#[tokio::test]
async fn a_client_may_show_nothing() {
    let ca = authority(1);
    let (client, server) = (member(&ca, None), member(&ca, Some(&manager(1))));
    let config = server_config(&server, &[H2, PEER]).unwrap();
    let streams = handshake(connect_to(&client), config).await.1.unwrap();
    assert_eq!(server.peer_of(streams.1.get_ref().1.peer_certificates()), Ok(None));
    // A server must show something.
    check(&outcome(connect_to(&client), &member(&ca, None)).await, "refused", "failed");
}

#[tokio::test]
async fn strangers_are_refused_by_the_side_that_sees_it() {
    let (ca, other) = (authority(1), authority(2));
    let twin = authority(1);
    let (client, server) = (member(&ca, Some(&worker(2))), member(&ca, Some(&manager(1))));
    // A foreign server.
    let foreign = member(&other, Some(&manager(1)));
    check(
        &outcome(connect_to(&client), &foreign).await,
        "is not signed by this cluster's",
        "refused",
    );
    // A foreign client that trusts us: of another cluster, and of a forged authority of this one.
    for stranger in [&other, &twin] {
        let foreign = member(stranger, Some(&worker(2)));
        foreign.set_bundle(ca.bundle());
        check(&outcome(connect_to(&foreign), &server).await, "refused", "is not signed by");
    }
    // A worker that plays manager.
    let worker = member(&ca, Some(&worker(3)));
    let got = outcome(connect_to(&client), &worker).await;
    check(&got, "calls itself a manager, but its certificate says worker", "refused");
    // An operator does, too.
    let role = warren_model::operator::OperatorRole::Admin;
    let anna = Subject::Operator { name: "anna".parse().unwrap(), role };
    let anna = member(&ca, Some(&anna));
    check(&outcome(connect_to(&client), &anna).await, "says operator:admin", "refused");
    check(&outcome(connect_to(&anna), &server).await, "ok", "ok");
    // The right cluster, another node.
    let expect = |id| client_config(&client, Some(node(id)), &[PEER]).unwrap();
    check(&outcome(expect(1), &server).await, "ok", "ok");
    let got = outcome(expect(5), &server).await;
    check(&got, &format!("node {} answers where node {}", node(1), node(5)), "refused");
    // No protocol in common.
    let config = client_config(&client, None, &[b"http/1.1"]).unwrap();
    check(&outcome(config, &server).await, "failed", "failed");
}

#[tokio::test]
async fn another_cluster_under_the_same_authority_is_told() {
    let ca = authority(1);
    let server = member(&ca, Some(&manager(1)));
    let key = NodeKey::generate().unwrap();
    let leaf = crate::ca::tests::strayed(&ca, cluster(9), &worker(2), &key);
    let mut config = (*connect_to(&member(&ca, None))).clone();
    let shown = CertifiedKey::new(vec![leaf.into()], key.tls_key().unwrap());
    config.client_auth_cert_resolver = Arc::new(Stolen(Arc::new(shown)));
    let got = outcome(Arc::new(config), &server).await;
    let expected = format!("belongs to cluster {}, not to {}", cluster(9), cluster(1));
    check(&got, "refused", &expected);
}

#[tokio::test]
async fn the_expired_are_let_in_and_marked() {
    let ca = authority(1);
    let (client, server) = (member(&ca, Some(&worker(2))), member(&ca, Some(&manager(1))));
    let later = NOW.plus_ms(200 * DAY_MS);
    // The clock of one side knows, by the last moment that the cluster reached.
    server.advance(later);
    client.advance(later);
    server.advance(NOW);
    assert_eq!(server.now(), later);
    let config = server_config(&server, &[PEER]).unwrap();
    let streams = handshake(connect_to(&client), config.clone()).await.1.unwrap();
    let peer = server.peer_of(streams.1.get_ref().1.peer_certificates()).unwrap().unwrap();
    assert!(peer.expired && client.own().unwrap().expired);
    let peer = client.peer_of(streams.0.get_ref().1.peer_certificates()).unwrap().unwrap();
    assert!(peer.expired);
    // Renewed in place: the same configurations, the open connection stays.
    let old = identity(&ca, &worker(2), NOW);
    let next = issue(&ca, old.key(), &worker(2), later).chain;
    client.set(&old.renewed(&next, ca.bundle()).unwrap()).unwrap();
    assert!(
        old.renewed(
            &issue(&ca, &NodeKey::generate().unwrap(), &worker(2), later).chain,
            ca.bundle()
        )
        .is_err()
    );
    let fresh = handshake(connect_to(&client), config).await.1.unwrap();
    let peer = server.peer_of(fresh.1.get_ref().1.peer_certificates()).unwrap().unwrap();
    assert!(!peer.expired);
    let (mut near, mut far) = streams;
    near.write_all(b"x").await.unwrap();
    assert_eq!(far.read_u8().await.unwrap(), b'x');
}

#[tokio::test]
async fn clocks_far_behind_are_told_to_be_set() {
    let ca = authority(1);
    let server = member(&ca, Some(&manager(1)));
    for (behind_ms, expected) in [(BACKDATED_MS, "ok"), (2 * BACKDATED_MS, "set the clocks")] {
        let clock = Arc::new(ManualClock::at(NOW.0 - behind_ms));
        let client = Credentials::new(ca.bundle(), clock);
        let got = outcome(connect_to(&client), &server).await;
        check(&got, expected, if expected == "ok" { "ok" } else { "refused" });
    }
}

#[tokio::test]
async fn rotation_goes_through_without_an_outage() {
    let old = authority(1);
    let new = old.rotate(NOW).unwrap();
    let done = new.finish_rotation().unwrap();
    let with = |issuer: &Authority, subject: &Subject, trusted: &Authority| {
        let credentials = member(issuer, Some(subject));
        credentials.set_bundle(trusted.bundle());
        credentials
    };
    for (client, server, expected) in [
        // Server renewed, client has heard of nothing; and the other way round.
        (with(&old, &worker(2), &old), with(&new, &manager(1), &new), ["ok", "ok"]),
        (with(&new, &worker(2), &new), with(&old, &manager(1), &old), ["ok", "ok"]),
        (with(&old, &worker(2), &new), with(&new, &manager(1), &new), ["ok", "ok"]),
        (with(&new, &worker(2), &done), with(&new, &manager(1), &done), ["ok", "ok"]),
        // Finished: who did not renew is out.
        (with(&old, &worker(2), &new), with(&new, &manager(1), &done), ["refused", "not signed"]),
        (with(&new, &worker(2), &done), with(&old, &manager(1), &new), ["not signed", "refused"]),
    ] {
        check(&outcome(connect_to(&client), &server).await, expected[0], expected[1]);
    }
    // Who was let in before is not known any more after it.
    let server = with(&new, &manager(1), &new);
    let config = server_config(&server, &[PEER]).unwrap();
    let client = with(&old, &worker(2), &new);
    let streams = handshake(connect_to(&client), config).await.1.unwrap();
    let shown = streams.1.get_ref().1.peer_certificates();
    assert!(server.peer_of(shown).is_ok());
    server.set_bundle(done.bundle());
    assert!(matches!(server.peer_of(shown), Err(PeerError::Foreign { .. })));
}

#[tokio::test]
async fn joining_pins_the_authority() {
    let ca = authority(1);
    let server = member(&ca, Some(&manager(1)));
    let join = |ca: &Authority, at| {
        let token = JoinToken::new(JoinRole::Worker, ca.fingerprint(), &[1; 16]).to_string();
        let token: JoinToken = token.parse().unwrap();
        join_config(token.fingerprint, Arc::new(ManualClock::at(at)), &[H2]).unwrap()
    };
    check(&outcome(join(&ca, NOW.0), &server).await, "ok", "ok");
    // The same cluster id, another authority.
    let got = outcome(join(&authority(1), NOW.0), &server).await;
    check(&got, "not the one that the join token names", "refused");
    let worker = member(&ca, Some(&worker(3)));
    check(&outcome(join(&ca, NOW.0), &worker).await, "calls itself a manager", "refused");
    let late = NOW.0 + 200 * DAY_MS;
    check(&outcome(join(&ca, late), &server).await, "was valid until", "refused");
    let early = NOW.0 - 2 * BACKDATED_MS;
    check(&outcome(join(&ca, early), &server).await, "set the clocks", "refused");
    // A forger adds the right authority to a chain that it did not sign.
    let forger = authority(1);
    let key = NodeKey::generate().unwrap();
    let mut chain = issue(&forger, &key, &manager(1), NOW).chain;
    chain.push(ca.bundle().certificates()[0].to_vec());
    let forged = Identity::new(key, &chain, forger.bundle()).unwrap();
    let server = Credentials::new(forger.bundle(), clock());
    server.set(&forged).unwrap();
    check(&outcome(join(&ca, NOW.0), &server).await, "is not signed by", "refused");
}

#[tokio::test]
async fn tokens_outlive_the_start_of_a_rotation() {
    let old = authority(1);
    let new = old.rotate(NOW).unwrap();
    let join = |ca: &Authority| join_config(ca.fingerprint(), clock(), &[H2]).unwrap();
    let rotating = member(&new, Some(&manager(1)));
    for ca in [&old, &new] {
        check(&outcome(join(ca), &rotating).await, "ok", "ok");
    }
    let done = member(&new.finish_rotation().unwrap(), Some(&manager(1)));
    check(&outcome(join(&new), &done).await, "ok", "ok");
    check(&outcome(join(&old), &done).await, "not the one that the join token names", "refused");
}

#[tokio::test]
async fn sessions_are_not_resumed() {
    let ca = authority(1);
    let (client, server) = (member(&ca, Some(&worker(2))), member(&ca, Some(&manager(1))));
    // The worst client: it keeps tickets, whatever ours does.
    let mut config = (*connect_to(&client)).clone();
    config.resumption = Resumption::in_memory_sessions(8);
    let (client, server) = (Arc::new(config), server_config(&server, &[PEER]).unwrap());
    for _ in 0..2 {
        let streams = handshake(client.clone(), server.clone()).await.1.unwrap();
        let kind = streams.1.get_ref().1.handshake_kind();
        assert!(matches!(
            kind,
            Some(rustls::HandshakeKind::Full | rustls::HandshakeKind::FullWithHelloRetryRequest)
        ));
    }
}

#[tokio::test]
async fn other_protocols_and_other_keys_fail_cleanly() {
    let ca = authority(1);
    let server = server_config(&member(&ca, Some(&manager(1))), &[PEER]).unwrap();
    for text in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 40], b"\x16\x03\x01\xff\xff", b""] {
        let (mut near, far) = duplex(1024);
        near.write_all(text).await.unwrap();
        near.shutdown().await.unwrap();
        let error = TlsAcceptor::from(server.clone()).accept(far).await.unwrap_err();
        assert_eq!(refusal(&error), None, "{error}");
    }
    // A good certificate with a key that it is not for: refused by its signature.
    let key = NodeKey::generate().unwrap();
    let other = NodeKey::generate().unwrap();
    let chain = issue(&ca, &key, &worker(2), NOW).chain;
    let mut config = (*connect_to(&member(&ca, None))).clone();
    let stolen = CertifiedKey::new(crate::ca::to_chain(&chain), other.tls_key().unwrap());
    config.client_auth_cert_resolver = Arc::new(Stolen(Arc::new(stolen)));
    let (near, far) = handshake(Arc::new(config), server).await;
    assert!(near.is_err() && far.is_err());
}

#[derive(Debug)]
struct Stolen(Arc<CertifiedKey>);

impl ResolvesClientCert for Stolen {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
