//! Backups, recovery on a survivor, keys that rotate, disks that lie.

use std::io::Read;
use std::time::Duration;

use warren_model::cluster::Cluster;
use warren_model::id::ClusterId;
use warren_model::node::Node as ModelNode;
use warren_state::change::Mutation;

use super::super::*;
use super::net::{House, has_all, make, until};
use super::{node, one, service};
use crate::disk::Disk;

/// Three managers that the state knows, with a few services.
async fn house_of_three(seed: u64) -> House {
    let house = House::of(seed, 3).await;
    let settings = Cluster::new(ClusterId::from_bytes([1; 10]));
    let managers =
        (1..=3).map(|number| Mutation::CreateNode(ModelNode { manager: true, ..node(number) }));
    let mutations = std::iter::once(Mutation::SetCluster(settings)).chain(managers).collect();
    let first = Transaction { mutations, ..Transaction::default() };
    house.stores[&1].propose(first).await.unwrap();
    for number in 1..=10 {
        make(&house.stores[&(1 + number % 3)], number).await.unwrap();
    }
    house.agree(&(1..=10).collect::<Vec<_>>()).await;
    house
}

fn managers_of(store: &Store) -> Vec<u64> {
    let view = store.view();
    let managers = view.nodes().filter(|node| node.manager);
    managers.filter_map(|node| node.number).collect()
}

#[tokio::test(start_paused = true)]
async fn a_survivor_goes_on_alone_and_the_others_are_refused() {
    let mut house = house_of_three(40).await;
    let before = house.stores[&2].view();
    for number in 1..=3 {
        house.crash(number, true);
    }
    let options = house.options(2);
    let restored = Store::recover(&options).unwrap();
    assert_eq!((restored.number, restored.epoch), (2, 1));
    assert!(restored.revision >= before.revision() + 1_000_000);
    // A second time is as good, e.g. after the first was cut off.
    assert_eq!(Store::recover(&house.options(2)).unwrap().epoch, 2);
    house.open(2).await;
    let survivor = &house.stores[&2];
    assert!(*survivor.leader().borrow());
    assert!(has_all(survivor, &(1..=10).collect::<Vec<_>>()));
    assert_eq!(managers_of(survivor), [2]);
    assert_eq!(survivor.status().voters.len(), 1);
    make(survivor, 11).await.unwrap();
    // The others come back as if nothing had happened: they have a majority of before.
    house.open(1).await;
    house.open(3).await;
    let old = house.leader_but(2).await;
    assert_ne!(old, 2);
    assert!(!has_all(&house.stores[&old], &[11]));
    // But not with who went on.
    house.stores[&2].add_learner(3, "m3").await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!has_all(&house.stores[&3], &[11]));
    house.stores[&2].remove(3).await.unwrap();
    house.burn(1);
    house.burn(3);
    // Empty ones are welcome, under new numbers.
    house.join(4).await;
    house.admit(4).await;
    make(&house.stores[&4], 12).await.unwrap();
    house.agree(&[1, 10, 11, 12]).await;
}

#[tokio::test(start_paused = true)]
async fn recovery_survives_a_cut_of_power_at_any_moment() {
    let mut house = house_of_three(41).await;
    house.crash(1, true);
    let disk = house.disk(1).fork();
    let used = {
        house.set_disk(1, disk.fork());
        let before = house.disk(1).operations();
        Store::recover(&house.options(1)).unwrap();
        house.disk(1).operations() - before
    };
    for cut in 0..used {
        let copy = disk.fork();
        copy.power_off_at(copy.operations() + cut);
        house.set_disk(1, copy.clone());
        let cut_off = Store::recover(&house.options(1)).is_err();
        let after = copy.crash(house.rng.as_ref());
        house.set_disk(1, after);
        // Whatever was done of it: once more, and it is done.
        let again = Store::recover(&house.options(1));
        let restored = again.unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        assert!(restored.epoch <= 2, "cut at {cut}: {cut_off}");
        let store = Store::open(house.options(1)).await.unwrap();
        assert!(has_all(&store, &(1..=10).collect::<Vec<_>>()), "cut at {cut}");
        assert!(*store.leader().borrow());
        store.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_backup_is_restored_elsewhere() {
    let mut house = house_of_three(42).await;
    let mut backup = Vec::new();
    let mut export = house.stores[&3].export();
    let len = export.len();
    export.read_to_end(&mut backup).unwrap();
    assert_eq!(backup.len(), len);
    let before = house.stores[&3].view();
    make(&house.stores[&1], 11).await.unwrap();
    for number in 1..=3 {
        house.burn(number);
    }
    let options = house.options(4);
    let restored = Store::restore(&options, &mut backup.as_slice()).unwrap();
    assert_eq!((restored.number, restored.epoch, restored.time), (4, 1, before.time()));
    house.open(4).await;
    let store = &house.stores[&4];
    assert!(has_all(store, &(1..=10).collect::<Vec<_>>()) && !has_all(store, &[11]));
    assert_eq!(managers_of(store).len(), 1);
    // The number that the state gives next is the one that it has.
    let new = Mutation::CreateNode(ModelNode { manager: true, ..node(77) });
    let view = store.view();
    let last = view.nodes().find(|node| node.manager).unwrap();
    let old = Mutation::SetRole { id: last.id, manager: false, worker: true };
    let mutations = vec![new, old];
    store.propose(Transaction { mutations, ..Transaction::default() }).await.unwrap();
    assert_eq!(managers_of(store), [4]);
    house.join(5).await;
    house.admit(5).await;
    house.agree(&[1, 10]).await;
}

#[tokio::test(start_paused = true)]
async fn wrong_backups_are_refused_and_leave_nothing() {
    let mut house = house_of_three(43).await;
    let mut backup = Vec::new();
    house.stores[&1].export().read_to_end(&mut backup).unwrap();
    let mut check = |bytes: &[u8], expected: &str| {
        let options = house.options(9);
        let error = Store::restore(&options, &mut &bytes[..]).unwrap_err();
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
        let text = format!("{error}{}", cause.unwrap_or_default());
        assert!(text.contains(expected), "{text}");
        assert!(house.disk(9).list().unwrap().is_empty());
    };
    check(b"hello world, this is no backup", "not a backup");
    check(&backup[..5], "cut off");
    check(&backup[..backup.len() - 1], "cut off");
    let mut newer = backup.clone();
    newer[8] = 9;
    check(&newer, "version 9");
    let mut flipped = backup.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x10;
    check(&flipped, "backup");
    let empty = House::of(44, 1).await;
    let mut none = Vec::new();
    empty.stores[&1].export().read_to_end(&mut none).unwrap();
    check(&none, "without settings");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_overrules_entries_of_another_leader() {
    let mut house = House::of(47, 1).await;
    for number in 1..=20 {
        make(&house.stores[&1], number).await.unwrap();
    }
    let state = house.stores[&1].view();
    house.stores[&1].shutdown().await;
    house.crash(1, false);
    // As if a later leader's snapshot had come, and the power went before the log was cut.
    let options = house.options(1);
    let ground = open::open(&options).unwrap();
    let at = codec::WireLogId { term: 9, node: 1, index: 10 };
    let membership = codec::WireMembership {
        voters: vec![codec::WireVoters { nodes: vec![1] }],
        members: vec![codec::WireMember { node: 1, address: "m1".to_owned() }],
    };
    let position = codec::WirePosition {
        last: Some(at),
        membership_at: Some(at),
        membership: Some(membership),
    };
    ground.snapshots.write(&state, &position).unwrap();
    drop(ground);
    house.crash(1, true);
    house.open(1).await;
    let store = &house.stores[&1];
    assert!(has_all(store, &(1..=20).collect::<Vec<_>>()));
    make(store, 21).await.unwrap();
    assert!(store.status().term > 9 && store.status().last < 15);
}

#[tokio::test(start_paused = true)]
async fn data_keys_rotate_and_old_ones_are_forgotten() {
    let mut house = House::empty(45);
    house.snapshot_log_bytes = 20_000;
    house.create(1).await;
    let store = house.stores[&1].clone();
    let fill = async |from: u64| {
        for number in from..from + 60 {
            store.propose(one(service(number, 700))).await.unwrap();
        }
    };
    fill(0).await;
    until("there is a snapshot", || store.metrics().snapshot_index > 0).await;
    store.rotate_data_key().await.unwrap();
    fill(100).await;
    store.rotate_data_key().await.unwrap();
    fill(200).await;
    fill(300).await;
    store.rotate_data_key().await.unwrap();
    // Only the log since the snapshot before may need an older one.
    assert!(store.inner.vault.keys.ring().ids().count() <= 2);
    let checksum = store.view().checksum();
    store.shutdown().await;
    house.crash(1, true);
    house.open(1).await;
    assert_eq!(house.stores[&1].view().checksum(), checksum);
    assert_eq!(house.stores[&1].inner.vault.keys.ring().active().id(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_manager_that_lost_acknowledged_entries_does_not_vote() {
    let mut house = house_of_three(46).await;
    house.stores[&3].shutdown().await;
    house.crash(3, false);
    let log = house.disk(3).list().unwrap().into_iter().find(|name| name.ends_with(".log"));
    house.disk(3).flip(&log.unwrap(), 3000 * 8);
    let error = Store::open(house.options(3)).await.err().unwrap();
    assert!(error.is_damage(), "{error}");
    // It is removed, and joins again under another number.
    house.stores[&1].remove(3).await.unwrap();
    house.burn(3);
    house.join(4).await;
    house.admit(4).await;
    house.agree(&(1..=10).collect::<Vec<_>>()).await;
}
