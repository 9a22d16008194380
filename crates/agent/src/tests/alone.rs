//! Cut off from all managers: what goes on, what stops, what a reboot brings
//! back, and that nothing is restarted for it.

use warren_model::task::{Desired, TaskState};

use super::manager::Mood;
use super::{Bench, Wish, patiently, task_id};

const RUN: Desired = Desired::Running;

fn attempt(task: u8, attempt: u32) -> String {
    format!("{}.{attempt}", task_id(task))
}

#[tokio::test(start_paused = true)]
async fn a_reboot_without_managers_starts_everything_from_disk() {
    let mut bench = Bench::new().await;
    let mut session = bench.session().await;
    let wish = Wish::new().at(1, 1).task(1, RUN).task(2, RUN);
    session.send(wish.complete()).await;
    session.until(task_id(1), TaskState::Running, 1).await;
    bench.both_run().await;
    bench.clock_at(2_000).await;
    bench.kill();
    bench.runtime.power_off();
    bench.manager.feels(Mood::Unreachable);
    drop(session);

    let before = bench.mono();
    bench.start().await;
    patiently(bench.runs(&[attempt(1, 2), attempt(2, 2)])).await;
    assert!(bench.mono() - before <= 1_002, "{} ms", bench.mono() - before);
    let starts = bench.runtime.started().len();

    // A crash is restarted by policy all the same.
    bench.runtime.end(&attempt(1, 2), 1);
    patiently(bench.runs(&[attempt(1, 3), attempt(2, 2)])).await;

    // A manager that comes back, remembering less, restarts nothing.
    bench.manager.feels(Mood::Well);
    let mut session = bench.session().await;
    assert_eq!((session.hello.assigned_revision, session.hello.epoch), (1, 1));
    session.send(wish.complete()).await;
    let status = session.until(task_id(1), TaskState::Running, 3).await;
    assert_eq!(status.attempt, 3);
    bench.clock_at(bench.mono() + 60_000).await;
    assert_eq!(bench.runtime.running(), [attempt(1, 3), attempt(2, 2)]);
    assert_eq!(bench.runtime.started().len(), starts + 1);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_restarts_alone_restarts_no_container() {
    let mut bench = Bench::new().await;
    let mut session = bench.session().await;
    let wish = Wish::new().at(1, 1).task(1, RUN).task(2, RUN);
    session.send(wish.complete()).await;
    session.until(task_id(1), TaskState::Running, 1).await;
    bench.both_run().await;
    bench.manager.feels(Mood::Gone);
    drop(session);
    // An orderly stop keeps what was not written yet.
    bench.agent.take().unwrap().stop(false).await;
    bench.start().await;
    bench.clock_at(bench.mono() + 60_000).await;
    bench.runtime.end(&attempt(2, 1), 1);
    patiently(bench.runs(&[attempt(1, 1), attempt(2, 2)])).await;
    assert_eq!(bench.runtime.started().len(), 3);
    bench.manager.feels(Mood::Well);
    let mut session = bench.session().await;
    session.send(wish.complete()).await;
    session.until(task_id(2), TaskState::Running, 2).await;
    assert_eq!(bench.runtime.started().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_cache_is_set_aside_and_managers_are_waited_for() {
    let mut bench = Bench::new().await;
    let mut session = bench.session().await;
    let wish = Wish::new().at(1, 1).task(1, RUN);
    session.send(wish.complete()).await;
    session.until(task_id(1), TaskState::Running, 1).await;
    bench.clock_at(2_000).await;
    bench.agent.take().unwrap().stop(false).await;
    let mut bytes = std::fs::read(bench.kept()).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(bench.kept(), bytes).unwrap();
    bench.runtime.power_off();
    bench.manager.feels(Mood::Gone);
    drop(session);
    bench.start().await;
    bench.clock_at(bench.mono() + 60_000).await;
    assert!(bench.runtime.running().is_empty());
    assert!(bench.kept().with_extension("damaged").exists());
    bench.manager.feels(Mood::Well);
    let mut session = bench.session().await;
    assert_eq!(session.hello.assigned_revision, 0);
    session.send(wish.complete()).await;
    session.until(task_id(1), TaskState::Running, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_ends_without_a_manager_and_begins_anew_with_one() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    let wish = Wish::new().at(1, 1).task(1, RUN).stop_after(30_000);
    session.send(wish.complete()).await;
    session.until(task_id(1), TaskState::Running, 1).await;
    bench.clock_at(100_100).await;
    assert_eq!(bench.runtime.running(), [attempt(1, 1)], "beats renew it");
    bench.manager.feels(Mood::Frozen);
    bench.clock_at(129_900).await;
    assert_eq!(bench.runtime.running(), [attempt(1, 1)]);
    bench.clock_at(130_100).await;
    assert!(bench.runtime.running().is_empty(), "the last beat answered was of 100,000");

    bench.clock_at(200_000).await;
    assert_eq!(bench.runtime.started().len(), 1);
    bench.manager.feels(Mood::Well);
    let mut session = bench.session().await;
    let before = bench.mono();
    session.send(wish.complete()).await;
    let status = session.until(task_id(1), TaskState::Running, 2).await;
    assert_eq!((status.attempt, status.error), (2, None));
    assert_eq!(bench.mono(), before);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_restarts_alone_gains_no_time() {
    for orderly in [true, false] {
        let mut bench = Bench::new().await;
        let mut session = bench.session().await;
        let wish = Wish::new().at(1, 1).task(1, RUN).stop_after(30_000);
        session.send(wish.complete()).await;
        session.until(task_id(1), TaskState::Running, 1).await;
        bench.clock_at(100_100).await;
        bench.manager.feels(Mood::Frozen);
        for at in [110_000, 120_000, 129_000] {
            bench.clock_at(at).await;
            if orderly {
                bench.agent.take().unwrap().stop(false).await;
            } else {
                bench.kill();
            }
            bench.start().await;
        }
        bench.clock_at(129_900).await;
        assert_eq!(bench.runtime.running(), [attempt(1, 1)], "orderly {orderly}");
        bench.clock_at(130_100).await;
        assert!(bench.runtime.running().is_empty(), "orderly {orderly}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_lost_is_told_of() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    let wish = Wish::new().at(1, 1).task(1, RUN).stop_after(30_000);
    session.send(wish.complete()).await;
    session.until(task_id(1), TaskState::Running, 1).await;
    bench.manager.feels(Mood::Frozen);
    bench.clock_at(40_000).await;
    bench.manager.feels(Mood::Well);
    drop(session);
    let mut session = bench.session().await;
    let waits = |status: &warren_model::task::TaskStatus| status.error.is_some();
    let status = session.until_status(task_id(1), waits).await;
    assert_eq!(status.state, TaskState::Stopping);
    assert_eq!(status.error.as_deref(), Some("stopped: no manager for 30s"));
}

#[tokio::test(start_paused = true)]
async fn a_restored_manager_stops_nothing_it_does_not_know() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    session.send(Wish::new().at(1, 50).task(1, RUN).task(2, RUN).complete()).await;
    session.until(task_id(1), TaskState::Running, 1).await;
    bench.both_run().await;
    drop(session);
    let session = bench.session().await;
    session.send(Wish::new().at(2, 20).task(1, RUN).complete()).await;
    bench.clock_at(bench.mono() + 9 * 60_000).await;
    assert_eq!(bench.runtime.running(), [attempt(1, 1), attempt(2, 1)]);
    bench.clock_at(bench.mono() + 2 * 60_000).await;
    assert_eq!(bench.runtime.running(), [attempt(1, 1)]);
    drop(session);
}

#[tokio::test(start_paused = true)]
async fn what_is_known_of_the_network_is_there_at_once_without_managers() {
    let peer = |number| warren_proto::v1::NetUpdate {
        complete: true,
        peers: vec![warren_proto::v1::NetPeer {
            node: vec![9; 10],
            number,
            ..warren_proto::v1::NetPeer::default()
        }],
        ..warren_proto::v1::NetUpdate::default()
    };
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let wish = Wish::new().at(1, 1).task(1, RUN);
    let mut held = bench.net_table.held();
    let first = warren_proto::v1::Assignment { network: Some(peer(7)), ..wish.complete() };
    session.send(first).await;
    patiently(held.changed()).await.unwrap();
    let numbers = |table: &warren_model::NodeTable| -> Vec<u32> {
        table.peers.values().map(|peer| peer.number).collect()
    };
    assert_eq!(numbers(&held.borrow_and_update()), [7]);
    bench.clock_at(6_000).await;
    bench.kill();
    bench.manager.feels(Mood::Unreachable);
    drop(session);

    // Another process, another data plane, no manager.
    bench.net_table = std::sync::Arc::default();
    let mut held = bench.net_table.held();
    let before = bench.mono();
    bench.start().await;
    patiently(held.changed()).await.unwrap();
    assert_eq!(numbers(&held.borrow()), [7]);
    assert!(bench.mono() - before < 100, "it waits for nobody");
}
