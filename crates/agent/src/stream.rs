//! Bytes to and from people: exec, logs, images, checks, doctor.
//!
//! A manager asks for a stream; the agent opens a tunnel for it and serves it
//! there. Every stream ends with its last frame: an exit code, an answer, or an
//! error that carries the CLI's exit code and a hint.

mod control;
mod exec;
mod images;
mod inspect;
mod logs;
mod resolve;
mod volumes;

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use warren_model::TaskId;
use warren_proto::v1;
use warren_proto::v1::dispatch_client::DispatchClient;
use warren_proto::v1::frame::Kind;
use warren_proto::v1::open_stream::Kind as Open;
use warren_runtime::Error as RuntimeError;

use crate::core::TaskView;
use crate::effects::chain;
use crate::worker::{Message, Tools};

/// Frames on their way out; a slow reader slows the writer down.
const FRAMES_MAX: usize = 64;
/// Bytes in one frame: large enough to make gRPC's cost small, small enough to interleave.
const CHUNK: usize = 32 * 1024;
/// Streams served at once; each costs two buffers and, for exec, a process.
pub(crate) const STREAMS_MAX: usize = 256;
/// How long a manager may take to read the last frames of a stream.
const LINGER_MS: u64 = 30_000;
/// Metadata key that names the stream.
const STREAM_ID: &str = "stream-id";

/// Whose business a failure is; the CLI's exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    Failed = 1,
    BadInput = 2,
    NotFound = 3,
    Conflict = 4,
}

/// Why a stream ended badly.
#[derive(Debug)]
struct Failure {
    code: Code,
    message: String,
    hint: String,
}

impl Failure {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: String::new() }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl From<RuntimeError> for Failure {
    fn from(error: RuntimeError) -> Self {
        let code = match &error {
            RuntimeError::Rejected(_) => Code::BadInput,
            RuntimeError::NotFound(_) => Code::NotFound,
            RuntimeError::NotRunning(_) => Code::Conflict,
            RuntimeError::Io { .. } | RuntimeError::Unsupported(_) => Code::Failed,
        };
        Self::new(code, chain(&error))
    }
}

impl From<warren_proto::Error> for Failure {
    fn from(error: warren_proto::Error) -> Self {
        Self::new(Code::BadInput, error.to_string())
    }
}

/// The far end went away: nobody is left to tell.
#[derive(Debug)]
struct Gone;

/// What the far end says.
#[derive(Debug)]
enum Heard {
    Frame(Box<Kind>),
    /// It has said all it has to say, and listens on.
    End,
    Gone,
}

/// Both directions of a tunnel.
struct Line {
    incoming: tonic::Streaming<v1::Frame>,
    outgoing: Outgoing,
    ended: bool,
}

/// The way out.
#[derive(Clone)]
struct Outgoing(mpsc::Sender<v1::Frame>);

impl Outgoing {
    async fn send(&self, kind: Kind) -> Result<(), Gone> {
        self.0.send(v1::Frame { kind: Some(kind) }).await.map_err(|_| Gone)
    }

    async fn closed(&self) {
        self.0.closed().await;
    }
}

impl Line {
    async fn send(&self, kind: Kind) -> Result<(), Gone> {
        self.outgoing.send(kind).await
    }

    /// The next frame; never resolves again after the end.
    async fn receive(&mut self) -> Heard {
        if self.ended {
            std::future::pending::<()>().await;
        }
        loop {
            let heard = match self.incoming.message().await {
                Ok(Some(v1::Frame { kind: Some(kind) })) => return Heard::Frame(Box::new(kind)),
                // A kind that we do not know is a newer peer's: skip it.
                Ok(Some(v1::Frame { kind: None })) => continue,
                Ok(None) => Heard::End,
                Err(_) => Heard::Gone,
            };
            self.ended = true;
            return heard;
        }
    }

    /// Resolves when nobody listens any more; what is said meanwhile is dropped.
    async fn gone(&mut self) {
        let outgoing = self.outgoing.clone();
        loop {
            tokio::select! {
                () = outgoing.closed() => return,
                heard = self.receive() => match heard {
                    Heard::Frame(_) | Heard::End => {}
                    Heard::Gone => return,
                },
            }
        }
    }
}

/// What a stream came to: served, failed (to be told), or left alone.
enum Outcome {
    Served,
    Failed(Failure),
    Gone,
}

impl From<Result<(), Failure>> for Outcome {
    fn from(result: Result<(), Failure>) -> Self {
        result.map_or_else(Self::Failed, |()| Self::Served)
    }
}

/// Serves one stream to its end.
pub(crate) async fn serve(tools: &Arc<Tools>, channel: Channel, request: v1::StreamRequest) {
    let id = request.stream_id;
    let (outgoing, frames) = mpsc::channel(FRAMES_MAX);
    let mut tunnel = tonic::Request::new(ReceiverStream::new(frames));
    tunnel.metadata_mut().insert(STREAM_ID, id.into());
    let incoming = match DispatchClient::new(channel).tunnel(tunnel).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            // Who asked is gone already, or the manager is; either will ask anew.
            tracing::debug!(stream = id, %status, "open tunnel");
            return;
        }
    };
    let mut line = Line { incoming, outgoing: Outgoing(outgoing), ended: false };
    let outcome = match tools.streams.try_acquire() {
        // What a stream needs at most is a lot for those that need little.
        Ok(_permit) => {
            Box::pin(open(tools, &mut line, request.open.and_then(|open| open.kind))).await
        }
        Err(_) => Outcome::Failed(Failure::new(
            Code::Failed,
            format!("this node serves {STREAMS_MAX} streams already"),
        )),
    };
    if let Outcome::Failed(failure) = outcome {
        let error = v1::StreamError {
            code: failure.code as u32,
            message: failure.message,
            hint: failure.hint,
        };
        // Gone before the error reached it: nothing to do.
        let _ = line.send(Kind::Error(error)).await;
    }
    // Closing our side first lets the last frames out; dropping both at once would reset them.
    let Line { mut incoming, outgoing, ended } = line;
    drop(outgoing);
    let read_out = async { while !ended && let Ok(Some(_)) = incoming.message().await {} };
    tokio::select! {
        () = read_out => {}
        () = tools.clock.sleep(LINGER_MS) => {}
    }
}

async fn open(tools: &Arc<Tools>, line: &mut Line, kind: Option<Open>) -> Outcome {
    match kind {
        Some(Open::Exec(exec)) => exec::serve(tools, exec, line).await,
        Some(Open::Logs(logs)) => logs::serve(tools, logs, line).await,
        Some(Open::ImagePull(pull)) => images::pull(tools, &pull.reference, line).await,
        Some(Open::ImageLoad(_)) => images::load(tools, line).await,
        Some(Open::ImageImport(import)) => images::import(tools, import, line).await,
        Some(Open::ImageList(_)) => images::list(tools, line).await,
        Some(Open::ImageRemove(remove)) => images::remove(tools, remove, line).await,
        Some(Open::VolumeList(asked)) => volumes::list(tools, asked, line).await,
        Some(Open::VolumeRemove(asked)) => volumes::remove(tools, asked, line).await,
        Some(Open::ImageSave(save)) => images::out::save(tools, save, line).await,
        Some(Open::ImagePush(push)) => images::out::push(tools, push, line).await,
        Some(Open::ImageFsck(fsck)) => images::out::fsck(tools, fsck.repair, line).await,
        Some(Open::RegistryLogin(login)) => images::login(tools, login).await,
        Some(Open::Check(check)) => inspect::check(tools, check, line).await,
        Some(Open::Doctor(asked)) => inspect::doctor(tools, asked, line).await,
        Some(Open::CountPolicies(_)) => inspect::count_policies(tools, line).await,
        Some(Open::ControlTask(asked)) => control::serve(tools, asked, line).await,
        Some(Open::RotateKey(_)) => inspect::rotate_key(tools, line).await,
        None => Outcome::Failed(Failure::new(
            Code::BadInput,
            "this node does not know that kind of stream; is it older than its manager?",
        )),
    }
}

async fn find_task(tools: &Tools, id: TaskId) -> Result<TaskView, Failure> {
    let (reply, answer) = oneshot::channel();
    tools.tell(Message::Task(id, reply)).await;
    let found = answer.await.ok().flatten();
    found.ok_or_else(|| Failure::new(Code::NotFound, format!("task {id} is not on this node")))
}

fn must_run(task: &TaskView) -> Result<(), Failure> {
    if task.is_up {
        return Ok(());
    }
    let state = task.status.state.as_str();
    let message = format!("task {} is not running, it is {state}", task.spec.id);
    Err(Failure::new(Code::Conflict, message))
}
