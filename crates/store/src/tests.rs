//! The store as its callers see it: acknowledged is durable and visible, whatever happens.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use warren_base::clock::{ManualClock, RealClock};
use warren_base::rng::{Rng, SeededRng, SystemRng};
use warren_model::Time;
use warren_model::cluster::Cluster;
use warren_model::id::{ClusterId, NodeId, ServiceId, TaskId};
use warren_model::node::{Description, Node as ModelNode, NodeStatus};
use warren_model::service::{ServiceSpec, TaskTemplate};
use warren_model::task::{Desired, Task, TaskState, TaskStatus};
use warren_state::change::{Expect, Key, Mutation, Rejection, Request};

mod chaos;
mod cluster;
mod disaster;
mod net;
mod tcp;

use super::*;
use crate::disk::Disk;
use crate::log::LogOptions;
use crate::sim_disk::SimDisk;

fn options(dir: &Path) -> Options {
    let (clock, rng) = (Arc::new(RealClock::new()), Arc::new(SystemRng));
    Options::new(&dir.join("store"), &dir.join("keys/node.key"), 1, clock, rng).unwrap()
}

fn one(mutation: Mutation) -> Transaction {
    Transaction { mutations: vec![mutation], ..Transaction::default() }
}

fn cluster(history_limit: u32) -> Mutation {
    let cluster = Cluster::new(ClusterId::from_bytes([1; 10]));
    Mutation::SetCluster(Cluster { history_limit, ..cluster })
}

fn id(number: u64) -> [u8; 10] {
    let mut bytes = [0; 10];
    bytes[2..].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn node(number: u64) -> ModelNode {
    ModelNode {
        manager: true,
        status: NodeStatus::Ready,
        ..ModelNode::new(
            NodeId::from_bytes(id(number)),
            Description { hostname: format!("n{number}"), ..Description::default() },
        )
    }
}

fn service(number: u64, text: usize) -> Mutation {
    let task = TaskTemplate {
        image: "busybox".into(),
        env: vec![format!("A={}", "x".repeat(text))],
        ..TaskTemplate::default()
    };
    let spec = ServiceSpec::new(format!("s{number}").parse().unwrap(), task);
    Mutation::CreateService { id: ServiceId::from_bytes(id(number)), spec }
}

fn task(number: u64, of: u64) -> Mutation {
    Mutation::CreateTask(Task {
        id: TaskId::from_bytes(id(number)),
        service: ServiceId::from_bytes(id(of)),
        slot: 1,
        run: 0,
        template: 1,
        node: None,
        address: None,
        desired: Desired::Running,
        status: TaskStatus::new(TaskState::Pending, Time(5)),
        created: Time(5),
        devices: Default::default(),
        origin: None,
        revision: 0,
    })
}

fn file_names(dir: &Path, suffix: &str) -> Vec<String> {
    let names = fs::read_dir(dir.join("store")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(suffix)).collect();
    names.sort();
    names
}

async fn open_error(options: Options) -> String {
    let error = Store::open(options).await.err().expect("opening fails");
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

#[tokio::test]
async fn what_is_proposed_is_seen_and_told_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(options(dir.path())).await.unwrap();
    assert!(*store.leader().borrow());
    assert_eq!(store.view().revision(), 0);
    let mut watch = store.watch();
    assert_eq!(store.propose(one(cluster(3))).await, Ok(1));
    assert_eq!(store.view().cluster().unwrap().history_limit, 3);
    watch.changed().await.unwrap();
    assert_eq!(*watch.borrow_and_update(), 1);
    assert_eq!(store.propose(one(service(7, 10))).await, Ok(2));
    let refused = store.propose(one(service(7, 10))).await;
    assert!(matches!(refused, Err(ProposeError::Rejected(Rejection::Exists { .. }))));
    let stale = Transaction {
        expects: vec![Expect { key: Key::Service(ServiceId::from_bytes(id(7))), revision: 1 }],
        ..one(cluster(9))
    };
    let stale = store.propose(stale).await;
    assert!(matches!(stale, Err(ProposeError::Rejected(Rejection::Stale { found: 2, .. }))));
    let events: Vec<u64> = store.events_after(0).unwrap().iter().map(|e| e.revision).collect();
    assert_eq!(events, [1, 2]);
    assert!(store.events_after(2).unwrap().is_empty());
    let before = store.view();
    store.shutdown().await;
    assert!(matches!(store.propose(one(cluster(4))).await, Err(ProposeError::Stopped { .. })));

    let store = Store::open(options(dir.path())).await.unwrap();
    let after = store.view();
    assert_eq!((after.checksum(), after.revision()), (before.checksum(), 2));
    assert_eq!(store.propose(one(cluster(5))).await, Ok(3));
    assert_eq!(*store.watch().borrow(), 3);
    let other = store.clone();
    drop(store);
    assert_eq!(other.propose(one(cluster(6))).await, Ok(4));
}

#[tokio::test]
async fn a_dropped_store_gives_its_folder_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(options(dir.path())).await.unwrap();
    let mut ended = store.ended();
    drop(store);
    ended.wait_for(|ended| *ended).await.unwrap();
    Store::open(options(dir.path())).await.unwrap().shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_share_entries() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(options(dir.path())).await.unwrap();
    let mut callers = tokio::task::JoinSet::new();
    for number in 0..500 {
        let store = store.clone();
        callers.spawn(async move {
            let revision = store.propose(one(service(number, 10))).await.unwrap();
            // Seen by whoever was answered.
            let view = store.view();
            assert!(view.revision() >= revision);
            assert!(view.service(ServiceId::from_bytes(id(number))).is_some());
            revision
        });
    }
    let mut revisions = callers.join_all().await;
    revisions.sort_unstable();
    assert_eq!(revisions, (1..=500).collect::<Vec<_>>());
    assert_eq!(store.events_after(0).unwrap().len(), 500);
    let checksum = store.view().checksum();
    store.shutdown().await;
    let store = Store::open(options(dir.path())).await.unwrap();
    assert_eq!(store.view().checksum(), checksum);
}

#[tokio::test]
async fn retries_are_answered_once_also_after_restart_and_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let small = |dir: &Path| Options { snapshot_log_bytes: 4096, ..options(dir) };
    let store = Store::create(small(dir.path())).await.unwrap();
    let request = Request { principal: "socket:0".into(), id: 77, hash: 5 };
    let asked = Transaction { request: Some(request.clone()), ..one(cluster(3)) };
    assert_eq!(store.propose(asked.clone()).await, Ok(1));
    assert_eq!(store.propose(one(cluster(4))).await, Ok(2));
    assert_eq!(store.propose(asked.clone()).await, Ok(1));
    store.shutdown().await;
    let store = Store::open(small(dir.path())).await.unwrap();
    assert_eq!(store.propose(asked.clone()).await, Ok(1));
    for number in 0..20 {
        store.propose(one(service(number, 1000))).await.unwrap();
    }
    store.shutdown().await;
    assert!(!file_names(dir.path(), ".snap").is_empty());
    let store = Store::open(small(dir.path())).await.unwrap();
    assert_eq!(store.propose(asked.clone()).await, Ok(1));
    let other = Request { hash: 6, ..request };
    let other = store.propose(Transaction { request: Some(other), ..asked }).await;
    assert_eq!(other, Err(ProposeError::Rejected(Rejection::RequestReused)));
    assert_eq!(store.view().cluster().unwrap().history_limit, 4);
}

#[tokio::test]
async fn too_large_is_refused_before_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(options(dir.path())).await.unwrap();
    let check = async |transaction: Transaction, expected: &str| {
        let error = store.propose(transaction).await.unwrap_err();
        assert!(matches!(error, ProposeError::TooLarge { .. }), "{error}");
        assert!(error.to_string().starts_with(expected), "{error}");
    };
    let nodes = (0..2001).map(|number| Mutation::CreateNode(node(number))).collect();
    let many = Transaction { mutations: nodes, ..Transaction::default() };
    check(many, "mutations in a transaction has 2001, at most 2000").await;
    check(one(service(1, 600 << 10)), "bytes of a service has 614").await;
    let large = (0..5).map(|number| service(number, 300 << 10)).collect();
    check(Transaction { mutations: large, ..Transaction::default() }, "bytes of a transaction")
        .await;
    assert_eq!(store.view().revision(), 0);
    // At the limit it goes.
    let nodes = (0..2000).map(|number| Mutation::CreateNode(node(number))).collect();
    let most = Transaction { mutations: nodes, ..Transaction::default() };
    assert_eq!(store.propose(most).await, Ok(1));
}

#[tokio::test]
async fn snapshots_bound_the_log_and_replay_to_the_same_state() {
    let dir = tempfile::tempdir().unwrap();
    let small = |dir: &Path| {
        let log = LogOptions {
            segment_bytes: 64 << 10,
            first_segment_bytes: 64 << 10,
            ..LogOptions::default()
        };
        Options { snapshot_log_bytes: 16 << 10, log, ..options(dir) }
    };
    let store = Store::create(small(dir.path())).await.unwrap();
    let mut round = 0;
    // Until several snapshots were written and the first segment went.
    while file_names(dir.path(), ".log")
        .first()
        .is_some_and(|name| *name == format!("{:016}.log", 1))
    {
        for number in 0..50u32 {
            store.propose(one(cluster(number))).await.unwrap();
        }
        store.propose(one(service(round, 500))).await.unwrap();
        round += 1;
        assert!(round < 1000, "snapshots were never written");
    }
    let view = store.view();
    store.shutdown().await;
    assert_eq!(file_names(dir.path(), ".snap").len(), 2);
    assert!(file_names(dir.path(), ".tmp").is_empty());

    let store = Store::open(small(dir.path())).await.unwrap();
    assert_eq!(store.view().checksum(), view.checksum());
    let oldest = store.events_after(0).unwrap_err();
    assert!(oldest.oldest > 0 && oldest.revision == view.revision());
    store.shutdown().await;

    // The newest snapshot is unreadable: the one before and a longer replay give the same state.
    let newest = dir.path().join("store").join(file_names(dir.path(), ".snap").pop().unwrap());
    let mut bytes = fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&newest, &bytes).unwrap();
    let store = Store::open(small(dir.path())).await.unwrap();
    assert_eq!(store.view().checksum(), view.checksum());
    store.shutdown().await;
    assert_eq!(file_names(dir.path(), ".damaged").len(), 1);

    // All are: said, not papered over.
    for name in file_names(dir.path(), ".snap") {
        fs::remove_file(dir.path().join("store").join(name)).unwrap();
    }
    let error = open_error(small(dir.path())).await;
    assert!(error.contains("no snapshot that can be read reaches it"), "{error}");
}

#[tokio::test]
async fn refusals_to_open_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let here = || options(dir.path());
    assert!(open_error(here()).await.starts_with("there is no store in /"));
    let store = Store::create(here()).await.unwrap();
    let pid = std::process::id();
    assert!(open_error(here()).await.ends_with(&format!("is in use by process {pid}")));
    store.shutdown().await;
    let exists = Store::create(here()).await.err().unwrap().to_string();
    assert!(exists.starts_with("there is a store in /"), "{exists}");

    let other = Options { node_number: 2, ..here() };
    assert!(open_error(other).await.contains("belongs to node 1, not to node 2"));

    let file = |name: &str| dir.path().join("store").join(name);
    let version = fs::read(file("VERSION")).unwrap();
    fs::write(file("VERSION"), "warren-store 2\n").unwrap();
    assert!(open_error(here()).await.contains("has format 2, this binary knows 1"));
    fs::write(file("VERSION"), "x").unwrap();
    assert!(open_error(here()).await.contains("has format \"x\""));
    fs::remove_file(file("VERSION")).unwrap();
    assert!(open_error(here()).await.contains("was never completed"));
    let incomplete = Store::create(here()).await.err().unwrap().to_string();
    assert!(incomplete.contains("was never completed"), "{incomplete}");
    fs::write(file("VERSION"), version).unwrap();

    let key = dir.path().join("keys/node.key");
    let kept = fs::read(&key).unwrap();
    fs::remove_file(&key).unwrap();
    assert!(open_error(here()).await.contains("node.key does not exist"));
    KeyFile::create(&key, &SystemRng).unwrap();
    let error = open_error(here()).await;
    assert!(error.contains("does not open with key file"), "{error}");
    fs::write(&key, kept).unwrap();
    Store::open(here()).await.unwrap().shutdown().await;
}

#[tokio::test]
async fn time_never_goes_back() {
    let dir = tempfile::tempdir().unwrap();
    let at = |now: u64| Options { clock: Arc::new(ManualClock::at(now)), ..options(dir.path()) };
    let store = Store::create(at(5000)).await.unwrap();
    store.propose(one(cluster(1))).await.unwrap();
    assert_eq!(store.view().time(), Time(5000));
    store.shutdown().await;
    let store = Store::open(at(10)).await.unwrap();
    store.propose(one(cluster(2))).await.unwrap();
    assert_eq!(store.view().time(), Time(5000));
    store.shutdown().await;
}

// ---- in memory, with power cuts ----------------------------------------------

fn sim_options(disk: &SimDisk, seed: u64) -> Options {
    Options {
        disk: Arc::new(disk.clone()),
        key: KeySource::Memory([3; 32]),
        node_number: 1,
        clock: Arc::new(ManualClock::at(1000)),
        rng: Arc::new(SeededRng::new(seed)),
        log: LogOptions {
            segment_bytes: 8 << 10,
            first_segment_bytes: 4 << 10,
            cache_bytes: 2 << 10,
            inline: true,
        },
        snapshot_log_bytes: 3000,
        inline: true,
        address: String::new(),
        transport: None,
        election: Election::default(),
    }
}

#[tokio::test]
async fn a_failed_disk_ends_the_store() {
    let disk = SimDisk::new();
    let store = Store::create(sim_options(&disk, 1)).await.unwrap();
    store.propose(one(cluster(1))).await.unwrap();
    disk.power_off_at(disk.operations());
    let failed = store.propose(one(cluster(2))).await;
    assert!(matches!(failed, Err(ProposeError::Stopped { .. })), "{failed:?}");
    store.ended().wait_for(|ended| *ended).await.unwrap();
    assert!(!*store.leader().borrow());
    let store = Store::open(sim_options(&disk.kill(), 2)).await.unwrap();
    assert!(store.view().cluster().unwrap().history_limit >= 1);
}

/// Services made in each life, until the power goes; returns those acknowledged.
async fn live(store: &Store, rng: &SeededRng, next: &mut u64) -> Vec<u64> {
    let mut kept = Vec::new();
    loop {
        let wave: Vec<u64> = (0..1 + rng.below(4)).map(|at| *next + at).collect();
        *next += wave.len() as u64;
        let size = usize::try_from(rng.below(300)).unwrap();
        let proposals = wave.iter().map(|number| {
            // Two halves: either both are there or none.
            let mutations = vec![service(*number, size), task(*number, *number)];
            store.propose(Transaction { mutations, ..Transaction::default() })
        });
        let answers = futures::future::join_all(proposals).await;
        let gone = answers.iter().any(Result::is_err);
        kept.extend(wave.into_iter().zip(answers).filter(|(_, a)| a.is_ok()).map(|(n, _)| n));
        if gone {
            return kept;
        }
    }
}

async fn lives(cuts: Vec<(u64, bool)>, seed: u64) {
    let rng = SeededRng::new(seed);
    let mut disk = SimDisk::new();
    let mut store = Store::create(sim_options(&disk, seed)).await.unwrap();
    let (mut next, mut kept) = (0, Vec::new());
    for (cut, power) in cuts {
        disk.power_off_at(disk.operations() + cut);
        kept.extend(live(&store, &rng, &mut next).await);
        store.ended().wait_for(|ended| *ended).await.unwrap();
        disk = if power { disk.crash(&rng) } else { disk.kill() };
        store = Store::open(sim_options(&disk, rng.next_u64())).await.unwrap();
        let view = store.view();
        for number in &kept {
            assert!(view.service(ServiceId::from_bytes(id(*number))).is_some(), "{number} is gone");
        }
        // Never half a transaction.
        assert_eq!(view.services().len(), view.tasks().len());
    }
    let view = store.view();
    store.shutdown().await;
    let store = Store::open(sim_options(&disk, 9)).await.unwrap();
    assert_eq!(store.view().checksum(), view.checksum());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn acknowledged_proposals_survive_any_crash(
        cuts in proptest::collection::vec((1..400u64, any::<bool>()), 1..4),
        seed: u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(lives(cuts, seed));
    }
}

#[test]
fn the_same_seed_leaves_the_same_bytes() {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let disk = SimDisk::new();
            let store = Store::create(sim_options(&disk, 5)).await.unwrap();
            for number in 0..40 {
                store.propose(one(service(number, 200))).await.unwrap();
            }
            store.shutdown().await;
            let names = disk.list().unwrap();
            let bytes = names.iter().map(|n| disk::read_all(&disk, n, 1 << 20).unwrap());
            (names.clone(), bytes.collect::<Vec<_>>(), disk.operations())
        })
    };
    let (first, second) = (run(), run());
    assert_eq!(first.0, second.0);
    assert!(first == second, "same names, other bytes");
}
