//! A manager that does what the test says.

use std::sync::Arc;

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};
use warren_model::TaskId;
use warren_model::task::{TaskState, TaskStatus};
use warren_proto::v1;
use warren_proto::v1::dispatch_server::{Dispatch, DispatchServer};

use super::patiently;
use crate::{Connect, ConnectError};

type Outgoing<T> = mpsc::Sender<Result<T, Status>>;

/// An agent's session as the manager has it.
pub(super) struct Session {
    pub(super) hello: v1::agent_message::Hello,
    incoming: Streaming<v1::AgentMessage>,
    outgoing: Outgoing<v1::ManagerMessage>,
    pub(super) reports: usize,
}

/// A stream's tunnel as the manager has it.
pub(super) struct Tunnel {
    pub(super) stream: String,
    pub(super) incoming: Streaming<v1::Frame>,
    pub(super) outgoing: Outgoing<v1::Frame>,
}

#[derive(Clone)]
pub(super) struct Manager {
    sessions: mpsc::Sender<Session>,
    opened: Arc<Mutex<mpsc::Receiver<Session>>>,
    tunnels: mpsc::Sender<Tunnel>,
    dug: Arc<Mutex<mpsc::Receiver<Tunnel>>>,
}

impl Default for Manager {
    fn default() -> Self {
        let (sessions, opened) = mpsc::channel(16);
        let (tunnels, dug) = mpsc::channel(16);
        Self {
            sessions,
            opened: Arc::new(Mutex::new(opened)),
            tunnels,
            dug: Arc::new(Mutex::new(dug)),
        }
    }
}

impl Manager {
    pub(super) async fn session(&self) -> Session {
        self.opened.lock().await.recv().await.unwrap()
    }

    pub(super) async fn tunnel(&self) -> Tunnel {
        patiently(async { self.dug.lock().await.recv().await.unwrap() }).await
    }
}

impl Session {
    pub(super) async fn send(&self, assignment: v1::Assignment) {
        let kind = v1::manager_message::Kind::Assignment(assignment);
        self.outgoing.send(Ok(v1::ManagerMessage { kind: Some(kind) })).await.unwrap();
    }

    pub(super) async fn open(&self, stream_id: u64, kind: v1::open_stream::Kind) {
        let open = Some(v1::OpenStream { node: vec![], kind: Some(kind) });
        let kind = v1::manager_message::Kind::Stream(v1::StreamRequest { stream_id, open });
        self.outgoing.send(Ok(v1::ManagerMessage { kind: Some(kind) })).await.unwrap();
    }

    /// The statuses of the next report.
    pub(super) async fn report(&mut self) -> Vec<(TaskId, TaskStatus)> {
        let message = patiently(self.incoming.message()).await.unwrap().expect("session is open");
        let Some(v1::agent_message::Kind::Report(report)) = message.kind else {
            panic!("not a report: {message:?}");
        };
        self.reports += 1;
        let parse = |status: v1::agent_message::Status| {
            let id = warren_proto::task_id("task", &status.task).unwrap();
            (id, TaskStatus::try_from(status.status.unwrap()).unwrap())
        };
        report.statuses.into_iter().map(parse).collect()
    }

    /// Waits until the task is reported in `state`, at that attempt or a later one.
    pub(super) async fn until(
        &mut self,
        task: TaskId,
        state: TaskState,
        attempt: u32,
    ) -> TaskStatus {
        self.until_status(task, |status| status.state == state && status.attempt >= attempt).await
    }

    pub(super) async fn until_status(
        &mut self,
        task: TaskId,
        is_it: impl Fn(&TaskStatus) -> bool,
    ) -> TaskStatus {
        loop {
            for (id, status) in self.report().await {
                if id == task && is_it(&status) {
                    return status;
                }
            }
        }
    }

    /// Whether the agent gave the session up.
    pub(super) async fn ended(&mut self) {
        while let Ok(Some(_)) = patiently(self.incoming.message()).await {}
    }
}

#[tonic::async_trait]
impl Dispatch for Manager {
    type SessionStream = ReceiverStream<Result<v1::ManagerMessage, Status>>;
    type TunnelStream = ReceiverStream<Result<v1::Frame, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.and_then(|message| message.kind);
        let Some(v1::agent_message::Kind::Hello(hello)) = first else {
            return Err(Status::invalid_argument("no hello"));
        };
        let (outgoing, messages) = mpsc::channel(16);
        let session = Session { hello, incoming, outgoing, reports: 0 };
        self.sessions.send(session).await.unwrap();
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn tunnel(
        &self,
        request: Request<Streaming<v1::Frame>>,
    ) -> Result<Response<Self::TunnelStream>, Status> {
        let stream = request.metadata().get("stream-id").unwrap().to_str().unwrap().to_owned();
        let (outgoing, frames) = mpsc::channel(16);
        let tunnel = Tunnel { stream, incoming: request.into_inner(), outgoing };
        self.tunnels.send(tunnel).await.unwrap();
        Ok(Response::new(ReceiverStream::new(frames)))
    }
}

#[async_trait]
impl Connect for Manager {
    async fn connect(&self) -> Result<Channel, ConnectError> {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let service = DispatchServer::new(self.clone());
        tokio::spawn(async move {
            let incoming = tokio_stream::once(Ok::<_, std::io::Error>(theirs));
            let _ = Server::builder().add_service(service).serve_with_incoming(incoming).await;
        });
        let mut ours = Some(ours);
        let connector = tower::service_fn(move |_| {
            let ours = ours.take().ok_or_else(|| std::io::Error::other("one connection only"));
            async move { ours.map(TokioIo::new) }
        });
        Ok(Endpoint::from_static("http://manager").connect_with_connector(connector).await?)
    }
}
