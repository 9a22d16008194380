//! A mount of its own of what a descriptor stands for, not yet attached anywhere.
//!
//! Made in the host's mount namespace, since a shim's container is in another one, which may not
//! copy from here. Between the caller's judgement and the mount no path is looked up again.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::mount::{OpenTreeFlags, open_tree};

use crate::Opened;

/// linux/mount.h.
const READ_ONLY: u64 = 0x1;
const NO_SUID: u64 = 0x2;
const NO_DEVICES: u64 = 0x4;

/// Without set-user-id programs and device files.
pub(crate) fn copy(opened: &Opened, read_only: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if opened.recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = open_tree(&opened.file, "", flags)?;
    // Also of what is mounted below: a read-only bind with a writable part is none.
    let locked = if read_only { READ_ONLY } else { 0 };
    // SAFETY: mount_attr is plain numbers.
    let mut change: libc::mount_attr = unsafe { std::mem::zeroed() };
    change.attr_set = NO_SUID | NO_DEVICES | locked;
    change.propagation = if opened.follows { libc::MS_SLAVE } else { libc::MS_PRIVATE };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the path is empty and ends in NUL, the struct lives through the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const change,
            size_of::<libc::mount_attr>(),
        )
    };
    match done {
        0 => Ok(tree),
        _ => Err(io::Error::last_os_error()),
    }
}
