//! What the parts of one manager share, and nothing else: the ledger, the
//! clock, who is connected, and the owner of all tasks.

use std::sync::Arc;

use tokio::sync::mpsc;
use warren_base::clock::Clock;
use warren_base::rng::Rng;
use warren_base::tasks::Tasks;
use warren_model::{ClusterId, NodeId, Time};
use warren_store::Store;

use crate::StopNode;
use crate::beats::BeatBook;
use crate::dispatch::sessions::Sessions;
use crate::dispatch::status::Report;
use crate::stream::Broker;

pub(crate) struct Core {
    pub(crate) store: Store,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) rng: Arc<dyn Rng>,
    pub(crate) node_id: NodeId,
    pub(crate) cluster_id: ClusterId,
    pub(crate) stop_node: StopNode,
    pub(crate) sessions: Sessions,
    pub(crate) beats: BeatBook,
    pub(crate) broker: Broker,
    /// To the one writer of reports.
    pub(crate) reports: mpsc::Sender<Report>,
    pub(crate) tasks: Tasks,
}

impl Core {
    pub(crate) fn now(&self) -> Time {
        Time(self.clock.now_ms())
    }

    /// Resolves at that moment of the monotonic clock; never for `None`.
    pub(crate) async fn sleep_until(&self, at_ms: Option<u64>) {
        match at_ms {
            Some(at_ms) => self.clock.sleep_until(at_ms).await,
            None => std::future::pending().await,
        }
    }
}
