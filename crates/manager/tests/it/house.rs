//! One manager with its store in a temporary folder, reached by gRPC over
//! in-memory pipes, as in a hybrid node.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use warren_base::clock::{Clock, RealClock};
use warren_base::rng::SystemRng;
use warren_manager::{CONNECTION_WINDOW_BYTES, Manager, Options, Principal, STREAM_WINDOW_BYTES};
use warren_model::cluster::Cluster;
use warren_model::node::{Description, Node, NodeStatus};
use warren_model::{ClusterId, NodeId};
use warren_proto::v1;
use warren_proto::v1::control_client::ControlClient;
use warren_proto::v1::control_server::ControlServer;
use warren_proto::v1::dispatch_client::DispatchClient;
use warren_proto::v1::dispatch_server::DispatchServer;
use warren_state::State;
use warren_state::change::{Mutation, Transaction};
use warren_store::{Options as StoreOptions, Store};

/// Long enough for any machine, short enough to notice.
pub(crate) const SOON: Duration = Duration::from_secs(20);
const PIPE_BYTES: usize = 64 * 1024;

/// Waits for what must come.
#[track_caller]
pub(crate) fn soon<F: Future>(what: F) -> impl Future<Output = F::Output> {
    let place = std::panic::Location::caller();
    async move {
        let outcome = tokio::time::timeout(SOON, what).await;
        outcome.unwrap_or_else(|_| panic!("nothing came, at {place}"))
    }
}

pub(crate) fn node_id(letter: char) -> NodeId {
    NodeId::from_bytes([u8::try_from(letter).unwrap(); 10])
}

fn member(letter: char) -> Node {
    Node {
        manager: letter == 'a',
        status: NodeStatus::Ready,
        ..Node::new(node_id(letter), description(letter))
    }
}

pub(crate) fn description(letter: char) -> Description {
    Description {
        hostname: format!("host-{letter}"),
        cpus: 4,
        memory_bytes: 8 << 30,
        ..Description::default()
    }
}

pub(crate) struct House {
    pub(crate) store: Store,
    pub(crate) manager: Manager,
    pub(crate) stops: Arc<AtomicU32>,
    pub(crate) control: ControlClient<Channel>,
    _folder: tempfile::TempDir,
}

impl House {
    /// With nodes `a` (the manager's own) and, if there are two, `b` as members.
    pub(crate) async fn open(nodes: &str) -> Self {
        Self::with_clock(nodes, Arc::new(RealClock::new())).await
    }

    pub(crate) async fn with_clock(nodes: &str, clock: Arc<dyn Clock>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = open_store(folder.path(), Arc::clone(&clock)).await;
        let cluster_id = ClusterId::from_bytes([1; 10]);
        let mut mutations = vec![Mutation::SetCluster(Cluster::new(cluster_id))];
        mutations.extend(nodes.chars().map(|letter| Mutation::CreateNode(member(letter))));
        store.propose(Transaction { mutations, ..Transaction::default() }).await.unwrap();
        let stops = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&stops);
        let manager = Manager::start(Options {
            store: store.clone(),
            clock,
            rng: Arc::new(SystemRng),
            node_id: node_id('a'),
            cluster_id,
            stop_node: Arc::new(move |with_containers| {
                count.fetch_add(1 + u32::from(with_containers), Ordering::SeqCst);
            }),
        });
        let who = |mut request: Request<()>| -> Result<Request<()>, Status> {
            request.extensions_mut().insert(Principal::new("test"));
            Ok(request)
        };
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let service = ControlServer::with_interceptor(manager.control(), who);
        let served = warren_manager::server().add_service(service);
        tokio::spawn(served.serve_with_incoming(tokio_stream::once(Ok::<_, std::io::Error>(ours))));
        let control = ControlClient::new(channel(theirs).await);
        Self { store, manager, stops, control, _folder: folder }
    }

    /// A connection of its own for each agent.
    pub(crate) async fn dispatch(&self) -> DispatchClient<Channel> {
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let served =
            warren_manager::server().add_service(DispatchServer::new(self.manager.dispatch()));
        tokio::spawn(served.serve_with_incoming(tokio_stream::once(Ok::<_, std::io::Error>(ours))));
        DispatchClient::new(channel(theirs).await)
    }

    /// The state once `reached` says so.
    pub(crate) async fn until(&self, reached: impl Fn(&State) -> bool) -> Arc<State> {
        let mut moved = self.store.watch();
        loop {
            let view = self.store.view();
            if reached(&view) {
                return view;
            }
            moved.changed().await.unwrap();
        }
    }

    pub(crate) async fn create(
        &mut self,
        request: v1::CreateServiceRequest,
    ) -> Result<v1::Changed, Status> {
        soon(self.control.create_service(request)).await.map(tonic::Response::into_inner)
    }
}

pub(crate) async fn channel<P>(pipe: P) -> Channel
where
    P: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut pipe = Some(TokioIo::new(pipe));
    let connector = tower::service_fn(move |_| {
        let pipe = pipe.take().ok_or_else(|| std::io::Error::other("the pipe is used"));
        std::future::ready(pipe)
    });
    let endpoint = Endpoint::from_static("http://warren.invalid")
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    endpoint.connect_with_connector(connector).await.unwrap()
}

/// A wish for `replicas` of a service, not checked on a node.
pub(crate) fn wish(name: &str, replicas: u32) -> v1::CreateServiceRequest {
    let mode = v1::mode::Kind::Replicated(v1::mode::Replicated { replicas });
    v1::CreateServiceRequest {
        spec: Some(v1::ServiceSpec {
            name: name.to_owned(),
            mode: Some(v1::Mode { kind: Some(mode) }),
            task: Some(v1::TaskTemplate { image: "busybox".into(), ..Default::default() }),
            ..Default::default()
        }),
        request_id: Vec::new(),
        no_check: true,
    }
}

pub(crate) fn hint(status: &Status) -> &str {
    let hint = status.metadata().get(warren_manager::HINT_KEY);
    hint.map_or("", |hint| hint.to_str().unwrap())
}

async fn open_store(folder: &Path, clock: Arc<dyn Clock>) -> Store {
    let key_file = folder.join("key");
    let options =
        StoreOptions::new(&folder.join("store"), &key_file, 1, clock, Arc::new(SystemRng));
    Store::create(options.unwrap()).await.unwrap()
}
