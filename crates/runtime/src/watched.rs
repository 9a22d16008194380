//! Descriptors that tokio watches: pidfds, sockets, terminals, inotify.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// A descriptor whose readiness tokio tells.
pub type Watched = AsyncFd<OwnedFd>;

/// Needs a tokio runtime around it.
///
/// # Errors
/// When the kernel cannot watch it: it is a plain file.
pub fn watch(fd: OwnedFd) -> io::Result<Watched> {
    // SAFETY: an `OwnedFd` stays the same open descriptor until it is dropped, which the `AsyncFd`
    // does; nobody here takes it out or replaces it.
    Ok(unsafe { AsyncFd::register(fd)? })
}
