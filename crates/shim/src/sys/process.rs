//! Processes: clone, wait, namespaces, identity, privileges, limits, signals.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int, c_long};
use std::mem::{size_of, zeroed};
use std::ptr::{null, null_mut};

use super::{Fd, Sys, checked, done, errno, small};

pub(crate) fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills the struct that lives here.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

pub(crate) fn own_pid() -> i32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::getpid() }
}

pub(crate) fn own_user() -> u32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() }
}

pub(crate) fn new_session() -> Sys<()> {
    // SAFETY: no arguments.
    done(unsafe { libc::setsid() })
}

pub(crate) fn kill(pid: i32, signal: i32) -> Sys<()> {
    // SAFETY: no memory is passed.
    done(unsafe { libc::kill(pid, signal) })
}

/// An ended child and its wait status; `None` when none has ended.
pub(crate) fn reap() -> Option<(i32, c_int)> {
    let mut status = 0;
    // SAFETY: the kernel fills the number that lives here.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
    (pid > 0).then_some((pid, status))
}

/// Waits for one child.
pub(crate) fn wait_for(pid: i32) {
    let mut status = 0;
    // SAFETY: the kernel fills the number that lives here.
    while unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) } < 0
        && errno() == libc::EINTR
    {}
}

/// Like `fork`, with namespaces and perhaps a cgroup of its own; 0 in the child.
pub(crate) fn clone(flags: u64, cgroup: Option<Fd>) -> Sys<i32> {
    // SAFETY: clone_args is plain numbers, zero means absent.
    let mut args: libc::clone_args = unsafe { zeroed() };
    args.flags = flags;
    args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    if let Some(cgroup) = cgroup {
        // From linux/sched.h; libc has it as a signed type.
        const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.cast_unsigned());
    }
    // SAFETY: without CLONE_VM the child has a copy of this single-threaded process, so it may
    // run any code of ours; the struct lives through the call and its size is given.
    small(unsafe {
        libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>())
    })
}

pub(crate) fn process_fd(pid: i32) -> Sys<Fd> {
    // SAFETY: no memory is passed.
    small(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

pub(crate) fn enter(namespace: Fd, kinds: c_int) -> Sys<()> {
    // SAFETY: no memory is passed.
    done(unsafe { libc::setns(namespace, kinds) })
}

pub(crate) fn leave(kinds: c_int) -> Sys<()> {
    // SAFETY: no memory is passed.
    done(unsafe { libc::unshare(kinds) })
}

pub(crate) fn set_hostname(name: &[u8]) -> Sys<()> {
    // SAFETY: pointer and length are of one slice.
    done(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) })
}

pub(crate) fn new_keyring() -> Sys<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_int = 1;
    // SAFETY: a null name means an anonymous keyring.
    checked(unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, null::<u8>())
    })
    .map(drop)
}

/// `prctl` with numbers only.
pub(crate) fn process_control(option: c_int, value: u64) -> Sys<()> {
    // SAFETY: callers pass options whose arguments are numbers.
    done(unsafe { libc::prctl(option, value, 0_u64, 0_u64, 0_u64) })
}

pub(crate) fn set_process_name(name: &CStr) {
    // SAFETY: the kernel reads up to 16 bytes or to the NUL.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

pub(crate) fn set_umask(mask: u32) {
    // SAFETY: no memory is passed.
    unsafe { libc::umask(mask) };
}

pub(crate) fn limit(resource: libc::__rlimit_resource_t) -> Sys<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills the struct that lives here.
    done(unsafe { libc::getrlimit(resource, &raw mut limit) })?;
    Ok(limit)
}

pub(crate) fn set_limit(resource: libc::__rlimit_resource_t, limit: libc::rlimit) -> Sys<()> {
    // SAFETY: the struct lives through the call.
    done(unsafe { libc::setrlimit(resource, &raw const limit) })
}

pub(crate) fn set_groups(groups: &[u32]) -> Sys<()> {
    // SAFETY: pointer and length are of one slice.
    done(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) })
}

pub(crate) fn set_ids(user: u32, group: u32) -> Sys<()> {
    // SAFETY: no memory is passed. Raw calls: this process has one thread.
    checked(unsafe { libc::syscall(libc::SYS_setresgid, group, group, group) })?;
    // SAFETY: as above.
    checked(unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) }).map(drop)
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityHalf {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Version 3 of linux/capability.h: 64 bits in two halves.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Sets effective and permitted to `bits` and inheritable to nothing.
pub(crate) fn set_capabilities(bits: u64) -> Sys<()> {
    let header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let half = |shift: u32| {
        let bits = u32::try_from(bits >> shift & u64::from(u32::MAX)).unwrap_or(0);
        CapabilityHalf { effective: bits, permitted: bits, inheritable: 0 }
    };
    let halves = [half(0), half(32)];
    // SAFETY: version 3 reads one header and two halves.
    checked(unsafe { libc::syscall(libc::SYS_capset, &raw const header, halves.as_ptr()) })
        .map(drop)
}

/// Loads a BPF program; its length is a multiple of eight, as the message's check made sure.
pub(crate) fn load_seccomp(program: &[u8]) -> Sys<()> {
    let len = u16::try_from(program.len() / 8).map_err(|_| libc::EINVAL)?;
    // The kernel copies from this address byte-wise, so alignment does not matter to it.
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the program lives through the call, its length is in instructions.
    checked(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
    })
    .map(drop)
}

/// Returns only on failure. Both arrays end in null and hold strings ending in NUL.
pub(crate) fn execute(path: &CStr, args: &[*const u8], env: &[*const u8]) -> i32 {
    debug_assert!(args.last() == Some(&null()) && env.last() == Some(&null()));
    // SAFETY: callers built both arrays from NUL-ended strings that outlive the call, null last.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr().cast(), env.as_ptr().cast()) };
    errno()
}

/// Every signal as a fresh process expects it: default action, and `blocked` the blocked ones.
pub(crate) fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL runs no code of ours; KILL and STOP are refused, which is fine.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

pub(crate) fn block_signals(block: bool) {
    // SAFETY: sigset_t is plain numbers, filled by the calls that follow.
    let mut set: libc::sigset_t = unsafe { zeroed() };
    // SAFETY: the set lives through the calls.
    unsafe {
        if block {
            libc::sigfillset(&raw mut set);
        } else {
            libc::sigemptyset(&raw mut set);
        }
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, null_mut());
    }
}

/// Readable when a child has ended; needs SIGCHLD blocked.
pub(crate) fn child_events() -> Sys<Fd> {
    // SAFETY: sigset_t is plain numbers, filled by the calls that follow.
    let mut set: libc::sigset_t = unsafe { zeroed() };
    // SAFETY: the set lives through the calls.
    let fd = unsafe {
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    small(c_long::from(fd))
}

