//! Nodes and operators: how they come, change and go, and what is remembered of them.

use warren_model::Secret;
use warren_model::Time;
use warren_model::cluster::{Authority, BackupPolicy, Cluster, JoinToken};
use warren_model::id::ClusterId;
use warren_model::node::Node;
use warren_state::Object;
use warren_state::State;
use warren_state::change::{Mutation, Outcome, Rejection, Transaction};

use crate::rules::check;
use crate::script::{node, run, service, task};

fn all_ok(script: &str) -> State {
    let (state, outcomes) = run(script);
    assert!(outcomes.iter().all(|outcome| outcome == "ok"), "{outcomes:?}");
    state
}

/// Numbers of the managers that are, as `a1 c3`, then the next.
#[track_caller]
fn check_numbers(script: &str, expected: &str) {
    let state = all_ok(script);
    let managers = state.nodes().filter(|node| node.manager);
    let number = |node: &Node| {
        let number = node.number.map_or("-".to_owned(), |number| number.to_string());
        format!("{}{number} ", node.description.hostname)
    };
    let next = state.cluster().map_or(0, |cluster| cluster.next_number);
    assert_eq!(format!("{}{next}", managers.map(number).collect::<String>()), expected);
}

#[test]
fn every_promotion_has_a_number_of_its_own() {
    check_numbers("cluster; node a", "a1 2");
    check_numbers("cluster; node a\n node b\n worker c\n role c both", "a1 b2 c3 4");
    check_numbers("cluster; node a\n node b\n role b worker\n role b both", "a1 b3 4");
    check_numbers("cluster; node a\n node b\n role b manager; role b both", "a1 b2 3");
    // Settings read before a promotion do not bring its number back.
    check_numbers("cluster; node a\n node b\n cluster; node c", "a1 b2 c3 4");
    // A manager of a state from before numbers.
    check_numbers("node a\n cluster", "a- 1");
    check_numbers("node a\n cluster\n role a both", "a1 2");
    let state = all_ok("cluster; node a; node b\n role b worker");
    assert_eq!(state.node(node("b")).unwrap().number, Some(2), "kept, for those who look for it");
    assert_eq!(state.node_by_number(2).unwrap().id, node("b"));
    check("cluster; node a; worker b\n role a worker", "node a is the only manager");
    check("role a worker", "node a does not exist");
}

#[test]
fn nodes_leave_when_nothing_holds_them() {
    let world = "node a 10.128.0.0/24; worker b; service web; grant b 10.128.1.0/24";
    let with = |script: &str| format!("{world}\n{script}");
    check(&with("rm a"), "node a is a manager");
    check(&with("down a; rm a force"), "node a is a manager");
    check(&with("rm b"), "ok");
    check(&with("task 1 web.1 @b .2\n rm b"), "node b is up and has 1 tasks");
    check(&with("task 1 web.1 @b .2\n report 1 @b failed#1\n rm b"), "ok");
    check(&with("task 1 web.1 @b .2\n down b\n rm b"), "ok");
    check(&with("task 1 web.1 @b .2\n rm b force"), "ok");
    check(&with("rm b\n rm b"), "node b does not exist");
    check("node a; node b; service web\n role b worker; rm b", "ok");
    let state =
        all_ok(&with("task 1 web.1 @b .2\n task 2 web.2 @a .2\n update web image=b\n rm b force"));
    assert_eq!(state.tasks().map(|task| task.id).collect::<Vec<_>>(), [task("2")]);
    assert_eq!(state.tasks_of(service("web")).count(), 1);
    // Its block is free again.
    check(&with("rm b\n grant a 10.128.1.0/24"), "ok");
}

#[test]
fn removed_nodes_are_refused_for_as_long_as_their_certificate_lasts() {
    let world = "node a; worker b key=7";
    let with = |script: &str| format!("{world}\n{script}");
    check(&with("rm b until=50\n worker b"), "node b was removed");
    check(&with("rm b until=50\n worker c key=7"), "key of node c is that of a removed node");
    check(
        &with("worker c\n rm b until=50\n certificate c key=7"),
        "key of node c is that of a removed node",
    );
    check(&with("rm b until=50\n @49\n worker b key=7"), "ok");
    let state = all_ok(&with("rm b until=50\n @48\n service web"));
    assert_eq!(state.tombstone(node("b")).unwrap().keep_until, Time(50_000));
    // The time of any entry ends it.
    let state = all_ok(&with("rm b until=50\n @49\n service web"));
    assert!(state.tombstone(node("b")).is_none());
    // Nothing to remember of one whose certificate has ended.
    let state = all_ok(&with("rm b until=1"));
    assert_eq!(state.tombstones().count(), 0);
    // Refused: the node and its tasks are back.
    let (state, outcomes) = run(&with(
        "service web; grant b 10.128.1.0/24; task 1 web.1 @b
        rm b force; drop 9",
    ));
    assert_eq!(outcomes.last().unwrap(), "task 9 does not exist");
    assert!(state.tombstone(node("b")).is_none());
    assert_eq!((state.live_on(node("b")), state.tasks_on(node("b")).count()), (1, 1));
}

#[test]
fn a_key_is_one_nodes() {
    check("worker a key=7\n worker b key=7", "key of node b is that of node a");
    check("worker a key=7\n worker b\n certificate b key=7", "key of node b is that of node a");
    check("worker a\n worker b", "ok");
    let state = all_ok("worker a key=7\n certificate a key=7 until=90 issuer=3");
    let node = state.node(node("a")).unwrap();
    assert_eq!((node.key_hash, node.certificate_not_after), ([7; 32], Time(90_000)));
    assert_eq!((node.issuer_hash, node.revision), ([3; 32], 2));
}

#[test]
fn what_is_said_of_forgotten_tasks_holds_for_one_epoch() {
    let state = all_ok("cluster; node a\n restored 2 9\n forgotten a 2 keep\n forgotten a 2 drop");
    let said = state.node(node("a")).unwrap().forgotten.unwrap();
    assert_eq!((said.epoch, said.choice.as_str()), (2, "drop"));
    check("cluster; node a\n forgotten a 0 drop", "tasks forgotten by epoch 0: the cluster's is 0");
    check(
        "cluster; node a\n restored 2 9\n restored 3 99\n forgotten a 2 drop",
        "tasks forgotten by epoch 2: the cluster's is 3",
    );
    check("cluster; node a\n restored 2 9\n forgotten b 2 drop", "node b does not exist");
}

#[test]
fn labels_are_replaced() {
    let state = all_ok("worker a\n labels a rack=1 ssd=\n labels a rack=2");
    let labels = &state.node(node("a")).unwrap().labels;
    assert_eq!(labels.iter().collect::<Vec<_>>(), [(&"rack".to_owned(), &"2".to_owned())]);
    check("worker a\n labels a =1", "\"\" is not a label key (not empty, no spaces)");
    let many: String = (0..129).map(|n| format!(" k{n}")).collect();
    check(
        &format!("worker a\n labels a{many}"),
        "node a would have 129 labels, at most 128 are allowed",
    );
}

#[test]
fn nodes_are_found_by_id_host_and_prefix() {
    let state = all_ok("worker web\n worker wax\n worker api\n describe api web");
    let find = |text: &str| state.resolve_node(text).map(|node| node.id);
    assert_eq!(find(&node("wax").to_string()), Some(node("wax")));
    assert_eq!(find("wax"), Some(node("wax")));
    assert_eq!(find("web"), None, "two hosts are called so");
    assert_eq!(find(&node("web").to_string()[..6]), Some(node("web")));
    assert_eq!(find("ex"), None, "two begin so");
    for nothing in ["", "zzz", "U", "é", "00000000000000000", "none"] {
        assert_eq!(find(nothing), None, "{nothing}");
    }
}

#[test]
fn operators_come_and_go() {
    check("operator anna admin\n expect operator anna=1; operator anna read", "ok");
    let taken = "operator anna is at revision 1, expected 0";
    check("operator anna admin\n expect operator anna=0; operator anna read", taken);
    check("rm-operator anna", "operator anna does not exist");
    check("operator anna admin\n rm-operator anna\n expect operator anna=0; worker a", "ok");
    check(
        "operator anna admin token=1\n operator ben read token=1",
        "operator ben would be let in as anna",
    );
    check(
        "operator anna admin key=1\n operator ben read key=1",
        "operator ben would be let in as anna",
    );
    check("operator anna admin token=1\n operator ben read key=1", "ok");
    let state = all_ok("operator anna admin token=1 expires=9\n operator ben read key=2");
    let name = |operator: Option<&warren_model::Operator>| operator.map(|o| o.name.to_string());
    assert_eq!(name(state.operator_by_token(&[1; 32])).as_deref(), Some("anna"));
    assert_eq!(name(state.operator_by_key(&[2; 32])).as_deref(), Some("ben"));
    assert_eq!(name(state.operator_by_token(&[2; 32])), None);
    assert_eq!(state.operator("anna".parse().unwrap()).unwrap().created, Time(1_000));
    let mut many: String = (0..1024).map(|n| format!("operator o{n} read; ")).collect();
    check(&many, "ok");
    many.push_str("operator more read");
    check(&many, "there are 1024 operators, more are not allowed");
}

#[test]
fn a_restore_jumps() {
    let state = all_ok("cluster; node a\n restored 3 500\n worker b");
    assert_eq!((state.revision(), state.cluster().unwrap().epoch), (501, 3));
    assert_eq!(state.node(node("b")).unwrap().revision, 501);
    // Never back.
    let state = all_ok("cluster; node a\n worker b\n restored 1 1");
    assert_eq!(state.revision(), 3);
    check("cluster\n restored 1 9\n restored 1 9", "epoch 1 is not later than 1");
    check("restored 1 9", "there is no cluster to restore");
    let (_, outcomes) = run(&format!("cluster\n restored 1 {}", u64::MAX));
    assert!(outcomes[1].contains("is more than"), "{outcomes:?}");
    // Settings read before it do not bring the old epoch back.
    let state = all_ok("cluster\n restored 3 9\n cluster; worker a");
    assert_eq!(state.cluster().unwrap().epoch, 3);
}

#[track_caller]
fn check_cluster(change: impl FnOnce(&mut Cluster), expected: &str) {
    let mut cluster = Cluster::new(ClusterId::from_bytes([1; 10]));
    change(&mut cluster);
    let mutations = vec![Mutation::SetCluster(cluster)];
    let transaction = Transaction { mutations, ..Transaction::default() };
    let mut state = State::default();
    let outcome = state.apply(Time(1), &[transaction], &mut vec![]).remove(0);
    let said = match outcome {
        Outcome::Rejected(Rejection::Invalid(why)) => why,
        Outcome::Applied { .. } => "ok".to_owned(),
        other => format!("{other:?}"),
    };
    assert_eq!(said, expected);
    assert_eq!(state.check(), Vec::<String>::new());
}

#[test]
fn settings_have_bounds() {
    let authority =
        |count| Some(Authority { certificates: vec![vec![1]; count], key: Secret::new(vec![1]) });
    check_cluster(|c| c.ca = authority(1), "ok");
    check_cluster(|c| c.ca = authority(0), "authority has 0 certificates, allowed are 1 to 8");
    check_cluster(|c| c.ca = authority(9), "authority has 9 certificates, allowed are 1 to 8");
    check_cluster(
        |c| c.certificate_lifetime_ms = 9_999,
        "certificate lifetime 9999 ms is not between 10000 and 315360000000",
    );
    check_cluster(|c| c.unlock_key = Some(Secret::new(vec![1; 32])), "ok");
    check_cluster(
        |c| c.unlock_key = Some(Secret::new(vec![1; 31])),
        "unlock key has 31 bytes, not 32",
    );
    let backup = |folder: &str, interval_ms, keep, recipient: &str| {
        let (folder, recipient) = (folder.to_owned(), recipient.to_owned());
        Some(BackupPolicy { folder, interval_ms, keep, recipient })
    };
    check_cluster(|c| c.backup = backup("/b", 60_000, 1, "age1"), "ok");
    check_cluster(
        |c| c.backup = backup("b", 60_000, 1, "age1"),
        "backup folder \"b\" is not an absolute path",
    );
    check_cluster(
        |c| c.backup = backup("/b", 59_999, 1, "age1"),
        "backup interval 59999 ms is less than 60000",
    );
    check_cluster(
        |c| c.backup = backup("/b", 60_000, 0, "age1"),
        "backups kept are 0, allowed are 1 to 1000",
    );
    check_cluster(|c| c.backup = backup("/b", 60_000, 1, ""), "backup recipient is empty");
}

/// Each field counts, also when only its own default differs.
#[test]
fn every_setting_is_in_the_checksum() {
    let changes: [fn(&mut Cluster); 9] = [
        |_| {},
        |c| c.ca = Some(Authority { certificates: vec![vec![1]], key: Secret::new(vec![1]) }),
        |c| c.worker_token = Some(JoinToken { secret: [1; 16], expires: None }),
        |c| c.manager_token = Some(JoinToken { secret: [1; 16], expires: None }),
        |c| c.certificate_lifetime_ms += 1,
        |c| c.epoch = 1,
        |c| c.unlock_key = Some(Secret::new(vec![1; 32])),
        |c| c.next_number = 2,
        |c| {
            let (folder, recipient) = ("/b".to_owned(), "age1".to_owned());
            c.backup = Some(BackupPolicy { folder, interval_ms: 60_000, keep: 1, recipient });
        },
    ];
    let sums: std::collections::BTreeSet<u64> = changes
        .iter()
        .map(|change| {
            let mut cluster = Cluster::new(ClusterId::from_bytes([1; 10]));
            change(&mut cluster);
            let head = warren_state::Head { cluster: Some(cluster), ..Default::default() };
            State::import(head, []).unwrap().checksum()
        })
        .collect();
    assert_eq!(sums.len(), changes.len());
}

/// As the first version computed it: snapshots of then are still accepted.
#[test]
fn what_has_none_of_the_added_fields_keeps_its_sum() {
    let state = all_ok(
        "node a 10.128.0.0/24; service web 8080
        task 1 web.1 @a .2
        report 1 @a running#1
        req=1:5; cluster",
    );
    // Nodes of then did not know since when they take tasks.
    let objects = state.export().filter_map(|object| match object {
        Object::Node(mut node) => {
            node.opened = Time(0);
            Some(Object::Node(node))
        }
        // Nor which address was given last.
        Object::Given { .. } => None,
        object => Some(object),
    });
    let state = State::import(state.head(), objects).unwrap();
    assert_eq!(state.checksum(), CHECKSUM_OF_VERSION_1);
}

const CHECKSUM_OF_VERSION_1: u64 = 0xc5d2_9477_f419_cec4;
