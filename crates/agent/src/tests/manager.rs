//! Managers that do what the test says; beats they answer by themselves.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as StdMutex};

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use tokio::sync::{Mutex, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};
use warren_model::TaskId;
use warren_model::task::{TaskState, TaskStatus};
use warren_proto::v1;
use warren_proto::v1::dispatch_server::{Dispatch, DispatchServer};

use super::patiently;
use crate::{Connect, ConnectError, ManagerAddress};

type Outgoing<T> = mpsc::Sender<Result<T, Status>>;

/// An agent's session as the manager has it.
pub(super) struct Session {
    pub(super) hello: v1::agent_message::Hello,
    incoming: mpsc::UnboundedReceiver<v1::AgentMessage>,
    outgoing: Outgoing<v1::ManagerMessage>,
    pub(super) reports: usize,
    /// How far the agent said that its kernel has come.
    pub(super) through: watch::Sender<u64>,
}

/// A stream's tunnel as the manager has it.
pub(super) struct Tunnel {
    pub(super) stream: String,
    pub(super) incoming: Streaming<v1::Frame>,
    pub(super) outgoing: Outgoing<v1::Frame>,
}

/// How a manager behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    Well,
    /// Its process stands still: connections stay, nothing is answered.
    Frozen,
    /// Nobody listens.
    Gone,
    /// Packets to it vanish.
    Unreachable,
    /// It refuses the session for this reason.
    Refuses(&'static str),
    /// It says that the node was removed.
    Removed,
}

#[derive(Clone)]
pub(super) struct Manager {
    sessions: mpsc::Sender<Session>,
    opened: Arc<Mutex<mpsc::Receiver<Session>>>,
    tunnels: mpsc::Sender<Tunnel>,
    dug: Arc<Mutex<mpsc::Receiver<Tunnel>>>,
    mood: Arc<watch::Sender<Mood>>,
    tried: Arc<AtomicU64>,
    /// How far all other nodes are; nobody knows.
    parted: Arc<watch::Sender<Option<u64>>>,
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
            mood: Arc::new(watch::Sender::new(Mood::Well)),
            tried: Arc::default(),
            parted: Arc::new(watch::Sender::new(None)),
        }
    }
}

/// All managers of a cluster, and what the agent remembers of them.
#[derive(Clone, Default)]
pub(super) struct Managers {
    pub(super) at: Arc<StdMutex<BTreeMap<ManagerAddress, Manager>>>,
    pub(super) remembered: Arc<StdMutex<Vec<String>>>,
}

impl Managers {
    pub(super) fn add(&self, address: ManagerAddress, manager: Manager) {
        self.at.lock().unwrap().insert(address, manager);
    }
}

#[async_trait]
impl Connect for Managers {
    async fn connect(&self, manager: &ManagerAddress) -> Result<Channel, ConnectError> {
        let there = self.at.lock().unwrap().get(manager).cloned();
        there.ok_or("no such manager")?.channel().await
    }

    async fn remember(&self, managers: &[String]) {
        *self.remembered.lock().unwrap() = managers.to_vec();
    }
}

impl Manager {
    pub(super) async fn session(&self) -> Session {
        self.opened.lock().await.recv().await.unwrap()
    }

    pub(super) fn feels(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// How often somebody connected, or tried to.
    pub(super) fn tried(&self) -> u64 {
        self.tried.load(Ordering::Relaxed)
    }

    /// All other nodes have come so far.
    pub(super) fn parted(&self, revision: u64) {
        self.parted.send_replace(Some(revision));
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
        let report = loop {
            let message = patiently(self.incoming.recv()).await.expect("session is open");
            let Some(v1::agent_message::Kind::Report(report)) = message.kind else {
                panic!("not a report: {message:?}");
            };
            if report.through > 0 {
                self.through.send_replace(report.through);
            }
            if !report.statuses.is_empty() {
                break report;
            }
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
        while patiently(self.incoming.recv()).await.is_some() {}
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
        let mood = *self.mood.borrow();
        match mood {
            Mood::Well | Mood::Gone | Mood::Unreachable => {}
            Mood::Frozen => std::future::pending().await,
            Mood::Refuses(why) => return Err(Status::unavailable(why)),
            Mood::Removed => {
                let mut refusal = Status::unauthenticated("this node was removed");
                refusal.metadata_mut().insert("warren-removed", "1".parse().unwrap());
                return Err(refusal);
            }
        }
        let (outgoing, messages) = mpsc::channel(16);
        let (forward, incoming_messages) = mpsc::unbounded_channel();
        tokio::spawn(listen(incoming, outgoing.clone(), forward, self.mood.subscribe()));
        let session = Session {
            hello,
            incoming: incoming_messages,
            outgoing,
            reports: 0,
            through: watch::Sender::new(0),
        };
        self.sessions.send(session).await.unwrap();
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn parted(
        &self,
        request: Request<v1::PartedRequest>,
    ) -> Result<Response<v1::PartedResponse>, Status> {
        let revision = request.into_inner().revision;
        let mut parted = self.parted.subscribe();
        let known = parted.wait_for(|parted| parted.is_none_or(|parted| parted >= revision)).await;
        match *known.unwrap() {
            Some(_) => Ok(Response::new(v1::PartedResponse { all: true, nodes: Vec::new() })),
            None => Err(Status::unavailable("there is no leader")),
        }
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

/// Answers beats and passes on all else, until the test drops the session.
async fn listen(
    mut incoming: Streaming<v1::AgentMessage>,
    outgoing: Outgoing<v1::ManagerMessage>,
    forward: mpsc::UnboundedSender<v1::AgentMessage>,
    mut mood: watch::Receiver<Mood>,
) {
    loop {
        let heard = async {
            mood.wait_for(|mood| *mood != Mood::Frozen).await.map(drop).unwrap();
            incoming.message().await
        };
        let message = tokio::select! {
            message = heard => message,
            () = forward.closed() => return,
        };
        let Ok(Some(message)) = message else { return };
        if *mood.borrow() == Mood::Frozen {
            continue;
        }
        let Some(v1::agent_message::Kind::Beat(beat)) = &message.kind else {
            let _ = forward.send(message);
            continue;
        };
        let beat = v1::manager_message::Beat { number: beat.number };
        let kind = Some(v1::manager_message::Kind::Beat(beat));
        let _ = outgoing.send(Ok(v1::ManagerMessage { kind })).await;
    }
}

impl Manager {
    async fn channel(&self) -> Result<Channel, ConnectError> {
        self.tried.fetch_add(1, Ordering::Relaxed);
        let mood = *self.mood.borrow();
        match mood {
            Mood::Gone => return Err("connection refused".into()),
            Mood::Unreachable => std::future::pending().await,
            Mood::Well | Mood::Frozen | Mood::Refuses(_) | Mood::Removed => {}
        }
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
