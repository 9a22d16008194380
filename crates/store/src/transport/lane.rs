//! One lane to one member: connect, talk, reconnect with bounded pauses.
//!
//! One task owns the connection, and writes all that waits with one flush. A
//! peer that says nothing while it owes an answer is asked for a sign of life,
//! then given up: a cut link must not hold calls until TCP notices. Only what
//! never left is said to be unreachable.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::frame::{self, ERROR, Frame, Greeting, OK, PING};
use super::tcp::{BoxStream, Dial};
use super::{Call, Lane, Member, TransportError};

/// Connecting, handshake included.
const DIAL_MAX: Duration = Duration::from_secs(2);
/// Between attempts to connect; doubled up to the second. Longer ones would show in failovers.
const PAUSE_MIN: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_millis(400);
/// Nothing heard for so long while answers are due: ask for a sign of life, then give up.
const PING_AFTER: Duration = Duration::from_millis(500);
const SILENCE_MAX: Duration = Duration::from_millis(1500);
/// A connection that nobody uses is closed.
const IDLE: Duration = Duration::from_secs(60);
/// Bytes gathered before they are written.
const GATHER: usize = 256 << 10;
/// Answers that are due at once.
const PENDING_MAX: usize = 1024;
/// Read at once.
pub(super) const READ: usize = 64 << 10;

/// A call that waits to leave.
pub(super) struct Outgoing {
    pub(super) kind: Call,
    pub(super) payload: Bytes,
    pub(super) answer: oneshot::Sender<Result<Bytes, TransportError>>,
}

pub(super) struct Link {
    pub(super) from: u64,
    pub(super) to: Member,
    pub(super) lane: Lane,
    pub(super) dial: Arc<dyn Dial>,
    pub(super) queued_bytes: Arc<AtomicUsize>,
}

impl Link {
    fn popped(&self, call: &Outgoing) {
        self.queued_bytes.fetch_sub(call.payload.len(), Ordering::Relaxed);
    }

    fn unreachable(&self, call: Outgoing, why: &str) {
        self.popped(&call);
        let error = TransportError::Unreachable { to: self.to.number, why: why.to_owned() };
        // A caller who gave up does not hear.
        let _ = call.answer.send(Err(error));
    }

    /// Refuses what comes until `until`. False when nobody can call any more.
    async fn pause(&self, calls: &mut mpsc::Receiver<Outgoing>, until: Instant, why: &str) -> bool {
        loop {
            match tokio::time::timeout_at(until, calls.recv()).await {
                Ok(Some(call)) => self.unreachable(call, why),
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    }

    async fn connect(&self) -> io::Result<BoxStream> {
        let dialled = tokio::time::timeout(DIAL_MAX, self.dial.dial(&self.to)).await;
        dialled.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no connection")))
    }
}

/// Carries calls until nobody makes any.
pub(super) async fn run(link: Link, mut calls: mpsc::Receiver<Outgoing>) {
    let mut pause = PAUSE_MIN;
    loop {
        let first = match tokio::time::timeout(IDLE, calls.recv()).await {
            Ok(Some(call)) => call,
            Ok(None) => return,
            Err(_) => {
                // What was sent in this moment is still answered.
                calls.close();
                continue;
            }
        };
        let why = match link.connect().await {
            Ok(stream) => {
                let mut talk = Talk::new(stream, link.to.number);
                let why = match talk.run(&link, first, &mut calls).await {
                    Ok(()) => None,
                    Err(error) => Some(error.to_string()),
                };
                talk.lose(why.as_deref().unwrap_or("the connection is closed"));
                if talk.useful {
                    pause = PAUSE_MIN;
                }
                why
            }
            Err(error) => {
                let why = format!("connect to {}: {error}", link.to.address);
                link.unreachable(first, &why);
                Some(why)
            }
        };
        let Some(why) = why else { continue };
        tracing::debug!(to = link.to.number, lane = ?link.lane, why, "peers: connection lost");
        if !link.pause(&mut calls, Instant::now() + pause, &why).await {
            return;
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// A connection and what is under way on it.
struct Talk {
    to: u64,
    reader: ReadHalf<BoxStream>,
    writer: WriteHalf<BoxStream>,
    input: BytesMut,
    output: BytesMut,
    /// Written and not flushed.
    dirty: bool,
    pending: BTreeMap<u64, oneshot::Sender<Result<Bytes, TransportError>>>,
    next_id: u64,
    /// When the peer last said something, or began to owe an answer.
    heard: Instant,
    pinged: bool,
    /// The peer answered at least once.
    useful: bool,
}

impl Talk {
    fn new(stream: BoxStream, to: u64) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            to,
            reader,
            writer,
            input: BytesMut::new(),
            output: BytesMut::new(),
            dirty: false,
            pending: BTreeMap::new(),
            next_id: 1,
            heard: Instant::now(),
            pinged: false,
            useful: false,
        }
    }

    async fn run(
        &mut self,
        link: &Link,
        first: Outgoing,
        calls: &mut mpsc::Receiver<Outgoing>,
    ) -> io::Result<()> {
        let greeting = Greeting { lane: link.lane, from: link.from, to: link.to.number };
        self.output.extend_from_slice(&greeting.encode());
        self.push(link, first);
        loop {
            while self.has_room() {
                let Ok(call) = calls.try_recv() else { break };
                self.push(link, call);
            }
            let (room, deadline) = (self.has_room(), self.deadline());
            let to_write = self.dirty || !self.output.is_empty();
            self.input.reserve(READ);
            tokio::select! {
                biased;
                read = self.reader.read_buf(&mut self.input) => {
                    if read? == 0 {
                        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed it"));
                    }
                    self.take_answers()?;
                }
                written = write_out(&mut self.writer, &mut self.output, &mut self.dirty), if to_write => written?,
                call = calls.recv(), if room => match call {
                    Some(call) => self.push(link, call),
                    // Nobody is left to call; those who wait for answers still get them.
                    None if self.pending.is_empty() => return Ok(()),
                    None => self.wait_for_answers().await?,
                },
                () = tokio::time::sleep_until(deadline) => {
                    if self.overdue()? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// After the last caller: only answers can come.
    async fn wait_for_answers(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            write_out(&mut self.writer, &mut self.output, &mut self.dirty).await?;
            self.input.reserve(READ);
            let read = tokio::time::timeout(SILENCE_MAX, self.reader.read_buf(&mut self.input));
            if read.await.map_err(|_| silent())?? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.take_answers()?;
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.output.len() < GATHER && self.pending.len() < PENDING_MAX
    }

    fn push(&mut self, link: &Link, call: Outgoing) {
        link.popped(&call);
        let Outgoing { kind, payload, answer } = call;
        if answer.is_closed() {
            return;
        }
        if let Err(error) = frame::encode(&mut self.output, self.next_id, kind as u8, &payload) {
            let error = TransportError::Unreachable { to: self.to, why: error.to_string() };
            let _ = answer.send(Err(error));
            return;
        }
        if self.pending.is_empty() {
            self.heard = Instant::now();
        }
        self.pending.insert(self.next_id, answer);
        self.next_id += 1;
    }

    fn take_answers(&mut self) -> io::Result<()> {
        self.heard = Instant::now();
        self.pinged = false;
        while let Some(Frame { id, kind, payload }) =
            frame::decode(&mut self.input).map_err(io::Error::other)?
        {
            let text = || String::from_utf8_lossy(&payload).into_owned();
            if id == 0 {
                return Err(io::Error::other(text()));
            }
            self.useful = true;
            // Those who gave up are not in the way.
            let Some(answer) = self.pending.remove(&id) else { continue };
            let result = match kind {
                OK | PING => Ok(payload),
                ERROR => Err(TransportError::Refused { to: self.to, why: text() }),
                other => return Err(io::Error::other(format!("an answer of kind {other}"))),
            };
            let _ = answer.send(result);
        }
        Ok(())
    }

    fn deadline(&self) -> Instant {
        let wait = match (self.pending.is_empty(), self.pinged) {
            (true, _) => IDLE,
            (false, false) => PING_AFTER,
            (false, true) => SILENCE_MAX,
        };
        self.heard + wait
    }

    /// What to do when nothing was heard for long. True: the connection is not needed.
    fn overdue(&mut self) -> io::Result<bool> {
        let gone = self.pending.len();
        self.pending.retain(|_, answer| !answer.is_closed());
        if self.pending.is_empty() && gone == 0 {
            return Ok(true);
        }
        if self.pinged {
            return Err(silent());
        }
        self.pinged = true;
        // Its answer is an answer to nobody; any byte is a sign of life.
        frame::encode(&mut self.output, u64::MAX, PING, b"").map_err(io::Error::other)?;
        // Those who gave up are owed nothing, but whether the peer lives must be known.
        if self.pending.is_empty() {
            let (nobody, _) = oneshot::channel();
            self.pending.insert(u64::MAX, nobody);
        }
        Ok(false)
    }

    fn lose(&mut self, why: &str) {
        for answer in std::mem::take(&mut self.pending).into_values() {
            let error = TransportError::Lost { to: self.to, why: why.to_owned() };
            let _ = answer.send(Err(error));
        }
    }
}

fn silent() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the peer is silent")
}

/// Writes everything, then flushes. May be dropped at any moment and called again.
pub(super) async fn write_out<W: tokio::io::AsyncWrite + Unpin>(
    writer: &mut W,
    output: &mut BytesMut,
    dirty: &mut bool,
) -> io::Result<()> {
    while !output.is_empty() {
        *dirty = true;
        if writer.write_buf(output).await? == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    writer.flush().await?;
    *dirty = false;
    Ok(())
}
