//! The few calls that a node answers without a manager in it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::server::{Grpc, ServerStreamingService, StreamingService, UnaryService};
use tonic::transport::server::UdsConnectInfo;
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;
use warren_manager::{SetLogLevel, StopNode};
use warren_model::{ClusterId, NodeId};
use warren_proto::v1;
use warren_proto::v1::control_client::ControlClient;
use warren_trust::{KeyFile, KeyFileError, UnlockKey};

use super::{Request, Response, method, refusal};
use crate::cli::FINAL_KEY;
use crate::roles::dial::{Dialer, Whom};
use crate::roles::streams::Streams;

/// Lines of a leave on their way to the reader.
const LINES_MAX: usize = 8;
/// For a manager to begin to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// For any manager to begin to answer a node that leaves in any case.
const FORCE_MAX: Duration = Duration::from_secs(3);

type Answered<T> = Result<tonic::Response<T>, Status>;
type Future<T> = Pin<Box<dyn std::future::Future<Output = Answered<T>> + Send>>;

/// A locked node: it waits for the key that opens its key file.
pub(crate) struct Unlocking {
    pub(crate) key_file: std::path::PathBuf,
    /// Where the open key goes; taken by the first that fits.
    pub(crate) opened: std::sync::Mutex<Option<oneshot::Sender<KeyFile>>>,
}

impl Unlocking {
    pub(super) async fn serve(self: &Arc<Self>, request: Request) -> Response {
        if method(&request) != "Unlock" {
            let hint = "warren cluster unlock, with the key that `cluster lock` showed";
            let mut status = refusal(Code::Unavailable, "the node is locked", hint);
            status.metadata_mut().insert(FINAL_KEY, MetadataValue::from_static("1"));
            return status.into_http();
        }
        let this = Arc::clone(self);
        let call = move |wire: v1::UnlockRequest| -> Future<v1::UnlockResponse> {
            let this = Arc::clone(&this);
            Box::pin(async move { this.unlock(wire) })
        };
        unary(request, call).await
    }

    fn unlock(&self, wire: v1::UnlockRequest) -> Answered<v1::UnlockResponse> {
        let text = zeroize::Zeroizing::new(wire.key);
        let key: UnlockKey = text.parse().map_err(|e: warren_trust::UnlockKeyError| {
            refusal(Code::InvalidArgument, &e.to_string(), "it begins with WRNKEY-")
        })?;
        let open = KeyFile::unlock(&self.key_file, &key).map_err(|error| match error {
            KeyFileError::WrongUnlockKey { .. } => {
                let hint = "was it rotated? `warren cluster lock` on a manager that runs shows it";
                refusal(Code::InvalidArgument, &error.to_string(), hint)
            }
            other => Status::internal(other.to_string()),
        })?;
        let waiting = self.opened.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        // Nobody waits: another was faster, and the node is open.
        let _ = waiting.map(|waiting| waiting.send(open));
        Ok(tonic::Response::new(v1::UnlockResponse {}))
    }
}

/// Who is at the other end of the socket, as managers name them.
fn caller(request: &Request) -> String {
    let socket = request.extensions().get::<UdsConnectInfo>();
    let uid = socket.and_then(|info| info.peer_cred).map(|credentials| credentials.uid());
    uid.map_or_else(|| "socket".to_owned(), |uid| format!("socket:{uid}"))
}

/// A node that is no manager.
pub(crate) struct Local {
    pub(crate) node: NodeId,
    pub(crate) cluster: ClusterId,
    pub(crate) stop_node: StopNode,
    pub(crate) set_log_level: SetLogLevel,
    pub(crate) dialer: Dialer,
    /// Where managers are, as last heard.
    pub(crate) managers: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
    pub(crate) streams: Streams,
}

impl Local {
    pub(super) async fn serve(self: &Arc<Self>, request: Request) -> Response {
        let this = Arc::clone(self);
        let who = caller(&request);
        match method(&request) {
            "GetInfo" => unary(request, move |_: v1::GetInfoRequest| this.info()).await,
            "StopNode" => unary(request, move |wire| this.stop(&who, &wire)).await,
            "SetLogLevel" => unary(request, move |wire| this.level(&who, &wire)).await,
            "LeaveCluster" => {
                let call = Leave(this);
                grpc::<v1::LeaveProgress, _>().server_streaming(call, request).await
            }
            "Stream" => grpc::<v1::Frame, _>().streaming(Streamed(this), request).await,
            _ => {
                let hint = "run it on a manager (`warren cluster info` shows addresses), or use a \
                            context: warren context create";
                refusal(Code::Unimplemented, "this node is a worker; a manager does this", hint)
                    .into_http()
            }
        }
    }

    fn info(&self) -> Future<v1::Info> {
        let info = v1::Info {
            version: warren_base::build::VERSION.to_owned(),
            cluster_id: self.cluster.as_bytes().to_vec(),
            node_id: self.node.as_bytes().to_vec(),
            manager_addresses: (self.managers)(),
            ..v1::Info::default()
        };
        Box::pin(std::future::ready(Ok(tonic::Response::new(info))))
    }

    fn stop(&self, who: &str, wire: &v1::StopNodeRequest) -> Future<v1::StopNodeResponse> {
        let with_containers = wire.with_containers;
        tracing::info!(principal = who, with_containers, "asked to stop the node");
        (self.stop_node)(wire.with_containers);
        Box::pin(std::future::ready(Ok(tonic::Response::new(v1::StopNodeResponse {}))))
    }

    fn level(&self, who: &str, wire: &v1::SetLogLevelRequest) -> Future<v1::SetLogLevelResponse> {
        let set = (self.set_log_level)(&wire.filter);
        if let Ok(before) = &set {
            tracing::info!(principal = who, filter = wire.filter, before, "log level changed");
        }
        let answer = set.map(|before| tonic::Response::new(v1::SetLogLevelResponse { before }));
        Box::pin(std::future::ready(answer.map_err(Status::invalid_argument)))
    }

    /// A manager sees this node off; its words are passed on.
    async fn leave(&self, wire: v1::LeaveClusterRequest) -> Answered<Lines> {
        if !wire.force {
            return self.leave_through(wire).await;
        }
        // It leaves anyhow: nobody is to wait for those who do not answer.
        let found = tokio::time::timeout(FORCE_MAX, self.leave_through(wire)).await;
        let within = FORCE_MAX.as_secs();
        found.unwrap_or_else(|_| {
            Err(Status::unavailable(format!("no manager answered within {within} s")))
        })
    }

    async fn leave_through(&self, wire: v1::LeaveClusterRequest) -> Answered<Lines> {
        let mut trouble = Status::unavailable("no manager is known");
        for address in (self.managers)() {
            let channel = match self.dialer.channel(&address, Whom::Any).await {
                Ok(channel) => channel,
                Err(error) => {
                    trouble = Status::unavailable(error.to_string());
                    continue;
                }
            };
            let asked = async { ControlClient::new(channel).leave_cluster(wire).await };
            match tokio::time::timeout(ANSWER_MAX, asked).await {
                Ok(Ok(lines)) => return Ok(tonic::Response::new(self.follow(lines.into_inner()))),
                Ok(Err(status)) if status.code() == Code::Unavailable => trouble = status,
                Ok(Err(status)) => return Err(status),
                Err(_) => trouble = Status::unavailable(format!("{address} does not answer")),
            }
        }
        Err(trouble)
    }

    fn follow(&self, mut lines: Streaming<v1::LeaveProgress>) -> Lines {
        let (out, shown) = mpsc::channel(LINES_MAX);
        let stop_node = Arc::clone(&self.stop_node);
        tokio::spawn(async move {
            loop {
                let line = tokio::select! {
                    line = lines.message() => line,
                    // Whoever asked has thought better of it.
                    () = out.closed() => return,
                };
                let (line, done) = match line {
                    Ok(Some(line)) => (Ok(line.clone()), line.done),
                    Ok(None) => return,
                    Err(status) => (Err(status), false),
                };
                let over = line.is_err();
                // The reader may be gone; what was done stays done.
                let _ = out.send(line).await;
                if done {
                    stop_node(true);
                }
                if done || over {
                    return;
                }
            }
        });
        ReceiverStream::new(shown)
    }
}

type Lines = ReceiverStream<Result<v1::LeaveProgress, Status>>;

struct Leave(Arc<Local>);

impl ServerStreamingService<v1::LeaveClusterRequest> for Leave {
    type Response = v1::LeaveProgress;
    type ResponseStream = Lines;
    type Future = Future<Lines>;

    fn call(&mut self, request: tonic::Request<v1::LeaveClusterRequest>) -> Self::Future {
        let local = Arc::clone(&self.0);
        Box::pin(async move { local.leave(request.into_inner()).await })
    }
}

struct Streamed(Arc<Local>);

impl StreamingService<v1::Frame> for Streamed {
    type Response = v1::Frame;
    type ResponseStream = ReceiverStream<Result<v1::Frame, Status>>;
    type Future = Future<Self::ResponseStream>;

    fn call(&mut self, request: tonic::Request<Streaming<v1::Frame>>) -> Self::Future {
        let local = Arc::clone(&self.0);
        Box::pin(async move { local.streams.open(request.into_inner()).await })
    }
}

struct Unary<F>(F);

impl<Q, A, F> UnaryService<Q> for Unary<F>
where
    F: FnMut(Q) -> Future<A>,
{
    type Response = A;
    type Future = Future<A>;

    fn call(&mut self, request: tonic::Request<Q>) -> Self::Future {
        (self.0)(request.into_inner())
    }
}

fn grpc<A, Q>() -> Grpc<ProstCodec<A, Q>>
where
    A: prost::Message + Send + 'static,
    Q: prost::Message + Default + Send + 'static,
{
    Grpc::new(ProstCodec::default())
}

/// The type is told whole: the compiler cannot see that it may cross threads otherwise.
fn unary<Q, A, F>(
    request: Request,
    call: F,
) -> Pin<Box<dyn std::future::Future<Output = Response> + Send>>
where
    Q: prost::Message + Default + Send + 'static,
    A: prost::Message + Send + 'static,
    F: FnMut(Q) -> Future<A> + Send + Sync + 'static,
{
    Box::pin(async move { grpc::<A, Q>().unary(Unary(call), request).await })
}
