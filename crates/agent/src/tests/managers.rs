//! Several managers: which one is used, how fast another is, what is remembered.

use std::sync::atomic::Ordering;

use warren_model::task::{Desired, TaskState};
use warren_proto::v1;

use super::manager::{Manager, Mood, Session};
use super::{Bench, ONE, Wish, at, patiently, task_id};
use crate::{LocalManager, ManagerAddress};

const RUN: Desired = Desired::Running;

/// Which of them has the next session.
async fn first(managers: &[&Manager]) -> (usize, Session) {
    let sessions = managers.iter().map(|manager| Box::pin(manager.session()));
    let (session, which, _) = patiently(futures::future::select_all(sessions)).await;
    (which, session)
}

fn counted(bench: &Bench, which: impl Fn(&crate::Metrics) -> &std::sync::atomic::AtomicU64) -> u64 {
    which(&bench.agent.as_ref().unwrap().metrics()).load(Ordering::Relaxed)
}

#[tokio::test(start_paused = true)]
async fn a_silent_manager_is_left_within_about_a_second() {
    let mut bench = Bench::unstarted();
    let (two, three) = (bench.another("two:1"), bench.another("three:1"));
    bench.start().await;
    let all = [&bench.manager, &two, &three];
    let (which, mut session) = first(&all).await;
    session
        .send(Wish::new().at(1, 1).managers(&[ONE, "two:1", "three:1"]).task(1, RUN).complete())
        .await;
    session.until(task_id(1), TaskState::Running, 1).await;
    bench.clock_at(10_250).await;
    let before = bench.mono();
    all[which].feels(Mood::Frozen);
    let (next, mut session) = first(&all).await;
    assert_ne!(next, which);
    let gap = bench.mono() - before;
    assert!(gap <= 1_000, "{gap} ms without a session");
    assert_eq!((session.hello.assigned_revision, session.hello.epoch), (1, 1));
    let wish = Wish::new().at(1, 2).task(1, RUN).task(2, RUN);
    session.send(wish.complete()).await;
    session.until(task_id(2), TaskState::Running, 1).await;
    assert_eq!(bench.runtime.started().len(), 2, "nothing was restarted");
    assert_eq!(counted(&bench, |m| &m.switches), 1);
    assert_eq!(counted(&bench, |m| &m.sessions_opened), 2);
    assert!(counted(&bench, |m| &m.beats_missed) >= 1);
}

#[tokio::test(start_paused = true)]
async fn an_outage_does_not_make_silence_last_longer_afterwards() {
    let mut bench = Bench::unstarted();
    let two = bench.another("two:1");
    bench.start().await;
    let all = [&bench.manager, &two];
    let (_, session) = first(&all).await;
    all.iter().for_each(|manager| manager.feels(Mood::Unreachable));
    drop(session);
    bench.clock_at(60_000).await;
    all.iter().for_each(|manager| manager.feels(Mood::Well));
    let (which, _session) = first(&all).await;
    bench.clock_at(bench.mono() + 3_250).await;
    let before = bench.mono();
    all[which].feels(Mood::Frozen);
    let (next, _session) = first(&all).await;
    assert_ne!(next, which);
    let gap = bench.mono() - before;
    assert!(gap <= 1_000, "{gap} ms without a session");
}

#[tokio::test(start_paused = true)]
async fn a_manager_that_goes_is_replaced_at_once() {
    let mut bench = Bench::unstarted();
    let two = bench.another("two:1");
    bench.start().await;
    let all = [&bench.manager, &two];
    let (which, session) = first(&all).await;
    bench.clock_at(5_000).await;
    all[which].feels(Mood::Gone);
    drop(session);
    let before = bench.mono();
    let (next, _session) = first(&all).await;
    assert_ne!(next, which);
    assert_eq!(bench.mono(), before, "no pause on the way");
}

#[tokio::test(start_paused = true)]
async fn every_hello_says_how_the_disk_is() {
    let bench = Bench::new().await;
    for _ in 0..2 {
        let session = bench.session().await;
        let about = session.hello.description.clone().unwrap();
        assert_eq!(about.hostname, "here");
        assert!(about.disk_bytes > 0 && about.disk_free_bytes <= about.disk_bytes, "{about:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn bad_managers_are_passed_over() {
    for mood in [Mood::Gone, Mood::Unreachable, Mood::Frozen, Mood::Refuses("no leader")] {
        let mut bench = Bench::unstarted();
        let (two, three) = (bench.another("two:1"), bench.another("three:1"));
        bench.manager.feels(mood);
        three.feels(mood);
        bench.start().await;
        patiently(two.session()).await;
        assert!(bench.mono() <= 3_000, "{mood:?}: {} ms", bench.mono());
    }
}

#[tokio::test(start_paused = true)]
async fn with_nobody_there_it_asks_less_and_less() {
    let mut bench = Bench::unstarted();
    let two = bench.another("two:1");
    bench.manager.feels(Mood::Gone);
    two.feels(Mood::Gone);
    bench.start().await;
    bench.clock_at(60_000).await;
    let tried = bench.manager.tried();
    assert!((15..40).contains(&tried), "{tried} attempts in a minute");
    assert_eq!(two.tried(), tried);
    two.feels(Mood::Well);
    patiently(two.session()).await;
    assert!(bench.mono() <= 65_100);
}

#[tokio::test(start_paused = true)]
async fn sessions_that_end_at_once_do_not_spin() {
    let mut bench = Bench::unstarted();
    let two = bench.another("two:1");
    bench.start().await;
    let all = [&bench.manager, &two];
    let mut sessions = 0;
    while bench.mono() < 10_000 {
        let (_, session) = first(&all).await;
        session.send(Wish::new().complete()).await;
        sessions += 1;
    }
    assert!(sessions < 40, "{sessions} sessions in ten seconds");
}

#[tokio::test(start_paused = true)]
async fn a_manager_that_is_behind_is_exchanged_for_another() {
    let mut bench = Bench::unstarted();
    let two = bench.another("two:1");
    let wish = Wish::new().managers(&[ONE, "two:1"]);
    bench.start().await;
    let all = [&bench.manager, &two];
    let (which, session) = first(&all).await;
    session.send(wish.clone().at(1, 5).task(1, RUN).complete()).await;
    bench.clock_at(2_000).await;
    drop(session);
    let (behind, mut session) = first(&all).await;
    assert_ne!(behind, which);
    session.send(wish.clone().at(1, 4).complete()).await;
    session.ended().await;
    let (next, mut session) = first(&all).await;
    assert_eq!(next, which);
    assert_eq!((session.hello.assigned_revision, session.hello.epoch), (5, 1));
    session.send(wish.at(1, 5).task(1, RUN).task(2, RUN).complete()).await;
    session.until(task_id(2), TaskState::Running, 1).await;
    assert_eq!(bench.runtime.started().len(), 2);
    assert_eq!(counted(&bench, |m| &m.assignments_refused), 1);
    assert_eq!(counted(&bench, |m| &m.assignments_applied), 2);
}

#[tokio::test(start_paused = true)]
async fn the_own_manager_is_preferred_while_it_has_a_leader() {
    let mut bench = Bench::unstarted();
    let own = Manager::default();
    bench.managers.add(ManagerAddress::Local, own.clone());
    bench.local.send_replace(LocalManager::Leaderless);
    bench.start().await;
    let mut far = patiently(bench.manager.session()).await;
    assert_eq!(own.tried(), 0);
    far.send(Wish::new().task(1, RUN).complete()).await;
    far.until(task_id(1), TaskState::Running, 1).await;
    let manager = bench.agent.as_ref().unwrap().manager();
    assert_eq!(*manager.borrow(), Some(at(ONE)));

    bench.local.send_replace(LocalManager::Led);
    let before = bench.mono();
    let near = patiently(own.session()).await;
    assert_eq!(bench.mono() - before, 5_000, "elections come in bursts");
    near.send(Wish::new().task(1, RUN).complete()).await;
    bench.local.send_replace(LocalManager::Leaderless);
    bench.clock_at(bench.mono() + 900).await;
    bench.local.send_replace(LocalManager::Led);
    bench.clock_at(bench.mono() + 9_000).await;
    assert_eq!(own.tried(), 1, "a short election is sat out");

    bench.local.send_replace(LocalManager::Leaderless);
    let before = bench.mono();
    patiently(bench.manager.session()).await;
    assert_eq!(bench.mono() - before, 1_000);
    assert_eq!(bench.runtime.started().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_own_manager_that_is_elected_ends_the_waiting() {
    let mut bench = Bench::unstarted();
    let own = Manager::default();
    bench.managers.add(ManagerAddress::Local, own.clone());
    bench.addresses.clear();
    bench.start().await;
    bench.clock_at(30_000).await;
    let before = bench.mono();
    bench.local.send_replace(LocalManager::Led);
    let _session = patiently(own.session()).await;
    assert_eq!(bench.mono(), before);
    bench.local.send_replace(LocalManager::Absent);
    let mut manager = bench.agent.as_ref().unwrap().manager();
    patiently(manager.wait_for(Option::is_none)).await.unwrap();
    assert_eq!(bench.mono(), before, "it was demoted");
}

#[tokio::test(start_paused = true)]
async fn managers_are_remembered_and_learned() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let wish = Wish::new().at(1, 1).managers(&["two:1"]);
    let membership = v1::Membership {
        number: Some(4),
        manager: true,
        worker: true,
        beat_ms: 200,
        authorities: vec![vec![1, 2]],
        issuer_hash: vec![7; 32],
        certificate_lifetime_ms: 60_000,
        ..wish.membership.clone().unwrap()
    };
    let wish = Wish { membership: Some(membership), ..wish };
    session.send(wish.complete()).await;
    let mut told = bench.agent.as_ref().unwrap().membership();
    let view = patiently(told.wait_for(Option::is_some)).await.unwrap().clone().unwrap();
    assert_eq!((view.epoch, view.number, view.manager, view.worker), (1, Some(4), true, true));
    assert_eq!((view.issuer_hash, view.certificate_lifetime_ms), ([7; 32], 60_000));
    assert_eq!((view.managers, view.authorities), (vec!["two:1".to_owned()], vec![vec![1, 2]]));
    patiently(async {
        while bench.managers.remembered.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let two = bench.another("two:1");
    bench.clock_at(3_000).await;
    drop(session);
    patiently(two.session()).await;
    bench.clock_at(8_000).await;

    // What was kept on disk tells where managers are when nothing else does.
    bench.kill();
    bench.addresses.clear();
    bench.start().await;
    patiently(two.session()).await;
    let kept = bench.agent.as_ref().unwrap().membership().borrow().clone().unwrap();
    assert_eq!(kept.number, Some(4));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_removed_leaves_nothing_and_says_so() {
    let mut bench = Bench::new().await;
    let mut session = bench.session().await;
    session.send(Wish::new().at(1, 1).task(1, RUN).task(2, RUN).complete()).await;
    session.until(task_id(1), TaskState::Running, 1).await;
    bench.both_run().await;
    bench.clock_at(2_000).await;
    assert!(bench.kept().exists());
    bench.manager.feels(Mood::Removed);
    drop(session);
    let mut removed = bench.agent.as_ref().unwrap().removed();
    patiently(removed.wait_for(|removed| *removed)).await.unwrap();
    patiently(async {
        while !bench.runtime.known().is_empty() || bench.kept().exists() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    let tried = bench.manager.tried();
    bench.clock_at(99_000).await;
    assert_eq!(bench.manager.tried(), tried, "nobody is asked again");
    bench.agent.take().unwrap().stop(true).await;
    assert!(!bench.kept().exists());
}
