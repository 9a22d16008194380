//! The streams of a container's own first process, through the shim.

use std::io;
use std::os::fd::AsFd;

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use tokio::net::unix::pipe::{Receiver, Sender};
use warren_shim::message::{Input, Operation, Reply, Request, Step};

use super::Shared;
use super::exec::{Control, Terminal};
use crate::{Error, Exec};

/// Of output that waits for who is attached: what exceeds it is left out, for containers never
/// wait. Costs memory only while it is full. Unprivileged processes may not have more.
const PIPE_BYTES: usize = 1 << 20;

impl Shared {
    pub(crate) async fn attach_to(&self, id: &str) -> Result<Exec, Error> {
        let at = |source| Error::Io { action: format!("attach to container {id}"), source };
        let channel = self.channel(id)?;
        let (stdout, stdout_theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| at(e.into()))?;
        let (stderr, stderr_theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| at(e.into()))?;
        for pipe in [&stdout, &stderr] {
            // With less, it is only left out sooner.
            let _ = fcntl_setpipe_size(pipe, PIPE_BYTES);
        }
        let request = Request { operation: Operation::Attach, argument: 0 };
        let fds = [stdout_theirs.as_fd(), stderr_theirs.as_fd()];
        channel.request(&request, &fds).await.map_err(at)?;
        let (input, fd) = match channel.reply().await.map_err(at)? {
            (Reply::Attached { input }, fd) => (input, fd),
            (Reply::Failed { step: Step::Protocol, .. }, _) => {
                return Err(Error::Unsupported(format!(
                    "container {id} was started by a version that nobody can attach to"
                )));
            }
            (Reply::Failed { step: Step::Busy, .. }, _) => {
                return Err(Error::Unsupported(format!(
                    "too many are attached to container {id}, or execute in it"
                )));
            }
            _ => return Err(at(io::ErrorKind::InvalidData.into())),
        };
        drop((stdout_theirs, stderr_theirs));
        let (mut stdin, mut terminal) = (None, None);
        match (input, fd) {
            (Input::Pipe, Some(fd)) => {
                stdin = Some(Box::new(Sender::from_owned_fd(fd).map_err(at)?) as _);
            }
            (Input::Terminal, Some(fd)) => {
                let master = Terminal::new(fd).map_err(at)?;
                stdin = Some(Box::new(master.clone()) as _);
                terminal = Some(master);
            }
            (Input::Closed | Input::Pipe | Input::Terminal, _) => {}
        }
        let is_terminal = terminal.is_some();
        let stderr = Receiver::from_owned_fd(stderr).map_err(at)?;
        Ok(Exec {
            stdin,
            stdout: Box::new(Receiver::from_owned_fd(stdout).map_err(at)?),
            stderr: (!is_terminal).then(|| Box::new(stderr) as _),
            control: Box::new(Control::new(id.to_owned(), channel, terminal)),
        })
    }
}
