//! System calls as the shim uses them: errno as a value, descriptors as numbers, no allocation.
//!
//! Descriptors are plain numbers on purpose: between `clone` and `execve` nothing is dropped,
//! and close-on-exec closes everything.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int, c_long};
use std::mem::{size_of, zeroed};
use std::ptr::null_mut;

mod mount;
mod process;
mod socket;

pub(crate) use mount::*;
pub(crate) use process::*;
pub(crate) use socket::*;

pub(crate) type Fd = c_int;
/// The error is an errno.
pub(crate) type Sys<T> = Result<T, i32>;

pub(crate) fn errno() -> i32 {
    // SAFETY: always valid for the calling thread.
    unsafe { *libc::__errno_location() }
}

fn checked(result: c_long) -> Sys<c_long> {
    if result < 0 { Err(errno()) } else { Ok(result) }
}

/// For results that are descriptors, process ids or counts below 2^31.
fn small(result: c_long) -> Sys<c_int> {
    checked(result).map(|value| c_int::try_from(value).unwrap_or(c_int::MAX))
}

fn done(result: c_int) -> Sys<()> {
    if result < 0 { Err(errno()) } else { Ok(()) }
}

pub(crate) fn exit(code: c_int) -> ! {
    // SAFETY: ends the process, nothing is touched afterwards.
    unsafe { libc::_exit(code) }
}

pub(crate) fn close(fd: Fd) {
    // SAFETY: numbers of descriptors only; a wrong one is EBADF.
    unsafe { libc::close(fd) };
}

pub(crate) fn close_range(first: u32, flags: u32) -> Sys<()> {
    // SAFETY: no memory is passed.
    checked(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) }).map(drop)
}

pub(crate) fn dup_at_least(fd: Fd, lowest: Fd) -> Sys<Fd> {
    // SAFETY: no memory is passed.
    small(c_long::from(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, lowest) }))
}

/// Makes `to` a copy of `from` that survives `execve`.
pub(crate) fn dup_onto(from: Fd, to: Fd) -> Sys<()> {
    if from == to {
        // SAFETY: no memory is passed.
        return done(unsafe { libc::fcntl(from, libc::F_SETFD, 0) });
    }
    // SAFETY: no memory is passed.
    done(unsafe { libc::dup2(from, to) })
}

pub(crate) fn set_nonblocking(fd: Fd) -> Sys<()> {
    // SAFETY: no memory is passed.
    done(unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) })
}

pub(crate) fn open(path: &CStr, flags: c_int) -> Sys<Fd> {
    open_at(libc::AT_FDCWD, path, flags, 0)
}

pub(crate) fn open_at(folder: Fd, path: &CStr, flags: c_int, mode: u32) -> Sys<Fd> {
    // SAFETY: the path ends in NUL.
    let fd = unsafe { libc::openat(folder, path.as_ptr(), flags | libc::O_CLOEXEC, mode) };
    small(c_long::from(fd))
}

/// `openat2`, so that no symbolic link leads out of `root`.
pub(crate) fn open_in_root(root: Fd, path: &CStr, flags: c_int, resolve: u64) -> Sys<Fd> {
    // SAFETY: open_how is plain numbers, zero is a valid value of each.
    let mut how: libc::open_how = unsafe { zeroed() };
    how.flags = u64::from((flags | libc::O_CLOEXEC).cast_unsigned());
    how.resolve = resolve;
    // SAFETY: path ends in NUL, `how` lives through the call and its size is given.
    small(unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root,
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    })
}

pub(crate) fn read(fd: Fd, buffer: &mut [u8]) -> Sys<usize> {
    loop {
        // SAFETY: the kernel writes at most the buffer's length.
        let count =
            checked(unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) } as c_long);
        match count {
            Err(libc::EINTR) => {}
            Err(error) => return Err(error),
            Ok(count) => return Ok(usize::try_from(count).unwrap_or(0).min(buffer.len())),
        }
    }
}

pub(crate) fn read_at(fd: Fd, buffer: &mut [u8], offset: i64) -> Sys<usize> {
    // SAFETY: the kernel writes at most the buffer's length.
    let count = unsafe { libc::pread(fd, buffer.as_mut_ptr().cast(), buffer.len(), offset) };
    checked(count as c_long).map(|count| usize::try_from(count).unwrap_or(0).min(buffer.len()))
}

pub(crate) fn write(fd: Fd, bytes: &[u8]) -> Sys<usize> {
    loop {
        // SAFETY: the kernel reads at most the slice's length.
        let count = checked(unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) } as c_long);
        match count {
            Err(libc::EINTR) => {}
            Err(error) => return Err(error),
            Ok(count) => return Ok(usize::try_from(count).unwrap_or(0)),
        }
    }
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
    done(unsafe { libc::ftruncate(fd, len) })
}

pub(crate) fn status(fd: Fd) -> Sys<libc::stat> {
    // SAFETY: stat is plain numbers.
    let mut stat: libc::stat = unsafe { zeroed() };
    // SAFETY: the kernel fills the struct that lives here.
    done(unsafe { libc::fstat(fd, &raw mut stat) })?;
    Ok(stat)
}

pub(crate) fn is_folder(stat: &libc::stat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFDIR
}

pub(crate) fn file_system(fd: Fd) -> Sys<i64> {
    // SAFETY: statfs is plain numbers.
    let mut stat: libc::statfs = unsafe { zeroed() };
    // SAFETY: the kernel fills the struct that lives here.
    done(unsafe { libc::fstatfs(fd, &raw mut stat) })?;
    Ok(stat.f_type)
}

/// Whether a path leads to anything, links followed.
pub(crate) fn exists(path: &CStr) -> bool {
    // SAFETY: the path ends in NUL.
    unsafe { libc::access(path.as_ptr(), libc::F_OK) == 0 }
}

pub(crate) fn make_folder(folder: Fd, name: &CStr, mode: u32) -> Sys<()> {
    // SAFETY: the name ends in NUL.
    done(unsafe { libc::mkdirat(folder, name.as_ptr(), mode) })
}

pub(crate) fn make_device(folder: Fd, name: &CStr, mode: u32, major: u32, minor: u32) -> Sys<()> {
    let device = libc::makedev(major, minor);
    // SAFETY: the name ends in NUL.
    done(unsafe { libc::mknodat(folder, name.as_ptr(), libc::S_IFCHR | mode, device) })
}

pub(crate) fn make_link(target: &CStr, folder: Fd, name: &CStr) -> Sys<()> {
    // SAFETY: both strings end in NUL.
    done(unsafe { libc::symlinkat(target.as_ptr(), folder, name.as_ptr()) })
}

pub(crate) fn rename(from: &CStr, to: &CStr) -> Sys<()> {
    // SAFETY: both strings end in NUL.
    done(unsafe { libc::rename(from.as_ptr(), to.as_ptr()) })
}

pub(crate) fn unlink_at(folder: Fd, name: &CStr) -> Sys<()> {
    // SAFETY: the name ends in NUL.
    done(unsafe { libc::unlinkat(folder, name.as_ptr(), 0) })
}

pub(crate) fn change_folder(path: &CStr) -> Sys<()> {
    // SAFETY: the path ends in NUL.
    done(unsafe { libc::chdir(path.as_ptr()) })
}

pub(crate) fn change_folder_fd(fd: Fd) -> Sys<()> {
    // SAFETY: no memory is passed.
    done(unsafe { libc::fchdir(fd) })
}

/// Gives a pipe or terminal to the user who will reopen it as /dev/stdout. Other things, such as
/// the host's /dev/null, are not ours to give.
pub(crate) fn give_stream(fd: Fd, user: u32, group: u32) {
    let Ok(stat) = status(fd) else { return };
    let kind = stat.st_mode & libc::S_IFMT;
    // Majors 136 to 143 are Unix98 terminals.
    let is_terminal = kind == libc::S_IFCHR && (136..144).contains(&libc::major(stat.st_rdev));
    if kind == libc::S_IFIFO || is_terminal {
        // SAFETY: no memory is passed.
        unsafe { libc::fchown(fd, user, group) };
    }
}

/// Fills `buffer` with directory entries; 0 at the end.
pub(crate) fn folder_entries(folder: Fd, buffer: &mut [u8]) -> Sys<usize> {
    // SAFETY: the kernel writes at most the buffer's length.
    let count = unsafe {
        libc::syscall(libc::SYS_getdents64, folder, buffer.as_mut_ptr(), buffer.len())
    };
    checked(count).map(|count| usize::try_from(count).unwrap_or(0).min(buffer.len()))
}

pub(crate) fn rewind(folder: Fd) -> Sys<()> {
    // SAFETY: no memory is passed.
    checked(unsafe { libc::lseek(folder, 0, libc::SEEK_SET) }).map(drop)
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
            libc::mmap(null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, fd, 0)
        };
        if start == libc::MAP_FAILED {
            return Err(errno());
        }
        Ok(Self { start: start.cast(), len })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: mapped readable for `len` bytes until drop; seals forbid writing and shrinking.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and no slice outlives `self`.
        unsafe { libc::munmap(self.start.cast_mut().cast(), self.len) };
    }
}

pub(crate) const SEALS: c_int =
    libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

/// Whether a memory file can no longer change under us.
pub(crate) fn is_sealed(fd: Fd) -> bool {
    // SAFETY: no memory is passed.
    let seals = unsafe { libc::fcntl(fd, libc::F_GET_SEALS) };
    seals >= 0 && seals & SEALS == SEALS
}

/// Waits without end when `timeout_ms` is -1.
pub(crate) fn poll(entries: &mut [libc::pollfd], timeout_ms: c_int) -> Sys<()> {
    let len = libc::nfds_t::try_from(entries.len()).unwrap_or(0);
    loop {
        // SAFETY: pointer and length are of one slice.
        match done(unsafe { libc::poll(entries.as_mut_ptr(), len, timeout_ms) }) {
            Err(libc::EINTR) => {}
            other => return other,
        }
    }
}

pub(crate) fn pipe() -> Sys<(Fd, Fd)> {
    let mut fds = [0; 2];
    // SAFETY: room for two numbers.
    done(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) })?;
    Ok((fds[0], fds[1]))
}

