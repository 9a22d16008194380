//! What is told of what people did.

use warren_model::Secret;
use warren_model::Time;
use warren_model::cluster::{Cluster, JoinToken};
use warren_model::id::{ClusterId, TaskId};
use warren_model::task::{Desired, Task, TaskControl, TaskState, TaskStatus};
use warren_state::State;
use warren_state::change::{Mutation, Transaction};

use crate::script::{run, service, spec};

/// Records after a script, `PRINCIPAL ACTION OBJECT DETAIL`.
#[track_caller]
fn check(script: &str, expected: &[&str]) {
    let (state, _) = run(script);
    assert_eq!(records(&state), expected);
}

fn records(state: &State) -> Vec<String> {
    let text = |r: &warren_model::AuditRecord| {
        let words = [&r.principal, &r.action, &r.object, &r.detail].map(String::as_str);
        words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
    };
    state.audit().map(text).collect()
}

#[test]
fn people_are_recorded_and_machines_are_not() {
    check(
        "worker n1
        as socket:0; service web image=nginx:1 replicas=2
        as operator:anna; update web image=nginx:2 replicas=2 8080
        as operator:anna; drain n1; role n1 worker; labels n1 rack=a
        task 1 web.1; down n1
        as socket:0; remove web",
        &[
            "socket:0 service.create web image=nginx:1 replicas=2",
            "operator:anna service.update web ports image=nginx:2",
            "operator:anna node.update n1 availability=drain manager=false labels=rack",
            "socket:0 service.remove web",
        ],
    );
    check(
        "worker n1; worker n2; service web; service api; cluster
        as a; remove web; remove api
        as a; rm n1; rm n2 force
        as a; operator ben deploy token=1 expires=9
        as a; operator ben read token=1
        as a; rm-operator ben
        as a; restored 4 99
        as a; worker n3; down n3; certificate n3 key=1",
        &[
            "a service.remove web",
            "a service.remove api",
            "a node.remove n1",
            "a node.remove n2 force",
            "a operator.create ben role=deploy expires=1970-01-01T00:00:09.000Z",
            "a operator.update ben role=read",
            "a operator.remove ben",
            "a cluster.restore epoch=4",
            "a node.create n3 manager=false worker=true",
        ],
    );
}

#[test]
fn what_was_refused_or_repeated_is_not_recorded() {
    check(
        "as a; req=1:5; service web
        as a; req=1:5; service web
        as a; service web
        as a; service api; drop 9",
        &["a service.create web image=nginx replicas=1"],
    );
}

#[test]
fn records_say_when() {
    let (state, _) = run("worker n1\n as a; drain n1");
    let record = state.audit().next().unwrap();
    assert_eq!((record.revision, record.time), (2, Time(2_000)));
}

fn apply(state: &mut State, mutation: Mutation) {
    let mutations = vec![mutation];
    let principal = Some("a".to_owned());
    let transaction = Transaction { mutations, principal, ..Transaction::default() };
    state.apply(Time(1), &[transaction], &mut vec![]);
}

#[test]
fn what_was_asked_of_one_task() {
    let mut state = State::default();
    apply(&mut state, Mutation::SetCluster(Cluster::new(ClusterId::from_bytes([1; 10]))));
    let id = service("web");
    apply(&mut state, Mutation::CreateService { id, spec: spec("web", &[]) });
    let task = Task {
        id: TaskId::from_bytes([9; 10]),
        service: id,
        slot: 2,
        run: 0,
        template: 1,
        node: None,
        address: None,
        desired: Desired::Running,
        status: TaskStatus::new(TaskState::Pending, Time(0)),
        created: Time(0),
        devices: Default::default(),
        origin: None,
        revision: 0,
    };
    let id = task.id;
    apply(&mut state, Mutation::CreateTask(task));
    apply(&mut state, Mutation::ControlTask { id, control: TaskControl::Signal(1) });
    apply(&mut state, Mutation::ControlTask { id, control: TaskControl::Restart });
    apply(&mut state, Mutation::ControlTask { id, control: TaskControl::Pause });
    apply(&mut state, Mutation::ControlTask { id, control: TaskControl::Unpause });
    apply(&mut state, Mutation::SetDesired { id, desired: Desired::Shutdown });
    let said = state.audit().map(|record| {
        let detail = record.detail.replace(&id.to_string(), "ID");
        format!("{} {} {detail}", record.action, record.object)
    });
    let said: Vec<String> = said.filter(|text| text.starts_with("task.")).collect();
    assert_eq!(
        said,
        [
            "task.signal web.2 signal=SIGHUP id=ID",
            "task.restart web.2 id=ID",
            "task.pause web.2 id=ID",
            "task.unpause web.2 id=ID",
            "task.stop web.2 id=ID",
        ]
    );
}

#[test]
fn secrets_stay_out_of_it() {
    let mut state = State::default();
    let cluster = Cluster::new(ClusterId::from_bytes([1; 10]));
    apply(&mut state, Mutation::SetCluster(cluster.clone()));
    let cluster = Cluster {
        worker_token: Some(JoinToken { secret: *b"hunter2hunter2hu", expires: None }),
        unlock_key: Some(Secret::new(b"hunter2hunter2hunter2hunter2hunt".to_vec())),
        history_limit: 7,
        ..cluster
    };
    apply(&mut state, Mutation::SetCluster(cluster));
    let id = service("web");
    apply(&mut state, Mutation::CreateService { id, spec: spec("web", &[]) });
    let mut changed = spec("web", &[]);
    changed.task.env = vec!["PASSWORD=hunter2".into()];
    changed.task.command = vec!["--password=hunter2".into()];
    changed.labels.insert("note".into(), "hunter2".into());
    apply(&mut state, Mutation::UpdateService { id, spec: changed });
    let records = records(&state);
    assert_eq!(records[1], "a cluster.update history_limit=7 worker_token locked=true");
    assert_eq!(records[3], "a service.update web labels command env");
    assert!(records.iter().all(|record| !record.contains("hunter2")), "{records:?}");
}

#[test]
fn the_log_is_bounded() {
    let mut state = State::default();
    for round in 0..5 {
        let mutations = (0..1000).map(|n| {
            let name = format!("o{}", (round * 1000 + n) % 1024);
            Mutation::PutOperator(warren_model::Operator {
                name: name.parse().unwrap(),
                role: warren_model::operator::OperatorRole::Read,
                token_hash: None,
                key_hash: None,
                expires: Some(Time(round)),
                created: Time(0),
                revision: 0,
            })
        });
        let transaction = Transaction {
            mutations: mutations.collect(),
            principal: Some("a".to_owned()),
            ..Transaction::default()
        };
        state.apply(Time(1), &[transaction], &mut vec![]);
    }
    assert_eq!(state.audit().count(), 4096);
    assert_eq!(state.audit().next_back().unwrap().object, "o903");
    assert_eq!(state.check(), Vec::<String>::new());
    let mut long = spec("web", &[]);
    long.task.image = "é".repeat(2000);
    apply(&mut state, Mutation::CreateService { id: service("web"), spec: long });
    assert_eq!(state.audit().next_back().unwrap().detail.len(), 1024);
}
