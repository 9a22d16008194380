//! The agent's line to the managers: one session, kept up for as long as the
//! agent lives, with whichever manager serves.
//!
//! Says hello with what it holds, takes assignments, sends reports and beats,
//! opens a tunnel for each stream asked for. A session that ends, or whose
//! manager falls silent, is followed at once by one with another manager; only
//! when all were tried is there a short, growing, jittered pause. What runs goes
//! on meanwhile.
//!
//! The manager of this process is one of them, and preferred while it has a
//! leader. Which one is next is decided in `route`, when one is silent in
//! `pulse`.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::transport::Channel;
use warren_base::clock::Clock;
use warren_base::rng::Rng;
use warren_base::tasks::Tasks;
use warren_model::node::Description;

use crate::assignments::Gap;
use crate::core::Input;
use crate::effects::chain;
use crate::membership::MembershipView;
use crate::metrics::{Metrics, count};
use crate::pulse::BEAT_MS;
use crate::route::{CONNECT_MAX_MS, LocalManager, ManagerAddress, Route, SILENCE_MS};
use crate::worker::{Message, Tools};

mod line;

use line::Line;

/// A session that ends sooner was none: two nodes that push each other out of their sessions must
/// not do so without a pause.
const STABLE_MS: u64 = 1_000;
/// The manager of this process must have had a leader for so long before a session moves back to
/// it: elections come in bursts.
const RETURN_MS: u64 = 5_000;
/// Rounds that bring nothing before it is a warning.
const QUIET_ROUNDS: u32 = 4;
/// Metadata of a refusal: this node was removed for good.
const REMOVED: &str = "warren-removed";

/// Why no manager could be reached.
pub type ConnectError = Box<dyn std::error::Error + Send + Sync>;

/// How to get a channel to a manager, and what to remember of managers.
#[async_trait]
pub trait Connect: Send + Sync + 'static {
    /// Resolves with a channel that may be used at once. Dropped when it takes too long.
    ///
    /// # Errors
    /// Whatever kept the channel from being made; it is logged, and another manager is tried.
    async fn connect(&self, manager: &ManagerAddress) -> Result<Channel, ConnectError>;

    /// The managers are at these addresses now: to be given to the next agent of this node as
    /// [`crate::Options::managers`].
    async fn remember(&self, _managers: &[String]) {}
}

/// Everything a session needs.
pub(crate) struct Session {
    pub(crate) tools: Arc<Tools>,
    pub(crate) tasks: Arc<Tasks>,
    pub(crate) connect: Arc<dyn Connect>,
    pub(crate) rng: Arc<dyn Rng>,
    pub(crate) description: Description,
    /// Random, of this life of the agent.
    pub(crate) instance: u64,
    pub(crate) managers: Vec<String>,
    pub(crate) local: watch::Receiver<LocalManager>,
    pub(crate) membership: watch::Receiver<Option<MembershipView>>,
    pub(crate) gaps: mpsc::Receiver<Gap>,
    /// With whom there is a session.
    pub(crate) manager: watch::Sender<Option<ManagerAddress>>,
    pub(crate) removed: watch::Sender<bool>,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("connect to a manager")]
    Connect(#[source] ConnectError),
    #[error("a manager did not answer within {for_ms} ms")]
    Silent { for_ms: u64 },
    #[error("session with a manager")]
    Session(#[from] tonic::Status),
    #[error("manager closed the session")]
    Closed,
    #[error("what came cannot be taken")]
    Gap(#[from] Gap),
    #[error("this node has something new to say of itself")]
    Described,
    #[error("the manager of this node has no leader")]
    Leaderless,
    #[error("the manager of this node has a leader again")]
    Returns,
    #[error("this node was removed from the cluster")]
    Removed,
    #[error("agent is stopping")]
    Stopping,
}

impl End {
    /// Whether others should be tried before that manager.
    fn is_failure(&self) -> bool {
        match self {
            Self::Returns | Self::Described | Self::Gap(Gap::Missed { .. }) => false,
            Self::Connect(_)
            | Self::Silent { .. }
            | Self::Session(_)
            | Self::Closed
            | Self::Gap(Gap::Older { .. })
            | Self::Leaderless
            | Self::Removed
            | Self::Stopping => true,
        }
    }
}

/// What `status` means to a node.
fn refusal(status: tonic::Status) -> End {
    if status.metadata().get(REMOVED).is_some_and(|value| value == "1") {
        return End::Removed;
    }
    End::Session(status)
}

impl Session {
    fn metrics(&self) -> &Metrics {
        &self.tools.metrics
    }

    fn now_ms(&self) -> u64 {
        self.tools.clock.monotonic_ms()
    }

    /// Over all addresses that are known when it begins: of the caller and of what was kept.
    fn route(&self) -> Route {
        let mut addresses = self.managers.clone();
        if let Some(view) = self.membership.borrow().as_ref() {
            addresses.extend(view.managers.iter().cloned());
        }
        Route::new(&addresses, || self.rng.next_u64())
    }

    /// Runs until the agent stops or the node was removed.
    pub(crate) async fn run(mut self) {
        let mut route = self.route();
        let mut last = None;
        loop {
            let local = *self.local.borrow();
            let Some(manager) = route.next(local, self.now_ms()) else {
                if self.pause(&mut route).await.is_err() {
                    return;
                }
                continue;
            };
            let mut opened = None;
            let patience_ms = route.patience_ms();
            let end = match self.once(&manager, patience_ms, &mut last, &mut opened).await {
                Ok(never) => match never {},
                Err(end) => end,
            };
            self.manager.send_replace(None);
            self.tools.channel.send_replace(None);
            match end {
                End::Stopping => return,
                End::Removed => return self.leave(&manager).await,
                End::Connect(_) | End::Silent { .. } | End::Session(_) | End::Closed => {}
                End::Gap(_) | End::Leaderless | End::Returns | End::Described => {}
            }
            self.judge(&mut route, &manager, &end, opened);
            self.learn(&mut route);
        }
    }

    fn judge(&self, route: &mut Route, manager: &ManagerAddress, end: &End, opened: Option<u64>) {
        let now_ms = self.now_ms();
        if opened.is_some_and(|at| now_ms.saturating_sub(at) >= STABLE_MS) {
            route.good(manager);
        }
        if end.is_failure() {
            route.failed(manager, now_ms);
        }
        let error = chain(end);
        if opened.is_none() {
            count(&self.metrics().attempts_failed, 1);
        }
        if matches!(end, End::Described) {
            tracing::debug!(%manager, "another session, to say what is new");
        } else if opened.is_some() || route.rounds() >= QUIET_ROUNDS {
            tracing::warn!(%manager, error, "no session with a manager");
        } else {
            tracing::debug!(%manager, error, "no session with a manager");
        }
    }

    /// Managers may be others by now.
    fn learn(&mut self, route: &mut Route) {
        if !self.membership.has_changed().unwrap_or(false) {
            return;
        }
        let told = self.membership.borrow_and_update().clone();
        // A cluster without managers says nothing: it is a mistake.
        if let Some(view) = told.filter(|view| !view.managers.is_empty()) {
            route.set(&view.managers, || self.rng.next_u64());
        }
    }

    /// Everybody was tried: waits a little, or until the manager of this process may serve.
    async fn pause(&mut self, route: &mut Route) -> Result<(), End> {
        let rounds = route.rounds();
        let most = route.end_round();
        let pause_ms = most / 2 + self.rng.below(most / 2 + 1);
        if rounds == QUIET_ROUNDS {
            tracing::warn!("no manager serves this node; what runs goes on");
        }
        let mut local = self.local.clone();
        let may_come = *local.borrow() != LocalManager::Led;
        let led = async {
            if local.wait_for(|local| *local == LocalManager::Led).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = self.tools.stopping.cancelled() => Err(End::Stopping),
            () = self.tools.clock.sleep(pause_ms) => Ok(()),
            () = led, if may_come => Ok(()),
        }
    }

    async fn leave(&self, manager: &ManagerAddress) {
        tracing::error!(%manager, "this node was removed from the cluster");
        self.tools.tell(Message::Input(Box::new(Input::Removed))).await;
        self.removed.send_replace(true);
    }

    /// One session from hello to its end; `opened` says when it was up.
    async fn once(
        &mut self,
        manager: &ManagerAddress,
        patience_ms: u64,
        last: &mut Option<ManagerAddress>,
        opened: &mut Option<u64>,
    ) -> Result<std::convert::Infallible, End> {
        let silent = || End::Silent { for_ms: patience_ms };
        let connecting = self.connect.connect(manager);
        let channel = tokio::select! {
            channel = connecting => channel.map_err(End::Connect)?,
            () = self.tools.clock.sleep(patience_ms.min(CONNECT_MAX_MS)) => return Err(silent()),
            () = self.tools.stopping.cancelled() => return Err(End::Stopping),
        };
        let (reply, held) = oneshot::channel();
        self.tools.tell(Message::Hello(reply)).await;
        let held = held.await.map_err(|_| End::Stopping)?;
        // Of the session before: what is held is what was just told.
        while self.gaps.try_recv().is_ok() {}
        let mut line = tokio::select! {
            line = Line::open(self, channel, held, patience_ms) => line?,
            () = self.tools.clock.sleep(patience_ms) => return Err(silent()),
            () = self.tools.stopping.cancelled() => return Err(End::Stopping),
        };
        *opened = Some(self.now_ms());
        count(&self.metrics().sessions_opened, 1);
        if last.replace(manager.clone()).is_some_and(|before| before != *manager) {
            count(&self.metrics().switches, 1);
        }
        self.manager.send_replace(Some(manager.clone()));
        tracing::info!(%manager, revision = held.revision, epoch = held.epoch, "session with a manager");
        let is_local = *manager == ManagerAddress::Local;
        let elsewhere = better(is_local, self.local.clone(), Arc::clone(&self.tools.clock));
        let stopping = self.tools.stopping.clone();
        tokio::select! {
            ended = line.run(self) => ended,
            end = elsewhere => Err(end),
            () = stopping.cancelled() => Err(End::Stopping),
        }
    }
}

/// Resolves when another manager is to be preferred to the present one: when that of this process
/// has lost its leader for good, or has one again and is not the present one.
async fn better(
    is_local: bool,
    mut local: watch::Receiver<LocalManager>,
    clock: Arc<dyn Clock>,
) -> End {
    let (for_ms, end) =
        if is_local { (SILENCE_MS, End::Leaderless) } else { (RETURN_MS, End::Returns) };
    loop {
        let state = *local.borrow_and_update();
        if is_local && state == LocalManager::Absent {
            return end;
        }
        let since = clock.sleep(for_ms);
        let calls = (state == LocalManager::Led) != is_local;
        let changed = tokio::select! {
            () = since, if calls => return end,
            changed = local.changed() => changed,
        };
        if changed.is_err() {
            // Nobody is left to change it.
            if !calls {
                std::future::pending::<()>().await;
            }
            clock.sleep(for_ms).await;
            return end;
        }
    }
}
