//! Mounts: detached file systems, copies, attributes, `pivot_root`.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_int};
use core::mem::zeroed;
use core::ptr::null;

use super::raw::{Word, call};
use super::{Fd, Sys, change_folder, close, done, number};

/// `mount(2)`, used for propagation and overlay alone.
pub(crate) fn mount(
    source: &CStr,
    target: &CStr,
    kind: &CStr,
    flags: u64,
    options: &CStr,
) -> Sys<()> {
    // SAFETY: all strings end in NUL.
    done(unsafe { call!(SYS_mount, source, target, kind, flags, options) })
}

/// A new file system, not yet attached anywhere; `attributes` are `MOUNT_ATTR_…`.
pub(crate) fn new_file_system(kind: &CStr, options: &[(&CStr, &CStr)], attributes: u64) -> Sys<Fd> {
    const CLOEXEC: u32 = 1;
    // SAFETY: the name ends in NUL.
    let context = number(unsafe { call!(SYS_fsopen, kind, CLOEXEC) })?;
    let mount = configure(context, options)
        // SAFETY: numbers only.
        .and_then(|()| number(unsafe { call!(SYS_fsmount, context, CLOEXEC, attributes) }));
    close(context);
    mount
}

fn configure(context: Fd, options: &[(&CStr, &CStr)]) -> Sys<()> {
    const FSCONFIG_SET_STRING: u32 = 1;
    const FSCONFIG_CMD_CREATE: u32 = 6;
    for (key, value) in options {
        // SAFETY: both strings end in NUL.
        unsafe { call!(SYS_fsconfig, context, FSCONFIG_SET_STRING, *key, *value, 0) }?;
    }
    let (key, value) = (null::<u8>(), null::<u8>());
    // SAFETY: this command takes no strings.
    done(unsafe { call!(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, key, value, 0) })
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
    number(unsafe { call!(SYS_open_tree, folder, path, flags) })
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
    let size = size_of::<libc::mount_attr>();
    // SAFETY: the path is empty and ends in NUL, the struct lives through the call.
    done(unsafe { call!(SYS_mount_setattr, mount, c"", flags, &raw const change, size) })
}

/// Attaches a detached mount to what `folder` and `path` name (`folder` itself when empty).
pub(crate) fn attach_mount(mount: Fd, folder: Fd, path: &CStr) -> Sys<()> {
    const FROM_EMPTY_PATH: u32 = 0x4;
    const TO_EMPTY_PATH: u32 = 0x40;
    let flags = if path.is_empty() { FROM_EMPTY_PATH | TO_EMPTY_PATH } else { FROM_EMPTY_PATH };
    // SAFETY: both paths end in NUL.
    done(unsafe { call!(SYS_move_mount, mount, c"", folder, path, flags) })
}

/// Makes the working directory the root and lets go of the old one.
pub(crate) fn pivot_here() -> Sys<()> {
    // SAFETY: both paths end in NUL.
    unsafe { call!(SYS_pivot_root, c".", c".") }?;
    // SAFETY: the path ends in NUL.
    unsafe { call!(SYS_umount2, c".", libc::MNT_DETACH) }?;
    change_folder(c"/")
}
