//! Policies over the API: made, listed, refused, removed, and counted where they act.

use tonic::{Code, Status};
use warren_model::PolicyId;
use warren_proto::v1;
use warren_proto::v1::policy_peer::Kind;

use crate::agent::Agent;
use crate::house::{House, hint, soon, wish};

fn peer(text: &str) -> v1::PolicyPeer {
    let kind = match text.strip_prefix("network=") {
        Some(network) => Kind::Network(network.into()),
        None if text == "outside" => Kind::Outside(true),
        None => Kind::Service(text.into()),
    };
    v1::PolicyPeer { kind: Some(kind) }
}

fn policy(name: &str, from: &[&str], to: &[&str]) -> v1::CreatePolicyRequest {
    let peers = |texts: &[&str]| texts.iter().map(|text| peer(text)).collect();
    let spec = v1::PolicySpec {
        name: name.into(),
        action: v1::PolicyAction::Deny.into(),
        from: peers(from),
        to: peers(to),
        ..v1::PolicySpec::default()
    };
    v1::CreatePolicyRequest { spec: Some(spec), request_id: Vec::new() }
}

async fn make(house: &mut House, request: v1::CreatePolicyRequest) -> Result<v1::Changed, Status> {
    soon(house.control.create_policy(request)).await.map(tonic::Response::into_inner)
}

async fn rm(house: &mut House, names: &[&str]) -> Result<v1::Changed, Status> {
    let policies = names.iter().map(|name| (*name).to_owned()).collect();
    let request = v1::RemovePoliciesRequest { policies, request_id: vec![9; 16] };
    soon(house.control.remove_policies(request)).await.map(tonic::Response::into_inner)
}

async fn list(house: &mut House) -> Vec<v1::Policy> {
    let request = v1::ListPoliciesRequest::default();
    soon(house.control.list_policies(request)).await.unwrap().into_inner().policies
}

fn told(refused: Result<v1::Changed, Status>) -> (Code, String, String) {
    let status = refused.unwrap_err();
    (status.code(), status.message().to_owned(), hint(&status).to_owned())
}

#[tokio::test]
async fn policies_from_making_to_removing() {
    let mut house = House::open("a").await;
    let (code, text, hint) = told(make(&mut house, policy("p", &["web"], &["db"])).await);
    assert_eq!((code, text.as_str()), (Code::NotFound, "there is no service web"));
    assert!(hint.contains("warren service ls"), "{hint}");
    house.create(wish("web", 0)).await.unwrap();
    house.create(wish("db", 0)).await.unwrap();
    let first =
        v1::CreatePolicyRequest { request_id: vec![7; 16], ..policy("p", &["web"], &["db"]) };
    let made = make(&mut house, first.clone()).await.unwrap();
    // A retry is answered, another one of the name is refused.
    assert_eq!(make(&mut house, first).await.unwrap(), made);
    let (code, text, hint) = told(make(&mut house, policy("p", &[], &["db"])).await);
    assert_eq!((code, text.as_str()), (Code::AlreadyExists, "policy p exists already"));
    assert!(hint.contains("warren policy rm"), "{hint}");
    let (code, text, _) = told(make(&mut house, policy("q", &["network=front"], &["db"])).await);
    assert_eq!((code, text.as_str()), (Code::NotFound, "there is no network front"));
    let (code, text, _) = told(make(&mut house, policy("Q", &[], &["db"])).await);
    assert!(code == Code::InvalidArgument && text.starts_with("name: "), "{text}");
    let (code, text, _) = told(make(&mut house, policy("q", &["outside"], &["outside"])).await);
    assert!(code == Code::InvalidArgument && text.starts_with("from, to: "), "{text}");

    // By its id, too: the name is what is kept. Those that are looked at first come first.
    let view = house.until(|view| view.service_by_name("db").is_some()).await;
    let db = view.service_by_name("db").unwrap().id.to_string();
    let mut second = policy("a", &[], &[&db]);
    second.spec.as_mut().unwrap().priority = Some(300);
    make(&mut house, second).await.unwrap();
    let rows = list(&mut house).await;
    let shown = |row: &v1::Policy| {
        let spec = row.spec.clone().unwrap();
        let Some(Kind::Service(to)) = spec.to[0].kind.clone() else { panic!() };
        format!("{} {to} {}", spec.name, row.missing.join(","))
    };
    assert_eq!(rows.iter().map(shown).collect::<Vec<_>>(), ["p db ", "a db "]);
    assert_eq!(rows[0].id, made.ids[0]);

    // A service that is named may go; the policy says so, and stays.
    let services = v1::RemoveServicesRequest { services: vec!["web".into()], request_id: vec![] };
    soon(house.control.remove_services(services)).await.unwrap();
    house.until(|view| view.service_by_name("web").is_none()).await;
    assert_eq!(list(&mut house).await.iter().map(shown).collect::<Vec<_>>(), ["p db web", "a db "]);

    let (code, text, hint) = told(rm(&mut house, &["none"]).await);
    assert_eq!((code, text.as_str()), (Code::NotFound, "no policy none"));
    assert_eq!(hint, "warren policy ls shows them");
    let id = PolicyId::from_bytes(made.ids[0].clone().try_into().unwrap()).to_string();
    let removed = rm(&mut house, &[&id, "a"]).await.unwrap();
    assert_eq!(removed.ids.len(), 2);
    assert!(list(&mut house).await.is_empty());
}

#[tokio::test]
async fn nodes_are_told_and_asked() {
    let mut house = House::open("a").await;
    let mut agent = Agent::join(&house, 'a').await;
    house.create(wish("web", 1)).await.unwrap();
    agent.hold_until(|agent| agent.running().len() == 1).await;
    make(&mut house, policy("p", &["outside"], &["web"])).await.unwrap();
    agent.hold_until(|agent| agent.table.policies.len() == 1).await;
    let policy = agent.table.policies.values().next().unwrap().clone();
    assert_eq!((policy.name.as_str(), policy.to.as_ref().unwrap().services.len()), ("p", 1));
    rm(&mut house, &["p"]).await.unwrap();
    agent.hold_until(|agent| agent.table.policies.is_empty()).await;
}
