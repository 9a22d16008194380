//! The answering side of a connection between managers.
//!
//! Calls are begun in the order in which they came and answered as they are
//! done. What is under way is bounded in number and bytes: a caller that is too
//! fast waits in its socket.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::Call;
use super::frame::{self, ERROR, FrameError, GREETING_LEN, Greeting, OK, PING};
use super::lane::{READ, write_out};
use super::tcp::BoxStream;

/// From connection to greeting.
const GREETING_MAX: Duration = Duration::from_secs(5);
/// Calls under way on a connection, and their bytes.
const CALLS_MAX: usize = 256;
const BYTES_MAX: usize = 16 << 20;
/// Longer than callers keep an unused connection.
const IDLE: Duration = Duration::from_secs(150);
/// Of a refusal's text.
const TEXT_MAX: usize = 1024;

/// Who answers calls.
pub trait Answer: Send + Sync + 'static {
    /// The number of this manager: callers say whom they mean.
    fn number(&self) -> u64;

    /// Answers a call, or says why not. It is begun when the future is first polled.
    fn answer(
        &self,
        from: u64,
        kind: Call,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, String>>;
}

/// Why a connection ended before its caller closed it.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("read from a manager")]
    Read(#[source] io::Error),
    #[error("write to a manager")]
    Write(#[source] io::Error),
    #[error("no greeting came in time")]
    Slow,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("a call of unknown kind {kind}")]
    Kind { kind: u8 },
    #[error("manager {from} calls manager {to}, this is manager {number}")]
    Misdirected { from: u64, to: u64, number: u64 },
    #[error("manager {known} calls itself manager {from}")]
    Impostor { known: u64, from: u64 },
    #[error("this manager is ending")]
    Ending,
}

/// Serves a connection until it is closed. `known` is who the caller is, when the state says so.
///
/// # Errors
/// [`ServeError`]: what the caller did wrong, or what the network did.
pub async fn serve(
    mut stream: BoxStream,
    known: Option<u64>,
    answers: &dyn Answer,
) -> Result<(), ServeError> {
    let mut greeting = [0; GREETING_LEN];
    let read = tokio::time::timeout(GREETING_MAX, stream.read_exact(&mut greeting)).await;
    read.map_err(|_| ServeError::Slow)?.map_err(ServeError::Read)?;
    let greeting = match check(&greeting, known, answers.number()) {
        Ok(greeting) => greeting,
        Err(error) => {
            refuse(&mut stream, &error).await;
            return Err(error);
        }
    };
    let mut served = Served::new(stream);
    match served.run(greeting.from, answers).await {
        Ok(()) => Ok(()),
        Err(error @ (ServeError::Frame(_) | ServeError::Kind { .. })) => {
            refuse(&mut served.writer, &error).await;
            Err(error)
        }
        Err(error) => Err(error),
    }
}

fn check(
    bytes: &[u8; GREETING_LEN],
    known: Option<u64>,
    number: u64,
) -> Result<Greeting, ServeError> {
    let greeting = Greeting::decode(bytes)?;
    let Greeting { from, to, .. } = greeting;
    if to != number {
        return Err(ServeError::Misdirected { from, to, number });
    }
    match known {
        Some(known) if known != from => Err(ServeError::Impostor { known, from }),
        Some(_) | None => Ok(greeting),
    }
}

/// Tells the caller why; it may not listen.
async fn refuse<W: tokio::io::AsyncWrite + Unpin>(writer: &mut W, error: &ServeError) {
    let mut out = BytesMut::new();
    if frame::encode(&mut out, 0, ERROR, error.to_string().as_bytes()).is_ok() {
        let told = async {
            writer.write_all(&out).await?;
            writer.flush().await
        };
        let _ = tokio::time::timeout(GREETING_MAX, told).await;
    }
}

struct Done {
    id: u64,
    bytes: usize,
    result: Result<Bytes, String>,
}

struct Served {
    reader: tokio::io::ReadHalf<BoxStream>,
    writer: tokio::io::WriteHalf<BoxStream>,
    input: BytesMut,
    output: BytesMut,
    dirty: bool,
    calls: FuturesUnordered<BoxFuture<'static, Done>>,
    bytes: usize,
}

impl Served {
    fn new(stream: BoxStream) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            reader,
            writer,
            input: BytesMut::new(),
            output: BytesMut::new(),
            dirty: false,
            calls: FuturesUnordered::new(),
            bytes: 0,
        }
    }

    async fn run(&mut self, from: u64, answers: &dyn Answer) -> Result<(), ServeError> {
        let mut idle_at = Instant::now() + IDLE;
        loop {
            let room = self.calls.len() < CALLS_MAX && self.bytes < BYTES_MAX;
            let to_write = self.dirty || !self.output.is_empty();
            self.input.reserve(READ);
            tokio::select! {
                biased;
                Some(done) = self.calls.next(), if !self.calls.is_empty() => {
                    self.tell(done)?;
                    // All that is done leaves with one flush.
                    while let Some(Some(done)) = futures::FutureExt::now_or_never(self.calls.next()) {
                        self.tell(done)?;
                    }
                }
                written = write_out(&mut self.writer, &mut self.output, &mut self.dirty), if to_write => {
                    written.map_err(ServeError::Write)?;
                }
                read = self.reader.read_buf(&mut self.input), if room => {
                    if read.map_err(ServeError::Read)? == 0 {
                        return Ok(());
                    }
                    idle_at = Instant::now() + IDLE;
                    self.take_calls(from, answers)?;
                }
                () = tokio::time::sleep_until(idle_at), if self.calls.is_empty() => return Ok(()),
            }
        }
    }

    fn take_calls(&mut self, from: u64, answers: &dyn Answer) -> Result<(), ServeError> {
        while let Some(call) = frame::decode(&mut self.input)? {
            let id = call.id;
            if call.kind == PING {
                frame::encode(&mut self.output, id, PING, b"")?;
                continue;
            }
            let kind = Call::from_byte(call.kind).ok_or(ServeError::Kind { kind: call.kind })?;
            let bytes = call.payload.len();
            self.bytes += bytes;
            let answer = answers.answer(from, kind, call.payload);
            self.calls.push(Box::pin(async move { Done { id, bytes, result: answer.await } }));
        }
        Ok(())
    }

    fn tell(&mut self, done: Done) -> Result<(), ServeError> {
        let Done { id, bytes, result } = done;
        self.bytes -= bytes;
        match result {
            Ok(payload) => frame::encode(&mut self.output, id, OK, &payload)?,
            Err(mut text) => {
                let cut = text.floor_char_boundary(TEXT_MAX);
                text.truncate(cut);
                frame::encode(&mut self.output, id, ERROR, text.as_bytes())?;
            }
        }
        Ok(())
    }
}
