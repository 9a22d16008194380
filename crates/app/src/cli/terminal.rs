//! The caller's terminal: size, raw mode that is always given back, input.

use std::io::Read;

use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use tokio::sync::mpsc;

use super::failure::Failure;

/// Chunks of input on their way; one is a screenful of typing or a piece of a pipe.
const CHUNKS_MAX: usize = 4;
const CHUNK_BYTES: usize = 32 * 1024;

/// Rows and columns of the terminal on standard output or input.
pub(crate) fn size() -> Option<(u32, u32)> {
    let size = termios::tcgetwinsize(rustix::stdio::stdout())
        .or_else(|_| termios::tcgetwinsize(rustix::stdio::stdin()))
        .ok()?;
    Some((u32::from(size.ws_row), u32::from(size.ws_col)))
}

pub(crate) fn stdin_is_terminal() -> bool {
    termios::isatty(rustix::stdio::stdin())
}

pub(crate) fn stdout_is_terminal() -> bool {
    termios::isatty(rustix::stdio::stdout())
}

/// Keeps the terminal in another mode until dropped, panics included.
pub(crate) struct Mode {
    before: Termios,
}

impl Mode {
    /// Keys go through as they are typed.
    pub(crate) fn raw() -> Result<Self, Failure> {
        Self::change(Termios::make_raw)
    }

    /// What is typed is not shown.
    pub(crate) fn silent() -> Result<Self, Failure> {
        Self::change(|mode| mode.local_modes.remove(LocalModes::ECHO))
    }

    fn change(edit: impl FnOnce(&mut Termios)) -> Result<Self, Failure> {
        let stdin = rustix::stdio::stdin();
        let error = |e| Failure::failed(format!("set the terminal's mode: {e}"));
        let before = termios::tcgetattr(stdin).map_err(error)?;
        let mut mode = before.clone();
        edit(&mut mode);
        termios::tcsetattr(stdin, OptionalActions::Now, &mode).map_err(error)?;
        Ok(Self { before })
    }
}

impl Drop for Mode {
    fn drop(&mut self) {
        // Fails only when the terminal is gone.
        let _ = termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Standard input in chunks, until it ends. A thread of its own reads: a read
/// of a terminal cannot be given up, and must not hold up our end.
pub(crate) fn input() -> mpsc::Receiver<std::io::Result<Vec<u8>>> {
    let (to, from) = mpsc::channel(CHUNKS_MAX);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let chunk = match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(n) => Ok(buffer[..n].to_vec()),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => Err(e),
            };
            let failed = chunk.is_err();
            if to.blocking_send(chunk).is_err() || failed {
                return;
            }
        }
    });
    from
}
