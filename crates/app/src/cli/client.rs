//! The CLI's line to a cluster: gRPC over a node's unix socket, or over TLS to
//! any of the managers of a context.
//!
//! A call whose connection was lost is made again on a new one, with the same
//! request id, so that it is done once however often it is sent. A node that
//! does not answer at all is reported at once.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status, Streaming};
use warren_base::rng::{Rng, SystemRng};
use warren_proto::v1;
use warren_proto::v1::control_client::ControlClient;

use super::failure::{Exit, Failure};
use super::remote::Remote;
use crate::roles::dial::calling::{Called, Distrust, calling};

/// Times that a call is made before giving up; with the pauses below 6.3 s,
/// enough for a daemon that was killed to be started again.
const TRIES_MAX: u32 = 7;
/// Before the second try; doubles with each further one.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// A listing of a million tasks; only a broken node would send more.
const ANSWER_BYTES_MAX: usize = 512 << 20;
/// What managers want to be known without refusing.
const WARNING_KEY: &str = "warren-warning";
/// How a message begins when this machine's node does not run.
pub(crate) const NOBODY_HERE: &str = "no node is running here";
/// Of a refusal that time does not change. The value is `1`.
pub(crate) const FINAL_KEY: &str = "warren-final";
/// Of a stop on the node's own socket: it is the end of its membership as well.
pub(crate) const FORGET_KEY: &str = "warren-forget";
/// Frames on their way to the node: enough to keep the socket busy.
const FRAMES_MAX: usize = 8;

/// A manager that needs so long to say that it cannot has waited for a majority: asking again
/// would only wait again.
const SLOW: Duration = Duration::from_secs(2);
/// For all managers of a context together to be reached.
const REMOTE_MAX: Duration = Duration::from_secs(4);

/// The type of the generated client, for the closures of [`Client::call`].
pub(crate) type Control = ControlClient<InterceptedService<Channel, Bearer>>;

/// Who is called.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// The node of this machine.
    Socket(PathBuf),
    /// Managers elsewhere.
    Remote(Arc<Remote>),
}

/// Shows an operator's token with each call, if there is one.
#[derive(Clone)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

pub(crate) struct Client {
    target: Target,
    control: Control,
    distrust: Distrust,
}

/// Both directions of a stream to a node.
pub(crate) struct Frames {
    pub(crate) to: mpsc::Sender<v1::Frame>,
    pub(crate) from: Streaming<v1::Frame>,
}

/// A new request id: the same id and content are done once.
pub(crate) fn request_id() -> Vec<u8> {
    let mut bytes = vec![0; 16];
    SystemRng.fill(&mut bytes);
    bytes
}

/// One frame of a stream.
pub(crate) fn frame(kind: v1::frame::Kind) -> v1::Frame {
    v1::Frame { kind: Some(kind) }
}

impl Client {
    /// # Errors
    /// [`Exit::Unreachable`] when nobody answers.
    pub(crate) async fn connect(target: Target) -> Result<Self, Failure> {
        let (control, distrust) = dial(&target).await?;
        Ok(Self { target, control, distrust })
    }

    /// Makes a call; again when the connection was lost, so `call` must send the same each time.
    pub(crate) async fn call<R>(
        &mut self,
        mut call: impl AsyncFnMut(Control) -> Result<Response<R>, Status>,
    ) -> Result<R, Failure> {
        let mut pause = RETRY_PAUSE;
        let mut tries = 1;
        loop {
            let began = Instant::now();
            let status = match call(self.control.clone()).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status,
            };
            let again = is_lost(&status) && !self.distrust.is_told();
            if !again || tries >= TRIES_MAX || began.elapsed() > SLOW {
                return Err(self.told(status));
            }
            tries = self.reconnect(tries, &mut pause).await?;
        }
    }

    /// Makes a call that is not to be made twice.
    pub(crate) async fn once<R>(
        &mut self,
        call: impl AsyncFnOnce(Control) -> Result<Response<R>, Status>,
    ) -> Result<R, Failure> {
        let asked = call(self.control.clone()).await;
        asked.map(Response::into_inner).map_err(|status| self.told(status))
    }

    /// As [`Client::call`], with what the manager wants to be known besides.
    pub(crate) async fn warned<R>(
        &mut self,
        mut call: impl AsyncFnMut(Control) -> Result<Response<R>, Status>,
    ) -> Result<(R, Option<String>), Failure> {
        let mut warning = None;
        let answer = self
            .call(async |control| {
                let response = call(control).await?;
                let text = response.metadata().get(WARNING_KEY).and_then(|text| text.to_str().ok());
                warning = text.map(str::to_owned);
                Ok(response)
            })
            .await?;
        Ok((answer, warning))
    }

    /// Makes a call whose answer is a stream.
    pub(crate) async fn subscribe<R>(
        &mut self,
        mut call: impl AsyncFnMut(Control) -> Result<Response<Streaming<R>>, Status>,
    ) -> Result<Streaming<R>, Failure> {
        self.call(async |control| call(control).await).await
    }

    /// Opens a byte stream to the node that the call arrives at. Never retried
    /// here: what was sent may have been done.
    pub(crate) async fn open(&mut self, kind: v1::open_stream::Kind) -> Result<Frames, Failure> {
        self.open_at(Vec::new(), kind).await
    }

    /// The same to the node with this id; only managers pass it on.
    pub(crate) async fn open_at(
        &self,
        node: Vec<u8>,
        kind: v1::open_stream::Kind,
    ) -> Result<Frames, Failure> {
        let (to, frames) = mpsc::channel(FRAMES_MAX);
        let open = v1::OpenStream { node, kind: Some(kind) };
        // There is room: the channel is new.
        let _ = to.try_send(frame(v1::frame::Kind::Open(open)));
        let opened = self.control.clone().stream(ReceiverStream::new(frames)).await;
        let from = opened.map_err(|status| self.told(status))?.into_inner();
        Ok(Frames { to, from })
    }

    /// Asks the node to leave its cluster; once, and not again.
    pub(crate) async fn leave(
        &mut self,
        request: v1::LeaveClusterRequest,
    ) -> Result<Streaming<v1::LeaveProgress>, Failure> {
        let asked = self.control.leave_cluster(request).await;
        Ok(asked.map_err(|status| self.told(status))?.into_inner())
    }

    /// Asks the node to stop and to forget what it is, without asking the managers.
    pub(crate) async fn forget_node(&mut self) -> Result<(), Status> {
        let mut request = tonic::Request::new(v1::StopNodeRequest { with_containers: true });
        request.metadata_mut().insert(FORGET_KEY, MetadataValue::from_static("1"));
        self.control.stop_node(request).await.map(|_| ())
    }

    /// Asks the node to stop; once, for it may well stop answering.
    pub(crate) async fn stop_node(&mut self, request: v1::StopNodeRequest) -> Result<(), Status> {
        self.control.stop_node(request).await.map(|_| ())
    }

    /// In words for people.
    fn told(&self, status: Status) -> Failure {
        match &self.target {
            Target::Remote(remote) if self.distrust.is_told() => remote.distrusted(),
            Target::Remote(_) | Target::Socket(_) => status.into(),
        }
    }

    /// A new connection; returns the number of the next try.
    async fn reconnect(&mut self, mut tries: u32, pause: &mut Duration) -> Result<u32, Failure> {
        loop {
            tokio::time::sleep(*pause).await;
            *pause *= 2;
            tries += 1;
            match dial(&self.target).await {
                Ok((control, distrust)) => {
                    (self.control, self.distrust) = (control, distrust);
                    return Ok(tries);
                }
                Err(failure) if failure.exit != Exit::Unreachable || tries >= TRIES_MAX => {
                    return Err(failure);
                }
                Err(_) => {}
            }
        }
    }
}

/// Whether the connection ended before an answer came. Answers of the server
/// itself have no source; one that is not available (it is stopping) counts too,
/// unless it says that asking again is of no use.
pub(crate) fn is_lost(status: &Status) -> bool {
    let passing = status.code() == Code::Unavailable && !status.metadata().contains_key(FINAL_KEY);
    passing || std::error::Error::source(status).is_some()
}

async fn dial(target: &Target) -> Result<(Control, Distrust), Failure> {
    let (channel, token, distrust) = match target {
        Target::Socket(socket) => (dial_socket(socket).await?, None, Distrust::default()),
        Target::Remote(remote) => {
            let token = remote.token().map(|token| format!("Bearer {token}").parse());
            let token = token.transpose();
            let mut token = token.map_err(|_| Failure::input("token of the context: not text"))?;
            if let Some(token) = &mut token {
                MetadataValue::set_sensitive(token, true);
            }
            let dialled = tokio::time::timeout(REMOTE_MAX, dial_remote(remote)).await;
            let silent = || {
                let text = format!("no manager answers at {}", remote.shown());
                Failure::new(Exit::Unreachable, text)
            };
            let called = dialled.unwrap_or_else(|_| Err(silent()))?;
            (called.channel, token, called.distrust)
        }
    };
    let control = ControlClient::with_interceptor(channel, Bearer(token));
    Ok((control.max_decoding_message_size(ANSWER_BYTES_MAX), distrust))
}

/// The first manager that answers.
async fn dial_remote(remote: &Remote) -> Result<Called, Failure> {
    let config = remote.config()?;
    let mut trouble = Vec::new();
    for address in remote.addresses()? {
        match calling(&address, Arc::clone(&config)).await {
            Ok(called) => {
                remote.learn(&called.shown);
                return Ok(called);
            }
            Err(error) => trouble.push(error),
        }
    }
    Err(remote.nobody(&trouble))
}

async fn dial_socket(socket: &Path) -> Result<Channel, Failure> {
    let stream = UnixStream::connect(socket).await.map_err(|e| unreachable(socket, &e))?;
    let mut stream = Some(TokioIo::new(stream));
    // The address is never looked at: the connector hands out the socket.
    let endpoint = Endpoint::from_static("http://warren.invalid");
    let connector = tower::service_fn(move |_| {
        let taken = stream.take();
        async move { taken.ok_or_else(|| std::io::Error::from(ErrorKind::NotConnected)) }
    });
    let channel = endpoint.connect_with_connector(connector).await;
    channel.map_err(|_| {
        Failure::new(Exit::Unreachable, format!("{} does not speak gRPC", socket.display()))
    })
}

fn unreachable(socket: &Path, error: &std::io::Error) -> Failure {
    let socket = socket.display();
    let (message, hint) = match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => (
            format!("{NOBODY_HERE}: nothing answers at {socket}"),
            "start it with `warren node run`, or make a cluster with `warren cluster init`",
        ),
        ErrorKind::PermissionDenied => (
            format!("{socket} may not be used by this user"),
            "be root or a member of the group warren",
        ),
        _ => (format!("connect to {socket}: {error}"), "is the path of the socket right?"),
    };
    Failure::new(Exit::Unreachable, message).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_there_is_unreachable() {
        let dir = tempfile::tempdir().unwrap();
        let failure = dial_socket(&dir.path().join("warren.sock")).await.err().unwrap();
        assert_eq!(failure.exit, Exit::Unreachable);
        assert!(failure.hint.unwrap().contains("warren node run"));
    }

    #[test]
    fn lost_connections_are_told_from_answers() {
        assert!(is_lost(&Status::unavailable("stopping")));
        assert!(!is_lost(&Status::not_found("no service web")));
        let mut locked = Status::unavailable("the node is locked");
        locked.metadata_mut().insert(FINAL_KEY, MetadataValue::from_static("1"));
        assert!(!is_lost(&locked));
        let broken = std::io::Error::from(ErrorKind::BrokenPipe);
        let mut status = Status::unknown("transport error");
        status.set_source(Arc::new(broken));
        assert!(is_lost(&status));
    }
}
