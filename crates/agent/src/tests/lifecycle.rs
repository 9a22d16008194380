//! From assigned to gone.

use std::collections::BTreeMap;

use warren_model::service::{PublishMode, RestartCondition};
use warren_model::task::{Desired, TaskState, TaskStatus};
use warren_net::Table;

use super::{Bench, Wish, address, patiently, port, task_id};

const RUN: Desired = Desired::Running;

#[tokio::test(start_paused = true)]
async fn starts_and_reports_once() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    assert_eq!(session.hello.assigned_revision, 0);
    session.send(Wish::new().task(1, RUN).complete()).await;
    let status = session.until(task_id(1), TaskState::Running, 1).await;
    assert_eq!(session.reports, 1, "preparing and starting were overtaken");
    assert_eq!((status.attempt, status.pid, status.error), (1, 1, None));
    assert!(status.started.is_some());
    let spec = bench.runtime.spec(&format!("{}.1", task_id(1)));
    assert_eq!(spec.args, ["/bin/run"]);
    assert_eq!(spec.hostname, task_id(1).to_string()[..12]);
    assert_eq!(bench.mono(), 0, "nothing on the way waits for time to pass");
}

#[tokio::test(start_paused = true)]
async fn ready_is_reported_only_once_it_is_reachable() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    session.send(Wish::new().task(3, RUN).complete()).await;
    session.until(task_id(3), TaskState::Running, 1).await;
    bench.network.refuse_tables(Some("no room"));
    let wish = Wish::new().at(0, 2).task(1, RUN).task(2, RUN).task(3, RUN);
    let wish = wish.ports(&[port(8080, PublishMode::Ingress)]);
    session.send(wish.complete()).await;
    let starting = |status: &TaskStatus| status.error.is_some();
    let status = session.until_status(task_id(1), starting).await;
    assert!(!status.is_ready(), "{status:?}");
    assert_eq!(status.error.as_deref(), Some("published ports: no room"));
    bench.network.refuse_tables(None);
    session.until_status(task_id(1), TaskStatus::is_ready).await;
    let mut tables = bench.network.table();
    let first = format!("{}:80", address(1));
    let leads = |table: &Table| table.published[0].backends[0].to_string() == first;
    assert!(leads(&tables.borrow()), "before it is said");
    let all = |table: &Table| table.published[0].backends.len() == 3;
    let table = patiently(async { tables.wait_for(all).await.unwrap().clone() }).await;
    let backends = &table.published[0].backends;
    assert_eq!(table.published[0].port, 8080);
    assert_eq!(backends[0].to_string(), format!("{}:80", address(1)));
}

/// Nothing could be known of what it may reach.
#[tokio::test(start_paused = true)]
async fn nothing_starts_before_the_rules_around_it_hold() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    bench.network.refuse_tables(Some("no room"));
    session.send(Wish::new().task(1, RUN).complete()).await;
    let failed = |status: &TaskStatus| status.error.is_some();
    let status = session.until_status(task_id(1), failed).await;
    let why = "the network's rules do not hold yet: no room";
    assert_eq!((status.state, status.error.as_deref()), (TaskState::Starting, Some(why)));
    assert!(bench.runtime.running().is_empty());
    bench.network.refuse_tables(None);
    session.until(task_id(1), TaskState::Running, 1).await;
}

#[tokio::test(start_paused = true)]
async fn restarts_in_place_at_once_without_a_delay() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    session.send(Wish::new().task(1, RUN).complete()).await;
    session.until(task_id(1), TaskState::Running, 1).await;
    bench.runtime.end(&format!("{}.1", task_id(1)), 137);
    let status = session.until(task_id(1), TaskState::Running, 2).await;
    assert_eq!(status.exit.unwrap().code, 137);
    assert_eq!(bench.runtime.running(), [format!("{}.2", task_id(1))]);
    let labels = bench.runtime.spec(&format!("{}.2", task_id(1))).labels;
    assert_eq!(labels["warren.last-exit"], "137");
    assert_eq!(bench.network.attached().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn backs_off_and_fails_when_attempts_run_out() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    let wish = Wish::new().task(1, RUN).template(|template| {
        template.restart.delay_ms = 1000;
        template.restart.max_attempts = Some(2);
        template.restart.window_ms = 60_000;
    });
    session.send(wish.complete()).await;
    let mut at = vec![];
    for attempt in 1..=3 {
        session.until(task_id(1), TaskState::Running, attempt).await;
        at.push(bench.mono());
        bench.runtime.end(&format!("{}.{attempt}", task_id(1)), 1);
    }
    assert_eq!(at, [0, 1000, 3000]);
    let status = session.until(task_id(1), TaskState::Failed, 3).await;
    assert_eq!(status.error.as_deref(), Some("exit code 1"));
    assert!(bench.runtime.running().is_empty());
    assert!(bench.network.attached().is_empty(), "its address is free again");
}

#[tokio::test(start_paused = true)]
async fn a_job_completes() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    let wish = Wish::new()
        .task(1, RUN)
        .template(|template| template.restart.condition = RestartCondition::OnFailure);
    session.send(wish.complete()).await;
    session.until(task_id(1), TaskState::Running, 1).await;
    bench.runtime.end(&format!("{}.1", task_id(1)), 0);
    let status = session.until(task_id(1), TaskState::Complete, 1).await;
    assert_eq!((status.exit.unwrap().code, status.error), (0, None));
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_costs_few_reports() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    session.send(Wish::new().task(1, RUN).complete()).await;
    // Ends as soon as it runs, for a simulated minute.
    let mut attempt = 0;
    while bench.mono() < 60_000 {
        attempt += 1;
        session.until(task_id(1), TaskState::Running, attempt).await;
        bench.runtime.end(&format!("{}.{attempt}", task_id(1)), 1);
    }
    assert!(bench.runtime.started().len() < 20, "{} starts", bench.runtime.started().len());
    assert!(session.reports < 40, "{} reports", session.reports);
    assert!(bench.runtime.known().len() <= 1);
}

#[tokio::test(start_paused = true)]
async fn shutdown_leaves_the_table_first_and_removal_leaves_nothing() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    let mut wish = Wish::new().task(1, RUN).ports(&[port(8080, PublishMode::Ingress)]);
    session.send(wish.complete()).await;
    session.until(task_id(1), TaskState::Running, 1).await;
    let logs = bench.dir.path().join("logs").join(task_id(1).to_string());
    std::fs::create_dir_all(&logs).unwrap();

    bench.network.refuse_tables(Some("busy"));
    (wish.revision, wish) = (2, wish.clone().task(1, Desired::Shutdown));
    wish.revision = 2;
    session.send(wish.next(1)).await;
    let status = session.until(task_id(1), TaskState::Complete, 1).await;
    assert_eq!(status.exit.unwrap().code, 143);
    bench.network.refuse_tables(None);
    assert!(logs.exists(), "logs stay for post-mortems");

    wish = wish.task(1, Desired::Remove);
    wish.revision = 3;
    session.send(wish.next(2)).await;
    session.until(task_id(1), TaskState::Removed, 1).await;
    assert!(bench.runtime.known().is_empty());
    assert!(!logs.exists());
    assert_eq!(bench.network.attached(), BTreeMap::new());
    let mut table = bench.network.table();
    patiently(table.wait_for(|table| table.published.is_empty())).await.unwrap();

    // Nothing happens when it is forgotten.
    wish.tasks.clear();
    wish.revision = 4;
    let forget = vec![task_id(1).as_bytes().to_vec()];
    session.send(warren_proto::v1::Assignment { removed_tasks: forget, ..wish.next(3) }).await;
    let again = wish.clone().task(2, RUN);
    session.send(warren_proto::v1::Assignment { revision: 5, ..again.next(4) }).await;
    session.until(task_id(2), TaskState::Running, 1).await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_start_is_rejected() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    bench.runtime.refuse(Some("/bin/run: no such file"));
    session.send(Wish::new().task(1, RUN).complete()).await;
    let status = session.until(task_id(1), TaskState::Rejected, 1).await;
    assert_eq!(status.error.as_deref(), Some("/bin/run: no such file"));
    assert!(bench.network.attached().is_empty());

    bench.runtime.refuse(None);
    let mut other = Wish::new().task(2, RUN).template(|template| template.image = "gone:1".into());
    other.revision = 2;
    session.send(other.complete()).await;
    let status = session.until(task_id(2), TaskState::Rejected, 1).await;
    assert!(status.error.unwrap().contains("not found in registry"));
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_is_down_is_asked_again() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    bench.images.fail_pulls(Some(warren_image::Error::Unreachable {
        what: "far:1".into(),
        registry: "registry.test".into(),
        detail: "connection refused".into(),
    }));
    let wish = Wish::new().task(1, RUN).template(|template| template.image = "far:1".into());
    session.send(wish.complete()).await;
    let waits = |status: &TaskStatus| status.error.is_some();
    let status = session.until_status(task_id(1), waits).await;
    assert_eq!(status.state, TaskState::Preparing);
    assert!(status.error.unwrap().contains("cannot be reached"));
    patiently(bench.images.pulls().wait_for(|count| *count >= 4)).await.unwrap();
    bench.images.publish(&"far:1".parse().unwrap());
    bench.images.fail_pulls(None);
    let status = session.until(task_id(1), TaskState::Running, 1).await;
    assert_eq!(status.error, None);

    // It is here now: a restart needs no registry.
    let pulls = *bench.images.pulls().borrow();
    bench.runtime.end(&format!("{}.1", task_id(1)), 1);
    session.until(task_id(1), TaskState::Running, 2).await;
    assert_eq!(*bench.images.pulls().borrow(), pulls);
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_finds_the_disk_full_makes_room() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    session.send(Wish::new().task(1, RUN).complete()).await;
    session.until(task_id(1), TaskState::Running, 1).await;
    bench.images.put(&"spare:1".parse().unwrap());
    bench.images.publish(&"far:1".parse().unwrap());
    bench.images.fail_pulls(Some(warren_image::Error::DiskFull { what: "layer x".into() }));
    let wish = Wish::new().task(1, RUN).task(2, RUN);
    let mut wish = wish.template(|template| template.image = "far:1".into());
    wish.revision = 2;
    session.send(wish.complete()).await;
    session.until(task_id(2), TaskState::Running, 1).await;
    let here: Vec<String> =
        crate::Images::list(&*bench.images).iter().map(|i| i.names[0].to_string()).collect();
    assert_eq!(here, ["far:1", "web:1"]);
}

#[tokio::test(start_paused = true)]
async fn a_taken_port_is_named_and_waited_for() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    bench.network.take_port(8080, Some("nginx (pid 12)"));
    let wish = Wish::new().task(1, RUN).ports(&[port(8080, PublishMode::Ingress)]);
    session.send(wish.complete()).await;
    let waits = |status: &TaskStatus| status.error.is_some();
    let status = session.until_status(task_id(1), waits).await;
    assert_eq!(status.state, TaskState::Preparing);
    assert_eq!(
        status.error.as_deref(),
        Some("port 8080/tcp on 0.0.0.0 is taken by nginx (pid 12)")
    );
    bench.network.take_port(8080, None);
    session.until(task_id(1), TaskState::Running, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_host_port_goes_from_one_replica_to_the_next() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    let mut wish = Wish::new().task(1, RUN).ports(&[port(8080, PublishMode::Host)]);
    session.send(wish.complete()).await;
    session.until(task_id(1), TaskState::Running, 1).await;
    wish = wish.task(2, RUN);
    wish.revision = 2;
    session.send(wish.next(1)).await;
    let waits = |status: &TaskStatus| status.error.is_some();
    let status = session.until_status(task_id(2), waits).await;
    assert_eq!(status.error.as_deref(), Some("port 8080/tcp is taken by service web"));
    wish = wish.task(1, Desired::Shutdown);
    wish.revision = 3;
    session.send(wish.next(2)).await;
    let before = bench.mono();
    session.until(task_id(2), TaskState::Running, 1).await;
    assert!(bench.mono() - before < 100, "it was woken, not found by polling");
    let table = bench.network.table().borrow().clone();
    assert_eq!(table.published[0].backends[0].ip(), &address(2));
}

#[tokio::test(start_paused = true)]
async fn ports_of_a_running_service_change() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    let mut wish = Wish::new().task(1, RUN).ports(&[port(8080, PublishMode::Ingress)]);
    session.send(wish.complete()).await;
    session.until(task_id(1), TaskState::Running, 1).await;
    wish = wish.ports(&[port(9090, PublishMode::Ingress)]);
    wish.revision = 2;
    session.send(wish.next(1)).await;
    let mut table = bench.network.table();
    let moved = |table: &Table| {
        table.published.iter().map(|port| port.port).collect::<Vec<_>>() == [9090]
            && !table.published[0].backends.is_empty()
    };
    patiently(table.wait_for(moved)).await.unwrap();
    assert_eq!(bench.runtime.started().len(), 1, "no container was restarted for it");
}
