//! People who create, change, scale and remove services through any manager,
//! ask again until they are answered, and read what they wrote.

mod spec;

use std::sync::Arc;
use std::time::Duration;

use tonic::{Code, Status};
use warren_base::rng::{Rng, SeededRng};
use warren_model::service::{Mode, Service, UpdatePhase};
use warren_model::task::{Desired, Task};
use warren_model::{NodeId, ServiceSpec, TaskId};
use warren_proto::v1;

use super::book::{Ack, Held};
use super::call::{self, Ask};
use super::host::Host;
use super::laws::WISH;
use super::plan::{SHARED, TOKEN, is_sentinel};
use super::world::{World, held};
use crate::machine::pick;
use crate::{hooks, jobs};

/// Of one person; enough to overlap, few enough to be changed often.
const SERVICES_MAX: usize = 3;
const TRIES_MAX: u32 = 8;
const RETRY_MS: u64 = 250;
const AGAIN_MS: u64 = 3_000;

/// What a person knows of a service of theirs.
#[derive(Clone)]
struct Own {
    spec: ServiceSpec,
    /// Acknowledged; empty: none yet.
    token: String,
    /// Asked for without an answer: may be true as well.
    perhaps: Vec<Option<String>>,
}

pub(crate) struct User {
    world: Arc<World>,
    name: u64,
    rng: SeededRng,
    own: Vec<Own>,
    writes: u64,
    /// The newest revision that this person was told.
    revision: u64,
}

/// What came of an attempt to change something.
enum Outcome {
    Done,
    Refused,
    Unknown,
}

impl User {
    pub(crate) fn new(world: Arc<World>, name: u64) -> Self {
        let rng = SeededRng::new(world.rng.next_u64());
        Self { world, name, rng, own: Vec::new(), writes: 0, revision: 0 }
    }

    /// Goes on until it is dropped.
    pub(crate) async fn run(mut self) {
        loop {
            let pause = self.rng.below(self.world.script.user_pause_ms);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let world = Arc::clone(&self.world);
            world.hold(self.act().await);
        }
    }

    async fn act(&mut self) -> Held {
        self.writes += 1;
        let token = format!("{}-{}", self.name, self.writes);
        match self.rng.below(16) {
            0 | 1 => return self.contend(token).await,
            2 => return self.touch_a_task().await,
            6 => return self.hold().await,
            3..=5 => {
                if let Some(job) = self.any_job() {
                    return self.dispatch(&job, token).await;
                }
            }
            _ => {}
        }
        match (self.rng.below(10), pick(&self.rng, self.own.len())) {
            (9, Some(at)) => self.remove(at).await,
            (7 | 8, Some(at)) => self.read(at).await,
            (choice, Some(at)) if choice > 2 || self.own.len() >= SERVICES_MAX => {
                self.change(at, token).await
            }
            _ => self.create(token).await,
        }
    }

    async fn create(&mut self, token: String) -> Held {
        let Some(spec) = self.new_spec(&token) else { return Ok(()) };
        let name = spec.name.to_string();
        let wire = v1::CreateServiceRequest {
            spec: Some((&spec).into()),
            request_id: self.request_id(),
            no_check: true,
            ..Default::default()
        };
        let mut own = Own { spec, token: String::new(), perhaps: vec![None] };
        match self.ask(Ask::Create(wire), &name, &token).await? {
            Outcome::Done => (own.token, own.perhaps) = (token, Vec::new()),
            Outcome::Unknown => own.perhaps.push(Some(token)),
            Outcome::Refused => return Ok(()),
        }
        self.own.push(own);
        Ok(())
    }

    async fn change(&mut self, at: usize, token: String) -> Held {
        let mut spec = self.own[at].spec.clone();
        match self.rng.below(12) {
            8 => spec.networks = self.networks(),
            9 => spec.endpoint.mode = self.endpoint_mode(),
            0..=3 if spec.mode.is_job() => jobs::resize(&mut spec, &self.rng),
            10 if spec.mode.is_job() => spec.task.force += 1,
            10 => spec.endpoint.slot_addresses ^= true,
            0..=3 => {
                let replicas = u32::try_from(self.rng.below(6)).unwrap_or(1);
                spec.mode = Mode::Replicated { replicas };
            }
            11 if !spec.mode.is_job() => hooks::make(&mut spec, &self.rng),
            4 | 5 => spec.task.env = vec![format!("V={}", self.rng.below(1000))],
            6 => spec.task.force += 1,
            _ => spec.ports = self.ports(),
        }
        spec.labels.insert(TOKEN.to_owned(), token.clone());
        let name = spec.name.to_string();
        let wire = v1::UpdateServiceRequest {
            service: name.clone(),
            spec: Some((&spec).into()),
            revision: 0,
            request_id: self.request_id(),
            no_check: true,
            ..Default::default()
        };
        let outcome = self.ask(Ask::Update(wire), &name, &token).await?;
        let own = &mut self.own[at];
        match outcome {
            Outcome::Done => {
                // What was never answered may come to pass yet.
                own.perhaps.retain(Option::is_some);
                (own.spec, own.token) = (spec, token);
            }
            Outcome::Unknown => own.perhaps.push(Some(token)),
            Outcome::Refused => {}
        }
        Ok(())
    }

    async fn remove(&mut self, at: usize) -> Held {
        let name = self.own[at].spec.name.to_string();
        let request_id = self.request_id();
        let wire = v1::RemoveServicesRequest { services: vec![name.clone()], request_id };
        match self.ask(Ask::Remove(wire), &name, "").await? {
            // Its name is never used again, so what nobody answered harms nobody.
            Outcome::Done | Outcome::Unknown | Outcome::Refused => drop(self.own.remove(at)),
        }
        Ok(())
    }

    /// Of anybody, so that people begin runs of one at the same time.
    fn any_job(&self) -> Option<String> {
        let (_, running) = self.any_manager()?.running()?;
        let view = running.store.view();
        let takes = |service: &&Service| !service.removing && service.spec.job.inputs.is_any();
        let jobs: Vec<String> =
            view.services().filter(takes).map(|service| service.spec.name.to_string()).collect();
        pick(&self.rng, jobs.len()).map(|at| jobs[at].clone())
    }

    /// Begins a run, once, whatever becomes of the answers.
    async fn dispatch(&mut self, name: &str, token: String) -> Held {
        let payload = (self.rng.below(2) == 0).then(|| vec![7; 9]);
        let wire = v1::RunJobRequest {
            service: name.to_owned(),
            request_id: self.request_id(),
            params: [(WISH.to_owned(), token)].into(),
            payload,
        };
        self.ask(Ask::Run(wire), name, "").await.map(|_| ())
    }

    /// Stops a task, or restarts it in place.
    async fn touch_a_task(&mut self) -> Held {
        let Some(host) = self.any_manager() else { return Ok(()) };
        let Some((_, running)) = host.running() else { return Ok(()) };
        let view = running.store.view();
        let fits = |task: &&Task| {
            task.desired == Desired::Running
                && !task.status.state.is_terminal()
                && task.node.is_some()
                && !is_sentinel(task.service)
        };
        let tasks: Vec<(TaskId, Option<NodeId>)> =
            view.tasks().filter(fits).map(|task| (task.id, task.node)).collect();
        let Some(at) = pick(&self.rng, tasks.len()) else { return Ok(()) };
        let (task, node) = tasks[at];
        if self.rng.below(2) == 0 {
            let there = self.world.hosts().into_iter().find(|host| Some(host.node) == node);
            if let Some(there) = there {
                held(&there.restarts).push(task);
                there.poke();
            }
            return Ok(());
        }
        let stop = v1::control_task_request::Stop {};
        let wire = v1::ControlTaskRequest {
            task: task.to_string(),
            request_id: self.request_id(),
            what: Some(v1::control_task_request::What::Stop(stop)),
        };
        self.ask(Ask::Control(wire), "", "").await.map(|_| ())
    }

    /// Stops an update or a schedule half way, or lets it go on; of anybody.
    async fn hold(&mut self) -> Held {
        let Some(host) = self.any_manager() else { return Ok(()) };
        let Some((_, running)) = host.running() else { return Ok(()) };
        let view = running.store.view();
        let moves = |service: &Service| {
            service.update.as_ref().is_some_and(|update| update.phase != UpdatePhase::Done)
        };
        let fits = |service: &&Service| {
            !service.removing && (moves(service) || service.spec.labels.contains_key(jobs::RESTS))
        };
        let found: Vec<(String, bool)> =
            view.services().filter(fits).map(|s| (s.spec.name.to_string(), moves(s))).collect();
        let Some(at) = pick(&self.rng, found.len()) else { return Ok(()) };
        let (service, moves) = found[at].clone();
        let (stop, request_id) = (self.rng.below(3) > 0, self.request_id());
        let ask = if moves {
            Ask::Hold(v1::HoldUpdateRequest { service, paused: stop, request_id })
        } else {
            Ask::Suspend(v1::SuspendJobRequest { service, suspended: stop, request_id })
        };
        if matches!(self.ask(ask, "", "").await?, Outcome::Done) {
            self.world.count(|counts| counts.held += 1);
        }
        Ok(())
    }

    /// Reads must show what was acknowledged before, from whichever manager.
    async fn read(&mut self, at: usize) -> Held {
        let Some(host) = self.any_manager() else { return Ok(()) };
        let own = self.own[at].clone();
        let linearizable = self.rng.below(2) == 0;
        let min_revision = if linearizable { 0 } else { self.revision };
        let wire = v1::ListServicesRequest { services: Vec::new(), min_revision, linearizable };
        let Ok(list) = call::list(&self.world, &host, wire).await else { return Ok(()) };
        if list.revision < self.revision {
            let (read, told) = (list.revision, self.revision);
            return Err(format!("{}: a read at {read}, written was {told}", host.name));
        }
        let name = own.spec.name.as_str();
        let found = list.services.iter().filter_map(|service| service.spec.as_ref());
        let found = found.clone().find(|spec| spec.name == name);
        let found = found.map(|spec| spec.labels.get(TOKEN).cloned().unwrap_or_default());
        let acknowledged = Some(&own.token).filter(|token| !token.is_empty());
        if found.as_ref() != acknowledged && !own.perhaps.contains(&found) {
            return Err(format!(
                "{}: {name} is at write {found:?}, acknowledged was {acknowledged:?}",
                host.name
            ));
        }
        Ok(())
    }

    /// Changes what it read, if that is still what is there.
    async fn contend(&mut self, token: String) -> Held {
        let Some(host) = self.any_manager() else { return Ok(()) };
        let wire = v1::ListServicesRequest::default();
        let Ok(list) = call::list(&self.world, &host, wire).await else { return Ok(()) };
        let spec_of = |service: &v1::Service| Some((service.revision, service.spec.clone()?));
        let mut found = list.services.iter().filter_map(spec_of);
        let Some((revision, mut spec)) = found.find(|(_, spec)| spec.name == SHARED) else {
            return Ok(());
        };
        let read = spec.labels.get(TOKEN).cloned().unwrap_or_default();
        let base = read.split('<').next().unwrap_or_default();
        spec.labels.insert(TOKEN.to_owned(), format!("{token}<{base}"));
        let wire = v1::UpdateServiceRequest {
            service: SHARED.to_owned(),
            spec: Some(spec),
            revision,
            request_id: self.request_id(),
            no_check: true,
            ..Default::default()
        };
        // Somebody else may be faster.
        self.ask(Ask::Update(wire), SHARED, "").await.map(|_| ())
    }

    fn any_manager(&self) -> Option<Arc<Host>> {
        let hosts = self.world.hosts();
        let managers: Vec<_> = hosts.into_iter().filter(|host| host.number().is_some()).collect();
        pick(&self.rng, managers.len()).map(|at| Arc::clone(&managers[at]))
    }

    /// Asks until somebody answers; the same request each time, so it is done at most once.
    async fn ask(&mut self, ask: Ask, name: &str, token: &str) -> Result<Outcome, String> {
        let mut told: Option<u64> = None;
        for attempt in 0..TRIES_MAX {
            let Some(host) = self.any_manager() else { return Ok(Outcome::Unknown) };
            let answer = call::change(&self.world, &host, ask.clone()).await;
            self.world.trace((self.name, answer.as_ref().map_err(Status::code).is_ok()));
            match answer {
                Ok(revision) => {
                    if let Some(before) = told.filter(|before| *before != revision) {
                        return Err(format!("{name}: done at {before} and again at {revision}"));
                    }
                    // A client that did not take the answer in asks again, at once or later.
                    if told.is_none() && self.rng.below(8) == 0 {
                        told = Some(revision);
                        let pause = self.rng.below(AGAIN_MS) * self.rng.below(2);
                        tokio::time::sleep(Duration::from_millis(pause)).await;
                        continue;
                    }
                    return Ok(self.done(revision, name, token));
                }
                Err(status) if told.is_some() && is_vague(&status) => {
                    return Ok(self.done(told.unwrap_or(0), name, token));
                }
                Err(status) if is_vague(&status) => {}
                Err(status) if (told.is_some() || attempt > 0) && !token.is_empty() => {
                    // Names and writes are this person's alone: nobody else can be in the way.
                    return Err(format!("{name}: asked again, refused: {status}"));
                }
                Err(_) => return Ok(Outcome::Refused),
            }
            tokio::time::sleep(Duration::from_millis(self.rng.below(RETRY_MS))).await;
        }
        match told {
            Some(revision) => Ok(self.done(revision, name, token)),
            None => Ok(Outcome::Unknown),
        }
    }

    fn done(&mut self, revision: u64, name: &str, token: &str) -> Outcome {
        self.revision = self.revision.max(revision);
        self.world.count(|counts| counts.acknowledged += 1);
        if !token.is_empty() {
            let (service, token) = (name.to_owned(), token.to_owned());
            held(&self.world.book).acks.push(Ack { service, token, revision });
        }
        Outcome::Done
    }

    fn request_id(&self) -> Vec<u8> {
        let mut id = vec![0; 16];
        self.rng.fill(&mut id);
        id
    }
}

/// Whether it may have been done, or may yet be.
fn is_vague(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::ResourceExhausted
        | Code::Internal => true,
        // Somebody was faster, this manager was behind, or has not heard of the operator yet.
        Code::Aborted | Code::NotFound | Code::Unauthenticated => true,
        Code::Ok
        | Code::InvalidArgument
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss => false,
    }
}
