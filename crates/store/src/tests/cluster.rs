//! Several managers in good order: forming, forwarding, handing over, removing.

use std::time::Duration;

use tokio::time::Instant;
use warren_model::cluster::Cluster;
use warren_model::id::ClusterId;
use warren_model::node::Node as ModelNode;

use super::super::*;
use super::net::{House, has_all, make, until};
use super::{cluster, id, node, one, service};
use crate::disk::Disk;
use warren_state::change::Mutation;

#[tokio::test(start_paused = true)]
async fn three_managers_form_and_any_of_them_takes_writes() {
    let house = House::of(1, 3).await;
    let status = house.stores[&1].status();
    assert_eq!(status.voters.len(), 3);
    assert_eq!(status.voters[&2], "m2");
    for number in 1..=3 {
        let store = &house.stores[&number];
        let revision = store.propose(one(service(number, 50))).await.unwrap();
        // Read your writes, wherever they were made.
        assert!(store.view().revision() >= revision && has_all(store, &[number]));
        let refused = store.propose(one(service(number, 50))).await;
        assert!(matches!(refused, Err(ProposeError::Rejected(_))), "{refused:?}");
        assert_eq!(*store.leader_number().borrow(), Some(1));
        assert!(*store.in_touch().borrow());
    }
    house.agree(&[1, 2, 3]).await;
    assert!(house.stores[&2].metrics().forwarded >= 1);
    let here = house.stores[&2].propose_here(one(service(9, 50))).await;
    assert!(matches!(here, Err(ProposeError::NotLeader { leader: Some(1) })), "{here:?}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_manager_alone_has_no_timers() {
    let house = House::of(1, 1).await;
    // The library's clock finds out that it is switched off.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let start = Instant::now();
    house.stores[&1].propose(one(cluster(1))).await.unwrap();
    // Paused time moves only when a timer is all there is to wait for.
    assert_eq!(Instant::now(), start);
    assert!(*house.stores[&1].in_touch().borrow());
    house.stores[&1].read_barrier().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_killed_leader_is_replaced_and_comes_back() {
    let mut house = House::of(2, 3).await;
    make(&house.stores[&1], 1).await.unwrap();
    house.crash(1, false);
    let start = Instant::now();
    make(&house.stores[&2], 2).await.unwrap();
    let took = start.elapsed();
    assert!(took < Duration::from_millis(900), "{took:?}");
    let leader = house.leader().await;
    assert_ne!(leader, 1);
    house.open(1).await;
    house.agree(&[1, 2]).await;
    assert_eq!(*house.stores[&1].leader_number().borrow(), Some(leader));
}

/// Who are the members, which certificates hold, what is to run: it has to know that alone.
#[tokio::test(start_paused = true)]
async fn a_manager_that_starts_alone_knows_what_was_committed() {
    for graceful in [false, true] {
        let mut house = House::of(6, 3).await;
        for number in 0..20 {
            make(&house.stores[&2], number).await.unwrap();
        }
        house.agree(&[1, 2, 3]).await;
        for number in 1..=3 {
            if graceful {
                house.stores[&number].shutdown().await;
            }
            house.crash(number, false);
        }
        house.open(2).await;
        let (store, expected) = (&house.stores[&2], if graceful { 20 } else { 19 });
        assert!(!*store.leader().borrow());
        assert!(has_all(store, &(0..expected).collect::<Vec<_>>()), "graceful: {graceful}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_graceful_stop_hands_over_at_once() {
    let mut house = House::of(3, 3).await;
    let stopping = house.stores.remove(&1).unwrap();
    let start = Instant::now();
    let (stopped, made) = futures::join!(stopping.shutdown(), make(&house.stores[&2], 7));
    made.unwrap();
    let (took, ()) = (start.elapsed(), stopped);
    assert!(took < Duration::from_millis(100), "{took:?}");
    assert_ne!(house.leader().await, 1);
    let gone = make(&stopping, 8).await;
    assert!(matches!(gone, Err(ProposeError::Stopped { .. })), "{gone:?}");
}

#[tokio::test(start_paused = true)]
async fn leadership_goes_where_it_is_sent() {
    let house = House::of(4, 3).await;
    assert_eq!(house.stores[&1].hand_over(Some(3)).await, Ok(3));
    until("3 leads", || *house.stores[&3].leader().borrow()).await;
    make(&house.stores[&1], 1).await.unwrap();
    let other = house.stores[&1].hand_over(None).await;
    assert_eq!(other, Err(MembershipError::NotLeader { leader: Some(3) }));
    let nobody = house.stores[&3].hand_over(Some(9)).await;
    assert_eq!(nobody, Err(MembershipError::NotMember { number: 9 }));
    let alone = House::of(5, 1).await;
    assert_eq!(alone.stores[&1].hand_over(None).await, Err(MembershipError::NobodyElse));
}

#[tokio::test(start_paused = true)]
async fn reads_are_current_after_a_barrier() {
    let house = House::of(6, 3).await;
    for number in 0..20 {
        house.stores[&1].propose(one(service(number, 50))).await.unwrap();
        let reader = &house.stores[&(2 + number % 2)];
        reader.read_barrier().await.unwrap();
        assert!(has_all(reader, &[number]));
    }
    house.net.cut_off(3, &[1, 2]);
    let start = Instant::now();
    assert_eq!(house.stores[&3].read_barrier().await, Err(ProposeError::NoQuorum));
    assert!(start.elapsed() <= Duration::from_secs(4));
}

#[tokio::test(start_paused = true)]
async fn a_learner_far_behind_gets_a_snapshot() {
    let mut house = House::empty(7);
    house.snapshot_log_bytes = 20_000;
    house.create(1).await;
    for number in 0..200 {
        house.stores[&1].propose(one(service(number, 700))).await.unwrap();
    }
    until("the log was cut", || house.stores[&1].metrics().snapshot_index > 50).await;
    house.join(2).await;
    house.admit(2).await;
    house.agree(&(0..200).collect::<Vec<_>>()).await;
    assert!(house.stores[&2].metrics().snapshots_received >= 1);
    assert!(house.stores[&1].metrics().snapshots_sent >= 1);
    assert!(house.stores[&2].events_after(0).is_err());
    // What it received is its own: it opens it with its own keys.
    house.stores.remove(&2).unwrap().shutdown().await;
    house.crash(2, true);
    house.open(2).await;
    make(&house.stores[&2], 999).await.unwrap();
    house.agree(&[0, 199, 999]).await;
    let left = house.disk(2).list().unwrap();
    assert!(left.iter().all(|name| !name.ends_with(".tmp")), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn a_joiner_that_was_never_asked_opens_again() {
    let mut house = House::of(8, 1).await;
    house.join(2).await;
    assert!(!house.stores[&2].status().member);
    house.stores[&2].shutdown().await;
    house.crash(2, true);
    house.open(2).await;
    assert!(!*house.stores[&2].in_touch().borrow());
    house.admit(2).await;
    make(&house.stores[&2], 1).await.unwrap();
    assert!(house.stores[&2].status().member);
    let wrong = Options { node_number: 3, ..house.options(2) };
    let wrong = Store::open(wrong).await.err().unwrap().to_string();
    assert!(wrong.contains("in use"), "{wrong}");
    house.crash(2, false);
    let wrong = Options { node_number: 3, ..house.options(2) };
    let wrong = Store::open(wrong).await.err().unwrap().to_string();
    assert!(wrong.contains("belongs to node 2, not to node 3"), "{wrong}");
}

fn manager(number: u64) -> Mutation {
    Mutation::CreateNode(ModelNode { manager: true, ..node(number) })
}

#[tokio::test(start_paused = true)]
async fn a_removed_manager_is_refused_and_learns_it() {
    let house = House::of(9, 3).await;
    let settings = Cluster::new(ClusterId::from_bytes([1; 10]));
    let mutations = vec![Mutation::SetCluster(settings), manager(1), manager(2), manager(3)];
    let first = Transaction { mutations, ..Transaction::default() };
    house.stores[&1].propose(first).await.unwrap();
    house.agree(&[]).await;
    // Cut off while it happens: it does not hear of it.
    house.net.cut_off(3, &[1, 2]);
    house.stores[&1].remove(3).await.unwrap();
    assert_eq!(house.stores[&1].remove(3).await, Ok(()));
    let demote = Mutation::SetRole {
        id: warren_model::id::NodeId::from_bytes(id(3)),
        manager: false,
        worker: true,
    };
    house.stores[&1].propose(one(demote)).await.unwrap();
    house.net.heal();
    let term = house.stores[&1].status().term;
    house.stores[&3].removed().wait_for(|removed| *removed).await.unwrap();
    assert!(house.stores[&3].status().removed);
    assert!(
        house.stores[&1].metrics().refused_calls + house.stores[&2].metrics().refused_calls > 0
    );
    make(&house.stores[&2], 5).await.unwrap();
    assert_eq!(house.stores[&1].status().term, term, "it disturbed nobody");
    assert!(!has_all(&house.stores[&3], &[5]));
    let refused = make(&house.stores[&3], 6).await;
    assert_eq!(refused, Err(ProposeError::NoQuorum));
}

#[tokio::test(start_paused = true)]
async fn a_leader_may_remove_itself() {
    let house = House::of(10, 3).await;
    house.stores[&1].remove(1).await.unwrap();
    let leader = house.leader_but(1).await;
    assert_eq!(house.stores[&leader].status().voters.len(), 2);
    make(&house.stores[&leader], 1).await.unwrap();
    until("it knows", || !house.stores[&1].status().member).await;
}

#[tokio::test(start_paused = true)]
async fn changes_of_members_say_what_is_wrong() {
    let house = House::of(11, 2).await;
    let leader = &house.stores[&1];
    assert_eq!(
        leader.set_voters(BTreeSet::new()).await,
        Err(MembershipError::Voters { voters: 0 })
    );
    assert_eq!(
        leader.set_voters(BTreeSet::from([1, 2, 7])).await,
        Err(MembershipError::NotMember { number: 7 })
    );
    let other = house.stores[&2].add_learner(4, "m4").await;
    assert_eq!(other, Err(MembershipError::NotLeader { leader: Some(1) }));
    leader.set_voters(BTreeSet::from([1])).await.unwrap();
    assert!(leader.status().learners.contains_key(&2));
    leader.add_learner(2, "elsewhere").await.unwrap();
    assert_eq!(leader.status().learners[&2], "elsewhere");
}

#[tokio::test(start_paused = true)]
async fn beats_reach_the_leader() {
    let house = House::of(12, 3).await;
    let mut heard = house.stores[&1].beats().unwrap();
    assert!(house.stores[&1].beats().is_none());
    house.stores[&2].tell_leader(Bytes::from_static(b"alive")).await.unwrap();
    let beats = heard.recv().await.unwrap();
    assert_eq!((beats.from, beats.payload), (2, Bytes::from_static(b"alive")));
    assert!(house.stores[&1].tell_leader(Bytes::new()).await.is_err());
}

/// Tokio's own choices, such as whom a watch wakes first, can be seeded with this flag alone.
#[cfg(tokio_unstable)]
#[test]
fn the_same_seed_gives_the_same_history() {
    let history = async |seed| {
        let begun = Instant::now();
        let mut house = House::of(seed, 3).await;
        for number in 0..20 {
            make(&house.stores[&(1 + number % 3)], number).await.unwrap();
        }
        house.crash(1, true);
        make(&house.stores[&3], 100).await.unwrap();
        let leader = house.leader().await;
        let status = house.stores[&leader].status();
        (leader, status.term, status.last, house.net.calls(Call::Append), begun.elapsed())
    };
    let run = |seed| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .rng_seed(tokio::runtime::RngSeed::from_bytes(&u64::to_le_bytes(seed)))
            .build()
            .unwrap();
        runtime.block_on(history(seed))
    };
    assert_eq!(run(13), run(13));
    assert_ne!(run(13), run(14));
}

#[tokio::test(start_paused = true)]
async fn a_write_takes_one_round_trip() {
    let house = House::of(14, 3).await;
    for number in 0..30 {
        let start = Instant::now();
        make(&house.stores[&1], number).await.unwrap();
        assert!(start.elapsed() <= Duration::from_millis(8), "{:?}", start.elapsed());
    }
}
