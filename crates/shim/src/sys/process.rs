//! Processes: clone, wait, namespaces, identity, privileges, limits, signals.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_int};
use core::mem::zeroed;
use core::ptr::{null, null_mut};

use super::raw::{Word, call};
use super::{Fd, Sys, done, number, steady};

pub(crate) fn exit(code: c_int) -> ! {
    loop {
        // SAFETY: ends the process, nothing is touched afterwards.
        let _ = unsafe { call!(SYS_exit_group, code) };
    }
}

pub(crate) fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills the struct that lives here.
    let _ = unsafe { call!(SYS_clock_gettime, libc::CLOCK_REALTIME, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

pub(crate) fn own_pid() -> i32 {
    // SAFETY: no arguments.
    number(unsafe { call!(SYS_getpid) }).unwrap_or(0)
}

pub(crate) fn own_user() -> u32 {
    // SAFETY: no arguments.
    number(unsafe { call!(SYS_geteuid) }).unwrap_or(0).cast_unsigned()
}

pub(crate) fn new_session() -> Sys<()> {
    // SAFETY: no arguments.
    done(unsafe { call!(SYS_setsid) })
}

/// A process group that this process leads.
pub(crate) fn new_group() -> Sys<()> {
    // SAFETY: no memory is passed.
    done(unsafe { call!(SYS_setpgid, 0, 0) })
}

/// Makes this process's group that of the terminal.
pub(crate) fn come_to_the_fore(terminal: Fd) -> Sys<()> {
    let group: c_int = own_pid();
    // SAFETY: the kernel reads the number that lives here.
    done(unsafe { call!(SYS_ioctl, terminal, libc::TIOCSPGRP, &raw const group) })
}

/// Waits for a signal, all of which are blocked.
pub(crate) fn next_signal() -> Sys<c_int> {
    let set = u64::MAX;
    // SAFETY: the set lives through the call and its size is given; nulls mean that neither
    // details nor a time are asked for.
    number(unsafe {
        call!(SYS_rt_sigtimedwait, &raw const set, null_mut::<u8>(), null_mut::<u8>(), SET)
    })
}

pub(crate) fn kill(pid: i32, signal: i32) -> Sys<()> {
    // SAFETY: no memory is passed.
    done(unsafe { call!(SYS_kill, pid, signal) })
}

/// An ended child and its wait status; `None` when none has ended.
pub(crate) fn reap() -> Option<(i32, c_int)> {
    let mut status: c_int = 0;
    let flags = libc::WNOHANG | libc::__WALL;
    // SAFETY: the kernel fills the number that lives here.
    let pid = unsafe { call!(SYS_wait4, -1, &raw mut status, flags, null_mut::<u8>()) };
    number(pid).ok().filter(|pid| *pid > 0).map(|pid| (pid, status))
}

/// Waits for one child; its wait status.
pub(crate) fn wait_for(pid: i32) -> c_int {
    let mut status: c_int = 0;
    // ECHILD means that it is gone already.
    // SAFETY: the kernel fills the number that lives here.
    let _ = steady(|| unsafe {
        call!(SYS_wait4, pid, &raw mut status, libc::__WALL, null_mut::<u8>())
    });
    status
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
    number(unsafe { call!(SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) })
}

/// `fork`, by the older call: seccomp profiles of containers allow no other.
pub(crate) fn fork() -> Sys<i32> {
    // SAFETY: without CLONE_VM the child has a copy of this single-threaded process; no memory is
    // passed.
    number(unsafe { call!(SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) })
}

pub(crate) fn process_fd(pid: i32) -> Sys<Fd> {
    // SAFETY: no memory is passed.
    number(unsafe { call!(SYS_pidfd_open, pid, 0) })
}

pub(crate) fn enter(namespace: Fd, kinds: c_int) -> Sys<()> {
    // SAFETY: no memory is passed.
    done(unsafe { call!(SYS_setns, namespace, kinds) })
}

pub(crate) fn leave(kinds: c_int) -> Sys<()> {
    // SAFETY: no memory is passed.
    done(unsafe { call!(SYS_unshare, kinds) })
}

pub(crate) fn set_hostname(name: &[u8]) -> Sys<()> {
    // SAFETY: pointer and length are of one slice.
    done(unsafe { call!(SYS_sethostname, name.as_ptr(), name.len()) })
}

pub(crate) fn new_keyring() -> Sys<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_int = 1;
    // SAFETY: a null name means an anonymous keyring.
    done(unsafe { call!(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, null::<u8>()) })
}

/// `prctl` with numbers only.
pub(crate) fn process_control(option: c_int, value: u64) -> Sys<()> {
    // SAFETY: callers pass options whose arguments are numbers.
    done(unsafe { call!(SYS_prctl, option, value) })
}

pub(crate) fn set_process_name(name: &CStr) {
    // SAFETY: the kernel reads up to 16 bytes or to the NUL.
    let _ = unsafe { call!(SYS_prctl, libc::PR_SET_NAME, name) };
}

pub(crate) fn set_umask(mask: u32) {
    // SAFETY: no memory is passed.
    let _ = unsafe { call!(SYS_umask, mask) };
}

pub(crate) fn limit(resource: u32) -> Sys<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills the struct that lives here.
    unsafe { call!(SYS_prlimit64, 0, resource, null::<u8>(), &raw mut limit) }?;
    Ok(limit)
}

pub(crate) fn set_limit(resource: u32, limit: libc::rlimit) -> Sys<()> {
    // SAFETY: the struct lives through the call.
    done(unsafe { call!(SYS_prlimit64, 0, resource, &raw const limit, null_mut::<u8>()) })
}

pub(crate) fn set_groups(groups: &[u32]) -> Sys<()> {
    // SAFETY: pointer and length are of one slice.
    done(unsafe { call!(SYS_setgroups, groups.len(), groups.as_ptr()) })
}

pub(crate) fn set_ids(user: u32, group: u32) -> Sys<()> {
    // SAFETY: no memory is passed.
    unsafe { call!(SYS_setresgid, group, group, group) }?;
    // SAFETY: no memory is passed.
    done(unsafe { call!(SYS_setresuid, user, user, user) })
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
    done(unsafe { call!(SYS_capset, &raw const header, halves.as_ptr()) })
}

/// Loads a BPF program; its length is a multiple of eight, as the message's check made sure.
pub(crate) fn load_seccomp(program: &[u8]) -> Sys<()> {
    let len = u16::try_from(program.len() / 8).map_err(|_| libc::EINVAL)?;
    // The kernel copies from this address byte-wise, so alignment does not matter to it.
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the program lives through the call, its length is in instructions.
    done(unsafe { call!(SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) })
}

/// Returns only on failure. Both arrays end in null and hold strings ending in NUL.
pub(crate) fn execute(path: &CStr, args: &[*const u8], env: &[*const u8]) -> i32 {
    debug_assert!(args.last() == Some(&null()) && env.last() == Some(&null()));
    // SAFETY: callers built both arrays from NUL-ended strings that outlive the call, null last.
    match unsafe { call!(SYS_execve, path, args.as_ptr(), env.as_ptr()) } {
        Err(errno) => errno,
        // It does not return otherwise.
        Ok(_) => 0,
    }
}

/// The kernel's set of signals has one bit for each of 64.
const SIGNALS: usize = 64;
const SET: usize = size_of::<u64>();

/// Default action for every signal, the two that C libraries keep for themselves included:
/// whatever started the daemon may have ignored some, and that survives `execve`.
pub(crate) fn reset_signals() {
    // handler, flags, restorer, mask: all zero is the default action.
    let action = [0_u64; 4];
    for signal in 1..=SIGNALS {
        // KILL and STOP are refused, which is fine.
        // SAFETY: the kernel reads the action, and SIG_DFL runs no code of ours.
        let _ = unsafe { call!(SYS_rt_sigaction, signal, action.as_ptr(), null_mut::<u8>(), SET) };
    }
}

pub(crate) fn block_signals(block: bool) {
    let set = if block { u64::MAX } else { 0 };
    // SAFETY: the set lives through the call and its size is given.
    let _ = unsafe {
        call!(SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const set, null_mut::<u8>(), SET)
    };
}

/// Readable when a child has ended; needs SIGCHLD blocked.
pub(crate) fn child_events() -> Sys<Fd> {
    let set = 1_u64 << (libc::SIGCHLD - 1);
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the set lives through the call and its size is given.
    number(unsafe { call!(SYS_signalfd4, -1, &raw const set, SET, flags) })
}
