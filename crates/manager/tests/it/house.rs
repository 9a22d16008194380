//! One manager with its store in a temporary folder, reached by gRPC over
//! in-memory pipes, as in a hybrid node.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tonic::transport::server::Router;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use warren_base::clock::{Clock, RealClock};
use warren_base::rng::SystemRng;
use warren_manager::{CONNECTION_WINDOW_BYTES, Caller, Manager, Options, STREAM_WINDOW_BYTES};
use warren_model::cluster::Cluster;
use warren_model::network::NetworkSpec;
use warren_model::node::{Description, Node, NodeStatus};
use warren_model::{ClusterId, NetworkId, NodeId, Time};
use warren_proto::v1;
use warren_proto::v1::control_client::ControlClient;
use warren_proto::v1::control_server::ControlServer;
use warren_proto::v1::dispatch_client::DispatchClient;
use warren_proto::v1::dispatch_server::DispatchServer;
use warren_proto::v1::join_client::JoinClient;
use warren_proto::v1::join_server::JoinServer;
use warren_state::State;
use warren_state::change::{Mutation, Transaction};
use warren_store::{Options as StoreOptions, Store};
use warren_trust::{Authority, Peer, PeerRole};

/// Long enough for any machine, short enough to notice.
pub(crate) const SOON: Duration = Duration::from_secs(20);
const PIPE_BYTES: usize = 64 * 1024;

/// Waits for what must come. Boxed: requests are large.
#[track_caller]
pub(crate) fn soon<F: Future>(what: F) -> impl Future<Output = F::Output> {
    let (place, what) = (std::panic::Location::caller(), Box::pin(what));
    async move {
        let outcome = tokio::time::timeout(SOON, what).await;
        outcome.unwrap_or_else(|_| panic!("nothing came, at {place}"))
    }
}

pub(crate) fn node_id(letter: char) -> NodeId {
    NodeId::from_bytes([u8::try_from(letter).unwrap(); 10])
}

pub(crate) const CLUSTER: ClusterId = ClusterId::from_bytes([1; 10]);

pub(crate) fn key_hash(letter: char) -> [u8; 32] {
    [u8::try_from(letter).unwrap(); 32]
}

fn member(letter: char) -> Node {
    Node {
        manager: letter == 'a',
        status: NodeStatus::Ready,
        key_hash: key_hash(letter),
        certificate_not_after: FAR,
        ..Node::new(node_id(letter), description(letter))
    }
}

/// Far enough.
pub(crate) const FAR: Time = Time(9_000_000_000_000);

/// What the certificate of a node says; `a` is the manager.
pub(crate) fn peer(letter: char) -> Peer {
    Peer {
        node: Some(node_id(letter)),
        operator: None,
        role: if letter == 'a' { PeerRole::Manager } else { PeerRole::Worker },
        cluster: CLUSTER,
        key_hash: key_hash(letter),
        not_before: Time(0),
        not_after: FAR,
        expired: false,
        issuer_hash: [0; 32],
    }
}

pub(crate) fn remote(peer: Option<Peer>) -> Caller {
    Caller::Remote { peer, address: "10.0.0.9:4000".parse().unwrap() }
}

pub(crate) const LOCAL: Caller = Caller::Local { uid: 0 };

pub(crate) fn description(letter: char) -> Description {
    Description {
        hostname: format!("host-{letter}"),
        address: format!("10.0.0.{}:2377", u32::from(letter)),
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
        let authority = Authority::generate(CLUSTER, Time(clock.now_ms())).unwrap();
        let cluster = Cluster { ca: Some(authority.to_state()), ..Cluster::new(CLUSTER) };
        let default = NetworkSpec::of_default().unwrap();
        let mut mutations = vec![
            Mutation::SetCluster(cluster),
            Mutation::CreateNetwork { id: NetworkId::from_bytes([7; 10]), spec: default },
        ];
        mutations.extend(nodes.chars().map(|letter| Mutation::CreateNode(member(letter))));
        store.propose(Transaction { mutations, ..Transaction::default() }).await.unwrap();
        let (manager, stops) = start(&store, clock);
        let control = control(&manager, LOCAL).await;
        let house = Self { store, manager, stops, control, _folder: folder };
        // What the leader has to do at first is over: tests know each change that follows.
        let has_blocks = |view: &State| view.nodes().all(|node| !node.blocks.is_empty());
        soon(house.until(has_blocks)).await;
        house
    }

    /// A connection of its own for each agent.
    pub(crate) async fn dispatch(&self, caller: Caller) -> DispatchClient<Channel> {
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let service = DispatchServer::with_interceptor(self.manager.dispatch(), known(caller));
        serve(warren_manager::server().add_service(service), ours);
        DispatchClient::new(channel(theirs).await)
    }

    pub(crate) async fn control_as(&self, caller: Caller) -> ControlClient<Channel> {
        control(&self.manager, caller).await
    }

    pub(crate) async fn join_as(&self, caller: Caller) -> JoinClient<Channel> {
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let service = JoinServer::with_interceptor(self.manager.join(), known(caller));
        serve(warren_manager::server().add_service(service), ours);
        JoinClient::new(channel(theirs).await)
    }

    /// Applies what only managers would write.
    pub(crate) async fn write(&self, mutations: Vec<Mutation>) {
        self.store.propose(Transaction { mutations, ..Transaction::default() }).await.unwrap();
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

    /// Boxed: the request is large.
    pub(crate) fn create(
        &mut self,
        request: v1::CreateServiceRequest,
    ) -> impl Future<Output = Result<v1::Changed, Status>> {
        Box::pin(async move {
            soon(self.control.create_service(request)).await.map(tonic::Response::into_inner)
        })
    }
}

/// A manager on node `a`, and how often it asked to be stopped.
pub(crate) fn start(store: &Store, clock: Arc<dyn Clock>) -> (Manager, Arc<AtomicU32>) {
    let stops = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&stops);
    let manager = Manager::start(Options {
        store: store.clone(),
        clock,
        rng: Arc::new(SystemRng),
        node_id: node_id('a'),
        cluster_id: CLUSTER,
        advertise: String::new(),
        peers: None,
        stop_node: Arc::new(move |with_containers| {
            count.fetch_add(1 + u32::from(with_containers), Ordering::SeqCst);
        }),
        set_log_level: Arc::new(|filter| match filter {
            "bad" => Err("log level \"bad\" is not understood".to_owned()),
            _ => Ok("info".to_owned()),
        }),
    });
    (manager, stops)
}

pub(crate) fn known(
    caller: Caller,
) -> impl FnMut(Request<()>) -> Result<Request<()>, Status> + Clone {
    move |mut request: Request<()>| {
        request.extensions_mut().insert(caller.clone());
        Ok(request)
    }
}

pub(crate) fn serve(router: Router, pipe: DuplexStream) {
    let incoming = tokio_stream::once(Ok::<_, std::io::Error>(pipe));
    tokio::spawn(router.serve_with_incoming(incoming));
}

pub(crate) async fn control(manager: &Manager, caller: Caller) -> ControlClient<Channel> {
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let service = ControlServer::with_interceptor(manager.control(), known(caller));
    serve(warren_manager::server().add_service(service), ours);
    ControlClient::new(channel(theirs).await)
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
        no_resolve: true,
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
