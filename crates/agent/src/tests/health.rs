//! From what a container answers to what managers hear and the kernel holds.

use warren_model::health::{HealthAction, HealthSpec, HealthState, Healthcheck, Probe};
use warren_model::service::PublishMode;
use warren_model::task::{Desired, TaskStatus};

use super::{Bench, Wish, address, port, task_id};

const RUN: Desired = Desired::Running;

fn is(state: HealthState) -> impl Fn(&TaskStatus) -> bool {
    move |status| status.health.is_some_and(|health| health.state == state)
}

fn wish(action: HealthAction) -> Wish {
    let check = HealthSpec::new(Probe::Tcp { port: 80 });
    let check = HealthSpec { interval_ms: 1_000, retries: 2, action, ..check };
    let health = Healthcheck::Explicit(Box::new(check));
    let wish = Wish::new().task(1, RUN).ports(&[port(8080, PublishMode::Ingress)]);
    wish.template(|template| template.health = health)
}

fn backends(bench: &Bench) -> usize {
    let table = bench.network.table();
    let table = table.borrow();
    table.published.iter().map(|port| port.backends.len()).sum()
}

#[tokio::test(start_paused = true)]
async fn only_what_is_healthy_is_led_to() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    bench.probes.hurt(address(1), "not yet");
    session.send(wish(HealthAction::None).complete()).await;
    let status = session.until_status(task_id(1), is(HealthState::Starting)).await;
    assert!(!status.is_ready());
    let told = |status: &TaskStatus| status.error.as_deref() == Some("not yet");
    session.until_status(task_id(1), told).await;
    assert_eq!(backends(&bench), 0);
    bench.probes.heal(address(1));
    let status = session.until_status(task_id(1), is(HealthState::Healthy)).await;
    assert_eq!((status.error.as_deref(), backends(&bench)), (None, 1));
    bench.probes.hurt(address(1), "ill");
    let ill_at = bench.mono();
    let status = session.until_status(task_id(1), is(HealthState::Unhealthy)).await;
    assert!(bench.mono() - ill_at <= 2_000, "two failures");
    assert_eq!(status.error.as_deref(), Some("ill"));
    bench.probes.heal(address(1));
    let status = session.until_status(task_id(1), is(HealthState::Healthy)).await;
    assert_eq!((status.attempt, backends(&bench)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_unhealthy_is_started_anew() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    session.send(wish(HealthAction::Restart).complete()).await;
    session.until_status(task_id(1), is(HealthState::Healthy)).await;
    bench.probes.hurt(address(1), "ill");
    session.until_status(task_id(1), is(HealthState::Unhealthy)).await;
    let again = |status: &TaskStatus| status.attempt == 2;
    session.until_status(task_id(1), again).await;
    bench.probes.heal(address(1));
    let status = session.until_status(task_id(1), is(HealthState::Healthy)).await;
    assert_eq!((status.attempt, backends(&bench)), (2, 1));
    // Nobody asks what is not wanted any more.
    session.send(wish(HealthAction::Restart).at(0, 2).task(1, Desired::Shutdown).complete()).await;
    session.until_status(task_id(1), |status| status.state.is_terminal()).await;
    bench.probes.asked();
    bench.clock_at(bench.mono() + 10_000).await;
    assert_eq!(bench.probes.asked(), []);
}

#[tokio::test(start_paused = true)]
async fn a_new_agent_goes_on_from_what_was_known() {
    let mut bench = Bench::new().await;
    let mut session = bench.session().await;
    session.send(wish(HealthAction::None).complete()).await;
    let status = session.until_status(task_id(1), is(HealthState::Healthy)).await;
    bench.kill();
    bench.start().await;
    let mut session = bench.session().await;
    let known = wish(HealthAction::None).at(0, 2).known(1, &status);
    session.send(known.complete()).await;
    // Its table leads to it before anybody was asked again.
    assert_eq!(backends(&bench), 1);
    bench.probes.hurt(address(1), "ill");
    session.until_status(task_id(1), is(HealthState::Unhealthy)).await;
}
