//! The agent's line to a manager: one session, kept up for as long as the agent lives.
//!
//! Says hello with what it holds, takes assignments, sends reports, opens a
//! tunnel for each stream asked for. A session that ends is followed by another
//! after a short, growing, jittered pause; what runs goes on meanwhile.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use warren_base::rng::Rng;
use warren_base::tasks::Tasks;
use warren_model::node::Description;
use warren_proto::v1;
use warren_proto::v1::dispatch_client::DispatchClient;
use warren_proto::v1::manager_message::Kind;

use crate::assignments::Assignment;
use crate::core::Input;
use crate::restart::doubled;
use crate::stream;
use crate::worker::{Message, Tools};

/// A manager that restarts is back within tens of milliseconds: try soon.
const RETRY_FIRST_MS: u64 = 20;
/// Thousands of nodes must not storm a manager that comes back, nor miss it for long.
const RETRY_MAX_MS: u64 = 5_000;
/// Messages towards the manager that wait in the line; reports coalesce behind them.
const OUTBOX_MAX: usize = 4;
/// A complete set of a node with a thousand tasks has about a megabyte.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Why no manager could be reached.
pub type ConnectError = Box<dyn std::error::Error + Send + Sync>;

/// How to get a channel to a manager.
#[async_trait]
pub trait Connect: Send + Sync + 'static {
    /// Resolves with a channel that may be used at once.
    ///
    /// # Errors
    /// Whatever kept the channel from being made; it is logged and tried again.
    async fn connect(&self) -> Result<Channel, ConnectError>;
}

/// Everything a session needs.
pub(crate) struct Session {
    pub(crate) tools: Arc<Tools>,
    pub(crate) tasks: Arc<Tasks>,
    pub(crate) connect: Arc<dyn Connect>,
    pub(crate) rng: Arc<dyn Rng>,
    pub(crate) description: Description,
    pub(crate) reconnect: Arc<Notify>,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("connect to a manager")]
    Connect(#[source] ConnectError),
    #[error("session with a manager")]
    Session(#[from] tonic::Status),
    #[error("manager closed the session")]
    Closed,
    #[error("a complete assignment is needed")]
    Gap,
    #[error("agent is stopping")]
    Stopping,
}

impl Session {
    /// Runs until the agent stops.
    pub(crate) async fn run(self) {
        let mut failures = 0;
        loop {
            let mut greeted = false;
            let end = match self.once(&mut greeted).await {
                Ok(never) => match never {},
                Err(end) => end,
            };
            if matches!(end, End::Stopping) {
                return;
            }
            failures = if greeted { 0 } else { failures + 1 };
            let most = doubled(RETRY_FIRST_MS, failures, RETRY_MAX_MS);
            let pause_ms = most / 2 + self.rng.below(most / 2 + 1);
            let error = crate::effects::chain(&end);
            if failures > 3 {
                tracing::warn!(error, pause_ms, "no session with a manager");
            } else {
                tracing::debug!(error, pause_ms, "session ended");
            }
            tokio::select! {
                () = self.tools.stopping.cancelled() => return,
                () = self.tools.clock.sleep(pause_ms) => {}
            }
        }
    }

    async fn once(&self, greeted: &mut bool) -> Result<std::convert::Infallible, End> {
        let channel = self.connect.connect().await.map_err(End::Connect)?;
        let (reply, revision) = oneshot::channel();
        self.tools.tell(Message::Hello(reply)).await;
        let held = revision.await.map_err(|_| End::Stopping)?;
        let (reports, outgoing) = mpsc::channel(OUTBOX_MAX);
        let hello = v1::agent_message::Hello {
            node_id: self.tools.node.as_bytes().to_vec(),
            description: Some(v1::NodeDescription::from(&self.description)),
            assigned_revision: held,
        };
        let kind = Some(v1::agent_message::Kind::Hello(hello));
        reports.send(v1::AgentMessage { kind }).await.map_err(|_| End::Closed)?;
        let mut client =
            DispatchClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let answered = client.session(ReceiverStream::new(outgoing)).await?;
        let mut incoming = answered.into_inner();
        self.tools.tell(Message::Session { reports, resumed: held > 0 }).await;
        tracing::info!(revision = held, "session with a manager");
        loop {
            let message = tokio::select! {
                message = incoming.message() => message?.ok_or(End::Closed)?,
                () = self.reconnect.notified() => return Err(End::Gap),
                () = self.tools.stopping.cancelled() => return Err(End::Stopping),
            };
            *greeted = true;
            self.receive(message, &channel).await;
        }
    }

    async fn receive(&self, message: v1::ManagerMessage, channel: &Channel) {
        match message.kind {
            Some(Kind::Assignment(message)) => {
                let assignment = Assignment::from(message);
                for problem in &assignment.problems {
                    tracing::error!(problem, "assignment is not understood in full");
                }
                let input = Input::Assigned(assignment);
                self.tools.tell(Message::Input(Box::new(input))).await;
            }
            Some(Kind::Stream(request)) => {
                let (tools, channel) = (Arc::clone(&self.tools), channel.clone());
                self.tasks.spawn("stream", async move {
                    stream::serve(&tools, channel, request).await;
                });
            }
            // A newer manager says something we do not know: not for us.
            None => tracing::debug!("message of an unknown kind"),
        }
    }
}
