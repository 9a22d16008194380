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
    /// Everything else that was asked for, request ids left out.
    pub(crate) asked: Vec<String>,
    /// For how long the manager has had no leader.
    pub(crate) stale_ms: u64,
    /// How long an update of a node takes.
    pub(crate) slow_ms: u64,
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

    /// Keeps what was asked for, as its type shows it.
    fn note(&self, wire: &impl std::fmt::Debug) -> Result<(), Status> {
        self.world().asked.push(format!("{wire:?}"));
        self.gate()
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
            leader: vec![2; 10],
            leader_name: "alpha".into(),
            manager_addresses: vec!["10.0.0.1:2377".into()],
            manager: true,
            managers: 1,
            managers_reachable: 1,
            stale_ms: self.world().stale_ms,
            ..v1::Info::default()
        }))
    }

    async fn create_service(
        &self,
        request: Request<v1::CreateServiceRequest>,
    ) -> Result<Response<v1::Changed>, Status> {
        self.world().created.push(request.into_inner());
        self.gate()?;
        Ok(Response::new(v1::Changed {
            ids: vec![vec![3; 10]],
            revision: 8,
            ..v1::Changed::default()
        }))
    }

    async fn update_service(
        &self,
        request: Request<v1::UpdateServiceRequest>,
    ) -> Result<Response<v1::Changed>, Status> {
        self.gate()?;
        self.world().updated.push(request.into_inner());
        Ok(Response::new(v1::Changed {
            ids: vec![vec![3; 10]],
            revision: 9,
            ..v1::Changed::default()
        }))
    }

    async fn remove_services(
        &self,
        request: Request<v1::RemoveServicesRequest>,
    ) -> Result<Response<v1::Changed>, Status> {
        self.gate()?;
        let ids = request.into_inner().services.iter().map(|_| vec![3; 10]).collect();
        Ok(Response::new(v1::Changed { ids, revision: 10, ..v1::Changed::default() }))
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
        Ok(Response::new(v1::ListServicesResponse { services, revision: 7, stale_ms: 0 }))
    }

    async fn list_tasks(
        &self,
        _: Request<v1::ListTasksRequest>,
    ) -> Result<Response<v1::ListTasksResponse>, Status> {
        self.gate()?;
        let tasks = self.world().tasks.clone();
        Ok(Response::new(v1::ListTasksResponse { tasks, revision: 7, stale_ms: 0 }))
    }

    async fn list_nodes(
        &self,
        _: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        self.gate()?;
        let stale_ms = self.world().stale_ms;
        let nodes = super::samples::nodes();
        Ok(Response::new(v1::ListNodesResponse { nodes, revision: 7, stale_ms }))
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

    async fn update_node(
        &self,
        request: Request<v1::UpdateNodeRequest>,
    ) -> Result<Response<v1::Changed>, Status> {
        let mut wire = request.into_inner();
        wire.request_id.clear();
        let slow_ms = self.world().slow_ms;
        tokio::time::sleep(std::time::Duration::from_millis(slow_ms)).await;
        self.note(&wire)?;
        Ok(Response::new(v1::Changed {
            ids: vec![vec![2; 10]],
            revision: 9,
            ..v1::Changed::default()
        }))
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Result<Response<v1::Changed>, Status> {
        let mut wire = request.into_inner();
        wire.request_id.clear();
        self.note(&wire)?;
        Ok(Response::new(v1::Changed {
            ids: vec![vec![2; 10]],
            revision: 9,
            ..v1::Changed::default()
        }))
    }

    async fn get_cluster(
        &self,
        request: Request<v1::GetClusterRequest>,
    ) -> Result<Response<v1::ClusterState>, Status> {
        let wire = request.into_inner();
        self.note(&wire)?;
        Ok(Response::new(super::samples::settings()))
    }

    async fn update_cluster(
        &self,
        request: Request<v1::UpdateClusterRequest>,
    ) -> Result<Response<v1::Changed>, Status> {
        let mut wire = request.into_inner();
        wire.request_id.clear();
        self.note(&wire)?;
        Ok(Response::new(v1::Changed::default()))
    }

    async fn get_join_token(
        &self,
        request: Request<v1::GetJoinTokenRequest>,
    ) -> Result<Response<v1::JoinTokenText>, Status> {
        let mut wire = request.into_inner();
        wire.request_id.clear();
        self.note(&wire)?;
        Ok(Response::new(super::samples::token(&wire)))
    }

    async fn rotate_authority(
        &self,
        request: Request<v1::RotateAuthorityRequest>,
    ) -> Result<Response<v1::Changed>, Status> {
        let mut wire = request.into_inner();
        wire.request_id.clear();
        self.note(&wire)?;
        Ok(Response::new(v1::Changed::default()))
    }

    async fn rotate_data_key(
        &self,
        request: Request<v1::RotateDataKeyRequest>,
    ) -> Result<Response<v1::RotateDataKeyResponse>, Status> {
        let wire = request.into_inner();
        self.note(&wire)?;
        Ok(Response::new(v1::RotateDataKeyResponse {}))
    }

    async fn set_lock(
        &self,
        request: Request<v1::SetLockRequest>,
    ) -> Result<Response<v1::UnlockKeyText>, Status> {
        let mut wire = request.into_inner();
        wire.request_id.clear();
        self.note(&wire)?;
        Ok(Response::new(v1::UnlockKeyText {
            key: if wire.off { String::new() } else { "WRNKEY-AAAA".into() },
        }))
    }

    async fn unlock(
        &self,
        request: Request<v1::UnlockRequest>,
    ) -> Result<Response<v1::UnlockResponse>, Status> {
        let wire = request.into_inner();
        self.note(&wire)?;
        Ok(Response::new(v1::UnlockResponse {}))
    }

    async fn create_operator(
        &self,
        request: Request<v1::CreateOperatorRequest>,
    ) -> Result<Response<v1::CreatedOperator>, Status> {
        let mut wire = request.into_inner();
        wire.request_id.clear();
        self.note(&wire)?;
        Ok(Response::new(v1::CreatedOperator {
            token: "wrno1-aaaa".into(),
            ..v1::CreatedOperator::default()
        }))
    }

    async fn remove_operator(
        &self,
        request: Request<v1::RemoveOperatorRequest>,
    ) -> Result<Response<v1::Changed>, Status> {
        let mut wire = request.into_inner();
        wire.request_id.clear();
        self.note(&wire)?;
        Ok(Response::new(v1::Changed::default()))
    }

    async fn list_operators(
        &self,
        request: Request<v1::ListOperatorsRequest>,
    ) -> Result<Response<v1::ListOperatorsResponse>, Status> {
        let wire = request.into_inner();
        self.note(&wire)?;
        Ok(Response::new(super::samples::operators()))
    }

    async fn list_audit(
        &self,
        request: Request<v1::ListAuditRequest>,
    ) -> Result<Response<v1::ListAuditResponse>, Status> {
        let wire = request.into_inner();
        self.note(&wire)?;
        Ok(Response::new(super::samples::audit()))
    }

    async fn set_log_level(
        &self,
        request: Request<v1::SetLogLevelRequest>,
    ) -> Result<Response<v1::SetLogLevelResponse>, Status> {
        let wire = request.into_inner();
        self.note(&wire)?;
        Ok(Response::new(v1::SetLogLevelResponse { before: "info".into() }))
    }

    type LeaveClusterStream = Answers<v1::LeaveProgress>;

    async fn leave_cluster(
        &self,
        request: Request<v1::LeaveClusterRequest>,
    ) -> Result<Response<Self::LeaveClusterStream>, Status> {
        self.note(&request.into_inner())?;
        let line = |message: &str, done| v1::LeaveProgress { message: message.into(), done };
        Ok(all(vec![line("2 tasks to move", false), line("left", true)]))
    }

    type BackupStream = Answers<v1::BackupChunk>;

    async fn backup(
        &self,
        request: Request<v1::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        self.note(&request.into_inner())?;
        let chunk = |data: &[u8]| v1::BackupChunk { data: data.to_vec() };
        Ok(all(vec![chunk(b"sealed "), chunk(b"bytes")]))
    }

    async fn create_network(
        &self,
        request: Request<v1::CreateNetworkRequest>,
    ) -> Result<Response<v1::Changed>, Status> {
        let mut wire = request.into_inner();
        wire.request_id.clear();
        self.note(&wire)?;
        Ok(Response::new(v1::Changed {
            ids: vec![vec![7; 10]],
            revision: 8,
            ..v1::Changed::default()
        }))
    }

    async fn remove_networks(
        &self,
        request: Request<v1::RemoveNetworksRequest>,
    ) -> Result<Response<v1::Changed>, Status> {
        let mut wire = request.into_inner();
        wire.request_id.clear();
        self.note(&wire)?;
        Ok(Response::new(v1::Changed {
            ids: vec![vec![7; 10]],
            revision: 8,
            ..v1::Changed::default()
        }))
    }

    async fn list_networks(
        &self,
        request: Request<v1::ListNetworksRequest>,
    ) -> Result<Response<v1::ListNetworksResponse>, Status> {
        self.gate()?;
        let stale_ms = self.world().stale_ms;
        let mut networks = vec![super::samples::network()];
        if !request.into_inner().users {
            networks[0].users.clear();
        }
        let overlay = v1::OverlayKind::Wireguard.into();
        Ok(Response::new(v1::ListNetworksResponse {
            networks,
            revision: 7,
            stale_ms,
            overlay,
            ..v1::ListNetworksResponse::default()
        }))
    }

    async fn create_policy(
        &self,
        request: Request<v1::CreatePolicyRequest>,
    ) -> Result<Response<v1::Changed>, Status> {
        let mut wire = request.into_inner();
        wire.request_id.clear();
        self.note(&wire)?;
        Ok(Response::new(v1::Changed {
            ids: vec![vec![8; 10]],
            revision: 8,
            ..v1::Changed::default()
        }))
    }

    async fn remove_policies(
        &self,
        request: Request<v1::RemovePoliciesRequest>,
    ) -> Result<Response<v1::Changed>, Status> {
        let mut wire = request.into_inner();
        wire.request_id.clear();
        self.note(&wire)?;
        Ok(Response::new(v1::Changed {
            ids: vec![vec![8; 10]],
            revision: 8,
            ..v1::Changed::default()
        }))
    }

    async fn list_policies(
        &self,
        request: Request<v1::ListPoliciesRequest>,
    ) -> Result<Response<v1::ListPoliciesResponse>, Status> {
        self.gate()?;
        let stale_ms = self.world().stale_ms;
        let wanted = request.into_inner().policies;
        let mut policies = super::samples::policies();
        let is_wanted = |policy: &v1::Policy| {
            let name = policy.spec.as_ref().map(|spec| spec.name.clone()).unwrap_or_default();
            wanted.is_empty() || wanted.contains(&name)
        };
        policies.retain(is_wanted);
        Ok(Response::new(v1::ListPoliciesResponse { policies, revision: 7, stale_ms }))
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::Explanation>, Status> {
        self.note(&request.into_inner())?;
        Ok(Response::new(super::samples::explanation()))
    }

    async fn simulate(
        &self,
        request: Request<v1::SimulateRequest>,
    ) -> Result<Response<v1::Simulation>, Status> {
        self.note(&request.into_inner())?;
        Ok(Response::new(super::samples::simulation()))
    }

    async fn list_revisions(
        &self,
        request: Request<v1::ListRevisionsRequest>,
    ) -> Result<Response<v1::ListRevisionsResponse>, Status> {
        self.gate()?;
        let name = request.into_inner().service;
        if name != "web" {
            return Err(Status::not_found(format!("no service {name}")));
        }
        let revisions = super::samples::revisions();
        Ok(Response::new(v1::ListRevisionsResponse { revisions, revision: 7, stale_ms: 0, name }))
    }

    async fn roll_back_service(
        &self,
        request: Request<v1::RollBackServiceRequest>,
    ) -> Result<Response<v1::ServiceChanged>, Status> {
        let mut wire = request.into_inner();
        wire.request_id.clear();
        self.note(&wire)?;
        Ok(Response::new(v1::ServiceChanged {
            id: vec![3; 10],
            revision: 9,
            number: 3,
            name: wire.service,
        }))
    }

    async fn control_task(
        &self,
        request: Request<v1::ControlTaskRequest>,
    ) -> Result<Response<v1::TaskControlled>, Status> {
        let mut wire = request.into_inner();
        wire.request_id.clear();
        self.note(&wire)?;
        let remark = match wire.what {
            Some(v1::control_task_request::What::Stop(_)) => "service web starts another",
            _ => "",
        };
        Ok(Response::new(v1::TaskControlled {
            id: vec![4; 10],
            name: "web.1".into(),
            attempt: 1,
            revision: 7,
            remark: remark.into(),
        }))
    }

    async fn hold_update(
        &self,
        request: Request<v1::HoldUpdateRequest>,
    ) -> Result<Response<v1::ServiceChanged>, Status> {
        let mut wire = request.into_inner();
        wire.request_id.clear();
        self.note(&wire)?;
        Ok(Response::new(v1::ServiceChanged {
            id: vec![3; 10],
            revision: 9,
            number: 2,
            name: wire.service,
        }))
    }

    async fn run_job(
        &self,
        request: Request<v1::RunJobRequest>,
    ) -> Result<Response<v1::RunChanged>, Status> {
        let mut wire = request.into_inner();
        wire.request_id.clear();
        self.note(&wire)?;
        let (id, name) = (vec![3; 10], wire.service);
        Ok(Response::new(v1::RunChanged { id, revision: 9, runs: vec![2], name }))
    }

    async fn stop_job(
        &self,
        request: Request<v1::StopJobRequest>,
    ) -> Result<Response<v1::RunChanged>, Status> {
        let mut wire = request.into_inner();
        wire.request_id.clear();
        self.note(&wire)?;
        let (id, name) = (vec![3; 10], wire.service);
        Ok(Response::new(v1::RunChanged { id, revision: 9, runs: vec![1, 2], name }))
    }

    async fn suspend_job(
        &self,
        request: Request<v1::SuspendJobRequest>,
    ) -> Result<Response<v1::ServiceChanged>, Status> {
        let mut wire = request.into_inner();
        wire.request_id.clear();
        self.note(&wire)?;
        Ok(Response::new(v1::ServiceChanged {
            id: vec![3; 10],
            revision: 9,
            number: 2,
            name: wire.service,
        }))
    }
}
