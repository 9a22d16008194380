//! The one loop that meets the world: feeds [`Core`], does what it says.
//!
//! Every effect runs on a supervised task of its own and answers with a
//! [`Message`]; order within a task is the machine's business. Effects that
//! must succeed in the end (remove, detach) are insisted upon with growing
//! pauses. Nothing here ticks: the loop sleeps until a message or a moment that
//! the core named.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use warren_base::tasks::Tasks;
use warren_model::{NodeTable, TaskId, TaskTemplate};
use warren_proto::v1;

use crate::assignments::Gap;
use crate::cache::{Cache, Cached, Changed, Pace};
use crate::container::Parts;
use crate::core::{Command, Core, Input, Order, TaskView, VolumeUser};
use crate::crew;
use crate::doctor::Map;
use crate::effects;
use crate::membership::MembershipView;
use crate::metrics::count;
use crate::published::PortKey;
use crate::session::Connect;
use crate::task::{Effect, Event, Now};

mod tools;

pub(crate) use tools::{Progressed, Tools};

/// Containers being started at once: enough to keep two dozen cores busy, few
/// enough that the first of a hundred does not wait for the last.
pub(crate) const STARTS_MAX: usize = 16;
/// Images being pulled at once; the store takes care of layers and duplicates.
pub(crate) const PULLS_MAX: usize = 8;
/// Containers being removed at once: mostly unmounting, which the kernel serialises anyway.
pub(crate) const REMOVALS_MAX: usize = 16;
/// Messages waiting for the loop; senders wait when it is full.
pub(crate) const INBOX_MAX: usize = 1024;

/// What arrives at the loop.
pub(crate) enum Message {
    Input(Box<Input>),
    /// A task's preparation is complete; what it gathered is for the start.
    Prepared {
        task: TaskId,
        attempt: u32,
        claimed: BTreeSet<PortKey>,
        parts: Box<Parts>,
        permit: OwnedSemaphorePermit,
    },
    /// A session begins: what do we hold?
    Hello(oneshot::Sender<Holding>),
    /// A session is up; reports go here.
    Session {
        reports: mpsc::Sender<v1::AgentMessage>,
        resumed: bool,
    },
    Task(TaskId, oneshot::Sender<Option<TaskView>>),
    Images(oneshot::Sender<Pins>),
    /// Whose volumes must not be removed.
    VolumeUsers(oneshot::Sender<Vec<VolumeUser>>),
    /// How many tasks managers do not know any more, and for how long they run on.
    Forgotten(oneshot::Sender<Option<(usize, Option<u64>)>>),
    /// What cannot be done for networks.
    Troubles(oneshot::Sender<Vec<String>>),
    /// Who and where the other nodes are.
    Map(oneshot::Sender<Map>),
    /// What is to be kept was written, or was not.
    Kept {
        ok: bool,
    },
    /// The loop ends; answers with the grace periods of what runs.
    Stop(oneshot::Sender<BTreeMap<String, u64>>),
}

/// What a node tells of itself in its hello.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Holding {
    /// 0: nothing that can be gone on from.
    pub(crate) revision: u64,
    pub(crate) epoch: u64,
}

/// Images that must not be removed.
#[derive(Debug)]
pub(crate) struct Pins {
    /// Ids of those that containers run on or are about to.
    pub(crate) running: BTreeSet<String>,
    /// References of init containers and sidecars, which may run.
    pub(crate) beside: BTreeSet<String>,
    /// References that tasks of this node name.
    pub(crate) wanted: BTreeSet<String>,
}

/// What the worker keeps for a task between effects.
#[derive(Default)]
struct Live {
    preparing: Option<effects::Preparing>,
    parts: Option<Parts>,
    permit: Option<OwnedSemaphorePermit>,
}

pub(crate) struct Worker {
    pub(crate) tools: Arc<Tools>,
    pub(crate) core: Core,
    pub(crate) tasks: Arc<Tasks>,
    pub(crate) connect: Arc<dyn Connect>,
    /// What came and could not be taken, for the session.
    pub(crate) gaps: mpsc::Sender<Gap>,
    pub(crate) membership: watch::Sender<Option<MembershipView>>,
    pub(crate) tables: watch::Sender<Arc<NodeTable>>,
    pub(crate) cache: Cache,
    /// Containers in nobody's name: removed with the first complete set.
    pub(crate) strangers: Vec<String>,
    /// Ids of the images that tasks run on.
    pub(crate) images: BTreeMap<TaskId, String>,
    pub(crate) state: State,
}

/// What a worker begins without.
#[derive(Default)]
pub(crate) struct State {
    live: BTreeMap<TaskId, Live>,
    pace: Pace,
    /// Of writing: what is newer must come last.
    turn: Arc<tokio::sync::Mutex<()>>,
    reports: Option<mpsc::Sender<v1::AgentMessage>>,
    removed: bool,
}

impl Worker {
    /// Runs until it is told to stop.
    pub(crate) async fn run(mut self, mut inbox: mpsc::Receiver<Message>) {
        self.note_changes(self.tools.clock.monotonic_ms());
        // Containers that run already go by what was kept until managers say otherwise.
        self.handle(Input::Wake);
        loop {
            let now_ms = self.tools.clock.monotonic_ms();
            let report_at = self.core.report_due_at().filter(|_| self.state.reports.is_some());
            let report_due = report_at.is_some_and(|at| at <= now_ms);
            let later = report_at.filter(|_| !report_due);
            let write_at = self.state.pace.due_ms();
            if write_at.is_some_and(|at| at <= now_ms) {
                self.keep();
                continue;
            }
            let wishes = [self.core.wake_at(), later, write_at];
            let wake_at = wishes.into_iter().flatten().min().unwrap_or(u64::MAX);
            let sleep = self.tools.clock.sleep_until(wake_at);
            tokio::select! {
                biased;
                permit = reserve(self.state.reports.clone()), if report_due => match permit {
                    Some(permit) => send_report(&mut self.core, permit, now_ms),
                    None => self.state.reports = None,
                },
                message = inbox.recv() => match message {
                    None => return,
                    Some(message) => if self.receive(message).is_break() { return },
                },
                () = sleep => self.handle(Input::Wake),
            }
        }
    }

    fn graces(&self) -> BTreeMap<String, u64> {
        let up = self.core.up().into_iter();
        up.filter_map(|(task, attempt)| {
            let spec = self.core.task(task)?.spec;
            let grace_ms = spec.template.stop_grace_ms.unwrap_or(TaskTemplate::STOP_GRACE_MS);
            Some((spec.container_id(attempt), grace_ms))
        })
        .collect()
    }

    fn receive(&mut self, message: Message) -> ControlFlow<()> {
        // An answer that nobody waits for any more is no loss.
        match message {
            Message::Input(input) => self.handle(*input),
            Message::Prepared { task, attempt, claimed, parts, permit } => {
                if let Some(live) = self.state.live.get_mut(&task) {
                    self.images.insert(task, parts.image.id.clone());
                    live.parts = Some(*parts);
                    live.permit = Some(permit);
                }
                let event = Event::Prepared;
                self.handle(Input::Done { task, attempt, event, claimed: Some(claimed) });
            }
            Message::Hello(reply) => {
                let (revision, epoch) = (self.core.revision(), self.core.epoch());
                let _ = reply.send(Holding { revision, epoch });
            }
            Message::Session { reports, resumed } => {
                self.state.reports = Some(reports);
                self.handle(Input::Opened);
                if resumed {
                    self.handle(Input::Resumed);
                }
            }
            Message::Task(task, reply) => {
                let _ = reply.send(self.core.task(task));
            }
            Message::Images(reply) => {
                let running = self.images.values().cloned().collect();
                let beside = self.core.companion_images();
                let _ = reply.send(Pins { running, beside, wanted: self.core.images() });
            }
            Message::VolumeUsers(reply) => {
                let _ = reply.send(self.core.volume_users());
            }
            Message::Forgotten(reply) => {
                let _ = reply.send(self.core.forgotten(self.tools.now()));
            }
            Message::Troubles(reply) => {
                let _ = reply.send(self.core.troubles());
            }
            Message::Map(reply) => {
                let _ = reply.send(self.core.map());
            }
            Message::Kept { ok } => {
                let metrics = &self.tools.metrics;
                count(if ok { &metrics.cache_writes } else { &metrics.cache_failures }, 1);
                self.state.pace.done(ok, self.tools.clock.monotonic_ms());
            }
            Message::Stop(reply) => {
                // The next process goes on with the leases of this one.
                if self.state.pace.is_behind() || self.core.has_leases() {
                    self.keep();
                }
                let _ = reply.send(self.graces());
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    /// Writes what is held, off the loop: the disk may take its time.
    fn keep(&mut self) {
        self.state.pace.begin(self.tools.clock.monotonic_ms());
        // Of a node that was removed nothing is to be left.
        let cached = (!self.state.removed).then(|| self.core.cached(self.tools.now()));
        let (cache, tools) = (self.cache.clone(), Arc::clone(&self.tools));
        let turn = Arc::clone(&self.state.turn);
        self.tasks.spawn_graceful("keep", async move {
            let in_turn = turn.lock().await;
            let ok = write(cache, cached).await;
            drop(in_turn);
            tools.tell(Message::Kept { ok }).await;
        });
    }

    fn handle(&mut self, input: Input) {
        let now = self.tools.now();
        let assigned = matches!(input, Input::Assigned(_));
        if input == Input::Removed {
            self.state.removed = true;
            self.state.pace.changed(Changed::Set, now.mono_ms);
        }
        let refused = self.carry_out(input, now);
        if assigned && !refused {
            count(&self.tools.metrics.assignments_applied, 1);
        }
        self.note_changes(now.mono_ms);
    }

    /// What changed is written when its time comes.
    fn note_changes(&mut self, now_ms: u64) {
        if let Some(what) = self.core.take_changed() {
            self.state.pace.changed(what, now_ms);
        }
    }

    /// Says whether an assignment was refused.
    fn carry_out(&mut self, input: Input, now: Now) -> bool {
        let mut refused = false;
        for command in self.core.handle(input, now) {
            match command {
                Command::Do(order) => self.execute(*order),
                Command::Apply { generation, table } => {
                    let tools = Arc::clone(&self.tools);
                    self.tasks.spawn_graceful("apply", async move {
                        effects::apply(&tools, generation, table).await;
                    });
                }
                Command::Hold(wanted) => {
                    let tools = Arc::clone(&self.tools);
                    self.tasks.spawn_graceful("hold", async move {
                        effects::hold(&tools, &wanted).await;
                    });
                }
                Command::Resolve(name) => {
                    let tools = Arc::clone(&self.tools);
                    self.tasks.spawn("resolve", async move {
                        effects::resolve(&tools, name).await;
                    });
                }
                Command::Admit(askers) => {
                    let tools = Arc::clone(&self.tools);
                    self.tasks.spawn_graceful("admit", async move {
                        effects::readmit(&tools, askers).await;
                    });
                }
                Command::Discard { task, attempts } => {
                    self.images.remove(&task);
                    tracing::info!(task_id = %task, ?attempts, "removing containers of an unknown task");
                    let tools = Arc::clone(&self.tools);
                    self.tasks.spawn_graceful("discard", async move {
                        effects::clean(&tools, task, &attempts, None, None).await;
                    });
                }
                Command::SweepLogs { keep } => {
                    let tools = Arc::clone(&self.tools);
                    let strangers = std::mem::take(&mut self.strangers);
                    self.tasks.spawn_graceful("sweep", async move {
                        effects::sweep(&tools, &keep, strangers).await;
                    });
                }
                Command::Reconnect(gap) => {
                    refused = true;
                    count(&self.tools.metrics.assignments_refused, 1);
                    tracing::warn!(%gap, "assignment is not taken");
                    // One is enough to end a session.
                    let _ = self.gaps.try_send(gap);
                }
                Command::Membership(view) => self.joined(*view),
                Command::Table(table) => drop(self.tables.send_replace(table)),
                Command::Note(text) => tracing::warn!("{text}"),
            }
        }
        refused
    }

    /// What managers say of the cluster and of this node.
    fn joined(&mut self, view: MembershipView) {
        let before = self.membership.borrow().as_ref().map(|view| view.managers.clone());
        if !view.managers.is_empty() && before.as_ref() != Some(&view.managers) {
            let (connect, managers) = (Arc::clone(&self.connect), view.managers.clone());
            self.tasks.spawn_graceful("remember", async move {
                connect.remember(&managers).await;
            });
        }
        self.membership.send_replace(Some(view));
    }

    fn execute(&mut self, order: Order) {
        let task = order.spec.id;
        // Whatever is told while it is done is about this task.
        let _entered = span_of(&order).entered();
        let tools = Arc::clone(&self.tools);
        match order.effect.clone() {
            Effect::Prepare => {
                let live = self.state.live.entry(task).or_default();
                live.parts = None;
                live.permit = None;
                let (preparing, guard) = effects::Preparing::new();
                let cancel = preparing.cancel.clone();
                live.preparing = Some(preparing);
                self.tasks.spawn_graceful("prepare", async move {
                    effects::prepare(&tools, order, &cancel).await;
                    drop(guard);
                });
            }
            Effect::Start => {
                let live = self.state.live.entry(task).or_default();
                let parts = live.parts.clone();
                let permit = live.permit.take();
                if has_crew(&order) {
                    // Each of its containers waits for its own turn.
                    return crew::begin(&tools, &self.tasks, order, parts);
                }
                self.tasks.spawn_graceful("start", async move {
                    effects::start(&tools, order, parts, permit).await;
                });
            }
            Effect::Halt => {
                self.tasks.spawn("halt", async move {
                    tools.crews.halt(task, order.attempt).await;
                });
            }
            Effect::Wait => {
                if let Some(live) = self.state.live.get_mut(&task) {
                    live.parts = None;
                }
                if has_crew(&order) {
                    if !tools.crews.is_driven(task, order.attempt) {
                        crew::adopt(&tools, &self.tasks, order);
                    }
                    return;
                }
                self.tasks.spawn("wait", async move { effects::wait(&tools, &order).await });
            }
            Effect::Stop { grace_ms } => {
                self.tasks.spawn("stop", async move {
                    effects::stop(&tools, &order, grace_ms).await;
                });
            }
            Effect::Clear { attempt } => {
                self.tasks.spawn_graceful("clear", async move {
                    effects::clear(&tools, &order, attempt).await;
                });
            }
            Effect::Watch { known, ran_ms } => {
                let (now_ms, lot) = (tools.clock.monotonic_ms(), tools.rng.next_u64());
                tools.prober.watch(&order, known, ran_ms, now_ms, lot);
            }
            Effect::LookAway => tools.prober.look_away(task),
            Effect::Claim => {
                self.tasks.spawn_graceful("claim", async move {
                    effects::claim(&tools, &order).await;
                });
            }
            Effect::Release => {
                self.images.remove(&task);
                let preparing = self.state.live.remove(&task).and_then(|live| live.preparing);
                self.tasks.spawn_graceful("release", async move {
                    effects::release(&tools, &order, preparing).await;
                });
            }
            Effect::Clean { attempts } => {
                self.images.remove(&task);
                let preparing = self.state.live.remove(&task).and_then(|live| live.preparing);
                self.tasks.spawn_graceful("clean", async move {
                    let template = Some(&*order.spec.template);
                    if effects::clean(&tools, task, &attempts, template, preparing).await {
                        effects::answer(&tools, &order, Event::Cleaned, Some(BTreeSet::new()))
                            .await;
                    }
                });
            }
        }
    }
}

/// Whether more than one container belongs to its task.
fn has_crew(order: &Order) -> bool {
    !order.spec.template.companions.is_empty()
}

/// Around an effect and its traces; says what begins.
fn span_of(order: &Order) -> tracing::Span {
    let (task_id, service_id) = (order.spec.id, order.spec.service);
    let attempt = order.attempt;
    let span = tracing::info_span!("container", %task_id, %service_id, attempt);
    span.in_scope(|| match order.effect {
        Effect::Prepare if attempt > 1 => {
            tracing::info!(restarts = order.restarts, "restarting container");
        }
        Effect::Stop { grace_ms } => tracing::info!(grace_ms, "stopping container"),
        Effect::Prepare
        | Effect::Start
        | Effect::Halt
        | Effect::Wait
        | Effect::Clear { .. }
        | Effect::Claim
        | Effect::Watch { .. }
        | Effect::LookAway
        | Effect::Release
        | Effect::Clean { .. } => tracing::debug!(effect = ?order.effect, "effect"),
    });
    span
}

/// Replaces or removes what is on disk; says whether that worked.
async fn write(cache: Cache, cached: Option<Cached>) -> bool {
    let write = move || match cached {
        Some(cached) => cache.write(&cached),
        None => cache.remove(),
    };
    match tokio::task::spawn_blocking(write).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::error!(error = effects::chain(&error), "assignments are not kept");
            false
        }
        Err(_) => {
            tracing::error!("assignments are not kept: the write was interrupted");
            false
        }
    }
}

/// Room for one message in the line to the manager; `None` when there is no line.
async fn reserve(
    reports: Option<mpsc::Sender<v1::AgentMessage>>,
) -> Option<mpsc::OwnedPermit<v1::AgentMessage>> {
    reports?.reserve_owned().await.ok()
}

fn send_report(core: &mut Core, permit: mpsc::OwnedPermit<v1::AgentMessage>, now_ms: u64) {
    let statuses = core.outbox().take(now_ms).into_iter().map(|(task, status)| {
        let status = Some(v1::TaskStatus::from(&status));
        v1::agent_message::Status { task: task.as_bytes().to_vec(), status }
    });
    let statuses = statuses.collect();
    let through = core.outbox().take_through().unwrap_or(0);
    let report = v1::agent_message::Report { statuses, through, ..Default::default() };
    let kind = Some(v1::agent_message::Kind::Report(report));
    permit.send(v1::AgentMessage { kind });
}
