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
    fn new(with_stdin: bool, detached: bool) -> io::Result<Self> {
        let (stdin_theirs, stdin) = if with_stdin {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            (read, Some(Sender::from_owned_fd(write)?))
        } else {
            (File::open("/dev/null")?.into(), None)
        };
        let (stdout, stdout_theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, stderr_theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        let nobody = || File::options().write(true).open("/dev/null").map(OwnedFd::from);
        let theirs = match detached {
            true => [stdin_theirs, nobody()?, nobody()?],
            false => [stdin_theirs, stdout_theirs, stderr_theirs],
        };
        Ok(Self {
            theirs,
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
        let pipes = match exec.tty {
            Some(_) => None,
            None => Some(Pipes::new(exec.stdin, exec.detached).map_err(at)?),
        };
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
            let control = Control::new(id, channel, None);
            return Ok(Exec {
                stdin: pipes.stdin.map(|stdin| Box::new(stdin) as _),
                stdout: Box::new(pipes.stdout),
                stderr: Some(Box::new(pipes.stderr)),
                control: Box::new(control),
            });
        }
        let master = master.ok_or_else(|| at(io::ErrorKind::InvalidData.into()))?;
        let terminal = Terminal::new(master).map_err(at)?;
        let control = Control::new(id, channel, Some(terminal.clone()));
        Ok(Exec {
            stdin: exec.stdin.then(|| Box::new(terminal.clone()) as _),
            stdout: Box::new(terminal),
            stderr: None,
            control: Box::new(control),
        })
    }
}

pub(crate) struct Control {
    id: String,
    channel: Channel,
    terminal: Option<Terminal>,
    /// Once it has been told.
    code: Option<i32>,
}

impl Control {
    pub(crate) fn new(id: String, channel: Channel, terminal: Option<Terminal>) -> Self {
        Self { id, channel, terminal, code: None }
    }
}

#[async_trait]
impl ExecControl for Control {
    async fn resize(&mut self, rows: u16, columns: u16) -> Result<(), Error> {
        let Some(terminal) = &self.terminal else {
            return Err(Error::Rejected("it has no terminal".to_owned()));
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
pub(crate) struct Terminal {
    master: Arc<Watched>,
}

impl Terminal {
    pub(crate) fn new(master: OwnedFd) -> io::Result<Self> {
        Ok(Self { master: Arc::new(watch(master)?) })
    }
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
