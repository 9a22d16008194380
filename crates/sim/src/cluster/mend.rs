//! What people do about services once trouble is over: updates that were paused for what it did
//! go on, what found no place goes, schedules come to rest.

use std::sync::Arc;
use std::time::Duration;

use warren_model::service::{Service, UpdatePhase};
use warren_planner::is_pending;
use warren_proto::v1;
use warren_state::State;

use super::call::{self, Ask};
use super::host::Host;
use super::world::World;

const EVERY_MS: u64 = 3_000;

/// Goes on until it is dropped.
pub(crate) async fn mend(world: Arc<World>) {
    loop {
        tokio::time::sleep(Duration::from_millis(EVERY_MS)).await;
        let Some((host, view)) = leading(&world) else { continue };
        for service in view.services().filter(|service| !service.removing) {
            let Some(ask) = wish(&view, service, &world) else { continue };
            let done = call::change(&world, &host, ask).await;
            world.note(|| format!("{} is mended: {}", service.spec.name, done.is_ok()));
        }
    }
}

fn leading(world: &World) -> Option<(Arc<Host>, State)> {
    world.hosts().into_iter().find_map(|host| {
        let (_, running) = host.running()?;
        let leads = *running.store.leader().borrow();
        leads.then(|| (host, running.store.view().as_ref().clone()))
    })
}

fn wish(view: &State, service: &Service, world: &World) -> Option<Ask> {
    let name = service.id.to_string();
    let request_id = world.request_id();
    let mut tasks = view.tasks_of(service.id);
    if !service.spec.task.reserve.is_empty() && tasks.any(is_pending) {
        return Some(Ask::Remove(v1::RemoveServicesRequest { services: vec![name], request_id }));
    }
    if service.update.as_ref().is_some_and(|update| update.phase == UpdatePhase::Paused) {
        let wire = v1::HoldUpdateRequest { service: name, paused: false, request_id };
        return Some(Ask::Hold(wire));
    }
    let goes_on = service.job.as_ref().is_some_and(|job| !job.suspended);
    if service.spec.job.schedule.is_some() && goes_on {
        let wire = v1::SuspendJobRequest { service: name, suspended: true, request_id };
        return Some(Ask::Suspend(wire));
    }
    None
}
