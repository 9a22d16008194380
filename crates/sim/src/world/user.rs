//! A person who creates, changes, scales, restarts and removes services.

use std::net::Ipv4Addr;

use warren_agent::core::Input;
use warren_base::rng::Rng;
use warren_model::health::{HealthAction, HealthSpec, Healthcheck, Probe};
use warren_model::id::{ServiceId, TaskId};
use warren_model::placement::Preempt;
use warren_model::service::{
    FailureAction, Mode, PortSpec, Protocol, PublishMode, RestartPolicy, Service, ServiceSpec,
    TaskTemplate, UpdateOrder, UpdatePhase, UpdatePolicy,
};
use warren_model::task::{Desired, Task};
use warren_planner::is_pending;
use warren_state::change::{Expect, Key, Mutation, Request, Transaction};

use super::{Happening, Held, World};
use crate::machine::pick;
use crate::{hooks, jobs};

/// Services at a time: enough to overlap, few enough to be changed often.
const SERVICES_MAX: usize = 6;
/// After the trouble somebody looks for updates that stand still, for so long and so often.
const MENDS_MS: u64 = 120_000;
const MEND_EVERY_MS: u64 = 5_000;

impl World {
    pub(super) fn user(&mut self) -> Held {
        if self.now_ms >= self.options.trouble_ms {
            return self.mend();
        }
        let next = self.soon(1500) + 1;
        self.queue.at(next, Happening::User);
        let ids: Vec<ServiceId> = self.state.services().map(|service| service.id).collect();
        if self.rng.below(6) == 0 {
            self.touch_a_task();
            return Ok(());
        }
        let choice = self.rng.below(10);
        let mutation = if ids.is_empty() || (choice < 3 && ids.len() < SERVICES_MAX) {
            let id = ServiceId::from_bytes(self.rng.id_bytes());
            Some(Mutation::CreateService { id, spec: self.new_spec()? })
        } else {
            let at = usize::try_from(self.rng.below(ids.len() as u64)).unwrap_or(0);
            self.change(ids[at], choice)
        };
        if let Some(mutation) = mutation {
            let expects = match &mutation {
                Mutation::UpdateService { id, .. } => {
                    let key = Key::Service(*id);
                    vec![Expect { key, revision: self.state.revision_of(key) }]
                }
                _ => vec![],
            };
            let id = u128::from(self.rng.next_u64());
            let request = Some(Request { principal: "socket:0".into(), id, hash: 1 });
            let mutations = vec![mutation];
            let transaction = Transaction { request, expects, mutations, principal: None };
            // An impatient client asks twice: it must be done once.
            if self.rng.below(8) == 0 {
                self.propose(transaction.clone(), false);
            }
            self.propose(transaction, false);
        }
        Ok(())
    }

    /// Stops a task, or restarts it in place.
    fn touch_a_task(&mut self) {
        let wanted =
            |task: &&Task| task.desired == Desired::Running && !task.status.state.is_terminal();
        let ids: Vec<TaskId> = self.state.tasks().filter(wanted).map(|task| task.id).collect();
        let Some(at) = pick(self.rng.as_ref(), ids.len()) else { return };
        let id = ids[at];
        if self.rng.below(2) == 0 {
            let needs = self.machine.handle(Input::Restart(id), self.now());
            self.serve(needs);
            return;
        }
        let mutations = vec![Mutation::SetDesired { id, desired: Desired::Shutdown }];
        self.propose(Transaction { mutations, ..Transaction::default() }, false);
    }

    /// Nobody makes room for what waits.
    fn make_room(&mut self) {
        let waits = |service: &&Service| {
            let mut tasks = self.state.tasks_of(service.id);
            service.spec.task.reserve.cpu_millis > 0 && tasks.any(is_pending)
        };
        let waiting = self.state.services().filter(|service| !service.removing).filter(waits);
        let ids: Vec<ServiceId> = waiting.map(|service| service.id).collect();
        for id in ids {
            let mutations = vec![Mutation::RemoveService { id }];
            self.propose(Transaction { mutations, ..Transaction::default() }, false);
        }
    }

    /// Lets updates go on that were paused for what trouble did to their new tasks.
    fn mend(&mut self) -> Held {
        if self.now_ms < self.options.trouble_ms + MENDS_MS {
            self.queue.at(self.now_ms + MEND_EVERY_MS, Happening::User);
        }
        self.make_room();
        let is_paused = |service: &&Service| {
            service.update.as_ref().is_some_and(|update| update.phase == UpdatePhase::Paused)
        };
        let paused = self.state.services().filter(|service| !service.removing).filter(is_paused);
        let ids: Vec<ServiceId> = paused.map(|service| service.id).collect();
        for id in ids {
            let (phase, message) = (UpdatePhase::Moving, String::new());
            let mutations = vec![Mutation::SetUpdate { id, phase, message }];
            self.propose(Transaction { mutations, ..Transaction::default() }, false);
        }
        // A schedule is never calm.
        let goes_on = |service: &&Service| {
            let suspended = service.job.as_ref().is_none_or(|job| job.suspended);
            service.spec.job.schedule.is_some() && !suspended && !service.removing
        };
        let ids: Vec<ServiceId> =
            self.state.services().filter(goes_on).map(|service| service.id).collect();
        for id in ids {
            let mutations = vec![Mutation::Suspend { id, suspended: true }];
            self.propose(Transaction { mutations, ..Transaction::default() }, false);
        }
        Ok(())
    }

    fn change(&self, id: ServiceId, choice: u64) -> Option<Mutation> {
        let service = self.state.service(id).filter(|service| !service.removing)?;
        let mut spec = service.spec.clone();
        match choice {
            0..=4 if spec.mode.is_job() => jobs::resize(&mut spec, self.rng.as_ref()),
            // What it does is to end.
            6 if spec.mode.is_job() => spec.task.env = vec![format!("W={}", self.rng.below(1000))],
            0..=4 => {
                spec.mode = Mode::Replicated { replicas: u32::try_from(self.rng.below(8)).ok()? }
            }
            5 => spec.task.env = vec![format!("V={}", self.rng.below(1000))],
            // To what fails, or from there to what works.
            6 if !spec.task.command.is_empty() => spec.task.command.clear(),
            6 if self.rng.below(4) == 0 => spec.task.command = vec!["crash".to_owned()],
            6 => spec.task.env = vec![format!("W={}", self.rng.below(1000))],
            7 if spec.mode.is_job() && spec.job.inputs.is_any() => {
                let given = jobs::given(service, self.rng.as_ref())?;
                return Some(Mutation::BeginRun { id, scheduled: None, given });
            }
            7 if !spec.mode.is_job() && self.rng.below(2) == 0 => {
                hooks::make(&mut spec, self.rng.as_ref());
            }
            7 => spec.task.force += 1,
            8 => spec.ports = self.ports(),
            _ => return Some(Mutation::RemoveService { id }),
        }
        Some(Mutation::UpdateService { id, spec })
    }

    fn ports(&self) -> Vec<PortSpec> {
        if self.rng.below(2) == 0 {
            return vec![];
        }
        let published = 8000 + u16::try_from(self.rng.below(3)).unwrap_or(0);
        vec![PortSpec {
            protocol: Protocol::Tcp,
            bind: Ipv4Addr::UNSPECIFIED,
            published,
            target: 80,
            mode: PublishMode::Ingress,
            name: None,
        }]
    }

    fn new_spec(&mut self) -> Result<ServiceSpec, String> {
        self.services_made += 1;
        let name = format!("s{}", self.services_made).parse().map_err(|e| format!("name: {e}"))?;
        let order =
            if self.rng.below(2) == 0 { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
        let parallelism = u32::try_from(self.rng.below(3)).unwrap_or(0);
        let command = if self.rng.below(8) == 0 { vec!["crash".to_owned()] } else { vec![] };
        let restart = RestartPolicy { delay_ms: self.rng.below(200), ..RestartPolicy::default() };
        let health = health(self.rng.below(4));
        let mut spec = ServiceSpec {
            mode: Mode::Replicated { replicas: u32::try_from(self.rng.below(6)).unwrap_or(1) },
            ports: self.ports(),
            update: UpdatePolicy {
                parallelism,
                delay_ms: self.rng.below(300),
                order,
                failure_action: match self.rng.below(3) {
                    0 => FailureAction::Rollback,
                    1 => FailureAction::Continue,
                    _ => FailureAction::Pause,
                },
                ..UpdatePolicy::default()
            },
            ..ServiceSpec::new(
                name,
                TaskTemplate {
                    image: "sim:1".into(),
                    command,
                    restart,
                    stop_grace_ms: Some(1000),
                    health,
                    ..TaskTemplate::default()
                },
            )
        };
        match self.rng.below(8) {
            0 | 1 => jobs::make(&mut spec, self.rng.as_ref()),
            2 | 3 => hooks::make(&mut spec, self.rng.as_ref()),
            // More than the node has, so that some end for others.
            4 | 5 => {
                spec.task.reserve.cpu_millis = 300 + self.rng.below(500);
                spec.placement.priority = i16::try_from(self.rng.below(4)).unwrap_or(0);
                spec.placement.preempt =
                    if self.rng.below(2) == 0 { Preempt::Lower } else { Preempt::Never };
            }
            _ => {}
        }
        Ok(spec)
    }
}

/// Some services are asked how they are, and some of those restarted when they are not well.
fn health(lot: u64) -> Healthcheck {
    let action = match lot {
        0 => HealthAction::Restart,
        1 => HealthAction::None,
        _ => return Healthcheck::Implicit,
    };
    let check = HealthSpec::new(Probe::Tcp { port: 80 });
    Healthcheck::Explicit(Box::new(HealthSpec { action, ..check }))
}
