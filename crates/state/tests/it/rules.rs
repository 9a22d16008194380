//! What each mutation does, and when it is refused.

use warren_model::Time;
use warren_model::task::TaskState;
use warren_state::change::{Mutation, Outcome, Rejection, Transaction};
use warren_state::{Head, ImportError, Object, State};

use crate::script::{node, run, service, spec, task};

/// The last line's outcome after all others were `ok`.
#[track_caller]
pub(crate) fn check(script: &str, expected: &str) {
    let (_, outcomes) = run(script);
    let (last, before) = outcomes.split_last().unwrap();
    assert!(before.iter().all(|outcome| outcome == "ok"), "{outcomes:?}");
    assert_eq!(last, expected);
}

/// A task as text after a script: state#attempt, where, error.
#[track_caller]
fn check_task(script: &str, id: &str, expected: &str) {
    let (state, outcomes) = run(script);
    assert!(outcomes.iter().all(|outcome| outcome == "ok"), "{outcomes:?}");
    let found = state.task(task(id)).map_or("none".to_owned(), |task| {
        let status = &task.status;
        let error = status.error.as_deref().unwrap_or("-");
        let address = task.address.map_or("-".to_owned(), |address| address.to_string());
        format!("{}#{} {address} {error}", status.state.as_str(), status.attempt)
    });
    assert_eq!(found, expected);
}

const WORLD: &str = "node a 10.128.0.0/24
node b 10.128.1.0/24
service web";

fn with(script: &str) -> String {
    format!("{WORLD}\n{script}")
}

#[test]
fn names_and_ports_are_unique() {
    check("service web\n service web", "service web exists already");
    check("service web 8080\n service api 8080", "port 8080:80 is published by service web");
    check("service web 8080\n service api 8080/udp 8081", "ok");
    check("service web 127.0.0.1:80\n service api 10.0.0.1:80", "ok");
    check(
        "service web 127.0.0.1:80\n service api 0.0.0.0:80",
        "port 80:80 is published by service web",
    );
    check("service web 1\n service api 2\n update api 1", "port 1:80 is published by service web");
    check("service web 1\n update web 2\n service api 1", "ok");
    check("service web 1\n remove web\n service api 1", "port 1:80 is published by service web");
    check("service web 1\n remove web\n drop-service web\n service api 1", "ok");
    check("service web 1\n service api 2; update web 2", "port 2:80 is published by service api");
}

#[test]
fn services_come_and_go() {
    check("update web", "service web does not exist");
    check("service web\n rename web api", "service web cannot be renamed");
    check("service web\n drop-service web", "service web is not being removed");
    check("service web\n remove web\n remove web", "ok");
    check("service web\n remove web\n update web", "service web is being removed");
    check(&with("task 1 web.1\n remove web\n drop-service web"), "service web still has tasks");
    check(&with("task 1 web.1\n remove web\n drop 1; drop-service web"), "ok");
    check(&with("remove web\n task 1 web.1"), "service web is being removed");
}

#[test]
fn a_template_lives_as_long_as_it_is_referred_to() {
    let templates = |script: &str| {
        let (state, outcomes) = run(&with(script));
        assert!(outcomes.iter().all(|outcome| outcome == "ok"), "{outcomes:?}");
        let kept = (1..9).filter(|n| state.template(service("web"), *n).is_some());
        kept.map(|n| n.to_string()).collect::<String>()
    };
    assert_eq!(templates(""), "1");
    assert_eq!(templates("update web 8080"), "1");
    assert_eq!(templates("update web image=b"), "2");
    assert_eq!(templates("task 1 web.1\n update web image=b"), "12");
    assert_eq!(templates("task 1 web.1\n update web image=b\n drop 1"), "2");
    assert_eq!(templates("task 1 web.1\n update web image=b; drop 1"), "2");
    // Refused: the last use of template 1 is dropped and comes back.
    let (state, outcomes) =
        run(&with("task 1 web.1\n update web image=b\n drop 1; task 2 web.1 t2; drop 9"));
    assert_eq!(outcomes.last().unwrap(), "task 9 does not exist");
    assert!(state.template(service("web"), 1).is_some());
}

#[test]
fn tasks_are_placed_once_and_on_free_addresses() {
    check(&with("task 1 api.1"), "service api does not exist");
    check(&with("task 1 web.1 t2"), "service web has no template 2");
    check(&with("task 1 web.1 @c .2"), "node c does not exist");
    check(&with("task 1 web.1\n task 1 web.2"), "task 1 exists already");
    check(
        &with("task 1 web.1 @a .2\n task 2 web.2 @a .2"),
        "address 10.128.0.2 is in use by task 1",
    );
    check(&with("task 1 web.1 @a 10.128.1.2"), "address 10.128.1.2 is not of a block of node a");
    check(&with("task 1 web.1 @a .2\n report 1 @a failed#1\n task 2 web.2 @a .2"), "ok");
    check(&with("task 1 web.1 @a .2\n drop 1; task 2 web.2 @a .2"), "ok");
    check(&with("task 1 web.1 @a .2\n place 1 @b .3"), "task 1 is placed already");
    check_task(
        &with("task 1 web.1\n explain 1 full\n place 1 @b .3"),
        "1",
        "assigned#0 10.128.1.3 -",
    );
    check_task(&with("task 1 web.1\n explain 1 full"), "1", "pending#0 - full");
}

#[test]
fn desired_only_goes_down() {
    check(&with("task 1 web.1\n desired 1 remove\n desired 1 remove"), "ok");
    check(
        &with("task 1 web.1\n desired 1 remove\n desired 1 shutdown"),
        "task 1 cannot be wanted again",
    );
}

#[test]
fn reports_are_taken_or_ignored_one_by_one() {
    let on = |reports: &str| with(&format!("task 1 web.1 @a .2\n {reports}"));
    check_task(&on("report 1 @a running#1"), "1", "running#1 10.128.0.2 -");
    check_task(&on("report 1 @b running#1"), "1", "assigned#0 10.128.0.2 -");
    check_task(&on("report 9 @a running#1; report 1 @a running#1"), "1", "running#1 10.128.0.2 -");
    check_task(
        &on("report 1 @a running#1\n report 1 @a starting#1"),
        "1",
        "running#1 10.128.0.2 -",
    );
    check_task(
        &on("report 1 @a running#1\n report 1 @a starting#2"),
        "1",
        "starting#2 10.128.0.2 -",
    );
    check_task(&on("report 1 @a running#2\n report 1 @a failed#1"), "1", "running#2 10.128.0.2 -");
    check_task(&on("report 1 @a running#1 error=x"), "1", "running#1 10.128.0.2 x");
    check_task(
        &on("report 1 @a failed#1 error=x\n report 1 @a running#2"),
        "1",
        "failed#1 10.128.0.2 x",
    );
    check_task(
        &on("report 1 @a complete#1\n report 1 @a failed#1"),
        "1",
        "complete#1 10.128.0.2 -",
    );
    check_task(&on("report 1 @a failed#1\n report 1 @a removed#1"), "1", "removed#1 10.128.0.2 -");
    check_task(&on("report 1 @a removed#1\n report 1 @a failed#9"), "1", "removed#1 10.128.0.2 -");
    check_task(&with("task 1 web.1\n report 1 @a running#1"), "1", "pending#0 - -");
}

#[test]
fn a_clock_ahead_is_cut_to_the_entry() {
    let (state, _) = run(&with("task 1 web.1 @a .2\n report 1 @a running#1 since=99999999"));
    assert_eq!(state.task(task("1")).unwrap().status.since, state.time());
}

#[test]
fn losing_a_race_is_an_answer() {
    check("service web; expect service web=0", "ok");
    let stale = "service web is at revision 1, expected 0";
    check("service web\n expect service web=0; update web 80", stale);
    check("service web\n expect service web=1; update web 80", "ok");
    check("expect task 1=0; expect node a=0; service web", "ok");
    check("expect cluster=0; cluster", "ok");
    check("expect cluster=7; service web", "the cluster is at revision 0, expected 7");
}

#[test]
fn a_refused_transaction_leaves_no_trace() {
    // `run` compares nothing for rejections, so compare here.
    let (before, _) = run(&with("task 1 web.1 @a .2"));
    let (after, outcomes) = run(&with(
        "task 1 web.1 @a .2
        service api 80; update web image=b; task 2 web.2 t2; report 1 @a failed#1; \
        task 3 web.3 t2 @a .2; drop 1; down a; grant a 10.128.9.0/24; remove web; drop 9",
    ));
    assert_eq!(outcomes.last().unwrap(), "task 9 does not exist");
    assert!(before.export().eq(after.export()));
    assert_eq!(before.revision(), after.revision());
    assert_eq!(before.activity(service("web")), after.activity(service("web")));
    assert_eq!(before.topology(), after.topology());
}

#[test]
fn a_retry_is_answered_and_not_done_twice() {
    check("req=1:5; service web\n req=1:5; service web", "again 1");
    check(
        "req=1:5; service web\n req=1:6; service api",
        "request id was used before for something else",
    );
    check("req=1:5; service web\n req=2:5; update web 80", "ok");
    // Also when the clock of whoever leads was set meanwhile; and a refused request is tried anew.
    check("req=1:5; service web\n @9999999\n req=1:5; service web", "again 1");
    let (_, outcomes) = run("req=1:5; update web\n service web\n req=1:5; update web 80");
    assert_eq!(outcomes[2], "ok");
}

#[test]
fn nodes() {
    check("node a\n node a", "node a exists already");
    check(
        "node a 10.128.0.0/24\n node b 10.128.0.128/25",
        "block 10.128.0.128/25 overlaps one of node a",
    );
    check(
        "node a 10.128.0.0/24\n grant a 10.128.0.0/24",
        "block 10.128.0.0/24 overlaps one of node a",
    );
    check("node a 10.128.0.0/24\n grant a 10.128.1.0/24", "ok");
    check("down a", "node a does not exist");
    let (state, _) = run("node a\n ready a\n describe a host\n down a");
    let node = state.node(node("a")).unwrap();
    // `ready` changed nothing, so it wrote nothing.
    assert_eq!((node.revision, state.topology(), state.revision()), (4, 4, 4));
    let (state, _) = run("node a\n ready a");
    assert_eq!(state.topology(), 1);
}

#[test]
fn limits() {
    let apply = |mutations: Vec<Mutation>| {
        let transaction = Transaction { mutations, ..Transaction::default() };
        State::default().apply(Time(1), &[transaction], &mut vec![]).remove(0)
    };
    let many = vec![Mutation::RemoveService { id: service("web") }; 2001];
    assert_eq!(apply(many), Outcome::Rejected(Rejection::TooMany { mutations: 2001 }));
    let large = |name: &str, bytes: usize| {
        let mut spec = spec(name, &[]);
        spec.task.env = vec!["x".repeat(bytes)];
        Mutation::CreateService { id: service(name), spec }
    };
    let refused = |outcome: Outcome| match outcome {
        Outcome::Rejected(Rejection::Invalid(why)) => why,
        other => panic!("{other:?}"),
    };
    let why = refused(apply(vec![large("a", 600 << 10)]));
    assert!(why.contains("object has 614") && why.ends_with("at most 524288 are allowed"), "{why}");
    let why = refused(apply(["a", "b", "c"].map(|name| large(name, 400 << 10)).into()));
    assert!(why.starts_with("transaction has 1229"), "{why}");
    let (state, _) = run(&with(&format!("task 1 web.1\n explain 1 {}", "é".repeat(700))));
    let error = state.task(task("1")).unwrap().status.error.clone().unwrap();
    assert_eq!(error.len(), 1024);
}

#[test]
fn services_are_found_by_name_id_and_prefix() {
    let (state, _) = run("service web\n service wax\n service api");
    let find = |text: &str| state.resolve_service(text).map(|s| s.spec.name.to_string());
    let id = service("web").to_string();
    assert_eq!(find("web").as_deref(), Some("web"));
    assert_eq!(find(&id).as_deref(), Some("web"));
    assert_eq!(find(&id[..5]).as_deref(), Some("web"));
    assert_eq!(find("ex"), None, "two begin so");
    assert_eq!(find("c").as_deref(), Some("api"));
    for nothing in ["", "zzz", "U", "é", "00000000000000000", "none"] {
        assert_eq!(find(nothing), None, "{nothing}");
    }
}

#[test]
fn lists_are_in_order() {
    let (state, _) = run(&with(
        "task 3 web.1 @a .4\n task 1 web.2 @b .2\n task 2 web.1 @a .3\n task 4 web.10 @a .2",
    ));
    let ids = |tasks: Vec<&warren_model::Task>| {
        tasks.iter().map(|t| char::from(t.id.as_bytes()[0])).collect::<String>()
    };
    assert_eq!(ids(state.tasks_of(service("web")).collect()), "2314");
    assert_eq!(ids(state.tasks_on(node("a")).collect()), "423");
    assert_eq!(state.live_on(node("a")), 3);
    assert_eq!(state.tasks_on(node("x")).count(), 0);
}

#[test]
fn damaged_snapshots_are_refused() {
    let (state, _) = run(&with("task 1 web.1 @a .2\n req=1:2; task 2 web.2 @a .3"));
    let objects: Vec<Object> = state.export().collect();
    assert_eq!(objects.len(), state.object_count());
    let import = |objects: Vec<Object>| State::import(state.head(), objects).map(drop);
    assert_eq!(import(objects.clone()), Ok(()));
    for at in 0..objects.len() {
        let mut twice = objects.clone();
        twice.insert(at, objects[at].clone());
        assert!(matches!(import(twice), Err(ImportError::Twice { .. })), "{:?}", objects[at]);
    }
    // All but node b, the tasks and the request are referred to.
    for at in [0, 2, 3] {
        let mut without = objects.clone();
        without.remove(at);
        assert!(matches!(import(without), Err(ImportError::Dangling { .. })), "{:?}", objects[at]);
    }
    let early = State::import(Head { revision: 1, ..state.head() }, objects.clone());
    assert!(matches!(early, Err(ImportError::Later { .. })));
    let mut clash = objects;
    for object in &mut clash {
        if let Object::Task(task) = object {
            task.address = task.address.map(|_| [10, 128, 0, 2].into());
        }
    }
    assert!(matches!(import(clash), Err(ImportError::Clash { .. })));
}

#[test]
fn events_tell_what_moved() {
    let (mut state, _) = run(&with(""));
    let mut events = vec![];
    let script = [
        Mutation::UpdateService { id: service("web"), spec: spec("web", &["image=b"]) },
        Mutation::UpdateService { id: service("web"), spec: spec("web", &["image=b"]) },
        Mutation::RemoveService { id: service("web") },
        Mutation::DropService { id: service("web") },
    ];
    let transactions =
        script.map(|mutation| Transaction { mutations: vec![mutation], ..Transaction::default() });
    state.apply(Time(1), &transactions, &mut events);
    let told: Vec<String> = events
        .iter()
        .map(|e| format!("{} {} {} {}", e.revision, e.action.as_str(), e.name, e.message))
        .collect();
    assert_eq!(told, ["4 update web template 2", "6 update web removing", "7 remove web "]);
    assert!(events.iter().all(|event| event.time == state.time()), "time never goes back");
    assert_eq!(TaskState::Pending.as_str(), "pending");
}

/// Reports of one task as `state#attempt health@since`; each with the event that says so.
#[test]
fn changes_of_health_are_events() {
    let (mut state, _) = run(&with("task 1 web.1 @a .5"));
    let mut said = |words: &str, seconds: u64| {
        let words: Vec<&str> = words.split_whitespace().collect();
        let status = crate::script::status(&words);
        let mutations = vec![Mutation::ReportTask { id: task("1"), node: node("a"), status }];
        let transaction = Transaction { mutations, ..Transaction::default() };
        let mut events = vec![];
        state.apply(Time(seconds * 1000), &[transaction], &mut events);
        let event = events.first().map(|e| format!("{} {}", e.action.as_str(), e.message));
        (event.unwrap_or_default(), state.task(task("1")).unwrap().status.health)
    };
    let event = |said: (String, Option<_>)| said.0;
    assert_eq!(event(said("running#1 health=starting", 10)), "update running (starting)");
    assert_eq!(event(said("running#1 health=healthy", 11)), "health running (healthy)");
    assert_eq!(event(said("running#1 health=healthy", 12)), "");
    let ill = said("running#1 health=unhealthy error=slow", 13);
    assert_eq!(event(ill), "health running (unhealthy): slow");
    let ends = said("draining#1 health=unhealthy error=slow", 14);
    assert_eq!(event(ends), "update draining (unhealthy): slow");
    // At once healthy: the news is that it runs.
    assert_eq!(event(said("running#2 health=healthy", 15)), "update running (healthy)");
    let (told, _) = said("draining#2 health=unhealthy error=slow", 16);
    assert_eq!(told, "health draining (unhealthy): slow");
    // A manager that was cut off had an earlier word yet; one of another run is no earlier one.
    said("running#3 health=starting@15000", 17);
    said("running#3 health=healthy@16000", 17);
    assert_eq!(event(said("running#3 health=starting@15000", 17)), "");
    assert_eq!(event(said("running#3 health=unhealthy@16000", 17)), "health running (unhealthy)");
    // A clock that is ahead.
    let (_, health) = said("running#4 health=healthy@90000", 17);
    assert_eq!(health.unwrap().since, Time(17_000));
    // An earlier word of it, cut later than the later one.
    said("running#5 health=healthy@90000 since=80000", 18);
    assert_eq!(event(said("running#5 health=starting@80000 since=80000", 19)), "");
}
