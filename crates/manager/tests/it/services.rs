//! Services from a wish to running tasks, and everything that is refused.

use std::sync::atomic::Ordering;

use tonic::{Code, Status};
use warren_model::health::Healthcheck;
use warren_proto::v1;
use warren_proto::v1::frame::Kind;

use crate::agent::{Agent, finish};
use crate::house::{House, hint, soon, wish};

#[tokio::test]
async fn from_wish_to_running() {
    let mut house = House::open("a").await;
    let mut agent = Agent::join(&house, 'a').await;
    let changed = house.create(wish("web", 2)).await.unwrap();
    let request = v1::WaitServiceRequest {
        service: "web".into(),
        min_revision: changed.revision,
        removed: false,
        number: 0,
        run: 0,
    };
    let mut lines = house.control.wait_service(request).await.unwrap().into_inner();
    let line = soon(lines.message()).await.unwrap().unwrap();
    assert_eq!((line.running, line.converged), (0, false));

    agent.hold_until(|agent| agent.running().len() == 2).await;
    let service = agent.services.values().next().unwrap();
    assert_eq!((service.name.as_str(), service.templates.len()), ("web", 1));
    assert_eq!(service.templates[0].task.as_ref().unwrap().image, "busybox");

    agent.report(&agent.running(), v1::TaskState::Running).await;
    let last = loop {
        let line = soon(lines.message()).await.unwrap().unwrap();
        if line.converged {
            break line;
        }
    };
    assert_eq!((last.running, last.desired), (2, 2));
    assert!(soon(lines.message()).await.unwrap().is_none());

    let services = house.control.list_services(v1::ListServicesRequest::default()).await.unwrap();
    let row = services.into_inner().services.remove(0);
    assert_eq!((row.running, row.desired, row.update_state.as_str()), (2, 2, "none"));
    let tasks = house.control.list_tasks(v1::ListTasksRequest::default()).await.unwrap();
    let task = tasks.into_inner().tasks.remove(0);
    let shown = (task.service_name.as_str(), task.node_name.as_str(), task.image.as_str());
    assert_eq!(shown, ("web", "host-a", "busybox"));
}

#[tokio::test]
async fn removal_ends_when_all_is_gone() {
    let mut house = House::open("a").await;
    let mut agent = Agent::join(&house, 'a').await;
    house.create(wish("web", 1)).await.unwrap();
    agent.hold_until(|agent| agent.running().len() == 1).await;
    agent.report(&agent.running(), v1::TaskState::Running).await;
    house.until(|view| view.tasks().any(|t| t.status.pid == 42)).await;

    let request =
        v1::RemoveServicesRequest { services: vec!["web".into()], request_id: vec![7; 16] };
    let changed = house.control.remove_services(request.clone()).await.unwrap().into_inner();
    assert_eq!(changed.ids.len(), 1);
    let wait = v1::WaitServiceRequest {
        service: "web".into(),
        min_revision: changed.revision,
        removed: true,
        number: 0,
        run: 0,
    };
    let mut lines = house.control.wait_service(wait.clone()).await.unwrap().into_inner();
    assert!(!soon(lines.message()).await.unwrap().unwrap().converged);

    let wanted = i32::from(v1::Desired::Remove);
    agent.hold_until(|agent| agent.tasks.values().all(|t| t.desired == wanted)).await;
    let ids: Vec<Vec<u8>> = agent.tasks.keys().cloned().collect();
    agent.report(&ids, v1::TaskState::Removed).await;
    agent.hold_until(|agent| agent.tasks.is_empty() && agent.services.is_empty()).await;
    while !soon(lines.message()).await.unwrap().unwrap().converged {}

    // The same again is answered as before, another one finds nothing; waiting is over at once.
    let again = house.control.remove_services(request.clone()).await.unwrap().into_inner();
    assert_eq!(again.revision, changed.revision);
    let request = v1::RemoveServicesRequest { request_id: Vec::new(), ..request };
    let missing = house.control.remove_services(request).await.unwrap_err();
    assert_eq!((missing.code(), missing.message()), (Code::NotFound, "no service web"));
    let mut lines = house.control.wait_service(wait).await.unwrap().into_inner();
    assert!(soon(lines.message()).await.unwrap().unwrap().converged);
}

#[tokio::test]
async fn retries_are_answered_not_done_again() {
    let mut house = House::open("a").await;
    let request = v1::CreateServiceRequest { request_id: vec![1; 16], ..wish("web", 1) };
    let first = house.create(request.clone()).await.unwrap();
    let second = house.create(request.clone()).await.unwrap();
    assert_eq!(first, second);
    let other = v1::CreateServiceRequest { spec: wish("db", 1).spec, ..request };
    let refused = house.create(other).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert_eq!(refused.message(), "request id was used before for something else");
    assert_eq!(house.store.view().services().len(), 1);
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, Status>, code: Code, message: &str) -> Status {
    let status = outcome.unwrap_err();
    assert_eq!((status.code(), status.message()), (code, message));
    status
}

#[tokio::test]
async fn bad_wishes_change_nothing() {
    let mut house = House::open("a").await;
    let edit = |edit: fn(&mut v1::ServiceSpec)| {
        let mut wish = wish("web", 1);
        edit(wish.spec.as_mut().unwrap());
        wish
    };
    let name = edit(|spec| spec.name = "Web".into());
    let status = house.create(name).await.unwrap_err();
    assert!(status.message().starts_with("name: name \"Web\" has 'W'"), "{}", status.message());
    let none = v1::CreateServiceRequest::default();
    refused(house.create(none).await, Code::InvalidArgument, "spec: is missing");
    let image = edit(|spec| spec.task.as_mut().unwrap().image.clear());
    let expected = "image: \"\" is empty, name one such as nginx:1.27";
    refused(house.create(image).await, Code::InvalidArgument, expected);
    let request_id = v1::CreateServiceRequest { request_id: vec![1], ..wish("web", 1) };
    let expected = "request_id: has 1 bytes, not 16";
    refused(house.create(request_id).await, Code::InvalidArgument, expected);
    assert_eq!(house.store.view().services().len(), 0);
}

#[tokio::test]
async fn conflicts_name_the_other() {
    let mut house = House::open("a").await;
    let port = v1::PortSpec {
        protocol: 1,
        published: 8080,
        target: 80,
        mode: 1,
        ..v1::PortSpec::default()
    };
    let mut web = wish("web", 0);
    web.spec.as_mut().unwrap().ports = vec![port.clone()];
    let created = house.create(web.clone()).await.unwrap();
    let taken = refused(
        house.create(wish("web", 1)).await,
        Code::AlreadyExists,
        "service web exists already",
    );
    assert!(hint(&taken).contains("warren service update web"));
    let mut other = wish("other", 0);
    other.spec.as_mut().unwrap().ports = vec![port];
    let expected = "port 8080:80 is published by service web";
    refused(house.create(other).await, Code::AlreadyExists, expected);

    let update = |spec, revision| v1::UpdateServiceRequest {
        service: "web".into(),
        spec,
        revision,
        request_id: Vec::new(),
        no_check: true,
        ..Default::default()
    };
    let renamed = house.control.update_service(update(wish("db", 1).spec, 0)).await;
    let expected = "name: service web cannot be renamed to db";
    refused(renamed, Code::InvalidArgument, expected);
    let stale = house.control.update_service(update(web.spec.clone(), 1)).await;
    let stale = stale.unwrap_err();
    assert_eq!(stale.code(), Code::Aborted);
    assert!(stale.message().starts_with("service web was changed meanwhile"));
    let mut more = web.spec.clone();
    more.as_mut().unwrap().labels.insert("team".into(), "shop".into());
    let changed = house.control.update_service(update(more, created.revision)).await.unwrap();
    assert!(changed.into_inner().revision > created.revision);
    let missing = v1::UpdateServiceRequest { service: "db".into(), ..update(web.spec, 0) };
    refused(house.control.update_service(missing).await, Code::NotFound, "no service db");
}

#[tokio::test]
async fn a_node_is_asked_first() {
    let mut house = House::open("a").await;
    let checked = v1::CreateServiceRequest { no_check: false, ..wish("web", 0) };
    // Nobody is there to look: a wish is a wish.
    let mut alone = checked.clone();
    alone.spec.as_mut().unwrap().name = "alone".into();
    house.create(alone).await.unwrap();

    let mut agent = Agent::join(&house, 'a').await;
    let looks = async {
        let request = agent.stream().await;
        let open = request.open.unwrap().kind.unwrap();
        let v1::open_stream::Kind::Check(check) = open else { panic!("{open:?}") };
        assert_eq!(check.spec.unwrap().name, "web");
        let ends = agent.tunnel(request.stream_id).await.unwrap();
        let error =
            v1::StreamError { code: 2, message: "no program foo".into(), hint: "spell".into() };
        finish(ends, vec![Kind::Error(error)]).await;
    };
    let (refusal, ()) = tokio::join!(house.create(checked.clone()), looks);
    let status = refused(refusal, Code::InvalidArgument, "no program foo");
    assert_eq!(hint(&status), "spell");
    assert!(house.store.view().service_by_name("web").is_none());

    let looks = async {
        let request = agent.stream().await;
        let ends = agent.tunnel(request.stream_id).await.unwrap();
        let progress = v1::PullProgress::default();
        let exec = v1::Strings { values: vec!["/check".into()] };
        let probe = Some(v1::healthcheck::Probe::Exec(exec));
        let health = Some(v1::Healthcheck { probe, ..v1::Healthcheck::default() });
        let platforms = ["linux/arm64", "linux/amd64", "linux/arm64"].map(str::to_owned).to_vec();
        let checked = v1::CheckResult {
            image_id: "sha256:0".into(),
            health,
            platforms,
            ..Default::default()
        };
        finish(ends, vec![Kind::Progress(progress), Kind::Checked(checked)]).await;
    };
    let (changed, ()) = tokio::join!(house.create(checked.clone()), looks);
    changed.unwrap();
    // What its image says of its health is taken up.
    let view = house.store.view();
    let health = &view.service_by_name("web").unwrap().spec.task.health;
    assert!(matches!(health, Healthcheck::Image(_)), "{health:?}");
    let placement = &view.service_by_name("web").unwrap().spec.placement;
    assert_eq!(placement.platforms, ["linux/amd64", "linux/arm64"]);
    // What the state would refuse is refused before a node spends time on it.
    refused(house.create(checked).await, Code::AlreadyExists, "service web exists already");
}

#[tokio::test]
async fn events_from_a_revision_on() {
    let mut house = House::open("a").await;
    let before = house.store.view().revision();
    house.create(wish("web", 0)).await.unwrap();
    let request = v1::WatchRequest { after: before };
    let mut events = house.control.watch(request).await.unwrap().into_inner();
    // The block that the node is given may come before.
    let event = loop {
        let event = soon(events.message()).await.unwrap().unwrap();
        if event.kind != "node" {
            break event;
        }
    };
    let shown = (event.kind.as_str(), event.action.as_str(), event.name.as_str());
    assert_eq!(shown, ("service", "create", "web"));
    let mut later = house.control.watch(v1::WatchRequest { after: 0 }).await.unwrap().into_inner();
    house.create(wish("db", 0)).await.unwrap();
    for events in [&mut events, &mut later] {
        // The address that the first one is given is an event, too.
        let next = loop {
            let event = soon(events.message()).await.unwrap().unwrap();
            if event.action == "create" {
                break event;
            }
        };
        assert_eq!(next.name, "db");
    }
}

#[tokio::test]
async fn reads_are_as_new_as_asked() {
    let mut house = House::open("a").await;
    let info = house.control.get_info(v1::GetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.nodes, info.services, info.node_id), (1, 0, vec![b'a'; 10]));
    let mut control = house.control.clone();
    let next = info.revision + 1;
    let request = v1::ListServicesRequest { min_revision: next, ..Default::default() };
    let (listed, created) =
        tokio::join!(soon(control.list_services(request)), house.create(wish("web", 0)));
    assert_eq!(created.unwrap().revision, next);
    assert_eq!(listed.unwrap().into_inner().services.len(), 1);
    let unknown = v1::ListTasksRequest { services: vec!["nix".into()], ..Default::default() };
    refused(house.control.list_tasks(unknown).await, Code::NotFound, "no service nix");
    let nodes = house.control.list_nodes(v1::ListNodesRequest::default()).await.unwrap();
    assert!(nodes.into_inner().nodes[0].leader);
    house.control.stop_node(v1::StopNodeRequest { with_containers: true }).await.unwrap();
    assert_eq!(house.stops.load(Ordering::SeqCst), 2);
}

/// Making, changing and going back ask for what the cluster allows; the rest does not.
#[tokio::test]
async fn what_endangers_nodes_must_be_allowed() {
    let house = House::open("a").await;
    let mut control = house.control.clone();
    let allow = async |words: &[&str]| {
        let values = words.iter().map(|word| (*word).to_owned()).collect();
        let allowed = Some(v1::Strings { values });
        let request = v1::UpdateClusterRequest { allowed, ..Default::default() };
        soon(house.control.clone().update_cluster(request)).await.unwrap();
    };
    let with = |replicas: u32, cap_add: &[&str], host_pid: bool| {
        let mut wish = wish("spy", replicas);
        let task = wish.spec.as_mut().unwrap().task.as_mut().unwrap();
        task.cap_add = cap_add.iter().map(|name| (*name).to_owned()).collect();
        task.privileges = host_pid.then(|| v1::Privileges { host_pid, ..Default::default() });
        wish
    };
    let refused = soon(control.create_service(with(1, &["NET_ADMIN"], true))).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(
        refused.message(),
        "pid: \"host\" is not allowed in this cluster, which allows none"
    );
    assert_eq!(hint(&refused), "warren cluster update --allow host-pid,cap:NET_ADMIN");
    soon(control.create_service(with(1, &["CHOWN"], false))).await.unwrap();
    let update = |wish: v1::CreateServiceRequest| v1::UpdateServiceRequest {
        service: "spy".into(),
        spec: wish.spec,
        no_check: true,
        ..Default::default()
    };
    let refused = soon(control.update_service(update(with(1, &["NET_ADMIN"], false)))).await;
    let refused = refused.unwrap_err();
    let said = "cap_add: \"NET_ADMIN\" is not allowed in this cluster, which allows none";
    assert_eq!(refused.message(), said);
    allow(&["cap:NET_ADMIN"]).await;
    let state = soon(control.get_cluster(v1::GetClusterRequest {})).await.unwrap().into_inner();
    assert_eq!(state.allowed, ["cap:NET_ADMIN"]);
    soon(control.update_service(update(with(1, &["NET_ADMIN"], false)))).await.unwrap();
    allow(&[]).await;
    // No new container.
    soon(control.update_service(update(with(2, &["NET_ADMIN"], false)))).await.unwrap();
    soon(control.update_service(update(with(2, &[], false)))).await.unwrap();
    let back = v1::RollBackServiceRequest { service: "spy".into(), to: 2, ..Default::default() };
    let refused = soon(control.roll_back_service(back.clone())).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, said));
    allow(&["cap:ALL"]).await;
    soon(control.roll_back_service(back)).await.unwrap();
}
