//! Assignments as tables: a world, a change, what the nodes are told.

use warren_model::service::{PortSpec, Protocol, PublishMode};
use warren_model::task::{TaskState, TaskStatus};
use warren_state::change::Mutation;

use super::*;
use crate::testing::{apply, node_id, spec, task_id, world};

/// `+1:running` a task, `-2` one that is gone, `web[1]` a service with its templates, `-svc` one
/// that is gone, `cluster`, `mesh` for published ports.
fn show(assignment: &v1::Assignment) -> String {
    let number = |id: &[u8]| id[9].to_string();
    let task = |task: &v1::AssignedTask| {
        let desired = v1::Desired::try_from(task.desired).unwrap();
        let desired = desired.as_str_name().trim_start_matches("DESIRED_").to_lowercase();
        format!("+{}:{desired}", number(&task.id))
    };
    let service = |service: &v1::AssignedService| {
        let templates: Vec<u32> = service.templates.iter().map(|t| t.number).collect();
        let ports: String = service.ports.iter().map(|p| format!(" {}", p.published)).collect();
        format!("{}{templates:?}{ports}", service.name)
    };
    let mut words: Vec<String> = assignment.tasks.iter().map(task).collect();
    words.extend(assignment.removed_tasks.iter().map(|id| format!("-{}", number(id))));
    words.extend(assignment.services.iter().map(service));
    words.extend(assignment.removed_services.iter().map(|_| "-svc".to_owned()));
    words.extend(assignment.cluster.as_ref().map(|_| "cluster".to_owned()));
    // There is no network here but the mesh; `table` has tests of its own.
    let network = assignment.network.as_ref().filter(|network| !network.services.is_empty());
    words.extend(network.map(|_| "mesh".to_owned()));
    words.join(" ")
}

#[test]
fn complete_sets() {
    let view =
        world("web: 1 running a, 2 failed a, 3 running b\ndb: 1 pending, 2 removed a remove");
    assert_eq!(
        show(&complete(&view, node_id('a'))),
        "+1:running +2:running +5:remove web[1] db[1] cluster"
    );
    assert_eq!(show(&complete(&view, node_id('b'))), "+3:running web[1] cluster");
    assert_eq!(show(&complete(&view, node_id('c'))), "cluster");
    let set = complete(&view, node_id('a'));
    assert!(set.complete && set.revision == view.revision());
    let status = set.tasks[0].status.clone().unwrap();
    assert_eq!(status.state, i32::from(v1::TaskState::Running));
}

/// What each of the two nodes is told after `mutations`, `.` for nothing, and who is woken.
#[track_caller]
fn check(text: &str, mutations: Vec<Mutation>, expected: &str) {
    let old = world(text);
    let mut new = old.clone();
    let events = apply(&mut new, mutations);
    let told = ['a', 'b'].map(|letter| {
        let assignment = incremental(&old, &new, node_id(letter), 7);
        if let Some(assignment) = &assignment {
            assert_eq!((assignment.complete, assignment.applies_to), (false, 7));
            assert_eq!(assignment.revision, new.revision());
        }
        assignment.as_ref().map_or_else(|| ".".to_owned(), show)
    });
    let woken = match touched(&old, &new, Some(&events)) {
        Touched::Everyone => "all".to_owned(),
        Touched::Nodes(nodes) => {
            ['a', 'b'].iter().filter(|l| nodes.contains(&node_id(**l))).collect()
        }
    };
    assert_eq!(format!("{} | {} | {woken}", told[0], told[1]), expected);
}

fn web() -> ServiceId {
    ServiceId::from_bytes([100; 10])
}

#[test]
fn changes() {
    let two = "web: 1 running a, 2 running b";
    let desired = |n, desired| Mutation::SetDesired { id: task_id(n), desired };
    check(two, vec![desired(1, Desired::Shutdown)], "+1:shutdown | . | a");
    check(two, vec![desired(2, Desired::Remove)], ". | +2:remove | b");
    let gone = "web: 1 running a, 2 removed b remove";
    check(gone, vec![Mutation::DropTask { id: task_id(2) }], ". | -2 -svc | b");
    let pending = "web: 1 running a, 2 pending";
    let place = Mutation::PlaceTask {
        id: task_id(2),
        node: node_id('b'),
        address: None,
        devices: Default::default(),
    };
    check(pending, vec![place], ". | +2:running web[1] | b");
    let place = Mutation::PlaceTask {
        id: task_id(2),
        node: node_id('a'),
        address: None,
        devices: Default::default(),
    };
    check(pending, vec![place], "+2:running | . | a");
}

#[test]
fn reports_concern_nobody() {
    let status = TaskStatus::new(TaskState::Running, warren_model::Time(1));
    let report = Mutation::ReportTask { id: task_id(1), node: node_id('a'), status };
    check("web: 1 starting a, 2 running b", vec![report], ". | . | ");
}

#[test]
fn services_change_with_ports_alone() {
    let two = "web: 1 running a, 2 pending";
    let mut ports = spec("web", 1);
    ports.ports = vec![PortSpec {
        protocol: Protocol::Tcp,
        bind: [0, 0, 0, 0].into(),
        published: 8080,
        target: 80,
        mode: PublishMode::Ingress,
        name: None,
    }];
    let update = |spec| vec![Mutation::UpdateService { id: web(), spec }];
    // Any node answers that port.
    check(two, update(ports), "web[1] 8080 mesh | mesh | all");
    check(two, update(spec("web", 5)), ". | . | ");
    let mut image = spec("web", 1);
    image.task.image = "other".into();
    // The template reaches a node with the first task that uses it; that the image it has is to
    // stay, for going back, at once.
    check(two, update(image), "web[1] | . | a");
}

#[test]
fn settings_and_gaps_concern_all() {
    let mut cluster = world("").cluster().unwrap().clone();
    cluster.history_limit = 1;
    check("web: 1 running a", vec![Mutation::SetCluster(cluster)], "cluster | cluster | all");
    let view = world("");
    assert_eq!(touched(&view, &view, None), Touched::Everyone);
}

#[test]
fn images_that_a_service_may_go_back_to_are_kept() {
    let old = world("web: 1 running a");
    let mut new = old.clone();
    let mut other = spec("web", 1);
    let before = other.task.image.clone();
    other.task.image = "other:2".to_owned();
    apply(&mut new, vec![Mutation::UpdateService { id: web(), spec: other }]);
    assert_eq!(kept_images(&old, web()), BTreeSet::new());
    assert_eq!(kept_images(&new, web()), [before.as_str()].into());
    let told = incremental(&old, &new, node_id('a'), 7).unwrap();
    assert_eq!(told.services[0].kept_images, [before]);
}
