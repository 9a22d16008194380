//! A node that answers from a list of services and tasks, behind a real socket.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use tokio::net::UnixListener;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use warren_proto::v1;
use warren_proto::v1::control_server::{Control, ControlServer};
use warren_proto::v1::{frame, open_stream};

pub(crate) const NOW: u64 = 1_800_000_000_000;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Default)]
pub(crate) struct World {
    pub(crate) services: Vec<v1::Service>,
    pub(crate) tasks: Vec<v1::Task>,
    pub(crate) events: Vec<v1::Event>,
    pub(crate) progress: Vec<v1::Progress>,
    /// Answers of `Stream`, by the word for what was opened.
    pub(crate) frames: Vec<frame::Kind>,
    /// Calls that fail as if the connection broke, before any is answered.
    pub(crate) losses: u32,
    pub(crate) refusal: Option<(tonic::Code, &'static str, &'static str)>,
    /// What arrived.
    pub(crate) created: Vec<v1::CreateServiceRequest>,
    pub(crate) updated: Vec<v1::UpdateServiceRequest>,
    pub(crate) waited: Vec<v1::WaitServiceRequest>,
    pub(crate) opened: Vec<open_stream::Kind>,
    pub(crate) input: Vec<u8>,
}

#[derive(Clone)]
struct Answering(Arc<Mutex<World>>);

pub(crate) struct FakeNode {
    dir: tempfile::TempDir,
    world: Arc<Mutex<World>>,
}

impl FakeNode {
    /// Needs a tokio runtime around it, and ends with it.
    pub(crate) fn start(world: World) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("warren.sock")).unwrap();
        let world = Arc::new(Mutex::new(world));
        let server = tonic::transport::Server::builder()
            .add_service(ControlServer::new(Answering(Arc::clone(&world))))
            .serve_with_incoming(UnixListenerStream::new(listener));
        tokio::spawn(server);
        Self { dir, world }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("warren.sock")
    }

    pub(crate) fn folder(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn world<R>(&self, look: impl FnOnce(&mut World) -> R) -> R {
        look(&mut self.world.lock().unwrap())
    }
}

impl Answering {
    fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }

    /// What goes wrong with every call.
    fn gate(&self) -> Result<(), Status> {
        let mut world = self.world();
        if world.losses > 0 {
            world.losses -= 1;
            return Err(Status::unavailable("stopping"));
        }
        match world.refusal {
            None => Ok(()),
            Some((code, message, hint)) => {
                let mut status = Status::new(code, message);
                status.metadata_mut().insert("warren-hint", hint.parse().unwrap());
                Err(status)
            }
        }
    }
}

fn all<T: Send + 'static>(items: Vec<T>) -> Response<Answers<T>> {
    Response::new(Box::pin(tokio_stream::iter(items.into_iter().map(Ok))))
}

#[tonic::async_trait]
impl Control for Answering {
    async fn get_info(&self, _: Request<v1::GetInfoRequest>) -> Result<Response<v1::Info>, Status> {
        self.gate()?;
        Ok(Response::new(v1::Info {
            version: "0.1.0".into(),
            cluster_id: vec![1; 10],
            node_id: vec![2; 10],
            revision: 7,
            nodes: 1,
            services: 2,
            tasks: 3,
        }))
    }

    async fn create_service(
        &self,
        request: Request<v1::CreateServiceRequest>,
    ) -> Result<Response<v1::Changed>, Status> {
        self.world().created.push(request.into_inner());
        self.gate()?;
        Ok(Response::new(v1::Changed { ids: vec![vec![3; 10]], revision: 8 }))
    }

    async fn update_service(
        &self,
        request: Request<v1::UpdateServiceRequest>,
    ) -> Result<Response<v1::Changed>, Status> {
        self.gate()?;
        self.world().updated.push(request.into_inner());
        Ok(Response::new(v1::Changed { ids: vec![vec![3; 10]], revision: 9 }))
    }

    async fn remove_services(
        &self,
        request: Request<v1::RemoveServicesRequest>,
    ) -> Result<Response<v1::Changed>, Status> {
        self.gate()?;
        let ids = request.into_inner().services.iter().map(|_| vec![3; 10]).collect();
        Ok(Response::new(v1::Changed { ids, revision: 10 }))
    }

    async fn list_services(
        &self,
        request: Request<v1::ListServicesRequest>,
    ) -> Result<Response<v1::ListServicesResponse>, Status> {
        self.gate()?;
        let wanted = request.into_inner().services;
        let named = |s: &v1::Service| {
            let name = s.spec.as_ref().map(|spec| spec.name.clone()).unwrap_or_default();
            wanted.is_empty() || wanted.contains(&name)
        };
        let services: Vec<_> = self.world().services.iter().filter(|s| named(s)).cloned().collect();
        if services.is_empty() && !wanted.is_empty() {
            return Err(Status::not_found(format!("there is no service {}", wanted.join(", "))));
        }
        Ok(Response::new(v1::ListServicesResponse { services, revision: 7 }))
    }

    async fn list_tasks(
        &self,
        _: Request<v1::ListTasksRequest>,
    ) -> Result<Response<v1::ListTasksResponse>, Status> {
        self.gate()?;
        let tasks = self.world().tasks.clone();
        Ok(Response::new(v1::ListTasksResponse { tasks, revision: 7 }))
    }

    async fn list_nodes(
        &self,
        _: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        self.gate()?;
        let node = v1::Node {
            id: vec![2; 10],
            description: Some(v1::NodeDescription {
                hostname: "alpha".into(),
                address: "10.0.0.1".into(),
                version: "0.1.0".into(),
                cpus: 2,
                memory_bytes: 1 << 30,
                ..v1::NodeDescription::default()
            }),
            manager: true,
            worker: true,
            availability: v1::Availability::Active.into(),
            status: v1::NodeStatus::Ready.into(),
            leader: true,
            ..v1::Node::default()
        };
        Ok(Response::new(v1::ListNodesResponse { nodes: vec![node], revision: 7 }))
    }

    type WatchStream = Answers<v1::Event>;

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.gate()?;
        let after = request.into_inner().after;
        let events = self.world().events.clone();
        Ok(all(events.into_iter().filter(|e| e.revision > after).collect()))
    }

    type WaitServiceStream = Answers<v1::Progress>;

    async fn wait_service(
        &self,
        request: Request<v1::WaitServiceRequest>,
    ) -> Result<Response<Self::WaitServiceStream>, Status> {
        self.world().waited.push(request.into_inner());
        self.gate()?;
        let progress = self.world().progress.clone();
        let ends = progress.last().is_some_and(|p| p.converged || !p.failure.is_empty());
        let items = tokio_stream::iter(progress.into_iter().map(Ok));
        // One that is not done yet keeps its listener waiting.
        Ok(Response::new(match ends {
            true => Box::pin(items),
            false => Box::pin(items.chain(tokio_stream::pending())),
        }))
    }

    type StreamStream = Answers<v1::Frame>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::Frame>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        self.gate()?;
        let mut frames = request.into_inner();
        let Some(frame::Kind::Open(open)) = frames.message().await?.and_then(|f| f.kind) else {
            return Err(Status::invalid_argument("the first frame is not open"));
        };
        let reads = matches!(
            open.kind,
            Some(open_stream::Kind::ImageLoad(_) | open_stream::Kind::ImageImport(_))
        ) || matches!(&open.kind, Some(open_stream::Kind::Exec(exec)) if exec.stdin);
        self.world().opened.extend(open.kind);
        let (to, from) = tokio::sync::mpsc::channel(8);
        let world = self.clone();
        tokio::spawn(async move {
            while let Some(frame) = if reads { frames.message().await.unwrap() } else { None } {
                match frame.kind {
                    Some(frame::Kind::Stdin(bytes)) => world.world().input.extend(bytes),
                    Some(frame::Kind::StdinClosed(_)) => break,
                    _ => {}
                }
            }
            let answers = std::mem::take(&mut world.world().frames);
            for kind in answers {
                let _ = to.send(Ok(v1::Frame { kind: Some(kind) })).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(from))))
    }

    async fn stop_node(
        &self,
        _: Request<v1::StopNodeRequest>,
    ) -> Result<Response<v1::StopNodeResponse>, Status> {
        self.gate()?;
        Ok(Response::new(v1::StopNodeResponse {}))
    }
}

/// A service with a port and three replicas, two of them running.
pub(crate) fn web() -> v1::Service {
    let spec = v1::ServiceSpec {
        name: "web".into(),
        labels: [("team".to_owned(), "shop".to_owned())].into(),
        mode: Some(v1::Mode {
            kind: Some(v1::mode::Kind::Replicated(v1::mode::Replicated { replicas: 3 })),
        }),
        ports: vec![v1::PortSpec {
            protocol: v1::Protocol::Tcp.into(),
            bind: 0,
            published: 8080,
            target: 80,
            mode: v1::PublishMode::Ingress.into(),
        }],
        update: Some(v1::UpdatePolicy {
            parallelism: 1,
            delay_ms: 0,
            order: v1::UpdateOrder::StartFirst.into(),
        }),
        task: Some(v1::TaskTemplate {
            image: "nginx:1.27".into(),
            env: vec!["LOG=info".into()],
            restart: Some(v1::RestartPolicy {
                condition: v1::RestartCondition::Any.into(),
                delay_ms: 100,
                max_attempts: None,
                window_ms: 10_000,
            }),
            log: Some(v1::LogOptions { max_bytes: 10 << 20, max_files: 3 }),
            limits: Some(v1::Limits {
                memory_bytes: Some(128 << 20),
                cpu_millis: Some(500),
                pids: None,
            }),
            ..v1::TaskTemplate::default()
        }),
    };
    v1::Service {
        id: vec![3; 10],
        spec: Some(spec),
        template: 1,
        removing: false,
        created: NOW,
        updated: NOW,
        revision: 5,
        running: 2,
        desired: 3,
        update_state: "none".into(),
    }
}

/// A task of `web`; `state` numbers as on the wire.
pub(crate) fn task(slot: u32, state: v1::TaskState, desired: v1::Desired) -> v1::Task {
    let mut id = vec![4; 10];
    id[9] = u8::try_from(slot).unwrap();
    id[8] = u8::try_from(i32::from(state)).unwrap();
    v1::Task {
        id,
        service: vec![3; 10],
        slot,
        template: 1,
        node: Some(vec![2; 10]),
        address: Some(0x0a80_0001 + slot),
        desired: desired.into(),
        status: Some(v1::TaskStatus {
            state: state.into(),
            since: NOW,
            attempt: 1,
            pid: 1000 + slot,
            started: Some(NOW),
            exit: None,
            error: None,
        }),
        created: NOW,
        revision: 6,
        service_name: "web".into(),
        node_name: "alpha".into(),
        image: "nginx:1.27".into(),
    }
}

/// A line of progress.
pub(crate) fn progress(running: u32, message: &str) -> v1::Progress {
    v1::Progress { running, desired: 3, message: message.into(), ..v1::Progress::default() }
}
