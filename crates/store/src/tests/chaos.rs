//! Several managers in trouble: whatever happens, nothing acknowledged is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;
use warren_base::rng::{Rng, SeededRng};

use super::super::*;
use super::net::{CALM, House, STORM, has_all, make, until};

/// Services that were acknowledged, and those that may have been made.
#[derive(Default)]
struct Written {
    certain: Vec<u64>,
    tried: u64,
}

/// A wave of writes, each at some manager that is up.
async fn wave(house: &House, rng: &SeededRng, written: &mut Written) {
    let numbers: Vec<u64> = house.stores.keys().copied().collect();
    if numbers.is_empty() {
        return;
    }
    let writes = (0..4).map(|_| {
        written.tried += 1;
        let at = numbers[usize::try_from(rng.below(numbers.len() as u64)).unwrap()];
        let (store, number) = (house.stores[&at].clone(), written.tried);
        async move { (number, make(&store, number).await, store) }
    });
    for (number, made, store) in futures::future::join_all(writes).await {
        match made {
            Ok(_) => {
                assert!(has_all(&store, &[number]), "{number} is not seen where it was made");
                written.certain.push(number);
            }
            Err(ProposeError::NoQuorum | ProposeError::Unknown | ProposeError::Stopped { .. }) => {}
            Err(error) => panic!("{number}: {error}"),
        }
    }
}

/// Something goes wrong, or is mended.
async fn mishap(house: &mut House, rng: &SeededRng, managers: u64) {
    let victim = 1 + rng.below(managers);
    let others: Vec<u64> = (1..=managers).filter(|number| *number != victim).collect();
    let other = others[usize::try_from(rng.below(others.len() as u64)).unwrap()];
    let up = house.stores.contains_key(&victim);
    match rng.below(9) {
        0 | 1 if up => house.crash(victim, rng.below(2) == 0),
        0..=2 if !up => house.open(victim).await,
        3 => house.net.cut_off(victim, &others),
        4 => house.net.cut(victim, other),
        5 => house.net.heal(),
        6 => house.net.set_weather(STORM),
        7 => house.net.set_weather(CALM),
        8 => {
            house.net.freeze(victim);
            tokio::time::sleep(Duration::from_millis(rng.below(3000))).await;
            house.net.thaw(victim);
        }
        _ => {}
    }
}

/// What any manager applied at a place in the log, all apply there.
fn same_log(house: &House, applied: &mut BTreeMap<u64, log::LogId>) {
    for (number, store) in &house.stores {
        let upto = store.status().applied;
        let ids = (0..=upto).filter_map(|index| store.inner.log.id(index));
        for id in ids {
            let known = *applied.entry(id.index).or_insert(id);
            assert_eq!(known, id, "manager {number} differs");
        }
    }
}

async fn mend(house: &mut House, managers: u64) {
    house.net.heal();
    house.net.set_weather(CALM);
    for number in 1..=managers {
        if !house.stores.contains_key(&number) {
            house.open(number).await;
        }
    }
}

/// These, or those from `WARREN_SEED` on, as many as `WARREN_SEEDS` says.
fn seeds(usual: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("WARREN_SEED") {
        Some(first) => first..first + number("WARREN_SEEDS").unwrap_or(1),
        None => usual,
    }
}

async fn trouble(seed: u64, managers: u64, rounds: u64) {
    println!("WARREN_SEED={seed}");
    let mut house = House::empty(seed);
    // Snapshots and purges happen on the way.
    house.snapshot_log_bytes = 8_000;
    house.create(1).await;
    for number in 2..=managers {
        house.join(number).await;
        house.admit(number).await;
    }
    let rng = SeededRng::new(seed.wrapping_mul(77));
    let mut written = Written::default();
    let mut applied = BTreeMap::new();
    for _ in 0..rounds {
        mishap(&mut house, &rng, managers).await;
        wave(&house, &rng, &mut written).await;
        same_log(&house, &mut applied);
    }
    mend(&mut house, managers).await;
    house.agree(&written.certain).await;
    // And it goes on.
    written.tried += 1;
    let last = written.tried;
    make(&house.stores[&managers], last).await.unwrap();
    house.agree(&[last]).await;
    assert!(
        written.certain.len() >= usize::try_from(rounds).unwrap() / 4,
        "hardly anything worked"
    );
}

#[tokio::test(start_paused = true)]
async fn nothing_acknowledged_is_lost_by_three() {
    for seed in seeds(0..1) {
        trouble(seed, 3, 15).await;
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_acknowledged_is_lost_by_five() {
    for seed in seeds(100..101) {
        trouble(seed, 5, 10).await;
    }
}

#[tokio::test(start_paused = true)]
async fn members_change_in_a_storm() {
    for seed in seeds(200..201) {
        let mut house = House::of(seed, 3).await;
        let rng = SeededRng::new(seed);
        let mut written = Written::default();
        house.net.set_weather(STORM);
        let mut voters: BTreeSet<u64> = [1, 2, 3].into();
        for number in 4..6 {
            house.join(number).await;
            patiently(&house, |leader| async move {
                leader.add_learner(number, &format!("m{number}")).await
            })
            .await;
            wave(&house, &rng, &mut written).await;
            voters.insert(number);
            let gone = *voters.first().unwrap();
            voters.remove(&gone);
            let now = voters.clone();
            patiently(&house, |leader| {
                let now = now.clone();
                async move { leader.set_voters(now).await }
            })
            .await;
            patiently(&house, |leader| async move { leader.remove(gone).await }).await;
            house.burn(gone);
            wave(&house, &rng, &mut written).await;
        }
        house.net.set_weather(CALM);
        house.agree(&written.certain).await;
        let leader = house.leader().await;
        let status = house.stores[&leader].status();
        assert_eq!(status.voters.keys().copied().collect::<Vec<_>>(), [3, 4, 5]);
    }
}

/// Does it at whoever leads, until it is done.
async fn patiently<F: Future<Output = Result<(), MembershipError>>>(
    house: &House,
    change: impl Fn(Store) -> F,
) {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let leader = house.leader().await;
        match change(house.stores[&leader].clone()).await {
            Ok(()) => return,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_majority_writes_end_in_time_and_nobody_leads() {
    let house = House::of(20, 3).await;
    make(&house.stores[&1], 1).await.unwrap();
    house.net.cut_off(1, &[2, 3]);
    let start = Instant::now();
    let alone = make(&house.stores[&1], 2).await;
    assert!(matches!(alone, Err(ProposeError::NoQuorum | ProposeError::Unknown)), "{alone:?}");
    assert!(start.elapsed() <= Duration::from_millis(4100), "{:?}", start.elapsed());
    assert!(!*house.stores[&1].leader().borrow());
    assert!(!*house.stores[&1].in_touch().borrow());
    assert_eq!(*house.stores[&1].leader_number().borrow(), None);
    assert!(house.stores[&1].status().last_contact_ms.unwrap() > 1000);
    // Reads go on.
    assert!(has_all(&house.stores[&1], &[1]));
    // The rest of them go on as well.
    make(&house.stores[&2], 3).await.unwrap();
    house.net.heal();
    house.agree(&[1, 3]).await;
    make(&house.stores[&1], 4).await.unwrap();
    assert!(*house.stores[&1].in_touch().borrow());
}

#[tokio::test(start_paused = true)]
async fn a_leader_says_within_a_second_that_it_is_alone() {
    let house = House::of(21, 3).await;
    let start = Instant::now();
    house.net.cut_off(1, &[2, 3]);
    house.stores[&1].leader().wait_for(|leads| !*leads).await.unwrap();
    assert!(start.elapsed() <= Duration::from_millis(1200), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn one_way_cuts_raise_no_terms() {
    let house = House::of(22, 3).await;
    let term = house.stores[&1].status().term;
    // It hears nobody, everybody hears it.
    house.net.cut(1, 3);
    house.net.cut(2, 3);
    tokio::time::sleep(Duration::from_secs(5)).await;
    make(&house.stores[&2], 1).await.unwrap();
    house.net.heal();
    house.agree(&[1]).await;
    // It is heard by nobody.
    house.net.cut(3, 1);
    house.net.cut(3, 2);
    tokio::time::sleep(Duration::from_secs(5)).await;
    make(&house.stores[&1], 2).await.unwrap();
    house.net.heal();
    house.agree(&[1, 2]).await;
    let terms: Vec<u64> = house.stores.values().map(|store| store.status().term).collect();
    assert_eq!(terms, [term; 3]);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_hears_nobody_is_replaced() {
    let house = House::of(23, 3).await;
    house.net.cut(2, 1);
    house.net.cut(3, 1);
    let start = Instant::now();
    let leader = house.leader_but(1).await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    make(&house.stores[&leader], 1).await.unwrap();
    house.net.heal();
    house.agree(&[1]).await;
}

#[tokio::test(start_paused = true)]
async fn a_stalled_leader_is_replaced_and_follows() {
    let house = House::of(24, 3).await;
    make(&house.stores[&1], 1).await.unwrap();
    for (round, stall_s) in [1, 5, 30].into_iter().enumerate() {
        let leader = house.leader().await;
        house.net.freeze(leader);
        let number = 10 + round as u64;
        let other = house.stores.keys().copied().find(|other| *other != leader).unwrap();
        make(&house.stores[&other], number).await.unwrap();
        tokio::time::sleep(Duration::from_secs(stall_s)).await;
        house.net.thaw(leader);
        house.agree(&[1, number]).await;
        let leads: BTreeMap<u64, bool> = house
            .stores
            .iter()
            .map(|(number, store)| (*number, *store.leader().borrow()))
            .collect();
        assert_eq!(leads.values().filter(|leads| **leads).count(), 1, "{leads:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_is_cut_off_leaves_nothing_and_comes_again() {
    let mut house = House::empty(25);
    house.snapshot_log_bytes = 20_000;
    house.create(1).await;
    let large = |number| super::one(super::service(number, 60_000));
    for number in 0..60 {
        house.stores[&1].propose(large(number)).await.unwrap();
    }
    house.join(2).await;
    house.net.set_weather(STORM);
    let leader = house.stores[&1].clone();
    leader.add_learner(2, "m2").await.unwrap();
    for round in 0..5 {
        tokio::time::sleep(Duration::from_millis(30 + round * 40)).await;
        house.net.cut_off(1, &[2]);
        tokio::time::sleep(Duration::from_secs(1)).await;
        house.net.heal();
    }
    house.net.set_weather(CALM);
    until("it has it all", || has_all(&house.stores[&2], &[0, 59])).await;
    assert!(house.stores[&2].metrics().snapshots_received >= 1);
}
