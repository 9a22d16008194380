//! A node's worker: holds what managers assigned, runs it, reports what it sees.
//!
//! ```text
//! session ──assignment──▶ core (pure: assignments, reconcile, task, published, report)
//!    ▲                      │ effects
//!    └──reports── worker ◀──┘──▶ runtime · net · images
//! ```
//!
//! Containers belong to nobody's process: they run on while the agent is away,
//! and a new one finds its tasks by the labels of their containers. With the
//! managers gone, tasks are kept running and restarted all the same.
//!
//! Not here: health checks, secrets, volumes, the way to a manager
//! ([`Connect`] is the caller's).

pub mod assignments;
mod container;
pub mod core;
mod doctor;
mod effects;
pub mod fake;
mod ports;
pub mod published;
mod reconcile;
pub mod report;
mod restart;
mod seams;
mod session;
mod stream;
mod table;
pub mod task;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use warren_base::clock::Clock;
use warren_base::rng::Rng;
use warren_base::tasks::Tasks;
use warren_model::NodeId;
use warren_model::TaskTemplate;
use warren_model::node::Description;
use warren_runtime::{ContainerState, Runtime};

pub use crate::seams::{Archive, Images, Network};
pub use crate::session::{Connect, ConnectError};

use crate::container::Listed;
use crate::core::Core;
use crate::ports::{Claimant, Ports};
use crate::session::Session;
use crate::worker::{INBOX_MAX, Message, Tools, Worker};

/// How long effects under way may take when the agent stops; their containers
/// are found again in any case.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// What an agent is made of.
pub struct Options {
    pub node_id: NodeId,
    pub description: Description,
    pub runtime: Arc<dyn Runtime>,
    pub images: Arc<dyn Images>,
    pub network: Arc<dyn Network>,
    /// Holds `logs/<task id>`.
    pub data_dir: PathBuf,
    /// The cluster's container pool, for `doctor`.
    pub pool: (Ipv4Addr, u8),
    pub clock: Arc<dyn Clock>,
    pub rng: Arc<dyn Rng>,
    pub connect: Arc<dyn Connect>,
}

/// Why an agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("list the containers of this node")]
    List(#[source] warren_runtime::Error),
}

/// A running agent. Dropping it ends its tasks, not its containers.
pub struct Agent {
    tools: Arc<Tools>,
    tasks: Arc<Tasks>,
}

impl Agent {
    /// Takes over what an earlier process left, then connects.
    ///
    /// # Errors
    /// [`Error::List`] when the runtime does not say what is there: starting blind would start
    /// everything a second time.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let tasks = Arc::new(Tasks::new());
        let (inbox, messages) = mpsc::channel(INBOX_MAX);
        let ports = Ports::new(Arc::clone(&options.network), Arc::clone(&options.runtime));
        let tools = Arc::new(Tools {
            node: options.node_id,
            pool: options.pool,
            runtime: options.runtime,
            images: options.images,
            network: options.network,
            ports,
            clock: options.clock,
            data_dir: options.data_dir,
            starts: Arc::new(Semaphore::new(worker::STARTS_MAX)),
            pulls: Semaphore::new(worker::PULLS_MAX),
            removals: Semaphore::new(worker::REMOVALS_MAX),
            streams: Semaphore::new(stream::STREAMS_MAX),
            inbox,
            stopping: CancellationToken::new(),
        });
        let listed = tools.runtime.list().await.map_err(Error::List)?;
        let mut strangers = Vec::new();
        let mut ours = Vec::new();
        for info in listed {
            match container::parse_labels(&info) {
                Some(listed) => ours.push(listed),
                None => strangers.push(info.id),
            }
        }
        adopt(&tools, &ours).await;
        let running = ours.iter().filter(|listed| listed.pid().is_some());
        let images = running.map(|listed| (listed.task, listed.image_id.clone())).collect();
        let found = core::group(ours.into_iter().map(|listed| (listed.task, listed.found)));
        tracing::info!(tasks = found.len(), "found on this node");
        let reconnect = Arc::new(Notify::new());
        let worker = Worker::new(
            Arc::clone(&tools),
            Core::new(found),
            Arc::clone(&tasks),
            Arc::clone(&reconnect),
            strangers,
            images,
        );
        tasks.spawn("worker", worker.run(messages));
        let session = Session {
            tools: Arc::clone(&tools),
            tasks: Arc::clone(&tasks),
            connect: options.connect,
            rng: options.rng,
            description: options.description,
            reconnect,
        };
        tasks.spawn("session", session.run());
        Ok(Self { tools, tasks })
    }

    /// Ends the agent. Containers keep running, unless `with_containers`: then they are stopped
    /// and removed, to be started anew by the next agent.
    pub async fn stop(self, with_containers: bool) {
        let (reply, graces) = oneshot::channel();
        self.tools.tell(Message::Stop(reply)).await;
        let graces = graces.await.unwrap_or_default();
        self.tools.stopping.cancel();
        if !self.tasks.stop(STOP_GRACE).await {
            tracing::warn!("some work did not end in time");
        }
        if with_containers {
            stop_containers(&self.tools, &graces).await;
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.tools.stopping.cancel();
        self.tasks.stopping().cancel();
    }
}

/// Links, addresses and ports of running containers are known again before anything new is done.
async fn adopt(tools: &Tools, ours: &[Listed]) {
    let running = ours.iter().filter_map(|listed| Some((listed, listed.pid()?)));
    let mut keep = Vec::new();
    for (listed, pid) in running {
        let id = listed.task.to_string();
        if let Some(address) = listed.address
            && let Err(error) = tools.network.adopt(&id, address, pid).await
        {
            tracing::warn!(task = id, error = effects::chain(&error), "adopt network");
        }
        let who = Claimant {
            task: listed.task,
            service: listed.service,
            service_name: listed.service_name.clone(),
        };
        let container = core::container_id(listed.task, listed.found.attempt);
        tools.ports.adopt(&who, &container, &listed.claims).await;
        keep.push(id);
    }
    if let Err(error) = tools.network.sweep(&keep).await {
        tracing::warn!(error = effects::chain(&error), "sweep the network");
    }
}

async fn stop_containers(tools: &Tools, graces: &BTreeMap<String, u64>) {
    let listed = match tools.runtime.list().await {
        Ok(listed) => listed,
        Err(error) => {
            tracing::error!(error = effects::chain(&error), "list containers to stop");
            return;
        }
    };
    let stops = listed.iter().map(|info| async {
        let grace_ms = graces.get(&info.id).copied().unwrap_or(TaskTemplate::STOP_GRACE_MS);
        if matches!(info.state, ContainerState::Running { .. })
            && let Err(error) = tools.runtime.stop(&info.id, Duration::from_millis(grace_ms)).await
        {
            tracing::warn!(container = info.id, error = effects::chain(&error), "stop");
        }
        // Without its container the task begins a fresh attempt next time: our stop is no crash.
        if let Err(error) = tools.runtime.remove(&info.id).await {
            tracing::warn!(container = info.id, error = effects::chain(&error), "remove");
        }
    });
    futures::future::join_all(stops).await;
    if let Err(error) = tools.network.sweep(&[]).await {
        tracing::warn!(error = effects::chain(&error), "sweep the network");
    }
}
