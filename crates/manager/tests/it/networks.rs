//! Networks over the API: made, used, listed, refused, removed.

use tonic::{Code, Status};
use warren_proto::v1;

use crate::agent::Agent;
use crate::house::{House, hint, soon, wish};

fn network(name: &str) -> v1::CreateNetworkRequest {
    let spec = v1::NetworkSpec { name: name.into(), ..v1::NetworkSpec::default() };
    v1::CreateNetworkRequest { spec: Some(spec), request_id: Vec::new() }
}

async fn make(house: &mut House, request: v1::CreateNetworkRequest) -> Result<v1::Changed, Status> {
    soon(house.control.create_network(request)).await.map(tonic::Response::into_inner)
}

async fn rm(house: &mut House, names: &[&str]) -> Result<v1::Changed, Status> {
    let networks = names.iter().map(|name| (*name).to_owned()).collect();
    let request = v1::RemoveNetworksRequest { networks, request_id: vec![9; 16] };
    soon(house.control.remove_networks(request)).await.map(tonic::Response::into_inner)
}

fn on(name: &str, networks: &[&str]) -> v1::CreateServiceRequest {
    let mut request = wish(name, 1);
    let attachment = |network: &&str| v1::Attachment {
        network: (*network).to_owned(),
        ..v1::Attachment::default()
    };
    request.spec.as_mut().unwrap().networks = networks.iter().map(attachment).collect();
    request
}

fn told(refused: Result<v1::Changed, Status>) -> (Code, String, String) {
    let status = refused.unwrap_err();
    (status.code(), status.message().to_owned(), hint(&status).to_owned())
}

async fn list(house: &mut House, names: &[&str]) -> Vec<v1::Network> {
    let networks = names.iter().map(|name| (*name).to_owned()).collect();
    let request = v1::ListNetworksRequest { networks, users: true, ..Default::default() };
    soon(house.control.list_networks(request)).await.unwrap().into_inner().networks
}

#[tokio::test]
async fn networks_from_making_to_removing() {
    let mut house = House::open("a").await;
    let first = v1::CreateNetworkRequest { request_id: vec![7; 16], ..network("back") };
    let made = make(&mut house, first.clone()).await.unwrap();
    // A retry is answered, another one of the name is refused.
    assert_eq!(make(&mut house, first).await.unwrap(), made);
    let (code, text, hint) = told(make(&mut house, network("back")).await);
    assert_eq!((code, text.as_str()), (Code::AlreadyExists, "network back exists already"));
    assert!(hint.contains("another name"), "{hint}");
    let (code, text, _) = told(make(&mut house, network("Back")).await);
    assert!(code == Code::InvalidArgument && text.starts_with("name: "), "{text}");

    // By its id, too: the name is what is kept.
    let id = warren_model::NetworkId::from_bytes(made.ids[0].clone().try_into().unwrap());
    house.create(on("web", &[&id.to_string()])).await.unwrap();
    house.until(|view| view.vips().count() == 1).await;
    let (code, text, hint) = told(house.create(on("api", &["front"])).await);
    assert_eq!((code, text.as_str()), (Code::NotFound, "there is no network front"));
    assert_eq!(hint, "warren network ls shows them; warren network create makes one");

    let row = list(&mut house, &["back"]).await.remove(0);
    assert_eq!((row.id, row.users.len()), (made.ids[0].clone(), 1));
    let web = &row.users[0];
    assert_eq!((web.name.as_str(), web.address), ("web", Some(0x0ac0_0001)));
    let v6 = std::net::Ipv6Addr::from(<[u8; 16]>::try_from(web.address_v6.clone()).unwrap());
    assert_eq!(v6.to_string(), "fd01:101:101:1::ac0:1");
    let services = house.control.list_services(v1::ListServicesRequest::default()).await.unwrap();
    let addresses = services.into_inner().services.remove(0).addresses;
    assert_eq!((addresses[0].network.as_str(), addresses[0].address), ("back", 0x0ac0_0001));

    let (code, text, hint) = told(rm(&mut house, &["back"]).await);
    assert_eq!((code, text.as_str()), (Code::FailedPrecondition, "network back is in use by web"));
    assert!(hint.contains("warren service update --network-rm back"), "{hint}");
    let (code, text, _) = told(rm(&mut house, &["none"]).await);
    assert_eq!((code, text.as_str()), (Code::NotFound, "no network none"));
    let update = v1::UpdateServiceRequest {
        service: "web".into(),
        spec: on("web", &[]).spec,
        no_check: true,
        ..Default::default()
    };
    soon(house.control.update_service(update)).await.unwrap();
    let removed = rm(&mut house, &["back", "back"]).await.unwrap();
    assert_eq!(removed.ids, made.ids);
    assert_eq!(rm(&mut house, &["back", "back"]).await.unwrap().revision, removed.revision);
    let names: Vec<String> =
        list(&mut house, &[]).await.into_iter().map(|network| network.spec.unwrap().name).collect();
    assert_eq!(names, ["default"]);
    let (code, text, _) = told(rm(&mut house, &["default"]).await);
    assert_eq!(code, Code::AlreadyExists, "the request id is that of another request: {text}");

    let audit = soon(house.control.list_audit(v1::ListAuditRequest::default())).await.unwrap();
    let actions: Vec<String> = audit.into_inner().records.into_iter().map(|r| r.action).collect();
    assert_eq!(actions, ["network.create", "service.create", "service.update", "network.remove"]);
}

#[tokio::test]
async fn addresses_that_are_asked_for() {
    let mut house = House::open("a").await;
    make(&mut house, network("back")).await.unwrap();
    let asks = |name: &str, address: u32| {
        let mut request = on(name, &["back"]);
        request.spec.as_mut().unwrap().networks[0].address = Some(address);
        request
    };
    house.create(asks("web", 0x0ac0_0009)).await.unwrap();
    let (code, text, hint) = told(house.create(asks("api", 0x0ac0_0009)).await);
    assert_eq!(code, Code::AlreadyExists);
    assert_eq!(text, "virtual IP 10.192.0.9 is that of service web on back");
    assert!(hint.contains("warren network inspect"), "{hint}");
    let (code, text, _) = told(house.create(asks("api", 0x0a80_0009)).await);
    assert_eq!(code, Code::AlreadyExists);
    assert!(text.starts_with("virtual IP 10.128.0.9 is not of the pool 10.192.0.0/14"), "{text}");
}

/// Services in an agent's table, each with its backends.
fn known(agent: &Agent) -> String {
    let services = agent.table.services.values();
    let words = services.map(|s| format!("{} {}", s.name, s.backends().count()));
    words.collect::<Vec<_>>().join(", ")
}

#[tokio::test]
async fn nodes_are_told_of_what_concerns_them_when_it_changes() {
    let mut house = House::open("ab").await;
    let mut agents = [Agent::join(&house, 'a').await, Agent::join(&house, 'b').await];
    make(&mut house, network("back")).await.unwrap();
    make(&mut house, network("front")).await.unwrap();
    let mut web = on("web", &["back"]);
    web.spec.as_mut().unwrap().mode = wish("web", 2).spec.unwrap().mode;
    house.create(web).await.unwrap();
    for agent in &mut agents {
        agent.hold_until(|agent| agent.running().len() == 1).await;
        agent.report(&agent.running(), v1::TaskState::Running).await;
    }
    for agent in &mut agents {
        agent.hold_until(|agent| known(agent) == "web 2").await;
        let table = &agent.table;
        let (network, back) = table.networks.first_key_value().unwrap();
        assert_eq!((table.networks.len(), back.name.as_str()), (1, "back"));
        assert_eq!((table.peers.len(), table.members(*network).count()), (2, 2));
        let web = table.services.values().next().unwrap();
        assert_eq!(web.on[0].vip, Some([10, 192, 0, 1].into()));
    }
    // One is on its way out: both hear of it.
    let tasks = agents[0].running();
    agents[0].report(&tasks, v1::TaskState::Draining).await;
    for agent in &mut agents {
        agent.hold_until(|agent| known(agent) == "web 1").await;
    }
    // What runs on another network is told where it runs alone.
    house.create(on("api", &["front"])).await.unwrap();
    let view = house.until(|view| view.service_by_name("api").is_some()).await;
    let api = view.service_by_name("api").unwrap().id;
    let view = house.until(|view| view.tasks_of(api).any(|task| task.node.is_some())).await;
    let node = view.tasks_of(api).next().unwrap().node.unwrap();
    let here = usize::from(node != crate::house::node_id('a'));
    agents[here].hold_until(|agent| known(agent).contains("api 0")).await;
    assert!(!known(&agents[1 - here]).contains("api"));
    assert_eq!(agents[here].table.networks.len(), 2);
}
