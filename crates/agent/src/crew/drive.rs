//! Does what a crew says, one task of the agent for each attempt that has one.
//!
//! It answers the task's machine as the effects of a single container do: once with the start,
//! once with the end. A task of the agent that goes away leaves containers as they are; the next
//! process finds them and goes on from there ([`Crews::restore`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use warren_base::tasks::Tasks;
use warren_model::service::{Companion, CompanionName, Privileges};
use warren_model::task::CompanionStatus;
use warren_model::{TaskId, TaskTemplate, Time};

use super::{Answer, Crew, FoundCompanion, Happened, Step};
use crate::cdi::Edits;
use crate::container::{self, Attempt, Parts};
use crate::core::{Order, TaskSpec, companion_id};
use crate::effects::{self, chain};
use crate::task::{Event, Failure, Now};
use crate::worker::Tools;

/// Events that wait for their crew: each container has at most two under way.
const INBOX_MAX: usize = 64;

/// All crews of this node.
#[derive(Debug, Default)]
pub(crate) struct Crews(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// What an earlier process left, until it is taken over or removed.
    found: BTreeMap<(TaskId, u32), Vec<FoundCompanion>>,
    driven: BTreeMap<TaskId, Driven>,
}

#[derive(Debug)]
struct Driven {
    attempt: u32,
    inbox: mpsc::Sender<Happened>,
    /// In the order of the crew.
    names: Vec<CompanionName>,
}

impl Crews {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These were there before this process.
    pub(crate) fn restore(&self, found: Vec<FoundCompanion>) {
        let mut state = self.lock();
        for companion in found {
            let key = (companion.task, companion.attempt);
            state.found.entry(key).or_default().push(companion);
        }
    }

    /// Whether somebody looks after the crew of an attempt.
    pub(crate) fn is_driven(&self, task: TaskId, attempt: u32) -> bool {
        self.lock().driven.get(&task).is_some_and(|driven| driven.attempt == attempt)
    }

    /// The start of an attempt is not wanted any more; nothing, if none is under way.
    pub(crate) async fn halt(&self, task: TaskId, attempt: u32) {
        let inbox = self.inbox(task, attempt);
        if let Some(inbox) = inbox {
            // One that is over has answered.
            let _ = inbox.send(Happened::Halt).await;
        }
    }

    /// A sidecar is to begin anew.
    pub(crate) async fn renew(&self, task: TaskId, attempt: u32, name: &str) {
        if let (Some(at), Some(inbox)) = (self.place(task, name), self.inbox(task, attempt)) {
            let _ = inbox.send(Happened::Ailing { at }).await;
        }
    }

    /// A sidecar that others wait for has answered well.
    pub(crate) async fn ready(&self, task: TaskId, attempt: u32, name: &str) {
        if let (Some(at), Some(inbox)) = (self.place(task, name), self.inbox(task, attempt)) {
            let _ = inbox.send(Happened::Ready { at }).await;
        }
    }

    fn place(&self, task: TaskId, name: &str) -> Option<usize> {
        let state = self.lock();
        let driven = state.driven.get(&task)?;
        driven.names.iter().position(|known| known.as_str() == name)
    }

    fn inbox(&self, task: TaskId, attempt: u32) -> Option<mpsc::Sender<Happened>> {
        let state = self.lock();
        let driven = state.driven.get(&task).filter(|driven| driven.attempt == attempt);
        driven.map(|driven| driven.inbox.clone())
    }

    /// Containers that an attempt may have beside its own, for whoever removes them.
    pub(crate) fn containers(
        &self,
        task: TaskId,
        attempt: u32,
        template: Option<&TaskTemplate>,
    ) -> BTreeSet<String> {
        let found = self.lock().found.remove(&(task, attempt)).unwrap_or_default();
        let found = found.into_iter().map(|companion| companion.name);
        let known = template.into_iter().flat_map(|template| &template.companions);
        let names = found.chain(known.map(|companion| companion.name.clone()));
        names.map(|name| companion_id(task, attempt, &name)).collect()
    }

    /// Takes over what an earlier process left of an attempt.
    fn enter(
        &self,
        order: &Order,
        inbox: mpsc::Sender<Happened>,
        crew: impl FnOnce(&[FoundCompanion]) -> Crew,
    ) -> Crew {
        let mut state = self.lock();
        let (task, attempt) = (order.spec.id, order.attempt);
        let crew = crew(&state.found.remove(&(task, attempt)).unwrap_or_default());
        let names = crew.members.iter().map(|member| member.name.clone()).collect();
        state.driven.insert(task, Driven { attempt, inbox, names });
        crew
    }

    fn leave(&self, task: TaskId, attempt: u32) {
        let mut state = self.lock();
        if state.driven.get(&task).is_some_and(|driven| driven.attempt == attempt) {
            state.driven.remove(&task);
        }
    }
}

/// How a crew begins: with a start, or with what runs.
type Make = fn(&TaskTemplate, &[FoundCompanion], Now) -> (Crew, Vec<Step>);

/// Starts the containers of an attempt.
pub(crate) fn begin(tools: &Arc<Tools>, tasks: &Arc<Tasks>, order: Order, parts: Option<Parts>) {
    run(tools, tasks, order, parts, Crew::begin);
}

/// Looks after the containers of an attempt that an earlier process started.
pub(crate) fn adopt(tools: &Arc<Tools>, tasks: &Arc<Tasks>, order: Order) {
    run(tools, tasks, order, None, Crew::adopt);
}

fn run(tools: &Arc<Tools>, tasks: &Arc<Tasks>, order: Order, parts: Option<Parts>, make: Make) {
    let (inbox, happened) = mpsc::channel(INBOX_MAX);
    let mut steps = Vec::new();
    let crew = tools.crews.enter(&order, inbox.clone(), |found| {
        let (crew, first) = make(&order.spec.template, found, tools.now());
        steps = first;
        crew
    });
    let drive = Drive {
        tools: Arc::clone(tools),
        tasks: Arc::clone(tasks),
        order: Arc::new(order),
        parts,
        crew,
        told: None,
        inbox,
    };
    tasks.spawn("crew", drive.run(happened, steps));
}

struct Drive {
    tools: Arc<Tools>,
    tasks: Arc<Tasks>,
    order: Arc<Order>,
    /// What was prepared; none of one that an earlier process started.
    parts: Option<Parts>,
    crew: Crew,
    told: Option<Arc<Vec<CompanionStatus>>>,
    inbox: mpsc::Sender<Happened>,
}

impl Drive {
    async fn run(mut self, mut happened: mpsc::Receiver<Happened>, first: Vec<Step>) {
        let mut steps = first;
        loop {
            self.carry_out(steps).await;
            if self.crew.is_over() {
                return;
            }
            let wake = self.tools.clock.sleep_until(self.crew.wake_at().unwrap_or(u64::MAX));
            let next = tokio::select! {
                biased;
                // Its sender is here.
                Some(next) = happened.recv() => next,
                () = wake => Happened::Wake,
            };
            self.note(&next).await;
            steps = self.crew.step(next, self.tools.now());
        }
    }

    /// A sidecar that is asked for its health is not well while it is away.
    async fn note(&self, happened: &Happened) {
        let (at, from_ms, ended) = match happened {
            Happened::Started { at, .. } => (*at, self.tools.clock.monotonic_ms(), None),
            // Nobody answers until it runs again.
            Happened::Ended { at, ended } => (*at, u64::MAX, Some(ended)),
            _ => return,
        };
        let Some(member) = self.crew.members.get(at) else { return };
        let (task, lot) = (self.order.spec.id, self.tools.rng.next_u64());
        let asked = self.tools.prober.begin_anew(task, member.name.as_str(), from_ms, lot);
        if let Some(ended) = ended.filter(|_| asked) {
            let text = format!("sidecar `{}` ended: {}", member.name, ended.describe());
            self.answer(Event::SidecarIll(text.into())).await;
        }
    }

    async fn carry_out(&mut self, steps: Vec<Step>) {
        // What became of the containers first: an answer may end the attempt.
        let statuses = self.crew.statuses();
        if self.told.as_ref() != Some(&statuses) {
            self.told = Some(Arc::clone(&statuses));
            self.answer(Event::Companions(statuses)).await;
        }
        for step in steps {
            match step {
                Step::Start(at) => self.start(at),
                Step::Wait(at) => self.wait(Some(at)),
                Step::Probe(at) => self.probe(at),
                Step::WaitMain => self.wait(None),
                Step::StartMain => self.start_main(),
                Step::Stop(at) => self.stop(at),
                Step::Answer(answer) => self.say(answer).await,
            }
        }
    }

    async fn say(&self, answer: Answer) {
        if self.crew.is_over() {
            self.tools.prober.look_away(self.order.spec.id);
            // Whoever is told of it may begin the next attempt.
            self.tools.crews.leave(self.order.spec.id, self.order.attempt);
        }
        self.answer(match answer {
            Answer::Started { pid, when } => Event::Started { pid, at: when },
            Answer::NotStarted(failure) => Event::StartFailed(failure),
            Answer::InitFailed { ended, why } => Event::InitFailed { ended, why },
            Answer::Ending => Event::Ending,
            Answer::Exited(ended) => Event::Exited(ended),
        })
        .await;
    }

    async fn answer(&self, event: Event) {
        effects::answer(&self.tools, &self.order, event, None).await;
    }

    fn start(&self, at: usize) {
        let (tools, order) = (Arc::clone(&self.tools), Arc::clone(&self.order));
        let (parts, inbox) = (self.parts.clone(), self.inbox.clone());
        let Some((name, restarts)) =
            self.crew.members.get(at).map(|member| (member.name.clone(), member.restarts))
        else {
            return;
        };
        self.tasks.spawn_graceful("start companion", async move {
            let started = start(&tools, &order, &name, restarts, parts).await;
            let happened = match started {
                Ok(started) => {
                    tracing::info!(container = %name, pid = started.pid, "container started");
                    let when = container::time(started.at);
                    Happened::Started { at, pid: started.pid, when }
                }
                Err(failure) => {
                    let error = &failure.message;
                    tracing::warn!(container = %name, error, "start container");
                    Happened::NotStarted { at, failure }
                }
            };
            // The agent stops: the next process finds the container.
            let _ = inbox.send(happened).await;
        });
    }

    fn start_main(&self) {
        let (tools, order) = (Arc::clone(&self.tools), Arc::clone(&self.order));
        let (parts, inbox) = (self.parts.clone(), self.inbox.clone());
        self.tasks.spawn_graceful("start", async move {
            let _permit = Arc::clone(&tools.starts).acquire_owned().await.ok();
            let happened = match effects::try_start(&tools, &order, parts).await {
                Ok(started) => {
                    let when = container::time(started.at);
                    Happened::MainStarted { pid: started.pid, when }
                }
                Err(failure) => Happened::MainNotStarted(failure),
            };
            let _ = inbox.send(happened).await;
        });
    }

    fn container(&self, at: usize) -> Option<(String, u64)> {
        let (task, attempt) = (self.order.spec.id, self.order.attempt);
        let name = &self.crew.members.get(at)?.name;
        let companion = self.order.spec.template.companion(name.as_str())?;
        let grace_ms = companion.task.stop_grace_ms.unwrap_or(TaskTemplate::STOP_GRACE_MS);
        Some((companion_id(task, attempt, name), grace_ms))
    }

    /// For a companion, or the task's own container.
    fn wait(&self, of: Option<usize>) {
        let (tools, order) = (Arc::clone(&self.tools), Arc::clone(&self.order));
        let inbox = self.inbox.clone();
        let id = match of {
            None => Some(order.spec.container_id(order.attempt)),
            Some(at) => self.container(at).map(|(id, _)| id),
        };
        let Some(id) = id else { return };
        self.tasks.spawn("wait", async move {
            let ended = effects::end_of(&tools, &id).await;
            let happened = match of {
                None => Happened::MainEnded(ended),
                Some(at) => {
                    tracing::info!(container = id, how = ended.describe(), "container ended");
                    Happened::Ended { at, ended }
                }
            };
            let _ = inbox.send(happened).await;
        });
    }

    /// Its first good answer is told by whoever asks.
    fn probe(&self, at: usize) {
        let Some(member) = self.crew.members.get(at) else { return };
        let (now_ms, lot) = (self.tools.clock.monotonic_ms(), self.tools.rng.next_u64());
        self.tools.prober.watch_sidecar(&self.order, member.name.as_str(), now_ms, lot);
    }

    /// Its end is told by whoever waits for it.
    fn stop(&self, at: usize) {
        let tools = Arc::clone(&self.tools);
        let Some((id, grace_ms)) = self.container(at) else { return };
        self.tasks.spawn("stop", async move {
            let grace = Duration::from_millis(grace_ms);
            let mut failures = 0;
            while let Err(error) = tools.runtime.stop(&id, grace).await {
                if matches!(error, warren_runtime::Error::NotFound(_)) {
                    return;
                }
                tracing::warn!(container = id, error = chain(&error), "stop container");
                effects::pause(&tools, failures).await;
                failures += 1;
            }
        });
    }
}

/// Starts one companion, in place of what may be left under its name.
async fn start(
    tools: &Tools,
    order: &Order,
    name: &CompanionName,
    restarts: u32,
    parts: Option<Parts>,
) -> Result<warren_runtime::Started, Failure> {
    let spec = &order.spec;
    let companion = spec
        .template
        .companion(name.as_str())
        .ok_or_else(|| effects::transient("it is not part of the task".to_owned()))?;
    let _permit = Arc::clone(&tools.starts).acquire_owned().await.ok();
    let id = companion_id(spec.id, order.attempt, name);
    let removed = tools.runtime.remove(&id).await;
    removed
        .map_err(|error| effects::transient(format!("remove what is left: {}", chain(&error))))?;
    let image = effects::find_image(tools, &companion.task.image).await?;
    let sandbox = match parts {
        Some(parts) => parts.sandbox,
        None => effects::attach(tools, order).await?,
    };
    effects::rules_hold(tools, order.generation).await?;
    let attempt = Attempt {
        number: order.attempt,
        restarts,
        last_exit: None,
        at: Time(tools.clock.now_ms()),
    };
    let volumes = image.config.volumes.clone();
    let parts = Parts { image, sandbox, keep: Vec::new(), edits: Edits::default() };
    let mut made = container::companion(
        order,
        companion,
        &effects::facts(tools, order),
        attempt,
        parts,
        &effects::resolver(tools, order).await,
        &tools.companion_log_dir(spec.id, name.as_str()),
    )
    .map_err(|error| effects::permanent(error.to_string()))?;
    let (companion, template) = (Some(name), &companion.task);
    let container = effects::mounts::Container { companion, template, volumes: &volumes };
    effects::mounts::add(tools, order, &container, &mut made).await?;
    effects::start_container(tools, made).await
}

/// Its own, but for the network, which is the task's with its settings.
fn privileges(task: &TaskSpec, companion: &Companion) -> Privileges {
    let all = &task.template.privileges;
    let mut own = companion.task.privileges.clone();
    own.host_network = all.host_network;
    let shared = all.sysctls.iter().filter(|(key, _)| key.starts_with("net."));
    own.sysctls.extend(shared.map(|(key, value)| (key.clone(), value.clone())));
    own
}

/// What a companion's container is made of: its own template, with what is the task's.
pub(crate) fn merged(task: &TaskSpec, companion: &Companion) -> TaskTemplate {
    TaskTemplate {
        hostname: task.template.hostname.clone(),
        container_labels: task.template.container_labels.clone(),
        log: task.template.log,
        privileges: privileges(task, companion),
        ..companion.task.clone()
    }
}
