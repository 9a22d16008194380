//! A process beside a container's own, through the shim.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe::{Receiver, Sender};
use warren_shim::message::{Operation, Reply, Request};

use super::Shared;
use super::binary::sealed_bytes;
use super::channel::Channel;
use super::explain::Subject;
use super::spec;
use crate::watched::{Watched, watch};
use crate::{Error, Exec, ExecControl, ExecSpec};

/// The child's ends of its streams, and ours.
struct Pipes {
    theirs: [OwnedFd; 3],
    stdin: Option<Sender>,
    stdout: Receiver,
    stderr: Receiver,
}

impl Pipes {
    fn new(with_stdin: bool) -> io::Result<Self> {
        let (stdin_theirs, stdin) = if with_stdin {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            (read, Some(Sender::from_owned_fd(write)?))
        } else {
            (File::open("/dev/null")?.into(), None)
        };
        let (stdout, stdout_theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, stderr_theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok(Self {
            theirs: [stdin_theirs, stdout_theirs, stderr_theirs],
            stdin,
            stdout: Receiver::from_owned_fd(stdout)?,
            stderr: Receiver::from_owned_fd(stderr)?,
        })
    }
}

impl Shared {
    pub(crate) async fn exec(&self, id: &str, exec: &ExecSpec) -> Result<Exec, Error> {
        let at = |source| Error::Io { action: format!("execute in container {id}"), source };
        let message = sealed_bytes(&spec::exec_message(exec)?).map_err(at)?;
        let channel = self.channel(id)?;
        let pipes =
            if exec.tty.is_some() { None } else { Some(Pipes::new(exec.stdin).map_err(at)?) };
        let theirs = pipes.iter().flat_map(|pipes| &pipes.theirs).map(AsFd::as_fd);
        let fds = std::iter::once(message.as_fd()).chain(theirs).collect::<Vec<BorrowedFd<'_>>>();
        let request = Request { operation: Operation::Exec, argument: 0 };
        channel.request(&request, &fds).await.map_err(at)?;
        let mut master = None;
        loop {
            match channel.reply().await.map_err(at)? {
                (Reply::Terminal, fd) => master = fd,
                (Reply::Started { .. }, _) => break,
                (reply, _) => return Err(Subject::exec(exec).error(reply)),
            }
        }
        let id = id.to_owned();
        if let Some(pipes) = pipes {
            let control = Control { id, channel, terminal: None, code: None };
            return Ok(Exec {
                stdin: pipes.stdin.map(|stdin| Box::new(stdin) as _),
                stdout: Box::new(pipes.stdout),
                stderr: Some(Box::new(pipes.stderr)),
                control: Box::new(control),
            });
        }
        let master = master.ok_or_else(|| at(io::ErrorKind::InvalidData.into()))?;
        let terminal = Terminal { master: Arc::new(watch(master).map_err(at)?) };
        let control = Control { id, channel, terminal: Some(terminal.clone()), code: None };
        Ok(Exec {
            stdin: exec.stdin.then(|| Box::new(terminal.clone()) as _),
            stdout: Box::new(terminal),
            stderr: None,
            control: Box::new(control),
        })
    }
}

struct Control {
    id: String,
    channel: Channel,
    terminal: Option<Terminal>,
    /// Once it has been told.
    code: Option<i32>,
}

#[async_trait]
impl ExecControl for Control {
    async fn resize(&mut self, rows: u16, columns: u16) -> Result<(), Error> {
        let Some(terminal) = &self.terminal else {
            return Err(Error::Rejected("this exec has no terminal".to_owned()));
        };
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(terminal.master.get_ref(), size).map_err(|error| Error::Io {
            action: "resize a terminal".to_owned(),
            source: error.into(),
        })
    }

    async fn signal(&mut self, signal: i32) -> Result<(), Error> {
        spec::check_signal(signal)?;
        let request = Request { operation: Operation::Signal, argument: signal };
        if self.code.is_some() || self.channel.request(&request, &[]).await.is_err() {
            return Err(Error::NotRunning(self.id.clone()));
        }
        loop {
            match self.channel.reply().await {
                Ok((Reply::Signalled { errno: 0 }, _)) => return Ok(()),
                Ok((Reply::Exited { code }, _)) => self.code = Some(code),
                Ok(_) | Err(_) => return Err(Error::NotRunning(self.id.clone())),
            }
        }
    }

    async fn wait(&mut self) -> Result<i32, Error> {
        loop {
            if let Some(code) = self.code {
                return Ok(code);
            }
            let action = || format!("wait for an exec in container {}", self.id);
            match self.channel.reply().await {
                Ok((Reply::Exited { code }, _)) => self.code = Some(code),
                Ok((Reply::Signalled { .. }, _)) => {}
                Ok(_) => {
                    let source = io::ErrorKind::InvalidData.into();
                    return Err(Error::Io { action: action(), source });
                }
                Err(source) => return Err(Error::Io { action: action(), source }),
            }
        }
    }
}

/// The master of a terminal, read and written at once.
#[derive(Clone)]
struct Terminal {
    master: Arc<Watched>,
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.master.poll_read_ready(context))?;
            let space = buffer.initialize_unfilled();
            match ready.try_io(|master| Ok(rustix::io::read(master, space)?)) {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // How a terminal says that nobody has its other end open.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.master.poll_write_ready(context))?;
            match ready.try_io(|master| Ok(rustix::io::write(master, bytes)?)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Both directions share a descriptor, so there is nothing to shut down but the terminal.
    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
