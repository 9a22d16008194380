//! Work in another network namespace.
//!
//! A thread that went into one never comes back: it ends with its work. So no thread
//! can be left in the wrong namespace, whatever fails.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::thread;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::Error;
use crate::link::Links;

/// Threads of this crate call a few functions deep; the largest buffer (32 KiB) is on the heap.
pub(crate) const STACK_LEN: usize = 128 * 1024;

/// Runs `work` in a network namespace of its own, on a thread that ends with it: no way back is needed.
pub(crate) fn in_new_namespace<T: Send>(
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    on_thread(|| {
        unshare_network().map_err(|source| Error::io("make a network namespace", source))?;
        work()
    })
}

/// Opens netlink in the namespace behind `netns`.
pub(crate) fn links_of(netns: &OwnedFd) -> Result<Links, Error> {
    in_namespace(netns, Links::open)
}

/// Runs `work` in the namespace behind `netns`.
pub(crate) fn in_namespace<T: Send>(
    netns: &OwnedFd,
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    on_thread(|| {
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|source| Error::io("enter a container's network namespace", source.into()))?;
        work()
    })
}

fn on_thread<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("net-enter".into()).stack_size(STACK_LEN);
        let thread = thread
            .spawn_scoped(scope, work)
            .map_err(|source| Error::io("start a thread for a network namespace", source))?;
        thread.join().unwrap_or_else(|_| {
            Err(Error::io("work in a network namespace", io::Error::other("the thread panicked")))
        })
    })
}

fn unshare_network() -> io::Result<()> {
    // SAFETY: only CLONE_FILES would be unsafe: it parts this thread's descriptors from the others'.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
    Ok(())
}

/// Writes a setting of the calling thread's network namespace. One that this kernel lacks (no IPv6) is fine.
pub(crate) fn write_setting(setting: &str, value: &str) -> Result<(), Error> {
    match std::fs::write(Path::new("/proc/sys/net").join(setting), value) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("set net/{setting} to {value}"), error))
        }
        _ => Ok(()),
    }
}
