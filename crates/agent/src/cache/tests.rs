//! What is kept on disk: round trips, damage, and when it is written.

use std::os::unix::fs::PermissionsExt;

use warren_base::rng::SeededRng;
use warren_model::cluster::{Cluster, JoinToken};
use warren_model::job::Given;
use warren_model::node_table::Peer;
use warren_model::quantity::Time;
use warren_model::service::TaskTemplate;
use warren_model::task::{Desired, TaskState, TaskStatus};
use warren_model::{ClusterId, NodeTable, Secret, ServiceId, TaskId};

use super::*;
use crate::assignments::{AssignedService, AssignedTask, Assignment, TablePart};
use crate::membership::MembershipView;

const SECRET: &str = "correct horse battery staple";

fn cache(dir: &Path, key: u8) -> Cache {
    let key = Arc::new(KeyFile::in_memory([key; 32]));
    Cache::new(dir, NodeId::from_bytes([4; 10]), key, Arc::new(SeededRng::new(1)))
}

fn cached() -> Cached {
    let (id, service) = (TaskId::from_bytes([1; 10]), ServiceId::from_bytes([2; 10]));
    let task = AssignedTask {
        id,
        service,
        slot: 1,
        template: 1,
        desired: Desired::Running,
        address: None,
        devices: Default::default(),
        known: TaskStatus { attempt: 3, ..TaskStatus::new(TaskState::Running, Time(7)) },
        given: Given::default(),
    };
    let template = TaskTemplate { image: SECRET.into(), ..TaskTemplate::default() };
    let service_of_it = AssignedService {
        name: "web".into(),
        templates: [(1, Arc::new(template))].into(),
        ..AssignedService::default()
    };
    let mut settings = Cluster::new(ClusterId::from_bytes([5; 10]));
    settings.unlock_key = Some(Secret::new(vec![9; 32]));
    settings.worker_token = Some(JoinToken { secret: [9; 16], expires: None });
    let membership = MembershipView {
        epoch: 2,
        managers: vec!["a:2377".into()],
        authorities: vec![vec![1, 2, 3]],
        ..MembershipView::default()
    };
    let mut set = Set::default();
    let first = Assignment {
        complete: true,
        revision: 5,
        tasks: vec![task],
        services: vec![(service, service_of_it)],
        membership: Some(membership.clone()),
        settings: Some(Box::new(settings)),
        table: Some(TablePart { change: table().whole(), more: false }),
        ..Assignment::default()
    };
    set.apply(first).unwrap();
    let membership = Some(MembershipView { epoch: 3, ..membership });
    let next = Assignment { complete: true, revision: 6, membership, ..Assignment::default() };
    set.apply(next).unwrap();
    assert_eq!(set.kept.tasks.len(), 1);
    let contact = Contact { heard_ms: Some(0), alone_ms: Some(99) };
    Cached { set, kept_left_ms: 1234, contact }
}

fn table() -> NodeTable {
    let peer = Peer {
        number: 1,
        underlay: "192.0.2.77".into(),
        blocks: vec!["10.128.0.0/24".parse().unwrap()],
        overlay_key: [7; 32],
        overlay_key_other: [0; 32],
        overlay_port: 0,
        name: String::new(),
    };
    NodeTable {
        cluster: Some(ClusterId::from_bytes([5; 10])),
        peers: [(NodeId::from_bytes([4; 10]), Arc::new(peer))].into(),
        ..NodeTable::default()
    }
}

#[test]
fn what_is_written_is_read_and_hidden() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 1);
    assert_eq!(cache.load(), None);
    let mut written = cached();
    cache.write(&Cached::default()).unwrap();
    cache.write(&written).unwrap();
    let read = cache.load().unwrap();
    let settings = written.set.settings.as_mut().unwrap();
    (settings.unlock_key, settings.worker_token) = (None, None);
    assert_eq!(read, written, "secrets of managers are not kept, all else is");
    let path = dir.path().join("agent/assignments");
    let bytes = std::fs::read(&path).unwrap();
    let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    assert!(holds(MAGIC) && !holds(SECRET.as_bytes()) && !holds(b"web") && !holds(b"2377"));
    assert!(*read.set.table == table() && !holds(b"192.0.2.77"));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    cache.remove().unwrap();
    cache.remove().unwrap();
    assert_eq!(cache.load(), None);
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
}

#[test]
fn moments_of_another_boot_say_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let ours = cache(dir.path(), 1);
    ours.write(&cached()).unwrap();
    for boot in ["another", ""] {
        let next = Cache { boot: boot.to_owned(), ..ours.clone() };
        let read = next.read().unwrap().unwrap();
        assert_eq!(read.contact, Contact::default());
        assert_eq!(read.kept_left_ms, 1234);
    }
}

#[test]
fn damage_is_set_aside_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent/assignments");
    let ours = cache(dir.path(), 1);
    ours.write(&cached()).unwrap();
    let good = std::fs::read(&path).unwrap();
    let open = |bytes: &[u8]| ours.open(&mut bytes.to_vec());
    assert!(open(&good).is_ok());
    for len in 0..good.len() {
        assert!(open(&good[..len]).is_err(), "cut at {len}");
    }
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert!(open(&bad).is_err(), "flipped at {at}");
    }
    let mut newer = good.clone();
    newer[8] = 2;
    let text = |error: CacheError| crate::effects::chain(&error);
    assert!(text(open(&newer).unwrap_err()).ends_with("is of version 2, this binary knows 1"));
    let foreign = cache(dir.path(), 2).read().unwrap_err();
    assert!(text(foreign).contains("does not open with key file"));

    let other = Cache { node: NodeId::from_bytes([6; 10]), ..ours.clone() };
    assert!(text(other.read().unwrap_err()).contains("is of node "), "another node's folder");

    std::fs::write(&path, &good[..good.len() - 1]).unwrap();
    assert_eq!(ours.load(), None);
    assert!(!path.exists());
    assert!(path.with_extension("damaged").exists());
    ours.write(&cached()).unwrap();
    assert!(ours.load().is_some());
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(BYTES_MAX + 1).unwrap();
    assert!(matches!(ours.read(), Err(CacheError::Shape { .. })), "nothing so large is read");
}

#[test]
fn no_two_files_share_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let ours = cache(dir.path(), 1);
    let (one, two) = (ours.seal(&cached()).unwrap(), ours.seal(&cached()).unwrap());
    assert_ne!(one[12..HEAD_LEN], two[12..HEAD_LEN]);
    assert_ne!(one[one.len() - 40..], two[two.len() - 40..]);
}

/// `s@MS` set changed, `t@MS` statuses changed, `n@MS` the network's table changed, `begin`, `ok@MS`, `no@MS`; prints when due.
#[track_caller]
fn check(words: &str, expected: &str) {
    let mut pace = Pace::default();
    let mut out = Vec::new();
    for word in words.split_whitespace() {
        let (what, at) = word.split_once('@').unwrap_or((word, "0"));
        let at = at.parse().unwrap();
        match what {
            "s" => pace.changed(Changed::Set, at),
            "t" => pace.changed(Changed::Statuses, at),
            "n" => pace.changed(Changed::Table, at),
            "begin" => pace.begin(at),
            "ok" => pace.done(true, at),
            _ => pace.done(false, at),
        }
        out.push(pace.due_ms().map_or_else(|| "-".to_owned(), |at| at.to_string()));
    }
    assert_eq!(out.join(" "), expected);
}

#[test]
fn writes_are_few_and_one_at_a_time() {
    check("s@0 s@10 t@15 begin@20 s@50 ok@60 begin@220 ok@230 s@500", "20 20 20 - - 220 - - 520");
    check("t@0 t@900 s@950", "1000 1000 970");
    check("t@0 s@10", "1000 30");
    check("n@0 n@4900 t@4900 n@4950", "5000 5000 5000 5000");
    check("n@0 t@1000 s@1010", "5000 2000 1030");
}

#[test]
fn a_disk_that_refuses_is_asked_ever_more_seldom() {
    check("s@0 begin@20 no@200 begin@600 no@600 begin@1400 ok@1400", "20 - 600 - 1400 - -");
    check("s@0 begin@20 no@200 s@300", "20 - 600 600");
    check("s@0 begin@20 t@30 no@200", "20 - - 600");
}
