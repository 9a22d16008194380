//! Tasks of several containers.

use warren_model::health::{HealthSpec, Healthcheck, Probe};
use warren_model::service::{Companion, CompanionKind, RestartCondition};
use warren_model::task::{CompanionState, Desired, TaskState, TaskStatus};
use warren_model::{TaskTemplate, Time};

use super::{Bench, Wish, address, patiently, task_id};

const RUN: Desired = Desired::Running;

/// `i:migrate s:proxy`.
fn group(companions: &'static str) -> Wish {
    Wish::new().task(1, RUN).template(|template| {
        template.companions = companions.split_whitespace().map(companion).collect();
    })
}

fn companion(text: &str) -> Companion {
    let (kind, name) = text.split_once(':').unwrap();
    Companion {
        name: name.parse().unwrap(),
        kind: if kind == "i" { CompanionKind::Init } else { CompanionKind::Sidecar },
        task: TaskTemplate { image: "web:1".into(), ..TaskTemplate::default() },
    }
}

/// `""` is the task's own container, of the first attempt.
fn id(name: &str) -> String {
    of(1, name)
}

fn of(attempt: u32, name: &str) -> String {
    let dot = if name.is_empty() { "" } else { "." };
    format!("{}.{attempt}{dot}{name}", task_id(1))
}

fn states(status: &TaskStatus) -> String {
    let each = status.companions().iter();
    let words = each.map(|c| format!("{}:{}:{}", c.name, c.state.as_str(), c.restarts));
    words.collect::<Vec<_>>().join(" ")
}

#[tokio::test(start_paused = true)]
async fn one_after_another_then_all_together() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    session.send(group("s:proxy i:fetch i:migrate s:logs").complete()).await;
    patiently(bench.runs(&[id("fetch")])).await;
    let status = session.until(task_id(1), TaskState::Starting, 1).await;
    assert_eq!(status.describe(), "starting (init fetch 1/2)");
    bench.runtime.end(&id("fetch"), 0);
    patiently(bench.runs(&[id("migrate")])).await;
    bench.runtime.end(&id("migrate"), 0);
    let status = session.until(task_id(1), TaskState::Running, 1).await;
    let expected = "fetch:exited:0 migrate:exited:0 proxy:running:0 logs:running:0";
    assert_eq!(states(&status), expected);
    assert_eq!(
        bench.runtime.started(),
        [id("fetch"), id("migrate"), id("proxy"), id("logs"), id("")]
    );
    let (own, proxy) = (bench.runtime.spec(&id("")), bench.runtime.spec(&id("proxy")));
    assert_eq!((&own.hostname, &own.files[0].data), (&proxy.hostname, &proxy.files[0].data));
    assert_eq!(bench.network.attached().len(), 1);
    assert_ne!(own.log.dir, proxy.log.dir);

    session.send(group("").task(1, Desired::Remove).at(0, 2).complete()).await;
    session.until(task_id(1), TaskState::Removed, 1).await;
    assert!(bench.runtime.known().is_empty(), "{:?}", bench.runtime.known());
}

#[tokio::test(start_paused = true)]
async fn an_init_that_fails_is_named() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    let wish = group("i:migrate s:proxy").template(|template| {
        template.restart.condition = RestartCondition::OnFailure;
        template.restart.max_attempts = Some(1);
    });
    session.send(wish.complete()).await;
    patiently(bench.runs(&[id("migrate")])).await;
    bench.runtime.end(&id("migrate"), 1);
    patiently(bench.runs(&[of(2, "migrate")])).await;
    bench.runtime.end(&of(2, "migrate"), 3);
    let status = session.until(task_id(1), TaskState::Failed, 2).await;
    assert_eq!(status.error.as_deref(), Some("init container `migrate` exited with 3"));
    assert_eq!(status.exit.unwrap().code, 3);
    assert!(bench.runtime.running().is_empty());
    assert!(bench.network.attached().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_is_restarted_beside_the_others() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    session.send(group("s:proxy").complete()).await;
    let before = session.until(task_id(1), TaskState::Running, 1).await;
    bench.runtime.end(&id("proxy"), 1);
    let again = |status: &TaskStatus| status.companion_restarts() == 1;
    let status = session.until_status(task_id(1), |status| {
        again(status) && status.companions()[0].state == CompanionState::Running
    });
    let status = status.await;
    assert_eq!((status.attempt, status.pid), (1, before.pid));
    assert_eq!(status.companions()[0].exit.unwrap().code, 1);
    assert_eq!(bench.runtime.started().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_job_is_done_when_its_own_container_is() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    let wish = group("s:proxy s:logs").template(|template| {
        template.restart.condition = RestartCondition::OnFailure;
    });
    session.send(wish.complete()).await;
    session.until(task_id(1), TaskState::Running, 1).await;
    bench.runtime.end(&id(""), 0);
    let status = session.until(task_id(1), TaskState::Complete, 1).await;
    assert_eq!(status.exit.unwrap().code, 0);
    assert_eq!(states(&status), "proxy:exited:0 logs:exited:0");
    assert!(bench.runtime.running().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_end_of_the_own_container_begins_all_anew() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    session.send(group("i:migrate s:proxy").complete()).await;
    patiently(bench.runs(&[id("migrate")])).await;
    bench.runtime.end(&id("migrate"), 0);
    session.until(task_id(1), TaskState::Running, 1).await;
    bench.runtime.end(&id(""), 7);
    patiently(bench.runs(&[of(2, "migrate")])).await;
    bench.runtime.end(&of(2, "migrate"), 0);
    let status = session.until(task_id(1), TaskState::Running, 2).await;
    assert_eq!(status.exit.unwrap().code, 7);
    patiently(bench.runs(&[of(2, ""), of(2, "proxy")])).await;
}

#[tokio::test(start_paused = true)]
async fn a_start_that_takes_long_can_be_stopped() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    session.send(group("i:migrate").complete()).await;
    patiently(bench.runs(&[id("migrate")])).await;
    session.send(group("i:migrate").task(1, Desired::Shutdown).at(0, 2).complete()).await;
    session.until(task_id(1), TaskState::Complete, 1).await;
    assert!(bench.runtime.running().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_new_agent_goes_on_with_all_of_them() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let wish = group("i:migrate s:proxy");
    session.send(wish.complete()).await;
    patiently(bench.runs(&[id("migrate")])).await;
    bench.kill();
    // In the middle of a start.
    bench.start().await;
    let mut session = bench.session().await;
    assert_eq!(bench.network.attached().len(), 1);
    session.send(wish.complete()).await;
    session.until(task_id(1), TaskState::Starting, 1).await;
    bench.runtime.end(&id("migrate"), 0);
    let running = session.until(task_id(1), TaskState::Running, 1).await;
    assert_eq!(bench.runtime.started(), [id("migrate"), id("proxy"), id("")]);

    // While all run; a sidecar ends meanwhile.
    bench.kill();
    bench.runtime.end(&id("proxy"), 5);
    bench.start().await;
    let mut session = bench.session().await;
    session.send(wish.clone().known(1, &running).complete()).await;
    let back = |status: &TaskStatus| {
        status.companions().iter().any(|c| c.restarts == 1 && c.state == CompanionState::Running)
    };
    let running = session.until_status(task_id(1), back).await;
    assert_eq!(running.attempt, 1);
    assert_eq!(bench.runtime.started().len(), 4);

    // The task's own container ends while nobody looks.
    bench.kill();
    bench.runtime.end(&id(""), 1);
    bench.start().await;
    let mut session = bench.session().await;
    session.send(wish.known(1, &running).complete()).await;
    patiently(bench.runs(&[of(2, "migrate")])).await;
    bench.runtime.end(&of(2, "migrate"), 0);
    let status = session.until(task_id(1), TaskState::Running, 2).await;
    assert_eq!(status.exit.unwrap().code, 1);
    patiently(bench.runs(&[of(2, ""), of(2, "proxy")])).await;
}

#[tokio::test(start_paused = true)]
async fn containers_of_nobody_go_with_their_companions() {
    let mut bench = Bench::new().await;
    let mut session = bench.session().await;
    session.send(group("s:proxy").complete()).await;
    session.until(task_id(1), TaskState::Running, 1).await;
    bench.kill();
    bench.start().await;
    let session = bench.session().await;
    session.send(Wish::new().complete()).await;
    patiently(async {
        while !bench.runtime.known().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_that_is_unwell_makes_the_task_so() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    bench.probes.hurt(address(1), "connection refused");
    let check = Box::new(HealthSpec::new(Probe::Tcp { port: 9000 }));
    let wish = group("s:proxy").template(|template| {
        template.companions[0].task.health = Healthcheck::Explicit(check);
        template.restart.delay_ms = 1000;
    });
    session.send(wish.complete()).await;
    let told = |status: &TaskStatus| status.error.is_some();
    let status = session.until_status(task_id(1), told).await;
    assert!(!status.is_ready());
    assert_eq!(status.error.as_deref(), Some("sidecar `proxy`: connection refused"));
    bench.probes.heal(address(1));
    session.until_status(task_id(1), TaskStatus::is_ready).await;
    // It is not ready while the sidecar is away, and its own container stays.
    bench.runtime.end(&id("proxy"), 1);
    let status = session.until_status(task_id(1), |status| !status.is_ready()).await;
    assert_eq!(status.error.as_deref(), Some("sidecar `proxy` ended: exit code 1"));
    let status = session.until_status(task_id(1), TaskStatus::is_ready).await;
    assert_eq!((status.attempt, status.error), (1, None));
    assert!(status.started > Some(Time(0)));
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_that_is_asked_is_ready_before_others_begin() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    bench.probes.hurt(address(1), "connection refused");
    let check = Box::new(HealthSpec::new(Probe::Tcp { port: 9000 }));
    let wish = group("s:proxy s:logs").template(|template| {
        template.companions[0].task.health = Healthcheck::Explicit(check);
    });
    session.send(wish.complete()).await;
    let told = |status: &TaskStatus| status.error.is_some();
    let status = session.until_status(task_id(1), told).await;
    assert_eq!(status.describe(), "starting (sidecar proxy 1/2)");
    assert_eq!(status.error.as_deref(), Some("sidecar `proxy`: connection refused"));
    assert_eq!(bench.runtime.started(), [id("proxy")]);
    // One that is never ready begins anew, as its check says.
    let again = |status: &TaskStatus| status.companion_restarts() == 1;
    session.until_status(task_id(1), again).await;
    bench.probes.heal(address(1));
    let status = session.until_status(task_id(1), TaskStatus::is_ready).await;
    assert_eq!((status.attempt, status.error), (1, None));
    let started = bench.runtime.started();
    assert_eq!(started[started.len() - 2..], [id("logs"), id("")]);

    // A start that waits for it can be stopped.
    session.send(group("").task(1, Desired::Remove).at(0, 2).complete()).await;
    session.until(task_id(1), TaskState::Removed, 1).await;
    assert!(bench.runtime.known().is_empty(), "{:?}", bench.runtime.known());
}
