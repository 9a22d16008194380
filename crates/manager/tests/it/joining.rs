//! Machines that want to be nodes: with good and bad tokens, keys, clocks.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use tonic::{Code, Status};
use warren_base::clock::{Clock, ManualClock, RealClock};
use warren_manager::WARNING_KEY;
use warren_model::cluster::Subnet;
use warren_model::{Cluster, NodeId, Time};
use warren_proto::v1;
use warren_state::change::{Mutation, Transaction};
use warren_trust::{Bundle, JoinRole, JoinToken, NodeKey, Peer, PeerRole};

use crate::house::{House, hint, peer, remote, soon};

fn now_ms() -> u64 {
    RealClock::new().now_ms()
}

struct Machine {
    id: NodeId,
    key: NodeKey,
}

impl Machine {
    fn new(byte: u8) -> Self {
        Self { id: NodeId::from_bytes([byte; 10]), key: NodeKey::generate().unwrap() }
    }

    fn request(&self, token: &str) -> v1::JoinRequest {
        v1::JoinRequest {
            token: token.to_owned(),
            node_id: self.id.as_bytes().to_vec(),
            signing_request: self.key.signing_request(&self.id.to_string()).unwrap(),
            description: Some(v1::NodeDescription {
                hostname: "host-n".into(),
                address: "10.0.0.50:2377".into(),
                ..Default::default()
            }),
            manager_only: false,
            time: now_ms(),
            routes: Vec::new(),
        }
    }

    async fn join(&self, house: &House, token: &str) -> Result<v1::Joined, Status> {
        join(house, self.request(token)).await
    }
}

async fn join(house: &House, request: v1::JoinRequest) -> Result<v1::Joined, Status> {
    let mut client = house.join_as(remote(None)).await;
    soon(client.join(request)).await.map(tonic::Response::into_inner)
}

async fn token(house: &House, request: v1::GetJoinTokenRequest) -> String {
    soon(house.control.clone().get_join_token(request)).await.unwrap().into_inner().token
}

async fn worker_token(house: &House) -> String {
    token(house, v1::GetJoinTokenRequest::default()).await
}

/// Whom a chain belongs to, as another member sees it.
fn owner(authorities: &[Vec<u8>], chain: &[Vec<u8>]) -> Peer {
    let chain: Vec<CertificateDer<'_>> =
        chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    Bundle::new(authorities).unwrap().verify(&chain, Time(now_ms())).unwrap()
}

#[tokio::test]
async fn a_worker_joins_and_a_retry_is_answered() {
    let house = House::open("a").await;
    let token = worker_token(&house).await;
    let machine = Machine::new(50);
    let joined = machine.join(&house, &token).await.unwrap();
    assert!(joined.worker && !joined.manager && joined.number.is_none());
    assert_eq!(joined.managers, ["10.0.0.97:2377"]);
    let owner = owner(&joined.authorities, &joined.certificates);
    assert_eq!((owner.node, owner.role), (Some(machine.id), PeerRole::Worker));
    let view = house.store.view();
    let node = view.node(machine.id).unwrap();
    assert_eq!((node.key_hash, node.issuer_hash), (owner.key_hash, owner.issuer_hash));
    assert_eq!(node.certificate_not_after, owner.not_after);
    // The answer was lost.
    let again = machine.join(&house, &token).await.unwrap();
    assert!(again.revision >= joined.revision);
    assert_eq!(house.store.view().nodes().len(), 2);
    // Somebody else with its id.
    let thief = Machine { id: machine.id, key: NodeKey::generate().unwrap() };
    let refused = thief.join(&house, &token).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert!(refused.message().contains("a member already, as host-n"), "{}", refused.message());
    // Removed, it is not let in again with the key it had.
    let remove =
        v1::RemoveNodeRequest { node: machine.id.to_string(), force: true, ..Default::default() };
    soon(house.control.clone().remove_node(remove)).await.unwrap();
    let refused = machine.join(&house, &token).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(hint(&refused).contains("remove its data folder"));
}

#[tokio::test]
async fn who_joins_hears_of_the_pool() {
    let house = House::open("a").await;
    let pool = Subnet { address: [10, 200, 0, 0].into(), prefix: 16 };
    let cluster = Cluster { pool, ..house.store.view().cluster().unwrap().clone() };
    let mutations = vec![Mutation::SetCluster(cluster)];
    let changed = Transaction { mutations, ..Transaction::default() };
    house.store.propose(changed).await.unwrap();
    let joined = Machine::new(50).join(&house, &worker_token(&house).await).await.unwrap();
    assert_eq!(joined.pool.map(Subnet::try_from), Some(Ok(pool)));
}

#[tokio::test]
async fn a_manager_joins_with_a_number() {
    let house = House::open("a").await;
    let token =
        token(&house, v1::GetJoinTokenRequest { manager: true, ..Default::default() }).await;
    let machine = Machine::new(50);
    let request = v1::JoinRequest { manager_only: true, ..machine.request(&token) };
    let joined = join(&house, request).await.unwrap();
    assert_eq!((joined.manager, joined.worker, joined.number), (true, false, Some(2)));
    assert_eq!(owner(&joined.authorities, &joined.certificates).role, PeerRole::Manager);
    let mut nowhere = Machine::new(51).request(&token);
    nowhere.description.as_mut().unwrap().address = "0.0.0.0:2377".into();
    let refused = join(&house, nowhere).await.unwrap_err();
    assert!(refused.message().contains("is not one machine's address"), "{}", refused.message());
}

#[tokio::test]
async fn bad_tokens() {
    let house = House::open("a").await;
    let good = worker_token(&house).await;
    let parsed: JoinToken = good.parse().unwrap();
    let check = async |token: String, code: Code, message: &str| {
        let refused = Machine::new(50).join(&house, &token).await.unwrap_err();
        assert_eq!(refused.code(), code, "{token}: {}", refused.message());
        assert!(refused.message().contains(message), "{token}: {}", refused.message());
        assert!(!hint(&refused).is_empty());
    };
    check(good[..30].to_owned(), Code::InvalidArgument, "cut off").await;
    let foreign = JoinToken::new(JoinRole::Worker, [9; 32], &[1; 16]).to_string();
    check(foreign, Code::Unauthenticated, "of another cluster").await;
    let forged = JoinToken::new(JoinRole::Worker, parsed.fingerprint, &[1; 16]).to_string();
    check(forged, Code::Unauthenticated, "not valid").await;
    // The secret of workers does not make a manager.
    check(good.replace("-w-", "-m-"), Code::Unauthenticated, "not valid").await;
    // Replaced: from that moment.
    let rotate = v1::GetJoinTokenRequest { rotate: true, ..Default::default() };
    let fresh = token(&house, rotate).await;
    check(good, Code::Unauthenticated, "replaced by a newer one").await;
    Machine::new(50).join(&house, &fresh).await.unwrap();
    let failures = "joins_total{result=\"bad_token\"} 4";
    let mut registry = prometheus_client::registry::Registry::default();
    house.manager.metrics().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains(failures), "{text}");
    assert!(text.contains("joins_total{result=\"ok\"} 1"), "{text}");
}

#[tokio::test]
async fn tokens_expire() {
    let clock = ManualClock::at(now_ms());
    let house = House::with_clock("a", Arc::new(clock.clone())).await;
    let ask = v1::GetJoinTokenRequest { expires_in_ms: Some(60_000), ..Default::default() };
    let answer = soon(house.control.clone().get_join_token(ask)).await.unwrap().into_inner();
    assert_eq!(answer.expires, Some(clock.now_ms() + 60_000));
    Machine::new(50).join(&house, &answer.token).await.unwrap();
    clock.advance(60_000);
    let refused = Machine::new(51).join(&house, &answer.token).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("expired at"), "{}", refused.message());
}

#[tokio::test]
async fn who_fails_too_often_waits() {
    let house = House::open("a").await;
    let good = worker_token(&house).await;
    for _ in 0..10 {
        Machine::new(50).join(&house, "wrn1-w-x").await.unwrap_err();
    }
    let refused = Machine::new(50).join(&house, &good).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("10 wrong tokens from 10.0.0.9"), "{}", refused.message());
}

#[tokio::test]
async fn clocks_that_differ() {
    let house = House::open("a").await;
    let token = worker_token(&house).await;
    let machine = Machine::new(50);
    let off = |ms: u64| v1::JoinRequest { time: now_ms() + ms, ..machine.request(&token) };
    let refused = join(&house, off(2 * 3_600_000)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("ahead of the manager's"), "{}", refused.message());
    let mut client = house.join_as(remote(None)).await;
    let warned = soon(client.join(off(20 * 60_000))).await.unwrap();
    let warning = warned.metadata().get(WARNING_KEY).unwrap().to_str().unwrap();
    assert!(warning.contains("min ahead of"), "{warning}");
}

#[tokio::test]
async fn requests_that_are_none() {
    let house = House::open("a").await;
    let token = worker_token(&house).await;
    let check = async |change: fn(&mut v1::JoinRequest), message: &str| {
        let mut request = Machine::new(50).request(&token);
        change(&mut request);
        let refused = join(&house, request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{}", refused.message());
        assert!(refused.message().contains(message), "{}", refused.message());
    };
    check(|r| r.node_id = vec![1], "an id has 10 bytes").await;
    check(|r| r.signing_request = vec![1, 2, 3], "signing_request: ").await;
    check(|r| r.description = None, "description.hostname: is missing").await;
    check(|r| r.manager_only = true, "the token is for workers").await;
    assert_eq!(house.store.view().nodes().len(), 1);
}

#[tokio::test]
async fn renewal_keeps_the_key() {
    let house = House::open("a").await;
    let token = worker_token(&house).await;
    let machine = Machine::new(50);
    let joined = machine.join(&house, &token).await.unwrap();
    let own = owner(&joined.authorities, &joined.certificates);
    let expired = Peer { expired: true, ..own.clone() };
    let mut client = house.join_as(remote(Some(expired))).await;
    let renew = |key: &NodeKey| v1::RenewRequest {
        signing_request: key.signing_request("whoever").unwrap(),
    };
    let renewed = soon(client.renew(renew(&machine.key))).await.unwrap().into_inner();
    let again = owner(&renewed.authorities, &renewed.certificates);
    assert_eq!((again.node, again.key_hash), (Some(machine.id), own.key_hash));
    assert_eq!(again.not_after.0, renewed.not_after);
    let refused = soon(client.renew(renew(&NodeKey::generate().unwrap()))).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    // A promoted node's next certificate is a manager's.
    let promote =
        v1::UpdateNodeRequest { node: "host-n".into(), manager: Some(true), ..Default::default() };
    let refused = soon(house.control.clone().update_node(promote.clone())).await.unwrap_err();
    assert!(refused.message().contains("is down"), "{}", refused.message());
    let mutation = Mutation::SetRole { id: machine.id, manager: true, worker: true };
    house.write(vec![mutation]).await;
    let renewed = soon(client.renew(renew(&machine.key))).await.unwrap().into_inner();
    assert_eq!(owner(&renewed.authorities, &renewed.certificates).role, PeerRole::Manager);
    // Nobody renews for another, whatever the request says.
    let mut other = house.join_as(remote(Some(peer('a')))).await;
    let refused = soon(other.renew(renew(&machine.key))).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_machine_that_reaches_the_clusters_addresses_otherwise_is_refused() {
    let house = House::open("a").await;
    let token = worker_token(&house).await;
    let machine = Machine::new(50);
    let route = |destination: &str, link: &str| {
        let destination: Subnet = destination.parse().unwrap();
        v1::HostRoute { destination: Some((&destination).into()), link: link.into() }
    };
    let with = |routes| v1::JoinRequest { routes, ..machine.request(&token) };
    for (range, pool) in [
        ("10.130.0.0/16", "container pool 10.128.0.0/10"),
        ("10.193.0.0/16", "pool of virtual IPs 10.192.0.0/14"),
    ] {
        let routes = vec![route("0.0.0.0/0", "eth0"), route(range, "eth1")];
        let refused = join(&house, with(routes)).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        let text = format!("the {pool} overlaps {range}, which this machine reaches through eth1");
        assert_eq!(refused.message(), text);
        assert!(hint(&refused).contains("--pool CIDR --vip-pool CIDR"), "{}", hint(&refused));
    }
    assert!(house.store.view().node(machine.id).is_none(), "it is no member");
    let many = vec![route("192.168.0.0/24", "eth0"); 5000];
    let refused = join(&house, with(many)).await.unwrap_err();
    assert_eq!(refused.message(), "routes: 5000 of them, at most 4096 are allowed");
    let fine = vec![route("0.0.0.0/0", "eth0"), route("192.168.0.0/16", "eth0")];
    join(&house, with(fine)).await.unwrap();
}
