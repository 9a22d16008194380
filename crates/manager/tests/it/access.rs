//! Who is let in, as what, and what of the state makes that end.

use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};
use warren_manager::{Caller, REMOVED_KEY};
use warren_model::Time;
use warren_model::operator::{Operator, OperatorRole};
use warren_proto::v1;
use warren_state::change::Mutation;
use warren_trust::{ApiToken, Peer, PeerRole};

use crate::house::{House, hint, node_id, peer, remote, soon, wish};

fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    let value = MetadataValue::try_from(format!("Bearer {token}")).unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

/// What a caller gets for a read, a deployment and a decision about the cluster.
async fn tries(house: &House, caller: Caller, token: Option<&str>) -> String {
    let mut control = house.control_as(caller).await;
    let token = token.unwrap_or("");
    macro_rules! ask {
        ($message:expr) => {
            if token.is_empty() { Request::new($message) } else { with_token($message, token) }
        };
    }
    let word = |outcome: Result<(), Status>| match outcome {
        Ok(()) => "ok".to_owned(),
        Err(status) => format!("{:?}", status.code()),
    };
    let read = soon(control.list_nodes(ask!(v1::ListNodesRequest::default()))).await.map(drop);
    let deploy = soon(control.create_service(ask!(wish("web", 1)))).await.map(drop);
    let decide = soon(control.get_join_token(ask!(v1::GetJoinTokenRequest::default()))).await;
    [word(read), word(deploy), word(decide.map(drop))].join(" ")
}

fn operator(name: &str, role: OperatorRole, token: &ApiToken, expires: Option<Time>) -> Mutation {
    Mutation::PutOperator(Operator {
        name: name.parse().unwrap(),
        role,
        token_hash: Some(token.hash()),
        key_hash: None,
        expires,
        created: Time(0),
        revision: 0,
    })
}

#[tokio::test]
async fn operators_may_what_their_role_says() {
    let house = House::open("a").await;
    let tokens: Vec<ApiToken> =
        (0..4).map(|_| ApiToken::generate(&warren_base::rng::SystemRng)).collect();
    house
        .write(vec![
            operator("reader", OperatorRole::Read, &tokens[0], None),
            operator("deployer", OperatorRole::Deploy, &tokens[1], None),
            operator("admin", OperatorRole::Admin, &tokens[2], None),
            operator("late", OperatorRole::Admin, &tokens[3], Some(Time(1000))),
        ])
        .await;
    let texts: Vec<String> = tokens.iter().map(ToString::to_string).collect();
    let denied = "PermissionDenied";
    let anyone = || remote(None);
    assert_eq!(tries(&house, anyone(), Some(&texts[0])).await, format!("ok {denied} {denied}"));
    assert_eq!(tries(&house, anyone(), Some(&texts[1])).await, format!("ok ok {denied}"));
    assert_eq!(tries(&house, anyone(), Some(&texts[2])).await, "ok AlreadyExists ok");
    let out = "Unauthenticated Unauthenticated Unauthenticated";
    assert_eq!(tries(&house, anyone(), Some(&texts[3])).await, out);
    assert_eq!(tries(&house, anyone(), Some(&texts[0][..20])).await, out);
    assert_eq!(tries(&house, anyone(), None).await, out);
    // Out at once.
    house.write(vec![Mutation::RemoveOperator { name: "admin".parse().unwrap() }]).await;
    assert_eq!(tries(&house, anyone(), Some(&texts[2])).await, out);
    // What people did is written down with their names.
    let audit = soon(house.control.clone().list_audit(v1::ListAuditRequest::default())).await;
    let names: Vec<String> =
        audit.unwrap().into_inner().records.into_iter().map(|r| r.principal).collect();
    assert_eq!(names, ["operator:deployer", "operator:admin"]);
}

#[tokio::test]
async fn operators_with_a_certificate() {
    let house = House::open("a").await;
    let of = |byte: u8, expired| Peer {
        node: None,
        operator: Some("anna".parse().unwrap()),
        role: PeerRole::Operator(OperatorRole::Admin),
        key_hash: [byte; 32],
        expired,
        ..peer('a')
    };
    house
        .write(vec![Mutation::PutOperator(Operator {
            name: "anna".parse().unwrap(),
            // The state decides, not the certificate.
            role: OperatorRole::Read,
            token_hash: None,
            key_hash: Some([7; 32]),
            expires: None,
            created: Time(0),
            revision: 0,
        })])
        .await;
    let out = "Unauthenticated Unauthenticated Unauthenticated";
    let read = "ok PermissionDenied PermissionDenied";
    assert_eq!(tries(&house, remote(Some(of(7, false))), None).await, read);
    assert_eq!(tries(&house, remote(Some(of(7, true))), None).await, out);
    assert_eq!(tries(&house, remote(Some(of(8, false))), None).await, out);
}

#[tokio::test]
async fn nodes_speak_for_themselves_alone() {
    let house = House::open("ab").await;
    let denied = "PermissionDenied PermissionDenied PermissionDenied";
    assert_eq!(tries(&house, remote(Some(peer('b'))), None).await, denied);
    assert_eq!(tries(&house, remote(Some(peer('a'))), None).await, denied);
    let mut foreign = peer('b');
    foreign.cluster = warren_model::ClusterId::from_bytes([9; 10]);
    let out = "Unauthenticated Unauthenticated Unauthenticated";
    assert_eq!(tries(&house, remote(Some(foreign)), None).await, out);
    // A manager passes on what was allowed elsewhere, and must say so.
    let mut control = house.control_as(remote(Some(peer('a')))).await;
    let refused = soon(control.rotate_data_key(v1::RotateDataKeyRequest {})).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let mut request = Request::new(v1::RotateDataKeyRequest {});
    request.metadata_mut().insert(warren_manager::RELAYED_KEY, MetadataValue::from_static("1"));
    soon(control.rotate_data_key(request)).await.unwrap();
}

#[tokio::test]
async fn removed_and_unknown_nodes_are_told_so() {
    let house = House::open("ab").await;
    let remove = v1::RemoveNodeRequest { node: "host-b".into(), force: true, ..Default::default() };
    soon(house.control.clone().remove_node(remove)).await.unwrap();
    let mut other_key = peer('a');
    other_key.key_hash = [0; 32];
    for caller in [peer('b'), peer('z'), other_key] {
        let node = caller.node.unwrap();
        let mut join = house.join_as(remote(Some(caller))).await;
        let request = v1::RenewRequest { signing_request: vec![1] };
        let refused = soon(join.renew(request)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert_eq!(refused.metadata().get(REMOVED_KEY).unwrap(), "1");
        assert_eq!(refused.message(), format!("node {node} was removed from the cluster"));
        assert!(hint(&refused).contains("join with a new token"));
    }
    assert!(house.store.view().node(node_id('b')).is_none());
}

#[tokio::test]
async fn expired_nodes_may_only_renew() {
    let house = House::open("ab").await;
    let caller = || remote(Some(Peer { expired: true, ..peer('b') }));
    let mut dispatch = house.dispatch(caller()).await;
    let none = tokio_stream::empty::<v1::AgentMessage>();
    let refused = soon(dispatch.session(none)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("has expired"), "{}", refused.message());
    assert!(refused.metadata().get(REMOVED_KEY).is_none());
    // As far as the door: the request itself is none.
    let mut join = house.join_as(caller()).await;
    let refused = soon(join.renew(v1::RenewRequest { signing_request: vec![1] })).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
}
