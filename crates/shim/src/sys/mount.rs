//! Mounts: detached file systems, copies, attributes, `pivot_root`.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int, c_void};
use std::mem::{size_of, zeroed};
use std::ptr::null;

use super::{Fd, Sys, change_folder, checked, close, done, small};

/// What `MS_…` `mount(2)` takes; used for propagation and overlay alone.
pub(crate) fn mount(
    source: &CStr,
    target: &CStr,
    kind: &CStr,
    flags: u64,
    options: &CStr,
) -> Sys<()> {
    // SAFETY: all strings end in NUL.
    done(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            options.as_ptr().cast::<c_void>(),
        )
    })
}

/// A new file system, not yet attached anywhere; `attributes` are `MOUNT_ATTR_…`.
pub(crate) fn new_file_system(
    kind: &CStr,
    options: &[(&CStr, &CStr)],
    attributes: u64,
) -> Sys<Fd> {
    const FSCONFIG_SET_STRING: u32 = 1;
    const FSCONFIG_CMD_CREATE: u32 = 6;
    const CLOEXEC: u32 = 1;
    // SAFETY: the name ends in NUL.
    let context = small(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), CLOEXEC) })?;
    for (key, value) in options {
        // SAFETY: both strings end in NUL.
        let set = checked(unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                context,
                FSCONFIG_SET_STRING,
                key.as_ptr(),
                value.as_ptr(),
                0,
            )
        });
        set.inspect_err(|_| close(context))?;
    }
    // SAFETY: this command takes no strings.
    let made = checked(unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context,
            FSCONFIG_CMD_CREATE,
            null::<u8>(),
            null::<u8>(),
            0,
        )
    });
    made.inspect_err(|_| close(context))?;
    // SAFETY: numbers only.
    let mount = small(unsafe { libc::syscall(libc::SYS_fsmount, context, CLOEXEC, attributes) });
    close(context);
    mount
}

/// A detached copy of the mount at a path (or of `folder` itself when the path is empty).
pub(crate) fn copy_mount(folder: Fd, path: &CStr, recursive: bool) -> Sys<Fd> {
    const OPEN_TREE_CLONE: c_int = 1;
    let mut flags = OPEN_TREE_CLONE | libc::O_CLOEXEC;
    if path.is_empty() {
        flags |= libc::AT_EMPTY_PATH;
    }
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path ends in NUL.
    small(unsafe { libc::syscall(libc::SYS_open_tree, folder, path.as_ptr(), flags) })
}

/// Sets `MOUNT_ATTR_…` and makes the mount private.
pub(crate) fn change_mount(mount: Fd, attributes: u64, recursive: bool) -> Sys<()> {
    // SAFETY: mount_attr is plain numbers.
    let mut change: libc::mount_attr = unsafe { zeroed() };
    change.attr_set = attributes;
    change.propagation = libc::MS_PRIVATE;
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is empty and ends in NUL, the struct lives through the call.
    checked(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount,
            c"".as_ptr(),
            flags,
            &raw const change,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Attaches a detached mount to what `folder` and `path` name (`folder` itself when empty).
pub(crate) fn attach_mount(mount: Fd, folder: Fd, path: &CStr) -> Sys<()> {
    const FROM_EMPTY_PATH: u32 = 0x4;
    const TO_EMPTY_PATH: u32 = 0x40;
    let flags = if path.is_empty() { FROM_EMPTY_PATH | TO_EMPTY_PATH } else { FROM_EMPTY_PATH };
    // SAFETY: both paths end in NUL.
    checked(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount,
            c"".as_ptr(),
            folder,
            path.as_ptr(),
            flags,
        )
    })
    .map(drop)
}

/// Makes the working directory the root and lets go of the old one.
pub(crate) fn pivot_here() -> Sys<()> {
    // SAFETY: both paths end in NUL.
    checked(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) })?;
    // SAFETY: the path ends in NUL.
    done(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) })?;
    change_folder(c"/")
}
