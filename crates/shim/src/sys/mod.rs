//! System calls as the shim uses them: errno as a value, descriptors as numbers, no allocation.
//!
//! Descriptors are plain numbers on purpose: between `clone` and `execve` nothing is dropped,
//! and close-on-exec closes everything.
#![allow(unsafe_code)]

mod mount;
mod process;
mod raw;
mod socket;

use core::ffi::{CStr, c_int};
use core::mem::zeroed;
use core::ptr::{null, null_mut};

pub(crate) use mount::*;
pub(crate) use process::*;
pub(crate) use socket::*;

use raw::{Word, call};

pub(crate) type Fd = c_int;
/// The error is an errno.
pub(crate) type Sys<T> = Result<T, i32>;

/// For answers that are descriptors or process ids.
fn number(answer: Sys<usize>) -> Sys<c_int> {
    answer.map(|value| c_int::try_from(value).unwrap_or(c_int::MAX))
}

fn done(answer: Sys<usize>) -> Sys<()> {
    answer.map(drop)
}

/// Again while a signal came between.
fn steady<T>(mut attempt: impl FnMut() -> Sys<T>) -> Sys<T> {
    loop {
        match attempt() {
            Err(libc::EINTR) => {}
            other => return other,
        }
    }
}

pub(crate) fn close(fd: Fd) {
    // SAFETY: numbers of descriptors only; a wrong one is EBADF.
    let _ = unsafe { call!(SYS_close, fd) };
}

pub(crate) fn close_range(first: u32, flags: u32) -> Sys<()> {
    // SAFETY: no memory is passed.
    done(unsafe { call!(SYS_close_range, first, u32::MAX, flags) })
}

pub(crate) fn dup_at_least(fd: Fd, lowest: Fd) -> Sys<Fd> {
    // SAFETY: no memory is passed.
    number(unsafe { call!(SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, lowest) })
}

/// Makes `to` a copy of `from` that survives `execve`.
pub(crate) fn dup_onto(from: Fd, to: Fd) -> Sys<()> {
    if from == to {
        // SAFETY: no memory is passed.
        return done(unsafe { call!(SYS_fcntl, from, libc::F_SETFD, 0) });
    }
    // SAFETY: no memory is passed.
    done(unsafe { call!(SYS_dup3, from, to, 0) })
}

pub(crate) fn set_nonblocking(fd: Fd) -> Sys<()> {
    // SAFETY: no memory is passed.
    done(unsafe { call!(SYS_fcntl, fd, libc::F_SETFL, libc::O_NONBLOCK) })
}

pub(crate) fn open(path: &CStr, flags: c_int) -> Sys<Fd> {
    open_at(libc::AT_FDCWD, path, flags, 0)
}

pub(crate) fn open_at(folder: Fd, path: &CStr, flags: c_int, mode: u32) -> Sys<Fd> {
    // SAFETY: the path ends in NUL.
    number(unsafe { call!(SYS_openat, folder, path, flags | libc::O_CLOEXEC, mode) })
}

/// `openat2`, so that no symbolic link leads out of `root`.
pub(crate) fn open_in_root(root: Fd, path: &CStr, flags: c_int, resolve: u64) -> Sys<Fd> {
    // SAFETY: open_how is plain numbers, zero is a valid value of each.
    let mut how: libc::open_how = unsafe { zeroed() };
    how.flags = u64::from((flags | libc::O_CLOEXEC).cast_unsigned());
    how.resolve = resolve;
    // SAFETY: path ends in NUL, `how` lives through the call and its size is given.
    number(unsafe { call!(SYS_openat2, root, path, &raw const how, size_of::<libc::open_how>()) })
}

pub(crate) fn read(fd: Fd, buffer: &mut [u8]) -> Sys<usize> {
    // SAFETY: the kernel writes at most the buffer's length.
    let count = steady(|| unsafe { call!(SYS_read, fd, buffer.as_mut_ptr(), buffer.len()) });
    count.map(|count| count.min(buffer.len()))
}

pub(crate) fn read_at(fd: Fd, buffer: &mut [u8], offset: i64) -> Sys<usize> {
    // SAFETY: the kernel writes at most the buffer's length.
    let count = unsafe { call!(SYS_pread64, fd, buffer.as_mut_ptr(), buffer.len(), offset) };
    count.map(|count| count.min(buffer.len()))
}

pub(crate) fn write(fd: Fd, bytes: &[u8]) -> Sys<usize> {
    // SAFETY: the kernel reads at most the slice's length.
    steady(|| unsafe { call!(SYS_write, fd, bytes.as_ptr(), bytes.len()) })
}

pub(crate) fn write_all(fd: Fd, mut bytes: &[u8]) -> Sys<()> {
    while !bytes.is_empty() {
        let count = write(fd, bytes)?;
        bytes = bytes.get(count..).unwrap_or_default();
    }
    Ok(())
}

pub(crate) fn truncate(fd: Fd, len: i64) -> Sys<()> {
    // SAFETY: no memory is passed.
    done(unsafe { call!(SYS_ftruncate, fd, len) })
}

pub(crate) fn status(fd: Fd) -> Sys<libc::stat> {
    // SAFETY: stat is plain numbers.
    let mut stat: libc::stat = unsafe { zeroed() };
    // SAFETY: the kernel fills the struct that lives here; its layout is the kernel's on 64 bits.
    unsafe { call!(SYS_fstat, fd, &raw mut stat) }?;
    Ok(stat)
}

pub(crate) fn is_folder(stat: &libc::stat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFDIR
}

pub(crate) fn file_system(fd: Fd) -> Sys<i64> {
    // SAFETY: statfs is plain numbers.
    let mut stat: libc::statfs = unsafe { zeroed() };
    // SAFETY: the kernel fills the struct that lives here; its layout is the kernel's on 64 bits.
    unsafe { call!(SYS_fstatfs, fd, &raw mut stat) }?;
    Ok(stat.f_type)
}

/// Whether a path leads to anything, links followed.
pub(crate) fn exists(path: &CStr) -> bool {
    // SAFETY: the path ends in NUL.
    unsafe { call!(SYS_faccessat, libc::AT_FDCWD, path, libc::F_OK) }.is_ok()
}

pub(crate) fn make_folder(folder: Fd, name: &CStr, mode: u32) -> Sys<()> {
    // SAFETY: the name ends in NUL.
    done(unsafe { call!(SYS_mkdirat, folder, name, mode) })
}

pub(crate) fn make_device(folder: Fd, name: &CStr, mode: u32, major: u32, minor: u32) -> Sys<()> {
    let device = libc::makedev(major, minor);
    // SAFETY: the name ends in NUL.
    done(unsafe { call!(SYS_mknodat, folder, name, libc::S_IFCHR | mode, device) })
}

/// A device file of any kind, with its owner; `mode` says the kind, too.
pub(crate) fn make_node(
    folder: Fd,
    name: &CStr,
    mode: u32,
    device: (u32, u32),
    (user, group): (u32, u32),
) -> Sys<()> {
    let device = libc::makedev(device.0, device.1);
    // SAFETY: the name ends in NUL.
    done(unsafe { call!(SYS_mknodat, folder, name, mode, device) })?;
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: the name ends in NUL.
    done(unsafe { call!(SYS_fchownat, folder, name, user, group, flags) })
}

pub(crate) fn make_link(target: &CStr, folder: Fd, name: &CStr) -> Sys<()> {
    // SAFETY: both strings end in NUL.
    done(unsafe { call!(SYS_symlinkat, target, folder, name) })
}

/// Within the working directory.
pub(crate) fn rename(from: &CStr, to: &CStr) -> Sys<()> {
    // SAFETY: both strings end in NUL.
    done(unsafe { call!(SYS_renameat2, libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0) })
}

pub(crate) fn unlink_at(folder: Fd, name: &CStr) -> Sys<()> {
    // SAFETY: the name ends in NUL.
    done(unsafe { call!(SYS_unlinkat, folder, name, 0) })
}

pub(crate) fn change_folder(path: &CStr) -> Sys<()> {
    // SAFETY: the path ends in NUL.
    done(unsafe { call!(SYS_chdir, path) })
}

pub(crate) fn change_folder_fd(fd: Fd) -> Sys<()> {
    // SAFETY: no memory is passed.
    done(unsafe { call!(SYS_fchdir, fd) })
}

/// Gives a pipe or terminal to the user who will reopen it as /dev/stdout. Other things, such as
/// the host's /dev/null, are not ours to give.
pub(crate) fn give_stream(fd: Fd, user: u32, group: u32) {
    let Ok(stat) = status(fd) else { return };
    let kind = stat.st_mode & libc::S_IFMT;
    // Majors 136 to 143 are Unix98 terminals.
    let is_terminal = kind == libc::S_IFCHR && (136..144).contains(&libc::major(stat.st_rdev));
    if kind == libc::S_IFIFO || is_terminal {
        // Where it fails the stream still works, it only cannot be reopened.
        // SAFETY: no memory is passed.
        let _ = unsafe { call!(SYS_fchown, fd, user, group) };
    }
}

/// Changes who owns a file.
pub(crate) fn give(fd: Fd, user: u32, group: u32) -> Sys<()> {
    // SAFETY: no memory is passed.
    done(unsafe { call!(SYS_fchown, fd, user, group) })
}

/// Fills `buffer` with directory entries; 0 at the end.
pub(crate) fn folder_entries(folder: Fd, buffer: &mut [u8]) -> Sys<usize> {
    // SAFETY: the kernel writes at most the buffer's length.
    let count = unsafe { call!(SYS_getdents64, folder, buffer.as_mut_ptr(), buffer.len()) };
    count.map(|count| count.min(buffer.len()))
}

pub(crate) fn rewind(folder: Fd) -> Sys<()> {
    // SAFETY: no memory is passed.
    done(unsafe { call!(SYS_lseek, folder, 0, libc::SEEK_SET) })
}

/// A read-only mapping of a whole file; ended by dropping it.
pub(crate) struct Mapping {
    start: *const u8,
    len: usize,
}

impl Mapping {
    /// `limit` bounds what is mapped.
    pub(crate) fn new(fd: Fd, limit: usize) -> Sys<Self> {
        let len = usize::try_from(status(fd)?.st_size).map_err(|_| libc::EINVAL)?;
        if len == 0 || len > limit {
            return Err(libc::EMSGSIZE);
        }
        // SAFETY: a fresh mapping chosen by the kernel; the file is sealed against change.
        let start = unsafe {
            call!(SYS_mmap, null::<u8>(), len, libc::PROT_READ, libc::MAP_SHARED, fd, 0)
        }?;
        Ok(Self { start: core::ptr::with_exposed_provenance(start), len })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: mapped readable for `len` bytes until drop; seals forbid writing and shrinking.
        unsafe { core::slice::from_raw_parts(self.start, self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and no slice outlives `self`.
        let _ = unsafe { call!(SYS_munmap, self.start, self.len) };
    }
}

/// Whether a memory file can no longer change under us.
pub(crate) fn is_sealed(fd: Fd) -> bool {
    const SEALS: c_int =
        libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: no memory is passed.
    let seals = number(unsafe { call!(SYS_fcntl, fd, libc::F_GET_SEALS, 0) });
    seals.is_ok_and(|seals| seals & SEALS == SEALS)
}

pub(crate) fn pipe() -> Sys<(Fd, Fd)> {
    let mut fds = [0; 2];
    // SAFETY: room for two numbers.
    unsafe { call!(SYS_pipe2, fds.as_mut_ptr(), libc::O_CLOEXEC) }?;
    Ok((fds[0], fds[1]))
}

/// Waits for ever, or not at all.
pub(crate) fn poll(entries: &mut [libc::pollfd], wait: bool) -> Sys<()> {
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let timeout = if wait { null() } else { &raw const zero };
    // SAFETY: pointer and length are of one slice, the time lives through the call.
    let answer = steady(|| unsafe {
        call!(SYS_ppoll, entries.as_mut_ptr(), entries.len(), timeout, null_mut::<u8>(), 0)
    });
    done(answer)
}
