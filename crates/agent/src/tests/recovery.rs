//! The agent dies, managers go away, the power fails: what runs goes on.

use warren_model::service::PublishMode;
use warren_model::task::{Desired, TaskState};

use super::{Bench, Wish, patiently, port, task_id};

const RUN: Desired = Desired::Running;

fn first(n: u8) -> String {
    format!("{}.1", task_id(n))
}

#[tokio::test(start_paused = true)]
async fn a_new_agent_adopts_what_runs() {
    let mut bench = Bench::new().await;
    let mut session = bench.session().await;
    let wish = Wish::new().task(1, RUN).ports(&[port(8080, PublishMode::Ingress)]);
    session.send(wish.complete()).await;
    let running = session.until(task_id(1), TaskState::Running, 1).await;
    let table = bench.network.table().borrow().clone();

    bench.kill();
    // Whoever binds the port now finds it taken: by our own shim.
    bench.network.take_port(8080, Some("warren-shim (pid 5)"));
    let mut changes = bench.network.table();
    changes.mark_unchanged();
    bench.start().await;
    let mut session = bench.session().await;
    assert!(bench.network.attached().contains_key(&task_id(1).to_string()));
    // A second replica shares the port that the first one's shim kept.
    let wish = wish.known(1, &running).task(2, RUN);
    session.send(wish.complete()).await;
    let reports = session.report().await;
    assert_eq!(reports.len(), 1, "of the adopted one nothing is new: {reports:?}");
    assert_eq!((reports[0].0, reports[0].1.state), (task_id(2), TaskState::Running));
    assert_eq!(bench.runtime.started(), [first(1), first(2)]);
    let now = bench.network.table().borrow().clone();
    assert_eq!(now.published[0].backends.len(), 2);
    assert_eq!(table.published[0].backends[0], now.published[0].backends[0]);
}

#[tokio::test(start_paused = true)]
async fn the_table_never_loses_an_adopted_backend() {
    let mut bench = Bench::new().await;
    let mut session = bench.session().await;
    let wish = Wish::new().task(1, RUN).ports(&[port(8080, PublishMode::Ingress)]);
    session.send(wish.complete()).await;
    let running = session.until(task_id(1), TaskState::Running, 1).await;
    bench.kill();
    bench.start().await;
    let session = bench.session().await;
    let mut table = bench.network.table();
    table.mark_unchanged();
    session.send(wish.known(1, &running).complete()).await;
    patiently(table.changed()).await.unwrap();
    let first = table.borrow_and_update().clone();
    assert_eq!(first.published[0].backends.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_exit_while_away_is_told_with_its_code() {
    let mut bench = Bench::new().await;
    let mut session = bench.session().await;
    let wish = Wish::new().task(1, RUN).task(2, RUN);
    session.send(wish.complete()).await;
    let one = session.until(task_id(1), TaskState::Running, 1).await;
    bench.both_run().await;
    bench.kill();
    bench.runtime.end(&first(1), 3);
    bench.start().await;
    let mut session = bench.session().await;
    assert_eq!(bench.runtime.started().len(), 2, "nothing is started before managers say so");
    session.send(wish.known(1, &one).complete()).await;
    let status = session.until(task_id(1), TaskState::Running, 2).await;
    assert_eq!(status.exit.unwrap().code, 3);
}

#[tokio::test(start_paused = true)]
async fn unknown_containers_go_with_the_first_complete_set() {
    let mut bench = Bench::new().await;
    let mut session = bench.session().await;
    session.send(Wish::new().task(1, RUN).task(2, RUN).complete()).await;
    session.until(task_id(1), TaskState::Running, 1).await;
    bench.both_run().await;
    bench.runtime.plant("stranger", &first(1)).await;
    bench.kill();
    bench.start().await;
    let mut session = bench.session().await;
    assert_eq!(bench.runtime.running().len(), 3);
    session.send(Wish::new().task(1, RUN).task(3, RUN).complete()).await;
    session.until(task_id(3), TaskState::Running, 1).await;
    patiently(async {
        while bench.runtime.known().len() > 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(bench.runtime.running(), [first(1), first(3)]);
}

#[tokio::test(start_paused = true)]
async fn after_a_power_failure_tasks_begin_a_new_attempt() {
    let mut bench = Bench::new().await;
    let mut session = bench.session().await;
    let wish = Wish::new().task(1, RUN);
    session.send(wish.complete()).await;
    let running = session.until(task_id(1), TaskState::Running, 1).await;
    bench.kill();
    bench.runtime.power_off();
    bench.start().await;
    let mut session = bench.session().await;
    session.send(wish.known(1, &running).complete()).await;
    session.until(task_id(1), TaskState::Running, 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_session_is_resumed_and_nothing_is_lost() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    let wish = Wish::new().task(1, RUN);
    session.send(wish.complete()).await;
    session.until(task_id(1), TaskState::Running, 1).await;
    drop(session);
    // Restarts in place go on without a manager.
    bench.runtime.end(&first(1), 1);
    let mut session = bench.session().await;
    assert_eq!(session.hello.assigned_revision, 1);
    session.until(task_id(1), TaskState::Running, 2).await;
    let mut more = wish.task(2, RUN);
    more.revision = 2;
    session.send(more.next(1)).await;
    session.until(task_id(2), TaskState::Running, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_gap_asks_for_everything() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    session.send(Wish::new().task(1, RUN).complete()).await;
    session.until(task_id(1), TaskState::Running, 1).await;
    let mut wish = Wish::new().task(1, RUN).task(2, RUN);
    wish.revision = 9;
    session.send(wish.next(7)).await;
    session.ended().await;
    let mut session = bench.session().await;
    assert_eq!(session.hello.assigned_revision, 0);
    session.send(wish.complete()).await;
    session.until(task_id(2), TaskState::Running, 1).await;
    assert_eq!(bench.runtime.started(), [first(1), first(2)]);
}

#[tokio::test(start_paused = true)]
async fn a_manager_that_is_behind_is_left() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    let mut wish = Wish::new().task(1, RUN);
    wish.revision = 5;
    session.send(wish.complete()).await;
    session.until(task_id(1), TaskState::Running, 1).await;
    let mut older = Wish::new();
    older.revision = 4;
    session.send(older.complete()).await;
    session.ended().await;
    assert_eq!(bench.runtime.running(), [first(1)]);
}

#[tokio::test(start_paused = true)]
async fn stopping_leaves_containers_or_takes_them() {
    let mut bench = Bench::new().await;
    let mut session = bench.session().await;
    let wish = Wish::new().task(1, RUN);
    session.send(wish.complete()).await;
    let running = session.until(task_id(1), TaskState::Running, 1).await;
    bench.agent.take().unwrap().stop(false).await;
    assert_eq!(bench.runtime.running(), [first(1)]);
    bench.start().await;
    let mut session = bench.session().await;
    let wish = wish.known(1, &running).task(2, RUN);
    session.send(wish.complete()).await;
    session.until(task_id(2), TaskState::Running, 1).await;
    bench.agent.take().unwrap().stop(true).await;
    assert!(bench.runtime.known().is_empty());
    assert!(bench.network.attached().is_empty());
    bench.start().await;
    let mut session = bench.session().await;
    session.send(wish.complete()).await;
    session.until(task_id(1), TaskState::Running, 2).await;
}
