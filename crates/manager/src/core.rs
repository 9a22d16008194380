//! What the parts of one manager share, and nothing else: the ledger, the
//! clock, who is connected, ways to other managers, and the owner of all tasks.

use std::sync::Arc;

use tokio::sync::mpsc;
use warren_base::clock::Clock;
use warren_base::rng::Rng;
use warren_base::tasks::Tasks;
use warren_model::{ClusterId, NodeId, Time};
use warren_store::Store;

use crate::beats::BeatBook;
use crate::beats::touch::Touch;
use crate::dispatch::sessions::Sessions;
use crate::dispatch::status::Report;
use crate::join::Door;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::reach::Reach;
use crate::relays::book::CutBook;
use crate::stream::Broker;
use crate::{SetLogLevel, StopNode};

pub(crate) struct Core {
    pub(crate) store: Store,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) rng: Arc<dyn Rng>,
    pub(crate) node_id: NodeId,
    pub(crate) cluster_id: ClusterId,
    /// Where others reach this manager; empty: nowhere.
    pub(crate) advertise: String,
    /// None: alone.
    pub(crate) peers: Option<Arc<dyn Peers>>,
    pub(crate) stop_node: StopNode,
    pub(crate) set_log_level: SetLogLevel,
    pub(crate) sessions: Sessions,
    pub(crate) beats: BeatBook,
    pub(crate) touch: Touch,
    pub(crate) broker: Broker,
    pub(crate) door: Door,
    pub(crate) reach: Reach,
    /// Whom nodes do not reach; the leader's.
    pub(crate) cuts: CutBook,
    pub(crate) metrics: Metrics,
    /// To the one writer of reports.
    pub(crate) reports: mpsc::Sender<Report>,
    pub(crate) tasks: Tasks,
    /// Around all that is done here: calls come in on tasks that are nobody's.
    pub(crate) span: tracing::Span,
}

impl Core {
    /// The wall clock, but never before what the cluster has seen: a clock that was set back must
    /// not bring expired certificates and tokens back to life.
    pub(crate) fn now(&self) -> Time {
        Time(self.clock.now_ms()).max(self.store.view().time())
    }

    /// Resolves at that moment of the monotonic clock; never for `None`.
    pub(crate) async fn sleep_until(&self, at_ms: Option<u64>) {
        match at_ms {
            Some(at_ms) => self.clock.sleep_until(at_ms).await,
            None => std::future::pending().await,
        }
    }
}
