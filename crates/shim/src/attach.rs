//! Copies of a container's output, for those who attach to it.
//!
//! A container never waits for who reads a copy: what a pipe has no room for is left out, counted,
//! and mentioned in the copy once there is room again. The log has it all.

use warren_shim::line::Stream;

use crate::supervise::Caller;
use crate::sys::{self, Fd};
use crate::text::Text;

const NONE: Fd = -1;

/// Pipes of one who is attached.
#[derive(Clone, Copy)]
pub(crate) struct Attached {
    /// For what comes on stdout and stderr.
    pipes: [Fd; 2],
    /// Bytes that each had no room for, and was not told of.
    lost: [u64; 2],
    is_terminal: bool,
}

impl Attached {
    pub(crate) const NONE: Self = Self { pipes: [NONE; 2], lost: [0; 2], is_terminal: false };

    /// Takes over both descriptors. Of a terminal everything comes by the first.
    pub(crate) fn new(fds: &[Fd], is_terminal: bool) -> Option<Self> {
        let [stdout, stderr] = fds else { return None };
        sys::set_nonblocking(*stdout).ok()?;
        sys::set_nonblocking(*stderr).ok()?;
        let mut attached = Self { pipes: [*stdout, *stderr], is_terminal, ..Self::NONE };
        if is_terminal {
            sys::close(*stderr);
            attached.pipes[1] = NONE;
        }
        Some(attached)
    }

    pub(crate) fn is_any(&self) -> bool {
        self.pipes[0] != NONE
    }

    pub(crate) fn close(&mut self) {
        for pipe in &mut self.pipes {
            if *pipe != NONE {
                sys::close(*pipe);
            }
            *pipe = NONE;
        }
    }

    /// False when nobody reads it any more.
    fn give(&mut self, place: usize, bytes: &[u8]) -> bool {
        let pipe = self.pipes[place];
        if pipe == NONE {
            return true;
        }
        if self.lost[place] > 0 {
            let mut text = Text::<96>::new();
            let end: &[u8] = if self.is_terminal { b"\r\n" } else { b"\n" };
            let built = text
                .push(end)
                .and_then(|()| text.push(b"["))
                .and_then(|()| text.push_decimal(self.lost[place]))
                .and_then(|()| text.push(b" bytes left out: read too slowly]"))
                .and_then(|()| text.push(end));
            match sys::write(pipe, text.bytes()) {
                Ok(count) if built.is_ok() && count == text.bytes().len() => self.lost[place] = 0,
                Ok(_) | Err(libc::EAGAIN) => {
                    self.lost[place] += bytes.len() as u64;
                    return true;
                }
                Err(_) => return false,
            }
        }
        match sys::write(pipe, bytes) {
            Ok(count) => self.lost[place] += bytes.len().saturating_sub(count) as u64,
            Err(libc::EAGAIN) => self.lost[place] += bytes.len() as u64,
            Err(_) => return false,
        }
        true
    }
}

/// Gives everybody who is attached what the container wrote.
pub(crate) fn copy(callers: &mut [Caller], stream: Stream, bytes: &[u8]) {
    let place = match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    };
    for caller in callers.iter_mut().filter(|caller| caller.attached.is_any()) {
        if !caller.attached.give(place, bytes) {
            caller.hang_up();
        }
    }
}
