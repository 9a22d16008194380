//! What effects and streams work with.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use warren_base::clock::Clock;
use warren_base::rng::Rng;
use warren_model::quantity::Time;
use warren_model::{NodeId, TaskId};
use warren_runtime::Runtime;

use super::Message;
use crate::cdi;
use crate::crew::Crews;
use crate::cuts::Cuts;
use crate::effects;
use crate::health::{Prober, Probes};
use crate::metrics::Metrics;
use crate::names::Names;
use crate::parted::Parted;
use crate::ports::Ports;
use crate::rotation::{Said, Wish};
use crate::route::ManagerAddress;
use crate::seams::{Images, Network};
use crate::task::Now;
use crate::tunnel::Tunnel;
use crate::underlay::Resolve;
use crate::volumes::Volumes;

/// The hands of the agent, shared by effects and streams.
pub(crate) struct Tools {
    pub(crate) node: NodeId,
    /// As templates of containers see it.
    pub(crate) hostname: String,
    pub(crate) architecture: String,
    pub(crate) pool: (Ipv4Addr, u8),
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) images: Arc<dyn Images>,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) names: Option<Arc<dyn Names>>,
    pub(crate) tunnel: Option<Arc<dyn Tunnel>>,
    /// Where the name server itself listens.
    pub(crate) name_server: Option<SocketAddrV4>,
    pub(crate) resolve: Arc<dyn Resolve>,
    pub(crate) probes: Arc<dyn Probes>,
    pub(crate) prober: Prober,
    pub(crate) rng: Arc<dyn Rng>,
    pub(crate) roll: effects::Roll,
    pub(crate) crews: Crews,
    /// What the kernel holds.
    pub(crate) applied: watch::Sender<Progressed>,
    pub(crate) ports: Ports,
    pub(crate) devices: Arc<cdi::Devices>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) data_dir: PathBuf,
    /// Of the daemon itself: never mounted.
    pub(crate) own_folders: Vec<PathBuf>,
    pub(crate) volumes: Arc<Volumes>,
    pub(crate) starts: Arc<Semaphore>,
    pub(crate) pulls: Semaphore,
    pub(crate) removals: Semaphore,
    pub(crate) streams: Semaphore,
    pub(crate) metrics: Arc<Metrics>,
    /// One was pulled, loaded or made.
    pub(crate) image_came: Notify,
    /// With whom there is a session.
    pub(crate) manager: watch::Receiver<Option<ManagerAddress>>,
    /// To whom, while there is a session.
    pub(crate) channel: watch::Sender<Option<Channel>>,
    pub(crate) parted: Parted,
    /// Keys of the tunnel that this node says of itself.
    pub(crate) said: watch::Sender<Said>,
    /// Nodes that this one does not reach, as managers are told.
    pub(crate) cuts: watch::Sender<Cuts>,
    /// Who wants another one.
    pub(crate) wishes: mpsc::Sender<Wish>,
    pub(crate) inbox: mpsc::Sender<Message>,
    /// The agent is stopping: insisting ends.
    pub(crate) stopping: CancellationToken,
}

/// How far the kernel has got.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progressed {
    /// Of the last table whose rules it took.
    pub(crate) generation: u64,
    /// Why it did not take the last one.
    pub(crate) problem: Option<String>,
}

impl Tools {
    pub(crate) fn logs_dir(&self) -> PathBuf {
        self.data_dir.join("logs")
    }

    pub(crate) fn log_dir(&self, task: TaskId) -> PathBuf {
        self.logs_dir().join(task.to_string())
    }

    /// Of an init container or a sidecar; goes with that of its task.
    pub(crate) fn companion_log_dir(&self, task: TaskId, name: &str) -> PathBuf {
        self.log_dir(task).join(name)
    }

    /// Holds a folder for each task whose containers have some in common.
    pub(crate) fn shared_dir(&self) -> PathBuf {
        self.data_dir.join("shared")
    }

    pub(crate) fn now(&self) -> Now {
        Now { wall: Time(self.clock.now_ms()), mono_ms: self.clock.monotonic_ms() }
    }

    pub(crate) async fn tell(&self, message: Message) {
        // The loop ends only with the agent, which ends the sender too.
        let _ = self.inbox.send(message).await;
    }
}
