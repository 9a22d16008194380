//! A conversation with a process in a container: what is typed, what it says, signals, sizes.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use warren_proto::v1;
use warren_proto::v1::frame;

use super::client::{Frames, frame as wrap};
use super::context::Context;
use super::detach_keys::{DetachKeys, Watch};
use super::failure::{Exit, Failure};
use super::terminal;

/// For a node to say that it has heard that we go.
const DETACH_MAX: Duration = Duration::from_secs(5);

/// How to talk.
pub(crate) struct Manner {
    /// What is typed goes there.
    pub(crate) input: bool,
    /// It has a terminal; otherwise it may still say so.
    pub(crate) tty: bool,
    /// That leave it as it is.
    pub(crate) keys: Option<DetachKeys>,
    /// Signals to us go there.
    pub(crate) signals: bool,
}

/// How it ended.
pub(crate) enum End {
    Exited(u8),
    Detached,
}

impl End {
    /// As the exit of this program.
    pub(crate) fn finish(self, context: &mut Context<'_>) -> Result<(), Failure> {
        match self {
            Self::Exited(0) => Ok(()),
            Self::Exited(code) => Err(Failure::new(Exit::Silent(code), "")),
            Self::Detached => {
                context.printer.note("detached");
                Ok(())
            }
        }
    }
}

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|e| Failure::failed(format!("listen for signals: {e}")))
}

/// Signals that are passed on.
struct Signals([(i32, Signal); 6]);

impl Signals {
    fn listen() -> Result<Self, Failure> {
        Ok(Self([
            (1, listen(SignalKind::hangup())?),
            (2, listen(SignalKind::interrupt())?),
            (3, listen(SignalKind::quit())?),
            (10, listen(SignalKind::user_defined1())?),
            (12, listen(SignalKind::user_defined2())?),
            (15, listen(SignalKind::terminate())?),
        ]))
    }

    async fn next(&mut self) -> i32 {
        let [(a, one), (b, two), (c, three), (d, four), (e, five), (f, six)] = &mut self.0;
        tokio::select! {
            _ = one.recv() => *a,
            _ = two.recv() => *b,
            _ = three.recv() => *c,
            _ = four.recv() => *d,
            _ = five.recv() => *e,
            _ = six.recv() => *f,
        }
    }
}

fn size() -> Option<v1::Resize> {
    terminal::size().map(|(rows, columns)| v1::Resize { rows, columns })
}

/// Passes everything through until the process ended or was left.
///
/// Sending never waits in the loop that receives: a process that writes while
/// it is written to would otherwise stop both.
pub(crate) async fn talk(
    context: &mut Context<'_>,
    mut frames: Frames,
    manner: Manner,
) -> Result<End, Failure> {
    let Manner { input, mut tty, keys, signals } = manner;
    let at_terminal = terminal::stdin_is_terminal();
    let mut raw = match input && tty && at_terminal {
        true => Some(terminal::Mode::raw()?),
        false => None,
    };
    let (leave, mut left) = mpsc::channel(1);
    if input {
        let watch = keys.filter(|_| at_terminal).map(Watch::new);
        tokio::spawn(pump(terminal::input(), frames.to.clone(), watch, leave));
    }
    let mut resized = listen(SignalKind::window_change())?;
    // Without listening for them, they end this program as any other.
    let mut passed = if signals { Some(Signals::listen()?) } else { None };
    let mut detaching = false;
    let limit = tokio::time::sleep(Duration::MAX);
    tokio::pin!(limit);
    loop {
        let next_signal = async {
            match &mut passed {
                Some(signals) => signals.next().await,
                None => std::future::pending().await,
            }
        };
        let send = tokio::select! {
            message = frames.from.message() => match message? {
                None => {
                    let message = "the node ended the conversation before the command ended";
                    return Err(Failure::new(Exit::Unreachable, message));
                }
                Some(v1::Frame { kind: Some(frame::Kind::Detach(_)) }) => return Ok(End::Detached),
                Some(v1::Frame { kind: Some(frame::Kind::Resize(_)) }) => {
                    tty = true;
                    if input && at_terminal && raw.is_none() {
                        raw = Some(terminal::Mode::raw()?);
                    }
                    // Another size first: programs draw anew when it changes.
                    let Some(real) = size() else { continue };
                    let other = v1::Resize { rows: real.rows + 1, ..real };
                    let to = frames.to.clone();
                    tokio::spawn(async move {
                        let _ = to.send(wrap(frame::Kind::Resize(other))).await;
                        let _ = to.send(wrap(frame::Kind::Resize(real))).await;
                    });
                    continue;
                }
                Some(message) => match receive(context, message)? {
                    Some(code) => return Ok(End::Exited(code)),
                    None => continue,
                },
            },
            _ = resized.recv(), if tty => match size() {
                Some(size) => frame::Kind::Resize(size),
                None => continue,
            },
            Some(()) = left.recv(), if !detaching => {
                detaching = true;
                limit.as_mut().reset(tokio::time::Instant::now() + DETACH_MAX);
                frame::Kind::Detach(true)
            }
            // A node of an older version does not answer.
            () = &mut limit, if detaching => return Ok(End::Detached),
            number = next_signal => frame::Kind::Signal(number),
        };
        let to = frames.to.clone();
        tokio::spawn(async move {
            // A node that takes no more still has its last words for us.
            let _ = to.send(wrap(send)).await;
        });
    }
}

async fn pump(
    mut input: mpsc::Receiver<std::io::Result<Vec<u8>>>,
    to: mpsc::Sender<v1::Frame>,
    mut watch: Option<Watch>,
    leave: mpsc::Sender<()>,
) {
    while let Some(Ok(bytes)) = input.recv().await {
        let (bytes, detached) = match &mut watch {
            Some(watch) => watch.pass(&bytes),
            None => (bytes, false),
        };
        let sent =
            bytes.is_empty() || to.send(wrap(frame::Kind::Stdin(bytes.into()))).await.is_ok();
        if detached {
            let _ = leave.send(()).await;
        }
        if detached || !sent {
            return;
        }
    }
    let _ = to.send(wrap(frame::Kind::StdinClosed(true))).await;
}

fn receive(context: &mut Context<'_>, message: v1::Frame) -> Result<Option<u8>, Failure> {
    match message.kind {
        Some(frame::Kind::Stdout(bytes)) => context.printer.raw(&bytes)?,
        Some(frame::Kind::Stderr(bytes)) => context.printer.raw_error(&bytes),
        Some(frame::Kind::ExitCode(code)) => {
            // Codes of processes fit a byte; anything else is a failure all the same.
            return Ok(Some(u8::try_from(code).unwrap_or(u8::MAX)));
        }
        Some(frame::Kind::Error(error)) => return Err(error.into()),
        _ => {}
    }
    Ok(None)
}
